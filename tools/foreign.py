#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs the tests on other architectures under qemu-user: 64-bit and 32-bit ARM, and big-endian s390x.

    python tools/foreign.py [ARCH ...]              on all of them, or on those named
    python tools/foreign.py armhf -- tests/unit/test_table.py -k rings      other tests, other options of pytest
    python tools/foreign.py --list                  the tests, and what is left out and why

Python, numpy and cffi's run time are Debian's packages for the architecture, unpacked, not installed; pytest is what
pip brings. All of it stays in ~/.cache/rpmsgx/foreign. The extensions are those of setup.py, cross-compiled by ziglang
into build/foreign. Nothing needs root, chroot or binfmt_misc: `python` is a script there that starts the emulator, so
a test that starts `sys.executable` gets the foreign one. Wants qemu-user, apt-get and dpkg-deb, and in this Python
setuptools, Cython, cffi, ziglang and pip.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpmsgx" / "foreign"
BUILD = ROOT / "build" / "foreign"

GLIBC = "2.28"  # what the extensions ask of the C library at most
PACKAGES = ("python3", "python3-numpy", "python3-cffi-backend", "libpython3-dev")
WHEELS = ("pytest", "pytest-timeout", "hypothesis", "pyelftools", "typing_extensions")  # pure Python


class Arch(NamedTuple):
    name: str  # Debian's
    triplet: str  # Debian's, and zig's
    platform: str  # sysconfig's
    qemu: str


ARCHES = {
    arch.name: arch
    for arch in (
        Arch("arm64", "aarch64-linux-gnu", "linux-aarch64", "qemu-aarch64"),
        Arch("armhf", "arm-linux-gnueabihf", "linux-armv7l", "qemu-arm"),
        Arch("s390x", "s390x-linux-gnu", "linux-s390x", "qemu-s390x"),
    )
}

# Emulated, a test takes ten times as long. So: what depends on byte order, the sizes of words, memory, addresses, and
# how system calls are made; and remotes that run code of this architecture.
TESTS = (
    "tests/conformance",
    "tests/hostile",
    "tests/unit/test_backends.py",
    "tests/unit/test_coredump.py",
    "tests/unit/test_doorbell.py",
    "tests/unit/test_elf.py",
    "tests/unit/test_file_link.py",
    "tests/unit/test_memfd_link.py",
    "tests/unit/test_memory.py",
    "tests/unit/test_resources.py",
    "tests/unit/test_table.py",
    "tests/unit/test_vhost_user_link.py",
    "tests/unit/test_remoteproc.py::test_boots_talks_and_stops",
    "tests/unit/test_remoteproc.py::test_lesson_06_a_crash",
    "tests/unit/test_remoteproc.py::test_a_flood_both_ways",
)

LEFT_OUT = {
    # What the emulator lacks.
    "tests/hostile/test_shared_file.py": "qemu-user gives wrong addresses with SIGBUS",
    "tests/hostile/test_modern_hostile.py::test_a_file_that_is_truncated": "the same",
    "tests/hostile/test_vhost_user_hostile.py": "qemu-user has no io_setup(2)",
    "tests/unit/test_backends.py::test_too_few_huge_pages": "qemu-user refuses MFD_HUGETLB",
    "tests/unit/test_backends.py::test_what_vfio_lacks": "qemu-user knows no ioctl of VFIO",
    "tests/unit/test_memfd_link.py::test_a_bad_handover_is_refused_and_leaves_nothing": "qemu-user loses MSG_CTRUNC",
    "tests/unit/test_vhost_user_link.py::test_an_eventfd_is_rung_without_being_written": "qemu-user has no io_setup(2)",
    # Random, or very many of the same: half a minute each, emulated.
    "tests/hostile/test_packed_ring.py::test_nothing_but_typed_errors": "long",
    "tests/hostile/test_resource_table.py::test_no_change_makes_the_host_write_what_it_was_not_given": "long",
    "tests/hostile/test_ring.py::test_nothing_but_typed_errors": "long",
    "tests/hostile/test_rpmsg.py::test_a_hundred_thousand_announcements": "long",
    "tests/hostile/test_rpmsg.py::test_names_that_come_and_go_leave_nothing_behind": "long",
    "tests/hostile/test_rpmsg.py::test_random_bytes_anywhere": "long",
    "tests/hostile/test_rpmsg.py::test_rung_a_million_times_without_cause": "long",
    "tests/unit/test_coredump.py::test_any_bytes_raise_nothing_but_firmware_errors": "long",
    "tests/unit/test_elf.py::test_mutations_raise_nothing_but_firmware_errors": "long",
    "tests/unit/test_resources.py::test_what_is_left_to_the_host_is_always_placed": "long",
    "tests/unit/test_resources.py::test_whatever_is_fixed_is_refused_or_kept": "long",
    "tests/unit/test_table.py::test_mutations_raise_nothing_but_resource_errors": "long",
}
LEFT_OUT_ON = {
    "s390x": {
        "tests/unit/test_coredump.py::test_gdb_shows_registers_and_memory[aarch64]": "gdb takes the wrong half of cpsr",
        "tests/unit/test_remoteproc.py": "qemu-user swaps what an eventfd counts, but not through its duplicates",
    },
}


