"""What buses and endpoints have in common: descriptors that several threads use, waiting, the end of it all."""

from __future__ import annotations

import math
import os
import select
import threading
from typing import Self

from rpmsgx.errors import Closed, StateError


class Shared:
    """Something with descriptors. Any thread may close it while others wait: the last one out gives them up.

    `_wake` is readable once it is closed; as what is given out by fileno() it lives as long as the object, so that it
    can be taken off a selector.
    """

    _what = "this"
    _wake = -1

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._closed = self._forked = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _enter(self) -> None:
        """Begin to use the descriptors, until _leave()."""
        with self._lock:
            self._check()
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0
        if last:
            self._release()

    def _check(self) -> None:
        if self._forked:
            raise StateError(f"the {self._what} was opened before a fork: it belongs to the parent process")
        if self._closed:
            raise Closed(f"the {self._what} is closed")

    def _end(self) -> bool:
        """Nobody can begin any more, and who waits is woken. False if that was so already."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            os.eventfd_write(self._wake, 1)
            idle = self._users == 0
        if idle:
            self._release()
        return True

    def _release(self) -> None:
        """Give up the descriptors."""
        raise NotImplementedError

    def _forget(self) -> None:
        """In the child of a fork: give up this process's copies, and do nothing that the parent would notice."""
        self._lock = threading.Lock()  # another thread may have held it
        if not self._closed:
            self._closed = self._forked = True
            self._release()

    def __del__(self) -> None:
        if self._wake >= 0:
            os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError

    def __reduce__(self) -> str:
        raise TypeError(f"the {self._what} cannot be pickled: it belongs to this process")


def wait(seconds: float | None, step: float | None, *fds: int, events: tuple[int, int] | None = None) -> None:
    """Wait until one of `fds` is readable, or `events` (descriptor, mask) come, for the shorter time of the two."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    if events is not None:
        poll.register(*events)
    limits = [limit for limit in (seconds, step) if limit is not None]
    poll.poll(math.ceil(min(limits) * 1000) if limits else None)
