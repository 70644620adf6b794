"""A listener's move to another server: the second connection, until its stream has taken over.

It makes before it breaks (CON-51): the old server's stream is heard until the new one's has been
received well for a while; then the receiver cross-fades.  A server that does not deliver is left
again and tried later, and nothing is heard of it.  What becomes of the old connection is decided
by :mod:`m32net.listener.session`; docs/states/listener-move.md is drawn from :data:`MOVE_TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall

from m32net.listener.decode import OpusUnavailable
from m32net.listener.latency import LatencyMeter
from m32net.listener.link import Hear, Means, ServerLink, lost
from m32net.listener.receiver import Receiver
from m32net.listener.thresholds import Thresholds
from protocols.backoff import Backoff
from protocols.control import events
from protocols.control.connection import ControlClient
from protocols.errors import RemoteProtocolError

DELIVER_S: Final = 10.0
"""How long the new server may take from connecting to being heard."""
MAX_AFTER_S: Final = 3600.0


class Step(Enum):
    """How far a move has come."""

    PLANNED = "planned"
    CONNECTING = "connecting"
    GREETING = "greeting"
    ASKING = "asking"
    REQUESTING = "requesting"
    FILLING = "filling"
    OVER = "over"


class Turn(Enum):
    """What can happen to it."""

    DUE = "its time has come"
    HURRY = "the old server ends"
    OPENED = "connection open"
    FAILED = "connection failed"
    WELCOMED = "welcome"
    KNOWN = "audio-meta fetched"
    STREAM = "stream"
    CHANGED = "config_changed"
    REFUSED = "error"
    SENT_ON = "reconnect, serverMigration"
    LATE = "not heard in 10 s"
    LOST = "connection lost"
    MOVED = "cross-faded"
    CANCEL = "called off"


class Deed(Enum):
    """What it does about it."""

    CONNECT = "open connection"
    LEARN = "fetch audio-meta and thresholds"
    REQUEST = "send client_config"
    FILL = "receive beside the old stream"
    TRY_LATER = "close, wait"
    REPORT = "report"
    HAND_OVER = "hand the connection over"
    DROP = "close"
    IGNORE = "ignore"


_S, _T, _D = Step, Turn, Deed
_CONNECTED: Final = (_S.GREETING, _S.ASKING, _S.REQUESTING, _S.FILLING)
_UNDER_WAY: Final = (_S.CONNECTING, *_CONNECTED)
_STATED: Final[Mapping[tuple[Step, Turn], tuple[Step, Deed]]] = {
    (_S.PLANNED, _T.DUE): (_S.CONNECTING, _D.CONNECT),
    (_S.PLANNED, _T.HURRY): (_S.CONNECTING, _D.CONNECT),
    (_S.CONNECTING, _T.OPENED): (_S.GREETING, _D.REPORT),
    (_S.CONNECTING, _T.FAILED): (_S.PLANNED, _D.TRY_LATER),
    (_S.GREETING, _T.WELCOMED): (_S.ASKING, _D.LEARN),
    (_S.ASKING, _T.KNOWN): (_S.REQUESTING, _D.REQUEST),
    (_S.REQUESTING, _T.STREAM): (_S.FILLING, _D.FILL),
    (_S.FILLING, _T.STREAM): (_S.FILLING, _D.FILL),
    (_S.REQUESTING, _T.CHANGED): (_S.ASKING, _D.LEARN),
    (_S.FILLING, _T.CHANGED): (_S.ASKING, _D.LEARN),
    (_S.FILLING, _T.REFUSED): (_S.FILLING, _D.REPORT),
    (_S.FILLING, _T.MOVED): (_S.OVER, _D.HAND_OVER),
    **{
        (state, what): (_S.PLANNED, _D.TRY_LATER)
        for state in (_S.GREETING, _S.ASKING, _S.REQUESTING)
        for what in (_T.REFUSED,)
    },
    **{(state, _T.LATE): (_S.PLANNED, _D.TRY_LATER) for state in _UNDER_WAY},
    **{
        (state, what): (_S.PLANNED, _D.TRY_LATER)
        for state in _CONNECTED
        for what in (_T.SENT_ON, _T.LOST)
    },
    **{(state, _T.CANCEL): (_S.OVER, _D.DROP) for state in _S if state is not _S.OVER},
}
MOVE_TABLE: Final[Mapping[tuple[Step, Turn], tuple[Step, Deed]]] = {
    (state, what): _STATED.get((state, what), (state, _D.IGNORE)) for state in Step for what in Turn
}


@dataclass(frozen=True, slots=True)
class Moved:
    """A move to another server that is done.

    :ivar at_s: when, on the session's steady clock.
    :ivar took_s: from the message that said so, its waiting time included.
    :ivar alike: how alike the two streams were in the cross-fade, 0..1; None if nothing is put
        out.
    """

    origin: str
    target: str
    at_s: float
    took_s: float
    attempts: int
    alike: float | None


class Move:
    """One move.

    :param link: to the new server; the owner's once ``moved`` was called.
    :param hear: called with all that the new server says, then and before; before, the owner
        passes it on to :meth:`hear`.
    :param moved: called when the new stream is heard.
    :param failed: called with the reason when an attempt failed; gives whether to try again.
    :ivar attempts: how often the new server was connected to.
    """

    def __init__(
        self,
        means: Means,
        link: ServerLink,
        receiver: Receiver,
        *,
        hear: Hear,
        moved: Callable[[], object],
        failed: Callable[[str], bool],
    ) -> None:
        self.state = Step.PLANNED
        self.link = link
        self.attempts = 0
        self.thresholds: Thresholds | None = None
        self.unheard: list[events.ClientSessionEvent] = []
        """What the new server said during the cross-fade: for whom the link is handed to."""
        self._reactor = means.reactor
        self._tell = means.tell
        self._receiver = receiver
        self._backoff = Backoff(means.random)
        self._hear = hear
        self._moved = moved
        self._failed = failed
        self._stream: Any = None
        self._latency = LatencyMeter()
        self._due: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None

    # -- what the session says

    def plan(self, after_s: float) -> None:
        """Begin in so many seconds; nothing if it has begun."""
        if self.state is Step.PLANNED:
            self._set_due(min(max(after_s, 0.0), MAX_AFTER_S))

    def hurry(self) -> None:
        """There may be nothing to hear soon: begin, if that has not been."""
        self._happen(Turn.HURRY)

    def refill(self) -> None:
        """The old stream has changed: what was received beside it begins anew."""
        if self.state is Step.FILLING:
            self._fill(self._stream)

    def cancel(self) -> Deferred[None]:
        """Call it off; the old stream goes on.

        :returns: fires when the connection is gone.
        """
        gone: list[Deferred[None]] = []
        self._happen(Turn.CANCEL, gone.append)
        return gone[0] if gone else succeed(None)

    def describe(self) -> dict[str, Any]:
        """For reports."""
        left = (
            None if self._due is None else max(0.0, self._due.getTime() - self._reactor.seconds())
        )
        return {
            "to": f"{self.link.address.host}:{self.link.address.port}",
            "step": self.state.value,
            "attempts": self.attempts,
            "in_s": None if left is None else round(left, 1),
        }

    # -- what the new server says

    def hear(self, client: ControlClient, event: events.ClientSessionEvent) -> None:
        """Take in what the new server says; whatever an old connection says is nothing to us."""
        if client is not self.link.client:
            return
        if self._receiver.going_over:
            self.unheard.append(event)
            return
        self.link.heard(event)
        if isinstance(event, events.Welcomed):
            self._happen(Turn.WELCOMED)
        elif isinstance(event, events.StreamStarted):
            self._happen(Turn.STREAM, event.stream)
        elif isinstance(event, events.ServerError):
            text = event.error.message or event.error.code
            self._happen(Turn.REFUSED, f"{self.link.address} says: {text}")
        elif isinstance(event, events.ServerEvent):
            self._told(event)
        elif isinstance(event, events.ClockUpdated):
            self._latency.offset_ns = round(event.offset_ms * 1e6)
        elif isinstance(event, events.SessionClosed):
            self._happen(Turn.LOST, f"{self.link.address}: {lost(event)}")

    def _told(self, event: events.ServerEvent) -> None:
        told = event.event
        if told.type == "config_changed":
            self.link.step_rate = told.new_sample_rate or self.link.step_rate
            self._happen(Turn.CHANGED)
        elif told.type == "reconnect" or told.migration is not None:
            self._happen(Turn.SENT_ON, f"{self.link.address} says: {told.reason or told.type}")

    # -- the machine

    def _happen(self, what: Turn, argument: Any = None) -> None:
        self.state, deed = MOVE_TABLE[self.state, what]
        _DOES[deed](self, argument)

    def _connect(self, argument: None) -> None:
        self._set_due(None)
        self.attempts += 1
        self._deadline = self._reactor.callLater(DELIVER_S, self._late)
        self.link.open(
            self._hear,
            lambda: self._happen(Turn.OPENED, f"connected to {self.link.address} too"),
            lambda reason: self._happen(Turn.FAILED, reason),
        )

    def _late(self) -> None:
        if self._receiver.going_over:  # within the cross-fade, nearly there
            return
        reason = f"no audio came from {self.link.address} within {DELIVER_S:g} s"
        self._happen(Turn.LATE, reason)

    def _learn(self, argument: None) -> None:
        self._receiver.leave_off()
        self.link.learn(self._learned)

    def _learned(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self._happen(Turn.KNOWN)

    def _request(self, argument: None) -> None:
        self.link.request(self._receiver.port)

    def _fill(self, stream: Any) -> None:
        assert self.link.client is not None
        self._stream = stream
        try:
            self._receiver.follow(
                stream,
                self.link.client.host,
                self._latency,
                lambda: self._happen(Turn.MOVED),
            )
        except (RemoteProtocolError, OpusUnavailable) as error:
            self._happen(Turn.LATE, f"what {self.link.address} announced cannot be used: {error}")

    def _try_later(self, reason: str) -> None:
        self._stop_timers()
        self._receiver.leave_off()
        self.link.close("reconnecting")
        if self._failed(reason):
            delay = self._backoff.failed()
            self._tell(f"{reason}; staying, moving again in {delay:.0f} s")
            self._set_due(delay)
        else:
            self.state = Step.OVER

    def _hand_over(self, argument: None) -> None:
        self._stop_timers()
        self._moved()

    def _drop(self, closing: Callable[[Deferred[None]], object]) -> None:
        self._stop_timers()
        self._receiver.leave_off()
        closing(self.link.close("bye"))

    # -- timers

    def _set_due(self, delay: float | None) -> None:
        if self._due is not None and self._due.active():
            self._due.cancel()
        self._due = None
        if delay is not None:
            self._due = self._reactor.callLater(delay, self._happen, Turn.DUE)

    def _stop_timers(self) -> None:
        self._set_due(None)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None


_DOES: Final[Mapping[Deed, Callable[[Move, Any], object]]] = {
    Deed.CONNECT: Move._connect,
    Deed.LEARN: Move._learn,
    Deed.REQUEST: Move._request,
    Deed.FILL: Move._fill,
    Deed.TRY_LATER: Move._try_later,
    Deed.REPORT: lambda move, text: move._tell(text),
    Deed.HAND_OVER: Move._hand_over,
    Deed.DROP: Move._drop,
    Deed.IGNORE: lambda move, argument: None,
}
