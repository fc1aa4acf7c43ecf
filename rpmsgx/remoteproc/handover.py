"""A Unix stream socket on which one process hands the same descriptors to whoever connects.

Each connection gets one greeting, `HELLO` and a line of JSON, with the descriptors (SCM_RIGHTS), and is closed. Who
serves is known by SO_PEERCRED. The socket file has mode 0600; one that a dead server left is replaced.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import stat
import struct
import time
from typing import Any, NamedTuple

from ..errors import ResourceError, Timeout
from ..notify import rights
from .process import Process

HELLO = b"rpmsgx remote 1\n"
MAX_GREETING = 4096
_MAX_PATH = 107  # sockaddr_un
_RETRY = 0.01  # seconds between looks at a server that does not listen yet, or ran out of descriptors

_count = itertools.count()


class Handover(NamedTuple):
    """What was handed over. The process and the descriptors belong to whoever asked."""

    process: Process
    said: Any
    fds: list[int]


def place(path: str) -> tuple[socket.socket, tuple[int, int]]:
    """A socket at `path` that does not listen yet, and the (st_dev, st_ino) of its file, for `remove`.

    The process that is to be found there calls `listen()`; until then `take` waits. Raises OSError: EADDRINUSE if
    somebody serves there already, EEXIST for something that is no socket.
    """
    if present(path):
        raise OSError(errno.EADDRINUSE, "somebody serves there already", path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid():x}-{next(_count):x}")
    try:
        server.bind(temporary)
        try:
            os.chmod(temporary, 0o600)
            found = os.lstat(temporary)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except BaseException:
        server.close()
        raise
    return server, (found.st_dev, found.st_ino)


def remove(path: str, identity: tuple[int, int]) -> None:
    """Remove the socket file at `path` if it is still that which `place` made."""
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == identity:
            os.unlink(path)
    except OSError:
        pass


def present(path: str) -> bool:
    """Whether somebody serves at `path`, or is about to.

    Raises FileExistsError for something that is no socket, OSError (ENAMETOOLONG) for a path that no socket can have.
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"more than the {_MAX_PATH} bytes that a socket's path can have", path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "is there, and no socket", path)
    # A datagram socket cannot connect to a stream socket, but is told whether it lives; its owner sees nothing.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def serve(server: socket.socket, said: Any, fds: list[int]) -> None:
    """Hand `fds` and `said` to whoever connects, for ever."""
    greeting = HELLO + json.dumps(said).encode() + b"\n"
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            time.sleep(_RETRY)
            continue
        with peer:
            try:
                rights.send(peer, greeting, fds, socket.MSG_DONTWAIT)
            except OSError:
                pass  # it has gone again


def take(path: str, count: int, timeout: float) -> Handover | None:
    """What the server at `path` hands out: `count` descriptors. None: nobody serves there.

    Waits up to `timeout` seconds for one that is about to serve, or is slow, then raises Timeout. Raises
    ResourceError if it says something else or hands over another number of descriptors, OSError if it may not be
    connected to.
    """
    deadline = time.monotonic() + timeout
    while present(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
            end.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                end.connect(path)
            except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):  # not yet, not any more, too many
                if time.monotonic() >= deadline:
                    raise Timeout(f"{path}: it is there, but nobody serves it in {timeout} s") from None
                time.sleep(_RETRY)
                continue
            return _take(path, end, count, deadline)
    return None


def _take(path: str, end: socket.socket, count: int, deadline: float) -> Handover:
    pid, _, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    fds: list[int] = []
    process: Process | None = None
    try:
        try:
            process = Process(pid)
            text, fds, more = rights.receive(end, MAX_GREETING, count)
            while len(text) < MAX_GREETING and text[-1:] != b"\n":
                end.settimeout(max(0.001, deadline - time.monotonic()))
                piece = end.recv(MAX_GREETING - len(text))
                if not piece:
                    break
                text += piece
        except TimeoutError:
            raise Timeout(f"{path}: connected, but nothing was handed over in time") from None
        except OSError as error:
            raise ResourceError(f"{path}: process {pid}, which serves there: {error}") from error
        if not text.startswith(HELLO):
            raise ResourceError(f"{path}: its server says {text[:32]!r}, not {HELLO!r}: no remote is served there")
        if len(fds) != count or more:
            said = f"{len(fds)} or more" if more else f"{len(fds)}"
            raise ResourceError(f"{path}: its server handed over {said} descriptors, not {count}")
        try:
            said = json.loads(text[len(HELLO) :])
        except (ValueError, RecursionError) as error:
            raise ResourceError(f"{path}: its server's greeting is not JSON: {error}") from None
        return Handover(process, said, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        if process is not None:
            process.close()
        raise
