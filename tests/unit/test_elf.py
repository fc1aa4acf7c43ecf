"""Firmware images: what is accepted, what is refused and why, and loading."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from elfbuilder import EHDR as EHDR_STRUCT
from elfbuilder import EHDR_FIELDS, EM_AARCH64, EM_ARM, EM_X86_64, PHDR, Load, build
from hypothesis import given, settings
from hypothesis import strategies as st

from rpmsgx.errors import FirmwareError, ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.remoteproc.elf import MAX_SECTIONS, MAX_SEGMENTS, Image, Segment
from rpmsgx.virtio.table import build_vdev_table

TABLE = build_vdev_table()
CODE = bytes(range(1, 65))
LOADS = [Load(0x0, CODE, memsz=0x100), Load(0x2000_0000, b"data", memsz=0x20, vaddr=0x3000_0000, flags=6)]
BITS = pytest.mark.parametrize("bits", [32, 64])
NATIVE = 1 if sys.byteorder == "little" else 2


def image(bits: int = 32, **header: int) -> bytes:
    return build(LOADS, bits=bits, table=TABLE, header=header)


def refusal(data: bytes) -> str:
    with pytest.raises(FirmwareError) as info:
        Image(data, "fw.elf")
    assert str(info.value).startswith("fw.elf: ")
    return str(info.value)


def fields_of(data: bytes, bits: int) -> dict[str, int]:
    """The ELF header's fields by name."""
    return dict(zip(EHDR_FIELDS, EHDR_STRUCT[bits].unpack_from(data), strict=True))


# What an image says


@BITS
def test_an_image_tells_what_it_holds(bits: int) -> None:
    data = image(bits)
    fw = Image(data, "fw.elf")
    headers = EHDR_STRUCT[bits].size + 3 * PHDR[bits].size
    assert (fw.name, fw.size, fw.bits, fw.entry) == ("fw.elf", len(data), bits, 0)
    assert fw.sha256 == hashlib.sha256(data).hexdigest()
    assert (fw.machine, fw.machine_name) == ((40, "ARM") if bits == 32 else (183, "AArch64"))
    assert fw.segments == (
        Segment(0, 0, 64, 0x100, 5, headers),
        Segment(0x2000_0000, 0x3000_0000, 4, 0x20, 6, headers + 64),
        Segment(0x1000_0000, 0x1000_0000, 88, 88, 6, headers + 68),
    )
    assert fw.memory == ((0, 0x100), (0x1000_0000, 88), (0x2000_0000, 0x20))
    assert fw.resource_table == (0x1000_0000, TABLE)
    assert fw.table is not None and fw.table.vdevs[0].dfeatures == 1
    assert fw.warnings == ()


def test_neighbouring_segments_are_one_range_of_memory() -> None:
    fw = Image(build([Load(0x200, CODE, memsz=0x80), Load(0x100, CODE, memsz=0x100), Load(0x281, b"x")]))
    assert fw.memory == ((0x100, 0x180), (0x281, 1))


def test_the_tables_da_is_where_its_bytes_are_loaded() -> None:
    # Section .resource_table inside a larger segment, which runs elsewhere than it is loaded.
    offset = EHDR_STRUCT[32].size + 2 * PHDR[32].size
    loads = [Load(0x8000_0000, b"pad!" + TABLE + b"more", vaddr=0x100)]
    fw = Image(build(loads, table=TABLE, section={"offset": offset + 4}))
    assert fw.resource_table == (0x8000_0004, TABLE)


def test_a_table_that_no_segment_loads_has_no_da() -> None:
    data = build([Load(0, CODE)], table=TABLE)
    note = bytearray(data)
    note[52 + 32 : 52 + 36] = (4).to_bytes(4, sys.byteorder)  # its program header is no longer PT_LOAD
    fw = Image(bytes(note))
    assert fw.resource_table == (None, TABLE)
    assert any("lies in no loaded segment" in text for text in fw.warnings)


@BITS
def test_images_without_table_or_sections_are_fine(bits: int) -> None:
    assert Image(build(LOADS, bits=bits)).resource_table is None
    bare = Image(build(LOADS, bits=bits, sections=False))
    assert bare.resource_table is None and bare.table is None and len(bare.segments) == 2


def test_only_the_exact_name_is_the_table() -> None:
    for name in (0, 1, 12, 25, 27):  # none, .shstrtab, resource_table, e, .resource_table2
        assert Image(build(LOADS, table=TABLE, section={"name": name})).resource_table is None


