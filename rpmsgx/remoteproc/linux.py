"""A remote core that the Linux kernel runs: its remoteproc class in sysfs, and what debugfs and /dev add to that.

The kernel owns the remote. It loads firmware, recovers, keeps core dumps; whoever may write to sysfs can start and stop
it at any time. So nothing is remembered here: every property asks the kernel.

Formats: Documentation/ABI/testing/sysfs-class-remoteproc, include/uapi/linux/remoteproc_cdev.h, and drivers/remoteproc
and drivers/base/devcoredump.c for what is written down nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

from rpmsgx.errors import Closed, FirmwareError, ResourceError, StateError, Timeout
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.timer import Timer

if TYPE_CHECKING:
    from rpmsgx.remoteproc.platform import CrashKind

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())

AtExit: TypeAlias = Literal["stop", "detach"]
StrPath: TypeAlias = str | os.PathLike[str]

SET_SHUTDOWN_ON_RELEASE = 0x4004_B701  # _IOW(0xB7, 1, __s32)
CRASH_TYPES: dict[CrashKind, int] = {"fault": 0, "watchdog": 1, "fatal error": 2}  # enum rproc_crash_type
HELPERS = ("rpmsg_ns", "rpmsg_ctrl")  # devices on the rpmsg bus that no remote announced
ATTRIBUTE = 4096  # bytes of a sysfs attribute: a page at most
CHUNK = 1 << 16
POLL_MS = 100  # between two looks at the state
DUMP_POLL = 0.01  # seconds between two looks for a core dump
SEE_LOG = "the kernel log says why"


class Channel(NamedTuple):
    """An rpmsg channel as the kernel sees it: `src` is the kernel's address, `dst` the remote's."""

    name: str
    src: int
    dst: int


# A forked child has no part in its parent's remotes: a copy of the descriptor would keep `at_exit` from working.
_remoteprocs: weakref.WeakSet[LinuxRemoteproc] = weakref.WeakSet()


def _after_fork() -> None:
    for rproc in list(_remoteprocs):
        rproc.close()


os.register_at_fork(after_in_child=_after_fork)


class LinuxRemoteproc:
    """The remote that its driver calls `name`; where several have that name, the name of the device says which.

    The number in "remoteproc0" depends on the order of probing and is no name. `firmware` is set if it is given.

    `at_exit` is what the kernel does when this is closed or its process ends, kill -9 included: "stop" for a remote
    that the kernel boots, "detach" for one that it found running. That is all that the kernel offers, other
    combinations are refused. It gives back one `boot`, so a remote that others hold up stays up. The kernel keeps this
    per remote and for good: whoever else closes /dev/remoteprocN does the same. None leaves the remote as it is. With
    at_exit all commands go over /dev/remoteprocN, and a udev rule for it lets others than root use them.

    A context manager: leaving it closes. Every call is a few system calls and safe in any thread, but for `poll` and
    `close`. A boot, a stop, a recovery last as long as the kernel needs; they cannot be given up.

    Raises FileNotFoundError if there is no such remote, telling which there are, ValueError if there are several,
    StateError if at_exit is not possible, PermissionError, and what setting `firmware` raises.
    """

    def __init__(
        self,
        name: str,
        *,
        firmware: str | None = None,
        at_exit: AtExit | None = None,
        sysfs: StrPath = "/sys",
        dev: StrPath = "/dev",
        debugfs: StrPath = "/sys/kernel/debug",
    ) -> None:
        if at_exit not in (None, "stop", "detach"):
            raise ValueError(f"at_exit={at_exit!r}: must be 'stop', 'detach' or None")
        self._sysfs = os.fspath(sysfs)
        self._path, self.name, self._dir = _find(name, self._sysfs)
        node = os.path.basename(self._path)
        self._dev = os.path.join(dev, node)
        self._debugfs = os.path.join(debugfs, "remoteproc", node)
        self._at_exit = at_exit
        self._cdev = -1
        self._timer: Timer | None = None
        _remoteprocs.add(self)
        try:
            self._seen = self.state
            if firmware is not None:
                self.firmware = firmware
            if at_exit is not None:
                self._check_at_exit(self._seen)
                self._cdev = self._hold()
        except BaseException:
            self.close()
            raise

    # -- its life ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "offline", "running", "attached", "crashed", "detached"; "deleted": its driver went, or this is closed."""
        try:
            return self._read("state")
        except StateError:
            return "deleted"

    def boot(self) -> None:
        """Start the remote, or attach to one that is detached, or count one more user of one that is up.

        Returns when the kernel has done it. Raises FirmwareError if it does not find or does not accept the firmware,
        ResourceError if it has not the memory or, at an attach, does not accept the remote's resource table,
        StateError, PermissionError, else OSError with the error of the driver.
        """
        state = self.state
        self._check_at_exit(state)
        code = self._command("start")
        if code and state == "detached":
            if code == errno.EINVAL:
                raise ResourceError(f"{self.name}: the kernel does not accept what the remote asks for; {SEE_LOG}")
        elif code == errno.ENOENT:
            raise FirmwareError(f"{self.name}: the kernel finds no firmware {self.firmware!r}; {self._where()}")
        elif code == errno.EINVAL:
            raise FirmwareError(f"{self.name}: the kernel does not accept firmware {self.firmware!r}; {SEE_LOG}")
        self._check(code, "start")

    def attach(self) -> None:
        """`boot` for a remote that somebody else has started. Raises StateError if it is not detached or attached."""
        state = self.state
        if state not in ("detached", "attached"):
            raise StateError(f"{self.name} is {state}: no remote runs that could be attached to; boot() starts one")
        self.boot()

    def shutdown(self) -> None:
        """Give back one `boot`; the last one stops the remote, also a crashed or an attached one.

        Raises StateError if it is not up or its driver cannot stop it, PermissionError, else OSError with the error of
        the driver.
        """
        self._end("stop", ("running", "attached", "crashed"))

    def detach(self) -> None:
        """Give back one `boot`; the last one lets go of an attached remote, which runs on. Raises as `shutdown`."""
        self._end("detach", ("attached",))

    def recover(self) -> None:
        """Bring a crashed remote back now; nothing for any other. Raises StateError if it does not come back.

        With `coredump_mode` "inline" it lasts until somebody has taken the dump.
        """
        before = self.state
        self._check(self._write("recovery", "recover"), "recover")
        after = self.state  # the kernel does not tell how it went
        if before == "crashed" and after in ("crashed", "offline"):
            raise StateError(f"{self.name} did not recover and is {after}; {SEE_LOG}")

    def crashed(self, kind: CrashKind = "fatal error", cause: str = "") -> None:
        """Report by hand that the remote has crashed. The kernel acts on it in its own time: `poll` for the state.

        The kernel takes the kind; the cause is logged here. Raises StateError if the remote is not up (for a detached
        one the kernel would take the report, and boot it), or without debugfs.
        """
        if kind not in CRASH_TYPES:
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(map(repr, CRASH_TYPES))}")
        state = self.state
        if state not in ("running", "attached", "crashed"):
            raise StateError(f"{self.name} is {state}: it cannot crash")
        log.warning("%s: %s reported by hand%s", self.name, kind, f": {cause}" if cause else "")
        with self._debug("crash", os.O_WRONLY) as fd:
            os.write(fd, b"%d" % CRASH_TYPES[kind])

    # -- its settings --------------------------------------------------------------------------------------------

    @property
    def firmware(self) -> str:
        """The firmware of the next boot: a name below the kernel's directories. "unknown" while attached.

        Setting raises StateError unless the remote is offline, ValueError for a name that the kernel cannot take.
        """
        return self._read("firmware")

    @firmware.setter
    def firmware(self, firmware: str) -> None:
        size = len(os.fsencode(firmware))
        if not 0 < size < ATTRIBUTE or firmware.startswith("/") or "\n" in firmware or "\0" in firmware:
            raise ValueError(
                f"firmware {firmware[:80]!r}: the kernel takes a relative name of 1 to {ATTRIBUTE - 1} bytes without "
                f"a line feed; {self._where()}"
            )
        self._check(self._write("firmware", firmware), f"change its firmware to {firmware!r}")

    @property
    def recovery(self) -> str:
        """Does the kernel recover a crashed remote by itself? "enabled" (which also recovers it now) or "disabled"."""
        return self._read("recovery")

    @recovery.setter
    def recovery(self, mode: Literal["enabled", "disabled"]) -> None:
        self._set("recovery", mode, ("enabled", "disabled"))

    @property
    def coredump_mode(self) -> str:
        """What a crash leaves: "disabled" nothing, "enabled" a copy of the remote's memory, "inline" that memory.

        With "inline" its recovery waits until the dump is taken. To set this raises StateError while it is crashed.
        """
        return self._read("coredump")

    @coredump_mode.setter
    def coredump_mode(self, mode: Literal["disabled", "enabled", "inline"]) -> None:
        self._set("coredump", mode, ("disabled", "enabled", "inline"))

    # -- what it says --------------------------------------------------------------------------------------------

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The rpmsg channels that lead to the remote, by name; () while it is down."""
        bus = os.path.join(self._sysfs, "bus", "rpmsg", "devices")
        ours = os.path.realpath(self._path) + os.sep
        found = []
        for device in (os.path.join(bus, name) for name in _list(bus)):
            if os.path.realpath(device).startswith(ours):
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    name, src, dst = (_read_file(os.path.join(device, part)) for part in ("name", "src", "dst"))
                    found.append(Channel(name, int(src, 0), int(dst, 0)))
        return tuple(sorted(channel for channel in found if channel.name not in HELPERS))

    def trace(self) -> str:
        """What the remote has written to its trace buffers. Raises StateError if it has none, or without debugfs."""
        numbers = [int(file[5:]) for file in self._debug_list() if file[:5] == "trace" and file[5:].isdecimal()]
        if not numbers:
            raise StateError(f"{self.name} is {self.state}: it has no trace")
        return "".join(self._debug_text(f"trace{number}") for number in sorted(numbers))

    def resource_table(self) -> str:
        """The resource table as the kernel explains it to people. Raises StateError without debugfs."""
        return self._debug_text("resource_table")

    def coredump(self, path: StrPath, timeout: float = 5.0) -> None:
        """Wait for a core dump, `timeout` seconds at most, and move it to file `path`, with mode 0600.

        The kernel keeps one dump per remote for five minutes; until it is taken, later ones are lost. It is freed once
        it is in the file, which appears complete. Raises Timeout if there is none, StateError if there can be none,
        PermissionError, OSError if the file cannot be written.
        """
        deadline = time.monotonic() + timeout
        while (dump := self._dump()) is None:
            self._check_coredump()
            if time.monotonic() >= deadline:
                raise Timeout(f"no core dump of {self.name} within {timeout} s")
            time.sleep(DUMP_POLL)
        source = self._open("devcoredump/data", os.O_RDWR)
        try:
            _save(source, os.fspath(path))
            os.write(source, b"1")  # anything frees it, after a while
        finally:
            os.close(source)
        while self._dump() == dump and time.monotonic() < deadline:
            time.sleep(DUMP_POLL)

    # -- waiting -------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when it is time to `poll`, ten times a second; -1 when closed.

        The kernel tells nobody of a new state: there is neither a sysfs_notify() nor an uevent for it.
        """
        if self._timer is None and self._dir >= 0:
            self._timer = Timer()
            self._timer.set(POLL_MS)
        return -1 if self._timer is None else self._timer.fileno()

    def poll(self, timeout: float | None = 0) -> bool:
        """Is the state another one than at the last call? Waits up to `timeout` seconds (None: for ever) for that.

        A state that comes and goes between two looks is not seen. One that is deleted has no other any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._timer is not None:
                self._timer.set(POLL_MS)
            state = self.state
            if state != self._seen:
                self._seen = state
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if state == "deleted" or (left is not None and left <= 0):
                return False
            readable(self.fileno(), left)

    def close(self) -> None:
        """Let go of the remote: the kernel does what `at_exit` says, else leaves it as it is. Idempotent."""
        _remoteprocs.discard(self)
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()
        for fd in (self._cdev, self._dir):
            if fd >= 0:
                os.close(fd)
        self._cdev = self._dir = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- at_exit -------------------------------------------------------------------------------------------------

    def _check_at_exit(self, state: str) -> None:
        """The kernel stops what it booted, and detaches from what it attached to."""
        found_running = state in ("detached", "attached")
        if self._at_exit is not None and state != "crashed" and (self._at_exit == "detach") != found_running:
            other = "detach" if found_running else "stop"
            raise StateError(f"{self.name} is {state}: the kernel cannot {self._at_exit} it at exit, only {other} it")

    def _hold(self) -> int:
        """A descriptor of the remote's character device, told to apply the policy at its release."""
        device = self._read("dev") if os.access("dev", os.F_OK, dir_fd=self._dir) else ""
        try:
            fd = os.open(self._dev, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StateError(f"at_exit needs {self._dev}, from a kernel with CONFIG_REMOTEPROC_CDEV") from None
        except PermissionError as error:
            raise _denied(error, self._dev) from None
        try:
            number = os.fstat(fd).st_rdev
            if device != f"{os.major(number)}:{os.minor(number)}":
                raise StateError(f"{self._dev} is not the device of {self.name}: has its driver been loaded anew?")
            fcntl.ioctl(fd, SET_SHUTDOWN_ON_RELEASE, struct.pack("i", 1))
        except BaseException:
            os.close(fd)
            raise
        return fd

    # -- the kernel's files --------------------------------------------------------------------------------------

    def _open(self, attribute: str, flags: int) -> int:
        """An attribute of this very device: the directory of a device that went is empty for ever."""
        if self._dir < 0:
            raise Closed(f"{self.name} is closed")
        path = f"{self._path}/{attribute}"
        try:
            return os.open(attribute, flags | os.O_CLOEXEC, dir_fd=self._dir)
        except PermissionError as error:
            raise _denied(error, path) from None
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            if not os.access("state", os.F_OK, dir_fd=self._dir):
                raise self._gone() from None
            raise StateError(f"{self.name} has no {path}") from None

    def _read(self, attribute: str) -> str:
        fd = self._open(attribute, os.O_RDONLY)
        try:
            return os.read(fd, ATTRIBUTE).decode(errors="replace").removesuffix("\n")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise self._gone() from None
            raise
        finally:
            os.close(fd)

    def _write(self, attribute: str, text: str) -> int:
        """0, or the errno that the kernel has answered with."""
        fd = self._open(attribute, os.O_WRONLY)
        try:
            os.write(fd, os.fsencode(text))
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            os.close(fd)
        return 0

    def _set(self, attribute: str, value: str, values: tuple[str, ...]) -> None:
        if value not in values:
            raise ValueError(f"{value!r}: the kernel knows {', '.join(map(repr, values))}")
        self._check(self._write(attribute, value), f"set {attribute} to {value!r}")

    def _command(self, command: str) -> int:
        """0, or the errno that the kernel has answered with."""
        if self._cdev < 0:
            return self._write("state", command)
        try:
            os.write(self._cdev, command.encode())
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _end(self, command: str, states: tuple[str, ...]) -> None:
        code = self._command(command)
        if code == errno.EINVAL:
            state = self.state
            why = f"its driver cannot {command} it" if state in states else f"there is nothing to {command}"
            raise StateError(f"{self.name} is {state}: {why}")
        self._check(code, command)

    def _check(self, code: int, doing: str) -> None:
        if code == 0:
            return
        if code == errno.ENODEV:
            raise self._gone()
        if code == errno.EBUSY:
            raise StateError(f"{self.name} is {self.state}: it cannot {doing} now")
        if code == errno.ENOMEM:
            raise ResourceError(f"{self.name}: no memory, or not that which was asked for, to {doing}; {SEE_LOG}")
        raise OSError(code, f"{self.name} is {self.state}, could not {doing}: {os.strerror(code)}; {SEE_LOG}")

    def _gone(self) -> StateError:
        return StateError(f"{self.name} is gone: its driver was removed")

    def _where(self) -> str:
        """Where the kernel looks for firmware."""
        parameter = f"{self._sysfs}/module/firmware_class/parameters/path"
        with contextlib.suppress(OSError):
            if path := _read_file(parameter):
                return f"it looks below {path} and /lib/firmware"
        return f"it looks below /lib/firmware, and below what is written to {parameter}"

    @contextlib.contextmanager
    def _debug(self, file: str, flags: int) -> Iterator[int]:
        """A file of debugfs, which knows the remote by its number: that is the same as long as the device is there."""
        self._debug_list()
        path = os.path.join(self._debugfs, file)
        try:
            fd = os.open(path, flags | os.O_CLOEXEC)
        except PermissionError as error:
            raise _denied(error, path) from None
        except FileNotFoundError:
            raise StateError(f"{self.name} is {self.state}: there is no {path}") from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _debug_list(self) -> list[str]:
        self._read("state")
        try:
            return os.listdir(self._debugfs)
        except PermissionError as error:
            raise _denied(error, self._debugfs) from None
        except FileNotFoundError:
            root = os.path.dirname(os.path.dirname(self._debugfs))
            raise StateError(
                f"no {self._debugfs}: this needs a kernel with CONFIG_DEBUG_FS, and mount -t debugfs none {root}"
            ) from None

    def _debug_text(self, file: str) -> str:
        with self._debug(file, os.O_RDONLY) as fd, open(fd, "rb", closefd=False) as text:
            return text.read().decode(errors="replace")

    def _dump(self) -> str | None:
        """Which core dump of the remote the kernel has."""
        if self._dir < 0:
            raise Closed(f"{self.name} is closed")
        try:
            return os.readlink("devcoredump", dir_fd=self._dir)
        except FileNotFoundError:
            return None

    def _check_coredump(self) -> None:
        dumps = f"{self._sysfs}/class/devcoredump"
        if self.coredump_mode == "disabled":
            raise StateError(f"{self.name} leaves no core dump: set coredump_mode to 'enabled' before it crashes")
        if not os.path.isdir(dumps):
            raise StateError(f"no {dumps}: this needs a kernel with CONFIG_DEV_COREDUMP")
        with contextlib.suppress(FileNotFoundError):
            if _read_file(f"{dumps}/disabled") == "1":
                raise StateError(f"{dumps}/disabled is set: the kernel keeps no core dumps until its next boot")


def _find(name: str, sysfs: str) -> tuple[str, str, int]:
    """Path of the remote's directory, its name, a descriptor of the directory. See LinuxRemoteproc for the errors."""
    root = os.path.join(sysfs, "class", "remoteproc")
    remotes = []
    for node in sorted(_list(root)):
        path = os.path.join(root, node)
        with contextlib.suppress(OSError):  # it has gone meanwhile
            device = os.path.basename(os.path.realpath(os.path.join(path, "device")))
            remotes.append((path, _read_file(os.path.join(path, "name")), device))
    found = [remote for remote in remotes if remote[1] == name] or [remote for remote in remotes if remote[2] == name]
    known = ", ".join(f"{one!r} (device {device!r})" for _, one, device in remotes) or "none"
    if not found:
        without = "" if os.path.isdir(root) else f"; no {root}: this kernel has no CONFIG_REMOTEPROC"
        raise FileNotFoundError(errno.ENOENT, f"no remote is named {name!r}; there are: {known}{without}")
    if len(found) > 1:
        raise ValueError(f"several remotes are named {name!r}, take the name of the device; there are: {known}")
    path, found_name, _ = found[0]
    return path, found_name, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _read_file(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.read(ATTRIBUTE).decode(errors="replace").removesuffix("\n")


def _denied(error: PermissionError, path: str) -> PermissionError:
    return PermissionError(error.errno, f"{error.strerror}: run as root, or let a udev rule give you this file", path)


def _save(source: int, path: str) -> None:
    """Copy all of `source` to a new file that gets its name when it is complete."""
    unfinished = f"{path}.{os.getpid()}"
    target = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(target, "wb") as file:
            while chunk := os.read(source, CHUNK):
                file.write(chunk)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
