# SPDX-License-Identifier: BSD-3-Clause
"""The literal peer against itself: what it puts into shared memory, and that it finds what is wrong there.

No rpmsgx in here: this is the test of the yardstick. Offsets stand as numbers, as in the written facts.
"""

from __future__ import annotations

import ast
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from peers import literal
from peers.literal import (
    F_EVENT_IDX,
    F_INDIRECT,
    F_NS,
    OPENAMP,
    RPMSG_LITE,
    TOLERATE_OPENAMP,
    TOLERATE_RPMSG_LITE,
    LiteralPeer,
    Violation,
)
from peers.payload import check, payload

ROOT = Path(__file__).parent.parent.parent
ALL_FEATURES = F_NS | F_INDIRECT | F_EVENT_IDX

# vring0 (device to driver) and vring1 (driver to device) of 256 descriptors.
DESC0, AVAIL0, USED0 = 0x4000, 0x5000, 0x6000
DESC1, AVAIL1, USED1 = 0x8000, 0x9000, 0xA000
RX_POOL, TX_POOL = 0x10000, 0x30000
STATUS, GFEATURES = 0x2C, 0x24


def read(peer: LiteralPeer, form: str, offset: int) -> Any:
    """One value, or a tuple of several, from shared memory."""
    values = struct.unpack_from("=" + form, peer.file.mm, offset)
    return values[0] if len(values) == 1 else values


def poke(peer: LiteralPeer, form: str, offset: int, *values: Any) -> None:
    struct.pack_into("=" + form, peer.file.mm, offset, *values)


@contextmanager
def linked(
    folder: Path,
    *,
    driver: dict[str, Any] | None = None,
    device: dict[str, Any] | None = None,
    server: str = "driver",
    **both: Any,
) -> Iterator[tuple[LiteralPeer, LiteralPeer]]:
    """Both ends in this thread, started; not checked again on the way out."""
    options = {"driver": {**both, **(driver or {})}, "device": {**both, **(device or {})}}
    ends: dict[str, LiteralPeer] = {}
    try:
        for role in sorted(options, key=lambda role: role != server):
            ends[role] = LiteralPeer(folder / "shm", folder / "bell", role=role, server=role == server, **options[role])
        for role in sorted(options, key=lambda role: role == server):  # a connection waits to be accepted
            ends[role].connect(5)
        ends["driver"].start(5)
        ends["device"].start(5)
        yield ends["driver"], ends["device"]
    finally:
        for end in ends.values():
            end.close(check=False)


@contextmanager
def apart(
    folder: Path, driver: dict[str, Any] | None = None, device: dict[str, Any] | None = None
) -> Iterator[tuple[LiteralPeer, LiteralPeer]]:
    """Both ends, connected as far as that goes without an answer, neither started."""
    host = LiteralPeer(folder / "shm", folder / "bell", role="driver", **(driver or {}))
    remote = LiteralPeer(folder / "shm", folder / "bell", role="device", **(device or {}))
    try:
        remote.connect(1)
        host.connect(1)
        yield host, remote
    finally:
        host.close(check=False)
        remote.close(check=False)


def violated(rule: str, act: Callable[[], object]) -> None:
    with pytest.raises(Violation) as caught:
        act()
    assert caught.value.rule == rule, caught.value


# -- against itself, in two processes ------------------------------------------------------------------------

WHOLE = {"peer_lengths": "whole"}
# name: (traps of the driver, traps of the device, what both must tolerate)
PAIRS: dict[str, tuple[dict[str, object], dict[str, object], frozenset[str]]] = {
    "linux": ({}, {}, frozenset()),
    "openamp": ({**OPENAMP, **WHOLE}, {**OPENAMP, **WHOLE}, TOLERATE_OPENAMP),
    "rpmsg-lite": ({**RPMSG_LITE, **WHOLE}, {**RPMSG_LITE, **WHOLE}, TOLERATE_RPMSG_LITE),
    "openamp-device": (WHOLE, OPENAMP, TOLERATE_OPENAMP),
    "openamp-2023-driver": ({**WHOLE, "repost_used_length": True}, {"whole_lengths": True}, frozenset({"2.7.8.2-2"})),
    "name_garbage": ({"name_garbage": True}, {"name_garbage": True}, frozenset({"rpmsg-ns-padding"})),
    "reserved_garbage": ({"reserved_garbage": True}, {"reserved_garbage": True}, frozenset({"rpmsg-reserved"})),
    "recycle_first": ({"recycle_first": True}, {}, frozenset()),
    "write_reserved": ({"write_reserved": True}, {"write_reserved": True}, frozenset()),
    "write_flags": ({"write_flags": True}, {}, frozenset({"2.7.5.1-2"})),
    "prefill": ({"prefill": True}, {}, frozenset({"used-prefilled"})),
    "kick_always": ({"kick_always": True}, {"kick_always": True}, frozenset()),
    "split-tx": ({"split": "tx"}, {}, frozenset()),
    "split-both": ({"split": "tx+rx"}, {}, frozenset()),
    "indirect": ({"indirect": "tx+rx", "features": ALL_FEATURES}, {"features": ALL_FEATURES}, frozenset()),
    "split-indirect": (
        {"split": "tx+rx", "indirect": "tx+rx", "features": F_INDIRECT | F_NS},
        {"features": ALL_FEATURES},
        frozenset(),
    ),
    "event-idx": ({"features": ALL_FEATURES}, {"features": ALL_FEATURES}, frozenset()),
    "event-idx-ignored": (
        {"features": ALL_FEATURES, "ignore_event_idx": True, "kick_always": True},
        {"features": ALL_FEATURES, "ignore_event_idx": True, "kick_always": True},
        frozenset({"2.7.7.1-2", "2.7.10.2-2"}),
    ),
    "dirty": ({"dirty": True}, {"dirty": True}, frozenset()),
    "small": ({"num": 2}, {"num": 2}, frozenset()),
    "everything": (
        {
            **OPENAMP,
            **RPMSG_LITE,
            **WHOLE,
            "dirty": True,
            "split": "tx+rx",
            "indirect": "tx+rx",
            "features": ALL_FEATURES,
        },
        {**OPENAMP, **WHOLE, "kick_always": True, "dirty": True, "features": ALL_FEATURES},
        TOLERATE_OPENAMP | TOLERATE_RPMSG_LITE,
    ),
}


