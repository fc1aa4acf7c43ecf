"""`virtual:NAME`: both ends of a link in this process, over anonymous memory. For tests, examples and benchmarks."""

from __future__ import annotations

import os
import threading

from rpmsgx.errors import StateError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.virtio.file import check_table
from rpmsgx.virtio.layout import Layout
from rpmsgx.virtio.link import Role, VdevLink

_wires: dict[str, _Wire] = {}
_lock = threading.Lock()


class _Wire:
    """What the two ends share: memory, and an eventfd for each."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.region = Region.anonymous(f"virtual:{name}", layout.size)
        AddressSpace(self.region).write(0, layout.table())
        self.ends: dict[Role, VirtualDoorbell] = {}


class VirtualDoorbell(Doorbell):
    """One end's doorbell; the other end's state is looked up in the wire."""

    def __init__(self, wire: _Wire, role: Role) -> None:
        self._wire = wire
        self._role = role
        self._other: Role = "device" if role == "driver" else "driver"
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.lost = 0

    @property
    def connected(self) -> bool:  # type: ignore[override]
        return self._other in self._wire.ends

    def fileno(self) -> int:
        return self._event

    def kick(self, notifyid: int) -> None:
        peer = self._wire.ends.get(self._other)
        if peer is not None:
            peer.ring()

    def ring(self) -> None:
        try:
            os.eventfd_write(self._event, 1)
        except (BlockingIOError, OSError):
            pass  # as loud as it can be, or just closed

    def drain(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        peer = self._wire.ends.get(self._other)
        self.kick_fd = -1 if peer is None else peer._event

    def close(self) -> None:
        with _lock:
            wire = self._wire
            if wire.ends.get(self._role) is not self:
                return
            del wire.ends[self._role]
            peer = wire.ends.get(self._other)
            if peer is None:
                _wires.pop(wire.name, None)
            else:
                peer.lost += 1
                peer.kick_fd = -1
                peer.ring()
        self.abandon()

    def abandon(self) -> None:
        """Give up the descriptor alone: the other end, and whoever holds the lock, may be in the parent process."""
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)


class VirtualLink(VdevLink):
    def __init__(self, role: Role, name: str, layout: Layout) -> None:
        with _lock:
            wire = _wires.get(name)
            if wire is None:
                wire = _wires[name] = _Wire(name, layout)
            elif wire.layout != layout:
                raise StateError(f"virtual:{name} is open with {wire.layout}, not {layout}")
            if role in wire.ends:
                raise StateError(f"the {role} end of virtual:{name} is open already")
            doorbell = wire.ends[role] = VirtualDoorbell(wire, role)
        self._wire = wire
        self._doorbell = doorbell
        super().__init__(
            role,
            f"virtual:{name}",
            space=AddressSpace(wire.region),
            region=wire.region,
            doorbell=doorbell,
            in_process=True,
            **check_table(wire.region, role, layout)._asdict(),
        )
        doorbell.kick(0)

    def close_descriptors(self) -> None:
        self._doorbell.abandon()

    def close(self) -> None:
        if not self._closed and self.role == "device":
            # The rings are half used now: the next device waits until the driver has set them up afresh.
            self._vdev.status = 0
        super().close()


def open_link(address: str, role: Role, *, layout: Layout) -> VirtualLink:
    """Open one end of `virtual:NAME`; the other end may come before or after."""
    return VirtualLink(role, address, layout)
