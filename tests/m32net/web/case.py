"""A whole web interface in memory, on stand-ins for the other rooms; no sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from treq.testing import RequestTraversalAgent, StubTreq
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.trial import unittest
from twisted.web.client import readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH
from twisted.web.resource import Resource
from twisted.web.static import Data

from m32net.discovery.qr import qr_svg
from m32net.ops.metrics import Metrics
from m32net.web.api import WebApi
from m32net.web.auth import Auth
from tests.support.rooms import FakeConnections, FakeListeners, FakeMigration, FakeStatus, FakeTrust
from tests.support.store import inline_settings

HOST = "http://m32.test"
NOW = 1_700_000_000.25


def quick_hasher() -> PasswordHasher:
    """As weak as argon2 allows: tests hash a lot."""
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Answer:
    """A response, read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        values = self.headers.getRawHeaders(name)
        return None if values is None else str(values[-1])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


class WebCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.status = FakeStatus()
        self.listeners = FakeListeners()
        self.connections = FakeConnections()
        self.migration = FakeMigration()
        self.trust = FakeTrust()
        path = Path(self.mktemp()) / "m32net.sqlite3"
        self.settings, self.database = inline_settings(path, clock=self.clock)
        self.addCleanup(self.database.close)
        self.auth = Auth(self.settings, self.clock, in_thread=maybeDeferred, hasher=quick_hasher())
        password = self.auth.first_run()
        assert password is not None
        self.password = password
        self.api = WebApi(
            status=self.status,
            listeners=self.listeners,
            settings=self.settings,
            auth=self.auth,
            metrics=Metrics(self.status, self.listeners).answer,
            qr_svg=qr_svg,
            connections=self.connections,
            migration=self.migration,
            trust=self.trust,
            in_thread=maybeDeferred,
            wall=lambda: NOW,
            seconds=self.clock.seconds,
        )
        self.control = Data(b"the control session", "text/plain")  # type: ignore[no-untyped-call]
        self.root: Resource = self.api.root(self.control)
        self.treq = StubTreq(self.root)
        self.token: str | None = None

    def request(
        self,
        method: str,
        path: str | bytes,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if self.token and "Authorization" not in sent:
            sent["Authorization"] = f"Bearer {self.token}"
        url: str | bytes = HOST.encode() + path if isinstance(path, bytes) else HOST + path
        if isinstance(path, str) and path.startswith("https://"):
            url = path
        pending = self.treq.request(method, url, data=data, headers=sent)
        self.treq.flush()
        response = self.successResultOf(pending)
        content = response.content()
        self.treq.flush()
        return Answer(response.code, response.headers, self.successResultOf(content))

    def raw(self, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        """An answer as it is on the wire: no cookies, no redirect followed, nothing unpacked."""
        agent = RequestTraversalAgent(self.root)
        sent = Headers()
        for name, value in (headers or {}).items():
            sent.addRawHeader(name, value)
        if self.token:
            sent.addRawHeader("Authorization", f"Bearer {self.token}")
        url = path if path.startswith("https://") else HOST + path
        pending = agent.request(method.encode(), url.encode(), sent, None)
        agent.flush()
        response = self.successResultOf(pending)
        content = readBody(response)
        agent.flush()
        headers_got = response.headers
        if response.length != UNKNOWN_LENGTH:
            headers_got.setRawHeaders("Content-Length", [str(response.length)])
        return Answer(response.code, headers_got, self.successResultOf(content))

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def send(self, method: str, path: str, body: object, **options: Any) -> Answer:
        return self.request(method, path, json.dumps(body).encode(), **options)

    def log_in(self) -> str:
        answer = self.send("POST", "/api/login", {"password": self.password})
        self.assertEqual(answer.status, 200, answer.body)
        self.token = answer.json["token"]
        return answer.json["token"]
