"""CON-51: the decisions of a migration, by a clock that is turned by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.interfaces import RefusedError
from m32net.streaming.migration import (
    AWAY,
    CHECKING,
    LOOK_EVERY_S,
    MISSES,
    MOVE_TABLE,
    OPEN,
    OVERDUE_S,
    TABLE,
    Closed,
    Ended,
    LookAtTarget,
    Migration,
    Opened,
    Present,
    TakeBack,
    TellMove,
    TellStay,
)


class Venue:
    """A server with listeners that behave, refuse or vanish, moved on a ``task.Clock``.

    :param behaviour: what a listener does when its time has come: ``move``, ``refuse``,
        ``vanish`` (its connection is lost), ``leave`` (it says bye for another reason).
    """

    def __init__(self, count: int, behaviour: Callable[[int], str] = lambda n: "move") -> None:
        self.clock = Clock()
        self.core = Migration()
        self.here = {f"client_{n}": n for n in range(count)}
        self.behaviour = behaviour
        self.told: dict[str, list[float]] = {}
        self.stay: dict[str, str] = {}
        self.ended: list[Ended] = []
        self.open = True
        self.alive = True
        self.moved_at: dict[str, float] = {}
        self.check = 0
        self.returned = 0

    def begin(self, after_s: float = 30, each_s: float = 0.5) -> None:
        self.check = self.core.begin("192.0.2.7", 8080, after_s=after_s, each_s=each_s)

    def accept(self) -> None:
        people = [Present(one, f"phone {n}", True) for one, n in self.here.items()]
        self.core.accepted(self.check, people, self.clock.seconds())
        self.carry_out()

    def carry_out(self) -> None:
        for step in self.core.steps():
            match step:
                case TellMove(client_id=who, after_s=after_s):
                    self.told.setdefault(who, []).append(after_s)
                    self.clock.callLater(after_s, self.act, who)
                case TellStay(client_id=who, reason=reason):
                    self.stay[who] = reason
                case LookAtTarget():
                    self.core.looked(self.alive, self.clock.seconds())
                case Closed():
                    self.open = False
                case Opened():
                    self.open = True
                case TakeBack():
                    self.returned += 1
                case Ended():
                    self.ended.append(step)

    def act(self, who: str) -> None:
        number = self.here.get(who)
        if number is None or who in self.stay:
            return
        what = self.behaviour(number)
        if what != "refuse":
            del self.here[who]
            self.moved_at[who] = self.clock.seconds()
            self.core.departed(who, what == "move")
            self.carry_out()

    def run(self, seconds: float) -> None:
        """Turn the clock, giving the core its timers exactly when it wants them."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            wanted = self.core.next_timer()
            calls = [call.getTime() for call in self.clock.getDelayedCalls()]
            at = min([end, *([] if wanted is None else [wanted]), *calls])
            self.clock.advance(max(0.0, at - self.clock.seconds()))
            now = self.clock.seconds()
            if (wanted := self.core.next_timer()) is not None and wanted <= now:
                self.core.handle_timer(now)
            self.carry_out()

    def states(self) -> list[str]:
        return [move.state for move in self.core.status().moves]


