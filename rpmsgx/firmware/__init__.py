"""The firmware that comes with rpmsgx, built from csrc by tools/build_firmware.py."""

import os

from ..errors import FirmwareError

NAMES = ("sample", "flood", "crash")


def path(name: str, cpu: str = "cortex-m4") -> str:
    """The path of a shipped image by its short name. Raises FirmwareError if there is none."""
    file = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}-{cpu}.elf")
    if name not in NAMES or not os.path.exists(file):
        raise FirmwareError(f"no shipped firmware {name!r} for {cpu}; there are {', '.join(NAMES)}")
    return file
