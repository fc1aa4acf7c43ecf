# SPDX-License-Identifier: BSD-3-Clause
"""A board with a device tree: Linux on an arm64 core, and beside it a Cortex-M4 that it starts.

They share memory that Linux leaves alone. A UART is the mailbox, with an interrupt; registers that start and stop the
M4 lie in the memory (../soc.py). All of it is one UIO device. The M4 is a machine in a second QEMU.

Linux's Python comes from Debian; the extensions are compiled for it from what Cython made of them here.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import emulated
import soc
from emulated import Missing, command

from rpmsgx.firmware import path as shipped
from rpmsgx.memory.region import Region
from rpmsgx.remoteproc.qemu import QemuPlatform

M4 = "mps2-an386"
MEMORY, CONTROL = 16 << 20, 0x20_0000  # bytes that the M4 has; where in them the registers are
MAILBOX = 0x10  # among them
TOOLS = (
    *("qemu-system-aarch64", "qemu-system-arm", "apt-get", "dpkg-deb"),
    *("make", "dtc", "fdtoverlay", "aarch64-linux-gnu-gcc-12"),
)
PACKAGES = "qemu-system-arm make device-tree-compiler gcc-12-aarch64-linux-gnu"
PYTHON = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "python3-typing-extensions"),
    *("libc6", "libgcc-s1", "zlib1g", "libexpat1", "libffi8", "libssl3", "libuuid1", "libbz2-1.0", "liblzma5"),
    *("busybox-static",),
)
EXTENSIONS = ("rpmsgx/memory/guard", "rpmsgx/notify/register", "rpmsgx/virtio/ring", "rpmsgx/rpmsg/bus")
MODULES = (*emulated.NINE_P, "uio", "uio_pdrv_genirq")
OVERLAY = """\
/dts-v1/;
/plugin/;
/ {
	fragment@0 {
		target-path = "/pl011@9000000";
		__overlay__ { status = "disabled"; };
	};
	fragment@1 {
		target-path = "/";
		__overlay__ {
			mailbox@9000000 {
				compatible = "generic-uio";
				reg = <0 0x9000000 0 0x1000>, <0 0x60000000 0 0x80000>,
					<0 0x60100000 0 0x100000>, <0 0x60200000 0 0x1000>;
				reg-names = "regs", "ram", "shm", "control";
				interrupts = <0 1 4>;
			};
			reserved-memory {
				#address-cells = <2>;
				#size-cells = <2>;
				ranges;
				m4@60000000 { reg = <0 0x60000000 0 0x1000000>; no-map; };
			};
		};
	};
};
"""


class Board(soc.Soc):
    """What the M4 shares with Linux but its memory. The wire is the UART's: a byte is a ring, either way."""

    wire: socket.socket

    def hear(self) -> bool:
        try:
            rings = self.wire.recv(64)
        except ConnectionResetError:
            rings = b""
        if rings and self.core.running:
            self.mailbox[soc.KICK] = 1
        elif rings:
            self.ring()
        return rings != b""

    def ring(self) -> None:
        try:
            self.wire.send(b"r", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it has rung often enough; or Linux has ended, which `hear` sees


def run(folder: Path, program: str) -> list[dict[str, Any]]:
    """What `program`, a file beside this one, tells, line by line."""
    emulated.need(TOOLS, PACKAGES)
    cached = emulated.cached(f"arm64-guest/{emulated.kernel_package('amd64')}", _make)
    root = folder / "root"
    shutil.copytree(cached / "root", root, symlinks=True)
    _install(root)
    ours, uart = socket.socketpair()
    with ours, uart, QemuPlatform(M4) as core, ThreadPoolExecutor(1) as pool:
        memory = core.shared.fd
        assert memory is not None
        control = Region.from_fd("control", memory, 0x1000, offset=CONTROL)
        board = Board(core, control.view[:MAILBOX], control.view[MAILBOX:], ours)
        running = pool.submit(board.run, 0.001)
        try:
            return _linux(folder, cached, root, f"/rpmsgx/{program}", memory, uart)
        finally:
            uart.close()
            running.result(30)


def _linux(
    folder: Path, cached: Path, root: Path, program: str, memory: int, uart: socket.socket
) -> list[dict[str, Any]]:
    # With the possibility of a second CPU, QEMU keeps the barriers.
    machine = ["qemu-system-aarch64", "-M", "virt,gic-version=2", "-cpu", "cortex-a53", "-smp", "1,maxcpus=2"]
    machine += ["-m", f"{512 + (MEMORY >> 20)}M", "-object", "memory-backend-ram,id=own,size=512M"]
    path = f"/proc/{os.getpid()}/fd/{memory}"
    machine += ["-object", f"memory-backend-file,id=m4,size={MEMORY},mem-path={path},share=on"]
    machine += ["-numa", "node,memdev=own", "-numa", "node,memdev=m4"]  # from 0x40000000 on, one behind the other
    _device_tree(folder, machine)
    modules = {path.stem: path for path in cached.rglob("*.ko") if path.stem in MODULES}  # some are built in
    qemu: list[str | Path] = [*machine, "-dtb", folder / "board.dtb", "-kernel", next(cached.rglob("vmlinuz-*"))]
    qemu += ["-chardev", f"socket,id=mailbox,fd={uart.fileno()}", "-serial", "chardev:mailbox"]
    qemu += ["-chardev", "stdio,id=console", "-device", "pci-serial,chardev=console"]
    environment = {
        "modules": " ".join(name for name in MODULES if name in modules),
        "path": "/rpmsgx",
        "python": "/usr/bin/python3.11",
        "program": program,
    }
    archive = emulated.initramfs(root / "bin" / "busybox", modules)
    return emulated.run(qemu, folder, archive, root, environment, "console=ttyS0", [uart.fileno()])


def _make(folder: Path) -> None:
    """Kernel and Python for arm64 from Debian's archive, and the UIO driver that its kernel is built without."""
    state = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    options = ["-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64", f"-oDir::State::lists={state}/lists"]
    options += [f"-oDir::Cache={state}/cache", f"-oDir::State::status={state}/status"]
    command("apt-get", *options, "update", "-qq", cwd=folder)
    kernel = emulated.kernel_package("arm64", *options)
    version = kernel.removeprefix("linux-image-")
    release = ".".join(version.split(".")[:2])
    emulated.unpack(folder, folder / "root", PYTHON, *options)
    emulated.unpack(folder, folder / "kernel", [kernel, f"linux-headers-{version}"], *options)
    common = f"linux-headers-{version.removesuffix('-arm64')}-common"
    emulated.unpack(folder, folder / "kernel", [common, f"linux-kbuild-{release}", f"linux-source-{release}"])
    source = folder / "kernel" / "usr" / "src"
    driver = f"linux-source-{release}/drivers/uio/uio_pdrv_genirq.c"
    command("tar", "xJf", source / f"linux-source-{release}.tar.xz", "-C", source, driver, cwd=folder)
    module = (source / driver).parent
    (module / "Makefile").write_text("obj-m += uio_pdrv_genirq.o\n")
    headers = source / f"linux-headers-{version}"
    (headers / "Makefile").write_text(f"include {source / common}/Makefile\n")
    make = ("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc-12")
    command("make", "-C", headers, f"M={module}", *make, "modules", cwd=folder)
    shutil.rmtree(state)
    for name in ("lib", "boot"):
        shutil.move(folder / "kernel" / name, folder / name)
    shutil.move(module / "uio_pdrv_genirq.ko", folder / "lib")
    shutil.rmtree(folder / "kernel")


def _install(root: Path) -> None:
    """This checkout, its extensions, compiled by zig for the guest's Python, and firmware for the M4."""
    target = root / "rpmsgx"
    for part in ("rpmsgx", "examples", "tests/boards/guest"):
        ignored = shutil.ignore_patterns("*.so", "*.c", "*.elf", "__pycache__")
        shutil.copytree(emulated.ROOT / part, target / part, ignore=ignored)
    shutil.copy(shipped("sample", M4), target / "examples" / "boards" / "m4.elf")  # where the board files want it
    shutil.copy(shipped("crash", M4), target / "examples" / "boards" / "crash.elf")
    for name in ("proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir(exist_ok=True)
    compilers = []
    for extension in EXTENSIONS:
        source = emulated.ROOT / f"{extension}.c"
        if not source.exists():
            raise Missing(f"{source} is not there: python setup.py build_ext --inplace")
        words = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28", "-shared", "-fPIC", "-O2"]
        words += ["-g0", "-std=gnu11", "-I", str(emulated.ROOT / "csrc"), "-I", sysconfig.get_paths()["include"]]
        words += [str(source), "-o", str(target / f"{extension}.cpython-311-aarch64-linux-gnu.so")]
        compilers.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    folders = [target / "rpmsgx", root / "usr" / "lib" / "python3.11"]
    subprocess.run([sys.executable, "-m", "compileall", "-qq", *folders])  # the guest would take its time
    for compiler in compilers:
        output, _ = compiler.communicate()
        if compiler.returncode:
            raise Missing(f"ziglang cannot compile for arm64 here: {output[-2000:]}")


def _device_tree(folder: Path, machine: list[str]) -> None:
    dump = [*machine]
    dump[dump.index("virt,gic-version=2")] += f",dumpdtb={folder / 'virt.dtb'}"
    command(*dump, "-display", "none", "-nodefaults", "-serial", "null", cwd=folder)
    (folder / "overlay.dts").write_text(OVERLAY)
    command("dtc", "-q", "-@", "-I", "dts", "-O", "dtb", "-o", "overlay.dtb", "overlay.dts", cwd=folder)
    command("fdtoverlay", "-i", "virt.dtb", "-o", "board.dtb", "overlay.dtb", cwd=folder)
