"""One host per remote: an exclusive lock among all processes of this machine, and what a host leaves to the next.

Both are files of the state directory, named after the remote's identity: NAME.lock, which is locked with flock(2) and
holds the owner's pid, and NAME.json. The directory is $RPMSGX_STATE_DIR; else /run/rpmsgx for root; else
$XDG_RUNTIME_DIR/rpmsgx; else /tmp/rpmsgx-UID. It must be the user's own, and nobody else may write to it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StateError

if TYPE_CHECKING:
    from typing import Self

VERSION = 1
MAX_FILE = 1 << 22  # bytes; a table of 1024 entries with much configuration space has far less
MAX_CHANNELS = 1024
MAX_COMMAND = 256  # bytes of a command line that are shown
_MAX_TEXT = 4096

# The lock belongs to the open file: a forked child must not keep it when its parent ends. It only closes its copy, for
# an unlock would be its parent's.
_holds: weakref.WeakSet[Hold] = weakref.WeakSet()


def _after_fork() -> None:
    for hold in list(_holds):
        hold._close()


os.register_at_fork(after_in_child=_after_fork)


class Saved(NamedTuple):
    """What the host of a running remote leaves to the next one, which may be another process."""

    table_da: int
    """Where the resource table lies."""
    clean: bytes
    """The table as the firmware has it: what a detach restores."""
    firmware: str | None = None
    """The name of what runs, as it was given; None: not known."""
    sha256: str | None = None
    """Of what runs, in hex."""
    channels: tuple[tuple[str, int], ...] = ()
    """(name, address) of the channels that the remote has announced."""
    crashes: int = 0
    """How often it has crashed under its host."""


class Owner(NamedTuple):
    """The process that is the host of a remote."""

    pid: int
    command: str

    def __str__(self) -> str:
        if self.pid == os.getpid():
            return f"this process (pid {self.pid})"
        shown = "".join(c if c.isprintable() else "?" for c in self.command)[:80]
        return f"pid {self.pid} ({shown})" if shown else f"pid {self.pid}"


class Hold:
    """The right to be the host of the remote `identity`. `directory` is instead of the state directory of the module.

    Ends with `release`, or with the process, kill -9 included; it is not inherited by children. Not thread-safe, but
    two of one process exclude each other as those of two processes do. A context manager: leaving it releases.
    """

    def __init__(self, identity: str, directory: str | os.PathLike[str] | None = None) -> None:
        self.identity = identity
        self.directory = state_directory() if directory is None else os.fspath(directory)
        label = re.sub(r"[^A-Za-z0-9.]+", "-", identity).strip("-.")[-40:]
        self._name = f"{label}-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]}"
        self._fd = -1
        _holds.add(self)

    @property
    def acquired(self) -> bool:
        return self._fd >= 0

    def acquire(self) -> int | None:
        """Become the host. The pid of one before that ended without `release`; None: there was none.

        Raises StateError if another is the host, naming its pid, or if the state directory is not safe; OSError if it
        cannot be used. Does nothing where this is the host already.
        """
        if self.acquired:
            return None
        fd = self._open(f"{self._name}.lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _pid(fd)
                who = "another process" if pid is None else Owner(pid, _command(pid))  # it has yet to write its pid
                raise StateError(f"{self.identity} is held by {who}: only one host at a time") from None
            before = _pid(fd)
            _write_pid(fd, os.getpid())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return before

    def release(self) -> None:
        """Be the host no longer. What was saved stays. Idempotent."""
        if self.acquired:
            _write_pid(self._fd, None)
            self._close()

    @property
    def owner(self) -> Owner | None:
        """Who is the host; None: nobody. The lock itself is not touched: a host may want it this moment.

        Raises PermissionError where this user may not look.
        """
        try:
            with open(os.path.join(self.directory, f"{self._name}.lock"), "rb") as file:
                pid, lock = _pid(file.fileno()), os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        if pid is None:
            return None
        # A host that was killed has left its pid, which may be another's by now: does that process have the lock?
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    held = os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), lock)
                    if held and _locked(f"/proc/{pid}/fdinfo/{fd}"):
                        return Owner(pid, _command(pid))
        return None

    @property
    def saved(self) -> Saved | None:
        """What was saved for this remote, by this host or another; None: nothing.

        Raises StateError if the file is not acceptable, or the state directory is not safe.
        """
        try:
            fd = self._open(f"{self._name}.json", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            data = _read(fd, MAX_FILE + 1)
        finally:
            os.close(fd)
        try:
            return _parse(data, self.identity)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            path = os.path.join(self.directory, f"{self._name}.json")
            raise StateError(f"{path}: {error}; remove it, and attach with the firmware that runs") from None

    def save(self, saved: Saved) -> None:
        """Leave this to the next host, instead of what was saved before: all or nothing.

        Raises StateError if this is not the host, ValueError if it is more than a next host accepts, OSError if it
        cannot be written.
        """
        self._check_acquired()
        content = {
            "version": VERSION,
            "identity": self.identity,
            **saved._asdict(),
            "clean": base64.b64encode(saved.clean).decode(),
        }
        data = json.dumps(content).encode()
        _parse(data, self.identity)
        directory = _open_directory(self.directory)
        new = f"{self._name}.new"  # one writer: the lock's owner
        try:
            fd = os.open(
                new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
            )
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(new, f"{self._name}.json", src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)

    def forget(self) -> None:
        """Remove what was saved: the remote was stopped. Raises StateError if this is not the host. Idempotent."""
        self._check_acquired()
        directory = _open_directory(self.directory)
        try:
            os.unlink(f"{self._name}.json", dir_fd=directory)
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)

    def _check_acquired(self) -> None:
        if not self.acquired:
            raise StateError(f"{self.identity} is not held by this host")

    def _open(self, name: str, flags: int) -> int:
        """A file of the state directory. Raises StateError if it is not a plain file of this user."""
        directory = _open_directory(self.directory)
        try:
            # Not blocking: a FIFO must be refused, not waited for.
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            os.close(fd)
            what = f"belongs to uid {status.st_uid}" if stat.S_ISREG(status.st_mode) else "is no plain file"
            raise StateError(f"{os.path.join(self.directory, name)} {what}: remove it")
        return fd

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self._close()  # no release: nobody has said what becomes of the remote


def state_directory() -> str:
    """Where locks and saved state are kept; see the module."""
    given = os.environ.get("RPMSGX_STATE_DIR")
    if given:
        return given
    if os.geteuid() == 0:
        return "/run/rpmsgx"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime, "rpmsgx") if runtime else f"/tmp/rpmsgx-{os.geteuid()}"


def _open_directory(path: str) -> int:
    """The directory, made if it is not there. Raises StateError unless it is this user's alone to write to."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise StateError(f"state directory {path} is no directory: remove it, or set RPMSGX_STATE_DIR") from None
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        os.close(fd)
        raise StateError(
            f"state directory {path} belongs to uid {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):03o}: "
            f"it must be uid {os.geteuid()}'s, and only its to write to; repair it, or set RPMSGX_STATE_DIR"
        )
    return fd


