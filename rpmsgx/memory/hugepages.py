"""Memory in huge pages: a large region takes few entries of a TLB. Documentation/admin-guide/mm/hugetlbpage.rst."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from ..errors import ResourceError
from .device_file import NO_PERMISSION, attribute, refuse
from .region import Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .region import Kind

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_COUNTS = ("nr_hugepages", "free_hugepages", "resv_hugepages")
_MOUNT = "mount -t hugetlbfs none /dev/hugepages, and choose a path there"


def map_hugepages(
    name: str,
    size: int,
    path: str | None = None,
    *,
    da: int = 0,
    pa: int | None = None,
    kind: Kind = "cached",
    sysfs: str = "/sys",
) -> Region:
    """`size` bytes, whole huge pages: a sealed memfd, or the file at `path` in a hugetlbfs, made where it is missing.

    The pages are set aside at once and zeroed when they are first used. A file can be truncated under the map by who
    may write it, which ends the process: a guard works on small pages only.

    Raises ResourceError, which says how to get there: too few huge pages, a size of no whole ones, a path that is in
    no hugetlbfs, no permission.
    """
    what = f"region {name!r}"
    where = "memfd" if path is None else path
    try:
        if path is None:
            fd = os.memfd_create("rpmsgx", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as exc:
        cure = {errno.EACCES: NO_PERMISSION, errno.ENOENT: _MOUNT}
        refuse(what, where, exc, cure.get(exc.errno or 0, "the kernel needs CONFIG_HUGETLBFS"))
    try:
        page = os.fstatvfs(fd).f_bsize
        if page <= mmap.PAGESIZE:
            raise ResourceError(f"{what}: {where} is in no hugetlbfs; {_MOUNT}")
        if size % page:
            raise ResourceError(
                f"{what}: size {size:#x} is not a multiple of the huge page {page:#x}; "
                f"write {-(-size // page) * page:#x}"
            )
        fresh = os.fstat(fd).st_size == 0
        if fresh:
            os.ftruncate(fd, size)
        if path is None:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        try:
            return Region.from_fd(name, fd, size, da=da, pa=pa, kind=kind)
        except ResourceError as exc:
            if fresh and path is not None:
                os.ftruncate(fd, 0)
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.ENOMEM:
                refuse(what, where, exc.__cause__, _too_few(size, page, sysfs))
            raise
    finally:
        os.close(fd)


def pool(page: int, sysfs: str = "/sys") -> str:
    """The directory of the pool of huge pages of `page` bytes."""
    return f"{sysfs}/kernel/mm/hugepages/hugepages-{page >> 10}kB"


def _too_few(size: int, page: int, sysfs: str) -> str:
    directory = pool(page, sysfs)
    total, free, held = (int(attribute(f"{directory}/{field}") or "0") for field in _COUNTS)
    missing = size // page - (free - held)
    return (
        f"it takes {size // page} huge pages of {page:#x} bytes, and {free - held} are free: "
        f"echo {total + missing} > {directory}/nr_hugepages"
    )
