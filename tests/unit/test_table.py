"""The resource table: format, checks, and access in place."""

from __future__ import annotations

import mmap
import os
import random
import select
import struct
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.virtio.table import (
    ADDR_ANY,
    LAYOUTS,
    MAX_VRING_NUM,
    ByteOrder,
    Carveout,
    Devmem,
    Entry,
    ResourceTable,
    Trace,
    Unknown,
    Vdev,
    VdevView,
    Vendor,
    Vring,
    build,
    build_vdev_table,
    parse,
    vring_size,
)

ORDERS: tuple[ByteOrder, ...] = ("little", "big")
FOREIGN: ByteOrder = "big" if sys.byteorder == "little" else "little"

# What OpenAMP's generic machine writes at the start of its shared memory.
OPENAMP = bytes.fromhex(
    "01000000 01000000 00000000 00000000 14000000"  # ver, num, reserved, offset
    "03000000 07000000 00000000 01000000 00000000"  # vdev: type, id, notifyid, dfeatures, gfeatures
    "00000000 00020000"  # config_len; status, num_of_vrings, reserved
    "00400000 00100000 00010000 01000000 00000000"  # vring 0: da, align, num, notifyid, pa
    "00800000 00100000 00010000 02000000 00000000"  # vring 1
)


def words(*values: int, order: ByteOrder = "little") -> bytes:
    return b"".join(value.to_bytes(4, order) for value in values)


def patched(data: bytes, at: int, value: int, size: int = 4) -> bytes:
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def test_the_default_table_is_openamps() -> None:
    assert build_vdev_table(byteorder="little") == OPENAMP
    assert len(OPENAMP) == 88


def test_parse_tells_what_openamp_wrote() -> None:
    table = parse(OPENAMP, byteorder="little")
    assert table.entries == (
        Vdev((Vring(0x4000, 0x1000, 256, 1), Vring(0x8000, 0x1000, 256, 2)), 7, 0, 1, 0, 0, b"", 0x14),
    )
    assert table.warnings == () and table.data == OPENAMP
    assert [vring.size for vring in table.vdevs[0].vrings] == [0x2806, 0x2806]


@pytest.mark.parametrize("order", ORDERS)
def test_every_kind_of_entry_survives_the_wire(order: ByteOrder) -> None:
    entries: list[Entry] = [
        Carveout(0x1000_0000, 0x8000, "text", 3, 0x2000_0000),
        Carveout(ADDR_ANY, 0x100, "a name of 31 bytes, no more fit"),
        Devmem(0x4000_0000, 0x4800_0000, 0x1000, "uart", 7),
        Trace(0x1000_1000, 0x400, "trace0"),
        Trace(ADDR_ANY, 0x400, "trace1"),
        Vdev((Vring(ADDR_ANY, 0x1000, 16, 5, 6), Vring(ADDR_ANY, 16, 1)), 7, 9, 1, 2, 4, b"config!!"),
        Vendor(128, b"\x01\x02\x03\x04"),
        Unknown(4, b"abcdefgh"),
    ]
    data = build(entries, byteorder=order)
    table = parse(data, byteorder=order)
    assert [entry._replace(offset=0) for entry in table.entries] == entries
    for entry in table.entries:
        kind = int.from_bytes(data[entry.offset : entry.offset + 4], order)
        assert kind == getattr(
            entry, "type", {"Carveout": 0, "Devmem": 1, "Trace": 2, "Vdev": 3}.get(type(entry).__name__)
        )
    assert table.warnings == ("offset[7]: unknown type 4",)
    assert (len(table.carveouts), len(table.traces), len(table.vdevs)) == (2, 2, 1)


def test_the_kernels_offsets() -> None:
    # include/linux/remoteproc.h, field by field, as the bytes of each entry.
    name = b"n".ljust(32, b"\0")
    assert build([Carveout(1, 2, "n", 3, 4)], byteorder="little")[20:] == words(0, 1, 4, 2, 3, 0) + name
    assert build([Devmem(1, 2, 3, "n", 4)], byteorder="little")[20:] == words(1, 1, 2, 3, 4, 0) + name
    assert build([Trace(1, 2, "n")], byteorder="little")[20:] == words(2, 1, 2, 0) + name
    vdev = Vdev((Vring(16, 32, 64, 1, 2),), 3, 4, 5, 6, 7, b"\xaa\xbb")
    assert (
        build([vdev], byteorder="little")[20:]
        == words(3, 3, 4, 5, 6, 2) + bytes((7, 1, 0, 0)) + words(16, 32, 64, 1, 2) + b"\xaa\xbb\0\0"
    )


