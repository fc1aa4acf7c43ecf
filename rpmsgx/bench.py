"""Measuring a link: throughput each way, and round trips, between two programs.

The other end is a `rpmsg-flood`: csrc/apps/flood.c on a remote core, or `serve` in a Python program. Both take the same
commands, messages of 16 bytes, {magic, operation, count, size} in native words:

    SINK    forget what was counted. What `serve` needs to know beforehand comes with it: `count` messages follow, to
            be taken `size` at a time
    REPORT  answer {magic, messages since, ...}
    SOURCE  send `count` messages of `size` bytes

What a figure is made of is measured as well (`Parts`), so that it says what limits it. Nothing here is thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import resource
import statistics
import struct
import time
from dataclasses import asdict, dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from rpmsgx.errors import ChannelRemoved, Error, NoPeer, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rpmsgx.rpmsg.bus import Bus, Endpoint

SERVICE = "rpmsg-flood"
COMMAND = struct.Struct("=4I")
MAGIC, SOURCE, SINK, REPORT = 0x46585052, 1, 2, 3

SIZES = (16, 64, 256, 496)
BATCHES = (1, 64)
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
FIRST = 64  # messages of the run that tells how many the others need
MAX_BATCH = 1024
WAKE_UP = 200_000.0  # ns: a sleep that is longer does not come from waking up, but from what was waited for
MAX_COUNT = 1 << 28
LOOK = 0.1  # seconds without a message after which one that serves looks whether its peer is still there

What = Literal["out", "in", "trip"]
TITLES: dict[What, str] = {
    "out": "messages to the other end",
    "in": "messages from the other end",
    "trip": "round trips: 16 bytes there, the size back",
}

LIMITS = {"work": "copies and calls", "awake": "the other end, or cache lines", "preempted": "other programs"}


# -- the other end ---------------------------------------------------------------------------------------------------


class _Gone(Exception):
    """The peer of a served endpoint has gone."""


def serve(endpoint: Endpoint, *, once: bool = False, timeout: float | None = None) -> None:
    """Be the other end, on an endpoint named SERVICE, for one peer after the other; `once`: until the first has gone.

    `timeout`: seconds to wait for the first command. Messages that a SOURCE sends are zeros, and a REPORT tells their
    number alone: looking into them would be measured, too. Raises Timeout, Closed, PeerError.
    """
    while True:
        with contextlib.suppress(ChannelRemoved):  # one has gone before it said anything
            command = endpoint.recv(timeout=timeout)
            with contextlib.suppress(_Gone):
                _serve_peer(endpoint, command)
            if once:
                return
            timeout = None


def _serve_peer(endpoint: Endpoint, command: bytes) -> NoReturn:
    """Raises _Gone."""
    bus = endpoint.bus
    sessions = bus.counters["resets"]
    batch, messages = 64, 0
    while True:
        magic, operation, count, size = COMMAND.unpack(command) if len(command) == COMMAND.size else (0, 0, 0, 0)
        try:
            if magic != MAGIC:
                messages += 1
            elif operation == SINK:
                batch, messages = min(max(size, 1), MAX_BATCH), 0
                while messages < count:
                    messages += take(endpoint, count - messages, batch, LOOK)
                    _check_session(bus, sessions)
            elif operation == REPORT:
                endpoint.send(COMMAND.pack(MAGIC, messages, 0, 0), timeout=LOOK)
            elif operation == SOURCE:
                message = bytes(min(size, endpoint.mtu))
                while count > 0:
                    count -= give(endpoint, count, message, batch, LOOK)
                    _check_session(bus, sessions)
            while True:
                with contextlib.suppress(Timeout):
                    command = endpoint.recv(timeout=LOOK)
                    break
                _check_session(bus, sessions)
        except (ChannelRemoved, NoPeer):
            raise _Gone from None


def _check_session(bus: Bus, sessions: int) -> None:
    """A session that has ended is told to who waits, and to nobody else."""
    if bus.counters["resets"] != sessions:
        raise _Gone


def give(endpoint: Endpoint, count: int, message: bytes, batch: int, timeout: float) -> int:
    """Send `message` `count` times, `batch` of them a call: how many, fewer where one had to wait for `timeout`."""
    if batch == 1:
        send = endpoint.send
        for sent in range(count):
            try:
                send(message, timeout=timeout)
            except Timeout:
                return sent
        return count
    messages, send_many = [message] * batch, endpoint.send_many
    for sent in range(0, count, batch):
        some = messages if count - sent >= batch else messages[: count - sent]
        n = send_many(some, timeout=timeout)
        if n < len(some):
            return sent + n
    return count


def take(endpoint: Endpoint, count: int, batch: int, timeout: float) -> int:
    """Receive `count` messages, up to `batch` of them a call: how many, fewer where none came for `timeout`."""
    taken = 0
    try:
        if batch == 1:
            recv = endpoint.recv
            for taken in range(count):  # noqa: B007, it says where a Timeout came
                recv(timeout=timeout)
            return count
        recv_many = endpoint.recv_many
        while taken < count:
            taken += len(recv_many(min(batch, count - taken), timeout=timeout))
    except Timeout:
        pass
    return taken


# -- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """What repeats of the same gave."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = sorted(values)
        return cls(found[0], statistics.median(found), found[-1])


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Nanoseconds that so many percent of the values do not exceed, and the most; of no values nothing."""
    if not seconds:
        return {}
    found = sorted(seconds)
    shares = {f"p{p:g}": found[max(0, math.ceil(p / 100 * len(found)) - 1)] * 1e9 for p in PERCENTILES}
    return {**shares, "max": found[-1] * 1e9}


@dataclass(frozen=True)
class Parts:
    """Where the time of this end goes, in ns a message, or a round trip, and what happens meanwhile.

    `work`: what the same calls cost where nobody else takes part: checks and copies, and the interpreter.
    `kernel`: in the kernel; kicks, and going to sleep. `awake`: looking at the rings for what has not come yet, and
    waiting for cache lines that the other CPU has. `preempted`: ready to run, while other programs had the CPU.
    `asleep`: waiting for the other end, or for a timer. `kicks`: of the other end. `sleeps`: times that this thread
    gave up the CPU by itself.
    """

    work: float
    kernel: float
    awake: float
    preempted: float
    asleep: float
    kicks: float
    sleeps: float

    @property
    def limit(self) -> str:
        """What takes the most."""
        parts = asdict(self)
        most = max(("work", "kernel", "awake", "preempted", "asleep"), key=lambda part: float(parts[part]))
        if most == "kernel":
            return "kicks" if self.kicks > self.sleeps else "going to sleep"
        if most == "asleep":
            return "wake-ups" if self.asleep < self.sleeps * WAKE_UP else "the other end"
        return LIMITS[most]


@dataclass(frozen=True)
class Figure:
    """One line of a report. `ns`: a message, or a round trip, over the repeats; `trips`: percentiles of the repeats
    together."""

    what: What
    size: int
    batch: int
    count: int
    ns: Spread
    parts: Parts
    trips: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        return self.parts.limit

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "limit": self.limit}


class _Usage:
    """What this thread has used, and what the bus has counted, since it was made."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._then = self._now()
        self._wall = time.perf_counter()

    def _now(self) -> tuple[float, float, float, int, int]:
        used = resource.getrusage(resource.RUSAGE_THREAD)
        return time.thread_time(), used.ru_stime, _run_delay(), used.ru_nvcsw, self._bus.counters.get("kicks", 0)

    def parts(self, count: int, work: float) -> Parts:
        wall = (time.perf_counter() - self._wall) * 1e9 / count
        cpu, kernel, delay, sleeps, kicks = (
            (now - then) / count for now, then in zip(self._now(), self._then, strict=True)
        )
        # The kernel's own clocks are coarser than the whole.
        cpu = min(cpu * 1e9, wall)
        kernel = min(kernel * 1e9, cpu)
        work = min(work, cpu - kernel)
        preempted = min(delay * 1e9, wall - cpu)
        return Parts(work, kernel, cpu - kernel - work, preempted, wall - cpu - preempted, kicks, sleeps)


