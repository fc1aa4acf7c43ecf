"""`Remoteproc`: boots a remote core from a firmware image and talks rpmsg with it.

A boot goes in the order that a remote can rely on: the platform is prepared; the image is checked; its resources get
memory; its segments are loaded; the resource table, complete with addresses and ids, is published; the vdevs are set
up (rings zeroed, buffers posted, DRIVER_OK last, no kick yet); only then the core starts, and is kicked. A remote that
reads its table at its first instruction finds everything there. A stop goes the other way round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

from rpmsgx.errors import ChannelRemoved, FirmwareError, StateError, Timeout
from rpmsgx.memory.carveout import Allocator
from rpmsgx.notify.doorbell import readable
from rpmsgx.remoteproc.platform import Image, Platform, open_platform
from rpmsgx.rpmsg.bus import Bus, Endpoint
from rpmsgx.virtio.link import BUFFER_SIZE, Buffers, VdevLink
from rpmsgx.virtio.table import ADDR_ANY, VIRTIO_ID_RPMSG, ResourceTable, VdevView, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rpmsgx.virtio.table import Trace, Vdev

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())

PAGE = 0x1000  # vrings and buffers start at multiples of it, as in Linux
LINGER = 0.2  # seconds for the remote to take what was sent, at a stop
KICK_INTERVAL = 0.1  # seconds between kicks while a remote that has just started announces nothing


# A forked child has no part in its parent's remotes: its objects raise StateError and stop nothing.
_remoteprocs: weakref.WeakSet[Remoteproc] = weakref.WeakSet()


def _after_fork() -> None:
    for rproc in list(_remoteprocs):
        rproc._forget()


os.register_at_fork(after_in_child=_after_fork)


class RprocLink(VdevLink):
    """A vdev of a remote core. The doorbell and the memory are the platform's, and stay when the vdev goes."""

    def __init__(self, platform: Platform, url: str, **where: Any) -> None:
        super().__init__(
            "driver", url, space=platform.space, doorbell=platform.doorbell, desc_addr=platform.desc_addr, **where
        )
        self._platform = platform
        self.started = False  # until then a crash is that of the life before

    @property
    def ended(self) -> bool:  # type: ignore[override]
        crash = self._crash
        if crash is not None and not self._closed:
            self.gone = f"the remote crashed: {crash}"
        return self._closed or crash is not None

    @property
    def _crash(self) -> str | None:
        return self._platform.crash if self.started else None

    def present(self) -> bool:
        return not self.ended

    def end(self, reason: str) -> None:
        """The vdev goes: its device is reset, and the bus on it is told why when it looks."""
        if not self._closed:
            if self._crash is None:
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


