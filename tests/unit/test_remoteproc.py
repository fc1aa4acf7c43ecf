"""A remote core's life through `Remoteproc`, on the native platform: real remotes, in a thread or a process."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import elfbuilder
import pytest
from support_wire import TIMEOUT, Call, blocked, until

import rpmsgx
from rpmsgx import ChannelRemoved, FirmwareError, PeerError, Remoteproc, ResourceError, StateError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.timer import PolledDoorbell
from rpmsgx.remoteproc.platform import Platform
from rpmsgx.virtio.link import NEEDS_RESET
from rpmsgx.virtio.table import ADDR_ANY, Trace, Vdev, Vring, build, parse

SAMPLE = "rpmsg-client-sample"
KINDS: dict[str, dict[str, Any]] = {"thread": {}, "process": {"process": True}}


@pytest.fixture(params=KINDS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"platform": "native", **KINDS[request.param]}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = left()
    yield
    gc.collect()
    until(lambda: left() <= before)


def left() -> tuple[int, int, int]:
    """Descriptors, threads, children."""
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children.read().split())


def echo(rproc: Remoteproc, times: int = 5) -> None:
    with rproc.open(SAMPLE, timeout=TIMEOUT) as ept:
        for i in range(times):
            ept.send(b"%d" % i, timeout=TIMEOUT)
            assert ept.recv(timeout=TIMEOUT) == b"%d" % i


# -- its life --------------------------------------------------------------------------------------------------------


def test_boots_talks_and_stops(options: dict[str, Any]) -> None:
    with Remoteproc("mine", firmware="sample", **options) as rproc:
        assert (rproc.name, rproc.state, rproc.firmware, rproc.crash) == ("mine", "running", "sample", None)
        assert rproc.image.name == "native" and len(rproc.image.sha256) == 64
        echo(rproc)
        assert "sample: up\n" in rproc.trace() and "first message" in rproc.trace()
        assert rproc.bus.remoteproc is rproc and rproc.bus.vdev is rproc.vdevs[0]
        names = {channel.name for channel in rproc.bus.channels}
        assert names == {SAMPLE, "rpmsg-raw"}
        assert all(channel.remoteproc is rproc for channel in rproc.bus.channels)
        assert "mine" in repr(rproc) and "running" in repr(rproc)
    assert rproc.state == "deleted"
    rproc.close()


@pytest.mark.lesson("04")
def test_lesson_04_as_many_shutdowns_as_boots(options: dict[str, Any]) -> None:
    with Remoteproc(auto_boot=False, **options) as rproc:
        assert rproc.state == "offline"
        for count in (1, 2, 5):
            for _ in range(count):
                rproc.boot()
                assert rproc.state == "running"
            for _ in range(count):
                assert rproc.state == "running"
                echo(rproc, 1)
                rproc.shutdown()
            assert rproc.state == "offline"
            with pytest.raises(StateError, match="offline"):
                rproc.shutdown()
        rproc.boot()
        rproc.boot()
    assert rproc.state == "deleted"


def test_what_an_offline_remote_cannot_do(options: dict[str, Any]) -> None:
    with Remoteproc(auto_boot=False, **options) as rproc:
        calls: list[Callable[[], object]] = [
            rproc.shutdown, rproc.trace, lambda: rproc.bus, lambda: rproc.image, lambda: rproc.open(SAMPLE, timeout=0)
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(StateError, match="offline"):
                call()
    for call in [*calls, rproc.boot]:
        with pytest.raises(StateError, match="closed|deleted"):
            call()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_timeouts_that_are_none(timeout: float) -> None:
    with Remoteproc(platform="native") as rproc:
        for service in (SAMPLE, "nobody"):
            with pytest.raises(ValueError, match="timeout"):
                rproc.open(service, timeout=timeout)


def test_a_service_that_is_not_announced() -> None:
    with Remoteproc("mine", platform="native") as rproc:
        rproc.open(SAMPLE, timeout=TIMEOUT)
        rproc.open("rpmsg-raw", timeout=TIMEOUT)
        with pytest.raises(rpmsgx.Timeout, match=r"mine did not announce 'nobody' within 0.25 s; .*'rpmsg-raw'"):
            rproc.open("nobody", timeout=0.25)
        with pytest.raises(rpmsgx.Timeout, match="within 0.25 s; the channel of that name has its endpoint"):
            rproc.open("rpmsg-raw", timeout=0.25)


def test_its_descriptor_wakes_for_every_bus_that_it_ever_has(options: dict[str, Any]) -> None:
    """Whoever polls when it is readable, and never else, misses nothing: of no bus and no life."""
    with Remoteproc(**options) as rproc:
        fd = rproc.fileno()

        def announced() -> None:
            while len(rproc.channels) < 2:
                assert readable(fd, TIMEOUT), "nothing wakes"
                rproc.poll(0)

        announced()
        with rproc.open(SAMPLE, timeout=TIMEOUT) as ept:
            got: list[bytes] = []
            while len(got) < 50:
                ept.send(b"x")
                assert readable(ept.fileno(), TIMEOUT)
                while (message := ept.try_recv()) is not None:
                    got.append(message)
        rproc.bus.close()
        assert rproc.bus.is_up
        announced()
        for again in (rproc.boot, rproc.attach):
            (rproc.shutdown if again == rproc.boot else rproc.detach)()
            again()
            announced()
        rproc.crashed()
        assert rproc.poll(TIMEOUT) and rproc.state in ("running", "crashed")
        rproc.recover()
        announced()


def test_pickling_is_refused() -> None:
    with Remoteproc(platform="native") as rproc, pytest.raises(TypeError, match="pickled"):
        pickle.dumps(rproc)


@pytest.mark.lesson("11")
def test_lesson_11_the_firmware_changes_between_boots(options: dict[str, Any]) -> None:
    with Remoteproc(firmware="sample", **options) as rproc:
        for firmware, service in (("flood", "rpmsg-flood"), ("crash", "rpmsg-crash"), ("sample", SAMPLE)):
            with pytest.raises(StateError, match="running.*offline"):
                rproc.firmware = firmware
            rproc.shutdown()
            rproc.firmware = firmware
            assert rproc.firmware == firmware and rproc.state == "offline"
            rproc.boot()
            rproc.open(service, timeout=TIMEOUT)
    with pytest.raises(StateError, match="closed"):
        rproc.firmware = "sample"


def test_two_at_once() -> None:
    with Remoteproc("one", platform="native") as one, Remoteproc("two", platform="native", process=True) as two:
        for rproc, text in ((one, b"first"), (two, b"second"), (one, b"third")):
            with rproc.open(SAMPLE, timeout=TIMEOUT) as ept:
                ept.send(text)
                assert ept.recv(timeout=TIMEOUT) == text
        one.shutdown()
        echo(two)
        one.boot()
        echo(one)


@pytest.mark.parametrize("times, options", [(200, {}), (20, {"process": True})], ids=["thread", "process"])
def test_many_reboots_leave_nothing(times: int, options: dict[str, Any]) -> None:
    with Remoteproc(platform="native", **options) as rproc:
        rproc.shutdown()
        gc.collect()
        before = left()
        for _ in range(times):
            rproc.boot()
            echo(rproc, 1)
            rproc.shutdown()
        gc.collect()
        assert left() == before


# -- the order of a boot, and what undoes it -------------------------------------------------------------------------

ROM, SHM = 0x1000_0000, 0x2000_0000


class Board(Platform):
    """A user's own platform: it has memory and a log, and its core does what the test says when it starts."""

    name = "board"
    cpu = "paper"
    machine = elfbuilder.EM_ARM
    desc_addr = "da"

    def __init__(self, at_start: Callable[[Board], object] = lambda board: None, *, shared: int = 0x80000) -> None:
        self.rom = Region.anonymous("rom", 0x10000, da=ROM)
        self.shared = Region.anonymous("shm", shared, da=SHM)
        self.space = AddressSpace(self.rom, self.shared)
        self.doorbell = PolledDoorbell()
        self.doorbell.kick = lambda notifyid: self.log.append("kick")  # type: ignore[method-assign]
        self.log: list[str] = []
        self.at_start = at_start
        self.fail = ""

    def do(self, what: str) -> None:
        self.log.append(what)
        if self.fail == what:
            raise OSError(5, f"{what} does not work")

    def prepare(self) -> None:
        self.do("prepare")

    def start(self, entry: int) -> None:
        self.at_start(self)
        self.do("start")

    def stop(self) -> None:
        self.do("stop")

    def unprepare(self) -> None:
        self.do("unprepare")

    def close(self) -> None:
        self.doorbell.close()
        self.do("close")


