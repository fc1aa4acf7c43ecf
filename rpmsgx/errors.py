"""The error tree. Everything rpmsgx raises on purpose is an `Error`; builtins that people catch are mixed in.

    Error
    ├── Timeout         (TimeoutError, ETIMEDOUT)    a wait ended before its condition came true
    ├── StateError                                   the object cannot do this now
    │   ├── Closed                                   it was closed
    │   └── NoPeer                                   nobody is known at the other end yet
    ├── ChannelRemoved  (BrokenPipeError, EPIPE)     the other end, or the link below it, went away
    ├── MessageSize     (ValueError), errno EMSGSIZE the message does not fit
    ├── Blocked         (BlockingIOError, EAGAIN)    waiting could never end (a full endpoint stops the bus)
    ├── MessagesLost                                 an endpoint with overflow="drop" dropped `count` messages
    ├── PeerError                                    the other end broke `rule`; sticky until the link is reset
    ├── FirmwareError   (ValueError)                 a firmware image, or a core file, is not acceptable
    ├── ResourceError   (ValueError)                 a resource (table entry, region, carveout) is not acceptable
    └── BoardError      (ValueError)                 a board file is not acceptable
"""

import errno as _errno


class Error(Exception):
    """Base of every error of rpmsgx."""


class Timeout(Error, TimeoutError):
    """A wait ended before its condition came true. `errno` is ETIMEDOUT."""

    def __init__(self, message: str = "timed out") -> None:
        super().__init__(_errno.ETIMEDOUT, message)


class StateError(Error):
    """The object cannot do this in its present state."""


class Closed(StateError):
    """The object was closed."""


class NoPeer(StateError):
    """No destination is known yet: nobody announced itself or wrote first."""


class ChannelRemoved(Error, BrokenPipeError):
    """The other end, or the link below it, went away. `errno` is EPIPE."""

    def __init__(self, message: str = "the channel was removed") -> None:
        super().__init__(_errno.EPIPE, message)


class MessageSize(Error, ValueError):
    """A message does not fit its buffer. `errno` is EMSGSIZE."""

    errno = _errno.EMSGSIZE


class Blocked(Error, BlockingIOError):
    """The wait could never end: a full endpoint stops the bus. `errno` is EAGAIN."""

    def __init__(self, message: str = "the bus is stopped by a full endpoint") -> None:
        super().__init__(_errno.EAGAIN, message)


class MessagesLost(Error):
    """An endpoint with overflow="drop" dropped `count` messages since the last receive."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} message{'s' if count != 1 else ''} dropped: the endpoint's queue was full")
        self.count = count


class PeerError(Error):
    """The other end broke a rule of the ring or the protocol; the link stays broken until it is reset.

    `rule` is the id of the rule, as listed in docs/conformance.md.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(f"{message} (rule {rule})" if rule else message)
        self.rule = rule


class FirmwareError(Error, ValueError):
    """A firmware image, or a core file, is not acceptable; the message names the field, its value and the limit."""


class ResourceError(Error, ValueError):
    """A resource (a resource-table entry, a memory region, a carveout) is not acceptable."""


class BoardError(Error, ValueError):
    """A board file is not acceptable; the message gives file, line and the fix."""
