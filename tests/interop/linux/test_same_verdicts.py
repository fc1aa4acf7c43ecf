# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's remoteproc and rpmsgx are asked the same questions: firmware images, events, settings.

Where they answer differently on purpose, a rule says why, and docs/interop.md says the same. Any other difference
fails, and so does a rule that nothing needs.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sim_firmware import DA, SIZE, TABLE, TRACES, firmware
from support import ROOT

from rpmsgx.errors import FirmwareError, ResourceError, StateError
from rpmsgx.memory.region import Region
from rpmsgx.memory.space import AddressSpace
from rpmsgx.remoteproc.elf import Image
from rpmsgx.remoteproc.lifecycle import Event, State, decide
from rpmsgx.remoteproc.resources import Resources, plan
from rpmsgx.virtio import table as rsc

sys.path.append(str(ROOT / "tests" / "unit"))  # the corpus imports its neighbours
from elfbuilder import EHDR, EHDR_FIELDS, EM_AARCH64, EM_ARM, PHDR, SHDR, Load, build
from test_firmware_corpus import changed, extremes, structures

if TYPE_CHECKING:
    from uml import Guest

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(180)]

DOCS = (ROOT / "docs" / "interop.md").read_text()
ALL = ("6.1", "6.12")


class Rule(NamedTuple):
    """An intended difference, and why it is right: the words of docs/interop.md."""

    name: str
    question: str
    says: str
    """What the one says that refuses: a regular expression."""
    refuser: str = "rpmsgx"
    releases: tuple[str, ...] = ALL


RULES = (
    Rule("another machine", "image", r"e_machine is"),
    Rule("sizes of headers", "image", r"e_(eh|phent|shent)size is"),
    Rule("a segment without memory", "image", r"p_filesz .* > p_memsz 0x0$"),
    Rule("segments that overlap", "image", r"p_paddr .* overlaps program header"),
    Rule("names outside their section", "image", r"\(names\): sh_offset|sh_name is"),
    Rule("a table that is not loaded", "image", r"no segment loads the firmware's resource table"),
    Rule("entries that overlap", "image", r"offset\[\d+\] is .* inside "),
    Rule("addresses that wrap", "image", r"leaves 32 bits"),
    Rule("rings that virtio does not allow", "image", r"(align|num) is \d+, not a power of two"),
    Rule("memory that there is not", "image", r"is in no granted region|are not the same memory"),
    Rule("rings over the table", "image", r"vring .* overlaps the resource table"),
    Rule("no table", "image", r"^Boot failed: -22$", "Linux"),
    Rule("where the table is", "image", r"other bytes in memory", "neither"),
    Rule("detach after a boot", "event", r"detach while running", "Linux"),
    Rule("a line feed", "setting", r"\\n"),
    Rule("an absolute name", "setting", r"^firmware '/"),
    Rule("a name as long as a page", "setting", r"^firmware 'a{4095}"),
    Rule("recovery as a command", "setting", r"^recovery 'recover'"),
)


def expected(question: str, refuser: str, says: str, used: Counter[str]) -> bool:
    """Is there a rule for this?"""
    for rule in RULES:
        if (rule.question, rule.refuser) == (question, refuser) and re.search(rule.says, says):
            used[rule.name] += 1
            return True
    return False


def conclude(question: str, release: str, used: Counter[str], wrong: list[str], agreed: int) -> None:
    for name, count in used.items():
        print(f"{count:5} {name}")
    print(f"{agreed:5} the same answer")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:20])
    needed = [rule.name for rule in RULES if rule.question == question and release in rule.releases]
    assert {*needed} == {*used}, "a rule that nothing needs"
    assert all(f"| {name} |" in DOCS for name in needed)


# Firmware images

