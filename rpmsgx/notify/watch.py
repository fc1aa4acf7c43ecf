"""One descriptor for all that may happen: readable when any of those it watches is, when woken, and at a time."""

from __future__ import annotations

import contextlib
import os
import select
import threading

from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.timer import Timer


class Watch:
    """Thread-safe. Closing it while threads wait wakes them; the descriptors go with the last."""

    def __init__(self, *fds: int) -> None:
        self._lock = threading.Lock()
        self._waiters = 0
        self._closed = False
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._timer = Timer()
        for fd in (self._wake, self._timer.fileno(), *fds):
            self.add(fd)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int) -> None:
        """Watch `fd` as well, until it is removed or closed."""
        with contextlib.suppress(FileExistsError):
            self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def wake(self) -> None:
        """Be readable until `clear`. Does nothing once closed."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def alarm(self, seconds: float | None) -> None:
        """Be readable in so many seconds, and from then on; None: not at any time."""
        self._timer.set(0 if seconds is None else max(1, round(seconds * 1000)))

    def wait(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds, None for ever, until it is readable. Returns at once when it is closed."""
        with self._lock:
            if self._closed:
                return
            self._waiters += 1
        try:
            readable(self._epoll.fileno(), timeout)
        finally:
            with self._lock:
                self._waiters -= 1
                self._give_up()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._closed = True
            self.wake()
            self._give_up()

    def _give_up(self) -> None:
        if self._closed and not self._waiters and self._wake >= 0:
            wake, self._wake = self._wake, -1
            self._epoll.close()
            self._timer.close()
            os.close(wake)
