"""A process that keeps the policy for a host's end where the host cannot: when it is killed with SIGKILL.

It watches the host by a pidfd, in a session of its own, so that Ctrl-C reaches the host alone. When the host is dead it
takes the hold that the host had, if the host had it to the last and nobody was faster, and stops the remote or detaches
from it. It tells of a failure by syslog, as nobody is left to hear it.
"""

from __future__ import annotations

import json
import os
import select
import sys
import weakref
from typing import TYPE_CHECKING, Any, Literal

from ..errors import StateError, Timeout
from ..virtio.table import VdevView, parse
from .hold import Hold, state_directory
from .platform import open_platform
from .process import Process

if TYPE_CHECKING:
    from typing import Self

    from .hold import Saved
    from .platform import Platform

Action = Literal["stop", "detach"]
DETACH_TIMEOUT = 5.0  # seconds; a remote that has not acknowledged the detach by then is stopped

# A forked child is not the host, and must not end its parent's guardian.
_guardians: weakref.WeakSet[Guardian] = weakref.WeakSet()


def _after_fork() -> None:
    for guardian in list(_guardians):
        guardian._forget()


os.register_at_fork(after_in_child=_after_fork)


class Guardian:
    """Sees to the remote of `platform` when this process dies before `close`: `action` is "stop" or "detach".

    It does nothing unless this process holds the remote (`Hold`) when it dies. A detach needs what was saved there, as
    it restores the clean table. What became of the platform in this process does not matter: the guardian opens another
    one, for which `platform` must have an `identity` and `options` for `open_platform`.

    A context manager: leaving it closes. Raises StateError where another process cannot open the platform, TypeError
    where its options are not plain data, OSError where no process can be started. Thread-safe.
    """

    def __init__(self, platform: Platform, action: Action) -> None:
        if action not in ("stop", "detach"):
            raise ValueError(f"action is {action!r}, not 'stop' or 'detach'")
        if platform.identity is None or platform.options is None:
            why = "ends with this process" if platform.identity is None else "does not tell how to open it again"
            raise StateError(f"a remote of platform {platform.name!r} needs no guardian: it {why}")
        host = os.pidfd_open(os.getpid())
        try:
            argument = {
                "host": host,
                "pid": os.getpid(),
                "platform": platform.name,
                "options": dict(platform.options),
                "identity": platform.identity,
                "directory": os.path.abspath(state_directory()),
                "action": action,
            }
            self._process = _spawn(argument, host)
        finally:
            os.close(host)
        self.pid = self._process.pid
        self._closed = False
        _guardians.add(self)

    def close(self) -> None:
        """This process has seen to the remote itself, or will: the guardian goes. Idempotent."""
        if not self._closed:
            self._closed = True
            self._process.kill()  # it has done nothing yet: its host lives
            self._process.ended(None)
            self._process.close()

    def _forget(self) -> None:
        if not self._closed:
            self._closed = True
            self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _spawn(argument: dict[str, Any], host: int) -> Process:
    import subprocess

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return Process.spawn(__name__, argument, (host,), start_new_session=True, **quiet)


# -- the process -----------------------------------------------------------------------------------------------------


def main(argument: str) -> None:
    """`argument` is what `Guardian` says, with an inherited pidfd of the host."""
    given = json.loads(argument)
    poll = select.poll()
    poll.register(given["host"], select.POLLIN)
    poll.poll()
    try:
        _act(given)
    except Exception as error:
        import syslog

        syslog.openlog("rpmsgx", syslog.LOG_PID)
        syslog.syslog(syslog.LOG_ERR, f"{given['action']} of {given['identity']}, whose host was killed: {error}")


def _act(given: dict[str, Any]) -> None:
    with Hold(given["identity"], given["directory"]) as hold:
        if hold.acquire() != given["pid"]:
            return  # it gave the remote up before it died, or another host had it since
        with open_platform(given["platform"], **given["options"]) as platform:
            if given["action"] == "detach" and platform.running:
                saved = hold.saved
                if saved is None:
                    raise StateError("nothing was saved about it; it is left as it is")
                try:
                    detach(platform, saved)
                    return
                except Timeout as error:
                    stop(platform, hold)
                    raise Timeout(f"{error}; it was stopped") from None
            stop(platform, hold)


def stop(platform: Platform, hold: Hold) -> None:
    platform.stop()
    hold.forget()


def detach(platform: Platform, saved: Saved) -> None:
    """Let go of a remote in the place of its host: status 0, the detach, the clean table.

    Raises what `Platform.attach` and `detach` do. It is still attached then.
    """
    platform.prepare()
    platform.attach()
    table = platform.space.view(saved.table_da, len(saved.clean))
    for vdev in parse(saved.clean).vdevs:
        VdevView(table, vdev.offset).status = 0
    platform.detach(DETACH_TIMEOUT)
    platform.space.write(saved.table_da, saved.clean)
    platform.unprepare()


if __name__ == "__main__":
    main(sys.argv[1])
