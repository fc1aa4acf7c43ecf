#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""`python kernel_peer.py [VERSION]`: builds a Linux kernel as a program (User Mode Linux), modules and initramfs.

From Debian's kernel source package, without a patch, once: minutes and 2 GB, in a cache directory. It is named by what
went into it, so a change of the configuration builds anew; a change of a module or of the initramfs builds only these.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "kernel" / "uml.config"
MODULES = (HERE / "kernel" / "vq_defer", HERE / "kernel" / "rproc_sim")
INITRAMFS = HERE / "initramfs"
BUSYBOX = Path("/bin/busybox")
TOOLS = ("gcc", "make", "flex", "bison", "bc", "tar", "xz")
VERSIONS = ("6.1", "6.12")
DONE = "done"  # a file that is made once the kernel is


class Missing(Exception):
    """What this machine lacks to build the kernel, and how to get it."""


class KernelPeer(NamedTuple):
    kernel: Path
    initramfs: Path


def version() -> str:
    """Of the kernel that is asked for: RPMSGX_KERNEL, or the first of `VERSIONS`."""
    asked = os.environ.get("RPMSGX_KERNEL", VERSIONS[0])
    if asked not in VERSIONS:
        raise Missing(f"RPMSGX_KERNEL={asked}: only {' and '.join(VERSIONS)} are known")
    return asked


def build(release: str) -> KernelPeer:
    """The kernel of this release: from the cache, or built, which takes minutes. Raises Missing, RuntimeError."""
    source, folder = _place(release)
    guest = folder / f"guest-{_digest((Path(__file__), *_files(*MODULES, INITRAMFS)), BUSYBOX)}"
    peer = KernelPeer(folder / "build" / "vmlinux", guest / "initramfs.cpio")
    if _is_done(folder) and peer.initramfs.exists():
        return peer
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not _is_done(folder):
            _build_kernel(folder, source)
            (folder / DONE).touch()
        if not peer.initramfs.exists():
            _build_guest(folder, guest, peer.initramfs)
    return peer


def is_built(release: str) -> bool:
    """Is the kernel there, so that `build` has at most the modules to do? Raises Missing."""
    return _is_done(_place(release)[1])


def _place(release: str) -> tuple[Path, Path]:
    """The source package of a kernel, and the folder that it is built in. Raises Missing."""
    source = Path(f"/usr/src/linux-source-{release}.tar.xz")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    missing += [str(file) for file in (source, BUSYBOX) if not file.exists()]
    if BUSYBOX.exists() and b"/ld-linux" in BUSYBOX.read_bytes()[:4096]:
        missing.append(f"a {BUSYBOX} that is static")
    if missing:
        packages = f"linux-source-{release} busybox-static gcc make flex bison bc xz-utils"
        raise Missing(f"the kernel peer needs {', '.join(missing)}: apt-get install --no-install-recommends {packages}")
    given = os.environ.get("RPMSGX_KERNEL_PEER")
    base = Path(given) if given else Path.home() / ".cache" / "rpmsgx" / "kernel-peer"
    return source, base / f"{release}-{_digest((CONFIG,), source)}"


def _is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def _files(*roots: Path) -> Iterator[Path]:
    for root in roots:
        yield from sorted(file for file in root.rglob("*") if file.is_file())


def _digest(files: Sequence[Path], package: Path) -> str:
    """Of the contents of our own files, and of the identity of one that a package brought."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    status = package.stat()
    digest.update(f"{package}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; given up by one that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(log: Path, *command: str | Path, cwd: Path | None = None) -> None:
    with log.open("a") as file:
        print("+", *command, file=file, flush=True)
        status = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode
    if status:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:])
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {status}; the end of {log}:\n{tail}")


def _make(folder: Path, *arguments: str | Path) -> None:
    source = next(folder.glob("linux-source-*"))
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    _run(folder / "build.log", "make", "-s", jobs, "-C", source, f"O={folder / 'build'}", "ARCH=um", *arguments)


def _build_kernel(folder: Path, source: Path) -> None:
    _run(folder / "build.log", "tar", "-xf", source, "-C", folder)
    (folder / "build").mkdir(exist_ok=True)
    _make(folder, f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig")
    _make(folder, "vmlinux", "modules")


def _build_guest(folder: Path, guest: Path, initramfs: Path) -> None:
    """The modules, the tool, and the archive, which is written last and under its final name at once."""
    guest.mkdir(exist_ok=True)
    entries = ["dir /dev 755 0 0", "nod /dev/console 600 0 0 c 5 1"]
    entries += [f"dir /{name} 755 0 0" for name in ("bin", "lib", "lib/firmware", "proc", "sys", "tmp", "host")]
    for module in MODULES:
        shutil.copytree(module, guest / module.name, dirs_exist_ok=True)
        _make(folder, f"M={guest / module.name}", "modules")
    tool = guest / "rt"
    _run(folder / "build.log", "gcc", "-O2", "-static", "-o", tool, INITRAMFS / "rt.c")
    files = {"/init": INITRAMFS / "init", "/bin/busybox": BUSYBOX, "/bin/rt": tool}
    files |= {f"/lib/{module.name}": module for root in (folder / "build", guest) for module in root.rglob("*.ko")}
    entries += [f"file {name} {file} 755 0 0" for name, file in files.items()]
    listing = guest / "initramfs.list"
    listing.write_text("\n".join(entries) + "\n")
    unfinished = guest / "initramfs.new"
    with unfinished.open("wb") as archive:
        subprocess.run([folder / "build" / "usr" / "gen_init_cpio", listing], stdout=archive, check=True)
    unfinished.rename(initramfs)


if __name__ == "__main__":
    try:
        print(*build(sys.argv[1] if len(sys.argv) > 1 else version()), sep="\n")
    except (Missing, RuntimeError) as error:
        sys.exit(str(error))
