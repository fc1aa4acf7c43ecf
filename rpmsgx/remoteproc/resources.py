"""What a remote core is given: memory that the board, code and the firmware's table name, and where all of it lies.

`Resources` holds what was registered before a boot. `plan` brings it together with the firmware's resource table and
chooses the places. It only computes: the same inputs give the same places, so that a later attach finds what the boot
chose, and the firmware's own table stays at hand for a detach. Rules: rproc_handle_resources() and its handlers in the
kernel's drivers/remoteproc/remoteproc_core.c. Memory that the board did not grant is never chosen and never accepted.

Vrings and buffers are carveouts by the names that the kernel gives them: "vdev0vring0", "vdev0vring1", "vdev0buffer".
Whoever registers one of these names provides the pool; else they come out of the platform's shared region.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import ResourceError
from ..memory.carveout import Allocator
from ..memory.region import hex_range
from ..virtio.layout import check_size, pair, told_sizes
from ..virtio.link import BUFFER_SIZE, F_BUFSZ, F_NS, Buffers
from ..virtio.table import (
    ADDR_ANY,
    LAYOUTS,
    MAX_VRINGS,
    RSC_VENDOR_END,
    RSC_VENDOR_START,
    VIRTIO_ID_RPMSG,
    Carveout,
    Devmem,
    ResourceTable,
    Trace,
    Vdev,
    Vendor,
    Vring,
    build,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

    from ..memory.region import Region
    from ..memory.space import AddressSpace
    from ..virtio.table import Entry
    from .platform import Image

    Handler: TypeAlias = Callable[[Vendor], bool]
    Parser: TypeAlias = Callable[[Image], tuple[int | None, Buffer] | None]

PAGE = 0x1000  # what the host places starts at a multiple of it, as in Linux
RING_ALIGN = BUFFER_ALIGN = 16  # at least, in a pool: descriptors (VIRTIO 2.7), buffers
TABLE = "the firmware's table"


class PlacedVdev(NamedTuple):
    """Vdev `index` of the table, `offset` bytes into it; `vdev` has the chosen da and notifyid of its vrings."""

    index: int  # type: ignore[assignment]
    offset: int
    vdev: Vdev
    buffers: Buffers | None
    """For an rpmsg device with its two vrings; None: nothing can drive this one."""


class PlacedCarveout(NamedTuple):
    name: str
    da: int
    pa: int
    size: int


class Plan(NamedTuple):
    """What a boot or an attach does with the resources of a remote."""

    table_da: int | None
    """None: there is no table."""
    clean: bytes
    """The table as the firmware has it, which a detach restores; empty without a table."""
    published: bytes
    """The same with the chosen addresses and the notifyids, for the remote to read."""
    vdevs: tuple[PlacedVdev, ...]
    carveouts: tuple[PlacedCarveout, ...]
    """All memory set aside by name; vrings and buffers, or the pools that they are in, are among it."""
    traces: tuple[Trace, ...]
    warnings: tuple[str, ...]


class _Range(NamedTuple):
    da: int
    size: int
    what: str


class _Memory(NamedTuple):
    """A range that somebody names: `owner` gives it, or asks for it."""

    kind: str
    name: str
    size: int
    da: int = ADDR_ANY
    pa: int = ADDR_ANY
    flags: int | None = None
    owner: str = TABLE
    align: int = PAGE

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name!r} of {self.owner}"

    def __str__(self) -> str:
        text = f"{self.size:#x} bytes at " + ("any da" if self.da == ADDR_ANY else f"da {self.da:#x}")
        text += "" if self.pa == ADDR_ANY else f", pa {self.pa:#x}"
        return text + (f", flags {self.flags:#x}" if self.flags else "")

    def holds(self, other: _Memory | _Range) -> bool:
        return self.da <= other.da and other.da + other.size <= self.da + self.size

    def refuse_overlap(self, others: Iterable[_Range]) -> None:
        for da, size, what in others:
            if self.da < da + size and da < self.da + self.size:
                raise ResourceError(
                    f"{self.label} {hex_range(self.da, self.size)} overlaps {what} {hex_range(da, size)}"
                )

    def merged(self, asked: _Memory) -> _Memory:
        """This memory, once `asked` has the use of it. Raises ResourceError, showing both, if that cannot be."""
        if asked.size > self.size:
            raise self.conflict(asked, "too small")
        merged = self._replace(align=max(self.align, asked.align))
        for field, unset in (("da", ADDR_ANY), ("pa", ADDR_ANY), ("flags", None)):
            given, wanted = getattr(self, field), getattr(asked, field)
            if given == unset:
                merged = merged._replace(**{field: wanted})
            elif wanted not in (unset, given):
                raise self.conflict(asked, f"{field} differs")
        return merged

    def conflict(self, asked: _Memory, why: str) -> ResourceError:
        return ResourceError(
            f"{asked.kind} {asked.name!r}: {self.owner} gives {self}, {asked.owner} asks {asked}: {why}"
        )


class Resources:
    """Resources registered for a remote core, by the board and by code. `parts` are taken over in their order.

    Equal names merge: the first to register gives the memory, a later one, and the firmware's table after all, may ask
    for all of it or less, at the same place. Anything else raises ResourceError, which shows both with their owners.
    Addresses and sizes are in bytes; ADDR_ANY leaves a place to the host. `owner` names the source in messages.

    table_da      where a table is installed for firmware that ships none, or does not load it: agreed with the firmware
    parse         finds the table of an image, as (da or None, bytes), or None; by default `image.resource_table`
    buffer_size   bytes of an rpmsg buffer, or (rx, tx) as the host sees them; None: 512
    buffer_count  buffers for each direction, or (rx, tx); None: as many as the vring has descriptors
    bufsz         whether a table that offers F_BUFSZ says how large they are: see rpmsgx.virtio.layout; None: no

    Not thread-safe: it belongs to setup. What is changed later counts from the next boot on.
    """

    def __init__(self, *parts: Resources) -> None:
        self.table_da: int | None = None
        self.parse: Parser | None = None
        self.buffer_size: int | tuple[int, int] | None = None
        self.buffer_count: int | tuple[int, int] | None = None
        self.bufsz: bool | None = None
        self._carveouts: dict[str, _Memory] = {}
        self._traces: dict[str, _Memory] = {}
        self._devmems: dict[str, _Memory] = {}
        self._vdevs: list[Vdev] = []
        self._vendors: list[tuple[range, Handler]] = []
        for part in parts:
            self._include(part)

    def _include(self, part: Resources) -> None:
        for field in ("table_da", "parse", "buffer_size", "buffer_count", "bufsz"):
            mine, other = getattr(self, field), getattr(part, field)
            if mine is None:
                setattr(self, field, other)
            elif other not in (None, mine):
                raise ResourceError(f"{field} is registered twice, as {mine!r} and as {other!r}")
        for where in ("_carveouts", "_traces", "_devmems"):
            for memory in getattr(part, where).values():
                _register(getattr(self, where), memory)
        self._vdevs += part._vdevs
        self._vendors += part._vendors

    def carveout(
        self,
        name: str,
        size: int,
        da: int = ADDR_ANY,
        pa: int = ADDR_ANY,
        *,
        flags: int | None = None,
        owner: str = "code",
    ) -> None:
        """Memory for the remote, or the pool of a vring or of a vdev's buffers; `flags` None: what the table says."""
        _register(self._carveouts, _Memory("carveout", name, size, da, pa, flags, owner))

    def trace(self, name: str, size: int, da: int = ADDR_ANY, *, owner: str = "code") -> None:
        """A buffer that the remote writes text into."""
        _register(self._traces, _Memory("trace", name, size, da, owner=owner))

    def devmem(self, name: str, da: int, pa: int, size: int, *, owner: str = "code") -> None:
        """Registers at `pa` that the board shows the remote at `da`, so that a table may ask for them."""
        _register(self._devmems, _Memory("devmem", name, size, da, pa, owner=owner))

    def vdev(
        self,
        vrings: Iterable[Vring | tuple[int, int]] = ((256, PAGE), (256, PAGE)),
        *,
        id: int = VIRTIO_ID_RPMSG,
        features: int = F_NS,
        config: bytes = b"",
    ) -> None:
        """A virtio device for a table that is built; `vrings` are (num, align) where the host chooses the place.

        Raises ResourceError for everything that `parse` would refuse in a table.
        """
        rings = tuple(ring if isinstance(ring, Vring) else Vring(ADDR_ANY, ring[1], ring[0]) for ring in vrings)
        vdev = Vdev(rings, id, dfeatures=features, config=bytes(config))
        build([vdev])
        self._vdevs.append(vdev)

    def vendor(self, types: int | range, handler: Handler) -> None:
        """`handler(entry)` is called for table entries of these types, 128 to 512: True says that it handled it."""
        types = range(types, types + 1) if isinstance(types, int) else types
        if not types or not all(RSC_VENDOR_START <= end <= RSC_VENDOR_END for end in (types[0], types[-1])):
            raise ResourceError(f"vendor types {types!r} are not from {RSC_VENDOR_START} to {RSC_VENDOR_END}")
        self._vendors.append((types, handler))

    def handle_vendor(self, table: ResourceTable | None) -> tuple[str, ...]:
        """Hand the table's vendor entries, in its order, to their handlers; a warning for each that nobody handled.

        Handlers of one type are asked in the order of their registration until one says True. What a handler raises
        comes out, and ends the boot.
        """
        warnings = []
        for entry in table.entries if table else ():
            if isinstance(entry, Vendor):
                handlers = [handler for types, handler in self._vendors if entry.type in types]
                if not any(handler(entry) for handler in handlers):
                    warnings.append(f"entry at {entry.offset:#x}: unsupported vendor resource {entry.type}")
        return tuple(warnings)

    def read_table(self, image: Image) -> tuple[ResourceTable | None, int | None]:
        """The resource table of `image` and its da, as `plan` takes them. Raises ResourceError if it is malformed."""
        found = self.parse(image) if self.parse else image.resource_table
        return (None, None) if found is None else (parse(found[1]), found[0])

    def _build(self) -> ResourceTable:
        """The table for firmware that has none."""
        if self.table_da is None:
            if self._vdevs:
                raise ResourceError(
                    "the firmware has no resource table, so its vdevs need one that is built: "
                    "set table_da to where the firmware looks for it"
                )
            return ResourceTable(b"", (), (), sys.byteorder)
        entries: list[Entry] = [
            *(Carveout(m.da, m.size, m.name, m.flags or 0) for m in self._carveouts.values()),
            *(Devmem(m.da, m.pa, m.size, m.name) for m in self._devmems.values()),
            *(Trace(m.da, m.size, m.name) for m in self._traces.values()),
            *self._vdevs,
        ]
        return parse(build(entries))


