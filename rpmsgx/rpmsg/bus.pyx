"""The rpmsg bus and its endpoints: header, dispatch, name service, waiting, loans.

The ring work is C (csrc/rpx/rpmsg.h); this module is one compile unit, cut into files by concern:

    addrmap.pxi    endpoints by address
    session.pxi    a link comes up, is checked, and goes down
    receive.pxi    from the ring to an endpoint, name service included
    transmit.pxi   from a caller's buffer to the ring
    pump.pxi       who waits, who pumps, who is woken
    endpoint.pxi   the calls of an endpoint
    loans.pxi      zero copy: claim and hold

Locking: the interpreter's lock is the bus's lock. It is given up only to wait (pump.pxi), never between the first
and the last touch of a ring, and no Python code runs in between: what allocates there are `bytes`, which the garbage
collector does not track.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
    PyObject_CheckBuffer, PyObject_GetBuffer
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear
from cpython.list cimport PyList_Append, PyList_CheckExact, PyList_GET_SIZE, PyList_New
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock, PyThread_type_lock, NOWAIT_LOCK
)
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.math cimport INFINITY, isnan
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as c_close, read as c_read, write as c_write

from rpmsgx.rpx cimport *

import os
import weakref

from rpmsgx.errors import (
    Blocked, ChannelRemoved, Closed, Error, MessageSize, MessagesLost, NoPeer, PeerError, ResourceError, StateError,
    Timeout
)
from rpmsgx.virtio.link import BUFFER_MAX, BUFFER_MIN

cdef extern from "Python.h":
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long, int) nogil
    PyObject *PyList_GET_ITEM(object, Py_ssize_t)
    void PyList_SET_ITEM(object, Py_ssize_t, PyObject *)
    int PyList_SetSlice(object, Py_ssize_t, Py_ssize_t, PyObject *) except -1
    PyObject *PyBytes_FromStringAndSize_raw "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN
        EPOLL_CTL_ADD
        EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)

cdef extern from "sys/eventfd.h" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int, int)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    Py_ssize_t send(int, const void *, size_t, int)
    Py_ssize_t recv(int, void *, size_t, int)

__all__ = ["ANY", "Bus", "Channel", "Claim", "Endpoint", "Hold"]

ANY = RPX_ADDR_ANY

cdef enum:  # states of a bus
    OPEN = 0
    CLOSED = 1
    FORKED = 2
    BROKEN = 3
    DEAD = 4    # the link's memory has gone: there will be no other session

cdef enum:
    SCRATCH = 65536 + RPX_HDR  # bytes of a message that came in pieces, header included

cdef enum:  # what step() did
    EMPTY = 0
    MINE = 1
    OTHER = 2
    STALLED = 3
    QUEUED = 4  # await_message only: the message is in the endpoint's queue

cdef enum:  # what a waiter waits for, beside its endpoint's queue
    WANTS_BUFFER = 1
    WANTS_EVENT = 2

cdef enum:
    MAX_CHANNELS = 1024
    UNRUNG = 3   # waits that nobody rang for, before this is said
    TICKS = 256  # empty looks after which one that never waits looks at the doorbell too


cdef inline double monotonic() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <double>t.tv_sec + <double>t.tv_nsec * 1e-9


cdef double seconds(object timeout) except -1:
    """A timeout as seconds: None waits for ever, 0 never; negative or NaN is a mistake."""
    cdef double t
    if timeout is None:
        return INFINITY
    t = timeout
    if isnan(t) or t < 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return t


cdef int new_eventfd() except -1:
    cdef int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


cdef int new_epoll(int a, int b, int c) except -1:
    """An epoll descriptor over those of the three that are not negative."""
    cdef epoll_event event
    cdef int saved
    cdef int fds[3]
    fds[0], fds[1], fds[2] = a, b, c
    cdef int epoll = epoll_create1(EPOLL_CLOEXEC)
    if epoll < 0:
        raise OSError(errno, os.strerror(errno))
    for i in range(3):
        if fds[i] < 0:
            continue
        event.events = EPOLLIN
        event.data.fd = fds[i]
        if epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event) < 0:
            saved = errno
            c_close(epoll)
            raise OSError(saved, os.strerror(saved))
    return epoll


cdef inline void signal_fd(int fd) noexcept:
    cdef uint64_t one = 1
    if fd >= 0:
        c_write(fd, &one, 8)


cdef inline void clear_fd(int fd) noexcept:
    cdef uint64_t value
    if fd >= 0:
        c_read(fd, &value, 8)


# A forked child shares the rings with its parent: its objects must touch neither ring nor remote.
cdef object buses = weakref.WeakSet()


def _after_fork() -> None:
    cdef Bus bus
    for bus in list(buses):
        if bus.state != CLOSED:
            bus.state = FORKED
            bus.up = False
            bus.pump = None
            bus.sleepers = []
            bus.link.close_descriptors()  # the peer shall see the parent go, whatever becomes of the child


os.register_at_fork(after_in_child=_after_fork)


include "addrmap.pxi"
include "waiting.pxi"


@cython.final
cdef class Channel:
    """A service that the peer announced: `name`, and the peer's address `addr`.

    `endpoint` is the endpoint bound to it, or None. `removed` is true once the peer destroyed it or the link went
    away. Made by the bus only; read-only.
    """

    def __init__(self) -> None:
        raise TypeError("channels are made by the bus")

    def __reduce__(self):
        raise TypeError("a channel cannot be pickled: it belongs to its bus")

    @property
    def remoteproc(self):
        """The `Remoteproc` whose link this channel is on, or None."""
        return self.bus.remoteproc

    def __repr__(self) -> str:
        gone = " removed" if self.removed else ""
        return f"<Channel {self.name!r} at {self.addr:#x}{gone}>"


@cython.final
cdef class Bus:
    """An rpmsg bus on one link. Made by `rpmsgx.open()` or a `Remoteproc`, not directly.

    Thread-safe. No thread of its own: callbacks run in `poll()`, and whoever waits drives the link.
    """

    def __cinit__(self) -> None:
        self.kick_fd = self.drain_fd = self.wake_fd = self.again_fd = self.pend_fd = -1
        self.pump_epoll = self.bus_epoll = self.doorbell_fd = -1
        self.state = CLOSED
        self.mem.count = 0

    def __init__(self, link, *, double spin=0.0, queue: int = 1024, overflow: str = "block", bint start=True) -> None:
        """`link`: a rpmsgx.virtio.link.Link. `spin`: seconds to look at the rings before blocking. `queue`: messages
        an endpoint holds (1 to 1048576). `overflow`: "block" or "drop". `start` false leaves the first kick to
        `start()`."""
        if spin < 0 or isnan(spin):
            raise ValueError(f"spin must be at least 0 seconds, not {spin!r}")
        self.queue_limit = check_queue(queue)
        self.drop_overflow = check_overflow(overflow)
        self.link = link
        self.doorbell = link.doorbell
        self.spin = 0.0 if link.in_process else spin
        self.views = []
        self.endpoints = {}
        self.lowest_free = RPX_ADDR_DYNAMIC
        self.channel_list = []
        self.events = []
        self.ready = []
        self.announce = []
        self.sleepers = []
        addrmap_init(&self.map, 16)
        self.wake_fd = new_eventfd()
        self.doorbell_fd = self.doorbell.fileno()
        self.pump_epoll = new_epoll(self.doorbell_fd, self.wake_fd, -1)
        self.state = OPEN
        buses.add(self)
        try:
            bus_refresh_doorbell(self)
            bus_session_check(self, start)
        except BaseException:
            self.state = CLOSED
            raise

    def __dealloc__(self) -> None:
        for fd in (self.wake_fd, self.again_fd, self.pend_fd, self.pump_epoll, self.bus_epoll):
            if fd >= 0:
                c_close(fd)
        addrmap_free(&self.map)
        free(self.arena)
        free(self.regions)
        free(self.agreed)

    def __reduce__(self):
        raise TypeError("a bus cannot be pickled: it belongs to this process")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ("closed" if self.state == CLOSED else "forked" if self.state == FORKED else
                 "broken" if self.state == BROKEN else "up" if self.up else "waiting for the peer")
        return f"<Bus {self.link.role} {self.link.url} {names}, {len(self.endpoints)} endpoints>"

    cdef int check(self) except -1:
        """Raise unless the bus can be used."""
        if self.state == OPEN:
            return 0
        if self.state == BROKEN:
            bus_service(self)  # has the peer been reset since?
            if self.state == OPEN:
                return 0
            raise PeerError(self.broken_text, self.broken_rule)
        if self.state == FORKED:
            raise StateError("this bus was opened before a fork: it belongs to the parent process")
        if self.state == DEAD:
            raise ChannelRemoved(f"the link went away: {self.link.gone}")
        raise Closed("the bus is closed")

    # -- endpoints and channels ----------------------------------------------------------------------------------

    def create_endpoint(self, name=None, *, src=ANY, dst=ANY, callback=None, queue=None, overflow=None):
        """A new endpoint.

        `name`: the service; with `dst` ANY it is announced to the peer, now and whenever the link comes up again
        (1 to 31 characters of ASCII, no NUL). `src`: the local address (0 to 0x7fffffff but 53), ANY takes the lowest
        free one from 1024. `dst`: the peer's address, ANY learns it from the first message or announcement.
        `callback(endpoint, data, src)` is called from `poll()`. `queue`, `overflow`: this endpoint's own (see open).

        Raises ValueError, StateError where `src` is taken, Closed.
        """
        cdef Endpoint ept
        cdef Channel channel
        self.check()
        ept = self.add_endpoint(name, src, dst, callback, queue, overflow)
        if name is not None and not ept.peer_fixed:
            ept.announced = True
            for channel in self.channel_list:
                if channel.name == name and channel.endpoint is None:
                    channel.endpoint = ept
                    ept.peer = channel.addr
                    break
            if self.up:
                PyList_Append(self.announce, (ept.name, ept.src, False))
                bus_flush_announce(self)
        return ept

    cdef Endpoint add_endpoint(self, name, src, dst, callback, queue, overflow):
        cdef uint32_t address, peer
        cdef Endpoint ept
        cdef bint drop = self.drop_overflow if overflow is None else check_overflow(overflow)
        cdef uint32_t limit = self.queue_limit if queue is None else check_queue(queue)
        if name is not None:
            encode_name(name)
        if callback is not None and not callable(callback):
            raise TypeError("callback must be callable")
        peer = check_address("dst", dst)
        address = check_address("src", src)
        if address == RPX_ADDR_NS:
            raise ValueError("address 53 is the name service's")
        if address == RPX_ADDR_ANY:
            while addrmap_get(&self.map, self.lowest_free) != NULL:
                self.lowest_free += 1
            address = self.lowest_free
        elif addrmap_get(&self.map, address) != NULL:
            raise StateError(f"address {address:#x} is taken by {self.endpoints[address]!r}")
        ept = Endpoint.__new__(Endpoint)
        ept.bus = self
        ept.name = name
        ept.src = address
        ept.peer = peer
        ept.peer_fixed = peer != RPX_ADDR_ANY
        ept.callback = callback
        ept.limit = limit
        ept.drop_overflow = drop
        addrmap_put(&self.map, address, <PyObject *>ept)
        self.endpoints[address] = ept
        return ept

    cdef int remove_endpoint(self, Endpoint ept) except -1:
        """Take an endpoint off the bus; its waiters get Closed."""
        cdef Channel channel
        if ept.closed:
            return 0
        ept.closed = True
        if self.state == FORKED:
            return 0
        addrmap_del(&self.map, ept.src)
        self.endpoints.pop(ept.src, None)
        if self.last is ept:
            self.last = None
        if RPX_ADDR_DYNAMIC <= ept.src < self.lowest_free:
            self.lowest_free = ept.src
        for channel in self.channel_list:
            if channel.endpoint is ept:
                channel.endpoint = None
        bus_wake_endpoint(self, ept)
        signal_fd(ept.event_fd)
        if self.stall_endpoint is ept:
            self.stall_endpoint = None
            self.stall_data = None
            self.drops.no_endpoint += 1
            bus_wake_pump(self)
        if ept.announced and self.up and self.state == OPEN:
            PyList_Append(self.announce, (ept.name, ept.src, True))
            bus_flush_announce(self)
        return 0

    def open(self, service_name: str, *, timeout=None):
        """Wait until the peer announces `service_name`, and return an endpoint bound to it.

        Takes the oldest channel of that name that no endpoint is bound to. Announces nothing. Raises Timeout,
        ChannelRemoved where the link goes away meanwhile, PeerError, Closed.
        """
        cdef Channel channel
        cdef Endpoint ept
        cdef Waiter w = None
        cdef double limit = seconds(timeout)
        encode_name(service_name)
        self.check()
        try:
            while True:
                bus_pull(self)
                for channel in self.channel_list:
                    if channel.name == service_name and channel.endpoint is None:
                        ept = self.add_endpoint(service_name, ANY, ANY, None, None, None)
                        ept.peer = channel.addr  # learned: it goes when the channel does
                        channel.endpoint = ept
                        return ept
                if w is None:
                    w = Waiter.start(self, None, WANTS_EVENT, limit)
                elif w.expired:
                    seen = sorted({channel.name for channel in self.channel_list})
                    if service_name in seen:
                        said = "the channel of that name has its endpoint already"
                    else:
                        said = f"it announced {', '.join(map(repr, seen)) if seen else 'nothing'}"
                    raise Timeout(f"the peer did not announce {service_name!r} within {timeout} s; "
                                  f"{said}{bus_stall_note(self, w)}")
                bus_wait(self, w)
                bus_check_waiter(self, w)
        finally:
            if w is not None:
                bus_leave(self, w)

    @property
    def channels(self) -> list:
        """The channels that the peer announced and has not destroyed, oldest first."""
        return list(self.channel_list)

    def create_channel(self, name: str, addr: int) -> Channel:
        """The channel of a service at `addr` that the peer does not announce here: it has no name service, or has
        announced it to the host before. One that is there already is returned. Raises ValueError for an address that
        no endpoint can have, ChannelRemoved, Closed, StateError as any call does.
        """
        cdef Channel channel
        self.check()
        if not 0 <= addr < RPX_ADDR_ANY:
            raise ValueError(f"addr is {addr:#x}, not an address")
        for channel in self.channel_list:
            if channel.addr == addr and channel.name == name:
                return channel
        return bus_channel_add(self, name, addr)

    # -- driving it ----------------------------------------------------------------------------------------------

    def poll(self, timeout=0) -> int:
        """Drive the link: run callbacks, on_new_channel and on_removed for what has come. Returns messages handled.

        Waits up to `timeout` seconds (None: for ever) while there is nothing. An exception of a callback propagates
        after its message was consumed; what is left stays queued. Raises StateError inside a callback, PeerError,
        Closed.
        """
        cdef double limit = seconds(timeout)
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef Waiter w = None
        cdef Py_ssize_t handled
        if self.state == BROKEN:
            clear_fd(self.pend_fd)  # said once; only a reset gives poll() something to do again
        if self.state != DEAD or not (self.events or self.ready):
            self.check()
        if self.polling and self.poll_thread == me:
            raise StateError("poll() was called inside a callback of poll()")
        try:
            while True:
                if not self.polling:
                    self.polling = True
                    self.poll_thread = me
                    try:
                        if w is None:
                            bus_service(self)
                        bus_pull(self)
                        handled = self.dispatch()
                    finally:
                        self.polling = False
                    if handled >= 0:
                        return handled
                if limit == 0 or w is not None and w.expired:
                    return 0
                if w is None:
                    w = Waiter.start(self, None, WANTS_EVENT, limit)
                bus_wait(self, w)
                self.check()
        finally:
            if w is not None:
                bus_leave(self, w)
            elif self.exposed and self.state == OPEN:
                bus_rearm(self)

    cdef Py_ssize_t dispatch(self) except -2:
        """Run what is due: events, then callbacks, as many as are there now. Messages handled; -1: nothing was due."""
        cdef Endpoint ept
        cdef uint32_t src
        cdef Py_ssize_t handled = 0
        cdef Py_ssize_t due = len(self.events)
        cdef Py_ssize_t endpoints = len(self.ready)
        cdef uint32_t budget
        if due == 0 and endpoints == 0:
            clear_fd(self.pend_fd)
            return -1
        while due > 0 and self.events:
            due -= 1
            added, channel = self.events.pop(0)
            hook = self.on_new_channel if added else self.on_removed
            if hook is not None:
                hook(channel)
        while endpoints > 0 and self.ready:
            endpoints -= 1
            ept = self.ready.pop(0)
            ept.in_ready = False
            budget = ept.count
            try:
                while budget > 0 and ept.count > 0 and not ept.closed:
                    budget -= 1
                    data = ept.take(&src)
                    handled += 1
                    ept.callback(ept, data, src)
            finally:
                if ept.count > 0 and not ept.closed and not ept.in_ready:
                    ept.in_ready = True
                    PyList_Append(self.ready, ept)
        if not self.ready and not self.events:
            clear_fd(self.pend_fd)
        return handled

    def fileno(self) -> int:
        """A descriptor that is readable while `poll()` may have something to do. Belongs to the bus: do not close."""
        self.check()
        if self.bus_epoll < 0:
            bus_expose(self)
            self.pend_fd = new_eventfd()
            if self.ready or self.events:
                signal_fd(self.pend_fd)
            self.bus_epoll = new_epoll(self.doorbell_fd, self.again_fd, self.pend_fd)
        return self.bus_epoll

    def start(self) -> None:
        """The first kick, for a bus made with start=False. The platform has started the remote."""
        self.check()
        bus_kick(self, self.rx_notifyid)

    def close(self, linger: float = 1.0) -> None:
        """Close the bus and its endpoints. Idempotent; never raises because of the peer.

        Waits up to `linger` seconds for the peer to take what was sent, withdraws the names, and as driver resets the
        link. Waiters in other threads get Closed. Memory lent out by claim() and hold() stays mapped until the last
        view of it dies.
        """
        cdef Endpoint ept
        cdef Channel channel
        cdef double limit = seconds(linger)
        if self.state == CLOSED:
            return
        try:
            if self.up and self.state == OPEN:
                bus_linger(self, monotonic() + limit)
                for ept in list(self.endpoints.values()):
                    self.remove_endpoint(ept)
                bus_flush_announce(self)
        except Error:  # the peer's doing
            pass
        finally:
            forked = self.state == FORKED
            self.state = CLOSED
            for ept in list(self.endpoints.values()):
                ept.closed = True
            bus_session_drop(self)
            if forked:
                self.link.close_descriptors()
            else:
                bus_wake_all(self)
                self.link.close()
            self.endpoints.clear()
            for channel in self.channel_list:
                channel.removed = True
            self.channel_list.clear()  # they refer to this bus: without them it goes with its last user
            self.events.clear()
            self.ready.clear()
            self.stall_endpoint = self.stall_data = None

    @property
    def role(self) -> str:
        """ "driver" or "device"."""
        return self.link.role

    @property
    def remoteproc(self):
        """The `Remoteproc` whose vdev this bus is on, or None."""
        return None if self.vdev is None else self.vdev.remoteproc

    @property
    def space(self):
        """The memory that both ends can reach, an `AddressSpace`: for addresses to put into messages, and to find what
        came in them. Raises StateError while it is not known."""
        space = self.link.space
        if space is None:
            raise StateError("the memory of this link is not known before its peer has come")
        return space

    def carveout(self, name: str):
        """Memory that both ends know by `name`, a `Carveout`: "bulk" of a link that was made with bulk=, or a carveout
        of the remote's resource table. Raises ResourceError if there is none, StateError while it is not known,
        PeerError, Closed."""
        self.check()
        return self.link.carveout(name)

    @property
    def is_up(self) -> bool:
        """Whether the link is up: the driver has set DRIVER_OK and neither end has gone since."""
        if self.state == OPEN or self.state == BROKEN:
            bus_service(self)
            if self.exposed:
                bus_rearm(self)
        return self.up and self.state == OPEN

    @property
    def mtu(self) -> int:
        """Bytes of payload that a message can have; 0 while a device has not seen the driver's buffers yet."""
        return bus_current_mtu(self)

    @property
    def counters(self) -> dict:
        """What happened on this bus: kicks sent, sessions ended, stalls, waits at whose end messages were there that
        nobody had rung for, and messages dropped by reason; and how many are `outstanding` now: sent, and not yet taken
        by the peer."""
        return {
            "outstanding": bus_outstanding(self),
            "kicks": self.kicks,
            "resets": self.epoch,
            "stalls": self.stalls,
            "unrung": self.unrung,
            "dropped_short": self.drops.short_,
            "dropped_length": self.drops.length,
            "dropped_no_endpoint": self.drops.no_endpoint,
            "ns_malformed": self.drops.ns_malformed,
            "ns_duplicate": self.drops.ns_duplicate,
            "ns_unknown": self.drops.ns_unknown,
            "ns_overflow": self.drops.ns_overflow,
            "ns_too_long": self.drops.ns_too_long,
        }


