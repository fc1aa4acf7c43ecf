"""Messages of any length, cut into fragments on an endpoint. Both ends have to be streams.

docs/streams.md has the format. `_Inbox` and `_Outbox` are the rules of the two directions, without any I/O. `Stream`
drives them.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from contextlib import suppress
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING, Self

from rpmsgx.errors import ChannelRemoved, Closed, Error, MessageSize, NoPeer, PeerError, StateError, Timeout
from rpmsgx.notify.deadline import deadline, left
from rpmsgx.notify.doorbell import readable

if TYPE_CHECKING:
    from rpmsgx.rpmsg.bus import Endpoint
    from rpmsgx.rpmsg.bus import _Buffer as Buffer  # its stub's

HEADER = struct.Struct("<BBHIII")  # kind, version, sequence, tag, credit, value
VERSION = 1
OPEN, ACCEPT, FIRST, MORE, DROP, CREDIT, END = range(1, 8)

LIMIT = 1 << 20
LIMIT_MIN, LIMIT_MAX = 64, 1 << 30
COST = 64  # credit that a message takes beside its bytes: so empty ones are limited too
SPARE = 1024  # frames that a call still takes once its time is up
REFUSALS = 4  # frames that go before others and wait for a buffer, at most
BUFFER, CREDITS, ANSWER, MESSAGE = "buffer", "credit", "answer", "message"  # what a call may wait for
WORD = 0xFFFFFFFF


class _Violation(Exception):
    """The peer broke a rule of the stream."""


class _Inbox:
    """What came: whole messages, and the one that is being put together. They never cost more than `window`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.window = self.granted = limit + COST  # granted, received, released: since the beginning
        self.received = 0
        self.released = 0
        self.sequence = 0
        self.messages: deque[bytes] = deque()
        self.partial: BytesIO | None = None  # grows as it comes
        self.missing = 0

    def fragment(self, kind: int, sequence: int, value: int, payload: memoryview) -> None:
        if sequence != self.sequence:
            raise _Violation(f"fragment {sequence} where {self.sequence} was due: one was lost, or came twice")
        self.sequence = sequence + 1 & 0xFFFF
        cost = len(payload)
        if kind == FIRST:
            if self.partial is not None:
                raise _Violation("a message begins before the one before has ended")
            if value > self.limit:
                raise _Violation(f"a message of {value} bytes, the limit is {self.limit}")
            partial, missing = BytesIO(), value
            cost += COST
        else:
            if self.partial is None:
                raise _Violation("a fragment of no message")
            partial, missing = self.partial, self.missing
            if value != partial.tell():
                raise _Violation(f"a fragment for offset {value} where {partial.tell()} was due")
        if len(payload) > missing or (missing and not payload):
            raise _Violation(f"a fragment of {len(payload)} bytes where {missing} are missing")
        if self.received + cost > self.granted:
            raise _Violation(f"{self.received + cost - self.granted} bytes more than were granted")
        self.received += cost
        partial.write(payload)
        self.missing = missing - len(payload)
        if self.missing:
            self.partial = partial
        else:
            self.partial = None
            self.messages.append(partial.getvalue())  # no copy

    def drop(self) -> None:
        """The peer gave up the message that it was sending."""
        if self.partial is None:
            raise _Violation("a message was given up, but none had begun")
        self._release(self.partial.tell())
        self.partial = None

    def take(self) -> bytes:
        message = self.messages.popleft()
        self._release(len(message))
        return message

    def _release(self, size: int) -> None:
        self.released += COST + size

    def grant(self) -> bool:
        """Grant what is free, if that is much, or if the message that has begun cannot end without it."""
        free = self.released + self.window - self.granted
        starved = self.partial is not None and self.missing > self.granted - self.received
        if 2 * free < self.window and not (starved and free):
            return False
        self.granted += free
        return True


