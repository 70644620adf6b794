"""STR-13: the address as a QR code, for the web page and the terminal."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import segno
from twisted.trial import unittest

from m32net.discovery.qr import qr_svg, qr_terminal

URL = "http://192.168.100.200:8080/"


class Codes(unittest.SynchronousTestCase):
    def test_svg(self) -> None:
        """A complete SVG document of the right size that draws something."""
        root = ElementTree.fromstring(qr_svg(URL))
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
        side = (segno.make(URL, error="m", micro=False).symbol_size(border=4)[0]) * 8
        self.assertEqual(float(root.get("width", "0")), side)
        self.assertTrue(any(element.get("d") for element in root.iter()))

    def test_svg_depends_on_the_address(self) -> None:
        self.assertNotEqual(qr_svg(URL), qr_svg(URL + "x"))

    def test_made_once(self) -> None:
        """CON-2: who asks for it again and again costs no time; few are kept."""
        self.assertIs(qr_svg(URL), qr_svg(URL))
        for number in range(100):
            qr_svg(f"{URL}{number}")
        self.assertLessEqual(qr_svg.cache_info().currsize, 16)

    def test_terminal_shows_the_same_modules(self) -> None:
        """Read back from the half blocks: module for module the code of the address."""
        expected = segno.make(URL, error="l", micro=False).matrix
        rows: list[list[int]] = []
        for line in qr_terminal(URL).splitlines():
            rows.append([int(block not in "█▀") for block in line])
            rows.append([int(block not in "█▄") for block in line])
        size = len(expected)
        inner = [row[2 : 2 + size] for row in rows[2 : 2 + size]]
        self.assertEqual(inner, [list(row) for row in expected])
        self.assertTrue(all(not any(row) for row in rows[:2]), "quiet zone")

    def test_terminal_is_compact(self) -> None:
        """It fits a terminal of 80 by 24."""
        lines = qr_terminal(URL).splitlines()
        self.assertLess(len(lines), 20)
        self.assertLess(max(map(len, lines)), 40)

    def test_too_long(self) -> None:
        self.assertRaises(ValueError, qr_svg, "x" * 4000)

    def test_bytes_are_utf8(self) -> None:
        self.assertIsInstance(io.BytesIO(qr_svg("http://mü.local/")).read().decode(), str)
