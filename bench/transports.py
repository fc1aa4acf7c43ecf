"""What carries messages between the two processes of the harness: rpmsgx, and what people would use in its place.

A transport is made before the fork; then each process opens its `end`. An end moves `bytes`: all do the same work.
Over streams the batches are framed, a length before each message; single messages are not, which flatters pipes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from multiprocessing.shared_memory import SharedMemory
from types import MappingProxyType
from typing import Any, NamedTuple

import rpmsgx

from .limits import Missing

BATCH = 64
PIECE = 1 << 16  # bytes that are read from a stream at once
SERVICE = "bench"
WAIT = 20.0
SPIN = 1.0  # seconds: for ever, next to a message


class End(NamedTuple):
    """What a process has of a transport. `recv_many` returns how many messages it has taken."""

    send: Callable[[bytes], object]
    recv: Callable[[], bytes]
    send_many: Callable[[list[bytes]], object] | None = None
    recv_many: Callable[[], int] | None = None


class Transport:
    """`name` for people. Raises Missing where it cannot be used here. Side 0 receives a stream, side 1 sends it."""

    name: str
    ours = False
    singles = True
    batches = True

    def __init__(self, size: int) -> None:
        self.size = size

    def end(self, side: int) -> AbstractContextManager[End]:
        raise NotImplementedError

    def close(self) -> None:
        """In the parent, at the end."""


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed") from error


# -- rpmsgx ----------------------------------------------------------------------------------------------------------


class Memfd(Transport):
    ours = True
    spin = SPIN
    roles = "device", "driver"
    options: Mapping[str, object] = MappingProxyType({})

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._folder = tempfile.TemporaryDirectory(prefix="rpmsgx-bench-")

    @contextmanager
    def end(self, side: int) -> Iterator[End]:
        role = self.roles[side]
        url = f"memfd:{self._folder.name}/link"
        with rpmsgx.open(url, role, spin=self.spin, **self.options) as bus:  # type: ignore[call-overload]
            if role == "driver":
                endpoint = bus.open(SERVICE, timeout=WAIT)
                endpoint.send(b"")
            else:
                endpoint = bus.create_endpoint(SERVICE)
                endpoint.recv(timeout=WAIT)  # from now on its peer is known
            yield self.calls(endpoint)

    def calls(self, endpoint: rpmsgx.Endpoint) -> End:
        recv_many = endpoint.recv_many
        return End(endpoint.send, endpoint.recv, endpoint.send_many, lambda: len(recv_many(BATCH)))

    def close(self) -> None:
        self._folder.cleanup()


class MemfdSpinning(Memfd):
    name = "rpmsgx, spinning, driver to device"


class MemfdBack(Memfd):
    name = "rpmsgx, spinning, device to driver"
    roles = "driver", "device"


class MemfdBlocking(Memfd):
    name = "rpmsgx, blocking"
    spin = 0.0


class MemfdPacked(Memfd):
    name = "rpmsgx, packed, driver to device"
    options = MappingProxyType({"layout": "modern", "packed": True})


class MemfdPackedBack(MemfdPacked):
    name = "rpmsgx, packed, device to driver"
    roles = "driver", "device"


class MemfdRows(Memfd):
    name = "rpmsgx, spinning, recv_into rows"
    singles = False  # as the others

    def __init__(self, size: int) -> None:
        self._numpy = _package("numpy")
        super().__init__(size)

    def calls(self, endpoint: rpmsgx.Endpoint) -> End:
        rows, recv_into = self._numpy.zeros((BATCH, self.size), self._numpy.uint8), endpoint.recv_into
        return super().calls(endpoint)._replace(recv_many=lambda: recv_into(rows))


# -- the system's ----------------------------------------------------------------------------------------------------

LENGTH = struct.Struct("<H")


class Frames:
    """Messages in a stream, a length before each."""

    def __init__(self, read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
        self._read, self._write = read, write
        self._rest = b""

    def send_many(self, messages: list[bytes]) -> None:
        self._write(b"".join([LENGTH.pack(len(message)) + message for message in messages]))

    def recv_many(self) -> int:
        data = self._rest + self._read(PIECE)
        messages = []
        at, end = 0, len(data)
        while at + 2 <= end:
            to = at + 2 + LENGTH.unpack_from(data, at)[0]
            if to > end:
                break
            messages.append(data[at + 2 : to])
            at = to
        self._rest = data[at:]
        return len(messages)


class Pipe(Transport):
    name = "os.pipe"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._pipes = os.pipe(), os.pipe()

    def end(self, side: int) -> AbstractContextManager[End]:
        reader, writer, size = self._pipes[side][0], self._pipes[1 - side][1], self.size
        frames = Frames(lambda n: os.read(reader, n), lambda data: _write_all(writer, data))
        read, write = os.read, os.write
        return nullcontext(
            End(lambda data: write(writer, data), lambda: read(reader, size), frames.send_many, frames.recv_many)
        )

    def close(self) -> None:
        for fd in (*self._pipes[0], *self._pipes[1]):
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class SocketPair(Transport):
    """SOCK_SEQPACKET for single messages, which keeps them apart; SOCK_STREAM for batches."""

    name = "socketpair"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._streams = socket.socketpair()

    def end(self, side: int) -> AbstractContextManager[End]:
        packets, stream, size = self._packets[side], self._streams[side], self.size
        frames = Frames(stream.recv, stream.sendall)
        recv = packets.recv
        return nullcontext(End(packets.send, lambda: recv(size), frames.send_many, frames.recv_many))

    def close(self) -> None:
        for one in (*self._packets, *self._streams):
            one.close()


class Connection(Transport):
    name = "multiprocessing.Pipe"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._ends = multiprocessing.Pipe()

    def end(self, side: int) -> AbstractContextManager[End]:
        one = self._ends[side]
        return nullcontext(End(one.send_bytes, one.recv_bytes, one.send, lambda: len(one.recv())))

    def close(self) -> None:
        for one in self._ends:
            one.close()


class Queue(Transport):
    name = "multiprocessing.Queue"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        context = multiprocessing.get_context("fork")
        self._queues = context.Queue(1024), context.Queue(1024)

    @contextmanager
    def end(self, side: int) -> Iterator[End]:
        mine, theirs = self._queues[side], self._queues[1 - side]
        yield End(theirs.put, mine.get, theirs.put, lambda: len(mine.get()))
        theirs.close()
        theirs.join_thread()

    def close(self) -> None:
        for one in self._queues:
            one.close()


class SharedRing(Transport):
    """A ring in shared memory in plain Python, spinning: what can be had without an extension. Trusts x86's order."""

    name = "shared_memory ring in Python"
    batches = False
    SLOTS = 256

    def __init__(self, size: int) -> None:
        super().__init__(size)
        if os.uname().machine not in ("x86_64", "i686"):
            raise Missing("plain Python has no memory barriers, which this machine needs")
        self._memories = [SharedMemory(create=True, size=128 + self.SLOTS * 512) for _ in range(2)]

    def end(self, side: int) -> AbstractContextManager[End]:
        def ring(memory: SharedMemory) -> tuple[memoryview, memoryview]:
            assert memory.buf is not None
            return memory.buf[:128].cast("I"), memory.buf[128:]  # indices: 0 of the writer, 16 of the reader

        (mine, data), (theirs, out) = ring(self._memories[side]), ring(self._memories[1 - side])
        slots, size = self.SLOTS, self.size

        def send(message: bytes) -> None:
            at = theirs[0]
            while at - theirs[16] == slots:
                pass
            to = at % slots * 512
            out[to : to + size] = message
            theirs[0] = at + 1

        def recv() -> bytes:
            at = mine[16]
            while mine[0] == at:
                pass
            where = at % slots * 512
            message = bytes(data[where : where + size])
            mine[16] = at + 1
            return message

        @contextmanager
        def opened() -> Iterator[End]:
            try:
                yield End(send, recv)
            finally:
                for view in (mine, data, theirs, out):
                    view.release()

        return opened()

    def close(self) -> None:
        for memory in self._memories:
            memory.close()
            memory.unlink()


