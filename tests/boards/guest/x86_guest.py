# SPDX-License-Identifier: BSD-3-Clause
"""A PC with devices that this one need not have. It sees the host's root, so it runs this Python and this checkout."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated

BUSYBOX = Path("/bin/busybox")
VFIO = ("irqbypass", "vfio", "vfio_virqfd", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci")
MODULES = (*emulated.NINE_P, "uio", "uio_pci_generic", "uio_cif", *VFIO)
SHARED = 1 << 20  # bytes of memory that guest and host share
VECTORS = 2  # MSI-X vectors of the doorbell


def run(folder: Path, program: Path) -> list[dict[str, Any]]:
    """What `program` tells, line by line. What the guest shares with the host is the file `shared` in `folder`."""
    emulated.need(
        ("qemu-system-x86_64", "apt-get", "dpkg-deb", str(BUSYBOX)), "qemu-system-x86 busybox-static"
    )
    package = emulated.kernel_package("amd64")
    kernel = emulated.cached(f"x86-guest/{package}", lambda new: emulated.unpack(new, new, [package]))
    modules = {name: next(kernel.rglob(f"kernel/**/{name}.ko")) for name in MODULES}
    shared = folder / "shared"
    shared.write_bytes(bytes(SHARED))
    qemu: list[str | Path] = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512"]
    qemu += ["-kernel", next(kernel.glob("boot/vmlinuz-*")), "-serial", "stdio"]
    qemu += ["-object", f"memory-backend-file,id=shared,size={SHARED},mem-path={shared},share=on"]
    qemu += ["-device", "ivshmem-plain,memdev=shared,addr=4", "-device", "edu,addr=5"]
    # Behind an IOMMU: a device for each kind of interrupt, and two that it cannot keep apart.
    qemu += ["-device", "intel-iommu,intremap=on", "-device", "e1000,addr=7,romfile="]
    qemu += ["-device", "pcie-pci-bridge,id=bridge,addr=8"]
    qemu += ["-device", "edu,bus=bridge,addr=1", "-device", "edu,bus=bridge,addr=2"]
    path = os.pathsep.join([str(emulated.ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    environment = {"modules": " ".join(MODULES), "path": path, "python": sys.executable, "program": program}
    archive = emulated.initramfs(BUSYBOX, modules)
    boot = "console=ttyS0 intel_iommu=on no_timer_check"
    with ivshmem() as server:
        qemu += ["-chardev", f"socket,id=ivshmem,fd={server}"]
        qemu += ["-device", f"ivshmem-doorbell,chardev=ivshmem,vectors={VECTORS},addr=6"]
        return emulated.run(qemu, folder, archive, Path("/"), environment, boot, [server])


@contextlib.contextmanager
def ivshmem() -> Iterator[int]:
    """The guest's end of an ivshmem server that has said all: docs/specs/ivshmem-spec.txt of QEMU. One peer, itself."""
    with contextlib.ExitStack() as opened:
        server, guest = (opened.enter_context(end) for end in socket.socketpair())
        memory = os.memfd_create("ivshmem")
        opened.callback(os.close, memory)
        os.ftruncate(memory, SHARED)
        messages: list[tuple[int, int | None]] = [(0, None), (0, None), (-1, memory)]  # version, its own number
        for _ in range(VECTORS):
            vector = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.callback(os.close, vector)
            messages.append((0, vector))
        for number, fd in messages:
            socket.send_fds(server, [struct.pack("<q", number)], [] if fd is None else [fd])
        yield guest.fileno()
