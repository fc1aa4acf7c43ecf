# SPDX-License-Identifier: BSD-3-Clause
"""`file:` with OpenAMP's layout against a literal reading of what OpenAMP and rpmsg-lite put into shared memory.

Both roles, and in each the end that writes the table and the one that finds it. Offsets stand as numbers, as in the
written facts; the peer checks each byte that it sees.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from peers.literal import (
    F_EVENT_IDX,
    F_NS,
    OPENAMP,
    RPMSG_LITE,
    TOLERATE_OPENAMP,
    TOLERATE_RPMSG_LITE,
    LiteralPeer,
)
from support import require

import rpmsgx

WAIT = 10.0
STATUS, GFEATURES = 0x2C, 0x24
DESC0, AVAIL0, USED0 = 0x4000, 0x5000, 0x6000
DESC1, AVAIL1, USED1 = 0x8000, 0x9000, 0xA000
RX_POOL, TX_POOL = 0x10000, 0x30000
TABLE = bytes.fromhex(
    "01000000 01000000 00000000 00000000 14000000"
    "03000000 07000000 00000000 01000000 00000000 00000000 00 02 0000"
    "00400000 00100000 00010000 01000000 00000000"
    "00800000 00100000 00010000 02000000 00000000"
)
#: What our device does and Linux does not: OpenAMP's driver takes used.len for the room in a buffer that comes back.
OURS = frozenset({"2.7.8.2-2"})
#: used.len of what our device sends, desc.len of what our driver sends.
LENGTHS = {"device": "whole", "driver": "exact"}
PEERS: dict[str, dict[str, Any]] = {
    "linux": {"tolerate": OURS},
    "openamp": {**OPENAMP, "dirty": True, "tolerate": OURS},
    "rpmsg-lite": {**RPMSG_LITE, "dirty": True, "tolerate": OURS},
}

roles = pytest.mark.parametrize("role", ["driver", "device"])
servers = pytest.mark.parametrize("server", [True, False], ids=["we-serve", "peer-serves"])
kinds = pytest.mark.parametrize("kind", PEERS)


class Link:
    """Our bus and the literal peer, both in this thread: what one waits for, the other is stepped for."""

    def __init__(
        self,
        role: str,
        server: bool,
        path: str,
        *,
        bell: str | None = None,
        options: dict[str, Any] | None = None,
        **habits: Any,
    ) -> None:
        named = {} if bell is None else {"doorbell": f"unix:{bell}"}
        other = {"driver": "device", "device": "driver"}[role]
        habits = {"peer_lengths": LENGTHS[role], **habits}

        def peer() -> LiteralPeer:
            return LiteralPeer(path, bell or f"{path}.bell", role=other, server=not server, **habits)

        if not server:
            self.peer = peer()
        self.bus: Any = rpmsgx.open(f"file:{path}", role, server=server, **named, **(options or {}))
        if server:
            self.peer = peer()
        self.role = role
        self.path = path

    def start(self) -> None:
        self.peer.connect(WAIT)
        self.until(lambda: self.bus.space is not None and self.peer.running, start=True)
        self.until(lambda: self.bus.is_up)

    def until(self, ready: Any, *, start: bool = False) -> None:
        deadline = time.monotonic() + WAIT
        while not ready():
            assert time.monotonic() < deadline
            self.bus.poll(timeout=0.001)
            try:
                if start and not self.peer.running:
                    self.peer.start(0.01)
                elif self.peer.running or not self.peer.is_driver:
                    self.peer.poll(0)
            except TimeoutError:
                pass

    def read(self, form: str, offset: int) -> Any:
        values = struct.unpack_from("=" + form, self.peer.file.mm, offset)
        return values[0] if len(values) == 1 else values

    def close(self, check: bool) -> None:
        self.bus.poll()
        self.peer.close(check)
        self.bus.close(linger=0)


@contextmanager
def linked(role: str, server: bool, folder: Path, *, start: bool = True, **options: Any) -> Iterator[Link]:
    link = Link(role, server, str(folder / "link"), **options)
    try:
        if start:
            link.start()
        yield link
    except BaseException:
        link.close(check=False)
        raise
    link.close(check=True)


@contextmanager
def real_names() -> Iterator[tuple[str, str]]:
    """OpenAMP's own file and socket, which there can be one of on a machine."""
    path, bell = "/dev/shm/openamp.shm", "/tmp/openamp.event.0"
    with open(Path(tempfile.gettempdir()) / "rpmsgx-test-openamp.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        require(os.path.isdir("/dev/shm"), "no /dev/shm")
        require(not os.path.exists(path) and not os.path.exists(bell), f"{path} or {bell} is somebody's")
        try:
            yield path, bell
        finally:
            for name in (path, bell):
                if os.path.exists(name):
                    os.unlink(name)


# -- the real names, the echo sample


@roles
@servers
def test_the_echo_sample_under_its_own_names(role: str, server: bool) -> None:
    """OpenAMP's rpmsg-echo: it announces its service, echoes, and ends at the word 0xEF56A55A."""
    with real_names() as (path, bell):
        link = Link(role, server, path, bell=bell, **PEERS["openamp"])
        link.start()
        peer, bus = link.peer, link.bus
        assert os.stat(path).st_mode & 0o777 == 0o600 and os.stat(path).st_size == 0x80000
        peer.announce("rpmsg-openamp-demo-channel", 0x400, WAIT)
        endpoint = bus.open("rpmsg-openamp-demo-channel", timeout=WAIT)
        assert (endpoint.addr, endpoint.dst) == (0x400, 0x400)
        for size in (*range(497), *range(496, -1, -1)):  # 993 messages: each buffer more than once
            data = bytes((size + i) & 255 for i in range(size))
            endpoint.send(data, timeout=0)
            src, dst, heard = peer.recv(WAIT)
            assert (src, dst, heard) == (0x400, 0x400, data)
            peer.send(dst, src, heard, WAIT)
            assert endpoint.recv(timeout=WAIT) == data
        endpoint.send(struct.pack("=I", 0xEF56A55A))
        assert peer.recv(WAIT)[2] == b"\x5a\xa5\x56\xef"
        peer.destroy("rpmsg-openamp-demo-channel", 0x400, WAIT)
        with pytest.raises(rpmsgx.ChannelRemoved):
            endpoint.recv(timeout=WAIT)
        assert not [key for key, n in bus.counters.items() if n and key.startswith(("dropped_", "ns_"))]
        link.close(check=True)


# -- what our end writes


def test_the_file_that_we_make(tmp_path: Path) -> None:
    """Byte for byte OpenAMP's, and the same from either role."""
    for role in ("driver", "device"):
        path = tmp_path / role
        with rpmsgx.open(f"file:{path}", role, server=True):
            made = path.read_bytes()
        assert (path.stat().st_mode & 0o777, len(made)) == (0o600, 0x80000)
        assert made[:88] == TABLE and not any(made[88:])


@pytest.mark.rule("3.3.1-1")
@servers
@kinds
def test_what_our_driver_writes(tmp_path: Path, server: bool, kind: str) -> None:
    """All rx buffers posted at once; tx buffers in order, then as they come back; exact lengths, no chains."""
    with linked("driver", server, tmp_path, **PEERS[kind]) as link:
        bus, peer, read = link.bus, link.peer, link.read
        assert (read("B", STATUS), read("I", GFEATURES)) == (7, F_NS)
        for i in range(256):
            assert read("QIHH", DESC0 + 16 * i) == (RX_POOL + 512 * i, 512, 2, 0)
            assert read("H", AVAIL0 + 4 + 2 * i) == i
        assert read("HH", AVAIL0)[1] == 256
        assert (read("HH", AVAIL1), read("HH", USED1)) == ((1, 0), (0, 0))
        assert read("HH", USED0) == (1, 0)  # the peer's: no kick for returned buffers
        endpoint = bus.create_endpoint(dst=0x500)
        assert endpoint.addr == 0x400
        for turn in range(512):  # the whole ring full, then empty, and once more
            head, size = turn % 256, 16 + len(b"%d" % turn)
            assert endpoint.try_send(b"%d" % turn)
            assert read("QIHH", DESC1 + 16 * head) == (TX_POOL + 512 * head, size, 0, 0)
            assert (read("H", AVAIL1 + 4 + 2 * head), read("H", AVAIL1 + 2)) == (head, turn + 1)
            if head == 255:
                assert not endpoint.try_send(b"full")
                for i in range(turn - 255, turn + 1):
                    assert peer.recv(WAIT) == (0x400, 0x500, b"%d" % i)


@servers
@kinds
def test_what_our_device_writes(tmp_path: Path, server: bool, kind: str) -> None:
    """Nothing but the used rings and the buffers; both with whole lengths."""
    with linked("device", server, tmp_path, **PEERS[kind]) as link:
        bus, peer, read = link.bus, link.peer, link.read
        first = 256 if kind == "rpmsg-lite" else 0
        assert read("HH", USED0) == (1, 0)
        assert read("HH", USED1)[1] == first
        table = link.peer.file.mm[:88]
        endpoint = bus.create_endpoint(dst=0x500)
        for turn in range(600):
            data = b"%d" % turn
            endpoint.send(data, timeout=0)
            assert read("II", USED0 + 4 + 8 * (turn % 256)) == (turn % 256, 512)
            assert peer.recv(WAIT) == (0x400, 0x500, data)
            peer.send(0x500, 0x400, data, WAIT)
            assert endpoint.recv(timeout=WAIT) == data
            bus.poll()
            head, length = read("II", USED1 + 4 + 8 * ((first + turn) % 256))
            assert length == (16 + len(data) if kind == "linux" else 512)
            assert read("I", DESC1 + 16 * head + 8) == length
            peer.poll(0)
        assert link.peer.file.mm[:88] == table


# -- what others do


@servers
def test_driver_ok_alone_and_the_reset_by_0x40(tmp_path: Path, server: bool) -> None:
    """[openamp] status 0, 4, and 0x40 at the end; then it starts over, and names are announced again."""
    with linked("device", server, tmp_path, **PEERS["openamp"]) as link:
        bus, peer = link.bus, link.peer
        service = bus.create_endpoint("ours")
        for turn in range(3):
            assert link.read("B", STATUS) == 4
            peer.announce("theirs", 0x400, WAIT)
            assert peer.wait_channel("ours", WAIT) == service.addr
            endpoint = bus.open("theirs", timeout=WAIT)
            peer.reset()
            assert link.read("B", STATUS) == 0x40
            link.until(lambda: not bus.is_up)
            with pytest.raises(rpmsgx.ChannelRemoved):
                endpoint.recv(timeout=0)
            assert bus.channels == [] and bus.counters["resets"] == turn + 1
            peer.names.clear()
            peer.start(WAIT)
            link.until(lambda: bus.is_up)


@servers
def test_a_driver_that_is_not_ready_is_waited_for(tmp_path: Path, server: bool) -> None:
    """[openamp] It kicks when it has written gfeatures, long before DRIVER_OK: nothing is touched until then."""
    with linked("device", server, tmp_path, start=False, **PEERS["openamp"]) as link:
        link.peer.connect(WAIT)
        bus = link.bus
        bus.create_endpoint("early")
        before = bytes(link.peer.file.mm)
        link.peer.bell.ring()
        for _ in range(10):
            assert bus.poll(timeout=0.005) == 0 and not bus.is_up
        assert bytes(link.peer.file.mm) == before
        link.peer.start(WAIT)
        link.until(lambda: bus.is_up)
        assert link.peer.wait_channel("early", WAIT) == 0x400


@roles
@servers
@kinds
def test_messages_of_every_size(tmp_path: Path, role: str, server: bool, kind: str) -> None:
    """Whole-buffer lengths: hdr.len is the message's. 300 of them, so that each buffer comes twice."""
    with linked(role, server, tmp_path, **PEERS[kind]) as link:
        service = link.bus.create_endpoint(src=0x700, dst=0x500)
        for size in (*range(0, 497, 2), *range(495, 0, -2)):
            data = bytes((size * i) & 255 for i in range(size))
            link.peer.send(0x500, 0x700, data, WAIT)
            assert service.recv_from(timeout=WAIT) == (data, 0x500)
            service.send(data, timeout=WAIT)
            assert link.peer.recv(WAIT) == (0x700, 0x500, data)


@roles
@servers
@pytest.mark.parametrize("habit", ["write_reserved", "reserved_garbage"])
def test_the_reserved_field_is_anybodys(tmp_path: Path, role: str, server: bool, habit: str) -> None:
    """[openamp] The receiver writes it into our buffer; [lite] the sender never clears it."""
    with linked(role, server, tmp_path, tolerate=OURS, **{habit: True}) as link:
        endpoint = link.bus.create_endpoint(dst=0x500)
        for turn in range(600):
            endpoint.send(b"%d" % turn, timeout=0)
            assert link.peer.recv(WAIT)[2] == b"%d" % turn  # and it checks that we wrote 0
            link.peer.send(0x500, endpoint.addr, b"%d" % turn, WAIT)
            assert endpoint.recv(timeout=WAIT) == b"%d" % turn


@roles
@servers
def test_garbage_behind_a_name(tmp_path: Path, role: str, server: bool) -> None:
    with linked(role, server, tmp_path, tolerate=OURS, name_garbage=True) as link:
        names = ["a", "ab" * 15, "n" * 31]
        for i, name in enumerate(names):
            link.peer.announce(name, 0x400 + i, WAIT)
        for i, name in enumerate(names):
            assert link.bus.open(name, timeout=WAIT).dst == 0x400 + i
        for i, name in enumerate(names):
            link.peer.destroy(name, 0x400 + i, WAIT)
        link.until(lambda: not link.bus.channels)
        assert not [key for key, n in link.bus.counters.items() if n and key.startswith("ns_")]


@pytest.mark.parametrize(("role", "server"), [("driver", False), ("device", False), ("device", True)])
def test_without_name_service(tmp_path: Path, role: str, server: bool) -> None:
    """Not offered, or not accepted: nobody announces anything, fixed addresses work."""
    with linked(role, server, tmp_path, tolerate=OURS, features=0) as link:
        assert link.read("I", GFEATURES) == 0
        endpoint = link.bus.create_endpoint("unheard")  # the peer knows that nothing may be announced
        link.peer.send(0x500, endpoint.addr, b"hello", WAIT)
        assert endpoint.recv(timeout=WAIT) == b"hello"
        endpoint.send(b"back", timeout=0)
        assert link.peer.recv(WAIT) == (endpoint.addr, 0x500, b"back")
        assert link.peer.announcements == []


@roles
@servers
def test_write_flags_both_ways(tmp_path: Path, role: str, server: bool) -> None:
    """[lite] A message stands in a device-writable buffer. Ours never do: the peer's device does not tolerate it."""
    with linked(role, server, tmp_path, tolerate=OURS, write_flags=True) as link:
        endpoint = link.bus.create_endpoint(dst=0x500)
        for _ in range(300):
            link.peer.send(0x500, endpoint.addr, b"in", WAIT)
            assert endpoint.recv(timeout=WAIT) == b"in"
            endpoint.send(b"out", timeout=0)
            assert link.peer.recv(WAIT)[2] == b"out"
        if role == "device":
            assert link.read("H", DESC1 + 12) == 2


@servers
def test_a_used_ring_that_the_driver_filled(tmp_path: Path, server: bool) -> None:
    """[lite] used.idx stands at 256 before we ever wrote there: we go on from it, over its wrap."""
    with linked("device", server, tmp_path, tolerate=OURS, prefill=True) as link:
        endpoint = link.bus.create_endpoint()
        for turn in range(1, 601):
            link.peer.send(0x500, endpoint.addr, b"x", WAIT)
            assert endpoint.recv(timeout=WAIT) == b"x"
            link.bus.poll()
            assert link.read("H", USED1 + 2) == 256 + turn
            link.peer.poll(0)


@roles
@servers
def test_event_idx_that_nobody_applies(tmp_path: Path, role: str, server: bool) -> None:
    """[openamp] Accepted, and then flags as without it. It cannot wake us wrongly; we must not wait for its events."""
    options = {"event_idx": True} if server else {}
    habits = {"features": F_NS | F_EVENT_IDX, "ignore_event_idx": True, "tolerate": OURS}
    with linked(role, server, tmp_path, options=options, **habits) as link:
        assert link.read("I", GFEATURES) == F_NS | F_EVENT_IDX
        endpoint = link.bus.create_endpoint(dst=0x500)
        for turn in range(300):
            link.peer.send(0x500, endpoint.addr, b"%d" % turn, WAIT)
            assert endpoint.recv(timeout=WAIT) == b"%d" % turn
            endpoint.send(b"%d" % turn, timeout=0)
            assert link.peer.recv(WAIT)[2] == b"%d" % turn
        mine = (AVAIL0, AVAIL1) if role == "driver" else (USED0, USED1)
        assert [link.read("H", at) for at in mine] == [0, 0]  # 2.7.7.1-2, 2.7.10.2-2


@servers
@pytest.mark.parametrize("order", ["recycle_first", ""])
def test_a_driver_may_use_its_buffers_in_any_order(tmp_path: Path, server: bool, order: str) -> None:
    """[openamp] One buffer again and again; [linux] all 256 in turn."""
    habits = {order: True} if order else {}
    with linked("device", server, tmp_path, tolerate=OURS, **habits) as link:
        endpoint = link.bus.create_endpoint()
        for turn in range(600):
            link.peer.send(0x500, endpoint.addr, b"%d" % turn, WAIT)
            assert endpoint.recv(timeout=WAIT) == b"%d" % turn
            link.bus.poll()
            link.peer.poll(0)
        assert link.read("H", AVAIL1 + 4 + 2 * 255) == (0 if order else 255)


@servers
def test_a_driver_that_posts_with_used_len(tmp_path: Path, server: bool) -> None:
    """[openamp up to 2023.10] What used.len gave is the room of the buffer from then on: it must not shrink."""
    with linked("device", server, tmp_path, tolerate=OURS, repost_used_length=True) as link:
        endpoint = link.bus.create_endpoint(dst=0x500)
        for _ in range(300):
            endpoint.send(b"short", timeout=0)
            assert link.peer.recv(WAIT)[2] == b"short"
            link.bus.poll()
        endpoint.send(bytes(496), timeout=WAIT)
        assert link.peer.recv(WAIT)[2] == bytes(496)


def test_the_sets_are_covered() -> None:
    """Each habit of OpenAMP and rpmsg-lite is one that the tests above know the name of."""
    assert set(OPENAMP) <= {
        "whole_lengths", "name_garbage", "write_reserved", "driver_ok_alone", "early_kick", "reset_status",
        "clear_reset", "recycle_first",
    }  # fmt: skip
    assert set(RPMSG_LITE) <= {
        "whole_lengths", "write_reserved", "reserved_garbage", "write_flags", "prefill", "kick_always",
    }  # fmt: skip
    assert OURS <= TOLERATE_OPENAMP & TOLERATE_RPMSG_LITE
