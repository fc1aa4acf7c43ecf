"""`rpmsgx bench`: how fast a link is, what limits it, and whether that has changed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from .. import bench
from .link import add_link, count, open_link, seconds
from .text import block, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from ..bench import Figure
    from ..rpmsg.bus import Endpoint


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure throughput and round trips",
        description="Measure throughput each way and round trips, and say what limits them. At the other end of URL "
        "runs `rpmsgx bench --serve`, or a remote with the firmware flood. Without URL, --board and --platform: "
        "between two processes of this machine, on two CPUs.",
    )
    add_link(parser, "driver", required=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--serve", action="store_true", help="be the other end of URL, as device, until Ctrl-C")
    where.add_argument("--board", metavar="FILE", help="boot a remote on the board of this file, and measure that")
    where.add_argument("--platform", metavar="NAME", help="the same on a platform alone: unicorn, native")
    parser.add_argument("--firmware", metavar="ELF", default="flood", help="what it boots (default: flood)")
    parser.add_argument("--once", action="store_true", help="with --serve: end when the first peer has gone")
    parser.add_argument("--sizes", type=_numbers, metavar="N,...", help="bytes of payload (default: 16,64,256,496)")
    parser.add_argument(
        "--batches", type=_numbers, default=bench.BATCHES, metavar="N,...",
        help=f"messages a call, up to {bench.MAX_BATCH} (default: 1,64)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=seconds, default=0.2, metavar="S", help="for each repeat, about (default: 0.2)"
    )
    parser.add_argument("--repeats", type=_at_least_1, default=5, metavar="N", help="of each figure (default: 5)")
    parser.add_argument(
        "--spin", type=seconds, default=0.0, metavar="S",
        help="look at the rings that long before sleeping, at both ends where both are ours (default: 0)",
    )  # fmt: skip
    parser.add_argument("--wait", type=seconds, metavar="S", help="seconds to wait for the other end (default: ever)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--compare", metavar="FILE", help="with the --json of an earlier run: new time : old time")
    parser.add_argument("--plot", metavar="FILE", help="draw a chart, .svg or .png")
    parser.set_defaults(run=run, parser=parser)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_at_least_1(word) for word in text.split(","))


def _at_least_1(text: str) -> int:
    value = count(text)
    if value == 0:
        raise ValueError
    return value


def run(args: argparse.Namespace) -> int:
    remote = args.board is not None or args.platform is not None
    if args.serve and args.url is None:
        args.parser.error("--serve needs the URL of a link")
    if remote and args.url is not None:
        args.parser.error("a URL does not go with --board and --platform")
    if max(args.batches) > bench.MAX_BATCH:
        args.parser.error(f"--batches: at most {bench.MAX_BATCH} messages a call")
    if args.serve:
        return _serve(args)
    before = None if args.compare is None else _load(args.compare)
    if args.plot is not None:
        _check_plot(args.plot)
    if args.url is not None:
        name, opened = args.url, _link(args)
    elif remote:
        name, opened = args.board or args.platform, _remote(args)
    else:
        name, opened = "memfd, two processes", _two_processes(args)
    with opened as endpoint:
        figures = _measure(endpoint, args)
    report = {"link": name, "spin": args.spin, **bench.machine(), "figures": [figure.as_dict() for figure in figures]}
    if args.plot is not None:
        _plot(args.plot, report, figures)
    if args.json:
        print(json.dumps(report))
    else:
        print(printable("\n".join(_as_text(report, figures, before))))
    return 0


def _serve(args: argparse.Namespace) -> int:
    args.default_role = "device"
    args.options.append(("spin", args.spin))
    with open_link(args) as bus, bus.create_endpoint(bench.SERVICE) as endpoint:
        print(printable(f"{args.url}: serving {bench.SERVICE}"), file=sys.stderr, flush=True)
        bench.serve(endpoint, once=args.once, timeout=args.wait)
    return 0


# -- what is measured ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _link(args: argparse.Namespace) -> Iterator[Endpoint]:
    if args.spin:  # char: has no such option
        args.options.append(("spin", args.spin))
    with open_link(args) as bus:
        _say(f"waiting for {bench.SERVICE} at the other end of {args.url}")
        yield bus.open(bench.SERVICE, timeout=args.wait)


@contextlib.contextmanager
def _remote(args: argparse.Namespace) -> Iterator[Endpoint]:
    from ..remoteproc.remoteproc import Remoteproc
    from .run import file_or_name

    try:
        rproc = Remoteproc(
            platform=args.platform, board=args.board, firmware=file_or_name(args.firmware), auto_boot=False,
            spin=args.spin, **dict(args.options),
        )  # fmt: skip
    except TypeError as error:  # an option that this platform does not have, or not of this type
        raise ValueError(f"{args.platform or args.board}: {error}") from error
    with rproc:
        rproc.boot()
        yield rproc.open(bench.SERVICE, timeout=10.0 if args.wait is None else args.wait)


@contextlib.contextmanager
def _two_processes(args: argparse.Namespace) -> Iterator[Endpoint]:
    """Both pinned, where there are two CPUs; on one a thread that spins would keep the other end from running."""
    from ..rpmsg.open import open

    cpus = bench.two_cpus()
    if cpus is None and args.spin:
        raise ValueError("--spin: there is one CPU for both ends")
    with contextlib.ExitStack() as stack:
        with tempfile.TemporaryDirectory(prefix="rpmsgx-bench-") as folder:  # of no use once both are there
            url = f"memfd:{folder}/link"
            bus = stack.enter_context(open(url, "driver", spin=args.spin, **dict(args.options)))
            command = [sys.executable, "-m", "rpmsgx", "bench", url, "--serve", "--once", "--wait", "30",
                       "--spin", str(args.spin)]  # fmt: skip
            for key, value in args.options:
                command += ["-o", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
            with contextlib.nullcontext() if cpus is None else bench.pinned(cpus[1]):
                other = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(_end, other)
            if cpus is not None:
                stack.enter_context(bench.pinned(cpus[0]))
            endpoint = bus.open(bench.SERVICE, timeout=30.0)
        yield endpoint


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def _measure(endpoint: Endpoint, args: argparse.Namespace) -> list[Figure]:
    sizes = args.sizes or tuple(size for size in bench.SIZES if not endpoint.mtu or size <= endpoint.mtu)
    plan: list[tuple[bench.What, int, int]] = [
        (what, size, batch) for what in ("out", "in") for size in sizes for batch in args.batches
    ]
    plan += [("trip", size, 1) for size in sizes]
    measure = bench.Bench(endpoint, seconds=args.seconds, repeats=args.repeats)
    figures = []
    for i, (what, size, batch) in enumerate(plan):
        each = f", {batch} a call" if what != "trip" else ""
        _say(f"[{i + 1}/{len(plan)}] {bench.TITLES[what]}: {size} bytes{each}")
        figures.append(measure.figure(what, size, batch))
    _say("")
    return figures


def _say(text: str) -> None:
    """Where it stands; one line, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{printable(text)}", end="", file=sys.stderr, flush=True)
    elif text:
        print(printable(text), file=sys.stderr, flush=True)


