"""A 32-bit register in mapped memory, such as the doorbell of a mailbox."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint8_t

from rpmsgx.rpx cimport RPX_ORDER_DEVICE, rpx_fence_full

__all__ = ["Register"]

cdef extern from "rpx.h" nogil:
    void rpx_fence_doorbell()


@cython.final
cdef class Register:
    """The register at `offset` of `buffer`, accessed as one word of 32 bits in this machine's byte order.

    Keeps the buffer exported while it lives. Thread-safe but for `update()` where others change the register as well.
    Raises ValueError for a place that is no aligned word of the buffer, BufferError for one that cannot be written.
    """

    cdef Py_buffer _view
    cdef volatile uint32_t *_word

    def __cinit__(self, buffer, offset):
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if not 0 <= offset <= self._view.len - 4 or (<size_t>self._view.buf + <size_t>offset) % 4:
            raise ValueError(f"offset {offset:#x} is no multiple of 4 inside {self._view.len:#x} bytes of registers")
        self._word = <volatile uint32_t *>(<uint8_t *>self._view.buf + <size_t>offset)

    def __dealloc__(self):
        PyBuffer_Release(&self._view)

    def read(self) -> int:
        """What it holds. What is read from memory after this is not older."""
        cdef uint32_t value = self._word[0]
        rpx_fence_full(RPX_ORDER_DEVICE)
        return value

    def write(self, uint32_t value) -> None:
        """Write `value`, once all that was written to memory before has left this CPU."""
        rpx_fence_doorbell()
        self._word[0] = value

    def update(self, uint32_t value, uint32_t mask) -> None:
        """Write the bits of `mask` from `value`, and the others as they were read."""
        self.write((self.read() & ~mask) | (value & mask))
