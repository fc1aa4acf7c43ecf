"""rpmsgx.aio: a bus in an event loop. Both ends run here, mostly in one loop; every wait is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import rpmsgx
from rpmsgx import aio

T = TypeVar("T")
LIMIT = 20.0  # seconds that a test may take before it is taken to hang
names = (f"aio-{n}" for n in itertools.count())

@pytest.fixture(params=["virtual", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"virtual:{next(names)}" if request.param == "virtual" else f"file:{tmp_path / 'link'}"


def in_loop(main: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run `main` in a new loop; exceptions that nobody waited for fail the test too."""
    unhandled: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(LIMIT):
            await main(*args)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert not unhandled


@contextlib.asynccontextmanager
async def pair(url: str, **options: Any) -> AsyncIterator[tuple[aio.Endpoint, aio.Endpoint]]:
    """The driver's and the device's end of one conversation."""
    async with aio.open(url, "driver", **options) as driver, aio.open(url, "device", **options) as device:
        there = device.create_endpoint("service")
        here = await driver.open("service", timeout=LIMIT)
        await here.send(b"hello")
        assert await there.recv(timeout=LIMIT) == b"hello"
        yield here, there


async def settle(condition: Callable[[], bool]) -> None:
    """Let other tasks run until `condition` holds."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0)


def waiting(task: asyncio.Task[Any]) -> bool:
    """Whether a task has run up to a future that is not done."""
    return getattr(task, "_fut_waiter", None) is not None


async def started(*tasks: asyncio.Task[Any]) -> None:
    await settle(lambda: all(waiting(task) or task.done() for task in tasks))


# -- opening -------------------------------------------------------------------------------------------------


def test_open_returns_a_bus_at_once_and_needs_a_loop() -> None:
    async def main() -> None:
        bus = aio.open(f"virtual:{next(names)}", role="driver")
        assert isinstance(bus, aio.Bus) and bus.role == "driver" and bus.channels == []
        bus.close()
        bus.close()
        with pytest.raises(rpmsgx.Closed):
            bus.create_endpoint()
        with pytest.raises(ValueError, match="scheme"):
            aio.open("nonsense:x", "driver")

    in_loop(main)
    name = next(names)
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.open(f"virtual:{name}", "driver")
    rpmsgx.open(f"virtual:{name}", "driver").close()  # nothing was left open


def test_the_package_hands_out_the_module() -> None:
    assert rpmsgx.aio is aio


def test_an_open_that_waits_is_answered_by_the_announcement(url: str) -> None:
    async def main() -> None:
        async with aio.open(url, "driver") as driver:
            first = asyncio.create_task(driver.open("one"))
            second = asyncio.create_task(driver.open("two"))
            await started(first, second)
            async with aio.open(url, "device") as device:
                two = device.create_endpoint("two")
                assert (await second).dst == two.addr  # who waits for another name is not in the way
                assert not first.done()
                one = device.create_endpoint("one")
                assert (await first).dst == one.addr
                assert sorted(channel.name for channel in driver.channels) == ["one", "two"]

    in_loop(main)


def test_each_open_of_one_name_takes_a_channel_of_its_own(url: str) -> None:
    async def main() -> None:
        async with aio.open(url, "driver") as driver, aio.open(url, "device") as device:
            tasks = [asyncio.create_task(driver.open("twice")) for _ in range(2)]
            await started(*tasks)
            ends = [device.create_endpoint("twice") for _ in range(2)]
            assert [(await task).dst for task in tasks] == [end.addr for end in ends]

    in_loop(main)


def test_open_ends_at_its_timeout_and_says_what_was_announced(url: str) -> None:
    async def main() -> None:
        async with aio.open(url, "driver") as driver, aio.open(url, "device") as device:
            device.create_endpoint("other")
            await settle(lambda: bool(driver.channels))
            with pytest.raises(rpmsgx.Timeout, match=r"'missing' within 0\.01 s; it announced 'other'"):
                await driver.open("missing", timeout=0.01)
            with pytest.raises(ValueError, match="31 bytes"):
                await driver.open("x" * 32)

    in_loop(main)


# -- messages ------------------------------------------------------------------------------------------------


def test_ten_thousand_messages_there_and_back(url: str) -> None:
    count = 10_000

    async def main() -> None:
        async with pair(url) as (here, there):

            async def echo() -> None:
                async for message in there:
                    await there.send(message)

            task = asyncio.create_task(echo())
            for i in range(count):
                message = b"%d" % i
                await here.send(message)
                assert await here.recv(timeout=LIMIT) == message
            there.close()
            await task
            assert here.counters["received"] == count

    in_loop(main)


def test_a_sender_that_is_faster_waits_for_buffers(url: str) -> None:
    """Neither task yields by itself: what makes them take turns is the ring running full and empty."""
    count = 5_000

    async def main() -> None:
        async with pair(url, num=4) as (here, there):

            async def send() -> None:
                for i in range(count):
                    await here.send(i.to_bytes(4, "little"))

            task = asyncio.create_task(send())
            got = [int.from_bytes(await there.recv(timeout=LIMIT), "little") for _ in range(count)]
            await task
            assert got == list(range(count))

    in_loop(main)


def test_all_the_ways_to_send_and_receive(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):
            await here.send_to(b"to", there.addr)
            assert await there.recv_from(timeout=LIMIT) == (b"to", here.addr)
            assert await here.send_many([b"1", bytearray(b"2"), memoryview(b"3")]) == 3
            got = await there.recv_many(8, timeout=LIMIT)
            while len(got) < 3:
                got += await there.recv_many(8, timeout=LIMIT)
            assert got == [b"1", b"2", b"3"]
            with await here.claim(5) as buffer:
                buffer[:] = b"claim"
            with await there.hold(timeout=LIMIT) as view:
                assert bytes(view) == b"claim" and view.src == here.addr
            rows, lengths = memoryview(bytearray(16)).cast("B", (2, 8)), memoryview(bytearray(8)).cast("I")
            await here.send(b"row")
            assert await there.recv_into(rows, lengths=lengths, timeout=LIMIT) == 1
            assert rows.tobytes()[:8] == b"row\0\0\0\0\0" and lengths[0] == 3
            assert here.try_send(b"try")
            await settle(lambda: there.counters["queued"] > 0)
            assert there.try_recv() == b"try" and there.try_recv() is None
            assert here.mtu == 496 and here.bus.mtu == 496 and here.name == "service"
            assert here.dst == there.addr and here.counters["sent"] == 8

    in_loop(main)


def test_send_many_is_longer_than_the_ring_and_ends_early_at_its_timeout(url: str) -> None:
    async def main() -> None:
        async with pair(url, num=8) as (here, there):
            messages = [b"%d" % i for i in range(100)]
            task = asyncio.create_task(here.send_many(messages))
            got: list[bytes] = []
            while len(got) < 100:
                got += await there.recv_many(100, timeout=LIMIT)
            assert got == messages and await task == 100

            there.bus.sync.poll()
            for _ in range(3):  # fill the ring, with nobody to empty it
                while here.try_send(b"x"):
                    pass
            with silent(there.bus):
                while here.try_send(b"x"):
                    pass
                assert await here.send_many([b"y"] * 3, timeout=0.01) == 0
                with pytest.raises(TypeError):
                    await here.send_many(b"bytes")  # type: ignore[arg-type]

    in_loop(main)


@contextlib.contextmanager
def silent(bus: aio.Bus) -> Iterator[None]:
    """The loop does not drive `bus` meanwhile: it is a peer that takes nothing."""
    loop = asyncio.get_running_loop()
    fd = bus.sync.fileno()
    loop.remove_reader(fd)
    try:
        yield
    finally:
        loop.add_reader(fd, bus._drive)


def test_an_empty_message_is_a_message(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):
            task = asyncio.create_task(there.recv())
            await started(task)
            await here.send(b"")
            assert await task == b""

    in_loop(main)


# -- waiting -------------------------------------------------------------------------------------------------


def test_tasks_on_one_endpoint_take_turns(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):
            order: list[tuple[int, bytes]] = []

            async def receive(task: int) -> None:
                for _ in range(3):
                    order.append((task, await there.recv(timeout=LIMIT)))

            tasks = [asyncio.create_task(receive(i)) for i in range(3)]
            await started(*tasks)
            await here.send_many([b"%d" % i for i in range(9)])
            await asyncio.gather(*tasks)
            assert order == [(i % 3, b"%d" % i) for i in range(9)]

    in_loop(main)


def test_senders_take_turns_too(url: str) -> None:
    async def main() -> None:
        async with pair(url, num=2) as (here, there):
            other = here.bus.create_endpoint(dst=there.addr)

            async def send(endpoint: aio.Endpoint, mark: bytes) -> None:
                for _ in range(20):
                    await endpoint.send(mark)

            with silent(there.bus):
                while here.try_send(b"full"):
                    pass
                tasks = [asyncio.create_task(send(e, m)) for e, m in ((here, b"a"), (other, b"b"))]
                await started(*tasks)
            got = [m for m in [await there.recv(timeout=LIMIT) for _ in range(42)] if m != b"full"]
            await asyncio.gather(*tasks)
            assert got.count(b"a") == got.count(b"b") == 20
            halves = got[:20].count(b"a"), got[20:].count(b"a")
            assert min(halves) >= 8, got  # neither had to wait for the other to be done

    in_loop(main)


def test_a_cancelled_recv_loses_no_message(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):
            for moment in range(6):
                tasks = [asyncio.create_task(there.recv()) for _ in range(2)]
                await started(*tasks)
                here.try_send(b"%d" % moment)
                for _ in range(moment):  # the message is under way, and in other hands each time
                    await asyncio.sleep(0)
                tasks[0].cancel()
                done, rest = await asyncio.wait(tasks, return_when=asyncio.ALL_COMPLETED, timeout=0.05)
                results = [task.result() for task in done if not task.cancelled()]
                assert results == [b"%d" % moment]
                for task in rest:
                    task.cancel()
                await asyncio.gather(*rest, return_exceptions=True)

    in_loop(main)


def test_cancelled_senders_send_nothing_and_let_others_pass(url: str) -> None:
    async def main() -> None:
        async with pair(url, num=2) as (here, there):
            with silent(there.bus):
                while here.try_send(b"full"):
                    pass
                tasks = [asyncio.create_task(here.send(b"%d" % i)) for i in range(3)]
                await started(*tasks)
                tasks[0].cancel()
                await asyncio.wait(tasks[:1])
            got = b""
            while got != b"2":
                got = await there.recv(timeout=LIMIT)
                assert got != b"0"
            await asyncio.gather(*tasks[1:])

    in_loop(main)


def test_timeouts_end_in_timeout_and_lose_no_turn(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):
            patient = asyncio.create_task(there.recv(timeout=LIMIT))
            await started(patient)
            with pytest.raises(rpmsgx.Timeout, match=r"within 0\.01 s"):
                await there.recv(timeout=0.01)
            await here.send(b"for the patient")
            assert await patient == b"for the patient"
            with pytest.raises(rpmsgx.Timeout, match=r"no message within 0\.01 s"):
                await there.recv(timeout=0.01)
            with pytest.raises(TimeoutError):
                await there.recv(timeout=0)
            for timeout in (-1, float("nan")):
                with pytest.raises(ValueError, match="timeout"):
                    await there.recv(timeout=timeout)
            with silent(there.bus):
                while here.try_send(b"x"):
                    pass
                with pytest.raises(rpmsgx.Timeout, match=r"no buffer back within 0\.01 s"):
                    await here.send(b"x", timeout=0.01)

    in_loop(main)


def test_a_full_endpoint_that_stops_the_bus_is_named(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):
            full = there.bus.create_endpoint(queue=1)
            for _ in range(2):
                await here.send_to(b"x", full.addr)
            await here.send(b"behind it")
            with pytest.raises(rpmsgx.Timeout, match=f"stopped by <Endpoint {full.addr:#x}"):
                await there.recv(timeout=0.05)
            reader = asyncio.create_task(there.recv(timeout=LIMIT))
            await started(reader)
            assert [await full.recv(timeout=LIMIT) for _ in range(2)] == [b"x", b"x"]
            assert await reader == b"behind it"

    in_loop(main)


def test_send_waits_for_the_link_to_come_up(url: str) -> None:
    async def main() -> None:
        async with aio.open(url, "device") as device:
            assert not device.is_up
            with pytest.raises(rpmsgx.Timeout, match=r"link did not come up within 0\.01 s"):
                await device.create_endpoint(dst=2000).send(b"x", timeout=0.01)
            task = asyncio.create_task(device.create_endpoint(dst=1999).send(b"early"))
            await started(task)
            async with aio.open(url, "driver") as driver:
                assert await driver.create_endpoint(src=1999).recv(timeout=LIMIT) == b"early"
                await task
                assert device.is_up and driver.is_up

    in_loop(main)


def test_an_idle_bus_does_not_keep_the_loop_busy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that nobody takes, a sender without buffers, a reader without messages: it sleeps."""

    async def main() -> None:
        async with pair(url, num=2) as (here, there):
            await there.send(b"nobody takes this")
            await settle(lambda: here.counters["queued"] == 1)
            other = here.bus.create_endpoint()
            reader = asyncio.create_task(other.recv())
            await started(reader)
            await there.send_to(b"1", other.addr)
            await reader
            with silent(there.bus):
                while here.try_send(b"x"):
                    pass
                sender = asyncio.create_task(here.send(b"y"))
                reader = asyncio.create_task(other.recv())
                await started(sender, reader)
                await asyncio.sleep(0.05)
                selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
                select, turns = selector.select, itertools.count()
                monkeypatch.setattr(selector, "select", lambda timeout: (next(turns), select(timeout))[1])
                await asyncio.sleep(0.2)
                assert next(turns) < 10
                monkeypatch.undo()
                sender.cancel()
                reader.cancel()

    in_loop(main)


