"""What both ends of a vhost-user connection have in common: one peer at a time, its messages, and the descriptors on
which it rings. The connection is the link's doorbell: nothing happens but when somebody looks at it."""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading

from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.notify.ringer import Ringer
from rpmsgx.notify.socket import Meeting
from rpmsgx.virtio.vhost.protocol import Channel, Message, Violation

log = logging.getLogger("rpmsgx.vhost_user")
log.addHandler(logging.NullHandler())

MESSAGES = 64  # of a flood of messages this many are looked at before the rings are


class Connection(Doorbell):
    """Meets one peer after another on the Unix socket `path`, and serves what it sends. Thread-safe.

    `uid`: the user that the peer's process must have had when it connected, or began to listen; None: any. A peer that
    breaks the protocol is hung up on: `why` says for what reason, and so does the log "rpmsgx.vhost_user", once for the
    same. Raises OSError as `Meeting`.
    """

    def __init__(self, path: str, *, listen: bool, uid: int | None) -> None:
        self.path = path
        self.connected = False
        self.why = ""
        self._uid = uid
        self._said = ""
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._ringers: dict[int, tuple[Ringer, int]] = {}  # those that the peer rings, by descriptor, with their vring
        self._epoll = select.epoll()
        try:
            self._meeting = Meeting(path, listen=listen, epoll=self._epoll)
        except BaseException:
            self._epoll.close()
            raise
        self.drain()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> None:
        with self._lock:
            if not self._epoll.closed:
                self._drain()

    def _drain(self) -> None:
        only_rung = self._channel is not None
        for fd, _ in self._epoll.poll(0, 64):
            if fd in self._ringers:
                ringer, index = self._ringers[fd]
                if not ringer.clear():
                    self._unlisten(ringer)
                self._rung(index)
            else:
                only_rung = False
        if only_rung:
            return
        if self._channel is None:
            self._meet()
        try:
            self._serve()
        except Violation as violation:
            self._lose(str(violation))
        except OSError:
            self._lose()

    def _meet(self) -> None:
        if not self._meeting.step():
            return
        peer = self._meeting.peer
        assert peer is not None
        uid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if self._uid is not None and uid != self._uid:
            self._complain(f"the peer is user {uid}, not {self._uid}")
            self._meeting.drop()
            return
        self._channel = Channel(peer, self._epoll, listen=True, shared=True)
        self._begin()

    def _serve(self) -> None:
        for _ in range(MESSAGES):
            if self._channel is None:
                return
            self._channel.flush()
            message = self._channel.receive()
            if message is None:
                return
            try:
                self._handle(message)
            finally:
                message.close_fds()

    def _lose(self, why: str = "") -> None:
        """The peer has gone, or has to go."""
        if why:
            self._complain(why)
        self.connected = False
        self.lost += 1
        self._end()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._meeting.drop()

    def _complain(self, why: str) -> None:
        self.why = why
        if why != self._said:
            log.warning("%s: hung up: %s", self.path, why)
        self._said = why

    def _listen(self, ringer: Ringer, index: int) -> None:
        self._epoll.register(ringer.fd, ringer.events)
        self._ringers[ringer.fd] = ringer, index

    def _unlisten(self, ringer: Ringer) -> None:
        # The peer holds it too: closing alone would not take it out of the epoll.
        if self._ringers.pop(ringer.fd, None) is not None and not self._meeting.forked:
            self._epoll.unregister(ringer.fd)

    def _begin(self) -> None:
        """There is a new peer."""
        raise NotImplementedError

    def _handle(self, message: Message) -> None:
        """Serve a message; descriptors that stay in it are closed. Raises Violation, OSError."""
        raise NotImplementedError

    def _rung(self, index: int) -> None:
        """The peer rang for vring `index`."""

    def _end(self) -> None:
        """Give up all that belongs to this peer."""
        raise NotImplementedError

    def close(self) -> None:
        if self._meeting.forked:  # the lock may be held by a thread that the child does not have
            self._close()
        else:
            with self._lock:
                self._close()

    def _close(self) -> None:
        if self._epoll.closed:
            return
        self.connected = False
        self._end()
        if self._channel is not None:
            self._channel.close(forked=self._meeting.forked)
            self._channel = None
        self._meeting.close()
        self._epoll.close()
