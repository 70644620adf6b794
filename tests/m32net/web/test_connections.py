"""CON-13, CON-30 as the engineer sees them: connections, and addresses that are shut out."""

from __future__ import annotations

from m32net.interfaces import BlockedAddress, ConnectionStatus
from tests.m32net.web.case import WebCase

PHONE = ConnectionStatus("192.0.2.7", 40001, True, 9.5, 0.5, 100, 2000, 1.5, 0.01)


class Connections(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.log_in()

    def shut_out(self, *addresses: str) -> None:
        self.connections.shut_out = {
            one: BlockedAddress(one, "too many connections", 3000.0) for one in addresses
        }

    def test_open_ones(self) -> None:
        """CON-13: what the kernel says of every connection."""
        self.connections.open = [PHONE]
        answer = self.get("/api/connections").json
        self.assertEqual(answer["count"], 1)
        self.assertEqual(
            answer["connections"][0],
            {
                "host": "192.0.2.7",
                "port": 40001,
                "secure": True,
                "age_s": 9.5,
                "idle_s": 0.5,
                "bytes_received": 100,
                "bytes_sent": 2000,
                "rtt_ms": 1.5,
                "retransmitted": 0.01,
            },
        )

    def test_blocked_ones_are_listed(self) -> None:
        """CON-30: the block list can be seen, with its reasons."""
        self.shut_out("192.0.2.9")
        self.assertEqual(
            self.get("/api/blocked").json,
            {
                "blocked": [
                    {
                        "address": "192.0.2.9",
                        "reason": "too many connections",
                        "remaining_s": 3000.0,
                    }
                ]
            },
        )

    def test_lifted(self) -> None:
        """CON-30: a block can be lifted, of an IPv6 network too, its slash escaped or not."""
        for address, path in (
            ("192.0.2.9", "192.0.2.9"),
            ("2001:db8::/64", "2001:db8::%2F64"),
            ("2001:db8::/64", "2001:db8::/64"),
        ):
            self.shut_out(address, "192.0.2.10")
            answer = self.request("DELETE", f"/api/blocked/{path}")
            self.assertEqual((answer.status, answer.json), (200, {"status": "ok"}), path)
            self.assertEqual(list(self.connections.shut_out), ["192.0.2.10"])

    def test_not_blocked(self) -> None:
        """CON-30: what is not on the list can't be lifted."""
        answer = self.request("DELETE", "/api/blocked/192.0.2.1")
        self.assertEqual((answer.status, answer.code), (404, "not_blocked"))
        self.assertEqual(self.request("DELETE", "/api/blocked/").status, 404)

    def test_for_the_engineer_only(self) -> None:
        """CON-30: nobody lifts their own block."""
        self.shut_out("192.0.2.9")
        self.auth.logout(self.token)
        for method, path in (
            ("GET", "/api/connections"),
            ("GET", "/api/blocked"),
            ("DELETE", "/api/blocked/192.0.2.9"),
        ):
            answer = self.request(method, path)
            self.assertEqual((answer.status, answer.code), (401, "not_logged_in"), path)
        self.assertEqual(list(self.connections.shut_out), ["192.0.2.9"])

    def test_not_from_another_site(self) -> None:
        """CON-30: another site's page can't use the engineer's cookie to lift a block."""
        self.shut_out("192.0.2.9")
        origin = {"Origin": "http://evil.test"}
        answer = self.request("DELETE", "/api/blocked/192.0.2.9", headers=origin)
        self.assertEqual((answer.status, answer.code), (403, "foreign_origin"))

    def test_without_the_collaborator(self) -> None:
        """CON-30: a server that does not watch its connections says so."""
        self.api.connections = None
        for path in ("/api/connections", "/api/blocked"):
            answer = self.get(path)
            self.assertEqual((answer.status, answer.code), (404, "not_watched"))