# -- the owner's pid -------------------------------------------------------------------------------------------------


def _read(fd: int, limit: int) -> bytes:
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read(limit)


def _pid(fd: int) -> int | None:
    """What stands in a lock file: somebody's pid, or anything."""
    text = _read(fd, 32)
    return int(text) if re.fullmatch(rb"[1-9][0-9]{0,9}\n", text) else None


def _write_pid(fd: int, pid: int | None) -> None:
    os.ftruncate(fd, 0)
    if pid is not None:
        os.pwrite(fd, b"%d\n" % pid, 0)


def _locked(info: str) -> bool:
    with open(info, encoding="ascii") as file:
        return any(line.startswith("lock:") and " FLOCK " in line for line in file)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(MAX_COMMAND).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


# -- the saved state -------------------------------------------------------------------------------------------------


def _parse(data: bytes, identity: str) -> Saved:
    """Raises ValueError, KeyError, TypeError or RecursionError unless all of it is as `save` writes it."""
    if len(data) > MAX_FILE:
        raise ValueError(f"it has more than {MAX_FILE:#x} bytes")
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError("it is not of this version")
    if content["identity"] != identity:
        raise ValueError(f"it is about {str(content['identity'])[:80]!r}, not {identity!r}")
    channels = content["channels"]
    if not isinstance(channels, list) or len(channels) > MAX_CHANNELS:
        raise ValueError("channels is not a list of acceptable length")
    return Saved(
        _integer("table_da", content["table_da"], 64),
        base64.b64decode(_text("clean", content["clean"], MAX_FILE), validate=True),
        None if content["firmware"] is None else _text("firmware", content["firmware"]),
        None if content["sha256"] is None else _text("sha256", content["sha256"]),
        tuple((_text("a channel's name", name), _integer("its address", addr, 32)) for name, addr in channels),
        _integer("crashes", content["crashes"], 32),
    )


def _integer(what: str, value: Any, bits: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"{what} is {str(value)[:40]!r}, not a number of {bits} bits")
    return value


def _text(what: str, value: Any, limit: int = _MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError(f"{what} is not a text of at most {limit} characters")
    return value
