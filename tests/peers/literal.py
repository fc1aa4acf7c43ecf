# SPDX-License-Identifier: BSD-3-Clause
"""An rpmsg end that takes every written fact literally and believes nothing that it reads.

It speaks OpenAMP's layout: one shared file with the resource table at offset 0, two split rings and the
buffers, and a doorbell that is one byte on an AF_UNIX stream socket. It shares no code with rpmsgx, so it can
check rpmsgx's bytes from outside.

    habits.py   what others do otherwise, one by one, and what of that is to be tolerated
    layout.py   the shared file with its table, and the doorbell
    ring.py     a split ring, as its driver and as its device
    message.py  rpmsg header and name service
    this file   an end's life: start, reset, looking at everything, sending and receiving

Everything wrong that it sees raises Violation with the rule: an id of docs/conformance.md, or where virtio
has no rule the place where the wrong bytes stood:

    file, resource-table        the shared file and its table
    avail.idx, avail.ring       an index that jumped; a head out of range or exposed twice; device wrote it
    used.idx, used.ring         likewise; an id that is not outstanding; driver wrote it
    used.len                    shorter than a header
    desc.addr, desc.len, desc.next, desc.flags
    rpmsg-header                src, dst, len or flags of a message
    rpmsg-reserved              hdr.reserved of a message that was sent
    rpmsg-length                used.len or desc.len is not what `peer_lengths` says
    rpmsg-ns, rpmsg-ns-padding  name service; bytes after the NUL of a name that are not zero
    used-prefilled              the driver filled its tx used ring itself

Single-threaded: one LiteralPeer belongs to one thread. Every wait is bounded and sleeps in poll() on the
doorbell. The one full barrier that a ring needs is a system call that drops the GIL.
"""

from __future__ import annotations

import os
import struct
import time

from .habits import (
    OPENAMP,
    RPMSG_LITE,
    TOLERABLE,
    TOLERATE_OPENAMP,
    TOLERATE_RPMSG_LITE,
    Habits,
    Violation,
)
from .layout import (
    ACKNOWLEDGE,
    BUFFER,
    DRIVER,
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT,
    F_NS,
    FAILED,
    FEATURES_OK,
    GFEATURES,
    INDIRECT_ROOM,
    NEEDS_RESET,
    POOL,
    STATUS,
    TABLE_SIZE,
    Bell,
    SharedFile,
    make_file,
)
from .message import (
    FIRST_ADDR,
    HEADER_SIZE,
    NS_ADDR,
    NS_CREATE,
    NS_DESTROY,
    RESERVED,
    Message,
    Names,
    pack,
    pack_name,
    unpack,
)
from .ring import MAX_PAYLOAD, Context, DeviceQueue, DriverQueue, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = [
    "FIRST_ADDR",
    "F_EVENT_IDX",
    "F_INDIRECT",
    "F_NS",
    "OPENAMP",
    "RPMSG_LITE",
    "TOLERABLE",
    "TOLERATE_OPENAMP",
    "TOLERATE_RPMSG_LITE",
    "LiteralPeer",
    "Violation",
]

BEFORE_DRIVER_OK = (0, NEEDS_RESET, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER)
COMPLETE = ACKNOWLEDGE | DRIVER | DRIVER_OK


