"""Resources of board, code and firmware: how they merge, where they are placed, and what is refused.

Lessons: 12 (merging), 13 and 14 (firmware without a table), 21 (pools).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.remoteproc.resources import PlacedCarveout, Plan, Resources, plan
from rpmsgx.virtio.link import Buffers
from rpmsgx.virtio.table import (
    ADDR_ANY,
    ByteOrder,
    Carveout,
    Devmem,
    Entry,
    Trace,
    Vdev,
    Vendor,
    Vring,
    build,
    parse,
)

ROM, SHM, OCM = 0x1000_0000, 0x2000_0000, 0x3000_0000
PA = 0x8_0000_0000
BOARD = "the board (soc.toml)"


class Memory:
    """The memory of a board, zeroed: `space`, and `shared`, the region for what the host places."""

    def __init__(self, shared: int = 0x100000) -> None:
        self.shared = Region("shm", bytearray(shared), da=SHM, pa=SHM + PA)
        self.space = AddressSpace(
            Region("rom", bytearray(0x10000), da=ROM, pa=ROM + PA),
            self.shared,
            Region("ocm", bytearray(0x20000), da=OCM, pa=OCM),
        )

    def untouched(self) -> bool:
        return all(region.view.tobytes().count(0) == region.size for region in self.space.regions)

    def plan(
        self,
        entries: Iterable[Entry] | None = None,
        resources: Resources | None = None,
        *,
        table_da: int | None = ROM,
        in_use: Iterable[tuple[int, int]] = (),
        byteorder: ByteOrder = sys.byteorder,
    ) -> Plan:
        table = None if entries is None else parse(build(list(entries), byteorder=byteorder), byteorder=byteorder)
        return plan(resources or Resources(), table, table_da, self.space, self.shared, in_use)


def board(**carveouts: tuple[int, int] | tuple[int, int, int]) -> Resources:
    """Carveouts of the board by name: size, da, pa."""
    resources = Resources()
    for name, where in carveouts.items():
        resources.carveout(name, *where, owner=BOARD)
    return resources


def vdev(first: int = ADDR_ANY, second: int = ADDR_ANY, *, num: int = 16, align: int = 0x1000, **more: Any) -> Vdev:
    return Vdev((Vring(first, align, num), Vring(second, align, num)), dfeatures=1, **more)


def places(result: Plan) -> dict[str, tuple[int, int]]:
    return {carveout.name: (carveout.da, carveout.size) for carveout in result.carveouts}


# -- placing -----------------------------------------------------------------------------------------------------------


def test_rings_and_buffers_come_out_of_the_shared_region_in_order() -> None:
    result = Memory().plan([vdev(num=256), vdev(num=4), Trace(ROM + 0x800, 0x100, "trace0")])
    assert places(result) == {
        "vdev0vring0": (SHM, 0x3000),
        "vdev0vring1": (SHM + 0x3000, 0x3000),
        "vdev1vring0": (SHM + 0x6000, 0x2000),
        "vdev1vring1": (SHM + 0x8000, 0x2000),
        "vdev0buffer": (SHM + 0xA000, 2 * 256 * 512),
        "vdev1buffer": (SHM + 0x4A000, 2 * 4 * 512),
    }
    assert result.carveouts[0] == PlacedCarveout("vdev0vring0", SHM, SHM + PA, 0x3000)
    assert [placed.buffers for placed in result.vdevs] == [
        Buffers(SHM + 0xA000, 256, 512),
        Buffers(SHM + 0x4A000, 4, 512),
    ]
    assert [[v.notifyid for v in placed.vdev.vrings] for placed in result.vdevs] == [[0, 1], [2, 3]]
    assert result.traces == (Trace(ROM + 0x800, 0x100, "trace0"),)
    assert result.table_da == ROM and result.warnings == ()


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_the_published_table_differs_in_places_and_ids_alone(byteorder: ByteOrder) -> None:
    entries: list[Entry] = [
        Vendor(200, b"vendor!!"),
        Carveout(ADDR_ANY, 0x1234, "heap", 5),
        vdev(OCM, id=7, notifyid=9, gfeatures=4, config=b"12345"),
        Trace(ADDR_ANY, 0x400, "trace0"),
        Trace(ROM + 0x1000, 0x400, "trace1"),
    ]
    memory = Memory()
    result = memory.plan(entries, byteorder=byteorder)
    assert result.clean == build(entries, byteorder=byteorder)
    table = parse(result.published, byteorder=byteorder)
    ring = Vring(OCM, 0x1000, 16, 0), Vring(SHM + 0x3000, 0x1000, 16, 1)
    assert [entry._replace(offset=0) for entry in table.entries] == [
        Vendor(200, b"vendor!!"),
        Carveout(SHM + 0x1000, 0x1234, "heap", 5, SHM + 0x1000),  # the low half of a pa of more than 32 bits
        Vdev(ring, 7, 9, 1, 4, 0, b"12345"),
        Trace(SHM, 0x400, "trace0"),
        Trace(ROM + 0x1000, 0x400, "trace1"),
    ]
    assert table.vdevs[0] == result.vdevs[0].vdev and result.vdevs[0].offset == table.vdevs[0].offset
    assert result.traces == tuple(trace._replace(offset=0) for trace in table.traces)
    assert memory.untouched()


def test_fixed_places_are_kept_free_and_so_is_the_loaded_image() -> None:
    entries = [
        Carveout(SHM + 0x1000, 0x800, "fixed"),
        Trace(SHM + 0x3000, 0x10, "trace0"),
        vdev(second=SHM + 0x5800, num=4, align=16),
    ]
    result = Memory().plan(entries, in_use=[(SHM + 0x4000, 0x10), (0xF000_0000, 0x1000), (SHM, 4)])
    assert places(result) == {
        "fixed": (SHM + 0x1000, 0x800),
        "vdev0vring0": (SHM + 0x2000, 0x1000),
        "vdev0vring1": (SHM + 0x5800, entries[2].vrings[1].size),  # type: ignore[union-attr]
        "vdev0buffer": (SHM + 0x6000, 0x1000),
    }


def test_the_table_itself_is_kept_free() -> None:
    result = Memory().plan([vdev(num=4, align=16)], table_da=SHM + 0xFFC)
    assert places(result)["vdev0vring0"] == (SHM + 0x2000, 0x1000)


def test_an_alignment_of_more_than_a_page() -> None:
    result = Memory().plan([Carveout(ADDR_ANY, 1, "a"), vdev(num=4, align=0x10000)])
    assert [vring.da for vring in result.vdevs[0].vdev.vrings] == [SHM + 0x10000, SHM + 0x30000]


def test_buffers_of_another_size_and_number() -> None:
    resources = Resources()
    resources.buffer_size, resources.buffer_count = 2048, 3
    result = Memory().plan([vdev()], resources)
    buffers = result.vdevs[0].buffers
    assert buffers is not None and buffers[1:3] == (3, 2048)
    assert places(result)["vdev0buffer"] == (buffers.da, 2 * 3 * 2048)


def test_no_room_names_who_wanted_how_much() -> None:
    with pytest.raises(
        ResourceError, match=r"^buffers 'vdev0buffer' of the firmware's table: no room for 0x40000 byte"
    ):
        Memory(0x10000).plan([vdev(num=256)])
    with pytest.raises(ResourceError, match=r"^vring 'vdev0vring1' of .*no room for 0x3000 .* region 'shm'"):
        Memory(0x5000).plan([vdev(num=256)])


@pytest.mark.parametrize("rings", [0, 1])
def test_an_rpmsg_vdev_without_two_rings_is_left_alone(rings: int) -> None:
    broken = Vdev((Vring(ADDR_ANY, 0x1000, 4),) * rings, dfeatures=1)
    result = Memory().plan([broken, vdev(num=4)])
    assert [placed.buffers is None for placed in result.vdevs] == [True, False]
    assert f"num_of_vrings is {rings}, rpmsg needs 2" in result.warnings[0]
    assert "vdev0buffer" not in places(result) and "vdev1buffer" in places(result)
    assert [v.notifyid for placed in result.vdevs for v in placed.vdev.vrings] == list(range(rings + 2))


def test_another_virtio_device_gets_its_rings_and_no_buffers() -> None:
    result = Memory().plan([vdev(id=3)])
    assert set(places(result)) == {"vdev0vring0", "vdev0vring1"} and result.vdevs[0].buffers is None
    assert result.warnings == ("vdev 0 has virtio id 3, not rpmsg: left alone",)


def test_an_empty_table_and_an_empty_trace() -> None:
    assert Memory().plan([])[3:6] == ((), (), ())
    assert Memory().plan([Trace(ADDR_ANY, 0, "t"), Trace(0, 0, "u")]).traces == ()


# -- equal names merge -------------------------------------------------------------------------------------------------


@pytest.mark.lesson("12")
def test_lesson_12_board_code_and_table_agree_on_one_carveout() -> None:
    resources = board(heap=(0x8000, ADDR_ANY))
    resources.carveout("heap", 0x2000, flags=3)
    result = Memory().plan([Carveout(OCM + 0x4000, 0x1000, "heap", 3)], resources)
    assert places(result) == {"heap": (OCM + 0x4000, 0x8000)}
    carveout = parse(result.published).carveouts[0]
    assert (carveout.da, carveout.len, carveout.pa) == (OCM + 0x4000, 0x8000, OCM + 0x4000)  # as Linux writes back


@pytest.mark.lesson("12")
def test_lesson_12_a_board_gives_physical_addresses() -> None:
    resources = board(heap=(0x1000, ADDR_ANY, SHM + PA + 0x5000), other=(0x1000, OCM, OCM))
    result = Memory().plan([Carveout(ADDR_ANY, 0x1000, "heap", pa=0)], resources)
    assert places(result) == {"heap": (SHM + 0x5000, 0x1000), "other": (OCM, 0x1000)}
    assert result.carveouts[0].pa == SHM + PA + 0x5000
    fixed = vdev(SHM + 0x6000)
    result = Memory().plan([fixed], board(vdev0vring0=(0x4000, ADDR_ANY, SHM + PA + 0x5000)))
    assert result.vdevs[0].vdev.vrings[0].da == SHM + 0x6000 and places(result)["vdev0vring0"][0] == SHM + 0x5000


@pytest.mark.lesson("12")
@pytest.mark.parametrize(
    ("given", "asked", "text"),
    [
        (
            (0x8000, SHM),
            Carveout(SHM, 0x10000, "vdev0buffer"),
            "carveout 'vdev0buffer': the board (soc.toml) gives 0x8000 bytes at da 0x20000000, "
            "the firmware's table asks 0x10000 bytes at da 0x20000000: too small",
        ),
        (
            (0x8000, SHM),
            Carveout(OCM, 0x8000, "vdev0buffer"),
            "carveout 'vdev0buffer': the board (soc.toml) gives 0x8000 bytes at da 0x20000000, "
            "the firmware's table asks 0x8000 bytes at da 0x30000000: da differs",
        ),
        (
            (0x8000, OCM, OCM),
            Carveout(ADDR_ANY, 0x8000, "vdev0buffer", pa=OCM + 0x1000),
            "carveout 'vdev0buffer': the board (soc.toml) gives 0x8000 bytes at da 0x30000000, pa 0x30000000, "
            "the firmware's table asks 0x8000 bytes at da 0x30001000, pa 0x30001000: da differs",
        ),
        (
            (0x8000, ADDR_ANY, ADDR_ANY, 1),
            Carveout(ADDR_ANY, 0x8000, "vdev0buffer", 2),
            "carveout 'vdev0buffer': the board (soc.toml) gives 0x8000 bytes at any da, flags 0x1, "
            "the firmware's table asks 0x8000 bytes at any da, flags 0x2: flags differs",
        ),
    ],
    ids=["size", "da", "pa", "flags"],
)
def test_lesson_12_what_does_not_go_together_shows_both(given: Any, asked: Carveout, text: str) -> None:
    resources = Resources()
    resources.carveout("vdev0buffer", *given[:3], flags=given[3] if len(given) > 3 else None, owner=BOARD)
    with pytest.raises(ResourceError) as caught:
        Memory().plan([asked], resources)
    assert str(caught.value) == text


@pytest.mark.lesson("12")
def test_lesson_12_registering_twice_is_checked_at_once() -> None:
    resources = board(heap=(0x1000, SHM, SHM + PA))
    resources.carveout("heap", 0x800)
    for more, why in (((0x2000,), "too small"), ((1, OCM), "da differs"), ((1, SHM, OCM), "pa differs")):
        with pytest.raises(ResourceError, match=rf"the board \(soc.toml\) gives 0x1000 .*, code asks .*: {why}"):
            resources.carveout("heap", *more)
    assert places(Memory().plan(None, resources)) == {"heap": (SHM, 0x1000)}


@pytest.mark.lesson("12")
def test_lesson_12_resources_of_board_and_code_come_together() -> None:
    code = Resources()
    code.carveout("heap", 0x800, SHM)
    code.trace("log", 0x100)
    code.devmem("uart", 1, 2, 3)
    code.vdev()
    code.vendor(130, lambda entry: True)
    code.table_da = ROM
    both = Resources(board(heap=(0x1000, ADDR_ANY)), code)
    result = Memory().plan(None, both)
    assert places(result)["heap"] == (SHM, 0x1000) and len(result.vdevs) == len(result.traces) == 1
    assert both.handle_vendor(parse(build([Vendor(130, b"")]))) == ()
    with pytest.raises(ResourceError, match=r"heap.*the board \(soc.toml\) gives 0x400 .*code asks 0x800"):
        Resources(board(heap=(0x400, ADDR_ANY)), code)
    other = Resources()
    other.table_da = OCM
    with pytest.raises(ResourceError, match="table_da is registered twice, as 268435456 and as 805306368"):
        Resources(code, other)
    assert Resources(code, code).table_da == ROM


def test_what_is_registered_alone_is_placed_too() -> None:
    result = Memory().plan([vdev(num=4)], board(heap=(0x123, ADDR_ANY), ocm=(0x200, OCM + 0x10)))
    assert places(result)["heap"] == (SHM, 0x123) and places(result)["ocm"] == (OCM + 0x10, 0x200)
    assert len(parse(result.published).carveouts) == 0


def test_da_and_pa_of_different_memory() -> None:
    with pytest.raises(ResourceError, match=r"'heap' of the board.*da 0x20000000 and pa 0x30000000 are not the same"):
        Memory().plan([], board(heap=(0x1000, SHM, OCM)))
    with pytest.raises(ResourceError, match=r"'heap' of the board.*pa \[0x500, 0x1500\).*in no granted region"):
        Memory().plan([], board(heap=(0x1000, ADDR_ANY, 0x500)))


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_positive(size: int) -> None:
    for register in (Resources().carveout, Resources().trace):
        with pytest.raises(ResourceError, match=rf"'heap' of code: size {size} is not positive"):
            register("heap", size)
    with pytest.raises(ResourceError, match="carveout 'c' of the firmware's table.*size 0 is not positive"):
        Memory().plan([Carveout(ADDR_ANY, 0, "c")])


# -- pools of vrings and buffers ---------------------------------------------------------------------------------------


@pytest.mark.lesson("21")
def test_lesson_21_rings_and_buffers_come_from_the_pools_of_their_names() -> None:
    resources = board(
        vdev0vring0=(0x4000, OCM), vdev0buffer=(0x8010, OCM + 0x8000), vdev1buffer=(0x1000, OCM + 0x11000)
    )
    result = Memory().plan([vdev(), vdev(num=4), Carveout(OCM + 0x4000, 0x3000, "vdev0vring1")], resources)
    first, second = result.vdevs
    assert [vring.da for vring in first.vdev.vrings] == [OCM, OCM + 0x4000]
    assert first.buffers == Buffers(OCM + 0x8000, 16) and second.buffers == Buffers(OCM + 0x11000, 4)
    assert [vring.da for vring in second.vdev.vrings] == [SHM, SHM + 0x2000]
    assert places(result)["vdev0buffer"] == (OCM + 0x8000, 0x8010)
    assert len(result.carveouts) == 6


@pytest.mark.lesson("21")
@pytest.mark.parametrize("owner", ["board", "table"])
@pytest.mark.parametrize(
    ("name", "size", "asked"),
    [("vdev0vring0", 0x1FFF, "vring .* asks 0x2000"), ("vdev0buffer", 0x3FFF, "buffers .* asks 0x4000")],
)
def test_lesson_21_a_pool_that_is_too_small_is_refused_not_left(owner: str, name: str, size: int, asked: str) -> None:
    # There is room enough in the shared region.
    resources = board(**{name: (size, OCM)}) if owner == "board" else None
    entries = [vdev(), *([Carveout(OCM, size, name)] if owner == "table" else [])]
    kind, _, rest = asked.partition(" .* ")
    with pytest.raises(ResourceError, match=rf"{kind} '{name}': the .* gives {size:#x} .*{rest} .*: too small"):
        Memory().plan(entries, resources)


@pytest.mark.lesson("21")
def test_lesson_21_a_ring_may_have_a_place_of_its_own_inside_its_pool_only() -> None:
    resources = board(vdev0vring0=(0x4000, OCM), vdev0vring1=(0x4000, ADDR_ANY))
    result = Memory().plan([vdev(OCM + 0x1000, OCM + 0x8000)], resources)
    assert [vring.da for vring in result.vdevs[0].vdev.vrings] == [OCM + 0x1000, OCM + 0x8000]
    assert places(result)["vdev0vring0"] == (OCM, 0x4000) and places(result)["vdev0vring1"] == (OCM + 0x8000, 0x4000)
    for da in (OCM + 0x3000, OCM - 0x1000, SHM):
        with pytest.raises(ResourceError, match="vring 'vdev0vring0': the board .* asks .*: da differs"):
            Memory().plan([vdev(da)], board(vdev0vring0=(0x4000, OCM)))


def test_a_pool_at_an_odd_place() -> None:
    result = Memory().plan(
        [vdev(num=4, align=64)], board(vdev0vring0=(0x1040, OCM + 4), vdev0buffer=(0x100C, OCM + 0x4004))
    )
    assert result.vdevs[0].vdev.vrings[0].da == OCM + 64
    assert result.vdevs[0].buffers == Buffers(OCM + 0x4010, 4)
    with pytest.raises(ResourceError, match="too small from the next multiple of 0x40 on"):
        Memory().plan([vdev(num=4, align=64)], board(vdev0vring0=(0x103B, OCM + 4)))
    with pytest.raises(ResourceError, match="too small from the next multiple of 0x10 on"):
        Memory().plan([vdev(num=4, align=64)], board(vdev0buffer=(0x100B, OCM + 4)))


def test_an_unplaced_pool_is_aligned_as_its_ring() -> None:
    result = Memory().plan(
        [vdev(num=4, align=0x8000), Carveout(ADDR_ANY, 1, "a")], board(z=(1, ADDR_ANY), vdev0vring0=(0x9000, ADDR_ANY))
    )
    assert places(result)["vdev0vring0"] == (SHM + 0x8000, 0x9000)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (Carveout(0x4000_0000, 0x100, "c"), "carveout 'c' of the firmware's table: da .* is in no granted region"),
        (Carveout(ROM + 0xFF01, 0x100, "c"), "carveout 'c' of the firmware's table: da .* is in no granted region"),
        (Trace(0x4000_0000, 0x100, "t"), "trace 't' of the firmware's table: da .* is in no granted region"),
        (Trace(ROM + 0xFF01, 0x100, "t"), "trace 't' of the firmware's table: da .* is in no granted region"),
        (vdev(0x4000_0000), "vring 'vdev0vring0' of the firmware's table: da .* is in no granted region"),
        (Carveout(ROM + 0x10, 8, "c"), r"carveout 'c' of .* overlaps the resource table \[0x10000000"),
        (Carveout(ROM + 0x10, 0x8000, "c"), "overlaps the resource table"),
        (Trace(ROM + 0x10, 8, "t"), "trace 't' of .*overlaps the resource table"),
        (vdev(ROM), "vring 'vdev0vring0' of .*overlaps the resource table"),
        (vdev(second=ROM), "vring 'vdev0vring1' of .*overlaps the resource table"),
        (Trace(OCM + 0x1FFF, 2, "t"), r"trace 't' of .*overlaps vring 'vdev0vring0' of .*\[0x30002000"),
        (Trace(OCM + 0x10001, 2, "t"), r"trace 't' of .*overlaps carveout 'vdev0buffer' of the board"),
        (Carveout(OCM + 0x10000, 2, "c"), "'c' of the firmware's table .*overlaps carveout 'vdev0buffer' of the board"),
        (
            Devmem(0x4000_0000, 0x4800_0000, 0x1000, "uart"),
            "no IOMMU .* no devmem of this name or place.*it has 'gpio'",
        ),
    ],
)
def test_refused_with_name_owner_and_cause(entry: Entry, text: str) -> None:
    resources = board(vdev0buffer=(0x8000, OCM + 0x10000))
    resources.devmem("gpio", 0x5000_0000, 0x5000_0000, 0x1000)
    entries = [entry] if isinstance(entry, Vdev) else [entry, vdev(OCM + 0x2000)]
    with pytest.raises(ResourceError, match=text):
        Memory().plan(entries, resources)


def test_the_firmwares_memory_may_hold_its_table_its_code_and_its_traces() -> None:
    entries = [Carveout(ROM, 0x10000, "ram"), Trace(ROM + 0x8000, 0x100, "t"), vdev()]
    result = Memory().plan(entries, board(bank=(0x2000, OCM)), in_use=[(ROM, 0x4000), (OCM + 0x1000, 0x8000)])
    assert places(result)["ram"] == (ROM, 0x10000)


@pytest.mark.parametrize("name", ["vdev0vring0", "vdev0vring1", "vdev0buffer"])
def test_a_pool_may_not_hold_the_table(name: str) -> None:
    for entries, resources in (([Carveout(ROM, 0x8000, name)], Resources()), ([], board(**{name: (0x8000, ROM)}))):
        with pytest.raises(ResourceError, match=f"carveout '{name}' of .*overlaps the resource table"):
            Memory().plan([*entries, vdev()], resources, table_da=ROM + 0x4000)


def test_what_the_host_places_in_a_pool_is_clear_of_the_loaded_image() -> None:
    for name, used in (("vdev0buffer", 0x3FFF), ("vdev0vring0", 0x1FFF)):
        with pytest.raises(ResourceError, match=f"'{name}' .* overlaps the loaded image"):
            Memory().plan([vdev()], board(**{name: (0x8000, OCM)}), in_use=[(OCM + used, 1)])
        Memory().plan([vdev()], board(**{name: (0x8000, OCM)}), in_use=[(OCM + used + 1, 1)])
    # Its own rings are where the firmware wants them.
    Memory().plan([vdev(OCM)], in_use=[(OCM, 0x8000)])


def test_a_table_must_be_granted_and_aligned() -> None:
    with pytest.raises(ResourceError, match=r"^the resource table: da \[0x1000ffe0, .*in no granted region"):
        Memory().plan([vdev()], table_da=ROM + 0xFFE0)
    with pytest.raises(ResourceError, match=r"^the resource table: da 0x10000002 is not a multiple of 4"):
        Memory().plan([vdev()], table_da=ROM + 2)


def test_places_that_the_table_has_no_bits_for() -> None:
    region = Region("high", bytearray(0x10000), da=1 << 32)
    table = parse(build([vdev(num=4)]))
    low = Region("low", bytearray(0x1000), da=0)
    with pytest.raises(ResourceError, match=r"vring 'vdev0vring0' .*\[0x100000000, 0x100002000\) leaves .* 32 bits"):
        plan(Resources(), table, 0, AddressSpace(low, region), region)
    # What no table tells of may lie there.
    resources = Resources()
    resources.carveout("heap", 0x1000)
    assert plan(resources, None, None, AddressSpace(region), region).carveouts[0].da == 1 << 32


# -- devmem, trace, vendor ---------------------------------------------------------------------------------------------


def test_a_devmem_that_the_board_wires_like_that_is_accepted() -> None:
    resources = Resources()
    resources.devmem("uart", 0x4000_0000, 0x4800_0000, 0x1000, owner=BOARD)
    entries = [Devmem(0x4000_0100, 0x4800_0100, 0x100, "uart"), Devmem(0x4000_0800, 0x4800_0800, 0x800, "mine")]
    result = Memory().plan(entries, resources)
    assert result.published == result.clean and result.carveouts == ()
    for da, pa, size in ((0x4000_0000, 0x4800_0100, 16), (0x4000_0F01, 0x4800_0F01, 0x100), (0, 0x800_0000, 1)):
        with pytest.raises(ResourceError, match=r"'uart': the board \(soc.toml\) gives .* asks .*: another place"):
            Memory().plan([Devmem(da, pa, size, "uart")], resources)
        with pytest.raises(ResourceError, match="devmem 'mine' of the firmware's table, .*no IOMMU"):
            Memory().plan([Devmem(da, pa, size, "mine")], resources)


def test_a_registered_trace_and_the_tables() -> None:
    resources = Resources()
    resources.trace("log", 0x1000, OCM, owner=BOARD)
    resources.trace("more", 0x100)
    result = Memory().plan([Trace(ADDR_ANY, 0x80, "log"), Trace(ROM + 0x1000, 1, "t")], resources)
    assert result.traces == (Trace(OCM, 0x80, "log"), Trace(ROM + 0x1000, 1, "t"), Trace(SHM, 0x100, "more"))
    assert parse(result.published).traces[0].da == OCM
    for trace, why in ((Trace(OCM, 0x1001, "log"), "too small"), (Trace(ROM + 0x1000, 1, "log"), "da differs")):
        with pytest.raises(ResourceError, match=rf"trace 'log': the board \(soc.toml\) gives .*: {why}"):
            Memory().plan([trace], resources)


def test_vendor_entries_go_to_their_handlers_in_the_tables_order() -> None:
    seen: list[tuple[str, int, bytes]] = []

    def handler(name: str, result: bool) -> Any:
        def handle(entry: Vendor) -> bool:
            seen.append((name, entry.type, entry.data))
            return result

        return handle

    resources = Resources()
    resources.vendor(range(128, 256), handler("ignores", False))
    resources.vendor(200, handler("handles", True))
    resources.vendor(range(128, 513), handler("late", False))
    table = parse(build([Vendor(200, b"1234"), vdev(), Vendor(512, b""), Vendor(128, b"5678")]))
    warnings = resources.handle_vendor(table)
    assert seen == [
        ("ignores", 200, b"1234"),
        ("handles", 200, b"1234"),
        ("late", 512, b""),
        ("ignores", 128, b"5678"),
        ("late", 128, b"5678"),
    ]
    assert [text.split(": ")[1] for text in warnings] == [f"unsupported vendor resource {kind}" for kind in (512, 128)]
    assert len(Resources().handle_vendor(table)) == 3 and Resources().handle_vendor(None) == ()


def test_a_vendor_handler_that_raises_ends_it() -> None:
    seen: list[int] = []

    def fail(entry: Vendor) -> bool:
        seen.append(entry.type)
        raise OSError(5, "no")

    resources = Resources()
    resources.vendor(130, fail)
    with pytest.raises(OSError, match="no"):
        resources.handle_vendor(parse(build([Vendor(130, b""), Vendor(130, b"")])))
    assert seen == [130]


@pytest.mark.parametrize(
    "types", [127, 513, range(100, 200), range(500, 514), range(0), range(10**15), range(300, 100, -1)]
)
def test_vendor_types(types: Any) -> None:
    if types == range(300, 100, -1):
        types = range(300, 127, -1)
        Resources().vendor(types, lambda entry: True)
    else:
        with pytest.raises(ResourceError, match="not from 128 to 512"):
            Resources().vendor(types, lambda entry: True)


# -- firmware without a table ------------------------------------------------------------------------------------------


class FakeImage:
    """An image as a platform's own loader may make one."""

    name, sha256, entry = "image", "", 0

    def __init__(self, resource_table: tuple[int | None, bytes] | None) -> None:
        self.resource_table = resource_table

    def load(self, space: AddressSpace) -> None:
        raise AssertionError("nobody loads it here")


