# SPDX-License-Identifier: BSD-3-Clause
"""One host per remote: who is refused, what ends a hold, and which files of the state directory are believed."""

from __future__ import annotations

import gc
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support import require

from rpmsgx.errors import StateError
from rpmsgx.remoteproc.hold import MAX_CHANNELS, MAX_FILE, Hold, Saved, state_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDENTITY = "/run/some where/remote.sock"
SAVED = Saved(0x10000000, b"\1\0\0\0" + bytes(136), "sample", "ab" * 32, (("rpmsg-raw", 1025), ("e\u0301", 2)), 3)
WAIT = 20.0

OWNER = """
import sys
from rpmsgx.remoteproc.hold import Hold, Saved
hold = Hold(sys.argv[1], sys.argv[2])
hold.acquire()
hold.save(Saved(1, b"table"))
print("held", flush=True)
sys.stdin.readline()
{then}
"""


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "state")


class Owner:
    """Another process that holds the remote."""

    def __init__(self, directory: str, then: str = "hold.release()") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(then=then), IDENTITY, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"
        self.pid = self.process.pid

    def end(self) -> None:
        self.process.communicate("\n", timeout=WAIT)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT)


def lock(directory: str) -> str:
    (name,) = (name for name in os.listdir(directory) if name.endswith(".lock"))
    return os.path.join(directory, name)


def saved_file(directory: str) -> str:
    return lock(directory).removesuffix(".lock") + ".json"


@pytest.mark.lesson("23")
def test_lesson_23_a_refusal_names_the_owner(directory: str) -> None:
    owner = Owner(directory)
    hold = Hold(IDENTITY, directory)
    with pytest.raises(StateError, match=rf"{IDENTITY} is held by pid {owner.pid} \(.*python.*\)"):
        hold.acquire()
    assert not hold.acquired
    with Hold(IDENTITY + "2", directory) as other:
        assert other.acquire() is None  # another remote
    owner.end()
    assert hold.acquire() is None and hold.acquired
    hold.release()


@pytest.mark.lesson("23")
@pytest.mark.parametrize("way", ["kill", "no release"])
def test_lesson_23_the_hold_ends_with_the_process(directory: str, way: str) -> None:
    owner = Owner(directory, "")
    owner.kill() if way == "kill" else owner.end()
    with Hold(IDENTITY, directory) as hold:
        assert hold.acquire() == owner.pid  # who has left it without a word
        assert hold.saved == Saved(1, b"table")
        assert hold.acquire() is None  # once is enough
    with Hold(IDENTITY, directory) as hold:
        assert hold.acquire() is None


def test_two_of_one_process_exclude_each_other(directory: str) -> None:
    with Hold(IDENTITY, directory) as one:
        one.acquire()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                Hold(IDENTITY, directory).acquire()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(WAIT)
        assert len(errors) == 1 and isinstance(errors[0], StateError)
        assert f"this process (pid {os.getpid()})" in str(errors[0])
        assert one.acquired
    with Hold(IDENTITY, directory) as two:
        two.acquire()


def test_children_do_not_inherit_it(directory: str) -> None:
    def refused() -> bool:
        try:
            Hold(IDENTITY, directory).acquire()
        except StateError:
            return True
        return False

    hold = Hold(IDENTITY, directory)
    hold.acquire()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            good = not hold.acquired and refused()
            hold.release()  # not this process's
            theirs.send(b"y" if good and refused() else b"n")
            theirs.recv(1)
        finally:
            os._exit(0)
    assert ours.recv(1) == b"y"
    program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    hold.release()
    assert not refused()  # though both children live
    program.communicate(b"\n", timeout=WAIT)
    assert program.returncode == 0
    ours.send(b"y")
    ours.close()
    theirs.close()
    assert os.waitpid(child, 0)[1] == 0


def test_a_forgotten_one_is_given_up_without_a_word(directory: str) -> None:
    hold = Hold(IDENTITY, directory)
    hold.acquire()
    before = len(os.listdir("/proc/self/fd"))
    del hold
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with Hold(IDENTITY, directory) as hold:
        assert hold.acquire() == os.getpid()


