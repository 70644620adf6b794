"""CON-2: requests must be complete in time; what they lead to is under no deadline."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import ssl
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial import unittest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from m32net.web.site import BoundedSite, Deadlines, Phase
from protocols.tcp.admission import AdmissionLimits
from protocols.tcp.protocol import Guard, GuardedFactory
from tests.support.certificate import self_signed

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT = b"\x81\x85\0\0\0\0hello"
"""A WebSocket text message of a client (RFC 6455 section 5.7), with a mask of zeros."""


class Root(Resource):
    """``/`` answers at once, ``/later`` when told, ``/ws`` echoes by WebSocket."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Request] = []
        self.arguments: list[Any] = []
        self.putChild(b"", self)
        echoes = WebSocketServerFactory()
        echoes.protocol = EchoSocket
        self.putChild(b"ws", WebSocketResource(echoes))

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self

    def render(self, request: Request) -> Any:
        if request.path == b"/later":
            self.waiting.append(request)
            return NOT_DONE_YET
        if request.path == b"/often":
            request.setResponseCode(429)
            return b"not again"
        assert request.content is not None
        self.arguments.append(request.args)
        return b"%d bytes" % len(request.content.read())


class EchoSocket(WebSocketServerProtocol):  # type: ignore[misc]
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


class Reading(Protocol):
    """Keeps what it hears."""

    heard = b""

    def dataReceived(self, data: bytes) -> None:
        self.heard += data


class Connected:
    """One connection to the site in memory; ``feed`` gives what is answered."""

    def __init__(self, factory: Any) -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.5", 4000))
        self.transport.abortConnection = self.abort  # type: ignore[method-assign]
        self.protocol = factory.buildProtocol(self.transport.getPeer())
        self.protocol.makeConnection(self.transport)
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True
        self.transport.loseConnection()

    def feed(self, data: bytes) -> bytes:
        self.transport.clear()
        self.protocol.dataReceived(data)
        return self.transport.value()

    @property
    def closing(self) -> bool:
        return self.transport.disconnecting


class DeadlineCase(unittest.SynchronousTestCase):
    times = Deadlines()
    make_clock: type[Clock] = Clock

    def setUp(self) -> None:
        self.opened: list[Connected] = []
        self.addCleanup(self.lose_all)
        self.begin()

    def begin(self) -> None:
        """Everything anew."""
        self.lose_all()
        self.clock = self.make_clock()
        self.root = Root()
        self.site = BoundedSite(self.root, self.clock)
        guard = Guard(self.clock, AdmissionLimits(10**6, per_minute=10**6))
        self.factory = GuardedFactory(self.site, guard)

    def lose_all(self) -> None:
        if not self.opened:
            return
        while self.opened:
            self.opened.pop().protocol.connectionLost(Failure(ConnectionDone()))
        waiting = [c for c in self.clock.getDelayedCalls() if "BoundedChannel" in repr(c)]
        self.assertEqual(waiting, [], "timers outlive their connections")

    def open(self) -> Connected:
        self.opened.append(Connected(self.factory))
        return self.opened[-1]

    def dribble(self, line: Connected, data: bytes, every_s: float) -> float:
        """Feed byte by byte until the server has enough; how many seconds that took."""
        start = self.clock.seconds()
        for n in range(len(data)):
            if line.closing:
                break
            line.protocol.dataReceived(data[n : n + 1])
            self.clock.advance(every_s)
        return self.clock.seconds() - start


class Costly(DeadlineCase):
    def test_forms_are_not_taken_apart(self) -> None:
        """CON-2: no route takes them, and Twisted needs seconds for 1 MiB of ampersands."""
        for kind, body in (
            (b"application/x-www-form-urlencoded", b"a=1&b=2"),
            (b"multipart/form-data; boundary=x", b"--x\r\n\r\n1\r\n--x--\r\n"),
        ):
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
            answer = self.open().feed(head % (kind, len(body)) + body)
            self.assertIn(b"%d bytes" % len(body), answer)
            self.assertEqual(self.root.arguments.pop(), {})

    def test_a_length_of_thousands_of_digits(self) -> None:
        """CON-2: 400 wherever it stands; Python refuses to read it as a number."""
        for lines in (
            [b"Content-Length: " + b"9" * 5000],
            [b"Content-Length:" + b"9" * 20, b"X: y"],
        ):
            line = self.open()
            answer = line.feed(
                b"POST / HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
            )
            self.assertIn(b"400 Bad Request", answer)
            self.assertEqual(answer.count(b"HTTP/1.1"), 1)
            self.assertTrue(line.closing)
        self.assertEqual(self.site.refused[400], 2)


