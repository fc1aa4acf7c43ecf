# SPDX-License-Identifier: BSD-3-Clause
"""Lessons 06, 21, 22: what belongs to what, how long it lives, and where its memory is."""

from __future__ import annotations

import gc
import struct
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from remotes import NAMES, SAMPLE, SHM, Ends, crash, echo, table_in_memory
from support_wire import TIMEOUT, Call, blocked, until

import rpmsgx
from rpmsgx import ChannelRemoved, Closed, Remoteproc, ResourceError, StateError
from rpmsgx.remoteproc.platform import Platform
from rpmsgx.remoteproc.resources import Resources
from rpmsgx.virtio.table import parse

if TYPE_CHECKING:
    from pathlib import Path


def announced(rproc: Remoteproc, count: int) -> tuple[rpmsgx.Channel, ...]:
    """The channels, once there are `count`."""

    def found() -> tuple[rpmsgx.Channel, ...]:
        rproc.poll(0.01)
        return rproc.channels if len(rproc.channels) == count else ()

    channels: tuple[rpmsgx.Channel, ...] = until(found)
    return channels


# -- 06 --------------------------------------------------------------------------------------------------------------

# What goes, and what a call that waits is told: the level, in words.
LEVELS = {
    "bus": (Closed, "closed"),
    "shutdown": (ChannelRemoved, "the remote was stopped"),
    "detach": (ChannelRemoved, "detached from the remote"),
    "crash": (ChannelRemoved, "the remote crashed: .*(undefined|SIGILL)"),
    "recovery": (ChannelRemoved, "the remote crashed"),
    "delete": (ChannelRemoved, "the remote was stopped"),
}


@pytest.mark.lesson("06")
@pytest.mark.parametrize("level", LEVELS)
def test_lesson_06_calls_that_wait_hear_which_level_went(remote: dict[str, Any], level: str) -> None:
    removed: list[str] = []
    with Remoteproc(firmware="crash", recovery="disabled", **remote) as rproc:
        bus = rproc.bus
        bus.on_removed = lambda channel: removed.append(channel.name)
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        bus.poll(0)
        (channel,) = bus.channels
        full = rproc.bus.create_endpoint()
        calls = [Call(ept.recv), Call(ept.recv_many, 4), Call(bus.open, "other"), Call(full.recv), Call(ept.hold)]
        blocked(*calls)
        match level:
            case "bus":
                bus.close()
            case "shutdown":
                rproc.shutdown()
            case "detach":
                rproc.detach()
            case "crash" | "recovery":
                ept.send(b"u")
                if level == "recovery":
                    until(lambda: rproc.crash)
                    rproc.recover()
            case "delete":
                rproc.close()
        error, text = LEVELS[level]
        for call in calls:
            with pytest.raises(error, match=text):
                call.outcome()
        assert channel.removed and not bus.is_up and bus.channels == []
        with pytest.raises(error):
            ept.send(b"x")
        if level not in ("bus", "delete"):
            until(lambda: rproc.poll(0) + 1 and removed)
            assert removed == ["rpmsg-crash"]
        if level == "recovery":  # what came after is another channel of another bus
            rproc.open("rpmsg-crash", timeout=TIMEOUT)
            assert rproc.bus is not bus and rproc.channels[0] is not channel and channel.removed


@pytest.mark.lesson("06")
def test_lesson_06_a_channel_goes_alone_when_the_remote_withdraws_it() -> None:
    removed: list[str] = []
    platform = Ends(1)
    with Remoteproc(platform=platform) as rproc:
        rproc.bus.on_removed = lambda channel: removed.append(channel.name)
        ept = rproc.open("echo 0", timeout=TIMEOUT)
        kept, gone = sorted(announced(rproc, 2), key=lambda channel: channel.name, reverse=True)
        platform.withdraw("echo 0")
        announced(rproc, 1)
        assert removed == ["echo 0"] and gone.removed and not kept.removed
        assert rproc.channels == (kept,) and rproc.bus.is_up
        with pytest.raises(rpmsgx.Timeout, match="did not announce 'echo 0'"):
            rproc.open("echo 0", timeout=0.05)
        with pytest.raises(rpmsgx.Error):
            ept.send(b"x")


