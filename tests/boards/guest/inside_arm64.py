# SPDX-License-Identifier: BSD-3-Clause
"""What test_guests.py lets the arm64 board do. No pytest in here, and no more of Python than Debian's minimal one.

The mailbox is a PL011: a write to DR rings; reading DR takes the byte that the other end rang with, which clears the
interrupt. The other end is the M4; while that is off, rings come back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cases import WAIT, echoes_between_two_processes, refused, tell

import rpmsgx
from rpmsgx.cli.doctor import Machine
from rpmsgx.errors import ChannelRemoved
from rpmsgx.memory.devmem import map_devmem
from rpmsgx.memory.space import AddressSpace
from rpmsgx.memory.uio import find, map_uio
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.register import Register
from rpmsgx.notify.uio import Access, UioDoorbell

DR, FR, LCRH, CR, IMSC, ICR = 0x00, 0x18, 0x2C, 0x30, 0x38, 0x44
SHM, SIZE, PAGE = 0x60100000, 1 << 20, 0x1000
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
UIO, MEM = (EXAMPLES / "boards" / f"arm64-{name}.toml" for name in ("uio", "mem"))
CRASH = str(EXAMPLES / "boards" / "crash.elf")


def doorbell() -> UioDoorbell:
    registers = map_uio("regs", "mailbox", map="regs", kind="device")
    for offset, value in ((IMSC, 0), (LCRH, 0x60), (CR, 0x301), (ICR, 0x7FF), (IMSC, 0x10)):
        Register(registers.buffer, offset).write(value)
    return UioDoorbell("mailbox", registers=registers, kick=Access(DR, 0x6B), acknowledge=Access(DR))


def a_device_tree_gives_names() -> None:
    maps = [(item.name, item.addr, item.size) for item in find("mailbox").maps]
    assert maps == [
        ("regs", 0x9000000, PAGE),
        ("ram", 0x60000000, 0x80000),
        ("shm", SHM, SIZE),
        ("control", 0x60200000, PAGE),
    ]


def uio_and_dev_mem_are_the_same_device_memory() -> None:
    with map_uio("uio", "mailbox", map="shm") as uio, map_devmem("mem", SHM, SIZE) as mem:
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
    assert 1000 <= interrupted() < 1100
    bell.close()


def interrupted() -> int:
    """How often the mailbox has."""
    line = next(line for line in Path("/proc/interrupts").read_text().splitlines() if "mailbox" in line)
    return int(line.split()[1])


def messages_by_interrupts() -> None:
    """Two processes on device memory. A ring of one wakes both."""
    echoes_between_two_processes("uio:mailbox:shm", doorbell)


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
        "/dev/uio0 'mailbox': map 0 'regs' (0x1000 bytes at 0x9000000), map 1 'ram' (0x80000 bytes at 0x60000000), "
        "map 2 'shm' (0x100000 bytes at 0x60100000), map 3 'control' (0x1000 bytes at 0x60200000)"
    ]
    assert found["mem"].has == ["/dev/mem"] and not found["mem"].lacks


# -- the M4 ------------------------------------------------------------------------------------------------------------


def program(*words: str | Path) -> str:
    """What it printed."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def the_same_program_over_uio() -> None:
    """Boots the M4, and is woken by its interrupts unless the answer is there already."""
    assert program(EXAMPLES / "hello.py", UIO) == f"1000 messages there and back over {UIO}\n"


def the_same_program_over_dev_mem() -> None:
    """Boots it again, and looks at the rings now and then."""
    before = interrupted()
    assert program(EXAMPLES / "hello.py", MEM) == f"1000 messages there and back over {MEM}\n"
    assert interrupted() <= before + 1  # it stays off then: nobody switches it on again


def echo(rproc: rpmsgx.Remoteproc, service: str, times: int = 20) -> None:
    with rproc.open(service, timeout=WAIT) as endpoint:
        for i in range(times):
            endpoint.send(message := b"%d " % i * (i * 7 % 120))
            assert endpoint.recv(timeout=WAIT) == message


def an_interrupt_for_each_message() -> None:
    """Where somebody waits at a descriptor, the M4 rings each time."""
    with rpmsgx.Remoteproc(board=UIO) as rproc, rproc.open("rpmsg-raw", timeout=WAIT) as endpoint:
        fd = endpoint.fileno()
        assert endpoint.try_recv() is None
        before = interrupted()
        for number in range(1000):
            endpoint.send(message := b"%d" % number)
            answers: list[bytes] = []
            while not answers:
                assert readable(fd, WAIT)
                while (answer := endpoint.try_recv()) is not None:
                    answers.append(answer)
            assert answers == [message]
        assert interrupted() - before > 900, interrupted() - before  # two become one where Linux was slow to see it


def stops_and_boots_again() -> None:
    with rpmsgx.Remoteproc(board=UIO, auto_boot=False) as rproc:
        for _ in range(2):
            assert rproc.state == "offline"
            rproc.boot()
            assert rproc.state == "running"
            echo(rproc, "rpmsg-raw")
            rproc.shutdown()


def a_crash_is_seen_and_recovered_from() -> None:
    """By the interrupt that comes with it."""
    with rpmsgx.Remoteproc(board=UIO, firmware=CRASH) as rproc:
        for times in (1, 2):
            with rproc.open("rpmsg-crash", timeout=WAIT) as endpoint:
                endpoint.send(b"u")
                try:
                    endpoint.recv(timeout=WAIT)
                    raise AssertionError("it answered")
                except ChannelRemoved:
                    pass
            assert rproc.crash is not None
            assert rproc.crash.cause == "the remote gave up: register core.status reads 0x2"
            echo(rproc, "rpmsg-crash")  # `open` recovers it
            assert (rproc.state, rproc.crash_count) == ("running", times)


LEAVE = """\
import sys, rpmsgx
with rpmsgx.Remoteproc(board=sys.argv[1], at_exit="detach") as rproc, rproc.open("rpmsg-raw", timeout=20) as endpoint:
    endpoint.send(b"from the first")
    print(rproc.state, endpoint.recv(timeout=20).decode())
"""


def is_left_running_and_attached_to_by_the_next_process() -> None:
    assert program("-c", LEAVE, UIO) == "running from the first\n"
    with rpmsgx.Remoteproc(board=UIO, auto_boot=False) as rproc:
        assert rproc.state == "detached"
    assert program(EXAMPLES / "hello.py", UIO) == f"1000 messages there and back over {UIO}\n"
    with rpmsgx.Remoteproc(board=UIO, auto_boot=False) as rproc:
        assert rproc.state == "detached"  # hello.py has attached, and gone
        rproc.attach()
        echo(rproc, "rpmsg-raw")
        rproc.shutdown()
        assert rproc.state == "offline"


CASES = (
    a_device_tree_gives_names,
    uio_and_dev_mem_are_the_same_device_memory,
    ram_is_refused,
    interrupts,
    messages_by_interrupts,
    messages_without_interrupts,
    the_doctor,
    the_same_program_over_uio,
    the_same_program_over_dev_mem,
    an_interrupt_for_each_message,
    stops_and_boots_again,
    a_crash_is_seen_and_recovered_from,
    is_left_running_and_attached_to_by_the_next_process,
)

if __name__ == "__main__":
    tell(CASES)
