"""The kernel's services as a bus: finding them by name, waiting for them, opening what leads to them."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from rpmsgx.char.control import Control, Gone, open_node
from rpmsgx.char.devices import ANY, CHRDEV, TAKEN, TTY, Device, Node, address, device, devices, is_within, places
from rpmsgx.char.endpoint import Endpoint, TtyChannel
from rpmsgx.char.shared import Shared, wait
from rpmsgx.char.uevent import watch
from rpmsgx.errors import ChannelRemoved, StateError, Timeout
from rpmsgx.notify.deadline import deadline, left
from rpmsgx.notify.timer import Timer

T = TypeVar("T")

MTU = 496  # virtio_rpmsg_bus: buffers of 512 bytes, less the header
NO_MTU = 65535  # other links, such as GLINK: the kernel says what is too much
SETTLE = 1.0  # seconds that a driver has to take a channel that it will take, and udev to give a node away
RETRY = 0.01  # seconds between two looks meanwhile
BUDGET = 256  # messages that one poll() takes from one endpoint
NS_ADDR = 53  # the name service's

_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


def _after_fork() -> None:
    for bus in list(_buses):
        bus._forget()


def _at_exit() -> None:
    for bus in list(_buses):
        bus.close()  # else nodes that were made for its endpoints would stay


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


class Channel:
    """A service that a remote announced to the kernel.

    `endpoint` is this program's endpoint on it, or None. `removed` is true once the remote withdrew it, or went.
    Made by the bus; read-only.
    """

    def __init__(self, bus: Bus, device: Device) -> None:
        self.bus = bus
        self.endpoint: Endpoint | None = None
        self.removed = False
        self._device = device
        self._made: Node | None = None  # an endpoint's node, made for it
        self._since: float | None = None  # it could not be opened yet

    def __repr__(self) -> str:
        return f"<Channel {self.name!r} at {self.addr:#x}{' removed' if self.removed else ''}>"

    @property
    def name(self) -> str:
        """The service."""
        return self._device.name

    @property
    def addr(self) -> int:
        """The remote's address."""
        return self._device.dst

    @property
    def driver(self) -> str | None:
        """The kernel's driver that has it, or None."""
        return self._device.driver

    def _settled(self) -> bool:
        """Has it had the time that drivers and udev need, since it was asked for?"""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now >= self._since + SETTLE


