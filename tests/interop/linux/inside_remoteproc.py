# SPDX-License-Identifier: BSD-3-Clause
"""What test_remoteproc_sysfs.py lets a guest do, one function each: `sim0` and `sim1` are remotes of module rproc_sim.

No pytest in here: a guest has the host's Python, and starts it in a fraction of a second.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boards.guest.cases import child, ended_well

from rpmsgx import Remoteproc
from rpmsgx.errors import Closed, Error, FirmwareError, ResourceError, StateError, Timeout
from rpmsgx.remoteproc.coredump import Core
from rpmsgx.remoteproc.linux import LinuxPlatform, LinuxRemoteproc
from rpmsgx.remoteproc.sysfs import Channel

PARAMETERS = Path("/sys/module/rproc_sim/parameters")
NOBODY = 65534
WAIT = 5.0


@contextlib.contextmanager
def raises(error: type[BaseException], *texts: str) -> Iterator[None]:
    try:
        yield
    except error as caught:
        missing = [text for text in texts if text not in str(caught)]
        assert not missing, f"{caught!r} does not say {missing}"
    else:
        raise AssertionError(f"no {error.__name__}")


def inject(**parameters: int) -> None:
    for name, value in parameters.items():
        (PARAMETERS / name).write_text(str(value))


def until(rproc: LinuxRemoteproc, state: str) -> None:
    deadline = time.monotonic() + WAIT
    while rproc.state != state:
        assert time.monotonic() < deadline, f"still {rproc.state}, not {state}"
        rproc.poll(0.2)


def own(owner: type, name: str) -> Any:
    """What a class defines itself by that name: a function, also a property's; else None."""
    member = vars(owner).get(name)
    return member.fget if isinstance(member, property) else member


def same_class() -> None:
    """Every public member is there, takes what the base's takes, and reads nothing that only the base would set."""
    with Remoteproc("sim0", platform="linux", auto_boot=False) as rproc, LinuxRemoteproc("sim1") as other:
        assert type(rproc) is type(other) is LinuxRemoteproc and isinstance(other, Remoteproc)
        assert rproc.platform.name == "linux" and repr(rproc) == "<Remoteproc sim0 offline>"
        public = [name for name in vars(Remoteproc) if not name.startswith("_") or name in ("__init__", "__exit__")]
        assert len(public) > 25
        read, seen = set(), set()
        wanted = {*public, "__del__", "__repr__", "__enter__"}
        while wanted:
            name = wanted.pop()
            seen.add(name)
            functions = [own(LinuxRemoteproc, name), own(Remoteproc, name)]
            if all(functions) and name in public:
                signatures = [inspect.signature(function).parameters for function in functions]
                for parameter, of_base in signatures[1].items():
                    assert signatures[0][parameter].default == of_base.default, (name, parameter)
            function = functions[0] or functions[1]
            if not inspect.isfunction(function):
                continue
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                    read.add(node.attr)
                    wanted |= {node.attr} - seen
        unset = {name for name in read if name not in vars(rproc) and not hasattr(LinuxRemoteproc, name)}
        assert not unset, unset
        unasked = {name for name in seen & {*vars(Remoteproc)} if "_uptime" in str(own(Remoteproc, name))}
        assert not unasked
        refused = []
        for name in public:
            try:
                getattr(rproc, name)
            except StateError:
                refused.append(name)
        assert sorted(refused) == ["bus", "image"], refused
        with raises(StateError, "no resources"):
            rproc.resources.carveout("ram", 4096)
        assert (rproc.at_exit, rproc.spin, rproc.vdevs, rproc.lost, rproc.waiting_for) == (None, 0.0, (), 0, None)
        with raises(StateError, "subdevices"):
            rproc.add_subdevice(object())  # type: ignore[arg-type]


def by_board_file(folder: str) -> None:
    board = Path(folder) / "sim.toml"
    board.write_text('name = "sim1"\nplatform = "linux"\nfirmware = "sim.elf"\ncoredump = "enabled"\n'
                     '[options]\ndev = "/dev"\n')  # fmt: skip
    with Remoteproc(board=board) as rproc:
        assert type(rproc) is LinuxRemoteproc and (rproc.name, rproc.state) == ("sim1", "running")
        assert (rproc.firmware, rproc.coredump_mode) == ("sim.elf", "enabled")
        with Remoteproc("sim0", board=board, auto_boot=False) as other:
            assert (other.name, other.state) == ("sim0", "offline")
    assert rproc.state == "deleted" and LinuxRemoteproc("sim1").state == "offline"
    with raises(ResourceError, "the kernel sees to its remotes' memory"):
        board.write_text('name = "sim1"\nplatform = "linux"\n[[carveout]]\nname = "a"\nsize = 4096\n')
        Remoteproc(board=board)


