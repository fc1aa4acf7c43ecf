# SPDX-License-Identifier: BSD-3-Clause
"""Lessons 18, 19, 20: waiting for firmware, for services, for other remotes, and giving everything back."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import socket
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from remotes import SAMPLE, Gate, crash, echo, gone
from support import kernel_has, require
from support_wire import TIMEOUT, Call, blocked, until

from rpmsgx import ChannelRemoved, Closed, FirmwareError, Remoteproc, StateError, Timeout
from rpmsgx.firmware import path as shipped
from rpmsgx.notify.doorbell import readable
from rpmsgx.remoteproc.board import load
from rpmsgx.remoteproc.presence import Channel, Process, UnixSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# -- 18 --------------------------------------------------------------------------------------------------------------

ELF = Path(shipped("sample"))


@pytest.fixture
def needs_unicorn() -> None:
    """The remote whose firmware is a file."""
    Remoteproc(platform="unicorn", auto_boot=False).close()


def waits_quietly(rproc: Remoteproc, what: str) -> None:
    """It waits for this, and nothing wakes it again and again."""
    for _ in range(100):
        assert rproc.poll(0) == 0
        if not readable(rproc.fileno(), 0.01):
            break
    else:
        pytest.fail("it polls")
    assert (rproc.state, rproc.waiting_for) == ("offline", what)
    assert not rproc.platform.running


def woken(rproc: Remoteproc, state: str) -> None:
    """It comes to this state by being polled when it says so, and not otherwise."""
    while rproc.state != state:
        assert readable(rproc.fileno(), TIMEOUT), "nothing wakes"
        rproc.poll(0)


def moved(place: Path) -> None:
    shutil.copy(ELF, place.parent / "new")
    os.rename(place.parent / "new", place)


def linked(place: Path) -> None:
    os.symlink(ELF, place)


def made_with_its_directories(place: Path) -> None:
    place.parent.rmdir()
    place.parent.mkdir()
    shutil.copy(ELF, place)


@pytest.mark.lesson("18")
@pytest.mark.parametrize("arrive", [lambda place: shutil.copy(ELF, place), moved, linked, made_with_its_directories])
@pytest.mark.parametrize("driver", ["poll", "open"])
def test_lesson_18_it_boots_when_its_firmware_appears(
    needs_unicorn: None, tmp_path: Path, arrive: Callable[[Path], object], driver: str
) -> None:
    place = tmp_path / "vendor" / "fw.elf"
    place.parent.mkdir()
    with Remoteproc(platform="unicorn", firmware=str(place)) as rproc:
        waits_quietly(rproc, f"firmware {str(place)!r}")
        assert rproc.power == 1
        with pytest.raises(Timeout, match="waits for firmware.*fw.elf"):
            rproc.open(SAMPLE, timeout=0.01)
        if driver == "open":
            call = Call(rproc.open, SAMPLE, timeout=TIMEOUT)
            blocked(call)
            arrive(place)
            call.outcome().close()
        else:
            arrive(place)
            woken(rproc, "running")
        assert (rproc.state, rproc.power, rproc.waiting_for) == ("running", 1, None)
        echo(rproc)


@pytest.mark.lesson("18")
def test_lesson_18_it_looks_where_the_board_says_before_where_the_kernel_does(
    needs_unicorn: None, tmp_path: Path
) -> None:
    """A name is searched for; its directories need not be there."""
    file = tmp_path / "board.toml"
    file.write_text('platform = "unicorn"\nfirmware = "vendor/fw.elf"\nfirmware_dirs = ["one", "two"]\n')
    with Remoteproc(board=load(file)) as rproc:
        waits_quietly(rproc, "firmware 'vendor/fw.elf'")
        (tmp_path / "two" / "vendor").mkdir(parents=True)
        shutil.copy(ELF, tmp_path / "two" / "vendor" / "fw.elf")
        woken(rproc, "running")
        echo(rproc)


@pytest.mark.lesson("18")
def test_lesson_18_it_is_loaded_when_it_is_whole(needs_unicorn: None, tmp_path: Path) -> None:
    place = tmp_path / "fw.elf"
    with Remoteproc(platform="unicorn", firmware=str(place)) as rproc:
        waits_quietly(rproc, f"firmware {str(place)!r}")
        data = ELF.read_bytes()
        with open(place, "wb") as file:
            for at in range(0, len(data), len(data) // 4 + 1):
                file.write(data[at : at + len(data) // 4 + 1])
                file.flush()
                waits_quietly(rproc, f"firmware {str(place)!r}")
        woken(rproc, "running")
        echo(rproc)


@pytest.mark.lesson("18")
def test_lesson_18_another_firmware_is_waited_for_instead(needs_unicorn: None, tmp_path: Path) -> None:
    first, second = tmp_path / "first.elf", tmp_path / "second" / "fw.elf"
    with Remoteproc(platform="unicorn", firmware=str(first)) as rproc:
        waits_quietly(rproc, f"firmware {str(first)!r}")
        rproc.firmware = str(second)
        shutil.copy(ELF, first)
        waits_quietly(rproc, f"firmware {str(second)!r}")
        second.parent.mkdir()
        shutil.copy(shipped("crash"), second)
        woken(rproc, "running")
        rproc.open("rpmsg-crash", timeout=TIMEOUT)


@pytest.mark.lesson("18")
@pytest.mark.parametrize("there", [True, False])
def test_lesson_18_a_firmware_that_is_there_may_be_chosen_while_it_waits(
    needs_unicorn: None, tmp_path: Path, there: bool
) -> None:
    with Remoteproc(platform="unicorn", firmware=str(tmp_path / "never.elf")) as rproc:
        waits_quietly(rproc, f"firmware {str(tmp_path / 'never.elf')!r}")
        if there:
            shutil.copy(ELF, tmp_path / "fw.elf")
            rproc.firmware = str(tmp_path / "fw.elf")
        else:
            rproc.firmware = "sample"  # a shipped one
        woken(rproc, "running")
        echo(rproc)


@pytest.mark.lesson("18")
@pytest.mark.parametrize("call", ["open", "bus"])
def test_lesson_18_a_failed_auto_boot_is_raised_by_the_next_call(
    needs_unicorn: None, tmp_path: Path, call: str
) -> None:
    """Not by poll(), which nobody asked for it; once; and then the remote is as any other that is offline."""
    place = tmp_path / "fw.elf"
    with Remoteproc(platform="unicorn", firmware=str(place)) as rproc:
        waits_quietly(rproc, f"firmware {str(place)!r}")
        place.write_bytes(b"no ELF at all" * 20)
        assert rproc.poll(TIMEOUT)
        assert (rproc.state, rproc.power, rproc.waiting_for) == ("offline", 0, None)
        use = (lambda: rproc.open(SAMPLE, timeout=1)) if call == "open" else (lambda: rproc.bus)
        with pytest.raises(FirmwareError, match="ELF") as caught:
            use()
        assert caught.value.__notes__ == [f"while booting {rproc.name}: could not read the firmware"]
        with pytest.raises(StateError, match="is offline"):
            use()
        moved(place)
        rproc.boot()
        echo(rproc)


@pytest.mark.lesson("18")
@pytest.mark.parametrize("end", ["shutdown", "close", "delete"])
def test_lesson_18_the_wait_can_be_given_up(needs_unicorn: None, tmp_path: Path, end: str) -> None:
    place = tmp_path / "fw.elf"
    rproc = Remoteproc(platform="unicorn", firmware=str(place))
    if end == "delete":
        deleted = weakref.ref(rproc)
        del rproc
        gc.collect()
        assert deleted() is None
        return
    if end == "shutdown":
        rproc.shutdown()
        assert (rproc.power, rproc.waiting_for) == (0, None)
        shutil.copy(ELF, place)
        rproc.poll(0.05)
        assert rproc.state == "offline"
        rproc.boot()
        echo(rproc)
    else:
        waiting = [Call(rproc.open, SAMPLE), Call(rproc.poll, None)]
        blocked(*waiting)
    rproc.close()
    if end == "close":
        for call in waiting:
            with pytest.raises((Closed, StateError)):
                call.outcome()


@pytest.mark.lesson("18")
def test_lesson_18_its_file_system_is_mounted_late(needs_unicorn: None, tmp_path: Path) -> None:
    """inotify tells of no mount."""
    program = f"""
    import select, subprocess, sys
    from rpmsgx import Remoteproc
    tmp = {str(tmp_path)!r}
    run = lambda *command: subprocess.run(command, check=True)
    run("mkdir", "-p", tmp + "/lib/firmware", tmp + "/full")
    run("mount", "-t", "tmpfs", "tmpfs", tmp + "/full")
    run("cp", {str(ELF)!r}, tmp + "/full/fw.elf")
    with Remoteproc(platform="unicorn", firmware=tmp + "/lib/firmware/fw.elf") as rproc:
        while rproc.poll(0.05):
            pass
        assert rproc.state == "offline" and rproc.waiting_for
        run("mount", "-t", "tmpfs", "tmpfs", tmp + "/lib")
        run("mkdir", tmp + "/lib/firmware")
        while rproc.poll(0.05):
            pass
        assert rproc.state == "offline"
        run("mount", "--bind", tmp + "/full", tmp + "/lib/firmware")
        while rproc.state != "running":
            assert select.select([rproc.fileno()], [], [], 10)[0], "nothing wakes"
            rproc.poll(0)
        with rproc.open({SAMPLE!r}, timeout=10) as ept:
            ept.send(b"hi")
            assert ept.recv(timeout=10) == b"hi"
    """
    unshare = ("unshare", "--mount", "--map-root-user") if os.geteuid() else ("unshare", "--mount")
    can = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True)
    require(can.returncode == 0, "no mounts of its own")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# -- 19 --------------------------------------------------------------------------------------------------------------

SERVER = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
if os.path.lexists(sys.argv[1]):
    os.unlink(sys.argv[1])
server.bind(sys.argv[1])
print("bound", flush=True)
if sys.argv[2:]:
    sys.stdin.readline()
server.listen()
print("listens", flush=True)
kept = []
while True:
    kept.append(server.accept())
"""


