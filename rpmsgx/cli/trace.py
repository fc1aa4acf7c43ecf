"""`rpmsgx trace TARGET`: what a remote has written to its trace buffers, and with -f what it writes from then on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import Error, StateError
from .target import View, add_target, find
from .text import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from ..remoteproc.linux import LinuxRemoteproc

TICK = 0.1  # seconds between two looks: nobody tells of new text


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "trace",
        help="print what a remote writes to its trace",
        description="Print what a remote has written to its trace buffers. It is read from outside: another process "
        "may have the remote.",
    )
    parser.add_argument("-f", "--follow", action="store_true",
                        help="go on with what is written from then on, restarts included, until Ctrl-C")
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..remoteproc.linux import LinuxRemoteproc

    found = find(args.target)
    if isinstance(found, LinuxRemoteproc):
        with found:
            _print(found.trace, args.follow, lambda: _check_there(found))
    else:
        with View(found) as view:
            view.identity  # noqa: B018  raises where it is out of reach
            _print(view.trace, args.follow, lambda: None)
    return 0


def _print(read: Callable[[], str], follow: bool, check: Callable[[], None]) -> None:
    tail = Tail()
    text = "" if follow else read()
    while follow:
        check()
        try:
            text = read()
        except Error:  # it does not run now, or is about to
            text = ""
        for line in tail.lines(text):
            print(printable(line), flush=True)
        time.sleep(TICK)
    print(printable(text), end="")


def _check_there(rproc: LinuxRemoteproc) -> None:
    if rproc.state == "deleted":
        raise StateError(f"{rproc.name} is gone: its driver was removed")


class Tail:
    """What is new in a text that grows, drops its oldest lines, or begins anew."""

    def __init__(self) -> None:
        self._text = ""
        self._line = ""  # the beginning of one that is not complete

    def lines(self, text: str) -> list[str]:
        """The complete lines that came since the last call."""
        *lines, self._line = (self._line + self._new(text)).split("\n")
        self._text = text
        return lines

    def rest(self) -> list[str]:
        """The line that was never completed, if there is one; what comes next begins anew."""
        line, self._line, self._text = self._line, "", ""
        return [line] if line else []

    def _new(self, text: str) -> str:
        old = self._text
        if text.startswith(old):
            return text[len(old) :]
        at = 0
        while at := old.find("\n", at) + 1:
            if at < len(old) and text.startswith(old[at : at + 80]) and text.startswith(old[at:]):
                return text[len(old) - at :]
        return text
