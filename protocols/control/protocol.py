"""The control session on a WebSocket: Autobahn's protocols as thin shells around the cores.

The server side goes beside Klein into one Site (:meth:`ControlServerFactory.web_resource`); the
client side is :func:`connect`.  All timers are on the given reactor, all decisions in the
sessions; peers' mistakes end in a close frame, never in a traceback.

Autobahn's own time-outs are switched off and done here: they round to whole seconds, always use
the global reactor, and its close timer outlives the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import txaio
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.util import encode_truncate
from autobahn.websocket.types import ConnectionDeny
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.control import events, messages
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient, ControlConnection, Delivery
from protocols.control.limits import ServerLimits, TokenBucket
from protocols.control.outbox import LIMIT_BYTES, Outbox
from protocols.control.outgoing import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL_ERROR,
    CLOSE_NONE_RECEIVED,
    CLOSE_POLICY_VIOLATION,
    CLOSE_UNSUPPORTED_DATA,
    CloseFrame,
)
from protocols.control.server_session import ServerSession

OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 3.0
_MAX_CLOSE_REASON: Final = 123  # RFC 6455 section 5.5: 125 bytes less the code


def wall_clock_ms() -> float:
    """Milliseconds since 1970, to the microsecond."""
    return time.time_ns() / 1_000_000


class ControlConnectError(Exception):
    """The WebSocket could not be opened; says why."""


class _Alarm:
    """One timer, moved lazily: it may ring early, then nothing is due and it is set again."""

    def __init__(
        self, reactor: IReactorTime, seconds: Callable[[], float], ring: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._ring = ring
        self._call: IDelayedCall | None = None
        self._at = 0.0

    def set(self, at: float | None) -> None:
        if self._call is not None:
            if at is not None and self._at <= at:
                return
            self._call.cancel()
            self._call = None
        if at is not None:
            self._at = at
            delay = max(0.0, at - self._seconds())
            self._call = self._reactor.callLater(delay, self._rang)

    def _rang(self) -> None:
        self._call = None
        self._ring()


class _Shell:
    """What both ends share: the guard over opening and closing, and silence in the log."""

    # Peers' garbage is no event for the server's log; what matters is told to the owner.
    log = txaio.make_logger(level="critical")  # type: ignore[attr-defined]
    factory: Any
    transport: Any
    state: Any
    guard: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.arm_guard(self.factory.open_timeout_s)
        super().connectionMade()  # type: ignore[misc]

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.disarm_guard()
        super().connectionLost(reason)  # type: ignore[misc]

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        was_open = self.is_open_now
        super().sendCloseFrame(code, reasonUtf8, isReply)  # type: ignore[misc]
        if was_open:
            self.arm_guard(self.factory.close_timeout_s)
            if not isReply:
                reason = (reasonUtf8 or b"").decode("utf-8", "replace")
                self.failed(code or CLOSE_NONE_RECEIVED, reason)

    @property
    def is_open_now(self) -> bool:
        return bool(self.state == WebSocketServerProtocol.STATE_OPEN)

    def failed(self, code: int, reason: str) -> None:
        """This end closes; the session may not know of it yet."""
        raise NotImplementedError

    def close_with(self, frame: CloseFrame) -> None:
        if self.is_open_now:
            self.sendCloseFrame(frame.code, encode_truncate(frame.reason, _MAX_CLOSE_REASON))

    def arm_guard(self, delay: float) -> None:
        self.disarm_guard()
        self.guard = self.factory.reactor.callLater(delay, self._late)

    def disarm_guard(self) -> None:
        if self.guard is not None and self.guard.active():
            self.guard.cancel()
        self.guard = None

    def _late(self) -> None:
        self.wasNotCleanReason = "the peer did not answer in time"
        self.abort()

    def abort(self) -> None:
        """Drop the connection at once, whatever was still to be sent."""
        self.transport.abortConnection()


# -- server --------------------------------------------------------------------------------------


ServerOwner = Callable[[ControlConnection, events.ServerSessionEvent], None]


class ControlServerProtocol(_Shell, WebSocketServerProtocol):  # type: ignore[misc]
    """One connection: feeds its :class:`ServerSession` and does what that wants."""

    session: ServerSession | None = None
    _logger = Logger()

    def connectionMade(self) -> None:
        factory: ControlServerFactory = self.factory
        self.outbox = Outbox(factory.outgoing_limit)
        # twisted.web's HTTPChannel has registered itself on the transport it gave us.
        with suppress(RuntimeError):
            self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        super().connectionMade()

    def onConnect(self, request: object) -> None:
        if self.factory.closing:
            raise ConnectionDeny(ConnectionDeny.SERVICE_UNAVAILABLE, "the server is stopping")  # type: ignore[no-untyped-call]

    def onOpen(self) -> None:
        factory: ControlServerFactory = self.factory
        self.disarm_guard()
        peer = self.transport.getPeer()
        host = getattr(peer, "host", "").removeprefix("::ffff:")
        now = factory.seconds()
        self.session = ServerSession(now, factory.limits)
        self._pings = TokenBucket(factory.limits.messages_per_s, factory.limits.message_burst, now)
        self.connection = ControlConnection(self, host, getattr(peer, "port", 0))
        self._deliver = Delivery(self._tell_owner)
        self._alarm = _Alarm(factory.reactor, factory.seconds, self._timer)
        factory.opened(self.connection)
        self._transmit()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.session is None:
            return
        if isBinary:
            self._end(CLOSE_UNSUPPORTED_DATA, "binary messages are not understood here")
            return
        now, wall_ms = self.factory.seconds(), self.factory.wall_ms()
        self._carry_out(self.session.receive(payload, now, wall_ms))

    def onPing(self, payload: bytes) -> None:
        if not self._pings.take(1, self.factory.seconds()):
            self._end(CLOSE_POLICY_VIOLATION, "too many pings")
        elif not self.outbox.paused:  # or pongs would pile up for those who never read them
            super().onPing(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.session is None:
            return
        self.outbox.paused = True
        self._carry_out(self.session.lost(code or CLOSE_NONE_RECEIVED, reason or ""))
        self.factory.gone(self.connection)

    def dropConnection(self, abort: bool = False) -> None:
        # After a clean close Autobahn aborts; a close frame not yet written would be thrown away,
        # as when bye and close come in one segment.  The guard is over a peer that does not read.
        super().dropConnection(abort=abort and not self.wasClean)

    def sendHttpErrorResponse(
        self, code: int, reason: str, responseHeaders: list[tuple[str, str]] | None = None
    ) -> None:
        body = msgspec.json.encode({"error": {"code": "bad_handshake", "message": reason}})
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *(responseHeaders or ()),
        ]
        if code == 426:  # RFC 9110 section 15.5.22
            headers.append(("Upgrade", "websocket"))
        lines = [f"HTTP/1.1 {code} WebSocket refused", *(f"{k}: {v}" for k, v in headers)]
        self.sendData("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    # -- IPushProducer, for the transport

    def pauseProducing(self) -> None:
        self.outbox.paused = True

    def resumeProducing(self) -> None:
        self.outbox.paused = False
        if self.session is not None:
            self._transmit()

    def stopProducing(self) -> None:
        self.outbox.paused = True

    # -- for ControlConnection

    def send(self, message: messages.ServerMessage) -> bool:
        assert self.session is not None
        return self.session.send(message) and self._transmit()

    def close(self, code: int, reason: str) -> None:
        assert self.session is not None
        self._carry_out(self.session.close(code, reason))

    # -- parts

    def failed(self, code: int, reason: str) -> None:
        self._end(code, reason)

    def _end(self, code: int, reason: str) -> None:
        if self.session is not None:
            self._carry_out(self.session.abuse(code, reason))

    def _timer(self) -> None:
        if self.session is not None:
            self._carry_out(self.session.handle_timer(self.factory.seconds()))

    def _carry_out(self, new: Sequence[events.ServerSessionEvent]) -> None:
        self._deliver(new)
        self._transmit()

    def _tell_owner(self, event: events.ServerSessionEvent) -> None:
        if isinstance(event, events.SessionClosed) and event.cause == "abuse":
            self._logger.warn(
                "{connection} ended: {reason}", connection=self.connection, reason=event.reason
            )
        try:
            self.factory.owner(self.connection, event)
        except Exception:
            self._logger.failure("the owner of {connection} failed", connection=self.connection)
            if not isinstance(event, events.SessionClosed):
                self.close(CLOSE_INTERNAL_ERROR, "internal error")

    def _transmit(self) -> bool:
        """Do what the session wants now; whether all of it found room."""
        session = self.session
        assert session is not None
        taken = True
        for item in session.data_to_send(self.factory.wall_ms()):
            taken = self.outbox.put(item) and taken
        closing = session.close_wanted
        if self.is_open_now:
            while (data := self.outbox.take(all_of_it=closing is not None)) is not None:
                self.sendMessage(data)  # type: ignore[no-untyped-call]
            if self.outbox.overrun and closing is None:
                self._end(CLOSE_POLICY_VIOLATION, "the listener does not read its messages")
                self.abort()
                return False
            if closing is not None:
                self.close_with(closing)
        self._alarm.set(session.next_timer())
        return taken


class ControlServerFactory(WebSocketServerFactory):
    """Makes the server's end of control connections.

    :param owner: called with ``(connection, event)`` for everything sessions tell; whatever it
        raises is logged and ends that session only.
    :param reactor: for timers.
    :param seconds: a steady clock.  Not ``reactor.seconds``, which jumps when the time is set.
    :param wall_ms: the clock that CLK-1 compares.
    :param outgoing_limit: bytes that may wait for one slow reader, besides the transport's buffer.
    :param max_connections: at most so many at a time, the next is answered 503; 0: any number.
    """

    protocol = ControlServerProtocol

    def __init__(
        self,
        owner: ServerOwner,
        *,
        reactor: Any,
        limits: ServerLimits | None = None,
        seconds: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], float] = wall_clock_ms,
        outgoing_limit: int = LIMIT_BYTES,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        max_connections: int = 0,
    ) -> None:
        super().__init__(server=None, reactor=reactor)  # type: ignore[no-untyped-call]
        self.owner = owner
        self.limits = limits or ServerLimits()
        self.seconds = seconds
        self.wall_ms = wall_ms
        self.outgoing_limit = outgoing_limit
        self.open_timeout_s = open_timeout_s
        self.close_timeout_s = close_timeout_s
        self.connections: set[ControlConnection] = set()
        self.closing = False
        self._empty: list[Deferred[None]] = []
        self.setProtocolOptions(  # type: ignore[no-untyped-call]
            webStatus=False,
            failByDrop=False,  # say why with a close frame
            maxMessagePayloadSize=messages.MAX_MESSAGE_BYTES,
            maxFramePayloadSize=messages.MAX_MESSAGE_BYTES,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            maxConnections=max_connections,
        )

    def web_resource(self) -> WebSocketResource:
        """The resource to put at ``/ws``."""
        return WebSocketResource(self)  # type: ignore[no-untyped-call]

    def opened(self, connection: ControlConnection) -> None:
        """A connection's handshake is done; called by the protocol."""
        self.connections.add(connection)

    def gone(self, connection: ControlConnection) -> None:
        """A connection is lost; called by the protocol."""
        self.connections.discard(connection)
        if not self.connections:
            waiting, self._empty = self._empty, []
            for deferred in waiting:
                deferred.callback(None)

    def close_all(self, code: int = CLOSE_GOING_AWAY, reason: str = "") -> Deferred[None]:
        """Close every connection and take no more; the next is answered 503.

        :returns: fires when all are gone, at most ``close_timeout_s`` later.
        """
        self.closing = True
        done: Deferred[None] = Deferred()
        self._empty.append(done)
        for connection in list(self.connections):
            connection.close(code, reason)
        if not self.connections and done in self._empty:
            self._empty.remove(done)
            done.callback(None)
        return done


