"""Board files: what is true of a board whatever firmware it runs, in TOML. see docs/boards.md.

Reading opens nothing, so a file can be checked anywhere; `Board.open_platform` opens its memory and its platform.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import BoardError, ResourceError
from ..memory.region import KINDS, Region, hex_range
from ..virtio.layout import check_size
from ..virtio.link import BUFFER_MAX
from ..virtio.table import ADDR_ANY, MAX_VRING_NUM, MAX_VRINGS
from . import steps
from . import strict_toml as toml
from .platform import _BUILT_IN, open_platform
from .resources import Resources
from .steps import Bits, Control, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..memory.region import Kind
    from ..memory.vfio import VfioDevice
    from ..notify.doorbell import Doorbell
    from ..notify.register import Register
    from .platform import Platform
    from .strict_toml import Problem, Reader


class Memory(NamedTuple):
    """One [[memory]]: addresses and size in bytes."""

    name: str
    da: int
    pa: int
    size: int
    backend: str = "memfd"
    """A key of BACKENDS and, after a colon, what it needs; a path is absolute."""
    kind: Kind = "cached"
    coherent: bool = False
    """The hardware keeps the caches of both sides coherent."""
    offset: int = 0
    """Where it begins in what the backend gives."""
    line: int = 1
    """Where it stands in the file."""


class Block(NamedTuple):
    """One [[registers]]."""

    name: str
    names: Mapping[str, int]
    """Offset in bytes of each register, by its name."""
    backend: str
    pa: int = 0
    size: int = mmap.PAGESIZE
    offset: int = 0
    line: int = 1

    def open(self, vfio: VfioDevice | None = None) -> Region:
        """Raises ResourceError, OSError."""
        return _map(Memory(self.name, self.pa, self.pa, self.size, self.backend, "device", offset=self.offset), vfio)


class Bell(NamedTuple):
    """[doorbell]."""

    interrupt: str | None = None
    """The UIO device whose interrupt is the remote's ring, or vfio:SLOT[:VECTOR]; None: the rings are looked at."""
    block: Block | None = None
    """Where the registers of both are."""
    kick: Write | None = None
    acknowledge: Bits | None = None
    """Done at each ring, or each look."""
    poll: float = 0.001
    """Seconds between two looks, where nobody rings."""
    line: int = 1

    def open_vfio(self) -> VfioDevice | None:
        """The device behind `interrupt`, if it is one of VFIO's. Raises ResourceError."""
        if self.interrupt is None or not self.interrupt.startswith("vfio:"):
            return None
        from ..memory.vfio import VfioDevice

        return VfioDevice(_vfio(self.interrupt)[0])

    def open(self, vfio: VfioDevice | None = None) -> Doorbell:
        """`vfio`: what `open_vfio` has opened; the doorbell owns it from then on. Raises ResourceError, OSError."""
        from ..notify.timer import PolledDoorbell
        from ..notify.uio import Access, RegisterDoorbell, UioDoorbell

        def access(bits: Bits | None) -> Access | None:
            if bits is None or self.block is None:
                return None
            assert bits.value != "entry"
            return Access(self.block.names[bits.register.partition(".")[2]], bits.value, bits.mask)

        kick, acknowledge = access(self.kick), access(self.acknowledge)
        registers = self.block.open(vfio) if self.block is not None else None
        try:
            if vfio is not None and self.interrupt is not None:
                from ..notify.vfio import VfioDoorbell

                vector = _vfio(self.interrupt)[1]
                return VfioDoorbell(vfio, vector, registers=registers, kick=kick, acknowledge=acknowledge)
            if self.interrupt is not None:
                return UioDoorbell(self.interrupt, registers=registers, kick=kick, acknowledge=acknowledge)
            if registers is not None:
                return RegisterDoorbell(registers, kick, acknowledge, self.poll * 1000)
            return PolledDoorbell(self.poll * 1000)
        except BaseException:
            if registers is not None:
                registers.close()
            raise


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
                    regions[item.name] = opened.enter_context(_map(item, vfio))
                if self.core is not None:
                    registers: dict[str, Register] = {}
                    for block in self.registers:
                        line = block.line
                        registers.update(_registers_of(block, vfio))
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


