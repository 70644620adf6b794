"""CON-2, STR-5, CLK-1: the server's shell against well-behaved, slow, and hostile listeners."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial import unittest

from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.limits import ServerLimits
from protocols.control.protocol import ControlServerFactory
from tests.support.websocket import BINARY, CLOSE, PING, PONG, TEXT, ByteClient, frame, frames

WALL = 1_721_123_456_789.0
BIG = m.Event("custom_message", "x" * 10_000)
LEVELS = m.Meters((-60,) * 64, tuple(range(1, 65)))


class Server:
    """A factory on a test clock, and an owner that notes what it is told."""

    def __init__(self, **options) -> None:
        self.clock = Clock()
        self.told: list = []
        self.connections: list = []
        self.react = {}
        self.factory = ControlServerFactory(
            self.owner,
            reactor=self.clock,
            seconds=self.clock.seconds,
            wall_ms=lambda: WALL + self.clock.seconds() * 1000,
            **{"random": lambda: 0.5, **options},
        )

    def owner(self, connection, event):
        self.connections.append(connection)
        self.told.append(event)
        if type(event) in self.react:
            self.react[type(event)](connection, event)

    def client(self, host="192.0.2.7", open=True) -> ByteClient:
        client = ByteClient(self.factory, host)
        if open:
            answer = client.open()
            assert answer.startswith(b"HTTP/1.1 101"), answer
        return client


class ConversationTests(unittest.TestCase):
    def setUp(self):
        self.server = Server()

    def test_a_connection(self):
        """The owner learns who it is and from where; its answers go out at once."""
        self.server.react[e.Joined] = lambda connection, _: connection.send(m.Welcome("c7"))
        client = self.server.client("192.0.2.9")
        client.say(type="hello", payload={"name": "Änne 🎧"})
        self.assertEqual(self.server.told, [e.Joined(m.Hello(name="Änne 🎧"))])
        connection = self.server.connections[0]
        self.assertEqual((connection.host, connection.port), ("192.0.2.9", 40_000))
        self.assertEqual(client.messages()[0]["payload"]["client_id"], "c7")
        self.assertEqual(self.server.factory.connections, {connection})

    def test_traffic_of_all(self):
        """CON-40: what went over all connections, those that are gone included."""
        self.server.react[e.Joined] = lambda connection, _: connection.send(m.Welcome("c7"))
        one, other = self.server.client(), self.server.client("192.0.2.8")
        one.say(type="hello")
        other.say(type="hello")
        before = self.server.factory.traffic()
        self.assertEqual((before.messages_received, before.messages_sent), (2, 2))
        self.assertGreater(before.bytes_sent, 2 * len(b'{"type":"welcome"'))
        one.lose(Failure(ConnectionLost()))
        self.assertEqual(self.server.factory.traffic().messages_received, 2)
        self.assertEqual(self.server.factory.traffic().bytes_received, before.bytes_received)

    def test_mapped_addresses(self):
        """On a dual-stack socket IPv4 peers have IPv4 addresses still: audio goes there."""
        client = self.server.client("::ffff:192.0.2.9")
        client.say(type="hello")
        self.assertEqual(self.server.connections[0].host, "192.0.2.9")

    def test_the_time(self):
        """CLK-1."""
        client = self.server.client()
        self.server.clock.advance(1)
        client.say(type="ntp_request", t1=5.5)
        at = WALL + 1000
        expected = {"type": "ntp_response", "t1": 5.5, "t2": at, "t3": at}
        self.assertEqual(client.messages(), [expected])

    def test_a_malformed_message_is_answered(self):
        client = self.server.client()
        client.feed(frame(TEXT, b"{nonsense"))
        client.say(type="hello")
        (answer,) = client.messages()
        self.assertEqual((answer["type"], answer["payload"]["code"]), ("error", "bad_message"))
        self.assertEqual([type(event) for event in self.server.told], [e.Refused, e.Joined])

    def test_in_one_read_and_byte_by_byte(self):
        hello = frame(TEXT, b'{"type":"hello"}')
        config = frame(TEXT, b'{"type":"client_config"}', fin=True)
        for pieces in ([hello + config], [bytes([b]) for b in hello + config]):
            server = Server()
            client = server.client()
            for piece in pieces:
                client.feed(piece)
            self.assertEqual([type(event) for event in server.told], [e.Joined, e.Configured])

    def test_fragments(self):
        client = self.server.client()
        client.feed(frame(TEXT, b'{"type":', fin=False) + frame(0, b'"hello"}'))
        self.assertEqual(self.server.told, [e.Joined(m.Hello())])

    def test_events_reach_the_owner_one_after_another(self):
        """What closing causes is told after the event in whose course it was closed."""

        def refuse(connection, event):
            connection.refuse("server_full", "20 listeners at most")
            self.assertNotIsInstance(self.server.told[-1], e.SessionClosed)

        self.server.react[e.Joined] = refuse
        client = self.server.client()
        client.say(type="client_config")
        kinds = [type(event) for event in self.server.told]
        self.assertEqual(kinds, [e.Joined, e.Configured, e.SessionClosed])
        said = client.heard()
        self.assertEqual([opcode for opcode, _ in said], [TEXT, CLOSE])
        self.assertEqual(json.loads(said[0][1])["payload"]["code"], "server_full")
        self.assertEqual(said[1][1], b"\x03\xf020 listeners at most")  # 1008
        self.assertFalse(self.server.connections[0].send(m.Welcome("c")))

    def test_bye(self):
        client = self.server.client()
        client.say(type="hello")
        client.say(type="bye")
        self.assertEqual(self.server.told[-1], e.SessionClosed("bye", 1000, "bye"))
        self.assertEqual(client.close_code(), (1000, "bye"))

    def test_bye_and_close_in_one_segment(self):
        """The answer to the close still goes out before the connection is dropped."""
        client = self.server.client()
        client.say(type="hello")
        client.feed(frame(TEXT, b'{"type":"bye"}') + frame(CLOSE, b"\x03\xe8bye"))
        self.assertEqual(self.server.told[-1], e.SessionClosed("bye", 1000, "bye"))
        self.assertEqual(client.close_code(), (1000, "bye"))
        self.assertTrue(client.transport.disconnecting)
        self.assertFalse(client.transport.aborted)
        self.server.clock.advance(10)  # a peer that does not even take that
        self.assertTrue(client.transport.aborted)

    def test_a_close_without_bye_is_a_loss(self):
        """STR-5: a reloaded page comes back."""
        client = self.server.client()
        client.say(type="hello")
        client.feed(frame(CLOSE, b"\x03\xe9going"))
        client.lose(Failure(ConnectionDone()))
        self.assertEqual(self.server.told[-1], e.SessionClosed("lost", 1001, "going"))
        self.assertEqual(self.server.factory.connections, set())

    def test_loss(self):
        client = self.server.client()
        client.say(type="hello")
        client.lose(Failure(ConnectionLost()))
        closed = self.server.told[-1]
        self.assertEqual((closed.cause, closed.code), ("lost", 1006))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_silence(self):
        """STR-5: 30 s."""
        client = self.server.client()
        client.say(type="client_config")
        self.server.clock.pump([5.0] * 5)
        client.say(type="heartbeat")
        self.server.clock.pump([5.0] * 5)
        self.assertEqual({opcode for opcode, _ in client.heard()}, {PING})
        self.server.clock.advance(5.0)
        self.assertEqual(self.server.told[-1].cause, "silent")
        self.assertEqual(client.close_code(), (1008, "no heartbeat for 30 s"))

    def test_an_owner_that_fails(self):
        """Our own bug ends that session with 1011, and is in the log."""

        def fail(connection, event):
            raise RuntimeError("a bug")

        self.server.react[e.Configured] = fail
        client = self.server.client()
        other = self.server.client()
        client.say(type="client_config")
        self.assertEqual(client.close_code(), (1011, "internal error"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        other.say(type="hello")
        self.assertIsInstance(self.server.told[-1], e.Joined)


class ClosingTests(unittest.TestCase):
    def setUp(self):
        self.server = Server(close_timeout_s=2.0, open_timeout_s=5.0)

    def test_close_all(self):
        client, other = self.server.client(), self.server.client()
        done = self.server.factory.close_all(1001, "maintenance")
        self.assertEqual(client.close_code(), (1001, "maintenance"))
        client.feed(frame(CLOSE, b"\x03\xe9"))
        client.lose(Failure(ConnectionDone()))
        self.assertNoResult(done)
        self.server.clock.advance(2.0)
        self.assertTrue(other.transport.aborted, "it did not answer the close")
        other.lose(Failure(ConnectionLost()))
        self.successResultOf(done)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_who_comes_while_all_are_closed(self):
        """Somebody is turned away, or a server that stops would wait for them."""
        client = self.server.client()
        done = self.server.factory.close_all(1001, "maintenance")
        late = self.server.client(open=False)
        answer = late.open()
        self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
        self.assertIn(b"the server is stopping", answer)
        client.lose(Failure(ConnectionLost()))
        self.successResultOf(done)
        self.assertEqual(self.server.factory.connections, set())

    def test_close_all_of_none(self):
        self.successResultOf(self.server.factory.close_all())

    def test_long_reasons(self):
        """RFC 6455 section 5.5: 123 bytes at most, and no torn character."""
        client = self.server.client()
        client.say(type="hello")
        self.server.connections[0].close(1001, "ü" * 100)
        code, reason = client.close_code()
        self.assertEqual((code, reason), (1001, "ü" * 61))

    def test_a_peer_that_closes_and_stays(self):
        client = self.server.client()
        client.feed(frame(CLOSE, b"\x03\xe8"))
        self.assertTrue(client.transport.disconnecting)
        self.server.clock.advance(2.0)
        self.assertTrue(client.transport.aborted)

    def test_opening_takes_too_long(self):
        client = self.server.client(open=False)
        client.feed(b"GET /ws HTTP/1.1\r\n")
        self.server.clock.advance(4.9)
        self.assertFalse(client.transport.aborted)
        self.server.clock.advance(0.2)
        self.assertTrue(client.transport.aborted)
        client.lose(Failure(ConnectionLost()))
        self.assertEqual(self.server.told, [])


class HostileTests(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.client = self.server.client()

    def ended(self, code):
        self.assertEqual(self.client.close_code()[0], code)
        (closed,) = [event for event in self.server.told if isinstance(event, e.SessionClosed)]
        self.assertEqual((closed.cause, closed.code), ("abuse", code))
        self.client.say(type="hello")
        self.assertEqual(self.server.told[-1], closed, "nothing is heard after the end")
        self.client.lose(Failure(ConnectionLost()))
        self.assertEqual(self.server.told[-1], closed)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_binary(self):
        self.client.feed(frame(BINARY, b'{"type":"hello"}'))
        self.ended(1003)

    def test_oversize(self):
        """CON-2: 1 MiB."""
        self.client.feed(frame(TEXT, b"", length=2**20 + 1))
        self.ended(1009)

    def test_oversize_in_fragments(self):
        self.client.feed(frame(TEXT, b"x" * 600_000, fin=False))
        self.client.feed(frame(0, b"x" * 600_000))
        self.ended(1009)

    def test_absurd_length(self):
        self.client.feed(frame(TEXT, b"", length=2**62))
        self.ended(1009)

    def test_invalid_utf8(self):
        self.client.feed(frame(TEXT, b'{"type":"hello","payload":{"name":"\xff"}}'))
        self.ended(1007)

    def test_unmasked(self):
        self.client.feed(b"\x81\x02{}")
        self.ended(1002)

    def test_too_fast(self):
        """50 a second are borne, then an error and 1008."""
        beat = frame(TEXT, b'{"type":"heartbeat"}')
        for _ in range(10_000):
            self.client.feed(beat)
            self.server.clock.advance(0.01)
            if isinstance(self.server.told[-1], e.SessionClosed):
                break
        heard = self.client.heard()
        self.assertEqual(json.loads(heard[0][1])["payload"]["code"], "too_fast")
        self.assertEqual([opcode for opcode, _ in heard], [TEXT, CLOSE])
        self.assertEqual(heard[1][1][:2], b"\x03\xf0")
        self.assertLess(len(self.server.told), 402)

    def test_pings(self):
        self.client.feed(frame(PING, b"x"))
        self.assertEqual(self.client.heard(), [(PONG, b"x")])
        self.client.feed(frame(PING, b"x") * 300)
        self.assertEqual([event.code for event in self.server.told], [1008])

    def test_any_bytes_instead_of_a_handshake(self):
        for garbage in (b"\x00" * 100, b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xfe: \r\n\r\n"):
            client = self.server.client(open=False)
            client.feed(garbage)
            if b"\r\n\r\n" in garbage:
                head, _, body = client.transport.value().partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 400 "), head)
                self.assertEqual(json.loads(body)["error"]["code"], "bad_handshake")
            client.lose(Failure(ConnectionLost()))
        self.assertEqual(self.server.told, [])

    def test_too_many_connections(self):
        """CON-2: refused with the reason."""
        server = Server(max_connections=1)
        first, second = server.client(), server.client(open=False)
        answer = second.open()
        self.assertTrue(answer.startswith(b"HTTP/1.1 503 "))
        self.assertIn(b"maximum number of connections", answer)
        second.lose(Failure(ConnectionDone()))
        first.lose(Failure(ConnectionDone()))
        server.client()

    @given(st.lists(st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: frame(TEXT, b))))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes_after_the_handshake(self, pieces):
        """Nothing is raised, nothing is logged, no timer is left."""
        server = Server()
        client = server.client()
        for piece in pieces:
            client.feed(piece)
        client.lose(Failure(ConnectionLost()))
        ends = [event for event in server.told if isinstance(event, e.SessionClosed)]
        self.assertEqual(len(ends), 1)
        self.assertEqual(server.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    @given(st.binary(max_size=300))
    @settings(deadline=None)
    def test_any_handshake(self, garbage):
        server = Server()
        for end in (b"", b"\r\n\r\n"):
            client = server.client(open=False)
            client.feed(garbage + end)
            client.lose(Failure(ConnectionLost()))
        self.assertEqual((server.told, server.clock.getDelayedCalls()), ([], []))
        self.assertEqual(self.flushLoggedErrors(), [])


class SlowReaderTests(unittest.TestCase):
    """A listener that stops reading disturbs nobody."""

    def setUp(self):
        self.server = Server(outgoing_limit=50_000, random=lambda: 0.99)
        self.client = self.server.client()
        self.client.say(type="hello")
        self.connection = self.server.connections[0]

    def pause(self):
        self.client.transport.producer.pauseProducing()

    def test_nothing_is_written_until_it_reads_again(self):
        self.pause()
        for number in range(3):
            self.assertTrue(self.connection.send(m.Event("custom_message", str(number))))
        self.assertEqual(self.client.heard(), [])
        self.assertGreater(self.connection.queued_bytes, 0)
        self.client.transport.producer.resumeProducing()
        said = [message["payload"]["reason"] for message in self.client.messages()]
        self.assertEqual(said, ["0", "1", "2"])
        self.assertEqual(self.connection.queued_bytes, 0)

    def test_low_is_dropped(self):
        """CON-21."""
        self.pause()
        taken = [self.connection.send(LEVELS) for _ in range(600)]
        self.assertIn(False, taken)
        self.assertEqual(self.connection.dropped, taken.count(False))
        self.assertTrue(self.connection.send(BIG), "LOW makes room for NORMAL")
        self.assertTrue(self.connection.send(m.Error("x", "x" * 10_000)), "and for HIGH")
        self.assertFalse(self.client.transport.aborted)

    def test_only_the_newest_of_a_kind(self):
        """CON-21: warnings that recur, all levels: the last one is enough."""
        self.pause()
        for level in range(100):
            self.connection.send(m.Meters((-level // 2,)))
            self.connection.send(m.Event("network_warning", str(level)))
        self.assertEqual(self.connection.quality(0.0).queued, 2)
        self.client.transport.producer.resumeProducing()
        levels, warning = self.client.messages()
        self.assertEqual(levels["payload"], {"peak_db": [-50]})
        self.assertEqual(warning["payload"]["reason"], "99")

    def test_the_most_urgent_first(self):
        """CON-21: after the wait, by priority; in order within one."""
        self.pause()
        for said in (
            m.Meters((-1,)),
            m.Event("custom_message", "one"),
            m.Event("custom_message", "two"),
            m.Error("late", "x"),
            m.Event("server_shutdown", "maintenance"),
        ):
            self.connection.send(said)
        self.client.transport.producer.resumeProducing()
        got = [f["payload"].get("reason", f["type"]) for f in self.client.messages()]
        self.assertEqual(got, ["maintenance", "error", "one", "two", "meters"])

    def test_nothing_waits_longer_than_its_time(self):
        """CON-11: 30 s, then it is dropped and counted."""
        self.pause()
        self.connection.send(m.Event("custom_message", "old"))
        self.server.clock.advance(20)
        self.client.say(type="heartbeat")
        self.connection.send(m.Event("custom_message", "new"))
        self.server.clock.advance(10)
        quality = self.connection.quality(self.server.clock.seconds())
        self.assertEqual((quality.queued, quality.expired), (1, 1))
        self.client.transport.producer.resumeProducing()
        self.assertEqual([f["payload"]["reason"] for f in self.client.messages()], ["new"])

    def test_a_shorter_time(self):
        """CON-11: a setting."""
        server = Server(limits=ServerLimits(message_ttl_s=1))
        client = server.client()
        client.say(type="hello")
        client.transport.producer.pauseProducing()
        server.connections[0].send(BIG)
        server.clock.advance(1)
        self.assertEqual(server.connections[0].quality(1.0).expired, 1)

    def test_what_matters_and_does_not_fit_ends_it(self):
        self.pause()
        other = self.server.client()
        self.assertTrue(all(self.connection.send(BIG) for _ in range(4)))
        self.assertFalse(self.connection.send(BIG), "NORMAL waits or goes")
        self.assertFalse(self.client.transport.aborted)
        answer = m.Error("x", "x" * 10_000)
        taken = [self.connection.send(answer) for _ in range(10)]
        self.assertEqual(taken, [True] * 4 + [False] * 6)
        self.assertTrue(self.client.transport.aborted)
        closed = self.server.told[-1]
        self.assertEqual((closed.cause, closed.code), ("abuse", 1008))
        self.assertIn("does not read", closed.reason)
        other.say(type="hello")
        self.assertIsInstance(self.server.told[-1], e.Joined)

    def test_questions_without_reading(self):
        """It asks for the time and never reads the answers: they are bounded."""
        self.pause()
        for _ in range(5000):
            self.client.say(type="ntp_request", t1=1.5)
            self.server.clock.advance(0.03)
            if self.client.transport.aborted:
                break
        self.assertTrue(self.client.transport.aborted)
        self.assertLess(len(self.client.transport.value()), 60_000)

    def test_pings_without_reading(self):
        self.pause()
        self.client.feed(frame(PING, b"x") * 50)
        self.assertEqual(self.client.heard(), [])

    def test_closing_sends_what_waits(self):
        self.pause()
        self.connection.send(m.Event("server_shutdown", "maintenance", reconnect_after=60))
        self.connection.close(1001, "maintenance")
        self.assertEqual([opcode for opcode, _ in self.client.heard()], [TEXT, CLOSE])

    def test_a_failed_owner_does_not_leak(self):
        self.client.lose(Failure(ConnectionLost()))
        self.assertFalse(self.connection.open)
        self.assertFalse(self.connection.send(BIG))
        self.connection.close()
        self.assertEqual(self.server.clock.getDelayedCalls(), [])


class FrameTests(unittest.TestCase):
    """The test's own client must read what it is to judge."""

    def test_round_trip(self):
        for size in (0, 125, 126, 65535, 65536):
            wire = bytearray(frame(TEXT, b"x" * size))
            head = {True: 2, size >= 126: 4, size >= 65536: 10}[True]
            del wire[head : head + 4]
            wire[1] &= 0x7F
            self.assertEqual(frames(bytes(wire)), [(TEXT, b"x" * size)])

    def test_limits_are_settings(self):
        server = Server(limits=ServerLimits(heartbeat_timeout_s=3))
        client = server.client()
        client.say(type="client_config")
        server.clock.advance(3)
        self.assertEqual(server.told[-1].cause, "silent")
