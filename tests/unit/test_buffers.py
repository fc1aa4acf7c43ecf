"""Buffers of sizes that the driver chooses, and memory beside the rings, over every local transport."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support_link import ROLES, TRANSPORTS, WAIT, Pair, until

import rpmsgx
from rpmsgx.errors import Closed, MessageSize, ResourceError, StateError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.timer import PolledDoorbell
from rpmsgx.remoteproc import board
from rpmsgx.remoteproc.resources import Resources, plan
from rpmsgx.rpmsg.bus import Bus
from rpmsgx.virtio.file import check_table
from rpmsgx.virtio.layout import BUFSZ, Layout, choose
from rpmsgx.virtio.link import F_BUFSZ, F_NS, Buffers
from rpmsgx.virtio.mem import RegionLink
from rpmsgx.virtio.table import Carveout, Vdev, Vring, build, parse

pytestmark = pytest.mark.timeout(60)
MAX = 65552  # bytes of the largest buffer: the header, the longest message, and one byte to a multiple of 16
SIZES = [16, 32, 512, 528, 65536, MAX]
GFEATURES = 16  # in a vdev


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    buses: list[Any] = []

    def open_(url: str, role: Any, **options: Any) -> Any:
        buses.append(rpmsgx.open(url, role, **options))
        return buses[-1]

    yield open_
    for bus in buses:
        bus.close(linger=0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(transport: str, role: str, **options: Any) -> Pair:
        pairs.append(Pair(transport, role, tmp_path))
        pairs[-1].start(**options)
        return pairs[-1]

    yield make
    for each in pairs:
        each.close()


def room(size: int) -> int:
    return min(size - 16, 65535)


def exchange(sender: Any, receiver: Any, largest: int) -> None:
    """Messages of the extreme sizes arrive as they were sent; one more byte is refused, and said why."""
    for size in sorted({0, min(1, largest), largest}):
        sender.send(os.urandom(size) if size < 100 else bytes(size - 1) + b"!", timeout=WAIT)
        got = receiver.recv(timeout=WAIT)
        assert len(got) == size and (size < 100 or got[-1:] == b"!")
    assert sender.mtu == largest
    with pytest.raises(MessageSize, match=f"a message of {largest + 1} bytes; this link carries at most {largest}$"):
        sender.send(bytes(largest + 1), timeout=WAIT)
    with pytest.raises(MessageSize, match=f"at most {largest}$"):
        sender.claim(largest + 1, timeout=WAIT)


def endpoints(driver: Any, device: Any) -> tuple[Any, Any]:
    """By addresses: announcements do not fit the smallest buffers."""
    return driver.create_endpoint(src=1, dst=2), device.create_endpoint(src=2, dst=1)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_in_both_directions(pair: Callable[..., Pair], transport: str, size: int) -> None:
    both = pair(transport, "driver", num=4, buffer_size=size)
    host, remote = endpoints(both.near, both.far)
    for _ in range(3):  # so each of the four buffers is used again
        exchange(host, remote, room(size))
        exchange(remote, host, room(size))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("role", ROLES)
def test_each_direction_has_its_own(pair: Callable[..., Pair], transport: str, role: str) -> None:
    both = pair(transport, role, num=8, buffer_size=(4096, 64), buffer_count=(3, 5))
    driver, device = (both.near, both.far) if role == "driver" else (both.far, both.near)
    host, remote = endpoints(driver, device)
    exchange(host, remote, 48)
    exchange(remote, host, 4080)
    for sender, receiver, count in ((host, remote, 5), (remote, host, 3)):
        sent = 0
        while sent < 9 and sender.try_send(bytes([sent])):
            sent += 1
        assert sent == count, sender
        assert [receiver.recv(timeout=WAIT)[0] for _ in range(sent)] == list(range(sent))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_short_loan_of_a_large_buffer(pair: Callable[..., Pair], transport: str) -> None:
    both = pair(transport, "driver", num=2, buffer_size=MAX)
    host, remote = endpoints(both.near, both.far)
    for sender, receiver in ((host, remote), (remote, host)):
        with sender.claim(timeout=WAIT) as buffer:
            assert len(buffer) == 65535
            memoryview(buffer)[-4:] = b"tail"
        with receiver.hold(timeout=WAIT) as view:
            assert len(view) == 65535 and bytes(view[-4:]) == b"tail"


def test_the_default_is_openamps_layout() -> None:
    assert choose() == Layout() and Layout().size == 0x80000 and len(Layout().table()) == 88
    assert Layout().buffers == Buffers(0x10000, 256, 512) and Layout().buffers.end == 0x50000


@pytest.mark.parametrize("num", [2, 256, 4096])
@pytest.mark.parametrize("sizes", [(16, 16), (512, 512), (4096, 64), (64, 65552)])
@pytest.mark.parametrize("bulk", [0, 1, 100_000])
def test_the_parts_of_a_layout_do_not_overlap(num: int, sizes: tuple[int, int], bulk: int) -> None:
    layout = choose(num, buffer_size=sizes, bulk=bulk)
    table = parse(layout.table())
    (vdev,) = table.vdevs
    parts = [(0, len(layout.table()))]
    parts += [(vring.da, vring.da + vring.size) for vring in vdev.vrings]
    parts += [(da, da + count * size) for da, count, size in layout.buffers.pools]
    parts += [(each.da, each.da + each.len) for each in table.carveouts]
    assert len(table.carveouts) == bool(bulk) and parts == sorted(parts)
    assert all(end <= start for (_, end), (start, _) in pairwise(parts))
    assert parts[-1][1] <= layout.size


@pytest.mark.parametrize(
    "options, text",
    [
        ({"buffer_size": 0}, "a buffer of 0 bytes: it must have 16 to 65552, a multiple of 16$"),
        ({"buffer_size": 100}, "a buffer of 100 bytes"),
        ({"buffer_size": (512, 65568)}, "a buffer of 65568 bytes"),
        ({"buffer_size": -512}, "a buffer of -512 bytes"),
        ({"buffer_size": (512,)}, r"buffer_size must be a number, or two: \(rx, tx\), not \(512,\)$"),
        ({"buffer_size": "512"}, "buffer_size must be a number"),
        ({"buffer_size": True}, "buffer_size must be a number"),
        ({"buffer_count": 0}, r"buffer_count must be 1 to 256 \(num: one for each descriptor\), not 0$"),
        ({"buffer_count": (4, 257)}, "buffer_count must be 1 to 256 .* not 257$"),
        ({"buffer_count": 3, "num": 2}, "buffer_count must be 1 to 2 "),
        ({"bulk": -1}, "bulk must be 0 to 0x40000000 bytes, not -1$"),
        ({"bulk": 1.5}, "bulk must be 0 to 0x40000000 bytes, not 1.5$"),
        ({"num": 32768, "buffer_size": MAX}, "bytes of memory, the limit is 0x40000000; choose a smaller num"),
        ({"bulk": 1 << 30}, "the limit is 0x40000000"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rpmsgx.open("virtual:refused", "driver", **options)


@pytest.mark.parametrize("option", ["bulk", "bufsz"])
@pytest.mark.parametrize("role", ROLES)
def test_vhost_user_has_no_table(tmp_path: Path, role: Any, option: str) -> None:
    with pytest.raises(ValueError, match="^vhost-user: has neither bulk nor bufsz"):
        rpmsgx.open(f"vhost-user:{tmp_path}/socket", role, **{option: 4096})


def test_the_kernels_buffers_are_the_kernels() -> None:
    with pytest.raises(ValueError, match="^char: has no options"):
        rpmsgx.open("char:", buffer_size=1024)  # type: ignore[call-overload]


# -- who makes a file, and who uses it ---------------------------------------------------------------------------------


def test_a_file_that_is_too_small_for_this_driver(tmp_path: Path, opened: Callable[..., Any]) -> None:
    url = f"file:{tmp_path}/link"
    opened(url, "device")
    text = "size is 0x80000, a driver's buffers end at 0x90000; the end that makes the table needs this driver's buffer"
    with pytest.raises(ResourceError, match=text):
        opened(url, "driver", buffer_size=1024)
    driver = opened(url, "driver", buffer_size=(512, 640))  # the file is larger than 512 bytes would need
    assert driver.link._buffers.pools == ((0x10000, 256, 512), (0x30000, 256, 640))


@pytest.mark.parametrize("first", ROLES)
def test_whoever_makes_the_file_says_how_large_it_is(tmp_path: Path, opened: Callable[..., Any], first: str) -> None:
    url = f"file:{tmp_path}/link"
    order = ROLES if first == "driver" else ROLES[::-1]
    buses = {role: opened(url, role, num=4, buffer_size=MAX, bulk=5000) for role in order}
    assert os.path.getsize(tmp_path / "link") == choose(4, buffer_size=MAX, bulk=5000).size
    until(lambda: all(bus.is_up for bus in buses.values()), *buses.values())
    host, remote = endpoints(buses["driver"], buses["device"])
    exchange(host, remote, 65535)


def test_a_file_that_was_made_anew_with_other_sizes(tmp_path: Path, opened: Callable[..., Any]) -> None:
    url = f"file:{tmp_path}/link"
    driver = opened(url, "driver", server=False, buffer_size=2048, num=8)
    device = opened(url, "device", server=True, create=True, buffer_size=2048, num=16, bulk=4096)
    until(lambda: driver.is_up and device.is_up, driver, device)
    assert driver.link._buffers.count == 16
    driver.carveout("bulk").view[:4] = b"bulk"
    assert bytes(device.carveout("bulk").view[:4]) == b"bulk"
    exchange(*endpoints(driver, device), 2032)


def test_the_ends_of_a_virtual_link_agree(opened: Callable[..., Any]) -> None:
    opened("virtual:sizes", "driver", buffer_size=1024)
    with pytest.raises(StateError, match=r"sizes=\(1024, 1024\).*, not Layout.*sizes=\(512, 512\)"):
        opened("virtual:sizes", "device")


@pytest.mark.parametrize("kind", ["cached", "uncached", "device"])
def test_a_link_in_a_region(kind: Any) -> None:
    """What mem: and uio: make of the memory that they have mapped."""
    layout = choose(4, buffer_size=(65536, 4096), buffer_count=(2, 4), bulk=8192)
    with Region.memfd("link", layout.size) as memory:
        assert memory.fd is not None
        buses = []
        for role, create in (("driver", True), ("device", False)):
            region = Region.from_fd(role, memory.fd, kind=kind)
            bell = PolledDoorbell()
            buses.append(Bus(RegionLink(role, "mem:0", region, layout=layout, doorbell=bell, create=create)))
        driver, device = buses
        try:
            until(lambda: driver.is_up and device.is_up, driver, device)
            host, remote = endpoints(driver, device)
            exchange(host, remote, 4080)
            exchange(remote, host, 65520)
            driver.carveout("bulk").view[4096:4100] = b"here"
            assert device.carveout("bulk").at(driver.carveout("bulk").da + 4096, 4).tobytes() == b"here"
        finally:
            for bus in buses:
                bus.close(linger=0)
        small = Region.anonymous("small", layout.size - 4096)
        with pytest.raises(ResourceError, match="a link takes 0x"):
            RegionLink("driver", "mem:0", small, layout=layout, doorbell=PolledDoorbell(), create=True)


# -- the device says how large -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker, taker", [(True, True), (True, False), (False, True)])
def test_f_bufsz_where_both_ends_have_it(
    tmp_path: Path, opened: Callable[..., Any], maker: bool, taker: bool
) -> None:
    url = f"file:{tmp_path}/link"
    device = opened(url, "device", num=4, buffer_size=(2048, 1024), bufsz=maker)
    driver = opened(url, "driver", bufsz=taker)
    until(lambda: driver.is_up and device.is_up, driver, device)
    (vdev,) = parse((tmp_path / "link").read_bytes()[:0x1000]).vdevs
    both = maker and taker
    assert vdev.dfeatures == F_NS | F_BUFSZ * maker and vdev.gfeatures == F_NS | F_BUFSZ * both
    host, remote = endpoints(driver, device)
    exchange(host, remote, 1008 if both else 496)
    exchange(remote, host, 2032 if both else 496)


def test_the_configuration_space_of_f_bufsz() -> None:
    """Packed: version, size, then the device's tx, which is the driver's rx."""
    (vdev,) = parse(choose(buffer_size=(2048, 1024), bufsz=True).table()).vdevs
    assert vdev.config[:11] == struct.pack("=BHII", 1, 11, 2048, 1024) and vdev.dfeatures == F_NS | F_BUFSZ


@pytest.mark.parametrize(
    "config, text",
    [
        (b"", "F_BUFSZ: the configuration space has 0 bytes, not 11$"),
        (BUFSZ.pack(1, 11, 512, 512)[:10], "has 10 bytes, not 11$"),
        (BUFSZ.pack(2, 11, 512, 512), "F_BUFSZ: version 2 of 11 bytes, not 1 of 11; turn bufsz off$"),
        (BUFSZ.pack(1, 66, 512, 512), "version 1 of 66 bytes"),
        (struct.pack("=HII", 1, 512, 512) + bytes(56), "F_BUFSZ: version 1 of"),  # as it was in v2
        (BUFSZ.pack(1, 11, 8, 512), "a buffer of 8 bytes"),
        (BUFSZ.pack(1, 11, 512, 0xFFFFFFF0), "a buffer of 4294967280 bytes"),
        (BUFSZ.pack(1, 11, 1 << 16, 512), "size is 0x80000, a driver's buffers end at"),
    ],
)
def test_f_bufsz_that_cannot_be_followed(config: bytes, text: str) -> None:
    region = Region.anonymous("table", 0x80000)
    vrings = tuple(Vring(da, 0x1000, 256) for da in (0x4000, 0x8000))
    data = build([Vdev(vrings, dfeatures=F_NS | F_BUFSZ, config=config)])
    region.view[: len(data)] = data
    with pytest.raises(ResourceError, match=text):
        check_table(region, "driver", choose(bufsz=True))
    assert check_table(region, "driver", choose()).buffers == Buffers(0x10000, 256, 512)


# -- bulk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["virtual", "file", "memfd"])
@pytest.mark.parametrize("role", ROLES)
def test_bulk_beside_the_link(pair: Callable[..., Pair], transport: str, role: str) -> None:
    both = pair(transport, role, bulk=1 << 20)
    near, far = both.near.carveout("bulk"), both.far.carveout("bulk")
    assert (near.name, near.da, near.size) == (far.name, far.da, far.size) and len(near) == 1 << 20
    client, service = both.endpoints()
    data = os.urandom(100_000)
    near.at(near.da + 12345, len(data))[:] = data
    client.send(struct.pack("=QI", near.da + 12345, len(data)))
    address, size = struct.unpack("=QI", service.recv(timeout=WAIT))
    assert far.at(address, size).tobytes() == data
    assert far.at(far.da, 0).nbytes == far.at(far.da + far.size, 0).nbytes == 0


@pytest.mark.hostile
@pytest.mark.parametrize("start, size", [(-1, 2), (0, 4097), (4096, 1), (4000, 97), (10, -5), (-(1 << 70), 1)])
def test_an_address_outside_is_refused(opened: Callable[..., Any], start: int, size: int) -> None:
    bulk = opened("virtual:outside", "driver", bulk=4096).carveout("bulk")
    with pytest.raises(ResourceError, match=r"^da \[.*\) is not in <Carveout 'bulk' da \[0x50000, 0x51000\)>$"):
        bulk.at(bulk.da + start, size)


def test_names_that_are_not_there(tmp_path: Path, opened: Callable[..., Any]) -> None:
    with pytest.raises(ResourceError, match="there is no carveout 'bulk'; there is none$"):
        opened("virtual:no-bulk", "driver").carveout("bulk")
    driver = opened("virtual:bulk", "driver", bulk=16)
    with pytest.raises(ResourceError, match="there is no carveout 'blk'; there is 'bulk'$"):
        driver.carveout("blk")
    device = opened(f"memfd:{tmp_path}/socket", "device")
    with pytest.raises(StateError, match="not known before its peer has come"):
        device.carveout("bulk")


def test_a_view_outlives_the_link(opened: Callable[..., Any]) -> None:
    driver = opened("virtual:closed", "driver", bulk=4096)
    view = driver.carveout("bulk").at(driver.carveout("bulk").da + 1, 3)
    driver.close()
    view[:] = b"abc"
    assert view.tobytes() == b"abc"
    with pytest.raises(Closed):
        driver.carveout("bulk")


def table(*carveouts: Carveout) -> Region:
    region = Region.anonymous("table", 0x80000)
    vrings = tuple(Vring(da, 0x1000, 256) for da in (0x4000, 0x8000))
    data = build([Vdev(vrings, dfeatures=F_NS), *carveouts])
    region.view[: len(data)] = data
    return region


@pytest.mark.hostile
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "da, size, text",
    [
        (0, 16, "carveout 'bulk' .* lies in the table, or beyond the file's 0x80000$"),
        (0x20, 4096, "lies in the table"),
        (0x7F000, 0x1001, "beyond the file's 0x80000"),
        (0xFFFFF000, 0x1000, "beyond the file's 0x80000"),
        (0x4000, 16, "overlaps"),
    ],
)
def test_a_carveout_where_none_can_be(role: Any, da: int, size: int, text: str) -> None:
    with pytest.raises(ResourceError, match=text):
        check_table(table(Carveout(da, size, "bulk")), role, Layout())


@pytest.mark.hostile
def test_a_carveout_on_the_drivers_buffers() -> None:
    region = table(Carveout(0x4FFF0, 0x1000, "bulk"))
    with pytest.raises(ResourceError, match=r"a driver's buffers \[0x10000, 0x50000\) overlap carveout 'bulk'"):
        check_table(region, "driver", Layout())
    assert check_table(region, "device", Layout()).named == {"bulk": (0x4FFF0, 0x1000)}


@pytest.mark.hostile
def test_a_carveout_of_the_table_is_behind_its_end() -> None:
    """A device must not take descriptors into any entry of the table."""
    found = check_table(table(Carveout(0x60000, 16, "bulk")), "device", Layout())
    assert found.table_end == 16 + 2 * 4 + 68 + 56


CHILD = """
import struct, sys
import rpmsgx
with rpmsgx.open(sys.argv[1], "device") as bus:
    endpoint = bus.open("bulk", timeout=10)
    endpoint.send(b"here")
    address, size = struct.unpack("=QI", endpoint.recv(timeout=10))
    view = bus.carveout("bulk").at(address, size)
    view[:] = bytes(reversed(view))
    endpoint.send(b"x" * endpoint.mtu)
    assert endpoint.recv(timeout=10) == b"bye"
