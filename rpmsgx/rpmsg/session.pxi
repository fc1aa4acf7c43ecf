# A session: from the driver's DRIVER_OK until a reset, or until one end goes. The link (rpmsgx.virtio.link) knows how
# to tell; it gives plain places (buffer, offset), which are checked and become pointers here and nowhere else.


cdef int bus_refresh_doorbell(Bus bus) except -1:
    bus.kick_fd = bus.doorbell.kick_fd
    bus.kick_socket = bus.doorbell.kick_socket
    bus.drain_fd = bus.doorbell.drain_fd
    return 0


cdef bint bus_agrees(Bus bus) noexcept:
    """Whether the memory says that the session that is there still holds.

    A driver that has set up the rings again before anybody looked shows by used.idx, which only a device writes.
    """
    cdef uint32_t i
    for i in range(bus.n_agreed):
        if rpx_get32(bus.agreed[i].at, False) & bus.agreed[i].mask != bus.agreed[i].value:
            return False
    return bus.rx.dev == NULL or (rpx_ring_used_idx(&bus.dev_rx.ring) == bus.dev_rx.used_pub and
                                  rpx_ring_used_idx(&bus.dev_tx.ring) == bus.dev_tx.used_pub)


cdef bint bus_alive(Bus bus) except -1:
    """Whether the session that is there still holds."""
    return bus_agrees(bus) and bus.link.alive()


cdef int bus_session_check(Bus bus, bint kick) except -1:
    """End the session if the peer ended it; begin one if the peer is ready for it."""
    if bus.checking or (bus.state != OPEN and bus.state != BROKEN):
        return 0
    bus.checking = True
    try:
        if (bus.up or bus.state == BROKEN) and not bus_alive(bus):
            bus_session_over(bus)
        if not bus.up and bus.state == OPEN:
            session = bus.link.session()
            if session is not None and bus.state == OPEN:
                bus_session_start(bus, session, kick)
            elif bus.link.ended and bus.state == OPEN:
                bus_session_over(bus)
    except BaseException:
        if bus.state != CLOSED:  # closed under our hands by another thread
            raise
    finally:
        bus.checking = False
    return 0


cdef int bus_session_start(Bus bus, session, bint kick) except -1:
    bus.views = []
    try:
        bus_session_rings(bus, session)
        bus.session = session
        bus.up = True
        if bus.link.role == "driver" or not bus.exposed:
            rpx_tx_mute(&bus.tx)
        if session.driver_status:  # rings and buffers before the status that says they are there (3.1.1)
            rpx_store8_release(bus_locate(bus, session.status[0], session.status[1], 1), session.driver_status,
                               rpx_kind_order(<rpx_kind>bus.rx.kind))
    except BaseException:
        bus_session_drop(bus)
        raise
    if kick:
        bus_kick(bus, bus.rx_notifyid)
    for ept in bus.endpoints.values():
        if (<Endpoint>ept).announced:
            PyList_Append(bus.announce, ((<Endpoint>ept).name, (<Endpoint>ept).src, False))
    bus_flush_announce(bus)
    bus_wake_all(bus)
    return 0


cdef int bus_session_rings(Bus bus, session) except -1:
    cdef bint driver = bus.link.role == "driver"
    memset(&bus.rx, 0, sizeof(bus.rx))
    memset(&bus.tx, 0, sizeof(bus.tx))
    bus.rx.swap = bus.tx.swap = session.version_1 and RPX_BIG_ENDIAN
    bus.rx.kind = bus.tx.kind = {"cached": RPX_KIND_CACHED, "uncached": RPX_KIND_UNCACHED,
                                 "device": RPX_KIND_DEVICE}[session.kind]
    bus.rx_notifyid = session.rx.notifyid
    bus.tx_notifyid = session.tx.notifyid
    bus.lost = NULL if session.lost is None else bus_locate(bus, session.lost[0], session.lost[1], 1)
    bus.status = NULL
    bus.positions = NULL
    free(bus.arena)
    bus.arena = NULL
    if driver:
        bus_session_pools(bus, session)
    else:
        bus_session_memory(bus, session)
    if session.rx.packed:
        bus_session_packed(bus, session, driver)
    else:
        bus_session_split(bus, session, driver)
    if not bus.exposed:
        rpx_rx_mute(&bus.rx)
    if driver:
        if not session.resume:
            rpx_rx_post(&bus.rx)
            rpx_rx_publish(&bus.rx)
            rpx_tx_start_drv(&bus.tx)
    else:
        bus.posted = rpx_tx_posted(&bus.tx)
        if session.status is not None:
            bus.status = bus_locate(bus, session.status[0], session.status[1], 1)
    bus_session_agreed(bus, session.agreed)
    return 0


