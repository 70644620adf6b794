"""STR-6, STR-12, STR-40, STR-62's figures: 20 listeners x 32 channels, among them bad ones.

The figures are written to ``results/load.json`` and printed; what is asserted is what must hold on
any machine: nobody loses a packet because of somebody else.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import time
from typing import Any

from twisted.trial import unittest

from tests.support.processes import HOST, ROOT, SOAK, Child, ServerProcess, wait_for

SECONDS = 900 if SOAK else 60
IDLE_S = 4.0


def crowd(server: ServerProcess, listeners: int, seconds: float, *options: str) -> Child:
    command = [sys.executable, "-m", "tests.support.crowd", f"{HOST}:{server.port}"]
    return Child([*command, f"--listeners={listeners}", f"--seconds={seconds}", *options])


def is_ready(child: Child) -> bool:
    return "ready" in child.text() or not child.running()


def figures(child: Child) -> dict[str, Any]:
    lines = [line for line in child.text().splitlines() if line.startswith("{")]
    if not lines:
        raise AssertionError(f"the crowd failed:\n{child.text()[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


class BadListeners:
    """What a stage full of broken phones and one attacker do, a little of it at each turn."""

    def __init__(self, server: ServerProcess) -> None:
        self.random = random.Random(20)
        self.server = server
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp: list[socket.socket] = []
        self.deaf = self.join(reads=False)
        self.chatty = self.join(reads=True)

    def join(self, *, reads: bool) -> socket.socket:
        """A WebSocket spoken by hand; audio goes to a port where nobody listens."""
        sock = socket.create_connection((HOST, self.server.port))
        if not reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        if reads:
            sock.recv(4096)
        self.say(sock, b'{"type":"client_config","payload":{"udp_port":9}}')
        self.say(sock, b'{"type":"client_config","payload":{"udp_port":40999}}')
        return sock

    @staticmethod
    def say(sock: socket.socket, text: bytes) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)

    def turn(self) -> None:
        for _ in range(200):
            data = self.random.randbytes(self.random.randrange(1400))
            for port in (self.server.rtp_port, self.server.rtp_port + 1):
                with contextlib.suppress(OSError):
                    self.udp.sendto(data, (HOST, port))
        for _ in range(20):
            self.say(self.chatty, b'{"type":"ntp_request","t1":1}')
            self.say(self.deaf, b'{"type":"ntp_request","t1":1}')
            self.say(self.chatty, b'{"type":[[[[[[')
        if len(self.tcp) < 20:
            sock = socket.create_connection((HOST, self.server.port))
            sock.setblocking(False)
            self.tcp.append(sock)
        for sock in self.tcp:
            with contextlib.suppress(OSError):
                sock.send(self.random.randbytes(100))

    def close(self) -> None:
        for sock in (self.udp, self.deaf, self.chatty, *self.tcp):
            sock.close()


class LoadTest(unittest.TestCase):
    def test_twenty_listeners_and_bad_company(self) -> None:
        """20 x 32 channels for 60 s; some flood, are deaf, send garbage, vanish: loss 0."""
        server = ServerProcess("--source=demo", "--max-listeners=40", "--log-level=error")
        self.addCleanup(server.close)
        server.get("/health")
        good = crowd(server, 20, SECONDS)
        self.addCleanup(good.close)
        wait_for(lambda: is_ready(good), "20 listeners stream")
        vanishing = crowd(server, 5, SECONDS)
        self.addCleanup(vanishing.close)
        wait_for(lambda: is_ready(vanishing), "5 more stream")
        bad = BadListeners(server)
        self.addCleanup(bad.close)
        quiet = self.watch(server, 15)
        vanishing.close()
        end = time.monotonic() + SECONDS / 3
        while time.monotonic() < end:
            bad.turn()
            time.sleep(0.05)
        health = server.get("/health")
        good.wait(SECONDS + 30)
        result = {**figures(good), **quiet}
        result["send_ms"] = {
            key: health["rooms"]["streaming"]["details"][key]
            for key in ("send_ms_p50", "send_ms_p99")
        }
        self.report(result)
        self.assertEqual(result["lost"], 0)
        self.assertEqual(result["ended"], [])
        self.assertEqual(result["streams"], 40)
        self.assertGreater(result["expected"], 20 * 2 * 200 * (SECONDS - 5))
        self.assertNotEqual(health["status"], "unhealthy")
        self.assertNotIn("Traceback", server.text())
        self.assertEqual(server.stop(), 0)

    def watch(self, server: ServerProcess, seconds: float) -> dict[str, float]:
        """The server's CPU over a while, in per cent of one core."""
        before, at = server.cpu_s(), time.monotonic()
        time.sleep(seconds)
        used = (server.cpu_s() - before) / (time.monotonic() - at)
        return {"server_cpu_percent": round(100 * used, 1)}

    def report(self, result: dict[str, Any]) -> None:
        path = ROOT / "results"
        path.mkdir(exist_ok=True)
        (path / "load.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"\n  20 listeners x 32 channels: {json.dumps(result)}")

    def test_idle_when_the_last_has_left(self) -> None:
        """STR-40: while one listens the engine encodes; after it left nothing is, CPU is idle."""
        server = ServerProcess("--source=demo", "--log-level=error")
        self.addCleanup(server.close)
        server.get("/health")
        listening = crowd(server, 1, 5)
        self.addCleanup(listening.close)
        wait_for(lambda: is_ready(listening), "one streams")

        def audio() -> dict[str, Any]:
            details: dict[str, Any] = server.get("/health")["rooms"]["audio"]["details"]
            return details

        wait_for(lambda: audio()["frames_encoded"] > 100, "the band is rendered and encoded")
        busy = self.watch(server, 2)["server_cpu_percent"]
        listening.wait()
        self.assertEqual(figures(listening)["lost"], 0)
        wait_for(lambda: audio()["state"] == "idle", "the engine is idle", 10)
        encoded = audio()["frames_encoded"]
        idle = self.watch(server, IDLE_S)["server_cpu_percent"]
        self.assertEqual(audio()["frames_encoded"], encoded)
        self.assertEqual(audio()["encoders_active"], 0)
        print(f"\n  server CPU with one listener {busy} %, with none {idle} %")
        self.assertLess(idle, busy / 4)
