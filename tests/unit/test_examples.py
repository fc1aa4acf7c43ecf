"""Every example runs, ends by itself, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ALL_OUTPUT = {
    "asyncio_echo": ["blue answers b'eulb'", "green answers b'neerg'", "red answers b'der'"],
    "big_messages": ["one message of 4080", "in bulk 256000 True", "in fragments True"],
    "callbacks": ["there is doubler", "4 doubled is 8", "21 doubled is 42", "gone is doubler"],
    "echo": ["remote got  b'hello'", "host got    b'HELLO'", "remote got  b'rpmsg'", "host got    b'RPMSG'"],
    "numpy_rows": ["100 records, equal: True", "mean radius 1.0"],
    "two_processes": ["1 2 3 make 6", "40 2 make 42", "child ended with status 0"],
}


@pytest.mark.parametrize("name", sorted(ALL_OUTPUT))
def test_example(name: str) -> None:
    if name == "numpy_rows":
        pytest.importorskip("numpy")
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 30
    done = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    lines, promised = done.stdout.splitlines(), ALL_OUTPUT[name]
    if name == "asyncio_echo":  # the tasks answer in any order
        lines = sorted(lines)
    assert lines == promised
