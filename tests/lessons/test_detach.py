# SPDX-License-Identifier: BSD-3-Clause
"""Lessons 05 and 07 to 10: buses that come and go, detach and attach, and every event in every state."""

from __future__ import annotations

import os
import shutil
import signal
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from remotes import (
    NAMES,
    SAMPLE,
    Gate,
    Host,
    clean_table,
    crash,
    echo,
    gone,
    recorded,
    table_in_memory,
)
from support_boards import Driver, make
from support_wire import TIMEOUT, until

import rpmsgx
from rpmsgx import Closed, Remoteproc, ResourceError, StateError, Timeout
from rpmsgx.firmware import path as shipped
from rpmsgx.remoteproc.native import NativePlatform
from rpmsgx.remoteproc.platform import open_platform
from rpmsgx.remoteproc.resources import Resources
from rpmsgx.virtio.table import ADDR_ANY, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

lasting = pytest.mark.parametrize("remote", ["thread", "lasting", "unicorn"], indirect=True)

# -- 05 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("05")
def test_lesson_05_the_bus_is_closed_and_opened_again_many_times(remote: dict[str, Any]) -> None:
    """Each time the remote announces all its channels again, once, and nothing of the bus before is left."""
    with Remoteproc(**remote) as rproc:
        for turn in range(20):
            bus = rproc.bus
            ept = rproc.open(SAMPLE, timeout=TIMEOUT)
            for _ in range(turn):  # the rings never begin where the last ones did
                ept.send(b"x")
                assert ept.recv(timeout=TIMEOUT) == b"x"
            ept.send(b"on its way")
            until(lambda bus=bus: bus.poll(0) + 1 and len(bus.channels) == 2)  # type: ignore[misc]
            assert {channel.name for channel in bus.channels} == NAMES
            bus.close()
            assert rproc.channels == () and rproc.state == "running"
            with pytest.raises(Closed):
                ept.recv(timeout=TIMEOUT)
            assert rproc.bus is not bus
        echo(rproc)


@pytest.mark.lesson("05")
@lasting
@pytest.mark.parametrize("order", ["bus, remote", "remote, bus", "crash, bus", "detach, bus", "bus, detach"])
def test_lesson_05_bus_and_remote_come_and_go_in_any_order(remote: dict[str, Any], order: str) -> None:
    with Remoteproc(firmware="crash", recovery="disabled", **remote) as rproc:
        for _ in range(3):
            bus = rproc.bus
            rproc.open("rpmsg-crash", timeout=TIMEOUT)
            for what in order.split(", "):
                match what:
                    case "bus":
                        bus.close()
                        bus.close()
                    case "remote":
                        rproc.shutdown()
                    case "crash":
                        rproc.crashed()
                    case "detach":
                        rproc.detach()
            assert not bus.is_up and bus.channels == [] and rproc.channels == ()
            if rproc.state == "crashed":
                rproc.recover()
            else:
                rproc.boot()
            with rproc.open("rpmsg-crash", timeout=TIMEOUT) as ept:
                ept.send(b"echo")
                assert ept.recv(timeout=TIMEOUT) == b"echo"
            assert [channel.name for channel in rproc.channels] == ["rpmsg-crash"]


@pytest.mark.lesson("05")
@pytest.mark.parametrize("kind", ["thread", "process", "unicorn"])
@pytest.mark.parametrize("status", [0, 0x40], ids=["as Linux", "as OpenAMP"])
def test_lesson_05_the_remote_sees_either_way_of_a_reset(kind: str, status: int) -> None:
    """What a driver writes by hand, from the specification; the remote lets go of the rings, and starts over."""
    with make(kind) as platform:
        platform.prepare()
        image = platform.image("sample")
        image.load(platform.space)
        driver = Driver(platform, image)
        driver.begin()
        platform.start(image.entry)
        driver.kick()
        for turn in range(3):
            assert driver.announced(2) == {SAMPLE: 1024, "rpmsg-raw": 1025}
            driver.send(1024, b"hello")
            assert driver.recv()[2] == b"hello"
            driver.status(status)
            driver.kick()
            until(lambda turn=turn: driver.trace().count("down: reset by the driver") == turn + 1)  # type: ignore[misc]
            driver.begin()
            driver.kick()
        assert driver.announced(2) == {SAMPLE: 1024, "rpmsg-raw": 1025}


