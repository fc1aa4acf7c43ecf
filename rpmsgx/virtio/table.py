"""The resource table: what a firmware asks of its host, and where virtio devices keep status and vrings.

Wire format: `struct resource_table` and `struct fw_rsc_*` of the kernel's include/linux/remoteproc.h. Words
are 32 bits in the byte order of the remote; `byteorder` defaults to this machine's, as the kernel and OpenAMP
assume.

`parse` checks a whole table and copies it; `VdevView` reads and writes one vdev of a table in shared memory,
field by field; `build` and `build_vdev_table` make tables.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from ..errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from ..memory.space import AddressSpace

ByteOrder: TypeAlias = Literal["little", "big"]

VERSION = 1
RSC_CARVEOUT, RSC_DEVMEM, RSC_TRACE, RSC_VDEV = range(4)
RSC_VENDOR_START, RSC_VENDOR_END = 128, 512
ADDR_ANY = 0xFFFFFFFF
"""A da or pa that the host is to choose (FW_RSC_ADDR_ANY)."""

VIRTIO_ID_RPMSG = 7
MAX_ENTRIES = 1024
MAX_VRINGS = 2
MAX_VRING_NUM = 32768
"""The largest queue that virtio allows."""


class Layout(NamedTuple):
    """The table's structures in one byte order; entry structures include the type word that starts them."""

    table: struct.Struct
    """ver, num, reserved[2]; num offsets follow"""
    word: struct.Struct
    carveout: struct.Struct
    """type, da, pa, len, flags, reserved, name[32]"""
    devmem: struct.Struct
    """type, da, pa, len, flags, reserved, name[32]"""
    trace: struct.Struct
    """type, da, len, reserved, name[32]"""
    vdev: struct.Struct
    """type, id, notifyid, dfeatures, gfeatures, config_len, status u8, num_of_vrings u8, reserved[2] u8"""
    vring: struct.Struct
    """da, align, num, notifyid, pa"""


def _layout(order: str) -> Layout:
    formats = ("4I", "I", "6I32s", "6I32s", "4I32s", "6I4B", "5I")
    return Layout(*(struct.Struct(order + text) for text in formats))


LITTLE = _layout("<")
BIG = _layout(">")
LAYOUTS: dict[str, Layout] = {"little": LITTLE, "big": BIG}


class Carveout(NamedTuple):
    """Memory that the firmware needs; `da` and `pa` may be ADDR_ANY. `offset` is the place in the table."""

    da: int
    len: int
    name: str = ""
    flags: int = 0
    pa: int = ADDR_ANY
    offset: int = 0


class Devmem(NamedTuple):
    """Device registers at `pa` that an IOMMU is to show the remote at `da`."""

    da: int
    pa: int
    len: int
    name: str = ""
    flags: int = 0
    offset: int = 0


class Trace(NamedTuple):
    """A buffer at `da` that the remote writes text into; the host may be asked to choose it (ADDR_ANY)."""

    da: int
    len: int
    name: str = ""
    offset: int = 0


class Vring(NamedTuple):
    """One ring: `num` descriptors at `da` (or ADDR_ANY), the used ring aligned to `align` bytes."""

    da: int
    align: int
    num: int
    notifyid: int = 0
    pa: int = 0

    @property
    def size(self) -> int:
        return vring_size(self.num, self.align)


class Vdev(NamedTuple):
    """A virtio device with its vrings and its configuration space."""

    vrings: tuple[Vring, ...]
    id: int = VIRTIO_ID_RPMSG
    notifyid: int = 0
    dfeatures: int = 0
    gfeatures: int = 0
    status: int = 0
    config: bytes = b""
    offset: int = 0


class Vendor(NamedTuple):
    """A platform's own entry, of type 128 to 512. `data` reaches to the next entry or the end."""

    type: int
    data: bytes
    offset: int = 0


class Unknown(NamedTuple):
    """An entry of a type that nobody defined. `data` reaches to the next entry or the end."""

    type: int
    data: bytes
    offset: int = 0


Entry: TypeAlias = Carveout | Devmem | Trace | Vdev | Vendor | Unknown


