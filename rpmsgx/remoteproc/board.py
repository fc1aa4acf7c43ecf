"""Board files: what is true of a board whatever firmware it runs, in TOML. see docs/boards.md.

Reading opens nothing, so a file can be checked anywhere; `Board.open_platform` opens its memory and its platform.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import BoardError, ResourceError
from ..memory.region import hex_range
from ..virtio.table import ADDR_ANY
from . import board_keys
from . import strict_toml as toml
from .backends import BACKENDS, Bell, Block, Memory
from .platform import _BUILT_IN, open_platform
from .resources import Resources
from .steps import Bits, Control

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..notify.register import Register
    from .platform import Platform
    from .strict_toml import Problem, Reader


class Claim(NamedTuple):
    """One [[carveout]], [[trace]] or [[devmem]], as it stands in the file; `da` and `pa` may be ADDR_ANY."""

    kind: str
    name: str
    size: int
    da: int = ADDR_ANY
    pa: int = ADDR_ANY
    line: int = 1


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board file that was read and found good. Where None is possible, it means that the file does not say."""

    path: str
    name: str
    platform: str
    options: Mapping[str, Any]
    """Keywords for the platform beside those that are keys of the board."""
    memory: tuple[Memory, ...]
    registers: tuple[Block, ...]
    core: Control | None
    doorbell: Bell | None
    shared: str | None
    """The name of the memory that rings and buffers go to; not None where there is memory."""
    desc_addr: Literal["pa", "da"] | None
    settle: float | None
    """Seconds that a remote is given where it acknowledges nothing: a detach above all; None: it acknowledges."""
    claims: tuple[Claim, ...]
    resources: Resources
    """The claims, the vdevs and table_da, registered."""
    firmware: str | None
    firmware_dirs: tuple[str, ...]
    auto_boot: bool
    recovery: Literal["enabled", "disabled", "once"]
    recovery_by: Literal["reload", "attach"] | None
    rebind: Literal["reset", "restart"] | None
    coredump: Literal["disabled", "enabled", "inline"]
    coredump_dir: str | None
    at_exit: Literal["stop", "detach"] | None
    presence: str | None
    spin: float
    """Seconds that a wait spins before it sleeps."""

    def open_platform(self, **options: Any) -> Platform:
        """Map the memory and make the platform, which owns it from then on; nothing stays open on failure.

        `options` are the platform's, and win over those of the file.

        Raises BoardError for what turns out only now (a file that is too short, an option that the platform refuses),
        OSError for memory that cannot be opened, ImportError for a platform that is not installed.
        """
        keywords = dict(self.options)
        for key in ("desc_addr", "settle"):
            if getattr(self, key) is not None:
                keywords[key] = getattr(self, key)
        with contextlib.ExitStack() as opened:
            try:
                line = self.doorbell.line if self.doorbell is not None else 1
                vfio = self.doorbell.open_vfio() if self.doorbell is not None else None
                if vfio is not None:
                    opened.callback(vfio.close)
                regions = {}
                for item in self.memory:
                    line = item.line
                    regions[item.name] = opened.enter_context(item.open(vfio))
                if self.core is not None:
                    registers: dict[str, Register] = {}
                    for block in self.registers:
                        line = block.line
                        registers.update(block.open_registers(vfio))
                    keywords.update(core=self.core, registers=registers)
                if self.doorbell is not None:
                    line = self.doorbell.line
                    keywords["doorbell"] = opened.enter_context(contextlib.closing(self.doorbell.open(vfio)))
            except ResourceError as exc:
                raise BoardError(f"{self.path}:{line}: {exc}") from exc
            if self.shared is not None:
                keywords.update(memory=tuple(regions.values()), shared=regions[self.shared])
            try:
                platform = open_platform(self.platform, **{**keywords, **options})
            except (ValueError, TypeError) as exc:  # ResourceError is one
                raise BoardError(f"{self.path}: platform {self.platform!r}: {exc}") from exc
            opened.pop_all()
        if self.recovery_by is not None:
            platform.recovery = self.recovery_by
        if self.rebind is not None:
            platform.rebind = self.rebind
        return platform


def load(path: str | os.PathLike[str]) -> Board:
    """The board of this file. Raises BoardError with all that is wrong, a line each; OSError if it cannot be read."""
    board, problems = check(path)
    if board is None:
        raise BoardError("\n".join(f"{os.fspath(path)}:{line}: {text}" for line, text in problems))
    return board


