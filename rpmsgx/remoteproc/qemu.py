"""The `qemu` platform: a whole machine, emulated by QEMU, as the remote core. Its packages are Debian's.

    machine         CPU           RAM           UART         of
    mps2-an386      Cortex-M4     0x21000000    CMSDK        qemu-system-arm
    riscv32-virt    RV32IMAC      0x80000000    16550        qemu-system-riscv32
    riscv64-virt    RV64IMAC      0x80000000    16550        qemu-system-riscv64
    aarch64-virt    Cortex-A53    0x40200000    PL011        qemu-system-aarch64

    program, data    region "ram"  da as above      512 KiB, the last page for csrc/firmware/qemu/line.h
    shared memory    region "shm"  1 MiB above it     1 MiB

Physical addresses are 0x8_0000_0000 above device addresses. Both regions are parts of one memfd, which is the machine's
RAM. The UART rings both ways, and interrupts the core. QEMU is started anew for each boot, with the firmware in its
RAM already and the first program counter given: an old one would go on with what it has translated.

QEMU ends with its host, kill -9 included: it holds a pipe whose other end is the host's alone, and the kernel sends
it SIGKILL when that goes (fcntl(2), F_SETSIG).

For a machine that can have but one CPU, mps2-an386, QEMU drops barriers, and where this machine orders memory less than
x86 does, messages can be lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import Error, PeerError, StateError, Timeout
from ..memory.region import Region
from ..notify.doorbell import EventfdDoorbell, readable
from .cpu import CPUS, Cpu, where
from .local import DETACH, FAULTS, KICK, STOP, LocalPlatform, Mailbox
from .process import Process
from .qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .platform import Image

PA_OFFSET = 0x8_0000_0000
RAM_SIZE, SHM_OFFSET, SHM_SIZE = 0x80000, 0x100000, 0x100000
_MACHINE_RAM = 16 << 20
_PAGE = struct.Struct("<QIIIIQ34Q")  # struct line_page of csrc/firmware/qemu/line.h
_PAGE_SIZE = 0x1000
_EXCEPTION, _FAULT_ACCESS = 0x100, 2
_PAGE_DETACH = 8  # where its word `detach` is
_LINE_DETACH, _LINE_STOP, _LINE_DEAD, _LINE_RING = b"D", b"S", b"F", b"K"
_EVENTS = (  # name and reason of QMP's
    ("WATCHDOG", None, "the machine's watchdog expired"),
    ("SHUTDOWN", "guest-reset", "the core reset the machine"),
    ("SHUTDOWN", "guest-shutdown", "the core switched the machine off"),
    ("SHUTDOWN", "guest-panic", "the machine panicked"),
)
_UP, _GRACE, _PATIENCE = 10.0, 1.0, 5.0


class Machine(NamedTuple):
    """What QEMU and the firmware agree on."""

    program: str
    package: str
    """Debian's, with `program` in it."""
    arguments: tuple[str, ...]
    cpu: str
    """One of CPUS."""
    base: int
    """da of the machine's RAM."""
    ram: int
    """da of the region "ram"."""


# With the possibility of a second CPU, QEMU keeps the barriers.
_VIRT_RISCV = ("-smp", "1,maxcpus=2", "-M", "virt,memory-backend=ram", "-bios", "none")
_VIRT_ARM = ("-smp", "1,maxcpus=2", "-M", "virt,gic-version=2,memory-backend=ram", "-cpu", "cortex-a53")
MACHINES = {
    "mps2-an386": Machine(
        "qemu-system-arm", "qemu-system-arm", ("-M", "mps2-an386,memory-backend=ram"),
        "cortex-m4", 0x21000000, 0x21000000,
    ),
    "riscv32-virt": Machine(
        "qemu-system-riscv32", "qemu-system-misc", _VIRT_RISCV, "riscv32", 0x80000000, 0x80000000
    ),
    "riscv64-virt": Machine(
        "qemu-system-riscv64", "qemu-system-misc", _VIRT_RISCV, "riscv64", 0x80000000, 0x80000000
    ),
    "aarch64-virt": Machine(  # a device tree lies at the start of its RAM
        "qemu-system-aarch64", "qemu-system-arm", _VIRT_ARM, "cortex-a53", 0x40000000, 0x40200000
    ),
}  # fmt: skip


