"""The shape of the web interface: headers, refusals, pages; whatever comes, never a 5xx."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from treq.testing import StubTreq

from m32net.web.headers import HEADERS, content_security_policy, hsts_fits
from m32net.web.operations import OPERATIONS
from tests.m32net.web.case import WebCase

BODIES = [op for op in OPERATIONS if op.body is not None]


class Refusals(WebCase):
    def test_nothing_there(self) -> None:
        for path in ("/nothing", "/api", "/api/", "/api/nothing", "/sdp/", "/%2e%2e/etc/passwd"):
            answer = self.get(path)
            self.assertEqual((answer.status, answer.code), (404, "not_found"), path)
            self.assertEqual(answer.header("Content-Type"), "application/json")

    def test_wrong_method(self) -> None:
        answer = self.request("DELETE", "/audio-meta")
        self.assertEqual((answer.status, answer.code), (405, "method_not_allowed"))
        self.assertEqual(answer.header("Allow"), "GET, HEAD")

    def test_double_slashes_are_no_redirect(self) -> None:
        """An address such as //evil.test must not send anybody elsewhere."""
        for path in ("//evil.test", "///evil.test/", "/static//style.css", "/admin/"):
            answer = self.get(path)
            self.assertEqual(answer.status, 404, path)
            self.assertIsNone(answer.header("Location"))

    def test_text_that_is_none(self) -> None:
        for path in (b"/%ff", b"/sdp/%c3%28.sdp", b"/static/%80"):
            answer = self.request("GET", path)
            self.assertEqual((answer.status, answer.code), (400, "bad_request"), path)

    def test_bad_bodies(self) -> None:
        for body, words in (
            (b"", "empty"),
            (b"  ", "empty"),
            (b"{", "not JSON"),
            (b"\xff\xfe", "UTF-8"),
            (b'{"client_id": "\xc3("}', "UTF-8"),
            (b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
            (b'{"x": "\\ud800"}', "surrogate"),
            (b"null", "object"),
            (b"x" * (1024 * 1024 + 1), "1048576"),
        ):
            answer = self.request("POST", "/qos-metrics", body)
            self.assertIn(answer.status, (400, 413), body[:20])
            self.assertIn(words, answer.message)


class Headers(WebCase):
    def test_on_everything(self) -> None:
        """Pages, data, errors and the WebSocket's resource."""
        for path in ("/", "/admin", "/audio-meta", "/nothing", "/api/channels", "/%ff", "/ws"):
            answer = self.get(path)
            for name in HEADERS:
                self.assertIsNotNone(answer.header(name), (path, name))
            self.assertEqual(answer.header("X-Content-Type-Options"), "nosniff")
            self.assertEqual(answer.header("Server"), "m32net")
            policy = str(answer.header("Content-Security-Policy"))
            self.assertNotIn("unsafe", policy)
            self.assertTrue(policy.startswith("default-src 'none'; "), policy)

    def test_the_policy_names_the_socket_of_this_host_only(self) -> None:
        """CON-31: pages connect to the server they came from, and nowhere else."""
        for host, secure, connect in (
            ("m32.test", False, "connect-src 'self' ws://m32.test;"),
            ("m32.test:8443", True, "connect-src 'self' wss://m32.test:8443;"),
            ("[::1]:8080", False, "connect-src 'self' ws://[::1]:8080;"),
            (None, False, "connect-src 'self';"),
        ):
            self.assertIn(connect, content_security_policy(host, secure))

    def test_a_host_header_can_write_no_policy(self) -> None:
        """CON-31: what is no host name is left out."""
        for host in ("a.test; script-src *", "a.test *", "*", "a.test, b.test", "a\r\nb", "é.test"):
            policy = content_security_policy(host, False)
            self.assertEqual(policy, content_security_policy(None, False), host)
        answer = self.get("/", headers={"Host": "a.test; script-src *"})
        self.assertNotIn("a.test", str(answer.header("Content-Security-Policy")))

    def test_https_is_not_forced_unless_asked_for(self) -> None:
        """CON-32: browsers are bound to https over https only, and only where that was chosen."""
        name = "Strict-Transport-Security"
        self.assertIsNone(self.get("https://m32.test/").header(name))
        self.api.hsts = True
        self.treq = StubTreq(self.api.root(self.control))
        self.assertEqual(self.get("https://m32.test/").header(name), "max-age=15552000")
        self.assertIsNone(self.get("/").header(name))

    def test_when_https_may_be_forced(self) -> None:
        """CON-32: with a certificate of one's own, and plain HTTP on this machine only."""
        for own, http, fits in (
            (True, "tcp:8080", False),
            (True, "tcp:8080:interface=192.0.2.1", False),
            (True, "tcp:8080:interface=127.0.0.1", True),
            (True, r"tcp:8080:interface=\:\:1", True),
            (False, "tcp:8080:interface=127.0.0.1", False),
        ):
            self.assertEqual(hsts_fits(own, http), fits, http)

    def test_data_is_not_kept(self) -> None:
        self.assertEqual(self.get("/audio-meta").header("Cache-Control"), "no-store")

    def test_the_websocket_has_its_place(self) -> None:
        self.assertEqual(self.get("/ws").body, b"the control session")
        self.assertEqual(self.get("/wsx").status, 404)


class Pages(WebCase):
    def test_pages(self) -> None:
        for path in ("/", "/admin"):
            answer = self.get(path)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.header("Content-Type"), "text/html; charset=utf-8")
            self.assertIn(b'name="viewport"', answer.body)

    def test_everything_they_load_is_there(self) -> None:
        """No file of another site, and none that is missing; imports of modules too."""
        found = 0
        for page in ("/", "/admin"):
            text = self.get(page).body.decode()
            for link in re.findall(r'(?:src|href)="([^"]+)"', text):
                self.assertTrue(link.startswith("/"), link)
                answer = self.get(link)
                self.assertEqual(answer.status, 200, link)
                for other in re.findall(r'from "\./([^"]+)"', answer.body.decode()):
                    self.assertEqual(self.get(f"/static/{other}").status, 200, other)
                    found += 1
        self.assertGreaterEqual(found, 2)

    def test_no_inline_code(self) -> None:
        """The content security policy would stop it."""
        for page in ("/", "/admin"):
            text = self.get(page).body.decode()
            self.assertNotRegex(text, r"<script(?![^>]*src=)")
            self.assertNotRegex(text, r"\son\w+=|\sstyle=|javascript:")

    def test_unchanged(self) -> None:
        """A file the browser has is not sent again."""
        first = self.get("/static/style.css")
        etag = str(first.header("ETag"))
        answer = self.get("/static/style.css", headers={"If-None-Match": etag})
        self.assertEqual((answer.status, answer.body), (304, b""))

    def test_only_what_is_in_the_package(self) -> None:
        for path in (
            "/static/../api.py",
            "/static/%2e%2e%2fapi.py",
            "/static/..%2fapi.py",
            "/static/",
            "/static/__init__.py",
            "/static/%00",
        ):
            self.assertEqual(self.get(path).status, 404, path)

    def test_qr(self) -> None:
        answer = self.get("/qr.svg")
        self.assertEqual(answer.header("Content-Type"), "image/svg+xml")
        self.assertIn(b"<svg", answer.body)

    def test_head(self) -> None:
        answer = self.request("HEAD", "/audio-meta")
        self.assertEqual((answer.status, answer.body), (200, b""))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["opus", "L24", 48000, 5, -1, 2**63, 2**64, 10**400, 1e308, "", "#ffffff"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=10) | st.sampled_from(["id", "name"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def shaped(op: Any) -> st.SearchStrategy[Any]:
    """Bodies that look right from afar: the right fields with any values."""
    if op.path == "/api/channels":
        names = ["id", "name", "color", "order", "enabled"]
        one = st.dictionaries(st.sampled_from(names), json_values)
        return st.lists(one, max_size=4)
    body = op.body if isinstance(op.body, type) else get_args(op.body)[0]
    names = list(body.__struct_fields__)
    return st.dictionaries(st.sampled_from(names), json_values, min_size=1)


class Fuzz(WebCase):
    """No body, path or query makes the server fail: 2xx or 4xx, and JSON errors."""

    def setUp(self) -> None:
        super().setUp()
        self.log_in()
        self.listeners.sessions = {"127.0.0.1": "anna"}

    def check(self, method: str, path: str, body: bytes) -> None:
        answer = self.request(method, path, body)
        self.assertLess(answer.status, 500, (method, path, body))
        if answer.status >= 400:
            self.assertEqual(set(answer.json), {"error"})
            self.assertEqual(set(answer.json["error"]), {"code", "message"})
        self.clock.advance(60)  # attempts to log in are limited

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(BODIES), st.data())
    def test_json_of_any_shape(self, op: Any, data: Any) -> None:
        value = data.draw(json_values | shaped(op))
        self.check(op.method.upper(), op.path, json.dumps(value).encode())

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(BODIES), st.binary(max_size=60))
    @example(BODIES[0], b"\xed\xa0\x80")
    @example(BODIES[0], b"[" * 500_000)
    @example(BODIES[0], b'{"a":' * 100_000)
    @example(BODIES[0], b"9" * 100_000)
    @example(BODIES[0], b'{"client_id":"a","metrics":{"jitter_ms":1e99999}}')
    @example(BODIES[0], b'{"client_id":"a","metrics":{"jitter_ms":' + b"9" * 5000 + b"}}")
    def test_bytes(self, op: Any, body: bytes) -> None:
        self.check(op.method.upper(), op.path, body)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(["/request-audio", "/api/quality", "/sdp/x.sdp", "/"]),
        st.sampled_from(["udp_port", "client_id", "since", "limit", "x"]),
        st.binary(max_size=20),
    )
    def test_queries(self, path: str, name: str, value: bytes) -> None:
        query = "".join(f"%{byte:02x}" for byte in value)
        self.check("GET", f"{path}?{name}={query}", b"")

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["/", "/static/", "/sdp/", "/api/"]), st.binary(max_size=20))
    def test_paths(self, start: str, rest: bytes) -> None:
        self.check("GET", start + "".join(f"%{byte:02x}" for byte in rest), b"")
