"""Sources of presence against the real thing: sockets, processes, files, channels, and what becomes of them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path as Folder
from typing import TypeVar

import pytest
from support import kernel_has

import rpmsgx
from rpmsgx.notify.doorbell import readable
from rpmsgx.remoteproc import qrtr
from rpmsgx.remoteproc.presence import (
    Channel,
    Path,
    Presence,
    Process,
    QrtrService,
    UnixSocket,
    presence,
)

pytestmark = pytest.mark.timeout(60)
WAIT = 10.0
Source = TypeVar("Source", bound=Presence)

# Says a word on its connections, never reads from them, and dies by itself never.
SERVER = """
import os, socket, sys
path = sys.argv[1]
if os.path.lexists(path):
    os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
print("listening", flush=True)
peers = []
while True:
    peer, _ = server.accept()
    peer.send(b"hello")
    peers.append(peer)
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def open_source() -> Iterator[Callable[[Source], Source]]:
    with contextlib.ExitStack() as stack:

        def make(source: Source) -> Source:
            stack.enter_context(source)
            stack.callback(source.close)
            return source

        yield make


@contextlib.contextmanager
def server(path: Folder) -> Iterator[subprocess.Popen[bytes]]:
    """A process that accepts connections at `path`."""
    with subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        try:
            yield process
        finally:
            process.kill()


def until(source: Presence, there: bool) -> None:
    """Wait on the descriptor until the answer is `there`."""
    deadline = time.monotonic() + WAIT
    while source.present() is not there:
        assert readable(source.fileno(), deadline - time.monotonic()), "nothing wakes"


def stays(source: Presence, there: bool) -> None:
    """The answer is `there`, and it comes to rest with it, whatever others do meanwhile in /tmp."""
    for _ in range(100):
        assert source.present() is there
        if not readable(source.fileno(), 0.005):
            return
    pytest.fail("it wakes again and again")


# -- a path


@pytest.mark.lesson("20")
def test_lesson_20_a_path_that_does_not_exist_yet(tmp_path: Folder, open_source: Callable[[Path], Path]) -> None:
    source = open_source(Path(tmp_path / "late" / "file"))
    fd = source.fileno()
    stays(source, False)
    for _ in range(2):
        (tmp_path / "late").mkdir()
        stays(source, False)
        for make in (Folder.touch, Folder.mkdir, lambda path: path.symlink_to("/")):
            make(tmp_path / "late" / "file")
            until(source, True)
            os.rename(tmp_path / "late" / "file", tmp_path / "away")
            until(source, False)
            os.rename(tmp_path / "away", tmp_path / "late" / "file")
            until(source, True)
            if make is Folder.mkdir:
                (tmp_path / "late" / "file").rmdir()
            else:
                (tmp_path / "late" / "file").unlink()
            until(source, False)
        (tmp_path / "late").rmdir()
        stays(source, False)
    assert source.fileno() == fd and source.name == f"path:{tmp_path}/late/file"


def test_a_path_in_proc(open_source: Callable[[Path], Path]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        source = open_source(Path(f"/proc/{process.pid}"))
        until(source, True)
        process.communicate(b"\n")
    until(source, False)


# -- a Unix socket


@pytest.mark.lesson("19")
def test_lesson_19_a_server_that_is_killed_and_comes_back(
    tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]
) -> None:
    source = open_source(UnixSocket(tmp_path / "late" / "socket"))
    fd = source.fileno()
    stays(source, False)
    (tmp_path / "late").mkdir()
    stays(source, False)
    for _ in range(3):
        with server(tmp_path / "late" / "socket") as process:
            until(source, True)
            stays(source, True)
            process.send_signal(signal.SIGKILL)
            until(source, False)
            assert (tmp_path / "late" / "socket").is_socket()  # that it is there means nothing
    (tmp_path / "late" / "socket").unlink()
    stays(source, False)
    assert source.fileno() == fd and source.name == f"unix:{tmp_path}/late/socket"


