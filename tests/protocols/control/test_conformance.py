"""CON-2, CON-20: RFC 6455 and RFC 7692, each violation answered with its close code; and what is
allowed is not refused."""

from __future__ import annotations

import gc
import itertools
import json
import random
import string
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial import unittest

from protocols import compression
from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.origin import origin_allowed
from tests.protocols.control.test_protocol import Server
from tests.support.violations import (
    BAD_HANDSHAKES,
    MIB,
    VIOLATIONS,
    close_frame,
    deflated,
    request,
)
from tests.support.websocket import (
    CLOSE,
    DEFLATE,
    HANDSHAKE,
    PING,
    PONG,
    TEXT,
    frame,
    frames,
)

HELLO = b'{"type":"hello"}'


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


class ViolationTests(unittest.TestCase):
    def connected(self, compressed=False):
        server = Server()
        client = server.client(open=False)
        self.assertEqual(status(client.open(DEFLATE if compressed else HANDSHAKE)), 101)
        return server, client

    def close_code(self, client):
        said = client.heard()
        self.assertEqual(said[-1][0], CLOSE, "nothing is said after the close frame")
        self.assertEqual([opcode for opcode, _ in said].count(CLOSE), 1)
        return int.from_bytes(said[-1][1][:2], "big")

    def test_each(self):
        """CON-2: the code, one SessionClosed, nothing read or written after it, no timer left."""
        for one in VIOLATIONS:
            server, client = self.connected(one.compressed)
            client.feed(one.data)
            self.assertEqual(self.close_code(client), one.code, one.name)
            client.feed(frame(TEXT, HELLO) + frame(PING, b"x"))
            self.assertEqual(client.heard(), [], one.name)
            client.lose(Failure(ConnectionLost()))
            ends = [event for event in server.told if isinstance(event, e.SessionClosed)]
            self.assertEqual([server.told[-1]], ends, one.name)
            self.assertEqual(server.clock.getDelayedCalls(), [], one.name)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_byte_by_byte(self):
        """However TCP cuts it."""
        for one in VIOLATIONS:
            if len(one.data) < 2000:
                _, client = self.connected(one.compressed)
                for at in range(len(one.data)):
                    client.feed(one.data[at : at + 1])
                self.assertEqual(self.close_code(client), one.code, one.name)

    def test_after_the_violation(self):
        """RFC 6455 section 7.1.7: nothing is read any more, nor kept; then it is closed."""
        _, client = self.connected(compressed=True)
        client.feed(frame(TEXT, deflated(bytes(2 * MIB)), rsv=4))
        for _ in range(100):
            client.feed(bytes(65_536))
        self.assertLess(len(client.protocol.data), 10_000)
        self.assertIsNone(client.protocol._perMessageCompress._inflater)

    def test_then_it_is_closed(self):
        """At first so that the close frame arrives, then in any case."""
        for violation in (frame(3, b""), close_frame(1005), close_frame(1000, b"\xff")):
            server, client = self.connected()
            client.feed(violation)
            self.assertFalse(client.transport.disconnecting)
            self.assertFalse(client.protocol.wasClean)
            server.clock.advance(1)
            self.assertTrue(client.transport.disconnecting)
            self.assertFalse(client.transport.aborted)
            server.clock.advance(3)
            self.assertTrue(client.transport.aborted)

    def test_frames_after_the_close(self):
        """What goes on sending without an end is not listened to."""
        server, client = self.connected()
        client.say(type="hello")
        server.connections[0].close(1001, "maintenance")
        client.feed(frame(PONG, b"") * 3000)
        self.assertTrue(client.transport.disconnecting)
        client.feed(bytes(65_536))
        self.assertLess(len(client.protocol.data), 10_000)
        server.clock.advance(3)
        self.assertTrue(client.transport.aborted)


