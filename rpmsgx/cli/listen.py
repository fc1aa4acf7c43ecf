"""`rpmsgx listen URL`: the messages that come to a service, and an echo for `rpmsgx ping`."""

from __future__ import annotations

import json
import sys

from .link import ANY, SERVICE, add_link, address, count, open_link, seconds
from .text import hexdump, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..rpmsg.bus import Endpoint


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "listen",
        help="print the messages that come to a service",
        description="Announce a service and print the messages that come to it, until Ctrl-C. "
        "Peers may come and go.",
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
    with open_link(args) as bus, bus.create_endpoint(args.name or None, src=args.src) as endpoint:
        service = f"{args.name!r} at " if args.name else ""
        try:
            where = f"{args.url} as {args.role}: {service}{endpoint.addr:#x}"
            print(printable(f"listening on {where}"), file=sys.stderr, flush=True)
            complete = _listen(endpoint, args)
        finally:
            received = endpoint.counters["received"]
            print(f"{received} message{'' if received == 1 else 's'}", file=sys.stderr)
        return 0 if complete else 1


def _listen(endpoint: Endpoint, args: argparse.Namespace) -> bool:
    """Whether all came that were asked for."""
    from ..errors import ChannelRemoved, Timeout

    left = args.count
    while True:
        try:
            data, src = endpoint.recv_from(timeout=args.timeout)
        except Timeout:
            return not args.count
        except ChannelRemoved:  # this peer went; the next one may come
            continue
        if args.json:
            line = json.dumps({"src": src, "dst": endpoint.addr, "bytes": len(data), "hex": data.hex()})
        elif args.hex:
            line = data.hex()
        else:
            line = "\n".join([f"{src:#x} to {endpoint.addr:#x}: {len(data)} bytes", *hexdump(data)])
        print(line, flush=True)
        if args.echo:
            try:
                endpoint.send_to(data, src)
            except ChannelRemoved:
                pass
        left -= 1
        if left == 0:
            return True