cdef uint32_t check_address(str what, object value) except? 0:
    cdef object address = value
    if not isinstance(address, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if address == RPX_ADDR_ANY or 0 <= address <= 0x7fffffff:
        return <uint32_t>address
    raise ValueError(f"{what} must be 0 to 0x7fffffff, or ANY, not {address:#x}")


cdef uint32_t check_queue(object value) except 0:
    if not isinstance(value, int) or not 1 <= value <= 1 << 20:
        raise ValueError(f"queue must be 1 to 1048576 messages, not {value!r}")
    return <uint32_t>value


cdef int check_overflow(object value) except -1:
    if value == "block":
        return 0
    if value == "drop":
        return 1
    raise ValueError(f'overflow must be "block" or "drop", not {value!r}')


cdef bytes encode_name(object name):
    if not isinstance(name, str):
        raise TypeError(f"a service name must be a str, not {type(name).__name__}")
    cdef bytes raw = name.encode("utf-8")
    if not 1 <= len(raw) <= 31 or b"\0" in raw:
        raise ValueError(f"a service name must have 1 to 31 bytes and no NUL, not {name!r}")
    return raw


include "session.pxi"
include "receive.pxi"
include "transmit.pxi"
include "pump.pxi"
include "endpoint.pxi"
include "loans.pxi"
