"""`char:` without a kernel that has rpmsg: what is refused, what sysfs is taken for. tests/interop/linux has the rest.

The trees of sysfs are made of plain files: this machine's has no remotes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rpmsgx
from rpmsgx.char import Bus

REMOTE = "devices/platform/soc/imx.0/remoteproc/remoteproc2"


class Sysfs:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.drivers = root / "bus/rpmsg/drivers"
        (root / "bus/rpmsg/devices").mkdir(parents=True)

    def remote(self, number: int, name: str) -> None:
        directory = self.root / f"devices/platform/soc/imx.{number}/remoteproc/remoteproc{number}"
        directory.mkdir(parents=True)
        (directory / "name").write_text(f"{name}\n")
        link = self.root / f"class/remoteproc/remoteproc{number}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(directory)

    def channel(self, virtio: str, name: bytes, dst: int, driver: str = "", announce: bool = False) -> Path:
        device = f"{os.path.basename(virtio)}.{os.fsdecode(name.replace(b'/', b'!'))}.-1.{dst}"
        directory = self.root / virtio / device
        directory.mkdir(parents=True)
        (directory / "name").write_bytes(name + b"\n")
        (directory / "src").write_text("0xffffffff\n")
        (directory / "dst").write_text(f"{dst:#x}\n")
        (directory / "announce").write_text("true\n" if announce else "false\n")
        if driver:
            (self.drivers / driver).mkdir(parents=True, exist_ok=True)
            (directory / "driver").symlink_to(self.drivers / driver)
        (self.root / "bus/rpmsg/devices" / device).symlink_to(directory)
        return directory

    def bus(self, place: str = "") -> Bus:
        return Bus(place, sysfs=str(self.root), dev=str(self.root / "dev"))


def descriptors() -> set[str]:
    """Those that are open, when nothing waits for the garbage collector."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


