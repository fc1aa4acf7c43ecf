"""PCI devices through VFIO: BARs, and interrupts as eventfds.

linux/vfio.h and Documentation/driver-api/vfio.rst of Linux.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from ..errors import ResourceError
from .device_file import attribute, bypassed, map_device, open_device, refuse
from .pci import check_bar
from .region import Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .region import Kind

INTX, MSI, MSIX, _ERROR, REQUEST = range(5)  # VFIO_PCI_*_IRQ_INDEX
KINDS = {MSIX: "MSI-X", MSI: "MSI", INTX: "INTx"}
"""Kinds of interrupts by which a device rings, the best one first."""

_SET_IOMMU, _GROUP_STATUS, _SET_CONTAINER = 0x3B66, 0x3B67, 0x3B68  # _IO(';', 100 + 2) and so on
_GROUP_DEVICE, _REGION_INFO, _IRQ_INFO, _SET_IRQS = 0x3B6A, 0x3B6C, 0x3B6D, 0x3B6E
_TYPE1V2, _NO_IOMMU = 3, 8  # VFIO_TYPE1v2_IOMMU, VFIO_NOIOMMU_IOMMU
_STATUS = struct.Struct("=II")  # struct vfio_group_status: argsz, flags
_VIABLE = 1
_REGION = struct.Struct("=IIIIQQ")  # struct vfio_region_info: argsz, flags, index, cap_offset, size, offset
_MAY_MAP = 4
_CONFIG = 7  # VFIO_PCI_CONFIG_REGION_INDEX
_IRQ = struct.Struct("=IIII")  # struct vfio_irq_info: argsz, flags, index, count
_IRQ_SET = struct.Struct("=IIIII")  # struct vfio_irq_set: argsz, flags, index, start, count; then the data
_EVENTFD, _TRIGGER = 4, 32
_UNMASK = 1 | 16  # without data
_PCI_COMMAND, _PCI_MEMORY, _PCI_MASTER = 4, 1 << 1, 1 << 2  # linux/pci_regs.h

NO_IOMMU = (
    "switch VT-d or AMD-Vi on in the firmware's setup, and boot with intel_iommu=on (AMD needs no option); "
    "or, if the device is trusted with all memory: modprobe vfio enable_unsafe_noiommu_mode=1"
)
HOW_TO_BIND = "modprobe vfio-pci; driverctl set-override {slot} vfio-pci"
_MISSING = "modprobe vfio-pci; in a container: give it /dev/vfio"
_BUSY = "a device of this IOMMU group is open already, here or in another process: only one can be"


class Place(NamedTuple):
    """Where a device stands: its directory in sysfs, its driver ("": none), its IOMMU group ("": none)."""

    sysfs: str
    driver: str
    group: str

    @property
    def bound(self) -> bool:
        """Whether its driver is vfio-pci, or one of those for a vendor's devices that do the same."""
        return "vfio" in self.driver


def place(slot: str, sysfs: str = "/sys") -> Place:
    """Of the PCI device in `slot`, whether it is there or not."""
    device = f"{sysfs}/bus/pci/devices/{slot}"
    driver, group = (
        os.path.basename(os.path.realpath(link)) if os.path.islink(link) else ""
        for link in (f"{device}/driver", f"{device}/iommu_group")
    )
    return Place(device, driver, group)