class _Outbox:
    """What may be sent. `available` never exceeds the `window` that the peer's limit gives."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.window = self.available = limit + COST
        self.sent = 0
        self.sequence = 0

    def spend(self, cost: int) -> None:
        self.sent += cost
        self.available -= cost
        self.sequence = self.sequence + 1 & 0xFFFF

    def credit(self, granted: int, *, alone: bool) -> None:
        """The peer has granted so much since the beginning. `alone`: that is all it says, so it must be more."""
        available = granted - self.sent & WORD
        if not self.available + alone <= available <= self.window:
            raise _Violation(f"credit for {available} bytes, after {self.available} of {self.window}")
        self.available = available


class Stream:
    """Messages of any length over `endpoint`, whose peer's end is a `Stream` too. A context manager; iterable.

    `limit`: bytes of the longest message that this end takes (64 to 2^30), and of what it holds before recv() takes it.
    The peer has a limit of its own, which `mtu` tells. A stream belongs to one peer. Whatever ends it, it stays ended:
    another `Stream` on the same endpoint begins anew. Until then the endpoint, which stays open, is the stream's alone.

    Nothing happens between calls: recv() gives credit, and each call takes note of what has come. So two ends that only
    send wait for each other, as with a pipe.

    Not thread-safe: a call while another thread is in one raises StateError. For endpoints of links, not of `char:`,
    where the kernel does not tell who sent a message.
    """

    def __init__(self, endpoint: Endpoint, *, limit: int = LIMIT) -> None:
        """Raises ValueError for a limit that cannot be. Sends nothing yet."""
        if not isinstance(limit, int) or not LIMIT_MIN <= limit <= LIMIT_MAX:
            raise ValueError(f"limit must be {LIMIT_MIN} to {LIMIT_MAX} bytes, not {limit!r}")
        self.endpoint = endpoint
        self.limit = limit
        self._tag = int.from_bytes(os.urandom(4), "little")
        self._peer: int | None = None
        self._peer_tag = 0
        self._inbox = _Inbox(limit)
        self._outbox: _Outbox | None = None  # once the peer has told its limit
        self._opened = False  # OPEN or ACCEPT has been sent, or is due
        self._due: deque[tuple[bytes, int]] = deque()  # frames that go before all others, and where to
        self._owes_credit = False
        self._over: Error | None = None
        self._closed = False
        self._turn = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return self.recv()
        except (Closed, ChannelRemoved):
            raise StopIteration from None

    def __repr__(self) -> str:
        state = " closed" if self._closed else " ended" if self._over else "" if self._outbox else " not open yet"
        return f"<Stream on {self.endpoint!r}{state}>"

    @property
    def mtu(self) -> int:
        """Bytes of the longest message that the peer takes; 0 before it has told."""
        return self._outbox.limit if self._outbox else 0

    def recv(self, *, timeout: float | None = None) -> bytes:
        """The next message. Waits up to `timeout` seconds (None: for ever, 0: not at all).

        Raises Timeout; what has come of a message stays for the next call. Raises ChannelRemoved where the peer or the
        link has gone, PeerError where the peer broke a rule, both after all whole messages that came before. As
        Endpoint.recv() else.
        """
        with _Call(self, timeout) as call:
            while not self._inbox.messages:
                self._check()
                call.pull(MESSAGE, stuck=not self._flush())
            message = self._inbox.take()
            self._owes_credit |= self._inbox.grant()
            self._tell()
            return message

    def send(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Send `data`, bytes or any contiguous buffer of 0 to `mtu` bytes, as one message.

        Waits up to `timeout` seconds for the peer to open the stream, for credit and for buffers, and takes what comes
        meanwhile. A message that could not be sent whole is none for the peer. Raises Timeout, MessageSize, NoPeer,
        ChannelRemoved, PeerError; as Endpoint.send() else.
        """
        view = memoryview(data)  # type: ignore[arg-type]
        view = view.cast("B") if view.nbytes else memoryview(b"")
        with _Call(self, timeout) as call:
            outbox = self._await_open(call)
            if len(view) > outbox.limit:
                raise MessageSize(f"a message of {len(view)} bytes; the peer takes at most {outbox.limit}")
            sent = -1  # not even the first fragment
            try:
                while sent < len(view):
                    self._check()
                    sent, lacks = self._send_fragment(outbox, view, sent)
                    if lacks:
                        call.pull(lacks, stuck=lacks == BUFFER)
            except BaseException:
                if 0 <= sent < len(view) and self._over is None and self._peer is not None:
                    self._due.append((self._frame(DROP), self._peer))
                raise

    def close(self, linger: float = 1.0) -> None:
        """End the stream; the endpoint stays open. Idempotent; never raises because of the peer.

        Waits up to `linger` seconds for a buffer, to tell the peer, which can still take what was sent before.
        """
        if self._closed:
            return
        self._closed = True
        if self._opened and self._peer is not None and self._over is None:
            with suppress(Error):
                self.endpoint.send_to(self._frame(END, self._peer_tag), self._peer, timeout=linger)

    def _check(self) -> None:
        if self._closed:
            raise Closed("the stream is closed")
        if self._over is not None:
            raise self._over.with_traceback(None)

    def _end(self, error: Error) -> None:
        if self._over is None:
            self._over = error

    # -- out

    def _frame(self, kind: int, value: int = 0) -> bytes:
        sequence = self._outbox.sequence if self._outbox else 0
        return HEADER.pack(kind, VERSION, sequence, self._tag, self._inbox.granted & WORD, value)

    def _await_open(self, call: _Call) -> _Outbox:
        """What may be sent, once the peer has told."""
        if self._peer is None and self.endpoint.dst is None:
            with suppress(Timeout):  # an announcement, or OPEN, may lie in the ring
                call.take(0)
        while self._outbox is None:
            self._check()
            sent = self._flush()
            if self._peer is None:
                raise NoPeer("no destination is known: nobody announced this service or opened a stream to it")
            call.pull(ANSWER, stuck=not sent)
        return self._outbox

    def _flush(self) -> bool:
        """Send what goes before all others. False: there is no buffer for it."""
        if not self._opened and self._over is None:
            if self._peer is None:
                self._peer = self.endpoint.dst
            if self._peer is not None:
                self._opened = True
                self._due.append((self._frame(OPEN, self.limit), self._peer))
        while self._due:
            if not self._try_send(*self._due[0]):
                return False
            self._due.popleft()
        if self._owes_credit and self._peer is not None:
            return self._try_send(self._frame(CREDIT), self._peer)
        return True

    def _tell(self) -> None:
        """The same where nothing is waited for: who comes next hears of errors."""
        with suppress(Error):
            self._flush()

    def _try_send(self, frame: bytes, dst: int) -> bool:
        try:
            self.endpoint.send_to(frame, dst, timeout=0)
        except Timeout:
            return False
        except ChannelRemoved as error:
            self._end(error)
            raise
        if frame[0] in (FIRST, MORE, CREDIT):
            self._owes_credit = False
        return True

    def _send_fragment(self, outbox: _Outbox, view: memoryview, sent: int) -> tuple[int, str]:
        """Send what comes after `sent` bytes (-1: nothing was sent): how many are sent now, and what was lacking."""
        mtu = self.endpoint.mtu
        if not self._flush() or mtu == 0 or self._peer is None:
            return sent, BUFFER
        if mtu <= HEADER.size:
            raise MessageSize(f"messages of this link have {mtu} bytes; a stream needs {HEADER.size + 1}")
        start, cost = max(sent, 0), COST if sent < 0 else 0
        size = min(len(view) - start, outbox.available - cost, mtu - HEADER.size)
        if size < min(len(view), 1):
            return sent, CREDITS
        head = self._frame(FIRST, len(view)) if sent < 0 else self._frame(MORE, sent)
        if not self._try_send(b"".join((head, view[start : start + size])), self._peer):
            return sent, BUFFER
        outbox.spend(cost + size)
        return start + size, ""

    # -- in

    def _take(self, frame: bytes, src: int) -> None:
        """A message of the endpoint. What does not concern this stream is left out."""
        try:
            if len(frame) < HEADER.size or frame[1] != VERSION or not OPEN <= frame[0] <= END:
                if self._peer in (None, src):
                    raise _Violation(f"a message of {len(frame)} bytes that is no stream's")
            elif self._outbox is None:
                self._meet(frame, src)
            elif src == self._peer:
                self._handle(self._outbox, frame)
            elif frame[0] == OPEN:
                self._refuse(frame, src)
        except _Violation as violation:
            self._end(PeerError(f"stream: {violation}"))
            self._due.append((self._frame(END, self._peer_tag), src))
            self._tell()

    def _meet(self, frame: bytes, src: int) -> None:
        """A frame before the stream is open."""
        kind, _, _, tag, answered, value = HEADER.unpack_from(frame)
        if kind == OPEN or (kind == ACCEPT and src == self._peer and answered == self._tag):
            if not LIMIT_MIN <= value <= LIMIT_MAX:
                raise _Violation(f"its limit is {value} bytes, not {LIMIT_MIN} to {LIMIT_MAX}")
            self._peer, self._peer_tag, self._outbox = src, tag, _Outbox(value)
            if kind == OPEN:
                self._opened = True
                self._due.append((HEADER.pack(ACCEPT, VERSION, 0, self._tag, tag, self.limit), src))
        elif kind in (FIRST, MORE, CREDIT):
            self._refuse(frame, src)
        elif kind == END and value == self._tag:
            self._end(ChannelRemoved("the peer has a stream with somebody else"))

    def _refuse(self, frame: bytes, src: int) -> None:
        """Somebody has a stream that this one is not the other end of: let him know."""
        if len(self._due) < REFUSALS:
            self._due.append((self._frame(END, HEADER.unpack_from(frame)[3]), src))

    def _handle(self, outbox: _Outbox, frame: bytes) -> None:
        """A frame of the peer."""
        kind, _, sequence, tag, credit, value = HEADER.unpack_from(frame)
        if kind == END and (tag == self._peer_tag or value == self._tag):
            self._end(ChannelRemoved("the peer ended the stream"))
        elif kind == OPEN:
            if tag == self._peer_tag:
                raise _Violation("it was opened twice")
            self._end(ChannelRemoved("the peer began another stream"))
        elif kind in (ACCEPT, END) or tag != self._peer_tag:
            pass  # both had opened it; of a stream before
        else:
            outbox.credit(credit, alone=kind == CREDIT)
            if kind == DROP:
                self._inbox.drop()
            elif kind != CREDIT:
                self._inbox.fragment(kind, sequence, value, memoryview(frame)[HEADER.size :])
            self._owes_credit |= self._inbox.grant()


