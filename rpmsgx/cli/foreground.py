"""What `run` and `attach` share: being the host of a remote in the foreground, until a signal."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import Error, StateError, Timeout
from .console import Console, Signals
from .target import find
from .trace import TICK, Tail

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable
    from typing import Self

    from ..remoteproc.board import Board
    from ..remoteproc.linux import LinuxRemoteproc
    from ..remoteproc.remoteproc import Remoteproc

UP = ("running", "attached")


def add_policies(parser: argparse.ArgumentParser) -> None:
    """Arguments for `Host` and `KernelHost`."""
    parser.add_argument(
        "--at-exit",
        choices=("stop", "detach"),
        help="what becomes of the remote at the end (default: the board's, else what was booted is stopped, and what "
        "was attached to is detached from)",
    )
    parser.add_argument("--guardian", action="store_true", help="have that done where this process is killed, too")
    parser.add_argument(
        "--recovery",
        choices=("enabled", "disabled", "once"),
        help="whether to recover from crashes (default: the board's, else enabled)",
    )
    parser.add_argument(
        "--coredump",
        choices=("disabled", "enabled", "inline"),
        help="write a core dump at each crash, after the recovery from a copy of the memory, or inline, before it "
        "(default: the board's, else disabled)",
    )
    parser.add_argument(
        "--coredump-dir", metavar="DIR", help="where to write them (default: the board's, else the working directory)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for everything that happens")


def serve(args: argparse.Namespace, make: Callable[[Console], Host | KernelHost]) -> int:
    """Be the host until a signal, or until the remote is gone; the exit status."""
    with Signals() as signals, Console(args.json) as console:
        try:
            with make(console) as host:
                host.begin()
                while signals.received is None:
                    if host.look() == "deleted":
                        raise StateError(f"{host.name} is gone: its driver was removed")
                    host.rproc.poll(TICK)
                console.tell("signal", None, name=signals.received.name)
        except KeyboardInterrupt:
            console.log("error", "given up: the remote may still run")
            raise
    return 128 + signals.received


class _Watch:
    """Tells what has changed with a remote since the last `look`."""

    rproc: Remoteproc | LinuxRemoteproc

    def __init__(self, console: Console, name: str) -> None:
        self.name = name
        self.console = console
        self._tail = Tail()
        self._state = ""
        self._channels: frozenset[tuple[str, int]] = frozenset()

    def look(self) -> str:
        """The state."""
        state = self.rproc.state
        if state != self._state:
            if state not in UP:
                self.look_at_trace()  # its last words come first
            self._state = state
            self.tell_state(state)
        self._look_at_channels()
        self.look_at_trace()
        return state

    def tell(self, event: str, words: str | None, /, **fields: Any) -> None:
        self.console.tell(event, None if words is None else f"{self.name}: {words}", remote=self.name, **fields)

    def tell_state(self, state: str) -> None:
        self.tell("state", state, state=state)

    def look_at_trace(self) -> None:
        with suppress(StateError):  # it is down, or has none
            self.console.trace(self.name, self._tail.lines(self.rproc.trace()))

    def begin_trace(self) -> None:
        self.console.trace(self.name, self._tail.rest())

    def channels(self) -> Iterable[tuple[str, int]]:
        raise NotImplementedError

    def _look_at_channels(self) -> None:
        channels = frozenset(self.channels())
        for what, changed in (("removed", self._channels - channels), ("announced", channels - self._channels)):
            for name, addr in sorted(changed):
                self.tell("channel", f"channel {name} at {addr:#x} {what}", change=what, name=name, addr=addr)
        self._channels = channels

    def end(self) -> None:
        """What becomes of the remote, by policy."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


