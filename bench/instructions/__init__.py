"""Instructions per message, by callgrind: the same on each run, on a loaded machine too, so that CI can watch them.

    python -m bench.instructions            against the budget: exit status 0 kept, 1 not kept, 3 there is none
    python -m bench.instructions --write    make what is counted now the budget

Only what our own object executes counts: not memcpy, which libc chooses by the CPU, nor the interpreter. A budget is
that of a compiler, as it has signed the object, and of a machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ..limits import FLAGS, Missing, compiler

HERE = Path(__file__).parent
BUDGET = HERE / "budget.toml"
ALLOWED = 1.02  # of the budget
LIMIT = 120.0  # seconds for a program under valgrind

#: (name, messages) of the cases of core.c and endpoints.py.
CORE = [
    (f"{way}, {batch} a call, {size} bytes{ring}", 64 * 64)
    for ring in ("", ", packed")
    for size in (64, 496)
    for batch in (1, 64)
    for way in ("driver to device", "device to driver")
]
PYTHON = [
    (f"{way}, {calls}", 64 * 16)
    for way in ("driver to device", "device to driver")
    for calls in ("send recv", "send_to recv_from", "try_send try_recv", "send_many recv_many", "send_many recv_into")
]

Counts = dict[str, float]


def core() -> tuple[str, Counts]:
    """(whose budget, instructions a message) of the C core. Raises Missing."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "core")
        subprocess.run([compiler(), *FLAGS, str(HERE / "core.c"), "-o", program], check=True)
        return f"core, {signature(program)}", _count([program], program, CORE)


def python() -> tuple[str, Counts]:
    """The same of rpmsgx.rpmsg.bus, under this Python."""
    from rpmsgx.rpmsg import bus

    version = ".".join(map(str, sys.version_info[:2]))
    command = [sys.executable, str(HERE / "endpoints.py")]
    return f"python {version}, {signature(bus.__file__)}", _count(command, bus.__file__, PYTHON)


def signature(path: str) -> str:
    """The compiler of an object and its machine, such as "gcc 12, x86_64"; how it was built, as far as that shows."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        comment, symbols = elf.get_section_by_name(".comment"), elf.get_section_by_name(".dynsym")
        text = "" if comment is None else comment.data().decode("ascii", "replace")
        guarded = isinstance(symbols, SymbolTableSection) and symbols.get_symbol_by_name("__stack_chk_fail") is not None
    where = os.uname().machine + (", stack protector" if guarded else "")
    for name, pattern in (("clang", r"clang version (\d+)"), ("gcc", r"GCC: \([^)]*\) (\d+)")):
        found = re.search(pattern, text)
        if found:
            return f"{name} {found[1]}, {where}"
    return f"unknown, {where}"


def _count(command: list[str], ours: str, cases: list[tuple[str, int]]) -> Counts:
    """Run `command`, which calls getppid() before and after each case: instructions a message, in the object `ours`."""
    if shutil.which("valgrind") is None:
        raise Missing("valgrind is not installed (apt: valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "callgrind")
        options = ["--tool=callgrind", f"--callgrind-out-file={out}", "--dump-before=getppid", "--compress-pos=no",
                   "--compress-strings=no", "-q"]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            ["valgrind", *options, *command], env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} under valgrind: {done.returncode}\n{done.stderr}")
        # A dump at each getppid(), of what was since the one before; and one at the end.
        dumps = [f"{out}.{n + 1}" for n in range(2 * len(cases))]
        return {
            name: round(sum(_costs(dump, ours)) / messages, 1)
            for (name, messages), dump in zip(cases, dumps[1::2], strict=True)
        }


def _costs(path: str, ours: str) -> Iterator[int]:
    """What the lines of the object `ours` cost by themselves."""
    mine = called = False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("ob="):
                mine = os.path.realpath(line[3:].strip()) == os.path.realpath(ours)
            elif line.startswith("calls="):
                called = True  # the next line is what was called
            elif line[:1].isdigit():
                if mine and not called:
                    yield int(line.split()[1])
                called = False


def budgets() -> dict[str, Counts]:
    with BUDGET.open("rb") as file:
        return tomllib.load(file)


def write(counted: dict[str, Counts]) -> None:
    """Make these counts the budget of whose they are; others stay."""
    lines = ["# Instructions per message, both ends together. Written by `python -m bench.instructions --write`."]
    for key, counts in sorted({**(budgets() if BUDGET.exists() else {}), **counted}.items()):
        lines += ["", f'["{key}"]', *(f'"{name}" = {count}' for name, count in counts.items())]
    BUDGET.write_text("\n".join(lines) + "\n", encoding="utf-8")
