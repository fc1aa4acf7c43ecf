"""`rpmsgx send URL DATA`: one message."""

from __future__ import annotations

import math
import os
import sys
import time

from .link import add_link, add_peer, find_peer, open_link, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..rpmsg.bus import Bus

STEP = 0.005  # seconds between looks at what the peer has taken


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "send",
        help="send one message",
        description="Send one message to a service, once it is announced, or to an address. Exit status 0 "
        "means that the peer took it.",
    )
    add_link(parser, "driver")
    parser.add_argument("data", metavar="DATA", help="the message; - reads it from standard input")
    add_peer(parser)
    parser.add_argument("--hex", action="store_true", help="DATA is in hex digits")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help="seconds to wait for each step (default: ever)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    data = sys.stdin.buffer.read() if args.data == "-" else os.fsencode(args.data)
    if args.hex:
        try:
            data = bytes.fromhex(data.decode("ascii"))
        except ValueError as error:
            raise ValueError(f"DATA is not hex: {error}") from error
    with open_link(args) as bus:
        find_peer(bus, args, args.timeout).send(data, timeout=args.timeout)
        _taken(bus, args.timeout)
    return 0


def _taken(bus: Bus, timeout: float | None) -> None:
    """Wait until the peer has taken what was sent, or has gone. Raises Timeout."""
    from ..errors import Timeout

    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while bus.counters["outstanding"]:
        if time.monotonic() >= deadline:
            raise Timeout(f"the peer did not take the message within {timeout:g} s")
        bus.poll(timeout=STEP)
