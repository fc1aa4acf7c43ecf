"""Random lives: every event in every order, with crashes, and kill -9 of the remote or its host at any moment.

The host is a process (host_process.py), the remote another, which outlives its host. After each step state, power count
and channels are those of the model, which is the table of docs/remoteproc.md retold. RPMSGX_STEPS sets the number of
steps of the machine (500).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support_wire import until

HOST = Path(__file__).parent / "host_process.py"
SERVICES = {"sample": ["rpmsg-client-sample", "rpmsg-raw"], "crash": ["rpmsg-crash"]}
STEPS = int(os.environ.get("RPMSGX_STEPS", "500"))
PER_RUN = 50
UP = ("running", "attached")


class Host:
    """The process."""

    def __init__(self, folder: str, firmware: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HOST), os.path.join(folder, "remote"), firmware],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RPMSGX_STATE_DIR": os.path.join(folder, "state")},
        )

    def send(self, call: str, **args: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": call, "args": args}) + "\n")
        self.process.stdin.flush()

    def call(self, call: str, **args: Any) -> dict[str, Any]:
        self.send(call, **args)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the host died in {call}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="rpmsgx-life-")
        os.mkdir(os.path.join(self.folder, "state"), 0o700)
        self.firmware = self.runs = "sample"
        self.state, self.power = "offline", 0
        self.pid: int | None = None
        self.host = Host(self.folder, self.firmware)

    def teardown(self) -> None:
        if self.pid is not None:
            self.host.call("close")
        self.host.end()
        if self.pid is not None and self.state != "offline":
            try:
                os.kill(self.pid, signal.SIGKILL)  # one that was left running
            except ProcessLookupError:
                pass
        shutil.rmtree(self.folder)

    def call(self, call: str, error: str | None = None, /, **args: Any) -> dict[str, Any]:
        answer = self.host.call(call, **args)
        assert answer["error"] == error, answer
        assert (answer["state"], answer["power"]) == (self.state, self.power), (call, answer)
        if self.state not in UP:
            assert answer["channels"] == []
        if answer["pid"] is not None:
            self.pid = answer["pid"]
        return answer

    def then(self, state: str, power: int) -> None:
        self.state, self.power = state, power

    # -- what users do ---------------------------------------------------------------------------------------------

    @rule()
    def boot(self) -> None:
        if self.state == "offline":
            self.runs = self.firmware
        self.then({"offline": "running", "detached": "attached"}.get(self.state, self.state), self.power + 1)
        self.call("boot")

    @rule()
    def shutdown(self) -> None:
        self._give_back("shutdown", "offline", ("running", "attached", "crashed"))

    @rule()
    def detach(self) -> None:
        self._give_back("detach", "detached", UP)

    def _give_back(self, call: str, after: str, allowed: tuple[str, ...]) -> None:
        if self.state not in allowed:
            self.call(call, "StateError")
        else:
            self.then(after if self.power == 1 else self.state, self.power - 1)
            self.call(call)

    @rule()
    def attach(self) -> None:
        if self.state in ("detached", "attached"):
            self.then("attached", self.power + 1)
            self.call("attach")
        else:
            self.call("attach", "StateError")

    @rule(name=st.sampled_from(sorted(SERVICES)))
    def set_firmware(self, name: str) -> None:
        if self.state == "offline":
            self.firmware = name
            self.call("firmware", name=name)
        else:
            self.call("firmware", "StateError", name=name)

    @rule()
    def recover(self) -> None:
        if self.state == "crashed":
            self.then("running", self.power)
            self.runs = self.firmware
        self.call("recover")

    @rule()
    def report(self) -> None:
        if self.state in UP:
            self.then("crashed", self.power)
        self.call("report")

    # A kill in the middle of something leaves one of two states, so which rules apply is no matter of preconditions:
    # the same draws would not always be possible.

    @rule()
    def rebind(self) -> None:
        if self.state not in UP:
            return
        self.call("rebind")
        self.talk()

    @rule()
    def talk(self) -> None:
        if self.state not in UP:
            return
        answer = self.call("talk", service=SERVICES[self.runs][0])
        assert answer["result"] == 20 and SERVICES[self.runs][0] in answer["channels"]

    # -- what happens to them ----------------------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        if self.state not in UP or self.runs != "crash":
            return
        self.then("crashed", self.power)
        self.call("crash")

    @rule()
    def kill_remote(self) -> None:
        if self.state not in (*UP, "detached"):
            return
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        self.then("offline" if self.state == "detached" else "crashed", self.power)
        self.call("died")

    @rule(busy=st.sampled_from(["", "boot", "shutdown", "attach", "detach", "recover", "talk"]))
    def kill_host(self, busy: str) -> None:
        """At rest, or in the middle of something: what it was at is done or not, and the next host finds out."""
        if busy:
            self.host.send(busy, **({"service": SERVICES[self.runs][0]} if busy == "talk" else {}))
        self.host.kill()
        self.host = Host(self.folder, self.firmware)
        answer = self.host.call("look")
        if not busy:
            alive = self.state in (*UP, "detached") or (self.state == "crashed" and answer["state"] == "detached")
            assert answer["state"] == ("detached" if alive else "offline")
        assert answer["state"] in ("detached", "offline") and answer["power"] == 0
        self.then(answer["state"], 0)
        self.pid = answer["pid"] or self.pid
        if self.state == "detached":
            if busy in ("boot", "recover"):  # which firmware it runs depends on how far that came
                self.call("attach") if self._attached() else None
                self.then("offline", 0)
                self.call("shutdown")

    def _attached(self) -> bool:
        self.then("attached", 1)
        return True

    @rule(resume=st.booleans())
    def kill_host_and_attach(self, resume: bool) -> None:
        if self.state not in UP:
            return
        self.host.kill()
        self.host = Host(self.folder, self.firmware)
        self.then("attached", 1)
        self.call("attach", resume=resume)
        self.talk()

    @invariant()
    def the_same_everywhere(self) -> None:
        self.call("look")


@pytest.mark.timeout(max(300, STEPS))
def test_random_lives() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=max(1, STEPS // PER_RUN),
            stateful_step_count=PER_RUN,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # a life in processes does not repeat itself: there is nothing to shrink
        ),
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cycles", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_attaching_for_ever_leaves_nothing(cycles: int, tmp_path: Path) -> None:
    """Descriptors and maps are equal after `cycles` of attach and detach, memory grows by less than 1 MiB."""
    (tmp_path / "state").mkdir(mode=0o700)
    host = Host(str(tmp_path), "sample")
    try:
        assert host.call("boot")["error"] is None
        before: dict[str, int] = {}
        for cycle in range(cycles):
            for call in ("detach", "attach"):
                answer = host.call(call)
                assert answer["error"] is None, (cycle, answer)
            if cycle == cycles // 10:
                before = host.call("left")["result"]
        after = host.call("left")["result"]
        assert (after["fds"], after["maps"]) == (before["fds"], before["maps"])
        assert after["rss"] - before["rss"] < 1 << 20
        assert host.call("talk", service="rpmsg-client-sample")["result"] == 20
        pid = host.call("shutdown")["pid"]
        assert pid is None
        until(lambda: not (tmp_path / "remote").exists())
    finally:
        host.end()
