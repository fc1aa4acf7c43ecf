# SPDX-License-Identifier: BSD-3-Clause
"""An rpmsg end that takes every written fact literally and believes nothing that it reads.

It speaks OpenAMP's layout: one shared file with the resource table at offset 0, two split rings and the
buffers, and a doorbell that is one byte on an AF_UNIX stream socket. It shares no code with rpmsgx, so it can
check rpmsgx's bytes from outside. By default it behaves as Linux does (status 7, exact lengths); options
("traps") turn on, one by one, what OpenAMP, rpmsg-lite and Linux do otherwise; OPENAMP and RPMSG_LITE are
sets of them.

Everything wrong that it sees raises Violation with the rule: an id of docs/conformance.md, or where virtio
has no rule the place where the wrong bytes stood:

    file, resource-table        the shared file and its table
    avail.idx, avail.ring       an index that jumped; a head out of range or exposed twice; device wrote it
    used.idx, used.ring         likewise; an id that is not outstanding; driver wrote it
    used.len                    shorter than a header
    desc.addr, desc.len, desc.next, desc.flags
    rpmsg-header                src, dst, reserved, len or flags of a message
    rpmsg-length                used.len or desc.len is not what `peer_lengths` says
    rpmsg-ns, rpmsg-ns-padding  name service; bytes after the NUL of a name that are not zero
    used-prefilled              the driver filled its tx used ring itself

Sources of the facts: [virtio] split rings, chapter 2.7, legacy layout and byte order, since 32 feature bits
cannot hold VERSION_1; [openamp] OpenAMP's Linux "generic" machine; [linux] virtio_rpmsg_bus.c; [lite]
rpmsg-lite's master.

Single-threaded: one LiteralPeer belongs to one thread. Every wait is bounded and sleeps in poll() on the
doorbell. Byte order is the machine's (legacy). 16-bit indices are read and written in one access each, in
program order, which CPython and x86's memory order keep; the one full barrier that a ring needs is a system
call that drops the GIL.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# [openamp] The shared file.
FILE_SIZE = 0x80000
FILE_MODE = 0o600
VRING_DA = (0x4000, 0x8000)  # vring0: device to driver; vring1: driver to device
VRING_ALIGN = 0x1000
POOL = 0x10000  # driver rx buffers, then its tx buffers
BUFFER = 512  # [linux], [openamp]: 16 of header and 496 of payload
HEADER_SIZE = 16
MAX_PAYLOAD = BUFFER - HEADER_SIZE

# [openamp] Resource table, 88 bytes, one vdev with two vrings:
#  0x00 ver  0x04 num  0x08 reserved[2]  0x10 offset[0]
#  0x14 type  0x18 id  0x1c notifyid  0x20 dfeatures  0x24 gfeatures  0x28 config_len
#  0x2c status (u8)  0x2d num_of_vrings (u8)  0x2e reserved[2]
#  0x30, 0x44 vring: da, align, num, notifyid, pa
TABLE = struct.Struct("=5I6IBBH5I5I")
TABLE_SIZE = 88
VDEV_OFFSET = 0x14
RSC_VDEV = 3
ID_RPMSG = 7  # virtio device id
GFEATURES = 0x24
STATUS = 0x2C
assert TABLE.size == TABLE_SIZE

# [virtio 2.1] device status
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80

# Features that fit 32 bits: [linux] VIRTIO_RPMSG_F_NS, [virtio 6] the two of rings.
F_NS = 1 << 0
F_INDIRECT = 1 << 28
F_EVENT_IDX = 1 << 29
KNOWN_FEATURES = F_NS | F_INDIRECT | F_EVENT_IDX

# [virtio 2.7.5] struct virtq_desc { u64 addr; u32 len; u16 flags; u16 next; }
DESC = struct.Struct("=QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
# [virtio 2.7.8] struct virtq_used_elem { u32 id; u32 len; }
USED_ELEM = struct.Struct("=II")
NO_SIGNAL = 1  # [virtio 2.7.7, 2.7.10] avail.flags NO_INTERRUPT, used.flags NO_NOTIFY

# [linux] struct rpmsg_hdr { u32 src, dst, reserved; u16 len, flags; }
HEADER = struct.Struct("=IIIHH")
# [linux] struct rpmsg_ns_msg { char name[32]; u32 addr; u32 flags; }, to address 53
NS_MESSAGE = struct.Struct("=32sII")
NS_ADDR = 53
NS_CREATE, NS_DESTROY = 0, 1
ADDR_ANY = 0xFFFFFFFF
FIRST_ADDR = 1024  # first dynamic address everywhere

# What each peer does on the wire: keyword arguments of LiteralPeer that imitate it ...
OPENAMP: dict[str, object] = {
    "whole_lengths": True,
    "name_garbage": True,
    "write_reserved": True,
    "driver_ok_alone": True,
    "early_kick": True,
    "reset_status": NEEDS_RESET,
}
RPMSG_LITE: dict[str, object] = {
    "whole_lengths": True,
    "write_reserved": True,
    "write_flags": True,
    "prefill": True,
    "kick_always": True,
}
# ... and the rules that it breaks, to be tolerated by whoever talks to it.
TOLERATE_OPENAMP = frozenset({"2.1.1-1", "2.7.8.2-2", "3.1.1-5", "rpmsg-ns-padding"})
TOLERATE_RPMSG_LITE = frozenset({"2.7.5.1-2", "2.7.8.2-2", "used-prefilled"})
TOLERABLE = TOLERATE_OPENAMP | TOLERATE_RPMSG_LITE | {"2.7.7.1-2", "2.7.10.2-2"}

Segments = list[tuple[int, int]]  # (offset in the file, bytes), in chain order
Message = tuple[int, int, bytes]  # src, dst, payload


class Violation(AssertionError):
    """The other end broke a rule; `.rule` names it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class _Queue:
    """One vring from one side: where its parts lie, what we wrote to ours, who must signal whom.

    Offsets in the file, [virtio 2.7.2-2]: descriptors at da, 16 bytes each; avail behind them: flags u16, idx
    u16, ring u16[num], used_event u16; padding up to align; used: flags u16, idx u16, {id u32, len u32}[num],
    avail_event u16.
    """

    SIGNAL_RULES = ("", "")  # what the other side breaks when it does not signal us: by flags, by EVENT_IDX

    def __init__(self, peer: LiteralPeer, index: int) -> None:
        self.peer = peer
        self.name = f"vring{index}"
        self.desc, align, self.num = peer.vrings[index]
        self.avail = self.desc + 16 * self.num
        self.used = self.avail + 6 + 2 * self.num + align - 1 & ~(align - 1)
        self.end = self.used + 6 + 8 * self.num
        self.used_event = self.avail + 4 + 2 * self.num
        self.avail_event = self.used + 4 + 8 * self.num
        self.mem, self.u16 = peer.mem, peer.u16
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
        found = self.peer.mm[self.low : self.high]
        if found == self.shadow:
            return
        at = next(i for i, (a, b) in enumerate(zip(found, self.shadow, strict=True)) if a != b) + self.low
        rule = "2.7.5.1-3" if at < self.avail else "avail.ring" if at < self.used else "used.ring"
        self.bad(rule, f"the other side wrote byte {at:#x}: {found[at - self.low]:#x}, ours was "
                 f"{self.shadow[at - self.low]:#x}")  # fmt: skip

    def bad(self, rule: str, text: str) -> None:
        self.peer.bad(rule, f"{self.name}: {text}")

    def check_their_flags(self, rule: str, event_rule: str) -> None:
        flags = self.u16[self.their_flags >> 1]
        if flags and self.peer.gfeatures & F_EVENT_IDX:
            self.bad(event_rule, f"flags are {flags:#x} with EVENT_IDX, where they must be 0")
        elif flags > 1:
            self.bad(rule, f"flags are {flags:#x}: neither 0 nor 1")

    def want(self, wanted: bool) -> None:
        """Ask to be signalled or not. What is exposed before the next look may still go unsignalled."""
        self.wanted = wanted
        self.armed = False
        if self.peer.use_event_idx:
            self.write_event()
        else:
            self.write16(self.my_flags, 0 if wanted else NO_SIGNAL)
        self.peer.fence()

    def write_event(self) -> None:
        # [virtio 2.7.7.2-5, 2.7.10.1-6] The slot whose filling must be signalled: the next, or the farthest.
        self.write16(self.my_event, self.seen if self.wanted else self.seen - 1 & 0xFFFF)

    def looked(self, found: int, paid: bool) -> None:
        """Bookkeeping after a look that found `found` new entries; `paid`: a doorbell byte came before it."""
        if found and self.armed and not paid and self.owed_since is None:
            self.owed_since = time.monotonic()
        if self.peer.use_event_idx:
            if found:
                self.write_event()
                self.peer.fence()
            self.armed = self.wanted and not found  # one more look, or the event came too late
        else:
            self.armed = self.wanted

    def flush(self) -> None:
        """Expose what is pending with one store of the index; ring the bell if the other side wants it."""
        count, self.pending = self.pending, 0
        if not count:
            return
        old = self.idx
        self.idx = new = old + count & 0xFFFF
        self.write16(self.my_flags + 2, new)  # idx follows flags in both rings
        peer = self.peer
        if peer.kick_always:
            peer.kick()
            return
        peer.fence()  # [virtio 2.7.13.4.1-1]
        if peer.use_event_idx:
            event = self.u16[self.their_event >> 1]
            if (new - event - 1 & 0xFFFF) < (new - old & 0xFFFF):
                peer.kick()
        elif not self.u16[self.their_flags >> 1] & NO_SIGNAL:
            peer.kick()


