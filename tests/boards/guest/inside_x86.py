# SPDX-License-Identifier: BSD-3-Clause
"""What test_guests.py lets a PC do, one function after the other.

No pytest in here: a guest has the host's Python, and starts it in a fraction of a second. Devices: ivshmem-plain, whose
BAR 2 is memory shared with the host, and edu, whose register 0x60 raises its own interrupt, and 0x64 clears it.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from pathlib import Path

from cases import WAIT, refused, tell

import rpmsgx
from rpmsgx.cli.doctor import Machine
from rpmsgx.errors import ResourceError, StateError
from rpmsgx.memory.devmem import map_devmem
from rpmsgx.memory.pci import map_bar
from rpmsgx.memory.region import Region
from rpmsgx.memory.uio import devices, map_uio
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.uio import Access, UioDoorbell

IVSHMEM, EDU = "0000:00:04.0", "0000:00:05.0"
PCI = Path("/sys/bus/pci/devices")
SIZE, PAGE = 1 << 20, 0x1000
RAISE, CLEAR = 0x60, 0x64
NOBODY = 65534


def bind(slot: str, driver: str) -> str:
    """Let this driver have the device; the path of its UIO device."""
    unbind(slot)
    (PCI / slot / "driver_override").write_text(driver)
    Path("/sys/bus/pci/drivers_probe").write_text(slot)
    [name] = os.listdir(PCI / slot / "uio")
    return f"/dev/{name}"


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
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with refused(f"{path}: Permission denied; run as root, or let your group have it with a udev rule"):
                map_uio("edu", path, PAGE)
            with refused("/dev/mem: Permission denied; run as root"):
                map_devmem("mem", physical(EDU, 0), PAGE)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    os.chmod(path, 0o660)
    child = os.fork()
    if child == 0:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            map_uio("edu", path, PAGE).close()
            with refused("config: Permission denied"):  # uio_pci_generic needs it for interrupts
                UioDoorbell(path)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


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
    url = f"uio:{memory}:1"
    child = os.fork()
    if child == 0:
        try:
            with rpmsgx.open(url, "device", create=True, doorbell=doorbell(edu)) as remote:
                service = remote.create_endpoint("rpmsg-raw")
                for _ in range(300):
                    data, source = service.recv_from(timeout=WAIT)
                    service.send_to(data[::-1], source)
                service.recv_from(timeout=WAIT)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + WAIT
    while True:
        try:
            host = rpmsgx.open(url, "driver", doorbell=doorbell(edu))
            break
        except ResourceError:  # no table yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with host:
        endpoint = host.open("rpmsg-raw", timeout=WAIT)
        begin = time.monotonic()
        for number in range(300):
            message = os.urandom(1 + number % endpoint.mtu)
            endpoint.send(message)
            assert endpoint.recv(timeout=WAIT) == message[::-1]
        assert time.monotonic() - begin < 60
        endpoint.send(b"done")
        assert os.waitpid(child, 0)[1] == 0
    unbind(IVSHMEM)


def a_device_goes_under_a_waiter() -> None:
    bell = doorbell(bind(EDU, "uio_pci_generic"))
    away = threading.Thread(target=unbind, args=[EDU])
    away.start()
    try:
        assert readable(bell.fileno(), WAIT)
        try:
            bell.drain()
            raise AssertionError("drained")
        except StateError as error:
            assert "has gone: it was removed, or unbound from its driver" in str(error)
    finally:
        bell.close()
        away.join(WAIT)
    assert not away.is_alive()


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
    huge_pages,
)

if __name__ == "__main__":
    tell(CASES)
