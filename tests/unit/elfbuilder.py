"""A small writer of ELF executables, so that tests can say every byte of a firmware image.

Layout: ELF header, program headers, segment contents in order, section names, section headers last.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

PT_LOAD = 1
EM_ARM, EM_X86_64, EM_AARCH64 = 40, 62, 183

EHDR = {32: struct.Struct("=16sHHIIIIIHHHHHH"), 64: struct.Struct("=16sHHIQQQIHHHHHH")}
EHDR_FIELDS = (
    *("ident", "type", "machine", "version", "entry", "phoff", "shoff", "flags"),
    *("ehsize", "phentsize", "phnum", "shentsize", "shnum", "shstrndx"),
)
PHDR = {32: struct.Struct("=8I"), 64: struct.Struct("=IIQQQQQQ")}
SHDR = {32: struct.Struct("=10I"), 64: struct.Struct("=IIQQQQIIQQ")}


class Load(NamedTuple):
    """A program header; `data` is placed in the file unless `offset` and `filesz` say otherwise."""

    da: int
    data: bytes = b""
    memsz: int | None = None
    vaddr: int | None = None
    flags: int = 5
    type: int = PT_LOAD
    filesz: int | None = None
    offset: int | None = None


def build(
    loads: list[Load],
    *,
    bits: int = 32,
    table: bytes | None = None,
    table_da: int = 0x1000_0000,
    section: dict[str, int] | None = None,
    sections: bool = True,
    header: dict[str, int] | None = None,
) -> bytes:
    """An executable of `loads`; `table` becomes a segment of its own at `table_da` and the section
    .resource_table.

    `section` overrides fields of that section's header (name, type, offset, size), `header` fields of the ELF
    header.
    """
    loads = list(loads)
    if table is not None:
        loads.append(Load(table_da, table, flags=6))
    at = EHDR[bits].size + PHDR[bits].size * len(loads)
    programs, contents, last = b"", b"", at
    for load in loads:
        filesz = len(load.data) if load.filesz is None else load.filesz
        memsz = len(load.data) if load.memsz is None else load.memsz
        vaddr = load.da if load.vaddr is None else load.vaddr
        last = at + len(contents)
        offset = last if load.offset is None else load.offset
        if bits == 32:
            fields = (load.type, offset, vaddr, load.da, filesz, memsz, load.flags, 4)
        else:
            fields = (load.type, load.flags, offset, vaddr, load.da, filesz, memsz, 4)
        programs += PHDR[bits].pack(*fields)
        contents += load.data
    names = b"\0.shstrtab\0.resource_table\0.resource_table2\0"
    names_at = at + len(contents)
    shoff = names_at + len(names)
    headers = [SHDR[bits].pack(*[0] * 10), SHDR[bits].pack(1, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)]
    if table is not None:
        fields_of = {"name": 11, "type": 1, "offset": last, "size": len(table)} | (section or {})
        headers.append(
            SHDR[bits].pack(
                fields_of["name"],
                fields_of["type"],
                3,
                table_da,
                fields_of["offset"],
                fields_of["size"],
                0,
                0,
                4,
                0,
            )
        )
    if not sections:
        names, headers, shoff = b"", [], 0
    values: dict[str, int | bytes] = {
        "ident": b"\x7fELF" + bytes((bits // 32, 1 if sys.byteorder == "little" else 2, 1)) + bytes(9),
        "type": 2,
        "machine": EM_ARM if bits == 32 else EM_AARCH64,
        "version": 1,
        "entry": loads[0].da if loads else 0,
        "phoff": EHDR[bits].size,
        "shoff": shoff,
        "flags": 0,
        "ehsize": EHDR[bits].size,
        "phentsize": PHDR[bits].size,
        "phnum": len(loads),
        "shentsize": SHDR[bits].size,
        "shnum": len(headers),
        "shstrndx": 1 if headers else 0,
        **(header or {}),
    }
    head = EHDR[bits].pack(*(values[field] for field in EHDR_FIELDS))
    return head + programs + contents + names + b"".join(headers)
