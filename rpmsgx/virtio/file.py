"""`file:PATH`: a shared file with OpenAMP's layout, and a Unix socket as doorbell.

Whoever opens first makes the file: at its full size, with its table, in one step. The server owns table and socket:
it puts the table into its initial state (status and gfeatures 0) whenever it begins to listen, and listens only while
it has no peer. The driver sets up the rings once the two are connected. So nobody ever sees rings of a peer that died.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Literal, NamedTuple

from rpmsgx.errors import ResourceError, StateError
from rpmsgx.memory.region import Region, hex_range
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.socket import SocketDoorbell
from rpmsgx.notify.timer import PolledDoorbell
from rpmsgx.virtio.link import F_BUFSZ, VdevLink
from rpmsgx.virtio.modern import BLOCK_SIZE, ModernLayout, ModernLink, check_block
from rpmsgx.virtio.table import ADDR_ANY, LITTLE, VIRTIO_ID_RPMSG, VdevView, parse, vring_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rpmsgx.notify.doorbell import Doorbell
    from rpmsgx.virtio.layout import Layout
    from rpmsgx.virtio.link import Buffers, Role, Session
    from rpmsgx.virtio.table import Vdev

TABLE_LIMIT = 0x4000  # bytes that a table may have: OpenAMP's first vring lies behind them


class FileLink(VdevLink):
    """One end of a link in a shared file; `bell` is the socket's path, None for a link that is polled."""

    def __init__(
        self, role: Role, path: str, *, layout: Layout, bell: str | None, create: bool, server: bool
    ) -> None:
        self._path = path
        self._layout = layout
        self._server = server
        self._file = file = self._open_file(role, make=True, replace=create)
        doorbell: Doorbell | None = None
        try:
            if bell is None:
                doorbell = PolledDoorbell()
            else:
                doorbell = SocketDoorbell(bell, listen=server, before_listen=file.restore if server else None)
            super().__init__(
                role,
                f"file:{path}",
                space=file.space,
                region=file.region,
                doorbell=doorbell,
                per_connection=True,
                **file.found._asdict(),
            )
        except BaseException:
            if doorbell is not None:
                doorbell.close()
            file.close()
            raise
        self._polled = self.device_resets = bell is None

    def _open_file(self, role: Role, *, make: bool = False, replace: bool = False) -> _File:
        return _File(self._path, role, self._layout, make=make, replace=replace)

    def session(self) -> Session | None:
        # A server may have made the file anew since it was opened here; once it is connected, its file is in place.
        may_differ = self.doorbell.connected and not (self._server or self._polled or self._closed)
        if may_differ and not self._file.is_at(self._path):
            file = self._open_file(self.role)
            self._file.close()
            self._file = file
            self._attach(file.space, file.region, *file.found[:3])
            self.named = file.found.named
        return super().session()

    @property
    def gone(self) -> str:  # type: ignore[override]
        return "the shared file was truncated" if self.ended else "the peer closed it, died, or was reset"

    def close(self) -> None:
        if self._closed:
            return
        if self.role == "device" and (self._server or self._polled):
            self._file.restore()
        super().close()
        self._file.close()

    def close_descriptors(self) -> None:
        super().close_descriptors()
        if not self._closed:
            self._file.unlock()


class ModernFileLink(FileLink, ModernLink):
    """The same with a block in place of the table."""

    _layout: ModernLayout

    def _open_file(self, role: Role, *, make: bool = False, replace: bool = False) -> _File:
        return _ModernFile(self._path, role, self._layout, make=make, replace=replace)


