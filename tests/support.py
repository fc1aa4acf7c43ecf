# SPDX-License-Identifier: BSD-3-Clause
"""What several test modules share: the rule about missing tools, and building and running the C tests."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
C_TESTS = ROOT / "tests" / "c"

#: gcc cannot see that a queue's stored error is negative; it takes it for a 1 that came without a result.
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized")
#: -Os leaves RPX_HOT to the compiler, which takes gcc a third of the time; with address checks -O1 takes it a minute.
SANITIZERS = {
    "plain": ("-Os",),
    "asan+ubsan": ("-Os", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
}


def require(what: bool, reason: str) -> None:
    """Skip the test where `what` is false; with RPMSGX_REQUIRE_PEERS=1 in the environment, fail it."""
    if what:
        return
    if os.environ.get("RPMSGX_REQUIRE_PEERS") == "1":
        pytest.fail(f"required, but missing: {reason}")
    pytest.skip(reason)


def kernel_has(what: bool, reason: str) -> None:
    """Skip the test where `what` is false: this machine's kernel is nothing that could be installed."""
    if not what:
        pytest.skip(reason)


def run(command: Sequence[str | Path], *, timeout: float, cwd: Path | None = None) -> tuple[int, str]:
    """Exit status (124 where it took longer than `timeout` seconds) and all that was printed."""
    try:
        done = subprocess.run(
            command, cwd=cwd, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except subprocess.TimeoutExpired as error:
        return 124, f"longer than {timeout} s: {error.output!r}"
    return done.returncode, done.stdout


def build_c(
    name: str, out: Path, *, build: str = "plain", csrc: Path = CSRC, flags: Iterable[str] = ()
) -> Path:
    """Build tests/c/<name>.c against the headers in `csrc`; the program's path."""
    program = out / f"{name}-{build}"
    extra = ['-DRPX_ATOMICS_FILE="explore_atomics.h"'] if name == "explore" else []
    options = [*WARNINGS, *SANITIZERS[build], *extra, *flags, "-pthread", "-I", str(csrc), "-I", str(C_TESTS)]
    status, output = run(["gcc", *options, C_TESTS / f"{name}.c", "-o", program], timeout=60)
    assert status == 0, output
    return program


@functools.cache
def can_build(*flags: str) -> bool:
    """Can gcc build and run a program with these flags here?"""
    if shutil.which("gcc") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "a.c"), Path(folder, "a")
        source.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
        commands: list[list[str | Path]] = [["gcc", *flags, source, "-o", program], [program]]
        return all(run(command, timeout=60)[0] == 0 for command in commands)
