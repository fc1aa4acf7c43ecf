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
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FIRMWARE = ROOT / "rpmsgx" / "firmware"
MANIFEST = "manifest.json"
APPS = ("sample", "flood", "crash")
COMMON = ("firmware/main.c", "remote/remote.c")
FLAGS = (
    *("-std=c11", "-O2", "-g0", "-ffreestanding", "-nostdlib", "-fno-sanitize=undefined"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-ffunction-sections"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
    *("-I.", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,-z,max-page-size=16"),
)


class Board(NamedTuple):
    """What makes an image one for this board; files are relative to csrc/firmware."""

    header: str
    script: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    entry: str = "board_reset"
    atomics: bool = False
    """Its emulator drops barriers: see atomics.h."""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"firmware/{name}" for name in self.sources)

    def command(self, app: str, elf: Path) -> list[str]:
        atomics = ['-DRPX_ATOMICS_FILE="firmware/atomics.h"'] if self.atomics else []
        return [
            *(sys.executable, "-m", "ziglang", "cc", *self.flags, *FLAGS, *atomics),
            *(f'-DRPX_BOARD_FILE="firmware/{self.header}"', f"-DRPX_APP=rpx_app_{app}"),
            *(f"-Wl,-T,firmware/{self.script}", f"-Wl,-e,{self.entry}"),
            *(*COMMON, *self.files, f"apps/{app}.c", "-o", str(elf)),
        ]


CORTEX_M4 = ("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4")
RISCV32 = ("-target", "riscv32-freestanding", "-mcpu=generic_rv32+m+a+c+zicsr")
RISCV64 = ("-target", "riscv64-freestanding", "-mcpu=generic_rv64+m+a+c+zicsr", "-mcmodel=medany")
AARCH64 = ("-target", "aarch64-freestanding", "-mcpu=generic-neon-fp_armv8+strict_align")
RISCV_VIRT = "qemu/riscv-virt.h", "qemu/riscv-virt.ld", ("riscv.c", "qemu/line.c")


def unicorn(script: str, start: str, flags: tuple[str, ...]) -> Board:
    return Board("unicorn/mailbox.h", f"unicorn/{script}", (start, "unicorn/mailbox.c"), flags, atomics=True)


BOARDS = {
    "cortex-m4": unicorn("cortex-m4.ld", "cortex-m.c", CORTEX_M4),
    "riscv32": unicorn("ram-data.ld", "riscv.c", RISCV32),
    "riscv64": unicorn("ram-data.ld", "riscv.c", RISCV64),
    "cortex-a53": unicorn("ram-data.ld", "aarch64.c", AARCH64),
    "mps2-an386": Board(
        "qemu/mps2-an386.h", "qemu/mps2-an386.ld", ("cortex-m.c", "qemu/mps2-an386.c", "qemu/line.c"), CORTEX_M4,
        entry="board_begin", atomics=True,
    ),
    "riscv32-virt": Board(*RISCV_VIRT, RISCV32),
    "riscv64-virt": Board(*RISCV_VIRT, RISCV64),
    "aarch64-virt": Board("qemu/aarch64-virt.h", "qemu/aarch64-virt.ld", ("aarch64.c", "qemu/line.c"), AARCH64),
}  # fmt: skip


def images() -> dict[str, tuple[str, Board]]:
    """File name: application and board."""
    return {f"{app}-{name}.elf": (app, board) for name, board in BOARDS.items() for app in APPS}


def sources() -> list[str]:
    """Everything that the images are made from, relative to csrc."""
    csrc = ROOT / "csrc"
    found = [path.relative_to(csrc).as_posix() for kind in ("h", "ld") for path in csrc.rglob(f"*.{kind}")]
    boards = [name for board in BOARDS.values() for name in board.files]
    return sorted({*found, *COMMON, *boards, *(f"apps/{app}.c" for app in APPS)})


def sources_sha256() -> str:
    digest = hashlib.sha256()
    for name in sources():
        data = (ROOT / "csrc" / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def build(out: Path) -> dict[str, object]:
    """Build every image into `out`; returns the manifest, which is written there as well."""
    with tempfile.TemporaryDirectory(prefix="rpmsgx-zig-") as cache:
        env = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}

        def make(name: str) -> str:
            app, board = images()[name]
            elf = out.resolve() / name
            subprocess.run(board.command(app, elf), cwd=ROOT / "csrc", env=env, check=True)
            elf.chmod(0o644)
            return hashlib.sha256(elf.read_bytes()).hexdigest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = dict(zip(images(), pool.map(make, images()), strict=True))
    manifest: dict[str, object] = {
        "ziglang": version("ziglang"),
        "sources_sha256": sources_sha256(),
        "images": digests,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def check() -> list[str]:
    """Build afresh and compare with what is shipped; returns the names of the files that differ."""
    with tempfile.TemporaryDirectory(prefix="rpmsgx-firmware-") as directory:
        fresh = Path(directory)
        build(fresh)
        return [
            name
            for name in (MANIFEST, *images())
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
