"""Subdevices: what follows the life of a remote. The rpmsg vdevs of its resource table are the built-in ones.

Per uptime, in the order in which they were added, and backwards on the way down:

    prepare()       the remote does not run yet, or is about to be attached to
    start()         it runs
    stop(crashed)   it still runs, unless it crashed
    unprepare()     it does not run any more, or was detached from
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

from rpmsgx.errors import Timeout
from rpmsgx.notify.doorbell import readable
from rpmsgx.rpmsg.bus import Bus
from rpmsgx.virtio.link import VdevLink

if TYPE_CHECKING:
    from collections.abc import Callable

    from rpmsgx.notify.doorbell import Doorbell
    from rpmsgx.remoteproc.platform import Platform
    from rpmsgx.remoteproc.remoteproc import Remoteproc
    from rpmsgx.remoteproc.resources import PlacedVdev, Plan

log = logging.getLogger("rpmsgx.remoteproc")

HANDSHAKE = 1.0  # seconds that a remote has to forget the rings
GONE = "the remote was stopped"
LINGER = 0.2  # seconds for the remote to take what was sent, at a stop


class Subdevice(Protocol):
    """Anything that follows a remote. An error of `prepare` or `start` undoes the boot; others are logged."""

    def prepare(self) -> None: ...
    def start(self) -> None: ...
    def stop(self, crashed: bool) -> None: ...
    def unprepare(self) -> None: ...


class RprocLink(VdevLink):
    """A vdev of a remote core. The doorbell and the memory are the platform's, and stay when the vdev goes."""

    def __init__(
        self, platform: Platform, url: str, crash: Callable[[], str | None], doorbell: Doorbell, **where: Any
    ) -> None:
        super().__init__("driver", url, space=platform.space, doorbell=doorbell, desc_addr=platform.desc_addr, **where)
        self._crash = crash

    @property
    def ended(self) -> bool:  # type: ignore[override]
        if not self._closed and self._crash() is not None:
            self.gone = f"the remote crashed: {self._crash()}"
            return True
        return self._closed

    def present(self) -> bool:
        return not self.ended

    def end(self, reason: str) -> None:
        """The vdev goes: its device is reset, and the bus on it is told why when it looks."""
        if not self._closed:
            if not self.ended:
                self.gone = reason
            self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._vdev.status = 0
            self.doorbell.kick(0)

    def hang_up(self) -> None:
        pass

    def close_descriptors(self) -> None:
        self._closed = True


class RpmsgVdev:
    """An rpmsg device of a remote: `remoteproc` above it, `bus` on it while it is up.

    `index` counts the vdevs of the resource table, rpmsg or not. The bus may be closed while the remote runs, which
    resets the device; `rebind` sets it up again, with a new bus. Not thread-safe: Remoteproc calls it under its lock.
    """

    def __init__(
        self,
        remoteproc: Remoteproc,
        plan: Plan,
        placed: PlacedVdev,
        doorbell: Doorbell,
        crash: Callable[[], str | None],
        resume: bool = False,
    ) -> None:
        assert plan.table_da is not None
        self.remoteproc = remoteproc
        self.index = placed.index
        self.buffers = placed.buffers
        self.named = {carveout.name: (carveout.da, carveout.size) for carveout in plan.carveouts}
        self.name = f"{remoteproc.name}/vdev{placed.index}"
        self._da = plan.table_da + placed.offset
        self._doorbell = doorbell
        self._crash = crash
        self._resume = resume
        self._started = False
        self.gone = GONE
        """What calls that wait are told at a stop."""
        self._bus: Bus | None = None
        self._link: RprocLink | None = None

    @property
    def bus(self) -> Bus | None:
        """None before `prepare` and after `stop`."""
        return self._bus

    @property
    def bound(self) -> bool:
        """Whether there is a bus that nobody has closed."""
        return self._link is not None and not self._link._closed

    def prepare(self) -> None:
        """Rings zeroed, buffers posted, DRIVER_OK; no kick."""
        platform = self.remoteproc.platform
        region, offset = platform.space.find_da(self._da)
        self._link = RprocLink(
            platform,
            self.name,
            self._died,
            self._doorbell,
            region=region,
            offset=offset,
            buffers=self.buffers,
            named=self.named,
            resume=self._resume,
        )
        self._bus = Bus(self._link, spin=self.remoteproc.spin, start=False)
        self._bus.vdev = self
        self._resume = False
        self.gone = GONE

    def _died(self) -> str | None:
        return self._crash() if self._started else None  # before, it is a crash of the life before

    def start(self) -> None:
        assert self._bus is not None
        self._started = True
        self._bus.start()

    def create_channel(self, name: str, addr: int) -> None:
        """One that the remote has announced to a host before."""
        if self._bus is not None:
            self._bus.create_channel(name, addr)

    def rebind(self) -> None:
        """A new bus in place of one that was closed.

        A remote that was busy may not have seen the reset yet: it is told as in a detach, and acknowledges. That is
        about all its vdevs, so where there are several it is left to see by itself.
        """
        if len(self.remoteproc.vdevs) == 1:
            platform = self.remoteproc.platform
            try:
                platform.detach(HANDSHAKE)
            except Timeout as error:
                log.warning("%s: %s", self.name, error)
            else:
                platform.attach()
        self.prepare()
        self.start()

    def stop(self, crashed: bool) -> None:
        """The bus stays, without a link: calls end with ChannelRemoved, poll() tells of the channels that went."""
        bus, link = self._bus, self._link
        if bus is None or link is None:
            return
        deadline = time.monotonic() + LINGER
        while not crashed and bus.is_up and bus.counters["outstanding"] and time.monotonic() < deadline:
            readable(self._doorbell.fileno(), 0.005)
        link.end(self.gone)
        bus.is_up  # noqa: B018  it looks, and wakes everybody
        self._bus = self._link = None
        self._started = False

    def unprepare(self) -> None:
        """After a failed boot it was never started."""
        self.stop(crashed=False)

    def __repr__(self) -> str:
        return f"<RpmsgVdev {self.name}{' up' if self._bus is not None and self._bus.is_up else ''}>"
