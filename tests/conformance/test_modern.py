# SPDX-License-Identifier: BSD-3-Clause
"""VIRTIO 1.2, 2.1, 2.2, 2.4, 2.7.1, 3.1 and 6 on a link with `layout="modern"`, in both roles; the other end by hand.

Such a link is a VIRTIO 1.x one: 64 feature bits with VERSION_1, FEATURES_OK, a reset that is read back, and a word of
the device's own for its status.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from support_link import WAIT, until
from support_modern import (
    ACKNOWLEDGE,
    AGREED,
    AVAIL,
    DESC,
    DEVICE_FEATURES,
    DEVICE_STATUS,
    DRIVER,
    DRIVER_FEATURES,
    DRIVER_OK,
    DRIVER_STATUS,
    FAILED,
    GENERATION,
    NEEDS_RESET,
    NUM_MAX,
    QUEUE_NUM,
    READY,
    RING_PACKED,
    UP,
    USED,
    VERSION_1,
    modern,
    queue,
)
from support_wire import BUFFER, EVENT_IDX, INDIRECT_DESC, NS, NUM, PA, Call, blocked

import rpmsgx

ALL = NS | INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED
FIELDS = (READY, QUEUE_NUM, DESC, DESC + 4, AVAIL, AVAIL + 4, USED, USED + 4)

rule = pytest.mark.rule
packed_or_not = pytest.mark.parametrize("packed", [False, True])


def statuses(wire: Any) -> list[int]:
    return [value for at, value in wire.writes if at == DRIVER_STATUS]


# -- driver ----------------------------------------------------------------------------------------------------------


@rule("2.1.1-1", "2.1.1-2", "3.1.1-1", "3.1.1-3", "3.1.1-5", "2.4.2-1")
def test_the_driver_goes_step_by_step() -> None:
    """Reset and its read-back, ACKNOWLEDGE, DRIVER, features, FEATURES_OK and its re-read, queues, DRIVER_OK."""
    with modern("driver") as wire:
        for _ in range(3):
            reset = [(queue(0, READY), 0), (queue(1, READY), 0), (DRIVER_STATUS, 0)]
            assert wire.writes == reset
            wire.look()
            assert wire.writes == reset and not wire.bus.is_up  # the device has not answered
            wire.peer.say(0)
            wire.look()
            accepted = [(DRIVER_FEATURES, NS), (DRIVER_FEATURES + 4, 1)]
            steps = [(DRIVER_STATUS, ACKNOWLEDGE), (DRIVER_STATUS, ACKNOWLEDGE | DRIVER), *accepted]
            assert wire.writes[3:] == [*steps, (DRIVER_STATUS, AGREED)]
            wire.look()
            assert wire.get(DRIVER_STATUS) == AGREED and not wire.bus.is_up
            wire.rung()
            wire.peer.say(AGREED)
            wire.peer.filled = 0
            assert wire.look() and wire.rung()
            # The queues lie behind the answer; DRIVER_OK is not written through the view, but with a store-release.
            assert [at for at, _ in wire.writes[8:]] == [
                queue(index, field) for index in (0, 1) for field in (*FIELDS[1:], READY)
            ]
            assert wire.get(DRIVER_STATUS) == UP
            assert wire.rings[0].avail_idx == NUM  # its buffers are posted
            wire.writes.clear()
            wire.peer.come(wire.get(GENERATION) + 1)
            wire.look()


@rule("2.7.3-1", "2.7.1-1")
@packed_or_not
def test_where_the_driver_has_its_queues(packed: bool) -> None:
    """Three addresses for each; what they say is where the rings are, and entries lie there."""
    with modern("driver", packed=packed) as wire:
        wire.meet()
        for index, ring in enumerate(wire.rings):
            assert (wire.get(queue(index, QUEUE_NUM)), wire.get(queue(index, READY))) == (NUM, 1)
            places = [wire.get(queue(index, field), 8) for field in (DESC, AVAIL, USED)]
            assert places == [ring.base, ring.avail, ring.used]
            assert [at % align for at, align in zip(places, (16, 2, 4), strict=True)] == [0, 0, 0]
        ept = wire.bus.create_endpoint(dst=50)
        for _ in range(3 * NUM):
            wire.peer.deliver(b"in")
            assert ept.recv(timeout=0) == b"in"
            ept.send(b"out", timeout=0)
            assert wire.peer.take() == (ept.addr, 50, b"out")


@rule("2.4.2-1", "2.1.1-4")
def test_the_driver_waits_for_the_reset_without_blocking() -> None:
    """A device that does not answer holds up no call without a timeout, and no other for longer than its own."""
    with modern("driver") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        assert wire.bus.poll() == 0 and not wire.bus.is_up
        with pytest.raises(rpmsgx.Timeout):
            ept.send(b"x", timeout=0.01)
        waiting = Call(ept.recv, timeout=5)
        blocked(waiting)
        wire.peer.meet()
        wire.peer.deliver(b"late")
        wire.far_bell.kick(0)
        assert waiting.outcome() == b"late"


@rule("2.1.1-4", "2.4.2-1", "2.1.1-2")
@packed_or_not
def test_a_device_that_needs_reset_is_reset(packed: bool) -> None:
    """What was in flight is not relied on: all buffers are everybody's again."""
    with modern("driver", packed=packed) as wire:
        wire.meet()
        ept = wire.bus.create_endpoint(dst=50)
        for _ in range(3):
            while ept.try_send(b"in flight"):
                pass
            waiting = Call(ept.recv)
            blocked(waiting)
            wire.peer.say(UP | NEEDS_RESET)
            wire.far_bell.kick(0)
            with pytest.raises(rpmsgx.ChannelRemoved):
                waiting.outcome()
            assert not wire.bus.is_up and wire.get(DRIVER_STATUS) == 0
            wire.meet()
            assert wire.bus.counters["outstanding"] == 0
        assert statuses(wire) == [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, AGREED] * 4


