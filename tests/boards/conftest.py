# SPDX-License-Identifier: BSD-3-Clause
"""`platform`: every platform that runs csrc's applications on this machine, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support_boards import PLATFORMS, make

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rpmsgx.remoteproc.platform import Platform


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with make(request.param) as made:
        yield made
