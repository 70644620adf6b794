"""The web server: one site on its endpoints, with bounds on connections and bodies (CON-2).

It knows nothing of routes; :mod:`m32net.web.api` makes the resource that is served here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.application.service import Service
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from m32net.log import RoomLog
from m32net.web.answers import JSON, MAX_BODY
from m32net.web.bodies import ErrorBody, ErrorDetail

MAX_CONNECTIONS: Final = 100
IDLE_S: Final = 60.0
"""An HTTP connection that says nothing for so long is closed."""
GRACE_BYTES: Final = 8 * MAX_BODY
"""Of a body too large: read and dropped up to here, so that the client gets to see the answer."""
REFUSAL_S: Final = 5.0
MAX_REFUSALS: Final = 50
"""Connections beyond the bound that are told why at the same time; others are just closed."""


class WebError(Exception):
    """The web server can't listen; the message is one line that says why and what to do."""


def raw_error(status: bytes, code: str, message: str) -> bytes:
    """A complete HTTP error answer, for where there is no request to write it to."""
    body = msgspec.json.encode(ErrorBody(ErrorDetail(code, message)))
    head = (
        b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
        b"Retry-After: 6\r\nConnection: close\r\n\r\n"
    )
    return head % (status, JSON.encode(), len(body)) + body


class BoundedRequest(Request):
    """A request whose body has at most :data:`MAX_BODY` bytes.

    More is answered with 413 at once, whether the length was announced or not.
    """

    _excess = 0

    def gotLength(self, length: int | None) -> None:
        super().gotLength(0 if length is None else min(length, MAX_BODY))  # type: ignore[no-untyped-call]
        if length is not None and length > MAX_BODY:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        if self._excess:
            self._excess += len(data)
            if self._excess > GRACE_BYTES:
                self.channel.loseConnection()  # type: ignore[no-untyped-call]
            return
        assert self.content is not None
        if self.content.tell() + len(data) > MAX_BODY:
            self._refuse()
            return
        super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def _refuse(self) -> None:
        self._excess = 1
        self.requestHeaders.removeHeader("Expect")
        message = f"the body has more than {MAX_BODY} bytes"
        assert self.channel is not None and self.channel.transport is not None
        self.channel.transport.write(
            raw_error(b"413 Request Entity Too Large", "too_large", message)
        )

    def process(self) -> None:
        if self._excess:
            self.channel.loseConnection()  # type: ignore[no-untyped-call]
            return
        super().process()  # type: ignore[no-untyped-call]


class BoundedSite(Site):
    """The site: bounded bodies, and requests in the log at level debug only."""

    requestFactory = BoundedRequest
    _log = RoomLog(namespace="m32net.web")

    def __init__(self, root: IResource, clock: IReactorTime) -> None:
        super().__init__(root, timeout=IDLE_S, reactor=clock)  # type: ignore[no-untyped-call]

    def log(self, request: HttpRequest) -> None:
        self._log.debug(
            "web: {host} {method} {uri} {code} {octets}",
            host=getattr(request.client, "host", "-"),
            method=request.method,
            uri=request.uri,
            code=request.code,
            octets=request.sentLength,
        )


class _Refusal(Protocol):
    """Tells a connection beyond the bound why it is closed, after it has said something."""

    def __init__(self, factory: BoundedConnections) -> None:
        self._factory = factory

    def connectionMade(self) -> None:
        self._late = self._factory.clock.callLater(REFUSAL_S, self._close)

    def dataReceived(self, data: bytes) -> None:
        message = f"{self._factory.limit} connections are open, which is the most"
        assert self.transport is not None
        self.transport.write(raw_error(b"503 Service Unavailable", "too_many_connections", message))
        self._close()

    def _close(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = error.ConnectionDone) -> None:  # type: ignore[assignment]
        if self._late.active():
            self._late.cancel()
        self._factory.being_refused -= 1


class BoundedConnections(WrappingFactory):
    """At most ``limit`` connections, WebSockets included; more get 503 and are counted.

    :ivar refused: connections refused since the start.
    """

    noisy = False

    def __init__(self, site: Site, clock: IReactorTime, limit: int = MAX_CONNECTIONS) -> None:
        super().__init__(site)  # type: ignore[no-untyped-call]
        self.clock = clock
        self.limit = limit
        self.accepted = 0
        self.refused = 0
        self.being_refused = 0

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if len(self.protocols) < self.limit:
            self.accepted += 1
            return super().buildProtocol(addr)
        self.refused += 1
        if self.being_refused >= MAX_REFUSALS:
            return None
        self.being_refused += 1
        return _Refusal(self)

    def close_all(self) -> None:
        """Close what is still open."""
        for protocol in list(self.protocols):
            connection: ProtocolWrapper = protocol
            connection.loseConnection()  # type: ignore[no-untyped-call]


class WebService(Service):
    """Listens on endpoints while it runs.

    :param root: as made by :meth:`m32net.web.api.WebApi.root`.
    :param endpoints: Twisted endpoint descriptions, such as ``tcp:8080:interface=192.0.2.1``.
    :ivar ports: what it listens on, in the order of ``endpoints``.
    """

    _log = RoomLog()

    def __init__(
        self,
        reactor: Any,
        root: IResource,
        endpoints: Sequence[str],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self.connections = BoundedConnections(BoundedSite(root, reactor), reactor, max_connections)
        self.ports: list[IListeningPort] = []

    def counters(self) -> Mapping[str, float]:
        """For ``/metrics``."""
        return {
            "http_connections": len(self.connections.protocols),
            "http_connections_accepted_total": self.connections.accepted,
            "http_connections_refused_total": self.connections.refused,
        }

    def privilegedStartService(self) -> None:
        """Listen, before privileges are dropped.

        :raises WebError: an endpoint can't be used.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for endpoint in self._endpoints:
            self._listen(endpoint)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if not self.ports:
            self.privilegedStartService()

    def _listen(self, endpoint: str) -> None:
        try:
            server = serverFromString(self._reactor, endpoint)  # type: ignore[no-untyped-call]
            listening = server.listen(self.connections)
        except Exception as reason:
            raise WebError(f"{endpoint!r} is no endpoint to listen on: {reason}") from None
        failures: list[Failure] = []
        listening.addCallbacks(self.ports.append, failures.append)
        if failures:
            raise WebError(_why_not(endpoint, failures[0]))
        if not isinstance(self.ports[-1].getHost(), IPv4Address | IPv6Address):
            self.ports.pop().stopListening()
            raise WebError(
                f"{endpoint!r} has no TCP port; audio is sent to the address a listener connects "
                "from, so listen on one such as tcp:8080"
            )

    def stopService(self) -> Deferred[Any]:
        """Listen no more and close all connections; fires when the ports are free."""
        super().stopService()  # type: ignore[no-untyped-call]
        closing = [port.stopListening() for port in self.ports]
        self.ports = []
        self.connections.close_all()
        return DeferredList([one for one in closing if isinstance(one, Deferred)])


def _why_not(endpoint: str, failure: Failure) -> str:
    reason = failure.value
    if isinstance(reason, error.CannotListenError):
        where = f"{reason.interface or '*'}:{reason.port}"
        cause = getattr(reason.socketError, "strerror", None) or reason.socketError
        return (
            f"cannot listen on {where} ({endpoint}): {cause}; is another m32net running? "
            "Choose another with --http"
        )
    return f"cannot listen on {endpoint}: {reason}"