def test_oddities_are_warnings() -> None:
    for field, value, text in (
        ("type", 4, "e_type is 4"),
        ("version", 0, "e_version is 0"),
        ("machine", 0, "e_machine is 0"),
        ("entry", 0x5000_0000, "e_entry 0x50000000 lies in no loaded segment"),
        ("entry", 0x100, "e_entry 0x100 lies in no loaded segment"),
    ):
        assert [text in warning for warning in Image(image(**{field: value})).warnings] == [True]
    for entry in (0xFF, 0x2000_0001, 0x3000_0001):  # in a segment's da or vaddr, Thumb bit and all
        assert Image(image(entry=entry)).warnings == ()
    empty = Image(build([Load(0, type=4, memsz=16), Load(0, memsz=0)]))
    assert empty.segments == () and "nothing to load" in empty.warnings[0]
    odd = Image(build(LOADS, table=build_vdev_table(vring_da=(0x4010, 0x8000))))
    assert "resource table: offset[0]: vdev: vring[0]: da 0x4010 is not a multiple" in odd.warnings[0]


# Refusals


@BITS
def test_every_truncation_is_refused(bits: int) -> None:
    data = image(bits)
    Image(data)
    for size in range(len(data)):
        refusal(data[:size])


@BITS
@pytest.mark.parametrize(
    ("field", "values", "reason"),
    [
        ("ehsize", (0, 1, "-1", "+1", 0xFFFF), "e_ehsize is"),
        ("phentsize", (0, 1, "-1", "+1", 0xFFFF), "e_phentsize is"),
        ("shentsize", (0, 1, "-1", "+1", 0xFFFF), "e_shentsize is"),
        ("phnum", (0, MAX_SEGMENTS + 1, 0xFFFE, 0xFFFF), "e_phnum is"),
        ("phnum", (MAX_SEGMENTS, 50), "program headers leave the file"),
        ("shnum", (MAX_SECTIONS + 1, 0xFFFF), "e_shnum is"),
        ("shnum", (MAX_SECTIONS, 4), "section headers leave the file"),
        ("shnum", (1,), "e_shstrndx is 1, but e_shnum is 1"),
        ("shstrndx", (3, 0xFFF1, 0xFFFF), "e_shstrndx is"),
        ("phoff", (1 << 31, (1 << 32) - 1, -1), "e_phoff is"),
        ("shoff", ("+1", 1 << 31, (1 << 32) - 1, -1), "e_shoff is"),
    ],
)
def test_header_fields_at_their_extremes(
    bits: int, field: str, values: tuple[int | str, ...], reason: str
) -> None:
    right = fields_of(image(bits), bits)[field]
    for value in values:
        # "+1" and "-1" stand beside the right value; 1 and -1 alone are the field's own extremes.
        number = right + int(value) if isinstance(value, str) else value % (1 << bits)
        assert reason in refusal(image(bits, **{field: number})), number


@BITS
def test_the_checks_come_in_the_kernels_order(bits: int) -> None:
    # Everything is broken at first; each step repairs what was named.
    good = image(bits)
    past, size = len(good) + 1, len(good)
    broken = {"shoff": past, "shnum": 0xFFFF, "shstrndx": 0xFFFF, "phnum": 0, "phoff": past}
    for ident, header, reason in (
        (b"\x7eELF\0\0", {}, "magic is 7e454c46"),
        (b"\x7fELF\0\0", {}, "EI_CLASS is 0"),
        (good[:5] + b"\0", {}, "EI_DATA is 0"),
        (good[:6], {}, f"e_shoff is {past:#x}, the file has {size:#x} bytes"),
        (good[:6], {"shoff": size}, f"e_shoff is {size:#x}, e_shnum is 65535: section headers leave the file"),
        (good[:6], {"shoff": size, "shnum": 0}, f"e_shoff is {size:#x}, e_shstrndx is 65535: the header of"),
        (good[:6], {"shoff": 0, "shnum": 0, "shstrndx": 0}, "e_phnum is 0: no loadable segments"),
        (good[:6], {"shoff": 0, "shnum": 0, "shstrndx": 0, "phnum": 1}, f"e_phoff is {past:#x}, the file has"),
    ):
        assert reason in refusal(ident + image(bits, **{**broken, **header})[6:])


@BITS
def test_all_header_fields_at_zero_one_max_and_beside(bits: int) -> None:
    data = image(bits)
    right = fields_of(data, bits)
    width = {"version": 32, "entry": bits, "phoff": bits, "shoff": bits, "flags": 32}
    for field in EHDR_FIELDS[1:]:
        top = (1 << width.get(field, 16)) - 1
        beside = {max(right[field] - 1, 0), min(right[field] + 1, top)}
        for value in sorted({0, 1, top - 1, top} | beside):
            try:
                fw = Image(image(bits, **{field: value}))
            except FirmwareError as exc:
                assert field not in ("type", "machine", "version", "entry", "flags"), exc
            else:
                assert fw.size == len(data)