def check(path: str | os.PathLike[str]) -> tuple[Board | None, tuple[Problem, ...]]:
    """The board of this file, or None and all that is wrong, by line. Raises OSError if it cannot be read.

    What only opening shows is not checked: see `Board.open_platform`.
    """
    with open(path, "rb") as file:
        source = file.read(toml.MAX_SIZE + 1)
    reader = toml.Reader()
    board = None
    with contextlib.suppress(toml.Enough):
        data = reader.parse(source)
        if not reader.problems:
            board = _read(reader, os.fspath(path), data)
    return (None if reader.problems else board), tuple(sorted(reader.problems))


def _read(reader: Reader, path: str, data: Mapping[str, Any]) -> Board:
    """The board, which is good for nothing if there were problems."""
    values = reader.table((), data, board_keys.BOARD)
    here = os.path.dirname(os.path.abspath(path))
    firmware = values.get("firmware")
    if firmware is not None and firmware.startswith("./"):
        firmware = os.path.join(here, firmware[2:])
    shared = values.get("shared")
    tables = reader.tables("memory", data, board_keys.MEMORY)
    if shared is not None or "shared" not in data:
        _check_shared(reader, shared, tables)
    memory = _read_memory(reader, here, tables)
    blocks = _read_registers(reader, here, data)
    core = _read_core(reader, values["core"], blocks, memory, shared) if "core" in values else None
    doorbell = _read_doorbell(reader, values["doorbell"], blocks) if "doorbell" in values else None
    if "platform" in values:
        _check_platform(reader, values, memory)
    claims = _read_claims(reader, data, memory)
    resources = Resources()
    _read_vdevs(reader, resources, data)
    for key, value in reader.table(("rpmsg",), values.get("rpmsg", {}), board_keys.RPMSG).items():
        setattr(resources, key, value)
    resources.table_da = values.get("table_da")
    if resources.table_da is not None:
        _check_table_da(reader, resources.table_da, memory)
    for claim in claims if not reader.problems else ():  # names that stand twice cannot be registered
        _register(resources, claim, f"{path}:{claim.line}")
    return Board(
        path=path,
        name=values.get("name", os.path.splitext(os.path.basename(path))[0]),
        platform=values.get("platform", ""),
        options=values.get("options", {}),
        memory=memory,
        registers=blocks or (),
        core=core,
        doorbell=doorbell,
        shared=shared,
        desc_addr=values.get("desc_addr"),
        settle=values.get("settle"),
        claims=claims,
        resources=resources,
        firmware=firmware,
        firmware_dirs=tuple(os.path.join(here, directory) for directory in values.get("firmware_dirs", ())),
        auto_boot=values.get("auto_boot", True),
        recovery=values.get("recovery", "enabled"),
        recovery_by=values.get("recovery_by"),
        rebind=values.get("rebind"),
        coredump=values.get("coredump", "disabled"),
        coredump_dir=os.path.join(here, values["coredump_dir"]) if "coredump_dir" in values else None,
        at_exit=values.get("at_exit"),
        presence=values.get("presence"),
        spin=values.get("spin", 0.0),
    )


def _read_memory(reader: Reader, here: str, tables: Sequence[Mapping[str, Any]]) -> tuple[Memory, ...]:
    """All of the file's memory, or none where some is not even known by address and size."""
    found = []
    for index, values in enumerate(tables):
        if values.keys() >= {"name", "da", "size"}:
            memory = Memory(**{"pa": values["da"], **values, "line": reader.line(("memory", index))})
            _check_memory(reader, index, memory)
            found.append(memory._replace(backend=_from(here, memory.backend)))
    _check_names(reader, "memory", tables)
    _check_overlaps(reader, "memory", "da", tables)
    with_pa = [{"pa": values.get("da", ADDR_ANY), **values} for values in tables]
    _check_overlaps(reader, "memory", "pa", with_pa)
    return tuple(found) if len(found) == len(tables) else ()


def _from(here: str, backend: str) -> str:
    """A path in it is seen from the board file."""
    name, _, argument = backend.partition(":")
    return f"{name}:{os.path.join(here, argument)}" if name in ("file", "hugetlbfs") else backend


