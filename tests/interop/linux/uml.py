# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest that runs as a process of this machine, and what its kernel logged."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support import ROOT

if TYPE_CHECKING:
    from kernel_peer import KernelPeer

HERE = Path(__file__).resolve().parent
BOOT = 30.0  # seconds; it takes half a one
VIRTIO_ID_RPMSG = 7
WARNING = 4
SPLAT = re.compile(r"-+\[ cut here \]")
SPLAT_END = re.compile(r"---\[ end trace")
FORBIDDEN = re.compile(r"WARNING:|BUG:|Oops|Call Trace|Kernel panic|Segfault with no mm|general protection")
#: Warnings of a boot that say nothing about rpmsg.
HARMLESS = (
    r"loading out-of-tree module taints kernel",
    r"epollctl add err fd \d+, Operation not permitted",
    r"This architecture does not have kernel memory protection",
)


class Line(NamedTuple):
    level: int
    text: str


class GuestError(AssertionError):
    """A command failed in the guest, took too long, or the guest is gone."""


class Command:
    """A command that was given to a guest. `fileno()` is readable when there may be something to `poll()`."""

    def __init__(self, guest: Guest, text: str) -> None:
        self._guest = guest
        self.text = text
        self.output = ""
        self.status: int | None = None

    def fileno(self) -> int:
        return self._guest.console.fileno()

    def poll(self) -> bool:
        """Has it ended? Never waits."""
        return self._guest._step(self, 0.0)

    def wait(self, timeout: float = 10.0, *, check: bool = True) -> str:
        """What it wrote. Raises GuestError after `timeout` seconds, and for an exit status that is not 0 if `check`."""
        deadline = time.monotonic() + timeout
        while not self._guest._step(self, deadline - time.monotonic()):
            if time.monotonic() >= deadline:
                raise GuestError(f"longer than {timeout} s: {self.text}\n{self.output}")
        if check and self.status:
            raise GuestError(f"exit status {self.status}: {self.text}\n{self.output}")
        return self.output


