"""The rings for inspection and for other virtio devices (rpmsgx.virtio.ring), without rpmsg above them.

A buffer goes to the device and comes back. `read` copies it out as bytes, `write` fills it.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

from rpmsgx.virtio.ring import DeviceQueue, DriverQueue, Memory

from .conftest import BATCH, SIZES, N

if TYPE_CHECKING:
    from .conftest import PerMessage

NUM = 256
BUFFERS = 0x8000  # in the memory, behind the ring
ADDR = 0x1000_0000


@pytest.fixture
def queues() -> tuple[DriverQueue, DeviceQueue]:
    memory = mmap.mmap(-1, BUFFERS + NUM * 512)
    device = DeviceQueue(memory, NUM, memory=Memory([(ADDR, memory)]))
    return DriverQueue(memory, NUM), device


def address(i: int) -> int:
    return ADDR + BUFFERS + i % NUM * 512


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("way", ["read", "write"])
def test_ring(
    queues: tuple[DriverQueue, DeviceQueue], per_message: PerMessage, way: str, batch: int, size: int
) -> None:
    driver, device = queues
    chains = [[(address(i), size)] for i in range(batch)]
    data = bytes(size)
    out = way == "read"

    def loop() -> None:
        for _ in range(N // batch):
            for chain in chains:
                driver.add(chain) if out else driver.add((), chain)
            driver.publish()
            for _ in chains:
                head = device.pop()
                assert head is not None
                if out:
                    device.read(head)
                    device.push(head)
                else:
                    device.push(head, device.write(head, data))
            device.publish()
            for _ in chains:
                driver.get()

    per_message(loop, N)
