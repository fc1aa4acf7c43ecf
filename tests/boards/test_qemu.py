# SPDX-License-Identifier: BSD-3-Clause
"""What is special to machines that QEMU emulates. What they have in common with all remotes: test_platforms.py."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import ROOT
from support_boards import TIMEOUT, boot, died, echo, loaded, make

import rpmsgx
from rpmsgx import Remoteproc, firmware
from rpmsgx.remoteproc import board as boards
from rpmsgx.remoteproc.cpu import CPUS
from rpmsgx.remoteproc.qemu import MACHINES, RAM_SIZE, SHM_OFFSET, SHM_SIZE, QemuPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = "rpmsg-client-sample"
FLOOD_MAGIC, SOURCE, SINK, REPORT = 0x46585052, 1, 2, 3  # csrc/apps/flood.c


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    """One whose QEMU is there."""
    make(request.param).close()
    return str(request.param)


@pytest.fixture
def m4() -> Iterator[QemuPlatform]:
    with make("mps2-an386") as platform:
        assert isinstance(platform, QemuPlatform)
        yield platform


def ended(pid: int, timeout: float = TIMEOUT) -> bool:
    """Whether the process is gone in time; it need not be ours."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            return bool(select.select([pidfd], [], [], timeout)[0])
        finally:
            os.close(pidfd)
    return True


# -- memory, images, boards ------------------------------------------------------------------------


def test_the_map_is_the_firmwares(machine: str) -> None:
    with make(machine) as platform:
        ram, shm = platform.space.regions
        header = "riscv-virt" if machine.startswith("riscv") else machine
        text = (ROOT / "csrc" / "firmware" / "qemu" / f"{header}.h").read_text()
        script = (ROOT / "csrc" / "firmware" / "qemu" / f"{header}.ld").read_text()
        assert (shm.da, shm.size) == tuple(int(n, 0) for n in re.findall(r"define BOARD_SHM\w* (\w+)u", text))
        assert re.findall(r"ORIGIN = (\w+), LENGTH = (\w+)K", script) == [(f"{ram.da:#x}", f"{RAM_SIZE >> 10}")]
        assert re.findall(r"define BOARD_TRACE (\w+)u", text) == [f"{ram.da + RAM_SIZE - 0x2000:#x}"]
        assert (shm.da - ram.da, shm.size) == (SHM_OFFSET, SHM_SIZE)
        assert all(region.pa != region.da for region in (ram, shm))


def test_images(machine: str) -> None:
    with make(machine) as platform:
        for name in firmware.NAMES:
            image = platform.image(name)
            assert image.sha256 == platform.image(firmware.path(name, machine)).sha256
            assert image.resource_table is not None and len(image.resource_table[1]) == 140
        assert platform.image(None).name == f"sample-{machine}.elf"
        with pytest.raises(rpmsgx.FirmwareError, match="x86-64"):
            platform.image(sys.executable)


def test_an_image_for_the_other_width() -> None:
    wrong = pytest.raises(rpmsgx.FirmwareError, match="is for 64 bits, riscv32 has 32")
    with make("riscv32-virt") as platform, wrong:
        platform.image(firmware.path("sample", "riscv64-virt"))


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="machine is 'pc', not one of mps2-an386, riscv32-virt, "):
        QemuPlatform("pc")
    with pytest.raises(ValueError, match="desc_addr is 'va', not 'pa' or 'da'"):
        QemuPlatform(desc_addr="va")  # type: ignore[arg-type]


@pytest.mark.parametrize("name, package", [("mps2-an386", "qemu-system-arm"), ("riscv64-virt", "qemu-system-misc")])
def test_a_qemu_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, package: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match=f"apt install {package}: '{MACHINES[name].program}'"):
        QemuPlatform(name)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("program", ["#!/bin/sh\necho 'no such machine' >&2\nexit 1\n", "#!/bin/sh\nexit 3\n", ""])
