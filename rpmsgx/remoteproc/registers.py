"""The `registers` platform: a core of this board, started, stopped and rung through registers that a board file names.

What is written where is the board's to say: `Control` has it as steps, each on some bits of one register of 32 bits. A
start that fails is undone by the steps of a stop. Nothing tells of a crash but the registers that the board names for
it: they are looked at whenever the remote rings, or the rings are looked at.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Literal

from ..errors import Closed, Error, ResourceError, StateError, Timeout
from ..memory.space import AddressSpace
from ..notify.timer import PolledDoorbell
from .elf import machine_name
from .platform import Platform
from .steps import ALL, Bits, Until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..memory.region import Region
    from ..notify.doorbell import Doorbell
    from ..notify.register import Register
    from .steps import Control, Steps

WITHIN = 1.0  # seconds that a wait has where the board says nothing else
_LOOK = 0.0005  # seconds between two looks at a register


class RegistersPlatform(Platform):
    """A core behind registers: `core` says what to do to them, `registers` has them all by the names used there.

    `memory` are the regions that the core may use, among them `shared`; without `doorbell` nobody rings, and the rings
    are looked at each millisecond. All of these belong to the platform from then on. `settle`: seconds that the core is
    given after a start, a stop and a detach that do not end with a wait.

    Raises ResourceError for a register that is not among `registers`.
    """

    name = "registers"

    def __init__(
        self,
        *,
        core: Control,
        registers: Mapping[str, Register],
        memory: Sequence[Region],
        shared: Region,
        doorbell: Doorbell | None = None,
        settle: float = 0.0,
        desc_addr: Literal["pa", "da"] = "pa",
    ) -> None:
        missing = sorted({bits.register for used in core.used.values() for bits in used} - registers.keys())
        if missing:
            raise ResourceError(f"there is no register {', '.join(missing)}")
        self._core, self._registers, self._settle = core, dict(registers), settle
        self.machine, self.cpu = core.machine, machine_name(core.machine)
        self.identity = core.identity
        self.desc_addr = desc_addr
        self.space = AddressSpace(*memory)
        self.shared = shared
        self.doorbell = PolledDoorbell() if doorbell is None else doorbell
        self._lock = threading.RLock()
        self._pid = os.getpid()  # a forked child has no part in the core
        self._runs = core.running is True  # as far as is known where no register tells
        self._held = False  # started or attached to
        self._crash: str | None = None
        self._closed = False

    def ships(self, firmware: str) -> bool:
        """Never: what comes with the package is for emulated boards."""
        return False

    @property
    def crash(self) -> str | None:
        # Whoever starts or stops the core at this moment knows better than its registers.
        if self._crash is None and self._held and self._lock.acquire(blocking=False):
            try:
                if self._held and not self._closed:
                    self._crash = self._died()
            finally:
                self._lock.release()
        return self._crash

    def _died(self) -> str | None:
        core = self._core
        if core.crashed is not None and self._is(core.crashed):
            return f"the remote gave up: {self._seen(core.crashed)}"
        if isinstance(core.running, Bits) and not self._is(core.running):
            return f"the core stopped by itself: {self._seen(core.running)}"
        return None

    @property
    def running(self) -> bool:
        with self._lock:
            running = self._core.running
            alive = self._is(running) if isinstance(running, Bits) else self._runs
            return alive and not self._closed and self.crash is None

    def start(self, entry: int) -> None:
        """Raises, with what was done undone by the steps of a stop, Timeout where a register does not become what is
        awaited, naming it; ResourceError for an entry that no register of 32 bits holds; StateError as `Platform`.
        """
        with self._lock:
            self._check_open()
            if self.running:
                raise StateError("the core is running already")
            if not self._core.start:
                raise StateError("the board names no registers that start the core (start)")
            if not 0 <= entry <= ALL:
                raise ResourceError(f"entry {entry:#x} does not fit a register of 32 bits")
            self._crash = None
            crashed = self._core.crashed
            if crashed is not None and self._is(crashed):  # as it was found
                self._run(self._core.stop)
            try:
                self._run(self._core.start, entry)
            except BaseException:
                with contextlib.suppress(Error):  # it may fail for the same reason
                    self._run(self._core.stop)
                raise
            self._runs = self._held = True

    def attach(self) -> None:
        """One that has crashed and restarts by itself has a second to run again: Timeout where it does not."""
        with self._lock:
            self._check_open()
            running = self._core.running
            if self._crash is not None and isinstance(running, Bits):
                self._await(running, WITHIN)
            self._crash = None
            super().attach()
            self._runs = self._held = True

    def stop(self) -> None:
        with self._lock:
            if self._held or self.running:
                self._stop()

    def _stop(self) -> None:
        if not self._core.stop:
            raise StateError("the board names no registers that stop the core (stop)")
        held, self._held = self._held, False  # what its registers show from here on is no crash
        try:
            self._run(self._core.stop)
        except BaseException:
            self._held = held
            raise
        self._runs = False

    def detach(self, timeout: float = 1.0) -> None:
        """Without `detach` steps of the board the doorbell tells the remote. Where no register acknowledges, it has the
        time that `settle` gives; where that is not given either, Timeout is raised at once.
        """
        with self._lock:
            self._check_open()
            if not self.running:
                raise StateError("the core is not running")
            steps = self._core.detach
            if not (_awaits(steps) or self._settle):
                raise Timeout(
                    "nothing tells when the remote has let go: have the board name the register that acknowledges "
                    "(detach), or the time that it takes (settle)"
                )
            try:
                if not steps:
                    self.doorbell.kick(0)
                self._run(steps, within=timeout)
            except Timeout:
                if self.crash is None:
                    raise
            if self.crash is not None:
                raise StateError(f"the remote ended instead of detaching: {self.crash}")
            self._held = False

    def close(self) -> None:
        if self._pid != os.getpid():
            self._lock = threading.RLock()  # whoever had it stayed behind
            self._held = False
        with self._lock:
            if self._closed:
                return
            try:
                if self._held:
                    self._stop()
            finally:
                self._closed = True
                self._registers.clear()
                self.doorbell.close()
                for region in self.space.regions:
                    region.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Error):  # nobody is left to tell
                self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"platform {self.name!r} is closed")

    # -- registers -----------------------------------------------------------------------------------------------------

    def _run(self, steps: Steps, entry: int | None = None, within: float = WITHIN) -> None:
        for step in steps:
            if isinstance(step, Until):
                self._await(step, within if step.within is None else step.within)
            else:
                register = self._registers[step.register]
                value = entry if step.value == "entry" else step.value
                assert isinstance(value, int)
                if step.mask == ALL:
                    register.write(value)
                else:
                    register.update(value, step.mask)
        if not _awaits(steps):
            time.sleep(self._settle)

    def _await(self, bits: Bits, within: float) -> None:
        deadline = time.monotonic() + within
        while True:
            late = time.monotonic() >= deadline  # before the look: who was not run for a while still looks once
            if self._is(bits):
                return
            if late:
                raise Timeout(f"{self._seen(bits)}; {Bits.__str__(bits)} was awaited for {within:g} s")
            time.sleep(_LOOK)

    def _is(self, bits: Bits) -> bool:
        return not self._closed and self._registers[bits.register].read() & bits.mask == bits.value

    def _seen(self, bits: Bits) -> str:
        return f"register {bits.register} reads {self._registers[bits.register].read():#x}"


def _awaits(steps: Steps) -> bool:
    """Whether the core is done when the steps are."""
    return bool(steps) and isinstance(steps[-1], Until)