def program(folder: Path, role: str, mode: str, *options: object, **traps: object) -> subprocess.Popen[str]:
    arguments = [str(option) for option in options]
    for name, value in traps.items():
        if name == "tolerate":
            assert isinstance(value, frozenset)
            arguments += [word for rule in value for word in ("--tolerate", rule)]
        else:
            arguments += ["--trap", f"{name}={value!r}"]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.peers",
        role,
        folder / "shm",
        folder / "bell",
        "--mode",
        mode,
        *arguments,
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output, errors
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert process.returncode == (1 if report["violations"] or report["errors"] else 0)
    return report


@pytest.mark.parametrize("server", ["driver", "device"])
@pytest.mark.parametrize("habit", PAIRS)
def test_two_processes_echo(tmp_path: Path, habit: str, server: str) -> None:
    """The source is the device where it serves, so that each role echoes and each role starts."""
    driver, device, tolerate = PAIRS[habit]
    traps = {"driver": {**driver, "tolerate": tolerate}, "device": {**device, "tolerate": tolerate}}
    count = 1500
    client = "device" if server == "driver" else "driver"
    echo = program(tmp_path, client, "echo", "--no-server", "--count", count, **traps[client])
    source = program(tmp_path, server, "source", "--echoed", "--server", "--count", count, "--seed", 7, **traps[server])
    for report in (outcome(source), outcome(echo)):
        assert (report["violations"], report["errors"]) == ([], [])
        assert (report["sent"], report["received"]) == (count, count)


@pytest.mark.parametrize("source", ["driver", "device"])
def test_indices_wrap(tmp_path: Path, source: str) -> None:
    """More messages than a 16-bit index counts."""
    count = 66_000
    sink = program(tmp_path, "device" if source == "driver" else "driver", "sink", "--count", count)
    sent = outcome(program(tmp_path, source, "source", "--count", count))
    received = outcome(sink)
    assert (sent["violations"], sent["errors"], sent["sent"]) == ([], [], count)
    assert (received["violations"], received["errors"], received["received"]) == ([], [], count)


def test_the_program_reports_a_violation(tmp_path: Path) -> None:
    """The openamp profile breaks rules that this sink was not told to tolerate."""
    sink = program(tmp_path, "device", "sink", "--count", 1, "--timeout", 5)
    source = program(tmp_path, "driver", "source", "--count", 1, "--timeout", 5, "--profile", "openamp")
    report = outcome(sink)
    assert [violation["rule"] for violation in report["violations"]] in (["2.1.1-1"], ["3.1.1-5"])
    assert outcome(source)["errors"]


def test_the_program_reports_a_wrong_payload(tmp_path: Path) -> None:
    sink = program(tmp_path, "device", "sink", "--count", 5, "--seed", 1)
    source = program(tmp_path, "driver", "source", "--count", 5, "--seed", 2)
    report = outcome(sink)
    assert report["violations"] == [] and "payload" in report["errors"][0]
    outcome(source)


def test_shares_nothing_with_rpmsgx() -> None:
    for file in (ROOT / "tests" / "peers").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {
            node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
        }
        assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names, file
    loaded = "import sys, tests.peers.__main__; print([m for m in sys.modules if m.partition('.')[0] == 'rpmsgx'])"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# -- what stands in shared memory ----------------------------------------------------------------------------


def test_table_bytes(tmp_path: Path) -> None:
    with LiteralPeer(tmp_path / "shm", tmp_path / "bell", role="device", server=True):
        file = (tmp_path / "shm").read_bytes()
    assert (tmp_path / "shm").stat().st_mode & 0o777 == 0o600
    assert len(file) == 0x80000
    assert file[:88] == bytes.fromhex(
        "01000000 01000000 00000000 00000000 14000000"
        "03000000 07000000 00000000 01000000 00000000 00000000 00 02 0000"
        "00400000 00100000 00010000 01000000 00000000"
        "00800000 00100000 00010000 02000000 00000000"
    )
    assert not any(file[88:])


def test_linux_bytes(tmp_path: Path) -> None:
    """All rx buffers posted WRITE, tx-complete interrupts off, status 7, exact lengths; vring0 is mute."""
    with linked(tmp_path) as (driver, device):
        assert read(driver, "B", STATUS) == 7
        assert read(driver, "I", GFEATURES) == 1
        assert [read(driver, "QIHH", DESC0 + 16 * i) for i in (0, 255)] == [
            (0x10000, 512, 2, 0),
            (0x2FE00, 512, 2, 0),
        ]
        assert (read(driver, "HH", AVAIL0), read(driver, "HH", USED0)) == ((0, 256), (1, 0))
        assert (read(driver, "HH", AVAIL1), read(driver, "HH", USED1)) == ((1, 0), (0, 0))

        driver.send(0x400, 0x500, b"hello")
        assert read(driver, "QIHH", DESC1) == (0x30000, 21, 0, 0)
        assert read(driver, "HHH", AVAIL1) == (1, 1, 0)
        assert driver.file.mm[TX_POOL : TX_POOL + 21] == struct.pack("=IIIHH", 0x400, 0x500, 0, 5, 0) + b"hello"
        assert device.recv() == (0x400, 0x500, b"hello")
        assert read(driver, "HHII", USED1) == (0, 1, 0, 0)

        device.send(0x500, 0x400, b"")
        assert read(driver, "HHII", USED0) == (1, 1, 0, 16)
        assert driver.file.mm[RX_POOL : RX_POOL + 16] == struct.pack("=IIIHH", 0x500, 0x400, 0, 0, 0)
        assert driver.recv() == (0x500, 0x400, b"")
        assert read(driver, "HH", AVAIL0) == (0, 257)

        device.announce("service", 0x500)
        assert driver.file.mm[RX_POOL + 512 : RX_POOL + 568] == (
            struct.pack("=IIIHH", 0x500, 53, 0, 40, 0) + b"service".ljust(32, b"\0") + struct.pack("=II", 0x500, 0)
        )
        assert driver.wait_channel("service") == 0x500
        device.destroy("service", 0x500)
        driver.poll(1)
        assert driver.channels == {}
        assert driver.announcements == [("service", 0x500, 0), ("service", 0x500, 1)]


