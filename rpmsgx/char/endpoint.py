"""Endpoints: messages through /dev/rpmsgN, a byte stream through /dev/ttyRPMSGN."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import termios
import tty
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Never

from rpmsgx.char.control import destroy
from rpmsgx.char.devices import ANY
from rpmsgx.char.shared import Shared, wait
from rpmsgx.errors import ChannelRemoved, Closed, MessageSize, NoPeer, StateError, Timeout
from rpmsgx.notify.deadline import deadline, left
from rpmsgx.notify.timer import Timer

if TYPE_CHECKING:
    from rpmsgx.char.bus import Bus, Channel
    from rpmsgx.rpmsg.bus import _Buffer as Buffer  # its stub's

_ALL = 1 << 16  # more than any message: a read that is too short loses the rest
_RETRY = 0.001, 0.016  # seconds between looks for a free buffer: Linux before 7.0 does not tell; doubled each time
_ERESTARTSYS = 512  # what a kernel gives that waits for a buffer in spite of O_NONBLOCK, after 15 s
_HAS_CALLBACK = "this endpoint has a callback: its messages go there, from poll()"
_LENGTHS: dict[int, type[ctypes._SimpleCData[int]]] = {2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class Endpoint(Shared):
    """One end of a conversation that goes through the kernel. Made by `Bus.open()` and `Bus.create_endpoint()`.

    Messages wait in the kernel, which keeps all of them; those that were not read when the kernel takes the node away
    are lost. The kernel does not tell who sent a message, and sends to one address only, chosen when the endpoint is
    made. When the remote or its service goes, the endpoint is done for: `Bus.open()` waits for the next.

    Thread-safe; messages stay in order. Iterating yields messages until the endpoint is closed or its channel removed.
    A context manager that closes the endpoint.
    """

    _what = "endpoint"
    _full: tuple[int, ...] = (errno.EAGAIN,)  # what a write says when there is no buffer
    _size = _ALL  # of a read
    _out = select.POLLOUT  # what poll(2) says when there is one, from Linux 7.0 on

    def __init__(
        self,
        bus: Bus,
        fd: int,
        *,
        name: str | None,
        src: int,
        dst: int,
        mtu: int,
        channel: Channel | None = None,
        callback: Callable[[Endpoint, bytes, int], object] | None = None,
        watched: bool = False,
        created: bool = False,
        withdraw: Callable[[], None] | None = None,
    ) -> None:
        """`watched`: the kernel does not end it when `channel` goes. `created`: the node goes with the endpoint.
        `withdraw` is called at the end."""
        super().__init__()
        self._bus = bus
        self._fd = fd
        self._name, self._src, self._dst, self._mtu = name, src, dst, mtu
        self._channel = channel
        self._callback = callback
        self._watched = watched
        self._created = created
        self._withdraw = withdraw
        self._removed = ""  # why
        self._kept: deque[bytes] = deque()  # read, and not taken
        self._sent = self._received = 0
        self._epoll: select.epoll | None = None
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        peer = "ANY" if self._dst == ANY else f"{self._dst:#x}"
        state = " closed" if self._closed else " removed" if self._removed else ""
        return f"<{type(self).__name__} {self._name!r} {self._src:#x} to {peer}{state}>"

    # -- receiving -----------------------------------------------------------------------------------------------

    def recv(self, *, timeout: float | None = None) -> bytes:
        """The next message. Waits up to `timeout` seconds (None: for ever, 0: not at all).

        Raises Timeout, ChannelRemoved, Closed.
        """
        end = deadline(timeout)
        if self._callback is not None:
            raise StateError(_HAS_CALLBACK)
        self._enter()
        try:
            while (data := self._take()) is None:
                self._await(select.POLLIN, end, "no message", timeout)
            return data
        finally:
            self._leave()

    def try_recv(self) -> bytes | None:
        """The next message, or None where there is none now. None arms `fileno()` again."""
        if self._callback is not None:
            raise StateError(_HAS_CALLBACK)
        return self._next()

    def recv_many(self, max: int, *, timeout: float | None = None) -> list[bytes]:
        """Up to `max` (at least 1) messages; waits for the first only. Raises as recv()."""
        if max < 1:
            raise ValueError(f"max must be at least 1, not {max}")
        messages = [self.recv(timeout=timeout)]
        with contextlib.suppress(ChannelRemoved, Closed):  # what came before; the next call raises
            while len(messages) < max and (data := self.try_recv()) is not None:
                messages.append(data)
        return messages

    def recv_into(self, rows: Buffer, *, lengths: Buffer | None = None, timeout: float | None = None) -> int:
        """Fill the rows of a writable C-contiguous buffer (a 2-D array, say), one message a row. Rows filled, >= 1.

        Waits for the first message only. A shorter message is padded with zeros; one longer than a row raises
        MessageSize and stays queued, after the rows filled before it were returned. `lengths`: a writable buffer of
        one integer a row (2, 4 or 8 bytes wide) that receives the messages' lengths. Raises as recv().
        """
        table = _Rows(rows, lengths)
        data: bytes | None = self.recv(timeout=timeout)
        count = 0
        while data is not None:
            if len(data) > table.width:
                self._keep(data)
                if count:
                    break
                raise MessageSize(f"message of {len(data)} bytes does not fit a row of {table.width}: it stays queued")
            table.fill(count, data)
            count += 1
            if count == table.count:
                break
            try:
                data = self.try_recv()
            except (ChannelRemoved, Closed):
                break  # what came before; the next call raises
        return count

    def recv_from(self, *, timeout: float | None = None) -> Never:
        """Raises StateError: the kernel's node gives no sender."""
        raise StateError("the kernel does not tell who sent a message: use recv()")

    def hold(self, *, timeout: float | None = None) -> Never:
        """Raises StateError: the kernel copies."""
        raise StateError("no view into the link's memory, which is the kernel's: use recv()")

    def __iter__(self) -> Endpoint:
        return self

    def __next__(self) -> bytes:
        try:
            return self.recv()
        except (Closed, ChannelRemoved):
            raise StopIteration from None

    def _keep(self, data: bytes) -> None:
        with self._lock:
            self._kept.appendleft(data)
            self._received -= 1
            if self._timer is not None:
                self._timer.set(1)

    def _next(self) -> bytes | None:
        self._enter()
        try:
            return self._take()
        finally:
            self._leave()

    def _take(self) -> bytes | None:
        """The next message, or None; then the descriptors are armed. Between _enter() and _leave()."""
        try:
            with self._lock:
                data = self._kept.popleft() if self._kept else self._read()
                if data is not None:
                    self._received += 1
                    return data
        except OSError as error:
            raise self._failed(error) from None
        if self._watched:
            self._bus._look()
        if self._removed:
            raise ChannelRemoved(self._removed)
        if self._timer is not None:
            _clear(self._timer.fileno())
        return None

    def _read(self) -> bytes | None:
        if self._closed or (self._removed and not self._watched):
            return None
        try:
            return os.read(self._fd, self._size)
        except BlockingIOError:
            return None

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Send `data` (bytes or any contiguous buffer, 0 to `mtu` bytes) to the peer of this endpoint.

        Waits up to `timeout` seconds for a buffer. The kernel takes it then; whether the remote does is not told.
        Raises Timeout, MessageSize, NoPeer, ChannelRemoved, Closed.
        """
        end = deadline(timeout)
        message = self._message(data)
        self._enter()
        try:
            step = _RETRY[0]
            while not self._write(message):
                self._await(self._out, end, "the peer gave no buffer back", timeout, step)
                step = min(2 * step, _RETRY[1])
        finally:
            self._leave()

    def try_send(self, data: Buffer) -> bool:
        """As send(), but False where there is no buffer now. `fileno()` then asks to try again, soon."""
        message = self._message(data)
        self._enter()
        try:
            return self._write(message)
        finally:
            self._leave()

    def send_to(self, data: Buffer, dst: int, *, timeout: float | None = None) -> None:
        """As send(), where `dst` is the peer of this endpoint. Raises StateError for any other address."""
        if dst != self._dst or dst == ANY:
            raise StateError(f"the kernel sends from here to {self._peer()} only; make another with dst=")
        self.send(data, timeout=timeout)

    def send_many(self, messages: Iterable[Buffer], *, timeout: float | None = None) -> int:
        """Send every message of a sequence, or every row of a 2-D contiguous array.

        Returns how many were sent: all, or fewer where `timeout` seconds did not suffice. Errors carry `.sent`.
        """
        if isinstance(messages, bytes | bytearray | memoryview | str) or getattr(messages, "ndim", 2) < 2:
            raise TypeError("send_many takes a sequence of messages, or a 2-D array of rows; use send() for one")
        end = deadline(timeout)
        sent = 0
        try:
            for message in messages:
                self.send(message, timeout=left(end))
                sent += 1
        except Timeout:
            pass
        except BaseException as error:
            error.sent = sent  # type: ignore[attr-defined]
            raise
        return sent

    def claim(self, size: int | None = None, *, timeout: float | None = None) -> Never:
        """Raises StateError: the kernel copies."""
        raise StateError("no view into the link's memory, which is the kernel's: use send()")

    def _message(self, data: Buffer) -> Buffer:
        if self._dst == ANY:
            raise NoPeer(
                "no destination is known, and the kernel learns none from messages: give create_endpoint() a dst, or "
                "open() the peer's service"
            )
        size = len(data) if isinstance(data, bytes) else _view(data).nbytes
        if size > self.mtu:
            raise MessageSize(f"a message of {size} bytes does not fit: at most {self.mtu}")
        return data

    def _write(self, message: Buffer) -> bool:
        if self._watched:
            self._bus._look()
        if self._removed:
            raise ChannelRemoved(self._removed)
        self._check()
        try:
            os.write(self._fd, message)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in self._full:
                raise self._failed(error) from None
            self._bus._again(_RETRY[0])
            if self._timer is not None:
                self._timer.set(1)
            return False
        with self._lock:
            self._sent += 1
        return True

    # -- waiting -------------------------------------------------------------------------------------------------

    def _await(
        self, events: int, end: float | None, late: str, timeout: float | None, step: float | None = None
    ) -> None:
        """Wait for `events`, at most `step` seconds. Raises Timeout at the `end`, `timeout` after the start; Closed."""
        self._check()
        if left(end) == 0:
            raise Timeout(f"{late} within {timeout:g} s")
        wait(left(end), step, *self._wakers(), events=(self._fd, events))
        self._check()

    def _wakers(self) -> list[int]:
        """What tells of its end, beside its node."""
        return [self._wake, self._bus._watch.fileno()] if self._watched else [self._wake]

    def fileno(self) -> int:
        """A descriptor that is readable while `try_recv()` may return a message. Belongs to the endpoint.

        Call try_recv() until it returns None: that arms it again, as does any receive call that ends with Timeout.
        After try_send() returned False, or send() ended with Timeout, it is readable too when it is time to try again.
        Spurious readiness is allowed, lost readiness is not.
        """
        with self._lock:
            self._check()
            if self._epoll is None:
                epoll = select.epoll()
                timer = Timer()
                for fd in (self._fd, timer.fileno(), *self._wakers()):
                    epoll.register(fd, select.EPOLLIN)
                self._epoll, self._timer = epoll, timer
                if self._kept:
                    timer.set(1)
            return self._epoll.fileno()

    # -- its end -------------------------------------------------------------------------------------------------

    def _failed(self, error: OSError) -> Exception:
        if error.errno == errno.EPIPE:
            self._removed = self._removed or f"{self._service()} has gone"
            self._bus._silence(self)
            return ChannelRemoved(self._removed)
        if error.errno == errno.EMSGSIZE:
            return MessageSize("the message does not fit the buffers of this link")
        if error.errno == _ERESTARTSYS:
            return Timeout("the peer gave no buffer back, for as long as this kernel waits")
        return error

    def _lose(self) -> None:
        """The channel has gone, as the bus sees it."""
        self._removed = self._removed or f"{self._service()} has gone"
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def _service(self) -> str:
        return f"the peer's service {self._name!r}" if self._channel is not None else "the remote"

    def close(self) -> None:
        """Give the node back, take away what was made for it, withdraw the name. Idempotent. Waiters get Closed."""
        self._bus._silence(self)
        self._end()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.close()
        if self._created and not self._forked:
            destroy(self._fd)
        os.close(self._fd)
        if not self._forked:
            if self._withdraw is not None:
                self._withdraw()
            self._bus._released(self)

    # -- what it is ----------------------------------------------------------------------------------------------

    def _peer(self) -> str:
        return "nobody" if self._dst == ANY else f"{self._dst:#x}"

    @property
    def bus(self) -> Bus:
        """The bus it is on."""
        return self._bus

    @property
    def name(self) -> str | None:
        """The service's name, or None."""
        return self._name

    @property
    def addr(self) -> int:
        """The local address; ANY where the kernel chose it and does not tell."""
        return self._src

    @property
    def dst(self) -> int | None:
        """The peer's address, or None: it cannot send."""
        return None if self._dst == ANY else self._dst

    @property
    def mtu(self) -> int:
        """Bytes of payload that a message can have."""
        return self._mtu

    @property
    def counters(self) -> dict[str, int]:
        """Messages sent, received (taken by the caller), dropped (none), and read but waiting for a call that fits."""
        return {"sent": self._sent, "received": self._received, "dropped": 0, "queued": len(self._kept)}


