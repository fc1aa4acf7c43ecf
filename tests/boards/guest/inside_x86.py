# SPDX-License-Identifier: BSD-3-Clause
"""What test_guests.py lets a PC do, one function after the other.

No pytest in here: a guest has the host's Python, and starts it in a fraction of a second. Devices: ivshmem-plain, whose
BAR 2 is memory shared with the host, and edu, whose register 0x60 raises its own interrupt, and 0x64 clears it. Behind
VFIO edu has MSI; ivshmem-doorbell has MSI-X, rung by its register 0xc; and e1000 has INTx, with registers of its own.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path

from cases import WAIT, child, echoes_between_two_processes, ended_well, refused, tell

from rpmsgx.cli.doctor import Machine
from rpmsgx.errors import StateError
from rpmsgx.memory.devmem import map_devmem
from rpmsgx.memory.pci import map_bar
from rpmsgx.memory.region import Region
from rpmsgx.memory.uio import devices, map_uio
from rpmsgx.memory.vfio import VfioDevice
from rpmsgx.notify.doorbell import Doorbell, readable
from rpmsgx.notify.register import Register
from rpmsgx.notify.uio import Access, UioDoorbell
from rpmsgx.notify.vfio import VfioDoorbell
from rpmsgx.remoteproc import board

IVSHMEM, EDU = "0000:00:04.0", "0000:00:05.0"
BELL, CARD = "0000:00:06.0", "0000:00:07.0"
TOGETHER = "0000:01:01.0", "0000:01:02.0"
PCI = Path("/sys/bus/pci/devices")
SIZE, PAGE = 1 << 20, 0x1000
RAISE, CLEAR = 0x60, 0x64
RING = 0xC  # of ivshmem-doorbell: the vector, of peer 0, which is itself
ICR, ICS, IMS, LINK = 0xC0, 0xC8, 0xD0, 1 << 2  # of e1000: what is pending; raise; let through; "the link has changed"
NOBODY = 65534
BOARD = f"""\
platform = "registers"
shared = "shm"

[[memory]]
name = "shm"
da = 0x10000000
size = "1MiB"
backend = "pci:{BELL}:2"
kind = "device"

[[registers]]
name = "ivshmem"
backend = "pci:{BELL}:0"
size = 0x100
names = {{ ring = {RING} }}

[core]
machine = "ARM"
running = true