@pytest.mark.lesson("06")
def test_lesson_06_nothing_outlives_the_level_above(remote: dict[str, Any]) -> None:
    """What a program keeps of an uptime that is over is dead, and holds nothing of the next."""
    with Remoteproc(**remote) as rproc:
        for end in (rproc.shutdown, rproc.detach):
            echo(rproc)
            (vdev,) = rproc.vdevs
            bus, channel = rproc.bus, rproc.channels[0]
            end()
            assert rproc.vdevs == () and rproc.channels == ()
            assert vdev.bus is None and not vdev.bound and channel.removed and bus.channels == []
            with pytest.raises(StateError, match="no bus"):
                rproc.bus  # noqa: B018
            rproc.boot()
            assert vdev not in rproc.vdevs and rproc.bus is not bus and rproc.bus.is_up
            for dead in (bus.create_endpoint, lambda bus=bus: bus.open(SAMPLE, timeout=0)):
                with pytest.raises(ChannelRemoved):
                    dead()
            del dead
            bus.close()
            echo(rproc)
            old = weakref.ref(vdev)
            del vdev, bus, channel
            gc.collect()
            assert old() is None


# -- 21 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("21")
def test_lesson_21_from_the_platform_to_the_channel_and_back(remote: dict[str, Any]) -> None:
    with Remoteproc(**remote) as rproc:
        channels = announced(rproc, 2)
        ept = rproc.open(SAMPLE, timeout=TIMEOUT)
        assert isinstance(rproc.platform, Platform)
        (vdev,) = rproc.vdevs
        assert vdev.bus is rproc.bus and tuple(rproc.bus.channels) == channels and {c.name for c in channels} == NAMES
        for channel in channels:
            assert channel.bus is rproc.bus and channel.bus.vdev is vdev and vdev.remoteproc is rproc
            assert channel.remoteproc is rproc and channel.bus.remoteproc is rproc
            assert channel.remoteproc.platform.space is channel.bus.space
        assert ept.bus.vdev is vdev and next(c for c in channels if c.name == SAMPLE).endpoint is ept


@pytest.mark.lesson("21")
def test_lesson_21_two_devices_of_one_remote() -> None:
    """Which device a channel is of can be asked; each has its own rings, its own buffers, and both are served."""
    with Remoteproc(platform=Ends(2)) as rproc:
        channels = announced(rproc, 4)
        first, second = rproc.vdevs
        assert (first.index, second.index) == (0, 1) and first.bus is not second.bus
        for vdev in (first, second):
            assert vdev.bus is not None and {c.name for c in vdev.bus.channels} == {
                f"echo {vdev.index}", f"sum {vdev.index}"
            }  # fmt: skip
            assert all(c.bus is vdev.bus and c.bus.vdev is vdev and c.remoteproc is rproc for c in vdev.bus.channels)
        assert len({id(channel.bus) for channel in channels}) == 2
        for turn in range(20):
            for vdev in (first, second):
                assert vdev.bus is not None
                with vdev.bus.open(f"echo {vdev.index}", timeout=TIMEOUT) as ept:
                    ept.send(b"%d %d" % (vdev.index, turn))
                    assert ept.recv(timeout=TIMEOUT) == b"%d %d" % (vdev.index, turn)
        # Both wait at once, and the ring of the remote wakes whoever it is for.
        epts = [vdev.bus.open(f"echo {vdev.index}", timeout=TIMEOUT) for vdev in (first, second) if vdev.bus]
        calls = [Call(ept.recv) for ept in epts]
        blocked(*calls)
        for text, ept in zip((b"one", b"two"), reversed(epts), strict=True):
            ept.send(text)
        assert [call.outcome() for call in calls] == [b"two", b"one"]
        # One bus goes, the other stays.
        assert first.bus is not None
        first.bus.close()
        epts[1].send(b"still")
        assert epts[1].recv(timeout=TIMEOUT) == b"still"
        assert {c.remoteproc for c in rproc.channels} == {rproc} and len(rproc.channels) == 2


