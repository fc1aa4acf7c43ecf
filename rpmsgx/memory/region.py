"""A named piece of memory that this process has mapped."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

from ..errors import Closed, ResourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, Self, TypeVar

    from typing_extensions import Buffer

    Kind = Literal["cached", "uncached", "device"]
    T = TypeVar("T")

KINDS = ("cached", "uncached", "device")
_NO_MEMORY = (
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def hex_range(start: int, size: int) -> str:
    """`start` and `size` as the half-open range that people read in a memory map."""
    return f"[{start:#x}, {start + size:#x})"


class Region:
    """A named, contiguous piece of mapped memory and the addresses under which others know it.

    `da` is the address that the remote core uses, `pa` the bus address (`da` unless given); both in bytes, 64
    bits. `kind` says how the memory may be touched: "cached" and "uncached" take any access, "device" only
    naturally aligned ones. `sealed` is true for memory that cannot shrink under the map, so that no access
    can raise SIGBUS.

    A region owns its map and its descriptor; `close()` gives both up, but while views of the buffer are alive
    the unmap waits for the last of them. Attributes are read-only and safe to read from any thread.
    """

    __slots__ = ("_buffer", "_view", "da", "fd", "kind", "name", "pa", "sealed", "size")

    def __init__(
        self,
        name: str,
        buffer: Buffer,
        *,
        da: int = 0,
        pa: int | None = None,
        kind: Kind = "cached",
        sealed: bool = False,
        fd: int | None = None,
    ) -> None:
        """Take over `buffer`, a writable and C-contiguous one, and `fd`, the descriptor behind it, if any.

        Raises ResourceError if the buffer cannot be written or is empty, or if an address leaves 64 bits.
        """
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise ResourceError(f"region {name!r}: the buffer must be writable and C-contiguous")
        if kind not in KINDS:
            raise ResourceError(f"region {name!r}: kind {kind!r} is not one of {', '.join(KINDS)}")
        _check_size(name, view.nbytes)
        pa = da if pa is None else pa
        for field, start in (("da", da), ("pa", pa)):
            if start < 0 or start + view.nbytes > 1 << 64:
                raise ResourceError(
                    f"region {name!r}: {field} {hex_range(start, view.nbytes)} leaves 64 bits"
                )
        self._buffer: Buffer | None = buffer
        self._view = view.cast("B")
        self.name = name
        self.size = view.nbytes
        self.da = da
        self.pa = pa
        self.kind: Kind = kind
        self.sealed = sealed
        self.fd = fd

    @classmethod
    def anonymous(
        cls, name: str, size: int, *, da: int = 0, pa: int | None = None, kind: Kind = "cached"
    ) -> Self:
        """Zeroed memory that children inherit and nobody else can reach."""
        _check_size(name, size)
        buffer = _map(name, lambda: mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))
        return cls(name, buffer, da=da, pa=pa, kind=kind, sealed=True)

    @classmethod
    def memfd(
        cls, name: str, size: int, *, da: int = 0, pa: int | None = None, kind: Kind = "cached"
    ) -> Self:
        """Zeroed memory behind `fd`, which can be given to another process; sealed: its size is final."""
        _check_size(name, size)

        def create() -> int:
            # The kernel takes 249 bytes of name and no NUL; it is a label in /proc/PID/maps, nothing more.
            label = name.encode("utf-8", "replace").replace(b"\0", b"")[:249]
            return os.memfd_create(os.fsdecode(label), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

        fd = _map(name, create)
        try:
            _map(name, lambda: os.ftruncate(fd, size))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            buffer = _map(name, lambda: mmap.mmap(fd, size))
            return cls(name, buffer, da=da, pa=pa, kind=kind, sealed=True, fd=fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(
        cls,
        name: str,
        fd: int,
        size: int | None = None,
        *,
        offset: int = 0,
        da: int = 0,
        pa: int | None = None,
        kind: Kind = "cached",
    ) -> Self:
        """Map `size` bytes (default: all) at `offset`, a multiple of the page size, of somebody's descriptor.

        The region works on a duplicate of `fd`. A memfd must carry F_SEAL_SHRINK; a regular file may, which
        makes the region `sealed`. Raises ResourceError for anything else, for a descriptor that cannot be
        written and for a range that reaches beyond the file's end.
        """
        if size is not None:
            _check_size(name, size)
        if offset < 0 or offset % mmap.ALLOCATIONGRANULARITY:
            raise ResourceError(
                f"region {name!r}: offset {offset:#x} is not a multiple of {mmap.ALLOCATIONGRANULARITY:#x}"
            )
        own = _map(name, lambda: os.dup(fd))
        try:
            # The seal first, then the size: a sealed file cannot shrink between the check and the map.
            sealed = _sealed(name, own)
            available = max(os.fstat(own).st_size - offset, 0)
            size = available if size is None else size
            _check_size(name, size)
            if size > available:
                raise ResourceError(
                    f"region {name!r}: size {size:#x} at offset {offset:#x}, "
                    f"but the file has {available:#x} bytes there"
                )
            length = size
            buffer = _map(name, lambda: mmap.mmap(own, length, offset=offset))
            return cls(name, buffer, da=da, pa=pa, kind=kind, sealed=sealed, fd=own)
        except BaseException:
            os.close(own)
            raise

    @classmethod
    def file(
        cls,
        name: str,
        path: str | os.PathLike[str],
        size: int | None = None,
        *,
        create: bool = False,
        da: int = 0,
        pa: int | None = None,
        kind: Kind = "cached",
    ) -> Self:
        """Map the first `size` bytes (default: all) of the file at `path`.

        `create=True` makes a new, zeroed file of `size` bytes with mode 0600, and fails if one is there.
        Raises OSError if the file cannot be opened, ResourceError as `from_fd`.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK  # a terminal must be refused, not waited for
        if create:
            if size is None:
                raise ResourceError(f"region {name!r}: a new file needs a size")
            _check_size(name, size)
            flags |= os.O_CREAT | os.O_EXCL
        fd = os.open(path, flags, 0o600)
        try:
            if create:
                length = size or 0
                _map(name, lambda: os.ftruncate(fd, length))
            return cls.from_fd(name, fd, size, da=da, pa=pa, kind=kind)
        finally:
            os.close(fd)

    @property
    def buffer(self) -> Buffer:
        """The memory as the object that maps it. Raises Closed after `close()`."""
        buffer = self._buffer
        if buffer is None:
            raise Closed(f"region {self.name!r} is closed")
        return buffer

    @property
    def view(self) -> memoryview:
        """The memory as writable bytes; do not release it. Raises Closed after `close()`."""
        view = self._view  # before the check: a close in another thread empties it after
        if self._buffer is None:
            raise Closed(f"region {self.name!r} is closed")
        return view

    def guard(self) -> None:
        """From now on, a file that is truncated under the map sets `lost` instead of ending the process.

        Does nothing to a sealed region. Take no views before. Installs a handler for SIGBUS while there are such
        regions or views of them: see rpmsgx.memory.guard. Raises OSError (EMFILE) for the 65th at a time.
        """
        if self.sealed or self._buffer is None:
            return
        from .guard import GuardedMemory

        buffer = GuardedMemory(self._buffer)
        self._buffer, self._view = buffer, memoryview(buffer).cast("B")

    @property
    def lost(self) -> bool:
        """Whether a part of a guarded region was found missing: what is read from it means nothing any more."""
        return bool(getattr(self._buffer, "lost", False))

    @property
    def lost_flag(self) -> Buffer | None:
        """`lost` as a buffer of one byte; None where it cannot happen."""
        return getattr(self._buffer, "flag", None)

    @property
    def closed(self) -> bool:
        return self._buffer is None

    def close(self) -> None:
        """Give up map and descriptor; idempotent. Live views stay valid: the unmap waits for the last."""
        buffer, self._buffer = self._buffer, None
        self._view = memoryview(b"")
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)
        if isinstance(buffer, mmap.mmap):
            try:
                buffer.close()
            except BufferError:
                pass  # exports are alive; with our reference gone the last of them unmaps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A constructor that raised leaves slots unset; an interpreter at its end leaves modules unset.
        if getattr(self, "fd", None) is not None:
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Region {self.name!r} da {hex_range(self.da, self.size)} pa {self.pa:#x} {self.kind}{state}>"


def _check_size(name: str, size: int) -> None:
    if not 0 < size < 1 << 63:
        raise ResourceError(f"region {name!r}: size {size} is not between 1 and 2^63 - 1")


def _map(name: str, call: Callable[[], T]) -> T:
    """`call()`, with what the system refuses turned into a ResourceError."""
    try:
        return call()
    except (OSError, ValueError, OverflowError) as exc:
        raise ResourceError(f"region {name!r}: {exc}") from exc


def _sealed(name: str, fd: int) -> bool:
    """Whether the file behind `fd` cannot shrink; ResourceError if it is no memory, or a memfd that can."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        what = next((text for test, text in _NO_MEMORY if test(mode)), "an anonymous descriptor")
        raise ResourceError(
            f"region {name!r}: descriptor {fd} is {what}, not memory (a memfd or a regular file)"
        )
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False  # a file system without seals
    if seals & fcntl.F_SEAL_SHRINK:
        return True
    # Files of a tmpfs answer F_GET_SEALS too, but nobody can seal them: only the name tells a memfd.
    if _map(name, lambda: os.readlink(f"/proc/self/fd/{fd}")).startswith("/memfd:"):
        raise ResourceError(
            f"region {name!r}: the memfd lacks F_SEAL_SHRINK (seals {seals:#x}): "
            "its owner could truncate it under the map"
        )
    return False