@pytest.mark.parametrize("content", [b"", b"0\n", b"-1\n", b"12", b"99999999999\n", b"\xff" * 10000, b"1\n2\n"])
def test_what_stands_in_a_lock_file_is_no_lock(directory: str, content: bytes) -> None:
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        path = lock(directory)
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(StateError, match="held by another process"):
            Hold(IDENTITY, directory).acquire()
    with open(path, "wb") as file:
        file.write(content)
    with Hold(IDENTITY, directory) as hold:
        assert hold.acquire() is None
        with open(path, "rb") as file:
            assert file.read() == b"%d\n" % os.getpid()
    assert os.path.getsize(path) == 0


@pytest.mark.hostile
def test_a_command_line_is_shown_safely(directory: str, tmp_path: Path) -> None:
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        program = "import sys; print('up', flush=True); sys.stdin.readline()"
        other = subprocess.Popen(
            [sys.executable, "-c", program, "\x1b[2J\n" + "x" * 5000], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout is not None and other.stdout.readline() == b"up\n"
        with open(lock(directory), "wb") as file:
            file.write(b"%d\n" % other.pid)
        with pytest.raises(StateError) as caught:
            Hold(IDENTITY, directory).acquire()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 250
        other.communicate(b"\n", timeout=WAIT)
        with pytest.raises(StateError, match=f"held by pid {other.pid}:"):  # whose owner is not to be seen
            Hold(IDENTITY, directory).acquire()


# -- saved state ---------------------------------------------------------------------------------------------------


def test_saved_state(directory: str) -> None:
    with Hold(IDENTITY, directory) as hold:
        assert hold.saved is None
        with pytest.raises(StateError, match="not held"):
            hold.save(SAVED)
        with pytest.raises(StateError, match="not held"):
            hold.forget()
        hold.acquire()
        hold.save(Saved(0, b""))
        hold.save(SAVED)
        assert hold.saved == SAVED
    reader = Hold(IDENTITY, directory)  # reading takes no hold
    assert reader.saved == SAVED
    assert Hold(IDENTITY + "2", directory).saved is None
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    for name in os.listdir(directory):
        assert stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode) == 0o600
    assert len(os.listdir(directory)) == 2
    reader.acquire()
    reader.forget()
    reader.forget()
    assert reader.saved is None
    reader.release()


@pytest.mark.parametrize(
    "saved",
    [
        Saved(-1, b""),
        Saved(1 << 64, b""),
        Saved(0, bytes(MAX_FILE)),
        Saved(0, b"", "x" * 5000),
        Saved(0, b"", None, None, (("x", 1 << 32),)),
        Saved(0, b"", crashes=-1),
        Saved(0, b"", None, None, (("x", 1),) * (MAX_CHANNELS + 1)),
    ],
    ids=["negative", "large", "much", "long", "address", "crashes", "many"],
)
def test_what_the_next_host_would_refuse_is_not_saved(directory: str, saved: Saved) -> None:
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        hold.save(SAVED)
        with pytest.raises(ValueError):
            hold.save(saved)
        assert hold.saved == SAVED


def changed(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda content: json.dumps({**content, **fields}).encode()


HOSTILE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda content: b"",
    "binary": lambda content: bytes(range(256)),
    "cut": lambda content: json.dumps(content).encode()[:-20],
    "a list": lambda content: b"[]",
    "deep": lambda content: b"[" * 100000,
    "too long": lambda content: json.dumps(content).encode() + b" " * MAX_FILE,
    "a long number": lambda content: b"1" * 100000,
    "version": changed(version=2),
    "another remote": changed(identity="/run/other"),
    "no table": lambda content: json.dumps({k: v for k, v in content.items() if k != "clean"}).encode(),
    "table_da": changed(table_da=-1),
    "table_da bool": changed(table_da=True),
    "table_da float": changed(table_da=1.5),
    "table_da large": changed(table_da=1 << 64),
    "clean": changed(clean="not base64!"),
    "clean number": changed(clean=1),
    "firmware": changed(firmware=[1]),
    "firmware long": changed(firmware="x" * 5000),
    "sha256": changed(sha256={}),
    "channels": changed(channels={"a": 1}),
    "channels many": changed(channels=[["x", 1]] * (MAX_CHANNELS + 1)),
    "a channel": changed(channels=[["x"]]),
    "a channel's name": changed(channels=[[1, 1]]),
    "a channel's address": changed(channels=[["x", 1 << 32]]),
}