class SimulationTest(unittest.TestCase):
    def test_twenty_move_one_by_one(self) -> None:
        """CON-51: all are told at once, each moves half a second after the one before it."""
        venue = Venue(20)
        venue.begin()
        self.assertIsNone(venue.core.target())
        venue.accept()
        self.assertEqual(list(venue.told.values()), [[30 + 0.5 * n] for n in range(20)])
        self.assertEqual(venue.core.target(), ("192.0.2.7", 8080))
        self.assertFalse(venue.open)
        venue.run(29)
        self.assertEqual(venue.states(), ["told"] * 20)
        venue.run(6)
        self.assertEqual(venue.states(), ["moved"] * 11 + ["told"] * 9)
        venue.run(10)
        self.assertEqual(venue.core.state, "done")
        self.assertEqual(venue.states(), ["moved"] * 20)
        gaps = [b - a for a, b in itertools.pairwise(venue.moved_at.values())]
        self.assertTrue(all(abs(gap - 0.5) < 1e-9 for gap in gaps), gaps)
        self.assertEqual([end.state for end in venue.ended], ["done"])
        self.assertFalse(venue.open, "newcomers go on being sent to the new server")

    def test_some_refuse_some_vanish(self) -> None:
        """CON-51: who is still here 15 s after its time has stayed, and is reported."""
        acts = ["move", "move", "refuse", "vanish", "leave"]
        venue = Venue(20, lambda n: acts[n % 5])
        venue.begin()
        venue.accept()
        venue.run(30 + 17 * 0.5 + OVERDUE_S - 0.1)  # the 18th is the last that refuses
        self.assertEqual(venue.core.state, "moving")
        venue.run(0.2)
        self.assertEqual(venue.core.state, "incomplete")
        self.assertEqual(venue.states().count("moved"), 8)
        self.assertEqual(venue.states().count("stayed"), 4)
        self.assertEqual(venue.states().count("left"), 8)
        self.assertEqual(venue.core.status().reason, "4 of 20 listeners stayed")
        for who in list(venue.here):  # they change their minds
            venue.core.departed(who, True)
        venue.carry_out()
        self.assertEqual(venue.core.state, "done")
        self.assertEqual(venue.states().count("moved"), 12)

    def test_called_off_in_the_middle(self) -> None:
        """CON-51: the rest is told to stay, newcomers are taken again, it may begin anew."""
        venue = Venue(20)
        venue.begin()
        venue.accept()
        venue.run(34.9)
        moved = set(venue.moved_at)
        self.assertEqual(len(moved), 10)
        venue.core.cancel()
        venue.carry_out()
        self.assertEqual(set(venue.stay), set(venue.here))
        self.assertTrue(venue.open)
        self.assertIsNone(venue.core.target())
        venue.run(60)
        self.assertEqual(set(venue.moved_at), moved)
        self.assertEqual(venue.core.state, "cancelled")
        self.assertEqual(venue.states().count("stayed"), 10)
        self.assertIsNone(venue.core.next_timer())
        self.assertRaises(RefusedError, venue.core.cancel)
        venue.stay.clear()
        venue.begin(after_s=1)
        venue.accept()
        venue.run(10)
        self.assertEqual((venue.core.state, venue.here), ("done", {}))

    def test_target_dies(self) -> None:
        """CON-51: when the new server no longer answers, nobody more is sent there."""
        venue = Venue(20)
        venue.begin(each_s=2)
        venue.accept()
        venue.run(34.9)
        venue.alive = False
        venue.run(LOOK_EVERY_S * (MISSES + 1))
        self.assertEqual(venue.core.state, "failed")
        self.assertIn("no longer answers", venue.core.status().reason)
        self.assertEqual(set(venue.stay), set(venue.here))
        self.assertTrue(venue.open)
        venue.run(60)
        self.assertEqual(len(venue.here) + len(venue.moved_at), 20)
        self.assertGreater(len(venue.here), 0)

    def test_a_short_silence_of_the_target_is_no_loss(self) -> None:
        """CON-51: fewer misses than MISSES in a row change nothing."""
        core = Migration()
        check = core.begin("a", 1, after_s=30, each_s=0)
        core.accepted(check, [Present("x", "", True)], 0)
        for number in range(12):
            core.looked(number % MISSES == 0, float(number))
        self.assertEqual(core.state, "moving")

    def test_target_lost_after_the_end(self) -> None:
        """CON-51: newcomers are not sent to a server that has died since."""
        venue = Venue(2)
        venue.begin(after_s=0)
        venue.accept()
        venue.run(5)
        self.assertEqual(venue.core.state, "done")
        venue.alive = False
        venue.run(LOOK_EVERY_S * (MISSES + 1))
        self.assertEqual(venue.core.state, "failed")
        self.assertTrue(venue.open)

    def test_nobody_there(self) -> None:
        """CON-51: without listeners it is done at once, and newcomers are sent away."""
        venue = Venue(0)
        venue.begin()
        venue.accept()
        self.assertEqual(venue.core.state, "done")
        self.assertEqual(venue.core.target(), ("192.0.2.7", 8080))

    def test_refused(self) -> None:
        """CON-51: a new server that can't be used costs nobody anything."""
        venue = Venue(3)
        venue.begin()
        venue.core.refused(venue.check, "it is full")
        venue.carry_out()
        self.assertEqual((venue.core.state, venue.told), ("failed", {}))
        self.assertEqual(venue.core.status().reason, "it is full")
        self.assertTrue(venue.open)

    def test_called_off_while_checking(self) -> None:
        """CON-51: what the check says later no longer matters."""
        venue = Venue(3)
        venue.begin()
        venue.core.cancel()
        venue.accept()
        self.assertEqual((venue.core.state, venue.told), ("cancelled", {}))
        self.assertTrue(venue.open)

    def test_one_at_a_time(self) -> None:
        """CON-51: a second migration has to wait for the first."""
        venue = Venue(3)
        venue.begin()
        error = self.assertRaises(RefusedError, venue.begin)
        self.assertEqual(error.status, 409)
        venue.accept()
        self.assertRaises(RefusedError, venue.begin)
        self.assertEqual(venue.core.status().host, "192.0.2.7")

    def test_times_have_bounds(self) -> None:
        core = Migration()
        for after_s, each_s in ((-1, 0), (0, -1), (1e9, 0), (0, 1e9), (float("nan"), 0)):
            with self.assertRaises(RefusedError):
                core.begin("a", 1, after_s=after_s, each_s=each_s)
        self.assertEqual(core.state, "idle")

    def test_without_connection_now(self) -> None:
        """CON-51: who has lost its connection is told when it is back, with the time left."""
        core = Migration()
        check = core.begin("a", 1, after_s=30, each_s=0)
        core.accepted(check, [Present("x", "", False)], 0)
        self.assertEqual([s for s in core.steps() if isinstance(s, TellMove)], [])
        self.assertEqual(core.status().moves[0].state, "waiting")
        core.came_back("x", 3)
        self.assertEqual(list(core.steps()), [TellMove("x", 27)])
        core.came_back("stranger", 3)
        self.assertEqual(list(core.steps()), [])


