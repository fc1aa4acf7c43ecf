"""One of our buses on a link over guarded memory, and the other end by hand: raw bytes, no checks, no manners.

    0x0000  resource table, 88 bytes         0x3000  vring 1, driver to device
    0x1000  vring 0, device to driver        0x5000  buffers: 8 x 512 each way, up to the end at 0x7000

Guard pages touch the table on one side and the last buffer on the other. Device address, physical address and offset
differ; descriptors carry physical addresses. A field is read and written by one item of a memoryview, which is one
load or store: `struct.pack_into` would show a zero in between.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import pytest
from support_memory import GuardedMemory

from rpmsgx import Bus
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import EventfdDoorbell
from rpmsgx.notify.timer import PolledDoorbell
from rpmsgx.virtio.link import Buffers, VdevLink
from rpmsgx.virtio.table import build_vdev_table

Role = Literal["driver", "device"]

TIMEOUT = 10.0  # more than anything here takes; a wait that ends by it has failed
NS, INDIRECT_DESC, EVENT_IDX = 1 << 0, 1 << 28, 1 << 29
NEXT, WRITE, INDIRECT = 1, 2, 4

NUM, ALIGN, BUFFER = 8, 4096, 512
DA, PA = 0x1000_0000, 0x8_2000_0000
VDEV, STATUS = 0x14, 0x14 + 24
VRINGS = (0x1000, 0x3000)
POOL = 0x5000
SIZE = POOL + 2 * NUM * BUFFER


class Memory:
    """The shared bytes, by width in bytes; the offset is a multiple of it."""

    def __init__(self, buffer: memoryview) -> None:
        self.bytes = buffer
        self._views = {1: buffer.cast("B"), 2: buffer.cast("H"), 4: buffer.cast("I"), 8: buffer.cast("Q")}

    def get(self, width: int, at: int) -> int:
        assert at % width == 0
        return int(self._views[width][at // width])

    def put(self, width: int, at: int, value: int) -> None:
        assert at % width == 0
        self._views[width][at // width] = value


class RawRing:
    """A legacy vring of `num` at `base`: every field where it lies."""

    def __init__(self, memory: Memory, base: int, num: int = NUM) -> None:
        self.memory, self.base, self.num = memory, base, num
        self.avail = base + 16 * num
        self.used = base + -(-(16 * num + 6 + 2 * num) // ALIGN) * ALIGN
        self.end = self.used + 6 + 8 * num

    def desc(self, i: int) -> tuple[int, int, int, int]:
        """addr, len, flags, next"""
        get, at = self.memory.get, self.base + 16 * i
        return get(8, at), get(4, at + 8), get(2, at + 12), get(2, at + 14)

    def set_desc(
        self, i: int, addr: int, length: int, flags: int = 0, next_: int = 0, table: int | None = None
    ) -> None:
        put, at = self.memory.put, (self.base if table is None else table) + 16 * i
        put(8, at, addr)
        put(4, at + 8, length)
        put(2, at + 12, flags)
        put(2, at + 14, next_)

    @property
    def avail_idx(self) -> int:
        return self.memory.get(2, self.avail + 2)

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self.memory.put(2, self.avail + 2, value & 0xFFFF)

    @property
    def used_idx(self) -> int:
        return self.memory.get(2, self.used + 2)

    @used_idx.setter
    def used_idx(self, value: int) -> None:
        self.memory.put(2, self.used + 2, value & 0xFFFF)

    def avail_entry(self, idx: int) -> int:
        return self.memory.get(2, self.avail + 4 + 2 * (idx % self.num))

    def used_entry(self, idx: int) -> tuple[int, int]:
        """id, len"""
        at = self.used + 4 + 8 * (idx % self.num)
        return self.memory.get(4, at), self.memory.get(4, at + 4)

    def offer(self, *heads: int) -> None:
        """As the driver: publish heads."""
        idx = self.avail_idx
        for k, head in enumerate(heads):
            self.memory.put(2, self.avail + 4 + 2 * ((idx + k) % self.num), head)
        self.avail_idx = idx + len(heads)

    def use(self, *entries: tuple[int, int]) -> None:
        """As the device: publish used entries."""
        idx = self.used_idx
        for k, (head, length) in enumerate(entries):
            at = self.used + 4 + 8 * ((idx + k) % self.num)
            self.memory.put(4, at, head)
            self.memory.put(4, at + 4, length)
        self.used_idx = idx + len(entries)


class Bell(EventfdDoorbell):
    """One end of a pair of eventfds, whose peer can go and come."""

    def leave(self) -> None:
        self.connected = False
        self.lost += 1

    def back(self) -> None:
        """The peer went, and somebody is there again."""
        self.connected = True
        self.lost += 1


class Wire:
    """Memory, table, and our bus as `role`. `peer` is the other end: `HostileDevice` or `HostileDriver`."""

    def __init__(
        self,
        role: Role,
        *,
        features: int = NS,
        polled: bool = False,
        begin: bool = True,
        link: type[VdevLink] = VdevLink,
        **options: Any,
    ) -> None:
        """`polled`: without a doorbell. `begin` false: the driver by hand has not begun yet."""
        self.guarded = GuardedMemory(SIZE)
        self.memory = Memory(self.guarded.buffer)
        self.role = role
        table = build_vdev_table(num=NUM, align=ALIGN, vring_da=[DA + at for at in VRINGS], dfeatures=features)
        self.memory.bytes[: len(table)] = table
        self.rings = tuple(RawRing(self.memory, at) for at in VRINGS)
        region = Region("wire", self.guarded.buffer, da=DA, pa=PA)
        self.bell: Any
        self.far_bell: Any
        self.bell, self.far_bell = (PolledDoorbell(), PolledDoorbell()) if polled else Bell.pair()
        self.peer: Any
        self.peer = HostileDevice(self) if role == "driver" else HostileDriver(self)
        if role == "device" and begin:
            self.peer.begin()
        self.link: Any = link(
            role,
            "wire:",
            space=AddressSpace(region),
            region=region,
            offset=VDEV,
            doorbell=self.bell,
            buffers=Buffers(DA + POOL, NUM, BUFFER) if role == "driver" else None,
            table_end=len(table),
            in_process=True,
            per_connection=True,
        )
        self.bus = Bus(self.link, **options)

    @property
    def status(self) -> int:
        return self.memory.get(1, STATUS)

    @status.setter
    def status(self, value: int) -> None:
        self.memory.put(1, STATUS, value)

    def resize(self, num: int, swap: bool = False) -> None:
        """The driver by hand has other rings from now on: of `num` descriptors, or in each other's place."""
        self.rings = tuple(RawRing(self.memory, at, num) for at in VRINGS[:: -1 if swap else 1])
        self.peer.rx, self.peer.tx = self.rings

    def ring(self) -> None:
        """The other end rings."""
        self.far_bell.kick(0)

    def close(self) -> None:
        self.bus.close(linger=0)
        self.far_bell.close()
        assert self.guarded.intact()