class ResourceTable:
    """A checked table: `entries` in their order, `warnings`, and `data`, the bytes that were checked."""

    __slots__ = ("byteorder", "data", "entries", "warnings")

    def __init__(
        self, data: bytes, entries: tuple[Entry, ...], warnings: tuple[str, ...], byteorder: ByteOrder
    ) -> None:
        self.data = data
        self.entries = entries
        self.warnings = warnings
        self.byteorder = byteorder

    @property
    def carveouts(self) -> tuple[Carveout, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Carveout))

    @property
    def traces(self) -> tuple[Trace, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Trace))

    @property
    def vdevs(self) -> tuple[Vdev, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Vdev))

    def check_granted(self, space: AddressSpace) -> None:
        """Raise ResourceError if `space` does not grant a carveout, vring or trace that has a fixed da."""
        # Devmem entries are registers, not memory.
        ranges = [item for item in _fixed_ranges(self.entries) if item.kind != "devmem"]
        ranges += [
            _Range(trace.da, trace.len, "trace", trace.name)
            for trace in self.traces
            if trace.len and trace.da != ADDR_ANY
        ]
        for item in ranges:
            try:
                space.find_da(item.da, item.size)
            except ResourceError as exc:
                raise _bad(f"{item.kind} {item.name!r}: {exc}") from None

    def __repr__(self) -> str:
        return f"<ResourceTable {len(self.data)} bytes, {len(self.entries)} entries>"


def vring_size(num: int, align: int) -> int:
    """Bytes of a legacy vring (virtio 1.x section 2.7.2): descriptors, available, pad to `align`, used."""
    return (16 * num + 2 * (3 + num) + align - 1) // align * align + 2 * 3 + 8 * num


def parse(
    data: Buffer, *, byteorder: ByteOrder = sys.byteorder, max_entries: int = MAX_ENTRIES
) -> ResourceTable:
    """Check and decode the table at the start of `data`, copied once, so it may be memory under change.

    Raises ResourceError, naming field, value and limit, for everything that the kernel refuses, and for
    entries that overlap or overflow and rings that virtio does not allow. Entries of unknown types, and what
    is merely odd, are reported in `warnings`.
    """
    snapshot = data if isinstance(data, bytes) else memoryview(data).tobytes()
    return _Parser(snapshot, byteorder, max_entries).table()


