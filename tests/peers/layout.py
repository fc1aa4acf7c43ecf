# SPDX-License-Identifier: BSD-3-Clause
"""OpenAMP's shared file and doorbell: where everything lies, and the resource table, byte by byte. [openamp]

    0x0      resource table, 88 bytes, one vdev with two vrings:
             0x00 ver  0x04 num  0x08 reserved[2]  0x10 offset[0]
             0x14 type  0x18 id  0x1c notifyid  0x20 dfeatures  0x24 gfeatures  0x28 config_len
             0x2c status (u8)  0x2d num_of_vrings (u8)  0x2e reserved[2]
             0x30, 0x44 vring: da, align, num, notifyid, pa
    0x4000   vring0, device to driver
    0x8000   vring1, driver to device
    0x10000  the driver's buffers: rx, then tx, 512 bytes each
    0x80000  end

Device address, physical address and offset in the file are one.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .message import Bad

FILE_SIZE = 0x80000
FILE_MODE = 0o600
VRING_DA = (0x4000, 0x8000)
VRING_ALIGN = 0x1000
POOL = 0x10000
BUFFER = 512  # [linux] too: 16 of header and 496 of payload
INDIRECT_ROOM = 32  # behind the pool, for each buffer: a table of two descriptors

TABLE = struct.Struct("=5I6IBBH5I5I")
TABLE_SIZE = 88
VDEV_OFFSET = 0x14
RSC_VDEV = 3
ID_RPMSG = 7  # virtio device id
GFEATURES = 0x24
STATUS = 0x2C
assert TABLE.size == TABLE_SIZE

# [virtio 2.1] device status
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80

# Features that fit 32 bits: [linux] VIRTIO_RPMSG_F_NS, [virtio 6] the two of rings.
F_NS = 1 << 0
F_INDIRECT = 1 << 28
F_EVENT_IDX = 1 << 29
KNOWN_FEATURES = F_NS | F_INDIRECT | F_EVENT_IDX


def ring_parts(da: int, align: int, num: int) -> tuple[int, int, int]:
    """Where a vring's available and used rings begin, and where it ends. [virtio 2.7.2-2]"""
    avail = da + 16 * num
    used = avail + 6 + 2 * num + align - 1 & ~(align - 1)
    return avail, used, used + 6 + 8 * num


def make_file(path: str, num: int, features: int, dirty: bool) -> None:
    """Write the file whole: nobody sees half a table."""
    vrings = [(da, VRING_ALIGN, num, 1 + i, 0) for i, da in enumerate(VRING_DA)]
    table = TABLE.pack(
        1, 1, 0, 0, VDEV_OFFSET,
        RSC_VDEV, ID_RPMSG, 0, features, 0, 0,
        0, 2, 0,
        *vrings[0], *vrings[1],
    )  # fmt: skip
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
    try:
        os.write(fd, table + (b"\xa5" if dirty else b"\0") * (FILE_SIZE - TABLE_SIZE))
    finally:
        os.close(fd)
    os.rename(temporary, path)


