"""A PIN for listeners, on a real server and with a real ``m32net listen``."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial import unittest

from tests.interop.test_migration import exchange, heard
from tests.support.processes import ListenProcess, ServerProcess
from tests.support.websocket import CLOSE


class PinTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = ServerProcess("--source=test")
        self.addCleanup(self.server.close)
        self.token = self.server.login()
        status, answer = self.server.call(
            "PUT", "/api/settings", {"listener_pin": "4711"}, self.token
        )
        self.assertEqual(status, 200, answer)

    def hello(self, **payload: str) -> list[tuple[int, Any]]:
        return exchange(self.server.port, [{"type": "hello", "payload": payload}])

    def test_pin(self) -> None:
        """Without the right one: told why, closed, and no listener; with it: welcome and audio."""
        self.assertTrue(self.server.get("/audio-meta")["pin"])
        self.assertNotIn("4711", json.dumps(self.server.get("/audio-meta")))
        for payload in ({}, {"pin": "1234"}):
            (_, error), (opcode, close) = self.hello(**payload)
            self.assertEqual(json.loads(error)["payload"]["code"], "wrong_pin")
            self.assertEqual((opcode, int.from_bytes(close[:2], "big")), (CLOSE, 1008))
        self.assertEqual(self.server.get("/audio-meta")["listeners"], 0)
        options = ("--udp-port=0", "--interface=127.0.0.1", "--duration=2", "--once")
        for pin, works in (("--pin=4711", True), ("--pin=1111", False)):
            child = ListenProcess(self.server.url, *options, pin)
            self.addCleanup(child.close)
            self.assertEqual(child.wait(60) == 0, works, child.text())
            self.assertEqual(heard(child) > 0, works)

    def test_guessing(self) -> None:
        """After five wrong ones even the right one has to wait."""
        for number in range(5):
            self.hello(pin=str(number))
        (_, error), _ = self.hello(pin="4711")
        self.assertIn("too many", json.loads(error)["payload"]["message"])
