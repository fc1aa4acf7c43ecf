# From the ring to an endpoint.


cdef inline int bus_step(Bus bus, Endpoint want, rpx_msg *msg) except -1:
    """One message off the ring.

    MINE: it is for `want` and in *msg; the caller, who knows that its queue is empty, takes it and calls bus_done().
    OTHER: it was queued, handled or dropped. EMPTY: there was none. STALLED: the endpoint it is for is full.
    """
    cdef int rc
    if not bus.up:
        return EMPTY
    if bus.stall_endpoint is not None and not bus_unstall(bus):
        return STALLED
    rc = rpx_rx_next(&bus.rx, msg)
    if rc == RPX_RX_MESSAGE and msg.dst == want.src:
        if want.peer == RPX_ADDR_ANY:
            want.peer = msg.src
        return MINE
    return bus_step_other(bus, rc, msg)


cdef int bus_step_other(Bus bus, int rc, rpx_msg *msg) except -1:
    """What rpx_rx_next() gave, where nobody is waiting for it in this call: OTHER, EMPTY or STALLED."""
    if rc == RPX_RX_MESSAGE:
        return bus_route(bus, msg)
    if rc == RPX_RX_EMPTY:
        if (bus.status != NULL and rpx_load8(bus.status) & RPX_STATUS_DRIVER_OK == 0) or bus_lost(bus):
            bus_session_check(bus, True)
        return EMPTY
    if rc < 0:
        bus_peer_broke(bus, rc)
        return EMPTY
    if rc == RPX_RX_SHORT:
        bus.drops.short_ += 1
    else:
        bus.drops.length += 1
    return OTHER


cdef int bus_route(Bus bus, rpx_msg *msg) except -1:
    """A message that nobody is waiting for in this call: queue it, or drop it and count why."""
    cdef Endpoint ept = bus.last
    cdef PyObject *found
    cdef PyObject *data
    if msg.dst == RPX_ADDR_NS:
        if msg.len == 40:
            rpx_copy_from(bus.ns_message, msg.data, 40, <rpx_kind>bus.rx.kind)
            bus.ns_src = msg.src
            bus_check_lost(bus)
            bus_done(bus, msg)
            bus_name_service(bus)
        else:
            bus.drops.ns_malformed += 1
            bus_done(bus, msg)
        return OTHER
    if ept is None or ept.src != msg.dst:
        found = addrmap_get(&bus.map, msg.dst)
        if found == NULL:
            bus.drops.no_endpoint += 1
            bus_done(bus, msg)
            return OTHER
        ept = <Endpoint>found
        bus.last = ept
    if ept.count >= ept.limit and ept.drop_overflow:
        ept.lost += 1
        ept.n_dropped += 1
        bus_done(bus, msg)
        return OTHER
    data = PyBytes_FromStringAndSize_raw(NULL, msg.len)
    if data == NULL:
        bus_done(bus, msg)
        raise MemoryError()
    rpx_copy_from(PyBytes_AS_STRING(<object>data), msg.data, msg.len, <rpx_kind>bus.rx.kind)
    if bus_lost(bus):
        Py_DECREF(<object>data)
        bus_check_lost(bus)
    if ept.count >= ept.limit:
        bus.stall_endpoint = ept
        bus.stall_data = <bytes>data
        Py_DECREF(<object>data)
        bus.stall_src = msg.src
        bus.stalls += 1
        bus_done(bus, msg)
        return STALLED
    ept.enqueue(data, msg.src)
    bus_done(bus, msg)
    return OTHER


cdef int bus_unstall(Bus bus) except -1:
    """Deliver the message that stops the bus, if its endpoint has room again. True: the bus goes on."""
    cdef Endpoint ept = bus.stall_endpoint
    if ept.count >= ept.limit:
        return 0
    Py_INCREF(bus.stall_data)
    ept.enqueue(<PyObject *>bus.stall_data, bus.stall_src)
    bus.stall_endpoint = None
    bus.stall_data = None
    return 1


