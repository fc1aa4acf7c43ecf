# The calls of an endpoint. A receive call first goes the short way (csrc/rpx/rpmsg.h), for messages that are next in
# the ring and for its endpoint. Otherwise it asks await_message() where the next one is: in the endpoint's queue
# (QUEUED), or in *msg, off the ring and for this endpoint (MINE), from where it is copied straight to the caller.

cdef inline int next_message(Bus bus, Endpoint ept, rpx_msg *msg) except -1:
    """What comes after a message that was taken: QUEUED, MINE, or something else where there is nothing now."""
    cdef int how = OTHER
    while how == OTHER and ept.count == 0:
        how = bus_step(bus, ept, msg)
    return QUEUED if ept.count else how


cdef inline bint short_way(Bus bus, Endpoint ept):
    """Whether messages can go straight from the ring to the caller, with nothing to look at but the ring."""
    return bus.up and not ept.closed and ept.callback is None and ept.lost == 0 and ept.count == 0 and \
        ept.peer != RPX_ADDR_ANY and bus.stall_endpoint is None


cdef inline object receive_short(Bus bus, Endpoint ept):
    """The message that is next in the ring, the short way, as bytes; None where that is none for `ept`."""
    cdef rpx_msg msg
    cdef object data
    if not (short_way(bus, ept) and rpx_rx_peek(&bus.rx, &msg) and msg.dst == ept.src):
        return None
    data = PyBytes_FromStringAndSize(NULL, msg.len)
    rpx_copy_from(PyBytes_AS_STRING(data), msg.data, msg.len, <rpx_kind>bus.rx.kind)
    bus_check_lost(bus)
    rpx_rx_turn(&bus.rx, &msg)
    ept.n_received += 1
    return data


cdef list receive_list(Bus bus, Endpoint ept, Py_ssize_t max):
    """The messages that are next in the ring and all for `ept`, the short way: up to `max`, maybe none."""
    cdef rpx_rx_run run
    cdef rpx_msg msg
    cdef PyObject *data
    cdef Py_ssize_t room = min(max, rpx_rx_look(&bus.rx)) if bus.up else 0
    if room <= 0:
        return []
    cdef list messages = PyList_New(room)  # the garbage collector may run Python code: before everything else
    if not short_way(bus, ept):
        return []
    rpx_rx_run_begin(&run, &bus.rx, <uint32_t>room)
    while rpx_rx_run_peek(&run, &msg) and msg.dst == ept.src:
        data = PyBytes_FromStringAndSize_raw(NULL, msg.len)
        if data == NULL:
            PyErr_Clear()  # the long way raises it again
            break
        rpx_copy_from(PyBytes_AS_STRING(<object>data), msg.data, msg.len, <rpx_kind>bus.rx.kind)
        PyList_SET_ITEM(messages, run.n, data)
        rpx_rx_run_turn(&run, &msg)
    rpx_rx_run_end(&run, &bus.rx)
    if <Py_ssize_t>run.n < room:
        PyList_SetSlice(messages, run.n, room, NULL)
    bus_check_lost(bus)
    ept.n_received += run.n
    return messages


cdef Py_ssize_t receive_rows(Bus bus, Endpoint ept, Rows rows, Py_ssize_t first) except -1:
    """The same into rows, from `first` on: the number of rows that are filled now."""
    cdef rpx_rx_run run
    cdef rpx_msg msg
    cdef uint8_t *row = rows.data + first * rows.width
    cdef Py_ssize_t width = rows.width
    cdef rpx_kind kind = <rpx_kind>bus.rx.kind
    if not short_way(bus, ept):
        return first
    rpx_rx_run_begin(&run, &bus.rx, <uint32_t>min(rows.count - first, <Py_ssize_t>RPX_QUEUE_MAX))
    while rpx_rx_run_peek(&run, &msg) and msg.dst == ept.src and msg.len <= width:
        rpx_copy_from(row, msg.data, msg.len, kind)
        rows.finish(first + run.n, msg.len)
        rpx_rx_run_turn(&run, &msg)
        row += width
    rpx_rx_run_end(&run, &bus.rx)
    bus_check_lost(bus)
    ept.n_received += run.n
    return first + run.n


