# SPDX-License-Identifier: BSD-3-Clause
"""A kernel's virtio_rpmsg_bus as driver, over vhost-user: rpmsgx is the device, the remote processor."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from peers.payload import check, payload

import rpmsgx

if TYPE_CHECKING:
    from uml import Guest

pytestmark = pytest.mark.timeout(120)
WAIT = 20.0
MESSAGES = 5000
RAW = "rpmsg-raw"
DRIVER = "/sys/bus/virtio/drivers/virtio_rpmsg_bus"
TOO_BIG = r"message is too big \(497\)"
ECHO = """
import errno, os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for size in range(497):
    sent = bytes((size + i) & 255 for i in range(size))
    assert os.write(fd, sent) == size
    assert select.select([fd], [], [], 5)[0], size
    assert os.read(fd, 4096) == sent, size
try:
    os.write(fd, bytes(497))
except OSError as error:
    assert error.errno == errno.EMSGSIZE
else:
    raise AssertionError
"""
EXCHANGE = """
from peers.payload import check, payload
import os, select, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR)
count = int(sys.argv[2])
def send():
    for i in range(count):
        data = payload(i, 1)
        assert os.write(fd, data) == len(data)
sender = threading.Thread(target=send)
sender.start()
for i in range(count):
    assert select.select([fd], [], [], 10)[0], i
    check(i, 2, os.read(fd, 4096))
sender.join()
print("exchanged", count)
"""


class Served:
    """A device's bus, with a thread that polls it: a guest that boots waits for answers."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.bus = rpmsgx.open(f"vhost-user:{path}", "device", **options)
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.bus.poll(timeout=0.05)
        except rpmsgx.Closed:
            pass
        except BaseException as error:
            self.error = error

    def close(self) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        self.bus.close(linger=0)
        assert self.error is None, self.error


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def start(**options: Any) -> Served:
        served.append(Served(tmp_path / f"{len(served)}.sock", **options))
        return served[-1]

    yield start
    for one in served:
        one.close()


@pytest.fixture
def boot(serve: Callable[..., Served], uml: Callable[..., Guest]) -> Callable[..., Guest]:
    """`uml`, set up after `serve`: a guest goes before its devices do, which it would complain about."""

    def start(*devices: Served, expect: Iterable[str] = ()) -> Guest:
        # It empties the ring at one interrupt, and is told of it by the next.
        return uml(devices=[device.path for device in devices], expect=["but no used buffer", *expect])

    return start


def echo(endpoint: Any, data: bytes, src: int) -> None:
    endpoint.send_to(data, src, timeout=WAIT)


def features(guest: Guest, device: int = 0) -> int:
    bits = guest.run(f"cat /sys/bus/virtio/devices/virtio{device}/features").strip()
    return sum(1 << i for i, bit in enumerate(bits) if bit == "1")


def until(guest: Guest, condition: str) -> None:
    """Wait in the guest until a shell condition holds."""
    guest.run(f"i=0; until {condition}; do i=$((i+1)); [ $i -lt 500 ] || exit 1; usleep 10000; done")


def there(*names: str) -> str:
    return " && ".join(f"[ -e {name} ]" for name in names)


OFFERS = [
    *itertools.product((True, False), (True, False), (True, False), (False,)),
    (True, True, True, True),
]


@pytest.mark.parametrize(("version_1", "event_idx", "indirect", "inband"), OFFERS)
def test_nothing_is_lost_or_altered(
    serve: Callable[..., Served], boot: Callable[..., Guest],
    version_1: bool, event_idx: bool, indirect: bool, inband: bool,
) -> None:  # fmt: skip
    served = serve(version_1=version_1, event_idx=event_idx, indirect=indirect, inband=inband)
    guest = boot(served)
    endpoint = served.bus.create_endpoint(RAW)
    until(guest, there("/dev/rpmsg0"))
    assert features(guest) & ~(1 << 30) == 1 | version_1 << 32 | event_idx << 29 | indirect << 28
    status = [line.text.split()[-1] for line in guest.log() if "status" in line.text]
    assert status[-1] == ("0x0f" if version_1 else "0x07")
    failed: list[BaseException] = []

    def start(step: Callable[..., None], *args: Any) -> threading.Thread:
        def run() -> None:
            try:
                step(*args)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def take() -> None:
        data, src = endpoint.recv_from(timeout=WAIT)
        check(0, 1, data)
        sending = start(send, src)
        for i in range(1, MESSAGES):
            check(i, 1, endpoint.recv(timeout=WAIT))
        sending.join()

    def send(dst: int) -> None:
        for i in range(MESSAGES):
            endpoint.send_to(payload(i, 2), dst, timeout=WAIT)

    taking = start(take)
    try:
        assert "exchanged" in guest.python(EXCHANGE, "/dev/rpmsg0", str(MESSAGES), timeout=60)
    finally:
        taking.join(2 * WAIT)
    assert failed == []