@pytest.mark.lesson("19")
def test_lesson_19_a_socket_counts_from_when_it_listens(
    tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]
) -> None:
    """Nothing but trying tells that listen() was called; so it is tried, less and less often."""
    source = open_source(UnixSocket(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        assert source.present() is False
        wakes = 0
        end = time.monotonic() + 0.5
        while (left := end - time.monotonic()) > 0:
            if readable(source.fileno(), left):
                assert source.present() is False
                wakes += 1
        assert 1 <= wakes < 50
        one.listen()
        until(source, True)
        one.accept()[0].close()
        until(source, True)
    until(source, False)


def test_a_server_that_hangs_up_on_everybody_is_there(
    tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]
) -> None:
    source = open_source(UnixSocket(tmp_path / "socket"))
    accepted = 0
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        one.listen()
        until(source, True)
        end = time.monotonic() + 0.5
        while (left := end - time.monotonic()) > 0:
            for ready in select.select([source, one], [], [], left)[0]:
                if ready is one:
                    one.accept()[0].close()
                    accepted += 1
                else:
                    assert source.present() is True
        assert 2 <= accepted < 20
    until(source, False)


def test_a_server_without_room(tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]) -> None:
    """One that listens and accepts nobody has not shown that it is there; one that was there has not gone."""
    source = open_source(UnixSocket(tmp_path / "socket"))
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(socket.socket(socket.AF_UNIX))
        one.bind(str(tmp_path / "socket"))
        one.listen(0)

        def fill() -> None:
            while True:
                peer = stack.enter_context(socket.socket(socket.AF_UNIX))
                peer.setblocking(False)
                if peer.connect_ex(str(tmp_path / "socket")) == errno.EAGAIN:
                    return

        def accept_all() -> None:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(one.accept()[0])

        fill()
        assert source.present() is False
        accept_all()
        until(source, True)
        fill()
        (tmp_path / "socket").chmod(0o600)  # makes it look again
        for _ in range(3):
            assert readable(source.fileno(), WAIT)
            assert source.present() is True
        accept_all()
        stays(source, True)
    until(source, False)


def test_whose_path_goes_is_gone(tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]) -> None:
    source = open_source(UnixSocket(tmp_path / "socket"))
    with server(tmp_path / "socket") as old:
        until(source, True)
        (tmp_path / "socket").unlink()
        until(source, False)
        with server(tmp_path / "socket"):
            until(source, True)
            old.kill()
            stays(source, True)
        until(source, False)


@pytest.mark.hostile
def test_a_server_that_never_stops_talking(
    tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]
) -> None:
    source = open_source(UnixSocket(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        one.listen()
        until(source, True)
        peer, _ = one.accept()
        with peer:
            peer.settimeout(WAIT)
            for _ in range(100):
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        peer.send(bytes(65536))
                assert readable(source.fileno(), WAIT) and source.present() is True
            while readable(source.fileno(), 0.01):
                assert source.present() is True
    until(source, False)


@pytest.mark.hostile
def test_what_is_no_socket(tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]) -> None:
    source = open_source(UnixSocket(tmp_path / "socket"))
    for make in (Folder.touch, Folder.mkdir, os.mkfifo):
        make(tmp_path / "socket")
        assert source.present() is False
        if make is Folder.mkdir:
            shutil.rmtree(tmp_path / "socket")
        else:
            (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "socket"))
        assert source.present() is False
        (tmp_path / "socket").unlink()
    with server(tmp_path / "socket"):
        until(source, True)


