"""Every field of a firmware image at its extremes: accepted or refused exactly as the rules say.

The rules stand here a second time, written from the kernel's remoteproc_elf_loader.c and remoteproc_core.c (6.12,
with its bounds of the section headers) and from what docs/semantics.md adds, with plain integers and none of the code
under test. What they say of each file of a generated corpus is compared with what `Image` says of it.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from elfbuilder import EHDR, EHDR_FIELDS, EM_ARM, PHDR, SHDR, Load, build
from support import require

from rpmsgx import FirmwareError, Remoteproc, ResourceError, firmware
from rpmsgx.cli import info
from rpmsgx.remoteproc.elf import Image
from rpmsgx.remoteproc.platform import open_platform
from rpmsgx.virtio import table as rsc

BITS = pytest.mark.parametrize("bits", [32, 64])
ANY = 0xFFFFFFFF
pytestmark = pytest.mark.hostile


# The rules


class Refused(Exception):
    """A rule is broken; the text is what the message must name."""


class Accepted(NamedTuple):
    segments: list[tuple[int, int, int, int]]
    """da, filesz, memsz, offset"""
    table: tuple[int | None, bytes] | None
    """da, bytes"""


def refuse_if(broken: bool, name: str) -> None:
    if broken:
        raise Refused(name)


def word(data: bytes, at: int, size: int = 4) -> int:
    assert 0 <= at <= len(data) - size
    return int.from_bytes(data[at : at + size], sys.byteorder)


def rules(data: bytes, machine: int | None = None) -> Accepted:
    """What a boot would load. Raises Refused."""
    # rproc_elf_sanity_check()
    size = len(data)
    refuse_if(size < 52, "size is")
    refuse_if(data[:4] != b"\x7fELF", "magic")
    refuse_if(data[4] not in (1, 2), "EI_CLASS")
    wide = data[4] == 2
    refuse_if(wide and size < 64, "size is")
    refuse_if(data[5] != (1 if sys.byteorder == "little" else 2), "EI_DATA")
    ehsize, phsize, shsize, long = (64, 56, 64, 8) if wide else (52, 32, 40, 4)
    phoff, shoff = (word(data, 32, 8), word(data, 40, 8)) if wide else (word(data, 28), word(data, 32))
    e_ehsize, e_phentsize, phnum, e_shentsize, shnum, shstrndx = (word(data, ehsize - 12 + 2 * i, 2) for i in range(6))
    refuse_if(e_ehsize != ehsize, "e_ehsize")  # stricter
    refuse_if(shoff > size, "e_shoff")
    refuse_if(shoff + shnum * shsize > size, "e_shnum")
    refuse_if(shoff + (shstrndx + 1) * shsize > size, "e_shstrndx")
    refuse_if(shnum > 4096, "e_shnum")  # stricter
    refuse_if(shnum > 0 and e_shentsize != shsize, "e_shentsize")  # stricter
    refuse_if(shnum > 0 and shstrndx >= shnum, "e_shstrndx")  # stricter
    refuse_if(phnum == 0, "e_phnum")
    refuse_if(phoff > size, "e_phoff")
    refuse_if(phnum > 1024, "e_phnum")  # stricter
    refuse_if(e_phentsize != phsize, "e_phentsize")  # stricter
    refuse_if(phoff + phnum * phsize > size, "e_phoff")  # stricter
    refuse_if(machine is not None and word(data, 18, 2) != machine, "e_machine")  # stricter

    # rproc_elf_load_segments()
    segments = []
    for at in range(phoff, phoff + phnum * phsize, phsize):
        if word(data, at) != 1:  # PT_LOAD
            continue
        first = at + 8 if wide else at + 4  # p_offset, p_vaddr, p_paddr, p_filesz, p_memsz
        offset, _, paddr, filesz, memsz = (word(data, first + long * i, long) for i in range(5))
        refuse_if(filesz > memsz, "p_filesz")  # stricter for a memsz of 0, which the kernel skips
        if memsz == 0:
            continue
        refuse_if(offset + filesz > size, "p_offset")
        refuse_if(paddr + memsz > 1 << 8 * long, "p_paddr")  # stricter
        segments.append((paddr, filesz, memsz, offset))
    for i, (one, _, length, _) in enumerate(segments):  # stricter
        for other, _, other_length, _ in segments[:i]:
            refuse_if(one < other + other_length and other < one + length, "overlaps")

    # find_table()
    def header(index: int) -> tuple[int, int, int, int]:
        """sh_name, sh_type, sh_offset, sh_size"""
        at = shoff + index * shsize
        where = at + 24 if wide else at + 16
        return word(data, at), word(data, at + 4), word(data, where, long), word(data, where + long, long)

    if shnum == 0 or shstrndx == 0:  # SHN_UNDEF: no names
        return Accepted(segments, None)
    _, _, names, length = header(shstrndx)
    refuse_if(names + length > size, "(names)")  # stricter
    for index in range(shnum):
        name, kind, offset, length_of_table = header(index)
        refuse_if(name >= length and name != 0, "sh_name")  # stricter
        text = data[names : names + length][name:]
        if not text.startswith(b".resource_table\0"):
            continue
        refuse_if(kind == 8, "sh_type")  # stricter: SHT_NOBITS has no bytes in the file
        refuse_if(offset + length_of_table > size, "sh_offset")
        table = data[offset : offset + length_of_table]
        table_rules(table)
        return Accepted(segments, (loaded_at(offset, length_of_table, segments), table))
    return Accepted(segments, None)


def loaded_at(offset: int, size: int, segments: list[tuple[int, int, int, int]]) -> int | None:
    """The da that the first segment which holds all of these bytes of the file loads them to."""
    for da, filesz, _, start in segments:
        if start <= offset <= offset + size <= start + filesz:
            return da + offset - start
    return None


def table_rules(table: bytes) -> None:
    # find_table(), the rest of it
    size = len(table)
    refuse_if(size < 16, "size is")
    refuse_if(word(table, 0) != 1, "ver")
    refuse_if(word(table, 8) != 0 or word(table, 12) != 0, "reserved")
    num = word(table, 4)
    refuse_if(16 + 4 * num > size, "num")
    refuse_if(num > 1024, "num")  # stricter
    # rproc_handle_resources()
    offsets = [word(table, 16 + 4 * i) for i in range(num)]
    for offset in offsets:
        refuse_if(offset < 16 or offset + 4 > size, "offset[")
    end = 16 + 4 * num
    places: list[tuple[int, int, str]] = []
    names: set[bytes] = set()
    vdevs = {offset: index for index, offset in enumerate(o for o in offsets if word(table, o) == 3)}
    for offset in sorted(offsets):
        refuse_if(offset < end, "offset[")  # stricter: entries do not overlap
        kind, available = word(table, offset), size - offset
        end = offset + 4
        if kind in (0, 1):  # carveout, devmem
            what = ("carveout", "devmem")[kind]
            refuse_if(available < 56, what)
            da, pa, length, _, reserved = (word(table, offset + 4 + 4 * i) for i in range(5))
            name = table[offset + 24 : offset + 56].split(b"\0")[0]
            refuse_if(reserved != 0, what)
            refuse_if((kind == 1 or da != ANY) and da + length > 1 << 32, what)  # stricter
            refuse_if(kind == 1 and pa + length > 1 << 32, what)  # stricter
            if kind == 0:
                refuse_if(name in names, "two carveouts")
                names.add(name)
            if length and (kind == 1 or da != ANY):
                places.append((da, length, f"{what} {name.decode('latin-1')}"))
            end = offset + 56
        elif kind == 2:  # trace
            refuse_if(available < 48, "trace")
            da, length, reserved = (word(table, offset + 4 + 4 * i) for i in range(3))
            refuse_if(reserved != 0, "trace")
            refuse_if(da != ANY and da + length > 1 << 32, "trace")  # stricter
            end = offset + 48
        elif kind == 3:  # vdev
            refuse_if(available < 28, "vdev")
            config, vrings = word(table, offset + 20), table[offset + 25]
            refuse_if(table[offset + 26] != 0 or table[offset + 27] != 0, "vdev")
            refuse_if(vrings > 2, "vdev")
            refuse_if(28 + 20 * vrings + config > available, "vdev")
            for i in range(vrings):
                da, align, entries = (word(table, offset + 28 + 20 * i + 4 * j) for j in range(3))
                refuse_if(entries not in [1 << n for n in range(16)], "vring[")  # stricter: VIRTIO 1.2, 2.7
                refuse_if(align not in [1 << n for n in range(32)], "vring[")  # stricter
                available_ring = 16 * entries + 6 + 2 * entries
                length = -(-available_ring // align) * align + 6 + 8 * entries  # vring_size()
                if da != ANY:
                    refuse_if(da + length > 1 << 32, "vring[")  # stricter
                    places.append((da, length, f"vring vdev{vdevs[offset]}vring{i}"))
            end = offset + 28 + 20 * vrings + config
    for i, one in enumerate(places):  # stricter
        for other in places[:i]:
            apart = one[0] >= other[0] + other[1] or other[0] >= one[0] + one[1]
            refuse_if(not apart and not is_home(one, other), "overlaps")


def is_home(one: tuple[int, int, str], other: tuple[int, int, str]) -> bool:
    """Whether one of the two is the carveout that was made for the other, a vring."""
    for (da, length, what), (vring, size, name) in ((one, other), (other, one)):
        if what == name.replace("vring ", "carveout ", 1) and da <= vring and vring + size <= da + length:
            return True
    return False


# The corpus


TABLE = rsc.build(
    [
        rsc.Carveout(0x2000_0000, 0x8000, "ram", 1),
        rsc.Carveout(ANY, 0x100, "anywhere"),
        rsc.Carveout(0x3000_0000, 0x3000, "vdev0vring0"),
        rsc.Devmem(0x4000_0000, 0x4800_0000, 0x1000, "uart"),
        rsc.Trace(0x2000_0100, 0x400, "trace0"),
        rsc.Vdev((rsc.Vring(0x3000_0000, 0x1000, 256, 1), rsc.Vring(ANY, 16, 2, 2)), dfeatures=1, config=b"abcd"),
        rsc.Vendor(128, b"1234"),
        rsc.Unknown(99, b"12345678"),
        rsc.Vdev((rsc.Vring(0x5000_0000, 0x1000, 64), rsc.Vring(0x5001_0000, 0x1000, 64)), id=3),
    ]
)
LOADS = [
    Load(0x100, bytes(range(1, 65)), memsz=0x100),
    Load(0x200, memsz=0x10),
    Load(0x2000_0000, b"data", memsz=0x20, vaddr=0x3000_0000),
]


NAMES = b"\0.shstrtab\0.resource_table\0.resource_table2\0"  # as `build` writes them


def image(bits: int) -> bytes:
    return build(LOADS, bits=bits, table=TABLE)


Structure = list[tuple[int, int]]
"""Fields as (offset in the file, width)."""


def fields(start: int, layout: str) -> Structure:
    """The fields of a structure in the notation of module struct."""
    found, count = [], ""
    for letter in layout.lstrip("="):
        if letter.isdigit():
            count += letter
            continue
        width = {"I": 4, "H": 2, "Q": 8, "B": 1}.get(letter)
        for _ in range(int(count or 1) if width else 0):
            assert width is not None
            found.append((start, width))
            start += width
        if width is None:  # a string: its bytes are looked at one by one elsewhere
            start += int(count or 1)
        count = ""
    return found


def table_structures(start: int, table: bytes) -> Iterator[Structure]:
    num = word(table, 4)
    yield fields(start, f"{4 + num}I")
    layouts = {0: "6I", 1: "6I", 2: "4I"}
    for i in range(num):
        offset = word(table, 16 + 4 * i)
        kind = word(table, offset)
        if kind == 3:
            yield fields(start + offset, "6I4B")
            for ring in range(table[offset + 25]):
                yield fields(start + offset + 28 + 20 * ring, "5I")
        else:
            yield fields(start + offset, layouts.get(kind, "I"))


def structures(data: bytes) -> Iterator[Structure]:
    """Every structure of a well-formed image."""
    bits = 32 * data[4]
    header = dict(zip(EHDR_FIELDS, EHDR[bits].unpack_from(data), strict=True))
    yield fields(0, "16B")
    yield fields(0, EHDR[bits].format)
    for i in range(header["phnum"]):
        yield fields(header["phoff"] + i * PHDR[bits].size, PHDR[bits].format)
    for i in range(header["shnum"]):
        yield fields(header["shoff"] + i * SHDR[bits].size, SHDR[bits].format)
    table = Image(data).resource_table
    if table is not None:
        yield from table_structures(data.index(table[1]), table[1])


def extremes(data: bytes, structure: Structure, at: int, width: int) -> set[int]:
    """0, 1, the sign bit, the largest; every size in the file, and what the other fields of the structure, one or two
    of them multiplied, leave of those and of the address space; each of them and its neighbours."""
    top = 1 << 8 * width
    sizes = {len(data), len(TABLE), 1 << 32, 1 << 64}
    others = {word(data, other, size) for other, size in structure if other != at}
    middles = {0, 1, top // 2, word(data, at, width), *sizes, *(a - b for a in sizes for b in others)}
    if structure[0] == (16, 2):  # the ELF header: tables of so many entries of such a size
        middles |= {len(data) - a * b for a in others for b in others if a * b < len(data)}
    if width >= 4:
        start = data.find(TABLE)
        middles |= places_of_table() if 0 <= start <= at < start + len(TABLE) else places(data)
    return {(middle + step) % top for middle in middles for step in (-1, 0, 1)}


@functools.cache
def places(data: bytes) -> frozenset[int]:
    """Where anything begins and ends that the headers of the image speak of."""
    bits = 32 * data[4]
    found = {at for structure in structures(data) for at, _ in (structure[0], structure[-1])}
    found |= {end for s in Image(data).segments for end in (s.da, s.da + s.memsz, s.offset, s.offset + s.filesz)}
    names = data.find(NAMES)
    if names >= 0:  # .resource_table may be the last name
        found |= {NAMES.index(b".resource_table\0") + 16, len(NAMES)}
    return frozenset(found | {SHDR[bits].size, PHDR[bits].size})


@functools.cache
def places_of_table() -> frozenset[int]:
    """Where anything begins and ends that the table speaks of."""
    table = rsc.parse(TABLE)
    found = {end for c in (*table.carveouts, *table.traces) for end in (c.da, c.da + c.len)}
    found |= {end for v in table.vdevs for r in v.vrings for end in (r.da, r.da + r.size)}
    return frozenset(found | {entry.offset for entry in table.entries})


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def corpus(bits: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, image)"""
    for base, data in (("", image(bits)), ("without sections: ", build(LOADS, bits=bits, sections=False))):
        yield f"{base}nothing", data
        for structure in structures(data):
            for at, width in structure:
                for value in sorted(extremes(data, structure, at, width)):
                    what = f"{base}{width} bytes at {at:#x} are {value:#x}"
                    yield what, changed(data, at, value.to_bytes(width, sys.byteorder))


