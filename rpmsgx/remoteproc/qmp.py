"""A client of the QEMU Machine Protocol (QEMU's docs/interop/qmp-spec): what it takes to start and watch a machine."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from typing import Any, NamedTuple

from ..errors import PeerError, Timeout
from ..notify.doorbell import readable

MAX_LINE = 1 << 16  # bytes; a greeting has some 200, an event some 100
MAX_EVENTS = 64  # the newest are kept


class Event(NamedTuple):
    name: str
    data: dict[str, Any]


class Qmp:
    """One monitor behind a connected stream socket, which it owns. Not thread-safe.

    What comes out of the socket is not trusted: PeerError for what is no QMP, for a line of more than MAX_LINE bytes
    and for an end in the midst of it, Timeout where nothing comes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._sock = sock
        self._sock.setblocking(False)
        self._unread = b""

    def greet(self, timeout: float) -> None:
        """Take the greeting and end the negotiation. `timeout` in seconds."""
        deadline = time.monotonic() + timeout
        greeting = self._message(deadline)
        if not isinstance(greeting.get("QMP"), dict):
            raise PeerError(f"QMP: no greeting: {_shown(greeting)}")
        self._execute("qmp_capabilities", deadline)

    def execute(self, command: str, timeout: float) -> Any:
        """What the command returns. `timeout` in seconds. Raises PeerError, too, where QEMU refuses it."""
        return self._execute(command, time.monotonic() + timeout)

    def drain(self) -> None:
        """Take the events that are there. An end is no error: they outlive the process that sent them."""
        try:
            for _ in range(MAX_EVENTS):
                self._message(time.monotonic())
        except (Timeout, PeerError):
            pass

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def _execute(self, command: str, deadline: float) -> Any:
        try:
            self._sock.sendall(json.dumps({"execute": command}).encode() + b"\n", socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PeerError(f"QMP: {command}: {error.strerror}") from error
        while time.monotonic() < deadline:  # events without end are no answer
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise PeerError(f"QMP: {command} was refused: {_shown(message['error'])}")
        raise Timeout(f"QEMU does not answer to {command}")

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next message; an event is also noted."""
        line = self._line(deadline)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PeerError(f"QMP: not JSON: {_shown(line)}") from error
        if not isinstance(message, dict):
            raise PeerError(f"QMP: not an object: {_shown(line)}")
        if isinstance(name := message.get("event"), str):
            data = message.get("data")
            self.events.append(Event(name, data if isinstance(data, dict) else {}))
        return message

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._unread:
            if len(self._unread) > MAX_LINE:
                raise PeerError(f"QMP: a line of more than {MAX_LINE} bytes")
            if not readable(self._sock.fileno(), deadline - time.monotonic()):
                raise Timeout("QEMU does not answer")
            try:
                data = self._sock.recv(4096)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PeerError(f"QMP: {error.strerror}") from error
            if not data:
                raise PeerError("QMP: the connection ended")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _shown(message: object) -> str:
    return str(message)[:200]
