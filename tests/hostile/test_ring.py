"""A hostile peer at the ring: every lie breaks the queue by the rule's id and for good.

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
from support_ring import INDIRECT, NEXT, WRITE, RawRing

from rpmsgx.errors import Closed, PeerError, StateError
from rpmsgx.virtio.ring import DeviceQueue, DriverQueue, Memory

pytestmark = pytest.mark.hostile

NUM = 8
TABLE = 4096 + 256
DATA = 4096 + 1024
SIZE = DATA + 1024
ON = {"indirect": True}


class Peers:
    """A raw ring for the liar, and our queue of the role that is lied to."""

    def __init__(self, edge: Any, **options: Any) -> None:
        self.guarded = GuardedMemory(SIZE, edge)
        self.memory = self.guarded.buffer
        self.raw = RawRing(self.memory, NUM)
        self.driver = DriverQueue(self.memory, NUM, **options)
        self.device = DeviceQueue(self.memory, NUM, **options)

    def offer(self, *heads: int) -> None:
        idx = self.raw.avail_idx
        for k, head in enumerate(heads):
            self.raw.set_avail_entry(idx + k, head)
        self.raw.avail_idx = (idx + len(heads)) & 0xFFFF

    def use(self, *entries: tuple[int, int]) -> None:
        idx = self.raw.used_idx
        for k, entry in enumerate(entries):
            self.raw.set_used_entry(idx + k, *entry)
        self.raw.used_idx = (idx + len(entries)) & 0xFFFF

    def flying(self, *chains: int) -> list[int]:
        """As the driver: chains of so many readable buffers of 4 bytes each, published. Their heads."""
        start = self.raw.avail_idx
        for n, count in enumerate(chains):
            self.driver.add([(DATA, 4)] * count, cookie=n)
        self.driver.publish()
        return [self.raw.avail_entry(start + n) for n in range(len(chains))]

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


# ----------------------------------------------------------------------- used ring, against the driver


@pytest.mark.parametrize("idx", [3, 4, NUM, NUM + 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_used_idx_jumps(edge: Any, idx: int) -> None:
    peers = Peers(edge)
    peers.flying(1, 1)
    peers.driver.add([(DATA, 1)])  # staged, so not with the device
    peers.raw.used_idx = idx
    with expect("2.7.8-idx"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8-idx")


@pytest.mark.parametrize("back", [1, 2, NUM])
def test_used_idx_goes_back(edge: Any, back: int) -> None:
    peers = Peers(edge)
    peers.use(*((head, 0) for head in peers.flying(1, 1, 1)))
    for n in range(3):
        assert peers.driver.get() == (n, 0)
    peers.flying(*[1] * NUM)
    peers.raw.used_idx = (3 - back) & 0xFFFF
    with expect("2.7.8-idx"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8-idx")


@pytest.mark.parametrize("head", [NUM, NUM + 1, 0xFFFF, 0x10000, 0x10001, 0x80000000, 0xFFFFFFFF])
def test_used_id_outside_the_queue(edge: Any, head: int) -> None:
    peers = Peers(edge)
    peers.flying(1, 1)
    peers.use((head, 0))
    with expect("2.7.8-id"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8-id")


@pytest.mark.parametrize("which", ["never offered", "inside a chain", "already back"])
def test_used_id_not_outstanding(edge: Any, which: str) -> None:
    peers = Peers(edge)
    head, other = peers.flying(3, 1)
    inside = peers.raw.desc(head)[3]
    free = next(i for i in range(NUM) if i not in (head, inside, peers.raw.desc(inside)[3], other))
    if which == "already back":
        peers.use((other, 0), (other, 0))
        assert peers.driver.get() == (1, 0)
    else:
        peers.use((free if which == "never offered" else inside, 0))
    with expect("2.7.8-idle"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8-idle")


@pytest.mark.parametrize("published", [False, True])
def test_used_id_twice_with_its_descriptor_taken_again_in_between(edge: Any, published: bool) -> None:
    """Both entries stood under one used.idx, so the second cannot mean the chain that came after it."""
    peers = Peers(edge)
    first, _ = peers.flying(1, 1)
    peers.use((first, 0), (first, 0))
    assert peers.driver.get() == (0, 0)
    peers.driver.add([(DATA, 4)], cookie=7)
    if published:
        peers.driver.publish()
        assert peers.raw.avail_entry(2) == first
    with expect("2.7.8-idle"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8-idle")


def test_used_id_of_a_chain_that_was_never_shown(edge: Any) -> None:
    peers = Peers(edge)
    peers.flying(1)
    peers.driver.add([(DATA, 4)], cookie=7)
    peers.use((peers.raw.avail_entry(1), 0))
    with expect("2.7.8-idle"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8-idle")


@pytest.mark.parametrize("length", [5, 16, 0x10004, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("writable", [False, True])
def test_used_len_beyond_the_buffer(edge: Any, length: int, writable: bool) -> None:
    peers = Peers(edge)
    buffers: Any = {"in_": [(DATA, 4)]} if writable else {"out": [(DATA, 4)]}
    peers.driver.add(**buffers)
    peers.driver.publish()
    peers.use((peers.raw.avail_entry(0), length))
    with expect("2.7.8.3-1"):
        peers.driver.get()
    driver_is_broken(peers, "2.7.8.3-1")


def test_driver_state_does_not_come_from_the_ring(edge: Any) -> None:
    """Free list, chain links and indices are private: the liar may scribble over all memory meanwhile."""
    peers = Peers(edge)
    heads = peers.flying(3, 2, 1)
    peers.memory[:] = b"\xff" * SIZE
    peers.raw.used_idx = 0
    peers.use(*((head, 0) for head in heads))
    assert [peers.driver.get() for _ in heads] == [(0, 0), (1, 0), (2, 0)]
    assert peers.driver.num_free == NUM
    heads = peers.flying(*[1] * NUM)
    assert sorted(peers.raw.avail_entry(3 + n) for n in range(NUM)) == list(range(NUM))
    assert peers.raw.avail_idx == 3 + NUM


# ---------------------------------------------------------------------- avail ring, against the device


@pytest.mark.parametrize("idx", [NUM + 1, NUM + 2, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_avail_idx_jumps(edge: Any, idx: int) -> None:
    peers = Peers(edge)
    peers.raw.avail_idx = idx
    with expect("2.7.6.1-1"):
        peers.device.pop()
    device_is_broken(peers, "2.7.6.1-1")


@pytest.mark.parametrize("more", [NUM - 1, NUM])
def test_avail_idx_offers_more_than_the_device_left(edge: Any, more: int) -> None:
    peers = Peers(edge)
    peers.offer(0, 1)
    assert (peers.device.pop(), peers.device.pop()) == (0, 1)
    peers.raw.avail_idx = 2 + more
    with expect("2.7.6.1-1"):
        peers.device.pop()
    device_is_broken(peers, "2.7.6.1-1")


def test_avail_idx_runs_away_from_a_batch(edge: Any) -> None:
    """A device that publishes when nothing is left comes to an end, whatever the driver keeps adding."""
    peers = Peers(edge)
    peers.offer(*range(NUM))
    for head in range(NUM):
        assert peers.device.pop() == head
        peers.device.push(head)
    peers.offer(0)
    with expect("2.7.6.1-1"):
        peers.device.pop()
    device_is_broken(peers, "2.7.6.1-1")


@pytest.mark.parametrize("back", [1, 2, NUM])
def test_avail_idx_goes_back(edge: Any, back: int) -> None:
    peers = Peers(edge)
    peers.offer(0, 1, 2)
    for head in range(3):
        assert peers.device.pop() == head
        peers.device.push(head)
    peers.device.publish()
    peers.raw.avail_idx = (3 - back) & 0xFFFF
    with expect("2.7.6.1-1"):
        peers.device.pop()
    device_is_broken(peers, "2.7.6.1-1")


@pytest.mark.parametrize("head", [NUM, NUM + 1, 0x7FFF, 0xFFFF])
def test_head_outside_the_queue(edge: Any, head: int) -> None:
    peers = Peers(edge)
    peers.offer(3, head)
    assert peers.device.pop() == 3
    with expect("2.7.6-head"):
        peers.device.pop()
    device_is_broken(peers, "2.7.6-head")


@pytest.mark.parametrize("when", ["one publication", "still held", "given back in between"])
def test_head_twice(edge: Any, when: str) -> None:
    peers = Peers(edge)
    if when == "still held":
        peers.offer(3)
        assert peers.device.pop() == 3
        peers.offer(3)
    else:
        peers.offer(3, 3)
        assert peers.device.pop() == 3
    if when == "given back in between":  # too late: both entries stood under one avail.idx
        peers.device.push(3)
        peers.device.publish()
    with expect("2.7.6-twice"):
        peers.device.pop()
    device_is_broken(peers, "2.7.6-twice")


# --------------------------------------------------------------------- descriptors, against the device

LIES: list[Any] = [
    # rule, {descriptor: (addr, len, flags, next)}, the same in the table at TABLE
    ("2.7.5-addr", {0: (SIZE, 1, 0, 0)}, {}),
    ("2.7.5-addr", {0: (SIZE - 1, 2, 0, 0)}, {}),
    ("2.7.5-addr", {0: (SIZE - 1, 2, WRITE, 0)}, {}),
    ("2.7.5-addr", {0: (DATA, SIZE, 0, 0)}, {}),
    ("2.7.5-addr", {0: (DATA, 0xFFFFFFFF, 0, 0)}, {}),
    ("2.7.5-addr", {0: (2**64 - 1, 1, 0, 0)}, {}),
    ("2.7.5-addr", {0: (2**64 - 1, 2, 0, 0)}, {}),
    ("2.7.5-addr", {0: (2**64 - DATA, 2 * DATA, 0, 0)}, {}),
    ("2.7.5-addr", {0: (2**63, 1, WRITE, 0)}, {}),
    ("2.7.5-addr", {0: (2**32 + DATA, 1, 0, 0)}, {}),
    ("2.7.5-addr", {0: (0, 16, 0, 0)}, {}),  # the descriptor table
    ("2.7.5-addr", {0: (16 * NUM - 1, 1, WRITE, 0)}, {}),
    ("2.7.5-addr", {0: (16 * NUM, 2, WRITE, 0)}, {}),  # the avail ring
    ("2.7.5-addr", {0: (16 * NUM + 6 + 2 * NUM - 1, 1, WRITE, 0)}, {}),
    ("2.7.5-addr", {0: (4096, 4, WRITE, 0)}, {}),  # the used ring
    ("2.7.5-addr", {0: (4095, 2, WRITE, 0)}, {}),
    ("2.7.5-addr", {0: (4096 + 6 + 8 * NUM - 1, 1, WRITE, 0)}, {}),
    ("2.7.5-addr", {0: (DATA, 4, NEXT, 1), 1: (SIZE, 4, 0, 0)}, {}),
    ("2.7.5-addr", {0: (SIZE, 16, INDIRECT, 0)}, {}),
    ("2.7.5-addr", {0: (SIZE - 16, 32, INDIRECT, 0)}, {}),
    ("2.7.5-addr", {0: (2**64 - 16, 32, INDIRECT, 0)}, {}),
    ("2.7.5-addr", {0: (0, 16, INDIRECT, 0)}, {}),
    ("2.7.5-addr", {0: (TABLE + 4, 16, INDIRECT, 0)}, {}),
    ("2.7.5-addr", {0: (TABLE, 0xFFFFFFF0, INDIRECT, 0)}, {}),
    ("2.7.5-addr", {0: (TABLE, 16, INDIRECT, 0)}, {0: (SIZE, 1, 0, 0)}),
    ("2.7.5-len", {0: (DATA, 0, 0, 0)}, {}),
    ("2.7.5-len", {0: (DATA, 4, NEXT, 1), 1: (DATA, 0, WRITE, 0)}, {}),
    ("2.7.5-len", {0: (TABLE, 16, INDIRECT, 0)}, {0: (DATA, 0, 0, 0)}),
    ("2.7.5-next", {0: (DATA, 4, NEXT, NUM)}, {}),
    ("2.7.5-next", {0: (DATA, 4, NEXT, 0xFFFF)}, {}),
    ("2.7.5-next", {0: (TABLE, 32, INDIRECT, 0)}, {0: (DATA, 4, NEXT, 2)}),
    ("2.7.5-next", {0: (TABLE, 16, INDIRECT, 0)}, {0: (DATA, 4, NEXT, 1)}),
    ("2.7.5.3.1-3", {0: (DATA, 4, NEXT, 0)}, {}),
    ("2.7.5.3.1-3", {0: (DATA, 4, NEXT, 1), 1: (DATA, 4, NEXT, 0)}, {}),
    ("2.7.5.3.1-3", {0: (TABLE, 16, INDIRECT, 0)}, {0: (DATA, 4, NEXT, 0)}),
    ("2.7.5.3.1-3", {0: (TABLE, 256, INDIRECT, 0)}, {i: (DATA, 1, NEXT, i + 1) for i in range(15)}),
    (
        "2.7.5.3.1-3",
        {i: (DATA, 1, NEXT, i + 1) for i in range(NUM - 1)} | {NUM - 1: (TABLE, 32, INDIRECT, 0)},
        {0: (DATA, 1, NEXT, 1), 1: (DATA, 1, 0, 0)},
    ),
    ("2.7.5.3.1-4", {0: (TABLE, 16, INDIRECT | NEXT, 1), 1: (DATA, 4, 0, 0)}, {0: (DATA, 4, 0, 0)}),
    ("2.7.5.3.1-2", {0: (TABLE, 16, INDIRECT, 0)}, {0: (TABLE, 16, INDIRECT, 0)}),
    ("2.7.5.3.1-2", {0: (TABLE, 32, INDIRECT, 0)}, {0: (DATA, 4, NEXT, 1), 1: (TABLE, 16, INDIRECT, 0)}),
    ("2.7.5.3-len", {0: (TABLE, 0, INDIRECT, 0)}, {0: (DATA, 4, 0, 0)}),
    ("2.7.5.3-len", {0: (TABLE, 8, INDIRECT, 0)}, {0: (DATA, 4, 0, 0)}),
    ("2.7.5.3-len", {0: (TABLE, 17, INDIRECT, 0)}, {0: (DATA, 4, 0, 0)}),
    ("2.7.5.3-len", {0: (TABLE, 0xFFFFFFFF, INDIRECT, 0)}, {0: (DATA, 4, 0, 0)}),
    ("2.7.4.2-1", {0: (DATA, 4, WRITE | NEXT, 1), 1: (DATA + 4, 4, 0, 0)}, {}),
    ("2.7.5.2-1", {i: (DATA, 1024, NEXT if i < 7 else 0, (i + 1) % NUM) for i in range(NUM)}, {}),
]


@pytest.mark.parametrize(
    ("rule", "descs", "table"), LIES, ids=[f"{n}-{lie[0]}" for n, lie in enumerate(LIES)]
)
def test_descriptor_lies(edge: Any, rule: str, descs: dict[int, Any], table: dict[int, Any]) -> None:
    peers = Peers(edge, **ON)
    for i, desc in descs.items():
        peers.raw.set_desc(i, *desc)
    for i, desc in table.items():
        peers.raw.set_desc(i, *desc, table=TABLE)
    peers.offer(0)
    assert peers.device.pop() == 0
    before = bytes(peers.memory)
    with expect(rule):
        peers.device.chain(0, 4096)
    assert bytes(peers.memory) == before
    device_is_broken(peers, rule)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(
    ("rule", "descs", "table"), LIES, ids=[f"{n}-{lie[0]}" for n, lie in enumerate(LIES)]
)
def test_descriptor_lies_by_copy(
    edge: Any, rule: str, descs: dict[int, Any], table: dict[int, Any], write: bool
) -> None:
    peers = Peers(edge, **ON)
    for i, desc in descs.items():
        peers.raw.set_desc(i, *desc)
    for i, desc in table.items():
        peers.raw.set_desc(i, *desc, table=TABLE)
    peers.offer(0)
    assert peers.device.pop() == 0
    before = bytes(peers.memory)
    if write and rule == "2.7.5.2-1":
        rule = (
            "2.7.5.1-1"  # write() has no budget of bytes; then that chain is honest, but for being readable
        )
    with expect(rule):
        if write:
            peers.device.write(0, b"x" * 40)
        else:
            peers.device.read(0, 4096)
    assert bytes(peers.memory) == before
    assert peers.guarded.intact()


def test_indirect_unless_negotiated(edge: Any) -> None:
    peers = Peers(edge)
    peers.raw.set_desc(0, TABLE, 16, INDIRECT)
    peers.raw.set_desc(0, DATA, 4, table=TABLE)
    peers.offer(0)
    assert peers.device.pop() == 0
    with expect("2.7.5.3.1-1"):
        peers.device.read(0)
    device_is_broken(peers, "2.7.5.3.1-1")


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize(("addr", "size"), [(DATA, 1), (SIZE - 1, 1), (SIZE - 4, 4), (DATA, SIZE - DATA)])
def test_the_last_byte_is_still_ours(edge: Any, flags: int, addr: int, size: int) -> None:
    peers = Peers(edge)
    peers.raw.set_desc(0, addr, size, flags)
    peers.offer(0)
    assert peers.device.pop() == 0
    data = bytes(n % 251 for n in range(size))
    if flags:
        assert peers.device.write(0, data) == size
        assert bytes(peers.memory[addr : addr + size]) == data
    else:
        peers.memory[addr : addr + size] = data
        assert peers.device.read(0) == data
    assert peers.guarded.intact()


@pytest.mark.parametrize(
    ("addr", "size", "flags"),
    [
        (0x1000 + 1020, 8, 0),
        (0x2000 - 1, 1, 0),
        (0x2000, 8, WRITE),
        (0x2000 + 1020, 8, 0),
        (0, 1, 0),
        (0x1100, 1, 0),
    ],
)
def test_regions_and_the_gaps_between_them(edge: Any, addr: int, size: int, flags: int) -> None:
    """Two guarded regions, adjacent by address, one read-only; no descriptor crosses."""
    peers = Peers(edge)
    one, two = GuardedMemory(1024, edge), GuardedMemory(1024, edge)
    regions = [(0x1000, one.buffer), (0x1400, two.buffer), (0x2000, two.buffer.toreadonly())]
    memory = Memory(regions, exclude=[(0x1100, 0x100)])
    device = DeviceQueue(peers.memory, NUM, memory=memory)
    peers.raw.set_desc(0, addr, size, flags)
    peers.offer(0)
    assert device.pop() == 0
    with expect("2.7.5-addr"):
        device.chain(0)
    assert one.intact() and two.intact()


# --------------------------------------------------------------------------------------- time of check


def test_an_index_once_read_is_the_index(edge: Any) -> None:
    peers = Peers(edge)
    peers.offer(0, 1)
    assert peers.device.pop() == 0
    peers.raw.avail_idx = 0xFFFF  # not read again before what was announced is taken
    assert peers.device.pop() == 1
    with expect("2.7.6.1-1"):
        peers.device.pop()

    peers = Peers(edge)
    heads = peers.flying(1, 1)
    peers.use(*((head, 0) for head in heads))
    assert peers.driver.get() == (0, 0)
    peers.raw.used_idx = 0xFFFF
    assert peers.driver.get() == (1, 0)
    with expect("2.7.8-idx"):
        peers.driver.get()


def test_a_chain_is_what_it_was_when_it_was_walked(edge: Any) -> None:
    peers = Peers(edge)
    peers.memory[DATA : DATA + 4] = b"once"
    peers.raw.set_desc(0, DATA, 4)
    peers.offer(0)
    assert peers.device.pop() == 0
    peers.raw.set_avail_entry(0, 0xFFFF)
    ((view, _),) = peers.device.chain(0)
    peers.raw.set_desc(0, SIZE, 0xFFFFFFFF, NEXT, 0xFFFF)
    assert bytes(view) == b"once"
    peers.device.push(0)
    peers.device.publish()
    assert peers.raw.used_entry(0) == (0, 0)


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
    guarded = GuardedMemory(SIZE, edge)
    memory = guarded.buffer
    raw = RawRing(memory, NUM)
    memory[DATA:SIZE] = b"\x77" * (SIZE - DATA)
    values = [
        (DATA, 16, 0, 0), (SIZE - 4, 4, 0, 0), (SIZE, 4, 0, 0), (DATA, 0xFFFFFFFF, 0, 0),
        (DATA, 8, NEXT, 0xFFFF),
        (SIZE - 4, 0, 0, 0), (2**64 - 8, 16, INDIRECT, 0), (SIZE + 4096, 16, NEXT, 0), (DATA, 16, NEXT, 1),
    ]  # fmt: skip

    def rewrite() -> None:
        for value in values:
            raw.set_desc(0, *value)

    raw.set_desc(1, DATA + 64, 8)
    flipper(rewrite)
    device = DeviceQueue(memory, NUM, indirect=True)
    for _ in range(20000):
        device.reset()
        raw.set_avail_entry(0, 0)
        raw.avail_idx = 1
        assert device.pop() == 0
        try:
            data = device.read(0, 4096)
        except PeerError as error:
            assert error.rule.startswith("2.7.5")
        else:
            assert data == b"\x77" * len(data)
    assert guarded.intact()


# --------------------------------------------------------------------- our own mistakes, and lifetimes


def test_what_the_caller_gets_wrong_changes_nothing(edge: Any) -> None:
    peers = Peers(edge, **ON)
    peers.driver.add([(DATA, 4)], cookie=1)
    before = bytes(peers.memory)
    for wrong in (
        lambda: peers.driver.add(),
        lambda: peers.driver.add([(DATA, 0)]),
        lambda: peers.driver.add([(DATA, 2**32)]),
        lambda: peers.driver.add([(DATA, -1)]),
        lambda: peers.driver.add([(2**64, 1)]),
        lambda: peers.driver.add([(2**64 - 1, 2)]),
        lambda: peers.driver.add([(-1, 2)]),
        lambda: peers.driver.add([(DATA, 1)], cookie=2**32),
        lambda: peers.driver.add([(DATA, 1)], cookie=-1),
        lambda: peers.driver.add([(DATA, 1)], table=(SIZE, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(SIZE - 8, 0)),
        lambda: peers.driver.add([(DATA, 1)] * 2, table=(SIZE - 16, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(2**64 - 16, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(TABLE + 8, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(TABLE, 8)),
        lambda: peers.driver.add([(DATA, 1)], table=(0, 0)),
        lambda: peers.driver.add([(DATA, 1)], table=(16 * NUM, 0)),
        lambda: peers.driver.add([(DATA, 1)] * 2, table=(4096 - 16, 0)),
        lambda: peers.device.push(0),
        lambda: peers.device.push(NUM),
        lambda: peers.device.push(-1),
        lambda: peers.device.push(0, 2**32),
        lambda: peers.device.read(3),
        lambda: peers.device.chain(NUM),
        lambda: peers.device.write(0, b"x"),
        lambda: peers.device.read(0, -1),
        lambda: DriverQueue(peers.memory, NUM, offset=SIZE + 1),
        lambda: DriverQueue(peers.memory, NUM, offset=2**64 - 1),
        lambda: DriverQueue(peers.memory, NUM, parts=(0, 2**64 - 2, 512)),
        lambda: DriverQueue(peers.memory, NUM, parts=(0, 64, 512)),
        lambda: DriverQueue(peers.memory, NUM, align=0),
        lambda: DriverQueue(peers.memory, NUM, align=48),
        lambda: DriverQueue(peers.memory, NUM, align=2**31),
        lambda: DriverQueue(peers.memory, NUM, kind="warm"),  # type: ignore[arg-type]
        lambda: DeviceQueue(peers.memory, NUM, avail_idx=65536),
        lambda: DeviceQueue(peers.memory, NUM, used_idx=-1),
    ):  # fmt: skip
        with pytest.raises((ValueError, StateError)):
            wrong()
    assert bytes(peers.memory) == before
    assert (peers.driver.num_free, peers.driver.in_flight) == (NUM - 1, 1)
    assert peers.driver.broken is None and peers.device.broken is None
    with pytest.raises(BufferError):
        DriverQueue(bytes(SIZE), NUM)
    with pytest.raises(BufferError):
        DriverQueue(peers.memory[::2], NUM)
    peers.works()


def test_a_full_queue_is_refused_and_stays_as_it_was(edge: Any) -> None:
    peers = Peers(edge, **ON)
    peers.flying(*[1] * (NUM - 1))
    before = bytes(peers.memory)
    with pytest.raises(StateError, match="2 descriptors wanted, 1 free"):
        peers.driver.add([(DATA, 1)], [(DATA, 1)])
    assert bytes(peers.memory) == before
    peers.driver.add([(DATA, 1)], [(DATA, 1)], table=(TABLE, TABLE))
    with pytest.raises(StateError, match="1 descriptors wanted, 0 free"):
        peers.driver.add([(DATA, 1)])


@pytest.mark.parametrize(
    ("regions", "exclude", "left"),
    [
        ([(0, 64), (64, 64)], [], [(0, 64, True), (64, 64, True)]),
        ([(100, 64)], [(0, 100), (164, 10)], [(100, 64, True)]),
        ([(100, 64)], [(90, 11), (163, 2**64 - 1)], [(101, 62, True)]),
        ([(100, 64)], [(120, 4), (122, 10)], [(100, 20, True), (132, 32, True)]),
        ([(100, 64), (0, 10)], [(5, 100)], [(0, 5, True), (105, 59, True)]),
        ([(100, 64)], [(120, 0)], [(100, 64, True)]),
        ([(100, 64)], [(0, 2**64 - 1)], []),
        ([(2**64 - 64, 64)], [], [(2**64 - 64, 64, True)]),
        ([], [], []),
        ([(5, 0)], [], []),
    ],
)
def test_memory_is_cut_around_exclusions(regions: Any, exclude: Any, left: Any) -> None:
    assert Memory([(addr, bytearray(size)) for addr, size in regions], exclude=exclude).regions == left


@pytest.mark.parametrize("regions", [[(0, 64), (63, 1)], [(10, 4), (0, 64)], [(2**64 - 63, 64)], [(-1, 4)]])
def test_memory_refuses_overlaps_and_overflows(regions: Any) -> None:
    with pytest.raises(ValueError, match=r"overlap|not in"):
        Memory([(addr, bytearray(size)) for addr, size in regions])


def test_views_outlive_the_queue_and_hold_the_memory() -> None:
    memory = mmap.mmap(-1, 8192)
    driver, device = DriverQueue(memory, NUM), DeviceQueue(memory, NUM)
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
        with pytest.raises(Closed):
            _ = queue.avail
    with pytest.raises(Closed):
        device.read(head)
    with pytest.raises(Closed):
        driver.add([(DATA, 4)])
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
calls: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("add"), st.fixed_dictionaries({"out": pairs, "in_": pairs, "cookie": small},
                                                    optional={"table": st.tuples(place, place)})),
    st.tuples(st.sampled_from(["publish", "get", "mute", "unmute", "reset", "pop"]), st.just({})),
    st.tuples(st.sampled_from(["chain", "read"]), st.fixed_dictionaries({"head": small, "max_bytes": small})),
    st.tuples(st.just("write"), st.fixed_dictionaries({"head": small, "data": st.binary(max_size=64)})),
    st.tuples(st.just("push"), st.fixed_dictionaries({"head": small, "length": small})),
)  # fmt: skip
scribble: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("idx"), st.integers(0, NUM + 1)),
    st.tuples(
        st.just("set_desc"),
        st.tuples(
            st.integers(0, NUM - 1), st.integers(0, SIZE + 8), st.integers(0, 64), st.integers(0, 7),
            st.integers(0, NUM),
        ),
    ),
    st.tuples(
        st.just("bytes"),
        st.tuples(st.integers(0, 4096 + 6 + 8 * NUM), st.binary(min_size=1, max_size=24)),
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    edge=st.sampled_from(["start", "end"]),
    options=st.fixed_dictionaries(
        {"event_idx": st.booleans(), "indirect": st.booleans(), "version_1": st.booleans()}
    ),
    noise=st.one_of(st.just(b""), st.binary(min_size=256, max_size=256)),
    steps=st.lists(st.one_of(calls, scribble), max_size=40),
)
@example(
    "end",
    {"event_idx": True, "indirect": True, "version_1": False},
    b"\xff" * 256,
    [("pop", {}), ("get", {})],
)
def test_nothing_but_typed_errors(edge: Any, options: dict[str, Any], noise: bytes, steps: list[Any]) -> None:
    guarded = GuardedMemory(SIZE, edge)
    memory = guarded.buffer
    raw = RawRing(memory, NUM)
    queues = DriverQueue(memory, NUM, **options), DeviceQueue(memory, NUM, **options)
    memory[: len(noise)] = noise
    memory[4096 : 4096 + len(noise)] = noise
    for name, arguments in steps:
        if name == "idx":
            raw.avail_idx = (raw.avail_idx + arguments) & 0xFFFF
            raw.used_idx = (raw.used_idx + arguments) & 0xFFFF
        elif name == "set_desc":
            raw.set_desc(*arguments)
        elif name == "bytes":
            at, data = arguments
            memory[at : at + len(data)] = data
        for queue in queues if isinstance(arguments, dict) else ():
            if hasattr(queue, name):
                with contextlib.suppress(PeerError, StateError, ValueError):
                    getattr(queue, name)(**arguments)
    assert queues[0].num_free <= NUM and queues[0].in_flight <= NUM and queues[1].held <= NUM
    assert guarded.intact()
