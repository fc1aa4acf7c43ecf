# SPDX-License-Identifier: BSD-3-Clause
"""Board files: what is taken, what is refused, and that every refusal names its line and the cure."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, require, run
from support_boards import boot, echo, needs

import rpmsgx
from rpmsgx.remoteproc import backends, board, board_keys, strict_toml
from rpmsgx.remoteproc.backends import Memory
from rpmsgx.remoteproc.board import Board, Claim
from rpmsgx.remoteproc.resources import plan
from rpmsgx.remoteproc.strict_toml import MAX_PROBLEMS, MAX_SIZE, key_lines
from rpmsgx.virtio.table import Carveout, build, parse

EXAMPLES = ROOT / "examples" / "boards"

GOOD = """\
platform = "unicorn"
shared = "shm"

[[memory]]
name = "rom"
da = 0x0
pa = 0x9000_0000
size = "256KiB"

[[memory]]
name = "ram"
da = 0x20000000
size = "128KiB"

[[memory]]
name = "shm"
da = 0x60000000
size = "1MiB"
"""
NATIVE = 'platform = "native"\n'


def write(folder: Path, text: str | bytes, name: str = "b.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problems(folder: Path, text: str | bytes) -> list[str]:
    """Each problem as "LINE: text"; load() raises exactly these."""
    path = write(folder, text)
    found, wrong = board.check(path)
    assert (found is None) == bool(wrong)
    if wrong:
        with pytest.raises(rpmsgx.BoardError) as caught:
            board.load(path)
        assert str(caught.value).split("\n") == [f"{path}:{line}: {what}" for line, what in wrong]
    return [f"{line}: {what}" for line, what in wrong]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- what is taken -----------------------------------------------------------------------------------------------------


def test_every_key(tmp_path: Path) -> None:
    text = """
name = "m4"
platform = "unicorn"
firmware = "./echo.elf"
firmware_dirs = ["images", "/lib/fw"]
auto_boot = false
shared = "shm"
desc_addr = "pa"
table_da = 0x20001000
recovery = "once"
recovery_by = "attach"
coredump = "inline"
coredump_dir = "dumps"
at_exit = "detach"
presence = "unix:/run/x"
spin = 0.0001
"""
    text += GOOD.partition("\n\n")[2].replace("128KiB", "128 KiB") + 'kind = "uncached"\ncoherent = true\n'
    text += """