@rule("2.4.2-1", "3.1.1-1")
@pytest.mark.parametrize("stale", [ACKNOWLEDGE | DRIVER, AGREED, UP, UP | NEEDS_RESET, FAILED])
def test_a_reset_is_done_at_0_and_at_nothing_else(stale: int) -> None:
    """Such as what a device that died has left."""
    with modern("driver") as wire:
        wire.peer.say(stale)
        wire.look()
        assert wire.get(DRIVER_STATUS) == 0
        wire.meet()


@rule("3.1.1-1", "2.1.1-3")
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("word, generation", [(AGREED, 2), (ACKNOWLEDGE | DRIVER, 2), (0, 2), (NEEDS_RESET, 1)])
def test_what_was_agreed_on_with_another_device_counts_for_nothing(up: bool, word: int, generation: int) -> None:
    with modern("driver") as wire:
        wire.peer.say(0)
        wire.look()
        assert wire.get(DRIVER_STATUS) == AGREED
        if up:
            wire.peer.say(AGREED)
            assert wire.look()
        wire.put(GENERATION, generation)
        wire.peer.say(word)
        wire.look()
        assert not wire.bus.is_up and statuses(wire).count(0) == 2
        wire.peer.come(generation=3)
        wire.look()
        wire.meet()


@rule("2.2.1-1", "2.2.1-2", "2.2.1-3", "2.2.1-4", "2.2.1-6", "6.1-1", "6.1-2")
@pytest.mark.parametrize("bit", [None, 0, 1, 24, 28, 29, 30, 33, 34, 35, 38, 40, 63, range(64)])
def test_of_each_bit_on_offer(bit: Any) -> None:
    """VERSION_1 is accepted wherever it is offered; of the others those that this driver honours."""
    bits = bit if isinstance(bit, range) else [] if bit is None else [bit]
    offered = VERSION_1 | sum(1 << n for n in bits if n != 32)
    with modern("driver", offers=offered, packed=bool(offered & RING_PACKED)) as wire:
        wire.meet()
        assert wire.get(DRIVER_FEATURES, 8) == offered & ALL
        assert wire.get(DEVICE_FEATURES, 8) == offered
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"works")
        assert ept.recv(timeout=0) == b"works"