# -- where memory comes from -------------------------------------------------------------------------------------------


class Backend(NamedTuple):
    """A way to come by memory."""

    map: Callable[[Memory, str], Region]
    """Called with what stands behind the colon. Raises ResourceError or OSError."""
    argument: str
    """What has to stand there; "": nothing."""
    own: bool
    """Memory of this machine's own, where caching does no harm."""
    part: bool = False
    """It gives something larger, in which the memory begins at `offset`."""


def _map_memfd(memory: Memory, argument: str) -> Region:
    return Region.memfd(memory.name, memory.size, da=memory.da, pa=memory.pa, kind=memory.kind)


def _map_file(memory: Memory, path: str, flags: int = 0) -> Region:
    # Who makes the file and who finds it empty do the same, so two who come at once both get it whole.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            os.posix_fallocate(fd, 0, memory.size)  # a full disk is told now, and not by SIGBUS later
        region = Region.from_fd(memory.name, fd, memory.size, da=memory.da, pa=memory.pa, kind=memory.kind)
    finally:
        os.close(fd)
    try:
        region.guard()
    except BaseException:
        region.close()
        raise
    return region


def _map_shm(memory: Memory, name: str) -> Region:
    # Everybody can make files there: a link is not followed, and what another user made is not trusted.
    path = f"/dev/shm/{name}"
    region = _map_file(memory, path, os.O_NOFOLLOW)
    if region.fd is not None and os.fstat(region.fd).st_uid != os.geteuid():
        region.close()
        raise ResourceError(f"region {memory.name!r}: {path} belongs to another user; choose another name")
    return region


def _map_hugepages(memory: Memory, path: str) -> Region:
    from ..memory.hugepages import map_hugepages

    name, da, pa, size = memory[:4]
    return map_hugepages(name, size, path or None, da=da, pa=pa, kind=memory.kind)


def _map_mem(memory: Memory, argument: str) -> Region:
    from ..memory.devmem import map_devmem

    name, da, pa, size = memory[:4]
    return map_devmem(name, pa, size, da=da, kind=memory.kind)


def _map_uio(memory: Memory, argument: str) -> Region:
    from ..memory.uio import map_uio

    device, _, chosen = argument.partition(":")
    name, da, pa, size = memory[:4]
    return map_uio(name, device, size, map=chosen or None, offset=memory.offset, da=da, pa=pa, kind=memory.kind)


def _map_pci(memory: Memory, argument: str) -> Region:
    from ..memory.pci import map_bar

    slot, _, bar = argument.rpartition(":")
    name, da, pa, size = memory[:4]
    return map_bar(name, slot, int(bar), size, offset=memory.offset, da=da, pa=pa, kind=memory.kind)


BACKENDS = {
    "memfd": Backend(_map_memfd, "", own=True),
    "hugepages": Backend(_map_hugepages, "", own=True),
    "file": Backend(_map_file, "PATH", own=True),
    "hugetlbfs": Backend(_map_hugepages, "PATH", own=True),
    "shm": Backend(_map_shm, "NAME", own=True),
    "mem": Backend(_map_mem, "", own=False),
    "uio": Backend(_map_uio, "DEVICE[:MAP]", own=False, part=True),
    "pci": Backend(_map_pci, "SLOT:BAR", own=False, part=True),
}


def _map(memory: Memory, vfio: VfioDevice | None = None) -> Region:
    """BARs of `vfio` are mapped through it: sysfs may refuse those of a driver. Raises ResourceError, OSError."""
    backend, _, argument = memory.backend.partition(":")
    if vfio is not None and backend == "pci" and argument[:-2] == vfio.slot:
        name, da, pa, size = memory[:4]
        return vfio.map_bar(name, int(argument[-1]), size, offset=memory.offset, da=da, pa=pa, kind=memory.kind)
    return BACKENDS[backend].map(memory, argument)


