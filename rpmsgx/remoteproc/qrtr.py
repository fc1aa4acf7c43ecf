"""The name service of QRTR, Qualcomm's IPC router: who offers which service.

Packets are those of include/uapi/linux/qrtr.h, their meaning that of the kernel's net/qrtr/ns.c: a NEW_LOOKUP is
answered with a NEW_SERVER for each server that there is, and one of zeros after the last; NEW_SERVER and DEL_SERVER
follow as servers come and go, also by the death of their process or the loss of their node.
"""

from __future__ import annotations

import struct

PORT_CTRL = 0xFFFF_FFFE
NEW_SERVER, DEL_SERVER, NEW_LOOKUP = 4, 5, 10

_PACKET = struct.Struct("<5I")  # struct qrtr_ctrl_pkt: cmd, service, instance, node, port
_MAX_SERVERS = 1024


def new_lookup(service: int, instance: int = 0) -> bytes:
    """The packet that asks for the servers of `service`; `instance` 0 asks for all of them."""
    return _PACKET.pack(NEW_LOOKUP, service, instance, 0, 0)


class Servers(set[tuple[int, int]]):
    """(node, port) of those who offer `service`, as the name service tells; `instance` 0: any instance.

    At most 1024 are kept.
    """

    def __init__(self, service: int, instance: int = 0) -> None:
        super().__init__()
        self._service, self._instance = service, instance

    def feed(self, packet: bytes) -> None:
        """Take a packet of the name service; one that is nothing to this service, or no packet, is ignored."""
        if len(packet) < _PACKET.size:
            return
        command, service, instance, node, port = _PACKET.unpack_from(packet)
        if service != self._service or self._instance not in (0, instance):
            return
        if command == NEW_SERVER and len(self) < _MAX_SERVERS:
            self.add((node, port))
        elif command == DEL_SERVER:
            self.discard((node, port))
