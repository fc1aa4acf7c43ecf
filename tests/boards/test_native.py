# SPDX-License-Identifier: BSD-3-Clause
"""What is special to csrc's remote as a thread or a process of this machine."""

from __future__ import annotations

import os
import runpy
import select
import signal
import subprocess
import sys

import pytest
from support import ROOT
from support_boards import TIMEOUT, Driver, boot, died, echo, loaded, make, rings

import rpmsgx
from rpmsgx.remoteproc.native import NativePlatform, applications, native_sources_sha256

HOST = """
import sys, time
from rpmsgx.remoteproc.native import NativePlatform
platform = NativePlatform({arguments})
image = platform.image(None)
image.load(platform.space)
platform.start(image.entry)
print(platform.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def process():  # type: ignore[no-untyped-def]
    with make("process") as platform:
        yield platform


def test_applications_and_sources(process: NativePlatform) -> None:
    assert applications() == ("sample", "flood", "crash")
    image = process.image(None)
    assert (image.name, image.entry) == ("native", 0)
    # The extension that is tested was built from the sources that lie here.
    build = runpy.run_path(str(ROOT / "rpmsgx" / "remoteproc" / "native_build.py"))
    assert image.sha256 == native_sources_sha256() == build["sources_sha256"]()
    assert process.image("flood").entry == 1
    with pytest.raises(rpmsgx.FirmwareError, match="no native application 'missing'"):
        process.image("missing")


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="desc_addr"):
        NativePlatform(desc_addr="va")  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [("thread", "thread"), ("process", "process"), ("thread", "process")])
def test_two_at_once(kinds: tuple[str, str]) -> None:
    with make(kinds[0]) as one, make(kinds[1]) as two:
        drivers = [boot(one), boot(two, "crash")]
        drivers[0].announced(2)
        drivers[1].announced(1)
        for i in range(200):
            for n, driver in enumerate(drivers):
                driver.send(1024, b"%d %d" % (n, i))
            for n, driver in enumerate(drivers):
                assert driver.recv()[2] == b"%d %d" % (n, i)
        drivers[1].send(1024, b"f")
        assert died(two) == "fatal error"
        echo(drivers[0], 10)
        assert one.crash is None and one.running


def test_killed(process: NativePlatform) -> None:
    for sig, text in ((signal.SIGKILL, "killed by signal 9 (SIGKILL)"), (signal.SIGTERM, "15 (SIGTERM)")):
        boot(process).announced(2)
        assert process.pid is not None
        os.kill(process.pid, sig)
        assert text in died(process)
        assert process.pid is None and not process.running
        process.stop()


def test_death_stays_visible_until_it_is_drained(process: NativePlatform) -> None:
    driver = boot(process)
    driver.announced(2)
    while rings(process, 0.05):
        process.doorbell.drain()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert rings(process)
    assert process.crash is not None
    assert rings(process, 0)
    process.doorbell.drain()
    assert not rings(process, 0)
    process.stop()
    boot(process).announced(2)
    assert process.crash is None


def test_a_process_that_hangs_is_killed(process: NativePlatform) -> None:
    driver = boot(process, "crash")
    driver.announced(1)
    driver.send(1024, b"h")
    driver.until("crash: hang\n")
    assert process.pid is not None
    pidfd = os.pidfd_open(process.pid)
    process.stop()
    assert select.select([pidfd], [], [], 0)[0]
    os.close(pidfd)
    assert process.crash is None and process.pid is None


@pytest.mark.lesson("09")
def test_lesson_09_a_detach_that_was_not_acknowledged_is_taken_back(process: NativePlatform) -> None:
    """The remote, which was only slow, is still attached: nothing was lost, and the next detach is a new one."""
    driver = boot(process)
    driver.announced(2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    driver.send(1024, b"while it was stopped")
    with pytest.raises(rpmsgx.Timeout):
        process.detach(0.05)
    os.kill(process.pid, signal.SIGCONT)
    assert driver.recv()[2] == b"while it was stopped"
    echo(driver, 10)
    assert "detached" not in driver.trace()
    driver.status(0)
    process.detach(TIMEOUT)
    assert driver.trace().endswith("sample: detached\n")


def test_descriptors_are_given_back() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    for kind in ("thread", "process"):
        make(kind).close()
        before = count()
        for _ in range(3):
            with make(kind) as platform:
                for _ in range(2):
                    boot(platform).announced(2)
                    platform.stop()
        assert count() == before


@pytest.mark.lesson("23")
@pytest.mark.parametrize("arguments", ["process=True", "'crash', process=True"])
def test_the_process_dies_with_its_host(arguments: str, process: NativePlatform) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST.format(arguments=arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert host.stdout is not None
    pidfd = os.pidfd_open(int(host.stdout.readline()))
    assert not select.select([pidfd], [], [], 0)[0]
    host.kill()
    assert select.select([pidfd], [], [], TIMEOUT)[0]
    os.close(pidfd)
    host.communicate()


@pytest.mark.lesson("03")
@pytest.mark.parametrize("arguments", ["", "process=True", "'crash'"])
def test_forgotten_at_exit(arguments: str, process: NativePlatform) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOST.format(arguments=arguments)],
        input="\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "process" in arguments:
        with pytest.raises(ProcessLookupError):
            os.kill(int(done.stdout), 0)


def test_the_table_is_clean_after_a_reload(process: NativePlatform) -> None:
    image = loaded(process, "sample")
    assert image.resource_table is not None
    da, table = image.resource_table
    assert da is not None
    Driver(process, image).begin()
    assert process.space.read(da, len(table)) != table
    image.load(process.space)
    assert process.space.read(da, len(table)) == table
