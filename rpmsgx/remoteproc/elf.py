"""Firmware images: ELF files, checked in full before anything believes them, and loaded into granted memory.

The checks are those of the kernel's drivers/remoteproc/remoteproc_elf_loader.c, in its order and with the bounds
that newer kernels added, and more: tables that leave the file, entry sizes that no reader agrees on, segments
that wrap or overlap. `Image.open` with `expect_machine` is all of it but the question whether the board has the
memory, which `Image.check_granted` answers.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from ..errors import FirmwareError, ResourceError
from ..virtio import table as rsc

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from ..memory.space import AddressSpace

MAX_SIZE = 1 << 30
MAX_SEGMENTS = 1024
MAX_SECTIONS = 4096
TABLE_SECTION = b".resource_table"

MAGIC = b"\x7fELF"
NATIVE_DATA = 1 if sys.byteorder == "little" else 2
EHDR = {32: struct.Struct("=16sHHIIIIIHHHHHH"), 64: struct.Struct("=16sHHIQQQIHHHHHH")}
PHDR = {32: struct.Struct("=8I"), 64: struct.Struct("=2I6Q")}
SHDR = {32: struct.Struct("=10I"), 64: struct.Struct("=2I4Q2I2Q")}
PT_LOAD = 1
_ET_EXEC, _ET_DYN = 2, 3
_SHT_NOBITS = 8

# The names that people use, for the machines that remote cores have.
_MACHINES = {
    2: "SPARC",
    3: "x86",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    40: "ARM",
    42: "SuperH",
    62: "x86-64",
    83: "AVR",
    93: "ARC",
    94: "Xtensa",
    106: "Blackfin",
    113: "Nios II",
    140: "TI C6000",
    144: "TI PRU",
    164: "Hexagon",
    183: "AArch64",
    189: "MicroBlaze",
    195: "ARCv2",
    243: "RISC-V",
    258: "LoongArch",
}


def machine_name(machine: int) -> str:
    """The name of an e_machine value, or "machine N"."""
    return _MACHINES.get(machine, f"machine {machine}")


class Segment(NamedTuple):
    """A loadable segment: `memsz` bytes at `da` (p_paddr), the first `filesz` from the file at `offset`."""

    da: int
    vaddr: int
    filesz: int
    memsz: int
    flags: int
    offset: int


class Image:
    """A checked firmware image. Immutable, so any thread may use it.

    name, size, sha256 (hex)   of the file
    bits (32 or 64), machine (e_machine), machine_name, entry (e_entry)
    segments                   what `load` copies: PT_LOAD with a memsz, in the file's order
    memory                     (da, size) ranges that `load` writes, ascending, neighbours merged
    resource_table             (da, bytes) of section .resource_table, or None; da None: no segment loads it
    table                      the same, parsed, or None
    warnings                   what is odd and no reason to refuse
    """

    __slots__ = (
        "bits",
        "data",
        "entry",
        "machine",
        "memory",
        "name",
        "resource_table",
        "segments",
        "sha256",
        "size",
        "table",
        "warnings",
    )

    def __init__(self, data: Buffer, name: str = "firmware", *, expect_machine: int | None = None) -> None:
        """Check a copy of `data`. Raises FirmwareError, naming field, value and limit."""
        data = bytes(memoryview(data)) if not isinstance(data, bytes) else data
        self.name = name
        self.data = data
        self.size = len(data)
        try:
            header = read_header(data)
            sections = _read_sections(data, header)
            programs = read_programs(data, header)
            self.bits = header.bits
            self.machine = header.machine
            self.entry = header.entry
            if expect_machine is not None and self.machine != expect_machine:
                raise FirmwareError(
                    f"e_machine is {self.machine}: this is {_article(self.machine_name)} {self.machine_name} "
                    f"image, the platform runs {machine_name(expect_machine)}"
                )
            self.segments = _segments(data, header.bits, programs)
            self.memory = _merge(self.segments)
            self.resource_table = _find_table(data, header, sections, self.segments)
            self.table = rsc.parse(self.resource_table[1]) if self.resource_table else None
        except (FirmwareError, ResourceError) as exc:
            raise FirmwareError(f"{name}: {exc}") from None
        self.warnings = tuple(self._warnings(header))
        self.sha256 = hashlib.sha256(data).hexdigest()

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, expect_machine: int | None = None, limit: int = MAX_SIZE
    ) -> Image:
        """Read and check the file at `path`, of up to `limit` bytes. Raises OSError, or FirmwareError as above."""
        name = os.path.basename(os.fsdecode(path))
        return cls(read_file(path, limit), name, expect_machine=expect_machine)

    @property
    def machine_name(self) -> str:
        return machine_name(self.machine)

    def check_granted(self, space: AddressSpace) -> None:
        """Raise FirmwareError, naming the segment and what there is, if a segment is not in granted memory."""
        for index, segment in enumerate(self.segments):
            try:
                space.find_da(segment.da, segment.memsz)
            except ResourceError as exc:
                raise FirmwareError(f"{self.name}: segment {index}: {exc}") from exc

    def load(self, space: AddressSpace, *, progress: Callable[[int, int], object] | None = None) -> None:
        """Copy every segment to its da in `space` and clear the rest of it.

        `progress(done, total)`, in bytes, is called after each segment. Raises FirmwareError as
        `check_granted`, with nothing written.
        """
        self.check_granted(space)
        total = sum(segment.memsz for segment in self.segments)
        done = 0
        data = memoryview(self.data)
        for segment in self.segments:
            if segment.filesz:
                space.write(segment.da, data[segment.offset : segment.offset + segment.filesz])
            if segment.memsz > segment.filesz:
                space.zero(segment.da + segment.filesz, segment.memsz - segment.filesz)
            done += segment.memsz
            if progress:
                progress(done, total)

    def _warnings(self, header: Header) -> list[str]:
        warnings = []
        if header.type not in (_ET_EXEC, _ET_DYN):
            warnings.append(f"e_type is {header.type}: not an executable")
        if header.version != 1:
            warnings.append(f"e_version is {header.version}, not 1")
        if self.machine not in _MACHINES:
            warnings.append(f"e_machine is {self.machine}: not a machine known here")
        if not self.segments:
            warnings.append("nothing to load: no PT_LOAD segment with a memory size")
        elif not any(
            start <= self.entry < start + segment.memsz
            for segment in self.segments
            for start in (segment.da, segment.vaddr)
        ):
            warnings.append(f"e_entry {self.entry:#x} lies in no loaded segment")
        if self.resource_table and self.resource_table[0] is None:
            warnings.append("section .resource_table lies in no loaded segment: the remote cannot see it")
        if self.table:
            warnings += [f"resource table: {text}" for text in self.table.warnings]
        return warnings

    def __repr__(self) -> str:
        return f"<Image {self.name!r} {self.machine_name} {self.bits} bits, {len(self.segments)} segments>"


class Header(NamedTuple):
    """The ELF header. Field by field as in the file but for `bits`, which is EI_CLASS."""

    bits: int
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int

    def pack(self) -> bytes:
        ident = MAGIC + bytes((self.bits // 32, NATIVE_DATA, 1)) + bytes(9)
        return EHDR[self.bits].pack(ident, *self[1:])


class Program(NamedTuple):
    """A program header, in the order of ELF32."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    flags: int
    align: int

    def pack(self, bits: int) -> bytes:
        return PHDR[32].pack(*self) if bits == 32 else PHDR[64].pack(self.type, self.flags, *self[1:6], self.align)


