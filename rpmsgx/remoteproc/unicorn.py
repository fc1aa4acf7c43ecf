"""The `unicorn` platform: a core in this process, emulated by Unicorn (extra `rpmsgx[demo]`).

    cpu              "cortex-m4"; "riscv32", "riscv64": RV32IMAC, RV64IMAC in machine mode; "cortex-a53": AArch64 at EL1
    program memory   region "rom"  da 0           256 KiB
    RAM              region "ram"  da 0x20000000  128 KiB
    shared memory    region "shm"  da 0x60000000    1 MiB
    mailbox          csrc/firmware/unicorn/mailbox.h, at 0x40010000

Physical addresses are 0x8_0000_0000 above device addresses, so that nobody takes one for the other; a board
file may choose others, and other names, and add memory elsewhere. The firmware asks the mailbox what descriptors
call the shared memory. The core runs in a thread of its own, outside the GIL except at the mailbox, and sleeps in
`wfi`. It has no interrupts, and an exception is a crash: Unicorn takes none to the firmware's vectors.

Unicorn does the loads and stores of the firmware in program order but drops its barriers. On x86 that is
enough, as the firmware asks the mailbox for full fences; where memory order is weaker, messages can be lost.
"""

from __future__ import annotations

import ctypes
import platform as machine_info
import select
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ..errors import ResourceError, Timeout
from ..memory.region import Region, hex_range
from .cpu import CPUS, where
from .local import FAULTS, KICK, STOP, LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..memory.space import AddressSpace
    from .local import Mailbox
    from .platform import Image

ROM, RAM, SHM = 0, 0x20000000, 0x60000000
LINKED = {"program memory": (ROM, 0x40000), "RAM": (RAM, 0x20000), "shared memory": (SHM, 0x100000)}
"""(da, size) of what the firmware is linked for: csrc/firmware/unicorn/*.ld, mailbox.h."""
PA_OFFSET = 0x8_0000_0000
_PAGE = 0x1000  # of the emulator
_MAILBOX = 0x40010000
_R_KICK, _R_EVENTS, _R_ACK, _R_FAULT = 0x0, 0x4, 0x8, 0xC  # and 0x10, sync: any callback is a full fence
_R_SHM_ADDRESS = 0x14  # two words
_EXCEPTION = 0x100
_NOWHERE = 0xFFFFFFFE
_GRACE, _PATIENCE = 0.25, 5.0


class _Target(NamedTuple):
    """A CPU as Unicorn calls it, and what is special about it there."""

    arch: str  # of UC_ARCH_*, and of its registers, UC_*_REG_*
    modes: tuple[str, ...]  # of UC_MODE_*
    model: str  # of UC_CPU_*
    exceptions: Mapping[int, str]  # by Unicorn's numbers, which for ARM are none of the CPU's
    invalid: str = FAULTS[1]  # what UC_ERR_INSN_INVALID tells of
    vectors: bool = False  # the first stack pointer is at 0, and addresses of code are odd
    ahead: int = 0  # how far Unicorn has moved the pc on when it tells of an exception


_ARM = {1: FAULTS[1], 2: "system call", 7: "breakpoint"}
_RISCV = {2: FAULTS[1], 8: "system call"}
_TARGETS = {
    "cortex-m4": _Target("ARM", ("THUMB", "MCLASS"), "ARM_CORTEX_M4", _ARM, vectors=True),
    "riscv32": _Target("RISCV", ("RISCV32",), "RISCV32_ANY", _RISCV, invalid="breakpoint", ahead=4),
    "riscv64": _Target("RISCV", ("RISCV64",), "RISCV64_ANY", _RISCV, invalid="breakpoint", ahead=4),
    "cortex-a53": _Target("ARM64", ("ARM",), "ARM64_A53", _ARM),
}


class _Range(Protocol):
    """A Region, or what will be one."""

    @property
    def name(self) -> str: ...
    @property
    def da(self) -> int: ...
    @property
    def size(self) -> int: ...


