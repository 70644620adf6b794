"""STR flow 2, 4, 6, CLK-1: both shells over real TCP, the server as a resource beside Klein."""

from __future__ import annotations

import json

from klein import Klein
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate, optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.trial import unittest
from twisted.web.client import Agent, readBody
from twisted.web.resource import Resource
from twisted.web.server import Site

from protocols.control import events, messages
from protocols.control.client_session import ClientSession
from protocols.control.limits import ServerLimits
from protocols.control.protocol import (
    ControlClientFactory,
    ControlClientProtocol,
    ControlConnectError,
    ControlServerFactory,
    ControlServerProtocol,
    connect,
)
from tests.support.certificate import self_signed
from tests.support.websocket import HANDSHAKE, TEXT, frame

NO_PONG = "no answer to pings for 2 s"


class Beside(Resource):
    """``/ws`` is ours, all else is Klein's."""

    def __init__(self, ws, klein):
        super().__init__()
        self.ws, self.klein = ws, klein

    def getChildWithDefault(self, path, request):
        if path == b"ws":
            return self.ws
        request.postpath.insert(0, request.prepath.pop())
        return self.klein


class Deaf(Protocol):
    """Shakes hands by hand and says hello; reading is the test's business."""

    def connectionMade(self):
        self.transport.write(HANDSHAKE + frame(TEXT, b'{"type":"hello"}'))


