# cython: auto_pickle=False, autotestdict=False
"""The split virtqueue (VIRTIO 1.2, 2.7) over any writable buffer, in both roles.

    driver = DriverQueue(memory, 16)                    device = DeviceQueue(memory, 16)
    driver.add(out=[(addr, size)], cookie=1)            head = device.pop()
    if driver.publish(): kick()                         data = device.read(head)
    cookie, written = driver.get()                      device.push(head, 0)
                                                        if device.publish(): kick()

Nothing here waits, notifies or starts anything: `publish()` says whether the peer wants to be kicked. What the peer
writes is read once, checked, and used as it was read. A rule that it breaks raises PeerError with the rule's id
(docs/conformance.md), and so does every later call but `close()` and `reset()`.

The objects rely on the GIL and on nothing else: calls of several threads on one queue need a lock around them.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.number cimport PyNumber_Index
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from rpmsgx.rpx cimport (
    RPX_BIG_ENDIAN, RPX_E_DESC_READONLY, RPX_E_FULL, RPX_KIND_CACHED, RPX_KIND_DEVICE,
    RPX_KIND_UNCACHED, RPX_PERM_READ, RPX_PERM_WRITE, RPX_QUEUE_MAX, rpx_chain, rpx_chain_begin, rpx_chain_next,
    rpx_copy_from, rpx_copy_to, rpx_desc, rpx_dev_init, rpx_dev_mute, rpx_dev_pop, rpx_dev_publish, rpx_dev_push,
    rpx_dev_unmute, rpx_drv_add, rpx_drv_add_indirect, rpx_drv_get, rpx_drv_in_flight, rpx_drv_init, rpx_drv_mute,
    rpx_drv_publish, rpx_drv_slot, rpx_drv_unmute, rpx_error_rule, rpx_error_text, rpx_kind, rpx_kind_order, rpx_region,
    rpx_ring_init, rpx_ring_used_offset, rpx_ring_zero, rpx_seg, rpx_sg, rpx_used,
)

from operator import itemgetter

from rpmsgx.errors import Closed, MessageSize, PeerError, StateError

cdef dict KINDS = {"cached": RPX_KIND_CACHED, "uncached": RPX_KIND_UNCACHED, "device": RPX_KIND_DEVICE}


cdef char *BYTES = b"B"  # the format of a flat buffer


cdef object peer_error(int error):
    return PeerError(rpx_error_text(error).decode(), rpx_error_rule(error).decode())


cdef uint64_t number(object value, str name, uint64_t low, uint64_t high) except? 1:
    value = PyNumber_Index(value)
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, not in {low}..{high}")
    return value


cdef uint64_t power_of_two(object value, str name, uint64_t low, uint64_t high) except? 1:
    cdef uint64_t n = number(value, name, low, high)
    if n & (n - 1):
        raise ValueError(f"{name} is {n}, not a power of two")
    return n


cdef class _Pin:
    """An exported buffer, flat. Views are made of it, so that they keep the memory alive."""

    def __cinit__(self, obj, bint writable):
        PyObject_GetBuffer(obj, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE and self.view.readonly:
            raise BufferError("the memory is read-only")
        buffer.obj = self
        buffer.buf = self.view.buf
        buffer.len = self.view.len
        buffer.readonly = self.view.readonly
        buffer.itemsize = 1
        buffer.ndim = 1
        buffer.format = BYTES if flags & PyBUF_FORMAT else NULL
        buffer.shape = &buffer.len if flags & PyBUF_ND else NULL
        buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef _Pin pin_any(object obj):
    """`obj` writable, else read-only."""
    try:
        return _Pin(obj, True)
    except (BufferError, ValueError):  # numpy says ValueError
        return _Pin(obj, False)


cdef class Memory:
    """What descriptors may point at.

    `regions` are pairs (addr, buffer): the address of the buffer's first byte as descriptors give it, 64 bits, and
    a C-contiguous buffer. A device may read and write a writable buffer and only read a read-only one. `exclude`
    are pairs (addr, size) to cut out, such as the ring's own parts. No byte outside and none in two regions can be
    reached, and no descriptor may straddle two regions, even adjacent ones.

    The buffers stay exported as long as the object, a queue made with it, or a view of `DeviceQueue.chain` lives.

    Raises ValueError for a region that leaves 64 bits or overlaps another, TypeError or BufferError for what is no
    contiguous buffer. Immutable, so safe to share between threads.
    """

    def __cinit__(self, regions, *, exclude=()):
        intervals = []
        for addr, buffer in regions:
            pin = pin_any(buffer)
            size = (<_Pin>pin).view.len
            if size:
                intervals.append((number(addr, "region address", 0, UINT64_MAX - (size - 1)), size, pin, 0))
        intervals.sort(key=itemgetter(0))
        for before, after in zip(intervals, intervals[1:]):
            if before[0] + before[1] > after[0]:
                raise ValueError(f"regions overlap: {before[0]:#x} + {before[1]:#x} > {after[0]:#x}")
        for addr, size in exclude:
            low = number(addr, "excluded address", 0, UINT64_MAX)
            high = low + number(size, "excluded size", 0, UINT64_MAX)
            if low < high:
                intervals = [piece for interval in intervals for piece in cut(interval, low, high)]
        self.parts = <rpx_region *>PyMem_Calloc(len(intervals) or 1, sizeof(rpx_region))
        if self.parts == NULL:
            raise MemoryError
        self.pins = []
        for i, (addr, size, pin, offset) in enumerate(intervals):
            self.parts[i].base = <uint8_t *>(<_Pin>pin).view.buf + <size_t>offset
            self.parts[i].addr = addr
            self.parts[i].len = size
            self.parts[i].perm = RPX_PERM_READ if (<_Pin>pin).view.readonly else RPX_PERM_READ | RPX_PERM_WRITE
            self.pins.append(pin)
        self.mem.regions = self.parts
        self.mem.count = <uint32_t>len(intervals)

    def __dealloc__(self):
        PyMem_Free(self.parts)

    @property
    def regions(self):
        """What is left after the exclusions, by address: a list of (addr, size in bytes, writable)."""
        return [(r.addr, r.len, bool(r.perm & RPX_PERM_WRITE)) for r in self.parts[:self.mem.count]]

    cdef object slice(self, const rpx_seg *seg):
        """A memoryview of `seg`, which rpx_mem_at found here."""
        cdef uintptr_t start = <uintptr_t>seg.ptr
        cdef uintptr_t base
        for i in range(self.mem.count):
            base = <uintptr_t>self.parts[i].base
            if base <= start < base + self.parts[i].len:
                break
        else:
            raise SystemError("a segment outside its memory")
        start -= <uintptr_t>(<_Pin>self.pins[i]).view.buf
        view = memoryview(self.pins[i])[start:start + seg.len]
        return view if seg.write or view.readonly else view.toreadonly()

    cdef list views(self, const rpx_seg *segs, uint32_t n):
        return [(self.slice(&segs[i]), bool(segs[i].write)) for i in range(n)]


cdef list cut(tuple interval, low, high):
    """What is left of (addr, size, pin, offset in pin) without [low, high)."""
    addr, size, pin, offset = interval
    end = addr + size
    if high <= addr or end <= low:
        return [interval]
    left = []
    if addr < low:
        left.append((addr, low - addr, pin, offset))
    if high < end:
        left.append((high, end - high, pin, offset + high - addr))
    return left


cdef class Parts:
    """Memory that holds a ring in three parts, split or packed. Not to be made by itself."""

    cdef int locate(self, object buffer, object offset, str kind, tuple parts) except -1:
        """Check and keep where the `parts` lie, each (name, offset, size, alignment)."""
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, not one of {', '.join(KINDS)}")
        pin = _Pin(buffer, True)
        cdef uint64_t room = pin.view.len
        start = number(offset, "offset", 0, room)
        self.parts = []
        for name, place, size, unit in parts:
            place = start + number(place, name + " offset", 0, UINT64_MAX)
            if place + size > room:
                raise ValueError(f"the {name} [{place}, {place + size}) leaves the buffer of {room} bytes")
            if (<uintptr_t>pin.view.buf + place) % unit:
                raise ValueError(f"the {name} at offset {place} is not aligned to {unit} bytes in memory")
            for other, low, high in self.parts:
                if place < high and low < place + size:
                    raise ValueError(f"the {name} [{place}, {place + size}) overlaps the {other} [{low}, {high})")
            self.parts.append((name, place, place + size))
        self.kind = <rpx_kind><int>KINDS[kind]
        self.pin = pin
        return 0

    cdef uint8_t *part(self, int which) except NULL:
        return <uint8_t *>self.pin.view.buf + <size_t>self.parts[which][1]

    cdef int open(self) except -1:
        if self.pin is None:
            raise Closed("the queue is closed")
        return 0

    cdef object array(self, int which, object shape, object fields):
        """The memory of a part."""
        self.open()
        try:
            import numpy
        except ImportError:
            raise ImportError("views of a ring need numpy: pip install rpmsgx[bench]") from None
        return numpy.ndarray(shape, typed(fields, "<" if self.little else "="), memoryview(self.pin),
                             self.parts[which][1])

    cdef uint8_t *table(self, uint64_t offset, uint64_t address, uint64_t size) except NULL:
        """Where an indirect table of the driver's is to be written."""
        cdef uint64_t room = self.pin.view.len
        if offset > room or size > room - offset:
            raise ValueError(f"the table [{offset}, {offset + size}) leaves the buffer of {room} bytes")
        cdef uint8_t *start = <uint8_t *>self.pin.view.buf + offset
        if <uintptr_t>start % 16 or address % 16 or address > UINT64_MAX - (size - 1):
            raise ValueError(f"the table at offset {offset}, address {address:#x} is not aligned to 16 bytes")
        for _, low, high in self.parts:
            if offset < high and low < offset + size:
                raise ValueError(f"the table [{offset}, {offset + size}) overlaps the ring")
        return start

    cdef int reach(self, object memory) except -1:
        """Keep what a device's descriptors may point at."""
        if memory is None:
            memory = Memory([(0, self.pin)], exclude=[(low, high - low) for _, low, high in self.parts])
        if not isinstance(memory, Memory):
            raise TypeError(f"memory is a {type(memory).__name__}, not a Memory")
        self.memory = memory
        return 0

    def close(self):
        """Let go of the memory; every other call raises Closed then. Views that were handed out keep it alive.

        Leaves the ring as it is. Closing twice does nothing.
        """
        self.pin = None
        self.memory = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


