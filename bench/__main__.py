"""`python -m bench`: every figure of docs/performance.md, with its peers and its limits, in one run.

    python -m bench --quick                 a minute or two: does it run, and roughly
    python -m bench --json bench.json       the whole; python -m bench.chart bench.json draws it
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rpmsgx.bench import SIZES, Spread, machine, two_cpus
from rpmsgx.cli.text import block

from .harness import Pair, Run, Steady, fitting, plain_c, stream, trips
from .limits import FLAGS, Missing, compiler
from .transports import BATCH, TRANSPORTS, MemfdBlocking, Transport

ROOT = Path(__file__).parent.parent
PACKAGES = ("Cython", "numpy", "pyzmq", "iceoryx2")

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, short ones, two sizes")
    parser.add_argument("--json", metavar="FILE", help="keep all figures")
    parser.add_argument("--only", metavar="TEXT", default="", help="of the transports those whose name holds TEXT")
    parser.add_argument("--no-suites", action="store_true", help="leave out the suites for one process (pytest bench)")
    args = parser.parse_args()
    cpus = two_cpus()
    if cpus is None:
        print("bench: two processes need two CPUs", file=sys.stderr)
        return 1
    pair = Pair(*cpus)
    sizes, repeats, seconds = ((64, 496), 3, 0.05) if args.quick else (SIZES, 9, 0.3)
    report: dict[str, Any] = {**about(), "cpu_pair": pair, "repeats": repeats, "rows": [], "skipped": {}}
    steady = Steady(pair)
    say(f"{report['cpu']}, Linux {report['kernel']}, Python {report['python']}, load {report['load']}, CPUs {pair}")
    try:
        report["rows"] += limits(sizes, repeats, pair, steady)
        report["rows"] += sleepers(repeats, seconds, pair, steady)
    except Missing as error:
        skip(report, "limits", error)
    for kind in TRANSPORTS:
        if args.only not in kind.name:
            continue
        try:
            kind(64).close()
            report["rows"] += transport(kind, sizes, repeats, seconds, pair, steady)
        except Missing as error:
            skip(report, kind.name, error)
        except Exception as error:  # a peer that breaks must not take the others with it; ours must not break
            if kind.ours:
                raise
            skip(report, kind.name, error)
    for line in tables(report["rows"]):
        print(line)
    if not args.no_suites:
        report["one_process"] = suites(args.quick)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        say(f"written to {args.json}")
    return 0


def skip(report: dict[str, Any], name: str, error: Exception) -> None:
    report["skipped"][name] = str(error) or repr(error)
    say(f"skipped: {name}: {report['skipped'][name]}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about() -> dict[str, Any]:
    """The machine, and what exactly was measured on it."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    cc: str | None
    try:
        cc = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    except Missing:
        cc = None
    git = ("git", "-C", str(ROOT))
    commit = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {**machine(), "commit": commit or None, "compiler": cc, "flags": " ".join(FLAGS[:2]), "versions": versions}


def limits(sizes: tuple[int, ...], repeats: int, pair: Pair, steady: Steady) -> Iterator[Row]:
    """What plain C does."""
    count = 1_000_000
    plan: list[tuple[str, str, int, int, tuple[object, ...]]] = [
        ("line", "cache line", 0, 1, ("line", *pair)),
    ]
    for size in sizes:
        plan.append(("one", "memcpy in and out", size, 1, ("memcpy", size)))
        for ring, words in (("", ()), (", packed", ("packed",))):
            plan.append(("trip", f"C core{ring}, spinning", size, 1, ("echo", size, *pair, *words)))
            for batch in (1, BATCH):
                for role, way in (("driver", "driver to device"), ("device", "device to driver")):
                    name, work = f"C core{ring}, {way}", (size, batch, count, role)
                    plan.append(("one", name, size, batch, ("both", *work, *words)))
                    ends = pair.there, pair.here  # the sender's first
                    plan.append(("stream", name, size, batch, ("stream", *work, *ends, *words)))
    for i, (what, name, size, batch, arguments) in enumerate(plan):
        say(f"[{i + 1}/{len(plan)}] limits: {name}, {what}, {size} bytes, {batch} a call")
        runs = [steady(plain_c, *arguments) for _ in range(repeats)]
        yield row(what, name, size, batch, runs, limit=True)


