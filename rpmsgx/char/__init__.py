"""`char:` and `char:NAME`: the kernel's own rpmsg devices under the API of a bus.

    with rpmsgx.open("char:") as bus:
        with bus.open("rpmsg-raw", timeout=5) as endpoint:
            endpoint.send(b"hello world!")
            print(endpoint.recv(timeout=1))

The kernel is the driver and owns rings and buffers; this is a program's way to the services that remote cores announce
to it. sysfs says which there are, uevents say when that changes, and messages go through /dev/rpmsgN, which
/dev/rpmsg_ctrlN makes where the kernel has not. What the kernel cannot do is refused by a StateError that says so.

    devices.py    what sysfs shows: channels, their drivers, the nodes that lead to them
    control.py    the ioctls, and opening a node
    uevent.py     who tells that something came or went
    endpoint.py   messages through a node; a byte stream through a tty
    bus.py        finding, opening, waiting

Formats: include/uapi/linux/rpmsg.h; drivers/rpmsg and drivers/tty/rpmsg_tty.c for what is written down nowhere else.
"""

from rpmsgx.char.bus import Bus, Channel
from rpmsgx.char.endpoint import Endpoint, TtyChannel

__all__ = ["Bus", "Channel", "Endpoint", "TtyChannel"]
