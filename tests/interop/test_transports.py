"""What the calls mean, once for every transport and role: `near` is the end under test, `far` the other one."""

from __future__ import annotations

import array
import gc
import math
import os
import pickle
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support_link import ROLES, ROUNDS, TRANSPORTS, WAIT, Pair, until

import rpmsgx

pytestmark = pytest.mark.timeout(120)
MTU = 496
RING = 256


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ROLES)
def link_pair(request: pytest.FixtureRequest, transport: str, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(transport, request.param, tmp_path)
    yield pair
    pair.close()


@pytest.fixture
def pair(link_pair: Pair) -> Pair:
    link_pair.start()
    return link_pair


@pytest.fixture
def threads() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def readable(*objects: Any, timeout: float = WAIT) -> list[Any]:
    return select.select(objects, [], [], timeout)[0]


def drained(endpoint: Any) -> list[bytes]:
    return list(iter(endpoint.try_recv, None))


# -- messages


@pytest.mark.parametrize("size", [0, 1, 4, 5, 495, 496])
def test_messages_go_both_ways_unaltered(pair: Pair, size: int) -> None:
    client, service = pair.endpoints()
    message = os.urandom(size)
    client.send(message)
    assert service.recv_from(timeout=WAIT) == (message, client.addr)
    service.send(message[::-1])
    assert client.recv_from(timeout=WAIT) == (message[::-1], service.addr)


def test_any_contiguous_buffer_can_be_sent(pair: Pair) -> None:
    client, service = pair.endpoints()
    for data in (bytearray(b"abc"), memoryview(b"xabcx")[1:4], array.array("B", b"abc")):
        client.send(data)
        assert service.recv(timeout=WAIT) == b"abc"
    with pytest.raises(TypeError):
        client.send("abc")
    with pytest.raises(BufferError):
        client.send(memoryview(b"abcd")[::2])


def test_messages_of_one_endpoint_stay_in_order(pair: Pair) -> None:
    client, service = pair.endpoints()
    for start in range(0, 3 * RING, 50):
        for i in range(start, start + 50):
            client.send(b"%d" % i, timeout=WAIT)
        assert [service.recv(timeout=WAIT) for _ in range(50)] == [b"%d" % i for i in range(start, start + 50)]


def test_a_timeout_is_seconds_or_none(pair: Pair) -> None:
    client, _ = pair.endpoints()
    for timeout in (0, 0.01):
        with pytest.raises(rpmsgx.Timeout) as error:
            client.recv(timeout=timeout)
        assert isinstance(error.value, TimeoutError) and error.value.errno is not None
    for call in (client.recv, client.hold, client.claim, lambda timeout: client.send(b"", timeout=timeout)):
        for wrong in (-1, -0.001, math.nan):
            with pytest.raises(ValueError, match="timeout"):
                call(timeout=wrong)
    with pytest.raises(ValueError, match="timeout"):
        pair.near.poll(timeout=-1)


def test_nobody_is_known_before_the_peer_spoke(pair: Pair) -> None:
    lonely = pair.near.create_endpoint("lonely")
    assert lonely.dst is None
    for call in (lonely.send, lonely.try_send, lambda data: lonely.send_many([data])):
        with pytest.raises(rpmsgx.NoPeer):
            call(b"x")
    with pytest.raises(rpmsgx.NoPeer):
        lonely.claim()
    far = pair.far.create_endpoint(dst=lonely.addr)
    far.send(b"hello")
    assert lonely.recv(timeout=WAIT) == b"hello"
    assert lonely.dst == far.addr
    lonely.send(b"back")
    assert far.recv(timeout=WAIT) == b"back"


def test_a_message_that_is_too_long_is_refused_whole(pair: Pair) -> None:
    client, service = pair.endpoints()
    assert client.mtu == MTU
    for call in (client.send, client.try_send, lambda data: client.claim(len(data))):
        with pytest.raises(rpmsgx.MessageSize, match="497.*496"):
            call(bytes(MTU + 1))
    client.send(b"after")
    assert service.recv(timeout=WAIT) == b"after"


def test_who_writes_later_is_heard_but_does_not_become_the_peer(pair: Pair) -> None:
    mine = pair.near.create_endpoint(src=100)
    first, second = (pair.far.create_endpoint(dst=100) for _ in range(2))
    first.send(b"1")
    second.send(b"2")
    assert mine.recv_from(timeout=WAIT) == (b"1", first.addr)
    assert mine.recv_from(timeout=WAIT) == (b"2", second.addr)
    assert mine.dst == first.addr
    mine.send_to(b"to the second", second.addr)
    assert second.recv(timeout=WAIT) == b"to the second"


def test_a_message_for_nobody_is_dropped_and_counted(pair: Pair) -> None:
    client, service = pair.endpoints()
    client.send_to(b"lost", 0x7777)
    client.send(b"found")
    assert service.recv(timeout=WAIT) == b"found"
    assert pair.far.counters["dropped_no_endpoint"] == 1


# -- batches


def test_recv_many_waits_for_the_first_only(pair: Pair) -> None:
    client, service = pair.endpoints()
    assert client.send_many([b"a", b"b", b"c"]) == 3
    assert service.recv_many(2, timeout=WAIT) == [b"a", b"b"]
    assert service.recv_many(10, timeout=WAIT) == [b"c"]
    with pytest.raises(rpmsgx.Timeout):
        service.recv_many(10, timeout=0)
    with pytest.raises(ValueError):
        service.recv_many(0)


def test_recv_into_fills_rows_and_lengths(pair: Pair) -> None:
    client, service = pair.endpoints()
    rows = memoryview(bytearray(b"\xff" * 32)).cast("B", (4, 8))
    lengths = array.array("I", [99] * 4)
    client.send_many([b"12345678", b"", b"abc"])
    assert service.recv_into(rows, lengths=lengths, timeout=WAIT) == 3
    assert bytes(rows) == b"12345678" + bytes(8) + b"abc" + bytes(5) + b"\xff" * 8
    assert list(lengths) == [8, 0, 3, 99]


def test_recv_into_keeps_a_message_that_is_too_long(pair: Pair) -> None:
    client, service = pair.endpoints()
    rows = memoryview(bytearray(8)).cast("B", (2, 4))
    client.send_many([b"fits", b"too long", b"next"])
    assert service.recv_into(rows, timeout=WAIT) == 1
    assert bytes(rows) == b"fits" + bytes(4)
    with pytest.raises(rpmsgx.MessageSize, match=r"8.*4"):
        service.recv_into(rows, timeout=WAIT)
    assert service.recv(timeout=WAIT) == b"too long"
    assert service.recv_into(rows, timeout=WAIT) == 1
    assert bytes(rows)[:4] == b"next"


def test_send_many_says_how_far_it_came(pair: Pair) -> None:
    client, service = pair.endpoints()
    messages = [b"%d" % i for i in range(2 * RING)]
    sent = client.send_many(messages, timeout=0.01)
    assert 0 < sent <= RING
    assert [service.recv(timeout=WAIT) for _ in range(sent)] == messages[:sent]
    with pytest.raises(rpmsgx.Timeout):
        service.recv(timeout=0)
    with pytest.raises(rpmsgx.MessageSize) as error:
        client.send_many([b"good", bytes(MTU + 1), b"never"])
    assert error.value.sent == 1  # type: ignore[attr-defined]
    assert service.recv_many(9, timeout=WAIT) == [b"good"]


def test_send_many_takes_rows(pair: Pair) -> None:
    client, service = pair.endpoints()
    assert client.send_many(memoryview(b"aabbcc").cast("B", (3, 2))) == 3
    assert service.recv_many(9, timeout=WAIT) == [b"aa", b"bb", b"cc"]
    assert client.send_many(array.array("H", [0x6161, 0x6262])) == 2
    assert service.recv_many(9, timeout=WAIT) == [b"aa", b"bb"]
    with pytest.raises(TypeError):
        client.send_many(b"bytes")


# -- loans


def test_claim_sends_exactly_what_was_asked_for(pair: Pair) -> None:
    client, service = pair.endpoints()
    with client.claim(4) as buffer:
        assert len(buffer) == 4
        buffer[:4] = b"four"
        with pytest.raises((ValueError, IndexError)):
            buffer[:5] = b"fives"
    assert service.recv(timeout=WAIT) == b"four"
    with client.claim() as buffer:
        assert len(buffer) == client.mtu
        buffer[:2] = b"ab"
        buffer.commit(2)
    assert service.recv(timeout=WAIT) == b"ab"
    with pytest.raises(BufferError):
        buffer[0]


def test_an_exception_in_a_claim_sends_nothing(pair: Pair) -> None:
    client, service = pair.endpoints()
    for _ in range(2 * RING):
        with pytest.raises(ZeroDivisionError), client.claim(4, timeout=0) as buffer:
            buffer[:4] = b"none"
            raise ZeroDivisionError
    client.send(b"some")
    assert service.recv(timeout=WAIT) == b"some"


def test_a_claim_with_live_views_cannot_be_sent(pair: Pair) -> None:
    client, service = pair.endpoints()
    claim = client.claim(4)
    view = memoryview(claim)
    view[:] = b"view"
    with pytest.raises(BufferError):
        claim.commit()
    view.release()
    claim.commit()
    claim.commit()
    assert service.recv(timeout=WAIT) == b"view"
    with pytest.raises(rpmsgx.Timeout):
        service.recv(timeout=0)


def test_a_held_message_is_read_only_and_goes_back(pair: Pair) -> None:
    client, service = pair.endpoints()
    for i in range(2 * RING):
        client.send(b"%d" % i, timeout=0)
        with service.hold(timeout=WAIT) as view:
            assert bytes(view) == b"%d" % i and len(view) == len(b"%d" % i)
            assert view.src == client.addr
            with pytest.raises(TypeError):
                memoryview(view)[:1] = b"x"


def test_releasing_twice_does_nothing(pair: Pair) -> None:
    client, service = pair.endpoints()
    client.send(b"one")
    hold = service.hold(timeout=WAIT)
    view = memoryview(hold)
    with pytest.raises(BufferError):
        hold.release()
    assert bytes(view) == b"one"
    view.release()
    hold.release()
    hold.release()
    client.send(b"two")
    assert service.recv(timeout=WAIT) == b"two"


def test_loans_outlive_the_bus(pair: Pair) -> None:
    client, service = pair.endpoints()
    client.send(b"still here")
    hold = service.hold(timeout=WAIT)
    view = memoryview(hold)
    claim = client.claim(4)
    target = memoryview(claim)
    pair.far.close(linger=0)
    pair.near.close(linger=0)
    assert bytes(view) == b"still here"
    target[:] = b"dead"
    target.release()
    with pytest.raises(rpmsgx.Closed):
        claim.commit()
    view.release()
    hold.release()


# -- callbacks and channels


def test_callbacks_run_in_poll_only(pair: Pair) -> None:
    heard: list[tuple[bytes, int, int]] = []

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        heard.append((data, src, threading.get_ident()))
        endpoint.send_to(data + b"!", src)

    client, service = pair.endpoints(far={"callback": callback})
    client.send(b"one")
    client.send(b"two")
    with pytest.raises(rpmsgx.StateError):
        service.recv(timeout=0)
    assert heard == []
    until(lambda: len(heard) == 2, pair.far)
    me = threading.get_ident()
    assert heard == [(b"one", client.addr, me), (b"two", client.addr, me)]
    assert client.recv_many(1, timeout=WAIT) + client.recv_many(1, timeout=WAIT) == [b"one!", b"two!"]


def test_poll_says_how_many_messages_it_handled(pair: Pair) -> None:
    heard: list[bytes] = []
    client, _ = pair.endpoints(far={"callback": lambda endpoint, data, src: heard.append(data)})
    until(lambda: pair.far.poll() == 0)
    client.send_many([b"1", b"2", b"3"])
    assert pair.far.poll(timeout=WAIT) == 3
    assert pair.far.poll(timeout=0) == 0
    assert pair.far.poll(timeout=0.01) == 0


def test_an_exception_of_a_callback_costs_one_message(pair: Pair) -> None:
    heard: list[bytes] = []

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        heard.append(data)
        if data == b"bad":
            raise ZeroDivisionError

    client, _ = pair.endpoints(far={"callback": callback})
    client.send_many([b"good", b"bad", b"rest"])
    with pytest.raises(ZeroDivisionError):
        until(lambda: len(heard) == 3, pair.far)
    until(lambda: len(heard) == 3, pair.far)
    assert heard == [b"good", b"bad", b"rest"]


def test_poll_inside_a_callback_is_refused(pair: Pair) -> None:
    caught: list[type] = []

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        try:
            pair.far.poll()
        except rpmsgx.StateError as error:
            caught.append(type(error))

    client, _ = pair.endpoints(far={"callback": callback})
    client.send(b"x")
    until(lambda: caught, pair.far)
    assert caught == [rpmsgx.StateError]


def test_a_callback_may_close_its_endpoint_and_create_others(pair: Pair) -> None:
    made: list[Any] = []

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        made.append(pair.far.create_endpoint(dst=src))
        endpoint.close()

    client, _ = pair.endpoints(far={"callback": callback})
    client.send_many([b"1", b"2"])
    until(lambda: made, pair.far)
    assert len(made) == 1
    made[0].send(b"from the new one")
    assert client.recv(timeout=WAIT) == b"from the new one"


def test_channels_come_and_go(pair: Pair) -> None:
    seen: list[tuple[str, str, int]] = []
    pair.near.on_new_channel = lambda channel: seen.append(("new", channel.name, channel.addr))
    pair.near.on_removed = lambda channel: seen.append(("gone", channel.name, channel.addr))
    a = pair.far.create_endpoint("a")
    b = pair.far.create_endpoint("b")
    until(lambda: len(seen) == 2, pair.near)
    assert seen == [("new", "a", a.addr), ("new", "b", b.addr)]
    assert [(channel.name, channel.addr) for channel in pair.near.channels] == [("a", a.addr), ("b", b.addr)]
    a.close()
    until(lambda: len(seen) == 3, pair.near)
    assert seen[2] == ("gone", "a", a.addr)
    assert [channel.name for channel in pair.near.channels] == ["b"]


def test_open_waits_and_takes_the_oldest_unbound(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    waiting = threads(lambda: pair.near.open("svc", timeout=WAIT))
    first = pair.far.create_endpoint("svc")
    assert waiting.result(WAIT).dst == first.addr
    second = pair.far.create_endpoint("svc")
    third = pair.far.create_endpoint("svc")
    assert pair.near.open("svc", timeout=WAIT).dst == second.addr
    assert pair.near.open("svc", timeout=WAIT).dst == third.addr
    with pytest.raises(rpmsgx.Timeout, match="'svc'.*its endpoint already"):
        pair.near.open("svc", timeout=0)
    assert pair.far.channels == []  # open() announces nothing


def test_a_learned_peer_is_forgotten_when_its_channel_goes(pair: Pair) -> None:
    mine = pair.near.create_endpoint("svc")
    theirs = pair.far.create_endpoint("svc")
    until(lambda: mine.dst == theirs.addr and theirs.dst == mine.addr, pair.near, pair.far)
    fixed = pair.near.create_endpoint(dst=theirs.addr)
    theirs.close()
    until(lambda: mine.dst is None, pair.near)
    with pytest.raises(rpmsgx.NoPeer):
        mine.send(b"x")
    assert fixed.dst is not None
    again = pair.far.create_endpoint("svc")
    until(lambda: mine.dst == again.addr, pair.near)
    mine.send(b"to the new one")
    assert again.recv(timeout=WAIT) == b"to the new one"


def test_an_endpoint_goes_with_the_service_it_was_opened_on(
    pair: Pair, threads: Callable[..., Future[Any]]
) -> None:
    client, service = pair.endpoints()
    waiting = threads(client.recv)
    service.close()
    with pytest.raises(rpmsgx.ChannelRemoved):
        waiting.result(WAIT)
    with pytest.raises(rpmsgx.ChannelRemoved):
        client.recv(timeout=0)
    with pytest.raises(rpmsgx.ChannelRemoved):
        client.send(b"x")


# -- back-pressure


def test_a_full_endpoint_stops_the_bus(pair: Pair) -> None:
    client, service = pair.endpoints(far={"queue": 2})
    other_client, other = pair.endpoints("other")
    client.send_many([b"1", b"2", b"3", b"4"])
    other_client.send(b"behind")
    with pytest.raises(rpmsgx.Timeout, match="stopped by.*echo"):
        other.recv(timeout=0.01)
    assert pair.far.counters["stalls"] == 1
    with pytest.raises(rpmsgx.Blocked) as error:
        other.recv()
    assert isinstance(error.value, BlockingIOError) and error.value.errno is not None
    assert [service.recv(timeout=WAIT) for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    assert other.recv(timeout=WAIT) == b"behind"


def test_who_reads_the_full_endpoint_frees_the_others(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    client, service = pair.endpoints(far={"queue": 1})
    other_client, other = pair.endpoints("other")
    client.send_many([b"1", b"2", b"3"])
    other_client.send(b"behind")
    waiting = threads(other.recv, timeout=WAIT)
    assert [service.recv(timeout=WAIT) for _ in range(3)] == [b"1", b"2", b"3"]
    assert waiting.result(WAIT) == b"behind"


def test_an_endpoint_that_drops_says_so_once(pair: Pair) -> None:
    client, service = pair.endpoints(far={"queue": 2, "overflow": "drop"})
    other_client, other = pair.endpoints("other")
    client.send_many([b"%d" % i for i in range(7)])
    other_client.send(b"behind")
    assert other.recv(timeout=WAIT) == b"behind"
    assert [service.recv(timeout=WAIT), service.recv(timeout=WAIT)] == [b"0", b"1"]
    with pytest.raises(rpmsgx.MessagesLost) as error:
        service.recv(timeout=0)
    assert error.value.count == 5
    assert service.counters["dropped"] == 5
    with pytest.raises(rpmsgx.Timeout):
        service.recv(timeout=0)
    client.send(b"again")
    assert service.recv(timeout=WAIT) == b"again"


def test_send_waits_for_a_buffer(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    client, service = pair.endpoints()
    sent = 0
    while client.try_send(b"%d" % sent):
        sent += 1
    assert 0 < sent <= RING
    with pytest.raises(rpmsgx.Timeout):
        client.send(b"no room", timeout=0.01)
    waiting = threads(client.send, b"last", timeout=WAIT)
    assert [service.recv(timeout=WAIT) for _ in range(sent + 1)] == [*(b"%d" % i for i in range(sent)), b"last"]
    waiting.result(WAIT)


# -- descriptors


def test_a_descriptor_is_readable_while_there_is_something(pair: Pair) -> None:
    client, service = pair.endpoints()
    drained(service)
    service.fileno()
    assert drained(service) == []
    while readable(service, timeout=0):
        assert drained(service) == []
    for i in range(100):
        client.send(b"%d" % i)
        assert readable(service) == [service]
        assert service.try_recv() == b"%d" % i
        assert service.try_recv() is None


def test_a_descriptor_made_late_knows_what_is_queued(pair: Pair) -> None:
    client, service = pair.endpoints()
    other_client, other = pair.endpoints("other")
    client.send(b"early")
    other_client.send(b"x")
    assert other.recv(timeout=WAIT) == b"x"  # this thread has moved the first one into the queue
    assert readable(service) == [service]
    assert drained(service) == [b"early"]


def test_a_descriptor_fires_when_a_buffer_comes_free(pair: Pair) -> None:
    client, service = pair.endpoints()
    client.fileno()
    sent = 0
    while client.try_send(b"x"):
        sent += 1
    while readable(client, timeout=0):
        assert client.try_recv() is None
        assert not client.try_send(b"x")
    assert len([service.recv(timeout=WAIT) for _ in range(sent)]) == sent
    assert readable(client) == [client]
    assert client.try_send(b"x")


@pytest.mark.parametrize("look", ["is_up", "a send that is refused"])
@pytest.mark.parametrize("whose", ["bus", "endpoint"])
def test_who_only_looks_leaves_descriptors_readable(pair: Pair, whose: str, look: str) -> None:
    client, service = pair.endpoints()
    client.send(b"x")
    assert service.recv(timeout=WAIT) == b"x"
    watched = pair.near if whose == "bus" else client
    watched.fileno()
    while look != "is_up" and client.try_send(b"x"):
        pass
    assert drained(client) == []
    service.send(b"answer", timeout=WAIT)
    assert pair.near.is_up if look == "is_up" else not client.try_send(b"x")
    assert readable(watched) == [watched]
    assert client.try_recv() == b"answer"


def test_the_bus_descriptor_calls_for_poll(pair: Pair) -> None:
    heard: list[bytes] = []
    client, _ = pair.endpoints(far={"callback": lambda endpoint, data, src: heard.append(data)})
    pair.far.fileno()
    while readable(pair.far, timeout=0):
        pair.far.poll()
    for i in range(100):
        client.send(b"%d" % i)
        while len(heard) <= i:
            assert readable(pair.far) == [pair.far]
            pair.far.poll()
    assert heard == [b"%d" % i for i in range(100)]


def test_two_descriptors_in_one_select_never_miss(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    """Each answer is waited for by select alone: a lost wake-up would stop the exchange."""
    ends = [pair.endpoints(name) for name in ("a", "b")]
    rounds = ROUNDS // 2

    def serve() -> int:
        served = 0
        services = [service for _, service in ends]
        while served < 2 * rounds:
            for service in readable(*services):
                while (data := service.try_recv()) is not None:
                    service.send(data, timeout=WAIT)
                    served += 1
        return served

    server = threads(serve)
    clients = [client for client, _ in ends]
    count = dict.fromkeys(clients, 0)
    for client in clients:
        client.fileno()
        client.send(b"0", timeout=WAIT)
    while any(n < rounds for n in count.values()):
        ready = readable(*clients)
        assert ready, (count, server)
        for client in ready:
            while (data := client.try_recv()) is not None:
                assert int(data) == count[client]
                count[client] += 1
                if count[client] < rounds:
                    client.send(b"%d" % count[client], timeout=WAIT)
    assert server.result(WAIT) == 2 * rounds


def test_two_threads_on_two_endpoints_never_miss(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    """Two threads wait on one bus at each end; every message is waited for, so a lost wake-up would be a timeout."""
    ends = [pair.endpoints(name) for name in ("a", "b")]
    rounds = ROUNDS // 2

    def serve(service: Any) -> None:
        for _ in range(rounds):
            service.send(service.recv(timeout=WAIT), timeout=WAIT)

    def ask(client: Any) -> int:
        for i in range(rounds):
            client.send(b"%d" % i, timeout=WAIT)
            assert int(client.recv(timeout=WAIT)) == i
        return rounds

    servers = [threads(serve, service) for _, service in ends]
    clients = [threads(ask, client) for client, _ in ends]
    assert [client.result(100) for client in clients] == [rounds, rounds]
    for server in servers:
        server.result(WAIT)


# -- the end


def test_iteration_ends_with_the_endpoint(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    client, service = pair.endpoints()
    client.send_many([b"1", b"2"])
    seen: list[bytes] = []
    both = threading.Event()

    def iterate() -> None:
        for message in service:
            seen.append(message)
            if len(seen) == 2:
                both.set()

    waiting = threads(iterate)
    assert both.wait(WAIT)
    service.close()
    waiting.result(WAIT)
    assert seen == [b"1", b"2"]


def test_after_close_every_call_raises_closed(pair: Pair) -> None:
    client, _ = pair.endpoints()
    bus = pair.near
    bus.close()
    bus.close()
    client.close()
    for call in (
        lambda: client.send(b"x"), lambda: client.try_send(b"x"), lambda: client.send_many([b"x"]),
        client.recv, client.try_recv, lambda: client.recv_many(1), client.claim, client.hold,
        bus.create_endpoint, lambda: bus.open("x"), bus.poll, bus.fileno,
    ):  # fmt: skip
        with pytest.raises(rpmsgx.Closed):
            call()
    assert not bus.is_up


@pytest.mark.parametrize("what", ["bus", "endpoint"])
def test_closing_wakes_who_waits(pair: Pair, threads: Callable[..., Future[Any]], what: str) -> None:
    client, service = pair.endpoints()
    while client.try_send(b"x"):
        pass
    others = [pair.near.create_endpoint(dst=service.addr) for _ in range(2)]
    waiting = [threads(client.recv), threads(client.send, b"x"), threads(client.claim), threads(client.hold)]
    if what == "bus":
        waiting += [threads(other.recv) for other in others] + [threads(pair.near.open, "nobody")]
        pair.near.close(linger=0)
    else:
        client.close()
    for future in waiting:
        with pytest.raises(rpmsgx.Closed):
            future.result(WAIT)


def test_closing_lingers_until_the_peer_has_taken_all(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    client, service = pair.endpoints()
    client.send_many([b"%d" % i for i in range(50)])
    closing = threads(pair.near.close, linger=WAIT)
    assert [service.recv(timeout=WAIT) for _ in range(50)] == [b"%d" % i for i in range(50)]
    closing.result(WAIT)


def test_the_peer_leaves_and_comes_back(pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    client, _ = pair.endpoints()
    kept = pair.near.create_endpoint("kept")
    removed: list[str] = []
    pair.near.on_removed = lambda channel: removed.append(channel.name)
    for turn in range(3):
        waiting = threads(client.recv)
        pair.far.close(linger=0)
        with pytest.raises(rpmsgx.ChannelRemoved) as error:
            waiting.result(WAIT)
        assert isinstance(error.value, BrokenPipeError) and error.value.errno is not None
        until(lambda turn=turn: len(removed) == turn + 1, pair.near)
        assert pair.near.channels == []
        pair.far = pair.open(pair.far_role)
        pair.settle()
        client, service = pair.endpoints()
        client.send(b"%d" % turn)
        assert service.recv(timeout=WAIT) == b"%d" % turn
        until(lambda: [channel.name for channel in pair.far.channels] == ["kept"], pair.near, pair.far)
        theirs = pair.far.open("kept", timeout=WAIT)
        theirs.send(b"hello")
        assert kept.recv(timeout=WAIT) == b"hello"
        kept.send(b"back")
        assert theirs.recv(timeout=WAIT) == b"back"
    assert pair.near.counters["resets"] == 3


def test_the_peer_leaves_while_threads_wait_for_everything(
    pair: Pair, threads: Callable[..., Future[Any]]
) -> None:
    client, _ = pair.endpoints()
    while client.try_send(b"x"):
        pass
    waiting = [threads(client.recv), threads(client.send, b"x"), threads(client.claim), threads(client.hold)]
    waiting.append(threads(pair.near.open, "nobody"))
    # None of them has to wait already: who comes later finds the service gone, or nobody at all.
    until(lambda: sum(future.running() for future in waiting) == len(waiting))
    pair.far.close(linger=0)
    for future in waiting[:4]:
        with pytest.raises(rpmsgx.ChannelRemoved):
            future.result(WAIT)
    if not waiting[4].done():
        pair.near.close(linger=0)
    with pytest.raises((rpmsgx.ChannelRemoved, rpmsgx.Closed)):
        waiting[4].result(WAIT)


def test_names_are_announced_at_every_start(link_pair: Pair) -> None:
    near = link_pair.near = link_pair.open(link_pair.role)
    near.create_endpoint("early")
    for _ in range(3):
        far = link_pair.far = link_pair.open(link_pair.far_role)
        until(lambda far=far: far.channels, near, far)
        assert [channel.name for channel in far.channels] == ["early"]
        far.close(linger=0)
        until(lambda: not near.channels, near)


def test_a_send_waits_for_the_link(link_pair: Pair, threads: Callable[..., Future[Any]]) -> None:
    near = link_pair.near = link_pair.open(link_pair.role)
    waiting = threads(near.create_endpoint(dst=1234).send, b"early", timeout=WAIT)
    link_pair.far = link_pair.open(link_pair.far_role)
    endpoint = link_pair.far.create_endpoint(src=1234)
    assert endpoint.recv(timeout=WAIT) == b"early"
    waiting.result(WAIT)


def test_a_forked_child_can_touch_nothing(pair: Pair) -> None:
    client, service = pair.endpoints()
    client.send(b"before")
    before = dict(pair.far.counters)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        report = []
        for call in (
            lambda: client.send(b"child"), lambda: client.try_send(b"x"), lambda: client.recv(timeout=0),
            service.try_recv, client.claim, pair.near.poll, pair.near.fileno, pair.near.create_endpoint,
        ):  # fmt: skip
            try:
                call()
                report.append("nothing")
            except BaseException as error:
                report.append(type(error).__name__)
        for bus in (pair.near, pair.far):
            try:
                bus.close()
                report.append("closed")
            except BaseException as error:
                report.append(repr(error))
        os.write(write, " ".join(report).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        assert pipe.read().decode().split() == ["StateError"] * 8 + ["closed"] * 2
    assert pair.near.is_up and pair.far.is_up
    assert service.recv(timeout=WAIT) == b"before"
    service.send(b"after")
    assert client.recv(timeout=WAIT) == b"after"
    assert pair.far.counters["resets"] == before["resets"] == 0


def test_nothing_can_be_pickled(pair: Pair) -> None:
    client, service = pair.endpoints()
    client.send(b"x")
    for thing in (pair.near, client, pair.near.channels[0], client.claim(1), service.hold(timeout=WAIT)):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(thing)


def test_one_end_can_be_open_once(pair: Pair) -> None:
    if (pair.transport, pair.role) in (("memfd", "device"), ("vhost-user", "driver")):
        pytest.skip("a second one that connects waits for its turn")
    with pytest.raises((rpmsgx.StateError, OSError)) as error:
        rpmsgx.open(pair.url, pair.role)
    assert pair.url.partition(":")[2] in str(error.value)
    client, service = pair.endpoints()
    client.send(b"undisturbed")
    assert service.recv(timeout=WAIT) == b"undisturbed"


def test_descriptors_and_memory_are_given_back(transport: str, tmp_path: Path) -> None:
    def maps() -> int:
        with open("/proc/self/maps") as lines:
            return sum("/link" in line or "/memfd:rpmsgx" in line for line in lines)

    def once() -> None:
        pair = Pair(transport, "driver", tmp_path)
        pair.start()
        client, service = pair.endpoints()
        client.fileno(), pair.far.fileno()
        client.send(b"x")
        assert service.recv(timeout=WAIT) == b"x"
        pair.close()

    once()
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd")), maps()
    for _ in range(3):
        once()
    assert (len(os.listdir("/proc/self/fd")), maps()) == before
    assert [name for name in os.listdir(tmp_path) if name != "link"] == []