@rule("2.2.1-5", "3.1.1-4")
@pytest.mark.parametrize("offered", [0, NS, NS | EVENT_IDX, 0xFFFFFFFF, ~VERSION_1 & (1 << 64) - 1])
def test_a_device_without_version_1_is_not_driven(offered: int) -> None:
    with modern("driver", offers=offered) as wire:
        wire.peer.say(0)
        with pytest.raises(rpmsgx.ResourceError, match="VERSION_1"):
            wire.look()
        assert wire.get(DRIVER_STATUS) == ACKNOWLEDGE | DRIVER | FAILED
        assert wire.get(DRIVER_FEATURES, 8) == 0


@rule("3.1.1-1", "3.1.1-4", "2.2.1-5", "2.1.1-3")
def test_a_device_that_does_not_take_the_features() -> None:
    """FEATURES_OK does not stay: no queues, no DRIVER_OK, but FAILED; and a reset before another try."""
    with modern("driver") as wire:
        wire.peer.say(0)
        wire.look()
        wire.writes.clear()
        wire.peer.say(ACKNOWLEDGE | DRIVER)
        for _ in range(3):
            with pytest.raises(rpmsgx.ResourceError, match="does not take features 0x100000001"):
                wire.look()
        assert wire.writes == [(DRIVER_STATUS, AGREED | FAILED)]
        assert wire.get(queue(0, READY)) == 0 and wire.rings[0].avail_idx == 0
        wire.peer.come(generation=2)  # another device
        wire.look()
        assert statuses(wire)[-1] == 0
        wire.meet()


@rule("3.1.1-4", "2.1.1-3")
@pytest.mark.parametrize("num_max", [0, 1])
def test_a_device_without_queues(num_max: int) -> None:
    with modern("driver") as wire:
        wire.put(queue(1, NUM_MAX), num_max)
        wire.peer.say(0)
        wire.look()
        wire.peer.say(AGREED)
        with pytest.raises(rpmsgx.ResourceError, match="queue 1: num max"):
            wire.look()
        assert wire.get(DRIVER_STATUS) == AGREED | FAILED
        wire.peer.come(generation=2)
        wire.look()
        wire.meet()


@rule("2.7.2-1")
@pytest.mark.parametrize("most, num", [((2, 8), 2), ((7, 8), 4), ((5, 3), 2), ((1 << 32) - 1, NUM), (NUM, NUM)])
def test_a_queue_is_no_larger_than_the_device_can(most: Any, num: int) -> None:
    with modern("driver") as wire:
        for index, each in enumerate(most if isinstance(most, tuple) else (most, most)):
            wire.put(queue(index, NUM_MAX), each)
        wire.meet()
        assert [wire.get(queue(index, QUEUE_NUM)) for index in (0, 1)] == [num, num]


@pytest.mark.parametrize("most, num", [((2, 8), 2), ((7, 8), 7), ((5, 3), 3), ((1 << 32) - 1, NUM)])
def test_a_packed_queue_is_as_large_as_the_device_can(most: Any, num: int) -> None:
    """A power of two or not."""
    with modern("driver", packed=True) as wire:
        for index, each in enumerate(most if isinstance(most, tuple) else (most, most)):
            wire.put(queue(index, NUM_MAX), each)
        for ring in wire.rings:
            type(ring).__init__(ring, wire.memory, ring.base, num)
        wire.meet()
        assert [wire.get(queue(index, QUEUE_NUM)) for index in (0, 1)] == [num, num]
        ept = wire.bus.create_endpoint(dst=50)
        for _ in range(3 * num):
            wire.peer.deliver(b"in")
            assert ept.recv(timeout=0) == b"in"
            ept.send(b"out", timeout=0)
            assert wire.peer.take() == (ept.addr, 50, b"out")


