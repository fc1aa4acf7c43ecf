# SPDX-License-Identifier: BSD-3-Clause
"""What every remote of csrc does, whatever runs it, seen by a driver that shares no code with it."""

from __future__ import annotations

import os
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support_boards import (
    BUFFER,
    EVENT_IDX,
    NS,
    RING_BYTES,
    SAMPLE,
    TIMEOUT,
    Driver,
    boot,
    died,
    echo,
    loaded,
    rings,
)

import rpmsgx

if TYPE_CHECKING:
    from collections.abc import Callable

    from rpmsgx.remoteproc.platform import Platform



@pytest.mark.parametrize("features", [NS | EVENT_IDX, NS])
def test_announces_and_echoes(platform: Platform, features: int) -> None:
    driver = boot(platform, features=features)
    assert driver.announced(2) == SAMPLE
    echo(driver, 100)
    echo(driver, 100, 1025)
    trace = driver.trace()
    assert trace.startswith("sample: up\nsample: first message, from 1024\n")
    assert "sample: messages 200\n" in trace
    assert platform.running and platform.crash is None


def test_answers_a_burst_in_order(platform: Platform) -> None:
    driver = boot(platform)
    driver.announced(2)
    for burst in range(300):
        payloads = [b"%d.%d" % (burst, i) for i in range(burst % 40)]
        for data in payloads:
            driver.send(1024, data, kick=False)
        driver.kick()
        assert [driver.recv()[2] for _ in payloads] == payloads


@pytest.mark.parametrize("features", [NS | EVENT_IDX, NS])
def test_kicks_that_are_not_wanted_are_not_needed(platform: Platform, features: int) -> None:
    """A driver that kicks only when asked to is never forgotten."""
    driver = boot(platform, features=features)
    driver.announced(2)
    kicks = 0
    sizes = [i * 7919 % 13 for i in range(3000)]
    for size in sizes:
        for i in range(size):
            kicks += driver.send(1024, b"%d" % i, kick=None)
        assert [driver.recv()[2] for _ in range(size)] == [b"%d" % i for i in range(size)]
    assert 0 < kicks <= sum(sizes)


def exhaust(driver: Driver) -> int:
    """Send until the remote has no buffer to answer in, and more; how many were sent."""
    count = 450
    for i in range(count):
        driver.send(1024, b"%d" % i, kick=i % 50 == 49)  # so that the buffers run out within a batch
    deadline = time.monotonic() + TIMEOUT
    while driver.used_idx(0) != driver.last + driver.num:
        assert time.monotonic() < deadline
    return count


@pytest.mark.parametrize("features", [NS | EVENT_IDX, NS])
def test_waits_for_buffers_and_loses_nothing(platform: Platform, features: int) -> None:
    driver = boot(platform, features=features)
    driver.announced(2)
    count = exhaust(driver)
    deadline = time.monotonic() + TIMEOUT
    while driver.kick_wanted(1, driver.next - 1, driver.next):  # not before it can answer
        assert time.monotonic() < deadline
    assert [driver.recv()[2] for _ in range(count)] == [b"%d" % i for i in range(count)]


@pytest.mark.parametrize("way", ["stop", "detach", "reset"])
def test_ends_while_it_waits_for_buffers(platform: Platform, way: str) -> None:
    driver = boot(platform)
    driver.announced(2)
    exhaust(driver)
    if way == "stop":
        platform.stop()
        assert driver.trace().endswith("sample: stopped\n")
        return
    driver.status(0)
    if way == "detach":
        platform.detach(TIMEOUT)
    else:
        driver.kick()
        driver.until("down: reset by the driver")
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE
    echo(driver, 5)


def test_indices_wrap(platform: Platform) -> None:
    driver = boot(platform, features=NS | EVENT_IDX)
    driver.announced(2)
    ahead = 128
    for i in range(66000):
        driver.send(1024, struct.pack("<I", i), kick=i % 16 == 15)
        if i >= ahead:
            assert driver.recv()[2] == struct.pack("<I", i - ahead)
    assert driver.used_idx(0) < 1000  # it went round


def test_without_name_service_nothing_is_announced(platform: Platform) -> None:
    driver = boot(platform, features=0)
    driver.send(1024, b"x")
    assert driver.recv() == (1024, 0x400, b"x")