def booted_by_itself() -> None:
    """As any other Remoteproc: up when it is made, stopped when it is closed, and what others hold stays up."""
    with LinuxRemoteproc("sim0") as watcher:
        with Remoteproc("sim0", platform="linux") as rproc:
            assert (watcher.state, rproc.power, watcher.power) == ("running", 1, 0)
            rproc.boot()
            assert rproc.power == 2
        assert watcher.state == "offline" and rproc.state == "deleted" and rproc.power == 0
        watcher.boot()
        with Remoteproc("sim0", platform=LinuxPlatform(), firmware="sim.elf", recovery="enabled"):
            pass  # neither is set anew, which would be refused
        assert watcher.state == "running"
        with raises(ValueError, "'once'"):
            Remoteproc("sim0", platform="linux", recovery="once")
        with raises(ResourceError, "no resources"):
            Remoteproc("sim0", platform="linux", resources=object())  # type: ignore[arg-type]
        with raises(ValueError, "name"):
            Remoteproc(platform="linux")
        with raises(TypeError, "nonsense"):
            Remoteproc("sim0", platform="linux", nonsense=1)
        assert watcher.power == 1
    with LinuxRemoteproc("sim0") as watcher:
        assert watcher.state == "offline"
        with raises(ZeroDivisionError), Remoteproc("sim0", platform="linux"):
            1 / 0  # noqa: B018
        assert watcher.state == "offline"


def firmware_that_comes_later(folder: str) -> None:
    with Remoteproc("sim0", platform="linux", firmware="late.elf") as rproc:
        rproc.shutdown()  # nobody waits any more
        assert (rproc.state, rproc.power, rproc.waiting_for) == ("offline", 0, None)
    with Remoteproc("sim0", platform="linux", firmware="late.elf") as rproc:
        assert (rproc.state, rproc.power, rproc.waiting_for) == ("offline", 1, "firmware 'late.elf'")
        Path(folder, "new").write_bytes(Path(folder, "sim.elf").read_bytes())
        Path(folder, "new").rename(Path(folder, "late.elf"))
        until(rproc, "running")
        assert rproc.waiting_for is None
        rproc.shutdown()
        assert rproc.state == "offline"
    with Remoteproc("sim0", platform="linux", firmware="text.elf", auto_boot=False):
        pass
    with raises(FirmwareError):
        Remoteproc("sim0", platform="linux")


def only_with_a_service(folder: str) -> None:
    service = Path(folder, "service")
    with Remoteproc("sim0", platform="linux", firmware="sim.elf", presence=f"path:{service}") as rproc:
        rproc.boot()
        assert (rproc.state, rproc.power, rproc.waiting_for) == ("offline", 2, f"service path:{service}")
        for _ in range(2):
            service.touch()
            until(rproc, "running")
            service.unlink()
            until(rproc, "offline")
            assert rproc.power == 2
        rproc.shutdown()
        assert rproc.power == 1
        service.touch()
        until(rproc, "running")
        rproc.shutdown()
        assert (rproc.state, rproc.power) == ("offline", 0)


def names() -> None:
    with LinuxRemoteproc("sim0") as first, LinuxRemoteproc("sim1") as second:
        second.boot()
        assert (first.state, second.state) == ("offline", "running")
        with LinuxRemoteproc("rproc-sim.1") as same:  # by its device
            assert (same.name, same.state) == ("sim1", "running")
        second.shutdown()
    with raises(FileNotFoundError, "'nobody'", "'sim0' (device 'rproc-sim.0')", "'sim1' (device 'rproc-sim.1')"):
        LinuxRemoteproc("nobody")
    with raises(FileNotFoundError):
        LinuxRemoteproc("remoteproc0")  # no name


