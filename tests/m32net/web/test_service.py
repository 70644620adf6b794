"""CON-2, CON-30: bounds on connections and bodies, on the wire; listening and stopping."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet import defer, reactor, ssl
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import SSL4ClientEndpoint, TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock, LoopingCall
from twisted.internet.testing import StringTransport
from twisted.trial import unittest
from twisted.web.resource import Resource
from twisted.web.server import Request

from m32net.web import service
from m32net.web.answers import MAX_BODY
from m32net.web.service import WebError, WebService, refusal
from m32net.web.site import BoundedSite, Deadlines
from protocols.tcp import protocol as tcp_protocol
from protocols.tcp.admission import AdmissionLimits, Verdict
from protocols.tcp.protocol import Guard, GuardedFactory
from tests.m32net.web.case import WebCase
from tests.support.certificate import self_signed


class Echo(Resource):
    """Answers with the length of the body."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        return b"%d" % len(request.content.read())


class Large(Resource):
    """Answers with more than sockets hold."""

    isLeaf = True
    SIZE = 3_000_000

    def render(self, request: Request) -> bytes:
        return bytes(self.SIZE)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def websocket_root() -> Resource:
    """WebSockets at ``/ws``, and nothing else."""
    factory = WebSocketServerFactory()
    factory.protocol = WebSocketServerProtocol
    root = Resource()
    root.putChild(b"ws", WebSocketResource(factory))
    return root


class Line:
    """One connection to the site, in memory."""

    def __init__(self, factory: GuardedFactory, host: str = "192.0.2.5") -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", host, 4000))
        self.protocol = factory.buildProtocol(self.transport.getPeer())
        if self.protocol is not None:
            self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """What the server says to this."""
        self.transport.clear()
        self.protocol.dataReceived(data)
        return self.transport.value()

    @property
    def closing(self) -> bool:
        return self.transport.disconnecting

    def lose(self) -> None:
        self.protocol.connectionLost(None)


