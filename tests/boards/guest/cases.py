# SPDX-License-Identifier: BSD-3-Clause
"""What the programs inside the guests share. No pytest: a guest's Python need not have it."""

from __future__ import annotations

import contextlib
import json
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

from rpmsgx.errors import ResourceError

WAIT = 10.0


@contextlib.contextmanager
def refused(text: str) -> Iterator[None]:
    try:
        yield
    except ResourceError as error:
        assert re.search(text, str(error)), f"{error} does not say {text}"
    else:
        raise AssertionError(f"not refused: {text}")


def tell(cases: Iterable[Callable[[], None]]) -> None:
    """Run them one after the other, and print for each how it ended, as a line of JSON."""
    for case in cases:
        begin = time.monotonic()
        error = ""
        try:
            case()
        except Exception:
            error = traceback.format_exc()
        told = {"case": case.__name__, "error": error, "seconds": time.monotonic() - begin}
        print(json.dumps(told), flush=True)