@rule("2.2.1-1", "3.1.1-3")
def test_features_that_change_afterwards_change_nothing() -> None:
    with modern("driver") as wire:
        wire.meet()
        wire.put(DEVICE_FEATURES, ALL, 8)
        wire.put(DRIVER_FEATURES, ALL, 8)
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"x")
        assert ept.recv(timeout=0) == b"x"
        assert wire.get(wire.rings[0].avail + 4 + 2 * NUM, 2) == 0  # used_event: EVENT_IDX was not agreed on


@rule("2.1.1-3", "3.1.1-4")
def test_a_driver_whose_device_broke_a_rule_says_failed() -> None:
    with modern("driver") as wire:
        wire.meet()
        wire.rings[0].used_idx = 100
        with pytest.raises(rpmsgx.PeerError) as error:
            wire.bus.create_endpoint(dst=50).recv(timeout=0)
        assert error.value.rule == "2.7.8-idx"
        assert wire.get(DRIVER_STATUS) == UP | FAILED and wire.rung()
        with pytest.raises(rpmsgx.PeerError):
            wire.bus.poll()  # the same one still
        wire.peer.come(generation=2)
        wire.look()
        assert statuses(wire)[-2:] == [UP | FAILED, 0]
        wire.meet()


@rule("2.4.2-1", "2.1.1-2")
def test_the_driver_resets_when_it_goes() -> None:
    with modern("driver") as wire:
        wire.meet()
        wire.rung()
        wire.bus.close()
        assert wire.get(DRIVER_STATUS) == 0 and wire.rung()


# -- device ----------------------------------------------------------------------------------------------------------


@rule("6.2-1", "2.2.2-1", "2.2.2-3", "2.4.1-1")
@pytest.mark.parametrize("offers", [0, NS, EVENT_IDX, INDIRECT_DESC, RING_PACKED, ALL & ~VERSION_1])
def test_what_the_device_offers(offers: int) -> None:
    """VERSION_1, and of the others those that it was told to; its queues; all of it before it answers a reset."""
    with modern("device", offers=offers) as wire:
        assert wire.get(DEVICE_FEATURES, 8) == offers | VERSION_1
        assert [wire.get(queue(index, NUM_MAX)) for index in (0, 1)] == [NUM, NUM]
        assert [at for at, _ in wire.writes[-3:]] == [GENERATION, DEVICE_STATUS, DEVICE_STATUS]
        assert [value for at, value in wire.writes if at == DEVICE_STATUS] == [NEEDS_RESET, 0]
        assert wire.get(GENERATION) == 1


@rule("2.2.2-2", "2.2.2-4", "6.2-1")
@pytest.mark.parametrize("accepted", [0, NS, EVENT_IDX, NS | EVENT_IDX, INDIRECT_DESC, NS | EVENT_IDX | INDIRECT_DESC])
@packed_or_not
def test_a_device_takes_every_subset_of_what_it_offers(accepted: int, packed: bool) -> None:
    accepted |= RING_PACKED * packed
    with modern("device", offers=ALL, packed=packed) as wire:
        ept = wire.bus.create_endpoint("service")
        for _ in range(3):
            wire.meet(accepted | VERSION_1)
            assert wire.get(DEVICE_STATUS) == UP
            if accepted & NS:
                assert wire.peer.take()[1] == 53
            wire.peer.deliver(b"x", dst=ept.addr)
            assert ept.recv(timeout=0) == b"x"
            ept.send(b"y", timeout=0)
            assert wire.peer.take() == (ept.addr, 50, b"y")
            wire.peer.reset()
            assert not wire.bus.is_up