def compare(cases: Iterable[tuple[str, bytes]], machine: int | None = None) -> tuple[int, int]:
    """(accepted, refused); `Image` has said of each what the rules say, quickly."""
    accepted = refused = 0
    wrong = []
    for what, data in cases:
        began = time.perf_counter()
        try:
            found: Image | str = Image(data, "fw", expect_machine=machine)
        except FirmwareError as error:
            found = str(error)
        assert time.perf_counter() - began < 2.0, what
        try:
            expected = rules(data, machine)
        except Refused as rule:
            refused += 1
            if not isinstance(found, str) or str(rule) not in found:
                wrong.append(f"{what}: refused for {str(rule)!r}, but: {found}")
        else:
            accepted += 1
            if isinstance(found, str):
                wrong.append(f"{what}: accepted, but: {found}")
                continue
            if expected != ([(s.da, s.filesz, s.memsz, s.offset) for s in found.segments], found.resource_table):
                wrong.append(f"{what}: {expected}, but: {found.segments}, {found.resource_table}")
    assert not wrong, f"{len(wrong)} of {accepted + refused}:\n" + "\n".join(wrong[:20])
    return accepted, refused


@BITS
def test_every_field_at_its_extremes(bits: int) -> None:
    accepted, refused = compare(corpus(bits))
    assert accepted > 1000 and refused > 1000


