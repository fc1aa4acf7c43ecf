"""What is done to the registers of a board, as its file says it: { register = "rcc.hold", set = 0x1 }.

Registers have 32 bits and are called "BLOCK.NAME". Nothing here touches one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from . import strict_toml as toml

ALL = 0xFFFF_FFFF


@dataclass(frozen=True)
class Bits:
    """The bits `mask` of a register, and what they are, or are to be.

    `value` "entry": the boot address of the image; None: nothing, the register is read.
    """

    register: str
    value: int | Literal["entry"] | None
    mask: int = ALL

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.register} is read"
        value = self.value if self.value == "entry" else hex(self.value)
        return f"{self.register} = {value}" + (f" in {self.mask:#x}" if self.mask != ALL else "")


@dataclass(frozen=True)
class Write(Bits):
    """The bits are written; the others of the register keep what they hold."""


@dataclass(frozen=True)
class Until(Bits):
    """The bits are awaited, for `within` seconds; None: for as long as what they belong to may take."""

    within: float | None = None

    def __str__(self) -> str:
        return f"until {super().__str__()}" + (f" within {self.within:g} s" if self.within is not None else "")


Steps: TypeAlias = tuple[Write | Until, ...]


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a core is started, stopped and looked at."""

    machine: int
    """e_machine of the images that it runs."""
    start: Steps = ()
    stop: Steps = ()
    detach: Steps = ()
    """Tells the remote to forget the rings, and awaits that it has."""
    running: Bits | bool = False
    """What a register holds while the core runs; True: others have started it, and no register tells."""
    crashed: Bits | None = None
    """What a register holds once the remote has died."""
    identity: str | None = None
    """As of `Platform`."""

    @property
    def used(self) -> dict[str, tuple[Bits, ...]]:
        """All that is done or looked at, by the name of the field."""
        states = {key: (bits,) for key in ("running", "crashed") if isinstance(bits := getattr(self, key), Bits)}
        return {"start": self.start, "stop": self.stop, "detach": self.detach, **states}


# -- reading -----------------------------------------------------------------------------------------------------------

_FORMS = {
    # the key that says what is done: the keys that may stand beside it, and what it looks like
    "value": (("mask",), "value = 0x1, mask = 0x3"),
    "set": ((), "set = 0x1"),
    "clear": ((), "clear = 0x1"),
    "until": (("mask", "within"), "until = 0x1, mask = 0x3, within = 0.5"),
}
_U32 = toml.integer(0, ALL)


def steps(value: object) -> Steps:
    return _steps(value, _U32)


def start_steps(value: object) -> Steps:
    """Those of a start, which knows the entry."""
    return _steps(value, lambda given: given if given == "entry" else _U32(given))


def _steps(value: object, number: Any) -> Steps:
    if not isinstance(value, list):
        raise ValueError(f'{toml.shown(value)} is no list; write [{{ register = "BLOCK.NAME", set = 0x1 }}, ...]')
    found = []
    for index, item in enumerate(value, 1):
        try:
            found.append(_step(item, number))
        except ValueError as exc:
            raise ValueError(f"step {index}: {exc}") from None
    return tuple(found)


def _step(value: object, number: Any) -> Write | Until:
    form, given = _form(value, "value", "set", "clear", "until")
    if form == "until":
        within = toml.seconds(given["within"]) if "within" in given else None
        return Until(*_bits(given, given["until"], _U32), within)
    if form == "value":
        return Write(*_bits(given, given["value"], number))
    mask = _U32(given[form])
    return Write(given["register"], mask if form == "set" else 0, mask)


def write(value: object) -> Write:
    """A step of a write."""
    _form(value, "value", "set", "clear")
    step = _step(value, _U32)
    assert isinstance(step, Write)
    return step


def write_or_read(value: object) -> Bits:
    if isinstance(value, dict) and value.keys() == {"register"}:
        return Bits(_register(value["register"]), None)
    return write(value)


def state(value: object) -> Bits:
    """What a register holds."""
    _, given = _form(value, "value")
    return Bits(*_bits(given, given["value"], _U32))


def state_or_true(value: object) -> Bits | bool:
    return True if value is True else state(value)


def _form(value: object, *forms: str) -> tuple[str, dict[str, Any]]:
    """Which of these forms the table has."""
    given: dict[str, Any] = value if isinstance(value, dict) else {}
    for form in forms:
        if {"register", form} <= given.keys() <= {"register", form, *_FORMS[form][0]}:
            _register(given["register"])
            return form, given
    ways = [f'{{ register = "BLOCK.NAME", {_FORMS[form][1]} }}' for form in forms]
    raise ValueError(f"{toml.shown(value)} is nothing that a register takes; write {' or '.join(ways)}")


def _bits(given: dict[str, Any], value: object, number: Any) -> tuple[str, Any, int]:
    value, mask = number(value), _U32(given.get("mask", ALL))
    if isinstance(value, int) and value & ~mask:
        raise ValueError(f"{toml.shown(value)} has bits outside of mask {mask:#x}; take them out, or widen the mask")
    return given["register"], value, mask


def _register(value: object) -> str:
    name = toml.text(value)
    if name.count(".") != 1:
        raise ValueError(f'{toml.shown(name)} is no register; write "BLOCK.NAME", as [[registers]] has them')
    return name
