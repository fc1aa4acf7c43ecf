"""`rpmsgx doctor`: what this machine has and lacks for each way to a remote core, and the command that mends it."""

from __future__ import annotations

import json
import os

from ..memory.device_file import attribute
from .text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

_RAWIO = 17  # CAP_SYS_RAWIO of linux/capability.h
_UDEV = "install examples/udev/60-rpmsgx.rules, and join its group"
_MODULES = {  # what option gives which module, and its parameters
    "UIO_PDRV_GENIRQ": "uio_pdrv_genirq of_id=generic-uio",
    "UIO_PCI_GENERIC": "uio_pci_generic",
    "VFIO_PCI": "vfio_pci",
    "RPMSG_CHAR": "rpmsg_char",
    "RPMSG_CTRL": "rpmsg_ctrl",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine lacks to reach a remote core",
        description="List for each kind of memory and for the kernel's own remote cores what this machine has and "
        "lacks: devices, permissions, modules, kernel options; and the command that mends it. Changes nothing.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = {name: patient.as_dict() for name, patient in Machine().examine().items()}
    print(json.dumps(found, indent=2) if args.json else _as_text(found))
    return 0


class Patient:
    """What was found for one backend. It is usable if there is something and nothing is missing."""

    def __init__(self) -> None:
        self.has: list[str] = []
        self.lacks: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def lack(self, what: str, cure: str) -> None:
        self.lacks.append((what, cure))

    def as_dict(self) -> dict[str, Any]:
        return {
            "usable": bool(self.has) and not self.lacks,
            "has": self.has,
            "lacks": [{"what": what, "cure": cure} for what, cure in self.lacks],
            "notes": self.notes,
        }


class Machine:
    """Looks below `root`, for tests; anything that cannot be read counts as not there."""

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._release = os.uname().release
        self._options = self._kernel_options()

    def examine(self) -> dict[str, Patient]:
        return {
            "mem": self._mem(),
            "uio": self._uio(),
            "pci": self._pci(),
            "vfio": self._vfio(),
            "hugepages": self._hugepages(),
            "remoteproc": self._remoteproc(),
            "rpmsg": self._rpmsg(),
        }

    # -- what is asked

    def _path(self, path: str) -> str:
        return self._root + path

    def _list(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._path(path)))
        except OSError:
            return []

    def _read(self, path: str) -> str:
        return attribute(self._path(path))

    def _kernel_options(self) -> Mapping[str, str]:
        """Those that are set, by name; empty where the kernel does not tell."""
        import gzip

        for path in ("/proc/config.gz", f"/boot/config-{self._release}", f"/lib/modules/{self._release}/config"):
            try:
                opener = gzip.open if path.endswith(".gz") else open
                with opener(self._path(path), "rb") as file:
                    lines = file.read(1 << 24).decode("utf-8", "replace").splitlines()
            except (OSError, EOFError):
                continue
            return dict(line[7:].split("=", 1) for line in lines if line.startswith("CONFIG_") and "=" in line)
        return {}

    def _option(self, patient: Patient, name: str) -> bool:
        """Whether the kernel may have it; what it lacks is told."""
        if not self._options:
            return True
        value = self._options.get(name, "n")
        module = _MODULES.get(name, "").partition(" ")[0]
        if value == "n":
            patient.lack(f"the kernel is built without CONFIG_{name}", f"build one with CONFIG_{name}")
        elif value == "m" and module and not os.path.isdir(self._path(f"/sys/module/{module}")):
            patient.lack(f"module {module} is not loaded", f"modprobe {_MODULES[name]}")
        return value != "n"

    def _may_write(self, patient: Patient, path: str, cure: str = _UDEV) -> None:
        if not os.access(self._path(path), os.R_OK | os.W_OK):
            patient.lack(f"no permission for {path}", cure)

    # -- the backends

    def _mem(self) -> Patient:
        patient = Patient()
        if self._option(patient, "DEVMEM"):
            if os.path.exists(self._path("/dev/mem")):
                patient.has.append("/dev/mem")
                self._may_write(patient, "/dev/mem", "run as root: what /dev/mem gives is everything")
                if not self._capable(_RAWIO):
                    patient.lack("no CAP_SYS_RAWIO", "run as root, or AmbientCapabilities=CAP_SYS_RAWIO in a unit")
            else:
                patient.lack("/dev/mem is not there", "mknod -m 600 /dev/mem c 1 1, or give it to the container")
        if self._options.get("STRICT_DEVMEM") == "y":
            patient.notes.append("System RAM is refused: keep memory free by a no-map node, or memmap=SIZE$ADDRESS")
        if self._options.get("IO_STRICT_DEVMEM") == "y" and "iomem=relaxed" not in self._read("/proc/cmdline"):
            patient.notes.append("memory that a driver has claimed is refused: boot with iomem=relaxed if you must")
        self._lockdown(patient)
        return patient

    def _uio(self) -> Patient:
        from ..memory.uio import HOW_TO_BIND, devices

        patient = Patient()
        if not self._option(patient, "UIO"):
            return patient
        found = devices(self._path("/sys"), "/dev")
        for device in found:
            patient.has.append(f"{device.path} {device.name!r}: {', '.join(map(str, device.maps)) or 'no memory'}")
            self._may_write(patient, device.path)
        if not found:
            drivers = Patient()
            usable = [name for name in ("UIO_PDRV_GENIRQ", "UIO_PCI_GENERIC") if self._option(drivers, name)]
            if not usable:
                patient.lacks += drivers.lacks
            patient.lack("no device is bound to a UIO driver", HOW_TO_BIND)
        return patient

    def _pci(self) -> Patient:
        from ..memory.pci import bars

        patient = Patient()
        if not os.path.isdir(self._path("/sys/bus/pci")):
            patient.lack("there is no PCI bus", "nothing mends that")
            return patient
        for slot in self._list("/sys/bus/pci/devices"):
            device = f"/sys/bus/pci/devices/{slot}"
            if os.path.exists(self._path(f"{device}/driver")):
                continue  # somebody uses it
            for bar, size in bars(self._path(device)).items():
                patient.has.append(f"pci:{slot}:{bar}: {size:#x} bytes, no driver")
                if os.path.exists(self._path(f"{device}/resource{bar}")):
                    self._may_write(patient, f"{device}/resource{bar}", "run as root, or chgrp it by a udev rule")
                else:
                    patient.lack(f"{device}/resource{bar} is not there", "this kernel gives no maps of BARs: use uio")
        if not patient.has:
            patient.lack("no PCI device with memory is free", "echo SLOT > /sys/bus/pci/devices/SLOT/driver/unbind")
        self._lockdown(patient)
        return patient

    def _vfio(self) -> Patient:
        from ..memory.vfio import HOW_TO_BIND, NO_IOMMU, place

        patient = Patient()
        if not self._option(patient, "VFIO_PCI"):
            return patient
        for slot in self._list("/sys/bus/pci/devices"):
            found = place(slot, self._path("/sys"))
            if found.bound and found.group:
                names = (f"/dev/vfio/{found.group}", f"/dev/vfio/noiommu-{found.group}")
                path = next((name for name in names if os.path.exists(self._path(name))), names[0])
                patient.has.append(f"vfio:{slot}: {found.driver}, {path}")
                self._may_write(patient, path)
        if not patient.has:
            if not self._list("/sys/kernel/iommu_groups"):
                patient.lack("there is no IOMMU", NO_IOMMU)
            patient.lack("no device is bound to vfio-pci", HOW_TO_BIND.format(slot="SLOT"))
        return patient

    def _hugepages(self) -> Patient:
        patient = Patient()
        if not self._option(patient, "HUGETLBFS"):
            return patient
        for name in self._list("/sys/kernel/mm/hugepages"):
            directory = f"/sys/kernel/mm/hugepages/{name}"
            total, free = (self._read(f"{directory}/{field}") for field in ("nr_hugepages", "free_hugepages"))
            if total not in ("", "0"):
                patient.has.append(f"{name}: {free} of {total} free")
        for line in self._read("/proc/mounts").splitlines():
            _, where, kind, *_ = [*line.split(), "", "", ""]
            if kind == "hugetlbfs":
                patient.has.append(f"hugetlbfs at {where}")
        if not any(text.startswith("hugepages-") for text in patient.has):
            patient.lack("no huge pages are set aside", "echo 64 > /proc/sys/vm/nr_hugepages")
        return patient

    def _remoteproc(self) -> Patient:
        patient = Patient()
        if not self._option(patient, "REMOTEPROC"):
            return patient
        for name in self._list("/sys/class/remoteproc"):
            path = f"/sys/class/remoteproc/{name}"
            patient.has.append(f"{name} {self._read(f'{path}/name')!r}: {self._read(f'{path}/state')}")
            self._may_write(patient, f"{path}/state")
        if not patient.has:
            cure = "enable the core's node in the device tree, and load the driver of the SoC (modprobe *_rproc)"
            patient.lack("no driver has registered a remote core", cure)
        return patient

    def _rpmsg(self) -> Patient:
        patient = Patient()
        if self._option(patient, "RPMSG"):
            patient.has += self._list("/sys/bus/rpmsg/devices")
            for option in ("RPMSG_CHAR", "RPMSG_CTRL"):
                self._option(patient, option)
            for name in self._list("/dev"):
                if name.startswith("rpmsg"):
                    patient.has.append(f"/dev/{name}")
                    self._may_write(patient, f"/dev/{name}")
            if not patient.has:
                patient.lack("no rpmsg device", "boot a remote that announces one: rpmsgx ls shows the remotes")
        return patient

    # -- the same for several

    def _capable(self, number: int) -> bool:
        for line in self._read("/proc/self/status").splitlines():
            name, _, value = line.partition(":")
            if name == "CapEff":
                return bool(int(value, 16) >> number & 1)
        return True

    def _lockdown(self, patient: Patient) -> None:
        state = self._read("/sys/kernel/security/lockdown")
        if state and "[none]" not in state:
            patient.lack(f"the kernel is locked down: {state}", "boot without lockdown=, or without secure boot")


def _as_text(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, patient in found.items():
        lines += ["", f"{name}: {'usable' if patient['usable'] else 'not usable'}"]
        lines += [f"  has    {text}" for text in patient["has"]]
        for lack in patient["lacks"]:
            lines += [f"  lacks  {lack['what']}", f"         -> {lack['cure']}"]
        lines += [f"  note   {text}" for text in patient["notes"]]
    return printable("\n".join(lines[1:]))
