"""Carveouts: named pieces cut out of granted memory."""

from __future__ import annotations

from bisect import bisect_left

from ..errors import ResourceError
from .region import Region, hex_range
from .space import AddressSpace


class Allocator:
    """First-fit allocation of device address ranges inside a region, or inside all regions of a space.

    Only what is taken is kept, in order, so free neighbours coalesce by themselves. The memory is not
    touched. Not thread-safe: it belongs to whoever sets a remote up.
    """

    def __init__(self, memory: AddressSpace | Region) -> None:
        self._space = AddressSpace(memory) if isinstance(memory, Region) else memory
        self._taken: list[tuple[int, int, str]] = []

    @property
    def reserved(self) -> tuple[tuple[int, int, str], ...]:
        """What is taken, as (da, size, name) in ascending order."""
        return tuple(self._taken)

    def reserve(self, da: int, size: int, name: str) -> None:
        """Take `size` bytes at `da`. Raises ResourceError if they are not granted or already taken."""
        self._space.find_da(da, size)
        at = bisect_left(self._taken, (da,))
        for other_da, other_size, other in self._taken[max(at - 1, 0) : at + 1]:
            if da < other_da + other_size and other_da < da + size:
                raise ResourceError(
                    f"carveout {name!r} {hex_range(da, size)} overlaps "
                    f"carveout {other!r} {hex_range(other_da, other_size)}"
                )
        self._taken.insert(at, (da, size, name))

    def allocate(self, size: int, align: int = 1, name: str = "") -> int:
        """Take the first free `size` bytes at a multiple of `align`, a power of two. Returns their da."""
        if size <= 0:
            raise ResourceError(f"carveout {name!r}: size {size} is not positive")
        if align <= 0 or align & (align - 1):
            raise ResourceError(f"carveout {name!r}: align {align} is not a power of two")
        largest = 0
        for start, end in self._gaps():
            largest = max(largest, end - start)
            da = -(-start // align) * align
            if da + size <= end:
                self.reserve(da, size, name)
                return da
        raise ResourceError(
            f"carveout {name!r}: no room for {size:#x} bytes aligned to {align:#x}; "
            f"the largest gap has {largest:#x}"
        )

    def free(self, da: int) -> None:
        """Give back what was taken at `da`."""
        at = bisect_left(self._taken, (da,))
        if at == len(self._taken) or self._taken[at][0] != da:
            raise ResourceError(f"no carveout starts at da {da:#x}")
        del self._taken[at]

    def _gaps(self) -> list[tuple[int, int]]:
        gaps = []
        taken = iter(self._taken)
        da, size, _ = next(taken, (1 << 64, 0, ""))
        for region in self._space.regions:
            start, end = region.da, region.da + region.size
            while da < end:
                gaps.append((start, da))
                start = da + size
                da, size, _ = next(taken, (1 << 64, 0, ""))
            gaps.append((start, end))
        return gaps