def test_openamp_bytes(tmp_path: Path) -> None:
    traps: dict[str, Any] = {**OPENAMP, **WHOLE, "tolerate": TOLERATE_OPENAMP}
    with linked(tmp_path, **traps) as (driver, device):
        assert read(driver, "B", STATUS) == 4
        assert device.counters["tolerated"]  # DRIVER_OK alone
        driver.announce("amp", 0x400)
        assert read(driver, "QIHH", DESC1) == (TX_POOL, 512, 0, 0)
        assert driver.file.mm[TX_POOL + 16 : TX_POOL + 48] == b"amp\0".ljust(32, b"\xa5")
        assert device.wait_channel("amp") == 0x400
        assert read(driver, "I", TX_POOL + 8) == 1 << 16  # hdr.reserved: buffer 0, held once
        assert read(driver, "HHII", USED1) == (0, 1, 0, 512)
        device.send(0x400, 0x400, b"x")
        assert read(driver, "HHII", USED0) == (1, 1, 0, 512)
        assert driver.recv() == (0x400, 0x400, b"x")
        assert driver.counters["reserved_written"] == 1
        driver.reset()
        assert read(driver, "B", STATUS) == 0x40
        device.poll(1)
        assert device.resets == 1


def test_rpmsg_lite_bytes(tmp_path: Path) -> None:
    traps = {**RPMSG_LITE, **WHOLE, "tolerate": TOLERATE_RPMSG_LITE}
    with linked(tmp_path, **traps) as (driver, device):
        assert read(driver, "HHIIII", USED1) == (0, 256, 0, 512, 1, 512)
        assert read(driver, "HH", AVAIL1) == (1, 0)
        assert read(driver, "QIHH", DESC1) == (TX_POOL, 512, 2, 0)
        for head in (0, 1):
            driver.send(1, 2, b"x")
            assert read(driver, "I", TX_POOL + 512 * head + 8) == head << 16  # hdr.reserved
            assert device.recv() == (1, 2, b"x")
        assert read(driver, "HH", USED1) == (0, 258)


def test_bytes_of_other_drivers(tmp_path: Path) -> None:
    """[openamp] A used buffer before a fresh one; posted again with used.len; 0x40 is answered with 0."""
    traps = {"recycle_first": True, "repost_used_length": True, "reset_status": 0x40}
    with linked(tmp_path, driver=traps, device={"clear_reset": True}) as (driver, device):
        for text in (b"a", b"b"):
            driver.send(1, 2, text)
            assert device.recv() == (1, 2, text)
            driver.poll()
            device.send(2, 1, text)
            assert driver.recv() == (2, 1, text)
        assert read(driver, "HHHH", AVAIL1) == (1, 2, 0, 0)  # head 0 both times
        assert [read(driver, "QIHH", DESC0 + 16 * i) for i in range(3)] == [
            (RX_POOL, 17, 2, 0),
            (RX_POOL + 512, 17, 2, 0),
            (RX_POOL + 1024, 512, 2, 0),
        ]
        driver.reset()
        device.poll(1)
        assert (device.resets, read(driver, "B", STATUS)) == (1, 0x40)
        device.poll(0)
        assert read(driver, "B", STATUS) == 0


def test_chain_bytes(tmp_path: Path) -> None:
    """Header and payload apart; indirectly; header direct, payload behind an INDIRECT descriptor."""
    with linked(tmp_path, driver={"split": "tx"}) as (driver, device):
        driver.send(1, 2, b"abc")
        assert read(driver, "QIHH", DESC1) == (TX_POOL, 16, 1, 128)
        assert read(driver, "QIHH", DESC1 + 16 * 128) == (TX_POOL + 0x10000, 3, 0, 0)
        driver.send(1, 2, b"")
        assert read(driver, "QIHH", DESC1 + 16) == (TX_POOL + 512, 16, 0, 0)
        assert [device.recv(), device.recv()] == [(1, 2, b"abc"), (1, 2, b"")]
    (tmp_path / "b").mkdir()
    traps = {"split": "tx", "indirect": "tx"}
    with linked(tmp_path / "b", features=ALL_FEATURES, driver=traps) as (driver, device):
        driver.send(1, 2, b"abc")
        address, length, flags, _ = read(driver, "QIHH", DESC1)
        assert (length, flags) == (32, 4)
        assert read(driver, "QIHHQIHH", address) == (TX_POOL, 16, 1, 1, TX_POOL + 0x10000, 3, 0, 0)
        driver.send(1, 2, b"def")
        assert read(driver, "QIHH", DESC1 + 16) == (TX_POOL + 512, 16, 1, 129)
        address, length, flags, _ = read(driver, "QIHH", DESC1 + 16 * 129)
        assert (length, flags) == (16, 4)
        assert read(driver, "QIHH", address) == (TX_POOL + 0x10200, 3, 0, 0)
        assert [device.recv(), device.recv()] == [(1, 2, b"abc"), (1, 2, b"def")]


def test_geometry_comes_from_the_table(tmp_path: Path) -> None:
    with linked(tmp_path, driver={"num": 256}, device={"num": 8}, server="device") as (driver, device):
        assert read(driver, "HH", 0x4000 + 16 * 8) == (0, 8)
        for i in range(20):
            driver.send(1, 2, payload(i, 0))
            device.send(2, 1, payload(i, 1))
            check(i, 0, device.recv()[2])
            check(i, 1, driver.recv()[2])


