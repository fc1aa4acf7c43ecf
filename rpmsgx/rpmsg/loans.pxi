# Zero copy: a buffer of the link on loan. A loan counts the views of it that are alive (exports). Ending it while
# there are any raises BufferError; when the last dies, a buffer whose loan has ended goes back by itself.
# Device memory takes aligned accesses only, so there the loan is of a private copy.

cdef enum:  # phases of a loan
    LENT = 0
    ENDED = 1


cdef inline bint loan_is_live(Endpoint ept, list keep, uint64_t epoch) noexcept:
    """Whether the buffer still belongs to a ring that is up. The memory itself is there as long as `keep` is."""
    return ept.bus.up and ept.bus.state == OPEN and ept.bus.epoch == epoch and ept.bus.views is keep


@cython.final
cdef class Claim:
    """A buffer to fill in place. `with endpoint.claim(4) as buffer: buffer[:4] = b"..."` sends on leaving the block.

    Behaves as a writable memoryview of exactly `size` bytes (indexing, slices, len, the buffer protocol). An exception
    in the block sends nothing and the buffer is used again. The peer can see the bytes before they are sent, except in
    device memory, where a copy of zeros is filled and then sent.
    """

    def __init__(self) -> None:
        raise TypeError("made by Endpoint.claim()")

    @staticmethod
    cdef Claim take(Endpoint ept, uint32_t dst, Py_ssize_t size, double timeout):
        cdef Bus bus = ept.bus
        cdef Claim claim = Claim.__new__(Claim)
        cdef Waiter w = None
        cdef int rc
        claim.endpoint = ept
        claim.dst = dst
        claim.phase = ENDED
        try:
            while True:
                if ept.closed:
                    raise Closed("the endpoint is closed")
                bus.check()
                rc = rpx_tx_get(&bus.tx, &claim.buf) if bus.up else RPX_TX_NONE
                if rc == RPX_TX_BUFFER:
                    if size > <Py_ssize_t>claim.buf.cap:
                        rpx_tx_unget(&bus.tx, &claim.buf)
                        raise MessageSize(f"a message of {size} bytes; this link carries at most {claim.buf.cap}")
                    claim.size = <Py_ssize_t>claim.buf.cap if size < 0 else size
                    claim.phase = LENT
                    claim.epoch = bus.epoch
                    claim.keep = bus.views
                    claim.data = claim.buf.data
                    if bus.tx.kind == RPX_KIND_DEVICE:
                        claim.private = bytearray(claim.size)
                        claim.data = claim.private
                    return claim
                if rc < 0:
                    bus_peer_broke(bus, rc)
                bus_pull(bus)
                if w is None:
                    w = Waiter.start(bus, ept, WANTS_BUFFER, timeout)
                elif w.expired:
                    raise Timeout(f"the peer gave no buffer back within {timeout:g} s{bus_stall_note(bus, w)}")
                bus_wait(bus, w)
                if not ept.closed:
                    bus_check_waiter(bus, w)
        finally:
            if w is not None:
                bus_leave(bus, w)

    def __dealloc__(self) -> None:
        # No views are left: they would keep this object alive. An unfinished claim gives its buffer back.
        if self.phase == LENT and self.endpoint is not None and \
                loan_is_live(self.endpoint, self.keep, self.epoch):
            rpx_tx_unget(&self.endpoint.bus.tx, &self.buf)

    def __reduce__(self):
        raise TypeError("a claim cannot be pickled")

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def commit(self, n=None) -> None:
        """Send the first `n` bytes (None: all). Does nothing the second time. Raises BufferError while views live."""
        cdef Endpoint ept = self.endpoint
        cdef Bus bus = ept.bus
        cdef Py_ssize_t size = self.size if n is None else n
        cdef int rc
        if self.phase == ENDED:
            return
        if not 0 <= size <= self.size:
            raise ValueError(f"n must be 0 to {self.size}, not {n!r}")
        if self.exports:
            raise BufferError(f"{self.exports} views of this buffer are alive: release them before it is sent")
        if ept.closed:
            self.discard()
            raise Closed("the endpoint is closed")
        bus.check()
        self.phase = ENDED
        if not loan_is_live(ept, self.keep, self.epoch):
            self.keep = None
            raise ChannelRemoved(f"the link went away: {bus.link.gone}")
        self.keep = None
        if self.private is not None:
            rpx_copy_to(self.buf.data, self.data, <size_t>size, RPX_KIND_DEVICE)
        rc = rpx_tx_put(&bus.tx, &self.buf, ept.src, self.dst, <uint32_t>size)
        if rc < 0:
            bus_peer_broke(bus, rc)
        ept.n_sent += 1
        bus_flush_tx(bus)

    def discard(self) -> None:
        """Send nothing; the buffer is used again. Does nothing after the end. Raises BufferError while views live."""
        if self.phase == ENDED:
            return
        if self.exports:
            raise BufferError(f"{self.exports} views of this buffer are alive: release them first")
        self.phase = ENDED
        if loan_is_live(self.endpoint, self.keep, self.epoch):
            rpx_tx_unget(&self.endpoint.bus.tx, &self.buf)
            bus_buffer_free(self.endpoint.bus)
        self.keep = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __setitem__(self, key, value) -> None:
        memoryview(self)[key] = value

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.phase == ENDED:
            raise BufferError("this buffer was sent or given back")
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1