@pytest.mark.parametrize(
    ("url", "role", "options", "text"),
    [
        ("char:", "device", {}, "the kernel is the driver"),
        ("char:", None, {"num": 64}, "has no options"),
        ("char:", "driver", {"spin": 1.0}, "has no options"),
        ("char:", None, {"server": True}, "has no options"),
        ("file:/nowhere", None, {}, "role must be"),
        ("nonsense:x", "driver", {}, "char:"),
    ],
)
def test_urls_that_cannot_be(url: str, role: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rpmsgx.open(url, role, **options)


def test_a_place_that_is_not_there(sysfs: Sysfs) -> None:
    with pytest.raises(FileNotFoundError, match="no remote or rpmsg device is named 'dsp'; there are: none"):
        sysfs.bus("dsp")
    sysfs.remote(2, "m4")
    sysfs.channel(f"{REMOTE}/virtio3", b"console", 1024)
    with pytest.raises(FileNotFoundError, match="there are: m4, virtio3$"):
        sysfs.bus("dsp")


def test_opening_never_waits_for_a_kernel_that_has_rpmsg(tmp_path: Path) -> None:
    with Bus(sysfs=str(tmp_path)) as bus:
        assert bus.channels == [] and not bus.is_up and bus.role == "driver" and bus.mtu == 496
        with pytest.raises(rpmsgx.Timeout, match="'x' within 0.01 s; the kernel has no rpmsg"):
            bus.open("x", timeout=0.01)
        with pytest.raises(rpmsgx.StateError, match="remote is not up"):
            bus.create_endpoint()
        assert bus.poll() == 0 and not select.select([bus], [], [], 0)[0]


def test_channels_are_those_of_remotes_oldest_first(sysfs: Sysfs) -> None:
    virtio = f"{REMOTE}/virtio0"
    for name, dst in ((b"rpmsg_ns", 53), (b"rpmsg_ctrl", 0), (b"nobody", 0xFFFFFFFF)):
        sysfs.channel(virtio, name, dst)
    sysfs.channel(virtio, b"ours", 1030, announce=True)
    sysfs.channel(virtio, b"zebra", 1025)
    sysfs.channel(virtio, b"../\x1b[31m\xff\n", 1024)
    sysfs.channel(virtio, b"zebra", 1026)
    with sysfs.bus() as bus:
        found = {channel.addr: channel.name for channel in bus.channels}
        assert found == {1024: "../\x1b[31m\\xff\n", 1025: "zebra", 1026: "zebra"}
        links = sorted(Path(sysfs.root, "bus/rpmsg/devices").iterdir(), key=lambda link: link.lstat().st_ino)
        assert list(found) == [number for link in links if (number := int(link.name.split(".")[-1])) in found]


def test_places(sysfs: Sysfs) -> None:
    sysfs.remote(2, "m4")
    sysfs.remote(3, "dsp")
    sysfs.channel(f"{REMOTE}/rproc-virtio.0/virtio0", b"one", 1024)
    sysfs.channel(REMOTE.replace("2", "3").replace("imx.0", "imx.3") + "/virtio1", b"two", 1024)
    for place, names in (("m4", ["one"]), ("virtio0", ["one"]), ("dsp", ["two"]), ("virtio1", ["two"])):
        with sysfs.bus(place) as bus:
            assert [channel.name for channel in bus.channels] == names, place
    with sysfs.bus() as bus:
        assert {channel.name for channel in bus.channels} == {"one", "two"}


def test_hooks_hear_of_channels(sysfs: Sysfs) -> None:
    virtio = f"{REMOTE}/virtio0"
    sysfs.channel(virtio, b"first", 1024)
    log: list[tuple[str, str]] = []
    with sysfs.bus() as bus:
        bus.on_new_channel = lambda channel: log.append(("new", channel.name))
        bus.on_removed = lambda channel: log.append(("removed", channel.name))
        assert select.select([bus], [], [], 1)[0] and bus.poll() == 0 and not select.select([bus], [], [], 0)[0]
        (channel,) = bus.channels
        (sysfs.root / "bus/rpmsg/devices/virtio0.first.-1.1024").unlink()
        second = sysfs.channel(virtio, b"second", 1025)
        assert [channel.name for channel in bus.channels] == ["second"] and channel.removed
        assert log == [("new", "first")]  # they are called by poll() only
        bus.poll()
        assert sorted(log[1:]) == [("new", "second"), ("removed", "first")]
        sysfs.channel(virtio, b"third", 1026)
        assert len(bus.channels) == 2
        (sysfs.root / "bus/rpmsg/devices/virtio0.third.-1.1026").unlink()
        assert len(bus.channels) == 1
        assert bus.poll() == 0 and len(log) == 3  # it came and went, and nobody was told
        bus.on_removed = lambda channel: 1 // 0
        (sysfs.root / f"bus/rpmsg/devices/{second.name}").unlink()
        bus.channels  # noqa: B018 - looks
        with pytest.raises(ZeroDivisionError):
            bus.poll()
        assert bus.poll() == 0


def test_services_that_cannot_be_opened(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpmsgx.char.bus.SETTLE", 0.05)  # seconds; a second is long for a test
    virtio = f"{REMOTE}/virtio0"
    sysfs.channel(virtio, b"audio", 1024, driver="imx_rpmsg_audio")
    sysfs.channel(virtio, b"raw", 1025, driver="rpmsg_chrdev")
    sysfs.channel(virtio, b"free", 1026)
    with sysfs.bus() as bus:
        with pytest.raises(rpmsgx.StateError, match="'audio' is taken by a driver of the kernel: imx_rpmsg_audio"):
            bus.open("audio")
        with pytest.raises(rpmsgx.Timeout, match="rpmsg_chrdev has the service 'raw', but made no node"):
            bus.open("raw", timeout=0)
        with pytest.raises(rpmsgx.StateError, match="made no node"):
            bus.open("raw")
        with pytest.raises(rpmsgx.StateError, match="module rpmsg_ctrl"):
            bus.open("free")
        for wrong in ("", "x" * 32, "a\0b", "\u00fc" * 16):
            with pytest.raises(ValueError, match="31 bytes"):
                bus.open(wrong)
        with pytest.raises(TypeError):
            bus.open(b"raw")  # type: ignore[arg-type]
        with pytest.raises(rpmsgx.Timeout, match="'x' within 0 s; it announced 'audio', 'free', 'raw'"):
            bus.open("x", timeout=0)


@pytest.mark.hostile
def test_a_dev_that_is_not_the_kernels(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpmsgx.char.bus.SETTLE", 0.05)
    channel = sysfs.channel(f"{REMOTE}/virtio0", b"raw", 1025, driver="rpmsg_chrdev")
    (channel / "rpmsg/rpmsg0").mkdir(parents=True)
    (channel / "rpmsg/rpmsg0/dev").write_text("240:0\n")
    (sysfs.root / "dev").mkdir()
    with sysfs.bus() as bus:
        before = descriptors()
        for node in (None, "/dev/null", "file"):
            if node is not None:
                (sysfs.root / "dev/rpmsg0").unlink(missing_ok=True)
                (sysfs.root / "file").touch()
                (sysfs.root / "dev/rpmsg0").symlink_to(sysfs.root / node)
            with pytest.raises(rpmsgx.StateError, match="no .*/dev/rpmsg0 that is the kernel's"):
                bus.open("raw")
        assert descriptors() == before


@pytest.mark.parametrize("wait", [lambda bus: bus.open("never"), lambda bus: bus.poll(timeout=None)])
def test_waits_end_when_the_bus_is_closed(sysfs: Sysfs, wait: Callable[[Bus], object]) -> None:
    bus = sysfs.bus()
    ended: list[BaseException] = []

    def run() -> None:
        try:
            wait(bus)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    end = time.monotonic() + 5
    while not bus._users and time.monotonic() < end:
        time.sleep(0.001)
    bus.close()
    thread.join(5)
    assert [type(error) for error in ended] == [rpmsgx.Closed]
    bus.close()
    for call in (bus.poll, bus.fileno, lambda: bus.open("x"), bus.create_endpoint):
        with pytest.raises(rpmsgx.Closed):
            call()
    assert bus.channels == [] and "closed" in repr(bus)


def test_timeouts(sysfs: Sysfs) -> None:
    with sysfs.bus() as bus:
        for wrong in (-1, float("nan")):
            for call in (bus.poll, lambda timeout: bus.open("x", timeout=timeout), bus.close):
                with pytest.raises(ValueError, match="at least 0"):
                    call(wrong)
        begin = time.monotonic()
        assert bus.poll(timeout=0.05) == 0 and time.monotonic() >= begin + 0.05


def test_no_descriptor_stays(sysfs: Sysfs) -> None:
    before = descriptors()
    bus = sysfs.bus()
    bus.fileno()
    bus.close()
    del bus
    sysfs.bus()  # not closed
    with pytest.raises(FileNotFoundError):
        sysfs.bus("nowhere")
    assert descriptors() == before


def test_a_child_has_no_part_in_it(sysfs: Sysfs) -> None:
    with sysfs.bus() as bus:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for call in (bus.poll, bus.fileno):
                    with pytest.raises(rpmsgx.StateError, match="before a fork"):
                        call()
                bus.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert bus.poll() == 0


def test_aio_opens_it_too() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rpmsgx.aio.open("char:") as bus:
            with pytest.raises(TimeoutError, match=r"did not announce 'nobody at all' within 0\.02 s"):
                await bus.open("nobody at all", timeout=0.02)

    asyncio.run(main())


def test_a_place_for_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rpmsgx", "ping", "char:nowhere-at-all"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and "no remote or rpmsg device is named 'nowhere-at-all'" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "rpmsgx", "listen", "char:", "--src", "5"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and "--src" in done.stderr
