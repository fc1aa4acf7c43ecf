# SPDX-License-Identifier: BSD-3-Clause
"""[[registers]], [core] and [doorbell] of board files, and the steps of platform `registers` on plain memory.

tests/boards/test_registers.py runs an SoC with them.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from test_board import problems, write

from rpmsgx import BoardError, Closed, FirmwareError, ResourceError, StateError, Timeout
from rpmsgx.memory.region import Region
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.register import Register
from rpmsgx.notify.timer import PolledDoorbell
from rpmsgx.notify.uio import RegisterDoorbell
from rpmsgx.remoteproc import board
from rpmsgx.remoteproc.registers import RegistersPlatform
from rpmsgx.remoteproc.steps import Bits, Control, Until, Write

pytestmark = pytest.mark.timeout(30)

HEAD = """\
platform = "registers"
shared = "shm"
[[memory]]
name = "shm"
da = 0x60000000
size = "1MiB"
"""
BLOCKS = """\
[[registers]]
name = "rst"
backend = "file:rst"
names = { hold = 0x0, boot = 0x4, state = 0x8 }
[[registers]]
name = "mbox"
backend = "file:mbox"
size = 0x1000
names = { kick = 0x10, ack = 0xffc }
"""
CORE = """\
[core]
machine = "RISC-V"
start = [{ register = "rst.boot", value = "entry" }, { register = "rst.hold", clear = 0x1 }]
stop = [{ register = "rst.hold", set = 0x1 }]
"""
GOOD = HEAD + BLOCKS + CORE  # lines 1 to 6, 7 to 15, 16 to 19


# -- board files -------------------------------------------------------------------------------------------------------


def test_what_is_read(tmp_path: Path) -> None:
    text = GOOD + (
        'detach = [{ register = "mbox.kick", value = 0x2, mask = 0x3 },\n'
        '          { register = "mbox.ack", until = 0x2, mask = 0x2, within = 0.25 },\n'
        '          { register = "rst.hold", until = 0 }]\n'
        'running = { register = "rst.state", value = 0x1 }\n'
        'crashed = { register = "rst.state", value = 0x4, mask = 0xc }\n'
        '[doorbell]\nkick = { register = "mbox.kick", set = 0x1 }\n'
        'acknowledge = { register = "mbox.ack" }\npoll = 0.01\n'
    )
    assert problems(tmp_path, text) == []
    found = board.load(tmp_path / "b.toml")
    assert found.core == Control(
        machine=243,
        start=(Write("rst.boot", "entry"), Write("rst.hold", 0, 0x1)),
        stop=(Write("rst.hold", 0x1, 0x1),),
        detach=(Write("mbox.kick", 2, 3), Until("mbox.ack", 2, 2, 0.25), Until("rst.hold", 0)),
        running=Bits("rst.state", 1),
        crashed=Bits("rst.state", 4, 0xC),
    )
    one, two = found.registers
    assert (one.name, one.backend, one.size, one.line) == ("rst", f"file:{tmp_path}/rst", 0x1000, 7)
    assert (two.name, dict(two.names), two.line) == ("mbox", {"kick": 0x10, "ack": 0xFFC}, 11)
    bell = found.doorbell
    assert bell is not None and bell.block is two
    assert bell[2:5] == (Write("mbox.kick", 1, 1), Bits("mbox.ack", None), 0.01)


@pytest.mark.parametrize(
    "backend, identity",
    [
        ('backend = "memfd"\n', None),
        ('backend = "mem"\npa = 0x90000000\nkind = "device"\n', "mem 0x90000000"),
        ('backend = "uio:mbox:shm"\nkind = "device"\noffset = 0x1000\n', "uio:mbox:shm 0x60001000"),
    ],
)
def test_the_core_is_known_by_its_rings(tmp_path: Path, backend: str, identity: str | None) -> None:
    assert problems(tmp_path, GOOD.replace('size = "1MiB"\n', f'size = "1MiB"\n{backend}')) == []
    core = board.load(tmp_path / "b.toml").core
    assert core is not None and core.identity == identity


REFUSED = {
    # what is replaced, and by what: the problems
    ("[core]", "[cor]"): [
        "1: platform 'registers' needs core; add it to the board",
        "1: platform 'registers' needs registers; add it to the board",
        "16: there is no key 'cor'; did you mean 'core'?",
    ],
    (HEAD, 'platform = "registers"\n'): [
        "1: platform 'registers' needs memory; add it to the board",
        "1: platform 'registers' needs shared; add it to the board",
    ],
    ('"registers"', '"native"'): [
        "2: platform 'native' sees to shared itself",
        "3: platform 'native' sees to memory itself",
        "7: platform 'native' sees to registers itself",
        "16: platform 'native' sees to core itself",
    ],
    # blocks
    ('name = "mbox"', 'name = "rst"'): ["12: [[registers]] name: 'rst' is the name in line 8 already; choose another"],
    ('name = "mbox"', 'name = "m.box"'): ["12: [[registers]] name: 'm.box' is no name here; write letters, digits, "],
    ('"file:mbox"', '"memfd"'): ["13: [[registers]] backend: 'memfd' has no registers; write 'mem', 'uio:DEVICE[:MAP]"],
    ('"file:mbox"', '"mem"'): ["11: [[registers]] pa is missing; add pa = ..., where 'mem' has the registers"],
    ("ack = 0xffc", "ack = 0xffe"): ["15: [[registers]] names: ack is at 0xffe, no multiple of 4; registers have 32"],
    ("ack = 0xffc", "ack = 0x1000"): ["15: [[registers]] names: ack is at 0x1000, and the block has 0x1000 bytes; giv"],
    ("ack = 0xffc", "ack = -4"): ["15: [[registers]] names: -4 is out of range; write 0x0 to 0xfffffffc"],
    ("ack = 0xffc", '"a b" = 4'): ["15: [[registers]] names: 'a b' is no name here; write letters, digits, '_' and '-"],
    ("names = { kick = 0x10, ack = 0xffc }\n", ""): ["11: [[registers]] names is missing; add names = ..."],
    # the core
    ('machine = "RISC-V"\n', ""): ["16: [core] machine is missing; add machine = ..."],
    ('"RISC-V"', '"riscv"'): ["17: [core] machine: 'riscv' is not known; write "],
    ("rst.boot", "rst.bot"): ["18: [core] start: there is no register 'rst.bot'; did you mean 'rst.boot'?"],
    ("rst.boot", "zzzz.zzzz"): ["18: [core] start: there is no register 'zzzz.zzzz'; there are rst.hold, rst.boot, rs"],
    ("rst.boot", "boot"): ["18: [core] start: step 1: 'boot' is no register; write \"BLOCK.NAME\", as [[registers]] "],
    ('"entry"', '"entyr"'): ["18: [core] start: step 1: 'entyr' is no integer"],
    ("set = 0x1", 'value = "entry"'): ["19: [core] stop: step 1: 'entry' is no integer; write 0x1000 or 4096, without"],
    ("clear = 0x1", "clear = 0x1_0000_0000"): ["18: [core] start: step 2: 0x100000000 is out of range; write 0x0 to 0"],
    ("clear = 0x1", "clear = 0x1, set = 0x2"): ["18: [core] start: step 2: {'register': 'rst.hold', 'clear': 1, 'set'"],
    ("clear = 0x1", "clear = 0x1, mask = 0x1"): ["18: [core] start: step 2: {'register': 'rst.hold', 'clear': 1, 'mas"],
    ("clear = 0x1", "value = 0x5, mask = 0x3"): ["18: [core] start: step 2: 5 has bits outside of mask 0x3; take them"],
    ("clear = 0x1", "until = 0x5, within = -1"): ["18: [core] start: step 2: -1 is no time; write seconds from 0 to "],
    ("clear = 0x1", "value = 0x5, within = 1"): ["18: [core] start: step 2: {'register': 'rst.hold', 'value': 5, 'wit"],
    ("stop = [", "stop = 1 #"): ["19: [core] stop: 1 is no list; write [{ register = "],
    ("stop = [", "stop = [1] #"): ["19: [core] stop: step 1: 1 is nothing that a register takes; write { register = "],
    ("stop = [", "#"): ["18: [core] stop is missing; add stop = [...]"],
    ("start = [", "#"): ["19: [core] start is missing; add start = [...]"],
    (CORE, '[core]\nmachine = "ARM"\n'): ["16: start and stop are missing; add them, or, where others start the core,"],
    (CORE, '[core]\nmachine = "ARM"\nrunning = false\n'): ["18: [core] running: false is nothing that a register take"],
    (CORE, CORE + "crashed = true\n"): ["20: [core] crashed: true is nothing that a register takes; write { register"],
    (CORE, CORE + 'running = { register = "rst.x", value = 1 }\n'): ["20: [core] running: there is no register 'rst.x"],
    (CORE, CORE + 'running = { register = "rst.state", until = 1 }\n'): ["20: [core] running: {'register': 'rst.state"],
    # the doorbell
    (CORE, CORE + "[doorbell]\n"): ["20: interrupt, kick and poll are missing; add one of them, or take [doorbell] ou"],
    (CORE, CORE + "[doorbell]\npoll = 0\n"): ["21: [doorbell] poll: 0 is no time between two looks; write seconds fro"],
    (CORE, CORE + '[doorbell]\ninterrupt = "x"\npoll = 0.1\n'): ["22: [doorbell] poll is for a doorbell that nobody r"],
    (CORE, CORE + '[doorbell]\nkick = { register = "mbox.kick" }\n'): ["21: [doorbell] kick: {'register': 'mbox.kick'"],
    (CORE, CORE + '[doorbell]\nkick = { register = "mbox.kik", set = 1 }\n'): [
        "21: [doorbell] kick: there is no register 'mbox.kik'; did you mean 'mbox.kick'?"
    ],
    (CORE, CORE + '[doorbell]\nkick = { register = "mbox.kick", set = 1 }\nacknowledge = { register = "rst.hold" }'): [
        "22: [doorbell] acknowledge: 'rst' is not the block of kick, 'mbox'; make one [[registers]] of them"
    ],
}


@pytest.mark.parametrize("change", REFUSED, ids=range(len(REFUSED)))
def test_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in GOOD
    found = problems(tmp_path, GOOD.replace(*change, 1))
    assert len(found) == len(REFUSED[change]), found
    for problem, start in zip(found, REFUSED[change], strict=True):
        assert problem.startswith(start)


def test_registers_that_cannot_be_had(tmp_path: Path) -> None:
    """What opening shows has its line, and leaves nothing open."""
    text = GOOD.replace('"file:mbox"', '"uio:nowhere"')
    assert problems(tmp_path, text) == []
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BoardError, match="b.toml:11: there is no UIO device 'nowhere'"):
        board.load(tmp_path / "b.toml").open_platform()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "text, kind",
    [
        ('kick = { register = "mbox.kick", set = 4 }\nacknowledge = { register = "mbox.ack", clear = 1 }', "register"),
        ("poll = 0.02", "polled"),
        ("", "none"),
    ],
)
def test_the_doorbell_of_the_board_is_the_platform_s(tmp_path: Path, text: str, kind: str) -> None:
    write(tmp_path, GOOD + (f"[doorbell]\n{text}\n" if text else ""))
    with board.load(tmp_path / "b.toml").open_platform() as platform, Region.file("mbox", tmp_path / "mbox") as mbox:
        bell = platform.doorbell
        assert type(bell) is (RegisterDoorbell if kind == "register" else PolledDoorbell)
        if kind == "register":
            struct.pack_into("=I", mbox.view, 0xFFC, 3)
            bell.kick(0)
            bell.drain()
            assert struct.unpack_from("=I", mbox.view, 0x10) == (4,)
            assert struct.unpack_from("=I", mbox.view, 0xFFC) == (2,)
        bell.drain()
        began = time.monotonic()
        assert readable(bell.fileno(), 5)
        assert time.monotonic() - began > (0.018 if kind == "polled" else 0.0009)


# -- steps on plain memory ---------------------------------------------------------------------------------------------


class Core:
    """A platform whose registers are words of memory; nobody looks at them but the test."""

    def __init__(self, settle: float = 0.0, **control: Any) -> None:
        self.words = memoryview(bytearray(64)).cast("I")
        names = ("hold", "boot", "state", "told", "done")
        self.at = {name: index for index, name in enumerate(names)}
        self.platform = RegistersPlatform(
            core=Control(machine=40, **control),
            registers={f"r.{name}": Register(self.words, 4 * index) for name, index in self.at.items()},
            memory=[shared := Region.anonymous("shm", 4096, da=0x1000)],
            shared=shared,
            settle=settle,
        )

    def __getitem__(self, name: str) -> int:
        return self.words[self.at[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self.words[self.at[name]] = value


@contextmanager
def core(**control: Any) -> Iterator[Core]:
    made = Core(**{"start": (Write("r.hold", 0, 1),), "stop": (Write("r.hold", 1, 1),), **control})
    with made.platform:
        yield made


RUNS = Bits("r.state", 1, 1)


def test_only_the_bits_of_the_mask_are_written() -> None:
    with core(start=(Write("r.boot", "entry"), Write("r.hold", 0x50, 0xF0)), stop=(Write("r.hold", 0, 0x1),)) as made:
        made["hold"] = 0xFFFF_FFFF
        made.platform.start(0x1234_5678)
        assert (made["boot"], made["hold"]) == (0x1234_5678, 0xFFFF_FF5F)
        made.platform.stop()
        assert made["hold"] == 0xFFFF_FF5E


def test_part_of_the_entry() -> None:
    with core(start=(Write("r.boot", "entry", 0xFFFF_FF80),)) as made:
        made["boot"] = 0x7F
        made.platform.start(0x8000_00FF)
        assert made["boot"] == 0x8000_00FF
        made.platform.stop()
        with pytest.raises(ResourceError, match="entry 0x100000000 does not fit a register of 32 bits"):
            made.platform.start(1 << 32)
        assert not made.platform.running


def test_a_wait_ends_when_the_register_says_so() -> None:
    with core(start=(Until("r.state", 2, 6, 5.0), Write("r.told", 7))) as made:
        timer = threading.Timer(0.05, made.__setitem__, ("state", 0xA))
        timer.start()
        made.platform.start(0)
        assert made["told"] == 7
        timer.join()


def test_a_wait_that_nothing_ends_undoes_the_start() -> None:
    with core(start=(Write("r.hold", 0, 1), Until("r.state", 2, 6, 0.05), Write("r.told", 7))) as made:
        made["state"] = 0x4
        with pytest.raises(Timeout, match=r"register r.state reads 0x4; r.state = 0x2 in 0x6 was awaited for 0.05 s$"):
            made.platform.start(0)
        assert (made["hold"], made["told"]) == (1, 0) and not made.platform.running
        made.platform.stop()


def test_a_stop_that_fails_leaves_it_running() -> None:
    with core(stop=(Write("r.hold", 1, 1), Until("r.state", 1, within=0.01))) as made:
        made.platform.start(0)
        with pytest.raises(Timeout, match="r.state reads 0x0"):
            made.platform.stop()
        assert made.platform.running and made.platform.crash is None
        made["state"] = 1
        made.platform.stop()
        assert not made.platform.running


def test_its_state_is_what_the_register_says() -> None:
    with core(running=RUNS, crashed=Bits("r.state", 2, 2)) as made:
        platform = made.platform
        assert not platform.running
        with pytest.raises(StateError, match="there is nothing to attach to"):
            platform.attach()
        made["state"] = 1  # others have started it
        assert platform.running
        with pytest.raises(StateError, match="running already"):
            platform.start(0)
        made["state"] = 0
        assert not platform.running and platform.crash is None  # nobody held it
        made["state"] = 1
        platform.attach()
        made["state"] = 3
        assert platform.crash == "the remote gave up: register r.state reads 0x3" and not platform.running
        made["state"] = 1
        assert platform.crash == "the remote gave up: register r.state reads 0x3"  # it has started anew by itself
        made["hold"] = 0
        platform.stop()
        assert made["hold"] == 1
        made["state"] = 0
        platform.start(0)
        assert platform.crash == "the core stopped by itself: register r.state reads 0x0"


def test_a_remote_that_restarts_by_itself_is_attached_to_again() -> None:
    with core(running=RUNS) as made:
        platform = made.platform
        made["state"] = 1
        platform.attach()
        made["state"] = 0
        assert platform.crash is not None
        timer = threading.Timer(0.05, made.__setitem__, ("state", 1))
        timer.start()
        platform.attach()
        assert platform.crash is None and platform.running
        timer.join()
        made["state"] = 0
        assert platform.crash is not None
        with pytest.raises(Timeout, match="r.state = 0x1 in 0x1 was awaited for 1 s"):
            platform.attach()
        assert platform.crash is not None


def test_a_core_that_others_start_and_nobody_stops() -> None:
    with core(start=(), stop=(), running=True, detach=(Write("r.told", 1), Until("r.done", 1))) as made:
        platform = made.platform
        assert platform.running
        platform.attach()
        with pytest.raises(StateError, match=r"names no registers that stop the core \(stop\)"):
            platform.stop()
        with pytest.raises(Timeout, match="r.done reads 0x0; r.done = 0x1 was awaited for 0.02 s"):
            platform.detach(0.02)
        assert platform.running and made["told"] == 1
        made["done"] = 1
        platform.detach(0.02)
        assert platform.running  # for the next host
    with core(start=(), stop=()) as made, pytest.raises(StateError, match=r"start the core \(start\)"):
        made.platform.start(0)


@pytest.mark.lesson("09")
def test_lesson_09_settle_is_for_what_nothing_tells_of() -> None:
    with core(settle=0.05, detach=(Write("r.told", 1),)) as made:
        for step in (lambda: made.platform.start(0), made.platform.detach, made.platform.attach, made.platform.stop):
            began = time.monotonic()
            step()
            waited = time.monotonic() - began >= 0.05
            assert waited == (step != made.platform.attach)
    wait = (Until("r.done", 0),)
    with core(settle=5.0, start=wait, stop=wait, detach=wait) as made:
        began = time.monotonic()
        made.platform.start(0)
        made.platform.detach()
        made.platform.attach()
        made.platform.stop()
        assert time.monotonic() - began < 5


def test_a_remote_that_dies_instead_of_detaching() -> None:
    with core(running=RUNS, detach=(Until("r.done", 1),)) as made:
        made["state"] = 1
        made.platform.attach()
        timer = threading.Timer(0.02, made.__setitem__, ("state", 0))
        timer.start()
        with pytest.raises(StateError, match="ended instead of detaching: the core stopped by itself"):
            made.platform.detach(0.2)
        timer.join()


@pytest.mark.parametrize("what", ["started", "attached", "detached", "found"])
def test_close_stops_what_it_holds(what: str) -> None:
    with core(settle=0.001, running=RUNS) as made:
        if what != "started":
            made["state"] = 1
        if what == "started":
            made.platform.start(0)
        elif what != "found":
            made.platform.attach()
        if what == "detached":
            made.platform.detach()
    assert made["hold"] == (what in ("started", "attached"))
    made.platform.close()
    for call in (made.platform.attach, made.platform.detach, lambda: made.platform.start(0)):
        with pytest.raises(Closed):
            call()
    assert made.platform.shared.closed and not made.platform.running


def test_a_forked_child_stops_nothing() -> None:
    with core() as made:
        made.platform.start(0)
        pid = os.fork()
        if not pid:
            made.platform.close()
            os._exit(made["hold"])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert made["hold"] == 1


def test_a_register_that_is_not_there() -> None:
    with pytest.raises(ResourceError, match="there is no register r.x, r.y$"), core(
        start=(Write("r.y", 1),), crashed=Bits("r.x", 1)
    ):
        pass


def test_images_are_of_its_machine(tmp_path: Path) -> None:
    from rpmsgx.firmware import path as shipped

    with core() as made:
        platform = made.platform
        assert (platform.machine, platform.cpu) == (40, "ARM")
        assert platform.image(str(shipped("sample"))).entry
        assert not platform.ships("sample")
        platform.machine = 243
        with pytest.raises(FirmwareError, match="an ARM image, the platform runs RISC-V"):
            platform.image(str(shipped("sample")))


def test_the_page_shows_the_example() -> None:
    example = (ROOT / "examples" / "boards" / "soc-registers.toml").read_text()
    assert f"```toml\n{example}```" in (ROOT / "docs" / "first-board.md").read_text()


def test_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    from rpmsgx.cli import main

    assert main(["board", "check", str(ROOT / "examples" / "boards" / "soc-registers.toml")]) == 0
    shown = capsys.readouterr().out.partition("\n\n  registers ")[2]
    assert (
        shown
        == """\
reset: 4 KiB, mem at 0x50000000
    0x000  control
    0x004  vector
    0x008  status

  registers mailbox: 4 KiB, mem at 0x50001000
    0x000  kick
    0x004  command
    0x008  done
    0x00c  ring

  core: ARM
    start        reset.vector = entry
                 reset.control = 0x0 in 0x2
                 reset.control = 0x0 in 0x1
                 until reset.status = 0x1 in 0x3 within 0.5 s
    stop         reset.control = 0x3 in 0x3
                 until reset.status = 0x0 in 0x3 within 5 s
    detach       mailbox.done = 0x0
                 mailbox.command = 0x2
                 until mailbox.done = 0x2
    running      reset.status = 0x1 in 0x3
    crashed      reset.status = 0x2 in 0x2

  doorbell: none, the rings are looked at each 0.002 s
    kick         mailbox.kick = 0x1
    acknowledge  mailbox.ring = 0x0
"""
    )
