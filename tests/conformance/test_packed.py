"""VIRTIO 1.2, 2.8, rule by rule: what our side left in memory, or that we survive and report.

What is in memory is read with `struct` (RawPacked), not through the classes under test. The ids are those of
docs/conformance.md.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support_memory import GuardedMemory
from support_packed import (
    AVAIL,
    DESC,
    DISABLE,
    ENABLE,
    INDIRECT,
    NEXT,
    START,
    USED,
    WRITE,
    Event,
    Place,
    RawPacked,
    marks,
)

from rpmsgx.errors import MessageSize, PeerError, StateError
from rpmsgx.virtio.packed import PackedDeviceQueue, PackedDriverQueue
from rpmsgx.virtio.ring import Memory

NUM = 7
TABLE = 1024
DATA = 2048
SIZE = 4096

packed = pytest.mark.rule
event_idx_or_not = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
roles = pytest.mark.parametrize("role", [PackedDriverQueue, PackedDeviceQueue], ids=["driver", "device"])


class Bench:
    """Our driver, our device and the bytes between them; what is not wanted plays no part."""

    def __init__(self, num: int = NUM, **options: Any) -> None:
        self.guarded = GuardedMemory(SIZE)
        self.memory = self.guarded.buffer
        self.num = num
        self.raw = RawPacked(self.memory, num)
        self.driver = PackedDriverQueue(self.memory, num, **options)
        self.device = PackedDeviceQueue(self.memory, num, **options)
        self.offered = self.used = START

    def offer(self, *descs: tuple[int, int, int, int]) -> None:
        """As the driver: make (addr, len, id, flags) available in the next slots."""
        for addr, length, id_, flags in descs:
            mark = marks(self.offered.wrap, used=False)
            self.raw.set_desc(self.offered.slot, addr, length, id_, flags | mark)
            self.offered = self.offered.after(1, self.num)

    def use(self, id_: int, length: int, flags: int | None = None, *, descriptors: int = 1) -> None:
        """As the device: mark a buffer of so many descriptors used."""
        flags = (WRITE if length else 0) if flags is None else flags
        flags |= marks(self.used.wrap, used=True)
        self.raw.set_desc(self.used.slot, 0xDEAD, length, id_, flags)
        self.used = self.used.after(descriptors, self.num)

    def pop(self) -> int:
        head = self.device.pop()
        assert head is not None
        return head

    def turn(self, *buffers: int) -> None:
        """Chains of so many buffers, there and back."""
        for n in buffers:
            self.driver.add([(DATA, 1)] * n, cookie=n)
            self.driver.publish()
            self.device.push(self.pop())
            self.device.publish()
            assert self.driver.get() == (n, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def expect(rule: str) -> Any:
    return pytest.raises(PeerError, match=re.escape(f"(rule {rule})"))


# ------------------------------------------------------------------------- layout and wrap counters, 2.8, 2.8.1


@packed("2.8-F1")
@pytest.mark.parametrize("num", [1, 2, 3, 7, 8, 100, 255, 32767, 32768])
def test_parts_have_the_sizes_of_the_standard(num: int) -> None:
    size = 16 * num + 8
    memory = GuardedMemory(-(-size // 16) * 16).buffer[:size]
    memory[:] = b"\xff" * size
    parts = (0, 16 * num, 16 * num + 4)
    driver = PackedDriverQueue(memory, num, parts=parts)
    assert bytes(memory) == bytes(size)
    assert (driver.desc.nbytes, driver.driver_event.nbytes, driver.device_event.nbytes) == (16 * num, 4, 4)
    for role in (PackedDriverQueue, PackedDeviceQueue):
        with pytest.raises(
            ValueError, match=f"the device's event structure .* leaves the buffer of {size - 1} bytes"
        ):
            role(memory[: size - 1], num, parts=parts)


@packed("2.8-F1")
@pytest.mark.parametrize("num", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("offset", [0, 48])
def test_the_usual_places(num: int, offset: int) -> None:
    driver_at = offset + -(-16 * num // 64) * 64
    size = driver_at + 68
    memory = GuardedMemory(-(-size // 16) * 16).buffer[:size]
    memory[:] = b"\xee" * size
    driver = PackedDriverQueue(memory, num, offset=offset)
    assert bytes(memory[:offset]) == b"\xee" * offset
    assert bytes(memory[offset : offset + 16 * num]) == bytes(16 * num)
    gap = driver_at - offset - 16 * num
    assert bytes(memory[driver_at - gap : driver_at + 4]) == b"\xee" * gap + bytes(4)
    assert bytes(memory[driver_at + 4 :]) == b"\xee" * 60 + bytes(4)
    driver.mute()
    PackedDeviceQueue(memory, num, offset=offset).mute()
    assert bytes(memory[driver_at : driver_at + 4]) == bytes(memory[driver_at + 64 :]) == b"\0\0\1\0"


@packed("2.8-F1")
@roles
@pytest.mark.parametrize("num", [0, 32769, 65536, -1, 2**40])
def test_queue_size(role: Any, num: int) -> None:
    with pytest.raises(ValueError, match=f"num is {num}"):
        role(bytearray(1 << 20), num)


@packed("2.8-F1")
def test_little_endian() -> None:
    bench = Bench(event_idx=True)
    bench.turn(5)
    bench.driver.add(in_=[(0x0102030405060708, 0x0A0B0C0D)])
    bench.driver.publish()
    assert bytes(bench.memory[80:92]) == bytes([8, 7, 6, 5, 4, 3, 2, 1, 0xD, 0xC, 0xB, 0xA])
    assert bytes(bench.memory[94:96]) == bytes([AVAIL | WRITE, 0])
    assert bench.driver.unmute() is False
    assert bytes(bench.memory[128:132]) == bytes([5, 0x80, 2, 0])
    for array in (bench.driver.desc, bench.device.driver_event, bench.device.device_event):
        for name in array.dtype.names or ():
            assert array.dtype[name].newbyteorder("<") == array.dtype[name]


@packed("2.8-F1", "2.8.1-F1")
@pytest.mark.parametrize("num", [1, 3, 8])
def test_available_and_used_marks_change_with_each_round(num: int) -> None:
    bench = Bench(num)
    assert [bench.raw.flags(i) for i in range(num)] == [0] * num
    for rounds in range(5):
        wrap = 1 - rounds % 2  # the counters start at 1
        for slot in range(num):
            bench.driver.add([(DATA, 1)])
            bench.driver.publish()
            assert bench.raw.flags(slot) == (AVAIL if wrap else USED)
            bench.device.push(bench.pop())
            bench.device.publish()
            assert bench.raw.flags(slot) == (AVAIL | USED if wrap else 0)
            assert bench.driver.get() == (0, 0)


@packed("2.8.1-F1")
@pytest.mark.parametrize("flags", [0, USED, AVAIL | USED])
def test_device_takes_no_descriptor_that_is_not_marked_for_this_round(bench: Bench, flags: int) -> None:
    """Unequal bits are not enough: the wrap counter is 1, so AVAIL must be set."""
    bench.raw.set_desc(0, DATA, 4, 0, flags)
    assert bench.device.pop() is None and not bench.device.unmute()
    bench.raw.set_desc(0, DATA, 4, 0, AVAIL)
    assert bench.device.pop() == 0


@packed("2.8.1-F1")
@pytest.mark.parametrize("flags", [0, USED, AVAIL])
def test_driver_takes_no_descriptor_that_is_not_marked_for_this_round(bench: Bench, flags: int) -> None:
    """Equal bits are not enough: zeros were there before the device was."""
    bench.driver.add([(DATA, 4)], cookie=3)
    bench.driver.publish()
    bench.raw.set_flags(0, flags)
    assert bench.driver.get() is None and not bench.driver.unmute()
    bench.raw.set_flags(0, AVAIL | USED)
    assert bench.driver.get() == (3, 0)


# --------------------------------------------------------------------------- used descriptors, 2.8.3 to 2.8.6


@packed("2.8.3/4-F1")
@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_used_length_and_write_flag_are_what_was_written(bench: Bench, length: int) -> None:
    bench.memory[DATA : DATA + 8] = b"\xee" * 8
    bench.driver.add(in_=[(DATA, 3), (DATA + 3, 5)], cookie=9)
    bench.driver.publish()
    head = bench.pop()
    bench.device.push(head, bench.device.write(head, b"12345678"[:length]))
    assert bench.raw.flags(0) == AVAIL | WRITE | NEXT  # not yet visible
    bench.device.publish()
    _, said, id_, flags = bench.raw.desc(0)
    assert (said, id_, flags) == (length, head, AVAIL | USED | (WRITE if length else 0))
    assert bytes(bench.memory[DATA : DATA + 8]) == b"12345678"[:length] + b"\xee" * (8 - length)
    assert bench.driver.get() == (9, length)


@packed("2.8.3/4-F1")
@pytest.mark.parametrize("flags", [0, NEXT, INDIRECT | NEXT])
@pytest.mark.parametrize("buffers", [{"out": [(DATA, 8)]}, {"in_": [(DATA, 8)]}], ids=["out", "in"])
def test_driver_ignores_what_means_nothing_in_a_used_descriptor(
    bench: Bench, flags: int, buffers: Any
) -> None:
    bench.driver.add(**buffers, cookie=1)
    bench.driver.add(**buffers, cookie=2)
    bench.driver.publish()
    first, second = bench.raw.desc(0)[2], bench.raw.desc(1)[2]
    bench.use(second, 0xFFFFFFFF, flags)  # without WRITE
    bench.use(first, 0, flags)
    assert bench.driver.get() == (2, 0)
    assert bench.driver.get() == (1, 0)
    assert (bench.driver.num_free, bench.driver.get()) == (NUM, None)


@packed("2.8.3/4-F1")
@pytest.mark.parametrize("length", [9, 16, 0x80000000, 0xFFFFFFFF])
def test_driver_refuses_a_used_length_beyond_the_buffer(bench: Bench, length: int) -> None:
    bench.driver.add([(DATA, 100)], [(DATA, 3), (DATA + 3, 5)])
    bench.driver.publish()
    bench.use(bench.raw.desc(2)[2], length)
    with expect("2.8.4-len"):
        bench.driver.get()


@packed("2.8.6-F1", "2.8.17-3")
def test_a_list_as_the_driver_writes_it(bench: Bench) -> None:
    bench.turn(NUM - 2)  # so that the list goes over the end of the ring
    bench.driver.add([(DATA, 1), (DATA + 1, 2)], [(DATA + 3, 3), (DATA + 6, 4)])
    bench.driver.publish()
    found = [bench.raw.desc(slot) for slot in (NUM - 2, NUM - 1, 0, 1)]
    assert [(addr - DATA, length) for addr, length, _, _ in found] == [(0, 1), (1, 2), (3, 3), (6, 4)]
    assert [flags for _, _, _, flags in found] == [
        NEXT | AVAIL,
        NEXT | AVAIL,
        NEXT | WRITE | USED,
        WRITE | USED,
    ]
    head = bench.pop()
    assert head == found[-1][2]  # the id stands in the last one
    bench.device.push(head)
    bench.device.publish()
    assert bench.raw.desc(NUM - 2)[2:] == (head, AVAIL | USED)  # one used descriptor for all of them
    assert [bench.raw.desc(slot) for slot in (NUM - 1, 0, 1)] == found[1:]
    assert bench.driver.get() == (0, 0)


@packed("2.8.6-F1")
def test_both_skip_the_length_of_a_list_even_if_it_is_used_out_of_order(bench: Bench) -> None:
    for n in (3, 1, 2):
        bench.driver.add([(DATA, 1)] * n, cookie=n)
    bench.driver.publish()
    three, one, two = (bench.pop() for _ in range(3))
    for head in (two, three, one):
        bench.device.push(head)
    bench.device.publish()
    assert [bench.raw.desc(slot)[2] for slot in (0, 2, 5)] == [two, three, one]
    assert [bench.driver.get() for _ in range(4)] == [(2, 0), (3, 0), (1, 0), None]


@packed("2.8.6-F1")
def test_device_takes_the_id_of_the_last_descriptor_only(bench: Bench) -> None:
    bench.offer((DATA, 1, 0xFFFF, NEXT), (DATA, 1, 5, NEXT), (DATA, 1, 2, 0), (DATA, 1, 5, 0))
    assert (bench.device.pop(), bench.device.pop(), bench.device.pop()) == (2, 5, None)


@packed("2.8.6-F1")
@pytest.mark.parametrize("flags", [0, USED, AVAIL | USED])
def test_device_refuses_a_list_that_goes_on_in_a_descriptor_that_is_not_available(
    bench: Bench, flags: int
) -> None:
    bench.raw.set_desc(1, DATA, 1, 0, flags)
    bench.offer((DATA, 1, 0, NEXT))
    with expect("2.8.6-F1"):
        bench.device.pop()


# ------------------------------------------------------------------------- indirect tables, 2.8.7 and 2.8.19


@packed("2.8.7-F1", "2.8.19-2")
def test_indirect_tables_as_the_driver_writes_them() -> None:
    bench = Bench(indirect=True)
    bench.driver.add([(DATA, 1), (DATA + 1, 2)], [(DATA + 3, 3)], table=(TABLE, 0xABCDE0))
    bench.driver.publish()
    assert bench.raw.desc(0) == (0xABCDE0, 48, 0, INDIRECT | AVAIL)
    assert [bench.raw.desc(i, TABLE) for i in range(4)] == [
        (DATA, 1, 0, 0),
        (DATA + 1, 2, 0, 0),
        (DATA + 3, 3, 0, WRITE),
        (0, 0, 0, 0),
    ]
    assert bench.driver.num_free == NUM - 1


@packed("2.8.7-F1", "2.8.19-2")
@pytest.mark.parametrize("outer", [0, WRITE])
@pytest.mark.parametrize("inner", [0, NEXT, INDIRECT, 0xFFFF & ~WRITE])
def test_device_reads_a_table_straight_through_and_looks_at_write_only(outer: int, inner: int) -> None:
    bench = Bench(indirect=True)
    bench.memory[DATA : DATA + 6] = b"abcdef"
    for k, (addr, length, write) in enumerate([(DATA, 2, 0), (DATA + 2, 4, 0), (DATA + 16, 4, WRITE)]):
        bench.raw.set_desc(k, addr, length, 0xFFFF, inner | write, table=TABLE)
    bench.offer((TABLE, 48, 4, INDIRECT | outer))
    head = bench.pop()
    assert head == 4
    assert bench.device.read(head) == b"abcdef"
    assert [writable for _, writable in bench.device.chain(head)] == [False, False, True]
    assert bench.device.write(head, b"done") == 4
    assert bytes(bench.memory[DATA + 16 : DATA + 20]) == b"done"


@packed("2.8.19-1")
def test_driver_makes_no_indirect_table_unless_negotiated(bench: Bench) -> None:
    before = bytes(bench.memory)
    with pytest.raises(StateError, match="not negotiated"):
        bench.driver.add([(DATA, 1)], table=(TABLE, TABLE))
    assert bytes(bench.memory) == before
    bench.driver.add([(DATA, 1)] * 3, [(DATA, 1)])
    bench.driver.publish()
    assert not any(bench.raw.flags(i) & INDIRECT for i in range(NUM))


@packed("2.8.19-1")
def test_device_takes_no_indirect_table_unless_negotiated(bench: Bench) -> None:
    bench.raw.set_desc(0, DATA, 4, 0, table=TABLE)
    bench.offer((TABLE, 16, 0, INDIRECT))
    with expect("2.8.19-1"):
        bench.device.pop()


@packed("2.8.17-1", "2.8.17-2", "2.8.19-3")
@pytest.mark.parametrize("table", [None, (TABLE, TABLE)], ids=["direct", "indirect"])
def test_driver_makes_no_list_longer_than_the_queue(table: Any) -> None:
    bench = Bench(indirect=True)
    before = bytes(bench.memory)
    with pytest.raises(ValueError, match=f"a chain of {NUM + 1} buffers"):
        bench.driver.add([(DATA, 1)] * 4, [(DATA, 1)] * 4, table=table)
    assert bytes(bench.memory) == before
    bench.driver.add([(DATA, 1)] * 4, [(DATA, 1)] * 3, table=table)
    bench.driver.publish()
    assert len(bench.device.chain(bench.pop())) == NUM


@packed("2.8.17-2", "2.8.19-3")
@pytest.mark.parametrize("indirect", [False, True])
def test_device_takes_no_list_longer_than_the_queue(indirect: bool) -> None:
    """In the ring that is one that never ends."""
    bench = Bench(indirect=True)
    if indirect:
        for k in range(NUM + 1):
            bench.raw.set_desc(k, DATA + k, 1, 0, table=TABLE)
        bench.offer((TABLE, 16 * (NUM + 1), 0, INDIRECT))
    else:
        bench.offer(*[(DATA, 1, 0, NEXT)] * NUM)
    with expect("2.8.17-2"):
        bench.device.pop()


@packed("2.8.19-4")
def test_driver_mixes_no_table_into_a_list() -> None:
    bench = Bench(indirect=True)
    for _ in range(50):
        bench.driver.add([(DATA, 1)] * 3)
        bench.driver.add([(DATA, 1)] * 3, table=(TABLE, TABLE))
        bench.driver.publish()
        for slot in range(NUM):
            flags = bench.raw.flags(slot)
            assert not (flags & INDIRECT and flags & NEXT)
        for _ in range(2):
            bench.device.push(bench.pop())
        bench.device.publish()
        assert bench.driver.get() and bench.driver.get()


@packed("2.8.19-4")
@pytest.mark.parametrize(
    "descs",
    [
        [(TABLE, 16, 0, INDIRECT | NEXT), (DATA, 4, 0, 0)],
        [(DATA, 4, 0, NEXT), (TABLE, 16, 0, INDIRECT)],
        [(DATA, 4, 0, NEXT), (TABLE, 16, 0, INDIRECT | NEXT), (DATA, 4, 0, 0)],
    ],
)
def test_device_takes_no_table_in_a_list(descs: list[tuple[int, int, int, int]]) -> None:
    bench = Bench(indirect=True)
    bench.raw.set_desc(0, DATA, 4, 0, table=TABLE)
    bench.offer(*descs)
    with expect("2.8.19-4"):
        bench.device.pop()


# ------------------------------------------------------------------------------ event suppression, 2.8.10


@packed("2.8.10-F1")
@roles
@event_idx_or_not
def test_event_structures_as_written(role: Any, event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    mine = "driver" if role is PackedDriverQueue else "device"
    other = "device" if mine == "driver" else "driver"
    queue = getattr(bench, mine)
    setattr(bench.raw, f"{other}_event", Event(0x1234, 1, 3))
    place = START
    for _ in range(2 * NUM + 1):
        queue.mute()
        queue.mute()
        assert getattr(bench.raw, f"{mine}_event").flags == DISABLE
        bench.turn(1)
        place = place.after(1, NUM)
        assert not queue.unmute()
        wish = Event(*place, DESC) if event_idx else Event(0, 0, ENABLE)
        assert getattr(bench.raw, f"{mine}_event") == wish
    assert getattr(bench.raw, f"{other}_event") == Event(0x1234, 1, 3)  # not ours to touch


def available_signal(event: Event, old: Place, steps: int, *, event_idx: bool) -> bool:
    """Does our driver, at `old`, kick for `steps` more?"""
    bench = Bench(event_idx=event_idx)
    bench.turn(*[1] * (old.slot + (0 if old.wrap else NUM)))
    bench.raw.device_event = event
    for _ in range(steps):
        bench.driver.add([(DATA, 1)])
    return bench.driver.publish()


def used_signal(event: Event, old: Place, steps: int, *, event_idx: bool) -> bool:
    """Does our device, at `old`, notify for `steps` more?"""
    bench = Bench(event_idx=event_idx)
    bench.turn(*[1] * (old.slot + (0 if old.wrap else NUM)))
    for _ in range(steps):
        bench.driver.add([(DATA, 1)])
    bench.driver.publish()
    for _ in range(steps):
        bench.device.push(bench.pop())
    bench.raw.driver_event = event
    return bench.device.publish()


signals = pytest.mark.parametrize("signal", [available_signal, used_signal], ids=["driver", "device"])


@packed("2.8.10-F1")
@signals
@event_idx_or_not
@pytest.mark.parametrize("off", [0, 2, NUM, 0x7FFF])
def test_flags_that_need_no_place(signal: Any, event_idx: bool, off: int) -> None:
    for steps in (1, 3, NUM):
        assert signal(Event(off, 1, ENABLE), START, steps, event_idx=event_idx)
        assert not signal(Event(off, 1, DISABLE), START, steps, event_idx=event_idx)
        # 3 is reserved: to be safe, a notification.
        assert signal(Event(off, 1, 3), START, steps, event_idx=event_idx)
        if not event_idx:
            assert signal(Event(off, 0, DESC), START, steps, event_idx=False)


@packed("2.8.10-F1")
@signals
@pytest.mark.parametrize("old", [START, Place(NUM - 1, 1), Place(3, 0), Place(NUM - 2, 0)])
@pytest.mark.parametrize("steps", [1, 3, NUM])
def test_a_place_is_signalled_exactly_when_it_is_passed(signal: Any, old: Place, steps: int) -> None:
    passed = [old.after(k, NUM) for k in range(steps)]
    for slot in range(NUM):
        for wrap in (0, 1):
            event = Event(slot, wrap, DESC)
            assert signal(event, old, steps, event_idx=True) == ((slot, wrap) in passed)


@packed("2.8.10-F1")
@event_idx_or_not
def test_nothing_new_is_no_reason_to_signal(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    for _ in range(2):
        assert not bench.driver.publish()
        assert not bench.device.publish()
        bench.turn(3)


@packed("2.8.22-1")
@event_idx_or_not
def test_unmuting_tells_of_what_came_meanwhile(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    bench.driver.mute()
    bench.device.mute()
    bench.driver.add([(DATA, 1)])
    assert not bench.driver.publish()
    assert bench.device.unmute()
    bench.device.push(bench.pop())
    assert not bench.device.publish()
    assert not bench.device.unmute()
    assert bench.driver.unmute()
    assert bench.driver.get() == (0, 0)
    assert not bench.driver.unmute()


# --------------------------------------------------------------------- alignment and order, 2.8.11 and 2.8.12


@packed("2.8.11-1")
@roles
@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((8, 512, 1024), "descriptor ring at offset 8 is not aligned to 16"),
        ((0, 514, 1024), "driver's event structure at offset 514 is not aligned to 4"),
        ((0, 512, 1025), "device's event structure at offset 1025 is not aligned to 4"),
        ((0, 16 * NUM - 4, 1024), "driver's event structure .* overlaps the descriptor ring"),
        ((64, 0, 0), "device's event structure .* overlaps the driver's"),
    ],
)
def test_parts_are_aligned_and_apart(role: Any, parts: tuple[int, int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        role(GuardedMemory(4096).buffer, NUM, parts=parts)


@packed("2.8.11-1")
@roles
def test_alignment_is_that_of_the_memory_not_of_the_offset(role: Any) -> None:
    memory = GuardedMemory(4096).buffer
    with pytest.raises(ValueError, match="not aligned to 16"):
        role(memory[8:], NUM)
    role(memory[8:], NUM, offset=8)


@packed("2.8.12-1")
def test_device_takes_buffers_in_the_order_of_the_ring(bench: Bench) -> None:
    rng = random.Random(1)
    for _ in range(20):
        ids = rng.sample(range(NUM), rng.randrange(1, NUM + 1))
        bench.offer(*[(DATA + id_, 1, id_, 0) for id_ in ids])
        assert [bench.device.pop() for _ in ids] == ids
        assert bench.device.pop() is None
        for id_ in ids:
            bench.device.push(id_)
        bench.device.publish()


@packed("2.8.12-2")
def test_device_writes_used_descriptors_in_the_order_of_completion(bench: Bench) -> None:
    rng = random.Random(2)
    for _ in range(20):
        start = bench.offered.slot
        bench.offer(*[(DATA, 1, id_, 0) for id_ in range(NUM)])
        heads = [bench.pop() for _ in range(NUM)]
        rng.shuffle(heads)
        for head in heads:
            bench.device.push(head)
        bench.device.publish()
        assert [bench.raw.desc((start + k) % NUM)[2] for k in range(NUM)] == heads


# ------------------------------------------------------------------------------------ device, 2.8.15 and 2.8.18


@packed("2.8.15-1")
def test_device_does_not_write_a_readable_buffer(bench: Bench) -> None:
    bench.memory[DATA : DATA + 8] = b"readable"
    bench.driver.add([(DATA, 8)], [(DATA + 8, 4)])
    bench.driver.publish()
    head = bench.pop()
    (view, writable), (target, _) = bench.device.chain(head)
    assert not writable and view.readonly and not target.readonly
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    with pytest.raises(MessageSize, match="5 bytes into a chain with 4 device-writable ones"):
        bench.device.write(head, b"12345")
    assert bench.device.write(head, b"1234") == 4
    assert bytes(bench.memory[DATA : DATA + 12]) == b"readable1234"


@packed("2.8.15-1")
def test_device_refuses_a_chain_that_it_cannot_write(bench: Bench) -> None:
    bench.memory[DATA : DATA + 8] = b"readable"
    bench.offer((DATA, 8, 0, 0))
    head = bench.pop()
    with expect("2.8.15-1"):
        bench.device.write(head, b"1234")
    assert bytes(bench.memory[DATA : DATA + 8]) == b"readable"


@packed("2.8.15-2")
def test_device_does_not_read_a_writable_buffer(bench: Bench) -> None:
    bench.memory[DATA : DATA + 16] = b"readablewritable"
    bench.driver.add([(DATA, 8)], [(DATA + 8, 8)])
    bench.driver.add(in_=[(DATA + 8, 8)])
    bench.driver.publish()
    assert bench.device.read(bench.pop()) == b"readable"
    assert bench.device.read(bench.pop()) == b""


@packed("2.8.15-3")
@event_idx_or_not
def test_device_waits_for_the_mark_whatever_else_is_there(event_idx: bool) -> None:
    """Staged and spurious: descriptors whose first has not changed its flags are nobody's."""
    bench = Bench(event_idx=event_idx)
    for n in range(NUM):
        bench.driver.add([(DATA + n, 1)], cookie=n)
        assert bench.raw.flags(0) == 0
        assert bench.device.pop() is None
    before = bytes(bench.memory)
    for _ in range(100):
        assert bench.device.pop() is None
    assert bytes(bench.memory) == before
    assert bench.driver.publish()
    assert sorted(bench.pop() for _ in range(NUM)) == list(range(NUM))


