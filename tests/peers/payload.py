# SPDX-License-Identifier: BSD-3-Clause
"""The numbered payloads that source and sink programs exchange.

`payload(seq, seed)` is the sequence number as 8 little-endian bytes followed by bytes of a block that depends
on the seed alone; sizes are spread over 0..496 (what fits a 512-byte rpmsg buffer). A payload shorter than 8
bytes carries the low bytes of the number. The block is SHAKE-256 of the seed; the size and the place in it
come from a 64-bit multiplicative hash, so any language can make the same bytes. Both functions may be called
from any thread.
"""

from __future__ import annotations

import hashlib

MAX_PAYLOAD = 496
_BLOCK = 1 << 16
_MASK = (1 << 64) - 1
_blocks: dict[int, bytes] = {}


def _block(seed: int) -> bytes:
    block = _blocks.get(seed)
    if block is None:
        raw = hashlib.shake_256((seed & _MASK).to_bytes(8, "little")).digest(_BLOCK)
        block = _blocks[seed] = raw + raw[:MAX_PAYLOAD]  # so that no slice has to wrap around
    return block


def payload(seq: int, seed: int) -> bytes:
    """The payload number `seq` (>= 0) of the stream `seed`: 0..496 bytes."""
    mix = (seq + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 & _MASK
    mix = (mix ^ mix >> 29) * 0xBF58476D1CE4E5B9 & _MASK
    size = (mix >> 40) % (MAX_PAYLOAD + 1)
    number = (seq & _MASK).to_bytes(8, "little")
    if size <= 8:
        return number[:size]
    start = mix >> 16 & _BLOCK - 1
    return number + _block(seed)[start : start + size - 8]


def check(seq: int, seed: int, data: bytes) -> None:
    """AssertionError, saying what differs, unless `data` is `payload(seq, seed)`."""
    want = payload(seq, seed)
    if data == want:
        return
    found = int.from_bytes(data[:8], "little") if len(data) >= 8 else None
    pairs = zip(want, data, strict=False)
    differs = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(want), len(data)))
    raise AssertionError(
        f"payload {seq} of seed {seed}: {len(data)} bytes for {len(want)}, they differ at byte {differs}; "
        f"the number in it is {found}"
    )
