"""The server's end of a control session: a machine that does no I/O.

Text frames, ``now`` (seconds, any steady clock) and ``wall_ms`` (milliseconds since 1970, the
clock that CLK-1 compares) go in; events for the owner, text frames for the peer and the time of
the next timer come out.  The states are :data:`protocols.control.states.SERVER_TABLE`.

After every call the driver sends :meth:`ServerSession.data_to_send`, obeys ``close_wanted`` once
it is not None, and arms one timer for :meth:`ServerSession.next_timer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocols.control import events, messages
from protocols.control.limits import ServerLimits, TokenBucket
from protocols.control.liveness import Liveness
from protocols.control.outgoing import (
    CLOSE_NORMAL,
    CLOSE_POLICY_VIOLATION,
    CloseFrame,
    Outgoing,
    Priority,
    outgoing,
    ping,
)
from protocols.control.states import SERVER_TABLE, ServerAction, ServerInput, ServerState


@dataclass(frozen=True, slots=True)
class _TimeQuestion:
    """A clock request whose answer gets its third time stamp when it leaves."""

    request: messages.NtpRequest
    t2: float

    def answer(self, wall_ms: float) -> bytes:
        t3 = max(self.t2, wall_ms)
        if self.request.decimals:
            times = (round(self.t2, 3), round(t3, 3))
        else:
            times = (round(self.t2), round(t3))
        return messages.encode(messages.NtpResponse(self.request.t1, *times))


class ServerSession:
    """The server's end of one listener's control session.

    :param now: seconds, when the connection opened.
    :param random: gives numbers 0 <= x < 1; spreads the first pings of many sessions.
    """

    def __init__(
        self,
        now: float,
        limits: ServerLimits | None = None,
        *,
        random: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.limits = limits = limits or ServerLimits()
        self.liveness = Liveness(now, limits.ping_interval_s, limits.pong_timeout_s, random)
        self.state = ServerState.NEW
        self.close_wanted: CloseFrame | None = None
        self._deadline: float | None = now + limits.join_timeout_s
        self._messages = TokenBucket(limits.messages_per_s, limits.message_burst, now)
        self._bytes = TokenBucket(limits.bytes_per_s, limits.byte_burst, now)
        self._faults = TokenBucket(limits.faults_per_s, limits.fault_burst, now)
        self._events: list[events.ServerSessionEvent] = []
        self._out: deque[Outgoing | _TimeQuestion] = deque()

    # -- what the driver calls

    def receive(
        self, data: bytes | str, now: float, wall_ms: float
    ) -> list[events.ServerSessionEvent]:
        """Take one text frame in.  Whatever it holds, nothing is raised."""
        if self.state is ServerState.CLOSED:
            return []
        if not (self._messages.take(1, now) and self._bytes.take(len(data), now)):
            return self._abuse("too_fast", "too many messages; the session is closed")
        try:
            message = messages.decode_client(data)
        except messages.MessageError as error:
            return self._fault(ServerInput.MALFORMED, error.code, error.message, now)
        what = _CLIENT_SAYS[type(message)]
        if SERVER_TABLE[self.state, what][1] is ServerAction.REFUSE_PLACE:
            place = (
                "say hello first" if self.state is ServerState.NEW else "you have joined already"
            )
            return self._fault(what, "unexpected", place, now)
        if isinstance(message, messages.NtpRequest):
            self._step(what, _TimeQuestion(message, wall_ms))
        else:
            self._step(what, message)
        if self.state in (ServerState.JOINED, ServerState.CONFIGURED):
            self._deadline = now + self.limits.heartbeat_timeout_s
        return self._take_events()

    def pong(self, payload: bytes, now: float) -> None:
        """A pong frame came."""
        self.liveness.pong(payload, now)

    def lost(self, code: int, reason: str) -> list[events.ServerSessionEvent]:
        """The connection is gone, with the close code the peer gave (or 1006)."""
        self._step(ServerInput.LOST, events.SessionClosed("lost", code, reason))
        return self._take_events()

    def abuse(self, code: int, reason: str) -> list[events.ServerSessionEvent]:
        """The driver cannot go on with this peer: it does not read, or sends no text."""
        self._step(ServerInput.ABUSE, events.SessionClosed("abuse", code, reason))
        return self._take_events()

    def close(self, code: int, reason: str) -> list[events.ServerSessionEvent]:
        """The owner ends the session; what was sent before goes out first."""
        self._step(ServerInput.CLOSE, events.SessionClosed("closed", code, reason))
        return self._take_events()

    def send(self, message: messages.ServerMessage) -> bool:
        """Queue a message; whether the session still takes one.

        :raises LocalProtocolError: it cannot be written as JSON.
        """
        item = outgoing(message)
        if self.state is ServerState.CLOSED:
            return False
        self._out.append(item)
        return True

    def data_to_send(self, wall_ms: float) -> list[Outgoing]:
        """What is to go out now, in order; clock answers are stamped with ``wall_ms``."""
        ready = [
            Outgoing(item.answer(wall_ms), Priority.HIGH)
            if isinstance(item, _TimeQuestion)
            else item
            for item in self._out
        ]
        self._out.clear()
        return ready

    def next_timer(self) -> float | None:
        """When :meth:`handle_timer` is to be called next; None when the session is over."""
        if self._deadline is None:
            return None
        return min(self._deadline, self.liveness.next_timer())

    def handle_timer(self, now: float) -> list[events.ServerSessionEvent]:
        """End the session if nothing was heard for too long; ping."""
        if self._deadline is None:
            return []
        if now >= self._deadline:
            if self.state is ServerState.NEW:
                return self._silent(f"no hello within {self.limits.join_timeout_s:g} s")
            return self._silent(f"no heartbeat for {self.limits.heartbeat_timeout_s:g} s")
        if self.liveness.silent(now):
            return self._silent(f"no answer to pings for {self.limits.pong_timeout_s:g} s")
        payload = self.liveness.ping(now)
        if payload is not None:
            self._out.append(ping(payload))
        return []

    def _silent(self, reason: str) -> list[events.ServerSessionEvent]:
        closed = events.SessionClosed("silent", CLOSE_POLICY_VIOLATION, reason)
        self._step(ServerInput.SILENCE, closed)
        return self._take_events()

    # -- the machine

    def _step(self, what: ServerInput, argument: Any) -> None:
        self.state, action = SERVER_TABLE[self.state, what]
        _SERVER_DOES[action](self, argument)

    def _join(self, hello: messages.Hello) -> None:
        self._events.append(events.Joined(hello))

    def _join_implicitly(self, config: messages.ClientConfig) -> None:
        self._events.append(events.Joined(messages.Hello(), implicit=True))
        self._configure(config)

    def _configure(self, config: messages.ClientConfig) -> None:
        self._events.append(events.Configured(config))

    def _note_alive(self, heartbeat: messages.Heartbeat) -> None:
        self._events.append(events.Alive(heartbeat.timestamp))

    def _answer_time(self, question: _TimeQuestion) -> None:
        self._out.append(question)

    def _want_meters(self, request: messages.MetersRequest) -> None:
        self._events.append(events.MetersWanted(request.interval_ms))

    def _refuse(self, error: messages.Error) -> None:
        self._out.append(outgoing(error))
        self._events.append(events.Refused(error.code, error.message))

    def _end(self, why: events.SessionClosed | messages.Bye) -> None:
        if isinstance(why, messages.Bye):
            why = events.SessionClosed("bye", CLOSE_NORMAL, why.reason or "bye")
        self._events.append(why)
        self._deadline = None
        if why.cause != "lost":
            self.close_wanted = CloseFrame(why.code, why.reason)

    def _ignore(self, argument: object) -> None:
        pass

    def _fault(
        self, what: ServerInput, code: str, reason: str, now: float
    ) -> list[events.ServerSessionEvent]:
        if not self._faults.take(1, now):
            return self._abuse(code, f"{reason}; too many such errors, the session is closed")
        self._step(what, messages.Error(code, reason))
        return self._take_events()

    def _abuse(self, code: str, reason: str) -> list[events.ServerSessionEvent]:
        self._refuse(messages.Error(code, reason))
        return self.abuse(CLOSE_POLICY_VIOLATION, reason)

    def _take_events(self) -> list[events.ServerSessionEvent]:
        taken, self._events = self._events, []
        return taken


_CLIENT_SAYS: Final[Mapping[type, ServerInput]] = {
    messages.Hello: ServerInput.HELLO,
    messages.ClientConfig: ServerInput.CLIENT_CONFIG,
    messages.Heartbeat: ServerInput.HEARTBEAT,
    messages.NtpRequest: ServerInput.NTP_REQUEST,
    messages.MetersRequest: ServerInput.METERS,
    messages.Bye: ServerInput.BYE,
}
_SERVER_DOES: Final[Mapping[ServerAction, Callable[[ServerSession, Any], None]]] = {
    ServerAction.JOIN: ServerSession._join,
    ServerAction.JOIN_IMPLICITLY: ServerSession._join_implicitly,
    ServerAction.CONFIGURE: ServerSession._configure,
    ServerAction.NOTE_ALIVE: ServerSession._note_alive,
    ServerAction.ANSWER_TIME: ServerSession._answer_time,
    ServerAction.WANT_METERS: ServerSession._want_meters,
    ServerAction.REFUSE: ServerSession._refuse,
    ServerAction.REFUSE_PLACE: ServerSession._refuse,
    ServerAction.END: ServerSession._end,
    ServerAction.IGNORE: ServerSession._ignore,
}
