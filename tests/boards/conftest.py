# SPDX-License-Identifier: BSD-3-Clause
"""`platform`: every platform that runs csrc's applications on this machine, one after the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from support import require

from rpmsgx.remoteproc.platform import Platform, open_platform

PLATFORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "unicorn": ("unicorn", {}),
    "thread": ("native", {}),
    "thread-da": ("native", {"desc_addr": "da"}),
    "process": ("native", {"process": True}),
}


def make(kind: str) -> Platform:
    name, options = PLATFORMS[kind]
    module = {"unicorn": "unicorn", "native": "rpmsgx.remoteproc._native"}[name]
    require(importlib.util.find_spec(module) is not None, f"{module} is not there")
    return open_platform(name, **options)


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with make(request.param) as made:
        yield made
