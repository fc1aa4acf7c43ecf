"""A bus: what many endpoints cost a message, what callbacks cost, and what a look costs that finds nothing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from .conftest import BATCH, SIZES, Ends, N

if TYPE_CHECKING:
    import rpmsgx

    from .conftest import PerMessage

    Buses = tuple[rpmsgx.Bus, rpmsgx.Bus]


@pytest.mark.parametrize("where", ["one", "random"])
@pytest.mark.parametrize("endpoints", [1, 10_000])
def test_endpoints(buses: Buses, per_message: PerMessage, endpoints: int, where: str) -> None:
    """Of so many on the bus messages come to one, or now to this, now to that."""
    driver, device = buses
    sender = driver.create_endpoint()
    receivers = [device.create_endpoint() for _ in range(endpoints)]
    choice = random.Random(1)
    if where == "one":
        plan = [(receivers[0].addr, receivers[0].recv)] * N
    else:  # bound one by one: in the order in which they are used
        plan = [(target.addr, target.recv) for target in (choice.choice(receivers) for _ in range(N))]
    send_to, message = sender.send_to, bytes(64)

    def loop() -> None:
        for addr, recv in plan:
            send_to(message, addr)
            recv()

    per_message(loop, N)


@pytest.mark.parametrize("size", SIZES)
def test_callback(buses: Buses, per_message: PerMessage, size: int) -> None:
    driver, device = buses
    receiver = device.create_endpoint(callback=lambda endpoint, data, src: None)
    sender = driver.create_endpoint(dst=receiver.addr)
    messages = [bytes(size)] * BATCH

    def loop() -> None:
        for _ in range(N // BATCH):
            sender.send_many(messages)
            device.poll()

    per_message(loop, N)


def test_poll_nothing(buses: Buses, per_message: PerMessage) -> None:
    poll = buses[1].poll

    def loop() -> None:
        for _ in range(N):
            poll()

    per_message(loop, N)


def test_try_recv_nothing(ends: Ends, per_message: PerMessage) -> None:
    try_recv = ends[1].try_recv

    def loop() -> None:
        for _ in range(N):
            try_recv()

    per_message(loop, N)


def test_create_close(buses: Buses, per_message: PerMessage) -> None:
    """An endpoint that nobody hears of."""
    create = buses[0].create_endpoint

    def loop() -> None:
        for _ in range(N // BATCH):
            create().close()

    per_message(loop, N // BATCH)