class TtyChannel(Endpoint):
    """A service that the kernel's rpmsg_tty has, through /dev/ttyRPMSGN: a stream of bytes in both directions.

    The calls are those of an endpoint, as a socket's are of a stream: `recv()` returns what has come, 1 to `mtu` bytes,
    in pieces that need not be the messages that the remote sent. `send()` takes up to `mtu` bytes, which go as one
    message, or not at all. The terminal is in raw mode: no byte means anything.
    """

    _full = (errno.EAGAIN, errno.ENOMEM)  # the driver's own answer goes through
    _out = 0  # a tty can always be written to, it says

    def __init__(self, bus: Bus, fd: int, **options: Any) -> None:
        try:
            tty.setraw(fd, termios.TCSANOW)
        except termios.error as error:
            raise OSError(*error.args) from None
        super().__init__(bus, fd, **options)
        self._size = self._mtu

    def _read(self) -> bytes | None:
        data = super()._read()
        if data == b"":  # hung up; in raw mode there is no other end of file
            raise OSError(errno.EPIPE, "hung up")
        return data

    def _write(self, message: Buffer) -> bool:
        return not _view(message).nbytes or super()._write(message)

    def _failed(self, error: OSError) -> Exception:
        hung_up = error.errno in (errno.EIO, errno.ENODEV, errno.ENXIO)
        return super()._failed(OSError(errno.EPIPE, "hung up") if hung_up else error)


