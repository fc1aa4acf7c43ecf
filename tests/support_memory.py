"""Memory between guard pages: an access one byte outside ends the process, one inside the slack is found."""

from __future__ import annotations

import ctypes
import mmap
from typing import Literal

PAGE = mmap.PAGESIZE
PROT_NONE = 0
FILL = 0xA5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """`size` writable, zeroed bytes with a PROT_NONE page right behind them (edge "end") or before ("start").

    The other side has a guard page too, behind what is left of the last page; `intact()` says whether that
    rest still holds the pattern it was filled with. Shared memory, so a forked child sees the same bytes.
    """

    def __init__(self, size: int, edge: Literal["start", "end"] = "end") -> None:
        room = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, room + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._map[PAGE : PAGE + room] = bytes([FILL]) * room
        for guard in (base, base + PAGE + room):
            if _libc.mprotect(guard, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = PAGE if edge == "start" else PAGE + room - size
        view = memoryview(self._map)
        self.buffer = view[start : start + size]
        self.buffer[:] = bytes(size)
        self._slack = (view[PAGE:start], view[start + size : PAGE + room])

    def intact(self) -> bool:
        """Nothing was written between the buffer and the guard pages."""
        return all(bytes(part) == bytes([FILL]) * len(part) for part in self._slack)
