# SPDX-License-Identifier: BSD-3-Clause
"""Remotes of csrc for tests, and an rpmsg driver written from the specifications: no code under test.

Resource table: include/linux/remoteproc.h. Rings: VIRTIO 1.2, 2.7, legacy layout. Messages: struct rpmsg_hdr
and struct rpmsg_ns_msg of Linux. Little-endian. Buffers of 512 bytes, `num` each way, as Linux lays them out.
"""

from __future__ import annotations

import importlib.util
import select
import shutil
import struct
import time
from typing import TYPE_CHECKING, Any

from support import require

from rpmsgx.remoteproc.platform import open_platform
from rpmsgx.remoteproc.qemu import MACHINES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rpmsgx.remoteproc.platform import Image, Platform

NS, EVENT_IDX = 1 << 0, 1 << 29
HEADER = struct.Struct("=IIIHH")  # src, dst, reserved, len, flags
RING_BYTES = 0x3000  # num 256, align 4096: descriptors, available, and from 0x2000 used
USED = 0x2000
BUFFER = 512
TIMEOUT = 20.0

PLATFORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "unicorn": ("unicorn", {}),
    "unicorn-riscv32": ("unicorn", {"cpu": "riscv32"}),
    "unicorn-riscv64": ("unicorn", {"cpu": "riscv64", "desc_addr": "pa"}),
    "unicorn-cortex-a53": ("unicorn", {"cpu": "cortex-a53", "desc_addr": "pa"}),
    "thread": ("native", {}),
    "thread-da": ("native", {"desc_addr": "da"}),
    "process": ("native", {"process": True}),
    "mps2-an386": ("qemu", {"machine": "mps2-an386"}),
    "riscv32-virt": ("qemu", {"machine": "riscv32-virt"}),
    "riscv64-virt": ("qemu", {"machine": "riscv64-virt", "desc_addr": "pa"}),
    "aarch64-virt": ("qemu", {"machine": "aarch64-virt", "desc_addr": "pa"}),
}
SAMPLE = {"rpmsg-client-sample": 1024, "rpmsg-raw": 1025}


def needs(name: str, options: Mapping[str, Any]) -> None:
    """What this platform needs of this machine."""
    if name == "qemu":
        program = MACHINES[options.get("machine", "mps2-an386")].program
        require(shutil.which(program) is not None, f"{program} is not there")
    else:
        module = {"unicorn": "unicorn", "native": "rpmsgx.remoteproc._native"}[name]
        require(importlib.util.find_spec(module) is not None, f"{module} is not there")


def make(kind: str) -> Platform:
    """One of PLATFORMS."""
    name, options = PLATFORMS[kind]
    needs(name, options)
    return open_platform(name, **options)


def loaded(platform: Platform, firmware: str) -> Image:
    """The image, loaded."""
    platform.prepare()
    image = platform.image(firmware)
    image.load(platform.space)
    return image


