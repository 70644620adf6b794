"""CON-32: https and wss by a CA of one's own; what is wrong is one line that says what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from autobahn.twisted.resource import WebSocketResource
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.trial import unittest
from twisted.web.resource import Resource
from twisted.web.server import Site

from m32net.listener.address import ServerAddress
from m32net.listener.link import Means, ServerLink
from m32net.listener.server_api import Trust, TrustError, http_client
from protocols.control.protocol import ControlServerFactory
from tests.support.certificate import self_signed


class Meta(Resource):
    """``/audio-meta``; everything else is not there."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return b'{"channels":[{"id":7}]}'


class Counting(Site):
    """Counts the connections it accepts."""

    accepted = 0

    def buildProtocol(self, addr: Any) -> Any:
        self.accepted += 1
        return super().buildProtocol(addr)


class TlsCase(unittest.TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.addCleanup(shutil.rmtree, self.directory)

    def serve(self, name: str = "127.0.0.1") -> int:
        """A server's WebSocket and REST with a certificate of its own for ``name``."""
        root = Resource()
        factory = ControlServerFactory(lambda connection, event: None, reactor=reactor)
        root.putChild(b"ws", WebSocketResource(factory))
        root.putChild(b"audio-meta", Meta())
        self.site = Counting(root, reactor=reactor)
        pem = self_signed(name)
        (self.directory / "ca.pem").write_bytes(pem[pem.index(b"-----BEGIN CERT") :])
        options = ssl.PrivateCertificate.loadPEM(pem).options()
        port = reactor.listenSSL(0, self.site, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return port.getHost().port

    def trust(self) -> Trust:
        return Trust.load(self.directory / "ca.pem")

    def link(self, port: int, trust: Trust | None, host: str = "127.0.0.1") -> ServerLink:
        http = http_client(reactor, trust=trust)
        self.addCleanup(http.args[1]._pool.closeCachedConnections)
        self.said: list[str] = []
        means = Means(reactor, http, trust=trust, tell=self.said.append)
        return ServerLink(means, ServerAddress(host, port, secure=True))

    def opened(self, link: ServerLink) -> Deferred[str]:
        """Empty once the WebSocket is open, or why it is not."""
        done: Deferred[str] = Deferred()
        link.open(lambda client, event: None, lambda: done.callback(""), done.callback)
        return done

    def learned(self, link: ServerLink) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        link.learn(done.callback)
        return done


class TrustedTest(TlsCase):
    @inlineCallbacks
    def test_by_a_ca_of_ones_own(self) -> Any:
        """By address and by name, the WebSocket and REST."""
        for name in ("127.0.0.1", "localhost"):
            link = self.link(self.serve(name), self.trust(), name)
            self.assertEqual((yield self.opened(link)), "")
            yield self.learned(link)
            self.assertEqual(link.meta.enabled, (7,))
            yield link.close("bye")

    @inlineCallbacks
    def test_few_connections(self) -> Any:
        """CON-30: one for the WebSocket, one for all of REST, however often it is asked."""
        link = self.link(self.serve(), self.trust())
        yield self.opened(link)
        for _ in range(5):
            yield self.learned(link)
        self.assertEqual(self.site.accepted, 2)
        yield link.close("bye")


class RefusedTest(TlsCase):
    @inlineCallbacks
    def test_unknown_ca(self) -> Any:
        link = self.link(self.serve(), None)
        reason = yield self.opened(link)
        self.assertIn("is not trusted here; save its CA (/ca.pem", reason)
        self.assertIn("--ca FILE", reason)
        self.assertTrue(link.untrusted)
        yield self.learned(link)
        self.assertIn("--ca FILE", self.said[0])

    @inlineCallbacks
    def test_another_ca(self) -> Any:
        other = self.directory / "other.pem"
        pem = self_signed("127.0.0.1")
        other.write_bytes(pem[pem.index(b"-----BEGIN CERT") :])
        reason = yield self.opened(self.link(self.serve(), Trust.load(other)))
        self.assertIn(f"is not signed by {other}, or is out of date", reason)

    @inlineCallbacks
    def test_another_name(self) -> Any:
        link = self.link(self.serve("stage.local"), self.trust())
        reason = yield self.opened(link)
        self.assertIn("certificate is not for 127.0.0.1", reason)
        self.assertTrue(link.untrusted)
        yield self.learned(link)
        self.assertIn("certificate is not for 127.0.0.1", self.said[0])

    @inlineCallbacks
    def test_no_tls_on_this_port(self) -> Any:
        class Plain(Protocol):
            def connectionMade(self) -> None:
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                self.transport.loseConnection()

        port = reactor.listenTCP(0, Factory.forProtocol(Plain), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        reason = yield self.opened(self.link(port.getHost().port, None))
        self.assertIn("there is no TLS on this port", reason)

    @inlineCallbacks
    def test_nobody_there(self) -> Any:
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = port.getHost().port
        yield port.stopListening()
        link = self.link(number, None)
        reason = yield self.opened(link)
        self.assertIn("refused", reason)
        self.assertNotIn("\n", reason)
        self.assertFalse(link.untrusted)


class FileTest(TlsCase):
    def test_files_that_are_none(self) -> None:
        path = self.directory / "ca.pem"
        begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
        for data in (b"", b"hello", begin, begin + end, begin + b"\nAAAA\n" + end, os.urandom(999)):
            path.write_bytes(data)
            line = str(self.assertRaises(TrustError, Trust.load, path))
            self.assertIn("no certificate in it", line)
            self.assertNotIn("\n", line)
        self.assertIn("directory", str(self.assertRaises(TrustError, Trust.load, self.directory)))
