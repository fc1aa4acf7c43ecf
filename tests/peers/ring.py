# SPDX-License-Identifier: BSD-3-Clause
"""A split ring from one side, and everything about it that the other side can get wrong. [virtio 2.7]

Legacy layout and byte order, since 32 feature bits cannot hold VERSION_1. 16-bit indices are read and written in one
access each, in program order, which CPython and x86's memory order keep.
"""

from __future__ import annotations

import struct
import time

from .habits import Habits
from .layout import BUFFER, F_EVENT_IDX, F_INDIRECT, INDIRECT_ROOM, Bell, SharedFile, ring_parts
from .message import HEADER_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .message import Bad, Odd

MAX_PAYLOAD = BUFFER - HEADER_SIZE
DESC = struct.Struct("=QIHH")  # [virtio 2.7.5] addr, len, flags, next
NEXT, WRITE, INDIRECT = 1, 2, 4
USED_ELEM = struct.Struct("=II")  # [virtio 2.7.8] id, len
NO_SIGNAL = 1  # [virtio 2.7.7, 2.7.10] avail.flags NO_INTERRUPT, used.flags NO_NOTIFY

Segments = list[tuple[int, int]]  # (offset in the file, bytes), in chain order


def size_of(segments: Segments) -> int:
    return sum(size for _, size in segments)


class Context:
    """What both rings of an end share. `odd` is `bad` unless the rule is tolerated; `features` were accepted."""

    def __init__(
        self, file: SharedFile, bell: Bell, habits: Habits, tolerate: frozenset[str], bad: Bad, odd: Odd
    ) -> None:
        self.file, self.bell, self.habits = file, bell, habits
        self.tolerate, self.bad, self.odd = tolerate, bad, odd
        self.features = 0
        self.reserved_written = 0  # buffers that came back with another hdr.reserved

    @property
    def event_idx(self) -> bool:
        return bool(self.features & F_EVENT_IDX) and not self.habits.ignore_event_idx