def vdev(num: int = 256, align: int = 4096, da: int = ADDR_ANY, **more: Any) -> Vdev:
    return Vdev((Vring(da, align, num, 0), Vring(ADDR_ANY, align, num, 0)), dfeatures=1, **more)


TABLE = build([vdev(), Trace(ROM + 0x800, 0x100, "trace0")])


def firmware(path: Path, table: bytes | None = TABLE, **more: Any) -> str:
    file = path / "firmware.elf"
    more.setdefault("loads", [elfbuilder.Load(ROM + 0x4000, b"code" * 16)])
    file.write_bytes(elfbuilder.build(more.pop("loads"), table=table, table_da=ROM, **more))
    return str(file)


@pytest.mark.lesson("02")
def test_lesson_02_at_its_first_instruction_everything_is_in_place(tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(board: Board) -> None:
        table = parse(board.space.read(ROM, len(TABLE)))
        (device,) = table.vdevs
        seen.append((list(board.log), device))
        for number, vring in enumerate(device.vrings):
            base = board.space.read(vring.da, vring.size)
            assert vring.da % 4096 == 0 and vring.notifyid == number
            (idx,) = struct.unpack_from("=H", base, 16 * 256 + 2)
            assert idx == (256, 0)[number]  # rx buffers are posted
            assert base[0x2000:] == bytes(len(base) - 0x2000)  # the used ring is zeroed
        addr, length, flags, _ = struct.unpack_from("=QIHH", board.space.read(device.vrings[0].da, 16))
        assert (length, flags) == (512, 2) and board.space.find_da(addr, 512)[0] is board.shared
        assert board.space.read(ROM + 0x4000, 8) == b"codecode"

    board = Board(look)
    board.space.write(SHM, b"\xa5" * board.shared.size)
    with Remoteproc(platform=board, firmware=firmware(tmp_path)) as rproc:
        ((log, device),) = seen
        assert device.status == 7 and device.gfeatures == 1
        assert log == ["prepare"]  # no kick yet
        assert board.log == ["prepare", "start", "kick"]
        assert rproc.bus.is_up
        rproc.shutdown()
        assert parse(board.space.read(ROM, len(TABLE))).vdevs[0].status == 0
        assert board.log[3:] == ["kick", "stop", "unprepare"]
        rproc.boot()
        assert len(seen) == 2 and seen[1][1] == device
    assert board.log[-4:] == ["kick", "stop", "unprepare", "close"]


def no_elf(path: Path) -> str:
    (path / "no.elf").write_bytes(b"no ELF at all" * 9)
    return str(path / "no.elf")


@pytest.mark.parametrize(
    "image, error, step",
    [
        (no_elf, FirmwareError, "read the firmware"),
        (lambda path: firmware(path, header={"machine": 243}), FirmwareError, "read the firmware"),
        (lambda path: firmware(path, build([Trace(0x3000_0000, 64, "t")])), ResourceError, "give its resources memory"),
        (lambda path: firmware(path, build([vdev(da=0x4000_0000)])), ResourceError, "give its resources memory"),
        (lambda path: firmware(path, build([vdev(num=32768)])), ResourceError, "give its resources memory"),
        (lambda path: firmware(path, build([vdev(num=2048)])), ResourceError, "give its resources memory"),
        (
            lambda path: firmware(path, loads=[elfbuilder.Load(0x3000_0000, b"code")]),
            FirmwareError,
            "load its segments",
        ),
    ],
    ids=["no elf", "machine", "trace", "vring da", "vring too large", "buffers", "segment"],
)  # fmt: skip
def test_a_firmware_that_cannot_boot(tmp_path: Path, image: Any, error: Any, step: str) -> None:
    board = Board()
    with pytest.raises(error) as caught:
        Remoteproc("mine", platform=board, firmware=image(tmp_path))
    assert caught.value.__notes__ == [f"while booting mine: could not {step}"]
    early = step == "read the firmware"
    assert board.log == (["close"] if early else ["prepare", "unprepare", "close"])


@pytest.mark.parametrize(
    "fail, log", [("prepare", ["prepare"]), ("start", ["prepare", "start", "kick", "stop", "unprepare"])]
)
def test_a_platform_that_fails(tmp_path: Path, fail: str, log: list[str]) -> None:
    board = Board()
    with Remoteproc("mine", platform=board, firmware=firmware(tmp_path), auto_boot=False) as rproc:
        for _ in range(2):
            board.fail = fail
            with pytest.raises(OSError, match=f"{fail} does not work") as caught:
                rproc.boot()
            assert "while booting mine: could not" in caught.value.__notes__[0]
            assert board.log == log and rproc.state == "offline"
            board.log.clear()
            with pytest.raises(StateError):
                rproc.shutdown()
            board.fail = ""
            rproc.boot()  # it works when it works
            assert rproc.state == "running"
            rproc.shutdown()
            board.log.clear()


def test_a_stop_that_fails_is_told_and_can_be_tried_again(tmp_path: Path) -> None:
    board = Board()
    rproc = Remoteproc(platform=board, firmware=firmware(tmp_path))
    board.fail = "stop"
    for _ in range(2):
        with pytest.raises(OSError, match="stop does not work"):
            rproc.shutdown()
        assert (rproc.state, rproc.power) == ("running", 1) and board.log[-1] == "stop"
    board.fail = ""
    rproc.shutdown()
    assert rproc.state == "offline" and board.log[-2:] == ["stop", "unprepare"]
    rproc.boot()
    board.fail = "stop"
    with pytest.raises(OSError, match="stop does not work"):
        rproc.close()
    assert rproc.state == "deleted" and board.log[-1] == "close"


def test_the_table_of_the_firmware_stays_as_it_is(tmp_path: Path) -> None:
    name = firmware(tmp_path)
    data = Path(name).read_bytes()
    board = Board()
    with Remoteproc(platform=board, firmware=name) as rproc:
        first = board.space.read(ROM, len(TABLE))
        rproc.shutdown()
        rproc.boot()
        assert board.space.read(ROM, len(TABLE)) == first
    assert Path(name).read_bytes() == data


@pytest.mark.lesson("13")
def test_lesson_13_no_table_at_all(tmp_path: Path) -> None:
    board = Board()
    with Remoteproc(platform=board, firmware=firmware(tmp_path, table=None)) as rproc:
        assert rproc.state == "running" and rproc.trace() == "" and rproc.vdevs == () and rproc.channels == ()
        assert board.space.read(ROM + 0x4000, 8) == b"codecode"
        with pytest.raises(StateError, match="no bus"):
            rproc.open("any", timeout=0)


def test_no_rpmsg_in_the_table(tmp_path: Path) -> None:
    with Remoteproc(
        platform=Board(), firmware=firmware(tmp_path, build([vdev(id=3), Trace(ROM + 0x800, 16, "t")]))
    ) as rproc:
        assert rproc.state == "running" and rproc.trace() == ""
        with pytest.raises(StateError, match="no bus"):
            rproc.open("any", timeout=0)


# -- nothing outlives what it came from ------------------------------------------------------------------------------


@pytest.mark.lesson("06")
def test_lesson_06_blocked_calls_hear_that_the_remote_was_stopped(options: dict[str, Any]) -> None:
    gone: list[str] = []
    with Remoteproc(firmware="crash", **options) as rproc:
        bus = rproc.bus
        bus.on_removed = lambda channel: gone.append(channel.name)
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        bus.poll()
        (channel,) = bus.channels
        calls = [
            Call(ept.recv),
            Call(ept.recv_many, 4),
            Call(bus.open, "other"),
            Call(rproc.open, "other"),
            Call(ept.hold),
        ]
        blocked(*calls)
        rproc.shutdown()
        for call in calls:
            with pytest.raises(ChannelRemoved, match="stopped"):
                call.outcome()
        assert channel.removed and bus.channels == [] and not bus.is_up
        bus.poll()
        assert gone == ["rpmsg-crash"]
        for again in (ept.recv, ept.try_recv, lambda: ept.send(b"x"), lambda: bus.open("any"), bus.create_endpoint):
            with pytest.raises(ChannelRemoved):
                again()
        rproc.boot()
        assert rproc.bus is not bus
        rproc.open("rpmsg-crash", timeout=TIMEOUT)
        with pytest.raises(ChannelRemoved):
            ept.recv(timeout=1)
        ept.close()
        bus.close()  # the old bus: it touches nothing of the new one
        assert rproc.bus.is_up


@pytest.mark.lesson("06")
@pytest.mark.parametrize(
    "command, cause", [(b"u", "undefined|SIGILL|SIGTRAP"), (b"a", "unmapped|SIGSEGV"), (b"f", "fatal error")]
)
def test_lesson_06_a_crash(options: dict[str, Any], command: bytes, cause: str) -> None:
    with Remoteproc(firmware="crash", recovery="disabled", **options) as rproc:
        for _ in range(2):
            bus = rproc.bus
            ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
            bus.poll()
            calls = [Call(ept.recv), Call(bus.open, "other"), Call(rproc.open, "other")]
            blocked(*calls)
            ept.send(command)
            for call in calls:
                with pytest.raises(ChannelRemoved, match=rf"the remote crashed: .*({cause})"):
                    call.outcome()
            assert rproc.state == "crashed" and rproc.crash is not None
            assert not bus.is_up and bus.channels == []
            resets = bus.counters["resets"]
            for again in (
                ept.recv, ept.try_recv, partial(ept.send, b"x"), lambda: rproc.open("any"), bus.create_endpoint
            ):  # fmt: skip
                with pytest.raises(ChannelRemoved, match="crashed"):
                    again()
            assert bus.counters["resets"] == resets == 1  # it is not brought up again and again
            assert "crash: fault" in rproc.trace()
            rproc.shutdown()
            assert rproc.state == "offline" and rproc.crash is None
            rproc.boot()
            assert rproc.state == "running"


def test_a_hang_can_be_stopped(options: dict[str, Any]) -> None:
    with Remoteproc(firmware="crash", **options) as rproc:
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        ept.send(b"h")
        until(lambda: "hang" in rproc.trace())
        waiting = Call(ept.recv)
        blocked(waiting)
        assert rproc.state == "running"  # nobody can tell
        rproc.shutdown()
        with pytest.raises(ChannelRemoved, match="stopped"):
            waiting.outcome()
        rproc.boot()
        rproc.open("rpmsg-crash", timeout=TIMEOUT)


@pytest.mark.hostile
@pytest.mark.parametrize("command, rule", [(b"i", "2.7.8-idx"), (b"d", "2.7.8-id"), (b"l", "2.7.8.3-1")])
def test_a_remote_that_corrupts_its_ring(options: dict[str, Any], command: bytes, rule: str) -> None:
    with Remoteproc(firmware="crash", **options) as rproc:
        ept = rproc.open("rpmsg-crash", timeout=TIMEOUT)
        waiting = Call(ept.recv)
        blocked(waiting)
        ept.send(command)
        with pytest.raises(PeerError) as caught:
            waiting.outcome()
        assert caught.value.rule == rule
        with pytest.raises(PeerError):
            rproc.open("any", timeout=TIMEOUT)
        assert rproc.state == "running"
        rproc.shutdown()
        rproc.boot()
        rproc.open("rpmsg-crash", timeout=TIMEOUT).send(b"echo")


@pytest.mark.hostile
def test_a_remote_whose_header_lies(options: dict[str, Any]) -> None:
    with Remoteproc(firmware="crash", **options) as rproc, rproc.open("rpmsg-crash", timeout=TIMEOUT) as ept:
        ept.send(b"m")
        ept.send(b"echo")
        assert ept.recv(timeout=TIMEOUT) == b"echo"
        assert rproc.bus.counters["dropped_length"] == 1


def test_kill_9() -> None:
    with Remoteproc(platform="native", process=True) as rproc:
        ept = rproc.open(SAMPLE, timeout=TIMEOUT)
        waiting = Call(ept.recv)
        blocked(waiting)
        pid = getattr(rproc.platform, "pid")  # noqa: B009
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ChannelRemoved, match="SIGKILL"):
            waiting.outcome()
        assert rproc.state == "crashed" and "SIGKILL" in str(rproc.crash)
        rproc.shutdown()
        rproc.boot()
        echo(rproc)