def error_of(answer: bytes) -> tuple[bytes, dict[str, str]]:
    """The status line and the error of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.splitlines()[0], json.loads(body)["error"]


def guarded(root: Resource, clock: Clock, limits: AdmissionLimits) -> GuardedFactory:
    """The site behind its guard, as WebService makes it."""
    guard = Guard(clock, limits, refuse=lambda verdict, wait_s: refusal(limits, verdict, wait_s))
    return GuardedFactory(BoundedSite(root, clock), guard)


class SiteCase(unittest.SynchronousTestCase):
    limits = AdmissionLimits(max_connections=3, per_minute=1000)

    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = guarded(Echo(), self.clock, self.limits)
        self.guard = self.factory.guard
        self.lines: list[Line] = []
        self.addCleanup(lambda: [line.lose() for line in self.lines])

    def line(self, host: str = "192.0.2.5") -> Line:
        line = Line(self.factory, host)
        if line.protocol is not None:
            self.lines.append(line)
        return line


class Bodies(SiteCase):
    def head(self, *headers: bytes) -> bytes:
        return b"\r\n".join([b"POST / HTTP/1.1", b"Host: x", *headers, b"", b""])

    def test_as_large_as_allowed(self) -> None:
        line = self.line()
        line.send(self.head(b"Content-Length: %d" % MAX_BODY))
        self.assertIn(b"%d" % MAX_BODY, line.send(b"x" * MAX_BODY))
        self.assertFalse(line.closing)

    def test_announced_too_large(self) -> None:
        """Refused at once, before the body comes; closed when it has come."""
        line = self.line()
        answer = line.send(self.head(b"Content-Length: %d" % (MAX_BODY + 1)))
        status, error = error_of(answer)
        self.assertEqual(status, b"HTTP/1.1 413 Request Entity Too Large")
        self.assertEqual(error["code"], "too_large")
        self.assertEqual(line.send(b"x" * (MAX_BODY + 1)), b"")
        self.assertTrue(line.closing)

    def test_chunks_that_grow_too_large(self) -> None:
        line = self.line()
        line.send(self.head(b"Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        answers = b"".join(line.send(chunk) for _ in range(20))
        self.assertEqual(answers.count(b"HTTP/1.1 413"), 1)
        self.assertEqual(self.factory.wrappedFactory.refused[413], 1)
        line.send(b"0\r\n\r\n")
        self.assertTrue(line.closing)

    def test_without_end(self) -> None:
        """Somebody who goes on sending is cut off."""
        line = self.line()
        line.send(self.head(b"Transfer-Encoding: chunked"))
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        sent = 0
        while not line.closing:
            line.send(chunk)
            sent += 1
        self.assertLessEqual(sent, 11)

    def test_expecting_to_continue(self) -> None:
        """curl asks first; it hears 413 and nothing after it."""
        line = self.line()
        length = b"Content-Length: %d" % (MAX_BODY + 1)
        answer = line.send(self.head(length, b"Expect: 100-continue"))
        self.assertIn(b"413", answer)
        self.assertNotIn(b"100 Continue", answer)


class Connections(SiteCase):
    def test_bounded(self) -> None:
        """The next one is told why, closed and counted; a place that gets free is used."""
        lines = [self.line() for _ in range(3)]
        extra = self.line()
        status, error = error_of(extra.send(GET))
        self.assertEqual(status, b"HTTP/1.1 503 Service Unavailable")
        self.assertEqual(error["code"], "too_many_connections")
        self.assertTrue(extra.closing)
        counts = self.guard.admission.counts
        self.assertEqual((counts[Verdict.ADMIT], counts[Verdict.FULL]), (3, 1))
        self.lines.remove(lines[0])
        lines[0].lose()
        self.assertIn(b"200 OK", self.line().send(GET))

    def test_one_address(self) -> None:
        """CON-2: has a bound of its own; what it closes it may open again, others are not hit."""
        limits = AdmissionLimits(max_of_one=2, per_minute=1000)
        self.factory = guarded(Echo(), self.clock, limits)
        lines = [self.line() for _ in range(2)]
        status, error = error_of(self.line().send(GET))
        self.assertEqual(status, b"HTTP/1.1 429 Too Many Requests")
        self.assertIn("of this address", error["message"])
        self.assertIn(b"200 OK", self.line("192.0.2.6").send(GET))
        self.lines.remove(lines[0])
        lines[0].lose()
        self.assertIn(b"200 OK", self.line().send(GET))
        while self.lines:
            self.lines.pop().lose()
        self.assertEqual(self.factory.guard.held, {})

    def test_refused_and_silent(self) -> None:
        for _ in range(3):
            self.line()
        extra = self.line()
        self.clock.advance(tcp_protocol.REFUSAL_S)
        self.assertTrue(extra.closing)

    def test_refusals_are_bounded_too(self) -> None:
        self.patch(tcp_protocol, "MAX_REFUSALS", 2)
        for _ in range(5):
            self.line()
        self.assertIsNone(self.line().protocol)
        self.assertEqual(self.guard.admission.counts[Verdict.FULL], 3)
        self.assertEqual(self.guard.untold, 1)

    def test_idle(self) -> None:
        line = self.line()
        line.send(GET)
        self.clock.advance(Deadlines().idle_s + 1)
        self.assertTrue(line.closing)

    def test_close_all(self) -> None:
        lines = [self.line() for _ in range(3)]
        self.guard.close_all()
        self.assertTrue(all(line.closing for line in lines))


class Wire(WebCase):
    """Requests no HTTP library would send, against the real routes."""

    def setUp(self) -> None:
        super().setUp()
        self.factory = guarded(self.root, self.clock, AdmissionLimits(10**6, per_minute=10**6))

    def answer(self, method: bytes, path: bytes, host: bytes) -> bytes:
        line = Line(self.factory)
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (method, path, host)
        answer = line.send(head)
        line.lose()
        return answer

    def test_methods_and_hosts(self) -> None:
        for method, path, host, status in (
            (b"GET", b"/audio-meta", b"x", b"200"),
            (b"G\xc3\xa4T", b"/audio-meta", b"x", b"400"),
            (b"G\xffT", b"/audio-meta", b"x", b"400"),
            (b"GET", b"/audio-meta", b"\xff", b"400"),
            (b"GET", b"/audio-meta", b"b\xc3\xbchne.local", b"400"),
            (b"GET", b"/audio-meta", b"x" * 300, b"400"),
            (b"GET", b"/audio-meta", b"..", b"400"),
            (b"GET", b"/audio-meta", b"", b"200"),
            (b"GET", b"/\xff", b"x", b"400"),
            (b"BREW", b"/audio-meta", b"x", b"405"),
        ):
            line = self.answer(method, path, host).partition(b"\r\n")[0]
            self.assertIn(status, line, (method, path, host))

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.binary(min_size=1, max_size=8),
        st.binary(min_size=1, max_size=20),
        st.binary(max_size=10),
    )
    @example(b"GET", b"*", b"x")
    @example(b"GET", b"http://[", b"x")
    @example(b"CONNECT", b"x:1", b"")
    def test_anything(self, method: bytes, path: bytes, host: bytes) -> None:
        answer = self.answer(method, path, host)
        self.assertNotIn(b" 500 ", answer.partition(b"\r\n")[0])
        self.assertNotIn(b"Traceback", answer)


class Reading(Protocol):
    """Sends, and gathers until the other end closes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.received = b""
        self.lost: defer.Deferred[bytes] = defer.Deferred()
        self.enough: defer.Deferred[None] = defer.Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.enough.called:
            self.enough.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(self.received)