cdef Py_ssize_t transmit_list(Bus bus, Endpoint ept, uint32_t dst, list messages) noexcept:
    """Stage messages, which are all bytes, the short way: how many."""
    cdef rpx_tx_run run
    cdef PyObject *item
    if not bus_can_transmit(bus):
        return 0
    rpx_tx_run_begin(&run, &bus.tx, <uint32_t>min(PyList_GET_SIZE(messages), <Py_ssize_t>RPX_QUEUE_MAX))
    while run.n < run.max:
        item = PyList_GET_ITEM(messages, run.n)
        if not rpx_tx_run_turn(&run, ept.src, dst, PyBytes_AS_STRING(<object>item),
                               <size_t>PyBytes_GET_SIZE(<object>item)):
            break
    rpx_tx_run_end(&run, &bus.tx)
    return run.n


@cython.final
cdef class Endpoint:
    """One end of a conversation: a local address, a queue, and a peer's address once it is known.

    Made by `Bus.create_endpoint()` and `Bus.open()`. Thread-safe; messages stay in order. Iterating yields messages
    until the endpoint is closed or its channel removed. A context manager that closes the endpoint.
    """

    def __cinit__(self) -> None:
        self.event_fd = self.epoll_fd = -1

    def __init__(self) -> None:
        raise TypeError("endpoints are made by Bus.create_endpoint() and Bus.open()")

    def __dealloc__(self) -> None:
        cdef uint32_t i
        for i in range(self.count):
            Py_XDECREF(self.queue[(self.head + i) & (self.size - 1)].data)
        free(self.queue)
        if self.event_fd >= 0:
            c_close(self.event_fd)
        if self.epoll_fd >= 0:
            c_close(self.epoll_fd)

    def __reduce__(self):
        raise TypeError("an endpoint cannot be pickled: it belongs to its bus")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def __repr__(self) -> str:
        name = f"{self.name!r} " if self.name else ""
        peer = "ANY" if self.peer == RPX_ADDR_ANY else f"{self.peer:#x}"
        return f"<Endpoint {name}{self.src:#x} to {peer}{' closed' if self.closed else ''}>"

    # -- the queue -----------------------------------------------------------------------------------------------

    cdef int enqueue(self, PyObject *data, uint32_t src) except -1:
        """Append a message (a reference is taken over); wake whoever waits for it."""
        cdef uint32_t size, i
        cdef Entry *bigger
        if self.count == self.size:  # grows up to `limit`, a power of two of entries at a time
            size = 8 if self.size == 0 else self.size * 2
            bigger = <Entry *>malloc(size * sizeof(Entry))
            if bigger == NULL:
                Py_XDECREF(data)
                raise MemoryError()
            for i in range(self.count):
                bigger[i] = self.queue[(self.head + i) & (self.size - 1)]
            free(self.queue)
            self.queue = bigger
            self.size = size
            self.head = 0
        i = (self.head + self.count) & (self.size - 1)
        self.queue[i].data = data
        self.queue[i].src = src
        self.count += 1
        if self.peer == RPX_ADDR_ANY:
            self.peer = src
        if self.count == 1:
            signal_fd(self.event_fd)
        if self.waiters:
            bus_wake_endpoint(self.bus, self)
        if self.callback is not None and not self.in_ready:
            self.in_ready = True
            PyList_Append(self.bus.ready, self)
            signal_fd(self.bus.pend_fd)
            bus_wake_wanting(self.bus, WANTS_EVENT)
        return 0

    cdef object take(self, uint32_t *src):
        """The oldest message of the queue, which has one."""
        cdef Entry *e = &self.queue[self.head]
        cdef object data = <object>e.data
        Py_DECREF(data)
        src[0] = e.src
        self.head = (self.head + 1) & (self.size - 1)
        self.count -= 1
        self.n_received += 1
        if self.bus.stall_endpoint is self:
            bus_unstall(self.bus)
            bus_wake_pump(self.bus)
            if self.bus.exposed:
                signal_fd(self.bus.again_fd)
        return data

    # -- receiving -----------------------------------------------------------------------------------------------

    cdef int begin(self, object timeout) except -1:
        """What every receive call checks first."""
        if timeout is not None:
            seconds(timeout)
        if self.closed:
            raise Closed("the endpoint is closed")
        if self.callback is not None:
            raise StateError("this endpoint has a callback: its messages go there, from poll()")
        if self.bus.state == FORKED:
            self.bus.check()
        if self.lost and self.count == 0:
            self.report_lost()
        return 0

    cdef int report_lost(self) except -1:
        cdef uint64_t lost = self.lost
        self.lost = 0
        raise MessagesLost(lost)

    cdef int usable(self) except -1:
        """Raise if no further message can come."""
        if self.closed:
            raise Closed("the endpoint is closed")
        self.bus.check()
        if self.removed:
            raise ChannelRemoved(f"the peer's service {self.name!r} has gone")
        return 0

    cdef int await_message(self, rpx_msg *msg, object timeout) except -1:
        """Wait for a message. QUEUED, or MINE with the message in *msg, whose buffer the caller gives back."""
        cdef uint64_t epoch = self.bus.epoch  # any look may be the one that finds the session over
        if timeout is None and not self.closed and self.callback is None and self.lost == 0 and \
                self.count == 0 and self.bus.state == OPEN and bus_step(self.bus, self, msg) == MINE:
            return MINE
        self.begin(timeout)
        if self.count:
            return QUEUED
        return self.await_slow(msg, seconds(timeout), epoch)

    cdef int await_slow(self, rpx_msg *msg, double timeout, uint64_t epoch) except -1:
        cdef Bus bus = self.bus
        cdef Waiter w = None
        cdef int rc
        try:
            while True:
                if self.count:
                    return QUEUED
                if self.lost:
                    self.report_lost()
                self.usable()
                rc = OTHER
                while rc == OTHER and self.count == 0 and not self.closed:
                    rc = bus_step(bus, self, msg)
                if rc == MINE:
                    return MINE
                bus_flush_rx(bus)
                if self.count or self.closed or self.removed:
                    continue
                if epoch != bus.epoch:
                    raise ChannelRemoved(f"the link went away: {bus.link.gone}")
                if w is None:
                    w = Waiter.start(bus, self, 0, timeout)
                elif w.expired:
                    clear_fd(self.event_fd)  # as try_recv() does; bus_leave() looks once more and arms
                    raise Timeout(f"no message within {timeout:g} s{bus_stall_note(bus, w)}")
                bus_wait(bus, w)
        finally:
            if w is not None:
                bus_leave(bus, w)

    cdef int try_message(self, rpx_msg *msg) except -1:
        """As await_message, but EMPTY instead of waiting; then the descriptors are armed again."""
        cdef Bus bus = self.bus
        cdef int rc, looks
        self.begin(None)
        if self.count:
            return QUEUED
        self.usable()
        for looks in range(3):
            rc = OTHER
            while rc == OTHER and self.count == 0:
                rc = bus_step(bus, self, msg)
            if rc == MINE:
                return MINE
            bus_flush_rx(bus)
            if self.count:
                return QUEUED
            if not bus.exposed:
                bus_tick(bus)
                return EMPTY
            # Clear the doorbell, empty the ring for everybody, ask for the next ring, look once more.
            if looks == 0:
                bus_service(bus)
            bus_pull(bus)
            if self.count:
                return QUEUED
            if not bus.up or bus.stall_endpoint is not None or not rpx_rx_unmute(&bus.rx):
                clear_fd(self.event_fd)
                return EMPTY
        signal_fd(bus.again_fd)  # a peer that is faster than we look: stay readable
        return EMPTY

    cdef object receive(self, int how, rpx_msg *msg, uint32_t *src):
        """The message that await_message() found, as bytes."""
        cdef object data
        if how == QUEUED:
            return self.take(src)
        src[0] = msg.src
        data = PyBytes_FromStringAndSize(NULL, msg.len)
        rpx_copy_from(PyBytes_AS_STRING(data), msg.data, msg.len, <rpx_kind>self.bus.rx.kind)
        bus_check_lost(self.bus)
        self.n_received += 1
        bus_done(self.bus, msg)
        return data

    def recv(self, *, timeout=None) -> bytes:
        """The next message. Waits up to `timeout` seconds (None: for ever, 0: not at all).

        Raises Timeout, MessagesLost (once, where overflow="drop" dropped some), ChannelRemoved, PeerError, Blocked,
        Closed.
        """
        cdef rpx_msg msg
        cdef uint32_t src
        cdef Bus bus = self.bus
        cdef object data
        if timeout is not None:
            seconds(timeout)
        data = receive_short(bus, self)
        if data is None:
            data = self.receive(self.await_message(&msg, timeout), &msg, &src)
        bus_flush_rx(bus)
        return data

    def recv_from(self, *, timeout=None):
        """As recv(), but (message, the sender's address)."""
        cdef rpx_msg msg
        cdef uint32_t src
        cdef object data = self.receive(self.await_message(&msg, timeout), &msg, &src)
        bus_flush_rx(self.bus)
        return data, src

    def try_recv(self):
        """The next message, or None where there is none now. None arms `fileno()` again."""
        cdef rpx_msg msg
        cdef uint32_t src
        cdef int how = self.try_message(&msg)
        if how == EMPTY:
            return None
        data = self.receive(how, &msg, &src)
        bus_flush_rx(self.bus)
        return data

    def recv_many(self, Py_ssize_t max, *, timeout=None) -> list:
        """Up to `max` (at least 1) messages; waits for the first only. Raises as recv()."""
        cdef rpx_msg msg
        cdef uint32_t src
        cdef int how
        cdef Bus bus = self.bus
        if max < 1:
            raise ValueError(f"max must be at least 1, not {max}")
        if timeout is not None:
            seconds(timeout)
        cdef list messages = receive_list(bus, self, max)
        try:
            while len(messages) < max:
                how = next_message(bus, self, &msg) if messages else self.await_message(&msg, timeout)
                if how != MINE and how != QUEUED:
                    break
                PyList_Append(messages, self.receive(how, &msg, &src))
                messages += receive_list(bus, self, max - len(messages))
        except (PeerError, ChannelRemoved):
            if not messages:
                raise
            return messages  # what came before; the next call raises
        bus_flush_rx(bus)
        return messages

    def recv_into(self, rows, *, lengths=None, timeout=None) -> int:
        """Fill the rows of a writable C-contiguous buffer (a 2-D array, say), one message a row. Rows filled, >= 1.

        Waits for the first message only. A shorter message is padded with zeros; one longer than a row raises
        MessageSize and stays queued, after the rows filled before it were returned. `lengths`: a writable buffer of
        one integer a row (2, 4 or 8 bytes wide) that receives the messages' lengths. Raises as recv().
        """
        cdef rpx_msg msg
        cdef uint32_t src
        cdef int how
        cdef Rows table = Rows(rows, lengths)
        cdef Bus bus = self.bus
        cdef Py_ssize_t n
        cdef object data
        if timeout is not None:
            seconds(timeout)
        n = receive_rows(bus, self, table, 0)
        try:
            while n < table.count:
                how = next_message(bus, self, &msg) if n > 0 else self.await_message(&msg, timeout)
                if how == MINE:  # to the queue, which is empty, and where it stays if it is too long
                    self.keep(&msg)
                elif how != QUEUED:
                    break
                data = <object>self.queue[self.head].data
                if PyBytes_GET_SIZE(data) > table.width:
                    bus_flush_rx(bus)
                    if n > 0:
                        return n
                    raise MessageSize(f"a message of {PyBytes_GET_SIZE(data)} bytes does not fit a row of "
                                      f"{table.width}; it stays queued")
                data = self.take(&src)
                memcpy(table.data + n * table.width, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))
                table.finish(n, <uint16_t>PyBytes_GET_SIZE(data))
                n = receive_rows(bus, self, table, n + 1)
        except (PeerError, ChannelRemoved):
            if n == 0:
                raise
            return n  # what came before; the next call raises
        bus_flush_rx(bus)
        return n

    cdef int keep(self, rpx_msg *msg) except -1:
        """Put a message that was off the ring already into the queue, which is empty."""
        cdef object data = PyBytes_FromStringAndSize(NULL, msg.len)
        rpx_copy_from(PyBytes_AS_STRING(data), msg.data, msg.len, <rpx_kind>self.bus.rx.kind)
        bus_check_lost(self.bus)
        bus_done(self.bus, msg)
        Py_INCREF(data)
        return self.enqueue(<PyObject *>data, msg.src)

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        try:
            return self.recv()
        except (Closed, ChannelRemoved):
            raise StopIteration from None

    # -- sending -------------------------------------------------------------------------------------------------

    cdef uint32_t destination(self) except? 0:
        if self.peer == RPX_ADDR_ANY:
            bus_pull(self.bus)  # an announcement or a first message may lie in the ring
            if self.peer == RPX_ADDR_ANY:
                self.bus.check()
                if self.removed:
                    raise ChannelRemoved(f"the peer's service {self.name!r} has gone")
                raise NoPeer("no destination is known: nobody announced this service or wrote to it; give dst, or "
                             "use send_to()")
        return self.peer

    cdef int transmit(self, const uint8_t *data, Py_ssize_t size, uint32_t dst, object timeout) except -1:
        """Stage and publish one message, waiting for a buffer."""
        cdef Bus bus = self.bus
        cdef Waiter w = None
        cdef double limit = seconds(timeout)
        try:
            while True:
                if self.closed:
                    raise Closed("the endpoint is closed")
                bus.check()
                if bus_transmit(bus, self.src, dst, data, size):
                    bus_flush_tx(bus)
                    self.n_sent += 1
                    return 0
                bus_pull(bus)
                if w is None:
                    w = Waiter.start(bus, self, WANTS_BUFFER, limit)
                elif w.expired:
                    raise Timeout(f"the peer gave no buffer back within {limit:g} s{bus_stall_note(bus, w)}"
                                  if bus.up else f"the link did not come up within {limit:g} s")
                bus_wait(bus, w)
                if not self.closed:
                    bus_check_waiter(bus, w)  # before the next try: `dst` was the old peer's
        finally:
            if w is not None:
                bus_leave(bus, w)

    cdef int send_object(self, object data, uint32_t dst, object timeout) except -1:
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            return self.transmit(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), dst, timeout)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.transmit(<const uint8_t *>view.buf, view.len, dst, timeout)
        finally:
            PyBuffer_Release(&view)

    def send(self, data, *, timeout=None) -> None:
        """Send `data` (bytes or any contiguous buffer, 0 to `mtu` bytes) to the peer of this endpoint.

        Waits up to `timeout` seconds for a buffer, and for the link to come up. Raises Timeout, MessageSize, NoPeer,
        ChannelRemoved, PeerError, Closed.
        """
        cdef Bus bus = self.bus
        if timeout is not None:
            seconds(timeout)
        if not self.closed and self.peer != RPX_ADDR_ANY and PyBytes_CheckExact(data) and bus_can_transmit(bus) and \
                rpx_tx_turn(&bus.tx, self.src, self.peer, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data)):
            bus_flush_tx(bus)
            self.n_sent += 1
            return
        if self.closed:
            raise Closed("the endpoint is closed")
        self.send_object(data, self.peer if self.peer != RPX_ADDR_ANY else self.destination(), timeout)

    def send_to(self, data, dst, *, timeout=None) -> None:
        """As send(), to the address `dst`."""
        cdef uint32_t address = check_address("dst", dst)
        if address == RPX_ADDR_ANY:
            raise ValueError("dst must be an address, not ANY")
        if timeout is not None:
            seconds(timeout)
        if self.closed:
            raise Closed("the endpoint is closed")
        self.send_object(data, address, timeout)

    def try_send(self, data) -> bool:
        """As send(), but False where there is no buffer, or no link, now; then `fileno()` fires when one comes free."""
        cdef Py_buffer view
        cdef Bus bus = self.bus
        cdef int sent = 0, looks
        if self.closed:
            raise Closed("the endpoint is closed")
        cdef uint32_t dst = self.peer if self.peer != RPX_ADDR_ANY else self.destination()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            for looks in range(2):
                bus.check()
                sent = bus_transmit(bus, self.src, dst, <const uint8_t *>view.buf, view.len)
                if sent:
                    bus_flush_tx(bus)
                    self.n_sent += 1
                    break
                if not bus.exposed:
                    bus_tick(bus)
                    break
                bus_service(bus)
                bus_rearm(bus)
                if not bus.up or not rpx_tx_unmute(&bus.tx):
                    bus.tx_wanted = True
                    break
            else:
                bus_want_buffer(bus)
        finally:
            PyBuffer_Release(&view)
        return sent != 0

    def send_many(self, messages, *, timeout=None) -> int:
        """Send every message of a sequence, or every row of a 2-D contiguous array, with few publishes and kicks.

        Returns how many were sent: all, or fewer where `timeout` seconds did not suffice. Errors carry `.sent`.
        """
        cdef Bus bus = self.bus
        cdef Batch batch = None
        cdef Py_ssize_t sent = 0, staged = 0, base = 0
        cdef uint32_t dst
        cdef Waiter w = None
        cdef double limit = seconds(timeout)
        if self.closed:
            raise Closed("the endpoint is closed")
        dst = self.peer if self.peer != RPX_ADDR_ANY else self.destination()
        try:
            bus.check()
            if not is_list_of_bytes(messages):
                batch = Batch(messages)
            else:  # as far as it goes without waiting, no copy of the list is needed
                staged = transmit_list(bus, self, dst, messages)
                if staged == PyList_GET_SIZE(messages):
                    bus_flush_tx(bus)
                    self.n_sent += staged
                    return staged
                base = staged
                batch = Batch(messages[base:])
            while True:
                while staged - base < batch.count and bus_transmit(
                        bus, self.src, dst, batch.data(staged - base), batch.size(staged - base)):
                    staged += 1
                bus_flush_tx(bus)
                self.n_sent += staged - sent
                sent = staged
                if sent - base == batch.count:
                    return sent
                bus_pull(bus)
                if w is None:
                    w = Waiter.start(bus, self, WANTS_BUFFER, limit)
                elif w.expired:
                    return sent
                bus_wait(bus, w)
                if self.closed:
                    raise Closed("the endpoint is closed")
                bus_check_waiter(bus, w)
        except BaseException as error:
            if staged > sent and bus.state == OPEN:
                bus_flush_tx(bus)
                self.n_sent += staged - sent
                sent = staged
            error.sent = sent
            raise
        finally:
            if w is not None:
                bus_leave(bus, w)

    # -- zero copy -----------------------------------------------------------------------------------------------

    def claim(self, size=None, *, timeout=None):
        """A buffer of the link to fill in place: a context manager whose exit sends it. See `Claim`.

        `size`: bytes of the message, 0 to mtu; None: all there is room for. Waits as send(). Raises as send().
        """
        if timeout is not None:
            seconds(timeout)
        if self.closed:
            raise Closed("the endpoint is closed")
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ValueError(f"size must be at least 0, not {size!r}")
        return Claim.take(self, self.peer if self.peer != RPX_ADDR_ANY else self.destination(),
                          -1 if size is None else size, seconds(timeout))

    def hold(self, *, timeout=None):
        """The next message without a copy: a read-only view into the link's memory. See `Hold`. Raises as recv()."""
        cdef rpx_msg msg
        return Hold.take(self, self.await_message(&msg, timeout), &msg)

    # -- the rest ------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that is readable while `try_recv()` may return a message. Belongs to the endpoint.

        Call try_recv() until it returns None: that arms it again, as does any receive call that ends with Timeout.
        After try_send() returned False, or a call that sends ended with Timeout, it is readable too when a buffer
        comes free. Spurious readiness is allowed, lost readiness is not.
        """
        cdef Bus bus = self.bus
        self.usable()
        if self.epoll_fd < 0:
            bus_expose(bus)
            self.event_fd = new_eventfd()
            if self.count:
                signal_fd(self.event_fd)
            self.epoll_fd = new_epoll(bus.doorbell_fd, bus.again_fd, self.event_fd)
        return self.epoll_fd

    def close(self) -> None:
        """Take the endpoint off the bus and withdraw its name. Idempotent. Waiters get Closed."""
        self.bus.remove_endpoint(self)

    @property
    def addr(self) -> int:
        """The local address."""
        return self.src

    @property
    def dst(self):
        """The peer's address, or None while it is not known."""
        return None if self.peer == RPX_ADDR_ANY else self.peer

    @property
    def mtu(self) -> int:
        """Bytes of payload that a message can have; 0 while a device has not seen the driver's buffers yet."""
        return bus_current_mtu(self.bus)

    @property
    def counters(self) -> dict:
        """Messages sent, received (taken by the caller), dropped (overflow="drop"), and waiting in the queue."""
        return {"sent": self.n_sent, "received": self.n_received, "dropped": self.n_dropped, "queued": self.count}


