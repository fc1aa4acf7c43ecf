# SPDX-License-Identifier: BSD-3-Clause
"""The command on the kernel's own remotes. What runs in the guest is inside_cli.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from test_remoteproc_sysfs import CRASH, NOT_OFFLINE, Sim, sim

if TYPE_CHECKING:
    from uml import Guest

__all__ = ["sim"]  # a fixture


def inside(guest: Guest, function: str, *arguments: str) -> None:
    guest.python(f"import inside_cli as inside\ninside.{function}(*{arguments!r})", timeout=90)


def test_commands_for_a_remote_of_the_kernel(sim: Sim) -> None:
    inside(sim(expect=(*CRASH, NOT_OFFLINE)), "commands")


def test_run_until_a_signal(sim: Sim) -> None:
    guest = sim(expect=CRASH)
    folder = guest.folder / "dumps"
    folder.mkdir()
    inside(guest, "run", str(folder))


def test_a_board_file_names_it(sim: Sim) -> None:
    guest = sim()
    inside(guest, "by_board_file", str(guest.folder))


def test_the_kernel_is_the_guardian(sim: Sim) -> None:
    inside(sim(), "killed")


def test_attach_until_a_signal(sim: Sim) -> None:
    inside(sim("attach=1"), "attach")


def test_a_trace_is_followed_over_restarts(sim: Sim) -> None:
    inside(sim(), "follow")