class Slow(DeadlineCase):
    def test_silent(self) -> None:
        """CON-2: who connects and says nothing is closed after 10 s, without an answer."""
        line = self.open()
        self.clock.advance(self.times.first_byte_s - 0.01)
        self.assertFalse(line.closing)
        self.clock.advance(0.01)
        self.assertTrue(line.closing)
        self.assertEqual(line.transport.value(), b"")
        self.assertEqual(self.site.late, 1)

    def test_header_dribbled(self) -> None:
        """CON-2: Slowloris: a header a byte a second is ended 20 s after its first byte, by 408."""
        line = self.open()
        self.clock.advance(5)
        took = self.dribble(line, b"GET / HTTP/1.1\r\nX: " + b"y" * 100, 1.0)
        self.assertEqual(took, self.times.request_s)
        self.assertIn(b"408 Request Timeout", line.transport.value())
        self.assertIn(b'"too_slow"', line.transport.value())
        self.assertEqual(self.site.refused, {408: 1, 413: 0, 429: 0})

    def test_body_dribbled(self) -> None:
        """CON-2: the same with a body, announced or in chunks."""
        for head in (b"Content-Length: 500", b"Transfer-Encoding: chunked"):
            line = self.open()
            line.feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
            took = self.dribble(line, b"1\r\nx\r\n" * 50, 0.5)
            self.assertEqual(took, self.times.request_s)
            self.assertIn(b"408", line.transport.value())

    def test_empty_lines(self) -> None:
        """CON-2: an empty line before a request is allowed (RFC 9112 section 2.2), not for ever."""
        line = self.open()
        line.feed(b"\r\n")
        self.clock.advance(self.times.request_s)
        self.assertTrue(line.closing)

    def test_second_request_dribbled(self) -> None:
        """CON-2: on a connection that has proved well, too."""
        line = self.open()
        self.assertIn(b"200 OK", line.feed(GET))
        self.clock.advance(50)
        self.assertEqual(self.dribble(line, GET[:20] + b"/" * 50, 1.0), self.times.request_s)
        self.assertIn(b"408", line.transport.value())

    def test_dribbled_behind_a_request(self) -> None:
        """CON-2: what comes while another request is answered counts from its answer on."""
        line = self.open()
        line.feed(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n" + GET[:12])
        self.clock.advance(300)
        self.assertFalse(line.closing)
        self.root.waiting[0].finish()
        self.clock.advance(self.times.request_s - 1)
        self.assertFalse(line.closing)
        self.assertIn(b"200 OK", line.feed(GET[12:]))
        line.feed(b"G")
        self.clock.advance(self.times.request_s)
        self.assertTrue(line.closing)

    def test_who_does_not_take_the_end(self) -> None:
        """CON-2: a peer that leaves the connection open or reads nothing is cut off."""
        line = self.open()
        line.feed(b"GET")
        self.clock.advance(self.times.request_s)
        self.assertFalse(line.aborted)
        self.clock.advance(5)
        self.assertTrue(line.aborted)
        line = self.open()
        line.feed(GET.replace(b"1.1", b"1.0"))
        self.assertTrue(line.closing)
        self.clock.advance(self.times.closing_s)
        self.assertTrue(line.aborted)


class Well(DeadlineCase):
    def test_keep_alive(self) -> None:
        """CON-2: many requests on one connection, up to a minute apart."""
        line = self.open()
        for _ in range(20):
            self.assertIn(b"200 OK", line.feed(GET))
            self.clock.advance(self.times.idle_s - 1)
            self.assertFalse(line.closing)
        self.clock.advance(2)
        self.assertTrue(line.closing)
        self.assertEqual(self.site.late, 0)

    def test_pipelined(self) -> None:
        """CON-2: requests at once are answered in turn, and then it is idle, not late."""
        line = self.open()
        answers = line.feed(GET * 5).count(b"200 OK")
        self.clock.advance(0)
        self.assertEqual((answers, line.transport.value().count(b"200 OK")), (1, 5))
        channel = line.protocol.wrappedProtocol
        self.assertIs(channel.phase, Phase.IDLE)
        self.clock.advance(self.times.idle_s - 1)
        self.assertFalse(line.closing)

    def test_refused_by_its_resource(self) -> None:
        """CON-2: what a resource refuses as too much is counted like what the site refuses."""
        self.assertIn(b" 429 ", self.open().feed(b"GET /often HTTP/1.1\r\nHost: x\r\n\r\n"))
        self.assertEqual(self.site.refused, {408: 0, 413: 0, 429: 1})

    def test_slow_but_in_time(self) -> None:
        """CON-2: a body over 19 s arrives."""
        line = self.open()
        line.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 38\r\n\r\n")
        self.dribble(line, b"x" * 38, 0.5)
        self.assertIn(b"38 bytes", line.transport.value())

    def test_an_answer_may_take_long(self) -> None:
        """CON-2: the deadline is for the client, not for the server."""
        line = self.open()
        line.feed(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
        self.clock.advance(1000)
        self.assertFalse(line.closing)
        self.root.waiting[0].write(b"at last")
        self.root.waiting[0].finish()
        self.assertIn(b"at last", line.transport.value())

    def test_websocket(self) -> None:
        """CON-2: a WebSocket on the same port lives on, silent or not."""
        line = self.open()
        self.assertIn(b"101 Switching", line.feed(UPGRADE))
        for _ in range(5):
            self.clock.advance(3600)
            self.assertEqual(line.feed(TEXT), b"\x81\x05hello")
        self.assertFalse(line.closing)
        self.assertEqual(self.site.late, 0)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"G", GET, GET[:9], GET[9:], b"\r\n", b"\xff", UPGRADE, TEXT]),
                st.floats(0, 70, allow_nan=False),
            ),
            max_size=30,
        )
    )
    def test_any_order(self, steps: list[tuple[bytes, float]]) -> None:
        """CON-2: whatever comes when: nothing raises, and nobody reads for longer than allowed."""
        self.begin()
        line = self.open()
        channel = line.protocol.wrappedProtocol
        for data, gap in steps:
            if line.closing:
                break
            line.protocol.dataReceived(data)
            if line.protocol.wrappedProtocol is channel and not line.closing:
                reading = channel.phase is Phase.READING
                self.assertEqual(reading, channel._deadline is not None)
            self.clock.advance(gap)
        self.clock.advance(1)


