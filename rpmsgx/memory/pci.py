"""BARs of PCI devices through sysfs. Documentation/PCI/sysfs-pci.rst of Linux."""

from __future__ import annotations

import errno
import os

from ..errors import ResourceError
from .device_file import LOCKED_DOWN, NO_PERMISSION, PAGE, attribute, bypassed, map_device, open_device, refuse
from .region import Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .region import Kind

BARS = 6
_IO = 0x100  # IORESOURCE_IO of linux/ioport.h


def map_bar(
    name: str,
    slot: str,
    bar: int,
    size: int | None = None,
    *,
    offset: int = 0,
    da: int = 0,
    pa: int | None = None,
    kind: Kind = "uncached",
    sysfs: str = "/sys",
) -> Region:
    """`size` bytes (default: the rest) from `offset` on, in whole pages, of BAR `bar` of the PCI device in `slot`.

    `slot`: as lspci -D shows it, "0000:03:00.0". Memory that may be "uncached" is mapped write-combining where the
    BAR is prefetchable (resourceN_wc); any other as device memory. A device that is not enabled is enabled, and stays
    so: others may use it by then.

    Raises ResourceError, which says how to get there: no such device, no permission, no such BAR, I/O ports, too
    small a BAR, a driver that has claimed it.
    """
    what = f"region {name!r}"
    device = f"{sysfs}/bus/pci/devices/{slot}"
    if not os.path.isdir(device):
        raise ResourceError(f"{what}: there is no PCI device {slot!r}; lspci -D lists those that there are")
    path = f"{device}/resource{bar}"
    size = check_bar(what, device, bar, size, offset)
    combining = kind == "uncached" and os.path.exists(path + "_wc")
    if combining:
        path += "_wc"
    fd = open_device(what, path, f"the kernel gives no maps of BARs here, or {LOCKED_DOWN}")
    try:
        _enable(what, f"{device}/enable")
        buffer = map_device(what, path, fd, size, offset, lambda exc: _why(exc, device))
    finally:
        os.close(fd)
    return Region(name, buffer, da=da, pa=pa, kind="uncached" if combining else bypassed(kind))


def check_bar(what: str, device: str, bar: int, size: int | None, offset: int) -> int:
    """`size`, or what is left from `offset` on of the BAR. Raises ResourceError if that is not in it, or it in none."""
    slot = os.path.basename(device)
    known = bars(device)
    if bar not in known:
        listed = ", ".join(f"{index} ({length:#x} bytes)" for index, length in known.items()) or "none"
        raise ResourceError(f"{what}: {slot} has no BAR {bar} with memory; it has {listed}")
    available = known[bar] - offset
    size = available if size is None else size
    if offset < 0 or offset % PAGE or not 0 < size <= available:
        raise ResourceError(
            f"{what}: {size:#x} bytes at offset {offset:#x} are not in the {known[bar]:#x} bytes of BAR {bar} "
            f"of {slot}, or do not begin at a multiple of {PAGE:#x}"
        )
    return size


def bars(device: str) -> dict[int, int]:
    """Bytes of each BAR that is memory."""
    found = {}
    for index, line in enumerate(attribute(f"{device}/resource").splitlines()[:BARS]):
        start, end, flags = (int(field, 16) for field in line.split())
        if end and not flags & _IO:
            found[index] = end - start + 1
    return found


def _enable(what: str, path: str) -> None:
    """Until a device is enabled, each of its bytes reads as 0xff."""
    if attribute(path) != "0":
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write("1")
    except OSError as exc:
        refuse(what, path, exc, f"the device is not enabled: echo 1 > {path}; {NO_PERMISSION}")


def _why(exc: OSError, device: str) -> str:
    driver = os.path.basename(os.path.realpath(f"{device}/driver"))
    if exc.errno in (errno.EINVAL, errno.EPERM) and os.path.exists(f"{device}/driver"):
        unbind = f"echo {os.path.basename(device)} > {device}/driver/unbind"
        return f"driver {driver!r} has claimed it: {unbind}, or boot with iomem=relaxed"
    return LOCKED_DOWN
