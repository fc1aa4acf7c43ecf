# SPDX-License-Identifier: BSD-3-Clause
"""Packed rings (VIRTIO 1.2, 2.8) with rpmsgx at both ends: what makes a link have them, and messages over every size.

What holds for all links is in tests/interop, where packed ones are among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.payload import check, payload
from support_link import WAIT, until

import rpmsgx
from rpmsgx.virtio.link import F_RING_PACKED, PACKED_START, Ring, overlapping
from rpmsgx.virtio.table import vring_size

pytestmark = pytest.mark.timeout(60)
MODERN = {"layout": "modern"}
LINKS: dict[str, dict[str, Any]] = {"file": MODERN, "memfd": MODERN, "vhost-user": {}}
Open = Callable[..., Any]


@pytest.fixture(params=LINKS)
def link(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    buses: list[Any] = []

    def open_end(role: Any, **options: Any) -> Any:
        buses.append(rpmsgx.open(f"{request.param}:{tmp_path}/s", role, **LINKS[request.param], **options))
        return buses[-1]

    yield open_end
    for bus in buses:
        bus.close(linger=0)


def up(*buses: Any) -> None:
    until(lambda: all([bus.is_up for bus in buses]), *buses)


def is_packed(driver: Any) -> bool:
    """As the driver has told the device."""
    link = driver.link
    features = link.doorbell.features if driver.link.url.startswith("vhost") else link._block.get64(0x20)
    return bool(features & F_RING_PACKED)


def exchange(driver: Any, device: Any, count: int) -> None:
    """`count` messages each way, as many under way as there are buffers."""
    ends = driver.create_endpoint(src=100, dst=200), device.create_endpoint(src=200, dst=100)
    sent, received = [0, 0], [0, 0]

    def step() -> bool:
        for i, end in enumerate(ends):
            while sent[i] < count and end.try_send(payload(sent[i], i)):
                sent[i] += 1
            while (data := end.try_recv()) is not None:
                check(received[i], 1 - i, data)
                received[i] += 1
        return received == [count, count]

    until(step)
    for end in ends:
        end.close()


@pytest.mark.parametrize(("event_idx", "indirect"), list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("num", [2, 4, 256, 1024])
def test_whatever_else_is_offered(link: Open, num: int, event_idx: bool, indirect: bool) -> None:
    """Rings go round many times, full and empty."""
    device = link("device", packed=True, num=num, event_idx=event_idx, indirect=indirect)
    driver = link("driver", num=num)
    up(driver, device)
    assert is_packed(driver)
    exchange(driver, device, 2000 if num < 256 else 5 * num)


def test_the_largest_ring(link: Open) -> None:
    device, driver = link("device", packed=True, num=32768), link("driver", num=32768)
    up(driver, device)
    assert is_packed(driver)
    exchange(driver, device, 70_000)


def test_fewer_buffers_than_slots_and_other_sizes(link: Open) -> None:
    device = link("device", packed=True, num=16, buffer_size=(1024, 2048), buffer_count=(5, 7))
    driver = link("driver", num=16, buffer_size=(1024, 2048), buffer_count=(5, 7))
    up(driver, device)
    client, service = driver.create_endpoint(src=100, dst=200), device.create_endpoint(src=200, dst=100)
    for sender, receiver, mtu in ((client, service, 2032), (service, client, 1008)):
        for i in range(50):
            sender.send(bytes([i]) * mtu, timeout=WAIT)
            assert receiver.recv(timeout=WAIT) == bytes([i]) * mtu
        assert sender.mtu == mtu
    client.close(), service.close()
    exchange(driver, device, 100)


def test_the_device_decides(link: Open) -> None:
    """Anew with each session: over the same memory, rings are of the one kind and then of the other."""
    driver = link("driver", packed=True, num=8)
    for turn, packed in enumerate((False, True, True, False, True)):
        device = link("device", packed=packed, num=8)
        up(driver, device)
        assert is_packed(driver) == packed
        exchange(driver, device, 100 + turn)  # so that the next one does not begin where this one ends
        device.close(linger=0)
        until(lambda: not driver.is_up, driver)


def test_a_driver_that_comes_back_begins_anew(link: Open) -> None:
    device = link("device", packed=True, num=8)
    service = device.create_endpoint("service")
    for turn in range(5):
        with link("driver", num=8) as driver:
            up(driver, device)
            client = driver.open("service", timeout=WAIT)
            for i in range(8 * turn + 3):
                client.send(b"%d" % i, timeout=WAIT)
                assert service.recv(timeout=WAIT) == b"%d" % i
        until(lambda: not device.is_up, device)


def test_messages_on_loan_hold_up_nobody(link: Open) -> None:
    """Their buffers go back late, and in any order."""
    device, driver = link("device", packed=True, num=8), link("driver", num=8)
    up(driver, device)
    for sender, receiver in ((driver, device), (device, driver)):
        out, back = sender.create_endpoint(src=100, dst=200), receiver.create_endpoint(src=200, dst=100)
        for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
            loans = []
            for i in range(4):
                out.send(b"lent %d" % i, timeout=WAIT)
                loans.append(back.hold(timeout=WAIT))
            for i in range(30):
                out.send(b"%d" % i, timeout=WAIT)
                assert back.recv(timeout=WAIT) == b"%d" % i
            assert [bytes(loan) for loan in loans] == [b"lent %d" % i for i in range(4)]
            for i in order:
                loans[i].release()
        out.close(), back.close()


@pytest.mark.parametrize("role", ["driver", "device"])
def test_a_resource_table_cannot_say_it(tmp_path: Path, role: Any) -> None:
    for url in (f"file:{tmp_path}/x", f"memfd:{tmp_path}/x", "virtual:x", "mem:0x10000000", "uio:x"):
        with pytest.raises(ValueError, match=r'32 feature bits.*layout="modern".*vhost-user:'):
            rpmsgx.open(url, role, packed=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no options"):
        rpmsgx.open("char:", packed=True)  # type: ignore[call-overload]


@pytest.mark.parametrize("num", [1, 2, 3, 7, 256, 32767, 32768])
def test_where_a_driver_places_packed_rings(num: int) -> None:
    """In the room of a split one; three pieces that do not touch the same cache line."""
    buffer = bytearray()
    ring = Ring.placed(buffer, 0x4000, num, 0x1000, 0, True)
    (_, desc, end), (_, driver, _), (_, device, last) = parts = ring.parts()
    assert (desc, end) == (0x4000, 0x4000 + 16 * num) and ring.base == PACKED_START
    assert driver % 64 == 0 and end <= driver < end + 64 and device == driver + 64
    assert last <= 0x4000 + vring_size(num, 0x1000) and not overlapping(parts)
