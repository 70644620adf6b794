"""The listener's end of a control session: a machine that does no I/O.

Driven like :class:`~protocols.control.server_session.ServerSession`.  It says hello, sends the
wanted configuration once it is welcome, keeps up heartbeats, samples the server's clock (CLK-1)
and notices when the server has gone.  Coming back is the owner's business, with a new session.
The states are :data:`protocols.control.states.CLIENT_TABLE`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from protocols.clock.ntp import NtpFilter, NtpSample
from protocols.control import events, messages
from protocols.control.limits import ClientLimits, TokenBucket
from protocols.control.outgoing import (
    CLOSE_GOING_AWAY,
    CLOSE_NORMAL,
    CLOSE_POLICY_VIOLATION,
    CloseFrame,
)
from protocols.control.quality import RoundTrips
from protocols.control.states import CLIENT_TABLE, ClientAction, ClientInput, ClientState


class _Timer(Enum):
    SILENCE = "silence"  # of the server, or no welcome
    HEARTBEAT = "heartbeat"
    CLOCK = "clock"


_CLOCK_STEP_MS: Final = 50.0  # more than two readings of two clocks ever lie apart
_MAX_QUESTIONS: Final = 8  # clock requests under way
_LATE_MS: Final = 2_000.0  # an answer later than that counts as none


class ClientSession:
    """The listener's end of a control session.

    :param hello: sent first.
    :param spread: gives numbers 0..1 that spread the clock requests of many listeners.
    :param clock: where clock samples go; give the same again after a reconnect to keep them.
    """

    def __init__(
        self,
        hello: messages.Hello | None = None,
        limits: ClientLimits | None = None,
        *,
        spread: Callable[[], float] = lambda: 0.5,
        clock: NtpFilter | None = None,
    ) -> None:
        self.hello = hello or messages.Hello()
        self.limits = limits or ClientLimits()
        self.state = ClientState.IDLE
        self.welcome: messages.Welcome | None = None
        self.clock = clock or NtpFilter()
        self.close_wanted: CloseFrame | None = None
        self.trips = RoundTrips()
        """Of the clock questions: the listener's own view of the connection (CON-13)."""
        self.unread = 0
        """Messages that were not understood or came at the wrong time: dropped and counted."""
        self._spread = spread
        self._kept: messages.ClientConfig | None = None
        self._levels: messages.MetersRequest | None = None
        self._questions: dict[float, None] = {}
        self._burst_left = 0
        self._clock_gap: float | None = None
        self._heartbeat_s = 0.0
        self._faults: TokenBucket | None = None
        self._timers: dict[_Timer, float] = {}
        self._events: list[events.ClientSessionEvent] = []
        self._out: deque[bytes] = deque()

    # -- what the driver calls

    def start(self, now: float) -> None:
        """The connection is open: say hello."""
        self._step(ClientInput.START, now)

    def configure(self, config: messages.ClientConfig) -> None:
        """Ask for audio; before the welcome it is kept (the last one counts), then sent."""
        self._step(ClientInput.CONFIGURE, config)

    def want_levels(self, interval_ms: int) -> None:
        """Ask for levels, at most so often; 0: no more.  Before the welcome it is kept.

        :raises ValueError: neither 0 nor within :data:`messages.METER_INTERVAL_MS`.
        """
        request = messages.MetersRequest(interval_ms)
        if self.state in (ClientState.WELCOMED, ClientState.STREAMING):
            self._send(request)
        elif self.state is not ClientState.CLOSED:
            self._levels = request

    def receive(
        self, data: bytes | str, now: float, wall_ms: float
    ) -> list[events.ClientSessionEvent]:
        """Take one text frame in.  Whatever it holds, nothing is raised.

        :param wall_ms: local clock when it came, the ``t4`` of CLK-1.
        """
        if self.state is ClientState.CLOSED:
            return []
        self._watch_clock(now, wall_ms)
        try:
            message = messages.decode_server(data)
        except messages.MessageError as error:
            self._malformed(error, now)
            return self._take_events()
        if self.state in (ClientState.WELCOMED, ClientState.STREAMING):
            self._timers[_Timer.SILENCE] = now + self.limits.silence_timeout_s
        argument: Any = message
        if isinstance(message, messages.Welcome):
            argument = (message, now)
        elif isinstance(message, messages.NtpResponse):
            argument = (message, wall_ms)
        self._step(_SERVER_SAYS[type(message)], argument)
        return self._take_events()

    def lost(self, code: int, reason: str) -> list[events.ClientSessionEvent]:
        """The connection is gone, with the close code the server gave (or 1006)."""
        self._step(ClientInput.LOST, events.SessionClosed("lost", code, reason))
        return self._take_events()

    def close(self, reason: str = "bye") -> list[events.ClientSessionEvent]:
        """Say bye and end the session."""
        self._step(ClientInput.CLOSE, events.SessionClosed("closed", CLOSE_NORMAL, reason))
        return self._take_events()

    def data_to_send(self) -> list[bytes]:
        """The text frames to send now, in order."""
        ready = list(self._out)
        self._out.clear()
        return ready

    def next_timer(self) -> float | None:
        """When :meth:`handle_timer` is to be called next; None before start and after the end."""
        return min(self._timers.values(), default=None)

    def handle_timer(self, now: float, wall_ms: float) -> list[events.ClientSessionEvent]:
        """Do what is due: heartbeat, clock request, giving the server up.

        :param wall_ms: local clock, the ``t1`` of CLK-1; what is queued must go out at once.
        """
        self._watch_clock(now, wall_ms)
        for timer in [timer for timer, at in self._timers.items() if at <= now]:
            if self.state is ClientState.CLOSED:
                break
            if timer is _Timer.SILENCE:
                self._give_up()
            elif timer is _Timer.HEARTBEAT:
                self._send(messages.Heartbeat(_iso(wall_ms)))
                self._timers[timer] = now + self._heartbeat_s
            else:
                self._ask_time(now, wall_ms)
        return self._take_events()

    # -- the machine

    def _step(self, what: ClientInput, argument: Any) -> None:
        self.state, action = CLIENT_TABLE[self.state, what]
        _CLIENT_DOES[action](self, argument)

    def _greet(self, now: float) -> None:
        self._faults = TokenBucket(self.limits.faults_per_s, self.limits.fault_burst, now)
        self._timers[_Timer.SILENCE] = now + self.limits.welcome_timeout_s
        self._send(self.hello)

    def _keep_config(self, config: messages.ClientConfig) -> None:
        self._kept = config

    def _send_config(self, config: messages.ClientConfig) -> None:
        self._send(config)

    def _enter(self, welcome_at: tuple[messages.Welcome, float]) -> None:
        self.welcome, now = welcome_at
        least, most = self.limits.heartbeat_range_s
        self._heartbeat_s = min(max(self.welcome.heartbeat_s, least), most)
        self._burst_left = self.limits.ntp_burst
        self._timers = {
            _Timer.SILENCE: now + self.limits.silence_timeout_s,
            _Timer.HEARTBEAT: now + self._heartbeat_s,
            _Timer.CLOCK: now,
        }
        if self._kept is not None:
            self._send(self._kept)
            self._kept = None
        if self._levels is not None:
            self._send(self._levels)
            self._levels = None
        self._events.append(events.Welcomed(self.welcome))

    def _report_stream(self, stream: messages.Stream) -> None:
        self._events.append(events.StreamStarted(stream))

    def _report_event(self, event: messages.Event) -> None:
        self._events.append(events.ServerEvent(event))

    def _report_meters(self, meters: messages.Meters) -> None:
        self._events.append(events.LevelsShown(meters))

    def _report_error(self, error: messages.Error) -> None:
        self._events.append(events.ServerError(error))

    def _take_time(self, answer_at: tuple[messages.NtpResponse, float]) -> None:
        answer, t4 = answer_at
        if answer.t1 not in self._questions:
            self.unread += 1
            return
        del self._questions[answer.t1]
        self.trips.settle(answered=True)
        self.trips.took((t4 - answer.t1) - (answer.t3 - answer.t2))
        sample = NtpSample(answer.t1, answer.t2, answer.t3, t4)
        if self.clock.add(sample.t1, sample.t2, sample.t3, sample.t4):
            best = self.clock.best
            assert best is not None
            self._events.append(events.ClockUpdated(best.offset, best.delay, sample))

    def _leave(self, closed: events.SessionClosed) -> None:
        self._send(messages.Bye(closed.reason[: messages.MAX_NAME]))
        self._end(closed)

    def _end(self, closed: events.SessionClosed) -> None:
        self._events.append(closed)
        self._timers = {}
        self._questions = {}
        if closed.cause != "lost":
            self.close_wanted = CloseFrame(closed.code, closed.reason)

    def _count(self, argument: object) -> None:
        self.unread += 1

    def _ignore(self, argument: object) -> None:
        pass

    # -- parts

    def _send(self, message: messages.ClientMessage) -> None:
        self._out.append(messages.encode(message))

    def _malformed(self, error: messages.MessageError, now: float) -> None:
        self._step(ClientInput.MALFORMED, error)
        if error.code == "unknown_type":
            return  # a later server may say more than we know
        if self._faults is not None and not self._faults.take(1, now):
            reason = f"the server sends what cannot be read: {error.message}"
            closed = events.SessionClosed("abuse", CLOSE_POLICY_VIOLATION, reason)
            self._step(ClientInput.ABUSE, closed)

    def _give_up(self) -> None:
        if self.state is ClientState.GREETING:
            reason = f"the server did not answer within {self.limits.welcome_timeout_s:g} s"
        else:
            reason = f"nothing came from the server for {self.limits.silence_timeout_s:g} s"
        closed = events.SessionClosed("silent", CLOSE_GOING_AWAY, reason)
        self._step(ClientInput.SILENCE, closed)

    def _ask_time(self, now: float, wall_ms: float) -> None:
        t1 = round(float(wall_ms), 3)
        late = [asked for asked in self._questions if t1 - asked > _LATE_MS]
        for asked in late or list(self._questions)[: len(self._questions) + 1 - _MAX_QUESTIONS]:
            del self._questions[asked]
            self.trips.settle(answered=False)
        self._questions[t1] = None
        self._send(messages.NtpRequest(t1))
        self._burst_left -= 1
        least, most = self.limits.ntp_interval_s
        pause = self.limits.ntp_burst_s
        if self._burst_left <= 0:
            pause = least + (most - least) * self._spread()
        self._timers[_Timer.CLOCK] = now + pause

    def _watch_clock(self, now: float, wall_ms: float) -> None:
        # Samples from before a step of the local clock are worth nothing after it.
        gap = wall_ms - now * 1000
        if self._clock_gap is not None and abs(gap - self._clock_gap) > _CLOCK_STEP_MS:
            self.clock.clear()
            self._questions = {}
            if _Timer.CLOCK in self._timers:
                self._burst_left = self.limits.ntp_burst
                self._timers[_Timer.CLOCK] = now
        self._clock_gap = gap

    def _take_events(self) -> list[events.ClientSessionEvent]:
        taken, self._events = self._events, []
        return taken


