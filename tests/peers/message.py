# SPDX-License-Identifier: BSD-3-Clause
"""rpmsg messages as bytes: made, and checked field by field. [linux] struct rpmsg_hdr, struct rpmsg_ns_msg

Whatever is wrong goes to `bad(rule, text)`, which raises Violation; what somebody is known to do goes to `odd`, which
raises unless that is tolerated.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Bad = Callable[[str, str], NoReturn]
    Odd = Callable[[str, str], None]

HEADER = struct.Struct("=IIIHH")  # src, dst, reserved, len, flags
HEADER_SIZE = 16
RESERVED = slice(8, 12)  # in a message
NS_MESSAGE = struct.Struct("=32sII")  # name, addr, flags; to address 53
NS_ADDR = 53
NS_CREATE, NS_DESTROY = 0, 1
ADDR_ANY = 0xFFFFFFFF
FIRST_ADDR = 1024  # first dynamic address everywhere

Message = tuple[int, int, bytes]  # src, dst, payload


def pack(src: int, dst: int, payload: bytes) -> bytes:
    if not (0 <= src < ADDR_ANY and 0 <= dst < ADDR_ANY):
        raise ValueError(f"src {src:#x}, dst {dst:#x}")
    return HEADER.pack(src, dst, 0, len(payload), 0) + payload


def unpack(where: str, data: bytes, bad: Bad, odd: Odd) -> Message:
    """The message in `data`, which is as much of the buffer as the ring says is filled: 16 bytes or more."""
    src, dst, reserved, size, flags = HEADER.unpack_from(data)
    if flags:
        bad("rpmsg-header", f"{where}: flags {flags:#x}; a sender writes 0")
    if reserved:
        odd("rpmsg-reserved", f"{where}: reserved {reserved:#x}; a sender writes 0")
    if HEADER_SIZE + size > len(data):
        bad("rpmsg-header", f"{where}: len {size} in {len(data)} bytes, of which the header takes 16")
    if src == ADDR_ANY or dst == ADDR_ANY:
        bad("rpmsg-header", f"{where}: src {src:#x}, dst {dst:#x}; ANY is no address of a message")
    return src, dst, data[HEADER_SIZE : HEADER_SIZE + size]


class Names:
    """What the other end announced: `channels` {name: address}, `announcements` all of it in order."""

    def __init__(self) -> None:
        self.channels: dict[str, int] = {}
        self.announcements: list[tuple[str, int, int]] = []  # name, address, flags
        self._known: list[tuple[str, int]] = []  # announced and not destroyed

    def forget(self) -> None:
        """A reset: nothing is announced any more."""
        self.channels.clear()
        self._known.clear()

    def take(self, where: str, src: int, payload: bytes, bad: Bad, odd: Odd) -> None:
        """File one message to address 53."""
        if len(payload) != NS_MESSAGE.size:
            bad("rpmsg-ns", f"{where}: {len(payload)} bytes, must be {NS_MESSAGE.size}")
        raw, addr, flags = NS_MESSAGE.unpack(payload)
        text = _name(where, raw, bad, odd)
        if flags not in (NS_CREATE, NS_DESTROY):
            bad("rpmsg-ns", f"{where}: flags {flags:#x}")
        if addr == ADDR_ANY or src != addr:
            bad("rpmsg-ns", f"{where}: {text!r} at {addr:#x}, announced by {src:#x}; an endpoint announces itself")
        key = text, addr
        if flags == NS_CREATE:
            if key in self._known:
                bad("rpmsg-ns", f"{where}: {text!r} at {addr:#x} was announced already")
            self._known.append(key)
        else:
            if key not in self._known:
                bad("rpmsg-ns", f"{where}: destroys {text!r} at {addr:#x}, which was never announced")
            self._known.remove(key)
        self.channels = dict(self._known)  # the last one of a name counts
        self.announcements.append((text, addr, flags))


def pack_name(name: str, addr: int, flags: int, garbage: bool) -> bytes:
    """The payload of an announcement."""
    raw = name.encode("ascii") + b"\0"
    if not 2 <= len(raw) <= 32:
        raise ValueError(f"name {name!r}: 1 to 31 characters")
    return NS_MESSAGE.pack(raw.ljust(32, b"\xa5" if garbage else b"\0"), addr, flags)


def _name(where: str, raw: bytes, bad: Bad, odd: Odd) -> str:
    name, nul, padding = raw.partition(b"\0")
    if not name or not nul:
        bad("rpmsg-ns", f"{where}: name {raw!r} is {'not NUL-terminated' if name else 'empty'}")
    if padding.strip(b"\0"):
        odd("rpmsg-ns-padding", f"{where}: bytes after the NUL of {raw!r}")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        bad("rpmsg-ns", f"{where}: name {name!r} is not ASCII")
