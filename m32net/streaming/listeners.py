"""A listener as the server knows it, the states of its life, and what the registry decides of it.

Values only; :mod:`m32net.streaming.registry` makes the decisions, ``service`` carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from m32net.streaming.negotiation import Agreement
from m32net.streaming.quality import Reception
from protocols.control.limits import TokenBucket
from protocols.control.messages import ClientConfig

State = Literal["arrived", "joined", "streaming", "detached", "gone"]
Input = Literal["admit", "start", "halt", "lost", "back", "leave"]

TRANSITIONS: Final[Mapping[State, Mapping[Input, State]]] = {
    "arrived": {"admit": "joined", "lost": "gone", "leave": "gone"},
    "joined": {"start": "streaming", "lost": "gone", "leave": "gone", "back": "joined"},
    "streaming": {
        "start": "streaming",
        "halt": "joined",
        "lost": "detached",
        "back": "streaming",
        "leave": "gone",
    },
    "detached": {"back": "streaming", "halt": "gone", "leave": "gone"},
    "gone": {},
}
"""State x input -> state.  What is not in the table does not happen and is ignored.

``arrived``: a connection that has said nothing yet; it is no listener and takes no place.
``joined``: a listener to whom nothing flows.  ``streaming``: audio flows.  ``detached``: audio
still flows but the control connection is gone and the grace period runs.
"""

CHANGES_PER_S: Final = 1.0
CHANGES_AT_ONCE: Final = 10
"""How often a listener may ask for other streams than it has."""
REFUSALS_PER_S: Final = 1.0
REFUSALS_AT_ONCE: Final = 20
"""How often it may ask for what it is refused; who goes on is shown out."""


@dataclass(slots=True, eq=False)
class Listener:
    """One receiving device.

    :ivar link: its control connection, an opaque object of the shell; None while detached.
    :ivar trusted: it has shown the PIN, or another server has announced it.
    """

    client_id: str
    token: str
    host: str
    link: object | None
    since: float
    heard: float
    name: str = ""
    state: State = "arrived"
    config: ClientConfig | None = None
    udp_port: int | None = None
    agreement: Agreement | None = None
    lost_at: float | None = None
    trusted: bool = False
    reception: Reception = field(default_factory=Reception)
    changes: TokenBucket = field(init=False)
    refusals: TokenBucket = field(init=False)

    def __post_init__(self) -> None:
        self.changes = TokenBucket(CHANGES_PER_S, CHANGES_AT_ONCE, self.since)
        self.refusals = TokenBucket(REFUSALS_PER_S, REFUSALS_AT_ONCE, self.since)


@dataclass(frozen=True, slots=True)
class StreamsStarted:
    """Send this listener its audio from the next frame on."""

    listener: Listener
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class StreamsKept:
    """A listener that came back asked for what already flows: nothing changes but who is told."""

    listener: Listener


@dataclass(frozen=True, slots=True)
class StreamsStopped:
    """Send this listener nothing more."""

    listener: Listener
    reason: str


@dataclass(frozen=True, slots=True)
class Welcomed:
    """This connection belongs to this listener now."""

    listener: Listener


@dataclass(frozen=True, slots=True)
class Told:
    """Something a listener must hear: an ``event`` of the control protocol."""

    listener: Listener
    kind: str
    reason: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """An ``error`` for a connection; ``fatal`` ones end it."""

    link: object
    code: str
    message: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class SentAway:
    """A newcomer belongs to another server; its connection ends (CON-51)."""

    link: object
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Departed:
    """A listener is gone; its connection, if any, is to be closed.

    :ivar migrated: it went to the server it was sent to (CON-51).
    """

    listener: Listener
    link: object | None
    reason: str
    migrated: bool = False


RegistryEvent = (
    StreamsStarted | StreamsKept | StreamsStopped | Welcomed | Told | Refused | SentAway | Departed
)
