"""The regions that one remote core can reach, and the translation between its addresses and ours."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter

from ..errors import ResourceError
from .region import Region, hex_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 1 << 20


class _Order:
    """Regions in ascending order of one kind of address, "da" or "pa"."""

    __slots__ = ("kind", "regions", "start")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.start = attrgetter(kind)
        self.regions: list[Region] = []

    def place(self, region: Region) -> int:
        """The index at which `region` belongs. Raises ResourceError, naming both, if it overlaps another one."""
        start = self.start(region)
        at = bisect_right(self.regions, start, key=self.start)
        for other in self.regions[max(at - 1, 0) : at + 1]:
            other_start = self.start(other)
            if start < other_start + other.size and other_start < start + region.size:
                raise ResourceError(
                    f"region {region.name!r} {self.kind} {hex_range(start, region.size)} overlaps "
                    f"region {other.name!r} {self.kind} {hex_range(other_start, other.size)}"
                )
        return at

    def find(self, address: int, size: int) -> tuple[Region, int]:
        """The region that holds `size` bytes at `address`, and their offset in it."""
        index = bisect_right(self.regions, address, key=self.start) - 1
        if index >= 0 and size > 0:
            region = self.regions[index]
            offset = address - self.start(region)
            if offset + size <= region.size:
                return region, offset
        raise self._not_granted(address, size)

    def _not_granted(self, address: int, size: int) -> ResourceError:
        if size <= 0:
            return ResourceError(f"{self.kind} {address:#x}: size {size} is not positive")
        granted = ", ".join(f"{r.name!r} {hex_range(self.start(r), r.size)}" for r in self.regions[:16])
        if len(self.regions) > 16:
            granted += f" and {len(self.regions) - 16} more"
        return ResourceError(
            f"{self.kind} {hex_range(address, size)} (size {size:#x}) is in no granted region; "
            f"granted: {granted or 'none'}"
        )


class AddressSpace:
    """Granted memory by device address (da) and by physical address (pa).

    Addresses and sizes are in bytes. Every range must lie inside one region; anything else raises
    ResourceError, which names the range and what is granted. Lookup is O(log n). Looking up is thread-safe;
    `add` belongs to setup. The space does not own its regions.
    """

    def __init__(self, *regions: Region) -> None:
        self._by_da = _Order("da")
        self._by_pa = _Order("pa")
        for region in regions:
            self.add(region)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The granted regions in ascending order of da."""
        return tuple(self._by_da.regions)

    def add(self, region: Region) -> None:
        """Grant `region`. Raises ResourceError, naming both, if it overlaps another one in da or in pa."""
        at_da, at_pa = self._by_da.place(region), self._by_pa.place(region)
        self._by_da.regions.insert(at_da, region)
        self._by_pa.regions.insert(at_pa, region)

    def find_da(self, da: int, size: int = 1) -> tuple[Region, int]:
        """The region that holds `size` bytes at device address `da`, and their offset in it."""
        return self._by_da.find(da, size)

    def find_pa(self, pa: int, size: int = 1) -> tuple[Region, int]:
        """The region that holds `size` bytes at physical address `pa`, and their offset in it."""
        return self._by_pa.find(pa, size)

    def da_to_pa(self, da: int, size: int = 1) -> int:
        region, offset = self.find_da(da, size)
        return region.pa + offset

    def pa_to_da(self, pa: int, size: int = 1) -> int:
        region, offset = self.find_pa(pa, size)
        return region.da + offset

    def view(self, da: int, size: int) -> memoryview:
        """A writable view of the memory itself. On "device" memory the caller keeps its accesses aligned."""
        region, offset = self.find_da(da, size)
        return region.view[offset : offset + size]

    def read(self, da: int, size: int) -> bytes:
        """A copy of `size` bytes at `da`."""
        region, offset = self.find_da(da, size)
        source = region.view[offset : offset + size]
        if region.kind != "device":
            return bytes(source)
        head, body = _aligned(offset, size)
        return b"".join(
            (
                bytes(source[:head].tolist()),
                _read_words(source[head : head + body]),
                bytes(source[head + body :].tolist()),
            )
        )

    def write(self, da: int, data: Buffer) -> None:
        """Copy `data`, any C-contiguous buffer of at least one byte, to `da`."""
        source = memoryview(data).cast("B")
        region, offset = self.find_da(da, source.nbytes)
        _store(region, offset, source)

    def zero(self, da: int, size: int) -> None:
        """Clear `size` bytes at `da`."""
        region, offset = self.find_da(da, size)
        zeros = memoryview(bytes(min(size, _CHUNK)))
        for start in range(0, size, _CHUNK):
            _store(region, offset + start, zeros[: size - start])


# Device memory takes naturally aligned accesses only, which memcpy does not promise. An item of a memoryview
# is one access of its own size: single bytes up to a word boundary, words, single bytes again.


def _aligned(offset: int, size: int) -> tuple[int, int]:
    """Bytes before the first word boundary, bytes in whole words; regions start on a word boundary."""
    head = min(-offset % 4, size)
    return head, (size - head) & ~3


def _read_words(source: memoryview) -> bytes:
    words = memoryview(bytearray(source.nbytes)).cast("I")
    for index, word in enumerate(source.cast("I")):
        words[index] = word
    return words.tobytes()


def _store(region: Region, offset: int, source: memoryview) -> None:
    target = region.view[offset : offset + source.nbytes]
    if region.kind != "device":
        target[:] = source
        return
    head, body = _aligned(offset, source.nbytes)
    for index in range(head):
        target[index] = source[index]
    words = target[head : head + body].cast("I")
    for index, word in enumerate(source[head : head + body].cast("I")):
        words[index] = word
    for index in range(head + body, source.nbytes):
        target[index] = source[index]
