"""A listener from start to stop: connecting, asking, moving on, and coming back by itself (STR-23).

Carries out what :data:`m32net.listener.life.TABLE` says, and hands what flows to the
:class:`~m32net.listener.receiver.Receiver`.  It knows a server only by its documented WebSocket
and REST interface.  What it has to tell people goes to one callable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall

from m32net.listener.address import AddressError, ServerAddress
from m32net.listener.life import TABLE, Action, Happening, Life
from m32net.listener.link import Means, ServerLink, lost
from m32net.listener.move import Move, Moved
from m32net.listener.places import Places
from m32net.listener.qos import QosReports
from m32net.listener.receiver import Receiver
from m32net.listener.thresholds import Thresholds
from protocols.backoff import Backoff
from protocols.control import events
from protocols.control.connection import ControlClient
from protocols.control.messages import Event, Migration
from protocols.errors import RemoteProtocolError

ANSWER_TIMEOUT_S: Final = 10.0
"""How long the server may take to answer ``client_config`` with ``stream``."""
SILENCE_S: Final = 10.0
"""Streaming without a packet for so long: ask again."""
MAX_RECONNECT_AFTER_S: Final = 300.0
MAX_SENT_ON: Final = 3
"""Servers that send a listener on to another before any audio, one after another; then it waits."""
MAX_MOVES: Final = 100
"""Moves kept for the summary."""


class ListenerError(Exception):
    """The listener has given up: one line for people."""


class Session:
    """One listener.

    :param receiver: started by :meth:`start`, stopped by :meth:`stop`.
    :ivar link: to the server we are at, or try to be.
    :ivar ended: fires with None when :meth:`stop` is done, or fails with :class:`ListenerError`.
    :ivar moves: moves to other servers that are done.
    """

    def __init__(self, means: Means, address: ServerAddress, receiver: Receiver) -> None:
        self.state = Life.IDLE
        self.receiver = receiver
        self.reconnects = 0
        self.moves: list[Moved] = []
        self.ended: Deferred[None] = Deferred()
        self.link = ServerLink(means, address)
        self._means = means
        self._reactor = means.reactor
        self._tell = means.tell
        self._seconds = means.seconds
        self._backoff = Backoff(means.random)
        self._reports = QosReports(means.wall_ms)
        self._gone: list[Deferred[None]] = []  # of connections that were told bye
        self._timer: IDelayedCall | None = None
        self._pulse: IDelayedCall | None = None
        self._not_before = 0.0
        self._heard = (0, 0.0)  # packets so far, and when they last became more
        self._move: Move | None = None
        self._told_at = 0.0
        self._places = Places(address)
        self._sent_on = 0
        self._barred = False

    @property
    def address(self) -> ServerAddress:
        """Of the server we are at, or try to be."""
        return self.link.address

    @property
    def client_id(self) -> str | None:
        return self.link.client_id

    @property
    def round_trip_ms(self) -> float | None:
        return self.link.round_trip_ms

    @property
    def clock_offset_ms(self) -> float | None:
        return self.link.clock_offset_ms

    @property
    def qos_posted(self) -> int:
        return self._reports.posted

    def migration(self) -> dict[str, Any] | None:
        """The move that is under way, for reports."""
        return None if self._move is None else self._move.describe()

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

        :returns: fires when the control connections are gone, after
            :data:`~m32net.listener.link.BYE_TIMEOUT_S` at most, and the recordings are finished,
            with what went wrong with them.
        """
        self._happen(Happening.STOP)
        if self._pulse is not None and self._pulse.active():
            self._pulse.cancel()
        recorded = self.receiver.stop()
        gone = gatherResults(self._gone)

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
        self.link.open(
            self._control_event,
            lambda: self._happen(Happening.OPENED, f"connected to {self.address}"),
            lambda reason: self._happen(Happening.FAILED, reason),
        )

    def _learn(self, argument: None) -> None:
        self.link.learn(self._learned)

    def _learned(self, thresholds: Thresholds) -> None:
        self.receiver.set_thresholds(thresholds)
        self._happen(Happening.KNOWN)

    def _request(self, argument: None) -> None:
        self._set_timer(ANSWER_TIMEOUT_S, Happening.LATE, "the server did not answer client_config")
        self.link.request(self.receiver.port)

    def _listen(self, stream: Any) -> None:
        assert self.link.client is not None
        self._backoff.succeeded()
        self._sent_on = 0
        self._places.settled()
        self._heard = (self._heard[0], self._seconds())
        try:
            self.receiver.listen_to(stream, self.link.client.host)
        except RemoteProtocolError as error:
            self._tell(f"what the server announced cannot be used: {error}")
            return
        if self._move is not None:
            self._move.refill()
        self._tell_stream(stream)

    def _tell_stream(self, stream: Any) -> None:
        channels = sum(len(group.channels) for group in stream.groups)
        self._tell(
            f"receiving {channels} channels, {stream.codec} {stream.sample_rate} Hz, "
            f"{stream.frame_ms:g} ms, {len(stream.groups)} x {stream.layout}, "
            f"UDP port {self.receiver.port}"
        )

    def _back_off(self, reason: str) -> None:
        self.link.drop()
        self.link.step_rate = None
        if not self._means.wishes.retry or self._barred:
            self._finish(ListenerError(reason))
            return
        delay = max(self._backoff.failed(), self._not_before - self._seconds())
        where, place = "again", self._places.after(self.address, self._backoff.attempts)
        if place != self.address:
            self.link = self.link.elsewhere(place)
            where = str(place)
        self._not_before = 0.0
        self.reconnects += 1
        self._tell(f"{reason}; trying {where} in {delay:.0f} s")
        self._set_timer(delay, Happening.DUE, None)

    def _leave(self, reason: str) -> None:
        self._say_bye("reconnecting")
        self._back_off(reason)

    def _end(self, argument: None) -> None:
        if self._move is not None:
            self._gone.append(self._move.cancel())
        self._move = None
        self._say_bye("bye")

    def _say_bye(self, reason: str) -> None:
        self._gone = [one for one in self._gone if not one.called]
        self._gone.append(self.link.close(reason))

    # -- moving to another server

    def _redirect(self, target: ServerAddress) -> None:
        """Nothing is heard yet: to the other server at once."""
        self._say_bye("migrated")
        self._places.sent_by(self.address)
        self._places.only(self.address)
        self.link = self.link.elsewhere(target)
        self._tell(f"listeners are at {self.address} now")
        self._connect(None)

    def _begin_move(self, told: tuple[ServerAddress, float]) -> None:
        """Keep listening, and move when it is time."""
        target, after_s = told
        if self.receiver.going_over:
            return
        if self._move is not None and self._move.link.address != target:
            self._gone.append(self._move.cancel())
            self._move = None
        if self._move is None:
            self._told_at = self._seconds()
            self._move = Move(
                self._means,
                self.link.elsewhere(target),
                self.receiver,
                hear=self._control_event,
                moved=lambda: self._happen(Happening.MOVED),
                failed=self._move_failed,
            )
        self._move.plan(after_s)

    def _hurry(self, reason: str | None) -> None:
        assert self._move is not None
        if reason is not None:
            self._tell(f"{reason}; moving to {self._move.link.address} at once")
        self._move.hurry()

    def _move_failed(self, reason: str) -> bool:
        """An attempt failed: with the old server gone too, the usual way back takes over."""
        assert self._move is not None
        if self.link.client is not None:
            return True
        self._places.only(self._move.link.address)
        self._move, self._not_before = None, 0.0
        self._happen(Happening.FAILED, reason)
        return False

    def _stay(self, argument: None) -> None:
        assert self._move is not None
        self._gone.append(self._move.cancel())
        self._move = None

    def _adopt(self, argument: None) -> None:
        """The other server is heard: what it says is what counts from now on."""
        assert self._move is not None
        move, self._move = self._move, None
        origin = self.address
        self._say_bye("migrated")
        self.link = move.link
        self._backoff.succeeded()
        self._sent_on, self._not_before = 0, 0.0
        self._places.sent_by(origin)
        self._places.settled()
        self._heard = (self._heard[0], self._seconds())
        if move.thresholds is not None:
            self.receiver.set_thresholds(move.thresholds)
        now = self._seconds()
        took_s, alike = now - self._told_at, self.receiver.outputs.alike()
        done = Moved(str(origin), str(self.address), now, took_s, move.attempts, alike)
        if len(self.moves) < MAX_MOVES:
            self.moves.append(done)
        self._tell(f"moved to {self.address}")
        if (client := self.link.client) is not None:
            for event in move.unheard:
                self._control_event(client, event)

    # -- what the server says

    def _control_event(self, client: ControlClient, event: events.ClientSessionEvent) -> None:
        if client is not self.link.client:
            if self._move is not None:
                self._move.hear(client, event)
            return
        self.link.heard(event)
        if isinstance(event, events.Welcomed):
            self._happen(Happening.WELCOMED)
        elif isinstance(event, events.StreamStarted):
            self._happen(Happening.STREAM, event.stream)
        elif isinstance(event, events.ServerEvent):
            self._server_event(event.event)
        elif isinstance(event, events.ServerError):
            self._refused(event)
        elif isinstance(event, events.ClockUpdated):
            self.receiver.set_clock_offset(event.offset_ms)
        elif isinstance(event, events.SessionClosed):
            self._happen(Happening.LOST, lost(event))

    def _refused(self, event: events.ServerError) -> None:
        error = event.error
        reason = f"the server says: {error.message or error.code}"
        if error.code == "wrong_pin":
            self._barred = True  # and would be shut out for trying again
            self._finish(ListenerError(f"{reason} (--pin PIN)"))
        self._happen(Happening.REFUSED, reason)

    def _server_event(self, event: Event) -> None:
        after = min(max(event.reconnect_after or 0.0, 0.0), MAX_RECONNECT_AFTER_S)
        self._tell(f"server: {event.type}: {event.reason}")
        migration = event.migration
        if migration is not None:
            self._told_to_move(migration)
        elif event.type == "migrationCancelled":
            if not self.receiver.going_over:  # or it is too late: the other one is nearly heard
                self._happen(Happening.TOLD_TO_STAY)
        elif event.type == "config_changed":
            self.link.step_rate = event.new_sample_rate or self.link.step_rate
            self._happen(Happening.CHANGED)
        elif event.type == "server_shutdown":
            self._not_before = self._seconds() + after
        elif event.type == "reconnect":
            self._not_before = self._seconds() + after
            self._happen(Happening.TOLD_TO_LEAVE, f"the server asks to reconnect ({event.reason})")

    def _told_to_move(self, migration: Migration) -> None:
        try:
            target = ServerAddress.at(
                migration.new_host, migration.new_port, secure=self.address.secure
            )
        except AddressError as error:
            self._tell(str(error))
            return
        if self.receiver.flows:
            self._happen(Happening.TOLD_TO_MOVE, (target, migration.migrate_after))
            return
        self._sent_on += 1
        if self._sent_on > MAX_SENT_ON:
            self._places.only(target)
            reason = f"{self._sent_on} servers in a row sent us on to another"
            self._happen(Happening.TOLD_TO_LEAVE, reason)
        else:
            self._happen(Happening.SENT_ON, target)

    # -- every second

    def _beat(self) -> None:
        self._pulse = self._reactor.callLater(1.0, self._beat)
        now, figures = self._seconds(), self.receiver.figures()
        packets = figures.totals.packets
        stream = self.receiver.stream
        if packets != self._heard[0] or stream is None or not stream.groups:
            self._heard = (packets, now)
        elif now - self._heard[1] > SILENCE_S and self.state in (Life.STREAMING, Life.MOVING):
            self._heard = (packets, now)
            self._tell(
                f"no audio for {SILENCE_S:g} s on UDP port {self.receiver.port}; asking again "
                "(is a firewall in between?)"
            )
            self._happen(Happening.SILENT)
        self._reports.consider(self.link, figures, now)

    # -- timers

    def _set_timer(self, delay: float, what: Happening, argument: Any) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(delay, self._happen, what, argument)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


_DOES: Final[Mapping[Action, Callable[[Session, Any], object]]] = {
    Action.CONNECT: Session._connect,
    Action.LEARN: Session._learn,
    Action.REQUEST: Session._request,
    Action.LISTEN: Session._listen,
    Action.BACK_OFF: Session._back_off,
    Action.LEAVE: Session._leave,
    Action.REDIRECT: Session._redirect,
    Action.MOVE: Session._begin_move,
    Action.HURRY: Session._hurry,
    Action.STAY: Session._stay,
    Action.ADOPT: Session._adopt,
    Action.REPORT: lambda session, text: session._tell(text),
    Action.END: Session._end,
}
