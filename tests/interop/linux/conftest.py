# SPDX-License-Identifier: BSD-3-Clause
"""`uml`: boots real Linux kernels for a test and sees to it that they had nothing to complain about. See README.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import kernel_peer
import pytest
from support import require
from uml import Guest


@pytest.fixture(scope="session")
def peer() -> kernel_peer.KernelPeer:
    """The kernel's files; skips where they cannot be built."""
    try:
        return kernel_peer.build(kernel_peer.version())
    except kernel_peer.Missing as missing:
        require(False, str(missing))
        raise  # not reached


@pytest.fixture
def uml(peer: kernel_peer.KernelPeer, tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """`uml(devices=[...], expect=[...])` starts a guest. At the end of the test its log is checked."""
    guests: list[Guest] = []

    def start(
        *,
        devices: Iterable[str | os.PathLike[str]] = (),
        expect: Iterable[str] = (),
        memory: str = "96M",
        arguments: Iterable[str] = (),
    ) -> Guest:
        folder = tmp_path / f"guest{len(guests)}"
        folder.mkdir()
        guest = Guest(peer, folder, devices=devices, memory=memory, arguments=arguments)
        guests.append(guest)
        guest.expect(*expect)
        return guest

    yield start
    for guest in guests:
        guest.kill()
    for guest in guests:
        print(guest.console_log())
        guest.check()


def pytest_collection_finish(session: pytest.Session) -> None:
    """A first build takes minutes, more than a test has."""
    wanted = any("peer" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        try:
            release = kernel_peer.version()
            if not kernel_peer.is_built(release):
                print(f"\nbuilding Linux {release} as a peer of these tests, once; this takes minutes", flush=True)
                kernel_peer.build(release)
        except kernel_peer.Missing:
            pass  # the fixture says what