def _registers_of(block: Block, vfio: VfioDevice | None) -> dict[str, Register]:
    """By their full names. They keep the block mapped. Raises ResourceError, OSError."""
    from ..notify.register import Register

    with block.open(vfio) as region:
        return {f"{block.name}.{name}": Register(region.buffer, offset) for name, offset in block.names.items()}


# -- keys --------------------------------------------------------------------------------------------------------------


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


def _vfio(interrupt: str) -> tuple[str, int]:
    """Slot and vector of what `_interrupt` found good."""
    _, domain, bus, device, *vector = interrupt.split(":")
    return f"{domain}:{bus}:{device}", int(vector[0]) if vector else 0


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

_BOARD = {
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
_MEMORY = {
    "name": _Key(_name, required=True),
    "da": _Key(_U64, required=True),
    "pa": _Key(_U64),
    "size": _Key(_SIZE, required=True),
    "backend": _Key(_backend),
    "kind": _Key(toml.choice(*KINDS)),
    "coherent": _Key(toml.boolean),
    "offset": _Key(_U64),
}
_REGISTERS = {
    "name": _Key(_identifier, required=True),
    "backend": _Key(_registers, required=True),
    "pa": _Key(_U64),
    "size": _Key(_SIZE),
    "offset": _Key(_U64),
    "names": _Key(_offsets, required=True),
}
_CORE = {
    "machine": _Key(_machine, required=True),
    "start": _Key(steps.start_steps),
    "stop": _Key(steps.steps),
    "detach": _Key(steps.steps),
    "running": _Key(steps.state_or_true),
    "crashed": _Key(steps.state),
}
_DOORBELL = {
    "interrupt": _Key(_interrupt),
    "kick": _Key(steps.write),
    "acknowledge": _Key(steps.write_or_read),
    "poll": _Key(_poll),
}
_CARVEOUT = {
    "name": _Key(_name, required=True),
    "size": _Key(_ENTRY_SIZE, required=True),
    "da": _Key(_U32),
    "pa": _Key(_U64),
}
_TRACE = {"name": _Key(_name, required=True), "size": _Key(_ENTRY_SIZE, required=True), "da": _Key(_U32)}
_DEVMEM = {
    "name": _Key(_name, required=True),
    "da": _Key(_U32, required=True),
    "pa": _Key(_U32, required=True),
    "size": _Key(_ENTRY_SIZE, required=True),
}
_VDEV = {
    "vrings": _Key(_vrings, required=True),
    "id": _Key(toml.integer(1, (1 << 32) - 1)),
    "features": _Key(_U32),
    "config": _Key(toml.hex_bytes),
}
_RPMSG = {
    "buffer_size": _Key(_each_way(_buffer_size)),
    "buffer_count": _Key(_each_way(toml.integer(1, MAX_VRING_NUM))),
    "bufsz": _Key(toml.boolean),
}

# -- reading -----------------------------------------------------------------------------------------------------------


def _read(reader: Reader, path: str, data: Mapping[str, Any]) -> Board:
    """The board, which is good for nothing if there were problems."""
    values = reader.table((), data, _BOARD)
    here = os.path.dirname(os.path.abspath(path))
    firmware = values.get("firmware")
    if firmware is not None and firmware.startswith("./"):
        firmware = os.path.join(here, firmware[2:])
    shared = values.get("shared")
    tables = reader.tables("memory", data, _MEMORY)
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
    for key, value in reader.table(("rpmsg",), values.get("rpmsg", {}), _RPMSG).items():
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
    tables = reader.tables("registers", data, _REGISTERS)
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
    values = reader.table(("core",), data, _CORE)
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
    values = reader.table(("doorbell",), data, _DOORBELL)
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

_CLAIMS = {"carveout": _CARVEOUT, "trace": _TRACE, "devmem": _DEVMEM}


def _read_claims(reader: Reader, data: Mapping[str, Any], memory: Sequence[Memory]) -> tuple[Claim, ...]:
    found = []
    for kind, keys in _CLAIMS.items():
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
    for index, values in enumerate(reader.tables("vdev", data, _VDEV)):
        if "vrings" in values:
            try:
                resources.vdev(**values)
            except ResourceError as exc:
                reader.problem(("vdev", index), str(exc))