class SlowReading(Reading):
    """Takes a pause after each piece."""

    _pause: Any = None

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._pause is None:
            transport: Any = self.transport
            transport.pauseProducing()
            self._pause = reactor.callLater(0.01, self.go_on)  # type: ignore[attr-defined]

    def go_on(self) -> None:
        self._pause = None
        transport: Any = self.transport
        transport.resumeProducing()

    def connectionLost(self, reason: Any = None) -> None:
        if self._pause is not None:
            self._pause.cancel()
        super().connectionLost(reason)


class Real(unittest.TestCase):
    """On 127.0.0.1, with the real reactor."""

    def start(self, root: Resource, **options: Any) -> WebService:
        web = WebService(reactor, root, ["tcp:0:interface=127.0.0.1"], **options)
        web.startService()
        self.addCleanup(web.stopService)
        return web

    def connect(self, web: WebService, data: bytes) -> Any:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", web.ports[0].getHost().port)
        return connectProtocol(endpoint, Reading(data))

    @defer.inlineCallbacks
    def test_health(self) -> Any:
        """CON-40: degraded while the next connection would be refused."""
        web = self.start(Echo(), limits=AdmissionLimits(max_connections=1, exempt=("127.0.0.1",)))
        self.assertEqual(web.health().state, "healthy")
        client = yield self.connect(web, GET)
        yield client.enough
        health = web.health()
        self.assertEqual(health.state, "degraded")
        self.assertIn("all 1 connections are taken", health.reasons[0])
        self.assertEqual(health.details["max_connections"], 1)

    @defer.inlineCallbacks
    def test_health_without_ports(self) -> Any:
        """CON-40: a server that should listen and cannot is unhealthy; one that has handed its
        ports to a successor, or waits for its turn, is not."""
        waiting = WebService(reactor, Echo(), ["tcp:0:interface=127.0.0.1"])
        self.addCleanup(waiting.stopService)
        waiting.listens_at_start = False
        waiting.startService()
        self.assertEqual(waiting.health().state, "healthy")
        web = self.start(Echo())
        yield web.stop_listening()
        self.assertEqual(web.health().state, "healthy")
        nobodys = "tcp:0:interface=192.0.2.1"
        web._endpoints = [("tcp:0:interface=127.0.0.9", None), (nobodys, None)]
        self.assertRaises(WebError, web.listen_again)
        health = web.health()
        self.assertEqual((health.state, web.ports), ("unhealthy", []))
        self.assertIn("no port", health.reasons[0])
        web._endpoints = [("tcp:0:interface=127.0.0.1", None)]
        web.listen_again()
        self.assertEqual(web.health().state, "healthy")

    @defer.inlineCallbacks
    def test_other_limits(self) -> Any:
        """CON-2: while it runs; who is shut out stays so, and what refusals say is up to date."""
        near = AdmissionLimits(max_connections=1, exempt=("127.0.0.1",))
        web = self.start(Echo(), limits=near)
        for _ in range(near.per_minute + near.refusals):
            web.guard.judge("192.0.2.9")
        first = yield self.connect(web, GET)
        yield first.enough
        refused = yield self.connect(web, GET)
        self.assertIn(b"1 connections are open", (yield refused.lost))
        web.change_limits(AdmissionLimits(max_connections=2, exempt=("127.0.0.1",)))
        self.assertEqual(web.health().state, "healthy")
        self.assertEqual([one.address for one in web.blocked()], ["192.0.2.9"])
        second = yield self.connect(web, GET)
        yield second.enough
        self.assertIn(b"200 OK", second.received)
        refused = yield self.connect(web, GET)
        self.assertIn(b"2 connections are open", (yield refused.lost))

    @defer.inlineCallbacks
    def test_serves_and_stops(self) -> Any:
        web = self.start(Echo())
        client = yield self.connect(web, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        yield client.enough
        self.assertIn(b"200 OK", client.received)
        self.assertEqual(web.counters()["http_connections"], 1)
        yield web.stopService()
        yield client.lost
        self.assertEqual(web.ports, [])

    @defer.inlineCallbacks
    def test_slow_reader_gets_all(self) -> Any:
        """CON-50: an answer under way is sent to its end before the server has stopped."""
        tls = ssl.PrivateCertificate.loadPEM(self_signed("localhost")).options()
        at = "tcp:0:interface=127.0.0.1"
        for secure in (False, True):
            web = self.start(Large(), tls_endpoints=[at], tls=tls)
            port = web.ports[int(secure)].getHost().port
            endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
            if secure:
                endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", port, ssl.CertificateOptions())
            client = yield connectProtocol(endpoint, SlowReading(GET))
            yield client.enough
            yield web.site.all_answered(10)
            stopped = web.stopService()
            self.assertNoResult(stopped)
            self.assertLess(len(client.received), Large.SIZE // 2)
            self.assertGreater(len((yield client.lost)), Large.SIZE)
            yield stopped
            self.assertEqual(web.connections(), [])

    @defer.inlineCallbacks
    def test_who_reads_nothing_is_cut_off(self) -> Any:
        """CON-50: stopping has a bound, whatever a client does."""
        web = self.start(Large())
        client = yield self.connect(web, GET)
        yield client.enough
        client.transport.pauseProducing()
        web.closing_s = 0.2
        yield web.stopService()
        self.assertEqual(web.connections(), [])
        client.transport.resumeProducing()
        self.assertLess(len((yield client.lost)), Large.SIZE)

    @defer.inlineCallbacks
    def test_websocket_counts_until_it_is_closed(self) -> Any:
        """CON-2: a WebSocket that took over its connection still holds its place."""
        web = self.start(websocket_root(), limits=AdmissionLimits(max_connections=1))
        socket = yield self.connect(web, HANDSHAKE)
        yield socket.enough
        self.assertIn(b"101 Switching Protocols", socket.received)
        refused = yield self.connect(web, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"503", (yield refused.lost))
        socket.transport.loseConnection()
        yield socket.lost
        while web.counters()["http_connections"]:
            yield defer.ensureDeferred(a_turn())
        again = yield self.connect(web, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        yield again.enough
        self.assertIn(b"404", again.received)
        again.transport.loseConnection()
        yield again.lost

    @defer.inlineCallbacks
    def test_slow_ones_are_ended(self) -> Any:
        """CON-2: on real sockets: dribbled headers, dribbled bodies and silence end in time;
        a keep-alive connection and a WebSocket beside them do not."""
        times = Deadlines(first_byte_s=0.6, request_s=0.8, idle_s=30)
        web = self.start(websocket_root(), deadlines=times)
        socket = yield self.connect(web, HANDSHAKE)
        kept = yield self.connect(web, GET)
        yield socket.enough
        yield kept.enough
        silent = yield self.connect(web, b"")
        header = yield self.connect(web, b"GET / HTTP/1.1\r\n")
        body = yield self.connect(web, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
        dribble = LoopingCall(lambda: [one.transport.write(b"x") for one in (header, body)])
        dribble.start(0.05)
        self.addCleanup(lambda: dribble.running and dribble.stop())
        start = time.monotonic()
        heard = yield defer.gatherResults([silent.lost, header.lost, body.lost])
        dribble.stop()
        self.assertLess(time.monotonic() - start, 10)
        self.assertEqual(heard[0], b"")
        for answer in heard[1:]:
            self.assertIn(b"408 Request Timeout", answer)
        self.assertEqual(web.counters()["http_requests_late_total"], 3)
        kept.received = b""
        kept.enough = defer.Deferred()
        kept.transport.write(GET)
        yield kept.enough
        self.assertIn(b"404", kept.received)
        self.assertFalse(socket.lost.called)

    @defer.inlineCallbacks
    def test_rate(self) -> Any:
        """CON-30: the 11th in a minute hears 429 and when to come back; the abuser is blocked,
        listed and let in again; announced hosts are not limited."""
        web = self.start(Echo(), limits=AdmissionLimits(refusals=3))
        answers = []
        for _ in range(12):
            client = yield self.connect(web, GET.replace(b"1.1", b"1.0"))
            answers.append((yield client.lost))
        self.assertEqual([b"200 OK" in one for one in answers], [True] * 10 + [False] * 2)
        status, error = error_of(answers[10])
        self.assertEqual(status, b"HTTP/1.1 429 Too Many Requests")
        self.assertEqual(error["code"], "too_many_connections")
        retry = re.search(rb"Retry-After: (\d+)", answers[10])
        assert retry is not None
        self.assertIn(int(retry[1]), range(50, 61))
        with contextlib.suppress(ConnectError):  # reset before or after it knows it is connected
            client = yield self.connect(web, GET)
            self.assertEqual((yield client.lost), b"")
        (blocked,) = web.blocked()
        self.assertEqual(blocked.address, "127.0.0.1")
        self.assertGreater(blocked.remaining_s, 3500)
        counters = web.counters()
        self.assertEqual(counters["http_addresses_blocked"], 1)
        self.assertEqual(counters['http_connections_refused_total{reason="too_many"}'], 2)
        self.assertEqual(counters['http_connections_refused_total{reason="blocked"}'], 1)
        self.assertTrue(web.unblock("127.0.0.1"))
        self.assertFalse(web.unblock("127.0.0.1"))
        web.expect("127.0.0.1", 60.0)
        for _ in range(15):
            client = yield self.connect(web, GET.replace(b"1.1", b"1.0"))
            self.assertIn(b"200 OK", (yield client.lost))

    @defer.inlineCallbacks
    def test_connections_listed(self) -> Any:
        """CON-13: each with its peer, its age, its bytes and the kernel's round trip."""
        web = self.start(Echo())
        client = yield self.connect(web, GET)
        yield client.enough
        (one,) = web.connections()
        own = client.transport.getHost()
        self.assertEqual((one.host, one.port, one.secure), (own.host, own.port, False))
        self.assertEqual(one.bytes_received, len(GET))
        self.assertEqual(one.bytes_sent, len(client.received))
        self.assertTrue(0 <= one.idle_s <= one.age_s < 5)
        assert one.rtt_ms is not None
        self.assertTrue(0 < one.rtt_ms < 1000)
        self.assertEqual(one.retransmitted, 0.0)
        self.assertEqual(web.counters()["http_bytes_received_total"], len(GET))
        self.assertEqual(web.counters()["http_bytes_sent_total"], len(client.received))

    @defer.inlineCallbacks
    def test_tls(self) -> Any:
        """CON-32: a second group of endpoints speaks TLS, behind the same guard."""
        tls = ssl.PrivateCertificate.loadPEM(self_signed("localhost")).options()
        at = "tcp:0:interface=127.0.0.1"
        web = self.start(Echo(), tls_endpoints=[at], tls=tls, limits=AdmissionLimits(2))
        self.assertEqual(web.tls_ports, web.ports[1:])
        plain = yield self.connect(web, GET)
        yield plain.enough
        port = web.tls_ports[0].getHost().port
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", port, ssl.CertificateOptions())
        secure = yield connectProtocol(endpoint, Reading(GET))
        yield secure.enough
        self.assertIn(b"200 OK", secure.received)
        self.assertEqual([one.secure for one in web.connections()], [False, True])
        refused = yield connectProtocol(endpoint, Reading(GET))
        self.assertIn(b"503", (yield refused.lost))

    @defer.inlineCallbacks
    def test_tls_handshake_in_time(self) -> Any:
        """CON-32: who does not get on with the handshake is ended, by the same deadline."""
        tls = ssl.PrivateCertificate.loadPEM(self_signed("localhost")).options()
        at = "tcp:0:interface=127.0.0.1"
        times = Deadlines(first_byte_s=0.3)
        web = self.start(Echo(), tls_endpoints=[at], tls=tls, deadlines=times)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", web.tls_ports[0].getHost().port)
        client = yield connectProtocol(endpoint, Reading(b"\x16\x03\x01"))
        yield client.lost
        self.assertEqual(web.counters()["http_requests_late_total"], 1)

    @defer.inlineCallbacks
    def test_stop_listening(self) -> Any:
        """CON-51: the port goes to a successor, what is open stays open; and back again."""
        web = self.start(Echo())
        client = yield self.connect(web, GET)
        yield client.enough
        at = f"tcp:{web.ports[0].getHost().port}:interface=127.0.0.1"
        web._endpoints = [(at, None)]
        successor = WebService(reactor, Echo(), [at], share_port=True)
        successor.startService()
        self.addCleanup(successor.stopService)
        yield web.stop_listening()
        for _ in range(5):
            other = yield self.connect(successor, GET)
            yield other.enough
        self.assertEqual(len(successor.connections()), 5)
        client.enough = defer.Deferred()
        client.transport.write(GET)
        yield client.enough
        self.assertFalse(client.lost.called)
        web.listen_again()
        web.listen_again()
        yield successor.stop_listening()
        other = yield self.connect(web, GET)
        yield other.enough
        self.assertEqual(len(web.connections()), 2)

    @defer.inlineCallbacks
    def test_multipath(self) -> Any:
        """CON-1: as an option; where the kernel has none, plain TCP and a line in the log."""
        for available in (True, False):
            if not available:
                self.patch(tcp_protocol, "mptcp_available", lambda: False)
                self.patch(service, "mptcp_available", lambda: False)
            web = self.start(Echo(), mptcp=True)
            client = yield self.connect(web, GET)
            yield client.enough
            self.assertIn(b"200 OK", client.received)
            client.transport.loseConnection()
            yield client.lost

    def test_port_taken(self) -> None:
        """One line that says what, why and what to do."""
        web = self.start(Echo())
        taken = web.ports[0].getHost().port
        other = WebService(reactor, Echo(), [f"tcp:{taken}:interface=127.0.0.1"])
        error = str(self.assertRaises(WebError, other.startService))
        self.assertEqual(len(error.splitlines()), 1)
        for words in (f"127.0.0.1:{taken}", "in use", "--http"):
            self.assertIn(words, error)

    def test_no_endpoint(self) -> None:
        for text in ("nonsense:1", "tcp:", "tcp:x", ""):
            web = WebService(reactor, Echo(), [text])
            error = str(self.assertRaises(WebError, web.startService))
            self.assertIn(repr(text), error)

    def test_endpoint_without_a_port(self) -> None:
        """A file socket hides where listeners are, and no page can be reached there."""
        web = WebService(reactor, Echo(), ["unix:socket"])
        error = str(self.assertRaises(WebError, web.startService))
        self.assertIn("no TCP port", error)
        self.assertEqual(web.ports, [])


async def a_turn() -> None:
    """One turn of the reactor."""
    turn: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0, turn.callback, None)  # type: ignore[attr-defined]
    await turn
