"""Finding a server by typing its address (STR-13), in whatever form."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.address import AddressError, ServerAddress


class AddressTest(unittest.TestCase):
    def test_forms(self) -> None:
        for text, http, websocket in (
            ("http://10.0.0.1:8080/", "http://10.0.0.1:8080", "ws://10.0.0.1:8080/ws"),
            ("10.0.0.1:81", "http://10.0.0.1:81", "ws://10.0.0.1:81/ws"),
            ("m32-server.local", "http://m32-server.local:8080", "ws://m32-server.local:8080/ws"),
            ("ws://host:9/ws", "http://host:9", "ws://host:9/ws"),
            ("http://host/", "http://host:80", "ws://host:80/ws"),
            ("https://host/x?y", "https://host:443", "wss://host:443/ws"),
            ("wss://host:8443", "https://host:8443", "wss://host:8443/ws"),
            ("[::1]:8080", "http://[::1]:8080", "ws://[::1]:8080/ws"),
            ("my_pc.lan:1", "http://my_pc.lan:1", "ws://my_pc.lan:1/ws"),
            ("bühne.local", "http://xn--bhne-0ra.local:8080", "ws://xn--bhne-0ra.local:8080/ws"),
            ("host.", "http://host.:8080", "ws://host.:8080/ws"),
            ("  HTTP://Host:8080  ", "http://host:8080", "ws://host:8080/ws"),
        ):
            with self.subTest(text):
                address = ServerAddress.parse(text)
                self.assertEqual((address.http, address.websocket), (http, websocket))

    def test_wrong_ones_are_one_line_with_an_example(self) -> None:
        for text in (
            "",
            "http://",
            "ftp://x",
            "host:port",
            "host:99999",
            "host:0",
            "a b:1",
            "ht!tp",
            "http://ht!tp/",
            "-host",
            "host-.lan",
            "a..b",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "x" * 64 + ".lan",
            ".".join(["x" * 60] * 5),
            "http://[::g]/",
            "[::1",
        ):
            with self.subTest(text):
                error = self.assertRaises(AddressError, ServerAddress.parse, text)
                self.assertIn("http://192.168.1.10:8080/", str(error))
                self.assertNotIn("\n", str(error))

    @given(st.text(max_size=40))
    def test_anything_typed(self, text: str) -> None:
        try:
            ServerAddress.parse(text)
        except AddressError:
            pass