@BITS
def test_every_truncation(bits: int) -> None:
    data = image(bits)
    assert len(data) < 4096
    assert compare((f"{size} bytes", data[:size]) for size in range(len(data) + 1)) == (1, len(data))
    # What no segment loads may be missing, down to the room for the section header that the kernel wants to be there.
    bare = build([*LOADS, Load(0, bytes(64), type=4)], bits=bits, sections=False)
    assert compare((f"{size} bytes", bare[:size]) for size in range(len(bare) + 1)) == (65, len(bare) - 64)


@pytest.mark.parametrize("name", firmware.NAMES)
def test_a_byte_beside_each_structure_of_the_shipped_images(name: str) -> None:
    data = Path(firmware.path(name)).read_bytes()
    found = Image(data)
    assert found.resource_table is not None
    edges = {edge for structure in structures(data) for at, width in structure for edge in (at, at + width)}
    edges |= {edge for s in found.segments for edge in (s.offset, s.offset + s.filesz)}
    edges |= {data.index(found.resource_table[1]) + len(found.resource_table[1]), len(data)}

    def cases() -> Iterator[tuple[str, bytes]]:
        for at in sorted({edge + step for edge in edges for step in (-1, 0, 1)} & {*range(len(data))}):
            yield f"{at:#x} bytes", data[:at]
            for byte in (0, 1, 0x7F, 0x80, 0xFF, data[at] - 1 & 0xFF, data[at] + 1 & 0xFF):
                yield f"byte at {at:#x} is {byte:#x}", changed(data, at, bytes((byte,)))

    accepted, refused = compare(cases(), EM_ARM)
    assert accepted > 100 and refused > 100


