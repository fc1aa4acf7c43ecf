"""What a bus needs to know of the place it lives in: where the rings are, who the peer is, whether it is there.

A `Link` is one end of a virtio device, in one role. The bus asks it for a `Session` (from DRIVER_OK until a reset or
until one end goes), and whether that session still holds. `VdevLink` does this for every link whose rings are
described by a vdev entry of a resource table: files, memfds, remote cores.

Features of a resource table are 32 bits, so these rings are legacy (VIRTIO 2.7.2, 2.7.3): native byte order, one
piece each, no FEATURES_OK step (3.1.2).
"""

from __future__ import annotations

import sys
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from rpmsgx.errors import ResourceError, StateError
from rpmsgx.memory.carveout import Carveout
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.virtio.table import ADDR_ANY, VdevView, vring_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rpmsgx.memory.region import Region
    from rpmsgx.memory.space import AddressSpace

Role = Literal["driver", "device"]

F_NS = 1 << 0
F_BUFSZ = 1 << 1  # proposed: the configuration space says how large the buffers are (rpmsgx.virtio.layout)
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_RING_PACKED = 1 << 34
SUPPORTED = F_NS | F_INDIRECT_DESC | F_EVENT_IDX
SUPPORTED_64 = SUPPORTED | F_VERSION_1 | F_RING_PACKED  # where there are more than 32 bits

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128

_OK = int.from_bytes(bytes((DRIVER_OK, 0, 0, 0)), sys.byteorder)  # in the word that begins with the status byte

BUFFER_SIZE = 512  # bytes of an rpmsg buffer, header included (Linux, OpenAMP)
BUFFER_MIN, BUFFER_MAX = 16, 65552  # the header; with the longest message that it can tell of, a multiple of 16

PACKED_START = 0x8000_8000  # the base of a packed ring that starts: slot 0 twice, with wrap counters 1 (VIRTIO 2.8.1)
CACHE_LINE = 64


def legal_num(num: int, packed: bool, most: int = 32768) -> bool:
    """Whether a ring can have `num` descriptors: a power of two, unless it is packed (VIRTIO 2.7, 2.8.10.1)."""
    return 0 < num <= most and (packed or not num & (num - 1))


def ring_areas(num: int, packed: bool) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Size and alignment of a ring's three parts: descriptors, the driver's and the device's (VIRTIO 2.7, 2.8)."""
    if packed:
        return (16 * num, 16), (4, 4), (4, 4)
    return (16 * num, 16), (6 + 2 * num, 2), (6 + 8 * num, 4)


class Ring(NamedTuple):
    """A vring: `offset` bytes into `buffer`, `num` descriptors, the used ring at a multiple of `align`.

    With `avail` and `used`, places (buffer, offset) of their own, only the descriptors are at `offset`. `base`: the
    index of the avail ring that a device goes on from.

    A `packed` one has both: the event suppression structures of driver and device. Its base is as in vhost-user: bits 0
    to 14 the next slot to take, 16 to 30 the next to give back, each with its wrap counter in the bit above.
    """

    buffer: object
    offset: int
    num: int
    align: int
    notifyid: int
    avail: tuple[object, int] | None = None
    used: tuple[object, int] | None = None
    base: int = 0
    packed: bool = False

    @classmethod
    def placed(cls, buffer: object, offset: int, num: int, align: int, notifyid: int, packed: bool) -> Ring:
        """A driver's, which starts, in the room of a legacy one (`vring_size`) at `offset`, a multiple of 64.

        A split one lies like that one. Of a packed one, driver and device write to cache lines of their own.
        """
        if packed:
            driver = (offset + 16 * num + CACHE_LINE - 1) & -CACHE_LINE
            device = driver + CACHE_LINE
        else:
            driver = offset + 16 * num
            device = offset + vring_size(num, align) - (6 + 8 * num)
        base = PACKED_START if packed else 0
        return cls(buffer, offset, num, align, notifyid, (buffer, driver), (buffer, device), base, packed)

    def parts(self) -> list[tuple[object, int, int]]:
        """(buffer, start, end) of each piece of memory that it takes."""
        if self.avail is None or self.used is None:
            return [(self.buffer, self.offset, self.offset + vring_size(self.num, self.align))]
        places = (self.buffer, self.offset), self.avail, self.used
        areas = ring_areas(self.num, self.packed)
        return [(buffer, at, at + size) for (buffer, at), (size, _) in zip(places, areas, strict=True)]


