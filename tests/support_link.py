"""Pairs of buses, one for each end of a link, over every transport that can have both ends in one process."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rpmsgx

TRANSPORTS = (
    *("virtual", "file", "memfd", "vhost-user", "file modern", "memfd modern"),
    *("memfd modern packed", "vhost-user packed"),
)
ROLES = ("driver", "device")
WAIT = 10.0  # seconds after which a wait that must end is a failure
ROUNDS = int(os.environ.get("RPMSGX_ROUNDS", "20000"))

_count = itertools.count()


def until(condition: Callable[[], Any], *buses: Any, timeout: float = WAIT) -> None:
    """Drive `buses` until `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {buses}"
        for bus in buses:
            bus.poll(timeout=0.002)


class Pair:
    """Both ends of a link: `near` has the role that was asked for, `far` is its peer."""

    def __init__(self, transport: str, role: str, folder: Path) -> None:
        transport, *words = transport.split()
        place = {"virtual": f"test-{next(_count)}", "file": str(folder / "link")}
        self.transport = transport
        self.options: dict[str, Any] = {"packed": "packed" in words}
        if "modern" in words:
            self.options["layout"] = "modern"
        self.url = f"{transport}:{place.get(transport, folder / 'socket')}"
        self.role = role
        self.far_role = ROLES[1 - ROLES.index(role)]
        self.buses: list[Any] = []

    def open(self, role: str, **options: Any) -> Any:
        bus = rpmsgx.open(self.url, role, **self.options, **options)
        self.buses.append(bus)
        return bus

    def start(self, **options: Any) -> tuple[Any, Any]:
        """Both ends, up. `options` are for both."""
        self.near = self.open(self.role, **options)
        self.far = self.open(self.far_role, **options)
        self.settle()
        return self.near, self.far

    def settle(self) -> None:
        until(lambda: self.near.is_up and self.far.is_up, self.near, self.far)

    def endpoints(self, name: str = "echo", near: Any = None, far: Any = None) -> tuple[Any, Any]:
        """A service of the far end, and the near end's endpoint on it. `near` and `far` are options of each."""
        service = self.far.create_endpoint(name, **(far or {}))
        until(lambda: any(channel.name == name for channel in self.near.channels), self.near, self.far)
        (addr,) = [channel.addr for channel in self.near.channels if channel.name == name]
        client = self.near.create_endpoint(dst=addr, **near) if near else self.near.open(name, timeout=WAIT)
        return client, service

    def close(self) -> None:
        for bus in self.buses:
            bus.close(linger=0)
