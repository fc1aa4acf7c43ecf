"""Two processes, each on a CPU of its own, and what passes between them in how much time.

Side 0 is this process, which measures; side 1 is its child. Before and after each repeat the round trip of a cache line
between the two CPUs is measured: on a machine whose CPUs move about, figures of different distances do not compare.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from statistics import median
from typing import NamedTuple

from rpmsgx.bench import percentiles, pinned

from .limits import Missing, limit
from .transports import BATCH, End, Transport

WARM = 4096  # messages before those that count
WARM_TRIPS = 200
FIRST = 16384  # messages of the run that tells how many the others need; a stream may be read 3640 at a time
LIMIT = 60  # seconds for one repeat
NEAR = 1.2  # distances that differ by less than this factor are one
PATIENCE = 20  # tries for a repeat while the CPUs are as far from each other as they were
PAUSE = 0.25  # seconds between them


class Run(NamedTuple):
    """One repeat: ns a message, or a round trip; percentiles of round trips; the cache line's round trip in ns."""

    ns: float
    trips: dict[str, float]
    line: float | None


class Pair(NamedTuple):
    """The CPUs of the two sides."""

    here: int
    there: int


class Steady:
    """Makes repeats while the two CPUs are as far from each other as they usually are.

    Virtual CPUs come to sit beside each other, or far apart, for a while: that is waited out, and a repeat during which
    it came is made again. Where it stays so, that is usual from then on. Without a compiler nothing is known of it.
    """

    def __init__(self, cpus: Pair) -> None:
        self._cpus = cpus
        try:
            self._usual: float | None = self._distance()
        except Missing:
            self._usual = None

    def __call__(self, once: Callable[..., Run], *arguments: object) -> Run:
        if self._usual is None:
            return once(*arguments)
        for _ in range(PATIENCE):
            line = limit("line", *self._cpus)
            if self._is_usual(line):
                run = once(*arguments)
                if self._is_usual(limit("line", *self._cpus)):
                    return run._replace(line=line)
            else:
                time.sleep(PAUSE)
        self._usual = self._distance()
        return once(*arguments)._replace(line=self._usual)

    def _distance(self) -> float:
        return median(limit("line", *self._cpus) for _ in range(9))

    def _is_usual(self, line: float) -> bool:
        assert self._usual is not None
        return self._usual / NEAR < line < self._usual * NEAR


def plain_c(*arguments: object) -> Run:
    """What bench/limits says."""
    return Run(limit(*arguments), {}, None)


def stream(kind: type[Transport], size: int, batch: int, count: int, cpus: Pair) -> Run:
    """`count` messages of `size` bytes from side 1 to side 0, `batch` (1 or BATCH) a call. Raises Missing."""
    if batch != 1 and not kind.batches:
        raise Missing("it has no batches")

    def give(end: End) -> None:
        message = bytes(size)
        if batch == 1:
            send = end.send
            for _ in repeat(None, WARM + count):
                send(message)
            return
        assert end.send_many is not None
        # Of one object 64 times over pickle would send 63 references.
        messages, send_many = [bytes(size) for _ in range(BATCH)], end.send_many
        for _ in repeat(None, (WARM + count) // BATCH):
            send_many(messages)

    def take(end: End) -> Run:
        if batch == 1:
            recv = end.recv
            for _ in repeat(None, WARM):
                recv()
            begin = time.perf_counter()
            for _ in repeat(None, count):
                recv()
            return Run((time.perf_counter() - begin) * 1e9 / count, {}, None)
        assert end.recv_many is not None
        recv_many, left = end.recv_many, WARM + count
        while left > count:
            left -= recv_many()
        measured = left
        begin = time.perf_counter()
        while left > 0:
            left -= recv_many()
        return Run((time.perf_counter() - begin) * 1e9 / measured, {}, None)

    return _two(kind, size, cpus, take, give)


def trips(kind: type[Transport], size: int, count: int, cpus: Pair) -> Run:
    """`count` round trips of `size` bytes, each sent when the one before is back."""

    def echo(end: End) -> None:
        for _ in repeat(None, WARM_TRIPS + count):
            end.send(end.recv())

    def ping(end: End) -> Run:
        message, clock = bytes(size), time.perf_counter
        for _ in repeat(None, WARM_TRIPS):
            end.send(message)
            end.recv()
        found = []
        last = begin = clock()
        for _ in repeat(None, count):
            end.send(message)
            end.recv()
            now = clock()
            found.append(now - last)
            last = now
        return Run((last - begin) * 1e9 / count, percentiles(found), None)

    return _two(kind, size, cpus, ping, echo)


def fitting(run: Callable[[int], Run], seconds: float) -> int:
    """How many messages take `seconds`; a multiple of BATCH."""
    return max(int(seconds * 1e9 / run(FIRST // BATCH * BATCH).ns) // BATCH, 1) * BATCH


def _two(
    kind: type[Transport], size: int, cpus: Pair, here: Callable[[End], Run], there: Callable[[End], None]
) -> Run:
    transport = kind(size)
    stays, goes = os.pipe()  # closing `goes` tells the child that all has arrived
    child = 0
    try:
        child = os.fork()
        if child == 0:
            os.close(goes)
            _child(transport, cpus.there, there, stays)
        with _alarm(), pinned(cpus.here), transport.end(0) as end:
            run = here(end)
            os.close(goes)
            goes = -1
            _, status = os.waitpid(child, 0)
            child = 0
        if status != 0:
            raise RuntimeError(f"{transport.name}: the other process ended with {os.waitstatus_to_exitcode(status)}")
        return run
    finally:
        if child > 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for fd in (stays, goes):
            if fd >= 0:
                os.close(fd)
        transport.close()


def _child(transport: Transport, cpu: int, work: Callable[[End], None], stays: int) -> None:
    """Never returns: what the parent has open is the parent's."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.alarm(LIMIT)
        os.sched_setaffinity(0, {cpu})
        with transport.end(1) as end:
            work(end)
            os.read(stays, 1)
        status = 0
    finally:
        os._exit(status)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def expired(*_: object) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