class QemuPlatform(LocalPlatform):
    """An emulated machine, one of MACHINES. `desc_addr`: what descriptors carry.

    Raises FileNotFoundError, naming the package, where its QEMU is not installed.
    """

    name = "qemu"

    def __init__(self, machine: str = "mps2-an386", *, desc_addr: Literal["pa", "da"] = "da") -> None:
        import shutil

        if machine not in MACHINES:
            raise ValueError(f"machine is {machine!r}, not one of {', '.join(MACHINES)}")
        if desc_addr not in ("pa", "da"):
            raise ValueError(f"desc_addr is {desc_addr!r}, not 'pa' or 'da'")
        self._name = machine
        self._about = about = MACHINES[machine]
        self.cpu, self.machine, self.bits = about.cpu, CPUS[about.cpu].machine, CPUS[about.cpu].bits
        program = shutil.which(about.program)
        if program is None:
            what = f"machine {machine!r} of platform 'qemu' needs it: apt install {about.package}"
            raise FileNotFoundError(errno.ENOENT, what, about.program)
        self._program = program
        places = (("ram", about.ram, RAM_SIZE), ("shm", about.ram + SHM_OFFSET, SHM_SIZE))
        with Region.memfd("qemu", _MACHINE_RAM) as memory:
            assert memory.fd is not None
            ram, shm = (
                Region.from_fd(name, memory.fd, size, offset=da - about.base, da=da, pa=da + PA_OFFSET)
                for name, da, size in places
            )
        self._line = _Line(ram.view[-_PAGE_SIZE:])
        super().__init__(ram, shared=shm, desc_addr=desc_addr, mailbox=self._line)

    def image(self, firmware: str | None) -> Image:
        """As `Platform.image`, for this machine; None is the shipped "sample"."""
        from .. import firmware as shipped

        firmware = "sample" if firmware is None else firmware
        return super().image(shipped.path(firmware, self._name) if self.ships(firmware) else firmware)

    @property
    def crash(self) -> str | None:
        return None if self.running else super().crash  # `running` hears of it

    @property
    def pid(self) -> int | None:
        """Of the QEMU that is the remote; None while there is none."""
        run = self._run
        return run.pid if isinstance(run, _Qemu) and run.alive else None

    @property
    def registers(self) -> dict[str, int]:
        """The core's registers as the firmware found them in its exception; else empty."""
        return dict(self._run.registers) if isinstance(self._run, _Qemu) else {}

    def _doorbell(self, listen: int, ring: int) -> _LineDoorbell:
        return _LineDoorbell(listen, ring, self._line)

    def _boot(self, entry: int) -> _Qemu:
        assert isinstance(self.doorbell, _LineDoorbell)
        ram, shm = self.space.regions
        address = shm.pa if self.desc_addr == "pa" else shm.da
        _PAGE.pack_into(self._line.page, 0, address, *[0] * 39)
        assert ram.fd is not None
        command = [
            *(self._program, *self._about.arguments, "-m", f"{_MACHINE_RAM >> 20}M", "-nodefaults", "-no-user-config"),
            *("-device", f"loader,addr={entry:#x},cpu-num=0", "-display", "none", "-no-reboot", "-S"),
        ]
        return _Qemu(command, CPUS[self.cpu], ram.fd, self._line, self.doorbell)



