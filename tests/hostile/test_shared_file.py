"""The shared file is truncated, replaced or overwritten while a link lives on it: no crash, no hang, and the truth.

What truncates runs in a process of its own, for its end by SIGBUS is the failure that is looked for.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support_link import ROLES, WAIT, until

import rpmsgx

pytestmark = [pytest.mark.timeout(120), pytest.mark.hostile]

PRELUDE = """
import os, sys, threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
import rpmsgx
path, role, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
other = "device" if role == "driver" else "driver"
near, far = rpmsgx.open(f"file:{path}", role), rpmsgx.open(f"file:{path}", other)
while not (near.is_up and far.is_up):
    near.poll(timeout=0.01), far.poll(timeout=0.01)
service = far.create_endpoint("echo")
client = near.open("echo", timeout=10)
client.send(b"first")
assert service.recv(timeout=10) == b"first"

def gone(call, *errors):
    try:
        call()
    except (rpmsgx.ChannelRemoved, *errors) as error:
        return str(error)
    raise AssertionError(f"{call} did not raise")

def truncate():
    os.truncate(path, size)
"""


def run(tmp_path: Path, program: str, role: str, size: int = 0) -> str:
    root = str(Path(rpmsgx.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program), str(tmp_path / "link"), role, str(size)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


# Everything, all but the table, all but table and rings, half of the buffers.
sizes = pytest.mark.parametrize("size", [0, 0x4000, 0x10000, 0x30000])
roles = pytest.mark.parametrize("role", ROLES)


@sizes
@roles
def test_truncated_while_it_sends_and_receives(tmp_path: Path, role: str, size: int) -> None:
    program = """
    with ThreadPoolExecutor(4) as pool:
        rounds = threading.Semaphore(0)
        def echo():
            while True:
                message, src = service.recv_from(timeout=10)
                service.send_to(message, src, timeout=10)
        def ask():
            for i in range(10 ** 9):
                client.send(b"%d" % i, timeout=10)
                assert client.recv(timeout=10) == b"%d" % i  # what arrives is what was sent, to the end
                rounds.release()
        jobs = [pool.submit(echo), pool.submit(ask)]
        for _ in range(100):
            rounds.acquire(timeout=10)
        truncate()
        for job in jobs:
            text = gone(lambda: job.result(30), rpmsgx.NoPeer)
            print(text)
    # One of them came upon a page that is missing; the other one did, too, or saw it leave.
    dead = [bus for bus in (near, far) if bus.link.ended]
    assert dead
    for bus in dead:
        assert "truncated" in gone(lambda: bus.poll(timeout=10))
        assert "truncated" in gone(bus.create_endpoint)
        assert "truncated" in gone(lambda: bus.open("echo"))
    for bus in near, far:
        assert not bus.is_up
        assert bus.channels == []
    for call in (lambda: client.send(b"x"), lambda: client.recv(timeout=1)):
        gone(call, rpmsgx.NoPeer)
    near.close(), far.close()
    """
    assert "truncated" in run(tmp_path, program, role, size)


@sizes
@roles
def test_truncated_while_threads_wait(tmp_path: Path, role: str, size: int) -> None:
    """Nothing tells them until somebody touches the memory; then all of them know, whoever it was."""
    program = """
    with ThreadPoolExecutor(8) as pool:
        others = [near.create_endpoint(dst=5) for _ in range(3)]
        waiting = [pool.submit(endpoint.recv) for endpoint in (client, *others)]
        waiting += [pool.submit(near.open, "nobody"), pool.submit(near.poll, timeout=None)]
        truncate()
        for _ in range(2):
            try:
                service.send_to(b"wake up", client.addr, timeout=1)
            except (rpmsgx.ChannelRemoved, rpmsgx.Timeout):
                pass
        far.close()
        wait(waiting, 30, FIRST_EXCEPTION)
        near.close()  # for those who came so late that they wait for another peer
        for job in waiting:
            try:
                job.result(30)
            except (rpmsgx.ChannelRemoved, rpmsgx.Closed) as error:
                print(type(error).__name__)
    """
    assert "ChannelRemoved" in run(tmp_path, program, role, size)


@sizes
@roles
def test_truncated_while_loans_are_out(tmp_path: Path, role: str, size: int) -> None:
    program = """
    for _ in range(3):
        client.send(b"held" * 100)
    holds = [service.hold(timeout=10) for _ in range(3)]
    views = [memoryview(hold) for hold in holds]
    claim = client.claim(400)
    target = memoryview(claim)
    truncate()
    target[:] = bytes(400)
    target.release()
    assert all(bytes(view) == b"held" * 100 for view in views)
    for view in views:
        view.release()
    for hold in holds:
        hold.release()
    if size < 0x10000:
        gone(claim.commit)
    else:
        try:
            claim.commit()
        except rpmsgx.ChannelRemoved:
            pass
    late = memoryview(near.link._region.buffer)
    near.close(), far.close()
    assert bytes(late[-4096:]) == bytes(4096)  # still guarded: the map is alive
    """
    run(tmp_path, program, role, size)


@roles
def test_truncated_while_nobody_looks(tmp_path: Path, role: str) -> None:
    program = """
    truncate()
    for bus, endpoint in ((near, client), (far, service)):
        try:
            endpoint.recv(timeout=0.05)
        except (rpmsgx.ChannelRemoved, rpmsgx.Timeout):
            pass
        try:
            endpoint.recv(timeout=0.05)
        except rpmsgx.ChannelRemoved:
            pass
        assert not bus.is_up
        assert "truncated" in gone(bus.poll)
    # The same place can be used again, by a new link.
    try:
        rpmsgx.open(f"file:{path}", role)
    except rpmsgx.StateError:
        pass
    near.close(), far.close()
    try:
        rpmsgx.open(f"file:{path}", role)
    except rpmsgx.ResourceError as error:
        assert path in str(error)
    a = rpmsgx.open(f"file:{path}", role, create=True)
    b = rpmsgx.open(f"file:{path}", other)
    while not (a.is_up and b.is_up):
        a.poll(timeout=0.01), b.poll(timeout=0.01)
    a.close(), b.close()
    """
    run(tmp_path, program, role)


def test_a_fault_elsewhere_is_not_ours(tmp_path: Path) -> None:
    """With a guard in place, a SIGBUS in somebody else's map still ends the process, as it would without."""
    program = """
    import faulthandler, mmap
    if size:
        faulthandler.enable()
        near.close(), far.close()
        near, far = rpmsgx.open(f"file:{path}", role), rpmsgx.open(f"file:{path}", other)
    with open(path + "2", "w+b") as file:
        file.truncate(8192)
        foreign = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
    print("so far", flush=True)
    foreign[0]
    """
    root = str(Path(rpmsgx.__file__).parent.parent)
    for handler in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(program), str(tmp_path / "link"), "driver", handler],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": root},
        )
        assert done.returncode == -signal.SIGBUS and done.stdout == "so far\n", done.stderr
        assert ("Bus error" in done.stderr) == (handler == "1")
        (tmp_path / "link").unlink()


