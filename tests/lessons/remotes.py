# SPDX-License-Identifier: BSD-3-Clause
"""Remotes for the lessons: each kind that this machine can run, hosts in other processes, and what keeps a log."""

from __future__ import annotations

import ast
import contextlib
import os
import select
import struct
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from support_wire import TIMEOUT
from unit import elfbuilder

from rpmsgx import Bus, Remoteproc
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import EventfdDoorbell
from rpmsgx.notify.hub import share
from rpmsgx.remoteproc.platform import Platform
from rpmsgx.remoteproc.presence import Presence
from rpmsgx.remoteproc.qemu import MACHINES as QEMU
from rpmsgx.virtio.link import VdevLink
from rpmsgx.virtio.table import ADDR_ANY, Trace, Vdev, Vring, build, parse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rpmsgx.remoteproc.platform import Image

SAMPLE = "rpmsg-client-sample"
NAMES = {SAMPLE, "rpmsg-raw"}
KINDS: dict[str, dict[str, Any]] = {
    "thread": {"platform": "native"},
    "process": {"platform": "native", "process": True},
    "lasting": {"platform": "native"},  # with a socket: it goes on without its host
    "unicorn": {"platform": "unicorn"},
    **{f"unicorn-{cpu}": {"platform": "unicorn", "cpu": cpu} for cpu in ("riscv32", "cortex-a53")},
    **{machine: {"platform": "qemu", "machine": machine} for machine in QEMU},
}


def echo(rproc: Remoteproc, times: int = 3, timeout: float = TIMEOUT) -> None:
    with rproc.open(SAMPLE, timeout=timeout) as ept:
        for i in range(times):
            ept.send(b"%d" % i, timeout=timeout)
            assert ept.recv(timeout=timeout) == b"%d" % i


def crash(rproc: Remoteproc, how: bytes = b"u") -> None:
    """Have the firmware "crash" do it, and wait until the host has seen it; the policy is not applied yet."""
    ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
    ept.send(how)
    while rproc.crash is None:
        assert select.select([rproc.fileno()], [], [], TIMEOUT)[0], "it lives on"
        rproc.platform.doorbell.drain()


def table_in_memory(rproc: Remoteproc) -> bytes:
    da, clean = clean_table(rproc)
    return rproc.platform.space.read(da, len(clean))


def clean_table(rproc: Remoteproc) -> tuple[int, bytes]:
    """The resource table as the firmware has it, and where."""
    found = rproc.platform.image(rproc.firmware).resource_table
    assert found is not None and found[0] is not None
    return found[0], found[1]


def gone(pid: int) -> bool:
    """Whether the process ends in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], TIMEOUT)[0])
    finally:
        os.close(pidfd)


# -- logs ------------------------------------------------------------------------------------------------------------

CALLS = ("prepare", "start", "attach", "stop", "detach", "unprepare")


def recorded(platform: Platform, log: list[str]) -> Platform:
    """`platform`, whose calls are written to `log` as they begin."""

    def call(name: str, function: Any, *args: Any) -> Any:
        log.append(name)
        return function(*args)

    for name in CALLS:
        setattr(platform, name, partial(call, name, getattr(platform, name)))
    return platform


class Recorder:
    """A subdevice that writes its calls to `log`, and fails in the one that is named `fail`."""

    def __init__(self, log: list[str], name: str = "sub", fail: str = "") -> None:
        self.log, self.name, self.fail = log, name, fail

    def _do(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")
        if what.split()[0] == self.fail:
            raise OSError(5, f"{self.name} cannot {what}")

    def prepare(self) -> None:
        self._do("prepare")

    def start(self) -> None:
        self._do("start")

    def stop(self, crashed: bool) -> None:
        self._do("stop crashed" if crashed else "stop")

    def unprepare(self) -> None:
        self._do("unprepare")


class Gate(Presence):
    """A source of presence in the hands of the test."""

    name = "gate"

    def __init__(self, up: bool = True) -> None:
        self.up = up
        self._event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def turn(self, up: bool) -> None:
        self.up = up
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def present(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        return self.up

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
        self._event = -1


# -- another process as host -----------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, rpmsgx
from rpmsgx import Remoteproc
from rpmsgx.remoteproc.resources import Resources
for line in sys.stdin:
    try:
        try:
            code = compile(line, "line", "eval")
        except SyntaxError:
            exec(line)
            reply = "", None
        else:
            value = eval(code)
            reply = "", value if isinstance(value, (int, str, bytes, tuple, dict, list)) else None
    except Exception as error:
        reply = type(error).__name__, str(error)
    print(repr(reply), flush=True)
"""


class HostError(Exception):
    """What a line of a `Host` raised: its type's name, and its text."""


