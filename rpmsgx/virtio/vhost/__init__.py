"""`vhost-user:PATH`: rings that a hypervisor, or another process, hands over a Unix socket.

The protocol is QEMU's (docs/interop/vhost-user.rst). The driver's end is the front-end, which owns memory and rings;
the device's end is the back-end. So a device here serves the virtio-rpmsg driver of a guest's kernel.

    protocol.py    messages, and the socket that carries them
    connection.py  what both ends have in common
    backend.py     the device's end
    frontend.py    the driver's end
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rpmsgx.virtio.link import F_VERSION_1

if TYPE_CHECKING:
    from rpmsgx.virtio.layout import Layout
    from rpmsgx.virtio.link import Link, Role


def open_link(
    address: str,
    role: Role,
    *,
    layout: Layout,
    server: bool | None = None,
    uid: int | None = None,
    version_1: bool = True,
    inband: bool = False,
) -> Link:
    """Open one end of `vhost-user:PATH`.

    `server`: whether this end listens on the socket; by default the device does. `uid`: the only user whose process is
    accepted at the other end. For a device: what it offers; `version_1=False` makes it a legacy device, `inband` lets
    notifications come and go as messages, for simulations. A driver takes what is offered.

    Nothing answers the peer but calls on the bus: a guest that boots waits for them.

    Raises OSError if this end cannot listen there, ValueError for a `uid` that cannot be, for `packed` without
    `version_1`, and for `bulk` and `bufsz` of the layout, for which there is no resource table.
    """
    if layout.bulk or layout.bufsz:
        raise ValueError("vhost-user: has neither bulk nor bufsz: there is no resource table to announce them")
    if layout.packed and not version_1:
        raise ValueError("vhost-user: packed rings are not a legacy device's: leave version_1 on")
    if uid is not None and (not isinstance(uid, int) or uid < 0):
        raise ValueError(f"uid must be a user's number, not {uid!r}")
    listen = role == "device" if server is None else bool(server)
    if role == "driver":
        from rpmsgx.virtio.vhost.frontend import VhostUserDriver

        return VhostUserDriver(address, layout, listen=listen, uid=uid)
    from rpmsgx.virtio.vhost.backend import VhostUserDevice
    from rpmsgx.virtio.vhost.protocol import F_PROTOCOL_FEATURES

    features = layout.features | F_PROTOCOL_FEATURES | F_VERSION_1 * bool(version_1)
    return VhostUserDevice(address, listen=listen, uid=uid, features=features, inband=bool(inband))