def selection(arch: Arch) -> list[str]:
    """The same as arguments of pytest."""
    left_out = (*LEFT_OUT, *LEFT_OUT_ON.get(arch.name, ()))
    return [*(f"--deselect={name}" for name in left_out), *TESTS]


def overview() -> str:
    lines = ["tests:", *(f"    {name}" for name in TESTS), "left out:"]
    lines += [f"    {name}: {reason}" for name, reason in LEFT_OUT.items()]
    for arch, names in LEFT_OUT_ON.items():
        lines += [f"left out on {arch}:", *(f"    {name}: {reason}" for name, reason in names.items())]
    return "\n".join(lines)


def run(command: Sequence[str | Path], **options: Any) -> None:
    """Run it in silence; where it fails, show what it printed and raise CalledProcessError."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        sys.stderr.write(done.stdout)
        done.check_returncode()


@contextlib.contextmanager
def making(directory: Path) -> Iterator[Path]:
    """A new directory that becomes `directory` when it is whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="new-", ignore_cleanup_errors=True) as new:
        yield Path(new)
        if not directory.exists():  # nobody was faster
            Path(new).rename(directory)


def download(arch: str) -> Iterator[Path]:
    """PACKAGES for that architecture and all they depend on, as files, from where this machine's apt has its own.

    What apt knows of them is kept apart, so that this machine's own packages are not touched.
    """
    with tempfile.TemporaryDirectory() as state:
        for directory in ("lists/partial", "archives/partial"):
            Path(state, directory).mkdir(parents=True)
        Path(state, "status").touch()  # nothing is installed
        options = (
            f"APT::Architecture={arch}",
            f"APT::Architectures={arch}",
            "APT::Sandbox::User=",
            "Acquire::Languages=none",
            f"Dir::Cache={state}",
            f"Dir::State::Lists={state}/lists",
            f"Dir::State::status={state}/status",
            "Debug::NoLocking=1",
        )
        apt = ["apt-get", "-q", "-y", *(word for option in options for word in ("-o", option))]
        # A source that is being changed, or has nothing for it, fails here; what is missing in the end, install says.
        subprocess.run([*apt, "update"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run([*apt, "install", "--download-only", "--no-install-recommends", *PACKAGES])
        yield from sorted(Path(state, "archives").glob("*.deb"))


def environment(arch: Arch) -> Path:
    """A virtual environment of the foreign Python, with what the tests need. Made once for each release of Debian."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    recipe = hashlib.sha256(repr((release, PACKAGES, WHEELS)).encode()).hexdigest()[:12]
    directory = CACHE / f"{arch.name}-{recipe}"
    if not directory.exists():
        with making(directory) as new:
            system = new / "system"
            for package in download(arch.name):
                run(["dpkg-deb", "-x", package, system])
            version = next((system / "usr" / "bin").glob("python3.*[0-9]")).name
            libraries = system / "usr" / "lib" / arch.triplet
            for library in libraries.glob("*/lib*.so.3"):  # blas and lapack, chosen at installation
                (libraries / library.name).symlink_to(library.relative_to(libraries))
            # Python's headers, without those of the C library, which are zig's own.
            for headers in (version, f"{arch.triplet}/{version}"):
                (new / "include" / headers).parent.mkdir(parents=True, exist_ok=True)
                (new / "include" / headers).symlink_to(directory / "system" / "usr" / "include" / headers)
            (new / "include" / "python").symlink_to(version)
            (new / "sysconfig").mkdir()  # how extensions for it are named and compiled
            shutil.copy(system / "usr" / "lib" / version / f"_sysconfigdata__{arch.triplet}.py", new / "sysconfig")
            packages = new / "lib" / version / "site-packages"
            pure = ("--implementation=py", "--abi=none", "--platform=any", f"--python-version={version[6:]}")
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:"]
            run([*pip, *pure, "--target", packages, *WHEELS])
            (new / "pyvenv.cfg").write_text(f"home = {directory}/system/usr/bin\ninclude-system-site-packages = true\n")
            (new / "bin").mkdir()
            # A script that is the foreign Python; argv[0] tells that where its virtual environment is.
            python = new / "bin" / "python"
            start = f'exec {arch.qemu} -L "{directory}/system" -0 "$0" "{directory}/system/usr/bin/{version}" "$@"'
            python.write_text(f"#!/bin/sh\n{start}\n")
            python.chmod(0o755)
    return directory


def build(arch: Arch, venv: Path) -> Path:
    """The package with its extensions, by setup.py; where it is. Compiles what has changed."""
    zig = f"{sys.executable} -m ziglang cc -target {arch.triplet}.{GLIBC}"
    directory = BUILD / arch.name
    foreign = {
        "CC": zig,
        "LDSHARED": f"{zig} -shared",
        "PYTHONPATH": str(venv / "sysconfig"),
        "_PYTHON_HOST_PLATFORM": arch.platform,
        "_PYTHON_SYSCONFIGDATA_NAME": f"_sysconfigdata__{arch.triplet}",
    }
    headers = f"--include-dirs={venv}/include/python:{venv}/include"
    setup = [sys.executable, "setup.py", "-q", "build", f"--build-base={directory}", f"--build-lib={directory}/lib"]
    run([*setup, "build_ext", "--parallel=2", headers], cwd=ROOT, env={**os.environ, **foreign})
    return directory / "lib"


def test(arch: Arch, venv: Path, package: Path, options: Sequence[str]) -> bool:
    """Run pytest there, and print how it ended: in one line, or, where tests failed, in its own words."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RPMSGX_", "PYTHON"))}
    # The source tree has a package of that name, too, without these extensions: it comes second.
    environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{package}:{ROOT}", "PYTHONPYCACHEPREFIX": f"{venv}/pycache"}
    environ["CI"] = "1"  # to hypothesis: the same examples each time, however long they take
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short")
    log = BUILD / arch.name / "log"
    with log.open("w") as out:
        command: list[str | Path] = [venv / "bin" / "python", *pytest, *options]
        done = subprocess.run(command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    said = log.read_text(errors="replace")
    if done.returncode:
        print(said)
    print(f"{arch.name}: {''.join(said.splitlines()[-1:])}", flush=True)
    return done.returncode == 0


def main(argv: list[str]) -> int:
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description="Run the tests on other architectures, emulated.",
        epilog="What follows -- goes to pytest in place of the tests of --list.",
    )
    parser.add_argument("arch", nargs="*", help=f"{', '.join(ARCHES)}; all of them, if none is named")
    parser.add_argument("--list", action="store_true", help="print what is run, and what is left out and why")
    given = parser.parse_args(argv[:end])
    for name in given.arch:
        if name not in ARCHES:
            parser.error(f"{name} is none of {', '.join(ARCHES)}")
    if given.list:
        print(overview())
        return 0
    for name in given.arch or ARCHES:
        if shutil.which(ARCHES[name].qemu) is None:
            raise SystemExit(f"{ARCHES[name].qemu} is not installed: apt install qemu-user")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = []
        for name in given.arch or ARCHES:
            start = time.monotonic()
            arch = ARCHES[name]
            venv = environment(arch)
            package = build(arch, venv)
            print(f"{name}: built after {time.monotonic() - start:.0f} s", flush=True)
            running.append(pool.submit(test, arch, venv, package, argv[end + 1 :] or selection(arch)))
        return 0 if all([each.result() for each in running]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
