# SPDX-License-Identifier: BSD-3-Clause
"""What test_char.py lets a guest do, one function each. Its remote does what is sent to its service "control".

No pytest in here: a guest has the host's Python, and starts it in a fraction of a second.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import io
import json
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sim_firmware
from boards.guest.cases import child, ended_well

import rpmsgx
from rpmsgx.char import Bus, Endpoint, TtyChannel, uevent
from rpmsgx.cli import main
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.remoteproc.linux import LinuxRemoteproc
from rpmsgx.rpmsg import bus as sync
from rpmsgx.virtio.link import VdevLink
from rpmsgx.virtio.table import Vdev, parse

WAIT = 10.0
RAW, TTY = "rpmsg-raw", "rpmsg-tty"
OTHER = "other"  # a service that no driver takes
DRIVER = "/sys/bus/virtio/drivers/virtio_rpmsg_bus"
NOBODY = 65534
ANY = rpmsgx.ANY


@contextlib.contextmanager
def raises(error: type[BaseException], *texts: str) -> Iterator[None]:
    try:
        yield
    except error as caught:
        missing = [text for text in texts if text not in str(caught)]
        assert not missing, f"{caught!r} does not say {missing}"
    else:
        raise AssertionError(f"no {error.__name__}")


class Remote:
    """Tells the remote what to do."""

    def __init__(self, bus: Bus) -> None:
        self._control = bus.open("control", timeout=WAIT)

    def __call__(self, *words: object) -> str:
        self._control.send(" ".join(map(str, words)).encode(), timeout=WAIT)
        return self._control.recv(timeout=WAIT).decode()


@contextlib.contextmanager
def both(place: str = "") -> Iterator[tuple[Bus, Remote]]:
    with rpmsgx.open(f"char:{place}") as bus:
        remote = Remote(bus)
        remote("reset")
        yield bus, remote


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def readable(what: Any, timeout: float = 0) -> bool:
    return bool(select.select([what], [], [], timeout)[0])


def quick(call: Callable[[], object], limit: float = WAIT / 2) -> None:
    """A wait that something ended before its time."""
    begin = time.monotonic()
    call()
    assert time.monotonic() < begin + limit


@contextlib.contextmanager
def thread(work: Callable[[], object]) -> Iterator[None]:
    """`work` in a thread meanwhile; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    running = threading.Thread(target=run)
    running.start()
    try:
        yield
    finally:
        running.join(WAIT)
        assert not running.is_alive()
    if failed:
        raise failed[0]


def nodes() -> set[str]:
    return {name for name in os.listdir("/dev") if name.startswith(("rpmsg", "ttyRPMSG"))}


def echoes(endpoint: Endpoint, data: bytes) -> None:
    endpoint.send(data, timeout=WAIT)
    assert endpoint.recv(timeout=WAIT) == data


def by_name(_: str = "") -> None:
    with both() as (bus, remote):
        before = nodes()
        for name in (RAW, "other", "1/../\u00fc"):
            remote("up", name)
            with bus.open(name, timeout=WAIT) as endpoint:
                assert isinstance(endpoint, Endpoint)
                assert (endpoint.name, endpoint.mtu, endpoint.bus) == (name, 496, bus)
                assert endpoint.dst == int(remote("address", name)) and 1024 <= endpoint.addr < 0x80000000
                echoes(endpoint, b"hello")
                assert remote("sender") == str(endpoint.addr)
                assert endpoint.counters == {"sent": 1, "received": 1, "dropped": 0, "queued": 0}
                (channel,) = [channel for channel in bus.channels if channel.name == name]
                assert channel.endpoint is endpoint and channel.addr == endpoint.dst and not channel.removed
                assert channel.driver == ("rpmsg_chrdev" if name == RAW else None)
                with raises(rpmsgx.Timeout, repr(name), "'control'"):
                    bus.open(name, timeout=0.02)
            assert channel.endpoint is None
            with raises(rpmsgx.Closed):
                endpoint.send(b"")
            echoes(bus.open(name, timeout=0), b"again")
        assert len(nodes() - before) == 3  # rpmsg-raw's, and the two that are open
    assert len(nodes()) == len({"rpmsg_ctrl0", "rpmsg-raw's"})


def sizes(_: str = "") -> None:
    with both() as (bus, remote):
        for name in (RAW, OTHER):
            remote("up", name)
            with bus.open(name, timeout=WAIT) as endpoint:
                for size in range(497):
                    endpoint.send(bytes((size + i) & 255 for i in range(size)))
                for size in range(497):
                    assert endpoint.recv(timeout=WAIT) == bytes((size + i) & 255 for i in range(size))
                for too_long in (bytes(497), bytearray(500), array.array("H", bytes(498))):
                    with raises(rpmsgx.MessageSize, "at most 496"):  # the kernel would log it
                        endpoint.send(too_long)
                    with raises(rpmsgx.MessageSize):
                        endpoint.try_send(too_long)
                echoes(endpoint, memoryview(b"abcdef")[1:4])  # type: ignore[arg-type]


