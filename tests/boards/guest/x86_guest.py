# SPDX-License-Identifier: BSD-3-Clause
"""A PC with devices that this one need not have. It sees the host's root, so it runs this Python and this checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import emulated

BUSYBOX = Path("/bin/busybox")
MODULES = (*emulated.NINE_P, "uio", "uio_pci_generic", "uio_cif")
SHARED = 1 << 20  # bytes of memory that guest and host share


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
    path = os.pathsep.join([str(emulated.ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    environment = {"modules": " ".join(MODULES), "path": path, "python": sys.executable, "program": program}
    archive = emulated.initramfs(BUSYBOX, modules)
    return emulated.run(qemu, folder, archive, Path("/"), environment, "console=ttyS0 no_timer_check")
