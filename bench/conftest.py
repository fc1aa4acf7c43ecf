"""Figures per message, with what they are compared to in the same run.

    pytest bench            prints the table; --benchmark-json=FILE keeps the figures
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 9


class PerMessage:
    """Runs `work`, which moves `messages` messages a call, and keeps nanoseconds per message."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def __call__(self, work: Callable[[], object], messages: int) -> None:
        self._benchmark.pedantic(work, rounds=ROUNDS, iterations=1, warmup_rounds=2)
        stats = self._benchmark.stats.stats
        for key, value in (("min", stats.min), ("median", stats.median), ("max", stats.max)):
            self._benchmark.extra_info[f"ns_{key}"] = round(value / messages * 1e9, 1)


@pytest.fixture
def per_message(benchmark: Any) -> PerMessage:
    return PerMessage(benchmark)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    terminalreporter.section("nanoseconds per message: min / median / max of 9")
    terminalreporter.write_line(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}")
    for bench in session.benchmarks:
        info = bench.extra_info
        if "ns_min" in info:
            name = bench.name.removeprefix("test_")
            terminalreporter.write_line(
                f"{name:<52}{info['ns_min']:>9.1f}{info['ns_median']:>9.1f}{info['ns_max']:>9.1f}"
            )