[[carveout]]
name = "vdev0buffer"
da = 0x60080000
pa = 0x60080000
size = "256KiB"
[[trace]]
name = "trace0"
da = 0x20000000
size = 0x1000
[[devmem]]
name = "uart"
da = 0x40000000
pa = 0x48000000
size = 4096
[[vdev]]
vrings = [[256, 4096], [128, 64]]
id = 7
features = 0x1
config = "01 ff"
"""
    found = board.load(write(tmp_path, text))
    assert found.path == str(tmp_path / "b.toml")
    assert found.memory == (
        Memory("rom", 0, 0x90000000, 0x40000, line=17),
        Memory("ram", 0x20000000, 0x20000000, 0x20000, line=23),
        Memory("shm", 0x60000000, 0x60000000, 0x100000, kind="uncached", coherent=True, line=28),
    )
    assert found.claims == (
        Claim("carveout", "vdev0buffer", 0x40000, 0x60080000, 0x60080000, line=35),
        Claim("trace", "trace0", 0x1000, 0x20000000, line=40),
        Claim("devmem", "uart", 4096, 0x40000000, 0x48000000, line=44),
    )
    plain = {
        "name": "m4",
        "platform": "unicorn",
        "options": {},
        "shared": "shm",
        "desc_addr": "pa",
        "firmware": str(tmp_path / "echo.elf"),
        "firmware_dirs": (str(tmp_path / "images"), "/lib/fw"),
        "auto_boot": False,
        "recovery": "once",
        "recovery_by": "attach",
        "coredump": "inline",
        "coredump_dir": str(tmp_path / "dumps"),
        "at_exit": "detach",
        "presence": "unix:/run/x",
        "spin": 0.0001,
    }
    assert {key: getattr(found, key) for key in plain} == plain
    with pytest.raises(AttributeError):
        found.name = "other"  # type: ignore[misc]


def test_resources_are_registered(tmp_path: Path) -> None:
    """A table that is built of them, where the file says, and a conflict that names file and line."""
    text = GOOD.replace("shared", "table_da = 0x20000000\nshared", 1)
    text += '[[carveout]]\nname = "vdev0buffer"\nda = 0x60080000\nsize = "256KiB"\n'
    text += '[[trace]]\nname = "trace0"\nsize = 0x100\nda = 0x20001000\n[[vdev]]\nvrings = [[256, 4096], [256, 4096]]\n'
    with open_board(tmp_path, text).open_platform() as platform:
        resources = board.load(tmp_path / "b.toml").resources
        found = plan(resources, None, None, platform.space, platform.shared)
        assert found.table_da == 0x20000000
        places = {carveout.name: carveout.da for carveout in found.carveouts}
        assert places.keys() == {"vdev0buffer", "vdev0vring0", "vdev0vring1"} and places["vdev0buffer"] == 0x60080000
        assert [trace.name for trace in found.traces] == ["trace0"]
        table = parse(build([Carveout(0x60000000, 64, "vdev0buffer")]))
        with pytest.raises(rpmsgx.ResourceError, match=r"b\.toml:20 gives 0x40000 bytes at da 0x60080000"):
            plan(resources, table, 0x20000000, platform.space, platform.shared)


def test_what_is_not_said(tmp_path: Path) -> None:
    found = board.load(write(tmp_path, NATIVE, "my-board.toml"))
    assert found.name == "my-board"
    assert (found.memory, found.firmware_dirs, found.options, found.spin) == ((), (), {}, 0.0)
    assert (found.auto_boot, found.recovery, found.coredump) == (True, "enabled", "disabled")
    for key in "shared desc_addr settle firmware recovery_by coredump_dir at_exit presence".split():
        assert getattr(found, key) is None


def test_carriage_returns(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD.replace("\n", "\r\n")) == []
    [problem] = problems(tmp_path, GOOD.replace("size", "siez", 1).replace("\n", "\r\n"))[1:]
    assert problem.startswith("8: ")


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    # file: the problems, by line
    "": ["1: platform is missing; add platform = ..."],
    "platform = 1": ["1: platform: 1 is no text; write printable characters in quotes"],
    'platform = "unicron"': ["1: platform: there is no platform 'unicron'; write '"],
    f"{NATIVE}\nautoboot = true": ["3: there is no key 'autoboot'; did you mean 'auto_boot'?"],
    f"{NATIVE}zzz = 1": ["2: there is no key 'zzz'; there are name, platform, "],
    f'{NATIVE}"a\\nb" = 1': ["2: there is no key 'a\\nb'"],
    f'{NATIVE}auto_boot = "yes"': ["2: auto_boot: 'yes' is no boolean; write true or false"],
    f'{NATIVE}recovery = "twice"': ["2: recovery: 'twice' is not known; write 'enabled', 'disabled' or 'once'"],
    f"{NATIVE}recovery = [1]": ["2: recovery: [1] is not known"],
    f"{NATIVE}settle = 0.5": ["2: platform 'native' sees to settle itself; take it out"],
    f"{NATIVE}settle = nan": ["2: settle: nan is no time; write seconds from 0 to 3600"],
    f"{NATIVE}settle = true": ["2: settle: true is no time"],
    f"{NATIVE}spin = -1": ["2: spin: -1 is no time"],
    f'{NATIVE}firmware_dirs = "a"': ["2: firmware_dirs: 'a' is no list; write it in [brackets]"],
    f"{NATIVE}firmware_dirs = [1]": ["2: firmware_dirs: 1 is no text"],
    f'{NATIVE}name = ""': ["2: name: '' is no text"],
    f'{NATIVE}name = "{"x" * 32}"': ["2: name: 'xxx"],
    f'{NATIVE}firmware = "../fw.elf"': ["2: firmware: "],
    f'{NATIVE}firmware = "fw/"': ["2: firmware: 'fw/' is no name of a firmware file"],
    f'{NATIVE}presence = "unix"': ["2: presence: 'unix' is no service; write 'unix:PATH', 'path:PATH', 'pid:NUMBER', "],
    f'{NATIVE}presence = "qrtr:x"': ["2: presence: 'qrtr:x' is no service"],
    f"{NATIVE}table_da = 0x100000000": ["2: table_da: 0x100000000 is out of range; write 0x0 to 0xffffffff"],
    f'{NATIVE}table_da = "0x10"': ["2: table_da: '0x10' is no integer; write 0x1000 or 4096, without quotes"],
    f"{NATIVE}table_da = 0x1001": ["2: table_da: 0x1001 is not a multiple of 4; move it"],
    f"{NATIVE}options = 1": ["2: options: 1 is no table"],
    f"{NATIVE}memory = 1": ["2: memory is no list of tables; write [[memory]] above each"],
    f"{NATIVE}[memory]": ["2: memory is no list of tables; write [[memory]] above each"],
    f"{NATIVE}[[doorbell]]": ["2: doorbell: [{}] is no table; write it in [brackets] above its keys"],
    # the platform's options
    f"{NATIVE}[options]\nproces = true": ["3: [options] platform 'native' has no option 'proces'; did you mean 'proc"],
    f"{NATIVE}[options]\nzzz = true": ["3: [options] platform 'native' has no option 'zzz'; it has app, process"],
    f'{NATIVE}[options]\nprocess = "yes"': ["3: [options] process: 'yes' has the wrong type; write a value like fal"],
    f"{NATIVE}[options]\nprocess = 1": ["3: [options] process: 1 has the wrong type"],
    f'{NATIVE}[options]\ndesc_addr = "pa"': ["3: [options] desc_addr is no option but a key of the board; take it"],
    # memory
    f"{NATIVE}{GOOD.partition(chr(10))[2]}": [
        "2: platform 'native' sees to shared itself; take it out",
        "4: platform 'native' sees to memory itself; take it out",
    ],
    GOOD.replace('shared = "shm"\n', ""): [
        "1: shared is missing; name the memory for rings and buffers: 'rom', 'ram' or 'shm'"
    ],
    GOOD.replace('"shm"', '"shn"', 1): ["2: shared: no memory is called 'shn'; write 'rom', 'ram' or 'shm'; did you"],
    f'{NATIVE}shared = "shm"': [
        "2: platform 'native' sees to shared itself; take it out",
        "2: shared: no memory is called 'shm'; add a [[memory]] for it",
    ],
    GOOD.replace("da = 0x0\n", ""): ["4: [[memory]] da is missing; add da = ..."],
    GOOD.replace("da = 0x0\n", "da = -1\n"): ["6: [[memory]] da: -1 is out of range; write 0x0 to 0xffffffffffffffff"],
    GOOD.replace('"256KiB"', '"256KB"'): ["8: [[memory]] size: '256KB' is no size; write 0x1000, 4096, "],
    GOOD.replace('"256KiB"', '"0KiB"'): ["8: [[memory]] size: 0 is out of range; write 0x1 to 0x7fffffffffffffff"],
    GOOD.replace('"256KiB"', "0x40001"): [
        "4: platform 'unicorn': the firmware is linked for program memory at da 0x0",
        "8: [[memory]] size: 0x40001 is not a multiple of the page size 0x1000; write 0x41000",
    ],
    GOOD.replace('"256KiB"', "[4096]"): ["8: [[memory]] size: [0x1000] is no integer"],
    GOOD.replace('"ram"', '"rom"'): ["11: [[memory]] name: 'rom' is the name in line 5 already; choose another"],
    GOOD.replace("0x20000000", "0x20000"): [
        "4: platform 'unicorn': the firmware is linked for RAM at da 0x20000000 of 0x20000 bytes; there is none",
        "12: [[memory]] da: [0x20000, 0x40000) overlaps 'rom' in line 4, which ends at 0x40000; move one of them",
    ],
    GOOD.replace("0x9000_0000", "0x5FFFF000"): ["15: [[memory]] pa: [0x60000000, 0x60100000) overlaps 'rom' in line 4"],
    GOOD.replace("0x9000_0000", "0xffff_ffff_ffff_0000"): ["7: [[memory]] pa: [0xffffffffffff0000, 0x1000000000003000"],
    GOOD + 'kind = "normal"': ["19: [[memory]] kind: 'normal' is not known; write 'cached', 'uncached' or 'device'"],
    GOOD
    + 'backend = "men"': ["19: [[memory]] backend: 'men' is no backend; write 'memfd', 'hugepages', 'file:PATH', "],
    GOOD + 'backend = "file:"': ["19: [[memory]] backend: 'file:' is no backend; write 'file:PATH'"],
    GOOD + 'backend = "memfd:"': ["19: [[memory]] backend: 'memfd:' is no backend; write 'memfd'"],
    GOOD + 'backend = "shm:a/b"': ["19: [[memory]] backend: 'shm:a/b' is a path; write 'shm:NAME', or 'file:PATH'"],
    GOOD.replace("da = 0x60000000", "da = 0x1_0000_0000"): [
        "2: shared: 'shm' reaches da 0x100100000, and resource tables have 32 bits; share memory that ends at",
        "4: platform 'unicorn': the firmware is linked for shared memory at da 0x60000000 of 0x100000 bytes",
    ],
    GOOD.replace('shared = "shm"', 'shared = "ram"'): [
        "4: platform 'unicorn': region 'ram': the firmware shares da 0x6"
    ],
    GOOD + '[[memory]]\nname = "x"\nda = 0x40010000\nsize = 4096': [
        "4: platform 'unicorn': region 'x': da [0x40010000, 0x40011000) is the mailbox"
    ],
    # resources
    GOOD + "[[carveout]]": ["19: [[carveout]] name is missing", "19: [[carveout]] size is missing"],
    GOOD + '[[carveout]]\nname = "a"\nsize = 9\nda = 0x60100000': [
        "22: [[carveout]] da: [0x60100000, 0x60100009) is in no memory; choose a place in 'rom' [0x0, 0x400"
    ],
    GOOD + '[[trace]]\nname = "a"\nsize = 9\nda = 0x200ffff8': [
        "22: [[trace]] da: [0x200ffff8, 0x20100001) is in no me"
    ],
    GOOD: [],
    GOOD.replace("shared", "table_da = 0x10000000\nshared", 1): ["2: table_da: [0x10000000, 0x10000010) is in no mem"],
    GOOD.replace("da = 0x60000000", "pa = 0x92000000\nda = 0x60000000")
    + '[[carveout]]\nname = "a"\nsize = 16\npa = 0x60000000': [
        "23: [[carveout]] pa: [0x60000000, 0x60000010) is in no me"
    ],
    GOOD + '[[carveout]]\nname = "a"\nsize = 16\nda = 0x60000010\npa = 0x20000000': [
        "23: [[carveout]] pa: is 0x0 in 'ram', and da is 0x10 in 'shm'; take one of them out"
    ],
    NATIVE + '[[carveout]]\nname = "a"\nsize = 8\n[[carveout]]\nname = "a"\nsize = "8GiB"\n': [
        "6: [[carveout]] name: 'a' is the name in line 3 already; choose another",
        "7: [[carveout]] size: 0x200000000 is out of range; write 0x1 to 0xffffffff",
    ],
    NATIVE + '[[trace]]\nname = "a"\nsize = 8\n[[trace]]\nname = "a"\nsize = 16\n': ["6: [[trace]] name: 'a' is the n"],
    NATIVE + '[[carveout]]\nname = "a"\nsize = 0x1000\n' * 2: ["6: [[carveout]] name: 'a' is the name in line 3 alre"],
    NATIVE + '[[carveout]]\nname = "a"\nsize = 9\nda = 0\n[[carveout]]\nname = "b"\nsize = 9\nda = 8': [
        "9: [[carveout]] da: [0x8, 0x11) overlaps 'a' in line 2, which ends at 0x9; move one of them"
    ],
    NATIVE + '[[devmem]]\nname = "a"\nsize = 9\nda = 0': ["2: [[devmem]] pa is missing; add pa = ..."],
    NATIVE + "[[vdev]]\nvrings = [[3, 64]]": ["3: [[vdev]] vrings: [[3, 64]] is not 1 to 2 rings; write [[256, 4096]"],
    NATIVE + "[[vdev]]\nvrings = [[65536, 64]]": ["3: [[vdev]] vrings: [[0x10000, 64]] is not"],
    NATIVE + "[[vdev]]\nvrings = [[4, true]]": ["3: [[vdev]] vrings: [[4, true]] is not"],
    NATIVE + "[[vdev]]\nvrings = [4, 4]": ["3: [[vdev]] vrings: [4, 4] is not"],
    NATIVE + "[[vdev]]\nvrings = []": ["3: [[vdev]] vrings: [] is not"],
    NATIVE + '[[vdev]]\nvrings = [[4, 4]]\nconfig = "0"': ["4: [[vdev]] config: '0' is not bytes in hex"],
    # all at once
    'nam = "x"\nspin = "y"\n[options]\nq = 1\n[[memory]]\nnme = "a"\n': [
        "1: platform is missing",
        "1: shared is missing",
        "1: there is no key 'nam'; did you mean 'name'?",
        "2: spin: 'y' is no time",
        "5: [[memory]] da is missing",
        "5: [[memory]] name is missing",
        "5: [[memory]] size is missing",
        "6: [[memory]] there is no key 'nme'; did you mean 'name'?",
    ],
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(REFUSED[text]), found
    for problem, start in zip(found, REFUSED[text], strict=True):
        assert problem.startswith(start)


def test_cached_memory_that_others_write_must_be_coherent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not this machine's own; no such backend is built in yet, so one is put there."""
    foreign = backends.Backend(backends.BACKENDS["memfd"].map, "", own=False)
    monkeypatch.setitem(backends.BACKENDS, "bus", foreign)
    text = GOOD + 'backend = "bus"\n'
    [problem] = problems(tmp_path, text)
    assert problem.startswith("15: [[memory]] kind: nothing says that caches are coherent on 'bus'; write kind = ")
    for line in ('kind = "uncached"', 'kind = "device"', "coherent = true"):
        assert problems(tmp_path, text + line) == []
    assert problems(tmp_path, text + "coherent = false\n")


