"""The `native` platform: the remote stack and the applications of csrc, compiled for this machine.

    table, trace     region "rom"  da 0x10000000   64 KiB
    shared memory    region "shm"  da 0x20000000    1 MiB

Physical addresses are 0x8_0000_0000 above device addresses. As a thread the remote runs outside the GIL; it
cannot be killed, so its faults are reports and its hang gives way to `stop`. As a process it really faults
and really hangs.
"""

from __future__ import annotations

import json
import os
import platform as machine_info
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

from ..errors import FirmwareError, Timeout
from ..memory.region import Region
from ..notify.doorbell import EventfdDoorbell
from .local import FAULTS, STOP, LocalPlatform

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from ..memory.space import AddressSpace
    from .local import Mailbox, Run

ROM, SHM = 0x10000000, 0x20000000
PA_OFFSET = 0x8_0000_0000
TABLE_DA = ROM
TRACE_DA, TRACE_SIZE = ROM + 0x1000, 0x1000
_GRACE, _PATIENCE = 2.0, 5.0
_FAULT_STATUS = 0x80  # a process that gave up exits with this plus RPX_FAULT_*


def applications() -> tuple[str, ...]:
    """The names of the applications that are compiled in; an image's entry is an index into them."""
    from ._native import ffi, lib

    names: list[str] = []
    while (name := lib.rpx_native_app(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return tuple(names)


def native_sources_sha256() -> str:
    """sha256, in hex, of the C sources that this build was compiled from."""
    from ._native import ffi, lib

    return ffi.string(lib.rpx_native_sources_sha256()).decode()


class NativeImage:
    """An application that is compiled in. Immutable."""

    def __init__(self, app: str) -> None:
        from ._native import ffi, lib

        apps = applications()
        if app not in apps:
            raise FirmwareError(f"no native application {app!r}; there are {', '.join(apps)}")
        size = lib.rpx_native_table_size()
        table = ffi.new("uint64_t[]", (size + 7) // 8)
        lib.rpx_native_table(table, TRACE_DA, TRACE_SIZE)
        self.name = "native"
        self.app = app
        self.sha256 = native_sources_sha256()
        self.entry = apps.index(app)
        self.resource_table = (TABLE_DA, bytes(ffi.buffer(table, size)))

    def load(self, space: AddressSpace) -> None:
        """Write the clean resource table and clear the rest of what the application calls its own."""
        da, table = self.resource_table
        region, _ = space.find_da(da, len(table))
        space.zero(region.da, region.size)
        space.write(da, table)


class NativePlatform(LocalPlatform):
    """csrc's remote in a thread (`process=False`) or a process. `app` is run where no firmware is named."""

    name = "native"
    cpu = machine_info.machine()

    def __init__(
        self, app: str = "sample", *, process: bool = False, desc_addr: Literal["pa", "da"] = "pa"
    ) -> None:
        if desc_addr not in ("pa", "da"):
            raise ValueError(f"desc_addr is {desc_addr!r}, not 'pa' or 'da'")
        super().__init__(
            Region.memfd("rom", 0x10000, da=ROM, pa=ROM + PA_OFFSET),
            shared=Region.memfd("shm", 0x100000, da=SHM, pa=SHM + PA_OFFSET),
            desc_addr=desc_addr,
        )
        self.app = app
        self.process = process

    def image(self, firmware: str | None) -> NativeImage:
        """The application `firmware`, or `app`. Raises FirmwareError if there is none of that name."""
        return NativeImage(self.app if firmware is None else firmware)

    @property
    def pid(self) -> int | None:
        """Of the process that is the remote; None while there is none."""
        run = self._run
        return run.pid if isinstance(run, _Process) and run.alive else None

    def _doorbell(self, listen: int, ring: int) -> EventfdDoorbell:
        return _NativeDoorbell(listen, ring)

    def _boot(self, entry: int) -> Run:
        app = applications()[entry]
        rom, shm = self.space.regions
        address = shm.pa if self.desc_addr == "pa" else shm.da
        if not self.process:
            return _Thread(app, rom, shm, address, self._mailbox)
        assert isinstance(self.doorbell, _NativeDoorbell)
        return _Process(app, rom, shm, address, self._mailbox, self.doorbell)


def _run(app: str, rom: Any, shm: Any, address: int, mailbox: tuple[int, int, int], lifeline: int) -> int:
    """Run `app` over two mapped buffers in this thread until it stops: 0, a RPX_FAULT_*, or -errno."""
    from ._native import ffi, lib

    name = ffi.new("char[]", app.encode())
    rom_memory = ffi.from_buffer("char[]", rom, require_writable=True)
    shm_memory = ffi.from_buffer("char[]", shm, require_writable=True)
    native = ffi.new("struct rpx_native *")
    native.app = name
    native.table = rom_memory + (TABLE_DA - ROM)
    native.trace = rom_memory + (TRACE_DA - ROM)
    native.trace_size = TRACE_SIZE
    native.n_grants = 1
    grant = native.grants[0]
    grant.base, grant.da, grant.addr, grant.len = shm_memory, SHM, address, len(shm_memory)
    native.events, native.kicks, native.acks = mailbox
    native.lifeline = lifeline
    return lib.rpx_native_run(native)


class _Thread:
    """The remote as a thread."""

    def __init__(self, app: str, rom: Region, shm: Region, address: int, mailbox: Mailbox) -> None:
        self.crash: str | None = None
        self._mailbox = mailbox
        # The buffers themselves: they stay mapped as long as the thread has them, whoever closes the regions.
        arguments = (app, rom.buffer, shm.buffer, address, (mailbox.events, mailbox.kicks, mailbox.acks), -1)
        self._thread = threading.Thread(target=self._work, args=arguments, name=f"rpmsgx-{app}", daemon=True)
        self._thread.start()

    def _work(self, *arguments: Any) -> None:
        fault = _run(*arguments)
        if fault != 0:
            self.crash = FAULTS.get(fault, f"fault {fault}")
            self._mailbox.ring()
            self._mailbox.acknowledge(STOP)

    @property
    def alive(self) -> bool:
        return self.crash is None and self._thread.is_alive()

    def fileno(self) -> int:
        return -1

    def end(self) -> None:
        if not self._thread.is_alive():
            return
        self._mailbox.post(STOP)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise Timeout("the remote's thread does not stop")

    def forget(self) -> None:
        pass


class _NativeDoorbell(EventfdDoorbell):
    """An eventfd and, while there is one, the remote's process: its death rings."""

    def __init__(self, listen: int, ring: int) -> None:
        super().__init__(listen, ring)
        self._epoll = select.epoll()
        self._epoll.register(listen, select.EPOLLIN)
        self._gone: Callable[[], object] | None = None

    def watch(self, pidfd: int, gone: Callable[[], object]) -> None:
        self._gone = gone
        self._epoll.register(pidfd, select.EPOLLIN)

    def unwatch(self, pidfd: int) -> None:
        self._gone = None
        if not self._epoll.closed:
            self._epoll.unregister(pidfd)

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def drain(self) -> None:
        if self._gone is not None:
            self._gone()
        super().drain()

    def close(self) -> None:
        self._epoll.close()
        super().close()


class _Process:
    """The remote as a process, which dies with its host."""

    def __init__(
        self, app: str, rom: Region, shm: Region, address: int, mailbox: Mailbox, doorbell: _NativeDoorbell
    ) -> None:
        import subprocess

        assert rom.fd is not None and shm.fd is not None
        self._crash: str | None = None
        self._mailbox = mailbox
        self._doorbell = doorbell
        self._ended = False
        self._reaping = threading.Lock()
        lifeline, self._lifeline = os.pipe()
        events = (mailbox.events, mailbox.kicks, mailbox.acks)
        try:
            arguments = json.dumps([app, rom.fd, shm.fd, address, events, lifeline])
            root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self._child: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-m", "rpmsgx.remoteproc.native", arguments],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(rom.fd, shm.fd, *events, lifeline),
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        self.pid = self._child.pid
        self._pidfd = os.pidfd_open(self.pid)
        doorbell.watch(self._pidfd, self._reap)

    def _reap(self) -> bool:
        """Has it died? The first to see it keeps the reason, and rings for those who wait for it."""
        with self._reaping:
            if self._ended:
                return True
            status = self._child.poll()
            if status is None:
                return False
            self._crash = _describe(status)
            self._mailbox.ring()
            self._release()
            return True

    def _release(self) -> None:
        self._ended = True
        self._doorbell.unwatch(self._pidfd)
        os.close(self._pidfd)
        os.close(self._lifeline)
        self._pidfd = -1

    @property
    def crash(self) -> str | None:
        self._reap()
        return self._crash

    @crash.setter
    def crash(self, reason: str | None) -> None:
        self._crash = reason

    @property
    def alive(self) -> bool:
        return not self._reap()

    def fileno(self) -> int:
        return self._pidfd

    def forget(self) -> None:
        if not self._ended:
            self._ended = True
            self._child.returncode = -1  # not this process's child: there is nothing to reap
            os.close(self._pidfd)
            os.close(self._lifeline)

    def end(self) -> None:
        import subprocess

        with self._reaping:
            if self._ended:
                return
            self._mailbox.post(STOP)
            try:
                self._child.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._child.kill()
                try:
                    self._child.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    raise Timeout("the remote's process does not die") from None
            self._release()


def _describe(status: int) -> str:
    if status < 0:
        try:
            name = f" ({signal.Signals(-status).name})"
        except ValueError:
            name = ""
        return f"killed by signal {-status}{name}"
    return FAULTS.get(status - _FAULT_STATUS, f"exited with status {status}")


def main(argument: str) -> int:
    """The process: `argument` is what `_Process` says, with inherited descriptors."""
    import mmap
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its faults are part of the game
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to answer
    app, rom, shm, address, events, lifeline = json.loads(argument)
    rom, shm = (mmap.mmap(fd, os.fstat(fd).st_size) for fd in (rom, shm))
    result = _run(app, rom, shm, address, tuple(events), lifeline)
    return _FAULT_STATUS + result if result > 0 else -result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
