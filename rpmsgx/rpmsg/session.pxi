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
        if bus.rx.drv != NULL:
            rpx_drv_mute(&bus.drv_tx)
        elif not bus.exposed:
            rpx_dev_mute(&bus.dev_tx)
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
    cdef rpx_ring rx, tx
    cdef int rc
    cdef bint swap = session.version_1 and RPX_BIG_ENDIAN
    cdef uint8_t kind = {"cached": RPX_KIND_CACHED, "uncached": RPX_KIND_UNCACHED,
                         "device": RPX_KIND_DEVICE}[session.kind]
    for vring, where in ((session.rx, 0), (session.tx, 1)):
        ring = &rx if where == 0 else &tx
        if vring.avail is None:
            base = bus_locate(bus, vring.buffer, vring.offset, rpx_ring_bytes(vring.num, vring.align))
            rc = rpx_ring_init_legacy(ring, base, vring.num, vring.align, rpx_kind_order(<rpx_kind>kind), swap)
        else:
            rc = rpx_ring_init(ring, bus_locate(bus, vring.buffer, vring.offset, 16 * vring.num),
                               bus_locate(bus, vring.avail[0], vring.avail[1], 6 + 2 * vring.num),
                               bus_locate(bus, vring.used[0], vring.used[1], 6 + 8 * vring.num),
                               vring.num, rpx_kind_order(<rpx_kind>kind), swap)
        if rc != 0:
            raise ResourceError(f"vring of {vring.num} descriptors, align {vring.align}, at offset "
                                f"{vring.offset:#x}: not a legal ring")
        ring.event_idx = session.event_idx
        ring.indirect = session.indirect
    bus.rx_notifyid = session.rx.notifyid
    bus.tx_notifyid = session.tx.notifyid
    memset(&bus.rx, 0, sizeof(bus.rx))
    memset(&bus.tx, 0, sizeof(bus.tx))
    bus.rx.swap = bus.tx.swap = swap
    bus.rx.kind = bus.tx.kind = kind
    bus.lost = NULL if session.lost is None else bus_locate(bus, session.lost[0], session.lost[1], 1)
    free(bus.arena)
    bus.arena = NULL
    if bus.link.role == "driver":
        bus_session_driver(bus, session, &rx, &tx)
    else:
        bus_session_device(bus, session, &rx, &tx)
    bus_session_agreed(bus, session.agreed)
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


cdef int bus_session_driver(Bus bus, session, rpx_ring *rx, rpx_ring *tx) except -1:
    cdef rpx_drv_slot *slots
    cdef rpx_pool *pool
    cdef const char *wrong
    for given, where in ((session.rx_pool, 0), (session.tx_pool, 1)):
        pool = &bus.rx.pool if where == 0 else &bus.tx.pool
        if not BUFFER_MIN <= given.size <= BUFFER_MAX or given.size % 16 != 0 or given.count < 1:
            raise ResourceError(f"{given.count} buffers of {given.size} bytes: sizes are multiples of 16, "
                                f"{BUFFER_MIN} to {BUFFER_MAX}")
        pool.base = bus_locate(bus, given.buffer, given.offset, given.size * given.count)
        pool.addr = given.addr
        pool.size = given.size
        pool.count = given.count
    bus.arena = calloc(1, (<size_t>rx.num + tx.num) * sizeof(rpx_drv_slot) +
                       bus.tx.pool.count * sizeof(uint32_t))
    if bus.arena == NULL:
        raise MemoryError()
    slots = <rpx_drv_slot *>bus.arena
    bus.tx.spare = <uint32_t *>(slots + rx.num + tx.num)
    if not session.resume:
        rpx_ring_zero(rx)
        rpx_ring_zero(tx)
    rpx_drv_init(&bus.drv_rx, rx, slots)
    rpx_drv_init(&bus.drv_tx, tx, slots + rx.num)
    bus.rx.drv = &bus.drv_rx
    bus.tx.drv = &bus.drv_tx
    bus.status = NULL
    if session.resume:
        wrong = rpx_rx_resume(&bus.rx)
        if wrong == NULL:
            wrong = rpx_tx_resume(&bus.tx)
        if wrong != NULL:
            raise ResourceError(f"the rings cannot be taken up: {wrong.decode()}")
    if not bus.exposed:
        rpx_drv_mute(&bus.drv_rx)
    if not session.resume:
        rpx_rx_post(&bus.rx)
        rpx_rx_publish(&bus.rx)
        rpx_tx_start_drv(&bus.tx)
    return 0


cdef int bus_session_device(Bus bus, session, rpx_ring *rx, rpx_ring *tx) except -1:
    cdef uint32_t scratch = 65536 + RPX_HDR
    cdef uint32_t *words
    cdef uint32_t i
    free(bus.regions)
    bus.regions = <rpx_region *>calloc(max(1, len(session.regions)), sizeof(rpx_region))
    bus.arena = calloc(1, (<size_t>rx.num + 2 * <size_t>tx.num) * sizeof(uint32_t) + scratch)
    if bus.arena == NULL or bus.regions == NULL:
        raise MemoryError()
    for i, (buffer, offset, address, size) in enumerate(session.regions):
        bus.regions[i].base = bus_locate(bus, buffer, offset, size)
        bus.regions[i].addr = address
        bus.regions[i].len = size
        bus.regions[i].perm = RPX_PERM_READ | RPX_PERM_WRITE
    bus.mem.regions = bus.regions
    bus.mem.count = <uint32_t>len(session.regions)
    words = <uint32_t *>bus.arena
    # A driver may have filled the used ring itself before DRIVER_OK (rpmsg-lite does): go on from there.
    rpx_dev_init(&bus.dev_rx, rx, words, session.rx.base, rpx_ring_used_idx(rx) if session.adopt_used else 0)
    rpx_dev_init(&bus.dev_tx, tx, words + rx.num, session.tx.base, rpx_ring_used_idx(tx) if session.adopt_used else 0)
    bus.tx.spare = words + rx.num + tx.num
    bus.rx.scratch = <uint8_t *>(words + rx.num + 2 * <size_t>tx.num)
    bus.rx.scratch_size = scratch
    bus.rx.dev = &bus.dev_rx
    bus.tx.dev = &bus.dev_tx
    bus.rx.mem = bus.tx.mem = &bus.mem
    bus.rx.whole = bus.tx.whole = session.whole_used_len
    if not bus.exposed:
        rpx_dev_mute(&bus.dev_rx)
    bus.first_avail = rpx_idx_diff(rpx_ring_avail_idx(tx), bus.dev_tx.used_idx)
    bus.status = NULL if session.status is None else bus_locate(bus, session.status[0], session.status[1], 1)
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
    bus.broken_text = rpx_error_text(error).decode()
    bus.broken_rule = rpx_error_rule(error).decode()
    bus.up = False
    bus.link.needs_reset()
    bus_wake_all(bus)
    raise PeerError(bus.broken_text, bus.broken_rule)
