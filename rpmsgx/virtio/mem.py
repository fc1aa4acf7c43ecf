"""`mem:ADDRESS`: a link in physical memory that both ends see, without a remoteproc.

The memory has OpenAMP's layout, as a shared file has: a resource table at its start, and all addresses counted from
there. Nobody owns the memory, so one end has to write the table (create=True); the other finds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rpmsgx.errors import ResourceError
from rpmsgx.memory.devmem import map_devmem
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.notify.timer import PolledDoorbell
from rpmsgx.virtio.file import check_table
from rpmsgx.virtio.link import VdevLink

if TYPE_CHECKING:
    from rpmsgx.memory.region import Kind, Region
    from rpmsgx.virtio.layout import Layout
    from rpmsgx.virtio.link import Role


class RegionLink(VdevLink):
    """One end of a link in `region`, whose da is 0. It owns region and doorbell, even if it cannot be made of them."""

    device_resets = True

    def __init__(
        self, role: Role, url: str, region: Region, *, layout: Layout, doorbell: Doorbell, create: bool
    ) -> None:
        try:
            space = AddressSpace(region)
            if create:
                if layout.size > region.size:
                    raise ResourceError(f"{url}: size is {region.size:#x}, a link takes {layout.size:#x}")
                space.write(0, layout.table())
            try:
                found = check_table(region, role, layout)
            except ResourceError as error:
                raise ResourceError(f"{error}; one end has to write the table: create=True") from None
            super().__init__(
                role,
                url,
                space=space,
                region=region,
                doorbell=doorbell,
                desc_addr="da",
                **found._asdict(),
            )
        except BaseException:
            doorbell.close()
            region.close()
            raise

    def close(self) -> None:
        if self._closed:
            return
        if self.role == "device":
            self._vdev.status = 0
            self.doorbell.kick(0)
        super().close()
        self._region.close()


def the_doorbell(doorbell: Doorbell | str) -> Doorbell:
    """`doorbell`, or one that is polled for "none"."""
    if isinstance(doorbell, Doorbell):
        return doorbell
    if doorbell != "none":
        raise ValueError(f'doorbell must be "none" or a Doorbell (rpmsgx.notify.uio has some), not {doorbell!r}')
    return PolledDoorbell()


def open_link(
    address: str,
    role: Role,
    *,
    layout: Layout,
    size: int | None = None,
    kind: Kind = "uncached",
    doorbell: Doorbell | str = "none",
    create: bool = False,
) -> RegionLink:
    """Open one end of `mem:ADDRESS`.

    `size`: bytes of the memory (default: what a link of this `layout` takes). `kind`: "cached" where the hardware keeps
    the caches coherent. `doorbell`: a Doorbell, which the link owns then, or "none": both ends look every millisecond.
    `create`: write the table, which resets the other end. Only one process may have each end; nothing checks that.

    Raises ResourceError for memory that cannot be had (as `map_devmem`) or is no such link, ValueError, OSError.
    """
    try:
        pa = int(address, 0)
    except ValueError:
        raise ValueError(f"mem:{address}: write a physical address, such as mem:0x92000000") from None
    bell = the_doorbell(doorbell)
    try:
        region = map_devmem(f"mem:{address}", pa, layout.size if size is None else size, da=0, kind=kind)
    except BaseException:
        bell.close()
        raise
    return RegionLink(role, f"mem:{address}", region, layout=layout, doorbell=bell, create=create)
