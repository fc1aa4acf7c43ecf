# SPDX-License-Identifier: BSD-3-Clause
"""VIRTIO 1.2, 2.1, 2.2, 3.1 and 6.1 over vhost-user: our driver, in the eyes of a device that notes what it is told.

With the status as a message there is a FEATURES_OK, and bits above 31. What a device has to do is in
tests/hostile/test_vhost_user_hostile.py and, with Linux as its driver, in tests/interop/linux/test_vhost_user.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rpmsgx

rule = pytest.mark.rule
WAIT = 10.0
NEED_REPLY, REPLY = 8, 4
GET_FEATURES, SET_FEATURES, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK = 1, 2, 5, 9, 10, 12
GET_PROTOCOL_FEATURES, SET_VRING_ENABLE, SET_STATUS, GET_STATUS = 15, 18, 39, 40
FEATURES_OK = 8
PROTOCOL = 1 << 3 | 1 << 16  # REPLY_ACK, STATUS
NS, PROTOCOL_FEATURES, VERSION_1, RING_PACKED = 1, 1 << 30, 1 << 32, 1 << 34


class Witness:
    """A back-end that notes each message in order, with the number of kicks that it had heard by then."""

    def __init__(self, path: Path, features: int) -> None:
        self.features = features
        self.status = 0
        self.takes = True
        self.steps: list[tuple[int, int, int]] = []  # request, the number in it, kicks before it
        self.addresses: list[tuple[int, ...]] = []  # of the rings: index, flags, desc, used, avail, log
        self.kicks = 0
        self._bells: list[socket.socket] = []
        self._sock: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.setblocking(False)

    def serve(self, driver: Any, last: int) -> None:
        """Until the driver has said `last` as its status."""
        deadline = time.monotonic() + WAIT
        while self.status != last:
            assert time.monotonic() < deadline, self.steps
            driver.poll()
            self.step()

    def step(self) -> None:
        if self._sock is None:
            if select.select([self._listener], [], [], 0)[0]:
                self._sock, _ = self._listener.accept()
            return
        self._listen()
        if not select.select([self._sock], [], [], 0.001)[0]:
            return
        data, fds, _, _ = socket.recv_fds(self._sock, 12, 8)
        if len(data) < 12:
            self._hang_up()
            return
        request, flags, size = struct.unpack("=III", data)
        payload = self._sock.recv(size)
        value = struct.unpack_from("=Q", payload)[0] if size >= 8 else 0
        self.steps.append((request, value, self.kicks))
        if request == SET_VRING_ADDR:
            self.addresses.append(struct.unpack("=IIQQQQ", payload))
        for fd in fds:
            if request == SET_VRING_KICK:
                self._bells.append(socket.socket(fileno=fd))
            else:
                os.close(fd)
        answer = {GET_FEATURES: self.features, GET_PROTOCOL_FEATURES: PROTOCOL, GET_STATUS: self.status}.get(request)
        if request == SET_STATUS:
            self.status = value if self.takes else value & ~FEATURES_OK
        if answer is None and flags & NEED_REPLY:
            answer = 0
        if answer is not None:
            with contextlib.suppress(BrokenPipeError):  # the driver gave up; its last words are still to be read
                self._sock.send(struct.pack("=IIIQ", request, 1 | REPLY, 8, answer))

    def _listen(self) -> None:
        for bell in select.select(self._bells, [], [], 0)[0]:
            self.kicks += len(bell.recv(4096)) // 8

    def requests(self, *among: int) -> list[int]:
        return [request for request, _, _ in self.steps if request in among]

    def statuses(self) -> list[int]:
        return [value for request, value, _ in self.steps if request == SET_STATUS]

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        while self._bells:
            self._bells.pop().close()

    def begin_anew(self) -> None:
        self._hang_up()
        self.steps.clear()
        self.status = self.kicks = 0

    def close(self) -> None:
        self._hang_up()
        self._listener.close()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    with rpmsgx.open(f"vhost-user:{tmp_path}/w", "driver") as bus:
        yield bus


@pytest.fixture
def witness(tmp_path: Path, driver: Any, request: pytest.FixtureRequest) -> Iterator[Witness]:
    features = getattr(request, "param", NS | PROTOCOL_FEATURES | VERSION_1)
    one = Witness(tmp_path / "w", features)
    yield one
    one.close()


@rule("2.1.1-1", "2.1.1-2", "3.1.1-1", "3.1.1-3")
def test_the_driver_goes_step_by_step(driver: Any, witness: Witness) -> None:
    """Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK and its re-read, queues, DRIVER_OK; in each life anew."""
    for _ in range(3):
        witness.serve(driver, 15)
        assert driver.is_up
        assert witness.statuses() == [0, 1, 3, 11, 15]
        order = witness.requests(SET_STATUS, SET_FEATURES, GET_STATUS, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_ENABLE)
        assert order == [
            *[SET_STATUS] * 3,
            SET_FEATURES,
            SET_STATUS,
            GET_STATUS,
            SET_MEM_TABLE,
            *[SET_VRING_ADDR] * 2,
            *[SET_VRING_ENABLE] * 2,
            SET_STATUS,
        ]
        driver.create_endpoint(dst=5).send(b"x")
        driver.poll()
        witness.step()
        assert witness.requests(SET_FEATURES) == [SET_FEATURES]  # and none later
        witness.begin_anew()


@rule("3.1.1-5")
def test_no_kick_before_driver_ok(driver: Any, witness: Witness) -> None:
    driver.create_endpoint("announced at once")
    witness.serve(driver, 15)
    assert not any(kicks for _, _, kicks in witness.steps[:-1])  # the last one is DRIVER_OK, sent before it rang
    deadline = time.monotonic() + WAIT
    while witness.kicks < 2:  # its buffers, and the announcement
        assert time.monotonic() < deadline
        witness.step()


@rule("3.1.1-1", "3.1.1-4")
def test_a_device_that_does_not_take_the_features(driver: Any, witness: Witness) -> None:
    """FEATURES_OK does not stay: there are no queues and no DRIVER_OK, but FAILED."""
    witness.takes = False
    deadline = time.monotonic() + WAIT
    with pytest.raises(rpmsgx.ResourceError, match="does not take features"):
        while time.monotonic() < deadline:
            driver.poll()
            witness.step()
    assert not driver.is_up
    while witness.statuses()[-1] != 0x8B:
        assert time.monotonic() < deadline
        witness.step()
    assert witness.requests(SET_STATUS, GET_STATUS, SET_MEM_TABLE) == [*[SET_STATUS] * 4, GET_STATUS, SET_STATUS]


@rule("2.2.3-1", "3.1.2")
@pytest.mark.parametrize("witness", [NS | PROTOCOL_FEATURES], indirect=True)
def test_a_legacy_device_sees_no_features_ok(driver: Any, witness: Witness) -> None:
    witness.serve(driver, 7)
    assert driver.is_up and witness.statuses() == [0, 1, 3, 7] and witness.requests(GET_STATUS) == []


@rule("6.1-1", "6.1-2", "2.2.1-1", "2.2.1-4", "2.2.1-6")
@pytest.mark.parametrize(
    "witness", [1 << bit | PROTOCOL_FEATURES | VERSION_1 for bit in (0, 24, 28, 29, 31, 33, 34, 35, 63)], indirect=True
)
def test_of_each_bit_on_offer(driver: Any, witness: Witness) -> None:
    """VERSION_1 is accepted wherever it is offered; of the others those that this driver honours."""
    witness.serve(driver, 15)
    (accepted,) = [value for request, value, _ in witness.steps if request == SET_FEATURES]
    known = NS | 1 << 28 | 1 << 29 | PROTOCOL_FEATURES | VERSION_1 | RING_PACKED
    assert accepted == witness.features & known


def bases(witness: Witness) -> list[tuple[int, ...]]:
    """(vring, base), as the driver said."""
    said = [value for request, value, _ in witness.steps if request == SET_VRING_BASE]
    return [struct.unpack("=II", struct.pack("=Q", value)) for value in said]


@rule("2.2.1-2")
@pytest.mark.parametrize("witness", [NS | PROTOCOL_FEATURES | RING_PACKED], indirect=True)
def test_packed_rings_are_none_of_a_legacy_device(driver: Any, witness: Witness) -> None:
    witness.serve(driver, 7)
    assert [value for request, value, _ in witness.steps if request == SET_FEATURES] == [NS | PROTOCOL_FEATURES]
    assert bases(witness) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("witness", [NS | PROTOCOL_FEATURES | VERSION_1 | RING_PACKED], indirect=True)
def test_what_a_device_is_told_of_packed_rings(driver: Any, witness: Witness) -> None:
    """Slots 0 with wrap counters 1; in place of avail and used ring the two structures, in lines of their own."""
    witness.serve(driver, 15)
    assert bases(witness) == [(0, 0x8000_8000), (1, 0x8000_8000)]
    for index, flags, desc, used, avail, _ in witness.addresses:
        assert flags == 0 and index in (0, 1) and desc % 16 == 0
        assert avail >= desc + 16 * 256 and avail % 64 == 0 and used == avail + 64


@rule("6.2-1", "2.2.2-3", "2.2.3-1")
@pytest.mark.parametrize("version_1, packed", [(True, False), (True, True), (False, False)])
def test_the_device_offers_version_1(tmp_path: Path, version_1: bool, packed: bool) -> None:
    """Unless it was told to be a legacy device; and no bit that it does not honour."""
    with (
        rpmsgx.open(f"vhost-user:{tmp_path}/d", "device", version_1=version_1, packed=packed) as device,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as front,
    ):
        front.connect(f"{tmp_path}/d")
        front.send(struct.pack("=III", GET_FEATURES, 1, 0))
        deadline = time.monotonic() + WAIT
        while not select.select([front], [], [], 0.01)[0]:
            assert time.monotonic() < deadline
            device.poll()
        answer = struct.unpack("=IIIQ", front.recv(20))
    offered = NS | PROTOCOL_FEATURES | VERSION_1 * version_1 | RING_PACKED * packed
    assert answer == (GET_FEATURES, 1 | REPLY, 8, offered)


@rule("2.2.2-1")
def test_a_legacy_device_does_not_offer_packed_rings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave version_1 on"):
        rpmsgx.open(f"vhost-user:{tmp_path}/d", "device", version_1=False, packed=True)
