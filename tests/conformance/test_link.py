"""VIRTIO 1.2, 2.1, 2.2, 2.4 and 3.1 on a whole link that a resource table describes, in both roles.

Such a link is legacy: 32 feature bits, no FEATURES_OK, and only the driver writes the status. The other side is made
by hand; what our driver writes to the status is seen by a view of the table that keeps each value and the memory then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support_wire import (
    BUFFER,
    DA,
    EVENT_IDX,
    INDIRECT_DESC,
    NS,
    NUM,
    PA,
    POOL,
    STATUS,
    VDEV,
    VRINGS,
    Call,
    Wire,
    blocked,
    ns,
    wired,
)

import rpmsgx
from rpmsgx.virtio.link import VdevLink
from rpmsgx.virtio.table import VdevView

ACKNOWLEDGE, DRIVER, DRIVER_OK, NEEDS_RESET, FAILED = 1, 2, 4, 64, 128
ALL = NS | INDIRECT_DESC | EVENT_IDX
UNKNOWN = 0xFFFFFFFF & ~ALL
DFEATURES, GFEATURES = VDEV + 12, VDEV + 16

rule = pytest.mark.rule


def driver_wire(features: int = NS, **options: Any) -> tuple[Wire, list[tuple[int, bytes]]]:
    """Our bus as the driver, and what it wrote to the status, each with all of the memory as it was then."""
    steps: list[tuple[int, bytes]] = []
    memory: list[memoryview] = []

    class Watched(VdevView):
        @property
        def status(self) -> int:
            return super().status

        @status.setter
        def status(self, value: int) -> None:
            VdevView.status.fset(self, value)  # type: ignore[attr-defined]
            steps.append((value, bytes(memory[0])))

    class Link(VdevLink):
        def _attach(self, space: Any, region: Any, offset: int, buffers: Any, table_end: int) -> None:
            super()._attach(space, region, offset, buffers, table_end)
            self._vdev = Watched(region.buffer, offset)
            memory.append(region.view)

    return Wire("driver", features=features, link=Link, **options), steps


@contextmanager
def watched(features: int = NS, **options: Any) -> Iterator[tuple[Wire, list[tuple[int, bytes]]]]:
    wire, steps = driver_wire(features, **options)
    try:
        yield wire, steps
    finally:
        wire.close()


def rings_of(memory: bytes) -> bytes:
    return memory[VRINGS[0] : POOL]


# -- driver ----------------------------------------------------------------------------------------------------------


@rule("2.1.1-1", "2.1.1-2", "2.4.2-1", "3.1.1-1", "3.1.2")
def test_the_driver_goes_step_by_step() -> None:
    """Reset, ACKNOWLEDGE, DRIVER, features, DRIVER_OK last: with rings zeroed and all buffers posted."""
    with watched() as (wire, steps):
        assert [value for value, _ in steps] == [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER]
        assert all(memory[GFEATURES : GFEATURES + 4] == bytes(4) for _, memory in steps)
        # DRIVER_OK is not written through the view but with a store-release, after everything else.
        assert wire.status == ACKNOWLEDGE | DRIVER | DRIVER_OK
        assert wire.memory.get(4, GFEATURES) == NS
        rx, tx = wire.rings
        assert rx.avail_idx == NUM and tx.avail_idx == 0 and rx.used_idx == tx.used_idx == 0
        for i in range(NUM):
            addr, length, flags, _ = rx.desc(rx.avail_entry(i))
            assert PA + POOL <= addr < PA + POOL + NUM * BUFFER and (length, flags) == (BUFFER, 2)


@rule("2.1.1-2", "2.4.2-1")
def test_only_a_reset_clears_status_bits() -> None:
    """Over five lives of the peer each status is its predecessor and more, or 0."""
    with watched() as (wire, steps):
        for _ in range(5):
            wire.peer.reset()
            assert wire.bus.is_up and wire.status == 7
        values = [value for value, _ in steps]
        assert values == [0, 1, 3] * 6
        wire.bus.close()
        assert [value for value, _ in steps][18:] == [0]
        assert wire.status == 0


@rule("3.1.1-1", "2.7.10.1-1")
@pytest.mark.parametrize("junk", [0xFF, 0x55])
def test_the_driver_leaves_nothing_of_the_time_before(junk: int) -> None:
    with watched() as (wire, _):
        wire.peer.deliver(b"old")
        for ring in wire.rings:
            wire.memory.bytes[ring.base : ring.end] = bytes([junk]) * (ring.end - ring.base)
        wire.status = junk
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.reset()
        assert wire.status == 7
        assert [ring.used_idx for ring in wire.rings] == [0, 0]
        wire.peer.deliver(b"new")
        assert ept.recv(timeout=0) == b"new"


@rule("3.1.1-5", "3.1.1-1")
def test_no_kick_before_driver_ok() -> None:
    """Each kick of the driver finds DRIVER_OK and everything else in place, or, at the end, the reset."""
    kicks: list[bytes] = []

    class Link(VdevLink):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            view = self._region.view
            bell: Any = self.doorbell
            self.fd, bell.kick_fd = bell.kick_fd, -1  # so that the bus calls kick()
            bell.kick = lambda notifyid: kicks.append(bytes(view))

    wire = Wire("driver", link=Link)
    rx = wire.rings[0]
    assert len(kicks) == 1
    assert struct.unpack_from("=H", kicks[0], rx.avail + 2) == (NUM,)
    assert struct.unpack_from("=I", kicks[0], GFEATURES) == (NS,)
    ept = wire.bus.create_endpoint("name", dst=50)
    for _ in range(3):
        wire.peer.deliver(b"x")
        ept.recv(timeout=0)
        ept.send(b"y")
        wire.peer.reset()
    assert len(kicks) > 2 * 3 and {memory[STATUS] for memory in kicks} == {7}
    wire.bus.close(linger=0)
    assert kicks[-1][STATUS] == 0
    wire.bell.kick_fd = wire.link.fd
    wire.close()


@rule("2.2.1-1", "2.2.1-2", "2.2.1-3", "2.2.1-4", "2.2.1-6")
@pytest.mark.parametrize(
    "offered", [0, NS, EVENT_IDX, INDIRECT_DESC, ALL, UNKNOWN, 0xFFFFFFFF, 1 << 1, 1 << 24, 1 << 30]
)
def test_the_driver_accepts_what_it_knows_of_what_is_offered(offered: int) -> None:
    with watched(offered) as (wire, _):
        assert wire.memory.get(4, GFEATURES) == offered & ALL
        assert wire.memory.get(4, DFEATURES) == offered  # the device's to write
        assert wire.bus.is_up
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"works")
        assert ept.recv(timeout=0) == b"works"
        ept.send(b"too", timeout=0)
        assert wire.peer.take()[2] == b"too"


@rule("2.2.1-5")
def test_missing_features_are_done_without() -> None:
    """No name service: nothing is announced, the endpoint works with an address. No EVENT_IDX: flags are used."""
    with watched(0) as (wire, _):
        ept = wire.bus.create_endpoint("quiet", dst=rpmsgx.ANY)
        assert wire.rings[1].avail_idx == 0
        wire.peer.deliver(b"first")
        assert ept.recv_from(timeout=0) == (b"first", 50)
        ept.send(b"answer", timeout=0)
        assert wire.peer.take() == (ept.addr, 50, b"answer")
    for features, muted in ((NS, 1), (NS | EVENT_IDX, 0)):
        with wired("driver", features=features) as wire:
            assert wire.memory.get(2, wire.rings[0].avail) == muted


@rule("2.2.1-1")
def test_features_that_change_afterwards_change_nothing() -> None:
    with watched(NS) as (wire, _):
        wire.memory.put(4, DFEATURES, ALL)
        wire.memory.put(4, GFEATURES, ALL)
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"x")
        assert ept.recv(timeout=0) == b"x"
        assert wire.memory.get(2, wire.rings[0].avail + 4 + 2 * NUM) == 0  # used_event
        wire.peer.reset()
        assert wire.memory.get(4, GFEATURES) == ALL  # a new negotiation


@rule("3.1.1-4")
@pytest.mark.parametrize("what, value", [("num", 3), ("align", 6), ("da", 0x20000000), ("da", 0xFFFFFFFF)])
def test_a_driver_that_cannot_go_on_does_not(what: str, value: int) -> None:
    at = VDEV + 28 + {"da": 0, "align": 4, "num": 8}[what]
    with watched() as (wire, _):
        wire.memory.put(4, at, value)
        with pytest.raises(rpmsgx.ResourceError):
            wire.peer.reset()
        assert wire.status == FAILED | ACKNOWLEDGE | DRIVER
        with pytest.raises(rpmsgx.ResourceError):
            wire.bus.poll()


@rule("2.1.1-3")
def test_after_failed_comes_a_reset() -> None:
    with watched() as (wire, steps):
        at = VDEV + 28 + 8
        wire.memory.put(4, at, 3)
        with pytest.raises(rpmsgx.ResourceError):
            wire.peer.reset()
        before = len(steps)
        assert wire.status & FAILED
        wire.memory.put(4, at, NUM)
        assert wire.bus.poll() == 0
        assert [value for value, _ in steps[before:]] == [0, 1, 3] and wire.status == 7


@rule("2.1.1-4")
def test_what_was_in_flight_at_a_reset_is_not_relied_on() -> None:
    """The peer starts over: buffers that it had are everybody's again, and none is lost."""
    with watched() as (wire, _):
        ept = wire.bus.create_endpoint(dst=50)
        for _ in range(3):
            while ept.try_send(b"in flight"):
                pass
            assert wire.bus.counters["outstanding"] == NUM
            wire.peer.reset()
            assert wire.bus.counters["outstanding"] == 0
        for _ in range(NUM):
            ept.send(b"x", timeout=0)


