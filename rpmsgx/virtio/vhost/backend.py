"""The back-end of vhost-user: a device whose rings a front-end, such as a hypervisor, hands over.

The front-end owns the memory and the rings and decides when a session begins and ends; the back-end says what it can
do, maps what it is given, and answers. A message that takes the rings away is answered only once the bus has let go of
them: the front-end may use their memory for something else as soon as it has the answer.

Completions are in order unless somebody holds loans, so F_INFLIGHT_SHMFD is left out: after a restart the device goes
on where the used ring ends.
"""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Callable
from typing import NamedTuple

from rpmsgx.errors import ResourceError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.notify.ringer import Ringer, adopt
from rpmsgx.virtio.link import (
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NS,
    F_RING_PACKED,
    F_VERSION_1,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    PACKED_START,
    Link,
    Ring,
    Session,
    granted,
    legal_num,
    overlapping,
    ring_areas,
)
from rpmsgx.virtio.vhost.connection import Connection, log
from rpmsgx.virtio.vhost.protocol import (
    CONFIG,
    F_PROTOCOL_FEATURES,
    MAX_CONFIG,
    MAX_REGIONS,
    MEM_REGION,
    MEM_TABLE,
    NEED_REPLY,
    NO_FD,
    P_BACKEND_REQ,
    P_CONFIG,
    P_INBAND,
    P_MQ,
    P_REPLY_ACK,
    P_RESET_DEVICE,
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

VRINGS = 2
PROTOCOL_FEATURES = P_MQ | P_REPLY_ACK | P_BACKEND_REQ | P_CONFIG | P_RESET_DEVICE | P_STATUS


class Refused(Exception):
    """The back-end cannot do what a message asks for; nothing has changed."""


class _Vring:
    """What the front-end said of one vring."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.num = 0
        self.base = 0
        self.addresses: tuple[int, int, int] | None = None  # user addresses of desc, avail, used
        self.enabled = False
        self.kicked = False
        self.kick: Ringer | None = None
        self.call: Ringer | None = None
        self.error: Ringer | None = None
        self.reached: Callable[[], int] | None = None  # while a session has it: the base to go on from

    def ringers(self) -> list[Ringer]:
        return [ringer for ringer in (self.kick, self.call, self.error) if ringer is not None]


class Backend(Connection):
    """Serves one front-end after another; offers `features`, and in-band notifications if `inband`.

    `generation` counts what ended a session, which lasts from `take_rings` on. `memory` is the front-end's, da its user
    addresses, pa its guest's. `positions`: of packed rings that were taken, see `Session`.
    """

    def __init__(self, path: str, *, listen: bool, uid: int | None, features: int, inband: bool) -> None:
        self.offered = features
        self.offered_protocol = PROTOCOL_FEATURES | (P_INBAND if inband else 0)
        self.generation = 0
        self._in_use = False
        self._held: Message | None = None
        self._requests: Channel | None = None  # our own, to the front-end
        self.positions = array("I", (0, 0))
        self.memory: AddressSpace | None = None
        self._vrings = [_Vring(index) for index in range(VRINGS)]
        self._features: int | None = None
        self._protocol = 0
        self._status = 0
        super().__init__(path, listen=listen, uid=uid)

    # -- for the link

    def take_rings(self) -> tuple[list[Ring], tuple[Region, ...], int] | None:
        """The vrings, the memory and the features, where the front-end has handed all of it over and has kicked.

        To be called when nobody uses the rings of the last time any more: what waited for that goes on.
        """
        with self._lock:
            self._release()
            held, self._held = self._held, None
            if held is not None and self._channel is not None:
                self._channel.nudge(False)
                try:
                    self._handle(held)
                except Violation as violation:
                    self._lose(str(violation))
                except OSError:
                    self._lose()
                finally:
                    held.close_fds()
                if not self._epoll.closed:
                    self._drain()
            return self._take()

    def _take(self) -> tuple[list[Ring], tuple[Region, ...], int] | None:
        if self.memory is None or self._held is not None or not self._started():
            return None
        try:
            if self.memory_lost():
                raise Refused("the shared memory was truncated")
            rings = [self._started_at(self._ring(vring)) for vring in self._vrings]
            if overlapping([part for ring in rings for part in ring.parts()]):
                raise Refused("the vrings overlap")
            for ring in rings:
                self._check_base(ring.notifyid, ring.base, ring.num)
        except Refused as refused:
            self._ring_errors()
            self._lose(str(refused))
            return None
        self.positions = array("I", (ring.base >> 16 for ring in reversed(rings)))  # rx is vring 1
        for vring, ring in zip(self._vrings, rings, strict=True):
            vring.reached = self._progress(ring)
        self._in_use = True
        return rings, self.memory.regions, self._features or 0

    def _started_at(self, ring: Ring) -> Ring:
        """With the base of a packed ring that starts where a front-end says 0, as Linux's virtio_uml does of any ring.

        Wrap counters 0 at slot 0 are those of a second lap: then the first one has left the slot's bit USED set.
        """
        used = memoryview(ring.buffer)[ring.offset + 15] & 0x80  # type: ignore[arg-type]
        return ring._replace(base=PACKED_START) if ring.packed and ring.base == 0 and not used else ring

    def _started(self) -> bool:
        ready = all(vring.num and vring.addresses and vring.enabled for vring in self._vrings)
        return (
            ready
            and self._features is not None
            and any(vring.kicked for vring in self._vrings)
            and (not self._protocol & P_STATUS or _running(self._status))
        )

    def memory_lost(self) -> bool:
        memory = self.memory
        return memory is not None and any(region.lost for region in memory.regions)

    def needs_reset(self) -> None:
        with self._lock:
            self._status |= NEEDS_RESET
            self._ring_errors()
            if self._protocol & P_CONFIG:  # VIRTIO 2.1.2-3: a notification of a configuration change says so
                self._request(BackendRequest.CONFIG_CHANGE, b"")

    def kick(self, notifyid: int) -> None:
        with self._lock:
            vring = self._vrings[notifyid]
            if vring.call is not None:
                vring.call.ring()
            elif self._protocol & P_INBAND:
                self._request(BackendRequest.VRING_CALL, VRING_STATE.pack(notifyid, 0))

    def _ring_errors(self) -> None:
        for vring in self._vrings:
            if vring.error is not None:
                vring.error.ring()

    def _request(self, request: BackendRequest, payload: bytes) -> None:
        if self._requests is not None:
            try:
                self._requests.send_once(request, payload)
            except (Violation, OSError):
                self._drop_requests()

    # -- the life of a connection

    def _begin(self) -> None:
        self.connected = True

    def _end(self) -> None:
        self.generation += 1
        self._release()
        self._reset()
        self._protocol = 0
        if self._held is not None:
            self._held.close_fds()
            self._held = None
        self._drop_requests()
        self._drop_memory()

    def _serve(self) -> None:
        if self._requests is not None:
            try:
                self._requests.flush()
            except OSError:
                self._drop_requests()
        if self._held is None:
            super()._serve()

    def _rung(self, index: int) -> None:
        self._vrings[index].kicked = True

    def _reset(self) -> None:
        """The device as it is when a front-end comes."""
        for vring in self._vrings:
            for ringer in vring.ringers():
                self._unlisten(ringer)
                ringer.close()
        self._vrings = [_Vring(index) for index in range(VRINGS)]
        self._features = None
        self._status = 0

    def _release(self) -> None:
        """Nobody uses the rings any more: note how far the device came."""
        if not self._in_use:
            return
        self._in_use = False
        for vring in self._vrings:
            assert vring.reached is not None
            vring.base = vring.reached()
            vring.reached = None

    def _progress(self, ring: Ring) -> Callable[[], int]:
        """What tells the base that whoever has the ring next goes on from: what was not given back is offered again."""
        assert ring.used is not None
        if ring.packed:
            positions, which = self.positions, 1 - ring.notifyid
            return lambda: positions[which] * 0x10001  # to take, and to give back
        order = struct.Struct("<H" if (self._features or 0) & F_VERSION_1 else "=H")
        buffer, at = memoryview(ring.used[0]), ring.used[1] + 2  # type: ignore[arg-type]
        (first,) = order.unpack_from(buffer, at)
        return lambda: int(ring.base + order.unpack_from(buffer, at)[0] - first) & 0xFFFF

    def _drop_requests(self) -> None:
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.close(forked=self._meeting.forked)

    def _drop_memory(self) -> None:
        memory, self.memory = self.memory, None
        if memory is not None:
            for region in memory.regions:
                region.close()

    # -- messages

    def _handle(self, message: Message) -> None:
        name, payload = f"message {message.request}", message.payload
        if message.flags & REPLY:
            raise Violation(f"{name} is a reply to nothing")
        answer: bytes | None = None
        what = _HANDLERS.get(message.request)
        try:
            if what is None:
                raise Refused(f"{name} is not known")
            name = Request(message.request).name
            if what.size is not None and len(payload) != what.size:
                raise Refused(f"{name} has {len(payload)} bytes, not {what.size}")
            if len(message.fds) > what.fds:
                raise Refused(f"{name} brings {len(message.fds)} descriptors, {what.fds} belong there")
            if self._in_use and what.ends(payload):
                self._hold(message)
                return
            answer = what.call(self, message)
        except Refused as refused:
            if not message.flags & NEED_REPLY or (what is not None and what.answers):
                raise Violation(str(refused)) from None
            log.warning("%s: refused: %s", self.path, str(refused))  # not the frames that it holds
            answer = U64.pack(1)
        else:
            if answer is None and message.flags & NEED_REPLY:
                answer = U64.pack(0)
        if answer is not None and self._channel is not None:
            self._channel.send(message.request, answer, flags=REPLY)

    def _hold(self, message: Message) -> None:
        """The session ends here; the message goes on in `take_rings`, and nothing behind it before."""
        assert self._channel is not None
        self.generation += 1
        self._held = message._replace(fds=message.fds[:])
        message.fds.clear()
        self._channel.nudge(True)

    def _vring(self, index: int) -> _Vring:
        if index >= VRINGS:
            raise Refused(f"vring {index}: there are {VRINGS}")
        return self._vrings[index]

    def _vring_state(self, message: Message) -> tuple[_Vring, int]:
        index, value = VRING_STATE.unpack(message.payload)
        return self._vring(index), value

    def _get_features(self, message: Message) -> bytes:
        return U64.pack(self.offered)

    def _set_features(self, message: Message) -> None:
        (features,) = U64.unpack(message.payload)
        if features & ~self.offered:
            raise Refused(f"features {features:#x}, only {self.offered:#x} are offered")
        if features & F_RING_PACKED and not features & F_VERSION_1:
            raise Refused(f"features {features:#x}: RING_PACKED without VERSION_1")
        self._features = features
        for vring in self._vrings:
            vring.kicked = False
            vring.enabled = not features & F_PROTOCOL_FEATURES

    def _get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(self.offered_protocol)

    def _set_protocol_features(self, message: Message) -> None:
        (features,) = U64.unpack(message.payload)
        if features & ~self.offered_protocol:
            raise Refused(f"protocol features {features:#x}, only {self.offered_protocol:#x} are offered")
        if features & P_INBAND and not (features & P_BACKEND_REQ and features & P_REPLY_ACK):
            raise Violation("in-band notifications without BACKEND_REQ and REPLY_ACK")
        self._protocol = features

    def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(VRINGS)

    def _set_owner(self, message: Message) -> None:
        pass

    def _reset_device(self, message: Message) -> None:
        self._reset()

    def _disable(self, message: Message) -> None:
        for vring in self._vrings:
            vring.enabled = False

    def _set_mem_table(self, message: Message) -> None:
        payload = message.payload
        if len(payload) < MEM_TABLE.size:
            raise Refused("a memory table without a header")
        count, _ = MEM_TABLE.unpack_from(payload)
        # UML sends its structure of two regions even where there is one.
        if not 0 < count <= MAX_REGIONS or len(payload) < MEM_TABLE.size + count * MEM_REGION.size:
            raise Refused(f"a memory table of {count} regions in {len(payload)} bytes; 1 to {MAX_REGIONS} can be")
        if len(message.fds) != count:
            raise Refused(f"a memory table of {count} regions with {len(message.fds)} descriptors")
        space = AddressSpace()
        regions: list[Region] = []
        try:
            for i, fd in enumerate(message.fds):
                guest, size, user, offset = MEM_REGION.unpack_from(payload, MEM_TABLE.size + i * MEM_REGION.size)
                region = Region.from_fd(f"{self.path}[{i}]", fd, size, offset=offset, da=user, pa=guest)
                regions.append(region)
                region.guard()
                space.add(region)
        except (ResourceError, OSError) as error:
            for region in regions:
                region.close()
            raise Refused(str(error)) from None
        self._drop_memory()
        self.memory = space

    def _set_vring_num(self, message: Message) -> None:
        vring, num = self._vring_state(message)
        self._check_num(vring.index, num)
        vring.num = num

    @property
    def _packed(self) -> bool:
        return bool((self._features or 0) & F_RING_PACKED)

    def _check_num(self, index: int, num: int) -> None:
        if not legal_num(num, self._packed):
            kind = "" if self._packed else "a power of two "
            raise Refused(f"vring {index}: num is {num}, not {kind}from 1 to 32768")

    def _check_base(self, index: int, base: int, num: int) -> None:
        if max(base & 0x7FFF, base >> 16 & 0x7FFF) >= num if self._packed else base > 0xFFFF:
            limit = f"is not in {num} slots" if self._packed else "has more than 16 bits"
            raise Refused(f"vring {index}: base {base:#x} {limit}")

    def _set_vring_addr(self, message: Message) -> None:
        index, flags, desc, used, avail, _ = VRING_ADDR.unpack(message.payload)
        vring = self._vring(index)
        if flags:
            raise Refused(f"vring {index}: flags {flags:#x}: there is no logging")
        before, vring.addresses = vring.addresses, (desc, avail, used)
        try:
            self._ring(vring)
        except Refused:
            vring.addresses = before
            raise

    def _ring(self, vring: _Vring) -> Ring:
        """Where the vring lies in our memory."""
        places: list[tuple[object, int]] = []
        if self.memory is None or vring.addresses is None or not vring.num:
            raise Refused(f"vring {vring.index}: memory and num come before its addresses")
        self._check_num(vring.index, vring.num)  # features may have changed since
        for address, (size, align) in zip(vring.addresses, ring_areas(vring.num, self._packed), strict=True):
            try:
                region, offset = self.memory.find_da(address, size)
            except ResourceError as error:
                raise Refused(f"vring {vring.index}: {error}") from None
            if offset % align or address % align:
                raise Refused(f"vring {vring.index}: {address:#x} is not a multiple of {align}")
            places.append((region.buffer, offset))
        (buffer, offset), avail, used = places
        return Ring(buffer, offset, vring.num, 0, vring.index, avail, used, vring.base, self._packed)

    def _set_vring_base(self, message: Message) -> None:
        vring, base = self._vring_state(message)
        self._check_base(vring.index, base, num=1 << 15)
        vring.base = base

    def _get_vring_base(self, message: Message) -> bytes:
        vring, _ = self._vring_state(message)
        vring.kicked = False
        return VRING_STATE.pack(vring.index, vring.base)

    def _set_vring_enable(self, message: Message) -> None:
        vring, enabled = self._vring_state(message)
        vring.enabled = bool(enabled)

    def _fd_of(self, message: Message) -> tuple[_Vring, Ringer | None]:
        (value,) = U64.unpack(message.payload)
        vring = self._vring(value & 0xFF)
        if value & ~(0xFF | NO_FD) or bool(value & NO_FD) == bool(message.fds):
            raise Refused(f"vring {value:#x} with {len(message.fds)} descriptors")
        if not message.fds:
            return vring, None
        try:
            return vring, adopt(message.take_fd())
        except OSError as error:
            raise Refused(f"vring {vring.index}: {error}") from None

    def _set_vring_kick(self, message: Message) -> None:
        vring, ringer = self._fd_of(message)
        if ringer is None:
            raise Refused(f"vring {vring.index}: a kick descriptor is needed, this back-end does not poll")
        if vring.kick is not None:
            self._unlisten(vring.kick)
            vring.kick.close()
        vring.kick = ringer
        vring.kicked = self._in_use
        self._listen(ringer, vring.index)

    def _set_vring_call(self, message: Message) -> None:
        vring, ringer = self._fd_of(message)
        if vring.call is not None:
            vring.call.close()
        vring.call = ringer

    def _set_vring_err(self, message: Message) -> None:
        vring, ringer = self._fd_of(message)
        if vring.error is not None:
            vring.error.close()
        vring.error = ringer

    def _vring_kick(self, message: Message) -> None:
        vring, _ = self._vring_state(message)
        if not self._protocol & P_INBAND:
            raise Refused("in-band notifications were not negotiated")
        vring.kicked = True

    def _set_requests(self, message: Message) -> None:
        if not message.fds:
            raise Refused("no descriptor for the back-end's requests")
        try:
            end = socket.socket(fileno=message.fds[0])
        except OSError as error:
            raise Refused(f"the descriptor for the back-end's requests: {error}") from None
        message.take_fd()
        if end.type != socket.SOCK_STREAM:
            end.close()
            raise Refused("the descriptor for the back-end's requests is not a stream socket")
        self._drop_requests()
        self._requests = Channel(end, self._epoll, listen=False)

    def _get_config(self, message: Message) -> bytes:
        """The configuration space of rpmsg is empty: what a front-end asks for reads as zeros."""
        if len(message.payload) >= CONFIG.size:
            offset, size, _ = CONFIG.unpack_from(message.payload)
            if len(message.payload) == CONFIG.size + size and offset + size <= MAX_CONFIG:
                return CONFIG.pack(offset, size, 0) + bytes(size)
        return b""  # which says that this cannot be

    def _set_config(self, message: Message) -> None:
        raise Refused("there is nothing to write in the configuration space")

    def _set_status(self, message: Message) -> None:
        (status,) = U64.unpack(message.payload)
        if status > 0xFF:
            raise Refused(f"status {status:#x} has more than 8 bits")
        if status == 0:
            self._features = None
            for vring in self._vrings:
                vring.enabled = vring.kicked = False
        elif self._features is None:
            status &= ~FEATURES_OK  # VIRTIO 2.2.2-2
        self._status = status

    def _get_status(self, message: Message) -> bytes:
        return U64.pack(self._status)


def _running(status: int) -> bool:
    return bool(status & DRIVER_OK) and not status & FAILED


class _Handler(NamedTuple):
    """`size`: of the payload, None where the handler checks it. `fds`: descriptors that may come. `ends`: whether a
    message takes the rings away. `answers`: its reply is no acknowledgement, so it cannot be refused."""

    call: Callable[[Backend, Message], bytes | None]
    size: int | None
    fds: int = 0
    ends: Callable[[bytes], bool] = lambda payload: False
    answers: bool = False


def _always(payload: bytes) -> bool:
    return True


_HANDLERS: dict[int, _Handler] = {
    Request.GET_FEATURES: _Handler(Backend._get_features, 0, answers=True),
    Request.SET_FEATURES: _Handler(Backend._set_features, U64.size, ends=_always),
    Request.SET_OWNER: _Handler(Backend._set_owner, 0),
    Request.RESET_OWNER: _Handler(Backend._disable, 0, ends=_always),
    Request.SET_MEM_TABLE: _Handler(Backend._set_mem_table, None, MAX_REGIONS, ends=_always),
    Request.SET_VRING_NUM: _Handler(Backend._set_vring_num, VRING_STATE.size, ends=_always),
    Request.SET_VRING_ADDR: _Handler(Backend._set_vring_addr, VRING_ADDR.size, ends=_always),
    Request.SET_VRING_BASE: _Handler(Backend._set_vring_base, VRING_STATE.size, ends=_always),
    Request.GET_VRING_BASE: _Handler(Backend._get_vring_base, VRING_STATE.size, ends=_always, answers=True),
    Request.SET_VRING_KICK: _Handler(Backend._set_vring_kick, U64.size, 1),
    Request.SET_VRING_CALL: _Handler(Backend._set_vring_call, U64.size, 1),
    Request.SET_VRING_ERR: _Handler(Backend._set_vring_err, U64.size, 1),
    Request.GET_PROTOCOL_FEATURES: _Handler(Backend._get_protocol_features, 0, answers=True),
    Request.SET_PROTOCOL_FEATURES: _Handler(Backend._set_protocol_features, U64.size, ends=_always),
    Request.GET_QUEUE_NUM: _Handler(Backend._get_queue_num, 0, answers=True),
    Request.SET_VRING_ENABLE: _Handler(
        Backend._set_vring_enable, VRING_STATE.size, ends=lambda payload: not VRING_STATE.unpack(payload)[1]
    ),
    Request.SET_BACKEND_REQ_FD: _Handler(Backend._set_requests, 0, 1),
    Request.GET_CONFIG: _Handler(Backend._get_config, None, answers=True),
    Request.SET_CONFIG: _Handler(Backend._set_config, None),
    Request.RESET_DEVICE: _Handler(Backend._reset_device, 0, ends=_always),
    Request.VRING_KICK: _Handler(Backend._vring_kick, VRING_STATE.size),
    Request.SET_STATUS: _Handler(
        Backend._set_status, U64.size, ends=lambda payload: not _running(U64.unpack(payload)[0])
    ),
    Request.GET_STATUS: _Handler(Backend._get_status, 0, answers=True),
}


class VhostUserDevice(Link):
    """The device's end of a link: its driver is whoever is behind the front-end."""

    role = "device"
    gone = "the front-end took the rings away or went"
    doorbell: Backend

    def __init__(self, path: str, *, listen: bool, uid: int | None, features: int, inband: bool) -> None:
        self.url = f"vhost-user:{path}"
        self.doorbell = Backend(path, listen=listen, uid=uid, features=features, inband=inband)
        self._generation = 0
        self._closed = False

    def session(self) -> Session | None:
        if self._closed:
            return None
        taken = self.doorbell.take_rings()
        if taken is None:
            return None
        self._generation = self.doorbell.generation
        rings, memory, features = taken
        guarded = max(memory, key=lambda region: region.size).lost_flag
        return Session(
            rx=rings[1],
            tx=rings[0],
            regions=granted(memory, [part for ring in rings for part in ring.parts()], "pa"),
            name_service=bool(features & F_NS),
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            version_1=bool(features & F_VERSION_1),
            lost=None if guarded is None else (guarded, 0),
            adopt_used=True,
            positions=(self.doorbell.positions, 0) if features & F_RING_PACKED else None,
        )

    @property
    def space(self) -> AddressSpace | None:  # type: ignore[override]
        return self.doorbell.memory

    def alive(self) -> bool:
        backend = self.doorbell
        return not self._closed and self._generation == backend.generation and not backend.memory_lost()

    def needs_reset(self) -> None:
        self.doorbell.needs_reset()

    def close(self) -> None:
        self._closed = True
        self.doorbell.close()
