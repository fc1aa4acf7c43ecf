#!/usr/bin/env python3
"""Builds the shipped firmware, rpmsgx/firmware/*.elf, and its manifest.

    python tools/build_firmware.py            build into rpmsgx/firmware
    python tools/build_firmware.py --check    build elsewhere and compare: status 0 if every byte agrees
    python tools/build_firmware.py --out DIR  build into DIR

The compiler is ziglang from PyPI; the same version makes the same bytes, wherever the tree lies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRMWARE = ROOT / "rpmsgx" / "firmware"
APPS = ("sample", "flood", "crash")
COMMON = ("firmware/start.c", "firmware/board.c", "remote/remote.c")
SCRIPT = "firmware/m4.ld"
MANIFEST = "manifest.json"
FLAGS = (
    *("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4"),
    *("-std=c11", "-O2", "-g0", "-ffreestanding", "-nostdlib", "-fno-sanitize=undefined"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-ffunction-sections"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
    *("-I.", '-DRPX_ATOMICS_FILE="firmware/atomics.h"'),
    *(f"-Wl,-T,{SCRIPT}", "-Wl,-e,board_reset", "-Wl,--build-id=none", "-Wl,--gc-sections"),
    "-Wl,-z,max-page-size=16",
)


def image_name(app: str) -> str:
    return f"{app}-cortex-m4.elf"


def sources() -> list[str]:
    """Everything that the images are made from, relative to csrc."""
    csrc = ROOT / "csrc"
    headers = [path.relative_to(csrc).as_posix() for path in csrc.rglob("*.h")]
    return sorted({*headers, *COMMON, SCRIPT, *(f"apps/{app}.c" for app in APPS)})


def sources_sha256() -> str:
    digest = hashlib.sha256()
    for name in sources():
        data = (ROOT / "csrc" / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def build(out: Path) -> dict[str, object]:
    """Build every image into `out`; returns the manifest, which is written there as well."""
    images = {}
    with tempfile.TemporaryDirectory(prefix="rpmsgx-zig-") as cache:
        env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        for app in APPS:
            elf = out.resolve() / image_name(app)
            command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, f"-DRPX_APP=rpx_app_{app}"]
            subprocess.run(
                [*command, *COMMON, f"apps/{app}.c", "-o", str(elf)], cwd=ROOT / "csrc", env=env, check=True
            )
            elf.chmod(0o644)
            images[elf.name] = hashlib.sha256(elf.read_bytes()).hexdigest()
    manifest: dict[str, object] = {
        "ziglang": version("ziglang"),
        "sources_sha256": sources_sha256(),
        "images": images,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def check() -> list[str]:
    """Build afresh and compare with what is shipped; returns the names of the files that differ."""
    with tempfile.TemporaryDirectory(prefix="rpmsgx-firmware-") as directory:
        fresh = Path(directory)
        build(fresh)
        names = [MANIFEST, *map(image_name, APPS)]
        return [
            name
            for name in names
            if not (FIRMWARE / name).exists() or (FIRMWARE / name).read_bytes() != (fresh / name).read_bytes()
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the shipped firmware.")
    parser.add_argument("--check", action="store_true", help="compare a fresh build with the shipped files")
    parser.add_argument("--out", type=Path, default=FIRMWARE, help="directory to build into")
    options = parser.parse_args()
    if options.check:
        different = check()
        print("\n".join(f"{name}: differs" for name in different) or "every byte agrees")
        return 1 if different else 0
    print(json.dumps(build(options.out), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