# -- device ----------------------------------------------------------------------------------------------------------


@rule("2.1.2-1", "2.4.1-2", "3.1.2")
@pytest.mark.parametrize("status", [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, FAILED | 3, NEEDS_RESET])
def test_a_device_does_nothing_before_driver_ok(status: int) -> None:
    """Not even where the rings are full, the bell is rung and there is something to say."""
    with wired("device", begin=False) as wire:
        bus, driver = wire.bus, wire.peer
        driver.begin()
        wire.status = status
        ept = bus.create_endpoint("service")
        driver.deliver(b"early", dst=ept.addr)
        before = bytes(wire.memory.bytes)
        wire.ring()
        assert bus.poll() == 0 and not bus.is_up and ept.try_recv() is None
        for call in (lambda: ept.recv(timeout=0.01), lambda: ept.send_to(b"x", 50, timeout=0.01)):
            with pytest.raises(rpmsgx.Timeout):
                call()
        assert not ept.try_send(b"x") if ept.dst else True
        assert bytes(wire.memory.bytes) == before
        assert bus.counters["kicks"] == 0
        wire.status = 7
        wire.ring()
        assert ept.recv(timeout=0) == b"early"
        assert driver.take() == (ept.addr, 53, ns("service", ept.addr))
        assert bus.counters["kicks"] > 0


