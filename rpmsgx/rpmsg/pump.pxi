# Waiting and waking.
#
# The doorbell is drained in service() only. Whoever drained it goes on until it has seen the rings empty after asking
# for notifications again (unmute, fence, second look), so what arrives later rings again. Where descriptors were
# handed out (`exposed`) notifications stay on, and a thread that stops early leaves again_fd signalled for the others.


cdef int bus_service(Bus bus) except -1:
    """Look at the doorbell: clear it, and see whether the peer has come, gone or reset."""
    if bus.state != OPEN and bus.state != BROKEN:
        return 0
    if not (bus_only_rang(bus) and bus.up and bus_agrees(bus)):
        bus.drain_fd = -1  # it may be closed in drain(), and be a stranger's while another thread is here
        try:
            bus.doorbell.drain()
        except BaseException:
            if bus.state == CLOSED:  # closed under our hands by another thread
                return 0
            raise
        bus_refresh_doorbell(bus)
        bus_session_check(bus, True)
    if bus.exposed:
        clear_fd(bus.again_fd)
    if bus.up:
        if bus.announce:
            bus_flush_announce(bus)
        if (bus.tx_waiters or bus.tx_wanted) and rpx_tx_pending(&bus.tx):
            bus_buffer_free(bus)
    return 0


cdef bint bus_only_rang(Bus bus) noexcept:
    """Clear the doorbell without a Python call, if that is possible. True: rings were all there was."""
    cdef char rings[4096]
    cdef Py_ssize_t size
    if bus.drain_fd < 0:
        return False
    size = recv(bus.drain_fd, rings, sizeof(rings), MSG_DONTWAIT)
    return 0 < size < <Py_ssize_t>sizeof(rings)


cdef int bus_tick(Bus bus) except -1:
    """For callers that only ever look and never wait: look at the doorbell now and then."""
    bus.ticks += 1
    if bus.ticks % TICKS == 0 or not bus.up:
        bus_service(bus)
    return 0


cdef int bus_wait(Bus bus, Waiter w) except -1:
    """Wait until something may have changed for `w`; returns early at will. Sets w.expired past the deadline."""
    if bus.state != OPEN or (w.endpoint is not None and w.endpoint.closed):
        return 0  # while this thread was asking the link, in Python, another one closed it: nobody would wake us
    if w.deadline <= monotonic():
        w.expired = True
        bus_service(bus)
        return 0
    w.stalled = bus.stall_endpoint is not None
    if bus.pump is None:
        bus.pump = w
    if bus.pump is not w:
        if w.wants & WANTS_BUFFER and bus.up and rpx_tx_unmute(&bus.tx):
            return bus_yield(bus)
        return bus_sleep(bus, w)
    if w.stalled and w.deadline == INFINITY and not bus.sleepers and not w.wants & WANTS_BUFFER:
        raise Blocked(f"waiting for ever, while {bus.stall_endpoint!r} is full and stops the bus: read it, or "
                      'create it with overflow="drop"')
    if bus_lost(bus):
        return bus_session_check(bus, False)
    if bus.spin > 0 and bus.up and not w.stalled:
        if not bus.exposed:
            rpx_rx_mute(&bus.rx)  # who looks need not be told
        if bus_spin_for(bus, min(w.deadline, monotonic() + bus.spin)):
            if bus.tx_waiters and bus.up and rpx_tx_pending(&bus.tx):
                bus_wake_wanting(bus, WANTS_BUFFER)  # this thread may not be one of them
            return bus_yield(bus)
    if bus.up:
        if w.stalled:
            rpx_rx_mute(&bus.rx)
        elif rpx_rx_unmute(&bus.rx):
            return bus_yield(bus)
        if (bus.tx_waiters or bus.announce) and rpx_tx_unmute(&bus.tx):
            # Threads that sleep for a buffer are woken; this one goes on only if it is one of them itself.
            if w.wants & WANTS_BUFFER:
                return bus_yield(bus)
            bus_wake_wanting(bus, WANTS_BUFFER)
    return bus_block(bus, w)