def _iso(wall_ms: float) -> str:
    moment = datetime.fromtimestamp(wall_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_SERVER_SAYS: Final[Mapping[type, ClientInput]] = {
    messages.Welcome: ClientInput.WELCOME,
    messages.Stream: ClientInput.STREAM,
    messages.Event: ClientInput.EVENT,
    messages.Meters: ClientInput.METERS,
    messages.Error: ClientInput.ERROR,
    messages.NtpResponse: ClientInput.NTP_RESPONSE,
}
_CLIENT_DOES: Final[Mapping[ClientAction, Callable[[ClientSession, Any], None]]] = {
    ClientAction.GREET: ClientSession._greet,
    ClientAction.KEEP_CONFIG: ClientSession._keep_config,
    ClientAction.SEND_CONFIG: ClientSession._send_config,
    ClientAction.ENTER: ClientSession._enter,
    ClientAction.REPORT_STREAM: ClientSession._report_stream,
    ClientAction.REPORT_EVENT: ClientSession._report_event,
    ClientAction.REPORT_METERS: ClientSession._report_meters,
    ClientAction.REPORT_ERROR: ClientSession._report_error,
    ClientAction.TAKE_TIME: ClientSession._take_time,
    ClientAction.LEAVE: ClientSession._leave,
    ClientAction.END: ClientSession._end,
    ClientAction.COUNT: ClientSession._count,
    ClientAction.IGNORE: ClientSession._ignore,
}
