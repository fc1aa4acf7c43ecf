"""The life of a remote core as one table: what every event means in every state. It decides; it does nothing.

`decide` answers an event with the work that has to be done, the state that the remote is in once that work is done,
and its power count then. Work that fails changes neither. The states, and most cells, are those of Linux
(drivers/remoteproc/remoteproc_core.c); where they differ the cell says why.

The power count is the number of users that hold the remote up: each `boot` and `attach` adds one, each `shutdown` and
`detach` gives one back, the last of these does the work. Nothing else changes it but the end of everything.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from rpmsgx.errors import StateError


class State(StrEnum):
    OFFLINE = "offline"
    RUNNING = "running"  # booted by this host
    ATTACHED = "attached"  # found running, and taken over
    CRASHED = "crashed"
    DETACHED = "detached"  # it runs, and this host has nothing to do with it
    DELETED = "deleted"


class Event(StrEnum):
    BOOT = "boot"
    SHUTDOWN = "shutdown"
    ATTACH = "attach"
    DETACH = "detach"
    CRASH = "crash"
    RECOVER = "recover"  # by loading the firmware anew
    REATTACH = "recover by attaching"  # where the remote restarts by itself
    SET_FIRMWARE = "set firmware"
    FIRMWARE_FOUND = "firmware found"  # it was waited for
    SERVICE_UP = "service up"  # that the remote depends on
    SERVICE_DOWN = "service down"
    BOOT_LATER = "boot without its service"
    DELETE = "delete"  # and stop what runs
    LEAVE = "delete and leave it running"


class Work(StrEnum):
    NOTHING = ""
    START = "start"
    ATTACH = "attach"
    STOP = "stop"
    DETACH = "detach"
    RECOVER = "recover"
    REATTACH = "reattach"


class Cell(NamedTuple):
    """What an event means in a state."""

    work: Work = Work.NOTHING
    to: State | None = None
    """The state afterwards; None: the same."""
    power: int = 0
    """What is added to the count."""
    last: bool = False
    """The work is done, and the state changes, only where the count becomes 0."""
    held: bool = False
    """Only where somebody holds the remote: the count is not 0."""
    all_users: bool = False
    """The count becomes 0."""


class Decision(NamedTuple):
    work: Work
    state: State
    power: int


NOTHING = Cell()
MORE, LESS = Cell(power=1), Cell(power=-1, held=True)
START = Cell(Work.START, State.RUNNING, power=1)
ATTACH = Cell(Work.ATTACH, State.ATTACHED, power=1)
STOP = Cell(Work.STOP, State.OFFLINE, power=-1, last=True)
DETACH = Cell(Work.DETACH, State.DETACHED, power=-1, last=True)
SUSPEND = Cell(Work.STOP, State.OFFLINE)  # a service is a gate, no holder: the count is kept for its return
CRASH = Cell(to=State.CRASHED)
GONE = Cell(to=State.DELETED, all_users=True)
END, LEAVE = GONE._replace(work=Work.STOP), GONE._replace(work=Work.DETACH)

_OFFLINE_ONLY = "its firmware can change only while it is offline"
_NO_HOLDER = "nobody booted it or attached to it"

# Every event has a cell in every state: a Cell, or the reason why it is refused.
TABLE: dict[State, dict[Event, Cell | str]] = {
    State.OFFLINE: {
        Event.BOOT: START,
        Event.BOOT_LATER: MORE,
        Event.SHUTDOWN: LESS,
        Event.ATTACH: "no remote runs that could be attached to; boot() starts one",
        Event.DETACH: "there is nothing to detach from",
        Event.CRASH: NOTHING,
        Event.RECOVER: NOTHING,
        Event.REATTACH: NOTHING,
        Event.SET_FIRMWARE: NOTHING,
        Event.FIRMWARE_FOUND: Cell(Work.START, State.RUNNING, held=True),
        Event.SERVICE_UP: Cell(Work.START, State.RUNNING, held=True),
        Event.SERVICE_DOWN: NOTHING,
        Event.DELETE: GONE,
        Event.LEAVE: GONE,
    },
    State.RUNNING: {
        Event.BOOT: MORE,
        Event.BOOT_LATER: MORE,
        Event.SHUTDOWN: STOP,
        Event.ATTACH: "this host runs it already; boot() counts one more user",
        Event.DETACH: DETACH,  # refused by Linux, which can attach only to what somebody else has started
        Event.CRASH: CRASH,
        Event.RECOVER: NOTHING,
        Event.REATTACH: NOTHING,
        Event.SET_FIRMWARE: _OFFLINE_ONLY,
        Event.FIRMWARE_FOUND: NOTHING,
        Event.SERVICE_UP: NOTHING,
        Event.SERVICE_DOWN: SUSPEND,
        Event.DELETE: END,
        Event.LEAVE: LEAVE,
    },
    State.ATTACHED: {
        Event.BOOT: MORE,
        Event.BOOT_LATER: MORE,
        Event.SHUTDOWN: STOP,
        Event.ATTACH: MORE,
        Event.DETACH: DETACH,
        Event.CRASH: CRASH,
        Event.RECOVER: NOTHING,
        Event.REATTACH: NOTHING,
        Event.SET_FIRMWARE: _OFFLINE_ONLY,
        Event.FIRMWARE_FOUND: NOTHING,
        Event.SERVICE_UP: NOTHING,
        Event.SERVICE_DOWN: SUSPEND,
        Event.DELETE: END,
        Event.LEAVE: LEAVE,
    },
    State.CRASHED: {
        Event.BOOT: MORE,  # it comes back with its recovery, for all who hold it
        Event.BOOT_LATER: MORE,
        Event.SHUTDOWN: STOP,
        Event.ATTACH: "recover() or shutdown() first",
        Event.DETACH: "a crashed remote cannot be told; recover() or shutdown() it",
        Event.CRASH: NOTHING,  # the first one counts
        Event.RECOVER: Cell(Work.RECOVER, State.RUNNING),
        Event.REATTACH: Cell(Work.REATTACH, State.ATTACHED),
        Event.SET_FIRMWARE: _OFFLINE_ONLY,
        Event.FIRMWARE_FOUND: NOTHING,
        Event.SERVICE_UP: NOTHING,
        Event.SERVICE_DOWN: SUSPEND,
        Event.DELETE: END,
        Event.LEAVE: END,
    },
    State.DETACHED: {
        Event.BOOT: ATTACH,
        Event.BOOT_LATER: MORE,
        Event.SHUTDOWN: LESS,  # of a boot that waits for its service
        Event.ATTACH: ATTACH,
        Event.DETACH: LESS,
        Event.CRASH: Cell(to=State.OFFLINE),  # Linux boots it here, with a count of 0; nobody asked for that
        Event.RECOVER: NOTHING,
        Event.REATTACH: NOTHING,
        Event.SET_FIRMWARE: _OFFLINE_ONLY,
        Event.FIRMWARE_FOUND: NOTHING,
        Event.SERVICE_UP: Cell(Work.ATTACH, State.ATTACHED, held=True),
        Event.SERVICE_DOWN: NOTHING,
        Event.DELETE: GONE,
        Event.LEAVE: GONE,
    },
    State.DELETED: {
        **{event: "it is closed" for event in Event},
        Event.CRASH: NOTHING,
        Event.SERVICE_UP: NOTHING,
        Event.SERVICE_DOWN: NOTHING,
        Event.FIRMWARE_FOUND: NOTHING,
        Event.DELETE: NOTHING,
        Event.LEAVE: NOTHING,
    },
}


def decide(state: State, event: Event, power: int, name: str = "the remote") -> Decision:
    """What `event` asks for in `state` with `power` users. Raises StateError where it is refused."""
    cell = TABLE[state][event]
    if isinstance(cell, str):
        raise StateError(f"{name} is {state}: {cell}")
    if cell.held and power == 0:
        if cell.power < 0:
            raise StateError(f"{name} is {state}: {_NO_HOLDER}")
        return Decision(Work.NOTHING, state, power)
    after = 0 if cell.all_users else power + cell.power
    if cell.last and after > 0:
        return Decision(Work.NOTHING, state, after)
    return Decision(cell.work, cell.to or state, after)


def mermaid() -> str:
    """The table as a state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.OFFLINE}", f"    [*] --> {State.DETACHED}: found running"]
    for state, row in TABLE.items():
        arrows: dict[State, list[str]] = {}
        for event, cell in row.items():
            if isinstance(cell, Cell) and cell.to is not None:
                arrows.setdefault(cell.to, []).append(event)
        lines += [f"    {state} --> {to}: {', '.join(events)}" for to, events in arrows.items()]
    return "\n".join([*lines, f"    {State.DELETED} --> [*]"])


def markdown() -> str:
    """The table itself: the state that each event leads to, and what is done on the way."""
    lines = ["| event | " + " | ".join(State) + " |", "|---" * (1 + len(State)) + "|"]
    lines += [f"| {event} | " + " | ".join(_text(TABLE[state][event]) for state in State) + " |" for event in Event]
    return "\n".join(lines)


def _text(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return "refused"
    parts = []
    if cell.power:
        parts.append(f"{cell.power:+d}")
    if cell.work is not Work.NOTHING:
        parts.append(cell.work)
    text = ", ".join(parts)
    if cell.to is not None:
        text += f" → {cell.to}"
    notes = [note for on, note in ((cell.last, "by the last user"), (cell.held, "if held")) if on]
    return (text.strip() or "nothing") + (f" ({', '.join(notes)})" if notes else "")
