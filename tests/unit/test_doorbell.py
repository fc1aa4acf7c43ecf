"""Doorbells on sockets, and the watch that waits for a socket to appear."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpmsgx.notify.doorbell import EventfdDoorbell, readable
from rpmsgx.notify.inotify import Watch
from rpmsgx.notify.socket import RETRY_MS, SocketDoorbell
from rpmsgx.notify.timer import PolledDoorbell, Timer

pytestmark = pytest.mark.timeout(60)
WAIT = 10.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "bell")


@pytest.fixture
def bell() -> Iterator[Callable[..., SocketDoorbell]]:
    made: list[SocketDoorbell] = []

    def make(path: str, **options: object) -> SocketDoorbell:
        made.append(SocketDoorbell(path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def drain_until(condition: Callable[[], object], *bells: SocketDoorbell) -> None:
    """Drain whenever a descriptor asks for it, as a bus does."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        for one in select.select(bells, [], [], WAIT)[0]:
            one.drain()


def quiet(one: SocketDoorbell) -> bool:
    one.drain()
    return not readable(one.fileno(), 0)


def retries(one: SocketDoorbell) -> bool:
    """Whether it asks for another look, with nothing that happens."""
    one.drain()
    return readable(one.fileno(), 5 * RETRY_MS / 1000)


# -- looking now and then


def test_a_timer_fires_once() -> None:
    timer = Timer()
    assert not readable(timer.fileno(), 0)
    for _ in range(3):
        timer.set(1)
        assert readable(timer.fileno(), WAIT)
    timer.set(0)
    assert not readable(timer.fileno(), 0.01)
    timer.set(1)
    timer.set(0)
    assert not readable(timer.fileno(), 0.01)
    timer.close()
    timer.close()
    timer.set(1)


def test_a_polled_doorbell_asks_again_and_again() -> None:
    one = PolledDoorbell()
    one.kick(0)
    for _ in range(3):
        assert readable(one.fileno(), WAIT)
        one.drain()
    one.close()
    one.close()


# -- the watch