@BITS
def test_names_of_sections_and_of_machines(bits: int) -> None:
    data = image(bits)
    for name in range(len(NAMES) + 2):
        compare([(f"sh_name {name}", build(LOADS, bits=bits, table=TABLE, section={"name": name}))])
    machines = [build(LOADS, bits=bits, table=TABLE, header={"machine": machine}) for machine in (0, 40, 183, 0xFFFF)]
    assert compare((("machine", data) for data in machines), machine=40) == (1, 3)
    assert compare(("machine", data) for data in machines) == (4, 0)
    assert compare([("other byte order", changed(data, 5, b"\2" if sys.byteorder == "little" else b"\1"))]) == (0, 1)


@BITS
def test_no_verdict_takes_memory_by_what_a_header_says(bits: int) -> None:
    largest = len(image(bits)) * 8 + (1 << 18)
    for what, data in corpus(bits):
        if not what.endswith(("ff", "0000000")):
            continue
        tracemalloc.start()
        try:
            Image(data)
        except FirmwareError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < largest, what


# One verdict


def sample() -> list[tuple[str, bytes]]:
    """Of the shipped image: every field at its extremes, a hundred or so of those."""
    data = Path(firmware.path("sample")).read_bytes()
    cases = [
        (f"{at:#x} {value:#x}", changed(data, at, value.to_bytes(width, sys.byteorder)))
        for structure in structures(data)
        for at, width in structure
        for value in sorted(extremes(data, structure, at, width))
    ]
    return [("nothing", data), ("half", data[: len(data) // 2]), *cases[:: len(cases) // 150]]


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Why `rpmsgx info --json` refuses the file, or None."""
    parser = argparse.ArgumentParser("rpmsgx")
    info.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["info", "--json", str(path)])
    status = arguments.run(arguments)
    answer = json.loads(capsys.readouterr().out)
    assert (status == 0) == answer["ok"]
    reason: str | None = answer.get("error")
    return reason


def verdict(call: Callable[[], object]) -> str | None:
    try:
        call()
    except FirmwareError as error:
        return str(error)
    return None


def test_info_and_a_boot_give_the_same_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    path = tmp_path / "fw.elf"
    verdicts = set()
    with open_platform("unicorn") as platform:
        before = [bytes(region.view) for region in platform.space.regions]
        for what, data in sample():
            path.write_bytes(data)
            at_boot, in_info = verdict(lambda: platform.image(str(path))), shown(path, capsys)
            if at_boot is not None and "the platform runs ARM" in at_boot:
                assert in_info is None, what  # info knows of no platform
            else:
                assert at_boot == in_info, what
            verdicts.add(at_boot is None)
        assert [bytes(region.view) for region in platform.space.regions] == before
    assert verdicts == {True, False}


def test_a_boot_raises_what_info_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    path = tmp_path / "fw.elf"
    refused = []
    for _, data in sample():
        path.write_bytes(data)
        reason = shown(path, capsys)
        if reason is not None:
            refused.append((data, reason))
    for data, reason in refused[:: len(refused) // 6]:
        path.write_bytes(data)
        with Remoteproc("m4", platform="unicorn", firmware=str(path), auto_boot=False) as rproc:
            with pytest.raises(FirmwareError) as caught:
                rproc.boot()
        assert str(caught.value) == reason


def test_a_boards_memory_is_the_only_other_question() -> None:
    """What `Image` accepts is loaded, or is refused for want of granted memory, with nothing written."""
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    loaded = 0
    with open_platform("unicorn") as platform:
        for what, data in sample():
            try:
                found = Image(data, expect_machine=platform.machine)
            except FirmwareError:
                continue
            before = [bytes(region.view) for region in platform.space.regions]
            granted = verdict(lambda found=found: found.check_granted(platform.space)) is None  # type: ignore[misc]
            assert (verdict(lambda found=found: found.load(platform.space)) is None) == granted, what  # type: ignore[misc]
            loaded += granted
            if not granted:
                assert [bytes(region.view) for region in platform.space.regions] == before
            elif found.table is not None:
                try:
                    found.table.check_granted(platform.space)
                except ResourceError as error:
                    assert "in no granted region" in str(error)
    assert loaded > 10
