"""One uptime of a remote: all that exists from its boot, or from the attach, until the stop or the detach.

Each of the operations goes in an order that a remote can rely on, and what fails half way is undone in reverse:

    boot       platform prepared; resources given memory; segments loaded; the resource table published; subdevices
               prepared (rings zeroed, buffers posted, DRIVER_OK last, no kick); the core started; subdevices started
               (first kick). A remote that reads its table at its first instruction finds everything there.
    attach     platform prepared, its remote taken hold of; the table in memory checked against the firmware's own; the
               remote told to forget the rings of a host that is gone; table, subdevices as in a boot.
    stop       subdevices stopped, then the core; after a crash the other way round.
    detach     subdevices stopped (status 0), the remote told, its acknowledgement awaited; then the firmware's own
               table restored, byte for byte.
    recover    core, then subdevices stopped, the snapshot taken; image and clean table loaded afresh; then as in a
               boot. Carveouts stay where they are.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from rpmsgx.notify.hub import share
from rpmsgx.remoteproc import adopt, resources
from rpmsgx.remoteproc.elf import Image as ElfImage
from rpmsgx.remoteproc.symbols import function_at
from rpmsgx.remoteproc.vdev import HANDSHAKE, RpmsgVdev, Subdevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rpmsgx.notify.doorbell import Doorbell
    from rpmsgx.remoteproc.coredump import Core
    from rpmsgx.remoteproc.hold import Saved
    from rpmsgx.remoteproc.platform import Image
    from rpmsgx.remoteproc.remoteproc import Remoteproc
    from rpmsgx.remoteproc.resources import Plan
    from rpmsgx.virtio.table import ResourceTable

log = logging.getLogger("rpmsgx.remoteproc")


class Crash(NamedTuple):
    """Why and when a remote died: `kind` as platforms and Linux name it, `time` in seconds since the epoch."""

    kind: str
    cause: str
    time: float


class Uptime:
    """Not thread-safe: Remoteproc calls it under its lock."""

    def __init__(self, remoteproc: Remoteproc, subdevices: Sequence[Subdevice]) -> None:
        self._remoteproc = remoteproc
        self._platform = remoteproc.platform
        self._resources = remoteproc.resources
        self._name = remoteproc.name
        self._own = tuple(subdevices)
        self._up: list[Subdevice] = []  # prepared, in this order
        self._shares: list[Doorbell] = []
        self._crash: Crash | None = None
        self.started = 0.0  # seconds since the epoch
        self.image: Image | None = None
        self.plan: Plan
        self.vdevs: tuple[RpmsgVdev, ...] = ()
        self.lost = 0  # messages that were in the rings of a host before

    # -- crashes -------------------------------------------------------------------------------------------------

    @property
    def crash(self) -> Crash | None:
        """The first crash, as reported by the platform or by hand."""
        if self._crash is None:
            cause = self._platform.crash
            if cause is not None:
                self.report(self._platform.crash_kind, cause + self._where())
        return self._crash

    def report(self, kind: str, cause: str) -> None:
        if self._crash is None:
            self._crash = Crash(kind, cause, time.time())
            self._remoteproc.wake()

    def _where(self) -> str:
        pc = self._platform.registers.get("pc")
        if pc is None or not isinstance(self.image, ElfImage):
            return ""
        function = function_at(self.image, pc)
        return f" in {function}" if function else ""

    def _cause(self) -> str | None:
        crash = self.crash
        return None if crash is None else crash.cause

    def core(self, copied: bool) -> Core:
        """The memory of the crashed remote, as it is from now on, or copied."""
        from rpmsgx.remoteproc.coredump import Core, segments_of

        crash = self.crash
        assert crash is not None
        image, plan, platform = self.image, self.plan, self._platform
        segments = segments_of(
            image, plan.carveouts, platform.space, traces=plan.traces, registers=platform.registers, copy=copied
        )
        return Core(
            self._name, crash.kind, crash.cause, crash.time,
            image.name if image else "", image.sha256 if image else "",
            platform.machine or 0, getattr(image, "bits", 32), image.entry if image else 0,
            segments, platform.registers,
        )  # fmt: skip

    # -- up ------------------------------------------------------------------------------------------------------

    def boot(self, read: Callable[[], Image]) -> None:
        """Raises what its steps raise, with a note that names the step; all is undone then."""
        with self._steps("booting") as step, contextlib.ExitStack() as undo:
            step("read the firmware")
            image = read()
            step("prepare the platform")
            self._prepare(undo)
            self._load(image, undo, step)
            undo.pop_all()

    def _prepare(self, undo: contextlib.ExitStack) -> None:
        self._platform.prepare()
        undo.callback(self._platform.unprepare)

    def _load(self, image: Image, undo: contextlib.ExitStack, step: Callable[[str], None]) -> None:
        platform = self._platform
        step("parse its resource table")
        table, table_da = self._resources.read_table(image)
        step("give its resources memory")
        self.plan = self._planned(image, table, table_da)
        step("load its segments")
        image.load(platform.space)
        step("publish its resource table")
        self._publish(self.plan.published)
        step("handle its vendor resources")
        for warning in self._resources.handle_vendor(table):
            log.warning("%s: %s", self._name, warning)
        undo.callback(platform.stop)
        step("set up its subdevices")
        self._set_up(undo)
        step("start the core")
        platform.start(image.entry)
        self._crash = None  # that of the life before
        log.info("%s: %s started at %#x, firmware %s, sha256 %s",
                 self._name, platform.cpu, image.entry, image.name, image.sha256)  # fmt: skip
        self.image = image
        self._start_subdevices(undo, step)

    def _planned(self, image: Image | None, table: ResourceTable | None, table_da: int | None) -> Plan:
        plan = resources.plan(
            self._resources,
            table,
            table_da,
            self._platform.space,
            self._platform.shared,
            in_use=getattr(image, "memory", ()),
        )
        for warning in plan.warnings:
            log.warning("%s: %s", self._name, warning)
        return plan

    def _publish(self, table: bytes) -> None:
        if self.plan.table_da is not None:
            self._platform.space.write(self.plan.table_da, table)

    def _set_up(self, undo: contextlib.ExitStack, resume: bool = False) -> None:
        rpmsg = [placed for placed in self.plan.vdevs if placed.buffers is not None]
        doorbells = share(self._platform.doorbell, len(rpmsg))
        self._shares = [doorbell for doorbell in doorbells if doorbell is not self._platform.doorbell]
        self.vdevs = tuple(
            RpmsgVdev(self._remoteproc, self.plan, placed, doorbell, self._cause, resume)
            for placed, doorbell in zip(rpmsg, doorbells, strict=True)
        )
        undo.callback(self._unprepare)
        for subdevice in (*self._own, *self.vdevs):
            self._up.append(subdevice)  # before: one that fails half way is undone as well
            subdevice.prepare()

    def _start_subdevices(self, undo: contextlib.ExitStack, step: Callable[[str], None]) -> None:
        step("start its subdevices")
        undo.callback(self._stop_subdevices, crashed=False)
        for subdevice in self._up:
            subdevice.start()
        self.started = time.time()

    # -- down ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Raises what the platform's stop raises; the core may run on then, without its subdevices."""
        crashed = self.crash is not None
        if crashed:
            self._platform.stop()
        self._stop_subdevices(crashed)
        self._platform.stop()
        self._unprepare()
        self._platform.unprepare()
        log.info("%s: stopped", self._name)

    def _stop_subdevices(self, crashed: bool) -> None:
        for subdevice in reversed(self._up):
            self._quietly(subdevice, "stop", crashed)

    def _unprepare(self) -> None:
        while self._up:
            self._quietly(self._up.pop(), "unprepare")
        while self._shares:
            self._shares.pop().close()

    def _quietly(self, subdevice: Subdevice, what: str, *args: bool) -> None:
        """On the way down the others have their turn too."""
        try:
            getattr(subdevice, what)(*args)
        except Exception:
            log.exception("%s: %s of %r failed", self._name, what, subdevice)

    def detach(self, timeout: float) -> None:
        """Raises Timeout where the remote does not acknowledge, StateError where it died: it is still attached then."""
        with self._steps("detaching from") as step:
            step("stop its subdevices")
            for vdev in self.vdevs:
                vdev.gone = "the host detached from the remote"
            self._stop_subdevices(crashed=False)
            try:
                step("get its acknowledgement")
                self._platform.detach(timeout)
            except BaseException:
                for subdevice in self._up:
                    subdevice.prepare()
                    subdevice.start()
                raise
            step("restore its resource table")
            self._publish(self.plan.clean)
            self._unprepare()
            self._platform.unprepare()
        log.info("%s: detached", self._name)

    # -- a remote that runs ----------------------------------------------------------------------------------------

    def attach(self, image: Image | None, saved: Saved | None, resume: bool = False) -> None:
        """`image`: the firmware, where it is known; `saved`: what the host before left to know.

        With `resume` the rings go on as they are; else the remote is made to forget them, and `lost` counts what was
        in them. Raises ResourceError, StateError as `adopt` does: nothing was changed then.
        """
        platform = self._platform
        with self._steps("attaching to") as step, contextlib.ExitStack() as undo:
            step("prepare the platform")
            self._prepare(undo)
            space = platform.space
            step("find its resource table")
            table, table_da = adopt.find_table(platform, self._resources, image, saved)
            step("give its resources memory")
            self.plan = self._planned(image, table, table_da)
            step("check its resource table")
            adopt.check_table(space, self.plan)
            if resume:
                step("check the rings of the host before")
                adopt.check_places(space, self.plan)
            else:
                if adopt.driven(space, self.plan):
                    step("have it forget the rings of the host before")
                    adopt.reset(space, self.plan)
                    platform.detach(HANDSHAKE)
                    self.lost = adopt.lost_messages(space, self.plan)
                step("publish its resource table")
                undo.callback(self._publish, self.plan.clean)
                self._publish(self.plan.published)
            step("set up its subdevices")
            self._set_up(undo, resume)
            step("take hold of the remote")
            platform.attach()
            self.image = image
            self._start_subdevices(undo, step)
            if resume and saved is not None and len(self.vdevs) == 1:  # the remote will not announce them again
                for name, addr in saved.channels:
                    self.vdevs[0].create_channel(name, addr)
            undo.pop_all()
        log.info("%s: attached%s", self._name, ", resumed" if resume else f", {self.lost} messages lost")

    # -- recovery ------------------------------------------------------------------------------------------------

    def recover(self, read: Callable[[], Image], snapshot: Callable[[], object]) -> None:
        """The remote is stopped whatever happens; where a step fails it stays so, and crashed."""
        crash = self.crash
        with self._steps("recovering") as step, contextlib.ExitStack() as undo:
            undo.callback(setattr, self, "_crash", crash)
            step("stop the core")
            self._platform.stop()
            step("stop its subdevices")
            self._stop_subdevices(crashed=True)
            self._unprepare()
            step("take a snapshot")
            snapshot()
            step("read the firmware")
            self._load(read(), undo, step)
            undo.pop_all()

    def reattach(self, snapshot: Callable[[], object]) -> None:
        """The remote has restarted by itself."""
        with self._steps("recovering") as step, contextlib.ExitStack() as undo:
            self._stop_subdevices(crashed=True)
            self._unprepare()
            step("take a snapshot")
            snapshot()
            step("take hold of the remote")
            self._platform.attach()
            self._crash = None
            step("publish its resource table")
            self._publish(self.plan.published)
            step("set up its subdevices")
            self._set_up(undo)
            self._start_subdevices(undo, step)
            undo.pop_all()

    @contextlib.contextmanager
    def _steps(self, doing: str) -> Iterator[Callable[[str], None]]:
        """Names the step that failed, in a note on its error."""
        current = "begin"

        def step(name: str) -> None:
            nonlocal current
            log.debug("%s: %s", self._name, name)
            current = name

        try:
            yield step
        except Exception as error:
            error.add_note(f"while {doing} {self._name}: could not {current}")
            raise

