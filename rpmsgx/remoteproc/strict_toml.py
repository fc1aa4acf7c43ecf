"""TOML read strictly: every key known, every value checked, every problem found at once and with its line.

tomllib tells no lines, so `key_lines` looks for the keys in the text again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_SIZE = 1 << 16
"""Bytes that a file may have."""
MAX_DEPTH = 8
"""Levels of tables and lists in each other."""
MAX_DOTS = 100
"""Dots in one line: the time that tomllib takes grows with the square of a key's parts."""
MAX_PROBLEMS = 100
"""Reading goes no further than this many problems."""

Where: TypeAlias = tuple[str | int, ...]
"""A key with all that it stands in: ("memory", 0, "size")."""


class Problem(NamedTuple):
    """What is wrong in `line`, counted from 1, and how to mend it."""

    line: int
    text: str


class Enough(Exception):
    """There are MAX_PROBLEMS."""


class Key(NamedTuple):
    """A key that a table may have."""

    parse: Callable[[Any], Any]
    """Takes what TOML gave and returns what it means, or raises ValueError: what is wrong; how to mend it."""
    required: bool = False


class Reader:
    """One file: its lines, and the problems in it."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._lines: dict[Where, int] = {}

    def parse(self, source: bytes) -> dict[str, Any]:
        """What the file says; {} and a problem where it is no TOML."""
        import tomllib

        line = 1
        try:
            if len(source) > MAX_SIZE:
                raise ValueError(f"longer than {MAX_SIZE} bytes; this is another kind of file")
            dots = [row.count(b".") for row in source.split(b"\n")]
            if max(dots) > MAX_DOTS:
                line = dots.index(max(dots)) + 1
                raise ValueError(f"more than {MAX_DOTS} dots in one line; a key has few parts")
            text = source.decode().replace("\r\n", "\n")
            data = tomllib.loads(text)
            _check_depth(data)
            self._lines = key_lines(text)
            return data
        except UnicodeDecodeError as exc:
            line = source.count(b"\n", 0, exc.start) + 1
            problem = "not UTF-8; save it as UTF-8"
        except RecursionError:
            problem = "tables or lists are nested too deep; two levels are enough"
        except tomllib.TOMLDecodeError as exc:
            message, _, place = str(exc).rpartition(" (at ")
            number = re.match("line ([0-9]+)", place)
            line = int(number[1]) if number else len(text.splitlines()) or 1  # else at the end
            problem = f"not TOML: {message}; https://toml.io says how it is written"
        except ValueError as exc:  # an integer of thousands of digits is one, too
            problem = str(exc)
        self.problems.append(Problem(line, problem))
        return {}

    def line(self, where: Where) -> int:
        """Of this key, or of the nearest one around it that has a line of its own."""
        while where and where not in self._lines:
            where = where[:-1]
        return self._lines.get(where, 1)

    def problem(self, where: Where, text: str) -> None:
        """Raises Enough for the last that is taken."""
        head = ""
        if len(where) > 1:
            head = f"[[{where[0]}]] " if isinstance(where[1], int) else f"[{where[0]}] "
        self.problems.append(Problem(self.line(where), head + text))
        if len(self.problems) == MAX_PROBLEMS:
            raise Enough

    def table(self, where: Where, data: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
        """The values of `data`, which stands at `where`, that are good; all others become problems."""
        for key in data:
            if key not in keys:
                hint = meant(key, keys) or f"; there are {', '.join(keys)}"
                self.problem((*where, key), f"there is no key {shown(key)}{hint}")
        values = {}
        for key, rule in keys.items():
            if key in data:
                try:
                    values[key] = rule.parse(data[key])
                except ValueError as exc:
                    self.problem((*where, key), f"{key}: {exc}")
            elif rule.required:
                self.problem((*where, key), f"{key} is missing; add {key} = ...")
        return values

    def tables(self, name: str, data: Mapping[str, Any], keys: Mapping[str, Key]) -> list[dict[str, Any]]:
        """The same for each [[name]], of which there may be none."""
        found = data.get(name, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            self.problem((name,), f"{name} is no list of tables; write [[{name}]] above each")
            return []
        return [self.table((name, index), item, keys) for index, item in enumerate(found)]


def _check_depth(value: Any) -> None:
    """Raises RecursionError, as tomllib does: dotted keys can go deeper than whoever walks their tables."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    if level:
        raise RecursionError


