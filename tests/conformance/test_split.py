"""VIRTIO 1.2, 2.7, rule by rule: what our side left in memory, or that we survive and report.

What is in memory is read with `struct` (RawRing), not through the classes under test. The ids are those of
docs/conformance.md.
"""

from __future__ import annotations

import random
import re
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support_memory import GuardedMemory
from support_ring import INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE, RawRing

from rpmsgx.errors import MessageSize, PeerError, StateError
from rpmsgx.virtio.ring import DeviceQueue, DriverQueue, Memory

NUM = 8
TABLE = 5120
DATA = 8192
SIZE = 3 * 4096

split = pytest.mark.rule
event_idx_or_not = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
roles = pytest.mark.parametrize("role", [DriverQueue, DeviceQueue], ids=["driver", "device"])


class Bench:
    """Our driver, our device and the bytes between them; what is not wanted plays no part."""

    def __init__(self, num: int = NUM, **options: Any) -> None:
        self.guarded = GuardedMemory(SIZE)
        self.memory = self.guarded.buffer
        layout = {k: v for k, v in options.items() if k in ("align", "parts", "offset", "version_1")}
        self.raw = RawRing(self.memory, num, **layout)
        self.driver = DriverQueue(self.memory, num, **options)
        self.device = DeviceQueue(self.memory, num, **options)

    def offer(self, *heads: int) -> None:
        """As the driver: append heads to the avail ring and publish them."""
        idx = self.raw.avail_idx
        for head in heads:
            self.raw.set_avail_entry(idx, head)
            idx = (idx + 1) & 0xFFFF
        self.raw.avail_idx = idx

    def use(self, *entries: tuple[int, int]) -> None:
        """As the device: append (id, len) to the used ring and publish them."""
        idx = self.raw.used_idx
        for head, length in entries:
            self.raw.set_used_entry(idx, head, length)
            idx = (idx + 1) & 0xFFFF
        self.raw.used_idx = idx

    def walk(self, head: int, table: int | None = None) -> list[tuple[int, int, int, int]]:
        """The chain as it stands in memory, for at most 100 descriptors."""
        found = [self.raw.desc(head, table)]
        while found[-1][2] & NEXT:
            found.append(self.raw.desc(found[-1][3], table))
            assert len(found) < 100
        return found

    def pop(self) -> int:
        head = self.device.pop()
        assert head is not None
        return head


@pytest.fixture
def bench() -> Bench:
    return Bench()


def expect(rule: str) -> Any:
    return pytest.raises(PeerError, match=re.escape(f"(rule {rule})"))


# -------------------------------------------------------------------------------- layout, 2.7 to 2.7.3


