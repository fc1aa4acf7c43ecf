# SPDX-License-Identifier: BSD-3-Clause
"""`python -m tests.peers ROLE PATH BELL --mode echo|source|sink`: one literal end as a program of its own.

echo    announces NAME, sends every message back to where it came from
source  waits for the other end's NAME (or takes --dst), sends COUNT numbered payloads; with --echoed it also
        checks that each one comes back, in order
sink    announces NAME, checks that COUNT numbered payloads arrive, in order

echo ends when COUNT messages were echoed or the other end went away, the others after COUNT. One line of JSON
on stdout tells what happened; the exit status is 0 if nothing was wrong, 1 if something was, 2 for a wrong
command line.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time

from . import literal, payload
from .literal import LiteralPeer

PROFILES: dict[str, dict[str, object]] = {
    "linux": {},
    "openamp": literal.OPENAMP,
    "rpmsg-lite": literal.RPMSG_LITE,
}
TOLERANCES = {
    "linux": frozenset[str](),
    "openamp": literal.TOLERATE_OPENAMP,
    "rpmsg-lite": literal.TOLERATE_RPMSG_LITE,
}
LENGTHS = {"linux": "exact", "openamp": "whole", "rpmsg-lite": "whole"}


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description="A literal rpmsg end.")
    parser.add_argument("role", choices=("driver", "device"))
    parser.add_argument("path", help="the shared file")
    parser.add_argument("bell", help="the doorbell socket")
    parser.add_argument("--mode", choices=("echo", "source", "sink"), required=True)
    parser.add_argument("--count", type=int, help="messages (echo: default until the other end goes away)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="literal", help="of the service: announced, or waited for")
    parser.add_argument("--src", type=int, default=literal.FIRST_ADDR, help="own address")
    parser.add_argument("--dst", type=int, help="the other end's address, if not by NAME")
    parser.add_argument("--echoed", action="store_true", help="source: check what comes back")
    parser.add_argument("--server", action=argparse.BooleanOptionalAction, help="write the table and listen")
    parser.add_argument("--num", type=int, default=256, help="descriptors in each ring")
    parser.add_argument("--profile", choices=PROFILES, default="linux", help="whom to imitate")
    parser.add_argument("--peer", choices=TOLERANCES, default="linux", help="whose known habits to expect")
    parser.add_argument("--tolerate", action="append", default=[], metavar="RULE")
    parser.add_argument("--trap", action="append", default=[], metavar="NAME[=VALUE]", help="of LiteralPeer")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each single wait")
    arguments = parser.parse_args(argv)
    if arguments.count is None and arguments.mode != "echo":
        parser.error("--count is needed")
    return arguments


def _traps(texts: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in texts:
        name, given, value = text.partition("=")
        try:
            found[name] = ast.literal_eval(value) if given else True
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _echo(peer: LiteralPeer, arguments: argparse.Namespace) -> None:
    peer.announce(arguments.name, arguments.src, arguments.timeout)
    while arguments.count is None or peer.counters["sent"] < arguments.count:
        try:
            src, dst, data = peer.recv(arguments.timeout)
            peer.send(dst, src, data, arguments.timeout)
        except EOFError:
            if arguments.count is not None:
                raise
            return
    peer.flush(arguments.timeout)


def _source(peer: LiteralPeer, arguments: argparse.Namespace) -> None:
    src, seed, timeout = arguments.src, arguments.seed, arguments.timeout
    dst = arguments.dst if arguments.dst is not None else peer.wait_channel(arguments.name, timeout)
    back = 0

    def check() -> None:
        nonlocal back
        got_src, got_dst, data = peer.recv(timeout)
        assert (got_src, got_dst) == (dst, src), f"echo {back} came from {got_src} to {got_dst}"
        payload.check(back, seed, data)
        back += 1

    for seq in range(arguments.count):
        peer.send(src, dst, payload.payload(seq, seed), timeout)
        while peer.inbox:
            check()
    while arguments.echoed and back < arguments.count:
        check()
    assert arguments.echoed or not back, f"{back} messages came back"
    peer.flush(timeout)


def _sink(peer: LiteralPeer, arguments: argparse.Namespace) -> None:
    peer.announce(arguments.name, arguments.src, arguments.timeout)
    for seq in range(arguments.count):
        _, dst, data = peer.recv(arguments.timeout)
        assert dst == arguments.src, f"payload {seq} came to {dst}, not {arguments.src}"
        payload.check(seq, arguments.seed, data)


def main(argv: list[str]) -> int:
    arguments = _arguments(argv)
    run = {"echo": _echo, "source": _source, "sink": _sink}[arguments.mode]
    options: dict[str, object] = {
        **PROFILES[arguments.profile],
        "tolerate": TOLERANCES[arguments.peer] | frozenset(arguments.tolerate),
        "peer_lengths": LENGTHS[arguments.peer],
        "server": arguments.server,
        "num": arguments.num,
        **_traps(arguments.trap),
    }
    violations: list[dict[str, str]] = []
    errors: list[str] = []
    began = time.monotonic()
    try:
        peer = LiteralPeer(arguments.path, arguments.bell, role=arguments.role, **options)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        print(f"python -m tests.peers: {error}", file=sys.stderr)
        return 2
    try:
        with peer:
            peer.start(arguments.timeout)
            run(peer, arguments)
    except literal.Violation as error:
        violations.append({"rule": error.rule, "text": str(error)})
    except (AssertionError, EOFError, OSError, ValueError) as error:  # TimeoutError is an OSError
        errors.append(f"{type(error).__name__}: {error}")
    report = {
        "role": arguments.role,
        "mode": arguments.mode,
        **peer.counters,
        "resets": peer.resets,
        "announcements": peer.announcements,
        "violations": violations,
        "errors": errors,
        "seconds": round(time.monotonic() - began, 3),
    }
    print(json.dumps(report), flush=True)
    return 1 if violations or errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