@pytest.mark.lesson("13")
def test_lesson_13_no_table_and_nothing_registered_is_fine() -> None:
    memory = Memory()
    resources = Resources()
    result = plan(resources, *resources.read_table(FakeImage(None)), memory.space, memory.shared)
    assert result == Plan(None, b"", b"", (), (), (), ())


@pytest.mark.lesson("13")
def test_lesson_13_resources_come_from_code_alone() -> None:
    resources = Resources()
    resources.carveout("heap", 0x1000)
    resources.trace("log", 0x100, ROM)
    result = Memory().plan(None, resources)
    assert result[:4] == (None, b"", b"", ())
    assert places(result) == {"heap": (SHM, 0x1000)} and result.traces == (Trace(ROM, 0x100, "log"),)


@pytest.mark.lesson("13")
def test_lesson_13_parsing_is_pluggable() -> None:
    raw = build([vdev()])
    image = FakeImage((None, b"not a table at all"))
    resources = Resources()
    with pytest.raises(ResourceError, match="resource table: ver is"):
        resources.read_table(image)
    resources.parse = lambda found: (OCM, memoryview(bytearray(raw))) if found is image else None
    table, da = resources.read_table(image)
    assert table is not None and (table.data, da) == (raw, OCM)
    assert resources.read_table(FakeImage((ROM, raw))) == (None, None)
    resources.parse = None
    table, da = resources.read_table(FakeImage((ROM, raw)))
    assert table is not None and (table.data, da) == (raw, ROM)