@pytest.mark.parametrize(
    ("num", "align", "size"), [(256, 0x1000, 0x2806), (1, 1, 38), (2, 4096, 4118), (32768, 4, 851_982)]
)
def test_vring_size(num: int, align: int, size: int) -> None:
    # As vring_init() lays it out: descriptors, flags, idx, ring, used_event; aligned; flags, idx, ring,
    # avail_event.
    available = 16 * num + 2 + 2 + 2 * num + 2
    assert vring_size(num, align) == available + -available % align + 2 + 2 + 8 * num + 2
    assert vring_size(num, align) == size


def test_an_empty_table_is_fine() -> None:
    table = parse(words(1, 0, 0, 0), byteorder="little")
    assert table.entries == () and build([], byteorder="little") == words(1, 0, 0, 0)


# Refusals: the words that the message must hold, then the bytes.

CARVEOUT = build([Carveout(0x1000, 0x100, "c")], byteorder="little")
DEVMEM = build([Devmem(0x1000, 0x1000, 0x100, "d")], byteorder="little")
TRACE = build([Trace(0x1000, 0x100, "t")], byteorder="little")
REFUSED: list[tuple[str, bytes]] = [
    ("size is 0", b""),
    ("size is 15", OPENAMP[:15]),
    ("ver is 0, not 1", patched(OPENAMP, 0, 0)),
    ("ver is 2, not 1", patched(OPENAMP, 0, 2)),
    ("num is 4294967295, but 88 bytes have room for 18", patched(OPENAMP, 4, 0xFFFFFFFF)),
    ("num is 19, but 88 bytes have room for 18", patched(OPENAMP, 4, 19)),
    ("reserved is 0x1, 0x0", patched(OPENAMP, 8, 1)),
    ("reserved is 0x0, 0x80000000", patched(OPENAMP, 12, 0x80000000)),
    (r"offset\[0\] is 0x0, not between 0x10 and 0x54", patched(OPENAMP, 16, 0)),
    (r"offset\[0\] is 0xf, not between", patched(OPENAMP, 16, 15)),
    (r"offset\[0\] is 0x10, inside the table's header", patched(OPENAMP, 16, 16)),
    (r"offset\[0\] is 0x55, not between", patched(OPENAMP, 16, 0x55)),
    (r"offset\[0\] is 0xffffffff, not between", patched(OPENAMP, 16, 0xFFFFFFFF)),
    ("vdev at 0x54 needs 28 bytes, the table ends after 4", patched(patched(OPENAMP, 16, 0x54), 0x54, 3)),
    ("reserved is 0x1, 0x0", patched(OPENAMP, 0x2E, 1, 1)),
    ("reserved is 0x0, 0xff", patched(OPENAMP, 0x2F, 255, 1)),
    ("num_of_vrings is 3, the limit is 2", patched(OPENAMP, 0x2D, 3, 1)),
    ("num_of_vrings is 255, the limit is 2", patched(OPENAMP, 0x2D, 255, 1)),
    ("num_of_vrings is 2, but the table ends", OPENAMP[:-1]),
    ("config_len is 0x1, the table has 0x0 bytes left", patched(OPENAMP, 0x28, 1)),
    ("config_len is 0xffffffff", patched(OPENAMP, 0x28, 0xFFFFFFFF)),
    ("config_len is 0xffffffd8", patched(OPENAMP, 0x28, 0x100000000 - 40)),
    (r"vring\[0\]: num is 0, not a power of two from 1 to 32768", patched(OPENAMP, 0x38, 0)),
    (r"vring\[1\]: num is 3, not", patched(OPENAMP, 0x4C, 3)),
    (r"vring\[0\]: num is 65536, not", patched(OPENAMP, 0x38, 65536)),
    (r"vring\[0\]: num is 4294967295, not", patched(OPENAMP, 0x38, 0xFFFFFFFF)),
    (r"vring\[0\]: align is 0, not a power of two", patched(OPENAMP, 0x34, 0)),
    (r"vring\[1\]: align is 4095, not", patched(OPENAMP, 0x48, 4095)),
    (r"vring\[0\]: da 0xffffe000 \+ 0x2806 bytes leaves 32 bits", patched(OPENAMP, 0x30, 0xFFFFE000)),
    (r"'vdev0vring1' \[0x6000, 0x8806\) overlaps vring 'vdev0vring0'", patched(OPENAMP, 0x44, 0x6000)),
    ("overlaps vring", patched(OPENAMP, 0x44, 0x4000)),
    ("carveout 'c': reserved is 0x1", patched(CARVEOUT, 40, 1)),
    (r"carveout 'c': da 0xffffff01 \+ 0x100", patched(CARVEOUT, 24, 0xFFFFFF01)),
    ("carveout at 0x14 needs 56 bytes, the table ends after 55", CARVEOUT[:-1]),
    ("devmem 'd': reserved is 0x10", patched(DEVMEM, 40, 16)),
    ("devmem 'd': da 0xffffffff", patched(DEVMEM, 24, 0xFFFFFFFF)),
    ("devmem 'd': pa 0xffffffff", patched(DEVMEM, 28, 0xFFFFFFFF)),
    ("devmem at 0x14 needs", DEVMEM[:-1]),
    ("trace 't': reserved is 0x1", patched(TRACE, 32, 1)),
    ("trace 't': da 0xffffff01", patched(TRACE, 24, 0xFFFFFF01)),
    ("trace at 0x14 needs", TRACE[:-1]),
    (
        r"offset\[1\] is 0x18, inside the entry of offset\[0\], which ends at 0x50",
        words(1, 2, 0, 0, 0x18, 0x18) + CARVEOUT[20:],
    ),
    (
        r"offset\[0\] is 0x4f, inside the entry of offset\[1\], which ends at 0x50",
        words(1, 2, 0, 0, 0x4F, 0x18) + CARVEOUT[20:] + bytes(4),
    ),
    (
        r"offset\[0\] is 0x4c, inside the entry of offset\[1\], which ends at 0x50",
        words(1, 2, 0, 0, 0x4C, 0x18) + CARVEOUT[20:],
    ),
]


