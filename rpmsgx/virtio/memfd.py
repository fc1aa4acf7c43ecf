"""`memfd:SOCKET`: sealed memory and eventfds, handed over a Unix stream socket.

The driver listens and owns the memory, a memfd that cannot shrink, with OpenAMP's layout. To each peer it sends one
message: the 16 bytes of `HELLO` with three descriptors (SCM_RIGHTS): the memory, the eventfd that the device waits
on, the eventfd that wakes the driver; the eventfds are new for each connection. Nothing else is sent: that the
connection ends is the sign that the peer has gone.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.notify.socket import RETRY_MS, Meeting
from rpmsgx.virtio.file import check_table
from rpmsgx.virtio.link import Link, VdevLink

if TYPE_CHECKING:
    from rpmsgx.virtio.layout import Layout
    from rpmsgx.virtio.link import Role, Session

HELLO = b"rpmsgx memfd 1\r\n"
MAX_SIZE = 1 << 30  # bytes of memory that a device accepts

_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK


class MemfdDoorbell(Doorbell):
    """The eventfds of the present connection. One end gives (`memory` given), the other takes (`memory` None).

    `memory` of the taking end is a new region for each connection, None before the handover; the region belongs to
    whoever takes it from there. `error` says why the last handover was refused. Thread-safe.
    """

    def __init__(self, path: str, memory: Region | None) -> None:
        self.memory = memory
        self.error: ResourceError | None = None
        self.connected = self.rang = False
        self._gives = memory is not None
        self._wait = -1
        self._last = (-1, -1)
        self._backoff = False
        self._lock = threading.RLock()
        self._epoll = select.epoll()
        try:
            self._meeting = Meeting(path, listen=self._gives, epoll=self._epoll)
        except BaseException:
            self._epoll.close()
            raise
        self.drain()

    @property
    def poll_ms(self) -> int:  # type: ignore[override]
        return RETRY_MS if self._meeting.retry or self._backoff else -1

    def fileno(self) -> int:
        return self._epoll.fileno()

    def kick(self, notifyid: int) -> None:
        if self.kick_fd >= 0:
            try:
                os.eventfd_write(self.kick_fd, 1)
            except OSError:
                pass  # as loud as it can be

    def drain(self) -> None:
        with self._lock:
            if self._epoll.closed:
                return
            peer = self._meeting.peer
            if peer is None:
                self._meet()
                return
            ready = {fd for fd, _ in self._epoll.poll(0)}
            if self._wait in ready:
                self.rang = True
                try:
                    os.eventfd_read(self._wait)
                except BlockingIOError:
                    pass
            if peer.fileno() in ready:
                if not self.connected:
                    self._take(peer)
                elif not self._said(peer):
                    self._lose()
                    self._meet()

    def _meet(self) -> None:
        self._backoff = False
        if self._meeting.step():
            peer = self._meeting.peer
            assert peer is not None
            if self._gives:
                self._give(peer)

    @staticmethod
    def _said(peer: socket.socket) -> bool:
        """Read and forget what the peer says after the handover; False once it has gone."""
        try:
            return bool(peer.recv(4096))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _give(self, peer: socket.socket) -> None:
        assert self.memory is not None and self.memory.fd is not None
        wait, ring = os.eventfd(0, _FLAGS), os.eventfd(0, _FLAGS)
        try:
            socket.send_fds(peer, [HELLO], [self.memory.fd, ring, wait], socket.MSG_NOSIGNAL)
        except OSError:  # it has gone again
            os.close(wait)
            os.close(ring)
            self._meeting.drop()
            return
        self._connect(wait, ring)

    def _take(self, peer: socket.socket) -> None:
        fds: list[int] = []
        try:
            hello, fds, flags, _ = socket.recv_fds(
                peer, len(HELLO) + 1, 4, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
            if not hello and not fds:
                raise ConnectionResetError
            if hello != HELLO:
                raise ResourceError(f"{self._meeting.path}: the peer said {hello!r}, not {HELLO!r}: not a memfd link")
            if len(fds) != 3 or flags & socket.MSG_CTRUNC:
                count = f"{len(fds)} or more" if flags & socket.MSG_CTRUNC else str(len(fds))
                raise ResourceError(f"{self._meeting.path}: the peer handed over {count} descriptors, not 3")
            for fd in fds[1:]:
                if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
                    raise ResourceError(f"{self._meeting.path}: the peer handed over something that is no eventfd")
                os.set_blocking(fd, False)
            size = os.fstat(fds[0]).st_size
            if size > MAX_SIZE:
                raise ResourceError(f"{self._meeting.path}: {size:#x} bytes of memory, the limit is {MAX_SIZE:#x}")
            memory = Region.from_fd(self._meeting.path, fds[0])
            if not memory.sealed:
                memory.close()
                raise ResourceError(f"{self._meeting.path}: the peer's memory is not sealed against shrinking")
            self.memory = memory
            wait, ring = fds[1:]
            del fds[1:]
            self._connect(wait, ring)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._meeting.drop()  # it went before it said anything
        except (ResourceError, OSError) as error:
            self.refuse(error if isinstance(error, ResourceError) else ResourceError(f"{self._meeting.path}: {error}"))
        finally:
            for fd in fds:
                os.close(fd)

    def refuse(self, error: ResourceError) -> None:
        """What the peer handed over is not acceptable: drop it. The next one is looked for at leisure."""
        self.error = error
        if self.connected:
            self._lose()
        else:
            self._meeting.drop()
        self._backoff = True

    def _connect(self, wait: int, ring: int) -> None:
        self._epoll.register(wait, select.EPOLLIN)
        self._wait, self.kick_fd = wait, ring
        self.connected = True

    def _lose(self) -> None:
        # As with the socket: the old descriptors are closed with the next ones.
        for fd in self._last:
            _close(fd)
        self._epoll.unregister(self._wait)
        self._last = self._wait, self.kick_fd
        self._wait = self.kick_fd = -1
        self.connected = self.rang = False
        self.lost += 1
        if not self._gives:
            self.memory = None
        self._meeting.drop()

    def close(self) -> None:
        if self._meeting.forked:
            self._close()
        else:
            with self._lock:
                self._close()

    def _close(self) -> None:
        for fd in (*self._last, self._wait, self.kick_fd):
            _close(fd)
        self._last = (-1, -1)
        self._wait = self.kick_fd = -1
        self.connected = self.rang = False
        self._meeting.close()
        self._epoll.close()


class MemfdDriver(VdevLink):
    """The end that owns the memory."""

    gone = "the peer closed it or died"

    def __init__(self, path: str, layout: Layout) -> None:
        memory = Region.memfd(f"rpmsgx {os.path.basename(path)}", layout.size)
        try:
            memory.view[: layout.table_size] = layout.table()
            doorbell = MemfdDoorbell(path, memory)
        except BaseException:
            memory.close()
            raise
        super().__init__(
            "driver",
            f"memfd:{path}",
            space=AddressSpace(memory),
            region=memory,
            offset=layout.vdev_offset,
            doorbell=doorbell,
            buffers=layout.buffers,
            table_end=layout.table_size,
            per_connection=True,
        )

    def close(self) -> None:
        if not self._closed:
            super().close()
            self._region.close()


class MemfdDevice(Link):
    """The end that is given the memory: it knows no table before."""

    gone = "the peer closed it or died"
    doorbell: MemfdDoorbell

    def __init__(self, path: str) -> None:
        self.role = "device"
        self.url = f"memfd:{path}"
        self.doorbell = MemfdDoorbell(path, None)
        self._inner: VdevLink | None = None

    def session(self) -> Session | None:
        doorbell = self.doorbell
        error, doorbell.error = doorbell.error, None
        if error is not None:
            raise error
        memory = doorbell.memory
        if memory is None:
            return None
        if self._inner is None or self._inner._region is not memory:
            self._forget()
            try:
                vdev, end, _ = check_table(memory, "device")
            except ResourceError as bad:
                memory.close()
                doorbell.refuse(bad)
                doorbell.error = None
                raise
            self._inner = VdevLink(
                "device",
                self.url,
                space=AddressSpace(memory),
                region=memory,
                offset=vdev.offset,
                doorbell=doorbell,
                table_end=end,
                per_connection=True,
            )
        return self._inner.session()

    def alive(self) -> bool:
        return self._inner is not None and self._inner.alive()

    def close(self) -> None:
        self.doorbell.close()
        memory = self.doorbell.memory
        if memory is not None:
            memory.close()
        self._forget()

    def _forget(self) -> None:
        if self._inner is not None:
            self._inner._region.close()
            self._inner = None


def open_link(address: str, role: Role, *, layout: Layout) -> Link:
    """Open one end of `memfd:SOCKET`; the driver listens on SOCKET and chooses the layout.

    Raises OSError if the driver cannot listen there.
    """
    return MemfdDriver(address, layout) if role == "driver" else MemfdDevice(address)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