@pytest.mark.parametrize("features", [NS | EVENT_IDX, NS])
def test_rings_only_when_the_driver_wants_it(platform: Platform, features: int) -> None:
    driver = boot(platform, features=features)
    driver.announced(2)
    driver.used_event(1, 0x8000)
    driver.used_event(0, driver.last + 5)  # the sixth from here
    driver.put("=H", driver.avail(0), 0 if features & EVENT_IDX else 1)  # NO_INTERRUPT
    while rings(platform, 0.01):
        platform.doorbell.drain()
    for i in range(1, 6):
        driver.send(1024, b"%d" % i)
        deadline = time.monotonic() + TIMEOUT
        while driver.used_idx(1) != i:  # given back after the answer and its ring, if there was one
            assert time.monotonic() < deadline
        assert not rings(platform, 0)
    driver.put("=H", driver.avail(0), 0)
    driver.send(1024, b"6")
    assert rings(platform)
    assert [driver.recv()[2] for _ in range(6)] == [b"%d" % i for i in range(1, 7)]


def test_unknown_destinations_and_bad_lengths_are_dropped(platform: Platform) -> None:
    driver = boot(platform)
    driver.announced(2)
    driver.send(77, b"nobody")
    head = driver.next
    at = driver.buffers[1] + head * BUFFER
    struct.pack_into("<IIIHH", driver.shm, at, 0x400, 1024, 0, 497, 0)  # says more than the descriptor has
    driver.descriptor(1, head, driver.address + at, BUFFER, 0)
    driver.offer(head)
    driver.descriptor(1, head + 1, driver.address + at + BUFFER, 15, 0)  # shorter than a header
    driver.offer(head + 1)
    echo(driver, 3)
    settle(driver)  # all buffers came back
    assert driver.next == 7


@pytest.mark.lesson("05")
@pytest.mark.parametrize("status", [0, 0x40])
def test_a_reset_by_the_driver_starts_over(platform: Platform, status: int) -> None:
    driver = boot(platform)
    assert driver.announced(2) == SAMPLE
    echo(driver, 10)
    driver.status(status)
    driver.kick()
    driver.until("down: reset by the driver")
    assert driver.used_idx(0) == 12
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE
    echo(driver, 10)


@pytest.mark.lesson("05")
@pytest.mark.parametrize("first", [0, 0x80000])
def test_a_reset_that_nobody_looked_at_starts_over(platform: Platform, first: int) -> None:
    """The same place or another one: by the time of the kick the status is DRIVER_OK again."""
    driver = boot(platform)
    for _ in range(5):
        assert driver.announced(2) == SAMPLE
        echo(driver, 10)
        settle(driver)
        driver.begin(first)
        driver.kick()
    assert driver.announced(2) == SAMPLE


def settle(driver: Driver) -> None:
    """Until every buffer is back and its kick was taken: the remote is about to sleep or does."""
    deadline = time.monotonic() + TIMEOUT
    while driver.used_idx(1) != driver.next:
        assert time.monotonic() < deadline
    driver.send(77, b"", kick=True)
    while driver.used_idx(1) != driver.next:
        assert time.monotonic() < deadline


@pytest.mark.lesson("02")
def test_a_driver_that_comes_late(platform: Platform) -> None:
    image = loaded(platform, "sample")
    driver = Driver(platform, image)
    platform.start(image.entry)
    driver.kick()
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE


@pytest.mark.lesson("09")
def test_detach_is_acknowledged_and_the_next_driver_is_served(platform: Platform) -> None:
    image = loaded(platform, "sample")
    driver = boot(platform)
    assert image.resource_table is not None
    for _ in range(3):
        assert driver.announced(2) == SAMPLE
        echo(driver, 5)
        driver.status(0)
        platform.detach(TIMEOUT)
        assert "sample: messages in all 5\n" in driver.trace()
        assert driver.trace().endswith("sample: detached\n")
        driver.table[:] = image.resource_table[1]  # as it was before anybody wrote to it
        used = driver.used_idx(0)
        driver.kick()
        assert platform.running and driver.used_idx(0) == used
        driver.begin()
        driver.kick()
    assert driver.announced(2) == SAMPLE


