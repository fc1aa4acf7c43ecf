"""The shared file: who makes it, what of it is believed, who owns it."""

from __future__ import annotations

import gc
import os
import re
import select
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support_link import WAIT, until

import rpmsgx
from rpmsgx.virtio.layout import Layout
from rpmsgx.virtio.table import build_vdev_table

pytestmark = pytest.mark.timeout(60)
GFEATURES, STATUS = 0x24, 0x2C

# OpenAMP's table, word by word: ver, num, reserved, offset; type, id, notifyid, dfeatures, gfeatures, config_len,
# status and number of vrings; da, align, num, notifyid, pa of each.
OPENAMP_TABLE = struct.pack(
    "=5I6IBBxx5I5I",
    *(1, 1, 0, 0, 0x14),
    *(3, 7, 0, 1, 0, 0),
    *(0, 2),
    *(0x4000, 0x1000, 256, 1, 0),
    *(0x8000, 0x1000, 256, 2, 0),
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "link")


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    buses: list[Any] = []
    yield buses
    for bus in buses:
        bus.close(linger=0)


def pair(path: str, opened: list[Any], **options: Any) -> tuple[Any, Any]:
    opened += [rpmsgx.open(f"file:{path}", role, **options) for role in ("driver", "device")]
    driver, device = opened[-2:]
    until(lambda: driver.is_up and device.is_up, driver, device)
    return driver, device


def exchange(driver: Any, device: Any) -> None:
    service = device.create_endpoint("echo")
    until(lambda: driver.channels, driver, device)
    client = driver.open("echo", timeout=WAIT)
    client.send(b"there")
    assert service.recv(timeout=WAIT) == b"there"
    service.send(b"back")
    assert client.recv(timeout=WAIT) == b"back"


@pytest.mark.parametrize("role", ["driver", "device"])
def test_the_file_is_openamps(path: str, opened: list[Any], role: str) -> None:
    opened.append(rpmsgx.open(f"file:{path}", role))  # type: ignore[arg-type]
    found = os.stat(path)
    assert (found.st_size, stat.S_IMODE(found.st_mode)) == (0x80000, 0o600)
    data = Path(path).read_bytes()
    assert data[:88] == OPENAMP_TABLE
    assert not any(data[88:])
    assert sorted(os.listdir(os.path.dirname(path))) == ["link", "link.bell"][: 2 if role == "driver" else 1]


def test_rings_and_buffers_lie_where_openamp_has_them(path: str, opened: list[Any]) -> None:
    driver, device = pair(path, opened)
    data = Path(path).read_bytes()
    assert data[STATUS] == 7 and struct.unpack_from("=I", data, GFEATURES) == (1,)
    descriptors = [struct.unpack_from("=QIHH", data, 0x4000 + 16 * i) for i in range(256)]
    assert [(address, size, flags) for address, size, flags, _ in descriptors] == [
        (0x10000 + 512 * i, 512, 2) for i in range(256)
    ]
    assert struct.unpack_from("=HH", data, 0x5000) [1] == 256
    device_endpoint = device.create_endpoint(dst=0x1234)
    driver.create_endpoint(src=0x1234, dst=device_endpoint.addr).send(b"first")
    data = Path(path).read_bytes()
    assert struct.unpack_from("=QIHH", data, 0x8000)[:3] == (0x30000, 16 + 5, 0)
    assert data[0x30000:0x30015] == struct.pack("=IIIHH", 0x1234, device_endpoint.addr, 0, 5, 0) + b"first"


def test_the_table_says_how_large_rings_are(path: str, opened: list[Any]) -> None:
    opened.append(rpmsgx.open(f"file:{path}", "device", num=16))
    opened.append(rpmsgx.open(f"file:{path}", "driver", num=64))
    device, driver = opened
    until(lambda: driver.is_up and device.is_up, driver, device)
    endpoint = driver.create_endpoint(dst=1)
    assert endpoint.send_many([b"x"] * 64, timeout=0) == 16
    assert struct.unpack_from("=I", Path(path).read_bytes(), 0x38) == (16,)


def test_create_starts_over(path: str, opened: list[Any]) -> None:
    Path(path).write_text("nothing of value")
    with pytest.raises(rpmsgx.ResourceError):
        rpmsgx.open(f"file:{path}", "driver")
    opened.append(rpmsgx.open(f"file:{path}", "driver", create=True))
    assert Path(path).read_bytes()[:88] == OPENAMP_TABLE
    assert not [name for name in os.listdir(os.path.dirname(path)) if name.startswith(".")]


def test_a_file_that_was_made_anew_is_found(path: str, opened: list[Any]) -> None:
    """The device opens first and makes the file; then the server starts over with another one."""
    device = rpmsgx.open(f"file:{path}", "device")
    before = os.stat(path).st_ino
    driver = rpmsgx.open(f"file:{path}", "driver", create=True, num=32)
    opened += [device, driver]
    assert os.stat(path).st_ino != before
    until(lambda: driver.is_up and device.is_up, driver, device)
    exchange(driver, device)


