"""`rpmsgx attach TARGET`: takes over a remote that runs, and stays its host, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .foreground import Host, KernelHost, add_policies, serve
from .run import file_or_name
from .target import View, add_target, find

if TYPE_CHECKING:
    import argparse

    from ..remoteproc.remoteproc import Remoteproc


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "attach",
        help="take over a remote that runs, and show what it does until Ctrl-C",
        description="Take over a remote that runs without a host, and stay its host as rpmsgx run does.",
    )
    add_target(parser)
    parser.add_argument("--resume", action="store_true",
                        help="go on with the messages that a host which was killed has left; else the rings are reset")
    parser.add_argument("--firmware", metavar="FIRMWARE", help="what runs, where nothing else tells")
    add_policies(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    from ..remoteproc.linux import LinuxRemoteproc

    found = find(args.target)
    if isinstance(found, LinuxRemoteproc):
        found.close()
        if args.resume or args.firmware is not None:
            args.parser.error(f"{args.target} is the kernel's: --resume and --firmware go with a board file")
        return serve(args, lambda console: KernelHost(console, args, args.target, attach=True))
    with View(found) as view:
        view.check_free()
    firmware = None if args.firmware is None else file_or_name(args.firmware)

    def begin(rproc: Remoteproc) -> None:
        rproc.attach(resume=args.resume)

    return serve(args, lambda console: Host(console, args, begin, found, firmware=firmware))