class VfioDevice:
    """The PCI device in `slot` ("0000:03:00.0"), which is bound to vfio-pci.

    Its IOMMU group is this object's alone: nobody else can open a device of it. The device reaches no memory of this
    machine, unless it is open without an IOMMU. Most are reset when they are opened, and when they and all their maps
    are closed. Not thread-safe.

    Raises ResourceError, which says how to get there: no device, no IOMMU, another driver, no permission, a group that
    is in use, or that others have a device of.
    """

    def __init__(self, slot: str, *, sysfs: str = "/sys", dev: str = "/dev") -> None:
        self.slot = slot
        self._fd = -1
        found = place(slot, sysfs)
        self.sysfs = found.sysfs
        self._check(found, sysfs)
        noiommu = f"{dev}/vfio/noiommu-{found.group}"
        unsafe = os.path.exists(noiommu)
        self.path = noiommu if unsafe else f"{dev}/vfio/{found.group}"
        # What is opened here is held by the device from then on.
        with contextlib.ExitStack() as opened:
            container = open_device(slot, f"{dev}/vfio/vfio", _MISSING)
            opened.callback(os.close, container)
            group = open_device(slot, self.path, _BUSY if os.path.exists(self.path) else _MISSING)
            opened.callback(os.close, group)
            try:
                self._check_viable(group, found, sysfs)
                fcntl.ioctl(group, _SET_CONTAINER, struct.pack("=i", container))
                fcntl.ioctl(container, _SET_IOMMU, _NO_IOMMU if unsafe else _TYPE1V2)
                self._fd = fcntl.ioctl(group, _GROUP_DEVICE, bytearray(slot.encode() + b"\0"))
                self._command(_PCI_MEMORY)
            except OSError as exc:
                self.close()
                cures = {
                    errno.ENODEV: "modprobe vfio_iommu_type1",
                    errno.EPERM: "it takes CAP_SYS_RAWIO without an IOMMU; with one that cannot remap interrupts: "
                    "modprobe vfio_iommu_type1 allow_unsafe_interrupts=1",
                }
                refuse(slot, self.path, exc, cures.get(exc.errno or 0, "dmesg may tell why"))

    def _check(self, found: Place, sysfs: str) -> None:
        slot = self.slot
        if not os.path.isdir(found.sysfs):
            raise ResourceError(f"there is no PCI device {slot!r}; lspci -D lists those that there are")
        unsafe = attribute(f"{sysfs}/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y"
        if not found.group and not unsafe:
            raise ResourceError(f"{slot} is behind no IOMMU; {NO_IOMMU}")
        if not found.bound or not found.group:
            has = f"driver {found.driver!r}" if found.driver else "no driver"
            raise ResourceError(f"{slot} has {has} and not vfio-pci: {HOW_TO_BIND.format(slot=slot)}")

    def _check_viable(self, group: int, found: Place, sysfs: str) -> None:
        status = bytearray(_STATUS.pack(_STATUS.size, 0))
        fcntl.ioctl(group, _GROUP_STATUS, status)
        if _STATUS.unpack(status)[1] & _VIABLE:
            return
        slots = sorted(os.listdir(f"{found.sysfs}/iommu_group/devices"))
        others = {slot: place(slot, sysfs) for slot in slots}
        blame = ", ".join(
            f"{slot} has driver {other.driver!r}"
            for slot, other in others.items()
            if not other.bound and other.driver not in ("", "pcieport")
        )
        raise ResourceError(
            f"{self.slot}: the IOMMU cannot keep the devices of group {found.group} apart, and "
            f"{blame or 'one of them has another driver'}: unbind it, or bind it to vfio-pci as well"
        )

    # -- memory

    def map_bar(
        self,
        name: str,
        bar: int,
        size: int | None = None,
        *,
        offset: int = 0,
        da: int = 0,
        pa: int | None = None,
        kind: Kind = "uncached",
    ) -> Region:
        """As `memory.pci.map_bar` does; the kernel maps it past the caches. Raises ResourceError."""
        what = f"region {name!r}"
        size = check_bar(what, self.sysfs, bar, size, offset)
        flags, start = self._region(bar)
        if not flags & _MAY_MAP:
            raise ResourceError(f"{what}: VFIO does not let BAR {bar} of {self.slot} be mapped; take pci: and uio")
        buffer = map_device(what, self.path, self._fd, size, start + offset, _why)
        return Region(name, buffer, da=da, pa=pa, kind=bypassed(kind))

    def _region(self, index: int) -> tuple[int, int]:
        """Flags of the region, and where it begins in the file."""
        info = bytearray(_REGION.pack(_REGION.size, 0, index, 0, 0, 0))
        fcntl.ioctl(self._fd, _REGION_INFO, info)
        _, flags, _, _, _, offset = _REGION.unpack(info)
        return flags, offset

    # -- interrupts

    def vectors(self) -> tuple[int, int]:
        """The best kind of interrupt that the device has, a key of KINDS, and how many. Raises ResourceError: none."""
        for kind in KINDS:
            info = bytearray(_IRQ.pack(_IRQ.size, 0, kind, 0))
            fcntl.ioctl(self._fd, _IRQ_INFO, info)
            count = _IRQ.unpack(info)[3]
            if count:
                return kind, count
        raise ResourceError(
            f"{self.slot} has no interrupt, neither MSI-X nor MSI nor INTx; "
            "do without: the rings are then looked at each millisecond"
        )

    def listen(self, kind: int, vector: int, eventfd: int) -> None:
        """Let interrupt `vector` of this kind ring `eventfd`. Raises ResourceError."""
        if kind in (MSI, MSIX):  # messages are writes of the device's
            self._command(_PCI_MASTER)
        head = _IRQ_SET.pack(_IRQ_SET.size + 4, _EVENTFD | _TRIGGER, kind, vector, 1)
        try:
            fcntl.ioctl(self._fd, _SET_IRQS, head + struct.pack("=i", eventfd))
        except OSError as exc:
            refuse(self.slot, self.path, exc, "the interrupt cannot be had; dmesg may tell why")

    def unmask(self, kind: int) -> None:
        """Switch an interrupt by level on again, which VFIO switches off whenever it comes."""
        fcntl.ioctl(self._fd, _SET_IRQS, _IRQ_SET.pack(_IRQ_SET.size, _UNMASK, kind, 0, 1))

    def _command(self, bits: int) -> None:
        """Set them in the PCI command register."""
        where = self._region(_CONFIG)[1] + _PCI_COMMAND
        command = int.from_bytes(os.pread(self._fd, 2, where), "little")
        os.pwrite(self._fd, (command | bits).to_bytes(2, "little"), where)

    def close(self) -> None:
        """Reset the device, unless a map of it is alive. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _why(exc: OSError) -> str:
    return "it is claimed already (/proc/iomem): who maps it through sysfs or /dev/mem has to end"