[doorbell]
interrupt = "vfio:{BELL}:1"
kick = {{ register = "ivshmem.ring", value = 1 }}
"""


def bind(slot: str, driver: str) -> str:
    """Let this driver have the device; the path of its UIO device."""
    rebind(slot, driver)
    [name] = os.listdir(PCI / slot / "uio")
    return f"/dev/{name}"


def rebind(slot: str, driver: str) -> None:
    unbind(slot)
    (PCI / slot / "driver_override").write_text(driver)
    Path("/sys/bus/pci/drivers_probe").write_text(slot)


def unbind(slot: str) -> None:
    if (PCI / slot / "driver").exists():
        (PCI / slot / "driver" / "unbind").write_text(slot)


def physical(slot: str, bar: int) -> int:
    return int((PCI / slot / "resource").read_text().splitlines()[bar].split()[0], 16)


def doorbell(path: str) -> UioDoorbell:
    """edu rings whoever has it open, the one that kicks included."""
    registers = map_uio("edu", path, PAGE, kind="device")
    return UioDoorbell(path, registers=registers, kick=Access(RAISE, 1), acknowledge=Access(CLEAR, 1))


def a_bar_is_enabled_and_mapped_in_three_ways() -> None:
    assert (PCI / IVSHMEM / "enable").read_text() == "0\n"
    with map_bar("wc", IVSHMEM, 2) as combining, map_bar("plain", IVSHMEM, 2, kind="device") as plain:
        assert (PCI / IVSHMEM / "enable").read_text() == "1\n"
        assert (combining.size, combining.kind, plain.kind) == (SIZE, "uncached", "device")
        with map_devmem("mem", physical(IVSHMEM, 2), SIZE, kind="device") as mem:
            for index, region in enumerate((combining, plain, mem)):
                region.view[index * 16 : index * 16 + 16] = b"written by guest"
            for region in (combining, plain, mem):
                assert bytes(region.view[:48]) == b"written by guest" * 3


def ram_is_refused() -> None:
    lines = [line for line in Path("/proc/iomem").read_text().splitlines() if line.endswith(" : System RAM")]
    start = int(lines[-1].split("-")[0], 16)
    with refused(f"pa \\[{start:#x}, .* System RAM, which Linux uses itself"):
        map_devmem("ram", start, PAGE)
    with refused("Operation not permitted; CONFIG_STRICT_DEVMEM keeps"):
        map_devmem("ram", start, PAGE, iomem="/dev/null")


def memory_of_a_driver_is_refused() -> None:
    bind(IVSHMEM, "hilscher")  # a UIO driver that claims its BARs
    with refused("/dev/mem: Operation not permitted; .* was claimed by 'hilscher' .*: unbind that driver, or boot"):
        map_devmem("mem", physical(IVSHMEM, 2), SIZE)
    with refused(f"driver 'hilscher' has claimed it: echo {IVSHMEM} > .*/driver/unbind, or boot with iomem=relaxed"):
        map_bar("bar", IVSHMEM, 2)
    unbind(IVSHMEM)
    map_devmem("mem", physical(IVSHMEM, 2), SIZE).close()


def uio_gives_the_same_memory() -> None:
    path = bind(IVSHMEM, "hilscher")
    try:
        with map_uio("uio", path, map="1") as region:
            assert (region.size, region.pa, region.kind) == (SIZE, physical(IVSHMEM, 2), "uncached")
            assert bytes(region.view[:48]) == b"written by guest" * 3
            region.view[48:64] = b"written by uio.."
        with map_uio("uio", path, PAGE, map="1", offset=PAGE) as region:
            region.view[:4] = b"page"
        with refused("no map '7'; it has map 0 '.*, map 1 '"):
            map_uio("uio", path, map="7")
    finally:
        unbind(IVSHMEM)


def who_has_no_permission_is_told() -> None:
    path = bind(EDU, "uio_pci_generic")
    os.chown(path, 0, NOBODY)

    def denied() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with refused(f"{path}: Permission denied; run as root, or let your group have it with a udev rule"):
            map_uio("edu", path, PAGE)
        with refused("/dev/mem: Permission denied; run as root"):
            map_devmem("mem", physical(EDU, 0), PAGE)

    ended_well(child(denied))
    os.chmod(path, 0o660)

    def allowed() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        map_uio("edu", path, PAGE).close()
        with refused("config: Permission denied"):  # uio_pci_generic needs it for interrupts
            UioDoorbell(path)

    ended_well(child(allowed))


def interrupts() -> None:
    """A register raises the interrupt, UIO counts it, it is acknowledged and switched on again: a thousand times."""
    bell = doorbell(bind(EDU, "uio_pci_generic"))
    assert not readable(bell.fileno(), 0)
    for _ in range(1000):
        bell.kick(0)
        assert readable(bell.fileno(), WAIT)
        bell.drain()
    assert not readable(bell.fileno(), 0.05) and bell.missed == 0
    line = next(line for line in Path("/proc/interrupts").read_text().splitlines() if "uio_pci_generic" in line)
    assert int(line.split()[1]) >= 1000, line
    bell.close()


def a_device_without_interrupt() -> None:
    path = bind(IVSHMEM, "uio_pci_generic")
    try:
        with refused("uio[0-9] has no interrupt; give it one"):
            UioDoorbell(path)
    finally:
        unbind(IVSHMEM)


def messages_by_interrupts() -> None:
    """A host and a remote, two processes: rings and buffers in the BAR, each rings by a register and waits in UIO."""
    edu, memory = bind(EDU, "uio_pci_generic"), bind(IVSHMEM, "hilscher")
    echoes_between_two_processes(f"uio:{memory}:1", lambda: doorbell(edu))
    unbind(IVSHMEM)


def told_to_go(bell: Doorbell, slot: str, text: str, times: int = 1) -> None:
    """Unbind the device of `bell`, who must say so, `times` over."""
    away = threading.Thread(target=unbind, args=[slot])
    away.start()
    try:
        for _ in range(times):
            assert readable(bell.fileno(), WAIT)
            try:
                bell.drain()
                raise AssertionError("drained")
            except StateError as error:
                assert text in str(error)
    finally:
        bell.close()
        away.join(WAIT)
    assert not away.is_alive()


def a_device_goes_under_a_waiter() -> None:
    bell = doorbell(bind(EDU, "uio_pci_generic"))
    told_to_go(bell, EDU, "has gone: it was removed, or unbound from its driver")


def the_doctor() -> None:
    bind(EDU, "uio_pci_generic")
    found = {name: patient.as_dict() for name, patient in Machine().examine().items()}
    assert found["mem"]["usable"], found["mem"]
    assert found["uio"]["usable"] and "uio_pci_generic" in found["uio"]["has"][0], found["uio"]
    assert found["pci"]["usable"] and f"pci:{IVSHMEM}:2: 0x100000 bytes, no driver" in found["pci"]["has"], found["pci"]
    Path("/proc/sys/vm/nr_hugepages").write_text("2")
    assert "hugepages-2048kB: 2 of 2 free" in Machine().examine()["hugepages"].has
    unbind(EDU)
    assert [lack[0] for lack in Machine().examine()["uio"].lacks] == ["no device is bound to a UIO driver"]
    assert devices() == []


def vfio(slot: str, vector: int, kick: Access, acknowledge: Access | None = None) -> VfioDoorbell:
    device = VfioDevice(slot)
    registers = device.map_bar("regs", 0, kind="device")
    if slot == CARD:
        Register(registers.buffer, IMS).write(LINK)
    return VfioDoorbell(device, vector, registers=registers, kick=kick, acknowledge=acknowledge)


def interrupts_of(name: str) -> int:
    """How often the kernel has had those of this name."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if name in line)