class UnicornPlatform(LocalPlatform):
    """An emulated core, `cpu`: "cortex-m4", "riscv32", "riscv64" or "cortex-a53".

    `memory`: regions to use, which the platform then owns, among them `shared`; without, it makes its own.
    `desc_addr`: what descriptors carry. Raises ImportError, naming the extra, where Unicorn is not installed, and
    ResourceError for memory that the firmware is not linked for.
    """

    name = "unicorn"

    def __init__(
        self,
        cpu: str = "cortex-m4",
        *,
        memory: Sequence[Region] = (),
        shared: Region | None = None,
        desc_addr: Literal["pa", "da"] = "da",
    ) -> None:
        try:
            import_module("unicorn")
        except ImportError as exc:
            raise ImportError("platform 'unicorn' needs Unicorn: pip install rpmsgx[demo]") from exc
        if machine_info.machine() not in ("x86_64", "AMD64", "i386", "i686"):
            import logging

            logging.getLogger(__name__).warning("Unicorn drops memory barriers here: messages can be lost")
        if cpu not in _TARGETS:
            raise ValueError(f"cpu is {cpu!r}, not one of {', '.join(_TARGETS)}")
        if desc_addr not in ("pa", "da"):
            raise ValueError(f"desc_addr is {desc_addr!r}, not 'pa' or 'da'")
        if shared is None:
            if memory:
                raise ValueError("memory without shared: one of the regions is for rings and buffers")
            names = zip(("rom", "ram", "shm"), LINKED.values(), strict=True)
            memory = [Region.memfd(name, size, da=da, pa=da + PA_OFFSET) for name, (da, size) in names]
            shared = memory[-1]
        self.check_memory(memory, shared)
        self.cpu, self.machine, self.bits = cpu, CPUS[cpu].machine, CPUS[cpu].bits
        super().__init__(*(region for region in memory if region is not shared), shared=shared, desc_addr=desc_addr)

    @staticmethod
    def check_memory(memory: Iterable[_Range], shared: _Range) -> None:
        """Raise ResourceError where the firmware would not find its memory, or the emulator cannot map it."""
        places = {item.da: item for item in memory}
        for what, (da, size) in LINKED.items():
            if da not in places or places[da].size != size:
                found = f"region {places[da].name!r} has {places[da].size:#x}" if da in places else "there is none"
                raise ResourceError(f"the firmware is linked for {what} at da {da:#x} of {size:#x} bytes; {found}")
        if shared.da != SHM:
            raise ResourceError(f"region {shared.name!r}: the firmware shares da {SHM:#x}, not {shared.da:#x}")
        for item in places.values():
            end = item.da + item.size
            if item.da % _PAGE or item.size % _PAGE or end > 1 << 32:
                span = hex_range(item.da, item.size)
                raise ResourceError(f"region {item.name!r}: da {span} is not in whole pages of {_PAGE:#x} in 32 bits")
            if item.da < _MAILBOX + _PAGE and _MAILBOX < end:
                raise ResourceError(f"region {item.name!r}: da {hex_range(_MAILBOX, _PAGE)} is the mailbox")

    def image(self, firmware: str | None) -> Image:
        """As `Platform.image`; None is the shipped "sample"."""
        return super().image("sample" if firmware is None else firmware)

    @property
    def registers(self) -> dict[str, int]:
        """As `Platform.registers`."""
        return dict(self._run.registers) if isinstance(self._run, _Core) else {}

    def _boot(self, entry: int) -> _Core:
        address = self.shared.pa if self.desc_addr == "pa" else self.shared.da
        return _Core(self.cpu, self.space, self._mailbox, entry, address)


