# SPDX-License-Identifier: BSD-3-Clause
"""Lessons 01, 02, 03, 11 to 15: what boots when, with what, and that it ends again."""

from __future__ import annotations

import gc
import os
import re
import struct
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from remotes import (
    M4_TABLE,
    NAMES,
    SAMPLE,
    VDEV,
    WFI,
    Recorder,
    clean_table,
    echo,
    gone,
    m4_elf,
    recorded,
    table_in_memory,
)
from support_wire import TIMEOUT, until

import rpmsgx
from rpmsgx import Remoteproc, ResourceError, StateError
from rpmsgx.firmware import path as shipped
from rpmsgx.remoteproc.platform import open_platform
from rpmsgx.remoteproc.resources import Resources
from rpmsgx.virtio.table import Trace, Vendor, build, parse

# -- 01 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("01")
def test_lesson_01_a_remote_boots_though_nobody_uses_rpmsg(remote: dict[str, Any]) -> None:
    """No bus, no poll: it is up by itself, and stays until it is shut down."""
    with Remoteproc(**remote) as rproc:
        assert (rproc.state, rproc.power) == ("running", 1) and rproc.platform.running
        until(lambda: "sample: up\n" in rproc.trace())
        rproc.shutdown()
        assert rproc.state == "offline" and not rproc.platform.running


@pytest.mark.lesson("01")
@pytest.mark.parametrize("table", [None, (), (Trace(0x2001_0000, 64, "trace0"),), (VDEV._replace(id=3),)])
def test_lesson_01_a_remote_boots_whatever_its_table_holds(tmp_path: Path, table: Any) -> None:
    """No table at all, an empty one, one without virtio devices, one with a device that is not rpmsg."""
    code = ((0, 0x2001_0000), (1, 0x746F6F62), 0x6001, *WFI)  # str r1, [r0]
    elf = tmp_path / "fw.elf"
    elf.write_bytes(m4_elf(code, build(table or ())))
    if table is None:
        elf.write_bytes(without_table(elf.read_bytes()))
    with Remoteproc(platform="unicorn", firmware=str(elf)) as rproc:
        assert rproc.state == "running" and rproc.vdevs == ()
        until(lambda: rproc.platform.space.read(0x2001_0000, 4) == b"boot")


@pytest.mark.lesson("01")
@pytest.mark.parametrize("how", ["argument", "board"])
def test_lesson_01_without_auto_boot_only_boot_does(tmp_path: Path, how: str) -> None:
    if how == "board":
        board = tmp_path / "board.toml"
        board.write_text('platform = "native"\nauto_boot = false\nfirmware = "sample"\n')
        rproc = Remoteproc(board=board)
    else:
        rproc = Remoteproc(platform="native", auto_boot=False)
    with rproc:
        rproc.poll(0.05)
        for use in (lambda: rproc.open(SAMPLE, timeout=0.05), lambda: rproc.bus, rproc.trace):
            with pytest.raises(StateError, match="is offline"):
                use()
        assert rproc.channels == () and rproc.vdevs == ()
        assert (rproc.state, rproc.power) == ("offline", 0) and not rproc.platform.running
        rproc.boot()
        assert rproc.platform.running
        echo(rproc)


