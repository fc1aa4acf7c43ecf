# SPDX-License-Identifier: BSD-3-Clause
"""`rpmsgx board check`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from support import ROOT

from rpmsgx.cli import board

EXAMPLES = sorted(map(str, (ROOT / "examples" / "boards").glob("*.toml")))
BAD = """\
platfrm = "native"
[[memory]]
name = "a\\u001b[31m"
da = 0
size = "1 KB"
"""


def rpmsgx(*args: str) -> int:
    parser = argparse.ArgumentParser("rpmsgx")
    board.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(args)
    status = arguments.run(arguments)
    assert isinstance(status, int)
    return status


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.toml"
    path.write_text(BAD)
    return str(path)


def test_the_map_of_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "examples" / "boards" / "unicorn.toml")
    assert rpmsgx("board", "check", path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert (
        out
        == f"""\
{path}: cortex-m4, platform unicorn, firmware sample, da in descriptors

  da          pa
  0x00000000  0x90000000  +- rom: 256 KiB, cached, memfd ---------------------+
  0x00040000  0x90040000  +---------------------------------------------------+
  0x20000000  0x91000000  +- ram: 128 KiB, cached, memfd ---------------------+
  0x20020000  0x91020000  +---------------------------------------------------+
  0x60000000  0x92000000  +- shm: 1 MiB, cached, memfd, rings and buffers ----+
  0x60080000  0x92080000  |   carveout vdev0buffer, 256 KiB                   |
  0x60100000  0x92100000  +---------------------------------------------------+
"""
    )


def test_the_map_of_what_has_no_place_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        """
platform = "unicorn"
shared = "shm"
table_da = 0x20000100
memory = [
  {name = "shm", da = 0x60000000, pa = 0x900000000, size = "1MiB", backend = "file:a-file-in-some-long-place"},
  {name = "ram", da = 0x20000000, size = "128KiB", kind = "uncached"},
  {name = "rom", da = 0, pa = 0x50000000, size = "256KiB"},
]
carveout = [{name = "any", size = 100}, {name = "by pa", size = 4096, pa = 0x900001000}]
trace = [{name = "t", size = 0x1001, da = 0x20000000}]
devmem = [{name = "uart", size = 0x1000, da = 0x20000000, pa = 0x48000000}]
"""
    )
    assert rpmsgx("board", "check", str(path)) == 0
    lines = capsys.readouterr().out.splitlines()
    box = [line for line in lines if line.startswith("  0x")]
    assert [line[:24] for line in box] == [
        "  0x00000000  0x50000000",
        "  0x00040000  0x50040000",
        "  0x20000000  0x20000000",
        "  0x20000000  0x20000000",
        "  0x20000100  0x20000100",
        "  0x20020000  0x20020000",
        "  0x60000000  0x900000000"[:24],
        "  0x60001000  0x900001000"[:24],
        "  0x60100000  0x900100000"[:24],
    ]
    assert "|   trace t, 4097 bytes " in box[3] and "resource table, where one is built" in box[4]
    assert "|   carveout by pa, 4 KiB " in box[7]
    assert f"file:{tmp_path}/a-file-in-some-long-place, rings and buffers --+" in box[6]
    assert len({len(line) for line in box[6:]}) == 1  # a box stays one, however long its title
    assert lines[-2:] == [
        "  carveout any, 100 bytes, placed at the boot",
        "  devmem uart, 4 KiB, da 0x20000000, pa 0x48000000",
    ]


def test_every_error_of_every_file(bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.toml")
    assert rpmsgx("board", "check", bad, EXAMPLES[0], missing) == 1
    out, err = capsys.readouterr()
    assert EXAMPLES[0] in out and bad not in out
    assert [line.partition(";")[0] for line in err.splitlines()] == [
        f"{bad}:1: platform is missing",
        f"{bad}:1: shared is missing",
        f"{bad}:1: there is no key 'platfrm'",
        f"{bad}:3: [[memory]] name: 'a\\x1b[31m' is no text",
        f"{bad}:5: [[memory]] size: '1 KB' is no size",
        f"{missing}: No such file or directory",
    ]


def test_json(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rpmsgx("board", "check", "--json", *EXAMPLES) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [item["file"] for item in shown] == EXAMPLES
    assert all(item["ok"] and item["problems"] == [] for item in shown)
    unicorn = next(item["board"] for item in shown if item["board"]["name"] == "cortex-m4")
    assert unicorn["memory"][2] == {
        "name": "shm",
        "da": 0x60000000,
        "pa": 0x92000000,
        "size": 0x100000,
        "backend": "memfd",
        "kind": "cached",
        "coherent": False,
            "offset": 0,
        "line": unicorn["memory"][2]["line"],
    }
    assert [claim["name"] for claim in unicorn["claims"]] == ["vdev0buffer"]

    assert rpmsgx("board", "check", "--json", bad, EXAMPLES[0]) == 1
    broken, good = json.loads(capsys.readouterr().out)
    assert good["ok"] and not broken["ok"] and broken["board"] is None
    assert {"line": 1, "text": "platform is missing; add platform = ..."} in broken["problems"]


@pytest.mark.parametrize("arguments", [[], ["check"], ["chek", "x"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        rpmsgx("board", *arguments)
    assert caught.value.code == 2
