# From a caller's buffer to the ring.


cdef uint32_t bus_current_mtu(Bus bus) except? 0xffffffff:
    """The room in the next buffer; a device reads it off the buffer that the driver posted."""
    cdef rpx_txbuf buf
    cdef int rc
    buf.token = 0
    if bus.up and bus.tx.room == 0:
        rc = rpx_tx_get(&bus.tx, &buf)
        if rc < 0:
            bus_peer_broke(bus, rc)
        elif rc == RPX_TX_BUFFER:
            rpx_tx_unget(&bus.tx, &buf)
    return bus.tx.room


cdef inline bint bus_can_transmit(Bus bus) noexcept:
    """Whether the link is up, as far as this end can see without asking it."""
    return bus.up and (bus.status == NULL or rpx_load8(bus.status) & RPX_STATUS_DRIVER_OK != 0)


cdef inline int bus_transmit(Bus bus, uint32_t src, uint32_t dst, const uint8_t *data, Py_ssize_t size) except -1:
    """Stage one message. 1: staged, flush_tx() sends it. 0: no buffer, or no link, now. Raises MessageSize."""
    cdef int rc
    if not bus_can_transmit(bus):
        return bus_transmit_down(bus)
    rc = rpx_tx_send(&bus.tx, src, dst, data, <size_t>size)
    if rc == RPX_TX_BUFFER:
        return 1
    return bus_transmit_failed(bus, rc, size)


cdef int bus_transmit_down(Bus bus) except -1:
    if bus.up:
        bus_session_check(bus, True)
    return 0


cdef int bus_transmit_failed(Bus bus, int rc, Py_ssize_t size) except -1:
    if rc < 0:
        bus_peer_broke(bus, rc)
        return 0
    bus_flush_tx(bus)  # buffers too short to use may have been given back
    if rc == RPX_TX_LONG or (bus.tx.room and size > <Py_ssize_t>bus.tx.room):
        raise MessageSize(f"a message of {size} bytes; this link carries at most {bus.tx.room}")
    return 0


cdef inline int bus_flush_tx(Bus bus) except -1:
    if bus.up and rpx_tx_publish(&bus.tx):
        bus_kick(bus, bus.tx_notifyid)
    return bus_check_lost(bus)


cdef int bus_flush_announce(Bus bus) except -1:
    """Send the name-service messages that are due, as far as there are buffers; the rest waits for the next look."""
    cdef rpx_rpmsg_ns ns
    cdef bint sent = False
    if not bus.up:
        return 0
    if not bus.session.name_service:
        bus.announce = []
        return 0
    while bus.announce:
        name, address, destroy = bus.announce[0]
        rpx_ns_encode(&ns, encode_name(name), address, destroy, bus.tx.swap)
        try:
            if not bus_transmit(bus, address, RPX_ADDR_NS, <const uint8_t *>&ns, sizeof(ns)):
                break
            sent = True
        except MessageSize:  # this driver's buffers cannot hold it
            bus.drops.ns_too_long += 1
        if bus.announce:
            bus.announce.pop(0)
    if sent:
        bus_flush_tx(bus)
    return 0


cdef int bus_kick(Bus bus, uint32_t notifyid) except -1:
    cdef uint64_t one = 1
    bus.kicks += 1
    if bus.kick_fd < 0:
        bus.doorbell.kick(notifyid)
    elif bus.kick_socket:
        send(bus.kick_fd, &one, 1, MSG_DONTWAIT | MSG_NOSIGNAL)  # full: it rings already; gone: drain() finds out
    else:
        c_write(bus.kick_fd, &one, 8)
    return 0


cdef uint32_t bus_outstanding(Bus bus) noexcept:
    """Messages that were sent and that the peer has not taken yet, as far as this role can see."""
    return rpx_tx_outstanding(&bus.tx, bus.posted) if bus.up else 0


cdef int bus_linger(Bus bus, double deadline) except -1:
    """Wait until the peer has taken everything, the deadline passes, or the peer is not there."""
    cdef epoll_event event
    cdef int ms
    cdef double left
    while bus_outstanding(bus) and bus.up and bus.link.present():
        left = deadline - monotonic()
        if left <= 0:
            break
        rpx_tx_unmute(&bus.tx)
        ms = <int>min(left * 1000 + 1, 5.0)
        if bus_outstanding(bus):
            with nogil:
                epoll_wait(bus.pump_epoll, &event, 1, ms)
            PyErr_CheckSignals()
            bus_service(bus)
    return 0
