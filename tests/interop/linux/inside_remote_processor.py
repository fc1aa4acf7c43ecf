# SPDX-License-Identifier: BSD-3-Clause
"""A remote processor of the kernel's remoteproc: rpmsgx is what runs on it, in a process of the guest.

`Core` is that processor: it has the memory of a bus master, and a mailbox, the device file of module rproc_sim. The
functions at the end are what test_remote_processor.py lets a guest do.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boards.guest.cases import child, ended_well
from inside_remoteproc import WAIT, inject, until
from peers.payload import check, payload
from sim_firmware import DA, SIZE, TABLE, resource_table

from rpmsgx import Bus, Remoteproc
from rpmsgx.errors import ChannelRemoved
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.remoteproc.coredump import Core as CoreDump
from rpmsgx.virtio.link import VdevLink
from rpmsgx.virtio.table import parse

STOPPED, STARTED, ATTACHED, DETACHED = 0xFFFFFFF0, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
CRASH = 0xFFFFFF00  # and the type
WORD = struct.Struct("=I")
MARK = DA + 0x80  # behind the code, and in the core dump
MESSAGES = 5000


class Mailbox(Doorbell):
    """Words in and out: the notify ids of queues, and what becomes of the core."""

    connected = False

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def kick(self, notifyid: int) -> None:
        os.write(self._fd, WORD.pack(notifyid))

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                for (word,) in WORD.iter_unpack(os.read(self._fd, 4096)):
                    if word in (STOPPED, DETACHED):
                        self.connected = False
                        self.lost += 1
                        self.kick(word)  # the acknowledgement
                    elif word in (STARTED, ATTACHED):
                        self.connected = True


class Core:
    """The processor: its memory, at device addresses of its own, and all that the host has, at the host's."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/rproc_sim0", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        words = Path("/sys/bus/platform/devices/rproc-sim.0/memory").read_text().split()
        pa, da, size = (int(word, 0) for word in words)
        assert (da, size) == (DA, SIZE)
        low, high = host_memory()
        assert high <= DA or low >= DA + SIZE, "an address would mean two things"
        ram = memoryview(mmap.mmap(self.fd, high - low, offset=low))
        self.memory = Region("memory", ram[pa - low : pa + size - low], da=da, pa=pa)
        below, above = Region("below", ram[: pa - low], da=low), Region("above", ram[pa + size - low :], da=pa + size)
        self.space = AddressSpace(self.memory, below, above)
        self.mailbox = Mailbox(self.fd)

    def started(self) -> Bus:
        """Wait for the start, or for the attach: a bus on the vdev of the resource table that is in memory then."""
        while not self.mailbox.connected:
            assert select.select([self.fd], [], [], WAIT)[0]
            self.mailbox.drain()
        table = TABLE - DA
        (vdev,) = parse(self.memory.view[table : table + 0x1000]).vdevs
        link = VdevLink(
            "device",
            "sim0",
            space=self.space,
            region=self.memory,
            offset=table + vdev.offset,
            doorbell=self.mailbox,
            table_end=table + 0x1000,
        )
        return Bus(link)


def host_memory() -> tuple[int, int]:
    """First and last physical address that the host uses; what is below is a hole."""
    pages = max(int(found) for found in re.findall(r"spanned\s+(\d+)", Path("/proc/zoneinfo").read_text()))
    found = re.search(r"\bmem=(\d+)M", Path("/proc/cmdline").read_text())
    assert found is not None
    top = pages * mmap.PAGESIZE
    return max(0, top - (int(found[1]) << 20)), top


def run(core: Core, stop: int) -> None:
    """The firmware: answers each message, and obeys, until `stop` is readable."""
    numbers = 0

    def raw(endpoint: Any, data: bytes, src: int) -> None:
        nonlocal numbers
        if data == b"begin":
            numbers = 0
            endpoint.send_to(data, src, timeout=WAIT)
        elif data.startswith(b"mark "):
            core.space.write(MARK, data)
            endpoint.send_to(data, src, timeout=WAIT)
        elif data.startswith(b"crash "):
            os.write(core.fd, WORD.pack(CRASH + int(data[6:])))
        else:
            check(numbers, 1, data)
            endpoint.send_to(payload(numbers, 2), src, timeout=WAIT)
            numbers += 1

    def sample(endpoint: Any, data: bytes, src: int) -> None:
        endpoint.send_to(data, src, timeout=WAIT)

    with core.started() as bus:
        bus.create_endpoint("rpmsg-raw", callback=raw)
        bus.create_endpoint("rpmsg-client-sample", callback=sample)
        while not select.select([stop], [], [], 0)[0]:
            with contextlib.suppress(ChannelRemoved):
                bus.poll(0)
            select.select([bus, stop], [], [])


@contextlib.contextmanager
def processor(table: bytes | None = None) -> Iterator[None]:
    """The core, in a process of its own; with `table` it runs already, and that is in its memory."""
    stop, end = os.pipe()

    def work() -> None:
        os.close(end)
        core = Core()
        run(core, stop)

    if table is not None:
        Core().space.write(TABLE, table)
        inject(table_offset=TABLE - DA, table_size=len(table))
    pid = child(work)
    os.close(stop)
    try:
        yield
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(end)
    ended_well(pid)