def _check_memory(reader: Reader, index: int, memory: Memory) -> None:
    page = mmap.PAGESIZE
    if memory.size % page:
        problem = f"size: {memory.size:#x} is not a multiple of the page size {page:#x}"
        reader.problem(("memory", index, "size"), f"{problem}; write {-(-memory.size // page) * page:#x}")
    for field, start in (("da", memory.da), ("pa", memory.pa)):
        if start + memory.size > 1 << 64:
            problem = f"{field}: {hex_range(start, memory.size)} leaves 64 bits"
            reader.problem(("memory", index, field), f"{problem}; choose a lower address or a smaller size")
    backend = BACKENDS[memory.backend.partition(":")[0]]
    if memory.offset and not backend.part:
        problem = f"offset: {memory.backend!r} begins where the memory does"
        reader.problem(("memory", index, "offset"), f"{problem}; take it out")
    if memory.offset % page:
        problem = f"offset: {memory.offset:#x} is not a multiple of the page size {page:#x}"
        reader.problem(("memory", index, "offset"), f"{problem}; move it")
    if memory.kind == "cached" and not memory.coherent and not backend.own:
        problem = f"kind: nothing says that caches are coherent on {memory.backend!r}"
        cure = 'write kind = "uncached" or "device", or, if the hardware sees to it, coherent = true'
        reader.problem(("memory", index, "kind"), f"{problem}; {cure}")


def _check_shared(reader: Reader, shared: str | None, tables: Sequence[Mapping[str, Any]]) -> None:
    ends = {values["name"]: values.get("da", 0) + values.get("size", 0) for values in tables if "name" in values}
    if shared is None:
        if tables:
            cure = f"; name the memory for rings and buffers: {toml.either(ends)}" if ends else ""
            reader.problem(("shared",), f"shared is missing{cure}")
    elif shared not in ends:
        cure = f"; write {toml.either(ends)}{toml.meant(shared, ends)}" if ends else "; add a [[memory]] for it"
        reader.problem(("shared",), f"shared: no memory is called {toml.shown(shared)}{cure}")
    elif ends[shared] > 1 << 32:
        problem = f"shared: {shared!r} reaches da {ends[shared]:#x}, and resource tables have 32 bits"
        reader.problem(("shared",), f"{problem}; share memory that ends at 0x100000000 or below")


def _check_names(reader: Reader, table: str, items: Sequence[Mapping[str, Any]]) -> None:
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        if "name" in item and (other := first.setdefault(item["name"], index)) != index:
            line = reader.line((table, other, "name"))
            reader.problem(
                (table, index, "name"),
                f"name: {item['name']!r} is the name in line {line} already; choose another",
            )


def _check_overlaps(reader: Reader, table: str, field: str, items: Sequence[Mapping[str, Any]]) -> None:
    placed = sorted(
        (item[field], item["size"], index)
        for index, item in enumerate(items)
        if "size" in item and item.get(field, ADDR_ANY) != ADDR_ANY
    )
    end, last = 0, 0
    for start, size, index in placed:
        if start < end:
            other = f"{items[last].get('name', 'the one')!r} in line {reader.line((table, last))}"
            problem = f"{field}: {hex_range(start, size)} overlaps {other}, which ends at {end:#x}"
            reader.problem((table, index, field), f"{problem}; move one of them")
        if start + size > end:
            end, last = start + size, index


# -- registers ---------------------------------------------------------------------------------------------------------


def _read_registers(reader: Reader, here: str, data: Mapping[str, Any]) -> tuple[Block, ...] | None:
    """The file's blocks; None where some are not good, so that nothing is known to be missing."""
    tables = reader.tables("registers", data, board_keys.REGISTERS)
    _check_names(reader, "registers", tables)
    found = []
    for index, values in enumerate(tables):
        if values.keys() >= {"name", "backend", "names"}:
            values["backend"] = _from(here, values["backend"])
            block = Block(**values, line=reader.line(("registers", index)))
            if block.backend == "mem" and "pa" not in values:
                reader.problem(("registers", index), "pa is missing; add pa = ..., where 'mem' has the registers")
            for name, offset in block.names.items():
                if offset + 4 > block.size:
                    problem = f"names: {name} is at {offset:#x}, and the block has {block.size:#x} bytes"
                    reader.problem(("registers", index, "names"), f"{problem}; give it a size")
            found.append(block)
    return tuple(found) if len(found) == len(tables) else None


