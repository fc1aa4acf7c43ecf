# SPDX-License-Identifier: BSD-3-Clause
"""The C core by itself: its rules, its memory order, and that it compiles for everything it is meant for."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import CSRC, SANITIZERS, build_c, can_build, require, run

ZIG = (sys.executable, "-m", "ziglang", "cc", "-target")
TOOLCHAINS: dict[str, tuple[str, ...]] = {
    "gcc": ("gcc",),
    "gcc-m32": ("gcc", "-m32"),
    "clang": ("clang",),
    "zig-s390x": (*ZIG, "s390x-linux-gnu"),
    "zig-thumb": (*ZIG, "thumb-freestanding-eabi", "-mcpu=cortex_m4", "-fno-unwind-tables"),
    "zig-riscv32": (*ZIG, "riscv32-freestanding"),
    "zig-aarch64": (*ZIG, "aarch64-freestanding"),
    "zig-x86_64": (*ZIG, "x86_64-freestanding"),
}
FREESTANDING = tuple(name for name in TOOLCHAINS if "freestanding" in " ".join(TOOLCHAINS[name]))
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror")
HEADERS = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.glob("rpx/*.h"))

STRESS = [
    ("ring", 2, 70_000, ""),
    ("ring", 2, 70_000, "esl"),
    ("ring", 4, 20_000, "s"),
    ("ring", 16, 70_000, "e"),
    ("rpmsg", 2, 20_000, "e"),
    ("rpmsg", 4, 20_000, "sl"),
    ("rpmsg", 16, 70_000, ""),
    ("ring", 1, 20_000, "pe"),
    ("ring", 3, 40_000, "p"),
    ("ring", 16, 40_000, "pes"),
    ("rpmsg", 3, 10_000, "pe"),
    ("rpmsg", 16, 40_000, "ps"),
]


def needs(build: str) -> None:
    require(can_build(*SANITIZERS[build]), f"gcc with {' '.join(SANITIZERS[build])} does not work here")


def keeps_its_rules(program: Path, tests: int) -> None:
    status, output = run([program], timeout=60)
    assert status == 0, output
    assert output.count("ok ") == tests and "FAIL" not in output


@pytest.mark.parametrize("build", ["plain", "asan+ubsan"])
def test_ring_rules(tmp_path: Path, build: str) -> None:
    needs(build)
    keeps_its_rules(build_c("ring", tmp_path, build=build), 53)


def test_ring_rules_32_bit(tmp_path: Path) -> None:
    """64-bit fields are read in halves there."""
    require(can_build("-m32"), "gcc -m32 does not work here")
    keeps_its_rules(build_c("ring", tmp_path, flags=["-m32"]), 53)


@pytest.mark.rule("2.8.9-F1", "2.8.12-2", "2.8.15-4", "2.8.16-1", "2.8.16-2", "2.8.17-6")
@pytest.mark.parametrize("build", ["plain", "asan+ubsan"])
def test_packed_ring_rules(tmp_path: Path, build: str) -> None:
    needs(build)
    keeps_its_rules(build_c("packed", tmp_path, build=build), 37)


def test_packed_ring_rules_32_bit(tmp_path: Path) -> None:
    require(can_build("-m32"), "gcc -m32 does not work here")
    keeps_its_rules(build_c("packed", tmp_path, flags=["-m32"]), 37)


@pytest.mark.rule("2.8.17-6", "2.8.21.1.1-1", "2.8.21.3.1-1", "2.8.22-1")
@pytest.mark.parametrize("build", ["plain", "asan+ubsan"])
def test_no_interleaving_loses_a_wake_up(tmp_path: Path, build: str) -> None:
    needs(build)
    status, output = run([build_c("explore", tmp_path, build=build)], timeout=120)
    assert status == 0, output
    assert output.count("ok split") == 8 and output.count("ok packed") == 16


def test_explorer_finds_the_missing_fence(tmp_path: Path) -> None:
    needs("plain")
    status, output = run([build_c("explore", tmp_path, flags=["-DEXPLORE_NO_FENCE"])], timeout=120)
    assert status == 1
    assert output.count("lost wake-up") == 24 and "ok " not in output


@pytest.mark.rule("2.8.16-1")
@pytest.mark.parametrize("build", ["plain", "asan+ubsan", "tsan"])
def test_two_threads(tmp_path: Path, build: str) -> None:
    needs(build)
    program = build_c("stress", tmp_path, build=build)
    for mode, num, count, flags in STRESS:
        status, output = run([program, mode, str(num), str(count), flags], timeout=60)
        assert status == 0, f"{mode} {num} {count} {flags}: exit {status}\n{output}"


def test_two_threads_with_device_barriers(tmp_path: Path) -> None:
    """Plain only: ThreadSanitizer cannot see barriers that are instructions."""
    needs("plain")
    program = build_c("stress", tmp_path)
    for mode in "ring", "rpmsg":
        for flags in "ed", "pd":
            status, output = run([program, mode, "4", "20000", flags], timeout=60)
            assert status == 0, output


@functools.cache
def works(name: str) -> bool:
    command = TOOLCHAINS[name]
    if command[0] == sys.executable:
        return importlib.util.find_spec("ziglang") is not None
    return can_build(*command[1:]) if command[0] == "gcc" else shutil.which(command[0]) is not None


def instantiate() -> str:
    """Source that makes code of every function: a table of them all."""
    functions = [
        name
        for header in HEADERS
        for name in re.findall(r"^(?:static inline|RPX_HOT) [^(=;]*?\b(rpx_\w+)\(", (CSRC / header).read_text(), re.M)
        if name != "rpx_copy_hosted"  # the one that needs a libc
    ]
    assert len(functions) > 80
    entries = "".join(f"\t(rpx_any){name},\n" for name in functions)
    return (
        '#include "rpx.h"\ntypedef void (*rpx_any)(void);\nextern const rpx_any rpx_all[];\n'
        f"const rpx_any rpx_all[] = {{\n{entries}}};\n"
    )


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_compiles(tmp_path: Path, name: str) -> None:
    """Each header alone, and all functions of all of them; freestanding code needs nothing from anywhere."""
    require(works(name), f"{' '.join(TOOLCHAINS[name][:2])} does not work here")
    flags = [*TOOLCHAINS[name], *STRICT, "-I", str(CSRC), "-c"]
    if name in FREESTANDING:
        flags.append("-ffreestanding")
    for header in HEADERS:
        (tmp_path / "alone.c").write_text(f'#include "{header}"\ntypedef int not_empty;\n')
        status, output = run([*flags, "alone.c", "-o", "alone.o"], timeout=60, cwd=tmp_path)
        assert status == 0, output
    (tmp_path / "all.c").write_text(instantiate())
    for level in "-O2", "-Os":
        status, output = run([*flags, level, "all.c", "-o", "all.o"], timeout=60, cwd=tmp_path)
        assert status == 0, output
        if name in FREESTANDING:
            assert undefined_symbols(tmp_path / "all.o") == []


def undefined_symbols(path: Path) -> list[str]:
    elffile = pytest.importorskip("elftools.elf.elffile")
    with path.open("rb") as file:
        symbols = elffile.ELFFile(file).get_section_by_name(".symtab")
        return [s.name for s in symbols.iter_symbols() if s["st_shndx"] == "SHN_UNDEF" and s.name]
