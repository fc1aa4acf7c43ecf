# SPDX-License-Identifier: BSD-3-Clause
"""What test_same_verdicts.py asks the kernel, in a guest; what it answers is printed as JSON."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inside_remoteproc import WAIT
from sim_firmware import DA, SIZE

from rpmsgx.remoteproc.linux import LinuxRemoteproc

CORE = "/dev/rproc_sim0"
CLASS = Path("/sys/class/remoteproc/remoteproc0")
CRASH = Path("/sys/kernel/debug/remoteproc/remoteproc0/crash")
ROOT = Path("/proc/1/root")  # of the guest, whose Python lives in a chroot
BUSYBOX = ROOT / "bin/busybox"
FIRMWARE = ROOT / "lib/firmware/sim.elf"
WARNING = 4


def write(file: Path, data: bytes) -> int:
    """0 or the errno."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, data)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(fd)
    return 0


class Log:
    """The kernel's, from now on."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> Iterator[tuple[int, str]]:
        """(level, text)"""
        with contextlib.suppress(BlockingIOError):
            while True:
                head, _, text = os.read(self._fd, 8192).partition(b"\n")[0].partition(b";")
                yield int(head.split(b",")[0]) & 7, text.decode(errors="replace")


def images(folder: str, table: int, table_size: int) -> None:
    """Boot and stop each image of file `images`, whose sizes are in file `index`. For each:

    [errno of the boot, errno of the stop, checksum of the memory less the table, how many virtio devices came up, what
    the kernel complained about]
    """
    log = Log()
    core = os.open(CORE, os.O_RDWR)
    pa = int(Path("/sys/bus/platform/devices/rproc-sim.0/memory").read_text().split()[0], 0)
    view = memoryview(mmap.mmap(core, SIZE, offset=pa))
    answers = []
    data, at = Path(folder, "images").read_bytes(), 0
    for size in json.loads(Path(folder, "index").read_text()):
        view[:] = bytes(SIZE)
        FIRMWARE.write_bytes(data[at : at + size])
        at += size
        code = write(CLASS / "state", b"start")
        checksum = stopped = 0
        if code == 0:
            view[table - DA : table - DA + table_size] = bytes(table_size)
            checksum = zlib.crc32(view)
            stopped = write(CLASS / "state", b"stop")
            os.read(core, 4096)  # its events
        said = list(log.lines())
        devices = sum("registered virtio" in text for _, text in said)
        complaints = [text.removeprefix("remoteproc remoteproc0: ") for level, text in said if level <= WARNING]
        answers.append([code, stopped, checksum, devices, complaints])
    print(json.dumps(answers))


def load(**parameters: int) -> None:
    words = [f"{name}={value}" for name, value in parameters.items()]
    subprocess.run([BUSYBOX, "insmod", ROOT / "lib/rproc_sim.ko", *words], check=True)


def unload() -> None:
    subprocess.run([BUSYBOX, "rmmod", "rproc_sim"], check=True)


def state() -> str:
    return (CLASS / "state").read_text().strip()


def do(event: str) -> int:
    match event:
        case "crash":
            code = write(CRASH, b"1")
            core = os.open(CORE, os.O_RDWR)
            os.fsync(core)  # the report is dealt with now, and not after the next start
            os.close(core)
            return code
        case "recover":
            return write(CLASS / "recovery", b"recover")
        case "set firmware":
            return write(CLASS / "firmware", b"sim.elf")
        case _:
            return write(CLASS / "state", event.encode())


def events(first: str, sequences: Iterable[list[str]]) -> None:
    """For each event of each sequence, all of which begin in state `first`: [errno, state afterwards]."""
    answers = []
    load(attach=first == "detached")
    for sequence in sequences:
        write(CLASS / "recovery", b"disabled")
        answers.append([[do(event), state()] for event in sequence])
        end = b"detach" if state() == "attached" else b"stop"
        while write(CLASS / "state", end) == 0:
            pass  # one for each user
        if state() != first:
            unload()
            load(attach=first == "detached")
    unload()
    print(json.dumps(answers))


def crash_while_detached() -> None:
    load(attach=1)
    write(CRASH, b"1")
    deadline = time.monotonic() + WAIT
    while state() == "detached":
        assert time.monotonic() < deadline
    while state() in ("crashed", "offline"):
        assert time.monotonic() < deadline
    print(json.dumps(state()))


def inputs(settings: dict[str, list[str]]) -> None:
    """Values for settings: for each [errno of the kernel, what it has then, what LinuxRemoteproc says, what it has]."""
    members = {"firmware": "firmware", "recovery": "recovery", "coredump": "coredump_mode"}
    answers: dict[str, list[Any]] = {}
    with LinuxRemoteproc("sim0") as rproc:
        for attribute, values in settings.items():
            before = (CLASS / attribute).read_bytes()
            for value in values:
                write(CLASS / attribute, before)
                code = write(CLASS / attribute, value.encode())
                kernel = (CLASS / attribute).read_text().removesuffix("\n")
                write(CLASS / attribute, before)
                said = ""
                try:
                    setattr(rproc, members[attribute], value)
                except ValueError as error:
                    said = str(error)
                ours = getattr(rproc, members[attribute])
                answers.setdefault(attribute, []).append([code, kernel, said, ours])
    print(json.dumps(answers))