@rule("2.2.2-2", "2.2.3-1", "3.1.1-1")
@pytest.mark.parametrize("accepted", [0, NS, *(VERSION_1 | 1 << bit for bit in (1, 28, 29, 33, 34, 35, 63))])
def test_of_other_sets_features_ok_stays_clear(accepted: int) -> None:
    """What was not offered, or is without VERSION_1: no session, whatever the driver says then, until it resets."""
    with modern("device", offers=NS) as wire:
        assert wire.peer.features_ok(accepted) == ACKNOWLEDGE | DRIVER
        assert wire.rung()
        wire.put(DRIVER_FEATURES, NS | VERSION_1, 8)
        wire.peer.place()
        for word in (AGREED, UP, AGREED | FAILED, UP):
            wire.peer.say(word)
            assert not wire.look() and wire.get(DEVICE_STATUS) == ACKNOWLEDGE | DRIVER
        wire.meet()


@rule("2.2.2-2", "2.2.1-2")
def test_packed_rings_are_none_of_a_legacy_driver() -> None:
    with modern("device", packed=True) as wire:
        assert wire.peer.features_ok(NS | RING_PACKED) == ACKNOWLEDGE | DRIVER
        wire.meet()


@rule("3.1.1-3")
def test_features_are_taken_once() -> None:
    with modern("device", offers=NS | EVENT_IDX) as wire:
        wire.bus.create_endpoint("service")
        assert wire.peer.features_ok(VERSION_1) == AGREED
        wire.put(DRIVER_FEATURES, NS | EVENT_IDX | VERSION_1, 8)
        wire.peer.place()
        wire.peer.say(UP)
        assert wire.look()
        assert [ring.used_idx for ring in wire.rings] == [0, 0]  # not announced: no NS
        assert wire.get(wire.rings[0].used, 2) == 1  # muted by flag: no EVENT_IDX


@rule("2.1.2-1", "2.4.1-2", "3.1.1-5")
@pytest.mark.parametrize("status", [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, AGREED, AGREED | FAILED, UP | FAILED])
def test_a_device_does_nothing_before_driver_ok(status: int) -> None:
    with modern("device") as wire:
        ept = wire.bus.create_endpoint("service")
        assert wire.peer.features_ok(NS | VERSION_1) == AGREED
        wire.peer.place()
        wire.peer.deliver(b"early", dst=ept.addr)
        wire.peer.say(status)
        before = bytes(wire.memory.bytes)
        wire.rung()
        assert not wire.look() and ept.try_recv() is None
        with pytest.raises(rpmsgx.Timeout):
            ept.send_to(b"x", 50, timeout=0.01)
        assert bytes(wire.memory.bytes) == before
        assert wire.bus.counters["kicks"] == 0 and not wire.rung()


@rule("2.4.1-1", "2.4.1-2")
@packed_or_not
def test_a_reset_is_answered_once_the_queues_are_let_go(packed: bool) -> None:
    with modern("device", packed=packed) as wire:
        wire.meet()
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"held", dst=ept.addr)
        hold, claim = ept.hold(timeout=0), ept.claim(4)
        waiting = Call(ept.recv)
        blocked(waiting)
        kicks = wire.bus.counters["kicks"]
        wire.peer.reset()
        before = bytes(wire.memory.bytes)
        with pytest.raises(rpmsgx.ChannelRemoved):
            waiting.outcome()
        hold.release()
        with pytest.raises(rpmsgx.ChannelRemoved):
            claim.commit()
        with pytest.raises(rpmsgx.Timeout):
            ept.send(b"x", timeout=0.01)
        assert not wire.look() and bytes(wire.memory.bytes) == before
        assert wire.bus.counters["kicks"] == kicks
        wire.meet()