class Peer:
    """The other end, by hand. `rx` is the ring it takes messages from, `tx` the one it sends on."""

    rx: RawRing
    tx: RawRing

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.memory = wire.memory

    def header(
        self,
        at: int,
        payload: bytes,
        src: int,
        dst: int,
        *,
        length: int | None = None,
        reserved: int = 0,
        flags: int = 0,
    ) -> None:
        put = self.memory.put
        put(4, at, src)
        put(4, at + 4, dst)
        put(4, at + 8, reserved)
        put(2, at + 12, len(payload) if length is None else length)
        put(2, at + 14, flags)
        self.memory.bytes[at + 16 : at + 16 + len(payload)] = payload

    def message(self, at: int) -> tuple[int, int, bytes]:
        """src, dst, payload of the message at this offset."""
        get = self.memory.get
        return get(4, at), get(4, at + 4), bytes(self.memory.bytes[at + 16 : at + 16 + get(2, at + 12)])

    def deliver(
        self, payload: bytes = b"", src: int = 50, dst: int = 1024, *, size: int | None = None, **lies: int
    ) -> int:
        """Send; the head that was used. `size` is what the ring says, `length` what the header says."""
        raise NotImplementedError

    def announce(self, name: str | bytes, addr: int = 50, flags: int = 0) -> int:
        return self.deliver(ns(name, addr, flags), addr, 53)


def ns(name: str | bytes, addr: int, flags: int = 0) -> bytes:
    """A name-service message."""
    raw = name.encode() if isinstance(name, str) else name
    return struct.pack("=32sII", raw, addr, flags)