def _register(known: dict[str, _Memory], memory: _Memory) -> None:
    if memory.size <= 0:
        raise ResourceError(f"{memory.label}: size {memory.size} is not positive")
    given = known.get(memory.name)
    known[memory.name] = memory if given is None else given.merged(memory)


def plan(
    resources: Resources,
    table: ResourceTable | None,
    table_da: int | None,
    space: AddressSpace,
    shared: Region,
    in_use: Iterable[tuple[int, int]] = (),
) -> Plan:
    """Places for all that `resources` and `table` (None: the firmware has none) name. Writes nothing.

    `table_da` is where the table is loaded, None if it is not. Fixed places must be granted by `space`; others are
    chosen out of `shared`, or out of a pool of the vring's or buffers' name, first fit, clear of the table and of
    `in_use`, the (da, size) ranges that the image is loaded to.

    Raises ResourceError, naming the resource, its owner and the cause.
    """
    warnings: list[str] = []
    if table is None:
        table = resources._build()
        table_da = resources.table_da
    else:
        if resources._vdevs not in ([], [vdev._replace(offset=0) for vdev in table.vdevs]):
            warnings.append("the firmware has a resource table of its own: the registered vdevs are not used")
        if table_da is None and resources.table_da is None:
            raise ResourceError(
                "no segment loads the firmware's resource table, so the remote could not see it: "
                "set table_da to where the firmware looks for it"
            )
        table_da = resources.table_da if table_da is None else table_da
    warnings += table.warnings
    return _Planner(resources, table, table_da, space, shared, in_use, warnings).plan()