@pytest.mark.parametrize("text", ["unix:/run/x", "path:/run/x", "pid:123", "qrtr:14", "qrtr:14:1"])
def test_presence(tmp_path: Path, text: str) -> None:
    assert board.load(write(tmp_path, f'{NATIVE}presence = "{text}"')).presence == text


def test_paths_are_seen_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD + 'backend = "file:x.bin"').rename(tmp_path / "other.toml")
    monkeypatch.chdir(tmp_path)
    assert board.load("other.toml").memory[-1].backend == f"file:{tmp_path}/x.bin"
    write(tmp_path, GOOD + 'backend = "file:/dev/null"')
    assert board.load("b.toml").memory[-1].backend == "file:/dev/null"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        board.load(tmp_path / "missing.toml")


PLATFORMS = """
class Made:
    def __init__(self, **keywords):
        self.keywords = keywords

def strict(memory, level, settle=None):
    ...
"""


def test_a_platform_that_is_not_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point, found as the interpreter finds those of installed packages: by a .dist-info on the path."""
    (tmp_path / "mine.py").write_text(PLATFORMS)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rpmsgx.platforms]\nmine = mine:Made\nstrict = mine:strict\ngone = mine:gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert problems(tmp_path, 'platform = "mine"\nsettle = 0.5\n[options]\nanything = 1\nmore = 2\n') == []
    made: Any = board.load(tmp_path / "b.toml").open_platform(more=3)
    assert made.keywords == {"anything": 1, "more": 3, "settle": 0.5}
    assert problems(tmp_path, 'platform = "strict"\nsettle = 1') == [
        "1: platform 'strict' needs level; add it to [options]",
        "1: platform 'strict' needs memory; add it to the board",
    ]
    assert problems(tmp_path, 'platform = "gone"') == ["1: platform: module 'mine' has no attribute 'gone'"]
    [problem] = problems(tmp_path, 'platform = "stric"')
    assert "write 'gone', 'linux', 'mine', " in problem and problem.endswith("; did you mean 'strict'?")


def test_the_page_names_every_key(tmp_path: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "boards.md").read_text(), re.DOTALL)
    said = tomllib.loads(text)
    assert said.keys() == board_keys.BOARD.keys()
    lists = {
        "memory": board_keys.MEMORY,
        "registers": board_keys.REGISTERS,
        "vdev": board_keys.VDEV,
        **board_keys.CLAIMS,
    }
    for table, known in lists.items():
        assert said[table][0].keys() == known.keys()
    assert said["core"].keys() == board_keys.CORE.keys() and said["doorbell"].keys() == board_keys.DOORBELL.keys()
    # A page with every key of every platform is for none of them, and is woken in two ways; else it is good.
    for problem in problems(tmp_path, text):
        assert "platform 'unicorn'" in problem or "poll is for a doorbell that nobody rings" in problem


# -- hostile files -----------------------------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text, start",
    [
        (b"\xff", "1: not UTF-8"),
        (b"a = 1\n\xef\xbb\xbf\xff", "2: not UTF-8"),
        (b"\xef\xbb\xbfa = 1", "1: not TOML"),
        ("\n\n[[memory", "3: not TOML"),
        ("a = 1\na = 2\n", "2: not TOML"),
        ('a = 1\nb = """x\n\n', "3: not TOML"),
        ("x = " + "[" * 30000, "1: tables or lists are nested too deep"),
        ("x = " + "[" * 9 + "]" * 9, "1: tables or lists are nested too deep"),
        ("platform" + ".a" * 9 + " = 1", "1: tables or lists are nested too deep"),
        ("\nplatform" + ".a" * 30000 + " = 1", "2: more than 100 dots in one line"),
        (f"{NATIVE}[options]\napp = [0x{'f' * 60000}]", "3: [options] app: [0xfff"),
        (f"{NATIVE}name = {{a = 0x{'f' * 60000}}}", "2: name: "),
        ("x = " + "9" * 5000, "1: "),
        (f"{NATIVE}table_da = 0x{'f' * 60000}", "2: table_da: 0xfff"),
        (f"{NATIVE}[[vdev]]\nvrings = [0x{'f' * 60000}]", "3: [[vdev]] vrings: "),
        (NATIVE + "#" * MAX_SIZE, "1: longer than 65536 bytes"),
        (f"{NATIVE}spin = 1979-05-27", "2: spin: datetime.date(1979, 5, 27) is no time"),
    ],
    ids=range(17),
)
def test_no_board_file(tmp_path: Path, text: str | bytes, start: str) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.startswith(start)
    assert len(problem) < 300


