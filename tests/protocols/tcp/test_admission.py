"""CON-30: who is admitted, refused, shut out and let in again, without sockets or waiting."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.tcp.admission import WINDOW_S, Admission, AdmissionLimits, Verdict

A, FULL, TOO_MANY, BLOCKED = Verdict.ADMIT, Verdict.FULL, Verdict.TOO_MANY, Verdict.BLOCKED
HOST = "192.0.2.5"

HOSTS = st.sampled_from(
    ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "::ffff:192.0.2.1", "fe80::1%eth0"]
) | st.text(max_size=80)


class Rate(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.admission = Admission(AdmissionLimits())

    def arrive(self, times: int, now: float, host: str = HOST) -> list[Verdict]:
        return [self.admission.arrive(host, now) for _ in range(times)]

    def test_ten_a_minute(self) -> None:
        """CON-30: the 11th within a minute is refused; after it there is room again."""
        self.assertEqual(self.arrive(10, 100.0), [A] * 10)
        self.assertEqual(self.arrive(1, 159.9), [TOO_MANY])
        self.assertEqual(self.arrive(1, 160.0), [A])
        self.assertEqual(self.admission.counts[A], 11)
        self.assertEqual(self.admission.counts[TOO_MANY], 1)

    def test_the_window_slides(self) -> None:
        """CON-30: one every six seconds is ten a minute, for ever."""
        for n in range(200):
            self.assertIs(self.admission.arrive(HOST, n * 6.0), A)
        self.assertIs(self.admission.arrive(HOST, 199 * 6.0 + 1), TOO_MANY)

    def test_a_refusal_takes_no_room(self) -> None:
        """CON-30: who tries again too early does not wait longer for it."""
        self.arrive(10, 0.0)
        self.arrive(5, 30.0)
        self.assertAlmostEqual(self.admission.wait_s(HOST, 30.0), 30.0)
        self.assertEqual(self.arrive(10, 60.0), [A] * 10)

    def test_others_are_not_touched(self) -> None:
        """CON-30: the limit is per address."""
        self.arrive(15, 0.0)
        self.assertEqual(self.arrive(10, 0.0, "192.0.2.6"), [A] * 10)

    def test_full(self) -> None:
        """CON-2: as many as there may be; the rate of those who insist still counts."""
        self.assertIs(self.admission.arrive(HOST, 0.0, 99), A)
        self.assertIs(self.admission.arrive(HOST, 0.0, 100), FULL)
        verdicts = [self.admission.arrive(HOST, 0.0, 100) for _ in range(9)]
        self.assertEqual(verdicts, [FULL] * 8 + [TOO_MANY])

    def test_room_for_others(self) -> None:
        """CON-2: one address does not get all places, unless it is exempt; its rate counts on."""
        admission = Admission(AdmissionLimits(max_of_one=5, exempt=("192.0.2.9",)))
        self.assertIs(admission.arrive(HOST, 0.0, 99, 4), A)
        verdicts = [admission.arrive(HOST, 0.0, 99, 5) for _ in range(10)]
        self.assertEqual(verdicts, [Verdict.HELD] * 9 + [TOO_MANY])
        self.assertIs(admission.arrive("192.0.2.9", 0.0, 99, 50), A)

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from([1, 3, 10, 60, 61, 500]),
        st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=400),
    )
    def test_never_more_in_any_minute(self, limit: int, gaps: list[float]) -> None:
        """CON-30: whatever comes when, no 60 s hold more than the limit; memory is bounded."""
        admission = Admission(AdmissionLimits(per_minute=limit, refusals=10**9))
        now, admitted = 1000.0, []
        for gap in gaps:
            now += gap
            if admission.arrive(HOST, now) is A:
                admitted.append(now)
        for first, last in zip(admitted, admitted[limit:], strict=False):
            self.assertGreaterEqual(last - first, WINDOW_S)
        self.assertLessEqual(len(admission._recent[HOST].arrivals), 62)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=100))
    def test_wait_is_right(self, gaps: list[float]) -> None:
        """CON-30: after as long as a refused one is told to wait, it is admitted."""
        admission = Admission(AdmissionLimits(per_minute=4, refusals=10**9))
        now = 0.0
        for gap in gaps:
            now += gap
            if admission.arrive(HOST, now) is TOO_MANY:
                now += admission.wait_s(HOST, now) + 1e-6
                self.assertIs(admission.arrive(HOST, now), A)


class Abuse(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.admission = Admission(
            AdmissionLimits(exempt=("127.0.0.0/8", "::1", "2001:db8:5::/48"))
        )

    def abuse(self, host: str = HOST, now: float = 0.0) -> list[Verdict]:
        return [self.admission.arrive(host, now) for _ in range(30)]

    def test_shut_out_for_an_hour(self) -> None:
        """CON-30: 20 refusals within five minutes, and the address is blocked for 3,600 s."""
        self.assertEqual(self.abuse(now=50.0), [A] * 10 + [TOO_MANY] * 19 + [BLOCKED])
        self.assertIs(self.admission.arrive(HOST, 3649.9), BLOCKED)
        self.assertEqual(self.admission.wait_s(HOST, 3649.0), 1.0)
        self.assertIs(self.admission.arrive(HOST, 3650.0), A)
        self.assertEqual(self.admission.blocks, 1)

    def test_listed_and_lifted(self) -> None:
        """CON-30: the engineer sees who is shut out, why and for how long, and can lift it."""
        self.abuse()
        (blocked,) = self.admission.blocked(600.0)
        self.assertEqual((blocked.address, blocked.remaining_s), (HOST, 3000.0))
        self.assertIn("10 a minute", blocked.reason)
        self.assertTrue(self.admission.unblock(HOST))
        self.assertFalse(self.admission.unblock(HOST))
        self.assertEqual(self.admission.blocked(600.0), [])
        self.assertIs(self.admission.arrive(HOST, 600.0), A)

    def test_ends_by_itself(self) -> None:
        """CON-30: a block that has run out is not listed."""
        self.abuse()
        self.assertEqual(self.admission.blocked(3600.0), [])

    def test_old_refusals_are_forgiven(self) -> None:
        """CON-30: abuse is repetition; one refusal a minute never blocks."""
        for minute in range(100):
            verdicts = [self.admission.arrive(HOST, minute * 60.0) for _ in range(12)]
            self.assertEqual(verdicts, [A] * 10 + [TOO_MANY] * 2)

    def test_exempt(self) -> None:
        """CON-30: exempt addresses and networks have no limit but that of all connections."""
        for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "2001:db8:5:1::7"):
            self.assertEqual(self.abuse(host), [A] * 30, host)
            self.assertIs(self.admission.arrive(host, 0.0, 100), FULL)
        self.assertEqual(self.admission.remembered(), 0)

    def test_one_exempt_ipv6_address(self) -> None:
        """CON-30: its neighbours in the /64 are not exempt with it."""
        admission = Admission(AdmissionLimits(per_minute=1, exempt=("2001:db8::5",)))
        self.assertEqual([admission.arrive("2001:db8::5", 0.0) for _ in range(3)], [A] * 3)
        self.assertEqual([admission.arrive("2001:db8::6", 0.0) for _ in range(2)], [A, TOO_MANY])

    def test_expected(self) -> None:
        """CON-51: listeners another server hands over are not limited for a while."""
        self.admission.expect(HOST, 100.0)
        self.assertEqual(self.abuse(now=99.0), [A] * 30)
        self.assertEqual(self.abuse(now=100.0)[9:11], [A, TOO_MANY])


class Addresses(unittest.SynchronousTestCase):
    def test_keys(self) -> None:
        """CON-30: what counts as one address."""
        key = Admission(AdmissionLimits()).key
        for host, expected in (
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("fe80::1%eth0", "fe80::1"),
            ("fd00::1", "fd00::1"),
            ("", ""),
            ("nonsense:", "nonsense:"),
        ):
            self.assertEqual(key(host), expected)

    def test_ipv6_by_network(self) -> None:
        """CON-30: a /64 is one customer; it is listed as such, and lifted by any address of it."""
        admission = Admission(AdmissionLimits())
        for n in range(30):
            last = admission.arrive(f"2001:db8::{n:x}", 0.0)
        self.assertIs(last, BLOCKED)
        self.assertIs(admission.arrive("2001:db8:0:1::1", 0.0), A)
        self.assertEqual([one.address for one in admission.blocked(0.0)], ["2001:db8::/64"])
        self.assertTrue(admission.unblock("2001:db8::ffff"))
        self.assertIs(admission.arrive("2001:db8::1", 0.0), A)

    def test_everybody_in_the_room(self) -> None:
        """CON-30: phones with the link's or the site's own addresses are told apart."""
        admission = Admission(AdmissionLimits())
        for n in range(100):
            self.assertIs(admission.arrive(f"fe80::{n + 1:x}", 0.0), A)
            self.assertIs(admission.arrive(f"fd00:1::{n + 1:x}", 0.0), A)

    def test_wrong_exempt(self) -> None:
        with self.assertRaises(ValueError):
            Admission(AdmissionLimits(exempt=("nowhere",)))


class Bounds(unittest.SynchronousTestCase):
    def test_tables(self) -> None:
        """CON-30: 10,000 addresses, each refused and then as many blocked, stay within bounds."""
        limits = AdmissionLimits(per_minute=1, refusals=3, max_addresses=500, max_blocked=100)
        admission = Admission(limits)
        addresses = [f"10.{n >> 8}.{n & 255}.1" for n in range(10_000)]
        for address in addresses:
            admission.arrive(address, 1.0)
        self.assertEqual(admission.remembered(), 500)
        self.assertEqual(admission.forgotten, 9_500)
        for address in addresses:
            for _ in range(4):
                last = admission.arrive(address, 2.0)
            self.assertIs(last, BLOCKED)
        self.assertEqual(len(admission.blocked(2.0)), 100)
        for address in addresses:
            admission.expect(address, 10.0)
        self.assertLessEqual(admission.remembered(), 500 + 100 + 500)

    def test_memory(self) -> None:
        """CON-30: ten times as many addresses as fit the tables take no more memory."""
        admission = Admission(AdmissionLimits(max_addresses=1000))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        sizes = []
        for turn in range(10):
            for n in range(1000):
                admission.arrive(f"10.{turn}.{n >> 8}.{n & 255}", float(turn))
            sizes.append(tracemalloc.get_traced_memory()[0])
        self.assertLess(max(sizes[1:]), sizes[0] * 1.2)

    def test_the_quiet_are_forgotten(self) -> None:
        """CON-30: what is too old to matter leaves the table before it is full."""
        admission = Admission(AdmissionLimits())
        for n in range(1000):
            admission.arrive(f"10.0.{n >> 8}.{n & 255}", 0.0)
        for n in range(600):
            admission.arrive(f"10.1.{n >> 8}.{n & 255}", 301.0 + n * 0.1)
        self.assertEqual(admission.remembered(), 600)
        self.assertEqual(admission.forgotten, 0)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["arrive", "expect", "unblock", "blocked", "wait"]),
                HOSTS,
                st.floats(0, 2000, allow_nan=False),
                st.integers(0, 5),
            ),
            max_size=120,
        )
    )
    def test_any_order_of_things(self, steps: list[tuple[str, str, float, int]]) -> None:
        """CON-30: nothing raises; tables hold; counts add up; blocks end in order and on time."""
        limits = AdmissionLimits(
            max_connections=4, per_minute=2, refusals=2, block_s=500, max_addresses=4, max_blocked=2
        )
        admission = Admission(limits)
        now, arrivals = 0.0, 0
        for kind, host, gap, open_now in steps:
            now += gap
            if kind == "arrive":
                arrivals += 1
                verdict = admission.arrive(host, now, open_now)
                if verdict is A:
                    self.assertLess(open_now, 4)
                if verdict is BLOCKED:
                    self.assertGreater(admission.wait_s(host, now), 0)
            elif kind == "expect":
                admission.expect(host, now + 10)
            elif kind == "unblock":
                admission.unblock(host)
            elif kind == "wait":
                self.assertGreaterEqual(admission.wait_s(host, now), 0.0)
            listed = admission.blocked(now)
            for one, other in pairwise(listed):
                self.assertLessEqual(one.remaining_s, other.remaining_s)
            self.assertTrue(all(0 < one.remaining_s <= 500 for one in listed))
            self.assertLessEqual(admission.remembered(), 4 + 2 + 4)
        self.assertEqual(sum(admission.counts.values()), arrivals)