class Raw:
    """The kernel's /dev/rpmsgN, once there is one."""

    def __init__(self) -> None:
        self.fd = -1
        deadline = time.monotonic() + WAIT
        while self.fd < 0:
            assert time.monotonic() < deadline, "no rpmsg-raw"
            for node in Path("/dev").glob("rpmsg[0-9]*"):
                with contextlib.suppress(OSError):  # it comes, or goes, just now
                    self.fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            time.sleep(0.01)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def read(self) -> bytes:
        assert select.select([self.fd], [], [], WAIT)[0]
        return os.read(self.fd, 4096)

    def ask(self, data: bytes) -> None:
        """Its answer is the same; what it still answers to somebody before is not looked at."""
        os.write(self.fd, data)
        while self.read() != data:
            pass


def exchange(count: int) -> None:
    """Both ways at once, and each message is checked."""
    with Raw() as raw:
        raw.ask(b"begin")

        def send() -> None:
            for i in range(count):
                data = payload(i, 1)
                assert os.write(raw.fd, data) == len(data)

        sender = threading.Thread(target=send)
        sender.start()
        for i in range(count):
            check(i, 2, raw.read())
        sender.join()


def sample_ended(times: int) -> None:
    """The kernel's rpmsg_client_sample says goodbye after 100 messages."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    deadline = time.monotonic() + WAIT
    seen = 0
    while seen < times:
        with contextlib.suppress(BlockingIOError):
            seen += b"goodbye!" in os.read(log, 8192)
            continue
        assert time.monotonic() < deadline
        select.select([log], [], [], WAIT)
    os.close(log)


def starts_and_stops() -> None:
    with processor(), Remoteproc("sim0", platform="linux", auto_boot=False) as rproc:
        for turn in range(3):
            rproc.boot()
            sample_ended(turn + 1)
            exchange(MESSAGES if turn == 0 else 300)
            assert {"rpmsg-raw", "rpmsg-client-sample"} == {channel.name for channel in rproc.channels}
            rproc.shutdown()
            assert rproc.channels == ()


def stopped_under_traffic() -> None:
    with processor(), Remoteproc("sim0", platform="linux", auto_boot=False) as rproc:
        for turn in range(3):
            rproc.boot()
            with Raw() as raw:
                raw.ask(b"begin")
                for i in range(200 * turn):
                    os.write(raw.fd, payload(i, 1))
                rproc.shutdown()
        rproc.boot()
        exchange(300)


def crashes(folder: str) -> None:
    with processor(), Remoteproc("sim0", platform="linux", coredump="enabled") as rproc:
        for turn, (number, kind) in enumerate(((1, "watchdog"), (0, "fault"), (2, "fatal error")), 1):
            exchange(100)
            mark = b"mark %d" % turn
            with Raw() as raw:
                raw.ask(mark)
                os.write(raw.fd, b"crash %d" % number)
                while rproc.crash_count < turn:
                    assert rproc.poll(WAIT)
            until(rproc, "running")
            path = Path(folder, f"{turn}.core")
            rproc.coredump(path)
            dump = CoreDump.read(path)
            assert dump.memory(DA, 8) == b"the code" and dump.memory(MARK, len(mark)) == mark, kind
        exchange(300)
        assert rproc.crash_count == 3


def crashes_without_recovery() -> None:
    with processor(), Remoteproc("sim0", platform="linux", recovery="disabled") as rproc:
        with Raw() as raw:
            raw.ask(b"begin")
            os.write(raw.fd, b"crash 1")
            until(rproc, "crashed")
        assert rproc.crash is not None and rproc.crash.kind == "watchdog"
        rproc.recover()
        exchange(300)


def attached_and_detached(features: int) -> None:
    table = resource_table(features=features)
    with processor(table), Remoteproc("sim0", platform="linux", auto_boot=False) as rproc:
        memory = Core().memory.view[TABLE - DA : TABLE - DA + len(table)]
        for turn in range(3):
            assert rproc.state == "detached" and bytes(memory) == table
            rproc.attach()
            assert rproc.state == "attached" and bytes(memory) != table
            sample_ended(turn + 1)
            exchange(1000)
            rproc.detach()
        assert rproc.state == "detached" and bytes(memory) == table


def recovered_by_attaching() -> None:
    """The core restarts by itself, with its table as it was."""
    with processor(resource_table()), Remoteproc("sim0", platform="linux") as rproc:
        exchange(300)
        with Raw() as raw:
            os.write(raw.fd, b"crash 1")
            while not rproc.crash_count:
                assert rproc.poll(WAIT)
        until(rproc, "attached")
        exchange(300)


def opened_through_the_kernel() -> None:
    """`Remoteproc.open` and `.bus`: the whole way through the kernel, with rpmsgx at both ends."""
    with processor(), Remoteproc("sim0", platform="linux") as rproc:
        assert rproc.bus is rproc.bus
        with rproc.open("rpmsg-raw", timeout=WAIT) as endpoint:
            endpoint.send(b"begin")
            assert endpoint.recv(timeout=WAIT) == b"begin"
            for i in range(300):
                endpoint.send(payload(i, 1))
                check(i, 2, endpoint.recv(timeout=WAIT))
            endpoint.send(b"crash 1")
            try:
                endpoint.recv(timeout=WAIT)
                raise AssertionError
            except ChannelRemoved:
                pass
        with rproc.open("rpmsg-raw", timeout=WAIT) as endpoint:  # it comes back
            endpoint.send(b"begin")
            assert endpoint.recv(timeout=WAIT) == b"begin"
        rproc.bus.close()
        with rproc.open("rpmsg-raw", timeout=WAIT) as endpoint:
            endpoint.send(b"begin")
            assert endpoint.recv(timeout=WAIT) == b"begin"
        assert rproc.crash_count == 1