# -- packages --------------------------------------------------------------------------------------------------------


class Zmq(Transport):
    name = "pyzmq PAIR over ipc"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._zmq = _package("zmq")
        self._folder = tempfile.TemporaryDirectory(prefix="rpmsgx-bench-")

    @contextmanager
    def end(self, side: int) -> Iterator[End]:
        with self._zmq.Context() as context, context.socket(self._zmq.PAIR) as one:
            address = f"ipc://{self._folder.name}/zmq"
            if side == 0:
                one.bind(address)
            else:
                one.connect(address)
            yield End(one.send, one.recv, one.send_multipart, lambda: len(one.recv_multipart()))

    def close(self) -> None:
        self._folder.cleanup()


class Iceoryx(Transport):
    """Publish and subscribe, a queue of 256 samples; both ends poll, as its Python API has it."""

    name = "iceoryx2"
    batches = False

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._iox = _package("iceoryx2")
        self._unique = f"rpmsgx bench {os.getpid()} {time.monotonic_ns()}"

    @contextmanager
    def end(self, side: int) -> Iterator[End]:
        iox, size = self._iox, self.size
        iox.set_log_level(iox.LogLevel.Error)
        node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)

        def service(way: int) -> Any:
            builder = node.service_builder(iox.ServiceName.new(f"{self._unique} {way}"))
            builder = builder.publish_subscribe(iox.Slice[ctypes.c_uint8]).enable_safe_overflow(False)
            return builder.subscriber_max_buffer_size(256).max_publishers(1).max_subscribers(1).open_or_create()

        subscriber = service(side).subscriber_builder().buffer_size(256).create()
        strategy = iox.BackpressureStrategy.RetryUntilDelivered
        theirs = service(1 - side)
        publisher = theirs.publisher_builder().initial_max_slice_len(size).backpressure_strategy(strategy).create()
        end = time.monotonic() + WAIT
        while theirs.dynamic_config.number_of_subscribers == 0:  # what is published before is lost
            if time.monotonic() > end:
                raise TimeoutError("iceoryx2: the other end did not come")

        def send(message: bytes) -> None:
            delivered = 0
            while not delivered:  # of a full queue it tells by 0, whatever the strategy
                sample = publisher.loan_slice_uninit(size)
                ctypes.memmove(sample.payload_ptr, message, size)
                delivered = sample.assume_init().send()

        def recv() -> bytes:
            while (sample := subscriber.receive()) is None:
                pass
            return ctypes.string_at(sample.payload_ptr, size)

        yield End(send, recv)


TRANSPORTS: tuple[type[Transport], ...] = (
    MemfdSpinning, MemfdBack, MemfdPacked, MemfdPackedBack, MemfdRows, MemfdBlocking, Pipe, SocketPair, Connection,
    Queue, Zmq, Iceoryx, SharedRing,
)  # fmt: skip
