"""PackedDriverQueue and PackedDeviceQueue against a plain model: with each other, and each with a literal opposite."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support_memory import GuardedMemory
from support_packed import (
    DESC,
    DISABLE,
    ENABLE,
    START,
    Event,
    LiteralPackedDevice,
    LiteralPackedDriver,
    RawPacked,
    wants,
)

from rpmsgx.errors import StateError
from rpmsgx.virtio.packed import PackedDeviceQueue, PackedDriverQueue

UNIT = 24  # bytes of one data buffer
UNITS = 40
TABLES = 16
RING = 768
DATA = RING + TABLES * 16 * 16
SIZE = DATA + UNIT * UNITS
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"offset": 48},
    {"parts": (512, 4, 0)},  # the device's structure first, the descriptors last
]


@dataclass
class Chain:
    cookie: int
    out: list[int]  # data buffers, by number
    in_: list[int]
    cut: int  # bytes of each
    table: int | None
    sent: bytes
    reply: bytes = b""
    cost: int = field(init=False)

    def __post_init__(self) -> None:
        self.cost = 1 if self.table is not None else len(self.out) + len(self.in_)


def data_at(unit: int) -> int:
    return DATA + unit * UNIT


class PackedMachine(RuleBasedStateMachine):
    driver: Any
    device: Any

    @initialize(
        num=st.sampled_from([1, 2, 3, 5, 7, 8, 13]),
        event_idx=st.booleans(),
        indirect=st.booleans(),
        layout=st.sampled_from(LAYOUTS),
        sides=st.sampled_from(["both", "driver", "device"]),  # which of the two are rpmsgx's own
        kind=st.sampled_from(["cached", "uncached", "device"]),
    )
    def make(
        self,
        num: int,
        event_idx: bool,
        indirect: bool,
        layout: dict[str, Any],
        sides: str,
        kind: Any,
    ) -> None:
        self.num, self.event_idx = num, event_idx
        self.indirect = indirect
        self.guarded = GuardedMemory(SIZE)
        self.memory = self.guarded.buffer
        options: dict[str, Any] = {"event_idx": event_idx, "indirect": indirect, **layout}
        self.raw = RawPacked(self.memory, num, **layout)
        if sides == "device":
            self.driver = LiteralPackedDriver(self.memory, num, **options)
        else:
            self.driver = PackedDriverQueue(self.memory, num, kind=kind, **options)
        if sides == "driver":
            self.device = LiteralPackedDevice(self.memory, num, **options)
        else:
            self.device = PackedDeviceQueue(self.memory, num, kind=kind, **options)
        self.forget()

    def forget(self) -> None:
        self.staged: deque[Chain] = deque()
        self.available: deque[Chain] = deque()
        self.held: dict[int, Chain] = {}
        self.returned: deque[Chain] = deque()  # pushed, not published
        self.used: deque[Chain] = deque()
        self.units = list(range(UNITS))
        self.tables = list(range(TABLES))
        self.num_free = self.num
        # How far each end is in the ring; what counts for a notification lies behind what was published last.
        self.added = self.shown = self.taken = self.pushed = self.returned_to = self.got = START
        self.driver_event = self.device_event = Event(0, 0, ENABLE)

    # ------------------------------------------------------------------------------------------------ driver

    @rule(
        n_out=st.integers(0, 4),
        n_in=st.integers(0, 4),
        cut=st.integers(1, UNIT),
        cookie=st.integers(0, 2**32 - 1),
        table=st.booleans(),
        payload=st.binary(min_size=4 * UNIT, max_size=4 * UNIT),
    )
    def add(self, n_out: int, n_in: int, cut: int, cookie: int, table: bool, payload: bytes) -> None:
        n = n_out + n_in
        own = isinstance(self.driver, PackedDriverQueue)
        if n > len(self.units) or (table and not self.tables):
            return
        out, in_ = self.units[:n_out], self.units[n_out:n]
        spot = self.tables[0] if table else None
        arguments: dict[str, Any] = {
            "out": [(data_at(u), cut) for u in out],
            "in_": [(data_at(u), cut) for u in in_],
            "cookie": cookie,
            "table": None if spot is None else (RING + 256 * spot,) * 2,
        }
        if not 0 < n <= self.num:
            if own:
                with pytest.raises(ValueError, match=f"a chain of {n} buffers"):
                    self.driver.add(**arguments)
            return
        if (table and not self.indirect) or (1 if table else n) > self.num_free:
            if own:
                with pytest.raises(StateError, match="free" if self.indirect or not table else "negotiated"):
                    self.driver.add(**arguments)
            return
        chain = Chain(cookie, out, in_, cut, spot, payload[: n_out * cut])
        for k, unit in enumerate(out):
            at = data_at(unit)
            self.memory[at : at + cut] = payload[k * cut : (k + 1) * cut]
        self.driver.add(**arguments)
        self.units = self.units[n:]
        self.tables = self.tables[1:] if table else self.tables
        self.num_free -= chain.cost
        self.added = self.added.after(chain.cost, self.num)
        self.staged.append(chain)

    @rule()
    def publish_available(self) -> None:
        kick = wants(self.device_event, self.shown, self.added, self.num, self.event_idx)
        assert self.driver.publish() == kick
        self.shown = self.added
        self.available += self.staged
        self.staged.clear()

    @rule()
    def get(self) -> None:
        if not self.used:
            assert self.driver.get() is None
            return
        chain = self.used.popleft()
        assert self.driver.get() == (chain.cookie, len(chain.reply))
        got = b"".join(bytes(self.memory[data_at(u) : data_at(u) + chain.cut]) for u in chain.in_)
        assert got[: len(chain.reply)] == chain.reply
        self.got = self.got.after(chain.cost, self.num)
        self.num_free += chain.cost
        self.units += chain.out + chain.in_
        if chain.table is not None:
            self.tables.append(chain.table)

    @rule()
    def mute_driver(self) -> None:
        self.driver.mute()
        self.driver_event = Event(0, 0, DISABLE)

    @rule()
    def unmute_driver(self) -> None:
        assert self.driver.unmute() == bool(self.used)
        self.driver_event = Event(*self.got, DESC) if self.event_idx else Event(0, 0, ENABLE)

    # ------------------------------------------------------------------------------------------------ device

    @rule()
    def pop(self) -> None:
        head = self.device.pop()
        if not self.available:
            assert head is None
            return
        chain = self.available.popleft()
        assert head is not None and head not in self.held
        self.taken = self.taken.after(chain.cost, self.num)
        self.held[head] = chain
        pieces = self.device.chain(head)
        assert [writable for _, writable in pieces] == [False] * len(chain.out) + [True] * len(chain.in_)
        assert all(len(view) == chain.cut for view, _ in pieces)
        assert self.device.read(head) == chain.sent

    @precondition(lambda self: self.held)
    @rule(data=st.data(), reply=st.binary(max_size=4 * UNIT))
    def push(self, data: st.DataObject, reply: bytes) -> None:
        head = data.draw(st.sampled_from(sorted(self.held)))
        chain = self.held.pop(head)
        chain.reply = reply[: chain.cut * len(chain.in_)]
        if chain.in_:
            assert self.device.write(head, chain.reply) == len(chain.reply)
        self.device.push(head, len(chain.reply))
        self.pushed = self.pushed.after(chain.cost, self.num)
        self.returned.append(chain)

    @rule()
    def publish_used(self) -> None:
        kick = wants(self.driver_event, self.returned_to, self.pushed, self.num, self.event_idx)
        assert self.device.publish() == kick
        self.returned_to = self.pushed
        self.used += self.returned
        self.returned.clear()

    @rule()
    def mute_device(self) -> None:
        self.device.mute()
        self.device_event = Event(0, 0, DISABLE)

    @rule()
    def unmute_device(self) -> None:
        assert self.device.unmute() == bool(self.available)
        self.device_event = Event(*self.taken, DESC) if self.event_idx else Event(0, 0, ENABLE)

    @rule()
    def drain_device(self) -> None:
        """As much as there is, so that long runs go round the ring often."""
        while self.available:
            self.pop()
        for head, chain in list(self.held.items()):
            self.device.push(head, 0)
            del self.held[head]
            self.pushed = self.pushed.after(chain.cost, self.num)
            self.returned.append(chain)
        self.publish_used()
        while self.used:
            self.get()

    @precondition(lambda self: isinstance(self.driver, PackedDriverQueue))
    @rule(really=st.integers(0, 9))
    def reset(self, really: int) -> None:
        if really:
            return
        self.device.reset()
        self.driver.reset()
        self.forget()

    # --------------------------------------------------------------------------------------------- invariants

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "driver"):
            return
        assert self.driver.num_free == self.num_free
        flying = len(self.staged) + len(self.available) + len(self.held) + len(self.returned) + len(self.used)
        assert self.driver.in_flight == flying
        assert self.device.held == len(self.held)
        if isinstance(self.driver, PackedDriverQueue):
            assert self.driver.broken is None
        if isinstance(self.device, PackedDeviceQueue):
            assert self.device.broken is None

    @invariant()
    def memory_shows(self) -> None:
        if not hasattr(self, "driver"):
            return
        raw = self.raw
        assert (raw.driver_event, raw.device_event) == (self.driver_event, self.device_event)
        assert self.guarded.intact()


PackedMachine.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestPackedModel = PackedMachine.TestCase
