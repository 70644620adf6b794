"""CON-2: what one listener sends at once is done a little at a time; others come in between."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial import unittest

from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.limits import ServerLimits
from protocols.control.turns import EFFORT_PER_TURN
from tests.protocols.control.test_protocol import Server
from tests.support.violations import deflated
from tests.support.websocket import CLOSE, DEFLATE, PING, PONG, TEXT, frame

MIB = 1024 * 1024
MANY = ServerLimits(message_burst=1000)
CONFIG = frame(TEXT, b'{"type":"client_config"}')


def beats(times):
    return b"".join(
        frame(TEXT, json.dumps({"type": "heartbeat", "timestamp": at}).encode()) for at in times
    )


class TurnsTests(unittest.TestCase):
    def setUp(self):
        self.gaps: list[int] = []
        self.server = Server(limits=MANY, between=lambda: self.gaps.append(self.done()))
        self.client = self.server.client()

    def done(self):
        return len(self.server.told)

    def test_a_burst(self):
        """Two messages at a time, each followed by whatever is urgent, and nothing is read."""
        self.client.send(frame(TEXT, b'{"type":"hello"}') + CONFIG * 190)
        self.assertEqual(self.done(), 2)
        self.assertEqual(self.client.transport.producerState, "paused")
        self.server.clock.advance(0)
        self.assertEqual(self.gaps, [*range(4, 191, 2), 191])
        kinds = [type(event) for event in self.server.told]
        self.assertEqual(kinds, [e.Joined] + [e.Configured] * 190)
        self.assertEqual(self.client.transport.producerState, "producing")
        self.assertEqual(self.server.clock.getDelayedCalls()[0].getTime(), 30.0, "no turn is left")

    def test_others_need_not_wait(self):
        other = self.server.client("192.0.2.8")
        self.client.send(CONFIG * 190)
        self.server.clock.callLater(0, other.say, type="ntp_request", t1=1)
        heard: list[int] = []
        self.server.clock.callLater(0, lambda: heard.append(self.done()))
        self.server.clock.advance(0)
        self.assertEqual([one["t1"] for one in other.messages()], [1])
        self.assertLess(heard[0], 10)

    def test_long_messages(self):
        """Of what comes in one read more is not looked at, and one long message is enough."""
        packed = deflated(b'{"type":"heartbeat","x":"%s"}' % (b"x" * (MIB - 100)))
        server = Server()
        client = server.client(open=False)
        client.open(DEFLATE)
        client.say(type="hello")
        client.send(frame(TEXT, packed, rsv=4) * 2)
        self.assertEqual(len(server.told), 2)
        server.clock.advance(0)
        self.assertEqual(len(server.told), 3)

    def test_many_bytes_at_once(self):
        """As TLS may hand them over: a read's worth of them in a turn."""
        text = b'{"type":"heartbeat","x":"%s"}' % (b"x" * 200_000)
        data = self.client.protocol
        self.client.send(frame(TEXT, text))
        self.assertEqual(len(data._backlog), len(frame(TEXT, text)) // 4096 + 1 - 16)
        self.server.clock.advance(0)
        self.assertEqual(len(self.gaps), 200_000 // 65_536)

    def test_frames_without_a_message(self):
        """Pings are work too."""
        self.client.send(frame(PING, b"x") * 200)
        answered = len(self.client.heard())
        self.assertLessEqual(answered, EFFORT_PER_TURN)
        self.server.clock.advance(0)
        self.assertEqual(self.client.heard(), [(PONG, b"x")] * (200 - answered))

    def test_what_came_before_the_end(self):
        """A burst, bye and the end of the connection in one go: the bye counts."""
        self.client.send(beats(range(20)) + frame(TEXT, b'{"type":"hello"}'))
        self.client.send(frame(TEXT, b'{"type":"bye"}'))
        self.assertLess(self.done(), 20)
        self.client.lose(Failure(ConnectionDone()))
        self.assertEqual(self.server.told[-1].cause, "bye")
        self.assertEqual(self.done(), 22)
        self.server.clock.advance(100)
        self.assertEqual((self.done(), self.gaps), (22, []))

    def test_after_a_violation(self):
        """What was held back is dropped with the rest, and reading goes on for the close frame."""
        self.client.send(beats(range(3)) + b"\xff" * 10_000)
        self.server.clock.advance(0)
        self.assertEqual(self.client.close_code()[0], 1002)
        self.assertEqual(self.client.transport.producerState, "producing")
        self.assertEqual(len(self.client.protocol._backlog), 0)
        self.client.send(CONFIG)
        self.assertNotIn(e.Configured, [type(event) for event in self.server.told])

    def test_closed_by_the_owner_meanwhile(self):
        """Its close frame goes out at once; the peer's, behind the burst, is still found."""
        self.client.send(frame(TEXT, b'{"type":"hello"}') + CONFIG * 10)
        self.server.connections[0].close(1001, "maintenance")
        self.assertEqual(self.client.close_code()[0], 1001)
        self.client.send(frame(CLOSE, b"\x03\xe9"))
        self.server.clock.advance(0)
        self.assertTrue(self.client.transport.disconnecting)
        self.assertFalse(self.client.transport.aborted)
        self.assertEqual([type(one) for one in self.server.told][-1], e.SessionClosed)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.data())
    def test_the_order_stays(self, cuts, data):
        """However it is cut, and whenever turns come."""
        server = Server(limits=MANY)
        client = server.client()
        stream = frame(TEXT, b'{"type":"hello"}') + beats(range(100))
        for size in cuts:
            client.send(stream[:size])
            stream = stream[size:]
            if data.draw(st.booleans()):
                server.clock.advance(0)
        client.feed(stream)
        self.assertIsInstance(server.told[0], e.Joined)
        self.assertEqual(server.told[1:], [e.Alive(at) for at in range(100)])
        self.assertEqual(client.protocol.traffic.messages_received, 101)

    def test_fifty_at_once(self):
        """More is no listener's need."""
        server = Server()
        client = server.client()
        client.feed(CONFIG * 50)
        self.assertEqual(server.told.count(e.Configured(m.ClientConfig())), 50)
        client.feed(CONFIG)
        self.assertEqual(server.told[-1].cause, "abuse")