def test_the_identification() -> None:
    data = image()
    for at, value, reason in (
        (0, 0x7E, "magic is 7e454c46"),
        (3, 0, "magic is 7f454c00"),
        (4, 0, "EI_CLASS is 0"),
        (4, 3, "EI_CLASS is 3"),
        (4, 255, "EI_CLASS is 255"),
        (5, 0, "EI_DATA is 0"),
        (5, 3 - NATIVE, "EI_DATA is"),
        (5, 255, "EI_DATA is 255"),
    ):
        assert reason in refusal(data[:at] + bytes((value,)) + data[at + 1 :])
    assert "size is 0" in refusal(b"")
    assert "size is 51, an ELF header has 52" in refusal(data[:51])
    assert "size is 63, an ELF64 header has 64" in refusal(image(64)[:63])


def test_ident_bytes_that_nobody_checks_change_nothing() -> None:
    data = image()
    for at in range(6, 16):
        for value in (1, 128, 255):
            assert len(Image(data[:at] + bytes((value,)) + data[at + 1 :]).segments) == 3


@BITS
@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (Load(0, CODE, memsz=63), "p_filesz 0x40 > p_memsz 0x3f"),
        (Load(0, CODE, memsz=0), "p_filesz 0x40 > p_memsz 0x0"),
        (Load(0, memsz=1 << 20, filesz=1 << 20), "leaves the file"),
        (Load(0, memsz=4, filesz=4, offset=0xFFFFFFFE), "leaves the file"),
        (Load(0, memsz=4, filesz=0, offset=0xFFFFFFFE), "leaves the file"),
        (Load(0x2000_001F, CODE), r"overlaps program header 0"),
        (
            Load(0x1FFF_FFC1, CODE),
            r"program header 0: p_paddr [0x20000000, 0x20000020) overlaps program header 1",
        ),
        (Load(0x1000_0000, memsz=0x4000_0000), "overlaps"),
    ],
)
def test_segments_that_cannot_be_loaded(bits: int, load: Load, reason: str) -> None:
    assert reason in refusal(build([Load(0x2000_0000, memsz=0x20), load], bits=bits))


def test_segments_that_wrap() -> None:
    assert "leaves 32 bits" in refusal(build([Load(0xFFFFFFF0, memsz=0x11)]))
    Image(build([Load(0xFFFFFFF0, memsz=0x10)]))
    assert "leaves 64 bits" in refusal(build([Load((1 << 64) - 16, memsz=17)], bits=64))
    assert "leaves 64 bits" in refusal(build([Load(2, memsz=(1 << 64) - 1)], bits=64))
    top = (1 << 64) - 1
    assert "> p_memsz" in refusal(build([Load(1, memsz=4, filesz=top)], bits=64))
    assert "leaves the file" in refusal(build([Load(0, memsz=top, filesz=top, offset=top)], bits=64))


def test_other_program_headers_are_not_looked_at() -> None:
    top = (1 << 32) - 1
    for kind in (0, 2, 3, 4, 6, 7, 0x6474E551, 0x70000001, top):
        assert (
            len(Image(build([*LOADS, Load(top, memsz=1, filesz=top, offset=top, type=kind)])).segments) == 2
        )


@BITS
@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"name": 44}, "sh_name is 0x2c, the names have 0x2c bytes"),
        ({"name": 0xFFFFFFFF}, "sh_name is 0xffffffff"),
        ({"offset": 0xFFFFFFFF}, "leaves the file"),
        ({"size": 0xFFFFFFFF}, "leaves the file"),
        ({"type": 8}, "sh_type is NOBITS"),
        ({"size": 0}, "resource table: size is 0"),
        ({"size": 15}, "resource table: size is 15"),
        ({"size": 87}, "resource table: offset[0]: vdev: num_of_vrings is 2"),
    ],
)
def test_the_tables_section(bits: int, section: dict[str, int], reason: str) -> None:
    assert reason in refusal(build(LOADS, bits=bits, table=TABLE, section=section))


def test_the_names_must_lie_in_the_file() -> None:
    data = bytearray(image())
    size_at = len(data) - 2 * 40 + 20  # sh_size of .shstrtab, the last but one
    data[size_at : size_at + 4] = (1 << 31).to_bytes(4, sys.byteorder)
    assert "section 1 (names)" in refusal(bytes(data))


def test_a_bad_table_makes_a_bad_image() -> None:
    assert "resource table: ver is 2" in refusal(build(LOADS, table=(2).to_bytes(4, sys.byteorder) + TABLE[4:]))


