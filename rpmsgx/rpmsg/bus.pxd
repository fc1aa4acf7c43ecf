# cython: language_level=3
# The classes as other Cython code may cimport them; compile with rpmsgx.get_include() on the include path.
cimport cython
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from rpmsgx.rpx cimport (
    rpx_dev, rpx_drv, rpx_drv_slot, rpx_mem, rpx_msg, rpx_packed, rpx_region, rpx_rx, rpx_tx, rpx_txbuf, rpx_w32
)


# Endpoints by address: open addressing, linear probing, a power of two of slots, at most half full.
cdef struct AddrMap:
    uint32_t *keys
    PyObject **values  # borrowed; NULL where the slot is free
    uint32_t mask
    uint32_t count


cdef struct Entry:
    PyObject *data  # bytes, owned
    uint32_t src


# Memory that says whether a session holds (rpmsgx.virtio.link.Word).
cdef struct Word:
    const rpx_w32 *at
    uint32_t mask
    uint32_t value


# Why a message was dropped, by count.
cdef struct Drops:
    uint64_t short_
    uint64_t length
    uint64_t no_endpoint
    uint64_t ns_malformed
    uint64_t ns_duplicate
    uint64_t ns_unknown
    uint64_t ns_overflow
    uint64_t ns_too_long


@cython.final
cdef class Waiter:
    cdef PyThread_type_lock lock
    cdef Endpoint endpoint  # whose queue it waits for, or None
    cdef int wants          # bits: a free buffer, an event
    cdef bint woken
    cdef uint64_t epoch
    cdef double deadline
    cdef bint stalled       # it waited while a full endpoint stopped the bus
    cdef bint expired       # the deadline has passed; one last look is due

    @staticmethod
    cdef Waiter start(Bus bus, Endpoint endpoint, int wants, double timeout)


@cython.final
cdef class Channel:
    cdef readonly Bus bus
    cdef readonly str name
    cdef readonly uint32_t addr
    cdef readonly Endpoint endpoint
    cdef readonly bint removed


@cython.final
cdef class Bus:
    # The hot part: the two ends, and what is looked at for each message.
    cdef rpx_rx rx
    cdef rpx_tx tx
    cdef int state
    cdef bint up
    cdef const uint8_t *status  # device: the driver's status byte; NULL for a driver
    cdef const uint8_t *lost    # not 0 once the memory has gone; NULL where it cannot go
    cdef Endpoint last          # one-entry cache in front of the map
    cdef AddrMap map
    cdef int kick_fd
    cdef bint kick_socket
    cdef bint exposed           # a descriptor was handed out, so notifications stay on
    cdef uint32_t ticks
    cdef uint32_t rx_notifyid
    cdef uint32_t tx_notifyid
    cdef uint64_t kicks
    cdef uint64_t epoch         # counts the sessions that ended
    cdef Drops drops
    cdef rpx_drv drv_rx
    cdef rpx_drv drv_tx
    cdef rpx_dev dev_rx
    cdef rpx_dev dev_tx
    cdef rpx_packed packed_rx
    cdef rpx_packed packed_tx
    cdef rpx_mem mem
    cdef rpx_region *regions
    cdef void *arena            # every private array of a session
    cdef uint32_t posted        # device: buffers that it found posted when the session began
    cdef uint32_t *positions    # device, packed rings: where it says how far it has come, or NULL
    # A message that waits for its endpoint to have room (overflow="block").
    cdef Endpoint stall_endpoint
    cdef bytes stall_data
    cdef uint32_t stall_src
    cdef uint64_t stalls
    cdef uint64_t unrung       # waits that ended with messages there that nobody had rung for
    # A name-service message on its way out of the ring.
    cdef uint8_t ns_message[40]
    cdef uint32_t ns_src
    # The cold part.
    cdef readonly object link
    cdef object doorbell
    cdef int drain_fd
    cdef object session
    cdef Word *agreed           # what the peer wrote that makes the session
    cdef uint32_t n_agreed
    cdef list views
    cdef dict endpoints
    cdef uint32_t lowest_free
    cdef list channel_list
    cdef list events
    cdef list ready
    cdef list announce          # (endpoint or name and address, destroy) still to be sent
    cdef str broken_text
    cdef str broken_rule
    cdef bint checking          # a thread is asking the link, in Python: the others leave it to that one
    cdef Waiter pump
    cdef list sleepers
    cdef int tx_waiters
    cdef bint tx_wanted         # one with a descriptor was refused a buffer: it fires when one comes free
    cdef int wake_fd
    cdef int again_fd
    cdef int pend_fd
    cdef int pump_epoll
    cdef int bus_epoll
    cdef int doorbell_fd
    cdef double spin
    cdef uint32_t queue_limit
    cdef bint drop_overflow
    cdef unsigned long poll_thread
    cdef bint polling
    cdef public object on_new_channel
    cdef public object on_removed
    cdef public object vdev
    cdef object __weakref__

    cdef int check(self) except -1
    cdef Endpoint add_endpoint(self, name, src, dst, callback, queue, overflow)
    cdef int remove_endpoint(self, Endpoint ept) except -1
    cdef Py_ssize_t dispatch(self) except -2