@pytest.mark.parametrize(("reason", "data"), REFUSED)
def test_refused_with_field_value_and_limit(reason: str, data: bytes) -> None:
    with pytest.raises(ResourceError, match=reason):
        parse(data, byteorder="little")


def test_the_neighbours_of_the_refused_are_accepted() -> None:
    for at, value in (
        (0x38, 1),
        (0x38, 128),
        (0x34, 1),
        (0x34, 0x2000),
        (0x30, 0x4000 - 6),
        (0x44, 0x4000 + 0x2806),
        (0x44, 0x10000 - 0x2806),
        (0x30, 0xFFFFD000),
        (0x30, ADDR_ANY),
        (0x28, 0),
    ):
        parse(patched(OPENAMP, at, value), byteorder="little")
    big = build_vdev_table(num=MAX_VRING_NUM, vring_da=(0, 0x1000_0000), byteorder="little")
    assert parse(big, byteorder="little").vdevs[0].vrings[0].num == 32768
    parse(patched(CARVEOUT, 24, 0xFFFFFF00), byteorder="little")
    parse(patched(CARVEOUT, 24, ADDR_ANY), byteorder="little")


def test_every_truncation_is_refused() -> None:
    entries: list[Entry] = [
        Carveout(0x1000, 0x100, "c"),
        Trace(0x1000, 8, "t"),
        *parse(OPENAMP, byteorder="little").entries,
    ]
    data = build(entries, byteorder="little")
    for size in range(len(data)):
        with pytest.raises(ResourceError):
            parse(data[:size], byteorder="little")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Carveout(0x1000, 0x100, "a"), Carveout(0x10FF, 1, "b")),
        (Carveout(0x1000, 0x100, "a"), Devmem(0x1000, 0x8000, 0x10, "b")),
        (Carveout(0x0, 0x1000_0000, "a"), Vdev((Vring(0x100, 4, 4),))),
        (Vdev((Vring(0x100, 4, 4),)), Vdev((Vring(0x100 + vring_size(4, 4) - 1, 4, 4),))),
        # The vring's own carveout, but too small for it, or beginning after it.
        (Carveout(0x1000, vring_size(4, 4) - 1, "vdev0vring0"), Vdev((Vring(0x1000, 4, 4),))),
        (Carveout(0x1001, 0x1000, "vdev0vring0"), Vdev((Vring(0x1000, 4, 4),))),
        # A carveout of the other vring's name.
        (Carveout(0x1000, 0x1000, "vdev0vring1"), Vdev((Vring(0x1000, 4, 4), Vring(ADDR_ANY, 4, 4)))),
    ],
)
def test_overlapping_da_ranges_are_refused(first: Entry, second: Entry) -> None:
    for entries in ([first, second], [second, first]):
        with pytest.raises(ResourceError, match="overlaps"):
            build(entries)


