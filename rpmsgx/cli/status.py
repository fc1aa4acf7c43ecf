"""`rpmsgx status [TARGET...]`: the state of remotes, who has them, and what their resource tables say."""

from __future__ import annotations

import glob
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import Error
from . import reason
from .target import View, find, kernel_names
from .text import printable

if TYPE_CHECKING:
    import argparse

    from ..remoteproc.board import Board
    from ..remoteproc.hold import Owner
    from ..remoteproc.linux import LinuxRemoteproc
    from ..virtio.table import Vdev

ADDR_ANY = 0xFFFFFFFF
DRIVER_OK = 4
STATUS = {1: "ACKNOWLEDGE", 2: "DRIVER", DRIVER_OK: "DRIVER_OK", 8: "FEATURES_OK", 64: "NEEDS_RESET", 128: "FAILED"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show the state of remotes, and who has them",
        description="Show the state of remotes, and who has them. They are looked at from outside: another process may "
        "have them. Exit status 1 if one cannot be looked at.",
    )
    parser.add_argument("targets", metavar="TARGET", nargs="*",
                        help="a board file, or the name of a remoteproc of the kernel (default: all of the kernel's)")
    parser.add_argument("--json", action="store_true", help="print one JSON array, with an object for each")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = [_status(target) for target in args.targets or kernel_names()]
    if args.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("the kernel has no remoteprocs")
    else:
        print(printable("\n\n".join("\n".join(_as_text(one)) for one in found)))
    for one in found:
        if one["error"]:
            print(printable(f"rpmsgx status: {one['target']}: {one['error']}"), file=sys.stderr)
    return 1 if any(one["error"] for one in found) else 0


def _status(target: str) -> dict[str, Any]:
    from ..remoteproc.linux import LinuxRemoteproc

    about: dict[str, Any] = {
        "target": target, "name": target, "platform": None, "state": "unknown", "owner": None, "firmware": None,
        "sha256": None, "recovery": None, "crashes": None, "table": None, "vdevs": [], "channels": [], "error": None,
    }  # fmt: skip
    try:
        found = find(target)
        if isinstance(found, LinuxRemoteproc):
            with found:
                _look_at_kernel(about, found)
        else:
            _look_at_board(about, found)
    except (Error, OSError, ValueError, ImportError) as error:
        about["error"] = reason(error)
    return about


# -- remoteprocs of the kernel ---------------------------------------------------------------------------------------


def _look_at_kernel(about: dict[str, Any], rproc: LinuxRemoteproc) -> None:
    about.update(name=rproc.name, platform="linux", state=rproc.state, firmware=rproc.firmware)
    about["recovery"] = rproc.recovery
    about["vdevs"] = [_device(path) for path in sorted(glob.glob(f"{glob.escape(rproc._path)}/*/virtio*"))]
    about["channels"] = [{"name": channel.name, "addr": channel.dst} for channel in rproc.channels]


def _device(path: str) -> dict[str, Any]:
    """A virtio device below a remoteproc."""
    about: dict[str, Any] = {"name": os.path.basename(path), "driver": None}
    with suppress(OSError):
        about["driver"] = os.path.basename(os.readlink(f"{path}/driver"))
    for key, attribute in (("id", "device"), ("status", "status")):
        with suppress(OSError, ValueError), open(f"{path}/{attribute}", encoding="ascii") as file:
            about[key] = int(file.read(), 0)
    return about


# -- board files -----------------------------------------------------------------------------------------------------


def _look_at_board(about: dict[str, Any], board: Board) -> None:
    about.update(name=board.name, platform=board.platform, firmware=board.firmware, recovery=board.recovery)
    with View(board) as view:
        who, saved, runs = view.owner, view.saved, view.look()
        about["owner"] = None if who is None else who._asdict()
        if saved is not None and (runs or who is not None):
            about.update(firmware=saved.firmware, sha256=saved.sha256, crashes=saved.crashes)
            about["channels"] = [{"name": name, "addr": addr} for name, addr in saved.channels]
        if not runs:
            # A host holds its remote from the boot to the stop, and saves what it knows once it is up.
            about["state"] = "crashed" if who is not None and saved is not None else "offline"
            return
        about["state"] = "detached" if who is None else "running"
        table = view.table()
        if table is not None:
            about["table"] = {"da": table[0], "size": len(table[1].data)}
            about["vdevs"] = [_vdev(index, vdev, who) for index, vdev in enumerate(table[1].vdevs)]


def _vdev(index: int, vdev: Vdev, who: Owner | None) -> dict[str, Any]:
    driver = None
    if vdev.status & DRIVER_OK:
        driver = "a host that is gone" if who is None else f"pid {who.pid}"
    return {
        "name": f"vdev{index}",
        "driver": driver,
        "id": vdev.id,
        "status": vdev.status,
        "features": vdev.gfeatures,
        "vrings": [vring._asdict() for vring in vdev.vrings],
    }


# -- for people ------------------------------------------------------------------------------------------------------


def _as_text(about: dict[str, Any]) -> list[str]:
    lines = [f"{about['name']}: {about['state']}"]
    owner = about["owner"]
    lines += _row("platform", about["platform"])
    lines += _row("host", owner and f"pid {owner['pid']}{owner['command'] and ': '}{owner['command']}")
    lines += _row("firmware", about["firmware"])
    lines += _row("sha256", about["sha256"])
    lines += _row("recovery", about["recovery"])
    lines += _row("crashes", about["crashes"] or None)
    lines += _row("table", about["table"] and "da {da:#x}, {size} bytes".format(**about["table"]))
    for vdev in about["vdevs"]:
        flags = " ".join(name for bit, name in STATUS.items() if vdev.get("status", 0) & bit)
        lines += _row(vdev["name"], f"id {vdev.get('id', '?')}, driven by {vdev['driver'] or 'nobody'}, "
                                    f"status {vdev.get('status', 0):#x}{flags and ' '}{flags}")  # fmt: skip
        for index, vring in enumerate(vdev.get("vrings", ())):
            where = "not placed" if vring["da"] == ADDR_ANY else f"da {vring['da']:#x}"
            rest = "{num} descriptors, align {align}, notifyid {notifyid}".format(**vring)
            lines += _row(f"  vring{index}", f"{where}, {rest}")
    for channel in about["channels"]:
        lines += _row("channel", f"{channel['name']} at {channel['addr']:#x}")
    return lines


def _row(what: str, value: object) -> list[str]:
    return [] if value is None else [f"  {what:<9} {value}"]