def test_machines_are_told_apart() -> None:
    Image(image(), expect_machine=EM_ARM)
    for machine, bits, expected, reason in (
        (EM_X86_64, 64, EM_ARM, "this is an x86-64 image, the platform runs ARM"),
        (243, 32, EM_AARCH64, "this is a RISC-V image, the platform runs AArch64"),
        (EM_ARM, 32, 243, "this is an ARM image, the platform runs RISC-V"),
        (0, 32, EM_ARM, "e_machine is 0: this is a machine 0 image, the platform runs ARM"),
    ):
        with pytest.raises(FirmwareError, match=reason):
            Image(image(bits, machine=machine), expect_machine=expected)


def test_any_kind_of_buffer_is_copied() -> None:
    data = bytearray(image())
    fw = Image(data)
    data[:] = bytes(len(data))
    assert fw.data == image() and Image(memoryview(image())).sha256 == fw.sha256


def test_the_largest_tables_are_read_and_bounded() -> None:
    loads = [Load(16 * index, memsz=16) for index in range(MAX_SEGMENTS)]
    fw = Image(build(loads))
    assert len(fw.segments) == MAX_SEGMENTS and fw.memory == ((0, 16 * MAX_SEGMENTS),)
    data = build(
        [Load(0, bytes(MAX_SECTIONS * 40))], header={"shnum": MAX_SECTIONS, "shoff": 84, "shstrndx": 0}
    )
    assert Image(data).resource_table is None


BASE = {bits: build(LOADS, bits=bits, table=TABLE) for bits in (32, 64)}