class SharedFile:
    """The mapped file. `table` is the table as it was last checked, `vrings` [(da, align, num)] what it gives.

    `busy[i]` is not 0 where byte i is not to be lent: the table, the rings, and what is lent already.
    """

    def __init__(self, path: str, bad: Bad) -> None:
        self._bad = bad
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_mode & 0o777 != FILE_MODE:
                bad("file", f"mode {found.st_mode & 0o777:o}, must be {FILE_MODE:o}")
            if found.st_size < FILE_SIZE or found.st_size % mmap.PAGESIZE:
                bad("file", f"{found.st_size:#x} bytes, must be {FILE_SIZE:#x} or more whole pages")
            self.mm = mmap.mmap(fd, found.st_size)
        finally:
            os.close(fd)
        self.mem = memoryview(self.mm)
        self.u16 = self.mem.cast("H")
        self.check_table()
        self._gaps = [(low, self.mm[low:high]) for low, high in self._unused()]

    @property
    def status(self) -> int:
        return self.mm[STATUS]

    @status.setter
    def status(self, value: int) -> None:
        self.mem[STATUS] = value

    @property
    def gfeatures(self) -> int:
        return int(struct.unpack_from("=I", self.mm, GFEATURES)[0])

    @gfeatures.setter
    def gfeatures(self, value: int) -> None:
        self.mem[GFEATURES : GFEATURES + 4] = struct.pack("=I", value)

    def check_table(self) -> None:
        """Every byte of the table, and the geometry that it gives; nothing is lent afterwards."""
        bad = self._bad
        self.busy = bytearray(len(self.mm))
        self.table = self.mm[:TABLE_SIZE]
        (ver, entries, reserved0, reserved1, offset, kind, ident, notifyid, dfeatures, gfeatures, config_len,
         _, rings, reserved2, *vrings) = TABLE.unpack(self.table)  # fmt: skip
        for name, value, must in (
            ("ver", ver, 1),
            ("num", entries, 1),
            ("reserved[0]", reserved0, 0),
            ("reserved[1]", reserved1, 0),
            ("offset[0]", offset, VDEV_OFFSET),
            ("type", kind, RSC_VDEV),
            ("id", ident, ID_RPMSG),
            ("notifyid", notifyid, 0),
            ("config_len", config_len, 0),
            ("num_of_vrings", rings, 2),
            ("vdev reserved", reserved2, 0),
            ("vring0.notifyid", vrings[3], 1),
            ("vring1.notifyid", vrings[8], 2),
        ):
            if value != must:
                bad("resource-table", f"{name} is {value:#x}, must be {must:#x}")
        self.dfeatures = dfeatures
        if dfeatures & ~KNOWN_FEATURES:
            bad("2.2.2-3", f"dfeatures {dfeatures:#x} offer bits that an rpmsg device cannot honour")
        if gfeatures & ~dfeatures:
            bad("2.2.1-1", f"gfeatures {gfeatures:#x} accept what dfeatures {dfeatures:#x} do not offer")
        self.vrings: list[tuple[int, int, int]] = []
        self._reserve(0, TABLE_SIZE, "the resource table")
        for i in (0, 1):
            da, align, num, _, pa = vrings[5 * i : 5 * i + 5]
            if not 1 <= num <= 32768 or num & num - 1:
                bad("2.7-F1", f"vring{i}.num {num} is no power of two up to 32768")
            if align < 4 or align & align - 1:
                bad("2.7.1-1", f"vring{i}.align {align:#x} is no power of two from 4")
            if da % align or da % 16:
                bad("2.7.1-1", f"vring{i}.da {da:#x} is not aligned to {max(align, 16):#x}")
            if pa not in (0, da):
                bad("resource-table", f"vring{i}.pa {pa:#x}: addresses are offsets, so 0 or {da:#x}")
            self.vrings.append((da, align, num))
            self._reserve(da, ring_parts(da, align, num)[2], f"vring{i}")

    def _reserve(self, low: int, high: int, what: str) -> None:
        if high > len(self.busy):
            self._bad("resource-table", f"{what} ends at {high:#x} in a file of {len(self.busy):#x} bytes")
        if self.busy.count(0, low, high) != high - low:
            self._bad("resource-table", f"{what} at {low:#x}..{high:#x} overlaps the table or the other ring")
        self.busy[low:high] = b"\1" * (high - low)

    def lend(self, where: str, address: int, length: int) -> None:
        """mem[address:address+length] is lent to the device: inside the file, off the rings, and lent once."""
        busy = self.busy
        if address + length > len(busy):
            self._bad("desc.addr", f"{where}: {address:#x} + {length:#x} is outside the file of {len(busy):#x} bytes")
        if busy.count(0, address, address + length) != length:
            self._bad("desc.addr", f"{where}: {address:#x} + {length:#x} overlaps the table, a ring or another buffer")
        busy[address : address + length] = b"\1" * length

    def give_back(self, address: int, length: int) -> None:
        self.busy[address : address + length] = bytes(length)

    def _unused(self) -> list[tuple[int, int]]:
        """What belongs to nobody: before, between and behind the rings, and behind buffers and indirect tables."""
        rings = sorted((da, ring_parts(da, align, num)[2]) for da, align, num in self.vrings)
        behind = POOL + (BUFFER + INDIRECT_ROOM) * sum(num for _, _, num in self.vrings)
        taken = [(0, TABLE_SIZE), *rings, (POOL, behind), (len(self.mm), len(self.mm))]
        return [(end, start) for (_, end), (start, _) in pairwise(taken) if end < start]

    def check_gaps(self) -> None:
        for low, before in self._gaps:
            found = self.mm[low : low + len(before)]
            if found != before:
                at = next(i for i, (a, b) in enumerate(zip(found, before, strict=True)) if a != b) + low
                self._bad("file", f"the other side wrote byte {at:#x}, which belongs to nobody")

    def close(self) -> None:
        self.u16.release()
        self.mem.release()
        self.mm.close()


class Bell:
    """The doorbell: a byte of any value means "look at every vring". `gone`: the other end has closed it."""

    def __init__(self, path: str, *, listen: bool) -> None:
        self.path = path
        self.gone = False
        self.rung = self.heard = 0  # bytes sent and received
        self._end: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._waiter = select.poll()
        if listen:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen(1)

    @property
    def connected(self) -> bool:
        return self._end is not None

    def connect(self, timeout: float) -> None:
        if self._listener is not None:
            self._listener.settimeout(max(timeout, 0.001))
            self._end, _ = self._listener.accept()
        else:
            self._end = self._dial(time.monotonic() + timeout)
        self._end.setblocking(False)
        self._waiter.register(self._end, select.POLLIN)

    def _dial(self, deadline: float) -> socket.socket:
        while True:
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                end.settimeout(max(deadline - time.monotonic(), 0.001))
                end.connect(self.path)
                return end
            except (FileNotFoundError, ConnectionRefusedError):
                end.close()
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"nobody listens on {self.path}") from None
            except BaseException:
                end.close()
                raise
            select.select([], [], [], 0.005)  # until there is a socket, there is nothing to wait on

    def ring(self) -> None:
        assert self._end is not None
        self.rung += 1
        try:
            self._end.send(bytes((self.rung & 0xFF,)))
        except BlockingIOError:
            pass  # a full socket holds many bytes that the other end has not read: it will look
        except (BrokenPipeError, ConnectionResetError):
            self.gone = True

    def drain(self) -> int:
        """Bytes that came since the last call."""
        assert self._end is not None
        total = 0
        while not self.gone:
            try:
                got = len(self._end.recv(4096))
            except BlockingIOError:
                break
            except ConnectionResetError:
                got = 0
            total += got
            if not got:
                self.gone = True
            if got < 4096:
                break
        self.heard += total
        return total

    def wait(self, milliseconds: int) -> None:
        """Until it rings or the other end goes."""
        self._waiter.poll(milliseconds)

    def fence(self) -> None:
        """A full memory barrier: the call gives up the GIL and takes it again, two atomic swaps."""
        self._waiter.poll(0)

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
        if self._listener is not None:
            self._listener.close()
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