class Section(NamedTuple):
    """A section header."""

    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """The whole of a regular file, read once: what happens to it later does not matter.

    Raises OSError, or FirmwareError if it is no regular file, has more than `limit` bytes or changes meanwhile.
    """
    name = os.path.basename(os.fsdecode(path))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must be refused, not waited for
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise FirmwareError(f"{name}: not a regular file")
        if info.st_size > limit:
            raise FirmwareError(f"{name}: size is {info.st_size}, the limit is {limit}")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(info.st_size + 1)
    finally:
        os.close(fd)
    if len(data) != info.st_size:
        raise FirmwareError(f"{name}: size was {info.st_size} and changed while the file was read")
    return data


def read_header(data: bytes) -> Header:
    """The ELF header, of this machine's byte order. What it says of the rest of the file is not checked yet."""
    size = len(data)
    if size < EHDR[32].size:
        raise FirmwareError(f"size is {size}, an ELF header has {EHDR[32].size} bytes")
    if data[:4] != MAGIC:
        raise FirmwareError(f"magic is {data[:4].hex()}, not {MAGIC.hex()}: not an ELF file")
    if data[4] not in (1, 2):
        raise FirmwareError(f"EI_CLASS is {data[4]}, not 1 (32 bits) or 2 (64 bits)")
    bits = 32 * data[4]
    if size < EHDR[bits].size:
        raise FirmwareError(f"size is {size}, an ELF64 header has {EHDR[64].size} bytes")
    if data[5] != NATIVE_DATA:
        raise FirmwareError(f"EI_DATA is {data[5]}, not {NATIVE_DATA} ({sys.byteorder} endian, as this machine)")
    header = Header(bits, *EHDR[bits].unpack_from(data)[1:])
    if header.ehsize != EHDR[bits].size:
        raise FirmwareError(f"e_ehsize is {header.ehsize}, not {EHDR[bits].size}")
    return header


