"""Messages through endpoints, one thread at both ends, for counting instructions: `python endpoints.py`.

Between the cases it calls getppid(), at which callgrind is told to write down what it has counted. `CASES` are those of
`PYTHON` in __init__.py, in that order.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import rpmsgx

BATCH = 64
ROUNDS = 16
WARM = 8  # until each buffer has been used

Way = Callable[[rpmsgx.Endpoint, rpmsgx.Endpoint, int], Callable[[], object]]


def single(sender: rpmsgx.Endpoint, receiver: rpmsgx.Endpoint, size: int) -> Callable[[], object]:
    message = bytes(size)

    def work() -> None:
        for _ in range(BATCH):
            sender.send(message)
            receiver.recv()

    return work


def addressed(sender: rpmsgx.Endpoint, receiver: rpmsgx.Endpoint, size: int) -> Callable[[], object]:
    message, dst = bytes(size), receiver.addr

    def work() -> None:
        for _ in range(BATCH):
            sender.send_to(message, dst)
            receiver.recv_from()

    return work


def attempts(sender: rpmsgx.Endpoint, receiver: rpmsgx.Endpoint, size: int) -> Callable[[], object]:
    message = bytes(size)

    def work() -> None:
        for _ in range(BATCH):
            sender.try_send(message)
            receiver.try_recv()

    return work


def lists(sender: rpmsgx.Endpoint, receiver: rpmsgx.Endpoint, size: int) -> Callable[[], object]:
    messages = [bytes(size)] * BATCH

    def work() -> None:
        sender.send_many(messages)
        receiver.recv_many(BATCH)

    return work


def rows(sender: rpmsgx.Endpoint, receiver: rpmsgx.Endpoint, size: int) -> Callable[[], object]:
    messages = [bytes(size)] * BATCH
    table = memoryview(bytearray(BATCH * size)).cast("B", [BATCH, size])

    def work() -> None:
        sender.send_many(messages)
        receiver.recv_into(table)

    return work


CASES: tuple[Way, ...] = (single, addressed, attempts, lists, rows)


def main() -> None:
    url = "virtual:instructions"
    with rpmsgx.open(url, "driver") as driver, rpmsgx.open(url, "device") as device:
        service = driver.create_endpoint("bench")
        client = device.open("bench", timeout=10)
        client.send(b"")
        service.recv(timeout=10)
        for sender, receiver in ((service, client), (client, service)):
            for way in CASES:
                work = way(sender, receiver, 64)
                for _ in range(WARM):
                    work()
                os.getppid()
                for _ in range(ROUNDS):
                    work()
                os.getppid()


if __name__ == "__main__":
    main()
