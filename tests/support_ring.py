"""The split virtqueue once more, literally after VIRTIO 1.2, 2.7, with `struct`: an opposite for our own.

Names and results follow DriverQueue and DeviceQueue; nothing is checked: a hostile peer is made of the
same parts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from typing_extensions import Buffer

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = NO_NOTIFY = 1


def in_steps(event: int, old: int, new: int) -> bool:
    """Does the 16-bit index pass `event` on its way from `old` to `new`? Literally, entry by entry."""
    while old != new:
        if old == event:
            return True
        old = (old + 1) & 0xFFFF
    return False


def field(part: str, offset: Callable[[int], int]) -> Any:
    """A 16-bit field of a part of the ring, as a property."""

    def get(self: RawRing) -> int:
        return int(self.get("H", getattr(self, part) + offset(self.num))[0])

    def put(self: RawRing, value: int) -> None:
        self.put("H", getattr(self, part) + offset(self.num), value)

    return property(get, put)


class RawRing:
    """Every field of a ring in `buffer`, by name, read and written where it lies."""

    def __init__(
        self,
        buffer: Buffer,
        num: int,
        *,
        align: int = 4096,
        parts: tuple[int, int, int] | None = None,
        offset: int = 0,
        version_1: bool = False,
    ) -> None:
        self.memory = memoryview(buffer)
        self.num = num
        self.order = "<" if version_1 else "="
        legacy = (0, 16 * num, -(-(16 * num + 6 + 2 * num) // align) * align)
        self.desc_at, self.avail_at, self.used_at = (offset + part for part in parts or legacy)

    def get(self, code: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(self.order + code, self.memory, at)

    def put(self, code: str, at: int, *values: int) -> None:
        struct.pack_into(self.order + code, self.memory, at, *values)

    def desc(self, i: int, table: int | None = None) -> tuple[int, int, int, int]:
        """addr, len, flags, next"""
        return self.get("QIHH", (self.desc_at if table is None else table) + 16 * i)

    def set_desc(
        self, i: int, addr: int, length: int, flags: int = 0, next_: int = 0, *, table: int | None = None
    ) -> None:
        self.put("QIHH", (self.desc_at if table is None else table) + 16 * i, addr, length, flags, next_)

    def avail_entry(self, idx: int) -> int:
        return int(self.get("H", self.avail_at + 4 + 2 * (idx % self.num))[0])

    def set_avail_entry(self, idx: int, head: int) -> None:
        self.put("H", self.avail_at + 4 + 2 * (idx % self.num), head)

    def used_entry(self, idx: int) -> tuple[int, int]:
        """id, len"""
        return self.get("II", self.used_at + 4 + 8 * (idx % self.num))

    def set_used_entry(self, idx: int, head: int, length: int) -> None:
        self.put("II", self.used_at + 4 + 8 * (idx % self.num), head, length)

    avail_flags = field("avail_at", lambda num: 0)
    avail_idx = field("avail_at", lambda num: 2)
    used_event = field("avail_at", lambda num: 4 + 2 * num)
    used_flags = field("used_at", lambda num: 0)
    used_idx = field("used_at", lambda num: 2)
    avail_event = field("used_at", lambda num: 4 + 8 * num)

    def bytes(self) -> tuple[bytes, bytes, bytes]:
        """Descriptor table, avail ring and used ring as they are."""
        num = self.num
        ends = ((self.desc_at, 16 * num), (self.avail_at, 6 + 2 * num), (self.used_at, 6 + 8 * num))
        return tuple(bytes(self.memory[at : at + size]) for at, size in ends)  # type: ignore[return-value]


class LiteralDriver:
    def __init__(
        self,
        buffer: Buffer,
        num: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        start: int = 0,
        **layout: Any,
    ) -> None:
        self.raw = RawRing(buffer, num, **layout)
        self.event_idx, self.start = event_idx, start
        self.reset()

    def reset(self) -> None:
        raw = self.raw
        for at, part in zip((raw.desc_at, raw.avail_at, raw.used_at), raw.bytes(), strict=True):
            raw.memory[at : at + len(part)] = bytes(len(part))
        raw.avail_idx = raw.used_idx = raw.used_event = raw.avail_event = self.start
        self.free = list(range(raw.num))
        self.chains: dict[int, tuple[int, list[int]]] = {}
        self.next = self.published = self.last_used = self.start
        self.muted = False

    @property
    def num_free(self) -> int:
        return len(self.free)

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
        taken = [self.free.pop() for _ in range(1 if table else len(elements))]
        places = list(range(len(elements))) if table else taken
        for k, (addr, length, flags) in enumerate(elements):
            more = k + 1 < len(elements)
            self.raw.set_desc(
                places[k], addr, length, flags | more * NEXT, places[k + 1] if more else 0,
                table=table[0] if table else None,
            )  # fmt: skip
        if table:
            self.raw.set_desc(taken[0], table[1], 16 * len(elements), INDIRECT)
        self.chains[taken[0]] = cookie, taken
        self.raw.set_avail_entry(self.next, taken[0])
        self.next = (self.next + 1) & 0xFFFF

    def publish(self) -> bool:
        old, self.published = self.published, self.next
        self.raw.avail_idx = self.next
        if self.event_idx:
            return in_steps(self.raw.avail_event, old, self.next)
        return old != self.next and not self.raw.used_flags & NO_NOTIFY

    def get(self) -> tuple[int, int] | None:
        if self.raw.used_idx == self.last_used:
            return None
        head, length = self.raw.used_entry(self.last_used)
        self.last_used = (self.last_used + 1) & 0xFFFF
        cookie, taken = self.chains.pop(head)
        self.free += taken
        return cookie, length

    def mute(self) -> None:
        if self.event_idx:
            if not self.muted:
                self.raw.used_event = (self.last_used - 1) & 0xFFFF
        else:
            self.raw.avail_flags = NO_INTERRUPT
        self.muted = True

    def unmute(self) -> bool:
        if self.event_idx:
            self.raw.used_event = self.last_used
        else:
            self.raw.avail_flags = 0
        self.muted = False
        return bool(self.raw.used_idx != self.last_used)


class LiteralDevice:
    def __init__(
        self,
        buffer: Buffer,
        num: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        avail_idx: int = 0,
        used_idx: int = 0,
        **layout: Any,
    ) -> None:
        self.raw = RawRing(buffer, num, **layout)
        self.event_idx = event_idx
        self.last_avail, self.next, self.published = avail_idx, used_idx, used_idx
        self.muted = False
        self.held = 0

    def reset(self) -> None:
        self.last_avail = self.next = self.published = 0
        self.muted = False
        self.held = 0

    def pop(self) -> int | None:
        if self.raw.avail_idx == self.last_avail:
            return None
        head = self.raw.avail_entry(self.last_avail)
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        self.held += 1
        return head

    def segments(self, head: int) -> list[tuple[int, int, bool]]:
        """(addr, len, writable) of each element."""
        found = []
        table, i = None, head
        while True:
            addr, length, flags, next_ = self.raw.desc(i, table)
            if flags & INDIRECT:
                table, i = addr, 0
                continue
            found.append((addr, length, bool(flags & WRITE)))
            if not flags & NEXT:
                return found
            i = next_

    def chain(self, head: int) -> list[tuple[memoryview, bool]]:
        return [(self.raw.memory[addr : addr + n], writable) for addr, n, writable in self.segments(head)]

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
        self.raw.set_used_entry(self.next, head, length)
        self.next = (self.next + 1) & 0xFFFF
        self.held -= 1

    def publish(self) -> bool:
        old, self.published = self.published, self.next
        self.raw.used_idx = self.next
        if self.event_idx:
            return in_steps(self.raw.used_event, old, self.next)
        return old != self.next and not self.raw.avail_flags & NO_INTERRUPT

    def mute(self) -> None:
        if self.event_idx:
            if not self.muted:
                self.raw.avail_event = (self.last_avail - 1) & 0xFFFF
        else:
            self.raw.used_flags = NO_NOTIFY
        self.muted = True

    def unmute(self) -> bool:
        if self.event_idx:
            self.raw.avail_event = self.last_avail
        else:
            self.raw.used_flags = 0
        self.muted = False
        return bool(self.raw.avail_idx != self.last_avail)
