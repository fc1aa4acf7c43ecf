# SPDX-License-Identifier: BSD-3-Clause
"""vhost-user with somebody at the other end who breaks the protocol, stalls, or goes at any moment.

The other ends are written here, from the specification (QEMU's docs/interop/vhost-user.rst), with numbers of their own.
"""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import errno
import fcntl
import gc
import itertools
import mmap
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import rpmsgx

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]
WAIT = 10.0
(
    GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE,
    GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM, SET_VRING_ENABLE, SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, RESET_DEVICE, VRING_KICK, SET_STATUS,
    GET_STATUS,
) = (1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 34, 35, 39, 40)  # fmt: skip
KNOWN = (1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 34, 35, 39, 40)
CONFIG_CHANGE, VRING_CALL = 2, 4
REPLY, NEED_REPLY = 4, 8
NUM = 8
PAGE = 0x1000
GUEST, USER, SIZE = 0x10_0000, 0x5555_0000_0000, 16 * PAGE


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def state(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def addresses(index: int, desc: int, avail: int, used: int, flags: int = 0) -> bytes:
    return struct.pack("=IIQQQQ", index, flags, desc, used, avail, 0)


def region(guest: int = GUEST, size: int = SIZE, user: int = USER, offset: int = PAGE) -> bytes:
    return struct.pack("=QQQQ", guest, size, user, offset)


def table(*regions: bytes, count: int | None = None) -> bytes:
    return struct.pack("=II", len(regions) if count is None else count, 0) + b"".join(regions)


class Frontend:
    """A driver behind a front-end. Its rings, in the order used, desc, avail, lie where `desc`, `avail`, `used` say."""

    num = NUM

    def __init__(self, path: Path, device: Any, *, memory: int | None = None) -> None:
        self.device = device
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.fd = memory if memory is not None else os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if memory is None:
            os.ftruncate(self.fd, PAGE + SIZE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory = mmap.mmap(self.fd, PAGE + SIZE)
        self.kicks = [os.eventfd(0) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.used, self.desc, self.avail = ([USER + 3 * PAGE * i + at for i in (0, 1)] for at in (4, PAGE, 2 * PAGE))
        self.seen = [0, 0]
        self.avail_idx = [0, 0]

    def close(self) -> None:
        self.sock.close()
        for fd in (*self.kicks, *self.calls, self.fd):
            os.close(fd)
        self.memory.close()

    # -- messages

    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = 1,
        size: int | None = None,
    ) -> None:
        data = struct.pack("=III", request, flags, len(payload) if size is None else size) + payload
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], control)

    def receive(self) -> tuple[int, int, bytes]:
        header = self.read(12)
        request, flags, size = struct.unpack("=III", header)
        return request, flags, self.read(size)

    def read(self, size: int) -> bytes:
        data = b""
        deadline = time.monotonic() + WAIT
        while len(data) < size:
            try:
                piece = self.sock.recv(size - len(data), socket.MSG_DONTWAIT)
            except BlockingIOError:
                assert time.monotonic() < deadline
                self.device.poll()
                continue
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.send(request, payload)
        got, flags, answer = self.receive()
        assert (got, flags) == (request, 1 | REPLY)
        return answer

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """The acknowledgement."""
        self.send(request, payload, fds, flags=1 | NEED_REPLY)
        got, flags, answer = self.receive()
        assert (got, flags, len(answer)) == (request, 1 | REPLY, 8)
        return int(struct.unpack("=Q", answer)[0])

    def hung_up(self) -> bool:
        """Whether the back-end closes the connection, having been given a chance to read what was sent."""
        for _ in range(20):
            self.device.poll(timeout=0.001)
            with contextlib.suppress(BlockingIOError):
                try:
                    return self.sock.recv(1, socket.MSG_DONTWAIT) == b""
                except ConnectionResetError:
                    return True
        return False

    # -- a session, done right

    def steps(self, features: int = 1 << 32 | 1 << 30 | 1) -> Iterator[tuple[int, bytes, Sequence[int]]]:
        yield SET_OWNER, b"", ()
        yield GET_FEATURES, b"", ()
        yield GET_PROTOCOL_FEATURES, b"", ()
        yield SET_PROTOCOL_FEATURES, u64(1 << 3), ()
        yield SET_FEATURES, u64(features), ()
        yield SET_MEM_TABLE, table(region()), (self.fd,)
        for i in (0, 1):
            yield SET_VRING_CALL, u64(i), (self.calls[i],)
            yield SET_VRING_NUM, state(i, NUM), ()
            yield SET_VRING_BASE, state(i, self.avail_idx[i] - (NUM if i == 0 and self.avail_idx[0] else 0)), ()
            yield SET_VRING_ADDR, addresses(i, self.desc[i], self.avail[i], self.used[i]), ()
        for i in (0, 1):
            yield SET_VRING_KICK, u64(i), (self.kicks[i],)
            yield SET_VRING_ENABLE, state(i, 1), ()

    def start(self, **options: Any) -> Frontend:
        for request, payload, fds in self.steps(**options):
            if request in (GET_FEATURES, GET_PROTOCOL_FEATURES):
                self.ask(request, payload)
            else:
                assert self.tell(request, payload, fds) == 0, request
        for i in range(self.num):
            self.put_desc(0, i, self.buffer(0, i), 512, 2)
            self.offer(0, i)
        os.eventfd_write(self.kicks[0], 1)
        deadline = time.monotonic() + WAIT
        while not self.device.is_up:
            assert time.monotonic() < deadline
        return self

    def at(self, user: int) -> int:
        return PAGE + user - USER

    def buffer(self, index: int, i: int) -> int:
        return GUEST + 8 * PAGE + (index * NUM + i) * 512

    def put_desc(self, index: int, i: int, addr: int, size: int, flags: int = 0) -> None:
        struct.pack_into("<QIHH", self.memory, self.at(self.desc[index]) + 16 * i, addr, size, flags, 0)

    def offer(self, index: int, head: int) -> None:
        avail, idx = self.at(self.avail[index]), self.avail_idx[index]
        struct.pack_into("<H", self.memory, avail + 4 + 2 * (idx % NUM), head)
        self.avail_idx[index] = idx + 1 & 0xFFFF
        struct.pack_into("<H", self.memory, avail + 2, self.avail_idx[index])

    def write(self, data: bytes, src: int, dst: int) -> None:
        """One message to the device."""
        head = self.avail_idx[1] % NUM
        at = self.buffer(1, head)
        message = struct.pack("<IIIHH", src, dst, 0, len(data), 0) + data
        self.memory[PAGE + at - GUEST : PAGE + at - GUEST + len(message)] = message
        self.put_desc(1, head, at, len(message))
        self.offer(1, head)
        os.eventfd_write(self.kicks[1], 1)

    def take(self) -> tuple[int, int, bytes]:
        """One message from the device: src, dst, data. Its buffer is offered again."""
        deadline = time.monotonic() + WAIT
        used = self.at(self.used[0])
        while struct.unpack_from("<H", self.memory, used + 2)[0] == self.seen[0]:
            assert time.monotonic() < deadline
            self.device.poll()
        head, length = struct.unpack_from("<II", self.memory, used + 4 + 8 * (self.seen[0] % NUM))
        self.seen[0] = self.seen[0] + 1 & 0xFFFF
        at = PAGE + self.buffer(0, head) - GUEST
        src, dst, _, size, _ = struct.unpack_from("<IIIHH", self.memory, at)
        assert length == 16 + size
        data = self.memory[at + 16 : at + 16 + size]
        self.offer(0, head)
        return src, dst, data

    def check(self) -> None:
        """A session that works: a message each way."""
        endpoint = self.device.create_endpoint()
        self.write(b"hello", 77, endpoint.addr)
        assert endpoint.recv_from(timeout=WAIT) == (b"hello", 77)
        endpoint.send(b"back", timeout=WAIT)
        assert self.take() == (endpoint.addr, 77, b"back")
        endpoint.close()