class Pool(NamedTuple):
    """The driver's buffers of one direction: `count` of `size` bytes; descriptors carry `addr`."""

    buffer: object
    offset: int
    addr: int
    size: int
    count: int  # type: ignore[assignment]


class Word(NamedTuple):
    """32 aligned bits at `offset` of `buffer`, in this machine's byte order, which are `value` under `mask`."""

    buffer: object
    offset: int
    mask: int
    value: int


class Session(NamedTuple):
    """What holds from DRIVER_OK until the end of it. `rx` and `tx` are seen from this end."""

    rx: Ring
    tx: Ring
    rx_pool: Pool | None = None  # driver
    tx_pool: Pool | None = None
    regions: tuple[tuple[object, int, int, int], ...] = ()  # device: (buffer, offset, address, size)
    agreed: tuple[Word, ...] = ()  # once one of them has changed, it is over
    status: tuple[object, int] | None = None  # the device status byte: (buffer, offset)
    driver_status: int = 0  # driver: what it writes there once everything is in place
    name_service: bool = True
    event_idx: bool = False
    indirect: bool = False
    version_1: bool = False
    lost: tuple[object, int] | None = None  # a byte that is not 0 once the memory has gone: (buffer, offset)
    kind: str = "cached"
    resume: bool = False  # driver: go on with the rings as they are
    adopt_used: bool = False  # device: the driver may have filled the used ring before DRIVER_OK
    whole_used_len: bool = False  # device: return descriptors' lengths as used.len
    # Device, packed rings: where it leaves how far it came, once the session is over: two native uint32 at (buffer,
    # offset), of rx and of tx: the next slot to give back, with its wrap counter in bit 15.
    positions: tuple[object, int] | None = None


class Link:
    """One end of a link. Not thread-safe: the bus calls it under its lock."""

    role: Role
    url: str
    doorbell: Doorbell
    in_process = False  # the peer lives in this process: spinning would only keep it from running
    gone = "the peer closed it or was reset"  # why alive() became false
    ended = False  # alive() is false for good: there will be no other session
    space: AddressSpace | None = None  # what both ends can reach, while it is known
    named: Mapping[str, tuple[int, int]] = MappingProxyType({})  # da and size of its carveouts

    def session(self) -> Session | None:
        """The next session; None while the peer is not ready for one. A driver resets the device first."""
        raise NotImplementedError

    def alive(self) -> bool:
        """Whether the session that was handed out last still holds, as far as its `agreed` does not tell."""
        raise NotImplementedError

    def present(self) -> bool:
        """Whether there is a peer that could still take messages."""
        return self.doorbell.connected

    def carveout(self, name: str) -> Carveout:
        """What both ends know by `name`. Raises ResourceError if there is none, StateError while none is known."""
        if self.space is None:
            raise StateError("the memory of this link is not known before its peer has come")
        if name not in self.named:
            known = ", ".join(map(repr, self.named)) or "none"
            raise ResourceError(f"{self.url}: there is no carveout {name!r}; there is {known}")
        return Carveout(self.space, name, *self.named[name])

    def needs_reset(self) -> None:
        """The peer broke a rule: say so where the transport lets this end say so (VIRTIO 2.1.2-2)."""

    def hang_up(self) -> None:
        """There will be no other session: let the peer see it."""
        self.doorbell.close()

    def close(self) -> None:
        """End the session for good: a driver resets the device. Gives up descriptors and memory. Idempotent."""
        raise NotImplementedError

    def close_descriptors(self) -> None:
        """Give up this process's descriptors and touch nothing that is shared: after a fork, in the child."""
        self.doorbell.close()


