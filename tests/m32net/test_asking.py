"""CON-51: one request and its answer: bounded in size and time, never inflated."""

from __future__ import annotations

import gzip
import json
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial import unittest
from twisted.web.client import Agent, ResponseFailed, ResponseNeverReceived
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from m32net.asking import AnswerError, ask, words
from m32net.interfaces import RefusedError
from m32net.streaming.target import quiet_pool

LIMIT = 1000


class Page(Resource):
    """Answers what it is told to, and notes what it was asked."""

    isLeaf = True

    def __init__(self, body: bytes, encoding: str | None = None) -> None:
        super().__init__()
        self.body, self.encoding = body, encoding
        self.asked: list[tuple[bytes, bytes, dict[bytes, list[bytes]], bytes]] = []

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        headers = dict(request.requestHeaders.getAllRawHeaders())
        self.asked.append((request.method, request.uri, headers, request.content.read()))
        if self.encoding is not None:
            request.setHeader("Content-Encoding", self.encoding)
        return self.body


class Silent:
    """An agent without answers; called off, it fails as Twisted's does."""

    def request(self, *_: Any) -> Deferred[Any]:
        error = ResponseNeverReceived([Failure(CancelledError())])
        return Deferred(lambda waiting: waiting.errback(error))


class AskTest(unittest.SynchronousTestCase):
    def ask(self, page: Page, *question: Any, **more: Any) -> Deferred[Any]:
        agent: Any = RequestTraversalAgent(page)
        asking = ask(Clock(), agent, *(question or ("GET", "http://h/x")), limit=LIMIT, **more)
        agent.flush()
        return asking

    def test_asks(self) -> None:
        """Status and body come back; nothing encoded is wanted."""
        page = Page(b"well")
        answer = self.successResultOf(self.ask(page))
        self.assertEqual((answer.status, answer.body), (200, b"well"))
        ((method, uri, headers, body),) = page.asked
        self.assertEqual((method, uri, body), (b"GET", b"/x", b""))
        self.assertEqual(headers[b"Accept-Encoding"], [b"identity"])

    def test_sends(self) -> None:
        page = Page(b"")
        sent = json.dumps({"a": 1}).encode()
        question = ("POST", "http://bühne.example:81/y")
        self.successResultOf(
            self.ask(page, *question, body=sent, headers={"Authorization": "Bearer t"})
        )
        ((_, uri, headers, body),) = page.asked
        self.assertEqual((uri, body), (b"/y", sent))
        self.assertEqual(headers[b"Content-Type"], [b"application/json"])
        self.assertEqual(headers[b"Authorization"], [b"Bearer t"])
        self.assertEqual(headers[b"Host"], [b"xn--bhne-0ra.example:81"])

    def test_too_long(self) -> None:
        """Exactly the limit is taken, one byte more is not."""
        self.assertEqual(len(self.successResultOf(self.ask(Page(b"x" * LIMIT))).body), LIMIT)
        error = self.failureResultOf(self.ask(Page(b"x" * (LIMIT + 1))), AnswerError).value
        self.assertIn("1000 bytes", str(error))

    def test_encoded(self) -> None:
        """A small answer that would inflate to much is not inflated at all."""
        bomb = gzip.compress(bytes(100 * LIMIT))
        self.assertLess(len(bomb), LIMIT)
        for encoding in ("gzip", "deflate", "identity, gzip"):
            error = self.failureResultOf(self.ask(Page(bomb, encoding)), AnswerError).value
            self.assertIn("encoded", str(error))
        self.successResultOf(self.ask(Page(b"well", "identity")))

    def test_whoever_answers_nothing(self) -> None:
        """The time-out is told as one also before there is an answer; cancelled is cancelled."""
        for late in (True, False):
            clock, agent = Clock(), Silent()
            asking = ask(clock, agent, "GET", "http://h/x")
            clock.advance(5) if late else asking.cancel()
            self.failureResultOf(asking, TimeoutError if late else CancelledError)

    def test_words(self) -> None:
        """One line for whatever went wrong."""
        self.assertEqual(words(RefusedError("x", "it is full")), "it is full")
        self.assertEqual(words(ValueError("bad")), "bad")
        self.assertEqual(words(ValueError()), "ValueError")
        inner = Failure(ConnectionLost())
        self.assertIn("Connection", words(ResponseFailed([inner])))


class Endless(Protocol):
    """Sends an answer that never ends, as fast as it is read, or a byte now and then."""

    def connectionMade(self) -> None:
        self.factory.connections.append(self)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        if self.factory.fast:  # type: ignore[union-attr]
            self.transport.registerProducer(self, False)  # type: ignore[attr-defined]

    def resumeProducing(self) -> None:
        assert self.transport is not None
        self.factory.sent += 65_536  # type: ignore[union-attr]
        self.transport.write(bytes(65_536))

    def stopProducing(self) -> None:
        """It is over."""

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.lost.callback(None)  # type: ignore[union-attr]


class EndlessTest(unittest.TestCase):
    timeout = 30

    def serve(self, *, fast: bool) -> tuple[Any, str]:
        factory: Any = Factory.forProtocol(Endless)
        factory.noisy = False
        factory.connections, factory.lost, factory.fast, factory.sent = [], Deferred(), fast, 0
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return factory, f"http://127.0.0.1:{port.getHost().port}/"

    async def test_endless(self) -> None:
        """An answer without end is let go at the limit, with its connection."""
        factory, url = self.serve(fast=True)
        agent: Any = Agent(reactor)  # type: ignore[no-untyped-call]
        await self.assertFailure(ask(reactor, agent, "GET", url, limit=100_000), AnswerError)
        await factory.lost
        self.assertLess(factory.sent, 50_000_000)

    async def test_slow(self) -> None:
        """The time-out is for the body too; it ends the connection."""
        factory, url = self.serve(fast=False)
        agent: Any = Agent(reactor)  # type: ignore[no-untyped-call]
        asking = ask(reactor, agent, "GET", url, timeout_s=0.3)
        error = await self.assertFailure(asking, TimeoutError)
        self.assertEqual(str(error), "no answer within 0.3 s")
        await factory.lost

    async def test_cancelled(self) -> None:
        factory, url = self.serve(fast=False)
        agent: Any = Agent(reactor)  # type: ignore[no-untyped-call]
        asking = ask(reactor, agent, "GET", url)
        while not factory.connections:
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)  # type: ignore[attr-defined]
            await turn
        asking.cancel()
        await self.assertFailure(asking, CancelledError)
        await factory.lost


class SiteTest(unittest.TestCase):
    async def test_kept_connection(self) -> None:
        """After an answer that was taken whole the connection serves the next question."""
        accepted: list[object] = []

        class Counted(Site):
            def buildProtocol(self, addr: Any) -> Any:
                accepted.append(addr)
                return super().buildProtocol(addr)

        port: Any = reactor.listenTCP(0, Counted(Page(b"well")), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        pool = quiet_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        agent: Any = Agent(reactor, pool=pool)  # type: ignore[no-untyped-call]
        url = f"http://127.0.0.1:{port.getHost().port}/"
        for _ in range(3):
            self.assertEqual((await ask(reactor, agent, "GET", url)).body, b"well")
        self.assertEqual(len(accepted), 1)
