"""The CPUs that emulators run firmware on: what ELF says of them, and their registers as gdb calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Cpu(NamedTuple):
    machine: int
    """e_machine"""
    bits: int
    registers: tuple[str, ...]
    """In the order in which the start-up code, csrc/firmware/*.c, reports them."""


_CORTEX_M = (*(f"r{i}" for i in range(13)), "sp", "lr", "pc", "xpsr")
_RISCV = (
    *("pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1"),
    *(f"a{i}" for i in range(8)), *(f"s{i}" for i in range(2, 12)), *(f"t{i}" for i in range(3, 7)),
)  # fmt: skip
_AARCH64 = (*(f"x{i}" for i in range(31)), "sp", "pc", "cpsr")

CPUS = {
    "cortex-m4": Cpu(40, 32, _CORTEX_M),
    "riscv32": Cpu(243, 32, _RISCV),
    "riscv64": Cpu(243, 64, _RISCV),
    "cortex-a53": Cpu(183, 64, _AARCH64),
}

_WHERE = "pc", "lr", "ra", "x30", "sp", "xpsr", "cpsr"


def where(registers: Mapping[str, int]) -> str:
    """The registers that a person looks at first, in a line; empty if there are none of them."""
    return ", ".join(f"{name} {registers[name]:#010x}" for name in _WHERE if name in registers)