@given(
    bits=st.sampled_from((32, 64)),
    changes=st.lists(
        st.tuples(
            st.integers(0, 1 << 16),
            st.sampled_from((b"\0", b"\1", b"\xff", b"\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\0" * 8))
            | st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=5,
    ),
)
@settings(max_examples=600, deadline=None)
def test_mutations_raise_nothing_but_firmware_errors(bits: int, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(BASE[bits])
    for at, value in changes:
        at %= len(data) - len(value)
        data[at : at + len(value)] = value
    try:
        fw = Image(bytes(data))
    except FirmwareError:
        return
    for segment in fw.segments:
        assert segment.offset + segment.filesz <= fw.size and segment.filesz <= segment.memsz
    if fw.resource_table:
        assert fw.resource_table[1] in bytes(data)


@given(data=st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_firmware_errors(data: bytes) -> None:
    for head in (b"", b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x01\x01"):
        try:
            Image(head + data)
        except FirmwareError:
            pass


# Files


def test_open_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "echo.elf"
    path.write_bytes(image())
    fw = Image.open(path)
    assert fw.name == "echo.elf" and fw.data == image()
    path.write_bytes(b"")
    with pytest.raises(FirmwareError, match=r"echo\.elf: size is 0"):
        Image.open(path)


def test_open_refuses_what_is_no_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "fifo")
    for name in ("", "fifo"):
        with pytest.raises(FirmwareError, match="not a regular file"):
            Image.open(tmp_path / name)
    with pytest.raises(FirmwareError, match="not a regular file"):
        Image.open("/dev/zero")
    with pytest.raises(FileNotFoundError):
        Image.open(tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before


def test_open_bounds_the_size(tmp_path: Path) -> None:
    path = tmp_path / "big.elf"
    with open(path, "wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(FirmwareError, match="size is 1073741825, the limit is 1073741824"):
        Image.open(path)
    path.write_bytes(image())
    Image.open(path, limit=len(image()))
    with pytest.raises(FirmwareError, match="the limit is"):
        Image.open(path, limit=len(image()) - 1)


# Loading


@pytest.mark.parametrize("kind", ["cached", "device"])
def test_load_copies_and_clears(kind: str) -> None:
    # Odd addresses and sizes, so that a device memory's words are met at every offset.
    loads = [Load(0x101, CODE, memsz=0x47), Load(0x203, memsz=5), Load(0x301, b"abc")]
    space = AddressSpace(Region("ram", bytearray(b"\xee" * 0x400), da=0, kind=kind))  # type: ignore[arg-type]
    steps: list[tuple[int, int]] = []
    Image(build(loads)).load(space, progress=lambda done, total: steps.append((done, total)))
    expected = bytearray(b"\xee" * 0x400)
    expected[0x101:0x148] = CODE + bytes(7)
    expected[0x203:0x208] = bytes(5)
    expected[0x301:0x304] = b"abc"
    assert space.read(0, 0x400) == expected
    assert steps == [(0x47, 0x4F), (0x4C, 0x4F), (0x4F, 0x4F)]


@pytest.mark.parametrize("da", [0x3FFC, 0x4000, 0x2_0000, 0x0FFF])
def test_nothing_is_written_if_one_segment_has_no_memory(da: int) -> None:
    space = AddressSpace(Region("ram", bytearray(b"\xee" * 0x3000), da=0x1000))
    with pytest.raises(
        FirmwareError, match=r"fw: segment 1: da .* granted: 'ram' \[0x1000, 0x4000\)"
    ) as info:
        Image(build([Load(0x2000, CODE), Load(da, b"12345")]), "fw").load(space)
    assert isinstance(info.value.__cause__, ResourceError)
    assert space.read(0x1000, 0x3000) == b"\xee" * 0x3000


def test_four_gigabytes_are_refused_without_allocating_them() -> None:
    import tracemalloc

    space = AddressSpace(Region("ram", bytearray(0x1000)))
    for bits, memsz in ((32, (1 << 32) - 1), (64, 1 << 32), (64, (1 << 64) - 1)):
        fw = Image(build([Load(0, CODE, memsz=memsz)], bits=bits))
        assert fw.memory == ((0, memsz),)
        tracemalloc.start()
        try:
            with pytest.raises(FirmwareError, match="in no granted region"):
                fw.load(space)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.skipif(sys.byteorder != "little", reason="Cortex-M firmware is little endian")
def test_images_are_read_without_elftools() -> None:
    code = (
        "import sys; from rpmsgx import firmware; from rpmsgx.remoteproc.elf import Image\n"
        "Image.open(firmware.path('sample')); sys.exit('elftools' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# Real linkers


SOURCE = """
typedef unsigned u32;
__attribute__((section(".resource_table"), used, aligned(4)))
const u32 table[] = { 1, 1, 0, 0, 20, 3, 7, 0, 1, 0, 0, 0x200,
                      0x4000, 0x1000, 256, 1, 0, 0x8000, 0x1000, 256, 2, 0 };
int zeroed[1000];
int filled = 42;
void _start(void) { for (;;) zeroed[filled & 7]++; }
"""


def compiled(tmp_path: Path, compiler: list[str]) -> Path:
    source, out = tmp_path / "fw.c", tmp_path / "fw.elf"
    source.write_text(SOURCE)
    options = ["-O1", "-ffreestanding", "-nostdlib", "-static", "-Wl,--no-gc-sections"]
    command = [*compiler, *options, "-o", str(out), str(source)]
    try:
        done = subprocess.run(command, timeout=240, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"{compiler[0]} is not installed")
    if done.returncode and "No module named ziglang" in done.stderr:
        pytest.skip("ziglang is not installed")
    assert done.returncode == 0, done.stderr
    return out


def agrees_with_elftools(path: Path) -> Image:
    """The image, after a comparison with what pyelftools' own classes read from the same file."""
    from elftools.elf.elffile import ELFFile

    fw = Image.open(path)
    with open(path, "rb") as file:
        elf = ELFFile(file)
        loads = [segment for segment in elf.iter_segments("PT_LOAD") if segment["p_memsz"]]
        assert [segment["p_paddr"] for segment in loads] == [segment.da for segment in fw.segments]
        section = elf.get_section_by_name(".resource_table")
        assert section is not None and fw.resource_table == (section["sh_addr"], section.data())
        space = AddressSpace(
            *(Region(str(index), bytearray(size), da=da) for index, (da, size) in enumerate(fw.memory))
        )
        fw.load(space)
        for segment in loads:
            content = segment.data() + bytes(segment["p_memsz"] - segment["p_filesz"])
            assert space.read(segment["p_paddr"], segment["p_memsz"]) == content
    assert fw.table is not None and fw.table.data == TABLE
    assert fw.warnings == ()
    return fw


@pytest.mark.skipif(sys.byteorder != "little", reason="the table of the source is little endian")
def test_an_image_from_gcc(tmp_path: Path) -> None:
    fw = agrees_with_elftools(compiled(tmp_path, ["gcc", "-no-pie"]))
    assert all(segment.da == segment.vaddr for segment in fw.segments)


@pytest.mark.skipif(sys.byteorder != "little", reason="Cortex-M firmware is little endian")
def test_an_image_for_a_cortex_m4(tmp_path: Path) -> None:
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4"]
    fw = agrees_with_elftools(compiled(tmp_path, zig))
    assert (fw.bits, fw.machine_name) == (32, "ARM")
    with pytest.raises(FirmwareError, match="this is an ARM image, the platform runs RISC-V"):
        Image.open(tmp_path / "fw.elf", expect_machine=243)