class Turns(Clock):
    """Like a reactor, and unlike ``Clock``: what is to be called at once is called a turn later."""

    def callLater(self, when: float, *what: Any, **named: Any) -> Any:
        return super().callLater(max(when, 1e-6), *what, **named)

    def turn(self) -> None:
        self.advance(1e-6)


class OneByOne(DeadlineCase):
    """Requests that come together."""

    make_clock = Turns
    clock: Turns

    def test_one_in_a_turn(self) -> None:
        """CON-2: many at once: one is answered in a turn, urgent work comes between them, and
        nothing more is read until all have been."""
        between: list[int] = []
        self.site.between = lambda: between.append(line.transport.value().count(b"200 OK"))
        line = self.open()
        line.protocol.dataReceived(GET * 20 + GET[:5])
        for answered in range(1, 20):
            self.assertEqual(line.transport.value().count(b"200 OK"), answered)
            self.assertEqual(line.transport.producerState, "paused")
            self.clock.turn()
        self.clock.turn()
        self.assertEqual(between, [*range(2, 21), 20])
        self.assertEqual(line.transport.producerState, "producing")
        self.assertIn(b"200 OK", line.feed(GET[5:]))

    def test_behind_one_that_waits(self) -> None:
        """CON-2: what has come behind an answer that took long is answered in turns, too."""
        line = self.open()
        line.protocol.dataReceived(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 3)
        self.clock.turn()
        self.root.waiting[0].finish()
        for answered in range(1, 5):
            self.assertEqual(line.transport.value().count(b"200 OK"), answered)
            self.clock.turn()

    def test_answers_that_nobody_takes(self) -> None:
        """CON-21: who sends requests and takes no answers has no more of them answered."""
        line = self.open()
        line.protocol.dataReceived(GET * 3)
        assert line.transport.producer is not None
        line.transport.producer.pauseProducing()
        for _ in range(5):
            self.clock.advance(1)
        self.assertEqual(line.transport.value().count(b"200 OK"), 1)
        line.transport.producer.resumeProducing()
        self.assertEqual(line.transport.producerState, "paused")
        for _ in range(5):
            self.clock.turn()
        self.assertEqual(line.transport.value().count(b"200 OK"), 3)
        self.assertEqual(line.transport.producerState, "producing")

    def test_upgrade_behind_requests(self) -> None:
        """CON-2: a WebSocket that is asked for behind other requests is opened in its turn."""
        line = self.open()
        line.protocol.dataReceived(GET * 2 + UPGRADE)
        for _ in range(4):
            self.clock.turn()
        self.assertEqual(line.transport.value().count(b"200 OK"), 2)
        self.assertIn(b"101 Switching", line.transport.value())
        self.assertEqual(line.feed(TEXT), b"\x81\x05hello")
        self.assertEqual(line.transport.producerState, "producing")

    def test_gone_before_its_turn(self) -> None:
        """CON-2: nothing is answered to who has left, and no timer is left (see lose_all)."""
        line = self.open()
        line.protocol.dataReceived(GET * 5)
        self.lose_all()
        self.clock.advance(1)
        self.assertEqual(line.transport.value().count(b"200 OK"), 1)

    def test_too_fast(self) -> None:
        """CON-2: more than 200 requests at once, 50 a second beyond: 429, closed, counted."""
        line = self.open()
        line.protocol.dataReceived(GET * 300)
        turns = 0
        while not line.closing:
            self.clock.turn()
            turns += 1
        answers = line.transport.value()
        self.assertEqual((turns, answers.count(b" 200 OK")), (200, 200))
        self.assertIn(b'"too_many_requests"', answers[answers.index(b"HTTP/1.1 429") :])
        self.assertEqual(self.site.refused[429], 1)
        self.assertEqual(line.feed(GET), b"")
        line = self.open()
        for _ in range(500):
            self.assertIn(b"200 OK", line.feed(GET))
            self.clock.advance(0.02)


