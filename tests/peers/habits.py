# SPDX-License-Identifier: BSD-3-Clause
"""What others do on the wire that Linux does not, and what of it is against the rules.

`Habits` are switched on one by one; OPENAMP and RPMSG_LITE are the sets of two peers. Where a habit breaks a rule, the
other end has to be told to tolerate that rule (TOLERATE_OPENAMP, TOLERATE_RPMSG_LITE): it then takes the habit for what
it is, and every other breach of the same rule for a Violation as before.

Sources of the facts: [virtio] the specification; [openamp] OpenAMP's Linux "generic" machine; [linux]
virtio_rpmsg_bus.c; [lite] rpmsg-lite.
"""

from __future__ import annotations

from dataclasses import dataclass


class Violation(AssertionError):
    """The other end broke a rule; `.rule` names it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(frozen=True)
class Habits:
    """All off by default, which is how Linux behaves: status 7, exact lengths.

    whole_lengths      [openamp, lite] desc.len and used.len are always the whole buffer
    name_garbage       [openamp] bytes after the NUL of an announced name are garbage
    write_reserved     [openamp] a received message's hdr.reserved is overwritten in the buffer
    reserved_garbage   [lite] hdr.reserved of what it sends is the buffer's index << 16
    driver_ok_alone    [openamp] status goes from 0 to 4
    early_kick         [openamp] the driver kicks when it has written gfeatures, before DRIVER_OK
    reset_status       [openamp] what a driver writes to reset: 0, or 0x40
    clear_reset        [openamp] a device that waits and finds status 0x40 writes 0
    recycle_first      [openamp] a driver sends in used buffers before it takes one that was never used
    repost_used_length [openamp up to 2023.10] a driver posts a buffer again with the length that used.len gave
    write_flags        [lite] WRITE also on what the device only reads
    prefill            [lite] the driver pre-fills its tx used ring
    kick_always        [lite] the other end's suppression of doorbells is ignored
    ignore_event_idx   [openamp] EVENT_IDX is accepted and then not applied
    split, indirect    "tx", "rx", "tx+rx": the driver cuts buffers into header and payload; indirect tables
    dirty              a server leaves no byte of the file zero but the table's
    """

    whole_lengths: bool = False
    name_garbage: bool = False
    write_reserved: bool = False
    reserved_garbage: bool = False
    driver_ok_alone: bool = False
    early_kick: bool = False
    reset_status: int = 0
    clear_reset: bool = False
    recycle_first: bool = False
    repost_used_length: bool = False
    write_flags: bool = False
    prefill: bool = False
    kick_always: bool = False
    ignore_event_idx: bool = False
    split: str = ""
    indirect: str = ""
    dirty: bool = False


OPENAMP: dict[str, object] = {
    "whole_lengths": True,
    "name_garbage": True,
    "write_reserved": True,
    "driver_ok_alone": True,
    "early_kick": True,
    "reset_status": 0x40,
    "clear_reset": True,
    "recycle_first": True,
}
RPMSG_LITE: dict[str, object] = {
    "whole_lengths": True,
    "write_reserved": True,
    "reserved_garbage": True,
    "write_flags": True,
    "prefill": True,
    "kick_always": True,
}

# The rules that they break, each in the one way that is tolerated:
#   2.1.1-1           status 4 at DRIVER_OK, nothing but DRIVER_OK
#   2.7.5.1-2         WRITE on a message
#   2.7.7.1-2, 2.7.10.2-2  flags 1 with EVENT_IDX
#   2.7.8.2-2         used.len of a buffer that only the driver wrote is the length of its descriptors, always
#   3.1.1-5           a kick with status 0
#   rpmsg-ns-padding  bytes after the NUL of a name
#   rpmsg-reserved    hdr.reserved
#   used-prefilled    every buffer of vring1, in order, in its used ring at DRIVER_OK
TOLERATE_OPENAMP = frozenset({"2.1.1-1", "2.7.8.2-2", "3.1.1-5", "rpmsg-ns-padding"})
TOLERATE_RPMSG_LITE = frozenset({"2.7.5.1-2", "2.7.8.2-2", "rpmsg-reserved", "used-prefilled"})
TOLERABLE = TOLERATE_OPENAMP | TOLERATE_RPMSG_LITE | {"2.7.7.1-2", "2.7.10.2-2"}
