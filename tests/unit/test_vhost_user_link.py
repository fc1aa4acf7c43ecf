# SPDX-License-Identifier: BSD-3-Clause
"""vhost-user with rpmsgx at both ends: what the two agree on, and what becomes of it when something is wrong."""

from __future__ import annotations

import itertools
import logging
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.payload import check, payload
from support_link import WAIT, until

import rpmsgx
from rpmsgx.notify.ringer import adopt

pytestmark = pytest.mark.timeout(60)
Open = Callable[..., Any]


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Open]:
    buses: list[Any] = []

    def open_end(role: str, **options: Any) -> Any:
        buses.append(rpmsgx.open(f"vhost-user:{tmp_path}/s", role, **options))  # type: ignore[arg-type]
        return buses[-1]

    yield open_end
    for bus in buses:
        bus.close(linger=0)


def up(*buses: Any) -> bool:
    return all([bus.is_up for bus in buses])


def exchange(one: Any, other: Any, count: int) -> None:
    """`count` messages each way, as many under way as there are buffers."""
    service = other.create_endpoint("exchange")
    until(lambda: "exchange" in [channel.name for channel in one.channels], one, other)
    client = one.open("exchange", timeout=WAIT)
    client.send(b"first")
    assert service.recv(timeout=WAIT) == b"first"
    sent, received = {client: 0, service: 0}, {client: 0, service: 0}
    deadline = time.monotonic() + WAIT
    while min(received.values()) < count:
        assert time.monotonic() < deadline
        for end, seed in ((client, 1), (service, 2)):
            while sent[end] < count and end.try_send(payload(sent[end], seed)):
                sent[end] += 1
            while (data := end.try_recv()) is not None:
                check(received[end], 3 - seed, data)
                received[end] += 1


@pytest.mark.parametrize(
    ("version_1", "event_idx", "indirect", "inband"), list(itertools.product((True, False), repeat=4))
)
def test_whatever_is_offered_works(link: Open, version_1: bool, event_idx: bool, indirect: bool, inband: bool) -> None:
    device = link("device", version_1=version_1, event_idx=event_idx, indirect=indirect, inband=inband)
    driver = link("driver")
    until(lambda: up(device, driver))
    assert driver.link.doorbell.features == 1 | 1 << 30 | indirect << 28 | event_idx << 29 | version_1 << 32
    exchange(driver, device, 3000)


@pytest.mark.parametrize("num", [2, 4, 1024, 32768])
def test_rings_of_any_size(link: Open, num: int) -> None:
    device, driver = link("device"), link("driver", num=num)
    until(lambda: up(device, driver))
    exchange(driver, device, 2 * num if num < 5000 else 5000)


@pytest.mark.parametrize("inband", [True, False])
def test_each_end_sleeps_until_it_is_rung(link: Open, inband: bool) -> None:
    """Nothing but the doorbell's descriptor tells that something has come."""
    device = link("device", inband=inband)
    driver = link("driver")
    until(lambda: up(device, driver))
    ends = [driver.create_endpoint(src=100, dst=200), device.create_endpoint(src=200, dst=100)]
    for end in ends:
        end.fileno()
        assert end.try_recv() is None
    for i in range(300):
        for here, there in (ends, ends[::-1]):
            here.send(b"%d" % i, timeout=WAIT)
            while (data := there.try_recv()) is None:
                assert select.select([there], [], [], WAIT)[0]
            assert data == b"%d" % i
            while there.try_recv() is not None:
                pass


def test_either_end_can_serve(link: Open) -> None:
    driver, device = link("driver", server=True), link("device", server=False)
    until(lambda: up(device, driver))
    exchange(driver, device, 10)


def test_options_that_cannot_be(link: Open) -> None:
    for uid in (-1, "root", 1.5):
        with pytest.raises(ValueError, match="uid"):
            link("device", uid=uid)
    with pytest.raises(TypeError):
        link("device", bell="x")
    with pytest.raises(OSError):
        link("device", server=True).close() or rpmsgx.open("vhost-user:/nowhere/s", "device")


def test_the_socket_is_its_users_alone(link: Open, tmp_path: Path) -> None:
    link("device")
    assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600


