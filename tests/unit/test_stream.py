"""Messages of any length over an endpoint: what arrives, what each end holds, and how a stream ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support_link import ROLES, TRANSPORTS, WAIT, Pair

import rpmsgx
from rpmsgx import Stream
from rpmsgx.errors import ChannelRemoved, Closed, MessageSize, NoPeer, StateError, Timeout
from rpmsgx.rpmsg.stream import COST, HEADER, LIMIT

pytestmark = pytest.mark.timeout(60)

Ends = tuple[Any, Any]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(transport: str = "virtual", role: str = "driver", **options: Any) -> Pair:
        pairs.append(Pair(transport, role, tmp_path))
        pairs[-1].start(**options)
        return pairs[-1]

    yield make
    for each in pairs:
        each.close()


@pytest.fixture
def ends(pair: Callable[..., Pair]) -> Ends:
    return pair().endpoints()


def both(call: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    """`call` here and `other` in a thread; what they return."""
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(other)
        return call(), there.result(WAIT)


def opened(ends: Ends, **limits: int) -> tuple[Stream, Stream]:
    """Streams that know each other, without a thread: each call takes what is there."""
    client = Stream(ends[0], limit=limits.get("client", LIMIT))
    service = Stream(ends[1], limit=limits.get("service", LIMIT))
    for _ in range(2):
        for stream in (client, service):
            with pytest.raises(Timeout):
                stream.recv(timeout=0)
    assert client.mtu == service.limit and service.mtu == client.limit
    return client, service


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("role", ROLES)
def test_messages_of_any_length(pair: Callable[..., Pair], transport: str, role: str) -> None:
    client, service = map(Stream, pair(transport, role).endpoints())
    messages = [os.urandom(size) for size in (0, 1, 479, 480, 481, 960, 961, 5000, 0, LIMIT, 7)]

    def there() -> list[bytes]:
        got = []
        for message in service:
            got.append(message)
            service.send(message[::-1], timeout=WAIT)
        return got

    def here() -> list[bytes]:
        answers = []
        for message in messages:
            client.send(message, timeout=WAIT)
            answers.append(client.recv(timeout=WAIT))
        client.close()
        return answers

    answers, got = both(here, there)
    assert got == messages and answers == [message[::-1] for message in messages]


@pytest.mark.parametrize("size", [48, 512, 65536])
@pytest.mark.parametrize("role", ROLES)
def test_over_buffers_of_any_size(pair: Callable[..., Pair], role: str, size: int) -> None:
    link = pair(role=role, num=4, buffer_size=size)
    client, service = Stream(link.near.create_endpoint(src=1, dst=2)), Stream(link.far.create_endpoint(src=2, dst=1))
    message = os.urandom(min(200 * size, LIMIT))
    _, got = both(lambda: client.send(message, timeout=WAIT), lambda: service.recv(timeout=WAIT))
    assert got == message


def test_buffers_without_room_for_a_byte(pair: Callable[..., Pair]) -> None:
    link = pair(buffer_size=32)
    ends = link.near.create_endpoint(src=1, dst=2), link.far.create_endpoint(src=2, dst=1)
    client, _ = opened(ends)
    with pytest.raises(MessageSize, match="messages of this link have 16 bytes; a stream needs 17$"):
        client.send(b"x", timeout=WAIT)


def test_what_a_plain_endpoint_sees(ends: Ends) -> None:
    """Nothing by stealth: messages with a header, as docs/streams.md has it."""
    client, plain = Stream(ends[0], limit=1000), ends[1]
    with pytest.raises(Timeout, match="the peer gave no answer within 0 s"):
        client.send(b"hello", timeout=0)
    frame = plain.recv(timeout=0)
    kind, version, sequence, tag, _, limit = HEADER.unpack(frame)
    assert (kind, version, sequence, limit) == (1, 1, 0, 1000)
    plain.send(HEADER.pack(2, 1, 0, 77, tag, 100))
    client.send(b"hello", timeout=0)
    frame = plain.recv(timeout=0)
    assert HEADER.unpack_from(frame) == (3, 1, 0, tag, 1000 + COST, 5) and frame[16:] == b"hello"
    client.close()
    assert HEADER.unpack(plain.recv(timeout=0)) == (7, 1, 1, tag, 1000 + COST, 77)


def test_both_open_at_once(pair: Callable[..., Pair]) -> None:
    link = pair()
    ends = link.near.create_endpoint(src=1, dst=2), link.far.create_endpoint(src=2, dst=1)
    left, right = opened(ends)
    assert ends[0].counters["sent"] == ends[1].counters["sent"] == 2  # OPEN, and ACCEPT of the other's
    for sender, receiver in ((left, right), (right, left)):
        sender.send(b"hello", timeout=0)
        assert receiver.recv(timeout=0) == b"hello"


def test_each_end_has_its_limit(ends: Ends) -> None:
    client, service = opened(ends, client=64, service=1000)
    client.send(bytes(1000), timeout=0)
    with pytest.raises(MessageSize, match="a message of 1001 bytes; the peer takes at most 1000$"):
        client.send(bytes(1001), timeout=0)
    with pytest.raises(MessageSize, match="the peer takes at most 64$"):
        service.send(bytes(65), timeout=0)
    service.send(bytes(64), timeout=0)
    assert len(service.recv(timeout=0)) == 1000 and len(client.recv(timeout=0)) == 64


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_a_peer_that_does_not_receive_holds_no_more_than_its_limit(ends: Ends, size: int) -> None:
    client, service = opened(ends, client=64, service=1000)
    fit = (1000 + COST) // (size + COST)
    for number in range(fit):
        client.send(bytes([number]) * size, timeout=0)
    for _ in range(3):
        with pytest.raises(Timeout, match="the peer gave no credit within 0.01 s"):
            client.send(b"x" * size, timeout=0.01)
    service.send(bytes(64), timeout=0)
    with pytest.raises(Timeout, match="credit"):  # takes what is there all the same
        service.send(b"", timeout=0.01)
    assert len(service._inbox.messages) == fit
    assert [service.recv(timeout=0) for _ in range(fit)] == [bytes([number]) * size for number in range(fit)]
    with pytest.raises(Timeout, match="the peer gave no message within 0 s"):
        service.recv(timeout=0)
    client.send(b"again" * (size // 5), timeout=1)
    assert service.recv(timeout=0) == b"again" * (size // 5)


def test_a_message_that_was_not_sent_whole_is_none(pair: Callable[..., Pair]) -> None:
    client, service = opened(pair(num=4).endpoints())
    for _ in range(10):  # each leaves credit in the peer's hands, until it is told
        with pytest.raises(Timeout, match="the peer gave no buffer within 0 s"):
            client.send(bytes(LIMIT), timeout=0)
        client_sends(client, service, b"small")
    assert client._outbox is not None and client._outbox.available > 0


def client_sends(client: Stream, service: Stream, message: bytes) -> None:
    for _ in range(10):
        try:
            client.send(message, timeout=0)
            break
        except Timeout:
            with pytest.raises(Timeout):
                service.recv(timeout=0)
    assert service.recv(timeout=0) == message


@pytest.mark.parametrize("transport", ["virtual", "memfd"])
def test_both_ends_send_at_once(pair: Callable[..., Pair], transport: str) -> None:
    """With hardly any buffers, and queues that the other's fragments fill at once."""
    link = pair(transport, num=2)
    ends = (
        link.near.create_endpoint(src=1, dst=2, queue=2),
        link.far.create_endpoint(src=2, dst=1, queue=2),
    )
    messages = [os.urandom(100_000) for _ in range(5)]

    def end(stream: Stream) -> list[bytes]:
        got = []
        for message in messages:
            stream.send(message, timeout=WAIT)
            got.append(stream.recv(timeout=WAIT))
        return got

    assert both(lambda: end(Stream(ends[0])), lambda: end(Stream(ends[1]))) == (messages, messages)