def test_sizes(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    guest = boot(served, expect=[TOO_BIG])
    served.bus.create_endpoint(RAW, callback=echo)
    until(guest, there("/dev/rpmsg0"))
    guest.python(ECHO, "/dev/rpmsg0")
    assert "-90 (Message too long)" in guest.run("rt write /dev/rpmsg0 497", check=False)
    print(guest.run("rt echo /dev/rpmsg0 1000 100"))


def test_the_kernels_own_client(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    guest = boot(served)
    client = served.bus.create_endpoint("rpmsg-client-sample", callback=echo)
    guest.run("insmod /lib/rpmsg_client_sample.ko")
    until(guest, "dmesg | grep -q 'goodbye!'")
    assert guest.run("dmesg | grep -c 'incoming msg'") == "100\n"
    assert client.counters["received"] == 100


def test_names_come_and_go(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    bus = served.bus
    guest = boot(served)
    endpoints = [bus.create_endpoint(name) for name in ("one", "two", RAW)]
    names = [f"/sys/bus/rpmsg/devices/virtio0.{e.name}.*.{e.addr}" for e in endpoints]
    until(guest, f"ls -d {' '.join(names)}")
    endpoints[0].close()
    until(guest, f"! ls -d {names[0]}")
    guest.run(f"ls -d {names[1]} {names[2]}")
    again = bus.create_endpoint("one")
    until(guest, f"ls -d /sys/bus/rpmsg/devices/virtio0.one.*.{again.addr}")
    # The other way: a channel that somebody in the guest makes, and takes away again.
    said = threading.Event()
    bus.on_new_channel = lambda channel: said.set() if (channel.name, channel.addr) == (RAW, 2000) else None
    guest.run(f"rt control /dev/rpmsg_ctrl0 new {RAW} 2000 3000")
    assert said.wait(WAIT)
    gone = threading.Event()
    bus.on_removed = lambda channel: gone.set() if (channel.name, channel.addr) == (RAW, 2000) else None
    guest.run(f"rt control /dev/rpmsg_ctrl0 release {RAW} 2000 3000")
    assert gone.wait(WAIT)


def test_the_driver_is_unbound_and_bound_again_under_traffic(
    serve: Callable[..., Served], boot: Callable[..., Guest]
) -> None:
    """Each time the guest has the rings' memory back, with other contents, when the device's answer says so."""
    served = serve(event_idx=True)
    bus = served.bus
    guest = boot(served, expect=["no recipient", "callbacks suppressed", TOO_BIG])
    bus.create_endpoint(RAW, callback=echo)
    stop = threading.Event()
    flooder = bus.create_endpoint("flooder", dst=4000)

    def flood() -> None:
        sent = 0
        while not stop.wait(0.0002):
            try:
                flooder.send(payload(sent, 5), timeout=0.1)
                sent += 1
            except (rpmsgx.Timeout, rpmsgx.ChannelRemoved):
                pass

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for turn in range(5):
            until(guest, there("/dev/rpmsg0", "/dev/rpmsg_ctrl0"))
            guest.run("rt echo /dev/rpmsg0 200 400")
            resets = bus.counters["resets"]
            # While a program is at it, which then has an error; and the memory is used for something else at once.
            guest.run(
                f"rt echo /dev/rpmsg0 100000 64 & usleep {turn * 7000 + 3000}; echo virtio0 >{DRIVER}/unbind; "
                "head -c 8000000 /dev/urandom >/tmp/x; rm /tmp/x; wait",
                check=False,
            )
            assert bus.counters["resets"] == resets + 1
            until(guest, "! [ -e /dev/rpmsg0 ]")
            guest.run(f"echo virtio0 >{DRIVER}/bind")
        until(guest, there("/dev/rpmsg0"))
        guest.python(ECHO, "/dev/rpmsg0")
    finally:
        stop.set()
        flooding.join(WAIT)


def test_two_devices_at_once(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    devices = [serve(), serve(version_1=False, event_idx=True)]
    guest = boot(*devices)
    endpoints = [served.bus.create_endpoint(RAW, callback=echo) for served in devices]
    until(guest, there("/dev/rpmsg0", "/dev/rpmsg1"))
    guest.run("for i in 0 1; do (rt echo /dev/rpmsg$i 1000 100 || echo failed) & done; wait")
    assert [endpoint.counters["received"] for endpoint in endpoints] == [1000, 1000]


def test_a_device_that_goes_leaves_a_kernel_that_lives(
    serve: Callable[..., Served], boot: Callable[..., Guest]
) -> None:
    served = serve()
    guest = boot(served, expect=["read returned 0", "virtio_uml|vu_", "failed to add a virtqueue buffer: -5"])
    served.bus.create_endpoint(RAW, callback=echo)
    until(guest, there("/dev/rpmsg0"))
    served.close()
    until(guest, "! [ -e /dev/rpmsg0 ]")
    assert guest.run("echo alive") == "alive\n"