def life() -> None:
    with LinuxRemoteproc("sim0") as rproc, LinuxRemoteproc("sim0") as other:
        assert (rproc.state, rproc.firmware, rproc.recovery) == ("offline", "sim.elf", "enabled")
        with raises(StateError, "offline", "nothing to stop"):
            rproc.shutdown()
        with raises(StateError, "offline", "nothing to detach"):
            rproc.detach()
        with raises(StateError, "offline", "boot() starts one"):
            rproc.attach()
        with raises(StateError, "cannot crash"):
            rproc.crashed()
        with raises(StateError, "no trace"):
            rproc.trace()
        rproc.firmware = "other.elf"
        assert other.firmware == "other.elf"
        rproc.firmware = "sim.elf"
        assert not other.poll()
        rproc.boot()
        assert other.poll() and other.state == "running" and not other.poll()
        with raises(StateError, "running", "change its firmware"):
            rproc.firmware = "other.elf"
        with raises(StateError, "running", "nothing to detach"):
            rproc.detach()
        assert rproc.trace() == "hello from the trace\nand from the second one\n"
        assert "Entry 0 is of type vdev" in rproc.resource_table()
        rproc.boot()  # a second user
        rproc.shutdown()
        assert rproc.state == "running"
        other.shutdown()
        assert rproc.state == "offline" and rproc.channels == () and rproc.power == 1
        rproc.recover()  # nothing
        assert rproc.state == "offline"
    assert rproc.state == "deleted" and rproc.crash is None and rproc.waiting_for is None
    for work in (rproc.boot, rproc.shutdown, rproc.fileno, rproc.poll, rproc.recover, rproc.crashed):
        with raises(Closed):
            work()
    with raises(Closed):
        rproc.firmware = "sim.elf"
    rproc.close()


def has_channels() -> None:
    """The guest's shell makes a channel from the kernel's side."""
    with LinuxRemoteproc("sim0") as rproc, LinuxRemoteproc("sim1") as other:
        assert rproc.channels == (Channel("some-service", 0xFFFFFFFF, 77),), rproc.channels
        assert other.channels == ()


def wrong_firmware() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        for name in ("", "/lib/firmware/sim.elf", "a\nb", "a\0b", "x" * 5000):
            with raises(ValueError, "/lib/firmware"):
                rproc.firmware = name
        assert rproc.firmware == "sim.elf"
        for name, error, text in (
            ("absent.elf", FileNotFoundError, "/lib/firmware"),
            ("text.elf", FirmwareError, "kernel log"),
            ("no-table.elf", FirmwareError, "kernel log"),
            ("carveout.elf", ResourceError, "kernel log"),
        ):
            rproc.firmware = name
            with raises(error, text):
                rproc.boot()
            assert rproc.state == "offline"
        rproc.firmware = "sim.elf"
        rproc.boot()
        rproc.shutdown()


def driver_errors() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        inject(start_error=-5)
        with raises(OSError, "Input/output error", "kernel log"):
            rproc.boot()
        inject(start_error=-16)
        with raises(StateError, "offline", "cannot start now"):
            rproc.boot()
        inject(start_error=-12)
        with raises(ResourceError):
            rproc.boot()
        assert rproc.state == "offline"
        inject(start_error=0, stop_error=-16)
        rproc.boot()
        with raises(StateError, "running", "cannot stop now"):
            rproc.shutdown()
        assert rproc.state == "running"
        inject(stop_error=0)
        rproc.shutdown()
        assert rproc.state == "offline"


def cannot_be_stopped() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        rproc.boot()
        with raises(StateError, "running", "driver cannot stop it"):
            rproc.shutdown()
        assert rproc.state == "running" and rproc.power == 1
        with raises(StateError, "driver cannot stop it"):
            rproc.close()
        assert rproc.state == "deleted"


