"""The front-end of vhost-user: a driver that owns memory and rings and hands them to a back-end.

The memory is one sealed memfd with two regions, rings and buffers. Guest address, user address and file offset of each
differ, and so do the distances between the two: whoever takes one address for another finds nothing there.

Whatever ends a session, this end begins with a new connection: the back-end forgets the old rings with the old one.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.ringer import Ringer, SocketRinger
from rpmsgx.virtio.link import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NS,
    F_RING_PACKED,
    F_VERSION_1,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    Link,
    Pool,
    Ring,
    Session,
)
from rpmsgx.virtio.table import vring_size
from rpmsgx.virtio.vhost.connection import MESSAGES, Connection
from rpmsgx.virtio.vhost.protocol import (
    F_PROTOCOL_FEATURES,
    FEATURES,
    MEM_REGION,
    MEM_TABLE,
    NEED_REPLY,
    P_BACKEND_REQ,
    P_CONFIG,
    P_INBAND,
    P_REPLY_ACK,
    P_STATUS,
    REPLY,
    U64,
    VRING_ADDR,
    VRING_STATE,
    BackendRequest,
    Channel,
    Message,
    Request,
    Violation,
)

if TYPE_CHECKING:
    from rpmsgx.virtio.layout import Layout

ALIGN = 0x1000
PROTOCOL_FEATURES = P_REPLY_ACK | P_BACKEND_REQ | P_CONFIG | P_INBAND | P_STATUS

# Where the regions lie for others: guest address, user address. In the file, one gap precedes each.
RINGS_AT = (0x4000_0000, 0x7F10_0000_0000)
BUFFERS_AT = (0x8000_0000, 0x7F30_0000_0000)
GAP = 0x3000


class Memory:
    """The memory that a back-end gets: a region for the rings, one for the buffers. `da` is the user address."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.num = layout.num
        self.ring_size = _up(vring_size(self.num, ALIGN))
        self.pools = layout.buffers._replace(da=0).pools  # offsets, not da
        sizes = (2 * self.ring_size, _up(sum(count * size for _, count, size in self.pools)))
        self.offsets = (GAP, GAP + sizes[0] + GAP)
        self.file = Region.memfd(name, self.offsets[1] + sizes[1])
        assert self.file.fd is not None
        self.fd = self.file.fd
        self.rings, self.buffers = (
            Region.from_fd(f"{name} {what}", self.fd, size, offset=offset, da=user, pa=guest)
            for what, size, offset, (guest, user) in zip(
                ("rings", "buffers"), sizes, self.offsets, (RINGS_AT, BUFFERS_AT), strict=True
            )
        )
        self.space = AddressSpace(self.rings, self.buffers)

    def table(self) -> bytes:
        """The payload of SET_MEM_TABLE, with which the file's descriptor goes once for each region."""
        regions = zip((self.rings, self.buffers), self.offsets, strict=True)
        packed = [MEM_REGION.pack(region.pa, region.size, region.da, offset) for region, offset in regions]
        return MEM_TABLE.pack(len(packed), 0) + b"".join(packed)

    def ring(self, index: int, packed: bool) -> Ring:
        return Ring.placed(self.rings.buffer, index * self.ring_size, self.num, ALIGN, index, packed)

    def addresses(self, ring: Ring) -> bytes:
        """The payload of SET_VRING_ADDR."""
        desc, avail, used = (self.rings.da + start for _, start, _ in ring.parts())
        return VRING_ADDR.pack(ring.notifyid, 0, desc, used, avail, 0)

    def pool(self, index: int) -> Pool:
        offset, count, size = self.pools[index]
        return Pool(self.buffers.buffer, offset, self.buffers.pa + offset, size, count)

    def clear_rings(self) -> None:
        self.rings.view[:] = bytes(self.rings.size)

    def close(self) -> None:
        for region in (self.rings, self.buffers, self.file):
            region.close()


Script = Generator[None, int, None]


