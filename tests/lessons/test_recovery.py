# SPDX-License-Identifier: BSD-3-Clause
"""Lessons 04, 16, 17: the count of users over everything that happens, recovery, and core dumps."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from remotes import Gate, Recorder, clean_table, crash, recorded, table_in_memory
from support import require
from support_wire import TIMEOUT

from rpmsgx import Remoteproc, StateError
from rpmsgx.remoteproc import remoteproc as module
from rpmsgx.remoteproc.coredump import Core
from rpmsgx.remoteproc.platform import open_platform
from rpmsgx.remoteproc.resources import Resources
from rpmsgx.virtio.table import parse

if TYPE_CHECKING:
    from collections.abc import Callable

# -- 04 --------------------------------------------------------------------------------------------------------------


class Users(RuleBasedStateMachine):
    """A real remote, and beside it nothing but the number of those who hold it and what it does."""

    @initialize(auto_boot=st.booleans())
    def begin(self, auto_boot: bool) -> None:
        self.gate = Gate()
        self.rproc = Remoteproc(
            platform="native", firmware="crash", recovery="disabled", presence=self.gate, auto_boot=auto_boot
        )
        self.users, self.state = int(auto_boot), "running" if auto_boot else "offline"

    def refused(self, call: Callable[[], None]) -> None:
        with pytest.raises(StateError, match=f"is {self.state}"):
            call()

    @precondition(lambda self: self.state != "detached" or self.gate.up)
    @rule(times=st.integers(1, 3))
    def boot(self, times: int) -> None:
        for _ in range(times):
            self.rproc.boot()
            self.users += 1
            if self.gate.up:
                self.state = {"offline": "running", "detached": "attached"}.get(self.state, self.state)

    @rule()
    def shutdown(self) -> None:
        if self.users == 0:
            self.refused(self.rproc.shutdown)
            return
        self.rproc.shutdown()
        self.users -= 1
        if self.users == 0:
            self.state = "offline"

    @rule()
    def attach(self) -> None:
        if self.state not in ("attached", "detached"):
            self.refused(self.rproc.attach)
            return
        self.rproc.attach()
        self.users += 1
        self.state = "attached"

    @rule()
    def detach(self) -> None:
        if self.state not in ("running", "attached"):
            self.refused(self.rproc.detach)
            return
        self.rproc.detach(timeout=TIMEOUT)
        self.users -= 1
        if self.users == 0:
            self.state = "detached"

    @precondition(lambda self: self.state in ("running", "attached"))
    @rule(real=st.booleans())
    def crash(self, real: bool) -> None:
        if real:
            crash(self.rproc)
        else:
            self.rproc.crashed()
        self.state = "crashed"

    @rule()
    def recover(self) -> None:
        self.rproc.recover()
        if self.state == "crashed":
            self.state = "running"

    @rule()
    def service(self) -> None:
        self.gate.turn(not self.gate.up)
        self.rproc.poll(0)
        if not self.gate.up and self.state in ("running", "attached", "crashed"):
            self.state = "offline"
        elif self.gate.up and self.state == "offline" and self.users:
            self.state = "running"

    @precondition(lambda self: self.state in ("running", "attached"))
    @rule()
    def talk(self) -> None:
        with self.rproc.open("rpmsg-crash", timeout=TIMEOUT) as ept:
            ept.send(b"echo")
            assert ept.recv(timeout=TIMEOUT) == b"echo"

    @precondition(lambda self: self.state in ("running", "attached"))
    @rule()
    def bus(self) -> None:
        self.rproc.bus.close()

    @invariant()
    def it_counts(self) -> None:
        if hasattr(self, "rproc"):
            assert (self.rproc.state, self.rproc.power) == (self.state, self.users)
            if self.state != "crashed":
                assert self.rproc.platform.running == (self.state != "offline")

    def teardown(self) -> None:
        if not hasattr(self, "rproc"):
            return
        if self.state != "detached":
            for left in range(self.users, 0, -1):
                assert self.rproc.power == left
                self.rproc.shutdown()
            assert self.rproc.state == "offline" and not self.rproc.platform.running
        with pytest.raises(StateError):
            self.rproc.shutdown()
        self.rproc.close()


@pytest.mark.lesson("04")
def test_lesson_04_as_many_ends_as_beginnings_whatever_happens() -> None:
    run_state_machine_as_test(
        Users,
        settings=settings(
            max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.lesson("04")
@pytest.mark.parametrize("how", ["poll", "open", "recover"])
def test_lesson_04_a_recovery_counts_nobody(remote: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever drives it: three boots before three crashes need three shutdowns after."""
    monkeypatch.setattr(module, "BACKOFF", (0.01, 0.01))
    with Remoteproc(firmware="crash", **remote) as rproc:
        rproc.boot()
        rproc.boot()
        for _ in range(3):
            crash(rproc)
            assert (rproc.state, rproc.power) == ("crashed", 3)
            if how == "recover":
                rproc.recover()
            while how == "poll" and rproc.state == "crashed":
                assert rproc.poll(TIMEOUT)
            rproc.open("rpmsg-crash", timeout=TIMEOUT).close()
            assert (rproc.state, rproc.power) == ("running", 3)
        for left in (2, 1):
            rproc.shutdown()
            assert (rproc.state, rproc.power) == ("running", left)
        rproc.shutdown()
        assert (rproc.state, rproc.power) == ("offline", 0)
        with pytest.raises(StateError):
            rproc.shutdown()


