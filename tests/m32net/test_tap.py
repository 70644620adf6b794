"""CON-50: which signals stop the server in order."""

from __future__ import annotations

import signal

from twisted.trial import unittest

from m32net import tap


class FakeReactor:
    def __init__(self) -> None:
        self.stops = 0

    def callFromThread(self, function) -> None:
        function()

    def stop(self) -> None:
        self.stops += 1


class SignalTests(unittest.TestCase):
    def setUp(self) -> None:
        self.handlers = dict.fromkeys(signal.valid_signals(), signal.SIG_DFL)
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.patch(signal, "getsignal", self.handlers.__getitem__)
        self.bounds: list[int] = []
        self.patch(tap, "end_within", self.bounds.append)
        self.reactor = FakeReactor()

    def test_each_stops_once(self) -> None:
        """A second one, of whatever kind, ends at once."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            tap._stop_on_signals(self.reactor)
            before = self.reactor.stops
            self.handlers[number](number, None)
            self.assertEqual(self.reactor.stops, before + 1)
            self.assertEqual(self.bounds.pop(), 30)
            for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self.assertEqual(self.handlers[other], signal.SIG_DFL)

    def test_nohup(self) -> None:
        """Who had SIGHUP ignored wants the server to outlive the terminal."""
        self.handlers[signal.SIGHUP] = signal.SIG_IGN
        tap._stop_on_signals(self.reactor)
        self.assertEqual(self.handlers[signal.SIGHUP], signal.SIG_IGN)
        self.assertNotEqual(self.handlers[signal.SIGTERM], signal.SIG_DFL)