cdef int bus_session_pools(Bus bus, session) except -1:
    """The driver's buffers."""
    cdef rpx_pool *pool
    for given, where in ((session.rx_pool, 0), (session.tx_pool, 1)):
        pool = &bus.rx.pool if where == 0 else &bus.tx.pool
        if not BUFFER_MIN <= given.size <= BUFFER_MAX or given.size % 16 != 0 or given.count < 1:
            raise ResourceError(f"{given.count} buffers of {given.size} bytes: sizes are multiples of 16, "
                                f"{BUFFER_MIN} to {BUFFER_MAX}")
        pool.base = bus_locate(bus, given.buffer, given.offset, given.size * given.count)
        pool.addr = given.addr
        pool.size = given.size
        pool.count = given.count
    return 0


cdef int bus_session_memory(Bus bus, session) except -1:
    """What a device can reach."""
    cdef uint32_t i
    free(bus.regions)
    bus.regions = <rpx_region *>calloc(max(1, len(session.regions)), sizeof(rpx_region))
    if bus.regions == NULL:
        raise MemoryError()
    for i, (buffer, offset, address, size) in enumerate(session.regions):
        bus.regions[i].base = bus_locate(bus, buffer, offset, size)
        bus.regions[i].addr = address
        bus.regions[i].len = size
        bus.regions[i].perm = RPX_PERM_READ | RPX_PERM_WRITE
    bus.mem.regions = bus.regions
    bus.mem.count = <uint32_t>len(session.regions)
    bus.rx.mem = bus.tx.mem = &bus.mem
    return 0


cdef void *bus_session_arena(Bus bus, size_t queues, uint32_t spare, bint driver) except NULL:
    """Private memory: `queues` bytes for the two queues, then `spare` words, then a device's scratch. At the first."""
    bus.arena = calloc(1, queues + spare * sizeof(uint32_t) + (0 if driver else SCRATCH))
    if bus.arena == NULL:
        raise MemoryError()
    bus.tx.spare = <uint32_t *>(<uint8_t *>bus.arena + queues)
    if not driver:
        bus.rx.scratch = <uint8_t *>(bus.tx.spare + spare)
        bus.rx.scratch_size = SCRATCH
    return bus.arena


