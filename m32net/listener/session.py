"""A listener from start to stop: control connection, HTTP, and coming back by itself (STR-23).

Carries out what :data:`m32net.listener.life.TABLE` says, and hands what flows to the
:class:`~m32net.listener.receiver.Receiver`.  It knows a server only by its documented WebSocket
and REST interface.  What it has to tell people goes to one callable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from m32net.listener.address import ServerAddress
from m32net.listener.figures import Figures, Interval, qos_body
from m32net.listener.life import TABLE, Action, Happening, Life
from m32net.listener.receiver import Receiver
from m32net.listener.server_api import AudioMeta, ServerApi, endpoint
from m32net.listener.settings import Mix
from m32net.listener.thresholds import Thresholds, choose
from protocols.backoff import Backoff
from protocols.clock.ntp import NtpFilter
from protocols.control import events
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient
from protocols.control.messages import ChannelRequest, ClientConfig, Event, Hello
from protocols.control.protocol import ControlClientFactory, connect, wall_clock_ms
from protocols.errors import RemoteProtocolError

ANSWER_TIMEOUT_S: Final = 10.0
"""How long the server may take to answer ``client_config`` with ``stream``."""
SILENCE_S: Final = 10.0
"""Streaming without a packet for so long: ask again."""
QOS_INTERVAL_S: Final = 5.0
MAX_RECONNECT_AFTER_S: Final = 300.0
BYE_TIMEOUT_S: Final = 1.0
"""How long a server may take to let go of a listener that leaves."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the listener asks the server for; None leaves it to the server.

    :ivar channels: ids in the order wanted; None for all there are.
    :ivar codec: ``opus``, ``L16`` or ``L24``.
    :ivar send_muted: also channels that the mix mutes, as recordings need them.
    :ivar retry: come back after a failure; False ends at the first one.
    """

    name: str | None = None
    channels: tuple[int, ...] | None = None
    codec: str | None = None
    layout: str | None = None
    frame_ms: float | None = None
    sample_rate: int | None = None
    mix: Mix = field(default_factory=Mix)
    send_muted: bool = False
    retry: bool = True


class ListenerError(Exception):
    """The listener has given up: one line for people."""


class Session:
    """One listener.

    :param receiver: started by :meth:`start`, stopped by :meth:`stop`.
    :param http: treq, or something like it.
    :param interface: local address to connect from; empty for any.
    :param environment: for the thresholds (STR-27).
    :param tell: called with sentences for people.
    :param random: gives numbers 0 <= x < 1.
    :ivar ended: fires with None when :meth:`stop` is done, or fails with :class:`ListenerError`.
    """

    def __init__(
        self,
        reactor: Any,
        address: ServerAddress,
        wishes: Wishes,
        receiver: Receiver,
        *,
        http: Any,
        interface: str = "",
        environment: Mapping[str, str] | None = None,
        tell: Callable[[str], object] = lambda text: None,
        random: Callable[[], float] = lambda: 0.5,
        seconds: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], float] = wall_clock_ms,
        open_control: Callable[[ControlClientFactory, Any], Deferred[ControlClient]] = connect,
    ) -> None:
        self.state = Life.IDLE
        self.address = address
        self.wishes = wishes
        self.receiver = receiver
        self.meta: AudioMeta | None = None
        self.client_id: str | None = None
        self.reconnects = 0
        self.qos_posted = 0
        self.round_trip_ms: float | None = None
        self.clock_offset_ms: float | None = None
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._api = ServerApi(http, address.http)
        self._interface = interface
        self._environment = environment or {}
        self._tell = tell
        self._random = random
        self._seconds = seconds
        self._wall_ms = wall_ms
        self._open_control = open_control
        self._backoff = Backoff(random)
        self._clock = NtpFilter()
        self._token: str | None = None
        self._step_rate: int | None = None  # the best rate, as the server told us
        self._client: ControlClient | None = None
        self._leaving: ControlClient | None = None  # has been told bye
        self._opening: Deferred[ControlClient] | None = None
        self._learning: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._pulse: IDelayedCall | None = None
        self._not_before = 0.0
        self._heard = (0, 0.0)  # packets so far, and when they last became more
        self._reported: tuple[Figures, float] | None = None

    # -- life

    def start(self) -> None:
        """Open the sockets and connect.

        :raises PortError: the UDP port cannot be used.
        """
        self.receiver.start()
        self._pulse = self._reactor.callLater(1.0, self._beat)
        self._happen(Happening.START)

    def stop(self) -> Deferred[list[Exception]]:
        """Say bye, close everything and finish the recordings.

        :returns: fires when the control connection is gone, after :data:`BYE_TIMEOUT_S` at most,
            and the recordings are finished, with what went wrong with them.
        """
        self._happen(Happening.STOP)
        if self._pulse is not None and self._pulse.active():
            self._pulse.cancel()
        recorded = self.receiver.stop()
        gone = self._gone()

        def stopped(errors: list[Exception]) -> list[Exception]:
            self._finish(None)
            return errors

        return gone.addCallback(lambda _: recorded).addCallback(stopped)

    def _happen(self, what: Happening, argument: Any = None) -> None:
        self.state, action = TABLE[self.state, what]
        if action is not Action.IGNORE:
            self._cancel_timer()
            _DOES[action](self, argument)

    def _finish(self, error: ListenerError | None) -> None:
        if not self.ended.called:
            if error is None:
                self.ended.callback(None)
            else:
                self.ended.errback(error)

    # -- actions

    def _connect(self, argument: None) -> None:
        hello = Hello(self.client_id, self.wishes.name, self._token)
        factory = ControlClientFactory(
            self.address.websocket,
            self._control_event,
            reactor=self._reactor,
            make_session=lambda: ClientSession(hello, spread=self._random, clock=self._clock),
            seconds=self._seconds,
            wall_ms=self._wall_ms,
        )
        way = endpoint(
            self._reactor,
            self.address.host,
            self.address.port,
            secure=self.address.secure,
            interface=self._interface,
        )
        self._opening = self._open_control(factory, way)
        self._opening.addCallbacks(self._opened, self._not_opened)

    def _opened(self, client: ControlClient) -> None:
        self._opening = None
        self._client = client
        self._happen(Happening.OPENED, f"connected to {self.address}")

    def _not_opened(self, failure: Failure) -> None:
        self._opening = None
        reason = f"{self.address} cannot be reached ({_short(failure.getErrorMessage())})"
        self._happen(Happening.FAILED, reason)

    def _learn(self, argument: None) -> None:
        """Fetch what the server offers; a server without REST is asked for everything."""
        self._drop_learning()
        learning: Deferred[list[Any]] = gatherResults(
            [
                self._api.audio_meta().addErrback(self._no_meta),
                self._api.jitter_thresholds().addErrback(lambda failure: None),
            ]
        )
        self._learning = learning
        learning.addCallback(
            lambda answers: self._learned(answers) if self._learning is learning else None
        )

    def _no_meta(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._tell(f"/audio-meta could not be fetched ({_short(failure.getErrorMessage())})")

    def _learned(self, answers: list[Any]) -> None:
        self._learning = None
        meta: AudioMeta | None = answers[0]
        thresholds: Thresholds | None = answers[1]
        self.meta = meta or self.meta
        self.receiver.set_thresholds(choose(self._environment, thresholds))
        self._happen(Happening.KNOWN)

    def _request(self, argument: None) -> None:
        wishes = self.wishes
        assert self._client is not None
        config: Any = ClientConfig(
            channels=self._channels(),
            sample_rate=min(filter(None, (self._step_rate, wishes.sample_rate)), default=None),
            compression=wishes.codec,  # type: ignore[arg-type]
            layout=wishes.layout,  # type: ignore[arg-type]
            udp_port=self.receiver.port,
            frame_ms=wishes.frame_ms,
        )
        self._set_timer(ANSWER_TIMEOUT_S, Happening.LATE, "the server did not answer client_config")
        self._client.configure(config)

    def _channels(self) -> tuple[ChannelRequest, ...]:
        """The channels to ask for; none listed means all."""
        wanted, mix = self.wishes.channels, self.wishes.mix
        there = None if self.meta is None else self.meta.enabled
        if wanted is not None and there:
            absent = [str(one) for one in wanted if one not in there]
            if absent:
                self._tell(f"the server does not send channel {', '.join(absent)}")
            wanted = tuple(one for one in wanted if one in there) or wanted
        muted = set()
        if not self.wishes.send_muted:
            muted = {one.id for one in mix.channels if one.mute}
        if wanted is None and muted and there:
            wanted = there
        return tuple(ChannelRequest(one, mute=one in muted) for one in wanted or ())

    def _listen(self, stream: Any) -> None:
        assert self._client is not None
        self._backoff.succeeded()
        self._heard = (self._heard[0], self._seconds())
        try:
            self.receiver.listen_to(stream, self._client.host)
        except RemoteProtocolError as error:
            self._tell(f"what the server announced cannot be used: {error}")
            return
        channels = sum(len(group.channels) for group in stream.groups)
        self._tell(
            f"receiving {channels} channels, {stream.codec} {stream.sample_rate} Hz, "
            f"{stream.frame_ms:g} ms, {len(stream.groups)} x {stream.layout}, "
            f"UDP port {self.receiver.port}"
        )

    def _back_off(self, reason: str) -> None:
        self._client = None
        self._step_rate = None
        self._drop_learning()
        if not self.wishes.retry:
            self._finish(ListenerError(reason))
            return
        delay = max(self._backoff.failed(), self._not_before - self._seconds())
        self._not_before = 0.0
        self.reconnects += 1
        self._tell(f"{reason}; trying again in {delay:.0f} s")
        self._set_timer(delay, Happening.DUE, None)

    def _leave(self, reason: str) -> None:
        self._say_bye("reconnecting")
        self._back_off(reason)

    def _end(self, argument: None) -> None:
        self._drop_learning()
        if self._opening is not None:
            self._opening.cancel()
        self._say_bye("bye")

    def _say_bye(self, reason: str) -> None:
        client, self._client = self._client, None
        if client is not None:
            self._leaving = client
            client.close(reason)

    def _gone(self) -> Deferred[None]:
        """Fires when the connection that was closed last is gone, or has had its time."""
        gone: Deferred[None] = Deferred()
        client, self._leaving = self._leaving, None
        if client is None:
            gone.callback(None)
        else:
            client.when_gone(lambda: gone.callback(None))
            gone.addTimeout(BYE_TIMEOUT_S, self._reactor, lambda *_: client.abort())
        return gone

    # -- what the server says

    def _control_event(self, client: ControlClient, event: events.ClientSessionEvent) -> None:
        if client is not self._client:
            return
        if isinstance(event, events.Welcomed):
            self.client_id = event.welcome.client_id
            self._token = event.welcome.session_token or None
            self._happen(Happening.WELCOMED)
        elif isinstance(event, events.StreamStarted):
            self._happen(Happening.STREAM, event.stream)
        elif isinstance(event, events.ServerEvent):
            self._server_event(event.event)
        elif isinstance(event, events.ServerError):
            error = event.error
            self._happen(Happening.REFUSED, f"the server says: {error.message or error.code}")
        elif isinstance(event, events.ClockUpdated):
            self.clock_offset_ms = event.offset_ms
            self.round_trip_ms = event.sample.delay
            self.receiver.set_clock_offset(event.offset_ms)
        else:
            self._happen(Happening.LOST, f"the connection was lost ({_short(event.reason)})")

    def _server_event(self, event: Event) -> None:
        after = min(max(event.reconnect_after or 0.0, 0.0), MAX_RECONNECT_AFTER_S)
        self._tell(f"server: {event.type}: {event.reason}")
        if event.type == "config_changed":
            self._step_rate = event.new_sample_rate or self._step_rate
            self._happen(Happening.CHANGED)
        elif event.type == "server_shutdown":
            self._not_before = self._seconds() + after
        elif event.type == "reconnect":
            self._not_before = self._seconds() + after
            self._happen(Happening.TOLD_TO_LEAVE, f"the server asks to reconnect ({event.reason})")

    # -- every second

    def _beat(self) -> None:
        self._pulse = self._reactor.callLater(1.0, self._beat)
        now, figures = self._seconds(), self.receiver.figures()
        packets = figures.totals.packets
        stream = self.receiver.stream
        if packets != self._heard[0] or stream is None or not stream.groups:
            self._heard = (packets, now)
        elif now - self._heard[1] > SILENCE_S and self.state is Life.STREAMING:
            self._heard = (packets, now)
            self._tell(
                f"no audio for {SILENCE_S:g} s on UDP port {self.receiver.port}; asking again "
                "(is a firewall in between?)"
            )
            self._happen(Happening.SILENT)
        if self._reported is None:
            self._reported = (figures, now)
        elif now - self._reported[1] >= QOS_INTERVAL_S:
            self._post_qos(figures, now)

    def _post_qos(self, figures: Figures, now: float) -> None:
        """Tell the server how it was lately (STR-63)."""
        assert self._reported is not None
        before, since = self._reported
        self._reported = (figures, now)
        interval = Interval.between(before, figures, now - since)
        if self.client_id is None or self._client is None or not interval.expected:
            return
        stamp = datetime.fromtimestamp(self._wall_ms() / 1000, UTC).isoformat(timespec="seconds")
        body = qos_body(self.client_id, stamp.replace("+00:00", "Z"), interval, figures)

        def posted(answer: object) -> None:
            self.qos_posted += 1

        self._api.post_qos(body).addCallbacks(posted, lambda failure: None)

    # -- timers

    def _set_timer(self, delay: float, what: Happening, argument: Any) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(delay, self._happen, what, argument)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _drop_learning(self) -> None:
        learning, self._learning = self._learning, None
        if learning is not None:
            learning.cancel()


def _short(reason: str) -> str:
    text = " ".join(reason.split()).rstrip(".")
    return text if len(text) <= 160 else text[:159] + "…"


_DOES: Final[Mapping[Action, Callable[[Session, Any], object]]] = {
    Action.CONNECT: Session._connect,
    Action.LEARN: Session._learn,
    Action.REQUEST: Session._request,
    Action.LISTEN: Session._listen,
    Action.BACK_OFF: Session._back_off,
    Action.LEAVE: Session._leave,
    Action.REPORT: lambda session, text: session._tell(text),
    Action.END: Session._end,
}