@pytest.mark.lesson("14")
def test_lesson_14_a_table_is_built_from_what_is_registered() -> None:
    resources = board(heap=(0x1000, ADDR_ANY), vdev0buffer=(0x8000, OCM, OCM))
    resources.carveout("heap", 0x1000, flags=5)
    resources.devmem("uart", 0x4000_0000, 0x4800_0000, 0x1000)
    resources.trace("log", 0x100)
    resources.vdev([(16, 0x1000), Vring(OCM + 0x8000, 0x1000, 16)], features=3, config=b"abcd")
    resources.table_da = ROM + 0x100
    result = Memory().plan(None, resources, in_use=[(ROM, 0x1000)])
    assert result.table_da == ROM + 0x100
    assert places(result) == {
        "heap": (SHM + 0x1000, 0x1000),
        "vdev0buffer": (OCM, 0x8000),
        "vdev0vring0": (SHM + 0x2000, 0x2000),
        "vdev0vring1": (OCM + 0x8000, Vring(0, 0x1000, 16).size),
    }
    assert [entry._replace(offset=0) for entry in parse(result.published).entries] == [
        Carveout(SHM + 0x1000, 0x1000, "heap", 5, SHM + 0x1000),
        Carveout(OCM, 0x8000, "vdev0buffer", 0, OCM),
        Devmem(0x4000_0000, 0x4800_0000, 0x1000, "uart"),
        Trace(SHM, 0x100, "log"),
        Vdev((Vring(SHM + 0x2000, 0x1000, 16, 0), Vring(OCM + 0x8000, 0x1000, 16, 1)), 7, 0, 3, config=b"abcd"),
    ]
    assert result.vdevs[0].buffers == Buffers(OCM, 16)
    # An attach finds the same, from the registered resources or from the clean table that was kept.
    assert Memory().plan(None, resources, in_use=[(ROM, 0x1000)]) == result
    kept = Memory().plan(parse(result.clean).entries, resources, table_da=ROM + 0x100, in_use=[(ROM, 0x1000)])
    assert kept == result