class _Core:
    """One life of the core: a new emulator each time, since an old one keeps what it has translated."""

    def __init__(self, cpu: str, space: AddressSpace, mailbox: Mailbox, entry: int, shm_address: int) -> None:
        self._u: Any = import_module("unicorn")
        u = self._u
        self._target = target = _TARGETS[cpu]
        self._constants = constants = import_module(f"unicorn.{target.arch.lower()}_const")
        self._names = CPUS[cpu].registers
        self.crash: str | None = None
        self.registers: dict[str, int] = {}
        self._mailbox = mailbox
        self._shm_address = shm_address  # in descriptors
        self._over = False  # the firmware has acknowledged the stop, or given up
        self._force = False
        self._access: str | None = None
        mode = sum(getattr(u, f"UC_MODE_{name}") for name in target.modes)
        self._uc = uc = u.Uc(getattr(u, f"UC_ARCH_{target.arch}"), mode)
        uc.ctl_set_cpu_model(getattr(constants, f"UC_CPU_{target.model}"))
        permissions = {ROM: u.UC_PROT_READ | u.UC_PROT_EXEC}
        self._pins = []  # keeps the maps while the emulator has their addresses
        for region in space.regions:
            pin = ctypes.c_char.from_buffer(region.buffer)
            self._pins.append(pin)
            permission = permissions.get(region.da, u.UC_PROT_READ | u.UC_PROT_WRITE)
            uc.mem_map_ptr(region.da, region.size, permission, ctypes.addressof(pin))
        uc.mmio_map(_MAILBOX, 0x1000, self._read, None, self._write, None)
        uc.hook_add(u.UC_HOOK_MEM_INVALID, self._invalid)
        uc.hook_add(u.UC_HOOK_INTR, self._exception)
        if target.vectors:
            uc.reg_write(self._register("sp"), int.from_bytes(space.read(ROM, 4), "little"))
        self._thread = threading.Thread(target=self._work, args=(entry,), name="rpmsgx-unicorn", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self.crash is None and self._thread.is_alive()

    def fileno(self) -> int:
        return -1

    def _work(self, entry: int) -> None:
        u, uc = self._u, self._uc
        event = select.poll()
        event.register(self._mailbox.events, select.POLLIN)
        pc = entry
        crash = None
        try:
            while not self._force:
                uc.emu_start(pc | self._target.vectors, _NOWHERE)
                if self._over:
                    break
                # It ended at a `wfi`. The firmware looks at the events before it sleeps again.
                pc = uc.reg_read(self._register("pc"))
                event.poll()
        except u.UcError as exc:
            invalid = exc.errno == u.UC_ERR_INSN_INVALID
            crash = self._target.invalid if invalid else self._access or str(exc)
        except Exception as exc:  # from a callback
            crash = f"{type(exc).__name__}: {exc}"
        if crash is not None:
            self._died(uc, crash)
        del uc, self._uc  # the emulator, before the memory that it has mapped
        self._pins.clear()
        self._mailbox.acknowledge(STOP)

    def _register(self, name: str) -> int:
        """Unicorn's number of it."""
        name = {"cpsr": "pstate"}.get(name, name)
        number: int = getattr(self._constants, f"UC_{self._target.arch}_REG_{name.upper()}")
        return number

    def _died(self, uc: Any, cause: str, ahead: int = 0) -> None:
        self.registers = {name: uc.reg_read(self._register(name)) for name in self._names}
        self.registers["pc"] -= ahead
        self.crash = f"{cause} at {where(self.registers)}"
        self._mailbox.ring()

    def _read(self, uc: Any, offset: int, size: int, data: Any) -> int:
        if offset == _R_EVENTS:
            return self._mailbox.take()
        if offset in (_R_SHM_ADDRESS, _R_SHM_ADDRESS + 4):
            return self._shm_address >> 8 * (offset - _R_SHM_ADDRESS) & 0xFFFFFFFF
        return 0

    def _write(self, uc: Any, offset: int, size: int, value: int, data: Any) -> None:
        if offset == _R_KICK:
            self._mailbox.ring()
        elif offset == _R_ACK:
            if value & STOP:
                self._over = True
            else:
                self._mailbox.acknowledge(value)
        elif offset == _R_FAULT:
            exception = f"exception {value - _EXCEPTION}"
            self._give_up(uc, exception if value >= _EXCEPTION else FAULTS.get(value, f"fault {value}"))

    def _exception(self, uc: Any, number: int, data: Any) -> None:
        cause = self._target.exceptions.get(number, f"exception {number} of Unicorn")
        self._give_up(uc, cause, self._target.ahead)

    def _give_up(self, uc: Any, cause: str, ahead: int = 0) -> None:
        self._died(uc, cause, ahead)
        self._over = True
        uc.emu_stop()

    def _invalid(self, uc: Any, access: int, address: int, size: int, value: int, data: Any) -> bool:
        u = self._u
        kinds = {
            u.UC_MEM_READ_UNMAPPED: "read of unmapped memory",
            u.UC_MEM_WRITE_UNMAPPED: "write to unmapped memory",
            u.UC_MEM_FETCH_UNMAPPED: "execution of unmapped memory",
            u.UC_MEM_READ_PROT: "read of protected memory",
            u.UC_MEM_WRITE_PROT: "write to protected memory",
            u.UC_MEM_FETCH_PROT: "execution of protected memory",
        }
        self._access = f"{kinds.get(access, 'invalid access')} (address {address:#010x}, {size} bytes)"
        return False

    def forget(self) -> None:
        pass

    def end(self) -> None:
        if not self._thread.is_alive():
            return
        self._mailbox.post(STOP)
        self._thread.join(_GRACE)
        self._force = True
        deadline = time.monotonic() + _PATIENCE
        while self._thread.is_alive():
            # A stop that comes before emu_start is lost, so it is repeated.
            try:
                self._uc.emu_stop()
            except AttributeError:
                pass  # it has just ended
            self._mailbox.post(KICK)
            self._thread.join(0.002)
            if time.monotonic() > deadline:
                raise Timeout("the emulated core does not stop")