def batches(_: str = "") -> None:
    with both() as (bus, remote):
        remote("up", RAW)
        with bus.open(RAW, timeout=WAIT) as endpoint:
            sent = [bytes([i]) * i for i in range(1, 11)]
            assert endpoint.send_many(sent) == 10
            got: list[bytes] = []
            while len(got) < 10:
                got += endpoint.recv_many(10 - len(got), timeout=WAIT)
            assert got == sent
            with raises(rpmsgx.MessageSize):
                endpoint.send_many([b"x", bytes(497), b"y"])
            assert endpoint.recv(timeout=WAIT) == b"x"
            for wrong in (b"bytes", bytearray(2), memoryview(b"ab")):
                with raises(TypeError, "send()"):
                    endpoint.send_many(wrong)  # type: ignore[arg-type]

            rows, lengths = bytearray(b"\xff" * 32), array.array("H", [9, 9, 9, 9])
            table = memoryview(rows).cast("B", (4, 8))
            endpoint.send_many([b"1", b"", b"12345678", b"123456789"])
            until(lambda: remote("count", RAW) == "15")
            assert endpoint.recv_into(table, lengths=lengths, timeout=WAIT) == 3
            assert bytes(rows) == b"1".ljust(16, b"\0") + b"12345678" + b"\xff" * 8 and list(lengths) == [1, 0, 8, 9]
            assert endpoint.counters["queued"] == 1 and readable(endpoint, WAIT)
            with raises(rpmsgx.MessageSize, "9 bytes", "row of 8", "stays queued"):
                endpoint.recv_into(table, timeout=0)
            assert readable(endpoint, WAIT)
            assert endpoint.recv(timeout=0) == b"123456789" and endpoint.counters["received"] == 15
            with raises(rpmsgx.Timeout):
                endpoint.recv_into(table, timeout=0)
            for bad in (bytearray(), b"read-only", table[::2]):
                with raises((ValueError, TypeError, BufferError)):  # type: ignore[arg-type]
                    endpoint.recv_into(bad, timeout=0)
            with raises(ValueError, "4 integers"):
                endpoint.recv_into(table, lengths=array.array("H", [1]), timeout=0)
            with raises(ValueError, "at least 1"):
                endpoint.recv_many(0)


def waiting(_: str = "") -> None:
    with both() as (bus, remote):
        with thread(lambda: remote("up", RAW, 0.1)):
            quick(lambda: bus.open(RAW, timeout=WAIT).close())
        with thread(lambda: remote("up", OTHER, 0.1)):
            quick(lambda: bus.open(OTHER).close())
        for name in (RAW, OTHER):
            endpoint = bus.open(name, timeout=WAIT)
            for timeout in (0, 0.05):
                begin = time.monotonic()
                with raises(rpmsgx.Timeout, f"no message within {timeout} s"):
                    endpoint.recv(timeout=timeout)
                assert timeout <= time.monotonic() - begin < timeout + WAIT / 2
            for wrong in (-1, float("nan")):
                for call in (endpoint.recv, bus.poll, lambda timeout: bus.open("x", timeout=timeout)):
                    with raises(ValueError, "at least 0"):
                        call(timeout=wrong)  # type: ignore[operator]
            assert endpoint.try_recv() is None and not readable(endpoint)
            poller = select.epoll()
            poller.register(endpoint, select.EPOLLIN)
            for text in (b"one", b"two", b""):
                endpoint.send(text, timeout=0)
                while (got := endpoint.try_recv()) is None:
                    assert poller.poll(WAIT)
                assert got == text and endpoint.try_recv() is None and not readable(endpoint)
            with thread(partial(endpoint.send, b"three")):
                assert endpoint.recv() == b"three"
            poller.unregister(endpoint)
            endpoint.close()


def waited_for(endpoint: Endpoint) -> bool:
    return endpoint._users > 0


def raises_closed(endpoint: Endpoint) -> None:
    with raises(rpmsgx.Closed):
        while True:
            endpoint.recv(timeout=WAIT)


