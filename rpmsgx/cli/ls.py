"""`rpmsgx ls`: shipped firmware, this machine's remote cores and rpmsg devices, schemes and platforms."""

from __future__ import annotations

import json
import os

from .text import block, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

SYSFS = "/sys"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "ls",
        help="list what there is to talk to on this machine",
        description="List the firmware that is shipped, the kernel's remote processors and rpmsg devices, "
        "and the schemes and platforms that can be used.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = look()
    print(json.dumps(found, indent=2) if args.json else _as_text(found))
    return 0


def look(sysfs: str = SYSFS) -> dict[str, Any]:
    """Everything that `ls` shows. Attributes of `sysfs` that cannot be read are empty."""
    from ..remoteproc.platform import _BUILT_IN as PLATFORMS
    from ..rpmsg.open import KERNEL, TRANSPORTS

    return {
        "firmware": firmware(),
        "remoteprocs": _objects(f"{sysfs}/class/remoteproc", ("name", "state", "firmware")),
        "rpmsg_devices": rpmsg_devices(sysfs),
        "schemes": sorted({*TRANSPORTS, KERNEL, *_entry_points("rpmsgx.transports")}),
        "platforms": sorted({*PLATFORMS, *_entry_points("rpmsgx.platforms")}),
    }


def firmware() -> list[dict[str, Any]]:
    """The shipped images: the short name, the CPU, and what the file is."""
    from hashlib import sha256

    from .. import firmware as shipped

    images = []
    directory = os.path.dirname(os.path.abspath(shipped.__file__))
    for file in sorted(os.listdir(directory)):
        name, dash, cpu = file.removesuffix(".elf").partition("-")
        if file.endswith(".elf") and dash and name in shipped.NAMES:
            path = os.path.join(directory, file)
            with open(path, "rb") as stream:
                data = stream.read()
            digest = sha256(data).hexdigest()
            images.append({"name": name, "cpu": cpu, "path": path, "size": len(data), "sha256": digest})
    return images


def rpmsg_devices(sysfs: str) -> list[dict[str, str]]:
    """The devices on the kernel's rpmsg bus: their driver, and their node below /dev, if they have such."""
    from ..char.devices import Device

    rows = _objects(f"{sysfs}/bus/rpmsg/devices", ("name", "src", "dst"))
    for row in rows:
        device = Device(os.path.realpath(f"{sysfs}/bus/rpmsg/devices/{row['device']}"), row["name"], 0)
        node = device.node or device.control
        row |= {"driver": device.driver or "", "node": node.name if node else ""}
    return rows


def _objects(directory: str, attributes: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:  # no such class here
        return []
    return [
        {"device": name, **{attribute: _read(f"{directory}/{name}/{attribute}") for attribute in attributes}}
        for name in names
    ]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as stream:
            return stream.read(4096).strip()
    except OSError:
        return ""


def _entry_points(group: str) -> list[str]:
    from importlib.metadata import entry_points

    return [point.name for point in entry_points(group=group)]


def _as_text(found: dict[str, Any]) -> str:
    lines = block(
        "Firmware",
        ("name", "cpu", "bytes", "sha256"),
        [(f["name"], f["cpu"], str(f["size"]), f["sha256"][:16]) for f in found["firmware"]],
    )
    for key, title in (("remoteprocs", "Remote processors"), ("rpmsg_devices", "rpmsg devices")):
        rows = [tuple(row.values()) for row in found[key]]
        lines += block(title, tuple(found[key][0]) if rows else (), rows)
    lines += ["", "Schemes: " + " ".join(f"{name}:" for name in found["schemes"])]
    lines += ["", "Platforms: " + " ".join(found["platforms"])]
    return printable("\n".join(lines[1:]))
