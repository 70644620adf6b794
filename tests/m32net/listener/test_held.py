"""STR-24: FORCE_DELAY_MS holds packets back, within a bound of its own."""

from __future__ import annotations

from twisted.trial import unittest

from m32net.listener.held import MAX_HELD_BYTES, HeldBack
from protocols.datagram import Datagram

SERVER = ("192.0.2.1", 5004)


def packets(first: int, count: int, size: int = 1000) -> list[Datagram]:
    return [Datagram(bytes(size), SERVER, n * 1000) for n in range(first, first + count)]


class HeldBackTest(unittest.TestCase):
    def test_each_as_long_as_the_other(self) -> None:
        held = HeldBack(300_000_000)
        self.assertIsNone(held.next_timer())
        held.put(packets(0, 2), 10.0)
        held.put(packets(2, 1), 10.1)
        self.assertEqual(held.next_timer(), 10.3)
        self.assertEqual(held.take(10.29), [])
        self.assertEqual([one.arrival_ns for one in held.take(10.3)], [300_000_000, 300_001_000])
        self.assertEqual(held.next_timer(), 10.4)
        self.assertEqual(len(held.take(11.0)), 1)
        self.assertIsNone(held.next_timer())

    def test_bound(self) -> None:
        """The newest are dropped and counted; there is room again for as many as have gone."""
        held = HeldBack(1_000_000_000, limit=10 * (1000 + 256))
        held.put(packets(0, 8), 0.0)
        held.put(packets(8, 8), 0.5)
        self.assertEqual(held.dropped, 6)
        self.assertEqual(len(held.take(1.0)), 8)
        held.put(packets(16, 9), 1.0)
        self.assertEqual(held.dropped, 7)
        self.assertEqual(len(held.take(2.0)), 2 + 8)
        held.put(packets(25, 20), 2.0)
        self.assertEqual((held.dropped, len(held.take(3.0))), (17, 10))

    def test_the_densest_stream_fits(self) -> None:
        """32 channels of L24 as 32 streams, 2.5 ms, for the longest delay of 10 s."""
        datagrams = 32 * 400 * 10
        self.assertLess(datagrams * (12 + 16 + 360 + 256), MAX_HELD_BYTES)