def close_while_waiting(_: str = "") -> None:
    bus = rpmsgx.open("char:")
    remote = Remote(bus)
    remote("up", RAW)
    remote("up", OTHER)
    for name in (RAW, OTHER):
        endpoint = bus.open(name, timeout=WAIT)
        with thread(partial(raises_closed, endpoint)):
            until(partial(waited_for, endpoint))
            endpoint.close()
        endpoint.close()
        quick(bus.open(name, timeout=WAIT).close)
    endpoint = bus.open(RAW, timeout=WAIT)

    def opening() -> None:
        with raises(rpmsgx.Closed):
            bus.open("never")

    def polling() -> None:
        with raises(rpmsgx.Closed):
            while True:
                bus.poll(timeout=None)

    before = len(os.listdir("/proc/self/fd"))
    with thread(lambda: raises_closed(endpoint)), thread(opening), thread(polling):
        until(lambda: bus._users >= 2 + len(bus._endpoints))
        bus.close()
    assert len(os.listdir("/proc/self/fd")) < before
    assert list(endpoint) == []
    with raises(rpmsgx.Closed):
        bus.open(RAW)
    with raises(rpmsgx.Closed):
        bus.poll()
    bus.close()


def interrupted(_: str = "") -> None:
    with both() as (bus, remote):
        remote("up", RAW)
        endpoint = bus.open(RAW, timeout=WAIT)
        for call in (endpoint.recv, lambda: bus.open("never"), lambda: bus.poll(timeout=None)):
            while bus.poll():
                pass
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            with raises(KeyboardInterrupt):
                while True:
                    call()
        echoes(endpoint, b"still there")


def removal(_: str = "") -> None:
    """The remote withdraws its services one by one, and brings them back."""
    with both() as (bus, remote):
        log: list[tuple[str, Any]] = []
        bus.on_new_channel = lambda channel: log.append(("new", channel))
        bus.on_removed = lambda channel: log.append(("removed", channel))
        bus.poll()
        assert [what for what, _ in log] == ["new"]  # the control's
        before = nodes()
        for turn in range(3):
            for name in (RAW, OTHER):
                log.clear()
                remote("up", name)
                endpoint = bus.open(name, timeout=WAIT)
                echoes(endpoint, b"%d" % turn)
                assert readable(bus) and bus.poll() == 0
                assert [(what, channel.name) for what, channel in log] == [("new", name)]
                channel = log[0][1]
                assert channel.endpoint is endpoint
                assert not readable(endpoint)
                with thread(partial(remote, "down", name, 0.05)):
                    if turn == 0:
                        with raises(rpmsgx.ChannelRemoved, repr(name), "has gone"):
                            quick(partial(endpoint.recv, timeout=WAIT))
                    elif turn == 1:
                        assert list(endpoint) == []
                    else:
                        assert readable(endpoint, WAIT)
                        with raises(rpmsgx.ChannelRemoved):
                            while readable(endpoint, WAIT):
                                endpoint.try_recv()
                for call in (endpoint.send, endpoint.try_send, lambda _, endpoint=endpoint: endpoint.recv(timeout=0)):
                    with raises(rpmsgx.ChannelRemoved):
                        call(b"")
                until(lambda: bus.poll(timeout=0.01) == 0 and len(log) > 1)
                assert log[1:] == [("removed", channel)] and channel.removed and channel not in bus.channels
                if turn == 1:
                    with raises(rpmsgx.Timeout):
                        bus.open(name, timeout=0.02)
                    endpoint.close()
                elif turn == 2:
                    remote("up", name)
                    with bus.open(name, timeout=WAIT) as again:  # the old one is still open
                        echoes(again, b"again")
                        again.send(b"last words")
                        remote("down", name)
                        if name == OTHER:  # with the channel's own node the kernel drops what is queued
                            assert again.recv(timeout=WAIT) == b"last words"
                        with raises(rpmsgx.ChannelRemoved):
                            again.recv(timeout=WAIT)
                    endpoint.close()
        until(lambda: len(bus.channels) == 1)
        bus.poll()
        log.clear()
        remote("up", OTHER)  # comes and goes, and nobody was told
        remote("down", OTHER)
        bus.poll(timeout=0.2)
        assert log == []
    assert nodes() == before - {name for name in before if name != "rpmsg_ctrl0"}


def removal_seen_by_looking(_: str = "") -> None:
    """The same where no uevents come. (This kernel has no user namespaces, in which that is so.)"""
    uevent._initial_user_namespace = lambda: False
    removal()