@packed("2.8.9-F1")
def test_device_shows_a_batch_with_the_flags_of_its_first_descriptor(bench: Bench) -> None:
    for n in range(NUM):
        bench.driver.add([(DATA + n, 1)], cookie=n)
    bench.driver.publish()
    for _ in range(NUM):
        bench.device.push(bench.pop())
        assert bench.raw.flags(0) == AVAIL
        assert bench.driver.get() is None
    bench.device.publish()
    assert [bench.driver.get() for _ in range(NUM)] == [(n, 0) for n in range(NUM)]


@packed("2.8.18-1")
def test_device_uses_the_buffers_of_a_list_in_their_order(bench: Bench) -> None:
    payload = bytes(range(64))
    rng = random.Random(1)
    for _ in range(50):
        bench.memory[DATA : DATA + 64] = payload
        edges = [0, *sorted(rng.sample(range(1, 64), rng.randrange(NUM - 2))), 64]
        pieces = [(DATA + a, b - a) for a, b in pairwise(edges)]
        bench.driver.add(pieces, [(DATA + 100, 3), (DATA + 90, 4)])
        bench.driver.publish()
        head = bench.pop()
        assert bench.device.read(head) == payload
        assert [len(view) for view, _ in bench.device.chain(head)] == [n for _, n in pieces] + [3, 4]
        assert bench.device.write(head, b"inorder") == 7
        assert bytes(bench.memory[DATA + 90 : DATA + 103]) == b"rder" + bytes(6) + b"ino"
        bench.device.push(head, 7)
        bench.device.publish()
        assert bench.driver.get() == (0, 7)