cdef int bus_yield(Bus bus) except -1:
    """There is something: look again at once. A peer that never stops keeps neither the interpreter nor Ctrl-C."""
    with nogil:
        pass
    PyErr_CheckSignals()
    return 0


cdef int bus_block(Bus bus, Waiter w) except -1:
    """The pump blocks on the doorbell, without the interpreter's lock."""
    cdef epoll_event events[2]
    cdef double left
    cdef int n, i, error, ms = -1
    cdef bint rang = False
    if w.deadline != INFINITY:
        left = w.deadline - monotonic()
        ms = <int>min(max(left, 0.0) * 1000 + 1, 3.6e6)
    with nogil:
        n = epoll_wait(bus.pump_epoll, events, 2, ms)
        error = errno
    if n < 0:
        if error == EINTR:
            PyErr_CheckSignals()
            return 0
        raise OSError(error, os.strerror(error))
    for i in range(n):
        if events[i].data.fd == bus.wake_fd:
            clear_fd(bus.wake_fd)
        else:
            rang = True
    if bus.state == OPEN or bus.state == BROKEN:
        if rang:
            bus_service(bus)
        elif n == 0 and bus.up and rpx_rx_pending(&bus.rx):
            bus_unrung(bus)
        if bus.up and not bus.exposed:
            rpx_rx_mute(&bus.rx)
    return 0


cdef int bus_unrung(Bus bus) except -1:
    """The wait is over, something is there, and nobody has rung, who was asked to: an interrupt that does not come?"""
    bus.unrung += 1
    if bus.unrung == UNRUNG:
        import logging
        log = logging.getLogger("rpmsgx.bus")
        log.addHandler(logging.NullHandler())
        log.warning("%s: %d waits ended with messages there that nobody had rung for: does the interrupt come "
                    "(/proc/interrupts), and is it this link's?", bus.link.url, UNRUNG)
    return 0


cdef bint bus_spin_for(Bus bus, double until):
    """Look at the rings until one moves or time is up. True: look again."""
    # Copies: another thread may start or end a session meanwhile. `keep` holds the memory.
    cdef list keep = bus.views
    cdef rpx_rx rx = bus.rx
    cdef rpx_tx tx = bus.tx
    cdef rpx_drv drv_rx = bus.drv_rx, drv_tx = bus.drv_tx
    cdef rpx_dev dev_rx = bus.dev_rx, dev_tx = bus.dev_tx
    cdef rpx_packed packed_rx = bus.packed_rx, packed_tx = bus.packed_tx
    cdef bint tx_too = bus.tx_waiters > 0
    cdef bint seen = False
    if rx.drv != NULL:
        rx.drv, tx.drv = &drv_rx, &drv_tx
    elif rx.packed != NULL:
        rx.packed, tx.packed = &packed_rx, &packed_tx
    else:
        rx.dev, tx.dev = &dev_rx, &dev_tx
    with nogil:
        while not seen and monotonic() < until:
            for _ in range(16):
                if rpx_rx_pending(&rx) or (tx_too and rpx_tx_pending(&tx)):
                    seen = True
                    break
    return seen and keep is bus.views


cdef int bus_sleep(Bus bus, Waiter w) except -1:
    """Wait to be woken by another thread."""
    cdef double left = min(w.deadline - monotonic(), 3.6e3)
    cdef long long us = <long long>(max(left, 0.0) * 1e6) + 1
    cdef PyLockStatus rc
    PyList_Append(bus.sleepers, w)
    try:
        with nogil:
            rc = PyThread_acquire_lock_timed(w.lock, us, 1)
    finally:
        bus.sleepers.remove(w)
    if rc == PY_LOCK_ACQUIRED:
        w.woken = False
    elif rc == PY_LOCK_INTR:
        PyErr_CheckSignals()
    return 0