class Queue:
    """One vring from one side: where its parts lie, what we wrote to ours, who must signal whom.

    Offsets in the file: descriptors at da, 16 bytes each; avail behind them: flags u16, idx u16, ring u16[num],
    used_event u16; padding up to align; used: flags u16, idx u16, {id u32, len u32}[num], avail_event u16.
    """

    SIGNAL_RULES = ("", "")  # what the other side breaks when it does not signal us: by flags, by EVENT_IDX

    def __init__(self, context: Context, index: int) -> None:
        self.context = context
        self.name = f"vring{index}"
        self.desc, align, self.num = context.file.vrings[index]
        self.avail, self.used, self.end = ring_parts(self.desc, align, self.num)
        self.used_event = self.avail + 4 + 2 * self.num
        self.avail_event = self.used + 4 + 8 * self.num
        self.mm, self.mem, self.u16 = context.file.mm, context.file.mem, context.file.u16
        self.seen = 0  # the other side's index, up to which we looked
        self.idx = 0  # our own index; never read back
        self.pending = 0  # entries behind it that flush() will expose
        self.wanted = True  # we want to be signalled
        self.armed = False  # ... and anything exposed after our last look must be
        self.owed_since: float | None = None  # a look found what no doorbell byte had announced
        # Own flags, the event of ours, the other side's flags, its event: set by the side's class.
        self.my_flags = self.my_event = self.their_flags = self.their_event = 0

    def own(self, low: int, high: int) -> None:
        """mem[low:high] is ours to write; a copy of it stays in private memory."""
        self.low, self.high = low, high
        self.shadow = bytearray(self.mem[low:high])

    def write(self, offset: int, data: bytes) -> None:
        self.shadow[offset - self.low : offset - self.low + len(data)] = data
        self.mem[offset : offset + len(data)] = data

    def write16(self, offset: int, value: int) -> None:
        struct.pack_into("=H", self.shadow, offset - self.low, value)
        self.u16[offset >> 1] = value

    def check_own(self) -> None:
        """Whoever else writes into our part of the ring breaks it."""
        found = self.mm[self.low : self.high]
        if found == self.shadow:
            return
        at = next(i for i, (a, b) in enumerate(zip(found, self.shadow, strict=True)) if a != b) + self.low
        rule = "2.7.5.1-3" if at < self.avail else "avail.ring" if at < self.used else "used.ring"
        self.bad(
            rule,
            f"the other side wrote byte {at:#x}: {found[at - self.low]:#x}, ours was {self.shadow[at - self.low]:#x}",
        )

    def bad(self, rule: str, text: str) -> NoReturn:
        self.context.bad(rule, f"{self.name}: {text}")

    def odd(self, rule: str, text: str) -> None:
        self.context.odd(rule, f"{self.name}: {text}")

    def check_their_flags(self, rule: str, event_rule: str) -> None:
        flags = self.u16[self.their_flags >> 1]
        with_events = self.context.features & F_EVENT_IDX
        if flags > 1:
            self.bad(event_rule if with_events else rule, f"flags are {flags:#x}: neither 0 nor 1")
        if flags and with_events:
            self.odd(event_rule, f"flags are {flags:#x} with EVENT_IDX, where they must be 0")

    def want(self, wanted: bool) -> None:
        """Ask to be signalled or not. What is exposed before the next look may still go unsignalled."""
        self.wanted = wanted
        self.armed = False
        if self.context.event_idx:
            self.write_event()
        else:
            self.write16(self.my_flags, 0 if wanted else NO_SIGNAL)
        self.context.bell.fence()

    def write_event(self) -> None:
        # [virtio 2.7.7.2-5, 2.7.10.1-6] The slot whose filling must be signalled: the next, or the farthest.
        self.write16(self.my_event, self.seen if self.wanted else self.seen - 1 & 0xFFFF)

    def looked(self, found: int, paid: bool) -> None:
        """Bookkeeping after a look that found `found` new entries; `paid`: a doorbell byte came before it."""
        if found and self.armed and not paid and self.owed_since is None:
            self.owed_since = time.monotonic()
        if self.context.event_idx:
            if found:
                self.write_event()
                self.context.bell.fence()
            self.armed = self.wanted and not found  # one more look, or the event came too late
        else:
            self.armed = self.wanted

    def check_owed(self, rang: bool, checked: bool, wait: float) -> None:
        """A doorbell byte may come late, but not later than `wait` seconds."""
        if self.owed_since is None:
            return
        if rang or not checked:
            self.owed_since = None
        elif time.monotonic() > self.owed_since + wait and not self.context.bell.gone:
            self.bad(
                self.SIGNAL_RULES[self.context.event_idx],
                f"no doorbell byte within {wait} s of what it should announce",
            )

    def flush(self) -> None:
        """Expose what is pending with one store of the index; ring the bell if the other side wants it."""
        count, self.pending = self.pending, 0
        if not count:
            return
        old = self.idx
        self.idx = new = old + count & 0xFFFF
        self.write16(self.my_flags + 2, new)  # idx follows flags in both rings
        bell = self.context.bell
        bell.fence()  # [virtio 2.7.13.4.1-1]
        if self.context.habits.kick_always:
            bell.ring()
        elif self.context.event_idx:
            event = self.u16[self.their_event >> 1]
            if (new - event - 1 & 0xFFFF) < (new - old & 0xFFFF):
                bell.ring()
        elif not self.u16[self.their_flags >> 1] & NO_SIGNAL:
            bell.ring()

    def gather(self, segments: Segments, length: int) -> bytes:
        """The first `length` bytes of a buffer."""
        address, size = segments[0]
        if length <= size:
            return self.mm[address : address + length]
        return b"".join([self.mm[a : a + n] for a, n in segments])[:length]

    def scatter(self, segments: Segments, data: bytes) -> None:
        done = 0
        for address, size in segments:
            part = data[done : done + size]
            self.mem[address : address + len(part)] = part
            done += len(part)