def ring(bell: VfioDoorbell, name: str) -> None:
    assert not readable(bell.fileno(), 0)
    before = interrupts_of(name)
    for _ in range(1000):
        bell.kick(0)
        assert readable(bell.fileno(), WAIT)
        bell.drain()
        assert not readable(bell.fileno(), 0)
    bell.drain()  # for nothing
    assert (interrupts_of(name) - before, bell.missed) == (1000, 0)


def a_thousand_by_msix() -> None:
    """On the second vector, while nobody listens on the first."""
    rebind(BELL, "vfio-pci")
    with closing(vfio(BELL, 1, Access(RING, 1))) as bell:
        ring(bell, f"vfio-msix[1]({BELL})")
    bell.close()
    assert f"({BELL})" not in Path("/proc/interrupts").read_text()


def a_thousand_by_msi() -> None:
    rebind(EDU, "vfio-pci")
    with closing(vfio(EDU, 0, Access(RAISE, 1), Access(CLEAR, 1))) as bell:
        ring(bell, f"vfio-msi[0]({EDU})")


def a_thousand_by_intx() -> None:
    """By level: it comes again until its cause is cleared, and not before it is unmasked."""
    rebind(CARD, "vfio-pci")
    with closing(vfio(CARD, 0, Access(ICS, LINK), Access(ICR))) as bell:
        ring(bell, f"vfio-intx({CARD})")


def rings_that_nobody_has_seen_are_counted() -> None:
    with closing(vfio(BELL, 0, Access(RING, 0))) as bell:
        before = interrupts_of(f"vfio-msix[0]({BELL})")
        deadline = time.monotonic() + WAIT
        for number in range(1, 6):
            bell.kick(0)
            while interrupts_of(f"vfio-msix[0]({BELL})") < before + number:
                assert time.monotonic() < deadline
        bell.drain()
        assert bell.missed == 4


def a_board_with_vfio() -> None:
    """All BARs of the device are mapped through VFIO; others could not be had beside it."""
    path = Path("/run/vfio.toml")
    path.write_text(BOARD)
    with board.load(path).open_platform() as platform:
        bell = platform.doorbell
        assert isinstance(bell, VfioDoorbell)
        ring(bell, f"vfio-msix[1]({BELL})")
        with refused("/dev/vfio/[0-9]+: Device or resource busy; a device of this IOMMU group is open already"):
            VfioDevice(BELL)
    VfioDevice(BELL).close()


