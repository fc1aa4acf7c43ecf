# SPDX-License-Identifier: BSD-3-Clause
"""run, attach, detach, stop, recover, status and trace as people use them: processes, signals, remotes of a board."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import require
from test_cli import LIMIT, Running, run

import rpmsgx
from rpmsgx.cli.console import Console
from rpmsgx.cli.foreground import Host, add_policies
from rpmsgx.cli.trace import Tail
from rpmsgx.errors import Error
from rpmsgx.firmware import path as shipped
from rpmsgx.remoteproc.board import load
from rpmsgx.remoteproc.hold import Hold, Owner
from rpmsgx.remoteproc.native import NativePlatform

HANG = """
import os, sys, rpmsgx
rproc = rpmsgx.Remoteproc(board=sys.argv[1], firmware="crash")
rproc.open("rpmsg-crash", timeout=20).send(b"hang")
while "crash: hang" not in rproc.trace():
    rproc.poll(0.01)
os.kill(os.getpid(), 9)
"""
UP = "running, firmware native, sha256 "
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class Command(Running):
    """A command that runs beside the test; `seen` is what it has said so far."""

    def __init__(self, *args: str) -> None:
        super().__init__(*args)
        self.seen = ""

    def until(self, pattern: str, stream: str = "stderr") -> str:
        """The next line with `pattern` in it."""
        while not re.search(pattern, line := self.line(stream)):
            self.seen += line
        self.seen += line
        return line

    def event(self, **fields: Any) -> dict[str, Any]:
        """The next object with these fields that --json prints."""
        while not fields.items() <= (found := json.loads(self.line("stdout"))).items():
            pass
        return dict(found)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended_by(self, number: signal.Signals) -> tuple[int, str, str]:
        self.send(number)
        return self.end()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPMSGX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def begin() -> Iterator[Callable[..., Command]]:
    commands: list[Command] = []

    def start(*args: str) -> Command:
        commands.append(Command(*args))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    require(importlib.util.find_spec("rpmsgx.remoteproc._native") is not None, "the native remote is not there")
    where = str(tmp_path / "remote")
    yield where
    with contextlib.suppress(Error, OSError), NativePlatform(socket=where) as platform:
        platform.stop()


@pytest.fixture
def board(tmp_path: Path, socket: str) -> str:
    return write(tmp_path, socket)


def write(directory: Path, socket: str, more: str = "") -> str:
    path = directory / "m4.toml"
    path.write_text(f'platform = "native"\nfirmware = "sample"\n{more}\n[options]\nsocket = "{socket}"\n')
    return str(path)


def remote_pid(socket: str) -> int:
    with NativePlatform(socket=socket) as platform:
        assert platform.pid is not None
        return platform.pid


def gone(pid: int) -> bool:
    """The process ends, or has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], LIMIT)[0])
    finally:
        os.close(fd)


def status_of(board: str) -> dict[str, Any]:
    done = run("status", "--json", board)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (found,) = json.loads(done.stdout)
    return dict(found)


def killed_host(begin: Callable[..., Command], board: str, *args: str) -> None:
    """A remote that runs, without a word from its host."""
    host = begin("run", "--board", board, *args)
    host.until("rpmsg-raw")
    host.ended_by(signal.SIGKILL)


def refused(*args: str) -> str:
    done = run(*args)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("rpmsgx: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# -- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_run_shows_what_happens_until_a_signal(
    begin: Callable[..., Command], board: str, socket: str, number: signal.Signals
) -> None:
    host = begin("run", "--board", board)
    host.until(f"^m4: {UP}[0-9a-f]{{16}}$")
    host.until("^m4: channel rpmsg-client-sample at 0x400 announced$")
    assert host.line("stdout") == "sample: up\n"
    pid = remote_pid(socket)
    status, out, err = host.ended_by(number)
    assert status == 128 + number and err.endswith("m4: stopped\n")
    assert out.splitlines()[-1] == "sample: stopped"
    assert gone(pid) and status_of(board)["state"] == "offline"


def test_run_on_a_platform_alone(begin: Callable[..., Command], socket: str) -> None:
    host = begin("run", "--platform", "native", "-o", f"socket={socket}", "flood")
    host.until("native: channel rpmsg-flood")
    assert host.ended_by(TERM)[0] == 143


