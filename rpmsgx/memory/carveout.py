"""Carveouts: named pieces cut out of granted memory, and who shares one out."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import itemgetter

from ..errors import ResourceError
from .region import Region, hex_range
from .space import AddressSpace


class Carveout:
    """Memory that both ends of a link know by `name`: for what is too much for messages, which then carry addresses.

    `da`: where it begins for the remote, and in messages; `size`: bytes; `view`: all of it, writable. The peer can
    write to it at any time; who may do so when is for the messages to say. What was written before a message is sent
    is there when it is received. Views stay valid while they are alive, whatever becomes of the link. On "device"
    memory the caller keeps its accesses aligned. Thread-safe.
    """

    __slots__ = ("da", "name", "size", "view")

    def __init__(self, space: AddressSpace, name: str, da: int, size: int) -> None:
        """Raises ResourceError if `space` does not grant this memory."""
        self.name = name
        self.da = da
        self.size = size
        self.view = space.view(da, size)

    def at(self, da: int, size: int) -> memoryview:
        """The `size` bytes at `da`, writable: for an address that came in a message.

        Raises ResourceError if they are not all in here.
        """
        offset = da - self.da
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ResourceError(f"da {hex_range(da, size)} is not in {self!r}")
        return self.view[offset : offset + size]

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<Carveout {self.name!r} da {hex_range(self.da, self.size)}>"


class Allocator:
    """First-fit allocation of device address ranges inside the region `pool`.

    Places in all of `space` (default: `pool` alone) can be reserved or kept free; what is reserved or allocated never
    overlaps. The memory is not touched. Not thread-safe: it belongs to whoever sets a remote up.
    """

    def __init__(self, pool: Region, space: AddressSpace | None = None) -> None:
        self._name = pool.name
        self._space = AddressSpace(pool) if space is None else space
        self._taken: list[tuple[int, int, str]] = []
        self._free = [(pool.da, pool.da + pool.size)]  # (start, end) of the gaps, ascending

    @property
    def reserved(self) -> tuple[tuple[int, int, str], ...]:
        """What is taken, as (da, size, name) in ascending order."""
        return tuple(self._taken)

    def avoid(self, da: int, size: int) -> None:
        """Allocate nothing from `size` bytes at `da`, whatever else is there."""
        end = da + size
        first = bisect_right(self._free, da, key=itemgetter(1))
        last = bisect_left(self._free, end, key=itemgetter(0))
        parts = [part for low, high in self._free[first:last] for part in ((low, da), (end, high)) if part[0] < part[1]]
        self._free[first:last] = parts

    def reserve(self, da: int, size: int, name: str) -> None:
        """Take `size` bytes at `da`. Raises ResourceError if they are not granted or already taken."""
        try:
            self._space.find_da(da, size)
        except ResourceError as exc:
            raise ResourceError(f"{name}: {exc}") from None
        at = bisect_left(self._taken, (da,))
        for other_da, other_size, other in self._taken[max(at - 1, 0) : at + 1]:
            if da < other_da + other_size and other_da < da + size:
                raise ResourceError(f"{name} {hex_range(da, size)} overlaps {other} {hex_range(other_da, other_size)}")
        self._taken.insert(at, (da, size, name))
        self.avoid(da, size)

    def allocate(self, size: int, align: int = 1, name: str = "") -> int:
        """Take the first free `size` bytes of the pool at a multiple of `align`, a power of two. Returns their da."""
        if size <= 0:
            raise ResourceError(f"{name}: size {size} is not positive")
        if align <= 0 or align & (align - 1):
            raise ResourceError(f"{name}: align {align} is not a power of two")
        largest = 0
        for start, end in self._free:
            largest = max(largest, end - start)
            da = -(-start // align) * align
            if da + size <= end:
                self.reserve(da, size, name)
                return da
        raise ResourceError(
            f"{name}: no room for {size:#x} bytes aligned to {align:#x} in region {self._name!r}; "
            f"the largest gap has {largest:#x}"
        )