def _check_used(reader: Reader, where: tuple[str, str], used: Sequence[Bits], blocks: Sequence[Block] | None) -> None:
    if blocks is None:
        return
    known = [f"{block.name}.{name}" for block in blocks for name in block.names]
    for name in dict.fromkeys(bits.register for bits in used):
        if name not in known:
            cure = toml.meant(name, known) or f"; there are {', '.join(known[:20]) or 'none: add [[registers]]'}"
            reader.problem(where, f"{where[1]}: there is no register {toml.shown(name)}{cure}")


def _read_core(
    reader: Reader,
    data: Mapping[str, Any],
    blocks: Sequence[Block] | None,
    memory: Sequence[Memory],
    shared: str | None,
) -> Control:
    """The rings are one host's at a time: the memory that they are in says which core it is."""
    values = reader.table(("core",), data, board_keys.CORE)
    core = Control(**{"machine": 0, **values})
    for key, used in core.used.items():
        _check_used(reader, ("core", key), used, blocks)
    for key, other in (("start", "stop"), ("stop", "start")):
        if key not in data and other in data:
            reader.problem(("core", other), f"{key} is missing; add {key} = [...]")
    if not data.keys() & {"start", "stop", "running"}:
        problem = "start and stop are missing; add them, or, where others start the core, running = true"
        reader.problem(("core",), problem)
    place = next((item for item in memory if item.name == shared), None)
    if place is not None and not place.backend.startswith(("memfd", "hugepages")):
        core = replace(core, identity=f"{place.backend} {place.pa + place.offset:#x}")
    return core


def _read_doorbell(reader: Reader, data: Mapping[str, Any], blocks: Sequence[Block] | None) -> Bell:
    values = reader.table(("doorbell",), data, board_keys.DOORBELL)
    used = {key: values[key] for key in ("kick", "acknowledge") if key in values}
    for key, bits in used.items():
        _check_used(reader, ("doorbell", key), [bits], blocks)
    names = [bits.register.partition(".")[0] for bits in used.values()]
    if len(set(names)) > 1:
        problem = f"acknowledge: {names[1]!r} is not the block of kick, {names[0]!r}"
        reader.problem(("doorbell", "acknowledge"), f"{problem}; make one [[registers]] of them")
    if not data.keys() & {"interrupt", "kick", "poll"}:
        problem = "interrupt, kick and poll are missing"
        reader.problem(("doorbell",), f"{problem}; add one of them, or take [doorbell] out")
    if "interrupt" in data and "poll" in data:
        reader.problem(("doorbell", "poll"), "poll is for a doorbell that nobody rings; take it out, or interrupt")
    block = next((block for block in blocks or () if block.name in names), None)
    return Bell(block=block, **values, line=reader.line(("doorbell",)))


# -- the platform ------------------------------------------------------------------------------------------------------

_GIVEN = ("memory", "shared", "registers", "core", "doorbell", "desc_addr", "settle")
"""Keywords of platforms that are keys of the board."""


def _factory(name: str) -> Callable[..., Platform]:
    from importlib import import_module
    from importlib.metadata import entry_points

    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        found: Callable[..., Platform] = getattr(import_module(f".{module}", __package__), attribute)
        return found
    for point in entry_points(group="rpmsgx.platforms", name=name):
        found = point.load()
        return found
    known = sorted({*_BUILT_IN, *entry_points(group="rpmsgx.platforms").names})
    raise ValueError(f"there is no platform {toml.shown(name)}; write {toml.either(known)}{toml.meant(name, known)}")


