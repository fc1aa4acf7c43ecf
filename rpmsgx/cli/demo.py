"""`rpmsgx demo`: boots the sample firmware on a remote core, exchanges messages, shows what happens as it happens."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from rpmsgx.errors import Error

if TYPE_CHECKING:
    from rpmsgx.remoteproc.remoteproc import Remoteproc

SERVICE = "rpmsg-client-sample"
MESSAGE = b"hello world!"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="boot a sample firmware and talk to it",
        description="Boot the sample firmware on a remote core, wait for its channel, exchange messages, and stop it.",
    )
    parser.add_argument("--platform", choices=("unicorn", "native"), default="unicorn",
                        help="what runs the firmware: an emulated Cortex-M4 (default), or a native thread")
    parser.add_argument("--firmware", metavar="ELF", help="a firmware image that announces rpmsg-client-sample")
    parser.add_argument("--count", type=_count, default=100, metavar="N", help="messages to exchange (100)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for anything (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


class Show:
    """Lines for people as things happen; nothing with --json."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._tty = sys.stdout.isatty()

    def line(self, what: str, text: str) -> None:
        if not self._quiet:
            print(f"{what:>9}  {text}", flush=True)

    def progress(self, done: int, total: int) -> None:
        if self._quiet or not self._tty:
            return
        bar = "#" * (40 * done // total)
        print(f"\r{'messages':>9}  [{bar:<40}] {done}/{total}", end="\r\x1b[K" if done == total else "", flush=True)


def exchange(rproc: Remoteproc, count: int, timeout: float, show: Show) -> tuple[dict[str, int], list[float]]:
    """Send MESSAGE `count` times, each answered before the next: how it went, and the round trips in seconds."""
    result = {"sent": 0, "received": 0, "mismatches": 0}
    trips: list[float] = []
    with rproc.open(SERVICE, timeout=timeout) as endpoint:
        show.line("channel", f"{SERVICE} at {endpoint.dst:#x}")
        for i in range(count):
            start = time.perf_counter()
            endpoint.send(MESSAGE, timeout=timeout)
            result["sent"] += 1
            answer = endpoint.recv(timeout=timeout)
            trips.append(time.perf_counter() - start)
            result["received"] += 1
            result["mismatches"] += answer != MESSAGE
            if i % 16 == 15 or i + 1 == count:
                show.progress(i + 1, count)
    return result, trips


def run(args: argparse.Namespace) -> int:
    from rpmsgx.remoteproc.remoteproc import Remoteproc

    show = Show(args.json)
    states = []
    with Remoteproc("demo", platform=args.platform, firmware=args.firmware, auto_boot=False) as rproc:
        states.append(rproc.state)
        cpu = rproc.platform.cpu
        show.line(rproc.state, f"{cpu}, platform {args.platform}")
        start = time.perf_counter()
        rproc.boot()
        states.append(rproc.state)
        image = rproc.image
        show.line("firmware", f"{image.name}, sha256 {image.sha256[:16]}...")
        show.line(rproc.state, f"booted in {1e3 * (time.perf_counter() - start):.1f} ms")
        try:
            result, trips = exchange(rproc, args.count, args.timeout, show)
        except Error as error:
            for text in rproc.trace().splitlines():
                error.add_note(f"trace: {text}")
            raise
        channels = [{"name": channel.name, "addr": channel.addr} for channel in rproc.bus.channels]
        trips.sort()
        p50, p99 = (1e6 * trips[min(len(trips) - 1, len(trips) * p // 100)] for p in (50, 99))
        show.line("messages", f"{result['sent']} sent, {result['received']} received, "
                              f"{result['mismatches']} mismatches, each {MESSAGE.decode()!r}")
        show.line("latency", f"round trip {p50:.0f} us median, {p99:.0f} us at the 99th percentile")
        trace = rproc.trace()
        for text in trace.splitlines():
            show.line("trace", text)
        rproc.shutdown()
        states.append(rproc.state)
        show.line(rproc.state, "stopped")
    if args.json:
        print(json.dumps({
            "platform": args.platform,
            "cpu": cpu,
            "firmware": {"name": image.name, "sha256": image.sha256},
            "states": states,
            "channels": channels,
            **result,
            "trace": trace,
            "round_trip_us": {"p50": round(p50, 1), "p99": round(p99, 1)},
        }))
    return 0 if result["mismatches"] == 0 and result["received"] == args.count else 1
