"""OpenAMP's layout of a shared-memory link (its Linux "generic" machine), with sizes that can be chosen.

    0x0       resource table: one vdev, two vrings
    0x4000    vring 0, device to driver         256 descriptors, aligned to 0x1000
    0x8000    vring 1, driver to device
    0x10000   the driver's buffers: rx, then tx   2 x 256 x 512 bytes
    0x80000   end

Device address, physical address and offset are one. With other sizes the parts follow each other at multiples of 0x1000
in the same order, and memory for bulk data behind them: the table has it as a carveout "bulk".

A table says nothing of buffers: their size is the driver's affair, and a device reads it off the descriptors. With
`bufsz` the device says in the vdev's configuration space what it wants, as proposed for Linux in 2026 ("rpmsg:
virtio_rpmsg_bus: get buffer size from config space", v3). That is not settled, and NuttX has another use for the bit:

    u8 version = 1, u16 size = 11, u32 txbuf, u32 rxbuf     packed; bytes of a buffer; tx is what the device sends in
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rpmsgx.errors import ResourceError
from rpmsgx.virtio.link import (
    BUFFER_MAX,
    BUFFER_MIN,
    BUFFER_SIZE,
    F_BUFSZ,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NS,
    F_RING_PACKED,
    Buffers,
)
from rpmsgx.virtio.table import Carveout, Vdev, Vring, build, vring_size

ALIGN = 0x1000
DEFAULT_NUM = 256
BULK = "bulk"  # the carveout's name
MAX_SIZE = 1 << 30  # bytes of a link's memory
BUFSZ = struct.Struct("=BHII")


def _up(value: int) -> int:
    return (value + ALIGN - 1) & ~(ALIGN - 1)


class Layout(NamedTuple):
    """`num`: descriptors of each vring, a power of two from 2 to 32768. The flags are what the device offers.

    `sizes`: bytes of the driver's buffers, rx and tx. `counts`: how many; None: one for each descriptor. `bulk`: bytes
    beside them, for data that goes round the rings.
    """

    num: int = DEFAULT_NUM
    event_idx: bool = False
    indirect: bool = False
    name_service: bool = True
    sizes: tuple[int, int] = (BUFFER_SIZE, BUFFER_SIZE)
    counts: tuple[int, int] | None = None
    bulk: int = 0
    bufsz: bool = False
    packed: bool = False

    @property
    def features(self) -> int:
        """What a device offers, but for what its transport knows of; RING_PACKED is beyond a resource table's bits."""
        flags = F_NS * self.name_service | F_INDIRECT_DESC * self.indirect | F_EVENT_IDX * self.event_idx
        return flags | F_RING_PACKED * self.packed

    @property
    def vring_da(self) -> tuple[int, int]:
        second = 0x4000 + _up(vring_size(self.num, ALIGN))
        return 0x4000, max(0x8000, second)

    @property
    def buffers(self) -> Buffers:
        return self.buffers_behind(self.vring_da[1] + vring_size(self.num, ALIGN), self.num)

    @property
    def size(self) -> int:
        return max(0x80000, _up(self.buffers.end) + _up(self.bulk))

    def table(self) -> bytes:
        """The resource table; with the defaults, byte for byte what OpenAMP's server writes."""
        vrings = tuple(Vring(da, ALIGN, self.num, 1 + index) for index, da in enumerate(self.vring_da))
        config = BUFSZ.pack(1, BUFSZ.size, *self.sizes) if self.bufsz else b""
        vdev = Vdev(vrings, dfeatures=self.features | F_BUFSZ * self.bufsz, config=config)
        if not self.bulk:
            return build([vdev])
        da = _up(self.buffers.end)
        return build([vdev, Carveout(da, self.bulk, BULK, pa=da)])

    def buffers_behind(self, end: int, num: int, told: bytes | None = None) -> Buffers:
        """The driver's buffers, behind rings of `num` descriptors that end at `end`.

        `told`: the configuration space of a device whose offer of F_BUFSZ is taken. Raises ResourceError if it is not
        laid out as above, or asks for buffers that cannot be.
        """
        sizes = self.sizes if told is None else told_sizes(told)
        counts = self.counts or (num, num)
        return Buffers.of(max(0x10000, _up(end)), (min(counts[0], num), min(counts[1], num)), sizes, told is not None)


def told_sizes(config: bytes) -> tuple[int, int]:
    """What a device's configuration space says: bytes of the driver's rx and tx buffers. Raises ResourceError."""
    if len(config) < BUFSZ.size:
        raise ResourceError(f"F_BUFSZ: the configuration space has {len(config)} bytes, not {BUFSZ.size}")
    version, size, *sizes = BUFSZ.unpack_from(config)
    if (version, size) != (1, BUFSZ.size):
        raise ResourceError(f"F_BUFSZ: version {version} of {size} bytes, not 1 of {BUFSZ.size}; turn bufsz off")
    for each in sizes:
        check_size(each)
    return sizes[0], sizes[1]


def choose(
    num: int = DEFAULT_NUM,
    event_idx: bool = False,
    indirect: bool = False,
    buffer_size: int | tuple[int, int] = BUFFER_SIZE,
    buffer_count: int | tuple[int, int] | None = None,
    bulk: int = 0,
    bufsz: bool = False,
    packed: bool = False,
) -> Layout:
    """The layout that has these options of `rpmsgx.open()`. Raises ValueError for what cannot be."""
    check_num(num)
    sizes = pair("buffer_size", buffer_size)
    counts = None if buffer_count is None else pair("buffer_count", buffer_count)
    for size in sizes:
        check_size(size)
    for count in counts or ():
        if not 1 <= count <= num:
            raise ValueError(f"buffer_count must be 1 to {num} (num: one for each descriptor), not {count}")
    if not isinstance(bulk, int) or not 0 <= bulk <= MAX_SIZE:
        raise ValueError(f"bulk must be 0 to {MAX_SIZE:#x} bytes, not {bulk!r}")
    layout = Layout(num, bool(event_idx), bool(indirect), True, sizes, counts, bulk, bool(bufsz), bool(packed))
    if layout.size > MAX_SIZE:
        taken = f"the link takes {layout.size:#x} bytes of memory, the limit is {MAX_SIZE:#x}"
        raise ValueError(f"{taken}; choose a smaller num, buffer_size, buffer_count or bulk")
    return layout


def pair(what: str, value: object) -> tuple[int, int]:
    """One number for both directions, or (rx, tx) as the driver sees them. Raises ResourceError for anything else."""
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(type(each) is int for each in both):
        raise ResourceError(f"{what} must be a number, or two: (rx, tx), not {value!r}")
    return both[0], both[1]


def check_size(size: int) -> None:
    """Raise ResourceError unless `size` can be the bytes of a buffer."""
    if not BUFFER_MIN <= size <= BUFFER_MAX or size % 16:
        raise ResourceError(f"a buffer of {size} bytes: it must have {BUFFER_MIN} to {BUFFER_MAX}, a multiple of 16")


def check_num(num: int) -> int:
    """Raise ValueError unless `num` can be the size of a vring here."""
    if not isinstance(num, int) or num & (num - 1) or not 2 <= num <= 32768:
        raise ValueError(f"num must be a power of two from 2 to 32768, not {num!r}")
    return num
