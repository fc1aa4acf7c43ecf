"""`rpmsgx stop TARGET`: stops a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StateError
from .target import View, add_target, find

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "stop",
        help="stop a remote",
        description="Stop a remote: one of the kernel, or one of a board that runs without a host, whatever state its "
        "rings are in.",
    )
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..remoteproc.hold import Hold
    from ..remoteproc.linux import LinuxRemoteproc

    found = find(args.target)
    if isinstance(found, LinuxRemoteproc):
        with found:
            found.shutdown()
        return 0
    with View(found) as view, Hold(view.identity) as hold:
        view.check_free()
        hold.acquire()
        running = view.look()
        view.platform.stop()  # without an attach: a remote that hangs must end as well
        hold.forget()
        if not running:
            raise StateError(f"{found.name} does not run: there is nothing to stop")
    return 0
