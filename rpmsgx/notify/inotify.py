"""Waiting for a name to appear in a directory, by inotify(7), which the standard library lacks."""

from __future__ import annotations

import ctypes
import os

IN_ATTRIB, IN_MOVED_TO, IN_CREATE = 0x4, 0x80, 0x100
IN_ONLYDIR = 0x0100_0000


class Watch:
    """Readable when a name appeared in `directory`, or changed its mode there. Not thread-safe.

    Make it first, look second: what appears in between is then seen either way. Raises OSError, FileNotFoundError
    among them, if the directory cannot be watched.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise _error(directory)
        if libc.inotify_add_watch(fd, os.fsencode(directory), IN_ATTRIB | IN_MOVED_TO | IN_CREATE | IN_ONLYDIR) < 0:
            error = _error(directory)
            os.close(fd)
            raise error
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Forget what was seen, or a large piece of it."""
        try:
            os.read(self._fd, 65536)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _error(directory: str | os.PathLike[str]) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), os.fspath(directory))
