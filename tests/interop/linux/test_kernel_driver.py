# SPDX-License-Identifier: BSD-3-Clause
"""A kernel's virtio_rpmsg_bus as driver, over vhost-user: rpmsgx is the device, the remote processor."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from peers.payload import check, payload

import rpmsgx
from rpmsgx.notify.ringer import adopt

if TYPE_CHECKING:
    from uml import Guest

pytestmark = pytest.mark.timeout(300)
WAIT = 20.0
MESSAGES = 5_000
RAW = "rpmsg-raw"
DRIVER = "/sys/bus/virtio/drivers/virtio_rpmsg_bus"
# What the kernel says where a test makes it say so.
SPURIOUS = "uhm, incoming signal, but no used buffer"  # the ring was emptied at the interrupt before
TOO_BIG = r"message is too big \(497\)"
NO_RECIPIENT = "msg received with no recipient"
RATE_LIMIT = r"\d+ callbacks suppressed"

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
TTY = """
import errno, os, select, tty
fd = os.open("/dev/ttyRPMSG0", os.O_RDWR | os.O_NOCTTY)
tty.setraw(fd)
def read(count):
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], 5)[0], data
        more = os.read(fd, 4096)
        assert more, data
        data += more
    return data
os.write(fd, b"hello")
assert read(5) == b"HELLO"
for i in range(200):
    text = b"line %03d " % i * (i % 60 + 1)
    done = 0
    while done < len(text):
        done += os.write(fd, text[done:])
    assert read(len(text)) == text.upper(), i
os.write(fd, b"bye")
assert select.select([fd], [], [], 5)[0]
try:
    assert os.read(fd, 4096) == b""  # it hung up
except OSError as error:
    assert error.errno == errno.EIO, error
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


