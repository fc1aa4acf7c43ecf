"""`layout="modern"`: a block in shared memory that stands for the registers of a VIRTIO 1.x device.

A resource table has room for 32 feature bits and one status byte, which only the driver writes. This block has what a
VIRTIO 1.x transport needs: 64 feature bits, a FEATURES_OK that the device can refuse, a reset that the driver can see
done, DEVICE_NEEDS_RESET, and three addresses for each queue. docs/modern.md has the layout, byte by byte.

The fields are those of virtio-mmio (VIRTIO 4.2.2), but memory does not react to a write: there is nothing to select
with, each word has one writer, each end has a status word of its own, and whoever has written that rings the doorbell.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from rpmsgx.errors import ResourceError
from rpmsgx.notify.register import Register
from rpmsgx.virtio.layout import ALIGN, Layout
from rpmsgx.virtio.link import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NS,
    F_RING_PACKED,
    F_VERSION_1,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    PACKED_START,
    SUPPORTED_64,
    Ring,
    Session,
    VdevLink,
    Word,
    legal_num,
    ring_areas,
)
from rpmsgx.virtio.table import VIRTIO_ID_RPMSG, vring_size

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rpmsgx.memory.region import Region
    from rpmsgx.memory.space import AddressSpace
    from rpmsgx.virtio.link import Buffers

IDENTITY = int.from_bytes(b"rpxm", "little"), 1, VIRTIO_ID_RPMSG  # magic, version, device id
BLOCK_SIZE = 0x100
QUEUES = 2


# Offsets in the block. Words are 32 bits, little-endian; of a pair the first is the lower half.
DEVICE_FEATURES, DEVICE_STATUS, GENERATION = 0x10, 0x18, 0x1C
DRIVER_FEATURES, DRIVER_STATUS = 0x20, 0x28
QUEUE, QUEUE_STEP = 0x40, 0x40
NUM_MAX, NUM, READY, DESC_AREA, DRIVER_AREA, DEVICE_AREA = 0x00, 0x04, 0x08, 0x10, 0x18, 0x20


class ModernLayout(Layout):
    """As `Layout`, with the block where it has the resource table. The flags are what a device offers."""

    def table(self) -> bytes:
        """The block before any device has come: one that does not answer, and says that it must be reset."""
        block = bytearray(BLOCK_SIZE)
        struct.pack_into("<3I", block, 0, *IDENTITY)
        struct.pack_into("<I", block, DEVICE_STATUS, NEEDS_RESET)
        return bytes(block)

    @property
    def offered(self) -> int:
        """The features that a device offers."""
        return self.features | F_VERSION_1


class Queue(NamedTuple):
    """What the driver says of a queue."""

    num: int
    ready: int
    areas: tuple[int, int, int]  # addresses: descriptors, "driver area", "device area": avail and used ring, if split


class Block:
    """The block at the start of `buffer`, as it is now: each field is one load or store, unchecked.

    Status and generation are ordered: what was written before one of them is seen by whoever has read it.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._words = memoryview(buffer).cast("B")[:BLOCK_SIZE].cast("I")
        self._ordered = {at: Register(buffer, at) for at in (DEVICE_STATUS, GENERATION, DRIVER_STATUS)}

    def get(self, at: int) -> int:
        return _little(self._words[at // 4])

    def set(self, at: int, value: int) -> None:
        self._words[at // 4] = _little(value)

    def get64(self, at: int) -> int:
        return self.get(at) | self.get(at + 4) << 32

    def set64(self, at: int, value: int) -> None:
        self.set(at, value & 0xFFFFFFFF)
        self.set(at + 4, value >> 32)

    def load(self, at: int) -> int:
        """A status, or the generation: what is read after it is not older."""
        return _little(self._ordered[at].read())

    def store(self, at: int, value: int) -> None:
        """A status, or the generation: what was written before it is there."""
        self._ordered[at].write(_little(value))

    def queue(self, index: int) -> Queue:
        at = QUEUE + index * QUEUE_STEP
        desc, driver, device = (self.get64(at + area) for area in (DESC_AREA, DRIVER_AREA, DEVICE_AREA))
        return Queue(self.get(at + NUM), self.get(at + READY), (desc, driver, device))

    def set_queue(self, index: int, queue: Queue) -> None:
        at = QUEUE + index * QUEUE_STEP
        self.set(at + NUM, queue.num)
        for area, address in zip((DESC_AREA, DRIVER_AREA, DEVICE_AREA), queue.areas, strict=True):
            self.set64(at + area, address)
        self.set(at + READY, queue.ready)


def check_block(region: Region) -> None:
    """Raise ResourceError, with the region's name, unless `region` begins with a block of an rpmsg device."""
    if region.size < BLOCK_SIZE:
        raise ResourceError(f"{region.name}: size is {region.size:#x}, the block alone has {BLOCK_SIZE:#x} bytes")
    found = struct.unpack("<3I", bytes(region.view[:12]))
    for name, value, due in zip(("magic", "version", "device id"), found, IDENTITY, strict=True):
        if value != due:
            raise ResourceError(f'{region.name}: {name} is {value:#x}, not {due:#x}: not made with layout="modern"')


class ModernLink(VdevLink):
    """A link over the block at the start of a region. Its layout: the largest queues, and what a device offers.

    The driver asks and the device answers, in a word of its own; neither waits here, for the answer rings:

        driver's word                                  device's word
        0: reset                                       0, once it has let go of the queues
        ACKNOWLEDGE, DRIVER, then FEATURES_OK          the same, FEATURES_OK left out where it refuses
        DRIVER_OK, from the bus                        the same, once it has taken the queues

    A device that comes raises the generation behind what it offers and says NEEDS_RESET until it has seen the driver's
    word 0: so nobody goes on from what was agreed on with one that has died.
    """

    _layout: ModernLayout

    def _attach(
        self, space: AddressSpace, region: Region, offset: int, buffers: Buffers | None, table_end: int
    ) -> None:
        self.space = space
        self._region = region
        self._block = Block(region.buffer)
        self._buffers = buffers
        self._table_end = table_end
        self._said = 0  # this end's word
        self._begun = False  # with this peer
        self._generation = 0  # driver: of the device whose features were read
        self._features = 0
        self._why = ""  # driver: why it said FAILED

    def session(self) -> Session | None:
        doorbell = self.doorbell
        lost = doorbell.lost
        if self._closed or self.ended or not doorbell.connected:
            return None
        if lost != self._lost:
            self._lost = lost
            self._begun = False
        return self._ask() if self.role == "driver" else self._look()

    def _say(self, status: int, *, ring: bool = True) -> None:
        """Write this end's status word."""
        self._said = status
        self._block.store(DRIVER_STATUS if self.role == "driver" else DEVICE_STATUS, status)
        if ring:
            self.doorbell.kick(0)

    def needs_reset(self) -> None:
        """A device says NEEDS_RESET (VIRTIO 2.1.2-2), a driver FAILED (3.1.1-4)."""
        self._say(self._said | (FAILED if self.role == "driver" else NEEDS_RESET))

    # -- driver

    def _same_device(self) -> bool:
        return self._block.load(GENERATION) == self._generation

    def _ask(self) -> Session | None:
        block = self._block
        if not self._begun or self._said & DRIVER_OK:
            self._begun = True
            self._reset()
        word = block.load(DEVICE_STATUS)
        if self._said and (word & NEEDS_RESET or not self._same_device()):
            self._reset()
            word = block.load(DEVICE_STATUS)
        if self._said == 0:
            if word:
                return None
            self._accept()
            word = block.load(DEVICE_STATUS)
        if self._why:
            raise ResourceError(self._why)
        if not word:
            return None
        try:
            return self._settle(word)
        except ResourceError as error:
            self._fail(f"{self.url}: {error}")
            raise ResourceError(self._why) from None

    def _reset(self) -> None:
        for index in range(QUEUES):
            self._block.set(QUEUE + index * QUEUE_STEP + READY, 0)
        self._why = ""
        self._say(0)

    def _accept(self) -> None:
        """From a device that is reset to FEATURES_OK (VIRTIO 3.1.1)."""
        block = self._block
        self._generation = block.load(GENERATION)
        self._say(ACKNOWLEDGE, ring=False)
        self._say(ACKNOWLEDGE | DRIVER, ring=False)
        offered = block.get64(DEVICE_FEATURES)
        self._features = offered & SUPPORTED_64
        if not offered & F_VERSION_1:
            self._fail(f"{self.url}: the device offers features {offered:#x}, without VERSION_1 (bit 32)")
            return
        block.set64(DRIVER_FEATURES, self._features)
        self._say(ACKNOWLEDGE | DRIVER | FEATURES_OK)

    def _fail(self, why: str) -> None:
        self._why = why
        self.needs_reset()

    def _settle(self, word: int) -> Session:
        """What follows from the device's answer. DRIVER_OK is the bus's to write, once its buffers are posted."""
        if not word & FEATURES_OK:
            raise ResourceError(f"the device does not take features {self._features:#x}")
        shape = self._layout._replace(num=min(self._layout.num, *(self._num_max(index) for index in range(QUEUES))))
        self._buffers = buffers = shape.buffers
        if buffers.end > self._region.size:
            cure = "the end that makes the memory needs this driver's buffer_size and buffer_count"
            raise ResourceError(f"size is {self._region.size:#x}, a driver's buffers end at {buffers.end:#x}; {cure}")
        pools = [self._pool(index) for index in range(QUEUES)]
        rx, tx = (self._place(index, da, shape.num) for index, da in enumerate(shape.vring_da))
        self._said = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        return self._session(rx, tx)._replace(
            rx_pool=pools[0],
            tx_pool=pools[1],
            agreed=(
                self._agreed(GENERATION, 0xFFFFFFFF, self._generation),
                self._agreed(DEVICE_STATUS, FEATURES_OK | NEEDS_RESET, FEATURES_OK),
            ),
            status=(self._region.buffer, DRIVER_STATUS),  # its low byte
            driver_status=self._said,
        )

    def _num_max(self, index: int) -> int:
        """The largest ring that the device takes: a power of two, if it is split."""
        most = self._block.get(QUEUE + index * QUEUE_STEP + NUM_MAX)
        if most < 2:
            raise ResourceError(f"queue {index}: num max is {most}: the device has no such queue")
        return most if self._packed else 1 << most.bit_length() - 1

    def _place(self, index: int, da: int, num: int) -> Ring:
        region, offset = self.space.find_da(da, vring_size(num, ALIGN))
        ring = Ring.placed(region.buffer, offset, num, ALIGN, index, self._packed)
        desc, driver, device = (da + start - offset for _, start, _ in ring.parts())
        self._block.set_queue(index, Queue(num, 1, (desc, driver, device)))
        return ring

    # -- device

    def _look(self) -> Session | None:
        block = self._block
        if not self._begun:
            self._begun = True
            self._offer()
        status = block.load(DRIVER_STATUS)
        if status == 0:
            if self._said:
                self._say(0)
            return None
        if status & FAILED:
            return None
        if self._said == 0 and status & FEATURES_OK:
            self._answer()
        if self._said & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK:
            self.needs_reset()  # a session ended, and not by a reset
        if self._said != ACKNOWLEDGE | DRIVER | FEATURES_OK or not status & DRIVER_OK:
            return None
        try:
            rings = self._rings()
        except ResourceError:
            self.needs_reset()
            raise
        self._say(self._said | DRIVER_OK)
        agreed = FEATURES_OK | DRIVER_OK
        return self._session(rings[1], rings[0])._replace(
            regions=self._granted(rings),
            agreed=(self._agreed(DRIVER_STATUS, agreed | FAILED, agreed),),
            status=(self._region.buffer, DRIVER_STATUS),
        )

    def _offer(self) -> None:
        block = self._block
        block.set64(DEVICE_FEATURES, self._layout.offered)
        for index in range(QUEUES):
            block.set(QUEUE + index * QUEUE_STEP + NUM_MAX, self._layout.num)
        block.store(GENERATION, (block.load(GENERATION) + 1) & 0xFFFFFFFF)
        self._say(NEEDS_RESET)

    def _answer(self) -> None:
        """FEATURES_OK for a subset of what is offered that has VERSION_1, and for no other."""
        self._features = self._block.get64(DRIVER_FEATURES)
        taken = self._features & F_VERSION_1 and not self._features & ~self._layout.offered
        self._say(ACKNOWLEDGE | DRIVER | (FEATURES_OK if taken else 0))

    def _ring(self, index: int) -> Ring:
        num, ready, areas = self._block.queue(index)
        what = f"{self.url}: queue {index}: "
        if ready != 1:
            raise ResourceError(f"{what}ready is {ready}, not 1")
        if not legal_num(num, self._packed, self._layout.num):
            kind = "from 1" if self._packed else "a power of two"
            raise ResourceError(f"{what}num is {num}, not {kind} up to {self._layout.num}")
        places = []
        for address, (size, align) in zip(areas, ring_areas(num, self._packed), strict=True):
            if address % align:
                raise ResourceError(f"{what}area {address:#x} is no multiple of {align}")
            if address + size > self._region.size:
                raise ResourceError(f"{what}area {address:#x} + {size:#x} is beyond the {self._region.size:#x} bytes")
            places.append((self._region.buffer, address))
        desc, driver, device = places
        base = PACKED_START if self._packed else 0
        return Ring(*desc, num, ALIGN, index, driver, device, base, self._packed)

    # -- both

    @property
    def _packed(self) -> bool:
        return bool(self._features & F_RING_PACKED)

    def _session(self, rx: Ring, tx: Ring) -> Session:
        features = self._features
        return Session(
            rx=rx,
            tx=tx,
            name_service=bool(features & F_NS),
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            version_1=True,
            lost=self._lost_flag(),
            kind=self._region.kind,
        )

    def _agreed(self, at: int, mask: int, value: int) -> Word:
        return Word(self._region.buffer, at, _little(mask), _little(value))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.role == "driver":
            self._say(0)
        else:
            self.needs_reset()
        self.doorbell.close()
        del self._block  # its views would keep the memory mapped


def _little(word: int) -> int:
    """Between a little-endian word and one of this machine's."""
    return word if sys.byteorder == "little" else int.from_bytes(word.to_bytes(4, "little"), "big")
