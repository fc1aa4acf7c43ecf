"""The vhost-user protocol's messages (QEMU's docs/interop/vhost-user.rst), and a socket that carries them.

All numbers are in the machine's byte order. A message is a header and a payload; descriptors come with its first byte.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from enum import IntEnum
from typing import NamedTuple

from rpmsgx.notify import rights
from rpmsgx.virtio.link import SUPPORTED_64

F_PROTOCOL_FEATURES = 1 << 30
FEATURES = SUPPORTED_64 | F_PROTOCOL_FEATURES

# Protocol features.
P_MQ = 1 << 0
P_REPLY_ACK = 1 << 3
P_BACKEND_REQ = 1 << 5
P_CONFIG = 1 << 9
P_RESET_DEVICE = 1 << 13
P_INBAND = 1 << 14
P_STATUS = 1 << 16

VERSION = 1
VERSION_MASK = 3
REPLY = 1 << 2
NEED_REPLY = 1 << 3

MAX_FDS = 8
MAX_REGIONS = 8
MAX_CONFIG = 256  # bytes of configuration space
MAX_PAYLOAD = 512  # more than any message here has
MAX_BACKLOG = 4096  # bytes that a peer may leave unread beyond what its socket holds

NO_FD = 1 << 8  # in a vring's number: no descriptor comes with it

HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")
VRING_ADDR = struct.Struct("=IIQQQQ")
MEM_TABLE = struct.Struct("=II")
MEM_REGION = struct.Struct("=QQQQ")
CONFIG = struct.Struct("=III")


class Request(IntEnum):
    """From the front-end to the back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    VRING_KICK = 35
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """From the back-end to the front-end, on a channel of their own."""

    CONFIG_CHANGE = 2
    VRING_CALL = 4
    VRING_ERR = 5


class Violation(Exception):
    """The peer broke the protocol: nothing it sends from here on means anything."""


class Message(NamedTuple):
    """`fds` belong to whoever has the message; `take_fd` and `close_fds` give them up."""

    request: int
    flags: int
    payload: bytes
    fds: list[int]

    def take_fd(self) -> int:
        return self.fds.pop(0)

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Channel:
    """Messages on a connected stream socket. Never blocks. Not thread-safe.

    `listen`: the epoll tells of what comes. What the socket does not take now is kept, up to `MAX_BACKLOG`, and the
    epoll tells when to `flush`. `shared`: socket and registration are somebody else's; else the channel owns both.
    OSError from any call: the peer has gone.
    """

    def __init__(self, end: socket.socket, epoll: select.epoll, *, listen: bool, shared: bool = False) -> None:
        self._end = end
        self._epoll = epoll
        self._shared = shared
        self._base = select.EPOLLIN if listen else 0
        self._events = self._base if shared else 0
        self._header = self._payload = b""
        self._fds: list[int] = []
        self._backlog: list[tuple[bytes, tuple[int, ...]]] = []
        self._nudged = False
        self._update()

    def receive(self) -> Message | None:
        """The next message; None: not yet. Raises Violation, OSError."""
        try:
            while len(self._header) < HEADER.size:
                self._header += self._receive_fds(HEADER.size - len(self._header))
            request, flags, size = HEADER.unpack(self._header)
            if size > MAX_PAYLOAD:
                raise Violation(f"message {request} with a payload of {size} bytes")
            if flags & VERSION_MASK != VERSION:
                raise Violation(f"message {request} of version {flags & VERSION_MASK}")
            while len(self._payload) < size:
                piece = self._end.recv(size - len(self._payload), socket.MSG_DONTWAIT)
                if not piece:
                    raise ConnectionResetError
                self._payload += piece
        except BlockingIOError:
            return None
        message = Message(request, flags, self._payload, self._fds)
        self._header = self._payload = b""
        self._fds = []
        return message

    def _receive_fds(self, size: int) -> bytes:
        data, fds, more = rights.receive(self._end, size, MAX_FDS, socket.MSG_DONTWAIT)
        self._fds += fds
        if more or len(self._fds) > MAX_FDS:
            raise Violation(f"more than {MAX_FDS} descriptors, or more than this process may open")
        if not data:
            raise ConnectionResetError
        return data

    def send(self, request: int, payload: bytes = b"", *, flags: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send a message, now or later; `fds` must live until then. Raises Violation, OSError."""
        self._backlog.append((HEADER.pack(request, VERSION | flags, len(payload)) + payload, fds))
        self.flush()
        if sum(len(data) for data, _ in self._backlog) > MAX_BACKLOG:
            raise Violation("it does not read what it is sent")

    def send_once(self, request: int, payload: bytes) -> None:
        """The same for a notification, of which one that waits already is enough."""
        waiting = HEADER.pack(request, VERSION, len(payload)) + payload
        if (waiting, ()) not in self._backlog:
            self.send(request, payload)

    def flush(self) -> None:
        try:
            while self._backlog:
                data, fds = self._backlog[0]
                sent = rights.send(self._end, data, fds, socket.MSG_DONTWAIT)
                if sent < len(data):
                    self._backlog[0] = data[sent:], ()
                else:
                    del self._backlog[0]
        except BlockingIOError:
            pass
        self._update()

    def nudge(self, wanted: bool) -> None:
        """Have the epoll call for another look, as soon as the socket can be written."""
        self._nudged = wanted
        self._update()

    def _update(self) -> None:
        events = self._base | (select.EPOLLOUT if self._backlog or self._nudged else 0)
        if events == self._events:
            return
        if not self._events:
            self._epoll.register(self._end, events)
        elif not events:
            self._epoll.unregister(self._end)
        else:
            self._epoll.modify(self._end, events)
        self._events = events

    def close(self, *, forked: bool = False) -> None:
        """Give everything up. A `forked` child leaves the epoll alone, which is its parent's too. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())
        self._backlog.clear()
        if not self._shared:
            if self._events and not forked:
                self._epoll.unregister(self._end)
            self._events = 0
            self._end.close()
