"""The regions that one remote core can reach, and the translation between its addresses and ours."""

from __future__ import annotations

from bisect import bisect_right

from ..errors import ResourceError
from .region import Region, hex_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK = 1 << 20


class AddressSpace:
    """Granted memory by device address (da) and by physical address (pa).

    Addresses and sizes are in bytes. Every range must lie inside one region; anything else raises
    ResourceError, which names the range and what is granted. Lookup is O(log n). Looking up is thread-safe;
    `add` belongs to setup. The space does not own its regions.
    """

    def __init__(self, *regions: Region) -> None:
        self._by_da: list[Region] = []
        self._by_pa: list[Region] = []
        self._da: list[int] = []
        self._pa: list[int] = []
        for region in regions:
            self.add(region)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The granted regions in ascending order of da."""
        return tuple(self._by_da)

    def add(self, region: Region) -> None:
        """Grant `region`. Raises ResourceError, naming both, if it overlaps another one in da or in pa."""
        at_da = bisect_right(self._da, region.da)
        at_pa = bisect_right(self._pa, region.pa)
        for other in self._by_da[max(at_da - 1, 0) : at_da + 1]:
            _refuse_overlap("da", region, region.da, other, other.da)
        for other in self._by_pa[max(at_pa - 1, 0) : at_pa + 1]:
            _refuse_overlap("pa", region, region.pa, other, other.pa)
        self._by_da.insert(at_da, region)
        self._da.insert(at_da, region.da)
        self._by_pa.insert(at_pa, region)
        self._pa.insert(at_pa, region.pa)

    def find_da(self, da: int, size: int = 1) -> tuple[Region, int]:
        """The region that holds `size` bytes at device address `da`, and their offset in it."""
        index = bisect_right(self._da, da) - 1
        if index >= 0 and size > 0:
            region = self._by_da[index]
            offset = da - region.da
            if offset + size <= region.size:
                return region, offset
        raise self._not_granted("da", da, size)

    def find_pa(self, pa: int, size: int = 1) -> tuple[Region, int]:
        """The region that holds `size` bytes at physical address `pa`, and their offset in it."""
        index = bisect_right(self._pa, pa) - 1
        if index >= 0 and size > 0:
            region = self._by_pa[index]
            offset = pa - region.pa
            if offset + size <= region.size:
                return region, offset
        raise self._not_granted("pa", pa, size)

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

    def _not_granted(self, what: str, address: int, size: int) -> ResourceError:
        if size <= 0:
            return ResourceError(f"{what} {address:#x}: size {size} is not positive")
        regions = self._by_da if what == "da" else self._by_pa
        granted = ", ".join(f"{r.name!r} {hex_range(getattr(r, what), r.size)}" for r in regions[:16])
        if len(regions) > 16:
            granted += f" and {len(regions) - 16} more"
        return ResourceError(
            f"{what} {hex_range(address, size)} (size {size:#x}) is in no granted region; "
            f"granted: {granted or 'none'}"
        )


def _refuse_overlap(what: str, new: Region, start: int, old: Region, old_start: int) -> None:
    if start < old_start + old.size and old_start < start + new.size:
        raise ResourceError(
            f"region {new.name!r} {what} {hex_range(start, new.size)} overlaps "
            f"region {old.name!r} {what} {hex_range(old_start, old.size)}"
        )


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