def test_a_driver_of_another_user_is_not_let_in(link: Open, caplog: pytest.LogCaptureFixture) -> None:
    me = os.getuid()
    stranger, driver = link("device", uid=me + 1), link("driver")
    with caplog.at_level(logging.WARNING, "rpmsgx.vhost_user"):
        until(lambda: driver.link.doorbell.lost > 3, stranger, driver)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [f"the peer is user {me}, not {me + 1}"]
    assert not stranger.is_up
    stranger.close()
    device = link("device", uid=me)
    until(lambda: up(device, driver))


def test_a_device_of_another_user_is_not_believed(link: Open) -> None:
    me = os.getuid()
    device = link("device")
    with pytest.raises(rpmsgx.ResourceError, match=f"user {me}, not {me + 1}"):
        link("driver", uid=me + 1)
    driver = link("driver", uid=me)
    until(lambda: up(device, driver))


@pytest.mark.rule("2.1.2-2", "2.1.2-3")
def test_a_device_that_was_broken_is_reset_by_its_driver(link: Open) -> None:
    device, driver = link("device"), link("driver")
    until(lambda: up(device, driver))
    service = device.create_endpoint("service")
    until(lambda: driver.channels, driver, device)
    memory = driver.link._memory
    driver.create_endpoint(dst=5).send(b"x")
    struct.pack_into("<Q", memory.rings.view, memory.ring_size, 0xDEAD0000)
    with pytest.raises(rpmsgx.PeerError):
        service.recv(timeout=WAIT)

    def both() -> bool:
        try:
            return up(device, driver) and driver.counters["resets"] == device.counters["resets"] == 1
        except rpmsgx.PeerError:
            return False

    until(both)
    exchange(driver, device, 100)


def test_a_driver_that_was_broken_says_so(link: Open) -> None:
    device, driver = link("device"), link("driver")
    until(lambda: up(device, driver))
    service = device.create_endpoint("service")
    until(lambda: driver.channels, driver, device)
    memory = driver.link._memory
    client = driver.open("service", timeout=WAIT)
    client.send(b"x")
    assert service.recv(timeout=WAIT) == b"x"
    used = 4096 * ((16 * 256 + 6 + 512 + 4095) // 4096)
    service.send(b"wrong")
    (idx,) = struct.unpack_from("<H", memory.rings.view, used + 2)
    struct.pack_into("<I", memory.rings.view, used + 4 + 8 * ((idx - 1) % 256), 999)
    with pytest.raises(rpmsgx.PeerError):
        client.recv(timeout=WAIT)
    until(lambda: not device.is_up)  # FAILED
    device.close()
    device = link("device")

    def both() -> bool:
        try:
            return up(device, driver)
        except rpmsgx.PeerError:
            return False

    until(both)
    exchange(driver, device, 100)


def test_both_ends_know_the_memory_by_the_same_addresses(link: Open) -> None:
    device = link("device")
    with pytest.raises(rpmsgx.StateError):
        device.space  # noqa: B018
    driver = link("driver")
    until(lambda: up(device, driver))
    for mine, theirs in zip(driver.space.regions, device.space.regions, strict=True):
        assert (mine.pa, mine.da, mine.size) == (theirs.pa, theirs.da, theirs.size)
        assert bytes(mine.view) == bytes(theirs.view)


def test_two_links_have_nothing_in_common(tmp_path: Path) -> None:
    buses = [rpmsgx.open(f"vhost-user:{tmp_path}/{i}", role) for i in range(2) for role in ("device", "driver")]  # type: ignore[arg-type]
    try:
        until(lambda: up(*buses))
        for device, driver in (buses[:2], buses[2:]):
            exchange(driver, device, 100)
    finally:
        for bus in buses:
            bus.close(linger=0)


# -- descriptors to ring on


def test_an_eventfd_is_rung_without_being_written() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    ringer = adopt(os.dup(fd))
    for _ in range(1000):
        ringer.ring()
    assert os.eventfd_read(fd) == 1000
    os.set_blocking(fd, True)
    os.eventfd_write(fd, (1 << 64) - 2)
    ringer.ring()
    assert os.eventfd_read(fd) >= (1 << 64) - 2
    child = os.fork()
    if child == 0:
        ringer.ring()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.eventfd_read(fd) == 1
    ringer.close()
    ringer.close()
    ringer.ring()
    os.close(fd)


def test_what_cannot_be_rung_is_closed() -> None:
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for fd in (*os.pipe(), os.memfd_create("x"), datagram.detach()):
        with pytest.raises(OSError):
            adopt(fd)
        with pytest.raises(OSError):
            os.fstat(fd)
