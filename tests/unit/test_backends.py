# SPDX-License-Identifier: BSD-3-Clause
"""Memory of boards and their doorbells: what a newcomer meets first, each with the words that help.

Where this machine has no such device, sysfs and /dev are trees of files; the same on devices that are real stands in
tests/boards/guest.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pty
import re
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, kernel_has

import rpmsgx
from rpmsgx.errors import BoardError, ResourceError, StateError
from rpmsgx.memory import device_file
from rpmsgx.memory.devmem import map_devmem
from rpmsgx.memory.hugepages import map_hugepages, pool
from rpmsgx.memory.pci import map_bar
from rpmsgx.memory.region import Region
from rpmsgx.memory.uio import UioMap, devices, find, map_uio
from rpmsgx.memory.vfio import VfioDevice
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.register import Register
from rpmsgx.notify.uio import Access, RegisterDoorbell, UioDoorbell
from rpmsgx.remoteproc import board
from rpmsgx.remoteproc.steps import Write

PAGE = 0x1000
DENIED = "Permission denied; run as root, or let your group have it with a udev rule (examples/udev/60-rpmsgx.rules)"
IOMEM = """\
00000000-00000fff : Reserved
00001000-00007fff : System RAM
  00002000-00003fff : reserved
00008000-0000bfff : reserved
0000c000-0000ffff : PCI Bus 0000:00
  0000c000-0000cfff : 0000:00:01.0
    0000c000-0000cfff : virtio-pci-modern
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refusal(call: Callable[[], object]) -> str:
    """The ResourceError of `call` in a process that has no capabilities: root may open everything."""
    ours, childs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # struct __user_cap_header_struct and two of __user_cap_data_struct of linux/capability.h
            if ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0:
                call()
        except ResourceError as error:
            os.write(childs, str(error).encode())
        finally:
            os._exit(0)
    os.close(childs)
    with open(ours, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    gc.collect()  # what tests before have left
    before = descriptors()
    yield
    assert descriptors() == before


def tree(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


# -- /dev/mem ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def physical(tmp_path: Path) -> dict[str, str]:
    """64 KiB of physical memory, of which IOMEM speaks."""
    (tmp_path / "mem").write_bytes(bytes(0x10000))
    (tmp_path / "iomem").write_text(IOMEM)
    return {"dev": str(tmp_path / "mem"), "iomem": str(tmp_path / "iomem")}


def test_devmem(physical: dict[str, str]) -> None:
    with map_devmem("shm", 0x8000, 2 * PAGE, da=0x100, **physical) as region:
        assert (region.da, region.pa, region.size, region.fd) == (0x100, 0x8000, 2 * PAGE, None)
        region.view[1] = 7
        assert Path(physical["dev"]).read_bytes()[0x8001] == 7
    with map_devmem("shm", 0x9000, PAGE, **physical) as region:
        assert region.da == 0x9000


@pytest.mark.parametrize(
    "machine, kind, pa, expected",
    [
        ("x86_64", "uncached", 0x8000, "uncached"),
        ("x86_64", "device", 0x8000, "device"),
        ("x86_64", "cached", 0x8000, "cached"),
        ("aarch64", "uncached", 0x8000, "device"),
        ("aarch64", "cached", 0x8000, "device"),  # the kernel has not mapped it: it is device memory, coherent or not
        ("aarch64", "cached", 0x2000, "cached"),  # reserved, but mapped
        ("riscv64", "uncached", 0x8000, "device"),
    ],
)
def test_the_kind_that_a_map_really_has(
    physical: dict[str, str], monkeypatch: pytest.MonkeyPatch, machine: str, kind: Any, pa: int, expected: str
) -> None:
    """Memory that is copied by memcpy is a fault there where it is device memory."""
    monkeypatch.setattr(device_file.os, "uname", lambda: os.uname_result(("", "", "", "", machine)))
    with map_devmem("shm", pa, PAGE, kind=kind, **physical) as region:
        assert region.kind == expected


@pytest.mark.parametrize(
    "pa, size, text",
    [
        (0x4000, PAGE, "region 'shm': pa [0x4000, 0x5000) is in [0x1000, 0x8000), System RAM, which Linux uses itself; "
         "keep it free: a reserved-memory node with no-map in the device tree, or memmap=0x1000$0x4000 on the kernel's "
         "command line"),
        (0x3000, 2 * PAGE, "region 'shm': pa [0x3000, 0x5000) is in [0x1000, 0x8000), System RAM, which"),
        (0x7000, 2 * PAGE, "region 'shm': pa [0x7000, 0x9000) is in [0x1000, 0x8000), System RAM, which"),
        (0x8010, PAGE, "region 'shm': pa 0x8010 is not a multiple of the page size 0x1000"),
    ],
)  # fmt: skip
def test_devmem_refuses(physical: dict[str, str], pa: int, size: int, text: str) -> None:
    with pytest.raises(ResourceError, match=f"^{re.escape(text)}"):
        map_devmem("shm", pa, size, **physical)


def test_devmem_is_not_there(physical: dict[str, str]) -> None:
    path = physical["dev"] + "-not"
    with pytest.raises(ResourceError) as caught:
        map_devmem("shm", 0x8000, PAGE, **{**physical, "dev": path})
    assert str(caught.value) == (
        f"region 'shm': {path}: No such file or directory; the kernel is built without CONFIG_DEVMEM, or this "
        "container was not given it; use UIO"
    )


def test_devmem_without_permission(physical: dict[str, str]) -> None:
    os.chmod(physical["dev"], 0)
    assert refusal(lambda: map_devmem("shm", 0x8000, PAGE, **physical)) == (
        f"region 'shm': {physical['dev']}: {DENIED}"
    )


def test_this_machines_memory() -> None:
    """RAM is refused wherever /dev/mem is there; where it is not, that is said. Nothing is mapped."""
    lines = Path("/proc/iomem").read_text().splitlines()
    ram = next((int(line.split("-")[0], 16) for line in lines if line.endswith(" : System RAM")), 0)
    with pytest.raises(ResourceError) as caught:
        map_devmem("shm", -(-ram // PAGE) * PAGE, PAGE)
    known = ("System RAM, which Linux uses itself", "CONFIG_DEVMEM", "run as root", "CAP_SYS_RAWIO", "STRICT_DEVMEM")
    assert any(text in str(caught.value) for text in known)


# -- UIO ---------------------------------------------------------------------------------------------------------------

MAILBOX = {
    "class/uio/uio0/name": "mailbox\n",
    "class/uio/uio0/event": "0\n",
    "class/uio/uio0/maps/map0/name": "regs\n",
    "class/uio/uio0/maps/map0/addr": "0x0000000009000000\n",
    "class/uio/uio0/maps/map0/size": "0x0000000000001000\n",
    "class/uio/uio0/maps/map0/offset": "0x0\n",
    "class/uio/uio0/maps/map1/name": "shm\n",
    "class/uio/uio0/maps/map1/addr": "0x0000000060000000\n",
    "class/uio/uio0/maps/map1/size": "0x0000000000003000\n",
    "class/uio/uio0/maps/map1/offset": "0x40\n",
    "class/uio/uio10/name": "gpio\n",
    "class/uio/uio10/maps/map0/name": "\n",
    "class/uio/uio10/maps/map0/addr": "0x9030000\n",
    "class/uio/uio10/maps/map0/size": "0x1000\n",
    "class/uio/uio10/maps/map0/offset": "0x0\n",
    "class/uio/uio2/name": "bare\n",
}


@pytest.fixture
def uio(tmp_path: Path) -> dict[str, str]:
    """uio0 with two maps (a file's pages, as UIO counts them), uio2 without, uio10 with one."""
    (tmp_path / "dev").mkdir()
    for name in ("uio0", "uio10", "uio2"):
        (tmp_path / "dev" / name).write_bytes(bytes(4 * PAGE))
    return {"sysfs": tree(tmp_path / "sys", MAILBOX), "dev": str(tmp_path / "dev")}


def test_uio_devices(uio: dict[str, str]) -> None:
    mailbox, bare, gpio = devices(**uio)
    assert [item.name for item in (mailbox, bare, gpio)] == ["mailbox", "bare", "gpio"]
    assert mailbox.maps[1] == UioMap(1, "shm", 0x60000000, 0x3000, 0x40) and bare.maps == ()
    assert find("gpio", **uio) == find(f"{uio['dev']}/uio10", **uio) == gpio
    Path(uio["dev"], "link").symlink_to("uio10")
    assert find(f"{uio['dev']}/link", **uio) == gpio


@pytest.mark.parametrize("chosen", ["shm", "1"])
def test_uio_map(uio: dict[str, str], chosen: str) -> None:
    with map_uio("shm", "mailbox", map=chosen, **uio) as region:
        assert (region.pa, region.da, region.size) == (0x60000040, 0x60000040, 0x3000 - 0x40)
        region.view[0] = 1
        assert (Path(uio["dev"]) / "uio0").read_bytes()[PAGE + 0x40] == 1
    with map_uio("shm", "mailbox", 0x80, map=chosen, offset=0x100, da=0x10, pa=0x20, **uio) as region:
        assert (region.pa, region.da, region.size) == (0x20, 0x10, 0x80)
        region.view[0] = 2
        assert (Path(uio["dev"]) / "uio0").read_bytes()[PAGE + 0x140] == 2
    with map_uio("regs", "gpio", **uio) as region:
        assert region.pa == 0x9030000


@pytest.mark.parametrize("machine, kind", [("x86_64", "uncached"), ("aarch64", "device")])
def test_uio_kind(uio: dict[str, str], monkeypatch: pytest.MonkeyPatch, machine: str, kind: str) -> None:
    monkeypatch.setattr(device_file.os, "uname", lambda: os.uname_result(("", "", "", "", machine)))
    with map_uio("regs", "gpio", kind="uncached", **uio) as region:
        assert region.kind == kind


@pytest.mark.parametrize(
    "device, options, text",
    [
        ("mailbx", {}, "there is no UIO device 'mailbx'; there are 'mailbox' ({dev}/uio0), 'bare' ({dev}/uio2), "
         "'gpio' ({dev}/uio10)"),
        ("mailbox", {}, "region 'shm': {dev}/uio0 has several maps; name one: map 0 'regs' "
         "(0x1000 bytes at 0x9000000), map 1 'shm' (0x2fc0 bytes at 0x60000040)"),
        ("mailbox", {"map": "ram"}, "region 'shm': {dev}/uio0 has no map 'ram'; it has map 0 'regs' (0x1000 bytes at "),
        ("bare", {}, "region 'shm': {dev}/uio2 (bare) has no memory; it needs a reg in the device tree; "
         "uio_pci_generic gives none of 64-bit BARs: use pci: for these"),
        ("mailbox", {"map": "shm", "size": 0x3000}, "region 'shm': 0x3000 bytes at offset 0x0 are not in map 1 'shm' "
         "(0x2fc0 bytes at 0x60000040) of {dev}/uio0; make the region smaller, or the memory larger"),
        ("mailbox", {"map": "shm", "offset": 0x2FC0}, "region 'shm': 0x0 bytes at offset 0x2fc0 are not in "),
        ("mailbox", {"map": "shm", "offset": 1}, "region 'shm': {dev}/uio0 begins at 0x60000041, no multiple of 8"),
    ],
)  # fmt: skip
def test_uio_refuses(uio: dict[str, str], device: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ResourceError, match=f"^{re.escape(text.replace('{dev}', uio['dev']))}"):
        map_uio("shm", device, **options, **uio)


def test_uio_without_devices(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        map_uio("shm", "mailbox", sysfs=str(tmp_path))
    assert str(caught.value) == (
        "there is no UIO device 'mailbox', nor any other; bind one to a UIO driver: in the device tree: "
        'compatible = "generic-uio" and modprobe uio_pdrv_genirq of_id=generic-uio; on PCI: modprobe uio_pci_generic, '
        "then driverctl set-override SLOT uio_pci_generic"
    )


def test_uio_names_that_stand_twice(uio: dict[str, str]) -> None:
    Path(uio["sysfs"], "class/uio/uio2/name").write_text("gpio\n")
    with pytest.raises(ResourceError, match="^2 UIO devices are called 'gpio'; give the path; there are 'mailbox' "):
        map_uio("shm", "gpio", **uio)
    with map_uio("shm", f"{uio['dev']}/uio10", **uio) as region:
        assert region.pa == 0x9030000


def test_uio_without_its_file(uio: dict[str, str]) -> None:
    Path(uio["dev"], "uio10").unlink()
    text = "uio10: No such file or directory; udev or devtmpfs has not made it; mount -t devtmpfs dev /dev$"
    with pytest.raises(ResourceError, match=text):
        map_uio("shm", "gpio", **uio)


def test_uio_without_permission(uio: dict[str, str]) -> None:
    Path(uio["dev"], "uio10").chmod(0)
    assert refusal(lambda: map_uio("shm", "gpio", **uio)) == f"region 'shm': {uio['dev']}/uio10: {DENIED}"
    assert refusal(lambda: UioDoorbell("gpio", **uio)) == f"doorbell: {uio['dev']}/uio10: {DENIED}"


# -- PCI ---------------------------------------------------------------------------------------------------------------

SLOT = "0000:00:04.0"
DEVICE = f"bus/pci/devices/{SLOT}"
RESOURCE = """\
0x00000000febf1000 0x00000000febf10ff 0x0000000000040200
0x000000000000c000 0x000000000000c03f 0x0000000000040101
0x00000000fe000000 0x00000000fe003fff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
"""


@pytest.fixture
def sysfs(tmp_path: Path) -> str:
    """A device like ivshmem: BAR 0 registers, BAR 1 ports, BAR 2 16 KiB of prefetchable memory."""
    root = tree(tmp_path, {f"{DEVICE}/resource": RESOURCE, f"{DEVICE}/enable": "1\n"})
    for name, size in (("resource0", 0x100), ("resource1", 0x40), ("resource2", 0x4000), ("resource2_wc", 0x4000)):
        (tmp_path / DEVICE / name).write_bytes(bytes(size))
    return root


def test_pci_bar(sysfs: str, tmp_path: Path) -> None:
    with map_bar("shm", SLOT, 2, 2 * PAGE, offset=PAGE, da=0x10, sysfs=sysfs) as region:
        assert (region.size, region.da, region.kind) == (2 * PAGE, 0x10, "uncached")
        region.view[0] = 1
    assert (tmp_path / DEVICE / "resource2_wc").read_bytes()[PAGE] == 1
    with map_bar("shm", SLOT, 2, kind="device", sysfs=sysfs) as region:
        assert (region.size, region.kind) == (0x4000, "device")
        region.view[0] = 1
    assert (tmp_path / DEVICE / "resource2").read_bytes()[0] == 1


def test_a_pci_device_is_enabled(sysfs: str, tmp_path: Path) -> None:
    (tmp_path / DEVICE / "enable").write_text("0\n")
    map_bar("regs", SLOT, 0, sysfs=sysfs).close()
    assert (tmp_path / DEVICE / "enable").read_text() == "1"


@pytest.mark.parametrize(
    "slot, bar, options, text",
    [
        ("0000:00:05.0", 0, {}, "region 'shm': there is no PCI device '0000:00:05.0'; lspci -D lists those that "),
        (SLOT, 1, {}, "region 'shm': 0000:00:04.0 has no BAR 1 with memory; it has 0 (0x100 bytes), 2 (0x4000 bytes)"),
        (SLOT, 3, {}, "region 'shm': 0000:00:04.0 has no BAR 3 with memory; it has 0 (0x100 bytes), 2 (0x4000 bytes)"),
        (SLOT, 2, {"size": 0x5000}, "region 'shm': 0x5000 bytes at offset 0x0 are not in the 0x4000 bytes of BAR 2 of "
         "0000:00:04.0, or do not begin at a multiple of 0x1000"),
        (SLOT, 2, {"offset": 0x800}, "region 'shm': 0x3800 bytes at offset 0x800 are not in the 0x4000 bytes of BAR 2"),
        (SLOT, 2, {"offset": 0x4000}, "region 'shm': 0x0 bytes at offset 0x4000 are not in the 0x4000 bytes of BAR 2"),
    ],
)  # fmt: skip
def test_pci_refuses(sysfs: str, slot: str, bar: int, options: dict[str, int], text: str) -> None:
    with pytest.raises(ResourceError, match=f"^{re.escape(text)}"):
        map_bar("shm", slot, bar, sysfs=sysfs, **options)


def test_pci_without_files_of_its_bars(sysfs: str, tmp_path: Path) -> None:
    (tmp_path / DEVICE / "resource0").unlink()
    with pytest.raises(ResourceError, match="resource0: No such file or directory; the kernel gives no maps of BARs "):
        map_bar("shm", SLOT, 0, sysfs=sysfs)


def test_a_pci_device_that_cannot_be_enabled(sysfs: str, tmp_path: Path) -> None:
    enable = tmp_path / DEVICE / "enable"
    enable.write_text("0\n")
    enable.chmod(0o444)
    found = refusal(lambda: map_bar("shm", SLOT, 0, sysfs=sysfs))
    assert found.startswith(f"region 'shm': {enable}: Permission denied; the device is not enabled: echo 1 > {enable}")
    (tmp_path / DEVICE / "resource0").chmod(0)
    denied = f"region 'shm': {tmp_path / DEVICE}/resource0: {DENIED}"
    assert refusal(lambda: map_bar("shm", SLOT, 0, sysfs=sysfs)) == denied


# -- huge pages --------------------------------------------------------------------------------------------------------


def huge() -> tuple[int, int]:
    """The size of a huge page here, and how many are free."""
    found = dict(re.findall(r"(\w+): +(\d+)", Path("/proc/meminfo").read_text()))
    kernel_has("Hugepagesize" in found, "the kernel has no huge pages (CONFIG_HUGETLBFS)")
    free = int(found["HugePages_Free"]) - int(found["HugePages_Rsvd"])
    overcommit = Path("/proc/sys/vm/nr_overcommit_hugepages").read_text()
    return int(found["Hugepagesize"]) << 10, free + int(overcommit)


def test_huge_pages() -> None:
    page, free = huge()
    kernel_has(free >= 1, "no huge page is free: echo 1 > /proc/sys/vm/nr_hugepages")
    with map_hugepages("shm", page, da=1 << 20) as region:
        assert (region.size, region.da, region.kind, region.sealed) == (page, 1 << 20, "cached", True)
        region.view[page - 1] = 1
        assert region.fd is not None and os.fstatvfs(region.fd).f_bsize == page


def test_too_few_huge_pages() -> None:
    page, free = huge()
    with pytest.raises(ResourceError) as caught:
        map_hugepages("shm", (free + 2) * page)
    start = f"region 'shm': memfd: Cannot allocate memory; it takes {free + 2} huge pages of {page:#x} bytes, and "
    assert str(caught.value).startswith(start)
    assert f"> {pool(page)}/nr_hugepages" in str(caught.value)


def test_huge_pages_are_whole() -> None:
    page, _ = huge()
    text = f"region 'shm': size 0x1000 is not a multiple of the huge page {page:#x}; write {page:#x}"
    with pytest.raises(ResourceError, match=f"^{text}$"):
        map_hugepages("shm", PAGE)


def test_a_path_in_no_hugetlbfs(tmp_path: Path) -> None:
    cure = "mount -t hugetlbfs none /dev/hugepages, and choose a path there"
    with pytest.raises(ResourceError, match=f"^region 'shm': {tmp_path}/huge is in no hugetlbfs; {cure}$"):
        map_hugepages("shm", 2 << 20, f"{tmp_path}/huge")
    with pytest.raises(ResourceError, match=f"^region 'shm': {tmp_path}/no/huge: No such file or directory; {cure}$"):
        map_hugepages("shm", 2 << 20, f"{tmp_path}/no/huge")


# -- VFIO: the rest takes devices, and stands in tests/boards/guest ---------------------------------------------------


def test_what_vfio_lacks(tmp_path: Path) -> None:
    tree(tmp_path, {"sys/bus/pci/devices/0000:00:04.0/vendor": "", "sys/bus/pci/drivers/vfio-pci/bind": ""})
    device = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    where = {"sysfs": str(tmp_path / "sys"), "dev": str(tmp_path / "dev")}
    cases = (
        (None, "", r"0000:00:04.0 is behind no IOMMU; switch VT-d or AMD-Vi on .* enable_unsafe_noiommu_mode=1"),
        ("iommu_group", "../../../../kernel/iommu_groups/7", "has no driver and not vfio-pci: modprobe vfio-pci; dr"),
        ("driver", "../../drivers/vfio-pci", "dev/vfio/vfio: No such file or directory; modprobe vfio-pci; in a cont"),
    )
    for name, target, problem in cases:
        if name is not None:
            (device / name).symlink_to(target)
        with pytest.raises(ResourceError, match=problem):
            VfioDevice("0000:00:04.0", **where)
    tree(tmp_path, {"dev/vfio/vfio": "", "dev/vfio/7": ""})
    denied = refusal(lambda: [os.chmod(tmp_path / "dev/vfio/7", 0), VfioDevice("0000:00:04.0", **where)])
    assert denied == f"0000:00:04.0: {tmp_path}/dev/vfio/7: {DENIED}"
    (tmp_path / "dev/vfio/7").chmod(0o600)
    with pytest.raises(ResourceError, match="vfio/7: Inappropriate ioctl for device; dmesg may tell why"):
        VfioDevice("0000:00:04.0", **where)


# -- registers and interrupts ------------------------------------------------------------------------------------------


def test_register() -> None:
    memory = bytearray(16)
    register = Register(memory, 4)
    register.write(0x12345678)
    assert struct.unpack("=4I", memory) == (0, 0x12345678, 0, 0) and register.read() == 0x12345678
    register.update(0xFFFF0001, 0xFF0000FF)
    assert register.read() == 0xFF345601
    with pytest.raises(BufferError):
        memory.append(0)
    for value in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            register.write(value)
    for offset in (-4, 2, 13, 16, 1 << 40):
        with pytest.raises(ValueError, match="is no multiple of 4 inside 0x10 bytes of registers"):
            Register(memory, offset)
    with pytest.raises(BufferError):
        Register(bytes(4), 0)
    del register
    memory.append(0)


class Kernel:
    """The kernel's side of a UIO device: a terminal, which can be written and read from both ends."""

    def __init__(self, dev: Path) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave, termios.TCSANOW)
        (dev / "uio0").unlink()
        (dev / "uio0").symlink_to(os.ttyname(slave))
        self.slave = slave
        os.set_blocking(self.master, False)

    def interrupt(self, count: int) -> None:
        os.write(self.master, struct.pack("=I", count))

    def switched_on(self) -> int:
        """How often since it was asked last."""
        try:
            data = os.read(self.master, 4096)
        except BlockingIOError:
            return 0
        assert data == struct.pack("=I", 1) * (len(data) // 4)
        return len(data) // 4

    def remove(self) -> None:
        for end in ("master", "slave"):
            if getattr(self, end) >= 0:
                os.close(getattr(self, end))
                setattr(self, end, -1)


@pytest.fixture
def kernel(uio: dict[str, str], nothing_stays_open: None) -> Iterator[Kernel]:
    ends = Kernel(Path(uio["dev"]))
    yield ends
    ends.remove()


def test_an_interrupt(uio: dict[str, str], kernel: Kernel) -> None:
    Path(uio["sysfs"], "class/uio/uio0/event").write_text("5\n")
    registers = Region.anonymous("regs", PAGE)
    words = registers.view.cast("I")
    bell = UioDoorbell("mailbox", registers=registers, kick=Access(8, 0x6B), acknowledge=Access(4, 1, 3), **uio)
    words[1] = 0xF2
    assert kernel.switched_on() == 1 and not readable(bell.fileno(), 0)
    kernel.interrupt(6)
    assert readable(bell.fileno(), 5)
    bell.drain()
    assert not readable(bell.fileno(), 0)
    assert (kernel.switched_on(), bell.missed, words[1]) == (1, 0, 0xF1)
    kernel.interrupt(9)
    assert readable(bell.fileno(), 5)
    bell.drain()
    bell.drain()  # nothing came: nothing is switched on that is on
    assert (kernel.switched_on(), bell.missed) == (1, 2)
    bell.kick(0)
    assert words[2] == 0x6B
    words.release()
    bell.close()
    bell.close()
    bell.kick(0)
    bell.drain()
    assert registers.closed and bell.fileno() == -1


def test_the_count_of_interrupts_wraps(uio: dict[str, str], kernel: Kernel) -> None:
    Path(uio["sysfs"], "class/uio/uio0/event").write_text("4294967295\n")
    bell = UioDoorbell("mailbox", **uio)
    kernel.interrupt(1)
    assert readable(bell.fileno(), 5)
    bell.drain()
    assert bell.missed == 1
    bell.close()


def test_a_device_that_has_gone(uio: dict[str, str], kernel: Kernel) -> None:
    bell = UioDoorbell("mailbox", **uio)
    kernel.remove()
    assert readable(bell.fileno(), 5)
    with pytest.raises(StateError, match="uio0 has gone: it was removed, or unbound from its driver$"):
        bell.drain()
    bell.close()


def test_a_device_without_interrupt(uio: dict[str, str]) -> None:
    """A driver without interrupt answers a write with EIO, as /proc/self/mem does that of a wrong address."""
    Path(uio["dev"], "uio0").unlink()
    Path(uio["dev"], "uio0").symlink_to("/proc/self/mem")
    with pytest.raises(ResourceError, match=r"uio0 has no interrupt; give it one \(interrupts in the device tree\),"):
        UioDoorbell("mailbox", **uio)


def test_the_interrupt_is_switched_on_in_pci_where_the_driver_does_not(uio: dict[str, str]) -> None:
    """uio_pci_generic switches INTx off, and takes no writes; nor does /dev/full."""
    Path(uio["dev"], "uio0").unlink()
    Path(uio["dev"], "uio0").symlink_to("/dev/full")
    config = Path(uio["sysfs"], "class/uio/uio0/device/config")
    config.parent.mkdir()
    config.write_bytes(bytes.fromhex("f41a0011 0705 1000") + bytes(56))
    bell = UioDoorbell("mailbox", **uio)
    assert config.read_bytes()[:8].hex() == "f41a001107011000"
    config.write_bytes(bytes.fromhex("f41a0011 0305 1000") + bytes(56))
    bell.drain()
    assert config.read_bytes()[:8].hex() == "f41a001103011000" and config.stat().st_size == 64
    bell.close()


def test_registers_that_are_not_there(uio: dict[str, str]) -> None:
    with Region.anonymous("regs", PAGE) as registers:
        text = "region 'regs': offset 0x1000 is no multiple of 4 inside 0x1000 bytes of registers"
        with pytest.raises(ResourceError, match=f"^{text}$"):
            UioDoorbell("mailbox", registers=registers, kick=Access(0x1000, 1), **uio)
        assert not registers.closed  # still the caller's
        with pytest.raises(ResourceError, match="the registers' memory"):
            UioDoorbell("mailbox", kick=Access(0, 1), **uio)


def test_without_an_interrupt_the_rings_are_looked_at() -> None:
    registers = Region.anonymous("regs", PAGE)
    bell = RegisterDoorbell(registers, Access(0, 0x100, 0xF00))
    for _ in range(3):
        assert readable(bell.fileno(), 5)
        bell.drain()
    bell.kick(0)
    assert struct.unpack_from("=I", registers.view) == (0x100,)
    bell.close()
    bell.kick(0)
    assert registers.closed


# -- in a board file ---------------------------------------------------------------------------------------------------

BOARD = """\
platform = "unicorn"
shared = "shm"
[[memory]]
name = "rom"
da = 0x0
pa = 0x90000000
size = "256KiB"
[[memory]]
name = "ram"
da = 0x20000000
size = "128KiB"
[[memory]]
name = "shm"
da = 0x60000000
size = "1MiB"
kind = "uncached"
"""


def wrong(folder: Path, text: str) -> list[str]:
    (folder / "b.toml").write_text(text)
    return [f"{line}: {what}" for line, what in board.check(folder / "b.toml")[1]]


@pytest.mark.parametrize(
    "backend", ["mem", "uio:mailbox", "uio:/dev/uio0:shm", "pci:0000:00:04.0:2", "hugepages", "hugetlbfs:huge"]
)
def test_backends(tmp_path: Path, backend: str) -> None:
    assert wrong(tmp_path, BOARD + f'backend = "{backend}"\n') == []
    found = board.load(tmp_path / "b.toml").memory[-1].backend
    assert found == (f"hugetlbfs:{tmp_path}/huge" if "tlb" in backend else backend)


@pytest.mark.parametrize(
    "text, problem",
    [
        ('backend = "uio"', "17: [[memory]] backend: 'uio' is no backend; write 'uio:DEVICE[:MAP]'"),
        ('backend = "mem:0x10"', "17: [[memory]] backend: 'mem:0x10' is no backend; write 'mem'"),
        ('backend = "pci:00:04.0:2"', "17: [[memory]] backend: 'pci:00:04.0:2' is no BAR; write 'pci:SLOT:BAR', such"),
        ('backend = "pci:0000:00:04.0:6"', "17: [[memory]] backend: 'pci:0000:00:04.0:6' is no BAR; write "),
        ('backend = "mem"\noffset = 0x1000', "18: [[memory]] offset: 'mem' begins where the memory does; take it out"),
        ('backend = "uio:x"\noffset = 8', "18: [[memory]] offset: 0x8 is not a multiple of the page size 0x1000"),
    ],
)
def test_backends_that_cannot_be(tmp_path: Path, text: str, problem: str) -> None:
    [found] = wrong(tmp_path, BOARD + text)
    assert found.startswith(problem), found


def test_cached_memory_of_a_bus_must_be_coherent(tmp_path: Path) -> None:
    for backend in ("mem", "uio:x", "pci:0000:00:04.0:2"):
        text = BOARD.replace('kind = "uncached"\n', "") + f'backend = "{backend}"\n'
        [found] = wrong(tmp_path, text)
        assert found.startswith(f"12: [[memory]] kind: nothing says that caches are coherent on '{backend}'; write ")
        assert wrong(tmp_path, text + "coherent = true\n") == []


def test_what_opening_shows_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(BOARD + 'backend = "pci:ffff:00:04.0:2"\n')
    with pytest.raises(BoardError, match="b.toml:12: region 'shm': there is no PCI device 'ffff:00:04.0'"):
        board.load(tmp_path / "b.toml").open_platform()


DOORBELL = """\
platform = "board"
[doorbell]
interrupt = "mailbox"
kick = { register = "mailbox.ring", value = 0x6b }
acknowledge = { register = "mailbox.clear", value = 1, mask = 0x3 }
[[registers]]
name = "mailbox"
backend = "uio:mailbox:regs"
names = { ring = 0x0, clear = 0x4 }
"""


class BoardPlatform:
    """Takes what the board gives, as one that a package brings."""

    def __init__(self, *, doorbell: Any = None, memory: Any = None, shared: Any = None) -> None:
        self.doorbell = doorbell


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> None:
    from rpmsgx.remoteproc import platform

    monkeypatch.setitem(platform._BUILT_IN, "board", ("platform", "BoardPlatform"))
    monkeypatch.setattr(platform, "BoardPlatform", BoardPlatform, raising=False)


@pytest.mark.usefixtures("platform")
def test_a_doorbell(tmp_path: Path) -> None:
    assert wrong(tmp_path, DOORBELL) == []
    bell = board.load(tmp_path / "b.toml").doorbell
    assert bell is not None and bell.block is not None
    assert (bell.interrupt, bell.kick) == ("mailbox", Write("mailbox.ring", 0x6B))
    assert bell.acknowledge == Write("mailbox.clear", 1, 3)
    assert (bell.block.backend, bell.block.size) == ("uio:mailbox:regs", PAGE)
    with pytest.raises(BoardError, match="b.toml:2: there is no UIO device 'mailbox'"):
        board.load(tmp_path / "b.toml").open_platform()


@pytest.mark.usefixtures("platform")
def test_a_doorbell_reaches_the_platform(tmp_path: Path, uio: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine that has a UIO device, which this one need not be."""
    monkeypatch.setattr("rpmsgx.memory.uio.devices", lambda sysfs, dev: devices(**uio))
    text = DOORBELL.replace('interrupt = "mailbox"\n', "").replace("acknowledge", "#")
    assert wrong(tmp_path, text) == []
    made: Any = board.load(tmp_path / "b.toml").open_platform()
    made.doorbell.kick(0)
    assert struct.unpack_from("=I", (Path(uio["dev"]) / "uio0").read_bytes()) == (0x6B,)
    made.doorbell.close()


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize(
    "change, problem",
    [
        (("kick = {", "kik = {"), "4: [doorbell] there is no key 'kik'; did you mean 'kick'?"),
        (("ring = 0x0", "ring = 0x2"), "9: [[registers]] names: ring is at 0x2, no multiple of 4; registers have"),
        ((", value = 0x6b", ""), "4: [doorbell] kick: {'register': 'mailbox.ring'} is nothing that a register takes; "),
        (("value = 0x6b", "val = 1"), "4: [doorbell] kick: {'register': 'mailbox.ring', 'val': 1} is nothing that a"),
        (('"uio:mailbox:regs"', '"memfd"'), "8: [[registers]] backend: 'memfd' has no registers; write 'mem', 'uio:"),
        (('"uio:mailbox:regs"', '"mem"'), "6: [[registers]] pa is missing; add pa = ..., where 'mem' has the r"),
        (('name = "mailbox"', 'name = "x"'), "4: [doorbell] kick: there is no register 'mailbox.ring'; did you mean"),
        (('= "mailbox"\nkick', '= "vfio:04.0"\nkick'), "3: [doorbell] interrupt: 'vfio:04.0' is no interrupt; write"),
        (('"board"', '"unicorn"'), "2: platform 'unicorn' sees to doorbell itself; take it out"),
    ],
)
def test_doorbells_that_cannot_be(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    found = wrong(tmp_path, DOORBELL.replace(*change))
    assert found[0].startswith(problem), found


@pytest.mark.usefixtures("platform")
def test_a_doorbell_by_vfio_that_cannot_be_had(tmp_path: Path) -> None:
    """It comes first, since BARs of the same device are mapped through it."""
    text = DOORBELL.replace('"mailbox"\nkick', '"vfio:ffff:00:04.0:1"\nkick')
    assert wrong(tmp_path, text.replace("uio:mailbox:regs", "pci:ffff:00:04.0:0")) == []
    with pytest.raises(BoardError, match="b.toml:2: there is no PCI device 'ffff:00:04.0'; lspci -D lists"):
        board.load(tmp_path / "b.toml").open_platform()


@pytest.mark.usefixtures("platform")
def test_the_pages(tmp_path: Path) -> None:
    """What they show is good."""
    first, registers = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "first-board.md").read_text(), re.DOTALL)
    assert wrong(tmp_path, f'platform = "board"\nshared = "shm"\n{first}') == []
    assert wrong(tmp_path, registers) == []


@pytest.mark.usefixtures("platform")
def test_a_doorbell_of_nothing(tmp_path: Path) -> None:
    [found] = wrong(tmp_path, 'platform = "board"\n[doorbell]\n')
    assert found == "2: interrupt, kick and poll are missing; add one of them, or take [doorbell] out"


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def board_memory(uio: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Memory of a UIO device, of which this machine needs none: 1 MiB in map 1 of "mailbox", 0x40 from its begin."""
    Path(uio["dev"], "uio0").write_bytes(bytes(PAGE + 0x100040))
    Path(uio["sysfs"], "class/uio/uio0/maps/map1/size").write_text("0x100040\n")
    monkeypatch.setattr("rpmsgx.memory.uio.devices", lambda sysfs, dev: devices(**uio))
    return "uio:mailbox:shm"


@pytest.mark.parametrize("kind", ["uncached", "device"])
def test_a_link_in_memory_of_uio(board_memory: str, kind: str) -> None:
    with (
        rpmsgx.open(board_memory, "driver", create=True, kind=kind) as host,
        rpmsgx.open(board_memory, "device", kind=kind) as remote,
    ):
        service = remote.create_endpoint("rpmsg-raw")
        endpoint = host.open("rpmsg-raw", timeout=5)
        for size in (1, 7, 64, endpoint.mtu):
            message = os.urandom(size)
            endpoint.send(message)
            data, source = service.recv_from(timeout=5)
            assert data == message
            service.send_to(data[::-1], source)
            assert endpoint.recv(timeout=5) == message[::-1]


def test_a_link_outlives_one_end(board_memory: str) -> None:
    with rpmsgx.open(board_memory, "driver", create=True) as host:
        for times in (1, 2):
            with rpmsgx.open(board_memory, "device") as remote:
                service = remote.create_endpoint("rpmsg-raw")
                endpoint = host.open("rpmsg-raw", timeout=5)
                endpoint.send(b"x")
                assert service.recv(timeout=5) == b"x"
            deadline = time.monotonic() + 5
            while host.counters["resets"] < times and time.monotonic() < deadline:
                host.poll(0.1)
            with pytest.raises(rpmsgx.ChannelRemoved):
                endpoint.recv(timeout=5)
            endpoint.close()


def test_a_link_needs_a_table(board_memory: str) -> None:
    with pytest.raises(ResourceError, match="^uio:mailbox:shm: .*; one end has to write the table: create=True$"):
        rpmsgx.open(board_memory, "driver")
    with pytest.raises(ResourceError, match="^uio:mailbox:shm: size is 0x10000, a link takes 0x80000$"):
        rpmsgx.open(board_memory, "driver", create=True, size=0x10000)
    with pytest.raises(ValueError, match="^doorbell must be \"none\" or a Doorbell"):
        rpmsgx.open(board_memory, "driver", create=True, doorbell="irq")
    with pytest.raises(ValueError, match="^mem:shm: write a physical address, such as mem:0x92000000$"):
        rpmsgx.open("mem:shm", "driver")
    with pytest.raises(ResourceError, match="CONFIG_DEVMEM|System RAM"):
        rpmsgx.open("mem:0x100000", "driver")
