"""Waiting for paths: for what need not exist yet, nor the directories it will be in, nor their file system."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
from typing import TYPE_CHECKING

from rpmsgx.notify.inotify import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DONT_FOLLOW,
    IN_IGNORED,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    Inotify,
)
from rpmsgx.notify.timer import Timer

if TYPE_CHECKING:
    from collections.abc import Iterable

LOOK_MS = 1000  # how often to look where nothing tells of changes
_NAMES = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB | IN_CLOSE_WRITE
_LINKS = 40  # as in the kernel: more symbolic links than this lead nowhere
_PIECES = 4  # a flood of events is read this many pieces at a time

# File systems that change without inotify events, by another machine or by the kernel; f_type of linux/magic.h.
_SILENT = frozenset(
    {
        0x6969,  # NFS
        0xFF53_4D42,  # CIFS
        0xFE53_4D42,  # SMB2
        0x0102_1997,  # 9p
        0x6573_5546,  # FUSE, virtiofs
        0x00C0_FFEE,  # hostfs
        0x9FA0,  # proc
        0x6265_6572,  # sysfs
        0x6462_6720,  # debugfs
    }
)

_libc = ctypes.CDLL(None)
_statfs = getattr(_libc, "statfs64", _libc.statfs)  # the one of 32 bits has no numbers for large file systems


class PathWatch:
    """Tells when what is at one of `paths`, absolute ones, may have changed.

    Each directory that a path leads through, symbolic links followed, is watched for the next name on the way, as far
    as there is one. So it is seen whatever appears, goes or is switched anywhere on the way, and each mount, which
    inotify does not tell of. Where nothing can be watched (no permission, NFS, sysfs) a timer asks for a look now and
    then.

    `fileno()` is one descriptor for good, readable when `changes()` has something to tell, and once at first. It
    belongs to `epoll`, where others may register, level-triggered, what else is to wake whoever waits; only this class
    polls it. Raises OSError if there are no descriptors. Not thread-safe.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._routes: dict[str, list[tuple[int, bytes]]] = {}  # path: the steps that it takes: (watch, name)
        self._steps: dict[tuple[int, bytes], set[str]] = {}  # step: the paths that end with it
        self._mounts = -1
        with contextlib.ExitStack() as opened:
            self._inotify = opened.enter_context(contextlib.closing(Inotify()))
            self._timer = opened.enter_context(contextlib.closing(Timer()))
            self.epoll = opened.enter_context(contextlib.closing(select.epoll()))
            for waker in (self._inotify, self._timer):
                self.epoll.register(waker, select.EPOLLIN)
            self._watch_mounts(opened)
            self.aim(paths)
            self._opened = opened.pop_all()

    def _watch_mounts(self, opened: contextlib.ExitStack) -> None:
        # It is readable at any time, but is woken by each mount and unmount. Waiting for these wakings (edge-triggered)
        # keeps the epoll readable until changes() polls it; its POLLPRI would be gone with the first poll by anybody.
        try:
            self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # no /proc: mounts are not seen
        opened.callback(os.close, self._mounts)
        self.epoll.register(self._mounts, select.EPOLLIN | select.EPOLLET)

    def fileno(self) -> int:
        return self.epoll.fileno()

    def aim(self, paths: Iterable[str]) -> None:
        """Watch other paths from now on; the next `changes()` tells of all of them."""
        self._paths = tuple(paths)
        self._fresh = True
        self._timer.set(1)

    def changes(self) -> dict[str, int]:
        """The paths where something may have changed since the last call, and what: look at them now.

        What it was is the inotify mask of the last event at the path's end, or 0 if it was on the way, or is unknown.
        """
        ready = {fd for fd, _ in self.epoll.poll(0)}
        everything = self._fresh or self._timer.fileno() in ready
        renew = everything or self._mounts in ready
        changed: dict[str, int] = {}
        for _ in range(_PIECES):
            events = self._inotify.read()
            for wd, mask, name in events:
                ends = self._steps.get((wd, name))
                if mask & IN_Q_OVERFLOW:
                    everything = renew = True
                elif mask & IN_IGNORED:  # what was watched was deleted, or its file system unmounted
                    renew |= any(wd == known for known, _ in self._steps)
                elif ends is not None:
                    renew = True
                    changed.update(dict.fromkeys(ends, mask))
            if not events:
                break
        else:  # what the rest tells is true by now
            everything = renew = True
        if not renew:
            return changed
        others = self._renew()
        self._fresh = False
        return dict.fromkeys(self._paths if everything else others, 0) | changed

    def _renew(self) -> list[str]:
        """Watch what the paths lead through now. Returns those that lead elsewhere than before."""
        before, steps_before = self._routes, self._steps
        self._steps, self._blind = {}, False
        self._routes = {path: self._follow(path) for path in self._paths}
        for wd in {wd for wd, _ in steps_before} - {wd for wd, _ in self._steps}:
            self._inotify.remove(wd)
        self._timer.set(LOOK_MS if self._blind else 0)
        return [path for path, route in self._routes.items() if route != before.get(path)]

    def _follow(self, path: str) -> list[tuple[int, bytes]]:
        """Watch every step of `path`, each before it is looked at: (watch, name) of all that there are."""
        route: list[tuple[int, bytes]] = []

        def step(wd: int, name: str, *ends: str) -> None:
            route.append((wd, os.fsencode(name)))
            self._steps.setdefault(route[-1], set()).update(ends)

        at, names, links = "/", _names(path), 0
        while names:
            name = names.pop()
            if name == "..":
                at = os.path.dirname(at)
                continue
            wd = self._enter(at)
            if wd is None:
                return route
            directory, at = at, os.path.join(at, name)
            try:
                target = os.readlink(at)
            except OSError:  # no link, or nothing yet
                step(wd, name, *(() if names else (path,)))
                continue
            step(wd, name)
            links += 1
            if links > _LINKS:
                return route
            at = "/" if target.startswith("/") else directory
            names += _names(target)
        # A file's writer may have opened it by another of its names: in its directory here nothing would tell.
        try:
            if stat.S_ISREG(os.lstat(at).st_mode):
                step(self._inotify.add(at, IN_CLOSE_WRITE | IN_DONT_FOLLOW), "", path)
        except OSError:
            pass
        return route

    def _enter(self, directory: str) -> int | None:
        """A watch on `directory`; -1 if it cannot be watched, None if there is none."""
        try:
            wd = self._inotify.add(directory, _NAMES | IN_ONLYDIR | IN_DONT_FOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            wd = -1
        if wd < 0 or _file_system(directory) in _SILENT:
            self._blind = True
        return wd

    def close(self) -> None:
        """Idempotent."""
        self._opened.close()


def _names(path: str) -> list[str]:
    """The components of `path`, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _file_system(path: str) -> int:
    """Its f_type by statfs(2), which the standard library lacks; 0 if there is none."""
    buffer = ctypes.create_string_buffer(256)
    if _statfs(os.fsencode(path), buffer) < 0:
        return 0
    words: tuple[int, int] = struct.unpack_from("=II", buffer)
    return words[0] or words[1]  # a word of 32 bits on s390x, else a long, whose upper half is 0