MOST = 2000
PER_FIELD = 5  # values that it is given, of those that the corpus has
SHARED = 0x4000_0000
RING = rsc.Vring(rsc.ADDR_ANY, 4096, 16)
RESOURCES = rsc.build(
    [
        rsc.Carveout(rsc.ADDR_ANY, 0x1000, "anywhere"),
        rsc.Carveout(DA + 0x10000, 0x1000, "fixed"),
        rsc.Trace(TRACES[0], 0x100, "trace0"),
        rsc.Vdev((RING, RING), dfeatures=1, config=b"abcd"),
        rsc.Vendor(128, b"1234"),
        rsc.Unknown(99, b"12345678"),
        rsc.Vdev((RING, RING), id=3),
    ]
)
LOADS = [
    Load(DA, bytes(range(1, 65)), memsz=0x100),
    Load(DA + 0x200, memsz=0x10),
    Load(TRACES[0], b"hello", memsz=0x100),
]


def base(bits: int) -> bytes:
    return build(LOADS, bits=bits, table=RESOURCES, table_da=TABLE)


def cases() -> Iterator[tuple[str, bytes]]:
    """(what was done, image)"""
    chance = random.Random(1)
    for bits in (32, 64):
        data = base(bits)
        table = data.index(RESOURCES)
        yield f"{bits}: nothing", data
        for structure in structures(data):
            for at, width in structure:
                if bits == 64 and table <= at < table + len(RESOURCES):
                    continue  # is the same
                values = sorted(extremes(data, structure, at, width))
                top = (1 << 8 * width) - 1
                for value in sorted({0, top, *chance.sample(values, min(len(values), PER_FIELD))}):
                    image = changed(data, at, value.to_bytes(width, sys.byteorder))
                    if image != data:
                        yield f"{bits}: {width} bytes at {at:#x} are {value:#x}", image
        edges = {edge for structure in structures(data) for edge in (structure[0][0], sum(structure[-1]))}
        for size in sorted({1, *edges, *(edge - 1 for edge in edges if edge), len(data) - 1} - {0, len(data)}):
            yield f"{bits}: {size} bytes", data[:size]
        yield f"{bits}: without sections", build(LOADS, bits=bits, sections=False)
        yield f"{bits}: without a table", build(LOADS, bits=bits)


# What the kernel is not asked, because it would not survive the question.


def deadly(data: bytes, release: str) -> str:
    """Why; "" for nearly all."""
    if reads_beyond(data, release):
        return "it follows headers out of the file, and reads what is there"
    at = data.find(RESOURCES[:8])
    for i in range(at + 16, at + 16 + 4 * 7, 4) if at >= 0 else ():
        entry = data[at + int.from_bytes(data[i : i + 4], sys.byteorder) :][:68]
        if len(entry) == 68 and int.from_bytes(entry[:4], sys.byteorder) == rsc.RSC_VDEV:
            if entry[25] < 2:
                return "it stops a vdev that has fewer than two vrings by way of a null pointer"
            if any(align & (align - 1) for _, align, *_ in rsc.LITTLE.vring.iter_unpack(entry[28:])):
                return "it puts the used ring of an alignment that is no power of two where it has no memory"
    return ""


def reads_beyond(data: bytes, release: str) -> bool:
    size = len(data)
    if size < 52 or data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != (1, 2)[sys.byteorder == "big"]:
        return False
    bits = 32 * data[4]
    if size < EHDR[bits].size:
        return False
    header = dict(zip(EHDR_FIELDS, EHDR[bits].unpack_from(data), strict=True))
    phoff, phnum, shoff, shnum, names = (header[f] for f in ("phoff", "phnum", "shoff", "shnum", "shstrndx"))
    entry = SHDR[bits].size
    if (shoff + entry) % (1 << 64) > size or phnum == 0 or phoff > size:
        return False
    if shoff + max(shnum, names + 1) * entry > size:
        return release == "6.1"
    if phoff + phnum * PHDR[bits].size > size:
        return True
    for program in PHDR[bits].iter_unpack(data[phoff : phoff + phnum * PHDR[bits].size]):
        offset, filesz = (program[1], program[4]) if bits == 32 else (program[2], program[5])
        if offset + filesz >= 1 << 64:
            return True
    sections = [SHDR[bits].unpack_from(data, shoff + i * entry) for i in range(max(shnum, names + 1))]
    return any(sections[names][4] + section[0] + len(".resource_table") >= size for section in sections[:shnum])


