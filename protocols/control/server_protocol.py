"""The server's end of a control session on a WebSocket: Autobahn's protocol around the core.

It goes beside Klein into one Site (:meth:`ControlServerFactory.web_resource`).  All timers are on
the given reactor, all decisions in the session; peers' mistakes end in a close frame, never in a
traceback.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import msgspec
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import Logger

from protocols.addresses import plain
from protocols.compression import deflate
from protocols.control import events, messages
from protocols.control.base_protocol import (
    CLOSE_TIMEOUT_S,
    OPEN_TIMEOUT_S,
    Alarm,
    WebSocketShell,
    wall_clock_ms,
)
from protocols.control.connection import ControlConnection, Delivery
from protocols.control.limits import ServerLimits, TokenBucket
from protocols.control.origin import origin_allowed
from protocols.control.outbox import LIMIT_BYTES, Outbox
from protocols.control.outgoing import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL_ERROR,
    CLOSE_NONE_RECEIVED,
    CLOSE_POLICY_VIOLATION,
    CLOSE_UNSUPPORTED_DATA,
)
from protocols.control.quality import ControlQuality, Traffic
from protocols.control.server_session import ServerSession
from protocols.control.turns import TakesTurns

VERSIONS: Final = [13]  # RFC 6455; Autobahn also knows drafts
_COMPRESSED: Final = 4  # messages kept, so that what is told to all is compressed once

ServerOwner = Callable[[ControlConnection, events.ServerSessionEvent], None]


class ControlServerProtocol(  # type: ignore[misc]
    TakesTurns, WebSocketShell, WebSocketServerProtocol
):
    """One connection: feeds its :class:`ServerSession` and does what that wants."""

    session: ServerSession | None = None

    def connectionMade(self) -> None:
        factory: ControlServerFactory = self.factory
        self.outbox = Outbox(factory.outgoing_limit, ttl_s=factory.limits.message_ttl_s)
        # twisted.web's HTTPChannel has registered itself on the transport it gave us.
        with suppress(RuntimeError):
            self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        super().connectionMade()

    def onConnect(self, request: ConnectionRequest) -> None:
        factory: ControlServerFactory = self.factory
        if factory.closing:
            raise _deny(ConnectionDeny.SERVICE_UNAVAILABLE, "the server is stopping")
        host = request.headers.get("host", "")
        secure = ISSLTransport.providedBy(self.transport)
        if not origin_allowed(request.origin or "", host, factory.allowed_origins, secure=secure):
            raise _deny(ConnectionDeny.FORBIDDEN, "pages of other servers may not connect here")

    def succeedHandshake(self, res: object) -> None:
        # Autobahn fails the handshake for an offer it cannot take; it is to be declined (RFC 7692
        # section 7.1), and what else it has installed is not offered here.
        self.websocket_extensions = [
            (name, parameters)
            for name, parameters in self.websocket_extensions
            if name == PerMessageDeflateOffer.EXTENSION_NAME and _understood(parameters)
        ]
        super().succeedHandshake(res)

    def failHandshake(
        self, reason: str, code: int = 400, responseHeaders: list[tuple[str, str]] | None = None
    ) -> None:
        if responseHeaders or "Hixie" in reason:  # the version is another one, or missing
            code, reason = 426, f"Sec-WebSocket-Version must be {VERSIONS[0]}"
        self.deaf = True
        super().failHandshake(reason, code, None)

    def onOpen(self) -> None:
        factory: ControlServerFactory = self.factory
        self.disarm_guard()
        self.agree_on_compression()
        peer = self.transport.getPeer()
        host = plain(getattr(peer, "host", ""))
        now = factory.seconds()
        limits = factory.limits
        self.session = ServerSession(now, limits, random=factory.random)
        self._pings = TokenBucket(limits.messages_per_s, limits.message_burst, now)
        self.frames = TokenBucket(limits.frames_per_s, limits.frame_burst, now)
        secure = ISSLTransport.providedBy(self.transport)
        self.connection = ControlConnection(self, host, getattr(peer, "port", 0), secure=secure)
        self._deliver = Delivery(self._tell_owner)
        self._alarm = Alarm(factory.reactor, factory.seconds, self._timer)
        factory.opened(self.connection)
        self._transmit()

    def onMessageBegin(self, isBinary: bool) -> None:
        super().onMessageBegin(isBinary)
        if isBinary:
            self._fail_connection(CLOSE_UNSUPPORTED_DATA, "binary messages are not understood here")

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.session is None:
            return
        self.traffic.messages_received += 1
        self.spend(len(payload))
        now, wall_ms = self.factory.seconds(), self.factory.wall_ms()
        self._carry_out(self.session.receive(payload, now, wall_ms))

    def onPing(self, payload: bytes) -> None:
        if not self._pings.take(1, self.factory.seconds()):
            self._fail_connection(CLOSE_POLICY_VIOLATION, "too many pings")
        elif not self.outbox.paused:  # or pongs would pile up for those who never read them
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        if self.session is not None:
            self.session.pong(payload, self.factory.seconds())

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
        if code == 426:  # RFC 9110 section 15.5.22, RFC 6455 section 4.4
            headers.append(("Upgrade", "websocket"))
            headers.append(("Sec-WebSocket-Version", str(VERSIONS[0])))
        if code == 405:  # RFC 9110 section 15.5.6
            headers.append(("Allow", "GET"))
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

    def quality(self, now: float) -> ControlQuality:
        assert self.session is not None
        box = self.outbox
        box.expire(now)
        return self.traffic.quality(
            self.session.liveness.trips,
            now,
            queued=len(box),
            dropped=box.dropped,
            expired=box.expired,
        )

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
            self.deaf = True  # what else was sent in the same breath costs nothing
            self.factory.log_to.warn(
                "{connection} ended: {reason}", connection=self.connection, reason=event.reason
            )
        try:
            self.factory.owner(self.connection, event)
        except Exception:
            text = "the owner of {connection} failed"
            self.factory.log_to.failure(text, connection=self.connection)
            if not isinstance(event, events.SessionClosed):
                self.close(CLOSE_INTERNAL_ERROR, "internal error")

    def _transmit(self) -> bool:
        """Do what the session wants now; whether all of it found room."""
        session = self.session
        assert session is not None
        taken, now = True, self.factory.seconds()
        for item in session.data_to_send(self.factory.wall_ms()):
            taken = self.outbox.put(item, now) and taken
        closing = session.close_wanted
        if self.is_open_now:
            while (frame := self.outbox.take(now, all_of_it=closing is not None)) is not None:
                if frame.ping:
                    self.write_ping(frame.data)
                else:
                    self.write_text(frame.data, shared=frame.shared)
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
    :param compression: whether permessage-deflate (RFC 7692) is agreed to.
    :param allowed_origins: web pages of these may connect too, besides those of this server.
    :param random: gives numbers 0 <= x < 1, for spreading pings.
    :param log_to: where what peers and owners do wrong is noted, in its own measure.
    :param between: called between two turns of work, for what must not wait for many of them.
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
        compression: bool = True,
        allowed_origins: Collection[str] = (),
        random: Callable[[], float] = random.random,
        between: Callable[[], object] = lambda: None,
        log_to: Logger | None = None,
    ) -> None:
        super().__init__(server=None, reactor=reactor)  # type: ignore[no-untyped-call]
        self.owner = owner
        self.limits = limits or ServerLimits()
        self.seconds = seconds
        self.wall_ms = wall_ms
        self.outgoing_limit = outgoing_limit
        self.open_timeout_s = open_timeout_s
        self.close_timeout_s = close_timeout_s
        self.allowed_origins = tuple(allowed_origins)
        self.random = random
        self.between = between
        self.log_to = log_to or Logger()
        self.deflate = lru_cache(_COMPRESSED)(deflate)
        self.connections: set[ControlConnection] = set()
        self._past = Traffic(0.0)
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
            versions=VERSIONS,
            allowedOrigins=["*"],  # judged by origin_allowed
            allowNullOrigin=True,
            perMessageCompressionAccept=_accept if compression else None,
        )

    def web_resource(self) -> WebSocketResource:
        """The resource to put at ``/ws``."""
        return _Resource(self)  # type: ignore[no-untyped-call]

    def opened(self, connection: ControlConnection) -> None:
        """A connection's handshake is done; called by the protocol."""
        self.connections.add(connection)

    def gone(self, connection: ControlConnection) -> None:
        """A connection is lost; called by the protocol."""
        if connection in self.connections:
            self._past.add(connection.traffic)
        self.connections.discard(connection)
        if not self.connections:
            waiting, self._empty = self._empty, []
            for deferred in waiting:
                deferred.callback(None)

    def traffic(self) -> Traffic:
        """What went over all connections since the start, those that are gone included."""
        total = Traffic(0.0)
        for one in (self._past, *(connection.traffic for connection in self.connections)):
            total.add(one)
        return total

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


