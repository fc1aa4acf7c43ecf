# SPDX-License-Identifier: BSD-3-Clause
"""What the C core does to device memory: naturally aligned words and nothing else, whatever the compiler."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import C_TESTS, CSRC, require, run
from unit.test_csrc import STRICT, TOOLCHAINS, ZIG, instantiate, undefined_symbols, works

COMPILERS = ("gcc", "clang")
LEVELS = ("-O1", "-O3")
WRAPPED = ("memcpy", "memmove", "memset")

#: What sets up or copies structures of this side alone, which no peer and no device has a part in.
PRIVATE = ("rpx_drv_init", "rpx_dev_init", "rpx_ns_encode", "rpx_rx_run_begin", "rpx_tx_run_begin")
#: No memory but device memory: what only other kinds can reach is not compiled.
DEVICE_ONLY = "-DRPX_MEMCPY(to, from, n)=((void)(to), (void)(from), (void)(n), __builtin_unreachable())"
HOSTED = {**{name: TOOLCHAINS[name] for name in COMPILERS}, "zig-aarch64": (*ZIG, "aarch64-linux-gnu")}


def accesses(folder: Path, compiler: str, level: str, *flags: str) -> tuple[int, str]:
    """Build tests/c/device.c, whose accesses are looked at one by one, and run it."""
    require(works(compiler), f"{compiler} does not work here")
    warnings = ["-Wall", "-Wextra", "-Werror", *(["-Wno-maybe-uninitialized"] if compiler == "gcc" else [])]
    build = [compiler, "-std=gnu11", level, *warnings, "-fsanitize=thread", *flags, "-I", str(CSRC), "-c"]
    status, output = run([*build, C_TESTS / "device.c", "-o", folder / "device.o"], timeout=60)
    assert status == 0, output
    wrap = ",".join(["-Wl", *(f"--wrap={name}" for name in WRAPPED)])
    status, output = run([compiler, folder / "device.o", wrap, "-o", folder / "device"], timeout=60)
    assert status == 0, output
    return run([folder / "device"], timeout=60)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_accesses_to_device_memory_are_aligned_words(tmp_path: Path, compiler: str, level: str) -> None:
    status, output = accesses(tmp_path, compiler, level)
    assert status == 0, output
    widths = re.match(r"\d+ accesses \((\d+), (\d+), (\d+), (\d+) of 1, 2, 4, 8 bytes\), 0 forbidden$", output)
    assert widths is not None and all(int(count) > 1000 for count in widths.groups())


def test_other_accesses_would_be_seen(tmp_path: Path) -> None:
    """Those to memory that takes any."""
    status, output = accesses(tmp_path, "gcc", "-O2", "-DKIND=RPX_KIND_UNCACHED")
    assert status == 1 and int(output.split()[-2]) > 1000, output


def called(folder: Path, compiler: str, level: str, *flags: str) -> set[str]:
    """What code of every function that may touch device memory calls, of WRAPPED."""
    require(works("zig-s390x" if compiler.startswith("zig") else compiler), f"{compiler} does not work here")
    left_out = {f"\t(rpx_any){name},\n" for name in PRIVATE}
    lines = instantiate().splitlines(keepends=True)
    assert left_out < {*lines}
    (folder / "all.c").write_text("".join(line for line in lines if line not in left_out))
    build = [*HOSTED[compiler], *STRICT, level, *flags, "-I", str(CSRC), "-c", "all.c", "-o", "all.o"]
    status, output = run(build, timeout=60, cwd=folder)
    assert status == 0, output
    return {*undefined_symbols(folder / "all.o")} & {*WRAPPED}


@pytest.mark.parametrize("level", ["-O3", "-Os"])
@pytest.mark.parametrize("compiler", HOSTED)
def test_no_memcpy_stands_in_code_for_device_memory(tmp_path: Path, compiler: str, level: str) -> None:
    """Nor does the compiler put one there for a loop."""
    assert called(tmp_path, compiler, level, DEVICE_ONLY) == set()


def test_a_memcpy_would_be_seen(tmp_path: Path) -> None:
    """In code for all kinds of memory."""
    assert called(tmp_path, "gcc", "-O2") == {"memcpy"}
