from collections.abc import Iterable
from typing import Literal, Self, TypeAlias

import numpy
from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

from rpmsgx.virtio.ring import Memory, Parts

_Kind: TypeAlias = Literal["cached", "uncached", "device"]
_Chain: TypeAlias = Iterable[tuple[int, int]]
_Places: TypeAlias = tuple[int, int, int]

@disjoint_base
class PackedRing(Parts):
    @property
    def num(self) -> int: ...
    @property
    def desc(self) -> NDArray[numpy.void]: ...
    @property
    def driver_event(self) -> NDArray[numpy.void]: ...
    @property
    def device_event(self) -> NDArray[numpy.void]: ...
    def publish(self) -> bool: ...
    def mute(self) -> None: ...
    def unmute(self) -> bool: ...
    @property
    def broken(self) -> str | None: ...

@disjoint_base
class PackedDriverQueue(PackedRing):
    def __new__(
        cls,
        buffer: Buffer,
        num: int,
        *,
        parts: _Places | None = None,
        offset: int = 0,
        event_idx: bool = False,
        indirect: bool = False,
        kind: _Kind = "cached",
    ) -> Self: ...
    def add(
        self, out: _Chain = (), in_: _Chain = (), *, cookie: int = 0, table: tuple[int, int] | None = None
    ) -> None: ...
    def get(self) -> tuple[int, int] | None: ...
    def reset(self) -> None: ...
    @property
    def num_free(self) -> int: ...
    @property
    def in_flight(self) -> int: ...

@disjoint_base
class PackedDeviceQueue(PackedRing):
    def __new__(
        cls,
        buffer: Buffer,
        num: int,
        *,
        memory: Memory | None = None,
        parts: _Places | None = None,
        offset: int = 0,
        event_idx: bool = False,
        indirect: bool = False,
        kind: _Kind = "cached",
        start: int = 0x8000,
    ) -> Self: ...
    def pop(self) -> int | None: ...
    def chain(self, head: int, max_bytes: int = 0xFFFFFFFF) -> list[tuple[memoryview, bool]]: ...
    def read(self, head: int, max_bytes: int = 65551) -> bytes: ...
    def write(self, head: int, data: Buffer) -> int: ...
    def push(self, head: int, length: int = 0) -> None: ...
    def reset(self) -> None: ...
    @property
    def held(self) -> int: ...
