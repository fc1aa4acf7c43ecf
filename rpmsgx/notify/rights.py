"""Descriptors over a Unix socket (SCM_RIGHTS), close-on-exec. `socket.send_fds` and `recv_fds` forget their flags."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence
from typing import NamedTuple


class Received(NamedTuple):
    data: bytes
    fds: list[int]
    more: bool
    """There were more descriptors than asked for, or than this process may open."""


def send(end: socket.socket, data: bytes, fds: Sequence[int], flags: int = 0) -> int:
    """Send `data` with `fds`, which stay the caller's; the bytes sent. Raises OSError."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    return end.sendmsg([data], control, flags | socket.MSG_NOSIGNAL)


def receive(end: socket.socket, size: int, count: int, flags: int = 0) -> Received:
    """Up to `size` bytes, and the descriptors that came with them, which are the caller's to close. Raises OSError.

    One descriptor more than `count` is taken, so that it can be told from many; where the kernel rounds up, two.
    """
    fds = array("i")
    room = socket.CMSG_SPACE((count + 1) * fds.itemsize)
    data, controls, told, _ = end.recvmsg(size, room, flags | socket.MSG_CMSG_CLOEXEC)
    for level, kind, control in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(control[: len(control) - len(control) % fds.itemsize])
    return Received(data, list(fds), bool(told & socket.MSG_CTRUNC))