class Bus(Shared):
    """The services that remotes announce to the kernel. Made by `rpmsgx.open("char:")`.

    `place`: a remote, as its driver calls it, or a device such as virtio0: only that one's services; "": all.

    Thread-safe. No thread of its own: callbacks, on_new_channel and on_removed run in `poll()`. The bus owns its
    endpoints until close. Where the kernel's uevents do not reach this process (a container with users of its own) it
    looks ten times a second. Raises FileNotFoundError for a place that there is not, OSError.
    """

    _what = "bus"
    role: Literal["driver"] = "driver"  # the kernel's

    def __init__(self, place: str = "", *, sysfs: str = "/sys", dev: str = "/dev") -> None:
        if place and not any(is_within(path, place, sysfs) for path in places(sysfs).values()):
            known = ", ".join(sorted(places(sysfs))) or "none"
            raise FileNotFoundError(errno.ENOENT, f"no remote or rpmsg device is named {place!r}; there are: {known}")
        super().__init__()
        self.on_new_channel: Callable[[Channel], object] | None = None
        self.on_removed: Callable[[Channel], object] | None = None
        self._place, self._sysfs, self._dev = place, sysfs, dev
        self._known: dict[tuple[str, int], Channel | None] = {}  # all that is there; None: not a remote's service
        self._endpoints: set[Endpoint] = set()
        self._callbacks: dict[int, Endpoint] = {}  # by descriptor
        self._events: deque[tuple[bool, Channel]] = deque()  # (added, channel)
        self._openers: set[int] = set()  # eventfds of those who wait in open()
        self._turn = threading.Lock()  # poll()'s
        self._poller = 0
        self._timer: Timer | None = None
        self._watch = watch()
        self._pending = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        for fd in (self._watch.fileno(), self._pending, self._wake):
            self._epoll.register(fd, select.EPOLLIN)
        _buses.add(self)
        with self._lock:
            self._scan()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<char Bus {self._place or 'of all remotes'}{state}, {len(self._endpoints)} endpoints>"

    def __del__(self) -> None:
        if hasattr(self, "_epoll"):  # else it was not made
            self.close()
        super().__del__()

    # -- endpoints and channels ----------------------------------------------------------------------------------

    def open(self, service_name: str, *, timeout: float | None = None) -> Endpoint:
        """Wait until a remote announces `service_name`, and return an endpoint bound to it.

        Takes the oldest channel of that name that this program has no endpoint on: by the node of the kernel's driver,
        where it has one (a `TtyChannel` for rpmsg-tty), else by a new endpoint's, which goes when it is closed.

        Raises Timeout, StateError where another process or another driver of the kernel has the service,
        PermissionError with the udev rule that helps, Closed.
        """
        _check_name(service_name)
        end = deadline(timeout)
        self._enter()
        try:
            with contextlib.ExitStack() as stack:
                told = -1
                while True:
                    self._look(now=True)
                    endpoint, reason = self._take_up(service_name)
                    if endpoint is not None:
                        return endpoint
                    if left(end) == 0:
                        if reason:
                            self._again(RETRY)
                            raise Timeout(f"{reason} within {timeout:g} s")
                        late = f"the peer did not announce {service_name!r} within {timeout:g} s"
                        raise Timeout(f"{late}; {self._seen()}")
                    if told < 0:  # and look again: whoever looked before this told nobody here
                        told = stack.enter_context(self._told())
                        continue
                    wait(left(end), RETRY if reason else None, self._watch.fileno(), self._wake, told)
                    self._check()
        finally:
            self._leave()

    def create_endpoint(
        self,
        name: str | None = None,
        *,
        src: int = ANY,
        dst: int = ANY,
        callback: Callable[[Endpoint, bytes, int], object] | None = None,
        queue: int | None = None,
        overflow: str | None = None,
    ) -> Endpoint:
        """A new endpoint, on the only link that there is.

        `name`: with `dst` ANY it is announced to the remote, for as long as the endpoint is open; any other than
        rpmsg-raw has its channel bound to the driver rpmsg_chrdev for that, which only root can do. `src`: the local
        address (0 to 0x7fffffff but 53), ANY chooses one. `dst`: the remote's address; with ANY, and no channel of that
        name at that time, the endpoint only receives, for the kernel learns no address from messages.

        `callback(endpoint, data, src)` is called from `poll()`; src is ANY, for the kernel does not tell it. `queue`
        and `overflow` must be None: the kernel keeps all messages.

        Raises ValueError, StateError where `src` is taken, where there is no link or more than one (`char:virtio0`
        says which), PermissionError, Closed.
        """
        if name is not None:
            _check_name(name)
        _check_address("src", src)
        _check_address("dst", dst)
        if src == NS_ADDR:
            raise ValueError("address 53 is the name service's")
        if callback is not None and not callable(callback):
            raise TypeError("callback must be callable")
        if queue is not None or overflow is not None:
            raise ValueError("queue and overflow must be None: the kernel keeps all messages")
        self._enter()
        try:
            self._look(now=True)
            control = self._control()
            self._persist(control.check)
            if name is not None and dst == ANY:
                return self._announce(control, name, src, callback)
            node = control.create(name or "rpmsgx", src, dst)
            fd = self._persist(lambda: open_node(self._dev, node))
            return self._add(Endpoint, fd, control.link, name, node.path, dst, callback=callback, created=True)
        finally:
            self._leave()

    @property
    def channels(self) -> list[Channel]:
        """The channels that remotes announced and have not destroyed, oldest first."""
        self._look(now=True)
        with self._lock:
            return [channel for channel in self._known.values() if channel is not None]

    # -- driving it ----------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None = 0) -> int:
        """Run callbacks, on_new_channel and on_removed for what has come. Returns messages handled.

        Waits up to `timeout` seconds (None: for ever) while there is nothing. An exception of a callback propagates
        after its message was consumed; what is left stays queued. Raises StateError inside a callback, Closed.
        """
        end = deadline(timeout)
        me = threading.get_ident()
        if self._poller == me:
            raise StateError("poll() was called inside a callback of poll()")
        self._enter()
        try:
            while True:
                if self._turn.acquire(blocking=False):
                    self._poller = me
                    try:
                        handled = self._dispatch()
                    finally:
                        self._poller = 0
                        self._turn.release()
                    if handled is not None:
                        return handled
                if left(end) == 0:
                    return 0
                self._epoll.poll(left(end))
                self._check()
        finally:
            self._leave()

    def fileno(self) -> int:
        """A descriptor that is readable while `poll()` may have something to do. Belongs to the bus: do not close."""
        with self._lock:
            self._check()
            if self._timer is None:
                self._timer = Timer()
                self._epoll.register(self._timer.fileno(), select.EPOLLIN)
            return self._epoll.fileno()

    def _dispatch(self) -> int | None:
        """Run what is due. Messages handled; None: nothing was due."""
        if self._timer is not None:
            self._timer.set(0)
        self._look()
        due = len(self._events)
        for _ in range(due):
            with self._lock:
                if not self._events:
                    break
                added, channel = self._events.popleft()
            hook = self.on_new_channel if added else self.on_removed
            if hook is not None:
                hook(channel)
        handled = sum(self._call(endpoint) for endpoint in list(self._callbacks.values()))
        with self._lock:
            if not self._events and not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._pending)
        return handled if due or handled else None

    def _call(self, endpoint: Endpoint) -> int:
        """Give the endpoint's messages to its callback."""
        assert endpoint._callback is not None
        for handled in range(BUDGET):
            try:
                data = endpoint._next()
            except (StateError, ChannelRemoved):  # closed by a callback; on_removed tells
                return handled
            if data is None:
                return handled
            endpoint._callback(endpoint, data, ANY)
        return BUDGET

    def _again(self, seconds: float) -> None:
        """What failed may succeed then: have whoever waits for `fileno()` try again."""
        with self._lock:
            if self._timer is not None and not self._closed:
                self._timer.set(round(seconds * 1000))

    # -- what there is -------------------------------------------------------------------------------------------

    def _look(self, *, now: bool = False) -> None:
        """Bring the channels up to date, where something was said; `now`: in any case."""
        with self._lock:
            if not self._closed and (self._watch.drain() or now):
                self._scan()

    def _scan(self) -> None:
        before, self._known = self._known, {}
        for key, path in devices(self._sysfs):
            if key in before:
                self._known[key] = before.pop(key)
            elif (found := device(path)) is not None:  # else it has gone, which will be told
                ours = found.announced_to_us and self._reaches(path)
                channel = self._known[key] = Channel(self, found) if ours else None
                if channel is not None:
                    self._tell(True, channel)
        for channel in before.values():
            if channel is not None:
                channel.removed = True
                if channel.endpoint is not None:
                    channel.endpoint._lose()
                if (True, channel) in self._events:
                    self._events.remove((True, channel))  # nobody was told of it
                else:
                    self._tell(False, channel)

    def _reaches(self, path: str) -> bool:
        return not self._place or is_within(path, self._place, self._sysfs)

    def _tell(self, added: bool, channel: Channel) -> None:
        self._events.append((added, channel))
        for fd in (self._pending, *self._openers):
            os.eventfd_write(fd, 1)

    @contextlib.contextmanager
    def _told(self) -> Iterator[int]:
        """An eventfd that is readable, for good, once channels come or go, or an endpoint lets go of one."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with self._lock:
            self._openers.add(fd)
        try:
            yield fd
        finally:
            with self._lock:
                self._openers.remove(fd)
            os.close(fd)

    def _seen(self) -> str:
        if not os.path.isdir(f"{self._sysfs}/bus/rpmsg"):
            return "the kernel has no rpmsg, or has not loaded it"
        return "it announced " + (", ".join(sorted({repr(channel.name) for channel in self.channels})) or "nothing")

    # -- opening -------------------------------------------------------------------------------------------------

    def _take_up(self, name: str) -> tuple[Endpoint | None, str]:
        """An endpoint on a channel of that name; or None, and why one that is there cannot be opened yet."""
        with self._lock:
            free = [one for one in self._known.values() if one is not None and one.name == name and not one.endpoint]
        reason = ""
        refusal: Exception | None = None
        for channel in free:
            try:
                return self._attach(channel), ""
            except (Gone, PermissionError) as error:
                if channel._settled():
                    refusal = error
                else:
                    reason = str(error)
            except StateError as error:
                self._check()
                refusal = error
        if refusal is not None and not reason:
            raise refusal
        return None, reason

    def _attach(self, channel: Channel) -> Endpoint:
        """Open what leads to a channel. Raises StateError, and, perhaps for a moment only, Gone and PermissionError."""
        found = channel._device
        node, driver = found.node, found.driver
        if node is not None:
            kind = TtyChannel if node.name.startswith("tty") else Endpoint
            fd = open_node(self._dev, node)
            return self._add(kind, fd, found.link, found.name, found.path, found.dst, channel=channel)
        if driver in (CHRDEV, TTY):
            raise Gone(f"{driver} has the service {found.name!r}, but made no node for it")
        if driver is not None:
            raise StateError(f"the service {found.name!r} is taken by a driver of the kernel: {driver}")
        taker = TAKEN.get(found.name)
        if taker and not channel._settled() and os.path.isdir(f"{self._sysfs}/bus/rpmsg/drivers/{taker}"):
            raise Gone(f"{taker} did not take the service {found.name!r}")
        control = self._control(found.link)
        if channel._made is None and (spare := control.spare(found.name, found.dst)) is not None:
            fd, node = spare
            return self._add(Endpoint, fd, found.link, found.name, node.path, found.dst, channel=channel, watched=True)
        if channel._made is None:
            channel._made = control.create(found.name, ANY, found.dst)
        made = channel._made
        try:
            fd = open_node(self._dev, made)
            channel._made = None  # it is the endpoint's
        except PermissionError:
            raise
        except (StateError, OSError):
            channel._made = None  # somebody was quicker
            raise Gone(f"the endpoint that was made for {found.name!r} was taken by another process") from None
        return self._add(
            Endpoint, fd, found.link, found.name, made.path, found.dst, channel=channel, watched=True, created=True
        )

    def _announce(
        self, control: Control, name: str, src: int, callback: Callable[[Endpoint, bytes, int], object] | None
    ) -> Endpoint:
        with self._lock:
            there = [one for one in self._known.values() if one is not None and one.name == name and not one.endpoint]
        dst = there[0].addr if there else ANY
        found = control.announce(name, src, dst)
        src = found.src

        def withdraw() -> None:
            control.withdraw(name, src, dst)

        def opened() -> int:
            node = found.node
            if node is None:
                raise Gone(f"{CHRDEV} made no node for {name!r}")
            return open_node(self._dev, node)

        try:
            fd = self._persist(opened)
            return self._add(Endpoint, fd, control.link, name, found.path, dst, callback=callback, withdraw=withdraw)
        except BaseException:
            withdraw()
            raise

    def _control(self, link: str | None = None) -> Control:
        """What makes endpoints on a link, or on the only one."""
        found = []
        for _, path in devices(self._sysfs):
            there = device(path) if self._reaches(path) else None
            node = there.control if there is not None and link in (None, there.link) else None
            if there is not None and node is not None:
                found.append(Control(there, node, self._sysfs, self._dev))
        if not found:
            raise Gone("there is no /dev/rpmsg_ctrlN: the remote is not up, or the kernel lacks the module rpmsg_ctrl")
        if len(found) > 1:
            names = " or ".join(f"char:{os.path.basename(one.link)}" for one in found)
            raise StateError(f"there are several links, say which: {names}")
        return found[0]

    def _persist(self, call: Callable[[], T]) -> T:
        """What `call` returns, once nodes are there and udev is done with them."""
        end = deadline(SETTLE)
        while True:
            try:
                return call()
            except (Gone, PermissionError):
                if left(end) == 0:
                    raise
            wait(RETRY, None, self._wake)
            self._check()

    def _add(
        self, kind: type[Endpoint], fd: int, link: str, name: str | None, path: str, dst: int, **options: Any
    ) -> Endpoint:
        """An endpoint on `fd`, which is closed if there can be none. `path`: what has its local address in sysfs."""
        try:
            src = address(path, "src")
            mtu = MTU if os.path.basename(link).startswith("virtio") else NO_MTU
            endpoint = kind(self, fd, name=name, src=src, dst=dst, mtu=mtu, **options)
        except BaseException as error:
            os.close(fd)
            raise (Gone(f"{path} has gone") if isinstance(error, OSError | ValueError) else error) from None
        with self._lock:
            self._users += 1  # it uses the watch
            self._endpoints.add(endpoint)
            if endpoint._channel is not None:
                endpoint._channel.endpoint = endpoint
            if endpoint._callback is not None:
                self._callbacks[fd] = endpoint
                self._epoll.register(fd, select.EPOLLIN)
        if self._closed:  # meanwhile
            endpoint.close()
        return endpoint

    # -- its end -------------------------------------------------------------------------------------------------

    def _silence(self, endpoint: Endpoint) -> None:
        """Listen no more for its callback: it is about to close, or has gone, and would be readable for good."""
        with self._lock:
            if self._callbacks.pop(endpoint._fd, None) is not None and not self._closed:
                self._epoll.unregister(endpoint._fd)

    def _released(self, endpoint: Endpoint) -> None:
        """Its node can be opened again."""
        with self._lock:
            self._endpoints.discard(endpoint)
            if endpoint._channel is not None and endpoint._channel.endpoint is endpoint:
                endpoint._channel.endpoint = None
                for fd in self._openers:
                    os.eventfd_write(fd, 1)
        self._leave()

    def close(self, linger: float = 1.0) -> None:
        """Close the bus and its endpoints, withdraw their names, and remove what was made for them. Idempotent.

        Waiters in other threads get Closed. `linger` is not needed: the kernel has taken what was sent.
        """
        deadline(linger)
        if self._end():
            for endpoint in list(self._endpoints):
                endpoint.close()
            with self._lock:
                for channel in filter(None, self._known.values()):
                    channel.removed = True
                self._known.clear()
                self._events.clear()

    def _release(self) -> None:
        for waker in (self._watch, self._timer):
            if waker is not None:
                waker.close()
        os.close(self._pending)

    def _forget(self) -> None:
        for endpoint in list(self._endpoints):
            endpoint._forget()
        super()._forget()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether there is a link to a remote."""
        return any(self._reaches(path) for _, path in devices(self._sysfs))

    @property
    def mtu(self) -> int:
        """Bytes of payload that a message can have on a virtio device; see also `Endpoint.mtu`."""
        return MTU

    @property
    def counters(self) -> dict[str, int]:
        """`outstanding` is 0: whether a remote has taken what the kernel took is not told."""
        return {"outstanding": 0}


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a service name must be a str, not {type(name).__name__}")
    if not 1 <= len(name.encode()) <= 31 or "\0" in name:
        raise ValueError(f"a service name must have 1 to 31 bytes and no NUL, not {name!r}")


def _check_address(what: str, value: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if value != ANY and not 0 <= value <= 0x7FFFFFFF:
        raise ValueError(f"{what} must be 0 to 0x7fffffff, or ANY, not {value:#x}")
