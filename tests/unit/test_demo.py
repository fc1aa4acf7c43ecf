"""`rpmsgx demo`, run as people run it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform as machine
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import require

from rpmsgx.firmware import path
from rpmsgx.remoteproc.native import native_sources_sha256

SAMPLE = "rpmsg-client-sample"


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rpmsgx", "demo", *arguments], timeout=100, capture_output=True, text=True
    )


def sha256(file: str | Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def told(*arguments: str) -> dict[str, Any]:
    """The one JSON object that is printed."""
    done = demo("--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check(result: dict[str, Any], count: int) -> None:
    assert list(result) == [
        "platform", "cpu", "firmware", "states", "channels", "sent", "received", "mismatches", "trace", "round_trip_us"
    ]  # fmt: skip
    assert list(result["firmware"]) == ["name", "sha256"] and len(result["firmware"]["sha256"]) == 64
    assert result["states"] == ["offline", "running", "offline"]
    assert {"name": SAMPLE, "addr": 1024} in result["channels"]
    assert (result["sent"], result["received"], result["mismatches"]) == (count, count, 0)
    assert result["trace"].startswith("sample: up\n") and "sample: first message" in result["trace"]
    assert list(result["round_trip_us"]) == ["p50", "p99"]
    assert 0 < result["round_trip_us"]["p50"] <= result["round_trip_us"]["p99"]


@pytest.fixture
def unicorn() -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")


def test_native() -> None:
    result = told("--platform", "native")
    check(result, 100)
    assert (result["platform"], result["cpu"]) == ("native", machine.machine())
    assert result["firmware"] == {"name": "native", "sha256": native_sources_sha256()}
    assert "sample: messages 100\n" in result["trace"]


@pytest.mark.usefixtures("unicorn")
def test_unicorn_is_the_default() -> None:
    result = told()
    check(result, 100)
    assert (result["platform"], result["cpu"]) == ("unicorn", "cortex-m4")
    assert result["firmware"] == {"name": "sample-cortex-m4.elf", "sha256": sha256(path("sample"))}


@pytest.mark.usefixtures("unicorn")
def test_a_firmware_of_ones_own(tmp_path: Path) -> None:
    """It is that file which runs, byte for byte: its trace differs."""
    data = Path(path("sample")).read_bytes()
    mine = tmp_path / "mine and only.elf"
    mine.write_bytes(data.replace(b"first message, from\0", b"1st message ,  from\0"))
    assert sha256(mine) != sha256(path("sample"))
    result = told("--platform", "unicorn", "--firmware", str(mine), "--count", "3")
    assert result["firmware"] == {"name": mine.name, "sha256": sha256(mine)}
    assert "sample: 1st message ,  from 1024\n" in result["trace"]
    assert result["sent"] == result["received"] == 3


@pytest.mark.usefixtures("unicorn")
@pytest.mark.parametrize("what", ["missing", "truncated", "text", "directory", "riscv"])
def test_a_bad_firmware_is_one_line(tmp_path: Path, what: str) -> None:
    file = tmp_path / "bad.elf"
    data = bytearray(Path(path("sample")).read_bytes())
    if what == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif what == "text":
        file.write_text("no firmware\n" * 99)
    elif what == "directory":
        file.mkdir()
    elif what == "riscv":
        data[18] = 243
        file.write_bytes(data)
    for json_too in ((), ("--json",)):
        done = demo("--firmware", str(file), *json_too)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and "bad.elf" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("unicorn")
def test_a_firmware_without_the_service_is_told_with_its_trace() -> None:
    done = demo("--firmware", "flood", "--timeout", "0.5")
    assert done.returncode == 1
    assert SAMPLE in done.stderr and "rpmsg-flood" in done.stderr and "Traceback" not in done.stderr


def test_for_people() -> None:
    done = demo("--platform", "native", "--count", "5")
    assert (done.returncode, done.stderr) == (0, "")
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words[0] == "offline" and words[-1] == "offline"
    for word in ("firmware", "running", "channel", "messages", "latency", "trace"):
        assert word in words, done.stdout
    assert "5 sent, 5 received, 0 mismatches" in done.stdout
    assert "\x1b" not in done.stdout and "\r" not in done.stdout  # no terminal


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", "0"),
        ("--count", "x"),
        ("--platform", "none"),
        ("--timeout", "x"),
        ("--timeout", "-1"),
        ("--timeout", "nan"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = demo("--platform", "native", *arguments)
    assert done.returncode in (1, 2) and done.stdout.count("mismatches") == 0
    assert "Traceback" not in done.stderr and "error" in done.stderr


def test_the_installed_command_is_the_same() -> None:
    command = shutil.which("rpmsgx", path=os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])))
    require(command is not None, "the command rpmsgx is not installed")
    done = subprocess.run([str(command), "demo", "--help"], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == demo("--help").stdout.replace("__main__.py", "rpmsgx")