class SigAction(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("rest", ctypes.c_byte * 256)]


def sigbus_handler() -> int | None:
    action = SigAction()
    assert ctypes.CDLL(None).sigaction(int(signal.SIGBUS), None, ctypes.byref(action)) == 0
    handler: int | None = action.handler
    return handler


def test_the_handler_is_there_only_while_it_is_needed(tmp_path: Path) -> None:
    before = sigbus_handler()
    with rpmsgx.open(f"memfd:{tmp_path}/socket", "driver"), rpmsgx.open("virtual:handler", "driver"):
        assert sigbus_handler() == before
    first = rpmsgx.open(f"file:{tmp_path}/a", "driver")
    guarded = sigbus_handler()
    assert guarded != before
    second = rpmsgx.open(f"file:{tmp_path}/b", "driver")
    first.close()
    assert sigbus_handler() == guarded
    second.close()
    assert sigbus_handler() == before
    with rpmsgx.open(f"file:{tmp_path}/a", "driver"):
        assert sigbus_handler() == guarded
    assert sigbus_handler() == before


def test_a_signal_that_somebody_sends_is_not_a_fault(tmp_path: Path) -> None:
    program = """
    import signal
    os.kill(os.getpid(), signal.SIGBUS)
    """
    root = str(Path(rpmsgx.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program.replace("\n    ", "\n"), str(tmp_path / "link"), "driver", "0"],
        timeout=60,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.returncode == -signal.SIGBUS


@roles
def test_replaced_grown_and_removed(tmp_path: Path, role: str) -> None:
    """What has the file mapped goes on; who opens later finds the new one."""
    path = tmp_path / "link"
    other: Any = ROLES[1 - ROLES.index(role)]
    with rpmsgx.open(f"file:{path}", role) as near:  # type: ignore[arg-type]
        far = rpmsgx.open(f"file:{path}", other)
        until(lambda: near.is_up and far.is_up, near, far)
        os.truncate(path, 0x100000)
        path.with_suffix(".new").write_bytes(b"junk")
        path.with_suffix(".new").rename(path)
        path.unlink()
        service = far.create_endpoint("echo")
        until(lambda: near.channels, near, far)
        client = near.open("echo", timeout=WAIT)
        client.send(b"still")
        assert service.recv(timeout=WAIT) == b"still"
        far.close(linger=0)
        until(lambda: not near.is_up, near)


@roles
@pytest.mark.parametrize("seed", range(5))
def test_every_byte_can_change_at_any_time(tmp_path: Path, role: str, seed: int) -> None:
    """Somebody scribbles over table, rings and buffers: typed errors, and in the end a bus that can be closed."""
    path = tmp_path / "link"
    rng = random.Random(seed)
    other: Any = ROLES[1 - ROLES.index(role)]
    places = [(0, 88), (0x4000, 0x6806), (0x8000, 0xA806), (0x10000, 0x10400), (0x30000, 0x30400)]
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        path.unlink()
        near: Any = rpmsgx.open(f"file:{path}", role)  # type: ignore[arg-type]
        far: Any = rpmsgx.open(f"file:{path}", other)
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as memory:
        endpoints: list[Any] = []
        for _ in range(300):
            for bus in (near, far):
                try:
                    bus.poll()
                    if len(endpoints) < 20:
                        endpoints.append(bus.create_endpoint(f"e{len(endpoints)}", overflow="drop"))
                except rpmsgx.Error:
                    pass
            for endpoint in endpoints:
                try:
                    endpoint.try_recv()
                    endpoint.send_to(rng.randbytes(rng.randrange(497)), 1024 + rng.randrange(8), timeout=0)
                except rpmsgx.Error:
                    pass
            low, high = rng.choice(places)
            at = rng.randrange(low, high)
            memory[at] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        for bus in (near, far):
            bus.close(linger=0)


@roles
def test_a_million_rings_for_nothing(tmp_path: Path, role: str) -> None:
    path = tmp_path / "link"
    with rpmsgx.open(f"file:{path}", role, server=True) as bus:  # type: ignore[arg-type]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(f"{path}.bell")
            until(lambda: bus.link.doorbell.connected, bus)
            peer.setblocking(False)
            left = 1_000_000
            while left:
                try:
                    left -= peer.send(b"\xff" * min(left, 100_000))
                except BlockingIOError:
                    bus.poll()
            with pytest.raises(rpmsgx.Timeout):
                bus.create_endpoint().recv(timeout=0.01)
            assert bus.is_up == (role == "driver")
        until(lambda: not bus.link.doorbell.connected, bus)
        assert not bus.is_up