class DriverQueue(Queue):
    """The driver owns descriptors and the available ring. [virtio 2.7.5, 2.7.6]

    One buffer for each head; with `split` header and payload lie in two buffers under one chain, so only half
    of the descriptors are heads; with `indirect` the chain stands in a table of two descriptors in shared
    memory; with both, every odd head has the header in a direct descriptor and the rest behind an INDIRECT
    one (2.7.5.3.2-2).
    """

    SIGNAL_RULES = ("2.7.7.2-3", "2.7.7.2-5")

    def __init__(self, context: Context, index: int, *, base: int, tables: int) -> None:
        super().__init__(context, index)
        self.my_flags, self.their_flags = self.avail, self.used
        self.my_event, self.their_event = self.used_event, self.avail_event
        way = ("rx", "tx")[index]
        self.writable = way == "rx"
        self.split, self.indirect = way in context.habits.split, way in context.habits.indirect
        self.base, self.tables = base, tables
        # The whole ring is zeroed [openamp]; used.flags must be (2.7.10.1-1).
        self.mem[self.desc : self.end] = bytes(self.end - self.desc)
        self.own(self.desc, self.avail + 6 + 2 * self.num)
        heads = self.num // 2 if self.split else self.num
        if not heads:
            raise ValueError(f"{self.name}: 1 descriptor cannot be split")
        self.buffers: list[Segments] = [self._buffer(i) for i in range(heads)]
        self.outstanding: dict[int, tuple[Segments, bytes]] = {}  # head: what was exposed, the bytes in it
        self.in_table: dict[int, bytes] = {}  # head: what stands in its indirect table
        self.fresh = list(range(heads))  # never used
        self.recycled: list[int] = []  # in the order in which the used ring gave them back

    def _buffer(self, head: int) -> Segments:
        address = self.base + head * BUFFER
        if not self.split:
            return [(address, BUFFER)]
        return [(address, HEADER_SIZE), (self.base + (self.num // 2 + head) * BUFFER, MAX_PAYLOAD)]

    def take(self) -> int | None:
        """A buffer to send in: [linux] each one once, then used ones; [openamp] a used one if there is one."""
        first, second = self.fresh, self.recycled
        if self.context.habits.recycle_first:
            first, second = second, first
        return first.pop(0) if first else second.pop(0) if second else None

    def write_chain(self, head: int, segments: Segments) -> None:
        """Write the descriptors of `segments` (one or two of them) with `head` as the first."""
        flags = WRITE if self.writable or self.context.habits.write_flags else 0
        direct = [*segments]
        behind: Segments = []
        if self.indirect:
            # The header direct and the payload indirect, or all of it indirect.
            keep = 1 if len(segments) == 2 and head & 1 else 0
            direct, behind = segments[:keep], segments[keep:]
        entries = [(address, size, flags) for address, size in direct]
        if behind:
            table = self.tables + head * INDIRECT_ROOM
            more = len(behind) - 1
            self.in_table[head] = raw = b"".join(
                DESC.pack(address, size, flags | (NEXT if i < more else 0), i + 1 if i < more else 0)
                for i, (address, size) in enumerate(behind)
            )
            self.mem[table : table + len(raw)] = raw
            # [virtio 2.7.5.3.2-1] WRITE means nothing here.
            entries.append((table, 16 * len(behind), INDIRECT | (WRITE if self.context.habits.write_flags else 0)))
        second = self.num // 2 + head
        for i, (address, size, flag) in enumerate(entries):
            last = i + 1 == len(entries)
            at = self.desc + 16 * (second if i else head)
            self.write(at, DESC.pack(address, size, flag | (0 if last else NEXT), 0 if last else second))

    def expose(self, head: int, segments: Segments) -> None:
        """Put `head` into the next slot of the available ring; flush() makes it visible."""
        slot = self.idx + self.pending & self.num - 1
        self.write16(self.avail + 4 + 2 * slot, head)
        # What the device may not write is kept, to be compared when it comes back (2.7.5.1-1).
        kept = b"" if self.writable else self.gather(self.buffers[head], BUFFER)
        self.outstanding[head] = segments, kept
        self.pending += 1

    def post_all(self) -> None:
        """Post every buffer, and ring nobody: this is before DRIVER_OK (3.1.1-5)."""
        for head in self.fresh:
            self.write_chain(head, self.buffers[head])
            self.expose(head, self.buffers[head])
        self.fresh.clear()
        self.idx, self.pending = self.pending, 0
        self.write16(self.avail + 2, self.idx)

    def repost(self, head: int, segments: Segments, length: int) -> None:
        if self.context.habits.repost_used_length and not self.split:
            segments = [(segments[0][0], length)]
            self.write_chain(head, segments)
        self.expose(head, segments)

    def send(self, message: bytes) -> bool:
        """False, and nothing is done, where there is no buffer."""
        head = self.take()
        if head is None:
            return False
        segments = self.buffers[head]
        if self.context.habits.reserved_garbage:
            message = message[:8] + struct.pack("=I", head << 16 & 0xFFFFFFFF) + message[12:]
        self.scatter(segments, message)
        if not self.context.habits.whole_lengths:  # [linux] the message's; a descriptor of length 0 is none
            left, exact = len(message), []
            for address, size in segments:
                if left:
                    exact.append((address, min(left, size)))
                left = max(left - size, 0)
            segments = exact
        self.write_chain(head, segments)
        self.expose(head, segments)
        self.flush()
        return True

    def prefill(self) -> None:
        """[lite] The driver itself puts all its tx buffers into the used ring, and takes them from there."""
        for i, head in enumerate(self.fresh):
            self.write_chain(head, self.buffers[head])
            entry = USED_ELEM.pack(head, size_of(self.buffers[head]))
            self.mem[self.used + 4 + 8 * i : self.used + 12 + 8 * i] = entry
        self.seen = len(self.fresh)
        self.u16[self.used + 2 >> 1] = self.seen

    def look(self, paid: bool) -> list[tuple[int, Segments, int]]:
        """The buffers that the device used since the last look: (head, segments, used length)."""
        self.check_own()
        self.check_their_flags("2.7.10.2-1", "2.7.10.2-2")
        idx = self.u16[self.used + 2 >> 1]
        count = idx - self.seen & 0xFFFF
        if count > len(self.outstanding):
            self.bad("used.idx", f"went from {self.seen} to {idx} with {len(self.outstanding)} buffers outstanding")
        taken = []
        for i in range(count):
            slot = self.seen + i & self.num - 1
            head, length = USED_ELEM.unpack_from(self.mem, self.used + 4 + 8 * slot)
            exposed = self.outstanding.pop(head, None)
            if exposed is None:
                self.bad("used.ring", f"slot {slot}: id {head} is not outstanding")
            segments, kept = exposed
            self._check_used(head, segments, kept, length)
            taken.append((head, segments, length))
        self.seen = idx
        self.looked(count, paid)
        return taken

    def _check_used(self, head: int, segments: Segments, kept: bytes, length: int) -> None:
        room = size_of(segments)
        if length > room:
            self.bad("2.7.8.3-1", f"id {head}: used.len {length} in a buffer of {room}")
        table = self.tables + head * INDIRECT_ROOM
        raw = self.in_table.get(head, b"")
        if self.mm[table : table + len(raw)] != raw:
            self.bad("2.7.5.1-3", f"id {head}: the device wrote into an indirect table")
        if self.writable:
            return
        # The rule wants 0; [openamp, lite] the length of the descriptors, of which OpenAMP's driver makes its room.
        must = room if "2.7.8.2-2" in self.context.tolerate else 0
        if length != must:
            self.bad("2.7.8.2-2", f"id {head}: used.len {length} for what only the driver writes, must be {must}")
        found = self.gather(self.buffers[head], BUFFER)
        if found[:8] != kept[:8] or found[12:] != kept[12:]:
            # [openamp] The receiver writes hdr.reserved, bytes 8 to 12, also here; nothing else.
            differ = (i for i, (a, b) in enumerate(zip(found, kept, strict=True)) if a != b and not 8 <= i < 12)
            self.bad("2.7.5.1-1", f"id {head}: the device wrote byte {next(differ)} of a buffer that is not writable")
        self.context.reserved_written += found != kept


class Chain:
    """What one available entry leads to."""

    __slots__ = ("entries", "head", "readable", "tables", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: Segments = []
        self.writable: Segments = []
        self.tables: Segments = []  # indirect tables
        self.entries: list[tuple[int, bytes]] = []  # descriptors as they stood: offset, 16 bytes


class DeviceQueue(Queue):
    """The device owns the used ring. [virtio 2.7.8]"""

    SIGNAL_RULES = ("2.7.10.1-4", "2.7.10.1-6")

    def __init__(self, context: Context, index: int) -> None:
        super().__init__(context, index)
        self.my_flags, self.their_flags = self.used, self.avail
        self.my_event, self.their_event = self.avail_event, self.used_event
        self.own(self.used, self.end)
        flags, self.idx = self.u16[self.used >> 1], self.u16[self.used + 2 >> 1]
        if flags:
            self.bad("2.7.10.1-1", f"used.flags are {flags:#x} at DRIVER_OK")
        if self.idx:
            self._check_prefilled(index)
        self.ready: list[Chain] = []  # taken from the available ring, not used yet
        self.heads: set[int] = set()  # of those
        self.posted = 0  # buffers that the driver posted at first

    def _check_prefilled(self, index: int) -> None:
        """[lite] The driver's tx buffers, in order, with all of their length; it may have sent some of them by now."""
        if index != 1 or self.idx > self.num:
            self.bad("used.idx", f"is {self.idx} at DRIVER_OK")
        self.odd("used-prefilled", f"used.idx is {self.idx} at DRIVER_OK")
        for i in range(self.idx):
            head, length = USED_ELEM.unpack_from(self.mm, self.used + 4 + 8 * i)
            if (head, length) != (i, BUFFER):
                self.bad("used.ring", f"slot {i}: id {head} of {length} bytes, must be {i} of {BUFFER}")

    def look(self, paid: bool) -> int:
        """Take what the driver exposed since the last look into .ready; how many."""
        self.check_own()
        self.check_their_flags("2.7.7.1-1", "2.7.7.1-2")
        idx = self.u16[self.avail + 2 >> 1]
        count = idx - self.seen & 0xFFFF
        if count > self.num - len(self.ready):
            back = count >= 0x8000
            self.bad(
                "2.7.6.1-1" if back else "avail.idx",
                f"went from {self.seen} to {idx} with {len(self.ready)} of {self.num} outstanding",
            )
        for i in range(count):
            slot = self.seen + i & self.num - 1
            head = self.u16[self.avail + 4 + 2 * slot >> 1]
            if head >= self.num:
                self.bad("avail.ring", f"slot {slot}: head {head} of {self.num} descriptors")
            if head in self.heads:
                self.bad("avail.ring", f"slot {slot}: head {head} is outstanding already")
            self.ready.append(self.walk(head))
            self.heads.add(head)
        self.seen = idx
        self.looked(count, paid)
        return count

    def walk(self, head: int) -> Chain:
        """Read the chain at `head`, each descriptor once, and check all that the driver must obey."""
        chain = Chain(head)
        file = self.context.file
        table, limit, i, inner, elements = self.desc, self.num, head, False, 0
        while True:
            at = table + 16 * i
            raw = self.mm[at : at + 16]
            if any(at == offset for offset, _ in chain.entries):
                self.bad("2.7.5.2-1", f"head {head}: the chain loops at descriptor {i}")
            chain.entries.append((at, raw))
            address, length, flags, following = DESC.unpack(raw)
            where = f"{self.name}: head {head}, descriptor {i}{' of the indirect table' if inner else ''}"
            if flags & ~(NEXT | WRITE | INDIRECT):
                self.context.bad("desc.flags", f"{where}: flags {flags:#x}")
            if flags & INDIRECT:
                if inner:
                    self.context.bad("2.7.5.3.1-2", f"{where}: INDIRECT inside an indirect table")
                if not self.context.features & F_INDIRECT:
                    self.context.bad("2.7.5.3.1-1", f"{where}: INDIRECT was not negotiated")
                if flags & NEXT:
                    self.context.bad("2.7.5.3.1-4", f"{where}: INDIRECT together with NEXT")
                if not length or length % 16:
                    self.context.bad("desc.len", f"{where}: an indirect table of {length} bytes")
                file.lend(where, address, length)
                chain.tables.append((address, length))
                table, limit, i, inner = address, length // 16, 0, True
                continue
            elements += 1
            if elements > self.num:
                self.bad("2.7.5.3.1-3", f"head {head}: more than {self.num} elements")
            if not length:
                self.context.bad("desc.len", f"{where}: length 0")
            file.lend(where, address, length)
            if flags & WRITE:
                chain.writable.append((address, length))
            else:
                if chain.writable:
                    self.context.bad("2.7.4.2-1", f"{where}: device-readable after device-writable")
                chain.readable.append((address, length))
            if not flags & NEXT:
                return chain
            if following >= limit:
                self.context.bad("desc.next", f"{where}: next is {following} of {limit}")
            i = following

    def check_writable(self, chains: list[Chain]) -> None:
        """These can hold a message."""
        for chain in chains:
            if chain.readable:
                self.bad("2.7.5.1-1", f"head {chain.head}: the driver posted a buffer that the device may not write")
            if size_of(chain.writable) < HEADER_SIZE:
                self.bad("desc.len", f"head {chain.head}: {size_of(chain.writable)} bytes have no room for a header")

    def send(self, message: bytes) -> bool:
        """False, and nothing is done, where there is no buffer."""
        if not self.ready:
            return False
        chain = self.ready.pop(0)
        room = size_of(chain.writable)
        if room < len(message):
            raise ValueError(f"a message of {len(message)} bytes for a buffer of {room}")
        if self.context.habits.reserved_garbage:
            message = message[:8] + struct.pack("=I", chain.head << 16) + message[12:]
        self.scatter(chain.writable, message)
        self.put(chain, room if self.context.habits.whole_lengths else len(message))
        self.flush()
        return True

    def put(self, chain: Chain, length: int) -> None:
        """Write a used entry for `chain`; flush() makes it visible."""
        for at, raw in chain.entries:
            if self.mm[at : at + 16] != raw:
                self.bad("3.3.1-1", f"head {chain.head}: the descriptor at {at:#x} changed while the device had it")
        for address, size in (*chain.readable, *chain.writable, *chain.tables):
            self.context.file.give_back(address, size)
        self.heads.remove(chain.head)
        slot = self.idx + self.pending & self.num - 1
        self.write(self.used + 4 + 8 * slot, USED_ELEM.pack(chain.head, length))
        self.pending += 1
