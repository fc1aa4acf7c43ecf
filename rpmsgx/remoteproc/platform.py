"""Platforms: how a remote core is given memory, started, woken, detached and stopped.

Order of calls, by whoever drives a platform (Remoteproc does):

    prepare()                                     power, maps; idempotent, never clears or loads
    image = platform.image(firmware)              checked, nothing written yet
    image.load(platform.space)                    only while the remote is stopped
    ... publish the resource table and the rings through `space` ...
    start(image.entry)      or, where a remote runs already, attach()
    ... doorbell, crash ...
    stop()      or      detach(timeout) ... prepare() ... attach() ... stop()
    unprepare()
    close()

`start`, `attach`, `stop`, `detach`, `close` and the properties may be called from any thread; the rest belongs to one
thread at a time. A platform owns its `doorbell` and the regions of its `space`; both live until `close()`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from ..errors import FirmwareError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from ..memory.region import Region
    from ..memory.space import AddressSpace
    from ..notify.doorbell import Doorbell


CrashKind: TypeAlias = Literal["fault", "watchdog", "fatal error"]


class Image(Protocol):
    """What a platform runs. `elf.Image` is one."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str:
        """Of the file, in hex; of the sources where there is no file."""

    @property
    def entry(self) -> int:
        """What `start` wants: the boot address, or a number that means something to the platform."""

    @property
    def resource_table(self) -> tuple[int | None, bytes] | None:
        """(da, bytes) as they are before anybody wrote to it; None: the image has none."""

    def load(self, space: AddressSpace) -> None: ...


class Platform:
    """Base of all platforms. See the module for the order of calls."""

    name: ClassVar[str] = ""
    cpu: str = ""
    """What runs the firmware: a name of `cpu.CPUS`, or this machine's."""
    machine: int | None = None
    """The e_machine that an ELF image must have; None: this platform takes no ELF images."""
    bits: int | None = None
    """The class that an ELF image must have, 32 or 64; None: any."""
    desc_addr: Literal["pa", "da"] = "pa"
    """What descriptors carry."""
    space: AddressSpace
    """The memory that the remote may use."""
    shared: Region
    """The region of `space` that rings and buffers go to."""
    doorbell: Doorbell
    """The host's end: readable when the remote rang, and when it crashed. Owned by the platform."""
    identity: str | None = None
    """Names the remote among all processes of this machine; None: no other process can reach it."""
    options: Mapping[str, Any] | None = None
    """What `open_platform` needs to open it in another process; None: it cannot be opened there."""
    recovery: Literal["reload", "attach"] = "reload"
    """How a crashed remote comes back: loaded and started anew, or by itself, and is attached to."""
    rebind: Literal["reset", "restart"] = "reset"
    """What a bus that comes back while the remote runs does: reset the device, or, where the firmware cannot take new
    rings, restart the remote."""

    @property
    def crash(self) -> str | None:
        """Why the remote died by itself, from then until the next `start`; else None."""
        return None

    @property
    def crash_kind(self) -> CrashKind:
        """What `crash` is, while it is not None."""
        return "fault"

    @property
    def registers(self) -> dict[str, int]:
        """The core's registers as they were when it crashed, by the names that gdb gives them; else empty."""
        return {}

    @property
    def running(self) -> bool:
        """Started, or found running, and not stopped or crashed since. Stays true over `detach`."""
        return False

    @property
    def loaded_table(self) -> tuple[int, int] | None:
        """(da, size in bytes) of the resource table of a remote that runs; None: the platform does not know."""
        return None

    def prepare(self) -> None:
        """Bring the memory within reach. Idempotent; never clears, loads or moves anything."""

    def image(self, firmware: str | None) -> Image:
        """The image of this name: a path, or the short name of a shipped one ("sample").

        Raises FirmwareError if it is no ELF image for this platform, OSError if it cannot be read.
        """
        if firmware is None or self.machine is None:
            what = "needs a" if firmware is None else "takes no ELF"
            raise FirmwareError(f"platform {self.name!r} {what} firmware")
        from .. import firmware as shipped
        from .elf import Image as ElfImage

        path = shipped.path(firmware, self.cpu) if self.ships(firmware) else firmware
        image = ElfImage.open(os.fspath(path), expect_machine=self.machine)
        if image.bits != (self.bits or image.bits):
            raise FirmwareError(f"{image.name} is for {image.bits} bits, {self.cpu} has {self.bits}")
        return image

    def ships(self, firmware: str) -> bool:
        """Whether an image of this short name comes with the package."""
        from ..firmware import NAMES

        return firmware in NAMES

    def start(self, entry: int) -> None:
        """Let the remote go at `entry`. Raises StateError if it is running already."""
        raise NotImplementedError

    def attach(self) -> None:
        """Take hold of a remote that runs already: the same doorbell and memory, nothing of it changed.

        Raises StateError if none runs.
        """
        if not self.running:
            raise StateError(f"no remote runs on platform {self.name!r}: there is nothing to attach to")

    def stop(self) -> None:
        """End the remote, with force if it does not obey. Idempotent. Raises Timeout if even force fails."""
        raise NotImplementedError

    def detach(self, timeout: float = 1.0) -> None:
        """Tell the remote to forget the rings; return when it has acknowledged.

        Raises Timeout if it does not in `timeout` seconds, StateError if it is not running or dies meanwhile.
        """
        raise NotImplementedError

    def unprepare(self) -> None:
        """The reverse of `prepare`. Idempotent."""

    def close(self) -> None:
        """Give everything up. Idempotent.

        A remote that was detached, or found running and never attached to, goes on if it can without this process; any
        other is stopped.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_BUILT_IN = {
    "linux": ("linux", "LinuxPlatform"),
    "native": ("native", "NativePlatform"),
    "qemu": ("qemu", "QemuPlatform"),
    "registers": ("registers", "RegistersPlatform"),
    "unicorn": ("unicorn", "UnicornPlatform"),
}


def open_platform(name: str, **options: Any) -> Platform:
    """The platform of this name, built in or of entry-point group `rpmsgx.platforms`, made with `options`.

    Raises ValueError if there is none, and whatever its constructor does.
    """
    from importlib import import_module

    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        factory = getattr(import_module(f".{module}", __package__), attribute)
    else:
        from importlib.metadata import entry_points  # dear, so only for names that are not known

        found = tuple(entry_points(group="rpmsgx.platforms", name=name))
        if not found:
            raise ValueError(f"no platform {name!r}; built in are {', '.join(_BUILT_IN)}")
        factory = found[0].load()
    platform: Platform = factory(**options)
    return platform
