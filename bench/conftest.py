"""Figures per message, with what they are compared to in the same run.

    pytest bench            prints the table; --benchmark-json=FILE keeps the figures

With RPMSGX_BENCH_QUICK=1 in the environment there are fewer messages and repeats: does it run, and roughly.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import rpmsgx

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = os.environ.get("RPMSGX_BENCH_QUICK") == "1"
ROUNDS = 3 if QUICK else 9
BATCH = 64
N = BATCH * (20 if QUICK else 1000)  # messages a round
SIZES = (16, 64, 256, 496)

Ends = tuple[rpmsgx.Endpoint, rpmsgx.Endpoint]


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


@pytest.fixture
def buses() -> Iterator[tuple[rpmsgx.Bus, rpmsgx.Bus]]:
    with rpmsgx.open("virtual:bench", "driver") as driver, rpmsgx.open("virtual:bench", "device") as device:
        yield driver, device


@pytest.fixture(params=["driver_to_device", "device_to_driver"])
def ends(request: pytest.FixtureRequest, buses: tuple[rpmsgx.Bus, rpmsgx.Bus]) -> Ends:
    """(sender, receiver), each with the other as its peer."""
    driver, device = buses
    service = driver.create_endpoint("bench")
    client = device.open("bench", timeout=1)
    client.send(b"who is there")
    service.recv(timeout=1)
    return (service, client) if request.param == "driver_to_device" else (client, service)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    terminalreporter.section(f"nanoseconds per message: min / median / max of {ROUNDS}")
    terminalreporter.write_line(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}")
    for bench in session.benchmarks:
        info = bench.extra_info
        if "ns_min" in info:
            name = bench.name.removeprefix("test_")
            terminalreporter.write_line(
                f"{name:<48}{info['ns_min']:>12.1f}{info['ns_median']:>12.1f}{info['ns_max']:>12.1f}"
            )
