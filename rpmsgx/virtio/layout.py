"""OpenAMP's layout of a shared-memory link (its Linux "generic" machine), with sizes that can be chosen.

    0x0       resource table: one vdev, two vrings
    0x4000    vring 0, device to driver         256 descriptors, aligned to 0x1000
    0x8000    vring 1, driver to device
    0x10000   the driver's buffers: rx, then tx   2 x 256 x 512 bytes
    0x80000   end

Device address, physical address and offset are one. With another number of descriptors or another buffer size the
parts follow each other at multiples of 0x1000 in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

from rpmsgx.virtio.link import BUFFER_SIZE, F_EVENT_IDX, F_INDIRECT_DESC, F_NS, Buffers
from rpmsgx.virtio.table import build_vdev_table, vring_size

ALIGN = 0x1000
DEFAULT_NUM = 256


def _up(value: int) -> int:
    return (value + ALIGN - 1) & ~(ALIGN - 1)


class Layout(NamedTuple):
    """`num`: descriptors of each vring, a power of two from 2 to 32768. The flags are what the device offers."""

    num: int = DEFAULT_NUM
    event_idx: bool = False
    indirect: bool = False
    name_service: bool = True

    @property
    def table_size(self) -> int:
        return 88

    @property
    def vdev_offset(self) -> int:
        return 0x14

    @property
    def vring_da(self) -> tuple[int, int]:
        second = 0x4000 + _up(vring_size(self.num, ALIGN))
        return 0x4000, max(0x8000, second)

    @property
    def buffers(self) -> Buffers:
        return buffers_behind(self.vring_da[1] + vring_size(self.num, ALIGN), self.num)

    @property
    def size(self) -> int:
        return max(0x80000, self.buffers.da + 2 * self.buffers.count * self.buffers.size)

    def table(self) -> bytes:
        """The resource table; with the defaults, byte for byte what OpenAMP's server writes."""
        features = F_NS * self.name_service | F_INDIRECT_DESC * self.indirect | F_EVENT_IDX * self.event_idx
        return build_vdev_table(num=self.num, align=ALIGN, vring_da=self.vring_da, dfeatures=features)


def buffers_behind(end: int, count: int) -> Buffers:
    """The driver's buffers, `count` for each direction, behind rings that end at `end`."""
    return Buffers(max(0x10000, _up(end)), count, BUFFER_SIZE)


def check_num(num: int) -> int:
    """Raise ValueError unless `num` can be the size of a vring here."""
    if not isinstance(num, int) or num & (num - 1) or not 2 <= num <= 32768:
        raise ValueError(f"num must be a power of two from 2 to 32768, not {num!r}")
    return num