class _File:
    """The file at `path`, checked, locked for `role`, and mapped. `make`: if it is missing; `replace`: in any case."""

    def __init__(
        self, path: str, role: Role, layout: Layout, *, make: bool = False, replace: bool = False
    ) -> None:
        self._lock = _open(path, layout if make else None, replace)
        region = None
        try:
            _lock_role(self._lock, role, path)
            found = os.fstat(self._lock)
            self._identity = found.st_dev, found.st_ino
            # By way of /proc, so that the map has a file description of its own: the lock shall go with its descriptor,
            # whoever still holds a view or was forked.
            self.region = region = Region.file(path, f"/proc/self/fd/{self._lock}")
            region.guard()
            self.space = AddressSpace(region)
            self._check(role, layout)
        except BaseException:
            self.unlock()
            if region is not None:
                region.close()
            raise

    def _check(self, role: Role, layout: Layout) -> None:
        self.found = check_table(self.region, role, layout)
        self._vdev: VdevView | None = VdevView(self.region.buffer, self.found.offset)

    def restore(self) -> None:
        """Put the table into its initial state; a block needs none, as its ends wait for each other's answers."""
        if self._vdev is not None:
            self._vdev.status = 0
            self._vdev.gfeatures = 0

    def is_at(self, path: str) -> bool:
        """Whether `path` still leads to this file, or to none."""
        try:
            found = os.stat(path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) == self._identity

    def unlock(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def close(self) -> None:
        self.unlock()
        self.region.close()
        self._vdev = None


class _ModernFile(_File):
    def _check(self, role: Role, layout: Layout) -> None:
        check_block(self.region)
        self.found = Found(0, None, BLOCK_SIZE, {})
        self._vdev = None


def open_link(
    address: str,
    role: Role,
    *,
    layout: Layout,
    doorbell: str | None = None,
    create: bool = False,
    server: bool | None = None,
) -> FileLink:
    """Open one end of `file:PATH`.

    `doorbell`: "unix:SOCKET" (default unix:PATH.bell), or "none": both ends look every millisecond. `create`: make
    the file anew, even if there is one. `server`: whether this end owns table and socket; by default the driver does.
    `layout` counts where this end makes the file; of one that is there, the table says where and how large things are,
    but for a driver's buffers.

    Raises ResourceError for a file that cannot be such a link, StateError if this role's end is open already, OSError
    if file or socket cannot be opened.
    """
    bell: str | None
    if doorbell == "none":
        bell = None
    elif doorbell is None:
        bell = address + ".bell"
    else:
        scheme, _, bell = doorbell.partition(":")
        if scheme != "unix" or not bell:
            raise ValueError(f'doorbell must be "unix:SOCKET" or "none", not {doorbell!r}')
    if server is None:
        server = role == "driver"
    kind = ModernFileLink if isinstance(layout, ModernLayout) else FileLink
    return kind(role, address, layout=layout, bell=bell, create=create, server=bool(server))


class Found(NamedTuple):
    """What a link is made of: place of the rpmsg vdev, a driver's buffers, the table's end, carveouts as (da, size)."""

    offset: int
    buffers: Buffers | None
    table_end: int
    named: Mapping[str, tuple[int, int]]


def check_table(region: Region, role: Role, layout: Layout) -> Found:
    """What the table at the start of `region` has, and a driver's buffers by the sizes of `layout`.

    Raises ResourceError, with the region's name, if the table is none, or the region too small for what it describes.
    """
    try:
        table = parse(AddressSpace(region).read(region.da, min(TABLE_LIMIT, region.size)))
        vdevs = [vdev for vdev in table.vdevs if vdev.id == VIRTIO_ID_RPMSG]
        if not vdevs:
            raise ResourceError("resource table: no vdev with id 7 (rpmsg)")
        vdev = vdevs[0]
        if len(vdev.vrings) != 2:
            raise ResourceError(f"resource table: the rpmsg vdev has {len(vdev.vrings)} vrings, not 2")
        ends = [carveout.offset + LITTLE.carveout.size for carveout in table.carveouts]
        end = max([vdev.offset + 28 + 20 * len(vdev.vrings) + len(vdev.config), *ends])
        top = _check_rings(vdev, end, region.size)
        named = {each.name: (each.da, each.len) for each in table.carveouts if each.da != ADDR_ANY and each.len}
        for name, (da, size) in named.items():
            if da < end or da + size > region.size:
                what = f"resource table: carveout {name!r} {hex_range(da, size)}"
                raise ResourceError(f"{what} lies in the table, or beyond the file's {region.size:#x}")
        buffers = _place_buffers(vdev, top, region.size, layout, named) if role == "driver" else None
    except ResourceError as error:
        raise ResourceError(f"{region.name}: {error}") from None
    return Found(vdev.offset, buffers, end, named)


def _check_rings(vdev: Vdev, start: int, limit: int) -> int:
    """Where the vrings end, which lie from `start` on and in `limit` bytes."""
    top = start
    for index, vring in enumerate(vdev.vrings):
        what = f"resource table: vring {index}: da {vring.da:#x}"
        if vring.da == ADDR_ANY:
            raise ResourceError(f"{what}: nobody has placed it")
        if vring.da < start or vring.da % 16:
            raise ResourceError(f"{what} lies in the table, or is no multiple of 16")
        size = vring_size(vring.num, vring.align)
        if vring.da + size > limit:
            raise ResourceError(f"{what} + {size:#x} bytes is beyond the file's {limit:#x}")
        top = max(top, vring.da + size)
    return top


def _place_buffers(
    vdev: Vdev, start: int, limit: int, layout: Layout, named: Mapping[str, tuple[int, int]]
) -> Buffers:
    """A driver's buffers, behind `start`, in `limit` bytes, and in no carveout."""
    told = vdev.config if layout.bufsz and vdev.dfeatures & F_BUFSZ else None
    buffers = layout.buffers_behind(start, max(vring.num for vring in vdev.vrings), told)
    cure = "the end that makes the table needs this driver's buffer_size and buffer_count"
    if buffers.end > limit:
        raise ResourceError(f"size is {limit:#x}, a driver's buffers end at {buffers.end:#x}; {cure}")
    for name, (da, size) in named.items():
        if da < buffers.end and buffers.da < da + size:
            what = f"a driver's buffers {hex_range(buffers.da, buffers.end - buffers.da)}"
            raise ResourceError(f"{what} overlap carveout {name!r} {hex_range(da, size)}; {cure}")
    return buffers


def _open(path: str, layout: Layout | None, create: bool) -> int:
    """A descriptor of the file; with a `layout` it is made if it is not there, or if `create` asks for it."""
    if create and layout is not None:
        _make(path, layout, replace=True)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO is refused, not waited for
    for last in (False, False, True):
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            if last or layout is None:
                raise  # a link that leads nowhere
            _make(path, layout, replace=False)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENXIO):
                raise ResourceError(f"{path}: not a regular file") from error
            raise
    raise AssertionError


def _make(path: str, layout: Layout, *, replace: bool) -> None:
    """Make the file whole, or not at all; where another one was faster, and is not to be replaced, his stays."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid():x}-{os.urandom(4).hex()}")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        error.filename = path
        raise
    try:
        os.posix_fallocate(fd, 0, layout.size)  # room that is missing is missed now, not as SIGBUS later
        os.pwrite(fd, layout.table(), 0)
        if replace:
            os.rename(temporary, path)
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        os.unlink(temporary)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _lock_role(fd: int, role: Literal["driver", "device"], path: str) -> None:
    """Take this role of the file, for as long as `fd` is open. Others than rpmsgx do not ask."""
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, ("driver", "device").index(role), 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise StateError(f"the {role} end of file:{path} is open already") from None
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOLCK):
            raise