class Frontend(Connection):
    """Negotiates with one back-end after another and hands it `memory`; then it is `connected`.

    `features` and `protocol` are what was agreed on. Requests are sent one behind the other, without waiting, but where
    the next one depends on an answer.
    """

    def __init__(self, path: str, memory: Memory, *, listen: bool, uid: int | None) -> None:
        self.features = 0
        self.protocol = 0
        self._memory = memory
        self._status = 0
        self._expected: deque[tuple[Request, Callable[[int], None] | None]] = deque()
        self._script: Script | None = None
        self._requests: Channel | None = None  # the back-end's
        self._ends: list[socket.socket] = []
        self._kicks: list[Ringer] = []
        super().__init__(path, listen=listen, uid=uid)

    def kick(self, notifyid: int) -> None:
        with self._lock:
            if not self.connected or self._channel is None:
                return
            try:
                if not self._status & DRIVER_OK:  # the first ring of a session: buffers are in place
                    self._set_status(DRIVER_OK)
                if self.protocol & P_INBAND:
                    self._channel.send_once(Request.VRING_KICK, VRING_STATE.pack(notifyid, 0))
                else:
                    self._kicks[notifyid].ring()
            except (Violation, OSError):
                pass  # the next look finds out

    def give_up(self) -> None:
        """The device broke a rule of the rings (VIRTIO 3.1.1-4)."""
        with self._lock:
            try:
                if self.connected:
                    self._set_status(FAILED)
            except (Violation, OSError):
                pass

    def ring(self, index: int) -> Ring:
        """As was agreed on."""
        return self._memory.ring(index, bool(self.features & F_RING_PACKED))

    # -- what is sent

    def _tell(self, request: Request, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        assert self._channel is not None
        flags = NEED_REPLY if self.protocol & P_REPLY_ACK else 0
        if flags:
            self._expected.append((request, None))
        self._channel.send(request, payload, flags=flags, fds=fds)

    def _ask(self, request: Request, then: Callable[[int], None]) -> None:
        assert self._channel is not None
        self._expected.append((request, then))
        self._channel.send(request)

    def _answer(self, request: Request) -> Generator[None, int, int]:
        self._ask(request, self._go_on)
        return (yield)

    def _go_on(self, answer: int) -> None:
        assert self._script is not None
        try:
            self._script.send(answer)
        except StopIteration:
            self._script = None
            self.connected = True

    def _set_status(self, bits: int) -> None:
        self._status |= bits
        if self.protocol & P_STATUS:
            self._tell(Request.SET_STATUS, U64.pack(self._status))

    def _negotiate(self) -> Script:
        """VIRTIO 3.1.1, as far as the back-end can be told of it, and the order in which Linux and QEMU do it."""
        self._tell(Request.SET_OWNER)
        offered = yield from self._answer(Request.GET_FEATURES)
        if offered & F_PROTOCOL_FEATURES:
            protocol = (yield from self._answer(Request.GET_PROTOCOL_FEATURES)) & PROTOCOL_FEATURES
            if not (protocol & P_BACKEND_REQ and protocol & P_REPLY_ACK):
                protocol &= ~P_INBAND
            self._tell(Request.SET_PROTOCOL_FEATURES, U64.pack(protocol))
            self.protocol = protocol
            if protocol & P_BACKEND_REQ:
                self._tell(Request.SET_BACKEND_REQ_FD, fds=(self._request_socket(),))
        if self.protocol & P_STATUS:
            self._tell(Request.SET_STATUS, U64.pack(0))
            self._set_status(ACKNOWLEDGE)
            self._set_status(DRIVER)
        self.features = offered & FEATURES
        if not offered & F_VERSION_1:
            self.features &= ~F_RING_PACKED  # which needs it (VIRTIO 2.2.1)
        self._tell(Request.SET_FEATURES, U64.pack(self.features))
        if self.protocol & P_STATUS and self.features & F_VERSION_1:
            self._set_status(FEATURES_OK)
            if not (yield from self._answer(Request.GET_STATUS)) & FEATURES_OK:
                self._set_status(FAILED)
                raise Violation(f"the device does not take features {self.features:#x}")
        self._hand_over()
        yield from self._answer(Request.GET_FEATURES)  # a barrier: all of the above has been taken, or refused

    def _hand_over(self) -> None:
        memory = self._memory
        memory.clear_rings()
        self._tell(Request.SET_MEM_TABLE, memory.table(), (memory.fd, memory.fd))
        inband = self.protocol & P_INBAND
        for index in (0, 1):
            if not inband:
                self._tell(Request.SET_VRING_CALL, U64.pack(index), (self._call_socket(index),))
            ring = self.ring(index)
            self._tell(Request.SET_VRING_NUM, VRING_STATE.pack(index, ring.num))
            self._tell(Request.SET_VRING_BASE, VRING_STATE.pack(index, ring.base))
            self._tell(Request.SET_VRING_ADDR, memory.addresses(ring))
        for index in (0, 1):
            if not inband:
                self._tell(Request.SET_VRING_KICK, U64.pack(index), (self._kick_socket(),))
            if self.features & F_PROTOCOL_FEATURES:
                self._tell(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))

    # Sockets, not eventfds: see rpmsgx.notify.ringer. The peer's ends are kept until the connection ends, since a
    # message may be sent later than it is written.

    def _pair(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        self._ends += ours, theirs
        return ours, theirs.fileno()

    def _call_socket(self, index: int) -> int:
        ours, theirs = self._pair()
        self._listen(SocketRinger(ours), index)
        return theirs

    def _kick_socket(self) -> int:
        ours, theirs = self._pair()
        self._kicks.append(SocketRinger(ours))
        return theirs

    def _request_socket(self) -> int:
        ours, theirs = self._pair()
        self._requests = Channel(ours, self._epoll, listen=True)
        return theirs

    # -- what comes

    def _begin(self) -> None:
        self._script = self._negotiate()
        next(self._script)

    def _handle(self, message: Message) -> None:
        if not self._expected or not message.flags & REPLY or message.fds:
            raise Violation(f"message {message.request}, where no answer was due")
        request, then = self._expected.popleft()
        if message.request != request or len(message.payload) != U64.size:
            raise Violation(f"message {message.request} of {len(message.payload)} bytes in answer to {request.name}")
        (value,) = U64.unpack(message.payload)
        if then is not None:
            then(value)
        elif value:
            raise Violation(f"it refused {request.name} ({value:#x})")

    def _serve(self) -> None:
        super()._serve()
        for _ in range(MESSAGES):
            if self._requests is None:
                break
            self._requests.flush()
            message = self._requests.receive()
            if message is None:
                break
            message.close_fds()
            self._handle_request(message)

    def _handle_request(self, message: Message) -> None:
        assert self._requests is not None
        if message.flags & REPLY:
            raise Violation(f"request {message.request} is a reply to nothing")
        known = message.request in (BackendRequest.CONFIG_CHANGE, BackendRequest.VRING_CALL, BackendRequest.VRING_ERR)
        if message.flags & NEED_REPLY:
            self._requests.send(message.request, U64.pack(not known), flags=REPLY)
        if message.request == BackendRequest.CONFIG_CHANGE and self.protocol & P_STATUS:
            self._ask(Request.GET_STATUS, self._check_status)

    def _check_status(self, status: int) -> None:
        if status & NEEDS_RESET:
            raise ConnectionResetError  # a new connection is as good

    # -- the end

    def _end(self) -> None:
        self.features = self.protocol = self._status = 0
        self._script = None
        self._expected.clear()
        for ringer, _ in list(self._ringers.values()):
            self._unlisten(ringer)
        if self._requests is not None:
            self._requests.close(forked=self._meeting.forked)
            self._requests = None
        for end in self._ends:
            end.close()
        self._ends.clear()
        self._kicks.clear()


class VhostUserDriver(Link):
    """The driver's end of a link: the device is the back-end."""

    role = "driver"
    gone = "the back-end closed it or died"
    doorbell: Frontend

    def __init__(self, path: str, layout: Layout, *, listen: bool, uid: int | None) -> None:
        self.url = f"vhost-user:{path}"
        self._memory = Memory(f"rpmsgx {os.path.basename(path)}", layout)
        self.space = self._memory.space
        try:
            self.doorbell = Frontend(path, self._memory, listen=listen, uid=uid)
        except BaseException:
            self._memory.close()
            raise
        self._lost = 0
        self._closed = False

    def session(self) -> Session | None:
        frontend = self.doorbell
        why, frontend.why = frontend.why, ""
        if why:
            raise ResourceError(f"{self.url}: the back-end was hung up on: {why}")
        self._lost = frontend.lost
        if self._closed or not frontend.connected:
            return None
        features = frontend.features
        return Session(
            rx=frontend.ring(0),
            tx=frontend.ring(1),
            rx_pool=self._memory.pool(0),
            tx_pool=self._memory.pool(1),
            name_service=bool(features & F_NS),
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            version_1=bool(features & F_VERSION_1),
        )

    def alive(self) -> bool:
        return not self._closed and self._lost == self.doorbell.lost

    def needs_reset(self) -> None:
        self.doorbell.give_up()

    def close(self) -> None:
        self._closed = True
        self.doorbell.close()
        self._memory.close()


def _up(value: int) -> int:
    return (value + ALIGN - 1) & ~(ALIGN - 1)