class _DriverQueue(_Queue):
    """The driver owns descriptors and the available ring. [virtio 2.7.5, 2.7.6]

    One buffer for each head; with `split` header and payload lie in two buffers under one chain, so only half
    of the descriptors are heads; with `indirect` the chain stands in a table of two descriptors in shared
    memory; with both, every odd head has the header in a direct descriptor and the rest behind an INDIRECT
    one (2.7.5.3.2-2).
    """

    SIGNAL_RULES = ("2.7.7.2-3", "2.7.7.2-5")

    def __init__(
        self,
        peer: LiteralPeer,
        index: int,
        *,
        base: int,
        tables: int,
        writable: bool,
        split: bool,
        indirect: bool,
    ) -> None:
        super().__init__(peer, index)
        self.my_flags, self.their_flags = self.avail, self.used
        self.my_event, self.their_event = self.used_event, self.avail_event
        self.writable, self.split, self.indirect = writable, split, indirect
        self.base, self.tables = base, tables
        # The whole ring is zeroed [openamp]; used.flags must be (2.7.10.1-1).
        self.mem[self.desc : self.end] = bytes(self.end - self.desc)
        self.own(self.desc, self.avail + 6 + 2 * self.num)
        heads = self.num // 2 if split else self.num
        if not heads:
            raise ValueError(f"{self.name}: 1 descriptor cannot be split")
        self.buffers: list[Segments] = [self._buffer(i) for i in range(heads)]
        self.outstanding: dict[int, tuple[Segments, bytes]] = {}  # head: what was exposed, the bytes in it
        self.in_table: dict[int, bytes] = {}  # head: what stands in its indirect table
        self.free = list(range(heads))  # in order at first, then as the used ring gives them back [linux]

    def _buffer(self, head: int) -> Segments:
        address = self.base + head * BUFFER
        if not self.split:
            return [(address, BUFFER)]
        return [(address, HEADER_SIZE), (self.base + (self.num // 2 + head) * BUFFER, MAX_PAYLOAD)]

    def write_chain(self, head: int, segments: Segments) -> None:
        """Write the descriptors of `segments` (one or two of them) with `head` as the first."""
        flags = WRITE if self.writable or self.peer.write_flags else 0
        direct = [*segments]
        behind: Segments = []
        if self.indirect:
            # The header direct and the payload indirect, or all of it indirect.
            keep = 1 if len(segments) == 2 and head & 1 else 0
            direct, behind = segments[:keep], segments[keep:]
        entries = [(address, size, flags) for address, size in direct]
        if behind:
            table = self.tables + head * 32
            more = len(behind) - 1
            self.in_table[head] = raw = b"".join(
                DESC.pack(address, size, flags | (NEXT if i < more else 0), i + 1 if i < more else 0)
                for i, (address, size) in enumerate(behind)
            )
            self.mem[table : table + len(raw)] = raw
            # [virtio 2.7.5.3.2-1] WRITE means nothing here.
            entries.append((table, 16 * len(behind), INDIRECT | (WRITE if self.peer.write_flags else 0)))
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
        kept = b"" if self.writable else b"".join([self.peer.mm[a : a + n] for a, n in self.buffers[head]])
        self.outstanding[head] = segments, kept
        self.pending += 1

    def prefill(self) -> None:
        """[lite] The driver itself puts all its tx buffers into the used ring, and takes them from there."""
        for i, head in enumerate(self.free):
            self.write_chain(head, self.buffers[head])
            length = sum(n for _, n in self.buffers[head])
            self.mem[self.used + 4 + 8 * i : self.used + 12 + 8 * i] = USED_ELEM.pack(head, length)
        self.seen = len(self.free)
        self.u16[self.used + 2 >> 1] = self.seen

    def look(self, paid: bool) -> list[tuple[int, Segments, int]]:
        """The buffers that the device used since the last look: (head, segments, used length)."""
        self.check_own()
        self.check_their_flags("2.7.10.2-1", "2.7.10.2-2")
        idx = self.u16[self.used + 2 >> 1]
        count = idx - self.seen & 0xFFFF
        if count > len(self.outstanding):
            self.bad(
                "used.idx", f"went from {self.seen} to {idx} with {len(self.outstanding)} buffers outstanding"
            )
        taken = []
        for i in range(count):
            head, length = USED_ELEM.unpack_from(self.mem, self.used + 4 + 8 * (self.seen + i & self.num - 1))
            exposed = self.outstanding.pop(head, None)
            if exposed is None:
                self.bad("used.ring", f"slot {self.seen + i & self.num - 1}: id {head} is not outstanding")
                continue
            segments, kept = exposed
            self._check_used(head, segments, kept, length)
            taken.append((head, segments, length))
        self.seen = idx
        self.looked(count, paid)
        return taken

    def _check_used(self, head: int, segments: Segments, kept: bytes, length: int) -> None:
        room = sum(n for _, n in segments)
        if length > room:
            self.bad("2.7.8.3-1", f"id {head}: used.len {length} in a buffer of {room}")
        table = self.tables + head * 32
        raw = self.in_table.get(head, b"")
        if self.peer.mm[table : table + len(raw)] != raw:
            self.bad("2.7.5.1-3", f"id {head}: the device wrote into an indirect table")
        if self.writable:
            return
        if length:
            self.bad("2.7.8.2-2", f"id {head}: used.len {length}, but nothing in it was writable")
        found = b"".join([self.peer.mm[a : a + n] for a, n in self.buffers[head]])
        if found != kept:
            # [openamp] The receiver writes hdr.reserved, bytes 8 to 12, also here; nothing else.
            if found[:8] != kept[:8] or found[12:] != kept[12:]:
                at = next(
                    i for i, (a, b) in enumerate(zip(found, kept, strict=True)) if a != b and not 8 <= i < 12
                )
                self.bad(
                    "2.7.5.1-1", f"id {head}: the device wrote byte {at} of a buffer that is not writable"
                )
            self.peer.counters["reserved_written"] += 1


class _Chain:
    """What one available entry leads to."""

    __slots__ = ("entries", "head", "readable", "tables", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: Segments = []
        self.writable: Segments = []
        self.tables: Segments = []  # indirect tables
        self.entries: list[tuple[int, bytes]] = []  # descriptors as they stood: offset, 16 bytes


class _DeviceQueue(_Queue):
    """The device owns the used ring. [virtio 2.7.8]"""

    SIGNAL_RULES = ("2.7.10.1-4", "2.7.10.1-6")

    def __init__(self, peer: LiteralPeer, index: int) -> None:
        super().__init__(peer, index)
        self.my_flags, self.their_flags = self.used, self.avail
        self.my_event, self.their_event = self.avail_event, self.used_event
        self.own(self.used, self.end)
        flags, self.idx = self.u16[self.used >> 1], self.u16[self.used + 2 >> 1]
        if flags:
            self.bad("2.7.10.1-1", f"used.flags are {flags:#x} at DRIVER_OK")
        if self.idx:
            if index != 1 or self.idx > self.num:
                self.bad("used.idx", f"is {self.idx} at DRIVER_OK")
            self.bad("used-prefilled", f"used.idx is {self.idx} at DRIVER_OK")
        self.ready: list[_Chain] = []  # taken from the available ring, not used yet
        self.heads: set[int] = set()  # of those

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

    def walk(self, head: int) -> _Chain:
        """Read the chain at `head`, each descriptor once, and check all that the driver must obey."""
        chain = _Chain(head)
        mm = self.peer.mm
        table, limit, i, inner, elements = self.desc, self.num, head, False, 0
        while True:
            at = table + 16 * i
            raw = mm[at : at + 16]
            if any(at == offset for offset, _ in chain.entries):
                self.bad("2.7.5.2-1", f"head {head}: the chain loops at descriptor {i}")
            chain.entries.append((at, raw))
            address, length, flags, following = DESC.unpack(raw)
            where = f"head {head}, descriptor {i}{' of the indirect table' if inner else ''}"
            if flags & ~(NEXT | WRITE | INDIRECT):
                self.bad("desc.flags", f"{where}: flags {flags:#x}")
            if flags & INDIRECT:
                if inner:
                    self.bad("2.7.5.3.1-2", f"{where}: INDIRECT inside an indirect table")
                if not self.peer.gfeatures & F_INDIRECT:
                    self.bad("2.7.5.3.1-1", f"{where}: INDIRECT was not negotiated")
                if flags & NEXT:
                    self.bad("2.7.5.3.1-4", f"{where}: INDIRECT together with NEXT")
                if not length or length % 16:
                    self.bad("desc.len", f"{where}: an indirect table of {length} bytes")
                self.claim(where, address, length)
                chain.tables.append((address, length))
                table, limit, i, inner = address, length // 16, 0, True
                continue
            elements += 1
            if elements > self.num:
                self.bad("2.7.5.3.1-3", f"head {head}: more than {self.num} elements")
            if not length:
                self.bad("desc.len", f"{where}: length 0")
            self.claim(where, address, length)
            if flags & WRITE:
                chain.writable.append((address, length))
            else:
                if chain.writable:
                    self.bad("2.7.4.2-1", f"{where}: device-readable after device-writable")
                chain.readable.append((address, length))
            if not flags & NEXT:
                return chain
            if following >= limit:
                self.bad("desc.next", f"{where}: next is {following} of {limit}")
            i = following

    def claim(self, where: str, address: int, length: int) -> None:
        """mem[address:address+length] is lent to us: inside the file, off the rings, and lent once."""
        busy = self.peer.busy
        if address + length > len(busy):
            self.bad(
                "desc.addr",
                f"{where}: {address:#x} + {length:#x} is outside the file of {len(busy):#x} bytes",
            )
        if busy.count(0, address, address + length) != length:
            self.bad(
                "desc.addr",
                f"{where}: {address:#x} + {length:#x} overlaps the table, a ring or another buffer",
            )
        busy[address : address + length] = b"\1" * length

    def put(self, chain: _Chain, length: int) -> None:
        """Write a used entry for `chain`; flush() makes it visible."""
        mm = self.peer.mm
        for at, raw in chain.entries:
            if mm[at : at + 16] != raw:
                self.bad(
                    "3.3.1-1", f"head {chain.head}: the descriptor at {at:#x} changed while the device had it"
                )
        for address, size in (*chain.readable, *chain.writable, *chain.tables):
            self.peer.busy[address : address + size] = bytes(size)
        self.heads.remove(chain.head)
        slot = self.idx + self.pending & self.num - 1
        self.write(self.used + 4 + 8 * slot, USED_ELEM.pack(chain.head, length))
        self.pending += 1


class LiteralPeer:
    """One end of an rpmsg link over the shared file `path` and the doorbell socket `bell`.

    role            "driver" (host) or "device" (remote)
    server          this end writes the table and listens; None: the driver does
    num             descriptors in each ring of the table that a server writes (a power of two up to 256);
                    a client takes what it finds
    features        offered by a server, accepted by a driver
    tolerate        rules (of TOLERABLE) that the other end is known to break
    peer_lengths    "exact": used.len and desc.len must be the message's; "whole": the buffer's; "any"
    kick_wait       seconds that a doorbell byte may come after what it announces
    kicks_checked   a missing doorbell byte is a Violation

    Traps, all off by default:
    whole_lengths    [openamp] desc.len and used.len are always the whole buffer
    name_garbage     [openamp] bytes after the NUL of an announced name are garbage
    write_reserved   [openamp] a received message's hdr.reserved is overwritten in the buffer
    driver_ok_alone  [openamp] status goes from 0 to 4
    early_kick       [openamp] the driver kicks when it has written gfeatures, before DRIVER_OK
    reset_status     [openamp] what a driver writes to reset: 0, or 0x40
    write_flags      [lite] WRITE also on what the device only reads
    prefill          [lite] the driver pre-fills its tx used ring
    kick_always      the other end's suppression of doorbells is ignored
    ignore_event_idx [openamp] EVENT_IDX is accepted and then not applied
    split, indirect  "tx", "rx", "tx+rx": the driver cuts buffers into header and payload; indirect tables
    dirty            a server leaves no byte of the file zero but the table's

    `.channels` is {name: address} as the other end announced, `.announcements` [(name, address, flags)] all
    of it in order, `.counters` say what happened, `.resets` is the number of the driver's resets. Raises
    Violation for what the other end did wrong, TimeoutError at a deadline, EOFError when the other end closed
    its doorbell, ValueError for the caller's mistakes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        bell: str | os.PathLike[str],
        *,
        role: str,
        server: bool | None = None,
        num: int = 256,
        features: int = F_NS,
        tolerate: frozenset[str] = frozenset(),
        peer_lengths: str = "any",
        kick_wait: float = 2.0,
        kicks_checked: bool = True,
        whole_lengths: bool = False,
        name_garbage: bool = False,
        write_reserved: bool = False,
        driver_ok_alone: bool = False,
        early_kick: bool = False,
        reset_status: int = 0,
        write_flags: bool = False,
        prefill: bool = False,
        kick_always: bool = False,
        ignore_event_idx: bool = False,
        split: str = "",
        indirect: str = "",
        dirty: bool = False,
    ) -> None:
        if role not in ("driver", "device"):
            raise ValueError(f"role {role!r} is neither 'driver' nor 'device'")
        if num not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            raise ValueError(f"num {num} is no power of two up to 256, which is what the layout holds")
        if not set(tolerate) <= TOLERABLE:
            raise ValueError(f"cannot go on after {sorted(set(tolerate) - TOLERABLE)}")
        if peer_lengths not in ("any", "exact", "whole"):
            raise ValueError(f"peer_lengths {peer_lengths!r}")
        self.path, self.bell_path = os.fspath(path), os.fspath(bell)
        self.role, self.is_driver = role, role == "driver"
        self.server = self.is_driver if server is None else server
        self.num, self.features, self.tolerate, self.peer_lengths = num, features, tolerate, peer_lengths
        self.kick_wait, self.kicks_checked = kick_wait, kicks_checked
        self.whole_lengths, self.name_garbage, self.write_reserved = (
            whole_lengths,
            name_garbage,
            write_reserved,
        )
        self.driver_ok_alone, self.early_kick, self.reset_status = driver_ok_alone, early_kick, reset_status
        self.write_flags, self.prefill = write_flags, prefill
        self.kick_always, self.ignore_event_idx = kick_always, ignore_event_idx
        self.split, self.indirect, self.dirty = split, indirect, dirty

        self.gfeatures = 0
        self.use_event_idx = False
        self.running = self.gone = self.closed = False
        self.resets = 0
        self.inbox: list[Message] = []
        self.channels: dict[str, int] = {}
        self.announcements: list[tuple[str, int, int]] = []
        self.known: set[tuple[str, int]] = set()  # announced by the other end and not destroyed
        self.names: dict[str, int] = {}  # announced by us, again at every DRIVER_OK
        self.counters = {
            "sent": 0, "received": 0, "kicks_in": 0, "kicks_out": 0, "reserved_written": 0, "tolerated": 0,
        }  # fmt: skip
        self.rx: _Queue
        self.tx: _Queue
        self._last_status = 0
        self._bell: socket.socket | None = None
        self._listener: socket.socket | None = None
        if self.server:
            self._serve()

    # -- file and doorbell -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        """[openamp] The server writes the table before it listens."""
        vrings = [(da, VRING_ALIGN, self.num, 1 + i, 0) for i, da in enumerate(VRING_DA)]
        table = TABLE.pack(
            1, 1, 0, 0, VDEV_OFFSET,
            RSC_VDEV, ID_RPMSG, 0, self.features, 0, 0,
            0, 2, 0,
            *vrings[0], *vrings[1],
        )  # fmt: skip
        rest = (b"\xa5" if self.dirty else b"\0") * (FILE_SIZE - TABLE_SIZE)
        temporary = f"{self.path}.{os.getpid()}"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
        try:
            os.write(fd, table + rest)
        finally:
            os.close(fd)
        os.rename(temporary, self.path)  # nobody sees half a table
        try:
            os.unlink(self.bell_path)
        except FileNotFoundError:
            pass
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.bell_path)
        self._listener.listen(1)

    def connect(self, timeout: float = 5.0) -> None:
        """Find the other end and map the file; start() does it unless it was done."""
        if self._bell is not None:
            return
        deadline = time.monotonic() + timeout
        if self._listener is not None:
            self._listener.settimeout(max(timeout, 0.001))
            self._bell, _ = self._listener.accept()
        else:
            self._bell = self._connect(deadline)
        self._bell.setblocking(False)
        self._waiter = select.poll()
        self._waiter.register(self._bell, select.POLLIN)
        self._map()

    def _connect(self, deadline: float) -> socket.socket:
        while True:
            bell = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                bell.settimeout(max(deadline - time.monotonic(), 0.001))
                bell.connect(self.bell_path)
                return bell
            except (FileNotFoundError, ConnectionRefusedError):
                bell.close()
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"nobody listens on {self.bell_path}") from None
            except BaseException:
                bell.close()
                raise
            select.select([], [], [], 0.005)  # until there is a socket, there is nothing to wait on

    def _map(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_mode & 0o777 != FILE_MODE:
                self.bad("file", f"mode {found.st_mode & 0o777:o}, must be {FILE_MODE:o}")
            if found.st_size < FILE_SIZE or found.st_size % mmap.PAGESIZE:
                self.bad("file", f"{found.st_size:#x} bytes, must be {FILE_SIZE:#x} or more whole pages")
            self.mm = mmap.mmap(fd, found.st_size)
        finally:
            os.close(fd)
        self.mem = memoryview(self.mm)
        self.u16 = self.mem.cast("H")
        self.busy = bytearray(len(self.mm))  # not 0: not to be lent to us, or lent already
        self._check_table()

    def _check_table(self) -> None:
        """Every byte of the table, and the geometry that it gives."""
        self.table = self.mm[:TABLE_SIZE]
        (ver, entries, reserved0, reserved1, offset, kind, ident, notifyid, dfeatures, gfeatures, config_len,
         status, rings, reserved2, *vrings) = TABLE.unpack(self.table)  # fmt: skip
        for name, value, must in (
            ("ver", ver, 1),
            ("num", entries, 1),
            ("reserved[0]", reserved0, 0),
            ("reserved[1]", reserved1, 0),
            ("offset[0]", offset, VDEV_OFFSET),
            ("type", kind, RSC_VDEV),
            ("id", ident, ID_RPMSG),
            ("notifyid", notifyid, 0),
            ("config_len", config_len, 0),
            ("num_of_vrings", rings, 2),
            ("vdev reserved", reserved2, 0),
            ("vring0.notifyid", vrings[3], 1),
            ("vring1.notifyid", vrings[8], 2),
        ):
            if value != must:
                self.bad("resource-table", f"{name} is {value:#x}, must be {must:#x}")
        self.dfeatures = dfeatures
        if dfeatures & ~KNOWN_FEATURES:
            self.bad(
                "2.2.2-3", f"dfeatures {self.dfeatures:#x} offer bits that an rpmsg device cannot honour"
            )
        if gfeatures & ~self.dfeatures:
            self.bad(
                "2.2.1-1", f"gfeatures {gfeatures:#x} accept what dfeatures {self.dfeatures:#x} do not offer"
            )
        if self.is_driver and (gfeatures or status):
            self.bad(
                "resource-table", f"gfeatures {gfeatures:#x}, status {status:#x} before a driver was there"
            )
        self.vrings: list[tuple[int, int, int]] = []
        self._reserve(0, TABLE_SIZE, "the resource table")
        for i in (0, 1):
            da, align, num, _, pa = vrings[5 * i : 5 * i + 5]
            if not 1 <= num <= 32768 or num & num - 1:
                self.bad("2.7-F1", f"vring{i}.num {num} is no power of two up to 32768")
            if align < 4 or align & align - 1:
                self.bad("2.7.1-1", f"vring{i}.align {align:#x} is no power of two from 4")
            if da % align or da % 16:
                self.bad("2.7.1-1", f"vring{i}.da {da:#x} is not aligned to {max(align, 16):#x}")
            if pa not in (0, da):
                self.bad("resource-table", f"vring{i}.pa {pa:#x}: addresses are offsets, so 0 or {da:#x}")
            self.vrings.append((da, align, num))
            used = da + 16 * num + 6 + 2 * num + align - 1 & ~(align - 1)
            self._reserve(da, used + 6 + 8 * num, f"vring{i}")

    def _reserve(self, low: int, high: int, what: str) -> None:
        if high > len(self.busy):
            self.bad("resource-table", f"{what} ends at {high:#x} in a file of {len(self.busy):#x} bytes")
        if self.busy.count(0, low, high) != high - low:
            self.bad("resource-table", f"{what} at {low:#x}..{high:#x} overlaps the table or the other ring")
        self.busy[low:high] = b"\1" * (high - low)

    def bad(self, rule: str, text: str) -> None:
        """Raises Violation unless the rule is tolerated."""
        if rule not in self.tolerate:
            raise Violation(rule, f"{self.role}: {text}")
        self.counters["tolerated"] += 1

    def fence(self) -> None:
        """A full memory barrier: the call gives up the GIL and takes it again, two atomic swaps."""
        self._waiter.poll(0)

    def kick(self) -> None:
        """[openamp] One byte of any value: look at every vring."""
        assert self._bell is not None
        self.counters["kicks_out"] += 1
        try:
            self._bell.send(bytes((self.counters["kicks_out"] & 0xFF,)))
        except BlockingIOError:
            pass  # a full socket holds many bytes that the other end has not read: it will look
        except (BrokenPipeError, ConnectionResetError):
            self.gone = True

    def _drain_bell(self) -> int:
        """Doorbell bytes that came since the last call."""
        assert self._bell is not None
        total = 0
        while not self.gone:
            try:
                got = len(self._bell.recv(4096))
            except BlockingIOError:
                break
            except ConnectionResetError:
                got = 0
            total += got
            if not got:
                self.gone = True
            if got < 4096:
                break
        self.counters["kicks_in"] += total
        return total

    # -- start and reset -------------------------------------------------------------------------------------

    def start(self, timeout: float = 5.0) -> None:
        """Connect, then negotiate: the driver sets up the rings, the device waits for DRIVER_OK."""
        deadline = time.monotonic() + timeout
        self.connect(timeout)
        if self.is_driver:
            if not self.running:
                self._start_driver()
                self._announce_all(deadline)
        else:
            self._until(lambda: self.running, deadline, "DRIVER_OK")

    def _start_driver(self) -> None:
        """[openamp] gfeatures, rings zeroed, rx buffers posted, tx-complete interrupts off, status, kick."""
        if self._drain_bell() and not self.resets:
            self.bad("2.1.2-1", "the device rang before DRIVER_OK")
        status = 0
        if not self.driver_ok_alone:  # [linux] ACKNOWLEDGE, DRIVER, and in the end 7
            for status in (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
                self.mem[STATUS] = status
        self.gfeatures = self.dfeatures & self.features
        self.use_event_idx = bool(self.gfeatures & F_EVENT_IDX) and not self.ignore_event_idx
        if self.indirect and not self.gfeatures & F_INDIRECT:
            raise ValueError("the device does not offer INDIRECT")
        self.mem[GFEATURES : GFEATURES + 4] = struct.pack("=I", self.gfeatures)
        if self.early_kick:
            self.kick()

        # [openamp] Device writes vring0, the driver's rx. rx buffers lie in front of the tx buffers; what
        # indirect tables there are lie behind them.
        rx_num, tx_num = self.vrings[0][2], self.vrings[1][2]
        tables = POOL + (rx_num + tx_num) * BUFFER
        end = tables + (rx_num + tx_num) * 32
        if end > len(self.mm) or self.busy.count(0, POOL, end) != end - POOL:
            raise ValueError(
                f"rings of {rx_num} and {tx_num} leave no room for buffers at {POOL:#x}..{end:#x}"
            )
        self.rx = rx = _DriverQueue(
            self,
            0,
            base=POOL,
            tables=tables,
            writable=True,
            split="rx" in self.split,
            indirect="rx" in self.indirect,
        )
        self.tx = tx = _DriverQueue(
            self, 1, base=POOL + rx_num * BUFFER, tables=tables + rx_num * 32, writable=False,
            split="tx" in self.split, indirect="tx" in self.indirect,
        )  # fmt: skip
        for head in rx.free:
            rx.write_chain(head, rx.buffers[head])
            rx.expose(head, rx.buffers[head])
        rx.free.clear()
        rx.idx, rx.pending = rx.pending, 0
        rx.write16(rx.avail + 2, rx.idx)  # published, but no kick before DRIVER_OK (3.1.1-5)
        if self.prefill:
            tx.prefill()
        tx.want(False)
        used = [self.u16[q.used + 2 >> 1] for q in (rx, tx)]
        if used != [0, tx.seen]:
            self.bad("2.1.2-1", f"used.idx are {used} before DRIVER_OK: the device used buffers")
        if not self.resets and self._drain_bell():
            self.bad("2.1.2-1", "the device rang before DRIVER_OK")
        self.mem[STATUS] = self._last_status = status | DRIVER_OK
        self.table = self.mm[:TABLE_SIZE]
        self.running = True
        self.kick()

    def _try_start_device(self, rang: bool) -> bool:
        """[openamp] The device polls the status for DRIVER_OK, then sets vring0's used.flags to 1."""
        status = self.mm[STATUS]
        before, self._last_status = self._last_status, status
        if status & before != before and status not in (0, NEEDS_RESET) and before != NEEDS_RESET:
            self.bad("2.1.1-2", f"status went from {before:#x} to {status:#x}")
        if status & FAILED:
            self.bad("3.1.1-4", f"status {status:#x}: the driver gave up")
        if status & FEATURES_OK:
            self.bad("3.1.2", f"status {status:#x}: FEATURES_OK on a link that can only be legacy")
        if not status & DRIVER_OK:
            if status not in (0, NEEDS_RESET, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
                self.bad("2.1.1-1", f"status {status:#x} skips a step")
            if rang and not self.resets:
                self.bad("3.1.1-5", f"the driver kicked with status {status:#x}")
            return False
        if status != ACKNOWLEDGE | DRIVER | DRIVER_OK:
            self.bad("2.1.1-1", f"status {status:#x} at DRIVER_OK, must be 0x7")
        self.busy = bytearray(len(self.mm))
        self._check_table()
        self.gfeatures = int(struct.unpack_from("=I", self.table, GFEATURES)[0])
        self.use_event_idx = bool(self.gfeatures & F_EVENT_IDX) and not self.ignore_event_idx
        self.tx, self.rx = tx, rx = _DeviceQueue(self, 0), _DeviceQueue(self, 1)
        rx.want(True)
        tx.want(False)
        self.running = True
        self._scan(True)
        self._posted = len(tx.ready)
        self._announce_all(time.monotonic() + 1.0)
        return True

    def reset(self) -> None:
        """Driver only: status 0 (or `reset_status`) and a kick. start() sets the link up again.

        This layout has no acknowledgement: the caller must know that the device has seen it before start().
        """
        if not self.is_driver:
            raise ValueError("only a driver resets")
        self._write_reset()
        self._stopped()

    def _write_reset(self) -> None:
        self.mem[STATUS] = self.reset_status
        self.kick()

    def _stopped(self) -> None:
        self.running = False
        self.resets += 1
        self.channels.clear()
        self.known.clear()
        self._last_status = 0

    def close(self, check: bool = True) -> None:
        """Look a last time and wait for bytes still owed, unless `check` is False; as driver, reset."""
        if self.closed:
            return
        self.closed = True
        try:
            if check and self.running:
                self._scan(bool(self._drain_bell()))
                while (
                    self.running
                    and not self.gone
                    and any(q.owed_since is not None for q in (self.rx, self.tx))
                ):
                    self._waiter.poll(50)
                    self._scan(bool(self._drain_bell()))
        finally:
            if self._bell is not None:
                if self.is_driver and self.running:
                    self._write_reset()
                self._bell.close()
            if hasattr(self, "mm"):
                self.u16.release()
                self.mem.release()
                self.mm.close()
            if self._listener is not None:
                self._listener.close()
                try:
                    os.unlink(self.bell_path)
                except FileNotFoundError:
                    pass

    def __enter__(self) -> LiteralPeer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(check=kind is None)

    # -- the rings -------------------------------------------------------------------------------------------

    def _until(self, ready: Callable[[], bool], deadline: float, what: str) -> None:
        """Look at everything, at least once, until `ready`; wait for the doorbell when nothing was new."""
        while True:
            rang = bool(self._drain_bell())
            if self.running:
                progress = self._scan(rang)
            elif self.is_driver:
                raise ValueError("not started")
            else:
                progress = self._try_start_device(rang)
            if ready():
                return
            left = deadline - time.monotonic()
            if self.gone and not progress:
                raise EOFError(f"{self.role}: the other end closed its doorbell while we waited for {what}")
            if left <= 0:
                raise TimeoutError(f"{self.role}: no {what}")
            if not progress and not rang:
                # Not longer than this without a look: a missing doorbell byte is to be found, not waited for;
                # and the status of a starting driver is polled [openamp].
                longest = 0.02 if not self.running or self.ignore_event_idx else 0.25
                self._waiter.poll(max(1, int(1000 * min(left, longest))))

    def _scan(self, rang: bool) -> bool:
        """Look at both rings; True if something was new."""
        if self.is_driver:
            if self.mm[:TABLE_SIZE] != self.table:
                self.bad("resource-table", "changed after DRIVER_OK, and not by the driver")
            progress = self._scan_driver(rang)
        else:
            if not self._check_status():
                return True
            try:
                progress = self._scan_device(rang)
            except Violation:
                # A driver that resets clears the rings under us; that is its right once DRIVER_OK is gone.
                if self._check_status():
                    raise
                return True
        self._check_owed(rang)
        return progress

    def _check_status(self) -> bool:
        status = self.mm[STATUS]
        if not status & DRIVER_OK:
            if status not in (0, NEEDS_RESET, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
                self.bad(
                    "2.1.1-2",
                    f"status went from {self._last_status:#x} to {status:#x}: only a reset clears bits",
                )
            self._stopped()
            return False
        found = self.mm[:TABLE_SIZE]
        if found != self.table:
            if found[GFEATURES : GFEATURES + 4] != self.table[GFEATURES : GFEATURES + 4]:
                self.bad("3.1.1-3", "gfeatures changed after DRIVER_OK")
            if status != self.table[STATUS]:
                self.bad(
                    "2.1.1-1", f"status went from {self.table[STATUS]:#x} to {status:#x} after DRIVER_OK"
                )
            self.bad("resource-table", "changed after DRIVER_OK")
        return True

    def _check_owed(self, rang: bool) -> None:
        for queue in (self.rx, self.tx):
            if queue.owed_since is None:
                continue
            if rang or not self.kicks_checked or (self.ignore_event_idx and self.gfeatures & F_EVENT_IDX):
                queue.owed_since = None
            elif time.monotonic() > queue.owed_since + self.kick_wait and not self.gone:
                queue.bad(
                    queue.SIGNAL_RULES[self.use_event_idx],
                    f"no doorbell byte within {self.kick_wait} s of what it should announce",
                )

    def _scan_driver(self, rang: bool) -> bool:
        rx, tx = self.rx, self.tx
        assert isinstance(rx, _DriverQueue) and isinstance(tx, _DriverQueue)
        arrived = rx.look(rang)
        for head, segments, length in arrived:
            if length < HEADER_SIZE:
                rx.bad("used.len", f"id {head}: used.len {length} is shorter than the header")
            room = sum(n for _, n in segments)
            data = self._gather(segments, length)
            self._received(f"{rx.name}: id {head}", data, length, room, segments[0][0], head)
            rx.expose(head, segments)
        rx.flush()
        done = tx.look(rang)
        tx.free.extend([head for head, _, _ in done])
        return bool(arrived or done)

    def _scan_device(self, rang: bool) -> bool:
        rx, tx = self.rx, self.tx
        assert isinstance(rx, _DeviceQueue) and isinstance(tx, _DeviceQueue)
        fresh = tx.look(rang)
        for chain in tx.ready[len(tx.ready) - fresh :]:
            if chain.readable:
                tx.bad(
                    "2.7.5.1-1",
                    f"head {chain.head}: the driver posted a buffer that the device may not write",
                )
            room = sum(n for _, n in chain.writable)
            if room < HEADER_SIZE:
                tx.bad("desc.len", f"head {chain.head}: {room} bytes have no room for a header")
        arrived = rx.look(rang)
        for chain in rx.ready:
            if chain.writable:
                rx.bad("2.7.5.1-2", f"head {chain.head}: a message in a device-writable buffer")
            segments = chain.readable + chain.writable
            room = sum(n for _, n in segments)
            if room < HEADER_SIZE:
                rx.bad("desc.len", f"head {chain.head}: {room} bytes hold no header")
            data = self._gather(segments, room)
            self._received(f"{rx.name}: head {chain.head}", data, room, BUFFER, segments[0][0], chain.head)
            # [virtio 2.7.8.2-2] Nothing was written, so 0; [openamp] the whole buffer.
            rx.put(chain, room if self.whole_lengths else 0)
        rx.ready.clear()
        rx.flush()
        return bool(fresh or arrived)

    def _gather(self, segments: Segments, length: int) -> bytes:
        address, size = segments[0]
        if length <= size:
            return self.mm[address : address + length]
        return b"".join([self.mm[a : a + n] for a, n in segments])[:length]

    def _scatter(self, segments: Segments, data: bytes) -> None:
        done = 0
        for address, size in segments:
            part = data[done : done + size]
            self.mem[address : address + len(part)] = part
            done += len(part)

    # -- rpmsg -----------------------------------------------------------------------------------------------

    def _received(self, where: str, data: bytes, length: int, room: int, address: int, index: int) -> None:
        """Check one message as it lay in its buffer, and file it."""
        src, dst, reserved, size, flags = HEADER.unpack_from(data)
        if reserved or flags:
            self.bad("rpmsg-header", f"{where}: reserved {reserved:#x}, flags {flags:#x}; a sender writes 0")
        if HEADER_SIZE + size > length:
            self.bad("rpmsg-header", f"{where}: len {size} in {length} bytes, of which the header takes 16")
        if src == ADDR_ANY or dst == ADDR_ANY:
            self.bad("rpmsg-header", f"{where}: src {src:#x}, dst {dst:#x}; ANY is no address of a message")
        if self.peer_lengths == "exact" and length != HEADER_SIZE + size:
            self.bad("rpmsg-length", f"{where}: length {length} for a message of 16 + {size}")
        if self.peer_lengths == "whole" and length != room:
            self.bad("rpmsg-length", f"{where}: length {length} for a buffer of {room}")
        if self.write_reserved:  # [openamp] buffer index | hold count << 16
            self.mem[address + 8 : address + 12] = struct.pack("=I", index | 1 << 16)
        payload = data[HEADER_SIZE : HEADER_SIZE + size]
        if dst == NS_ADDR:
            self._name_service(where, src, payload)
        else:
            self.counters["received"] += 1
            self.inbox.append((src, dst, payload))

    def _name_service(self, where: str, src: int, payload: bytes) -> None:
        if not self.gfeatures & F_NS:
            self.bad("rpmsg-ns", f"{where}: an announcement without the feature NS")
        if len(payload) != NS_MESSAGE.size:
            self.bad("rpmsg-ns", f"{where}: {len(payload)} bytes, must be {NS_MESSAGE.size}")
        raw, addr, flags = NS_MESSAGE.unpack(payload)
        name, nul, padding = raw.partition(b"\0")
        if not name or not nul:
            self.bad("rpmsg-ns", f"{where}: name {raw!r} is {'not NUL-terminated' if name else 'empty'}")
        if padding.strip(b"\0"):
            self.bad("rpmsg-ns-padding", f"{where}: bytes after the NUL of {raw!r}")
        if flags not in (NS_CREATE, NS_DESTROY):
            self.bad("rpmsg-ns", f"{where}: flags {flags:#x}")
        if addr == ADDR_ANY or src != addr:
            self.bad(
                "rpmsg-ns",
                f"{where}: {name!r} at {addr:#x}, announced by {src:#x}; an endpoint announces itself",
            )
        try:
            text = name.decode("ascii")
        except UnicodeDecodeError:
            self.bad("rpmsg-ns", f"{where}: name {name!r} is not ASCII")
            raise
        key = text, addr
        if flags == NS_CREATE:
            if key in self.known:
                self.bad("rpmsg-ns", f"{where}: {text!r} at {addr:#x} was announced already")
            self.known.add(key)
            self.channels[text] = addr
        else:
            if key not in self.known:
                self.bad("rpmsg-ns", f"{where}: destroys {text!r} at {addr:#x}, which was never announced")
            self.known.remove(key)
            if self.channels[text] == addr:
                del self.channels[text]
                for other, at in self.known:
                    if other == text:
                        self.channels[text] = at
        self.announcements.append((text, addr, flags))

    def _write_message(self, message: bytes) -> bool:
        """Send if there is a buffer. Without one nothing happens."""
        tx = self.tx
        if isinstance(tx, _DriverQueue):
            if not tx.free:
                return False
            head = tx.free.pop(0)
            segments = tx.buffers[head]
            self._scatter(segments, message)
            if not self.whole_lengths:  # [linux] desc.len is the message's; a descriptor of length 0 is none
                left, exact = len(message), []
                for address, size in segments:
                    if left:
                        exact.append((address, min(left, size)))
                    left = max(left - size, 0)
                segments = exact
            tx.write_chain(head, segments)
            tx.expose(head, segments)
        else:
            assert isinstance(tx, _DeviceQueue)
            if not tx.ready:
                return False
            chain = tx.ready.pop(0)
            room = sum(n for _, n in chain.writable)
            if room < len(message):
                raise ValueError(f"a message of {len(message)} bytes for a buffer of {room}")
            self._scatter(chain.writable, message)
            tx.put(chain, room if self.whole_lengths else len(message))
        tx.flush()
        return True

    def _send(self, src: int, dst: int, payload: bytes, deadline: float) -> None:
        if not (0 <= src < ADDR_ANY and 0 <= dst < ADDR_ANY):
            raise ValueError(f"src {src:#x}, dst {dst:#x}")
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"{len(payload)} bytes; a buffer holds {MAX_PAYLOAD}")
        message = HEADER.pack(src, dst, 0, len(payload), 0) + payload
        if self.running and not self.is_driver:
            self._check_status()
        if self.running and self._write_message(message):
            return
        if self.running:
            self.tx.want(True)  # [linux] tx-complete interrupts are on while a sender waits
        try:
            self._until(lambda: self.running and self._write_message(message), deadline, "buffer")
        finally:
            if self.running:
                self.tx.want(False)

    def send(self, src: int, dst: int, payload: bytes, timeout: float = 5.0) -> None:
        """Send one message, waiting at most `timeout` seconds for a buffer; recv() has what came in."""
        self._send(src, dst, payload, time.monotonic() + timeout)
        self.counters["sent"] += 1

    def recv(self, timeout: float = 5.0) -> Message:
        """The next message that is not for the name service: (src, dst, payload)."""
        deadline = time.monotonic() + timeout
        if not self.inbox:
            self._until(lambda: bool(self.inbox), deadline, "message")
        return self.inbox.pop(0)

    def poll(self, timeout: float = 0.0) -> int:
        """Look until something is new, at most `timeout` seconds; the number of messages for recv()."""

        def state() -> tuple[int, int, bool, int]:
            return len(self.inbox), len(self.announcements), self.running, self.resets

        before = state()
        try:
            self._until(lambda: state() != before, time.monotonic() + timeout, "news")
        except TimeoutError:
            pass
        return len(self.inbox)

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the other end has taken all that was sent, so that every buffer has come back."""

        def taken() -> bool:
            tx = self.tx
            if isinstance(tx, _DriverQueue):
                return not tx.outstanding
            assert isinstance(tx, _DeviceQueue)
            return not self.running or len(tx.ready) >= self._posted

        self.tx.want(True)
        try:
            self._until(taken, time.monotonic() + timeout, "sign that all was taken")
        finally:
            if self.running:
                self.tx.want(False)

    def announce(self, name: str, addr: int, timeout: float = 5.0) -> None:
        """Announce an endpoint by name service, now and again at every DRIVER_OK."""
        self._announce(name, addr, NS_CREATE, time.monotonic() + timeout)
        self.names[name] = addr

    def destroy(self, name: str, addr: int, timeout: float = 5.0) -> None:
        """Withdraw what announce() announced."""
        self.names.pop(name, None)
        self._announce(name, addr, NS_DESTROY, time.monotonic() + timeout)

    def _announce_all(self, deadline: float) -> None:
        for name, addr in self.names.items():
            self._announce(name, addr, NS_CREATE, deadline)

    def _announce(self, name: str, addr: int, flags: int, deadline: float) -> None:
        raw = name.encode("ascii") + b"\0"
        if not 2 <= len(raw) <= 32:
            raise ValueError(f"name {name!r}: 1 to 31 characters")
        if not self.gfeatures & F_NS:
            raise ValueError("name service was not negotiated")
        raw = raw.ljust(32, b"\xa5" if self.name_garbage else b"\0")
        self._send(addr, NS_ADDR, NS_MESSAGE.pack(raw, addr, flags), deadline)

    def wait_channel(self, name: str, timeout: float = 5.0) -> int:
        """The address of the other end's endpoint `name`, once it is announced."""
        deadline = time.monotonic() + timeout
        self._until(lambda: name in self.channels, deadline, f"announcement of {name!r}")
        return self.channels[name]
