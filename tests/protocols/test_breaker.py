"""CON-22: five failures in a row open it, it rests for 60 s, one is let through, success closes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock
from twisted.trial import unittest

from protocols.breaker import (
    BREAKER_TABLE,
    Breaker,
    BreakerAction,
    BreakerInput,
    BreakerState,
    Pass,
)


class BreakerTests(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.breaker = Breaker()

    def admit(self) -> Pass:
        given = self.breaker.admit(self.clock.seconds())
        assert given is not None
        return given

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failing(self.admit(), self.clock.seconds(), "disk full")

    def refused(self) -> bool:
        return self.breaker.admit(self.clock.seconds()) is None

    def test_five_failures_in_a_row_open_it(self):
        """CON-22: four don't, the fifth does."""
        self.fail(4)
        self.assertEqual(self.breaker.state, BreakerState.CLOSED)
        self.fail()
        self.assertEqual(self.breaker.state, BreakerState.OPEN)
        self.assertTrue(self.refused())
        self.assertEqual((self.breaker.opened, self.breaker.refused), (1, 1))
        self.assertEqual(self.breaker.reason, "disk full")

    def test_a_success_between_begins_the_count_anew(self):
        """CON-22: it takes failures in a row."""
        for _ in range(10):
            self.fail(4)
            self.breaker.succeeded(self.admit())
        self.assertEqual((self.breaker.state, self.breaker.failed), (BreakerState.CLOSED, 0))
        self.assertEqual(self.breaker.reason, "")

    def test_sixty_seconds_then_one_is_let_through(self):
        """CON-22: refused until 60 s have passed, then one passes and the next does not."""
        self.fail(5)
        self.clock.advance(59.9)
        self.assertAlmostEqual(self.breaker.retry_in(self.clock.seconds()), 0.1)
        self.assertTrue(self.refused())
        self.clock.advance(0.2)
        self.assertEqual(self.breaker.retry_in(self.clock.seconds()), 0)
        self.admit()
        self.assertEqual(self.breaker.state, BreakerState.HALF_OPEN)
        self.assertTrue(self.refused())

    def test_its_success_closes(self):
        """CON-22: and it takes five failures again to open."""
        self.fail(5)
        self.clock.advance(60)
        self.breaker.succeeded(self.admit())
        self.assertEqual(self.breaker.state, BreakerState.CLOSED)
        self.fail(4)
        self.assertEqual(self.breaker.state, BreakerState.CLOSED)

    def test_its_failure_opens_for_another_minute(self):
        """CON-22"""
        self.fail(5)
        for _ in range(3):
            self.clock.advance(60)
            self.fail()
            self.assertTrue(self.refused())
            self.assertEqual(self.breaker.retry_in(self.clock.seconds()), 60)
        self.assertEqual(self.breaker.opened, 4)

    def test_old_outcomes_say_nothing(self):
        """CON-22: what began before it opened neither closes it nor opens it again."""
        old = [self.admit() for _ in range(7)]
        for given in old[:5]:
            self.breaker.failing(given, 0.0, "late")
        self.breaker.succeeded(old[5])
        self.assertEqual(self.breaker.state, BreakerState.OPEN)
        self.clock.advance(60)
        probe = self.admit()
        self.breaker.failing(old[6], 60.0)
        self.breaker.succeeded(old[6])
        self.assertEqual(self.breaker.state, BreakerState.HALF_OPEN)
        self.breaker.succeeded(probe)
        self.assertEqual(self.breaker.state, BreakerState.CLOSED)

    def test_one_that_never_comes_back(self):
        """CON-22: after another rest the next one may try, and the lost one counts no more."""
        self.fail(5)
        self.clock.advance(60)
        lost = self.admit()
        self.clock.advance(59)
        self.assertTrue(self.refused())
        self.clock.advance(1)
        second = self.admit()
        self.breaker.failing(lost, self.clock.seconds())
        self.assertEqual(self.breaker.state, BreakerState.HALF_OPEN)
        self.breaker.succeeded(second)
        self.assertEqual(self.breaker.state, BreakerState.CLOSED)

    def test_one_without_an_outcome(self):
        """CON-22: cancelled is neither; the next may try at once."""
        self.fail(4)
        self.breaker.undecided(self.admit(), self.clock.seconds())
        self.assertEqual(self.breaker.failed, 4)
        self.fail()
        self.clock.advance(60)
        self.breaker.undecided(self.admit(), self.clock.seconds())
        self.assertEqual(self.breaker.state, BreakerState.OPEN)
        self.breaker.succeeded(self.admit())
        self.assertEqual(self.breaker.state, BreakerState.CLOSED)

    def test_none_is_no_number_of_failures(self):
        self.assertRaises(ValueError, Breaker, failures=0)


class TableTests(unittest.TestCase):
    def test_total(self):
        """CON-22: every input in every state has its next state and its action."""
        self.assertEqual(set(BREAKER_TABLE), {(s, i) for s in BreakerState for i in BreakerInput})
        self.assertEqual({action for _, action in BREAKER_TABLE.values()}, set(BreakerAction))


class BreakerMachine(RuleBasedStateMachine):
    """Any history, against a model that keeps the whole of it."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(failures=3, rest_s=10.0)
        self.now = 0.0
        self.row = 0  # failures in a row that counted
        self.opened_at: float | None = None
        self.probe: Pass | None = None
        self.probed_at = 0.0
        self.current: set[Pass] = set()  # passes whose outcome counts
        self.stale: set[Pass] = set()

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def ask(self):
        given = self.breaker.admit(self.now)
        if self.opened_at is None:
            assert given is not None
            self.current.add(given)
            return
        since = self.probed_at if self.probe is not None else self.opened_at
        if self.now >= since + 10.0:
            assert given is not None
            if self.probe is not None:
                self.stale.add(self.probe)
            self.probe, self.probed_at = given, self.now
        else:
            assert given is None
            assert self.breaker.retry_in(self.now) > 0

    @precondition(lambda self: self.current)
    @rule(works=st.booleans())
    def outcome(self, works):
        given = next(iter(self.current))
        if works:
            self.breaker.succeeded(given)
            self.row = 0
        else:
            self.breaker.failing(given, self.now, "x")
            self.row += 1
            if self.row == 3:
                self.open()

    @precondition(lambda self: self.probe is not None)
    @rule(works=st.booleans())
    def outcome_of_the_one(self, works):
        assert self.probe is not None
        if works:
            self.breaker.succeeded(self.probe)
            self.opened_at, self.row = None, 0
            self.current, self.probe = {self.probe}, None
        else:
            self.breaker.failing(self.probe, self.now, "x")
            self.stale.add(self.probe)
            self.open()

    def open(self):
        self.opened_at, self.probe = self.now, None
        self.stale |= self.current
        self.current = set()

    @precondition(lambda self: self.stale)
    @rule(works=st.booleans(), data=st.data())
    def old_outcome(self, works, data):
        given = data.draw(st.sampled_from(sorted(self.stale)))
        if works:
            self.breaker.succeeded(given)
        else:
            self.breaker.failing(given, self.now, "old")

    @invariant()
    def the_state_is_the_model_s(self):
        expected = (
            BreakerState.CLOSED
            if self.opened_at is None
            else BreakerState.OPEN
            if self.probe is None
            else BreakerState.HALF_OPEN
        )
        assert self.breaker.state is expected


class HistoriesTests(unittest.TestCase):
    def test_any_history(self):
        """CON-22: state x input x time."""
        case = BreakerMachine.TestCase()
        case.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
        case.runTest()
