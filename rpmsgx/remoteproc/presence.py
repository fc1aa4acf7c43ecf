"""Sources of presence: whether something is there that a remote depends on, such as the service that stores its files.

What counts is that a provider is registered: that it listens, runs, has announced itself. When it dies, by SIGKILL as
well, it is gone; when it comes back, it is there again. What does not exist yet is waited for.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Protocol

from rpmsgx.errors import StateError
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.paths import PathWatch
from rpmsgx.notify.timer import Timer
from rpmsgx.remoteproc import qrtr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

RETRY_MS = 20  # before a socket is tried again; twice as long each time that it is in vain
RETRY_MAX_MS = 1000
_PIECES = 16  # a flood is read this many pieces at a time
_PIECE = 4096
_SOCKET_PATH = 107  # bytes of sun_path, less the zero at its end


class Presence:
    """Base of all sources; users write their own by giving it these three methods and a name.

    `fileno()` is one descriptor for good, readable when `present()` may have another answer: ask, wait, ask again.
    Readable for nothing is allowed, a change that nobody is woken for is not. Not thread-safe.
    """

    name: str = ""
    """For messages: what has to be there."""

    def fileno(self) -> int:
        raise NotImplementedError

    def present(self) -> bool:
        """Whether it is there now. Clears what made `fileno()` readable; never waits."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up the descriptors. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Path(Presence):
    """Present while there is something at `path`, symbolic links followed. Raises OSError without descriptors."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = _absolute(path)
        self.name = f"path:{self._path}"
        self._watch = PathWatch((self._path,))

    def fileno(self) -> int:
        return self._watch.fileno()

    def present(self) -> bool:
        self._watch.changes()
        return os.path.exists(self._path)

    def close(self) -> None:
        self._watch.close()


class UnixSocket(Presence):
    """Present while a process accepts connections on the Unix stream socket at `path`.

    One connection is kept, to see the end of it; what comes over it is thrown away. A server that hangs up is not gone
    yet: it is, when it refuses the next connection, which is tried at once, or after up to a second if it hangs up
    again and again. One whose queue is full neither comes nor goes. While a socket is there that refuses, it is tried
    each second. Raises ValueError for a path that is too long, OSError if there are no descriptors.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = _absolute(path)
        if len(os.fsencode(self._path)) > _SOCKET_PATH:
            raise ValueError(f"{self._path}: a socket's path has at most {_SOCKET_PATH} bytes")
        self.name = f"unix:{self._path}"
        self._present = False
        self._peer: socket.socket | None = None
        self._pause = RETRY_MS
        self._tried = 0.0  # when it was tried last
        self._due = math.inf  # when it is to be tried again
        self._watch = PathWatch((self._path,))
        try:
            self._timer = Timer()
            self._watch.epoll.register(self._timer, select.EPOLLIN)
        except BaseException:
            self._watch.close()
            raise

    def fileno(self) -> int:
        return self._watch.fileno()

    def present(self) -> bool:
        now = time.monotonic()
        if self._watch.changes():
            self._pause, self._due = RETRY_MS, now
        elif self._peer is not None and _hung_up(self._peer):
            self._take(None)
            if now - self._tried > self._pause / 1000:  # it had lasted
                self._pause = RETRY_MS
            self._due = self._tried + self._pause / 1000
        if self._due <= now:
            self._try(now)
        self._timer.set(0 if self._due == math.inf else max(1, math.ceil((self._due - now) * 1000)))
        return self._present

    def _try(self, now: float) -> None:
        peer, error = _connect(self._path)
        if error != errno.EAGAIN:
            self._present = peer is not None
            self._take(peer)
        self._tried = now
        self._pause = min(2 * self._pause, RETRY_MAX_MS)
        # The watch tells when a socket appears, and nobody when it begins to listen.
        self._due = math.inf if error in (0, errno.ENOENT) else now + self._pause / 1000

    def _take(self, peer: socket.socket | None) -> None:
        """Keep this connection, in the place of the one before."""
        old, self._peer = self._peer, peer
        if peer is not None:
            self._watch.epoll.register(peer, select.EPOLLIN)
        if old is not None:
            self._watch.epoll.unregister(old)
            old.close()

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer = None
        self._timer.close()
        self._watch.close()