# -- client --------------------------------------------------------------------------------------


ClientOwner = Callable[[ControlClient, events.ClientSessionEvent], None]


class ControlClientProtocol(_Shell, WebSocketClientProtocol):  # type: ignore[misc]
    """One connection: feeds its :class:`ClientSession` and does what that wants."""

    client: ControlClient | None = None
    _logger = Logger()

    def __init__(self) -> None:
        super().__init__()
        self.ready: Deferred[ControlClient] = Deferred(lambda _: self.abort())

    def onOpen(self) -> None:
        factory: ControlClientFactory = self.factory
        self.disarm_guard()
        self._alarm = _Alarm(factory.reactor, factory.seconds, self._timer)
        self._deliver = Delivery(self._tell_owner)
        host = getattr(self.transport.getPeer(), "host", "")
        self.session = factory.make_session()
        self.client = ControlClient(self, self.session, host)
        self.session.start(factory.seconds())
        self._transmit()
        self.ready.callback(self.client)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        wall_ms = self.factory.wall_ms()
        if not isBinary and self.client is not None:
            self._carry_out(self.session.receive(payload, self.factory.seconds(), wall_ms))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self.client is None:
            if not self.ready.called:
                self.ready.errback(ControlConnectError(reason or "the server closed"))
        else:
            self._carry_out(self.session.lost(code or CLOSE_NONE_RECEIVED, reason or ""))
            self.client.mark_gone()

    def configure(self, config: messages.ClientConfig) -> None:
        self.session.configure(config)
        self._transmit()

    def close(self, reason: str) -> None:
        self._carry_out(self.session.close(reason))

    def failed(self, code: int, reason: str) -> None:
        if self.client is not None:
            self._carry_out(self.session.lost(code, reason))

    def _timer(self) -> None:
        factory: ControlClientFactory = self.factory
        self._carry_out(self.session.handle_timer(factory.seconds(), factory.wall_ms()))

    def _carry_out(self, new: Sequence[events.ClientSessionEvent]) -> None:
        self._deliver(new)
        self._transmit()

    def _tell_owner(self, event: events.ClientSessionEvent) -> None:
        try:
            self.factory.owner(self.client, event)
        except Exception:
            self._logger.failure("the owner of a control connection failed")
            if not isinstance(event, events.SessionClosed):
                self.close("internal error")

    def _transmit(self) -> None:
        if self.is_open_now:
            for data in self.session.data_to_send():
                self.sendMessage(data)  # type: ignore[no-untyped-call]
            if self.session.close_wanted is not None:
                self.close_with(self.session.close_wanted)
        self._alarm.set(self.session.next_timer())


