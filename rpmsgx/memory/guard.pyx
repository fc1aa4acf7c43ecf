"""Memory that may be truncated under its map: a SIGBUS inside it becomes a flag instead of the end of the process.

A regular file can be truncated by anybody who may write it; the next access to a page behind its new end raises
SIGBUS. While a `GuardedMemory` exists, such a fault puts a page of zeros in the place of the missing one and sets
`lost`: the access goes on, and whoever owns the memory looks at the flag before it believes what it read.

This is the one signal handler that the library installs, and only then: with the first guarded memory, which an open
link over an unsealed file has. Faults elsewhere go to the handler that was there before, and with the last guarded
memory that one is put back. `faulthandler` and others that are enabled later take precedence: guarded memory is then
not guarded.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
)
from libc.errno cimport errno
from libc.stdint cimport uint8_t

import os

__all__ = ["GuardedMemory", "LostFlag"]

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <signal.h>
    #include <stdatomic.h>
    #include <stdbool.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>

    enum { GUARDS = 64 };

    /* `start` is stored last and cleared first: the handler may run in any thread at any instruction. */
    static struct guard {
        _Atomic(uintptr_t) start;
        uintptr_t size;
        _Atomic(uint8_t) lost;
    } guards[GUARDS];

    static struct sigaction guard_previous;
    static uintptr_t guard_page;
    static unsigned guard_users;
    static bool guard_installed;

    static void guard_handler(int sig, siginfo_t *info, void *context)
    {
        int saved = errno;
        uintptr_t at = (uintptr_t)info->si_addr;
        for (int i = 0; i < GUARDS && info->si_code > 0; i++) { /* 0 and below: sent by a process, not a fault */
            uintptr_t start = atomic_load_explicit(&guards[i].start, memory_order_acquire);
            if (start == 0 || at < start || at - start >= guards[i].size)
                continue;
            uintptr_t page = at & ~(guard_page - 1);
            /* Not on POSIX's list, but one system call, which only the C library knows how to make on s390x. */
            if (mmap((void *)page, guard_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
                == MAP_FAILED)
                break;
            atomic_store_explicit(&guards[i].lost, 1, memory_order_release);
            errno = saved;
            return;
        }
        errno = saved;
        if (guard_previous.sa_flags & SA_SIGINFO) {
            guard_previous.sa_sigaction(sig, info, context);
        } else if (guard_previous.sa_handler == SIG_DFL || guard_previous.sa_handler == SIG_IGN) {
            if (info->si_code <= 0 && guard_previous.sa_handler == SIG_IGN)
                return;
            sigaction(SIGBUS, &guard_previous, NULL); /* the access is done again, and ends the process */
            if (info->si_code <= 0)
                raise(sig);
        } else {
            guard_previous.sa_handler(sig);
        }
    }

    static int guard_register(void *start, size_t size)
    {
        int slot = 0;
        while (slot < GUARDS && atomic_load(&guards[slot].start) != 0)
            slot++;
        if (slot == GUARDS) {
            errno = EMFILE;
            return -1;
        }
        /* Left installed if somebody came on top of it: whether they still go on to ours cannot be known. */
        if (!guard_installed) {
            struct sigaction action = { 0 };
            guard_page = (uintptr_t)sysconf(_SC_PAGESIZE);
            action.sa_sigaction = guard_handler;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
            sigemptyset(&action.sa_mask);
            if (sigaction(SIGBUS, &action, &guard_previous) < 0)
                return -1;
            guard_installed = true;
        }
        guard_users++;
        guards[slot].size = size;
        atomic_store(&guards[slot].lost, 0);
        atomic_store_explicit(&guards[slot].start, (uintptr_t)start, memory_order_release);
        return slot;
    }

    static void guard_unregister(int slot)
    {
        struct sigaction now;
        atomic_store_explicit(&guards[slot].start, 0, memory_order_release);
        if (--guard_users > 0)
            return;
        if (sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == guard_handler)
            guard_installed = sigaction(SIGBUS, &guard_previous, NULL) < 0;
    }

    static uint8_t *guard_flag(int slot)
    {
        return (uint8_t *)&guards[slot].lost;
    }
    """
    int guard_register(void *, size_t)
    void guard_unregister(int)
    uint8_t *guard_flag(int)


cdef class GuardedMemory:
    """A writable map (a `mmap.mmap` of a regular file, say), guarded until the last view of this object dies.

    A buffer of bytes like the map itself. Raises OSError (EMFILE) where 64 are guarded already, BufferError for a map
    that cannot be written.
    """
    cdef Py_buffer buf
    cdef bint held
    cdef int slot

    def __cinit__(self, map) -> None:
        self.slot = -1
        PyObject_GetBuffer(map, &self.buf, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        self.slot = guard_register(self.buf.buf, <size_t>self.buf.len)
        if self.slot < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self) -> None:
        if self.slot >= 0:
            guard_unregister(self.slot)
        if self.held:
            PyBuffer_Release(&self.buf)

    def __reduce__(self):
        raise TypeError("guarded memory cannot be pickled")

    @property
    def lost(self) -> bool:
        """Whether a page of it was found missing. Stays true."""
        return guard_flag(self.slot)[0] != 0

    @property
    def flag(self) -> LostFlag:
        """`lost` as a buffer of one byte, for code that looks at it without a call."""
        cdef LostFlag flag = LostFlag.__new__(LostFlag)
        flag.memory = self
        return flag

    def __len__(self) -> int:
        return self.buf.len

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.buf.buf, self.buf.len, 0, flags)


cdef class LostFlag:
    """One byte: 0, or 1 once the memory is lost. Keeps the memory alive. To be read only."""
    cdef GuardedMemory memory

    def __reduce__(self):
        raise TypeError("guarded memory cannot be pickled")

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, guard_flag(self.memory.slot), 1, 0, flags)
