"""The HTTP side of a connection: bounded bodies, and requests that must be complete in time.

A client that dribbles its request, or says nothing, holds a place only for as long as
:class:`Deadlines` says, TLS handshake included.  One that sends many at once has one of them
answered in a turn of the event loop, so that audio is sent between them.  Once a request is
complete, its answer and what becomes of the connection, such as a WebSocket, are under no deadline
of this module.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from m32net.log import RoomLog
from m32net.web.answers import JSON, MAX_BODY
from m32net.web.bodies import ErrorBody, ErrorDetail
from protocols.control.limits import TokenBucket

GRACE_BYTES: Final = 8 * MAX_BODY
"""Of a body too large: read and dropped up to here, so that the client gets to see the answer."""
REFUSALS: Final = (408, 413, 429)
"""Statuses of requests that are too slow, too large or too many (CON-2)."""
REQUESTS_PER_S: Final = 50.0
"""Of one connection, sustained; the engineer's page asks for some three a second."""
REQUEST_BURST: Final = 200.0
"""At once, on top of that: a page with all it loads has some twenty."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long an HTTP connection may take, in seconds.

    :ivar first_byte_s: from being accepted to the first byte of a request; a TLS handshake falls
        in here.  A browser opens connections in advance and uses them well within this time, or
        opens another one.
    :ivar request_s: from the first byte of a request to its last one, however they come.  The
        largest body, 1 MiB, then needs 52 kB/s; those of this server have a few hundred bytes.
    :ivar idle_s: of silence between requests.
    :ivar closing_s: for a peer to take the rest of its answer once the connection is to end.
    """

    first_byte_s: float = 10.0
    request_s: float = 20.0
    idle_s: float = 60.0
    closing_s: float = 60.0


def raw_error(status: bytes, code: str, message: str, retry_s: int = 6) -> bytes:
    """A complete HTTP error answer, for where there is no request to write it to."""
    body = msgspec.json.encode(ErrorBody(ErrorDetail(code, message)))
    head = (
        b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
        b"Retry-After: %d\r\nConnection: close\r\n\r\n"
    )
    return head % (status, JSON.encode(), len(body), retry_s) + body


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
        self.channel.site.refused[413] += 1  # type: ignore[attr-defined]
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


MAX_DIGITS: Final = 19
"""Of a Content-Length."""


class Phase(enum.Enum):
    """What an HTTP connection is doing."""

    SILENT = "silent"
    """Nothing of a request has come yet."""
    READING = "reading"
    """A request is coming."""
    ANSWERING = "answering"
    """It has come; the server is at it, or a WebSocket has taken over."""
    IDLE = "idle"
    """Between requests."""
    CLOSING = "closing"


