"""`rpmsgx recover TARGET`: brings a crashed remote back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StateError
from .target import View, add_target, find

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "recover",
        help="bring a crashed remote back",
        description="Have the kernel recover a crashed remoteproc now, whatever its policy. What has crashed on a "
        "board is its host's to recover, and gone with its host: then rpmsgx run boots it anew.",
    )
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..remoteproc.linux import LinuxRemoteproc

    found = find(args.target)
    if isinstance(found, LinuxRemoteproc):
        with found:
            if found.state != "crashed":
                raise StateError(f"{found.name} is {found.state}: there is nothing to recover from")
            found.recover()
        return 0
    with View(found) as view:
        view.check_free("that is to recover it; rpmsgx run does so with --recovery enabled")
        raise StateError(
            f"{found.name} runs: there is nothing to recover from"
            if view.look()
            else f"{found.name} is offline, and nobody has it: rpmsgx run --board {args.target} boots it"
        )
