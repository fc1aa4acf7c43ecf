# SPDX-License-Identifier: BSD-3-Clause
"""rpmsgx as the remote processor that the kernel's remoteproc runs. What goes on there is inside_remote_processor.py.

The kernel loads firmware, gives memory and starts; who runs then is a process that has rpmsgx's device role over the
memory that the kernel's resource table tells of. On the other side are the kernel's own drivers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import pytest
from sim_firmware import VRINGS, firmware
from support import require
from uml import Guest

from rpmsgx.virtio.link import F_EVENT_IDX, F_INDIRECT_DESC, F_NS

CRASH = (r"crash detected in sim\d", r"handling crash #\d+ in sim\d", r"recovering sim\d")
# It empties the ring at one interrupt, and is told of it by the next.
HARMLESS = ("but no used buffer",)
ALL = F_NS | F_EVENT_IDX | F_INDIRECT_DESC
PLAIN = pytest.param("vrings=0", firmware(), id="dynamic")
FIXED = pytest.param("vrings=1", firmware(vrings=VRINGS, features=ALL), id="fixed, all features")

Sim = Callable[..., Guest]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def sim(uml: Callable[..., Guest]) -> Sim:
    """`sim(firmware, "attach=1", ...)`: a guest with one remote."""

    def load(image: bytes, *parameters: str, modules: Iterable[str] = (), expect: Iterable[str] = ()) -> Guest:
        while True:
            guest = uml(expect=(*HARMLESS, *expect))
            if "OVERLAP" not in guest.python(OVERLAP, check=False):
                break
            guest.kill()
        (guest.folder / "sim.elf").write_bytes(image)
        options = " ".join(("acknowledge=1", *parameters))
        guest.run(f"cp /host{guest.folder}/sim.elf /lib/firmware; insmod /lib/rproc_sim.ko {options}")
        for module in modules:
            guest.run(f"insmod /lib/{module}.ko")
        return guest

    return load


# Where its memory is, is up to chance; now and then it is where the firmware's memory is for the core.
OVERLAP = """
from inside_remote_processor import DA, SIZE, host_memory
low, high = host_memory()
print("" if high <= DA or low >= DA + SIZE else "OVERLAP")
"""


def inside(guest: Guest, function: str, *arguments: object, timeout: float = 60) -> None:
    """Run a function of inside_remote_processor.py in the guest."""
    guest.python(f"import inside_remote_processor as inside\ninside.{function}(*{arguments!r})", timeout=timeout)


@pytest.mark.parametrize(("parameter", "image"), [PLAIN, FIXED])
def test_started_and_stopped_again_and_again(sim: Sim, parameter: str, image: bytes) -> None:
    guest = sim(image, parameter, modules=["rpmsg_client_sample"])
    inside(guest, "starts_and_stops")
    assert guest.run("dmesg | grep -c 'incoming msg'") == "300\n"


@pytest.mark.parametrize(("parameter", "image"), [PLAIN, FIXED])
def test_stopped_under_traffic(sim: Sim, parameter: str, image: bytes) -> None:
    inside(sim(image, parameter), "stopped_under_traffic")


@pytest.mark.parametrize(("parameter", "image"), [PLAIN, FIXED])
def test_crashes_and_recovers(sim: Sim, parameter: str, image: bytes) -> None:
    guest = sim(image, parameter, expect=CRASH)
    inside(guest, "crashes", str(guest.folder))


def test_crashes_and_is_recovered_by_hand(sim: Sim) -> None:
    inside(sim(firmware(), expect=CRASH), "crashes_without_recovery")


@pytest.mark.parametrize("features", [F_NS, ALL])
def test_attached_to_and_detached_from(sim: Sim, features: int) -> None:
    guest = sim(firmware(), "attach=1", modules=["rpmsg_client_sample"])
    inside(guest, "attached_and_detached", features)


def test_recovered_by_attaching(sim: Sim) -> None:
    guest = sim(firmware(), "attach=1", "attach_on_recovery=1", expect=CRASH)
    if guest.run("uname -r").startswith("6.1."):
        pytest.skip("Linux 6.1 leaves the table in memory without status and addresses after such a recovery")
    inside(guest, "recovered_by_attaching")


def test_the_whole_way_through_the_kernel(sim: Sim) -> None:
    require(importlib.util.find_spec("rpmsgx.char") is not None, "char: is not there yet")
    inside(sim(firmware(), expect=CRASH), "opened_through_the_kernel")
