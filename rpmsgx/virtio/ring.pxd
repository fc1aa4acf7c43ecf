# The classes of ring.pyx, for extensions that build on them. The C members are private to this project.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from rpmsgx.rpx cimport (
    rpx_dev, rpx_drv, rpx_drv_slot, rpx_kind, rpx_mem, rpx_region, rpx_ring, rpx_seg, rpx_sg,
)

cdef class _Pin:
    cdef Py_buffer view


# A PeerError for a negative error value of csrc that stands for a rule.
cdef object peer_error(int error)

# A number of the caller's, within its range.
cdef uint64_t number(object value, str name, uint64_t low, uint64_t high) except? 1
# Buffers of the caller's as pairs (address, length), and as what a chain is made of.
cdef tuple checked(object buffers)
cdef uint32_t fill(rpx_sg *sg, tuple pairs, uint32_t num) except 0
# A chain's bytes, to and from Python.
cdef bytes gather(const rpx_seg *segs, uint32_t n, rpx_kind kind)
cdef bint scatter(const rpx_seg *segs, uint32_t n, rpx_kind kind, _Pin source) except -1


cdef class Memory:
    cdef rpx_region *parts
    cdef rpx_mem mem
    cdef list pins

    cdef object slice(self, const rpx_seg *seg)
    cdef list views(self, const rpx_seg *segs, uint32_t n)


cdef class Parts:
    cdef _Pin pin
    cdef list parts  # (name, start, end) in the pinned buffer
    cdef rpx_kind kind
    cdef bint little
    cdef Memory memory  # a device's

    cdef int locate(self, object buffer, object offset, str kind, tuple parts) except -1
    cdef uint8_t *part(self, int which) except NULL
    cdef int open(self) except -1
    cdef object array(self, int which, object shape, object fields)
    cdef uint8_t *table(self, uint64_t offset, uint64_t address, uint64_t size) except NULL
    cdef int reach(self, object memory) except -1


cdef class Ring(Parts):
    cdef rpx_ring ring

    cdef int attach(self, object buffer, object num, object align, object parts, object offset, bint version_1,
                    bint event_idx, bint indirect, str kind) except -1


cdef class DriverQueue(Ring):
    cdef rpx_drv queue
    cdef rpx_drv_slot *slots
    cdef rpx_sg *sg

    cdef int ready(self) except -1


cdef class DeviceQueue(Ring):
    cdef rpx_dev queue
    cdef uint32_t *seen
    cdef rpx_seg *segs

    cdef int ready(self) except -1
    cdef uint32_t walk(self, object head, uint64_t max_bytes) except? 0
