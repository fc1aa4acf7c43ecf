# SPDX-License-Identifier: BSD-3-Clause
"""What test_remoteproc_sysfs.py lets a guest do, one function each: `sim0` and `sim1` are remotes of module rproc_sim.

No pytest in here: a guest has the host's Python, and starts it in a fraction of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rpmsgx.errors import Closed, Error, FirmwareError, ResourceError, StateError, Timeout
from rpmsgx.remoteproc.linux import Channel, LinuxRemoteproc

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


def child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which says on its standard output what went wrong."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"child: {error!r}", flush=True)
        finally:
            os._exit(status)
    return pid


def ended_well(pid: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


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
        assert rproc.state == "offline" and rproc.channels == ()
        rproc.recover()  # nothing
        assert rproc.state == "offline"
    assert rproc.state == "deleted"
    with raises(Closed):
        rproc.boot()
    assert rproc.fileno() == -1 and rproc.poll() and not rproc.poll(None)
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
            ("absent.elf", FirmwareError, "/lib/firmware"),
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
        assert rproc.state == "running"


def crash_and_recovery() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        with raises(ValueError, "once"):
            rproc.recovery = "once"  # type: ignore[assignment]
        rproc.recovery = "disabled"
        rproc.boot()
        with raises(ValueError, "boredom"):
            rproc.crashed("boredom")  # type: ignore[arg-type]
        rproc.poll()
        rproc.crashed("watchdog", "it slept")
        assert rproc.poll(None) and rproc.state == "crashed"
        with raises(StateError, "crashed"):
            rproc.firmware = "sim.elf"
        with raises(StateError, "crashed"):
            rproc.detach()
        with raises(StateError, "crashed"):
            rproc.coredump_mode = "enabled"
        rproc.recover()
        assert rproc.state == "running"
        rproc.crashed("fault")
        until(rproc, "crashed")
        inject(start_error=-5)
        with raises(StateError, "did not recover", "offline"):
            rproc.recover()
        inject(start_error=0)
        rproc.recovery = "enabled"
        assert rproc.recovery == "enabled"


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
            until(rproc, "running")
        with raises(Timeout):
            other.coredump(file, timeout=0.05)  # was not its
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
        inject(detach_error=0)
        with LinuxRemoteproc("sim0", at_exit="detach"):
            pass
        assert rproc.state == "detached"
        with raises(StateError, "cannot stop it at exit, only detach"):
            LinuxRemoteproc("sim0", at_exit="stop")
        rproc.attach()
        rproc.shutdown()
        assert rproc.state == "offline"


def cannot_be_detached() -> None:
    with LinuxRemoteproc("sim0") as rproc:
        rproc.attach()
        with raises(StateError, "driver cannot detach it"):
            rproc.detach()
        assert rproc.state == "attached"


def at_exit() -> None:
    with LinuxRemoteproc("sim0") as watcher:
        with raises(StateError, "cannot detach it at exit, only stop"):
            LinuxRemoteproc("sim0", at_exit="detach")
        with raises(ValueError, "'leave'"):
            LinuxRemoteproc("sim0", at_exit="leave")  # type: ignore[arg-type]
        with LinuxRemoteproc("sim0") as rproc:
            rproc.boot()
        assert watcher.state == "running"
        watcher.shutdown()
        with LinuxRemoteproc("sim0", at_exit="stop") as rproc:
            with raises(StateError, "nothing to stop"):
                rproc.shutdown()
            rproc.boot()
            grandchild = child(signal.pause)  # must not keep the remote up, nor stop it
            assert watcher.state == "running"
        until(watcher, "offline")
        os.kill(grandchild, signal.SIGKILL)
        os.waitpid(grandchild, 0)


def at_exit_after_kill() -> None:
    ready, tell = os.pipe()

    def victim() -> None:
        rproc = LinuxRemoteproc("sim0", at_exit="stop")
        rproc.boot()
        ours = child(lambda: raises_closed(rproc))
        ended_well(ours)
        os.write(tell, b"1")
        signal.pause()

    def raises_closed(rproc: LinuxRemoteproc) -> None:
        with raises(Closed):
            rproc.boot()

    with LinuxRemoteproc("sim0") as watcher:
        pid = child(victim)
        assert select.select([ready], [], [], WAIT)[0]
        assert watcher.state == "running"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        until(watcher, "offline")


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
        with raises(StateError, "sim0 is gone"):
            rproc.firmware = "sim.elf"
        assert rproc.state == "deleted" and rproc.channels == ()


def not_root() -> None:
    with LinuxRemoteproc("sim0", at_exit="stop"):
        pass
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
        LinuxRemoteproc("sim0", at_exit="stop")
    with LinuxRemoteproc("sim1", at_exit="stop") as rproc:  # as a udev rule would allow it
        rproc.boot()
        assert rproc.state == "running"
    with LinuxRemoteproc("sim1") as rproc:
        assert rproc.state == "offline"


def without_options() -> None:
    with raises(StateError, "CONFIG_REMOTEPROC_CDEV"):
        LinuxRemoteproc("sim0", dev="/nowhere", at_exit="stop")
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
