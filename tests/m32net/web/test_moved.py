"""CON-51 on HTTP: while the listeners move, newcomers are sent to the other server."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Site

from m32net.interfaces import Health
from tests.m32net.web.case import WebCase


class Moved(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.migration.target = "192.0.2.9:8080"

    def test_newcomers(self) -> None:
        """CON-51: what a newcomer asks first: the same path, method and question elsewhere."""
        for path in ("/", "/audio-meta", "/jitter-thresholds", "/sdp/x.sdp", "/audio-meta?a=%20b"):
            answer = self.raw("GET", path)
            self.assertEqual((answer.status, answer.code), (307, "moved"), path)
            self.assertEqual(answer.header("Location"), f"http://192.0.2.9:8080{path}")
            self.assertIn("192.0.2.9:8080", answer.message)

    def test_a_new_connection(self) -> None:
        """CON-51: the successor may have this server's own address and port: not on this line."""
        site = Site(self.root, reactor=self.clock)  # type: ignore[no-untyped-call]
        for path, closes in ((b"/audio-meta", True), (b"/health", False)):
            transport = StringTransport()
            connection = site.buildProtocol(None)
            connection.makeConnection(transport)
            connection.dataReceived(b"GET " + path + b" HTTP/1.1\r\nHost: m32.test\r\n\r\n")
            self.assertEqual(b"Connection: close" in transport.value(), closes)
            self.assertEqual(transport.disconnecting, closes)
            connection.connectionLost(Failure(ConnectionDone()))

    def test_who_is_still_here(self) -> None:
        """CON-51: the engineer, monitoring, and listeners that have not moved yet."""
        self.listeners.descriptions = {"anna": "v=0\r\n"}
        self.listeners.sessions = {"127.0.0.1": "anna"}
        self.log_in()
        for path in (
            "/admin",
            "/static/style.css",
            "/health",
            "/metrics",
            "/openapi.json",
            "/qr.svg",
            "/sdp/anna.sdp",
            "/api/channels",
            "/api/listeners",
            "/request-audio?udp_port=5004",
            "/ws",
        ):
            self.assertEqual(self.get(path).status, 200, path)
        answer = self.send("POST", "/jitter-thresholds", {"interpolate": 50, "drop": 100})
        self.assertEqual(answer.status, 200)
        self.status.rooms = {"audio": Health("unhealthy")}
        self.assertEqual(self.get("/health").status, 503)

    def test_the_code_to_scan(self) -> None:
        """CON-51: it leads to the new server's page, no detour."""
        moved = self.get("/qr.svg").body
        self.assertEqual(moved, self.api.qr_svg("http://192.0.2.9:8080/"))
        self.migration.cancel()
        self.assertEqual(self.get("/qr.svg").body, self.api.qr_svg(self.status.page_url))

    def test_over(self) -> None:
        """CON-51: called off, or not under way at all: everybody stays."""
        self.migration.cancel()
        self.assertEqual(self.get("/audio-meta").status, 200)
        self.api.migration = None
        self.assertEqual(self.get("/").status, 200)

    def test_schemes(self) -> None:
        """CON-51: a secure page leads to a secure one."""
        answer = self.raw("GET", "https://m32.test/audio-meta")
        self.assertEqual(answer.header("Location"), "https://192.0.2.9:8080/audio-meta")
