# SPDX-License-Identifier: BSD-3-Clause
"""docs/dropped.md names every counter that there is, and no other."""

from __future__ import annotations

import re

from support import ROOT

import rpmsgx

NAMED = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def test_the_page_and_the_counters_agree() -> None:
    page = (ROOT / "docs" / "dropped.md").read_text(encoding="utf-8")
    ours, _, _ = page.partition("## By the kernel")
    of_bus, _, of_endpoint = ours.partition("`Endpoint.counters`:")
    with rpmsgx.open("virtual:dropped", "driver") as bus:
        counters = {name for name in bus.counters if name.startswith(("dropped_", "ns_"))}
        others = set(bus.counters) - counters - {"kicks"}
        endpoint = bus.create_endpoint()
        assert set(NAMED.findall(of_bus)) == counters
        assert set(NAMED.findall(of_endpoint)) == {"dropped"} <= set(endpoint.counters)
    assert all(f"`{name}`" in ours for name in others)
