"""Remotes that this machine runs itself, in a thread or a process: what `unicorn` and `native` share."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from ..errors import Closed, Error, StateError, Timeout
from ..memory.space import AddressSpace
from ..notify.doorbell import EventfdDoorbell
from .platform import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from ..memory.region import Region
    from .platform import CrashKind

# RPX_EVENT_* of csrc/remote/remote.h.
KICK, DETACH, STOP = 1, 2, 4
_POSTED = {KICK: 1, DETACH: 1 << 32, STOP: 1 << 48}

_LATE = 0.1  # seconds for an acknowledgement that is on its way when the time is up

FAULTS = {1: "undefined instruction", 2: "access to unmapped memory", 3: "fatal error"}
"""RPX_FAULT_* of csrc/remote/remote.h."""


class Mailbox:
    """Events to the remote, rings and acknowledgements back, in eventfds: for threads, C and processes.

    `events` counts 1 for a kick, 1 << 32 for a detach, 1 << 48 for a stop: a bus rings by writing a plain 1.
    `acks` sums the event bits that were dealt with. All calls are thread-safe until `close`.
    """

    def __init__(self) -> None:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.events = os.eventfd(0, flags)
        self.kicks = os.eventfd(0, flags)
        self.acks = os.eventfd(0, flags)

    def post(self, event: int) -> None:
        _write(self.events, _POSTED[event])

    def take(self) -> int:
        """The remote's side: the pending event bits, which are cleared."""
        value = _read(self.events)
        return (
            (KICK if value & 0xFFFFFFFF else 0)
            | (DETACH if value >> 32 & 0xFFFF else 0)
            | (STOP if value >> 48 else 0)
        )

    def ring(self) -> None:
        """The remote's side: make the host's doorbell readable."""
        _write(self.kicks, 1)

    def acknowledge(self, events: int) -> None:
        """The remote's side."""
        _write(self.acks, events)

    def withdraw(self, event: int) -> bool:
        """Take a posted event back. False: the remote has taken it already."""
        pending = self.take()
        for other in _POSTED:
            if pending & ~event & other:
                self.post(other)
        return pending & event != 0

    @property
    def fds(self) -> tuple[int, int, int]:
        return self.events, self.kicks, self.acks

    def become(self, fds: Sequence[int]) -> None:
        """Put copies of other eventfds, in the order of `fds`, behind the numbers of these."""
        for own, other in zip(self.fds, fds, strict=True):
            os.dup2(other, own, inheritable=False)

    def clear(self) -> None:
        for fd in self.fds:
            _read(fd)

    def acknowledged(self) -> int:
        """The event bits that were dealt with since the last call."""
        return _read(self.acks)

    def close(self) -> None:
        for fd in self.fds:
            if fd >= 0:
                os.close(fd)
        self.events = self.kicks = self.acks = -1


def _write(fd: int, value: int) -> None:
    try:
        os.eventfd_write(fd, value)
    except BlockingIOError:
        pass  # full: it is as loud as it can be