# -- closing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["endpoint", "bus", "sync endpoint", "sync bus"])
def test_close_ends_every_wait(url: str, which: str) -> None:
    async def main() -> None:
        async with pair(url, num=2) as (here, there):
            with silent(there.bus):
                while here.try_send(b"x"):
                    pass
                tasks: list[asyncio.Task[Any]] = [asyncio.create_task(here.recv()) for _ in range(2)]
                tasks += [asyncio.create_task(here.send(b"y")) for _ in range(2)]
                if which.endswith("bus"):
                    tasks.append(asyncio.create_task(here.bus.open("never")))
                await started(*tasks)
                later: list[asyncio.Task[Any]] = []
                if which == "endpoint":
                    here.close()
                elif which == "bus":
                    here.bus.close()
                elif which == "sync endpoint":
                    here.sync.close()
                    later, tasks[2:] = tasks[2:], []  # senders look when a buffer comes free
                else:
                    here.bus.sync.close(linger=0)
                done, rest = await asyncio.wait(tasks, timeout=LIMIT)
                assert not rest
                assert {type(task.exception()) for task in done} == {rpmsgx.Closed}
            for task in later:
                with pytest.raises(rpmsgx.Closed):
                    await task
            with pytest.raises(rpmsgx.Closed):
                await here.recv()

    in_loop(main)


