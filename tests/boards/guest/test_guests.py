# SPDX-License-Identifier: BSD-3-Clause
"""mem:, uio:, pci: and huge pages on devices that are real to Debian's kernel, with interrupts that are real to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import arm64_guest
import emulated
import inside_arm64
import inside_x86
import pytest
import x86_guest
from support import require

FIRST = 600  # seconds, with what is fetched and built at the first time


def told(run: Callable[[], list[dict[str, Any]]]) -> dict[str, str]:
    """What went wrong in each case of a guest; "": nothing."""
    try:
        return {line["case"]: line["error"] for line in run()}
    except emulated.Missing as missing:
        require(False, str(missing))
        raise  # not reached


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    folder = tmp_path_factory.mktemp("x86")
    return told(lambda: x86_guest.run(folder, emulated.HERE / "inside_x86.py")), folder


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("arm64")
    return told(lambda: arm64_guest.run(folder, "tests/boards/guest/inside_arm64.py"))


@pytest.mark.timeout(FIRST)
@pytest.mark.parametrize("name", [case.__name__ for case in inside_x86.CASES])
def test_on_a_pc(x86: tuple[dict[str, str], Path], name: str) -> None:
    error = x86[0].get(name, "the guest did not come to it")
    assert not error, error


@pytest.mark.timeout(FIRST)
def test_the_host_sees_what_the_pc_wrote(x86: tuple[dict[str, str], Path]) -> None:
    """The rings have gone over it since: the table at its start is that of the link."""
    shared = (x86[1] / "shared").read_bytes()
    assert shared[:8] == bytes([1, 0, 0, 0, 1, 0, 0, 0])  # a resource table with one entry
    assert shared[0x4000:0x80000].count(0) < 0x7C000


@pytest.mark.timeout(FIRST)
@pytest.mark.parametrize("name", [case.__name__ for case in inside_arm64.CASES])
def test_on_a_board(arm64: dict[str, str], name: str) -> None:
    error = arm64.get(name, "the guest did not come to it")
    assert not error, error