def restart(_: str = "") -> None:
    """The driver of the remote goes and comes with everything open, as when a remote is restarted."""
    with rpmsgx.open("char:") as bus:
        for turn in range(4):
            remote = Remote(bus)
            if turn == 0:
                remote("up", RAW)
                remote("up", OTHER)
            endpoints = [remote._control, *(bus.open(name, timeout=WAIT) for name in (RAW, OTHER))]
            made = bus.create_endpoint("made", dst=int(remote("address", OTHER)))
            for endpoint in (*endpoints[1:], made):
                echoes(endpoint, b"%d" % turn)
            Path(DRIVER, "unbind").write_text("virtio0")
            for endpoint in (*endpoints, made):
                with raises(rpmsgx.ChannelRemoved):
                    quick(partial(endpoint.recv, timeout=WAIT))
                with raises(rpmsgx.ChannelRemoved):
                    endpoint.send(b"")
            assert not bus.is_up and bus.channels == []
            with raises(rpmsgx.StateError, "/dev/rpmsg_ctrl", "not up"):
                bus.create_endpoint()
            if turn % 2:
                for endpoint in (*endpoints, made):
                    endpoint.close()
            with thread(lambda: Path(DRIVER, "bind").write_text("virtio0")):
                with bus.open(OTHER, timeout=WAIT) as endpoint:
                    echoes(endpoint, b"back")
            assert bus.is_up
    assert len(nodes()) == len({"rpmsg_ctrl0", "rpmsg-raw's"})


def made_here(_: str = "") -> None:
    """Endpoints to addresses."""
    with both() as (bus, remote):
        remote("up", RAW)
        dst = int(remote("address", RAW))
        before = nodes()
        with bus.create_endpoint(dst=dst) as one, bus.create_endpoint("two", src=2000, dst=dst) as two:
            assert (one.name, two.name, two.addr, two.dst) == (None, "two", 2000, dst) and one.addr != two.addr
            for endpoint in (one, two, one):
                echoes(endpoint, b"hello")
                assert remote("sender") == str(endpoint.addr)
            one.send(b"for one")
            two.send(b"for two")
            assert two.recv(timeout=WAIT) == b"for two" and one.recv(timeout=WAIT) == b"for one"
            with raises(rpmsgx.StateError, "0x7d0 is taken"):
                bus.create_endpoint(src=2000, dst=dst)
            two.send_to(b"there", dst)
            assert two.recv(timeout=WAIT) == b"there"
            with raises(rpmsgx.StateError, f"to {dst:#x} only"):
                two.send_to(b"elsewhere", dst + 1)
            for call in (one.recv_from, one.hold, one.claim):
                with raises(rpmsgx.StateError, "kernel", "use "):
                    call()
            assert len(nodes() - before) == 2
        assert nodes() == before
        with bus.create_endpoint(src=2000) as deaf:
            assert deaf.dst is None
            with raises(rpmsgx.NoPeer, "dst"):
                deaf.send(b"x")
            remote("send", 2000)
            assert deaf.recv(timeout=WAIT) == b"from the remote"
        for wrong in ({"src": 53}, {"src": -1}, {"dst": 1 << 31}, {"queue": 5}, {"overflow": "drop"}, {"name": ""}):
            with raises(ValueError):
                bus.create_endpoint(**wrong)  # type: ignore[arg-type]
        for also in ({"src": "1"}, {"callback": 5}, {"name": b"x"}):
            with raises(TypeError):
                bus.create_endpoint(**also)  # type: ignore[arg-type]
        assert nodes() == before


def announced(_: str = "") -> None:
    """Services of ours, which the remote sees come and go."""
    with both() as (bus, remote):
        before = nodes()
        for name in (RAW, OTHER):
            endpoint = bus.create_endpoint(name, src=3000)
            assert (endpoint.addr, endpoint.dst) == (3000, None)
            until(lambda name=name: remote("channels") == f"{name}@3000")
            assert [channel.name for channel in bus.channels] == ["control"]  # ours is none of the remote's
            remote("send", 3000)
            assert endpoint.recv(timeout=WAIT) == b"from the remote"
            with raises(rpmsgx.NoPeer, "learns none"):
                endpoint.send(b"answer")
            with raises(rpmsgx.StateError, "0xbb8 is taken"):
                bus.create_endpoint(name, src=3000)
            endpoint.close()
            until(lambda: remote("channels") == "")
            assert nodes() == before
        remote("up", OTHER)
        until(lambda: len(bus.channels) == 2)
        with bus.create_endpoint(OTHER) as endpoint:  # both ends announce it
            echoes(endpoint, b"known")
            assert [channel.name for channel in bus.channels] == ["control", OTHER]  # ours is not among them
        until(lambda: remote("channels") == "")
        with raises(rpmsgx.StateError, "taken by a driver of the kernel: rpmsg_tty"):
            bus.create_endpoint(TTY)
        assert nodes() == before


