"""`rpmsgx run FIRMWARE`: boots a remote and stays its host, in the foreground."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import StateError
from .foreground import Host, KernelHost, add_policies, serve
from .link import option
from .target import find_board

if TYPE_CHECKING:
    import argparse

    from ..remoteproc.board import Board
    from ..remoteproc.platform import Platform
    from ..remoteproc.remoteproc import Remoteproc
    from .console import Console


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "run",
        help="boot a remote, and show what it does until Ctrl-C",
        description="Boot a remote and stay its host, in the foreground: its trace goes to stdout, what happens to it "
        "to stderr. Ctrl-C (exit status 130) and SIGTERM (143) end it as --at-exit says; a second Ctrl-C gives up.",
    )
    parser.add_argument("firmware", metavar="FIRMWARE", nargs="?",
                        help="a file, a name that is searched for as the kernel does, or that of a shipped one "
                        "(default: the board's)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--board", metavar="FILE", help="run it on the board of this file")
    where.add_argument("--platform", metavar="NAME", help="run it on this platform (default: unicorn)")
    where.add_argument("--kernel", metavar="NAME", help="have the kernel run it on its remoteproc of this name")
    parser.add_argument("-o", dest="options", type=option, action="append", default=[], metavar="KEY=VALUE",
                        help="an option of the platform, such as socket=PATH for native; can be repeated")
    add_policies(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    if args.kernel is not None:
        if args.options:
            args.parser.error("-o goes with --board and --platform")
        return serve(args, lambda console: KernelHost(console, args, args.kernel, attach=False))
    if args.board is None and args.firmware is not None and args.firmware.endswith(".toml"):
        args.parser.error(f"{args.firmware} is a board file: --board {args.firmware}")
    board = None if args.board is None else find_board(args.board)
    if board is not None and board.platform == "linux":
        return serve(args, lambda console: KernelHost(console, args, args.board, attach=False))
    firmware = args.firmware if args.firmware is None else file_or_name(args.firmware)
    return serve(args, lambda console: _host(console, args, board, firmware))


def _host(console: Console, args: argparse.Namespace, board: Board | None, firmware: str | None) -> Host:
    platform = _platform(args, board)
    return Host(console, args, _boot, board, platform=platform, firmware=firmware)


def _platform(args: argparse.Namespace, board: Board | None) -> Platform:
    options = dict(args.options)
    if board is not None:
        return board.open_platform(**options)
    from ..remoteproc.platform import open_platform

    try:
        return open_platform(args.platform or "unicorn", **options)
    except TypeError as error:  # an option that this platform does not have, or not of this type
        raise ValueError(f"platform {args.platform!r}: {error}") from error


def file_or_name(firmware: str) -> str:
    """A file that is there by its path from the root, as a name without / is searched for; other names as they are."""
    from ..firmware import NAMES

    return os.path.abspath(firmware) if firmware not in NAMES and os.path.isfile(firmware) else firmware


def _boot(rproc: Remoteproc) -> None:
    if rproc.state == "detached":
        from ..remoteproc.hold import Hold

        identity = rproc.platform.identity
        who = None if identity is None else Hold(identity).owner
        raise StateError(
            f"{rproc.name} runs already, "
            + (f"its host is {who}" if who else "a host has left it: rpmsgx attach takes it over, rpmsgx stop ends it")
        )
    rproc.boot()