class HostileDevice(Peer):
    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.tx, self.rx = wire.rings
        self.filled = self.taken = 0

    @property
    def room(self) -> int:
        """Buffers that it could fill."""
        return (self.tx.avail_idx - self.filled) & 0xFFFF

    def deliver(
        self, payload: bytes = b"", src: int = 50, dst: int = 1024, *, size: int | None = None, **lies: int
    ) -> int:
        assert self.room, "no buffer was posted"
        head = self.tx.avail_entry(self.filled)
        self.filled = (self.filled + 1) & 0xFFFF
        self.header(self.tx.desc(head)[0] - PA, payload, src, dst, **lies)
        self.tx.use((head, 16 + len(payload) if size is None else size))
        return head

    def take(self) -> tuple[int, int, bytes]:
        """The next message that the bus has sent: src, dst, payload."""
        assert self.rx.avail_idx != self.taken, "nothing was sent"
        head = self.rx.avail_entry(self.taken)
        self.taken = (self.taken + 1) & 0xFFFF
        message = self.message(self.rx.desc(head)[0] - PA)
        self.rx.use((head, 0))
        return message

    def reset(self) -> None:
        """It went away and is there again: the bus looks, and sets everything up anew."""
        self.filled = self.taken = 0
        self.wire.bell.back()
        self.wire.ring()
        self.wire.bus.is_up  # noqa: B018


class HostileDriver(Peer):
    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.rx, self.tx = wire.rings
        self.next = self.taken = 0

    def begin(self, features: int | None = None, *, reset: bool = True) -> None:
        """From reset to DRIVER_OK. Without `reset` the status never was anything else."""
        wire = self.wire
        if reset:
            for status in (0, 1, 3):
                wire.status = status
        offered = self.memory.get(4, VDEV + 12)
        self.memory.put(4, VDEV + 16, offered if features is None else features)
        for ring in wire.rings:
            self.memory.bytes[ring.base : ring.end] = bytes(ring.end - ring.base)
        for i in range(self.rx.num):
            self.rx.set_desc(i, PA + POOL + i * BUFFER, BUFFER, WRITE)
        self.rx.offer(*range(self.rx.num))
        self.next = self.taken = 0
        wire.status = 7

    @property
    def room(self) -> int:
        """Buffers that it could send in."""
        return self.tx.num - ((self.next - self.tx.used_idx) & 0xFFFF)

    def deliver(
        self, payload: bytes = b"", src: int = 50, dst: int = 1024, *, size: int | None = None, **lies: int
    ) -> int:
        assert self.room > 0, "the bus gives nothing back"
        head = self.next % self.tx.num
        self.next = (self.next + 1) & 0xFFFF
        at = POOL + (NUM + head) * BUFFER
        self.header(at, payload, src, dst, **lies)
        self.tx.set_desc(head, PA + at, 16 + len(payload) if size is None else size)
        self.tx.offer(head)
        return head

    def take(self) -> tuple[int, int, bytes]:
        """The next message that the bus has sent: src, dst, payload. The buffer is posted again."""
        assert self.rx.used_idx != self.taken, "nothing was sent"
        head, _ = self.rx.used_entry(self.taken)
        self.taken = (self.taken + 1) & 0xFFFF
        message = self.message(self.rx.desc(head)[0] - PA)
        self.rx.offer(head)
        return message

    def reset(self) -> None:
        """The status is 0 when the bus looks, and then everything is set up anew."""
        self.wire.status = 0
        self.wire.ring()
        self.wire.bus.is_up  # noqa: B018
        self.begin()
        self.wire.ring()
        self.wire.bus.is_up  # noqa: B018


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._call: Callable[[], Any] = partial(function, *args, **kwargs)
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def outcome(self) -> Any:
        """What it returned, or raise what it raised."""
        self.join(TIMEOUT)
        assert not self.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self.result


def blocked(*calls: Call) -> None:
    """Wait until these threads sleep: at several looks in a row, between which they could have gone on."""
    until(lambda: all(_sleeps(call) for call in calls), looks=5)
    assert all(call.is_alive() for call in calls), [call.error for call in calls]


def _sleeps(call: Call) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/self/task/{call.native_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
    return not call.is_alive()


def until(condition: Callable[[], Any], looks: int = 1) -> Any:
    """Poll until `condition()` holds, `looks` times in a row."""
    deadline = time.monotonic() + TIMEOUT
    seen = 0
    while True:
        value: Any = condition()
        seen = seen + 1 if value else 0
        if seen >= looks:
            return value
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.001)


@contextlib.contextmanager
def wired(role: Role, **options: Any) -> Iterator[Wire]:
    wire = Wire(role, **options)
    try:
        yield wire
    finally:
        wire.close()


roles = pytest.mark.parametrize("role", ["driver", "device"])