def rings_and_buffers(rproc: Remoteproc) -> list[tuple[list[int], set[int]]]:
    """Of each device: the places of its vrings as the remote finds them in its table, and the pages of its buffers."""
    space, platform = rproc.platform.space, rproc.platform
    found = []
    assert rproc._uptime is not None and rproc._uptime.plan.table_da is not None
    table = space.read(rproc._uptime.plan.table_da, len(rproc._uptime.plan.clean))
    for vdev in parse(table).vdevs:
        buffers = set()
        vring = vdev.vrings[0]
        for i in range(vring.num):
            (address,) = struct.unpack("=Q", space.read(vring.da + 16 * i, 8))
            buffers.add((space.pa_to_da(address) if platform.desc_addr == "pa" else address) & ~0xFFF)
        found.append(([vring.da for vring in vdev.vrings], buffers))
    return found


@pytest.mark.lesson("21")
def test_lesson_21_rings_and_buffers_come_from_the_devices_own_pool() -> None:
    """Device 0 has pools of its own, device 1 none: its come from the remote's memory, and not out of the pools."""
    pools = {"vdev0vring0": 0x4_0000, "vdev0vring1": 0x4_8000, "vdev0buffer": 0x8_0000}
    mine = Resources()
    for name, at in pools.items():
        mine.carveout(name, 0x20000 if name == "vdev0buffer" else 0x4000, SHM + at)
    with Remoteproc(platform=Ends(2), resources=mine) as rproc:
        announced(rproc, 4)
        for vdev in rproc.vdevs:
            assert vdev.bus is not None
            with vdev.bus.open(f"echo {vdev.index}", timeout=TIMEOUT) as ept:
                ept.send(b"x")
                assert ept.recv(timeout=TIMEOUT) == b"x"
        (rings, buffers), (other_rings, other_buffers) = rings_and_buffers(rproc)
        assert rings == [SHM + 0x4_0000, SHM + 0x4_8000]
        assert all(SHM + 0x8_0000 <= page < SHM + 0xA_0000 for page in buffers)
        for page in (*other_rings, *other_buffers):
            assert not any(SHM + at <= page < SHM + at + 0x20000 for at in pools.values())
            assert rproc.platform.space.find_da(page)[0] is rproc.platform.shared


@pytest.mark.lesson("21")
@pytest.mark.parametrize("remote", ["process", "unicorn"], indirect=True)
def test_lesson_21_a_board_gives_the_pool(remote: dict[str, Any], tmp_path: Path) -> None:
    """The same of a board file, and a remote that runs csrc."""
    base = 0x6000_0000 if remote["platform"] == "unicorn" else 0x2000_0000
    file = tmp_path / "board.toml"
    memory = [("rom", 0, "256KiB"), ("ram", 0x2000_0000, "128KiB"), ("shm", base, "1MiB")]
    lines = [f'platform = "{remote.pop("platform")}"']
    if base == 0x6000_0000:
        lines.append('shared = "shm"')
        lines += [f'[[memory]]\nname = "{name}"\nda = {da}\nsize = "{size}"' for name, da, size in memory]
    lines.append(f'[[carveout]]\nname = "vdev0buffer"\nda = {base + 0x8_0000}\nsize = "256KiB"')
    file.write_text("\n".join(lines))
    with Remoteproc(board=file, **remote) as rproc:
        ((rings, buffers),) = rings_and_buffers(rproc)
        assert all(base + 0x8_0000 <= page < base + 0xC_0000 for page in buffers)
        assert not any(base + 0x8_0000 <= ring < base + 0xC_0000 for ring in rings)
        echo(rproc, 300)  # more than there are buffers


@pytest.mark.lesson("21")
def test_lesson_21_a_pool_that_is_too_small_is_refused() -> None:
    """Never from elsewhere, not even where it would fit."""
    mine = Resources()
    mine.carveout("vdev1buffer", 0x1000, SHM + 0x4_0000)
    with pytest.raises(ResourceError, match="vdev1buffer.*too small"):
        Remoteproc(platform=Ends(2), resources=mine)


# -- 22 --------------------------------------------------------------------------------------------------------------