# -- 16 --------------------------------------------------------------------------------------------------------------


class Witness(Recorder):
    """Looks at the memory when it is told, as a tool that analyses crashes would."""

    rproc: Remoteproc
    dumps: Path

    def _do(self, what: str) -> None:
        super()._do(what)
        table = table_in_memory(self.rproc)
        (trace,) = parse(clean_table(self.rproc)[1]).traces
        text = self.rproc.platform.space.read(trace.da, trace.len).partition(b"\0")[0].decode()
        self.seen[what] = {
            "clean": table == clean_table(self.rproc)[1],
            "crash": "crash: fault" in text,
            "dumps": len(list(self.dumps.glob("*.core"))),
            "runs": self.rproc.platform.running,
        }

    def __init__(self, log: list[str]) -> None:
        super().__init__(log)
        self.seen: dict[str, dict[str, Any]] = {}


@pytest.mark.lesson("16")
def test_lesson_16_a_recovery_stops_looks_and_boots_anew(remote: dict[str, Any], tmp_path: Path) -> None:
    """The core, then the subdevices; then the memory as the crash left it is dumped; then everything afresh."""
    log: list[str] = []
    mine = Resources()
    mine.carveout("heap", 0x4000)
    platform = recorded(open_platform(remote.pop("platform"), **remote), log)
    sub = Witness(log)
    with Remoteproc(
        platform=platform, auto_boot=False, firmware="crash", coredump="inline", coredump_dir=tmp_path, resources=mine
    ) as rproc:
        sub.rproc, sub.dumps = rproc, tmp_path
        rproc.add_subdevice(sub)
        rproc.boot()
        crash(rproc)
        assert rproc._uptime is not None
        before = rproc._uptime.plan
        (heap,) = (c.da for c in before.carveouts if c.name == "heap")
        rproc.platform.space.write(heap, b"what the remote wrote")
        log.clear()
        assert rproc.poll(TIMEOUT)
        assert rproc.state == "running"
        assert log == ["stop", "sub stop crashed", "sub unprepare", "sub prepare", "start", "sub start"]
        assert sub.seen == {
            "stop crashed": {"clean": False, "crash": True, "dumps": 0, "runs": False},
            "unprepare": {"clean": False, "crash": True, "dumps": 0, "runs": False},
            "prepare": {"clean": False, "crash": False, "dumps": 1, "runs": False},
            "start": {"clean": False, "crash": False, "dumps": 1, "runs": True},
        }
        assert rproc.platform.space.read(heap, 21) == b"what the remote wrote"
        assert rproc._uptime.plan == before  # carveouts stay where they are
        rproc.open("rpmsg-crash", timeout=TIMEOUT)
        assert "crash: fault" not in rproc.trace()
        log.clear()
        rproc.shutdown()
        assert log == ["sub stop", "stop", "sub unprepare", "unprepare"]  # gracefully: the other way round


