"""Ringing through a descriptor that a stranger holds as well: an eventfd, or a stream socket.

The flags and the counter of an eventfd are shared with everybody who holds it: one whose counter was filled blocks the
next writer, whatever that one set before. So it is never read, which an edge-triggered epoll makes needless, and never
written: the kernel adds to it as the completion of an asynchronous poll, which has nothing to wait for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import stat
import struct
import sys

RING = struct.pack("=Q", 1)
_PIECE = 4096
_PIECES = 16  # a flood of bytes is read this many pieces at a time

# io_setup, io_getevents, io_submit, for which the C library has no names. By the architecture that this Python was
# built for: the machine may have a kernel of 64 bits under a process of 32.
_AIO_CALLS = {
    "x86_64": (206, 208, 209),
    "i386": (245, 247, 248),
    **dict.fromkeys(("arm", "s390x"), (243, 245, 246)),
    **dict.fromkeys(("powerpc64le", "powerpc64"), (227, 229, 230)),
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), (0, 4, 2)),
}
_AIO_EVENTS = 32
_IOCB = struct.Struct("=QIIHhIQQqQII")  # struct iocb of linux/aio_abi.h; key and rw_flags, which change places, are 0
_IOCB_POLL, _IOCB_FLAG_RESFD = 5, 1


class Ringer:
    """One such descriptor. Owns it. Not thread-safe."""

    fd: int
    events: int  # for an epoll

    def ring(self) -> None:
        """Ring whoever listens. Never blocks, never raises."""
        raise NotImplementedError

    def clear(self) -> bool:
        """Clear what made the descriptor readable. False: nobody can ring it any more."""
        raise NotImplementedError

    def close(self) -> None:
        """Idempotent."""
        raise NotImplementedError


class SocketRinger(Ringer):
    """8 bytes on a stream socket are a ring; a socket that is full rings already."""

    events = select.EPOLLIN

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.fd = end.fileno()

    def ring(self) -> None:
        try:
            self._end.send(RING, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # full, or nobody listens

    def clear(self) -> bool:
        try:
            for _ in range(_PIECES):
                size = len(self._end.recv(_PIECE, socket.MSG_DONTWAIT))
                if size < _PIECE:
                    return size > 0
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._end.close()


class EventfdRinger(Ringer):
    """An eventfd. Raises OSError where this process cannot ring one."""

    events = select.EPOLLIN | select.EPOLLET

    def __init__(self, fd: int) -> None:
        _Signaller.of_this_process()
        self.fd = fd

    def ring(self) -> None:
        if self.fd >= 0:
            _Signaller.of_this_process().signal(self.fd)

    def clear(self) -> bool:
        return True

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Signaller:
    """Adds 1 to eventfds. Stays with its process: to give a context up takes milliseconds. Thread-safe.

    Raises OSError where the kernel has no asynchronous I/O (ENOSYS), or gives out no more (EAGAIN).
    """

    _current: tuple[int, _Signaller] | None = None

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = libc.syscall
        architecture = getattr(sys.implementation, "_multiarch", "").partition("-")[0]
        if architecture not in _AIO_CALLS:
            raise OSError(errno.ENOSYS, f"how to make asynchronous I/O calls on {architecture!r} is not known")
        setup, self._getevents, self._submit = _AIO_CALLS[architecture]
        self._context = ctypes.c_ulong(0)
        if self._syscall(setup, _AIO_EVENTS, ctypes.byref(self._context)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._completed = ctypes.create_string_buffer(32 * _AIO_EVENTS)

    @classmethod
    def of_this_process(cls) -> _Signaller:
        pid = os.getpid()
        if cls._current is None or cls._current[0] != pid:  # a child has none
            cls._current = pid, cls()
        return cls._current[1]

    def signal(self, fd: int) -> None:
        # A poll for POLLOUT on a descriptor that can always be written is complete as soon as it is submitted.
        request = _IOCB.pack(0, 0, 0, _IOCB_POLL, 0, self._ready, select.POLLOUT, 0, 0, 0, _IOCB_FLAG_RESFD, fd)
        block = ctypes.create_string_buffer(request, len(request))
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        if self._syscall(self._submit, self._context, 1, blocks) != 1 and ctypes.get_errno() == errno.EAGAIN:
            self._syscall(self._getevents, self._context, 0, _AIO_EVENTS, self._completed, None)
            self._syscall(self._submit, self._context, 1, blocks)


def adopt(fd: int) -> Ringer:
    """A stranger's descriptor, which belongs to the result. Raises OSError, and then closes it, if it is no good."""
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            end = socket.socket(fileno=fd)
            if end.type != socket.SOCK_STREAM:
                end.detach()
                raise OSError(errno.EINVAL, "not a stream socket")
            return SocketRinger(end)
        if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]":
            return EventfdRinger(fd)
        raise OSError(errno.EINVAL, "neither an eventfd nor a socket")
    except BaseException:
        os.close(fd)
        raise