class Guest:
    """A guest from the start of its process on: booting, until the first command is waited for.

    `devices` are sockets of vhost-user back ends, each of which becomes a virtio-rpmsg device. The kernel connects to
    them as it boots, and waits for their answers: somebody must serve them meanwhile. `folder` is this guest's own, and
    can be written from inside under the same path, below /host.
    """

    def __init__(
        self,
        peer: KernelPeer,
        folder: Path,
        *,
        devices: Iterable[str | os.PathLike[str]] = (),
        memory: str = "96M",
        arguments: Iterable[str] = (),
    ) -> None:
        self.folder = folder
        self.expected: list[str] = []
        self._log: list[Line] | None = None
        self._mark = secrets.token_hex(8)
        self._received = b""
        self._queue: list[Command] = []
        self._scripts = 0
        self._console_log = folder / "console.log"
        self.console, inner = socket.socketpair()
        command = [
            str(peer.kernel),
            f"mem={memory}",
            f"initrd={peer.initramfs}",
            "rdinit=/init",
            "panic=-1",
            "loglevel=8",
            f"uml_dir={folder / 'uml'}/",
            "con=null",
            "con0=null,fd:1",
            f"con1=fd:{inner.fileno()},fd:{inner.fileno()}",
            f"folder={folder}",
            *(f"virtio_uml.device={os.fspath(device)}:{VIRTIO_ID_RPMSG}" for device in devices),
            *arguments,
        ]
        with inner, self._console_log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[inner.fileno()],
                start_new_session=True,  # a process group of its own, so that `kill` finds all of it
                env={**os.environ, "TMPDIR": _memory_folder(folder)},
            )
        self._boot = Command(self, "boot")
        self._queue.append(self._boot)

    def run(self, command: str, timeout: float = 10.0, *, check: bool = True) -> str:
        """Run shell code and return what it wrote. See `Command.wait`; a boot that is under way has time of its own."""
        return self.start(command).wait(timeout, check=check)

    def start(self, command: str) -> Command:
        """Begin to run shell code: one after the other, each in a subshell, without an input. Waits for the boot."""
        self.boot()
        started = Command(self, command)
        self._queue.append(started)
        script = self._file(command, "sh")  # a console takes in a few kilobytes, and loses more
        request = f"(. /host{script}) </dev/null 2>&1; echo {self._mark} $?\n"
        try:
            self.console.sendall(request.encode())
        except OSError as error:
            raise GuestError(f"the guest is gone: {error}\n{self.console_log()}") from None
        return started

    def python(self, code: str, *arguments: str, timeout: float = 30.0, check: bool = True) -> str:
        """Run Python code in the guest. See `script`."""
        return self.run(self.script(code, *arguments), timeout, check=check)

    def script(self, code: str, *arguments: str) -> str:
        """The shell command for Python code: the host's interpreter and libraries, this tree's rpmsgx and tests."""
        path = f"PYTHONPATH={ROOT}:{ROOT / 'tests'}:{HERE}"
        words = ["chroot", "/host", "env", path, "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-X", "faulthandler"]
        return shlex.join([*words, str(self._file(code, "py")), *arguments])

    def boot(self, timeout: float = BOOT) -> None:
        """Wait until it runs commands."""
        self._boot.wait(timeout)

    def booted(self) -> bool:
        """Does it run commands yet? Never waits."""
        return self._boot.poll()

    def expect(self, *patterns: str) -> None:
        """Warnings that this test provokes, as regular expressions; one that matches any line of a WARN covers it."""
        self.expected += patterns

    def log(self) -> list[Line]:
        """The kernel's log until now, or until the guest was killed."""
        if self._log is not None:
            return self._log
        lines = []
        for line in self.run("dmesg -r").splitlines():
            if match := re.match(r"<(\d+)>(?:\[ *[\d.]+\] ?)?(.*)", line):
                lines.append(Line(int(match[1]) & 7, match[2]))
        return lines

    def console_log(self) -> str:
        """What it printed, from the first instruction on; all there is of a kernel that is dead."""
        return self._console_log.read_text(errors="replace")

    def kill(self) -> None:
        """End it at once, as if its machine had lost its power. Idempotent."""
        if self._log is None:
            try:
                self._log = self.log()
            except GuestError:
                self._log = [Line(6, line) for line in self.console_log().splitlines()]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.console.close()

    def check(self) -> None:
        """Assert that the kernel logged no WARN, BUG or oops, and no warning, that was not expected."""
        wrong = unexpected(self.log(), [*HARMLESS, *self.expected])
        assert not wrong, "the kernel complained:\n" + "\n".join(wrong)

    def _file(self, text: str, suffix: str) -> Path:
        self._scripts += 1
        file = self.folder / f"{self._scripts}.{suffix}"
        file.write_text(text)
        return file

    def _step(self, command: Command, timeout: float) -> bool:
        """Read what is there, waiting `timeout` seconds for it at most; has `command` ended?"""
        if command.status is not None:
            return True
        if not select.select([self.console], [], [], max(0.0, timeout))[0]:
            return False
        try:
            data = self.console.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise GuestError(f"the guest is gone; it ran: {command.text}\n{command.output}\n{self.console_log()}")
        self._received += data
        while self._queue:
            first = self._queue[0]
            mark = rb"ready()\n" if first is self._boot else self._mark.encode() + rb" (\d+)\n"
            found = re.search(mark, self._received)
            output = self._received[: found.start()] if found else self._received
            first.output = output.decode(errors="replace")
            if found is None:
                break
            first.status = int(found[1] or 0)
            self._received = self._received[found.end() :]
            self._queue.pop(0)
        return command.status is not None


def unexpected(log: Iterable[Line], expected: Iterable[str]) -> list[str]:
    """The lines that no pattern covers, of those that are warnings or worse; a WARN with all its lines is one."""
    known = re.compile("|".join(f"(?:{pattern})" for pattern in expected) or r"(?!)")
    wrong: list[str] = []
    splat: list[str] | None = None
    for line in log:
        if SPLAT.search(line.text):
            wrong += splat or []
            splat = []
        if splat is not None:
            splat.append(line.text)
            if SPLAT_END.search(line.text):
                wrong += [] if any(map(known.search, splat)) else splat
                splat = None
        elif FORBIDDEN.search(line.text) or (line.level <= WARNING and not known.search(line.text)):
            wrong.append(line.text)
    return wrong + (splat or [])


def _memory_folder(otherwise: Path) -> str:
    """Where the guest's memory lies as a file: a tmpfs from which code may run."""
    try:
        usable = not os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC
    except OSError:
        usable = False
    return "/dev/shm" if usable else str(otherwise)