class UnderTls(DeadlineCase):
    """CON-2, CON-32: handshakes count as silence."""

    def setUp(self) -> None:
        super().setUp()
        certificate = ssl.PrivateCertificate.loadPEM(self_signed("localhost"))
        self.factory = self.factory.secured(certificate.options())

    def handshake(self) -> tuple[Connected, Any, StringTransport]:
        """A connection, and a client of TLS with the transport it writes to."""
        line = self.open()
        client_side = StringTransport()
        wrapped = TLSMemoryBIOFactory(
            ssl.CertificateOptions(), True, Factory.forProtocol(Reading), self.clock
        )
        client = wrapped.buildProtocol(None)
        client.makeConnection(client_side)
        return line, client, client_side

    def pump(self, line: Connected, client: Any, client_side: StringTransport) -> None:
        for _ in range(20):
            self.clock.advance(0)
            for transport, other in ((client_side, line.protocol), (line.transport, client)):
                data = transport.value()
                transport.clear()
                if data:
                    other.dataReceived(data)

    def test_dribbled(self) -> None:
        """CON-32: a ClientHello a byte every 125 ms is ended 10 s after the connection."""
        line, _, client_side = self.handshake()
        took = self.dribble(line, client_side.value()[:150], 0.125)
        self.assertEqual(took, self.times.first_byte_s)
        self.assertTrue(line.aborted)

    def test_silent_after_it(self) -> None:
        """CON-32: with TLS established, the request still has to begin in time."""
        line, client, client_side = self.handshake()
        self.pump(line, client, client_side)
        self.clock.advance(self.times.first_byte_s)
        self.assertEqual(self.site.late, 1)
        self.clock.advance(5)
        self.assertTrue(line.aborted)

    def test_answered(self) -> None:
        """CON-32: requests in TLS; who says the end of TLS and waits for ours is not waited for."""
        line, client, client_side = self.handshake()
        client.write(GET.replace(b"1.1", b"1.0"))
        self.pump(line, client, client_side)
        self.assertIn(b"200 OK", client.wrappedProtocol.heard)
        self.clock.advance(self.times.closing_s)
        self.assertTrue(line.closing)

    def test_websocket(self) -> None:
        """CON-32: wss on the same port lives on."""
        line, client, client_side = self.handshake()
        client.write(UPGRADE)
        self.pump(line, client, client_side)
        self.assertIn(b"101 Switching", client.wrappedProtocol.heard)
        self.clock.advance(5000)
        client.write(TEXT)
        self.pump(line, client, client_side)
        self.assertIn(b"\x81\x05hello", client.wrappedProtocol.heard)
        self.assertFalse(line.closing)


class Stopping(DeadlineCase):
    """CON-50: what is under way gets its answer before the server ends."""

    LATER = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"

    def test_nothing_under_way(self) -> None:
        self.open().feed(GET)
        self.successResultOf(self.site.all_answered(10))

    def test_waits_for_the_answer(self) -> None:
        line = self.open()
        line.feed(self.LATER)
        done = self.site.all_answered(10)
        self.clock.advance(3)
        self.assertNoResult(done)
        self.root.waiting[0].finish()
        self.successResultOf(done)

    def test_who_has_gone_waits_no_more(self) -> None:
        self.open().feed(self.LATER)
        done = self.site.all_answered(10)
        self.lose_all()
        self.successResultOf(done)

    def test_not_for_ever(self) -> None:
        self.open().feed(self.LATER)
        first, second = self.site.all_answered(10), self.site.all_answered(20)
        self.clock.advance(10)
        self.successResultOf(first)
        self.assertNoResult(second)
        self.root.waiting[0].finish()
        self.successResultOf(second)

    def test_a_websocket_is_no_request(self) -> None:
        """Its end is told by close_all; here it would never be heard of."""
        self.open().feed(UPGRADE)
        self.successResultOf(self.site.all_answered(10))
        self.assertEqual(self.site.answering, set())
