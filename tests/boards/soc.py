# SPDX-License-Identifier: BSD-3-Clause
"""An SoC with a core that is started and rung through registers: what stands between those and an emulated core.

`python soc.py FOLDER [PERIOD [FIRMWARE]]` is that of examples/boards/soc-registers.toml, in a process. Its memories and
its blocks of registers are files of FOLDER, named as in the board file. It looks at the registers each PERIOD seconds,
as hardware would all the time, and runs what was loaded on an emulated Cortex-M4. With FIRMWARE a boot loader has
started the core. It says "ready" once it is powered, and is so until its stdin ends.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rpmsgx.errors import Error
from rpmsgx.memory.region import Region
from rpmsgx.remoteproc.unicorn import UnicornPlatform

if TYPE_CHECKING:
    from socket import socket
    from typing import IO

    from rpmsgx.remoteproc.local import LocalPlatform

MEMORY = {  # name: (da, pa, size)
    "rom": (0, 0x9000_0000, 0x4_0000),
    "ram": (0x2000_0000, 0x9004_0000, 0x2_0000),
    "shm": (0x6000_0000, 0x9010_0000, 0x10_0000),
}
CONTROL, VECTOR, STATUS = range(3)  # of "reset", by word
IN_RESET = 0x3
OFF, RUNS, DIED = range(3)
KICK, COMMAND, DONE, RING = range(4)  # of "mailbox"
DETACH = 0x2
PATIENCE = 2.0


class Soc:
    """`core`, and two blocks of registers beside it. `wire`: readable when there is something for `hear`."""

    def __init__(self, core: LocalPlatform, reset: memoryview, mailbox: memoryview, wire: IO[str] | socket) -> None:
        self.core, self.wire = core, wire
        self.reset, self.mailbox = reset.cast("I"), mailbox.cast("I")
        self.reset[CONTROL] = IN_RESET

    def boot(self, firmware: str) -> None:
        """What a boot loader does."""
        image = self.core.image(firmware)
        image.load(self.core.space)
        self.reset[VECTOR] = image.entry
        self.reset[CONTROL] = 0
        self.look()

    def look(self) -> None:
        core, reset, mailbox = self.core, self.reset, self.mailbox
        if reset[CONTROL] & IN_RESET:
            core.stop()
            reset[STATUS] = OFF
            return
        if reset[STATUS] == OFF:
            core.start(reset[VECTOR])
            reset[STATUS] = RUNS
        if core.crash is not None:
            reset[STATUS] = DIED
            return
        if mailbox[KICK]:
            mailbox[KICK] = 0
            core.doorbell.kick(0)
        if mailbox[COMMAND] & DETACH:
            mailbox[COMMAND] = 0
            try:
                core.detach(PATIENCE)
                mailbox[DONE] = DETACH
            except Error:
                pass  # it died, or hangs: nobody acknowledges

    def hear(self) -> bool:
        """Whether the power is still on."""
        return False

    def ring(self) -> None:
        self.mailbox[RING] = 1

    def run(self, period: float) -> None:
        bell = self.core.doorbell
        while True:
            ready, _, _ = select.select([self.wire, bell], [], [], period)
            if self.wire in ready and not self.hear():
                return
            if bell in ready:
                bell.drain()
            self.look()
            if bell in ready:  # only now: whoever is rung finds in the registers why
                self.ring()


def main(folder: str, period: str = "0.0005", firmware: str | None = None) -> None:
    def block(name: str, da: int = 0, pa: int = 0, size: int = 0x1000) -> Region:
        return Region.file(name, Path(folder, name), size, create=True, da=da, pa=pa)

    memory = [block(name, *place) for name, place in MEMORY.items()]
    core = UnicornPlatform(memory=memory, shared=memory[-1], desc_addr="pa")
    soc = Soc(core, block("reset").view, block("mailbox").view, sys.stdin)
    with core:
        if firmware is not None:
            soc.boot(firmware)
        print("ready", flush=True)
        soc.run(float(period))


if __name__ == "__main__":
    main(*sys.argv[1:])
