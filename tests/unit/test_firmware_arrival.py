"""Firmware that is not there yet: it is waited for wherever it will come from, and counts once it is whole."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import kernel_has, require
from test_firmware_search import in_own_mounts

from rpmsgx.errors import FirmwareError
from rpmsgx.notify.doorbell import readable
from rpmsgx.notify.paths import LOOK_MS, PathWatch
from rpmsgx.remoteproc.firmware import Arrival

pytestmark = pytest.mark.timeout(60)
WAIT = 10.0
NOBODY = 65534


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def wait_for() -> Iterator[Callable[..., Arrival]]:
    made: list[Arrival] = []

    def make(*args: Any) -> Arrival:
        made.append(Arrival(*args))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.close()


def arrived(arrival: Arrival) -> str:
    """Its path; waits on the descriptor, as everybody does."""
    deadline = time.monotonic() + WAIT
    while True:
        assert readable(arrival.fileno(), deadline - time.monotonic()), "nothing wakes"
        path = arrival.check()
        if path is not None:
            return path


def quiet(arrival: Arrival) -> None:
    """Nothing is there, and it comes to rest, whatever others do meanwhile in /tmp."""
    for _ in range(100):
        assert arrival.check() is None
        if not readable(arrival.fileno(), 0.005):
            return
    pytest.fail("it wakes again and again")


# -- what counts


def test_a_file_that_is_there_already(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    (tmp_path / "fw.elf").write_text("x")
    arrival = wait_for("fw.elf", [tmp_path])
    assert arrived(arrival) == str(tmp_path / "fw.elf")
    assert arrival.check() == str(tmp_path / "fw.elf")
    assert wait_for("fw.elf", [tmp_path]).check() == str(tmp_path / "fw.elf")  # without a wait as well


@pytest.mark.lesson("18")
def test_lesson_18_a_file_counts_once_it_is_closed(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("fw.elf", [tmp_path])
    quiet(arrival)
    with open(tmp_path / "fw.elf", "wb", buffering=0) as file:
        assert arrival.check() is None
        for _ in range(3):
            file.write(b"part")
            quiet(arrival)
        other = wait_for("fw.elf", [tmp_path])  # looks for the first time in the middle of it
        assert other.check() is None
    assert arrived(arrival) == arrived(other) == str(tmp_path / "fw.elf")


@pytest.mark.lesson("18")
def test_lesson_18_a_file_moved_into_place(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    (tmp_path / "place").mkdir()
    arrival = wait_for("fw.elf", [tmp_path / "place"])
    quiet(arrival)
    (tmp_path / "place" / ".fw.elf.part").write_text("x")
    quiet(arrival)
    os.rename(tmp_path / "place" / ".fw.elf.part", tmp_path / "place" / "fw.elf")
    assert arrived(arrival) == str(tmp_path / "place" / "fw.elf")
    os.rename(tmp_path / "place" / "fw.elf", tmp_path / "fw.elf")
    quiet(arrival)
    os.rename(tmp_path / "fw.elf", tmp_path / "place" / "fw.elf")
    assert arrived(arrival) == str(tmp_path / "place" / "fw.elf")


def test_an_empty_file_is_none_yet(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("fw.elf", [tmp_path])
    (tmp_path / "fw.elf").touch()
    quiet(arrival)
    (tmp_path / "fw.elf").write_text("x")
    assert arrived(arrival)
    with open(tmp_path / "fw.elf", "w"):  # written anew
        pass
    quiet(arrival)


def test_a_folder_is_none(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("fw.elf", [tmp_path])
    (tmp_path / "fw.elf").mkdir()
    (tmp_path / "fw.elf" / "inside").write_text("x")
    quiet(arrival)
    shutil.rmtree(tmp_path / "fw.elf")
    (tmp_path / "fw.elf").write_text("x")
    assert arrived(arrival)


@pytest.mark.parametrize("how", ["link", "O_TMPFILE"])
def test_a_file_that_is_linked_into_place(tmp_path: Path, wait_for: Callable[..., Arrival], how: str) -> None:
    (tmp_path / "place").mkdir()
    arrival = wait_for("fw.elf", [tmp_path / "place"])
    quiet(arrival)
    if how == "link":
        (tmp_path / "other").write_text("x")
        os.link(tmp_path / "other", tmp_path / "place" / "fw.elf")
    else:
        fd = os.open(tmp_path / "place", os.O_TMPFILE | os.O_WRONLY)
        os.write(fd, b"x")
        # With a directory's descriptor it is linkat(2), which alone follows /proc/self/fd.
        link = f"/proc/self/fd/{fd}"
        os.link(link, tmp_path / "place" / "fw.elf", src_dir_fd=fd, follow_symlinks=True)
        quiet(arrival)
        os.close(fd)
    assert arrived(arrival) == str(tmp_path / "place" / "fw.elf")


def test_a_file_that_is_written_by_another_of_its_names(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    (tmp_path / "place").mkdir()
    arrival = wait_for("fw.elf", [tmp_path / "place"])
    with open(tmp_path / "other", "wb", buffering=0) as file:
        file.write(b"half")
        os.link(tmp_path / "other", tmp_path / "place" / "fw.elf")
        quiet(arrival)
    assert arrived(arrival)


def test_it_goes_again_and_the_better_place_wins(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    better, worse = tmp_path / "better", tmp_path / "worse"
    arrival = wait_for("fw.elf", [better, worse])
    worse.mkdir()
    (worse / "fw.elf").write_text("x")
    assert arrived(arrival) == str(worse / "fw.elf")
    better.mkdir()
    (better / "fw.elf").write_text("x")
    assert arrived(arrival) == str(better / "fw.elf")
    shutil.rmtree(better)
    assert arrived(arrival) == str(worse / "fw.elf")
    (worse / "fw.elf").unlink()
    quiet(arrival)


# -- where it comes from


@pytest.mark.lesson("18")
def test_lesson_18_directories_that_are_not_there_yet(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("vendor/chip/fw.elf", [tmp_path / "late" / "firmware"])
    quiet(arrival)
    folder = tmp_path
    for name in ("late", "firmware", "vendor", "chip"):
        folder /= name
        folder.mkdir()
        quiet(arrival)
    (folder / "fw.elf").write_text("x")
    assert arrived(arrival) == str(folder / "fw.elf")


@pytest.mark.lesson("18")
def test_lesson_18_a_file_half_written_when_its_directory_is_first_seen(
    tmp_path: Path, wait_for: Callable[..., Arrival]
) -> None:
    arrival = wait_for("vendor/fw.elf", [tmp_path])
    quiet(arrival)
    (tmp_path / "vendor").mkdir()
    with open(tmp_path / "vendor" / "fw.elf", "wb", buffering=0) as file:
        file.write(b"half")  # nobody could watch the directory before this
        quiet(arrival)
    assert arrived(arrival)


def test_a_whole_tree_is_moved_into_place_and_away(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    (tmp_path / "build" / "vendor").mkdir(parents=True)
    (tmp_path / "build" / "vendor" / "fw.elf").write_text("x")
    arrival = wait_for("vendor/fw.elf", [tmp_path / "late"])
    for _ in range(3):
        quiet(arrival)
        os.rename(tmp_path / "build", tmp_path / "late")
        assert arrived(arrival) == str(tmp_path / "late" / "vendor" / "fw.elf")
        os.rename(tmp_path / "late", tmp_path / "build")
    shutil.rmtree(tmp_path / "build")
    (tmp_path / "late" / "vendor").mkdir(parents=True)
    quiet(arrival)
    (tmp_path / "late" / "vendor" / "fw.elf").write_text("x")
    assert arrived(arrival)


def test_a_directory_is_deleted_while_somebody_is_in_it(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    """Its inode lives on, so it says nothing of its end itself."""
    place = tmp_path / "place"
    place.mkdir()
    arrival = wait_for("fw.elf", [place])
    quiet(arrival)
    inside = os.open(place, os.O_RDONLY)
    place.rmdir()
    place.mkdir()
    quiet(arrival)
    (place / "fw.elf").write_text("x")
    assert arrived(arrival)
    os.close(inside)


def test_links_are_followed_and_switched(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
    (tmp_path / "current").symlink_to("v1")
    arrival = wait_for("fw.elf", [tmp_path / "current"])
    quiet(arrival)
    (tmp_path / "v2" / "fw.elf").write_text("x")
    quiet(arrival)
    (tmp_path / "new").symlink_to(tmp_path / "v2")
    os.rename(tmp_path / "new", tmp_path / "current")  # as ln -sfn does it
    assert arrived(arrival) == str(tmp_path / "current" / "fw.elf")
    (tmp_path / "v2" / "fw.elf").unlink()
    quiet(arrival)
    (tmp_path / "v2" / "fw-2.elf").write_text("x")
    (tmp_path / "v2" / "fw.elf").symlink_to("fw-2.elf")
    assert arrived(arrival)
    (tmp_path / "v2" / "fw-2.elf").unlink()
    quiet(arrival)
    (tmp_path / "v2" / "fw-2.elf").write_text("x")
    assert arrived(arrival)
    (tmp_path / "v2" / "fw.elf").unlink()
    (tmp_path / "v2" / "fw.elf").symlink_to("../late/fw-3.elf")
    quiet(arrival)
    (tmp_path / "late").mkdir()
    quiet(arrival)
    with open(tmp_path / "late" / "fw-3.elf", "w", buffering=1) as file:
        file.write("half\n")
        quiet(arrival)
    assert arrived(arrival) == str(tmp_path / "current" / "fw.elf")


@pytest.mark.hostile
def test_links_that_lead_nowhere(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    arrival = wait_for("fw.elf", [tmp_path / "a"])
    quiet(arrival)
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "fw.elf").write_text("x")
    assert arrived(arrival)


def test_a_file_that_becomes_readable(tmp_path: Path) -> None:
    with stranger(tmp_path) as (place, ask):
        (place / "fw.elf").write_text("x")
        (place / "fw.elf").chmod(0)
        assert ask(place) is None
        (place / "fw.elf").chmod(0o644)
        assert ask("wait") == str(place / "fw.elf")


# -- mounts


@pytest.mark.lesson("18")
def test_lesson_18_a_file_system_mounted_late(tmp_path: Path) -> None:
    """Over the directory, over one above it, twice over, off again, over the file itself: inotify tells of none."""
    in_own_mounts(
        """
        import os, select, subprocess, sys
        from rpmsgx.notify.doorbell import readable
        from rpmsgx.remoteproc.firmware import Arrival
        tmp = sys.argv[1]
        run = lambda *command: subprocess.run(command, check=True)
        os.makedirs(tmp + "/fs/vendor")
        os.makedirs(tmp + "/full")
        run("mount", "-t", "tmpfs", "tmpfs", tmp + "/full")
        os.makedirs(tmp + "/full/vendor")
        with open(tmp + "/full/vendor/fw.elf", "w") as file:
            file.write("x")
        wanted = tmp + "/fs/vendor/fw.elf"
        arrival = Arrival("vendor/fw.elf", [tmp + "/fs"])

        def quiet():
            for _ in range(100):
                assert arrival.check() is None
                if not readable(arrival.fileno(), 0):
                    return
            sys.exit("it wakes again and again")

        def arrived():
            for _ in range(3):  # a mount stays to be told, whoever polls, and however often
                assert readable(arrival.fileno(), 10)
            assert arrival.check() == wanted

        quiet()
        run("mount", "-t", "tmpfs", "tmpfs", tmp + "/fs")  # empty: written later
        quiet()
        os.mkdir(tmp + "/fs/vendor")
        quiet()
        with open(wanted, "w", buffering=1) as file:
            file.write("half\\n")
            quiet()
        arrived()
        run("umount", tmp + "/fs")
        quiet()
        for target, source in (("/fs", "/full"), ("/fs/vendor", "/full/vendor")):
            run("mount", "--bind", tmp + source, tmp + target)  # full
            arrived()
            run("mount", "-t", "tmpfs", "tmpfs", tmp + target)
            quiet()
            run("umount", tmp + target)
            arrived()
            run("umount", "-l", tmp + target)
            quiet()
        with open(wanted, "w"):
            pass
        quiet()
        run("mount", "--bind", tmp + "/full/vendor/fw.elf", wanted)
        arrived()
        run("mount", "-t", "tmpfs", "tmpfs", tmp)
        quiet()
        """,
        tmp_path,
    )


# -- waiting


@pytest.mark.hostile
@pytest.mark.parametrize("pieces", [1, 100], ids=["in pieces", "at once"])
def test_a_flood_of_other_files(
    tmp_path: Path, wait_for: Callable[..., Arrival], monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """More events than the kernel keeps, in the directory and in the one above; the one that matters among them."""
    monkeypatch.setattr("rpmsgx.notify.paths._PIECES", pieces)
    (tmp_path / "place").mkdir()
    arrival = wait_for("fw.elf", [tmp_path / "place"])
    quiet(arrival)
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        limit = int(file.read())
    kernel_has(limit <= 1 << 17, f"an event queue of {limit} takes long to fill")
    busy = (tmp_path / "place" / "busy", tmp_path / "busy")
    for i in range(limit // 2 + 100):
        if i == limit // 2:
            (tmp_path / "place" / "fw.elf").write_text("x")  # its events are lost
        for path in busy:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    assert arrived(arrival) == str(tmp_path / "place" / "fw.elf")
    os.unlink(tmp_path / "place" / "fw.elf")
    quiet(arrival)


def test_other_files_cost_no_look(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    watch = PathWatch([str(tmp_path / "fw.elf")])
    assert watch.changes() == {str(tmp_path / "fw.elf"): 0}
    (tmp_path / "other").write_text("x")
    assert readable(watch.fileno(), WAIT)
    assert watch.changes() == {}
    watch.close()


def test_another_name_is_waited_for(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    (tmp_path / "new.elf").write_text("x")
    arrival = wait_for("old.elf", [tmp_path])
    quiet(arrival)
    with pytest.raises(FirmwareError):
        arrival.retarget("../new.elf")
    quiet(arrival)
    arrival.retarget("new.elf")
    assert arrived(arrival) == str(tmp_path / "new.elf")
    arrival.retarget("old.elf")
    quiet(arrival)
    (tmp_path / "new.elf").write_text("y")
    quiet(arrival)
    (tmp_path / "old.elf").write_text("x")
    assert arrived(arrival) == str(tmp_path / "old.elf")
    with pytest.raises(FirmwareError):
        wait_for("../new.elf", [tmp_path])


@pytest.mark.hostile
def test_watches_do_not_pile_up(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("fw.elf", [tmp_path])

    def watches() -> int:
        """Of all inotify instances of this process."""
        count = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                with open(f"/proc/self/fdinfo/{fd}") as file:
                    count += sum(line.startswith("inotify ") for line in file)
            except FileNotFoundError:
                pass  # the listing's own
        return count

    quiet(arrival)
    before = watches()
    for i in range(100):
        (tmp_path / f"{i}").mkdir()
        arrival.retarget(f"{i}/fw.elf")
        quiet(arrival)
        (tmp_path / f"{i}" / "fw.elf").write_text("x")
        assert arrived(arrival)
        assert watches() == before + 2  # the directory, the file
    arrival.retarget("fw.elf")
    quiet(arrival)
    assert watches() == before > 0


def test_the_descriptor_stays_and_serves_every_loop(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("late/fw.elf", [tmp_path])
    quiet(arrival)
    fd = arrival.fileno()
    outer = select.epoll()
    outer.register(fd, select.EPOLLIN)
    (tmp_path / "late").mkdir()
    assert outer.poll(WAIT) == [(fd, select.EPOLLIN)]
    quiet(arrival)
    arrival.retarget("late/fw.elf")
    assert outer.poll(0.2) and arrival.check() is None

    async def main() -> str:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def look() -> None:
            path = arrival.check()
            if path is not None:
                done.set_result(path)
                loop.remove_reader(fd)

        loop.add_reader(fd, look)
        (tmp_path / "late" / "fw.elf").write_text("x")
        return await asyncio.wait_for(done, WAIT)

    assert asyncio.run(main()) == str(tmp_path / "late" / "fw.elf")
    assert arrival.fileno() == fd
    outer.close()


def test_another_process_brings_it(tmp_path: Path, wait_for: Callable[..., Arrival]) -> None:
    arrival = wait_for("a/b/fw.elf", [tmp_path])
    quiet(arrival)
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    command = f"mkdir -p {tmp_path}/a/b && cp {tmp_path}/source {tmp_path}/a/b/fw.elf"
    with subprocess.Popen(["sh", "-c", command]):
        path = arrived(arrival)
        assert os.path.getsize(path) == 1 << 20  # never less, whenever it was looked at


# -- without the rights


class stranger:
    """A child that is nobody in particular waits for "fw.elf" in directories of root's; asked by a pipe."""

    def __init__(self, tmp_path: Path) -> None:
        require(os.geteuid() == 0, "only root can be somebody else")

    def __enter__(self) -> tuple[Path, Callable[[object], Any]]:
        self.place = Path(tempfile.mkdtemp())
        self.place.chmod(0o755)
        (out, self.answers), (self.questions, inn) = os.pipe(), os.pipe()
        self.child = os.fork()
        if self.child == 0:
            try:
                os.close(inn)
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                self.serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(self.answers)
        os.close(self.questions)
        self.ends = (inn, out)

        def ask(question: object) -> Any:
            os.write(inn, str(question).encode())
            assert readable(out, WAIT)
            return eval(os.read(out, 4096))

        return self.place, ask

    def serve(self) -> None:
        """ "wait": until it has arrived; "check"; else a directory to wait in from now on."""
        arrival: Any = None
        while question := os.read(self.questions, 4096).decode():
            if question not in ("wait", "check"):
                arrival = Arrival("fw.elf", [question])
            answer = arrived(arrival) if question == "wait" else arrival.check()
            os.write(self.answers, repr(answer).encode())

    def __exit__(self, *exc: object) -> None:
        for fd in self.ends:
            os.close(fd)
        os.waitpid(self.child, 0)
        shutil.rmtree(self.place)


