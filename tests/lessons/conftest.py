# SPDX-License-Identifier: BSD-3-Clause
"""What all lessons have in common: the remote, a place for it, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from remotes import KINDS
from support_boards import make
from support_wire import until

import rpmsgx
from rpmsgx.remoteproc.native import NativePlatform
from rpmsgx.remoteproc.qemu import MACHINES as QEMU

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of locks and saved state."""
    place = tmp_path / "state"
    monkeypatch.setenv("RPMSGX_STATE_DIR", str(place))
    return place


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = left()
    yield
    gc.collect()
    with contextlib.suppress(AssertionError):
        until(lambda: left() <= before)
    assert left() <= before


def left() -> tuple[int, int, int]:
    """Descriptors, threads, children."""
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children.read().split())


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The socket of a native remote that goes on without its host."""
    make("process").close()  # skips where there is no native remote
    where = str(tmp_path / "remote")
    yield where
    with contextlib.suppress(rpmsgx.Error, OSError), NativePlatform(socket=where) as platform:
        platform.stop()


@pytest.fixture(params=["thread", "process", "unicorn", "unicorn-riscv32", "unicorn-cortex-a53", *QEMU])
def remote(request: pytest.FixtureRequest, path: str) -> dict[str, Any]:
    """The arguments of `Remoteproc` for a kind of remote; `indirect` parameters choose others."""
    kind = request.param
    make({"lasting": "process"}.get(kind, kind)).close()
    return {**KINDS[kind], **({"socket": path} if kind == "lasting" else {})}
