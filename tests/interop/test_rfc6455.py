"""CON-2, CON-10, CON-20: raw bytes over TCP at a real server, one violation of a standard each.

Each is answered with its close code or HTTP status and a closed connection; all the time a listener
with manners goes on, and afterwards the server is healthy.
"""

from __future__ import annotations

import json
import select
import socket
import time

from twisted.trial import unittest

from tests.support.processes import HOST, ServerProcess, wait_for
from tests.support.violations import BAD_HANDSHAKES, VIOLATIONS, request
from tests.support.websocket import CLOSE, DEFLATE, HANDSHAKE, PING, PONG, TEXT, frame, frames

PATIENCE_S = 10.0
AT_A_TIME = 20
LATE_ROOMS = ("audio", "loop", "delivery")


class RawClient:
    """A TCP connection that keeps what was heard."""

    def __init__(self, server: ServerProcess, handshake: bytes = HANDSHAKE) -> None:
        self.socket = socket.create_connection((HOST, server.port), PATIENCE_S)
        self.heard = b""
        self.closed = False
        self.socket.sendall(handshake)
        wait_for(lambda: self.read() or b"\r\n\r\n" in self.heard or self.closed, "an answer")
        self.answer, _, self.heard = self.heard.partition(b"\r\n\r\n")

    def status(self) -> int:
        return int(self.answer.split(b" ", 2)[1])

    def send(self, data: bytes) -> None:
        """Also to one who has heard enough and does not listen any more."""
        self.socket.setblocking(False)
        end = time.monotonic() + PATIENCE_S
        while data and not self.closed and time.monotonic() < end:
            self.read()
            if not select.select([], [self.socket], [], 0.1)[1]:
                continue
            try:
                data = data[self.socket.send(data[:65_536]) :]
            except BlockingIOError:
                continue
            except OSError:
                self.closed = True

    def read(self, timeout: float = 0.0) -> bool:
        """Take in what is there; whether there was anything."""
        if self.closed or not select.select([self.socket], [], [], timeout)[0]:
            return False
        try:
            data = self.socket.recv(65_536)
        except ConnectionError:
            data = b""
        self.closed = not data
        self.heard += data
        return bool(data)

    def read_to_the_end(self) -> bytes:
        end = time.monotonic() + PATIENCE_S
        while not self.closed and time.monotonic() < end:
            self.read(0.1)
        return self.heard

    def messages(self) -> list[dict]:
        """Text messages since the last time; pings are answered."""
        self.read(0.05)
        found, self.heard = frames(self.heard), b""
        for opcode, payload in found:
            if opcode == PING:
                self.send(frame(PONG, payload))
        return [json.loads(payload) for opcode, payload in found if opcode == TEXT]

    def say(self, **message: object) -> None:
        self.send(frame(TEXT, json.dumps(message).encode()))

    def close(self) -> None:
        self.socket.close()


class ViolationsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = ServerProcess("--source=test", "--channels=2", "--ping-interval=1")
        self.addCleanup(self.server.close)
        self.listener = RawClient(self.server)
        self.addCleanup(self.listener.close)
        self.listener.say(type="client_config", payload={"udp_port": 40_000})
        self.question = 0

    def the_listener_goes_on(self) -> None:
        """It asks for the time and is answered, on the connection it has had all along."""
        self.question += 1
        self.listener.say(type="ntp_request", t1=self.question)
        self.listener.say(type="heartbeat")
        wait_for(
            lambda: any(one.get("t1") == self.question for one in self.listener.messages()),
            "the listener's answer",
            PATIENCE_S,
        )

    def the_server_is_well(self) -> None:
        self.the_listener_goes_on()
        self.assertTrue(self.server.running())
        status, health = self.server.call("GET", "/health")
        self.assertEqual(status, 200, health)
        rooms = {name: room["state"] for name, room in health["rooms"].items()}
        for room in LATE_ROOMS:  # a busy machine's tests are late, that is no harm done here
            rooms.pop(room, None)
        self.assertEqual(set(rooms.values()), {"healthy"}, health["reasons"])
        self.assertEqual(health["rooms"]["audio"]["details"]["state"], "running")
        self.assertNotIn("Traceback", self.server.text())
        token = self.server.login()
        listeners = self.server.call("GET", "/api/listeners", token=token)[1]
        self.assertEqual(listeners["count"], 1, listeners)

    def test_frames(self) -> None:
        """CON-2, CON-20: each with its close code and nothing after it; then TCP's end."""
        for start in range(0, len(VIOLATIONS), AT_A_TIME):
            some = VIOLATIONS[start : start + AT_A_TIME]
            clients = [RawClient(self.server, DEFLATE if v.compressed else HANDSHAKE) for v in some]
            for one, client in zip(some, clients, strict=True):
                self.assertEqual(client.status(), 101)
                client.send(one.data)
            self.the_listener_goes_on()
            for one, client in zip(some, clients, strict=True):
                heard = frames(client.read_to_the_end())
                self.assertTrue(client.closed, f"{one.name}: the connection stays")
                client.close()
                self.assertEqual([opcode for opcode, _ in heard][-1:], [CLOSE], one.name)
                self.assertEqual([opcode for opcode, _ in heard].count(CLOSE), 1, one.name)
                code, reason = heard[-1][1][:2], heard[-1][1][2:].decode()
                self.assertEqual(int.from_bytes(code, "big"), one.code, f"{one.name}: {reason}")
        self.the_server_is_well()

    def test_handshakes(self) -> None:
        """Each with its status and a reason in JSON."""
        requests = [*BAD_HANDSHAKES, ("HTTP/1.0", request(b"GET /ws HTTP/1.0"), 505)]
        for name, data, expected in requests:
            client = RawClient(self.server, data)
            client.read_to_the_end() if b"onnection: close" in client.answer else client.read(0.5)
            client.close()
            self.assertEqual(client.status(), expected, f"{name}: {client.answer!r}")
            if name != "no Host":  # twisted.web refuses that one before anybody is asked
                body = json.loads(client.heard)
                self.assertEqual(body["error"]["code"], "bad_handshake", name)
            if expected == 426:
                self.assertIn(b"sec-websocket-version: 13", client.answer.lower(), name)
        self.the_server_is_well()

    def test_pings(self) -> None:
        """CON-10, CON-13: who answers stays and has a round trip; who only talks is let go."""
        server = ServerProcess(
            "--source=test", "--channels=2", "--ping-interval=1", "--pong-timeout=4"
        )
        self.addCleanup(server.close)
        lively, talker = RawClient(server), RawClient(server)
        for client, port in ((lively, 40_002), (talker, 40_004)):
            self.addCleanup(client.close)
            client.say(type="client_config", payload={"udp_port": port})

        def let_go() -> bool:
            lively.messages()
            talker.say(type="heartbeat")
            talker.read(0.05)
            return any(opcode == CLOSE for opcode, _ in frames(talker.heard))

        wait_for(let_go, "the talker is let go", 30)
        self.assertEqual(frames(talker.heard)[-1][1], b"\x03\xf0no answer to pings for 4 s")
        listeners = server.call("GET", "/api/listeners", token=server.login())[1]["listeners"]
        (kept,) = [one for one in listeners if one["udp_port"] == 40_002]
        self.assertGreater(kept["control"]["rtt_ms"], 0)
        lively.say(type="ntp_request", t1=7)
        wait_for(lambda: any(one.get("t1") == 7 for one in lively.messages()), "an answer")

    def test_a_page_of_the_server(self) -> None:
        """What it called the server counts, whatever that is."""
        host = f"{HOST}:{self.server.port}".encode()
        data = request(b"GET /ws HTTP/1.1", b"Host", b"Host: " + host, b"Origin: http://" + host)
        client = RawClient(self.server, data)
        self.assertEqual(client.status(), 101)
        client.close()

    def test_compression(self) -> None:
        """CON-20: agreed on without state; a short answer is sent as it is."""
        client = RawClient(self.server, DEFLATE)
        self.assertIn(b"server_no_context_takeover; client_no_context_takeover", client.answer)
        client.say(type="ntp_request", t1=1)
        (answer,) = wait_for(client.messages, "an answer")
        self.assertEqual(answer["t1"], 1)
        client.close()
        self.the_server_is_well()