class Remoteproc:
    """A remote core: its platform, its firmware, its life.

    `name` labels it. `platform`: "unicorn" (an emulated Cortex-M4 in this process), "native" (csrc's remote in a
    thread or a process), or a `Platform`; `options` are the platform's. `firmware`: a path, or the name of one that
    is shipped. `auto_boot` boots it here and now; else `boot()` does.

    A context manager: leaving it closes. Thread-safe: operations on its life exclude each other. Raises FirmwareError,
    ResourceError, OSError as booting does, ValueError for an unknown platform.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        platform: str | Platform = "unicorn",
        firmware: str | None = None,
        auto_boot: bool = True,
        spin: float = 0.0,
        **options: Any,
    ) -> None:
        self._lock = threading.RLock()
        self._platform = open_platform(platform, **options) if isinstance(platform, str) else platform
        self.name = name or self._platform.name
        self._firmware = firmware
        self._spin = spin
        self._power = 0
        self._running = False
        self._closed = False
        self._image: Image | None = None
        self._buses: dict[Bus, RprocLink] = {}
        self._traces: tuple[Trace, ...] = ()
        self._undo = contextlib.ExitStack()
        self._forked = False
        _remoteprocs.add(self)
        if auto_boot:
            try:
                self.boot()
            except BaseException:
                self.close()
                raise

    # -- its life ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "offline", "running", "crashed" or "deleted" (closed)."""
        if self._closed:
            return "deleted"
        if not self._running:
            return "offline"
        return "running" if self._platform.crash is None else "crashed"

    @property
    def crash(self) -> str | None:
        """Why the remote crashed, as its platform tells; None while it has not."""
        return self._platform.crash if self._running else None

    @property
    def firmware(self) -> str | None:
        """The firmware of the next boot: may be set while the remote is offline, StateError otherwise."""
        return self._firmware

    @firmware.setter
    def firmware(self, firmware: str | None) -> None:
        with self._lock:
            self._check_open()
            if self._running:
                raise StateError(f"{self.name} is {self.state}: its firmware can change only while it is offline")
            self._firmware = firmware

    @property
    def image(self) -> Image:
        """The image that runs: `.name`, `.sha256`. Raises StateError while offline."""
        if self._image is None:
            raise StateError(f"{self.name} is {self.state}: no image is loaded")
        return self._image

    @property
    def platform(self) -> Platform:
        return self._platform

    def boot(self) -> None:
        """Boot the remote, or count one more user of it: as many `shutdown()` calls stop it.

        Whatever fails, all that was done before is undone, and a note on the error names the step.
        """
        with self._lock:
            self._check_open()
            if self._running:
                self._power += 1
                return
            self._boot()
            self._running = True
            self._power = 1

    def _boot(self) -> None:
        platform = self._platform
        stop = contextlib.ExitStack()  # what undoes a failed boot, and what a stop is: the same steps in reverse
        with stop, self._step("prepare the platform") as step:
            platform.prepare()
            stop.callback(platform.unprepare)
            step("read the firmware")
            image = platform.image(self._firmware)
            log.info("firmware %s, sha256 %s", image.name, image.sha256)
            step("parse its resource table")
            table, table_da = self._table(image)
            step("give its resources memory")
            published, vdevs = self._place(table)
            step("load its segments")
            image.load(platform.space)
            step("publish its resource table")
            platform.space.write(table_da, published)
            self._traces = table.traces
            stop.callback(self._stop_core)
            step("set up its vdevs")
            for vdev, buffers in vdevs:
                bus = self._add_bus(table_da + vdev.offset, buffers)
                stop.callback(self._remove_bus, bus)
            step("start the core")
            platform.start(image.entry)
            log.info("%s started at %#x", platform.cpu, image.entry)
            for bus, link in self._buses.items():
                link.started = True
                bus.start()
            self._image = image
            self._undo = stop.pop_all()

    @contextlib.contextmanager
    def _step(self, first: str) -> Iterator[Callable[[str], None]]:
        """Names the step that failed, in a note on its error."""
        current = first

        def step(name: str) -> None:
            nonlocal current
            log.debug("%s: %s", self.name, name)
            current = name

        try:
            yield step
        except Exception as error:
            error.add_note(f"while booting {self.name}: could not {current}")
            raise

    def _table(self, image: Image) -> tuple[ResourceTable, int]:
        if image.resource_table is None:
            raise FirmwareError(f"{image.name}: no resource table, so nothing says how to talk to it")
        da, raw = image.resource_table
        if da is None:
            raise FirmwareError(f"{image.name}: no segment loads its resource table")
        table = parse(raw)
        table.check_granted(self._platform.space)
        for warning in table.warnings:
            log.warning("%s: %s", image.name, warning)
        return table, da

    def _place(self, table: ResourceTable) -> tuple[bytes, list[tuple[Vdev, Buffers]]]:
        """Memory for what the table leaves to the host: the table as it is to be published, and the rpmsg vdevs.

        Everything comes out of the platform's shared region; fixed addresses in it are kept free.
        """
        shared = self._platform.shared
        allocator = Allocator(shared)
        published = bytearray(table.data)
        wanted = [(carveout, carveout.da, carveout.len, carveout.name) for carveout in table.carveouts]
        rings = [
            (VdevView(published, vdev.offset).vring(i), vring, f"vdev{index}vring{i}")
            for index, vdev in enumerate(table.vdevs)
            for i, vring in enumerate(vdev.vrings)
        ]
        for _, da, size, name in wanted:
            if da != ADDR_ANY and shared.da <= da < shared.da + shared.size:
                allocator.reserve(da, size, name)
        for _, vring, name in rings:
            if vring.da != ADDR_ANY and shared.da <= vring.da < shared.da + shared.size:
                allocator.reserve(vring.da, vring.size, name)
        for carveout, da, size, name in wanted:
            da = allocator.allocate(size, PAGE, name) if da == ADDR_ANY else da
            pa = self._platform.space.da_to_pa(da, size) & 0xFFFFFFFF  # the field has 32 bits
            struct.pack_into("=II", published, carveout.offset + 4, da, pa)
        for notifyid, (view, vring, name) in enumerate(rings):
            if vring.da == ADDR_ANY:
                view.da = allocator.allocate(vring.size, max(vring.align, PAGE), name)
            view.notifyid = notifyid
        vdevs = []
        for index, vdev in enumerate(table.vdevs):
            if vdev.id == VIRTIO_ID_RPMSG:
                count = max(vring.num for vring in vdev.vrings)
                da = allocator.allocate(2 * count * BUFFER_SIZE, PAGE, f"vdev{index}buffer")
                vdevs.append((vdev, Buffers(da, count, BUFFER_SIZE)))
            else:
                log.warning("%s: vdev %d has virtio id %d, not rpmsg: left alone", self.name, index, vdev.id)
        return bytes(published), vdevs

    def _add_bus(self, vdev_da: int, buffers: Buffers) -> Bus:
        region, offset = self._platform.space.find_da(vdev_da)
        url = f"{self.name}/vdev{len(self._buses)}"
        link = RprocLink(self._platform, url, region=region, offset=offset, buffers=buffers)
        bus = Bus(link, spin=self._spin, start=False)
        bus.owner = self
        self._buses[bus] = link
        return bus

    def _remove_bus(self, bus: Bus) -> None:
        """The bus stays, without a link: calls end with ChannelRemoved, poll() tells of the channels that went."""
        link = self._buses.pop(bus)
        deadline = time.monotonic() + LINGER
        while bus.is_up and bus.counters["outstanding"] and time.monotonic() < deadline:
            readable(self._platform.doorbell.fileno(), 0.005)
        link.end("the remote was stopped")
        bus.is_up  # noqa: B018  it looks, and wakes everybody

    def _stop_core(self) -> None:
        self._platform.stop()
        log.info("%s stopped", self._platform.cpu)

    def shutdown(self) -> None:
        """Give up one boot; the last stops the remote: its channels go, its rings are reset, the core is held.

        Raises StateError where it is offline.
        """
        with self._lock:
            self._check_open()
            if not self._running:
                raise StateError(f"{self.name} is offline")
            self._power -= 1
            if self._power == 0:
                self._stop()

    def _stop(self) -> None:
        try:
            self._undo.close()
        finally:
            self._running = False
            self._power = 0
            self._image = None

    def close(self) -> None:
        """Stop the remote, whatever the count, and give everything up. Idempotent."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._running:
                    self._stop()
            finally:
                self._closed = True
                self._platform.close()

    def _forget(self) -> None:
        if not self._closed:
            self._closed = self._forked = True
            self._lock = threading.RLock()  # whoever had it stayed behind
            self._undo.pop_all()
            self._running = False
            self._image = None

    def _check_open(self) -> None:
        if self._forked:
            raise StateError(f"{self.name} was made before a fork: it belongs to the parent process")
        if self._closed:
            raise StateError(f"{self.name} is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            with contextlib.suppress(Exception):
                self.close()

    def __repr__(self) -> str:
        return f"<Remoteproc {self.name} {self.state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Remoteproc cannot be pickled: it owns a core")

    # -- talking to it -------------------------------------------------------------------------------------------

    @property
    def bus(self) -> Bus:
        """The rpmsg bus of the remote's first rpmsg vdev. Raises StateError while it is offline."""
        buses = self._buses
        if not buses:
            raise StateError(f"{self.name} is {self.state}: it has no bus")
        return next(iter(buses))

    def open(self, service_name: str, *, timeout: float | None = None) -> Endpoint:
        """Wait until the remote announces `service_name`; an endpoint bound to it. See `Bus.open`.

        A remote that announces nothing at first is kicked again now and then: it may not have listened yet.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
        bus = self.bus
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = KICK_INTERVAL if deadline is None else deadline - time.monotonic()
            try:
                return bus.open(service_name, timeout=max(0.0, min(left, KICK_INTERVAL)))
            except Timeout as error:
                if deadline is not None and time.monotonic() >= deadline:
                    said = str(error).partition("; ")[2]
                    raise Timeout(f"{self.name} did not announce {service_name!r} within {timeout} s; {said}") from None
                if not bus.channels:
                    bus.start()
            except ChannelRemoved as error:
                raise ChannelRemoved(f"{self.name}: {error.strerror}") from None

    def trace(self) -> str:
        """What the remote has written to its trace buffers. Raises StateError while it is offline."""
        with self._lock:
            if not self._running:
                raise StateError(f"{self.name} is {self.state}: it has no trace")
            texts = (self._platform.space.read(trace.da, trace.len) for trace in self._traces)
            return "".join(text.split(b"\0", 1)[0].decode("utf-8", "replace") for text in texts)