def sleepers(repeats: int, seconds: float, pair: Pair, steady: Steady) -> Iterator[Row]:
    """Round trips of two processes that sleep, in turn, because what a wake-up takes changes by the second."""
    size = 64
    count = fitting(lambda count: trips(MemfdBlocking, size, count, pair), seconds)
    ways: dict[str, tuple[int, Callable[[], Run]]] = {
        "eventfd, poll and read (plain C)": (8, lambda: plain_c("eventfd", *pair)),
        "futex (plain C)": (4, lambda: plain_c("futex", *pair)),
        "rpmsgx, blocking": (size, lambda: trips(MemfdBlocking, size, count, pair)),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for i in range(repeats):
        say(f"[{i + 1}/{repeats}] two processes that sleep")
        for name, (_, run) in ways.items():
            one = steady(run)
            runs[name].append(one._replace(ns=one.trips.get("p50", one.ns)))  # the limits tell medians too
    for name, (bytes_, _) in ways.items():
        yield row("wake", name, bytes_, 1, runs[name])


def transport(
    kind: type[Transport], sizes: tuple[int, ...], repeats: int, seconds: float, pair: Pair, steady: Steady
) -> Iterator[Row]:
    for size in sizes:
        for what, batch in (("stream", 1), ("stream", BATCH), ("trip", 1)):
            if batch == 1 and not kind.singles:
                continue
            say(f"{kind.name}: {what}, {size} bytes, {batch} a call")

            def once(count: int, size: int = size, what: str = what, batch: int = batch) -> Run:
                return stream(kind, size, batch, count, pair) if what == "stream" else trips(kind, size, count, pair)

            try:
                count = fitting(once, seconds)
                runs = [steady(once, count) for _ in range(repeats)]
                yield row(what, kind.name, size, batch, runs, ours=kind.ours)
            except Missing as error:
                say(f"  skipped: {error}")


def row(what: str, name: str, size: int, batch: int, runs: list[Run], **marks: bool) -> Row:
    found: Row = {"what": what, "name": name, "size": size, "batch": batch, **marks}
    found["ns"] = vars(Spread.of(run.ns for run in runs))
    found["lines"] = [run.line for run in runs]
    found["repeats"] = [run.ns for run in runs]
    for percent in runs[0].trips:
        found[percent] = vars(Spread.of(run.trips[percent] for run in runs))
    return found


TITLES = {
    "line": "cache line from CPU to CPU and back, ns",
    "wake": "two processes that sleep, in turn, median round trip, ns",
    "one": "one thread, ns a message",
    "stream": "one process to another, ns a message",
    "trip": "round trip, ns",
}


def tables(rows: list[Row]) -> Iterator[str]:
    head = ("", "bytes", "a call", "min", "median", "max", "M/s", "p50", "p99", "cache line ns")
    for what, title in TITLES.items():
        chosen = [one for one in rows if one["what"] == what]
        chosen.sort(key=lambda one: (one["size"], one["batch"]))
        yield from block(title, head, [cells(one) for one in chosen])


def cells(one: Row) -> tuple[str, ...]:
    ns, lines = one["ns"], [line for line in one["lines"] if line is not None]
    return (
        one["name"], str(one["size"]), str(one["batch"]), *(f"{ns[key]:.1f}" for key in ("min", "median", "max")),
        f"{1e3 / ns['median']:.3f}", *(f"{one[p]['median']:.0f}" if p in one else "" for p in ("p50", "p99")),
        f"{min(lines):.0f}-{max(lines):.0f}" if lines else "",
    )  # fmt: skip


def suites(quick: bool) -> list[Row]:
    """What the suites for one process say."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "suites.json")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-quiet",
                   f"--benchmark-json={path}", "bench"]  # fmt: skip
        environment = {**os.environ, "RPMSGX_BENCH_QUICK": "1"} if quick else None
        say("one process: pytest bench")
        done = subprocess.run(command, cwd=ROOT, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"pytest bench failed with {done.returncode}")
        with open(path, encoding="utf-8") as file:
            found = json.load(file)["benchmarks"]
    return [{"name": one["name"].removeprefix("test_"), **one["extra_info"]} for one in found]


if __name__ == "__main__":
    sys.exit(main())
