"""Where a board's memory, registers and rings come from: what its file says of them, and how each is opened."""

from __future__ import annotations

import mmap
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ResourceError
from ..memory.region import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..memory.region import Kind
    from ..memory.vfio import VfioDevice
    from ..notify.doorbell import Doorbell
    from ..notify.register import Register
    from .steps import Bits, Write


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

    def open(self, vfio: VfioDevice | None = None) -> Region:
        """BARs of `vfio` are mapped through it: sysfs may refuse those of a driver. Raises ResourceError, OSError."""
        backend, _, argument = self.backend.partition(":")
        if vfio is not None and backend == "pci" and argument[:-2] == vfio.slot:
            name, da, pa, size = self[:4]
            return vfio.map_bar(name, int(argument[-1]), size, offset=self.offset, da=da, pa=pa, kind=self.kind)
        return BACKENDS[backend].map(self, argument)


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
        memory = Memory(self.name, self.pa, self.pa, self.size, self.backend, "device", offset=self.offset)
        return memory.open(vfio)

    def open_registers(self, vfio: VfioDevice | None = None) -> dict[str, Register]:
        """By their full names. They keep the block mapped. Raises ResourceError, OSError."""
        from ..notify.register import Register

        with self.open(vfio) as region:
            return {f"{self.name}.{name}": Register(region.buffer, offset) for name, offset in self.names.items()}


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

        return VfioDevice(_vector(self.interrupt)[0])

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

                vector = _vector(self.interrupt)[1]
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


def _vector(interrupt: str) -> tuple[str, int]:
    """Slot and vector of vfio:SLOT[:VECTOR]."""
    _, domain, bus, device, *vector = interrupt.split(":")
    return f"{domain}:{bus}:{device}", int(vector[0]) if vector else 0


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