cdef inline bint is_list_of_bytes(object messages):
    cdef Py_ssize_t i
    if not PyList_CheckExact(messages):
        return False
    for i in range(PyList_GET_SIZE(messages)):
        if not PyBytes_CheckExact(<object>PyList_GET_ITEM(messages, i)):
            return False
    return True


@cython.final
cdef class Rows:
    """The rows of recv_into: a writable C-contiguous buffer cut along its first axis, and where lengths go."""
    cdef Py_buffer buf
    cdef Py_buffer lengths
    cdef bint has_buf
    cdef bint has_lengths
    cdef uint8_t *data
    cdef Py_ssize_t count
    cdef Py_ssize_t width

    def __cinit__(self, rows, lengths) -> None:
        PyObject_GetBuffer(rows, &self.buf, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        self.has_buf = True
        if self.buf.ndim < 1 or self.buf.shape[0] < 1 or self.buf.len < self.buf.shape[0]:
            raise ValueError("rows must have at least one row of at least one byte")
        self.data = <uint8_t *>self.buf.buf
        self.count = self.buf.shape[0]
        self.width = self.buf.len // self.count
        if lengths is not None:
            PyObject_GetBuffer(lengths, &self.lengths, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            self.has_lengths = True
            if self.lengths.itemsize not in (2, 4, 8) or self.lengths.len < self.count * self.lengths.itemsize:
                raise ValueError(f"lengths must have {self.count} integers of 2, 4 or 8 bytes")

    def __dealloc__(self) -> None:
        if self.has_buf:
            PyBuffer_Release(&self.buf)
        if self.has_lengths:
            PyBuffer_Release(&self.lengths)

    cdef inline void finish(self, Py_ssize_t i, uint16_t length) noexcept:
        """Row `i` holds a message of `length` bytes: pad it, and write the length down."""
        cdef uint8_t *p
        cdef uint16_t as16 = length
        cdef uint32_t as32 = length
        cdef uint64_t as64 = length
        if length < self.width:
            memset(self.data + i * self.width + length, 0, <size_t>(self.width - length))
        if not self.has_lengths:
            return
        p = <uint8_t *>self.lengths.buf + i * self.lengths.itemsize
        if self.lengths.itemsize == 2:
            memcpy(p, &as16, 2)
        elif self.lengths.itemsize == 4:
            memcpy(p, &as32, 4)
        else:
            memcpy(p, &as64, 8)


@cython.final
cdef class Batch:
    """The messages of send_many, their memory pinned before the first is staged."""
    cdef tuple items
    cdef Py_buffer *buffers
    cdef Py_ssize_t acquired
    cdef const uint8_t *rows
    cdef Py_ssize_t width
    cdef Py_ssize_t count

    def __cinit__(self, messages) -> None:
        cdef Py_ssize_t i
        if PyBytes_CheckExact(messages) or isinstance(messages, (str, bytearray)):
            raise TypeError("send_many takes a sequence of messages, or a 2-D array of rows; use send() for one")
        if not isinstance(messages, (list, tuple)) and PyObject_CheckBuffer(messages):
            self.buffers = <Py_buffer *>malloc(sizeof(Py_buffer))
            if self.buffers == NULL:
                raise MemoryError()
            PyObject_GetBuffer(messages, self.buffers, PyBUF_C_CONTIGUOUS)
            self.acquired = 1
            if self.buffers[0].ndim < 1 or self.buffers[0].shape[0] == self.buffers[0].len:
                raise TypeError("an array given to send_many must have rows of more than one byte")
            self.count = self.buffers[0].shape[0]
            self.width = self.buffers[0].len // self.count if self.count else 0
            self.rows = <const uint8_t *>self.buffers[0].buf
            return
        self.items = tuple(messages)
        self.count = PyTuple_GET_SIZE(self.items)
        for i in range(self.count):
            if not PyBytes_CheckExact(<object>PyTuple_GET_ITEM(self.items, i)):
                break
        else:
            return
        self.buffers = <Py_buffer *>malloc(self.count * sizeof(Py_buffer))
        if self.buffers == NULL:
            raise MemoryError()
        for i in range(self.count):
            PyObject_GetBuffer(<object>PyTuple_GET_ITEM(self.items, i), &self.buffers[i], PyBUF_SIMPLE)
            self.acquired = i + 1

    def __dealloc__(self) -> None:
        cdef Py_ssize_t i
        for i in range(self.acquired):
            PyBuffer_Release(&self.buffers[i])
        free(self.buffers)

    cdef inline const uint8_t *data(self, Py_ssize_t i) noexcept:
        if self.rows != NULL:
            return self.rows + i * self.width
        if self.buffers != NULL:
            return <const uint8_t *>self.buffers[i].buf
        return <const uint8_t *>PyBytes_AS_STRING(<object>PyTuple_GET_ITEM(self.items, i))

    cdef inline Py_ssize_t size(self, Py_ssize_t i) noexcept:
        if self.rows != NULL:
            return self.width
        if self.buffers != NULL:
            return self.buffers[i].len
        return PyBytes_GET_SIZE(<object>PyTuple_GET_ITEM(self.items, i))
