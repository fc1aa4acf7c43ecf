# SPDX-License-Identifier: BSD-3-Clause
"""`rpmsgx bench`, as a process: what it measures is there, and it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support import kernel_has, require

import rpmsgx
from rpmsgx import bench

LIMIT = 60.0
QUICK = ("--seconds", "0.005", "--repeats", "3")
KINDS = ("out", "in", "trip")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "rpmsgx", "bench", *args]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=LIMIT)


def report(*args: str) -> dict[str, Any]:
    done = run(*QUICK, "--json", *args)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def serving(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command(url, "--serve", *options), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"{url}: serving rpmsg-flood\n"
            yield process
        finally:
            process.kill()


def check(found: dict[str, Any], sizes: list[int], batches: list[int]) -> None:
    """Every figure that was asked for, and each of them possible."""
    wanted = [(what, size, batch) for what in KINDS for size in sizes for batch in (batches if what != "trip" else [1])]
    assert [(figure["what"], figure["size"], figure["batch"]) for figure in found["figures"]] == wanted
    for figure in found["figures"]:
        ns, parts = figure["ns"], figure["parts"]
        assert 0 < ns["min"] <= ns["median"] <= ns["max"], figure
        assert all(value >= 0 for value in parts.values()), figure
        if figure["what"] == "trip":
            trips = list(figure["trips"].values())
            assert list(figure["trips"]) == ["p50", "p90", "p99", "p99.9", "max"] and trips == sorted(trips)
            assert trips[0] > 100, "no two CPUs answer in a tenth of a microsecond"
        assert figure["limit"]


def test_two_processes(tmp_path: Path) -> None:
    kernel_has(bench.two_cpus() is not None, "two CPUs")
    chart = tmp_path / "chart.svg"
    found = report("--sizes", "16,300", "--batches", "1,8", "--spin", "20e-6", "--plot", str(chart))
    check(found, [16, 300], [1, 8])
    assert (found["link"], found["spin"], found["rpmsgx"]) == ("memfd, two processes", 20e-6, rpmsgx.__version__)
    texts = [element.text or "" for element in ElementTree.parse(chart).iter() if element.tag.endswith("}text")]
    assert "rpmsgx bench: memfd, two processes" in texts
    assert texts.count("300 bytes, 8 a call") == 2 and texts.count("16 bytes") == 1
    assert sum(text.endswith(" M/s") for text in texts) == 8 and sum(text.endswith(" us") for text in texts) == 2


def test_options_are_for_both_processes() -> None:
    """Both ends choose the layout, and it is the device that offers packed rings."""
    check(report("-o", "layout=modern", "-o", "packed=true", "--sizes", "64", "--batches", "16"), [64], [16])


def test_a_blocking_receiver_is_limited_by_its_wake_ups() -> None:
    """What a figure is made of adds up to what it took, and tells what happened."""
    figures = report("--sizes", "16", "--batches", "64")["figures"]
    trip = next(figure for figure in figures if figure["what"] == "trip")
    parts = trip["parts"]
    assert parts["kicks"] == pytest.approx(1, abs=0.3) and parts["sleeps"] > 0.3
    times = sum(parts[name] for name in ("work", "kernel", "awake", "preempted", "asleep"))
    assert trip["ns"]["min"] * 0.9 < times < trip["ns"]["max"] * 1.1


@pytest.mark.parametrize("transport", ["file", "memfd"])
def test_a_link(tmp_path: Path, transport: str) -> None:
    """Whoever serves goes on with the next peer; with --once it ends."""
    url = f"{transport}:{tmp_path / 'link'}"
    with serving(url) as process:
        for _ in range(2):
            check(report(url, "--sizes", "64", "--batches", "16"), [64], [16])
        assert process.poll() is None
    with serving(url, "--once") as process:
        check(report(url, "--sizes", "64", "--batches", "16"), [64], [16])
        assert process.wait(LIMIT) == 0


@pytest.mark.parametrize("platform", ["native", "unicorn"])
def test_a_remote_core(platform: str) -> None:
    require(platform != "unicorn" or importlib.util.find_spec("unicorn") is not None, "unicorn (pip: rpmsgx[demo])")
    check(report("--platform", platform, "--sizes", "16,496", "--batches", "64"), [16, 496], [64])


def test_a_board(tmp_path: Path) -> None:
    board = tmp_path / "m4.toml"
    board.write_text('name = "m4"\nplatform = "native"\nfirmware = "flood"\n')
    check(report("--board", str(board), "--sizes", "16", "--batches", "64"), [16], [64])


def test_the_table() -> None:
    done = run(*QUICK, "--platform", "native", "--sizes", "64")
    assert done.returncode == 0, done.stderr
    for title in bench.TITLES.values():
        assert f"\n{title}\n" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(" ") and line.split()[0] == "64"]
    assert [row[1] for row in rows[:4]] == ["1", "64", "1", "64"] and len(rows) == 5
    assert all(float(row[2]) > 0 for row in rows)
    assert "[5/5] round trips" in done.stderr  # progress


def test_compare(tmp_path: Path) -> None:
    """Against itself, as if it had been much slower, or much faster."""
    before = report("--platform", "native", "--sizes", "64")
    for factor, word in ((1e5, "faster"), (1e-5, "SLOWER")):
        old = tmp_path / "old.json"
        changed = json.loads(json.dumps(before))
        for figure in changed["figures"][:4]:
            figure["ns"] = {key: value * factor for key, value in figure["ns"].items()}
        del changed["figures"][4]
        old.write_text(json.dumps(changed))
        done = run(*QUICK, "--platform", "native", "--sizes", "64", "--compare", str(old))
        assert done.returncode == 0, done.stderr
        ratios = [line.split()[-2:] for line in done.stdout.splitlines() if line.endswith(f" {word}")]
        assert len(ratios) == 4, done.stdout
        assert all((float(ratio) < 1) == (factor > 1) for ratio, _ in ratios)
        assert done.stdout.count("  new\n") == 1  # the round trips
        assert f"old: native, rpmsgx {rpmsgx.__version__}" in done.stdout


NOTHING = '{"figures": [{"what": "in", "size": 1, "batch": 1, "ns": {"min": 0}}]}'


@pytest.mark.parametrize(("text", "why"), [("", "JSON"), ("[]", "TypeError"), (NOTHING, "min is 0")])
def test_compare_with_something_else(tmp_path: Path, text: str, why: str) -> None:
    old = tmp_path / "old.json"
    old.write_text(text)
    done = run("--compare", str(old))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"rpmsgx: error: {old} is not what") and why in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "why"),
    [
        (("--serve",), 2, "--serve needs the URL"),
        (("virtual:x", "--platform", "native"), 2, "a URL does not go with"),
        (("--batches", "1,0"), 2, "--batches"),
        (("--batches", "1025"), 2, "at most 1024"),
        (("--sizes", "x"), 2, "--sizes"),
        (("--platform", "native", "--sizes", "497"), 1, "a size of 497 bytes: this link carries at most 496"),
        (("--platform", "native", "-o", "nothing=1"), 1, "nothing"),
        (("--platform", "native", "--firmware", "sample"), 1, "did not announce 'rpmsg-flood'"),
        (("--plot", "chart.gif"), 1, ".svg or .png"),
        (("--plot", "/nowhere/at/all.svg"), 1, "/nowhere/at"),
        (("nonsense:x",), 1, "unknown scheme"),
        (("memfd:/nowhere/at/all/link",), 1, "No such file"),
        (("--compare", "/nowhere/at/all.json"), 1, "/nowhere/at/all.json"),
    ],
)
def test_mistakes(args: tuple[str, ...], status: int, why: str) -> None:
    done = run(*QUICK, "--wait", "0.2", *args)
    assert done.returncode == status and why in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""


def test_a_picture_needs_a_package(tmp_path: Path) -> None:
    if importlib.util.find_spec("cairosvg") is not None:
        pytest.skip("cairosvg is installed")
    done = run("--plot", str(tmp_path / "chart.png"))
    assert done.returncode == 1 and "cairosvg" in done.stderr and done.stdout == ""


def test_nobody_there(tmp_path: Path) -> None:
    done = run(f"memfd:{tmp_path / 'link'}", "--wait", "0.2")
    assert done.returncode == 1 and "did not announce 'rpmsg-flood' within 0.2 s" in done.stderr


ONE = bench.COMMAND.pack(bench.MAGIC, 1, 0, 0)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("answer", "why"), [(ONE, "has counted 1"), (b"no", "which is no report"), (bytes(16), "which is no report")]
)
def test_a_peer_that_cannot_count(tmp_path: Path, answer: bytes, why: str) -> None:
    url = f"memfd:{tmp_path / 'link'}"
    report = bench.COMMAND.pack(bench.MAGIC, bench.REPORT, 0, 0)
    with rpmsgx.open(url, "device") as bus, bus.create_endpoint(bench.SERVICE) as liar:
        process = subprocess.Popen(command(url, *QUICK), stderr=subprocess.PIPE, text=True)
        try:
            while liar.recv(timeout=LIMIT) != report:
                pass
            liar.send(answer)
            _, text = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 1 and why in text and "Traceback" not in text


@pytest.mark.hostile
@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("batch", [1, 64])
def test_a_peer_that_does_nothing(what: bench.What, batch: int) -> None:
    with rpmsgx.open("virtual:idle", "driver") as driver, rpmsgx.open("virtual:idle", "device") as device:
        mute = device.create_endpoint()
        measure = bench.Bench(driver.create_endpoint(dst=mute.addr), timeout=0.1)
        with pytest.raises(rpmsgx.Timeout):
            measure.figure(what, 16, batch)


@pytest.mark.hostile
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_commands_that_cannot_be(tmp_path: Path, size: int) -> None:
    """A batch of nothing or of too much, a message of more than a buffer; the next command is served."""
    url = f"memfd:{tmp_path / 'link'}"
    with serving(url), rpmsgx.open(url, "driver") as bus:
        endpoint = bus.open(bench.SERVICE, timeout=LIMIT)
        for op, count in ((bench.SINK, 3), (99, 1), (bench.SOURCE, 2)):
            endpoint.send(bench.COMMAND.pack(bench.MAGIC, op, count, size))
            if op == bench.SINK:
                endpoint.send_many([b"one", b"two", b"three"])
        assert [len(endpoint.recv(timeout=LIMIT)) for _ in range(2)] == [min(size, bus.mtu)] * 2
        for short in (b"", bench.COMMAND.pack(bench.MAGIC, bench.SINK, 0, 1)[:15]):
            endpoint.send(short)
        endpoint.send(bench.COMMAND.pack(bench.MAGIC, bench.REPORT, 0, 0))
        assert bench.COMMAND.unpack(endpoint.recv(timeout=LIMIT)) == (bench.MAGIC, 5, 0, 0)


def members(session: int) -> list[str]:
    """The command names of the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = path.read_text().rpartition(")")
            fields = rest.split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(name)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    kernel_has(bench.two_cpus() is not None, "two CPUs")
    process = subprocess.Popen(
        command("--seconds", "5", "--repeats", "100"),
        env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("[1/20] ")
        assert len(members(process.pid)) == 2
        process.send_signal(number)
        _, text = process.communicate(timeout=LIMIT)
        assert process.returncode == (130 if number == signal.SIGINT else -number) and text == ""
        end = time.monotonic() + LIMIT
        while left := members(process.pid):
            assert time.monotonic() < end, left
        assert list(tmp_path.iterdir()) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