def test_what_came_of_a_message_stays(ends: Ends) -> None:
    client, service = opened(ends)
    message = os.urandom(300_000)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.send, message, timeout=WAIT)
        deadline, got = time.monotonic() + WAIT, None
        while got is None and time.monotonic() < deadline:
            try:
                got = service.recv(timeout=0)
            except Timeout:
                pass
        assert got == message and sent.result(WAIT) is None


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_ends_it_after_what_was_sent(ends: Ends) -> None:
    client, service = opened(ends)
    client.send(b"last", timeout=0)
    client.close()
    client.close()
    for call in (client.recv, lambda: client.send(b"")):
        with pytest.raises(Closed):
            call()
    assert list(service) == [b"last"]
    for call in (service.recv, lambda: service.send(b"")):
        for _ in range(2):
            with pytest.raises(ChannelRemoved, match="the peer ended the stream"):
                call()
    service.close()
    again, anew = opened(ends)
    again.send(b"again", timeout=0)
    assert anew.recv(timeout=0) == b"again"


def test_a_half_sent_message_at_the_end_is_none(ends: Ends) -> None:
    client, service = opened(ends)
    with pytest.raises(Timeout):
        client.send(bytes(LIMIT), timeout=0)
    service.recv(timeout=0) if service._inbox.messages else None
    with pytest.raises(Timeout):
        service.recv(timeout=0)
    client.close()
    assert list(service) == []