class _Planner:
    def __init__(
        self,
        resources: Resources,
        table: ResourceTable,
        table_da: int | None,
        space: AddressSpace,
        shared: Region,
        in_use: Iterable[tuple[int, int]],
        warnings: list[str],
    ) -> None:
        self.resources = resources
        self.table = table
        self.table_da = table_da
        self.space = space
        self.warnings = warnings
        self.allocator = Allocator(shared, space)
        self.published = bytearray(table.data)
        self.image = [_Range(da, size, "the loaded image") for da, size in in_use]
        self.in_table: list[_Range] = []
        # All memory with a name: first what is wanted, in the end where it lies.
        self.carveouts: dict[str, _Memory] = {}
        self.traces: list[_Memory] = []
        self.written: set[str] = set()  # the names of what the host writes to: vrings and buffers

    def plan(self) -> Plan:
        self.check_table()
        self.check_devmems()
        self.collect()
        self.place()
        vdevs = self.publish()
        carveouts = tuple(
            PlacedCarveout(m.name, m.da, self.space.da_to_pa(m.da, m.size), m.size) for m in self.carveouts.values()
        )
        traces = tuple(Trace(m.da, m.size, m.name) for m in self.traces if m.size)
        return Plan(
            self.table_da, self.table.data, bytes(self.published), vdevs, carveouts, traces, tuple(self.warnings)
        )

    def check_table(self) -> None:
        if self.table_da is None:
            return
        table = _Range(self.table_da, len(self.table.data), "the resource table")
        with _naming(table.what):
            self.space.find_da(table.da, table.size)
            if table.da % 4:
                raise ResourceError(f"da {table.da:#x} is not a multiple of 4: accesses to its fields could tear")
        self.in_table.append(table)

    def check_devmems(self) -> None:
        """Nothing here translates addresses: a devmem is wired like that, or cannot be had."""
        registered = self.resources._devmems
        for entry in self.table.entries:
            if not isinstance(entry, Devmem):
                continue
            asked = _Memory("devmem", entry.name, entry.len, entry.da, entry.pa)
            named = registered.get(entry.name)
            given = registered.values() if named is None else (named,)
            if any(m.holds(asked) and m.pa - m.da == asked.pa - asked.da for m in given):
                continue
            if named is not None:
                raise named.conflict(asked, "another place")
            raise ResourceError(
                f"{asked.label}, {asked}: there is no IOMMU to map it, and the board registers no devmem of this name "
                f"or place (it has {', '.join(map(repr, registered)) or 'none'})"
            )

    # -- what is wanted ----------------------------------------------------------------------------------------------

    def collect(self) -> None:
        for memory in self.resources._carveouts.values():
            self.want(memory)
        for carveout in self.table.carveouts:
            pa = carveout.pa or ADDR_ANY  # the kernel only writes it, and many a firmware has 0 there
            self.want(_Memory("carveout", carveout.name, carveout.len, carveout.da, pa, carveout.flags))
        for index, vdev in enumerate(self.table.vdevs):
            for number, vring in enumerate(vdev.vrings):
                self.want(_ring_memory(index, number, vring))
        for index, vdev in enumerate(self.table.vdevs):
            if vdev.id != VIRTIO_ID_RPMSG:
                self.warnings.append(f"vdev {index} has virtio id {vdev.id}, not rpmsg: left alone")
            elif _is_rpmsg(vdev):
                self.want(self.buffer_memory(index, vdev))
        registered = dict(self.resources._traces)
        for trace in self.table.traces:
            asked = _Memory("trace", trace.name, trace.len, trace.da)
            given = self.resources._traces.get(trace.name)
            if given is not None:
                registered.pop(trace.name, None)
                asked = given.merged(asked)._replace(size=asked.size)  # the remote fills no more than it asked for
            self.traces.append(asked)
        self.traces += registered.values()

    def want(self, asked: _Memory) -> None:
        asked = self.located(asked)
        if asked.kind != "carveout":
            self.written.add(asked.name)
        given = self.carveouts.get(asked.name)
        if given is not None:
            if asked.kind == "vring" and ADDR_ANY not in (given.da, asked.da) and given.holds(asked):
                asked = asked._replace(da=ADDR_ANY)  # it has a place of its own inside its pool
            asked = given.merged(asked)
        self.carveouts[asked.name] = asked

    def located(self, memory: _Memory) -> _Memory:
        """`memory` with the da that goes with its pa."""
        if memory.pa == ADDR_ANY:
            return memory
        with _naming(memory.label):
            da = self.space.pa_to_da(memory.pa, memory.size)
            if memory.da not in (ADDR_ANY, da):
                raise ResourceError(f"da {memory.da:#x} and pa {memory.pa:#x} are not the same memory")
        return memory._replace(da=da)

    def buffer_memory(self, index: int, vdev: Vdev) -> _Memory:
        return _Memory("buffers", f"vdev{index}buffer", self.buffers(vdev).end)

    def buffers(self, vdev: Vdev, da: int = 0) -> Buffers:
        resources = self.resources
        counts = pair("buffer_count", resources.buffer_count or max(vring.num for vring in vdev.vrings))
        if resources.bufsz and vdev.dfeatures & F_BUFSZ:
            return Buffers.of(da, counts, told_sizes(vdev.config), bufsz=True)
        sizes = pair("buffer_size", resources.buffer_size or BUFFER_SIZE)
        for size in sizes:
            check_size(size)
        return Buffers.of(da, counts, sizes)

    # -- where it lies -----------------------------------------------------------------------------------------------

    def place(self) -> None:
        """Fixed places first, so that nothing is put on them; then the rest, in the order in which it was named."""
        allocator = self.allocator
        for da, size, _ in (*self.image, *self.in_table):
            allocator.avoid(da, size)
        rings = []
        for name, memory in self.carveouts.items():
            if memory.da == ADDR_ANY:
                continue
            allocator.reserve(memory.da, memory.size, memory.label)
            if name in self.written:
                rings.append(_Range(memory.da, memory.size, memory.label))
                memory.refuse_overlap(self.in_table)
            else:
                # The firmware's memory may hold its table, as it holds its code.
                memory.refuse_overlap(table for table in self.in_table if not memory.holds(table))
        for memory in self.traces:
            if memory.da != ADDR_ANY and memory.size:
                with _naming(memory.label):
                    self.space.find_da(memory.da, memory.size)
                memory.refuse_overlap((*self.in_table, *rings))
                allocator.avoid(memory.da, memory.size)
        self.traces = [self.allocated(memory) if memory.size else memory for memory in self.traces]
        self.carveouts = {name: self.allocated(memory) for name, memory in self.carveouts.items()}

    def allocated(self, memory: _Memory) -> _Memory:
        if memory.da != ADDR_ANY:
            return memory
        return memory._replace(da=self.allocator.allocate(memory.size, memory.align, memory.label))

    # -- what the remote is told -------------------------------------------------------------------------------------

    def publish(self) -> tuple[PlacedVdev, ...]:
        for carveout in self.table.carveouts:
            memory = self.carveouts[carveout.name]
            pa = self.space.da_to_pa(memory.da, memory.size) & 0xFFFFFFFF  # the field has 32 bits
            self.put(carveout.offset + 4, memory, pa, memory.size)
        for trace, memory in zip(self.table.traces, self.traces, strict=False):
            self.put(trace.offset + 4, memory)
        notifyid = 0
        vdevs = []
        layout = LAYOUTS[self.table.byteorder]
        for index, vdev in enumerate(self.table.vdevs):
            vrings = []
            for number, vring in enumerate(vdev.vrings):
                memory = _ring_memory(index, number, vring)
                if vring.da == ADDR_ANY:
                    memory = self.inside(memory, max(RING_ALIGN, vring.align))
                offset = vdev.offset + layout.vdev.size + number * layout.vring.size
                self.put(offset, memory)
                layout.word.pack_into(self.published, offset + 12, notifyid)
                vrings.append(vring._replace(da=memory.da, notifyid=notifyid))
                notifyid += 1
            buffers = None
            if _is_rpmsg(vdev):
                memory = self.inside(self.buffer_memory(index, vdev), BUFFER_ALIGN)
                buffers = self.buffers(vdev, memory.da)
            vdevs.append(PlacedVdev(index, vdev.offset, vdev._replace(vrings=tuple(vrings)), buffers))
        return tuple(vdevs)

    def inside(self, asked: _Memory, align: int) -> _Memory:
        """`asked` at the first place in the memory of its name."""
        home = self.carveouts[asked.name]
        placed = asked._replace(da=-(-home.da // align) * align)
        if not home.holds(placed):
            raise home.conflict(asked, f"too small from the next multiple of {align:#x} on")
        placed.refuse_overlap(self.image)
        return placed

    def put(self, offset: int, memory: _Memory, *more: int) -> None:
        """The da of `memory`, and `more` words behind it, into the table."""
        if max(memory.size, memory.da + memory.size - 1) >> 32:
            raise ResourceError(f"{memory.label}: da {hex_range(memory.da, memory.size)} leaves the table's 32 bits")
        for at, value in enumerate((memory.da, *more)):
            LAYOUTS[self.table.byteorder].word.pack_into(self.published, offset + 4 * at, value)


def _is_rpmsg(vdev: Vdev) -> bool:
    return vdev.id == VIRTIO_ID_RPMSG and len(vdev.vrings) == MAX_VRINGS


def _ring_memory(index: int, number: int, vring: Vring) -> _Memory:
    size = vring.size if vring.da != ADDR_ANY else -(-vring.size // PAGE) * PAGE  # the host gives whole pages
    return _Memory("vring", f"vdev{index}vring{number}", size, vring.da, align=max(PAGE, vring.align))


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except ResourceError as exc:
        raise ResourceError(f"{what}: {exc}") from None
