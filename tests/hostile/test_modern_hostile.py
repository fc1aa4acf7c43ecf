# SPDX-License-Identifier: BSD-3-Clause
"""`layout="modern"` against an other end that writes what it likes into the block: typed errors, and a link that can
begin again."""

from __future__ import annotations

import gc
import mmap
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support_link import ROLES, WAIT, until
from support_modern import (
    AGREED,
    AVAIL,
    DESC,
    DEVICE_STATUS,
    DRIVER_STATUS,
    FAILED,
    GENERATION,
    NEEDS_RESET,
    NUM_MAX,
    QUEUE_NUM,
    READY,
    RING_PACKED,
    SIZE,
    UP,
    USED,
    VERSION_1,
    modern,
    queue,
)
from support_wire import NS, NUM

import rpmsgx
from rpmsgx.virtio.modern import ModernLayout

pytestmark = [pytest.mark.timeout(60), pytest.mark.hostile]
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

# Field, width, value, and what the refusal speaks of. The rings lie at 0x1000 and 0x3000, of 8 descriptors.
BAD: dict[str, tuple[int, int, int, str]] = {
    "no descriptors": (QUEUE_NUM, 4, 0, "num is 0"),
    "no power of two": (QUEUE_NUM, 4, 6, "num is 6"),
    "more than num max": (QUEUE_NUM, 4, 2 * NUM, "num is 16"),
    "more than virtio has": (QUEUE_NUM, 4, 1 << 16, "num is 65536"),
    "the most a word holds": (QUEUE_NUM, 4, 0xFFFFFFFF, "num is 4294967295"),
    "not ready": (READY, 4, 0, "ready is 0"),
    "more than ready": (READY, 4, 0x101, "ready is 257"),
    "descriptors misaligned": (DESC, 8, 0x1008, "multiple of 16"),
    "avail ring misaligned": (AVAIL, 8, 0x1081, "multiple of 2"),
    "used ring misaligned": (USED, 8, 0x2002, "multiple of 4"),
    "descriptors behind the end": (DESC, 8, SIZE, "beyond"),
    "avail ring across the end": (AVAIL, 8, SIZE - 2, "beyond"),
    "used ring at the top": (USED, 8, (1 << 64) - 4, "beyond"),
    "descriptors that wrap": (DESC, 8, (1 << 64) - 16, "beyond"),
    "beyond 32 bits": (DESC, 8, 0x1_0000_1000, "beyond"),
    "descriptors in the block": (DESC, 8, 0xF0, "overlap"),
    "avail ring in the block": (AVAIL, 8, 0x28, "overlap"),
    "used ring over descriptors": (USED, 8, 0x1000, "overlap"),
    "used ring over the other queue": (USED, 8, 0x3078, "overlap"),
}