class _Resource(WebSocketResource):
    def render(self, request: Any) -> Any:
        if request.clientproto != b"HTTP/1.1":  # Autobahn would take it for one
            request.setResponseCode(505)
            request.setHeader(b"Content-Type", b"application/json")
            reason = "a WebSocket takes HTTP/1.1"
            return msgspec.json.encode({"error": {"code": "bad_handshake", "message": reason}})
        return super().render(request)  # type: ignore[no-untyped-call]


def _deny(code: int, reason: str) -> ConnectionDeny:
    return ConnectionDeny(code, reason)  # type: ignore[no-untyped-call]


def _understood(parameters: dict[str, list[Any]]) -> bool:
    try:
        PerMessageDeflateOffer.parse(parameters)  # type: ignore[no-untyped-call]
    except Exception:  # Autobahn raises nothing more exact
        return False
    return True


def _accept(offers: list[PerMessageDeflateOffer]) -> PerMessageDeflateOfferAccept | None:
    """The first offer, on the condition that nobody keeps anything between two messages."""
    if not offers:
        return None
    offer = offers[0]
    offer.request_no_context_takeover = True  # or Autobahn would not tell what we promise
    return PerMessageDeflateOfferAccept(  # type: ignore[no-untyped-call]
        offer, request_no_context_takeover=True, no_context_takeover=True
    )