def test_a_strangers_file_counts_once_it_is_closed(tmp_path: Path) -> None:
    """No lease for those who do not own the file: what they saw created is not taken before they saw it closed."""
    with stranger(tmp_path) as (place, ask):
        assert ask(place) is None
        with open(place / "fw.elf", "wb", buffering=0) as file:
            file.write(b"half")
            assert ask("check") is None
            (place / "other").mkdir()
            assert ask("check") is None
        assert ask("wait") == str(place / "fw.elf")
        assert ask(place) == str(place / "fw.elf")


@pytest.mark.parametrize("how", ["move", "link", "symlink", "directory"])
def test_a_strangers_file_put_into_place(tmp_path: Path, how: str) -> None:
    with stranger(tmp_path) as (place, ask):
        assert ask(place / "in" if how == "directory" else place) is None
        (place / "other").mkdir()
        (place / "other" / "fw.elf").write_text("x")
        if how == "directory":
            os.rename(place / "other", place / "in")
        else:
            put = {"move": os.rename, "link": os.link, "symlink": os.symlink}[how]
            put(place / "other" / "fw.elf", place / "fw.elf")
        assert ask("wait") == str(place / ("in/fw.elf" if how == "directory" else "fw.elf"))


def test_a_directory_that_may_not_be_watched_is_looked_at(tmp_path: Path) -> None:
    """A directory that may be passed but not read cannot be watched: each second somebody has to look."""
    with stranger(tmp_path) as (place, ask):
        place.chmod(0o711)
        assert ask(place) is None
        (place / "fw.elf").write_text("x")
        assert ask("check") is None
        assert ask("wait") == str(place / "fw.elf")


def test_a_file_system_that_tells_nothing_is_looked_at(tmp_path: Path) -> None:
    """The kernel makes and removes files in /proc without a word."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = f"/proc/{process.pid}/cmdline"
        watch = PathWatch([path])
        assert watch.changes() == {path: 0}
        process.communicate(b"\n")
        deadline = time.monotonic() + 5 * LOOK_MS / 1000
        while not watch.changes():
            assert readable(watch.fileno(), deadline - time.monotonic())
        watch.close()
