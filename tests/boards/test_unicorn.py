# SPDX-License-Identifier: BSD-3-Clause
"""What is special to the cores that Unicorn emulates."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT
from support_boards import TIMEOUT, Driver, boot, died, echo, loaded, make

import rpmsgx
from rpmsgx import firmware
from rpmsgx.memory.region import Region
from rpmsgx.remoteproc.cpu import CPUS
from rpmsgx.remoteproc.unicorn import LINKED, RAM, SHM, UnicornPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.fixture(params=CPUS)
def core(request: pytest.FixtureRequest) -> Iterator[UnicornPlatform]:
    """Each of its CPUs."""
    with made(request.param) as platform:
        yield platform


def made(cpu: str) -> UnicornPlatform:
    platform = make("unicorn" if cpu == "cortex-m4" else f"unicorn-{cpu}")
    assert isinstance(platform, UnicornPlatform) and platform.cpu == cpu
    return platform


def run(platform: UnicornPlatform, code: bytes, at: int = 0x100) -> str | None:
    """Run `code` at `at`, on a Cortex-M4 with the stack at the end of RAM, until it crashes."""
    thumb = platform.cpu == "cortex-m4"
    platform.space.zero(0, 0x40000)
    platform.space.write(0, struct.pack("<II", 0x20020000, at | 1))
    platform.space.write(at, code)
    platform.start(at | thumb)
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
        ("00be", "breakpoint"),  # bkpt
        ("00df", "system call"),  # svc
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


RISCV_FAULTS = [
    ("0100 73001000", "breakpoint", 0x102),  # nop; ebreak
    ("0100 0290", "breakpoint", 0x102),  # nop; c.ebreak
    ("0100 73000000", "system call", 0x102),  # nop; ecall
    ("0100 731000c0", "undefined instruction", 0x102),  # nop; unimp
    ("0100 0000", "undefined instruction", 0x102),  # nop; c.unimp
    ("23200000", "write to protected memory (address 0x00000000, 4 bytes)", 0x100),  # sw zero, 0(zero)
    ("b7020070 03a30200", "read of unmapped memory (address 0x70000000, 4 bytes)", 0x104),  # lui t0; lw t1, 0(t0)
    ("b7020020 67800200", "execution of protected memory (address 0x20000000", 0x20000000),  # lui t0; jr t0
    ("b7020140 13034000 23a66200", "fault 4", None),  # the mailbox's FAULT register
]
AARCH64_FAULTS = [
    ("1f2003d5 000020d4", "breakpoint", 0x104),  # nop; brk
    ("010000d4", "system call", 0x104),  # svc, which has the next instruction in elr
    ("030000d4", "exception 13 of Unicorn", 0x104),  # smc
    ("1f2003d5 00000000", "undefined instruction", 0x104),  # nop; udf
    ("000080d2 010000f9", "write to protected memory (address 0x00000000, 8 bytes)", 0x104),  # str x1, [x0]
    ("0000aed2 010040b9", "read of unmapped memory (address 0x70000000, 4 bytes)", 0x104),  # ldr w1, [x0]
    ("0000a4d2 00001fd6", "execution of protected memory (address 0x20000000, 4 bytes)", 0x20000000),  # br x0
    ("2000a8d2 81008052 010c00b9", "fault 4", None),  # the mailbox's FAULT register
]


@pytest.mark.parametrize(
    "cpu, code, cause, pc",
    [
        *(("riscv32", *fault) for fault in RISCV_FAULTS),
        *(("riscv64", *fault) for fault in RISCV_FAULTS),
        *(("cortex-a53", *fault) for fault in AARCH64_FAULTS),
    ],
)
def test_faults_of_the_others(cpu: str, code: str, cause: str, pc: int | None) -> None:
    with made(cpu) as platform:
        crash = run(platform, bytes.fromhex(code))
        assert crash is not None and crash.startswith(cause)
        assert f" at pc {platform.registers['pc']:#010x}, " in crash
        assert pc is None or platform.registers["pc"] == pc
        assert platform.crash_kind == "fault"


@pytest.mark.parametrize(
    "cpu, code, expected",
    [
        # movs r0,#1; movs r7,#7; mov r12,r7; udf #0
        ("cortex-m4", "0120 0727 bc46 00de", {"r0": 1, "r7": 7, "r12": 7, "sp": 0x20020000, "pc": 0x106}),
        # li t6,1; li a0,-1; li s0,7; unimp
        ("riscv32", "930f1000 1305f0ff 13047000 731000c0", {"t6": 1, "a0": (1 << 32) - 1, "fp": 7, "pc": 0x10C}),
        ("riscv64", "930f1000 1305f0ff 13047000 731000c0", {"t6": 1, "a0": (1 << 64) - 1, "fp": 7, "pc": 0x10C}),
        # mov x30,#1; mov x12,#-1; mov x29,#7; udf #0
        ("cortex-a53", "3e0080d2 0c008092 fd0080d2 00000000", {"x30": 1, "x12": (1 << 64) - 1, "x29": 7, "pc": 0x10C}),
    ],
)
def test_crash_registers(cpu: str, code: str, expected: dict[str, int]) -> None:
    with made(cpu) as platform:
        run(platform, bytes.fromhex(code))
        assert expected.items() <= platform.registers.items()
        assert set(platform.registers) == set(CPUS[cpu].registers)


def test_code_is_not_stale_after_a_reload(unicorn: UnicornPlatform) -> None:
    for n in range(5):
        run(unicorn, bytes([n, 0x20]) + bytes.fromhex("00de"))  # movs r0,#n; udf
        assert unicorn.registers["r0"] == n


def test_addresses(core: UnicornPlatform) -> None:
    assert (core.machine, core.bits) == CPUS[core.cpu][:2]
    assert {region.name: region.da for region in core.space.regions} == {
        "rom": 0,
        "ram": 0x20000000,
        "shm": 0x60000000,
    }
    assert all(region.pa != region.da for region in core.space.regions)
    with UnicornPlatform() as platform:
        assert (platform.cpu, platform.desc_addr) == ("cortex-m4", "da")


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
    with pytest.raises(ValueError, match="cpu is 'z80', not one of cortex-m4, riscv32, riscv64, cortex-a53"):
        UnicornPlatform("z80")
    with Region.memfd("x", 0x1000) as region, pytest.raises(ValueError, match="memory without shared"):
        UnicornPlatform(memory=(region,))


@pytest.mark.parametrize("script", ["cortex-m4", "ram-data"])
def test_the_map_is_the_linker_scripts(script: str) -> None:
    text = (ROOT / "csrc" / "firmware" / "unicorn" / f"{script}.ld").read_text()
    places = re.findall(r"ORIGIN = (\w+), LENGTH = (\d+)K", text)
    assert [(int(da, 0), int(size) << 10) for da, size in places] == [LINKED["program memory"], LINKED["RAM"]]
    header = (ROOT / "csrc" / "firmware" / "unicorn" / "mailbox.h").read_text()
    assert re.findall(r"define BOARD_TRACE (\w+)u", header) == [f"{sum(LINKED['RAM']) - 0x1000:#x}"]
    assert LINKED["shared memory"] == tuple(int(n, 0) for n in re.findall(r"define BOARD_SHM\w* (\w+)u", header))


@pytest.mark.parametrize(
    "how, cause, kind",
    [
        (b"u", "undefined instruction at pc ", "fault"),
        (b"a", "read of unmapped memory (address 0xa0000000, 4 bytes) at pc ", "fault"),
        (b"f", "fatal error at pc ", "fatal error"),
    ],
)
def test_crash_kinds(core: UnicornPlatform, how: bytes, cause: str, kind: str) -> None:
    driver = boot(core, "crash")
    driver.announced(1)
    driver.send(1024, how)
    assert died(core).startswith(cause)
    assert core.crash_kind == kind
    assert core.registers["sp"] in range(RAM, RAM + 0x20000)
    core.stop()
    loaded(core, "sample")
    boot(core).announced(2)
    assert core.crash is None and core.crash_kind == "fault" and core.registers == {}


def test_images_by_short_name_and_by_path(core: UnicornPlatform) -> None:
    for name in firmware.NAMES:
        image = core.image(name)
        assert image.sha256 == core.image(firmware.path(name, core.cpu)).sha256
        assert image.resource_table is not None and len(image.resource_table[1]) == 140
    assert core.image(None).name == f"sample-{core.cpu}.elf"


def test_an_image_for_the_other_width() -> None:
    wrong = pytest.raises(rpmsgx.FirmwareError, match="sample-riscv64.elf is for 64 bits, riscv32 has 32")
    with made("riscv32") as platform, wrong:
        platform.image(firmware.path("sample", "riscv64"))


def test_an_image_for_another_machine(unicorn: UnicornPlatform) -> None:
    with pytest.raises(rpmsgx.FirmwareError, match="x86-64"):
        unicorn.image(sys.executable)


def test_two_cores_at_once(unicorn: UnicornPlatform) -> None:
    with made("cortex-a53") as other:
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