class Service:
    """A storage service: a process that accepts at a Unix socket."""

    def __init__(self, path: Path, slow: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path), *(["slow"] if slow else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "bound\n"
        if not slow:
            assert self.process.stdout.readline() == "listens\n"

    def listen(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "listens\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


@pytest.mark.lesson("19")
def test_lesson_19_it_lives_while_its_service_does(remote: dict[str, Any], tmp_path: Path) -> None:
    """A service that is killed and started again, three times over; the users of the remote are not forgotten."""
    place = tmp_path / "fs"
    with Remoteproc(presence=f"unix:{place}", **remote) as rproc:
        assert (rproc.state, rproc.power, rproc.waiting_for) == ("offline", 1, f"service unix:{place}")
        rproc.boot()
        assert (rproc.state, rproc.power) == ("offline", 2)
        for _ in range(3):
            with Service(place) as service:
                woken(rproc, "running")
                assert rproc.power == 2 and rproc.platform.running
                echo(rproc)
                ept = rproc.open(SAMPLE, timeout=TIMEOUT)
                call = Call(ept.recv)
                blocked(call)
                service.kill()
                woken(rproc, "offline")
                with pytest.raises(ChannelRemoved, match="the remote was stopped"):
                    call.outcome()
                assert (rproc.power, rproc.waiting_for) == (2, f"service unix:{place}")
                assert not rproc.platform.running
        rproc.shutdown()
        rproc.shutdown()
        assert (rproc.state, rproc.power) == ("offline", 0)
        with Service(place):  # nobody wants it any more
            until(lambda: rproc.poll(0.01) + 1)
            until(lambda: rproc._present)
            assert rproc.state == "offline"
            rproc.boot()
            assert rproc.state == "running"


@pytest.mark.lesson("19")
def test_lesson_19_open_is_not_ready(tmp_path: Path) -> None:
    """A socket that is there, and at which nobody listens yet, is no service; open() waits for it."""
    place = tmp_path / "fs"
    with Service(place, slow=True) as service, Remoteproc(platform="native", presence=f"unix:{place}") as rproc:
        rproc.poll(0.1)
        assert rproc.state == "offline"
        call = Call(rproc.open, SAMPLE, timeout=TIMEOUT)
        blocked(call)
        service.listen()
        with call.outcome() as ept:
            ept.send(b"ready")
            assert ept.recv(timeout=TIMEOUT) == b"ready"


@pytest.mark.lesson("19")
@pytest.mark.parametrize("state", ["running", "crashed", "attached", "two users"])
def test_lesson_19_the_gate_counts_no_users(remote: dict[str, Any], state: str) -> None:
    """Whatever the state and the count, its loss stops the remote; its return boots it again."""
    gate = Gate()
    with Remoteproc(firmware="crash", presence=gate, recovery="disabled", **remote) as rproc:
        users = 1
        match state:
            case "crashed":
                crash(rproc)
            case "attached":
                rproc.detach()
                rproc.attach()
            case "two users":
                rproc.boot()
                users = 2
        for _ in range(2):
            gate.turn(False)
            woken(rproc, "offline")
            assert rproc.power == users and not rproc.platform.running
            gate.turn(True)
            woken(rproc, "running")
            assert rproc.power == users
        rproc.open("rpmsg-crash", timeout=TIMEOUT)
        for _ in range(users):
            rproc.shutdown()
        assert (rproc.state, rproc.power) == ("offline", 0)


@pytest.mark.lesson("19")
def test_lesson_19_a_remote_that_was_found_running_is_attached_to_when_the_service_comes(path: str) -> None:
    with Remoteproc(platform="native", socket=path, at_exit="detach") as rproc:
        pid = rproc.platform.pid  # type: ignore[attr-defined]
    gate = Gate(up=False)
    with Remoteproc(platform="native", socket=path, presence=gate) as rproc:
        assert (rproc.state, rproc.power) == ("detached", 1)
        gate.turn(True)
        woken(rproc, "attached")
        assert rproc.platform.pid == pid and rproc.power == 1  # type: ignore[attr-defined]
        echo(rproc)


@contextlib.contextmanager
def source(kind: str, tmp_path: Path) -> Iterator[tuple[Any, Callable[[], object], Callable[[], object] | None]]:
    """A source of presence that is there, what takes it away, and what brings it back."""
    place = tmp_path / "service"
    with contextlib.ExitStack() as undo:
        if kind == "path":
            place.touch()
            yield f"path:{place}", place.unlink, place.touch
        elif kind in ("pid", "pidfd"):
            child = subprocess.Popen(["sleep", "1000"])
            undo.callback(child.wait)
            undo.callback(child.kill)
            if kind == "pid":
                yield f"pid:{child.pid}", child.kill, None
            else:
                pidfd = os.pidfd_open(child.pid)
                undo.callback(os.close, pidfd)
                yield Process(pidfd=pidfd), child.kill, None
        elif kind == "socket":
            services = [undo.enter_context(Service(place))]
            yield UnixSocket(place), services[0].kill, lambda: undo.enter_context(Service(place))
        elif kind == "channel":
            storage = undo.enter_context(Remoteproc("storage", platform="native"))
            echo(storage)
            yield Channel(storage, SAMPLE), storage.shutdown, lambda: (storage.boot(), echo(storage))
        elif kind == "own":
            gate = Gate()
            yield gate, lambda: gate.turn(False), lambda: gate.turn(True)
        else:
            kernel_has(qrtr(), "this kernel has no QRTR")
            program = (
                "import socket, struct\n"
                "s = socket.socket(socket.AF_QIPCRTR, socket.SOCK_DGRAM)\n"
                "s.sendto(struct.pack('<5I', 4, 0x7ffd, 3, 0, 0), (s.getsockname()[0], 0xfffffffe))\n"
                "input()"
            )

            def offer() -> subprocess.Popen[bytes]:
                child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
                undo.callback(child.communicate)
                undo.callback(child.kill)
                return child

            yield f"qrtr:{0x7FFD}", offer().kill, offer


def qrtr() -> bool:
    try:
        socket.socket(socket.AF_QIPCRTR, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


@pytest.mark.lesson("19")
@pytest.mark.parametrize("kind", ["path", "pid", "pidfd", "socket", "channel", "own", "qrtr"])
def test_lesson_19_whatever_its_presence_comes_from(tmp_path: Path, kind: str) -> None:
    with (
        source(kind, tmp_path) as (presence, take_away, bring_back),
        Remoteproc(platform="native", presence=presence) as rproc,
    ):
        woken(rproc, "running")
        echo(rproc)
        take_away()
        woken(rproc, "offline")
        assert rproc.power == 1
        if bring_back is None:  # a process never returns
            rproc.poll(0.02)
            assert rproc.state == "offline"
        else:
            bring_back()
            woken(rproc, "running")
            echo(rproc)


# -- 20 --------------------------------------------------------------------------------------------------------------


@pytest.mark.lesson("20")
def test_lesson_20_another_remotes_channel_is_looked_up_late(remote: dict[str, Any]) -> None:
    """The other one need not be up, nor announce it yet; and it may go and come."""
    with Remoteproc("storage", platform="native", auto_boot=False) as storage:
        with Remoteproc("modem", presence=Channel(storage, "rpmsg-raw"), **remote) as modem:
            assert (modem.state, modem.power) == ("offline", 1)
            assert modem.waiting_for == "service channel:rpmsg-raw"
            for end in (storage.shutdown, storage.detach):
                storage.boot()
                while modem.state != "running":  # each is driven when it says so
                    ready = select.select([storage, modem], [], [], TIMEOUT)[0]
                    assert ready, "nothing wakes"
                    for rproc in ready:
                        rproc.poll(0)
                echo(modem)
                end()
                gc.collect()  # with the bus its descriptors go, and what they had to tell
                woken(modem, "offline")
                assert modem.power == 1
        assert storage.state == "detached"


@pytest.mark.lesson("20")
@pytest.mark.parametrize(
    "way", ["close", "delete", "failed boot", "failed options", "missing firmware", "other closed", "other deleted"]
)
def test_lesson_20_the_other_remote_is_given_back_on_every_way(tmp_path: Path, way: str) -> None:
    """No reference, no descriptor of it stays, so that it can be closed, and is gone where nobody has it."""
    storage = Remoteproc("storage", platform="native", process=True)
    pid = storage.platform.pid  # type: ignore[attr-defined]
    echo(storage)
    storage.fileno()  # it has some of its own for whoever watches it
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    presence = Channel(storage, SAMPLE)
    match way:
        case "close":
            with Remoteproc(platform="native", presence=presence) as modem:
                echo(modem)
        case "delete":
            modem = Remoteproc(platform="native", presence=presence)
            del modem
        case "failed boot":
            with pytest.raises(FirmwareError):
                Remoteproc(platform="native", presence=presence, firmware="nonsense")
        case "failed options":
            with pytest.raises(ValueError, match="recovery"):
                Remoteproc(platform="native", presence=presence, recovery="perhaps")  # type: ignore[arg-type]
            presence.close()  # nobody took it
        case "missing firmware":
            with Remoteproc(platform="native", presence=presence, auto_boot=False) as modem:
                modem.firmware = "nonsense"
                with pytest.raises(FirmwareError):
                    modem.boot()
        case _:
            with Remoteproc(platform="native", presence=presence) as modem:
                echo(modem)
                other = weakref.ref(storage)
                storage.close()
                if way == "other deleted":
                    del storage
                    gc.collect()
                woken(modem, "offline")
                modem.poll(0)
                assert (modem.state, modem.power) == ("offline", 1)
            assert way == "other closed" or other() is not None  # the source has it as long as it is there itself
    del presence
    gc.collect()
    if not way.startswith("other"):
        assert len(os.listdir("/proc/self/fd")) == before
        echo(storage)
        deleted = weakref.ref(storage)
        del storage
        gc.collect()
        assert deleted() is None
    assert gone(pid)


@pytest.mark.lesson("20")
def test_lesson_20_who_is_not_there_at_the_start_is_no_error(tmp_path: Path) -> None:
    """A path, a socket, a channel: deferred. A process that there never was cannot come, and is refused, all undone."""
    for presence in (f"path:{tmp_path}/not/yet", f"unix:{tmp_path}/not/yet"):
        with Remoteproc(platform="native", presence=presence) as rproc:
            assert (rproc.state, rproc.waiting_for) == ("offline", f"service {presence}")
            with pytest.raises(Timeout, match="waits for service"):
                rproc.open(SAMPLE, timeout=0.01)
    with pytest.raises(ProcessLookupError):
        Remoteproc(platform="native", presence="pid:4194304")