@packed("2.8.18-2")
@pytest.mark.parametrize("call", ["read", "chain"])
def test_device_limits_the_bytes_of_a_list(bench: Bench, call: str) -> None:
    bench.driver.add([(DATA, 60), (DATA, 41)])
    bench.driver.publish()
    head = bench.pop()
    assert getattr(bench.device, call)(head, 101)
    with expect("2.8.18-2"):
        getattr(bench.device, call)(head, 100)
    with expect("2.8.18-2"):
        bench.device.push(head)


@packed("2.8.18-2")
def test_device_takes_no_list_of_4_gib() -> None:
    num, size = 4097, 1 << 20
    memory = GuardedMemory(16 * num + 128).buffer
    device = PackedDeviceQueue(memory, num, memory=Memory([(0, bytes(size))]))
    raw = RawPacked(memory, num)
    for k in range(num):
        raw.set_desc(k, 0, size, 0, AVAIL | (NEXT if k + 1 < num else 0))
    with expect("2.8.18-2"):
        device.pop()


# ------------------------------------------------------------------------------------ driver, 2.8.16 and 2.8.17


@packed("2.8.16-1", "2.8.17-4")
def test_driver_changes_no_descriptor_that_is_with_the_device() -> None:
    bench = Bench(indirect=True)
    for n in (3, 1, 2):
        bench.driver.add([(DATA, 1)] * n, cookie=n)
    bench.driver.publish()
    before = bench.raw.bytes()
    with pytest.raises(StateError, match="2 descriptors wanted, 1 free"):
        bench.driver.add([(DATA, 1)], [(DATA, 1)])
    bench.driver.add([(DATA, 1)] * 5, table=(TABLE, TABLE))
    bench.driver.publish()
    assert bench.raw.bytes()[0][: 16 * 6] == before[0][: 16 * 6]
    with pytest.raises(StateError, match="1 descriptors wanted, 0 free"):
        bench.driver.add([(DATA, 1)])
    heads = [bench.pop() for _ in range(4)]
    bench.device.push(heads[1])
    with pytest.raises(StateError, match="0 free"):  # used, but not shown
        bench.driver.add([(DATA, 1)])
    bench.device.publish()
    with pytest.raises(StateError, match="0 free"):  # shown, but not seen
        bench.driver.add([(DATA, 1)])
    assert bench.driver.get() == (1, 0)
    bench.driver.add([(DATA + 9, 1)])
    bench.driver.publish()
    assert bench.raw.desc(0)[::3] == (DATA + 9, USED)  # the next slot of the ring, not the one of that buffer


