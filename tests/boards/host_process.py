"""A host in a process of its own: one JSON command a line from stdin, one JSON answer a line to stdout.

    {"call": "boot" | "shutdown" | ... , "args": {...}}
    {"error": null | name of the exception, "state", "power", "channels", "pid", "result"}
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rpmsgx import Remoteproc

TIMEOUT = 20.0


class Host:
    def __init__(self, socket: str, firmware: str) -> None:
        self.rproc = Remoteproc(
            "machine", platform="native", socket=socket, firmware=firmware, auto_boot=False, recovery="disabled"
        )

    def boot(self) -> None:
        self.rproc.boot()

    def shutdown(self) -> None:
        self.rproc.shutdown()

    def attach(self, resume: bool = False) -> None:
        self.rproc.attach(resume=resume)

    def detach(self) -> None:
        self.rproc.detach(timeout=TIMEOUT)

    def recover(self) -> None:
        self.rproc.recover()

    def report(self) -> None:
        self.rproc.crashed("watchdog", "it barks")

    def firmware(self, name: str) -> None:
        self.rproc.firmware = name

    def rebind(self) -> None:
        self.rproc.bus.close()

    def look(self) -> None:
        self.rproc.poll(0)

    def talk(self, service: str) -> int:
        with self.rproc.open(service, timeout=TIMEOUT) as endpoint:
            for i in range(20):
                endpoint.send(b"%d times" % i, timeout=TIMEOUT)
                if endpoint.recv(timeout=TIMEOUT) != b"%d times" % i:
                    return i
        return 20

    def crash(self) -> None:
        """Have the firmware "crash" die, and see it dead."""
        with self.rproc.open("rpmsg-crash", timeout=TIMEOUT) as endpoint:
            endpoint.send(b"u")
        while self.rproc.state != "crashed":
            self.rproc.poll(TIMEOUT)

    def died(self) -> None:
        """Wait until the death of the remote, killed from outside, is known."""
        while self.rproc.state not in ("crashed", "offline"):
            self.rproc.poll(TIMEOUT)

    def close(self) -> None:
        self.rproc.close()


def left() -> dict[str, int]:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    with open("/proc/self/maps") as maps:
        mapped = sum("/" in line for line in maps)  # the heap's own are counted by their size
    return {"fds": len(os.listdir("/proc/self/fd")), "maps": mapped, "rss": pages * os.sysconf("SC_PAGE_SIZE")}


def main() -> None:
    host = Host(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {"error": None, "result": None}
        try:
            call = left if command["call"] == "left" else getattr(host, command["call"])
            answer["result"] = call(**command["args"])
        except Exception as error:
            answer["error"], answer["text"] = type(error).__name__, str(error)
        rproc = host.rproc
        answer.update(
            state=rproc.state, power=rproc.power, channels=sorted(channel.name for channel in rproc.channels),
            pid=getattr(rproc.platform, "pid", None),
        )  # fmt: skip
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