@pytest.mark.lesson("14")
def test_lesson_14_without_a_place_for_it_vdevs_are_refused() -> None:
    resources = Resources()
    resources.vdev()
    with pytest.raises(ResourceError, match="vdevs need one that is built: set table_da"):
        Memory().plan(None, resources)
    resources.table_da = 0x4000_0000
    with pytest.raises(ResourceError, match="the resource table: .*in no granted region"):
        Memory().plan(None, resources)


@pytest.mark.lesson("14")
def test_lesson_14_a_table_that_no_segment_loads_goes_to_the_agreed_place() -> None:
    resources = Resources()
    with pytest.raises(ResourceError, match="no segment loads the firmware's resource table.* set table_da"):
        Memory().plan([vdev()], resources, table_da=None)
    resources.table_da = OCM
    assert Memory().plan([vdev()], resources, table_da=None).table_da == OCM
    assert Memory().plan([vdev()], resources, table_da=ROM).table_da == ROM


def test_registered_vdevs_beside_a_table_are_a_warning() -> None:
    resources = Resources()
    resources.vdev()
    result = Memory().plan([], resources)
    assert result.vdevs == () and "registered vdevs are not used" in result.warnings[0]


@pytest.mark.parametrize(
    ("vrings", "text"),
    [([(0, 16)], "num is 0"), ([(3, 16)], "num is 3"), ([(4, 0)], "align is 0"), ([(4, 4)] * 3, "limit is 2")],
)
def test_a_vdev_is_checked_when_it_is_registered(vrings: list[tuple[int, int]], text: str) -> None:
    with pytest.raises(ResourceError, match=text):
        Resources().vdev(vrings)


