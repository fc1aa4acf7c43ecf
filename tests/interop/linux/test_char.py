# SPDX-License-Identifier: BSD-3-Clause
"""`char:` in a real kernel, with rpmsgx as the remote, too. What runs in there is inside_char.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sim_firmware import firmware

import rpmsgx

if TYPE_CHECKING:
    from uml import Guest

pytestmark = pytest.mark.timeout(120)
WAIT = 20.0


class Remote:
    """A remote with a thread that polls it. What it is to do comes to its service "control"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bus = rpmsgx.open(f"vhost-user:{path}", "device")
        self.error: BaseException | None = None
        self._services: dict[str, Any] = {}
        self._sender = 0
        self.control = self.bus.create_endpoint("control", callback=self._obey)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.bus.poll(timeout=0.05)
        except BaseException as error:
            self.error = error

    def _obey(self, control: Any, data: bytes, src: int) -> None:
        word, *arguments = data.decode().split()
        answer = getattr(self, f"_do_{word}")(*arguments)
        control.send_to(str("done" if answer is None else answer).encode(), src)

    def _do_up(self, name: str, after: str = "0") -> None:
        time.sleep(float(after))
        self._services[name] = self.bus.create_endpoint(name, callback=self._echo)

    def _do_down(self, name: str, after: str = "0") -> None:
        time.sleep(float(after))
        self._services.pop(name).close()

    def _do_reset(self) -> None:
        for name in list(self._services):
            self._do_down(name)

    def _do_silent(self, name: str) -> None:
        self._services[name] = self.bus.create_endpoint(name)

    def _do_wait(self, path: str) -> None:
        """Take nothing until there is such a file; another one tells that this has begun."""
        Path(f"{path}-begun").touch()
        end = time.monotonic() + WAIT
        while not Path(path).exists():
            assert time.monotonic() < end
            time.sleep(0.002)

    def _do_send(self, dst: str) -> None:
        self.control.send_to(b"from the remote", int(dst))

    def _do_say(self, name: str, dst: str, text: str) -> None:
        self._services[name].send_to(text.encode(), int(dst))

    def _do_channels(self) -> str:
        return " ".join(f"{channel.name}@{channel.addr}" for channel in self.bus.channels)

    def _do_count(self, name: str) -> int:
        return self._services[name].counters["received"]  # type: ignore[no-any-return]

    def _do_address(self, name: str) -> int:
        return self._services[name].addr  # type: ignore[no-any-return]

    def _do_sender(self) -> int:
        return self._sender

    def _echo(self, endpoint: Any, data: bytes, src: int) -> None:
        self._sender = src
        endpoint.send_to(data, src)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(WAIT)
        self.bus.close(linger=0)
        assert self.error is None, self.error


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Callable[[], Remote]]:
    remotes: list[Remote] = []

    def start() -> Remote:
        remotes.append(Remote(tmp_path / f"{len(remotes)}.sock"))
        return remotes[-1]

    yield start
    for one in remotes:
        one.close()


@pytest.fixture
def boot(remote: Callable[[], Remote], uml: Callable[..., Guest]) -> Callable[..., Guest]:
    """A guest with remotes. `uml` is set up after `remote`: a guest would complain of one that goes first."""

    def start(remotes: int = 1, expect: Iterable[str] = (), **options: Any) -> Guest:
        paths = [remote().path for _ in range(remotes)]
        # It empties the ring at one interrupt, and is told of it by the next. Some echoes come to a closed endpoint.
        usual = ["but no used buffer", "msg received with no recipient", "callbacks suppressed"]
        return uml(devices=paths, expect=[*usual, *expect], **options)

    return start


def inside(guest: Guest, *functions: str) -> None:
    """Run functions of inside_char.py in the guest."""
    calls = "\n".join(f"inside.{function}({str(guest.folder)!r})" for function in functions)
    print(guest.python(f"import inside_char as inside\n{calls}", timeout=60))


def test_messages(boot: Callable[..., Guest]) -> None:
    inside(boot(), "by_name", "sizes", "batches")


def test_waits_end(boot: Callable[..., Guest]) -> None:
    inside(boot(), "waiting", "close_while_waiting", "interrupted")


def test_services_that_go_and_return(boot: Callable[..., Guest]) -> None:
    inside(boot(), "removal", "removal_seen_by_looking")


def test_a_remote_that_restarts(boot: Callable[..., Guest]) -> None:
    inside(boot(expect=[r"^\*\*"], arguments=["slub_debug=FZPU"]), "restart")


def test_endpoints_that_are_made_here(boot: Callable[..., Guest]) -> None:
    inside(boot(), "made_here", "announced")


def test_poll_and_asyncio(boot: Callable[..., Guest]) -> None:
    inside(boot(), "callbacks", "in_a_loop")


def test_other_processes(boot: Callable[..., Guest]) -> None:
    guest = boot()
    guest.run("insmod /lib/rpmsg_client_sample.ko")
    inside(guest, "left_over", "forked", "taken")


def test_others_than_root(boot: Callable[..., Guest]) -> None:
    inside(boot(), "not_root")


def test_a_remote_that_takes_nothing(boot: Callable[..., Guest]) -> None:
    inside(boot(), "full", "tty_full")


def test_tty(boot: Callable[..., Guest]) -> None:
    inside(boot(), "tty")


def test_two_remotes(boot: Callable[..., Guest]) -> None:
    inside(boot(2), "two_links")


def test_the_command(boot: Callable[..., Guest]) -> None:
    inside(boot(), "commands")


def test_the_kernels_remoteproc(uml: Callable[..., Guest]) -> None:
    guest = uml()
    (guest.folder / "sim.elf").write_bytes(firmware())
    guest.run(f"cp /host{guest.folder}/sim.elf /lib/firmware; insmod /lib/rproc_sim.ko count=2")
    inside(guest, "remoteproc")