def test_two_that_open_at_once_agree(path: str) -> None:
    for turn in range(50):
        place = f"{path}{turn}"
        start = threading.Barrier(2)
        found: dict[str, Any] = {}

        def run(role: Any, num: int, place: str = place, start: Any = start, found: Any = found) -> None:
            start.wait(WAIT)
            found[role] = rpmsgx.open(f"file:{place}", role, num=num)

        threads = [threading.Thread(target=run, args=each) for each in (("driver", 16), ("device", 32))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        driver, device = found["driver"], found["device"]
        until(lambda driver=driver, device=device: driver.is_up and device.is_up, driver, device)
        exchange(driver, device)
        device.close(linger=0)
        driver.close(linger=0)


@pytest.mark.parametrize("server", ["driver", "device"])
def test_the_server_restores_the_table_before_it_listens(path: str, opened: list[Any], server: str) -> None:
    """DRIVER_OK of a link that died says nothing."""
    other = "device" if server == "driver" else "driver"
    first = rpmsgx.open(f"file:{path}", server, server=True)  # type: ignore[arg-type]
    first.close()
    with open(path, "r+b") as file:
        file.seek(GFEATURES)
        file.write(struct.pack("=I", 1))
        file.seek(STATUS)
        file.write(b"\x07")
    opened.append(rpmsgx.open(f"file:{path}", server, server=True))  # type: ignore[arg-type]
    assert Path(path).read_bytes()[:88] == OPENAMP_TABLE
    opened.append(rpmsgx.open(f"file:{path}", other, server=False))  # type: ignore[arg-type]
    a, b = opened
    until(lambda: a.is_up and b.is_up, a, b)
    b.close(linger=0)
    until(lambda: Path(path).read_bytes()[:88] == OPENAMP_TABLE, a)
    assert not a.is_up


def test_a_device_believes_no_driver_ok_before_it_is_rung(path: str, opened: list[Any]) -> None:
    rpmsgx.open(f"file:{path}", "driver").close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, open(path, "r+b") as file:
        file.seek(STATUS)
        file.write(b"\x07")
        file.flush()
        server.bind(path + ".bell")
        server.listen()
        device = rpmsgx.open(f"file:{path}", "device")
        opened.append(device)
        driver, _ = server.accept()
        with driver:
            for _ in range(10):
                device.poll(timeout=0.001)
            assert not device.is_up
            driver.send(b"!")
            until(lambda: device.is_up, device)


def test_a_link_without_a_doorbell(path: str, opened: list[Any]) -> None:
    driver, device = pair(path, opened, doorbell="none")
    exchange(driver, device)
    assert os.listdir(os.path.dirname(path)) == ["link"]
    device.close(linger=0)
    again = rpmsgx.open(f"file:{path}", "device", doorbell="none")
    opened.append(again)
    until(lambda: driver.counters["resets"] == 1 and driver.is_up and again.is_up, driver, again)
    exchange(driver, again)
    driver.close(linger=0)
    until(lambda: not again.is_up, again)


def test_a_descriptor_without_a_doorbell(path: str, opened: list[Any]) -> None:
    """Whoever only ever waits in select sees the peer come, a message, a free buffer, and the peer go."""
    device = rpmsgx.open(f"file:{path}", "device", doorbell="none")
    opened.append(device)
    service = device.create_endpoint("service")
    program = (
        "import rpmsgx\n"
        f"with rpmsgx.open('file:{path}', 'driver', doorbell='none') as bus:\n"
        "    client = bus.open('service', timeout=10)\n"
        "    client.send(b'first')\n"
        "    for i in range(3):\n"
        "        client.send(client.recv(timeout=10))\n"
    )

    def received() -> bytes:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            if select.select([service], [], [], WAIT)[0] and (data := service.try_recv()) is not None:
                return bytes(data)
        raise TimeoutError

    with subprocess.Popen([sys.executable, "-c", program]) as child:
        try:
            assert received() == b"first"
            for data in (b"1", b"2", b"3"):
                service.send(data)
                assert received() == data
            assert child.wait(WAIT) == 0
        finally:
            child.kill()


def test_the_doorbell_can_be_elsewhere(path: str, opened: list[Any], tmp_path: Path) -> None:
    driver, device = pair(path, opened, doorbell=f"unix:{tmp_path}/event.0")
    exchange(driver, device)
    assert sorted(os.listdir(tmp_path)) == ["event.0", "link"]
    for wrong in ("event.0", "unix:", "tcp:1", ""):
        with pytest.raises(ValueError, match="doorbell"):
            rpmsgx.open(f"file:{path}2", "driver", doorbell=wrong)


def test_each_role_is_open_once(path: str, opened: list[Any]) -> None:
    driver, device = pair(path, opened)
    for role in ("driver", "device"):
        with pytest.raises(rpmsgx.StateError, match=f"{role} end of file:.*link is open already"):
            rpmsgx.open(f"file:{path}", role)  # type: ignore[arg-type]
    exchange(driver, device)
    held = driver.create_endpoint(dst=1).claim(4)
    view = memoryview(held)
    driver.close(linger=0)  # the view keeps the memory, not the role
    opened.append(rpmsgx.open(f"file:{path}", "driver"))
    until(lambda: opened[-1].is_up and device.is_up, opened[-1], device)
    view.release()


def test_a_role_goes_with_its_process_whatever_that_forked(path: str, opened: list[Any]) -> None:
    """A killed program's children do not keep the peer, the socket or the role."""
    program = (
        "import os, sys, signal, rpmsgx\n"
        f"bus = rpmsgx.open('file:{path}', 'driver')\n"
        "bus.create_endpoint('before')\n"
        "while not bus.is_up: bus.poll(timeout=1)\n"
        "child = os.fork()\n"
        "if child == 0: signal.pause()\n"
        "print(child, flush=True)\n"
        "bus.poll(timeout=None)\n"
        "signal.pause()\n"
    )
    device = rpmsgx.open(f"file:{path}", "device")
    opened.append(device)
    root = str(Path(rpmsgx.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    child = None
    try:
        until(lambda: device.channels, device)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait(WAIT)
        until(lambda: not device.is_up, device)
        driver = rpmsgx.open(f"file:{path}", "driver")
        opened.append(driver)
        until(lambda: driver.is_up and device.is_up, driver, device)
        exchange(driver, device)
    finally:
        process.kill()
        if child is not None:
            os.kill(child, 9)
        process.communicate()


def bad_files() -> dict[str, bytes]:
    size = Layout().size
    good = OPENAMP_TABLE.ljust(size, b"\0")
    return {
        "empty": b"",
        "text": b"#!/bin/sh\n".ljust(size, b"\n"),
        "zeros": bytes(size),
        "a table and nothing else": OPENAMP_TABLE,
        "half a table": OPENAMP_TABLE[:60],
        "rings cut off": good[:0x9000],
        "no vdev": struct.pack("=4I", 1, 0, 0, 0).ljust(size, b"\0"),
        "another device": build_vdev_table(id=3).ljust(size, b"\0"),
        "one vring": build_vdev_table(vring_da=(0x4000,), notifyids=(1,)).ljust(size, b"\0"),
        "vring in the table": build_vdev_table(vring_da=(0x10, 0x8000)).ljust(size, b"\0"),
        "vring beyond the end": build_vdev_table(vring_da=(0x4000, 0x7F000)).ljust(size, b"\0"),
        "vring nowhere": build_vdev_table(vring_da=(0x4000, 0xFFFFFFFF)).ljust(size, b"\0"),
        "vring at an odd place": build_vdev_table(vring_da=(0x4000, 0x8004)).ljust(size, b"\0"),
        "300 descriptors": good[:0x38] + struct.pack("=I", 300) + good[0x3C:],
        "no descriptors": good[:0x38] + struct.pack("=I", 0) + good[0x3C:],
        "align 3": good[:0x34] + struct.pack("=I", 3) + good[0x38:],
        "overlapping vrings": build_vdev_table(vring_da=(0x4000, 0x8000))[:0x44].ljust(0x44, b"\0")
        + struct.pack("=I", 0x5000)
        + good[0x48:],
    }


@pytest.mark.hostile
@pytest.mark.parametrize("name", bad_files())
@pytest.mark.parametrize("role", ["driver", "device"])
def test_a_file_that_does_not_check_out_is_refused(path: str, role: str, name: str) -> None:
    data = bad_files()[name]
    Path(path).write_bytes(data)
    gc.collect()  # what other tests left
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(rpmsgx.ResourceError, match="link"):
        rpmsgx.open(f"file:{path}", role)  # type: ignore[arg-type]
    assert Path(path).read_bytes() == data
    assert os.listdir(os.path.dirname(path)) == ["link"]
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_driver_needs_room_for_its_buffers(path: str, opened: list[Any]) -> None:
    Path(path).write_bytes(OPENAMP_TABLE.ljust(0x4F000, b"\0"))
    with pytest.raises(rpmsgx.ResourceError, match=r"0x4f000.*0x50000"):
        rpmsgx.open(f"file:{path}", "driver")
    opened.append(rpmsgx.open(f"file:{path}", "device"))


@pytest.mark.parametrize("transport", ["file", "memfd"])
def test_a_directory_that_is_not_there_is_named(tmp_path: Path, transport: str) -> None:
    path = tmp_path / "nowhere" / "link"
    with pytest.raises(FileNotFoundError, match=re.escape(f"'{path}'")):
        rpmsgx.open(f"{transport}:{path}", "driver")


@pytest.mark.hostile
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    os.symlink(tmp_path / "nowhere" / "at all", tmp_path / "dangling")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    for name in ("folder", "fifo", "socket"):
        for create in (False, *([True] if name == "folder" else [])):
            with pytest.raises((rpmsgx.ResourceError, OSError), match=name):
                rpmsgx.open(f"file:{tmp_path / name}", "driver", create=create)
    with pytest.raises(rpmsgx.ResourceError):
        rpmsgx.open("file:/dev/null", "driver")
    with pytest.raises(FileNotFoundError):
        rpmsgx.open(f"file:{tmp_path}/missing/link", "driver")
    with pytest.raises(FileNotFoundError):
        rpmsgx.open(f"file:{tmp_path}/dangling", "driver")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "fifo", "folder", "socket"]
