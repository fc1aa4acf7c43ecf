"""One doorbell for several: a ring of the remote means "look at every vring", and each bus must hear it."""

from __future__ import annotations

import os
import select
import threading

from rpmsgx.notify.doorbell import Doorbell, readable


def share(doorbell: Doorbell, count: int) -> list[Doorbell]:
    """`count` doorbells that ring when `doorbell` does, whoever clears it. They are closed one by one; it is not."""
    if count <= 1:
        return [doorbell] * count
    hub = _Hub(doorbell)
    return [_Share(hub) for _ in range(count)]


class _Hub:
    def __init__(self, doorbell: Doorbell) -> None:
        self.doorbell = doorbell
        self.shares: list[_Share] = []
        self.lock = threading.Lock()


class _Share(Doorbell):
    """Thread-safe."""

    def __init__(self, hub: _Hub) -> None:
        self._hub = hub
        self._own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        for fd in (self._own, hub.doorbell.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        hub.shares.append(self)

    @property
    def kick_fd(self) -> int:  # type: ignore[override]
        return self._hub.doorbell.kick_fd

    @property
    def kick_socket(self) -> bool:  # type: ignore[override]
        return self._hub.doorbell.kick_socket

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def kick(self, notifyid: int) -> None:
        self._hub.doorbell.kick(notifyid)

    def drain(self) -> None:
        hub = self._hub
        with hub.lock:
            if self._own < 0:
                return
            if readable(hub.doorbell.fileno(), 0):
                for share in hub.shares:  # before the ring is cleared, so that nobody can miss it
                    os.eventfd_write(share._own, 1)
                hub.doorbell.drain()
            try:
                os.eventfd_read(self._own)
            except BlockingIOError:
                pass

    def close(self) -> None:
        hub = self._hub
        with hub.lock:
            if self._own < 0:
                return
            hub.shares.remove(self)
            self._epoll.close()
            os.close(self._own)
            self._own = -1
