"""The kernel's log, as far as it is about one device.

Format: Documentation/ABI/testing/dev-kmsg. A record names its device where a driver wrote it with dev_info() and the
like, so nobody else's text can be taken for it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD = 1 << 13  # bytes of the largest record


class KernelLog:
    """What is logged from now on about `device`: "cMAJOR:MINOR", or "+SUBSYSTEM:NAME" of one that has no such number.

    Not thread-safe.

    Raises OSError where there is no such log (CONFIG_PRINTK), PermissionError where the reader may not see it
    (kernel.dmesg_restrict).
    """

    def __init__(self, device: str, path: str = "/dev/kmsg") -> None:
        self._device = f"\n DEVICE={device}\n".encode()
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable while there is a record of any device."""
        return self._fd

    def read(self) -> Iterator[str]:
        """The texts of the new records; those that the log had no room for until now are missing. Never waits."""
        while True:
            try:
                record = os.read(self._fd, RECORD)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # the next one is the oldest that there still is
                    continue
                raise
            if self._device in record:
                yield record.partition(b"\n")[0].partition(b";")[2].decode("utf-8", "replace")

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
