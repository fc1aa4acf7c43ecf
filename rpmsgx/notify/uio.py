"""Doorbells of real boards: a UIO device's interrupt to be rung by, and a register to ring with.

Documentation/driver-api/uio-howto.rst of Linux: a read of 4 bytes gives the number of interrupts so far; the driver has
switched the interrupt off then, and whoever has seen to its cause switches it on again.
"""

from __future__ import annotations

import errno
import os
import struct
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from rpmsgx.errors import ResourceError, StateError
from rpmsgx.memory.device_file import attribute, open_device
from rpmsgx.memory.uio import find
from rpmsgx.notify.doorbell import Doorbell
from rpmsgx.notify.register import Register
from rpmsgx.notify.timer import POLL_MS, PolledDoorbell

if TYPE_CHECKING:
    from collections.abc import Callable

    from rpmsgx.memory.region import Region

_COUNT = struct.Struct("=I")
_ON = _COUNT.pack(1)
_ALL = 0xFFFF_FFFF
_PCI_COMMAND, _PCI_INTX_OFF = 4, 1 << 10  # linux/pci_regs.h


class Access(NamedTuple):
    """What is done to the 32-bit register at `offset` bytes: `value` is written, or it is read where there is none.

    `mask`: the bits that are written; the others keep what they hold.
    """

    offset: int
    value: int | None = None
    mask: int = _ALL

    def of(self, registers: Region | None) -> Callable[[], object]:
        """It, ready to be done. Raises ResourceError if there is no such register."""
        if registers is None:
            raise ResourceError(f"offset {self.offset:#x}: a doorbell's register needs the registers' memory")
        try:
            register = Register(registers.buffer, self.offset)
        except ValueError as exc:
            raise ResourceError(f"region {registers.name!r}: {exc}") from None
        if self.value is None:
            return register.read
        if self.mask == _ALL:
            return partial(register.write, self.value)
        return partial(register.update, self.value, self.mask)


class UioDoorbell(Doorbell):
    """Rung by the interrupt of the UIO device called `device`, or at that path; rings by `kick`, if there is one.

    `acknowledge` clears the interrupt's cause, where reading the rings does not. Both are done in `registers`, which is
    closed with the doorbell. `missed` counts interrupts that came before an earlier one had been seen: nothing is lost
    by them, as a ring means "look at every vring". Thread-safe.

    The interrupt is switched on again by writing to the device, or, where its driver does not take that
    (uio_pci_generic), in the PCI command register.

    Raises ResourceError, which says how to get there: no device, no permission, no interrupt. `drain()` raises
    StateError once the device has gone.
    """

    def __init__(
        self,
        device: str,
        *,
        registers: Region | None = None,
        kick: Access | None = None,
        acknowledge: Access | None = None,
        sysfs: str = "/sys",
        dev: str = "/dev",
    ) -> None:
        self._registers = registers
        self._config = self._fd = -1
        self._kick = None if kick is None else kick.of(registers)
        self._acknowledge = None if acknowledge is None else acknowledge.of(registers)
        found = find(device, sysfs=sysfs, dev=dev)
        self.path = found.path
        self.missed = 0
        self._fd = open_device("doorbell", found.path, "udev or devtmpfs has not made it", flags=os.O_NONBLOCK)
        try:
            self._count = int(attribute(f"{found.sysfs}/event") or "0")
            self._begin(f"{found.sysfs}/device/config")
        except BaseException:
            self._registers = None  # stays the caller's
            self.close()
            raise

    def _begin(self, config: str) -> None:
        """Switch the interrupt on, by which it shows how that is done here."""
        try:
            os.write(self._fd, _ON)
            return
        except OSError as exc:
            if exc.errno == errno.EIO:
                raise ResourceError(
                    f"doorbell: {self.path} has no interrupt; give it one (interrupts in the device tree), "
                    "or do without: the rings are then looked at each millisecond"
                ) from exc
        if os.path.exists(config):
            self._config = open_device("doorbell", config, "the device has gone")
            self._switch_on()

    def _switch_on(self) -> None:
        if self._config >= 0:
            command = int.from_bytes(os.pread(self._config, 2, _PCI_COMMAND), "little")
            os.pwrite(self._config, (command & ~_PCI_INTX_OFF).to_bytes(2, "little"), _PCI_COMMAND)
        else:
            try:
                os.write(self._fd, _ON)
            except OSError:
                pass  # a driver that switches it on by itself

    def fileno(self) -> int:
        return self._fd

    def kick(self, notifyid: int) -> None:
        kick = self._kick
        if kick is not None:
            kick()

    def drain(self) -> None:
        fd = self._fd
        if fd < 0:
            return
        try:
            [count] = _COUNT.unpack(os.read(fd, _COUNT.size))
        except BlockingIOError:
            return
        except (OSError, struct.error) as exc:
            raise StateError(f"{self.path} has gone: it was removed, or unbound from its driver") from exc
        self.missed += max((count - self._count & _ALL) - 1, 0)
        self._count = count
        # The cause first: an interrupt by level that is switched on before that comes again at once.
        acknowledge = self._acknowledge
        if acknowledge is not None:
            acknowledge()
        self._switch_on()

    def close(self) -> None:
        fds = self._fd, self._config
        self._fd = self._config = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self._kick = self._acknowledge = None
        if self._registers is not None:
            self._registers.close()


class RegisterDoorbell(PolledDoorbell):
    """Rings by the register of `kick`, if there is one; nothing rings this end, which asks to look each `ms`.

    `acknowledge` is done at each look, for a mailbox whose other end may not ring again before. `registers` are closed
    with the doorbell. Thread-safe. Raises ResourceError for a register that is not there.
    """

    def __init__(
        self,
        registers: Region,
        kick: Access | None = None,
        acknowledge: Access | None = None,
        ms: float = POLL_MS,
    ) -> None:
        self._kick = None if kick is None else kick.of(registers)
        self._acknowledge = None if acknowledge is None else acknowledge.of(registers)
        super().__init__(ms)
        self._registers = registers

    def kick(self, notifyid: int) -> None:
        kick = self._kick
        if kick is not None:
            kick()

    def drain(self) -> None:
        acknowledge = self._acknowledge
        if acknowledge is not None:
            acknowledge()
        super().drain()

    def close(self) -> None:
        super().close()
        self._kick = self._acknowledge = None
        self._registers.close()
