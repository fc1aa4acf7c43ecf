"""asyncio: the same bus and endpoints, awaited.

    async with rpmsgx.aio.open("file:/dev/shm/link", role="device") as bus:
        async for message in await bus.open("rpmsg-raw"):
            print(message)

No threads: the loop watches `Bus.fileno()` to drive the bus, callbacks included, and `Endpoint.fileno()` for
a task that waits for a message there. A call that waits is the sync call with timeout=0, made again whenever
the descriptors say so. A message is taken in the step in which its task goes on: a cancelled call loses none.

Everything here belongs to the loop it was made in and is not thread-safe. Other threads may use the wrapped
sync objects meanwhile, but only the loop may poll().
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from rpmsgx.errors import ChannelRemoved, Closed, Error, PeerError, StateError, Timeout
from rpmsgx.rpmsg.bus import ANY
from rpmsgx.rpmsg.bus import Bus as SyncBus
from rpmsgx.rpmsg.bus import Endpoint as SyncEndpoint
from rpmsgx.rpmsg.open import open as open_sync

if TYPE_CHECKING:
    from rpmsgx.rpmsg.bus import Channel, Claim, Hold
    from rpmsgx.rpmsg.bus import _Buffer as Buffer  # its stub's
    from rpmsgx.virtio.link import Role

__all__ = ["Bus", "Endpoint", "open"]

T = TypeVar("T")

LINGER_STEP = 0.001  # seconds between looks at what the peer has taken, while a bus closes


def open(url: str, role: Role | None = None, **options: Any) -> Bus:
    """Open one end of the link at `url`, or `char:`, as `rpmsgx.open()` does, for the running loop.

    Returns at once, so it is no coroutine: use it as `async with rpmsgx.aio.open(...) as bus`. Raises as
    `rpmsgx.open()`, RuntimeError where no loop runs.
    """
    asyncio.get_running_loop()
    bus = open_sync(url, **options) if role is None else open_sync(url, role, **options)
    return Bus(cast("SyncBus", bus))  # the kernel's has the same calls


class _Place:
    """A task's place in a line."""

    def __init__(self, future: asyncio.Future[None], owner: object) -> None:
        self.future = future
        self.owner = owner
        self.expired = self.evicted = False

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def expire(self) -> None:
        self.expired = True
        self.wake()