_PIECES = [*"[]ab. =\n'\"#\\1{},", "[[", "]]", "'''", '"""', "a = 1\n"]


@pytest.mark.hostile
def test_no_end_of_problems(tmp_path: Path) -> None:
    found = problems(tmp_path, "".join(f"k{i} = 1\n" for i in range(6000)))
    assert len(found) == MAX_PROBLEMS


@pytest.mark.hostile
@given(st.lists(st.sampled_from([*_PIECES, "[[memory]]\n", 'size = "1KiB"\n', "da = 1\n"])))
def test_any_text_is_a_board_or_has_problems(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp(), NATIVE + "".join(parts))
    found, wrong = board.check(path)
    assert (found is None) == bool(wrong)
    lines = path.read_text().count("\n") + 1
    assert all(1 <= line <= lines and text for line, text in wrong)


# -- lines -------------------------------------------------------------------------------------------------------------


def test_key_lines() -> None:
    text = '''# comment
a = "]" # [[b]]
"c.d"=1
'e' . f = """
[not]
key = 2
"""""
[table]
x = [1, # [
 2]
y = {z = 1}
   [[memory]]
   name = \'\'\'
[[memory]]
\'\'\'
   [[memory.sub]]
   k = 1
   [memory.sub.deep]
   "\\u0041" = ""
[[memory]] # second
name = "\\"#"
[ "q.r" . s ]
t = 1'''
    assert key_lines(text) == {
        ("a",): 2,
        ("c.d",): 3,
        ("e",): 4,
        ("e", "f"): 4,
        ("table",): 8,
        ("table", "x"): 9,
        ("table", "y"): 11,
        ("memory",): 12,
        ("memory", 0): 12,
        ("memory", 0, "name"): 13,
        ("memory", 0, "sub"): 16,
        ("memory", 0, "sub", 0): 16,
        ("memory", 0, "sub", 0, "k"): 17,
        ("memory", 0, "sub", 0, "deep"): 18,
        ("memory", 0, "sub", 0, "deep", "A"): 19,
        ("memory", 1): 20,
        ("memory", 1, "name"): 21,
        ("q.r",): 22,
        ("q.r", "s"): 22,
        ("q.r", "s", "t"): 23,
    }


