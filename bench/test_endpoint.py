"""One thread at both ends of a link in this process: each way to send, and each way to receive.

What is timed is a plain loop: send and receive, every check and counter and the notification decision included. The
loop itself costs what `test_empty_loop` says. A way to send is timed with recv_many(), a way to receive with
send_many(), unless both are single.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from .conftest import BATCH, SIZES, Ends, N

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import PerMessage

    Loop = Callable[[Ends, int], Callable[[], object]]

sizes = pytest.mark.parametrize("size", SIZES)


def test_empty_loop(per_message: PerMessage) -> None:
    def loop() -> None:
        for _ in range(N):
            pass

    per_message(loop, N)


@sizes
def test_send_recv(ends: Ends, per_message: PerMessage, size: int) -> None:
    sender, receiver = ends
    message = bytes(size)

    def loop() -> None:
        for _ in range(N):
            sender.send(message)
            receiver.recv()

    per_message(loop, N)


# -- sending ---------------------------------------------------------------------------------------------------------


def send(ends: Ends, size: int) -> Callable[[], object]:
    call, message = ends[0].send, bytes(size)
    return lambda: [call(message) for _ in range(BATCH)]


def send_to(ends: Ends, size: int) -> Callable[[], object]:
    call, message, dst = ends[0].send_to, bytes(size), ends[1].addr
    return lambda: [call(message, dst) for _ in range(BATCH)]


def try_send(ends: Ends, size: int) -> Callable[[], object]:
    call, message = ends[0].try_send, bytes(size)
    return lambda: [call(message) for _ in range(BATCH)]


def send_array(ends: Ends, size: int) -> Callable[[], object]:
    call, message = ends[0].send, np.zeros(size, np.uint8)
    return lambda: [call(message) for _ in range(BATCH)]


def claim(ends: Ends, size: int) -> Callable[[], object]:
    call, message = ends[0].claim, bytes(size)

    def loop() -> None:
        for _ in range(BATCH):
            with call(size) as view:
                view[:] = message

    return loop


def send_many(ends: Ends, size: int) -> Callable[[], object]:
    call, messages = ends[0].send_many, [bytes(size)] * BATCH
    return lambda: call(messages)


def send_many_rows(ends: Ends, size: int) -> Callable[[], object]:
    call, rows = ends[0].send_many, np.zeros((BATCH, size), np.uint8)
    return lambda: call(rows)


@sizes
@pytest.mark.parametrize("way", [send, send_to, try_send, send_array, claim, send_many, send_many_rows])
def test_sending(ends: Ends, per_message: PerMessage, way: Loop, size: int) -> None:
    call, receive = way(ends, size), recv_many(ends, size)

    def loop() -> None:
        for _ in range(N // BATCH):
            call()
            receive()

    per_message(loop, N)


# -- receiving -------------------------------------------------------------------------------------------------------


def recv(ends: Ends, size: int) -> Callable[[], object]:
    call = ends[1].recv
    return lambda: [call() for _ in range(BATCH)]


def recv_timeout(ends: Ends, size: int) -> Callable[[], object]:
    call = ends[1].recv
    return lambda: [call(timeout=1.0) for _ in range(BATCH)]


def recv_from(ends: Ends, size: int) -> Callable[[], object]:
    call = ends[1].recv_from
    return lambda: [call() for _ in range(BATCH)]


def try_recv(ends: Ends, size: int) -> Callable[[], object]:
    call = ends[1].try_recv
    return lambda: [call() for _ in range(BATCH)]


def iteration(ends: Ends, size: int) -> Callable[[], object]:
    return lambda: [message for _, message in zip(range(BATCH), ends[1], strict=False)]


def hold(ends: Ends, size: int) -> Callable[[], object]:
    call = ends[1].hold

    def loop() -> None:
        for _ in range(BATCH):
            with call() as view:
                view[0]

    return loop


def recv_many(ends: Ends, size: int) -> Callable[[], object]:
    call = ends[1].recv_many
    return lambda: call(BATCH)


def recv_into(ends: Ends, size: int) -> Callable[[], object]:
    call, rows = ends[1].recv_into, np.zeros((BATCH, size), np.uint8)
    return lambda: call(rows)


def recv_into_lengths(ends: Ends, size: int) -> Callable[[], object]:
    call, rows, lengths = ends[1].recv_into, np.zeros((BATCH, size), np.uint8), np.zeros(BATCH, np.uint16)
    return lambda: call(rows, lengths=lengths)


@sizes
@pytest.mark.parametrize(
    "way", [recv, recv_timeout, recv_from, try_recv, iteration, hold, recv_many, recv_into, recv_into_lengths]
)
def test_receiving(ends: Ends, per_message: PerMessage, way: Loop, size: int) -> None:
    send, call = send_many(ends, size), way(ends, size)

    def loop() -> None:
        for _ in range(N // BATCH):
            send()
            call()

    per_message(loop, N)


# -- what it is compared to ------------------------------------------------------------------------------------------


@sizes
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
