"""The command line, as processes: two ends of a file: link, started in any order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import rpmsgx
from rpmsgx.cli import COMMANDS, ls

LIMIT = 30.0
COMMAND = [sys.executable, "-m", "rpmsgx"]

def run(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], input=stdin, capture_output=True, text=True, timeout=LIMIT)


class Running:
    """A command that runs beside the test."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self, stream: str = "stderr") -> str:
        """The next line, which pytest-timeout bounds."""
        fd = getattr(self.process, stream).fileno()
        text = b""
        while not text.endswith(b"\n"):  # no more than the line: communicate() does not see what a buffer has taken
            text += (byte := os.read(fd, 1))
            assert byte, (text, self.process.communicate(timeout=LIMIT))
        return text.decode()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err

    def interrupt(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGINT)
        return self.end()


@pytest.fixture
def start() -> Iterator[Any]:
    running: list[Running] = []

    def start(*args: str) -> Running:
        running.append(Running(*args))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'link'}"


# -- the command itself --------------------------------------------------------------------------------------


def test_version_and_help() -> None:
    assert run("--version").stdout == f"rpmsgx {rpmsgx.__version__}\n"
    done = run("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +\S", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: rpmsgx {name} ")


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nonsense",),
        ("ping",),
        ("ping", "virtual:x", "--role", "both"),
        ("ping", "virtual:x", "--count", "-1"),
        ("ping", "virtual:x", "--interval", "nan"),
        ("send", "virtual:x", "hi", "--dst", "0x80000000"),
        ("listen", "virtual:x", "--json", "--hex"),
        ("listen", "virtual:x", "-o", "novalue"),
    ],
)
def test_wrong_usage_is_status_2(args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("usage: rpmsgx") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("ping", "nonsense:x"), "unknown scheme 'nonsense'"),
        (("ping", "nothing"), "'nothing' is not a URL"),
        (("ping", "virtual:x", "--wait", "0"), "the peer did not announce 'rpmsg-raw' within 0"),
        (("ping", "virtual:x", "-o", "wrong=1"), "unexpected keyword argument 'wrong'"),
        (("ping", "virtual:x", "-o", "num=3"), "num must be a power of two"),
        (("send", "virtual:x", "hi", "--name", "x" * 32), "31 bytes"),
        (("send", "virtual:x", "hi", "--dst", "1", "--timeout", "0"), "within 0 s"),
        (("send", "virtual:x", "0g", "--hex"), "DATA is not hex"),
        (("send", "virtual:x", "hi", "--src", "53", "--dst", "1"), "53 is the name service's"),
    ],
)
def test_an_error_is_one_line_and_status_1(args: tuple[str, ...], reason: str) -> None:
    done = run(*args)
    assert done.returncode == 1
    assert done.stderr.startswith("rpmsgx: error: ") and done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_errors_name_the_file_and_do_not_drive_the_terminal(tmp_path: Path) -> None:
    done = run("listen", f"file:{tmp_path}/\x1b[31mnowhere/link")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        "nowhere" in done.stderr and "No such file or directory" in done.stderr and "\x1b" not in done.stderr
    )