def crash_and_recovery() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        with raises(ValueError, "once"):
            rproc.recovery = "once"  # type: ignore[assignment]
        rproc.recovery = "disabled"
        rproc.boot()
        with raises(ValueError, "boredom"):
            rproc.crashed("boredom")  # type: ignore[arg-type]
        rproc.poll()
        began = time.time()
        rproc.crashed("watchdog", "it slept")
        assert rproc.poll(WAIT) and rproc.state == "crashed"
        crash = rproc.crash
        assert crash is not None and crash[:2] == ("watchdog", "it slept") and abs(crash.time - began) < WAIT
        with raises(StateError, "crashed"):
            rproc.firmware = "sim.elf"
        with raises(StateError, "crashed"):
            rproc.detach()
        with raises(StateError, "crashed"):
            rproc.coredump_mode = "enabled"
        assert rproc.crash_count == 1
        rproc.recover()
        assert rproc.state == "running" and rproc.crash is None
        rproc.crashed("fault")
        until(rproc, "crashed")
        inject(start_error=-5)
        with raises(StateError, "did not recover", "offline"):
            rproc.recover()
        inject(start_error=0)
        rproc.recovery = "enabled"
        assert rproc.recovery == "enabled"
        assert rproc.crash_count == 2


def crashes_that_nobody_sees() -> None:
    """The kernel recovers faster than anybody looks: its log has told of each."""
    with Remoteproc("sim0", platform="linux") as rproc, LinuxRemoteproc("sim1") as other:
        assert rproc.crash_count == 0
        for count, kind in enumerate(("fault", "watchdog", "fatal error"), 1):
            crashed(number=0, kind=count - 1)
            deadline = time.monotonic() + WAIT
            while rproc.crash_count < count:
                assert time.monotonic() < deadline
                rproc.poll(0.2)
            until(rproc, "running")
            last = rproc.last_crash
            assert rproc.crash is None and last is not None and last.kind == kind
        assert other.crash_count == 0 and not other.poll()
    with LinuxRemoteproc("sim0") as rproc:
        assert rproc.crash_count == 0 and rproc.last_crash is None


def crashed(number: int, kind: int) -> None:
    """The core itself reports it."""
    core = os.open(f"/dev/rproc_sim{number}", os.O_RDWR | os.O_CLOEXEC)
    os.write(core, (0xFFFFFF00 + kind).to_bytes(4, "little"))
    os.close(core)


def a_crash_without_a_log() -> None:
    os.mkdir("/dev/away")
    os.rename("/dev/kmsg", "/dev/away/kmsg")
    try:
        with Remoteproc("sim0", platform="linux", recovery="disabled") as rproc:
            for count in (1, 2):
                crashed(number=0, kind=1)
                until(rproc, "crashed")
                assert rproc.crash is not None and rproc.crash.kind == "unknown" and rproc.crash_count == count
                rproc.recover()
    finally:
        os.rename("/dev/away/kmsg", "/dev/kmsg")


def stop_a_crashed_one() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        rproc.recovery = "disabled"
        rproc.boot()
        rproc.crashed()
        until(rproc, "crashed")
        rproc.crashed("watchdog")  # the first one counts
        rproc.shutdown()
        assert rproc.state == "offline"


def core_dumps(folder: str) -> None:
    file = Path(folder, "core")
    with LinuxRemoteproc("sim0") as rproc, LinuxRemoteproc("sim1") as other:
        assert rproc.coredump_mode == "disabled"
        with raises(StateError, "coredump_mode"):
            rproc.coredump(file)
        with raises(ValueError, "'default'"):
            rproc.coredump_mode = "default"  # type: ignore[assignment]
        for remote in (rproc, other):
            remote.coredump_mode = "enabled"
            remote.boot()
        with raises(Timeout, "sim0"):
            rproc.coredump(file, timeout=0.05)
        assert not file.exists()
        for _ in range(2):
            rproc.crashed("fault")
            with raises(FileNotFoundError):
                rproc.coredump(Path(folder, "no", "such", "directory"))
            rproc.coredump(file)  # nothing was lost
            core = file.read_bytes()
            assert core[:4] == b"\x7fELF" and core[16] == 4 and b"the code" in core  # ET_CORE
            assert file.stat().st_mode & 0o777 == 0o600 and os.listdir(folder) == ["core"]
            assert Core.read(file).memory(0x1000_0000, 8) == b"the code"
            until(rproc, "running")
        with raises(Timeout):
            other.coredump(file, timeout=0.05)  # was not its
        other.crashed()
        with raises(ValueError, "format"):
            other.coredump(file, "hex")  # type: ignore[arg-type]
        other.coredump(file, "raw")
        assert file.read_bytes()[:8] == b"the code" and file.stat().st_size == 0x100
        rproc.shutdown()
        other.shutdown()


