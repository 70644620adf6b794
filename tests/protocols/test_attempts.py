"""CON-30: how often a secret may be guessed, and what counts as one address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols import attempts
from protocols.addresses import address_key, plain
from protocols.attempts import Allowance, Attempts

EACH, ALL = Allowance(3, 10.0), Allowance(8, 2.0)


class Addresses(unittest.SynchronousTestCase):
    def test_what_counts_as_one(self) -> None:
        """CON-30: a /64 but in the room, IPv4 in IPv6, scopes, and what is no address."""
        for host, key in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::FFFF:c000:201", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::/64"),
            ("2001:db8::ffff:0:1", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::1"),
            ("fd00::1", "fd00::1"),
            ("", ""),
            ("host", "host"),
            (":::", ":::"),
        ):
            self.assertEqual(address_key(host), key)

    def test_plain(self) -> None:
        for host, expected in (
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::FFFF:192.0.2.1", "192.0.2.1"),
            ("::ffff:c000:201%lo", "192.0.2.1"),
            ("::ffff:", "::ffff:"),
            ("::ffff:x", "::ffff:x"),
            ("2001:db8::1", "2001:db8::1"),
            ("192.0.2.1", "192.0.2.1"),
        ):
            self.assertEqual(plain(host), expected)

    @given(st.text())
    def test_any_text(self, host: str) -> None:
        """Whatever a transport says of its peer: bounded text, and itself again."""
        key = address_key(host)
        self.assertLessEqual(len(key), 64)
        self.assertEqual(address_key(plain(host)), key)


class Guessing(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.tries = Attempts(EACH, ALL)

    def test_one_address(self) -> None:
        waits = [self.tries.take("a", 0.0) for _ in range(5)]
        self.assertEqual(waits, [0, 0, 0, 10, 10])
        self.assertEqual(self.tries.take("a", 4.0), 6)
        self.assertEqual(self.tries.take("a", 10.0), 0)

    def test_all_together(self) -> None:
        """What is refused is not counted against those who try."""
        self.assertEqual([self.tries.take(f"{n}", 0.0) for n in range(10)], [0] * 8 + [2, 2])
        self.assertEqual(self.tries.take("8", 2.0), 0)
        self.assertEqual(self.tries.take("9", 2.0), 2)

    def test_right(self) -> None:
        """The right one costs nothing, however many give it, and opens the way for good."""
        for number in range(100):
            self.assertEqual(self.tries.take(f"{number}", 0.0), 0)
            self.tries.was_right(f"{number}")
        self.assertEqual([self.tries.take(f"x{n}", 0.0) for n in range(9)], [0] * 8 + [2])
        self.assertEqual([self.tries.take("5", 0.0) for _ in range(4)], [0, 0, 0, 10])

    def test_bounded(self) -> None:
        self.patch(attempts, "MAX_ADDRESSES", 5)
        for number in range(20):
            self.tries.take(f"{number}", number * 10.0)
            self.tries.was_right(f"right {number}")
        self.assertEqual(self.tries.remembered(), 5)

    @given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 5), st.booleans())))
    def test_never_more(self, steps: list[tuple[str, float, bool]]) -> None:
        """In any order: wrong ones of strangers are never more than both allowances."""
        tries, now = Attempts(EACH, ALL), 0.0
        wrong: dict[str, int] = {}
        proven: set[str] = set()
        for host, gap, right in steps:
            now += gap
            if tries.take(host, now):
                continue
            if right:
                tries.was_right(host)
                proven.add(host)
            elif host not in proven:
                wrong[host] = wrong.get(host, 0) + 1
                self.assertLessEqual(wrong[host], EACH.at_once + now / EACH.every_s + 1e-6)
        strangers = sum(wrong.values())
        self.assertLessEqual(strangers, ALL.at_once + now / ALL.every_s + 1e-6)
