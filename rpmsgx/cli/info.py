"""`rpmsgx info FILE`: what a firmware image holds and asks for, checked as before a boot.

Without a board that is all but the question whether there is memory for it. With one the verdict is that of a boot.
"""

from __future__ import annotations

import json
import sys

from .text import block, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ..remoteproc.elf import Image
    from ..virtio.table import Entry


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "info",
        help="show and check a firmware image",
        description="Show what a firmware image holds and asks for. Exit status 1 if it would be refused.",
    )
    parser.add_argument("file", metavar="FILE", help="ELF image, 32 or 64 bits")
    parser.add_argument("--board", metavar="BOARD", help="a board file: check its machine and its memory as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import Error
    from ..remoteproc.elf import Image

    try:
        image = Image.open(args.file) if args.board is None else _on_board(args.file, args.board)
    except (Error, OSError) as exc:
        reason = f"{args.file}: {exc.strerror}" if isinstance(exc, OSError) and exc.strerror else str(exc)
        if args.json:
            print(
                json.dumps({"file": args.file, "ok": False, "error": reason, "problems": [reason]}, indent=2)
            )
        print(f"rpmsgx info: {printable(reason)}", file=sys.stderr)
        return 1
    print(json.dumps(_as_json(args.file, image), indent=2) if args.json else _as_text(image))
    return 0


def _on_board(file: str, board: str) -> Image:
    """The image, once all that a boot checks before it starts the core has been checked; nothing is written."""
    from ..errors import FirmwareError, ResourceError
    from ..remoteproc.board import load
    from ..remoteproc.elf import Image
    from ..remoteproc.resources import plan

    given = load(board)
    with given.open_platform() as platform:
        platform.prepare()
        try:
            image = platform.image(file)
            if not isinstance(image, Image):
                raise FirmwareError(f"platform {platform.name!r} takes no ELF image")
            table, da = given.resources.read_table(image)
            planned = plan(given.resources, table, da, platform.space, platform.shared, image.memory)
            image.check_granted(platform.space)
        except ResourceError as exc:
            raise FirmwareError(f"{image.name}: {exc}") from None
        finally:
            platform.unprepare()
    image.warnings = tuple(dict.fromkeys((*image.warnings, *planned.warnings)))
    return image


def _as_json(file: str, image: Image) -> dict[str, Any]:
    table = None
    if image.table and image.resource_table:
        table = {
            "da": image.resource_table[0],
            "size": len(image.table.data),
            "entries": [_entry_as_json(entry) for entry in image.table.entries],
        }
    return {
        "file": file,
        "ok": True,
        "name": image.name,
        "size": image.size,
        "sha256": image.sha256,
        "bits": image.bits,
        "machine": image.machine,
        "machine_name": image.machine_name,
        "entry": image.entry,
        "segments": [segment._asdict() for segment in image.segments],
        "memory": [{"da": da, "size": size} for da, size in image.memory],
        "resource_table": table,
        "problems": list(image.warnings),
    }


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    # "kind" is the class; "type" stays the number that vendor and unknown entries carry.
    fields: dict[str, Any] = {"kind": type(entry).__name__.lower()}
    for key, value in entry._asdict().items():
        if key == "vrings":
            value = [{**vring._asdict(), "size": vring.size} for vring in value]
        fields[key] = value.hex() if isinstance(value, bytes) else value
    return fields


def _as_text(image: Image) -> str:
    lines = [
        f"{image.name}: {image.machine_name}, {image.bits} bits",
        "",
        f"  size      {image.size} bytes",
        f"  sha256    {image.sha256}",
        f"  entry     {image.entry:#x}",
    ]
    lines += block(
        "Segments",
        ("da", "memory", "file", "flags", "vaddr"),
        [
            (f"{s.da:#010x}", f"{s.memsz:#x}", f"{s.filesz:#x}", _flags(s.flags), f"{s.vaddr:#010x}")
            for s in image.segments
        ],
    )
    lines += block(
        "Memory needed",
        ("from", "to", "bytes"),
        [(f"{da:#010x}", f"{da + size:#010x}", str(size)) for da, size in image.memory],
    )
    if image.table is None or image.resource_table is None:
        lines += ["", "Resource table: none"]
    else:
        da = image.resource_table[0]
        place = "not loaded" if da is None else f"at da {da:#x}"
        lines += [
            "",
            f"Resource table: {place}, {len(image.table.data)} bytes, {_count(image.table.entries)}",
        ]
        for entry in image.table.entries:
            lines += _entry_as_text(entry)
    lines += ["", "Problems: none" if not image.warnings else "Problems:"]
    lines += [f"  {text}" for text in image.warnings]
    return printable("\n".join(lines))


def _entry_as_text(entry: Entry) -> list[str]:
    from ..virtio.table import Carveout, Devmem, Trace, Vdev

    at = f"  {entry.offset:#06x}  "
    if isinstance(entry, Vdev):
        text = (
            f"{at}vdev      id {entry.id}  notifyid {_word(entry.notifyid)}  dfeatures {entry.dfeatures:#x}"
            f"  gfeatures {entry.gfeatures:#x}  status {entry.status:#x}  config {len(entry.config)} bytes"
        )
        lines = [text]
        for index, vring in enumerate(entry.vrings):
            lines.append(
                f"{'':10}vring {index}   da {_word(vring.da)}  num {vring.num}  align {vring.align:#x}"
                f"  notifyid {_word(vring.notifyid)}  size {vring.size:#x}"
            )
        return lines
    if isinstance(entry, Carveout | Devmem):
        kind = f"{type(entry).__name__.lower():8}"
        text = (
            f"{kind}  da {_word(entry.da)}  pa {_word(entry.pa)}  len {entry.len:#x}  flags {entry.flags:#x}"
        )
    elif isinstance(entry, Trace):
        text = f"trace     da {_word(entry.da)}  len {entry.len:#x}"
    else:
        return [f"{at}{type(entry).__name__.lower():9} type {entry.type}  {len(entry.data)} bytes"]
    return [f"{at}{text}  {entry.name!r}"]


def _flags(flags: int) -> str:
    return "".join(letter if flags & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


def _word(value: int) -> str:
    """A 32-bit address or id, of which all ones means "the host chooses"."""
    return "any" if value == 0xFFFFFFFF else f"{value:#x}"


def _count(entries: tuple[Entry, ...]) -> str:
    return f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}"