def test_iteration_ends_on_close_and_when_the_service_goes(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, there):

            async def read(endpoint: aio.Endpoint) -> list[bytes]:
                return [message async for message in endpoint]

            reader, other = asyncio.create_task(read(here)), asyncio.create_task(read(there))
            await there.send_many([b"1", b"2"])
            await here.send(b"3")
            await settle(lambda: there.counters["received"] == 2 and here.counters["received"] == 2)
            there.close()  # which withdraws the name
            assert await other == [b"3"]
            assert await reader == [b"1", b"2"]
            assert here.bus.channels == []
            with pytest.raises(rpmsgx.ChannelRemoved):
                await here.recv(timeout=LIMIT)

    in_loop(main)


def test_waits_end_when_the_peer_goes(url: str) -> None:
    async def main() -> None:
        async with pair(url, num=2) as (here, there):
            announced = there.bus.create_endpoint("stays")
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(announced.recv()) for _ in range(2)]
            tasks.append(asyncio.create_task(there.bus.open("never")))
            await started(*tasks)
            await here.bus.aclose()
            done, rest = await asyncio.wait(tasks, timeout=LIMIT)
            assert not rest
            assert {type(task.exception()) for task in done} == {rpmsgx.ChannelRemoved}
            async with aio.open(url, "driver", num=2) as again:  # and the link comes back
                endpoint = await again.open("stays", timeout=LIMIT)
                await endpoint.send(b"again")
                assert await announced.recv(timeout=LIMIT) == b"again"

    in_loop(main)


