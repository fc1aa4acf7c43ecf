# SPDX-License-Identifier: BSD-3-Clause
"""The C tests can fail: each broken ring core of mutations.py makes the program it names do so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation
from support import CSRC, SANITIZERS, build_c, can_build, require, run

pytestmark = pytest.mark.mutation

#: Programs by what they see: source, build, and the runs of which one must fail.
PROGRAMS: dict[str, tuple[str, str, list[list[str]]]] = {
    "ring": ("ring", "plain", [[]]),
    "packed": ("packed", "plain", [[]]),
    "explore": ("explore", "plain", [[]]),
    "tsan": ("stress", "tsan", [["ring", "4", "20000"], ["rpmsg", "4", "20000"]]),
    "tsan-packed": ("stress", "tsan", [["ring", "3", "20000", "p"], ["rpmsg", "3", "20000", "pe"]]),
}


def passes(by: str, csrc: Path, out: Path) -> tuple[bool, str]:
    """Build a program against `csrc` and run it. A run that takes over 20 seconds has not passed."""
    name, build, runs = PROGRAMS[by]
    require(can_build(*SANITIZERS[build]), f"gcc with {' '.join(SANITIZERS[build])} does not work here")
    program = build_c(name, out, build=build, csrc=csrc)
    for arguments in runs:
        status, output = run([program, *arguments], timeout=20)
        if status != 0:
            return False, output
    return True, ""


@pytest.mark.parametrize("by", PROGRAMS)
def test_unmutated_passes(tmp_path: Path, by: str) -> None:
    good, output = passes(by, CSRC, tmp_path)
    assert good, output


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutation_is_noticed(tmp_path: Path, mutation: Mutation) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    text = (csrc / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} has changed: bring {mutation.name} up to date"
    (csrc / mutation.file).write_text(text.replace(mutation.old, mutation.new))
    good, _ = passes(mutation.by, csrc, tmp_path)
    assert not good, f"{mutation.name} went unnoticed: {mutation.why}"


def test_names_are_unique() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