def held() -> tuple[int, int]:
    """Descriptors of this process, and its maps of others' memory."""
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum(" rw-s " in line for line in maps)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Opens devices; when they and the guests have gone, nothing of theirs is left."""
    served: list[Served] = []
    adopt(os.eventfd(0)).close()  # the first one takes what stays with the process
    before = held()

    def start(**options: Any) -> Served:
        served.append(Served(tmp_path / f"{len(served)}.sock", **options))
        return served[-1]

    yield start
    while served:
        served.pop().close()
    gc.collect()
    assert all(now <= then for now, then in zip(held(), before, strict=True)), (held(), before)


@pytest.fixture
def boot(serve: Callable[..., Served], uml: Callable[..., Guest]) -> Callable[..., Guest]:
    """`uml`, set up after `serve`: a guest goes before its devices do, which it would complain about."""

    def start(*devices: Served, **options: Any) -> Guest:
        return uml(devices=[device.path for device in devices], **options)

    return start


def echo(endpoint: Any, data: bytes, src: int) -> None:
    endpoint.send_to(data, src, timeout=WAIT)


def name_service(name: str, addr: int, flags: int = 0) -> bytes:
    return struct.pack("<32sII", name.encode(), addr, flags)


def nothing_dropped(bus: Any) -> None:
    counters = bus.counters
    assert {key: n for key, n in counters.items() if n and key.startswith(("dropped_", "ns_"))} == {}


def features(guest: Guest, device: int = 0) -> int:
    bits = guest.run(f"cat /sys/bus/virtio/devices/virtio{device}/features").strip()
    return sum(1 << i for i, bit in enumerate(bits) if bit == "1")


def until(guest: Guest, condition: str) -> None:
    """Wait in the guest until a shell condition holds."""
    guest.run(f"i=0; until {condition}; do i=$((i+1)); [ $i -lt 500 ] || exit 1; usleep 10000; done")


def said(guest: Guest, pattern: str) -> bool:
    return any(re.search(pattern, line.text) for line in guest.log())


def there(*names: str) -> str:
    return " && ".join(f"[ -e {name} ]" for name in names)


SLOW = (
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("RPMSGX_SLOW") != "1", reason="half a minute: set RPMSGX_SLOW=1"),
)
# version_1, event_idx, indirect, packed, inband, messages each way
OFFERS = [
    *((*bits, False, False, MESSAGES) for bits in itertools.product((True, False), repeat=3)),
    *((True, *bits, True, False, MESSAGES) for bits in itertools.product((True, False), repeat=2)),
    (True, True, True, False, True, MESSAGES),
    pytest.param(True, True, True, False, False, 20 * MESSAGES, marks=SLOW),
    pytest.param(True, True, True, True, False, 20 * MESSAGES, marks=SLOW),
]


@pytest.mark.rule("2.2.2-2", "2.2.3-1", "3.1.2", "6.2-1")
@pytest.mark.parametrize(("version_1", "event_idx", "indirect", "packed", "inband", "messages"), OFFERS)
def test_nothing_is_lost_or_altered(
    serve: Callable[..., Served], boot: Callable[..., Guest],
    version_1: bool, event_idx: bool, indirect: bool, packed: bool, inband: bool, messages: int,
) -> None:  # fmt: skip
    served = serve(version_1=version_1, event_idx=event_idx, indirect=indirect, packed=packed, inband=inband)
    # What was not read yet waits in the guest's memory, without a bound; where that is full, it is lost without a word.
    guest = boot(served, expect=[SPURIOUS], memory="512M")
    endpoint = served.bus.create_endpoint(RAW)
    until(guest, there("/dev/rpmsg0"))
    accepted = 1 | indirect << 28 | event_idx << 29 | version_1 << 32 | packed << 34
    assert features(guest) & ~(1 << 30) == accepted
    status = [line.text.split()[-1] for line in guest.log() if "status" in line.text]
    assert status == (["0x03", "0x0b", "0x0f"] if version_1 else ["0x03", "0x07"])
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
        for i in range(1, messages):
            check(i, 1, endpoint.recv(timeout=WAIT))
        sending.join()

    def send(dst: int) -> None:
        for i in range(messages):
            endpoint.send_to(payload(i, 2), dst, timeout=WAIT)

    taking = start(take)
    try:
        assert "exchanged" in guest.python(EXCHANGE, "/dev/rpmsg0", str(messages), timeout=200)
    finally:
        taking.join(2 * WAIT)
    assert failed == []
    assert endpoint.counters == {"sent": messages, "received": messages, "dropped": 0, "queued": 0}
    nothing_dropped(served.bus)


def test_sizes(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    guest = boot(served, expect=[SPURIOUS, TOO_BIG])
    served.bus.create_endpoint(RAW, callback=echo)
    until(guest, there("/dev/rpmsg0"))
    guest.python(ECHO, "/dev/rpmsg0")
    assert "-90 (Message too long)" in guest.run("rt write /dev/rpmsg0 497", check=False)
    print(guest.run("rt echo /dev/rpmsg0 1000 100"))
    nothing_dropped(served.bus)


def test_endpoints_that_the_guest_makes(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    """Through rpmsg_ctrl: one exists while its file is open, at the address that was asked for."""
    served = serve()
    taken = ["idr_alloc failed: -28", "rpmsg rpmsg3: failed to open other"]
    guest = boot(served, expect=[SPURIOUS, TOO_BIG, NO_RECIPIENT, *taken])
    heard: set[int] = set()

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        heard.add(src)
        echo(endpoint, data, src)

    service = served.bus.create_endpoint(src=700, callback=callback)
    until(guest, there("/dev/rpmsg_ctrl0"))
    for number, src in enumerate((1500, 0, 0x7FFFFFFF)):
        guest.run(f"rt control /dev/rpmsg_ctrl0 create mine {src} 700")
        guest.python(ECHO, f"/dev/rpmsg{number}")
    assert heard == {1500, 0, 0x7FFFFFFF}
    # Nobody has it open: what is sent there is dropped, with a word.
    service.send_to(b"too late", 1500)
    until(guest, f"dmesg | grep -q '{NO_RECIPIENT}'")
    # The same address twice: the second one cannot be opened while the first is.
    guest.run("rt control /dev/rpmsg_ctrl0 create other 1500 700")
    assert f"-{errno.EINVAL} " in guest.run("exec 3<>/dev/rpmsg0; rt write /dev/rpmsg3 1", check=False)
    assert [text for text in taken if not said(guest, text)] == []
    assert "destroy: 0" in guest.run("rt destroy /dev/rpmsg0")
    until(guest, "! [ -e /dev/rpmsg0 ]")
    guest.run("rt echo /dev/rpmsg3 10 10")
    nothing_dropped(served.bus)


def test_channels_that_the_guest_makes(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    """One with a source address is announced to us, and withdrawn."""
    served = serve()
    bus = served.bus
    twice = ["channel rpmsg-raw:7d0:bb8 already exist", "failed to create rpmsg-raw channel"]
    guest = boot(served, expect=[SPURIOUS, *twice, r"failed to release rpmsg-raw channel \(-22\)"])
    events: list[tuple[str, str, int]] = []
    changed = threading.Condition()

    def note(what: str) -> Callable[[Any], None]:
        def hook(channel: Any) -> None:
            with changed:
                events.append((what, channel.name, channel.addr))
                changed.notify_all()

        return hook

    def wait_for(count: int) -> None:
        with changed:
            assert changed.wait_for(lambda: len(events) >= count, WAIT), events

    bus.on_new_channel, bus.on_removed = note("new"), note("gone")
    service = bus.create_endpoint(src=3000, callback=echo)
    until(guest, there("/dev/rpmsg_ctrl0"))
    control = f"rt control /dev/rpmsg_ctrl0 {{}} {RAW} {{}} 3000"
    guest.run(control.format("new", 2000))
    wait_for(1)
    guest.run(control.format("new", 2001))
    wait_for(2)
    assert f"-{errno.ENXIO} " in guest.run(control.format("new", 2000), check=False)
    guest.run("rt echo /dev/rpmsg0 10 10; rt echo /dev/rpmsg1 10 10")
    assert service.counters["received"] == 20
    guest.run(control.format("release", 2000))
    wait_for(3)
    assert f"-{errno.EINVAL} " in guest.run(control.format("release", 2000), check=False)
    assert [(channel.name, channel.addr) for channel in bus.channels] == [(RAW, 2001)]
    assert events == [("new", RAW, 2000), ("new", RAW, 2001), ("gone", RAW, 2000)]
    nothing_dropped(bus)


def test_the_kernels_own_client(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    guest = boot(served, expect=[SPURIOUS])
    heard: list[bytes] = []

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        heard.append(data)
        echo(endpoint, data, src)

    served.bus.create_endpoint("rpmsg-client-sample", callback=callback)
    guest.run("insmod /lib/rpmsg_client_sample.ko")
    until(guest, "dmesg | grep -q 'goodbye!'")
    assert guest.run("dmesg | grep -c 'incoming msg'") == "100\n"
    assert heard == [b"hello world!"] * 100
    nothing_dropped(served.bus)


def test_a_terminal(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    guest = boot(served, expect=[SPURIOUS])

    def callback(endpoint: Any, data: bytes, src: int) -> None:
        if data == b"bye":
            endpoint.close()
        else:
            endpoint.send_to(data.upper(), src, timeout=WAIT)

    served.bus.create_endpoint("rpmsg-tty", callback=callback)
    until(guest, there("/dev/ttyRPMSG0"))
    assert guest.python(TTY) == ""
    until(guest, "! [ -e /dev/ttyRPMSG0 ]")
    nothing_dropped(served.bus)


def test_names_come_and_go(serve: Callable[..., Served], boot: Callable[..., Guest]) -> None:
    served = serve()
    bus = served.bus
    wrong = [
        "channel one:ffffffff:5000 already exist",
        "rpmsg_create_channel failed",
        "rpmsg_destroy_channel failed: -22",
        r"malformed ns msg \(39\)",
    ]
    guest = boot(served, expect=[SPURIOUS, *wrong])

    def device(name: str, addr: int) -> str:
        return f"/sys/bus/rpmsg/devices/virtio0.{name}.*.{addr}"

    endpoints = [bus.create_endpoint(name) for name in ("one", "two", RAW)]
    until(guest, f"ls -d {' '.join(device(e.name, e.addr) for e in endpoints)}")
    endpoints[0].close()
    until(guest, f"! ls -d {device('one', endpoints[0].addr)}")
    guest.run(f"ls -d {device('two', endpoints[1].addr)} {device(RAW, endpoints[2].addr)}")
    # Written by hand, as no endpoint would: one address twice, a second address, and what is wrong.
    speaker = bus.create_endpoint(src=0x5000, dst=53)
    for message in (
        name_service("one", 0x5000),
        name_service("one", 0x5000),
        name_service("one", 0x5001),
        name_service("one", 0x5002, flags=1),  # destroys what is not there
        name_service("three", 0x5003)[:39],
        name_service("four", 0x5004, flags=2),  # only bit 0 counts
        name_service("end", 0x5005),
    ):
        speaker.send(message, timeout=WAIT)
    until(guest, f"ls -d {device('end', 0x5005)}")
    names = guest.run("ls /sys/bus/rpmsg/devices").split()
    found = sorted(tuple(name.split(".")[1::2]) for name in names if name.split(".")[-1].startswith("2048"))
    assert found == [("end", "20485"), ("four", "20484"), ("one", "20480"), ("one", "20481")]
    assert [text for text in wrong if not said(guest, text)] == []
    speaker.send(name_service("one", 0x5000, flags=1))
    until(guest, f"! ls -d {device('one', 0x5000)}")
    guest.run(f"ls -d {device('one', 0x5001)}")
    nothing_dropped(bus)


@pytest.mark.rule("2.4.1-1", "2.4.1-2", "2.2.2-4")
def test_the_driver_is_unbound_and_bound_again_under_traffic(
    serve: Callable[..., Served], boot: Callable[..., Guest]
) -> None:
    """Each time the guest has the rings' memory back, with other contents, when the device's answer says so."""
    served = serve(event_idx=True)
    bus = served.bus
    guest = boot(served, expect=[SPURIOUS, NO_RECIPIENT, RATE_LIMIT, TOO_BIG])
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
    guest = boot(*devices, expect=[SPURIOUS])
    endpoints = [served.bus.create_endpoint(RAW, callback=echo) for served in devices]
    until(guest, there("/dev/rpmsg0", "/dev/rpmsg1"))
    guest.run("for i in 0 1; do (rt echo /dev/rpmsg$i 1000 100 || echo failed) & done; wait")
    assert [endpoint.counters["received"] for endpoint in endpoints] == [1000, 1000]
    for served in devices:
        nothing_dropped(served.bus)


def test_a_device_that_goes_leaves_a_kernel_that_lives(
    serve: Callable[..., Served], boot: Callable[..., Guest]
) -> None:
    served = serve()
    broken = [r"WARNING: .*arch/um/drivers/virtio_uml\.c", "failed to add a virtqueue buffer: -5"]
    guest = boot(served, expect=[SPURIOUS, *broken])
    served.bus.create_endpoint(RAW, callback=echo)
    until(guest, there("/dev/rpmsg0"))
    served.close()
    until(guest, "! [ -e /dev/rpmsg0 ]")
    assert guest.run("echo alive") == "alive\n"