@rule("2.1.2-2", "2.1.2-3")
def test_what_only_a_reset_mends_raises_needs_reset() -> None:
    """And rings, DRIVER_OK being set."""
    with modern("device") as wire:
        for _ in range(2):
            wire.meet()
            wire.rung()
            wire.rings[1].avail_idx = 100
            with pytest.raises(rpmsgx.PeerError) as error:
                wire.bus.create_endpoint().recv(timeout=0)
            assert error.value.rule == "2.7.6.1-1"
            assert wire.get(DEVICE_STATUS) == UP | NEEDS_RESET and wire.rung()
            with pytest.raises(rpmsgx.PeerError):
                wire.bus.poll()
            wire.peer.reset()


@rule("2.1.2-2", "2.1.2-3", "2.4.1-1")
@packed_or_not
def test_a_device_that_comes_to_a_running_driver_needs_reset(packed: bool) -> None:
    """It was not there when features were agreed on; nor does one that goes leave a driver that believes in it."""
    with modern("device", packed=packed) as wire:
        wire.meet()
        wire.rung()
        wire.bell.back()  # the peer of this connection is another one than before
        assert not wire.look() and wire.rung()
        assert wire.get(DEVICE_STATUS) == NEEDS_RESET and wire.get(GENERATION) == 2
        wire.meet()
        wire.bus.close()
        assert wire.get(DEVICE_STATUS) == UP | NEEDS_RESET and wire.rung()


@rule("2.1.1-3")
def test_a_driver_that_failed_is_not_served() -> None:
    with modern("device") as wire:
        wire.meet()
        wire.peer.say(UP | FAILED)
        before = wire.get(DEVICE_STATUS)
        assert not wire.look() and wire.get(DEVICE_STATUS) == before
        wire.meet()


@rule("2.1.1-2")
def test_a_session_that_was_left_without_a_reset_needs_one() -> None:
    with modern("device") as wire:
        for word in (AGREED, ACKNOWLEDGE | DRIVER | DRIVER_OK, UP & ~DRIVER_OK):
            wire.meet()
            wire.peer.say(word)
            assert not wire.look()
            assert wire.get(DEVICE_STATUS) == UP | NEEDS_RESET
            wire.peer.say(UP)
            assert not wire.look()


@rule("2.7-F1", "2.7.1-1")
def test_three_areas_anywhere() -> None:
    """Not side by side, not in order, other sizes: what holds is what the block says at DRIVER_OK."""
    with modern("device") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        first, second, third = (0x7800, 0x7402, 0x7004), (0x7010, 0x7FFF2, 0x7204), (0x100, 0x202, 0x304)
        for num, places in ((2, first), (4, second), (NUM, third)):
            assert wire.peer.features_ok(NS | VERSION_1) == AGREED
            ring = wire.rings[1]
            ring.num = num
            ring.base, ring.avail, ring.used = places
            ring.end = ring.base + 16 * num
            wire.memory.bytes[ring.avail : ring.avail + 6 + 2 * num] = bytes(6 + 2 * num)
            wire.memory.bytes[ring.used : ring.used + 6 + 8 * num] = bytes(6 + 8 * num)
            wire.peer.place()
            wire.peer.say(UP)
            assert wire.look()
            for _ in range(3 * num):
                wire.peer.deliver(b"in", dst=ept.addr)
                assert ept.recv(timeout=0) == b"in"
                ept.send(b"out", timeout=0)
                assert wire.peer.take() == (ept.addr, 50, b"out")


