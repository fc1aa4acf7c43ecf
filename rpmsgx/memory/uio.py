"""Memory through UIO: devices whose driver leaves the rest to us. Documentation/driver-api/uio-howto.rst of Linux."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..errors import ResourceError
from .device_file import PAGE, attribute, bypassed, map_device, open_device
from .region import Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .region import Kind

HOW_TO_BIND = (
    'in the device tree: compatible = "generic-uio" and modprobe uio_pdrv_genirq of_id=generic-uio; on PCI: '
    "modprobe uio_pci_generic, then driverctl set-override SLOT uio_pci_generic"
)


class UioMap(NamedTuple):
    """A memory of a UIO device: `size` bytes at physical address `addr`, in whole pages; ours begins at `offset`."""

    number: int
    name: str
    addr: int
    size: int
    offset: int

    @property
    def usable(self) -> int:
        """Bytes from `offset` on."""
        return self.size - self.offset

    def __str__(self) -> str:
        return f"map {self.number} {self.name!r} ({self.usable:#x} bytes at {self.addr + self.offset:#x})"


class UioDevice(NamedTuple):
    """A UIO device: its file, its name, its memories, and its directory in sysfs."""

    path: str
    name: str
    maps: tuple[UioMap, ...]
    sysfs: str


def devices(sysfs: str = "/sys", dev: str = "/dev") -> list[UioDevice]:
    """The UIO devices of this machine, in the order of their numbers."""
    root = f"{sysfs}/class/uio"
    try:
        names = [name for name in os.listdir(root) if name[:3] == "uio" and name[3:].isdecimal()]
    except OSError:
        return []
    names.sort(key=lambda name: int(name[3:]))
    return [
        UioDevice(f"{dev}/{name}", attribute(f"{root}/{name}/name"), _maps(f"{root}/{name}/maps"), f"{root}/{name}")
        for name in names
    ]


def find(device: str, *, sysfs: str = "/sys", dev: str = "/dev") -> UioDevice:
    """The UIO device with this name, or at this path: /dev/uio0, or a link to it.

    Raises ResourceError, with those that there are, if there is none, or more than one of the name.
    """
    known = devices(sysfs, dev)
    target = os.path.realpath(device)
    found = [item for item in known if device in (item.path, item.name) or target == item.path]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{item.name!r} ({item.path})" for item in known)
    if found:
        raise ResourceError(f"{len(found)} UIO devices are called {device!r}; give the path; there are {listed}")
    if known:
        raise ResourceError(f"there is no UIO device {device!r}; there are {listed}")
    raise ResourceError(f"there is no UIO device {device!r}, nor any other; bind one to a UIO driver: {HOW_TO_BIND}")


def map_uio(
    name: str,
    device: str,
    size: int | None = None,
    *,
    map: str | None = None,
    offset: int = 0,
    da: int | None = None,
    pa: int | None = None,
    kind: Kind = "uncached",
    sysfs: str = "/sys",
    dev: str = "/dev",
) -> Region:
    """`size` bytes (default: the rest) from `offset` on of a memory of the UIO device called `device`, or at that path.

    `map`: name or number of the memory; None: its only one. `pa`: default: what sysfs says; `da`: the same unless
    given. UIO maps physical memory past the caches: it is "device" memory, except on x86, and is made that.

    Raises ResourceError, which says how to get there: no device, no permission, no such map, too small a map.
    """
    what = f"region {name!r}"
    found = find(device, sysfs=sysfs, dev=dev)
    chosen = _choose(what, found, map)
    start = chosen.offset + offset
    size = chosen.usable - offset if size is None else size
    if not (0 <= offset and 0 < size <= chosen.usable - offset):
        raise ResourceError(
            f"{what}: {size:#x} bytes at offset {offset:#x} are not in {chosen} of {found.path}; "
            "make the region smaller, or the memory larger (reg in the device tree)"
        )
    if start % 8:
        raise ResourceError(f"{what}: {found.path} begins at {chosen.addr + start:#x}, no multiple of 8")
    fd = open_device(what, found.path, "udev or devtmpfs has not made it; mount -t devtmpfs dev /dev")
    try:
        buffer = map_device(what, found.path, fd, start + size, chosen.number * PAGE, _why)
    finally:
        os.close(fd)
    pa = chosen.addr + start if pa is None else pa
    view = memoryview(buffer)[start : start + size]
    return Region(name, view, da=pa if da is None else da, pa=pa, kind=bypassed(kind))


def _choose(what: str, device: UioDevice, map: str | None) -> UioMap:
    found = [item for item in device.maps if map in (None, item.name, str(item.number))]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{item}" for item in device.maps) or "none"
    if map is not None:
        raise ResourceError(f"{what}: {device.path} has no map {map!r}; it has {known}")
    if device.maps:
        raise ResourceError(f"{what}: {device.path} has several maps; name one: {known}")
    raise ResourceError(
        f"{what}: {device.path} ({device.name}) has no memory; it needs a reg in the device tree; "
        "uio_pci_generic gives none of 64-bit BARs: use pci: for these"
    )


def _why(exc: OSError) -> str:
    return "its driver gives no such memory, or another driver has claimed it (/proc/iomem)"


def _maps(directory: str) -> tuple[UioMap, ...]:
    try:
        indices = sorted(int(name[3:]) for name in os.listdir(directory) if name[3:].isdecimal())
    except OSError:
        return ()
    return tuple(
        UioMap(
            index,
            attribute(f"{directory}/map{index}/name"),
            *(int(attribute(f"{directory}/map{index}/{field}") or "0", 16) for field in ("addr", "size", "offset")),
        )
        for index in indices
    )