def _read(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# A forked child has no part in its parent's remotes. It gives up its copies of the descriptors: the remote's process
# lives as long as somebody holds its lifeline.
_platforms: weakref.WeakSet[LocalPlatform] = weakref.WeakSet()


def _after_fork() -> None:
    for platform in list(_platforms):
        platform._forget()


os.register_at_fork(after_in_child=_after_fork)


class Run(Protocol):
    """One life of a remote."""

    crash: str | None
    """Why it died by itself."""

    @property
    def alive(self) -> bool: ...

    def fileno(self) -> int:
        """Readable when it has died; -1 where death is told by STOP among the acknowledgements."""

    def end(self) -> None:
        """Stop it, with force if need be. Idempotent. Raises Timeout if even that fails for some seconds."""

    def forget(self) -> None:
        """Give up descriptors, and touch nothing else: in a forked child, or as it goes on without this process."""


class LocalPlatform(Platform):
    """A platform whose remote is a thread or a process over regions that it owns."""

    lasts = False
    """Whether the remote can go on without this process."""

    def __init__(
        self, *regions: Region, shared: Region, desc_addr: Literal["pa", "da"], mailbox: Mailbox | None = None
    ) -> None:
        self.space = AddressSpace(*regions, shared)
        self.shared = shared
        self.desc_addr = desc_addr
        self._mailbox = Mailbox() if mailbox is None else mailbox
        # The doorbell works on duplicates: whoever closes it early does no harm here.
        self.doorbell = self._doorbell(os.dup(self._mailbox.kicks), os.dup(self._mailbox.events))
        self._run: Run | None = None
        self._held = True  # a run that there is is this platform's to end
        self._finalizer: weakref.finalize[[], LocalPlatform] | None = None
        self._state = threading.Lock()
        self._detaching = threading.Lock()
        self._closed = False
        _platforms.add(self)

    def _doorbell(self, listen: int, ring: int) -> EventfdDoorbell:
        return EventfdDoorbell(listen, ring)

    def _boot(self, entry: int) -> Run:
        raise NotImplementedError

    @property
    def crash(self) -> str | None:
        run = self._run
        return run.crash if run is not None and self._held else None

    @property
    def crash_kind(self) -> CrashKind:
        return "fatal error" if (self.crash or "").startswith(FAULTS[3]) else "fault"

    @property
    def running(self) -> bool:
        run = self._run
        return run is not None and run.alive

    def start(self, entry: int) -> None:
        with self._state:
            if self._closed:
                raise Closed(f"platform {self.name!r} is closed")
            if self.running:
                raise StateError(f"the remote of platform {self.name!r} is running already")
            self._end()
            self._mailbox.clear()
            self._run = self._boot(entry)
            self._hold(self._run)

    def attach(self) -> None:
        with self._state:
            run = self._run
            if self._closed:
                raise Closed(f"platform {self.name!r} is closed")
            if run is None or not run.alive:
                raise StateError(f"no remote runs on platform {self.name!r}: there is nothing to attach to")
            self._hold(run)

    def _hold(self, run: Run) -> None:
        self._held = True
        self._unfinalize()
        # A platform that is forgotten, or open at exit, ends its remote.
        self._finalizer = weakref.finalize(self, run.end)

    def _let_go(self) -> None:
        self._held = False
        self._unfinalize()

    def _unfinalize(self) -> None:
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()

    def stop(self) -> None:
        with self._state:
            self._end()

    def _end(self) -> None:
        if self._run is not None:
            self._run.end()
        self._unfinalize()

    def detach(self, timeout: float = 1.0) -> None:
        with self._detaching:
            run = self._run
            if run is None or not run.alive:
                raise StateError(f"the remote of platform {self.name!r} is not running")
            self._mailbox.acknowledged()  # one that came too late for its own detach
            self._mailbox.post(DETACH)
            poll = select.poll()
            poll.register(self._mailbox.acks, select.POLLIN)
            if run.fileno() >= 0:
                poll.register(run.fileno(), select.POLLIN)
            deadline = time.monotonic() + timeout
            late = False
            while True:
                left = deadline - time.monotonic()
                poll.poll(max(0.0, left) * 1000)
                acks = self._mailbox.acknowledged()
                if acks & DETACH:
                    if self.lasts:
                        self._let_go()
                    return
                if acks & STOP or not run.alive:
                    raise StateError(f"the remote ended instead of detaching: {run.crash or 'stopped'}")
                if left <= 0:
                    # It stays attached, also if it wakes up later; unless it is about to acknowledge this moment.
                    if not late and not self._mailbox.withdraw(DETACH):
                        late, deadline = True, deadline + _LATE
                        continue
                    raise Timeout(f"the remote did not acknowledge the detach in {timeout} s")

    def _forget(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._state, self._detaching = threading.Lock(), threading.Lock()  # whoever had them stayed behind
        self._unfinalize()
        if self._run is not None:
            self._run.forget()
        self.doorbell.close()
        self._mailbox.close()

    def close(self) -> None:
        with self._state:
            if self._closed:
                return
            self._closed = True
            try:
                if self._held:
                    self._end()
                elif self._run is not None:
                    self._run.forget()
            finally:
                with self._detaching:
                    self.doorbell.close()
                    self._mailbox.close()
                    for region in self.space.regions:
                        region.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        try:
            self.close()
        except Error:
            pass  # a remote that cannot be stopped keeps its memory, and nobody is left to tell