def test_run_finds_a_file_where_it_is(begin: Callable[..., Command], tmp_path: Path, monkeypatch: Any) -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    monkeypatch.chdir(tmp_path)
    shutil.copy(shipped("sample"), "mine.elf")
    host = begin("run", "mine.elf")
    host.until("unicorn: running, firmware mine.elf, sha256 ")
    assert host.ended_by(INT)[0] == 130


def test_everything_in_json(begin: Callable[..., Command], board: str, socket: str) -> None:
    host = begin("run", "--board", board, "--json")
    up = host.event(event="state", state="running")
    assert up["remote"] == "m4" and len(up["sha256"]) == 64 and up["time"] > 1e9
    host.event(event="channel", change="announced", name="rpmsg-raw", addr=1025)
    host.event(event="trace", text="sample: up")
    os.kill(remote_pid(socket), signal.SIGSEGV)
    crash = host.event(event="state", state="crashed")
    assert crash["kind"] == "fault" and crash["cause"] == "killed by signal 11 (SIGSEGV)"
    host.event(event="channel", change="removed", name="rpmsg-raw", addr=1025)
    host.event(event="state", state="running")
    host.event(event="trace", text="sample: up")
    status, out, err = host.ended_by(TERM)
    events = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (143, "")
    assert "SIGTERM" in [event["name"] for event in events if event["event"] == "signal"]
    assert events[-1]["event"] == "end" and events[-1]["left_running"] is False


@pytest.mark.parametrize("mode", ["enabled", "inline"])
def test_a_crash_is_told_dumped_and_recovered_from(
    begin: Callable[..., Command], board: str, socket: str, tmp_path: Path, mode: str
) -> None:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    options = ["--recovery", "once", "--coredump", mode, "--coredump-dir", str(dumps)]
    host = begin("run", "--board", board, *options)
    for _ in range(2):
        host.until(f"^m4: {UP}")
        host.until("rpmsg-raw at 0x401 announced")
        os.kill(remote_pid(socket), signal.SIGSEGV)
        host.until(r"^m4 crashed \(fault\): killed by signal 11")
    assert host.seen.count("crashed") == 2  # each is told once
    if len(os.listdir(dumps)) < 2:
        host.until("core dumped to")
    about = status_of(board)
    assert (about["state"], about["crashes"]) == ("crashed", 2)
    assert "that is to recover it" in refused("recover", board)
    status, out, err = host.ended_by(INT)
    assert status == 130 and err.endswith("m4: stopped\n") and out.count("sample: up\n") == 2
    for file in dumps.iterdir():
        shown = run("coredump", str(file))
        assert shown.returncode == 0 and "m4: fault: killed by signal 11" in shown.stdout
    assert len(os.listdir(dumps)) == 2


