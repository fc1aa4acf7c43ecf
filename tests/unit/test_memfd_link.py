"""Memory that is handed over: what the driver gives, and what a device takes from a stranger."""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_link import WAIT, until

import rpmsgx
from rpmsgx.virtio.layout import Layout
from rpmsgx.virtio.link import DRIVER_OK
from rpmsgx.virtio.memfd import HELLO, MAX_SIZE, MemfdDoorbell

pytestmark = pytest.mark.timeout(60)
STATUS = 0x2C  # in the table: the vdev's status byte


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    buses: list[Any] = []

    def open_(path: str, role: Any, **options: Any) -> Any:
        buses.append(rpmsgx.open(f"memfd:{path}", role, **options))
        return buses[-1]

    yield open_
    for bus in buses:
        bus.close(linger=0)


def dial(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.settimeout(WAIT)
    end.connect(path)
    return end


def test_the_driver_hands_over_sealed_memory_and_rings(path: str, opened: Callable[..., Any]) -> None:
    driver = opened(path, "driver", num=64)
    seen: set[int] = set()
    for _ in range(2):
        with dial(path) as end:
            driver.poll()
            hello, fds, flags, _ = socket.recv_fds(end, 16, 10)
            assert hello == HELLO and len(fds) == 1 and not flags & socket.MSG_CTRUNC
            seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
            assert seals & fcntl.F_SEAL_SHRINK and seals & fcntl.F_SEAL_GROW
            with mmap.mmap(fds[0], 0) as memory:
                assert len(memory) == Layout(64).size
                assert memory[:0x24] == Layout(64).table()[:0x24]
                assert memory[0x2C] == 7
            assert len(end.recv(100)) == 1  # the driver rang once it was ready
            seen.add(os.fstat(fds[0]).st_ino)
            end.send(b"\1")
            assert driver.poll(timeout=0.01) == 0 and driver.is_up
            os.close(fds[0])
        until(lambda: not driver.is_up, driver)
    assert len(seen) == 1
    assert driver.counters["resets"] == 2


def test_the_device_waits_for_the_memory(path: str, opened: Callable[..., Any]) -> None:
    device = opened(path, "device")
    endpoint = device.create_endpoint("early")
    assert not device.is_up and device.mtu == 0
    with pytest.raises(rpmsgx.Timeout):
        endpoint.recv(timeout=0.01)
    driver = opened(path, "driver")
    until(lambda: device.is_up and driver.channels, driver, device)
    client = driver.open("early", timeout=WAIT)
    client.send(b"x")
    assert endpoint.recv(timeout=WAIT) == b"x"


@pytest.mark.parametrize("what", ["nothing", "gfeatures", "vring 0 notifyid", "vring 1 num", "status"])
def test_a_session_ends_when_the_driver_changes_its_mind_and_rings(
    path: str, opened: Callable[..., Any], what: str
) -> None:
    driver, device = opened(path, "driver"), opened(path, "device")
    service = device.create_endpoint("service")
    until(lambda: device.is_up and driver.channels, driver, device)
    client = driver.open("service", timeout=WAIT)
    client.send(b"x")
    assert service.recv(timeout=WAIT) == b"x"
    space = driver.link.space
    words = {"gfeatures": (0x24, 0), "vring 0 notifyid": (0x3C, 5), "vring 1 num": (0x4C, 128), "status": (STATUS, 0)}
    if what in words:
        at, value = words[what]
        space.write(at, struct.pack("=I", value))
    driver.link.doorbell.kick(0)
    with contextlib.suppress(rpmsgx.PeerError):  # the next session finds rings that were not set up for it
        device.poll()
    assert device.counters["resets"] == (0 if what == "nothing" else 1)


def test_a_second_driver_is_refused(path: str, opened: Callable[..., Any]) -> None:
    driver, device = opened(path, "driver"), opened(path, "device")
    with pytest.raises(OSError, match="socket"):
        opened(path, "driver")
    until(lambda: driver.is_up and device.is_up, driver, device)
    with pytest.raises(OSError, match="socket"):
        opened(path, "driver")
    assert driver.is_up and device.is_up


def memfd(size: int = Layout().size, *, sealed: bool = True, table: bytes = Layout().table()) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, table, 0)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def file() -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(fd, Layout().size)
    os.pwrite(fd, Layout().table(), 0)
    return fd


def event() -> int:
    return os.eventfd(0)


