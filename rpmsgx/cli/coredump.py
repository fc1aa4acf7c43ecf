"""`rpmsgx coredump FILE`: what a crashed remote left behind."""

from __future__ import annotations

import argparse
import json

from .text import block, hexdump, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..remoteproc.coredump import Core

LINE = 16  # bytes of a line of a hexdump
AROUND = {"pc": (-2 * LINE, 4 * LINE), "sp": (0, 8 * LINE)}  # what is shown by default, from the line of the register
TEXT = 4096  # characters of a trace that are shown: the last ones


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "coredump",
        help="show a core dump",
        description="Show a core dump of a remote: why and where it crashed, its registers, its trace. A debugger "
        "opens the same file: gdb-multiarch FIRMWARE FILE.",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="ELF core file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print one JSON object, without the memory")
    what.add_argument("--extract", type=span, metavar="DA:SIZE", help="print these bytes of the remote's memory")
    what.add_argument(
        "--from",
        dest="remote",
        metavar="NAME",
        help="move the dump that the kernel keeps of its remoteproc NAME to the FILE of -o",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="with --extract: write the bytes to FILE instead")
    parser.set_defaults(run=run, parser=parser)


def span(text: str) -> tuple[int, int]:
    """DA:SIZE, each decimal or 0x...; a type for argparse."""
    da, _, size = text.partition(":")
    try:
        found = int(da, 0), int(size, 0)
    except ValueError:
        found = (-1, 0)
    if found[0] < 0 or found[1] <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not DA:SIZE, such as 0x20000000:256")
    return found


def run(args: argparse.Namespace) -> int:
    from ..remoteproc.coredump import Core

    if args.remote is not None:
        return _take(args)
    if args.file is None:
        args.parser.error("which FILE?")
    if args.output is not None and args.extract is None:
        args.parser.error("-o goes with --extract and --from")
    core = Core.read(args.file)
    if args.extract:
        da, size = args.extract
        data = core.memory(da, size)
        if args.output is None:
            print("\n".join(_dump(da, data)))
        else:
            with open(args.output, "wb") as file:
                file.write(data)
    elif args.json:
        print(json.dumps(core.describe(), indent=2))
    else:
        print(_as_text(core))
    return 0


def _take(args: argparse.Namespace) -> int:
    from ..remoteproc.linux import LinuxRemoteproc

    if args.file is not None or args.output is None:
        args.parser.error("--from NAME goes with -o FILE alone")
    with LinuxRemoteproc(args.remote) as rproc:
        rproc.coredump(args.output)
    return 0


def _as_text(core: Core) -> str:
    from ..remoteproc.elf import machine_name

    lines = [
        f"{core.name or 'core dump'}: {core.kind or 'no crash is known'}{core.cause and ': '}{core.cause}",
        "",
        f"  time      {_date(core.time)}",
        f"  firmware  {core.firmware or 'unknown'}",
        f"  sha256    {core.sha256 or 'unknown'}",
        f"  machine   {machine_name(core.machine)}, {core.bits} bits",
        f"  entry     {core.entry:#x}",
    ]
    registers = [f"{name:<5}{value:#0{core.bits // 4 + 2}x}" for name, value in core.registers.items()]
    lines += ["", "Registers" if registers else "Registers: none"]
    lines += ["  " + "   ".join(registers[at : at + 4]) for at in range(0, len(registers), 4)]
    lines += block(
        "Memory",
        ("from", "to", "bytes", "", "what"),
        [
            (f"{s.da:#010x}", f"{s.da + s.size:#010x}", str(s.size), "" if s.data is not None else "unreadable", s.name)
            for s in core.segments
        ],
    )
    for register, (before, size) in AROUND.items():
        lines += _around(core, register, before, size)
    for segment in core.segments:
        if segment.name.startswith("trace ") and segment.data is not None:
            text = bytes(segment.data).partition(b"\0")[0].decode("utf-8", "replace")
            lines += ["", segment.name.capitalize(), *(f"  {line}" for line in text[-TEXT:].splitlines())]
    return printable("\n".join(lines))


def _around(core: Core, register: str, before: int, size: int) -> list[str]:
    """The memory at a register, as much as its segment holds."""
    address = core.registers.get(register)
    segment = None if address is None else core.find(address)
    if address is None or segment is None or segment.data is None:
        return []
    line = address - address % LINE + before
    start = max(line, segment.da)
    data = core.memory(start, min(line + size, segment.da + segment.size) - start)
    return ["", f"At {register} {address:#010x}", *(f"  {text}" for text in _dump(start, data))]


def _dump(da: int, data: bytes) -> list[str]:
    """A hexdump whose offsets are device addresses."""
    return [f"{da + LINE * index:08x}{line[8:]}" for index, line in enumerate(hexdump(data))]


def _date(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else "unknown"