def keys(value: Any, where: strict_toml.Where = ()) -> set[strict_toml.Where]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {where}.union(*(keys(item, (*where, key)) for key, item in items))


@given(st.lists(st.sampled_from(_PIECES), max_size=30))
def test_key_lines_of_any_toml(pieces: list[str]) -> None:
    """Every key that it finds is one, and every key of the top has a line."""
    text = "".join(pieces)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert lines.keys() <= keys(data)
    assert {where[0] for where in lines} == data.keys()


# -- opening -----------------------------------------------------------------------------------------------------------


def open_board(folder: Path, text: str) -> Board:
    require(importlib.util.find_spec("unicorn") is not None, "unicorn is not there")
    return board.load(write(folder, text))


def test_a_file_is_made_and_found_again(tmp_path: Path) -> None:
    found = open_board(tmp_path, GOOD + 'backend = "file:shared.bin"\n')
    before = descriptors()
    with found.open_platform() as platform:
        assert platform.shared.name == "shm" and platform.shared.pa == 0x60000000
        platform.space.write(0x60000010, b"kept")
        echo_on(platform)
    path = tmp_path / "shared.bin"
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (0x100000, 0o600)
    with found.open_platform() as platform:
        platform.space.write(0x60000000, b"seen")
        assert path.read_bytes()[:4] == b"seen"
    assert descriptors() == before


