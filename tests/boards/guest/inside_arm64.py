# SPDX-License-Identifier: BSD-3-Clause
"""What test_guests.py lets the arm64 board do. No pytest in here, and no more of Python than Debian's minimal one.

The mailbox is a PL011: a write to DR rings, and rings back; reading DR takes the byte, which clears the interrupt.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

from cases import WAIT, refused, tell

import rpmsgx
from rpmsgx.cli.doctor import Machine
from rpmsgx.errors import ResourceError
from rpmsgx.memory.devmem import map_devmem
from rpmsgx.memory.space import AddressSpace
from rpmsgx.memory.uio import find, map_uio
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.register import Register
from rpmsgx.notify.uio import Access, UioDoorbell

DR, FR, LCRH, CR, IMSC, ICR = 0x00, 0x18, 0x2C, 0x30, 0x38, 0x44
SHM, SIZE, PAGE = 0x60000000, 1 << 20, 0x1000


def doorbell() -> UioDoorbell:
    registers = map_uio("regs", "pl011", map="regs", kind="device")
    for offset, value in ((IMSC, 0), (LCRH, 0x60), (CR, 0x301), (ICR, 0x7FF), (IMSC, 0x10)):
        Register(registers.buffer, offset).write(value)
    return UioDoorbell("pl011", registers=registers, kick=Access(DR, 0x6B), acknowledge=Access(DR))


def a_device_tree_gives_names() -> None:
    regs, shm = find("pl011").maps
    assert (regs.name, regs.addr, regs.size) == ("regs", 0x9000000, PAGE)
    assert (shm.name, shm.addr, shm.size) == ("shm", SHM, SIZE)


def uio_and_dev_mem_are_the_same_device_memory() -> None:
    with map_uio("uio", "pl011", map="shm") as uio, map_devmem("mem", SHM, SIZE) as mem:
        assert (uio.kind, mem.kind) == ("device", "device") and uio.pa == mem.pa == SHM
        AddressSpace(uio).write(SHM + 3, b"not aligned at all")
        assert AddressSpace(mem).read(SHM + 3, 18) == b"not aligned at all"


def ram_is_refused() -> None:
    with refused("pa \\[0x50000000, 0x50001000\\) is in .* System RAM, which Linux uses itself; keep it free: "):
        map_devmem("ram", 0x50000000, PAGE)
    with refused("Operation not permitted; CONFIG_STRICT_DEVMEM keeps"):
        map_devmem("ram", 0x50000000, PAGE, iomem="/dev/null")


def interrupts() -> None:
    """By level: the cause is cleared, then the interrupt is switched on by a write to the device."""
    bell = doorbell()
    for _ in range(1000):
        bell.kick(0)
        assert readable(bell.fileno(), WAIT)
        bell.drain()
    assert not readable(bell.fileno(), 0.05)
    line = next(line for line in Path("/proc/interrupts").read_text().splitlines() if "pl011" in line)
    assert 1000 <= int(line.split()[1]) < 1100, line
    bell.close()


def messages_by_interrupts() -> None:
    """Two processes on device memory. A ring of one wakes both."""
    child = os.fork()
    if child == 0:
        try:
            with rpmsgx.open("uio:pl011:shm", "device", create=True, doorbell=doorbell()) as remote:
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
            host = rpmsgx.open("uio:pl011:shm", "driver", doorbell=doorbell())
            break
        except ResourceError:  # no table yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with host:
        endpoint = host.open("rpmsg-raw", timeout=WAIT)
        for number in range(300):
            message = os.urandom(1 + number % endpoint.mtu)
            endpoint.send(message)
            assert endpoint.recv(timeout=WAIT) == message[::-1]
        endpoint.send(b"done")
        assert os.waitpid(child, 0)[1] == 0


def messages_without_interrupts() -> None:
    """Through /dev/mem, where nobody rings."""
    url = f"mem:{SHM:#x}"
    with rpmsgx.open(url, "driver", create=True, size=SIZE) as host, rpmsgx.open(url, "device", size=SIZE) as remote:
        service = remote.create_endpoint("rpmsg-raw")
        endpoint = host.open("rpmsg-raw", timeout=WAIT)
        for size in range(1, 100, 7):
            endpoint.send(message := os.urandom(size))
            assert service.recv(timeout=WAIT) == message


def the_doctor() -> None:
    found = Machine().examine()
    assert found["uio"].has == [
        "/dev/uio0 'pl011': map 0 'regs' (0x1000 bytes at 0x9000000), map 1 'shm' (0x100000 bytes at 0x60000000)"
    ]
    assert found["mem"].has == ["/dev/mem"] and not found["mem"].lacks


CASES = (
    a_device_tree_gives_names,
    uio_and_dev_mem_are_the_same_device_memory,
    ram_is_refused,
    interrupts,
    messages_by_interrupts,
    messages_without_interrupts,
    the_doctor,
)

if __name__ == "__main__":
    tell(CASES)
