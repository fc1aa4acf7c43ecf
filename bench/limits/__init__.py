"""What bounds a transport on this machine, in plain C: bench/limits/limits.c, built with the compiler that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-O3", "-std=gnu11", "-I", str(HERE.parent.parent / "csrc"))
LIMIT = 60.0  # seconds that a program may take


class Missing(Exception):
    """It cannot be measured here; str() is the reason."""


def compiler() -> str:
    """The C compiler: $CC, or gcc. Raises Missing."""
    name = os.environ.get("CC", "gcc").split()[0]
    if shutil.which(name) is None:
        raise Missing(f"there is no C compiler {name!r}")
    return name


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rpmsgx-limits-")


@cache
def program() -> str:
    """The path of limits.c, built. Raises Missing."""
    path = os.path.join(_folder().name, "limits")
    done = subprocess.run([compiler(), *FLAGS, str(HERE / "limits.c"), "-o", path], capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"limits.c does not compile: {done.stderr[-400:]}")
    return path


def limit(*arguments: object) -> float:
    """Nanoseconds, as limits.c prints them for these arguments. Raises Missing, CalledProcessError, TimeoutExpired."""
    done = subprocess.run(
        [program(), *map(str, arguments)], stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True
    )
    return float(done.stdout)
