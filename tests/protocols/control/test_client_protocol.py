"""STR-23: the listener's shell: opening, giving up, closing, and a server that misbehaves."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1

from twisted.internet.defer import CancelledError, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial import unittest
from zope.interface import implementer

from protocols.compression import inflate
from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.outgoing import CLOSE_SERVICE_RESTART
from protocols.control.protocol import (
    ControlClientFactory,
    ControlConnectError,
    ControlServerFactory,
    connect,
)
from tests.support.violations import deflated
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


def agreement(asked: bytes, extension: bytes) -> bytes:
    """A server's answer to a handshake."""
    (key,) = (line for line in asked.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
    digest = sha1(key.partition(b": ")[2] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return b"\r\n".join(
        [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + b64encode(digest),
            b"Sec-WebSocket-Extensions: " + extension,
            b"\r\n",
        ]
    )


def unmasked(data: bytes) -> bytes:
    """The payload of the one frame a client sent."""
    size, at = data[1] & 0x7F, 2
    if size == 126:
        size, at = int.from_bytes(data[2:4], "big"), 4
    mask, payload = data[at : at + 4], data[at + 4 : at + 4 + size]
    return bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))


def unmasked_all(data: bytes) -> bytes:
    """The payloads of short frames, one after another."""
    found = b""
    while data:
        found += unmasked(data)
        size, at = data[1] & 0x7F, 6
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 8
        data = data[at + size :]
    return found


class ClientTests(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.told = []
        self.fail_with = None
        self.wire = Wire()
        self.make_factory()

    def make_factory(self, **options):
        self.factory = ControlClientFactory(
            "ws://192.0.2.1:8080/ws",
            self.owner,
            reactor=self.clock,
            seconds=self.clock.seconds,
            wall_ms=lambda: WALL + self.clock.seconds() * 1000,
            open_timeout_s=5.0,
            close_timeout_s=2.0,
            **options,
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

    def test_go_elsewhere(self):
        """CON-51: 1012 is a code a server may close with."""
        self.accept()
        self.wire.protocol.dataReceived(b"\x88\x02\x03\xf4")
        self.lose(ConnectionDone())
        self.assertEqual(self.told, [e.SessionClosed("lost", CLOSE_SERVICE_RESTART, "")])

    def test_pings_are_answered(self):
        """CON-10."""
        self.accept()
        self.wire.sent()
        self.wire.protocol.dataReceived(b"\x89\x08\0\0\0\0\0\0\0\7")
        answer = self.wire.sent()
        self.assertEqual((answer[0], answer[1]), (0x8A, 0x88))
        self.assertEqual(unmasked(answer), b"\0" * 7 + b"\7")

    def test_levels(self):
        client = self.accept()
        client.want_levels(100)
        self.receive(m.Welcome("c1"))
        self.assertIn(b'"interval_ms":100', unmasked_all(self.wire.sent()))
        client.want_levels(0)
        self.assertIn(b'"interval_ms":0', unmasked_all(self.wire.sent()))
        self.receive(m.Meters((-7,)))
        self.assertEqual(self.told[-1], e.LevelsShown(m.Meters((-7,))))
        self.assertRaises(ValueError, client.want_levels, 49)

    def test_quality(self):
        """CON-13: the listener's own view, by its clock questions."""
        client = self.accept()
        self.receive(m.Welcome("c1"))
        self.clock.advance(0)
        self.clock.advance(0.05)
        self.receive(m.NtpResponse(WALL, WALL + 10, WALL + 30))
        quality = client.quality(self.clock.seconds() + 3)
        self.assertEqual((quality.rtt_ms, quality.rtt_last_ms, quality.loss), (30.0, 30.0, 0.0))
        self.assertEqual((quality.messages_received, quality.messages_sent), (2, 2))
        self.assertEqual(quality.idle_s, 3.0)
        self.assertGreater(quality.bytes_sent, 200)
        self.assertGreater(quality.bytes_received, 200)

    def test_large_requests_are_compressed(self):
        """CON-20: above 10 KiB."""
        client = self.accept()
        self.receive(m.Welcome("c1"))
        self.wire.sent()
        rows = tuple(m.ChannelRequest(number, "x" * 250) for number in range(1, 65))
        client.configure(m.ClientConfig(rows))
        sent = self.wire.sent()
        self.assertEqual(sent[0], 0xC1)
        self.assertLess(len(sent), 1500)
        self.assertEqual(m.decode_client(inflate(unmasked(sent), 1 << 20)), m.ClientConfig(rows))

    def test_compressed_messages_are_read(self):
        """CON-20."""
        self.accept()
        packed = deflated(m.encode(m.Welcome("c1")))
        self.wire.protocol.dataReceived(bytes([0xC1, len(packed)]) + packed)
        self.assertEqual(self.told, [e.Welcomed(m.Welcome("c1"))])

    def test_a_bomb(self):
        """CON-20: a listener is bounded too."""
        self.accept()
        bomb = deflated(bytes(32 << 20))
        head = bytes([0xC1, 126]) + len(bomb).to_bytes(2, "big")
        self.wire.protocol.dataReceived(head + bomb)
        self.assertEqual((self.told[-1].cause, self.told[-1].code), ("lost", 1009))

    def test_switched_off(self):
        self.make_factory(compression=False)
        client = self.accept()
        self.assertIsNone(self.wire.protocol._perMessageCompress)
        self.receive(m.Welcome("c1"))
        self.wire.sent()
        client.configure(m.ClientConfig((m.ChannelRequest(1, "x" * 250),)))
        self.assertEqual(self.wire.sent()[0], 0x81)

    def test_an_answer_that_keeps_state(self):
        """CON-20: a server that agrees to another extension than the one offered is refused."""
        opening = connect(self.factory, self.wire)
        asked = self.wire.sent()
        for promise in (b"client_no_context_takeover", b"server_no_context_takeover"):
            self.assertIn(promise, asked)
        self.wire.protocol.dataReceived(agreement(asked, b"permessage-deflate"))
        self.lose()
        self.failureResultOf(opening, ControlConnectError)

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