cdef class Ring(Parts):
    """Where a split ring lies: what DriverQueue and DeviceQueue have in common. Not to be made by itself."""

    cdef int attach(self, object buffer, object num, object align, object parts, object offset, bint version_1,
                    bint event_idx, bint indirect, str kind) except -1:
        cdef uint32_t n = <uint32_t>power_of_two(num, "num", 1, RPX_QUEUE_MAX)
        if parts is None:
            parts = 0, 16 * n, rpx_ring_used_offset(n, <uint32_t>power_of_two(align, "align", 4, 1 << 30))
        desc, avail, used = parts
        self.locate(buffer, offset, kind, (
            ("descriptor table", desc, 16 * n, 16),
            ("avail ring", avail, 6 + 2 * n, 2),
            ("used ring", used, 6 + 8 * n, 4),
        ))
        if rpx_ring_init(&self.ring, self.part(0), self.part(1), self.part(2), n, rpx_kind_order(self.kind),
                         version_1 and RPX_BIG_ENDIAN):
            raise ValueError("no ring")  # every reason was looked at above
        self.ring.event_idx = event_idx
        self.ring.indirect = indirect
        self.little = version_1
        return 0

    @property
    def num(self):
        """The queue size: descriptors, a power of two from 1 to 32768."""
        return self.ring.num

    @property
    def desc(self):
        """The descriptor table as it lies in memory: an array of `num` records addr, len, flags, next.

        This and the other two arrays are writable views, not copies: what the peer does shows at once, reads of
        several fields are not atomic, and the memory stays exported while one of them lives. Their byte order is
        the ring's. Raises ImportError without numpy, Closed after close().
        """
        return self.array(0, (self.ring.num,),
                          [("addr", "u8"), ("len", "u4"), ("flags", "u2"), ("next", "u2")])

    @property
    def avail(self):
        """The avail ring as it lies in memory: one record flags, idx, ring[num], used_event. See `desc`."""
        return self.array(1, (),
                          [("flags", "u2"), ("idx", "u2"), ("ring", "u2", (self.ring.num,)), ("used_event", "u2")])

    @property
    def used(self):
        """The used ring as it lies in memory: one record flags, idx, ring[num] of id, len, avail_event. See `desc`."""
        return self.array(2, (),
                          [("flags", "u2"), ("idx", "u2"), ("ring", [("id", "u4"), ("len", "u4")], (self.ring.num,)),
                           ("avail_event", "u2")])


