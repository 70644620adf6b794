"""CON-20 on HTTP: what is long is compressed where it pays, and nothing inflates unbounded."""

from __future__ import annotations

import gzip
import json
import secrets
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.web.test.requesthelper import DummyRequest

from m32net.settings import QualityRow
from m32net.web.answers import (
    INLINE_BYTES,
    INLINE_ROWS,
    MAX_BODY,
    LongAnswers,
    as_json,
    rows_as_json,
    takes_gzip,
)
from m32net.web.bodies import QualityBody
from m32net.web.pages import StaticFile
from protocols.compression import THRESHOLD_BYTES
from tests.m32net.web.case import Answer, WebCase
from tests.support.rooms import listener_status

PACKED = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


class Packed(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.log_in()

    def unpacked(self, path: str, accept: str) -> Answer:
        answer = self.raw("GET", path, {"Accept-Encoding": accept})
        if answer.header("Content-Encoding") == "gzip":
            return Answer(answer.status, answer.headers, gzip.decompress(answer.body))
        return answer


class Answers(Packed):
    def listening(self, count: int) -> None:
        self.listeners.statuses = [listener_status(f"client_{i}") for i in range(count)]

    def test_long_answers(self) -> None:
        """CON-20: more than 10 KiB of JSON, packed and plain, in line and in a thread: the same."""
        for count in (40, 400):
            self.listening(count)
            plain, packed = (self.unpacked("/api/listeners", one) for one in ("identity", "gzip"))
            self.assertGreater(len(plain.body), THRESHOLD_BYTES)
            self.assertEqual(len(plain.body) > INLINE_BYTES, count == 400)
            self.assertIsNone(plain.header("Content-Encoding"))
            self.assertEqual(packed.header("Content-Encoding"), "gzip")
            self.assertEqual(packed.json, plain.json)
            self.assertEqual(int(str(plain.header("Content-Length"))), len(plain.body))
            # For a cache between: what was answered depended on this header, either way.
            for answer in (plain, packed):
                self.assertEqual(answer.header("Vary"), "Accept-Encoding")
            self.assertLess(int(str(packed.header("Content-Length"))), 0.2 * len(plain.body))

    def test_short_answers(self) -> None:
        """CON-20: up to 10 KiB nothing is compressed."""
        self.listening(3)
        for path in ("/audio-meta", "/api/listeners", "/health", "/api/channels"):
            answer = self.raw("GET", path, PACKED)
            self.assertLessEqual(len(answer.body), THRESHOLD_BYTES, path)
            self.assertIsNone(answer.header("Content-Encoding"), path)
            self.assertIsNone(answer.header("Vary"), path)

    def test_metrics(self) -> None:
        """CON-20: Prometheus asks for gzip, and gets it."""
        self.listening(40)
        self.assertEqual(self.raw("GET", "/metrics", PACKED).header("Content-Encoding"), "gzip")
        self.assertIsNone(self.raw("GET", "/metrics", PLAIN).header("Content-Encoding"))

    def test_what_does_not_shrink(self) -> None:
        """CON-20: compression must save 10 %, or the answer is sent as it is."""
        self.api.metrics = lambda: succeed(secrets.token_bytes(THRESHOLD_BYTES + 1))
        answer = self.raw("GET", "/metrics", PACKED)
        self.assertIsNone(answer.header("Content-Encoding"))
        self.assertEqual(answer.header("Vary"), "Accept-Encoding")

    def test_description(self) -> None:
        """CON-20: the same document either way, and a tag of its own for each."""
        tags = {}
        for accept in ("gzip", "identity"):
            answer = self.unpacked("/openapi.json", accept)
            self.assertEqual(answer.json["openapi"], "3.1.0")
            tags[accept] = str(answer.header("ETag"))
            self.assertEqual(answer.header("Vary"), "Accept-Encoding")
        self.assertNotEqual(tags["gzip"], tags["identity"])
        for accept, other in (("gzip", "identity"), ("identity", "gzip")):
            for tag, status in ((tags[accept], 304), (tags[other], 200)):
                answer = self.raw(
                    "GET", "/openapi.json", {"Accept-Encoding": accept, "If-None-Match": tag}
                )
                self.assertEqual(answer.status, status, (accept, tag))
                self.assertEqual(answer.header("ETag"), tags[accept])
                self.assertEqual(answer.header("Vary"), "Accept-Encoding")

    def test_head(self) -> None:
        """CON-20: HEAD says what GET would."""
        got = self.raw("GET", "/openapi.json", PACKED)
        head = self.raw("HEAD", "/openapi.json", PACKED)
        self.assertEqual(head.body, b"")
        for name in ("Content-Encoding", "Content-Type", "ETag", "Vary"):
            self.assertEqual(head.header(name), got.header(name), name)

    def test_static_files_are_compressed_once(self) -> None:
        """CON-20: not at each request."""
        long = StaticFile.of(b"body { color: red }\n" * 1000, "text/css")
        self.api.files = {"long.css": long}
        assert long.packed is not None
        answer = self.raw("GET", "/static/long.css", PACKED)
        self.assertEqual(answer.header("Content-Encoding"), "gzip")
        self.assertEqual(answer.header("Content-Length"), str(len(long.packed)))


class Asked(WebCase):
    def test_what_the_client_says(self) -> None:
        """CON-20: gzip only for who takes it, by the words of RFC 9110 section 12.5.3."""
        for words, wanted in (
            ("", False),
            ("gzip", True),
            ("GZIP", True),
            ("x-gzip", True),
            ("deflate, gzip;q=0.5, br", True),
            ("gzip;q=0", False),
            ("gzip ; q=0.000", False),
            ("gzip;q=0.001", True),
            ("*", True),
            ("*;q=0", False),
            ("gzip;q=0, *", False),
            ("*, gzip;q=0", False),
            ("*;q=0, gzip", True),
            ("identity", False),
            ("gzipped", False),
            (";;;,,q=", False),
        ):
            request = DummyRequest([b""])  # type: ignore[no-untyped-call]
            request.requestHeaders.setRawHeaders("Accept-Encoding", [words])
            self.assertEqual(takes_gzip(request), wanted, words)  # type: ignore[arg-type]


class Rows(Packed):
    def test_in_parts(self) -> None:
        """CON-20: a table is the same JSON however many parts it was written in."""
        for count in (0, 1, INLINE_ROWS, INLINE_ROWS + 1, 3 * INLINE_ROWS):
            rows = [QualityRow(i, f"c{i}", "Ä", "rtcp", 0.5, None, 1.0, None) for i in range(count)]
            body = QualityBody(tuple(rows))
            self.assertEqual(rows_as_json("quality", rows), as_json(body), count)

    def test_many_are_written_in_a_thread(self) -> None:
        """CON-20: a long history holds nothing up."""
        called: list[str] = []

        def in_thread(call: Any, *args: Any) -> Deferred[Any]:
            called.append(call.__name__)
            return maybeDeferred(call, *args)

        self.api.long = LongAnswers(in_thread)
        for count in (INLINE_ROWS, INLINE_ROWS + 1):
            called.clear()
            rows = [QualityRow(i, f"c{i}", "Ä", "rtcp", 0.5, None, 1.0, None) for i in range(count)]
            self.patch(self.settings, "quality_history", lambda rows=rows, **_: succeed(rows))
            answer = self.unpacked("/api/quality", "gzip")
            self.assertEqual(len(answer.json["quality"]), count)
            self.assertEqual("rows_as_json" in called, count > INLINE_ROWS)


class InThread(WebCase):
    def test_one_at_a_time(self) -> None:
        """CON-20: long answers are compressed in a thread, one at a time; others go plain."""
        running: list[Deferred[Any]] = []

        def in_thread(*_: Any) -> Deferred[Any]:
            running.append(Deferred())
            return running[-1]

        self.api.long = LongAnswers(in_thread)
        text = b"a line of metrics 12345\n" * 10_000
        self.api.metrics = lambda: succeed(text)
        first = self.treq.get("http://m32.test/metrics", headers=PACKED)
        self.treq.flush()
        self.assertNoResult(first)
        second = self.raw("GET", "/metrics", PACKED)
        self.assertEqual((second.status, second.body), (200, text))
        self.assertEqual(len(running), 1)
        running[0].callback(gzip.compress(text))
        self.treq.flush()
        content = self.successResultOf(first).content()
        self.treq.flush()
        self.assertEqual(self.successResultOf(content), text)

    def test_client_gone_meanwhile(self) -> None:
        """CON-20: who hangs up while it is compressed leaves nothing behind."""
        running: list[Deferred[Any]] = []

        def in_thread(*_: Any) -> Deferred[Any]:
            running.append(Deferred())
            return running[-1]

        self.api.long = LongAnswers(in_thread)
        self.api.metrics = lambda: succeed(b"x" * 100_000)
        pending = self.treq.get("http://m32.test/metrics", headers=PACKED)
        self.treq.flush()
        pending.cancel()
        self.failureResultOf(pending)
        self.treq.flush()
        running[0].callback(b"packed")
        self.treq.flush()
        self.assertEqual(self.raw("GET", "/metrics", PLAIN).status, 200)
        self.assertEqual(self.flushLoggedErrors(), [])


class Bodies(WebCase):
    def post(self, body: bytes, coding: str) -> Answer:
        return self.request("POST", "/qos-metrics", body, {"Content-Encoding": coding})

    def setUp(self) -> None:
        super().setUp()
        self.listeners.statuses = [listener_status("anna")]
        self.body = json.dumps({"client_id": "anna", "metrics": {"jitter_ms": 1.5}}).encode()

    def test_packed(self) -> None:
        """CON-20: bodies are taken as gzip too."""
        for coding in ("gzip", "x-gzip", " GZIP "):
            answer = self.post(gzip.compress(self.body), coding)
            self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(len(self.listeners.reports), 3)

    def test_bomb(self) -> None:
        """CON-20: inflated to 1 MiB at most, whatever is in it."""
        bomb = gzip.compress(b" " * (64 * MAX_BODY))
        self.assertLess(len(bomb), MAX_BODY)
        answer = self.post(bomb, "gzip")
        self.assertEqual((answer.status, answer.code), (413, "too_large"))
        padded = self.body + b" " * (MAX_BODY - len(self.body))
        self.assertEqual(self.post(gzip.compress(padded), "gzip").status, 200)
        self.assertEqual(self.post(gzip.compress(padded + b" "), "gzip").status, 413)

    def test_damaged(self) -> None:
        """CON-20: what is no gzip is the client's mistake."""
        packed = gzip.compress(self.body)
        for body in (b"", b"{}", packed[:-1], packed[:10] + b"\xff" + packed[11:], packed + b"x"):
            answer = self.post(body, "gzip")
            self.assertEqual((answer.status, answer.code), (400, "bad_request"), body)

    def test_other_codings(self) -> None:
        """CON-20: refused with what would be taken (RFC 7694)."""
        for coding in ("br", "deflate", "gzip, gzip", "gzip, br"):
            answer = self.post(self.body, coding)
            self.assertEqual((answer.status, answer.code), (415, "unsupported_encoding"))
            self.assertEqual(answer.header("Accept-Encoding"), "gzip")
        self.assertEqual(self.post(self.body, "identity").status, 200)
