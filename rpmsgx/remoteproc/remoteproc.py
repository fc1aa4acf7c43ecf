"""`Remoteproc`: the whole life of a remote core, and the way to talk rpmsg with it.

What happens in which state is decided by the table of `lifecycle`, how it is done stands in `uptime`. This class holds
both together: it counts the users, keeps the events that come by themselves (a crash, a firmware that appears, a
service that comes and goes), and applies the policies.

No thread watches a remote: `poll()` acts on what has happened, and so does `open()`, while it waits. `fileno()` is
readable when there may be something to act on.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from rpmsgx.errors import ChannelRemoved, Closed, StateError, Timeout
from rpmsgx.notify.deadline import deadline, left
from rpmsgx.notify.watch import Watch
from rpmsgx.remoteproc.lifecycle import Decision, Event, State, Work, decide
from rpmsgx.remoteproc.platform import Image, Platform, open_platform
from rpmsgx.remoteproc.resources import Resources
from rpmsgx.remoteproc.uptime import Crash, Uptime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rpmsgx.remoteproc.board import Board
    from rpmsgx.remoteproc.coredump import Core
    from rpmsgx.remoteproc.firmware import Arrival
    from rpmsgx.remoteproc.guardian import Guardian
    from rpmsgx.remoteproc.hold import Hold, Saved
    from rpmsgx.remoteproc.presence import Presence
    from rpmsgx.remoteproc.vdev import RpmsgVdev, Subdevice
    from rpmsgx.rpmsg.bus import Bus, Channel, Endpoint

log = logging.getLogger("rpmsgx.remoteproc")
log.addHandler(logging.NullHandler())

KICK_INTERVAL = 0.1  # seconds between kicks while a remote that has just started announces nothing
BACKOFF = 0.1, 30.0  # seconds before a recovery: the first, and the longest; doubled by each crash that follows soon
STABLE = 10.0  # seconds of uptime after which a crash counts as the first again

Recovery = Literal["enabled", "disabled", "once"]
Coredump = Literal["disabled", "enabled", "inline"]
AtExit = Literal["stop", "detach"]

# A forked child has no part in its parent's remotes: its objects raise StateError and stop nothing.
_remoteprocs: weakref.WeakSet[Remoteproc] = weakref.WeakSet()
# Held here, so that a Remoteproc that is forgotten finds its platform as it was, and not finalized before it.
_platforms: set[Platform] = set()


def _after_fork() -> None:
    for rproc in list(_remoteprocs):
        rproc._forget()


def _at_exit() -> None:
    for rproc in list(_remoteprocs):
        with contextlib.suppress(Exception):
            rproc.close()


os.register_at_fork(after_in_child=_after_fork)
weakref.finalize(_at_exit, int)  # platforms have finalizers: their hook is registered here, so that ours comes first
atexit.register(_at_exit)


class Remoteproc:
    """A remote core: its platform, its firmware, its life.

    `name` labels it. `platform`: "unicorn" (an emulated core in this process), "native" (csrc's remote in a
    thread or a process), "linux" (a remoteproc of the kernel, found by `name`), or a `Platform`; `options` are the
    platform's. `board`: a board file, or a `Board`, which gives all of this; what is given here as well wins.

    `firmware`: a path, a name that is searched for as the kernel does, or the name of a shipped one. `auto_boot` boots
    the remote at once, or attaches to it where one runs already; where the firmware is not there yet, as soon as it
    appears. `resources`: memory and handlers that the board or the program adds to what the firmware asks for.
    `presence`: the service that the remote depends on: it runs only while that is there.

    `recovery` "enabled", "disabled", or "once": what `poll` and `open` do after a crash. `coredump` "disabled",
    "enabled" (the memory is copied, for `coredump()`) or "inline" (written to `coredump_dir` before the recovery).
    `at_exit` "stop" or "detach": what becomes of the remote when this object is closed, or its program ends; None: what
    was booted is stopped, what was attached to is detached from. `guardian` has a process of its own see to that where
    this one is killed. `spin`: seconds that a wait looks at the rings before it blocks.

    A context manager: leaving it closes. Thread-safe: operations on its life exclude each other. Raises BoardError,
    FirmwareError, ResourceError, OSError as booting does, ValueError for an unknown platform.
    """

    def __new__(
        cls, *args: Any, platform: Any = None, board: str | os.PathLike[str] | Board | None = None, **settings: Any
    ) -> Remoteproc:
        """A remoteproc of the kernel is a `LinuxRemoteproc`."""
        if cls is Remoteproc:
            asked = platform or getattr(_board(board), "platform", None)
            if getattr(asked, "name", asked) == "linux":
                from rpmsgx.remoteproc.linux import LinuxRemoteproc

                return object.__new__(LinuxRemoteproc)
        return object.__new__(cls)

    def __init__(
        self,
        name: str | None = None,
        *,
        platform: str | Platform | None = None,
        firmware: str | None = None,
        board: str | os.PathLike[str] | Board | None = None,
        auto_boot: bool | None = None,
        resources: Resources | None = None,
        presence: Presence | str | None = None,
        recovery: Recovery | None = None,
        coredump: Coredump | None = None,
        coredump_dir: str | os.PathLike[str] | None = None,
        at_exit: AtExit | None = None,
        guardian: bool = False,
        spin: float | None = None,
        **options: Any,
    ) -> None:
        self._lock = threading.RLock()
        self._closed = self._forked = False
        given = _board(board)

        def setting(value: Any, key: str, default: Any) -> Any:
            return value if value is not None else getattr(given, key, default)

        self._recovery: Recovery = _one_of("recovery", setting(recovery, "recovery", "enabled"), Recovery)
        self._coredump: Coredump = _one_of("coredump", setting(coredump, "coredump", "disabled"), Coredump)
        self._coredump_dir = os.fspath(setting(coredump_dir, "coredump_dir", None) or ".")
        self.at_exit: AtExit | None = setting(at_exit, "at_exit", None)
        if self.at_exit not in (None, "stop", "detach"):
            raise ValueError(f"at_exit is {self.at_exit!r}, not 'stop', 'detach' or None")
        self.spin: float = setting(spin, "spin", 0.0)
        parts = (getattr(given, "resources", None), resources)
        self.resources = Resources(*(part for part in parts if part is not None))
        self._firmware: str | None = setting(firmware, "firmware", None)
        self._directories: Sequence[str] = getattr(given, "firmware_dirs", ())
        self._platform = _platform(platform, given, options)
        self.name: str = setting(name, "name", None) or self._platform.name
        self._guarded = guardian
        self._state = State.DETACHED if self._platform.running else State.OFFLINE
        self._power = 0
        self._uptime: Uptime | None = None
        self._subdevices: list[Subdevice] = []
        self._ended: deque[Bus] = deque(maxlen=8)  # they have yet to tell which channels went
        self._error: Exception | None = None  # of a boot or a recovery that nobody asked for at that moment
        self._core: Core | None = None
        self._crash_count = 0
        self._last_crash: Crash | None = None
        self._crashes_in_a_row = 0
        self._recover_at: float | None = None  # time.monotonic()
        self._arrival: Arrival | None = None
        self._hold: Hold | None = None
        self._saved: Saved | None = None
        self._image_before: Image | None = None  # of a remote that was detached from
        self._guardian: Guardian | None = None
        self._presence: Presence | None = None
        self._present = True
        self._watch = Watch(self._platform.doorbell.fileno())
        self._watched = False  # somebody has its descriptor, so the buses keep notifications on
        _remoteprocs.add(self)
        _platforms.add(self._platform)
        try:
            self._watch_presence(setting(presence, "presence", None))
            if setting(auto_boot, "auto_boot", True):
                self._auto_boot()
        except BaseException:
            self.close()
            raise

    # -- its life ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "offline", "running", "attached", "crashed", "detached" or "deleted" (closed)."""
        if self._state in (State.RUNNING, State.ATTACHED) and self.crash is not None:
            return State.CRASHED.value
        return self._state.value

    @property
    def power(self) -> int:
        """How many users hold the remote: boots and attaches, less shutdowns and detaches."""
        return self._power

    @property
    def crash(self) -> Crash | None:
        """Why the remote crashed; None while it has not."""
        uptime = self._uptime
        return None if uptime is None or self._closed else uptime.crash

    @property
    def last_crash(self) -> Crash | None:
        """The last crash since this object was made, recovered from or not; None: there was none."""
        return self.crash or self._last_crash

    @property
    def crash_count(self) -> int:
        """Crashes since this object was made."""
        return self._crash_count + (self.state == State.CRASHED and self._state is not State.CRASHED)

    @property
    def firmware(self) -> str | None:
        """The firmware of the next boot: may be set while the remote is offline, StateError otherwise."""
        return self._firmware

    @firmware.setter
    def firmware(self, firmware: str | None) -> None:
        with self._lock:
            self._decide(Event.SET_FIRMWARE)
            self._firmware = firmware
            self._error = None
            if self._arrival is not None and firmware is not None:
                self._arrival.retarget(firmware)
            self.wake()

    @property
    def image(self) -> Image:
        """The image that runs: `.name`, `.sha256`. Raises StateError while there is none, or it is not known."""
        image = self._uptime.image if self._uptime is not None else None
        if image is None:
            raise StateError(f"{self.name} is {self.state}: no image is loaded")
        return image

    @property
    def platform(self) -> Platform:
        return self._platform

    @property
    def waiting_for(self) -> str | None:
        """What a remote that is wanted waits for: its firmware, its service, the time of its recovery; else None."""
        if self._state is State.CRASHED and self._recover_at is not None:
            return "its recovery"
        if self._power == 0 or self._state not in (State.OFFLINE, State.DETACHED):
            return None
        if not self._present and self._presence is not None:
            return f"service {self._presence.name}"
        return f"firmware {self._firmware!r}" if self._arrival is not None else None

    def boot(self) -> None:
        """Boot the remote, attach to one that was found running, or count one more user: as many `shutdown()` end it.

        Where the service that it depends on is not there, it boots as soon as that comes. Whatever fails, all that was
        done before is undone, and a note on the error names the step.
        """
        with self._lock:
            self._look()
            self._do(Event.BOOT if self._present else Event.BOOT_LATER)

    def shutdown(self) -> None:
        """Give up one boot or attach; the last stops the remote: its channels go, its rings are reset, the core halts.

        Raises StateError where nobody holds it. Where the platform cannot stop it, its state and count stay.
        """
        with self._lock:
            self._look()
            self._do(Event.SHUTDOWN)

    def attach(self, *, resume: bool = False) -> None:
        """Take over a remote that runs without a host: one that a boot loader has started, or a host has left.

        The rings are reset, and the messages in them counted by `lost`. With `resume`, after a host that was killed,
        they go on as they are: what it sent arrives, what it had not taken arrives, perhaps twice.

        Raises StateError where none runs, another host has it, or nothing tells what its table was; ResourceError
        where its table or its rings are not sane; Timeout where it does not let go of the rings of the host before.
        """
        with self._lock:
            self._look()
            self._do(Event.ATTACH, resume=resume)

    def detach(self, *, timeout: float = 1.0) -> None:
        """Give up one boot or attach; the last leaves the remote running, for another host to attach to.

        The remote is told and has `timeout` seconds to acknowledge; then its table is restored byte for byte. Raises
        Timeout where it does not, StateError where it died or nobody holds it: all is as before then, but that the
        channels were new ones.
        """
        with self._lock:
            self._look()
            self._do(Event.DETACH, timeout=timeout)

    def recover(self) -> None:
        """Bring a crashed remote back now, whatever the policy. Does nothing where it has not crashed."""
        with self._lock:
            self._look()
            self._recover()

    def crashed(self, kind: str = "fatal error", cause: str = "reported by hand") -> None:
        """Report a crash that the platform cannot see, as a watchdog of the program might. The first one counts."""
        with self._lock:
            self._check_usable()
            if self._uptime is not None and self._state in (State.RUNNING, State.ATTACHED):
                self._uptime.report(kind, cause)
                for bus in self._buses():
                    bus.is_up  # noqa: B018  it looks, and wakes everybody
            self._look()

    def add_subdevice(self, subdevice: Subdevice) -> None:
        """From the next boot or attach on `subdevice` follows the remote, before its vdevs."""
        with self._lock:
            self._check_usable()
            self._subdevices.append(subdevice)

    def close(self) -> None:
        """End it as `at_exit` says, whatever the count, and give everything up. Idempotent.

        Raises what the stop or the detach does, after everything was given up; a remote that did not acknowledge the
        detach is stopped.
        """
        with self._lock:
            if self._closed:
                return
            leave = self.at_exit == "detach" or (self.at_exit is None and self._state is State.ATTACHED)
            with contextlib.ExitStack() as everything:
                everything.callback(self._release)
                self._look()
                self._do(Event.LEAVE if leave else Event.DELETE)

    def _release(self) -> None:
        self._closed = True
        self._state, self._power = State.DELETED, 0
        _platforms.discard(self._platform)
        self._let_go()
        with contextlib.ExitStack() as everything:
            everything.callback(self._platform.close)
            for thing in (self._watch, self._arrival, self._presence):
                if thing is not None:
                    everything.callback(thing.close)
            self._arrival = self._presence = None

    def wake(self) -> None:
        """Make `fileno()` readable: there may be something to act on."""
        self._watch.wake()

    def _forget(self) -> None:
        """In a forked child."""
        if not self._closed:
            self._closed = self._forked = True
            _platforms.discard(self._platform)
            self._lock = threading.RLock()  # whoever had it stayed behind
            self._uptime = None
            self._state = State.DELETED

    def _check_usable(self) -> None:
        if self._forked:
            raise StateError(f"{self.name} was made before a fork: it belongs to the parent process")
        if self._closed:
            raise Closed(f"{self.name} is deleted: it was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False and hasattr(self, "_watch"):
            with contextlib.suppress(Exception):
                self.close()

    def __repr__(self) -> str:
        return f"<Remoteproc {self.name} {self.state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Remoteproc cannot be pickled: it owns a core")

    # -- events and what they ask for ----------------------------------------------------------------------------

    def _decide(self, event: Event) -> Decision:
        self._check_usable()
        return decide(self._state, event, self._power, self.name)

    def _do(self, event: Event, *, resume: bool = False, timeout: float = 1.0) -> None:
        """What `event` asks for; state and count change once it is done."""
        decision = self._decide(event)
        try:
            match decision.work:
                case Work.START:
                    self._start()
                case Work.ATTACH:
                    self._attach(resume)
                case Work.STOP:
                    self._stop()
                case Work.DETACH:
                    self._detach(timeout)
                case Work.RECOVER | Work.REATTACH:
                    self._come_back(decision.work)
        finally:
            self._watch_buses()
        self._state, self._power = decision.state, decision.power

    def _start(self) -> None:
        self._take_hold()
        try:
            uptime = Uptime(self, self._subdevices)
            uptime.boot(self._image)
        except BaseException:
            self._let_go()
            raise
        self._begin(uptime)

    def _attach(self, resume: bool) -> None:
        hold = self._take_hold()
        try:
            saved = hold.saved if hold is not None else None
            uptime = Uptime(self, self._subdevices)
            uptime.attach(self._image_of(saved), saved, resume)
        except BaseException:
            self._let_go()
            raise
        self._begin(uptime)

    def _image_of(self, saved: Saved | None) -> Image | None:
        """The image of a remote that was found running; None: nothing tells."""
        for image in (self._image_before, self._image() if self._firmware is not None else None):
            if image is not None and (saved is None or saved.sha256 in (None, image.sha256)):
                return image
        return None

    def _begin(self, uptime: Uptime) -> None:
        self._uptime = uptime
        self._error = None
        self._watch_firmware(False)
        self._save()

    def _stop(self) -> None:
        self._bury_buses()
        self._no_recovery()
        if self._uptime is not None:
            self._uptime.stop()
            self._uptime = None
        if self._hold is not None:
            self._hold.forget()
        self._let_go()

    def _detach(self, timeout: float) -> None:
        assert self._uptime is not None
        self._bury_buses()
        self._uptime.detach(timeout)
        self._image_before, self._uptime = self._uptime.image, None
        self._let_go()

    def _come_back(self, work: Work) -> None:
        assert self._uptime is not None
        self._bury_buses()
        self._no_recovery()
        if work is Work.REATTACH:
            self._uptime.reattach(self._snapshot)
        else:
            self._uptime.recover(self._image, self._snapshot)
        self._save()

    def _recover(self) -> None:
        if self._platform.recovery == "attach":
            self._do(Event.REATTACH)
        elif self._state is State.CRASHED and self._uptime is not None and self._uptime.image is None:
            raise StateError(f"{self.name} was attached to, and nothing tells its firmware: set it and boot anew")
        else:
            self._do(Event.RECOVER)
        self._error = None

    def _bury_buses(self) -> None:
        self.wake()  # also those who look at its channels
        self._ended += (bus for bus in self._buses() if bus.on_removed is not None)

    def _no_recovery(self) -> None:
        self._recover_at = None
        self._watch.alarm(None)

    def _image(self) -> Image:
        """The firmware, read and checked. Raises FileNotFoundError, FirmwareError."""
        firmware = self._firmware
        if firmware is not None and self._platform.machine is not None and not self._platform.ships(firmware):
            from rpmsgx.remoteproc.firmware import find

            firmware = find(firmware, self._directories)
        return self._platform.image(firmware)

    def _auto_boot(self) -> None:
        with self._lock:
            self._look()
            try:
                self._do(Event.BOOT if self._present else Event.BOOT_LATER)
            except FileNotFoundError as error:
                if self._state is not State.OFFLINE or self._firmware is None:
                    raise
                log.warning("%s: %s; it boots when that appears", self.name, str(error))  # whose frames hold this
                self._do(Event.BOOT_LATER)
                self._watch_firmware(True)

    def _look(self) -> None:
        """Bring the state up to date with a crash."""
        if self._closed or self._state not in (State.RUNNING, State.ATTACHED, State.DETACHED):
            return
        if self._state is State.DETACHED:
            if not self._platform.running:
                self._do(Event.CRASH)
            return
        assert self._uptime is not None
        crash = self._uptime.crash
        if crash is None:
            return
        self._do(Event.CRASH)
        self._crash_count += 1
        self._last_crash = crash
        soon = crash.time - self._uptime.started < STABLE
        self._crashes_in_a_row = self._crashes_in_a_row + 1 if soon else 1
        log.error("%s crashed (%s): %s", self.name, crash.kind, crash.cause)
        self._save()
        if self._recovery == "enabled" or (self._recovery == "once" and self._crash_count == 1):
            first, longest = BACKOFF
            delay = 0.0 if self._crashes_in_a_row == 1 else min(first * 2 ** (self._crashes_in_a_row - 2), longest)
            self._recover_at = time.monotonic() + delay
            self._watch.alarm(delay)

    def _act(self) -> int:
        """Act on what has happened by itself; how many such things there were."""
        with self._lock:
            if self._closed:
                return 0
            before = self._happened()
            self._watch.clear()
            self._look()
            self._act_on_presence()
            self._act_on_firmware()
            if self._recover_at is not None and time.monotonic() >= self._recover_at:
                self._no_recovery()
                self._by_itself(self._recover)
            return before != self._happened()

    def _happened(self) -> tuple[object, ...]:
        """Another one after something has happened: a crash may have been recovered from at once."""
        return self._state, self._power, self._present, self._crash_count, self._error

    def _act_on_presence(self) -> None:
        if self._presence is None:
            return
        present = self._presence.present()
        if present != self._present:
            self._present = present
            log.info("%s: service %s is %s", self.name, self._presence.name, "up" if present else "down")
            self._by_itself(lambda: self._do(Event.SERVICE_UP if present else Event.SERVICE_DOWN))

    def _act_on_firmware(self) -> None:
        if self._arrival is None or not self._present:
            return
        if self._firmware is None or self._platform.ships(self._firmware) or self._arrival.check() is not None:
            self._by_itself(lambda: self._do(Event.FIRMWARE_FOUND))
            if self._error is not None and not isinstance(self._error, FileNotFoundError):
                self._power = 0  # an auto-boot that failed is over
                self._watch_firmware(False)

    def _by_itself(self, act: Any) -> None:
        """Nobody called for it: its error is kept for the next call that needs the remote."""
        try:
            act()
        except Exception as error:
            log.error("%s: %s", self.name, str(error))
            self._error = error

    def _watch_firmware(self, on: bool) -> None:
        if on and self._arrival is None:
            from rpmsgx.remoteproc.firmware import Arrival

            assert self._firmware is not None
            self._arrival = Arrival(self._firmware, self._directories)
            self._watch.add(self._arrival.fileno())
        elif not on and self._arrival is not None:
            self._watch.remove(self._arrival.fileno())
            self._arrival.close()
            self._arrival = None

    def _watch_presence(self, presence: Presence | str | None) -> None:
        if isinstance(presence, str):
            from rpmsgx.remoteproc.presence import presence as parse

            presence = parse(presence)
        self._presence = presence
        if presence is not None:
            self._watch.add(presence.fileno())
            self._present = presence.present()

    # -- one host per remote -------------------------------------------------------------------------------------

    def _take_hold(self) -> Hold | None:
        identity = self._platform.identity
        if identity is not None and self._hold is None:
            from rpmsgx.remoteproc.hold import Hold

            hold = Hold(identity)
            hold.acquire()
            self._hold = hold
        return self._hold

    def _save(self) -> None:
        """For a host that comes after this one."""
        uptime, hold = self._uptime, self._hold
        if hold is None or uptime is None or uptime.plan.table_da is None:
            return
        from rpmsgx.remoteproc.hold import Saved

        image = uptime.image
        saved = Saved(
            uptime.plan.table_da,
            uptime.plan.clean,
            self._firmware if image is not None else None,
            image.sha256 if image is not None else None,
            tuple((channel.name, channel.addr) for channel in self.channels),
            self.crash_count,
        )
        if saved != self._saved:
            hold.save(saved)
            self._saved = saved
        if self._guarded and self._guardian is None:
            from rpmsgx.remoteproc.guardian import Guardian

            self._guardian = Guardian(self._platform, "detach" if self.at_exit == "detach" else "stop")

    def _save_channels(self) -> None:
        if self._hold is not None:
            with self._lock:
                self._save()

    def _let_go(self) -> None:
        self._saved = None
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    # -- core dumps ----------------------------------------------------------------------------------------------

    def _snapshot(self) -> None:
        if self._coredump == "disabled":
            return
        assert self._uptime is not None
        core = self._uptime.core(copied=self._coredump == "enabled")
        if self._coredump == "enabled":
            self._core = core
            return
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(core.time))
        name = f"{self.name.replace(os.sep, '_')}-{stamp}-{self._crash_count}.core"
        path = os.path.join(self._coredump_dir, name)
        core.write(path)
        log.info("%s: core dumped to %s", self.name, path)

    def coredump(self, path: str | os.PathLike[str], format: Literal["elf", "raw"] = "elf") -> None:
        """Write the memory of the crashed remote to a new file at `path`: the copy of the last crash that was recovered
        from, or, where it is crashed now, the memory itself.

        Raises StateError where there is none.
        """
        with self._lock:
            self._look()
            uptime = self._uptime if self._state is State.CRASHED else None
            core = self._core if uptime is None else uptime.core(copied=False)
            if core is None:
                raise StateError(
                    f"{self.name} is {self.state}: there is no core to dump"
                    + ("" if self._coredump == "enabled" else "; coredump='enabled' keeps one over a recovery")
                )
            core.write(path, format)

    # -- waiting -------------------------------------------------------------------------------------------------

    def _wait(self, timeout: float | None) -> None:
        """Wait until there may be something to act on, which includes that another thread closes this."""
        self.fileno()
        self._watch.wait(timeout)

    def fileno(self) -> int:
        """Readable when there may be something for `poll()`; the same descriptor until `close()`."""
        with self._lock:
            self._check_usable()
            self._watched = True
            self._watch_buses()
            return self._watch.fileno()

    def _watch_buses(self) -> None:
        """A bus that goes takes its descriptor along; each new one is watched, if anything is."""
        if self._watched and not self._closed:
            for bus in self._buses():
                with contextlib.suppress(ChannelRemoved, Closed):
                    self._watch.add(bus.fileno())

    def poll(self, timeout: float | None = 0) -> int:
        """Act on what happens: crashes, firmware, services, and the messages and channels of its buses.

        Waits up to `timeout` seconds (None: for ever) for the first; returns how many things were dealt with. Errors of
        boots and recoveries are kept for the next call that needs the remote.
        """
        end = deadline(timeout)
        while True:
            self._check_usable()
            done = self._act() + self._poll_buses()
            if done or left(end) == 0:
                return done
            self._wait(left(end))

    def _poll_buses(self) -> int:
        with self._lock:
            buses = [*self._ended, *self._buses()]
            self._ended.clear()
            if not self.vdevs and not self._closed:
                self._platform.doorbell.drain()
        done, before = 0, self.channels
        for bus in buses:
            with contextlib.suppress(ChannelRemoved, Closed):
                done += bus.poll(0)
        self._save_channels()
        return done + (self.channels != before)

    # -- talking to it -------------------------------------------------------------------------------------------

    @property
    def vdevs(self) -> tuple[RpmsgVdev, ...]:
        """The rpmsg devices of the remote; () while it is not up."""
        uptime = self._uptime
        return () if uptime is None else uptime.vdevs

    def _buses(self) -> list[Bus]:
        return [vdev.bus for vdev in self.vdevs if vdev.bus is not None]

    @property
    def bus(self) -> Bus:
        """The rpmsg bus of the first rpmsg vdev. One that was closed is made anew: the remote sees a reset.

        Raises StateError while there is none, and the error of a boot or recovery that failed by itself.
        """
        with self._lock:
            self._look()
            error, self._error = self._error, None
            if error is not None:
                raise error
            if not self.vdevs:
                raise StateError(f"{self.name} is {self.state}: it has no bus")
            vdev = self.vdevs[0]
            if not vdev.bound and self.crash is None:
                if self._platform.rebind == "restart":
                    self._do(Event.SERVICE_DOWN)
                    self._do(Event.SERVICE_UP)
                    vdev = self.vdevs[0]
                else:
                    vdev.rebind()
                self._watch_buses()
            if vdev.bus is None:
                raise StateError(f"{self.name} is {self.state}: it has no bus")
            return vdev.bus

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What the remote has announced, on all its buses; () while it is not up."""
        return () if self.crash is not None else tuple(channel for bus in self._buses() for channel in bus.channels)

    @property
    def lost(self) -> int:
        """Messages that were in the rings of the host before, at the last `attach()` without `resume`."""
        uptime = self._uptime
        return 0 if uptime is None else uptime.lost

    def open(self, service_name: str, *, timeout: float | None = None) -> Endpoint:
        """Wait until the remote announces `service_name`; an endpoint bound to it. See `Bus.open`.

        A remote that waits for its firmware or its service, or recovers, is waited for. One that announces nothing at
        first is kicked again now and then: it may not have listened yet.
        """
        end = deadline(timeout)
        met = False
        while True:
            self._act()
            time_left = left(end)
            step = KICK_INTERVAL if time_left is None else min(time_left, KICK_INTERVAL)
            waiting = self.waiting_for
            if waiting is not None and self._error is None:
                if time_left == 0:
                    raise Timeout(f"{self.name} is {self.state} and waits for {waiting}: no {service_name!r} within "
                                  f"{timeout} s")  # fmt: skip
                self._wait(time_left)
                continue
            try:
                bus = self.bus
            except StateError:
                if met:
                    raise ChannelRemoved(f"{self.name}: the remote was stopped") from None
                raise
            met = True
            try:
                endpoint = bus.open(service_name, timeout=step)
            except Timeout as error:
                if left(end) == 0:
                    said = str(error).partition("; ")[2]
                    raise Timeout(f"{self.name} did not announce {service_name!r} within {timeout} s; {said}") from None
                if not bus.channels:
                    self._kick(bus)
            except ChannelRemoved as error:
                self._act()
                if self.waiting_for is None and self.state not in (State.RUNNING, State.ATTACHED):
                    raise ChannelRemoved(f"{self.name}: {error.strerror}") from None
            else:
                self._save_channels()
                return endpoint

    def _kick(self, bus: Bus) -> None:
        """Once more: the remote may not have listened yet."""
        bus.start()

    def trace(self) -> str:
        """What the remote has written to its trace buffers. Raises StateError while it is offline."""
        with self._lock:
            uptime = self._uptime
            if uptime is None:
                raise StateError(f"{self.name} is {self.state}: it has no trace")
            texts = (self._platform.space.read(trace.da, trace.len) for trace in uptime.plan.traces if trace.len)
            return "".join(text.split(b"\0", 1)[0].decode("utf-8", "replace") for text in texts)


def _board(board: str | os.PathLike[str] | Board | None) -> Board | None:
    if board is None or not isinstance(board, str | os.PathLike):
        return board
    from rpmsgx.remoteproc.board import load

    return load(board)


def _platform(platform: str | Platform | None, board: Board | None, options: dict[str, Any]) -> Platform:
    if isinstance(platform, Platform):
        if options:
            raise TypeError(f"options {', '.join(options)} belong to a platform that is given by name")
        return platform
    if platform is None and board is not None:
        return board.open_platform(**options)
    return open_platform(platform or "unicorn", **options)


def _one_of(what: str, value: str, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{what} is {value!r}, not one of {', '.join(map(repr, get_args(choices)))}")
    return value
