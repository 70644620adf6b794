"""STR-23: the listener's shell: opening, giving up, closing, and a server that misbehaves."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface import implementer

from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.protocol import (
    ControlClientFactory,
    ControlConnectError,
    ControlServerFactory,
    connect,
)
from tests.support.websocket import TEXT, Transport

WALL = 1_721_123_456_789.0


@implementer(IStreamClientEndpoint)
class Wire:
    """An endpoint whose other end is the test."""

    def connect(self, factory):
        self.transport = Transport("192.0.2.1", 8080)
        self.protocol = factory.buildProtocol(self.transport.getPeer())
        self.protocol.makeConnection(self.transport)
        return succeed(self.protocol)

    def sent(self) -> bytes:
        data = self.transport.value()
        self.transport.clear()
        return data


def from_server(opcode: int, payload: bytes) -> bytes:
    if len(payload) < 126:
        return bytes([0x80 | opcode, len(payload)]) + payload
    return bytes([0x80 | opcode, 126]) + len(payload).to_bytes(2, "big") + payload


class ClientTests(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.told = []
        self.fail_with = None
        self.wire = Wire()
        self.factory = ControlClientFactory(
            "ws://192.0.2.1:8080/ws",
            self.owner,
            reactor=self.clock,
            seconds=self.clock.seconds,
            wall_ms=lambda: WALL + self.clock.seconds() * 1000,
            open_timeout_s=5.0,
            close_timeout_s=2.0,
        )

    def owner(self, client, event):
        self.told.append(event)
        if self.fail_with is not None and isinstance(event, self.fail_with):
            raise RuntimeError("a bug")

    def accept(self):
        """Open the connection; a real server's protocol makes the answer."""
        opening = connect(self.factory, self.wire)
        request = self.wire.sent()
        self.assertTrue(request.startswith(b"GET /ws HTTP/1.1\r\n"))
        there = Transport()
        server = ControlServerFactory(lambda *_: None, reactor=Clock()).buildProtocol(None)
        server.makeConnection(there)
        server.dataReceived(request)
        self.wire.protocol.dataReceived(there.value())
        return self.successResultOf(opening)

    def receive(self, message):
        self.wire.protocol.dataReceived(from_server(TEXT, m.encode(message)))

    def lose(self, why=None):
        self.wire.protocol.connectionLost(Failure(why or ConnectionLost()))

    def test_open(self):
        client = self.accept()
        self.assertEqual(client.host, "192.0.2.1")
        self.receive(m.Welcome("c1"))
        self.assertEqual(self.told, [e.Welcomed(m.Welcome("c1"))])
        self.assertEqual(client.session.welcome.client_id, "c1")

    def test_no_answer_to_the_handshake(self):
        opening = connect(self.factory, self.wire)
        self.clock.advance(5.0)
        self.assertTrue(self.wire.transport.aborted)
        self.lose()
        failure = self.failureResultOf(opening, ControlConnectError)
        self.assertIn("did not answer in time", str(failure.value))
        self.assertEqual((self.told, self.clock.getDelayedCalls()), ([], []))

    def test_hung_up_on(self):
        opening = connect(self.factory, self.wire)
        self.lose(ConnectionDone())
        self.failureResultOf(opening, ControlConnectError)

    def test_turned_away(self):
        opening = connect(self.factory, self.wire)
        self.wire.protocol.dataReceived(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n")
        self.lose(ConnectionDone())
        self.assertIn("503", str(self.failureResultOf(opening, ControlConnectError).value))

    def test_cancelled(self):
        opening = connect(self.factory, self.wire)
        opening.cancel()
        self.failureResultOf(opening, CancelledError)
        self.assertTrue(self.wire.transport.aborted)
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_welcome(self):
        self.accept()
        self.clock.advance(10.0)
        self.assertEqual(self.told[0].cause, "silent")
        self.clock.advance(2.0)
        self.assertTrue(self.wire.transport.aborted)
        self.lose()
        self.assertEqual((len(self.told), self.clock.getDelayedCalls()), (1, []))

    def test_a_server_that_goes_away(self):
        self.accept()
        self.wire.protocol.dataReceived(b"\x88\x0d\x03\xe9maintenance")
        self.lose(ConnectionDone())
        self.assertEqual(self.told, [e.SessionClosed("lost", 1001, "maintenance")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lost(self):
        self.accept()
        self.lose()
        self.assertEqual((self.told[0].cause, self.told[0].code), ("lost", 1006))

    def test_leaving_a_server_that_does_not_care(self):
        client = self.accept()
        client.close()
        self.assertEqual(self.told, [e.SessionClosed("closed", 1000, "bye")])
        self.assertFalse(self.wire.transport.aborted)
        self.clock.advance(2.0)
        self.assertTrue(self.wire.transport.aborted)

    def test_gone(self):
        """Saying bye is one thing, the connection being gone another."""
        client, gone = self.accept(), []
        client.when_gone(lambda: gone.append(1))
        client.close()
        self.assertEqual((gone, client.gone), ([], False))
        self.lose(ConnectionDone())
        self.assertEqual((gone, client.gone), ([1], True))
        client.when_gone(lambda: gone.append(2))
        self.assertEqual(gone, [1, 2])

    def test_too_large_an_answer(self):
        """CON-2."""
        self.accept()
        self.wire.protocol.dataReceived(b"\x81\x7f" + (2**40).to_bytes(8, "big"))
        self.assertEqual((self.told[0].cause, self.told[0].code), ("lost", 1009))

    def test_binary_is_ignored(self):
        self.accept()
        self.wire.protocol.dataReceived(from_server(2, b"\0"))
        self.receive(m.Welcome("c1"))
        self.assertEqual([type(event) for event in self.told], [e.Welcomed])

    def test_an_owner_that_fails(self):
        self.fail_with = e.Welcomed
        self.accept()
        self.receive(m.Welcome("c1"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.told[-1].cause, "closed")

    def test_timers_follow_the_session(self):
        client = self.accept()
        client.configure(m.ClientConfig(udp_port=5004))
        self.receive(m.Welcome("c1"))
        self.clock.advance(0)
        self.clock.pump([0.1] * 70)
        self.assertEqual(len(client.session._questions), 1, "four at once, one after 3.5 s")
        self.assertEqual(client.quality(4.0).loss, 1.0, "CON-13: the four had no answer in time")
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])
