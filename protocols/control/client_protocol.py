"""The listener's end of a control session on a WebSocket: Autobahn's protocol around the core.

:func:`connect` opens one.  All timers are on the given reactor, all decisions in the session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateResponse,
    PerMessageDeflateResponseAccept,
)
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger

from protocols.compression import deflate
from protocols.control import events, messages
from protocols.control.base_protocol import (
    CLOSE_TIMEOUT_S,
    OPEN_TIMEOUT_S,
    Alarm,
    WebSocketShell,
    wall_clock_ms,
)
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient, Delivery
from protocols.control.outgoing import CLOSE_NONE_RECEIVED
from protocols.control.quality import ControlQuality
from protocols.tcp.options import SocketOptions
from protocols.tcp.protocol import tune


class ControlConnectError(Exception):
    """The WebSocket could not be opened; says why."""


ClientOwner = Callable[[ControlClient, events.ClientSessionEvent], None]


class ControlClientProtocol(WebSocketShell, WebSocketClientProtocol):  # type: ignore[misc]
    """One connection: feeds its :class:`ClientSession` and does what that wants."""

    client: ControlClient | None = None
    _logger = Logger()

    def __init__(self) -> None:
        super().__init__()
        self.ready: Deferred[ControlClient] = Deferred(lambda _: self.abort())

    def connectionMade(self) -> None:
        tune(self.transport, SocketOptions())
        super().connectionMade()

    def onOpen(self) -> None:
        factory: ControlClientFactory = self.factory
        self.disarm_guard()
        self.agree_on_compression()
        self._alarm = Alarm(factory.reactor, factory.seconds, self._timer)
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
            self.traffic.messages_received += 1
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

    def want_levels(self, interval_ms: int) -> None:
        self.session.want_levels(interval_ms)
        self._transmit()

    def quality(self, now: float) -> ControlQuality:
        return self.traffic.quality(self.session.trips, now)

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
                self.write_text(data)
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
    :param compression: whether permessage-deflate (RFC 7692) is offered.
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
        compression: bool = True,
    ) -> None:
        super().__init__(url, reactor=reactor)  # type: ignore[no-untyped-call]
        self.owner = owner
        self.make_session = make_session
        self.seconds = seconds
        self.wall_ms = wall_ms
        self.open_timeout_s = open_timeout_s
        self.close_timeout_s = close_timeout_s
        self.deflate = deflate
        self.setProtocolOptions(  # type: ignore[no-untyped-call]
            failByDrop=False,
            maxMessagePayloadSize=messages.MAX_MESSAGE_BYTES,
            maxFramePayloadSize=messages.MAX_MESSAGE_BYTES,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            serverConnectionDropTimeout=0,
            perMessageCompressionOffers=_offers() if compression else [],
            perMessageCompressionAccept=_accept if compression else lambda response: None,
        )


def _offers() -> list[PerMessageDeflateOffer]:
    return [
        PerMessageDeflateOffer(  # type: ignore[no-untyped-call]
            accept_no_context_takeover=True,
            accept_max_window_bits=True,
            request_no_context_takeover=True,
        )
    ]


def _accept(response: object) -> PerMessageDeflateResponseAccept | None:
    # Asked for, and relied on: an answer without it is another extension than the one offered.
    if isinstance(response, PerMessageDeflateResponse) and response.server_no_context_takeover:
        return PerMessageDeflateResponseAccept(  # type: ignore[no-untyped-call]
            response, no_context_takeover=True
        )
    return None


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