@rule("2.4.1-2", "2.4.1-1")
@pytest.mark.parametrize("status", [0, NEEDS_RESET])
def test_a_device_leaves_the_queues_alone_from_reset_to_driver_ok(status: int) -> None:
    with wired("device") as wire:
        bus, driver = wire.bus, wire.peer
        ept = bus.create_endpoint(dst=50)
        driver.deliver(b"held", dst=ept.addr)
        hold, claim = ept.hold(timeout=0), ept.claim(4)
        waiting = Call(ept.recv)
        blocked(waiting)
        wire.status = status
        kicks = bus.counters["kicks"]
        before = bytes(wire.memory.bytes)
        wire.ring()
        with pytest.raises(rpmsgx.ChannelRemoved):
            waiting.outcome()
        hold.release()
        with pytest.raises(rpmsgx.ChannelRemoved):
            claim.commit()
        with pytest.raises(rpmsgx.Timeout):
            ept.send(b"x", timeout=0.01)
        bus.create_endpoint("named")
        assert bus.poll() == 0
        assert bytes(wire.memory.bytes) == before and bus.counters["kicks"] == kicks
        driver.begin()
        wire.ring()
        assert bus.is_up and driver.take()[1] == 53


@rule("2.4.1-1", "2.1.2-2", "2.1.2-3")
def test_a_device_never_writes_the_table() -> None:
    """Only the driver does, on these links: so what only a reset can mend is raised to the caller, not as a status."""
    with wired("device") as wire:
        table = bytes(wire.memory.bytes[: VRINGS[0]])
        ept = wire.bus.create_endpoint("service", dst=50)
        wire.peer.deliver(b"x", dst=ept.addr)
        assert ept.recv(timeout=0) == b"x"
        ept.send(b"y", timeout=0)
        wire.rings[1].avail_idx -= 1
        with pytest.raises(rpmsgx.PeerError):
            ept.recv()
        wire.bus.close()
        assert bytes(wire.memory.bytes[: VRINGS[0]]) == table


