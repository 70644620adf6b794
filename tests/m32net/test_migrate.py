"""CON-51: ``m32net migrate``: what it says, whom it trusts, and how much of an answer it takes."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial import unittest
from twisted.web.resource import Resource
from twisted.web.server import Request

from m32net import migrate
from m32net.migrate import TIMEOUT_S, Display, MigrateError, Server, sentence
from m32net.ops.local import local_token
from tests.m32net.trust.made import authority, key_pem, new_key, pem, signed

EVIL = "Anna\x1b]0;gotcha\x07\x9b2J\u202e\r\n"


def status(state: str, *moves: tuple[str, str], reason: str = "") -> dict[str, Any]:
    return {
        "state": state,
        "host": "192.0.2.7",
        "port": 80,
        "reason": reason,
        "moves": [
            {"client_id": f"c{n}", "name": name, "state": move}
            for n, (name, move) in enumerate(moves)
        ],
        "pid": 1,
    }


class ShownTest(unittest.SynchronousTestCase):
    def test_names(self) -> None:
        """Names of guests do nothing to the terminal."""
        shown = status("incomplete", (EVIL, "stayed"), ("Bert", "moved"), reason=EVIL)
        line = sentence(shown)
        self.assertTrue(line.isprintable())
        self.assertIn("still here: Anna�]0;gotcha", line)
        for as_json in (False, True):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                Display(as_json=as_json, terminal=False).show(shown)
            (written,) = out.getvalue().split("\n")[:-1]
            self.assertTrue(written.isprintable())
        self.assertEqual(json.loads(written), shown, "in JSON they are as they are")

    def test_counts(self) -> None:
        shown = status("moving", ("A", "moved"), ("B", "told"), ("C", "left"))
        line = "Moving: 1 of 3 listeners moved to 192.0.2.7:80, 1 left, 1 to go"
        self.assertEqual(sentence(shown), line)


class Answering(Resource):
    """A server that answers in one way."""

    isLeaf = True

    def __init__(self, code: int, body: bytes, encoding: str = "identity") -> None:
        super().__init__()
        self.code, self.body, self.encoding = code, body, encoding
        self.tokens: list[str | None] = []

    def render(self, request: Request) -> bytes:
        self.tokens.append(request.getHeader("Authorization"))
        request.setResponseCode(self.code)
        request.setHeader("Content-Encoding", self.encoding)
        return self.body


class ServerTest(unittest.SynchronousTestCase):
    def call(self, page: Answering) -> Deferred[Any]:
        agent: Any = RequestTraversalAgent(page)
        calling: Deferred[Any] = Server(Clock(), agent, "http://h", "tok").call("GET", "/x")
        agent.flush()
        return calling

    def refused(self, page: Answering) -> str:
        return str(self.failureResultOf(self.call(page), MigrateError).value)

    def test_answers(self) -> None:
        page = Answering(200, b'{"a":1}')
        self.assertEqual(self.successResultOf(self.call(page)), {"a": 1})
        self.assertEqual(page.tokens, ["Bearer tok"])

    def test_refusals(self) -> None:
        """In the server's words, as far as they can be printed; in ours where it has none."""
        said = json.dumps({"error": {"message": f"no {EVIL}"}}).encode()
        self.assertIn("no Anna�", self.refused(Answering(409, said)))
        self.assertTrue(self.refused(Answering(409, said)).isprintable())
        for body in (b"", b"[]", b'{"error":7}', b"\xff", b"[" * 200_000):
            self.assertIn("status 500", self.refused(Answering(500, body)))

    def test_bounds(self) -> None:
        """An answer that is too long, inflates, or does not come, is not waited for."""
        self.patch(migrate, "MAX_ANSWER", 1000)
        self.assertIn("1000 bytes", self.refused(Answering(200, b"x" * 1001)))
        bomb = gzip.compress(bytes(100_000))
        self.assertIn("encoded", self.refused(Answering(200, bomb, "gzip")))
        clock = Clock()

        class Silent:
            def request(self, *_: Any) -> Deferred[Any]:
                return Deferred()

        silent: Any = Silent()
        calling = Server(clock, silent, "http://h").call("GET", "/x")
        clock.advance(TIMEOUT_S)
        error = self.failureResultOf(calling, MigrateError).value
        self.assertIn("no answer within 30 s", str(error))


class TrustTest(unittest.SynchronousTestCase):
    def test_all_of_a_file(self) -> None:
        """--ca may name a file of several certificates: all of them count."""
        path = Path(self.mktemp())
        other = signed(new_key(), ["other.example"], ca=True)
        path.write_bytes(pem(authority().certificate, other))
        root = migrate._trust(str(path))
        found = [one.to_cryptography() for one in root._caCerts]  # Twisted shows it nowhere
        self.assertEqual(found, [authority().certificate, other])

    def test_none(self) -> None:
        self.assertIsNone(migrate._trust(None))
        path = Path(self.mktemp())
        path.write_bytes(key_pem(new_key()))
        for wrong in (str(path), "/nowhere"):
            error = self.assertRaises(MigrateError, migrate._trust, wrong)
            self.assertIn(wrong, str(error))
            self.assertEqual(len(str(error).splitlines()), 1)


class NobodyTest(unittest.SynchronousTestCase):
    def refusal(self, directory: Path) -> str:
        connecting = migrate._connect(reactor, {"server": None, "state-dir": str(directory)})
        return str(self.failureResultOf(connecting, MigrateError).value)

    def test_no_server_runs_there(self) -> None:
        """One line that says where it was looked for and what to do; also where one once ran."""
        directory = Path(self.mktemp())
        directory.mkdir()
        expected = f"no server runs in {directory} that you may move; name its state directory"
        self.assertIn(expected, self.refusal(directory))
        local_token(directory)
        self.assertIn(expected, self.refusal(directory))
