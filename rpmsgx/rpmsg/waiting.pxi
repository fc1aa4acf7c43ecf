# A thread that waits. The first becomes the pump: it blocks on the doorbell, drains the ring into the endpoints'
# queues and wakes the others, which sleep on a lock of their own. The part is handed on when the pump is done.

@cython.final
cdef class Waiter:

    def __cinit__(self) -> None:
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()
        PyThread_acquire_lock(self.lock, NOWAIT_LOCK)

    def __dealloc__(self) -> None:
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    @staticmethod
    cdef Waiter start(Bus bus, Endpoint endpoint, int wants, double timeout):
        cdef Waiter w = Waiter.__new__(Waiter)
        w.endpoint = endpoint
        w.wants = wants
        w.epoch = bus.epoch
        w.deadline = monotonic() + timeout
        if endpoint is not None:
            endpoint.waiters += 1
        if wants & WANTS_BUFFER:
            bus.tx_waiters += 1
        return w
