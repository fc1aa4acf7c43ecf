"""Where firmware files are: the kernel's search path, and waiting for a file that is not there yet.

The places and their order are those of the kernel's drivers/base/firmware_loader/main.c; compressed files (.xz, .zst)
are not looked for. As in fs/kernel_read_file.c an empty file does not count, nor one that somebody still writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from typing import TYPE_CHECKING

from rpmsgx.errors import FirmwareError
from rpmsgx.notify.inotify import IN_CREATE
from rpmsgx.notify.paths import PathWatch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

_PARAMETER = "/sys/module/firmware_class/parameters/path"
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def search_path() -> tuple[str, ...]:
    """The directories in which this kernel looks for firmware, first to last."""
    try:
        with open(_PARAMETER, encoding="utf-8", errors="surrogateescape") as file:
            custom = file.read().rstrip("\n")
    except OSError:
        custom = ""
    release = os.uname().release
    return (
        *((custom,) if custom else ()),
        f"/lib/firmware/updates/{release}",
        "/lib/firmware/updates",
        f"/lib/firmware/{release}",
        "/lib/firmware",
    )


def candidates(name: str, directories: Iterable[str | os.PathLike[str]] = ()) -> tuple[str, ...]:
    """The absolute paths at which a firmware `name` may be, first to last: in `directories`, then in `search_path()`.

    A name that starts with "/" or "./" is a path itself. Others may have directories in them ("vendor/fw.elf"), but no
    "..", which newer kernels refuse as well. Raises FirmwareError for a name that can be none.
    """
    if not name or "\0" in name or name.endswith("/"):
        raise FirmwareError(f"{name!r} is no name of a firmware file")
    if name.startswith(("/", "./")):
        return (os.path.join(os.getcwd(), name),)
    if ".." in name.split("/"):
        raise FirmwareError(f"firmware {name!r}: no '..' in a name that is searched for; a path starts with / or ./")
    return tuple(os.path.join(os.getcwd(), directory, name) for directory in (*directories, *search_path()))


def find(name: str, directories: Iterable[str | os.PathLike[str]] = ()) -> str:
    """The path of the firmware `name`: the first of its `candidates` that can be loaded.

    Raises FileNotFoundError, which names all that was tried and why what is there is not usable, or not yet;
    FirmwareError for a name that can be none.
    """
    tried = []
    for path in candidates(name, directories):
        try:
            _check(path)
        except OSError as error:
            tried.append(path if error.errno in _ABSENT else f"{path} ({error.strerror})")
        else:
            return path
    raise FileNotFoundError(errno.ENOENT, f"no firmware {name!r}; tried {', '.join(tried)}")


class Arrival:
    """Waits for the firmware `name` to be at one of its `candidates`, whole: closed, or moved into place.

    Nothing of it need exist yet, directories and their file systems included. `fileno()` is one descriptor for good,
    readable when `check()` is due, and at first. Raises FirmwareError for a name that can be none, OSError if there
    are no descriptors. Not thread-safe.

    Whether somebody still writes a file tells a read lease, which its owner and CAP_LEASE may have. For others a file
    that they saw appear counts when it is closed or moved, and one that they found counts as it is.
    """

    def __init__(self, name: str, directories: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._directories = tuple(directories)
        self._candidates = candidates(name, self._directories)
        self._there: set[str] = set()
        self._watch = PathWatch(self._candidates)

    def fileno(self) -> int:
        return self._watch.fileno()

    def check(self) -> str | None:
        """The path at which the firmware is now; None: there is none yet. Never waits."""
        for path, event in self._watch.changes().items():
            try:
                _check(path, created=bool(event & IN_CREATE))
                self._there.add(path)
            except OSError:
                self._there.discard(path)
        return next((path for path in self._candidates if path in self._there), None)

    def retarget(self, name: str) -> None:
        """Wait for another firmware. Raises FirmwareError, with nothing changed, for a name that can be none."""
        self._candidates = candidates(name, self._directories)
        self._there.clear()
        self._watch.aim(self._candidates)

    def close(self) -> None:
        """Idempotent."""
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check(path: str, *, created: bool = False) -> None:
    """Raise OSError unless the file at `path` can be loaded. `created`: it was, and nobody was seen to close it."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    if not found.st_size:
        raise OSError(errno.EINVAL, "empty", path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        written = _being_written(fd)
    finally:
        os.close(fd)
    if written is None:  # what was linked here may have been closed long ago
        written = created and found.st_nlink == 1 and not os.path.islink(path)
    if written:
        raise OSError(errno.ETXTBSY, "is being written", path)


def _being_written(fd: int) -> bool | None:
    """Whether anybody has the file open for writing; None: the kernel does not say.

    A read lease is refused then, and is given up with `fd`. Who opens the file for writing in between waits for that,
    and the kernel signals it: by SIGIO, which kills, unless another signal is chosen, such as this one, which does not.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False