# -- what is shown ---------------------------------------------------------------------------------------------------


def _key(figure: dict[str, Any]) -> tuple[str, int, int]:
    return figure["what"], figure["size"], figure["batch"]


def _load(path: str) -> dict[str, Any]:
    """The report of an earlier run. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        try:
            report = json.load(file)
            for figure in report["figures"]:
                _key(figure)
                for name in ("min", "median", "max"):
                    if not float(figure["ns"][name]) > 0:
                        raise ValueError(f"{name} is {figure['ns'][name]}")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not what `rpmsgx bench --json` has printed: {error!r}") from error
    return dict(report)


def _as_text(report: dict[str, Any], figures: Sequence[Figure], before: dict[str, Any] | None) -> Iterator[str]:
    yield f"{report['link']}; spin {report['spin'] * 1e6:g} us"
    yield f"{report['cpu'] or report['machine']}, {report['cpus']} CPUs, Linux {report['kernel']}, " \
          f"Python {report['python']}, load {report['load']}"
    old = {} if before is None else {_key(figure): figure["ns"] for figure in before["figures"]}
    for what, title in bench.TITLES.items():
        head, rows = (_trips if what == "trip" else _messages)([f for f in figures if f.what == what])
        if before is not None:
            head += ("new:old", "")
            rows = [row + _ratio(f, old) for row, f in zip(rows, (f for f in figures if f.what == what), strict=True)]
        yield from block(title, head, rows)
    if before is not None:
        yield ""
        yield f"old: {before.get('link')}, rpmsgx {before.get('rpmsgx')}, {before.get('time')}"
        if any(before.get(key) != report[key] for key in ("cpu", "link", "spin")):
            yield "of another machine or link: the ratios compare more than the two versions"


def _messages(figures: Sequence[Figure]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("bytes", "a call", "M/s", "MB/s", "ns min", "median", "max", "kicks", "limited by")
    return head, [
        (
            str(f.size), str(f.batch), f"{1e3 / f.ns.median:.3f}", f"{1e3 * f.size / f.ns.median:.1f}",
            f"{f.ns.min:.0f}", f"{f.ns.median:.0f}", f"{f.ns.max:.0f}", f"{f.parts.kicks:.3f}", f.limit,
        )
        for f in figures
    ]  # fmt: skip


def _trips(figures: Sequence[Figure]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    names = [f"p{p:g}" for p in bench.PERCENTILES]
    head = ("bytes", *(f"us {name}" if i == 0 else name for i, name in enumerate(names)), "max", "sleeps", "limited by")
    return head, [
        (
            str(f.size), *(f"{f.trips[name] / 1e3:.2f}" for name in (*names, "max")), f"{f.parts.sleeps:.3f}", f.limit,
        )
        for f in figures
    ]  # fmt: skip


def _ratio(figure: Figure, old: dict[tuple[str, int, int], dict[str, float]]) -> tuple[str, str]:
    """New median by old, and what that means where the spreads do not even touch."""
    then = old.get((figure.what, figure.size, figure.batch))
    if then is None:
        return "", "new"
    word = "SLOWER" if figure.ns.min > then["max"] else "faster" if figure.ns.max < then["min"] else ""
    return f"{figure.ns.median / then['median']:.2f}", word


def _check_plot(path: str) -> None:
    """Say before the work what would fail after it."""
    if not path.endswith((".svg", ".png")):
        raise ValueError(f"--plot {path}: .svg or .png")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "no such directory", folder)
    if path.endswith(".png"):
        from .chart import png

        png()


def _plot(path: str, report: dict[str, Any], figures: Sequence[Figure]) -> None:
    from .chart import Bar, Group, save, svg

    def bar(f: Figure) -> Bar:
        if f.what == "trip":
            return Bar(f"{f.size} bytes", f.trips["p50"] / 1e3, f.trips["p50"] / 1e3, f.trips["p99"] / 1e3)
        return Bar(f"{f.size} bytes, {f.batch} a call", 1e3 / f.ns.max, 1e3 / f.ns.median, 1e3 / f.ns.min)

    groups = [
        Group(title, "us" if what == "trip" else "M/s", [bar(f) for f in figures if f.what == what])
        for what, title in bench.TITLES.items()
    ]
    notes = [
        f"{report['cpu'] or report['machine']}, Linux {report['kernel']}, Python {report['python']}, "
        f"rpmsgx {report['rpmsgx']}, {report['time']}",
        "bars: the median; whiskers: least and most of the repeats, of round trips up to the 99th percentile",
    ]
    save(path, svg(f"rpmsgx bench: {report['link']}", notes, groups))
