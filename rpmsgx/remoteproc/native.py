"""The `native` platform: the remote stack and the applications of csrc, compiled for this machine.

    table, trace     region "rom"  da 0x10000000   64 KiB
    shared memory    region "shm"  da 0x20000000    1 MiB

Physical addresses are 0x8_0000_0000 above device addresses. As a thread the remote runs outside the GIL; it
cannot be killed, so its faults are reports and its hang gives way to `stop`. As a process it really faults
and really hangs. It ends with its host, unless it has a socket: then it goes on by itself, and hands its memory and
its eventfds to whoever connects (handover.py), which is how a later host attaches to it.
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

from ..errors import FirmwareError, ResourceError, Timeout
from ..memory.region import Region
from ..memory.space import AddressSpace
from ..notify.doorbell import EventfdDoorbell
from . import handover
from .local import FAULTS, STOP, LocalPlatform
from .process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .local import Mailbox, Run

ROM, SHM = 0x10000000, 0x20000000
PA_OFFSET = 0x8_0000_0000
TABLE_DA = ROM
TRACE_DA, TRACE_SIZE = ROM + 0x1000, 0x1000
_ROM_SIZE, _SHM_SIZE = 0x10000, 0x100000
_GRACE, _PATIENCE = 2.0, 5.0
_HANDOVER = 10.0  # seconds for a remote that has just been started to listen
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


def _table_size() -> int:
    from ._native import lib

    size: int = lib.rpx_native_table_size()
    return size


class NativePlatform(LocalPlatform):
    """csrc's remote in a thread (`process=False`) or a process. `app` is run where no firmware is named.

    `socket` is the path of a Unix socket: the remote is a process then that goes on when its host ends, kill -9
    included, until it is stopped. One that runs there already is found at once, and by `prepare()`, which then changes
    `space`, `shared`, `desc_addr` and `app` to what it has. Only its own user may connect to the socket.

    Raises, with a socket, ResourceError if something else is served there, or not in these sizes; Timeout if it does
    not answer; OSError if it may not be connected to.
    """

    name = "native"
    cpu = machine_info.machine()

    def __init__(
        self,
        app: str = "sample",
        *,
        process: bool = False,
        socket: str | os.PathLike[str] | None = None,
        desc_addr: Literal["pa", "da"] = "pa",
    ) -> None:
        if desc_addr not in ("pa", "da"):
            raise ValueError(f"desc_addr is {desc_addr!r}, not 'pa' or 'da'")
        super().__init__(
            Region.memfd("rom", _ROM_SIZE, da=ROM, pa=ROM + PA_OFFSET),
            shared=Region.memfd("shm", _SHM_SIZE, da=SHM, pa=SHM + PA_OFFSET),
            desc_addr=desc_addr,
        )
        self.app = app
        self.process = process or socket is not None
        self._table = 0
        if socket is not None:
            self.identity = os.path.abspath(socket)
            self.options = {"socket": self.identity}
            self.lasts = True
            try:
                self.prepare()
            except BaseException:
                self.close()
                raise

    def image(self, firmware: str | None) -> NativeImage:
        """The application `firmware`, or `app`. Raises FirmwareError if there is none of that name."""
        return NativeImage(self.app if firmware is None else firmware)

    @property
    def pid(self) -> int | None:
        """Of the process that is the remote; None while there is none."""
        run = self._run
        return run.pid if isinstance(run, _Process) and run.alive else None

    @property
    def running(self) -> bool:
        return super().running or (self.identity is not None and not self._closed and handover.present(self.identity))

    @property
    def loaded_table(self) -> tuple[int, int] | None:
        return (TABLE_DA, self._table or _table_size()) if super().running else None

    def prepare(self) -> None:
        """Look for a remote at the socket, unless one is known. Raises as the constructor does."""
        with self._state:
            if self.identity is not None and not self._closed and not super().running:
                found = handover.take(self.identity, 5, _HANDOVER)
                if found is not None:
                    self._adopt(found)

    def attach(self) -> None:
        self.prepare()
        super().attach()

    def _adopt(self, found: handover.Handover) -> None:
        """Put what was handed over in the place of what there is."""
        assert self.identity is not None
        regions: list[Region] = []
        try:
            app, desc_addr, table = _greeting(self.identity, found.said)
            _check_eventfds(self.identity, found.fds[2:])
            regions += _regions(self.identity, found.fds[:2])
            assert isinstance(self.doorbell, _NativeDoorbell)
            if self._run is not None:
                self._run.forget()
            self._mailbox.become(found.fds[2:])
            self.doorbell.become(self._mailbox)
            self._held = False
            self._run = _Process(found.process, self._mailbox, self.doorbell)
        except BaseException:
            found.process.close()
            for region in regions:
                region.close()
            raise
        finally:
            for fd in found.fds:
                os.close(fd)
        self.app, self.desc_addr, self._table = app, desc_addr, table
        before, self.space, self.shared = self.space, AddressSpace(*regions), regions[1]
        for region in before.regions:
            region.close()

    def _hold(self, run: Run) -> None:
        assert isinstance(self.doorbell, _NativeDoorbell)
        self.doorbell.listen(True)
        super()._hold(run)

    def _let_go(self) -> None:
        # The ring is for whoever is attached: an eventfd that two of them clear is one that each may miss.
        assert isinstance(self.doorbell, _NativeDoorbell)
        self.doorbell.listen(False)
        super()._let_go()

    def _doorbell(self, listen: int, ring: int) -> EventfdDoorbell:
        return _NativeDoorbell(listen, ring)

    def _boot(self, entry: int) -> Run:
        app = applications()[entry]
        rom, shm = self.space.regions
        address = shm.pa if self.desc_addr == "pa" else shm.da
        if not self.process:
            return _Thread(app, rom, shm, address, self._mailbox)
        assert isinstance(self.doorbell, _NativeDoorbell) and rom.fd is not None and shm.fd is not None
        fds = rom.fd, shm.fd, *self._mailbox.fds
        self._table = 0
        if self.identity is None:
            return _spawn(app, address, fds, self._mailbox, self.doorbell)
        said = {"app": app, "desc_addr": self.desc_addr, "table": _table_size()}
        return _spawn_to_last(app, address, fds, self._mailbox, self.doorbell, self.identity, said)


def _greeting(path: str, said: Any) -> tuple[str, Literal["pa", "da"], int]:
    """What a remote says of itself, checked."""
    match said:
        case {"app": str(app), "desc_addr": "pa" | "da" as desc_addr, "table": int(table)} if (
            app.isidentifier() and 0 < table <= TRACE_DA - TABLE_DA
        ):
            return app, desc_addr, table
    raise ResourceError(f"{path}: its server is no native remote of this version: it says {str(said)[:200]}")


def _check_eventfds(path: str, fds: Sequence[int]) -> None:
    for fd in fds:
        kind = os.readlink(f"/proc/self/fd/{fd}")
        if kind != "anon_inode:[eventfd]" or os.get_blocking(fd):
            blocking = "a blocking " if os.get_blocking(fd) else ""
            raise ResourceError(f"{path}: its server handed over {blocking}{kind}, not an eventfd that never blocks")


def _regions(path: str, fds: Sequence[int]) -> list[Region]:
    wanted = ("rom", _ROM_SIZE, ROM), ("shm", _SHM_SIZE, SHM)
    regions: list[Region] = []
    try:
        for fd, (name, size, da) in zip(fds, wanted, strict=True):
            region = Region.from_fd(name, fd, size, da=da, pa=da + PA_OFFSET)
            regions.append(region)
            if not region.sealed:
                raise ResourceError(f"region {name!r} is not sealed against shrinking")
    except ResourceError as error:
        for region in regions:
            region.close()
        raise ResourceError(f"{path}: its server handed over what is no memory of a native remote: {error}") from None
    return regions


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
        self._listening = True
        self._gone: Callable[[], object] | None = None

    def become(self, mailbox: Mailbox) -> None:
        """Ring and be rung by other eventfds from now on, the latter once it is told to listen."""
        self.listen(False)
        os.dup2(mailbox.kicks, self._listen, inheritable=False)
        os.dup2(mailbox.events, self.kick_fd, inheritable=False)

    def listen(self, on: bool) -> None:
        """Whether the eventfd is looked at and cleared."""
        if on != self._listening and not self._epoll.closed:
            if on:
                self._epoll.register(self._listen, select.EPOLLIN)
            else:
                self._epoll.unregister(self._listen)
            self._listening = on

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
        if self._listening:
            super().drain()

    def close(self) -> None:
        self._epoll.close()
        super().close()


class _Process:
    """The remote as a process. It ends when its lifeline does, if it has one."""

    def __init__(self, process: Process, mailbox: Mailbox, doorbell: _NativeDoorbell, lifeline: int = -1) -> None:
        self._crash: str | None = None
        self.pid = process.pid
        self._process = process
        self._mailbox = mailbox
        self._doorbell = doorbell
        self._lifeline = lifeline
        self._ended = False
        self._reaping = threading.Lock()
        doorbell.watch(process.fileno(), self._reap)

    def _reap(self) -> bool:
        """Has it died? The first to see it keeps the reason, and rings for those who wait for it."""
        with self._reaping:
            if not self._ended and self._process.ended():
                self._crash = _describe(self._process)
                self._mailbox.ring()
                self._release()
            return self._ended

    def _release(self) -> None:
        self._doorbell.unwatch(self._process.fileno())
        self._give_up()

    def _give_up(self) -> None:
        self._ended = True
        self._process.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)

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
        return self._process.fileno()

    def forget(self) -> None:
        if not self._ended:
            self._give_up()

    def end(self) -> None:
        with self._reaping:
            if self._ended:
                return
            self._mailbox.post(STOP)
            if not self._process.ended(_GRACE):
                self._process.kill()
                if not self._process.ended(_PATIENCE):
                    raise Timeout("the remote's process does not die")
            self._release()


def _describe(process: Process) -> str:
    status = process.status
    if status is None:
        return f"process {process.pid} died; how, only its parent was told"
    if status < 0:
        try:
            name = f" ({signal.Signals(-status).name})"
        except ValueError:
            name = ""
        return f"killed by signal {-status}{name}"
    return FAULTS.get(status - _FAULT_STATUS, f"exited with status {status}")


def _spawn(
    app: str, address: int, fds: Sequence[int], mailbox: Mailbox, doorbell: _NativeDoorbell
) -> _Process:
    """The remote as a process that dies with this one."""
    theirs, lifeline = os.pipe()
    try:
        argument = {"app": app, "address": address, "fds": fds, "lifeline": theirs}
        process = Process.spawn(__name__, argument, (*fds, theirs))
        return _Process(process, mailbox, doorbell, lifeline)
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(theirs)


def _spawn_to_last(
    app: str, address: int, fds: Sequence[int], mailbox: Mailbox, doorbell: _NativeDoorbell, path: str, said: Any
) -> _Process:
    """The remote as a process of its own session, which is found at the socket `path` and says `said` there."""
    import subprocess

    server, identity = handover.place(path)
    try:
        argument = {
            "app": app, "address": address, "fds": fds,
            "server": server.fileno(), "path": path, "identity": identity, "said": said,
        }  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = Process.spawn(__name__, argument, (*fds, server.fileno()), start_new_session=True, **quiet)
    except BaseException:
        handover.remove(path, identity)
        raise
    finally:
        server.close()
    return _Process(process, mailbox, doorbell)


def main(argument: str) -> int:
    """The process: `argument` is what `_spawn` and `_spawn_to_last` say, with inherited descriptors."""
    import mmap
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its faults are part of the game
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to answer
    given = json.loads(argument)
    fds = given["fds"]
    lifeline = given["lifeline"] if "lifeline" in given else _serve(given, fds)
    rom, shm = (mmap.mmap(fd, os.fstat(fd).st_size) for fd in fds[:2])
    result = _run(given["app"], rom, shm, given["address"], tuple(fds[2:]), lifeline)
    if result == 0 and "path" in given:  # a crash removes nothing
        handover.remove(given["path"], tuple(given["identity"]))
    return _FAULT_STATUS + result if result > 0 else -result


def _serve(given: Any, fds: list[int]) -> int:
    """Be there for later hosts. A lifeline that ends with this process alone."""
    import socket

    server = socket.socket(fileno=given["server"])
    server.listen()
    os.chdir("/")
    threading.Thread(target=handover.serve, args=(server, given["said"], fds), daemon=True).start()
    lifeline, _ = os.pipe()
    return lifeline


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