@pytest.mark.parametrize(
    "num, first, second",
    [
        (1, (0x7800, 0x7404, 0x7004), (0x7010, 0x7FFF4, 0x7204)),
        (3, (0x100, 0x7FFFC, 0x130), (0x140, 0x170, 0x174)),
        (7, (0x7000, 0x7FFC, 0x7070), (0x7080, 0x70F4, 0x70F0)),
        (NUM, (0x3000, 0x1080, 0x200), (0x1000, 0x3080, 0x204)),
    ],
)
def test_areas_of_packed_rings_anywhere(num: int, first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
    """Any number of descriptors up to what the device takes; the two structures anywhere at multiples of 4."""
    with modern("device", packed=True) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        for _ in range(2):
            assert wire.peer.features_ok(NS | RING_PACKED | VERSION_1) == AGREED
            for ring, (base, avail, used) in zip(wire.rings, (first, second), strict=True):
                ring.num, ring.base, ring.avail, ring.used, ring.end = num, base, avail, used, base + 16 * num
                wire.put(avail, 0)
                wire.put(used, 0)
            wire.peer.place()
            wire.peer.say(UP)
            assert wire.look()
            for _ in range(3 * num):
                wire.peer.deliver(b"in", dst=ept.addr)
                assert ept.recv(timeout=0) == b"in"
                ept.send(b"out", timeout=0)
                assert wire.peer.take() == (ept.addr, 50, b"out")


@rule("2.2.3-1", "2.7.3-1")
def test_rings_and_headers_are_little_endian() -> None:
    with modern("driver") as wire:
        wire.meet()
        ept = wire.bus.create_endpoint(dst=0x01020304)
        ept.send(b"ab", timeout=0)
        ring = wire.rings[1]
        at = int.from_bytes(wire.memory.bytes[ring.base : ring.base + 8], "little") - PA
        assert 0x10000 <= at < 0x10000 + 2 * NUM * BUFFER
        assert bytes(wire.memory.bytes[at + 4 : at + 8]) == b"\4\3\2\1"
        assert bytes(wire.memory.bytes[ring.avail + 2 : ring.avail + 4]) == b"\1\0"
        assert bytes(wire.memory.bytes[DRIVER_STATUS : DRIVER_STATUS + 4]) == bytes([UP, 0, 0, 0])


def test_buffers_of_other_sizes(tmp_path: Any) -> None:
    url = f"memfd:{tmp_path}/link"
    sizes: dict[str, Any] = {"buffer_size": (1024, 2048), "buffer_count": (5, 7)}
    with (
        rpmsgx.open(url, "driver", layout="modern", **sizes) as driver,
        rpmsgx.open(url, "device", layout="modern", num=4) as device,
    ):
        until(lambda: driver.is_up and device.is_up, driver, device)
        client = driver.create_endpoint("sizes")
        service = device.open("sizes", timeout=WAIT)
        for sender, receiver, mtu in ((service, client, 1008), (client, service, 2032)):
            for _ in range(10):
                sender.send(bytes(mtu), timeout=WAIT)
                assert receiver.recv(timeout=WAIT) == bytes(mtu)
            assert sender.mtu == mtu


def test_our_own_ends_agree_on_what_there_is(tmp_path: Any) -> None:
    """Features are the device's to offer, queues as large as both can."""
    offers: tuple[tuple[dict[str, Any], int, int, int], ...] = (
        ({}, 0, 64, 256),
        ({"event_idx": True}, EVENT_IDX, 256, 16),
        ({"indirect": True}, INDIRECT_DESC, 8, 8),
        ({"packed": True}, RING_PACKED, 16, 32),
        ({"packed": True, "event_idx": True}, RING_PACKED | EVENT_IDX, 32, 16),
    )
    for offered, bit, num, most in offers:
        path = tmp_path / f"{num} {most}"
        with (
            rpmsgx.open(f"file:{path}", "driver", layout="modern", num=num) as driver,
            rpmsgx.open(f"file:{path}", "device", layout="modern", num=most, **offered) as device,
        ):
            until(lambda pair=(driver, device): pair[0].is_up and pair[1].is_up, driver, device)
            block = path.read_bytes()[:0x100]
        assert struct.unpack_from("<Q", block, DRIVER_FEATURES) == (NS | bit | VERSION_1,)
        assert [struct.unpack_from("<I", block, queue(index, QUEUE_NUM)) for index in (0, 1)] == [(min(num, most),)] * 2
        assert block[DRIVER_STATUS] == block[DEVICE_STATUS] == UP
