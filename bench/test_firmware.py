"""Loading an image of 64 MiB, beside one copy of as much into the same memory. Reading and checking it is not timed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.remoteproc.elf import Header, Image, Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import PerMessage

SIZE = 64 << 20
DA = 0x1000_0000
START = 0x1000  # of the contents in the file


@pytest.fixture(scope="module")
def contents() -> bytes:
    return random.Random(1).randbytes(1 << 20) * (SIZE >> 20)


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    with Region.memfd("firmware", SIZE, da=DA) as region:
        yield region


def test_copy_64_mib(per_message: PerMessage, region: Region, contents: bytes) -> None:
    view = region.view

    def loop() -> None:
        view[:] = contents

    per_message(loop, 1)


def test_load_64_mib(per_message: PerMessage, region: Region, contents: bytes) -> None:
    header = Header(64, 2, 62, 1, DA, 64, 0, 0, 64, 56, 1, 0, 0, 0).pack()
    program = Program(1, START, DA, DA, SIZE, SIZE, 5, START).pack(64)
    image = Image((header + program).ljust(START, b"\0") + contents)
    space = AddressSpace(region)
    per_message(lambda: image.load(space), 1)
    assert region.view[:4096] == contents[:4096] and region.view[-4096:] == contents[-4096:]