def taken(_: str = "") -> None:
    """By another process, or by another driver."""
    with both() as (bus, remote):
        remote("up", RAW)
        with bus.open(RAW) as endpoint:
            path = f"/dev/{node_of(endpoint)}"
        with Path(path).open("rb", buffering=0) as file:
            other = subprocess.Popen(["/bin/sleep", "1000"], stdin=file)
        with other:
            try:
                with raises(rpmsgx.StateError, f"{path} is open", f"process {other.pid} (sleep)"):
                    bus.open(RAW, timeout=WAIT)
            finally:
                other.kill()
        with bus.open(RAW, timeout=WAIT) as endpoint:
            echoes(endpoint, b"free again")
        remote("silent", "rpmsg-client-sample")
        with raises(rpmsgx.StateError, "'rpmsg-client-sample'", "driver of the kernel: rpmsg_client_sample"):
            until(lambda: [c for c in bus.channels if c.driver == "rpmsg_client_sample"])
            bus.open("rpmsg-client-sample", timeout=WAIT)


def node_of(endpoint: Endpoint) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{endpoint._fd}"))


def is_node(fd: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == path
    except OSError:
        return False


def left_over(_: str = "") -> None:
    """A process that is killed leaves its endpoint's node; the next one takes it."""
    with both() as (bus, remote):
        remote("up", OTHER)
        until(lambda: len(bus.channels) == 2)
        before = nodes()
        for _ in range(2):
            code = "import rpmsgx; e = rpmsgx.open('char:').open('other', timeout=9); print(flush=True); e.recv()"
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as victim:
                assert victim.stdout is not None and victim.stdout.readline()
                victim.kill()
            assert len(nodes() - before) == 1
        with bus.open(OTHER) as endpoint:
            echoes(endpoint, b"taken over")
        code = "import rpmsgx; rpmsgx.open('char:').open('control', timeout=9)"  # not closed
        subprocess.run([sys.executable, "-c", code], check=True)
        assert len(nodes() - before) == 1


def full(folder: str) -> None:
    """The remote takes nothing for a while."""
    with both() as (bus, remote):
        remote("up", RAW)
        remote("up", OTHER)
        for name in (RAW, OTHER):
            with bus.open(name, timeout=WAIT) as endpoint:
                go = Path(folder, f"go-{name}")
                remote._control.send(f"wait {go}".encode())
                until(Path(f"{go}-begun").exists)
                bus.fileno()
                assert not readable(endpoint)
                sent = 0
                while endpoint.try_send(b"%d" % sent):
                    sent += 1
                    assert sent <= 256
                assert readable(endpoint, WAIT) and readable(bus, WAIT)  # time to try again
                begin = time.monotonic()
                with raises(rpmsgx.Timeout, "no buffer back within 0.1 s"):
                    endpoint.send(b"late", timeout=0.1)
                assert time.monotonic() - begin < WAIT / 2
                with raises(rpmsgx.Timeout):
                    endpoint.send(b"late", timeout=0)
                assert endpoint.send_many([b"late"] * 3, timeout=0.05) == 0
                with thread(partial(endpoint.send, b"last", timeout=WAIT)):
                    time.sleep(0.02)
                    go.touch()
                assert remote._control.recv(timeout=WAIT)
                texts = [endpoint.recv(timeout=WAIT) for _ in range(sent + 1)]
                assert texts == [b"%d" % i for i in range(sent)] + [b"last"]
                bus.poll()
                while endpoint.try_recv() is not None:
                    pass
                assert not readable(bus)


def tty(_: str = "") -> None:
    with both() as (bus, remote):
        everything = bytes(range(256))
        for turn in range(2):
            remote("up", TTY)
            channel = bus.open(TTY, timeout=WAIT)
            assert isinstance(channel, TtyChannel) and (channel.name, channel.mtu) == (TTY, 496)
            assert channel.dst == int(remote("address", TTY))
            assert not readable(channel) and channel.try_recv() is None
            with raises(rpmsgx.Timeout, "no message within 0.05 s"):
                channel.recv(timeout=0.05)
            channel.send(b"")
            for piece in (everything, everything[::-1], b"\x03\x04\r\n", bytes(496)):
                channel.send(piece)
                assert readable(channel, WAIT)
                got = b""
                while len(got) < len(piece):
                    got += channel.recv(timeout=WAIT)
                assert got == piece
            with raises(rpmsgx.MessageSize):
                channel.send(bytes(497))
            with raises(rpmsgx.Timeout):
                bus.open(TTY, timeout=0.02)
            with thread(lambda: remote("down", TTY, 0.05)):
                if turn:
                    assert list(channel) == []
                else:
                    with raises(rpmsgx.ChannelRemoved, repr(TTY)):
                        quick(partial(channel.recv, timeout=WAIT))
            for call in (channel.send, channel.try_send):
                with raises(rpmsgx.ChannelRemoved):
                    call(b"x")
            channel.close()


def tty_full(folder: str) -> None:
    with both() as (bus, remote):
        remote("up", TTY)
        with bus.open(TTY, timeout=WAIT) as channel:
            go = Path(folder, "go")
            remote._control.send(f"wait {go}".encode())
            until(Path(f"{go}-begun").exists)
            sent = 0
            while channel.try_send(b"%3d" % sent):
                sent += 1
                assert sent <= 256
            with raises(rpmsgx.Timeout, "no buffer back"):
                channel.send(b"late", timeout=0.05)
            go.touch()
            got = b""
            while len(got) < 3 * sent:
                got += channel.recv(timeout=WAIT)
            assert got == b"".join(b"%3d" % i for i in range(sent))


def callbacks(_: str = "") -> None:
    with both() as (bus, remote):
        remote("up", RAW)
        dst = int(remote("address", RAW))
        got: list[bytes] = []

        def take(endpoint: Endpoint, data: bytes, src: int) -> None:
            assert src == ANY
            got.append(data)
            with raises(rpmsgx.StateError, "inside a callback"):
                bus.poll()
            if data == b"error":
                raise ZeroDivisionError
            if data == b"again":
                endpoint.send(b"from the callback")
            if data == b"close":
                endpoint.close()

        endpoint = bus.create_endpoint(dst=dst, callback=take)
        while bus.poll():
            pass
        with raises(rpmsgx.StateError, "callback"):
            endpoint.recv(timeout=0)
        endpoint.send_many([b"one", b"again"])
        handled = 0
        while handled < 3:
            assert readable(bus, WAIT)
            handled += bus.poll()
        endpoint.send_many([b"error", b"after"])
        with raises(ZeroDivisionError):
            while True:
                bus.poll(timeout=WAIT)
        until(lambda: bus.poll(timeout=WAIT) == 0 or got[-1] == b"after")
        endpoint.send_many([b"close", b"never"])
        until(lambda: bus.poll(timeout=0.05) == 0 and got[-1] == b"close")
        assert got == [b"one", b"again", b"from the callback", b"error", b"after", b"close"]
        with bus.create_endpoint(dst=dst, callback=take):
            Path(DRIVER, "unbind").write_text("virtio0")
            until(lambda: bus.poll() == 0 and not readable(bus))  # it does not stay readable
            Path(DRIVER, "bind").write_text("virtio0")


def in_a_loop(_: str = "") -> None:
    async def main() -> None:
        async with asyncio.timeout(2 * WAIT), rpmsgx.aio.open("char:") as bus:
            control = await bus.open("control")
            new: list[str] = []
            bus.on_new_channel = lambda channel: new.append(channel.name)

            async def tell(*words: object) -> str:
                await control.send(" ".join(map(str, words)).encode())
                return (await control.recv()).decode()

            await tell("reset")
            for name in (RAW, OTHER, TTY):
                opening = asyncio.create_task(bus.open(name))
                await tell("up", name)
                endpoint = await opening
                await endpoint.send(b"hello")
                assert await endpoint.recv() == b"hello"
                with raises(TimeoutError):
                    await endpoint.recv(timeout=0.02)
                with raises(TimeoutError):
                    await bus.open(name, timeout=0.02)
                receiving = asyncio.create_task(endpoint.recv())
                await asyncio.sleep(0)
                await endpoint.send(b"there")
                assert await receiving == b"there"

                async def collect(endpoint: Any = endpoint) -> list[bytes]:
                    return [message async for message in endpoint]

                collecting = asyncio.create_task(collect())
                await tell("down", name)
                assert await collecting == []
                endpoint.close()
            assert new[-3:] == [RAW, OTHER, TTY]

            await tell("up", OTHER)
            endpoint = await bus.open(OTHER)
            tasks = [asyncio.create_task(endpoint.send(b"%d" % i)) for i in range(1000)]
            got = [await endpoint.recv() for _ in range(1000)]
            await asyncio.gather(*tasks)
            assert got == [b"%d" % i for i in range(1000)]
            receiving = asyncio.create_task(endpoint.recv())
            await asyncio.sleep(0)
            endpoint.close()
            with raises(rpmsgx.Closed):
                await receiving
            waiting = asyncio.create_task(bus.open("never"))
            await asyncio.sleep(0)
        with raises(rpmsgx.Closed):
            await waiting

    asyncio.run(main())


def forked(_: str = "") -> None:
    with both() as (bus, remote):
        remote("up", RAW)
        remote("up", OTHER)
        endpoints = [bus.open(name, timeout=WAIT) for name in (RAW, OTHER)]
        before = nodes()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for call in (endpoints[0].recv, endpoints[1].fileno, bus.poll, bus.fileno):
                    with raises(rpmsgx.StateError, "before a fork"):
                        call()
                assert not any(is_node(fd, f"/dev/{name}") for fd in os.listdir("/proc/self/fd") for name in before)
                bus.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert nodes() == before
        for endpoint in endpoints:
            echoes(endpoint, b"still here")


def not_root(_: str = "") -> None:
    with both() as (bus, remote):
        remote("up", RAW)
        remote("up", OTHER)
        remote("up", TTY)
        until(lambda: len(bus.channels) == 4 and os.path.exists("/dev/ttyRPMSG0"))
        before = nodes()
        bus.open(RAW).close()
        os.chmod("/dev/ttyRPMSG0", 0o600)

        def denied() -> None:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with rpmsgx.open("char:") as bus:
                with raises(rpmsgx.Timeout, "udev"):
                    bus.open(RAW, timeout=0)
                raw, other = (partial(raises_denied, bus, name, "rpmsg*") for name in (RAW, OTHER))
                with thread(raw), thread(other):
                    raises_denied(bus, TTY, "ttyRPMSG*")
                with raises(PermissionError, "udev"):
                    bus.create_endpoint()

        def allowed() -> None:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with rpmsgx.open("char:") as bus:
                with bus.open(RAW) as endpoint:
                    echoes(endpoint, b"by udev")
                with raises(PermissionError, "udev"):  # the new node is root's: there is no udev here
                    bus.open(OTHER)
                with raises(PermissionError, "only root can announce"):
                    bus.create_endpoint(OTHER)

        ended_well(child(denied))
        assert nodes() == before
        for node in before:
            os.chmod(f"/dev/{node}", 0o666)
        ended_well(child(allowed))
        (made,) = nodes() - before
        with thread(lambda: ended_well(child(lambda: by_udev(made)))):  # what that left is given away a moment later
            time.sleep(0.2)
            os.chmod(f"/dev/{made}", 0o666)


def raises_denied(bus: Bus, name: str, kernel: str) -> None:
    with raises(PermissionError, "run as root", f'KERNEL=="{kernel}"', "udev"):
        bus.open(name, timeout=WAIT)


def by_udev(made: str) -> None:
    os.setresuid(NOBODY, NOBODY, NOBODY)
    with rpmsgx.open("char:") as bus, bus.open(OTHER) as endpoint:
        echoes(endpoint, b"by udev")


def two_links(_: str = "") -> None:
    with both("virtio0") as (one, first), both("virtio1") as (other, second), rpmsgx.open("char:") as all_:
        first("up", RAW)
        second("up", OTHER)
        with raises(rpmsgx.Timeout):
            other.open(RAW, timeout=0.02)
        with raises(rpmsgx.Timeout):
            one.open(OTHER, timeout=0.02)
        for bus, name in ((one, RAW), (other, OTHER), (all_, RAW), (all_, OTHER)):
            with bus.open(name, timeout=WAIT) as endpoint:
                echoes(endpoint, b"hello")
        with raises(rpmsgx.StateError, "char:virtio0 or char:virtio1"):
            all_.create_endpoint(dst=1)
        with one.create_endpoint(dst=int(first("address", RAW))) as endpoint:
            echoes(endpoint, b"hello")
        second("up", RAW)
        until(lambda: len(other.channels) == 3)
        oldest, newest = all_.open(RAW), all_.open(RAW)
        echoes(oldest, b"1")
        echoes(newest, b"2")
        assert (first("sender"), second("sender")) == (str(oldest.addr), str(newest.addr))
    with raises(FileNotFoundError, "'virtio7'", "virtio0, virtio1"):
        rpmsgx.open("char:virtio7")


def address_of(name: str) -> int:
    """The address of an endpoint that another process has made."""
    for directory in Path("/sys/class/rpmsg").glob("rpmsg[0-9]*"):
        if (directory / "name").read_text().strip() == name:
            return int((directory / "src").read_text())
    raise AssertionError(name)


def commands(_: str = "") -> None:
    def run(*words: str, status: int = 0) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert main(words) == status, said.getvalue()
        return said.getvalue()

    with both() as (bus, remote):
        for name in (RAW, OTHER, TTY):
            remote("up", name)
        until(lambda: len(bus.channels) == 4)
        found = {row["name"]: row for row in json.loads(run("ls", "--json"))["rpmsg_devices"]}
        assert found[TTY]["driver"] == "rpmsg_tty" and found[TTY]["node"] == "ttyRPMSG0"
        assert found[RAW]["driver"] == "rpmsg_chrdev" and found[RAW]["node"][:5] == "rpmsg"
        assert found[OTHER]["driver"] == found[OTHER]["node"] == "" and found["rpmsg_ctrl"]["node"] == "rpmsg_ctrl0"
        assert "ttyRPMSG0" in (text := run("ls")) and " char:" in text
        for name in (RAW, OTHER, TTY):
            text = run("ping", "char:", "--name", name, "-c", "20", "-i", "0", "-s", "400", "--wait", "5")
            assert "20 sent, 20 received, 0 lost" in text
        assert "2 received" in run("ping", "char:virtio0", "--dst", remote("address", RAW), "-c", "2", "-i", "0")
        before = int(remote("count", OTHER))
        run("send", "char:", "hello", "--name", OTHER, "--timeout", "5")
        until(lambda: int(remote("count", OTHER)) == before + 1)

        remote("silent", "lines")
        listen = [sys.executable, "-m", "rpmsgx", "listen", "char:", "--name", "lines", "-c", "3", "--hex", "--echo"]
        with subprocess.Popen(listen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listening:
            assert listening.stdout is not None and listening.stderr is not None
            for text in ("one", "two"):  # the service goes in between
                assert (line := listening.stderr.readline()).startswith("listening on char: to 'lines' at 0x"), line
                remote("say", "lines", address_of("lines"), text)
                assert listening.stdout.readline() == f"{text.encode().hex()}\n"
                if text == "one":
                    remote("down", "lines")
                    remote("silent", "lines")
            remote("say", "lines", address_of("lines"), "three")
            assert listening.stdout.readline() == f"{b'three'.hex()}\n"
            assert listening.wait(WAIT) == 0 and listening.stderr.read() == "3 messages\n"
        said = run("ping", "char:nowhere", status=1)
        assert "'nowhere'" in said and "virtio0" in said


class Core(Doorbell):
    """The doorbell of a core of module rproc_sim: words to read and to write."""

    STOPPED = 0xFFFFFFF0  # enum rproc_sim_event

    def __init__(self) -> None:
        self.fd = os.open("/dev/rproc_sim0", os.O_RDWR | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self.fd

    def kick(self, notifyid: int) -> None:
        os.write(self.fd, struct.pack("I", notifyid))

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            words = os.read(self.fd, 4096)
            self.lost += sum(word == self.STOPPED for (word,) in struct.iter_unpack("I", words))


def core() -> None:
    """What runs on the core: a device's bus over the kernel's memory, and a service that echoes."""
    place, da, _ = (int(word, 0) for word in Path("/sys/devices/platform/rproc-sim.0/memory").read_text().split())
    doorbell = Core()
    # A core is a bus master. The guest's own memory lies behind a gap of random size.
    end = int(re.findall(r"spanned +(\d+)", Path("/proc/zoneinfo").read_text())[0]) * mmap.PAGESIZE
    start = max(0, end - (96 << 20))
    memory = mmap.mmap(doorbell.fd, end - start, offset=start)
    ram = Region("ram", memory, da=start)
    table = place + sim_firmware.TABLE - da - start
    vdev = next(entry for entry in parse(memory[table : table + 4096]).entries if isinstance(entry, Vdev))
    space = AddressSpace(ram)
    link = VdevLink("device", "core", space=space, region=ram, offset=table + vdev.offset, doorbell=doorbell)

    def echo(endpoint: Any, data: bytes, src: int) -> None:
        endpoint.send_to(data, src)

    with sync.Bus(link) as bus:
        bus.create_endpoint(OTHER, callback=echo)
        bus.create_endpoint(RAW, callback=echo)
        while True:
            bus.poll(timeout=None)


def remoteproc(_: str = "") -> None:
    """The kernel's remoteproc boots and stops a remote; its services come and go with it."""
    with LinuxRemoteproc("sim0") as rproc, rpmsgx.open("char:sim0") as bus, rpmsgx.open("char:sim1") as none:
        rproc.boot()  # loads the table that the core reads
        pid = os.fork()
        if pid == 0:
            try:
                core()
            finally:
                os._exit(1)
        try:
            for turn in range(3):
                endpoints = [bus.open(name, timeout=WAIT) for name in (OTHER, RAW)]
                for endpoint in endpoints:
                    for _ in range(100):
                        echoes(endpoint, b"%d" % turn)
                with raises(rpmsgx.Timeout, "announced nothing"):
                    none.open(OTHER, timeout=0)
                rproc.shutdown()
                for endpoint in endpoints:
                    with raises(rpmsgx.ChannelRemoved):
                        endpoint.recv(timeout=WAIT)
                rproc.boot()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        rproc.shutdown()
    with raises(FileNotFoundError, "'sim7'", "sim0, sim1"):
        rpmsgx.open("char:sim7")
