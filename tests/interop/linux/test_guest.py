# SPDX-License-Identifier: BSD-3-Clause
"""The kernel peer itself: boots, obeys, is checked, and its two modules are sound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim_firmware import firmware
from uml import Guest, GuestError, Line, unexpected

Boot = Callable[..., Guest]


def test_a_guest_runs_commands(uml: Boot) -> None:
    guest = uml()
    assert guest.run("uname -r").startswith("6.")
    assert guest.run("echo 'two  words'; printf 'no newline'") == "two  words\nno newline"
    assert guest.run("false", check=False) == ""
    with pytest.raises(GuestError, match="exit status 3"):
        guest.run("exit 3")
    assert guest.run("cat") == ""  # no input, and the shell still listens
    assert len(guest.run(f"echo {'x' * 20000}")) == 20001  # either way more than a terminal buffers
    assert "rpmsg_char" in guest.run("lsmod")


def test_a_guest_runs_the_hosts_python_on_this_tree(uml: Boot) -> None:
    guest = uml()
    said = guest.python("import os, rpmsgx.errors as e; print(e.__file__, os.uname().machine, os.getpid() < 4096)")
    assert said.split()[0].endswith("rpmsgx/errors.py")
    guest.run(f"echo made > /host{guest.folder}/inside")
    assert (guest.folder / "inside").read_text() == "made\n"
    assert "Read-only" in guest.run("touch /host/forbidden", check=False)


def test_a_command_that_hangs_is_given_up(uml: Boot) -> None:
    with pytest.raises(GuestError, match="longer than 0.2 s"):
        uml().run("sleep 1", timeout=0.2)


def test_a_guest_that_dies_says_so(uml: Boot) -> None:
    guest = uml()
    with pytest.raises(GuestError, match="the guest is gone"):
        guest.run("poweroff -f")


def test_a_warning_that_nobody_expects_is_found(uml: Boot) -> None:
    guest = uml()
    guest.run("echo '<4>something is odd' >/dev/kmsg")
    with pytest.raises(AssertionError, match="something is odd"):
        guest.check()
    guest.expect("is odd$")
    guest.check()


def test_what_is_wrong_in_a_log() -> None:
    warn = [
        Line(4, "------------[ cut here ]------------"),
        Line(4, "WARNING: CPU: 0 PID: 1 at drivers/a.c:7 f+0x1/0x2"),
        Line(6, "read returned 0"),
        Line(4, "Call Trace:"),
        Line(4, "---[ end trace 0000000000000000 ]---"),
    ]
    assert unexpected([Line(6, "fine"), Line(4, "odd"), Line(3, "bad")], ["^odd$"]) == ["bad"]
    assert unexpected(warn, ["read returned 0"]) == []
    assert unexpected(warn, ["drivers/b.c"]) == [line.text for line in warn]
    assert unexpected(warn[:3], []) == [line.text for line in warn[:3]]  # died in the middle of it
    assert unexpected([Line(3, "BUG: sleeping")], ["sleeping"]) == ["BUG: sleeping"]  # there is no excuse


@pytest.mark.parametrize("count", [0, 1, 4])
def test_rproc_sim_comes_and_goes(uml: Boot, count: int) -> None:
    guest = uml(arguments=["slub_debug=FZPU"], expect=[r"^\*\*"])  # which a banner of stars tells of
    for _ in range(3):
        guest.run(f"insmod /lib/rproc_sim.ko count={count}")
        assert guest.run("find -L /sys/class/remoteproc -maxdepth 2 -name name | wc -l") == f"{count}\n"
        guest.run("rmmod rproc_sim; ! ls /dev/rproc_sim* /sys/class/remoteproc/* 2>/dev/null")


CORE = """
import errno, mmap, os, select, struct
from rpmsgx.remoteproc.linux import LinuxRemoteproc

def events(core, count):
    found = []
    while len(found) < count:
        assert select.select([core], [], [], 5)[0], found
        found += [word for word, in struct.iter_unpack("I", os.read(core, 4096))]
    return found

STOPPED, STARTED = 0xfffffff0, 0xfffffff1
core = os.open("/dev/rproc_sim0", os.O_RDWR | os.O_NONBLOCK)
assert not select.select([core], [], [], 0)[0]
pa, da, size = (int(word, 0) for word in open("/sys/bus/platform/devices/rproc-sim.0/memory").read().split())
memory = mmap.mmap(core, size, offset=pa)
with LinuxRemoteproc("sim0", firmware="sim.elf") as rproc:
    rproc.boot()
    assert memory[:8] == b"the code" and da == 0x10000000
    assert sorted(events(core, 2)) == [0, STARTED]  # the driver of vdev 0 says that it has buffers
    os.write(core, struct.pack("I", 0))  # in vain, there is no message
    os.write(core, struct.pack("I", 99))
    try:
        os.write(core, b"abc")
        raise AssertionError
    except OSError as error:
        assert error.errno == errno.EINVAL
    os.write(core, struct.pack("I", 0xffffff01))  # the watchdog
    assert sorted(events(core, 3)) == [0, STOPPED, STARTED]
    rproc.poll(5)
    rproc.shutdown()
    assert events(core, 1) == [STOPPED]
"""


def test_a_core_is_a_process(uml: Boot) -> None:
    guest = uml(expect=["crash detected in sim0: type watchdog", "handling crash #1", "recovering sim0"])
    (guest.folder / "sim.elf").write_bytes(firmware())
    guest.run(f"cp /host{guest.folder}/sim.elf /lib/firmware; insmod /lib/rproc_sim.ko")
    guest.python(CORE)