class PackedFrontend(Frontend):
    """The same with packed rings of `num` descriptors, which begin at `base`; buffer i is of id i."""

    FEATURES = 1 << 34 | 1 << 32 | 1 << 30 | 1
    num, base = NUM, 0x8000_8000

    def steps(self, features: int = FEATURES, said: int | None = None) -> Iterator[tuple[int, bytes, Sequence[int]]]:
        for request, payload, fds in super().steps(features):
            if request == SET_VRING_NUM:
                payload = state(payload[0], self.num)
            elif request == SET_VRING_BASE:
                payload = state(payload[0], self.base if said is None else said)
            yield request, payload, fds

    def start(self, **options: Any) -> Frontend:
        for index, n in itertools.product((0, 1), range(-self.num, 0)):  # as the lap before has left them
            at, marks = self.slot(index, n, used=True)
            struct.pack_into("<H", self.memory, at + 14, marks)
        return super().start(**options)

    def position(self, n: int) -> int:
        """The base that says slot `n`, for both ends."""
        n += self.first
        return (n % self.num | (n // self.num % 2 == 0) << 15) * 0x10001

    @property
    def first(self) -> int:
        """How far `base` is from the start of a first lap."""
        return (self.base & 0x7FFF) + self.num * (not self.base & 0x8000)

    def slot(self, index: int, n: int, used: bool) -> tuple[int, int]:
        """Where slot `n` lies, counted on without an end from `base`, and its bits AVAIL and USED."""
        n += self.first
        wrap = n // self.num % 2 == 0
        return self.at(self.desc[index]) + 16 * (n % self.num), wrap << 7 | (wrap == used) << 15

    def put_desc(self, index: int, i: int, addr: int, size: int, flags: int = 0) -> None:
        """Into the next slot, of which `offer` says that it is available."""
        at, _ = self.slot(index, self.avail_idx[index], used=False)
        struct.pack_into("<QIH", self.memory, at, addr, size, i)
        self.flags = flags

    def offer(self, index: int, head: int) -> None:
        at, marks = self.slot(index, self.avail_idx[index], used=False)
        struct.pack_into("<H", self.memory, at + 14, self.flags | marks)
        self.avail_idx[index] += 1

    def write(self, data: bytes, src: int, dst: int) -> None:
        id_ = self.avail_idx[1] % self.num
        at = self.buffer(1, id_)
        message = struct.pack("<IIIHH", src, dst, 0, len(data), 0) + data
        self.memory[PAGE + at - GUEST : PAGE + at - GUEST + len(message)] = message
        self.put_desc(1, id_, at, len(message))
        self.offer(1, id_)
        os.eventfd_write(self.kicks[1], 1)

    def take(self) -> tuple[int, int, bytes]:
        deadline = time.monotonic() + WAIT
        at, marks = self.slot(0, self.seen[0], used=True)
        while struct.unpack_from("<H", self.memory, at + 14)[0] & (1 << 7 | 1 << 15) != marks:
            assert time.monotonic() < deadline
            self.device.poll()
        length, id_ = struct.unpack_from("<IH", self.memory, at + 8)
        self.seen[0] += 1
        at = PAGE + self.buffer(0, id_) - GUEST
        src, dst, _, size, _ = struct.unpack_from("<IIIHH", self.memory, at)
        assert length == 16 + size
        data = self.memory[at + 16 : at + 16 + size]
        self.put_desc(0, id_, self.buffer(0, id_), 512, 2)
        self.offer(0, id_)
        return src, dst, data


@pytest.fixture(params=[False])
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Which offers packed rings or not."""
    packed = request.param
    with rpmsgx.open(f"vhost-user:{tmp_path}/s", "device", event_idx=True, inband=True, packed=packed) as bus:
        yield bus


@pytest.fixture
def connect(tmp_path: Path, device: Any) -> Iterator[Callable[..., Frontend]]:
    """Front-ends, of which only the last is still there; nothing they did costs a descriptor or a map."""
    there: list[Frontend] = []

    def one(kind: type[Frontend] = Frontend, **options: Any) -> Frontend:
        while there:
            there.pop().close()
        deadline = time.monotonic() + WAIT
        while True:
            device.poll(timeout=0.001)  # the one before has gone
            with contextlib.suppress(ConnectionRefusedError):
                there.append(kind(tmp_path / "s", device, **options))
                return there[0]
            assert time.monotonic() < deadline

    one().start()
    one()
    device.poll(timeout=0.01)
    gc.collect()
    before = open_things()
    yield one
    one()
    device.poll(timeout=0.01)
    gc.collect()
    assert open_things() == before
    one().start().check()
    there.pop().close()


def open_things() -> tuple[int, int]:
    with open("/proc/self/maps") as lines:
        return len(os.listdir("/proc/self/fd")), sum("hostile" in line or "[aio]" in line for line in lines)


def idle(bus: Any) -> None:
    """Nothing is left to do: the bus waits in the kernel, it neither spins nor is stuck."""
    for _ in range(20):
        bus.poll(timeout=0)
    before = time.process_time()
    bus.poll(timeout=0.3)
    assert time.process_time() - before < 0.15


# -- a front-end that breaks the rules of messages


@pytest.mark.parametrize("flags", [0, 2, 3, 1 | REPLY, 1 | REPLY | NEED_REPLY])
def test_a_header_that_cannot_be(connect: Callable[..., Frontend], flags: int) -> None:
    front = connect()
    front.send(GET_FEATURES, flags=flags)
    assert front.hung_up()


@pytest.mark.parametrize("size", [513, 1 << 16, 0xFFFFFFFF])
def test_a_payload_beyond_all_bounds(connect: Callable[..., Frontend], size: int) -> None:
    front = connect()
    front.send(SET_FEATURES, u64(0), size=size)
    assert front.hung_up()


@pytest.mark.parametrize("request_id", [0, 6, 7, 19, 20, 22, 23, 26, 31, 32, 37, 38, 41, 0xFFFFFFFF])
def test_a_request_that_is_not_known(connect: Callable[..., Frontend], request_id: int) -> None:
    front = connect()
    assert front.tell(request_id) != 0
    assert front.tell(request_id, bytes(256)) != 0
    front.start().check()
    front.send(request_id)
    assert front.hung_up()


@pytest.mark.parametrize("request_id", KNOWN)
def test_a_payload_of_the_wrong_size(connect: Callable[..., Frontend], request_id: int) -> None:
    for size in (0, 1, 7, 9, 16, 39, 41, 512):
        front = connect()
        front.send(request_id, bytes(size), flags=1 | NEED_REPLY)
        with contextlib.suppress(ConnectionResetError):
            request, flags, answer = front.receive()
            assert (request, flags) == (request_id, 1 | REPLY)
            right = size == 0 and request_id not in (SET_MEM_TABLE, GET_CONFIG, SET_CONFIG)
            if request_id == GET_CONFIG:
                assert answer == b""
            elif not right:
                assert len(answer) == 8 and answer != u64(0)


@pytest.mark.parametrize("request_id", KNOWN)
def test_descriptors_where_none_belong(connect: Callable[..., Frontend], request_id: int) -> None:
    payloads = {SET_MEM_TABLE: table(*[region()] * 3), SET_VRING_ADDR: bytes(40), SET_FEATURES: u64(1 << 32)}
    state_like = (SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE, VRING_KICK)
    u64_like = (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, SET_PROTOCOL_FEATURES, SET_STATUS)
    payload = payloads.get(request_id, bytes(8) if request_id in state_like + u64_like else b"")
    for count in (1, 2, 8, 9, 200):
        front = connect()
        front.send(request_id, payload, [front.fd] * count, flags=1 | NEED_REPLY)
        with contextlib.suppress(ConnectionResetError):
            assert front.receive()[2] != u64(0)


def test_descriptors_with_a_payload(connect: Callable[..., Frontend]) -> None:
    front = connect()
    front.send(SET_VRING_NUM, size=8)
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [front.fd] * 3))]
    front.sock.sendmsg([state(0, 8)], control)
    front.ask(GET_FEATURES)


def test_a_message_byte_by_byte(connect: Callable[..., Frontend], device: Any) -> None:
    front = connect()
    data = struct.pack("=III", SET_VRING_NUM, 1 | NEED_REPLY, 8) + state(1, 16)
    for i, byte in enumerate(data):
        front.sock.send(bytes([byte]))
        idle(device) if i in (0, 15) else device.poll()
    assert front.receive() == (SET_VRING_NUM, 1 | REPLY, u64(0))


# -- what the messages say


def refused(front: Frontend, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
    assert front.tell(request, payload, fds) != 0


@pytest.mark.parametrize(
    "payload",
    [
        table(count=0),
        table(region(), count=2),
        table(*[region()] * 8, count=9),
        table(region(), count=0xFFFFFFFF),
        table(region(size=0)),
        table(region(size=SIZE + 1)),
        table(region(size=1 << 62)),
        table(region(offset=1)),
        table(region(offset=1 << 40)),
        table(region(offset=(1 << 64) - PAGE)),
        table(region(guest=(1 << 64) - PAGE)),
        table(region(user=(1 << 64) - PAGE)),
        table(region(), region(user=USER + (1 << 30))),
        table(region(), region(guest=GUEST + (1 << 30))),
        table(region(), region(guest=GUEST + SIZE - 1, user=USER + (1 << 30))),
    ],
    ids=itertools.count(),
)
def test_a_memory_table_that_cannot_be(connect: Callable[..., Frontend], payload: bytes) -> None:
    front = connect()
    count = min(8, max(1, (len(payload) - 8) // 32))
    refused(front, SET_MEM_TABLE, payload, [front.fd] * count)
    front.start().check()


def test_memory_that_is_none(connect: Callable[..., Frontend], tmp_path: Path) -> None:
    front = connect()
    (tmp_path / "file").write_bytes(bytes(PAGE + SIZE))
    unsealed = os.memfd_create("hostile")
    os.ftruncate(unsealed, PAGE + SIZE)
    fds = [*os.pipe(), os.eventfd(0), unsealed, os.dup(front.sock.fileno())]
    fds += [os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "file", os.O_RDONLY), os.open("/dev/zero", os.O_RDWR)]
    try:
        for fd in fds:
            refused(front, SET_MEM_TABLE, table(region()), [fd])
        refused(front, SET_MEM_TABLE, table(region()), [])
        refused(front, SET_MEM_TABLE, table(region()), [front.fd, front.fd])
    finally:
        for fd in fds:
            os.close(fd)


def test_vrings_that_cannot_be(connect: Callable[..., Frontend]) -> None:
    front = connect()
    good = addresses(0, front.desc[0], front.avail[0], front.used[0])
    refused(front, SET_VRING_ADDR, good)  # no memory yet
    assert front.tell(SET_MEM_TABLE, table(region()), [front.fd]) == 0
    refused(front, SET_VRING_ADDR, good)  # no size yet
    for num in (0, 3, 6, 0x8001, 0x10000, 0xFFFFFFFF):
        refused(front, SET_VRING_NUM, state(0, num))
    for index in (2, 255, 256, 0xFFFFFFFF):
        for request in (SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE):
            refused(front, request, state(index, 8))
        refused(front, SET_VRING_ADDR, addresses(index, front.desc[0], front.avail[0], front.used[0]))
    for base in (0x10000, 0xFFFFFFFF):
        refused(front, SET_VRING_BASE, state(0, base))
    assert front.tell(SET_VRING_NUM, state(0, NUM)) == 0
    end = USER + SIZE
    for desc, avail, used in (
        (0, front.avail[0], front.used[0]),
        (front.desc[0], GUEST, front.used[0]),  # a guest address is none
        (end - 16 * NUM + 16, front.avail[0], front.used[0]),
        (front.desc[0], end - 6 - 2 * NUM + 2, front.used[0]),
        (front.desc[0], front.avail[0], end - 6 - 8 * NUM + 4),
        ((1 << 64) - 16, front.avail[0], front.used[0]),
        (front.desc[0] + 8, front.avail[0], front.used[0]),
        (front.desc[0], front.avail[0] + 1, front.used[0]),
        (front.desc[0], front.avail[0], front.used[0] + 2),
    ):
        refused(front, SET_VRING_ADDR, addresses(0, desc, avail, used))
    for flags in (1, 0xFFFFFFFF):
        refused(front, SET_VRING_ADDR, addresses(0, front.desc[0], front.avail[0], front.used[0], flags))
    assert front.tell(SET_VRING_ADDR, good) == 0
    front.start().check()


packed = pytest.mark.parametrize("device", [True], indirect=True)
either = pytest.mark.parametrize("device, kind", [(False, Frontend), (True, PackedFrontend)], indirect=["device"])


@packed
def test_packed_vrings_that_cannot_be(connect: Callable[..., Frontend]) -> None:
    front = connect(PackedFrontend)
    assert front.tell(SET_MEM_TABLE, table(region()), [front.fd]) == 0
    refused(front, SET_VRING_NUM, state(0, 6))  # split, as far as is known
    refused(front, SET_VRING_BASE, state(0, 0x8000_8000))
    assert front.tell(SET_FEATURES, u64(PackedFrontend.FEATURES)) == 0
    for num in (0, 0x8001, 0x10000, 0xFFFFFFFF):
        refused(front, SET_VRING_NUM, state(0, num))
    for base in (0x8000_8000, 0xFFFF_FFFF, 0):
        assert front.tell(SET_VRING_BASE, state(0, base)) == 0
    assert front.tell(SET_VRING_NUM, state(0, 6)) == 0
    desc, end = front.desc[0], USER + SIZE
    for places in (
        (desc + 8, desc + 96, desc + 100),
        (desc, desc + 98, desc + 104),  # which would do for an avail ring
        (desc, desc + 96, desc + 102),
        (end - 80, desc + 96, desc + 100),
        (desc, end, desc + 96),
        (desc, desc + 96, end),
        (desc, GUEST, desc + 96),
    ):
        refused(front, SET_VRING_ADDR, addresses(0, *places))
    for places in ((desc, desc + 96, desc + 100), (end - 96, desc, desc + 4), (desc, end - 8, end - 4)):
        assert front.tell(SET_VRING_ADDR, addresses(0, *places)) == 0
    assert front.tell(SET_FEATURES, u64(1 << 32)) == 0
    refused(front, SET_VRING_ADDR, addresses(0, desc, desc + 96, desc + 128))  # 6 are none of a split one


@packed
@pytest.mark.rule("2.2.2-2", "2.2.1-2")
def test_packed_rings_without_version_1(connect: Callable[..., Frontend]) -> None:
    front = connect(PackedFrontend)
    for features in (1 << 34, 1 << 34 | 1 << 30 | 1):
        refused(front, SET_FEATURES, u64(features))
    front.start().check()


def handed_over(front: Frontend, *, instead: dict[int, Callable[[int], bytes]]) -> None:
    """All that comes before the kick; of some requests the payload for a vring is another one."""
    for request, payload, fds in front.steps():
        if request in (GET_FEATURES, GET_PROTOCOL_FEATURES):
            front.ask(request, payload)
        else:
            other = instead.get(request)
            assert front.tell(request, payload if other is None else other(payload[0]), fds) == 0


@packed
@pytest.mark.parametrize("base", [0x8000_8008, 0x8008_8000, 0x8000_FFFF, 0xFFFF_8000, 0x7FFF_7FFF])
def test_a_base_beyond_the_ring(connect: Callable[..., Frontend], base: int, device: Any) -> None:
    """Of a packed ring both halves are slots."""
    front = connect(PackedFrontend)
    handed_over(front, instead={SET_VRING_BASE: lambda index: state(index, base)})
    os.eventfd_write(front.kicks[0], 1)
    assert front.hung_up() and not device.is_up


@packed
@pytest.mark.parametrize("areas", ["both one", "over descriptors", "over the other"])
def test_structures_of_packed_rings_that_overlap(connect: Callable[..., Frontend], areas: str, device: Any) -> None:
    front = connect(PackedFrontend)
    front.avail[1] = {
        "both one": front.used[1],
        "over descriptors": front.desc[1] + 16 * NUM - 4,
        "over the other": front.avail[0],
    }[areas]
    handed_over(front, instead={})
    os.eventfd_write(front.kicks[0], 1)
    assert front.hung_up() and not device.is_up


@packed
@pytest.mark.parametrize("change", ["to split", "to packed"])
def test_what_was_said_of_rings_of_the_other_kind_is_not_believed(
    connect: Callable[..., Frontend], device: Any, change: str
) -> None:
    """Numbers and places that were right are checked again once the features are others."""
    front = connect(PackedFrontend if change == "to split" else Frontend)
    if change == "to split":
        handed_over(front, instead={SET_VRING_NUM: lambda index: state(index, 6)})
        assert front.tell(SET_FEATURES, u64(1 << 32)) == 0
    else:
        handed_over(front, instead={SET_VRING_BASE: lambda index: state(index, 9)})
        assert front.tell(SET_FEATURES, u64(PackedFrontend.FEATURES)) == 0
        for index in (0, 1):
            assert front.tell(SET_VRING_ENABLE, state(index, 1)) == 0
    os.eventfd_write(front.kicks[0], 1)
    assert front.hung_up() and not device.is_up


@packed
@pytest.mark.parametrize("num", [1, 3, 6, 7, 8])
@pytest.mark.parametrize("said", [0x8000_8000, 0])
def test_packed_vrings_of_any_number(connect: Callable[..., Frontend], num: int, said: int) -> None:
    """Which start; a front-end that says base 0 of any ring that does means the same."""
    front = connect(PackedFrontend)
    front.num = num
    front.start(said=said)
    for _ in range(3 * num):
        front.check()


@packed
@pytest.mark.parametrize("base", [0x8000_8000, 0, 0x0003_0003, 0x8007_8007])
def test_packed_vrings_are_stopped_and_go_on_from_their_base(
    connect: Callable[..., Frontend], device: Any, base: int
) -> None:
    front: Any = connect(PackedFrontend)
    front.base = base
    front.start()
    for _ in range(2):
        for _ in range(3):
            front.check()
        where = front.position(3)
        for index in (0, 1):
            assert struct.unpack("=II", front.ask(GET_VRING_BASE, state(index, 0))) == (index, where)
        assert not device.is_up
        rings = front.memory[:]
        front = connect(PackedFrontend)  # which goes on with these rings
        front.memory[:] = rings
        front.base, front.avail_idx = where, [NUM, 0]
        handed_over(front, instead={})
        os.eventfd_write(front.kicks[0], 1)


@pytest.mark.parametrize("same", ["desc", "used"])
def test_vrings_that_overlap_each_other(connect: Callable[..., Frontend], same: str, device: Any) -> None:
    front = connect()
    getattr(front, same)[1] = getattr(front, same)[0]
    for request, payload, fds in front.steps():
        if request in (GET_FEATURES, GET_PROTOCOL_FEATURES):
            front.ask(request, payload)
        else:
            assert front.tell(request, payload, fds) == 0
    assert not device.is_up  # nobody has kicked
    os.eventfd_write(front.kicks[0], 1)
    assert front.hung_up()
    assert not device.is_up


def test_descriptors_that_nobody_can_ring(connect: Callable[..., Frontend], tmp_path: Path) -> None:
    front = connect()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    fds = [*os.pipe(), front.fd, datagram.detach(), os.open("/dev/null", os.O_RDWR)]
    for request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
        for fd in fds:
            refused(front, request, u64(0), [fd])
        refused(front, request, u64(0))
        refused(front, request, u64(1 << 8), [front.kicks[0]])
        refused(front, request, u64(2), [front.kicks[0]])
        refused(front, request, u64(1 << 9), [front.kicks[0]])
    refused(front, SET_VRING_KICK, u64(1 << 8))
    assert front.tell(SET_VRING_CALL, u64(1 << 8)) == 0
    for fd in (*fds, front.kicks[0]):
        refused(front, SET_BACKEND_REQ_FD, b"", [fd])
    for fd in fds:
        if fd != front.fd:
            os.close(fd)


@pytest.mark.rule("2.2.2-2", "2.2.2-3")
def test_features_that_were_not_offered(connect: Callable[..., Frontend]) -> None:
    front = connect()
    (offered,) = struct.unpack("=Q", front.ask(GET_FEATURES))
    assert offered == 1 << 32 | 1 << 30 | 1 << 29 | 1
    for bit in set(range(64)) - {0, 29, 30, 32}:
        refused(front, SET_FEATURES, u64(1 << bit))
    (offered,) = struct.unpack("=Q", front.ask(GET_PROTOCOL_FEATURES))
    for bit in range(64):
        if not offered >> bit & 1:
            refused(front, SET_PROTOCOL_FEATURES, u64(1 << bit))
    refused(front, VRING_KICK, state(0, 0))
    refused(front, SET_STATUS, u64(256))
    refused(front, SET_CONFIG, struct.pack("=III", 0, 4, 0) + bytes(4))
    assert front.ask(GET_CONFIG, struct.pack("=III", 0, 16, 0) + bytes(16)) == struct.pack("=III", 0, 16, 0) + bytes(16)
    for offset, size, sent in ((0, 257, 257), (256, 1, 1), (0xFFFFFFFF, 1, 1), (0, 0xFFFFFFFF, 8), (0, 8, 4)):
        assert front.ask(GET_CONFIG, struct.pack("=III", offset, size, 0) + bytes(sent)) == b""
    assert front.ask(GET_QUEUE_NUM) == u64(2)
    front.send(SET_PROTOCOL_FEATURES, u64(1 << 14), flags=1 | NEED_REPLY)
    assert front.hung_up()


# -- a front-end that stalls, or goes


def test_a_front_end_that_goes_after_any_message(connect: Callable[..., Frontend], device: Any) -> None:
    total = len(list(connect().steps()))
    for stop in range(total + 1):
        front = connect()
        for request, payload, fds in list(front.steps())[:stop]:
            front.send(request, payload, fds)
            device.poll()
        front.send(SET_VRING_NUM, bytes(5), size=8)  # and in the middle of one more
        device.poll()


def test_a_front_end_that_says_nothing(connect: Callable[..., Frontend], device: Any, tmp_path: Path) -> None:
    front = connect()
    idle(device)
    front.sock.send(b"\x01\0\0")
    idle(device)
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        second.connect(str(tmp_path / "s"))
    assert not device.is_up


def test_a_front_end_that_reads_no_answers(connect: Callable[..., Frontend], device: Any) -> None:
    front = connect()
    front.sock.setblocking(False)
    with pytest.raises(OSError) as error:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                front.send(GET_FEATURES)
            device.poll()
    assert error.value.errno in (errno.EPIPE, errno.ECONNRESET)


@pytest.mark.parametrize("nonblocking", [True, False])
def test_a_call_that_would_block(connect: Callable[..., Frontend], device: Any, nonblocking: bool) -> None:
    """The counter of an eventfd and its flags are everybody's who holds it."""
    front = connect()
    front.start()
    for fd in front.calls:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        os.eventfd_write(fd, (1 << 64) - 2)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK if nonblocking else 0)
    front.check()


def test_a_call_that_nobody_reads(connect: Callable[..., Frontend], device: Any) -> None:
    front = connect()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        front.start()
        assert front.tell(SET_VRING_CALL, u64(0), [theirs.fileno()]) == 0
        assert front.tell(SET_VRING_CALL, u64(1), [theirs.fileno()]) == 0
        for _ in range(1000):
            front.check()
        assert ours.recv(8) == struct.pack("=Q", 1)
    front.check()  # and nobody could


@pytest.mark.parametrize("kind", ["eventfd", "socket"])
def test_a_kick_that_never_ends(connect: Callable[..., Frontend], device: Any, kind: str) -> None:
    front = connect()
    front.start()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert front.tell(SET_VRING_KICK, u64(1), [theirs.fileno() if kind == "socket" else front.kicks[1]]) == 0
        for _ in range(100):
            if kind == "socket":
                with contextlib.suppress(BlockingIOError):
                    while ours.send(bytes(4096)):
                        pass
            else:
                os.eventfd_write(front.kicks[1], 1 << 40)
            device.poll()
        front.check()
        idle(device)
    idle(device)  # the socket's other end has gone


@either
@pytest.mark.parametrize("who", ["rings", "buffers", "all"])
def test_memory_that_is_taken_away(
    connect: Callable[..., Frontend], device: Any, tmp_path: Path, who: str, kind: type[Frontend]
) -> None:
    fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, PAGE + SIZE)
    front = connect(kind, memory=fd)
    front.start().check()
    endpoint = device.create_endpoint()
    os.ftruncate(fd, {"rings": 0, "buffers": 9 * PAGE, "all": 0}[who])
    if who == "buffers":
        with pytest.raises((rpmsgx.ChannelRemoved, rpmsgx.Timeout)):
            endpoint.send_to(bytes(400), 5, timeout=0.1)
    else:
        with pytest.raises((rpmsgx.ChannelRemoved, rpmsgx.Timeout, rpmsgx.PeerError)):
            endpoint.recv(timeout=0.1)
    deadline = time.monotonic() + WAIT
    while device.is_up:
        with contextlib.suppress(rpmsgx.ChannelRemoved):
            endpoint.try_send(b"") if endpoint.dst else endpoint.send_to(b"", 5, timeout=0)
        assert time.monotonic() < deadline
    assert front.hung_up()
    endpoint.close()


