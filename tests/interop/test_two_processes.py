"""Two programs on one link, and the link when one of them dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from peers.literal import (
    OPENAMP,
    RPMSG_LITE,
    TOLERATE_OPENAMP,
    TOLERATE_RPMSG_LITE,
    LiteralPeer,
)
from peers.payload import check, payload
from support_process import ROLES, WAIT, exchange

import rpmsgx

pytestmark = pytest.mark.timeout(300)
MESSAGES = int(os.environ.get("RPMSGX_MESSAGES", "20000"))
PROGRAM = Path(__file__).parent.parent / "support_process.py"

# Transport and, where the two can be chosen apart, which role owns table and socket; and another layout, other rings.
LINKS = [
    ("file", "driver"), ("file", "device"), ("memfd", "driver"), ("vhost-user", "driver"), ("vhost-user", "device"),
    ("file", "driver modern"), ("file", "device modern"), ("memfd", "driver modern"),
    ("file", "driver modern packed"), ("memfd", "driver modern packed"),
    ("vhost-user", "driver packed"), ("vhost-user", "device packed"),
]  # fmt: skip


@pytest.fixture(params=LINKS, ids=[f"{transport}-{server}-serves" for transport, server in LINKS])
def link(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    transport, server = request.param
    return f"{transport}:{tmp_path}/link", server


def options(url: str, server: str, role: str) -> dict[str, Any]:
    server, *words = server.split()
    chosen: dict[str, Any] = {"layout": "modern"} if "modern" in words else {}
    if "packed" in words:
        chosen["packed"] = True
    return chosen if url.startswith("memfd:") else chosen | {"server": server == role}


@contextmanager
def process(url: str, server: str, role: str, job: str, **given: Any) -> Iterator[subprocess.Popen[str]]:
    words = [f"{key}={value}" for key, value in (given | options(url, server, role)).items()]
    root = str(Path(rpmsgx.__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM), url, role, job, *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def run_exchange(link: tuple[str, str], role: str, count: int) -> None:
    url, server = link
    other = ROLES[1 - ROLES.index(role)]
    with (
        process(url, server, other, "exchange", seed=7, count=count) as child,
        rpmsgx.open(url, role, **options(url, server, role)) as bus,
    ):
        jobs = exchange(bus, role, count, 7)
        for job in jobs:
            job.join()
        assert [(job.error, job.done) for job in jobs] == [(None, count)] * 2
        bus.close(linger=WAIT)
        _, errors = child.communicate(timeout=WAIT)
        assert child.returncode == 0, errors


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_lost_or_altered(link: tuple[str, str], role: str) -> None:
    run_exchange(link, role, MESSAGES)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RPMSGX_SLOW") != "1", reason="minutes: set RPMSGX_SLOW=1")
@pytest.mark.parametrize("role", ROLES)
def test_a_million_messages(link: tuple[str, str], role: str) -> None:
    run_exchange(link, role, 1_000_000)


@pytest.mark.parametrize("role", ROLES)
def test_the_other_end_is_killed_and_comes_back(link: tuple[str, str], role: str) -> None:
    """Again and again, after any number of messages; what came before was complete and in order."""
    url, server = link
    other = ROLES[1 - ROLES.index(role)]
    rng = random.Random(f"{url[:4]} {server} {role}")
    with rpmsgx.open(url, role, **options(url, server, role)) as bus:
        for turn in range(6):
            with process(url, server, other, "flood", seed=turn) as child:
                mine = bus.create_endpoint(role)
                theirs = bus.open(other, timeout=WAIT)
                limit = rng.randrange(2000)
                sent = received = 0
                while received < limit:
                    while theirs.try_send(payload(sent, turn + ROLES.index(role))):
                        sent += 1
                    check(received, turn + ROLES.index(other), mine.recv(timeout=WAIT))
                    received += 1
                child.send_signal(signal.SIGKILL)
                with pytest.raises(rpmsgx.ChannelRemoved):
                    while True:
                        check(received, turn + ROLES.index(other), mine.recv(timeout=WAIT))
                        received += 1
                with pytest.raises(rpmsgx.ChannelRemoved):
                    theirs.send(b"", timeout=WAIT)
                assert bus.channels == []
                mine.close()
        # Who opened first goes; the other one is there, and finds the new one.
        with process(url, server, other, "exchange", seed=99, count=500) as child:
            jobs = exchange(bus, role, 500, 99)
            for job in jobs:
                job.join()
            assert [(job.error, job.done) for job in jobs] == [(None, 500)] * 2
            bus.close(linger=WAIT)
            _, errors = child.communicate(timeout=WAIT)
            assert child.returncode == 0, errors


@pytest.mark.parametrize("role", ROLES)
def test_this_end_reopens_while_the_other_one_stays(link: tuple[str, str], role: str) -> None:
    url, server = link
    other = ROLES[1 - ROLES.index(role)]
    with rpmsgx.open(url, other, **options(url, server, other)) as stays, ThreadPoolExecutor(1) as pool:
        service = stays.create_endpoint("stays")

        def echo() -> None:
            while True:
                try:
                    message, src = service.recv_from()
                    service.send_to(message, src, timeout=WAIT)
                except (rpmsgx.ChannelRemoved, rpmsgx.NoPeer):
                    continue
                except rpmsgx.Closed:
                    return

        echoing = pool.submit(echo)
        for turn in range(20):
            with rpmsgx.open(url, role, **options(url, server, role)) as bus:
                endpoint = bus.open("stays", timeout=WAIT)
                for i in range(20):
                    endpoint.send(b"%d" % (100 * turn + i), timeout=WAIT)
                    assert endpoint.recv(timeout=WAIT) == b"%d" % (100 * turn + i)
        stays.close(linger=0)
        echoing.result(WAIT)


# -- somebody else's program: a literal reading of the specification, with the habits of others

EVERYTHING: dict[str, object] = {
    **OPENAMP,
    **RPMSG_LITE,
    "split": "tx",
    "dirty": True,
}
HABITS: dict[str, tuple[dict[str, object], frozenset[str]]] = {
    "linux": ({}, frozenset()),
    "openamp": (OPENAMP, TOLERATE_OPENAMP),
    "rpmsg-lite": (RPMSG_LITE, TOLERATE_RPMSG_LITE),
    "dirty": ({"dirty": True, "kick_always": True}, frozenset()),
    "event-idx-ignored": ({"ignore_event_idx": True, "features": 1 | 1 << 29}, frozenset()),
    "everything": (EVERYTHING, TOLERATE_OPENAMP | TOLERATE_RPMSG_LITE),
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("server", ["rpmsgx-serves", "peer-serves"])
@pytest.mark.parametrize("role", ROLES)
def test_with_a_literal_peer(tmp_path: Path, role: str, server: str, habit: str) -> None:
    traps, tolerated = HABITS[habit]
    # rpmsgx as device returns whole lengths, which OpenAMP's driver needs to see.
    tolerated = tolerated | {"2.7.8.2-2"}
    lengths = "whole" if role == "device" else "exact"
    other = ROLES[1 - ROLES.index(role)]
    count = MESSAGES if habit in ("linux", "everything") else MESSAGES // 10
    path, bell = tmp_path / "link", tmp_path / "link.bell"
    we_serve = server == "rpmsgx-serves"

    def literal() -> dict[str, int]:
        settings = {"tolerate": tolerated, "peer_lengths": lengths, **traps}
        with LiteralPeer(path, bell, role=other, server=not we_serve, **settings) as peer:  # type: ignore[arg-type]
            ready.set_result(None)
            peer.start(WAIT)
            peer.announce("literal", 0x500, WAIT)
            src, dst, data = peer.recv(WAIT)
            assert (dst, data) == (0x500, b"start")
            received = 0
            for i in range(count):
                peer.send(0x500, src, payload(i, 1), WAIT)
                while peer.inbox:
                    check(received, 2, peer.recv(0)[2])
                    received += 1
            while received < count:
                check(received, 2, peer.recv(WAIT)[2])
                received += 1
            peer.flush(WAIT)
            assert peer.wait_channel("rpmsgx") == src
            return dict(peer.counters)

    ready: Future[None] = Future()
    with ThreadPoolExecutor(2) as pool:
        if not we_serve:
            running = pool.submit(literal)
            ready.result(WAIT)
        event_idx = {"event_idx": True} if habit == "event-idx-ignored" else {}
        with rpmsgx.open(f"file:{path}", role, server=we_serve, **event_idx) as bus:
            if we_serve:
                running = pool.submit(literal)
            endpoint = bus.create_endpoint("rpmsgx", src=0x700)
            until_known = bus.open("literal", timeout=WAIT)
            assert until_known.dst == 0x500
            endpoint.send_to(b"start", 0x500)

            def send() -> None:
                for i in range(count):
                    endpoint.send_to(payload(i, 2), 0x500, timeout=WAIT)

            sending = pool.submit(send)
            for i in range(count):
                check(i, 1, endpoint.recv(timeout=WAIT))
            sending.result(WAIT)
            counters = running.result(WAIT)
            assert counters["received"] == count + 1
            assert counters["sent"] >= count