class _Line(Mailbox):
    """The machine's UART: what is posted goes there, and what comes from there is told to the eventfds."""

    def __init__(self, page: memoryview) -> None:
        super().__init__()
        self.page = page
        self.sock: socket.socket | None = None

    def post(self, event: int) -> None:
        if event == DETACH:
            self.page[_PAGE_DETACH] = 1
        sock = self.sock
        if sock is not None:
            try:
                sock.send(_LINE_STOP if event == STOP else _LINE_RING, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # full: the core looks at none of what is there; or gone

    def withdraw(self, event: int) -> bool:
        """False always: only an acknowledgement tells that it came too late."""
        self.page[_PAGE_DETACH] = 0
        return False

    def close(self) -> None:
        super().close()
        self.page.release()  # it would keep the map


class _LineDoorbell(EventfdDoorbell):
    """An eventfd and, while there is one, the socket of the machine's UART: its bytes ring, and so does its end."""

    kick_socket = True

    def __init__(self, listen: int, ring: int, line: _Line) -> None:
        super().__init__(listen, ring)
        self._epoll = select.epoll()
        self._epoll.register(listen, select.EPOLLIN)
        self._line = line
        self._qemu: _Qemu | None = None

    def watch(self, qemu: _Qemu, sock: socket.socket) -> None:
        os.dup2(sock.fileno(), self.kick_fd, inheritable=False)
        self._epoll.register(sock, select.EPOLLIN)
        self._qemu = qemu

    def unwatch(self, sock: socket.socket) -> None:
        if self._qemu is not None and not self._epoll.closed:
            self._epoll.unregister(sock)
        self._qemu = None

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def kick(self, notifyid: int) -> None:
        self._line.post(KICK)

    def drain(self) -> None:
        qemu = self._qemu
        if qemu is not None:
            qemu.listen()
        super().drain()

    def close(self) -> None:
        self._epoll.close()
        super().close()


class _Process:
    """QEMU with its monitor, paused, and with the sockets that lead to it.

    It dies with the last copy of this process's lifeline. It is in a process group of its own: Ctrl-C is the host's.
    """

    def __init__(self, command: Sequence[str], memory: int) -> None:
        """`command` lacks what has to do with descriptors; `memory` is that of the machine's RAM. Raises OSError."""
        import subprocess

        with contextlib.ExitStack() as opened, contextlib.ExitStack() as theirs:

            def pair() -> tuple[socket.socket, int]:
                ours, other = socket.socketpair()
                theirs.enter_context(other)
                return opened.enter_context(ours), other.fileno()

            self.uart, uart = pair()
            monitor, qmp = pair()
            self.qmp = Qmp(monitor)
            self._stderr = os.memfd_create("qemu-stderr", os.MFD_CLOEXEC)
            opened.callback(os.close, self._stderr)
            lifeline, ours = os.pipe()
            opened.callback(os.close, ours)
            theirs.callback(os.close, lifeline)
            command = [
                *command,
                *("-object", f"memory-backend-file,id=ram,size={_MACHINE_RAM},mem-path=/dev/fd/{memory},share=on"),
                # mux: QEMU would miss that a UART which was full has room again. No escape character.
                *("-chardev", f"socket,id=line,fd={uart},mux=on", "-echr", "0x100", "-serial", "chardev:line"),
                *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
            ]
            child = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(memory, uart, qmp, lifeline),
                process_group=0,
            )
            assert child.stdin is not None
            with child.stdin:
                self.child = Process(child.pid)
                child.returncode = 0  # from here on it is waited for by the pidfd
                opened.callback(self.child.close)
                fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
                fcntl.fcntl(lifeline, fcntl.F_SETOWN, child.pid)
                fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.FASYNC)
                child.stdin.write(b"\n")
            self._opened = opened.pop_all()

    def said(self) -> str:
        """The first line that QEMU complained with, warnings aside."""
        lines = os.pread(self._stderr, 4096, 0).decode(errors="replace").splitlines()
        return next((line[:300] for line in lines if line and "warning:" not in line), "")

    def kill(self) -> None:
        """Raises Timeout if it does not die."""
        self.child.kill()
        if not self.child.ended(_PATIENCE):
            raise Timeout("QEMU does not die")

    def close(self) -> None:
        """Give up the descriptors, which kills it unless this is a forked child."""
        self._opened.close()


