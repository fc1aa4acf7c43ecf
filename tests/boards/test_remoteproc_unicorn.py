"""`Remoteproc` on emulated cores: the firmware that is shipped, booted from its ELF file."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, require
from support_wire import TIMEOUT, Call, blocked, until

from rpmsgx import ChannelRemoved, FirmwareError, PeerError, Remoteproc
from rpmsgx.firmware import path
from rpmsgx.remoteproc.cpu import CPUS

SAMPLE = "rpmsg-client-sample"
MAGIC, SOURCE, SINK, REPORT = 0x46585052, 1, 2, 3


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    before = left()
    yield
    gc.collect()
    until(lambda: left() <= before)


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def left() -> tuple[int, int]:
    """Descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def echo(rproc: Remoteproc, times: int = 5) -> None:
    with rproc.open(SAMPLE, timeout=TIMEOUT) as ept:
        for i in range(times):
            ept.send(b"%d" % i, timeout=TIMEOUT)
            assert ept.recv(timeout=TIMEOUT) == b"%d" % i


def test_what_comes_first() -> None:
    with Remoteproc(auto_boot=False) as rproc:
        assert (rproc.platform.name, rproc.platform.cpu) == ("unicorn", "cortex-m4")


def test_boots_talks_and_stops(cpu: str) -> None:
    with Remoteproc(platform="unicorn", cpu=cpu) as rproc:
        assert rproc.state == "running" and rproc.image.name == f"sample-{cpu}.elf"
        echo(rproc)
        assert rproc.trace().startswith("sample: up\n")
        assert {channel.name for channel in rproc.bus.channels} == {SAMPLE, "rpmsg-raw"}
    assert rproc.state == "deleted"


@pytest.mark.parametrize("file", ["unicorn.toml", "unicorn-riscv32.toml", "unicorn-cortex-a53.toml"])
def test_the_examples(file: str) -> None:
    with Remoteproc(board=str(ROOT / "examples" / "boards" / file)) as rproc:
        assert rproc.name == rproc.platform.cpu
        echo(rproc)


