"""The packed virtqueue once more, literally after VIRTIO 1.2, 2.8, with `struct`: an opposite for our own.

Names and results follow PackedDriverQueue and PackedDeviceQueue; nothing is checked: a hostile peer is made of the same
parts. What an end is to ignore is filled with rubbish.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from typing_extensions import Buffer

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2
RUBBISH_ID = 0xBAD5
RUBBISH_ADDR = 0xBAD0BAD0BAD0BAD0


class Event(NamedTuple):
    """An event suppression structure."""

    off: int
    wrap: int
    flags: int


class Place(NamedTuple):
    """A slot of the ring, and the wrap counter of who goes round there."""

    slot: int
    wrap: int

    def after(self, steps: int, num: int) -> Place:
        """Literally, slot by slot."""
        slot, wrap = self
        for _ in range(steps):
            slot += 1
            if slot == num:
                slot, wrap = 0, wrap ^ 1
        return Place(slot, wrap)


START = Place(0, 1)


def marks(wrap: int, *, used: bool) -> int:
    """AVAIL and USED of a descriptor."""
    return AVAIL * wrap | USED * (wrap if used else wrap ^ 1)


def wants(event: Event, old: Place, new: Place, num: int, event_idx: bool) -> bool:
    """Is the end that wrote `event` to be notified of the descriptors from `old` to `new`?"""
    if old == new or event.flags == DISABLE:
        return False
    if event.flags != DESC or not event_idx:
        return True
    while old != new:
        if old == event[:2]:
            return True
        old = old.after(1, num)
    return False


class RawPacked:
    """Every field of a ring in `buffer`, by name, read and written where it lies."""

    def __init__(
        self, buffer: Buffer, num: int, *, parts: tuple[int, int, int] | None = None, offset: int = 0
    ) -> None:
        self.memory = memoryview(buffer)
        self.num = num
        behind = -(-16 * num // 64) * 64
        self.desc_at, self.driver_at, self.device_at = (
            offset + part for part in parts or (0, behind, behind + 64)
        )

    def desc(self, i: int, table: int | None = None) -> tuple[int, int, int, int]:
        """addr, len, id, flags"""
        return struct.unpack_from("<QIHH", self.memory, (self.desc_at if table is None else table) + 16 * i)

    def set_desc(
        self, i: int, addr: int, length: int, id_: int, flags: int = 0, *, table: int | None = None
    ) -> None:
        """The flags last."""
        at = (self.desc_at if table is None else table) + 16 * i
        struct.pack_into("<QIH", self.memory, at, addr, length, id_)
        struct.pack_into("<H", self.memory, at + 14, flags)

    def flags(self, i: int) -> int:
        return self.desc(i)[3]

    def set_flags(self, i: int, flags: int) -> None:
        struct.pack_into("<H", self.memory, self.desc_at + 16 * i + 14, flags)

    def event(self, at: int) -> Event:
        off_wrap, flags = struct.unpack_from("<HH", self.memory, at)
        return Event(off_wrap & 0x7FFF, off_wrap >> 15, flags)

    def set_event(self, at: int, event: Event) -> None:
        """The flags last."""
        struct.pack_into("<H", self.memory, at, event.off | event.wrap << 15)
        struct.pack_into("<H", self.memory, at + 2, event.flags)

    @property
    def driver_event(self) -> Event:
        return self.event(self.driver_at)

    @driver_event.setter
    def driver_event(self, event: Event) -> None:
        self.set_event(self.driver_at, event)

    @property
    def device_event(self) -> Event:
        return self.event(self.device_at)

    @device_event.setter
    def device_event(self, event: Event) -> None:
        self.set_event(self.device_at, event)

    def bytes(self) -> tuple[bytes, bytes, bytes]:
        """Descriptors and both event suppression structures as they are."""
        ends = (self.desc_at, 16 * self.num), (self.driver_at, 4), (self.device_at, 4)
        return tuple(bytes(self.memory[at : at + size]) for at, size in ends)  # type: ignore[return-value]


class _End:
    """Two places in the ring, one to take and one to give; what is given is shown by the flags of its first slot."""

    def __init__(
        self, buffer: Buffer, num: int, *, event_idx: bool = False, indirect: bool = False, **layout: Any
    ) -> None:
        self.raw = RawPacked(buffer, num, **layout)
        self.event_idx = event_idx
        self.start()

    def start(self) -> None:
        self.take = self.give = self.published = START
        self.first: int | None = None

    def put(self, place: Place, addr: int, length: int, id_: int, flags: int) -> None:
        if self.first is None:
            self.first = flags
            flags = self.raw.flags(place.slot)
        self.raw.set_desc(place.slot, addr, length, id_, flags)

    def show(self, event: Event) -> bool:
        old, self.published = self.published, self.give
        if self.first is not None:
            self.raw.set_flags(old.slot, self.first)
            self.first = None
        return wants(event, old, self.give, self.raw.num, self.event_idx)

    def wish(self) -> Event:
        return Event(*self.take, DESC) if self.event_idx else Event(0, 0, ENABLE)

    def ready(self, *, used: bool) -> bool:
        """Has the other end made over the next descriptor?"""
        return self.raw.flags(self.take.slot) & (AVAIL | USED) == marks(self.take.wrap, used=used)


class LiteralPackedDriver(_End):
    def start(self) -> None:
        super().start()
        raw = self.raw
        for at, part in zip((raw.desc_at, raw.driver_at, raw.device_at), raw.bytes(), strict=True):
            raw.memory[at : at + len(part)] = bytes(len(part))
        self.free = list(range(raw.num))
        self.chains: dict[int, tuple[int, int]] = {}  # id: cookie, descriptors
        self.num_free = raw.num

    @property
    def in_flight(self) -> int:
        return len(self.chains)

    def add(
        self,
        out: Iterable[tuple[int, int]] = (),
        in_: Iterable[tuple[int, int]] = (),
        *,
        cookie: int = 0,
        table: tuple[int, int] | None = None,
    ) -> None:
        elements = [(*pair, 0) for pair in out] + [(*pair, WRITE) for pair in in_]
        if table:
            for k, (addr, length, flags) in enumerate(elements):
                self.raw.set_desc(k, addr, length, RUBBISH_ID, flags, table=table[0])
            elements = [(table[1], 16 * len(elements), INDIRECT | (WRITE if in_ else 0))]
        id_ = self.free.pop()
        for k, (addr, length, flags) in enumerate(elements):
            last = k + 1 == len(elements)
            flags |= marks(self.give.wrap, used=False) | (0 if last else NEXT)
            self.put(self.give, addr, length, id_ if last else RUBBISH_ID, flags)
            self.give = self.give.after(1, self.raw.num)
        self.chains[id_] = cookie, len(elements)
        self.num_free -= len(elements)

    def publish(self) -> bool:
        return self.show(self.raw.device_event)

    def get(self) -> tuple[int, int] | None:
        if not self.ready(used=True):
            return None
        _, length, id_, flags = self.raw.desc(self.take.slot)
        cookie, descriptors = self.chains.pop(id_)
        self.free.append(id_)
        self.num_free += descriptors
        self.take = self.take.after(descriptors, self.raw.num)
        return cookie, length if flags & WRITE else 0

    def mute(self) -> None:
        self.raw.driver_event = Event(0, 0, DISABLE)

    def unmute(self) -> bool:
        self.raw.driver_event = self.wish()
        return self.ready(used=True)


class LiteralPackedDevice(_End):
    def start(self) -> None:
        super().start()
        self.chains: dict[int, tuple[int, list[tuple[int, int, bool]]]] = {}  # id: descriptors, elements

    reset = start

    @property
    def held(self) -> int:
        return len(self.chains)

    def pop(self) -> int | None:
        if not self.ready(used=False):
            return None
        elements = []
        place, descriptors, more = self.take, 0, True
        while more:
            addr, length, id_, flags = self.raw.desc(place.slot)
            place, descriptors, more = place.after(1, self.raw.num), descriptors + 1, bool(flags & NEXT)
            if flags & INDIRECT:
                table = [self.raw.desc(k, addr) for k in range(length // 16)]
                elements += [(addr, length, bool(flags & WRITE)) for addr, length, _, flags in table]
            else:
                elements.append((addr, length, bool(flags & WRITE)))
        self.chains[id_] = descriptors, elements
        self.take = place
        return id_

    def chain(self, head: int) -> list[tuple[memoryview, bool]]:
        return [(self.raw.memory[addr : addr + n], writable) for addr, n, writable in self.chains[head][1]]

    def read(self, head: int) -> bytes:
        return b"".join(bytes(view) for view, writable in self.chain(head) if not writable)

    def write(self, head: int, data: bytes) -> int:
        left = data
        for view, writable in self.chain(head):
            if writable:
                n = min(len(view), len(left))
                view[:n] = left[:n]
                left = left[n:]
        return len(data) - len(left)

    def push(self, head: int, length: int = 0) -> None:
        descriptors, _ = self.chains.pop(head)
        flags = marks(self.give.wrap, used=True) | NEXT | (WRITE if length else 0)
        self.put(self.give, RUBBISH_ADDR, length or 0xBADBAD, head, flags)
        self.give = self.give.after(descriptors, self.raw.num)

    def publish(self) -> bool:
        return self.show(self.raw.driver_event)

    def mute(self) -> None:
        self.raw.device_event = Event(0, 0, DISABLE)

    def unmute(self) -> bool:
        self.raw.device_event = self.wish()
        return self.ready(used=False)
