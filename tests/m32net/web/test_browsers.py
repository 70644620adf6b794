"""CON-31: what keeps other sites' pages, and other hosts' cookies, from acting for the engineer."""

from __future__ import annotations

import json
import re
from typing import Any

from treq.testing import StubTreq
from twisted.web.test.requesthelper import DummyRequest

from m32net.interfaces import RefusedError
from m32net.web.answers import check_origin
from m32net.web.operations import OPERATIONS
from tests.m32net.web.case import HOST, WebCase


class Browsers(WebCase):
    def test_cookie_under_tls(self) -> None:
        """CON-31: over TLS the cookie is bound to this host and never sent in the clear."""
        body = json.dumps({"password": self.password}).encode()
        answer = self.request("POST", "https://m32.test/api/login", body)
        cookie = str(answer.header("Set-Cookie"))
        self.assertTrue(cookie.startswith("__Host-m32net_session="), cookie)
        # What the prefix asks for: Secure, Path=/ and no Domain.
        self.assertEqual(
            {part.strip() for part in cookie.split(";")[1:]},
            {"Path=/", "HttpOnly", "SameSite=Strict", "Secure"},
        )
        value = cookie.split(";")[0]
        session = "https://m32.test/api/session"
        self.treq = StubTreq(self.root)  # without what the first one has kept
        self.assertEqual(self.get(session, headers={"Cookie": value}).status, 200)
        # A page in the clear, or another host of the domain, can set cookies without the prefix.
        plain = value.removeprefix("__Host-")
        self.assertEqual(self.get(session, headers={"Cookie": plain}).status, 401)
        self.assertEqual(self.get("/api/session", headers={"Cookie": value}).status, 401)
        gone = self.request("POST", "https://m32.test/api/logout", headers={"Cookie": value})
        self.assertIn("__Host-m32net_session=; ", str(gone.header("Set-Cookie")))
        self.assertIn("Max-Age=0", str(gone.header("Set-Cookie")))
        self.assertEqual(self.get(session, headers={"Cookie": value}).status, 401)

    def test_everything_that_changes_something(self) -> None:
        """CON-31: no route that does can be used by another site's page, with whatever body."""
        self.listeners.sessions = {"127.0.0.1": "anna"}
        self.log_in()
        foreign: tuple[dict[str, str], ...] = (
            {"Origin": "http://evil.test"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        )
        changing = [op for op in OPERATIONS if 403 in op.statuses]
        self.assertGreater(len(changing), 12)
        for operation in changing:
            path = re.sub(r"\{\w+\}", "x", operation.path)
            for headers in foreign:
                answer = self.request(operation.method.upper(), path, b"{}", headers)
                self.assertEqual((answer.status, answer.code), (403, "foreign_origin"), path)
        self.assertEqual(self.listeners.ports, [])
        self.assertEqual(self.get("/api/session").status, 200, "not logged out")

    def test_forged_pages(self) -> None:
        """CON-31: over TLS no page in the clear; two origins, or hosts, are none."""
        secure = "https://m32.test/request-audio?udp_port=5004"
        self.listeners.sessions = {"127.0.0.1": "anna"}
        for origin, status in (
            ("https://m32.test", 200),
            ("https://m32.test:443", 200),
            ("http://m32.test", 403),
            ("http://m32.test:443", 403),
        ):
            self.assertEqual(self.get(secure, headers={"Origin": origin}).status, status, origin)
        for name, values in (
            (b"Origin", [b"http://evil.test", HOST.encode()]),
            (b"Origin", [HOST.encode(), b"http://evil.test"]),
            (b"Host", [b"m32.test", b"evil.test"]),
        ):
            request: Any = DummyRequest([b""])
            request.requestHeaders.setRawHeaders(b"Host", [b"m32.test"])
            request.requestHeaders.setRawHeaders(name, values)
            refused = self.assertRaises(RefusedError, check_origin, request)
            self.assertEqual((refused.status, refused.code), (403, "foreign_origin"))

    def test_own_pages_and_programs(self) -> None:
        """CON-31: who types the address, follows a link here, or is no browser may."""
        self.listeners.sessions = {"127.0.0.1": "anna"}
        for headers in (
            {},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "same-origin"},
            {"Origin": HOST, "Sec-Fetch-Site": "same-origin"},
            {"Origin": f"{HOST.upper()}:80"},
            {"Origin": ""},
        ):
            answer = self.get("/request-audio?udp_port=5004", headers=headers)
            self.assertEqual(answer.status, 200, headers)
