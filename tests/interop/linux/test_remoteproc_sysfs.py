# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's own remotes, in a kernel that simulates their cores. What runs in there is inside_remoteproc.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from sim_firmware import firmware
from uml import Guest

from rpmsgx.virtio import table

CRASH = (r"crash detected in sim\d", r"handling crash #\d+ in sim\d", r"recovering sim\d")
NOT_OFFLINE = "can't change firmware while running"

Sim = Callable[..., Guest]


FIRMWARE = {
    "sim.elf": firmware(),
    "text.elf": b"this is no firmware" * 10,
    "no-table.elf": firmware(with_table=False),
    "carveout.elf": firmware(table.Carveout(table.ADDR_ANY, 0x100000, "vdev0vring0")),  # larger than the driver's
}


@pytest.fixture
def sim(uml: Callable[..., Guest]) -> Sim:
    """`sim("count=2", ...)`: a guest with firmware and remotes."""

    def load(*parameters: str, **options: Iterable[str]) -> Guest:
        guest = uml(**options)
        for name, data in FIRMWARE.items():
            (guest.folder / name).write_bytes(data)
        guest.run(f"cp /host{guest.folder}/*.elf /lib/firmware; insmod /lib/rproc_sim.ko {' '.join(parameters)}")
        return guest

    return load


def call(function: str, *arguments: object) -> str:
    return f"import inside_remoteproc as inside\ninside.{function}(*{arguments!r})"


def inside(guest: Guest, function: str, *arguments: object) -> str:
    """Run a function of inside_remoteproc.py in the guest."""
    return guest.python(call(function, *arguments))


def test_it_is_a_remoteproc_like_any_other(sim: Sim) -> None:
    inside(sim("count=2"), "same_class")


def test_a_board_file_names_it(sim: Sim) -> None:
    guest = sim("count=2")
    inside(guest, "by_board_file", str(guest.folder))


def test_booted_when_made_and_stopped_when_closed(sim: Sim) -> None:
    inside(sim(), "booted_by_itself")


def test_firmware_may_come_later(sim: Sim) -> None:
    expect = ("late.elf", "firmware_class: See", "request_firmware failed: -2", "Boot failed: -2", "Image is corrupted")
    guest = sim(expect=(*expect, "Boot failed: -22"))
    folder = guest.folder  # for the kernel and for a chroot the same path
    guest.run(
        f"mkdir -p {folder}; mount -o bind /host{folder} {folder}; "
        f"printf {folder} >/sys/module/firmware_class/parameters/path"
    )
    inside(guest, "firmware_that_comes_later", str(folder))


def test_up_only_with_a_service(sim: Sim) -> None:
    guest = sim()
    inside(guest, "only_with_a_service", str(guest.folder))


def test_a_remote_is_found_by_name(sim: Sim) -> None:
    inside(sim("count=2"), "names")


def test_the_life_of_a_remote(sim: Sim) -> None:
    inside(sim(expect=(NOT_OFFLINE,)), "life")


def test_channels_are_those_of_the_remote(sim: Sim) -> None:
    guest = sim("count=2")
    guest.run(
        "for state in /sys/class/remoteproc/*/state; do echo start >$state; done; "
        "rt control /dev/rpmsg_ctrl0 new some-service 0xffffffff 77"
    )
    inside(guest, "has_channels")


def test_firmware_that_the_kernel_does_not_take(sim: Sim) -> None:
    expect = (
        *("absent.elf", "firmware_class: See", "request_firmware failed: -2", "Boot failed: -(2|12|22)"),
        *("Image is corrupted", "carveout doesn.t fit len request", "Failed to process resources: -12"),
    )
    inside(sim("vrings=1", expect=expect), "wrong_firmware")


def test_errors_of_the_driver(sim: Sim) -> None:
    inside(sim(expect=("can't start rproc sim0: -", "Boot failed: -", "can't stop rproc: -16")), "driver_errors")


def test_a_driver_that_cannot_stop(sim: Sim) -> None:
    inside(sim("no_stop=1"), "cannot_be_stopped")


def test_a_crash_and_the_way_back(sim: Sim) -> None:
    expect = (*CRASH, NOT_OFFLINE, "can't change coredump configuration", "can't start rproc sim0: -5")
    inside(sim(expect=expect), "crash_and_recovery")


def test_crashes_between_two_looks_are_counted(sim: Sim) -> None:
    inside(sim("count=2", expect=CRASH), "crashes_that_nobody_sees")


def test_crashes_without_a_log(sim: Sim) -> None:
    inside(sim(expect=CRASH), "a_crash_without_a_log")


def test_a_crashed_remote_can_be_stopped(sim: Sim) -> None:
    inside(sim(expect=CRASH), "stop_a_crashed_one")


def test_core_dumps_are_moved_out_of_the_kernel(sim: Sim) -> None:
    guest = sim("count=2", expect=CRASH)
    folder = guest.folder / "dumps"
    folder.mkdir()
    inside(guest, "core_dumps", str(folder))


def test_recovery_waits_for_an_inline_core_dump(sim: Sim) -> None:
    guest = sim(expect=CRASH)
    inside(guest, "inline_core_dump", str(guest.folder))


def test_inline_core_dumps_are_taken_by_a_poll(sim: Sim) -> None:
    guest = sim(expect=CRASH)
    folder = guest.folder / "dumps"
    folder.mkdir()
    inside(guest, "inline_core_dumps_by_themselves", str(folder))


def test_a_remote_that_runs_already(sim: Sim) -> None:
    expect = (NOT_OFFLINE, "can't attach to rproc sim0: -22", "can't detach from rproc: -5", "Boot failed: -22")
    inside(sim("attach=1", expect=expect), "attach_and_detach")


def test_a_driver_that_cannot_detach(sim: Sim) -> None:
    inside(sim("attach=1", "no_detach=1"), "cannot_be_detached")


def test_what_it_leaves_at_its_end(sim: Sim) -> None:
    inside(sim(), "at_exit")


@pytest.mark.parametrize("attach", [False, True])
def test_the_kernel_ends_the_remote_of_a_killed_process(sim: Sim, attach: bool) -> None:
    inside(sim(f"attach={attach:d}"), "at_exit_after_kill", attach)


def test_a_remote_whose_driver_goes(sim: Sim) -> None:
    guest = sim(arguments=["slub_debug=FZPU"], expect=[r"^\*\*"])
    guest.run(
        f"{guest.script(call('removed'))} >/tmp/said & until grep booted /tmp/said; do usleep 10000; done; "
        "rmmod rproc_sim; insmod /lib/rproc_sim.ko; wait $!"
    )


def test_others_than_root(sim: Sim) -> None:
    inside(sim("count=2"), "not_root")


def test_a_kernel_that_lacks_something(sim: Sim) -> None:
    inside(sim(), "without_options")


def test_an_event_loop_sees_a_crash(sim: Sim) -> None:
    inside(sim(expect=CRASH), "waiting_in_an_event_loop")


def test_threads_share_it(sim: Sim) -> None:
    inside(sim(), "threads")