def test_the_link_goes(pair: Callable[..., Pair]) -> None:
    link = pair()
    client, service = opened(link.endpoints())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.recv)
        while not link.near.counters["kicks"] or client.endpoint.counters["queued"]:
            time.sleep(0)
        link.far.close(linger=0)
        with pytest.raises(ChannelRemoved):
            waiting.result(WAIT)
    for call in (client.recv, lambda: client.send(b"")):
        with pytest.raises(ChannelRemoved):
            call()
    with pytest.raises(Closed):
        service.recv()
    client.close()
    service.close()


@pytest.mark.parametrize("who", ["client", "service"])
def test_a_peer_that_begins_anew(ends: Ends, who: str) -> None:
    """One end forgot its stream without a word; the other's ends, and both can begin again."""
    old = dict(zip(("client", "service"), opened(ends), strict=True))
    other = "service" if who == "client" else "client"
    fresh = Stream(old[who].endpoint)
    with pytest.raises(Timeout):
        fresh.recv(timeout=0)
    with pytest.raises(ChannelRemoved, match="the peer began another stream"):
        old[other].recv(timeout=0)
    answer = Stream(old[other].endpoint)
    for _ in range(2):
        for stream in (answer, fresh):
            with pytest.raises(Timeout):
                stream.recv(timeout=0)
    fresh.send(b"fresh", timeout=0)
    assert answer.recv(timeout=0) == b"fresh"


def test_a_sender_whose_peer_forgot_hears_of_it(pair: Callable[..., Pair]) -> None:
    link = pair()
    ends = link.endpoints()
    client, service = opened(ends)
    silent = Stream(service.endpoint)
    silent._opened = True  # it has not come to sending anything yet
    client.send(b"lost", timeout=0)
    for _ in range(2):
        with pytest.raises(Timeout):
            silent.recv(timeout=0)
    with pytest.raises(ChannelRemoved):
        client.send(bytes(LIMIT), timeout=1)


def test_one_peer_at_a_time(pair: Callable[..., Pair]) -> None:
    link = pair()
    ends = link.endpoints()
    client, service = opened(ends)
    second = Stream(link.near.create_endpoint(dst=ends[1].addr))
    for stream in (second, service):
        with pytest.raises(Timeout):
            stream.recv(timeout=0)
    with pytest.raises(Timeout):
        service.recv(timeout=0)  # sends the refusal
    with pytest.raises(ChannelRemoved, match="the peer has a stream with somebody else"):
        second.send(b"me", timeout=0)
    client.send(b"still here", timeout=0)
    assert service.recv(timeout=0) == b"still here"
    client.close()
    assert list(service) == []
    third, service = opened((second.endpoint, ends[1]))
    third.send(b"now", timeout=0)
    assert service.recv(timeout=0) == b"now"


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_nobody_is_known(pair: Callable[..., Pair]) -> None:
    link = pair()
    stream = Stream(link.near.create_endpoint("service"))
    with pytest.raises(NoPeer, match="nobody announced this service or opened a stream to it"):
        stream.send(b"hello")
    with pytest.raises(Timeout):
        stream.recv(timeout=0.01)
    stream.close()


@pytest.mark.parametrize("limit", [63, 0, -1, (1 << 30) + 1, 1e6, None])
def test_limits_that_cannot_be(ends: Ends, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be 64 to 1073741824 bytes, not"):
        Stream(ends[0], limit=limit)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_times_that_cannot_be(ends: Ends, timeout: float) -> None:
    stream = Stream(ends[0])
    for call in (lambda: stream.recv(timeout=timeout), lambda: stream.send(b"", timeout=timeout)):
        with pytest.raises(ValueError, match="timeout must be None or at least 0 seconds"):
            call()


def test_what_can_be_sent(ends: Ends) -> None:
    numpy = pytest.importorskip("numpy")
    client, service = opened(ends)
    array = numpy.arange(1000, dtype="<f8").reshape(10, 100)
    client.send(array, timeout=0)
    assert service.recv(timeout=0) == array.tobytes()
    client.send(numpy.zeros((0, 3)), timeout=0)
    assert service.recv(timeout=0) == b""
    for wrong in (array[:, ::2], "text", 5):
        with pytest.raises((TypeError, BufferError)):
            client.send(wrong, timeout=0)
    client.send(bytearray(b"fine"), timeout=0)
    assert service.recv(timeout=0) == b"fine"


def test_one_thread_at_a_time(ends: Ends) -> None:
    client, service = opened(ends)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.recv, timeout=WAIT)
        deadline = time.monotonic() + WAIT
        while not service._turn.locked() and time.monotonic() < deadline:
            time.sleep(0)
        with pytest.raises(StateError, match="another thread is in a call of this stream"):
            service.recv(timeout=0)
        client.send(b"go", timeout=0)
        assert waiting.result(WAIT) == b"go"


