# SPDX-License-Identifier: BSD-3-Clause
"""Lesson 23: what becomes of a remote whose host goes, and how the next host takes it up."""

from __future__ import annotations

import os
import select
import signal
import struct
from typing import TYPE_CHECKING, Any

import pytest
from remotes import SAMPLE, Host, HostError, clean_table, echo, gone
from support_wire import TIMEOUT, until

from rpmsgx import Remoteproc, ResourceError, StateError
from rpmsgx.remoteproc.native import NativePlatform
from rpmsgx.virtio.table import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

USE = f"with rproc.open({SAMPLE!r}, timeout=10) as ept: ept.send(b'hi'); assert ept.recv(timeout=10) == b'hi'"


def host_of(path: str, **options: Any) -> Host:
    """A process that has a remote at `path`, and has used it."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return Host(f"rproc = Remoteproc(platform='native', socket={path!r}{given})", USE)


def runs(path: str) -> bool:
    with NativePlatform(socket=path) as platform:
        return platform.running


ENDS = {
    "exit": [],
    "exception": ["with rproc: raise ValueError"],
    "close": ["rproc.close()"],
    "with": ["with rproc: pass"],
    "deleted": ["import gc, weakref; left = weakref.ref(rproc); del ept, rproc; gc.collect(); assert left() is None"],
}


@pytest.mark.lesson("23")
@pytest.mark.parametrize(
    "begun, at_exit, end",
    [
        *((begun, at_exit, "exit") for begun in ("running", "attached") for at_exit in ("stop", "detach", None)),
        *(("running", at_exit, end) for at_exit in ("stop", "detach") for end in ENDS if end != "exit"),
        ("attached", None, "exception"),
    ],
)
def test_lesson_23_the_policy_holds_however_the_host_ends(path: str, begun: str, at_exit: Any, end: str) -> None:
    """By default what was booted is stopped, and what was attached to is left running."""
    if begun == "attached":
        with host_of(path, at_exit="detach") as host:
            host.end()
    with host_of(path, at_exit=at_exit) as host:
        pid = host("rproc.platform.pid")
        assert host("rproc.state") == begun
        for line in ENDS[end]:
            if end == "exception":
                with pytest.raises(HostError, match="ValueError"):
                    host(line)
            else:
                host(line)
        host.end()
    leave = at_exit == "detach" or (at_exit is None and begun == "attached")
    assert runs(path) is leave
    if not leave:
        assert gone(pid) and not os.path.exists(path)
        return
    with Remoteproc(platform="native", socket=path, auto_boot=False) as rproc:
        da, clean = clean_table(rproc)
        assert rproc.platform.space.read(da, len(clean)) == clean
        assert rproc.platform.pid == pid  # type: ignore[attr-defined]
        rproc.attach()
        echo(rproc)
        assert rproc.lost == 0
        rproc.shutdown()


@pytest.mark.lesson("23")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda way: way.name)
def test_lesson_23_a_host_that_is_killed_leaves_it_running(path: str, way: signal.Signals) -> None:
    """The library installs no signal handlers; the next host takes it up, the lock went with the process."""
    with host_of(path) as host:
        pid = host("rproc.platform.pid")
        handlers = "[signal.getsignal(n) for n in signal.valid_signals() if n not in (2, 9, 19)]"
        assert host(f"all(h in (signal.SIG_DFL, signal.SIG_IGN, None) for h in {handlers})")
        os.kill(host.pid, way)
        assert gone(host.pid)
    with Remoteproc(platform="native", socket=path) as rproc:
        assert rproc.platform.pid == pid and rproc.state == "attached"  # type: ignore[attr-defined]
        echo(rproc)
        rproc.shutdown()


@pytest.mark.lesson("23")
@pytest.mark.parametrize("at_exit", ["stop", "detach", None, "stop, hangs"])
def test_lesson_23_a_guardian_keeps_the_policy_after_kill_9(path: str, at_exit: str | None) -> None:
    hangs = at_exit == "stop, hangs"
    at_exit = "stop" if hangs else at_exit
    firmware, service = ("crash", "rpmsg-crash") if hangs else ("sample", SAMPLE)
    with Host(
        f"rproc = Remoteproc(platform='native', socket={path!r}, firmware={firmware!r}, at_exit={at_exit!r}, "
        "guardian=True)",
        f"rproc.open({service!r}, timeout=10).send(b'h')",
    ) as host:
        pid, guardian = host("rproc.platform.pid"), host("rproc._guardian.pid")
        until(lambda: not hangs or host("'hang' in rproc.trace()"))
        host.kill()
    assert gone(guardian)
    assert runs(path) is (at_exit == "detach")
    if at_exit != "detach":
        assert gone(pid)
        return
    with Remoteproc(platform="native", socket=path) as rproc:
        echo(rproc)
        assert rproc.lost == 0
        rproc.shutdown()


@pytest.mark.lesson("23")
def test_lesson_23_a_guardian_does_nothing_where_the_host_said_goodbye(path: str) -> None:
    with host_of(path, guardian=True) as host:
        guardian = host("rproc._guardian.pid")
        host("rproc.detach()")
        assert gone(guardian)
        host.kill()
    assert runs(path)


@pytest.mark.lesson("23")
def test_lesson_23_one_host_at_a_time_and_the_refusal_names_it(path: str) -> None:
    with host_of(path) as host:
        with pytest.raises(StateError, match=f"held by pid {host.pid} .*: only one host at a time"):
            Remoteproc(platform="native", socket=path)
        with Remoteproc(platform="native", socket=path, auto_boot=False) as rproc:
            assert rproc.state == "detached"
            for take in (rproc.attach, lambda: rproc.attach(resume=True), rproc.boot):
                with pytest.raises(StateError, match=f"held by pid {host.pid} "):
                    take()
                assert (rproc.state, rproc.power) == ("detached", 0)
            host(USE)  # it did not notice
            host("rproc.detach()")
            rproc.attach()
            echo(rproc)
            with pytest.raises(HostError, match=f"StateError.*held by pid {os.getpid()} "):
                host("rproc.attach()")
            rproc.detach()
        host("rproc.attach()")
        host(USE)


@pytest.fixture
def interrupted(path: str) -> Iterator[tuple[str, int]]:
    """A remote whose host was killed after it had sent five messages that the remote had not seen yet."""
    with host_of(path) as host:
        pid = host("rproc.platform.pid")
        host(f"ept = rproc.open({SAMPLE!r}, timeout=10)")
        os.kill(pid, signal.SIGSTOP)
        host("[ept.send(b'%d' % i) for i in range(5)]")
        addr = host("ept.addr")
        host.kill()
    os.kill(pid, signal.SIGCONT)
    yield path, addr


@pytest.mark.lesson("23")
def test_lesson_23_attach_resets_the_rings_and_counts_what_was_in_them(interrupted: tuple[str, int]) -> None:
    path, _ = interrupted
    with Remoteproc(platform="native", socket=path) as rproc:
        assert rproc.state == "attached" and rproc.lost == 5
        with rproc.open(SAMPLE, timeout=TIMEOUT) as ept:
            assert ept.try_recv() is None
            ept.send(b"new")
            assert ept.recv(timeout=TIMEOUT) == b"new"  # nothing old comes before it
        rproc.detach()
        rproc.attach()
        assert rproc.lost == 0


@pytest.mark.lesson("23")
def test_lesson_23_attach_with_resume_goes_on_with_them(interrupted: tuple[str, int]) -> None:
    """Everything arrives, in order; at least once."""
    path, addr = interrupted
    with Remoteproc(platform="native", socket=path, auto_boot=False) as rproc:
        rproc.attach(resume=True)
        assert rproc.state == "attached" and rproc.lost == 0
        service = next(channel for channel in rproc.channels if channel.name == SAMPLE)
        with rproc.bus.create_endpoint(src=addr, dst=service.addr) as ept:
            assert [ept.recv(timeout=TIMEOUT) for _ in range(5)] == [b"%d" % i for i in range(5)]
            for i in range(600):  # every buffer of both rings is still there
                ept.send(b"%d" % i, timeout=TIMEOUT)
                assert ept.recv(timeout=TIMEOUT) == b"%d" % i
        assert rproc.trace().count("sample: up\n") == 1  # the remote has not noticed
        rproc.detach(timeout=TIMEOUT)
        rproc.attach()
        echo(rproc)


@pytest.mark.lesson("23")
@pytest.mark.parametrize("how", ["nobody used it", "an index out of range", "rings elsewhere", "none runs"])
def test_lesson_23_it_says_why_it_cannot(path: str, how: str) -> None:
    """And nothing is changed: a plain attach still works."""
    with host_of(path, at_exit="detach") as host:
        if how == "nobody used it":
            host.end()
        elif how == "none runs":
            host("rproc.shutdown()")
        host.kill()
    with Remoteproc(platform="native", socket=path, auto_boot=False) as rproc:
        space = rproc.platform.space
        da, clean = clean_table(rproc)
        error: type[Exception] = StateError
        match how:
            case "nobody used it":
                why = "nothing to resume; attach without"
            case "none runs":
                why = "no remote runs"
            case "an index out of range":
                (vdev,) = parse(space.read(da, len(clean))).vdevs
                vring = vdev.vrings[0]
                (avail,) = struct.unpack("=H", space.read(vring.da + 16 * vring.num + 2, 2))
                used = vring.da + (16 * vring.num + 6 + 2 * vring.num + vring.align - 1) // vring.align * vring.align
                space.write(used + 2, struct.pack("=H", avail + 1 & 0xFFFF))  # more than was ever posted
                error, why = Exception, "idx|used|index"
            case _:
                offset = parse(clean).vdevs[0].offset + 28
                space.write(da + offset, struct.pack("=I", rproc.platform.shared.da + 0x4_0000))
                error, why = ResourceError, "vring 0 of vdev 0 is at .*this host would have it"
        before = space.read(da, len(clean)) if how != "none runs" else b""
        for _ in range(2):
            with pytest.raises(error, match=why):
                rproc.attach(resume=True)
            assert rproc.power == 0 and rproc.state == ("offline" if how == "none runs" else "detached")
        if how == "none runs":
            rproc.boot()
        else:
            assert space.read(da, len(clean)) == before
            rproc.attach()
        echo(rproc)
        rproc.shutdown()


@pytest.mark.lesson("23")
def test_lesson_23_one_host_after_the_other_dies(path: str) -> None:
    """Six of them, killed in the middle of their traffic: each takes up what the last one left."""
    pid = None
    for turn in range(6):
        resume = turn % 2 == 1
        with Host(
            f"rproc = Remoteproc(platform='native', socket={path!r}, auto_boot={not turn})",
            *([f"rproc.attach(resume={resume})"] if turn else []),
            f"ept = rproc.open({SAMPLE!r}, timeout=10)",
            "ept.send(b'begin'); assert b'begin' in iter(lambda: ept.recv(timeout=10), b'never')",
        ) as host:
            found = host("rproc.platform.pid")
            assert pid in (None, found)
            pid = found
            assert host.process.stdin is not None
            host.process.stdin.write("while True: ept.send(b'x' * 100); ept.recv(timeout=10)\n")
            host.process.stdin.flush()
            select.select([], [], [], 0.02)  # in the middle of anything
            host.kill()
    with Remoteproc(platform="native", socket=path) as rproc:
        echo(rproc)
        rproc.shutdown()
