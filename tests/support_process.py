"""One end of a link as a program of its own: `python support_process.py URL ROLE JOB [KEY=VALUE ...]`.

Both ends run the same job; each announces a service named after its role and opens the other's.

    exchange   count=, seed=: sends the numbered payloads of its role and takes the other's, both at the same time
    flood      seed=: the same without an end, until the peer goes
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers.payload import check, payload

import rpmsgx

WAIT = 30.0
ROLES = ("driver", "device")


class Job(threading.Thread):
    """One direction of an exchange; `done` counts its messages, `error` is what ended it."""

    def __init__(self, step: Any, count: int) -> None:
        super().__init__()
        self.step, self.count = step, count
        self.done = 0
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while self.done < self.count:
                self.step(self.done)
                self.done += 1
        except BaseException as error:
            self.error = error


def exchange(bus: Any, role: str, count: int, seed: int) -> tuple[Job, Job]:
    """Start sending and receiving `count` payloads; the jobs (out, back)."""
    other = ROLES[1 - ROLES.index(role)]
    mine = bus.create_endpoint(role)
    theirs = bus.open(other, timeout=WAIT)

    def send(i: int) -> None:
        theirs.send(payload(i, seed + ROLES.index(role)), timeout=WAIT)

    def recv(i: int) -> None:
        check(i, seed + ROLES.index(other), mine.recv(timeout=WAIT))

    return Job(send, count), Job(recv, count)


def main(url: str, role: str, job: str, *options: str) -> None:
    given = dict(option.split("=") for option in options)
    seed, count = int(given.pop("seed")), int(given.pop("count", sys.maxsize))
    if "server" in given:
        given["server"] = given["server"] == "True"  # type: ignore[assignment]
    with rpmsgx.open(url, role, **given) as bus:  # type: ignore[arg-type]
        jobs = exchange(bus, role, count, seed)
        for thread in jobs:
            thread.join()
        for thread in jobs:
            if thread.error is not None:
                raise thread.error
        # The other end may still be reading what was sent: it goes first, or takes all of it while this one closes.
        bus.close(linger=WAIT)


if __name__ == "__main__":
    main(*sys.argv[1:])