def test_what_waits_to_be_sent_does_not_go_to_the_next_peer() -> None:
    url = f"virtual:{next(names)}"

    async def main() -> None:
        async with pair(url, num=2) as (here, there):
            sender = there.bus.create_endpoint(dst=here.addr)
            with silent(here.bus):
                while sender.try_send(b"full"):
                    pass
                tasks: list[asyncio.Task[Any]] = [
                    asyncio.create_task(sender.send(b"x")),
                    asyncio.create_task(sender.send_many([b"y", b"z"])),
                ]
                await started(*tasks)
            here.bus.close()
            async with aio.open(url, "driver", num=2) as again:  # before the tasks had a turn
                new = again.create_endpoint(src=here.addr)
                for task in tasks:
                    with pytest.raises(rpmsgx.ChannelRemoved):
                        await task
                with pytest.raises(rpmsgx.Timeout):
                    await new.recv(timeout=0.02)

    in_loop(main)


def test_aclose_lets_the_peer_take_what_was_sent(url: str) -> None:
    async def main() -> None:
        async with aio.open(url, "device") as device:
            sink = device.create_endpoint("sink")
            async with aio.open(url, "driver") as driver:
                endpoint = await driver.open("sink", timeout=LIMIT)
                await endpoint.send_many([b"%d" % i for i in range(50)])
            assert [sink.try_recv() for _ in range(50)] == [b"%d" % i for i in range(50)]
        with pytest.raises(ValueError, match="linger"):
            await device.aclose(linger=-1)

    in_loop(main)


