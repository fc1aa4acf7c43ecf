"""The keys of a board file, by table: what each may hold. docs/boards.md has them all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..memory.region import KINDS
from ..virtio.layout import check_size
from ..virtio.link import BUFFER_MAX
from ..virtio.table import MAX_VRING_NUM, MAX_VRINGS
from . import steps
from . import strict_toml as toml
from .backends import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOT = r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


def _name(value: object) -> str:
    name = toml.text(value)
    if len(name.encode()) > 31:  # and a NUL in the 32 bytes of a resource table
        raise ValueError(f"{toml.shown(name)} is too long; write at most 31 bytes")
    return name


def _backend(value: object) -> str:
    name, colon, argument = toml.text(value).partition(":")
    forms = {known: f"{known}:{backend.argument}".rstrip(":") for known, backend in BACKENDS.items()}
    if name not in BACKENDS:
        raise ValueError(f"{toml.shown(value)} is no backend; write {toml.either(forms.values())}")
    if bool(BACKENDS[name].argument) != bool(argument) or (colon and not argument):
        raise ValueError(f"{toml.shown(value)} is no backend; write {forms[name]!r}")
    if name == "shm" and "/" in argument:
        raise ValueError(f"{toml.shown(value)} is a path; write 'shm:NAME', or 'file:PATH'")
    if name == "pci" and not re.fullmatch(f"{_SLOT}:[0-5]", argument):
        raise ValueError(f"{toml.shown(value)} is no BAR; write 'pci:SLOT:BAR', such as 'pci:0000:03:00.0:2'")
    return f"{name}{colon}{argument}"


def _registers(value: object) -> str:
    backend = _backend(value)
    name = backend.partition(":")[0]
    if BACKENDS[name].own and name != "file":
        forms = "'mem', 'uio:DEVICE[:MAP]', 'pci:SLOT:BAR' or 'file:PATH'"
        raise ValueError(f"{toml.shown(value)} has no registers; write {forms}")
    return backend


def _identifier(value: object) -> str:
    name = _name(value)
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise ValueError(f"{toml.shown(value)} is no name here; write letters, digits, '_' and '-'")
    return name


def _offsets(value: object) -> dict[str, int]:
    found = {_identifier(name): _OFFSET(offset) for name, offset in toml.table(value).items()}
    for name, offset in found.items():
        if offset % 4:
            raise ValueError(f"{name} is at {offset:#x}, no multiple of 4; registers have 32 bits")
    return found


def _interrupt(value: object) -> str:
    name = toml.text(value)
    if name.startswith("vfio:") and not re.fullmatch(f"vfio:{_SLOT}(:[0-9]{{1,4}})?", name):
        forms = "'vfio:SLOT' or 'vfio:SLOT:VECTOR', such as 'vfio:0000:03:00.0:1'"
        raise ValueError(f"{toml.shown(value)} is no interrupt; write {forms}")
    return name


def _poll(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0001 <= value <= 1:
        raise ValueError(f"{toml.shown(value)} is no time between two looks; write seconds from 0.0001 to 1")
    return float(value)


def _machine(value: object) -> int:
    from .elf import _MACHINES

    numbers = {name: number for number, name in _MACHINES.items()}
    return numbers[toml.choice(*numbers)(value)]


def _buffer_size(value: object) -> int:
    size = toml.size(BUFFER_MAX)(value)
    check_size(size)
    return size


def _each_way(parse: Callable[[object], int]) -> Callable[[object], int | tuple[int, int]]:
    """Parses one number for both directions, or [rx, tx]."""

    def both(value: object) -> int | tuple[int, int]:
        if not isinstance(value, list):
            return parse(value)
        if len(value) != 2:
            raise ValueError(f"{toml.shown(value)} is not one number for each direction; write [rx, tx]")
        return parse(value[0]), parse(value[1])

    return both


def _firmware(value: object) -> str:
    from .firmware import candidates

    name = toml.text(value)
    candidates(name)  # raises FirmwareError, a ValueError, for what can be no name
    return name


def _presence(value: object) -> str:
    name = toml.text(value)
    if not re.fullmatch("(unix|path):.+|pid:[0-9]+|qrtr:[0-9]+(:[0-9]+)?", name):
        forms = ("unix:PATH", "path:PATH", "pid:NUMBER", "qrtr:SERVICE", "qrtr:SERVICE:INSTANCE")
        raise ValueError(f"{toml.shown(name)} is no service; write {toml.either(forms)}")
    return name


def _vrings(value: object) -> tuple[tuple[int, int], ...]:
    rings = value if isinstance(value, list) else []
    good = [
        isinstance(ring, list)
        and [type(number) for number in ring] == [int, int]
        and all(number > 0 and number & (number - 1) == 0 for number in ring)
        and ring[0] <= MAX_VRING_NUM
        and ring[1] < 1 << 32
        for ring in rings
    ]
    if not 1 <= len(rings) <= MAX_VRINGS or not all(good):
        raise ValueError(
            f"{toml.shown(value)} is not 1 to {MAX_VRINGS} rings; write [[256, 4096], [256, 4096]]: "
            f"descriptors (at most {MAX_VRING_NUM}) and alignment of each, powers of two"
        )
    return tuple((num, align) for num, align in rings)


def _anything(value: Any) -> Any:
    return value


_U32, _U64 = toml.integer(0, (1 << 32) - 1), toml.integer(0, (1 << 64) - 1)
_OFFSET = toml.integer(0, (1 << 32) - 4)
_SIZE, _ENTRY_SIZE = toml.size((1 << 63) - 1), toml.size((1 << 32) - 1)  # of memory; in a resource table
_Key = toml.Key

BOARD = {
    "name": _Key(_name),
    "platform": _Key(toml.text, required=True),
    "options": _Key(toml.table),
    "memory": _Key(_anything),  # the tables are read on their own
    "registers": _Key(_anything),
    "carveout": _Key(_anything),
    "trace": _Key(_anything),
    "devmem": _Key(_anything),
    "vdev": _Key(_anything),
    "core": _Key(toml.table),
    "doorbell": _Key(toml.table),
    "rpmsg": _Key(toml.table),
    "shared": _Key(_name),
    "desc_addr": _Key(toml.choice("pa", "da")),
    "table_da": _Key(_U32),
    "firmware": _Key(_firmware),
    "firmware_dirs": _Key(toml.texts),
    "auto_boot": _Key(toml.boolean),
    "recovery": _Key(toml.choice("enabled", "disabled", "once")),
    "recovery_by": _Key(toml.choice("reload", "attach")),
    "rebind": _Key(toml.choice("reset", "restart")),
    "coredump": _Key(toml.choice("disabled", "enabled", "inline")),
    "coredump_dir": _Key(toml.text),
    "at_exit": _Key(toml.choice("stop", "detach")),
    "settle": _Key(toml.seconds),
    "presence": _Key(_presence),
    "spin": _Key(toml.seconds),
}
MEMORY = {
    "name": _Key(_name, required=True),
    "da": _Key(_U64, required=True),
    "pa": _Key(_U64),
    "size": _Key(_SIZE, required=True),
    "backend": _Key(_backend),
    "kind": _Key(toml.choice(*KINDS)),
    "coherent": _Key(toml.boolean),
    "offset": _Key(_U64),
}
REGISTERS = {
    "name": _Key(_identifier, required=True),
    "backend": _Key(_registers, required=True),
    "pa": _Key(_U64),
    "size": _Key(_SIZE),
    "offset": _Key(_U64),
    "names": _Key(_offsets, required=True),
}
CORE = {
    "machine": _Key(_machine, required=True),
    "start": _Key(steps.start_steps),
    "stop": _Key(steps.steps),
    "detach": _Key(steps.steps),
    "running": _Key(steps.state_or_true),
    "crashed": _Key(steps.state),
}
DOORBELL = {
    "interrupt": _Key(_interrupt),
    "kick": _Key(steps.write),
    "acknowledge": _Key(steps.write_or_read),
    "poll": _Key(_poll),
}
CARVEOUT = {
    "name": _Key(_name, required=True),
    "size": _Key(_ENTRY_SIZE, required=True),
    "da": _Key(_U32),
    "pa": _Key(_U64),
}
TRACE = {"name": _Key(_name, required=True), "size": _Key(_ENTRY_SIZE, required=True), "da": _Key(_U32)}
DEVMEM = {
    "name": _Key(_name, required=True),
    "da": _Key(_U32, required=True),
    "pa": _Key(_U32, required=True),
    "size": _Key(_ENTRY_SIZE, required=True),
}
VDEV = {
    "vrings": _Key(_vrings, required=True),
    "id": _Key(toml.integer(1, (1 << 32) - 1)),
    "features": _Key(_U32),
    "config": _Key(toml.hex_bytes),
}
RPMSG = {
    "buffer_size": _Key(_each_way(_buffer_size)),
    "buffer_count": _Key(_each_way(toml.integer(1, MAX_VRING_NUM))),
    "bufsz": _Key(toml.boolean),
}
CLAIMS = {"carveout": CARVEOUT, "trace": TRACE, "devmem": DEVMEM}
