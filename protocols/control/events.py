"""What a control session tells its owner.  Values only.

:class:`~protocols.control.session.ServerSession` gives :data:`ServerSessionEvent`,
:class:`~protocols.control.session.ClientSession` gives :data:`ClientSessionEvent`.  Either ends
with exactly one :class:`SessionClosed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocols.clock.ntp import NtpSample
from protocols.control import messages

Cause = Literal["bye", "silent", "abuse", "closed", "lost"]


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session is over; nothing follows.

    :ivar cause: ``bye``: the listener left.  ``silent``: nothing was heard for too long.
        ``abuse``: too many, too large or too many wrong messages.  ``closed``: the owner closed
        it.  ``lost``: the connection went away, which a listener may survive by coming back.
    :ivar code: WebSocket close code (RFC 6455 section 7.4), 1006 if there was none.
    :ivar reason: a sentence for people.
    """

    cause: Cause
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A listener said who it is; the owner answers with a ``Welcome`` or closes.

    :ivar hello: what it said; empty if ``implicit``.
    :ivar implicit: it skipped ``hello``; a :class:`Configured` follows at once.
    """

    hello: messages.Hello
    implicit: bool = False


@dataclass(frozen=True, slots=True)
class Configured:
    """A listener said what it wants, for the first time or anew; the owner answers ``Stream``."""

    config: messages.ClientConfig


@dataclass(frozen=True, slots=True)
class Alive:
    """A heartbeat came."""

    timestamp: str | int | float | None


@dataclass(frozen=True, slots=True)
class MetersWanted:
    """A listener wants levels at most every ``interval_ms``; 0: none."""

    interval_ms: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was answered with an error.  To be counted; nothing else is needed.

    :ivar code: as in the error sent: ``bad_message``, ``unknown_type``, ``too_large``,
        ``unexpected`` or ``too_fast``.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The server knows us now."""

    welcome: messages.Welcome


@dataclass(frozen=True, slots=True)
class StreamStarted:
    """The server says what it sends from now on; also after each new configuration."""

    stream: messages.Stream


@dataclass(frozen=True, slots=True)
class LevelsShown:
    """Levels came that were asked for."""

    meters: messages.Meters


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event of STR-31."""

    event: messages.Event


@dataclass(frozen=True, slots=True)
class ServerError:
    """The server refused something."""

    error: messages.Error


@dataclass(frozen=True, slots=True)
class ClockUpdated:
    """A clock answer was accepted (CLK-1).

    :ivar offset_ms: of the best sample: add it to the local clock to have the server's.
    :ivar delay_ms: of the best sample, both ways.
    :ivar sample: the newest one; its ``delay`` is the present round trip.
    """

    offset_ms: float
    delay_ms: float
    sample: NtpSample


ServerSessionEvent = Joined | Configured | Alive | MetersWanted | Refused | SessionClosed
ClientSessionEvent = (
    Welcomed
    | StreamStarted
    | ServerEvent
    | LevelsShown
    | ServerError
    | ClockUpdated
    | SessionClosed
)