@rule("2.2.2-2", "2.2.2-4")
@pytest.mark.parametrize("accepted", [0, NS, EVENT_IDX, NS | EVENT_IDX, INDIRECT_DESC, ALL])
def test_a_device_serves_every_subset_of_what_it_offers(accepted: int) -> None:
    """And takes it again after each reset."""
    with wired("device", features=ALL, begin=False) as wire:
        ept = wire.bus.create_endpoint("service")
        for _ in range(3):
            wire.peer.begin(accepted)
            wire.ring()
            assert wire.bus.is_up
            if accepted & NS:
                assert wire.peer.take()[1] == 53
            assert wire.rings[0].used_idx == bool(accepted & NS)
            wire.peer.deliver(b"x", dst=ept.addr)
            assert ept.recv(timeout=0) == b"x"
            ept.send(b"y", timeout=0)
            assert wire.peer.take() == (ept.addr, 50, b"y")
            flags = [wire.memory.get(2, ring.used) for ring in wire.rings]
            assert not accepted & EVENT_IDX or flags == [0, 0]
            wire.status = 0
            wire.ring()
            assert not wire.bus.is_up


@rule("2.2.2-2", "2.2.3-1")
@pytest.mark.parametrize("accepted", [NS, EVENT_IDX, UNKNOWN, 0xFFFFFFFF])
def test_bits_that_were_not_offered_count_as_not_accepted(accepted: int) -> None:
    """A legacy device has no way to refuse them."""
    with wired("device", features=0, begin=False) as wire:
        wire.bus.create_endpoint("not announced")
        wire.peer.begin(accepted)
        wire.ring()
        assert wire.bus.is_up
        assert [ring.used_idx for ring in wire.rings] == [0, 0]
        assert wire.memory.get(2, wire.rings[0].used) == 1  # muted by flag, not by event


@rule("2.2.2-1", "2.2.2-3")
def test_what_our_own_tables_offer() -> None:
    """The bits that this end honours, and no other."""
    from rpmsgx.virtio.layout import Layout

    for event_idx in (False, True):
        for indirect in (False, True):
            table = Layout(8, event_idx, indirect).table()
            offered = VdevView(bytearray(table), VDEV).dfeatures
            assert offered == NS | EVENT_IDX * event_idx | INDIRECT_DESC * indirect


@rule("2.2.3-1", "3.1.2", "2.7.2-2")
def test_the_rings_of_such_a_link_are_legacy() -> None:
    """One piece each, in native byte order; the status never shows FEATURES_OK."""
    with watched(0xFFFFFFFF) as (wire, steps):
        ept = wire.bus.create_endpoint(dst=50)
        ept.send(b"native", timeout=0)
        assert wire.peer.take() == (ept.addr, 50, b"native")  # found by the legacy formula
        assert not any(value & 8 for value, _ in steps) and not wire.status & 8


@rule("2.4.1-1", "3.1.1-1")
def test_a_driver_comes_back_with_other_parameters() -> None:
    """Rings elsewhere, fewer descriptors, other features: what holds is what the table says at DRIVER_OK."""
    with wired("device", features=ALL) as wire:
        bus, driver = wire.bus, wire.peer
        ept = bus.create_endpoint(dst=50)
        for num, swap, features in ((4, True, NS), (2, False, ALL), (NUM, True, 0), (NUM, False, NS)):
            wire.status = 0
            wire.ring()
            assert not bus.is_up
            for i in (0, 1):
                wire.memory.put(4, VDEV + 28 + 20 * i, DA + VRINGS[i ^ swap])
                wire.memory.put(4, VDEV + 28 + 20 * i + 8, num)
            wire.resize(num, swap)
            driver.begin(features)
            wire.ring()
            assert bus.is_up
            for _ in range(3 * num):
                driver.deliver(b"in", dst=ept.addr)
                assert ept.recv(timeout=0) == b"in"
                ept.send(b"out", timeout=0)
                assert driver.take() == (ept.addr, 50, b"out")
