"""Device files as memory: what is refused says what is missing, and how to get it."""

from __future__ import annotations

import errno
import mmap
import os

from ..errors import ResourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .region import Kind

PAGE = mmap.PAGESIZE
LOCKED_DOWN = "a kernel that is locked down refuses it (cat /sys/kernel/security/lockdown)"
NO_PERMISSION = "run as root, or let your group have it with a udev rule (examples/udev/60-rpmsgx.rules)"
_ANY_ACCESS = ("x86_64", "i386", "i486", "i586", "i686")


def bypassed(kind: Kind) -> Kind:
    """What memory that is to be `kind` is where the kernel maps it past the caches.

    Only x86 takes any access there. Elsewhere it is device memory, where an access that is not aligned is a fault,
    whatever the hardware does about coherence.
    """
    return kind if os.uname().machine in _ANY_ACCESS else "device"


def open_device(what: str, path: str, missing: str, *, flags: int = 0) -> int:
    """A descriptor of `path`, of which `missing` says what to do where there is none.

    `what` it is for begins the message of the ResourceError, here as below: "region 'shm'".
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | flags)
    except OSError as exc:
        cure = {errno.EACCES: NO_PERMISSION, errno.EPERM: f"it takes CAP_SYS_RAWIO, and {LOCKED_DOWN}"}
        refuse(what, path, exc, cure.get(exc.errno or 0, missing))


def map_device(what: str, path: str, fd: int, size: int, offset: int, cure: Callable[[OSError], str]) -> mmap.mmap:
    """`size` bytes of `fd`, which is `path`, at `offset`. Raises ResourceError with what `cure` knows."""
    try:
        return mmap.mmap(fd, size, offset=offset)
    except OSError as exc:
        refuse(what, path, exc, cure(exc))
    except (ValueError, OverflowError) as exc:  # beyond the end of a file, or of addresses
        raise ResourceError(f"{what}: {path}: {exc}") from exc


def refuse(what: str, path: str, exc: OSError, cure: str) -> NoReturn:
    raise ResourceError(f"{what}: {path}: {exc.strerror}; {cure}") from exc


def attribute(path: str) -> str:
    """What a file of sysfs or proc says, without white space around it; "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
