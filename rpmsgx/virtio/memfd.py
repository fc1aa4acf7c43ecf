"""`memfd:SOCKET`: sealed memory, handed over a Unix stream socket.

The driver listens and owns the memory, a memfd that cannot shrink, with OpenAMP's layout. To each peer it sends the 16
bytes of `HELLO` with one descriptor (SCM_RIGHTS), the memory's. From then on the connection is the doorbell: each byte
is a ring, either way, and its end is the sign that the peer has gone. No eventfds: their flags and counters are
shared, so that a peer could make one that is full or empty block this end. No pipes, though each end could open them
anew: splice() from a socket that stays silent keeps a pipe's lock, and O_NONBLOCK does not help who waits for that.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify import rights
from rpmsgx.notify.socket import SocketDoorbell
from rpmsgx.virtio.file import Found, check_table
from rpmsgx.virtio.layout import MAX_SIZE
from rpmsgx.virtio.link import Link, VdevLink
from rpmsgx.virtio.modern import BLOCK_SIZE, ModernLayout, ModernLink, check_block

if TYPE_CHECKING:
    from rpmsgx.virtio.layout import Layout
    from rpmsgx.virtio.link import Role, Session

HELLO = b"rpmsgx memfd 1\r\n"


class MemfdDoorbell(SocketDoorbell):
    """The connection's doorbell, behind the handover. One end gives (`memory` given), the other takes (None).

    `memory` of the taking end is a new region for each connection, None before the handover; the region belongs to
    whoever takes it from there. `error` says why the last handover was refused. Thread-safe.
    """

    def __init__(self, path: str, memory: Region | None) -> None:
        self.memory = memory
        self.error: ResourceError | None = None
        self._path = path
        self._gives = memory is not None
        super().__init__(path, listen=self._gives)

    def refuse(self) -> None:
        """What is in the memory that was handed over is not acceptable: hang up. The next is looked for at leisure."""
        with self._lock:
            if self.connected:
                self._lose()

    def _greet(self, peer: socket.socket) -> bool:
        try:
            if self._gives:
                self._give(peer)
            else:
                self.memory = self._take(peer)
            return True
        except BlockingIOError:
            return False
        except ResourceError as error:
            self.error = error
        except OSError:
            pass  # it has gone again
        self._meeting.drop(known=False)
        return False

    def _give(self, peer: socket.socket) -> None:
        assert self.memory is not None and self.memory.fd is not None
        rights.send(peer, HELLO, [self.memory.fd], socket.MSG_DONTWAIT)

    def _take(self, peer: socket.socket) -> Region:
        # Not a byte more than the greeting: what follows are rings.
        hello, fds, more = rights.receive(peer, len(HELLO), 1, socket.MSG_DONTWAIT)
        try:
            if not hello and not fds:
                raise ConnectionResetError
            if hello != HELLO:
                raise ResourceError(f"{self._path}: the peer said {hello!r}, not {HELLO!r}: not a memfd link")
            if len(fds) != 1 or more:
                count = f"{len(fds)} or more" if more else str(len(fds))
                raise ResourceError(f"{self._path}: the peer handed over {count} descriptors, not 1")
            return self._checked(fds[0])
        finally:
            for fd in fds:
                os.close(fd)

    def _checked(self, fd: int) -> Region:
        try:
            size = os.fstat(fd).st_size
            if size > MAX_SIZE:
                raise ResourceError(f"{self._path}: {size:#x} bytes of memory, the limit is {MAX_SIZE:#x}")
            memory = Region.from_fd(self._path, fd)
        except OSError as error:
            raise ResourceError(f"{self._path}: {error}") from error
        if not memory.sealed:
            memory.close()
            raise ResourceError(f"{self._path}: the peer's memory is not sealed against shrinking")
        return memory

    def _lose(self) -> None:
        if not self._gives:
            self.memory = None
        super()._lose()


class MemfdDriver(VdevLink):
    """The end that owns the memory."""

    gone = "the peer closed it or died"

    def __init__(self, path: str, layout: Layout) -> None:
        self._layout = layout
        memory = Region.memfd(f"rpmsgx {os.path.basename(path)}", layout.size)
        try:
            AddressSpace(memory).write(0, layout.table())
            doorbell = MemfdDoorbell(path, memory)
        except BaseException:
            memory.close()
            raise
        super().__init__(
            "driver",
            f"memfd:{path}",
            space=AddressSpace(memory),
            region=memory,
            doorbell=doorbell,
            per_connection=True,
            **self._found(memory)._asdict(),
        )

    def _found(self, memory: Region) -> Found:
        return check_table(memory, "driver", self._layout)

    def close(self) -> None:
        if not self._closed:
            super().close()
            self._region.close()


class ModernMemfdDriver(MemfdDriver, ModernLink):
    """The same with a block in place of the table."""

    _layout: ModernLayout

    def _found(self, memory: Region) -> Found:
        return Found(0, None, BLOCK_SIZE, {})


class MemfdDevice(Link):
    """The end that is given the memory: it knows no table before."""

    gone = "the peer closed it or died"
    doorbell: MemfdDoorbell

    def __init__(self, path: str, layout: Layout) -> None:
        self._layout = layout
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
                self._inner = self._link(memory)
            except ResourceError:
                memory.close()
                doorbell.refuse()
                raise
            self.space, self.named = self._inner.space, self._inner.named
        return self._inner.session()

    def _link(self, memory: Region) -> VdevLink:
        return VdevLink(
            "device",
            self.url,
            space=AddressSpace(memory),
            region=memory,
            doorbell=self.doorbell,
            per_connection=True,
            **check_table(memory, "device", self._layout)._asdict(),
        )

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
            self._inner = self.space = None


class ModernMemfdDevice(MemfdDevice):
    """The same with a block in place of the table."""

    _layout: ModernLayout

    def _link(self, memory: Region) -> VdevLink:
        check_block(memory)
        link = ModernLink(
            "device",
            self.url,
            space=AddressSpace(memory),
            region=memory,
            offset=0,
            doorbell=self.doorbell,
            table_end=BLOCK_SIZE,
        )
        link._layout = self._layout
        return link

    def needs_reset(self) -> None:
        if self._inner is not None:
            self._inner.needs_reset()


def open_link(address: str, role: Role, *, layout: Layout) -> Link:
    """Open one end of `memfd:SOCKET`; the driver listens on SOCKET and chooses the layout.

    Raises OSError if the driver cannot listen there.
    """
    if isinstance(layout, ModernLayout):
        return (ModernMemfdDriver if role == "driver" else ModernMemfdDevice)(address, layout)
    return (MemfdDriver if role == "driver" else MemfdDevice)(address, layout)