OFFERS: dict[str, tuple[Callable[[], tuple[bytes, list[int]]], str]] = {
    "nothing": (lambda: (HELLO, []), "0 descriptors, not 1"),
    "one too many": (lambda: (HELLO, [memfd(), event()]), "2 descriptors, not 1"),
    "two too many": (lambda: (HELLO, [memfd(), event(), event()]), "2 or more descriptors, not 1"),
    "far too many": (lambda: (HELLO, [memfd(), *(event() for _ in range(100))]), "not 1"),
    "another protocol": (lambda: (b"GET / HTTP/1.1\r\n", [memfd()]), "GET /"),
    "a byte": (lambda: (b"\1", []), r"not a memfd link"),
    "half a hello": (lambda: (HELLO[:8], [memfd()]), r"not a memfd link"),
    "memfd not sealed": (lambda: (HELLO, [memfd(sealed=False)]), "F_SEAL_SHRINK"),
    "a file": (lambda: (HELLO, [file()]), "not sealed"),
    "an eventfd": (lambda: (HELLO, [event()]), "not memory"),
    "a pipe": (lambda: (HELLO, [os.pipe()[0]]), "not memory"),
    "read-only memory": (lambda: (HELLO, [os.open(f"/proc/self/fd/{memfd()}", os.O_RDONLY)]), "ermission"),
    "no memory in it": (lambda: (HELLO, [memfd(0, table=b"")]), "size 0"),
    "too much memory": (lambda: (HELLO, [memfd(MAX_SIZE + 4096)]), "limit is 0x40000000"),
    "no table": (lambda: (HELLO, [memfd(table=b"")]), "resource table"),
    "rings cut off": (lambda: (HELLO, [memfd(0x9000)]), "beyond"),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", OFFERS)
def test_a_bad_handover_is_refused_and_leaves_nothing(path: str, opened: Callable[..., Any], name: str) -> None:
    make, reason = OFFERS[name]
    hello, fds = make()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        device = opened(path, "device")
        before = len(os.listdir("/proc/self/fd"))
        end, _ = server.accept()
        with end:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            end.sendmsg([hello], ancillary)
            with pytest.raises(rpmsgx.ResourceError, match=reason) as error:
                for _ in range(100):
                    device.poll(timeout=0.1)
            assert path in str(error.value)
            end.settimeout(WAIT)
            try:
                assert end.recv(1) == b""  # it hung up
            except ConnectionResetError:
                pass
    for fd in fds:
        os.close(fd)
    os.unlink(path)
    # One that is as it should be is taken all the same.
    driver = opened(path, "driver")
    until(lambda: device.is_up and driver.is_up, driver, device)
    driver.close(linger=0)
    until(lambda: not device.is_up, device)
    after = len(os.listdir("/proc/self/fd")) + len(fds)
    # The last connection's socket stays until the next; the bus of the driver has some descriptors.
    assert after - before <= 8


@pytest.mark.hostile
def test_a_driver_that_says_nothing_or_goes_at_once(path: str, opened: Callable[..., Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        device = opened(path, "device")
        fds = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            end, _ = server.accept()
            assert not device.is_up
            end.close()
            for _ in range(3):
                device.poll(timeout=0.001)
        assert len(os.listdir("/proc/self/fd")) <= fds + 2
    os.unlink(path)
    driver = opened(path, "driver")
    until(lambda: device.is_up and driver.is_up, driver, device)


@pytest.mark.hostile
def test_the_greeting_is_no_ring_and_what_follows_is(path: str) -> None:
    for more in (b"", b"\1", bytes(100)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(path)
            server.listen()
            bell = MemfdDoorbell(path, None)
            end, _ = server.accept()
            with end:
                assert not bell.connected and bell.memory is None
                fd = memfd()
                socket.send_fds(end, [HELLO + more], [fd])
                os.close(fd)
                bell.drain()
                assert bell.connected and bell.memory is not None
                assert bell.rang == bool(more)
                bell.memory.close()
                bell.close()
        os.unlink(path)


@pytest.mark.hostile
@pytest.mark.parametrize("role", ["driver", "device"])
def test_a_peer_that_floods_and_never_reads_stops_nobody(path: str, role: str) -> None:
    """In a process of its own: one that is blocked holds the interpreter and could not even be timed out here."""
    program = (
        "import sys, rpmsgx\n"
        f"with rpmsgx.open('memfd:{path}', {role!r}) as bus:\n"
        "    while not bus.is_up: bus.poll(timeout=1)\n"
        "    for _ in range(20_000): bus.start()\n"  # a kick each
        "    bus.link.doorbell.kick(0)\n"
        "    for _ in range(1000): bus.poll()\n"
        "    print(bus.is_up, flush=True)\n"
    )
    flood = bytes(4096)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        if role == "device":
            server.bind(path)
            server.listen()
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
            try:
                if role == "device":
                    server.settimeout(WAIT)
                    end, _ = server.accept()
                    ready = bytearray(Layout().table())
                    ready[STATUS] = DRIVER_OK
                    fd = memfd(table=bytes(ready))
                    socket.send_fds(end, [HELLO], [fd])
                    os.close(fd)
                else:
                    until(lambda: os.path.exists(path))
                    end = dial(path)
                with end:
                    end.setblocking(False)
                    deadline = time.monotonic() + WAIT
                    while child.poll() is None:
                        assert time.monotonic() < deadline, "it is blocked"
                        select.select([], [end], [], 0.01)
                        try:
                            end.send(flood, socket.MSG_NOSIGNAL)
                        except OSError:
                            pass
                assert child.stdout is not None
                assert child.stdout.read() == b"True\n"
            finally:
                child.kill()


@pytest.mark.hostile
def test_descriptors_that_come_later_are_dropped(path: str, opened: Callable[..., Any]) -> None:
    driver = opened(path, "driver")
    with dial(path) as end:
        driver.poll()
        _, fds, _, _ = socket.recv_fds(end, 16, 10)
        gc.collect()  # what other tests left
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            socket.send_fds(end, [b"take this"], fds)
            driver.poll()
        assert len(os.listdir("/proc/self/fd")) == before
        assert driver.is_up
        for fd in fds:
            os.close(fd)


@pytest.mark.hostile
def test_a_table_that_changes_later_stays_inside(path: str, opened: Callable[..., Any]) -> None:
    """The driver's peer rewrites the table between two sessions: refused, not followed."""
    driver = opened(path, "driver")
    with dial(path) as end:
        driver.poll()
        _, fds, _, _ = socket.recv_fds(end, 16, 10)
        os.pwrite(fds[0], struct.pack("=III", 0x7FFFF000, 0x1000, 32768), 0x30)
        for fd in fds:
            os.close(fd)
    until(lambda: not driver.is_up, driver)
    with dial(path), pytest.raises(rpmsgx.ResourceError, match="0x7ffff000"):
        for _ in range(100):
            driver.poll(timeout=0.1)