def test_a_vring_in_its_carveout_does_not_hide_the_rest_of_the_carveout() -> None:
    for other in (Carveout(0x5000, 0x100, "b"), Vdev((Vring(0x5000, 4, 4),))):
        with pytest.raises(ResourceError, match=r"overlaps carveout 'vdev0vring0' \[0x1000, 0x9000\)"):
            build([Carveout(0x1000, 0x8000, "vdev0vring0"), Vdev((Vring(0x2000, 4, 4),)), other])


def test_what_may_share_a_place() -> None:
    ring = Vdev((Vring(0x1000, 4, 4), Vring(0x3000, 4, 4)))
    build([Carveout(0x1000, 0x1000, "vdev0vring0"), Carveout(0x3000, 0x1000, "vdev0vring1"), ring])
    build([Carveout(0x1000, 0x1000, "ram"), Trace(0x1000, 0x100, "inside")])
    build([Carveout(ADDR_ANY, 0x1000, "a"), Carveout(ADDR_ANY, 0x1000, "b")])
    build([Carveout(0x1000, 0x100, "a"), Carveout(0x1100, 0x100, "b")])
    # The second vdev's rings are vdev1's.
    build([Vdev(()), Carveout(0x1000, 0x1000, "vdev1vring0"), Vdev((Vring(0x1000, 4, 4),))])


def test_two_carveouts_of_one_name_are_refused() -> None:
    with pytest.raises(ResourceError, match="two carveouts have the name 'ram'"):
        build([Carveout(ADDR_ANY, 1, "ram"), Carveout(ADDR_ANY, 2, "ram")])


def test_oddities_are_warnings() -> None:
    one = parse(patched(OPENAMP, 0x2D, 1, 1), byteorder="little")
    assert "num_of_vrings is 1, rpmsg needs 2" in one.warnings[0]
    assert "not a multiple of align" in parse(patched(OPENAMP, 0x30, 0x4010), byteorder="little").warnings[0]
    assert "len is 0" in parse(patched(CARVEOUT, 32, 0), byteorder="little").warnings[0]
    shifted = words(1, 1, 0, 0, 21) + b"\0" + CARVEOUT[20:]
    table = parse(shifted, byteorder="little")
    assert "not a multiple of 4" in table.warnings[0]
    assert table.carveouts[0].offset == 21 and table.carveouts[0].name == "c"


@pytest.mark.parametrize(
    ("kind", "vendor"),
    [(4, False), (127, False), (128, True), (512, True), (513, False), (0xFFFFFFFF, False)],
)
def test_types_that_nobody_defined_are_kept(kind: int, vendor: bool) -> None:
    data = words(1, 2, 0, 0, 0x24, 0x18, kind, 11, 22, kind, 33)
    table = parse(data, byteorder="little")
    expected: Any = Vendor if vendor else Unknown
    assert table.entries == (expected(kind, words(33), 0x24), expected(kind, words(11, 22), 0x18))
    assert len(table.warnings) == (0 if vendor else 2)


def test_the_number_of_entries_is_bounded() -> None:
    def table(num: int) -> bytes:
        start = 16 + 4 * num
        return words(1, num, 0, 0, *(start + 4 * index for index in range(num)), *[200] * num)

    assert len(parse(table(1024), byteorder="little").entries) == 1024
    with pytest.raises(ResourceError, match="num is 1025, the limit is 1024"):
        parse(table(1025), byteorder="little")
    with pytest.raises(ResourceError, match="num is 3, the limit is 2"):
        parse(table(3), byteorder="little", max_entries=2)