cdef list typed(list fields, str order):
    """A numpy dtype's fields in a byte order."""
    return [(name, order + kind if isinstance(kind, str) else typed(kind, order), *shape)
            for name, kind, *shape in fields]


cdef tuple checked(object buffers):
    """Pairs (address, length) of the caller's."""
    pairs = []
    for addr, size in buffers:
        size = number(size, "length", 1, UINT32_MAX)
        pairs.append((number(addr, "address", 0, UINT64_MAX - (size - 1)), size))
    return tuple(pairs)


cdef uint32_t fill(rpx_sg *sg, tuple pairs, uint32_t num) except 0:
    if not 0 < len(pairs) <= num:
        raise ValueError(f"a chain of {len(pairs)} buffers for a queue of {num} descriptors")
    cdef uint32_t n = <uint32_t>len(pairs)
    for i in range(n):
        sg[i].addr, sg[i].len = pairs[i]
    return n


cdef bytes gather(const rpx_seg *segs, uint32_t n, rpx_kind kind):
    """The device-readable bytes of a chain."""
    cdef Py_ssize_t size = 0
    cdef uint32_t i
    for i in range(n):
        if not segs[i].write:
            size += segs[i].len
    data = PyBytes_FromStringAndSize(NULL, size)
    cdef char *to = PyBytes_AS_STRING(data)
    for i in range(n):
        if not segs[i].write:
            rpx_copy_from(to, segs[i].ptr, segs[i].len, kind)
            to += segs[i].len
    return data