# Of packed ones the driver's structure lies at 0x1080 and 0x3080, the device's at 0x10c0 and 0x30c0.
BAD_PACKED: dict[str, tuple[int, int, int, str]] = {
    "no descriptors": (QUEUE_NUM, 4, 0, "num is 0"),
    "more than num max": (QUEUE_NUM, 4, NUM + 1, "num is 9, not from 1 up to 8"),
    "more than virtio has": (QUEUE_NUM, 4, 0x8001, "num is 32769"),
    "the most a word holds": (QUEUE_NUM, 4, 0xFFFFFFFF, "num is 4294967295"),
    "not ready": (READY, 4, 0, "ready is 0"),
    "descriptors misaligned": (DESC, 8, 0x1008, "multiple of 16"),
    "driver's structure misaligned": (AVAIL, 8, 0x1082, "multiple of 4"),
    "device's structure misaligned": (USED, 8, 0x10C2, "multiple of 4"),
    "descriptors across the end": (DESC, 8, SIZE - 16 * NUM + 16, "beyond"),
    "driver's structure behind the end": (AVAIL, 8, SIZE, "beyond"),
    "device's structure at the top": (USED, 8, (1 << 64) - 4, "beyond"),
    "beyond 32 bits": (AVAIL, 8, 0x1_0000_1080, "beyond"),
    "descriptors in the block": (DESC, 8, 0xF0, "overlap"),
    "driver's structure in the block": (AVAIL, 8, 0xFC, "overlap"),
    "device's structure in the block": (USED, 8, 0x18, "overlap"),
    "driver's structure over descriptors": (AVAIL, 8, 0x107C, "overlap"),
    "both structures in one place": (USED, 8, 0x1080, "overlap"),
    "device's structure over the other queue": (USED, 8, 0x3000, "overlap"),
    "driver's structure over the other queue's": (AVAIL, 8, 0x30C0, "overlap"),
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("packed, name", [(False, name) for name in BAD] + [(True, name) for name in BAD_PACKED])
def test_queues_that_cannot_be(packed: bool, name: str, index: int) -> None:
    field, width, value, reason = (BAD_PACKED if packed else BAD)[name]
    if index == 1 and "misaligned" not in name and value in range(0x1000, 0x4000):
        value ^= 0x2000  # where the queues lie the other way round
    with modern("device", packed=packed) as wire:
        assert wire.peer.features_ok(NS | VERSION_1 | RING_PACKED * packed) == AGREED
        wire.peer.place()
        good = wire.get(queue(index, field), width)
        wire.put(queue(index, field), value, width)
        wire.peer.say(UP)
        wire.rung()
        with pytest.raises(rpmsgx.ResourceError, match=reason):
            wire.look()
        assert wire.get(DEVICE_STATUS) == AGREED | NEEDS_RESET and wire.rung()
        assert not wire.look() and wire.bus.poll() == 0  # said once
        wire.put(queue(index, field), good, width)
        assert not wire.look()  # it does not look again before the reset
        wire.meet(NS | VERSION_1 | RING_PACKED * packed)


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("at", [DRIVER_STATUS, 0x20, 0x24])
def test_a_driver_that_says_anything(at: int, value: int) -> None:
    """At each step: no session that was not agreed on, and a reset gets out of it."""
    with modern("device") as wire:
        for stage in range(4):
            wire.peer.reset()
            if stage > 0:
                wire.peer.features_ok(NS | VERSION_1)
            if stage > 1:
                wire.meet()
            if stage > 2:
                wire.rings[1].avail_idx = 100
            try:
                wire.put(at, value)
                wire.look()
                wire.bus.create_endpoint().try_recv()
            except (rpmsgx.ResourceError, rpmsgx.PeerError):
                pass
            assert wire.get(DEVICE_STATUS) in (0, 3, AGREED, UP, *(NEEDS_RESET | word for word in (0, 3, AGREED, UP)))
        wire.peer.reset()
        wire.meet()


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("at", [DEVICE_STATUS, GENERATION, 0x10, 0x14, queue(0, NUM_MAX), queue(1, NUM_MAX)])
def test_a_device_that_says_anything(at: int, value: int) -> None:
    with modern("driver") as wire:
        wire.meet()
        generation = 2
        for stage in range(4):
            wire.peer.come(generation)
            wire.look()
            assert wire.get(DRIVER_STATUS) == 0
            if stage > 0:
                wire.peer.say(0)
                wire.look()
            if stage > 1:
                wire.peer.say(AGREED)
                wire.peer.filled = wire.peer.taken = 0
                assert wire.look()
            if stage > 2:
                wire.rings[0].used_idx = 100
            try:
                wire.put(at, value)
                wire.look()
                wire.bus.create_endpoint(dst=50).try_recv()
            except (rpmsgx.ResourceError, rpmsgx.PeerError, rpmsgx.ChannelRemoved):
                pass
            assert wire.get(DRIVER_STATUS) & ~FAILED in (0, 3, AGREED, UP)
            generation += 1
        wire.peer.come(generation)
        wire.look()
        wire.meet()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_a_block_that_changes_while_in_use(role: Any, packed: bool) -> None:
    """All of it but the other end's status and the generation: it was read once, and is not read again."""
    with modern(role, packed=packed) as wire:
        wire.meet()
        ept = wire.bus.create_endpoint(dst=50)
        kept = {DRIVER_STATUS, DEVICE_STATUS, GENERATION}
        for value in (0, 0xFFFFFFFF, 0x41414141):
            for at in range(0, 0x100, 4):
                if at not in kept:
                    wire.put(at, value)
            assert wire.look()
            wire.peer.deliver(b"in", dst=ept.addr)
            assert ept.recv(timeout=0) == b"in"
            ept.send(b"out", timeout=0)
            assert wire.peer.take() == (ept.addr, 50, b"out")


def test_a_device_that_is_another_one_each_time() -> None:
    """The driver takes one step for each look and keeps nothing."""
    with modern("driver") as wire:
        for generation in range(1, 2000):
            wire.put(GENERATION, generation)
            wire.peer.say((0, AGREED, NEEDS_RESET, UP)[generation % 4])
            try:
                wire.look()
            except rpmsgx.ResourceError:
                pass
        wire.peer.come(2000)
        wire.look()
        wire.meet()
        wire.writes.clear()


def test_a_driver_that_resets_all_the_time() -> None:
    with modern("device") as wire:
        for turn in range(500):
            wire.peer.meet()
            wire.peer.say((0, 0, FAILED, UP & ~4)[turn % 4])
            wire.look()
        wire.peer.reset()
        wire.meet()
        assert wire.bus.counters["resets"] == 500


OFFERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "magic is 0x0"),
    "OpenAMP's table": (struct.pack("<4I", 1, 1, 0, 0), "magic is 0x1"),
    "virtio-mmio": (struct.pack("<3I", 0x74726976, 2, 7), "magic"),
    "another version": (b"rpxm" + struct.pack("<2I", 2, 7), "version is 0x2"),
    "another device": (b"rpxm" + struct.pack("<2I", 1, 3), "device id is 0x3"),
    "no device": (b"rpxm" + struct.pack("<2I", 1, 0), "device id is 0x0"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", OFFERS)
def test_a_file_without_such_a_block_is_refused(tmp_path: Path, role: Any, name: str) -> None:
    start, reason = OFFERS[name]
    path = tmp_path / "link"
    path.write_bytes(start + bytes(SIZE - len(start)))
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(rpmsgx.ResourceError, match=reason) as error:
        rpmsgx.open(f"file:{path}", role, layout="modern")
    assert str(path) in str(error.value) and len(os.listdir("/proc/self/fd")) == before
    path.write_bytes(b"rpxm")
    with pytest.raises(rpmsgx.ResourceError, match="size is 0x4"):
        rpmsgx.open(f"file:{path}", role, layout="modern")
    with rpmsgx.open(f"file:{path}", role, layout="modern", create=True) as bus:
        assert not bus.is_up


@pytest.mark.parametrize("transport", ["file", "memfd"])
@pytest.mark.parametrize("role", ROLES)
def test_two_layouts_do_not_meet(tmp_path: Path, role: Any, transport: str) -> None:
    """A file is refused at once, memory when it is handed over."""
    url, other = f"{transport}:{tmp_path}/link", ROLES[1 - ROLES.index(role)]
    with pytest.raises(rpmsgx.ResourceError, match=r"modern|resource table"):
        with (
            rpmsgx.open(url, role, layout="modern") as one,
            rpmsgx.open(url, other) as two,  # type: ignore[call-overload]
        ):
            until(lambda: False, one, two)


def test_a_file_too_small_for_the_driver(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.write_bytes(ModernLayout().table() + bytes(0x10000))
    with (
        rpmsgx.open(f"file:{path}", "driver", layout="modern") as driver,
        rpmsgx.open(f"file:{path}", "device", layout="modern") as device,
    ):
        with pytest.raises(rpmsgx.ResourceError, match="buffers end at 0x50000"):
            until(lambda: driver.is_up, driver, device)
        assert not device.is_up
        assert path.read_bytes()[DRIVER_STATUS] == AGREED | FAILED


def test_other_transports_have_no_such_layout() -> None:
    for url in ("virtual:x", "vhost-user:x", "mem:0x10000000", "uio:x"):
        with pytest.raises(ValueError, match="modern"):
            rpmsgx.open(url, "device", layout="modern")
    for option in ({"bulk": 4096}, {"bufsz": True}):
        with pytest.raises(ValueError, match="neither bulk nor bufsz"):
            rpmsgx.open("file:x", "device", layout="modern", **option)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match='"openamp" or "modern"'):
        rpmsgx.open("virtual:x", "device", layout="ancient")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("doorbell", [None, "none"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("seed", range(3))
def test_every_byte_can_change_at_any_time(tmp_path: Path, role: Any, seed: int, doorbell: Any, packed: bool) -> None:
    """Somebody scribbles over block, rings and buffers: typed errors, and buses that can be closed and opened again."""
    path = tmp_path / "link"
    rng = random.Random(seed)
    options: dict[str, Any] = {"layout": "modern", "packed": packed} | ({"doorbell": doorbell} if doorbell else {})
    places = [(0x10, 0xC0), (0x10, 0x30), (0x10000, 0x10400)]
    places += [(0x4000, 0x5044), (0x8000, 0x9044)] if packed else [(0x4000, 0x6806), (0x8000, 0xA806)]
    other = ROLES[1 - ROLES.index(role)]
    near: Any = rpmsgx.open(f"file:{path}", role, **options)
    far: Any = rpmsgx.open(f"file:{path}", other, **options)
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as memory:
        for turn in range(600):
            for bus in (near, far):
                try:
                    bus.poll()
                    endpoint = bus.create_endpoint(f"e{turn}", overflow="drop")
                    endpoint.send_to(rng.randbytes(rng.randrange(497)), 1024, timeout=0)
                    endpoint.close()
                except rpmsgx.Error:
                    pass
            memory[rng.randrange(*rng.choice(places))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
    for bus in (near, far):
        bus.close(linger=0)
    with (
        rpmsgx.open(f"file:{path}", "driver", **options) as driver,
        rpmsgx.open(f"file:{path}", "device", **options) as device,
    ):
        until(lambda: driver.is_up and device.is_up, driver, device)
        service = driver.create_endpoint("again")
        client = device.open("again", timeout=WAIT)
        client.send(b"x")
        until(lambda: service.try_recv() == b"x", device)


CHILD = """
import sys, rpmsgx
with rpmsgx.open(sys.argv[1], sys.argv[2], layout="modern", doorbell="none", packed=sys.argv[3] == "True") as bus:
    endpoint = bus.create_endpoint("child")
    while True:
        try:
            message, src = endpoint.recv_from()
            endpoint.send_to(message, src)
        except rpmsgx.ChannelRemoved:
            pass
"""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_killed_and_back_without_a_doorbell(tmp_path: Path, role: Any, packed: bool) -> None:
    """Nothing but the words in memory tells that the other end died and another one came."""
    url = f"file:{tmp_path}/link"
    other = ROLES[1 - ROLES.index(role)]
    root = str(Path(rpmsgx.__file__).parent.parent)
    with rpmsgx.open(url, role, layout="modern", doorbell="none", packed=packed) as bus:
        for turn in range(3):
            words = [sys.executable, "-c", CHILD, url, other, str(packed)]
            with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": root}) as child:
                try:
                    # The channel of the one before goes with the reset that this one asks for.
                    until(lambda turn=turn: bus.counters["resets"] == turn and bus.channels, bus, timeout=30)
                    endpoint = bus.open("child", timeout=WAIT)
                    for i in range(50):
                        endpoint.send(b"%d" % i, timeout=WAIT)
                        assert endpoint.recv(timeout=WAIT) == b"%d" % i
                finally:
                    child.kill()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_a_file_that_is_truncated(tmp_path: Path, role: Any, packed: bool) -> None:
    program = """
import os, sys, rpmsgx
path, role, other, packed = sys.argv[1:]
near, far = (rpmsgx.open(f"file:{path}", end, layout="modern", packed=packed == "True") for end in (role, other))
while not (near.is_up and far.is_up):
    near.poll(timeout=0.01), far.poll(timeout=0.01)
os.truncate(path, 0)
for bus in (near, far):
    for _ in range(3):
        try:
            bus.create_endpoint().recv(timeout=0.01)
        except (rpmsgx.ChannelRemoved, rpmsgx.Timeout):
            pass
    assert not bus.is_up and bus.link.ended
near.close(), far.close()
"""
    root = str(Path(rpmsgx.__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "link"), role, ROLES[1 - ROLES.index(role)], str(packed)],
        check=True,
        timeout=WAIT,
        env=os.environ | {"PYTHONPATH": root},
    )
