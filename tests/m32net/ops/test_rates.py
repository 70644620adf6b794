"""CON-40: rates, and how much was logged."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.trial import unittest

from m32net.ops.logged import LogCounter
from m32net.ops.rates import WINDOW, Rates


class PerSecond(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.counts: dict[str, float] = {"a": 1000.0}
        self.rates = Rates(self.clock, lambda: self.counts)
        self.rates.startService()
        self.addCleanup(self.rates.stopService)

    def run_for(self, seconds: int, growth: float) -> None:
        for _ in range(seconds):
            self.counts["a"] += growth
            self.clock.advance(1)

    def test_start(self) -> None:
        """CON-40: what there was before is no rate."""
        self.assertEqual(self.rates.per_second(), {})
        self.run_for(1, 5)
        self.assertEqual(self.rates.per_second(), {"a": 5.0})

    def test_the_last_ten_seconds(self) -> None:
        """CON-40: steady, then none."""
        self.run_for(100, 50)
        self.assertAlmostEqual(self.rates.per_second()["a"], 50)
        self.run_for(WINDOW // 2, 0)
        self.assertAlmostEqual(self.rates.per_second()["a"], 25)
        self.run_for(WINDOW, 0)
        self.assertEqual(self.rates.per_second()["a"], 0)

    def test_counters_come_and_start_anew(self) -> None:
        """CON-40: never negative."""
        self.run_for(3, 50)
        self.counts = {"a": 0.0, "b": 30.0}
        self.clock.advance(1)
        self.assertEqual(self.rates.per_second()["a"], 0)
        self.assertGreater(self.rates.per_second()["b"], 0)

    def test_stopped(self) -> None:
        """CON-40: no timer stays."""
        self.rates.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Logged(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.publisher = LogPublisher()
        self.counter = LogCounter(frozenset({"audio", "web"}), self.publisher)

    def log(self, level: str, namespace: str) -> None:
        logger = Logger(namespace=namespace, observer=self.publisher)
        logger.emit(LogLevel.lookupByName(level), "said")

    def test_by_room_and_level(self) -> None:
        """CON-40: warnings and worse, by room; what is no room is other; info is not counted."""
        self.counter.startService()
        for level, namespace in (
            ("warn", "m32net.audio"),
            ("warn", "m32net.audio.service"),
            ("error", "m32net.web"),
            ("critical", "twisted.internet"),
            ("error", "m32net.invented"),
            ("info", "m32net.web"),
        ):
            self.log(level, namespace)
        self.counter.stopService()
        self.log("error", "m32net.web")
        figures = {name: value for name, value in self.counter.figures().items() if value}
        self.assertEqual(
            figures,
            {
                'log_lines_total{room="audio",level="warn"}': 2,
                'log_lines_total{room="web",level="error"}': 1,
                'log_lines_total{room="other",level="critical"}': 1,
                'log_lines_total{room="other",level="error"}': 1,
            },
        )
        self.assertEqual(len(self.counter.figures()), 9)

    def test_foreign_events(self) -> None:
        """CON-40: log events of old code without level or name space are no harm."""
        self.counter({"message": ("old",)})
        self.assertEqual(sum(self.counter.figures().values()), 0)