cdef bint scatter(const rpx_seg *segs, uint32_t n, rpx_kind kind, _Pin source) except -1:
    """Write `source` to the start of a chain's device-writable bytes; False where there are none."""
    cdef uint64_t left = source.view.len
    cdef uint64_t room = 0
    cdef uint32_t i
    for i in range(n):
        if segs[i].write:
            room += segs[i].len
    if room and left > room:
        raise MessageSize(f"{left} bytes into a chain with {room} device-writable ones")
    cdef const uint8_t *bytes_ = <const uint8_t *>source.view.buf
    cdef uint32_t step
    for i in range(n):
        if left and segs[i].write:
            step = segs[i].len if segs[i].len < left else <uint32_t>left
            rpx_copy_to(segs[i].ptr, bytes_, step, kind)
            bytes_ += step
            left -= step
    return room != 0


cdef class DriverQueue(Ring):
    """The driver's end of a split virtqueue: it offers buffers and gets them back.

    `buffer` is any writable C-contiguous buffer and holds the ring of `num` descriptors (a power of two up to 32768).
    The ring lies at `offset` (bytes) in the legacy layout, its used ring aligned to `align` bytes as seen from there
    (VIRTIO 2.7.2), or where `parts` say: the offsets of descriptor table, avail ring and used ring from `offset`.
    `version_1` rings are little-endian, others have this machine's byte order (2.7.3). `event_idx` and `indirect` say
    that VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated. `kind` is the kind of memory: "cached"
    (coherent with the peer), "uncached" or "device" (both with barriers for devices).

    Making one zeroes the ring's three parts, so it comes before the device's end. Raises ValueError for a ring that
    does not fit, is not aligned or overlaps itself, BufferError or the buffer's own error for memory that cannot be
    written.

    Every call but `reset`, `close` and the properties raises PeerError once the device broke a rule, and every call
    raises Closed after close(). Not thread-safe beyond the GIL.
    """

    def __cinit__(self, buffer, num, *, align=4096, parts=None, offset=0, version_1=False, event_idx=False,
                  indirect=False, kind="cached"):
        self.attach(buffer, num, align, parts, offset, version_1, event_idx, indirect, kind)
        self.slots = <rpx_drv_slot *>PyMem_Calloc(self.ring.num, sizeof(rpx_drv_slot))
        self.sg = <rpx_sg *>PyMem_Calloc(self.ring.num, sizeof(rpx_sg))
        if self.slots == NULL or self.sg == NULL:
            raise MemoryError
        self.reset()

    def __dealloc__(self):
        PyMem_Free(self.slots)
        PyMem_Free(self.sg)

    cdef int ready(self) except -1:
        self.open()
        if self.queue.broken:
            raise peer_error(self.queue.broken)
        return 0

    def add(self, out=(), in_=(), *, cookie=0, table=None):
        """Stage a chain: `out`, buffers for the device to read, then `in_`, buffers for it to write.

        Both are sequences of (address, length in bytes). The device sees the chain after publish(), and get() gives
        `cookie` (32 bits) back. A chain has 1 to `num` buffers of at least one byte, fewer than 2**32 bytes in all,
        and takes as many descriptors.

        `table` = (offset in the ring's buffer, its address) puts the chain into an indirect table there, of 16
        bytes a buffer, aligned to 16 bytes and outside the ring; it takes one descriptor, and belongs to the device
        until the chain is used.

        Raises StateError without enough free descriptors or for a table when indirect was not negotiated, ValueError
        for a chain or table that cannot be.
        """
        cdef uint32_t cookie_ = <uint32_t>number(cookie, "cookie", 0, UINT32_MAX)
        cdef uint64_t offset = 0
        cdef uint64_t address = 0
        if table is not None:
            place, address_ = table
            offset = number(place, "table offset", 0, UINT64_MAX)
            address = number(address_, "table address", 0, UINT64_MAX)
        outs, ins = checked(out), checked(in_)
        self.ready()  # from here on no code of the caller's runs
        cdef uint32_t n = fill(self.sg, outs + ins, self.ring.num)
        cdef int rc
        if table is None:
            rc = rpx_drv_add(&self.queue, self.sg, <uint32_t>len(outs), <uint32_t>len(ins), cookie_)
        else:
            if not self.ring.indirect:
                raise StateError("indirect descriptors were not negotiated (2.7.5.3.1-1)")
            rc = rpx_drv_add_indirect(&self.queue, <rpx_desc *><void *>self.table(offset, address, 16 * n), address,
                                      self.sg, <uint32_t>len(outs), <uint32_t>len(ins), cookie_)
        if rc == RPX_E_FULL:
            raise StateError(f"{1 if table is not None else n} descriptors wanted, {self.queue.num_free} free")
        if rc < 0:
            raise ValueError(f"a chain of {sum([size for _, size in outs + ins])} bytes, more than {UINT32_MAX}")

    def publish(self):
        """Show everything staged to the device. True: it wants a kick."""
        self.ready()
        return bool(rpx_drv_publish(&self.queue))

    def get(self):
        """The next used chain as (cookie, length), length the bytes that the device wrote; None without one.

        The length is at most the bytes of the chain's `in_`, or of `out` where there is no `in_`.
        """
        cdef rpx_used used
        used.cookie = used.len = 0
        self.ready()
        cdef int rc = rpx_drv_get(&self.queue, &used)
        if rc < 0:
            raise peer_error(rc)
        return (used.cookie, used.len) if rc else None

    def mute(self):
        """Advise the device not to notify; it may all the same."""
        self.ready()
        rpx_drv_mute(&self.queue)

    def unmute(self):
        """Ask for a notification at the next used chain. True: there is one already, call get() again before waiting.

        With event_idx a request is good for one notification: ask again before each wait.
        """
        self.ready()
        return bool(rpx_drv_unmute(&self.queue))

    def reset(self):
        """Zero the ring and start over; chains in flight are forgotten. The device must be stopped meanwhile."""
        self.open()
        rpx_ring_zero(&self.ring)
        rpx_drv_init(&self.queue, &self.ring, self.slots)

    @property
    def num_free(self):
        """Free descriptors."""
        return self.queue.num_free

    @property
    def in_flight(self):
        """Chains that were added and not given back by get(), staged ones included."""
        return rpx_drv_in_flight(&self.queue)

    @property
    def broken(self):
        """The id of the rule that the device broke, or None."""
        return rpx_error_rule(self.queue.broken).decode() if self.queue.broken else None