def test_registered_resources_that_no_table_can_hold() -> None:
    for resources, text in (
        (board(a=(0x1000, SHM), b=(0x1000, SHM + 0x800)), "carveout 'b' .*overlaps carveout 'a'"),
        (board(**{"x" * 32: (0x1000, SHM)}), "longer than 31 bytes"),
        (board(a=(0x1000, 1 << 32)), "Carveout"),
    ):
        resources.table_da = ROM
        with pytest.raises(ResourceError, match=text):
            Memory().plan(None, resources)


# -- whatever is asked -------------------------------------------------------------------------------------------------


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < sum(other) and other[0] < sum(one)


def check(
    memory: Memory, entries: list[Entry], resources: Resources, in_use: list[tuple[int, int]], result: Plan
) -> None:
    """What every plan promises."""
    assert result == memory.plan(entries, resources, in_use=in_use), "the same again"
    assert result.clean == build(entries)
    assert memory.untouched()
    published = parse(result.published)
    assert tuple(placed.vdev for placed in result.vdevs) == published.vdevs
    assert [v.notifyid for vdev in published.vdevs for v in vdev.vrings] == list(
        range(sum(len(vdev.vrings) for vdev in published.vdevs))
    )
    homes = {carveout.name: (carveout.da, carveout.size) for carveout in result.carveouts}
    assert len(homes) == len(result.carveouts)
    for (da, size, _), (after, _, _) in pairwise(sorted((da, size, name) for name, (da, size) in homes.items())):
        assert da + size <= after
    table = (ROM, len(result.clean))
    for carveout in result.carveouts:
        assert memory.space.da_to_pa(carveout.da, carveout.size) == carveout.pa
    written: list[tuple[int, int]] = []
    asked = parse(result.clean).vdevs
    for index, placed in enumerate(result.vdevs):
        for number, vring in enumerate(placed.vdev.vrings):
            chosen = asked[index].vrings[number].da == ADDR_ANY
            assert chosen or vring.da == asked[index].vrings[number].da
            written.append((vring.da, vring.size))
            home, size = homes[f"vdev{index}vring{number}"]
            assert home <= vring.da and vring.da + vring.size <= home + size
            if chosen:
                assert vring.da % vring.align == 0 and not any(overlap(written[-1], used) for used in in_use)
        if placed.buffers:
            written.append((placed.buffers.da, 2 * placed.buffers.count * placed.buffers.size))
            home, size = homes[f"vdev{index}buffer"]
            assert home <= placed.buffers.da and sum(written[-1]) <= home + size
            assert not any(overlap(written[-1], used) for used in in_use)
    for place in written:
        memory.space.find_da(*place)
        assert not overlap(place, table)
    for trace in result.traces:
        memory.space.find_da(trace.da, trace.len)
        assert not any(overlap((trace.da, trace.len), place) for place in (table, *written))
    for one, other in pairwise(sorted(written)):
        assert not overlap(one, other)