@either
@pytest.mark.parametrize("seed", range(4))
def test_anything_at_all(connect: Callable[..., Frontend], device: Any, seed: int, kind: type[Frontend]) -> None:
    rng = random.Random(seed)
    numbers = [0, 1, 2, 7, 8, 255, 256, PAGE, 0xFFFF, 0x10000, 0xFFFFFFFF, GUEST, USER, SIZE, (1 << 64) - 1]
    sent = 0
    while sent < 1500:
        front = connect(kind)
        steps = list(front.steps())
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(rng.randrange(40)):
                in_order = steps and rng.random() < 0.7
                request, payload, fds = steps.pop(0) if in_order else rng.choice(list(front.steps()))
                if rng.random() < 0.2:
                    request = rng.choice(KNOWN)
                if rng.random() < 0.2 and len(payload) >= 8:
                    at = rng.randrange(len(payload) // 4) * 4
                    payload = payload[:at] + struct.pack("=Q", rng.choice(numbers)) + payload[at + 8 :]
                if rng.random() < 0.1:
                    fds = [rng.choice((front.fd, *front.kicks, *front.calls)) for _ in range(rng.randrange(4))]
                front.send(request, payload, fds, flags=1 | rng.choice((0, NEED_REPLY)))
                if rng.random() < 0.3:
                    os.eventfd_write(rng.choice(front.kicks), 1)
                if rng.random() < 0.3:
                    front.memory[PAGE : PAGE + 6 * PAGE] = rng.randbytes(6 * PAGE)
                sent += 1
                with contextlib.suppress(rpmsgx.Error):
                    device.poll()
        with contextlib.suppress(rpmsgx.Error):
            device.poll()


# -- what a session is


@pytest.mark.rule("2.4.1-2")
@either
def test_the_rings_are_left_alone_once_it_was_said_so(
    connect: Callable[..., Frontend], device: Any, kind: type[Frontend]
) -> None:
    front = connect(kind)
    front.start()
    endpoint = device.create_endpoint(dst=5)
    ways = (
        (SET_VRING_ENABLE, state(0, 0)), (SET_VRING_ENABLE, state(1, 0)), (SET_FEATURES, u64(1 << 32 | 1 << 30)),
        (RESET_OWNER, b""), (RESET_DEVICE, b""),
    )  # fmt: skip
    for request, payload in ways:
        assert device.is_up
        assert front.tell(request, payload) == 0
        before = front.memory[:]
        with pytest.raises(rpmsgx.Error):
            endpoint.send(b"late", timeout=0)
        assert not device.is_up and not endpoint.try_send(b"later")
        front.write(b"unheard", 1, endpoint.addr)
        before = front.memory[:]
        assert endpoint.try_recv() is None
        assert front.memory[:] == before
        front = connect(kind)
        front.start().check()


@either
def test_not_a_byte_is_written_after_the_answer(
    connect: Callable[..., Frontend], device: Any, kind: type[Frontend]
) -> None:
    """Other threads of the device are in the middle of it when one answers; it goes on where they were."""
    front = connect(kind)
    front.start()
    endpoint = device.create_endpoint(dst=5)
    stop = threading.Event()

    def until_stopped(step: Callable[[], object]) -> None:
        while not stop.is_set():
            with contextlib.suppress(rpmsgx.ChannelRemoved):
                step()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running = [
            pool.submit(until_stopped, lambda: device.poll(timeout=0.001)),
            pool.submit(until_stopped, lambda: endpoint.try_send(b"x")),
            pool.submit(until_stopped, lambda: endpoint.try_send(b"y")),
        ]
        front.device = Elsewhere(front.sock)
        try:
            for _ in range(1000):
                front.take()
                assert front.tell(SET_VRING_ENABLE, state(0, 0)) == 0
                before = front.memory[:]
                front.ask(GET_FEATURES)
                assert front.memory[:] == before
                assert front.tell(SET_VRING_ENABLE, state(0, 1)) == 0
        finally:
            stop.set()
            front.device = device
        for future in running:
            future.result(WAIT)


class Elsewhere:
    """Stands for a device that others drive."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def poll(self) -> None:
        select.select([self.sock], [], [], 0.0001)


@either
def test_a_disabled_vring_is_enabled_again(
    connect: Callable[..., Frontend], device: Any, kind: type[Frontend]
) -> None:
    """Nothing that was on its way is lost: the device goes on where it was."""
    front = connect(kind)
    front.start().check()
    assert front.tell(SET_VRING_ENABLE, state(0, 0)) == 0
    endpoint = device.create_endpoint()
    front.write(b"meanwhile", 9, endpoint.addr)
    assert not device.is_up
    assert front.tell(SET_VRING_ENABLE, state(0, 1)) == 0
    assert endpoint.recv_from(timeout=WAIT) == (b"meanwhile", 9)
    front.check()
    # The same for memory that comes and goes.
    assert front.tell(SET_MEM_TABLE, table(region()), [front.fd]) == 0
    front.check()


def test_a_vring_is_stopped_and_goes_on_from_its_base(connect: Callable[..., Frontend], device: Any) -> None:
    front = connect()
    front.start()
    for _ in range(3):
        front.check()
    assert struct.unpack("=II", front.ask(GET_VRING_BASE, state(0, 0))) == (0, 3)
    assert struct.unpack("=II", front.ask(GET_VRING_BASE, state(1, 0))) == (1, 3)
    assert not device.is_up
    # Another back-end, as far as the front-end knows: it hands the same rings over.
    rings = front.memory[:]
    later = connect()
    later.memory[:] = rings
    later.avail_idx, later.seen = [3 + NUM, 3], [3, 0]
    for request, payload, fds in later.steps():
        later.ask(request, payload) if request in (GET_FEATURES, GET_PROTOCOL_FEATURES) else later.tell(
            request, payload, fds
        )
    os.eventfd_write(later.kicks[0], 1)
    later.check()
    assert struct.unpack("=II", later.ask(GET_VRING_BASE, state(0, 0))) == (0, 4)
    later.send(GET_VRING_BASE, state(2, 0))
    assert later.hung_up()


@pytest.mark.rule("2.1.2-1", "2.1.2-2", "2.2.2-2")
def test_the_status_decides_where_it_is_told(connect: Callable[..., Frontend], device: Any) -> None:
    front = connect()
    for request, payload, fds in front.steps():
        if request == SET_PROTOCOL_FEATURES:
            assert front.tell(request, u64(1 << 3 | 1 << 16)) == 0
            assert front.tell(SET_STATUS, u64(3 | 8)) == 0
            assert front.ask(GET_STATUS) == u64(3)  # features were not set: not accepted
        elif request in (GET_FEATURES, GET_PROTOCOL_FEATURES):
            front.ask(request)
        else:
            assert front.tell(request, payload, fds) == 0
    assert front.tell(SET_STATUS, u64(3 | 8)) == 0
    assert front.ask(GET_STATUS) == u64(11)
    os.eventfd_write(front.kicks[0], 1)
    device.poll(timeout=0.01)
    assert not device.is_up
    for i in range(NUM):
        front.put_desc(0, i, front.buffer(0, i), 512, 2)
        front.offer(0, i)
    assert front.tell(SET_STATUS, u64(15)) == 0
    front.check()
    front.put_desc(1, front.avail_idx[1] % NUM, 0xDEAD0000, 64)
    front.offer(1, front.avail_idx[1] % NUM)
    with pytest.raises(rpmsgx.PeerError):
        device.create_endpoint().recv(timeout=WAIT)
    front.send(GET_STATUS)
    with contextlib.suppress(rpmsgx.PeerError):
        device.poll()
    assert struct.unpack("=IIIQ", front.sock.recv(20))[3] == 15 | 64
    front.send(SET_STATUS, u64(0))
    with contextlib.suppress(rpmsgx.PeerError):
        device.poll()
    assert front.ask(GET_STATUS) == u64(0)


def test_calls_and_kicks_as_messages(connect: Callable[..., Frontend], device: Any) -> None:
    front = connect()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert front.tell(SET_PROTOCOL_FEATURES, u64(1 << 3 | 1 << 5 | 1 << 14)) == 0
        assert front.tell(SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == 0
        for request, payload, fds in front.steps():
            if request not in (
                GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_CALL, SET_VRING_KICK
            ):  # fmt: skip
                assert front.tell(request, payload, fds) == 0
        for i in range(NUM):
            front.put_desc(0, i, front.buffer(0, i), 512, 2)
            front.offer(0, i)
        assert not device.is_up
        assert front.tell(VRING_KICK, state(0, 0)) == 0
        assert device.is_up
        for _ in range(2000):  # more than the socket holds: what is not read is not sent twice
            front.check()
        ours.setblocking(False)
        calls = {ours.recv(20) for _ in range(50)}
        assert calls == {struct.pack("=IIIII", VRING_CALL, 1, 8, index, 0) for index in (0, 1)}
    front.check()


# -- a back-end that breaks the rules

Answer = Callable[[int, bytes], bytes | None]


class Backend:
    """Listens, answers as the specification has it, and remembers what it was given."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.setblocking(False)
        self.sock: socket.socket | None = None
        self.fds: list[int] = []
        self.given: dict[int, tuple[bytes, list[int]]] = {}
        self.protocol = 1 << 3 | 1 << 5 | 1 << 9 | 1 << 16
        self.features = 1 << 32 | 1 << 30 | 1
        self.status = 0
        self.count = 0

    def close(self) -> None:
        self.hang_up()
        self.listener.close()

    def hang_up(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        while self.fds:
            os.close(self.fds.pop())

    def step(self, driver: Any) -> bool:
        """Serve what is there; whether a message was."""
        driver.poll()
        if self.sock is None:
            with contextlib.suppress(BlockingIOError):
                self.sock, _ = self.listener.accept()
                self.sock.setblocking(False)
                self.given.clear()
                self.count = 0
            return False
        try:
            header, fds, _, _ = socket.recv_fds(self.sock, 12, 8)
        except (BlockingIOError, ConnectionResetError):
            return False
        self.fds += fds
        if len(header) < 12:
            self.hang_up()
            return False
        request, flags, size = struct.unpack("=III", header)
        payload = self.sock.recv(size)
        self.given[request] = payload, fds
        self.count += 1
        answer = self.answer(request, payload)
        if answer is None and flags & NEED_REPLY:
            answer = u64(0)
        if answer is not None:
            self.reply(request, answer)
        return True

    def answer(self, request: int, payload: bytes) -> bytes | None:
        if request == GET_FEATURES:
            return u64(self.features)
        if request == GET_PROTOCOL_FEATURES:
            return u64(self.protocol)
        if request == SET_STATUS:
            (self.status,) = struct.unpack("=Q", payload)
        return u64(self.status) if request == GET_STATUS else None

    def reply(self, request: int, answer: bytes, flags: int = 1 | REPLY) -> None:
        assert self.sock is not None
        with contextlib.suppress(OSError):
            self.sock.send(struct.pack("=III", request, flags, len(answer)) + answer)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    with rpmsgx.open(f"vhost-user:{tmp_path}/b", "driver") as bus:
        yield bus


@pytest.fixture
def backend(tmp_path: Path, driver: Any) -> Iterator[Backend]:
    back = Backend(tmp_path / "b")
    yield back
    back.close()
    (tmp_path / "b").unlink()
    # An honest one comes, and all is well.
    with rpmsgx.open(f"vhost-user:{tmp_path}/b", "device") as device:
        deadline = time.monotonic() + WAIT
        up = False
        while not up:
            assert time.monotonic() < deadline
            with contextlib.suppress(rpmsgx.ResourceError):
                up = all([device.is_up, driver.is_up])
        service = device.create_endpoint("service")
        with contextlib.suppress(rpmsgx.ResourceError):
            driver.poll()
        client = driver.open("service", timeout=WAIT)
        client.send(b"hello")
        assert service.recv(timeout=WAIT) == b"hello"


def serve(back: Backend, driver: Any, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not until():
        assert time.monotonic() < deadline
        back.step(driver)


def hangs_up(back: Backend, driver: Any, because: str) -> None:
    """The front-end goes, and tells its user why."""
    with pytest.raises(rpmsgx.ResourceError, match=because):
        serve(back, driver, lambda: False)


def test_what_an_honest_back_end_is_given(backend: Backend, driver: Any) -> None:
    serve(backend, driver, lambda: driver.is_up and backend.status == 15)
    payload, fds = backend.given[SET_MEM_TABLE]
    count, _ = struct.unpack_from("=II", payload)
    regions = [struct.unpack_from("=QQQQ", payload, 8 + 32 * i) for i in range(count)]
    assert count == len(fds) == 2
    for guest, size, user, offset in regions:
        assert len({guest, user, offset}) == 3 and offset % PAGE == 0 and offset > 0
        assert os.fstat(fds[0]).st_size >= offset + size
    (guest, size, user, offset), (other, _, other_user, other_offset) = regions
    assert other - guest != other_user - user != other_offset - offset > size
    _, _, desc, used, avail, _ = struct.unpack("=IIQQQQ", backend.given[SET_VRING_ADDR][0])
    assert all(user <= address < user + size for address in (desc, avail, used))
    driver.create_endpoint(dst=5).send(b"x")
    (_, ring) = struct.unpack("=II", backend.given[SET_VRING_NUM][0])
    with mmap.mmap(fds[0], 0) as memory:
        addr, length, _, _ = struct.unpack_from("<QIHH", memory, offset + desc - user)
        assert ring == 256 and length == 17 and other <= addr < other + regions[1][1]
        assert memory[other_offset + addr - other + 16 : other_offset + addr - other + 17] == b"x"


def test_a_back_end_that_goes_after_any_message(backend: Backend, driver: Any) -> None:
    serve(backend, driver, lambda: driver.is_up and backend.status == 15)
    for stop in range(backend.count):
        backend.hang_up()
        serve(backend, driver, lambda: not driver.is_up)
        serve(backend, driver, lambda stop=stop: backend.sock is not None and backend.count >= stop)


@pytest.mark.parametrize("request_id", [SET_OWNER, GET_FEATURES, SET_MEM_TABLE, GET_STATUS])
@pytest.mark.parametrize("how", ["request", "flags", "size", "huge", "version", "twice", "fds"])
def test_an_answer_that_is_none(backend: Backend, driver: Any, request_id: int, how: str) -> None:
    right = backend.answer

    def answer(request: int, payload: bytes) -> bytes | None:
        if request != request_id:
            return right(request, payload)
        if how == "request":
            backend.reply(request + 1, u64(0))
        elif how == "flags":
            backend.reply(request, u64(0), 1)
        elif how == "version":
            backend.reply(request, u64(0), 2 | REPLY)
        elif how == "size":
            backend.reply(request, bytes(4))
        elif how == "huge":
            backend.reply(request, bytes(1000))
        elif how == "twice":
            backend.reply(request, right(request, payload) or u64(0))
            backend.reply(request, right(request, payload) or u64(0))
        else:
            assert backend.sock is not None
            with open("/dev/null") as null:
                data = struct.pack("=IIIQ", request, 1 | REPLY, 8, 0)
                socket.send_fds(backend.sock, [data], [null.fileno()] * 9)
        return None

    backend.answer = answer  # type: ignore[method-assign]
    hangs_up(backend, driver, "hung up on")


@pytest.mark.parametrize("request_id", [SET_FEATURES, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_KICK, SET_STATUS])
def test_a_back_end_that_refuses(backend: Backend, driver: Any, request_id: int) -> None:
    right = backend.answer
    backend.answer = lambda r, p: u64(1) if r == request_id else right(r, p)  # type: ignore[method-assign]
    hangs_up(backend, driver, "refused")


def test_a_device_that_does_not_take_the_features(backend: Backend, driver: Any) -> None:
    right = backend.answer
    backend.answer = lambda r, p: u64(3) if r == GET_STATUS else right(r, p)  # type: ignore[method-assign]
    hangs_up(backend, driver, "does not take features")


def test_a_back_end_that_never_answers(backend: Backend, driver: Any) -> None:
    backend.answer = lambda request, payload: None  # type: ignore[method-assign]
    for _ in range(50):
        backend.step(driver)
    idle(driver)
    assert not driver.is_up


@pytest.mark.rule("2.2.1-1", "2.2.1-4", "2.2.1-6")
@pytest.mark.parametrize("features", [0, 1, 1 << 32, (1 << 64) - 1])
def test_a_back_end_of_few_or_of_all_features(backend: Backend, driver: Any, features: int) -> None:
    backend.features = features
    backend.protocol = (1 << 64) - 1 & ~(1 << 14)
    serve(backend, driver, lambda: driver.is_up and (GET_STATUS not in backend.given or backend.status == 15))
    (accepted,) = struct.unpack("=Q", backend.given[SET_FEATURES][0])
    assert accepted == features & (1 << 34 | 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1)
    if features & 1 << 30:
        (accepted,) = struct.unpack("=Q", backend.given[SET_PROTOCOL_FEATURES][0])
        assert accepted == 1 << 3 | 1 << 5 | 1 << 9 | 1 << 16


def test_kicks_that_nobody_reads(backend: Backend, driver: Any) -> None:
    """More than a socket holds: the driver does not block."""
    serve(backend, driver, lambda: driver.is_up and backend.status == 15)
    fds = backend.given[SET_VRING_KICK][1]
    for fd in fds:
        os.set_blocking(fd, True)
    for _ in range(5000):
        driver.link.doorbell.kick(1)
    assert len(os.read(fds[0], 8)) == 8


@pytest.mark.rule("2.1.1-4")
def test_requests_of_a_back_end(backend: Backend, driver: Any) -> None:
    serve(backend, driver, lambda: driver.is_up and backend.status == 15)
    requests = socket.socket(fileno=os.dup(backend.given[SET_BACKEND_REQ_FD][1][0]))
    with requests:
        requests.setblocking(False)
        for request, known in ((VRING_CALL, True), (CONFIG_CHANGE, True), (1, False), (99, False)):
            requests.send(struct.pack("=IIIII", request, 1 | NEED_REPLY, 8, 0, 0))
            for _ in range(5):
                backend.step(driver)
            assert struct.unpack("=IIIQ", requests.recv(20)) == (request, 1 | REPLY, 8, not known)
        assert driver.is_up
        with open("/dev/null") as null:
            socket.send_fds(requests, [struct.pack("=III", 3, 1, 0)], [null.fileno()] * 3)
        for _ in range(5):
            backend.step(driver)
        assert driver.is_up
        # A device that needs a reset gets one: all begins anew.
        backend.status |= 64
        requests.send(struct.pack("=III", CONFIG_CHANGE, 1, 0))
        serve(backend, driver, lambda: not driver.is_up)
        backend.hang_up()
        serve(backend, driver, lambda: driver.is_up and backend.status == 15)
        assert driver.counters["resets"] == 1


@pytest.mark.parametrize("junk", [struct.pack("=III", 4, 1, 1 << 20), struct.pack("=III", 4, 5, 0), bytes(12)])
def test_requests_that_are_none(backend: Backend, driver: Any, junk: bytes) -> None:
    serve(backend, driver, lambda: driver.is_up and backend.status == 15)
    with socket.socket(fileno=os.dup(backend.given[SET_BACKEND_REQ_FD][1][0])) as requests:
        requests.send(junk)
        hangs_up(backend, driver, "hung up on")
