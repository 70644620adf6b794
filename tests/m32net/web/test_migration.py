"""CON-51: the routes for moving listeners, in memory."""

from __future__ import annotations

import os
from typing import Any

from twisted.web.server import Request

from m32net.interfaces import Arrival, RefusedError
from m32net.web.migration import MigrationRoutes
from tests.m32net.web.case import WebCase

ARRIVAL = {"client_id": "client_1", "token": "t" * 43, "name": "Anna 🎤", "host": "192.0.2.9"}


class EngineerTest(WebCase):
    def test_begin_show_cancel(self) -> None:
        """CON-51: the engineer moves everybody, sees how far it is, and calls it off."""
        self.log_in()
        self.assertEqual(self.get("/api/migration").json["state"], "idle")
        begun = self.send("POST", "/api/migration", {"host": "stage-b.local", "port": 8080})
        self.assertEqual(begun.status, 200, begun.body)
        self.assertEqual(self.migration.begun, [("stage-b.local", 8080, 30.0, 0.5)])
        shown = self.get("/api/migration").json
        self.assertEqual((shown["state"], shown["pid"]), ("moving", os.getpid()))
        self.assertEqual(self.request("DELETE", "/api/migration").json["state"], "cancelled")

    def test_only_the_engineer(self) -> None:
        """CON-51: nobody else may send a band elsewhere."""
        for method, path, body in (
            ("POST", "/api/migration", {"host": "evil.example", "port": 80}),
            ("GET", "/api/migration", None),
            ("DELETE", "/api/migration", None),
            ("POST", "/api/peer/arrivals", {"arrivals": [ARRIVAL]}),
            ("POST", "/api/succession", {"listen": True}),
        ):
            answer = self.send(method, path, body)
            self.assertEqual(answer.status, 401, (method, path))
        self.assertEqual((self.migration.begun, self.migration.arrivals), ([], []))

    def test_refusals(self) -> None:
        """CON-51: what can't be is told with the reason of who can't."""
        self.log_in()
        for body in (
            {"host": "http://x", "port": 80},
            {"host": "", "port": 80},
            {"host": "x/../y", "port": 80},
            {"host": "x", "port": 0},
            {"host": "x", "port": 80, "after_s": -1},
            {"host": "x", "port": 80, "each_s": 1e9},
        ):
            self.assertEqual(self.send("POST", "/api/migration", body).status, 400, body)
        self.migration.refusal = RefusedError("server_full", "it has 1 free place", 409)
        answer = self.send("POST", "/api/migration", {"host": "x", "port": 80})
        self.assertEqual((answer.status, answer.code), (409, "server_full"))

    def test_without_migration(self) -> None:
        self.log_in()
        self.api.migration = None
        self.assertEqual(self.get("/api/migration").status, 404)
        self.assertEqual(self.get("/api/peer").status, 404)

    def test_arrivals_by_the_engineer(self) -> None:
        """The local token is as good as a certificate: the process next door has it."""
        self.log_in()
        answer = self.send("POST", "/api/peer/arrivals", {"arrivals": [ARRIVAL]})
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(self.migration.arrivals, [Arrival(**ARRIVAL)])
        for wrong in ({"arrivals": [{**ARRIVAL, "token": "short"}]}, {"arrivals": 1}, {}):
            self.assertEqual(self.send("POST", "/api/peer/arrivals", wrong).status, 400)

    def test_introduction_is_public(self) -> None:
        self.assertEqual(self.get("/api/peer").json["https_port"], 8443)


class PeerTest(WebCase):
    """Who is a peer, by the certificate of the connection."""

    def refused(self, certificate: Any, **routes: Any) -> bool:
        class Transport:
            def getPeerCertificate(self) -> Any:
                return certificate

            def getHandle(self) -> Any:
                return self

            def get_peer_cert_chain(self) -> Any:
                return routes.get("chain")

        class Channel:
            transport = Transport()

        asked: list[Request] = []
        api = MigrationRoutes()
        api.admin = lambda request: asked.append(request) or "admin"  # type: ignore[method-assign]
        api.trust = self.trust if routes.get("tls", True) else None
        request: Any = type("R", (), {"channel": Channel()})()
        api._peer(request)
        return bool(asked)

    def test_certificate(self) -> None:
        """CON-32, CON-51: a certificate counts if it is trusted; all others must log in."""
        self.trust.peers.append("stage-b")
        self.assertFalse(self.refused("stage-b"))
        self.assertTrue(self.refused("stranger"))
        self.assertTrue(self.refused(None))
        self.assertTrue(self.refused("stage-b", tls=False))

    def test_chain(self) -> None:
        """CON-32: what the other server sends besides its certificate is looked at, too."""
        self.trust.peers.append("its CA")
        self.assertFalse(self.refused("stage-b", chain=["between", "its CA"]))
        self.assertTrue(self.refused("stage-b", chain=["between"]))
