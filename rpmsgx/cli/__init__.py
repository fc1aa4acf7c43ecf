"""The rpmsgx command: one module per subcommand, imported when it is chosen."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "attach": "take over a remote that runs, and show what it does until Ctrl-C",
    "bench": "measure throughput and round trips",
    "board": "check board files",
    "coredump": "show a core dump",
    "demo": "boot a sample firmware and talk to it",
    "detach": "detach from a remote, in the place of a host that died",
    "doctor": "say what this machine lacks to reach a remote core",
    "info": "show and check a firmware image",
    "listen": "print the messages that come to a service",
    "ls": "list what there is to talk to on this machine",
    "ping": "measure round trips to an echo service",
    "recover": "bring a crashed remote back",
    "run": "boot a remote, and show what it does until Ctrl-C",
    "send": "send one message",
    "status": "show the state of remotes, and who has them",
    "stop": "stop a remote",
    "trace": "print what a remote writes to its trace",
}

INTERRUPTED, PIPE_GONE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: what a shell makes of those signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rpmsgx` with these arguments (None: the process's own); its exit status.

    0 done, 1 failed, 130 interrupted, 143 terminated, 141 nobody reads the output. Wrong usage, --help and --version
    end in SystemExit, as argparse does.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _failed(error)


def _run(words: Sequence[str]) -> int:
    import argparse
    from importlib import import_module

    from .. import __version__

    parser = argparse.ArgumentParser(prog="rpmsgx", description="rpmsg and remoteproc from the command line.")
    parser.add_argument("--version", action="version", version=f"rpmsgx {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        if name == chosen:
            import_module(f".{name}", __package__).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


def _failed(error: Exception) -> int:
    """One line for what the user or the peer can bring about; anything else is a fault of the program."""
    from ..errors import Error
    from .text import printable

    if isinstance(error, BrokenPipeError) and not isinstance(error, Error):
        import os

        # What is still buffered has nowhere to go, and must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_GONE
    if not isinstance(error, Error | OSError | ValueError | ImportError):
        raise error
    print(f"rpmsgx: error: {printable(reason(error))}", file=sys.stderr)
    return 1


def reason(error: Exception) -> str:
    """What to tell people of `error`."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    notes = "; ".join(line for note in getattr(error, "__notes__", ()) for line in note.splitlines())
    return f"{text} ({notes})" if notes else text