@pytest.mark.lesson("16")
@pytest.mark.parametrize("then", ["shutdown", "recovery", "failed start", "detach"])
def test_lesson_16_the_hosts_own_copy_of_the_table_counts(remote: dict[str, Any], then: str) -> None:
    """Whatever became of the table in memory, the host does not read it back."""
    log: list[str] = []
    sub = Recorder(log)
    with Remoteproc(firmware="crash", recovery="disabled", auto_boot=False, **remote) as rproc:
        rproc.add_subdevice(sub)
        da, clean = clean_table(rproc)
        places = set()
        for _ in range(2):
            rproc.boot()
            rproc.open("rpmsg-crash", timeout=TIMEOUT).close()
            places.add(table_in_memory(rproc))
            if then == "recovery":
                crash(rproc)
            elif then == "failed start":
                rproc.shutdown()
                sub.fail = "start"
            # From here on there are but ruins of it.
            rproc.platform.space.write(da, b"\xff" * 24)
            if then == "shutdown":
                rproc.shutdown()
            elif then == "recovery":
                rproc.recover()
                rproc.open("rpmsg-crash", timeout=TIMEOUT)
                places.add(table_in_memory(rproc))
                rproc.shutdown()
            elif then == "failed start":
                with pytest.raises(OSError, match="sub cannot start"):
                    rproc.boot()
                rproc.platform.space.write(da, b"\xff" * len(clean))
                sub.fail = ""
            else:
                rproc.detach(timeout=TIMEOUT)
                assert table_in_memory(rproc) == clean
                rproc.attach()
                rproc.shutdown()
        assert len(places) == 1


@pytest.mark.lesson("16")
def test_lesson_16_a_recovery_that_fails_leaves_a_crashed_remote(remote: dict[str, Any]) -> None:
    """It is stopped for sure, its memory can still be dumped, and it can be tried again."""
    log: list[str] = []
    sub = Recorder(log)
    with Remoteproc(firmware="crash", **remote) as rproc:
        rproc.shutdown()
        rproc.add_subdevice(sub)
        rproc.boot()
        crash(rproc)
        cause = rproc.crash
        sub.fail = "start"
        for _ in range(2):
            with pytest.raises(OSError, match="sub cannot start") as caught:
                rproc.recover()
            assert caught.value.__notes__ == [f"while recovering {rproc.name}: could not start its subdevices"]
            assert (rproc.state, rproc.power) == ("crashed", 1) and not rproc.platform.running
            assert rproc.crash == cause
        sub.fail = ""
        rproc.recover()
        assert (rproc.state, rproc.power, rproc.crash) == ("running", 1, None)
        rproc.open("rpmsg-crash", timeout=TIMEOUT)


@pytest.mark.lesson("16")
def test_lesson_16_crashes_that_follow_each_other_are_waited_for_ever_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF", (0.05, 0.2))
    with Remoteproc(platform="native", firmware="crash") as rproc:
        waits = []
        for _ in range(5):
            crash(rproc)
            begin = time.monotonic()
            while rproc.state == "crashed":
                rproc.poll(TIMEOUT)
            waits.append(time.monotonic() - begin)
        assert waits[0] < 0.05 <= waits[1] and waits[2] >= 0.1 and waits[3] >= 0.2 and waits[4] >= 0.2
        assert rproc.crash_count == 5