# -- 07 --------------------------------------------------------------------------------------------------------------

FIXED = (0x1_0000, 0x2_8000)  # where this firmware has its vrings, seen from the start of the shared memory


@pytest.fixture(params=["dynamic", "fixed", "one fixed"])
def vrings(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def firmware_with(vrings: str, remote: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The sample, with vrings that the host places, or that stand in the firmware's own table."""
    if vrings == "dynamic":
        return {}
    places = FIXED if vrings == "fixed" else FIXED[:1]
    if remote["platform"] == "unicorn":  # the table in the ELF file itself
        with open_platform("unicorn") as platform:
            found = platform.image("sample").resource_table
        assert found is not None
        elf = Path(shipped("sample")).read_bytes()
        file = tmp_path / "fixed.elf"
        file.write_bytes(elf.replace(found[1], fixed(found[1], 0x6000_0000, places)))
        return {"firmware": str(file)}
    mine = Resources()

    def parser(image: Any) -> tuple[int, bytes]:
        da, table = image.resource_table
        return da, fixed(table, 0x2000_0000, places)

    mine.parse = parser
    return {"resources": mine}


def fixed(table: bytes, base: int, places: tuple[int, ...]) -> bytes:
    changed = bytearray(table)
    (vdev,) = parse(table).vdevs
    for number, place in enumerate(places):
        struct.pack_into("=I", changed, vdev.offset + 28 + 20 * number, base + place)
    return bytes(changed)


@pytest.mark.lesson("07")
@lasting
def test_lesson_07_a_detach_restores_the_table_byte_for_byte(
    remote: dict[str, Any], vrings: str, tmp_path: Path
) -> None:
    """ANY reads ANY again, what the firmware fixed stays fixed; any number of times."""
    with Remoteproc(**remote, **firmware_with(vrings, remote, tmp_path)) as rproc:
        da, clean = clean_table(rproc)
        if rproc.resources.parse is not None:
            found = rproc.resources.parse(rproc.image)
            assert found is not None
            clean = bytes(found[1])
        space = rproc.platform.space
        base = rproc.platform.shared.da
        wanted = [base + place for place in (FIXED if vrings == "fixed" else FIXED[:1] if "one" in vrings else ())]
        (vdev,) = parse(clean).vdevs
        assert [vring.da for vring in vdev.vrings] == (wanted + 2 * [ADDR_ANY])[:2]
        places = set()
        for _ in range(8):
            in_use = space.read(da, len(clean))
            (vdev,) = parse(in_use).vdevs
            places.add(tuple(vring.da for vring in vdev.vrings))
            assert in_use != clean and ADDR_ANY not in next(iter(places))
            echo(rproc)
            rproc.detach()
            assert (rproc.state, rproc.power) == ("detached", 0) and rproc.platform.running
            assert space.read(da, len(clean)) == clean
            rproc.attach()
            assert (rproc.state, rproc.power) == ("attached", 1)
        assert len(places) == 1 and list(places.pop())[: len(wanted)] == wanted
        echo(rproc)
        rproc.shutdown()


@pytest.mark.lesson("07")
def test_lesson_07_one_process_after_the_other(path: str, vrings: str, state: Path) -> None:
    """Each takes over what the one before has left; the clean table is in the state file, or is the firmware's."""
    base = 0x2000_0000
    places = {"dynamic": (), "fixed": FIXED, "one fixed": FIXED[:1]}[vrings]
    with NativePlatform() as platform:
        da, clean = platform.image("sample").resource_table  # type: ignore[misc]
    assert da is not None
    patched = fixed(clean, base, places)
    parser = ("resources = Resources()", f"resources.parse = lambda image: ({da}, {patched!r})")
    rproc = f"rproc = Remoteproc(platform='native', socket={path!r}, resources=resources, {{}})"
    use = f"with rproc.open({SAMPLE!r}, timeout=10) as ept: ept.send(b'hi'); assert ept.recv(timeout=10) == b'hi'"
    with Host(*parser, rproc.format("at_exit='detach'"), use) as host:
        pid = host("rproc.platform.pid")
        assert host("rproc.state") == "running"
        host("rproc.close()")
    for turn in range(4):
        # Saved state is there; then it is lost, and the ELF tells.
        firmware = "firmware='sample'" if turn >= 2 else ""
        if turn >= 2:
            shutil.rmtree(state)
        with Host(*parser, rproc.format(firmware)) as host:
            assert host("rproc.platform.pid") == pid and host("rproc.state") == "attached"
            assert host(f"rproc.platform.space.read({da}, {len(clean)})") != patched
            host(use)
            host("rproc.detach()")
            assert host(f"rproc.platform.space.read({da}, {len(clean)})") == patched
            assert host("rproc.state") == "detached"
            host.end()


USED = "was used by a host before, and nothing tells what it was; give the firmware that runs"


@pytest.mark.lesson("07")
@pytest.mark.parametrize("known", ["saved state", "the ELF", "neither"])
def test_lesson_07_after_a_killed_host_the_clean_table_must_be_known(path: str, known: str, state: Path) -> None:
    with Host(f"rproc = Remoteproc(platform='native', socket={path!r})", f"rproc.open({SAMPLE!r}, timeout=10)") as host:
        pid = host("rproc.platform.pid")
        host.kill()
    if known != "saved state":
        shutil.rmtree(state)
    firmware = "sample" if known == "the ELF" else None
    with Remoteproc(platform="native", socket=path, firmware=firmware, auto_boot=False) as rproc:
        da, clean = clean_table(rproc)
        used = rproc.platform.space.read(da, len(clean))
        assert used != clean
        if known == "neither":
            for _ in range(2):
                with pytest.raises(StateError, match=USED):
                    rproc.attach()
                assert (rproc.state, rproc.power) == ("detached", 0)
                assert rproc.platform.space.read(da, len(clean)) == used  # nothing was touched
        else:
            rproc.attach()
            echo(rproc)
            rproc.detach()
            assert rproc.platform.space.read(da, len(clean)) == clean
    assert os.path.exists(f"/proc/{pid}")


@pytest.mark.lesson("07")
@lasting
def test_lesson_07_a_table_that_is_not_the_firmwares_is_refused(remote: dict[str, Any]) -> None:
    """The clean copy is compared with what is there: nothing is restored over somebody else's table."""
    with Remoteproc(**remote) as rproc:
        rproc.detach()
        da, clean = clean_table(rproc)
        rproc.platform.space.write(da + 24 + 12, b"\xee")  # its features
        with pytest.raises(ResourceError, match="is not the firmware's: byte 0x24 is 0xee"):
            rproc.attach()
        assert rproc.state == "detached" and table_in_memory(rproc)[36] == 0xEE
        rproc.platform.space.write(da, clean)
        rproc.attach()
        echo(rproc)


# -- 08 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("08")
@lasting
def test_lesson_08_prepare_and_unprepare_bracket_everything(remote: dict[str, Any]) -> None:
    log: list[str] = []
    platform = recorded(open_platform(remote.pop("platform"), **remote), log)
    with Remoteproc(platform=platform, auto_boot=False, recovery="disabled", firmware="crash") as rproc:

        def moved(act: Any) -> list[str]:
            log.clear()
            act()
            return [entry for i, entry in enumerate(log) if log[i - 1 : i] != [entry]]  # a stop may come twice

        for _ in range(2):
            assert moved(rproc.boot) == ["prepare", "start"]
            assert moved(rproc.shutdown) == ["stop", "unprepare"]
            assert moved(rproc.boot) == ["prepare", "start"]
            assert moved(rproc.detach) == ["detach", "unprepare"]
            assert without_prepare(moved(rproc.attach)) == ["attach"] and log[0] == "prepare"
            assert moved(rproc.detach) == ["detach", "unprepare"]
            assert without_prepare(moved(rproc.boot)) == ["attach"]
            rproc.crashed()
            assert moved(rproc.shutdown) == ["stop", "unprepare"]


def without_prepare(log: list[str]) -> list[str]:
    """Without prepare() after the first, which changes nothing: a platform's attach() may call it as well."""
    return [entry for entry in log if entry != "prepare"]


@pytest.mark.lesson("08")
@lasting
def test_lesson_08_prepare_never_clears_loads_or_moves(remote: dict[str, Any]) -> None:
    """But rings, buffers and table all memory is after an attach as the remote had it; carveouts stay in place."""
    mine = Resources()
    mine.carveout("heap", 0x4000)
    with Remoteproc(resources=mine, **remote) as rproc:
        echo(rproc)
        shared = rproc.platform.shared
        heap = place_of(rproc, "heap")
        rproc.platform.space.write(heap, b"the remote's" * 1024)
        trace = rproc.trace()
        for _ in range(3):
            rproc.detach()
            rproc.platform.prepare()
            rproc.platform.prepare()
            assert rproc.platform.space.read(heap, 12) == b"the remote's"
            rproc.attach()
            assert place_of(rproc, "heap") == heap and rproc.platform.shared is shared
            assert rproc.platform.space.read(heap, 12 * 1024) == b"the remote's" * 1024
            assert rproc.trace().startswith(trace)
            rproc.platform.prepare()  # idempotent, also under a remote that is in use
            echo(rproc)


def place_of(rproc: Remoteproc, name: str) -> int:
    assert rproc._uptime is not None
    (carveout,) = (c for c in rproc._uptime.plan.carveouts if c.name == name)
    return carveout.da


# -- 09 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("09")
@lasting
def test_lesson_09_a_detach_is_acknowledged_before_anything_is_restored(remote: dict[str, Any]) -> None:
    """Status 0 first, then the message, and the table as it was published until the remote has said yes."""
    seen: list[Any] = []
    platform = open_platform(remote.pop("platform"), **remote)
    detach = platform.detach

    def noted(timeout: float = 1.0) -> None:
        before = parse(table_in_memory(rproc)).vdevs[0]
        detach(timeout)
        seen.append((before, parse(table_in_memory(rproc)).vdevs[0], rproc.platform.space))

    platform.detach = noted  # type: ignore[method-assign]
    with Remoteproc(platform=platform, auto_boot=False) as rproc:
        rproc.boot()
        echo(rproc)
        rproc.detach(timeout=TIMEOUT)
        ((before, after, _),) = seen
        assert before.status == 0 and before == after  # the remote does not write to it either
        assert ADDR_ANY not in (vring.da for vring in before.vrings)
        assert table_in_memory(rproc) == clean_table(rproc)[1]
        da, size = trace_of(rproc)
        text = rproc.platform.space.read(da, size).partition(b"\0")[0].decode()
        assert text.index("up\n") < text.index("sample: detached\n")


def trace_of(rproc: Remoteproc) -> tuple[int, int]:
    (trace,) = parse(clean_table(rproc)[1]).traces
    return trace.da, trace.len


@pytest.mark.lesson("09")
@lasting
def test_lesson_09_without_acknowledgement_all_stays_attached(remote: dict[str, Any]) -> None:
    with Remoteproc(firmware="crash", **remote) as rproc:
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        published = table_in_memory(rproc)
        ept.send(b"h")
        until(lambda: "hang" in rproc.trace())
        for _ in range(2):
            with pytest.raises(Timeout, match="did not acknowledge the detach in 0.05 s"):
                rproc.detach(timeout=0.05)
            assert (rproc.state, rproc.power) == ("running", 1) and rproc.platform.running
            assert table_in_memory(rproc) == published and rproc.bus.is_up
        rproc.shutdown()
        rproc.boot()
        rproc.open("rpmsg-crash", timeout=TIMEOUT)


@pytest.mark.lesson("09")
@pytest.mark.parametrize("remote", ["process", "lasting"], indirect=True)
def test_lesson_09_a_remote_that_was_too_slow_is_as_before(remote: dict[str, Any]) -> None:
    """It wakes up later: that detach does not reach it any more, it serves its host, and the next one counts."""
    with Remoteproc(**remote) as rproc:
        echo(rproc)
        pid = rproc.platform.pid  # type: ignore[attr-defined]
        for _ in range(2):
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(Timeout):
                    rproc.detach(timeout=0.05)
                assert rproc.state == "running"
            finally:
                os.kill(pid, signal.SIGCONT)
            echo(rproc)
        rproc.detach(timeout=TIMEOUT)
        assert table_in_memory(rproc) == clean_table(rproc)[1]
        rproc.attach()
        echo(rproc)


@pytest.mark.lesson("09")
@pytest.mark.parametrize("remote", ["process", "lasting"], indirect=True)
def test_lesson_09_a_remote_that_dies_instead_has_crashed(remote: dict[str, Any]) -> None:
    with Remoteproc(recovery="disabled", **remote) as rproc:
        echo(rproc)
        os.kill(rproc.platform.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
        os.kill(rproc.platform.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(StateError):
            rproc.detach(timeout=TIMEOUT)
        assert rproc.state == "crashed" and "SIGKILL" in str(rproc.crash)


@pytest.mark.lesson("09")
@pytest.mark.parametrize("remote", ["thread", "process", "unicorn"], indirect=True)
def test_lesson_09_a_remote_with_a_broken_ring_writes_to_no_table(remote: dict[str, Any]) -> None:
    """It stops, says why in its trace, and waits for the reset: status is the host's alone on shared memory."""
    with Remoteproc(**remote) as rproc:
        echo(rproc)
        before = table_in_memory(rproc)
        (vdev,) = parse(before).vdevs
        vring = vdev.vrings[1]
        rproc.platform.space.write(vring.da + 16 * vring.num + 2, struct.pack("=H", 0x7777))  # avail.idx
        rproc.platform.doorbell.kick(1)
        until(lambda: "broken: waiting for the driver's reset" in rproc.trace())
        assert table_in_memory(rproc) == before and rproc.state == "running"
        with suppress(rpmsgx.Error):
            rproc.bus.close(linger=0)
        echo(rproc)


# -- 10 --------------------------------------------------------------------------------------------------------------


STATES = ("offline", "running", "attached", "crashed", "detached", "waiting for firmware", "waiting for service")


@contextmanager
def brought(kind: str, remote: dict[str, Any], tmp_path: Path) -> Iterator[Remoteproc]:
    """A remote in this state."""
    more: dict[str, Any] = {"auto_boot": False, "recovery": "disabled", "firmware": "crash"}
    if kind == "waiting for firmware":
        remote, more = {"platform": "unicorn"}, {"firmware": str(tmp_path / "late.elf")}
    elif kind == "waiting for service":
        more = {"presence": Gate(up=False), "firmware": "crash"}
    with Remoteproc(**remote, **more) as rproc:
        if kind in ("running", "attached", "crashed", "detached"):
            rproc.boot()
            rproc.open("rpmsg-crash", timeout=TIMEOUT).close()
        if kind in ("attached", "detached"):
            rproc.detach()
        if kind == "attached":
            rproc.attach()
        if kind == "crashed":
            crash(rproc)
        yield rproc


@pytest.mark.lesson("10")
@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("call", ["boot", "shutdown", "attach", "detach", "recover", "crashed", "close"])
@pytest.mark.parametrize("remote", ["thread", "lasting"], indirect=True)
def test_lesson_10_every_call_in_every_state(remote: dict[str, Any], tmp_path: Path, kind: str, call: str) -> None:
    """What a user finds: a state that is true of the remote, or a refusal that names the state, and nothing changed."""
    with brought(kind, remote, tmp_path) as rproc:
        state, power = rproc.state, rproc.power
        assert state == {"waiting for firmware": "offline", "waiting for service": "offline"}.get(kind, kind)
        waits = kind.startswith("waiting")
        assert power == (0 if state in ("offline", "detached") and not waits else 1)
        wanted: tuple[str, int] | None = {
            ("boot", "offline"): ("running", 1),
            ("boot", "running"): ("running", 2),
            ("boot", "attached"): ("attached", 2),
            ("boot", "crashed"): ("crashed", 2),
            ("boot", "detached"): ("attached", 1),
            ("boot", "waiting for service"): ("offline", 2),
            ("shutdown", "running"): ("offline", 0),
            ("shutdown", "attached"): ("offline", 0),
            ("shutdown", "crashed"): ("offline", 0),
            ("shutdown", "waiting for firmware"): ("offline", 0),
            ("shutdown", "waiting for service"): ("offline", 0),
            ("attach", "attached"): ("attached", 2),
            ("attach", "detached"): ("attached", 1),
            ("detach", "running"): ("detached", 0),
            ("detach", "attached"): ("detached", 0),
            ("recover", "crashed"): ("running", 1),
            ("crashed", "running"): ("crashed", 1),
            ("crashed", "attached"): ("crashed", 1),
        }.get((call, kind))
        if call in ("recover", "crashed"):
            wanted = wanted or (state, power)
        if call == "close":
            wanted = ("deleted", 0)
        if wanted is not None:
            getattr(rproc, call)()
        else:
            error = FileNotFoundError if (call, kind) == ("boot", "waiting for firmware") else StateError
            with pytest.raises(error, match="late.elf" if error is FileNotFoundError else f"is {state}"):
                getattr(rproc, call)()
            wanted = state, power
        assert (rproc.state, rproc.power) == wanted
        if call == "close":
            with open_platform(remote["platform"], socket=remote.get("socket")) as platform:
                assert platform.running == ("socket" in remote and kind in ("attached", "detached"))
        elif rproc.state != "crashed":
            assert rproc.platform.running == (rproc.state != "offline")
        if rproc.state in ("running", "attached"):
            rproc.open("rpmsg-crash", timeout=TIMEOUT).send(b"it works")


@pytest.mark.lesson("10")
def test_lesson_10_a_crash_while_detached_is_seen(path: str) -> None:
    """Nobody has it, so nobody recovers it: it is offline, and can be booted."""
    with Remoteproc(platform="native", socket=path) as rproc:
        pid = rproc.platform.pid  # type: ignore[attr-defined]
        rproc.detach()
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        until(lambda: (rproc.poll(0), rproc.state)[1] == "offline")
        rproc.boot()
        assert rproc.state == "running"
        echo(rproc)


@pytest.mark.lesson("10")
def test_lesson_10_attached_without_an_image_it_stays_crashed_until_the_user_decides(path: str) -> None:
    with Host(f"rproc = Remoteproc(platform='native', socket={path!r}, firmware='crash')", "rproc.at_exit = 'detach'"):
        pass  # killed, and its state is there
    with Remoteproc(platform="native", socket=path) as rproc:
        assert rproc.state == "attached"
        with pytest.raises(StateError, match="no image"):
            rproc.image.name  # noqa: B018
        crash(rproc)
        for _ in range(3):
            rproc.poll(0)
        assert rproc.state == "crashed"
        with pytest.raises(StateError, match="nothing tells its firmware"):
            rproc.open("rpmsg-crash", timeout=TIMEOUT)
        rproc.poll(0)
        assert (rproc.state, rproc.power) == ("crashed", 1)
        with pytest.raises(StateError, match="nothing tells its firmware"):
            rproc.recover()
        rproc.shutdown()
        rproc.firmware = "sample"
        rproc.boot()
        echo(rproc)


class Restarts(NativePlatform):
    """A remote that comes back from a crash by itself: its watchdog starts it anew."""

    recovery = "attach"

    def attach(self) -> None:
        if self.crash is not None:
            image = self.image(None)
            image.load(self.space)
            self.start(image.entry)
        super().attach()


@pytest.mark.lesson("10")
def test_lesson_10_an_attached_remote_may_recover_by_itself(path: str) -> None:
    with Remoteproc(platform=Restarts("crash", process=True)) as rproc:
        for turn in range(3):
            crash(rproc)
            rproc.recover()
            assert (rproc.state, rproc.power, rproc.crash_count) == ("attached", 1, turn + 1)
            with rproc.open("rpmsg-crash", timeout=TIMEOUT) as ept:
                ept.send(b"back")
                assert ept.recv(timeout=TIMEOUT) == b"back"




@pytest.mark.lesson("05")
def test_lesson_05_a_remote_that_cannot_take_new_rings_is_restarted() -> None:
    with Remoteproc(platform="native") as rproc:
        rproc.boot()
        rproc.platform.rebind = "restart"
        for _ in range(3):
            with rproc.open(SAMPLE, timeout=TIMEOUT) as endpoint:
                endpoint.send(b"x")
                assert endpoint.recv(timeout=TIMEOUT) == b"x"
            assert rproc.trace().count("sample: up") == 1  # its first life, as far as it knows
            rproc.bus.close()
        assert (rproc.state, rproc.power) == ("running", 2)