class LoopbackTests(unittest.TestCase):
    @inlineCallbacks
    def setUp(self):
        app = Klein()
        app.route("/page")(lambda request: b"a page")
        self.seen = []
        self.factory = ControlServerFactory(self.serve, reactor=reactor, close_timeout_s=1.0)
        site = Site(Beside(self.factory.web_resource(), app.resource()))
        self.port = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
        self.base = f"127.0.0.1:{self.port.getHost().port}"
        self.heard = []
        self.expected = {}

    @inlineCallbacks
    def tearDown(self):
        yield self.factory.close_all(1001, "test over")
        yield self.port.stopListening()

    def serve(self, connection, event):
        self.seen.append(event)
        if isinstance(event, events.Joined):
            connection.client_id = "c1"
            connection.send(messages.Welcome("c1", "token", messages.ServerInfo("x", "1"), 10.0))
        elif isinstance(event, events.Configured):
            group = messages.StreamGroup(7, 97, 5004, (1, 2))
            connection.send(
                messages.Stream(
                    *("c1", "opus", 48000, 48000, 5.0, "bundle", 5004, 5004, "/sdp/c1.sdp"),
                    groups=(group,),
                )
            )

    def listen(self, client, event):
        self.heard.append(event)
        waiting = self.expected.pop(type(event), None)
        if waiting is not None:
            waiting.callback(event)

    def wait_for(self, kind):
        waiting = self.expected[kind] = Deferred()
        return waiting.addTimeout(10, reactor)

    def open(self, hello=None):
        factory = ControlClientFactory(
            f"ws://{self.base}/ws",
            self.listen,
            reactor=reactor,
            make_session=lambda: ClientSession(hello or messages.Hello(name="Änne’s 🎧")),
        )
        return connect(factory)

    @inlineCallbacks
    def test_a_whole_session(self):
        """STR-5, STR-8, CLK-1: hello, configuration, stream, clock, bye."""
        clock, stream = self.wait_for(events.ClockUpdated), self.wait_for(events.StreamStarted)
        client = yield self.open()
        self.assertEqual(client.host, "127.0.0.1")
        client.configure(messages.ClientConfig((messages.ChannelRequest(1, "🥁"),), udp_port=5004))
        yield stream
        update = yield clock
        self.assertLess(abs(update.offset_ms), 100)
        (connection,) = self.factory.connections
        self.assertEqual((connection.host, connection.client_id), ("127.0.0.1", "c1"))
        over = self.wait_for(events.SessionClosed)
        client.close("enough")
        closed = yield over
        self.assertEqual((closed.cause, closed.code), ("closed", 1000))
        yield self.gone()
        self.assertEqual(self.seen[0], events.Joined(messages.Hello(name="Änne’s 🎧")))
        self.assertEqual(self.seen[1].config.channels[0].name, "🥁")
        self.assertEqual(self.seen[-1], events.SessionClosed("bye", 1000, "enough"))

    @inlineCallbacks
    def test_leaving_is_clean(self):
        """Bye and close go together, and both ends see the close answered."""
        ends = []
        for shell in (ControlClientProtocol, ControlServerProtocol):

            def closed(this, clean, code, reason, whole=shell.onClose):
                ends.append((clean, code))
                whole(this, clean, code, reason)

            self.patch(shell, "onClose", closed)
        client = yield self.open()
        gone = Deferred()
        client.when_gone(lambda: gone.callback(None))
        client.close()
        yield gone.addTimeout(10, reactor)
        yield self.gone()
        self.assertEqual(ends, [(True, 1000), (True, 1000)])

    @inlineCallbacks
    def gone(self):
        for _ in range(500):
            if not self.factory.connections:
                return
            yield deferLater(reactor, 0.01)
        self.fail("the connection stays")

    @inlineCallbacks
    def test_the_server_closes_all(self):
        over = self.wait_for(events.SessionClosed)
        yield self.open()
        yield self.factory.close_all(1001, "maintenance")
        closed = yield over
        self.assertEqual(closed, events.SessionClosed("lost", 1001, "maintenance"))

    @inlineCallbacks
    def test_an_aborted_connection_is_lost(self):
        """STR-5: the owner can tell a loss from a bye."""
        client = yield self.open()
        client.abort()
        yield self.gone()
        self.assertEqual(self.seen[-1].cause, "lost")

    @inlineCallbacks
    def test_a_listener_that_stops_reading_disturbs_nobody(self):
        """It costs a bounded amount of memory, then its connection; the others hear everything."""
        deaf = yield TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port).connect(
            Factory.forProtocol(Deaf)
        )
        while not self.factory.connections:
            yield deferLater(reactor, 0.01)
        (connection,) = self.factory.connections
        other = yield self.open()
        deaf.transport.pauseProducing()
        news = messages.Event("config_changed", "x" * 50_000)
        most = sent = 0
        while connection in self.factory.connections:
            most = max(most, connection.queued_bytes)
            for each in list(self.factory.connections):
                sent += each.send(news) and each is not connection
            yield deferLater(reactor, 0)
        self.assertGreater(most, 0, "the queue was used")
        self.assertLessEqual(most, 256 * 1024)
        while sum(isinstance(event, events.ServerEvent) for event in self.heard) < sent:
            yield deferLater(reactor, 0.01)
        self.assertIn("abuse", [getattr(event, "cause", None) for event in self.seen])
        self.assertEqual(len(self.factory.connections), 1)
        deaf.transport.abortConnection()
        over = self.wait_for(events.SessionClosed)
        other.close()
        yield over

    @inlineCallbacks
    def test_who_answers_pings_stays(self):
        """CON-10, CON-13: a real client answers; one that only talks is let go."""
        self.factory.limits = ServerLimits(ping_interval_s=0.3, pong_timeout_s=2.0)
        client = yield self.open()
        (kept,) = self.factory.connections
        talker = yield TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port).connect(
            Factory.forProtocol(Deaf)
        )
        while not any(getattr(event, "cause", None) == "silent" for event in self.seen):
            talker.transport.write(frame(TEXT, b'{"type":"heartbeat"}'))
            yield deferLater(reactor, 0.05)
        self.assertEqual(self.seen[-1], events.SessionClosed("silent", 1008, NO_PONG))
        quality = kept.quality(self.factory.seconds())
        self.assertLess(quality.rtt_ms, 1000)
        self.assertGreater(quality.rtt_ms, 0)
        self.assertLess(quality.loss, 1.0)
        over = self.wait_for(events.SessionClosed)
        client.close()
        yield over

    @inlineCallbacks
    def test_large_messages_are_compressed_each_way(self):
        """CON-20: over TCP, between our own two ends."""
        client = yield self.open()
        while not any(isinstance(event, events.Welcomed) for event in self.heard):
            yield deferLater(reactor, 0.01)
        (connection,) = self.factory.connections
        news = messages.Event("custom_message", "All musicians to the stage, please. " * 2000)
        before = connection.quality(0.0)
        told = self.wait_for(events.ServerEvent)
        connection.send(news)
        rows = tuple(messages.ChannelRequest(number, "x" * 250) for number in range(1, 65))
        client.configure(messages.ClientConfig(rows))
        self.assertEqual((yield told), events.ServerEvent(news))
        while not any(isinstance(event, events.Configured) for event in self.seen):
            yield deferLater(reactor, 0.01)
        self.assertIn(events.Configured(messages.ClientConfig(rows)), self.seen)
        after = connection.quality(0.0)
        self.assertLess(after.bytes_sent - before.bytes_sent, 3_000, "72,000 bytes as they are")
        self.assertLess(after.bytes_received - before.bytes_received, 3_000, "17,000 as they are")
        over = self.wait_for(events.SessionClosed)
        client.close()
        yield over

    @inlineCallbacks
    def test_klein_beside_and_no_upgrade(self):
        agent = Agent(reactor)
        page = yield agent.request(b"GET", f"http://{self.base}/page".encode())
        self.assertEqual((yield readBody(page)), b"a page")
        refused = yield agent.request(b"GET", f"http://{self.base}/ws".encode())
        self.assertEqual(refused.code, 426)
        body = json.loads((yield readBody(refused)))
        self.assertEqual(body["error"]["code"], "bad_handshake")

    @inlineCallbacks
    def test_no_websocket_there(self):
        factory = ControlClientFactory(f"ws://{self.base}/page", self.listen, reactor=reactor)
        yield self.assertFailure(connect(factory), ControlConnectError)
        yield deferLater(reactor, 0.05)
        self.assertEqual(self.heard, [])


class TlsTests(unittest.TestCase):
    @inlineCallbacks
    def test_wss(self):
        """CON-32, the transport of it: the same resource behind TLS."""
        certificate = PrivateCertificate.loadPEM(self_signed("localhost"))
        told, closed = [], Deferred()
        server = ControlServerFactory(lambda _, event: told.append(event), reactor=reactor)
        ws = server.web_resource()
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = yield wrapServerTLS(certificate.options(), endpoint).listen(Site(Beside(ws, ws)))
        number = port.getHost().port
        wire = wrapClientTLS(
            optionsForClientTLS("localhost", trustRoot=certificate),
            TCP4ClientEndpoint(reactor, "127.0.0.1", number),
        )

        def heard(_, event):
            if isinstance(event, events.SessionClosed):
                closed.callback(event)

        url = f"wss://localhost:{number}/ws"
        client = yield connect(ControlClientFactory(url, heard, reactor=reactor), wire)
        while not told:
            yield deferLater(reactor, 0.01)
        (connection,) = server.connections
        self.assertEqual((connection.host, told), ("127.0.0.1", [events.Joined(messages.Hello())]))
        client.close()
        self.assertEqual((yield closed).cause, "closed")
        yield server.close_all()
        yield port.stopListening()
