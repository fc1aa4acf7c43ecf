"""Doorbells on a Unix stream socket: one byte, of any value, says "look at every vring" (as OpenAMP does it)."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import stat
import threading
from typing import TYPE_CHECKING

from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.notify.inotify import Watch
from rpmsgx.notify.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_MS = 20  # how often to look where nothing tells that it is worth it
_PIECE = 4096
_PIECES = 16  # a flood of bytes is read this many pieces at a time

_count = itertools.count()


class Meeting:
    """Meets one peer at a time on the Unix stream socket `path`: listens for it, or connects to it, again and again.

    What it waits for is registered in `epoll`. A listener takes the next peer only once the one before has gone and
    `before_listen` was called: until then the socket is there, but refuses connections. So whoever connects finds
    things as `before_listen` left them. Where only looking again tells whether there is a peer, a timer asks for it.

    The socket file has mode 0600 and appears whole; one that a dead listener left is replaced. Raises OSError at
    once: EADDRINUSE for a live socket at `path`, EEXIST for something that is no socket. Not thread-safe.
    """

    def __init__(
        self,
        path: str,
        *,
        listen: bool,
        epoll: select.epoll,
        before_listen: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.peer: socket.socket | None = None
        self._listen = listen
        self._epoll = epoll
        self._before_listen = before_listen
        self._listener: socket.socket | None = None
        self._watch: Watch | None = None
        self._last: socket.socket | None = None
        self._identity = (0, 0)
        self._pid = os.getpid()
        self._timer = Timer()
        try:
            epoll.register(self._timer, select.EPOLLIN)
            if listen:
                _check_free(path)
                self._begin()
        except BaseException:
            self._timer.close()
            raise

    def step(self) -> bool:
        """Look for a peer. True: `peer` is a new connection, non-blocking, registered in the epoll."""
        peer = self._accept() if self._listen else self._connect()
        if peer is None:
            return False
        peer.setblocking(False)
        self._epoll.register(peer, select.EPOLLIN)
        self.peer = peer
        return True

    def drop(self, *, known: bool = True) -> None:
        """The peer has gone, or is to go: forget it, and begin again: at the next step, for which the timer asks.

        The descriptor of one that others know of (`known`) is closed with the next such one's: until then somebody may
        still ring there, who must not meet a stranger's descriptor of the same number.
        """
        peer, self.peer = self.peer, None
        if peer is not None:
            self._epoll.unregister(peer)
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            if known:
                peer, self._last = self._last, peer
            if peer is not None:
                peer.close()
        if self._listen:
            self._try_to_listen()
        else:
            self._retry(True)

    def close(self) -> None:
        """Give up everything; the socket file is removed if it is still this one's. Idempotent.

        In a forked child only its descriptors are closed: epoll and socket file are the parent's.
        """
        if self._listener is not None and not self.forked:
            try:
                if _identity(self.path) == self._identity:
                    os.unlink(self.path)
            except OSError:
                pass
        for end in (self.peer, self._last, self._listener, self._watch, self._timer):
            if end is not None:
                end.close()
        self.peer = self._last = self._listener = self._watch = self._before_listen = None

    @property
    def forked(self) -> bool:
        """Whether this is a forked child's copy."""
        return self._pid != os.getpid()

    def _retry(self, wanted: bool) -> None:
        self._timer.set(RETRY_MS if wanted else 0)

    # -- listening

    def _begin(self) -> None:
        if self._before_listen is not None:
            self._before_listen()
        self._place(listen=True)

    def _try_to_listen(self) -> None:
        try:
            self._begin()
            self._retry(False)
        except OSError:  # the directory has gone, descriptors ran out: the next look tries again
            self._retry(True)

    def _place(self, *, listen: bool) -> None:
        """Put a socket of our own at `path`, in the place of the one that may be there."""
        new = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary = os.path.join(os.path.dirname(self.path), f".{os.getpid():x}-{next(_count):x}")
        try:
            new.setblocking(False)
            try:
                new.bind(temporary)
            except OSError as error:
                error.filename = self.path
                raise
            try:
                os.chmod(temporary, 0o600)
                if listen:
                    new.listen(1)
                    self._epoll.register(new, select.EPOLLIN)
                identity = _identity(temporary)
                os.rename(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
        except BaseException:
            new.close()
            raise
        old, self._listener, self._identity = self._listener, new, identity
        if old is not None:
            old.close()

    def _accept(self) -> socket.socket | None:
        if self._listener is None:
            self._try_to_listen()
        listener = self._listener
        if listener is None:
            return None
        try:
            peer, _ = listener.accept()
        except OSError as error:
            # One that has gone again is not worth a word; without descriptors it must wait.
            self._retry(error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR))
            return None
        try:
            self._epoll.unregister(listener)
            self._place(listen=False)
        except OSError:
            listener.close()
            self._listener = None
        self._retry(False)
        return peer

    # -- connecting

    def _connect(self) -> socket.socket | None:
        peer, error = _dial(self.path)
        if peer is None and self._watch is None:
            try:
                self._watch = Watch(os.path.dirname(self.path) or ".")
                self._epoll.register(self._watch, select.EPOLLIN)
            except OSError:
                pass  # no such directory: look again
            peer, error = _dial(self.path)
        elif peer is None and self._watch is not None:
            self._watch.drain()
            peer, error = _dial(self.path)
        self._retry(peer is None and (error != errno.ENOENT or self._watch is None))
        if peer is not None and self._watch is not None:
            self._epoll.unregister(self._watch)
            self._watch.close()
            self._watch = None
        return peer


