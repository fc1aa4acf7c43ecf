"""One thread at both ends of a link in this process, and of a pipe, over the same messages.

What is timed is a plain loop: send and receive, every check and counter and the notification decision included. The
loop itself costs what `test_empty_loop` says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

import rpmsgx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import PerMessage

N = 64 * 1000
BATCH = 64
SIZES = (16, 64, 256, 496)

Ends = tuple[rpmsgx.Endpoint, rpmsgx.Endpoint]


@pytest.fixture(params=["driver_to_device", "device_to_driver"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with rpmsgx.open("virtual:bench", "driver") as driver, rpmsgx.open("virtual:bench", "device") as device:
        service = driver.create_endpoint("bench")
        client = device.open("bench", timeout=1)
        client.send(b"who is there")
        service.recv(timeout=1)
        yield (service, client) if request.param == "driver_to_device" else (client, service)


def test_empty_loop(per_message: PerMessage) -> None:
    def loop() -> None:
        for _ in range(N):
            pass

    per_message(loop, N)


@pytest.mark.parametrize("size", SIZES)
def test_send_recv(ends: Ends, per_message: PerMessage, size: int) -> None:
    sender, receiver = ends
    message = bytes(size)

    def loop() -> None:
        for _ in range(N):
            sender.send(message)
            receiver.recv()

    per_message(loop, N)


@pytest.mark.parametrize("size", SIZES)
def test_send_many_recv_many(ends: Ends, per_message: PerMessage, size: int) -> None:
    sender, receiver = ends
    messages = [bytes(size)] * BATCH

    def loop() -> None:
        for _ in range(N // BATCH):
            sender.send_many(messages)
            receiver.recv_many(BATCH)

    per_message(loop, N)


@pytest.mark.parametrize("size", SIZES)
def test_send_many_recv_into(ends: Ends, per_message: PerMessage, size: int) -> None:
    sender, receiver = ends
    messages = [bytes(size)] * BATCH
    rows = np.zeros((BATCH, size), np.uint8)

    def loop() -> None:
        for _ in range(N // BATCH):
            sender.send_many(messages)
            receiver.recv_into(rows)

    per_message(loop, N)


@pytest.mark.parametrize("size", SIZES)
def test_os_pipe(per_message: PerMessage, size: int) -> None:
    reader, writer = os.pipe()
    message = bytes(size)

    def loop() -> None:
        for _ in range(N):
            os.write(writer, message)
            os.read(reader, size)

    try:
        per_message(loop, N)
    finally:
        os.close(reader)
        os.close(writer)
