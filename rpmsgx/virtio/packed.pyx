# cython: auto_pickle=False, autotestdict=False
"""The packed virtqueue (VIRTIO 1.2, 2.8) over any writable buffer, in both roles.

    driver = PackedDriverQueue(memory, 10)              device = PackedDeviceQueue(memory, 10)
    driver.add(out=[(addr, size)], cookie=1)            head = device.pop()
    if driver.publish(): kick()                         data = device.read(head)
    cookie, written = driver.get()                      device.push(head, 0)
                                                        if device.publish(): kick()

The calls are those of rpmsgx.virtio.ring, and what stands there of peers that break rules and of threads holds here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rpmsgx.rpx cimport (
    RPX_BIG_ENDIAN, RPX_E_CHAIN_BYTES, RPX_E_DESC_READONLY, RPX_E_FULL, RPX_PACKED_START, RPX_QUEUE_MAX, rpx_kind_order,
    rpx_packed, rpx_packed_add, rpx_packed_add_indirect, rpx_packed_buf, rpx_packed_chain, rpx_packed_desc,
    rpx_packed_error_rule, rpx_packed_error_text, rpx_packed_get, rpx_packed_init, rpx_packed_mute, rpx_packed_next,
    rpx_packed_pop, rpx_packed_publish, rpx_packed_push, rpx_packed_ring, rpx_packed_ring_init, rpx_packed_ring_zero,
    rpx_packed_unmute, rpx_seg, rpx_sg, rpx_used,
)
from rpmsgx.virtio.ring cimport _Pin, Parts, checked, fill, gather, number, scatter

from rpmsgx.errors import PeerError, StateError


cdef object peer_error(int error):
    return PeerError(rpx_packed_error_text(error).decode(), rpx_packed_error_rule(error).decode())


cdef class PackedRing(Parts):
    """A packed ring: what PackedDriverQueue and PackedDeviceQueue have in common. Not to be made by itself."""

    cdef rpx_packed queue
    cdef rpx_packed_buf *bufs

    cdef int attach(self, object buffer, object num, object parts, object offset, bint event_idx, bint indirect,
                    str kind) except -1:
        cdef uint32_t n = <uint32_t>number(num, "num", 1, RPX_QUEUE_MAX)
        if parts is None:
            behind = (16 * n + 63) // 64 * 64  # so that each end writes to a cache line of its own
            parts = 0, behind, behind + 64
        desc, driver, device = parts
        self.locate(buffer, offset, kind, (
            ("descriptor ring", desc, 16 * n, 16),
            ("driver's event structure", driver, 4, 4),
            ("device's event structure", device, 4, 4),
        ))
        cdef rpx_packed_ring *ring = &self.queue.ring
        if rpx_packed_ring_init(ring, self.part(0), self.part(1), self.part(2), n, rpx_kind_order(self.kind),
                                RPX_BIG_ENDIAN):
            raise ValueError("no ring")  # every reason was looked at above
        ring.event_idx = event_idx
        ring.indirect = indirect
        self.little = True
        self.bufs = <rpx_packed_buf *>PyMem_Calloc(n, sizeof(rpx_packed_buf))
        if self.bufs == NULL:
            raise MemoryError
        return 0

    def __dealloc__(self):
        PyMem_Free(self.bufs)

    cdef int ready(self) except -1:
        self.open()
        if self.queue.broken:
            raise peer_error(self.queue.broken)
        return 0

    def publish(self):
        """Show everything staged to the other end, at once. True: it wants a notification."""
        self.ready()
        return bool(rpx_packed_publish(&self.queue))

    def mute(self):
        """Advise the other end not to notify; it may all the same."""
        self.ready()
        rpx_packed_mute(&self.queue)

    def unmute(self):
        """Ask for a notification at the next chain. True: there is one already, look again before waiting.

        With event_idx a request is good for one notification: ask again before each wait.
        """
        self.ready()
        return bool(rpx_packed_unmute(&self.queue))

    @property
    def num(self):
        """The queue size: descriptors, 1 to 32768."""
        return self.queue.ring.num

    @property
    def broken(self):
        """The id of the rule that the other end broke, or None."""
        return rpx_packed_error_rule(self.queue.broken).decode() if self.queue.broken else None

    @property
    def desc(self):
        """The descriptor ring as it lies in memory: an array of `num` records addr, len, id, flags.

        This and the two event suppression structures are writable views, not copies: what the peer does shows at
        once, reads of several fields are not atomic, and the memory stays exported while one of them lives. They are
        little-endian. Raises ImportError without numpy, Closed after close().
        """
        return self.array(0, (self.queue.ring.num,), [("addr", "u8"), ("len", "u4"), ("id", "u2"), ("flags", "u2")])

    @property
    def driver_event(self):
        """When the driver wants to be notified, as it lies in memory: one record off_wrap, flags. See `desc`."""
        return self.array(1, (), [("off_wrap", "u2"), ("flags", "u2")])

    @property
    def device_event(self):
        """When the device wants to be notified, as it lies in memory: one record off_wrap, flags. See `desc`."""
        return self.array(2, (), [("off_wrap", "u2"), ("flags", "u2")])


cdef class PackedDriverQueue(PackedRing):
    """The driver's end of a packed virtqueue: it offers buffers and gets them back.

    `buffer` is any writable C-contiguous buffer and holds the ring of `num` descriptors (any number up to 32768). The
    ring lies at `offset` (bytes): first the descriptors, at the next multiple of 64 bytes from there the driver's event
    suppression structure, 64 further on the device's; or where `parts` say, offsets of the three from `offset`. It is
    little-endian, as it comes with VERSION_1 only. The other arguments as for rpmsgx.virtio.ring.DriverQueue.

    Making one zeroes the ring's three parts, so it comes before the device's end. Raises ValueError for a ring that
    does not fit, is not aligned or overlaps itself, BufferError or the buffer's own error for memory that cannot be
    written.

    Every call but `reset`, `close` and the properties raises PeerError once the device broke a rule, and every call
    raises Closed after close(). Not thread-safe beyond the GIL.
    """

    cdef rpx_sg *sg

    def __cinit__(self, buffer, num, *, parts=None, offset=0, event_idx=False, indirect=False, kind="cached"):
        self.attach(buffer, num, parts, offset, event_idx, indirect, kind)
        self.sg = <rpx_sg *>PyMem_Calloc(self.queue.ring.num, sizeof(rpx_sg))
        if self.sg == NULL:
            raise MemoryError
        self.reset()

    def __dealloc__(self):
        PyMem_Free(self.sg)

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
        cdef uint32_t n = fill(self.sg, outs + ins, self.queue.ring.num)
        cdef int rc
        if table is None:
            rc = rpx_packed_add(&self.queue, self.sg, <uint32_t>len(outs), <uint32_t>len(ins), cookie_)
        else:
            if not self.queue.ring.indirect:
                raise StateError("indirect descriptors were not negotiated (2.8.19-1)")
            rc = rpx_packed_add_indirect(&self.queue, <rpx_packed_desc *><void *>self.table(offset, address, 16 * n),
                                         address, self.sg, <uint32_t>len(outs), <uint32_t>len(ins), cookie_)
        if rc == RPX_E_FULL:
            raise StateError(f"{1 if table is not None else n} descriptors wanted, {self.queue.num_free} free")
        if rc < 0:
            raise ValueError(f"a chain of {sum([size for _, size in outs + ins])} bytes, more than {UINT32_MAX}")

    def get(self):
        """The next used chain as (cookie, length), length the bytes that the device wrote; None without one.

        The length is at most the bytes of the chain's `in_`.
        """
        cdef rpx_used used
        used.cookie = used.len = 0
        self.ready()
        cdef int rc = rpx_packed_get(&self.queue, &used)
        if rc < 0:
            raise peer_error(rc)
        return (used.cookie, used.len) if rc else None

    def reset(self):
        """Zero the ring and start over; chains in flight are forgotten. The device must be stopped meanwhile."""
        self.open()
        rpx_packed_ring_zero(&self.queue.ring)
        rpx_packed_init(&self.queue, &self.queue.ring, self.bufs, False, RPX_PACKED_START)

    @property
    def num_free(self):
        """Free descriptors."""
        return self.queue.num_free

    @property
    def in_flight(self):
        """Chains that were added and not given back by get(), staged ones included."""
        return <uint32_t>(self.queue.given - self.queue.taken)


cdef class PackedDeviceQueue(PackedRing):
    """The device's end of a packed virtqueue: it takes buffers, reads or fills them, and gives them back.

    `memory` is what descriptors may point at; the default is the whole buffer, its first byte at address 0, without
    the ring's own parts. A descriptor that points at anything else breaks the queue. `start` is where to go on in a
    ring that was used before, with nothing held: the slot, plus 0x8000 where the wrap counter is 1. The other
    arguments, and errors, as for PackedDriverQueue.

    Making one writes nothing. Every call but `reset`, `close` and the properties raises PeerError once the driver
    broke a rule, and every call raises Closed after close(). Not thread-safe beyond the GIL.
    """

    cdef rpx_seg *segs
    cdef dict chains  # segments of those that are held, by head

    def __cinit__(self, buffer, num, *, memory=None, parts=None, offset=0, event_idx=False, indirect=False,
                  kind="cached", start=RPX_PACKED_START):
        self.attach(buffer, num, parts, offset, event_idx, indirect, kind)
        self.reach(memory)
        self.segs = <rpx_seg *>PyMem_Calloc(self.queue.ring.num, sizeof(rpx_seg))
        if self.segs == NULL:
            raise MemoryError
        self.chains = {}
        cdef uint16_t at = <uint16_t>number(start, "start", 0, 0xffff)
        number(at & 0x7fff, "slot to start at", 0, self.queue.ring.num - 1)
        rpx_packed_init(&self.queue, &self.queue.ring, self.bufs, True, at)

    def __dealloc__(self):
        PyMem_Free(self.segs)

    def pop(self):
        """Take the next available chain: its buffer id, for the calls below and to be given back with push(), or None.

        The chain is walked here, and kept until push(), because what is pushed may overwrite its descriptors: 24
        bytes an element at most. Whatever is wrong with it breaks the queue.
        """
        cdef rpx_packed_chain chain
        cdef uint32_t n = 0
        self.ready()
        cdef int rc = rpx_packed_pop(&self.queue, &chain)
        while rc > 0:
            # A chain has at most num elements: rpx_packed_next breaks the queue before segs could run over.
            rc = rpx_packed_next(&chain, &self.queue, &self.memory.mem, &self.segs[n])
            n += rc > 0
        if rc < 0:
            raise peer_error(rc)
        if n == 0:
            return None
        self.chains[chain.id] = PyBytes_FromStringAndSize(<const char *>self.segs, n * sizeof(rpx_seg))
        return chain.id

    cdef uint32_t walk(self, object head, uint64_t max_bytes) except 0:
        """The chain of a held head into self.segs; how many."""
        cdef uint16_t h = <uint16_t>number(head, "head", 0, self.queue.ring.num - 1)
        cdef uint64_t size = 0
        self.ready()
        cdef bytes chain = self.chains.get(h)
        if chain is None:
            raise StateError(f"head {h} is not held: it was not popped, or pushed since")
        memcpy(self.segs, PyBytes_AS_STRING(chain), len(chain))
        cdef uint32_t n = <uint32_t>(<size_t>len(chain) // sizeof(rpx_seg))
        for i in range(n):
            size += self.segs[i].len
        if size > max_bytes:
            self.queue.broken = RPX_E_CHAIN_BYTES
            raise peer_error(RPX_E_CHAIN_BYTES)
        return n

    def chain(self, head, max_bytes=UINT32_MAX):
        """The buffers of a held chain, in order: a list of (memoryview, writable), read-only views first.

        The views are the memory itself: the driver can change what they show at any time, and they keep the memory
        alive, even after close(). On memory of kind "device" only aligned accesses are allowed: use read() and write().

        A chain of more than `max_bytes` in all breaks the queue. Raises StateError for a head that is not held,
        ValueError for one outside the queue.
        """
        cdef uint32_t n = self.walk(head, number(max_bytes, "max_bytes", 0, UINT32_MAX))
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
        cdef uint16_t h = <uint16_t>number(head, "head", 0, self.queue.ring.num - 1)
        cdef uint32_t n = <uint32_t>number(length, "length", 0, UINT32_MAX)
        self.ready()
        if rpx_packed_push(&self.queue, h, n) < 0:
            raise StateError(f"head {h} is not held: it was not popped, or pushed since")
        del self.chains[h]

    def reset(self):
        """Start over at slot 0 of a ring that the driver zeroed; held heads are forgotten. Writes nothing."""
        self.open()
        rpx_packed_init(&self.queue, &self.queue.ring, self.bufs, True, RPX_PACKED_START)
        self.chains.clear()

    @property
    def held(self):
        """Heads that were popped and not pushed."""
        return len(self.chains)