def without_table(elf: bytes) -> bytes:
    """The image without section headers, and so without .resource_table."""
    data = bytearray(elf)
    struct.pack_into("<I", data, 32, 0)  # e_shoff
    struct.pack_into("<3H", data, 46, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
    return bytes(data)


# -- 02 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("02")
def test_lesson_02_the_first_instructions_find_a_complete_table_and_rings(tmp_path: Path) -> None:
    """A core that does nothing but copy its table, then vring 0, from its first instruction on."""
    table = build([VDEV, Trace(0x2000_8000, 64, "trace0")])
    copy, size = 0x2001_0000, 0x2000
    copy_words = 0x6803, 0x600B, 0x3004, 0x3104, 0x3A01, 0xD1F9  # r2 words from [r0] to [r1]
    vring = parse(table).vdevs[0].offset + 28
    code = [
        (0, M4_TABLE), (1, copy), (2, len(table) // 4),
        0x6804 | vring // 4 << 6,  # ldr r4, [r0, #vring]: its da
        *copy_words,
        0x0020, (2, size // 4),  # movs r0, r4
        *copy_words,
        (0, 0x656E6F64), 0x6008, *WFI,  # str r0, [r1]
    ]  # fmt: skip
    elf = tmp_path / "fw.elf"
    elf.write_bytes(m4_elf(code, table))
    with Remoteproc(platform="unicorn", firmware=str(elf)) as rproc:
        space = rproc.platform.space
        end = copy + len(table) + size
        until(lambda: space.read(end, 4) == b"done" or rproc.crash)
        assert rproc.crash is None
        (vdev,) = parse(space.read(copy, len(table))).vdevs
        ring = space.read(copy + len(table), size)
        (mine,) = rproc.vdevs
        assert mine.buffers is not None
        assert (vdev.status, vdev.gfeatures) == (7, 1)
        assert [vring.notifyid for vring in vdev.vrings] == [0, 1]
        assert all(space.find_da(vring.da, vring.size)[0] is rproc.platform.shared for vring in vdev.vrings)
        for i in range(64):  # every buffer is posted
            address, length, flags, _ = struct.unpack_from("<QIHH", ring, 16 * i)
            assert (address, length, flags) == (mine.buffers.da + 512 * i, 512, 2)
        assert struct.unpack_from("<66H", ring, 16 * 64)[1:] == (64, *range(64))
        assert ring[0x1000:] == bytes(0x1000)  # the used ring
        assert table_in_memory(rproc) == space.read(copy, len(table))  # nothing was filled in later


@pytest.mark.lesson("02")
def test_lesson_02_a_boot_is_done_in_order(remote: dict[str, Any]) -> None:
    log: list[str] = []
    platform = recorded(open_platform(remote.pop("platform"), **remote), log)
    image = platform.image

    def noted(firmware: str | None) -> Any:
        log.append("parse")
        return image(firmware)

    platform.image = noted  # type: ignore[method-assign]

    class Look(Recorder):
        def _do(self, what: str) -> None:
            super()._do(what)
            status = parse(table_in_memory(rproc)).vdevs[0].status
            seen.append((what, platform.running, status))

    seen: list[Any] = []
    with Remoteproc(platform=platform, auto_boot=False) as rproc:
        rproc.add_subdevice(Look(log))
        rproc.boot()
        image_calls = [entry for entry in log if entry != "parse"]
        assert image_calls == ["prepare", "sub prepare", "start", "sub start"]
        # The core starts between the two, with DRIVER_OK standing there.
        assert seen == [("prepare", False, 0), ("start", True, 7)]
        echo(rproc)


# -- 03 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("03")
@pytest.mark.parametrize("user", ["nobody", "bus closed", "endpoint closed", "crashed", "subdevice"])
def test_lesson_03_deleting_stops_what_was_booted(remote: dict[str, Any], user: str) -> None:
    rproc = Remoteproc(**remote, auto_boot=False)
    if user == "subdevice":
        rproc.add_subdevice(Recorder([]))
    rproc.boot()
    echo(rproc)
    if user == "bus closed":
        rproc.bus.close()
    elif user == "crashed":
        rproc.crashed()
    pid = getattr(rproc.platform, "pid", None)
    platform, deleted = weakref.ref(rproc.platform), weakref.ref(rproc)
    del rproc
    gc.collect()
    assert deleted() is None and platform() is None
    assert pid is None or gone(pid)


@pytest.mark.lesson("03")
def test_lesson_03_a_user_who_holds_a_channel_holds_the_remote(remote: dict[str, Any]) -> None:
    """The last reference ends it, whichever that is; nothing holds itself."""
    rproc = Remoteproc(**remote)
    rproc.open(SAMPLE, timeout=TIMEOUT).close()
    channel = rproc.channels[0]
    deleted = weakref.ref(rproc)
    del rproc
    gc.collect()
    assert channel.remoteproc is deleted() and channel.remoteproc.state == "running"
    echo(channel.remoteproc)
    del channel
    gc.collect()
    assert deleted() is None


@pytest.mark.lesson("03")
@pytest.mark.parametrize("kind", ["process", "lasting", "unicorn"])
@pytest.mark.parametrize("end", ["", "del rproc", "sys.exit(3)", "raise ValueError"])
def test_lesson_03_at_the_end_of_the_program(path: str, kind: str, end: str) -> None:
    options = {"process": "'native', process=True", "lasting": f"'native', socket={path!r}", "unicorn": "'unicorn'"}
    program = f"""
import rpmsgx, sys
rproc = rpmsgx.Remoteproc(platform={options[kind]})
with rproc.open("{SAMPLE}", timeout=10) as ept:
    ept.send(b"x"); ept.recv(timeout=10)
ept = rproc.open("{SAMPLE}", timeout=10)
print(getattr(rproc.platform, "pid", 0), flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert done.returncode == {"sys.exit(3)": 3, "raise ValueError": 1}.get(end, 0), done.stderr
    assert "Exception ignored" not in done.stderr and (end == "raise ValueError" or not done.stderr)
    assert int(done.stdout) == 0 or gone(int(done.stdout))
    assert not os.path.exists(path)


# -- 11 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("11")
def test_lesson_11_firmware_changes_while_it_is_offline_and_only_then(remote: dict[str, Any]) -> None:
    with Remoteproc(firmware="crash", recovery="disabled", **remote) as rproc:

        def refused(state: str) -> None:
            assert rproc.state == state
            with pytest.raises(StateError, match=f"{state}.*offline"):
                rproc.firmware = "sample"
            assert rproc.firmware == "crash"

        refused("running")
        rproc.detach()
        refused("detached")
        rproc.attach()
        refused("attached")
        rproc.open("rpmsg-crash", timeout=TIMEOUT)
        rproc.crashed()
        refused("crashed")
        rproc.shutdown()
        for name, service in (("sample", SAMPLE), ("flood", "rpmsg-flood"), ("sample", SAMPLE)):
            rproc.firmware = name
            rproc.boot()
            rproc.open(service, timeout=TIMEOUT).close()
            rproc.shutdown()


# -- 12 --------------------------------------------------------------------------------------------------------------

BOARD = """
platform = "unicorn"
firmware = "sample"
shared = "shm"
{more}
[[memory]]
name = "rom"
da = 0
size = "256KiB"
[[memory]]
name = "ram"
da = 0x2000_0000
size = "128KiB"
[[memory]]
name = "shm"
da = 0x6000_0000
pa = 0x9200_0000
size = "1MiB"
[[carveout]]
name = "vdev0buffer"
da = 0x6008_0000
size = "256KiB"
[[carveout]]
name = "heap"
size = "16KiB"
"""


def board(tmp_path: Path, more: str = "") -> Path:
    file = tmp_path / "board.toml"
    file.write_text(BOARD.format(more=more))
    return file


@pytest.mark.lesson("12")
def test_lesson_12_what_the_board_the_code_and_the_firmware_say_comes_together(tmp_path: Path) -> None:
    mine = Resources()
    mine.carveout("heap", 0x4000, 0x600C_0000)  # the board has its size, this program its place
    mine.carveout("vdev0vring1", 0x8000, 0x600E_0000)
    with Remoteproc(board=board(tmp_path), resources=mine) as rproc:
        echo(rproc)
        (vdev,) = parse(table_in_memory(rproc)).vdevs
        assert vdev.vrings[1].da == 0x600E_0000
        (mine_vdev,) = rproc.vdevs
        assert mine_vdev.buffers is not None and mine_vdev.buffers.da == 0x6008_0000
        assert rproc.platform.space.da_to_pa(0x6008_0000) == 0x9208_0000


@pytest.mark.lesson("12")
@pytest.mark.parametrize(
    "claim, both",
    [
        ({"name": "heap", "size": 0x8000}, ("board.toml:[0-9]+ gives 0x4000", "code asks 0x8000")),
        ({"name": "vdev0buffer", "size": 0x40000, "da": 0x6000_0000}, ("0x60080000", "0x60000000")),
        ({"name": "vdev0vring0", "size": 0x1000}, ("0x1000", "0x3000")),
    ],
    ids=["size", "address", "the firmware's"],
)
def test_lesson_12_what_does_not_fit_is_refused_and_both_are_shown(
    tmp_path: Path, claim: dict[str, Any], both: tuple[str, str]
) -> None:
    mine = Resources()
    mine.carveout(claim.pop("name"), claim.pop("size"), *claim.values())
    with pytest.raises(ResourceError) as caught:
        Remoteproc(board=board(tmp_path), resources=mine).close()
    assert all(re.search(part, str(caught.value)) for part in both), caught.value


# -- 13, 14 ----------------------------------------------------------------------------------------------------------


def silent(kind: str, tmp_path: Path) -> dict[str, Any]:
    """The sample, which wants a table and ships none: the arguments of a Remoteproc, and where it wants the table."""
    if kind == "unicorn":
        file = tmp_path / "silent.elf"
        file.write_bytes(without_table(Path(shipped("sample")).read_bytes()))
        return {"platform": "unicorn", "firmware": str(file)}
    return {"platform": "native", "process": kind == "process"}


def expected(kind: str) -> tuple[int, bytes, Trace]:
    """Where the sample looks for its table, what would stand there, and its trace buffer."""
    with open_platform("unicorn" if kind == "unicorn" else "native") as platform:
        found = platform.image("sample").resource_table
    assert found is not None and found[0] is not None
    (trace,) = parse(found[1]).traces
    return found[0], found[1], trace


@pytest.mark.lesson("13")
@pytest.mark.parametrize("kind", ["thread", "process", "unicorn"])
def test_lesson_13_resources_come_from_code_alone(tmp_path: Path, kind: str) -> None:
    """No table: the remote boots, and its trace is read, for the program says where it is."""
    _, _, trace = expected(kind)
    mine = Resources()
    mine.parse = lambda image: None
    mine.trace("trace0", trace.len, trace.da)
    mine.carveout("heap", 0x4000)
    with Remoteproc(resources=mine, **silent(kind, tmp_path)) as rproc:
        assert rproc.state == "running" and rproc.platform.running and rproc.vdevs == ()
        rproc.platform.space.write(trace.da, b"from the remote\0")
        assert rproc.trace() == "from the remote"
        with pytest.raises(StateError, match="no bus"):
            rproc.open(SAMPLE, timeout=0)


@pytest.mark.lesson("13")
def test_lesson_13_the_parser_is_the_programs(remote: dict[str, Any]) -> None:
    """A parser of another format: here one that knows of a vendor entry behind what the firmware has."""
    told: list[Vendor] = []
    mine = Resources()

    def parser(image: Any) -> tuple[int, bytes]:
        da, table = image.resource_table
        return da, table + bytes(4)

    mine.parse = parser
    mine.vendor(128, lambda entry: bool(told.append(entry)) or True)
    with Remoteproc(resources=mine, **remote) as rproc:
        echo(rproc)
        rproc.detach()
        da, clean = clean_table(rproc)
        assert rproc.platform.space.read(da, len(clean) + 4) == clean + bytes(4)


@pytest.mark.lesson("14")
@pytest.mark.parametrize("kind", ["thread", "process", "unicorn"])
def test_lesson_14_a_table_is_built_and_put_where_the_firmware_looks(tmp_path: Path, kind: str) -> None:
    da, wanted, _ = expected(kind)
    (device,) = parse(wanted).vdevs
    mine = Resources()
    mine.parse = lambda image: None
    mine.table_da = da
    mine.vdev(features=device.dfeatures)
    mine.vdev((), id=3)  # the sample's own table has two entries, and its device is the first
    options = silent(kind, tmp_path)
    with Remoteproc(resources=mine, **options) as rproc:
        (vdev, other) = parse(rproc.platform.space.read(da, 0x78)).vdevs
        assert (vdev.status, vdev.dfeatures, other.id) == (7, device.dfeatures, 3)
        assert {channel.name for channel in settled(rproc)} == NAMES
        for _ in range(2):
            echo(rproc)
            rproc.shutdown()
            rproc.boot()
        rproc.detach()
        assert rproc.platform.space.read(da + 24 + 28, 4) == b"\xff\xff\xff\xff"  # built anew, it is clean
        rproc.attach()
        echo(rproc)


@pytest.mark.lesson("14")
def test_lesson_14_without_a_place_for_the_table_the_boot_is_refused(tmp_path: Path) -> None:
    mine = Resources()
    mine.vdev()
    with pytest.raises(ResourceError, match="set table_da to where the firmware looks for it"):
        Remoteproc(resources=mine, **silent("unicorn", tmp_path))


def settled(rproc: Remoteproc) -> tuple[rpmsgx.Channel, ...]:
    """The channels, once both of the sample's are there."""

    def channels() -> tuple[rpmsgx.Channel, ...]:
        rproc.poll(0.01)
        return rproc.channels if len(rproc.channels) == len(NAMES) else ()

    found: tuple[rpmsgx.Channel, ...] = until(channels)
    return found


# -- 15 --------------------------------------------------------------------------------------------------------------

UP = ["one prepare", "two prepare", "one start", "two start"]
DOWN = ["two stop", "one stop", "two unprepare", "one unprepare"]


@pytest.mark.lesson("15")
def test_lesson_15_anything_follows_the_remote(remote: dict[str, Any]) -> None:
    """Through every way up and down; backwards on the way down; a channel is there when they stop gracefully."""
    log: list[str] = []

    class Talks(Recorder):
        """Uses the remote as long as it may."""

        def start(self) -> None:
            super().start()
            self.running = rproc.platform.running

        def stop(self, crashed: bool) -> None:
            super().stop(crashed)
            self.running = rproc.platform.running

    with Remoteproc(auto_boot=False, firmware="crash", **remote) as rproc:
        one, two = Talks(log, "one"), Talks(log, "two")
        rproc.add_subdevice(one)
        rproc.add_subdevice(two)

        def moved(act: Any) -> list[str]:
            log.clear()
            act()
            return log

        assert moved(rproc.boot) == UP and one.running
        assert moved(rproc.boot) == []
        assert moved(rproc.shutdown) == []
        assert moved(rproc.shutdown) == DOWN and one.running  # it still ran when they stopped
        assert moved(rproc.boot) == UP
        assert moved(rproc.detach) == DOWN and one.running
        assert moved(rproc.attach) == UP
        rproc.open("rpmsg-crash", timeout=TIMEOUT).send(b"echo")
        rproc.crashed()
        crashed = ["two stop crashed", "one stop crashed", *DOWN[2:]]
        assert moved(rproc.recover) == [*crashed, *UP] and one.running
        assert moved(rproc.close) == DOWN


@pytest.mark.lesson("15")
@pytest.mark.parametrize("fail, done", [
    ("prepare", ["one prepare", "two prepare", "two unprepare", "one unprepare"]),
    ("start", ["one prepare", "two prepare", "one start", "two start", *DOWN]),
])  # fmt: skip
def test_lesson_15_what_fails_is_unrolled_in_reverse(remote: dict[str, Any], fail: str, done: list[str]) -> None:
    log: list[str] = []
    with Remoteproc(auto_boot=False, **remote) as rproc:
        rproc.add_subdevice(Recorder(log, "one"))
        two = Recorder(log, "two", fail=fail)
        rproc.add_subdevice(two)
        for _ in range(2):
            log.clear()
            with pytest.raises(OSError, match=f"two cannot {fail}") as caught:
                rproc.boot()
            assert "subdevices" in caught.value.__notes__[0]
            assert log == done
            assert (rproc.state, rproc.power) == ("offline", 0) and not rproc.platform.running
        two.fail = ""
        rproc.boot()
        echo(rproc)
        # The same on an attach: the remote runs on, and can be attached to.
        rproc.detach()
        two.fail = fail
        log.clear()
        with pytest.raises(OSError, match=f"two cannot {fail}"):
            rproc.attach()
        assert log == done and (rproc.state, rproc.power) == ("detached", 0) and rproc.platform.running
        two.fail = ""
        rproc.attach()
        echo(rproc)
        # On the way down one that fails is passed over.
        two.fail = "stop"
        rproc.shutdown()
        assert rproc.state == "offline"
