"""CON-1, CON-2, CON-30: the whole server's connections, seen by iproute2 and by a rude client."""

from __future__ import annotations

import socket
import subprocess
import time

from twisted.trial import unittest

from protocols.tcp.protocol import IPPROTO_MPTCP, mptcp_available
from tests.support.processes import ServerProcess, missing, wait_for

GET = b"GET /audio-meta HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PHONE = "127.0.0.3"
"""Loopback, but not the address that is exempt."""
MULTIPATH = ("--mptcp=yes",) if mptcp_available() else ()
"""Left out where the kernel makes no IPPROTO_MPTCP sockets."""


def ss(*arguments: str) -> str:
    return subprocess.run(
        ["ss", "-H", "-n", *arguments], capture_output=True, text=True, check=True, timeout=20
    ).stdout


class ConnectionsTest(unittest.TestCase):
    skip = missing("ss")

    def server(self, *options: str) -> ServerProcess:
        server = ServerProcess(*options)
        self.addCleanup(server.close)
        self.assertTrue(server.port)
        return server

    def connect(
        self, server: ServerProcess, *, source: str = PHONE, kind: int = 0
    ) -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, kind)
        self.addCleanup(client.close)
        client.settimeout(10)
        client.bind((source, 0))
        client.connect((server.host, server.port))
        return client

    def ask(self, server: ServerProcess, source: str = PHONE) -> bytes:
        """The status line, or "reset"."""
        try:
            with self.connect(server, source=source) as client:
                client.sendall(GET)
                answer = b""
                while data := client.recv(65536):
                    answer += data
                return answer.partition(b"\r\n")[0]
        except ConnectionError:
            return b"reset"

    def test_options_reach_the_kernel(self) -> None:
        """CON-1: as defaults, and as options on the command line, Multipath TCP among them."""
        for options, timer, buffers in (
            ((), r"timer:\(keepalive,(2\d|30)sec,0\)", "131072"),
            (
                ("--tcp-keepalive=77", "--tcp-buffer=32"),
                r"timer:\(keepalive,1min\d+sec,0\)",
                "65536",
            ),
        ):
            server = self.server(*options)
            client = self.connect(server)
            client.sendall(GET.replace(b"close", b"keep-alive"))
            self.assertIn(b"200 OK", client.recv(65536))
            seen = ss("-tinom", f"dport = :{client.getsockname()[1]}")
            self.assertRegex(seen, timer)
            self.assertIn(f"rb{buffers}", seen)
            self.assertIn(f"tb{buffers}", seen)
            if "--mptcp=yes" in options:
                self.multipath(server)
            server.stop()

    def multipath(self, server: ServerProcess) -> None:
        """A phone with Multipath TCP, on a server that offers it."""
        client = self.connect(server, kind=IPPROTO_MPTCP)
        client.sendall(GET.replace(b"close", b"keep-alive"))
        self.assertIn(b"200 OK", client.recv(65536))
        port = client.getsockname()[1]
        self.assertIn("ESTAB", ss("-M", f"dport = :{port}"))
        self.assertIn("tcp-ulp-mptcp", ss("-tin", f"dport = :{port}"))

    def test_eleventh(self) -> None:
        """CON-30: ten a minute, the 11th hears 429, who goes on is shut out; others are not, nor
        is the machine itself."""
        server = self.server()
        answers = [self.ask(server) for _ in range(35)]
        self.assertEqual(answers[:10], [b"HTTP/1.1 200 OK"] * 10)
        self.assertEqual(answers[10:29], [b"HTTP/1.1 429 Too Many Requests"] * 19)
        self.assertEqual(answers[29:], [b"reset"] * 6)
        self.assertEqual(self.ask(server, "127.0.0.4"), b"HTTP/1.1 200 OK")
        for _ in range(15):
            self.assertEqual(self.ask(server, "127.0.0.1"), b"HTTP/1.1 200 OK")
        figures = server.get("/metrics")
        self.assertIn('m32net_http_connections_refused_total{reason="too_many"} 19.0', figures)
        self.assertIn('m32net_http_connections_refused_total{reason="blocked"} 6.0', figures)
        self.assertIn("m32net_http_addresses_blocked 1.0", figures)
        self.assertIn(f"{PHONE} opens more connections than 10 a minute", server.text())
        self.assertEqual(server.stop(), 0)

    def test_block_ends(self) -> None:
        """CON-30: with options of one's own; a block ends by itself."""
        server = self.server("--connections-per-minute=1", "--block=1", "--exempt=none")
        for _ in range(25):
            last = self.ask(server)
        self.assertEqual(last, b"reset")
        time.sleep(1.1)
        self.assertEqual(self.ask(server), b"HTTP/1.1 200 OK")

    def test_taken(self) -> None:
        """CON-2: one address gets half of the places; with all taken, the next hears 503; CON-1:
        a second server on the same port ends with one line."""
        server = self.server("--connections-per-minute=1000")
        other = ServerProcess(f"--http=tcp:{server.port}")
        self.addCleanup(other.close)
        crowd = [self.connect(server) for _ in range(50)]
        wait_for(lambda: self.ask(server).startswith(b"HTTP/1.1 429"), "half of all taken")
        crowd += [self.connect(server, source="127.0.0.4") for _ in range(50)]
        wait_for(lambda: self.ask(server, "127.0.0.5").startswith(b"HTTP/1.1 503"), "full")
        for one in crowd:
            one.close()
        wait_for(lambda: self.ask(server) == b"HTTP/1.1 200 OK", "room again")
        self.assertEqual(other.wait(30), 1)
        line = next(x for x in other.text().splitlines() if x.startswith("m32net: "))
        self.assertIn(f"cannot listen on 127.0.0.1:{server.port}", line)