cdef class DeviceQueue(Ring):
    """The device's end of a split virtqueue: it takes buffers, reads or fills them, and gives them back.

    `memory` is what descriptors may point at; the default is the whole buffer, its first byte at address 0, without
    the ring's own parts. A descriptor that points at anything else breaks the queue. `avail_idx` and `used_idx` are
    where to go on in a ring that was used before (16 bits). The other arguments, and errors, as for DriverQueue.

    Making one writes nothing. Every call but `reset`, `close` and the properties raises PeerError once the driver
    broke a rule, and every call raises Closed after close(). Not thread-safe beyond the GIL.
    """

    def __cinit__(self, buffer, num, *, memory=None, align=4096, parts=None, offset=0, version_1=False,
                  event_idx=False, indirect=False, kind="cached", avail_idx=0, used_idx=0):
        self.attach(buffer, num, align, parts, offset, version_1, event_idx, indirect, kind)
        self.reach(memory)
        self.seen = <uint32_t *>PyMem_Calloc(self.ring.num, sizeof(uint32_t))
        self.segs = <rpx_seg *>PyMem_Calloc(self.ring.num, sizeof(rpx_seg))
        if self.seen == NULL or self.segs == NULL:
            raise MemoryError
        rpx_dev_init(&self.queue, &self.ring, self.seen, <uint16_t>number(avail_idx, "avail_idx", 0, 0xffff),
                     <uint16_t>number(used_idx, "used_idx", 0, 0xffff))

    def __dealloc__(self):
        PyMem_Free(self.seen)
        PyMem_Free(self.segs)

    cdef int ready(self) except -1:
        self.open()
        if self.queue.broken:
            raise peer_error(self.queue.broken)
        return 0

    def pop(self):
        """Take the next available chain: its head, for the calls below and to be given back with push(), or None."""
        cdef uint16_t head = 0
        self.ready()
        cdef int rc = rpx_dev_pop(&self.queue, &head)
        if rc < 0:
            raise peer_error(rc)
        return head if rc else None

    cdef uint32_t walk(self, object head, uint64_t max_bytes) except? 0:
        """Walk the chain of a held head into self.segs; how many."""
        cdef uint16_t h = <uint16_t>number(head, "head", 0, self.ring.num - 1)
        cdef rpx_chain chain
        cdef uint32_t n = 0
        cdef int rc
        self.ready()
        if not self.seen[h] & 1:
            raise StateError(f"head {h} is not held: it was not popped, or pushed since")
        rpx_chain_begin(&chain, &self.queue, h, <uint32_t>max_bytes)
        while True:
            # A chain has at most num elements: rpx_chain_next breaks the queue before segs could run over.
            rc = rpx_chain_next(&chain, &self.queue, &self.memory.mem, &self.segs[n])
            if rc < 0:
                raise peer_error(rc)
            if rc == 0:
                return n
            n += 1

    def chain(self, head, max_bytes=UINT32_MAX):
        """The buffers of a held chain, in order: a list of (memoryview, writable), read-only views first.

        The views are the memory itself: the driver can change what they show at any time, and they keep the memory
        alive, even after close(). On memory of kind "device" only aligned accesses are allowed: use read() and write().

        This call, read() and write() walk the chain anew. A chain of more than `max_bytes` in all breaks the queue,
        as does whatever else is wrong with it. Raises StateError for a head that is not held, ValueError for one
        outside the queue.
        """
        cdef uint64_t limit = number(max_bytes, "max_bytes", 0, UINT32_MAX)
        cdef uint32_t n = self.walk(head, limit)
        return self.memory.views(self.segs, n)

    def read(self, head, max_bytes=65551):
        """The device-readable bytes of a held chain, b"" if it has none. Errors and `max_bytes` as for chain()."""
        cdef uint32_t n = self.walk(head, number(max_bytes, "max_bytes", 0, UINT32_MAX))
        return gather(self.segs, n, self.kind)

    def write(self, head, data):
        """Write `data` (bytes-like) to the start of a held chain's device-writable bytes; how many bytes that were.

        Raises MessageSize, a ValueError, if the chain has fewer, and then writes nothing. A chain without any breaks
        the queue. Other errors as for chain().
        """
        cdef _Pin source = _Pin(data, False)
        cdef uint32_t n = self.walk(head, UINT32_MAX)
        if not scatter(self.segs, n, self.kind, source):
            self.queue.broken = RPX_E_DESC_READONLY
            raise peer_error(RPX_E_DESC_READONLY)
        return source.view.len

    def push(self, head, length=0):
        """Stage a held chain's return; `length` is how many bytes were written to the start of its writable ones.

        The driver sees it after publish(). Raises StateError for a head that is not held, ValueError for one outside
        the queue.
        """
        cdef uint16_t h = <uint16_t>number(head, "head", 0, self.ring.num - 1)
        cdef uint32_t n = <uint32_t>number(length, "length", 0, UINT32_MAX)
        self.ready()
        if rpx_dev_push(&self.queue, h, n) < 0:
            raise StateError(f"head {h} is not held: it was not popped, or pushed since")

    def publish(self):
        """Show everything staged to the driver. True: it wants a notification."""
        self.ready()
        return bool(rpx_dev_publish(&self.queue))

    def mute(self):
        """Advise the driver not to kick; it may all the same."""
        self.ready()
        rpx_dev_mute(&self.queue)

    def unmute(self):
        """Ask for a kick at the next available chain. True: there is one already, call pop() again before waiting.

        With event_idx a request is good for one kick: ask again before each wait.
        """
        self.ready()
        return bool(rpx_dev_unmute(&self.queue))

    def reset(self):
        """Start over with both indices 0 in a ring that the driver zeroed; held heads are forgotten. Writes nothing."""
        self.open()
        rpx_dev_init(&self.queue, &self.ring, self.seen, 0, 0)

    @property
    def held(self):
        """Heads that were popped and not pushed."""
        return self.queue.held

    @property
    def broken(self):
        """The id of the rule that the driver broke, or None."""
        return rpx_error_rule(self.queue.broken).decode() if self.queue.broken else None