def test_a_watch_sees_names_appear(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    assert not readable(watch.fileno(), 0)
    (tmp_path / "made").touch()
    assert readable(watch.fileno(), WAIT)
    watch.drain()
    assert not readable(watch.fileno(), 0)
    os.rename(tmp_path / "made", tmp_path / "moved")
    assert readable(watch.fileno(), WAIT)
    watch.drain()
    (tmp_path / "moved").chmod(0o600)
    assert readable(watch.fileno(), WAIT)
    watch.close()
    watch.close()


def test_a_watch_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Watch(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Watch(tmp_path / "file")


# -- meeting


@pytest.mark.parametrize("first", ["listener", "connector"])
def test_the_two_meet_in_either_order(path: str, bell: Callable[..., SocketDoorbell], first: str) -> None:
    ends = {listen: bell(path, listen=listen) for listen in (first == "listener", first != "listener")}
    fds = [one.fileno() for one in ends.values()]
    drain_until(lambda: all(one.connected for one in ends.values()), *ends.values())
    assert [one.fileno() for one in ends.values()] == fds
    for one in ends.values():
        assert one.kick_fd >= 0 and one.kick_socket and not one.rang and one.lost == 0
        assert not retries(one)


@pytest.mark.parametrize("who", [True, False])
@pytest.mark.parametrize("how", ["kick", "kick_fd"])
def test_a_ring_is_a_byte_of_any_value(path: str, bell: Callable[..., SocketDoorbell], who: bool, how: str) -> None:
    ends = {listen: bell(path, listen=listen) for listen in (True, False)}
    drain_until(lambda: ends[True].connected, *ends.values())
    assert quiet(ends[not who])
    if how == "kick":
        ends[who].kick(0)
    else:
        os.write(ends[who].kick_fd, b"\0")
    assert readable(ends[not who].fileno(), WAIT)
    ends[not who].drain()
    assert ends[not who].rang
    assert quiet(ends[not who])
    assert quiet(ends[who]) and not ends[who].rang


@pytest.mark.parametrize("leaver", [True, False])
def test_one_leaves_and_another_comes(path: str, bell: Callable[..., SocketDoorbell], leaver: bool) -> None:
    stays, goes = bell(path, listen=not leaver), bell(path, listen=leaver)
    fd = stays.fileno()
    for turn in range(1, 5):
        drain_until(lambda goes=goes: stays.connected and goes.connected, stays, goes)
        goes.kick(0)
        drain_until(lambda: stays.rang, stays)
        goes.close()
        drain_until(lambda: not stays.connected, stays)
        assert stays.lost == turn and stays.kick_fd == -1 and not stays.rang and stays.fileno() == fd
        stays.kick(0)  # to nobody
        goes = bell(path, listen=leaver)


def test_a_second_peer_waits_for_its_turn(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    listener, first = bell(path, listen=True), bell(path, listen=False)
    drain_until(lambda: listener.connected, listener)
    second = bell(path, listen=False)
    assert not second.connected and retries(second)
    assert quiet(listener)
    first.close()
    drain_until(lambda: second.connected and listener.connected, listener, second)
    assert listener.lost == 1 and second.lost == 0


def test_things_are_in_order_before_anybody_can_connect(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    """What before_listen does, a peer finds done; and it is not done behind the back of a peer that is there."""
    seen: list[bool] = []

    def before() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
            seen.append(early.connect_ex(path) == 0)

    listener = bell(path, listen=True, before_listen=before)
    for turn in (1, 2, 3):
        assert seen == [False] * turn
        peer = bell(path, listen=False)
        drain_until(lambda: listener.connected, listener)
        assert seen == [False] * turn
        peer.close()
        drain_until(lambda: not listener.connected, listener)


def test_a_foreign_server_that_does_not_listen_yet(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    one = bell(path, listen=False)
    assert not retries(one)  # the watch says when it is time
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        assert readable(one.fileno(), WAIT)
        for _ in range(3):
            assert retries(one) and not one.connected
        server.listen()
        drain_until(lambda: one.connected, one)
        peer, _ = server.accept()
        with peer:
            peer.send(b"\xff")
            drain_until(lambda: one.rang, one)
            assert not retries(one)


def test_a_directory_that_is_not_there_yet(tmp_path: Path, bell: Callable[..., SocketDoorbell]) -> None:
    one = bell(str(tmp_path / "later" / "bell"), listen=False)
    assert retries(one)
    (tmp_path / "later").mkdir()
    other = bell(str(tmp_path / "later" / "bell"), listen=True)
    drain_until(lambda: one.connected and other.connected, one, other)


# -- the socket file


def test_the_socket_file_is_whole_private_and_removed(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    one = bell(path, listen=True)
    found = os.lstat(path)
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["bell"]
    peer = bell(path, listen=False)
    drain_until(lambda: one.connected, one)
    found = os.lstat(path)
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    peer.close()
    assert os.path.exists(path)
    one.close()
    one.close()
    assert os.listdir(os.path.dirname(path)) == []


def test_a_socket_that_is_not_ours_any_more_stays(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    one = bell(path, listen=True)
    os.unlink(path)
    other = bell(path, listen=True)
    one.close()
    connector = bell(path, listen=False)
    drain_until(lambda: connector.connected and other.connected, connector, other)


def test_the_socket_of_a_dead_listener_is_replaced(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
        dead.listen()
    assert os.path.exists(path)
    early = bell(path, listen=False)
    one = bell(path, listen=True)
    drain_until(lambda: one.connected and early.connected, one, early)


@pytest.mark.parametrize("state", ["bound", "listening", "busy"])
def test_a_live_listener_is_refused_and_left_alone(
    path: str, bell: Callable[..., SocketDoorbell], state: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as live:
        live.bind(path)
        if state != "bound":
            live.listen(0)
        if state == "busy":
            peer = bell(path, listen=False)
            assert peer.connected
        with pytest.raises(OSError, match="bell") as error:
            bell(path, listen=True)
        assert error.value.filename == path
        if state == "listening":
            assert not readable(live.fileno(), 0)  # it was not even connected to
    assert os.listdir(os.path.dirname(path)) == ["bell"]


def test_what_is_no_socket_is_refused_and_left_alone(tmp_path: Path, bell: Callable[..., SocketDoorbell]) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(FileExistsError, match=name):
            bell(str(tmp_path / name), listen=True)
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(FileNotFoundError):
        bell(str(tmp_path / "missing" / "bell"), listen=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# -- what a peer can do


@pytest.mark.hostile
@pytest.mark.parametrize("listen", [True, False])
def test_a_million_bytes_are_one_ring(path: str, bell: Callable[..., SocketDoorbell], listen: bool) -> None:
    one, other = bell(path, listen=listen), bell(path, listen=not listen)
    drain_until(lambda: one.connected and other.connected, one, other)
    left = 1_000_000
    with socket.socket(fileno=os.dup(other.kick_fd)) as raw:
        raw.setblocking(False)
        while left:
            try:
                left -= raw.send(bytes(min(left, 65536)))
            except BlockingIOError:
                one.drain()
                assert one.rang
    drain_until(lambda: quiet(one), one)
    assert one.connected and one.lost == 0


@pytest.mark.hostile
def test_a_peer_that_never_reads_stops_nobody(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    one, other = bell(path, listen=True), bell(path, listen=False)
    drain_until(lambda: one.connected, one)
    for _ in range(10_000):
        one.kick(0)
    drain_until(lambda: other.rang, other)
    other.close()
    for _ in range(10):
        one.kick(0)  # to a socket that is gone already: no SIGPIPE, no error
    drain_until(lambda: one.lost == 1, one)


@pytest.mark.hostile
def test_peers_that_come_and_go_at_once(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    one = bell(path, listen=True)
    fds = len(os.listdir("/proc/self/fd"))
    for turn in range(1, 201):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(path)
        drain_until(lambda turn=turn: one.lost == turn, one)
    assert len(os.listdir("/proc/self/fd")) <= fds + 1
    assert os.listdir(os.path.dirname(path)) == ["bell"]


def test_a_forked_child_gives_up_its_copies_only(path: str, bell: Callable[..., SocketDoorbell]) -> None:
    one, other = bell(path, listen=True), bell(path, listen=False)
    drain_until(lambda: one.connected and other.connected, one, other)
    child = os.fork()
    if child == 0:
        try:
            one.close()
            other.close()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.path.exists(path)
    one.kick(0)
    drain_until(lambda: other.rang, other)
    other.kick(0)
    drain_until(lambda: one.rang, one)
    assert one.lost == other.lost == 0


def test_a_pair_of_eventfds_rings_both_ways() -> None:
    a, b = EventfdDoorbell.pair()
    for one, other in ((a, b), (b, a)):
        assert not readable(one.fileno(), 0)
        other.kick(0)
        other.kick(0)
        assert readable(one.fileno(), 0)
        one.drain()
        one.drain()
        assert not readable(one.fileno(), 0)
    for one in (a, b):
        one.close()
        one.close()