class Process(Presence):
    """Present while a process runs, given by its `pid` or a `pidfd`, which is copied. Once gone it never returns.

    Raises ProcessLookupError if there is none, other OSErrors as pidfd_open(2).
    """

    def __init__(self, pid: int | None = None, *, pidfd: int | None = None) -> None:
        if (pid is None) == (pidfd is None):
            raise ValueError("a process is given by its pid or by a pidfd")
        if pid is not None and pid <= 0:
            raise ValueError(f"pid {pid}: a process has a positive one")
        try:
            self._pidfd = os.pidfd_open(pid) if pid is not None else os.dup(pidfd)  # type: ignore[arg-type]
        except ProcessLookupError as error:
            raise ProcessLookupError(errno.ESRCH, f"there is no process {pid} to depend on") from error
        self.name = f"pid:{pid}" if pid is not None else f"pidfd:{pidfd}"
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._pidfd, select.EPOLLIN)
        except BaseException:
            self._give_up()
            raise

    def fileno(self) -> int:
        return self._epoll.fileno()

    def present(self) -> bool:
        if self._pidfd >= 0 and readable(self._pidfd, 0):
            self._epoll.unregister(self._pidfd)  # or it would be readable for ever
            self._give_up()
        return self._pidfd >= 0

    def _give_up(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1

    def close(self) -> None:
        self._epoll.close()
        self._give_up()


class QrtrService(Presence):
    """Present while anybody, on any node, offers a QRTR service.

    `service` and `instance` as on the wire, 32 bits each (libqrtr's version is the low byte of the instance); instance
    0: any. Raises OSError (EAFNOSUPPORT) where the kernel has no QRTR, or none in this network namespace.
    """

    def __init__(self, service: int, instance: int = 0) -> None:
        if not (0 < service < 1 << 32 and 0 <= instance < 1 << 32):
            raise ValueError(f"qrtr service {service}, instance {instance}: from 1, and from 0, to 0xffffffff")
        self.name = f"qrtr:{service}:{instance}"
        self._service, self._instance = service, instance
        self._epoll = select.epoll()
        try:
            self._socket = self._look_up()
        except BaseException:
            self._epoll.close()
            raise

    def _look_up(self) -> socket.socket:
        """A socket to which the name service tells of the service, beginning with those who offer it now."""
        try:
            end = socket.socket(socket.AF_QIPCRTR, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                error.strerror = "this kernel has no QRTR; if it is a module: modprobe qrtr"
            raise
        try:
            end.setblocking(False)
            node: int = end.getsockname()[0]
            self._name_service = (node, qrtr.PORT_CTRL)
            self._servers = qrtr.Servers(self._service, self._instance)
            try:
                end.sendto(qrtr.new_lookup(self._service, self._instance), self._name_service)
            except OSError as error:
                if error.errno != errno.ENODEV:  # no name service yet: it says when it begins
                    raise
            self._epoll.register(end, select.EPOLLIN)
        except BaseException:
            end.close()
            raise
        return end

    def fileno(self) -> int:
        return self._epoll.fileno()

    def present(self) -> bool:
        try:
            for _ in range(_PIECES):
                packet, source = self._socket.recvfrom(_PIECE)
                if source == self._name_service:
                    self._servers.feed(packet)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENETRESET:
                raise
            # Another name service began, which knows nothing of this socket.
            old, self._socket = self._socket, self._look_up()
            self._epoll.unregister(old)
            old.close()
        return bool(self._servers)

    def close(self) -> None:
        self._epoll.close()
        self._socket.close()


class Named(Protocol):
    @property
    def name(self) -> str: ...


class HasChannels(Protocol):
    """What `Channel` needs of a Remoteproc."""

    def fileno(self) -> int: ...

    @property
    def channels(self) -> Sequence[Named]: ...


class Channel(Presence):
    """Present while `remoteproc` has a channel of this name, that is while its remote is up and announces it.

    It only looks: somebody has to drive `remoteproc`, and closes it.
    """

    def __init__(self, remoteproc: HasChannels, name: str) -> None:
        self.name = f"channel:{name}"
        self._remoteproc, self._wanted = remoteproc, name
        self._timer = Timer()
        try:
            self._epoll = select.epoll()
        except BaseException:
            self._timer.close()
            raise
        self._epoll.register(self._timer, select.EPOLLIN)
        # Edge-triggered: each event of the remote wakes once, even if whoever drives it takes its time.
        self._epoll.register(remoteproc, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def present(self) -> bool:
        # After an event the driver may not have come to it yet: look once more, until there is nothing new.
        news = any(fd != self._timer.fileno() for fd, _ in self._epoll.poll(0))
        try:
            self._timer.set(RETRY_MS if news or readable(self._remoteproc.fileno(), 0) else 0)
            return any(channel.name == self._wanted for channel in self._remoteproc.channels)
        except StateError:  # it was closed
            self._timer.set(0)
            return False

    def close(self) -> None:
        self._epoll.close()
        self._timer.close()


def presence(text: str) -> Presence:
    """The source that `text` names: "unix:PATH", "path:PATH", "pid:NUMBER", "qrtr:SERVICE" or "qrtr:SERVICE:INSTANCE".

    Raises ValueError if it names none, else as the source does.
    """
    kind, _, rest = text.partition(":")
    try:
        if rest and kind == "unix":
            return UnixSocket(rest)
        if rest and kind == "path":
            return Path(rest)
        if kind == "pid":
            return Process(int(rest))
        if kind == "qrtr":
            service, _, instance = rest.partition(":")
            return QrtrService(int(service, 0), int(instance or "0", 0))
    except ValueError as error:
        raise ValueError(f"presence {text!r}: {error}") from error
    raise ValueError(f"presence {text!r}: it is unix:PATH, path:PATH, pid:NUMBER or qrtr:SERVICE[:INSTANCE]")


def _absolute(path: str | os.PathLike[str]) -> str:
    path = os.fspath(path)
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    return os.path.join(os.getcwd(), path)


def _connect(path: str) -> tuple[socket.socket | None, int]:
    """A connection to `path`, or why there is none; EAGAIN: that tells nothing of who listens."""
    try:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None, errno.EAGAIN
    try:
        end.setblocking(False)
        error = end.connect_ex(path)
    except BaseException:
        end.close()
        raise
    if error:
        end.close()
        return None, error
    return end, 0


def _hung_up(peer: socket.socket) -> bool:
    """Whether the other end of a connection has gone; what it sent is thrown away."""
    try:
        for _ in range(_PIECES):
            if not peer.recv(_PIECE):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False
