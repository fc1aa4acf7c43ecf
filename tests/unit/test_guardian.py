# SPDX-License-Identifier: BSD-3-Clause
"""The policy for a host that is killed: real hosts, real remotes, SIGKILL."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support_boards import SAMPLE, TIMEOUT, Driver, make

import rpmsgx
from rpmsgx.remoteproc.guardian import Guardian
from rpmsgx.remoteproc.hold import Hold
from rpmsgx.remoteproc.native import NativePlatform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = """
import signal, sys
sys.path.insert(0, {tests!r})
from support_boards import boot
from rpmsgx.remoteproc.guardian import Guardian
from rpmsgx.remoteproc.hold import Hold, Saved
from rpmsgx.remoteproc.native import NativePlatform
signal.signal(signal.SIGINT, signal.SIG_IGN)
platform = NativePlatform({app!r}, socket={path!r})
hold = Hold(platform.identity)
hold.acquire()
driver = boot(platform, {app!r})
driver.announced({names})
hold.save(Saved(*platform.image(None).resource_table))
guardian = Guardian(platform, {action!r})
{then}
print(platform.pid, guardian.pid, flush=True)
sys.stdin.readline()
guardian.close()
guardian.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPMSGX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    make("process").close()  # skips where there is no native remote
    where = str(tmp_path / "remote")
    yield where
    with contextlib.suppress(rpmsgx.Error, OSError), NativePlatform(socket=where) as platform:
        platform.stop()