class SocketDoorbell(Doorbell):
    """A byte on the Unix stream socket `path`; see `Meeting` for how the two ends come together.

    `fileno()` is one epoll descriptor for good, whatever comes and goes behind it. `before_listen` is called whenever
    this end is about to listen: at first, and after each peer. Raises OSError as `Meeting`. Thread-safe.
    """

    kick_socket = True

    def __init__(
        self, path: str, *, listen: bool, before_listen: Callable[[], None] | None = None
    ) -> None:
        self.connected = self.rang = False
        self._lock = threading.Lock()
        self._piece = bytearray(_PIECE)
        self._epoll = select.epoll()
        try:
            self._meeting = Meeting(path, listen=listen, epoll=self._epoll, before_listen=before_listen)
        except BaseException:
            self._epoll.close()
            raise
        self.drain()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def kick(self, notifyid: int) -> None:
        peer = self._meeting.peer
        if peer is not None and self.connected:
            try:
                peer.send(b"\1", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # full: it rings already; gone: drain() finds out

    def drain(self) -> None:
        with self._lock:
            if self._epoll.closed or not self._meet():
                return
            peer = self._meeting.peer
            assert peer is not None
            size = -1
            try:
                for _ in range(_PIECES):
                    size = peer.recv_into(self._piece)
                    if size:
                        self.rang = True
                        self.drain_fd = self.kick_fd
                    if size < _PIECE:
                        break
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if size == 0:
                self._lose()
                self._meet()

    def _meet(self) -> bool:
        """Look for a peer unless there is one; whether it is connected now."""
        meeting = self._meeting
        if meeting.peer is None:
            meeting.step()
        if meeting.peer is not None and not self.connected and self._greet(meeting.peer):
            self.kick_fd = meeting.peer.fileno()
            self.connected = True
        return self.connected

    def _greet(self, peer: socket.socket) -> bool:
        """What comes before the first ring is done. False: not yet, or the peer was dropped."""
        return True

    def _lose(self) -> None:
        self.connected = self.rang = False
        self.lost += 1
        self.kick_fd = self.drain_fd = -1
        self._meeting.drop()

    def close(self) -> None:
        if self._meeting.forked:  # the lock may be held by a thread that the child does not have
            self._close()
        else:
            with self._lock:
                self._close()

    def _close(self) -> None:
        self.connected = self.rang = False
        self.kick_fd = self.drain_fd = -1
        self._meeting.close()
        self._epoll.close()


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _dial(path: str) -> tuple[socket.socket | None, int]:
    """A connection to `path`, or why there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
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


def _check_free(path: str) -> None:
    """Raise OSError unless there is nothing at `path`, or the socket of a dead listener."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "is there, and no socket", path)
    # A datagram socket cannot connect to a stream socket, but is told whether it lives; its owner sees nothing.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        error = probe.connect_ex(path)
    if error not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(errno.EADDRINUSE, "somebody listens there already", path)