class AllowedTests(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.client = self.server.client()

    def joined(self):
        self.assertEqual(self.server.told, [e.Joined(m.Hello(name="€"))])

    def test_fragments_anywhere(self):
        """RFC 6455 section 5.4: also inside a character, also empty, control frames between."""
        hello = '{"type":"hello","payload":{"name":"€"}}'.encode()
        for cut in range(len(hello) + 1):
            self.setUp()
            self.client.feed(
                frame(TEXT, hello[:cut], fin=False)
                + frame(PING, b"between")
                + frame(0, b"", fin=False)
                + frame(PONG, b"unasked")
                + frame(0, hello[cut:])
            )
            self.joined()
            self.assertEqual(self.client.heard(), [(PONG, b"between")])

    def test_the_longest(self):
        """CON-2: 1 MiB exactly, whole, in fragments, inflated."""
        long = json.dumps({"type": "hello", "payload": {"name": "€"}}, ensure_ascii=False).encode()
        long += b" " * (MIB - len(long))
        self.client.feed(frame(TEXT, long))
        self.joined()
        self.setUp()
        self.client.feed(frame(TEXT, long[:9], fin=False) + frame(0, long[9:]))
        self.joined()
        self.server = Server()
        self.client = self.server.client(open=False)
        self.client.open(DEFLATE)
        packed = frame(TEXT, deflated(long), rsv=4)
        for at in range(0, len(packed), 100):
            self.client.feed(packed[at : at + 100])
        self.joined()

    def test_close_codes(self):
        """RFC 6455 section 7.4: registered and private ones are answered in kind."""
        codes = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999)
        for code in codes:
            self.setUp()
            self.client.feed(close_frame(code, b"why"))
            (answer,) = self.client.heard()
            self.assertEqual(answer[0], CLOSE)
            self.client.lose(Failure(ConnectionDone()))
            self.assertEqual(self.server.told, [e.SessionClosed("lost", code, "why")])

    def test_close_without_code(self):
        self.client.feed(frame(CLOSE, b""))
        self.assertEqual(self.client.heard()[0][0], CLOSE)

    def test_the_longest_control_frame(self):
        self.client.feed(frame(PING, b"x" * 125))
        self.assertEqual(self.client.heard(), [(PONG, b"x" * 125)])


class HandshakeTests(unittest.TestCase):
    def ask(self, handshake, **options):
        client = Server(**options).client(open=False)
        return client.open(handshake)

    def test_each(self):
        """RFC 6455 section 4.2: refused with a status and the reason as JSON."""
        for name, handshake, expected in BAD_HANDSHAKES:
            answer = self.ask(handshake)
            self.assertEqual(status(answer), expected, f"{name}: {answer!r}")
            head, _, body = answer.partition(b"\r\n\r\n")
            self.assertEqual(json.loads(body)["error"]["code"], "bad_handshake")
            if expected == 426:
                self.assertIn(b"Sec-WebSocket-Version: 13", head, "section 4.4")
                self.assertIn(b"Upgrade: websocket", head)
            if expected == 405:
                self.assertIn(b"Allow: GET", head)

    def test_endless(self):
        client = Server().client(open=False)
        client.feed(b"GET /ws HTTP/1.1\r\n" + b"X: " + b"x" * 20_000)
        self.assertEqual(status(client.transport.value()), 400)
        self.assertTrue(client.transport.disconnecting)

    def test_origin(self):
        """A page of this server, as the browser calls it; no page at all; named exceptions."""
        for origin in (b"http://127.0.0.1", b"http://127.0.0.1:80", b"HTTP://127.0.0.1"):
            handshake = request(b"GET /ws HTTP/1.1", b"", b"Origin: " + origin)
            self.assertEqual(status(self.ask(handshake)), 101, origin)
        app = request(b"GET /ws HTTP/1.1", b"", b"Origin: https://app.example")
        self.assertEqual(status(self.ask(app)), 403)
        self.assertEqual(status(self.ask(app, allowed_origins=["https://app.example"])), 101)

    def test_origins(self):
        for origin, host, allowed in (
            ("", "stage:8080", True),
            ("http://stage:8080", "stage:8080", True),
            ("http://STAGE:8080", "stage:8080", True),
            ("https://stage", "stage", True),
            ("https://stage:443", "stage", True),
            ("http://[fe80::1]:8080", "[fe80::1]:8080", True),
            ("http://stage", "stage:8080", False),
            ("http://stage:8081", "stage:8080", False),
            ("http://evil/stage:8080", "stage:8080", False),
            ("http://stage:8080@evil", "stage:8080", False),
            ("http://stage:x", "stage", False),
            ("http://[", "stage", False),
            ("ftp://stage", "stage", False),
            ("null", "null", False),
            ("http://", "", False),
            ("file://", "", False),
        ):
            self.assertEqual(origin_allowed(origin, host), allowed, (origin, host))

    def test_origins_over_tls(self):
        """A page in the clear may be anybody's; behind a proxy, https is right too."""
        for origin, host, allowed in (
            ("https://stage", "stage", True),
            ("https://stage:443", "stage", True),
            ("https://stage:8443", "stage:8443", True),
            ("http://stage", "stage", False),
            ("http://stage:8443", "stage:8443", False),
            ("http://stage:443", "stage", False),
            ("", "stage", True),
        ):
            self.assertEqual(origin_allowed(origin, host, secure=True), allowed, (origin, host))
        self.assertTrue(origin_allowed("https://stage", "stage", secure=False))

    def test_two_origins(self):
        """Neither is believed."""
        for first, second in itertools.permutations((b"http://evil", b"http://127.0.0.1")):
            handshake = request(
                b"GET /ws HTTP/1.1", b"", b"Origin: " + first + b"\r\nOrigin: " + second
            )
            self.assertIn(status(self.ask(handshake)), (400, 403))


