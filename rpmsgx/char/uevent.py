"""Who tells that rpmsg devices came or went: the kernel's uevents, or a timer where they do not reach this process."""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol

from rpmsgx.notify.timer import Timer

NETLINK_KOBJECT_UEVENT = 15
KERNEL = 1  # the multicast group of the kernel's own events; udev's is 2
POLL_MS = 100
_PIECES = 64  # a flood of events is read this many at a time
_SIZE = 8192


class Watch(Protocol):
    """`fileno()` is readable when devices may have come or gone. Thread-safe."""

    def fileno(self) -> int: ...

    def drain(self) -> bool:
        """Make it unreadable; did it say anything?"""

    def close(self) -> None: ...


def watch() -> Watch:
    """Make it first, look second: what comes in between is then seen either way."""
    try:
        if _initial_user_namespace():
            return Uevents()
    except OSError:  # no netlink here, or not for us
        pass
    return Ticks()


class Uevents:
    """A netlink socket. Anybody may listen, but the kernel sends to network namespaces of its first user namespace
    only."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
        try:
            self._socket.bind((0, KERNEL))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        said = False
        for _ in range(_PIECES):
            try:
                said |= b"\0SUBSYSTEM=rpmsg\0" in self._socket.recv(_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                said = True  # some were lost
        return said

    def close(self) -> None:
        self._socket.close()


class Ticks:
    """Time to look, now and then."""

    def __init__(self) -> None:
        self._timer = Timer()
        self._timer.set(POLL_MS)

    def fileno(self) -> int:
        return self._timer.fileno()

    def drain(self) -> bool:
        try:
            os.read(self._timer.fileno(), 8)
        except BlockingIOError:
            return False
        self._timer.set(POLL_MS)
        return True

    def close(self) -> None:
        self._timer.close()


def _initial_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except FileNotFoundError:  # this kernel knows no others
        return True