class Host:
    """A process of its own; called with a line of Python it runs that there; returns the value, if it is a literal."""

    def __init__(self, *lines: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            for line in lines:
                self(line)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, line: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        error, value = ast.literal_eval(self.process.stdout.readline())
        if error:
            raise HostError(f"{error}: {value}")
        return value

    def end(self) -> None:
        """Let the program come to its end."""
        self.process.communicate(timeout=TIMEOUT)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


# -- firmware for the Cortex-M4 --------------------------------------------------------------------------------------

M4_TABLE = 0x8000  # where `m4_elf` has its resource table
M4_ENTRY = 0x100
WFI = 0xBF30, 0xE7FD  # again and again


def m4_elf(code: Iterable[int | tuple[int, int]], table: bytes) -> bytes:
    """An ELF image of this Thumb code, (register, word) for an `ldr register, =word`, and this resource table."""
    code = tuple(code)
    text, literals = b"", b""
    for at, op in enumerate(code):
        if isinstance(op, tuple):
            register, word = op
            pool = (2 * len(code) + 3 & ~3) + len(literals)
            op = 0x4800 | register << 8 | (pool - (2 * at + 4 & ~3)) // 4
            literals += struct.pack("<I", word)
        text += struct.pack("<H", op)
    rom = struct.pack("<2I", 0x2002_0000, M4_ENTRY | 1).ljust(M4_ENTRY, b"\0")
    rom += text + bytes(-len(text) % 4) + literals
    return elfbuilder.build(
        [elfbuilder.Load(0, rom)], table=table, table_da=M4_TABLE, header={"entry": M4_ENTRY | 1}
    )


# -- a remote of several virtio devices ------------------------------------------------------------------------------

ROM, SHM = 0x1000_0000, 0x2000_0000
VDEV = Vdev((Vring(ADDR_ANY, 4096, 64), Vring(ADDR_ANY, 4096, 64)), dfeatures=1)


class EndsImage:
    """Nothing but a resource table."""

    name = "ends"
    sha256 = "0" * 64
    entry = 0

    def __init__(self, table: bytes) -> None:
        self.resource_table = (ROM, table)

    def load(self, space: AddressSpace) -> None:
        space.write(*self.resource_table)


class Ends(Platform):
    """A remote with `count` rpmsg devices: device ends of rpmsgx over the same memory, in a thread.

    Device N offers the service "echo N", and "sum N", which is sent (da, size) and answers with the sum of the bytes
    that it finds there. `withdraw` takes a service back.
    """

    name = "ends"
    cpu = "thread"

    def __init__(self, count: int = 2, **vdev: Any) -> None:
        self.rom = Region.memfd("rom", 0x10000, da=ROM, pa=0x8_0000_0000)
        self.shared = Region.memfd("shm", 0x100000, da=SHM, pa=0x9_0000_0000)
        self.space = AddressSpace(self.rom, self.shared)
        self.table = build([*(VDEV._replace(**vdev) for _ in range(count)), Trace(ROM + 0x8000, 64, "trace0")])
        self.doorbell, self._remote_end = EventfdDoorbell.pair()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._withdrawn: list[str] = []

    def image(self, firmware: str | None) -> Image:
        return EndsImage(self.table)

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self, entry: int) -> None:
        self._ready.clear()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._ready.wait(TIMEOUT)

    def withdraw(self, name: str) -> None:
        self._withdrawn.append(name)
        os.eventfd_write(self._wake, 1)

    def _work(self) -> None:
        vdevs = parse(self.space.read(ROM, len(self.table))).vdevs
        endpoints, buses = {}, []
        for number, (vdev, doorbell) in enumerate(zip(vdevs, share(self._remote_end, len(vdevs)), strict=True)):
            link = VdevLink(
                "device", f"ends/{number}", space=self.space, region=self.rom, offset=vdev.offset,
                doorbell=doorbell, table_end=len(self.table), in_process=True,
            )  # fmt: skip
            bus = Bus(link)
            buses.append(bus)
            for name, callback in ((f"echo {number}", self._echo), (f"sum {number}", self._sum)):
                endpoints[name] = bus.create_endpoint(name, callback=callback)
        self._ready.set()
        poll = select.poll()
        for fd in (self._wake, *(bus.fileno() for bus in buses)):
            poll.register(fd, select.POLLIN)
        while not self._stopping.is_set():
            for bus in buses:
                bus.poll()
            while self._withdrawn:
                endpoints.pop(self._withdrawn.pop()).close()
            poll.poll()
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
        for bus in buses:
            bus.close(linger=0)

    @staticmethod
    def _echo(ept: Any, data: bytes, src: int) -> None:
        ept.send_to(data, src)

    @staticmethod
    def _sum(ept: Any, data: bytes, src: int) -> None:
        ept.send_to(struct.pack("=I", sum(ept.bus.space.read(*struct.unpack("=QQ", data)))), src)

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            os.eventfd_write(self._wake, 1)
            thread.join(TIMEOUT)

    def detach(self, timeout: float = 1.0) -> None:
        """Its ends see the reset by themselves."""

    def close(self) -> None:
        self.stop()
        for thing in (self.doorbell, self._remote_end, self.rom, self.shared):
            thing.close()
        if self._wake >= 0:
            os.close(self._wake)
        self._wake = -1
