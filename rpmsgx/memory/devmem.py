"""Physical memory through /dev/mem (mem(4)): what the kernel does not use as RAM, and no driver has claimed."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import ResourceError
from .device_file import LOCKED_DOWN, PAGE, bypassed, map_device, open_device
from .region import Region, hex_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .region import Kind

DEVMEM, IOMEM = "/dev/mem", "/proc/iomem"
_RAM = "System RAM"


class Resource(NamedTuple):
    """A line of /proc/iomem: [`start`, `end`), inside the one above it that is less deep."""

    depth: int
    start: int
    end: int
    name: str


def map_devmem(
    name: str,
    pa: int,
    size: int,
    *,
    da: int | None = None,
    kind: Kind = "uncached",
    dev: str = DEVMEM,
    iomem: str = IOMEM,
) -> Region:
    """`size` bytes of physical memory at `pa`, a multiple of the page size; `da` is `pa` unless given.

    Memory that is "cached" is opened as it is, and must be coherent; any other with O_SYNC, which keeps it out of the
    caches. What the kernel does not map itself is "device" memory there, except on x86, and is made that.

    Raises ResourceError, which says how to get there: memory that the kernel uses as RAM, which is refused whether
    the kernel would let us (CONFIG_STRICT_DEVMEM) or not; memory of a driver; no /dev/mem; no permission.
    """
    what = f"region {name!r}"
    if pa % PAGE:
        raise ResourceError(f"{what}: pa {pa:#x} is not a multiple of the page size {PAGE:#x}")
    found = overlapping(pa, size, iomem)
    ram = [item for item in found if item.name == _RAM]
    # A child "reserved" was taken out before the kernel began to use the rest; it is still mapped by the kernel.
    reserved = any(item.depth and item.name == "reserved" and _covers(item, pa, size) for item in found)
    if ram and not reserved:
        raise ResourceError(
            f"{what}: pa {hex_range(pa, size)} is in {hex_range(ram[0].start, ram[0].end - ram[0].start)}, "
            "System RAM, which Linux uses itself; keep it free: a reserved-memory node with no-map in the device tree, "
            f"or memmap={size:#x}${pa:#x} on the kernel's command line"
        )
    owner = max(found, default=None)  # the deepest

    def cure(exc: OSError) -> str:
        if isinstance(exc, PermissionError) and owner is not None and not ram:
            return (
                f"{hex_range(pa, size)} was claimed by {owner.name!r} (/proc/iomem): unbind that driver, "
                "or boot with iomem=relaxed"
            )
        return f"CONFIG_STRICT_DEVMEM keeps {hex_range(pa, size)} from us, or {LOCKED_DOWN}"

    cached = kind == "cached"
    fd = open_device(
        what,
        dev,
        "the kernel is built without CONFIG_DEVMEM, or this container was not given it; use UIO",
        flags=0 if cached else os.O_SYNC,
    )
    try:
        buffer = map_device(what, dev, fd, size, pa, cure)
    finally:
        os.close(fd)
    return Region(name, buffer, da=pa if da is None else da, pa=pa, kind=kind if cached and ram else bypassed(kind))


def overlapping(pa: int, size: int, iomem: str = IOMEM) -> list[Resource]:
    """The lines of /proc/iomem for these bytes. Without CAP_SYS_ADMIN there are none: all addresses read as 0."""
    try:
        with open(iomem, encoding="utf-8", errors="backslashreplace") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        span, _, name = line.partition(" : ")
        start, dash, last = span.strip().partition("-")
        if dash:
            depth = (len(line) - len(line.lstrip(" "))) // 2
            item = Resource(depth, int(start, 16), int(last, 16) + 1, name)
            if item.start < pa + size and pa < item.end and item.end > 1:
                found.append(item)
    return found


def _covers(item: Resource, pa: int, size: int) -> bool:
    return item.start <= pa and pa + size <= item.end
