"""Marks; `pytest --conformance`: which rules of docs/conformance.md the tests that ran have covered; which lessons of
docs/lessons.md those that failed keep.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

RULES = Path(__file__).parent.parent / "docs" / "conformance.md"
ROW = re.compile(
    r"^\| (?P<id>[\w./-]+) \| (?P<who>[^|]*) \| (?P<level>[^|]*) \| (?P<text>[^|]*) \| (?P<how>[^|]*) \|$"
)
LESSONS = Path(__file__).parent.parent / "docs" / "lessons.md"
LESSON = re.compile(r"^## (?P<name>\d\d) (?P<title>.+)$", re.MULTILINE)
NAMED = re.compile(r"test_lesson_(\d\d)_")
MARKS = {
    "rule(*ids)": "rules of docs/conformance.md that the test proves",
    "hostile": "the other end, or a file, is out to break us",
    "mutation": "a fault is put into our own code, and a test must find it",
    "slow": "minutes; runs with RPMSGX_SLOW=1",
    "lesson(*names)": "lessons of docs/lessons.md that the test keeps; it is named after one of them",
}


def rules() -> dict[str, tuple[str, str]]:
    """id: (statement, how it is covered) of every row."""
    found: dict[str, tuple[str, str]] = {}
    for line in RULES.read_text(encoding="utf-8").splitlines():
        row = ROW.match(line)
        if row and row["id"] != "id":
            assert row["id"] not in found, f"{RULES}: {row['id']} stands there twice"
            found[row["id"]] = row["text"].strip(), row["how"].strip()
    return found


def lessons() -> dict[str, str]:
    """name: title."""
    return {found["name"]: found["title"] for found in LESSON.finditer(LESSONS.read_text(encoding="utf-8"))}


def _let_threads_end() -> None:
    """A thread takes its last breath after join(). If it holds a lock of AddressSanitizer's allocator then, a forked
    child waits for that for ever.
    """
    deadline = time.monotonic() + 1
    while len(os.listdir("/proc/self/task")) > threading.active_count() and time.monotonic() < deadline:
        os.sched_yield()


if "libasan" in os.environ.get("LD_PRELOAD", ""):
    os.register_at_fork(before=_let_threads_end)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", action="store_true", help="print which rules the tests covered")


def pytest_configure(config: pytest.Config) -> None:
    for name, text in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known: dict[str, tuple[str, str]] | None = None
    titles: dict[str, str] | None = None
    for item in items:
        names = [name for mark in item.iter_markers("lesson") for name in mark.args]
        named = NAMED.match(item.name)
        if named is not None and named[1] not in names:
            raise pytest.UsageError(f"{item.nodeid}: named after lesson {named[1]}, but marked {names}")
        if names:
            titles = lessons() if titles is None else titles
            unknown = [name for name in names if name not in titles]
            if unknown:
                raise pytest.UsageError(f"{item.nodeid}: no lesson {', '.join(unknown)} in {LESSONS}")
            item.user_properties += [("lesson", f"lesson {name}, {titles[name]}") for name in names]
        ids = [i for mark in item.iter_markers("rule") for i in mark.args]
        if ids:
            known = rules() if known is None else known
            unknown = [i for i in ids if i not in known]
            if unknown:
                raise pytest.UsageError(f"{item.nodeid}: no rule {', '.join(unknown)} in {RULES}")
            item.user_properties.append(("rules", ids))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    stats = terminalreporter.stats
    broken = {
        f"{what}: {report.nodeid}"
        for report in (*stats.get("failed", []), *stats.get("error", []))
        for name, what in getattr(report, "user_properties", ())  # a file that cannot be imported has none
        if name == "lesson"
    }
    if broken:
        terminalreporter.section("lessons that were not kept")
        for line in sorted(broken):
            terminalreporter.line(line)
    if not config.getoption("conformance"):
        return
    passed, failed = Counter[str](), Counter[str]()
    for outcome, counter in (("passed", passed), ("failed", failed), ("xfailed", failed)):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call":
                counter.update(i for name, ids in report.user_properties if name == "rules" for i in ids)
    terminalreporter.section("conformance")
    summary = Counter[str]()
    for rule, (text, how) in rules().items():
        if failed[rule]:
            state = "FAILED"
        elif passed[rule]:
            state = "covered"
        else:
            state = "n/a" if how.startswith("n/a") else "not covered"
        summary[state] += 1
        terminalreporter.line(f"{rule:<14} {state:<12} {passed[rule] or '':>4}  {text}")
    terminalreporter.line(", ".join(f"{n} {state}" for state, n in summary.items()))
