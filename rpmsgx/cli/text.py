"""What the subcommands print with."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` without what would drive the terminal: names of files and services are somebody else's."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def block(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a titled table, columns to the right."""
    if not rows:
        return ["", f"{title}: none"]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    ]
    return ["", title, *(f"  {line}" for line in table)]


def hexdump(data: bytes) -> list[str]:
    """`data` as `hexdump -C` shows it, 16 bytes a line, without the offset of the end."""
    lines = []
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{offset:08x}  {left:<23}  {right:<23}  |{text}|")
    return lines