def test_async_with_closes_an_endpoint(url: str) -> None:
    async def main() -> None:
        async with pair(url) as (here, _), here:
            pass
        with pytest.raises(rpmsgx.Closed):
            await here.send(b"")

    in_loop(main)


# -- callbacks -----------------------------------------------------------------------------------------------


def test_callbacks_run_in_the_loop_with_this_endpoint(url: str) -> None:
    async def main() -> None:
        calls: list[tuple[aio.Endpoint, bytes, int, object]] = []

        def echo(endpoint: aio.Endpoint, data: bytes, src: int) -> None:
            calls.append((endpoint, data, src, asyncio.get_running_loop()))
            assert endpoint.try_send(data.upper())

        async with aio.open(url, "driver") as driver, aio.open(url, "device") as device:
            there = device.create_endpoint("echo", callback=echo)
            here = await driver.open("echo", timeout=LIMIT)
            await here.send(b"abc")
            assert await here.recv(timeout=LIMIT) == b"ABC"
            assert calls == [(there, b"abc", here.addr, asyncio.get_running_loop())]
            with pytest.raises(rpmsgx.StateError, match="callback"):
                await there.recv()

    in_loop(main)


def test_hooks_see_services_come_and_go(url: str) -> None:
    async def main() -> None:
        seen: list[str] = []
        async with aio.open(url, "driver") as driver, aio.open(url, "device") as device:
            driver.on_new_channel = lambda channel: seen.append("+" + channel.name)
            driver.on_removed = lambda channel: seen.append("-" + channel.name)
            service = device.create_endpoint("service")
            await settle(lambda: seen == ["+service"])
            service.close()
            await settle(lambda: seen == ["+service", "-service"])
            assert driver.on_new_channel is not None and driver.on_removed is not None

    in_loop(main)