class Driver:
    """Vring 0 at the start of the shared region, then vring 1, then the buffers of vring 0 and of vring 1."""

    def __init__(self, platform: Platform, image: Image, features: int = NS | EVENT_IDX) -> None:
        assert image.resource_table is not None
        da, table = image.resource_table
        assert da is not None
        self.platform, self.features, self.num = platform, features, 256
        self.table = platform.space.view(da, len(table))
        ver, entries, _, _, self.vdev, trace = struct.unpack_from("=6I", table)
        assert (ver, entries) == (1, 2)
        assert struct.unpack_from("=2I", table, self.vdev) == (3, 7)  # RSC_VDEV, VIRTIO_ID_RPMSG
        assert struct.unpack_from("=I", table, trace) == (2,)
        self.trace_da, self.trace_len = struct.unpack_from("=2I", table, trace + 4)
        shared = platform.shared
        self.shm = platform.space.view(shared.da, shared.size)
        self.words = self.shm.cast("H")  # one access each, where struct's "=H" is two
        self.da = shared.da
        self.address = shared.pa if platform.desc_addr == "pa" else shared.da

    # -- the device --------------------------------------------------------------------------------

    def status(self, value: int) -> None:
        self.table[self.vdev + 24] = value

    def begin(self, first: int = 0) -> None:
        """Reset, then everything up to DRIVER_OK, with the rings from byte `first` of the shared region."""
        self.status(0)
        self.ring = (first, first + RING_BYTES)
        self.buffers = (first + 2 * RING_BYTES, first + 2 * RING_BYTES + self.num * BUFFER)
        self.shm[first : first + 2 * RING_BYTES] = bytes(2 * RING_BYTES)
        for i in (0, 1):
            self.vring(i, da=self.da + self.ring[i], num=self.num, notifyid=i)
        struct.pack_into("=I", self.table, self.vdev + 16, self.features)
        self.last, self.next = 0, 0
        for head in range(self.num):
            self.descriptor(0, head, self.address + self.buffers[0] + head * BUFFER, BUFFER, 2)
            self.put("=H", self.ring[0] + 16 * self.num + 4 + 2 * head, head)
        self.avail_idx(0, self.num)
        self.put("=H", self.avail(1), 1)  # no interrupts for buffers that come back
        self.status(1)
        self.status(3)
        self.status(7)

    def vring(self, i: int, *, da: int, num: int, notifyid: int, align: int = 4096) -> None:
        struct.pack_into("=5I", self.table, self.vdev + 28 + 20 * i, da, align, num, notifyid, 0)

    def kick(self, notifyid: int = 1) -> None:
        self.platform.doorbell.kick(notifyid)

    def trace(self) -> str:
        return self.platform.space.read(self.trace_da, self.trace_len).partition(b"\0")[0].decode()

    # -- the rings ---------------------------------------------------------------------------------

    def put(self, fmt: str, at: int, *values: int) -> None:
        struct.pack_into(fmt, self.shm, at, *values)

    def get(self, fmt: str, at: int) -> int:
        (value,) = struct.unpack_from(fmt, self.shm, at)
        assert isinstance(value, int)
        return value

    def avail(self, i: int) -> int:
        return self.ring[i] + 16 * self.num

    def used(self, i: int) -> int:
        return self.ring[i] + USED

    def used_idx(self, i: int) -> int:
        return self.words[(self.used(i) + 2) // 2]

    def avail_idx(self, i: int, idx: int) -> None:
        self.words[(self.avail(i) + 2) // 2] = idx & 0xFFFF

    def kick_wanted(self, i: int, old: int, new: int) -> bool:
        """Does the device want to hear that the available index went from `old` to `new`?"""
        self.platform.doorbell.drain()  # a full fence: a system call that locks
        if not self.features & EVENT_IDX:
            return self.words[self.used(i) // 2] & 1 == 0
        event = self.words[(self.used(i) + 4) // 2 + 4 * self.num]  # avail_event
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def used_event(self, i: int, idx: int) -> None:
        self.words[(self.avail(i) + 4) // 2 + self.num] = idx

    def descriptor(self, i: int, head: int, address: int, length: int, flags: int) -> None:
        self.put("=QIHH", self.ring[i] + 16 * head, address, length, flags, 0)

    def offer(self, head: int) -> None:
        """Make the descriptor `head` of vring 1 available."""
        self.put("=H", self.avail(1) + 4 + 2 * (self.next % self.num), head)
        self.next = (self.next + 1) & 0xFFFF
        self.avail_idx(1, self.next)

    def send(self, dst: int, data: bytes, src: int = 0x400, *, kick: bool | None = True) -> bool:
        """Send in the next buffer, once it is back. `kick` None: if the device wants it. True: kicked."""
        head = self.next % self.num
        deadline = time.monotonic() + TIMEOUT
        while (self.next - self.used_idx(1)) & 0xFFFF >= self.num:
            assert time.monotonic() < deadline, "no buffer came back"
        at = self.buffers[1] + head * BUFFER
        self.shm[at : at + 16 + len(data)] = HEADER.pack(src, dst, 0, len(data), 0) + data
        self.descriptor(1, head, self.address + at, 16 + len(data), 0)
        self.offer(head)
        kick = self.kick_wanted(1, self.next - 1, self.next) if kick is None else kick
        if kick:
            self.kick()
        return kick

    def wait(self, timeout: float = TIMEOUT) -> bool:
        """Wait for vring 0 by the doorbell alone. False: nothing came."""
        deadline = time.monotonic() + timeout
        while True:
            self.used_event(0, self.last)
            self.platform.doorbell.drain()  # a full fence as well
            if self.used_idx(0) != self.last:
                return True
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.platform.doorbell.fileno()], [], [], left)[0]:
                return False

    def recv(self, timeout: float = TIMEOUT) -> tuple[int, int, bytes]:
        """(src, dst, data) of the next message."""
        if not self.wait(timeout):
            raise TimeoutError(f"no message; trace: {self.trace()!r}; crash: {self.platform.crash}")
        element = self.used(0) + 4 + 8 * (self.last % self.num)
        head, length = self.get("=I", element), self.get("=I", element + 4)
        at = self.buffers[0] + head * BUFFER
        src, dst, _, size, _ = HEADER.unpack_from(self.shm, at)
        assert head < self.num and 16 + size == length <= BUFFER
        data = bytes(self.shm[at + 16 : at + 16 + size])
        self.put("=H", self.avail(0) + 4 + 2 * ((self.last + self.num) % self.num), head)
        self.last = (self.last + 1) & 0xFFFF
        posted = self.last + self.num
        self.avail_idx(0, posted)
        if self.kick_wanted(0, posted - 1, posted):
            self.kick(0)
        return src, dst, data

    def announced(self, count: int) -> dict[str, int]:
        """The next `count` announcements: address by name."""
        found = {}
        for _ in range(count):
            src, dst, data = self.recv()
            name, addr, flags = struct.unpack("=32sII", data)
            assert (dst, flags, src) == (53, 0, addr)
            found[name.partition(b"\0")[0].decode()] = addr
        return found

    def until(self, text: str) -> str:
        """Wait until the trace holds `text`."""
        deadline = time.monotonic() + TIMEOUT
        while text not in (trace := self.trace()):
            assert time.monotonic() < deadline, f"{text!r} is not in the trace {trace!r}"
            time.sleep(0.001)
        return trace


def boot(platform: Platform, firmware: str = "sample", features: int = NS | EVENT_IDX) -> Driver:
    """Everything in place, then the remote, then the first kick."""
    image = loaded(platform, firmware)
    driver = Driver(platform, image, features)
    driver.begin()
    platform.start(image.entry)
    driver.kick()
    return driver


def echo(driver: Driver, count: int, dst: int = 1024) -> None:
    for i in range(count):
        data = b"%d " % i * (i % 60)
        driver.send(dst, data)
        assert driver.recv() == (dst, 0x400, data)


def rings(platform: Platform, timeout: float = TIMEOUT) -> bool:
    return bool(select.select([platform.doorbell.fileno()], [], [], timeout)[0])


def died(platform: Platform) -> str:
    """Wait by the doorbell until the remote has crashed."""
    deadline = time.monotonic() + TIMEOUT
    while platform.crash is None:
        assert time.monotonic() < deadline and rings(platform), "it lives on"
        platform.doorbell.drain()
    return platform.crash
