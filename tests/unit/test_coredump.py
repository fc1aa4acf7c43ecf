"""Core dumps: what is in them, that other people's tools open them, and what is done about files that lie."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from elfbuilder import Load, build
from hypothesis import given, settings
from hypothesis import strategies as st
from support import require

from rpmsgx import FirmwareError, Remoteproc, ResourceError, firmware
from rpmsgx.cli import coredump as command
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.remoteproc.coredump import MAX_NOTES, STACK, Core, Segment, segments_of
from rpmsgx.remoteproc.elf import Image
from rpmsgx.virtio.table import Trace

ARM, AARCH64, RISCV = 40, 183, 243
CODE = bytes(range(64))
REGISTERS: dict[tuple[int, int], dict[str, int]] = {
    (ARM, 32): {**{f"r{i}": 0x100 + i for i in range(13)}, "sp": 0x20000040, "lr": 0x1235, "pc": 0x10, "cpsr": 0x1F},
    (AARCH64, 64): {**{f"x{i}": 0x100 + i for i in range(31)}, "sp": 0x20000040, "pc": 0x10, "cpsr": 0x3C5},
    (RISCV, 32): {"pc": 0x10, "ra": 0x1234, "sp": 0x20000040, "a0": 0xFFFFFFFE, "s11": 11, "t6": 6},
    (RISCV, 64): {"pc": 0x10, "ra": 0x1234, "sp": 0x20000040, "a0": (1 << 64) - 2, "s11": 11, "t6": 6},
}
CORTEX_M = {**{k: v for k, v in REGISTERS[ARM, 32].items() if k != "cpsr"}, "xpsr": 0x61000000}
KINDS = pytest.mark.parametrize(
    ("machine", "bits", "registers"),
    [*((*kind, registers) for kind, registers in REGISTERS.items()), (ARM, 32, CORTEX_M)],
    ids=["arm", "aarch64", "riscv32", "riscv64", "cortex-m"],
)


class Placed(NamedTuple):
    name: str
    da: int
    size: int


def core(machine: int = ARM, bits: int = 32, **changes: Any) -> Core:
    segments = (
        Segment(0, len(CODE), "segment 0", CODE),
        Segment(0x1000, 0x80, "carveout lost", None),
        Segment(0x20000000, 0x100, "stack", bytes(range(256))),
    )
    made = Core(
        *("remote 0", "fault", "undefined instruction", 1.5e9, "fw.elf", "ab" * 32),
        *(machine, bits, 0x11, segments, REGISTERS.get((machine, bits), {})),
    )
    return made._replace(**changes)


def tool(*command: str | Path) -> str:
    """What a program prints; it must know it and like what it reads."""
    require(shutil.which(str(command[0])) is not None, f"{command[0]} is not installed")
    environment = {**os.environ, "LC_ALL": "C", "HOME": "/nonexistent", "DEBUGINFOD_URLS": ""}
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not re.search("warning|error|corrupt", done.stdout, re.IGNORECASE), done.stdout
    return done.stdout


def readelf(path: Path) -> str:
    # All of -a but -u, which ends with status 1 for any ARM file without sections.
    return tool("readelf", "-h", "-l", "-S", "-s", "-r", "-d", "-V", "-A", "-n", "-W", path)


def gdb(path: Path, *commands: str, symbols: str | None = None) -> str:
    words = [word for text in commands for word in ("-ex", text)]
    return tool("gdb-multiarch", "-nx", "-batch", *words, *([symbols] if symbols else []), "-core", path)


# What other programs make of it


@KINDS
def test_readelf_reads_all_of_it(tmp_path: Path, machine: int, bits: int, registers: dict[str, int]) -> None:
    path = tmp_path / "core"
    core(machine, bits, registers=registers).write(path)
    shown = readelf(path)
    assert f"ELF{bits}" in shown and "CORE (Core file)" in shown and "NT_PRSTATUS" in shown
    loads = [line.split()[1:6] for line in shown.splitlines() if line.split()[:1] == ["LOAD"]]
    assert [[int(word, 16) for word in words[1:]] for words in loads] == [
        [0, 0, 64, 64],
        [0x1000, 0x1000, 0x80, 0x80],
        [0x20000000, 0x20000000, 0x100, 0x100],
    ]


@KINDS
def test_gdb_shows_registers_and_memory(tmp_path: Path, machine: int, bits: int, registers: dict[str, int]) -> None:
    path = tmp_path / "core"
    core(machine, bits, registers=registers).write(path)
    shown = gdb(path, "info registers", "x/4xb 0x20000041", "x/1xb 0x1000", "x/1xb 0x30")
    assert "SIGSEGV" in shown
    found = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)", shown, re.MULTILINE))
    assert {name: int(found[name], 16) for name in registers} == registers
    assert re.search(r"0x20000041:\s+0x41\s+0x42\s+0x43\s+0x44", shown)
    assert re.search(r"0x1000:\s+0xff", shown) and re.search(r"0x30:\s+0x30", shown)


@pytest.mark.parametrize("bits", [32, 64])
def test_elftools_reads_it(tmp_path: Path, bits: int) -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    path = tmp_path / "core"
    dump = core(RISCV, bits)
    dump.write(path)
    with open(path, "rb") as file:
        elf = elffile.ELFFile(file)
        assert (elf.elfclass, elf["e_type"], elf["e_machine"], elf["e_entry"]) == (bits, "ET_CORE", "EM_RISCV", 0x11)
        notes, *loads = elf.iter_segments()
        assert [load.data() for load in loads] == [CODE, b"\xff" * 0x80, bytes(range(256))]
        status, own = notes.iter_notes()
        assert (status["n_name"], status["n_type"], own["n_name"]) == ("CORE", "NT_PRSTATUS", "rpmsgx")
        described = json.loads(own["n_descdata"])
    assert described == dump.describe()
    assert (described["cause"], described["sha256"], described["time"]) == ("undefined instruction", "ab" * 32, 1.5e9)


@pytest.mark.lesson("17")
@pytest.mark.parametrize(
    "cpu, code, assembly",
    [
        ("cortex-m4", "00de", r"udf\s+#0"),
        ("riscv32", "0000", "unimp"),
        ("riscv64", "0000", "unimp"),
        ("cortex-a53", "00000000", r"udf\s+#0"),
    ],
)
def test_lesson_17_a_crashed_core_is_in_the_dump(tmp_path: Path, cpu: str, code: str, assembly: str) -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    path = tmp_path / "core"
    with Remoteproc(platform="unicorn", cpu=cpu, firmware="crash") as rproc:
        endpoint = rproc.open("rpmsg-crash", timeout=20)
        endpoint.send(b"u", timeout=20)
        with pytest.raises(BrokenPipeError):
            endpoint.recv(timeout=20)
        platform, image = rproc.platform, rproc.image
        assert isinstance(image, Image) and image.table is not None
        registers, cause = platform.registers, platform.crash
        assert cause is not None
        shm = Placed("vdev0buffer", platform.shared.da + 0x10000, 0x40000)
        segments = segments_of(
            image, [shm], platform.space, traces=image.table.traces, registers=registers
        )
        memory = {region.name: (region.da, bytes(region.view)) for region in platform.space.regions}
        dump = Core(
            *("m4", platform.crash_kind, cause, 1.5e9, image.name, image.sha256),
            *(image.machine, image.bits, image.entry, segments, registers),
        )
    dump.write(path)

    read = Core.read(path)
    assert read == dump and read.cause.startswith("undefined instruction at pc")
    for segment in read.segments:
        start, content = next(found for found in memory.values() if 0 <= segment.da - found[0] < len(found[1]))
        assert segment.data == content[segment.da - start :][: segment.size]
    held = {segment.name for segment in read.segments}
    assert held == {"segment 0", "segment 1", "trace trace0", "carveout vdev0buffer", "stack"}
    assert read.memory(registers["pc"], len(code) // 2) == bytes.fromhex(code)

    shown = gdb(path, "info registers", "x/i $pc", symbols=firmware.path("crash", cpu))
    found = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)", shown, re.MULTILINE))
    assert {name: int(found[name], 16) for name in registers} == registers
    assert re.search(rf"=> {registers['pc']:#x}.*:\s+{assembly}", shown), shown
    assert "board_fault" in shown  # the symbols of the firmware fit
    text = shown_by_command(path)
    pc = f"{registers['pc']:#0{2 + image.bits // 4}x}"
    assert re.search(rf"\bpc +{pc}\b", text) and bytes.fromhex(code).hex(" ") in text and "crash: fault 1" in text


# What is in it


def space(**sizes: tuple[int, int]) -> AddressSpace:
    """Regions by name: (da, size), filled with what tells each address from its neighbours; "tcm" is device memory."""
    made = AddressSpace()
    for name, (da, size) in sizes.items():
        data = bytearray((da + i) * 7 & 0xFF for i in range(size))
        made.add(Region(name, data, da=da, kind="device" if name == "tcm" else "cached"))
    return made


def test_each_byte_is_there_once() -> None:
    memory = space(ram=(0x1000, 0x1000))
    image = Image(build([Load(0x1100, CODE), Load(0x1200, CODE, memsz=0x100)]))
    carveouts = [Placed("all", 0x1000, 0x400), Placed("beside", 0x13F0, 0x20), Placed("inside", 0x1110, 4)]
    found = segments_of(image, carveouts, memory, traces=[Trace(0x1280, 0x10, "t"), Trace(0x10F8, 0x10, "u")])
    assert [(s.da, s.da + s.size, s.name) for s in found] == [
        (0x1000, 0x10F8, "carveout all"),
        (0x10F8, 0x1108, "trace u"),
        (0x1108, 0x1140, "segment 0"),
        (0x1140, 0x1200, "carveout all"),
        (0x1200, 0x1280, "segment 1"),
        (0x1280, 0x1290, "trace t"),
        (0x1290, 0x1300, "segment 1"),
        (0x1300, 0x1400, "carveout all"),
        (0x1400, 0x1410, "carveout beside"),
    ]
    assert b"".join(bytes(s.data or b"") for s in found) == memory.read(0x1000, 0x410)


@settings(max_examples=200, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=12))
def test_no_arrangement_of_places_loses_or_doubles_a_byte(places: list[tuple[int, int]]) -> None:
    memory = space(ram=(0, 128))
    found = segments_of(None, [Placed(str(i), *place) for i, place in enumerate(places)], memory)
    assert all(segment.size and segment.data is not None for segment in found)
    held = [da for segment in found for da in range(segment.da, segment.da + segment.size)]
    assert held == sorted({da for start, size in places for da in range(start, start + size)})
    for segment in found:  # and each belongs to the first that wanted it
        for da in range(segment.da, segment.da + segment.size):
            first = next(i for i, (start, size) in enumerate(places) if start <= da < start + size)
            assert segment.name == f"carveout {first}"


def test_what_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    places = [Placed("half", 0x10F0, 0x20), Placed("gone", 0x5000, 0x12345)]
    found = segments_of(None, places, space(ram=(0x1000, 0x100)))
    assert found == tuple(Segment(da, size, f"carveout {name}", None) for name, da, size in places)
    path = tmp_path / "core"
    Core("r", segments=found).write(path, format="raw")
    assert path.read_bytes() == b"\xff" * (0x20 + 0x12345)
    Core("r", segments=found).write(path)
    assert path.read_bytes().endswith(b"\xff" * (0x20 + 0x12345))
    read = Core.read(path)
    assert read.segments == found
    with pytest.raises(ResourceError, match="could not read what is at 0x5000"):
        read.memory(0x5000, 1)


def test_the_data_that_runs_elsewhere_than_it_is_loaded() -> None:
    memory = space(rom=(0, 0x100), ram=(0x2000, 0x100))
    image = Image(build([Load(0x80, CODE, memsz=0x50, vaddr=0x2010), Load(0, CODE, vaddr=0xC000_0000)]))
    found = [(s.da, s.size, s.name) for s in segments_of(image, (), memory)]
    assert found == [(0, 64, "segment 1"), (0x80, 0x50, "segment 0"), (0x2010, 0x50, "segment 0")]


@pytest.mark.parametrize("size", [0x100, STACK + 0x200])
def test_the_stack_is_there_though_no_segment_holds_it(size: int) -> None:
    memory = space(ram=(0x2000_0000, size))
    (stack,) = segments_of(None, (), memory, registers={"sp": 0x2000_0080})
    assert (stack.name, stack.da, stack.size) == ("stack", 0x2000_0080, min(size - 0x80, STACK))
    assert stack.data == memory.read(stack.da, stack.size)
    for sp in (0x2000_0000 + size, 0, (1 << 64) - 1):
        assert segments_of(None, (), memory, registers={"sp": sp}) == ()


def test_snapshots_stay_and_views_follow() -> None:
    memory = space(ram=(0, 0x20000), tcm=(0x40000, 0x100))
    places = [Placed("big", 1, 0x1FFFE), Placed("words", 0x40001, 0xFD)]
    before = [memory.read(da, size) for _, da, size in places]
    copied = segments_of(None, places, memory)
    viewed = segments_of(None, places, memory, copy=False)
    memory.zero(0, 0x20000)
    assert [s.data for s in copied] == before
    assert viewed[0].data == bytes(0x1FFFE) and viewed[1].data == before[1]  # device memory takes whole words only


# Files


@KINDS
def test_what_is_written_is_read(tmp_path: Path, machine: int, bits: int, registers: dict[str, int]) -> None:
    path = tmp_path / "core"
    dump = core(machine, bits, registers=registers)
    dump.write(path)
    assert Core.read(path) == dump
    assert Core.read(path).memory(0x20000010, 3) == b"\x10\x11\x12"


def test_a_remote_that_is_no_elf_machine(tmp_path: Path) -> None:
    for dump in (Core("native"), core(0, 64, registers={"rip": 1 << 63}), core(94, 32, registers={"a0": 1})):
        dump.write(tmp_path / "core")
        assert Core.read(tmp_path / "core") == dump
        assert "PRSTATUS" not in readelf(tmp_path / "core")


def test_raw_is_the_bytes_and_their_description(tmp_path: Path) -> None:
    path = tmp_path / "core"
    core().write(path, format="raw")
    described = json.loads((tmp_path / "core.json").read_bytes())
    assert described["name"] == "remote 0" and described["registers"] == REGISTERS[ARM, 32]
    contents = path.read_bytes()
    assert len(contents) == 64 + 0x80 + 0x100
    for segment, data in zip(described["segments"], (CODE, b"\xff" * 0x80, bytes(range(256))), strict=True):
        assert contents[segment["offset"] :][: segment["size"]] == data
    assert sorted(os.listdir(tmp_path)) == ["core", "core.json"]
    with pytest.raises(FirmwareError, match="core: magic is 00010203"):
        Core.read(path)


def test_a_dump_is_private_and_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_text("old")
    broken = Segment(0x3000, 4, "no buffer", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        core(segments=(*core().segments[:2], broken)).write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["core"]
    core().write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(tmp_path) == ["core"]
    with pytest.raises(FileNotFoundError):
        core().write(tmp_path / "none" / "core")
    with pytest.raises(ValueError, match="'xml', not 'elf' or 'raw'"):
        core().write(path, format="xml")  # type: ignore[arg-type]


def test_what_has_no_place_in_elf32(tmp_path: Path) -> None:
    for segments in ((Segment(1 << 32, 1, "high", b"x"),), (Segment(0, (1 << 32) - 0x100, "long", None),)):
        with pytest.raises(ResourceError, match="no place in a file of 32 bits"):
            core(segments=segments).write(tmp_path / "core")
    assert os.listdir(tmp_path) == []
    top, high = Segment((1 << 32) - 4, 4, "top", b"data"), Segment(1 << 32, 1, "high", b"x")
    for dump in (core(segments=(top,)), Core("r", segments=(high,))):
        dump.write(tmp_path / "core")
        assert Core.read(tmp_path / "core") == dump


def test_writing_makes_no_second_copy(tmp_path: Path) -> None:
    data = bytearray(16 << 20)
    segments = (Segment(0, len(data), "a", data), Segment(1 << 28, len(data), "b", None))
    tracemalloc.start()
    try:
        core(segments=segments).write(tmp_path / "core")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_dump_of_the_kernel(tmp_path: Path) -> None:
    # No notes, class and machine of the remote: a segment of 0x100 bytes makes 340.
    ident = b"\x7fELF\1" + (b"\1" if sys.byteorder == "little" else b"\2") + b"\1"
    load = struct.pack("=8I", 1, 84, 0x1000, 0x1000, 0x100, 0x100, 7, 0)
    empty, other = struct.pack("=8I", 1, *[0] * 7), struct.pack("=8I", 2, 0, 0x1000, 0x1000, 8, 8, 7, 0)
    path = tmp_path / "core"
    for programs in ((load,), (load, empty), (other, load)):
        head = struct.pack("=16sHHIIIIIHHHHHH", ident, 4, ARM, 1, 0x41, 52, 0, 0, 52, 32, len(programs), 0, 0, 0)
        moved = struct.pack("=I", 52 + 32 * len(programs))
        data = head + b"".join(programs).replace(load, load[:4] + moved + load[8:]) + bytes(range(256))
        assert len(data) == 308 + 32 * len(programs)
        path.write_bytes(data)
        read = Core.read(path)
        assert (read.name, read.machine, read.entry, read.registers) == ("", ARM, 0x41, {})
        assert read.segments == (Segment(0x1000, 0x100, "", bytes(range(256))),)
        assert "core dump: no crash is known" in shown_by_command(path)


# Files that lie


def written(tmp_path: Path, dump: Core | None = None) -> bytes:
    (dump or core()).write(tmp_path / "made")
    return (tmp_path / "made").read_bytes()


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "core"
    path.write_bytes(data)
    with pytest.raises(FirmwareError, match="^core: ") as caught:
        Core.read(path)
    return str(caught.value)


def patched(data: bytes, fmt: str, at: int, *values: int) -> bytes:
    copy = bytearray(data)
    struct.pack_into("=" + fmt, copy, at, *values)
    return bytes(copy)


@pytest.mark.hostile
def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path)
    for size in range(len(data)):
        refusal(tmp_path, data[:size])


@pytest.mark.hostile
def test_headers_that_lie(tmp_path: Path) -> None:
    data = written(tmp_path)
    top = (1 << 32) - 1
    note, first = 52, 52 + 32
    for fmt, at, values, reason in (
        ("H", 16, (2,), "e_type is 2, not 4: not a core file"),
        ("H", 44, (0,), "e_phnum is 0"),
        ("H", 44, (0xFFFF,), "e_phnum is 65535, the limit is 65534"),
        ("I", 28, (top,), "e_phoff is 0xffffffff"),
        ("I", note + 4, (top,), "p_offset 0xffffffff"),
        ("I", note + 16, (top,), "leaves the file"),
        ("I", first + 4, (top,), "leaves the file"),
        ("I", first + 16, (65,), "p_filesz is 0x41, but p_memsz 0x40"),
        ("2I", first + 16, (top, top), "leaves the file"),
        ("I", first + 12, (0x1001,), "overlap another segment"),
        ("I", first + 12, (top,), "leave 32 bits"),
    ):
        assert reason in refusal(tmp_path, patched(data, fmt, at, *values))


@pytest.mark.hostile
def test_notes_that_lie(tmp_path: Path) -> None:
    dump = core(registers={})  # one note, the JSON
    data = written(tmp_path, dump)
    start = 52 + 4 * 32
    json_at = start + 12 + 8
    for fmt, at, values, reason in (
        ("I", start, (0xFFFFFFFF,), "leave the notes"),
        ("I", start + 4, (0xFFFFFFFF,), "leave the notes"),
        ("I", start + 4, (1,), "JSONDecodeError"),
        ("I", start + 4, (0,), "JSONDecodeError"),
    ):
        assert reason in refusal(tmp_path, patched(data, fmt, at, *values))
    text = json.dumps(dump.describe()).encode()
    assert data[json_at : json_at + len(text)] == text

    def with_json(replacement: bytes) -> bytes:
        size = len(replacement)
        pad = bytes(-size % 4)
        notes = data[start : start + 4] + struct.pack("=I", size) + data[start + 8 : json_at] + replacement + pad
        body = data[json_at + (len(text) + 3 & ~3) :]
        moved = bytearray(data[:start] + notes + body)
        struct.pack_into("=I", moved, 52 + 16, len(notes))
        for index in range(3):
            at = 52 + 32 * (index + 1) + 4
            (offset,) = struct.unpack_from("=I", moved, at)
            struct.pack_into("=I", moved, at, offset + len(moved) - len(data))
        return bytes(moved)

    def changed(**fields: Any) -> bytes:
        return with_json(json.dumps({**dump.describe(), **fields}).encode())

    for bad, reason in (
        (with_json(b"["), "JSONDecodeError"),
        (with_json("[]".encode("utf-16")), "UnicodeDecodeError"),
        (with_json(b"[" * 100_000), "RecursionError"),
        (with_json(b"9" * 5000), "ValueError"),
        (with_json(b"[]"), "name is 'None'"),
        (with_json(b"null"), "name is 'None'"),
        (changed(name=1), "name is '1'"),
        (changed(cause=None), "cause is 'None'"),
        (changed(time=True), "time is 'True'"),
        (changed(time=float("nan")), "time is nan"),
        (changed(time=float("inf")), "time is inf"),
        (changed(time=-1), "time is -1"),
        (changed(time=1 << 2000), "not from 0 to 253402300800"),
        (changed(segments={}), "segments is"),
        (changed(segments=[1]), "segment: da is 'None'"),
        (changed(segments=[{"da": 0, "size": 1, "name": "", "readable": 1}]), "readable is '1'"),
        (changed(registers=[]), "registers is"),
        (changed(registers={"pc": 1.5}), "pc is '1.5'"),
        (changed(registers={"pc": -1}), "register pc"),
        (changed(registers={"pc": 1 << 64}), "register pc"),
    ):
        assert reason in refusal(tmp_path, bad), reason
    assert "the limit is" in refusal(tmp_path, with_json(b" " * MAX_NOTES + text))
    path = tmp_path / "core"
    path.write_bytes(changed(segments=[]))  # places that nothing is known of have no names
    assert {segment.name for segment in Core.read(path).segments} == {""}


@pytest.mark.hostile
def test_many_small_segments(tmp_path: Path) -> None:
    segments = tuple(Segment(2 * i, 2, "", b"ab") for i in range(30000))
    path = tmp_path / "core"
    with pytest.raises(ResourceError, match="the notes on 30000 segments have .* bytes, the limit is 1048576"):
        Core("r", segments=segments).write(path)
    Core("r", segments=segments[:10000]).write(path)
    assert Core.read(path).memory(1, 19998) == b"ba" * 9999


@pytest.mark.hostile
@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    )
)
def test_any_bytes_raise_nothing_but_firmware_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated-core"
    core(RISCV, 64).write(path)
    data = bytearray(path.read_bytes())
    head = 64 + 4 * 56 + 0x500  # headers and notes
    for at, value in changes:
        at %= min(head, len(data) - 8)
        data[at : at + len(value)] = value
    path.write_bytes(data)
    try:
        read = Core.read(path)
    except FirmwareError:
        return
    assert sum(segment.size for segment in read.segments) <= len(data)
    json.dumps(read.describe())
    shown_by_command(path)


@pytest.mark.hostile
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(FirmwareError, match="not a regular file"):
            Core.read(path)
    core().write(tmp_path / "core")
    with pytest.raises(FirmwareError, match="the limit is 99"):
        Core.read(tmp_path / "core", limit=99)
    assert len(os.listdir("/proc/self/fd")) == before


# The command


def rpmsgx(*args: str | Path) -> int:
    parser = argparse.ArgumentParser("rpmsgx")
    command.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(list(map(str, args)))
    status = arguments.run(arguments)
    assert isinstance(status, int)
    return status


def shown_by_command(path: Path) -> str:
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as out:
        assert rpmsgx("coredump", path) == 0
    return out.getvalue()


def test_the_text_says_why_and_where(tmp_path: Path) -> None:
    path = tmp_path / "core"
    trace = Segment(0x2000, 0x20, "trace log", b"up\nwent\x1b[2Jwrong\n\0rest".ljust(0x20, b"\0"))
    core(segments=(*core().segments[:2], trace, core().segments[2])).write(path)
    shown = shown_by_command(path)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "remote 0: fault: undefined instruction"
    for line in (
        "time 2017-07-14 02:40:00 UTC",
        "firmware fw.elf",
        f"sha256 {'ab' * 32}",
        "machine ARM, 32 bits",
        "r12 0x0000010c sp 0x20000040 lr 0x00001235 pc 0x00000010",
        "0x00001000 0x00001080 128 unreadable carveout lost",
        "At pc 0x00000010",
        "00000010 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f |................|",
        "At sp 0x20000040",
        "20000040 40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f |@ABCDEFGHIJKLMNO|",
        "Trace log",
        "up",
        r"went\x1b[2Jwrong",
    ):
        assert line in lines, line
    assert "rest" not in shown


def test_json_is_everything_but_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "core"
    core().write(path)
    assert rpmsgx("coredump", "--json", path) == 0
    assert json.loads(capsys.readouterr().out) == core().describe()


def test_memory_can_be_taken_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "core", tmp_path / "bytes"
    core().write(path)
    assert rpmsgx("coredump", path, "--extract", "0x20000010:4") == 0
    assert capsys.readouterr().out.split("  ")[:2] == ["20000010", "10 11 12 13"]
    assert rpmsgx("coredump", path, "--extract", "536870912:0x100", "-o", out) == 0
    assert out.read_bytes() == bytes(range(256)) and capsys.readouterr().out == ""
    for text, reason in (("0x200000ff:2", "does not hold what is at 0x20000100"), ("0x1000:1", "could not read")):
        with pytest.raises(ResourceError, match=reason):
            rpmsgx("coredump", path, "--extract", text)
    for wrong in ("--extract 1", "--extract 1:0", "--extract x:1", "-o x", "--json --extract 0:1"):
        with pytest.raises(SystemExit):
            rpmsgx("coredump", path, *wrong.split())
        assert "usage: " in capsys.readouterr().err


@pytest.mark.hostile
def test_a_dump_cannot_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "core"
    evil = "\x1b[2J\x07\x9b\ud800"
    segments = (Segment(0, 4, f"trace {evil}", b"\x1b\x9bab"), Segment(8, 4, evil, None))
    Core(evil, evil, evil, 0, evil, evil, 0, 64, 0, segments, {evil: 1}).write(path)
    assert shown_by_command(path).replace("\n", "").isprintable()