class _Rows:
    """The rows of recv_into: a writable C-contiguous buffer cut along its first axis, and where lengths go."""

    def __init__(self, rows: Buffer, lengths: Buffer | None) -> None:
        view = _view(rows)
        if view.ndim < 1 or view.shape is None or view.shape[0] < 1 or view.nbytes < view.shape[0]:
            raise ValueError("rows must have at least one row of at least one byte")
        self.count = view.shape[0]
        self.width = view.nbytes // self.count
        self._rows = (ctypes.c_char * view.nbytes).from_buffer(rows)  # type: ignore[arg-type]
        self._lengths = None
        if lengths is not None:
            view = _view(lengths)
            if view.itemsize not in _LENGTHS or view.nbytes < self.count * view.itemsize:
                raise ValueError(f"lengths must have {self.count} integers of 2, 4 or 8 bytes")
            self._lengths = (_LENGTHS[view.itemsize] * self.count).from_buffer(lengths)  # type: ignore[arg-type]

    def fill(self, row: int, data: bytes) -> None:
        at = ctypes.addressof(self._rows) + row * self.width
        ctypes.memmove(at, data, len(data))
        ctypes.memset(at + len(data), 0, self.width - len(data))
        if self._lengths is not None:
            self._lengths[row] = len(data)


def _view(data: Buffer) -> memoryview:
    return memoryview(data)  # type: ignore[arg-type]


def _clear(fd: int) -> None:
    """Read what made a timer or an eventfd readable."""
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 8)