def inline_core_dump(folder: str) -> None:
    with LinuxRemoteproc("sim0") as rproc:
        rproc.coredump_mode = "inline"
        rproc.boot()
        rproc.crashed("fault")
        until(rproc, "offline")  # that is what the kernel says while the dump waits
        rproc.coredump(Path(folder, "core"))
        until(rproc, "running")
        rproc.shutdown()
    assert b"the code" in Path(folder, "core").read_bytes()


def inline_core_dumps_by_themselves(folder: str) -> None:
    with Remoteproc("sim0", platform="linux", coredump="inline", coredump_dir=folder) as rproc:
        for count in (1, 2):
            rproc.crashed("fault")
            while rproc.crash_count < count or not os.listdir(folder):
                assert rproc.poll(WAIT)
            until(rproc, "running")
            found = sorted(os.listdir(folder))
            assert len(found) == count and found[-1].startswith("sim0-") and found[-1].endswith(f"-{count}.core")
            assert Core.read(Path(folder, found[-1])).memory(0x1000_0000, 8) == b"the code"
        os.rename(folder, f"{folder}.away")
        rproc.crashed("fault")
        until(rproc, "offline")
        with raises(FileNotFoundError):
            rproc.open("anything", timeout=WAIT)
        rproc.coredump(f"{folder}.away/by-hand")
        until(rproc, "running")


def attach_and_detach() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        assert rproc.state == "detached"
        with raises(StateError, "detached"):
            rproc.firmware = "sim.elf"
        with raises(StateError, "detached", "nothing to detach"):
            rproc.detach()
        with raises(StateError, "detached", "cannot crash"):
            rproc.crashed()
        inject(attach_error=-22)
        with raises(ResourceError, "kernel log"):
            rproc.attach()
        inject(attach_error=0)
        for _ in range(2):
            rproc.attach()
            assert (rproc.state, rproc.firmware) == ("attached", "unknown")
            rproc.attach()
            rproc.detach()
            assert rproc.state == "attached"  # there was a second user
            rproc.detach()
            assert rproc.state == "detached"
        inject(detach_error=-5)
        rproc.attach()
        with raises(OSError, "detach"):
            rproc.detach()
        assert rproc.power == 1
        inject(detach_error=0)
        rproc.detach()
        with Remoteproc("sim0", platform="linux") as other:
            assert (rproc.state, other.power) == ("attached", 1)
        assert rproc.state == "detached"
        with raises(StateError, "anew"):
            rproc.attach(resume=True)
        with Remoteproc("sim0", platform="linux", at_exit="detach", guardian=True):
            assert rproc.state == "attached"
        assert rproc.state == "detached"
        with raises(StateError, "a guardian would detach"):
            Remoteproc("sim0", platform="linux", at_exit="stop", guardian=True)
        with Remoteproc("sim0", platform="linux", at_exit="stop"):
            assert rproc.state == "attached"
        assert rproc.state == "offline"


def cannot_be_detached() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        rproc.attach()
        with raises(StateError, "driver cannot detach it"):
            rproc.detach()
        with raises(StateError, "driver cannot detach it"):
            rproc.close()
    with LinuxRemoteproc("sim0") as rproc:
        assert rproc.state == "attached"


NOT_CLOSED = """
from rpmsgx import Remoteproc
rproc = Remoteproc("sim0", platform="linux")
assert rproc.state == "running"
"""


def at_exit() -> None:
    with LinuxRemoteproc("sim0") as watcher:
        with raises(StateError, "could not detach from it at exit"):
            Remoteproc("sim0", platform="linux", at_exit="detach")
        with raises(ValueError, "'leave'"):
            LinuxRemoteproc("sim0", at_exit="leave")  # type: ignore[arg-type]
        for guardian in (False, True):
            with Remoteproc("sim0", platform="linux", guardian=guardian) as rproc:
                grandchild = child(signal.pause)  # must not keep the remote up, nor stop it
                assert watcher.state == "running"
                rproc.boot()
            assert watcher.state == "offline"
            os.kill(grandchild, signal.SIGKILL)
            os.waitpid(grandchild, 0)
        watcher.boot()
        with LinuxRemoteproc("sim0", guardian=True) as rproc:
            pass  # it held nothing
        with LinuxRemoteproc("sim0", guardian=True) as rproc:
            rproc.boot()
            rproc.shutdown()
        assert watcher.state == "running"
        watcher.shutdown()
        subprocess.run([sys.executable, "-c", NOT_CLOSED], check=True)
        assert watcher.state == "offline"


