"""CON-51: how programs on the server's machine reach it; nobody else may."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial import unittest
from twisted.web.client import readBody
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from m32net.ops.local import TOKEN_FILE, local_agent, local_token, read_token, socket_path


class TokenTest(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def mode(self) -> int:
        return stat.S_IMODE((self.directory / TOKEN_FILE).stat().st_mode)

    def test_made_once(self) -> None:
        """32 random bytes that only the owner reads, the same after every start."""
        token = local_token(self.directory)
        self.assertGreaterEqual(len(token), 43)
        self.assertEqual(self.mode(), 0o600)
        self.assertEqual(local_token(self.directory), token)
        self.assertEqual(read_token(self.directory), token)
        self.assertEqual([one.name for one in self.directory.iterdir()], [TOKEN_FILE])

    def test_whatever_the_umask(self) -> None:
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        local_token(self.directory)
        self.assertEqual(self.mode(), 0o600)

    def test_one_that_others_could_read_is_replaced(self) -> None:
        token = local_token(self.directory)
        (self.directory / TOKEN_FILE).chmod(0o644)
        self.assertNotEqual(local_token(self.directory), token)
        self.assertEqual(self.mode(), 0o600)

    def test_damaged(self) -> None:
        for content in (b"", b"short", b"\xff\xfe"):
            path = self.directory / TOKEN_FILE
            path.write_bytes(content)
            path.chmod(0o600)
            self.assertGreaterEqual(len(local_token(self.directory)), 43)

    def test_nobody_there(self) -> None:
        self.assertRaises(OSError, read_token, self.directory)
        self.assertRaises(OSError, local_token, self.directory / "nowhere")


class SocketTest(unittest.TestCase):
    @inlineCallbacks
    def asked(self, directory: Path):
        root = Resource()
        root.putChild(b"health", Data(b"well", "text/plain"))
        port = reactor.listenUNIX(socket_path(directory, "s.sock"), Site(root), mode=0o600)
        try:
            agent = local_agent(reactor, socket_path(directory, "s.sock"))
            response = yield agent.request(b"GET", b"http://localhost/health")
            body = yield readBody(response)
        finally:
            yield port.stopListening()
        self.assertEqual(body, b"well")

    @inlineCallbacks
    def test_short_and_long_paths(self):
        """A state directory may be deeper than a socket's path may be long."""
        short = Path(self.mktemp())
        long = short / ("d" * 120)
        long.mkdir(parents=True)
        yield self.asked(short)
        yield self.asked(long)
        self.assertNotIn("d" * 120, socket_path(long, "s.sock"))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            socket_path(long, "s.sock")
        self.assertEqual(len(list(Path("/proc/self/fd").iterdir())), before, "opened but once")
        self.assertRaises(OSError, socket_path, long / "nowhere", "s.sock")
