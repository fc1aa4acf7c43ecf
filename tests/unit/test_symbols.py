"""Which function a firmware crashed in."""

from __future__ import annotations

import importlib.util
import re
import time
from typing import Any

import elfbuilder
import pytest
from support import require
from support_wire import until

from rpmsgx import Remoteproc
from rpmsgx import firmware as shipped
from rpmsgx.remoteproc.elf import Image
from rpmsgx.remoteproc.symbols import function_at


def test_a_crash_names_the_function() -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    with Remoteproc(platform="unicorn", firmware="crash", recovery="disabled") as rproc:
        with rproc.open("rpmsg-crash", timeout=20) as endpoint:
            endpoint.send(b"u")
        until(lambda: rproc.state == "crashed")
        assert rproc.crash is not None and re.search(r"pc 0x[0-9a-f]+.* in board_fault\+0x", rproc.crash.cause)


def test_every_address_of_a_function_and_none_beside() -> None:
    image = Image.open(shipped.path("crash"))
    names = [function_at(image, address) for address in range(image.entry & ~1, (image.entry & ~1) + 4)]
    assert names[0] is not None and names[0].endswith("+0x0") and names[3] == names[0][:-1] + "3"
    assert function_at(image, 0xFFFF_FFF0) is None and function_at(image, 0) is None


def test_no_symbols() -> None:
    image = Image(elfbuilder.build([elfbuilder.Load(0x1000, b"code" * 16)]))
    assert function_at(image, 0x1000) is None


@pytest.mark.hostile
@pytest.mark.parametrize("field, value", [("sh_size", 0xFFFF_FFF0), ("sh_offset", 0xFFFF_FFF0), ("sh_entsize", 1),
                                          ("sh_entsize", 0), ("sh_link", 0xFFFF), ("sh_link", 0)])  # fmt: skip
def test_a_symbol_table_that_lies(field: str, value: Any) -> None:
    data = bytearray(Image.open(shipped.path("crash")).data)
    shoff, shnum = int.from_bytes(data[32:36], "little"), int.from_bytes(data[48:50], "little")
    fields = ("sh_name", "sh_type", "sh_flags", "sh_addr", "sh_offset", "sh_size", "sh_link", "sh_info", "sh_align",
              "sh_entsize")  # fmt: skip
    for index in range(shnum):
        at = shoff + 40 * index
        if data[at + 4] == 2:  # SHT_SYMTAB
            at += 4 * fields.index(field)
            data[at : at + 4] = value.to_bytes(4, "little")
    image = Image(bytes(data))
    start = time.process_time()
    function_at(image, image.entry)
    assert time.process_time() - start < 10
