# SPDX-License-Identifier: BSD-3-Clause
"""Machines in QEMU that run Debian's kernel as it is, on a root of the host's over 9p, for one program in it.

What they need comes from Debian's archive once, and is unpacked, not installed, in a cache directory. `init` is the
first process of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
NINE_P = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("netfs", "fscache", "9pnet", "9p", "9pnet_virtio"),
)
LIMIT = 150.0  # seconds that a guest may take


class Missing(Exception):
    """What this machine lacks to run the guest, and how to get it."""


def need(tools: Sequence[str], packages: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Missing(f"the guest needs {', '.join(missing)}: apt-get install --no-install-recommends {packages}")


def command(*words: str | Path, cwd: Path) -> str:
    """What it printed. Raises Missing if it fails: nothing here can but what comes from outside."""
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, words))}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache, made whole or not at all."""
    folder = Path.home() / ".cache" / "rpmsgx" / name
    if not folder.exists():
        new = folder.with_name(f".{folder.name}.{os.getpid()}")
        new.mkdir(parents=True)
        try:
            make(new)
            with contextlib.suppress(OSError):  # somebody else was faster
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return folder


def kernel_package(architecture: str, *options: str) -> str:
    """The name of Debian's present kernel."""
    words = command("apt-cache", *options, "depends", f"linux-image-{architecture}", cwd=HERE).split()
    for word in words:
        if word.startswith("linux-image-") and word[12].isdecimal():
            return word
    raise Missing(f"apt-cache knows no linux-image-{architecture}: apt-get update")


def unpack(folder: Path, target: Path, packages: Iterable[str], *options: str) -> None:
    """Fetch these packages, and unpack them in `target`."""
    debs = folder / "debs"
    debs.mkdir()
    command("apt-get", *options, "download", *packages, cwd=debs)
    for deb in debs.glob("*.deb"):
        command("dpkg-deb", "-x", deb, target, cwd=debs)
    shutil.rmtree(debs)


def initramfs(busybox: Path, modules: Mapping[str, Path]) -> bytes:
    if b"/ld-linux" in busybox.read_bytes()[:4096]:
        raise Missing(f"{busybox} is not static: apt-get install busybox-static")
    folders = ("bin", "lib", "dev", "proc", "sys", "host")
    entries: dict[str, tuple[int, bytes]] = {name: (0o040755, b"") for name in folders}
    entries |= {"dev/console": (0o020600, b""), "init": (0o100755, (HERE / "init").read_bytes())}
    entries["bin/busybox"] = (0o100755, busybox.read_bytes())
    entries |= {f"lib/{name}.ko": (0o100644, path.read_bytes()) for name, path in modules.items()}
    return _cpio(entries)


def _cpio(entries: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive in the "newc" format of cpio(5): name: (mode, contents)."""
    archive = bytearray()
    for number, (name, (mode, data)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))]):
        device = (5, 1) if name == "dev/console" else (0, 0)
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        archive += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return bytes(archive)


def run(
    qemu: Sequence[str | Path],
    folder: Path,
    archive: bytes,
    root: Path,
    environment: Mapping[str, object],
    boot: str,
    descriptors: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Run the guest until it ends: each line of its console that is a JSON object.

    `qemu` is the command without kernel parameters, initramfs, console and root, and may name `descriptors`; the
    console is in `folder`. Raises RuntimeError, with the console, if the guest does not end in time.
    """
    (folder / "initramfs").write_bytes(archive)
    words = [f'{name}="{value}"' for name, value in environment.items()]
    rest: list[str | Path] = ["-nodefaults", "-no-reboot", "-display", "none", "-initrd", folder / "initramfs"]
    rest += ["-append", " ".join(["panic=-1 quiet", boot, *words])]
    rest += ["-fsdev", f"local,id=root,path={root},security_model=none,readonly=on,multidevs=remap"]
    rest += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]
    console = folder / "console"
    with console.open("wb") as output:
        try:
            subprocess.run(
                [*qemu, *rest],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                timeout=LIMIT,
                check=True,
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"{error}; the console:\n{console.read_text(errors='replace')}") from error
    lines = console.read_text(errors="replace").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    if not found:
        raise RuntimeError("the guest told nothing; the console:\n" + "\n".join(lines))
    return found