NAMES = ("a", "b", "vdev0vring0", "vdev0vring1", "vdev0buffer", "vdev1vring0", "vdev1buffer")
NUMS = st.sampled_from((1, 2, 4, 16, 64))
ALIGNS = st.sampled_from((4, 16, 0x1000, 0x4000))
SOMEWHERE = st.one_of(
    st.just(ADDR_ANY),
    st.builds(lambda base, page: base + 0x800 * page, st.sampled_from((ROM, SHM, OCM)), st.integers(0, 24)),
)
IN_USE = st.lists(
    st.tuples(st.sampled_from((ROM, SHM, OCM)), st.integers(0, 0x20000), st.integers(1, 0x2000)).map(
        lambda part: (part[0] + part[1], part[2])
    ),
    max_size=4,
)


def tables(da: st.SearchStrategy[int], names: Iterable[str] = NAMES) -> st.SearchStrategy[list[Entry]]:
    carveout = st.tuples(da, st.integers(1, 0x4000), st.sampled_from(sorted(names))).map(lambda args: Carveout(*args))
    trace = st.tuples(da, st.integers(1, 0x800), st.sampled_from(("t", "u"))).map(lambda args: Trace(*args))
    vring = st.tuples(da, ALIGNS, NUMS).map(lambda args: Vring(*args))
    vdev = st.tuples(st.tuples(vring, vring), st.sampled_from((7, 7, 3))).map(lambda args: Vdev(*args))
    return st.tuples(
        st.lists(carveout, max_size=3, unique_by=lambda carveout: carveout.name),
        st.lists(trace, max_size=2),
        st.lists(vdev, max_size=2),
    ).flatmap(lambda parts: st.permutations([entry for part in parts for entry in part]))


