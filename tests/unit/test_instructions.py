# SPDX-License-Identifier: BSD-3-Clause
"""Instructions per message, counted by callgrind against bench/instructions/budget.toml.

A budget that is not kept is a regression, or a price that was decided on: `python -m bench.instructions --write`.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from support import ROOT, require, run

BENCH = ROOT / "bench" / "instructions"
KEPT, BROKEN, NONE = 0, 1, 3

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks are not here")


def needs() -> None:
    require(shutil.which("valgrind") is not None, "valgrind (apt: valgrind)")
    require(shutil.which("gcc") is not None, "gcc")
    require(importlib.util.find_spec("elftools") is not None, "pyelftools")


def test_the_budget_is_kept() -> None:
    needs()
    status, output = run([sys.executable, "-m", "bench.instructions"], timeout=200, cwd=ROOT)
    require(status != NONE, output)
    assert status == KEPT, output
    assert output.count(" a call, ") == 16 and output.count("send") >= 10


def test_more_instructions_are_seen(tmp_path: Path) -> None:
    """The counting itself, on a copy of the C core that does something more for each message."""
    needs()
    for name in "bench", "csrc":
        shutil.copytree(ROOT / name, tmp_path / name)
    header = tmp_path / "csrc" / "rpx" / "rpmsg.h"
    text = header.read_text()
    step = "\trpx_put32(&h->reserved, 0, tx->swap);\n"
    assert text.count(step) == 1
    header.write_text(text.replace(step, step + '\tfor (int i = 0; i < 30; i++)\n\t\t__asm__ volatile("nop");\n'))
    program = "import sys; sys.path.insert(0, '.'); from bench.instructions import core; print(core()[1])"
    counts = []
    for place in ROOT, tmp_path:
        status, output = run([sys.executable, "-c", program], timeout=100, cwd=place)
        assert status == 0, output
        counts.append(eval(output))
    for name, count in counts[0].items():
        assert 20 <= counts[1][name] - count <= 100, (name, count, counts[1][name])