@pytest.mark.lesson("03")
@pytest.mark.parametrize(
    "order", ["rproc bus ept", "ept bus rproc", "bus rproc ept", "rproc ept bus", "rproc", "", "bus"]
)
def test_lesson_03_closing_in_any_order(options: dict[str, Any], order: str) -> None:
    rproc = Remoteproc(**options)
    things: dict[str, Any] = {"rproc": rproc, "bus": rproc.bus, "ept": rproc.open(SAMPLE, timeout=TIMEOUT)}
    things["ept"].send(b"x")
    for name in order.split() * 2:
        things[name].close()
    # What was not closed is forgotten; nothing may be left behind (the fixture looks).


@pytest.mark.lesson("03")
@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize(
    "end",
    [
        "",
        "rproc.bus.close()",
        "sys.exit(3)",
        "raise KeyboardInterrupt",
        "threading.Thread(target=ept.recv, daemon=True).start()",
    ],
)
def test_lesson_03_at_the_end_of_the_interpreter(process: bool, end: str) -> None:
    program = f"""
import rpmsgx, sys, threading
rproc = rpmsgx.Remoteproc(platform="native", process={process})
ept = rproc.open("{SAMPLE}", timeout=10)
ept.send(b"x"); ept.recv(timeout=10)
print(rproc.platform.pid or 0, flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert done.returncode == {"sys.exit(3)": 3, "raise KeyboardInterrupt": -signal.SIGINT}.get(end, 0), done.stderr
    assert "Exception ignored" not in done.stderr and ("Error" not in done.stderr or end == "raise KeyboardInterrupt")
    if process:
        pid = int(done.stdout)
        until(lambda: not os.path.exists(f"/proc/{pid}"))


@pytest.mark.parametrize("process", [False, True])
def test_a_forked_child_leaves_the_remote_alone(process: bool) -> None:
    program = f"""
