"""`rpmsgx board check FILE...`: what board files say, and every error in them by line."""

from __future__ import annotations

import json
import sys

from .text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ..remoteproc.backends import Memory
    from ..remoteproc.board import Board, Claim
    from ..remoteproc.strict_toml import Problem

_WIDTH = 52  # of the boxes, at least


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("board", help="check board files", description="Work with board files.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="check board files and show their memory",
        description="Check board files and show their memory, without opening any of it. "
        "Exit status 1 if there is an error in any.",
    )
    check.add_argument("files", metavar="FILE", nargs="+", help="board file (TOML)")
    check.add_argument("--json", action="store_true", help="print one JSON array, with an object for each file")
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    results = [(file, *_check(file)) for file in args.files]
    if args.json:
        print(json.dumps([_as_json(*result) for result in results], indent=2, default=str))
    for index, (file, board, problems) in enumerate(results):
        for line, text in problems:
            print(printable(f"{file}:{line}: {text}" if line else f"{file}: {text}"), file=sys.stderr)
        if board is not None and not args.json:
            print(printable("\n".join([""] * (index > 0) + _as_text(board))))
    return 1 if any(problems for _, _, problems in results) else 0


def _check(file: str) -> tuple[Board | None, tuple[Problem, ...]]:
    from ..remoteproc.board import check
    from ..remoteproc.strict_toml import Problem

    try:
        return check(file)
    except OSError as exc:
        return None, (Problem(0, exc.strerror or str(exc)),)  # of no line


def _as_json(file: str, board: Board | None, problems: tuple[Problem, ...]) -> dict[str, Any]:
    values = None
    if board is not None:
        values = {key: value for key, value in vars(board).items() if key != "resources"}
        values["table_da"] = board.resources.table_da
        for key in ("memory", "registers", "claims"):
            values[key] = [item._asdict() for item in values[key]]
        if board.core is not None:
            values["core"] = vars(board.core)
        if board.doorbell is not None:
            values["doorbell"] = board.doorbell._asdict() | {"block": getattr(board.doorbell.block, "name", None)}
    return {
        "file": file,
        "ok": board is not None,
        "problems": [problem._asdict() for problem in problems],
        "board": values,
    }


def _as_text(board: Board) -> list[str]:
    about = [f"platform {board.platform}"]
    about += [f"firmware {board.firmware}"] if board.firmware else []
    about += [f"{board.desc_addr} in descriptors"] if board.desc_addr else []
    lines = [f"{board.path}: {board.name}, {', '.join(about)}"]
    if board.memory:
        lines += ["", f"  {'da':10}  pa"]
    else:
        lines += ["", "  memory: the platform's own"]
    placed: set[Claim] = set()
    for memory in sorted(board.memory, key=lambda memory: memory.da):
        inside = [(da, claim) for claim in board.claims if (da := _da_in(memory, claim)) is not None]
        placed.update(claim for _, claim in inside)
        rows = [(da, f"{claim.kind} {claim.name}, {_size(claim.size)}") for da, claim in inside]
        table_da = board.resources.table_da
        if table_da is not None and memory.da <= table_da < memory.da + memory.size:
            rows.append((table_da, "resource table, where one is built"))
        lines += _box(board, memory, sorted(rows))
    rest = [claim for claim in board.claims if claim not in placed]
    if rest:
        lines += ["", *(f"  {claim.kind} {claim.name}, {_size(claim.size)}, {_place(claim)}" for claim in rest)]
    return [*lines, *_registers(board), *_core(board), *_doorbell(board)]


def _registers(board: Board) -> list[str]:
    lines = []
    for block in board.registers:
        at = f" at {block.pa:#x}" if block.pa else f" from {block.offset:#x} on" if block.offset else ""
        lines += ["", f"  registers {block.name}: {_size(block.size)}, {block.backend}{at}"]
        names = sorted(block.names, key=block.names.__getitem__)
        lines += [f"    {block.names[name]:#05x}  {name}" for name in names]
    return lines


def _core(board: Board) -> list[str]:
    core = board.core
    if core is None:
        return []
    from ..remoteproc.elf import machine_name

    rows: dict[str, Iterable[object]] = {key: used for key, used in core.used.items() if used}
    if core.running is True:
        rows["running"] = ["when it is found"]
    if board.settle:
        rows["settle"] = [f"{board.settle:g} s where nothing is awaited"]
    return ["", f"  core: {machine_name(core.machine)}", *_rows(rows)]


def _doorbell(board: Board) -> list[str]:
    bell = board.doorbell
    if bell is None:
        return []
    rung = f"interrupt of {bell.interrupt}" if bell.interrupt else f"none, the rings are looked at each {bell.poll:g} s"
    rows = {key: [bits] for key in ("kick", "acknowledge") if (bits := getattr(bell, key)) is not None}
    return ["", f"  doorbell: {rung}", *_rows(rows)]


def _rows(rows: Mapping[str, Iterable[object]]) -> list[str]:
    """Each key once, before the first of its texts."""
    return [f"    {'' if index else key:12} {text}" for key in rows for index, text in enumerate(rows[key])]


def _box(board: Board, memory: Memory, rows: list[tuple[int, str]]) -> list[str]:
    shared = ", rings and buffers" if memory.name == board.shared else ""
    head = f"+- {memory.name}: {_size(memory.size)}, {memory.kind}, {memory.backend}{shared} "
    width = max([_WIDTH, len(head) + 2, *(len(text) + 4 for _, text in rows)])
    lines = [(memory.da, f"{head:-<{width}}+")]
    lines += [(da, f"|   {text:{width - 4}}|") for da, text in rows]
    lines += [(memory.da + memory.size, f"{'+':-<{width}}+")]
    return [f"  {da:#010x}  {da - memory.da + memory.pa:#010x}  {text}" for da, text in lines]


def _da_in(memory: Memory, claim: Claim) -> int | None:
    """Where the claim lies, if it is in this memory and its place is fixed."""
    from ..virtio.table import ADDR_ANY

    if claim.kind == "devmem":
        return None
    da = claim.pa - memory.pa + memory.da if claim.da == ADDR_ANY != claim.pa else claim.da
    return da if da != ADDR_ANY and memory.da <= da < memory.da + memory.size else None


def _place(claim: Claim) -> str:
    from ..virtio.table import ADDR_ANY

    known = [f"{field} {value:#x}" for field, value in (("da", claim.da), ("pa", claim.pa)) if value != ADDR_ANY]
    return ", ".join(known) or "placed at the boot"


def _size(size: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"