def test_run_with_a_cpu() -> None:
    command = [sys.executable, "-m", "rpmsgx", "run", "sample", "-o", "cpu=cortex-a53", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        seen = ""
        for seen in host.stdout:
            if "sample: up" in seen:
                break
        host.send_signal(signal.SIGINT)
        host.communicate(timeout=TIMEOUT)
        assert "sample: up" in seen and host.returncode == 130


def test_many_reboots_leave_nothing(cpu: str) -> None:
    with Remoteproc(platform="unicorn", cpu=cpu, firmware="sample") as rproc:
        rproc.shutdown()
        gc.collect()
        before = left()
        for _ in range(20):
            rproc.boot()
            echo(rproc, 1)
            rproc.shutdown()
        gc.collect()
        assert left() == before


@pytest.mark.lesson("11")
def test_the_firmware_changes_between_boots(tmp_path: Path) -> None:
    mine = tmp_path / "mine.elf"
    mine.write_bytes(Path(path("flood")).read_bytes())
    with Remoteproc(firmware="sample") as rproc:
        echo(rproc)
        for firmware, service in ((str(mine), "rpmsg-flood"), ("crash", "rpmsg-crash"), ("sample", SAMPLE)):
            rproc.shutdown()
            rproc.firmware = firmware
            rproc.boot()
            rproc.open(service, timeout=TIMEOUT)


def test_a_firmware_for_another_machine(tmp_path: Path) -> None:
    data = bytearray(Path(path("sample")).read_bytes())
    struct.pack_into("<H", data, 18, 243)
    other = tmp_path / "riscv.elf"
    other.write_bytes(data)
    with pytest.raises(FirmwareError, match="RISC-V.*ARM") as caught:
        Remoteproc("mine", firmware=str(other))
    assert caught.value.__notes__ == ["while booting mine: could not read the firmware"]


@pytest.mark.lesson("06")
@pytest.mark.parametrize("command, cause", [(b"u", "undefined"), (b"a", "unmapped"), (b"f", "fatal error")])
def test_a_crash(cpu: str, command: bytes, cause: str) -> None:
    with Remoteproc(platform="unicorn", cpu=cpu, firmware="crash", recovery="disabled") as rproc:
        for _ in range(2):
            ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
            calls = [Call(ept.recv), Call(rproc.open, "other")]
            blocked(*calls)
            ept.send(command)
            for call in calls:
                with pytest.raises(ChannelRemoved, match=f"the remote crashed: .*{cause}.* pc 0x"):
                    call.outcome()
            assert rproc.state == "crashed" and "crash: fault" in rproc.trace()
            rproc.shutdown()
            rproc.boot()


def test_a_hang_can_be_stopped(cpu: str) -> None:
    with Remoteproc(platform="unicorn", cpu=cpu, firmware="crash") as rproc:
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        ept.send(b"h")
        until(lambda: "hang" in rproc.trace())
        waiting = Call(ept.recv)
        blocked(waiting)
        rproc.shutdown()
        with pytest.raises(ChannelRemoved, match="stopped"):
            waiting.outcome()


@pytest.mark.hostile
@pytest.mark.parametrize("command, rule", [(b"i", "2.7.8-idx"), (b"d", "2.7.8-id"), (b"l", "2.7.8.3-1")])
def test_a_remote_that_corrupts_its_ring(cpu: str, command: bytes, rule: str) -> None:
    with Remoteproc(platform="unicorn", cpu=cpu, firmware="crash") as rproc:
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        ept.send(command)
        with pytest.raises(PeerError) as caught:
            ept.recv(timeout=TIMEOUT)
        assert caught.value.rule == rule
        rproc.shutdown()
        rproc.boot()
        rproc.open("rpmsg-crash", timeout=TIMEOUT)


def test_a_flood_both_ways(cpu: str) -> None:
    remote = Remoteproc(platform="unicorn", cpu=cpu, firmware="flood")
    with remote as rproc, rproc.open("rpmsg-flood", timeout=TIMEOUT) as ept:
        count, size = 5000, 64
        ept.send(struct.pack("=4I", MAGIC, SINK, 0, 0))
        ept.send(struct.pack("=4I", MAGIC, SOURCE, count, size))
        sender = Call(ept.send_many, [struct.pack("=I", n) + bytes(60) for n in range(count)], timeout=TIMEOUT)
        n = 0
        while n < count:
            for message in ept.recv_many(64, timeout=TIMEOUT):
                assert message == struct.pack("=I", n) + bytes((n + i) & 0xFF for i in range(4, size))
                n += 1
        assert sender.outcome() == count
        ept.send(struct.pack("=4I", MAGIC, REPORT, 0, 0))
        assert struct.unpack("=4I", ept.recv(timeout=TIMEOUT))[1:] == (count, count * size, 0)


@pytest.mark.lesson("03")
@pytest.mark.parametrize("end", ["", "rproc.bus.close()", "sys.exit(3)", "del rproc"])
def test_at_the_end_of_the_interpreter(end: str) -> None:
    program = f"""
import rpmsgx, sys
rproc = rpmsgx.Remoteproc()
ept = rproc.open("{SAMPLE}", timeout=10)
ept.send(b"x"); ept.recv(timeout=10)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3 if end == "sys.exit(3)" else 0, "")


def test_a_forked_child_leaves_the_remote_alone() -> None:
    program = f"""
import os, rpmsgx
rproc = rpmsgx.Remoteproc()
ept = rproc.open("{SAMPLE}", timeout=10)
pid = os.fork()
if pid == 0:
    try:
        rproc.shutdown()
    except rpmsgx.StateError:
        rproc.close()
        os._exit(5)
assert os.waitpid(pid, 0)[1] == 5 << 8
ept.send(b"still here"); assert ept.recv(timeout=10) == b"still here"
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