cdef int bus_leave(Bus bus, Waiter w) except -1:
    """A wait is over, however it ended: hand the pump's part on, and leave notifications as they must be."""
    if w.endpoint is not None:
        w.endpoint.waiters -= 1
    if w.wants & WANTS_BUFFER:
        bus.tx_waiters -= 1
    if bus.pump is w:
        bus.pump = None
        if bus.up and bus.tx_waiters == 0 and not bus.exposed:
            rpx_tx_mute(&bus.tx)
    if bus.pump is None and bus.sleepers:
        bus_wake(bus, <Waiter>bus.sleepers[0])
    if bus.exposed:
        if w.expired and w.wants & WANTS_BUFFER:
            bus_want_buffer(bus)
        bus_rearm(bus)
    return 0


cdef int bus_check_waiter(Bus bus, Waiter w) except -1:
    """Raise if what `w` waits for can no longer come."""
    bus.check()
    if w.epoch != bus.epoch:
        raise ChannelRemoved(f"the link went away: {bus.link.gone}")
    return 0


cdef str bus_stall_note(Bus bus, Waiter w):
    if w is None or bus.stall_endpoint is None:
        return ""
    return f"; the bus is stopped by {bus.stall_endpoint!r}, which is full"


cdef void bus_wake(Bus bus, Waiter w) noexcept:
    if w is bus.pump:
        signal_fd(bus.wake_fd)
    elif not w.woken:
        w.woken = True
        PyThread_release_lock(w.lock)


cdef void bus_wake_pump(Bus bus) noexcept:
    if bus.pump is not None:
        signal_fd(bus.wake_fd)


cdef void bus_wake_endpoint(Bus bus, Endpoint ept) noexcept:
    cdef Waiter w
    if ept.waiters == 0:
        return
    if bus.pump is not None and bus.pump.endpoint is ept:
        signal_fd(bus.wake_fd)
    for w in bus.sleepers:
        if w.endpoint is ept:
            bus_wake(bus, w)


cdef void bus_wake_wanting(Bus bus, int wants) noexcept:
    cdef Waiter w
    if bus.pump is not None and bus.pump.wants & wants:
        signal_fd(bus.wake_fd)
    for w in bus.sleepers:
        if w.wants & wants:
            bus_wake(bus, w)


cdef void bus_wake_all(Bus bus) noexcept:
    cdef Waiter w
    cdef Endpoint ept
    if bus.pump is not None:
        signal_fd(bus.wake_fd)
    for w in bus.sleepers:
        bus_wake(bus, w)
    for ept in bus.endpoints.values():
        signal_fd(ept.event_fd)
    signal_fd(bus.pend_fd)


cdef int bus_expose(Bus bus) except -1:
    """A descriptor is handed out: from now on the peer is always asked to ring."""
    if not bus.exposed:
        bus.again_fd = new_eventfd()
        bus.exposed = True
        signal_fd(bus.again_fd)
    return 0


cdef int bus_want_buffer(Bus bus) except -1:
    """Somebody with a descriptor was refused a buffer: have the descriptors fire when one comes free."""
    bus.tx_wanted = True
    if bus.up and bus.state == OPEN and rpx_tx_unmute(&bus.tx):
        bus_buffer_free(bus)
    return 0


cdef void bus_buffer_free(Bus bus) noexcept:
    """A buffer for sending is there: wake threads, and descriptors where somebody asked for that."""
    cdef Endpoint ept
    bus_wake_wanting(bus, WANTS_BUFFER)
    if bus.tx_wanted:
        bus.tx_wanted = False
        signal_fd(bus.pend_fd)
        for ept in bus.endpoints.values():
            signal_fd(ept.event_fd)


cdef int bus_rearm(Bus bus) except -1:
    """Ask for the next ring; if something is there already, leave the descriptors readable."""
    if bus.up and bus.state == OPEN:
        if rpx_rx_unmute(&bus.rx) and bus.stall_endpoint is None:
            signal_fd(bus.again_fd)
    return 0