def test_what_a_callback_raises_goes_to_the_loops_handler_and_the_rest_stays(url: str) -> None:
    """A StateError too: it must not be taken for the bus's own."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[BaseException] = []
        seen: list[bytes] = []
        loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))

        def callback(endpoint: aio.Endpoint, data: bytes, src: int) -> None:
            seen.append(data)
            if len(seen) < 3:
                raise (KeyError, rpmsgx.NoPeer)[len(seen) - 1](data)

        async with aio.open(url, "driver") as driver, aio.open(url, "device") as device:
            device.create_endpoint("service", callback=callback)
            here = await driver.open("service", timeout=LIMIT)
            await here.send_many([b"1", b"2", b"3"])
            await settle(lambda: len(seen) == 3)
            assert seen == [b"1", b"2", b"3"]
            assert [type(error) for error in errors] == [KeyError, rpmsgx.NoPeer]

    in_loop(main)


def test_a_coroutine_function_is_no_callback() -> None:
    async def callback(endpoint: aio.Endpoint, data: bytes, src: int) -> None:
        raise AssertionError

    async def main() -> None:
        async with aio.open(f"virtual:{next(names)}", "driver") as bus:
            with pytest.raises(TypeError, match="plain function"):
                bus.create_endpoint("x", callback=callback)

    in_loop(main)


def test_a_callback_may_close_its_bus(url: str) -> None:
    async def main() -> None:
        async with aio.open(url, "driver") as driver, aio.open(url, "device") as device:
            device.create_endpoint("bye", callback=lambda endpoint, data, src: endpoint.bus.close())
            waits = asyncio.create_task(device.create_endpoint().recv())
            here = await driver.open("bye", timeout=LIMIT)
            await here.send(b"")
            with pytest.raises(rpmsgx.Closed):
                await waits

    in_loop(main)


# -- beside other things -------------------------------------------------------------------------------------


def test_a_sync_bus_is_wrapped_and_owned(url: str) -> None:
    async def main() -> None:
        sync = rpmsgx.open(url, role="driver")
        async with aio.Bus(sync) as bus, aio.open(url, "device") as device:
            device.create_endpoint("service")
            assert bus.sync is sync
            endpoint = await bus.open("service", timeout=LIMIT)
            assert endpoint.sync.bus is sync
        with pytest.raises(rpmsgx.Closed):
            sync.create_endpoint()
        with pytest.raises(rpmsgx.Closed):
            aio.Bus(sync)

    in_loop(main)


def test_many_buses_and_endpoints_in_one_loop(url: str) -> None:
    async def talk(url: str) -> int:
        async with pair(url, num=8) as (here, there):
            driver, device = here.bus, there.bus
            total = 0

            async def one(i: int) -> int:
                server = device.create_endpoint(f"service-{i}")
                client = await driver.open(f"service-{i}", timeout=LIMIT)
                for n in range(50):
                    await client.send(b"%d.%d" % (i, n))
                    message, src = await server.recv_from(timeout=LIMIT)
                    assert message == b"%d.%d" % (i, n)
                    await server.send_to(message, src)
                    assert await client.recv(timeout=LIMIT) == message
                return 50

            total = sum(await asyncio.gather(*(one(i) for i in range(8))))
        return total

    async def main() -> None:
        assert await asyncio.gather(*(talk(f"{url}-{i}") for i in range(4))) == [400] * 4

    in_loop(main)


def test_a_sync_call_in_between_takes_no_wakeup_away(url: str) -> None:
    """It clears the doorbell, which rang for somebody who waits in the loop."""

    async def main() -> None:
        async with pair(url, num=4) as (here, there):
            with silent(there.bus):
                while here.try_send(b"x"):
                    pass
                sender = asyncio.create_task(here.send(b"y"))
                reader = asyncio.create_task(here.recv())
                await started(sender, reader)
                while there.try_recv() is not None:  # buffers come free
                    pass
                assert there.try_send(b"z")
                assert here.bus.sync.create_endpoint().try_recv() is None
                await asyncio.wait_for(asyncio.gather(sender, reader), LIMIT)
                assert reader.result() == b"z"

    in_loop(main)


def test_a_thread_that_waits_on_the_same_bus_takes_no_wakeup_away(url: str) -> None:
    """The thread drains the doorbell as often as the loop does; buffers and messages must show up in both."""
    count = 2_000

    async def main() -> None:
        async with pair(url, num=4) as (here, there):
            in_thread = there.bus.sync.create_endpoint(queue=4)
            got: list[bytes] = []

            def read() -> None:
                while (message := in_thread.recv(timeout=LIMIT)) != b"end":
                    got.append(message)

            thread = threading.Thread(target=read)
            thread.start()
            try:

                async def echo() -> None:
                    async for message in there:
                        await there.send(message)

                async def flood() -> None:
                    for i in range(count):
                        await here.send_to(b"%d" % i, in_thread.addr)

                tasks = [asyncio.create_task(echo()), asyncio.create_task(flood())]
                for i in range(count):
                    await here.send(b"%d" % i)
                    assert await here.recv(timeout=LIMIT) == b"%d" % i
                await tasks[1]
            finally:
                await here.send_to(b"end", in_thread.addr)
                while thread.is_alive():
                    await asyncio.sleep(0.001)
                thread.join()
            there.close()
            await tasks[0]
            assert got == [b"%d" % i for i in range(count)]

    in_loop(main)


def test_nothing_stays_registered_or_alive_after_the_end() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        before = len(loop._selector.get_map())
        async with pair(f"virtual:{next(names)}") as (here, there):
            task = asyncio.create_task(here.recv())
            await started(task)
            await there.send(b"x")
            await task
            here.close()
            there.close()
        await settle(lambda: len(loop._selector.get_map()) == before)

    in_loop(main)