# -- lines -------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?'{3,5} | "(?:\\.|[^"\\])*" | '[^']*' | \#[^\n]* | . ''',
    re.DOTALL | re.VERBOSE,
)
_KEY = re.compile(r"""(?:[^="'\]] | "(?:\\.|[^"\\])*" | '[^']*')+""", re.VERBOSE)


def key_lines(text: str) -> dict[Where, int]:
    """The line of every key and table of `text`, which is TOML without errors; inside brackets it does not look."""
    lines: dict[Where, int] = {}
    last: dict[Where, int] = {}  # the index of the array's last table so far

    def inside(where: Where, key: str) -> Where:
        where = (*where, key)
        return (*where, last[where]) if where in last else where

    table: Where = ()
    for line, statement in _statements(text):
        brackets = len(statement) - len(statement.lstrip("["))
        match = _KEY.match(statement, brackets)
        assert match is not None
        *path, key = _dotted(match[0])
        where = () if brackets else table
        for part in path:
            where = inside(where, part)
            lines.setdefault(where, line)
        if brackets == 2:
            last[(*where, key)] = last.get((*where, key), -1) + 1
            lines.setdefault((*where, key), line)
        where = inside(where, key)
        lines.setdefault(where, line)
        if brackets:
            table = where
    return lines


def _statements(text: str) -> list[tuple[int, str]]:
    """Each key with its value and each table's head, without comments, with the line where it begins."""
    found = []
    line, depth = 1, 0
    begin, parts = 1, ""
    for token in [*_TOKEN.findall(text), "\n"]:
        if token == "\n" and depth == 0:
            if parts:
                found.append((begin, parts))
            parts = ""
        elif token[0] != "#" and (parts or not token.isspace()):
            if not parts:
                begin = line
            parts += token
            depth += (token in "[{") - (token in "]}")
        line += token.count("\n")
    return found


def _dotted(key: str) -> list[str]:
    """The parts of a dotted key, with quotes and escapes resolved."""
    import tomllib

    parts = []
    value: Any = tomllib.loads(f"{key.strip()} = 0")
    while isinstance(value, dict):
        [(part, value)] = value.items()
        parts.append(part)
    return parts


# -- values ------------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """`value` as the file may have it, cut short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        out = f"[{', '.join(map(shown, value[:60]))}]"
    else:
        out = hex(value) if isinstance(value, int) and abs(value) >= 0x1000 else repr(value)
    return out if len(out) <= 60 else f"{out[:57]}..."


def either(choices: Iterable[str]) -> str:
    *most, final = map(repr, choices)
    return f"{', '.join(most)} or {final}" if most else final


def meant(word: object, known: Iterable[str]) -> str:
    """What was likely meant, as the end of a sentence; "" if nothing comes near."""
    from difflib import get_close_matches

    found = get_close_matches(str(word)[:40], list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{shown(value)} is no text; write printable characters in quotes")
    return value


def texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is no list; write it in [brackets]")
    return tuple(map(text, value))


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is no boolean; write true or false")
    return value


def table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is no table; write it in [brackets] above its keys")
    return value


def seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise ValueError(f"{shown(value)} is no time; write seconds from 0 to 3600")
    return float(value)


def integer(low: int, high: int) -> Callable[[object], int]:
    """Parses integers from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{shown(value)} is no integer; write 0x1000 or 4096, without quotes")
        if not low <= value <= high:
            raise ValueError(f"{shown(value)} is out of range; write {low:#x} to {high:#x}")
        return value

    return parse


def size(high: int) -> Callable[[object], int]:
    """Parses sizes from 1 to `high` bytes."""
    whole = integer(1, high)

    def parse(value: object) -> int:
        if not isinstance(value, str):
            return whole(value)
        match = re.fullmatch("([0-9]{1,18}) ?([KMG])iB", value)
        if match is None:
            raise ValueError(f'{shown(value)} is no size; write 0x1000, 4096, "4KiB", "16MiB" or "1GiB"')
        return whole(int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]])

    return parse


def hex_bytes(value: object) -> bytes:
    try:
        return bytes.fromhex(text(value))
    except ValueError:
        raise ValueError(f'{shown(value)} is not bytes in hex; write "00 01 ff"') from None


def choice(*choices: str) -> Callable[[object], str]:
    """Parses one of these words."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{shown(value)} is not known; write {either(choices)}")
        return value

    return parse
