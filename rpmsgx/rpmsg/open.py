"""`rpmsgx.open()`: a bus by URL. Transports are found by scheme; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

from rpmsgx.rpmsg.bus import Bus
from rpmsgx.virtio.layout import DEFAULT_NUM, Layout, choose
from rpmsgx.virtio.link import BUFFER_SIZE, Link, Role

if TYPE_CHECKING:
    from rpmsgx.char import Bus as CharBus

TRANSPORTS = {
    "virtual": "rpmsgx.virtio.virtual",
    "file": "rpmsgx.virtio.file",
    "memfd": "rpmsgx.virtio.memfd",
    "vhost-user": "rpmsgx.virtio.vhost",
    "mem": "rpmsgx.virtio.mem",
    "uio": "rpmsgx.virtio.uio",
}
MODERN = ("file", "memfd")  # those that can do without a resource table
KERNEL = "char"  # no link of ours: the kernel's
ENTRY_POINTS = "rpmsgx.transports"


def _transport(scheme: str) -> Callable[..., Link]:
    name = TRANSPORTS.get(scheme)
    if name is not None:
        opener: Callable[..., Link] = import_module(name).open_link
        return opener
    from importlib.metadata import entry_points  # dear: only for a scheme that is not ours

    for point in entry_points(group=ENTRY_POINTS, name=scheme):
        found: Callable[..., Link] = point.load()
        return found
    known = ", ".join(f"{name}:" for name in (*TRANSPORTS, KERNEL))
    raise ValueError(f"unknown scheme {scheme!r}; built in are {known}; others come by entry points ({ENTRY_POINTS})")


def _modern(shape: Layout, scheme: str) -> Layout:
    if scheme not in MODERN:
        raise ValueError(f'{scheme}: has no layout="modern"; {" and ".join(f"{known}:" for known in MODERN)} have')
    if shape.bulk or shape.bufsz:
        raise ValueError('layout="modern" has neither bulk nor bufsz: there is no resource table to announce them')
    from rpmsgx.virtio.modern import ModernLayout

    return ModernLayout(*shape)


@overload
def open(url: str, role: None = None) -> CharBus: ...


@overload
def open(
    url: str,
    role: Role,
    *,
    spin: float = 0.0,
    queue: int = 1024,
    overflow: Literal["block", "drop"] = "block",
    layout: str = "openamp",
    num: int = DEFAULT_NUM,
    event_idx: bool = False,
    indirect: bool = False,
    buffer_size: int | tuple[int, int] = BUFFER_SIZE,
    buffer_count: int | tuple[int, int] | None = None,
    bulk: int = 0,
    bufsz: bool = False,
    packed: bool = False,
    **options: Any,
) -> Bus: ...


def open(
    url: str,
    role: Role | None = None,
    *,
    spin: float = 0.0,
    queue: int = 1024,
    overflow: Literal["block", "drop"] = "block",
    layout: str = "openamp",
    num: int = DEFAULT_NUM,
    event_idx: bool = False,
    indirect: bool = False,
    buffer_size: int | tuple[int, int] = BUFFER_SIZE,
    buffer_count: int | tuple[int, int] | None = None,
    bulk: int = 0,
    bufsz: bool = False,
    packed: bool = False,
    **options: Any,
) -> Bus | CharBus:
    """Open one end of the link at `url` and return its bus; never waits for the peer.

    `role`: "driver" (the host: owns the buffers) or "device" (the remote). `spin`: seconds to look at the rings
    before blocking; more is faster and warmer. `queue`, `overflow`: what an endpoint holds, and what happens when it
    is full ("block": the bus stops, "drop": counted). `num`, `event_idx`, `indirect`: the vrings' size and the
    features offered, where this end writes the resource table; over vhost-user and with `layout` "modern": the driver
    chooses the size, the device offers. `layout`: what lies at the start of the memory of `file:` and `memfd:`:
    OpenAMP's resource table or, between two ends of rpmsgx, "modern": the registers of a VIRTIO 1.x device, see
    docs/modern.md. `buffer_size`, `buffer_count`: the driver's buffers, for both directions or as (rx, tx): bytes
    (16 to 65552, 16 of them the header, a multiple of 16), and how many (default: one for each descriptor). A device
    takes what the driver posts; if it makes the memory, it needs both for its size. `bulk`: bytes of memory beside the
    rings, where this end writes the table: `Bus.carveout("bulk")`. `bufsz`: the table says how large the buffers are to
    be, and the driver keeps to it (the proposed VIRTIO_RPMSG_F_BUFSZ, see docs/openamp.md). `packed`: a device offers
    packed rings (VIRTIO_F_RING_PACKED), with `layout` "modern" or over vhost-user; a driver takes them if they are
    offered. Further options are the transport's own:

        virtual:NAME     both ends in this process
        file:PATH        a shared file and a Unix socket: doorbell=, create=, server=
        memfd:SOCKET     sealed memory, handed over the Unix socket SOCKET, which is the doorbell
        vhost-user:PATH  rings of a front-end, such as a hypervisor with a guest: server=, uid=, version_1=, inband=
        mem:ADDRESS      physical memory, through /dev/mem: size=, kind=, doorbell=, create=
        uio:DEVICE[:MAP] memory of a UIO device: the same, and offset=

    The kernel's own rpmsg devices have neither role nor options; what comes is a `rpmsgx.char.Bus`:

        char:            the services that all remotes announce to the kernel
        char:NAME        those of one: a remote by its name, or a device such as virtio0

    Raises ValueError for a URL or option that cannot be, ResourceError for memory that is not acceptable, OSError.
    """
    scheme, colon, address = url.partition(":")
    shape = choose(num, event_idx, indirect, buffer_size, buffer_count, bulk, bufsz, packed)
    if colon and scheme == KERNEL:
        if role == "device":
            raise ValueError("char: the kernel is the driver, and its peer the device; leave role out")
        if (spin, queue, overflow, layout) != (0.0, 1024, "block", "openamp") or shape != choose() or options:
            raise ValueError("char: has no options: rings and queues are the kernel's")
        kernels: CharBus = import_module("rpmsgx.char").Bus(address)
        return kernels
    if not colon or not address:
        raise ValueError(f"{url!r} is not a URL: SCHEME:ADDRESS, such as file:/dev/shm/link")
    if role not in ("driver", "device"):
        raise ValueError(f'role must be "driver" (host) or "device" (remote), not {role!r}')
    if layout == "modern":
        shape = _modern(shape, scheme)
    elif layout != "openamp":
        raise ValueError(f'layout must be "openamp" or "modern", not {layout!r}')
    elif shape.packed and scheme != "vhost-user":
        cure = 'file: and memfd: can with layout="modern", vhost-user: can as it is'
        raise ValueError(f"{scheme}: cannot have packed rings (bit 34), a resource table has 32 feature bits; {cure}")
    link = _transport(scheme)(address, role, layout=shape, **options)
    try:
        return Bus(link, spin=spin, queue=queue, overflow=overflow)
    except BaseException:
        link.close()
        raise