def test_names_are_cut_at_the_first_nul_and_need_none() -> None:
    raw = bytearray(CARVEOUT)
    raw[-32:] = b"ab\0" + b"\xff" * 29
    assert parse(raw, byteorder="little").carveouts[0].name == "ab"
    raw[-32:] = b"x" * 32
    assert parse(raw, byteorder="little").carveouts[0].name == "x" * 32
    raw[-32:] = b"\xff\xfe".ljust(32, b"\0")
    assert parse(raw, byteorder="little").carveouts[0].name == "\\xff\\xfe"


def test_parse_keeps_no_hold_on_the_memory() -> None:
    memory = bytearray(OPENAMP)
    table = parse(memoryview(memory), byteorder="little")
    memory[:] = bytes(88)
    memory.clear()  # would raise BufferError with a view alive
    assert table.data == OPENAMP


def test_build_refuses_what_does_not_fit() -> None:
    for entry, reason in (
        (Carveout(1 << 32, 1, "c"), "Carveout"),
        (Trace(-1, 1, "c"), "Trace"),
        (Carveout(1, 1, "x" * 32), "longer than 31"),
        (Carveout(1, 1, "x\0y"), "NUL"),
        (Vdev((), status=256), "Vdev"),
        (Vdev((Vring(0, 4, 3),)), "num is 3"),
        (Vdev((Vring(0, 4, 4),) * 256), "Vdev"),
    ):
        with pytest.raises(ResourceError, match=reason):
            build([entry])
    with pytest.raises(ResourceError, match="notifyids"):
        build_vdev_table(notifyids=(1,))


def test_granted_memory_is_checked() -> None:
    def space(*ranges: tuple[int, int]) -> AddressSpace:
        return AddressSpace(*(Region(f"r{da:x}", bytearray(size), da=da) for da, size in ranges))

    table = parse(OPENAMP, byteorder="little")
    table.check_granted(space((0, 0x10000)))
    table.check_granted(space((0x4000, 0x2806), (0x8000, 0x2806)))
    with pytest.raises(ResourceError, match=r"vring 'vdev0vring1'.*granted: 'r4000' \[0x4000, 0x8000\)"):
        table.check_granted(space((0x4000, 0x4000)))
    with pytest.raises(ResourceError, match="vring 'vdev0vring0'"):
        table.check_granted(space((0x4000, 0x2805), (0x8000, 0x2806)))
    other = parse(
        build(
            [
                Carveout(0x100, 0x10, "c"),
                Trace(0x100, 8, "t"),
                Devmem(0x9000, 0, 8, "d"),
                Carveout(ADDR_ANY, 8, "any"),
            ]
        )
    )
    other.check_granted(space((0x100, 0x10)))
    with pytest.raises(ResourceError, match="carveout 'c'"):
        other.check_granted(space((0x100, 0xF)))
    with pytest.raises(ResourceError, match="trace 't'"):
        parse(build([Trace(0x100, 8, "t")])).check_granted(space((0, 0x107)))
    parse(build([Trace(ADDR_ANY, 8, "t")])).check_granted(space())


# Fuzz

RICH = build(
    [
        Carveout(0x1000, 0x100, "c"),
        Devmem(0x8000, 0x1000, 0x100, "d"),
        Trace(0x1000, 0x10, "t"),
        Vdev((Vring(0x10000, 0x1000, 16, 1), Vring(0x20000, 0x1000, 16, 2)), config=b"12345678"),
        Vendor(300, b"abcd"),
        Unknown(77, b"efgh"),
    ],
    byteorder="little",
)
EXTREMES = (0, 1, 2, 3, 4, 15, 16, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFE, 0xFFFFFFFF)


def check(data: bytes) -> ResourceTable | None:
    """Parse; whatever comes out keeps the promises that callers build on."""
    try:
        table = parse(data, byteorder="little")
    except ResourceError:
        return None
    for entry in table.entries:
        assert 16 <= entry.offset <= len(data) - 4
    for vdev in table.vdevs:
        assert len(vdev.vrings) <= 2
        for vring in vdev.vrings:
            assert 1 <= vring.num <= 32768 and vring.num.bit_count() == 1 and vring.align.bit_count() == 1
            assert vring.da == ADDR_ANY or vring.da + vring.size <= 1 << 32
    return table


