"""A hostile peer at the packed ring: every lie breaks the queue by the rule's id and for good.

The memory lies between guard pages, at either edge: one byte too far would end the test run.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support_memory import GuardedMemory
from support_packed import AVAIL, DESC, INDIRECT, NEXT, START, USED, WRITE, Event, RawPacked, marks

from rpmsgx.errors import Closed, PeerError, StateError
from rpmsgx.virtio.packed import PackedDeviceQueue, PackedDriverQueue

pytestmark = pytest.mark.hostile

NUM = 7
TABLE = 512
DATA = 1024
SIZE = 2048
RING = 128 + 64 + 4  # bytes with both event suppression structures
Desc = tuple[int, int, int, int]


class Peers:
    """A raw ring for the liar, and our queue of the role that is lied to."""

    def __init__(self, edge: Any, **options: Any) -> None:
        self.guarded = GuardedMemory(SIZE, edge)
        self.memory = self.guarded.buffer
        self.raw = RawPacked(self.memory, NUM)
        self.driver = PackedDriverQueue(self.memory, NUM, **options)
        self.device = PackedDeviceQueue(self.memory, NUM, **options)
        self.offered = START

    def offer(self, *descs: Desc) -> None:
        for addr, length, id_, flags in descs:
            self.raw.set_desc(
                self.offered.slot, addr, length, id_, flags | marks(self.offered.wrap, used=False)
            )
            self.offered = self.offered.after(1, NUM)

    def flying(self, *chains: int) -> None:
        """As the driver: chains of so many writable buffers of 4 bytes each, published."""
        for n, count in enumerate(chains):
            self.driver.add(in_=[(DATA, 4)] * count, cookie=n)
        self.driver.publish()

    def works(self) -> None:
        """One message there and its reply back, after both ends were reset."""
        self.driver.reset()
        self.device.reset()
        assert self.driver.broken is None and self.device.broken is None
        assert (self.driver.num_free, self.driver.in_flight, self.device.held) == (NUM, 0, 0)
        self.memory[DATA : DATA + 4] = b"ping"
        self.driver.add([(DATA, 4)], [(DATA + 4, 4)], cookie=5)
        assert self.driver.publish()
        head = self.device.pop()
        assert head is not None and self.device.read(head) == b"ping"
        self.device.push(head, self.device.write(head, b"pong"))
        assert self.device.publish()
        assert self.driver.get() == (5, 4)
        assert bytes(self.memory[DATA + 4 : DATA + 8]) == b"pong"


@pytest.fixture(params=["start", "end"])
def edge(request: pytest.FixtureRequest) -> Any:
    return request.param


def expect(rule: str) -> Any:
    return pytest.raises(PeerError, match=rf"\(rule {rule}\)")


def broken_for_good(queue: Any, rule: str, peers: Peers, calls: list[Callable[[], object]]) -> None:
    """`queue` says so, every call says so, nothing is written; a reset mends it."""
    before = bytes(peers.memory)
    assert queue.broken == rule
    for call in calls * 2:
        with expect(rule) as caught:
            call()
        assert caught.value.rule == rule
    assert bytes(peers.memory) == before
    assert peers.guarded.intact()
    peers.works()
    assert peers.guarded.intact()


def driver_is_broken(peers: Peers, rule: str) -> None:
    queue = peers.driver
    broken_for_good(
        queue, rule, peers,
        [queue.get, queue.publish, queue.mute, queue.unmute, lambda: queue.add([(DATA, 1)])],
    )  # fmt: skip


def device_is_broken(peers: Peers, rule: str) -> None:
    queue = peers.device
    broken_for_good(
        queue, rule, peers,
        [
            queue.pop, queue.publish, queue.mute, queue.unmute, lambda: queue.chain(0), lambda: queue.read(0),
            lambda: queue.write(0, b"x"), lambda: queue.push(0),
        ],
    )  # fmt: skip


# ------------------------------------------------------------------------- used descriptors, against the driver


@pytest.mark.parametrize(
    ("rule", "id_", "length"),
    [
        ("2.8.13-used", NUM, 0),
        ("2.8.13-used", 0xFFFF, 0),
        ("2.8.13-idle", 2, 0),  # staged
        ("2.8.13-idle", 6, 0),  # never offered
        ("2.8.4-len", 0, 13),
        ("2.8.4-len", 1, 5),
        ("2.8.4-len", 1, 0xFFFFFFFF),
    ],
)
def test_used_lies(edge: Any, rule: str, id_: int, length: int) -> None:
    peers = Peers(edge)
    peers.flying(3, 1)
    peers.driver.add([(DATA, 4)])
    peers.raw.set_desc(0, 0, length, id_, AVAIL | USED | WRITE)
    with expect(rule):
        peers.driver.get()
    driver_is_broken(peers, rule)


def test_used_twice(edge: Any) -> None:
    peers = Peers(edge)
    peers.flying(1, 1)
    for slot in (0, 1):
        peers.raw.set_desc(slot, 0, 0, 1, AVAIL | USED)
    assert peers.driver.get() == (1, 0)
    with expect("2.8.13-idle"):
        peers.driver.get()
    driver_is_broken(peers, "2.8.13-idle")


def test_driver_state_does_not_come_from_the_ring(edge: Any) -> None:
    """Free ids, lengths of lists and places are private: the liar may scribble over all memory meanwhile."""
    peers = Peers(edge)
    peers.flying(3, 2, 1)
    ids = [peers.raw.desc(slot)[2] for slot in (2, 4, 5)]
    peers.memory[:] = b"\xff" * SIZE
    for slot, id_, length in zip((0, 1, 3), (ids[2], ids[1], ids[0]), (4, 8, 12), strict=True):
        peers.raw.set_desc(slot, 2**64 - 1, length, id_, 0xFFFF)
    assert [peers.driver.get() for _ in ids] == [(2, 4), (1, 8), (0, 12)]
    assert peers.driver.num_free == NUM
    peers.flying(*[1] * NUM)
    assert sorted(peers.raw.desc(slot)[2] for slot in range(NUM)) == list(range(NUM))
    assert [bool(peers.raw.flags(slot) & AVAIL) for slot in range(NUM)] == [False] * 6 + [True]


# ------------------------------------------------------------------- available descriptors, against the device

LIES: list[tuple[str, list[Desc], list[Desc]]] = [
    # rule, descriptors (addr, len, id, flags), the same in the table at TABLE
    ("2.8.13-addr", [(SIZE, 1, 0, 0)], []),
    ("2.8.13-addr", [(SIZE - 1, 2, 0, 0)], []),
    ("2.8.13-addr", [(SIZE - 1, 2, 0, WRITE)], []),
    ("2.8.13-addr", [(DATA, SIZE, 0, 0)], []),
    ("2.8.13-addr", [(DATA, 0xFFFFFFFF, 0, 0)], []),
    ("2.8.13-addr", [(2**64 - 1, 1, 0, 0)], []),
    ("2.8.13-addr", [(2**64 - 1, 2, 0, 0)], []),
    ("2.8.13-addr", [(2**64 - DATA, 2 * DATA, 0, 0)], []),
    ("2.8.13-addr", [(2**63, 1, 0, WRITE)], []),
    ("2.8.13-addr", [(2**32 + DATA, 1, 0, 0)], []),
    ("2.8.13-addr", [(0, 16, 0, 0)], []),  # the descriptors
    ("2.8.13-addr", [(16 * NUM - 1, 1, 0, WRITE)], []),
    ("2.8.13-addr", [(128, 4, 0, WRITE)], []),  # the event suppression structures
    ("2.8.13-addr", [(127, 2, 0, WRITE)], []),
    ("2.8.13-addr", [(192, 4, 0, 0)], []),
    ("2.8.13-addr", [(195, 1, 0, WRITE)], []),
    ("2.8.13-addr", [(DATA, 4, 0, NEXT), (SIZE, 4, 0, 0)], []),
    ("2.8.13-addr", [(SIZE, 16, 0, INDIRECT)], []),
    ("2.8.13-addr", [(SIZE - 16, 32, 0, INDIRECT)], []),
    ("2.8.13-addr", [(2**64 - 16, 32, 0, INDIRECT)], []),
    ("2.8.13-addr", [(0, 16, 0, INDIRECT)], []),
    ("2.8.13-addr", [(TABLE + 4, 16, 0, INDIRECT)], []),
    ("2.8.13-addr", [(TABLE, 16, 0, INDIRECT)], [(SIZE, 1, 0, 0)]),
    ("2.8.13-addr", [(TABLE, 32, 0, INDIRECT)], [(DATA, 1, 0, 0), (SIZE, 1, 0, 0)]),
    ("2.8.13-zero", [(DATA, 0, 0, 0)], []),
    ("2.8.13-zero", [(DATA, 4, 0, NEXT), (DATA, 0, 0, WRITE)], []),
    ("2.8.13-zero", [(TABLE, 16, 0, INDIRECT)], [(DATA, 0, 0, 0)]),
    ("2.8.13-id", [(DATA, 4, NUM, 0)], []),
    ("2.8.13-id", [(DATA, 4, 0xFFFF, 0)], []),
    ("2.8.13-id", [(DATA, 4, 0, NEXT), (DATA, 4, 0x8000, 0)], []),
    ("2.8.6-F1", [(DATA, 4, 0, NEXT)], []),
    ("2.8.6-F1", [(DATA, 4, 0, NEXT)] * (NUM - 1), []),
    ("2.8.17-2", [(DATA, 4, 0, NEXT)] * NUM, []),
    ("2.8.17-2", [(TABLE, 16 * (NUM + 1), 0, INDIRECT)], [(DATA, 1, 0, 0)] * (NUM + 1)),
    ("2.8.17-2", [(TABLE, 0xFFFFFFF0, 0, INDIRECT)], []),
    ("2.8.19-4", [(TABLE, 16, 0, INDIRECT | NEXT), (DATA, 4, 0, 0)], [(DATA, 4, 0, 0)]),
    ("2.8.19-4", [(DATA, 4, 0, NEXT), (TABLE, 16, 0, INDIRECT)], [(DATA, 4, 0, 0)]),
    ("2.8.7-len", [(TABLE, 0, 0, INDIRECT)], [(DATA, 4, 0, 0)]),
    ("2.8.7-len", [(TABLE, 8, 0, INDIRECT)], [(DATA, 4, 0, 0)]),
    ("2.8.7-len", [(TABLE, 17, 0, INDIRECT)], [(DATA, 4, 0, 0)]),
    ("2.8.7-len", [(TABLE, 0xFFFFFFFF, 0, INDIRECT)], [(DATA, 4, 0, 0)]),
    ("2.8.17-3", [(DATA, 4, 0, WRITE | NEXT), (DATA + 4, 4, 0, 0)], []),
    ("2.8.17-3", [(TABLE, 32, 0, INDIRECT)], [(DATA, 4, 0, WRITE), (DATA, 4, 0, 0)]),
]


@pytest.mark.parametrize(
    ("rule", "descs", "table"), LIES, ids=[f"{n}-{lie[0]}" for n, lie in enumerate(LIES)]
)
def test_descriptor_lies(edge: Any, rule: str, descs: list[Desc], table: list[Desc]) -> None:
    peers = Peers(edge, indirect=True)
    for k, desc in enumerate(table):
        peers.raw.set_desc(k, *desc, table=TABLE)
    peers.offer(*descs)
    before = bytes(peers.memory)
    with expect(rule):
        peers.device.pop()
    assert bytes(peers.memory) == before
    device_is_broken(peers, rule)


@pytest.mark.parametrize("which", ["still held", "given back in another slot"])
def test_id_twice(edge: Any, which: str) -> None:
    peers = Peers(edge)
    peers.offer((DATA, 4, 3, 0), (DATA, 4, 3, 0))
    assert peers.device.pop() == 3
    if which == "still held":
        with expect("2.8.13-twice"):
            peers.device.pop()
        device_is_broken(peers, "2.8.13-twice")
    else:
        peers.device.push(3)
        assert peers.device.pop() == 3
        peers.works()


@pytest.mark.parametrize("length", [1, 2, NUM])
def test_more_available_than_the_queue_has(edge: Any, length: int) -> None:
    """Everything is with the device, pushed or not, and the driver goes on."""
    peers = Peers(edge)
    peers.offer(*[(DATA, 1, id_, 0) for id_ in range(NUM)])
    for id_ in range(NUM):
        assert peers.device.pop() == id_
    peers.device.push(4)
    peers.offer(*[(DATA, 1, 4, NEXT)] * (length - 1), (DATA, 1, 4, 0))
    with expect("2.8.1-avail"):
        peers.device.pop()
    device_is_broken(peers, "2.8.1-avail")


@pytest.mark.parametrize("pushed", [0, 1, 2])
def test_a_list_longer_than_what_the_device_left(edge: Any, pushed: int) -> None:
    peers = Peers(edge)
    peers.offer((DATA, 1, 0, 0), (DATA, 1, 1, 0))
    assert (peers.device.pop(), peers.device.pop()) == (0, 1)
    for head in range(pushed):  # and not published
        peers.device.push(head)
    peers.offer(*[(DATA, 1, 2, NEXT)] * (NUM - 2), (DATA, 1, 2, 0))
    with expect("2.8.17-2"):
        peers.device.pop()
    device_is_broken(peers, "2.8.17-2")


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize(
    ("addr", "size"), [(DATA, 1), (SIZE - 1, 1), (SIZE - 4, 4), (RING, 4), (DATA, SIZE - DATA)]
)
def test_the_last_byte_is_still_ours(edge: Any, flags: int, addr: int, size: int) -> None:
    peers = Peers(edge)
    peers.offer((addr, size, 0, flags))
    assert peers.device.pop() == 0
    data = bytes(n % 251 for n in range(size))
    if flags:
        assert peers.device.write(0, data) == size
        assert bytes(peers.memory[addr : addr + size]) == data
    else:
        peers.memory[addr : addr + size] = data
        assert peers.device.read(0) == data
    assert peers.guarded.intact()


# --------------------------------------------------------------------------------------- time of check


def test_a_chain_is_what_it_was_when_it_was_popped(edge: Any) -> None:
    """What is pushed for others, and what the driver makes of the slots then, changes no chain that is held."""
    peers = Peers(edge, indirect=True)
    peers.memory[DATA : DATA + 8] = b"onceonly"
    peers.raw.set_desc(0, DATA + 4, 4, 0, table=TABLE)
    peers.offer(
        (DATA, 2, 0, NEXT), (DATA + 2, 2, 0, 0), (TABLE, 16, 1, INDIRECT), (DATA, 1, 2, 0), (DATA, 1, 3, 0)
    )
    assert [peers.device.pop() for _ in range(4)] == [0, 1, 2, 3]
    peers.device.push(3)
    peers.device.push(2)
    peers.device.publish()
    before = peers.raw.bytes()
    for slot in range(NUM):
        peers.raw.set_desc(slot, SIZE, 0xFFFFFFFF, 0xFFFF, NEXT | AVAIL)
    peers.raw.set_desc(0, SIZE, 0xFFFFFFFF, 0xFFFF, table=TABLE)
    assert peers.device.read(0) == b"once"
    assert peers.device.read(1) == b"only"
    assert peers.device.held == 2
    peers.memory[: 16 * NUM] = before[0]
    peers.device.push(0)
    peers.device.publish()
    assert peers.raw.desc(2)[1:] == (0, 0, AVAIL | USED)


@pytest.fixture
def flipper() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Starts another process that calls a function for ever, at most until the test is over."""
    children: list[int] = []

    def start(step: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                while True:
                    step()
            finally:
                os._exit(1)
        children.append(pid)

    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_descriptors_rewritten_while_they_are_read(
    edge: Any, flipper: Callable[[Callable[[], None]], None]
) -> None:
    """A walk gives memory of ours or the rule, whatever a racing driver does; a second read would fault."""
    peers = Peers(edge)
    raw, memory = peers.raw, peers.memory
    memory[DATA:SIZE] = b"\x77" * (SIZE - DATA)
    values = [
        (DATA, 16, 0, AVAIL), (SIZE - 4, 4, 0, AVAIL), (SIZE, 4, 0, AVAIL), (DATA, 0xFFFFFFFF, 0, AVAIL),
        (DATA, 8, 0xFFFF, AVAIL), (DATA, 8, 1, AVAIL | NEXT), (SIZE - 4, 0, 0, AVAIL), (DATA, 8, 0, 0),
        (2**64 - 8, 16, 0, AVAIL | INDIRECT), (SIZE + 4096, 16, 0, AVAIL | NEXT),
        (DATA, 16, 0, AVAIL | NEXT | INDIRECT),
    ]  # fmt: skip

    def rewrite() -> None:
        for value in values:
            raw.set_desc(0, *value)

    raw.set_desc(1, DATA + 64, 8, 0, AVAIL)
    flipper(rewrite)
    device = PackedDeviceQueue(memory, NUM, indirect=True)
    for _ in range(20000):
        device.reset()
        try:
            head = device.pop()
        except PeerError as error:
            assert error.rule.startswith("2.8")
        else:
            if head is not None:
                data = device.read(head)
                assert data == b"\x77" * len(data)
    assert peers.guarded.intact()


def test_a_list_that_ends_in_a_table_once_it_was_looked_at(
    edge: Any, flipper: Callable[[Callable[[], None]], None]
) -> None:
    """No chain has more elements than the queue, even if its last descriptor becomes INDIRECT half way."""
    peers = Peers(edge)
    raw = peers.raw
    for k in range(NUM):
        raw.set_desc(k, DATA, 1, 0, AVAIL | (NEXT if k < NUM - 1 else 0))
        raw.set_desc(k, DATA, 1, 0, table=TABLE)
    raw.set_desc(NUM - 1, TABLE, 16 * NUM, 0, AVAIL)

    low = 16 * (NUM - 1) + 14  # of the flags

    def flip() -> None:
        for _ in range(1000):
            peers.memory[low] = AVAIL | INDIRECT
            peers.memory[low] = AVAIL

    flipper(flip)
    device = PackedDeviceQueue(peers.memory, NUM, indirect=True)
    for _ in range(20000):
        device.reset()
        try:
            head = device.pop()
        except PeerError as error:
            assert error.rule == "2.8.19-4"
        else:
            assert head == 0 and len(device.chain(head)) == NUM


# --------------------------------------------------------------------- our own mistakes, and lifetimes


def test_what_the_caller_gets_wrong_changes_nothing(edge: Any) -> None:
    peers = Peers(edge, indirect=True)
    peers.driver.add([(DATA, 4)], cookie=1)
    before = bytes(peers.memory)
    for wrong in (
        lambda: peers.driver.add(),
        lambda: peers.driver.add([(DATA, 0)]),
        lambda: peers.driver.add([(DATA, 2**32)]),
        lambda: peers.driver.add([(DATA, 2**31)] * 2),
        lambda: peers.driver.add([(DATA, -1)]),
        lambda: peers.driver.add([(2**64, 1)]),
        lambda: peers.driver.add([(2**64 - 1, 2)]),
        lambda: peers.driver.add([(DATA, 1)], cookie=2**32),
        lambda: peers.driver.add([(DATA, 1)], table=(SIZE, 0)),
        lambda: peers.driver.add([(DATA, 1)] * 2, table=(SIZE - 16, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(2**64 - 16, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(TABLE + 8, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(TABLE, 8)),
        lambda: peers.driver.add([(DATA, 1)], table=(0, 0)),
        lambda: peers.driver.add([(DATA, 1)] * 2, table=(112, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(192, 0)),
        lambda: peers.device.push(0),
        lambda: peers.device.push(NUM),
        lambda: peers.device.push(-1),
        lambda: peers.device.push(0, 2**32),
        lambda: peers.device.read(3),
        lambda: peers.device.chain(NUM),
        lambda: peers.device.write(0, b"x"),
        lambda: peers.device.read(0, -1),
        lambda: PackedDriverQueue(peers.memory, NUM, offset=SIZE + 1),
        lambda: PackedDriverQueue(peers.memory, NUM, offset=2**64 - 1),
        lambda: PackedDriverQueue(peers.memory, NUM, parts=(0, 2**64 - 4, 512)),
        lambda: PackedDriverQueue(peers.memory, NUM, parts=(0, 64, 512)),
        lambda: PackedDriverQueue(peers.memory, NUM, kind="warm"),  # type: ignore[arg-type]
        lambda: PackedDeviceQueue(peers.memory, NUM, start=0x10000),
        lambda: PackedDeviceQueue(peers.memory, NUM, start=0x8000 + NUM),
    ):  # fmt: skip
        with pytest.raises((ValueError, StateError)):
            wrong()
    assert bytes(peers.memory) == before
    assert (peers.driver.num_free, peers.driver.in_flight) == (NUM - 1, 1)
    assert peers.driver.broken is None and peers.device.broken is None
    with pytest.raises(TypeError):
        PackedDeviceQueue(peers.memory, NUM, memory=peers.memory)  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        PackedDriverQueue(bytes(SIZE), NUM)
    with pytest.raises(BufferError):
        PackedDriverQueue(peers.memory[::2], NUM)
    peers.works()


@pytest.mark.parametrize("wrap", [0, 1])
@pytest.mark.parametrize("slot", [0, 3, NUM - 1])
def test_a_device_goes_on_where_another_stopped(edge: Any, slot: int, wrap: int) -> None:
    peers = Peers(edge)
    for _ in range(slot + (0 if wrap else NUM)):
        peers.driver.add([(DATA, 1)])
        peers.driver.publish()
        head = peers.device.pop()
        assert head is not None
        peers.device.push(head)
        peers.device.publish()
        assert peers.driver.get() == (0, 0)
    device = PackedDeviceQueue(peers.memory, NUM, start=slot | wrap << 15)
    assert device.pop() is None
    peers.driver.add([(DATA, 1)] * 2, cookie=9)
    peers.driver.publish()
    head = device.pop()
    assert head is not None
    device.push(head)
    device.publish()
    assert peers.driver.get() == (9, 0)


def test_views_outlive_the_queue_and_hold_the_memory() -> None:
    memory = mmap.mmap(-1, 8192)
    driver, device = PackedDriverQueue(memory, NUM), PackedDeviceQueue(memory, NUM)
    memory[DATA : DATA + 4] = b"view"
    driver.add([(DATA, 4)])
    driver.publish()
    head = device.pop()
    assert head is not None
    ((view, _),) = device.chain(head)
    desc = driver.desc
    for queue in (driver, device):
        queue.close()
        queue.close()
        for name in ("publish", "mute", "unmute", "reset"):
            with pytest.raises(Closed):
                getattr(queue, name)()
        for name in ("desc", "driver_event", "device_event"):
            with pytest.raises(Closed):
                getattr(queue, name)
    for call in (
        device.pop,
        lambda: device.read(head),
        lambda: device.push(head),
        lambda: driver.add([(DATA, 4)]),
    ):
        with pytest.raises(Closed):
            call()
    with pytest.raises(BufferError):
        memory.close()
    assert bytes(view) == b"view"
    assert desc[0]["len"] == 4
    del view, desc
    memory.close()


# ------------------------------------------------------------------------------------------------ fuzz

small = st.one_of(
    st.integers(-1, NUM + 2), st.sampled_from([0xFFFF, 0x10000, 2**32 - 1, 2**32, 2**64 - 1, 2**64])
)
place = st.one_of(small, st.integers(0, SIZE + 64), st.sampled_from([TABLE, DATA, SIZE - 16]))
pairs = st.lists(st.tuples(place, small), max_size=NUM + 2)
good = st.lists(st.tuples(st.just(DATA), st.integers(1, 64)), max_size=3)
calls: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("add"), st.fixed_dictionaries({"out": good, "in_": good},
                                                    optional={"table": st.just((TABLE, TABLE))})),
    st.tuples(st.just("add"), st.fixed_dictionaries({"out": pairs, "in_": pairs, "cookie": small},
                                                    optional={"table": st.tuples(place, place)})),
    st.tuples(st.sampled_from(["publish", "get", "mute", "unmute", "pop"]), st.just({})),
    st.tuples(st.sampled_from(["publish", "get", "pop", "reset"]), st.just({})),
    st.tuples(st.sampled_from(["chain", "read"]), st.fixed_dictionaries({"head": small, "max_bytes": small})),
    st.tuples(st.just("write"), st.fixed_dictionaries({"head": small, "data": st.binary(max_size=64)})),
    st.tuples(st.just("push"), st.fixed_dictionaries({"head": small, "length": small})),
)  # fmt: skip
slots = st.integers(0, NUM - 1)
flags = st.builds(
    lambda low, mark: low | mark, st.integers(0, 7), st.sampled_from([0, AVAIL, USED, AVAIL | USED])
)
scribble: st.SearchStrategy[Any] = st.one_of(
    st.tuples(
        st.just("set_desc"),
        st.tuples(slots, st.integers(0, SIZE + 8), st.integers(0, 64), st.integers(0, NUM), flags),
    ),
    st.tuples(
        st.just("set_table"),
        st.tuples(slots, st.integers(0, SIZE + 8), st.integers(0, 64), st.integers(0, NUM), flags),
    ),
    st.tuples(st.just("set_flags"), st.tuples(slots, flags)),
    st.tuples(
        st.just("set_event"),
        st.tuples(
            st.sampled_from([128, 192]),
            st.builds(Event, st.integers(0, 0x7FFF), st.integers(0, 1), st.integers(0, 0xFFFF)),
        ),
    ),
    st.tuples(st.just("bytes"), st.tuples(st.integers(0, RING), st.binary(min_size=1, max_size=24))),
)


@settings(max_examples=400, deadline=None)
@given(
    edge=st.sampled_from(["start", "end"]),
    options=st.fixed_dictionaries({"event_idx": st.booleans(), "indirect": st.booleans()}),
    noise=st.one_of(st.just(b""), st.binary(min_size=RING, max_size=RING)),
    steps=st.lists(st.one_of(calls, scribble), max_size=40),
)
@example("end", {"event_idx": True, "indirect": True}, b"\xff" * RING, [("pop", {}), ("get", {})])
@example(
    "end",
    {"event_idx": True, "indirect": False},
    b"",
    [
        ("add", {"out": [(DATA, 1)], "in_": []}),
        ("set_event", (192, Event(0x7FFF, 1, DESC))),
        ("publish", {}),
        ("pop", {}),
    ],
)
def test_nothing_but_typed_errors(edge: Any, options: dict[str, Any], noise: bytes, steps: list[Any]) -> None:
    guarded = GuardedMemory(SIZE, edge)
    memory = guarded.buffer
    raw = RawPacked(memory, NUM)
    driver, device = PackedDriverQueue(memory, NUM, **options), PackedDeviceQueue(memory, NUM, **options)
    memory[: len(noise)] = noise
    for name, arguments in steps:
        if name == "set_table":
            raw.set_desc(*arguments, table=TABLE)
        elif name == "bytes":
            at, data = arguments
            memory[at : at + len(data)] = data
        elif isinstance(arguments, tuple):
            getattr(raw, name)(*arguments)
        else:
            for queue in (driver, device):
                if hasattr(queue, name):
                    with contextlib.suppress(PeerError, StateError, ValueError):
                        getattr(queue, name)(**arguments)
        assert driver.in_flight <= NUM - driver.num_free <= NUM
        assert device.held <= NUM
    for queue in (driver, device):
        queue.reset()
        assert queue.broken is None
    driver.add([(DATA, 1)], cookie=3)
    driver.publish()
    head = device.pop()
    assert head is not None
    device.push(head)
    device.publish()
    assert driver.get() == (3, 0)
    assert guarded.intact()
