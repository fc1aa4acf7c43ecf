# SPDX-License-Identifier: BSD-3-Clause
"""What the programs inside the guests share. No pytest: a guest's Python need not have it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

import rpmsgx
from rpmsgx.errors import ResourceError
from rpmsgx.notify.doorbell import Doorbell, readable

WAIT = 10.0
ECHOES = 300


@contextlib.contextmanager
def refused(text: str) -> Iterator[None]:
    try:
        yield
    except ResourceError as error:
        assert re.search(text, str(error)), f"{error} does not say {text}"
    else:
        raise AssertionError(f"not refused: {text}")


def child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which says what went wrong: its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return pid


def ended_well(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0


def echoes_between_two_processes(url: str, doorbell: Callable[[], Doorbell]) -> None:
    """Messages of all sizes, from a host to a remote at `url` and back. Each makes its own end's doorbell."""
    ready, tell_ready = os.pipe()
    pid = child(lambda: _echo(url, doorbell, tell_ready))
    os.close(tell_ready)
    assert readable(ready, WAIT) and os.read(ready, 1)  # its table is there
    os.close(ready)
    with rpmsgx.open(url, "driver", doorbell=doorbell()) as host:
        endpoint = host.open("rpmsg-raw", timeout=WAIT)
        begin = time.monotonic()
        for number in range(ECHOES):
            message = os.urandom(1 + number % endpoint.mtu)
            endpoint.send(message)
            assert endpoint.recv(timeout=WAIT) == message[::-1]
        assert time.monotonic() - begin < 60
        endpoint.send(b"done")
        ended_well(pid)


def _echo(url: str, doorbell: Callable[[], Doorbell], tell_ready: int) -> None:
    with rpmsgx.open(url, "device", create=True, doorbell=doorbell()) as remote:
        os.write(tell_ready, b"1")
        service = remote.create_endpoint("rpmsg-raw")
        for _ in range(ECHOES):
            data, source = service.recv_from(timeout=WAIT)
            service.send_to(data[::-1], source)
        service.recv_from(timeout=WAIT)


def tell(cases: Iterable[Callable[[], None]]) -> None:
    """Run them one after the other, and print for each how it ended, as a line of JSON."""
    for case in cases:
        begin = time.monotonic()
        error = ""
        try:
            case()
        except Exception:
            error = traceback.format_exc()
        told = {"case": case.__name__, "error": error, "seconds": time.monotonic() - begin}
        print(json.dumps(told), flush=True)