@given(data=st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_raise_nothing_but_resource_errors(data: bytes) -> None:
    check(data)
    check(words(1, len(data) % 5, 0, 0) + data)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(RICH) - 4), st.sampled_from(EXTREMES) | st.integers(0, 0xFFFFFFFF)),
        max_size=4,
    ),
    cut=st.integers(0, len(RICH)),
)
@example(changes=[], cut=0)
@settings(max_examples=500)
def test_mutations_raise_nothing_but_resource_errors(changes: list[tuple[int, int]], cut: int) -> None:
    data = RICH
    for at, value in changes:
        data = patched(data, at & ~3, value)
        data = patched(data, at, value & 0xFF, 1)
    check(data)
    check(data[: len(data) - cut])


def test_every_word_at_every_extreme() -> None:
    accepted = sum(
        check(patched(RICH, at, value)) is not None for at in range(0, len(RICH), 4) for value in EXTREMES
    )
    assert 0 < accepted < len(RICH) // 4 * len(EXTREMES)


def test_many_entries_at_one_place_cost_no_memory() -> None:
    import tracemalloc

    num = 1024
    data = bytearray(
        words(1, num, 0, 0, *[16 + 4 * num] * num) + words(3, 7, 0, 0, 0, 1 << 20, 0) + bytes(1 << 20)
    )
    tracemalloc.start()
    try:
        with pytest.raises(ResourceError, match="inside the entry"):
            parse(data, byteorder="little")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# Access in place


@pytest.mark.parametrize("order", ORDERS)
def test_the_view_reads_and_writes_single_fields(order: ByteOrder) -> None:
    memory = bytearray(b"\xee" * 8) + build_vdev_table(byteorder=order, config=b"12345678") + b"\xee" * 8
    vdev = VdevView(memory, 8 + 0x14, byteorder=order)
    assert (vdev.id, vdev.notifyid, vdev.dfeatures, vdev.gfeatures, vdev.status) == (7, 0, 1, 0, 0)
    assert (vdev.num_of_vrings, vdev.config_len, bytes(vdev.config)) == (2, 8, b"12345678")
    ring = vdev.vring(1)
    assert (ring.da, ring.align, ring.num, ring.notifyid, ring.pa) == (0x8000, 0x1000, 256, 2, 0)

    def written(target: Any, field: str, value: int) -> list[int]:
        before = bytes(memory)
        setattr(target, field, value)
        assert getattr(target, field) == value
        return [at - 8 for at in range(len(memory)) if memory[at] != before[at]]

    value = 0xA1B2C3D4
    for field, at in (("notifyid", 0x1C), ("dfeatures", 0x20), ("gfeatures", 0x24)):
        assert written(vdev, field, value) == [at, at + 1, at + 2, at + 3]
        assert memory[at + 8 : at + 12] == value.to_bytes(4, order)
    assert written(vdev, "status", 0xFF) == [0x2C]
    for index in range(2):
        for step, field in enumerate(("da", "align", "num", "notifyid", "pa")):
            at = 0x30 + 20 * index + 4 * step
            assert written(vdev.vring(index), field, value) == [at, at + 1, at + 2, at + 3]
            assert memory[at + 8 : at + 12] == value.to_bytes(4, order)
    vdev.config[0] = 0
    assert memory[8 + 88] == 0 and memory[:8] == memory[-8:] == b"\xee" * 8


def test_the_view_shows_what_the_other_side_writes() -> None:
    memory = bytearray(OPENAMP)
    vdev = VdevView(memory, 0x14, byteorder="little")
    memory[0x2C] = 4
    memory[0x44:0x48] = words(0xFFFFFFFF)
    assert vdev.status == 4 and vdev.vring(1).da == ADDR_ANY