def test_doorbells_follow_suppression(tmp_path: Path) -> None:
    with linked(tmp_path, device={"kick_always": True}) as (driver, device):
        before = driver.counters["kicks_out"]
        poke(device, "H", USED1, 1)  # "do not kick me", written to memory behind the device's back
        driver.send(1, 2, b"")
        assert driver.counters["kicks_out"] == before
        poke(device, "H", USED1, 0)
        driver.send(1, 2, b"")
        assert driver.counters["kicks_out"] == before + 1
        before = device.counters["kicks_out"]
        poke(driver, "H", AVAIL0, 1)
        device.send(2, 1, b"")
        assert device.counters["kicks_out"] == before + 1  # it ignores that


def test_event_idx_counts(tmp_path: Path) -> None:
    """With EVENT_IDX one kick announces a batch, and flags stay 0."""
    with linked(tmp_path, features=F_NS | F_EVENT_IDX) as (driver, device):
        assert read(driver, "I", GFEATURES) == F_NS | F_EVENT_IDX
        before = driver.counters["kicks_out"]
        for i in range(5):
            driver.send(1, 2, bytes(i))
        assert driver.counters["kicks_out"] == before + 1
        assert [len(device.recv()[2]) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(TimeoutError):
            device.recv(0)
        assert read(driver, "H", USED1 + 4 + 8 * 256) == 5  # avail_event
        driver.send(1, 2, b"")
        assert driver.counters["kicks_out"] == before + 2
        assert [read(driver, "H", at) for at in (AVAIL0, USED0, AVAIL1, USED1)] == [0, 0, 0, 0]


def test_full_ring_and_flush(tmp_path: Path) -> None:
    with linked(tmp_path, num=4) as (driver, device):
        for sender, receiver in ((driver, device), (device, driver)):
            for i in range(4):
                sender.send(1, 2, bytes(i))
            with pytest.raises(TimeoutError):
                sender.send(1, 2, b"", timeout=0)
            with pytest.raises(TimeoutError):
                sender.flush(0)
            assert [len(receiver.recv()[2]) for _ in range(4)] == [0, 1, 2, 3]
            sender.flush(1)
            sender.send(1, 2, b"more")
            assert receiver.recv() == (1, 2, b"more")


def test_reset_starts_over(tmp_path: Path) -> None:
    with linked(tmp_path) as (driver, device):
        device.announce("service", 0x500)
        driver.send(1, 2, b"before")
        assert driver.wait_channel("service") == 0x500
        assert device.recv() == (1, 2, b"before")
        driver.reset()
        assert driver.channels == {}
        device.poll(1)
        assert (device.resets, device.running) == (1, False)
        driver.start(1)
        device.poll(1)
        assert device.running
        assert driver.wait_channel("service", 1) == 0x500  # announced again
        driver.send(1, 2, b"after")
        assert device.recv(1) == (1, 2, b"after")


def test_the_other_end_goes_away(tmp_path: Path) -> None:
    with linked(tmp_path) as (driver, device):
        device.send(2, 1, b"last words")
        device.close()
        assert driver.recv(1) == (2, 1, b"last words")
        with pytest.raises(EOFError):
            driver.recv(5)


def test_waits_end(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        LiteralPeer(tmp_path / "shm", tmp_path / "none", role="device").start(0.05)
    with LiteralPeer(tmp_path / "shm", tmp_path / "bell", role="driver") as peer, pytest.raises(TimeoutError):
        peer.start(0.05)
    assert not (tmp_path / "bell").exists()
    with linked(tmp_path) as (driver, _), pytest.raises(TimeoutError):
        driver.recv(0.01)


@pytest.mark.parametrize(
    "options",
    [{"role": "host"}, {"num": 3}, {"num": 512}, {"tolerate": {"desc.addr"}}, {"peer_lengths": "x"}],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LiteralPeer(tmp_path / "shm", tmp_path / "bell", **{"role": "driver", **options})


def test_wrong_messages(tmp_path: Path) -> None:
    with linked(tmp_path) as (driver, _):
        for src, dst, data in ((1, 2, bytes(497)), (0xFFFFFFFF, 2, b""), (1, 0xFFFFFFFF, b"")):
            with pytest.raises(ValueError):
                driver.send(src, dst, data)
        for name in ("n" * 32, ""):
            with pytest.raises(ValueError):
                driver.announce(name, 5)
        assert read(driver, "H", AVAIL1 + 2) == 0


# -- violations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "form", "offset", "value"),
    [
        ("resource-table", "I", 0x00, 2),
        ("resource-table", "I", 0x04, 2),
        ("resource-table", "I", 0x08, 1),
        ("resource-table", "I", 0x10, 0x18),
        ("resource-table", "I", 0x14, 1),
        ("resource-table", "I", 0x18, 3),
        ("2.2.2-3", "I", 0x20, 3),
        ("2.2.1-1", "I", 0x24, 1 << 29),
        ("resource-table", "I", 0x28, 4),
        ("resource-table", "B", 0x2C, 4),
        ("resource-table", "B", 0x2D, 3),
        ("resource-table", "I", 0x30, 0),  # vring0 over the table
        ("resource-table", "I", 0x30, 0x9000),  # vring0 in vring1
        ("resource-table", "I", 0x30, 0x7E000),  # past the end
        ("2.7.1-1", "I", 0x30, 0x4010),
        ("2.7.1-1", "I", 0x34, 0),
        ("2.7.1-1", "I", 0x34, 0x1800),
        ("2.7-F1", "I", 0x38, 0),
        ("2.7-F1", "I", 0x38, 255),
        ("2.7-F1", "I", 0x38, 0xFFFFFFFF),
        ("resource-table", "I", 0x3C, 0),
        ("resource-table", "I", 0x54, 0x4000),
    ],
)
def test_wrong_tables(tmp_path: Path, rule: str, form: str, offset: int, value: int) -> None:
    with LiteralPeer(tmp_path / "shm", tmp_path / "bell", role="device", server=True):
        with open(tmp_path / "shm", "r+b") as file:
            file.seek(offset)
            file.write(struct.pack("=" + form, value))
        client = LiteralPeer(tmp_path / "shm", tmp_path / "bell", role="driver", server=False)
        violated(rule, lambda: client.connect(1))
        client.close()


@pytest.mark.parametrize("fault", ["mode", "short", "odd"])
def test_wrong_files(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "shm"
    with LiteralPeer(path, tmp_path / "bell", role="device", server=True):
        if fault == "mode":
            path.chmod(0o644)
        else:
            os.truncate(path, {"short": 0x7F000, "odd": 0x80001}[fault])
        client = LiteralPeer(path, tmp_path / "bell", role="driver", server=False)
        violated("file", lambda: client.connect(1))
        client.close()


Corruption = Callable[[LiteralPeer, LiteralPeer], object]


def header(src: int = 1, dst: int = 2, reserved: int = 0, size: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=IIIHH", src, dst, reserved, size, flags)


def used_entry(ident: int, length: int, count: int = 1) -> Corruption:
    """A forged first used entry on vring0, where the driver has all its buffers outstanding."""

    def corrupt(driver: LiteralPeer, device: LiteralPeer) -> None:
        poke(device, "II", USED0 + 4, ident, length)
        poke(device, "H", USED0 + 2, count)

    return corrupt


def received(message: bytes, length: int | None = None) -> Corruption:
    """A forged message in the driver's first rx buffer."""

    def corrupt(driver: LiteralPeer, device: LiteralPeer) -> None:
        device.file.mm[RX_POOL : RX_POOL + len(message)] = message
        used_entry(0, len(message) if length is None else length)(driver, device)

    return corrupt


def announced(name: bytes, addr: int = 0x500, flags: int = 0, src: int = 0x500, extra: bytes = b"") -> Corruption:
    body = struct.pack("=32sII", name, addr, flags) + extra
    return received(header(src, 53, size=len(body)) + body)


def announced_twice(driver: LiteralPeer, device: LiteralPeer) -> None:
    device.announce("twice", 0x500)
    device.announce("twice", 0x500)


def after_tx(corrupt: Callable[[LiteralPeer], object]) -> Corruption:
    """The device has taken one message of the driver's; then `corrupt`."""

    def act(driver: LiteralPeer, device: LiteralPeer) -> None:
        driver.send(1, 2, b"payload")
        corrupt(device)
        device.recv(1)

    return act


def same_id_twice(driver: LiteralPeer, device: LiteralPeer) -> None:
    device.file.mm[RX_POOL : RX_POOL + 16] = header()
    poke(device, "IIII", USED0 + 4, 0, 16, 0, 16)
    poke(device, "H", USED0 + 2, 2)


def used_goes_back(driver: LiteralPeer, device: LiteralPeer) -> None:
    device.send(2, 1, b"")
    driver.recv(1)
    poke(device, "H", USED0 + 2, 0)


@pytest.mark.parametrize(
    ("rule", "corrupt"),
    [
        pytest.param(rule, corrupt, id=f"{name}-{rule}")
        for name, rule, corrupt in (
            ("idx jumps", "used.idx", used_entry(0, 16, 257)),
            ("idx goes back", "used.idx", used_goes_back),
            ("id of the ring size", "used.ring", used_entry(256, 16)),
            ("id 2^32-1", "used.ring", used_entry(0xFFFFFFFF, 16)),
            ("same id twice", "used.ring", same_id_twice),
            ("len beyond the buffer", "2.7.8.3-1", used_entry(0, 513)),
            ("len below the header", "used.len", used_entry(0, 15)),
            ("flags 2", "2.7.10.2-1", lambda _, device: poke(device, "H", USED0, 2)),
            ("flags 2 on tx", "2.7.10.2-1", lambda _, device: poke(device, "H", USED1, 2)),
            ("descriptor written", "2.7.5.1-3", lambda _, device: poke(device, "I", DESC0 + 16 * 9 + 8, 511)),
            ("tx descriptor written", "2.7.5.1-3", lambda _, device: poke(device, "H", DESC1 + 16 * 255, 1)),
            ("avail ring written", "avail.ring", lambda _, device: poke(device, "H", AVAIL0 + 4, 7)),
            ("avail idx written", "avail.ring", lambda _, device: poke(device, "H", AVAIL1 + 2, 7)),
            ("src written", "2.7.5.1-1", after_tx(lambda device: poke(device, "I", TX_POOL, 9))),
            ("payload written", "2.7.5.1-1", after_tx(lambda device: poke(device, "B", TX_POOL + 16, 0))),
            ("behind it written", "2.7.5.1-1", after_tx(lambda device: poke(device, "B", TX_POOL + 511, 1))),
            ("status written", "resource-table", lambda _, device: poke(device, "B", STATUS, 0x47)),
            ("da written", "resource-table", lambda _, device: poke(device, "I", 0x30, 0)),
            ("header reserved", "rpmsg-reserved", received(header(reserved=1))),
            ("header flags", "rpmsg-header", received(header(flags=1))),
            ("hdr.len beyond used.len", "rpmsg-header", received(header(size=1))),
            ("hdr.len 65535", "rpmsg-header", received(header(size=0xFFFF), 512)),
            ("src ANY", "rpmsg-header", received(header(src=0xFFFFFFFF))),
            ("dst ANY", "rpmsg-header", received(header(dst=0xFFFFFFFF))),
            ("name without NUL", "rpmsg-ns", announced(b"n" * 32)),
            ("empty name", "rpmsg-ns", announced(b"")),
            ("name not ASCII", "rpmsg-ns", announced(b"\xff\xfe")),
            ("garbage after NUL", "rpmsg-ns-padding", announced(b"a\0b")),
            ("41 bytes", "rpmsg-ns", announced(b"a", extra=b"\0")),
            ("39 bytes", "rpmsg-ns", received(header(5, 53, size=39) + bytes(39))),
            ("ns flags 2", "rpmsg-ns", announced(b"a", flags=2)),
            ("ns for another", "rpmsg-ns", announced(b"a", addr=0x501)),
            ("ns ANY", "rpmsg-ns", announced(b"a", addr=0xFFFFFFFF)),
            ("destroy of the unknown", "rpmsg-ns", announced(b"a", flags=1)),
            ("announced twice", "rpmsg-ns", announced_twice),
        )
    ],
)  # fmt: skip
def test_driver_finds(tmp_path: Path, rule: str, corrupt: Corruption) -> None:
    with linked(tmp_path) as (driver, device):
        driver.poll(0)
        corrupt(driver, device)
        violated(rule, lambda: driver.recv(1))


def exposed(*heads: int, count: int | None = None) -> Corruption:
    """Forged available entries on vring1."""

    def corrupt(driver: LiteralPeer, device: LiteralPeer) -> None:
        poke(driver, f"{len(heads)}H", AVAIL1 + 4, *heads)
        poke(driver, "H", AVAIL1 + 2, len(heads) if count is None else count)

    return corrupt


def chain(*descriptors: tuple[int, int, int, int], table: tuple[tuple[int, int, int, int], ...] = ()) -> Corruption:
    """Descriptors 0, 1, ... of vring1 (and an indirect table at 0x60000), of which 0 is exposed."""

    def corrupt(driver: LiteralPeer, device: LiteralPeer) -> None:
        for i, descriptor in enumerate(descriptors):
            poke(driver, "QIHH", DESC1 + 16 * i, *descriptor)
        for i, descriptor in enumerate(table):
            poke(driver, "QIHH", 0x60000 + 16 * i, *descriptor)
        exposed(0)(driver, device)

    return corrupt


def sent(message: bytes, length: int | None = None) -> Corruption:
    """A forged message in the driver's first tx buffer."""

    def corrupt(driver: LiteralPeer, device: LiteralPeer) -> None:
        driver.file.mm[TX_POOL : TX_POOL + len(message)] = message
        chain((TX_POOL, len(message) if length is None else length, 0, 0))(driver, device)

    return corrupt


def avail_goes_back(driver: LiteralPeer, device: LiteralPeer) -> None:
    driver.send(1, 2, b"")
    device.recv(1)
    poke(driver, "H", AVAIL1 + 2, 0)


def exposed_entry_changes(driver: LiteralPeer, device: LiteralPeer) -> None:
    poke(driver, "I", DESC0 + 8, 256)
    device.send(2, 1, b"")


def same_rx_head(driver: LiteralPeer, device: LiteralPeer) -> None:
    device.send(2, 1, b"")  # head 0 comes free, but head 1 is posted instead
    poke(driver, "H", AVAIL0 + 4, 1)
    poke(driver, "H", AVAIL0 + 2, 257)


def repost(*descriptor: int) -> Corruption:
    """The driver posts its first rx buffer once more, described otherwise."""

    def corrupt(driver: LiteralPeer, device: LiteralPeer) -> None:
        device.send(2, 1, b"")
        poke(driver, "QIHH", DESC0, *descriptor)
        poke(driver, "H", AVAIL0 + 4, 0)
        poke(driver, "H", AVAIL0 + 2, 257)

    return corrupt


A, B = TX_POOL, TX_POOL + 512


@pytest.mark.parametrize(
    ("rule", "corrupt"),
    [
        pytest.param(rule, corrupt, id=f"{name}-{rule}")
        for name, rule, corrupt in (
            ("idx jumps", "avail.idx", exposed(0, count=257)),
            ("idx goes back", "2.7.6.1-1", avail_goes_back),
            ("head of the ring size", "avail.ring", exposed(256)),
            ("head 65535", "avail.ring", exposed(0xFFFF)),
            ("the same head twice", "avail.ring", same_rx_head),
            ("flags 2", "2.7.7.1-1", lambda driver, _: poke(driver, "H", AVAIL1, 2)),
            ("flags 2 on rx", "2.7.7.1-1", lambda driver, _: poke(driver, "H", AVAIL0, 2)),
            ("used ring written", "used.ring", lambda driver, _: poke(driver, "I", USED1 + 8, 1)),
            ("used idx written", "used.ring", lambda driver, _: poke(driver, "H", USED0 + 2, 1)),
            ("length 0", "desc.len", chain((A, 0, 0, 0))),
            ("shorter than a header", "desc.len", chain((A, 15, 0, 0))),
            ("length 2^32-1", "desc.addr", chain((A, 0xFFFFFFFF, 0, 0))),
            ("past the file", "desc.addr", chain((0x80000 - 8, 16, 0, 0))),
            ("address overflows", "desc.addr", chain((0xFFFFFFFFFFFFFFF8, 16, 0, 0))),
            ("on a ring", "desc.addr", chain((DESC0, 512, 0, 0))),
            ("on the table", "desc.addr", chain((0, 512, 0, 0))),
            ("on a posted buffer", "desc.addr", chain((RX_POOL + 100, 16, 0, 0))),
            ("unknown flag", "desc.flags", chain((A, 16, 8, 0))),
            ("next of the ring size", "desc.next", chain((A, 16, 1, 256))),
            ("loop of one", "2.7.5.2-1", chain((A, 16, 1, 0))),
            ("loop of two", "2.7.5.2-1", chain((A, 16, 1, 1), (B, 16, 1, 0))),
            ("readable after writable", "2.7.4.2-1", chain((A, 16, 3, 1), (B, 16, 0, 0))),
            ("message in a writable buffer", "2.7.5.1-2", chain((A, 16, 2, 0))),
            ("INDIRECT unnegotiated", "2.7.5.3.1-1", chain((0x60000, 16, 4, 0), table=((A, 16, 0, 0),))),
            ("rx buffer not writable", "2.7.5.1-1", repost(RX_POOL, 512, 0, 0)),
            ("rx buffer of 8 bytes", "desc.len", repost(RX_POOL, 8, 2, 0)),
            ("exposed descriptor changed", "3.3.1-1", exposed_entry_changes),
            ("status bit cleared", "2.1.1-2", lambda driver, _: poke(driver, "B", STATUS, 2)),
            ("FAILED", "2.1.1-1", lambda driver, _: poke(driver, "B", STATUS, 0x87)),
            ("gfeatures late", "3.1.1-3", lambda driver, _: poke(driver, "I", GFEATURES, 0)),
            ("table changed", "resource-table", lambda driver, _: poke(driver, "I", 0x34, 16)),
            ("header reserved", "rpmsg-reserved", sent(header(reserved=1))),
            ("header flags", "rpmsg-header", sent(header(flags=1))),
            ("hdr.len beyond desc.len", "rpmsg-header", sent(header(size=497), 512)),
            ("src ANY", "rpmsg-header", sent(header(src=0xFFFFFFFF))),
            ("name without NUL", "rpmsg-ns", sent(header(5, 53, size=40) + b"n" * 40)),
            ("39 bytes of ns", "rpmsg-ns", sent(header(5, 53, size=39) + bytes(39))),
        )
    ],
)  # fmt: skip
def test_device_finds(tmp_path: Path, rule: str, corrupt: Corruption) -> None:
    with linked(tmp_path) as (driver, device):

        def act() -> None:
            corrupt(driver, device)
            device.recv(1)

        violated(rule, act)


@pytest.mark.parametrize(
    ("rule", "corrupt"),
    [
        ("2.7.5.3.1-2", chain((0x60000, 16, 4, 0), table=((A, 16, 4, 0),))),
        ("2.7.5.3.1-4", chain((0x60000, 16, 5, 1), (B, 16, 0, 0), table=((A, 16, 0, 0),))),
        ("desc.len", chain((0x60000, 24, 4, 0), table=((A, 16, 0, 0),))),
        ("desc.len", chain((0x60000, 0, 4, 0))),
        ("desc.addr", chain((0x7FFF8, 16, 4, 0))),
        ("desc.next", chain((0x60000, 16, 4, 0), table=((A, 16, 1, 1),))),
        ("2.7.5.2-1", chain((0x60000, 16, 4, 0), table=((A, 16, 1, 0),))),
        (
            "2.7.5.3.1-3",
            chain(
                (0x60000, 16 * 257, 4, 0),
                table=tuple((A + 16 * i, 16, 1 if i < 256 else 0, i + 1) for i in range(257)),
            ),
        ),
    ],
)
def test_device_finds_in_indirect_tables(tmp_path: Path, rule: str, corrupt: Corruption) -> None:
    with linked(tmp_path, features=F_NS | F_INDIRECT) as (driver, device):
        corrupt(driver, device)
        violated(rule, lambda: device.recv(1))


def test_driver_finds_a_written_indirect_table(tmp_path: Path) -> None:
    with linked(tmp_path, features=F_NS | F_INDIRECT, driver={"indirect": "tx"}) as (driver, device):
        driver.send(1, 2, b"abc")
        table = read(driver, "Q", DESC1)
        device.recv(1)
        poke(device, "I", table + 8, 20)
        violated("2.7.5.1-3", lambda: driver.recv(1))


def test_flags_with_event_idx(tmp_path: Path) -> None:
    """EVENT_IDX was accepted and is not applied by the other end: its flags are set."""
    with linked(tmp_path, features=F_NS | F_EVENT_IDX, device={"ignore_event_idx": True}) as (driver, _):
        violated("2.7.10.2-2", lambda: driver.recv(1))
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(Violation, match="2.7.7.1-2"),
        linked(tmp_path / "b", features=F_NS | F_EVENT_IDX, driver={"ignore_event_idx": True}) as (_, device),
    ):
        device.recv(1)
    (tmp_path / "c").mkdir()
    with linked(tmp_path / "c", features=F_NS | F_EVENT_IDX, tolerate=literal.TOLERABLE) as (driver, device):
        poke(driver, "H", AVAIL0, 1)
        device.poll()
        poke(driver, "H", AVAIL0, 2)
        violated("2.7.7.1-2", device.poll)


@pytest.mark.parametrize(
    ("features", "role", "rule"),
    [
        (F_NS, "driver", "2.7.10.1-4"),
        (F_NS, "device", "2.7.7.2-3"),
        (F_NS | F_EVENT_IDX, "driver", "2.7.10.1-6"),
        (F_NS | F_EVENT_IDX, "device", "2.7.7.2-5"),
    ],
)
def test_missing_doorbell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: int, role: str, rule: str) -> None:
    """The message is there and is delivered; the byte that should have announced it never comes."""
    with linked(tmp_path, features=features, kick_wait=0.05) as (driver, device):
        driver.poll(0)
        device.poll(0)
        silent, other = (driver, device) if role == "driver" else (device, driver)
        monkeypatch.setattr(silent.bell, "ring", lambda: None)
        silent.send(1, 2, b"unheard")
        assert other.recv(1) == (1, 2, b"unheard")
        violated(rule, lambda: other.recv(5))


def test_missing_doorbell_is_found_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with linked(tmp_path, kick_wait=0.05) as (driver, device):
        device.poll(0)
        monkeypatch.setattr(driver.bell, "ring", lambda: None)
        driver.send(1, 2, b"unheard")
        violated("2.7.10.1-4", device.close)


def test_a_late_doorbell_is_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with linked(tmp_path) as (driver, device):
        device.poll(0)
        with monkeypatch.context() as patch:
            patch.setattr(driver.bell, "ring", lambda: None)
            driver.send(1, 2, b"early")
        assert device.recv(1) == (1, 2, b"early")
        driver.bell.ring()
        device.close()


@pytest.mark.parametrize(
    ("rule", "traps"),
    [
        ("2.1.1-1", {"driver_ok_alone": True}),
        ("2.7.5.1-2", {"write_flags": True}),
        ("used-prefilled", {"prefill": True}),
        ("rpmsg-ns-padding", {"name_garbage": True}),
        ("rpmsg-length", {"whole_lengths": True}),
        ("rpmsg-reserved", {"reserved_garbage": True}),
    ],
)
def test_traps_are_violations_unless_tolerated(tmp_path: Path, rule: str, traps: dict[str, Any]) -> None:
    def run(folder: Path, tolerate: frozenset[str], lengths: str) -> None:
        folder.mkdir()
        device = {"tolerate": tolerate, "peer_lengths": lengths}
        with linked(folder, driver=traps, device=device) as (driver, other):
            driver.announce("n", 5)
            driver.send(5, 6, b"x")  # in the second buffer
            assert other.recv(1) == (5, 6, b"x")
            assert other.channels == {"n": 5}

    violated(rule, lambda: run(tmp_path / "a", frozenset(), "exact"))
    run(tmp_path / "b", literal.TOLERABLE, "whole" if "whole_lengths" in traps else "exact")


def test_whole_used_lengths_are_a_violation_unless_tolerated(tmp_path: Path) -> None:
    """And where they are tolerated nothing else is: not even 0, which others return."""
    for name, tolerate, length, wrong in (
        ("a", frozenset[str](), 0, False),
        ("b", frozenset[str](), 17, True),
        ("c", frozenset({"2.7.8.2-2"}), 17, False),
        ("d", frozenset({"2.7.8.2-2"}), 0, True),
        ("e", frozenset({"2.7.8.2-2"}), 16, True),
    ):
        (tmp_path / name).mkdir()
        with linked(tmp_path / name, driver={"tolerate": tolerate}) as (driver, device):
            driver.send(1, 2, b"x")
            poke(device, "II", USED1 + 4, 0, length)
            poke(device, "H", USED1 + 2, 1)
            if wrong:
                violated("2.7.8.2-2", driver.poll)
            else:
                driver.poll()


@pytest.mark.parametrize(
    ("id_", "length", "count"), [(1, 512, 256), (0, 511, 256), (0, 0, 256), (0xFFFFFFFF, 512, 256), (0, 512, 257)]
)
def test_a_wrong_prefilled_ring_is_not_tolerated(tmp_path: Path, id_: int, length: int, count: int) -> None:
    with apart(tmp_path, driver={"prefill": True}, device={"tolerate": literal.TOLERABLE}) as (driver, device):
        driver.start(1)
        poke(driver, "II", USED1 + 4, id_, length)
        poke(driver, "H", USED1 + 2, count)
        violated("used.idx" if count > 256 else "used.ring", lambda: device.start(1))


@pytest.mark.parametrize("offset", [88, 0x3FFF, 0x6806, 0x7FFF, 0xA806, 0xFFFF, 0x54000, 0x7FFFF])
@pytest.mark.parametrize("role", ["driver", "device"])
def test_bytes_that_belong_to_nobody(tmp_path: Path, role: str, offset: int) -> None:
    with linked(tmp_path, dirty=True) as (driver, device):
        finder, other = (driver, device) if role == "driver" else (device, driver)
        finder.poll()
        poke(other, "B", offset, 0xA4)
        violated("file", finder.close)


def test_kick_before_driver_ok(tmp_path: Path) -> None:
    with apart(tmp_path) as (driver, device):
        driver.bell.ring()
        violated("3.1.1-5", lambda: device.start(1))


@pytest.mark.parametrize(
    ("rule", "status"),
    [("3.1.2", 0x0F), ("3.1.1-4", 0x83), ("2.1.1-1", 2), ("2.1.1-1", 5), ("2.1.1-1", 0x17)],
)
@pytest.mark.parametrize("tolerate", [frozenset(), literal.TOLERABLE], ids=["strict", "tolerant"])
def test_wrong_status(tmp_path: Path, rule: str, status: int, tolerate: frozenset[str]) -> None:
    with apart(tmp_path, device={"tolerate": tolerate}) as (driver, device):
        poke(driver, "B", STATUS, status)
        violated(rule, lambda: device.start(1))


@pytest.mark.parametrize(("rule", "offset"), [("2.7.10.1-1", 0), ("used.idx", 2)])
def test_used_ring_not_zeroed(tmp_path: Path, rule: str, offset: int) -> None:
    with apart(tmp_path) as (driver, device):
        driver.start(1)
        poke(driver, "H", USED0 + offset, 1)
        violated(rule, lambda: device.start(1))


def test_device_rings_before_driver_ok(tmp_path: Path) -> None:
    with apart(tmp_path) as (driver, device):
        device.bell.ring()
        violated("2.1.2-1", lambda: driver.start(1))


def test_wrong_gfeatures(tmp_path: Path) -> None:
    with apart(tmp_path) as (driver, device):
        driver.start(1)
        poke(driver, "I", GFEATURES, F_NS | F_EVENT_IDX)
        violated("2.2.1-1", lambda: device.start(1))


def test_name_service_needs_the_feature(tmp_path: Path) -> None:
    with linked(tmp_path, features=0) as (driver, device):
        with pytest.raises(ValueError):
            device.announce("n", 5)
        body = struct.pack("=32sII", b"n", 5, 0)
        received(header(5, 53, size=40) + body)(driver, device)
        violated("rpmsg-ns", lambda: driver.recv(1))


# -- the numbered payloads -----------------------------------------------------------------------------------


def test_payloads() -> None:
    sizes = set()
    for seq in range(20_000):
        data = payload(seq, 3)
        sizes.add(len(data))
        assert data[:8] == seq.to_bytes(8, "little")[: len(data)]
        check(seq, 3, data)
    assert sizes == set(range(497))
    assert payload(5, 3) == payload(5, 3) != payload(5, 4)
    # Written down, so that a change of the generator is seen: other programs make the same bytes.
    assert (len(payload(1, 1)), payload(1, 1)[:12].hex()) == (88, "010000000000000017d15e8d")


@pytest.mark.parametrize("change", ["longer", "shorter", "bit", "next"])
def test_check_finds(change: str) -> None:
    seq = next(i for i in range(100) if len(payload(i, 0)) > 100)
    data = payload(seq, 0)
    wrong = {
        "longer": data + b"\0",
        "shorter": data[:-1],
        "bit": data[:-1] + bytes([data[-1] ^ 1]),
        "next": payload(seq + 1, 0),
    }[change]
    with pytest.raises(AssertionError, match=f"payload {seq} of seed 0"):
        check(seq, 0, wrong)
