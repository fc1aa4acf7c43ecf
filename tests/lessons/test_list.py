# SPDX-License-Identifier: BSD-3-Clause
"""docs/lessons.md and the tests tell the same."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SECTION = re.compile(r"^## (\d\d) .+\n((?:(?!## ).*\n)*)", re.MULTILINE)
NAMES = [f"{number:02}" for number in range(1, 24)]


def marked_tests() -> dict[str, set[str]]:
    """By lesson: the names of the tests that carry its mark."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.lesson":
                        for argument in mark.args:
                            found[ast.literal_eval(argument)].add(node.name)
    return found


THERE_ARE = marked_tests()
SECTIONS = dict(SECTION.findall((TESTS.parent / "docs" / "lessons.md").read_text(encoding="utf-8")))


def test_all_lessons_are_listed() -> None:
    assert list(SECTIONS) == NAMES and set(THERE_ARE) <= set(NAMES)


@pytest.mark.parametrize("lesson", NAMES)
def test_each_lesson_has_tests_and_each_test_that_is_named_exists(lesson: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", SECTIONS[lesson]))
    assert named <= THERE_ARE[lesson], f"lesson {lesson}: there is no {named - THERE_ARE[lesson]} of this mark"
    assert any(name.startswith(f"test_lesson_{lesson}_") for name in named)