class _Line:
    """Tasks that wait for the same thing, in order. Only the first looks; when it leaves, the next one does.

    So each gets its turn, and an error that stays (closed, removed, a broken peer) goes down the whole line.
    """

    def __init__(self, bus: Bus, *, queued: bool = False) -> None:
        """`queued`: what came before the link went away may still be had; else that ends the wait at once."""
        self._bus = bus
        self._queued = queued
        self._places: deque[_Place] = deque()

    def __bool__(self) -> bool:
        return bool(self._places)

    def wake(self) -> None:
        """Something may have come: let the first look."""
        if self._places:
            self._places[0].wake()

    def evict(self, owner: object) -> None:
        """`owner` was closed: its tasks leave."""
        for place in self._places:
            if place.owner is owner:
                place.evicted = True
                place.wake()

    async def wait(
        self,
        call: Callable[[], T],
        timeout: float | None,
        owner: object = None,
        watch: Callable[[], None] | None = None,
    ) -> T:
        """What `call` returns, once it no longer raises Timeout; `watch` sees to it that wake() is called."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
        if not self._places:
            try:
                return call()
            except Timeout:
                if timeout == 0:
                    raise
        epoch = self._bus._epoch
        loop = self._bus._loop
        place = _Place(loop.create_future(), owner)
        self._places.append(place)
        self._bus._waiting += 1
        timer = None if timeout is None else loop.call_later(timeout, place.expire)
        try:
            if watch is not None:
                watch()
            while True:
                await place.future
                place.future = loop.create_future()
                if place.evicted:
                    raise Closed("the endpoint is closed")
                reason = "other tasks wait before this one: no turn within 0 s"
                if self._places[0] is place:
                    if not self._queued:
                        self._bus._check(epoch)
                    try:
                        return call()
                    except Timeout as error:
                        reason = str(error.strerror)
                    self._bus._check(epoch)
                if place.expired:
                    raise Timeout(reason.replace("within 0 s", f"within {timeout:g} s"))
        finally:
            if timer is not None:
                timer.cancel()
            self._bus._waiting -= 1
            first = self._places[0] is place
            self._places.remove(place)
            if first:
                self.wake()


class Bus:
    """A bus in the running loop, around a sync one (`rpmsgx.open()`'s or a `Remoteproc`'s): it owns it.

    Callbacks, `on_new_channel` and `on_removed` are called by the loop; what they raise goes to the loop's
    exception handler. `async with` closes it and lets the peer take what was sent.
    """

    def __init__(self, bus: SyncBus) -> None:
        """Raises RuntimeError where no loop runs, Closed, PeerError."""
        self._loop = asyncio.get_running_loop()
        self._bus = bus
        self._senders = _Line(self)
        self._openers: dict[str, _Line] = {}
        self._waiting = 0  # tasks, in all lines
        self._fd = bus.fileno()
        self._loop.add_reader(self._fd, self._drive)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<aio {self._bus!r}>"

    # -- driving it ------------------------------------------------------------------------------------------

    @property
    def _epoch(self) -> int:
        """Counts the links that went away; the kernel's bus has many, and its endpoints tell by themselves."""
        return self._bus.counters.get("resets", 0)

    def _check(self, epoch: int) -> None:
        if self._epoch != epoch:
            raise ChannelRemoved(f"the link went away: {self._bus.link.gone}")

    def _drive(self) -> None:
        """The bus's descriptor is readable: let it work, and those who wait for the bus look."""
        try:
            self._bus.poll()
        except (PeerError, StateError):
            try:
                self._bus.fileno()  # raises where it was the bus's error, and no callback's
            except PeerError:
                if not self._waiting:  # else it is raised to those who wait
                    raise
            except StateError:
                self._detach()
            else:
                raise
        finally:
            self._wake()

    def _wake(self) -> None:
        self._senders.wake()
        for line in self._openers.values():
            line.wake()

    def _detach(self) -> None:
        if self._fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._fd = -1

    # -- endpoints and channels ------------------------------------------------------------------------------

    async def open(self, service_name: str, *, timeout: float | None = None) -> Endpoint:
        """Wait until the peer announces `service_name`; an endpoint bound to it. As the sync `Bus.open()`."""
        line = self._openers.setdefault(service_name, _Line(self))
        try:
            return Endpoint(self, await line.wait(partial(self._bus.open, service_name, timeout=0), timeout))
        finally:
            if not line:
                self._openers.pop(service_name, None)

    def create_endpoint(
        self,
        name: str | None = None,
        *,
        src: int = ANY,
        dst: int = ANY,
        callback: Callable[[Endpoint, bytes, int], object] | None = None,
        queue: int | None = None,
        overflow: Literal["block", "drop"] | None = None,
    ) -> Endpoint:
        """A new endpoint, as the sync `Bus.create_endpoint()` makes it.

        `callback(endpoint, data, src)`: a function that the loop calls. It can try_send() and start tasks.
        """
        if asyncio.iscoroutinefunction(callback):
            raise TypeError("callback must be a plain function: it may start a task, but is not awaited")
        adapter = None
        if callback is not None:

            def adapter(_: SyncEndpoint, data: bytes, sender: int) -> None:
                callback(endpoint, data, sender)

        endpoint = Endpoint(
            self,
            self._bus.create_endpoint(
                name, src=src, dst=dst, callback=adapter, queue=queue, overflow=overflow
            ),
        )
        return endpoint

    @property
    def channels(self) -> list[Channel]:
        """The channels that the peer announced and has not destroyed, oldest first."""
        return self._bus.channels

    @property
    def on_new_channel(self) -> Callable[[Channel], object] | None:
        """Called with each `Channel` that the peer announces."""
        return self._bus.on_new_channel

    @on_new_channel.setter
    def on_new_channel(self, hook: Callable[[Channel], object] | None) -> None:
        self._bus.on_new_channel = hook

    @property
    def on_removed(self) -> Callable[[Channel], object] | None:
        """Called with each `Channel` that goes."""
        return self._bus.on_removed

    @on_removed.setter
    def on_removed(self, hook: Callable[[Channel], object] | None) -> None:
        self._bus.on_removed = hook

    # -- the rest --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close at once: what the peer has not taken may be lost. Idempotent. Waiting tasks get Closed."""
        self._detach()
        self._bus.close(linger=0)
        self._wake()

    async def aclose(self, linger: float = 1.0) -> None:
        """Close, after up to `linger` seconds in which the peer can take what was sent. Idempotent."""
        if not linger >= 0:
            raise ValueError(f"linger must be at least 0 seconds, not {linger!r}")
        deadline = self._loop.time() + linger
        try:
            with contextlib.suppress(Error):
                while self._bus.is_up and self._bus.counters["outstanding"] and self._bus.link.present():
                    if self._loop.time() >= deadline:
                        break
                    await asyncio.sleep(LINGER_STEP)
        finally:
            self.close()

    @property
    def sync(self) -> SyncBus:
        """The bus that this one is made around."""
        return self._bus

    @property
    def role(self) -> Role:
        """ "driver" or "device"."""
        return self._bus.role

    @property
    def is_up(self) -> bool:
        """Whether the link is up."""
        return self._bus.is_up

    @property
    def mtu(self) -> int:
        """Bytes of payload that a message can have; 0 while a device has not seen the driver's buffers."""
        return self._bus.mtu

    @property
    def counters(self) -> dict[str, int]:
        """What happened on this bus, as the sync `Bus.counters`."""
        return self._bus.counters