def _read_sections(data: bytes, header: Header) -> list[Section]:
    """The section headers, proven to lie inside the file."""
    size, bits, shoff, shnum, shstrndx = len(data), header.bits, header.shoff, header.shnum, header.shstrndx
    entry = SHDR[bits].size
    if shoff > size:
        raise FirmwareError(f"e_shoff is {shoff:#x}, the file has {size:#x} bytes")
    if shoff + shnum * entry > size:
        raise FirmwareError(
            f"e_shoff is {shoff:#x}, e_shnum is {shnum}: section headers leave the file, which has {size:#x} bytes"
        )
    # The kernel wants the names' header in the file even when there are no sections.
    if shoff + (shstrndx + 1) * entry > size:
        raise FirmwareError(
            f"e_shoff is {shoff:#x}, e_shstrndx is {shstrndx}: the header of the sections' names leaves the file, "
            f"which has {size:#x} bytes"
        )
    if shnum > MAX_SECTIONS:
        raise FirmwareError(f"e_shnum is {shnum}, the limit is {MAX_SECTIONS}")
    if shnum and header.shentsize != entry:
        raise FirmwareError(f"e_shentsize is {header.shentsize}, not {entry}")
    if shnum and shstrndx >= shnum:
        raise FirmwareError(f"e_shstrndx is {shstrndx}, but e_shnum is {shnum}")
    return [Section(*fields) for fields in SHDR[bits].iter_unpack(data[shoff : shoff + shnum * entry])]


def read_programs(data: bytes, header: Header, limit: int = MAX_SEGMENTS) -> list[Program]:
    """The program headers, from one to `limit`, proven to lie inside the file."""
    size, bits, phoff, phnum = len(data), header.bits, header.phoff, header.phnum
    entry = PHDR[bits].size
    if phnum == 0:
        raise FirmwareError("e_phnum is 0: no loadable segments")
    if phoff > size:
        raise FirmwareError(f"e_phoff is {phoff:#x}, the file has {size:#x} bytes")
    if phnum > limit:
        raise FirmwareError(f"e_phnum is {phnum}, the limit is {limit}")
    if header.phentsize != entry:
        raise FirmwareError(f"e_phentsize is {header.phentsize}, not {entry}")
    if phoff + phnum * entry > size:
        raise FirmwareError(
            f"e_phoff is {phoff:#x}, e_phnum is {phnum}: program headers leave the file, which has {size:#x} bytes"
        )
    found = PHDR[bits].iter_unpack(data[phoff : phoff + phnum * entry])
    if bits == 64:
        found = ((kind, *places, flags, align) for kind, flags, *places, align in found)
    return [Program(*fields) for fields in found]


