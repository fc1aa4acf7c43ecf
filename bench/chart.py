"""`python -m bench.chart bench.json`: docs/throughput.svg, of what `python -m bench --json bench.json` has measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rpmsgx.cli.chart import Bar, Group, save, svg

ROOT = Path(__file__).parent.parent
SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="what python -m bench --json has written")
    parser.add_argument("-o", metavar="FILE", default=str(ROOT / "docs" / "throughput.svg"))
    args = parser.parse_args()
    report = json.loads(Path(args.file).read_text(encoding="utf-8"))
    save(args.o, picture(report))
    print(args.o)


def picture(report: dict[str, Any]) -> str:
    groups = []
    for title, batch in (("One message a call", 1), ("64 messages a call", 64)):
        rows = [row for row in report["rows"] if (row["what"], row["size"], row["batch"]) == ("stream", SIZE, batch)]
        rows.sort(key=lambda row: (bool(row.get("limit")), float(row["ns"]["median"])))
        groups.append(Group(f"{title}, {SIZE} bytes", "M/s", [bar(row) for row in rows]))
    lines = [line for row in report["rows"] for line in row["lines"] if line is not None]
    notes = [
        f"{report['cpu']}, Linux {report['kernel']}, Python {report['python']}, rpmsgx {report['rpmsgx']}, "
        f"commit {report['commit'] or 'unknown'}, {report['time']}",
        f"Two processes on CPUs {' and '.join(map(str, report['cpu_pair']))}; median, least and most of "
        f"{report['repeats']} repeats; load {report['load']} at the beginning.",
    ]
    if lines:
        notes.append(f"A cache line took {min(lines):.0f} to {max(lines):.0f} ns from one CPU to the other and back.")
    return svg("From one process to another, million messages a second", notes, groups)


def bar(row: dict[str, Any]) -> Bar:
    ns = row["ns"]
    label = f"{row['name']} (plain C)" if row.get("limit") else row["name"]
    return Bar(label, 1e3 / ns["max"], 1e3 / ns["median"], 1e3 / ns["min"], row.get("ours", False))


if __name__ == "__main__":
    main()
