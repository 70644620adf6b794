"""The door of the streaming room: carries out what the registry decides.

Control connections and REST calls go to the registry; what it answers is done here: streams are
started and stopped between two frames, the audio room is told what is wanted, listeners are told
what they must know.  Owns one timer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall

from m32net.interfaces import Health, ListenerStatus, QualityReport, RefusedError
from m32net.log import RoomLog
from m32net.streaming import describe, overview
from m32net.streaming.listeners import (
    Departed,
    Listener,
    Refused,
    RegistryEvent,
    SentAway,
    StreamsKept,
    StreamsStarted,
    StreamsStopped,
    Told,
    Welcomed,
)
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.profile import Profile
from m32net.streaming.registry import Registry
from m32net.streaming.transmission import Transmission, TransmissionConfig
from protocols.control import messages
from protocols.control.outgoing import (
    CLOSE_GOING_AWAY,
    CLOSE_POLICY_VIOLATION,
    CLOSE_SERVICE_RESTART,
    CLOSE_TRY_AGAIN_LATER,
)
from protocols.rtp.extension import EventFlags

HEARTBEATS_PER_TIMEOUT: Final = 3
"""How many heartbeats a listener is asked to send in the time after which it is given up."""


class ControlLink(Protocol):
    """One control connection; what the registry calls a ``link``."""

    def send(self, message: messages.ServerMessage) -> object: ...

    def close(self, code: int, reason: str) -> object: ...


class StreamingService(Service):
    """Streams to every listener what it agreed to; provides ``IListeners``.

    :param clock: the reactor, or a ``task.Clock``; for timers only.
    :param seconds: a steady clock; the reactor's own jumps when the system time is set, and
        must not end anybody's streams.
    :param set_demand: tells the audio room what to encode from the next frame on.
    :param channel_names: names by channel id, for the SDP.
    :param note_quality: keeps a listener's quality report: ``(client_id, name, report)``.
    :param note_event: keeps what the engineer should see: ``(kind, text, fields)``.
    :ivar on_welcome: called with the id of a listener that has come, or come back.
    :ivar on_departure: called with the id of one that has gone, and whether it went to the server
        it was sent to.
    """

    name = "streaming"
    log = RoomLog(namespace="m32net.streaming")

    def __init__(
        self,
        clock: Any,
        registry: Registry,
        config: TransmissionConfig,
        *,
        server: messages.ServerInfo,
        set_demand: Callable[[Mapping[Profile, frozenset[int]]], object],
        channel_names: Callable[[], Mapping[int, str]],
        note_quality: Callable[[str, str, QualityReport], object],
        note_event: Callable[[str, str, Mapping[str, Any]], object],
        rng: random.Random | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.seconds = seconds
        self.registry = registry
        self.server = server
        self.transmission = Transmission(
            clock, config, self._receiver_reported, rng or random.SystemRandom(), seconds
        )
        self._set_demand = set_demand
        self._channel_names = channel_names
        self._note_quality = note_quality
        self._note_event = note_event
        self.malformed = 0
        self.on_welcome: Callable[[str], object] = lambda client_id: None
        self.on_departure: Callable[[str, bool], object] = lambda client_id, migrated: None
        self._demand: Mapping[Profile, frozenset[int]] = {}
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0

    # -- start and stop --------------------------------------------------------------------

    def startService(self) -> None:
        if not self.transmission.is_open:
            self.transmission.open()
        super().startService()  # type: ignore[no-untyped-call]
        self.transmission.start()
        method = self.transmission.method
        self.log.info(
            "RTP from port {port}, DSCP {dscp}, sending by {method}",
            port=self.transmission.config.rtp_port,
            dscp=self.transmission.config.dscp,
            method=method.value if method else None,
        )

    def stopService(self) -> Any:
        """Everybody leaves; then the sockets close."""
        self.registry.stop("the server stops")
        self._carry_out()
        self._cancel_timer()
        self.transmission.close()
        return super().stopService()  # type: ignore[no-untyped-call]

    # -- control connections ---------------------------------------------------------------

    def connected(self, link: ControlLink, host: str) -> None:
        now = self.seconds()
        self.registry.connected(link, host, now)
        self._wake_by(now + self.registry.limits.heartbeat_timeout_s)
        self._carry_out()

    def hello(self, link: ControlLink, hello: messages.Hello) -> None:
        self.registry.hello(
            link,
            self.seconds(),
            client_id=hello.client_id,
            token=hello.token,
            name=hello.name,
            pin=hello.pin,
        )
        self._carry_out()

    def configure(self, link: ControlLink, config: messages.ClientConfig) -> None:
        self.registry.configure(link, config, self.seconds())
        self._carry_out()

    def heard(self, link: ControlLink) -> None:
        self.registry.heard(link, self.seconds())

    def bye(self, link: ControlLink, reason: str = "bye") -> None:
        self.registry.bye(link, reason)
        self._carry_out()

    def lost(self, link: ControlLink) -> None:
        now = self.seconds()
        self.registry.lost(link, now)
        self._wake_by(now + self.registry.limits.grace_s)
        self._carry_out()

    def expelled(self, link: ControlLink, reason: str) -> None:
        """The connection misbehaved or fell silent: no grace."""
        one = self.registry.of(link)
        if one is not None:
            self.registry.remove(one.client_id, reason)
            self._carry_out()

    # -- changes by the engineer -----------------------------------------------------------

    def change_offer(
        self, offer: AudioOffer, reason: str, fields: Mapping[str, Any] | None = None
    ) -> None:
        self.registry.change_offer(offer, reason, fields)
        self._carry_out()

    def change_limits(self, **limits: Any) -> None:
        """New values for fields of :class:`~m32net.streaming.registry.Limits`."""
        self.registry.limits = replace(self.registry.limits, **limits)
        self._wake_by(self.registry.next_timer())

    def tell_all(self, kind: str, reason: str, fields: Mapping[str, Any]) -> int:
        """Send every listener an event (STR-31); returns how many there were."""
        told = self.registry.tell_all(kind, reason, fields)
        self._carry_out()
        return told

    def tell(self, client_id: str, kind: str, reason: str, fields: Mapping[str, Any]) -> bool:
        """Send one listener an event; False if it can't be reached now."""
        told = self.registry.tell(client_id, kind, reason, fields)
        self._carry_out()
        return told

    def channels_renamed(self) -> None:
        """Names or colours are others now; told in band, so that no audio is interrupted."""
        self.transmission.announce(EventFlags.STATUS_UPDATE)

    # -- IListeners ------------------------------------------------------------------------

    def count(self) -> int:
        return len(self.registry)

    def refused(self) -> int:
        return self.registry.refused

    def request_audio(self, host: str, udp_port: int, client_id: str | None) -> Mapping[str, Any]:
        try:
            one = self.registry.request_audio(host, udp_port, client_id, self.seconds())
        finally:
            self._carry_out()
        port = self.transmission.config.rtp_port
        return {
            "status": "ok",
            "client_id": one.client_id,
            "udp_port": udp_port,
            "rtp": {"port": port, "rtcp_port": port + 1},
        }

    def sdp(self, client_id: str) -> str | None:
        return self.transmission.description(client_id, self._channel_names())

    def report_quality(self, client_id: str, host: str, report: QualityReport) -> None:
        one = self.registry.get(client_id)
        if one is None and self.registry.door.expects(client_id, host, self.seconds()):
            return  # on its way here from another server; its control session is still there
        if one is None or one.state == "arrived":
            raise RefusedError("unknown_client", f"there is no listener {client_id!r}", 404)
        if one.host != host:
            raise RefusedError("not_yours", "this listener is at another address", 403)
        self._note(one, replace(report, at=self.seconds()))

    def totals(self) -> Mapping[str, int]:
        return {
            **self.transmission.totals,
            "connections": self.registry.arrivals,
            "refused": self.registry.refused,
            "sent_away": self.registry.sent_away,
            "wrong_pins": self.registry.door.wrong_pins,
            "malformed_messages": self.malformed,
            "foreign_reports": self.transmission.foreign_reports,
        }

    def snapshot(self) -> Sequence[ListenerStatus]:
        now = self.seconds()
        return [overview.status(one, self.transmission, now) for one in self.registry]

    def receptions(self) -> Sequence[tuple[str, QualityReport | None]]:
        return [(one.reception.rating(), one.reception.latest) for one in self.registry]

    def health(self) -> Health:
        return overview.health(self.registry, self.transmission, len(self._demand))

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        p50, p99 = self.transmission.send_times.quantiles_ms(0.5, 0.99)
        return {
            "send_seconds_p50": p50 / 1000,
            "send_seconds_p99": p99 / 1000,
        }

    # -- quality ---------------------------------------------------------------------------

    def _receiver_reported(self, client_id: str, report: QualityReport) -> None:
        one = self.registry.get(client_id)
        if one is not None:
            self._note(one, report)

    def _note(self, one: Listener, report: QualityReport) -> None:
        self.registry.report(one, report)
        self._note_quality(one.client_id, one.name, report)
        self._carry_out()

    # -- carrying out ----------------------------------------------------------------------

    # What happens for every report must not look at every listener: with 1,000 of them, 200
    # reports a second come in.

    def _carry_out(self) -> None:
        """Do what the registry decided; tell the audio room if something else is wanted now."""
        changed = False
        for event in self.registry.events():
            try:
                self._DOES[type(event)](self, event)
            except Exception:  # one listener's trouble must not keep the others waiting
                self.log.failure("{event} was not carried out", event=type(event).__name__)
            changed = changed or self._changes_demand(event)
        if changed:
            demand = self.registry.demand()
            if demand != self._demand:
                self._demand = demand
                self._set_demand(demand)

    def _changes_demand(self, event: RegistryEvent) -> bool:
        """Whether it may; a listener that wants what others have does not."""
        if isinstance(event, StreamsStarted):
            known = self._demand.get(event.agreement.profile, frozenset())
            return not known.issuperset(event.agreement.channels)
        return isinstance(event, StreamsStopped)

    def _wake_by(self, at: float | None) -> None:
        """Look after time-outs at this time or sooner; too soon does no harm."""
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        self._cancel_timer()
        self._timer_at = at
        self._timer = self.clock.callLater(max(0.0, at - self.seconds()), self._expire)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self.registry.handle_timer(self.seconds())
        self._carry_out()
        self._wake_by(self.registry.next_timer())

    def _start(self, event: StreamsStarted) -> None:
        one, agreement = event.listener, event.agreement
        self.transmission.add(one.client_id, one.host, agreement)
        self.log.info(
            "{listener} gets {codec} {rate} Hz, {frame} ms, {channels} channels as {layout} "
            "at {host}:{port}",
            listener=one.client_id,
            codec=agreement.profile.codec,
            rate=agreement.profile.sample_rate,
            frame=agreement.profile.frame_ms,
            channels=len(agreement.channels),
            layout=agreement.layout,
            host=one.host,
            port=agreement.udp_port,
        )
        self._tell_stream(one)

    def _keep(self, event: StreamsKept) -> None:
        self._tell_stream(event.listener)

    def _stop(self, event: StreamsStopped) -> None:
        one = event.listener
        self.transmission.remove(one.client_id, event.reason)
        self.log.info(
            "{listener}'s streams end: {reason}", listener=one.client_id, reason=event.reason
        )

    def _welcome(self, event: Welcomed) -> None:
        one = event.listener
        welcome = messages.Welcome(
            client_id=one.client_id,
            session_token=one.token,
            server=self.server,
            heartbeat_s=self.registry.limits.heartbeat_timeout_s / HEARTBEATS_PER_TIMEOUT,
        )
        _send(one.link, welcome)
        self._note_event("listener_joined", one.name or one.client_id, {"listener": one.client_id})
        self.on_welcome(one.client_id)

    def _tell(self, event: Told) -> None:
        more = dict(event.fields)
        message = messages.Event(
            type=event.kind,
            reason=event.reason,
            new_sample_rate=more.pop("new_sample_rate", None),
            reconnect_after=more.pop("reconnect_after", None),
            fields=more,
        )
        _send(event.listener.link, message)
        self.transmission.announce(EventFlags.CONTROL_MESSAGE, event.listener.client_id)

    def _refuse(self, event: Refused) -> None:
        full = event.code == "server_full"
        known = self.registry.of(event.link)
        self.log.warn(
            "Refused {listener}: {code}: {reason}",
            listener=known.client_id if known else None,
            code=event.code,
            reason=event.message,
        )
        if full:
            self._note_event("listener_refused", event.message, {})
        _send(event.link, messages.Error(event.code, event.message))
        if event.fatal:
            code = CLOSE_TRY_AGAIN_LATER if full else CLOSE_POLICY_VIOLATION
            _close(event.link, code, event.message)

    def _send_away(self, event: SentAway) -> None:
        reason = f"listeners are at {event.host}:{event.port} now"
        self.log.info("A newcomer is sent to {host}:{port}", host=event.host, port=event.port)
        _send(event.link, messages.Migration(event.host, event.port).event(reason))
        _close(event.link, CLOSE_SERVICE_RESTART, reason)

    def _depart(self, event: Departed) -> None:
        one = event.listener
        if one.name or one.config is not None:
            who = one.name or one.client_id
            self.log.info(
                "{listener} has left: {reason}", listener=one.client_id, reason=event.reason
            )
            listener = {"listener": one.client_id}
            self._note_event("listener_left", f"{who}: {event.reason}", listener)
        _close(event.link, CLOSE_GOING_AWAY, event.reason)
        self.on_departure(one.client_id, event.migrated)

    def _tell_stream(self, one: Listener) -> None:
        if one.agreement is None:
            return
        spec = self.transmission.spec(one.client_id)
        port = self.transmission.config.rtp_port
        _send(one.link, describe.stream_message(one.client_id, one.agreement, spec, port))

    _DOES: Final[dict[type[RegistryEvent], Callable[[StreamingService, Any], None]]] = {
        StreamsStarted: _start,
        StreamsKept: _keep,
        StreamsStopped: _stop,
        Welcomed: _welcome,
        Told: _tell,
        Refused: _refuse,
        SentAway: _send_away,
        Departed: _depart,
    }


def _send(link: object | None, message: messages.ServerMessage) -> None:
    if link is not None:
        link.send(message)  # type: ignore[attr-defined]


def _close(link: object | None, code: int, reason: str) -> None:
    if link is not None:
        link.close(code, reason)  # type: ignore[attr-defined]