class Answer(NamedTuple):
    refused: str
    """Why; "": accepted."""
    checksum: int = 0
    """Of the memory, less the resource table."""
    vdevs: int = 0


def ours(data: bytes, machine: int) -> Answer:
    """What a boot on a board with the same memory says."""
    memory = Region.anonymous("memory", SIZE, da=DA)
    shared = Region.anonymous("shared", 4 << 20, da=SHARED)
    space = AddressSpace(memory, shared)
    resources = Resources()
    try:
        image = Image(data, "fw", expect_machine=machine)
        table, table_da = resources.read_table(image)
        placed = plan(resources, table, table_da, space, shared, in_use=image.memory)
        image.load(space)
    except (FirmwareError, ResourceError) as error:
        return Answer(str(error))
    memory.view[TABLE - DA : TABLE - DA + len(RESOURCES)] = bytes(len(RESOURCES))
    return Answer("", zlib.crc32(memory.view), len(placed.vdevs))


@pytest.fixture
def guest(uml: Callable[..., Guest]) -> Guest:
    found = uml(expect=[r"remoteproc remoteproc0: ", r"rproc-sim rproc-sim\.0: ", r"rproc-virtio"])
    (found.folder / "sim.elf").write_bytes(firmware())
    found.run(f"cp /host{found.folder}/sim.elf /lib/firmware")
    return found


def ask(guest: Guest, function: str, *arguments: object) -> Any:
    """Run a function of inside_same_verdicts.py in the guest."""
    code = f"import inside_same_verdicts as inside\ninside.{function}(*{arguments!r})"
    return json.loads(guest.python(code, timeout=120).splitlines()[-1])


def release_of(guest: Guest) -> str:
    return ".".join(guest.run("uname -r").split(".")[:2])


def test_the_same_images_are_refused(guest: Guest) -> None:
    # Rings of two sizes; more memory than there is.
    guest.expect(r"virtio_rpmsg_bus\.c:\d+ rpmsg_probe", r"page_alloc\.c:\d+ __alloc_pages", "can't reserve|alloc")
    release = release_of(guest)
    unasked, used = Counter[str](), Counter[str]()
    asked = []
    for what, data in cases():
        why = deadly(data, release)
        unasked[why] += bool(why)
        asked += [] if why else [(what, data)]
    assert 1000 < len(asked) <= MOST
    (guest.folder / "images").write_bytes(b"".join(data for _, data in asked))
    (guest.folder / "index").write_text(json.dumps([len(data) for _, data in asked]))
    guest.run("insmod /lib/rproc_sim.ko")
    answers = ask(guest, "images", str(guest.folder), TABLE, len(RESOURCES))
    agreed, wrong = Counter[bool](), []
    for (what, data), (code, stopped, checksum, devices, said) in zip(asked, answers, strict=True):
        answer = ours(data, EM_ARM if what.startswith("32") else EM_AARCH64)
        assert not stopped, what
        if code and answer.refused:
            agreed[False] += 1
            continue
        if code or answer.refused:
            refuser, text = ("rpmsgx", answer.refused) if answer.refused else ("Linux", " ".join(said))
        elif (checksum, devices) == answer[1:]:
            agreed[True] += 1
            continue
        else:
            refuser, text = "neither", "other bytes in memory" if checksum != answer.checksum else "other vdevs"
        if not expected("image", refuser, text, used):
            wrong.append(f"{what}: {refuser} refuses it: {text}")
    for why, count in unasked.items():
        if why:
            print(f"{count:5} not asked: {why}")
            assert why in DOCS
    print(f"{agreed[False]:5} refused by both")
    assert agreed[True] > 500 and agreed[False] > 200
    conclude("image", release, used, wrong, sum(agreed.values()))