class CompressionTests(unittest.TestCase):
    BIG = m.Event("custom_message", "All musicians to the stage, please. " * 400)

    def asked(self, extension, **options):
        self.server = Server(**options)
        self.client = self.server.client(open=False)
        lines = [b"Sec-WebSocket-Extensions: " + extension] if extension else []
        answer = self.client.open(request(b"GET /ws HTTP/1.1", b"", *lines))
        self.assertEqual(status(answer), 101)
        self.client.say(type="hello")
        for line in answer.split(b"\r\n"):
            if line.startswith(b"Sec-WebSocket-Extensions: "):
                return line.partition(b": ")[2]
        return None

    def sent(self, message):
        """First byte of the frame, and how long it is."""
        self.server.connections[0].send(message)
        data = self.client.transport.value()
        ((_, payload),) = self.client.heard()
        return data[0], payload

    def test_agreed(self):
        """CON-20: nobody keeps anything between two messages."""
        agreed = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        for offer in (
            b"permessage-deflate",
            b"permessage-deflate; client_max_window_bits",
            b"foo, permessage-deflate; client_max_window_bits; x=1, permessage-deflate",
        ):
            self.assertEqual(set(self.asked(offer).split(b"; ")), set(agreed.split(b"; ")), offer)

    def test_declined(self):
        """RFC 7692 section 7.1: an offer that cannot be taken is declined, no error."""
        for offer in (
            b"permessage-deflate; server_max_window_bits=8",
            b"permessage-deflate; server_max_window_bits=banana",
            b"permessage-deflate; unknown",
            b"permessage-deflate; client_max_window_bits=8; client_max_window_bits=9",
            b"permessage-bzip2",
            b"permessage-brotli",
            b"x-webkit-deflate-frame",
        ):
            self.assertIsNone(self.asked(offer), offer)

    def test_switched_off(self):
        self.assertIsNone(self.asked(b"permessage-deflate", compression=False))
        self.assertEqual(self.sent(self.BIG)[0], 0x81)

    def test_large_ones_only(self):
        """CON-20: above 10 KiB, where it saves a tenth."""
        self.asked(b"permessage-deflate")
        first, payload = self.sent(self.BIG)
        self.assertEqual(first, 0xC1, "RSV1")
        self.assertLess(len(payload), 1000)
        first, payload = self.sent(m.Event("custom_message", "x" * 9_000))
        self.assertEqual(first, 0x81)
        self.assertGreater(len(payload), 9_000)

    def test_levels_at_any_size(self):
        """CON-52: many are sent the same levels, so they are compressed, once for all of them."""
        self.asked(b"permessage-deflate")
        levels = m.Meters(tuple(-(n * 7 % 90) for n in range(32)))
        first, payload = self.sent(levels)
        self.assertEqual(first, 0xC1)
        self.assertLess(len(payload), 0.8 * len(m.encode(levels)))
        self.assertEqual(self.sent(m.Meters((-6,)))[0], 0x81, "too short to gain anything")
        self.sent(levels)
        self.assertEqual(self.server.factory.deflate.cache_info().hits, 1)

    def test_not_what_does_not_shrink(self):
        """CON-20: JSON nearly always does, so more is asked of it here."""
        noise = "".join(random.Random(5).choices(string.printable[:62], k=20_000))
        self.asked(b"permessage-deflate")
        self.assertEqual(self.sent(m.Event("custom_message", noise))[0], 0xC1)
        self.patch(compression, "LEAST_SAVING", 0.5)
        noise += "."  # the answer for the same message is remembered
        first, payload = self.sent(m.Event("custom_message", noise))
        self.assertEqual(first, 0x81)
        self.assertIn(noise.encode(), payload)

    def test_not_without_agreement(self):
        self.asked(b"")
        self.assertEqual(self.sent(self.BIG)[0], 0x81)

    def test_a_small_window(self):
        """RFC 7692 section 7.1.2.1."""
        agreed = self.asked(b"permessage-deflate; server_max_window_bits=9")
        self.assertIn(b"server_max_window_bits=9", agreed)
        self.assertEqual(self.client.protocol._perMessageCompress.own_window_bits, 9)
        self.assertEqual(self.sent(self.BIG)[0], 0xC1)

    def test_nothing_is_kept(self):
        """CON-20: an idle connection has no zlib state, whatever it said before."""
        self.asked(b"permessage-deflate")
        self.sent(self.BIG)
        beat = json.dumps({"type": "heartbeat", "x": "y" * 20_000}).encode()
        self.client.feed(frame(TEXT, deflated(beat), rsv=4))
        self.assertIsInstance(self.server.told[-1], e.Alive)
        agreed = self.client.protocol._perMessageCompress
        self.assertEqual((agreed._inflater, agreed.own_window_bits), (None, 15))

    def test_memory(self):
        """CON-20: an idle connection that compresses costs no more than one that does not."""

        def cost(extension: bytes) -> float:
            self.asked(extension)
            server, clients = self.server, []
            tracemalloc.start()
            try:
                for _ in range(50):
                    client = server.client(open=False)
                    line = [b"Sec-WebSocket-Extensions: " + extension] if extension else []
                    client.open(request(b"GET /ws HTTP/1.1", b"", *line))
                    client.say(type="hello")
                    server.connections[-1].send(self.BIG)
                    beat = json.dumps({"type": "heartbeat", "x": "y" * 20_000}).encode()
                    packed = frame(TEXT, deflated(beat), rsv=4) if extension else frame(TEXT, beat)
                    client.feed(packed)
                    client.heard()
                    clients.append(client)
                gc.collect()
                return tracemalloc.get_traced_memory()[0] / 50
            finally:
                tracemalloc.stop()

        plain, compressed = cost(b""), cost(b"permessage-deflate")
        self.assertLess(compressed - plain, 4_096)
        self.assertLess(compressed, 40_000)

    def test_told_to_all(self):
        """CON-20: compressed once."""
        self.asked(b"permessage-deflate")
        offer = request(b"GET /ws HTTP/1.1", b"", b"Sec-WebSocket-Extensions: permessage-deflate")
        for _ in range(9):
            client = self.server.client(open=False)
            client.open(offer)
            client.say(type="hello")
        for connection in self.server.connections:
            connection.send(self.BIG)
        used = self.server.factory.deflate.cache_info()
        self.assertEqual((used.misses, used.hits), (1, 9))

    def test_a_kilobyte_that_becomes_a_megabyte(self):
        """CON-20: what inflates counts as what it inflates to; after the end nothing does."""
        long = b'{"type":"heartbeat","x":"' + b"x" * 1_000_000 + b'"}'
        packed = frame(TEXT, deflated(long), rsv=4)
        self.asked(b"permessage-deflate")
        made = []
        whole = compression.Inflater.end_message
        self.patch(compression.Inflater, "end_message", lambda one: made.append(one) or whole(one))
        self.client.feed(packed * 100)
        self.assertEqual(self.server.told[-1].code, 1008)
        self.assertEqual(len(made), 3)

    def test_megabytes_after_our_close(self):
        """CON-20: a listener that is told to go has little left to say."""
        packed = frame(TEXT, deflated(b"x" * 1_000_000), rsv=4)
        self.asked(b"permessage-deflate")
        made = []
        whole = compression.Inflater.end_message
        self.patch(compression.Inflater, "end_message", lambda one: made.append(one) or whole(one))
        self.server.connections[0].close(1001, "maintenance")
        self.client.feed(packed * 100)
        self.assertLess(len(made), 25)
        self.assertTrue(self.client.transport.disconnecting)

    @given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 60))
    @settings(max_examples=100, deadline=None)
    def test_any_compressed_bytes(self, pieces, cut):
        """CON-20: nothing is raised or logged, at most a close frame is the answer."""
        self.asked(b"permessage-deflate")
        data = b""
        for number, piece in enumerate(pieces):
            first, last = number % 3 == 0, number % 3 == 2
            data += frame(TEXT if first else 0, piece, fin=last, rsv=4 if first else 0)
        for at in range(0, len(data), cut):
            self.client.feed(data[at : at + cut])
        self.client.lose(Failure(ConnectionLost()))
        self.assertIsInstance(self.server.told[-1], e.SessionClosed)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_fragments_of_a_compressed_message(self):
        """RFC 7692 section 7.2.2: RSV1 on the first only; a control frame between."""
        self.asked(b"permessage-deflate")
        packed = deflated(b'{"type":"heartbeat","timestamp":5}')
        self.client.feed(
            frame(TEXT, packed[:5], fin=False, rsv=4) + frame(PING, b"") + frame(0, packed[5:])
        )
        self.assertEqual(self.server.told[-1], e.Alive(5))

    def test_from_end_to_end(self):
        """CON-20: what is read is what was sent."""
        self.asked(b"permessage-deflate")
        self.server.connections[0].send(self.BIG)
        ((_, packed),) = frames(self.client.transport.value())
        self.assertEqual(m.decode_server(compression.inflate(packed, MIB)), self.BIG)
