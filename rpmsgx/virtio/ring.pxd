# The classes of ring.pyx, for extensions that build on them. The C members are private to this project.
from libc.stdint cimport uint32_t, uint64_t

from rpmsgx.rpx cimport (
    rpx_desc, rpx_dev, rpx_drv, rpx_drv_slot, rpx_kind, rpx_mem, rpx_region, rpx_ring, rpx_seg, rpx_sg,
)

# A PeerError for a negative error value of csrc that stands for a rule.
cdef object peer_error(int error)


cdef class _Pin:
    cdef Py_buffer view


cdef class Memory:
    cdef rpx_region *parts
    cdef rpx_mem mem
    cdef list pins

    cdef object slice(self, const rpx_seg *seg)


cdef class Ring:
    cdef _Pin pin
    cdef rpx_ring ring
    cdef rpx_kind kind
    cdef bint little

    cdef int attach(self, object buffer, object num, object align, object parts, object offset, bint version_1,
                    bint event_idx, bint indirect, str kind) except -1
    cdef int open(self) except -1
    cdef object array(self, const void *start, object shape, object fields)


cdef class DriverQueue(Ring):
    cdef rpx_drv queue
    cdef rpx_drv_slot *slots
    cdef rpx_sg *sg

    cdef int ready(self) except -1
    cdef rpx_desc *table(self, uint64_t offset, uint64_t address, uint32_t n) except NULL


cdef class DeviceQueue(Ring):
    cdef rpx_dev queue
    cdef uint32_t *seen
    cdef rpx_seg *segs
    cdef Memory memory

    cdef int ready(self) except -1
    cdef uint32_t walk(self, object head, uint64_t max_bytes) except? 0