import os, rpmsgx, sys
rproc = rpmsgx.Remoteproc("mine", platform="native", process={process})
ept = rproc.open("{SAMPLE}", timeout=10)
offline = rpmsgx.Remoteproc(platform="native", auto_boot=False)
pid = os.fork()
if pid == 0:
    for call in (rproc.boot, rproc.shutdown, rproc.trace, lambda: rproc.open("x"), ept.recv, offline.boot):
        try:
            call()
            os._exit(7)
        except rpmsgx.StateError:
            pass
    rproc.close(); offline.close()
    sys.exit(5)
assert os.waitpid(pid, 0)[1] == 5 << 8
ept.send(b"still here"); assert ept.recv(timeout=10) == b"still here"
assert rproc.state == "running"
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_remote_outlives_no_host_whose_child_lives_on() -> None:
    """The process of the remote ends with its host, though a forked child of the host is still there."""
    program = """
import os, rpmsgx, signal, sys
rproc = rpmsgx.Remoteproc(platform="native", process=True)
if os.fork() == 0:
    os.write(1, b"%d\\n" % os.getpid())
    signal.pause()
os.write(1, b"%d\\n" % rproc.platform.pid)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    host = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert host.stdin is not None and host.stdout is not None
    pids = {int(host.stdout.readline()), int(host.stdout.readline())}
    try:
        host.stdin.write("x")
        host.stdin.flush()
        assert host.wait(TIMEOUT) == -signal.SIGKILL
        until(lambda: [pid for pid in pids if not alive(pid)])
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        host.stdin.close()
        host.stdout.close()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_an_interrupt_while_it_waits_for_a_service() -> None:
    """Ctrl-C comes through, the remote is stopped, nothing is left."""
    rproc = Remoteproc(platform="native", process=True)
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: len(rproc.bus.channels) == 2)
        signal.pthread_kill(main, signal.SIGINT)

    other = Call(interrupt)
    with pytest.raises(KeyboardInterrupt), rproc:
        rproc.open("nobody")
    other.outcome()
    assert rproc.state == "deleted"


# -- at full speed ---------------------------------------------------------------------------------------------------

MAGIC, SOURCE, SINK, REPORT = 0x46585052, 1, 2, 3


def flood(rproc: Remoteproc, count: int, size: int = 64, batch: int = 64) -> dict[str, int]:
    """`count` messages each way at the same time; every byte that comes is checked."""
    with rproc.open("rpmsg-flood", timeout=TIMEOUT) as ept:
        body = bytes(size - 4)

        def send() -> None:
            for start in range(0, count, batch):
                rows = [struct.pack("=I", n) + body for n in range(start, min(start + batch, count))]
                assert ept.send_many(rows, timeout=TIMEOUT) == len(rows)

        ept.send(struct.pack("=4I", MAGIC, SINK, 0, 0))
        ept.send(struct.pack("=4I", MAGIC, SOURCE, count, size))
        sender = Call(send)
        n = 0
        while n < count:
            for message in ept.recv_many(batch, timeout=TIMEOUT):
                assert message == struct.pack("=I", n) + bytes((n + i) & 0xFF for i in range(4, size))
                n += 1
        sender.outcome()
        ept.send(struct.pack("=4I", MAGIC, REPORT, 0, 0))
        _, messages, octets, gaps = struct.unpack("=4I", ept.recv(timeout=TIMEOUT))
        assert ept.try_recv() is None
    return {"messages": messages, "bytes": octets, "gaps": gaps}


def test_a_flood_both_ways(options: dict[str, Any]) -> None:
    """More messages than 16-bit indices count; in order, none lost, none changed."""
    with Remoteproc(firmware="flood", **options) as rproc:
        count = 70_000
        assert flood(rproc, count) == {"messages": count, "bytes": 64 * count, "gaps": 0}
        counters = rproc.bus.counters
        assert not any(n for name, n in counters.items() if name.startswith(("dropped", "ns_"))), counters


@pytest.mark.hostile
def test_a_flood_that_nobody_wants_keeps_nobody_from_anything() -> None:
    """Full speed to an address that is not there: waits end at their time, Ctrl-C comes through, others go on."""
    with Remoteproc(platform="native", firmware="flood", process=True) as rproc:
        quiet = rproc.bus.create_endpoint()
        with rproc.open("rpmsg-flood", timeout=TIMEOUT) as ept:
            ept.send(struct.pack("=4I", MAGIC, SOURCE, 0xFFFFFFFF, 496))
        with pytest.raises(rpmsgx.Timeout):
            quiet.recv(timeout=0.2)
        assert rproc.bus.counters["dropped_no_endpoint"] > 1000
        main = threading.get_ident()
        ticks = 0

        def interrupt() -> None:
            nonlocal ticks
            start = rproc.bus.counters["dropped_no_endpoint"]
            while rproc.bus.counters["dropped_no_endpoint"] < start + 100_000:
                ticks += 1
                time.sleep(0)
            signal.pthread_kill(main, signal.SIGINT)

        other = Call(interrupt)
        with pytest.raises(KeyboardInterrupt):
            quiet.recv()
        other.outcome()
        assert ticks
        assert rproc.bus.poll() == 0
        rproc.shutdown()
        assert rproc.state == "offline"


def test_the_status_is_the_hosts_alone() -> None:
    """Whatever a remote writes there, the host does not read it back."""
    with Remoteproc(platform="native") as rproc:
        device = parse(rproc.platform.space.read(ROM, 140)).vdevs[0]
        rproc.platform.space.write(ROM + device.offset + 24, bytes([7 | NEEDS_RESET]))
        assert rproc.bus.is_up and rproc.state == "running"
