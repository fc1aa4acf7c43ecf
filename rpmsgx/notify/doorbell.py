"""Doorbells: how one end of a link wakes the other.

A doorbell carries no data: any ring means "look at every vring" (OpenAMP's socket byte, an eventfd, a mailbox).
It has two directions: `kick` rings the peer, and `fileno()` becomes readable when the peer may have rung, or has
come or gone. Ringing is a hint: spurious rings are allowed, lost ones are not.
"""

import os
import select


class Doorbell:
    """Base of all doorbells. Each has a `fileno()`; this `kick()` rings nobody.

    `kick_fd`, where it is not negative, lets the bus ring without a Python call: 8 bytes to an eventfd
    (`kick_socket` false), or one byte to a stream socket (`kick_socket` true). From `drain_fd`, where that is not
    negative, it reads rings in the same way: bytes of a stream socket, of which `drain()` need not know. `connected`
    says whether there is a peer, `lost` counts how often one went away, `rang` whether this one has rung yet.
    Thread-safe.
    """

    kick_fd = -1
    kick_socket = False
    drain_fd = -1
    connected = True
    lost = 0
    rang = True

    def fileno(self) -> int:
        """The descriptor that is readable while there may be something to look at; the same one until close()."""
        raise NotImplementedError

    def kick(self, notifyid: int) -> None:
        """Ring the peer for the vring with this `notifyid`. Never blocks, never raises because of the peer."""

    def drain(self) -> None:
        """Clear what made `fileno()` readable; bring the attributes up to date."""

    def close(self) -> None:
        """Give up the descriptors. Idempotent."""


class EventfdDoorbell(Doorbell):
    """A pair of eventfds: `listen` is ours to wait on, `ring` is the peer's. Both are owned and closed."""

    def __init__(self, listen: int, ring: int) -> None:
        self._listen = listen
        self.kick_fd = ring

    @classmethod
    def pair(cls) -> "tuple[EventfdDoorbell, EventfdDoorbell]":
        """Both ends of a new doorbell inside this process."""
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        a, b = os.eventfd(0, flags), os.eventfd(0, flags)
        return cls(a, b), cls(os.dup(b), os.dup(a))

    def fileno(self) -> int:
        return self._listen

    def kick(self, notifyid: int) -> None:
        if self.kick_fd >= 0:
            try:
                os.eventfd_write(self.kick_fd, 1)
            except BlockingIOError:
                pass  # it is as loud as it can be

    def drain(self) -> None:
        try:
            os.eventfd_read(self._listen)
        except BlockingIOError:
            pass

    def close(self) -> None:
        for fd in (self._listen, self.kick_fd):
            if fd >= 0:
                os.close(fd)
        self._listen = self.kick_fd = -1


def readable(fd: int, timeout: float | None) -> bool:
    """Wait until `fd` is readable; `timeout` in seconds, None for ever. For cold paths and tests."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))
