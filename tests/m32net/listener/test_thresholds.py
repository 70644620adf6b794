"""STR-27: environment, then the server's, then 100 ms and 200 ms."""

from __future__ import annotations

from twisted.trial import unittest

from m32net.listener.thresholds import ThresholdError, Thresholds, choose


class PrecedenceTest(unittest.TestCase):
    def test_order(self) -> None:
        server = Thresholds(30, 60)
        both = {"JITTER_INTERPOLATE_MS": "10", "JITTER_DROP_MS": "20.5"}
        self.assertEqual(choose({}, None), Thresholds(100, 200))
        self.assertEqual(choose({}, server), server)
        self.assertEqual(choose(both, server), Thresholds(10, 20.5))
        self.assertEqual(choose({"JITTER_DROP_MS": " "}, server), server)

    def test_one_of_them(self) -> None:
        server = Thresholds(30, 60)
        self.assertEqual(choose({"JITTER_INTERPOLATE_MS": "50"}, server), Thresholds(50, 60))
        self.assertEqual(choose({"JITTER_INTERPOLATE_MS": "80"}, server), Thresholds(80, 160))
        self.assertEqual(choose({"JITTER_DROP_MS": "40"}, server), Thresholds(30, 40))
        self.assertEqual(choose({"JITTER_DROP_MS": "20"}, server), Thresholds(10, 20))

    def test_wrong_ones_are_named(self) -> None:
        for text in ("x", "nan", "-1", "0", "6000", "inf"):
            error = self.assertRaises(ThresholdError, choose, {"JITTER_DROP_MS": text}, None)
            self.assertIn(f"JITTER_DROP_MS={text}", str(error))
        both = {"JITTER_INTERPOLATE_MS": "20", "JITTER_DROP_MS": "10"}
        self.assertRaises(ThresholdError, choose, both, None)
        self.assertRaises(ThresholdError, Thresholds, 200, 100)
