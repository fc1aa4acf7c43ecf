# SPDX-License-Identifier: BSD-3-Clause
"""A native remote that outlives its host: found, attached to, left and stopped by other processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support_boards import SAMPLE, TIMEOUT, Driver, boot, died, echo, loaded, make, rings

import rpmsgx
from rpmsgx.remoteproc import native
from rpmsgx.remoteproc.handover import HELLO
from rpmsgx.remoteproc.native import NativePlatform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A host: boots, does as it is told on its command line, then waits to be told to end.
HOST = """
import sys
sys.path.insert(0, {tests!r})
from support_boards import Driver, boot
from rpmsgx.remoteproc.native import NativePlatform
platform = NativePlatform({app!r}, socket={path!r})
if platform.running:
    platform.attach()
else:
    driver = boot(platform, {app!r})
    driver.announced({names})
{then}
print(platform.pid, flush=True)
sys.stdin.readline()
"""
DETACH = "driver.status(0); platform.detach(20)"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    make("process").close()  # skips where there is no native remote
    where = str(tmp_path / "remote")
    yield where
    with contextlib.suppress(rpmsgx.Error, OSError), NativePlatform(socket=where) as platform:
        platform.stop()


class Host:
    """A process that booted a remote at `path`; `pid` is the remote's."""

    def __init__(self, path: str, then: str = "", app: str = "sample", names: int = 2) -> None:
        tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST.format(tests=tests, path=path, then=then, app=app, names=names)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate(b"\n", timeout=TIMEOUT)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT)


