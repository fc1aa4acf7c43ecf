# SPDX-License-Identifier: BSD-3-Clause
"""The SoC of examples/boards/soc-registers.toml as a process: `python soc.py FOLDER [PERIOD [FIRMWARE]]`.

Its memories and its blocks of registers are files of FOLDER, named as in the board file. It looks at the registers each
PERIOD seconds, as hardware would all the time, and runs what was loaded on an emulated Cortex-M4. With FIRMWARE a boot
loader has started the core. It says "ready" once it is powered, and is so until its stdin ends.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

from rpmsgx.errors import Error
from rpmsgx.memory.region import Region
from rpmsgx.remoteproc.unicorn import UnicornPlatform

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
PATIENCE = 1.0


class Soc:
    def __init__(self, folder: Path) -> None:
        memory = [
            Region.file(name, folder / name, size, create=True, da=da, pa=pa) for name, (da, pa, size) in MEMORY.items()
        ]
        blocks = [Region.file(name, folder / name, 0x1000, create=True) for name in ("reset", "mailbox")]
        self.reset, self.mailbox = (block.view.cast("I") for block in blocks)
        self.reset[CONTROL] = IN_RESET
        self.core = UnicornPlatform(memory=memory, shared=memory[-1], desc_addr="pa")

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

    def run(self, period: float) -> None:
        ring = self.core.doorbell.fileno()
        while True:
            ready, _, _ = select.select([sys.stdin, ring], [], [], period)
            if sys.stdin in ready:
                return
            if ring in ready:
                self.core.doorbell.drain()
                self.mailbox[RING] = 1
            self.look()


def main(folder: str, period: str = "0.0005", firmware: str | None = None) -> None:
    soc = Soc(Path(folder))
    with soc.core:
        if firmware is not None:
            soc.boot(firmware)
        print("ready", flush=True)
        soc.run(float(period))


if __name__ == "__main__":
    main(*sys.argv[1:])
