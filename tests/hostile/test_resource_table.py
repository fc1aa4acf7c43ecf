"""A firmware's resource table that is out to have the host write where nobody lets it, or to keep it busy for ever.

What a table alone can tell is in tests/unit/test_table.py; here it meets the memory and the resources of a board.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.remoteproc.resources import Plan, Resources, plan
from rpmsgx.virtio.table import (
    ADDR_ANY,
    MAX_ENTRIES,
    Carveout,
    Devmem,
    Entry,
    Trace,
    Vdev,
    Vendor,
    Vring,
    build,
    parse,
    vring_size,
)

pytestmark = pytest.mark.hostile

ROM, SHM, TOP = 0x1000_0000, 0x2000_0000, 0xFFFF_0000


def memory(shared: int = 0x80000) -> tuple[AddressSpace, Region]:
    """Up to the last byte of 32 bits, so that a sum can wrap inside granted memory."""
    region = Region("shm", bytearray(shared), da=SHM)
    top = Region("top", bytearray(0x10000), da=TOP)
    return AddressSpace(Region("rom", bytearray(0x10000), da=ROM), region, top), region


def resources() -> Resources:
    registered = Resources()
    registered.carveout("vdev0buffer", 0x8000, TOP)
    registered.carveout("heap", 0x1000)
    registered.devmem("uart", 0x4000_0000, 0x4800_0000, 0x1000)
    registered.trace("log", 0x100)
    return registered


def written(result: Plan) -> Iterator[tuple[int, int]]:
    """What a host with this plan writes: the table, rings, buffers."""
    if result.table_da is not None:
        yield result.table_da, len(result.published)
    for placed in result.vdevs:
        for vring in placed.vdev.vrings:
            yield vring.da, vring_size(vring.num, vring.align)
        if placed.buffers:
            yield placed.buffers.da, 2 * placed.buffers.count * placed.buffers.size


def attempt(data: bytes, table_da: int = ROM) -> Plan | None:
    """A plan that is sound, or None for a refusal; anything else is raised."""
    space, shared = memory()
    try:
        result = plan(resources(), parse(data, byteorder="little"), table_da, space, shared)
    except ResourceError:
        return None
    places = sorted(written(result))
    for da, size in places:
        space.find_da(da, size)
    for (da, size), (after, _) in pairwise(places):
        assert da + size <= after
    for trace in result.traces:
        space.find_da(trace.da, trace.len)
    for carveout in result.carveouts:
        space.find_da(carveout.da, carveout.size)
    assert all(region.view.tobytes().count(0) == region.size for region in space.regions)
    assert len(result.published) == len(data)
    return result


RINGS = Vring(ADDR_ANY, 0x1000, 16), Vring(SHM + 0x4000, 0x1000, 16)
RICH = build(
    [
        Carveout(ADDR_ANY, 0x1000, "heap"),
        Carveout(SHM + 0x10000, 0x4000, "vdev0vring0"),
        Devmem(0x4000_0000, 0x4800_0000, 0x100, "uart"),
        Trace(ROM + 0x1000, 0x10, "t"),
        Trace(ADDR_ANY, 0x10, "log"),
        Vdev(RINGS, config=b"12345678"),
        Vendor(300, b"abcd"),
    ],
    byteorder="little",
)
EXTREMES = (0, 1, 2, 7, 15, 16, 0x1000, ROM, SHM, TOP, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFC, 0xFFFFFFFF)


def test_the_table_that_is_spoiled_below_is_good() -> None:
    assert attempt(RICH) is not None


def test_every_word_at_every_extreme() -> None:
    results = []
    for at in range(0, len(RICH), 4):
        for value in EXTREMES:
            results.append(attempt(RICH[:at] + value.to_bytes(4, "little") + RICH[at + 4 :]))
    planned = sum(result is not None for result in results)
    assert 0 < planned < len(results)


@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, len(RICH) // 4 - 1),
            st.sampled_from(EXTREMES)
            | st.tuples(st.sampled_from((ROM, SHM, TOP)), st.integers(0, 0x20000)).map(sum)
            | st.integers(0, 0xFFFFFFFF),
        ),
        min_size=1,
        max_size=4,
    ),
    table_da=st.sampled_from((ROM, ROM + 0xFF00, SHM, SHM + 0x4000, TOP, 0, 0xFFFFFF00)),
)
@settings(max_examples=500, deadline=None)
def test_no_change_makes_the_host_write_what_it_was_not_given(changes: list[tuple[int, int]], table_da: int) -> None:
    data = bytearray(RICH)
    for at, value in changes:
        data[4 * at : 4 * at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
    attempt(bytes(data), table_da)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([Vdev((Vring(0x4000_0000, 16, 4),) * 1)], "in no granted region"),
        ([Vdev((Vring(SHM + 0x80000 - 8, 16, 4),))], "in no granted region"),
        ([Vdev((Vring(ROM, 16, 4),))], "overlaps the resource table"),
        ([Vdev((Vring(TOP + 0x7000, 16, 4),)), Vdev(RINGS)], "overlaps carveout 'vdev0buffer'|overlaps"),
        ([Vdev((Vring(ADDR_ANY, 1 << 31, 4),))], "no room for"),
        ([Vdev((Vring(ADDR_ANY, 16, 32768),) * 2)], "too small"),
        ([Vdev((Vring(ADDR_ANY, 16, 32768),) * 2, id=3)], "no room for"),
        ([Carveout(ADDR_ANY, 0xFFFFFFFF, "c")], "no room for"),
        ([Carveout(0, 0xFFFFFFFF, "c")], "in no granted region"),
        ([Carveout(ADDR_ANY, 0x80001, "c")], "no room for"),
        ([Carveout(ADDR_ANY, 0x8001, "vdev0buffer")], "too small"),
        ([Carveout(SHM, 0x100, "c", pa=ROM)], "are not the same memory"),
        ([Carveout(ADDR_ANY, 0x100, "c", pa=0x5000_0000)], "in no granted region"),
        ([Trace(0, 0xFFFFFFFF, "t")], "in no granted region"),
        ([Trace(ADDR_ANY, 0xFFFFFFFF, "t")], "no room for"),
        ([Trace(ROM + 8, 4, "t")], "overlaps the resource table"),
        ([Devmem(SHM, 0, 0x1000, "flash")], "no IOMMU"),
        ([Devmem(0x4000_0000, 0x4800_0000, 0x1001, "uart")], "another place"),
    ],
)
def test_what_nobody_granted_is_refused(entries: list[Entry], reason: str) -> None:
    space, shared = memory()
    with pytest.raises(ResourceError, match=reason):
        plan(resources(), parse(build(entries)), ROM, space, shared)


def entries_of(kind: str) -> Iterator[Entry]:
    for index in range(MAX_ENTRIES):
        if kind == "vdevs":
            yield Vdev((Vring(ADDR_ANY, 16, 1), Vring(ADDR_ANY, 16, 1)))
        elif kind == "fixed vrings":
            yield Vdev((Vring(SHM + 0x1000 * index, 16, 1),), id=3)
        elif kind == "carveouts":
            yield Carveout(ADDR_ANY, 1, f"c{index}")
        elif kind == "vrings and traces":
            ring = Vring(SHM + 0x1000 * index, 16, 1), Vring(SHM + 0x1000 * index + 0x800, 16, 1)
            yield Trace(SHM + 0x1000 * index + 0x400, 1, "t") if index % 2 else Vdev(ring, id=3)


@pytest.mark.parametrize("kind", ["vdevs", "fixed vrings", "carveouts", "vrings and traces"])
def test_the_largest_tables_cost_seconds_at_most(kind: str) -> None:
    table = parse(build(list(entries_of(kind))))
    space, shared = memory(0x1000000)
    big = Region("table", bytearray(0x100000), da=0x3000_0000)
    space.add(big)
    image = [(0x3010_0000 + 0x1000 * index, 0x10) for index in range(1024)]
    start = time.process_time()
    result = plan(Resources(), table, big.da, space, shared, image)
    assert time.process_time() - start < 20  # half a second on a desktop
    assert len(result.carveouts) + len(result.traces) >= MAX_ENTRIES