def what_vfio_refuses() -> None:
    unbind(EDU)
    with refused("there is no PCI device '0000:00:1e.7'; lspci -D lists"):
        VfioDevice("0000:00:1e.7")
    with refused(f"{EDU} has no driver and not vfio-pci: modprobe vfio-pci; driverctl set-override {EDU} vfio-pci"):
        VfioDevice(EDU)
    rebind(EDU, "uio_pci_generic")
    with refused(f"{EDU} has driver 'uio_pci_generic' and not vfio-pci: modprobe vfio-pci; driverctl"):
        VfioDevice(EDU)
    ours, other = TOGETHER
    rebind(ours, "vfio-pci")
    rebind(other, "uio_pci_generic")
    with refused(f"{ours}: .* cannot keep the devices of group [0-9]+ apart, and {other} has driver 'uio_pci_generic'"):
        VfioDevice(ours)
    unbind(other)
    with closing(VfioDevice(ours)) as device:
        with refused(f"{ours} has no MSI vector 1; it has 0 to 0"):
            VfioDoorbell(device, 1)
        with refused(f"{ours} has no BAR 2 with memory; it has 0 "):
            device.map_bar("regs", 2)
    rebind(IVSHMEM, "vfio-pci")
    with closing(VfioDevice(IVSHMEM)) as device, refused(f"{IVSHMEM} has no interrupt, neither MSI-X nor MSI nor INTx"):
        VfioDoorbell(device)
    unbind(IVSHMEM)


def who_has_no_permission_for_vfio_is_told() -> None:
    def denied() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with refused(f"{BELL}: /dev/vfio/[0-9]+: Permission denied; run as root, or let your group have it with a"):
            VfioDevice(BELL)

    ended_well(child(denied))


def vfio_is_asked_for_a_device() -> None:
    """An unbind waits until the doorbell is closed, which learns of it as it waits."""
    bell = vfio(BELL, 0, Access(RING, 0))
    told_to_go(bell, BELL, f"{BELL} is wanted back", times=2)


def the_doctor_knows_vfio() -> None:
    rebind(BELL, "vfio-pci")
    patient = Machine().examine()["vfio"].as_dict()
    group = os.path.basename(os.readlink(PCI / BELL / "iommu_group"))
    assert patient["usable"] and f"vfio:{BELL}: vfio-pci, /dev/vfio/{group}" in patient["has"], patient
    for slot in (BELL, CARD, *TOGETHER):
        unbind(slot)
    cure = "modprobe vfio-pci; driverctl set-override SLOT vfio-pci"
    assert Machine().examine()["vfio"].lacks == [("no device is bound to vfio-pci", cure)]


def huge_pages() -> None:
    from rpmsgx.memory.hugepages import map_hugepages

    Path("/proc/sys/vm/nr_hugepages").write_text("2")
    with map_hugepages("huge", 4 << 20) as region:
        assert region.sealed and region.size == 4 << 20
        region.view[-1] = 1
        with refused("it takes 1 huge pages of 0x200000 bytes, and 0 are free: echo 3 > "):
            map_hugepages("more", 2 << 20)
    assert isinstance(region, Region)


CASES = (
    a_bar_is_enabled_and_mapped_in_three_ways,
    ram_is_refused,
    memory_of_a_driver_is_refused,
    uio_gives_the_same_memory,
    who_has_no_permission_is_told,
    interrupts,
    a_device_without_interrupt,
    messages_by_interrupts,
    a_device_goes_under_a_waiter,
    the_doctor,
    a_thousand_by_msix,
    a_thousand_by_msi,
    a_thousand_by_intx,
    rings_that_nobody_has_seen_are_counted,
    a_board_with_vfio,
    what_vfio_refuses,
    who_has_no_permission_for_vfio_is_told,
    vfio_is_asked_for_a_device,
    the_doctor_knows_vfio,
    huge_pages,
)

if __name__ == "__main__":
    tell(CASES)
