"""Where firmware is looked for: the kernel's places and order, one's own directories, what counts as a file to load."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import ROOT, require

from rpmsgx.errors import FirmwareError
from rpmsgx.remoteproc.firmware import candidates, find, search_path

pytestmark = pytest.mark.timeout(60)
PARAMETER = "/sys/module/firmware_class/parameters/path"
RELEASE = os.uname().release
DIRECTORIES = (
    f"/lib/firmware/updates/{RELEASE}", "/lib/firmware/updates", f"/lib/firmware/{RELEASE}", "/lib/firmware"
)  # fmt: skip


def in_own_mounts(script: str, *arguments: object) -> None:
    """Run Python code as root of a user and mount namespace of its own."""
    probe = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, text=True, timeout=30)
    require(probe.returncode == 0, f"no user namespaces: {probe.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path / "first", tmp_path / "second"


def test_the_kernels_places_in_its_order() -> None:
    assert search_path()[-4:] == DIRECTORIES
    assert len(search_path()) <= 5


def test_the_kernels_places_are_searched_one_after_the_other(tmp_path: Path) -> None:
    """With the real paths: a file system of our own over /lib/firmware, a file over the kernel's parameter."""
    require(os.path.isdir("/lib/firmware") or os.access("/lib", os.W_OK), "no /lib/firmware to mount over")
    require(os.path.exists(PARAMETER), f"no {PARAMETER}")
    in_own_mounts(
        """
        import os, subprocess, sys
        from rpmsgx.remoteproc.firmware import find, search_path
        tmp, parameter, *places = sys.argv[1:]
        os.makedirs("/lib/firmware", exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/lib/firmware"], check=True)
        with open(tmp + "/parameter", "w") as file:
            file.write(tmp + "\\n")
        before = search_path()
        subprocess.run(["mount", "--bind", tmp + "/parameter", parameter], check=True)
        assert search_path() == (tmp, *places), search_path()
        for directory in (*reversed(places), tmp, tmp + "/own2", tmp + "/own1"):
            os.makedirs(directory, exist_ok=True)
            with open(directory + "/fw.elf", "w") as file:
                file.write("x")
            own = (tmp + "/own1", tmp + "/own2")
            assert find("fw.elf", own) == directory + "/fw.elf", find("fw.elf", own)
        open(tmp + "/parameter", "w").close()
        assert search_path() == tuple(places)
        """,
        tmp_path, PARAMETER, *DIRECTORIES,
    )  # fmt: skip


def test_own_directories_come_first(two: tuple[Path, Path]) -> None:
    first, second = two
    wanted = [str(first / "fw.elf"), str(second / "fw.elf")]
    assert candidates("fw.elf", two) == (*wanted, *(f"{place}/fw.elf" for place in search_path()))
    (second / "fw.elf").write_text("x")
    assert find("fw.elf", two) == wanted[1]
    (first / "fw.elf").write_text("x")
    assert find("fw.elf", map(str, two)) == wanted[0]


def test_a_name_may_have_directories_in_it(two: tuple[Path, Path]) -> None:
    (two[1] / "vendor" / "chip").mkdir(parents=True)
    (two[1] / "vendor" / "chip" / "fw.elf").write_text("x")
    assert find("vendor/chip/fw.elf", two) == str(two[1] / "vendor/chip/fw.elf")


def test_a_path_is_not_searched_for(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (two[0] / "fw.elf").write_text("x")
    path = str(two[0] / "fw.elf")
    assert candidates(path, two) == (path,)
    assert find(path, ["/nowhere"]) == path
    monkeypatch.chdir(two[0])
    assert find("./fw.elf", ["/nowhere"]) == f"{two[0]}/./fw.elf"
    assert find("./../first/fw.elf") == f"{two[0]}/./../first/fw.elf"
    with pytest.raises(FileNotFoundError):
        find("/fw.elf", two)


@pytest.mark.hostile
@pytest.mark.parametrize("name", ["", "a\0b", "..", "../fw.elf", "a/../fw.elf", "a/..", "dir/", "/"])
def test_names_that_are_none(name: str, two: tuple[Path, Path]) -> None:
    (two[0].parent / "fw.elf").write_text("x")
    (two[0] / "a").mkdir()
    with pytest.raises(FirmwareError, match="firmware"):
        find(name, two)


def test_names_that_only_look_like_a_step_up(two: tuple[Path, Path]) -> None:
    for name in ("..fw", "fw..", "a..b"):
        (two[0] / name).write_text("x")
        assert find(name, two) == str(two[0] / name)


def test_what_cannot_be_loaded_is_passed_over_and_named(two: tuple[Path, Path]) -> None:
    first, second = two
    bad = {
        "folder": first / "folder", "fifo": first / "fifo", "empty": first / "empty", "dangling": first / "dangling",
        "loop": first / "loop",
    }  # fmt: skip
    bad["folder"].mkdir()
    os.mkfifo(bad["fifo"])
    bad["empty"].touch()
    bad["dangling"].symlink_to(first / "nowhere")
    bad["loop"].symlink_to(bad["loop"])
    for name, path in bad.items():
        why = {"folder": "not a regular file", "fifo": "not a regular file", "empty": "empty", "loop": ".*"}.get(name)
        told = rf"tried {path} \({why}\), " if why else f"tried {path}, "
        with pytest.raises(FileNotFoundError, match=f"no firmware '{name}'; {told}") as error:
            find(name, two)
        assert all(f"{place}/{name}" in str(error.value) for place in (second, *search_path()))
        (second / name).write_text("x")
        assert find(name, two) == str(second / name)
    with pytest.raises(FileNotFoundError, match=r"name too long"):
        find("x" * 5000, two)


def test_a_file_that_may_not_be_read(two: tuple[Path, Path]) -> None:
    (two[0] / "fw.elf").write_text("x")
    (two[0] / "fw.elf").chmod(0)
    if os.access(two[0] / "fw.elf", os.R_OK):  # root reads everything
        assert find("fw.elf", two) == str(two[0] / "fw.elf")
    else:
        with pytest.raises(FileNotFoundError, match="Permission denied"):
            find("fw.elf", two)


def test_a_file_that_is_being_written_is_busy(two: tuple[Path, Path]) -> None:
    path = two[0] / "fw.elf"
    with open(path, "wb", buffering=0) as file:
        file.write(b"half")
        with pytest.raises(FileNotFoundError, match="being written"):
            find("fw.elf", two)
    with open(path, "rb"):
        assert find("fw.elf", two) == str(path)


@pytest.mark.hostile
def test_who_writes_meanwhile_neither_kills_nor_is_stopped(tmp_path: Path) -> None:
    """The question whether somebody writes is a lease: who opens the file then makes the kernel send a signal."""
    path = tmp_path / "fw.elf"
    path.write_text("x")
    script = "import os, sys\nfor _ in range(50_000): os.close(os.open(sys.argv[1], os.O_RDWR))"
    found = 0
    with subprocess.Popen([sys.executable, "-c", script, path]) as writer:
        while writer.poll() is None:
            try:
                found += find(str(path)) == str(path)
            except FileNotFoundError as error:
                assert "being written" in str(error)
        assert writer.returncode == 0 and found