@split("2.7-F1")
@pytest.mark.parametrize("num", [2**k for k in range(16)])
def test_parts_have_the_sizes_of_the_standard(num: int) -> None:
    used = -(-(16 * num + 6 + 2 * num) // 4) * 4
    size = used + 6 + 8 * num
    memory = GuardedMemory(size, "start").buffer
    driver = DriverQueue(memory, num, align=4)
    assert driver.desc.nbytes == 16 * num
    assert driver.avail.nbytes == 6 + 2 * num
    assert driver.used.nbytes == 6 + 8 * num
    for role in (DriverQueue, DeviceQueue):
        with pytest.raises(ValueError, match=f"the used ring .* leaves the buffer of {size - 1} bytes"):
            role(memoryview(memory)[: size - 1], num, align=4)


@split("2.7-F1")
@roles
@pytest.mark.parametrize("num", [0, 3, 6, 12, 32767, 32769, 65536, -1, 2**40])
def test_queue_size_is_a_power_of_two(role: Any, num: int) -> None:
    with pytest.raises(ValueError, match=f"num is {num}"):
        role(bytearray(1 << 20), num)


@split("2.7-F1", "2.7.6.1-1")
def test_indices_run_freely_over_16_bits() -> None:
    bench = Bench()
    before, wraps = 0, 0
    for n in range(65536 + 20):
        bench.driver.add([(DATA, 1)], cookie=n)
        assert bench.driver.publish()
        idx = bench.raw.avail_idx
        assert (idx - before) & 0xFFFF == 1
        wraps += idx < before
        before = idx
        bench.device.push(bench.pop(), 0)
        assert bench.device.publish()
        assert bench.raw.used_idx == idx
        assert bench.driver.get() == (n, 0)
    assert wraps == 1


@split("2.7.1-1")
@roles
@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((8, 512, 1024), "descriptor table at offset 8 is not aligned to 16"),
        ((0, 513, 1024), "avail ring at offset 513 is not aligned to 2"),
        ((0, 512, 1026), "used ring at offset 1026 is not aligned to 4"),
    ],
)
def test_parts_are_aligned(role: Any, parts: tuple[int, int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        role(GuardedMemory(4096).buffer, NUM, parts=parts)


@split("2.7.1-1")
@roles
def test_alignment_is_that_of_the_memory_not_of_the_offset(role: Any) -> None:
    memory = GuardedMemory(8192).buffer
    with pytest.raises(ValueError, match="not aligned to 16"):
        role(memory[8:], NUM)
    role(memory[8:], NUM, offset=8)


@split("2.7.2-1", "2.7.2-2")
@pytest.mark.parametrize("num", [1, 2, 8, 256])
@pytest.mark.parametrize("align", [4, 16, 64, 4096])
@pytest.mark.parametrize("offset", [0, 48])
def test_legacy_layout(num: int, align: int, offset: int) -> None:
    used = (16 * num + 2 * (3 + num) + align - 1) // align * align  # 2.7.2's virtq_size, ALIGN() and all
    size = offset + used + 2 * 3 + 8 * num
    guarded = GuardedMemory(-(-size // 16) * 16)
    memory = guarded.buffer[:size]
    memory[:] = b"\xee" * size
    driver = DriverQueue(memory, num, align=align, offset=offset)
    part = [offset, offset + 16 * num, offset + 16 * num + 6 + 2 * num, offset + used, size]
    assert bytes(memory[: part[0]]) == b"\xee" * part[0]
    assert bytes(memory[part[0] : part[2]]) == bytes(part[2] - part[0])
    assert bytes(memory[part[2] : part[3]]) == b"\xee" * (part[3] - part[2])  # padding is nobody's
    assert bytes(memory[part[3] : part[4]]) == bytes(part[4] - part[3])
    driver.add(in_=[(0x1122334455667788, 0x99AA)])
    driver.publish()
    assert struct.unpack_from("=QIHH", memory, part[0]) == (0x1122334455667788, 0x99AA, WRITE, 0)
    assert struct.unpack_from("=HHH", memory, part[1]) == (0, 1, 0)
    device = DeviceQueue(memory, num, align=align, offset=offset)
    assert device.pop() == 0
    device.push(0, 0x99AA)
    device.publish()
    assert struct.unpack_from("=HHII", memory, part[3]) == (0, 1, 0, 0x99AA)


@split("2.7.3-1")
@pytest.mark.parametrize("version_1", [False, True])
def test_byte_order(version_1: bool) -> None:
    bench = Bench(version_1=version_1)
    bench.driver.add(in_=[(0x0102030405060708, 0x0A0B0C0D)])
    bench.driver.publish()
    order: Any = "little" if version_1 else sys.byteorder
    expected = (
        (0x0102030405060708).to_bytes(8, order) + (0x0A0B0C0D).to_bytes(4, order) + WRITE.to_bytes(2, order)
    )
    assert bytes(bench.memory[:14]) == expected
    assert bytes(bench.memory[16 * NUM + 2 : 16 * NUM + 4]) == (1).to_bytes(2, order)
    for array in (bench.driver.desc, bench.device.avail, bench.device.used):
        for name in array.dtype.names or ():
            kind = array.dtype[name].base
            kinds = [kind] if kind.names is None else [kind[k] for k in kind.names]
            assert all(k.newbyteorder("<") == k for k in kinds) == (order == "little")


# --------------------------------------------------------------------------- descriptors, 2.7.4, 2.7.5


@split("2.7.4.1-1")
def test_device_reads_the_same_however_a_buffer_is_cut() -> None:
    payload = bytes(range(64))
    rng = random.Random(1)
    for _ in range(50):
        bench = Bench()
        bench.memory[DATA : DATA + 64] = payload
        cuts = sorted(rng.sample(range(1, 64), rng.randrange(NUM)))
        edges = [0, *cuts, 64]
        pieces = [(DATA + a, b - a) for a, b in pairwise(edges)]
        bench.driver.add(pieces)
        bench.driver.publish()
        assert bench.device.read(bench.pop()) == payload


@split("2.7.4.1-1", "2.7.8.2-2")
def test_device_fills_buffers_however_they_are_cut() -> None:
    bench = Bench()
    bench.driver.add(in_=[(DATA, 1), (DATA + 100, 30), (DATA + 50, 7), (DATA + 300, 10)])
    bench.driver.publish()
    head = bench.pop()
    data = bytes(range(1, 41))
    assert bench.device.write(head, data) == 40
    bench.device.push(head, 40)
    bench.device.publish()
    flat = bytes(bench.memory[DATA : DATA + 310])
    assert flat[:1] + flat[100:130] + flat[50:57] + flat[300:302] == data
    assert flat[302:] == bytes(8)
    assert bench.raw.used_entry(0) == (head, 40)


@split("2.7.4.1-2")
def test_device_limits_the_bytes_of_a_chain(bench: Bench) -> None:
    bench.driver.add([(DATA, 60), (DATA, 41)])
    bench.driver.publish()
    head = bench.pop()
    assert len(bench.device.read(head, 101)) == 101
    with expect("2.7.5.2-1"):
        bench.device.read(head, 100)


@split("2.7.4.2-1")
def test_driver_puts_writable_elements_last(bench: Bench) -> None:
    bench.driver.add([(DATA, 1), (DATA + 1, 2)], [(DATA + 3, 3), (DATA + 6, 4)])
    bench.driver.publish()
    chain = bench.walk(bench.raw.avail_entry(0))
    assert [(d[0] - DATA, d[1], d[2] & WRITE) for d in chain] == [
        (0, 1, 0),
        (1, 2, 0),
        (3, 3, WRITE),
        (6, 4, WRITE),
    ]


@split("2.7.4.2-1")
@pytest.mark.parametrize("how", ["chain", "read", "write"])
def test_device_refuses_a_readable_element_behind_a_writable_one(bench: Bench, how: str) -> None:
    bench.raw.set_desc(0, DATA, 4, WRITE | NEXT, 1)
    bench.raw.set_desc(1, DATA + 4, 4)
    bench.offer(0)
    head = bench.pop()
    with expect("2.7.4.2-1"):
        getattr(bench.device, how)(*((head, b"x") if how == "write" else (head,)))
    assert bytes(bench.memory[DATA : DATA + 8]) == bytes(8)


@split("2.7.4.2-2", "2.7.5.3.1-3")
@pytest.mark.parametrize("table", [None, (TABLE, TABLE)], ids=["direct", "indirect"])
def test_driver_makes_no_chain_longer_than_the_queue(table: Any) -> None:
    bench = Bench(indirect=True)
    before = bench.raw.bytes()
    with pytest.raises(ValueError, match=f"a chain of {NUM + 1} buffers"):
        bench.driver.add([(DATA, 1)] * 4, [(DATA, 1)] * 5, table=table)
    assert bench.raw.bytes() == before
    assert bytes(bench.memory[TABLE : TABLE + 160]) == bytes(160)
    bench.driver.add([(DATA, 1)] * 4, [(DATA, 1)] * 4, table=table)
    bench.driver.publish()
    assert len(bench.walk(0, TABLE if table else None)) == NUM


@split("2.7.5.1-1")
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


@split("2.7.5.1-1")
def test_device_refuses_a_chain_that_it_cannot_write(bench: Bench) -> None:
    bench.memory[DATA : DATA + 8] = b"readable"
    bench.raw.set_desc(0, DATA, 8)
    bench.offer(0)
    head = bench.pop()
    with expect("2.7.5.1-1"):
        bench.device.write(head, b"1234")
    assert bytes(bench.memory[DATA : DATA + 8]) == b"readable"


@split("2.7.5.1-2")
def test_device_does_not_read_a_writable_buffer(bench: Bench) -> None:
    bench.memory[DATA : DATA + 16] = b"readablewritable"
    bench.driver.add([(DATA, 8)], [(DATA + 8, 8)])
    bench.driver.add(in_=[(DATA + 8, 8)])
    bench.driver.publish()
    assert bench.device.read(bench.pop()) == b"readable"
    assert bench.device.read(bench.pop()) == b""


@split("2.7.5.1-3")
@event_idx_or_not
def test_device_writes_no_descriptor_and_not_the_avail_ring(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx, indirect=True)
    bench.driver.add([(DATA, 8)], [(DATA + 8, 8)])
    bench.driver.add([(DATA + 16, 8)], [(DATA + 24, 8)], table=(TABLE, TABLE))
    bench.driver.publish()
    before = bench.raw.bytes()[:2], bytes(bench.memory[TABLE:DATA])
    bench.device.mute()
    for _ in range(2):
        head = bench.pop()
        bench.device.read(head)
        bench.device.write(head, b"reply")
        bench.device.push(head, 5)
    bench.device.publish()
    bench.device.unmute()
    bench.device.reset()
    assert (bench.raw.bytes()[:2], bytes(bench.memory[TABLE:DATA])) == before


@split("2.7.5.2-1")
def test_driver_makes_no_chain_of_4_gib(bench: Bench) -> None:
    before = bench.raw.bytes()
    with pytest.raises(ValueError, match=f"a chain of {2**32} bytes"):
        bench.driver.add([(0, 2**31)], [(2**31, 2**31)])
    assert bench.raw.bytes() == before
    bench.driver.add([(0, 2**31)], [(2**31, 2**31 - 1)])
    bench.driver.publish()
    assert sum(d[1] for d in bench.walk(0)) == 2**32 - 1


@split("2.7.5.2-1", "2.7.5.3.1-3")
@pytest.mark.parametrize("links", [[0], [1, 0], [1, 2, 1], [*range(1, NUM), NUM - 1]], ids=str)
def test_device_ends_at_a_loop(bench: Bench, links: list[int]) -> None:
    for i, link in enumerate(links):
        bench.raw.set_desc(i, DATA + i, 1, NEXT, link)
    bench.offer(0)
    with expect("2.7.5.3.1-3"):
        bench.device.read(bench.pop())


@split("2.7.5.3.1-1")
def test_driver_makes_no_indirect_table_unless_negotiated(bench: Bench) -> None:
    before = bench.raw.bytes()
    with pytest.raises(StateError, match="not negotiated"):
        bench.driver.add([(DATA, 1)], table=(TABLE, TABLE))
    assert bench.raw.bytes() == before
    bench.driver.add([(DATA, 1)] * 3, [(DATA, 1)])
    bench.driver.publish()
    assert not any(d[2] & INDIRECT for d in bench.walk(0))


@split("2.7.5.3.1-1")
def test_device_takes_no_indirect_table_unless_negotiated(bench: Bench) -> None:
    bench.raw.set_desc(0, TABLE, 16, INDIRECT)
    bench.raw.set_desc(0, DATA, 4, table=TABLE)
    bench.offer(0)
    with expect("2.7.5.3.1-1"):
        bench.device.read(bench.pop())


@split("2.7.5.3.1-2", "2.7.5.3.1-4")
def test_indirect_tables_as_the_driver_writes_them() -> None:
    bench = Bench(indirect=True)
    bench.driver.add([(DATA, 1), (DATA + 1, 2)], [(DATA + 3, 3)], table=(TABLE, 0xABCDE0))
    bench.driver.publish()
    assert bench.raw.desc(bench.raw.avail_entry(0)) == (0xABCDE0, 48, INDIRECT, 0)
    assert [bench.raw.desc(i, TABLE) for i in range(4)] == [
        (DATA, 1, NEXT, 1),
        (DATA + 1, 2, NEXT, 2),
        (DATA + 3, 3, WRITE, 0),
        (0, 0, 0, 0),
    ]


@split("2.7.5.3.1-2")
@pytest.mark.parametrize("place", [0, 1])
def test_device_takes_no_table_inside_a_table(place: int) -> None:
    bench = Bench(indirect=True)
    bench.raw.set_desc(0, TABLE, 48, INDIRECT)
    for i in range(3):
        bench.raw.set_desc(i, DATA, 4, NEXT, i + 1, table=TABLE)
    bench.raw.set_desc(place, TABLE + 64, 16, INDIRECT, table=TABLE)
    bench.raw.set_desc(0, DATA, 4, table=TABLE + 64)
    bench.offer(0)
    with expect("2.7.5.3.1-2"):
        bench.device.read(bench.pop())


@split("2.7.5.3.1-3")
def test_device_takes_no_table_chain_longer_than_the_queue() -> None:
    bench = Bench(indirect=True)
    bench.raw.set_desc(0, TABLE, 16 * (NUM + 1), INDIRECT)
    for i in range(NUM + 1):
        bench.raw.set_desc(i, DATA + i, 1, NEXT if i < NUM else 0, i + 1, table=TABLE)
    bench.offer(0)
    with expect("2.7.5.3.1-3"):
        bench.device.read(bench.pop())


@split("2.7.5.3.1-4")
def test_device_takes_no_next_beside_indirect() -> None:
    bench = Bench(indirect=True)
    bench.raw.set_desc(0, TABLE, 16, INDIRECT | NEXT, 1)
    bench.raw.set_desc(1, DATA, 4)
    bench.raw.set_desc(0, DATA, 4, table=TABLE)
    bench.offer(0)
    with expect("2.7.5.3.1-4"):
        bench.device.read(bench.pop())


@split("2.7.5.3.2-1")
@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE])
def test_device_ignores_write_on_a_table(flags: int) -> None:
    bench = Bench(indirect=True)
    bench.memory[DATA : DATA + 4] = b"data"
    bench.raw.set_desc(0, TABLE, 32, flags)
    bench.raw.set_desc(0, DATA, 4, NEXT, 1, table=TABLE)
    bench.raw.set_desc(1, DATA + 4, 4, WRITE, table=TABLE)
    bench.offer(0)
    head = bench.pop()
    assert bench.device.read(head) == b"data"
    assert [writable for _, writable in bench.device.chain(head)] == [False, True]


@split("2.7.5.3.2-2")
def test_device_takes_direct_descriptors_before_a_table() -> None:
    bench = Bench(indirect=True)
    bench.memory[DATA : DATA + 6] = b"abcdef"
    bench.raw.set_desc(5, DATA, 1, NEXT, 2)
    bench.raw.set_desc(2, DATA + 1, 2, NEXT, 7)
    bench.raw.set_desc(7, TABLE, 32, INDIRECT)
    bench.raw.set_desc(0, DATA + 3, 3, NEXT, 1, table=TABLE)
    bench.raw.set_desc(1, DATA + 16, 4, WRITE, table=TABLE)
    bench.offer(5)
    head = bench.pop()
    assert bench.device.read(head) == b"abcdef"
    assert bench.device.write(head, b"done") == 4
    assert bytes(bench.memory[DATA + 16 : DATA + 20]) == b"done"


# -------------------------------------------------------------- avail ring and its flags, 2.7.6, 2.7.7


@split("2.7.6.1-1")
@pytest.mark.parametrize("idx", [NUM - 1, (NUM + NUM + 1), 0, 0xFFFF])
def test_device_refuses_an_avail_idx_that_went_back_or_jumped(bench: Bench, idx: int) -> None:
    for i in range(NUM):
        bench.raw.set_desc(i, DATA, 4)
    bench.offer(*range(NUM))
    for _ in range(NUM):
        bench.device.push(bench.pop(), 0)
    bench.device.publish()
    bench.raw.avail_idx = idx
    with expect("2.7.6.1-1"):
        bench.device.pop()


@split("2.7.7.1-1", "2.7.7.2-1")
def test_driver_flags_without_event_idx(bench: Bench) -> None:
    bench.raw.used_event = 0x5A5A
    seen = [bench.raw.avail_flags]
    for call in (bench.driver.mute, bench.driver.mute, bench.driver.unmute, bench.driver.unmute):
        call()
        seen.append(bench.raw.avail_flags)
    assert seen == [0, NO_INTERRUPT, NO_INTERRUPT, 0, 0]
    assert bench.raw.used_event == 0x5A5A  # not ours to touch


@split("2.7.7.1-2")
def test_driver_flags_with_event_idx() -> None:
    bench = Bench(event_idx=True)
    for n in range(5):
        bench.driver.add([(DATA, 1)])
        bench.driver.publish()
        bench.driver.mute()
        assert (bench.raw.avail_flags, bench.raw.used_event) == (0, (n - 1) & 0xFFFF)
        bench.device.push(bench.pop(), 0)
        assert not bench.device.publish()
        assert bench.driver.get() is not None
        assert not bench.driver.unmute()
        assert (bench.raw.avail_flags, bench.raw.used_event) == (0, n + 1)


@split("2.7.7.1-3")
@event_idx_or_not
def test_driver_survives_spurious_notifications(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    bench.driver.add([(DATA, 1)], cookie=1)
    bench.driver.publish()
    before = bench.raw.bytes()
    for _ in range(1000):
        assert bench.driver.get() is None
    assert bench.raw.bytes() == before
    bench.use((0, 0))
    assert bench.driver.get() == (1, 0)


def used_signal(*, event_idx: bool, flags: int, used_event: int, old: int, new: int) -> bool:
    """Does our device, at index `old`, notify for what it gives back up to `new`?"""
    memory = GuardedMemory(SIZE).buffer
    raw = RawRing(memory, 256)
    raw.avail_flags, raw.used_event, raw.avail_idx, raw.used_idx = flags, used_event, new, old
    for i in range(256):
        raw.set_desc(i, DATA, 4)
        raw.set_avail_entry(i, i)
    device = DeviceQueue(memory, 256, event_idx=event_idx, avail_idx=old, used_idx=old)
    while (head := device.pop()) is not None:
        device.push(head, 0)
    notify = device.publish()
    assert raw.used_idx == new
    return notify


def avail_signal(*, event_idx: bool, flags: int, avail_event: int, old: int, new: int) -> bool:
    """Does our driver, at index `old`, kick for what it adds up to `new`? Small indices only."""
    memory = GuardedMemory(SIZE).buffer
    raw = RawRing(memory, 256)
    driver = DriverQueue(memory, 256, event_idx=event_idx)
    for _ in range(old):
        driver.add([(DATA, 1)])
    driver.publish()
    raw.used_flags, raw.avail_event = flags, avail_event
    for _ in range(new - old):
        driver.add([(DATA, 1)])
    kick = driver.publish()
    assert raw.avail_idx == new
    return kick


@split("2.7.7.2-1", "2.7.7.2-3")
@pytest.mark.parametrize("used_event", [0, 9, 10, 11, 0x7FFF, 0xFFFF])
def test_device_signals_by_flags_only(used_event: int) -> None:
    assert used_signal(event_idx=False, flags=0, used_event=used_event, old=10, new=11)
    assert used_signal(event_idx=False, flags=0, used_event=used_event, old=10, new=14)


@split("2.7.7.2-1", "2.7.7.2-2")
@pytest.mark.parametrize("used_event", [0, 9, 10, 11, 0x7FFF, 0xFFFF])
def test_device_keeps_quiet_by_flags_only(used_event: int) -> None:
    assert not used_signal(event_idx=False, flags=NO_INTERRUPT, used_event=used_event, old=10, new=11)
    assert not used_signal(event_idx=False, flags=NO_INTERRUPT, used_event=used_event, old=10, new=14)


EVENTS = [(10, 11), (10, 14), (0xFFFF, 0), (0xFFFE, 3), (0xFFF0, 0), (0, 1), (0x7FFF, 0x8002)]


@split("2.7.7.2-4", "2.7.7.2-5", "2.7.7.2-6")
@pytest.mark.parametrize("flags", [0, NO_INTERRUPT])
@pytest.mark.parametrize(("old", "new"), EVENTS)
def test_device_signals_exactly_at_used_event(flags: int, old: int, new: int) -> None:
    steps = (new - old) & 0xFFFF
    for event in range(-5, steps + 6):
        notify = used_signal(event_idx=True, flags=flags, used_event=(old + event) & 0xFFFF, old=old, new=new)
        assert notify == (0 <= event < steps)
    for far in (0x4000, 0x8000, 0xC000):
        assert not used_signal(event_idx=True, flags=flags, used_event=(old + far) & 0xFFFF, old=old, new=new)


@event_idx_or_not
@split("2.7.7.2-3", "2.7.7.2-6", "2.7.10.1-7")
def test_nothing_new_is_no_reason_to_signal(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    assert not bench.driver.publish()
    assert not bench.device.publish()


# ------------------------------------------------------------ used ring and its flags, 2.7.8 to 2.7.10


@split("2.7.8.2-2")
@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_used_len_is_what_was_written(bench: Bench, length: int) -> None:
    bench.memory[DATA : DATA + 8] = b"\xee" * 8
    bench.driver.add(in_=[(DATA, 3), (DATA + 3, 5)], cookie=9)
    bench.driver.publish()
    head = bench.pop()
    bench.device.push(head, bench.device.write(head, b"12345678"[:length]))
    assert bench.raw.used_idx == 0  # written, not yet visible
    bench.device.publish()
    assert bytes(bench.memory[DATA : DATA + 8]) == b"12345678"[:length] + b"\xee" * (8 - length)
    assert bench.driver.get() == (9, length)


@split("2.7.8.2-3", "2.7.8.3-1")
def test_device_may_write_more_than_it_says_and_the_driver_hears_what_it_says(bench: Bench) -> None:
    bench.driver.add(in_=[(DATA, 8)], cookie=9)
    bench.driver.publish()
    head = bench.pop()
    assert bench.device.write(head, b"12345678") == 8
    bench.device.push(head, 3)
    bench.device.publish()
    assert bench.driver.get() == (9, 3)


@split("2.7.8.3-1")
@pytest.mark.parametrize("length", [9, 16, 0x80000000, 0xFFFFFFFF])
def test_driver_refuses_a_used_len_beyond_the_buffer(bench: Bench, length: int) -> None:
    bench.driver.add([(DATA, 100)], [(DATA, 3), (DATA + 3, 5)])
    bench.driver.publish()
    bench.use((bench.raw.avail_entry(0), length))
    with expect("2.7.8.3-1"):
        bench.driver.get()


@split("2.7.10.1-1")
def test_driver_zeroes_the_used_ring() -> None:
    memory = GuardedMemory(SIZE).buffer
    memory[:] = b"\xff" * SIZE
    raw = RawRing(memory, NUM)
    driver = DriverQueue(memory, NUM)
    assert raw.bytes() == (bytes(16 * NUM), bytes(6 + 2 * NUM), bytes(6 + 8 * NUM))
    raw.used_flags = NO_NOTIFY
    driver.reset()
    assert raw.used_flags == 0


@split("2.7.10.1-2", "2.7.10.1-3", "2.7.10.1-4")
@pytest.mark.parametrize("avail_event", [0, 9, 10, 11, 0x7FFF, 0xFFFF])
@pytest.mark.parametrize("new", [11, 14])
def test_driver_kicks_by_flags_only(avail_event: int, new: int) -> None:
    assert avail_signal(event_idx=False, flags=0, avail_event=avail_event, old=10, new=new)
    assert not avail_signal(event_idx=False, flags=NO_NOTIFY, avail_event=avail_event, old=10, new=new)


@split("2.7.10.1-5", "2.7.10.1-6", "2.7.10.1-7")
@pytest.mark.parametrize("flags", [0, NO_NOTIFY])
@pytest.mark.parametrize(("old", "new"), [(10, 11), (10, 14), (0, 1), (100, 200)])
def test_driver_kicks_exactly_at_avail_event(flags: int, old: int, new: int) -> None:
    for event in [-0x8000, -0x4000, *range(-5, new - old + 6), 0x4000]:
        kick = avail_signal(event_idx=True, flags=flags, avail_event=(old + event) & 0xFFFF, old=old, new=new)
        assert kick == (0 <= event < new - old)


@split("2.7.10.1-6", "2.7.10.1-7")
def test_driver_kicks_at_avail_event_over_the_end_of_the_index() -> None:
    bench = Bench(event_idx=True)
    wanted = [0xFFFE, 0xFFFF, 0, 1]
    kicked: list[int] = []
    for n in range(65536 + 4):
        bench.raw.avail_event = wanted[min(len(kicked), 3)] if n > 0xFFF0 else 0x8000
        bench.driver.add([(DATA, 1)])
        if bench.driver.publish() and n > 0xFFF0:
            kicked.append(n & 0xFFFF)
        bench.use((bench.raw.avail_entry(n), 0))
        assert bench.driver.get() is not None
    assert kicked == wanted


@split("2.7.10.1-2", "2.7.10.2-1")
def test_device_flags_without_event_idx(bench: Bench) -> None:
    bench.raw.avail_event = 0x5A5A
    seen = [bench.raw.used_flags]
    for call in (bench.device.mute, bench.device.mute, bench.device.unmute, bench.device.unmute):
        call()
        seen.append(bench.raw.used_flags)
    assert seen == [0, NO_NOTIFY, NO_NOTIFY, 0, 0]
    assert bench.raw.avail_event == 0x5A5A


@split("2.7.10.2-2")
def test_device_flags_with_event_idx() -> None:
    bench = Bench(event_idx=True)
    for n in range(5):
        bench.device.mute()
        assert (bench.raw.used_flags, bench.raw.avail_event) == (0, (n - 1) & 0xFFFF)
        bench.driver.add([(DATA, 1)])
        assert not bench.driver.publish()
        bench.device.push(bench.pop(), 0)
        bench.device.publish()
        bench.driver.get()
        assert not bench.device.unmute()
        assert (bench.raw.used_flags, bench.raw.avail_event) == (0, n + 1)


@split("2.7.10.2-3")
@event_idx_or_not
def test_device_survives_spurious_kicks(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    before = bench.raw.bytes()
    for _ in range(1000):
        assert bench.device.pop() is None
    assert bench.raw.bytes() == before
    bench.driver.add([(DATA, 1)])
    bench.driver.publish()
    assert bench.device.pop() == 0


@split("2.7.13-1")
def test_driver_publishes_a_batch_with_one_store(bench: Bench) -> None:
    for n in range(NUM):
        bench.driver.add([(DATA + n, 1)], cookie=n)
        assert bench.raw.avail_idx == 0
        assert bench.device.pop() is None
    assert bench.driver.publish()
    assert bench.raw.avail_idx == NUM
    assert sorted(bench.pop() for _ in range(NUM)) == list(range(NUM))


@split("2.7.14-1")
@event_idx_or_not
def test_unmuting_tells_of_what_came_meanwhile(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    bench.driver.mute()
    bench.device.mute()
    bench.driver.add([(DATA, 1)])
    assert not bench.driver.publish()
    assert bench.device.unmute()
    bench.device.push(bench.pop(), 0)
    assert not bench.device.publish()
    assert not bench.device.unmute()
    assert bench.driver.unmute()
    assert bench.driver.get() == (0, 0)
    assert not bench.driver.unmute()


# ----------------------------------------------------------------------------------- checks of our own


def case(rule: str, *values: Any) -> Any:
    return pytest.param(rule, *values, marks=split(rule))


@pytest.mark.parametrize(
    ("rule", "heads"),
    [case("2.7.6-head", [NUM]), case("2.7.6-twice", [1, 1])],
)
def test_avail_entries_that_no_honest_driver_makes(bench: Bench, rule: str, heads: list[int]) -> None:
    bench.offer(*heads)
    with expect(rule):
        for _ in heads:
            bench.device.pop()


@pytest.mark.parametrize(
    ("rule", "entries"),
    [case("2.7.8-idx", [(0, 0), (1, 0)]), case("2.7.8-id", [(NUM, 0)]), case("2.7.8-idle", [(1, 0)])],
)
def test_used_entries_that_no_honest_device_makes(
    bench: Bench, rule: str, entries: list[tuple[int, int]]
) -> None:
    bench.driver.add([(DATA, 1)])
    bench.driver.publish()
    bench.use(*entries)
    with expect(rule):
        bench.driver.get()


@pytest.mark.parametrize(
    ("rule", "desc"),
    [
        case("2.7.5-addr", (SIZE, 1, 0, 0)),
        case("2.7.5-addr", (0, 16, 0, 0)),
        case("2.7.5-len", (DATA, 0, 0, 0)),
        case("2.7.5-next", (DATA, 1, NEXT, NUM)),
        case("2.7.5.3-len", (TABLE, 24, INDIRECT, 0)),
    ],
)
def test_descriptors_that_no_honest_driver_makes(rule: str, desc: tuple[int, int, int, int]) -> None:
    bench = Bench(indirect=True)
    bench.raw.set_desc(0, *desc)
    bench.offer(0)
    with expect(rule):
        bench.device.read(bench.pop())


@split("2.7.5-addr")
def test_device_reaches_only_the_memory_it_was_given() -> None:
    bench = Bench()
    constant = bytes(range(16))
    memory = Memory([(0x80000000, bench.memory), (0x1000, constant)], exclude=[(0x80000000, DATA)])
    assert memory.regions == [(0x1000, 16, False), (0x80000000 + DATA, SIZE - DATA, True)]
    for addr, flags, good in [
        (0x1000, 0, True),
        (0x1000, WRITE, False),
        (0x80000000 + DATA, WRITE, True),
        (0x80000000 + DATA - 1, 0, False),
        (DATA, 0, False),
    ]:
        device = DeviceQueue(bench.memory, NUM, memory=memory)
        bench.driver.reset()
        bench.raw.set_desc(0, addr, 2, flags)
        bench.offer(0)
        assert device.pop() == 0
        if good:
            assert len(device.chain(0)) == 1
        else:
            with expect("2.7.5-addr"):
                device.chain(0)


def test_every_rule_of_the_ring_core_is_listed() -> None:
    root = Path(__file__).parents[2]
    ids = set(re.findall(r'^\tX\(\w+, "([^"]+)"', (root / "csrc/rpx/base.h").read_text(), re.M))
    listed = set(re.findall(r"^\| (\S+) \|", (root / "docs/conformance.md").read_text(), re.M))
    assert len(ids) > 15
    assert ids <= listed
