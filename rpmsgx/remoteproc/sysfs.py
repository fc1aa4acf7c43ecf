"""The files by which the Linux kernel shows one of its remotes: in sysfs, in debugfs, and its core dump.

Formats: Documentation/ABI/testing/sysfs-class-remoteproc; drivers/remoteproc and drivers/base/devcoredump.c for what is
written down nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple, TypeAlias

from rpmsgx.errors import Closed, StateError

StrPath: TypeAlias = str | os.PathLike[str]

HELPERS = ("rpmsg_ns", "rpmsg_ctrl")  # devices on the rpmsg bus that no remote announced
ATTRIBUTE = 4096  # bytes of a sysfs attribute: a page at most
CHUNK = 1 << 16


class Channel(NamedTuple):
    """An rpmsg channel as the kernel sees it: `src` is the kernel's address, `dst` the remote's."""

    name: str
    src: int
    dst: int

    @property
    def addr(self) -> int:
        """The remote's address."""
        return self.dst


class Files:
    """The files of the remote that its driver calls `name`; where several have that name, its device's name tells.

    The directory is held open, so it is this very device for good: one that takes its number later is another.

    Raises FileNotFoundError if there is no such remote, telling which there are, ValueError if there are several.
    """

    def __init__(self, name: str, *, sysfs: StrPath = "/sys", debugfs: StrPath = "/sys/kernel/debug") -> None:
        self.sysfs = os.fspath(sysfs)
        self.path, self.name, self._dir = _find(name, self.sysfs)
        self.node = os.path.basename(self.path)  # remoteproc0
        self._debugfs = os.path.join(debugfs, "remoteproc", self.node)

    def close(self) -> None:
        """Idempotent."""
        fd, self._dir = self._dir, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_dir"):  # else there was no such remote
            self.close()

    # -- sysfs ---------------------------------------------------------------------------------------------------

    def exists(self, attribute: str) -> bool:
        return os.access(attribute, os.F_OK, dir_fd=self._dir)

    @property
    def device_number(self) -> str:
        """MAJOR:MINOR of its character device; "" where the kernel has none (CONFIG_REMOTEPROC_CDEV)."""
        return self.read("dev") if self.exists("dev") else ""

    def open(self, attribute: str, flags: int) -> int:
        """An attribute of this very device. Raises StateError where it has gone, PermissionError with the cure."""
        if self._dir < 0:
            raise Closed(f"{self.name} is closed")
        path = f"{self.path}/{attribute}"
        try:
            return os.open(attribute, flags | os.O_CLOEXEC, dir_fd=self._dir)
        except PermissionError as error:
            raise denied(error, path) from None
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            if not self.exists("state"):  # the directory of a device that went is empty for ever
                raise self.gone() from None
            raise StateError(f"{self.name} has no {path}") from None

    def read(self, attribute: str) -> str:
        fd = self.open(attribute, os.O_RDONLY)
        try:
            return os.read(fd, ATTRIBUTE).decode(errors="replace").removesuffix("\n")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise self.gone() from None
            raise
        finally:
            os.close(fd)

    def write(self, attribute: str, text: str) -> int:
        """0, or the errno that the kernel has answered with."""
        fd = self.open(attribute, os.O_WRONLY)
        try:
            os.write(fd, os.fsencode(text))
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            os.close(fd)
        return 0

    def gone(self) -> StateError:
        return StateError(f"{self.name} is gone: its driver was removed")

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The rpmsg channels that lead to the remote, by name."""
        bus = os.path.join(self.sysfs, "bus", "rpmsg", "devices")
        ours = os.path.realpath(self.path) + os.sep
        found = []
        for device in (os.path.join(bus, name) for name in _list(bus)):
            if os.path.realpath(device).startswith(ours):
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    name, src, dst = (read_file(os.path.join(device, part)) for part in ("name", "src", "dst"))
                    found.append(Channel(name, int(src, 0), int(dst, 0)))
        return tuple(sorted(channel for channel in found if channel.name not in HELPERS))

    @property
    def firmware_path(self) -> str:
        """Where the kernel looks for firmware, for a message."""
        parameter = f"{self.sysfs}/module/firmware_class/parameters/path"
        with contextlib.suppress(OSError):
            if path := read_file(parameter):
                return f"it looks below {path} and /lib/firmware"
        return f"it looks below /lib/firmware, and below what is written to {parameter}"

    # -- debugfs -------------------------------------------------------------------------------------------------

    def debug_list(self) -> list[str]:
        """debugfs knows the remote by its number, which is the same as long as the device is there."""
        self.read("state")
        try:
            return os.listdir(self._debugfs)
        except PermissionError as error:
            raise denied(error, self._debugfs) from None
        except FileNotFoundError:
            root = os.path.dirname(os.path.dirname(self._debugfs))
            raise StateError(
                f"no {self._debugfs}: this needs a kernel with CONFIG_DEBUG_FS, and mount -t debugfs none {root}"
            ) from None

    def debug_open(self, file: str, flags: int) -> int:
        self.debug_list()
        path = os.path.join(self._debugfs, file)
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except PermissionError as error:
            raise denied(error, path) from None
        except FileNotFoundError:
            raise StateError(f"{self.name} is {self.read('state')}: there is no {path}") from None

    def debug_text(self, file: str) -> str:
        with open(self.debug_open(file, os.O_RDONLY), "rb") as text:
            return text.read().decode(errors="replace")

    def debug_write(self, file: str, data: bytes) -> None:
        fd = self.debug_open(file, os.O_WRONLY)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    # -- core dumps ----------------------------------------------------------------------------------------------

    def dump(self) -> str | None:
        """Which core dump of the remote the kernel has."""
        if self._dir < 0:
            raise Closed(f"{self.name} is closed")
        try:
            return os.readlink("devcoredump", dir_fd=self._dir)
        except FileNotFoundError:
            return None

    def move_dump(self, path: str) -> None:
        """Move the dump to file `path`, which appears complete, with mode 0600."""
        source = self.open("devcoredump/data", os.O_RDWR)
        try:
            _save(source, path)
            os.write(source, b"1")  # anything frees it, after a while
        finally:
            os.close(source)

    def check_dumps(self) -> None:
        """Raise StateError where the kernel keeps no core dumps."""
        dumps = f"{self.sysfs}/class/devcoredump"
        if not os.path.isdir(dumps):
            raise StateError(f"no {dumps}: this needs a kernel with CONFIG_DEV_COREDUMP")
        with contextlib.suppress(FileNotFoundError):
            if read_file(f"{dumps}/disabled") == "1":
                raise StateError(f"{dumps}/disabled is set: the kernel keeps no core dumps until its next boot")


def _find(name: str, sysfs: str) -> tuple[str, str, int]:
    """Path of the remote's directory, its name, a descriptor of the directory."""
    root = os.path.join(sysfs, "class", "remoteproc")
    remotes = []
    for node in sorted(_list(root)):
        path = os.path.join(root, node)
        with contextlib.suppress(OSError):  # it has gone meanwhile
            device = os.path.basename(os.path.realpath(os.path.join(path, "device")))
            remotes.append((path, read_file(os.path.join(path, "name")), device))
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


def read_file(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return (file.read(ATTRIBUTE) or b"").decode(errors="replace").removesuffix("\n")


def denied(error: PermissionError, path: str) -> PermissionError:
    """The same error with the cure."""
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
