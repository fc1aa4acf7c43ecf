"""Core dumps: the memory and the registers of a crashed remote, as an ELF core file or as raw bytes.

The ELF file is ET_CORE of the image's class and machine, readable by gdb, readelf and `Core.read`:

    PT_NOTE   "CORE"    NT_PRSTATUS, in Linux's layout, where gdb knows the machine: ARM, AArch64, RISC-V
              "GDB"     a target description for a Cortex-M, whose xPSR gdb would else take for a CPSR
              "rpmsgx"  type 0x58475052: the whole of `Core` but the bytes, as JSON
    PT_LOAD   one for each segment, as the kernel's drivers/remoteproc/remoteproc_coredump.c makes them: p_vaddr and
              p_paddr are the device address, p_filesz is p_memsz, 0xff stands for what could not be read

The raw form is the segments' bytes in ascending order of address, for tools that take nothing else, and beside it
FILE.json, the same JSON with the offset of each segment in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ..errors import FirmwareError, ResourceError
from ..memory.region import hex_range
from . import elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import IO

    from typing_extensions import Buffer

    from ..memory.space import AddressSpace
    from ..virtio.table import Trace
    from .platform import Image

MAX_SIZE = 1 << 30
MAX_NOTES = 1 << 20
MAX_PROGRAMS = 0xFFFE  # e_phnum 0xffff means that the number stands elsewhere
MAX_TIME = 253402300800.0  # the year 10000
STACK = 0x10000
_CHUNK = 1 << 16

_ET_CORE = 4
_PT_NOTE = 4
_NOTE = struct.Struct("=III")  # namesz, descsz, type; name and desc follow, each padded to 4 bytes
_NT_PRSTATUS, _NT_GDB_TDESC = 1, 0xFF000000
_NT_RPMSGX = 0x58475052  # "RPGX": readers that look at the type alone must not take it for one that they know
_OWNER = b"rpmsgx\0"


class _Registers(NamedTuple):
    """The general registers of NT_PRSTATUS in their order, other names after a slash; e_flags of the core file."""

    names: tuple[str, ...]
    flags: int = 0


_RISCV = _Registers(
    (
        *("pc", "ra/x1", "sp/x2", "gp/x3", "tp/x4", "t0/x5", "t1/x6", "t2/x7", "fp/s0/x8", "s1/x9"),
        *(f"a{i}/x{i + 10}" for i in range(8)),
        *(f"s{i}/x{i + 16}" for i in range(2, 12)),
        *(f"t{i}/x{i + 25}" for i in range(3, 7)),
    )
)
# (e_machine, bits): struct user_regs of the kernel's arch/*/include/uapi/asm/ptrace.h
_REGISTERS = {
    (40, 32): _Registers((*(f"r{i}" for i in range(13)), "sp", "lr", "pc", "cpsr/xpsr", "orig_r0"), 0x05000000),
    (183, 64): _Registers((*(f"x{i}" for i in range(30)), "x30/lr", "sp", "pc", "cpsr/pstate")),
    (243, 32): _RISCV,
    (243, 64): _RISCV,
}
# struct elf_prstatus of include/linux/elfcore.h: pr_info, pr_cursig, pr_pid and the registers' place; then pr_fpvalid.
_PRSTATUS = {32: struct.Struct("=12xH10xI44x"), 64: struct.Struct("=12xH18xI76x")}
_SIGNALS = {"fault": 11, "watchdog": 14, "fatal error": 6}  # SIGSEGV, SIGALRM, SIGABRT

_CORTEX_M = (
    '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
    '<architecture>arm</architecture><feature name="org.gnu.gdb.arm.m-profile">'
    + "".join(f'<reg name="{name}" bitsize="32"/>' for name in (*_REGISTERS[40, 32].names[:16], "xpsr"))
    + "</feature></target>\0"
).encode()


class Segment(NamedTuple):
    """`size` bytes of memory at `da`; `data` None: they could not be read."""

    da: int
    size: int
    name: str
    data: Buffer | None

    def chunks(self) -> Iterator[Buffer]:
        """The bytes, in pieces of bounded size where they have to be made up."""
        if self.data is not None:
            yield self.data
            return
        for at in range(0, self.size, _CHUNK):
            yield b"\xff" * min(_CHUNK, self.size - at)


class Core(NamedTuple):
    """A dump of the remote `name`.

    kind, cause        why, as `Platform.crash_kind` and `Platform.crash` say it; kind may be empty
    time               seconds since the epoch
    firmware, sha256   of the image that ran; machine (e_machine; 0: not an ELF machine), bits and entry as there
    segments           disjoint, in ascending order of da
    registers          by the names that gdb gives them
    """

    name: str
    kind: str = ""
    cause: str = ""
    time: float = 0.0
    firmware: str = ""
    sha256: str = ""
    machine: int = 0
    bits: int = 64
    entry: int = 0
    segments: tuple[Segment, ...] = ()
    registers: Mapping[str, int] = {}

    def write(self, path: str | os.PathLike[str], format: Literal["elf", "raw"] = "elf") -> None:
        """Write the dump to `path`, in place of what was there; the file appears when it is whole, with mode 0600.

        Raises OSError, ResourceError if a segment has no place in an ELF file of this class or there are more of them
        than `read` takes (about ten thousand), and ValueError for a format that is neither "elf" nor "raw".
        """
        if format not in ("elf", "raw"):
            raise ValueError(f"format is {format!r}, not 'elf' or 'raw'")
        if format == "elf":
            head = self._elf_head()
        else:
            head = b""
            with _replacing(f"{os.fspath(path)}.json") as file:
                file.write(json.dumps(self._raw_description(), indent=2).encode() + b"\n")
        with _replacing(path) as file:
            file.write(head)
            for segment in self.segments:
                file.writelines(segment.chunks())

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, limit: int = MAX_SIZE) -> Core:
        """The ELF core file at `path`, of up to `limit` bytes; the kernel's own, which have no notes, as well.

        Raises OSError, and FirmwareError, naming field, value and limit, for a file that is not as described above.
        """
        data = elf.read_file(path, limit)
        try:
            return cls._parse(data)
        except FirmwareError as exc:
            raise FirmwareError(f"{os.path.basename(os.fsdecode(path))}: {exc}") from None

    def find(self, da: int) -> Segment | None:
        """The segment that holds the byte at `da`."""
        at = bisect_right(self.segments, da, key=lambda segment: segment.da) - 1
        segment = self.segments[at] if at >= 0 else None
        return segment if segment and da < segment.da + segment.size else None

    def memory(self, da: int, size: int) -> bytes:
        """`size` bytes at `da`. Raises ResourceError if the dump does not hold, or could not read, all of them."""
        parts = []
        at, end = da, da + size
        while at < end:
            segment = self.find(at)
            if segment is None or segment.data is None:
                why = "does not hold" if segment is None else "could not read"
                raise ResourceError(f"da {hex_range(da, size)}: the dump {why} what is at {at:#x}")
            start = at - segment.da
            stop = min(segment.size, end - segment.da)
            parts.append(bytes(memoryview(segment.data)[start:stop]))
            at = segment.da + stop
        return b"".join(parts)

    def describe(self) -> dict[str, Any]:
        """Everything but the bytes, for JSON."""
        segments = [{"da": s.da, "size": s.size, "name": s.name, "readable": s.data is not None} for s in self.segments]
        return {**self._asdict(), "segments": segments, "registers": dict(self.registers)}

    def _raw_description(self) -> dict[str, Any]:
        description = self.describe()
        offset = 0
        for segment in description["segments"]:
            segment["offset"] = offset
            offset += segment["size"]
        return description

    # -- the ELF file ----------------------------------------------------------------------------

    def _elf_head(self) -> bytes:
        """Everything before the segments' bytes."""
        bits = self.bits
        notes = self._notes()
        if len(notes) > MAX_NOTES:  # long before there are too many program headers
            raise ResourceError(
                f"the notes on {len(self.segments)} segments have {len(notes)} bytes, the limit is {MAX_NOTES}"
            )
        at = elf.EHDR[bits].size + elf.PHDR[bits].size * (1 + len(self.segments))
        programs = [elf.Program(_PT_NOTE, at, 0, 0, len(notes), 0, 4, 4)]
        at += len(notes)
        for segment in self.segments:
            if max(segment.da, at) + segment.size > 1 << bits:
                raise ResourceError(f"da {hex_range(segment.da, segment.size)}: no place in a file of {bits} bits")
            programs.append(elf.Program(elf.PT_LOAD, at, segment.da, segment.da, segment.size, segment.size, 7, 0))
            at += segment.size
        known = _REGISTERS.get((self.machine, bits))
        header = elf.Header(
            bits,
            type=_ET_CORE,
            machine=self.machine,
            version=1,
            entry=self.entry,
            phoff=elf.EHDR[bits].size,
            shoff=0,
            flags=known.flags if known else 0,
            ehsize=elf.EHDR[bits].size,
            phentsize=elf.PHDR[bits].size,
            phnum=len(programs),
            shentsize=0,
            shnum=0,
            shstrndx=0,
        )
        return header.pack() + b"".join(program.pack(bits) for program in programs) + notes

    def _notes(self) -> bytes:
        notes = b""
        known = _REGISTERS.get((self.machine, self.bits))
        if known and self.registers:
            notes += _note(b"CORE\0", _NT_PRSTATUS, self._prstatus(known.names))
            if "xpsr" in self.registers:
                notes += _note(b"GDB\0", _NT_GDB_TDESC, _CORTEX_M)
        return notes + _note(_OWNER, _NT_RPMSGX, json.dumps(self.describe()).encode())

    def _prstatus(self, names: tuple[str, ...]) -> bytes:
        head = _PRSTATUS[self.bits].pack(_SIGNALS.get(self.kind, 0), 1)
        mask = (1 << self.bits) - 1
        values = [
            next((self.registers[name] & mask for name in slot.split("/") if name in self.registers), 0)
            for slot in names
        ]
        word = "I" if self.bits == 32 else "Q"
        return head + struct.pack(f"={len(values)}{word}", *values) + bytes(self.bits // 8)

    @classmethod
    def _parse(cls, data: bytes) -> Core:
        header = elf.read_header(data)
        if header.type != _ET_CORE:
            raise FirmwareError(f"e_type is {header.type}, not {_ET_CORE}: not a core file")
        programs = elf.read_programs(data, header, MAX_PROGRAMS)
        view = memoryview(data)
        note = next((program for program in programs if program.type == _PT_NOTE), None)
        description = _description(_span(view, note, MAX_NOTES)) if note else {}
        loads = [program for program in programs if program.type == elf.PT_LOAD and program.memsz]
        listed = [(s["da"], s["size"], s["name"], s["readable"]) for s in description.pop("segments", ())]
        if [(p.paddr, p.memsz) for p in loads] != [place[:2] for place in listed]:
            listed = [(p.paddr, p.memsz, "", True) for p in loads]  # somebody else's core file
        segments = []
        end = 0
        for program, (da, size, name, readable) in sorted(zip(loads, listed, strict=True), key=lambda pair: pair[1]):
            if program.filesz != size:
                raise FirmwareError(f"segment at {da:#x}: p_filesz is {program.filesz:#x}, but p_memsz {size:#x}")
            if da < end or da + size > 1 << header.bits:
                raise FirmwareError(
                    f"segment at {da:#x}: {size:#x} bytes overlap another segment or leave {header.bits} bits"
                )
            content = _span(view, program, len(data))
            end = da + size
            segments.append(Segment(da, size, name, content if readable else None))
        return cls(
            **{"name": "", **description, "machine": header.machine, "bits": header.bits, "entry": header.entry},
            segments=tuple(segments),
        )


def segments_of(
    image: Image | None,
    carveouts: Iterable[_Carveout],
    space: AddressSpace,
    *,
    traces: Iterable[Trace] = (),
    registers: Mapping[str, int] | None = None,
    copy: bool = True,
) -> tuple[Segment, ...]:
    """What a dump of a remote holds, each byte once: a place that overlaps others keeps what they leave of it.

    In this order: its trace buffers ("trace NAME"); the image's segments ("segment N") where they are loaded and,
    if that is elsewhere and granted, where they run; its carveouts ("carveout NAME"); and from the register sp to
    the end of the region, at most 64 KiB ("stack"), since linker scripts leave the stack out of all segments.

    `copy=False` gives the memory itself, and copies of "device" memory only: to be written before the remote goes on.
    """
    places = [(f"trace {trace.name}", trace.da, trace.len) for trace in traces]
    for index, segment in enumerate(image.segments if isinstance(image, elf.Image) else ()):
        places.append((f"segment {index}", segment.da, segment.memsz))
        if segment.vaddr != segment.da and _is_granted(space, segment.vaddr, segment.memsz):
            places.append((f"segment {index}", segment.vaddr, segment.memsz))
    places += [(f"carveout {carveout.name}", carveout.da, carveout.size) for carveout in carveouts]
    sp = (registers or {}).get("sp")
    if sp is not None and _is_granted(space, sp, 1):
        region, offset = space.find_da(sp)
        places.append(("stack", sp, min(STACK, region.size - offset)))
    return tuple(
        Segment(da, end - da, name, _contents(space, da, end - da, copy)) for da, end, name in _disjoint(places)
    )


class _Carveout(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def da(self) -> int: ...
    @property
    def size(self) -> int: ...


def _disjoint(places: Iterable[tuple[str, int, int]]) -> list[tuple[int, int, str]]:
    """(da, end, name) in ascending order: of each place what the ones before it have not taken."""
    taken: list[tuple[int, int, str]] = []
    for name, da, size in places:
        end = da + size
        free = []
        for start, stop, _ in taken:
            if da >= end or start >= end:
                break
            if da < start:
                free.append((da, start, name))
            da = max(da, stop)
        if da < end:
            free.append((da, end, name))
        taken = sorted(taken + free)
    return taken


def _is_granted(space: AddressSpace, da: int, size: int) -> bool:
    try:
        space.find_da(da, size)
    except ResourceError:
        return False
    return True


def _contents(space: AddressSpace, da: int, size: int, copy: bool) -> Buffer | None:
    try:
        region, _ = space.find_da(da, size)
    except ResourceError:
        return None
    if not copy and region.kind != "device":
        return space.view(da, size)
    data = bytearray(size)
    for at in range(0, size, _CHUNK):
        data[at : at + _CHUNK] = space.read(da + at, min(_CHUNK, size - at))
    return None if region.lost else data


def _note(owner: bytes, kind: int, description: bytes) -> bytes:
    padded = (part + bytes(-len(part) % 4) for part in (owner, description))
    return _NOTE.pack(len(owner), len(description), kind) + b"".join(padded)


def _span(view: memoryview, program: elf.Program, limit: int) -> memoryview:
    """The bytes of a program header, in the file and not more than `limit`."""
    start, size = program.offset, program.filesz
    if start + size > len(view):
        raise FirmwareError(
            f"p_offset {start:#x} + p_filesz {size:#x} leaves the file, which has {len(view):#x} bytes"
        )
    if size > limit:
        raise FirmwareError(f"p_filesz of the notes is {size:#x}, the limit is {limit:#x}")
    return view[start : start + size]


_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "kind", "cause", "firmware", "sha256"), str),
    "time": (int, float),
    "segments": list,
    "registers": dict,
}
_SEGMENT_FIELDS: dict[str, type] = {"da": int, "size": int, "name": str, "readable": bool}


