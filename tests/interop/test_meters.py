"""CON-52: levels by WebSocket from a real server are those of the audio it captures."""

from __future__ import annotations

import json
import math
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from twisted.trial import unittest

from tests.support.processes import ListenProcess, ServerProcess
from tests.support.websocket import HANDSHAKE, TEXT, frame, frames

RATE = 48_000
Message = dict[str, Any]


class Client:
    """A control connection made of bytes; answers nothing by itself."""

    def __init__(self, server: ServerProcess) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=10)
        self.socket.sendall(HANDSHAKE.replace(b"127.0.0.1", f"127.0.0.1:{server.port}".encode()))
        self.waiting = b""
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        self.waiting = answer.split(b"\r\n\r\n", 1)[1]

    def say(self, kind: str, **payload: Any) -> None:
        message = json.dumps({"type": kind, "payload": payload})
        self.socket.sendall(frame(TEXT, message.encode()))

    def hear(self, seconds: float) -> list[tuple[float, Message]]:
        """Messages that come in so long, with the seconds since now."""
        began = time.monotonic()
        found: list[tuple[float, Message]] = []
        while (left := began + seconds - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                received = self.socket.recv(65536)
            except TimeoutError:
                break
            assert received, "the server closed the connection"
            self.waiting += received
            while len(self.waiting) >= 2:
                head = 4 if self.waiting[1] == 126 else 2
                size = self.waiting[1]
                if size == 126:
                    size = int.from_bytes(self.waiting[2:4], "big")
                if len(self.waiting) < head + size:
                    break
                one, self.waiting = self.waiting[: head + size], self.waiting[head + size :]
                for opcode, data in frames(one):
                    if opcode == TEXT:
                        found.append((time.monotonic() - began, json.loads(data)))
        return found

    def join(self) -> None:
        self.say("hello", name="meter")
        ((_, welcome),) = self.hear(0.5)
        assert welcome["type"] == "welcome", welcome

    def close(self) -> None:
        self.socket.close()


class MetersTest(unittest.TestCase):
    def serve(self, *options: str) -> ServerProcess:
        server = ServerProcess("--log-level=error", *options)
        self.addCleanup(server.close)
        return server

    def client(self, server: ServerProcess) -> Client:
        client = Client(server)
        self.addCleanup(client.close)
        return client

    def meters(self, heard: list[tuple[float, Message]]) -> list[tuple[float, Message]]:
        return [(at, one["payload"]) for at, one in heard if one["type"] == "meters"]

    def test_the_levels_of_the_test_source(self) -> None:
        """CON-52, STR-3, STR-40: channel n is n of 32,768; nothing is encoded for it; what does
        not change is told every 5 s only; what is no more wanted no more comes."""
        server = self.serve("--source=test")
        client = self.client(server)
        client.join()
        client.say("meters", interval_ms=100)
        pictures = self.meters(client.hear(6.5))
        expected = [max(-90, round(20 * math.log10(n / 32768))) for n in range(1, 33)]
        self.assertEqual([one for _, one in pictures], [{"peak_db": expected}] * 2)
        self.assertLess(pictures[0][0], 1.0)
        self.assertTrue(4.5 < pictures[1][0] - pictures[0][0] < 5.5, pictures)
        audio = server.get("/health")["rooms"]["audio"]["details"]
        self.assertEqual((audio["frames_encoded"], audio["encoders_active"]), (0, 0))
        client.say("meters", interval_ms=50)
        self.assertEqual([one for _, one in self.meters(client.hear(1.0))], [{"peak_db": expected}])
        client.say("meters", interval_ms=0)
        client.hear(0.5)
        self.assertEqual(self.meters(client.hear(6.0)), [])

    def test_levels_before_encoding_while_somebody_listens(self) -> None:
        """CON-52: a band of known peaks, metered as captured, with an Opus listener at it."""
        directory = Path(tempfile.mkdtemp(prefix="m32net-test-"))
        self.addCleanup(shutil.rmtree, directory)
        peaks = [-1, -3, -6, -12, -20, -40, -60, -90]
        wave = np.sin(np.arange(RATE * 4) * (2 * np.pi * 1000 / RATE))
        band = np.stack([wave * 10 ** (db / 20) for db in peaks], axis=1)
        band[:, -1] = 0
        soundfile.write(directory / "band.wav", band, RATE, subtype="PCM_24")
        server = self.serve(f"--source=file:{directory / 'band.wav'}", "--channels=8")
        client = self.client(server)
        client.join()
        listener = ListenProcess(
            server.url,
            "--udp-port=0",
            "--codec=opus",
            f"--record={directory / 'out.wav'}",
            "--interface=127.0.0.1",
            "--duration=3",
        )
        self.addCleanup(listener.close)
        client.say("meters", interval_ms=200)
        pictures = self.meters(client.hear(6.0))
        self.assertEqual(listener.wait(), 0, listener.text())
        shown: dict[int, int] = {}
        for _, one in pictures[1:]:  # the first may have begun in the middle of the first period
            ids = one.get("channels", range(1, 9))
            shown.update(zip(ids, one["peak_db"], strict=True))
        self.assertEqual(shown, dict(enumerate(peaks, 1)))
        self.assertGreater(server.get("/health")["rooms"]["audio"]["details"]["frames_encoded"], 0)

    def test_a_band_moves(self) -> None:
        """CON-52: ten pictures a second, of what has changed."""
        server = self.serve("--source=demo")
        client = self.client(server)
        client.join()
        client.say("meters", interval_ms=100)
        deadline = time.monotonic() + 60
        pictures = self.meters(client.hear(0.1))
        while not pictures and time.monotonic() < deadline:  # until the band has tuned up
            pictures = self.meters(client.hear(0.1))
        self.assertNotIn("channels", pictures[0][1])
        pictures = self.meters(client.hear(4.0))
        self.assertTrue(30 < len(pictures) < 45, len(pictures))
        levels = [db for _, one in pictures for db in one["peak_db"]]
        self.assertGreater(max(levels), -30)
        self.assertGreater(len(set(levels)), 10)

    def test_cost(self) -> None:
        """CON-52: 32 channels to 20 sessions ten times a second, all levels moving; afterwards
        none of it is left."""
        server = self.serve("--source=demo", "--max-listeners=30")
        clients = [self.client(server) for _ in range(20)]
        for client in clients:
            client.join()
        idle = self.cpu_of(server, clients)
        for client in clients:
            client.say("meters", interval_ms=100)
        deadline = time.monotonic() + 60
        while not self.meters(clients[0].hear(0.1)) and time.monotonic() < deadline:
            pass
        metered = self.cpu_of(server, clients)
        for client in clients:
            client.say("meters", interval_ms=0)
            client.hear(0.1)
        afterwards = self.cpu_of(server, clients)
        # Most of it is making the band's sound; a server that is drowned shows here all the same.
        self.assertLess(metered, 0.5)
        self.assertLess(afterwards, idle + 0.05)

    def cpu_of(self, server: ServerProcess, clients: list[Client]) -> float:
        """Of one core, while everybody reads."""
        before, began = server.cpu_s(), time.monotonic()
        for _ in range(5):
            clients[0].hear(0.8)
            for client in clients[1:]:
                client.hear(0.01)
        return (server.cpu_s() - before) / (time.monotonic() - began)

    def test_only_listeners_are_shown_levels(self) -> None:
        """CON-52: who has not said hello is told so."""
        server = self.serve("--source=test")
        client = self.client(server)
        client.say("meters", interval_ms=100)
        kinds = [one["type"] for _, one in client.hear(1.0)]
        self.assertEqual(kinds, ["error"])