class Endpoint:
    """An endpoint in the loop. Made by `Bus.create_endpoint()` and `Bus.open()`.

    Several tasks may wait on one endpoint; each gets its turn. Timeouts are seconds; None waits for ever.
    `async for` yields messages until the endpoint is closed or its channel removed; `async with` closes it.
    """

    def __init__(self, bus: Bus, endpoint: SyncEndpoint) -> None:
        self._bus = bus
        self._ept = endpoint
        self._receivers = _Line(bus, queued=True)
        self._fd = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.recv()
        except (Closed, ChannelRemoved):
            raise StopAsyncIteration from None

    def __repr__(self) -> str:
        return f"<aio {self._ept!r}>"

    # -- receiving -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._fd < 0:
            self._fd = self._ept.fileno()
            self._bus._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        if self._receivers:
            self._receivers.wake()
        else:  # nobody came back for more: what is there waits in the queue
            self._bus._loop.remove_reader(self._fd)
            self._fd = -1

    async def _receive(self, call: Callable[[], T], timeout: float | None) -> T:
        return await self._receivers.wait(call, timeout, self, self._watch)

    async def recv(self, *, timeout: float | None = None) -> bytes:
        """The next message. Raises Timeout, MessagesLost, ChannelRemoved, PeerError, Closed."""
        return await self._receive(partial(self._ept.recv, timeout=0), timeout)

    async def recv_from(self, *, timeout: float | None = None) -> tuple[bytes, int]:
        """As recv(), but (message, the sender's address)."""
        return await self._receive(partial(self._ept.recv_from, timeout=0), timeout)

    async def recv_many(self, max: int, *, timeout: float | None = None) -> list[bytes]:
        """Up to `max` (at least 1) messages; waits for the first only. Raises as recv()."""
        return await self._receive(partial(self._ept.recv_many, max, timeout=0), timeout)

    async def recv_into(
        self, rows: Buffer, *, lengths: Buffer | None = None, timeout: float | None = None
    ) -> int:
        """Fill the rows of a 2-D array with one message each; waits for the first only. As the sync call."""
        return await self._receive(partial(self._ept.recv_into, rows, lengths=lengths, timeout=0), timeout)

    async def hold(self, *, timeout: float | None = None) -> Hold:
        """The next message without a copy: `with await endpoint.hold() as view`. As the sync call."""
        return await self._receive(partial(self._ept.hold, timeout=0), timeout)

    def try_recv(self) -> bytes | None:
        """The next message, or None where there is none now."""
        return self._ept.try_recv()

    # -- sending ---------------------------------------------------------------------------------------------

    async def _transmit(self, call: Callable[[], T], timeout: float | None) -> T:
        return await self._bus._senders.wait(call, timeout, self)

    async def send(self, data: Buffer, *, timeout: float | None = None) -> None:
        """Send `data` (0 to `mtu` bytes) to the peer; waits for a buffer, and for the link to come up.

        Raises Timeout, MessageSize, NoPeer, ChannelRemoved, PeerError, Closed.
        """
        await self._transmit(partial(self._ept.send, data, timeout=0), timeout)

    async def send_to(self, data: Buffer, dst: int, *, timeout: float | None = None) -> None:
        """As send(), to the address `dst`."""
        await self._transmit(partial(self._ept.send_to, data, dst, timeout=0), timeout)

    async def send_many(self, messages: Iterable[Buffer], *, timeout: float | None = None) -> int:
        """Send all of `messages`. Returns how many: fewer only at the timeout. Errors carry `.sent`."""
        rest = messages if isinstance(messages, list) else list(messages)
        total = len(rest)
        sent = 0

        def push() -> None:
            nonlocal rest, sent
            try:
                count = self._ept.send_many(rest, timeout=0)
            except Exception as error:
                sent += getattr(error, "sent", 0)
                raise
            sent += count
            if sent < total:
                rest = rest[count:]
                raise Timeout("within 0 s")

        try:
            await self._transmit(push, timeout)
        except Timeout:
            pass
        except BaseException as error:
            error.sent = sent  # type: ignore[attr-defined]
            raise
        return sent

    async def claim(self, size: int | None = None, *, timeout: float | None = None) -> Claim:
        """A buffer to fill in place: `with await endpoint.claim(4) as buffer`. As the sync call."""
        return await self._transmit(partial(self._ept.claim, size, timeout=0), timeout)

    def try_send(self, data: Buffer) -> bool:
        """As send(), but False where there is no buffer, or no link, now."""
        return self._ept.try_send(data)

    # -- the rest --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the endpoint off the bus and withdraw its name. Idempotent. Waiting tasks get Closed."""
        self._ept.close()
        self._receivers.evict(self)
        self._bus._senders.evict(self)

    @property
    def sync(self) -> SyncEndpoint:
        """The endpoint that this one is made around."""
        return self._ept

    @property
    def bus(self) -> Bus:
        """The bus it is on."""
        return self._bus

    @property
    def name(self) -> str | None:
        """The service's name, or None."""
        return self._ept.name

    @property
    def addr(self) -> int:
        """The local address."""
        return self._ept.addr

    @property
    def dst(self) -> int | None:
        """The peer's address, or None while it is not known."""
        return self._ept.dst

    @property
    def mtu(self) -> int:
        """Bytes of payload that a message can have; 0 while a device has not seen the driver's buffers."""
        return self._ept.mtu

    @property
    def counters(self) -> dict[str, int]:
        """Messages sent, received, dropped and queued."""
        return self._ept.counters