@packed("2.8.16-4")
@event_idx_or_not
def test_device_survives_kicks_with_nothing_new(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    before = bench.raw.bytes()
    for _ in range(1000):
        assert bench.device.pop() is None
        assert bench.driver.get() is None
    assert bench.raw.bytes() == before
    bench.turn(1)


@packed("2.8.17-4", "2.8.17-5", "2.8.17-6")
@pytest.mark.parametrize("flying", range(1, NUM + 1))
def test_driver_has_room_for_the_whole_list_before_it_shows_the_first(flying: int) -> None:
    bench = Bench()
    bench.turn(3)
    bench.driver.add([(DATA, 1)] * flying)
    bench.driver.publish()
    before = bytes(bench.memory)
    wanted = NUM - flying + 1
    with pytest.raises(StateError, match=f"{wanted} descriptors wanted, {wanted - 1} free"):
        bench.driver.add([(DATA, 1)] * wanted)
    assert bytes(bench.memory) == before
    if wanted > 1:
        bench.driver.add([(DATA, 1)] * (wanted - 1))
        slot = Place(3, 1).after(flying, NUM).slot
        assert bytes(bench.memory[16 * slot + 14 : 16 * slot + 16]) == before[16 * slot + 14 : 16 * slot + 16]
        bench.pop()
        assert bench.device.pop() is None
        bench.driver.publish()
        assert len(bench.device.chain(bench.pop())) == wanted - 1


@packed("2.8.17-3")
@pytest.mark.parametrize("indirect", [False, True])
def test_device_refuses_a_readable_element_behind_a_writable_one(indirect: bool) -> None:
    bench = Bench(indirect=True)
    if indirect:
        bench.raw.set_desc(0, DATA, 4, 0, WRITE, table=TABLE)
        bench.raw.set_desc(1, DATA + 4, 4, 0, 0, table=TABLE)
        bench.offer((TABLE, 32, 0, INDIRECT))
    else:
        bench.offer((DATA, 4, 0, WRITE | NEXT), (DATA + 4, 4, 0, 0))
    with expect("2.8.17-3"):
        bench.device.pop()


# ----------------------------------------------------------------------------------- checks of our own


def case(rule: str, *values: Any) -> Any:
    return pytest.param(rule, *values, marks=packed(rule))


@pytest.mark.parametrize(
    ("rule", "descs"),
    [
        case("2.8.13-id", [(DATA, 1, NUM, 0)]),
        case("2.8.13-id", [(DATA, 1, 0, NEXT), (DATA, 1, 0xFFFF, 0)]),
        case("2.8.13-twice", [(DATA, 1, 1, 0), (DATA, 1, 1, 0)]),
        case("2.8.13-addr", [(SIZE, 1, 0, 0)]),
        case("2.8.13-addr", [(0, 16, 0, 0)]),
        case("2.8.13-zero", [(DATA, 0, 0, 0)]),
        case("2.8.7-len", [(TABLE, 24, 0, INDIRECT)]),
        case("2.8.7-len", [(TABLE, 0, 0, INDIRECT)]),
    ],
)
def test_descriptors_that_no_honest_driver_makes(rule: str, descs: list[tuple[int, int, int, int]]) -> None:
    bench = Bench(indirect=True)
    bench.offer(*descs)
    with expect(rule):
        for _ in descs:
            bench.device.pop()


@packed("2.8.1-avail")
def test_a_slot_that_was_pushed_but_not_published_is_not_available_again(bench: Bench) -> None:
    """A device that publishes when nothing is left comes to an end, whatever the driver keeps adding."""
    bench.offer(*[(DATA, 1, id_, 0) for id_ in range(NUM)])
    for id_ in range(NUM):
        assert bench.pop() == id_
        bench.device.push(id_)
    bench.offer((DATA, 1, 0, 0))
    with expect("2.8.1-avail"):
        bench.device.pop()


@pytest.mark.parametrize(
    ("rule", "used"),
    [
        case("2.8.13-used", [(NUM, 0)]),
        case("2.8.13-used", [(0xFFFF, 0)]),
        case("2.8.13-idle", [(1, 0)]),
        case("2.8.13-idle", [(0, 0), (0, 0)]),
        case("2.8.4-len", [(0, 2)]),
    ],
)
def test_used_descriptors_that_no_honest_device_makes(
    bench: Bench, rule: str, used: list[tuple[int, int]]
) -> None:
    bench.driver.add(in_=[(DATA, 1)])
    bench.driver.publish()
    bench.driver.add(in_=[(DATA, 1)])  # staged, so not with the device
    for id_, length in used:
        bench.use(id_, length)
    with expect(rule):
        for _ in used:
            bench.driver.get()


def test_every_rule_of_the_ring_core_is_listed_and_provoked_here() -> None:
    root = Path(__file__).parents[2]
    ids = set(re.findall(r'^\tX\(\w+, "([^"]+)"', (root / "csrc/rpx/packed.h").read_text(), re.M))
    listed = set(re.findall(r"^\| (\S+) \|", (root / "docs/conformance.md").read_text(), re.M))
    provoked = set(re.findall(r'(?:expect|case)\("([^"]+)"', Path(__file__).read_text()))
    assert len(ids) > 12
    assert ids <= listed
    assert ids == provoked