class _Parser:
    def __init__(self, data: bytes, byteorder: ByteOrder, max_entries: int) -> None:
        self.data = data
        self.byteorder: ByteOrder = byteorder
        self.layout = LAYOUTS[byteorder]
        self.max_entries = max_entries
        self.warnings: list[str] = []

    def table(self) -> ResourceTable:
        offsets = self.offsets()
        order = sorted(range(len(offsets)), key=offsets.__getitem__)
        found: dict[int, Entry] = {}
        # In the order of place, each after the end of the one before: so nothing is decoded or copied twice.
        end, holder = self.layout.table.size + 4 * len(offsets), "the table's header"
        for index, after in zip(order, [*order[1:], None], strict=False):
            if self.layout.table.size <= offsets[index] < end:
                raise _bad(f"offset[{index}] is {offsets[index]:#x}, inside {holder}, which ends at {end:#x}")
            limit = len(self.data) if after is None else offsets[after]
            found[index], end = self.entry(index, offsets[index], limit)
            holder = f"the entry of offset[{index}]"
        entries = [found[index] for index in range(len(offsets))]
        _check_names(entries)
        _check_overlaps(entries)
        return ResourceTable(self.data, tuple(entries), tuple(self.warnings), self.byteorder)

    def offsets(self) -> tuple[int, ...]:
        size, layout = len(self.data), self.layout
        if size < layout.table.size:
            raise _bad(f"size is {size}, the header alone has {layout.table.size} bytes")
        ver, num, *reserved = layout.table.unpack_from(self.data)
        if ver != VERSION:
            raise _bad(f"ver is {ver}, not {VERSION}")
        if any(reserved):
            raise _bad(f"reserved is {reserved[0]:#x}, {reserved[1]:#x}, not zero")
        if layout.table.size + 4 * num > size:
            raise _bad(
                f"num is {num}, but {size} bytes have room for {(size - layout.table.size) // 4} offsets"
            )
        if num > self.max_entries:
            raise _bad(f"num is {num}, the limit is {self.max_entries}")
        return tuple(
            layout.word.unpack_from(self.data, layout.table.size + 4 * index)[0] for index in range(num)
        )

    def entry(self, index: int, offset: int, limit: int) -> tuple[Entry, int]:
        """The entry at `offset` and its end; the data of one of unknown length reaches to `limit`."""
        size, layout = len(self.data), self.layout
        where = f"offset[{index}]"
        if not layout.table.size <= offset <= size - 4:
            raise _bad(f"{where} is {offset:#x}, not between {layout.table.size:#x} and {size - 4:#x}")
        if offset % 4:
            self.warnings.append(f"{where} is {offset:#x}, not a multiple of 4")
        (kind,) = layout.word.unpack_from(self.data, offset)
        if kind == RSC_CARVEOUT:
            return self.carveout(where, offset)
        if kind == RSC_DEVMEM:
            return self.devmem(where, offset)
        if kind == RSC_TRACE:
            return self.trace(where, offset)
        if kind == RSC_VDEV:
            return self.vdev(where, offset)
        payload = self.data[offset + 4 : limit]
        if RSC_VENDOR_START <= kind <= RSC_VENDOR_END:
            return Vendor(kind, payload, offset), offset + 4
        self.warnings.append(f"{where}: unknown type {kind}")
        return Unknown(kind, payload, offset), offset + 4

    def fields(self, what: str, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        if offset + layout.size > len(self.data):
            raise _bad(
                f"{what} at {offset:#x} needs {layout.size} bytes, "
                f"the table ends after {len(self.data) - offset}"
            )
        fields: tuple[int, ...] = layout.unpack_from(self.data, offset)
        return fields

    def name(self, at: int) -> str:
        return self.data[at : at + 32].partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def carveout(self, where: str, offset: int) -> tuple[Entry, int]:
        layout = self.layout.carveout
        _, da, pa, length, flags, reserved, _ = self.fields(f"{where}: carveout", layout, offset)
        name = self.name(offset + layout.size - 32)
        where = f"{where}: carveout {name!r}"
        _check_reserved(where, reserved)
        if not length:
            self.warnings.append(f"{where}: len is 0")
        if da != ADDR_ANY:
            _check_wrap(where, "da", da, length)
        return Carveout(da, length, name, flags, pa, offset), offset + layout.size

    def devmem(self, where: str, offset: int) -> tuple[Entry, int]:
        layout = self.layout.devmem
        _, da, pa, length, flags, reserved, _ = self.fields(f"{where}: devmem", layout, offset)
        name = self.name(offset + layout.size - 32)
        where = f"{where}: devmem {name!r}"
        _check_reserved(where, reserved)
        _check_wrap(where, "da", da, length)
        _check_wrap(where, "pa", pa, length)
        return Devmem(da, pa, length, name, flags, offset), offset + layout.size

    def trace(self, where: str, offset: int) -> tuple[Entry, int]:
        layout = self.layout.trace
        _, da, length, reserved, _ = self.fields(f"{where}: trace", layout, offset)
        name = self.name(offset + layout.size - 32)
        where = f"{where}: trace {name!r}"
        _check_reserved(where, reserved)
        if da != ADDR_ANY:
            _check_wrap(where, "da", da, length)
        return Trace(da, length, name, offset), offset + layout.size

    def vdev(self, where: str, offset: int) -> tuple[Entry, int]:
        layout = self.layout
        where = f"{where}: vdev"
        _, id, notifyid, dfeatures, gfeatures, config_len, status, num, *reserved = self.fields(
            where, layout.vdev, offset
        )
        _check_reserved(where, *reserved)
        if num > MAX_VRINGS:
            raise _bad(f"{where}: num_of_vrings is {num}, the limit is {MAX_VRINGS}")
        config = offset + layout.vdev.size + num * layout.vring.size
        if config > len(self.data):
            raise _bad(f"{where}: num_of_vrings is {num}, but the table ends before the last vring does")
        if config + config_len > len(self.data):
            raise _bad(
                f"{where}: config_len is {config_len:#x}, "
                f"the table has {len(self.data) - config:#x} bytes left"
            )
        vrings = tuple(
            self.vring(f"{where}: vring[{index}]", offset + layout.vdev.size + index * layout.vring.size)
            for index in range(num)
        )
        if id == VIRTIO_ID_RPMSG and num < MAX_VRINGS:
            # The kernel's rproc_virtio_remove() walks two vrings whatever the table says.
            self.warnings.append(
                f"{where}: num_of_vrings is {num}, rpmsg needs {MAX_VRINGS} (Linux crashes on stopping it)"
            )
        entry = Vdev(
            vrings,
            id,
            notifyid,
            dfeatures,
            gfeatures,
            status,
            self.data[config : config + config_len],
            offset,
        )
        return entry, config + config_len

    def vring(self, where: str, offset: int) -> Vring:
        vring = Vring(*self.fields(where, self.layout.vring, offset))
        if not 0 < vring.num <= MAX_VRING_NUM or vring.num & (vring.num - 1):
            raise _bad(f"{where}: num is {vring.num}, not a power of two from 1 to {MAX_VRING_NUM}")
        if vring.align == 0 or vring.align & (vring.align - 1):
            raise _bad(f"{where}: align is {vring.align}, not a power of two")
        if vring.da != ADDR_ANY:
            _check_wrap(where, "da", vring.da, vring.size)
            if vring.da % vring.align:
                self.warnings.append(f"{where}: da {vring.da:#x} is not a multiple of align {vring.align:#x}")
        return vring


def _bad(message: str) -> ResourceError:
    return ResourceError(f"resource table: {message}")


def _check_reserved(where: str, *reserved: int) -> None:
    if any(reserved):
        raise _bad(f"{where}: reserved is {', '.join(map(hex, reserved))}, not zero")


def _check_wrap(where: str, field: str, start: int, size: int) -> None:
    if start + size > 1 << 32:
        raise _bad(f"{where}: {field} {start:#x} + {size:#x} bytes leaves 32 bits")


def _check_names(entries: Iterable[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if isinstance(entry, Carveout):
            if entry.name in seen:
                raise _bad(f"two carveouts have the name {entry.name!r}")
            seen.add(entry.name)


class _Range(NamedTuple):
    da: int
    size: int
    kind: str
    name: str

    @property
    def end(self) -> int:
        return self.da + self.size


def _fixed_ranges(entries: Iterable[Entry]) -> Iterator[_Range]:
    """What the table places at a fixed da and for itself alone; a trace lies inside something else."""
    vdev = 0
    for entry in entries:
        if isinstance(entry, Carveout):
            if entry.len and entry.da != ADDR_ANY:
                yield _Range(entry.da, entry.len, "carveout", entry.name)
        elif isinstance(entry, Devmem):
            if entry.len:
                yield _Range(entry.da, entry.len, "devmem", entry.name)
        elif isinstance(entry, Vdev):
            for index, vring in enumerate(entry.vrings):
                if vring.da != ADDR_ANY:
                    yield _Range(vring.da, vring.size, "vring", f"vdev{vdev}vring{index}")
            vdev += 1


def _check_overlaps(entries: Iterable[Entry]) -> None:
    last: _Range | None = None
    for item in sorted(_fixed_ranges(entries)):
        if last and item.da < last.end and not _is_home(last, item) and not _is_home(item, last):
            raise _bad(
                f"{item.kind} {item.name!r} [{item.da:#x}, {item.end:#x}) overlaps "
                f"{last.kind} {last.name!r} [{last.da:#x}, {last.end:#x})"
            )
        if last is None or item.end > last.end:
            last = item


def _is_home(outer: _Range, inner: _Range) -> bool:
    """Whether `outer` is the carveout of the vring's own name (vdev0vring0), so the vring's memory."""
    return (
        (outer.kind, inner.kind, outer.name) == ("carveout", "vring", inner.name)
        and outer.da <= inner.da
        and inner.end <= outer.end
    )


def build(entries: Sequence[Entry], *, byteorder: ByteOrder = sys.byteorder) -> bytes:
    """The table that holds `entries` in this order, each on a word boundary; their `offset` is not looked at.

    Raises ResourceError for a field that does not fit and for everything that `parse` refuses.
    """
    layout = LAYOUTS[byteorder]
    blobs: list[bytes] = []
    offsets: list[int] = []
    at = layout.table.size + 4 * len(entries)
    for entry in entries:
        try:
            blob = _encode(layout, entry)
        except struct.error as exc:
            raise _bad(f"{entry!r}: {exc}") from None
        blobs.append(blob + bytes(-len(blob) % 4))
        offsets.append(at)
        at += len(blobs[-1])
    if at >= 1 << 32:
        raise _bad(f"{at:#x} bytes leave 32 bits")
    head = layout.table.pack(VERSION, len(entries), 0, 0) + b"".join(map(layout.word.pack, offsets))
    data = head + b"".join(blobs)
    parse(data, byteorder=byteorder)
    return data


def _encode(layout: Layout, entry: Entry) -> bytes:
    if isinstance(entry, Vendor | Unknown):
        return layout.word.pack(entry.type) + entry.data
    if isinstance(entry, Vdev):
        head = layout.vdev.pack(
            RSC_VDEV,
            entry.id,
            entry.notifyid,
            entry.dfeatures,
            entry.gfeatures,
            len(entry.config),
            entry.status,
            len(entry.vrings),
            0,
            0,
        )
        return head + b"".join(layout.vring.pack(*vring) for vring in entry.vrings) + entry.config
    name = entry.name.encode()
    if len(name) > 31 or b"\0" in name:
        raise _bad(f"name {entry.name!r} is longer than 31 bytes or holds a NUL")
    if isinstance(entry, Carveout):
        return layout.carveout.pack(RSC_CARVEOUT, entry.da, entry.pa, entry.len, entry.flags, 0, name)
    if isinstance(entry, Devmem):
        return layout.devmem.pack(RSC_DEVMEM, entry.da, entry.pa, entry.len, entry.flags, 0, name)
    return layout.trace.pack(RSC_TRACE, entry.da, entry.len, 0, name)


def build_vdev_table(
    *,
    num: int = 256,
    align: int = 0x1000,
    vring_da: Sequence[int] = (0x4000, 0x8000),
    notifyids: Sequence[int] = (1, 2),
    id: int = VIRTIO_ID_RPMSG,
    notifyid: int = 0,
    dfeatures: int = 1,
    config: bytes = b"",
    byteorder: ByteOrder = sys.byteorder,
) -> bytes:
    """A table with one vdev and nothing else; by default the 88 bytes that OpenAMP's generic machine writes.

    The first vring is the one that the device fills (the driver's rx).
    """
    if len(vring_da) != len(notifyids):
        raise _bad(f"{len(vring_da)} vring addresses, but {len(notifyids)} notifyids")
    vrings = tuple(Vring(da, align, num, ring) for da, ring in zip(vring_da, notifyids, strict=True))
    return build([Vdev(vrings, id, notifyid, dfeatures, config=config)], byteorder=byteorder)


class _Fields:
    """32-bit fields at fixed places in a buffer that others read and write at the same time.

    Each access is one load or store of the field's own size. `struct.pack_into` is not: it clears its target
    before it writes, and the other side would see the zero (a status of 0 is a reset).
    """

    __slots__ = ("_view", "byteorder")

    def __init__(self, view: memoryview, byteorder: ByteOrder) -> None:
        self._view = view
        self.byteorder: ByteOrder = byteorder

    def _get(self, at: int) -> int:
        value: int = self._view[at : at + 4].cast("I")[0]
        return value if self.byteorder == sys.byteorder else _swapped(value)

    def _set(self, at: int, field: str, value: int) -> None:
        if not 0 <= value <= 0xFFFFFFFF:
            raise _bad(f"{field} is {value}, not between 0 and 0xffffffff")
        self._view[at : at + 4].cast("I")[0] = value if self.byteorder == sys.byteorder else _swapped(value)


def _swapped(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little"), "big")


class VringView(_Fields):
    """One vring of a `VdevView`; properties as there."""

    __slots__ = ()

    @property
    def da(self) -> int:
        return self._get(0)

    @da.setter
    def da(self, value: int) -> None:
        self._set(0, "vring da", value)

    @property
    def align(self) -> int:
        return self._get(4)

    @align.setter
    def align(self, value: int) -> None:
        self._set(4, "vring align", value)

    @property
    def num(self) -> int:
        return self._get(8)

    @num.setter
    def num(self, value: int) -> None:
        self._set(8, "vring num", value)

    @property
    def notifyid(self) -> int:
        return self._get(12)

    @notifyid.setter
    def notifyid(self, value: int) -> None:
        self._set(12, "vring notifyid", value)

    @property
    def pa(self) -> int:
        return self._get(16)

    @pa.setter
    def pa(self, value: int) -> None:
        self._set(16, "vring pa", value)


class VdevView(_Fields):
    """The vdev entry at `offset` of the table in `buffer`, as it is now.

    Every property reads or writes the shared memory, one field at a time; values are what the other side
    wrote last, unchecked. `num_of_vrings` and `config_len` decide what may be touched: they are read and
    checked once, when the view is made. Reads and writes are thread-safe, and no memory barrier: order is the
    caller's affair.

    Raises ResourceError if there is no vdev at `offset`, if it is no multiple of 4 (accesses could tear), or
    if the entry does not fit into `buffer`.
    """

    __slots__ = ("config_len", "num_of_vrings")

    def __init__(self, buffer: Buffer, offset: int, *, byteorder: ByteOrder = sys.byteorder) -> None:
        view = memoryview(buffer).cast("B")
        size = LITTLE.vdev.size
        if offset % 4 or not 0 <= offset <= view.nbytes - size:
            raise _bad(f"no vdev fits at {offset:#x}: not a multiple of 4 from 0 to {view.nbytes - size:#x}")
        super().__init__(view[offset:], byteorder)
        kind = self._get(0)
        if kind != RSC_VDEV:
            raise _bad(f"the entry at {offset:#x} has type {kind}, not {RSC_VDEV} (vdev)")
        num, config_len = self._view[25], self._get(20)
        end = size + num * LITTLE.vring.size + config_len
        if num > MAX_VRINGS or end > self._view.nbytes:
            raise _bad(
                f"vdev at {offset:#x}: num_of_vrings is {num} (limit {MAX_VRINGS}), "
                f"config_len is {config_len:#x}; the buffer has {self._view.nbytes:#x} bytes there"
            )
        self.num_of_vrings = num
        self.config_len = config_len
        self._view = self._view[:end]

    @property
    def id(self) -> int:
        return self._get(4)

    @property
    def notifyid(self) -> int:
        return self._get(8)

    @notifyid.setter
    def notifyid(self, value: int) -> None:
        self._set(8, "notifyid", value)

    @property
    def dfeatures(self) -> int:
        return self._get(12)

    @dfeatures.setter
    def dfeatures(self, value: int) -> None:
        self._set(12, "dfeatures", value)

    @property
    def gfeatures(self) -> int:
        return self._get(16)

    @gfeatures.setter
    def gfeatures(self, value: int) -> None:
        self._set(16, "gfeatures", value)

    @property
    def status(self) -> int:
        """The virtio device status: one byte, read and written alone."""
        return self._view[24]

    @status.setter
    def status(self, value: int) -> None:
        if not 0 <= value <= 0xFF:
            raise _bad(f"status is {value}, not between 0 and 0xff")
        self._view[24] = value

    def vring(self, index: int) -> VringView:
        """The vring `index`, counted from 0. Raises IndexError for one that the entry does not have."""
        if not 0 <= index < self.num_of_vrings:
            raise IndexError(f"vring {index} of a vdev with {self.num_of_vrings}")
        start = LITTLE.vdev.size + index * LITTLE.vring.size
        return VringView(self._view[start : start + LITTLE.vring.size], self.byteorder)

    @property
    def config(self) -> memoryview:
        """The configuration space, as a view of the memory."""
        return self._view[LITTLE.vdev.size + self.num_of_vrings * LITTLE.vring.size :]
