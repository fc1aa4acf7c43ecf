# SPDX-License-Identifier: BSD-3-Clause
"""One of our buses on a link with `layout="modern"`, and the other end by hand: every field of the block where it lies.

    0x0000  the block, 256 bytes             driver by hand: rings at VRINGS, buffers at POOL (support_wire)
    0x4000  vring 0 of our driver            0x8000  vring 1, 0x10000 its buffers, 0x80000 the end

Split rings are those of support_wire; packed ones are here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from support_memory import GuardedMemory
from support_wire import (
    BUFFER,
    NS,
    NUM,
    PA,
    POOL,
    VRINGS,
    WRITE,
    Bell,
    HostileDevice,
    HostileDriver,
    Memory,
    RawRing,
    Role,
)

from rpmsgx import Bus
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import readable
from rpmsgx.virtio.modern import Block, ModernLayout, ModernLink

VERSION_1, RING_PACKED = 1 << 32, 1 << 34
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
AGREED, UP = 11, 15

# Written out here once more, from docs/modern.md.
DEVICE_FEATURES, DEVICE_STATUS, GENERATION = 0x10, 0x18, 0x1C
DRIVER_FEATURES, DRIVER_STATUS = 0x20, 0x28
NUM_MAX, QUEUE_NUM, READY, DESC, AVAIL, USED = 0x00, 0x04, 0x08, 0x10, 0x18, 0x20
SIZE = 0x80000


def queue(index: int, field: int) -> int:
    return 0x40 + 0x40 * index + field


class LittleMemory(Memory):
    """Block, rings and headers have little-endian fields: VERSION_1 is accepted."""

    def get(self, width: int, at: int) -> int:
        return _little(super().get(width, at), width)

    def put(self, width: int, at: int, value: int) -> None:
        super().put(width, at, _little(value, width))


def _little(value: int, width: int) -> int:
    return int.from_bytes(value.to_bytes(width, sys.byteorder), "little")


class RawPackedRing:
    """A packed ring (VIRTIO 2.8): `avail` and `used` are the suppression structures of driver and device.

    Slots are counted on from 0 without an end: the wrap counter of slot `n` is 1 in the first lap, then 0, and so on.
    """

    AVAIL, USED = 1 << 7, 1 << 15

    def __init__(self, memory: Memory, base: int, num: int = NUM) -> None:
        self.memory, self.base, self.num = memory, base, num
        self.avail = -(-(base + 16 * num) // 64) * 64
        self.used = self.avail + 64
        self.end = self.used + 4

    def read(self, n: int) -> tuple[int, int, int, int]:
        """addr, len, id, flags"""
        get, at = self.memory.get, self.base + 16 * (n % self.num)
        return get(8, at), get(4, at + 8), get(2, at + 12), get(2, at + 14)

    def is_marked(self, n: int, *, used: bool) -> bool:
        """Whether slot `n` is one that was made available, or used, in its lap."""
        return self.read(n)[3] & (self.AVAIL | self.USED) == self._marks(n, used)

    def write(self, n: int, addr: int, length: int, id_: int, flags: int = 0, *, used: bool) -> None:
        put, at = self.memory.put, self.base + 16 * (n % self.num)
        put(8, at, addr)
        put(4, at + 8, length)
        put(2, at + 12, id_)
        put(2, at + 14, flags | self._marks(n, used))

    def _marks(self, n: int, used: bool) -> int:
        wrap = n // self.num % 2 == 0
        return self.AVAIL * wrap | self.USED * (wrap == used)


class ModernWire:
    """Memory, block, and our bus as `role`. `writes` are its end's (offset, value), in order.

    `peer` is the other end's hand on the rings: `HostileDevice` or `HostileDriver`. The bus's end has not been answered
    yet: `meet()` does that. `offers` is what our device offers beside VERSION_1, or the device by hand in all.
    `packed`: the rings are, because both ends agree on it.
    """

    def __init__(
        self, role: Role, *, offers: int = NS | VERSION_1, num: int = NUM, packed: bool = False, **options: Any
    ) -> None:
        self.guarded = GuardedMemory(SIZE)
        self.memory = LittleMemory(self.guarded.buffer)
        offers |= RING_PACKED * packed
        flags = [bool(offers & bit) for bit in (1 << 29, 1 << 28, NS)]
        layout = ModernLayout(num, *flags, packed=bool(offers & RING_PACKED))
        block = layout.table()
        self.memory.bytes[: len(block)] = block
        self.writes: list[tuple[int, int]] = []
        region = Region("modern", self.guarded.buffer, pa=PA)
        self.bell, self.far_bell = Bell.pair()
        places = (0x4000, 0x8000) if role == "driver" else VRINGS
        self.rings: tuple[Any, ...] = tuple((RawPackedRing if packed else RawRing)(self.memory, at) for at in places)
        self.peer: Any
        if role == "driver":
            self.peer = (PackedDevice if packed else Device)(self, offers)
        else:
            self.peer = (PackedDriver if packed else Driver)(self)
        self.link: Any = ModernLink(
            role,
            "modern:",
            space=AddressSpace(region),
            region=region,
            offset=0,
            doorbell=self.bell,
            table_end=len(block),
            in_process=True,
        )
        self.link._layout = layout
        self.link._block = Watched(region.buffer, self)
        self.bus = Bus(self.link, **options)

    def get(self, at: int, width: int = 4) -> int:
        return self.memory.get(width, at)

    def put(self, at: int, value: int, width: int = 4) -> None:
        self.memory.put(width, at, value)

    def look(self) -> bool:
        """The other end rings, and the bus looks; whether the link is up."""
        self.far_bell.kick(0)
        return bool(self.bus.is_up)

    def rung(self) -> bool:
        """Whether the bus rang the other end since the last call."""
        before = readable(self.far_bell.fileno(), 0)
        self.far_bell.drain()
        return before

    def meet(self, features: int | None = None) -> None:
        self.peer.meet() if features is None else self.peer.meet(features)
        assert self.bus.is_up

    def close(self) -> None:
        self.bus.close(linger=0)
        self.far_bell.close()
        assert self.guarded.intact()


class Watched(Block):
    """Notes each write of the bus that goes through the block: all but DRIVER_OK."""

    def __init__(self, buffer: Any, wire: ModernWire) -> None:
        super().__init__(buffer)
        self.wire = wire

    def set(self, at: int, value: int) -> None:
        super().set(at, value)
        self.wire.writes.append((at, value))

    def store(self, at: int, value: int) -> None:
        super().store(at, value)
        self.wire.writes.append((at, value))


class Device(HostileDevice):
    """The device by hand."""

    def __init__(self, wire: Any, offers: int) -> None:
        super().__init__(wire)
        self.offers = offers
        self.come()

    def come(self, generation: int = 1) -> None:
        """A device that begins: it has said what it offers, and not answered the driver's reset."""
        put = self.memory.put
        put(8, DEVICE_FEATURES, self.offers)
        for index in (0, 1):
            put(4, queue(index, NUM_MAX), NUM)
        put(4, GENERATION, generation)
        self.say(NEEDS_RESET)
        self.filled = self.taken = 0

    def say(self, word: int) -> None:
        self.memory.put(4, DEVICE_STATUS, word)

    def meet(self) -> None:
        """Answer as a device does, until DRIVER_OK."""
        self.filled = self.taken = 0
        assert self.memory.get(4, DRIVER_STATUS) == 0
        self.say(0)
        self.wire.look()
        assert self.memory.get(4, DRIVER_STATUS) == AGREED
        self.say(AGREED)
        self.wire.look()
        assert self.memory.get(4, DRIVER_STATUS) == UP


