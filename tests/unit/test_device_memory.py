# SPDX-License-Identifier: BSD-3-Clause
"""Loans on memory that takes aligned accesses only: they are of a private copy. tests/c/device.c sees the accesses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
from support_wire import ALIGN, BUFFER, DA, NUM, PA, POOL, SIZE, VDEV, VRINGS

from rpmsgx import Bus
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.doorbell import EventfdDoorbell
from rpmsgx.virtio.link import Buffers, VdevLink
from rpmsgx.virtio.table import build_vdev_table

if TYPE_CHECKING:
    from rpmsgx.memory.region import Kind
    from rpmsgx.virtio.link import Role

WAIT = 10.0


class Ends:
    """Both ends of a link over one region: endpoint `near` sends to `far`."""

    def __init__(self, kind: Kind, role: Role) -> None:
        table = build_vdev_table(num=NUM, align=ALIGN, vring_da=[DA + at for at in VRINGS], dfeatures=1)
        self.region = Region.anonymous("shared", SIZE, da=DA, pa=PA, kind=kind)
        self.region.view[: len(table)] = table
        self.buses: list[Bus] = []
        roles: tuple[Role, Role] = ("driver", "device")
        for one, doorbell in zip(roles, EventfdDoorbell.pair(), strict=True):
            link = VdevLink(
                one, one, space=AddressSpace(self.region), region=self.region, offset=VDEV, doorbell=doorbell,
                buffers=Buffers(DA + POOL, NUM, BUFFER) if one == "driver" else None, table_end=len(table),
                in_process=True,
            )  # fmt: skip
            self.buses.append(Bus(link))
        here, there = self.buses if role == "driver" else self.buses[::-1]
        self.far = there.create_endpoint("far", src=2000)
        self.near = here.create_endpoint("near", dst=2000)

    def place(self) -> tuple[int, int]:
        return address(self.region.view), address(self.region.view) + SIZE

    def close(self) -> None:
        for bus in self.buses:
            bus.close(linger=0)
        self.region.close()


def address(buffer: Any) -> int:
    numpy = pytest.importorskip("numpy")
    return cast("int", numpy.frombuffer(buffer, "u1").ctypes.data)


@pytest.fixture(params=["driver", "device"])
def role(request: pytest.FixtureRequest) -> Role:
    return cast("Role", request.param)


@pytest.fixture
def device(role: Role) -> Iterator[Ends]:
    ends = Ends("device", role)
    yield ends
    ends.close()


def test_the_loan_of_other_memory_is_the_memory_itself(role: Role) -> None:
    ends = Ends("uncached", role)
    low, high = ends.place()
    with ends.near.claim(8) as claim:
        assert low < address(claim) < high
        claim[:] = b"8 bytes."
    with ends.far.hold(timeout=WAIT) as held:
        assert low < address(held) < high
    ends.close()


def test_a_loan_is_outside_of_device_memory_and_aligned(device: Ends) -> None:
    low, high = device.place()
    for size in (1, 8, 100, None):
        with device.near.claim(size) as claim:
            assert not low <= address(claim) < high and address(claim) % 8 == 0
            assert bytes(claim[:]) == bytes(len(claim))
            claim[:] = bytes(i % 251 for i in range(len(claim)))
        with device.far.hold(timeout=WAIT) as held:
            assert not low <= address(held) < high and address(held) % 8 == 0
            assert bytes(held) == bytes(i % 251 for i in range(len(held))) and held.src == device.near.addr


def test_nothing_is_seen_before_the_commit(device: Ends) -> None:
    before = bytes(device.region.view)
    with device.near.claim(40) as claim:
        claim[:] = b"\xa5" * 40
        assert bytes(device.region.view[POOL:]) == before[POOL:]
    assert b"\xa5" * 40 in bytes(device.region.view[POOL:])
    assert device.far.recv(timeout=WAIT) == b"\xa5" * 40


def test_every_length(device: Ends) -> None:
    """More than there are buffers: each is given back."""
    for size in range(device.near.mtu + 1):
        message = os.urandom(size)
        with device.near.claim(size) as claim:
            claim[:] = message
        with device.far.hold(timeout=WAIT) as held:
            assert bytes(held) == message


def test_a_shorter_commit_and_none(device: Ends) -> None:
    for _ in range(3 * NUM):
        with pytest.raises(LookupError), device.near.claim() as claim:
            claim[:4] = b"none"
            raise LookupError
        claim = device.near.claim(12)
        claim[:] = b"short enough"
        claim.commit(5)
        assert device.far.recv(timeout=WAIT) == b"short"
    assert device.far.try_recv() is None


def test_a_held_message_stays_what_it_was(device: Ends) -> None:
    device.near.send(b"as it was")
    with device.far.hold(timeout=WAIT) as held:
        at = bytes(device.region.view).index(b"as it was")
        device.region.view[at : at + 9] = b"something"
        assert bytes(held) == b"as it was"


def test_arrays(device: Ends) -> None:
    numpy = pytest.importorskip("numpy")
    with device.near.claim(24) as claim:
        numbers = numpy.frombuffer(claim, "f8")
        numbers[:] = [1.5, -2, 1e300]
        del numbers
    with device.far.hold(timeout=WAIT) as held:
        assert numpy.frombuffer(held, "f8").tolist() == [1.5, -2, 1e300]
