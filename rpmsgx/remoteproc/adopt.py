"""What a host before has left in the memory of a remote that runs: its resource table, and the rings.

Nothing is written here, and everything that is read is checked: the host may have died half way through anything, and
the remote may write what it likes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rpmsgx.errors import ResourceError, StateError
from rpmsgx.virtio.link import DRIVER_OK
from rpmsgx.virtio.table import ADDR_ANY, LAYOUTS, VdevView, parse, vring_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rpmsgx.memory.space import AddressSpace
    from rpmsgx.remoteproc.hold import Saved
    from rpmsgx.remoteproc.platform import Image, Platform
    from rpmsgx.remoteproc.resources import Plan, Resources
    from rpmsgx.virtio.table import ResourceTable, Vdev


def find_table(
    platform: Platform, resources: Resources, image: Image | None, saved: Saved | None
) -> tuple[ResourceTable | None, int | None]:
    """The table as the firmware has it, and its da, as `resources.plan` takes them.

    It is known from what the host before has saved, or from the firmware; else a table in memory that nobody has used
    yet is its own witness. Raises StateError where there is none of these.
    """
    if saved is not None:
        return parse(saved.clean), saved.table_da
    if image is not None:
        return resources.read_table(image)
    if platform.loaded_table is None:
        raise StateError(
            "nothing tells where the resource table is: neither the platform, nor a host before, nor a firmware; give "
            "the firmware that runs"
        )
    da, size = platform.loaded_table
    table = parse(platform.space.read(da, size))
    if any(vdev.status or vdev.gfeatures for vdev in table.vdevs):
        raise StateError(
            f"the resource table at {da:#x} was used by a host before, and nothing tells what it was; give the "
            "firmware that runs, or stop the remote and boot it"
        )
    return table, da


def check_table(space: AddressSpace, plan: Plan) -> None:
    """Raise ResourceError unless the table in memory is the clean one, but for what a host fills in."""
    if plan.table_da is None:
        return
    loaded, ours = bytearray(space.read(plan.table_da, len(plan.clean))), bytearray(plan.clean)
    for start, end in _written_by_hosts(parse(plan.clean)):
        loaded[start:end] = ours[start:end] = bytes(end - start)
    if loaded != ours:
        at = next(i for i, pair in enumerate(zip(loaded, ours, strict=True)) if pair[0] != pair[1])
        raise ResourceError(
            f"the resource table at {plan.table_da:#x} is not the firmware's: byte {at:#x} is {loaded[at]:#04x}, not "
            f"{ours[at]:#04x}"
        )


def _written_by_hosts(table: ResourceTable) -> Iterator[tuple[int, int]]:
    """The fields of this clean table that a host fills in, as ranges of it."""
    layout = LAYOUTS[table.byteorder]
    for carveout in table.carveouts:
        if carveout.da == ADDR_ANY:
            yield carveout.offset + 4, carveout.offset + 8
        yield carveout.offset + 8, carveout.offset + 16  # pa, len
    for trace in table.traces:
        if trace.da == ADDR_ANY:
            yield trace.offset + 4, trace.offset + 8
    for vdev in table.vdevs:
        at = vdev.offset
        yield at + 8, at + 12  # notifyid
        yield at + 16, at + 20  # gfeatures
        yield at + 24, at + 25  # status
        at += layout.vdev.size
        for vring in vdev.vrings:
            if vring.da == ADDR_ANY:
                yield at, at + 4
            yield at + 12, at + 20  # notifyid, pa
            at += layout.vring.size
        yield at, at + len(vdev.config)


def driven(space: AddressSpace, plan: Plan) -> bool:
    """Whether a driver has left a device that looks live."""
    return any(_vdev(space, plan, placed.offset).status & DRIVER_OK for placed in plan.vdevs)


def check_places(space: AddressSpace, plan: Plan) -> None:
    """Raise unless the rings lie where this host would put them: it goes on with its own buffers."""
    if plan.table_da is None:
        return
    ours = parse(plan.published)
    theirs = parse(space.read(plan.table_da, len(plan.published)))
    if not driven(space, plan):
        raise StateError("no host was using the remote: there is nothing to resume; attach without")
    for index, (mine, found) in enumerate(zip(ours.vdevs, theirs.vdevs, strict=True)):
        for number, (a, b) in enumerate(zip(mine.vrings, found.vrings, strict=True)):
            if (a.da, a.notifyid) != (b.da, b.notifyid):
                raise ResourceError(
                    f"vring {number} of vdev {index} is at {b.da:#x} (notifyid {b.notifyid}), this host would have it "
                    f"at {a.da:#x} (notifyid {a.notifyid}): the hosts have different boards; attach without resume"
                )


def lost_messages(space: AddressSpace, plan: Plan) -> int:
    """How many messages lie in the rings, sent by either end and not taken by the other. 0 where they make no sense."""
    if plan.table_da is None:
        return 0
    table = parse(space.read(plan.table_da, len(plan.published)))
    return sum(_in_rings(space, vdev) for vdev in table.vdevs)


def _in_rings(space: AddressSpace, vdev: Vdev) -> int:
    if len(vdev.vrings) != 2 or any(vring.da == ADDR_ANY for vring in vdev.vrings):
        return 0
    count = 0
    for from_device, vring in zip((True, False), vdev.vrings, strict=True):
        space.find_da(vring.da, vring_size(vring.num, vring.align))
        used = (16 * vring.num + 6 + 2 * vring.num + vring.align - 1) // vring.align * vring.align
        avail_idx, used_idx = (
            struct.unpack("=H", space.read(vring.da + at + 2, 2))[0] for at in (16 * vring.num, used)
        )
        # A driver posts a buffer again once it has taken the message: all but `num` of those posted were taken.
        waiting = (used_idx - avail_idx + vring.num if from_device else avail_idx - used_idx) & 0xFFFF
        count += waiting if waiting <= vring.num else 0
    return count


def _vdev(space: AddressSpace, plan: Plan, offset: int) -> VdevView:
    assert plan.table_da is not None
    region, at = space.find_da(plan.table_da + offset)
    return VdevView(region.buffer, at)


def reset(space: AddressSpace, plan: Plan) -> None:
    """Status 0 on every vdev: VIRTIO's word for "forget the rings"."""
    for placed in plan.vdevs:
        _vdev(space, plan, placed.offset).status = 0