def handed_over(channel: rpmsgx.Channel, ept: rpmsgx.Endpoint, da: int, data: bytes) -> None:
    """Who holds a channel can hand memory to the remote: local to da and pa, and back."""
    space = channel.bus.space
    view = space.view(da, len(data))
    view[:] = data
    pa = space.da_to_pa(da, len(data))
    assert space.pa_to_da(pa) == da and pa != da
    region, offset = space.find_pa(pa, len(data))
    assert bytes(region.view[offset : offset + len(data)]) == data and region.da + offset == da
    ept.send(struct.pack("=QQ", da, len(data)))
    assert struct.unpack("=I", ept.recv(timeout=TIMEOUT)) == (sum(data),)
    for call in (space.da_to_pa, space.pa_to_da, space.find_da, space.find_pa):
        with pytest.raises(ResourceError, match="no granted region"):
            call(0xDEAD_0000_0000)


@pytest.mark.lesson("22")
def test_lesson_22_addresses_translate_for_whoever_holds_a_channel() -> None:
    mine = Resources()
    mine.carveout("mine", 0x1000, SHM + 0x9_0000)
    with Remoteproc(platform=Ends(2), resources=mine) as rproc:
        for channel in announced(rproc, 4):
            if channel.name.startswith("sum"):
                with channel.bus.open(channel.name, timeout=TIMEOUT) as ept:
                    for data in (b"\1", bytes(range(256)) * 16):
                        handed_over(channel, ept, SHM + 0x9_0000, data)


@pytest.mark.lesson("22")
def test_lesson_22_on_every_remote(remote: dict[str, Any]) -> None:
    """What the remote knows by its own addresses is found from a channel: its table, its trace."""
    with Remoteproc(**remote) as rproc:
        echo(rproc)
        space = rproc.channels[0].bus.space
        table = table_in_memory(rproc)
        (trace,) = parse(table).traces
        pa = space.da_to_pa(trace.da, trace.len)
        region, offset = space.find_pa(pa, trace.len)
        assert bytes(region.view[offset : offset + 11]) == b"sample: up\n"
        assert space.pa_to_da(pa) == trace.da != pa
        for vring in parse(table).vdevs[0].vrings:
            assert space.pa_to_da(space.da_to_pa(vring.da, vring.size)) == vring.da


@pytest.mark.lesson("22")
@pytest.mark.parametrize("transport", ["file", "memfd"])
def test_lesson_22_without_a_remoteproc(tmp_path: Path, transport: str) -> None:
    """Two ends of a link: each translates in the space of its bus, and what one puts there the other finds."""
    url = f"{transport}:{tmp_path / 'link'}"
    with rpmsgx.open(url, "device") as device, rpmsgx.open(url, "driver") as driver:
        back: list[bytes] = []

        def take(ept: Any, data: bytes, src: int) -> None:
            back.append(ept.bus.space.read(*struct.unpack("=QQ", data)))

        device.create_endpoint("take", callback=take)
        ept = None
        calls = Call(driver.open, "take", timeout=TIMEOUT)
        until(lambda: device.poll(0.01) + 1 and not calls.is_alive())
        ept = calls.outcome()
        (channel,) = driver.channels
        assert channel.remoteproc is None and channel.bus.vdev is None
        space = channel.bus.space
        region = space.regions[0]
        da = region.da + region.size - 64  # in the driver's last buffer, which nobody uses yet
        assert space.pa_to_da(space.da_to_pa(da, 64), 64) == da
        space.view(da, 5)[:] = b"hello"
        ept.send(struct.pack("=QQ", da, 5))
        until(lambda: device.poll(0.01) + 1 and back)
        assert back == [b"hello"]
        with pytest.raises(ResourceError, match="no granted region"):
            space.da_to_pa(region.da + region.size)


@pytest.mark.lesson("22")
def test_lesson_22_a_crashed_remotes_memory_is_still_there(remote: dict[str, Any]) -> None:
    """Its channel is gone, its addresses are not: that is what a dump is made from."""
    with Remoteproc(firmware="crash", recovery="disabled", **remote) as rproc:
        rproc.open("rpmsg-crash", timeout=TIMEOUT).close()
        bus = rproc.bus
        crash(rproc)
        (trace,) = parse(table_in_memory(rproc)).traces
        assert b"crash: up" in bus.space.read(trace.da, trace.len)