class _Call:
    """A call of a stream: its turn, its time, and how it waits."""

    def __init__(self, stream: Stream, timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._deadline = deadline(timeout)
        self._spare = SPARE
        self._fd = -1  # of the endpoint, where nothing had come: it fires once a buffer is there that is refused now

    def __enter__(self) -> Self:
        if not self._stream._turn.acquire(blocking=False):
            raise StateError("another thread is in a call of this stream")
        if self._stream._closed:
            self._stream._turn.release()
            raise Closed("the stream is closed")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream._turn.release()

    def take(self, timeout: float | None) -> None:
        """Take a frame. Raises Timeout if none comes."""
        stream = self._stream
        try:
            frame, src = stream.endpoint.recv_from(timeout=timeout)
        except ChannelRemoved as error:
            stream._end(error)
            raise
        stream._take(frame, src)

    def pull(self, lacks: str, *, stuck: bool) -> None:
        """Take a frame, waiting for one; where this end is `stuck`, for a buffer too. Returns early at will."""
        time_left = left(self._deadline)
        if time_left == 0:
            self._spare -= 1
            if self._spare < 0:
                raise self._late(lacks)
        fd, self._fd = self._fd, -1
        if stuck and fd >= 0:  # a buffer was refused since: nothing may come between that and this
            readable(fd, time_left)
            return
        try:
            self.take(0 if stuck else time_left)
        except Timeout:
            if not stuck or time_left == 0:
                raise self._late(lacks) from None
            self._fd = self._stream.endpoint.fileno()

    def _late(self, lacks: str) -> Timeout:
        return Timeout(f"the peer gave no {lacks} within {self._timeout:g} s")
