# SPDX-License-Identifier: BSD-3-Clause
"""Platform `registers`, with the board file of the example, against an SoC that is another process (soc.py)."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import soc
from support import ROOT, require
from support_wire import TIMEOUT, until

from rpmsgx import Remoteproc, StateError, Timeout
from rpmsgx.firmware import path as shipped
from rpmsgx.memory.region import Region
from rpmsgx.notify.doorbell import readable
from rpmsgx.remoteproc.elf import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(60)
EXAMPLE = ROOT / "examples" / "boards" / "soc-registers.toml"
SAMPLE = "rpmsg-client-sample"


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RPMSGX_STATE_DIR", str(tmp_path / "state"))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@contextmanager
def powered(folder: Path, period: float = 0.0005, firmware: str | None = None) -> Iterator[Registers]:
    """The SoC in a process of its own, and its registers as its debugger sees them."""
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    command = [sys.executable, soc.__file__, str(folder), str(period), *([firmware] if firmware else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], TIMEOUT)[0] and process.stdout.readline() == b"ready\n"
            with Registers(folder) as registers:
                yield registers
        finally:
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                assert process.wait(TIMEOUT) == 0
            process.kill()


class Registers:
    def __init__(self, folder: Path) -> None:
        self.regions = [Region.file(name, folder / name) for name in ("reset", "mailbox")]
        self.reset, self.mailbox = (region.view.cast("I") for region in self.regions)

    def __enter__(self) -> Registers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reset.release()
        self.mailbox.release()
        for region in self.regions:
            region.close()

    @property
    def off(self) -> bool:
        return self.reset[soc.CONTROL] & soc.IN_RESET == soc.IN_RESET and self.reset[soc.STATUS] == soc.OFF


def board_file(folder: Path, *changes: tuple[str, str], firmware: str = "sample", kind: str = "device") -> Path:
    """The example, whose physical addresses are files here."""
    text = EXAMPLE.read_text().replace('kind = "device"', f'kind = "{kind}"')
    text = re.sub(r'(name = "(\w+)"\n(?:\w+ = .*\n)*?)backend = "mem"', r'\1backend = "file:\2"', text)
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    shutil.copy(shipped(firmware), folder / "m4.elf")
    path = folder / "board.toml"
    path.write_text(text)
    return path


def host(path: Path, *, auto_boot: bool = False, **settings: Any) -> Remoteproc:
    return Remoteproc(board=path, auto_boot=auto_boot, **settings)


def echo(rproc: Remoteproc, service: str = SAMPLE, times: int = 20) -> None:
    with rproc.open(service, timeout=TIMEOUT) as endpoint:
        for i in range(times):
            message = b"%d " % i * (i * 7 % 120)
            endpoint.send(message, timeout=TIMEOUT)
            assert endpoint.recv(timeout=TIMEOUT) == message


def crash(rproc: Remoteproc) -> None:
    """Have the firmware "crash" do it, and wait until the host has seen it; nothing is done about it yet."""
    with rproc.open("rpmsg-crash", timeout=TIMEOUT) as endpoint:
        endpoint.send(b"u")
        until(lambda: rproc.crash is not None)


@pytest.mark.parametrize("kind", ["device", "uncached", "cached"])
def test_boots_talks_and_stops(tmp_path: Path, kind: str) -> None:
    with powered(tmp_path) as registers, host(board_file(tmp_path, kind=kind)) as rproc:
        assert (rproc.state, rproc.platform.cpu, registers.off) == ("offline", "ARM", True)
        for _ in range(2):
            rproc.boot()
            assert rproc.state == "running" and registers.reset[soc.STATUS] == soc.RUNS
            echo(rproc)
            with rproc.open("rpmsg-raw", timeout=TIMEOUT) as endpoint, endpoint.claim(13) as buffer:
                buffer[:] = b"on that loan!"
            rproc.shutdown()
            assert rproc.state == "offline" and registers.off


def test_a_boot_stops_at_the_end_of_the_block(tmp_path: Path) -> None:
    with powered(tmp_path) as registers:
        with host(board_file(tmp_path), auto_boot=True) as rproc:
            echo(rproc)
        assert registers.off


def test_a_crash_is_seen_and_recovered_from(tmp_path: Path) -> None:
    changes = ('shared = "shm"', 'shared = "shm"\ncoredump = "enabled"')
    with (
        powered(tmp_path) as registers,
        host(board_file(tmp_path, changes, firmware="crash"), auto_boot=True) as rproc,
    ):
        for times in (1, 2):
            crash(rproc)
            found = rproc.crash
            assert found is not None and rproc.state == "crashed" and registers.reset[soc.STATUS] == soc.DIED
            assert found.cause == "the remote gave up: register reset.status reads 0x2"
            until(lambda: rproc.poll(0.1) or rproc.state == "running")
            echo(rproc, "rpmsg-crash")
            assert rproc.crash_count == times
        rproc.coredump(tmp_path / "core")
        assert (tmp_path / "core").read_bytes()[:4] == b"\x7fELF"


def test_a_core_that_is_found_dead_is_booted(tmp_path: Path) -> None:
    path = board_file(tmp_path, firmware="crash")
    with powered(tmp_path) as registers:
        for _ in range(2):
            with host(path, at_exit="detach") as rproc:
                assert rproc.state == "offline"
                rproc.boot()
                echo(rproc, "rpmsg-crash")
                rproc.detach()
                registers.reset[soc.STATUS] = soc.DIED  # as the SoC would leave it
                rproc.poll(0)
                assert rproc.state == "offline"


def test_a_core_that_others_stop_has_crashed(tmp_path: Path) -> None:
    with (
        powered(tmp_path) as registers,
        host(board_file(tmp_path), auto_boot=True, recovery="disabled") as rproc,
    ):
        echo(rproc)
        registers.reset[soc.CONTROL] = soc.IN_RESET
        until(lambda: rproc.state == "crashed")
        assert rproc.crash is not None
        assert rproc.crash.cause == "the core stopped by itself: register reset.status reads 0x0"
        rproc.recover()
        echo(rproc)


def clean_table(folder: Path) -> bytes:
    found = Image.open(folder / "m4.elf").resource_table
    assert found is not None and found[0] is not None
    return found[1]


def table_in_memory(folder: Path) -> bytes:
    da, table = Image.open(folder / "m4.elf").resource_table or (None, b"")
    assert da is not None
    [(name, start)] = [(name, start) for name, (start, _, size) in soc.MEMORY.items() if start <= da < start + size]
    return (folder / name).read_bytes()[da - start : da - start + len(table)]


def test_is_left_running_and_taken_up_by_the_next_host(tmp_path: Path) -> None:
    path = board_file(tmp_path)
    with powered(tmp_path) as registers:
        for _ in range(3):
            with host(path, at_exit="detach") as rproc:
                rproc.boot()  # attaches from the second time on
                echo(rproc)
                assert table_in_memory(tmp_path) != clean_table(tmp_path)
            assert registers.reset[soc.STATUS] == soc.RUNS
            assert table_in_memory(tmp_path) == clean_table(tmp_path)
        with host(path) as rproc:
            assert rproc.state == "detached"
            rproc.attach()
            echo(rproc)
            rproc.shutdown()
            assert registers.off


def test_a_core_that_a_boot_loader_has_started(tmp_path: Path) -> None:
    with powered(tmp_path, firmware="sample") as registers:
        with host(board_file(tmp_path)) as rproc:
            assert rproc.state == "detached"
            rproc.attach()
            assert rproc.state == "attached"
            echo(rproc)
        assert registers.reset[soc.STATUS] == soc.RUNS


HOST = """\
import sys
from rpmsgx import Remoteproc
rproc = Remoteproc(board=sys.argv[1], auto_boot=False)
rproc.boot()
endpoint = rproc.open("rpmsg-client-sample", timeout=20)
endpoint.send(b"x")
endpoint.recv(timeout=20)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("resume", [False, True])
def test_outlives_a_host_that_is_killed(tmp_path: Path, resume: bool) -> None:
    path = board_file(tmp_path)
    with powered(tmp_path) as registers:
        command = [sys.executable, "-c", HOST, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as before:
            assert before.stdout is not None
            try:
                assert select.select([before.stdout], [], [], TIMEOUT)[0] and before.stdout.readline() == b"up\n"
                with host(path) as rproc, pytest.raises(StateError, match=f"held by pid {before.pid} "):
                    rproc.boot()
            finally:
                before.send_signal(signal.SIGKILL)
        assert registers.reset[soc.STATUS] == soc.RUNS
        with host(path) as rproc:
            assert rproc.state == "detached"
            rproc.attach(resume=resume)
            echo(rproc)


def test_a_start_that_fails_is_undone(tmp_path: Path) -> None:
    """The wait has an end, says what it saw, and the core is back where a start begins."""
    never = ("until = 0x1, mask = 0x3, within = 0.5", "until = 0x3, mask = 0x3, within = 0.2")
    with powered(tmp_path) as registers:
        with host(board_file(tmp_path, never)) as rproc:
            for _ in range(2):
                with pytest.raises(Timeout) as caught:
                    rproc.boot()
                seen = "register reset.status reads 0x1; reset.status = 0x3 in 0x3 was awaited for 0.2 s"
                assert seen in str(caught.value)
                assert caught.value.__notes__ == ["while booting soc-m4: could not start the core"]
                assert (rproc.state, rproc.power, registers.off) == ("offline", 0, True)
        with host(board_file(tmp_path)) as rproc:
            rproc.boot()
            echo(rproc)


def test_a_remote_that_hangs_is_stopped_with_force(tmp_path: Path) -> None:
    with powered(tmp_path) as registers, host(board_file(tmp_path, firmware="crash")) as rproc:
        rproc.boot()
        with rproc.open("rpmsg-crash", timeout=TIMEOUT) as endpoint:
            endpoint.send(b"h")
            with pytest.raises(Timeout, match=r"mailbox.done reads 0x0; mailbox.done = 0x2 was awaited for 0.1 s"):
                rproc.detach(timeout=0.1)
        assert rproc.state == "running"
        rproc.shutdown()
        assert registers.off


# -- what the remote acknowledges in no register -----------------------------------------------------------------------

NO_ACKNOWLEDGEMENT = (re.search(r"^detach = \[\n(.*\n)*?\]\n", EXAMPLE.read_text(), re.MULTILINE) or [""])[0]


@pytest.mark.lesson("09")
def test_lesson_09_a_remote_that_cannot_acknowledge_is_given_time(tmp_path: Path) -> None:
    """It looks at its mailbox now and then only; the table is restored once it has let go of the rings."""
    changes = (NO_ACKNOWLEDGEMENT, ""), ('shared = "shm"', 'shared = "shm"\nsettle = 0.5')
    path = board_file(tmp_path, *changes)
    with powered(tmp_path, period=0.05) as registers, host(path) as rproc:
        for times in (1, 2):
            rproc.boot()
            echo(rproc, times=3)
            began = time.monotonic()
            rproc.detach()
            assert time.monotonic() - began >= 0.5
            assert (tmp_path / "ram").read_bytes().count(b"sample: down: reset by the driver") == times
            assert table_in_memory(tmp_path) == clean_table(tmp_path)
            assert rproc.state == "detached" and registers.reset[soc.STATUS] == soc.RUNS


@pytest.mark.lesson("09")
def test_lesson_09_a_detach_that_nothing_can_tell_of_is_refused(tmp_path: Path) -> None:
    with powered(tmp_path), host(board_file(tmp_path, (NO_ACKNOWLEDGEMENT, ""))) as rproc:
        rproc.boot()
        echo(rproc)
        with pytest.raises(Timeout, match=r"name the register that acknowledges \(detach\), or the time that it takes"):
            rproc.detach()
        assert rproc.state == "running" and table_in_memory(tmp_path) != clean_table(tmp_path)
        echo(rproc)


# -- without an interrupt ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poll", ["0.0005", "0.05"])
@pytest.mark.parametrize("spin", ["0.0", "0.001"])
def test_the_rings_are_looked_at_as_often_as_the_board_says(tmp_path: Path, poll: str, spin: str) -> None:
    changes = ("poll = 0.002", f"poll = {poll}"), ('shared = "shm"', f'shared = "shm"\nspin = {spin}')
    path = board_file(tmp_path, *changes)
    with powered(tmp_path), host(path) as rproc:
        rproc.boot()
        echo(rproc, times=5)
        bell = rproc.platform.doorbell
        bell.drain()
        began = time.monotonic()
        assert readable(bell.fileno(), TIMEOUT)
        assert time.monotonic() - began > float(poll) * 0.9


def test_a_ring_is_acknowledged(tmp_path: Path) -> None:
    with powered(tmp_path) as registers, host(board_file(tmp_path)) as rproc:
        rproc.boot()
        with rproc.open(SAMPLE, timeout=TIMEOUT) as endpoint:
            endpoint.fileno()  # as somebody who waits there: the remote rings for each message
            until(lambda: endpoint.try_recv() is None and registers.mailbox[soc.RING] == 0, looks=20)
            endpoint.send(b"x")
            until(lambda: registers.mailbox[soc.RING] == 1)
            assert endpoint.recv(timeout=TIMEOUT) == b"x"
            rproc.platform.doorbell.drain()
            assert registers.mailbox[soc.RING] == 0