@pytest.mark.hostile
@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_file_is_refused(directory: str, case: str) -> None:
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        hold.save(SAVED)
        path = saved_file(directory)
        with open(path, "rb") as file:
            content = json.load(file)
        with open(path, "wb") as file:
            file.write(HOSTILE[case](content))
        with pytest.raises(StateError, match="remove it") as caught:
            hold.saved  # noqa: B018
        assert path in str(caught.value) and len(str(caught.value)) < 500
        hold.save(SAVED)  # it is replaced
        assert hold.saved == SAVED


def fifo(path: str, target: str) -> None:
    os.mkfifo(path)


def directory_there(path: str, target: str) -> None:
    os.mkdir(path)


def link(path: str, target: str) -> None:
    with open(target, "w") as file:
        file.write("precious")
    os.symlink(target, path)


@pytest.mark.hostile
@pytest.mark.parametrize("put", [fifo, directory_there, link])
@pytest.mark.parametrize("which", ["lock", "json"])
def test_only_plain_files_are_opened(
    directory: str, tmp_path: Path, put: Callable[[str, str], None], which: str
) -> None:
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        hold.save(SAVED)
        path = lock(directory) if which == "lock" else saved_file(directory)
    os.unlink(path)
    put(path, str(tmp_path / "target"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((StateError, OSError)):
        hold.acquire() if which == "lock" else hold.saved
    assert len(os.listdir("/proc/self/fd")) == before
    if put is link:
        assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.hostile
def test_a_link_in_the_way_of_a_save_is_not_followed(directory: str, tmp_path: Path) -> None:
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        target = tmp_path / "target"
        target.write_text("precious")
        os.symlink(target, saved_file(directory))
        hold.save(SAVED)
        assert hold.saved == SAVED
        os.symlink(target, saved_file(directory).removesuffix(".json") + ".new")
        with pytest.raises(OSError):
            hold.save(SAVED)
        assert target.read_text() == "precious"


# -- the directory -------------------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(directory: str, mode: int) -> None:
    os.mkdir(directory)
    os.chmod(directory, mode)
    with pytest.raises(StateError, match="RPMSGX_STATE_DIR"):
        Hold(IDENTITY, directory).acquire()
    assert os.listdir(directory) == []


@pytest.mark.hostile
def test_a_directory_of_another_is_refused(directory: str) -> None:
    require(os.geteuid() == 0, "only root can make another user's directory")
    os.mkdir(directory, 0o700)
    os.chown(directory, 12345, -1)
    with pytest.raises(StateError, match="belongs to uid 12345"):
        Hold(IDENTITY, directory).acquire()


@pytest.mark.hostile
def test_a_file_of_another_is_refused(directory: str) -> None:
    require(os.geteuid() == 0, "only root can make another user's file")
    with Hold(IDENTITY, directory) as hold:
        hold.acquire()
        hold.save(SAVED)
    os.chown(saved_file(directory), 12345, -1)
    with pytest.raises(StateError, match="belongs to uid 12345"):
        hold.saved  # noqa: B018


@pytest.mark.hostile
def test_no_directory(tmp_path: Path, directory: str) -> None:
    os.symlink(tmp_path, directory)
    with pytest.raises((StateError, OSError)):
        Hold(IDENTITY, directory).acquire()
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(StateError, match="no directory"):
        Hold(IDENTITY, plain).acquire()
    with pytest.raises(FileNotFoundError):
        Hold(IDENTITY, tmp_path / "missing" / "state").acquire()


def test_where_the_state_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RPMSGX_STATE_DIR", str(tmp_path / "own"))
    assert state_directory() == str(tmp_path / "own") == Hold("x").directory
    monkeypatch.delenv("RPMSGX_STATE_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # not everybody can become root, or stop being it
    assert state_directory() == "/run/rpmsgx"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert state_directory() == "/run/user/1000/rpmsgx"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert state_directory() == "/tmp/rpmsgx-1000"


@pytest.mark.parametrize("identity", ["", "a", "../../etc/passwd", "x" * 5000, "a\0b", "\udcff", "\u00fc.\n"])
def test_any_identity_makes_a_file_name(directory: str, identity: str) -> None:
    with Hold(identity, directory) as hold:
        hold.acquire()
        hold.save(SAVED)
        assert hold.saved == SAVED
        assert len(os.listdir(directory)) == 2 and len(os.path.basename(lock(directory))) < 100