def test_a_qemu_that_does_not_start(
    m4: QemuPlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    fake = tmp_path / "qemu-system-arm"
    fake.write_text(program)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with QemuPlatform() as platform:
        image = loaded(platform, "sample")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(rpmsgx.StateError, match="does not start: " + ("no such" if "echo" in program else "QMP: ")):
            platform.start(image.entry)
        assert not platform.running and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("desc_addr", ["pa", "da"])
def test_a_board_file_whose_das_are_not_its_pas(machine: str, tmp_path: Path, desc_addr: str) -> None:
    example = (ROOT / "examples" / "boards" / f"qemu-{machine}.toml").read_text()
    file = tmp_path / "board.toml"
    file.write_text(re.sub(r'desc_addr = "\w+"', f'desc_addr = "{desc_addr}"', example))
    assert boards.check(file)[1] == ()
    with Remoteproc(board=str(file)) as rproc:
        assert rproc.name == machine and rproc.platform.desc_addr == desc_addr
        assert rproc.platform.shared.pa - rproc.platform.shared.da == 0x8_0000_0000
        with rproc.open(SAMPLE, timeout=TIMEOUT) as endpoint:
            for i in range(1000):
                endpoint.send(b"%d" % i, timeout=TIMEOUT)
                assert endpoint.recv(timeout=TIMEOUT) == b"%d" % i


# -- from boot to stop, and from crash to boot -----------------------------------------------------


def test_boots_talks_stops_and_boots_again(machine: str) -> None:
    with Remoteproc(platform="qemu", machine=machine, firmware="flood") as rproc:
        for _ in range(2):
            with rproc.open("rpmsg-flood", timeout=TIMEOUT) as endpoint:
                endpoint.send(struct.pack("=4I", FLOOD_MAGIC, SINK, 0, 0))
                endpoint.send_many([struct.pack("=I", n) for n in range(1000)], timeout=TIMEOUT)
                endpoint.send(struct.pack("=4I", FLOOD_MAGIC, REPORT, 0, 0), timeout=TIMEOUT)
                assert struct.unpack("=4I", endpoint.recv(timeout=TIMEOUT)) == (FLOOD_MAGIC, 1000, 4000, 0)
                endpoint.send(struct.pack("=4I", FLOOD_MAGIC, SOURCE, 1000, 4), timeout=TIMEOUT)
                for n in range(1000):
                    assert endpoint.recv(timeout=TIMEOUT) == struct.pack("=I", n)
            rproc.shutdown()
            rproc.boot()


@pytest.mark.lesson("06")
@pytest.mark.parametrize("command, cause", [(b"u", "undefined instruction"), (b"a", "unmapped"), (b"f", "fatal error")])
def test_a_fault_is_told_and_recovered_from(machine: str, command: bytes, cause: str) -> None:
    with Remoteproc(platform="qemu", machine=machine, firmware="crash") as rproc:
        platform = rproc.platform
        endpoint = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        endpoint.send(command)
        with pytest.raises(rpmsgx.ChannelRemoved, match=f"the remote crashed: .*{cause}.* pc 0x.* in (main|board)_"):
            endpoint.recv(timeout=TIMEOUT)
        registers = platform.registers
        assert set(registers) == set(CPUS[MACHINES[machine].cpu].registers)
        ram, _ = platform.space.regions
        assert ram.da < registers["sp"] < ram.da + ram.size and ram.da < registers["pc"] < ram.da + ram.size
        with rproc.open("rpmsg-crash", timeout=TIMEOUT) as again:
            again.send(b"still here")
            assert again.recv(timeout=TIMEOUT) == b"still here"
        assert platform.registers == {}


def test_where_nothing_is(machine: str) -> None:
    with make(machine) as platform:
        driver = boot(platform, "crash")
        driver.announced(1)
        driver.send(1024, b"a")
        header = "riscv-virt" if machine.startswith("riscv") else machine
        text = (ROOT / "csrc" / "firmware" / "qemu" / f"{header}.h").read_text()
        (nowhere,) = re.findall(r"define BOARD_NOWHERE (\w+)u", text)
        assert died(platform).startswith(f"access to unmapped memory (address {nowhere}) at pc ")


@pytest.mark.hostile
@pytest.mark.parametrize("command, rule", [(b"i", "2.7.8-idx"), (b"d", "2.7.8-id"), (b"l", "2.7.8.3-1")])
def test_a_remote_that_corrupts_its_ring(machine: str, command: bytes, rule: str) -> None:
    with Remoteproc(platform="qemu", machine=machine, firmware="crash") as rproc:
        endpoint = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        endpoint.send(command)
        with pytest.raises(rpmsgx.PeerError) as caught:
            endpoint.recv(timeout=TIMEOUT)
        assert caught.value.rule == rule
        rproc.shutdown()
        rproc.boot()
        rproc.open("rpmsg-crash", timeout=TIMEOUT)


def run(platform: QemuPlatform, code: bytes) -> str:
    """Run this Thumb code, which stands where a program does, until it crashes."""
    ram, _ = platform.space.regions
    platform.space.zero(ram.da, ram.size)
    platform.space.write(ram.da, code)
    platform.start(ram.da | 1)
    crash = died(platform)
    platform.stop()
    return crash


@pytest.mark.parametrize(
    "code, cause",
    [
        # ldr r0, =AIRCR; ldr r1, =SYSRESETREQ; str r1, [r0]; b .
        ("0148 0249 0160 fee7 0ced00e0 0400fa05", "the core reset the machine"),
        # udf, without a vector table: the fault cannot be taken
        ("00de", "QEMU died of signal 6: qemu: fatal: Lockup"),
        # ldr r0, =watchdog; movs r1, #1; str r1, [r0]; movs r1, #3; str r1, [r0, #8]; b .
        ("0248 0121 0160 0321 8160 fee7 00800040", "the machine's watchdog expired"),
    ],
    ids=["reset", "lockup", "watchdog"],
)
def test_ends_that_the_firmware_does_not_tell(m4: QemuPlatform, code: str, cause: str) -> None:
    crash = run(m4, bytes.fromhex(code))
    assert crash.startswith(cause)
    assert m4.registers == {}
    boot(m4).announced(2)
    assert m4.crash is None


@pytest.mark.hostile
def test_a_report_that_is_nonsense(m4: QemuPlatform) -> None:
    ram, _ = m4.space.regions
    # ldr r0, =page.cause; ldr r3, =UART; mvn r2, #0; add r1, r0, #292; 1: str r2, [r0], #4; cmp r0, r1; bne 1b
    # movs r1, #1; str r1, [r3, #8]; movs r1, #'F'; str r1, [r3]; b .
    code = bytes.fromhex("0748dff820306ff0000200f5927140f8042b8842fbd10121996046211960fee7")
    literals = struct.pack("<II", ram.da + ram.size - 0x1000 + 12, 0x40004000)
    assert run(m4, code + literals).startswith("exception 4294967039 at pc 0xffffffff, ")
    assert set(m4.registers.values()) == {0xFFFFFFFF}


# -- processes -------------------------------------------------------------------------------------


def test_it_is_killed_by_somebody_else(machine: str) -> None:
    with make(machine) as platform:
        assert isinstance(platform, QemuPlatform)
        boot(platform).announced(2)
        pid = platform.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert ended(pid)
        assert platform.crash == "QEMU died of signal 9"  # also where nobody waits for it
        assert died(platform) == platform.crash
        assert platform.pid is None and not platform.running
        boot(platform).announced(2)


def test_it_is_stopped_for_a_while(m4: QemuPlatform) -> None:
    driver = boot(m4)
    driver.announced(2)
    assert m4.pid is not None
    os.kill(m4.pid, signal.SIGSTOP)
    try:
        for _ in range(2000):  # more than the socket takes
            driver.kick()
        with pytest.raises(rpmsgx.Timeout):
            m4.detach(0.01)
    finally:
        os.kill(m4.pid, signal.SIGCONT)
    echo(driver, 5)
    driver.status(0)
    m4.detach(TIMEOUT)


def test_a_detach_that_was_withdrawn_is_none(m4: QemuPlatform) -> None:
    driver = boot(m4)
    driver.announced(2)
    assert m4.pid is not None
    os.kill(m4.pid, signal.SIGSTOP)
    with pytest.raises(rpmsgx.Timeout):
        m4.detach(0.01)
    os.kill(m4.pid, signal.SIGCONT)
    echo(driver, 5)
    assert "detached" not in driver.trace()


HOST = """
import sys, time, rpmsgx
rproc = rpmsgx.Remoteproc(platform="qemu", machine=sys.argv[1])
endpoint = rproc.open("rpmsg-client-sample", timeout=20)
print(rproc.platform.pid, flush=True)
endpoint.recv()
"""


@pytest.mark.lesson("03")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_lesson_03_it_ends_with_its_host(machine: str, how: signal.Signals) -> None:
    """Ctrl-C is for the host alone, and is one way to end it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOST, machine], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        assert os.getpgid(pid) not in (os.getpgid(host.pid), os.getpgid(0))
        if how == signal.SIGINT:
            os.killpg(host.pid, how)
        else:
            host.kill()
        assert host.wait(TIMEOUT) == -how
        assert ended(pid)


HELD = """
import os, signal, sys
from rpmsgx.remoteproc import qemu
def kill(*args):
    os.write(1, b"%d\\n" % args[0])
    os.kill(os.getpid(), signal.SIGKILL)
qemu.Process = kill
platform = qemu.QemuPlatform()
platform.start(platform.image("sample").entry)
"""


@pytest.mark.lesson("03")
def test_lesson_03_its_host_is_killed_as_it_starts(m4: QemuPlatform) -> None:
    """Before the kernel was told to let QEMU die with it."""
    done = subprocess.run([sys.executable, "-c", HELD], stdout=subprocess.PIPE, timeout=TIMEOUT)
    assert done.returncode == -signal.SIGKILL
    assert ended(int(done.stdout))


@pytest.mark.lesson("03")
def test_forgotten_in_the_program(m4: QemuPlatform) -> None:
    other = QemuPlatform()
    other.start(loaded(other, "sample").entry)
    pid = other.pid
    assert pid is not None
    del other
    assert ended(pid)


def test_a_forked_child_leaves_it_alone(m4: QemuPlatform) -> None:
    driver = boot(m4)
    driver.announced(2)
    child = os.fork()
    if child == 0:
        m4.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    echo(driver, 20)
    assert m4.running


def test_nothing_is_left_behind(machine: str) -> None:
    def left() -> tuple[int, int]:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            return len(os.listdir("/proc/self/fd")), len(children.read().split())

    before = left()
    for _ in range(3):
        with make(machine) as platform:
            boot(platform).announced(2)
            platform.stop()
            boot(platform, "crash").announced(1)
    assert left() == before


def test_two_machines_at_once(m4: QemuPlatform) -> None:
    with QemuPlatform() as other:
        drivers = [boot(m4), boot(other)]
        for driver in drivers:
            driver.announced(2)
        for i in range(100):
            for n, driver in enumerate(drivers):
                driver.send(1024, b"%d %d" % (n, i))
            for n, driver in enumerate(drivers):
                assert driver.recv()[2] == b"%d %d" % (n, i)


def test_run_on_a_board(machine: str) -> None:
    path = ROOT / "examples" / "boards" / f"qemu-{machine}.toml"
    with subprocess.Popen(
        [sys.executable, "-m", "rpmsgx", "run", "--board", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as host:  # fmt: skip
        assert host.stdout is not None
        seen = ""
        deadline = time.monotonic() + TIMEOUT
        while "sample: up" not in seen:
            assert time.monotonic() < deadline, seen
            line = host.stdout.readline()
            assert line, seen
            seen += line
        host.send_signal(signal.SIGINT)
        assert host.wait(TIMEOUT) in (0, 130, -signal.SIGINT)
