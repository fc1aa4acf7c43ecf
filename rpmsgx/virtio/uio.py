"""`uio:DEVICE[:MAP]`: a link in the memory of a UIO device, as rpmsgx.virtio.mem describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rpmsgx.memory.uio import map_uio
from rpmsgx.virtio.mem import RegionLink, the_doorbell

if TYPE_CHECKING:
    from rpmsgx.memory.region import Kind
    from rpmsgx.notify.doorbell import Doorbell
    from rpmsgx.virtio.layout import Layout
    from rpmsgx.virtio.link import Role


def open_link(
    address: str,
    role: Role,
    *,
    layout: Layout,
    size: int | None = None,
    offset: int = 0,
    kind: Kind = "uncached",
    doorbell: Doorbell | str = "none",
    create: bool = False,
) -> RegionLink:
    """Open one end of `uio:DEVICE[:MAP]`: name or path of the device, name or number of its memory if it has several.

    `offset`, `size`: the part of the memory to be used (default: all). The rest, and the errors, as for `mem:`.
    """
    device, _, chosen = address.partition(":")
    url = f"uio:{address}"
    bell = the_doorbell(doorbell)
    try:
        region = map_uio(url, device, size, map=chosen or None, offset=offset, da=0, kind=kind)
    except BaseException:
        bell.close()
        raise
    return RegionLink(role, url, region, layout=layout, doorbell=bell, create=create)
