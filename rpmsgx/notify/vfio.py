"""Doorbells of PCI devices that are bound to vfio-pci: an MSI-X vector, MSI or INTx, as an eventfd."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from rpmsgx.errors import ResourceError, StateError
from rpmsgx.memory.vfio import INTX, KINDS, REQUEST
from rpmsgx.notify.doorbell import Doorbell

if TYPE_CHECKING:
    from rpmsgx.memory.region import Region
    from rpmsgx.memory.vfio import VfioDevice
    from rpmsgx.notify.uio import Access


class VfioDoorbell(Doorbell):
    """Rung by interrupt `vector` of `device`: of MSI-X, or else of MSI, or INTx; rings by `kick`, if there is one.

    `acknowledge` clears the interrupt's cause, where reading the rings does not. Both are done in `registers`:
    `device.map_bar()`, or any other. Device and registers are closed with the doorbell. `missed` counts interrupts that
    came before an earlier one had been seen: nothing is lost by them. Thread-safe.

    Raises ResourceError if there is no such vector. `drain()` raises StateError once the kernel wants the device back,
    by an unbind or since it was removed: that waits until the doorbell and all maps are closed.
    """

    def __init__(
        self,
        device: VfioDevice,
        vector: int = 0,
        *,
        registers: Region | None = None,
        kick: Access | None = None,
        acknowledge: Access | None = None,
    ) -> None:
        self._kick = None if kick is None else kick.of(registers)
        self._acknowledge = None if acknowledge is None else acknowledge.of(registers)
        kind, count = device.vectors()
        if not 0 <= vector < count:
            raise ResourceError(f"{device.slot} has no {KINDS[kind]} vector {vector}; it has 0 to {count - 1}")
        self.missed = 0
        self._by_level = kind == INTX
        self._rung = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wanted = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._either = select.epoll()
        self._device: VfioDevice | None = None  # not ours yet
        self._registers: Region | None = None
        try:
            for fd in (self._rung, self._wanted):
                self._either.register(fd, select.EPOLLIN)
            device.listen(REQUEST, 0, self._wanted)
            device.listen(kind, vector, self._rung)
        except BaseException:
            self.close()
            raise
        self._device, self._registers = device, registers

    def fileno(self) -> int:
        return -1 if self._either.closed else self._either.fileno()

    def kick(self, notifyid: int) -> None:
        kick = self._kick
        if kick is not None:
            kick()

    def drain(self) -> None:
        device = self._device
        if device is None:
            return
        try:
            self.missed += os.eventfd_read(self._rung) - 1
        except BlockingIOError:
            self._check_wanted(device)
            return
        # The cause first: an interrupt by level that is switched on before that comes again at once.
        acknowledge = self._acknowledge
        if acknowledge is not None:
            acknowledge()
        if self._by_level:
            device.unmask(INTX)

    def _check_wanted(self, device: VfioDevice) -> None:
        try:
            os.eventfd_read(self._wanted)
        except BlockingIOError:
            return
        os.eventfd_write(self._wanted, 1)  # it stays so
        raise StateError(f"{device.slot} is wanted back: it is being removed, or unbound from vfio-pci; close this")

    def close(self) -> None:
        fds = self._rung, self._wanted
        self._rung = self._wanted = -1
        self._either.close()
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self._kick = self._acknowledge = None
        device, self._device = self._device, None
        if device is not None:
            device.close()
        if self._registers is not None:
            self._registers.close()
