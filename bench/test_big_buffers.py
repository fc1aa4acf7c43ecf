"""Messages of nearly 64 KiB, in one thread at both ends, beside plain copies through memory of the same size.

Each way copies every byte twice, into a buffer of the link and out of it, as `test_two_copies` does with nothing else:
so its time is what there is to reach. With 8 buffers all stays in the cache, with 256 nothing does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import rpmsgx

from .conftest import QUICK, Ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import PerMessage

SIZE = 65520
N = 256 if QUICK else 2048
COUNTS = (8, 256)


@pytest.fixture(params=COUNTS)
def count(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(params=["driver_to_device", "device_to_driver"])
def ends(request: pytest.FixtureRequest, count: int) -> Iterator[Ends]:
    options: dict[str, Any] = {"buffer_size": SIZE + 16, "buffer_count": count}
    with (
        rpmsgx.open("virtual:bench", "driver", **options) as driver,
        rpmsgx.open("virtual:bench", "device", **options) as device,
    ):
        host, remote = driver.create_endpoint(src=1, dst=2), device.create_endpoint(src=2, dst=1)
        yield (host, remote) if request.param == "driver_to_device" else (remote, host)


def test_two_copies(per_message: PerMessage, count: int) -> None:
    source = memoryview(bytes(range(240)) * (SIZE // 240))
    target = memoryview(bytearray(SIZE))
    buffers = [memoryview(bytearray(SIZE)) for _ in range(count)]

    def loop() -> None:
        for _ in range(N // count):
            for buffer in buffers:
                buffer[:] = source
                target[:] = buffer

    per_message(loop, N)


def test_claim_hold(ends: Ends, per_message: PerMessage) -> None:
    sender, receiver = ends
    source = bytes(range(240)) * (SIZE // 240)
    target = memoryview(bytearray(SIZE))

    def loop() -> None:
        for _ in range(N):
            with sender.claim(SIZE) as buffer:
                buffer[:] = source
            with receiver.hold() as view:
                target[:] = memoryview(view)

    per_message(loop, N)
    assert target == source


def test_send_recv_into(ends: Ends, per_message: PerMessage) -> None:
    sender, receiver = ends
    source = bytes(range(240)) * (SIZE // 240)
    rows = np.zeros((1, SIZE), np.uint8)

    def loop() -> None:
        for _ in range(N):
            sender.send(source, timeout=5)
            receiver.recv_into(rows)

    per_message(loop, N)
    assert rows.tobytes() == source


def test_stream(per_message: PerMessage, ends: Ends) -> None:
    """Messages of six times as much, per 64 KiB: four copies, of which two are the stream's own."""
    sender, receiver = map(rpmsgx.Stream, ends)
    for stream in (sender, receiver, sender):
        with pytest.raises(rpmsgx.Timeout):
            stream.recv(timeout=0)
    source = bytes(6 * SIZE)

    def loop() -> None:
        for _ in range(N // 32):
            sender.send(source, timeout=5)
            receiver.recv()

    per_message(loop, N // 32 * 6)