@pytest.mark.lesson("09")
def test_detached_with_driver_ok_standing_nothing_is_touched(platform: Platform) -> None:
    driver = boot(platform)
    driver.announced(2)
    platform.detach(TIMEOUT)
    driver.send(1024, b"to nobody")
    assert not driver.wait(0.1)
    driver.status(0)
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE


FLOOD = 0x46585052, 1, 1 << 30, 100  # csrc/apps/flood.c: send, and never end


@pytest.mark.lesson("05")
def test_lesson_05_the_bus_comes_and_goes_under_traffic(platform: Platform) -> None:
    """The remote sends without a pause as the driver resets and sets up its rings anew, here or there.

    There is no acknowledgement of a reset in a resource table. So a remote that is interrupted right before it
    publishes may do so into the new rings: a driver that sees this resets once more, and it must be the exception.
    """
    driver = boot(platform, "flood")
    again = 0
    for i in range(150):
        try:
            assert driver.announced(1) == {"rpmsg-flood": 1024}
            driver.send(1024, struct.pack("=4I", *FLOOD))
            for n in range(i * 37 % 400):
                _, _, data = driver.recv()
                assert struct.unpack_from("=I", data) == (n,) and len(data) == 100
        except Exception:  # what was published there can look like anything
            again += 1
        driver.begin(0x80000 * (i * 7 % 3 == 0))
        driver.kick()
    assert again <= 2
    assert platform.running and platform.crash is None
    driver.status(0)
    platform.detach(TIMEOUT)
    driver.begin()
    driver.kick()
    assert driver.announced(1) == {"rpmsg-flood": 1024}


def never_up(driver: Driver) -> str:
    driver.status(0)
    driver.platform.stop()
    driver.platform.image("sample").load(driver.platform.space)
    driver.platform.start(driver.platform.image("sample").entry)
    return "sample"


def down(driver: Driver) -> str:
    driver.status(0)
    driver.kick()
    driver.until("down: reset by the driver")
    return "sample"


def idle(driver: Driver) -> str:
    return "sample"


def broken(driver: Driver) -> str:
    outside(driver)
    driver.kick()
    driver.until("broken: waiting for the driver's reset")
    return "sample"


def nowhere(driver: Driver) -> str:
    driver.status(0)
    driver.vring(0, da=0, num=256, notifyid=0)
    driver.status(7)
    driver.kick()
    driver.until("broken: vring 0 is not in shared memory")
    return "sample"


def sending(driver: Driver) -> str:
    driver.send(1024, struct.pack("=4I", *FLOOD))
    for _ in range(300):
        driver.recv()
    return "flood"


def out_of_buffers_in_a_callback(driver: Driver) -> str:
    exhaust(driver)
    return "sample"


def out_of_buffers_at_work(driver: Driver) -> str:
    driver.send(1024, struct.pack("=4I", *FLOOD))
    deadline = time.monotonic() + TIMEOUT
    while driver.used_idx(0) != driver.last + driver.num:
        assert time.monotonic() < deadline
    return "flood"


def detached(driver: Driver) -> str:
    driver.status(0)
    driver.platform.detach(TIMEOUT)
    return "sample"


def detached_with_driver_ok(driver: Driver) -> str:
    driver.platform.detach(TIMEOUT)
    return "sample"


@pytest.mark.lesson("07")
@pytest.mark.lesson("09")
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "no reset"])
@pytest.mark.parametrize(
    "state",
    [
        never_up,
        down,
        idle,
        broken,
        nowhere,
        sending,
        out_of_buffers_in_a_callback,
        out_of_buffers_at_work,
        detached,
        detached_with_driver_ok,
    ],
)
def test_lesson_09_detach_is_acknowledged_in_every_state(
    platform: Platform, state: Callable[[Driver], str], reset: bool
) -> None:
    """After the acknowledgement nothing is touched, and the host can attach to the same remote."""
    firmware = "flood" if state in (sending, out_of_buffers_at_work) else "sample"
    driver = boot(platform, firmware)
    names = driver.announced(2 if firmware == "sample" else 1)
    assert state(driver) == firmware
    if reset:
        driver.status(0)
    platform.detach(TIMEOUT)
    assert platform.running and driver.trace().endswith(f"{firmware}: detached\n")
    table = platform.image(firmware).resource_table
    assert table is not None
    driver.table[:] = table[1]
    driver.shm[:] = b"\xa5" * len(driver.shm)  # somebody else's now
    for _ in range(3):
        driver.kick()
    platform.detach(TIMEOUT)  # once more: it has looked at all that there was to look at
    assert bytes(driver.shm).count(b"\xa5") == len(driver.shm)
    assert bytes(driver.table) == table[1]
    platform.prepare()
    platform.attach()
    driver.begin()
    driver.kick()
    assert driver.announced(len(names)) == names
    if firmware == "sample":
        echo(driver, 5)