cdef int bus_session_split(Bus bus, session, bint driver) except -1:
    cdef rpx_ring rx, tx
    cdef rpx_drv_slot *slots
    cdef uint32_t *seen
    cdef const char *wrong
    bus_ring_split(bus, session, session.rx, &rx)
    bus_ring_split(bus, session, session.tx, &tx)
    if driver:
        slots = <rpx_drv_slot *>bus_session_arena(bus, (<size_t>rx.num + tx.num) * sizeof(rpx_drv_slot),
                                                  bus.tx.pool.count, driver)
        if not session.resume:
            rpx_ring_zero(&rx)
            rpx_ring_zero(&tx)
        rpx_drv_init(&bus.drv_rx, &rx, slots)
        rpx_drv_init(&bus.drv_tx, &tx, slots + rx.num)
        bus.rx.drv = &bus.drv_rx
        bus.tx.drv = &bus.drv_tx
        if session.resume:
            wrong = rpx_rx_resume(&bus.rx)
            if wrong == NULL:
                wrong = rpx_tx_resume(&bus.tx)
            if wrong != NULL:
                raise ResourceError(f"the rings cannot be taken up: {wrong.decode()}")
    else:
        seen = <uint32_t *>bus_session_arena(bus, (<size_t>rx.num + tx.num) * sizeof(uint32_t), tx.num, driver)
        # A driver may have filled the used ring itself before DRIVER_OK (rpmsg-lite does): go on from there.
        rpx_dev_init(&bus.dev_rx, &rx, seen, session.rx.base,
                     rpx_ring_used_idx(&rx) if session.adopt_used else 0)
        rpx_dev_init(&bus.dev_tx, &tx, seen + rx.num, session.tx.base,
                     rpx_ring_used_idx(&tx) if session.adopt_used else 0)
        bus.rx.dev = &bus.dev_rx
        bus.tx.dev = &bus.dev_tx
        bus.rx.whole = bus.tx.whole = session.whole_used_len
    return 0


cdef int bus_ring_split(Bus bus, session, vring, rpx_ring *ring) except -1:
    cdef rpx_order order = rpx_kind_order(<rpx_kind>bus.rx.kind)
    cdef int rc
    if vring.avail is None:
        base = bus_locate(bus, vring.buffer, vring.offset, rpx_ring_bytes(vring.num, vring.align))
        rc = rpx_ring_init_legacy(ring, base, vring.num, vring.align, order, bus.rx.swap)
    else:
        rc = rpx_ring_init(ring, bus_locate(bus, vring.buffer, vring.offset, 16 * vring.num),
                           bus_locate(bus, vring.avail[0], vring.avail[1], 6 + 2 * vring.num),
                           bus_locate(bus, vring.used[0], vring.used[1], 6 + 8 * vring.num),
                           vring.num, order, bus.rx.swap)
    if rc != 0:
        raise ResourceError(f"vring of {vring.num} descriptors, align {vring.align}, at offset "
                            f"{vring.offset:#x}: not a legal ring")
    ring.event_idx = session.event_idx
    ring.indirect = session.indirect
    return 0


cdef int bus_session_packed(Bus bus, session, bint driver) except -1:
    cdef rpx_packed_ring rx, tx
    cdef rpx_packed_buf *bufs
    bus_ring_packed(bus, session, session.rx, &rx)
    bus_ring_packed(bus, session, session.tx, &tx)
    bufs = <rpx_packed_buf *>bus_session_arena(bus, (<size_t>rx.num + tx.num) * sizeof(rpx_packed_buf),
                                               bus.tx.pool.count if driver else tx.num, driver)
    if driver:
        rpx_packed_ring_zero(&rx)
        rpx_packed_ring_zero(&tx)
    # What a device before this one had taken and not given back is taken again.
    rpx_packed_init(&bus.packed_rx, &rx, bufs, not driver, session.rx.base >> 16)
    rpx_packed_init(&bus.packed_tx, &tx, bufs + rx.num, not driver, session.tx.base >> 16)
    bus.rx.packed = &bus.packed_rx
    bus.tx.packed = &bus.packed_tx
    if session.positions is not None:
        bus.positions = <uint32_t *>bus_locate(bus, session.positions[0], session.positions[1], 8)
    return 0


cdef int bus_ring_packed(Bus bus, session, vring, rpx_packed_ring *ring) except -1:
    if rpx_packed_ring_init(ring, bus_locate(bus, vring.buffer, vring.offset, 16 * vring.num),
                            bus_locate(bus, vring.avail[0], vring.avail[1], 4),
                            bus_locate(bus, vring.used[0], vring.used[1], 4),
                            vring.num, rpx_kind_order(<rpx_kind>bus.rx.kind), bus.rx.swap) != 0:
        raise ResourceError(f"packed vring of {vring.num} descriptors at offset {vring.offset:#x}: not a legal ring")
    ring.event_idx = session.event_idx
    ring.indirect = session.indirect
    return 0


