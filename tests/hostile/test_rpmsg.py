"""A hostile or broken peer on a whole link, in both roles: dropped and counted, or broken until reset, never worse."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_wire import (
    BUFFER,
    DA,
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    NS,
    NUM,
    PA,
    POOL,
    SIZE,
    STATUS,
    TIMEOUT,
    VDEV,
    VRINGS,
    WRITE,
    Call,
    Role,
    Wire,
    blocked,
    ns,
    roles,
    until,
    wired,
)

import rpmsgx
from rpmsgx import ChannelRemoved, Closed, MessageSize, NoPeer, PeerError, ResourceError, StateError, Timeout

pytestmark = pytest.mark.hostile

NOBODY = 4000


def echoes(wire: Wire, ept: rpmsgx.Endpoint, times: int = 3 * NUM) -> None:
    """The link works, both ways, and no buffer was lost."""
    for i in range(times):
        wire.peer.deliver(b"in %d" % i, dst=ept.addr)
        assert ept.recv(timeout=0) == b"in %d" % i
        ept.send_to(b"out %d" % i, 50, timeout=0)
        assert wire.peer.take() == (ept.addr, 50, b"out %d" % i)
    assert wire.peer.room == NUM


def drops(wire: Wire, **counts: int) -> None:
    """Exactly these counters of dropped messages are not 0."""
    found = {k: v for k, v in wire.bus.counters.items() if v and k.startswith(("dropped", "ns_"))}
    assert found == counts


# -- rings: broken ---------------------------------------------------------------------------------------------------
# Each attack of a device is made on either ring; those of a driver are on descriptors of one direction.


def used_jumps(wire: Wire, ring: Any) -> None:
    ring.used_idx = ring.used_idx + NUM + 1


def used_jumps_far(wire: Wire, ring: Any) -> None:
    ring.used_idx = 0x8000


def used_goes_back(wire: Wire, ring: Any) -> None:
    ring.used_idx = ring.used_idx - 1


def used_id(value: int) -> Callable[[Wire, Any], None]:
    return lambda wire, ring: ring.use((value, 16))


def used_twice(wire: Wire, ring: Any) -> None:
    ring.use((0, 16), (0, 16))


def used_len(value: int) -> Callable[[Wire, Any], None]:
    return lambda wire, ring: ring.use((1, value))


DEVICE_ATTACKS = {
    "idx jumps": (used_jumps, "2.7.8-idx"),
    "idx jumps far": (used_jumps_far, "2.7.8-idx"),
    "idx goes back": (used_goes_back, "2.7.8-idx"),
    "id is the queue size": (used_id(NUM), "2.7.8-id"),
    "id 0xffff": (used_id(0xFFFF), "2.7.8-id"),
    "id 0xffffffff": (used_id(0xFFFFFFFF), "2.7.8-id"),
    "id twice": (used_twice, "2.7.8-idle"),
    "len 513": (used_len(BUFFER + 1), "2.7.8.3-1"),
    "len 0xffffffff": (used_len(0xFFFFFFFF), "2.7.8.3-1"),
}


def avail_jumps(wire: Wire, ring: Any) -> None:
    ring.avail_idx = ring.avail_idx + NUM + 1


def avail_goes_back(wire: Wire, ring: Any) -> None:
    ring.avail_idx = ring.avail_idx - 1


def head(value: int) -> Callable[[Wire, Any], None]:
    return lambda wire, ring: ring.offer(value)


def twice(wire: Wire, ring: Any) -> None:
    at = POOL + NUM * BUFFER
    wire.peer.header(at, b"", 50, NOBODY)
    ring.set_desc(0, PA + at, 16, WRITE if ring is wire.rings[0] else 0)
    ring.offer(0, 0)


def desc(addr: int, length: int, flags: int = 0, next_: int = 0) -> Callable[[Wire, Any], None]:
    def attack(wire: Wire, ring: Any) -> None:
        ring.set_desc(0, addr, length, flags | (WRITE if ring is wire.rings[0] else 0), next_)
        ring.offer(0)

    return attack


def loop(wire: Wire, ring: Any) -> None:
    ring.set_desc(0, PA + POOL, 16, NEXT, 1)
    ring.set_desc(1, PA + POOL, 16, NEXT, 0)
    ring.offer(0)


def order(wire: Wire, ring: Any) -> None:
    ring.set_desc(0, PA + POOL, 16, NEXT | WRITE, 1)
    ring.set_desc(1, PA + POOL, 16)
    ring.offer(0)


TABLE = POOL + NUM * BUFFER  # where an indirect table is put


def indirect(
    length: int = 16,
    flags: int = INDIRECT,
    entry: tuple[int, int, int, int] = (PA + POOL, 16, 0, 0),
    at: int = PA + TABLE,
) -> Callable[[Wire, Any], None]:
    def attack(wire: Wire, ring: Any) -> None:
        ring.set_desc(0, *entry, table=TABLE)
        ring.set_desc(0, at, length, flags)
        ring.offer(0)

    return attack


LAST = PA + SIZE
BAD_ADDRESSES = {
    "outside": desc(LAST, 16),
    "null": desc(0, 16),
    "a device address": desc(DA + POOL, 16),
    "across the end": desc(LAST - 16, 32),
    "overflows 64 bits": desc(2**64 - 8, 16),
    "the table": desc(PA, 64),
    "the ring": desc(PA + VRINGS[1], 64),
    "the used ring": desc(PA + VRINGS[0] + 0x1000, 32),
    "into the ring": desc(PA + VRINGS[0] - 32, 64),
    "len 0xffffffff": desc(PA + POOL, 0xFFFFFFFF),
    "not aligned": desc(PA + POOL + 2, 64),
}
DRIVER_ATTACKS: dict[str, tuple[Callable[[Wire, Any], None], str]] = {
    "idx jumps": (avail_jumps, "2.7.6.1-1"),
    "idx goes back": (avail_goes_back, "2.7.6.1-1"),
    "head is the queue size": (head(NUM), "2.7.6-head"),
    "head 0xffff": (head(0xFFFF), "2.7.6-head"),
    "len 0": (desc(PA + POOL, 0), "2.7.5-len"),
    **{name: (attack, "2.7.5-addr") for name, attack in BAD_ADDRESSES.items()},
}
DRIVER_RX_ATTACKS: dict[str, tuple[Callable[[Wire, Any], None], str]] = {
    **DRIVER_ATTACKS,
    "head twice": (twice, "2.7.6-twice"),
    "next out of range": (desc(PA + POOL, 16, NEXT, NUM), "2.7.5-next"),
    "next 0xffff": (desc(PA + POOL, 16, NEXT, 0xFFFF), "2.7.5-next"),
    "a loop": (loop, "2.7.5.3.1-3"),
    "a readable after a writable": (order, "2.7.4.2-1"),
    "indirect": (indirect(), "2.7.5.3.1-1"),
}
DRIVER_INDIRECT_ATTACKS: dict[str, tuple[Callable[[Wire, Any], None], str]] = {
    "with NEXT": (indirect(flags=INDIRECT | NEXT), "2.7.5.3.1-4"),
    "nested": (indirect(entry=(PA + TABLE, 16, INDIRECT, 0)), "2.7.5.3.1-2"),
    "len 0": (indirect(0), "2.7.5.3-len"),
    "len 17": (indirect(17), "2.7.5.3-len"),
    "len 0xfffffff0": (indirect(0xFFFFFFF0), "2.7.5-addr"),
    "outside": (indirect(at=LAST - 8), "2.7.5-addr"),
    "in the ring": (indirect(at=PA + VRINGS[0]), "2.7.5-addr"),
    "next out of range": (indirect(entry=(PA + POOL, 16, NEXT, 1)), "2.7.5-next"),
    "its buffer outside": (indirect(entry=(LAST, 16, 0, 0)), "2.7.5-addr"),
}


def fill(wire: Wire, ept: rpmsgx.Endpoint) -> None:
    """Send until there is no buffer left."""
    while ept.try_send(b"full"):
        pass


def everybody_hears(wire: Wire, ept: rpmsgx.Endpoint, attack: Callable[[], None], rule: str, lucky: int = 0) -> None:
    """All kinds of waiters get PeerError with the rule, and so does whoever calls later; a reset mends it.

    `lucky`: how many may have got what they waited for, from what was right before the lie.
    """
    bus = wire.bus
    other = bus.create_endpoint()
    calls = [
        Call(ept.recv),
        Call(other.recv_many, 5, timeout=TIMEOUT),
        Call(other.recv_into, bytearray(64), timeout=TIMEOUT),
        Call(ept.send, b"x"),
        Call(ept.send_many, [b"x"], timeout=TIMEOUT),
        Call(ept.claim, timeout=TIMEOUT),
        Call(bus.open, "nobody's", timeout=TIMEOUT),
        Call(bus.poll, TIMEOUT),
    ]
    blocked(*calls)
    attack()
    wire.ring()
    for call in calls:
        try:
            call.outcome()
            lucky -= 1
        except PeerError as error:
            assert error.rule == rule and f"(rule {rule})" in str(error)
    assert lucky >= 0
    before = bytes(wire.memory.bytes)
    for _ in range(2):
        for again in (
            ept.try_recv, bus.poll, ept.recv, bus.fileno, ept.fileno, lambda: ept.try_send(b"x"),
            lambda: ept.send(b"x"),
            lambda: bus.open("nobody's"), lambda: ept.hold(), lambda: ept.claim(), lambda: ept.send_many([b"x"]),
            lambda: bus.create_endpoint("new"),
        ):  # fmt: skip
            with pytest.raises(PeerError) as caught:
                again()
            assert caught.value.rule == rule
    assert bytes(wire.memory.bytes) == before  # nothing is touched any more
    assert "broken" in repr(bus) and not bus.is_up
    wire.peer.reset()
    assert bus.is_up
    assert bus.counters["resets"] == 1
    echoes(wire, ept)


@pytest.mark.parametrize("ring", [0, 1], ids=["rx", "tx"])
@pytest.mark.parametrize("attack", DEVICE_ATTACKS)
def test_a_device_that_breaks_a_ring(attack: str, ring: int) -> None:
    lie, rule = DEVICE_ATTACKS[attack]
    with wired("driver") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)
        everybody_hears(wire, ept, lambda: lie(wire, wire.rings[ring]), rule, lucky=int(lie is used_twice and ring))


@pytest.mark.parametrize("attack", DRIVER_RX_ATTACKS)
def test_a_driver_that_breaks_the_ring_it_sends_on(attack: str) -> None:
    lie, rule = DRIVER_RX_ATTACKS[attack]
    with wired("device") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)
        everybody_hears(wire, ept, lambda: lie(wire, wire.rings[1]), rule)


@pytest.mark.parametrize("attack", DRIVER_INDIRECT_ATTACKS)
def test_a_driver_that_breaks_an_indirect_table(attack: str) -> None:
    lie, rule = DRIVER_INDIRECT_ATTACKS[attack]
    with wired("device", features=NS | INDIRECT_DESC) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)
        everybody_hears(wire, ept, lambda: lie(wire, wire.rings[1]), rule)


@pytest.mark.parametrize("attack", [*DRIVER_ATTACKS, "readable"])
def test_a_driver_that_breaks_the_ring_it_posts_buffers_to(attack: str) -> None:
    lie, rule = DRIVER_ATTACKS.get(attack, (None, "2.7.5.1-1"))
    with wired("device") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)

        def readable() -> None:
            wire.rings[0].set_desc(0, PA + POOL, BUFFER)
            wire.rings[0].offer(0)

        everybody_hears(wire, ept, (lambda: lie(wire, wire.rings[0])) if lie else readable, rule)


@roles
def test_messages_before_the_lie_are_delivered(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        for i in range(4):
            wire.peer.deliver(b"%d" % i)
        assert ept.recv(timeout=0) == b"0"
        wire.bus.poll()  # the others are in the endpoint's queue now
        used_goes_back(wire, wire.rings[0]) if role == "driver" else avail_goes_back(wire, wire.rings[1])
        with pytest.raises(PeerError):
            wire.bus.poll()
        assert ept.recv() == b"1"
        assert ept.recv_many(9) == [b"2", b"3"]
        with pytest.raises(PeerError):
            ept.recv()


@roles
def test_close_of_a_broken_bus(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint("service", dst=50)
        fill(wire, ept)
        (used_jumps if role == "driver" else avail_jumps)(wire, wire.rings[role == "device"])
        with pytest.raises(PeerError):
            wire.bus.poll()
        before = bytes(wire.memory.bytes[VRINGS[0] : POOL])
        wire.bus.close()
        assert bytes(wire.memory.bytes[VRINGS[0] : POOL]) == before
        for call in (wire.bus.poll, ept.recv, lambda: ept.send(b"")):
            with pytest.raises(Closed):
                call()


@roles
def test_a_lie_found_at_close_is_no_error(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint("service", dst=50)
        ept.send(b"x")
        ring = wire.rings[role == "driver"]
        (used_jumps if role == "driver" else avail_jumps)(wire, ring)
        wire.bus.close(linger=0.05)


@roles
def test_broken_with_loans_out(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"held")
        hold, claim = ept.hold(), ept.claim(4)
        used_goes_back(wire, wire.rings[0]) if role == "driver" else avail_goes_back(wire, wire.rings[1])
        with pytest.raises(PeerError):
            ept.recv()
        before = bytes(wire.memory.bytes)
        assert bytes(hold) == b"held"
        hold.release()
        with pytest.raises(PeerError):
            claim.commit()
        claim.discard()
        assert bytes(wire.memory.bytes) == before
        wire.peer.reset()
        echoes(wire, ept)


# -- rpmsg header ----------------------------------------------------------------------------------------------------


@roles
@pytest.mark.parametrize(
    "lies, counter",
    [
        ({"length": 5}, "dropped_length"),
        ({"length": 0xFFFF}, "dropped_length"),
        ({"length": 497, "size": BUFFER}, "dropped_length"),
        ({"size": 16}, "dropped_length"),
        ({"size": 15}, "dropped_short"),
        ({"size": 1}, "dropped_short"),
        ({"dst": NOBODY}, "dropped_no_endpoint"),
        ({"dst": 0}, "dropped_no_endpoint"),
        ({"dst": 0xFFFFFFFF}, "dropped_no_endpoint"),
    ],
    ids=str,
)
def test_bad_headers_are_dropped(role: Role, lies: dict[str, int], counter: str) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        for n in range(1, 3 * NUM):
            wire.peer.deliver(b"four", **lies)
            if n % 2:
                wire.ring()
            assert ept.try_recv() is None
            drops(wire, **{counter: n})
        wire.peer.deliver(b"good")
        assert ept.recv(timeout=0) == b"good"
        assert ept.counters["received"] == 1
        echoes(wire, ept)


def test_a_used_len_of_0_is_dropped() -> None:
    with wired("driver") as wire:
        ept = wire.bus.create_endpoint()
        wire.peer.deliver(b"four", size=0)
        wire.peer.deliver(b"good")
        assert ept.recv(timeout=0) == b"good"
        drops(wire, dropped_short=1)


@roles
def test_odd_headers_are_taken(role: Role) -> None:
    """Any src, reserved and flags; more bytes in the buffer than hdr.len says; no bytes at all."""
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        wire.peer.deliver(b"a", src=0xFFFFFFFF, reserved=0xFFFFFFFF, flags=0xFFFF)
        wire.peer.deliver(b"tail is not seen", length=7)
        wire.peer.deliver(b"")
        wire.peer.deliver(b"z" * 496, size=BUFFER)
        assert ept.recv_from(timeout=0) == (b"a", 0xFFFFFFFF)
        assert [ept.recv(timeout=0) for _ in range(3)] == [b"tail is", b"", b"z" * 496]
        drops(wire)


@roles
def test_a_header_that_changes_while_the_buffer_is_held(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        head = wire.peer.deliver(b"held")
        ring = wire.rings[role == "device"]
        at = ring.desc(head)[0] - PA
        with ept.hold(timeout=0) as view:
            wire.memory.bytes[at : at + 16] = b"\xff" * 16
            was = ring.desc(head)
            ring.set_desc(head, 1, 0, 0xFFFF, 0xFFFF)
            assert bytes(view) == b"held" and view.src == 50
        if role == "driver":  # the table is the driver's, who writes a buffer's place once: a device mars its own copy
            ring.set_desc(head, *was)
        echoes(wire, ept)
        drops(wire)


@roles
def test_release_twice_gives_back_once(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"held")
        hold = ept.hold(timeout=0)
        room = wire.peer.room
        for _ in range(5):
            hold.release()
            assert wire.peer.room == room + 1
        claim = ept.claim(1)
        claim[:] = b"c"
        for _ in range(5):
            claim.commit()
            claim.discard()
        assert wire.peer.take() == (ept.addr, 50, b"c")
        with pytest.raises(AssertionError, match="nothing was sent"):
            wire.peer.take()
        echoes(wire, ept)


# -- messages in pieces ----------------------------------------------------------------------------------------------


def pieces(wire: Wire, message: bytes, cuts: tuple[int, ...], table: int | None = None) -> None:
    """As a driver: one message as a chain, or a table of `table` descriptors behind so many direct ones."""
    ring = wire.rings[1]
    edges = [0, *cuts, len(message)]
    parts = [message[a:b] for a, b in pairwise(edges)]
    direct = len(parts) if table is None else table
    for k, part in enumerate(parts):
        at = POOL + NUM * BUFFER + 0x400 + 64 * k  # apart from each other
        wire.memory.bytes[at : at + len(part)] = part
        last = k + 1 == len(parts)
        if k < direct:
            ring.set_desc(k, PA + at, len(part), 0 if last else NEXT, 0 if last else k + 1)
        else:
            ring.set_desc(k - direct, PA + at, len(part), 0 if last else NEXT, 0 if last else k - direct + 1, TABLE)
    if direct < len(parts):
        ring.set_desc(direct, PA + TABLE, 16 * (len(parts) - direct), INDIRECT | WRITE)
    ring.offer(0)


MESSAGE = struct.pack("=IIIHH", 50, 1024, 0, 11, 0) + b"hello world"


@pytest.mark.parametrize("cuts", [(16,), (4,), (1,), (26,), (3, 9, 15, 17), (1, 2, 3, 4, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("table", [None, 0, 1])
def test_messages_come_in_any_pieces(cuts: tuple[int, ...], table: int | None) -> None:
    with wired("device", features=NS | INDIRECT_DESC) as wire:
        ept = wire.bus.create_endpoint()
        for _ in range(3 * NUM):
            pieces(wire, MESSAGE, cuts, table)
            assert ept.recv_from(timeout=0) == (b"hello world", 50)
        pieces(wire, MESSAGE, cuts, table)
        with ept.hold(timeout=0) as view:
            assert bytes(view) == b"hello world"
        pieces(wire, struct.pack("=IIIHH", 50, 53, 0, 40, 0) + ns("in pieces", 77), cuts, table)
        assert wire.bus.open("in pieces", timeout=0).dst == 77
        assert wire.rings[1].used_idx == wire.rings[1].avail_idx
        drops(wire)


def test_a_chain_that_lies_about_its_length() -> None:
    with wired("device") as wire:
        ept = wire.bus.create_endpoint()
        pieces(wire, MESSAGE[:-1], (16, 20))
        pieces_short = MESSAGE[:15]
        assert ept.try_recv() is None
        drops(wire, dropped_length=1)
        pieces(wire, pieces_short, (4,))
        assert ept.try_recv() is None
        drops(wire, dropped_length=1, dropped_short=1)


def test_a_buffer_in_pieces_is_filled_up_to_its_first() -> None:
    with wired("device") as wire:
        ring = wire.rings[0]
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)
        ring.set_desc(0, PA + POOL, 64, WRITE | NEXT, 1)
        ring.set_desc(1, PA + POOL + BUFFER, 64, WRITE)
        ring.offer(0)
        with pytest.raises(MessageSize):
            ept.send(b"y" * 49, timeout=0)
        ept.send(b"y" * 48, timeout=0)
        assert ring.used_entry(ring.used_idx - 1) == (0, 64)


# -- short buffers ---------------------------------------------------------------------------------------------------


def post(wire: Wire, *sizes: int) -> None:
    """As a driver: post buffers of these sizes, in place of those that are used up."""
    for i, size in enumerate(sizes):
        wire.rings[0].set_desc(i, PA + POOL + i * BUFFER, size, WRITE)
    wire.rings[0].offer(*range(len(sizes)))


def test_buffers_shorter_than_a_header_are_given_back_empty() -> None:
    with wired("device") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)
        post(wire, 1, 15, 16, 17)
        used = wire.rings[0].used_idx
        ept.send(b"", timeout=0)
        ept.send(b"x", timeout=0)
        assert [wire.rings[0].used_entry(used + i) for i in range(4)] == [(0, 0), (1, 0), (2, 16), (3, 17)]
        with pytest.raises(Timeout):
            ept.send(b"", timeout=0)


def test_only_short_buffers() -> None:
    """Posted again and again, they are given back, and a send ends at its time."""
    with wired("device") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        fill(wire, ept)
        call = Call(ept.send, b"x", timeout=0.3)
        while call.is_alive():
            if wire.rings[0].used_idx == wire.rings[0].avail_idx:
                post(wire, *range(1, NUM + 1))
                wire.ring()
        with pytest.raises(Timeout):
            call.outcome()


def test_buffers_too_short_for_an_announcement() -> None:
    """They are no reason for calls that have nothing to do with it to fail; what fits is sent."""
    with wired("device", begin=False) as wire:
        wire.bus.create_endpoint("early")
        driver = wire.peer
        driver.begin()
        for i in range(NUM):
            wire.rings[0].set_desc(i, PA + POOL + i * BUFFER, 32, WRITE)
        wire.ring()
        ept = wire.bus.create_endpoint("late")
        assert wire.bus.poll() == 0
        driver.deliver(b"in")
        assert wire.bus.create_endpoint().try_recv() is None  # it was for 1024
        other = wire.bus.create_endpoint(dst=50)
        other.send(b"16 bytes will fit"[:16], timeout=0)
        assert driver.take() == (other.addr, 50, b"16 bytes will fi")
        assert wire.bus.counters["ns_too_long"] == 2
        with pytest.raises(MessageSize):
            other.send(bytes(17), timeout=0)
        ept.close()
        # The next driver is told again.
        driver.begin()
        wire.ring()
        wire.bus.poll()
        assert driver.take()[2][:32] == ns("early", 0)[:32]


# -- the name service ------------------------------------------------------------------------------------------------


@roles
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        ns("short", 50)[:39],
        ns("long", 50) + b"\0",
        ns(b"n" * 32, 50),
        ns(b"\xff" * 32, 50),
        ns("", 50),
        ns(b"\0after", 50),
        bytes(40),
        b"\xff" * 40,
    ],
    ids=lambda payload: f"{len(payload)}-{payload[:4].hex()}",
)
def test_malformed_announcements_are_dropped(role: Role, payload: bytes) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        for n in range(1, 2 * NUM):
            wire.peer.deliver(payload, dst=53)
            assert wire.bus.poll() == 0
            drops(wire, ns_malformed=n)
        assert wire.bus.channels == []
        wire.peer.announce("good")
        assert wire.bus.open("good", timeout=0).dst == 50
        echoes(wire, ept)


@roles
def test_odd_names(role: Role) -> None:
    """Bytes that are no UTF-8 and bytes behind the NUL; every bit of the flags but the lowest is ignored."""
    with wired(role) as wire:
        for n, (name, seen) in enumerate(
            [
                (b"n" * 31, "n" * 31),
                (b"\xff\xfe", "\\xff\\xfe"),
                (b"a\0b", "a"),
                (b"\x1b[2J\n", "\x1b[2J\n"),
                ("\u00fc".encode(), "\u00fc"),
            ]
        ):
            wire.peer.announce(name, 60 + n, flags=0xFFFFFFFE)
            wire.bus.poll()
            assert wire.bus.channels[-1].name == seen
            assert seen.isprintable() or seen not in repr(wire.bus.channels[-1])
        for n in range(5):
            channel = wire.bus.channels[0]
            wire.peer.announce(
                (b"n" * 31, b"\xff\xfe", b"a", b"\x1b[2J\n", "\u00fc".encode())[n], 60 + n, flags=0xFFFFFFFF
            )
            wire.bus.poll()
            assert channel.removed
        assert wire.bus.channels == []
        drops(wire)


@roles
def test_the_same_name_twice_and_the_destroy_of_the_unknown(role: Role) -> None:
    with wired(role) as wire:
        poll = wire.bus.poll
        wire.peer.announce("a", 60)
        wire.peer.announce("a", 60)
        wire.peer.announce("a", 61)  # another address: another channel
        poll()
        assert [(c.name, c.addr) for c in wire.bus.channels] == [("a", 60), ("a", 61)]
        drops(wire, ns_duplicate=1)
        wire.peer.announce("b", 60, flags=1)
        wire.peer.announce("a", 62, flags=1)
        wire.peer.announce("a", 60, flags=1)
        wire.peer.announce("a", 60, flags=1)
        poll()
        assert [(c.name, c.addr) for c in wire.bus.channels] == [("a", 61)]
        drops(wire, ns_duplicate=1, ns_unknown=3)


@roles
def test_a_hundred_thousand_announcements(role: Role) -> None:
    with wired(role) as wire:
        bus, peer = wire.bus, wire.peer
        ept = bus.create_endpoint()
        for n in range(100_000):
            if peer.room == 0:
                bus.poll()
            peer.announce(b"%d" % n, n)
        bus.poll()
        assert [c.name for c in bus.channels] == [str(n) for n in range(1024)]
        drops(wire, ns_overflow=100_000 - 1024)
        peer.announce("0", 0, flags=1)
        peer.announce("room again", 7)
        assert bus.open("room again", timeout=0).dst == 7
        echoes(wire, ept)


@roles
def test_names_that_come_and_go_leave_nothing_behind(role: Role) -> None:
    """Even where nobody polls: what came and went in between is not told."""
    with wired(role) as wire:
        bus, peer = wire.bus, wire.peer
        ept = bus.create_endpoint()
        told: list[tuple[str, str]] = []
        bus.on_new_channel = lambda channel: told.append(("new", channel.name))
        bus.on_removed = lambda channel: told.append(("removed", channel.name))
        peer.announce("stays", 1)
        bus.poll()
        assert told == [("new", "stays")]
        for n in range(20_000):
            peer.announce(b"%d" % n, 60)
            peer.announce(b"%d" % n, 60, flags=1)
            assert ept.try_recv() is None
        peer.announce("stays", 1, flags=1)
        peer.announce("last", 2)
        assert bus.poll() == 0
        assert told == [("new", "stays"), ("removed", "stays"), ("new", "last")]
        drops(wire)


@roles
def test_an_announcement_of_every_address(role: Role) -> None:
    with wired(role) as wire:
        for addr in (0, 53, 1024, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE):
            wire.peer.announce("odd", addr)
            ept = wire.bus.open("odd", timeout=0)
            assert ept.dst == addr
            ept.send(b"to it", timeout=0)
            assert wire.peer.take() == (ept.addr, addr, b"to it")
        wire.peer.announce("any", 0xFFFFFFFF)  # the address that stands for none
        wire.bus.poll()
        assert "any" not in [channel.name for channel in wire.bus.channels]
        drops(wire, ns_malformed=1)


# -- time of check ---------------------------------------------------------------------------------------------------


@roles
def test_fields_that_change_all_the_time(role: Role) -> None:
    """Another process writes the header's len and the descriptor's len and addr as fast as it can."""
    with wired(role) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        ring = wire.rings[role == "device"]
        pid = os.fork()
        if pid == 0:  # its memory is shared with us, and it touches nothing else
            with contextlib.suppress(BaseException):
                flip(wire, ring)
            os._exit(0)
        try:
            lengths = set()
            kinds = set()
            for n in range(4000):
                try:
                    if wire.peer.room:
                        wire.peer.deliver(b"0123456789")
                    data = ept.try_recv() if n % 2 else None if (hold := try_hold(ept)) is None else bytes(hold)
                    if data is not None:
                        lengths.add(len(data))
                        assert len(data) <= BUFFER - 16
                    ept.try_send(b"x")
                except (PeerError, AssertionError) as error:
                    assert isinstance(error, PeerError) or "nothing back" in str(error) or "posted" in str(error)
                    kinds.add(getattr(error, "rule", ""))
                    wire.peer.reset()
            assert kinds <= {"", "2.7.5-addr", "2.7.5-len", "2.7.8.3-1"}
            assert lengths
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        wire.peer.reset()
        while ept.try_recv() is not None:
            pass
        echoes(wire, ept)


def try_hold(ept: rpmsgx.Endpoint) -> rpmsgx.Hold | None:
    with contextlib.suppress(Timeout):
        return ept.hold(timeout=0)
    return None


def flip(wire: Wire, ring: Any) -> None:
    put = wire.memory.put
    first = POOL + (0 if ring is wire.rings[0] else NUM * BUFFER)
    good = [PA + first + i * BUFFER for i in range(NUM)]
    while True:
        for i in range(NUM):
            put(2, first + i * BUFFER + 12, 0xFFFF)
            if wire.role == "device":
                put(4, ring.base + 16 * i + 8, 0xFFFFFFFF)
                put(8, ring.base + 16 * i, 2**64 - 16)
                put(8, ring.base + 16 * i, good[i])
                put(4, ring.base + 16 * i + 8, BUFFER)
            put(2, first + i * BUFFER + 12, 10)


# -- the doorbell ----------------------------------------------------------------------------------------------------


@roles
def test_rung_a_million_times_without_cause(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        for _ in range(1_000_000):
            wire.ring()
        assert ept.try_recv() is None
        call = Call(ept.recv)
        blocked(call)
        for _ in range(20_000):
            wire.ring()
        assert call.is_alive()
        wire.peer.deliver(b"at last")
        wire.ring()
        assert call.outcome() == b"at last"
        echoes(wire, ept)


@roles
def test_never_rung(role: Role, caplog: pytest.LogCaptureFixture) -> None:
    """Those who look find the message; one that waits finds it at the latest when its time is up, and that is told."""
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        wire.peer.deliver(b"looked")
        assert ept.try_recv() == b"looked"
        wire.peer.deliver(b"looked")
        assert ept.recv(timeout=0) == b"looked"
        for times in (1, 2, 3):
            assert not caplog.text
            call = Call(ept.recv, timeout=1)
            blocked(call)
            wire.peer.deliver(b"late")
            assert call.outcome() == b"late" and wire.bus.counters["unrung"] == times
        assert "3 waits ended with messages there that nobody had rung for: does the interrupt come" in caplog.text
        with pytest.raises(Timeout):
            ept.recv(timeout=0.01)
        assert wire.bus.counters["unrung"] == 3


@roles
def test_no_doorbell_at_all(role: Role) -> None:
    with wired(role, polled=True) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        call = Call(ept.recv)
        until(lambda: call.native_id)
        wire.peer.deliver(b"seen")
        assert call.outcome() == b"seen"
        fill(wire, ept)
        call = Call(ept.send, b"last")
        until(lambda: call.native_id)
        assert wire.peer.take()[2] == b"full"
        call.outcome()


@roles
@pytest.mark.parametrize("how", ["goes", "comes back"])
def test_the_peer_dies(role: Role, how: str) -> None:
    with wired(role) as wire:
        bus = wire.bus
        ept = bus.create_endpoint(dst=50)
        wire.peer.announce("service", 60)
        opened = bus.open("service", timeout=0)
        bus.poll()
        fill(wire, ept)
        calls = [
            Call(ept.recv), Call(ept.send, b"x"), Call(opened.recv), Call(opened.send_many, [b"x"]),
            Call(bus.open, "other"), Call(ept.claim), Call(ept.hold),
        ]  # fmt: skip
        poll = Call(bus.poll, TIMEOUT)
        blocked(*calls, poll)
        wire.bell.leave() if how == "goes" else wire.bell.back()
        if how == "comes back" and role == "device":
            wire.peer.begin()
        wire.ring()
        for call in calls:
            with pytest.raises(ChannelRemoved):
                call.outcome()
        assert poll.outcome() == 0
        assert bus.channels == [] and bus.is_up == (how == "comes back")
        with pytest.raises(ChannelRemoved):
            opened.recv(timeout=0)
        assert ept.dst == 50 and opened.dst is None


# -- reset while messages are in flight ------------------------------------------------------------------------------


@pytest.mark.lesson("05")
@pytest.mark.parametrize("status", [0, 0x40, 0x80, 1, 3])
def test_a_reset_while_messages_are_in_flight(status: int) -> None:
    with wired("device") as wire:
        bus = wire.bus
        named = bus.create_endpoint("named")
        driver = wire.peer
        assert driver.take()[2] == ns("named", named.addr)
        driver.announce("theirs", 60)
        theirs = bus.open("theirs", timeout=0)
        ept = bus.create_endpoint(dst=50)
        driver.deliver(b"queued", dst=ept.addr)
        bus.poll()
        fill(wire, ept)
        driver.deliver(b"too", dst=ept.addr)
        hold = ept.hold(timeout=0)
        assert bytes(hold) == b"queued"
        used = [ring.used_idx for ring in wire.rings]
        calls = [Call(theirs.recv), Call(ept.send, b"x"), Call(bus.open, "other")]
        blocked(*calls)
        wire.status = status
        wire.ring()
        for call in calls:
            with pytest.raises(ChannelRemoved):
                call.outcome()
        assert not bus.is_up and bus.channels == []
        hold.release()
        with pytest.raises(Timeout):
            ept.send(b"nobody there", timeout=0)
        assert [ring.used_idx for ring in wire.rings] == used or [ring.used_idx for ring in wire.rings] == [
            used[0],
            used[1] + 1,
        ]  # what was taken off the ring before the reset may have been given back before it
        assert ept.dst == 50
        assert ept.try_recv() in (b"too", None)  # it was in the ring, or in the queue already
        driver.begin()
        wire.ring()
        assert bus.is_up
        assert driver.take()[2] == ns("named", named.addr)
        echoes(wire, ept)


@pytest.mark.lesson("05")
@pytest.mark.parametrize("sent", [0, 1, 5])
@pytest.mark.parametrize("got", [0, 1, 5])
def test_a_reset_that_nobody_looked_at(sent: int, got: int) -> None:
    """Under a blocked device, the driver has started over by the time it rings."""
    with wired("device") as wire:
        bus, driver = wire.bus, wire.peer
        ept = bus.create_endpoint(dst=50)
        for _ in range(got):
            driver.deliver(b"in", dst=ept.addr)
            ept.recv(timeout=0)
        for _ in range(sent):
            ept.send(b"out", timeout=0)
        call = Call(ept.recv)
        blocked(call)
        driver.begin()
        driver.deliver(b"new", dst=ept.addr)
        wire.ring()
        try:
            assert call.outcome() == b"new"
        except ChannelRemoved:
            assert ept.recv(timeout=0) == b"new"
        # Where no buffer had been used yet there was nothing to tell it by, and no need to.
        assert bus.counters["resets"] == bool(sent or got)
        echoes(wire, ept)


@pytest.mark.lesson("05")
def test_a_reset_that_nobody_looked_at_mends_a_broken_ring() -> None:
    with wired("device") as wire:
        ept = wire.bus.create_endpoint(dst=50)
        echoes(wire, ept)
        avail_goes_back(wire, wire.rings[1])
        with pytest.raises(PeerError):
            ept.recv()
        wire.peer.begin(reset=False)
        wire.ring()
        echoes(wire, ept)


@pytest.mark.lesson("05")
def test_the_driver_starts_over_elsewhere() -> None:
    """Other places, another size, other features: all of it is read again."""
    with wired("device", features=NS | INDIRECT_DESC | EVENT_IDX) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        echoes(wire, ept)
        call = Call(ept.recv)
        blocked(call)
        put = wire.memory.put
        for i in (0, 1):
            put(4, VDEV + 28 + 20 * i, DA + VRINGS[1 - i])
        wire.rings = wire.rings[::-1]
        wire.peer.rx, wire.peer.tx = wire.rings
        wire.peer.begin(NS, reset=False)
        wire.ring()
        with pytest.raises(ChannelRemoved):
            call.outcome()
        echoes(wire, ept)


@pytest.mark.parametrize(
    "field, value",
    [(8, 0), (8, 3), (8, 0x8000), (8, 65536), (8, 0xFFFFFFFF), (4, 0), (4, 3), (4, 0x80000000), (0, 0xFFFFFFFF),
     (0, DA),
     (0, DA + VRINGS[1]), (0, DA + VRINGS[1] - 64), (0, DA + SIZE - 64), (0, DA + 0x1008), (0, 0)],
)  # fmt: skip
def test_a_driver_that_starts_over_with_a_bad_table(field: int, value: int) -> None:
    """num, align, da: refused, without harm, until the next reset."""
    with wired("device") as wire:
        bus, driver = wire.bus, wire.peer
        ept = bus.create_endpoint("service", dst=rpmsgx.ANY)
        echoes_named(wire, ept)
        call = Call(ept.recv)
        blocked(call)
        wire.status = 0
        good = wire.memory.get(4, VDEV + 28 + field)
        wire.memory.put(4, VDEV + 28 + field, value)
        wire.status = 7
        wire.ring()
        with pytest.raises((ChannelRemoved, ResourceError)):
            call.outcome()
        before = bytes(wire.memory.bytes)
        for again in (lambda: ept.recv(timeout=0), bus.poll, lambda: bus.open("x", timeout=0), lambda: bus.is_up):
            with pytest.raises(ResourceError, match="vring|granted"):
                again()
        assert bytes(wire.memory.bytes) == before
        wire.status = 0
        wire.memory.put(4, VDEV + 28 + field, good)
        driver.begin()
        wire.ring()
        bus.poll()
        echoes_named(wire, ept)


def echoes_named(wire: Wire, ept: rpmsgx.Endpoint) -> None:
    assert wire.peer.take()[2][:8] == b"service\0"
    echoes(wire, ept)


def test_close_while_the_table_is_bad_is_no_error() -> None:
    with wired("device") as wire:
        ept = wire.bus.create_endpoint("service", dst=50)
        ept.send(b"in flight")
        closing = Call(wire.bus.close, linger=TIMEOUT)
        blocked(closing)
        wire.memory.put(4, VDEV + 28 + 8, 3)
        wire.status = 0
        wire.status = 7
        wire.ring()
        closing.outcome()


# -- mistakes of the user --------------------------------------------------------------------------------------------


@roles
def test_close_while_others_wait(role: Role) -> None:
    with wired(role) as wire:
        bus = wire.bus
        ept, other = bus.create_endpoint(dst=50), bus.create_endpoint()
        fill(wire, ept)
        alone = Call(other.recv)
        blocked(alone)
        other.close()
        with pytest.raises(Closed):
            alone.outcome()
        calls = [
            Call(ept.recv), Call(ept.recv_many, 3), Call(ept.send, b"x"), Call(ept.send_many, [b"x"]), Call(ept.claim),
            Call(ept.hold), Call(bus.open, "nobody"), Call(bus.poll, None), Call(list, ept),
        ]  # fmt: skip
        blocked(*calls)
        bus.close(linger=0)
        assert calls.pop().outcome() == []  # iteration ends
        for call in calls:
            with pytest.raises(Closed):
                call.outcome()
        bus.close()
        for again in (
            bus.poll,
            ept.recv,
            lambda: ept.send(b""),
            bus.create_endpoint,
            ept.try_recv,
            ept.claim,
            bus.fileno,
        ):
            with pytest.raises(Closed):
                again()


@roles
def test_497_bytes_into_496(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        assert ept.mtu == wire.bus.mtu == 496
        for call in (ept.send, ept.try_send, lambda data: ept.send_to(data, 50), lambda data: ept.claim(len(data))):
            with pytest.raises(MessageSize, match=r"497 bytes; this link carries at most 496"):
                call(bytes(497))
        with pytest.raises(MessageSize) as caught:
            ept.send_many([b"fits", bytes(497), b"not sent"])
        assert getattr(caught.value, "sent") == 1  # noqa: B009
        assert wire.peer.take()[2] == b"fits"
        ept.send(b"y" * 496, timeout=0)
        assert wire.peer.take()[2] == b"y" * 496
        echoes(wire, ept)
        fill(wire, ept)
        for late in (lambda: ept.send(bytes(497), timeout=TIMEOUT), lambda: ept.try_send(bytes(497))):
            with pytest.raises(MessageSize):
                late()


@roles
def test_to_any(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint()
        for call in (
            lambda: ept.send(b"x"), lambda: ept.try_send(b"x"), lambda: ept.send_many([b"x"]), lambda: ept.claim(1)
        ):  # fmt: skip
            with pytest.raises(NoPeer):
                call()
        for dst in (rpmsgx.ANY, -1, 0x80000000, 2**32, 2**70):
            with pytest.raises(ValueError):
                ept.send_to(b"x", dst)
        odd: Any
        for odd in ("1", 1.0, None):
            with pytest.raises(TypeError):
                ept.send_to(b"x", odd)
        assert ept.counters["sent"] == 0
        echoes(wire, ept)


@roles
@pytest.mark.parametrize("timeout", [-1, -1e-9, float("nan"), float("-inf")])
def test_timeouts_that_are_none(role: Role, timeout: float) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.deliver(b"there", dst=ept.addr)
        wire.bus.poll()
        for call in (
            lambda: ept.recv(timeout=timeout),
            lambda: ept.recv_from(timeout=timeout),
            lambda: ept.recv_many(1, timeout=timeout),
            lambda: ept.recv_into(bytearray(9), timeout=timeout),
            lambda: ept.hold(timeout=timeout),
            lambda: ept.send(b"x", timeout=timeout),
            lambda: ept.send_to(b"x", 50, timeout=timeout),
            lambda: ept.send_many([b"x"], timeout=timeout),
            lambda: ept.claim(timeout=timeout),
            lambda: wire.bus.open("x", timeout=timeout),
            lambda: wire.bus.poll(timeout),
            lambda: wire.bus.close(linger=timeout),
        ):
            with pytest.raises(ValueError, match="timeout"):
                call()
        assert ept.counters == {"sent": 0, "received": 0, "dropped": 0, "queued": 1}
        assert ept.recv(timeout=0) == b"there"


@roles
def test_pickling_is_refused(role: Role) -> None:
    with wired(role) as wire:
        ept = wire.bus.create_endpoint(dst=50)
        wire.peer.announce("service")
        wire.bus.poll()
        wire.peer.deliver(b"held", dst=ept.addr)
        for thing in (wire.bus, ept, wire.bus.channels[0], ept.claim(1), ept.hold(timeout=0)):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(TypeError, match="cannot be pickled"):
                    pickle.dumps(thing, protocol)


@roles
def test_a_forked_child_touches_nothing(role: Role) -> None:
    with wired(role) as wire:
        bus = wire.bus
        ept = bus.create_endpoint("named")
        wire.peer.take()
        drain = bus.create_endpoint()
        wire.peer.deliver(b"queued", dst=drain.addr)
        bus.poll()
        wire.peer.deliver(b"held", dst=ept.addr)
        hold = ept.hold(timeout=0)
        claim = drain.claim(1)
        bus.fileno(), ept.fileno()
        wire.peer.deliver(b"in the ring", dst=ept.addr)
        fresh = bus.create_endpoint()
        before = bytes(wire.memory.bytes)
        wire.ring()
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = child(bus, ept, drain, fresh, hold, claim)
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert bytes(wire.memory.bytes) == before
        assert drain.recv(timeout=0) == b"queued"
        claim.discard()
        hold.release()
        assert ept.recv(timeout=0) == b"in the ring"
        echoes(wire, ept)


def child(bus: Any, ept: Any, drain: Any, fresh: Any, hold: Any, claim: Any) -> int:
    """0: every call raised StateError, and not Closed."""
    for call in (
        ept.recv, drain.recv, drain.try_recv, lambda: drain.recv_many(2), lambda: drain.recv_into(bytearray(9)),
        drain.hold,
        lambda: ept.send(b"x"), lambda: fresh.send(b"x"), lambda: fresh.try_send(b"x"), lambda: fresh.send_many([b"x"]),
        lambda: fresh.claim(1), lambda: ept.send_to(b"x", 1), claim.commit, bus.poll, bus.create_endpoint, bus.fileno,
        ept.fileno, lambda: bus.open("x"), lambda: list(drain),
    ):  # fmt: skip
        try:
            call()
            return 2
        except StateError as error:
            if isinstance(error, Closed) or "fork" not in str(error):
                return 3
    hold.release()
    claim.discard()
    if bus.is_up:
        return 4
    repr(bus), repr(ept), bus.counters, ept.counters, ept.mtu, bus.channels
    ept.close()
    bus.close()
    bus.close()
    return 0


@roles
def test_arguments_that_cannot_be(role: Role) -> None:
    with wired(role) as wire:
        bus: Any = wire.bus
        ept: Any = bus.create_endpoint(src=100, dst=50)
        refused: list[tuple[type[Exception], Callable[[], object]]] = [
            (ValueError, lambda: bus.create_endpoint("")),
            (ValueError, lambda: bus.create_endpoint("n" * 32)),
            (ValueError, lambda: bus.create_endpoint("a\0b")),
            (TypeError, lambda: bus.create_endpoint(b"bytes")),
            (ValueError, lambda: bus.create_endpoint(src=53)),
            (ValueError, lambda: bus.create_endpoint(src=0x80000000)),
            (ValueError, lambda: bus.create_endpoint(dst=-1)),
            (StateError, lambda: bus.create_endpoint(src=100)),
            (ValueError, lambda: bus.create_endpoint(queue=0)),
            (ValueError, lambda: bus.create_endpoint(overflow="maybe")),
            (TypeError, lambda: bus.create_endpoint(callback=1)),
            (ValueError, lambda: ept.recv_many(0)),
            (ValueError, lambda: ept.recv_into(bytearray())),
            (ValueError, lambda: ept.claim(-1)),
            (TypeError, lambda: ept.send("text")),
            (TypeError, lambda: ept.send(None)),
            (TypeError, lambda: ept.send_many(b"one")),
            (TypeError, lambda: ept.send_many([b"x", None])),
            (BufferError, lambda: ept.send(memoryview(b"abcd")[::2])),
            (ValueError, lambda: bus.open("")),
        ]
        before = bytes(wire.memory.bytes)
        for kind, call in refused:
            with pytest.raises(kind):
                call()
        assert bytes(wire.memory.bytes) == before
        echoes(wire, ept)


# -- anything at all -------------------------------------------------------------------------------------------------

HOT = [
    STATUS,
    *range(VDEV, VDEV + 68, 4),
    *(base + at for base in VRINGS for at in (*range(0, 16 * NUM, 2), *range(128, 150, 2), *range(0x1000, 0x1046, 2))),
    *(POOL + i * BUFFER + at for i in range(2 * NUM) for at in (0, 4, 8, 12, 14, 16, 48, 52)),
]
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 0x40, 53, 512, 513, 1024, 1025, 0x7FFF, 0x8000, 0xFFFF]),
    st.sampled_from([DA, DA + 0x1000, DA + 0x3000, PA & 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 2**64 - 1),
    st.integers(PA - 64, PA + SIZE + 64),
)
POKE = st.tuples(
    st.just("poke"), st.sampled_from([1, 2, 4, 8]), st.one_of(st.sampled_from(HOT), st.integers(0, SIZE - 8)), VALUES
)
BUMP = st.tuples(
    st.just("bump"), st.integers(0, 1), st.sampled_from(["avail_idx", "used_idx"]), st.integers(-2, NUM + 1)
)
CALLS: dict[str, Callable[[Any, Any], object]] = {
    "recv": lambda bus, ept: ept.recv(timeout=0),
    "recv_from": lambda bus, ept: ept.recv_from(timeout=0.001),
    "try_recv": lambda bus, ept: ept.try_recv(),
    "recv_many": lambda bus, ept: ept.recv_many(5, timeout=0),
    "recv_into": lambda bus, ept: ept.recv_into(memoryview(bytearray(40)).cast("B", (4, 10)), timeout=0),
    "hold": lambda bus, ept: ept.hold(timeout=0),
    "send": lambda bus, ept: ept.send(b"hello", timeout=0),
    "send_to": lambda bus, ept: ept.send_to(bytes(496), 7, timeout=0.001),
    "try_send": lambda bus, ept: ept.try_send(b"hello"),
    "send_many": lambda bus, ept: ept.send_many([b"a"] * 12, timeout=0),
    "claim": lambda bus, ept: ept.claim(timeout=0),
    "poll": lambda bus, ept: bus.poll(),
    "wait": lambda bus, ept: bus.poll(0.001),
    "open": lambda bus, ept: bus.open("a", timeout=0),
    "fileno": lambda bus, ept: (bus.fileno(), ept.fileno()),
    "create": lambda bus, ept: bus.create_endpoint(),
    "announce": lambda bus, ept: bus.create_endpoint("b").close(),
    "look": lambda bus, ept: (bus.is_up, bus.mtu, ept.mtu, bus.channels, bus.counters, repr(bus), repr(ept)),
}
STEP = st.one_of(
    POKE,
    POKE,
    BUMP,
    st.tuples(st.just("call"), st.sampled_from(sorted(CALLS))),
    st.tuples(st.just("call"), st.sampled_from(sorted(CALLS))),
    st.tuples(st.sampled_from(["ring", "deliver", "announce", "reset", "back", "loan", "end"])),
)


@roles
@given(steps=st.lists(STEP, max_size=60), features=st.sampled_from([0, NS, NS | INDIRECT_DESC | EVENT_IDX]))
@settings(max_examples=400, deadline=None)
def test_random_bytes_anywhere(role: Role, steps: list[Any], features: int) -> None:
    wire = Wire(role, features=features)
    bus = wire.bus
    ept = bus.create_endpoint(dst=50, queue=3)
    loans: list[Any] = []
    start = time.monotonic()
    for what, *args in steps:
        try:
            if what == "poke":
                width, at, value = args
                wire.memory.put(width, at - at % width, value % (1 << 8 * width))
            elif what == "bump":
                ring, name, by = args
                setattr(wire.rings[ring], name, getattr(wire.rings[ring], name) + by)
            elif what == "call":
                result = CALLS[args[0]](bus, ept)
                if args[0] in ("hold", "claim"):
                    loans.append(result)
            elif what == "end" and loans:
                loan = loans.pop()
                loan.release() if isinstance(loan, rpmsgx.Hold) else loan.commit()
            elif what == "back":
                wire.bell.back()
            elif what in ("ring", "reset"):
                getattr(wire if what == "ring" else wire.peer, what)()
            elif what in ("deliver", "announce"):
                with contextlib.suppress(AssertionError, IndexError, ValueError):  # the peer's own state is a mess
                    wire.peer.deliver(b"m") if what == "deliver" else wire.peer.announce("a")
        except (rpmsgx.Error, ValueError):
            pass
    with contextlib.suppress(rpmsgx.Error):
        for loan in loans:
            bytes(memoryview(loan))
            loan.release() if isinstance(loan, rpmsgx.Hold) else loan.discard()
    wire.close()
    assert time.monotonic() - start < TIMEOUT
