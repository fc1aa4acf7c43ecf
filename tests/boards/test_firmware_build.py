# SPDX-License-Identifier: BSD-3-Clause
"""The shipped firmware is what its sources make, byte for byte."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys

import pytest
from support import ROOT, require, run

from rpmsgx import FirmwareError, firmware

DIRECTORY = ROOT / "rpmsgx" / "firmware"
MANIFEST = json.loads((DIRECTORY / "manifest.json").read_text())


def test_manifest() -> None:
    assert sorted(MANIFEST["images"]) == sorted(path.name for path in DIRECTORY.glob("*.elf"))
    for name, sha256 in MANIFEST["images"].items():
        assert hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest() == sha256


def test_rebuild() -> None:
    try:
        installed = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        installed = "none"
    wanted = MANIFEST["ziglang"]
    require(installed == wanted, f"ziglang {wanted} makes these bytes, installed is {installed}")
    assert run([sys.executable, ROOT / "tools" / "build_firmware.py", "--check"], timeout=300) == (
        0,
        "every byte agrees\n",
    )


def test_path() -> None:
    for name in firmware.NAMES:
        with open(firmware.path(name), "rb") as file:
            assert file.read(4) == b"\x7fELF"
    for name, cpu in (("missing", "cortex-m4"), ("sample", "z80"), ("../firmware/sample", "cortex-m4")):
        with pytest.raises(FirmwareError, match="no shipped firmware"):
            firmware.path(name, cpu)