"""


@pytest.mark.parametrize("transport", ["file", "memfd"])
def test_two_processes(tmp_path: Path, transport: str) -> None:
    url = f"{transport}:{tmp_path}/link"
    with rpmsgx.open(url, "driver", num=4, buffer_size=65536, bulk=1 << 22) as driver:
        endpoint = driver.create_endpoint("bulk")
        child = subprocess.Popen([sys.executable, "-c", CHILD, url], stderr=subprocess.PIPE, text=True)
        try:
            assert endpoint.recv(timeout=WAIT) == b"here"
            bulk = driver.carveout("bulk")
            data = os.urandom(1 << 21)
            bulk.at(bulk.da + mmap.PAGESIZE, len(data))[:] = data
            endpoint.send(struct.pack("=QI", bulk.da + mmap.PAGESIZE, len(data)))
            assert endpoint.recv(timeout=WAIT) == b"x" * 65520
            assert bulk.at(bulk.da + mmap.PAGESIZE, len(data)).tobytes() == data[::-1]
            endpoint.send(b"bye")
            assert child.communicate(timeout=WAIT) == (None, "") and child.returncode == 0
        finally:
            child.kill()
            child.communicate()


# -- remote cores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes, counts", [(2048, 64), ((4096, 1024), (16, 8))])
def test_a_remote_with_other_buffers(sizes: Any, counts: Any) -> None:
    given = Resources()
    given.buffer_size, given.buffer_count = sizes, counts
    given.carveout("frames", 0x4000, owner="a test")
    with rpmsgx.Remoteproc(platform="native", firmware="sample", resources=given) as rproc:
        endpoint = rproc.open("rpmsg-raw", timeout=WAIT)
        largest = (sizes if isinstance(sizes, int) else sizes[1]) - 16
        assert endpoint.mtu == largest
        data = os.urandom(largest)
        endpoint.send(data)
        assert endpoint.recv(timeout=WAIT) == data
        frames = endpoint.bus.carveout("frames")
        assert frames.size == 0x4000 and rproc.platform.space.find_da(frames.da, frames.size)
        frames.view[:5] = b"frame"
        assert rproc.platform.space.read(frames.da, 5) == b"frame"


@pytest.mark.parametrize("bufsz", [None, False, True])
def test_a_firmware_that_says_how_large(bufsz: bool | None) -> None:
    shared = Region.anonymous("shm", 0x100000, da=0x6000_0000)
    config = BUFSZ.pack(1, 11, 2048, 1024)
    vdev = Vdev((Vring(0xFFFFFFFF, 16, 8),) * 2, dfeatures=F_NS | F_BUFSZ, config=config)
    given = Resources()
    given.buffer_size, given.bufsz = 256, bufsz
    result = plan(given, parse(build([vdev])), 0x6000_0000, AddressSpace(shared), shared)
    (placed,) = result.vdevs
    assert placed.buffers is not None
    (_, *rx), (_, *tx) = placed.buffers.pools
    assert (rx, tx, placed.buffers.bufsz) == (([8, 2048], [8, 1024], True) if bufsz else ([8, 256], [8, 256], False))
    reserved = {carveout.name: carveout.size for carveout in result.carveouts}
    assert reserved["vdev0buffer"] == placed.buffers.end - placed.buffers.da


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("buffer_size", 100, "a buffer of 100 bytes: it must have 16 to 65552, a multiple of 16"),
        ("buffer_size", (512, 512, 512), "buffer_size must be a number, or two"),
        ("buffer_count", "8", "buffer_count must be a number, or two"),
    ],
)
def test_buffers_that_a_remote_cannot_have(field: str, value: Any, text: str) -> None:
    shared = Region.anonymous("shm", 0x100000, da=0x6000_0000)
    given = Resources()
    setattr(given, field, value)
    table = parse(build([Vdev((Vring(0xFFFFFFFF, 16, 8),) * 2)]))
    with pytest.raises(ResourceError, match=text):
        plan(given, table, 0x6000_0000, AddressSpace(shared), shared)


def board_file(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(f'platform = "native"\n{text}\n')
    return path


@pytest.mark.parametrize(
    "text, size, count, bufsz",
    [
        ("", None, None, None),
        ('[rpmsg]\nbuffer_size = "4KiB"', 4096, None, None),
        ("[rpmsg]\nbuffer_size = [65552, 16]\nbuffer_count = [1, 32768]\nbufsz = true", (65552, 16), (1, 32768), True),
    ],
)
def test_a_boards_buffers(tmp_path: Path, text: str, size: Any, count: Any, bufsz: Any) -> None:
    resources = board.load(board_file(tmp_path, text)).resources
    assert (resources.buffer_size, resources.buffer_count, resources.bufsz) == (size, count, bufsz)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("buffer_size = 100", "buffer_size: a buffer of 100 bytes: it must have 16 to 65552, a multiple of 16"),
        ("buffer_size = 65568", "buffer_size: 0x10020 is out of range; write 0x1 to 0x10010"),
        ("buffer_size = [512]", "buffer_size: [512] is not one number for each direction; write [rx, tx]"),
        ('buffer_count = "8"', "buffer_count: '8' is no integer; write 0x1000 or 4096, without quotes"),
        ("buffer_count = [8, 0]", "buffer_count: 0 is out of range; write 0x1 to 0x8000"),
        ("bufsz = 1", "bufsz: 1 is no boolean; write true or false"),
    ],
)
def test_a_boards_buffers_that_cannot_be(tmp_path: Path, text: str, problem: str) -> None:
    _, ((line, what),) = board.check(board_file(tmp_path, f"[rpmsg]\n{text}"))
    assert line == 3 and what == f"[rpmsg] {problem}"


def test_a_board_with_larger_buffers(tmp_path: Path) -> None:
    path = board_file(tmp_path, "[rpmsg]\nbuffer_size = 8192\nbuffer_count = 8")
    with rpmsgx.Remoteproc(board=path, firmware="sample") as rproc:
        endpoint = rproc.open("rpmsg-raw", timeout=WAIT)
        assert endpoint.mtu == 8176
        endpoint.send(bytes(8176))
        assert endpoint.recv(timeout=WAIT) == bytes(8176)
