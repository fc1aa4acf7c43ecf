"""Opening the nodes of rpmsg, and having the kernel make them (include/uapi/linux/rpmsg.h)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import struct
from collections.abc import Iterator

from rpmsgx.char.devices import ANY, CHRDEV, Device, Node, address, device, devices, nodes, read
from rpmsgx.errors import StateError

_INFO = struct.Struct("=32sII")  # struct rpmsg_endpoint_info: name, src, dst
CREATE_EPT = 0x4028_B501  # _IOW(0xb5, 1, struct rpmsg_endpoint_info)
DESTROY_EPT = 0xB502  # _IO(0xb5, 2)
CREATE_DEV = 0x4028_B503  # _IOW(0xb5, 3, struct rpmsg_endpoint_info)
RELEASE_DEV = 0x4028_B504  # _IOW(0xb5, 4, struct rpmsg_endpoint_info)

_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENETRESET)
_OWN = range(0x8000, 0x10000)  # addresses far from those that the kernel gives out, from 1024 on


class Gone(StateError):
    """A node or a device is not there any more, or not yet."""


class Busy(StateError):
    """Another has opened the node."""


def open_node(dev: str, node: Node) -> int:
    """A descriptor of the node, which does not block.

    Raises Gone, Busy, StateError where its endpoint cannot be made, PermissionError with the cure, OSError.
    """
    path = f"{dev}/{node.name}"
    missing = Gone(f"there is no {path} that is the kernel's")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except PermissionError as error:
        raise _denied(error, path) from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"{path} is open{_owner(path)}: the kernel gives it to one at a time") from None
        if error.errno in _GONE:
            raise missing from None
        if error.errno == errno.EINVAL:
            raise StateError(f"the kernel cannot make the endpoint of {path}: its address is taken") from None
        raise
    try:
        number = os.fstat(fd).st_rdev
        if read(f"{node.path}/dev") != f"{os.major(number)}:{os.minor(number)}":
            raise missing  # a /dev that the kernel does not keep
    except BaseException as error:
        os.close(fd)
        raise (missing if isinstance(error, OSError) else error) from None
    return fd


def destroy(fd: int) -> None:
    """Have the kernel take away the node that `fd` was opened from. Nothing if that has gone already.

    Linux 6.1 takes it away a second time, and panics; hence the look.
    """
    poll = select.poll()
    poll.register(fd, 0)
    if not poll.poll(0):
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, DESTROY_EPT)


class Control:
    """What makes endpoints on one link: its /dev/rpmsg_ctrlN.

    That is opened for each call: after the remote has gone, an ioctl on a descriptor that was kept would make the
    kernel use memory that it has freed.
    """

    def __init__(self, found: Device, node: Node, sysfs: str, dev: str) -> None:
        self.link = found.link
        self._node, self._sysfs, self._dev = node, sysfs, dev

    def check(self) -> None:
        """Raises Gone, PermissionError, OSError, where nothing can be made."""
        os.close(open_node(self._dev, self._node))

    def create(self, name: str, src: int, dst: int) -> Node:
        """A new endpoint's node. It lives until it is destroyed through its descriptor, or the remote goes.

        Raises StateError where `src` is taken, Gone, PermissionError, OSError.
        """
        src = self._address(src)
        self._ioctl(CREATE_EPT, name, src, dst)
        for node in self._endpoints(name, dst):
            if address(node.path, "src") == src:
                return node
        raise Gone(f"there is no endpoint {name!r} any more")

    def spare(self, name: str, dst: int) -> tuple[int, Node] | None:
        """An endpoint's node that nobody has opened, and its descriptor: somebody was killed, or made it for others.

        Raises PermissionError where there may be one: to make another each time would fill the kernel with them.
        """
        denied: PermissionError | None = None
        for node in self._endpoints(name, dst):
            try:
                return open_node(self._dev, node), node
            except PermissionError as error:
                denied = error
            except (StateError, OSError):  # it is in use, or goes just now
                pass
        if denied is not None:
            raise denied
        return None

    def announce(self, name: str, src: int, dst: int) -> Device:
        """A new channel, which the kernel announces to the remote once rpmsg_chrdev has it. Raises as create()."""
        src = self._address(src)
        try:
            self._ioctl(CREATE_DEV, name, src, dst)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise StateError(f"there is a channel {name!r} at {src:#x} already") from None
        found = next((one for one in self._channels() if (one.name, one.src, one.dst) == (name, src, dst)), None)
        if found is None:
            raise Gone(f"there is no channel {name!r} any more")
        try:
            if found.driver is None:
                self._bind(found)
            if found.driver != CHRDEV:
                raise StateError(f"the service {name!r} is taken by a driver of the kernel: {found.driver}")
        except BaseException:
            self.withdraw(name, src, dst)
            raise
        return found

    def withdraw(self, name: str, src: int, dst: int) -> None:
        """The end of a channel that announce() made. Nothing if it has gone."""
        with contextlib.suppress(StateError, OSError):
            self._ioctl(RELEASE_DEV, name, src, dst)

    def _bind(self, channel: Device) -> None:
        driver = f"{self._sysfs}/bus/rpmsg/drivers/{CHRDEV}"
        if not os.path.isdir(driver):
            raise StateError(f"no {driver}: the kernel lacks the module rpmsg_char")
        try:
            _write(f"{channel.path}/driver_override", CHRDEV)
            _write(f"{driver}/bind", os.path.basename(channel.path))
        except PermissionError as error:
            cure = f"only root can announce another service than rpmsg-raw, for its channel must be given to {CHRDEV}"
            raise PermissionError(error.errno, f"{error.strerror}: {cure}", error.filename) from None
        except FileNotFoundError:
            raise Gone(f"there is no channel {channel.name!r} any more") from None

    def _ioctl(self, request: int, name: str, src: int, dst: int) -> None:
        fd = open_node(self._dev, self._node)
        try:
            fcntl.ioctl(fd, request, _INFO.pack(name.encode(), src, dst))
        finally:
            os.close(fd)

    def _address(self, src: int) -> int:
        """`src`, or where that is ANY one of our own choice: the kernel would not tell which it has chosen."""
        taken = {src for node in nodes(self._node.path, "rpmsg") for src in _src(node.path)}
        taken.update(src for channel in self._channels() for src in _src(channel.path))
        if src == ANY:
            return random.choice([one for one in _OWN if one not in taken])
        if src in taken:  # else the node could be made, but neither opened nor destroyed
            raise StateError(f"address {src:#x} is taken")
        return src

    def _endpoints(self, name: str, dst: int) -> Iterator[Node]:
        for node in nodes(self._node.path, "rpmsg"):
            with contextlib.suppress(OSError, ValueError):  # it goes just now
                if (read(f"{node.path}/name"), address(node.path, "dst")) == (name, dst):
                    yield node

    def _channels(self) -> Iterator[Device]:
        for _, path in devices(self._sysfs):
            if os.path.dirname(path) == self.link and (found := device(path)) is not None:
                yield found


def _src(path: str) -> list[int]:
    """The address as a list of one, or none that can be told."""
    try:
        src = address(path, "src")
    except (OSError, ValueError):
        return []
    return [] if src == ANY else [src]


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, os.fsencode(text))
    finally:
        os.close(fd)


def _denied(error: PermissionError, path: str) -> PermissionError:
    kernel = "ttyRPMSG*" if "tty" in path else "rpmsg*"
    rule = f'KERNEL=="{kernel}", GROUP="dialout", MODE="0660"'
    return PermissionError(error.errno, f"{error.strerror}: run as root, or let a udev rule such as {rule} help", path)


def _owner(path: str) -> str:
    """Who has opened the node at `path`, for a message, as far as that can be seen."""
    name = os.path.basename(path)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            if any(link.startswith("/") and os.path.basename(link) == name for link in links):
                return f" in process {pid} ({read(f'/proc/{pid}/comm')})"
    return ""