@pytest.mark.lesson("07")
def test_lesson_07_attach_and_detach_many_times(platform: Platform) -> None:
    driver = boot(platform)
    table = platform.image("sample").resource_table
    assert table is not None
    for _ in range(20):
        assert driver.announced(2) == SAMPLE
        echo(driver, 3)
        driver.status(0)
        platform.detach(TIMEOUT)
        driver.table[:] = table[1]
        platform.unprepare()
        assert platform.running
        platform.prepare()
        platform.attach()
        driver.begin()
        driver.kick()
    assert driver.announced(2) == SAMPLE


def test_attach_needs_a_remote_that_runs(platform: Platform) -> None:
    with pytest.raises(rpmsgx.StateError):
        platform.attach()
    boot(platform).announced(2)
    platform.attach()  # it has it already
    platform.stop()
    with pytest.raises(rpmsgx.StateError):
        platform.attach()
    platform.close()
    with pytest.raises(rpmsgx.StateError):
        platform.attach()


def test_stop_and_start_again(platform: Platform) -> None:
    for _ in range(4):
        driver = boot(platform)
        assert driver.announced(2) == SAMPLE
        echo(driver, 3)
        with pytest.raises(rpmsgx.StateError):
            platform.start(0)
        platform.stop()
        platform.stop()
        assert not platform.running and platform.crash is None
        assert driver.trace().endswith("sample: stopped\n")
        with pytest.raises(rpmsgx.StateError):
            platform.detach(1.0)
        platform.unprepare()


def test_stop_right_after_start(platform: Platform) -> None:
    image = loaded(platform, "sample")
    for _ in range(10):
        platform.start(image.entry)
        platform.stop()
        assert not platform.running and platform.crash is None


def test_close_ends_everything(platform: Platform) -> None:
    boot(platform).announced(2)
    before = threading.active_count()
    platform.close()
    platform.close()
    assert not platform.running
    assert threading.active_count() <= before
    with pytest.raises(rpmsgx.Closed):
        platform.start(0)


def test_other_firmware_in_the_next_boot(platform: Platform) -> None:
    others = {name: {f"rpmsg-{name}": 1024} for name in ("flood", "crash")}
    for firmware, names in {"sample": SAMPLE, **others}.items():
        driver = boot(platform, firmware)
        assert driver.announced(len(names)) == names
        platform.stop()


def test_no_firmware_of_that_name(platform: Platform) -> None:
    with pytest.raises((rpmsgx.FirmwareError, OSError), match="no-such"):
        platform.image("no-such")


# -- crashes ---------------------------------------------------------------------------------------

CRASHES = {
    b"u": ("undefined instruction", "killed by signal 4 (SIGILL)"),
    b"a": ("unmapped memory", "killed by signal 11 (SIGSEGV)"),
    b"f": ("fatal error", "fatal error"),
}


@pytest.mark.parametrize("command", CRASHES)
def test_crash(platform: Platform, command: bytes) -> None:
    for _ in range(2):  # it boots again afterwards
        driver = boot(platform, "crash")
        driver.announced(1)
        echo(driver, 3)
        driver.send(1024, command)
        assert CRASHES[command][bool(getattr(platform, "process", False))] in died(platform)
        assert not platform.running and "crash: fault" in driver.trace()
        with pytest.raises(rpmsgx.StateError):
            platform.detach(TIMEOUT)
        reason = platform.crash
        assert platform.crash_kind == ("fatal error" if command == b"f" else "fault")
        platform.stop()
        assert platform.crash == reason  # until the next start
    boot(platform)
    assert platform.crash is None