REGISTERED = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(1, 0x20000), SOMEWHERE), max_size=3)


@given(entries=tables(st.just(ADDR_ANY), "abc"), in_use=IN_USE)
@settings(max_examples=150, deadline=None)
def test_what_is_left_to_the_host_is_always_placed(entries: list[Entry], in_use: list[tuple[int, int]]) -> None:
    memory = Memory()
    resources = Resources()
    result = memory.plan(entries, resources, in_use=in_use)
    check(memory, entries, resources, in_use, result)
    for carveout in result.carveouts:
        assert memory.shared.da <= carveout.da < memory.shared.da + memory.shared.size
        assert carveout.da % 0x1000 == 0 and not any(overlap((carveout.da, carveout.size), used) for used in in_use)


@given(entries=tables(SOMEWHERE), registered=REGISTERED, in_use=IN_USE)
@settings(max_examples=400, deadline=None)
def test_whatever_is_fixed_is_refused_or_kept(
    entries: list[Entry], registered: dict[str, tuple[int, int]], in_use: list[tuple[int, int]]
) -> None:
    memory = Memory()
    resources = board(**registered)
    try:
        result = memory.plan(entries, resources, in_use=in_use)
    except ResourceError as error:
        event(f"refused: {str(error).partition(':')[0][:10]}")
        return
    event("planned")
    check(memory, entries, resources, in_use, result)
    for name, (size, da) in registered.items():
        placed, had = places(result)[name]
        assert had == size and da in (ADDR_ANY, placed)