# Events

KNOWN = {
    "start": Event.BOOT,
    "stop": Event.SHUTDOWN,
    "detach": Event.DETACH,
    "crash": Event.CRASH,
    "recover": Event.RECOVER,
    "set firmware": Event.SET_FIRMWARE,
}


def sequences() -> list[list[str]]:
    chance = random.Random(2)
    short = [list(events) for events in itertools.product(KNOWN, repeat=3)]
    return short + [chance.choices(list(KNOWN), k=12) for _ in range(40)]


def without_crash_while_detached(first: str, events: Iterable[str]) -> list[str]:
    """Which the kernel would not come back from: see the test of it."""
    state, power, kept = State(first), 0, []
    for event in events:
        if not (event == "crash" and state is State.DETACHED):
            kept.append(event)
            state, power = after(state, power, event)[:2]
    return kept


def after(state: State, power: int, event: str) -> tuple[State, int, str]:
    """State and count, which stay where it is refused, and why it is."""
    if state is State.RUNNING and event == "detach":
        return state, power, "detach while running"  # as Linux has it, so that what follows can be compared
    try:
        decision = decide(state, KNOWN[event], power)
    except StateError as error:
        return state, power, str(error)
    return decision.state, decision.power, ""


@pytest.mark.parametrize("first", ["offline", "detached"])
def test_events_lead_to_the_same_states(guest: Guest, first: str) -> None:
    used, wrong, agreed = Counter[str](), [], 0
    asked = [without_crash_while_detached(first, events) for events in sequences()]
    for events, answers in zip(asked, ask(guest, "events", first, asked), strict=True):
        state, power = State(first), 0
        for i, (event, (code, found)) in enumerate(zip(events, answers, strict=True)):
            before = state
            state, power, refused = after(state, power, event)
            if (found, bool(code)) != (state, bool(refused)):
                wrong.append(f"{first}, {events[: i + 1]}: {found}, errno {code}; {state}, {refused or 'accepted'}")
                break
            if refused == "detach while running":
                assert decide(before, Event.DETACH, 1).state is State.DETACHED
                assert expected("event", "Linux", refused, used)
            agreed += 1
    assert agreed > 500
    conclude("event", release_of(guest), used, wrong, agreed)


def test_a_crash_while_detached(guest: Guest) -> None:
    """Linux boots the remote, and counts no user; here it is offline."""
    assert ask(guest, "crash_while_detached") == "running"
    assert decide(State.DETACHED, Event.CRASH, 0).state is State.OFFLINE
    assert "| a crash while detached |" in DOCS


# Settings

SETTINGS = {
    "firmware": [
        *("a.elf", "dir/a.elf", "ä", "..", "a b", "\n", "a\n", "a\nb", "/lib/firmware/a.elf"),
        *("a" * size for size in (4094, 4095, 4096, 5000)),
    ],
    "recovery": ["enabled", "disabled", "once", "recover", "enabled\n", "Enabled", "enable", "1"],
    "coredump": ["enabled", "disabled", "inline", "default", "inline\n", "Inline", "1"],
}


def test_settings_are_taken_alike(guest: Guest) -> None:
    guest.expect("returned bad count")  # a name that is as long as a page
    guest.run("insmod /lib/rproc_sim.ko")
    used, wrong, agreed = Counter[str](), [], 0
    for attribute, answers in ask(guest, "inputs", SETTINGS).items():
        for value, (code, kernel, said, found) in zip(SETTINGS[attribute], answers, strict=True):
            if bool(code) == bool(said) and kernel == found:
                agreed += 1
            elif code or not said or not expected("setting", "rpmsgx", f"{attribute} {value!r}", used):
                wrong.append(f"{attribute} {value!r}: errno {code}, {kernel!r}; {said!r}, {found!r}")
    conclude("setting", release_of(guest), used, wrong, agreed)