def test_hang(platform: Platform) -> None:
    driver = boot(platform, "crash")
    driver.announced(1)
    driver.send(1024, b"h")
    driver.until("crash: hang\n")
    with pytest.raises(rpmsgx.Timeout):
        platform.detach(0.05)
    assert platform.running and platform.crash is None
    other = threading.Thread(target=platform.stop)
    other.start()
    platform.stop()
    other.join(TIMEOUT)
    assert not other.is_alive() and not platform.running and platform.crash is None
    assert boot(platform).announced(2) == SAMPLE


def test_the_four_lies(platform: Platform) -> None:
    def lie(command: bytes) -> tuple[int, int, int, int]:
        """used.idx moved by, and id, len, hdr.len of the entry after the announcement."""
        driver = boot(platform, "crash")
        driver.announced(1)
        driver.send(1024, command)
        assert driver.wait()
        moved = driver.used_idx(0) - driver.last
        head, length = driver.get("=I", driver.used(0) + 12), driver.get("=I", driver.used(0) + 16)
        size = driver.get("=H", driver.buffers[0] + 1 * BUFFER + 12)
        platform.stop()
        return moved, head, length, size

    assert lie(b"i")[0] == 257
    assert lie(b"d")[:2] == (1, 257)
    assert lie(b"l")[:3] == (1, 1, 513)
    assert lie(b"m") == (1, 1, 17, 0xFFFF)


# -- hostile drivers -------------------------------------------------------------------------------


def outside(driver: Driver) -> None:
    driver.descriptor(1, 0, driver.address + len(driver.shm) - 8, 16, 0)
    driver.offer(0)


def into_a_ring(driver: Driver) -> None:
    driver.descriptor(1, 0, driver.address + driver.used(0), 32, 0)
    driver.offer(0)


def into_the_table(driver: Driver) -> None:
    driver.descriptor(1, 0, driver.address - driver.da + 0x10000000, 32, 0)
    driver.offer(0)


def jump(driver: Driver) -> None:
    driver.avail_idx(1, 0x4000)


def twice(driver: Driver) -> None:
    driver.descriptor(1, 0, driver.address + driver.buffers[1], 16, 0)
    driver.put("=2H", driver.avail(1) + 4, 0, 0)
    driver.avail_idx(1, 2)


def no_such_head(driver: Driver) -> None:
    driver.offer(256)


def loop(driver: Driver) -> None:
    driver.put("=QIHH", driver.ring[1], driver.address + driver.buffers[1], 1, 1, 0)  # NEXT, to itself
    driver.offer(0)


@pytest.mark.hostile
@pytest.mark.lesson("09")
@pytest.mark.parametrize(
    "attack, rule",
    [
        (outside, "2.7.5-addr"),
        (into_a_ring, "2.7.5-addr"),
        (into_the_table, "2.7.5-addr"),
        (jump, "2.7.6.1-1"),
        (twice, "2.7.6-twice"),
        (no_such_head, "2.7.6-head"),
        (loop, "2.7.5.3.1-3"),
    ],
)
def test_a_broken_ring_is_left_alone_until_the_reset(
    platform: Platform, attack: Callable[[Driver], None], rule: str
) -> None:
    driver = boot(platform)
    driver.announced(2)
    attack(driver)
    driver.kick()
    driver.until("broken: waiting for the driver's reset")
    assert f"(rule {rule})" in driver.trace()
    before = bytes(driver.shm[: 2 * RING_BYTES])
    driver.kick()
    driver.kick()
    assert not driver.wait(0.05)
    assert driver.trace().count("broken") == 1
    driver.used_event(0, struct.unpack_from("<H", before, 0x1000 + 4 + 512)[0])
    assert bytes(driver.shm[: 2 * RING_BYTES]) == before
    assert platform.running and driver.table[driver.vdev + 24] == 7  # only the host writes the table
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE
    echo(driver, 5)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "vring",
    [
        {"da": 0xFFFFFFFF},
        {"da": 0},
        {"da": 0x5FFFF000},
        {"num": 512},
        {"num": 3},
        {"num": 0},
        {"align": 0},
        {"align": 3},
        {"align": 0x80000000},
        {"offset": 0xFF000},
        {"offset": 8},
        {"offset": RING_BYTES},
        {"offset": RING_BYTES + 0x1000},
    ],
    ids=str,
)
def test_a_bad_table_is_refused_until_it_is_good(platform: Platform, vring: dict[str, int]) -> None:
    image = loaded(platform, "sample")
    driver = Driver(platform, image)
    driver.begin()
    values = {"da": driver.da, "num": 256, "notifyid": 0, "align": 4096, **vring}
    values["da"] += values.pop("offset", 0)
    driver.vring(0, **values)
    platform.start(image.entry)
    driver.kick()
    driver.until("sample: broken: ")
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE


