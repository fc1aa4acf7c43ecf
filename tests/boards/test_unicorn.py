# SPDX-License-Identifier: BSD-3-Clause
"""What is special to the emulated Cortex-M4."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from typing import Any

import pytest
from support import ROOT
from support_boards import TIMEOUT, Driver, boot, died, echo, loaded, make

import rpmsgx
from rpmsgx import firmware
from rpmsgx.memory.region import Region
from rpmsgx.remoteproc.unicorn import LINKED, RAM, SHM, UnicornPlatform

EXIT = """
from rpmsgx.remoteproc.unicorn import UnicornPlatform
platform = UnicornPlatform()
image = platform.image("crash")
image.load(platform.space)
platform.start(image.entry)
print("started", flush=True)
"""


@pytest.fixture
def unicorn():  # type: ignore[no-untyped-def]
    with make("unicorn") as platform:
        yield platform


def run(platform: UnicornPlatform, code: bytes, at: int = 0x100) -> str | None:
    """Run `code` at `at`, with the stack at the end of RAM, until it crashes."""
    platform.space.zero(0, 0x40000)
    platform.space.write(0, struct.pack("<II", 0x20020000, at | 1))
    platform.space.write(at, code)
    platform.start(at | 1)
    while platform.crash is None and platform.running:
        pass
    crash = platform.crash
    platform.stop()
    return crash


@pytest.mark.parametrize(
    "code, cause",
    [
        ("00de", "undefined instruction"),  # udf #0
        ("0020 0068 00de", None),  # movs r0,#0; ldr r0,[r0]: program memory can be read
        ("0020 0060", "write to protected memory (address 0x00000000, 4 bytes)"),  # str r0,[r0]
        ("4ff00040 0068", "read of unmapped memory (address 0x80000000, 4 bytes)"),
        ("4ff00050 0047", "execution of"),  # bx to 0x20000000: even address, no code there
        ("00be", "exception"),  # bkpt
        ("4ff08040 00f58030 0421 c160", "fault 4"),  # the mailbox's FAULT register
    ],
)
def test_faults_name_cause_and_registers(unicorn: UnicornPlatform, code: str, cause: str | None) -> None:
    crash = run(unicorn, bytes.fromhex(code))
    assert crash is not None
    if cause is None:
        assert "undefined instruction" in crash and unicorn.registers["r0"] == 0x20020000
        return
    assert cause in crash
    assert f"pc {unicorn.registers['pc']:#010x}" in crash and "sp 0x20020000" in crash
    assert 0x100 <= unicorn.registers["pc"] < 0x110 or "execution" in cause


def test_crash_registers(unicorn: UnicornPlatform) -> None:
    # movs r0,#1; movs r7,#7; mov r12,r7; udf #0
    run(unicorn, bytes.fromhex("0120 0727 bc46 00de"))
    registers = unicorn.registers
    assert (registers["r0"], registers["r7"], registers["r12"], registers["pc"]) == (1, 7, 7, 0x106)
    assert set(registers) == {*(f"r{i}" for i in range(13)), "sp", "lr", "pc", "xpsr"}


def test_code_is_not_stale_after_a_reload(unicorn: UnicornPlatform) -> None:
    for n in range(5):
        run(unicorn, bytes([n, 0x20]) + bytes.fromhex("00de"))  # movs r0,#n; udf
        assert unicorn.registers["r0"] == n


def test_addresses(unicorn: UnicornPlatform) -> None:
    assert unicorn.cpu == "cortex-m4" and unicorn.machine == 40 and unicorn.desc_addr == "da"
    assert {region.name: region.da for region in unicorn.space.regions} == {
        "rom": 0,
        "ram": 0x20000000,
        "shm": 0x60000000,
    }
    assert all(region.pa != region.da for region in unicorn.space.regions)


def regions(**changes: dict[str, Any]) -> dict[str, Region]:
    """What the firmware is linked for, under other names and at other physical addresses, with `changes`."""
    wanted: dict[str, dict[str, Any]] = {
        "code": {"da": 0, "pa": 0x1234_0000, "size": 0x40000},
        "data": {"da": RAM, "pa": 0x9_0000_0000, "size": 0x20000},
        "pool": {"da": SHM, "pa": 0xABC_0000_0000, "size": 0x100000},
    }
    for name, change in changes.items():
        wanted[name] = {**wanted.get(name, {}), **change}
    return {name: Region.memfd(name, **keys) for name, keys in wanted.items()}


@pytest.mark.parametrize("desc_addr", ["pa", "da"])
def test_memory_of_a_board(unicorn: UnicornPlatform, desc_addr: Any) -> None:
    memory = regions(extra={"da": 0x7000_0000, "size": 0x2000})
    with UnicornPlatform(memory=tuple(memory.values()), shared=memory["pool"], desc_addr=desc_addr) as platform:
        assert set(platform.space.regions) == set(memory.values()) and platform.shared is memory["pool"]
        driver = boot(platform)
        assert driver.address == (0xABC_0000_0000 if desc_addr == "pa" else SHM)
        driver.announced(2)
        echo(driver, 50)
        platform.stop()
        # the memory beyond is there for the core: ldr r0, [pc]; ldr r0, [r0]; udf; .word 0x70000ffc
        platform.space.write(0x7000_0FFC, b"\x2a\0\0\0")
        run(platform, bytes.fromhex("0148 0068 00de 0000 fc0f0070"))
        assert platform.registers["r0"] == 0x2A
    assert all(region.closed for region in memory.values())


@pytest.mark.parametrize(
    "changes, shared, problem",
    [
        ({"code": {"da": 0x1000}}, "pool", "program memory at da 0x0 of 0x40000 bytes; there is none"),
        ({"data": {"size": 0x10000}}, "pool", "RAM at da 0x20000000 of 0x20000 bytes; region 'data' has 0x10000"),
        ({"pool": {"size": 0x200000}}, "pool", "shared memory at da 0x60000000 of 0x100000 bytes; region 'pool' has"),
        ({}, "data", "region 'data': the firmware shares da 0x60000000, not 0x20000000"),
        ({"extra": {"da": 0x7000_0800, "size": 0x1000}}, "pool", "region 'extra': da [0x70000800, 0x70001800) is not"),
        ({"extra": {"da": 0x7000_0000, "size": 0x800}}, "pool", "region 'extra': da [0x70000000, 0x70000800) is not"),
        ({"extra": {"da": 0xFFFF_F000, "size": 0x2000}}, "pool", "region 'extra': da [0xfffff000, 0x100001000) is not"),
        ({"extra": {"da": 0x4000_0000, "size": 0x20000}}, "pool", "region 'extra': da [0x40010000, 0x40011000) is the"),
        ({"data": {"pa": 0x1234_1000}}, "pool", "overlaps"),
        ({"extra": {"da": 0x1000, "size": 0x1000}}, "pool", "overlaps"),
    ],
)
def test_memory_that_the_firmware_would_not_find(
    unicorn: UnicornPlatform, changes: dict[str, dict[str, Any]], shared: str, problem: str
) -> None:
    memory = regions(**changes)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(rpmsgx.ResourceError, match=re.escape(problem)):
        UnicornPlatform(memory=tuple(memory.values()), shared=memory[shared])
    assert len(os.listdir("/proc/self/fd")) == before
    for region in memory.values():
        assert not region.closed  # still their maker's
        region.close()


def test_bad_options(unicorn: UnicornPlatform) -> None:
    with pytest.raises(ValueError, match="desc_addr is 'va', not 'pa' or 'da'"):
        UnicornPlatform(desc_addr="va")  # type: ignore[arg-type]
    with Region.memfd("x", 0x1000) as region, pytest.raises(ValueError, match="memory without shared"):
        UnicornPlatform(memory=(region,))


def test_the_map_is_the_linker_scripts(unicorn: UnicornPlatform) -> None:
    script = (ROOT / "csrc" / "firmware" / "unicorn" / "cortex-m4.ld").read_text()
    places = re.findall(r"ORIGIN = (\w+), LENGTH = (\d+)K", script)
    assert [(int(da, 0), int(size) << 10) for da, size in places] == [LINKED["program memory"], LINKED["RAM"]]
    header = (ROOT / "csrc" / "firmware" / "unicorn" / "cortex-m4.h").read_text()
    assert LINKED["shared memory"] == tuple(int(n, 0) for n in re.findall(r"define BOARD_SHM\w* (\w+)u", header))


@pytest.mark.parametrize(
    "how, cause, kind",
    [
        (b"u", "undefined instruction at pc ", "fault"),
        (b"a", "read of unmapped memory (address 0xa0000000, 4 bytes) at pc ", "fault"),
        (b"f", "fatal error at pc ", "fatal error"),
    ],
)
def test_crash_kinds(unicorn: UnicornPlatform, how: bytes, cause: str, kind: str) -> None:
    driver = boot(unicorn, "crash")
    driver.announced(1)
    driver.send(1024, how)
    assert died(unicorn).startswith(cause)
    assert unicorn.crash_kind == kind
    assert unicorn.registers["sp"] in range(RAM, RAM + 0x20000)
    unicorn.stop()
    loaded(unicorn, "sample")
    boot(unicorn).announced(2)
    assert unicorn.crash is None and unicorn.crash_kind == "fault" and unicorn.registers == {}


def test_images_by_short_name_and_by_path(unicorn: UnicornPlatform) -> None:
    for name in firmware.NAMES:
        image = unicorn.image(name)
        assert image.sha256 == unicorn.image(firmware.path(name)).sha256
        assert image.resource_table is not None and len(image.resource_table[1]) == 140
    assert unicorn.image(None).name == "sample-cortex-m4.elf"


def test_an_image_for_another_machine(unicorn: UnicornPlatform) -> None:
    with pytest.raises(rpmsgx.FirmwareError, match="x86-64"):
        unicorn.image(sys.executable)


def test_two_cores_at_once(unicorn: UnicornPlatform) -> None:
    with make("unicorn") as other:
        drivers = []
        for platform in (unicorn, other):
            image = loaded(platform, "sample")
            driver = Driver(platform, image)
            driver.begin()
            platform.start(image.entry)
            driver.kick()
            drivers.append(driver)
        for driver in drivers:
            driver.announced(2)
        for i in range(100):
            for n, driver in enumerate(drivers):
                driver.send(1024, b"%d %d" % (n, i))
            for n, driver in enumerate(drivers):
                assert driver.recv()[2] == b"%d %d" % (n, i)


@pytest.mark.lesson("03")
def test_forgotten_at_exit(unicorn: UnicornPlatform) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


@pytest.mark.lesson("03")
def test_forgotten_in_the_program(unicorn: UnicornPlatform) -> None:
    platform = make("unicorn")
    image = loaded(platform, "sample")
    platform.start(image.entry)
    assert isinstance(platform, UnicornPlatform) and platform._run is not None
    thread = platform._run._thread  # type: ignore[attr-defined]
    del platform, image
    thread.join(TIMEOUT)
    assert not thread.is_alive()
