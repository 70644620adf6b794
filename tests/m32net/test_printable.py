"""Names of guests on the engineer's terminal: they may say what they like, and do nothing."""

from __future__ import annotations

import contextlib
import io
import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net import cli
from m32net.discovery import mdns
from m32net.listener.report import json_line
from m32net.printable import printable, printable_json

EVIL = "Anna\x1b]0;gotcha\x07\x9b2J\u202e\r\n"


class PrintableTest(unittest.SynchronousTestCase):
    def test_replaced(self) -> None:
        self.assertEqual(printable(EVIL), "Anna�]0;gotcha��2J���")

    def test_kept(self) -> None:
        for name in ("Jörg", "ボーカル", "Vocal 🎤", "a b"):
            self.assertEqual(printable(name), name)
            self.assertIn(name, printable_json([name]))

    @given(st.text())
    def test_anything(self, text: str) -> None:
        """Nothing but printable characters comes out, and JSON keeps its meaning."""
        self.assertTrue(printable(text).isprintable())
        self.assertEqual(len(printable(text)), len(text))
        for written in (printable_json({text: [text]}), json_line({text: [text]})):
            self.assertTrue(written.isprintable())
            self.assertEqual(json.loads(written), {text: [text]})


class DiscoverTest(unittest.TestCase):
    async def test_names(self) -> None:
        """Whoever announces a server on the network chooses its name."""
        found = mdns.FoundServer(EVIL, "x", ("192.0.2.1",), 80, "/", "1\x1b", "master")
        self.patch(mdns, "discover", lambda *_: [found])
        for as_json in (False, True):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                options = {"seconds": 0.1, "interface": "", "json": as_json}
                status = await cli.discover(None, options)
            self.assertEqual(status, 0)
            (line,) = out.getvalue().splitlines()
            self.assertTrue(line.isprintable())
            self.assertIn("Anna", line)
