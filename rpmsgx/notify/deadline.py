"""When a call's time is up."""

from __future__ import annotations

import time


def deadline(timeout: float | None) -> float | None:
    """When `timeout` seconds are over, as time.monotonic() has it; None: never. Raises ValueError below 0, and NaN."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return time.monotonic() + timeout


def left(end: float | None) -> float | None:
    """Seconds until `end`, at least 0; None: for ever."""
    return None if end is None else max(0.0, end - time.monotonic())