class Buffers(NamedTuple):
    """Where a driver's buffers lie: `count` of `size` bytes for rx at `da`, and those for tx behind them.

    `tx`: count and size of those, where they differ. `bufsz`: the device has said how large they are to be.
    """

    da: int
    count: int  # type: ignore[assignment]
    size: int = BUFFER_SIZE
    tx: tuple[int, int] | None = None
    bufsz: bool = False

    @classmethod
    def of(cls, da: int, counts: tuple[int, int], sizes: tuple[int, int], bufsz: bool = False) -> Buffers:
        """By (rx, tx) of each."""
        rx, tx = zip(counts, sizes, strict=True)
        return cls(da, *rx, tx=None if tx == rx else tx, bufsz=bufsz)

    @property
    def pools(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """da, count and size of the buffers for rx, and for tx."""
        count, size = self.tx or (self.count, self.size)
        return (self.da, self.count, self.size), (self.da + self.count * self.size, count, size)

    @property
    def end(self) -> int:
        da, count, size = self.pools[1]
        return da + count * size


def overlapping(parts: list[tuple[object, int, int]]) -> bool:
    """Whether two of these pieces of memory, each (buffer, start, end), share a byte."""
    places = sorted((id(buffer), start, end) for buffer, start, end in parts)
    return any(one == other and start < end for (one, _, end), (other, start, _) in pairwise(places))


def granted(
    regions: Iterable[Region], taken: list[tuple[object, int, int]], desc_addr: Literal["da", "pa"]
) -> tuple[tuple[object, int, int, int], ...]:
    """A session's regions: what is left of these once the `taken` pieces are out of a descriptor's reach."""
    grants = []
    for region in regions:
        base = region.da if desc_addr == "da" else region.pa
        start = 0
        holes = sorted((low, high) for buffer, low, high in taken if buffer is region.buffer)
        for low, high in [*holes, (region.size, region.size)]:
            if low > start:
                grants.append((region.buffer, start, base + start, low - start))
            start = max(start, high)
    grants.sort(key=lambda grant: -grant[3])  # buffers most likely lie in the largest: it is looked at first
    return tuple(grants)


class VdevLink(Link):
    """A link over the vdev entry at `offset` of a resource table in `region`.

    Addresses of vrings in the table are device addresses of `space`; descriptors carry physical addresses, or device
    addresses where `desc_addr` is "da". `buffers` is for a driver. `named`: carveouts, as (da, size). A device can use
    all of `space` but the table's region up to `table_end` and the rings themselves. Nothing is read back that this end
    wrote.

    `per_connection`: a session belongs to one connection of the doorbell. The driver sets the rings up anew for each,
    and a device uses them once it was rung on this one: a DRIVER_OK that it finds may be of the one before.
    """

    device_resets = False  # a device that goes has no other way to say so than to put the status back

    def __init__(
        self,
        role: Role,
        url: str,
        *,
        space: AddressSpace,
        region: Region,
        offset: int,
        doorbell: Doorbell,
        buffers: Buffers | None = None,
        desc_addr: Literal["da", "pa"] = "pa",
        table_end: int = 0,
        named: Mapping[str, tuple[int, int]] | None = None,
        in_process: bool = False,
        per_connection: bool = False,
        resume: bool = False,
    ) -> None:
        self.role = role
        self.url = url
        self.doorbell = doorbell
        self.in_process = in_process
        self._desc_addr = desc_addr
        self.space: AddressSpace = space
        self._per_connection = per_connection
        self._resume = resume
        self._lost = doorbell.lost
        self._closed = False
        self.named = named or {}
        self._attach(space, region, offset, buffers, table_end)

    def _attach(
        self, space: AddressSpace, region: Region, offset: int, buffers: Buffers | None, table_end: int
    ) -> None:
        self.space = space
        self._region = region
        self._offset = offset
        self._vdev = VdevView(region.buffer, offset)
        self._buffers = buffers
        self._table_end = table_end
        if self._vdev.num_of_vrings != 2:
            raise ResourceError(f"an rpmsg vdev has 2 vrings, this one {self._vdev.num_of_vrings}")

    def session(self) -> Session | None:
        doorbell = self.doorbell
        lost = doorbell.lost
        if self._closed or self.ended:
            return None
        if self.role == "driver":
            if self._per_connection and not doorbell.connected:
                return None
        else:
            if not doorbell.connected or (self._per_connection and not doorbell.rang):
                return None
            if not self._vdev.status & DRIVER_OK:
                return None
        self._lost = lost
        return self._driver_session() if self.role == "driver" else self._device_session(self._vdev.gfeatures)

    def _driver_session(self) -> Session:
        # VIRTIO 3.1.1 as far as a legacy device has it (3.1.2): reset, ACKNOWLEDGE, DRIVER, features; DRIVER_OK is
        # the bus's to write, once its buffers are posted.
        if self._buffers is None:
            raise ResourceError("a driver needs memory for its buffers")
        vdev = self._vdev
        resume, self._resume = self._resume, False
        supported = SUPPORTED | F_BUFSZ * self._buffers.bufsz
        if resume:
            features = vdev.gfeatures & vdev.dfeatures & supported
        else:
            vdev.status = 0
            vdev.status = ACKNOWLEDGE
            vdev.status = ACKNOWLEDGE | DRIVER
            features = vdev.dfeatures & supported
            vdev.gfeatures = features
        try:
            rings = self._rings()
            pools = [self._pool(i) for i in (0, 1)]
        except ResourceError:
            if not resume:
                vdev.status = ACKNOWLEDGE | DRIVER | FAILED  # 3.1.1-4; the next try begins with a reset
            raise
        return Session(
            rx=rings[0],
            tx=rings[1],
            rx_pool=pools[0],
            tx_pool=pools[1],
            agreed=(self._word(24, _OK, _OK),) if self.device_resets else (),
            status=self._status(),
            driver_status=ACKNOWLEDGE | DRIVER | DRIVER_OK,
            name_service=bool(features & F_NS),
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            lost=self._lost_flag(),
            kind=self._region.kind,
            resume=resume,
        )

    def _device_session(self, features: int) -> Session:
        agreed = self._agreement()
        features &= self._vdev.dfeatures
        rings = self._rings()
        return Session(
            rx=rings[1],
            tx=rings[0],
            regions=self._granted(rings),
            agreed=agreed,
            status=self._status(),
            name_service=bool(features & F_NS),
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            lost=self._lost_flag(),
            kind=self._region.kind,
            adopt_used=True,
            whole_used_len=True,
        )

    def _status(self) -> tuple[object, int]:
        return self._region.buffer, self._offset + 24

    def _lost_flag(self) -> tuple[object, int] | None:
        flag = self._region.lost_flag
        return None if flag is None else (flag, 0)

    def _rings(self) -> list[Ring]:
        rings = [self._ring(i) for i in (0, 1)]
        if overlapping([*rings[0].parts(), *rings[1].parts(), (self._region.buffer, 0, self._table_end)]):
            raise ResourceError("the vrings overlap each other or the resource table")
        return rings

    def _ring(self, index: int) -> Ring:
        vring = self._vdev.vring(index)
        da, num, align = vring.da, vring.num, vring.align
        what = f"vring {index}: "
        if not legal_num(num, packed=False):
            raise ResourceError(f"{what}num is {num}, not a power of two from 1 to 32768")
        if align < 4 or align & (align - 1) or align > 1 << 30:
            raise ResourceError(f"{what}align is {align}, not a power of two from 4")
        if da == ADDR_ANY:
            raise ResourceError(f"{what}da is ANY: nobody has placed it yet")
        region, offset = self.space.find_da(da, vring_size(num, align))
        return Ring(region.buffer, offset, num, align, vring.notifyid)

    def _pool(self, index: int) -> Pool:
        assert self._buffers is not None
        da, count, size = self._buffers.pools[index]
        region, offset = self.space.find_da(da, count * size)
        base = region.da if self._desc_addr == "da" else region.pa
        return Pool(region.buffer, offset, base + offset, size, count)

    def _granted(self, rings: list[Ring]) -> tuple[tuple[object, int, int, int], ...]:
        """The space less the table and the rings: a descriptor that points there breaks the queue."""
        taken = [*rings[0].parts(), *rings[1].parts(), (self._region.buffer, 0, self._table_end)]
        return granted(self.space.regions, taken, self._desc_addr)

    @property
    def ended(self) -> bool:  # type: ignore[override]
        return self._region.lost

    def alive(self) -> bool:
        return not (self._closed or self.ended or self._lost != self.doorbell.lost)

    def _agreement(self) -> tuple[Word, ...]:
        """What the driver chose: the accepted features, where the rings are, and DRIVER_OK."""
        words = self._region.view[self._offset : self._offset + 68].cast("I")
        chosen = (self._word(at, 0xFFFFFFFF, words[at // 4]) for at in (16, *range(28, 68, 4)))
        return self._word(24, _OK, _OK), *chosen

    def _word(self, at: int, mask: int, value: int) -> Word:
        """The one `at` bytes into the vdev entry."""
        return Word(self._region.buffer, self._offset + at, mask, value)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.role == "driver":
            self._vdev.status = 0
            self.doorbell.kick(0)
        self.doorbell.close()
        del self._vdev  # its view would keep the memory mapped
