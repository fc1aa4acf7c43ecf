# SPDX-License-Identifier: BSD-3-Clause
"""A board with a device tree: a UART is the mailbox, a UIO device with memory that Linux leaves alone.

Its Python comes from Debian; the extensions are compiled for it from what Cython made of them here. Whatever is
written to the UART's data register comes back as a byte received, with an interrupt: see `_echo`.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import emulated
from emulated import Missing, command

TOOLS = ("qemu-system-aarch64", "apt-get", "dpkg-deb", "make", "dtc", "fdtoverlay", "aarch64-linux-gnu-gcc-12")
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
		__overlay__ {
			compatible = "generic-uio";
			reg = <0 0x9000000 0 0x1000 0 0x60000000 0 0x100000>;
			reg-names = "regs", "shm";
		};
	};
	fragment@1 {
		target-path = "/";
		__overlay__ {
			reserved-memory {
				#address-cells = <2>;
				#size-cells = <2>;
				ranges;
				shm@60000000 { reg = <0 0x60000000 0 0x100000>; no-map; };
			};
		};
	};
};
"""


def run(folder: Path, program: str) -> list[dict[str, Any]]:
    """What `program`, a file beside this one, tells, line by line."""
    emulated.need(TOOLS, PACKAGES)
    board = emulated.cached(f"arm64-guest/{emulated.kernel_package('amd64')}", _make)
    root = folder / "root"
    shutil.copytree(board / "root", root, symlinks=True)
    _install(root)
    machine = ["qemu-system-aarch64", "-M", "virt,gic-version=2", "-cpu", "cortex-a53", "-m", "768"]
    _device_tree(folder, machine)
    modules = {path.stem: path for path in board.rglob("*.ko") if path.stem in MODULES}  # some are built in
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "mailbox"))
        listener.listen(1)
        echo = threading.Thread(target=_echo, args=[listener], daemon=True)
        echo.start()
        qemu: list[str | Path] = [*machine, "-dtb", folder / "board.dtb", "-kernel", next(board.rglob("vmlinuz-*"))]
        qemu += ["-chardev", f"socket,id=mailbox,path={folder / 'mailbox'}", "-serial", "chardev:mailbox"]
        qemu += ["-chardev", "stdio,id=console", "-device", "pci-serial,chardev=console"]
        environment = {
            "modules": " ".join(name for name in MODULES if name in modules),
            "path": "/rpmsgx",
            "python": "/usr/bin/python3.11",
            "program": f"/rpmsgx/{program}",
        }
        archive = emulated.initramfs(root / "bin" / "busybox", modules)
        try:
            return emulated.run(qemu, folder, archive, root, environment, "console=ttyS0")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            echo.join(10)


def _echo(listener: socket.socket) -> None:
    """The mailbox's other end rings back at each ring."""
    try:
        end, _ = listener.accept()
        with end:
            while data := end.recv(1):
                end.sendall(data)
    except OSError:
        pass  # the guest has ended


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
    """This checkout, and its extensions, compiled by zig for the guest's Python."""
    target = root / "rpmsgx"
    for part in ("rpmsgx", "tests/boards/guest"):
        ignored = shutil.ignore_patterns("*.so", "*.c", "*.elf", "__pycache__")
        shutil.copytree(emulated.ROOT / part, target / part, ignore=ignored)
    for name in ("proc", "sys", "dev", "tmp"):
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