class ControlClientFactory(WebSocketClientFactory):
    """Makes the listener's end of a control connection; for :func:`connect`.

    :param url: ``ws://HOST:PORT/ws`` or ``wss://…``.
    :param owner: called with ``(client, event)`` for everything the session tells.
    :param make_session: a new session for each connection.
    :param seconds: a steady clock, not ``reactor.seconds``.
    :param wall_ms: the clock that CLK-1 compares.
    """

    protocol = ControlClientProtocol

    def __init__(
        self,
        url: str,
        owner: ClientOwner,
        *,
        reactor: Any,
        make_session: Callable[[], ClientSession] = ClientSession,
        seconds: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], float] = wall_clock_ms,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        super().__init__(url, reactor=reactor)  # type: ignore[no-untyped-call]
        self.owner = owner
        self.make_session = make_session
        self.seconds = seconds
        self.wall_ms = wall_ms
        self.open_timeout_s = open_timeout_s
        self.close_timeout_s = close_timeout_s
        self.setProtocolOptions(  # type: ignore[no-untyped-call]
            failByDrop=False,
            maxMessagePayloadSize=messages.MAX_MESSAGE_BYTES,
            maxFramePayloadSize=messages.MAX_MESSAGE_BYTES,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            serverConnectionDropTimeout=0,
        )


def connect(
    factory: ControlClientFactory, endpoint: IStreamClientEndpoint | None = None
) -> Deferred[ControlClient]:
    """Open a control connection.

    :param endpoint: where to, if not simply the URL's host and port; with its own TLS.
    :returns: fires when the WebSocket is open (the owner's first event is later), or fails with
        :class:`ControlConnectError` or what the endpoint says.  May be cancelled.
    """
    if endpoint is None:
        endpoint = HostnameEndpoint(
            factory.reactor, factory.host, factory.port, timeout=factory.open_timeout_s
        )
        if factory.isSecure:
            endpoint = wrapClientTLS(optionsForClientTLS(factory.host), endpoint)
    opening: Deferred[Any] = endpoint.connect(factory)
    return opening.addCallback(lambda shell: shell.ready)
