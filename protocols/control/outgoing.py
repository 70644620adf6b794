"""What a control session wants its driver to do: frames to send, how urgent, how to close.

Values only.  The close codes are those of RFC 6455 section 7.4.1 and the IANA registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from protocols.control import messages

CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_UNSUPPORTED_DATA: Final = 1003
CLOSE_NONE_RECEIVED: Final = 1006
CLOSE_POLICY_VIOLATION: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_INTERNAL_ERROR: Final = 1011
CLOSE_SERVICE_RESTART: Final = 1012
"""Go to the other server now (CON-51)."""
CLOSE_TRY_AGAIN_LATER: Final = 1013


class Priority(IntEnum):
    """CON-21: which message goes first, and (from the end) which is dropped first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One frame for the peer.

    :ivar replaces: a kind of which only the newest counts: those waiting make way for it.
    :ivar ping: a ping frame's payload, no text.
    :ivar shared: many are sent the same, again and again.
    """

    data: bytes
    priority: Priority
    replaces: str | None = None
    ping: bool = False
    shared: bool = False


def ping(payload: bytes) -> Outgoing:
    """A ping frame: never behind anything else, and one waiting is enough."""
    return Outgoing(payload, Priority.CRITICAL, "ping", ping=True)


def outgoing(message: messages.ClientMessage | messages.ServerMessage) -> Outgoing:
    """The frame for ``message``.

    :raises LocalProtocolError: it cannot be written as JSON.
    """
    return Outgoing(
        messages.encode(message),
        priority_of(message),
        _replaces(message),
        shared=isinstance(message, messages.Meters),
    )


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """How the driver is to close the connection."""

    code: int
    reason: str


_EVENT_PRIORITY: Final[Mapping[str, Priority]] = {
    "server_shutdown": Priority.CRITICAL,
    messages.MIGRATION: Priority.CRITICAL,
    "migrationCancelled": Priority.CRITICAL,
    "reconnect": Priority.CRITICAL,
    "config_changed": Priority.HIGH,
    "network_warning": Priority.LOW,
}


def priority_of(message: messages.ClientMessage | messages.ServerMessage) -> Priority:
    """How much is lost when ``message`` is: answers are high, what recurs is low."""
    if isinstance(message, messages.Event):
        return _EVENT_PRIORITY.get(message.type, Priority.NORMAL)
    if isinstance(message, messages.Meters):
        return Priority.LOW
    return Priority.HIGH


def _replaces(message: messages.ClientMessage | messages.ServerMessage) -> str | None:
    if isinstance(message, messages.Meters) and message.channels is None:
        return "meters"  # all levels; those of some channels say what is in no later message
    if isinstance(message, messages.Event) and message.type == "network_warning":
        return message.type
    return None
