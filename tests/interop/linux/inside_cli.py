# SPDX-License-Identifier: BSD-3-Clause
"""What test_cli_remoteprocs.py lets a guest do, one function each. `sim0` is a remote of module rproc_sim."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from rpmsgx.cli import main
from rpmsgx.remoteproc.linux import LinuxRemoteproc

WAIT = 20.0
COMMAND = [sys.executable, "-m", "rpmsgx"]
TRACE = "hello from the trace\nand from the second one\n"


def said(*args: str, status: int = 0) -> str:
    """What the command prints; its errors where it is to fail. In this process: a guest is slow."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(args)
    assert found == status, (args, found, out.getvalue(), err.getvalue())
    return (err if status else out).getvalue()


def state() -> str:
    (found,) = json.loads(said("status", "--json"))
    assert (found["name"], found["platform"], found["error"]) == ("sim0", "linux", None), found
    return str(found["state"])


class Host:
    """`rpmsgx ... --json` beside the test."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen([*COMMAND, *args, "--json"], stdout=subprocess.PIPE)
        self._text = b""

    def event(self, **fields: Any) -> dict[str, Any]:
        """The next event with these fields."""
        deadline = time.monotonic() + WAIT
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while True:
            while b"\n" not in self._text:
                assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], f"no event {fields}"
                piece = os.read(fd, 4096)
                assert piece, f"it ended before {fields}"
                self._text += piece
            line, _, self._text = self._text.partition(b"\n")
            found: dict[str, Any] = json.loads(line)
            if fields.items() <= found.items():
                return found

    def ended_by(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT)


def commands() -> None:
    assert state() == "offline"
    assert "sim0: offline\n  platform  linux\n  firmware  sim.elf\n" in said("status", "sim0")
    assert "nothing to stop" in said("stop", "sim0", status=1)
    assert "nothing to recover from" in said("recover", "sim0", status=1)
    assert "no trace" in said("trace", "sim0", status=1)
    assert "boot() starts one" in said("attach", "sim0", status=1)
    with LinuxRemoteproc("sim0") as rproc:
        rproc.recovery = "disabled"
        rproc.boot()
        (found,) = json.loads(said("status", "--json", "sim0"))
        assert (found["state"], found["recovery"]) == ("running", "disabled")
        assert [(vdev["driver"], vdev["id"]) for vdev in found["vdevs"]] == [("virtio_rpmsg_bus", 7)], found
        assert said("trace", "sim0") == TRACE
        assert "sim0 is running already" in said("run", "--kernel", "sim0", status=1)
        assert "the kernel cannot detach from" in said("run", "--kernel", "sim0", "--at-exit", "detach", status=1)
        assert "nothing to detach" in said("detach", "sim0", status=1)
        rproc.crashed("fault")
        while rproc.state != "crashed":
            rproc.poll(WAIT)
        assert said("recover", "sim0") == "" and state() == "running"
        assert said("stop", "sim0") == "" and state() == "offline"


def run(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        host = Host("run", "--kernel", "sim0", "sim.elf", "--coredump", "enabled", "--coredump-dir", folder)
        host.event(event="state", state="running", firmware="sim.elf")
        for line in TRACE.splitlines():
            host.event(event="trace", text=line)
        with LinuxRemoteproc("sim0") as rproc:
            rproc.crashed("fault")
        with open(host.event(event="coredump")["path"], "rb") as file:
            assert b"the code" in file.read()
        assert host.ended_by(number) == 128 + number
        assert host.event(event="end", left_running=False)
        assert state() == "offline"
    assert len(os.listdir(folder)) == 2, os.listdir(folder)
    with LinuxRemoteproc("sim0") as rproc:
        rproc.boot()
        rproc.crashed("fault")
        file = f"{folder}/core"
        assert said("coredump", "--from", "sim0", "-o", file) == ""
        assert "Memory" in said("coredump", file)
        rproc.shutdown()


def by_board_file(folder: str) -> None:
    board = f"{folder}/sim.toml"
    with open(board, "w", encoding="ascii") as file:
        file.write('name = "sim0"\nplatform = "linux"\nfirmware = "sim.elf"\n')
    host = Host("run", "--board", board)
    host.event(event="state", state="running", firmware="sim.elf")
    (found,) = json.loads(said("status", board, "--json"))
    assert (found["name"], found["platform"], found["state"]) == ("sim0", "linux", "running")
    assert said("trace", board) == TRACE
    assert host.ended_by(signal.SIGINT) == 130 and state() == "offline"


def killed() -> None:
    host = Host("run", "--kernel", "sim0", "--guardian")
    host.event(event="state", state="running")
    host.ended_by(signal.SIGKILL)
    with LinuxRemoteproc("sim0") as rproc:
        while rproc.state != "offline":
            rproc.poll(WAIT)


def attach() -> None:
    assert state() == "detached"
    host = Host("attach", "sim0")
    host.event(event="state", state="attached")
    assert host.ended_by(signal.SIGINT) == 130 and state() == "detached"
    with LinuxRemoteproc("sim0") as rproc:
        rproc.attach()
        assert said("detach", "sim0") == "" and rproc.state == "detached"
    host = Host("attach", "sim0", "--at-exit", "stop")
    host.event(event="state", state="attached")
    assert host.ended_by(signal.SIGTERM) == 143 and state() == "offline"


def follow() -> None:
    follower = subprocess.Popen([*COMMAND, "trace", "-f", "sim0"], stdout=subprocess.PIPE)
    assert follower.stdout is not None
    with LinuxRemoteproc("sim0") as rproc:
        for _ in range(2):
            rproc.boot()
            assert [follower.stdout.readline() for _ in range(2)] == TRACE.encode().splitlines(keepends=True)
            rproc.shutdown()
            time.sleep(0.5)  # some looks of the follower, which nobody else sees
    follower.send_signal(signal.SIGINT)
    assert follower.wait(WAIT) == 130
