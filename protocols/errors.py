"""The two kinds of protocol error: our own mistakes and the peer's.

A :class:`RemoteProtocolError` is dropped and counted (or answered with an error message); it
never ends the program.  A :class:`LocalProtocolError` is a bug of the caller and is raised at it.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Anything that does not follow a protocol.

    :ivar code: a short stable word for programs, for instance ``bad_message``.
    """

    def __init__(self, message: str, *, code: str = "protocol_error") -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(ProtocolError):
    """We tried to do something the protocol does not allow: fix the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow: drop it and count it."""