def _run_delay() -> float:
    """Seconds that this thread was ready, but did not run; 0 where the kernel does not count that."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/thread-self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


class Bench:
    """Measures against the other end that `endpoint` sends to.

    `seconds`: what one repeat takes, about; of `repeats`. Raises ValueError for a size that the link does not carry,
    Error where messages were lost, Timeout where the other end does nothing for `timeout` seconds, and what else the
    endpoint's calls raise.
    """

    def __init__(
        self, endpoint: Endpoint, *, seconds: float = 0.2, repeats: int = 5, timeout: float = 10.0
    ) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._seconds = seconds
        self._repeats = repeats

    def figure(self, what: What, size: int, batch: int = 1) -> Figure:
        """Measure. `batch`: messages a call, at both ends; it is of no account for round trips."""
        mtu = self._endpoint.mtu
        if mtu and size > mtu:
            raise ValueError(f"a size of {size} bytes: this link carries at most {mtu}")
        count = self._fitting(what, size, batch)
        work = self._work(what, size, batch)
        found: list[tuple[float, Parts]] = []
        trips: list[float] = []
        for _ in range(self._repeats):
            usage = _Usage(self._endpoint.bus)
            seconds = self._once(what, size, batch, count, trips)
            found.append((seconds * 1e9 / count, usage.parts(count, work)))
        found.sort(key=lambda one: one[0])
        return Figure(
            what, size, batch, count, Spread.of(ns for ns, _ in found), found[len(found) // 2][1], percentiles(trips)
        )

    def _fitting(self, what: What, size: int, batch: int) -> int:
        """How many messages take the time of a repeat. Running some warms everything up."""
        count = max(FIRST, batch)
        while True:
            seconds = self._once(what, size, batch, count, [])
            wanted = int(count * self._seconds / seconds)
            if wanted < 4 * count or count >= MAX_COUNT:
                return min(max(wanted // batch, 1) * batch, MAX_COUNT)
            count = min(wanted // 2, count * 16) // batch * batch

    def _once(self, what: What, size: int, batch: int, count: int, trips: list[float]) -> float:
        """Seconds that `count` messages or round trips take; those of each trip are appended to `trips`."""
        endpoint, timeout, clock = self._endpoint, self._timeout, time.perf_counter
        if what == "trip":
            command = COMMAND.pack(MAGIC, SOURCE, 1, size)
            begin = last = clock()
            for _ in repeat(None, count):
                endpoint.send(command, timeout=timeout)
                endpoint.recv(timeout=timeout)
                now = clock()
                trips.append(now - last)
                last = now
            return last - begin
        ahead = count if what == "out" else 0
        endpoint.send(COMMAND.pack(MAGIC, SINK, ahead, batch), timeout=timeout)
        begin = clock()
        if what == "out":
            moved = give(endpoint, count, bytes(size), batch, timeout)
            if moved == count:
                endpoint.send(COMMAND.pack(MAGIC, REPORT, 0, 0), timeout=timeout)
                answer = endpoint.recv(timeout=timeout)
                magic, arrived, _, _ = COMMAND.unpack(answer) if len(answer) == COMMAND.size else (0, 0, 0, 0)
                if magic != MAGIC:
                    raise Error(f"the other end has answered {answer[:32]!r}, which is no report")
        else:
            endpoint.send(COMMAND.pack(MAGIC, SOURCE, count, size), timeout=timeout)
            moved = arrived = take(endpoint, count, batch, timeout)
        seconds = clock() - begin
        if moved != count:
            raise Timeout(f"the other end has done nothing for {timeout:g} s, after {moved} of {count} messages")
        if arrived != count:
            raise Error(f"{count} messages of {size} bytes were sent, but the other end has counted {arrived}")
        return seconds

    def _work(self, what: What, size: int, batch: int) -> float:
        if what == "trip":
            return own_work(COMMAND.size, 1)[0] + own_work(size, 1)[1]
        return own_work(size, batch)[0 if what == "out" else 1]


@functools.cache
def own_work(size: int, batch: int) -> tuple[float, float]:
    """What sending and receiving cost this thread, in ns a message, where nobody else takes part: the best of many."""
    from rpmsgx.rpmsg.open import open

    name = f"virtual:rpmsgx bench {os.getpid()} {id(object())}"
    n = max(batch, 64)
    sending, receiving = [], []
    with open(name, "driver", num=max(2 * n, 256)) as driver, open(name, "device") as device:
        there = driver.create_endpoint(SERVICE)
        here = device.open(SERVICE, timeout=10)
        here.send(b"")
        there.recv(timeout=10)
        for _ in range(200):
            begin = time.perf_counter()
            give(there, n, bytes(size), batch, 10.0)
            middle = time.perf_counter()
            take(here, n, batch, 10.0)
            sending.append(middle - begin)
            receiving.append(time.perf_counter() - middle)
    return min(sending) * 1e9 / n, min(receiving) * 1e9 / n


# -- the machine -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a figure is of no use without."""
    from rpmsgx import __version__

    return {
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rpmsgx": __version__,
        "load": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Processor"):
                return value.strip()
    return ""


def two_cpus() -> tuple[int, int] | None:
    """Two CPUs that this thread may run on; None where there is one only."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if len(cpus) > 1 else None


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Run this thread on `cpu` alone; what it starts inherits that."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