def _segments(data: bytes, bits: int, programs: list[Program]) -> tuple[Segment, ...]:
    segments = []
    places = []
    for index, program in enumerate(programs):
        if program.type != PT_LOAD:
            continue
        segment = Segment(
            program.paddr, program.vaddr, program.filesz, program.memsz, program.flags, program.offset
        )
        where = f"program header {index}"
        if segment.filesz > segment.memsz:
            raise FirmwareError(f"{where}: p_filesz {segment.filesz:#x} > p_memsz {segment.memsz:#x}")
        if not segment.memsz:
            continue
        if segment.offset + segment.filesz > len(data):
            raise FirmwareError(
                f"{where}: p_offset {segment.offset:#x} + p_filesz {segment.filesz:#x} leaves the file, "
                f"which has {len(data):#x} bytes"
            )
        if segment.da + segment.memsz > 1 << bits:
            raise FirmwareError(
                f"{where}: p_paddr {segment.da:#x} + p_memsz {segment.memsz:#x} leaves {bits} bits"
            )
        segments.append(segment)
        places.append((segment.da, segment.da + segment.memsz, index))
    places.sort()
    for (start, end, index), (other_start, other_end, other) in pairwise(places):
        if other_start < end:
            raise FirmwareError(
                f"program header {other}: p_paddr [{other_start:#x}, {other_end:#x}) overlaps "
                f"program header {index} [{start:#x}, {end:#x})"
            )
    return tuple(segments)


def _merge(segments: tuple[Segment, ...]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for segment in sorted(segments):
        if ranges and sum(ranges[-1]) == segment.da:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + segment.memsz)
        else:
            ranges.append((segment.da, segment.memsz))
    return tuple(ranges)


def _find_table(
    data: bytes, header: Header, sections: list[Section], segments: tuple[Segment, ...]
) -> tuple[int | None, bytes] | None:
    """The first section named .resource_table: the da that its bytes are loaded to, and the bytes."""
    if not header.shstrndx or not sections:
        return None  # no sections, or sections without names
    start, length = sections[header.shstrndx].offset, sections[header.shstrndx].size
    if start + length > len(data):
        raise FirmwareError(
            f"section {header.shstrndx} (names): sh_offset {start:#x} + sh_size {length:#x} leaves the file, "
            f"which has {len(data):#x} bytes"
        )
    wanted = TABLE_SECTION + b"\0"
    for index, section in enumerate(sections):
        at = section.name
        if at and at >= length:
            raise FirmwareError(f"section {index}: sh_name is {at:#x}, the names have {length:#x} bytes")
        if at + len(wanted) > length or not data.startswith(wanted, start + at):
            continue
        offset, size = section.offset, section.size
        where = f"section {index} (.resource_table)"
        if section.type == _SHT_NOBITS:
            raise FirmwareError(f"{where}: sh_type is NOBITS: the file does not hold the table")
        if offset + size > len(data):
            raise FirmwareError(
                f"{where}: sh_offset {offset:#x} + sh_size {size:#x} leaves the file, "
                f"which has {len(data):#x} bytes"
            )
        return _loaded_at(offset, size, segments), data[offset : offset + size]
    return None


def _loaded_at(offset: int, size: int, segments: tuple[Segment, ...]) -> int | None:
    for segment in segments:
        if segment.offset <= offset and offset + size <= segment.offset + segment.filesz:
            return segment.da + offset - segment.offset
    return None


def _article(noun: str) -> str:
    return "an" if noun[0] in "AXx" else "a"  # as they are said: an ARM, an x86, an Xtensa, a RISC-V
