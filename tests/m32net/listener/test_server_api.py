"""STR-35, STR-37, STR-38: what a listener asks over HTTP, and answers that are not documented."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from functools import partial

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial import unittest
from twisted.web.resource import Resource
from twisted.web.server import Request

from m32net.asking import MAX_ANSWER, ask
from m32net.listener.server_api import AudioMeta, ServerApi, ServerApiError
from m32net.listener.thresholds import Thresholds

META = {
    "server": {"name": "m32net", "version": "1", "uptime_s": 1.5, "role": "master", "time_ms": 1},
    "sample_rate": 48000,
    "codec": "opus",
    "frame_ms": 5,
    "channels": [
        {"id": 1, "name": "보컬 🎤", "color": "#e6194b", "order": 1, "enabled": True},
        {"id": 2, "name": "CH02", "color": "#e6194b", "order": 2, "enabled": False},
    ],
}


class Answers(Resource):
    """Gives a fixed answer at each path and keeps what was posted."""

    isLeaf = True

    def __init__(self, answers: dict[str, tuple[int, bytes]]) -> None:
        super().__init__()
        self.answers = answers
        self.posted: list[dict] = []

    def render(self, request: Request) -> bytes:
        if request.method == b"POST":
            self.posted.append(json.loads(request.content.read()))
        status, body = self.answers.get(request.path.decode(), (404, b"{}"))
        request.setResponseCode(status)
        accepted = request.getHeader("accept-encoding")
        if accepted != "identity":
            raise AssertionError(f"{accepted} is accepted")
        if body.startswith(b"\x1f\x8b"):
            request.setHeader(b"Content-Encoding", b"gzip")
        return body


class ApiTest(unittest.SynchronousTestCase):
    def ask(self, answers: dict[str, tuple[int, bytes]], method: str, *arguments) -> Deferred:
        self.resource = Answers(answers)
        agent = RequestTraversalAgent(self.resource)
        http = partial(ask, Clock(), agent)
        asked = getattr(ServerApi(http, "http://server:8080"), method)(*arguments)
        agent.flush()
        return asked

    def test_audio_meta(self) -> None:
        meta = self.successResultOf(
            self.ask({"/audio-meta": (200, json.dumps(META).encode())}, "audio_meta")
        )
        self.assertEqual(meta.channels[0].name, "보컬 🎤")
        self.assertEqual(meta.enabled, (1,))
        self.assertEqual(
            self.successResultOf(self.ask({"/audio-meta": (200, b"{}")}, "audio_meta")), AudioMeta()
        )

    def test_thresholds(self) -> None:
        body = b'{"interpolate":30,"drop":60}'
        found = self.successResultOf(
            self.ask({"/jitter-thresholds": (200, body)}, "jitter_thresholds")
        )
        self.assertEqual(found, Thresholds(30, 60))

    def test_qos_is_posted(self) -> None:
        body = {"client_id": "x", "metrics": {"jitter_ms": 1.0}}
        self.successResultOf(self.ask({"/qos-metrics": (200, b"{}")}, "post_qos", body))
        self.assertEqual(self.resource.posted, [body])

    def test_answers_that_are_not_as_documented(self) -> None:
        for answer in (
            (500, b"{}"),
            (200, b"<html>"),
            (200, b'{"channels":[{"name":"no id"}]}'),
            (200, b'"' + b"x" * (MAX_ANSWER + 10) + b'"'),
            (200, gzip.compress(json.dumps(META).encode())),
        ):
            asked = self.ask({"/audio-meta": answer}, "audio_meta")
            error = self.failureResultOf(asked, ServerApiError).value
            self.assertIn("/audio-meta", str(error))
        for body in (b'{"interpolate":60,"drop":30}', b'{"interpolate":60}', b"[]"):
            asked = self.ask({"/jitter-thresholds": (200, body)}, "jitter_thresholds")
            self.failureResultOf(asked, ServerApiError)

    def test_what_would_inflate(self) -> None:
        """CON-20: a bomb is not even looked into, though it was not asked for."""
        bomb = gzip.compress(bytes(50 * 1024 * 1024), 1)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        asked = self.ask({"/audio-meta": (200, bomb)}, "audio_meta")
        error = self.failureResultOf(asked, ServerApiError).value
        self.assertEqual(str(error), "/audio-meta: the answer is encoded, which was not asked for")
        self.assertLess(tracemalloc.get_traced_memory()[1], 10 * len(bomb))
