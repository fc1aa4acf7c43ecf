# SPDX-License-Identifier: BSD-3-Clause
"""The QMP client, with a QEMU that is none. What a real one says: test_qemu.py."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from rpmsgx import PeerError, Timeout
from rpmsgx.remoteproc.qmp import MAX_EVENTS, MAX_LINE, Qmp

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 5.0
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
DONE = b'{"return": {}}\r\n'


@pytest.fixture
def ends() -> Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    qmp = Qmp(ours)
    with theirs:
        yield qmp, theirs
    qmp.close()
    qmp.close()


def event(name: str, **data: object) -> bytes:
    return json.dumps({"event": name, "data": data, "timestamp": {}}).encode() + b"\r\n"


def test_a_conversation(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, theirs = ends
    theirs.sendall(GREETING + event("RESUME") + DONE)
    qmp.greet(TIMEOUT)
    theirs.sendall(event("STOP") + b'{"return": {"status": "running"}, "id": 1}\n' + event("SHUTDOWN", reason="x"))
    assert qmp.execute("query-status", TIMEOUT) == {"status": "running"}
    theirs.close()
    qmp.drain()
    assert [(name, data) for name, data in qmp.events] == [("RESUME", {}), ("STOP", {}), ("SHUTDOWN", {"reason": "x"})]


def test_what_is_asked(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, theirs = ends
    theirs.sendall(GREETING + DONE + DONE)
    qmp.greet(TIMEOUT)
    qmp.execute("cont", TIMEOUT)
    asked = theirs.recv(4096).splitlines()
    assert [json.loads(line) for line in asked] == [{"execute": "qmp_capabilities"}, {"execute": "cont"}]


@pytest.mark.hostile
@pytest.mark.parametrize(
    "said, problem",
    [
        (b"hello\n", "not JSON: b'hello'"),
        (b"[" * 20000 + b"\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (b"\xff\xfe\n", "not JSON"),
        (b"{}\n", "no greeting: {}"),
        (b'{"QMP": 1}\n', "no greeting"),
        (b'{"QMP": {}}\n{"error": {"class": "GenericError", "desc": "no"}}\n', "qmp_capabilities was refused: .*no"),
        (b'{"QMP"', "the connection ended"),
        (b"", "the connection ended"),
    ],
)
def test_what_is_no_qmp(ends: tuple[Qmp, socket.socket], said: bytes, problem: str) -> None:
    qmp, theirs = ends
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError, match=f"QMP: {problem}") as caught:
        qmp.greet(TIMEOUT)
    assert len(str(caught.value)) < 300


@pytest.mark.hostile
def test_a_line_without_end(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, theirs = ends
    theirs.settimeout(TIMEOUT)
    writer = threading.Thread(target=theirs.sendall, args=(b"x" * (MAX_LINE + 8192),))
    writer.start()
    with pytest.raises(PeerError, match=f"more than {MAX_LINE} bytes"):
        qmp.greet(TIMEOUT)
    writer.join(TIMEOUT)


@pytest.mark.hostile
def test_events_without_end(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, theirs = ends
    stop = threading.Event()

    def talk() -> None:
        theirs.settimeout(0.1)
        while not stop.is_set():
            try:
                theirs.send(event("STOP") * 50)
            except TimeoutError:
                pass

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        with pytest.raises(Timeout):
            qmp._execute("cont", 0.0)  # the deadline is over
        with pytest.raises((Timeout, PeerError)):
            qmp.execute("cont", 0.2)
        assert len(qmp.events) == MAX_EVENTS
    finally:
        stop.set()
        talker.join(TIMEOUT)


def test_nobody_answers(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, _ = ends
    with pytest.raises(Timeout, match="does not answer"):
        qmp.greet(0.01)


@pytest.mark.parametrize("data", [b'{"event": 1}', b'{"event": "X", "data": 2}', b'{"neither": 1}'])
def test_odd_messages_are_passed_over(ends: tuple[Qmp, socket.socket], data: bytes) -> None:
    qmp, theirs = ends
    theirs.sendall(GREETING + DONE + data + b"\n" + DONE)
    qmp.greet(TIMEOUT)
    assert qmp.execute("cont", TIMEOUT) == {}
    assert all(found == ("X", {}) for found in qmp.events)


def test_a_qemu_that_is_gone(ends: tuple[Qmp, socket.socket]) -> None:
    qmp, theirs = ends
    theirs.close()
    with pytest.raises(PeerError, match="cont: "):
        qmp.execute("cont", TIMEOUT)
