"""A command in the foreground: where it tells what happens, and how signals end it."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType
    from typing import Self

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP: the first is remembered in `received`, for a loop that looks there.

    A Ctrl-C after it insists: it raises KeyboardInterrupt, and one more kills. The others have no more to say, for
    timeout(1) sends them twice. What was ignored at the start stays ignored, as nohup(1) wants it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        elif number == signal.SIGINT:
            self._before[number] = signal.SIG_DFL
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for number in ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Console(logging.Handler):
    """For people a remote's trace goes to stdout and all else to stderr; with `as_json` everything to stdout, an object
    a line. While it is entered it tells the library's warnings and errors as well.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__(logging.WARNING)
        self._as_json = as_json
        self._log = logging.getLogger("rpmsgx.remoteproc")

    def tell(self, event: str, words: str | None, /, **fields: Any) -> None:
        """`words` are for people; None: they are told otherwise. `fields` are for programs."""
        if self._as_json:
            print(json.dumps({"event": event, "time": round(time.time(), 3), **fields}), flush=True)
        elif words is not None:
            print(printable(words), file=sys.stderr, flush=True)

    def trace(self, name: str, lines: Iterable[str]) -> None:
        for line in lines:
            if self._as_json:
                self.tell("trace", None, remote=name, text=line)
            else:
                print(printable(line), flush=True)

    def log(self, level: str, message: str) -> None:
        self.tell("log", message, level=level, message=message)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a terminal that is gone must not keep the library from its work
            self.log(record.levelname.lower(), record.getMessage())

    def __enter__(self) -> Self:
        self._log.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.removeHandler(self)