def _description(notes: memoryview) -> dict[str, Any]:
    """What the note of owner "rpmsgx" says, each field of its type; {} without one."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        start = at + _NOTE.size + (name_size + 3 & ~3)
        if start + size > len(notes):
            raise FirmwareError(f"note at {at:#x}: {size:#x} bytes leave the notes, which have {len(notes):#x} bytes")
        if kind == _NT_RPMSGX and notes[at + _NOTE.size : at + _NOTE.size + name_size] == _OWNER:
            return _checked(bytes(notes[start : start + size]))
        at = start + (size + 3 & ~3)
    return {}


def _checked(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as exc:
        raise FirmwareError(f"note of owner rpmsgx: {type(exc).__name__}: {exc}") from None
    _check_fields("note of owner rpmsgx", found, _FIELDS)
    if not 0 <= found["time"] < MAX_TIME:
        raise FirmwareError(f"note of owner rpmsgx: time is {found['time']}, not from 0 to {MAX_TIME:.0f}")
    for segment in found["segments"]:
        _check_fields("note of owner rpmsgx: segment", segment, _SEGMENT_FIELDS)
    _check_fields("note of owner rpmsgx: registers", found["registers"], dict.fromkeys(found["registers"], int))
    for register, value in found["registers"].items():
        if not 0 <= value < 1 << 64:
            raise FirmwareError(f"note of owner rpmsgx: register {register} is not of 64 bits")
    return {field: found[field] for field in _FIELDS}


def _check_fields(where: str, found: Any, fields: Mapping[str, Any]) -> None:
    for field, kind in fields.items():
        value = found.get(field) if isinstance(found, dict) else None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FirmwareError(f"{where}: {field} is {str(value)[:40]!r}, not of the type that it must have")


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that takes the place of the one at `path` when all is written, and leaves no trace if it is not."""
    from tempfile import mkstemp

    path = os.fspath(path)
    descriptor, temporary = mkstemp(prefix=".rpmsgx-", dir=os.path.dirname(path) or ".")  # with mode 0600
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
