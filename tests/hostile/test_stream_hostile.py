"""A hostile peer of a stream: it gets a PeerError, once and for all, and neither memory nor time without end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_link import WAIT

import rpmsgx
from rpmsgx import Stream
from rpmsgx.errors import ChannelRemoved, Error, MessageSize, PeerError, Timeout
from rpmsgx.rpmsg.stream import COST, HEADER, LIMIT_MAX, REFUSALS

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]

OPEN, ACCEPT, FIRST, MORE, DROP, CREDIT, END = range(1, 8)
LIMIT = 1000
TAG = 0xBAD


class Peer:
    """A stream, and a plain endpoint that plays its other end, in one thread."""

    def __init__(self, limit: int = LIMIT) -> None:
        name = f"virtual:hostile-{os.urandom(4).hex()}"
        self.buses = [rpmsgx.open(name, role) for role in ("driver", "device")]  # type: ignore[call-overload]
        assert all(bus.is_up for bus in self.buses)
        self.end = self.buses[1].create_endpoint(src=2, dst=1)
        self.other = self.buses[1].create_endpoint(src=3, dst=1)
        self.stream = Stream(self.buses[0].create_endpoint(src=1, dst=2), limit=limit)
        self.granted = limit + COST

    def frame(
        self, kind: int, value: int = 0, payload: bytes = b"", *, sequence: int = 0, tag: int = TAG, credit: int = 0
    ) -> None:
        head = HEADER.pack(kind, 1, sequence, tag, credit or LIMIT + COST, value)
        self.end.send(head + payload, timeout=0)

    def heard(self) -> list[tuple[Any, ...]]:
        """What the stream has sent: the fields of each header."""
        return [HEADER.unpack_from(frame) for frame in iter(self.end.try_recv, None)]

    def look(self) -> bytes | None:
        try:
            return self.stream.recv(timeout=0)
        except Timeout:
            return None

    def open(self) -> None:
        self.frame(OPEN, LIMIT)
        assert self.look() is None and self.stream.mtu == LIMIT
        assert [fields[0] for fields in self.heard()] == [OPEN, ACCEPT]

    def held(self) -> int:
        inbox = self.stream._inbox
        return sum(map(len, inbox.messages)) + (inbox.partial.tell() if inbox.partial else 0)

    def close(self) -> None:
        for bus in self.buses:
            bus.close(linger=0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


Frames = list[dict[str, Any]]

BAD: dict[str, tuple[Frames, str]] = {
    "a fragment that was lost": ([{"kind": FIRST, "value": 2, "payload": b"a", "sequence": 2}], "2 where 1 was due"),
    "a fragment that comes twice": (
        [{"kind": FIRST, "value": 1, "payload": b"a", "sequence": 1}] * 2,
        "fragment 1 where 2 was due: one was lost, or came twice",
    ),
    "out of order": (
        [
            {"kind": FIRST, "value": 3, "payload": b"a", "sequence": 1},
            {"kind": MORE, "value": 2, "payload": b"c", "sequence": 3},
            {"kind": MORE, "value": 1, "payload": b"b", "sequence": 2},
        ],
        "fragment 3 where 2 was due",
    ),
    "another offset": (
        [
            {"kind": FIRST, "value": 3, "payload": b"a", "sequence": 1},
            {"kind": MORE, "value": 2, "payload": b"c", "sequence": 2},
        ],
        "a fragment for offset 2 where 1 was due",
    ),
    "longer than announced": ([{"kind": FIRST, "value": 2, "payload": b"abc", "sequence": 1}], "of 3 bytes where 2"),
    "bytes behind an empty message": ([{"kind": FIRST, "payload": b"a", "sequence": 1}], "of 1 bytes where 0"),
    "longer at the end": (
        [
            {"kind": FIRST, "value": 3, "payload": b"a", "sequence": 1},
            {"kind": MORE, "value": 1, "payload": b"bcd", "sequence": 2},
        ],
        "a fragment of 3 bytes where 2 are missing",
    ),
    "nothing where something is missing": ([{"kind": FIRST, "value": 5, "sequence": 1}], "of 0 bytes where 5"),
    "an empty fragment": (
        [
            {"kind": FIRST, "value": 3, "payload": b"a", "sequence": 1},
            {"kind": MORE, "value": 1, "sequence": 2},
        ],
        "a fragment of 0 bytes where 2 are missing",
    ),
    "a message beyond the limit": (
        [{"kind": FIRST, "value": LIMIT + 1, "payload": b"a", "sequence": 1}],
        "a message of 1001 bytes, the limit is 1000",
    ),
    "a message of 4 GiB": ([{"kind": FIRST, "value": 0xFFFFFFFF, "payload": b"a", "sequence": 1}], "of 4294967295 b"),
    "a message in a message": (
        [{"kind": FIRST, "value": 2, "payload": b"a", "sequence": sequence} for sequence in (1, 2)],
        "a message begins before the one before has ended",
    ),
    "a fragment of nothing": ([{"kind": MORE, "payload": b"a", "sequence": 1}], "a fragment of no message"),
    "nothing to give up": ([{"kind": DROP}], "a message was given up, but none had begun"),
    "credit taken back": ([{"kind": CREDIT, "credit": LIMIT + COST - 1}], "credit for 1063 bytes, after 1064 of 1064"),
    "credit beyond the window": ([{"kind": CREDIT, "credit": LIMIT + COST + 1}], "credit for 1065 bytes"),
    "credit beyond all": ([{"kind": CREDIT, "credit": 0xFFFFFFFF}], "credit for 4294967295 bytes"),
    "credit that is none": ([{"kind": CREDIT}], "credit for 1064 bytes, after 1064 of 1064"),
    "forged credit in a fragment": (
        [{"kind": FIRST, "value": 1, "payload": b"a", "sequence": 1, "credit": 5000}],
        "credit for 5000 bytes",
    ),
    "opened twice": ([{"kind": OPEN, "value": LIMIT}], "it was opened twice"),
    "another kind": ([{"kind": 8}], "a message of 16 bytes that is no stream's"),
    "kind 0": ([{"kind": 0}], "no stream's"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_rule_that_is_broken(peer: Peer, what: str) -> None:
    """All whole messages before come first, then PeerError for good; the peer is told; the link is as good as ever."""
    peer.open()
    peer.frame(FIRST, 5, b"whole", sequence=0)
    for frame in BAD[what][0]:
        peer.frame(**frame)
    got = []
    with pytest.raises(PeerError, match=BAD[what][1]):
        for _ in range(9):
            got.append(peer.look())
    assert b"whole" in got and peer.held() <= LIMIT
    for call in (peer.stream.recv, lambda: peer.stream.send(b"")):
        with pytest.raises(PeerError, match=BAD[what][1]):
            call()
    last = peer.heard()[-1]
    assert (last[0], last[5]) == (END, TAG)
    peer.stream.close()
    assert peer.heard() == []
    other = peer.buses[0].create_endpoint(src=4, dst=3)
    other.send(b"still here", timeout=0)
    assert peer.other.try_recv() == b"still here"


@pytest.mark.parametrize("frame", [b"", b"hello", bytes(15), bytes(16), HEADER.pack(OPEN, 2, 0, 1, 0, LIMIT)])
@pytest.mark.parametrize("before", [False, True])
def test_a_message_that_is_no_streams(peer: Peer, frame: bytes, before: bool) -> None:
    if not before:
        peer.open()
    peer.end.send(frame, timeout=0)
    with pytest.raises(PeerError, match=f"a message of {len(frame)} bytes that is no stream's"):
        for _ in range(3):
            peer.look()


@pytest.mark.parametrize("limit", [0, 63, LIMIT_MAX + 1, 0xFFFFFFFF])
def test_a_limit_that_cannot_be(peer: Peer, limit: int) -> None:
    peer.frame(OPEN, limit)
    with pytest.raises(PeerError, match=f"its limit is {limit} bytes, not 64 to 1073741824"):
        peer.look()


def test_answers_to_somebody_else(peer: Peer) -> None:
    """Frames of other streams change nothing, before it is open and after."""
    for _ in range(3):
        peer.frame(ACCEPT, LIMIT, credit=0xDEAD)
        peer.frame(END, 0xDEAD)
        peer.frame(DROP)
    assert peer.look() is None and peer.stream.mtu == 0
    (opening,) = peer.heard()
    peer.frame(ACCEPT, LIMIT, credit=opening[3])
    peer.frame(FIRST, 3, b"bad", tag=0xDEAD)
    peer.frame(END, 0xDEAD, tag=0xDEAD)
    peer.frame(FIRST, 4, b"good")
    assert peer.look() == b"good"


def test_a_message_takes_memory_only_as_it_comes() -> None:
    peer = Peer(LIMIT_MAX)
    try:
        peer.open()
        peer.frame(FIRST, LIMIT_MAX, b"a")
        assert peer.look() is None and peer.held() == 1
    finally:
        peer.close()


@pytest.mark.parametrize("size", [0, 1, 400])
def test_what_nobody_receives_is_limited(peer: Peer, size: int) -> None:
    peer.open()
    with pytest.raises(PeerError, match="more than were granted"):
        for sequence in range(100):
            peer.frame(FIRST, size, bytes(size), sequence=sequence)
            try:  # it waits for credit, and takes what comes
                peer.stream.send(bytes(LIMIT), timeout=0.001)
            except Timeout:
                pass
    assert len(peer.stream._inbox.messages) == (LIMIT + COST) // (size + COST)


def test_refusals_are_limited(peer: Peer) -> None:
    peer.open()
    while peer.stream.endpoint.try_send(b""):  # no buffer is left to answer in
        pass
    for tag in range(50):
        peer.other.send(HEADER.pack(OPEN, 1, 0, tag, 0, LIMIT), timeout=0)
    assert peer.look() is None and len(peer.stream._due) == REFUSALS


@pytest.mark.parametrize("who", ["the peer", "somebody else"])
def test_a_flood_ends_with_the_time(peer: Peer, who: str) -> None:
    """Frames that never make a message, without end: a call ends when it should."""
    peer.open()
    sender = peer.end if who == "the peer" else peer.other
    frame = HEADER.pack(FIRST, 1, 0, 0xDEAD, 0, 5) + b"a"
    over = threading.Event()

    def flood() -> None:
        while not over.is_set():
            try:
                sender.send(frame, timeout=0.1)
            except Error:
                pass

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for timeout in (0, 0.1):
            begun = time.monotonic()
            with pytest.raises(Timeout):
                peer.stream.recv(timeout=timeout)
            assert time.monotonic() - begun < WAIT
    finally:
        over.set()
        thread.join(WAIT)


def test_a_peer_that_never_grants(peer: Peer) -> None:
    peer.open()
    peer.stream.send(bytes(LIMIT), timeout=0)
    begun = time.monotonic()
    with pytest.raises(Timeout, match="the peer gave no credit within 0.05 s"):
        peer.stream.send(b"more", timeout=0.05)
    assert time.monotonic() - begun < WAIT


def test_a_peer_that_grants_byte_by_byte(peer: Peer) -> None:
    """Slow, but right: nothing is sent without credit."""
    peer.open()
    peer.stream.send(bytes(LIMIT), timeout=0)
    peer.heard()
    for more in range(1, COST + 5):
        peer.frame(CREDIT, credit=LIMIT + COST + more)
        with pytest.raises(Timeout):
            peer.stream.send(b"abcdefghi", timeout=0)
        sent = [fields for fields in peer.heard() if fields[0] in (FIRST, MORE)]
        assert len(sent) == (more > COST)
        if sent:
            return
    raise AssertionError("the credit was not used")


frames = st.builds(
    lambda kind, sequence, tag, credit, value, payload: HEADER.pack(kind, 1, sequence, tag, credit, value) + payload,
    kind=st.integers(1, 7),
    sequence=st.integers(0, 5),
    tag=st.sampled_from([TAG, TAG, TAG, TAG, 1]),
    credit=st.sampled_from([LIMIT + COST] * 4 + [0, LIMIT + COST + 1, 0xFFFFFFFF]),
    value=st.sampled_from([0, 1, 2, 10, LIMIT, LIMIT + 1, TAG, 0xFFFFFFFF]),
    payload=st.binary(max_size=12) | st.just(bytes(480)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.booleans(), st.lists(frames | st.binary(max_size=40), max_size=30), st.randoms(use_true_random=False))
def test_any_frames(begin: bool, sent: list[bytes], random: Any) -> None:
    """Whatever comes: messages within the limit or an error of rpmsgx; no more than granted is held."""
    peer = Peer()
    try:
        if begin:
            peer.open()
        ended: type[Error] | None = None
        for frame in sent:
            peer.end.send(frame, timeout=0)
            try:
                if random.random() < 0.5:
                    assert len(peer.stream.recv(timeout=0)) <= LIMIT
                else:
                    peer.stream.send(bytes(random.choice([0, 5, 600])), timeout=0)
            except (Timeout, MessageSize):
                assert ended is None
            except (PeerError, ChannelRemoved) as error:
                assert ended in (None, type(error))
                ended = type(error)
            assert peer.held() <= LIMIT and len(peer.stream._due) <= REFUSALS + 3
            inbox = peer.stream._inbox
            assert inbox.received - inbox.released <= inbox.window
    finally:
        peer.close()