def echo_on(platform: Any) -> None:
    driver = boot(platform)
    driver.announced(2)
    echo(driver, 10)
    driver.shm.release()
    del driver


def test_shm(tmp_path: Path) -> None:
    name = f"rpmsgx-test-{os.getpid()}"
    path = Path("/dev/shm", name)
    found = open_board(tmp_path, GOOD + f'backend = "shm:{name}"\n')
    try:
        with found.open_platform() as platform:
            platform.space.write(0x60000000, b"seen")
            assert path.read_bytes()[:4] == b"seen"
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic links"):
            found.open_platform()
        assert not (tmp_path / "elsewhere").exists()
        path.unlink()
        if os.geteuid() == 0:
            path.write_bytes(bytes(0x100000))
            os.chown(path, 12345, 12345)
            # which the kernel may refuse before us (fs.protected_regular)
            ours = "b.toml:15: region 'shm': .* belongs to another user"
            with pytest.raises((rpmsgx.BoardError, PermissionError), match=f"{ours}|Permission denied"):
                found.open_platform()
    finally:
        path.unlink(missing_ok=True)


def test_nothing_stays_open_when_opening_fails(tmp_path: Path) -> None:
    found = open_board(tmp_path, GOOD + 'backend = "file:shared.bin"\n')
    before = descriptors()
    (tmp_path / "shared.bin").write_bytes(b"short")
    with pytest.raises(rpmsgx.BoardError, match=r"b.toml:15: region 'shm': size 0x100000 .* the file has 0x5 bytes"):
        found.open_platform()
    (tmp_path / "shared.bin").unlink()
    (tmp_path / "shared.bin").mkdir()
    with pytest.raises(IsADirectoryError):
        found.open_platform()
    assert descriptors() == before


