# SPDX-License-Identifier: BSD-3-Clause
"""Firmware for the remotes of module rproc_sim: data only, nobody runs it."""

from __future__ import annotations

from unit import elfbuilder

from rpmsgx.virtio import table

DA = 0x1000_0000
TABLE = DA + 0x1000
TRACES = (DA + 0x2000, DA + 0x2100)


def firmware(*more: table.Entry, with_table: bool = True) -> bytes:
    """What the remotes boot: a vdev, two traces, and `more`."""
    vring = table.Vring(da=table.ADDR_ANY, align=4096, num=256)
    traces = [table.Trace(da, 0x100, f"trace{i}") for i, da in enumerate(TRACES)]
    entries = [table.Vdev((vring, vring), dfeatures=1), *traces, *more]
    loads = [
        elfbuilder.Load(DA, b"the code" * 16),
        elfbuilder.Load(TRACES[0], b"hello from the trace\n", memsz=0x100),
        elfbuilder.Load(TRACES[1], b"and from the second one\n", memsz=0x100),
    ]
    return elfbuilder.build(loads, table=table.build(entries) if with_table else None, table_da=TABLE)