class AgainTest(unittest.TestCase):
    """A migration that begins while newcomers are still sent away by the one before."""

    def venue(self, state: str) -> Venue:
        venue = Venue(2, lambda n: "refuse" if state == "incomplete" else "move")
        venue.begin(after_s=0)
        venue.accept()
        venue.run(OVERDUE_S + 2)
        self.assertEqual(venue.core.state, state)
        venue.core.begin("192.0.2.8", 80, after_s=0, each_s=0)
        venue.check += 1
        return venue

    def test_newcomers_go_where_they_went(self) -> None:
        """CON-51: while the next server is looked at, newcomers are sent to the one before."""
        for state in ("done", "incomplete"):
            venue = self.venue(state)
            self.assertEqual(venue.core.status().state, "checking")
            self.assertEqual(venue.core.status().host, "192.0.2.8")
            self.assertEqual(venue.core.target(), ("192.0.2.7", 8080))
            venue.accept()
            self.assertEqual(venue.core.target(), ("192.0.2.8", 80))
            self.assertFalse(venue.open)

    def test_opens_when_it_comes_to_nothing(self) -> None:
        """CON-51: refused or called off, newcomers are taken here again, who was told stays."""
        for state in ("done", "incomplete"):
            for what in ("refused", "cancel"):
                venue = self.venue(state)
                if what == "refused":
                    venue.core.refused(venue.check, "it is full")
                else:
                    venue.core.cancel()
                venue.carry_out()
                self.assertTrue(venue.open, (state, what))
                self.assertIsNone(venue.core.target())
                self.assertEqual(set(venue.stay), set(venue.here))

    def test_those_who_stayed_move(self) -> None:
        """CON-51: begun again after `incomplete`, who stayed is told again, and may go."""
        venue = self.venue("incomplete")
        venue.behaviour = lambda n: "move"
        venue.accept()
        self.assertEqual([len(told) for told in venue.told.values()], [2, 2])
        venue.run(1)
        self.assertEqual((venue.core.state, venue.here), ("done", {}))

    def test_place_of_the_successor(self) -> None:
        """CON-51: what a successor was given is taken back, however it ends."""
        for end in ("refused", "cancel", "lost"):
            venue = Venue(0)
            venue.begin()
            self.assertTrue(venue.core.gave_way(venue.check))
            venue.accept()
            with self.assertRaises(RefusedError) as caught:
                venue.core.begin("192.0.2.8", 80, after_s=0, each_s=0)
            self.assertEqual(caught.exception.code, "given_way")
            self.assertEqual((venue.core.state, venue.core.given), ("done", True))
            if end == "lost":
                venue.alive = False
                venue.run(LOOK_EVERY_S * (MISSES + 1))
            else:
                venue.begin()
                self.assertTrue(venue.core.given)
                venue.core.refused(venue.check, "no") if end == "refused" else venue.core.cancel()
            venue.carry_out()
            self.assertEqual((venue.returned, venue.core.given, venue.open), (1, False, True), end)

    def test_what_an_old_check_finds(self) -> None:
        """CON-51: what comes of a check that was called off does not count for the next."""
        core = Migration()
        old = core.begin("192.0.2.66", 8080, after_s=0, each_s=0)
        core.cancel()
        new = core.begin("192.0.2.7", 8080, after_s=0, each_s=0)
        core.refused(old, "no")
        core.accepted(old, [], 0)
        self.assertFalse(core.gave_way(old))
        self.assertEqual((core.state, core.given), ("checking", False))
        core.accepted(new, [], 0)
        self.assertEqual(core.target(), ("192.0.2.7", 8080))