CHILD = """
import sys
import rpmsgx
with rpmsgx.open(sys.argv[1], "device") as bus:
    stream = rpmsgx.Stream(bus.open("reverse", timeout=10), limit=1 << 23)
    for message in stream:
        stream.send(message[::-1], timeout=10)
"""


@pytest.mark.parametrize("transport", ["file", "memfd"])
def test_two_processes(tmp_path: Path, transport: str) -> None:
    url = f"{transport}:{tmp_path}/link"
    with rpmsgx.open(url, "driver") as driver:
        endpoint = driver.create_endpoint("reverse")
        child = subprocess.Popen([sys.executable, "-c", CHILD, url], stderr=subprocess.PIPE, text=True)
        try:
            with Stream(endpoint, limit=1 << 23) as stream:
                with pytest.raises(Timeout):
                    stream.recv(timeout=0)
                while not stream.mtu:
                    with pytest.raises(Timeout):
                        stream.recv(timeout=0.05)
                for size in (0, 100, 1 << 20, 1 << 23):
                    message = os.urandom(size)
                    stream.send(message, timeout=WAIT)
                    assert stream.recv(timeout=WAIT) == message[::-1]
            assert child.communicate(timeout=WAIT) == (None, "") and child.returncode == 0
        finally:
            child.kill()
            child.communicate()


# -- any order of calls ------------------------------------------------------------------------------------------------


class Calls(RuleBasedStateMachine):
    """Two streams in one thread: what was sent arrives, whole and in order, and nothing else; nothing is held beyond
    the limit; and whatever happened, the way is free once all was received."""

    def __init__(self) -> None:
        super().__init__()
        name = f"virtual:calls-{id(self)}"
        self.buses = [rpmsgx.open(name, role, num=4, buffer_size=64) for role in ("driver", "device")]
        assert all(bus.is_up for bus in self.buses)
        ends = [bus.create_endpoint(src=9, dst=9, queue=3) for bus in self.buses]
        self.streams = [Stream(end, limit=limit) for end, limit in zip(ends, (300, 64), strict=True)]
        self.under_way: tuple[list[bytes], list[bytes]] = ([], [])  # to the one, to the other

    @rule(to=st.integers(0, 1), data=st.binary(max_size=300))
    def send(self, to: int, data: bytes) -> None:
        sender = self.streams[1 - to]
        try:
            sender.send(data, timeout=0)
        except Timeout:
            return
        except MessageSize:
            assert len(data) > self.streams[to].limit
            return
        self.under_way[to].append(data)

    @rule(at=st.integers(0, 1), calls=st.integers(1, 4))
    def receive(self, at: int, calls: int) -> None:
        for _ in range(calls):
            try:
                message = self.streams[at].recv(timeout=0)
            except Timeout:
                assert not self.under_way[at]
                return
            assert message == self.under_way[at].pop(0)

    @rule()
    def settle(self) -> None:
        for _ in range(4):
            for at in (0, 1):
                self.receive(at, 100)
        for to in (0, 1):
            self.send_now(to, b"x" * 64)

    def send_now(self, to: int, data: bytes) -> None:
        for _ in range(20):
            try:
                self.streams[1 - to].send(data, timeout=0)
                break
            except Timeout:
                self.receive(to, 1)
        else:
            raise AssertionError("the way is not free")
        self.under_way[to].append(data)

    @invariant()
    def little_is_held(self) -> None:
        for stream in self.streams:
            inbox = stream._inbox
            held = sum(COST + len(message) for message in inbox.messages)
            held += 0 if inbox.partial is None else COST + inbox.partial.tell()
            assert held == inbox.received - inbox.released <= inbox.window == stream.limit + COST

    def teardown(self) -> None:
        for bus in self.buses:
            bus.close(linger=0)


TestCalls = Calls.TestCase
TestCalls.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
