# SPDX-License-Identifier: BSD-3-Clause
"""`rpmsgx doctor`: of machines that are trees of files, and of this one."""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rpmsgx.cli import doctor

CONFIG = """\
CONFIG_DEVMEM=y
CONFIG_STRICT_DEVMEM=y
CONFIG_IO_STRICT_DEVMEM=y
CONFIG_UIO=y
CONFIG_UIO_PDRV_GENIRQ=m
# CONFIG_UIO_PCI_GENERIC is not set
CONFIG_VFIO_PCI=y
CONFIG_HUGETLBFS=y
CONFIG_REMOTEPROC=y
CONFIG_RPMSG=y
CONFIG_RPMSG_CHAR=m
CONFIG_RPMSG_CTRL=y
"""
EVERYTHING = {
    "dev/mem": "",
    "dev/rpmsg0": "",
    "proc/self/status": "CapInh:\t0\nCapEff:\t000001ffffffffff\n",
    "proc/cmdline": "console=ttyS0",
    "proc/mounts": "none /dev/hugepages hugetlbfs rw 0 0\nproc /proc proc rw 0 0\n",
    "sys/module/rpmsg_char/parameters": "",
    "sys/class/uio/uio0/name": "mailbox",
    "sys/class/uio/uio0/maps/map0/name": "shm",
    "sys/class/uio/uio0/maps/map0/addr": "0x60000000",
    "sys/class/uio/uio0/maps/map0/size": "0x100000",
    "sys/class/uio/uio0/maps/map0/offset": "0x0",
    "dev/uio0": "",
    "sys/bus/pci/devices/0000:00:04.0/resource": "0xfe000000 0xfe003fff 0x40200\n",
    "sys/bus/pci/devices/0000:00:04.0/resource0": "",
    "sys/bus/pci/devices/0000:00:05.0/resource": "0xff000000 0xff003fff 0x40200\n",
    "sys/bus/pci/devices/0000:00:05.0/driver/bind": "",
    "sys/bus/pci/devices/0000:00:06.0/resource": "0xff004000 0xff007fff 0x40200\n",
    "sys/bus/pci/drivers/vfio-pci/bind": "",
    "sys/kernel/iommu_groups/7/type": "DMA",
    "dev/vfio/7": "",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "64",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "60",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality",
    "sys/class/remoteproc/remoteproc0/name": "m4",
    "sys/class/remoteproc/remoteproc0/state": "offline",
    "sys/bus/rpmsg/devices/virtio0.rpmsg-raw.-1.1024/name": "rpmsg-raw",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in EVERYTHING.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    device = tmp_path / "sys/bus/pci/devices/0000:00:06.0"
    (device / "driver").symlink_to("../../drivers/vfio-pci")
    (device / "iommu_group").symlink_to("../../../../kernel/iommu_groups/7")
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(CONFIG.encode()))
    return tmp_path


def examine(root: Path) -> dict[str, Any]:
    return {name: patient.as_dict() for name, patient in doctor.Machine(str(root)).examine().items()}


def test_a_machine_that_has_everything(root: Path) -> None:
    found = examine(root)
    assert {name: (patient["has"], patient["lacks"]) for name, patient in found.items()} == {
        "mem": (["/dev/mem"], []),
        "uio": (["/dev/uio0 'mailbox': map 0 'shm' (0x100000 bytes at 0x60000000)"], []),
        "pci": (["pci:0000:00:04.0:0: 0x4000 bytes, no driver"], []),
        "vfio": (["vfio:0000:00:06.0: vfio-pci, /dev/vfio/7"], []),
        "hugepages": (["hugepages-2048kB: 60 of 64 free", "hugetlbfs at /dev/hugepages"], []),
        "remoteproc": (["remoteproc0 'm4': offline"], []),
        "rpmsg": (["virtio0.rpmsg-raw.-1.1024", "/dev/rpmsg0"], []),
    }
    assert all(patient["usable"] for patient in found.values())
    assert [len(patient["notes"]) for patient in found.values()] == [2, 0, 0, 0, 0, 0, 0]
    (root / "proc/cmdline").write_text("iomem=relaxed")
    assert len(examine(root)["mem"]["notes"]) == 1