class Host(_Watch):
    """The host of a remote on a board, or on a platform alone. `begin` boots it or attaches to it.

    It is a subdevice of its remote, so it sees the trace of one that crashed before the memory is loaded anew.
    """

    rproc: Remoteproc

    def __init__(
        self,
        console: Console,
        args: argparse.Namespace,
        begin: Callable[[Remoteproc], None],
        board: Board | None,
        **what: Any,
    ) -> None:
        from ..remoteproc.remoteproc import Remoteproc

        self._coredump = args.coredump or (board.coredump if board is not None else "disabled")
        self._coredump_dir = args.coredump_dir or (board and board.coredump_dir) or "."
        self._dump_due = False
        self._waiting_for: str | None = None
        self._begin = begin
        self.rproc = Remoteproc(
            board=board,
            auto_boot=False,
            recovery=args.recovery,
            coredump="enabled" if self._coredump == "enabled" else "disabled",  # inline is done here
            at_exit=args.at_exit,
            guardian=args.guardian,
            **what,
        )
        super().__init__(console, self.rproc.name)
        self.rproc.add_subdevice(self)

    def begin(self) -> None:
        self._begin(self.rproc)

    def look(self) -> str:
        state = super().look()
        waiting_for = self.rproc.waiting_for
        if waiting_for != self._waiting_for:
            self._waiting_for = waiting_for
            if waiting_for is not None:
                self.tell("waiting", f"waits for {waiting_for}", waiting_for=waiting_for)
        if self._dump_due and (state != "crashed" or waiting_for is None):
            self._dump()
        return state

    def tell_state(self, state: str) -> None:
        crash = self.rproc.crash
        if crash is not None:  # the library says it to people
            self.tell("state", None, state=state, **crash._asdict() | {"time": round(crash.time, 3)})
            self._dump_due = self._coredump == "enabled"
            if self._coredump == "inline":
                self._dump()
            return
        words, about = state, dict[str, str | int]()
        with suppress(StateError):  # none runs, or it is not known
            image = self.rproc.image
            words += f", firmware {image.name}, sha256 {image.sha256[:16]}"
            about.update(firmware=image.name, sha256=image.sha256)
        if state == "attached":
            words += f", {self.rproc.lost} messages of the host before lost"
            about.update(lost=self.rproc.lost)
        self.tell("state", words, state=state, **about)

    def channels(self) -> Iterable[tuple[str, int]]:
        return ((channel.name, channel.addr) for channel in self.rproc.channels)

    def _dump(self) -> None:
        self._dump_due = False
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        path = os.path.join(self._coredump_dir, f"{self.name}-{stamp}-{self.rproc.crash_count}.core")
        try:
            self.rproc.coredump(path)
        except (Error, OSError) as error:  # it does not keep the remote from coming back
            self.console.log("error", f"{self.name}: no core dump: {error}")
        else:
            self.tell("coredump", f"core dumped to {path}", path=path)

    def end(self) -> None:
        state, at_exit = self.rproc.state, self.rproc.at_exit
        self.rproc.close()
        self.begin_trace()
        if state in UP or state == "crashed":
            left = state != "crashed" and (at_exit == "detach" or (at_exit is None and state == "attached"))
            self.tell("end", "left running" if left else "stopped", left_running=left)

    # -- as a subdevice ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.begin_trace()

    def start(self) -> None:
        pass

    def stop(self, crashed: bool) -> None:
        if crashed:
            super().look()

    def unprepare(self) -> None:
        self.look_at_trace()


class KernelHost(_Watch):
    """The host of the kernel's remoteproc `target`: the kernel does the work. `attach`: to one that runs, else it is
    booted."""

    rproc: LinuxRemoteproc

    def __init__(self, console: Console, args: argparse.Namespace, target: str, *, attach: bool) -> None:
        from ..remoteproc.linux import LinuxRemoteproc

        self._attach = attach
        self._firmware = args.firmware
        self._coredump = args.coredump in ("enabled", "inline")
        self._coredump_dir = args.coredump_dir or "."
        self._dumps = 0
        self._guarded = args.guardian
        self._began = False
        rproc = find(target, guardian=args.guardian)
        assert isinstance(rproc, LinuxRemoteproc)
        self.rproc = rproc
        super().__init__(console, rproc.name)
        try:
            rproc.at_exit = self._at_exit = args.at_exit or rproc.at_exit or ("detach" if attach else "stop")
            if not attach and rproc.at_exit == "detach":
                raise ValueError("the kernel cannot detach from a remote that it has booted: --at-exit stop")
            if args.recovery is not None:
                rproc.recovery = args.recovery
            if args.coredump is not None:
                rproc.coredump_mode = args.coredump
        except BaseException:
            rproc.close()
            raise

    def begin(self) -> None:
        if self._attach:
            self.rproc.attach()
        else:
            state = self.rproc.state
            if state != "offline":
                raise StateError(
                    f"{self.name} is {state} already: rpmsgx stop ends it, rpmsgx attach takes over one that is "
                    "detached, rpmsgx trace -f shows what it writes"
                )
            if self._firmware is not None:
                self.rproc.firmware = self._firmware
            self.rproc.boot()
        self._began = True

    def look(self) -> str:
        state = super().look()
        if self._coredump and state != "deleted":
            self._take_dump()
        return state

    def tell_state(self, state: str) -> None:
        if state in UP:
            self.begin_trace()
            firmware = self.rproc.firmware
            self.tell("state", f"{state}, firmware {firmware}", state=state, firmware=firmware)
        else:
            super().tell_state(state)

    def channels(self) -> Iterable[tuple[str, int]]:
        return ((channel.name, channel.dst) for channel in self.rproc.channels)

    def _take_dump(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        path = os.path.join(self._coredump_dir, f"{self.name}-{stamp}-{self._dumps + 1}.core")
        try:
            self.rproc.coredump(path, timeout=0)
        except Timeout:
            return
        except (Error, OSError) as error:
            self._coredump = False
            self.console.log("error", f"{self.name}: no core dumps: {error}")
        else:
            self._dumps += 1
            self.tell("coredump", f"core dumped to {path}", path=path)

    def end(self) -> None:
        with self.rproc:
            if not self._began:
                return
            left = self._at_exit == "detach" and self.rproc.state != "crashed"
            if not self._guarded:  # then the kernel does it, at the close
                try:
                    if left:
                        self.rproc.detach()
                    else:
                        self.rproc.shutdown()
                except StateError:  # it was stopped by somebody else; one that recovers is "offline" for a moment, too
                    if self.rproc.state in UP:
                        raise
                    return
        self.begin_trace()
        self.tell("end", "left running" if left else "stopped", left_running=left)
