"""Waiting for names to appear and go in a directory, by inotify(7), which the standard library lacks."""

from __future__ import annotations

import ctypes
import os
import struct

IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW = 0x0100_0000, 0x0200_0000

_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, len; then the name, padded with zeros to len
_PIECE = 65536


class Inotify:
    """One inotify instance. Raises OSError if there can be none (fs.inotify.max_user_instances). Not thread-safe."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise _error()

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str | os.PathLike[str], mask: int) -> int:
        """Watch what is at `path` now, wherever it goes. Returns the watch's number, one for each inode; OSError."""
        wd: int = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if wd < 0:
            raise _error(path)
        return wd

    def remove(self, wd: int) -> None:
        """End a watch, which may have ended by itself."""
        self._libc.inotify_rm_watch(self._fd, wd)

    def read(self) -> list[tuple[int, int, bytes]]:
        """(wd, mask, name) of some of the events that wait, oldest first; none, if none waits."""
        try:
            data = os.read(self._fd, _PIECE)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(data):
            wd, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            events.append((wd, mask, data[at : at + size].rstrip(b"\0")))
            at += size
        return events

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Watch(Inotify):
    """Readable when a name appeared in `directory`, or changed its mode there. Not thread-safe.

    Make it first, look second: what appears in between is then seen either way. Raises OSError, FileNotFoundError
    among them, if the directory cannot be watched.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        try:
            self.add(directory, IN_ATTRIB | IN_MOVED_TO | IN_CREATE | IN_ONLYDIR)
        except BaseException:
            self.close()
            raise

    def drain(self) -> None:
        """Forget what was seen, or a large piece of it."""
        self.read()


def _error(path: str | os.PathLike[str] | None = None) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), None if path is None else os.fspath(path))