def at_exit_after_kill(attach: bool) -> None:
    ready, tell = os.pipe()

    def victim() -> None:
        rproc = Remoteproc("sim0", platform="linux", guardian=True)
        ended_well(child(lambda: raises_forked(rproc)))
        os.write(tell, b"1")
        signal.pause()

    def raises_forked(rproc: Remoteproc) -> None:
        for work in (rproc.boot, rproc.shutdown, rproc.poll):
            with raises(StateError, "before a fork"):
                work()
        rproc.close()

    with LinuxRemoteproc("sim0") as watcher:
        pid = child(victim)
        assert select.select([ready], [], [], WAIT)[0]
        assert watcher.state == "attached" if attach else "running"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        until(watcher, "detached" if attach else "offline")


def removed() -> None:
    """Waits for the shell to remove the module, and to load it anew."""
    with LinuxRemoteproc("sim0") as rproc:
        rproc.boot()
        print("booted", flush=True)
        until(rproc, "deleted")
        deadline = time.monotonic() + WAIT
        while not os.path.exists("/sys/class/remoteproc/remoteproc0"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for work in (rproc.boot, rproc.shutdown, rproc.detach, rproc.recover, rproc.trace, rproc.resource_table):
            with raises(StateError):
                work()
        with raises(StateError, "deleted"):
            rproc.open("anything", timeout=1)
        with raises(StateError, "sim0 is gone"):
            rproc.firmware = "sim.elf"
        assert rproc.state == "deleted" and rproc.channels == ()


def not_root() -> None:
    for number, mode in ((0, 0o600), (1, 0o666)):
        os.chmod(f"/dev/remoteproc{number}", mode)
    os.setuid(NOBODY)
    with LinuxRemoteproc("sim0") as rproc:
        assert rproc.state == "offline"
        for denied in (rproc.boot, rproc.shutdown, rproc.recover, rproc.resource_table):
            with raises(PermissionError, "run as root", "udev"):
                denied()
        with raises(PermissionError, "firmware"):
            rproc.firmware = "sim.elf"
    with raises(PermissionError, "/dev/remoteproc0"):
        LinuxRemoteproc("sim0", guardian=True)
    with LinuxRemoteproc("sim1", guardian=True) as rproc:  # as a udev rule would allow it
        rproc.boot()
        assert rproc.state == "running"
    with LinuxRemoteproc("sim1") as rproc:
        assert rproc.state == "offline"


def without_options() -> None:
    with raises(StateError, "CONFIG_REMOTEPROC_CDEV"):
        LinuxRemoteproc("sim0", dev="/nowhere", guardian=True)
    with LinuxRemoteproc("sim0", debugfs="/nowhere") as rproc:
        rproc.boot()
        for missing in (rproc.trace, rproc.resource_table, rproc.crashed):
            with raises(StateError, "CONFIG_DEBUG_FS", "mount -t debugfs none /nowhere"):
                missing()
        rproc.shutdown()
    with raises(FileNotFoundError, "CONFIG_REMOTEPROC"):
        LinuxRemoteproc("sim0", sysfs="/nowhere")


def waiting_in_an_event_loop() -> None:
    async def crashes(rproc: LinuxRemoteproc) -> None:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(rproc.fileno(), lambda: changed.set() if rproc.poll() else None)
        rproc.crashed()
        await asyncio.wait_for(changed.wait(), WAIT)
        loop.remove_reader(rproc.fileno())

    with LinuxRemoteproc("sim0") as rproc:
        rproc.recovery = "disabled"
        rproc.boot()
        rproc.poll()
        asyncio.run(crashes(rproc))
        assert rproc.state == "crashed"
        rproc.shutdown()
    assert issubclass(StateError, Error)


def threads() -> None:
    """Boots and stops of several threads are all counted; one that polls sees the end."""
    with LinuxRemoteproc("sim0") as rproc:
        rproc.boot()

        def work() -> None:
            for _ in range(20):
                rproc.boot()
                rproc.poll()
                assert rproc.state == "running"
                rproc.shutdown()

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert (rproc.state, rproc.power) == ("running", 1)