@cython.final
cdef class Hold:
    """A received message, read-only and in place. `with endpoint.hold() as view: ...` gives it back on leaving.

    Behaves as a read-only memoryview (indexing, slices, len, the buffer protocol). The peer can still change the bytes
    of a message that lies in shared memory: copy what must not change. `src` is the sender's address.
    """

    def __init__(self) -> None:
        raise TypeError("made by Endpoint.hold()")

    @staticmethod
    cdef Hold take(Endpoint ept, int how, rpx_msg *msg):
        cdef Hold hold = Hold.__new__(Hold)
        cdef uint32_t src
        hold.endpoint = ept
        # Memory that can go, and device memory, are lent as a copy.
        if how == MINE and not msg.copied and ept.bus.lost == NULL and ept.bus.rx.kind != RPX_KIND_DEVICE:
            hold.data = msg.data
            hold.size = msg.len
            hold.src = msg.src
            hold.token = msg.token
            hold.epoch = ept.bus.epoch
            hold.keep = ept.bus.views
            ept.n_received += 1
        else:
            hold.private = ept.receive(how, msg, &src)
            hold.data = <const uint8_t *>PyBytes_AS_STRING(hold.private)
            hold.size = PyBytes_GET_SIZE(hold.private)
            hold.src = src
            bus_flush_rx(ept.bus)
        return hold

    def __dealloc__(self) -> None:
        if self.phase == LENT:
            self.give_back()

    cdef void give_back(self) noexcept:
        cdef Bus bus
        self.phase = ENDED
        if self.private is None and self.endpoint is not None and \
                loan_is_live(self.endpoint, self.keep, self.epoch):
            bus = self.endpoint.bus
            rpx_rx_done(&bus.rx, self.token)
            if rpx_rx_publish(&bus.rx):
                bus_kick(bus, bus.rx_notifyid)
        self.keep = None

    def __reduce__(self):
        raise TypeError("a held message cannot be pickled")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.release()

    def release(self) -> None:
        """Give the buffer back to the peer. Does nothing the second time. Raises BufferError while views are alive;
        the buffer then goes back when the last of them dies."""
        if self.phase == ENDED:
            return
        if self.exports:
            raise BufferError(f"{self.exports} views of this message are alive: it goes back when the last one dies")
        self.give_back()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __bytes__(self) -> bytes:
        return bytes(memoryview(self))

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.phase == ENDED:
            raise BufferError("this message was given back")
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
