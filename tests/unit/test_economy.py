# SPDX-License-Identifier: BSD-3-Clause
"""What a link does not waste: doorbells, CPU time, memory. Counted, not timed."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import kernel_has

import rpmsgx
from rpmsgx import bench

WAIT = 30.0
COUNT = 64 * 1600
ENDPOINTS = 10_000


@contextmanager
def served(url: str, *options: str, spin: float = 0.0) -> Iterator[tuple[rpmsgx.Endpoint, subprocess.Popen[bytes]]]:
    """An endpoint, and its peer: a process on a CPU of its own, which takes what is sent."""
    cpus = bench.two_cpus()
    kernel_has(cpus is not None, "two CPUs")
    assert cpus is not None
    command = [sys.executable, "-m", "rpmsgx", "bench", url, "--serve", "--once", "--wait", str(WAIT), *options]
    with rpmsgx.open(url, "driver", spin=spin) as bus:
        with bench.pinned(cpus[1]):
            other = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            with bench.pinned(cpus[0]):
                yield bus.open(bench.SERVICE, timeout=WAIT), other
        finally:
            other.kill()
            other.wait()


def test_a_stream_to_a_receiver_that_spins_hardly_rings(tmp_path: Path) -> None:
    """The median of several runs: once in a while a receiver runs dry because of other programs on this machine."""
    rings = []
    with served(f"memfd:{tmp_path / 'link'}", "--spin", "20e-6") as (endpoint, _):
        messages = [bytes(64)] * 64
        for _ in range(9):
            endpoint.send(bench.COMMAND.pack(bench.MAGIC, bench.SINK, COUNT, 64))
            before = endpoint.bus.counters["kicks"]
            for _ in range(COUNT // 64):
                assert endpoint.send_many(messages, timeout=WAIT) == 64
            rings.append(endpoint.bus.counters["kicks"] - before)
            endpoint.send(bench.COMMAND.pack(bench.MAGIC, bench.REPORT, 0, 0))
            assert bench.COMMAND.unpack(endpoint.recv(timeout=WAIT))[1] == COUNT
    assert sorted(rings)[4] < COUNT / 100, rings


@pytest.mark.parametrize("url", ["memfd", "file"])
def test_a_receiver_that_waits_uses_no_cpu(tmp_path: Path, url: str) -> None:
    with served(f"{url}:{tmp_path / 'link'}") as (endpoint, _):
        before, begin = resource.getrusage(resource.RUSAGE_THREAD), time.thread_time()
        with pytest.raises(rpmsgx.Timeout):
            endpoint.recv(timeout=2)
        used, after = time.thread_time() - begin, resource.getrusage(resource.RUSAGE_THREAD)
        assert used < 0.005
        assert after.ru_nvcsw - before.ru_nvcsw < 10  # it sleeps once, and is not woken for nothing


def test_a_thread_that_spins_wakes_one_that_waits_for_a_buffer(tmp_path: Path) -> None:
    """It sees that buffers have come back, and has no use for them itself."""

    def receive() -> None:
        with pytest.raises(rpmsgx.Closed):
            quiet.recv()

    def attempt() -> None:
        with pytest.raises(rpmsgx.Timeout):
            endpoint.send(b"given up", timeout=0.6)

    def send() -> None:
        endpoint.send(b"one more", timeout=WAIT)
        sent.set()

    with served(f"memfd:{tmp_path / 'link'}", spin=2.0) as (endpoint, other):
        quiet, sent = endpoint.bus.create_endpoint(), threading.Event()
        other.send_signal(signal.SIGSTOP)
        while endpoint.try_send(b"into a full ring"):
            pass
        threads = [threading.Thread(target=target) for target in (attempt, receive, send)]
        for thread in threads:  # the first has the pump, the second is handed it, while the third waits
            thread.start()
            assert not sent.wait(0.1)
        threads[0].join()
        other.send_signal(signal.SIGCONT)
        assert sent.wait(WAIT / 3)
        endpoint.bus.close()
        for thread in threads:
            thread.join()


IDLE = f"""
import resource
import rpmsgx

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

with rpmsgx.open("virtual:idle", "driver") as bus:
    keep = [bus.create_endpoint() for _ in range(100)]
    before = resident()
    keep += [bus.create_endpoint() for _ in range({ENDPOINTS})]
    print(resident() - before)
"""


def test_an_idle_endpoint_is_small() -> None:
    """What the process grows by, in C and in Python."""
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, timeout=60, check=True)
    assert 0 < int(done.stdout) <= 400 * ENDPOINTS