def test_a_changed_count_does_not_move_the_view() -> None:
    memory = bytearray(OPENAMP + bytes(100))
    vdev = VdevView(memory, 0x14, byteorder="little")
    memory[0x2D] = 255
    memory[0x28:0x2C] = words(0xFFFFFFFF)
    assert vdev.num_of_vrings == 2 and len(vdev.config) == 0
    for index in (2, 254, -1):
        with pytest.raises(IndexError):
            vdev.vring(index)


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (OPENAMP, 0x13, "multiple of 4"),
        (OPENAMP, -4, "no vdev fits"),
        (OPENAMP, 88, "no vdev fits"),
        (OPENAMP, 1 << 40, "no vdev fits"),
        (b"", 0, "no vdev fits"),
        (OPENAMP, 0x18, "type 7, not 3"),
        (patched(OPENAMP, 0x2D, 3, 1), 0x14, "num_of_vrings is 3"),
        (patched(OPENAMP, 0x28, 1), 0x14, "config_len is 0x1"),
        (OPENAMP[:-1], 0x14, "num_of_vrings is 2"),
    ],
)
def test_a_view_needs_a_whole_vdev(data: bytes, offset: int, reason: str) -> None:
    with pytest.raises(ResourceError, match=reason):
        VdevView(bytearray(data), offset, byteorder="little")


def test_values_out_of_range_change_nothing() -> None:
    memory = bytearray(OPENAMP)
    vdev = VdevView(memory, 0x14, byteorder="little")
    for value in (-1, 256):
        with pytest.raises(ResourceError, match=rf"status is {value}"):
            vdev.status = value
    for value in (-1, 1 << 32):
        with pytest.raises(ResourceError, match=rf"gfeatures is {value}"):
            vdev.gfeatures = value
        with pytest.raises(ResourceError, match=rf"vring da is {value}"):
            vdev.vring(0).da = value
    assert memory == OPENAMP


def test_another_process_never_sees_a_field_half_written() -> None:
    """A store must go from the old value to the new one: a status that passes through 0 is a reset."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[: len(OPENAMP)] = build_vdev_table()
    vdev = VdevView(memory, 0x14)
    vdev.status, vdev.gfeatures = 7, 0x11111111
    ready, seen = os.pipe()
    child = os.fork()
    if child == 0:
        view = memoryview(memory)
        status, features = view[0x2C:0x2D], view[0x24:0x28].cast("I")
        os.write(seen, b".")
        good = all(status[0] in (7, 15) and features[0] in (0x11111111, 0x22222222) for _ in range(1_000_000))
        os._exit(0 if good else 1)
    try:
        assert select.select([ready], [], [], 30)[0]
        while (result := os.waitpid(child, os.WNOHANG)) == (0, 0):
            for _ in range(1000):
                vdev.status, vdev.gfeatures = 15, 0x22222222
                vdev.status, vdev.gfeatures = 7, 0x11111111
        assert os.waitstatus_to_exitcode(result[1]) == 0
    finally:
        os.close(ready)
        os.close(seen)


def test_a_foreign_byte_order_is_only_that() -> None:
    native, foreign = build_vdev_table(), build_vdev_table(byteorder=FOREIGN)
    assert native != foreign
    assert parse(native).entries == parse(foreign, byteorder=FOREIGN).entries
    with pytest.raises(ResourceError, match="ver is 16777216"):
        parse(foreign)


def test_layouts_have_the_kernels_sizes() -> None:
    for layout in LAYOUTS.values():
        assert [item.size for item in layout] == [16, 4, 56, 56, 48, 28, 20]
        assert all(isinstance(item, struct.Struct) for item in layout)


def test_random_valid_tables_survive_parse_and_build() -> None:
    rng = random.Random(7)
    for _ in range(100):
        entries: list[Entry] = []
        place = 0x1000
        for index in range(rng.randrange(6)):
            size = rng.randrange(1, 0x1000)
            kind = rng.randrange(4)
            if kind == 0:
                entries.append(Carveout(rng.choice((place, ADDR_ANY)), size, f"c{index}"))
            elif kind == 1:
                entries.append(Trace(place, size, f"t{index}"))
            elif kind == 2:
                vring = Vring(place, 1 << rng.randrange(13), 1 << rng.randrange(10), rng.randrange(99))
                entries.append(Vdev((vring,), config=rng.randbytes(rng.randrange(9))))
            else:
                entries.append(Vendor(rng.randrange(128, 513), rng.randbytes(4 * rng.randrange(4))))
            place += 0x10000
        order = rng.choice(ORDERS)
        data = build(entries, byteorder=order)
        table = parse(data, byteorder=order)
        assert [entry._replace(offset=0) for entry in table.entries] == entries
        assert build(table.entries, byteorder=order) == data
