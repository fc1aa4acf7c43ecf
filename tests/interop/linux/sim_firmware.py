# SPDX-License-Identifier: BSD-3-Clause
"""Firmware for the remotes of module rproc_sim: data only. Who runs it, if anybody, is a process of the guest."""

from __future__ import annotations

from collections.abc import Sequence

from unit import elfbuilder

from rpmsgx.virtio import table

DA = 0x1000_0000
SIZE = 1 << 20
TABLE = DA + 0x1000
TRACES = (DA + 0x2000, DA + 0x2100)
VRINGS = (DA + 0x80000, DA + 0x84000)  # with the module's parameter `vrings`
ANYWHERE = (table.ADDR_ANY, table.ADDR_ANY)


def resource_table(*more: table.Entry, vrings: Sequence[int] = ANYWHERE, features: int = 1) -> bytes:
    """A vdev, two traces, and `more`."""
    rings = tuple(table.Vring(da, align=4096, num=256) for da in vrings)
    traces = [table.Trace(da, 0x100, f"trace{i}") for i, da in enumerate(TRACES)]
    return table.build([table.Vdev(rings, dfeatures=features), *traces, *more])


def firmware(
    *more: table.Entry, with_table: bool = True, vrings: Sequence[int] = ANYWHERE, features: int = 1, bits: int = 32
) -> bytes:
    """What the remotes boot: code, two traces, and `resource_table`."""
    loads = [
        elfbuilder.Load(DA, b"the code" * 16),
        elfbuilder.Load(TRACES[0], b"hello from the trace\n", memsz=0x100),
        elfbuilder.Load(TRACES[1], b"and from the second one\n", memsz=0x100),
    ]
    found = resource_table(*more, vrings=vrings, features=features) if with_table else None
    return elfbuilder.build(loads, bits=bits, table=found, table_da=TABLE)