def _check_platform(reader: Reader, values: Mapping[str, Any], memory: tuple[Memory, ...]) -> None:
    """What the platform's constructor takes, without calling it."""
    name = values["platform"]
    try:
        factory = _factory(name)
    except (ValueError, ImportError, AttributeError) as exc:  # the last two by entry points that lead nowhere
        return reader.problem(("platform",), f"platform: {exc}")
    parameters = signature(factory).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    options = values.get("options", {})
    for key, value in options.items():
        if key in _GIVEN:
            reader.problem(("options", key), f"{key} is no option but a key of the board; take it out of [options]")
        elif key not in parameters:
            known = [option for option in parameters if option not in _GIVEN]
            cure = toml.meant(key, known) or f"; it has {', '.join(known) or 'none'}"
            reader.problem(("options", key), f"platform {name!r} has no option {toml.shown(key)}{cure}")
        elif type(default := parameters[key].default) in (bool, int, str) and type(value) is not type(default):
            problem = f"{key}: {toml.shown(value)} has the wrong type"
            reader.problem(("options", key), f"{problem}; write a value like {toml.shown(default)}")
    given = {**values, "memory": memory or None}
    if "core" not in given:
        given.pop("registers", None)  # they are the doorbell's
    for key in _GIVEN:
        if given.get(key) is not None and key not in parameters:
            reader.problem((key,), f"platform {name!r} sees to {key} itself; take it out")
    for key, parameter in parameters.items():
        if parameter.default is Parameter.empty and given.get(key) is None and key not in options:
            where = "the board" if key in _GIVEN else "[options]"
            reader.problem(("platform",), f"platform {name!r} needs {key}; add it to {where}")
    check = getattr(factory, "check_memory", None)
    shared = next((item for item in memory if item.name == values.get("shared")), None)
    if check is not None and shared is not None:
        try:
            check(memory, shared)
        except ResourceError as exc:
            reader.problem(("memory",), f"platform {name!r}: {exc}")


# -- resources ---------------------------------------------------------------------------------------------------------

def _read_claims(reader: Reader, data: Mapping[str, Any], memory: Sequence[Memory]) -> tuple[Claim, ...]:
    found = []
    for kind, keys in board_keys.CLAIMS.items():
        tables = reader.tables(kind, data, keys)
        for index, values in enumerate(tables):
            if all(key in values for key, rule in keys.items() if rule.required):
                claim = Claim(kind, **values, line=reader.line((kind, index)))
                if kind != "devmem":
                    _check_place(reader, index, claim, memory)
                found.append(claim)
        _check_names(reader, kind, tables)
        if kind == "carveout":  # a trace may lie inside one
            _check_overlaps(reader, kind, "da", tables)
    return tuple(found)


def _check_place(reader: Reader, index: int, claim: Claim, memory: Sequence[Memory]) -> None:
    """Fixed places lie in memory, if the file has any, and da and pa are the same place."""
    places = {}
    for field in ("da", "pa"):
        start = getattr(claim, field)
        if start != ADDR_ANY and memory:
            home = _home(memory, field, start, claim.size)
            if home is None:
                reader.problem((claim.kind, index, field), _nowhere(memory, field, start, claim.size))
            else:
                places[field] = (home.name, start - getattr(home, field))
    if len(places) == 2 and places["da"] != places["pa"]:
        da, pa = (f"{offset:#x} in {name!r}" for name, offset in (places["da"], places["pa"]))
        reader.problem((claim.kind, index, "pa"), f"pa: is {pa}, and da is {da}; take one of them out")


def _home(memory: Sequence[Memory], field: str, start: int, size: int) -> Memory | None:
    for item in memory:
        first = getattr(item, field)
        if first <= start and start + size <= first + item.size:
            return item
    return None


def _nowhere(memory: Sequence[Memory], field: str, start: int, size: int) -> str:
    known = ", ".join(f"{item.name!r} {hex_range(getattr(item, field), item.size)}" for item in memory[:8])
    return f"{field}: {hex_range(start, size)} is in no memory; choose a place in {known}"


def _check_table_da(reader: Reader, table_da: int, memory: Sequence[Memory]) -> None:
    if table_da % 4:
        reader.problem(("table_da",), f"table_da: {table_da:#x} is not a multiple of 4; move it")
    if memory and _home(memory, "da", table_da, 16) is None:  # the head of a table
        reader.problem(("table_da",), f"table_{_nowhere(memory, 'da', table_da, 16)}")


def _register(resources: Resources, claim: Claim, owner: str) -> None:
    if claim.kind == "carveout":
        resources.carveout(claim.name, claim.size, claim.da, claim.pa, owner=owner)
    elif claim.kind == "trace":
        resources.trace(claim.name, claim.size, claim.da, owner=owner)
    else:
        resources.devmem(claim.name, claim.da, claim.pa, claim.size, owner=owner)


def _read_vdevs(reader: Reader, resources: Resources, data: Mapping[str, Any]) -> None:
    for index, values in enumerate(reader.tables("vdev", data, board_keys.VDEV)):
        if "vrings" in values:
            try:
                resources.vdev(**values)
            except ResourceError as exc:
                reader.problem(("vdev", index), str(exc))
