"""See bench.instructions."""

from __future__ import annotations

import sys

from ..limits import Missing
from . import ALLOWED, BUDGET, budgets, core, python, write

KEPT, BROKEN, NONE = 0, 1, 3


def main() -> int:
    try:
        counted = dict([core(), python()])
    except Missing as error:
        print(error)
        return NONE
    if sys.argv[1:] == ["--write"]:
        write(counted)
    known, status = budgets(), KEPT
    for key, counts in counted.items():
        if key not in known:
            print(f"{key}: no budget in {BUDGET.name}; python -m bench.instructions --write makes one")
            status = max(status, NONE)
            continue
        print(f"{key}: instructions a message, and the budget")
        for name, count in counts.items():
            budget = known[key].get(name, 0.0)
            over = count > budget * ALLOWED
            print(f"  {name:<48}{count:>8.1f}{budget:>8.1f}{'  TOO MANY' if over else ''}")
            if over:
                status = BROKEN
    return status


if __name__ == "__main__":
    sys.exit(main())