def test_an_option_that_the_platform_refuses(tmp_path: Path) -> None:
    found = board.load(write(tmp_path, NATIVE + '[options]\napp = "x"\n'))
    require(importlib.util.find_spec("rpmsgx.remoteproc._native") is not None, "_native is not there")
    with found.open_platform() as platform, pytest.raises(rpmsgx.FirmwareError, match="no native application 'x'"):
        platform.image(None)


def test_recovery_by_is_the_platforms(tmp_path: Path) -> None:
    for text, expected in (("", "reload"), ('recovery_by = "attach"\n', "attach")):
        with board.load(write(tmp_path, NATIVE + text)).open_platform() as platform:
            assert platform.recovery == expected


# -- the examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native.toml", "unicorn.toml"])
def test_examples_boot(name: str) -> None:
    """tests/boards has those that take a board, or a process that is one."""
    found = board.load(EXAMPLES / name)
    needs(found.platform, found.options)
    with found.open_platform() as platform:
        assert platform.name == found.platform
        assert {memory.name for memory in found.memory} <= {region.name for region in platform.space.regions}
        assert platform.desc_addr == found.desc_addr
        driver = boot(platform, found.firmware or "")
        driver.announced(2)
        echo(driver, 20)


def test_reading_loads_what_it_needs_and_no_more() -> None:
    code = "import sys, rpmsgx.remoteproc.board; print({'tomllib', 'unicorn', 'difflib'} & {*sys.modules})"
    assert run([sys.executable, "-c", code], timeout=20) == (0, "set()\n")
