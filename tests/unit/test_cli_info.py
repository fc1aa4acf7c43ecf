"""`rpmsgx info`."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
from elfbuilder import Load, build
from support import require

from rpmsgx.cli import info
from rpmsgx.virtio import table as rsc


def rpmsgx(*args: str) -> int:
    parser = argparse.ArgumentParser("rpmsgx")
    info.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(args)
    status = arguments.run(arguments)
    assert isinstance(status, int)
    return status


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    table = rsc.build(
        [
            rsc.Carveout(0x2000_0000, 0x8000, "ram", 1),
            rsc.Devmem(0x4000_0000, 0x4800_0000, 0x1000, "uart"),
            rsc.Trace(0x2000_0100, 0x400, "trace0"),
            rsc.Vdev(
                (rsc.Vring(rsc.ADDR_ANY, 0x1000, 256, 1), rsc.Vring(0x3000_0000, 0x1000, 256, 2)),
                dfeatures=1,
                config=b"abcd",
            ),
            rsc.Vendor(128, b"1234"),
            rsc.Unknown(99, b""),
        ]
    )
    path = tmp_path / "echo.elf"
    loads = [Load(0x100, b"code", memsz=0x40), Load(0x2000_0000, memsz=0x1000, flags=6)]
    path.write_bytes(build(loads, table=table))
    return path


def test_text_shows_what_a_boot_needs(firmware: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rpmsgx("info", str(firmware)) == 0
    out = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert lines >= {
        "echo.elf: ARM, 32 bits",
        f"sha256 {hashlib.sha256(firmware.read_bytes()).hexdigest()}",
        "entry 0x100",
        "0x00000100 0x40 0x4 r-x 0x00000100",
        "0x20000000 0x1000 0x0 rw- 0x20000000",
        "0x20000000 0x20001000 4096",
        "0x0028 carveout da 0x20000000 pa any len 0x8000 flags 0x1 'ram'",
        "0x0060 devmem da 0x40000000 pa 0x48000000 len 0x1000 flags 0x0 'uart'",
        "0x0098 trace da 0x20000100 len 0x400 'trace0'",
        "0x00c8 vdev id 7 notifyid 0x0 dfeatures 0x1 gfeatures 0x0 status 0x0 config 4 bytes",
        "vring 0 da any num 256 align 0x1000 notifyid 0x1 size 0x2806",
        "vring 1 da 0x30000000 num 256 align 0x1000 notifyid 0x2 size 0x2806",
        "0x0110 vendor type 128 4 bytes",
        "0x0118 unknown type 99 0 bytes",
        "resource table: offset[5]: unknown type 99",
    }
    columns = out[out.index("Segments") :].splitlines()[1:4]
    assert len({len(line) for line in columns}) == 1


def test_json_is_one_object_with_everything(firmware: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rpmsgx("info", "--json", str(firmware)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is True and shown["file"] == str(firmware)
    assert (shown["machine"], shown["machine_name"], shown["bits"], shown["entry"]) == (40, "ARM", 32, 0x100)
    assert shown["sha256"] == hashlib.sha256(firmware.read_bytes()).hexdigest()
    assert shown["segments"][0] == {
        "da": 0x100,
        "vaddr": 0x100,
        "filesz": 4,
        "memsz": 0x40,
        "flags": 5,
        "offset": 52 + 3 * 32,
    }
    assert shown["memory"][0] == {"da": 0x100, "size": 0x40}
    table = shown["resource_table"]
    assert table["da"] == 0x1000_0000
    kinds = [entry["kind"] for entry in table["entries"]]
    assert kinds == ["carveout", "devmem", "trace", "vdev", "vendor", "unknown"]
    assert table["entries"][3]["vrings"][1] == {
        "da": 0x3000_0000,
        "align": 0x1000,
        "num": 256,
        "notifyid": 2,
        "pa": 0,
        "size": 0x2806,
    }
    assert table["entries"][3]["config"] == b"abcd".hex()
    assert shown["problems"] == ["resource table: offset[5]: unknown type 99"]


def test_an_image_without_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bare.elf"
    path.write_bytes(build([Load(0, b"code")]))
    assert rpmsgx("info", str(path)) == 0
    out = capsys.readouterr().out
    assert "Resource table: none" in out and "Problems: none" in out
    assert rpmsgx("info", str(path), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["resource_table"] is None and shown["problems"] == []


def test_a_bad_file_says_why_and_fails(firmware: Path, capsys: pytest.CaptureFixture[str]) -> None:
    firmware.write_bytes(firmware.read_bytes()[:-1])
    assert rpmsgx("info", str(firmware)) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "echo.elf: e_shoff is" in shown.err
    assert rpmsgx("info", "--json", str(firmware)) == 1
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert (
        answer["ok"] is False and "e_shoff is" in answer["error"] and answer["problems"] == [answer["error"]]
    )
    assert "e_shoff is" in shown.err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rpmsgx("info", str(tmp_path / "none")) == 1
    assert capsys.readouterr().err == f"rpmsgx info: {tmp_path}/none: No such file or directory\n"
    assert rpmsgx("info", str(tmp_path)) == 1
    assert "not a regular file" in capsys.readouterr().err


def test_names_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x07\x9b"
    path = tmp_path / os.fsdecode(b"\x1b]0;x\x07\xff.elf")
    path.write_bytes(build([Load(0, b"code")], table=rsc.build([rsc.Trace(0, 1, evil)])))
    for args in (["info", str(path)], ["info", "--json", str(path)], ["info", f"{path}\x1b"]):
        rpmsgx(*args)
        shown = capsys.readouterr()
        text = (shown.out + shown.err).replace("\n", "")
        assert text and text.isprintable()


BOARD = Path(__file__).parents[2] / "examples" / "boards" / "unicorn.toml"


def test_on_a_board_the_verdict_is_that_of_a_boot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    from rpmsgx import Error, Remoteproc
    from rpmsgx import firmware as shipped

    vrings = rsc.Vring(rsc.ADDR_ANY, 0x1000, 4096), rsc.Vring(rsc.ADDR_ANY, 0x1000, 4096)
    images = {
        "good": Path(shipped.path("sample")).read_bytes(),
        "machine": build([Load(0x100, b"code")], header={"machine": 243}),
        "memory": build([Load(0x7000_0000, b"code")]),
        "rings": build([Load(0x40, b"code")], table=rsc.build([rsc.Vdev(vrings, dfeatures=1)]), table_da=0x2000_0000),
        "trace": build([Load(0x40, b"code")], table=rsc.build([rsc.Trace(0x7000_0000, 64, "t")]), table_da=0x2000_0000),
    }
    for name, data in images.items():
        file = tmp_path / f"{name}.elf"
        file.write_bytes(data)
        status = rpmsgx("info", str(file), "--board", str(BOARD), "--json")
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (status == 0) == (name == "good"), told
        if status:
            with pytest.raises(Error) as caught, Remoteproc(board=BOARD, firmware=str(file)):
                pass
            assert str(caught.value) in told["error"] or told["error"] in str(caught.value), name
