"""What ping, send and listen share: opening a link, finding the service at its other end."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ..rpmsg.bus import Bus, Endpoint

KERNEL = "char:"  # the scheme of the kernel's rpmsg devices, which have no role
ANY = 0xFFFFFFFF
SERVICE = "rpmsg-raw"  # what Linux's rpmsg_char binds to


def add_link(
    parser: argparse.ArgumentParser, role: Literal["driver", "device"], *, required: bool = True
) -> None:
    """Arguments for `open_link`; `role` is the default."""
    parser.add_argument(
        "url",
        metavar="URL",
        nargs=None if required else "?",
        help="the link, such as file:/dev/shm/link; char: is the kernel's rpmsg devices",
    )
    parser.add_argument(
        "--role",
        choices=("driver", "device"),
        help=f"which end to be: driver is the host, device the remote (default: {role})",
    )
    parser.set_defaults(default_role=role)
    parser.add_argument(
        "-o",
        dest="options",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of rpmsgx.open(), such as num=64 or create=true; can be repeated",
    )


def open_link(args: argparse.Namespace) -> Bus:
    """The bus; of `char:`, which has the same calls, too."""
    from ..rpmsg.open import open

    if args.role is None and not is_kernels(args):
        args.role = args.default_role
    try:
        bus: Bus = open(args.url, args.role, **dict(args.options))
        return bus
    except TypeError as error:  # an option that this transport does not have, or not of this type
        if not args.options:
            raise
        raise ValueError(f"{args.url}: {error}") from error


def add_peer(parser: argparse.ArgumentParser) -> None:
    """Arguments for `find_peer`."""
    parser.add_argument(
        "--name",
        default=SERVICE,
        help=f"wait until the peer announces this service, and talk to it (default: {SERVICE})",
    )
    parser.add_argument(
        "--dst", type=address, metavar="ADDR", help="talk to this address, whether it is announced or not"
    )
    parser.add_argument(
        "--src", type=address, default=ANY, metavar="ADDR", help="the own address (default: the next free)"
    )


def find_peer(bus: Bus, args: argparse.Namespace, timeout: float | None) -> Endpoint:
    """An endpoint that sends to --dst, or to the service --name once it is announced."""
    if args.dst is not None:
        return bus.create_endpoint(src=args.src, dst=args.dst)
    endpoint = bus.open(args.name, timeout=timeout)
    if args.src == ANY:
        return endpoint
    dst = endpoint.dst
    endpoint.close()  # open() chose an address of its own
    return bus.create_endpoint(src=args.src, dst=ANY if dst is None else dst)


def is_kernels(args: argparse.Namespace) -> bool:
    """Is the link the kernel's?"""
    url: str = args.url
    return url.startswith(KERNEL)


def receive(endpoint: Endpoint, timeout: float | None) -> tuple[bytes, int | None]:
    """The next message and its sender; the kernel does not tell that one, so the peer is taken for it."""
    from ..rpmsg import bus

    if isinstance(endpoint, bus.Endpoint):
        return endpoint.recv_from(timeout=timeout)
    return endpoint.recv(timeout=timeout), endpoint.dst


def is_tty(endpoint: object) -> bool:
    """Is it a stream, in which messages come in pieces?"""
    from ..char import TtyChannel

    return isinstance(endpoint, TtyChannel)


def address(text: str) -> int:
    value = int(text, 0)
    if not 0 <= value <= 0x7FFFFFFF:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to 0x7fffffff")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    words: dict[str, object] = {"true": True, "false": False}
    if value in words:
        return key, words[value]
    for kind in (lambda text: int(text, 0), float):
        try:
            return key, kind(value)
        except ValueError:
            pass
    return key, value
