"""rpmsgx: rpmsg and remoteproc for Python programs on either end of a link.

    with rpmsgx.Remoteproc(platform="unicorn", firmware="sample") as rproc:
        with rproc.open("rpmsg-client-sample", timeout=5) as endpoint:
            endpoint.send(b"hello world!")
            print(endpoint.recv(timeout=1))

Importing this costs next to nothing: the parts are loaded when they are first used.
"""

from rpmsgx.errors import (
    Blocked,
    BoardError,
    ChannelRemoved,
    Closed,
    Error,
    FirmwareError,
    MessageSize,
    MessagesLost,
    NoPeer,
    PeerError,
    ResourceError,
    StateError,
    Timeout,
)

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from rpmsgx import aio
    from rpmsgx.remoteproc.remoteproc import Remoteproc
    from rpmsgx.remoteproc.resources import Resources
    from rpmsgx.rpmsg.bus import Bus, Channel, Claim, Endpoint, Hold
    from rpmsgx.rpmsg.open import open
    from rpmsgx.rpmsg.stream import Stream

__version__ = "0.1.0"

ANY = 0xFFFFFFFF  # the address that stands for "none yet"

_LAZY = {
    "open": "rpmsgx.rpmsg.open",
    "Bus": "rpmsgx.rpmsg.bus",
    "Channel": "rpmsgx.rpmsg.bus",
    "Claim": "rpmsgx.rpmsg.bus",
    "Endpoint": "rpmsgx.rpmsg.bus",
    "Hold": "rpmsgx.rpmsg.bus",
    "Remoteproc": "rpmsgx.remoteproc.remoteproc",
    "Resources": "rpmsgx.remoteproc.resources",
    "Stream": "rpmsgx.rpmsg.stream",
    "aio": "",
}

__all__ = [
    "ANY",
    "Blocked",
    "BoardError",
    "Bus",
    "Channel",
    "ChannelRemoved",
    "Claim",
    "Closed",
    "Endpoint",
    "Error",
    "FirmwareError",
    "Hold",
    "MessageSize",
    "MessagesLost",
    "NoPeer",
    "PeerError",
    "Remoteproc",
    "ResourceError",
    "Resources",
    "StateError",
    "Stream",
    "Timeout",
    "aio",
    "get_include",
    "open",
]


def get_include() -> str:
    """The directory of the C headers, for code that includes rpx.h or cimports rpmsgx's Cython modules."""
    from os import path

    here = path.dirname(path.abspath(__file__))
    for place in (path.join(here, "include"), path.join(path.dirname(here), "csrc")):  # installed; a source tree
        if path.isfile(path.join(place, "rpx.h")):
            return place
    raise ImportError("the C headers are not installed beside this package")


if not TYPE_CHECKING:  # a checker sees the names above, and that there are no others

    def __getattr__(name: str) -> object:
        module = _LAZY.get(name)
        if module is None:
            raise AttributeError(f"module 'rpmsgx' has no attribute {name!r}")
        from importlib import import_module

        value = import_module(f"rpmsgx.{name}") if not module else getattr(import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
