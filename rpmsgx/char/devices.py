"""The kernel's rpmsg devices, as sysfs shows them.

A channel is a device on the rpmsg bus. Its driver gives it a node: rpmsg_chrdev a /dev/rpmsgN, rpmsg_tty a
/dev/ttyRPMSGN. Each link to a remote (a virtio device) has also a device that the kernel made, with a /dev/rpmsg_ctrlN
that makes endpoints, nodes /dev/rpmsgN too: a way to channels that have no driver.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

ANY = 0xFFFFFFFF
CHRDEV, TTY = "rpmsg_chrdev", "rpmsg_tty"
TAKEN = {"rpmsg-raw": CHRDEV, "rpmsg-tty": TTY}  # which driver, once it is loaded, takes which service
_HELPERS = ("rpmsg_ns", "rpmsg_ctrl")
_ATTRIBUTE = 4096  # bytes: a page at most


class Node(NamedTuple):
    """A character device: its name below /dev, and its directory in sysfs."""

    name: str
    path: str


class Device(NamedTuple):
    """A device on the rpmsg bus: its directory, the service, the remote's address."""

    path: str
    name: str
    dst: int

    @property
    def link(self) -> str:
        """The directory of the device that it is on, a virtio device."""
        return os.path.dirname(self.path)

    @property
    def src(self) -> int:
        """The local address, ANY until a driver has the device. Raises OSError, ValueError if it has gone."""
        return address(self.path, "src")

    @property
    def announced_to_us(self) -> bool:
        """Is it a remote's service? Else the kernel made it, or somebody here, to announce a service of ours."""
        try:
            ours = read(f"{self.path}/announce") == "true"
        except OSError:
            return False
        return not ours and self.name not in _HELPERS and self.dst != ANY

    @property
    def driver(self) -> str | None:
        try:
            return os.path.basename(os.readlink(f"{self.path}/driver"))
        except OSError:
            return None

    @property
    def node(self) -> Node | None:
        """The device's own node, if its driver has given it one."""
        return next(nodes(f"{self.path}/rpmsg", "rpmsg"), None) or next(nodes(f"{self.path}/tty", "ttyRPMSG"), None)

    @property
    def control(self) -> Node | None:
        """The node that makes endpoints on this link, if it is this device that has it."""
        return next(nodes(f"{self.path}/rpmsg", "rpmsg_ctrl"), None)


def devices(sysfs: str) -> Iterator[tuple[tuple[str, int], str]]:
    """(key, path) of what is on the rpmsg bus, oldest first. A device that goes and comes again has another key."""
    bus = f"{sysfs}/bus/rpmsg/devices"
    try:
        with os.scandir(bus) as entries:
            found = sorted((entry.inode(), entry.name) for entry in entries)  # sysfs counts what it makes
    except FileNotFoundError:  # rpmsg_core is not loaded, or there is none
        return
    for number, name in found:
        yield (name, number), os.path.realpath(f"{bus}/{name}")


def device(path: str) -> Device | None:
    """None if it has gone meanwhile."""
    try:
        return Device(path, read(f"{path}/name"), address(path, "dst"))
    except (OSError, ValueError):
        return None


def nodes(directory: str, prefix: str) -> Iterator[Node]:
    """The nodes PREFIX0, PREFIX1, ... that are in a directory of sysfs."""
    numbers = [int(name[len(prefix) :]) for name in _list(directory) if re.fullmatch(rf"{prefix}\d+", name)]
    for number in sorted(numbers):
        yield Node(f"{prefix}{number}", f"{directory}/{prefix}{number}")


def is_within(path: str, name: str, sysfs: str) -> bool:
    """Does a device lie in `name`: a remote, by the name that its driver gave it, or a device, such as virtio0?"""
    parts = path.split("/")
    return name in parts or name in (_remote(sysfs, part) for part in parts if re.fullmatch(r"remoteproc\d+", part))


def places(sysfs: str) -> dict[str, str]:
    """Names for `is_within`, with the paths: the remotes, and the devices that carry rpmsg."""
    found = {}
    for node in _list(f"{sysfs}/class/remoteproc"):
        found[_remote(sysfs, node)] = os.path.realpath(f"{sysfs}/class/remoteproc/{node}")
    for _, path in devices(sysfs):
        link = os.path.dirname(path)
        found[os.path.basename(link)] = link
    return found


def address(path: str, attribute: str) -> int:
    """src or dst: hex for a channel, signed decimal for a node. Raises OSError, ValueError if it has gone."""
    return int(read(f"{path}/{attribute}"), 0) & 0xFFFFFFFF


def read(path: str) -> str:
    """An attribute. The name of a service is what a remote sent: anything may be in it."""
    with open(path, "rb", buffering=0) as file:
        return (file.read(_ATTRIBUTE) or b"").removesuffix(b"\n").decode("utf-8", "backslashreplace")


def _remote(sysfs: str, remoteproc: str) -> str:
    try:
        return read(f"{sysfs}/class/remoteproc/{remoteproc}/name")
    except OSError:
        return remoteproc


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