# -- 17 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("17")
def test_lesson_17_enabled_copies_and_the_recovery_goes_on(remote: dict[str, Any], tmp_path: Path) -> None:
    mine = Resources()
    mine.carveout("heap", 0x4000)
    with Remoteproc("dsp", firmware="crash", coredump="enabled", resources=mine, **remote) as rproc:
        with pytest.raises(StateError, match="is running: there is no core"):
            rproc.coredump(tmp_path / "early")
        assert rproc._uptime is not None
        (heap,) = (c.da for c in rproc._uptime.plan.carveouts if c.name == "heap")
        rproc.platform.space.write(heap, b"when it crashed")
        crash(rproc)
        crashed = rproc.crash
        assert crashed is not None
        assert rproc.poll(TIMEOUT) and rproc.state == "running"
        rproc.platform.space.write(heap, b"after recovery.")
        rproc.open("rpmsg-crash", timeout=TIMEOUT)
        rproc.coredump(tmp_path / "core")
        core = Core.read(tmp_path / "core")
        assert (core.name, core.kind, core.cause) == ("dsp", crashed.kind, crashed.cause)
        assert core.time == pytest.approx(crashed.time) and abs(core.time - time.time()) < 60
        assert core.firmware == rproc.image.name and core.sha256 == rproc.image.sha256
        found = core.find(heap)
        assert found is not None and found.data is not None
        assert bytes(found.data)[heap - found.da :][:15] == b"when it crashed"
        if rproc.platform.machine is not None:  # an ELF image: its segments as well, and the core's registers
            assert core.machine == rproc.platform.machine and core.find(rproc.image.entry) is not None
            assert f"{core.registers['pc']:#010x}" in crashed.cause


@pytest.mark.lesson("17")
def test_lesson_17_inline_is_written_while_the_remote_waits(remote: dict[str, Any], tmp_path: Path) -> None:
    with Remoteproc("dsp", firmware="crash", coredump="inline", coredump_dir=tmp_path, **remote) as rproc:
        for count in (1, 2):
            crash(rproc)
            assert len(list(tmp_path.glob("dsp-*.core"))) == count - 1
            rproc.recover()
            assert rproc.state == "running" and len(list(tmp_path.glob("dsp-*.core"))) == count
        for file in tmp_path.glob("dsp-*.core"):
            data = file.read_bytes()
            assert data[:4] == b"\x7fELF" and struct.unpack_from("<H", data, 16) == (4,)  # ET_CORE
            assert Core.read(file).cause and file.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.glob("*.core")) and not list(tmp_path.glob("*.tmp*"))


@pytest.mark.lesson("17")
@pytest.mark.parametrize("remote", ["thread", "unicorn"], indirect=True)
@pytest.mark.parametrize("format", ["elf", "raw"])
def test_lesson_17_a_crashed_remote_is_dumped_as_it_lies_there(
    remote: dict[str, Any], tmp_path: Path, format: Any
) -> None:
    """Without a recovery the memory itself is dumped; readelf opens the one form, anything the other."""
    with Remoteproc("dsp", firmware="crash", recovery="disabled", **remote) as rproc:
        crash(rproc, b"f")
        rproc.poll(0)
        rproc.coredump(tmp_path / "core", format)
        assert rproc.state == "crashed"
        file = tmp_path / "core"
        (vdev,) = rproc.vdevs or (None,)
        assert vdev is not None and vdev.buffers is not None
        if format == "raw":
            said = json.loads((tmp_path / "core.json").read_text())
            assert (said["name"], said["kind"]) == ("dsp", "fatal error")
            (at,) = (s["offset"] for s in said["segments"] if s["da"] <= vdev.buffers.da < s["da"] + s["size"])
            assert at < os.path.getsize(file)
            return
        require(os.path.exists("/usr/bin/readelf"), "readelf is not there")
        said = subprocess.run(["readelf", "-hlnW", str(file)], capture_output=True, text=True, timeout=30)
        assert said.returncode == 0 and "CORE (Core file)" in said.stdout and "rpmsgx" in said.stdout
        assert ("ELF32" if rproc.platform.machine else "ELF") in said.stdout
        assert "Warning" not in said.stderr and "Error" not in said.stderr


