"""Remote cores that the Linux kernel runs, under the API of `Remoteproc`.

The kernel owns such a remote. It loads firmware, gives memory, recovers, keeps core dumps; whoever may write to sysfs
can start and stop it at any time. So its state is not remembered here but asked for. What is remembered is what this
object has asked the kernel for, so that it can be given back.

Formats: include/uapi/linux/remoteproc_cdev.h; the log messages of drivers/remoteproc/remoteproc_core.c, which alone
tell of a crash that the kernel has recovered from.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Never

from rpmsgx.errors import Closed, FirmwareError, ResourceError, StateError, Timeout
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.notify.watch import Watch
from rpmsgx.remoteproc.kmsg import KernelLog
from rpmsgx.remoteproc.lifecycle import Event, State
from rpmsgx.remoteproc.platform import Platform
from rpmsgx.remoteproc.remoteproc import AtExit, Coredump, Remoteproc, _board, _one_of, _platform, _remoteprocs
from rpmsgx.remoteproc.sysfs import ATTRIBUTE, Channel, Files, StrPath, denied
from rpmsgx.remoteproc.uptime import Crash

if TYPE_CHECKING:
    from rpmsgx.remoteproc.board import Board
    from rpmsgx.remoteproc.platform import Image
    from rpmsgx.remoteproc.presence import Presence
    from rpmsgx.remoteproc.remoteproc import Recovery
    from rpmsgx.remoteproc.resources import Resources
    from rpmsgx.remoteproc.vdev import RpmsgVdev, Subdevice

__all__ = ["AtExit", "Channel", "LinuxPlatform", "LinuxRemoteproc"]

log = logging.getLogger("rpmsgx.remoteproc")

SET_SHUTDOWN_ON_RELEASE = 0x4004_B701  # _IOW(0xB7, 1, __s32)
CRASH_TYPES = {"fault": 0, "watchdog": 1, "fatal error": 2}  # enum rproc_crash_type
KINDS = {"mmufault": "fault"}  # what the kernel calls otherwise
REPORTED = re.compile(r"crash detected in .*: type (.*)")
HANDLED = re.compile(r"handling crash #(\d+) in ")
STATES = {state.value: state for state in State}
UP = ("running", "attached", "crashed")
NAME = ATTRIBUTE - 2  # bytes of a firmware's name: shown with a line feed, it must be less than a page
POLL = 0.1  # seconds between two looks at the state
DUMP_POLL = 0.01  # seconds between two looks for a core dump
SEE_LOG = "the kernel log says why"


class LinuxPlatform(Platform):
    """The kernel, which runs its remotes by itself: all that there is to know is where its files are."""

    name = "linux"

    def __init__(
        self, *, sysfs: StrPath = "/sys", dev: StrPath = "/dev", debugfs: StrPath = "/sys/kernel/debug"
    ) -> None:
        self.sysfs, self.dev, self.debugfs = os.fspath(sysfs), os.fspath(dev), os.fspath(debugfs)
        self.doorbell = Doorbell()

    def ships(self, firmware: str) -> bool:
        return False


class LinuxRemoteproc(Remoteproc):
    """The remote that its driver calls `name`; where several have that name, the name of the device says which.

    `Remoteproc(name, platform="linux")` makes one. The number in "remoteproc0" depends on the order of probing and is
    no name. Options are those of `LinuxPlatform`. What differs from other remotes:

    `firmware` is a name below the kernel's directories; None leaves the one that is set, as None does for `recovery`
    and `coredump`. With `coredump` "inline" `poll` moves each dump to `coredump_dir`, for which the kernel waits.
    `recovery` cannot be "once", and the kernel takes no `resources`. `auto_boot` is False by default where neither
    `platform` nor `board` is given: `LinuxRemoteproc(name)` is for a look.

    Others may boot and stop the remote as well, and the kernel counts them all. `power` is what this object holds, and
    what it gives back at its end, so a remote that others hold stays up. The kernel can detach only from a remote that
    it attached to, so `at_exit` "detach" refuses to boot one. `guardian` has the kernel give one boot back where this
    process is killed: it stops what was booted, and detaches from what was attached to. All commands go over
    /dev/remoteprocN then, which a udev rule lets others than root use. There is one guardian per remote.

    What the kernel refuses is a FileNotFoundError where it finds no firmware, a FirmwareError where it does not accept
    that, a ResourceError where it has not the memory or, at an attach, does not accept the resource table, a
    StateError, a PermissionError, else an OSError with the error of the driver. `shutdown` and `detach` by one who
    holds nothing take from the others. `attach` cannot resume, `detach` takes the time that the driver needs.

    Thread-safe. A boot, a stop, a recovery last as long as the kernel needs; they cannot be given up. With `coredump`
    "inline", `recover` waits until another thread or process has taken the dump with `coredump()`.

    Raises FileNotFoundError if there is no such remote, telling which there are, ValueError if there are several,
    StateError, PermissionError, and what setting `firmware` and booting raise.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        platform: str | Platform | None = None,
        firmware: str | None = None,
        board: StrPath | Board | None = None,
        auto_boot: bool | None = None,
        resources: Resources | None = None,
        presence: Presence | str | None = None,
        recovery: Recovery | None = None,
        coredump: Coredump | None = None,
        coredump_dir: StrPath | None = None,
        at_exit: AtExit | None = None,
        guardian: bool = False,
        spin: float | None = None,
        **options: Any,
    ) -> None:
        self._lock = threading.RLock()
        self._closed = self._forked = False
        given = _board(board)

        def setting(value: Any, key: str, default: Any = None) -> Any:
            return value if value is not None else getattr(given, key, default)

        name = setting(name, "name")
        if name is None:
            raise ValueError("platform 'linux' needs a name: what the driver calls the remote")
        if resources is not None or getattr(given, "claims", None) or getattr(given, "memory", None):
            raise ResourceError(f"{name}: the kernel sees to its remotes' memory, and takes no resources")
        self.at_exit = setting(at_exit, "at_exit")
        if self.at_exit is not None:
            _one_of("at_exit", self.at_exit, AtExit)
        self.spin = setting(spin, "spin", 0.0)
        if isinstance(platform, Platform):
            self._platform = _platform(platform, None, options)
        else:
            self._platform = LinuxPlatform(**{**getattr(given, "options", {}), **options})
        assert isinstance(self._platform, LinuxPlatform)
        self._files = Files(name, sysfs=self._platform.sysfs, debugfs=self._platform.debugfs)
        self.name, self._path = self._files.name, self._files.path
        self._state = State.OFFLINE
        self._power = self._crash_count = 0
        self._first_crash: int | None = None  # the kernel's count before it
        self._last_crash = None
        self._reported: str | None = None  # the kind of crash that was logged last
        self._cause: str | None = None  # of one that was reported by hand
        self._recovering = False
        self._error = None
        self._bus: Any = None
        self._coredump_dir: str | None = None  # type: ignore[assignment]
        self._cdev = -1
        # What the base's waiting works with.
        self._arrival = self._presence = self._hold = self._saved = self._guardian = self._recover_at = None
        self._present = True
        self._directories = ()
        self._watch = Watch()
        self._watch.alarm(POLL)
        self._watched = False
        self._log = self._open_log()
        _remoteprocs.add(self)
        try:
            self._state = self._now()
            self._configure(setting(firmware, "firmware"), setting(recovery, "recovery"), setting(coredump, "coredump"))
            if setting(coredump, "coredump") == "inline":
                self._coredump_dir = os.fspath(setting(coredump_dir, "coredump_dir") or ".")
            if guardian:
                self._cdev = self._open_cdev()
            self._watch_presence(setting(presence, "presence"))
            if setting(auto_boot, "auto_boot", platform is not None):
                self._auto_boot()
        except BaseException:
            self.close()
            raise

    def _configure(self, firmware: str | None, recovery: str | None, coredump: str | None) -> None:
        """What the kernel has already is not set again: not everybody may, and not in every state."""
        self._firmware = self.firmware
        if firmware not in (None, self._firmware):
            self.firmware = firmware
        if recovery not in (None, self.recovery):
            self.recovery = recovery  # type: ignore[assignment]
        if coredump not in (None, self.coredump_mode):
            self.coredump_mode = coredump  # type: ignore[assignment]

    # -- its life ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "offline", "running", "attached", "crashed", "detached"; "deleted": its driver went, or this is closed."""
        try:
            return self._files.read("state")
        except StateError:
            return "deleted"

    def _now(self) -> State:
        return STATES.get(self.state, State.OFFLINE)  # "suspended" and "invalid" are never set

    @property
    def power(self) -> int:
        """How many boots and attaches of this object's the kernel counts. What others hold, it does not tell."""
        return self._power

    @property
    def crash(self) -> Crash | None:
        """Why it is crashed; None while it is not. The kind is "unknown" where the kernel's log cannot be read."""
        with self._lock:
            self._look()
            if self._state is not State.CRASHED:
                return None
            return self._last_crash or Crash("unknown", SEE_LOG, time.time())  # it happened before this was made

    @property
    def crash_count(self) -> int:
        """Crashes since this object was made; without the kernel's log, those that a call has seen."""
        with self._lock:
            self._look()
            return self._crash_count

    @property
    def firmware(self) -> str:
        """The firmware of the next boot: a name below the kernel's directories. "unknown" while attached.

        Setting raises StateError unless the remote is offline, ValueError for a name that the kernel cannot take.
        """
        return self._files.read("firmware")

    @firmware.setter
    def firmware(self, firmware: str | None) -> None:
        with self._lock:
            self._check_usable()
            name = os.fsencode(firmware or "")
            if firmware is None or not 0 < len(name) <= NAME or name.startswith(b"/") or {*b"\n\0"} & {*name}:
                raise ValueError(
                    f"firmware {firmware and firmware[:80]!r}: the kernel takes a relative name of 1 to {NAME} bytes "
                    f"without a line feed; {self._files.firmware_path}"
                )
            self._check(self._files.write("firmware", firmware), f"change its firmware to {firmware!r}")
            self._firmware = firmware
            self._error = None
            if self._arrival is not None:
                self._arrival.retarget(firmware)

    @property
    def recovery(self) -> str:
        """Does the kernel recover a crashed remote by itself? "enabled" (which also recovers it now) or "disabled"."""
        return self._files.read("recovery")

    @recovery.setter
    def recovery(self, mode: Literal["enabled", "disabled"]) -> None:
        self._set("recovery", mode, ("enabled", "disabled"))

    @property
    def coredump_mode(self) -> str:
        """What a crash leaves: "disabled" nothing, "enabled" a copy of the remote's memory, "inline" that memory.

        With "inline" its recovery waits until the dump is taken. To set this raises StateError while it is crashed.
        """
        return self._files.read("coredump")

    @coredump_mode.setter
    def coredump_mode(self, mode: Coredump) -> None:
        self._set("coredump", mode, ("disabled", "enabled", "inline"))

    @property
    def image(self) -> Image:
        """Raises StateError: the kernel does not tell what was in the file that it loaded."""
        raise StateError(f"{self.name} is {self.state}: the kernel does not tell which image it loaded, see `firmware`")

    @property
    def waiting_for(self) -> str | None:
        """What a remote that is wanted waits for: its firmware, its service, its recovery; else None."""
        return "its recovery" if self._recovering else super().waiting_for

    def crashed(self, kind: str = "fatal error", cause: str = "reported by hand") -> None:
        """Report by hand that the remote has crashed. The kernel acts on it in its own time: `poll` for the state.

        Raises ValueError for a `kind` other than "fault", "watchdog" and "fatal error", StateError if the remote is not
        up (for a detached one the kernel would take the report, and boot it), or without debugfs.
        """
        if kind not in CRASH_TYPES:
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(map(repr, CRASH_TYPES))}")
        with self._lock:
            self._check_usable()
            state = self.state
            if state not in UP:
                raise StateError(f"{self.name} is {state}: it cannot crash")
            log.warning("%s: %s reported by hand: %s", self.name, kind, cause)
            self._cause = cause
            self._files.debug_write("crash", b"%d" % CRASH_TYPES[kind])

    def add_subdevice(self, subdevice: Subdevice) -> None:
        """Raises StateError: nothing of a program's can follow what the kernel does."""
        raise StateError(f"{self.name}: the kernel's remotes take no subdevices")

    # -- what it says --------------------------------------------------------------------------------------------

    @property
    def resources(self) -> Never:  # type: ignore[override]
        """Raises StateError: the kernel gives its remotes their memory. See `resource_table`."""
        raise StateError(f"{self.name}: the kernel sees to its remotes' memory, and takes no resources")

    def resource_table(self) -> str:
        """The resource table as the kernel explains it to people. Raises StateError without debugfs."""
        return self._files.debug_text("resource_table")

    def trace(self) -> str:
        """What the remote has written to its trace buffers. Raises StateError if it has none, or without debugfs."""
        numbers = [int(file[5:]) for file in self._files.debug_list() if re.fullmatch(r"trace\d+", file)]
        if not numbers:
            raise StateError(f"{self.name} is {self.state}: it has no trace")
        return "".join(self._files.debug_text(f"trace{number}") for number in sorted(numbers))

    @property
    def channels(self) -> tuple[Channel, ...]:  # type: ignore[override]
        """The rpmsg channels that lead to the remote, by name; () while it is down. Takes no hold of any of them."""
        return self._files.channels

    @property
    def vdevs(self) -> tuple[RpmsgVdev, ...]:
        """(): they are the kernel's."""
        return ()

    @property
    def lost(self) -> int:
        """0: the kernel does not count them."""
        return 0

    @property
    def bus(self) -> Any:
        """The kernel's rpmsg services that lead to this remote, a `rpmsgx.char.Bus`; it stays over boots and stops.

        Raises StateError while the remote is not up, and the error of a boot that failed by itself.
        """
        with self._lock:
            self._look()
            error, self._error = self._error, None
            if error is not None:
                raise error
            if self._state not in (State.RUNNING, State.ATTACHED):
                raise StateError(f"{self.name} is {self._state}: it has no bus")
            if self._bus is None or self._bus._closed:
                from rpmsgx.rpmsg.open import open

                self._bus = open(f"char:{self._files.node}")
                self._watch_buses()
            return self._bus

    def _buses(self) -> list[Any]:
        return [] if self._bus is None or self._bus._closed else [self._bus]

    def _kick(self, bus: Any) -> None:
        """The kernel has done so."""

    def coredump(self, path: StrPath, format: Literal["elf", "raw"] = "elf", *, timeout: float = 5.0) -> None:
        """Wait for a core dump, `timeout` seconds at most, and move it to file `path`, with mode 0600.

        The kernel keeps one dump per remote for five minutes; until it is taken, later ones are lost. It is freed once
        it is in the file, which appears complete. Raises Timeout if there is none, StateError if there can be none,
        PermissionError, OSError if the file cannot be written.
        """
        _one_of("format", format, Literal["elf", "raw"])
        deadline = time.monotonic() + timeout
        while (dump := self._files.dump()) is None:
            if self.coredump_mode == "disabled":
                raise StateError(f"{self.name} leaves no core dump: set coredump_mode to 'enabled' before it crashes")
            self._files.check_dumps()
            if time.monotonic() >= deadline:
                raise Timeout(f"no core dump of {self.name} within {timeout} s")
            time.sleep(DUMP_POLL)
        self._files.move_dump(os.fspath(path))
        while self._files.dump() == dump and time.monotonic() < deadline:
            time.sleep(DUMP_POLL)
        if format == "raw":
            from rpmsgx.remoteproc.coredump import Core

            Core.read(path).write(path, "raw")

    # -- what has happened ---------------------------------------------------------------------------------------

    def _act(self) -> int:
        self._watch.alarm(POLL)  # the kernel tells nobody of a new state but in its log
        return super()._act()

    def _look(self) -> None:
        """Bring the state up to date, and take a core dump that the kernel waits for."""
        if self._closed:
            return
        for text in self._log.read() if self._log is not None else ():
            if (found := REPORTED.search(text)) is not None:
                self._reported = found[1]
            elif (found := HANDLED.search(text)) is not None:
                self._count_crash(int(found[1]))
        state = self._now()
        if self._log is None and state is State.CRASHED and self._state is not State.CRASHED:
            self._count_crash((self._first_crash or 0) + self._crash_count + 1)
        if self._recovering:
            self._recovering = state in (State.CRASHED, State.OFFLINE) and self.recovery == "enabled"
        self._state = state
        if self._coredump_dir is not None and self._files.dump() is not None:
            self._take_dump()

    def _count_crash(self, number: int) -> None:
        """`number`: of all that the kernel has counted."""
        if self._first_crash is None:
            self._first_crash = number - 1
        self._crash_count = number - self._first_crash
        kind = self._reported or "unknown"
        cause, self._cause = self._cause or SEE_LOG, None
        self._last_crash = Crash(KINDS.get(kind, kind), cause, time.time())
        self._recovering = True
        log.error("%s crashed (%s): %s", self.name, self._last_crash.kind, cause)

    def _take_dump(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{self.name.replace(os.sep, '_')}-{stamp}-{self._crash_count}.core"
        path = os.path.join(self._coredump_dir or "", name)
        try:
            self.coredump(path)
        except Exception as error:  # the next one would fail as well
            self._coredump_dir = None
            self._error = error
            log.error("%s: %s", self.name, str(error))
        else:
            log.info("%s: core dumped to %s", self.name, path)

    def _open_log(self) -> KernelLog | None:
        number = self._files.device_number
        try:
            kernel_log = KernelLog(f"c{number}" if number else f"+remoteproc:{self._files.node}")
        except OSError as error:
            log.info("%s: crashes that the kernel recovers from may go unseen: %s", self.name, error)
            return None
        self._watch.add(kernel_log.fileno())
        return kernel_log

    def _save_channels(self) -> None:
        """The kernel knows them."""

    def _poll_buses(self) -> int:
        done = 0
        for bus in self._buses():
            with contextlib.suppress(Closed):
                done += bus.poll(0)
        return done

    # -- what is asked of the kernel -----------------------------------------------------------------------------

    def _do(self, event: Event, *, resume: bool = False, timeout: float = 1.0) -> None:
        """The kernel decides, and counts; so each boot and each stop is handed on to it."""
        self._check_usable()
        match event:
            case Event.BOOT:
                self._start()
            case Event.ATTACH:
                if self._state not in (State.DETACHED, State.ATTACHED):
                    raise StateError(
                        f"{self.name} is {self.state}: no remote runs that could be attached to; boot() starts one"
                    )
                if resume:
                    raise StateError(f"{self.name}: the kernel always sets the rings up anew: attach without resume")
                self._start()
            case Event.BOOT_LATER:
                self._power += 1
            case Event.SHUTDOWN if super().waiting_for is not None:
                self._power -= 1
                self._watch_firmware(self._power > 0 and self._arrival is not None)
            case Event.SHUTDOWN | Event.DETACH:
                self._end("stop" if event is Event.SHUTDOWN else "detach")
            case Event.FIRMWARE_FOUND | Event.SERVICE_UP:
                self._start_all()
            case Event.SERVICE_DOWN:
                held = self._power
                self._give_back(leave=False)
                self._power = held
            case Event.DELETE | Event.LEAVE:
                self._give_back(leave=event is Event.LEAVE)
        self._recovering = False
        self._state = self._now()

    def _start(self) -> None:
        state = self.state
        if self.at_exit == "detach" and state == "offline":
            raise StateError(f"{self.name} is offline: the kernel could not detach from it at exit; at_exit='stop'")
        if self.at_exit == "stop" and state == "detached" and self._cdev >= 0:
            raise StateError(f"{self.name} is detached: a guardian would detach from it; at_exit='detach'")
        if not self._power:
            self._guard(True)
        try:
            self._check_start(self._command("start"), state)
        except BaseException:
            if not self._power:
                self._guard(False)
            raise
        self._power += 1
        self._error = None
        self._watch_firmware(False)

    def _start_all(self) -> None:
        """Once for each user that has waited."""
        wanted, self._power = self._power, 0
        try:
            while self._power < wanted:
                self._start()
        except FileNotFoundError as error:  # it was seen, but not by the kernel: there is nothing to wait for
            raise FirmwareError(str(error.strerror)) from None
        finally:
            self._power = wanted

    def _check_start(self, code: int, state: str) -> None:
        if code and state == "detached":
            if code == errno.EINVAL:
                raise ResourceError(f"{self.name}: the kernel does not accept what the remote asks for; {SEE_LOG}")
        elif code == errno.ENOENT:
            self._firmware = self.firmware
            text = f"{self.name}: the kernel finds no firmware {self._firmware!r}; {self._files.firmware_path}"
            raise FileNotFoundError(code, text)
        elif code == errno.EINVAL:
            raise FirmwareError(f"{self.name}: the kernel does not accept firmware {self.firmware!r}; {SEE_LOG}")
        self._check(code, "start")

    def _end(self, command: Literal["stop", "detach"]) -> None:
        code = self._command(command)
        if code == errno.EINVAL:
            state = self.state
            could = state in UP if command == "stop" else state == "attached"
            why = f"its driver cannot {command} it" if could else f"there is nothing to {command}"
            raise StateError(f"{self.name} is {state}: {why}")
        self._check(code, command)
        self._power = max(0, self._power - 1)  # 0: it was another's
        if not self._power:
            self._guard(False)

    def _give_back(self, leave: bool) -> None:
        """All that this object holds, unless others have ended it meanwhile."""
        while self._power and (state := self.state) in UP:
            self._end("detach" if leave and state == "attached" else "stop")

    def _recover(self) -> None:
        before = self.state
        self._check(self._files.write("recovery", "recover"), "recover")
        after = self._state = self._now()  # the kernel does not tell how it went
        if before == "crashed" and after in ("crashed", "offline"):
            raise StateError(f"{self.name} did not recover and is {after}; {SEE_LOG}")

    def _set(self, attribute: str, value: str, values: tuple[str, ...]) -> None:
        if value not in values:
            raise ValueError(f"{value!r}: the kernel knows {', '.join(map(repr, values))}")
        with self._lock:
            self._check_usable()
            self._check(self._files.write(attribute, value), f"set {attribute} to {value!r}")

    def _command(self, command: str) -> int:
        """0, or the errno that the kernel has answered with."""
        if self._cdev < 0:
            return self._files.write("state", command)
        try:
            os.write(self._cdev, command.encode())
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _check(self, code: int, doing: str) -> None:
        if code == 0:
            return
        if code == errno.ENODEV:
            raise self._files.gone()
        if code == errno.EBUSY:
            raise StateError(f"{self.name} is {self.state}: it cannot {doing} now")
        if code == errno.ENOMEM:
            raise ResourceError(f"{self.name}: no memory, or not that which was asked for, to {doing}; {SEE_LOG}")
        raise OSError(code, f"{self.name} is {self.state}, could not {doing}: {os.strerror(code)}; {SEE_LOG}")

    # -- the guardian, and the end -------------------------------------------------------------------------------

    def _open_cdev(self) -> int:
        """A descriptor of the remote's character device, at whose release the kernel can give a boot back."""
        assert isinstance(self._platform, LinuxPlatform)
        path = os.path.join(self._platform.dev, self._files.node)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StateError(f"a guardian needs {path}, from a kernel with CONFIG_REMOTEPROC_CDEV") from None
        except PermissionError as error:
            raise denied(error, path) from None
        number = os.fstat(fd).st_rdev
        if self._files.device_number != f"{os.major(number)}:{os.minor(number)}":
            os.close(fd)
            raise StateError(f"{path} is not the device of {self.name}: has its driver been loaded anew?")
        return fd

    def _guard(self, on: bool) -> None:
        """The kernel keeps this with the remote, and acts on it when anybody closes the device."""
        if self._cdev >= 0:
            fcntl.ioctl(self._cdev, SET_SHUTDOWN_ON_RELEASE, struct.pack("i", on))

    def _release(self) -> None:
        with contextlib.ExitStack() as everything:
            everything.callback(super()._release)
            everything.callback(self._close_files)
            if self._bus is not None:
                self._bus.close()

    def _close_files(self) -> None:
        self._files.close()
        if self._log is not None:
            self._log.close()
        cdev, self._cdev = self._cdev, -1
        if cdev >= 0:
            os.close(cdev)

    def _forget(self) -> None:
        """A copy of the descriptor in a forked child would keep the guardian from its work."""
        if not self._closed:
            super()._forget()
            self._close_files()