class TableTest(unittest.TestCase):
    def test_tables_are_closed(self) -> None:
        """Every state that is reached has a row, and every state is reached."""
        for table, first in ((TABLE, "idle"), (MOVE_TABLE, "waiting")):
            reached = {first, *(to for row in table.values() for to in row.values())}
            self.assertEqual(reached, set(table))

    @given(st.integers(0, 2**32), st.integers(1, 60))
    def test_anything_in_any_order(self, seed: int, length: int) -> None:
        """Whatever happens when: the status stays true to the tables, and nothing raises."""
        rng = random.Random(seed)
        core, now, checks = Migration(), 0.0, [0]
        is_open = True
        people = [Present(f"c{n}", "", n % 3 != 0) for n in range(5)]
        for _ in range(length):
            now += rng.choice((0.0, 0.5, 2.0, 20.0))
            who = f"c{rng.randrange(6)}"
            try:
                rng.choice(
                    (
                        lambda: checks.append(core.begin("a", 1, after_s=1, each_s=0.5)),
                        lambda now=now: core.accepted(rng.choice(checks[-2:]), people, now),
                        lambda: core.refused(rng.choice(checks[-2:]), "no"),
                        lambda: core.given or core.gave_way(rng.choice(checks[-2:])),
                        core.cancel,
                        lambda now=now: core.looked(rng.random() < 0.5, now),
                        lambda now=now, who=who: core.came_back(who, now),
                        lambda who=who: core.departed(who, rng.random() < 0.5),
                        lambda now=now: core.handle_timer(now),
                    )
                )()
            except RefusedError:
                continue
            for step in core.steps():
                match step:
                    case Closed():
                        is_open = False
                    case Opened():
                        self.assertFalse(is_open, "once only")
                        is_open = True
            self.assertEqual(is_open, core.state not in AWAY)
            self.assertEqual(core.target() is None, is_open)
            if core.given:
                self.assertIn(core.state, AWAY | CHECKING)
            status = core.status()
            self.assertIn(status.state, TABLE)
            states = {move.state for move in status.moves}
            self.assertLessEqual(states, set(MOVE_TABLE))
            if status.state in {"done", "incomplete", "failed", "cancelled"}:
                self.assertFalse(states & OPEN)
            if status.state == "done":
                self.assertNotIn("stayed", states)
            timer = core.next_timer()
            if timer is not None and timer <= now:
                core.handle_timer(now)
                later = core.next_timer()
                self.assertTrue(later is None or later > now)
