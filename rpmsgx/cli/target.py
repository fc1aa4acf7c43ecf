"""What commands name a remote by, its TARGET: a board file, or a remoteproc of the kernel; and a look from outside.

Looking takes no hold of the remote and writes nothing, so it works while another process is its host.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from ..errors import StateError

if TYPE_CHECKING:
    import argparse
    from typing import Self

    from ..remoteproc.board import Board
    from ..remoteproc.hold import Owner, Saved
    from ..remoteproc.linux import LinuxRemoteproc
    from ..virtio.table import ResourceTable

CLASS = "/sys/class/remoteproc"


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="a board file, or the name of a remoteproc of the kernel")


def find(target: str, **settings: Any) -> Board | LinuxRemoteproc:
    """The board of the file `target`, or the kernel's remoteproc of that name, or of such a board, with `settings`.

    Raises BoardError, OSError as `board.load` does; FileNotFoundError, ValueError as LinuxRemoteproc does.
    """
    from ..remoteproc.linux import LinuxRemoteproc

    if target.endswith(".toml") or os.path.isfile(target):
        board = find_board(target)
        return board if board.platform != "linux" else LinuxRemoteproc(board=board, auto_boot=False, **settings)
    try:
        return LinuxRemoteproc(target, **settings)
    except FileNotFoundError as error:
        error.add_note("nor is there a board file of that name")
        raise


def find_board(path: str) -> Board:
    from ..remoteproc.board import load

    return load(path)


def kernel_names() -> list[str]:
    """A name for each remoteproc of the kernel: its own, or its device's where several have the same."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for node in sorted(os.listdir(CLASS)):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                device = os.path.basename(os.path.realpath(f"{CLASS}/{node}/device"))
                with open(f"{CLASS}/{node}/name", encoding="utf-8", errors="surrogateescape") as file:
                    found.append((file.read().removesuffix("\n"), device))
    names = [name for name, _ in found]
    return [name if names.count(name) == 1 else device for name, device in found]


class View:
    """The remote of a board, from outside. A context manager. Raises as `Board.open_platform` does, and StateError."""

    def __init__(self, board: Board) -> None:
        self.board = board
        for memory in board.memory:
            backend, _, place = memory.backend.partition(":")
            path = {"file": place, "shm": f"/dev/shm/{place}"}.get(backend)
            if path is not None and not os.path.exists(path):  # opening it would make it
                raise StateError(f"{board.name} does not run: its memory {memory.name!r} ({path}) is not there")
        self.platform = board.open_platform()

    @property
    def identity(self) -> str:
        """Raises StateError where only the remote's own host can reach it."""
        if self.platform.identity is None:
            hint = "; with [options] socket = PATH it would not" if self.platform.name == "native" else ""
            raise StateError(
                f"{self.board.name}: a remote of platform {self.platform.name!r} lives inside the process that runs "
                f"it{hint}"
            )
        return self.platform.identity

    @property
    def owner(self) -> Owner | None:
        from ..remoteproc.hold import Hold

        return Hold(self.identity).owner

    @property
    def saved(self) -> Saved | None:
        """What its host, or the last one, has left. Raises StateError if that is not acceptable."""
        from ..remoteproc.hold import Hold

        return Hold(self.identity).saved

    def check_free(self, hint: str = "end that first") -> None:
        """Raise StateError, naming the host and saying `hint`, where another process has the remote."""
        who = self.owner
        if who is not None:
            raise StateError(f"{self.board.name} is held by {who}: {hint}")

    def look(self) -> bool:
        """Whether the remote runs; one that was started since the last look is found."""
        running = self.platform.running
        self.platform.prepare()
        return running and self.platform.running

    def table(self) -> tuple[int, ResourceTable] | None:
        """Its resource table as it is in memory, and the da of that; None where nothing tells its place.

        Raises ResourceError where it is none.
        """
        from ..virtio.table import parse

        saved = self.saved
        where = self.platform.loaded_table if saved is None else (saved.table_da, len(saved.clean))
        return None if where is None else (where[0], parse(self.platform.space.read(*where)))

    def trace(self) -> str:
        """What is in its trace buffers. Raises StateError where it does not run, or has none."""
        found = self.table() if self.look() else None
        if found is None:
            raise StateError(f"{self.board.name} does not run, or nothing tells where its trace is")
        texts = (self.platform.space.read(trace.da, trace.len) for trace in found[1].traces if trace.len)
        return "".join(text.split(b"\0", 1)[0].decode("utf-8", "replace") for text in texts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.platform.close()