def test_a_reader_that_goes_is_no_error() -> None:
    listing = subprocess.Popen([*COMMAND, "ls", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert listing.stdout is not None and listing.stderr is not None
    listing.stdout.close()
    assert listing.stderr.read() == b""
    assert listing.wait(LIMIT) == 141
    listing.stderr.close()


def test_the_parser_imports_next_to_nothing() -> None:
    code = (
        "import sys; from rpmsgx.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0
    modules = set(eval(done.stderr))
    assert {name for name in modules if name.startswith("rpmsgx")} == {
        "rpmsgx",
        "rpmsgx.cli",
        "rpmsgx.errors",
    }
    assert not modules & {"asyncio", "numpy", "elftools", "typing", "dataclasses", "inspect"}


# -- ls ------------------------------------------------------------------------------------------------------


def test_ls_lists_shipped_firmware_schemes_and_platforms() -> None:
    found = json.loads(run("ls", "--json").stdout)
    assert {image["name"] for image in found["firmware"]} == {"sample", "flood", "crash"}
    for image in found["firmware"]:
        data = Path(image["path"]).read_bytes()
        assert image["size"] == len(data) and image["sha256"] == sha256(data).hexdigest()
    assert {"virtual", "file", "memfd"} <= set(found["schemes"])
    assert {"unicorn", "native"} <= set(found["platforms"])
    text = run("ls").stdout
    assert "sample" in text and "virtual:" in text and "unicorn" in text


def test_ls_reads_the_kernels_objects(tmp_path: Path) -> None:
    files = {
        "class/remoteproc/remoteproc0/name": "imx-rproc",
        "class/remoteproc/remoteproc0/state": "running",
        "class/remoteproc/remoteproc0/firmware": "rproc-imx-rproc-fw",
        "bus/rpmsg/devices/virtio0.rpmsg-raw.-1.1024/name": "rpmsg-raw",
        "bus/rpmsg/devices/virtio0.rpmsg-raw.-1.1024/src": "0xffffffff",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    found = ls.look(str(tmp_path))
    assert found["remoteprocs"] == [
        {"device": "remoteproc0", "name": "imx-rproc", "state": "running", "firmware": "rproc-imx-rproc-fw"}
    ]
    assert found["rpmsg_devices"] == [
        {
            "device": "virtio0.rpmsg-raw.-1.1024", "name": "rpmsg-raw", "src": "0xffffffff", "dst": "",
            "driver": "", "node": "",
        }
    ]
    assert "imx-rproc" in ls._as_text(found)


# -- two ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["ping", "listen"])
def test_ping_and_an_echo_in_either_order(start: Any, url: str, first: str) -> None:
    ping = ["ping", url, "--count", "3", "--interval", "0", "--size", "100", "--timeout", "20"]
    listen = ["listen", url, "--echo", "--hex", "--count", "3"]
    if first == "ping":
        one = start(*ping)
        other = start(*listen)
        other.line()
    else:
        other = start(*listen)
        other.line()
        one = start(*ping)
    status, out, err = one.end()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert re.fullmatch(rf"PING {re.escape(url)} rpmsg-raw at 0x400 from 0x400: 100 bytes", lines[0])
    for seq in range(3):
        assert re.fullmatch(rf"100 bytes from 0x400: seq={seq} time=\d+\.\d{{3}} ms", lines[1 + seq])
    assert lines[-2] == "3 sent, 3 received, 0 lost"
    assert re.fullmatch(r"round trip min/median/p99/max = (\d+\.\d{3}/){3}\d+\.\d{3} ms", lines[-1])
    status, out, err = other.end()
    assert (status, err) == (0, "3 messages\n")
    assert [len(line) for line in out.splitlines()] == [200] * 3


def test_ping_in_json_with_the_roles_the_other_way_round(start: Any, url: str) -> None:
    other = start("listen", url, "--role", "driver", "--name", "my-echo", "--echo", "--count", "5")
    other.line()
    done = run(
        "ping", url, "--role", "device", "--name", "my-echo", "-c5", "-i0", "-s0", "--timeout=20", "--json"
    )
    assert done.returncode == 0, done.stderr
    *replies, summary = map(json.loads, done.stdout.splitlines())
    assert [(reply["seq"], reply["bytes"], reply["src"]) for reply in replies] == [
        (i, 0, 1024) for i in range(5)
    ]
    assert (summary["sent"], summary["received"], summary["lost"]) == (5, 5, 0)
    assert 0 < summary["min_ms"] <= summary["median_ms"] <= summary["p99_ms"] <= summary["max_ms"]
    assert max(reply["ms"] for reply in replies) == summary["max_ms"]
    assert other.end()[0] == 0


def test_ping_without_an_echo_loses_all_and_says_so(start: Any, url: str) -> None:
    start("listen", url).line()
    done = run("ping", url, "--count", "2", "--interval", "0", "--timeout", "0.05")
    assert done.returncode == 1
    assert done.stdout.count("no reply: seq=") == 2
    assert done.stdout.splitlines()[-1] == "2 sent, 0 received, 2 lost"


def test_ping_refuses_what_no_message_can_hold(start: Any, url: str) -> None:
    start("listen", url).line()
    done = run("ping", url, "--count", "1", "--size", "497")
    assert done.returncode == 1
    assert done.stderr == "rpmsgx: error: a message of 497 bytes; this link carries at most 496\n"


def test_ctrl_c_ends_ping_and_listen_with_a_summary(start: Any, url: str) -> None:
    listen = start("listen", url, "--echo", "--json")
    listen.line()
    ping = start("ping", url, "--interval", "1000", "--timeout", "20")
    ping.line("stdout")
    assert "seq=0" in ping.line("stdout")
    status, out, err = ping.interrupt()
    assert status == 130 and err == ""
    assert "1 sent, 1 received, 0 lost" in out
    status, out, err = listen.interrupt()
    assert (status, err) == (130, "1 message\n")
    assert len(out.splitlines()) == 1


def test_ctrl_c_while_nobody_is_there(start: Any, url: str, tmp_path: Path) -> None:
    listen = start("listen", url, "--role", "driver")
    listen.line()
    assert (tmp_path / "link.bell").is_socket()
    status, out, err = listen.interrupt()
    assert (status, out, err) == (130, "", "0 messages\n")
    assert not (tmp_path / "link.bell").exists()  # it was cleaned up behind it


def test_listen_goes_on_with_the_next_peer(start: Any, url: str) -> None:
    listen = start("listen", url, "--name", "log", "--json", "--count", "3")
    listen.line()
    for text in ("one", "two", "three"):
        done = run("send", url, text, "--name", "log", "--timeout", "20")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    status, out, err = listen.end()
    assert (status, err) == (0, "3 messages\n")
    assert [bytes.fromhex(json.loads(line)["hex"]) for line in out.splitlines()] == [b"one", b"two", b"three"]


def test_listen_prints_a_dump_with_addresses(start: Any, url: str) -> None:
    listen = start("listen", url, "--name", "", "--src", "0x31", "--count", "1")
    assert listen.line() == f"listening on {url} as device: 0x31\n"
    done = run(
        "send", url, "-", "--hex", "--dst", "0x31", "--src", "77", stdin="00 68656c6c6f1b ff" + "41" * 10
    )
    assert done.returncode == 0, done.stderr
    assert listen.end()[1].splitlines() == [
        "0x4d to 0x31: 18 bytes",
        "00000000  00 68 65 6c 6c 6f 1b ff  41 41 41 41 41 41 41 41  |.hello..AAAAAAAA|",
        "00000010  41 41                                             |AA|",
    ]


def test_send_with_an_address_of_its_own_to_a_service(start: Any, url: str) -> None:
    listen = start("listen", url, "--json", "--count", "1")
    listen.line()
    done = run("send", url, "x", "--src", "99", "--timeout", "20")
    assert done.returncode == 0, done.stderr
    assert json.loads(listen.end()[1])["src"] == 99


def test_bytes_of_standard_input_and_of_arguments_are_sent_as_they_are(start: Any, url: str) -> None:
    listen = start("listen", url, "--hex", "--count", "2")
    listen.line()
    command = [*COMMAND, "send", url, "--timeout", "20"]
    subprocess.run([*command, "-"], input=b"\x00\xff\n", timeout=LIMIT, check=True)
    subprocess.run([*map(os.fsencode, command), b"\xfe"], timeout=LIMIT, check=True)
    assert listen.end()[1] == "00ff0a\nfe\n"


def test_listen_ends_at_its_timeout(url: str) -> None:
    assert run("listen", url, "--timeout", "0.05").returncode == 0
    done = run("listen", url, "--timeout", "0.05", "--count", "1")
    assert (done.returncode, done.stdout) == (1, "")