cdef int bus_pull(Bus bus) except -1:
    """Empty the ring into the endpoints' queues. Bounded: a peer that never stops does not keep us here."""
    cdef rpx_msg msg
    cdef uint32_t budget
    if not bus.up:
        return 0
    budget = 2 * rpx_rx_num(&bus.rx)
    while budget > 0 and bus.up and (bus.stall_endpoint is None or bus_unstall(bus)):
        budget -= 1
        if bus_step_other(bus, rpx_rx_next(&bus.rx, &msg), &msg) != OTHER:
            break
    bus_flush_rx(bus)
    if bus.announce:
        bus_flush_announce(bus)
    return 0


cdef inline int bus_done(Bus bus, rpx_msg *msg) except -1:
    """Give a message's buffer back; the peer sees it after flush_rx()."""
    cdef int rc = rpx_rx_done(&bus.rx, msg.token)
    if rc < 0:
        bus_peer_broke(bus, rc)
    return 0


cdef inline int bus_flush_rx(Bus bus) except -1:
    if bus.up and rpx_rx_publish(&bus.rx):
        bus_kick(bus, bus.rx_notifyid)
    return 0


cdef int bus_name_service(Bus bus) except -1:
    """A message to address 53: 40 bytes, copied to ns_message, so nobody can change it any more."""
    cdef rpx_rpmsg_ns *ns = <rpx_rpmsg_ns *>bus.ns_message
    cdef uint32_t length = rpx_ns_name_len(ns)
    cdef uint32_t address = rpx_get32(&ns.addr, bus.rx.swap)
    cdef bint destroy = rpx_get32(&ns.flags, bus.rx.swap) & RPX_NS_DESTROY
    cdef Channel channel
    cdef Endpoint ept
    if length == 0 or address == RPX_ADDR_ANY:
        bus.drops.ns_malformed += 1
        return 0
    name = PyBytes_FromStringAndSize(<const char *>ns.name, length).decode("utf-8", "backslashreplace")
    for channel in bus.channel_list:
        if channel.addr == address and channel.name == name:
            if destroy:
                bus_channel_remove(bus, channel)
            else:
                bus.drops.ns_duplicate += 1
            return 0
    if destroy:
        bus.drops.ns_unknown += 1
        return 0
    if len(bus.channel_list) >= MAX_CHANNELS:
        bus.drops.ns_overflow += 1
        return 0
    bus_channel_add(bus, name, address)
    return 0


cdef Channel bus_channel_add(Bus bus, str name, uint32_t address):
    """A channel comes."""
    cdef Channel channel = Channel.__new__(Channel)
    cdef Endpoint ept
    channel.bus = bus
    channel.name = name
    channel.addr = address
    for ept in bus.endpoints.values():  # one that was announced here under the same name has found its peer
        if ept.announced and ept.peer == RPX_ADDR_ANY and ept.name == name:
            ept.peer = address
            channel.endpoint = ept
            break
    PyList_Append(bus.channel_list, channel)
    PyList_Append(bus.events, (True, channel))
    signal_fd(bus.pend_fd)
    bus_wake_wanting(bus, WANTS_EVENT)
    return channel


cdef int bus_channel_remove(Bus bus, Channel channel) except -1:
    """A channel goes: its endpoint, if it was opened on it, with it; addresses learned from it are forgotten."""
    cdef Endpoint ept
    cdef Py_ssize_t i
    bus.channel_list.remove(channel)
    channel.removed = True
    for ept in bus.endpoints.values():
        if ept.peer == channel.addr and not ept.peer_fixed:
            ept.peer = RPX_ADDR_ANY
    ept = channel.endpoint
    if ept is not None and not ept.announced:
        ept.removed = True
        bus_wake_endpoint(bus, ept)
        signal_fd(ept.event_fd)
    for i in range(<Py_ssize_t>len(bus.events) - 1, -1, -1):
        if bus.events[i][1] is channel:  # nobody was told of it: nobody is told that it went
            del bus.events[i]
            break
    else:
        PyList_Append(bus.events, (False, channel))
        signal_fd(bus.pend_fd)
    bus_wake_wanting(bus, WANTS_EVENT | WANTS_BUFFER)
    return 0