class LiteralPeer:
    """One end of an rpmsg link over the shared file `path` and the doorbell socket `bell`.

    role            "driver" (host) or "device" (remote)
    server          this end writes the table and listens; None: the driver does
    num             descriptors in each ring of the table that a server writes (a power of two up to 256);
                    a client takes what it finds
    features        offered by a server, accepted by a driver
    tolerate        rules (of TOLERABLE) that the other end is known to break, in its known way
    peer_lengths    "exact": used.len and desc.len must be the message's; "whole": the buffer's
    kick_wait       seconds that a doorbell byte may come after what it announces
    kicks_checked   a missing doorbell byte is a Violation
    **habits        of this end, see Habits

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
        peer_lengths: str = "exact",
        kick_wait: float = 2.0,
        kicks_checked: bool = True,
        **habits: object,
    ) -> None:
        if role not in ("driver", "device"):
            raise ValueError(f"role {role!r} is neither 'driver' nor 'device'")
        if num not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            raise ValueError(f"num {num} is no power of two up to 256, which is what the layout holds")
        if not set(tolerate) <= TOLERABLE:
            raise ValueError(f"cannot go on after {sorted(set(tolerate) - TOLERABLE)}")
        if peer_lengths not in ("exact", "whole"):
            raise ValueError(f"peer_lengths {peer_lengths!r}")
        self.habits = Habits(**habits)  # type: ignore[arg-type]
        self.path = os.fspath(path)
        self.role, self.is_driver = role, role == "driver"
        self.server = self.is_driver if server is None else server
        self.features, self.tolerate, self.peer_lengths = features, tolerate, peer_lengths
        self.kick_wait, self.kicks_checked = kick_wait, kicks_checked

        self.running = self.closed = False
        self.resets = 0
        self.inbox: list[Message] = []
        self.theirs = Names()
        self.names: dict[str, int] = {}  # announced by us, again at every DRIVER_OK
        self.sent = self.received = self.tolerated = 0
        self.context: Context | None = None  # once connected
        self.rx: DriverQueue | DeviceQueue
        self.tx: DriverQueue | DeviceQueue
        self._last_status = 0
        if self.server:  # [openamp] It writes the table before it listens.
            make_file(self.path, num, features, self.habits.dirty)
        self.bell = Bell(os.fspath(bell), listen=self.server)

    @property
    def channels(self) -> dict[str, int]:
        return self.theirs.channels

    @property
    def announcements(self) -> list[tuple[str, int, int]]:
        return self.theirs.announcements

    @property
    def counters(self) -> dict[str, int]:
        return {
            "sent": self.sent,
            "received": self.received,
            "kicks_in": self.bell.heard,
            "kicks_out": self.bell.rung,
            "reserved_written": self.context.reserved_written if self.context else 0,
            "tolerated": self.tolerated,
        }

    @property
    def file(self) -> SharedFile:
        return self._connected.file

    @property
    def gfeatures(self) -> int:
        return self._connected.features

    @property
    def _connected(self) -> Context:
        assert self.context is not None, "connect() comes first"
        return self.context

    def bad(self, rule: str, text: str) -> NoReturn:
        raise Violation(rule, f"{self.role}: {text}")

    def odd(self, rule: str, text: str) -> None:
        """What some peers do: raises Violation unless the rule is tolerated."""
        if rule not in self.tolerate:
            self.bad(rule, text)
        self.tolerated += 1

    # -- start and reset -------------------------------------------------------------------------------------

    def connect(self, timeout: float = 5.0) -> None:
        """Find the other end and map the file; start() does it unless it was done."""
        if self.bell.connected:
            return
        self.bell.connect(timeout)
        file = SharedFile(self.path, self.bad)
        self.context = Context(file, self.bell, self.habits, self.tolerate, self.bad, self.odd)
        if self.is_driver and (file.gfeatures or file.status):
            self.bad(
                "resource-table", f"gfeatures {file.gfeatures:#x}, status {file.status:#x} before a driver was there"
            )

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
        context, file, habits = self._connected, self.file, self.habits
        if self.bell.drain() and not self.resets:
            self.bad("2.1.2-1", "the device rang before DRIVER_OK")
        status = 0
        if not habits.driver_ok_alone:  # [linux] ACKNOWLEDGE, DRIVER, and in the end 7
            for status in (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
                file.status = status
        file.gfeatures = context.features = file.dfeatures & self.features
        if habits.indirect and not context.features & F_INDIRECT:
            raise ValueError("the device does not offer INDIRECT")
        if habits.early_kick:
            self.bell.ring()

        # [openamp] Device writes vring0, the driver's rx. rx buffers lie in front of the tx buffers; what
        # indirect tables there are lie behind them.
        rx_num, tx_num = file.vrings[0][2], file.vrings[1][2]
        tables = POOL + (rx_num + tx_num) * BUFFER
        end = tables + (rx_num + tx_num) * INDIRECT_ROOM
        if end > len(file.mm) or file.busy.count(0, POOL, end) != end - POOL:
            raise ValueError(f"rings of {rx_num} and {tx_num} leave no room for buffers at {POOL:#x}..{end:#x}")
        self.rx = rx = DriverQueue(context, 0, base=POOL, tables=tables)
        self.tx = tx = DriverQueue(context, 1, base=POOL + rx_num * BUFFER, tables=tables + rx_num * INDIRECT_ROOM)
        rx.post_all()
        if habits.prefill:
            tx.prefill()
        tx.want(False)
        used = [file.u16[q.used + 2 >> 1] for q in (rx, tx)]
        if used != [0, tx.seen]:
            self.bad("2.1.2-1", f"used.idx are {used} before DRIVER_OK: the device used buffers")
        if not self.resets and self.bell.drain():
            self.bad("2.1.2-1", "the device rang before DRIVER_OK")
        file.status = self._last_status = status | DRIVER_OK
        file.table = file.mm[:TABLE_SIZE]
        self.running = True
        self.bell.ring()

    def _try_start_device(self, rang: bool) -> bool:
        """[openamp] The device polls the status for DRIVER_OK, then sets vring0's used.flags to 1."""
        context, file = self._connected, self.file
        status = file.status
        if status == NEEDS_RESET and self.habits.clear_reset:
            file.status = status = 0
        before, self._last_status = self._last_status, status
        if status & before != before and status not in (0, NEEDS_RESET) and before != NEEDS_RESET:
            self.bad("2.1.1-2", f"status went from {before:#x} to {status:#x}")
        if status & FAILED:
            self.bad("3.1.1-4", f"status {status:#x}: the driver gave up")
        if status & FEATURES_OK:
            self.bad("3.1.2", f"status {status:#x}: FEATURES_OK on a link that can only be legacy")
        if not status & DRIVER_OK:
            if status not in BEFORE_DRIVER_OK:
                self.bad("2.1.1-1", f"status {status:#x} skips a step")
            if rang and not self.resets:
                self.odd("3.1.1-5", f"the driver kicked with status {status:#x}")
            return False
        if status == DRIVER_OK:
            self.odd("2.1.1-1", f"status {status:#x} at DRIVER_OK, must be {COMPLETE:#x}")
        elif status != COMPLETE:
            self.bad("2.1.1-1", f"status {status:#x} at DRIVER_OK, must be {COMPLETE:#x}")
        file.check_table()
        context.features = file.gfeatures
        self.tx, self.rx = tx, rx = DeviceQueue(context, 0), DeviceQueue(context, 1)
        rx.want(True)
        tx.want(False)
        self.running = True
        self._scan(True)
        tx.posted = len(tx.ready)
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
        self.file.status = self.habits.reset_status
        self.bell.ring()

    def _stopped(self) -> None:
        self.running = False
        self.resets += 1
        self.theirs.forget()
        self._last_status = 0

    def close(self, check: bool = True) -> None:
        """Look a last time and wait for bytes still owed, unless `check` is False; as driver, reset."""
        if self.closed:
            return
        self.closed = True
        try:
            if check and self.running:
                self._scan(bool(self.bell.drain()))
                while self.running and not self.bell.gone and any(q.owed_since is not None for q in (self.rx, self.tx)):
                    self.bell.wait(50)
                    self._scan(bool(self.bell.drain()))
            if check and self.context is not None:
                self.file.check_gaps()
        finally:
            if self.bell.connected and self.is_driver and self.running:
                self._write_reset()
            self.bell.close()
            if self.context is not None:
                self.file.close()

    def __enter__(self) -> LiteralPeer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(check=kind is None)

    # -- looking ---------------------------------------------------------------------------------------------

    def _until(self, ready: Callable[[], bool], deadline: float, what: str) -> None:
        """Look at everything, at least once, until `ready`; wait for the doorbell when nothing was new."""
        while True:
            rang = bool(self.bell.drain())
            if self.running:
                progress = self._scan(rang)
            elif self.is_driver:
                raise ValueError("not started")
            else:
                progress = self._try_start_device(rang)
            if ready():
                return
            left = deadline - time.monotonic()
            if self.bell.gone and not progress:
                raise EOFError(f"{self.role}: the other end closed its doorbell while we waited for {what}")
            if left <= 0:
                raise TimeoutError(f"{self.role}: no {what}")
            if not progress and not rang:
                # Not longer than this without a look: a missing doorbell byte is to be found, not waited for;
                # and the status of a starting driver is polled [openamp].
                longest = 0.02 if not self.running or self.habits.ignore_event_idx else 0.25
                self.bell.wait(max(1, int(1000 * min(left, longest))))

    def _scan(self, rang: bool) -> bool:
        """Look at both rings; True if something was new."""
        if self.is_driver:
            if self.file.mm[:TABLE_SIZE] != self.file.table:
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
        # Who accepts EVENT_IDX and does not apply it never asks for a byte.
        checked = self.kicks_checked and not (self.habits.ignore_event_idx and self.gfeatures & F_EVENT_IDX)
        for queue in (self.rx, self.tx):
            queue.check_owed(rang, checked, self.kick_wait)
        return progress

    def _check_status(self) -> bool:
        """False, and stopped, if the driver has reset the device."""
        file = self.file
        status = file.status
        if not status & DRIVER_OK:
            if status not in BEFORE_DRIVER_OK:
                self.bad("2.1.1-2", f"status went from {self._last_status:#x} to {status:#x}: only a reset clears bits")
            self._stopped()
            return False
        found = file.mm[:TABLE_SIZE]
        if found != file.table:
            if found[GFEATURES : GFEATURES + 4] != file.table[GFEATURES : GFEATURES + 4]:
                self.bad("3.1.1-3", "gfeatures changed after DRIVER_OK")
            if status != file.table[STATUS]:
                self.bad("2.1.1-1", f"status went from {file.table[STATUS]:#x} to {status:#x} after DRIVER_OK")
            self.bad("resource-table", "changed after DRIVER_OK")
        return True

    def _scan_driver(self, rang: bool) -> bool:
        rx, tx = self.rx, self.tx
        assert isinstance(rx, DriverQueue) and isinstance(tx, DriverQueue)
        arrived = rx.look(rang)
        for head, segments, length in arrived:
            if length < HEADER_SIZE:
                rx.bad("used.len", f"id {head}: used.len {length} is shorter than the header")
            data = rx.gather(segments, length)
            self._received(f"{rx.name}: id {head}", data, size_of(segments), segments[0][0], head)
            rx.repost(head, segments, length)
        rx.flush()
        done = tx.look(rang)
        tx.recycled.extend([head for head, _, _ in done])
        return bool(arrived or done)

    def _scan_device(self, rang: bool) -> bool:
        rx, tx = self.rx, self.tx
        assert isinstance(rx, DeviceQueue) and isinstance(tx, DeviceQueue)
        fresh = tx.look(rang)
        tx.check_writable(tx.ready[len(tx.ready) - fresh :])
        arrived = rx.look(rang)
        for chain in rx.ready:
            if chain.writable:
                rx.odd("2.7.5.1-2", f"head {chain.head}: a message in a device-writable buffer")
            segments = chain.readable + chain.writable
            room = size_of(segments)
            if room < HEADER_SIZE:
                rx.bad("desc.len", f"head {chain.head}: {room} bytes hold no header")
            data = rx.gather(segments, room)
            self._received(f"{rx.name}: head {chain.head}", data, BUFFER, segments[0][0], chain.head)
            # [virtio 2.7.8.2-2] Nothing was written, so 0; [openamp] the whole buffer.
            rx.put(chain, room if self.habits.whole_lengths else 0)
        rx.ready.clear()
        rx.flush()
        return bool(fresh or arrived)

    # -- messages --------------------------------------------------------------------------------------------

    def _received(self, where: str, data: bytes, room: int, address: int, index: int) -> None:
        """Check one message as it lay in its buffer of `room` bytes at `address`, and file it."""
        src, dst, payload = message = unpack(where, data, self.bad, self.odd)
        must = HEADER_SIZE + len(payload) if self.peer_lengths == "exact" else room
        if len(data) != must:
            self.bad("rpmsg-length", f"{where}: length {len(data)} for a message of 16 + {len(payload)} in {room}")
        if self.habits.write_reserved:  # [openamp] buffer index | hold count << 16
            low, high = address + RESERVED.start, address + RESERVED.stop
            self.file.mem[low:high] = struct.pack("=I", index | 1 << 16)
        if dst != NS_ADDR:
            self.received += 1
            self.inbox.append(message)
            return
        if not self.gfeatures & F_NS:
            self.bad("rpmsg-ns", f"{where}: an announcement without the feature NS")
        self.theirs.take(where, src, payload, self.bad, self.odd)

    def _send(self, src: int, dst: int, payload: bytes, deadline: float) -> None:
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"{len(payload)} bytes; a buffer holds {MAX_PAYLOAD}")
        message = pack(src, dst, payload)
        if self.running and not self.is_driver:
            self._check_status()
        if self.running and self.tx.send(message):
            return
        if self.running:
            self.tx.want(True)  # [linux] tx-complete interrupts are on while a sender waits
        try:
            self._until(lambda: self.running and self.tx.send(message), deadline, "buffer")
        finally:
            if self.running:
                self.tx.want(False)

    def send(self, src: int, dst: int, payload: bytes, timeout: float = 5.0) -> None:
        """Send one message, waiting at most `timeout` seconds for a buffer; recv() has what came in."""
        self._send(src, dst, payload, time.monotonic() + timeout)
        self.sent += 1

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
            if isinstance(tx, DriverQueue):
                return not tx.outstanding
            return not self.running or len(tx.ready) >= tx.posted

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
        if not self.gfeatures & F_NS:
            raise ValueError("name service was not negotiated")
        self._send(addr, NS_ADDR, pack_name(name, addr, flags, self.habits.name_garbage), deadline)

    def wait_channel(self, name: str, timeout: float = 5.0) -> int:
        """The address of the other end's endpoint `name`, once it is announced."""
        deadline = time.monotonic() + timeout
        self._until(lambda: name in self.channels, deadline, f"announcement of {name!r}")
        return self.channels[name]