def gone(pid: int) -> bool:
    """Whether the process ends within the time that all tests wait for anything."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], TIMEOUT)[0])
    finally:
        os.close(pidfd)


def serves(platform: NativePlatform) -> Driver:
    """A driver on the running remote, which answers."""
    driver = Driver(platform, platform.image("sample"))
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE
    echo(driver, 10)
    return driver


@pytest.mark.lesson("23")
@pytest.mark.parametrize("end", ["kill", "detach and exit", "detach and kill"])
def test_lesson_23_the_remote_outlives_its_host(path: str, end: str) -> None:
    host = Host(path, DETACH if "detach" in end else "")
    host.end() if end.endswith("exit") else host.kill()
    with NativePlatform(socket=path) as platform:
        assert platform.running and platform.pid == host.pid and platform.crash is None
        assert platform.identity == path
        assert platform.loaded_table == (0x10000000, 140)
        platform.prepare()
        if end == "kill":  # it still has the rings of the host that died
            table = platform.space.view(*platform.loaded_table)
            assert table[24 + 24] == 7
            table[24 + 24] = 0
            platform.detach(TIMEOUT)
        platform.attach()
        driver = serves(platform)
        assert "sample: detached\n" in driver.trace()
        platform.stop()
        assert not platform.running and platform.loaded_table is None
        with pytest.raises(rpmsgx.StateError, match="nothing to attach to"):
            platform.attach()
        assert not os.path.exists(path)
    assert gone(host.pid)


@pytest.mark.lesson("07")
def test_lesson_07_attach_and_detach_from_one_process_after_the_other(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        driver = boot(platform)
        driver.announced(2)
        image = platform.image(None)
        assert image.resource_table is not None
        da, clean = image.resource_table
        pid = platform.pid
        driver.status(0)
        platform.detach(TIMEOUT)
        platform.space.write(da, clean)
    for _ in range(5):
        with NativePlatform(socket=path) as platform:
            assert platform.pid == pid
            platform.attach()
            assert platform.space.read(da, len(clean)) == clean
            serves(platform).status(0)
            platform.detach(TIMEOUT)
            platform.space.write(da, clean)
            platform.unprepare()


def test_it_stands_alone(path: str) -> None:
    host = Host(path, DETACH)
    assert os.getsid(host.pid) == host.pid
    for fd in range(3):
        assert os.readlink(f"/proc/{host.pid}/fd/{fd}") == "/dev/null"
    assert os.readlink(f"/proc/{host.pid}/cwd") == "/"
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    host.end()
    os.kill(host.pid, signal.SIGINT)  # Ctrl-C is the host's to answer
    with NativePlatform(socket=path) as platform:
        platform.attach()
        serves(platform)


def test_who_closes_stops_only_what_it_holds(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        boot(platform).announced(2)
        with NativePlatform(socket=path) as other:  # never attached
            assert other.running
        platform.detach(TIMEOUT)
        pid = platform.pid
    assert pid is not None
    with NativePlatform(socket=path) as platform:
        assert platform.pid == pid
        platform.attach()
    assert gone(pid)
    assert not os.path.exists(path)


@pytest.mark.lesson("03")
@pytest.mark.parametrize("then, stays", [("", False), (DETACH, True), (f"{DETACH}; platform.attach()", False)])
def test_lesson_03_forgotten_at_exit(path: str, then: str, stays: bool) -> None:
    host = Host(path, then)
    host.end()
    with NativePlatform(socket=path) as platform:
        assert platform.running == stays
        assert not stays or platform.pid == host.pid


@pytest.mark.parametrize("command", [b"u", b"a", b"f", "SIGTERM", "SIGKILL"])
def test_a_crash_is_seen_and_removes_nothing(path: str, command: bytes | str) -> None:
    host = Host(path, app="crash", names=1)
    host.kill()
    with NativePlatform(socket=path) as platform:
        platform.attach()
        driver = Driver(platform, platform.image(None))
        driver.begin()
        driver.kick()
        driver.announced(1)
        if isinstance(command, str):
            os.kill(host.pid, getattr(signal, command))
        else:
            driver.send(1024, command)
        assert f"process {host.pid} died" in died(platform)
        assert not platform.running and platform.pid is None and platform.loaded_table is None
        assert isinstance(command, str) or "crash: fault" in driver.trace()
        with pytest.raises(rpmsgx.StateError):
            platform.detach(TIMEOUT)
        assert os.path.exists(path)  # a dead remote's socket file is replaced
        platform.stop()
        assert platform.crash is not None
        assert boot(platform).announced(2) == SAMPLE
        assert platform.crash is None
        assert platform.pid is not None
        os.kill(platform.pid, signal.SIGSEGV)
        assert died(platform) == "killed by signal 11 (SIGSEGV)"  # which a parent is told


def test_a_remote_that_ends_while_nobody_holds_it_has_not_crashed(path: str) -> None:
    host = Host(path, DETACH)
    with NativePlatform(socket=path) as platform:
        os.kill(host.pid, signal.SIGKILL)
        assert rings(platform)
        assert not platform.running and platform.crash is None
        host.end()


def test_a_remote_that_came_later_is_found_by_prepare(path: str) -> None:
    with NativePlatform("flood", socket=path, desc_addr="da") as platform:
        assert not platform.running
        platform.prepare()
        assert not platform.running
        fileno, before = platform.doorbell.fileno(), platform.shared
        host = Host(path, DETACH)
        assert platform.running
        with pytest.raises(rpmsgx.StateError, match="running already"):
            platform.start(0)
        platform.prepare()
        assert platform.pid == host.pid
        assert (platform.app, platform.desc_addr) == ("sample", "pa")  # the remote's, not what was asked for
        assert platform.doorbell.fileno() == fileno
        assert before.closed and platform.shared is not before
        platform.attach()
        serves(platform)
        host.end()


def test_a_bystander_takes_no_rings(path: str) -> None:
    with NativePlatform(socket=path) as platform, NativePlatform(socket=path) as other:
        driver = boot(platform)
        driver.announced(2)
        other.prepare()
        while rings(platform, 0.05):
            platform.doorbell.drain()
        driver.used_event(0, driver.last)
        driver.send(1024, b"x")
        assert rings(platform)
        assert not rings(other, 0.05)
        other.doorbell.drain()
        assert rings(platform, 0)
        assert driver.recv()[2] == b"x"
        # Once the remote was handed over it is the other way round.
        driver.status(0)
        platform.detach(TIMEOUT)
        other.attach()
        serves(other)
        driver.kick()
        platform.doorbell.drain()
        assert not rings(platform, 0)


@pytest.mark.parametrize("times", [1, 3])
def test_the_next_start_is_another_remote_in_the_same_memory(path: str, times: int) -> None:
    with NativePlatform(socket=path) as platform:
        pids = set()
        for _ in range(times):
            boot(platform).announced(2)
            pids.add(platform.pid)
            platform.stop()
            assert not os.path.exists(path)
        assert len(pids) == times


def test_a_hung_remote_is_found_and_killed(path: str) -> None:
    host = Host(path, "driver.send(1024, b'h'); driver.until('crash: hang')", app="crash", names=1)
    host.kill()
    with NativePlatform(socket=path) as platform:
        assert platform.pid == host.pid
        with pytest.raises(rpmsgx.Timeout):
            platform.detach(0.05)
        platform.stop()
    assert gone(host.pid)


def test_bad_places(tmp_path: Path, path: str) -> None:
    plain = tmp_path / "plain"
    plain.write_text("mine")
    with pytest.raises(FileExistsError, match="no socket"):
        NativePlatform(socket=plain)
    assert plain.read_text() == "mine"
    with pytest.raises(OSError, match="107 bytes"):
        NativePlatform(socket=tmp_path / ("x" * 120))
    children = threading.active_count()
    with NativePlatform(socket=tmp_path / "missing" / "remote") as platform:
        image = loaded(platform, "sample")
        with pytest.raises(FileNotFoundError):
            platform.start(image.entry)
        assert not platform.running and platform.pid is None
    assert threading.active_count() == children
    assert sorted(os.listdir(tmp_path)) == ["plain"]


def test_a_fork_has_no_part_in_it(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        driver = boot(platform)
        driver.announced(2)
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                platform.close()
                with pytest.raises(rpmsgx.Closed):
                    platform.attach()
                status = 0
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        echo(driver, 10)
        assert platform.running


def test_no_zombie_stays(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        boot(platform).announced(2)
        platform.detach(TIMEOUT)
        pid = platform.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    with NativePlatform(socket=path) as platform:
        boot(platform).announced(2)
        assert not os.path.exists(f"/proc/{pid}")


def test_descriptors_are_given_back(path: str) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(2):
        with NativePlatform(socket=path) as platform:
            boot(platform).announced(2)
            with NativePlatform(socket=path) as other:
                other.prepare()
            platform.detach(TIMEOUT)
        with NativePlatform(socket=path) as platform:
            platform.attach()
    assert count() == before


# -- hostile servers and clients -----------------------------------------------------------------------------------

GREETING = b'{"app": "sample", "desc_addr": "pa", "table": 140}\n'


def memory(size: int, *, sealed: bool = True) -> int:
    import fcntl

    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def event(flags: int = os.EFD_CLOEXEC | os.EFD_NONBLOCK) -> int:
    return os.eventfd(0, flags)


def handed(rom: int = 0x10000, shm: int = 0x100000, *, sealed: bool = True, events: int = 3) -> list[int]:
    return [memory(rom, sealed=sealed), memory(shm), *(event() for _ in range(events))]


HOSTILE: dict[str, tuple[bytes, Callable[[], list[int]], str]] = {
    "hangs up": (b"", list, "says b''"),
    "garbage": (b"\0\xff garbage\n", list, "says b'.*garbage"),
    "endless": (b"x" * 100000, list, "says b'xxx"),
    "no descriptors": (HELLO + GREETING, list, "handed over 0 descriptors, not 5"),
    "too few": (HELLO + GREETING, lambda: handed(events=2), "handed over 4 descriptors"),
    "too many": (HELLO + GREETING, lambda: handed(events=6), "handed over 6 or more"),
    "no JSON": (HELLO + b"{]\n", handed, "not JSON"),
    "deep JSON": (HELLO + b"[" * 4000 + b"\n", handed, "not JSON"),
    "cut": (HELLO + GREETING[:20], handed, "not JSON"),
    "other JSON": (HELLO + b'[1, "sample"]\n', handed, "no native remote of this version"),
    "no app": (HELLO + b'{"desc_addr": "pa", "table": 140}\n', handed, "no native remote"),
    "a bad app": (HELLO + b'{"app": "../x", "desc_addr": "pa", "table": 140}\n', handed, "no native remote"),
    "a bad address": (HELLO + b'{"app": "sample", "desc_addr": "va", "table": 140}\n', handed, "no native remote"),
    "a bad table": (HELLO + b'{"app": "sample", "desc_addr": "pa", "table": 1e9}\n', handed, "no native remote"),
    "a table too large": (HELLO + b'{"app": "sample", "desc_addr": "pa", "table": 65536}\n', handed, "no native"),
    "memory for eventfds": (HELLO + GREETING, lambda: [memory(0x10000) for _ in range(5)], "not an eventfd"),
    "eventfds for memory": (HELLO + GREETING, lambda: [event() for _ in range(5)], "'rom'.*not memory"),
    "a blocking eventfd": (HELLO + GREETING, lambda: [*handed(events=2), event(os.EFD_CLOEXEC)], "a blocking"),
    "a small rom": (HELLO + GREETING, lambda: handed(rom=0x1000), "'rom'.*0x10000"),
    "a small shm": (HELLO + GREETING, lambda: handed(shm=0x1000), "'shm'.*0x100000"),
    "not sealed": (HELLO + GREETING, lambda: handed(sealed=False), "F_SEAL_SHRINK"),
}


@contextlib.contextmanager
def server(path: str, text: bytes, fds: list[int]) -> Iterator[None]:
    """Serves one connection at `path`."""

    def work() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            if text:
                sent = socket.send_fds(peer, [text], fds)
                peer.sendall(text[sent:])

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            thread.join(TIMEOUT)
            os.unlink(path)


@pytest.mark.hostile
@pytest.mark.parametrize("case", HOSTILE)
def test_a_server_that_is_no_remote_is_refused(path: str, case: str) -> None:
    text, given, message = HOSTILE[case]
    before = len(os.listdir("/proc/self/fd"))
    fds = given()
    try:
        with server(path, text, fds), pytest.raises(rpmsgx.ResourceError, match=f"(?s){path}.*{message}"):
            NativePlatform(socket=path)
    finally:
        for fd in fds:
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.hostile
def test_a_server_that_says_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_HANDOVER", 0.1)
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        with pytest.raises(rpmsgx.Timeout, match="nobody serves"):  # about to listen, for ever
            NativePlatform(socket=path)
        listener.listen()
        with pytest.raises(rpmsgx.Timeout, match="nothing was handed over"):
            NativePlatform(socket=path)
        with pytest.raises(rpmsgx.Timeout), NativePlatform(socket=path) as platform:
            platform.start(0)
    os.unlink(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.hostile
def test_a_refused_remote_leaves_a_platform_as_it_was(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        shared = platform.shared
        with server(path, HELLO + GREETING, []), pytest.raises(rpmsgx.ResourceError):
            platform.prepare()
        assert platform.shared is shared and not shared.closed
        assert boot(platform).announced(2) == SAMPLE


@pytest.mark.hostile
def test_clients_that_do_not_behave(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        driver = boot(platform)
        driver.announced(2)
        ends = []
        for i in range(300):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            end.connect(path)
            if i % 3 == 0:
                with contextlib.suppress(OSError):
                    end.send(b"garbage" * 100)
            if i % 3 == 1:
                end.close()
            else:
                ends.append(end)  # reads nothing
        for end in ends:
            end.close()
        echo(driver, 10)
        with NativePlatform(socket=path) as other:
            assert other.pid == platform.pid
        assert len(os.listdir(f"/proc/{platform.pid}/fd")) < 30


@pytest.mark.hostile
def test_the_socket_file_of_another_is_not_removed(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        boot(platform).announced(2)
        os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(path)
            platform.stop()
            assert os.path.exists(path)
        os.unlink(path)


def test_options() -> None:
    with pytest.raises(ValueError, match="desc_addr"):
        NativePlatform(socket="x", desc_addr="va")  # type: ignore[arg-type]
    unnamed: Any = make("process")
    with unnamed:
        assert unnamed.identity is None and unnamed.options is None
