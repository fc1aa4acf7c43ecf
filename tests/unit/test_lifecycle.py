"""The table of states and events: every cell, written down a second time, and the figures in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpmsgx import StateError
from rpmsgx.remoteproc.lifecycle import TABLE, Event, State, Work, decide, markdown, mermaid

DOCS = Path(__file__).parents[2] / "docs" / "remoteproc.md"

# What happens with one user (none where nobody can hold the remote) and with two: work, state, users afterwards.
# "-": refused. ".": nothing changes.
STATES = ("offline", "running", "attached", "crashed", "detached", "deleted")
USERS = {"offline": (0, 1), "detached": (0, 1), "deleted": (0,)}
EXPECTED = {
    "boot": (
        "start running 1", "start running 2", ". running 2", ". running 3", ". attached 2", ". attached 3",
        ". crashed 2", ". crashed 3", "attach attached 1", "attach attached 2", "-",
    ),
    "shutdown": (
        "-", ". offline 0", "stop offline 0", ". running 1", "stop offline 0", ". attached 1",
        "stop offline 0", ". crashed 1", "-", ". detached 0", "-",
    ),
    "attach": (
        "-", "-", "-", "-", ". attached 2", ". attached 3", "-", "-", "attach attached 1", "attach attached 2", "-",
    ),
    "detach": (
        "-", "-", "detach detached 0", ". running 1", "detach detached 0", ". attached 1", "-", "-", "-",
        ". detached 0", "-",
    ),
    "crash": (
        ". offline 0", ". offline 1", ". crashed 1", ". crashed 2", ". crashed 1", ". crashed 2",
        ". crashed 1", ". crashed 2", ". offline 0", ". offline 1", ". deleted 0",
    ),
    "recover": (
        ". offline 0", ". offline 1", ". running 1", ". running 2", ". attached 1", ". attached 2",
        "recover running 1", "recover running 2", ". detached 0", ". detached 1", "-",
    ),
    "recover by attaching": (
        ". offline 0", ". offline 1", ". running 1", ". running 2", ". attached 1", ". attached 2",
        "reattach attached 1", "reattach attached 2", ". detached 0", ". detached 1", "-",
    ),
    "set firmware": (". offline 0", ". offline 1", "-", "-", "-", "-", "-", "-", "-", "-", "-"),
    "firmware found": (
        ". offline 0", "start running 1", ". running 1", ". running 2", ". attached 1", ". attached 2",
        ". crashed 1", ". crashed 2", ". detached 0", ". detached 1", ". deleted 0",
    ),
    "service up": (
        ". offline 0", "start running 1", ". running 1", ". running 2", ". attached 1", ". attached 2",
        ". crashed 1", ". crashed 2", ". detached 0", "attach attached 1", ". deleted 0",
    ),
    "service down": (
        ". offline 0", ". offline 1", "stop offline 1", "stop offline 2", "stop offline 1", "stop offline 2",
        "stop offline 1", "stop offline 2", ". detached 0", ". detached 1", ". deleted 0",
    ),
    "boot without its service": (
        ". offline 1", ". offline 2", ". running 2", ". running 3", ". attached 2", ". attached 3",
        ". crashed 2", ". crashed 3", ". detached 1", ". detached 2", "-",
    ),
    "delete": (
        ". deleted 0", ". deleted 0", "stop deleted 0", "stop deleted 0", "stop deleted 0", "stop deleted 0",
        "stop deleted 0", "stop deleted 0", ". deleted 0", ". deleted 0", ". deleted 0",
    ),
    "delete and leave it running": (
        ". deleted 0", ". deleted 0", "detach deleted 0", "detach deleted 0", "detach deleted 0", "detach deleted 0",
        "stop deleted 0", "stop deleted 0", ". deleted 0", ". deleted 0", ". deleted 0",
    ),
}  # fmt: skip
CASES = [
    (state, event, users, outcome)
    for event, row in EXPECTED.items()
    for (state, users), outcome in zip(
        [(state, users) for state in STATES for users in USERS.get(state, (1, 2))], row, strict=True
    )
]


@pytest.mark.lesson("10")
@pytest.mark.parametrize("state, event, users, outcome", CASES)
def test_lesson_10_every_cell_is_a_decision(state: str, event: str, users: int, outcome: str) -> None:
    if outcome == "-":
        with pytest.raises(StateError, match=f"the core is {state}: "):
            decide(State(state), Event(event), users, "the core")
        return
    work, after, count = outcome.split()
    decision = decide(State(state), Event(event), users)
    assert (decision.work, decision.state, decision.power) == ("" if work == "." else work, after, int(count))


def test_no_event_is_forgotten() -> None:
    assert {*map(str, Event)} == {*EXPECTED} and set(TABLE) == set(State)
    assert all(set(row) == set(Event) for row in TABLE.values())
    done = {outcome.split()[0] for _, _, _, outcome in CASES}
    assert done == {*Work, ".", "-"} - {""}


def test_the_documentation_shows_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert mermaid() in text and markdown() in text