cdef int bus_session_agreed(Bus bus, tuple agreed) except -1:
    cdef uint32_t i
    free(bus.agreed)
    bus.agreed = <Word *>calloc(max(1, len(agreed)), sizeof(Word))
    if bus.agreed == NULL:
        raise MemoryError()
    for i, (buffer, offset, mask, value) in enumerate(agreed):
        bus.agreed[i] = Word(<const rpx_w32 *>bus_locate(bus, buffer, offset, 4), mask, value)
    bus.n_agreed = <uint32_t>len(agreed)
    return 0


cdef uint8_t *bus_locate(Bus bus, object buffer, uint64_t offset, uint64_t size) except NULL:
    """A pointer to [offset, offset + size) of a writable buffer, which stays exported while the session lasts."""
    cdef object view = memoryview(buffer)
    cdef Py_buffer *b = PyMemoryView_GET_BUFFER(view)
    if b.readonly or not view.c_contiguous:
        raise ResourceError("the memory of a link must be writable and contiguous")
    if size > <uint64_t>b.len or offset > <uint64_t>b.len - size:
        raise ResourceError(f"{size:#x} bytes at offset {offset:#x} do not fit the {b.len:#x} bytes of their "
                            "memory")
    PyList_Append(bus.views, view)
    return <uint8_t *>b.buf + offset


cdef int bus_session_over(Bus bus) except -1:
    """The peer went, or reset: channels go, learned addresses are forgotten, waiters get ChannelRemoved."""
    cdef Channel channel
    cdef Endpoint ept
    bus_session_drop(bus)
    if bus.state == OPEN or bus.state == BROKEN:
        bus.state = OPEN
        if bus.link.ended:
            bus.state = DEAD
            bus.kick_fd = bus.drain_fd = -1
            bus.link.hang_up()  # the peer may have touched nothing that is missing: it shall know all the same
    bus.epoch += 1
    for channel in list(bus.channel_list):
        bus_channel_remove(bus, channel)
    for ept in bus.endpoints.values():
        if not ept.peer_fixed:
            ept.peer = RPX_ADDR_ANY
    bus_wake_all(bus)
    return 0


cdef int bus_session_drop(Bus bus) except -1:
    # The memory stays exported as long as somebody else holds the list: a loan, or a thread that spins.
    bus.up = False
    bus.n_agreed = 0
    bus.status = NULL
    bus.lost = NULL
    if bus.positions != NULL:
        bus.positions[0], bus.positions[1] = bus.packed_rx.pub, bus.packed_tx.pub
        bus.positions = NULL
    bus.views = []
    bus.session = None
    bus.announce = []
    return 0


cdef inline bint bus_lost(Bus bus) noexcept:
    return bus.lost != NULL and rpx_load8(bus.lost) != 0


cdef int bus_check_lost(Bus bus) except -1:
    """After a copy out of the link's memory, and after a publish: raise if what was touched was not there any more."""
    if bus_lost(bus):
        bus_session_check(bus, False)
        raise ChannelRemoved(f"the link went away: {bus.link.gone}")
    return 0


cdef int bus_peer_broke(Bus bus, int error) except -1:
    """A ring call returned `error`. Raises PeerError, unless it was a reset seen half way."""
    cdef uint64_t epoch = bus.epoch
    if not bus_alive(bus):
        if bus.epoch == epoch:
            bus_session_over(bus)
        return 0
    if bus.epoch != epoch or bus.state != OPEN:
        return 0
    bus.state = BROKEN
    if bus.rx.packed != NULL:
        bus.broken_text, bus.broken_rule = rpx_packed_error_text(error).decode(), rpx_packed_error_rule(error).decode()
    else:
        bus.broken_text, bus.broken_rule = rpx_error_text(error).decode(), rpx_error_rule(error).decode()
    bus.up = False
    bus.link.needs_reset()
    bus_wake_all(bus)
    raise PeerError(bus.broken_text, bus.broken_rule)
