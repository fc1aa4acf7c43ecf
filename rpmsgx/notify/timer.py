"""Looking now and then, where nobody rings: timerfd(2), which the standard library has from Python 3.13 on only."""

from __future__ import annotations

import ctypes
import os
import struct

from rpmsgx.notify.doorbell import Doorbell

CLOCK_MONOTONIC = 1
POLL_MS = 1  # how often a link without a doorbell is looked at


class Timer:
    """Readable once the time has passed that was set last. Raises OSError if there can be none."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        # On 32 bits there are two, for a time of 32 bits and of 64, and musl gives the second under the first's name.
        wide = getattr(libc, "__timerfd_settime64", None)
        self._settime = wide or libc.timerfd_settime
        self._itimerspec = struct.Struct("=4q" if wide else "4l")  # it_interval and it_value, seconds and nanoseconds
        self._fd: int = libc.timerfd_create(CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise _error()

    def fileno(self) -> int:
        return self._fd

    def set(self, ms: float) -> None:
        """Not readable any more, but in `ms` milliseconds; 0: never."""
        fd = self._fd
        value = self._itimerspec.pack(0, 0, *divmod(round(ms * 1_000_000), 1_000_000_000))
        if fd >= 0 and self._settime(fd, 0, value, None) < 0:
            raise _error()

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PolledDoorbell(Doorbell):
    """For a link on which nobody rings: asks to look each `ms` milliseconds. Thread-safe."""

    def __init__(self, ms: float = POLL_MS) -> None:
        self._ms = ms
        self._timer = Timer()
        self._timer.set(ms)

    def fileno(self) -> int:
        return self._timer.fileno()

    def drain(self) -> None:
        self._timer.set(self._ms)

    def close(self) -> None:
        self._timer.close()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