def lacks(root: Path, name: str) -> list[str]:
    patient = examine(root)[name]
    assert patient["usable"] == (not patient["lacks"])
    return [f"{lack['what']} -> {lack['cure']}" for lack in patient["lacks"]]


def test_kernel_options(root: Path) -> None:
    (root / "proc/config.gz").unlink()
    boot = root / "boot" / f"config-{os.uname().release}"
    boot.parent.mkdir()
    boot.write_text("CONFIG_X=y\n")
    options = {"mem": "DEVMEM", "uio": "UIO", "vfio": "VFIO_PCI", "hugepages": "HUGETLBFS", "remoteproc": "REMOTEPROC"}
    for name, option in options.items():
        assert lacks(root, name)[0] == f"the kernel is built without CONFIG_{option} -> build one with CONFIG_{option}"
    boot.unlink()
    assert all(patient["usable"] for patient in examine(root).values())  # nothing is known of options: nothing is said


def test_modules(root: Path) -> None:
    (root / "sys/module/rpmsg_char").rename(root / "sys/module/other")
    assert lacks(root, "rpmsg") == ["module rpmsg_char is not loaded -> modprobe rpmsg_char"]
    (root / "sys/class/uio/uio0").rename(root / "sys/class/uio/none")
    [lack] = lacks(root, "uio")
    assert lack.startswith('no device is bound to a UIO driver -> in the device tree: compatible = "generic-uio" and ')


def test_what_is_missing(root: Path) -> None:
    (root / "dev/mem").unlink()
    (root / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
    assert lacks(root, "mem") == ["/dev/mem is not there -> mknod -m 600 /dev/mem c 1 1, or give it to the container"]
    (root / "dev/mem").touch()
    assert lacks(root, "mem")[-1].startswith("no CAP_SYS_RAWIO -> run as root, or AmbientCapabilities=CAP_SYS_RAWIO")
    (root / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").write_text("0")
    assert lacks(root, "hugepages") == ["no huge pages are set aside -> echo 64 > /proc/sys/vm/nr_hugepages"]
    (root / "sys/kernel/security/lockdown").write_text("none [integrity] confidentiality")
    for name in ("mem", "pci"):
        assert lacks(root, name)[-1].startswith("the kernel is locked down: none [integrity] confidentiality -> boot ")
    (root / "sys/bus/pci/devices/0000:00:04.0/resource0").unlink()
    (root / "sys/bus/pci/devices/0000:00:06.0/driver").unlink()
    assert lacks(root, "vfio") == [
        "no device is bound to vfio-pci -> modprobe vfio-pci; driverctl set-override SLOT vfio-pci"
    ]
    (root / "sys/kernel/iommu_groups/7").rename(root / "7")
    assert lacks(root, "vfio")[0].startswith("there is no IOMMU -> switch VT-d or AMD-Vi on in the firmware's setup")
    assert "resource0 is not there -> this kernel gives no maps of BARs: use uio" in lacks(root, "pci")[0]


def test_permissions(root: Path) -> None:
    class NoPermission(doctor.Machine):
        """As a user without rights has it: root, who may run this, has all."""

        def _may_write(self, patient: doctor.Patient, path: str, cure: str = doctor._UDEV) -> None:
            patient.lack(f"no permission for {path}", cure)

    for name, patient in NoPermission(str(root)).examine().items():
        texts = [f"{what} -> {cure}" for what, cure in patient.lacks]
        assert bool(texts) == (name != "hugepages")
        assert all(text.startswith("no permission for /") for text in texts)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", "--json"])
    assert args.run(args) == 0
    found = json.loads(capsys.readouterr().out)
    args = parser.parse_args(["doctor"])
    assert args.run(args) == 0
    text = capsys.readouterr().out
    for name, patient in found.items():
        assert f"{name}: {'usable' if patient['usable'] else 'not usable'}\n" in text
        assert patient["has"] or patient["lacks"]
        assert all(lack["cure"] in text for lack in patient["lacks"])


def test_names_cannot_drive_the_terminal(root: Path) -> None:
    (root / "sys/class/uio/uio0/name").write_text("\x1b[2J")
    assert "\x1b" not in doctor._as_text(examine(root))
