"""Regions, address spaces and carveouts."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rpmsgx.errors import Closed, ResourceError
from rpmsgx.memory.carveout import Allocator
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace, _aligned

PAGE = mmap.PAGESIZE


def mapped(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        return any(int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16) for line in maps)


def address_of(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# Region


def test_anonymous_is_zeroed_writable_and_shared_with_children() -> None:
    with Region.anonymous("ram", PAGE, da=0x1000) as region:
        assert (region.name, region.size, region.da, region.pa) == ("ram", PAGE, 0x1000, 0x1000)
        assert region.view.tobytes() == bytes(PAGE)
        child = os.fork()
        if child == 0:
            region.view[7] = 42
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert region.view[7] == 42


def test_memfd_is_sealed_and_its_descriptor_maps_the_same_bytes() -> None:
    with Region.memfd("ring", PAGE, da=0x10, pa=0x9000) as region:
        assert region.sealed and region.fd is not None and region.pa == 0x9000
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 2 * PAGE)
        assert not os.get_inheritable(region.fd)
        with Region.from_fd("other", region.fd) as other:
            assert other.sealed and other.size == PAGE and other.fd != region.fd
            other.view[3] = 9
            assert region.view[3] == 9


def test_from_fd_leaves_the_callers_descriptor_alone() -> None:
    with Region.memfd("ring", PAGE) as region:
        assert region.fd is not None
        fd = os.dup(region.fd)
        Region.from_fd("other", fd).close()
        assert os.fstat(fd).st_size == PAGE
        os.close(fd)


def test_an_unsealed_memfd_is_refused_with_the_reason() -> None:
    fd = os.memfd_create("peer", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, PAGE)
        with pytest.raises(ResourceError, match="F_SEAL_SHRINK"):
            Region.from_fd("peer", fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        with Region.from_fd("peer", fd) as region:
            assert region.sealed
    finally:
        os.close(fd)


def test_a_memfd_sealed_against_writing_is_refused() -> None:
    fd = os.memfd_create("peer", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
        with pytest.raises(ResourceError, match="peer"):
            Region.from_fd("peer", fd)
    finally:
        os.close(fd)


def test_from_fd_refuses_what_is_no_memory(tmp_path: Path) -> None:
    ends = socket.socketpair()
    pipe = os.pipe()
    event = os.eventfd(0)
    directory = os.open(tmp_path, os.O_RDONLY)
    zero = os.open("/dev/zero", os.O_RDWR)
    try:
        for fd, what in (
            (ends[0].fileno(), "a socket"),
            (pipe[0], "a pipe"),
            (directory, "a directory"),
            (zero, "a character device"),
            (event, "an anonymous descriptor"),
        ):
            with pytest.raises(ResourceError, match=what):
                Region.from_fd("x", fd, PAGE)
    finally:
        for end in ends:
            end.close()
        for fd in (*pipe, event, directory, zero):
            os.close(fd)
    with pytest.raises(ResourceError, match="Bad file descriptor"):
        Region.from_fd("x", zero, PAGE)


def test_from_fd_stays_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shm"
    path.write_bytes(bytes(PAGE) + b"second page".ljust(PAGE, b"\0"))
    fd = os.open(path, os.O_RDWR)
    try:
        with Region.from_fd("x", fd, offset=PAGE) as region:
            assert not region.sealed and region.size == PAGE
            assert region.view[:6].tobytes() == b"second"
        for size, offset in ((2 * PAGE + 1, 0), (PAGE + 1, PAGE), (1, 2 * PAGE), (1, 1 << 62)):
            with pytest.raises(ResourceError, match=r"size .* but the file has"):
                Region.from_fd("x", fd, size, offset=offset)
        for offset in (1, PAGE - 1, -PAGE):
            with pytest.raises(ResourceError, match="not a multiple"):
                Region.from_fd("x", fd, 1, offset=offset)
        with pytest.raises(ResourceError, match="size 0"):
            Region.from_fd("x", fd, offset=2 * PAGE)
    finally:
        os.close(fd)
    read_only = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ResourceError, match="denied"):
            Region.from_fd("x", read_only)
    finally:
        os.close(read_only)


def test_file_maps_creates_and_refuses_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "shm"
    with Region.file("shm", path, 3 * PAGE, create=True) as region:
        region.view[0] = 1
        assert not region.sealed
    assert path.stat().st_size == 3 * PAGE and path.stat().st_mode & 0o777 == 0o600
    with Region.file("shm", path) as region:
        assert region.size == 3 * PAGE and region.view[0] == 1
    with Region.file("shm", path, PAGE) as region:
        assert region.size == PAGE
    with pytest.raises(ResourceError, match="but the file has"):
        Region.file("shm", path, 4 * PAGE)
    with pytest.raises(FileExistsError):
        Region.file("shm", path, PAGE, create=True)
    with pytest.raises(FileNotFoundError):
        Region.file("shm", tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ResourceError, match="a pipe"):
        Region.file("shm", tmp_path / "fifo", PAGE)


def test_failed_constructors_leak_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ResourceError):
        Region.memfd("x", PAGE, da=(1 << 64) - 1)
    with pytest.raises(ResourceError):
        Region.file("x", tmp_path / "empty")
    with pytest.raises(ResourceError):
        Region.memfd("x", 1 << 62)  # more than the address space: the map fails after the descriptor is there
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, -1, 1 << 63])
def test_sizes_are_checked(size: int) -> None:
    for make in (Region.anonymous, Region.memfd):
        with pytest.raises(ResourceError, match="size"):
            make("x", size)


def test_the_buffer_must_be_writable_contiguous_and_not_empty() -> None:
    for buffer, reason in (
        (bytes(8), "writable"),
        (memoryview(bytearray(8))[::2], "contiguous"),
        (bytearray(), "size"),
    ):
        with pytest.raises(ResourceError, match=reason):
            Region("x", buffer)
    with pytest.raises(ResourceError, match="kind 'warm'"):
        Region("x", bytearray(8), kind="warm")  # type: ignore[arg-type]


def test_addresses_stay_inside_64_bits() -> None:
    Region("x", bytearray(16), da=(1 << 64) - 16)
    for da, pa in (((1 << 64) - 15, 0), (0, (1 << 64) - 15), (-1, 0), (0, -1)):
        with pytest.raises(ResourceError, match="leaves 64 bits"):
            Region("x", bytearray(16), da=da, pa=pa)


def test_close_unmaps_and_is_idempotent() -> None:
    region = Region.memfd("ring", 16 * PAGE)
    fd = region.fd
    assert fd is not None
    place = address_of(region.view)
    gc.collect()
    assert mapped(place)
    region.close()
    region.close()
    assert region.closed and region.fd is None and not mapped(place)
    with pytest.raises(OSError):
        os.fstat(fd)
    for field in ("view", "buffer"):
        with pytest.raises(Closed, match="ring"):
            getattr(region, field)


def test_close_with_exports_alive_waits_for_the_last() -> None:
    region = Region.anonymous("ring", 16 * PAGE)
    view = region.view[8:16]
    place = address_of(view)
    gc.collect()
    region.close()
    assert mapped(place)
    view[0] = 5
    assert view[0] == 5
    del view
    gc.collect()
    assert not mapped(place)


def test_a_forgotten_region_gives_its_descriptor_back() -> None:
    region = Region.memfd("ring", PAGE)
    fd = region.fd
    assert fd is not None
    del region
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(fd)


# AddressSpace


@pytest.fixture
def space() -> AddressSpace:
    return AddressSpace(
        Region.anonymous("tcm", 0x1000, da=0x0, pa=0x8000_0000),
        Region.anonymous("ddr", 0x2000, da=0x2000, pa=0x9000_0000),
        Region.anonymous("ocm", 0x1000, da=0x1000, pa=0x7000_0000),
    )


def test_translation_works_both_ways_for_every_edge(space: AddressSpace) -> None:
    assert [region.name for region in space.regions] == ["tcm", "ocm", "ddr"]
    for da, size, name, offset, pa in (
        (0, 0x1000, "tcm", 0, 0x8000_0000),
        (0xFFF, 1, "tcm", 0xFFF, 0x8000_0FFF),
        (0x1000, 1, "ocm", 0, 0x7000_0000),
        (0x2000, 0x2000, "ddr", 0, 0x9000_0000),
        (0x3FFF, 1, "ddr", 0x1FFF, 0x9000_1FFF),
    ):
        region, at = space.find_da(da, size)
        assert (region.name, at) == (name, offset)
        region, at = space.find_pa(pa, size)
        assert (region.name, at) == (name, offset)
        assert space.da_to_pa(da, size) == pa
        assert space.pa_to_da(pa, size) == da


@pytest.mark.parametrize(
    ("da", "size"),
    [
        (0x4000, 1),
        (0x3FFF, 2),
        (0x0FFF, 2),  # straddles two regions that touch: two maps, not one
        (0, 0x1001),
        (0, 0),
        (0, -1),
        (-1, 1),
        (-1, 2),
        ((1 << 64) - 1, 2),
        (0x2000, (1 << 64) - 0x2000),
        (0x2000, (1 << 64) + 1),
    ],
)
def test_ranges_outside_are_refused(space: AddressSpace, da: int, size: int) -> None:
    for call in (space.find_da, space.view, space.read, space.zero, space.da_to_pa):
        with pytest.raises(ResourceError, match="da "):
            call(da, size)


def test_the_refusal_names_range_and_grants(space: AddressSpace) -> None:
    with pytest.raises(ResourceError) as info:
        space.view(0x3FF0, 0x20)
    assert "da [0x3ff0, 0x4010) (size 0x20)" in str(info.value)
    assert "'tcm' [0x0, 0x1000), 'ocm' [0x1000, 0x2000), 'ddr' [0x2000, 0x4000)" in str(info.value)
    with pytest.raises(ResourceError, match=r"pa \[0x1, 0x2\).*'ocm' \[0x70000000"):
        space.find_pa(1)
    with pytest.raises(ResourceError, match="granted: none"):
        AddressSpace().find_da(0)


def test_overlaps_are_refused_and_show_both_regions(space: AddressSpace) -> None:
    for da, size in ((0x3FFF, 1), (0x3FFF, 0x1000), (0x2800, 0x10), (0xFFF, 2)):
        with pytest.raises(ResourceError, match=rf"region 'new' da \[{da:#x}, {da + size:#x}\) overlaps region"):
            space.add(Region("new", bytearray(size), da=da, pa=0x1_0000_0000))
    with pytest.raises(
        ResourceError, match=r"'new' pa \[0x90001fff, 0x90002fff\) overlaps region 'ddr' pa \[0x90000000"
    ):
        space.add(Region("new", bytearray(0x1000), da=0x4000, pa=0x9000_1FFF))
    assert len(space.regions) == 3
    space.add(Region("new", bytearray(0x1000), da=0x4000, pa=0x9000_2000))
    assert space.find_da(0x4000)[0].name == "new"


@given(
    ranges=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40), st.integers(0, 200)), min_size=1, max_size=12),
    probe=st.tuples(st.integers(0, 260), st.integers(1, 50)),
)
def test_space_agrees_with_a_plain_model(ranges: list[tuple[int, int, int]], probe: tuple[int, int]) -> None:
    space = AddressSpace()
    model: list[tuple[int, int, int]] = []
    for da, size, pa in ranges:
        fits = all((da + size <= d or d + s <= da) and (pa + size <= p or p + s <= pa) for d, s, p in model)
        if fits:
            space.add(Region("r", bytearray(size), da=da, pa=pa))
            model.append((da, size, pa))
        else:
            with pytest.raises(ResourceError, match="overlaps"):
                space.add(Region("r", bytearray(size), da=da, pa=pa))
    start, length = probe
    by_da = [(d, p) for d, s, p in model if d <= start and start + length <= d + s]
    by_pa = [(d, p) for d, s, p in model if p <= start and start + length <= p + s]
    if by_da:
        assert space.da_to_pa(start, length) == by_da[0][1] + start - by_da[0][0]
    else:
        with pytest.raises(ResourceError):
            space.da_to_pa(start, length)
    if by_pa:
        assert space.pa_to_da(start, length) == by_pa[0][0] + start - by_pa[0][1]
    else:
        with pytest.raises(ResourceError):
            space.pa_to_da(start, length)


@pytest.mark.parametrize("kind", ["cached", "uncached", "device"])
@given(data=st.data())
@settings(max_examples=60)
def test_read_write_zero_touch_exactly_their_range(kind: str, data: st.DataObject) -> None:
    plain = bytearray(range(64))
    space = AddressSpace(Region("r", bytearray(plain), da=0x100, kind=kind))  # type: ignore[arg-type]
    for _ in range(3):
        offset = data.draw(st.integers(0, 63))
        size = data.draw(st.integers(1, 64 - offset))
        if data.draw(st.booleans()):
            payload = data.draw(st.binary(min_size=size, max_size=size))
            space.write(0x100 + offset, payload)
            plain[offset : offset + size] = payload
        else:
            space.zero(0x100 + offset, size)
            plain[offset : offset + size] = bytes(size)
        assert space.read(0x100, 64) == plain
        assert space.read(0x100 + offset, size) == plain[offset : offset + size]


@given(offset=st.integers(0, 1 << 20), size=st.integers(1, 1 << 20))
def test_device_memory_is_split_at_word_boundaries(offset: int, size: int) -> None:
    # No memory here traps on an unaligned access, so the split itself is looked at.
    head, body = _aligned(offset, size)
    assert 0 <= head < 4 and body % 4 == 0 and 0 <= size - head - body < 4
    assert body == 0 or (offset + head) % 4 == 0


def test_zero_clears_more_than_its_chunk() -> None:
    size = (1 << 20) + 12345
    space = AddressSpace(Region("r", bytearray(b"\xff" * (size + 2))))
    space.zero(1, size)
    assert space.read(0, size + 2) == b"\xff" + bytes(size) + b"\xff"


def test_view_is_the_memory_itself(space: AddressSpace) -> None:
    view = space.view(0x2010, 4)
    view[:] = b"abcd"
    assert space.read(0x200F, 6) == b"\0abcd\0"


def test_write_takes_any_buffer_and_refuses_none(space: AddressSpace) -> None:
    import array

    space.write(0, array.array("H", [0x4241, 0x4443]))
    assert sorted(space.read(0, 4)) == sorted(b"ABCD")
    with pytest.raises(ResourceError, match="size 0"):
        space.write(0, b"")


def test_a_closed_region_says_so(space: AddressSpace) -> None:
    space.regions[0].close()
    with pytest.raises(Closed, match="tcm"):
        space.read(0, 1)


# Allocator


def test_first_fit_and_alignment() -> None:
    allocator = Allocator(Region("pool", bytearray(0x1000), da=0x10))
    assert allocator.allocate(0x10, 0x100, "a") == 0x100
    assert allocator.allocate(0x10, 0x10, "b") == 0x10
    assert allocator.allocate(0xF0, 1, "c") == 0x110
    assert [name for _, _, name in allocator.reserved] == ["b", "a", "c"]
    with pytest.raises(ResourceError, match=r"^d: no room for 0x1000 .* region 'pool'; the largest gap has 0xe10"):
        allocator.allocate(0x1000, 1, "d")
    assert allocator.allocate(0xE10, 1, "d") == 0x200


def test_reserve_refuses_overlap_and_shows_both_names() -> None:
    allocator = Allocator(Region("pool", bytearray(0x1000)))
    allocator.reserve(0x100, 0x100, "vdev0vring0")
    for da, size in ((0x1FF, 1), (0x80, 0x81), (0x100, 0x100), (0x140, 4), (0, 0x1000)):
        with pytest.raises(ResourceError, match=r"mine \[.*overlaps vdev0vring0 \[0x100, 0x200\)"):
            allocator.reserve(da, size, "mine")
    with pytest.raises(ResourceError, match="mine: da .* is in no granted region"):
        allocator.reserve(0xFFF, 2, "mine")
    allocator.reserve(0x200, 0xE00, "rest")
    allocator.reserve(0, 0x100, "head")
    with pytest.raises(ResourceError, match="largest gap has 0x0"):
        allocator.allocate(1)


def test_what_is_reserved_elsewhere_leaves_the_pool_alone() -> None:
    pool = Region("b", bytearray(0x20), da=0x18)
    allocator = Allocator(
        pool, AddressSpace(Region("a", bytearray(0x18), da=0), pool, Region("c", bytearray(8), da=0x38))
    )
    allocator.reserve(0x10, 8, "before")
    allocator.reserve(0x38, 8, "behind")
    with pytest.raises(ResourceError, match=r"x \[0x17, 0x18\) overlaps before"):
        allocator.reserve(0x17, 1, "x")
    assert allocator.allocate(0x20, 1, "all") == 0x18


def test_what_is_avoided_may_overlap_and_can_be_reserved() -> None:
    allocator = Allocator(Region("pool", bytearray(0x100)))
    for da, size in ((0, 0x10), (8, 0x10), (0xF8, 0x1000), (0x40, 4)):
        allocator.avoid(da, size)
    allocator.reserve(4, 8, "on purpose")
    assert allocator.allocate(0x28, 1) == 0x18
    assert allocator.allocate(0xB4, 1) == 0x44
    with pytest.raises(ResourceError, match="largest gap has 0x0"):
        allocator.allocate(1)


@pytest.mark.parametrize(("size", "align"), [(0, 1), (-1, 1), (1, 0), (1, 3), (1, -4)])
def test_allocate_checks_its_arguments(size: int, align: int) -> None:
    with pytest.raises(ResourceError, match="not"):
        Allocator(Region("pool", bytearray(16))).allocate(size, align)


class AllocatorMachine(RuleBasedStateMachine):
    """The allocator against a plain list of bytes: pool [8, 48), other memory [64, 88)."""

    def __init__(self) -> None:
        super().__init__()
        pool = Region("a", bytearray(40), da=8, pa=1000)
        self.allocator = Allocator(pool, AddressSpace(pool, Region("b", bytearray(24), da=64, pa=2000)))
        self.granted = {*range(8, 48), *range(64, 88)}
        self.taken: set[int] = set()
        self.avoided: set[int] = set()

    @rule(size=st.integers(1, 20), align=st.sampled_from((1, 2, 4, 8, 16)))
    def allocate(self, size: int, align: int) -> None:
        free = set(range(8, 48)) - self.taken - self.avoided
        expected = next((da for da in range(0, 48, align) if free.issuperset(range(da, da + size))), None)
        if expected is None:
            with pytest.raises(ResourceError, match="no room"):
                self.allocator.allocate(size, align, "x")
        else:
            assert self.allocator.allocate(size, align, "x") == expected
            self.taken.update(range(expected, expected + size))

    @rule(da=st.integers(0, 96), size=st.integers(1, 20))
    def reserve(self, da: int, size: int) -> None:
        place = set(range(da, da + size))
        # A place may not reach over regions: here they do not touch.
        if place <= self.granted - self.taken:
            self.allocator.reserve(da, size, "x")
            self.taken |= place
        else:
            with pytest.raises(ResourceError):
                self.allocator.reserve(da, size, "x")

    @rule(da=st.integers(0, 96), size=st.integers(1, 6))
    def avoid(self, da: int, size: int) -> None:
        self.allocator.avoid(da, size)
        self.avoided.update(range(da, da + size))

    @invariant()
    def same_bytes_are_taken(self) -> None:
        assert {at for da, size, _ in self.allocator.reserved for at in range(da, da + size)} == self.taken


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