class Host:
    """A process that holds a remote at `path`, with a guardian; `remote` and `guardian` are pidfds."""

    def __init__(self, path: str, action: str, then: str = "", app: str = "sample", names: int = 2) -> None:
        tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        given = {"tests": tests, "path": path, "action": action, "then": then, "app": app, "names": names}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST.format(**given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.pids = [int(pid) for pid in self.process.stdout.readline().split()]
        self.remote, self.guardian = (os.pidfd_open(pid) for pid in self.pids)

    def close_guardian(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"closed\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            self.kill()
        os.close(self.remote)
        os.close(self.guardian)


def ends(pidfd: int, timeout: float = TIMEOUT) -> bool:
    return bool(select.select([pidfd], [], [], timeout)[0])


def serves(path: str) -> None:
    """The remote at `path` runs, and a host can attach to it."""
    with NativePlatform(socket=path) as platform:
        assert platform.running
        platform.attach()
        driver = Driver(platform, platform.image("sample"))
        driver.begin()
        driver.kick()
        assert driver.announced(2) == SAMPLE


@pytest.mark.lesson("23")
def test_lesson_23_stop_after_kill(path: str) -> None:
    with Host(path, "stop") as host:
        assert not ends(host.remote, 0.2) and not ends(host.guardian, 0)
        host.kill()
        assert ends(host.remote) and ends(host.guardian)
        assert not os.path.exists(path)  # it was told, not killed
        with Hold(path) as hold:
            assert hold.saved is None
            assert hold.acquire() is None


@pytest.mark.lesson("23")
@pytest.mark.lesson("07")
def test_lesson_23_detach_after_kill(path: str) -> None:
    with Host(path, "detach") as host:
        host.kill()
        assert ends(host.guardian)
        assert not ends(host.remote, 0)
        with NativePlatform(socket=path) as platform:
            da, clean = platform.image("sample").resource_table or (None, b"")
            assert da is not None and platform.space.read(da, len(clean)) == clean
            assert platform.space.read(da + 0x1000, 4096).partition(b"\0")[0].endswith(b"sample: detached\n")
        with Hold(path) as hold:
            assert hold.acquire() is None and hold.saved is not None
        serves(path)


@pytest.mark.parametrize("action", ["stop", "detach"])
@pytest.mark.parametrize("goodbye", ["close", "release"])
def test_it_does_nothing_for_a_host_that_said_goodbye(path: str, action: str, goodbye: str) -> None:
    with Host(path, action, "hold.release()" if goodbye == "release" else "") as host:
        if goodbye == "close":
            host.close_guardian()
            assert ends(host.guardian, 0)
        host.kill()
        assert ends(host.guardian)
        with NativePlatform(socket=path) as platform:
            assert platform.running
            table = platform.space.read(0x10000000, 140)
            assert table[24 + 24] == 7  # nobody has touched it


@pytest.mark.parametrize("action", ["stop", "detach"])
def test_another_host_was_faster(path: str, action: str) -> None:
    with Host(path, action) as host:
        os.kill(host.pids[1], signal.SIGSTOP)
        host.kill()
        with Hold(path) as hold:
            assert hold.acquire() == host.process.pid
        os.kill(host.pids[1], signal.SIGCONT)
        assert ends(host.guardian)
        serves(path)


def test_another_host_has_it_now(path: str) -> None:
    with Host(path, "stop") as host, Hold(path) as hold:
        os.kill(host.pids[1], signal.SIGSTOP)
        host.kill()
        hold.acquire()
        os.kill(host.pids[1], signal.SIGCONT)
        assert ends(host.guardian)
        assert not ends(host.remote, 0)


@pytest.mark.parametrize("action", ["stop", "detach"])
def test_a_remote_that_died_first(path: str, action: str) -> None:
    with Host(path, action) as host:
        os.kill(host.pids[0], signal.SIGKILL)
        assert ends(host.remote)
        host.kill()
        assert ends(host.guardian)
        assert Hold(path).saved is None


def test_ctrl_c_is_for_the_host_alone(path: str) -> None:
    with Host(path, "stop") as host:
        assert os.getsid(host.pids[1]) == host.pids[1]
        os.killpg(host.process.pid, signal.SIGINT)  # the host ignores it
        host.kill()
        assert ends(host.remote)  # there was somebody to see to it


@pytest.mark.parametrize("then", ["hold.forget()", "open(hold.directory + '/' + hold._name + '.json', 'w').write('{')"])
def test_without_saved_state_a_remote_is_left_as_it_is(path: str, then: str) -> None:
    with Host(path, "detach", then) as host:
        host.kill()
        assert ends(host.guardian)
        assert not ends(host.remote, 0)
        with NativePlatform(socket=path) as platform:
            assert platform.space.read(0x10000000, 140)[24 + 24] == 7


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RPMSGX_SLOW") != "1", reason="waits out a timeout; RPMSGX_SLOW=1 runs it")
def test_a_remote_that_does_not_acknowledge_the_detach_is_stopped(path: str) -> None:
    then = "driver.send(1024, b'h'); driver.until('crash: hang')"
    with Host(path, "detach", then, app="crash", names=1) as host:
        host.kill()
        assert ends(host.remote) and ends(host.guardian)
        assert Hold(path).saved is None


def test_a_forked_child_has_no_part_in_it(path: str) -> None:
    with NativePlatform(socket=path) as platform, Guardian(platform, "stop") as guardian:
        pidfd = os.pidfd_open(guardian.pid)
        child = os.fork()
        if child == 0:
            guardian.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not ends(pidfd, 0.05)
        guardian.close()
        assert ends(pidfd, 0)
        os.close(pidfd)


def test_it_gives_its_descriptors_back(path: str) -> None:
    with NativePlatform(socket=path) as platform:
        before = len(os.listdir("/proc/self/fd"))
        with Guardian(platform, "stop") as guardian:
            assert os.path.exists(f"/proc/{guardian.pid}")
        assert not os.path.exists(f"/proc/{guardian.pid}")
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_guarded(path: str) -> None:
    with make("thread") as thread, pytest.raises(rpmsgx.StateError, match="ends with this process"):
        Guardian(thread, "stop")
    with NativePlatform(socket=path) as platform:
        with pytest.raises(ValueError, match="action"):
            Guardian(platform, "leave")  # type: ignore[arg-type]
        platform.options = {"socket": object()}
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(TypeError, match="JSON"):
            Guardian(platform, "stop")
        assert len(os.listdir("/proc/self/fd")) == before
        platform.options = None
        with pytest.raises(rpmsgx.StateError, match="open it again"):
            Guardian(platform, "stop")