def test_a_life_that_begins_with_the_same_words(board: str, socket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, so that nobody looks before the new words are there."""
    parser = argparse.ArgumentParser()
    add_policies(parser)
    host = Host(Console(False), parser.parse_args([]), rpmsgx.Remoteproc.boot, load(board))
    rproc = host.rproc
    with host:
        host.begin()
        said(rproc, "sample: up\n")
        host.look()
        os.kill(remote_pid(socket), signal.SIGSEGV)
        while not rproc.crash_count or rproc.state != "running":  # it may be seen before it is recovered from
            rproc.poll(0.1)
        said(rproc, "sample: up\n")
        host.look()
    assert capsys.readouterr().out.count("sample: up\n") == 2


def said(rproc: rpmsgx.Remoteproc, text: str) -> None:
    deadline = time.monotonic() + LIMIT
    while rproc.trace() != text:
        assert time.monotonic() < deadline
        rproc.poll(0.01)


def test_a_service_comes_and_goes(begin: Callable[..., Command], tmp_path: Path, socket: str) -> None:
    there = tmp_path / "there"
    host = begin("run", "--board", write(tmp_path, socket, f'presence = "path:{there}"'))
    host.until(f"^m4: waits for service path:{there}$")
    there.touch()
    host.until(f"^m4: {UP}")
    there.unlink()
    host.until("^m4: offline$")
    host.until("^m4: waits for service")
    there.touch()
    host.until(f"^m4: {UP}")
    assert host.ended_by(INT)[0] == 130


def test_a_boot_that_fails_is_one_line_with_the_step(board: str) -> None:
    error = refused("run", "--board", board, "nonsense")
    assert "no native application 'nonsense'" in error and "while booting m4: could not read the firmware" in error


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["m4.toml"], "--board m4.toml"),
        (["--board", "a", "--platform", "b"], "not allowed with"),
        (["--board", "a", "--kernel", "b"], "not allowed with"),
        (["--kernel", "a", "-o", "x=1"], "-o goes with"),
        (["sample", "--at-exit", "explode"], "invalid choice"),
    ],
)
def test_wrong_usage_says_what_is_right(args: list[str], reason: str) -> None:
    done = run("run", *args)
    assert done.returncode == 2 and reason in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["run", "--platform", "nonsense"], "no platform 'nonsense'"),
        (["run", "--platform", "native", "-o", "wrong=1"], "unexpected keyword argument 'wrong'"),
        (["run", "--board", "/nowhere.toml"], "/nowhere.toml: No such file"),
        (["run", "--kernel", "nonsense"], "no remote is named 'nonsense'"),
        (["stop", "nonsense"], "nor is there a board file of that name"),
        (["attach", "/nowhere.toml"], "/nowhere.toml: No such file"),
    ],
)
def test_errors_are_one_line(args: list[str], reason: str) -> None:
    assert reason in refused(*args)


# -- the end ---------------------------------------------------------------------------------------------------------


def test_sigterm_twice_is_one(begin: Callable[..., Command], board: str, socket: str) -> None:
    """timeout(1) sends it to the process and to its group."""
    host = begin("run", "--board", board, "--json")
    host.event(event="state", state="running")
    pid = remote_pid(socket)
    os.kill(pid, signal.SIGSTOP)  # so that there is time for another one
    host.send(TERM)
    host.event(event="signal", name="SIGTERM")
    status, out, err = host.ended_by(TERM)
    assert (status, err) == (143, "") and json.loads(out.splitlines()[-1])["event"] == "end"
    assert gone(pid)


def test_a_second_ctrl_c_gives_up_a_slow_stop(begin: Callable[..., Command], board: str, socket: str) -> None:
    host = begin("run", "--board", board, "--json")
    host.event(event="state", state="running")
    pid = remote_pid(socket)
    os.kill(pid, signal.SIGSTOP)
    host.send(INT)
    host.event(event="signal", name="SIGINT")
    host.send(INT)
    status, out, err = host.end()
    assert status == 130 and "Traceback" not in err
    last = json.loads(out.splitlines()[-1])
    assert last["event"] == "log" and "may still run" in last["message"]
    assert gone(pid)


def test_a_third_ctrl_c_kills(begin: Callable[..., Command], board: str, socket: str) -> None:
    host = begin("run", "--board", board, "--json")
    host.event(event="state", state="running")
    pid = remote_pid(socket)
    os.kill(pid, signal.SIGSTOP)
    host.send(INT)
    host.event(event="signal", name="SIGINT")
    while host.process.poll() is None:
        host.send(INT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            host.process.wait(0.01)
    status, out, err = host.end()
    os.kill(pid, signal.SIGKILL)
    assert status == -INT and err == "", (status, out, err)


def test_what_is_ignored_stays_ignored(begin: Callable[..., Command], board: str) -> None:
    before = signal.signal(HUP, signal.SIG_IGN)  # which is inherited
    try:
        host = begin("run", "--board", board)
    finally:
        signal.signal(HUP, before)
    host.until(UP)
    host.send(HUP)
    assert host.ended_by(TERM)[0] == 143


def test_a_reader_that_goes_ends_it_by_policy(begin: Callable[..., Command], board: str, socket: str) -> None:
    host = begin("run", "--board", board, "--json")
    host.event(event="trace", text="sample: up")
    pid = remote_pid(socket)
    assert host.process.stdout is not None
    host.process.stdout.close()
    os.kill(pid, signal.SIGSEGV)  # something to tell
    host.process.wait(LIMIT)
    assert host.process.returncode == 141 and gone(pid)
    assert host.process.stderr is not None and host.process.stderr.read() == ""
    host.process.stdout = None


def test_the_guardian_acts_after_kill_9(begin: Callable[..., Command], board: str, socket: str) -> None:
    host = begin("run", "--board", board, "--guardian")
    host.until("rpmsg-raw")
    pid = remote_pid(socket)
    host.ended_by(signal.SIGKILL)
    assert gone(pid)


# -- after a host ----------------------------------------------------------------------------------------------------


def test_what_a_host_has_left_is_attached_to_and_detached_from(
    begin: Callable[..., Command], board: str, socket: str
) -> None:
    host = begin("run", "--board", board, "--at-exit", "detach")
    host.until("rpmsg-raw")
    pid = remote_pid(socket)
    status, _, err = host.ended_by(TERM)
    assert status == 143 and err.endswith("m4: left running\n")
    assert "rpmsgx attach takes it over, rpmsgx stop ends it" in refused("run", "--board", board)
    host = begin("attach", board)
    host.until("m4: attached, firmware native, .*, 0 messages of the host before lost")
    host.until("rpmsg-raw at 0x401 announced")
    status, _, err = host.ended_by(INT)
    assert status == 130 and err.endswith("m4: left running\n")
    assert status_of(board)["state"] == "detached" and remote_pid(socket) == pid
    host = begin("attach", board, "--at-exit", "stop")
    host.until("m4: attached")
    assert host.ended_by(TERM)[0] == 143 and gone(pid)
    assert "offline" in refused("attach", board)


def test_attach_resumes_after_kill_9(begin: Callable[..., Command], board: str, socket: str) -> None:
    killed_host(begin, board)
    pid = remote_pid(socket)
    host = begin("attach", board, "--resume", "--json")
    host.event(event="state", state="attached", lost=0)
    host.event(event="channel", change="announced", name="rpmsg-raw", addr=1025)
    assert remote_pid(socket) == pid
    assert host.ended_by(INT)[0] == 130


def test_detach_in_the_place_of_a_host_that_was_killed(begin: Callable[..., Command], board: str) -> None:
    killed_host(begin, board)
    left = status_of(board)
    assert (left["state"], left["owner"]) == ("detached", None)
    assert left["vdevs"][0]["driver"] == "a host that is gone" and left["vdevs"][0]["status"] == 7
    done = run("detach", board)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    clean = status_of(board)
    assert (clean["vdevs"][0]["driver"], clean["vdevs"][0]["status"]) == (None, 0)
    assert run("detach", board).returncode == 0  # nothing is wrong with doing it again
    assert run("trace", board).stdout.endswith("sample: detached\n")


def test_stop_ends_what_hangs(begin: Callable[..., Command], board: str, socket: str) -> None:
    done = subprocess.run([sys.executable, "-c", HANG, board], timeout=LIMIT)
    assert done.returncode == -signal.SIGKILL
    pid = remote_pid(socket)
    assert "acknowledge" in refused("detach", board)
    assert run("stop", board).returncode == 0
    assert gone(pid) and status_of(board)["state"] == "offline"
    assert not list(Path(os.environ["RPMSGX_STATE_DIR"]).glob("*.json"))  # nothing that a next host could take for true
    assert "nothing to stop" in refused("stop", board)
    assert "nobody has it: rpmsgx run --board" in refused("recover", board)


def test_who_has_it_is_named(begin: Callable[..., Command], board: str) -> None:
    host = begin("run", "--board", board)
    host.until(UP)
    for command in ("attach", "detach", "stop", "recover", "run --board"):
        assert f"pid {host.process.pid} (" in refused(*command.split(), board)
    assert host.ended_by(INT)[0] == 130


# -- status and trace ------------------------------------------------------------------------------------------------


def test_status_while_another_process_has_it(begin: Callable[..., Command], board: str) -> None:
    assert status_of(board)["state"] == "offline"
    host = begin("run", "--board", board, "--recovery", "once")
    host.until("rpmsg-raw")
    found = status_of(board)
    assert (found["name"], found["platform"], found["state"]) == ("m4", "native", "running")
    assert found["owner"]["pid"] == host.process.pid and "run --board" in found["owner"]["command"]
    assert found["firmware"] == "sample" and found["table"] == {"da": 0x10000000, "size": 140}
    (vdev,) = found["vdevs"]
    assert (vdev["id"], vdev["status"], vdev["driver"]) == (7, 7, f"pid {host.process.pid}")
    assert [vring["num"] for vring in vdev["vrings"]] == [256, 256]
    text = run("status", board).stdout
    assert text.startswith("m4: running\n") and "status 0x7 ACKNOWLEDGE DRIVER DRIVER_OK" in text
    assert f"host      pid {host.process.pid}: " in text
    assert host.ended_by(INT)[0] == 130


def test_status_goes_on_after_one_that_cannot_be_looked_at(board: str, tmp_path: Path) -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    emulated, absent = tmp_path / "emulated.toml", tmp_path / "absent.toml"
    emulated.write_text('platform = "unicorn"\n')
    memory = [("rom", 0, 0x40000), ("ram", 0x20000000, 0x20000), ("shm", 0x60000000, 0x100000)]
    tables = (f'[[memory]]\nname = "{n}"\nda = {da}\nsize = {size}\nbackend = "file:{n}"\n' for n, da, size in memory)
    absent.write_text('platform = "unicorn"\nshared = "shm"\n' + "".join(tables))
    done = run("status", str(emulated), str(absent), "nonsense", board)
    assert done.returncode == 1 and "m4: offline" in done.stdout and done.stderr.count("\n") == 3
    assert "lives inside the process that runs it" in done.stderr and "no remote is named 'nonsense'" in done.stderr
    assert "its memory 'rom'" in done.stderr
    assert not (tmp_path / "rom").exists()  # a look makes nothing
    assert "lives inside the process that runs it" in refused("stop", str(emulated))


def test_the_pid_of_a_host_that_is_gone_may_be_anothers(begin: Callable[..., Command], board: str, socket: str) -> None:
    killed_host(begin, board)
    (lock,) = Path(os.environ["RPMSGX_STATE_DIR"]).glob("*.lock")
    lock.write_text(f"{os.getpid()}\n")
    assert Hold(socket).owner is None
    with lock.open() as file:  # open alone is no lock
        assert Hold(socket).owner is None
        fcntl.flock(file, fcntl.LOCK_EX)
        found = Hold(socket).owner
        assert isinstance(found, Owner) and found.pid == os.getpid()
    lock.write_text("anything")
    assert Hold(socket).owner is None


def test_trace_is_followed_over_restarts(begin: Callable[..., Command], board: str) -> None:
    assert "does not run" in refused("trace", board)
    follower = begin("trace", "-f", board)
    for _ in range(2):
        host = begin("run", "--board", board)
        host.until("rpmsg-raw")
        assert run("trace", board).stdout == "sample: up\n"
        follower.until("^sample: up$", "stdout")  # the last words of the life before may come first
        host.ended_by(INT)
    status, _, err = follower.ended_by(INT)
    assert (status, err) == (130, "")


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (["", "a\n", "a\nb", "a\nbc\n"], ["a", "bc"]),
        (["a\nb\n", "a\nb\n"], ["a", "b"]),
        (["one\ntwo\nthree\n", "two\nthree\nfour\n"], ["one", "two", "three", "four"]),  # the oldest lines go
        (["one\ntwo\nthr", "two\nthree\n"], ["one", "two", "three"]),
        (["up\nx\n", "", "up\ny\n"], ["up", "x", "up", "y"]),  # begun anew
        (["up\nx\ny\n", "up\n"], ["up", "x", "y", "up"]),
    ],
)
def test_what_is_new_in_a_trace(texts: list[str], lines: list[str]) -> None:
    tail = Tail()
    assert [line for text in texts for line in tail.lines(text)] == lines


def test_a_line_that_is_never_completed_is_not_lost() -> None:
    tail = Tail()
    assert (tail.lines("a\nb"), tail.rest(), tail.rest(), tail.lines("c\n")) == (["a"], ["b"], [], ["c"])