class Driver(HostileDriver):
    """The driver by hand."""

    def say(self, word: int) -> None:
        self.memory.put(4, DRIVER_STATUS, word)

    def reset(self) -> None:
        self.say(0)
        self.wire.look()
        assert self.memory.get(4, DEVICE_STATUS) == 0

    def features_ok(self, features: int) -> int:
        """Reset, and say FEATURES_OK for these; the device's word then."""
        self.reset()
        self.memory.put(8, DRIVER_FEATURES, features)
        self.say(AGREED)
        self.wire.look()
        return self.memory.get(4, DEVICE_STATUS)

    def place(self) -> None:
        """Rings of zeros with buffers posted, and where they are."""
        for index, ring in enumerate(self.wire.rings):
            self.memory.bytes[ring.base : ring.end] = bytes(ring.end - ring.base)
            self.memory.put(4, queue(index, QUEUE_NUM), ring.num)
            for field, at in ((DESC, ring.base), (AVAIL, ring.avail), (USED, ring.used)):
                self.memory.put(8, queue(index, field), at)
            self.memory.put(4, queue(index, READY), 1)
        self.post()

    def post(self) -> None:
        for i in range(self.rx.num):
            self.rx.set_desc(i, PA + POOL + i * BUFFER, BUFFER, WRITE)
        self.rx.offer(*range(self.rx.num))
        self.next = self.taken = 0

    def meet(self, features: int = NS | VERSION_1) -> None:
        assert self.features_ok(features) == AGREED
        self.place()
        self.say(UP)
        self.wire.look()


