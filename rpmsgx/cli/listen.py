"""`rpmsgx listen URL`: the messages that come to a service, and an echo for `rpmsgx ping`."""

from __future__ import annotations

import contextlib
import json
import sys

from .link import ANY, SERVICE, add_link, address, count, is_kernels, open_link, receive, seconds
from .text import hexdump, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..rpmsg.bus import Bus, Endpoint

    Message = tuple[Endpoint, bytes, int | None]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "listen",
        help="print the messages that come to a service",
        description="Announce a service and print the messages that come to it, until Ctrl-C. "
        "Peers may come and go. With char:, where remotes announce services to the kernel, print what comes from one.",
    )
    add_link(parser, "device")
    parser.add_argument(
        "--name", default=SERVICE, help=f'the service; "" announces none (default: {SERVICE})'
    )
    parser.add_argument(
        "--src", type=address, default=ANY, metavar="ADDR", help="the own address (default: the next free)"
    )
    parser.add_argument(
        "-c", "--count", type=count, default=0, metavar="N", help="stop after N (default: Ctrl-C)"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help="stop after S seconds without a message; exit status 1 if that was before --count",
    )
    parser.add_argument("--echo", action="store_true", help="send each message back to where it came from")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object a message")
    form.add_argument("--hex", action="store_true", help="print one line of hex digits a message")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import ChannelRemoved, Timeout

    received = 0
    with open_link(args) as bus:
        try:
            for endpoint, data, src in (_of_remotes if is_kernels(args) else _for_us)(bus, args):
                received += 1
                print(_as_text(endpoint, data, src, args), flush=True)
                if args.echo and src is not None:
                    with contextlib.suppress(ChannelRemoved):
                        endpoint.send_to(data, src)
                if received == args.count:
                    return 0
        except Timeout:
            pass
        finally:
            print(f"{received} message{'' if received == 1 else 's'}", file=sys.stderr)
    return 1 if args.count else 0


def _for_us(bus: Bus, args: argparse.Namespace) -> Iterator[Message]:
    """What comes to a service of our own."""
    from ..errors import ChannelRemoved

    with bus.create_endpoint(args.name or None, src=args.src) as endpoint:
        service = f"{args.name!r} at " if args.name else ""
        _say(f"{args.url} as {args.role}: {service}{endpoint.addr:#x}")
        while True:
            try:
                yield endpoint, *receive(endpoint, args.timeout)
            except ChannelRemoved:  # this peer went; the next one may come
                pass


def _of_remotes(bus: Bus, args: argparse.Namespace) -> Iterator[Message]:
    """What comes from a service of the kernel's remotes."""
    from ..errors import ChannelRemoved

    if args.src != ANY:
        raise ValueError("--src: the address is the kernel's choice")
    while True:
        with bus.open(args.name, timeout=args.timeout) as endpoint:
            _say(f"{args.url} to {args.name!r} at {endpoint.dst:#x}")
            try:
                while True:
                    yield endpoint, *receive(endpoint, args.timeout)
            except ChannelRemoved:  # it may return
                pass


def _say(where: str) -> None:
    print(printable(f"listening on {where}"), file=sys.stderr, flush=True)


def _as_text(endpoint: Endpoint, data: bytes, src: int | None, args: argparse.Namespace) -> str:
    if args.json:
        return json.dumps({"src": src, "dst": endpoint.addr, "bytes": len(data), "hex": data.hex()})
    if args.hex:
        return data.hex()
    return "\n".join([f"{src:#x} to {endpoint.addr:#x}: {len(data)} bytes", *hexdump(data)])
