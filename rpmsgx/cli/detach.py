"""`rpmsgx detach TARGET`: lets a remote go that runs, in the place of a host that is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .target import View, add_target, find

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "detach",
        help="detach from a remote, in the place of a host that died",
        description="Detach from a remote that a host has left without a word: it is told to forget the rings, and its "
        "resource table is made what it was. It runs on. For a remoteproc of the kernel: have the kernel detach.",
    )
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..remoteproc.linux import LinuxRemoteproc
    from ..remoteproc.remoteproc import Remoteproc

    found = find(args.target)
    if isinstance(found, LinuxRemoteproc):
        with found:
            found.detach()
        return 0
    with View(found) as view:
        view.check_free("it detaches when it ends; --at-exit detach")
    with Remoteproc(board=found, auto_boot=False) as rproc:
        rproc.attach()
        if rproc.lost:
            print(f"{rproc.lost} messages were in its rings")
        rproc.detach()
    return 0
