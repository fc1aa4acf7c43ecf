"""Which function an address of a firmware belongs to, by the symbol table of its ELF file, as pyelftools reads it."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rpmsgx.remoteproc.elf import Image

MAX_SYMBOLS = 1 << 16  # looked at: a hostile table costs a second at most
_MAX_NAME = 128
_EM_ARM = 40


def function_at(image: Image, address: int) -> str | None:
    """ "name+0x4" for a code address; None where no function with a size covers it, or the table makes no sense."""
    from elftools.common.utils import struct_parse
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        stream = BytesIO(image.data)
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection) or not table["sh_entsize"]:
            return None
        for index in range(min(table["sh_size"] // table["sh_entsize"], MAX_SYMBOLS)):
            symbol = struct_parse(elf.structs.Elf_Sym, stream, table["sh_offset"] + index * table["sh_entsize"])
            if symbol["st_info"]["type"] != "STT_FUNC":
                continue
            start = symbol["st_value"] & ~1 if image.machine == _EM_ARM else symbol["st_value"]  # bit 0 says Thumb
            if start <= address < start + symbol["st_size"]:
                at = table.stringtable["sh_offset"] + symbol["st_name"]
                name = image.data[at : at + _MAX_NAME].partition(b"\0")[0].decode("utf-8", "backslashreplace")
                return f"{name}+{address - start:#x}" if name else None
    except Exception:  # whatever pyelftools makes of a file that lies: it is only a help to the reader
        return None
    return None