# It is held by `read` until nothing can keep it from dying with its host. Its core files would be of QEMU.
_LAUNCH = 'ulimit -c 0; read _ && exec "$@"'


class _Qemu:
    """One life of the machine. Raises StateError, with what QEMU says, if it does not start."""

    def __init__(
        self, command: Sequence[str], cpu: Cpu, memory: int, line: _Line, doorbell: _LineDoorbell
    ) -> None:
        self.crash: str | None = None
        self.registers: dict[str, int] = {}
        self._cpu, self._line, self._doorbell = cpu, line, doorbell
        self._stopped = False  # as the firmware says
        self._ended = False
        self._lock = threading.Lock()
        self._process = process = _Process(command, memory)
        try:
            line.sock = process.uart
            doorbell.watch(self, process.uart)
            process.qmp.greet(_UP)
            try:
                process.qmp.execute("cont", _UP)
            except PeerError:
                if not process.child.ended(_GRACE):
                    raise
                # It was quicker than the answer: that is a crash, which the UART tells.
        except BaseException as error:
            process.kill()
            said = process.said() or error
            self._release()
            if isinstance(error, Error):
                raise StateError(f"{command[0]} does not start: {said}") from error
            raise

    @property
    def pid(self) -> int:
        return self._process.child.pid

    @property
    def alive(self) -> bool:
        if self.listen():  # the doorbell must not lose what this has heard
            self._line.ring()
        return not self._ended

    def fileno(self) -> int:
        return self._process.uart.fileno()

    def listen(self) -> bool:
        """Take what came out of the UART. Whether anything did."""
        with self._lock:
            if self._ended:
                return False
            try:
                data = self._process.uart.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                data = b""  # it ended with bytes unread
            if _LINE_DETACH in data:
                self._line.acknowledge(DETACH)
            self._stopped = self._stopped or _LINE_STOP in data
            if _LINE_DEAD in data:
                self._died(self._report())
            elif not data:
                self._died(self._post_mortem())
            return True

    def _died(self, cause: str) -> None:
        self._process.kill()
        self.crash = cause
        self._release()
        self._line.ring()
        self._line.acknowledge(STOP)

    def _report(self) -> str:
        """The firmware's, of its fault."""
        _, _, cause, count, _, address, *values = _PAGE.unpack_from(self._line.page)
        mask = (1 << self._cpu.bits) - 1
        names = self._cpu.registers[:count]
        self.registers = {name: value & mask for name, value in zip(names, values, strict=False)}
        text = FAULTS.get(cause, f"exception {cause - _EXCEPTION}" if cause >= _EXCEPTION else f"fault {cause}")
        if cause == _FAULT_ACCESS:
            text += f" (address {address & mask:#010x})"
        place = where(self.registers)
        return f"{text} at {place}" if place else text

    def _post_mortem(self) -> str:
        """What can be said where the firmware said nothing."""
        process = self._process
        process.child.ended(_PATIENCE)
        process.qmp.drain()
        for event in process.qmp.events:
            for name, reason, text in _EVENTS:
                if (event.name, event.data.get("reason")) == (name, reason):
                    return text
        status = process.child.status  # None: it lives on without its UART, or was reaped by somebody else
        if status is None:
            how = "ended"
        else:
            how = f"exited with status {status}" if status >= 0 else f"died of signal {-status}"
        return f"QEMU {how}: {process.said()}".removesuffix(": ")

    def end(self) -> None:
        self._line.post(STOP)
        deadline = time.monotonic() + _GRACE
        while self.alive and not self._stopped and (left := deadline - time.monotonic()) > 0:
            readable(self.fileno(), left)
        with self._lock:
            if not self._ended:
                self._process.kill()
                self._release()

    def _release(self) -> None:
        self._ended = True
        self._line.sock = None
        self._doorbell.unwatch(self._process.uart)
        self._process.close()

    def forget(self) -> None:
        if not self._ended:
            self._ended = True
            self._process.close()