class PackedDevice(Device):
    @property
    def room(self) -> int:
        ring = self.tx
        return sum(ring.is_marked(self.filled + i, used=False) for i in range(ring.num))

    def deliver(
        self, payload: bytes = b"", src: int = 50, dst: int = 1024, *, size: int | None = None, **lies: int
    ) -> int:
        assert self.tx.is_marked(self.filled, used=False), "no buffer was posted"
        addr, _, id_, _ = self.tx.read(self.filled)
        self.header(addr - PA, payload, src, dst, **lies)
        self.tx.write(self.filled, 0, 16 + len(payload) if size is None else size, id_, WRITE, used=True)
        self.filled += 1
        return int(id_)

    def take(self) -> tuple[int, int, bytes]:
        assert self.rx.is_marked(self.taken, used=False), "nothing was sent"
        addr, _, id_, _ = self.rx.read(self.taken)
        message = self.message(addr - PA)
        self.rx.write(self.taken, 0, 0, id_, used=True)
        self.taken += 1
        return message


class PackedDriver(Driver):
    """Buffer i is of id i."""

    def meet(self, features: int = NS | VERSION_1 | RING_PACKED) -> None:
        super().meet(features)

    def post(self) -> None:
        for i in range(self.rx.num):
            self.rx.write(i, PA + POOL + i * BUFFER, BUFFER, i, WRITE, used=False)
        self.next = self.taken = 0

    @property
    def room(self) -> int:
        ring, lap = self.tx, self.next - self.tx.num
        return sum(lap + i < 0 or ring.is_marked(lap + i, used=True) for i in range(ring.num))

    def deliver(
        self, payload: bytes = b"", src: int = 50, dst: int = 1024, *, size: int | None = None, **lies: int
    ) -> int:
        n, num = self.next, self.tx.num
        assert n < num or self.tx.is_marked(n - num, used=True), "the bus gives nothing back"
        at = POOL + (NUM + n % num) * BUFFER
        self.header(at, payload, src, dst, **lies)
        self.tx.write(n, PA + at, 16 + len(payload) if size is None else size, n % num, used=False)
        self.next += 1
        return n % num

    def take(self) -> tuple[int, int, bytes]:
        assert self.rx.is_marked(self.taken, used=True), "nothing was sent"
        id_ = self.rx.read(self.taken)[2]
        at = POOL + id_ * BUFFER
        message = self.message(at)
        self.rx.write(self.taken + self.rx.num, PA + at, BUFFER, id_, WRITE, used=False)
        self.taken += 1
        return message


@contextlib.contextmanager
def modern(role: Role, **options: Any) -> Iterator[ModernWire]:
    wire = ModernWire(role, **options)
    try:
        yield wire
    finally:
        wire.close()