def test_without_descriptors_nothing_is_known(
    tmp_path: Folder, open_source: Callable[[UnixSocket], UnixSocket]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    source = open_source(UnixSocket(tmp_path / "socket"))
    with server(tmp_path / "socket"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert source.present() is False
            with pytest.raises(OSError) as error:
                UnixSocket(tmp_path / "other")
            assert error.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(source, True)
        (tmp_path / "socket").chmod(0o600)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert source.present() is True
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_socket_path_that_is_too_long(tmp_path: Folder) -> None:
    with pytest.raises(ValueError, match="at most 107 bytes"):
        UnixSocket("/" + 107 * "x")
    UnixSocket("/" + 106 * "x").close()


# -- a process


@pytest.mark.lesson("19")
@pytest.mark.parametrize("how", ["pid", "pidfd"])
def test_lesson_19_a_process_that_is_killed(how: str, open_source: Callable[[Process], Process]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        if how == "pid":
            source = open_source(Process(process.pid))
            assert source.name == f"pid:{process.pid}"
        else:
            pidfd = os.pidfd_open(process.pid)
            source = open_source(Process(pidfd=pidfd))
        stays(source, True)
        process.send_signal(signal.SIGKILL)
        until(source, False)  # not waited for yet: a process that is dead is gone
        stays(source, False)
        process.wait()
    stays(source, False)
    if how == "pidfd":
        os.close(pidfd)  # it has its own


def test_a_process_that_there_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError, match=f"no process {process.pid}"):
        Process(process.pid)
    for arguments in ({}, {"pid": 1, "pidfd": 1}, {"pid": 0}, {"pid": -1}):
        with pytest.raises(ValueError, match="pid"):
            Process(**arguments)
    with pytest.raises(OSError):
        Process(pidfd=-1)


# -- a QRTR service


def packet(*fields: int) -> bytes:
    return struct.pack("<5I", *fields)


# What Linux 6.1 sent for a lookup of service 14: the server that there was, the end of the list; then a second one
# came, the first withdrew, the second's process died.
RECORDED: list[tuple[str, set[tuple[int, int]]]] = [
    ("040000000e000000010000000100000000400000", {(1, 0x4000)}),
    ("0400000000000000000000000000000000000000", {(1, 0x4000)}),
    ("040000000e000000020000000100000002400000", {(1, 0x4000), (1, 0x4002)}),
    ("050000000e000000010000000100000000400000", {(1, 0x4002)}),
    ("050000000e000000020000000100000002400000", set()),
]


def test_what_the_name_service_tells() -> None:
    servers = qrtr.Servers(14)
    for data, there in RECORDED:
        servers.feed(bytes.fromhex(data))
        assert servers == there
    assert qrtr.new_lookup(14, 0x101).hex() == "0a0000000e000000010100000000000000000000"


def test_servers_of_one_instance() -> None:
    servers = qrtr.Servers(14, 2)
    for data, _ in RECORDED[:3]:
        servers.feed(bytes.fromhex(data))
    assert servers == {(1, 0x4002)}
    for other in ((5, 14, 1, 1, 0x4002), (5, 13, 2, 1, 0x4002), (5, 14, 2, 1, 2), (4, 14, 1, 5, 5)):
        servers.feed(packet(*other))
        assert servers == {(1, 0x4002)}
    servers.feed(bytes.fromhex(RECORDED[-1][0]))
    assert not servers


@pytest.mark.hostile
def test_packets_that_are_none() -> None:
    servers = qrtr.Servers(14)
    good = packet(4, 14, 1, 1, 1)
    for bad in (b"", good[:-1], packet(6, 14, 1, 1, 1), packet(1, 14, 1, 1, 1), bytes(1000)):
        servers.feed(bad)
        assert not servers
    for port in range(100_000):
        servers.feed(packet(4, 14, 1, 1, port))
    assert len(servers) <= 1024
    servers.feed(packet(5, 14, 1, 1, 1))
    assert (1, 1) not in servers and (1, 0) in servers


def qrtr_is_missing() -> str:
    try:
        socket.socket(socket.AF_QIPCRTR, socket.SOCK_DGRAM).close()
    except OSError as error:
        return f"QRTR: {error}"
    return ""


def test_a_kernel_without_qrtr() -> None:
    if not qrtr_is_missing():
        pytest.skip("this kernel has QRTR")
    with pytest.raises(OSError, match="no QRTR") as error:
        QrtrService(14)
    assert error.value.errno == errno.EAFNOSUPPORT


@pytest.mark.lesson("19")
def test_lesson_19_a_qrtr_service_that_is_killed_and_comes_back() -> None:
    kernel_has(not qrtr_is_missing(), qrtr_is_missing())
    offer = (
        "import socket, struct\n"
        "s = socket.socket(socket.AF_QIPCRTR, socket.SOCK_DGRAM)\n"
        "s.sendto(struct.pack('<5I', 4, 0x7ffe, 3, 0, 0), (s.getsockname()[0], 0xfffffffe))\n"
        "input()"
    )
    with (
        QrtrService(0x7FFE) as source,
        QrtrService(0x7FFE, 4) as other,
        socket.socket(socket.AF_QIPCRTR, socket.SOCK_DGRAM) as liar,
    ):
        stays(source, False)
        for port in range(0x4000, 0x4040):  # those that sockets are given
            with contextlib.suppress(OSError):
                liar.sendto(packet(4, 0x7FFE, 4, 1, 1), (liar.getsockname()[0], port))
        stays(source, False)
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", offer], stdin=subprocess.PIPE) as process:
                until(source, True)
                process.kill()
                until(source, False)
        stays(other, False)


@pytest.mark.parametrize("numbers", [(0,), (-1,), (1 << 32,), (1, -1), (1, 1 << 32)])
def test_numbers_that_no_service_has(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="qrtr service"):
        QrtrService(*numbers)


# -- a channel


@pytest.mark.lesson("19")
def test_lesson_19_a_channel_counts_while_it_is_announced(
    tmp_path: Folder, open_source: Callable[[Channel], Channel]
) -> None:
    """Whoever drives the remote takes his time: the source looks again after he has."""
    url = f"file:{tmp_path}/link"
    with rpmsgx.open(url, role="driver") as driver, rpmsgx.open(url, role="device") as device:
        source = open_source(Channel(driver, "storage"))
        fd = source.fileno()

        def drive(there: bool) -> None:
            """Ask each only when it wakes, and the source first: it is then too early."""
            deadline = time.monotonic() + WAIT
            while True:
                ready = select.select([source, driver, device], [], [], deadline - time.monotonic())[0]
                assert ready, "nothing wakes"
                if source in ready and source.present() is there:
                    return
                for bus in (driver, device):
                    if bus in ready:
                        bus.poll()

        assert source.present() is False
        with device.create_endpoint("other"):
            for _ in range(3):
                with device.create_endpoint("storage"):
                    drive(True)
                drive(False)
        stays(source, False)
        with device.create_endpoint("storage"):
            drive(True)
            driver.close()
            stays(source, False)
        assert source.fileno() == fd and source.name == "channel:storage"


# -- in general


class Weekend(Presence):
    """A user's own."""

    name = "weekend"

    def fileno(self) -> int:
        return 0

    def present(self) -> bool:
        return time.localtime().tm_wday >= 5


def test_a_source_of_a_users_own() -> None:
    with Weekend() as source:
        assert source.present() in (True, False)


def test_the_base_is_abstract() -> None:
    with Presence() as source:
        for method in (source.fileno, source.present):
            with pytest.raises(NotImplementedError):
                method()


def test_readiness_stays_until_it_is_asked(tmp_path: Folder, open_source: Callable[[Presence], Presence]) -> None:
    """Through any number of polls, of other epolls as well."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        sources = [
            open_source(Path(tmp_path / "socket")), open_source(UnixSocket(tmp_path / "socket")),
            open_source(Process(process.pid)),
        ]  # fmt: skip
        for source in sources:
            source.present()
        with select.epoll() as outer, server(tmp_path / "socket"):
            for source in sources:
                outer.register(source, select.EPOLLIN)
            process.kill()
            process.wait()
            waiting = {source.fileno() for source in sources}
            deadline = time.monotonic() + WAIT
            while {fd for fd, _ in outer.poll(0.01)} != waiting:
                assert time.monotonic() < deadline
            for _ in range(5):
                assert {fd for fd, _ in outer.poll(0)} == waiting
            assert [source.present() for source in sources] == [True, True, False]


def test_sources_by_their_text(tmp_path: Folder, open_source: Callable[[Presence], Presence]) -> None:
    for text, kind in {f"unix:{tmp_path}/s": UnixSocket, f"path:{tmp_path}/a:b": Path, "pid:1": Process}.items():
        source = open_source(presence(text))
        assert type(source) is kind and source.name == text
    if qrtr_is_missing():
        for text in ("qrtr:14", "qrtr:14:1", "qrtr:0xe:0x101"):
            with pytest.raises(OSError, match="no QRTR"):
                presence(text)
    else:
        assert open_source(presence("qrtr:0xe:0x101")).name == "qrtr:14:257"


@pytest.mark.parametrize(
    "text",
    [
        "", "unix", "unix:", "path:", "pid:", "pid:x", "pid:0", "pid:-1", "qrtr:", "qrtr:x", "qrtr:1:x", "qrtr:0",
        "qrtr:1:2:3", "channel:x", "/run/x", "Unix:/run/x", "path:a\0b", "unix:/" + 200 * "x",
    ],
)  # fmt: skip
def test_texts_that_name_none(text: str) -> None:
    with pytest.raises(ValueError, match="presence "):
        presence(text)
