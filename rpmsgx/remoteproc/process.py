"""Processes by their pidfds: programs of this package that run by themselves, and those that others started."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from ..notify.doorbell import readable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# Children that were left to themselves: they would stay zombies, so the next spawn looks after them.
_left: deque[int] = deque()


class Process:
    """A process, anybody's child, that a reused pid is never mistaken for. Raises ProcessLookupError if there is none.

    Thread-safe, but for `close`.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        """How it ended: its exit status, or minus the signal. None while it runs, and of another's child."""
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def spawn(cls, module: str, argument: Any, fds: Sequence[int], **options: Any) -> Self:
        """Run `python -m module JSON`, JSON of `argument`, with the descriptors `fds`. `options` are those of Popen."""
        import subprocess

        _reap_left()
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        child = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(argument)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=tuple(fds),
            **options,
        )
        try:
            process = cls(child.pid)
        except BaseException:
            child.kill()
            child.wait()
            raise
        child.returncode = 0  # from here on it is waited for by the pidfd
        return process

    def fileno(self) -> int:
        """The pidfd: readable when it has ended. -1 after `close`."""
        return self._pidfd

    def ended(self, timeout: float | None = 0.0) -> bool:
        """Whether it has ended; waits up to `timeout` seconds for that, with None for ever."""
        if not readable(self._pidfd, timeout):
            return False
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass  # another's child, or reaped before
        else:
            if result is not None:
                self.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        return True

    def kill(self) -> None:
        """SIGKILL. Does nothing to one that has ended. Raises PermissionError if it is another user's."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Give up the descriptor; the process goes on. Idempotent."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            _left.append(pidfd)
            _reap_left()


def _reap_left() -> None:
    """Reap and forget who has ended, and forget those who are not ours to reap."""
    for _ in range(len(_left)):
        try:
            pidfd = _left.popleft()
        except IndexError:
            return  # another thread is at it
        try:
            if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is None:
                _left.append(pidfd)
                continue
        except ChildProcessError:
            pass
        os.close(pidfd)


os.register_at_fork(after_in_child=_reap_left)  # a child has none of its parent's children