@cython.final
cdef class Endpoint:
    cdef readonly Bus bus
    cdef readonly str name
    cdef uint32_t src
    cdef uint32_t peer
    cdef bint peer_fixed        # an explicit dst stays
    cdef bint announced
    cdef bint closed
    cdef bint removed           # the channel it was opened on has gone
    cdef bint drop_overflow
    cdef bint in_ready
    cdef object callback
    cdef Entry *queue
    cdef uint32_t head
    cdef uint32_t count
    cdef uint32_t size
    cdef uint32_t limit
    cdef int waiters
    cdef int event_fd
    cdef int epoll_fd
    cdef uint64_t lost
    cdef uint64_t n_sent
    cdef uint64_t n_received
    cdef uint64_t n_dropped
    cdef object __weakref__

    cdef int enqueue(self, PyObject *data, uint32_t src) except -1
    cdef object take(self, uint32_t *src)
    cdef int begin(self, object timeout) except -1
    cdef int report_lost(self) except -1
    cdef int usable(self) except -1
    cdef int await_message(self, rpx_msg *msg, object timeout) except -1
    cdef int keep(self, rpx_msg *msg) except -1
    cdef int await_slow(self, rpx_msg *msg, double timeout, uint64_t epoch) except -1
    cdef int try_message(self, rpx_msg *msg) except -1
    cdef object receive(self, int how, rpx_msg *msg, uint32_t *src)
    cdef uint32_t destination(self) except? 0
    cdef int transmit(self, const uint8_t *data, Py_ssize_t size, uint32_t dst, object timeout) except -1
    cdef int send_object(self, object data, uint32_t dst, object timeout) except -1


@cython.final
cdef class Claim:
    cdef readonly Endpoint endpoint
    cdef rpx_txbuf buf
    cdef uint8_t *data          # what is filled: the buffer, or
    cdef bytearray private      # its copy, for device memory
    cdef uint32_t dst
    cdef Py_ssize_t size
    cdef int exports
    cdef int phase
    cdef uint64_t epoch
    cdef list keep              # the session's memory, exported while this list lives

    @staticmethod
    cdef Claim take(Endpoint ept, uint32_t dst, Py_ssize_t size, double timeout)


@cython.final
cdef class Hold:
    cdef readonly Endpoint endpoint
    cdef readonly uint32_t src
    cdef const uint8_t *data
    cdef bytes private          # the message, where it came out of the endpoint's queue
    cdef uint32_t token
    cdef Py_ssize_t size
    cdef int exports
    cdef int phase
    cdef uint64_t epoch
    cdef list keep

    @staticmethod
    cdef Hold take(Endpoint ept, int how, rpx_msg *msg)
    cdef void give_back(self) noexcept
