"""`rpmsgx ping URL`: round trips to a service that sends back what it gets."""

from __future__ import annotations

import json
import math
import time
from array import array

from .link import add_link, add_peer, count, find_peer, is_tty, open_link, receive, seconds
from .text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ..rpmsg.bus import Endpoint


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "ping",
        help="measure round trips to an echo service",
        description="Send messages to a service that sends them back (`rpmsgx listen --echo` does), "
        "and time them. Exit status 1 if one was lost.",
    )
    add_link(parser, "driver")
    add_peer(parser)
    parser.add_argument(
        "-c", "--count", type=count, default=0, metavar="N", help="stop after N (default: Ctrl-C)"
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=seconds,
        default=1.0,
        metavar="S",
        help="seconds from one to the next (default: 1)",
    )
    parser.add_argument(
        "-s", "--size", type=count, default=56, metavar="N", help="bytes of payload (default: 56)"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=1.0,
        metavar="S",
        help="seconds to wait for each reply (default: 1)",
    )
    parser.add_argument(
        "--wait", type=seconds, metavar="S", help="seconds to wait for the service (default: ever)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line; the last is the summary"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_link(args) as bus:
        endpoint = find_peer(bus, args, args.wait)
        if not args.json:
            service = "" if args.dst is not None else f" {args.name}"
            where = f"{args.url}{service} at {endpoint.dst:#x}"
            print(printable(f"PING {where} from {endpoint.addr:#x}: {args.size} bytes"), flush=True)
        tally = Tally()
        try:
            _ping(endpoint, args, tally)
        finally:  # Ctrl-C and a peer that goes end the pings, not the summary
            summary = tally.summary()
            print(json.dumps(summary) if args.json else _as_text(args.url, summary), flush=True)
        return 0 if summary["lost"] == 0 else 1


class Tally:
    """What became of the messages so far."""

    def __init__(self) -> None:
        self.sent = 0
        self.unexpected = 0
        self.times = array("d")  # seconds

    def summary(self) -> dict[str, float]:
        found: dict[str, float] = {
            "sent": self.sent,
            "received": len(self.times),
            "lost": self.sent - len(self.times),
            "unexpected": self.unexpected,
        }
        times = sorted(self.times)
        if times:
            for name, share in (("min", 0.0), ("median", 0.5), ("p99", 0.99), ("max", 1.0)):
                found[f"{name}_ms"] = round(times[max(0, math.ceil(share * len(times)) - 1)] * 1000, 6)
        return found


def payload(seq: int, size: int) -> bytes:
    """The message number `seq`: the number, as far as there is room, and a pattern."""
    return (seq.to_bytes(8, "little") + bytes(i & 0xFF for i in range(8, size)))[:size]


def _ping(endpoint: Endpoint, args: argparse.Namespace, tally: Tally) -> None:
    from ..errors import Timeout

    seq = 0
    start = time.monotonic()
    while not args.count or seq < args.count:
        time.sleep(max(0.0, start + seq * args.interval - time.monotonic()))
        message = payload(seq, args.size)
        begin = time.perf_counter()
        try:
            endpoint.send(message, timeout=args.timeout)
            tally.sent += 1
            while True:
                reply, src = _receive(endpoint, len(message), begin + args.timeout)
                took = time.perf_counter() - begin
                if reply == message:
                    break
                tally.unexpected += 1
        except Timeout as error:
            if tally.sent == seq:  # it did not even get away
                tally.sent += 1
            if args.json:
                print(json.dumps({"seq": seq, "lost": True}), flush=True)
            else:
                print(f"no reply: seq={seq}: {printable(str(error.strerror))}", flush=True)
        else:
            tally.times.append(took)
            if args.json:
                print(
                    json.dumps({"seq": seq, "bytes": len(reply), "src": src, "ms": round(took * 1000, 6)}),
                    flush=True,
                )
            else:
                print(f"{len(reply)} bytes from {src:#x}: seq={seq} time={took * 1000:.3f} ms", flush=True)
        seq += 1


def _receive(endpoint: Endpoint, size: int, end: float) -> tuple[bytes, int | None]:
    """A message and its sender, before the performance counter reads `end`. A tty's comes in pieces."""

    def left() -> float:
        return max(0.0, end - time.perf_counter())

    reply, src = receive(endpoint, left())
    while is_tty(endpoint) and len(reply) < size:
        reply += endpoint.recv(timeout=left())
    return reply, src


def _as_text(url: str, found: dict[str, float]) -> str:
    lines = [
        "",
        f"--- {printable(url)} ---",
        f"{found['sent']} sent, {found['received']} received, {found['lost']} lost"
        + (f", {found['unexpected']} messages that were no reply" if found["unexpected"] else ""),
    ]
    if found["received"]:
        times = "/".join(f"{found[f'{name}_ms']:.3f}" for name in ("min", "median", "p99", "max"))
        lines.append(f"round trip min/median/p99/max = {times} ms")
    return "\n".join(lines)
