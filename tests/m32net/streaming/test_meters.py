"""CON-52, CON-21: levels go to those who want them, as seldom as they may and with what is new."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.streaming.meters import FLOOR_DB, FULL_SLOTS, LevelFeed, whole_db
from protocols.control import messages


class Link:
    """A control connection that keeps what it is told.

    :ivar shown: levels by channel as the listener has them.
    """

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.takes = True
        self.got: list[messages.Meters] = []
        self.shown: dict[int, int] = {}

    def send(self, message: messages.ServerMessage) -> bool:
        assert isinstance(message, messages.Meters)
        assert not self.queued_bytes
        message = messages.decode_server(messages.encode(message))  # type: ignore[assignment]
        assert isinstance(message, messages.Meters)
        if self.takes:
            self.got.append(message)
            ids = message.channels or range(1, len(message.peak_db) + 1)
            self.shown.update(zip(ids, message.peak_db, strict=True))
        return self.takes


def peaks(*dbs: float) -> np.ndarray:
    return np.array([2**31 * 10 ** (db / 20) for db in dbs]).astype(np.int64)


class WholeDecibelTests(unittest.TestCase):
    def test_known_levels(self) -> None:
        values = np.array([2**31, 2**30, 2**31 // 10, 1, 0, 2**31 - 1], np.int64)
        self.assertEqual(whole_db(values), (0, -6, -20, FLOOR_DB, FLOOR_DB, 0))

    @given(st.lists(st.integers(0, 2**31), min_size=1, max_size=64))
    def test_always_within_the_protocol(self, values: list[int]) -> None:
        meters = messages.Meters(whole_db(np.array(values, np.int64)))
        self.assertEqual(messages.decode_server(messages.encode(meters)), meters)


class FeedTests(unittest.TestCase):
    def setUp(self) -> None:
        self.metering: list[bool] = []
        self.feed = LevelFeed(self.metering.append)

    def link(self, interval_ms: int = 50) -> Link:
        link = Link()
        self.feed.subscribe(link, interval_ms)
        return link

    def test_in_full_where_that_is_asked_for(self) -> None:
        """CON-52: the plain way, to measure against: everything each time, changed or not."""
        feed = LevelFeed(self.metering.append, in_full=True)
        link = Link()
        feed.subscribe(link, 50)
        for _ in range(3):
            feed.levels(peaks(-6, -20), 1)
        self.assertEqual(link.got, [messages.Meters((-6, -20))] * 3)

    def test_measured_only_while_somebody_wants_it(self) -> None:
        """CON-52: nobody subscribed is no work."""
        first, second = self.link(), self.link(200)
        self.assertEqual(self.metering, [True])
        self.feed.subscribe(first, 1000)
        self.feed.subscribe(first, 1000)
        self.feed.forget(first)
        self.feed.forget(first)
        self.assertEqual(self.metering, [True])
        self.feed.subscribe(second, 0)
        self.assertEqual((self.metering, len(self.feed)), ([True, False], 0))
        self.feed.levels(peaks(-3), 1)
        self.assertEqual((first.got, second.got), ([], []))
        self.feed.subscribe(first, 50)
        self.assertEqual(self.metering, [True, False, True])

    def test_everything_first_then_what_changed(self) -> None:
        """CON-52: whole decibels; nothing at all if none changed."""
        link = self.link()
        self.feed.levels(peaks(-12, -20, -30, -90), 1)
        self.feed.levels(peaks(-12.2, -20, -30.3, -95), 1)
        self.feed.levels(peaks(-12, -21, -30, -90), 1)
        self.assertEqual(
            link.got,
            [messages.Meters((-12, -20, -30, -90)), messages.Meters((-21,), (2,))],
        )
        self.assertEqual(self.feed.sent, 2)

    def test_much_that_changed_is_told_in_the_shorter_way(self) -> None:
        link = self.link()
        self.feed.levels(peaks(-12, -20, -30, -40), 1)
        self.feed.levels(peaks(-13, -21, -31, -40), 1)
        self.assertEqual(link.got[1], messages.Meters((-13, -21, -31, -40)))

    def test_everything_again_after_5_s(self) -> None:
        link = self.link()
        for _ in range(2 * FULL_SLOTS + 1):
            self.feed.levels(peaks(-12, -20), 1)
        self.assertEqual(link.got, [messages.Meters((-12, -20))] * 3)

    def test_the_highest_of_the_interval(self) -> None:
        """A beat between two messages is seen, and each interval begins anew."""
        link = self.link(200)
        for level in (-40, -3, -40, -40, -41, -50, -50, -50):
            self.feed.levels(peaks(level), 1)
        self.assertEqual([one.peak_db for one in link.got], [(-3,), (-41,)])

    def test_intervals(self) -> None:
        """50 ms to 5 s, to the next 50 ms; slots that came together count as many."""
        links = {ms: self.link(ms) for ms in (50, 70, 90, 100, 1000, 5000)}
        for i in range(50):
            self.feed.levels(peaks(-(i % 80) - 1), 2)
        counts = {ms: len(link.got) for ms, link in links.items()}
        self.assertEqual(counts, {50: 50, 70: 50, 90: 50, 100: 50, 1000: 5, 5000: 1})

    def test_who_comes_later_gets_everything_the_others_do_not(self) -> None:
        early = self.link()
        self.feed.levels(peaks(-12, -20, -30), 1)
        late = self.link()
        self.feed.levels(peaks(-12, -20, -31), 1)
        self.assertEqual(early.got[1], messages.Meters((-31,), (3,)))
        self.assertEqual(late.got, [messages.Meters((-12, -20, -31))])

    def test_who_has_a_queue_is_left_out_then_gets_everything(self) -> None:
        """CON-21: levels never add to what waits for a slow reader."""
        slow, other = self.link(), self.link()
        self.feed.levels(peaks(-12, -20, -30), 1)
        slow.queued_bytes = 1
        for level in (-21, -22, -23):
            self.feed.levels(peaks(-12, level, -30), 1)
        slow.queued_bytes = 0
        self.feed.levels(peaks(-12, -23, -30), 1)
        self.assertEqual(len(other.got), 4)
        self.assertEqual(slow.got[1:], [messages.Meters((-12, -23, -30))])
        self.assertEqual(self.feed.skipped, 3)

    def test_what_was_thrown_away_is_made_good(self) -> None:
        """CON-21: a message that was dropped leaves no wrong picture."""
        link = self.link()
        link.takes = False
        self.feed.levels(peaks(-12, -20, -30), 1)
        self.assertEqual(self.feed.sent, 0)
        link.takes = True
        self.feed.levels(peaks(-12, -20, -30), 1)
        self.assertEqual(link.got, [messages.Meters((-12, -20, -30))])

    def test_a_link_that_ends_while_it_is_told(self) -> None:
        class Ending(Link):
            def send(inner, message: messages.ServerMessage) -> bool:
                self.feed.forget(inner)
                return False

        for _ in range(3):
            self.feed.subscribe(Ending(), 50)
        self.feed.levels(peaks(-12), 1)
        self.assertEqual((len(self.feed), self.metering), (0, [True, False]))

    def test_another_number_of_channels(self) -> None:
        """Levels of a source that has other channels are a new picture."""
        link = self.link(100)
        for levels in ((-1, -2), (-3, -4), (-5,), (-6,)):
            self.feed.levels(peaks(*levels), 1)
        self.assertEqual([one.peak_db for one in link.got], [(-1, -2), (-5,)])

    def test_figures(self) -> None:
        self.link()
        self.feed.levels(peaks(-12), 1)
        self.assertEqual(
            self.feed.figures(),
            {
                "meter_subscribers": 1,
                "meter_messages_total": 1,
                "meter_messages_skipped_total": 0,
            },
        )

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("ask"), st.integers(0, 3), st.sampled_from([0, 50, 150, 5000])),
                st.tuples(st.just("queue"), st.integers(0, 3), st.integers(0, 1)),
                st.tuples(st.just("gone"), st.integers(0, 3), st.just(0)),
                st.tuples(st.just("levels"), st.integers(1, 3), st.integers(0, 89)),
            ),
            max_size=80,
        )
    )
    def test_any_history(self, history: list[tuple[str, int, int]]) -> None:
        """Who is told at all has the right picture; metering is on while anybody wants it."""
        self.setUp()
        links = [Link() for _ in range(4)]
        wanting: dict[Link, int] = {}
        for what, which, value in history:
            link = links[which]
            if what == "ask":
                self.feed.subscribe(link, value)
                wanting[link] = value
                if not value:
                    del wanting[link]
            elif what == "queue":
                link.queued_bytes = value
            elif what == "gone":
                self.feed.forget(link)
                wanting.pop(link, None)
                link.shown.clear()
            else:
                current = peaks(-value, -(value // 2), -7)
                self.feed.levels(current, which)
                for one, interval in wanting.items():
                    if interval == 50 and not one.queued_bytes:
                        self.assertEqual(tuple(one.shown[i] for i in (1, 2, 3)), whole_db(current))
            self.assertEqual(bool(self.metering and self.metering[-1]), bool(wanting))