@pytest.mark.hostile
def test_noise_in_rings_and_table(platform: Platform) -> None:
    """Whatever is written there, the remote does not crash, and is back after a reset."""
    driver = boot(platform)
    driver.announced(2)
    for _ in range(60):
        noise = bytearray(os.urandom(2 * RING_BYTES))
        noise[RING_BYTES + 0x1002 : RING_BYTES + 0x1004] = struct.pack("<H", os.urandom(1)[0])
        driver.shm[: 2 * RING_BYTES] = bytes(noise)
        if noise[0] < 64:
            driver.table[driver.vdev + 28 : driver.vdev + 68] = os.urandom(40)
        driver.kick()
        assert platform.crash is None
    driver.status(0)
    platform.detach(TIMEOUT)  # it is back from whatever the noise made it do
    driver.begin()
    driver.kick()
    assert driver.announced(2) == SAMPLE
    echo(driver, 5)


# -- flood -----------------------------------------------------------------------------------------

MAGIC = 0x46585052


def test_flood_source(platform: Platform) -> None:
    driver = boot(platform, "flood")
    driver.announced(1)
    driver.send(1024, struct.pack("<4I", MAGIC, 1, 3000, 100))
    for n in range(3000):
        _, dst, data = driver.recv()
        assert dst == 0x400
        assert data == struct.pack("<I", n) + bytes((n + i) & 0xFF for i in range(4, 100))


def test_flood_sink(platform: Platform) -> None:
    driver = boot(platform, "flood")
    driver.announced(1)
    driver.send(1024, struct.pack("<4I", MAGIC, 2, 0, 0))
    for n in range(3000):
        driver.send(1024, struct.pack("<I", n) + bytes(60), kick=n % 32 == 31)
    driver.send(1024, struct.pack("<I", 5000))
    driver.send(1024, struct.pack("<4I", MAGIC, 3, 0, 0))
    assert struct.unpack("<4I", driver.recv()[2]) == (MAGIC, 3001, 3000 * 64 + 4, 1)


def test_a_flood_can_be_stopped_and_detached(platform: Platform) -> None:
    driver = boot(platform, "flood")
    driver.announced(1)
    driver.send(1024, struct.pack("<4I", MAGIC, 1, 1 << 30, 496))
    for _ in range(600):
        driver.recv()
    driver.status(0)
    platform.detach(TIMEOUT)
    driver.begin()
    driver.kick()
    driver.announced(1)
    driver.send(1024, struct.pack("<4I", MAGIC, 1, 1 << 30, 496))
    driver.recv()
    platform.stop()
    assert driver.trace().endswith("flood: stopped\n")


def test_the_trace_keeps_the_newest(platform: Platform) -> None:
    driver = boot(platform)
    driver.announced(2)
    for _ in range(200):
        driver.status(0)
        platform.detach(TIMEOUT)
        driver.begin()
        driver.kick()
        driver.announced(2)
        assert b"\0" in platform.space.read(driver.trace_da, driver.trace_len)
    if platform.name == "native":  # nothing lies there
        assert not any(platform.space.read(driver.trace_da + driver.trace_len, 64))
    lines = driver.trace().splitlines()
    assert driver.trace_len // 2 - 100 < len(driver.trace()) < driver.trace_len
    assert lines[-1] == "sample: up" and all(line.startswith("sample: ") for line in lines)