class BoundedChannel(HTTPChannel):
    """HTTP/1.1 whose requests have a deadline, and of which one is answered in a turn of the loop.

    What has come of the requests behind it, at most what the transport reads at a time, waits
    (``paused``), and nothing more is read meanwhile.

    :ivar phase: what it is doing.
    """

    phase = Phase.SILENT
    site: BoundedSite
    _deadline: Any = None
    _next: Any = None
    _rate: TokenBucket

    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        self._rate = TokenBucket(REQUESTS_PER_S, REQUEST_BURST, self.site.seconds())
        self._within(self.site.deadlines.first_byte_s)

    def dataReceived(self, data: bytes) -> None:
        if self.phase is Phase.CLOSING:
            return
        if self.phase in {Phase.SILENT, Phase.IDLE}:
            self._read()
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and len(value.strip()) > MAX_DIGITS:
            self._unreadable("Content-Length is no length")  # Python itself fails at some 4,300
            return False
        return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]

    def allContentReceived(self) -> None:
        if not self._rate.take(1, self.site.seconds()):
            self._too_fast()
            return
        self.phase = Phase.ANSWERING
        # A WebSocket takes the transport with it: nobody would tell when it has gone.
        if not self.requests[-1].requestHeaders.hasHeader(b"Upgrade"):
            self.site.answering.add(self)
        self._within(None)
        super().allContentReceived()  # type: ignore[no-untyped-call]

    def requestDone(self, request: HttpRequest) -> None:
        self.phase = Phase.IDLE
        self.paused = True
        self.site.answered(self)
        # What had already come of the next request counts from now on.
        super().requestDone(request)  # type: ignore[no-untyped-call]
        if self.phase is Phase.CLOSING:
            return
        if self._buffer:
            self._networkProducer.pauseProducing()
            self._read()
        self._soon()

    def _soon(self) -> None:
        if self._next is None:
            self._next = self.callLater(0, self._go_on)  # type: ignore[no-untyped-call]

    def _go_on(self) -> None:
        """The next request, in a turn of its own; not before its predecessor's answer is taken."""
        self._next = None
        if self._waitingForTransport:
            self.phase = Phase.IDLE
            self._within(None)
            return
        self.paused = False
        if self._buffer:
            self.dataReceived(b"")
        if not self.paused and self.phase is not Phase.CLOSING and self.transport is not None:
            self._networkProducer.resumeProducing()
        self.site.between()

    def resumeProducing(self) -> None:
        """The client has taken what it was sent."""
        super().resumeProducing()  # type: ignore[no-untyped-call]
        if self.paused and self.phase is not Phase.CLOSING:
            if self._buffer:
                self._networkProducer.pauseProducing()
            self._soon()

    def _unreadable(self, reason: str) -> None:
        self.paused = True
        self.site.refused[400] += 1
        assert self.transport is not None
        self.transport.write(raw_error(b"400 Bad Request", "bad_request", reason))
        self._close(min(5.0, self.site.deadlines.closing_s))

    def _too_fast(self) -> None:
        self.paused = True
        self.site.refused[429] += 1
        message = f"more than {REQUESTS_PER_S:g} requests a second on one connection"
        assert self.transport is not None
        self.transport.write(raw_error(b"429 Too Many Requests", "too_many_requests", message, 1))
        self._close(min(5.0, self.site.deadlines.closing_s))

    def timeoutConnection(self) -> None:
        """Between requests for too long; said in the log by nobody, since it is ordinary."""
        self.loseConnection()

    def loseConnection(self) -> None:
        if self.phase is not Phase.CLOSING:
            self._close(self.site.deadlines.closing_s)

    def _close(self, within_s: float) -> None:
        self.phase = Phase.CLOSING
        self._within(within_s)
        self._stay()
        super().loseConnection()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.phase = Phase.CLOSING
        self.site.answered(self)
        self._within(None)
        self._stay()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _stay(self) -> None:
        """No further request is wanted."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _read(self) -> None:
        self.phase = Phase.READING
        self._within(self.site.deadlines.request_s)

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None:
            self._deadline = self.callLater(seconds, self._late)  # type: ignore[no-untyped-call]

    def _late(self) -> None:
        """Too slow: told so if a request had begun, and gone if it does not take that."""
        if self.transport is None:
            return
        if self.phase is Phase.CLOSING:
            self.transport.abortConnection()  # type: ignore[attr-defined]
            return
        self.site.late += 1
        if self.phase is Phase.READING:
            self.site.refused[408] += 1
            message = f"the request did not come within {self.site.deadlines.request_s:g} s"
            self.transport.write(raw_error(b"408 Request Timeout", "too_slow", message))
        self._close(min(5.0, self.site.deadlines.closing_s))


class BoundedSite(Site):
    """The site: bounded bodies and times, and requests in the log at level debug only.

    :param between: called after each request that has waited for its turn, for what is urgent.
    :ivar late: connections ended because a request did not come in time.
    :ivar refused: requests that were too fast for their connection (429), or unreadable (400).
    :ivar answering: connections whose request has come and waits for its answer.
    """

    requestFactory = BoundedRequest
    protocol = BoundedChannel  # type: ignore[assignment]
    _log = RoomLog(namespace="m32net.web")

    def __init__(
        self,
        root: IResource,
        clock: IReactorTime,
        deadlines: Deadlines | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        self.deadlines = deadlines or Deadlines()
        self.between = between
        self.seconds = clock.seconds
        self.late = 0
        self.refused: Counter[int] = Counter(dict.fromkeys(REFUSALS, 0))
        self.answering: set[BoundedChannel] = set()
        self._clock = clock
        self._waiting: list[Deferred[None]] = []
        super().__init__(  # type: ignore[no-untyped-call]
            root,
            timeout=self.deadlines.idle_s,
            reactor=clock,
            parsePOSTFormSubmission=False,  # no route takes forms; parsing 1 MiB of them takes 2 s
        )

    def answered(self, channel: BoundedChannel) -> None:
        """This connection's request has its answer, or will get none."""
        self.answering.discard(channel)
        if not self.answering:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one.callback(None)

    def all_answered(self, within_s: float) -> Deferred[None]:
        """Fires when no request waits for its answer, or when that has taken too long."""
        done: Deferred[None] = Deferred()
        if not self.answering:
            done.callback(None)
            return done
        self._waiting.append(done)
        late = self._clock.callLater(within_s, self._give_up, done)

        def in_time(_: None) -> None:
            if late.active():
                late.cancel()

        return done.addCallback(in_time)

    def _give_up(self, done: Deferred[None]) -> None:
        self._waiting.remove(done)
        done.callback(None)

    def acceptableProtocols(self) -> list[bytes]:
        """By ALPN (RFC 7301): what the bounds hold for."""
        return [b"http/1.1"]

    def log(self, request: HttpRequest) -> None:
        if request.code in REFUSALS:
            self.refused[request.code] += 1
        self._log.debug(
            "web: {host} {method} {uri} {code} {octets}",
            host=getattr(request.client, "host", "-"),
            method=request.method,
            uri=request.uri,
            code=request.code,
            octets=request.sentLength,
        )
