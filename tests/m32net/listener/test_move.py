"""CON-51, CON-12: a listener is told to move, and does; whatever the servers do meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionRefusedError
from twisted.trial import unittest

from m32net.listener.life import Life
from m32net.listener.link import Wishes
from m32net.listener.move import DELIVER_S, MOVE_TABLE, Deed, Step, Turn
from m32net.listener.session import MAX_SENT_ON, ListenerError
from m32net.listener.thresholds import Thresholds
from protocols.clock.ntp import NtpSample
from protocols.control import events
from protocols.control.messages import Error, Event, Hello, Migration, Welcome
from tests.m32net.listener.sessions import FakeClient, SessionCase
from tests.m32net.listener.streams import stream


class TableTest(unittest.TestCase):
    def test_total(self) -> None:
        self.assertEqual(set(MOVE_TABLE), {(step, turn) for step in Step for turn in Turn})

    def test_every_step_is_reached_and_can_be_left(self) -> None:
        reached = {Step.PLANNED}
        while True:
            more = {new for (step, _), (new, _) in MOVE_TABLE.items() if step in reached} - reached
            if not more:
                break
            reached |= more
        self.assertEqual(reached, set(Step))
        for step in set(Step) - {Step.OVER}:
            self.assertEqual(MOVE_TABLE[step, Turn.CANCEL], (Step.OVER, Deed.DROP))

    def test_nothing_waits_longer_than_the_deadline(self) -> None:
        """Every step between connecting and being heard ends when the time is over."""
        for step in set(Step) - {Step.PLANNED, Step.OVER}:
            self.assertEqual(MOVE_TABLE[step, Turn.LATE], (Step.PLANNED, Deed.TRY_LATER))


class MoveCase(SessionCase):
    def migrate(
        self, client: FakeClient, after: float = 30, host: str = "other", port: int = 9090
    ) -> None:
        told = Migration(host, port, after).event("the engineer moves all listeners")
        client.tell(events.ServerEvent(told))

    def begin_move(self, after: float = 30, **more: object) -> FakeClient:
        """Streaming from the first server, and told to move."""
        self.begin(**more)
        old = self.streaming()
        self.receiver.a_second = 198
        self.migrate(old, after)
        return old

    def arrive(self) -> FakeClient:
        """The second server lets us in and announces its stream."""
        client = self.connect()
        client.host = "192.0.2.2"
        client.tell(events.Welcomed(Welcome("me", "other secret")))
        client.tell(events.StreamStarted(stream(first_ssrc=7000)))
        return client

    @property
    def urls(self) -> list[str]:
        return [factory.url for factory in self.factories]


class MoveTest(MoveCase):
    def test_all_the_way(self) -> None:
        old = self.begin_move(after=30)
        self.assertEqual(self.session.state, Life.MOVING)
        self.assertEqual(
            self.session.migration(),
            {"to": "other:9090", "step": "planned", "attempts": 0, "in_s": 30.0},
        )
        self.clock.advance(29.9)
        self.assertEqual(len(self.factories), 1)
        self.clock.advance(0.2)
        self.assertEqual(self.urls[-1], "ws://other:9090/ws")
        new = self.arrive()
        self.assertEqual(new.hello, Hello("me", "Anna's phone", "secret"))
        self.assertEqual(self.asked_of[-1], "http://other:9090")
        self.assertEqual(new.asked, old.asked)
        self.assertEqual(self.receiver.following, [(stream(first_ssrc=7000), "192.0.2.2")])
        self.assertIsNone(old.closed)
        self.clock.advance(1.2)
        self.receiver.moved()
        self.assertEqual(self.session.state, Life.STREAMING)
        self.assertEqual((old.closed, new.closed), ("migrated", None))
        self.assertEqual(str(self.session.address), "http://other:9090/")
        (done,) = self.session.moves
        self.assertEqual(
            (done.origin, done.target, done.attempts),
            ("http://server:8080/", "http://other:9090/", 1),
        )
        self.assertApproximates(done.took_s, 31.3, 0.01)
        self.assertIsNone(self.session.migration())
        self.assertEqual(self.session.reconnects, 0)
        self.clock.advance(DELIVER_S + 1)
        self.assertEqual(self.session.state, Life.STREAMING)

    def test_then_the_new_server_is_the_server(self) -> None:
        """Its events, its clock, its REST, and its name when the connection is lost."""
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        self.receiver.moved()
        new.tell(events.ClockUpdated(-3.5, 1.0, NtpSample(0, 13, 13, 1)))
        self.assertEqual(self.receiver.offset_ms, -3.5)
        new.tell(events.ServerEvent(Event("config_changed", "x", new_sample_rate=32_000)))
        self.assertEqual(new.asked[-1].sample_rate, 32_000)
        self.clock.pump([1.0] * 14)
        self.assertGreater(len(self.api.posted), 0)
        new.tell(events.StreamStarted(stream(first_ssrc=7000)))
        new.lose()
        self.clock.advance(2.3)
        self.assertEqual(self.urls[-1], "ws://other:9090/ws")
        self.assertEqual(self.connect().hello, Hello("me", "Anna's phone", "other secret"))

    def test_clock_and_thresholds_of_the_new_server_wait_for_the_move(self) -> None:
        self.begin_move(after=0)
        self.api.thresholds = Thresholds(30, 60)
        self.clock.advance(0)
        new = self.arrive()
        new.tell(events.ClockUpdated(55.0, 1.0, NtpSample(0, 13, 13, 1)))
        self.assertIsNone(self.receiver.offset_ms)
        self.assertEqual(self.receiver.latency.offset_ns, 55_000_000)
        self.assertEqual(self.receiver.thresholds, Thresholds())
        self.receiver.moved()
        self.assertEqual(self.receiver.thresholds, Thresholds(30, 60))

    def test_wss_stays_wss(self) -> None:
        self.begin()
        old = self.streaming()
        self.session.link.address = type(self.session.address)("server", 8443, secure=True)
        self.migrate(old, 0)
        self.clock.advance(0)
        self.assertEqual(self.urls[-1], "wss://other:9090/ws")

    def test_to_a_successor_at_the_same_address(self) -> None:
        self.begin()
        old = self.streaming()
        self.migrate(old, 0, "server", 8080)
        self.clock.advance(0)
        self.arrive()
        self.receiver.moved()
        self.assertEqual(old.closed, "migrated")

    def test_told_twice(self) -> None:
        """The same again changes the time, as long as that has not come; nothing is begun twice."""
        old = self.begin_move(after=30)
        self.migrate(old, 5)
        self.clock.advance(5.1)
        self.assertEqual(len(self.factories), 2)
        self.migrate(old, 5)
        self.clock.advance(5.1)
        self.assertEqual(len(self.factories), 2)
        self.arrive()
        self.receiver.moved()
        self.assertEqual(len(self.session.moves), 1)

    def test_told_to_go_elsewhere_instead(self) -> None:
        old = self.begin_move(after=0)
        self.clock.advance(0)
        other = self.arrive()
        self.migrate(old, 1, "third")
        self.assertEqual(other.closed, "bye")
        self.clock.advance(1.1)
        self.assertEqual(self.urls[-1], "ws://third:9090/ws")
        self.arrive()
        self.receiver.moved()
        self.assertEqual(str(self.session.address), "http://third:9090/")

    def test_called_off(self) -> None:
        for steps in range(4):
            old = self.begin_move(after=1 if steps == 0 else 0)
            self.clock.advance(0)
            new = None
            if steps == 2:
                new = self.connect()
            elif steps == 3:
                new = self.arrive()
            old.tell(events.ServerEvent(Event("migrationCancelled", "the engineer called it off")))
            self.assertEqual(self.session.state, Life.STREAMING)
            self.assertIsNone(old.closed)
            if new is not None:
                self.assertEqual(new.closed, "bye")
            self.clock.advance(20)
            self.assertLessEqual(len(self.factories), 2)
            self.assertIsNone(self.receiver.moved)

    def test_called_off_within_the_cross_fade_is_too_late(self) -> None:
        old = self.begin_move(after=0)
        self.clock.advance(0)
        self.arrive()
        self.receiver.going_over = True
        old.tell(events.ServerEvent(Event("migrationCancelled", "no")))
        self.assertEqual(self.session.state, Life.MOVING)
        self.receiver.going_over = False
        self.receiver.moved()
        self.assertEqual(old.closed, "migrated")

    def test_old_server_changes_its_format_meanwhile(self) -> None:
        """It is asked again as ever, and the new stream is got ready beside the changed one."""
        old = self.begin_move(after=0)
        self.clock.advance(0)
        self.arrive()
        old.tell(events.ServerEvent(Event("config_changed", "x", new_sample_rate=32_000)))
        self.assertEqual(self.session.state, Life.MOVING)
        self.assertEqual(old.asked[-1].sample_rate, 32_000)
        old.tell(events.StreamStarted(stream(rate=32_000)))
        self.assertEqual(self.receiver.heard[-1], (stream(rate=32_000), "192.0.2.1"))
        self.assertEqual(len(self.receiver.following), 2)
        self.receiver.moved()
        self.assertEqual(self.session.state, Life.STREAMING)

    def test_new_server_changes_its_format_meanwhile(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        new.tell(events.ServerEvent(Event("config_changed", "x", new_sample_rate=24_000)))
        self.assertEqual(new.asked[-1].sample_rate, 24_000)
        new.tell(events.StreamStarted(stream(rate=24_000)))
        self.assertEqual(self.receiver.following[-1][0], stream(rate=24_000))

    def test_what_cannot_be_followed_is_said_only(self) -> None:
        self.begin()
        old = self.streaming()
        for fields in (
            {},
            {"new_host": "", "new_port": 1, "migrate_after": 0},
            {"new_host": "x", "new_port": 0, "migrate_after": 0},
            {"new_host": "ht!tp", "new_port": 8080, "migrate_after": 0},
            {"new_host": "x", "new_port": 8080, "migrate_after": -1},
        ):
            old.tell(events.ServerEvent(Event("serverMigration", "go", fields=fields)))
            self.clock.advance(1)
            self.assertEqual((self.session.state, len(self.factories)), (Life.STREAMING, 1))

    def test_stopped_while_moving(self) -> None:
        """Bye to both, and nothing is left."""
        for steps in range(4):
            old = self.begin_move(after=1 if steps == 0 else 0)
            old.let_go = False
            self.clock.advance(0)
            new = None
            if steps == 2:
                new = self.connect()
            elif steps == 3:
                new = self.arrive()
            stopped = self.session.stop()
            self.assertEqual(self.session.state, Life.CLOSED)
            self.assertNoResult(stopped)
            old.gone.pop()()
            self.assertEqual(self.successResultOf(stopped), [])
            self.assertEqual(old.closed, "bye")
            if new is not None:
                self.assertEqual(new.closed, "bye")
            self.assertEqual(self.clock.getDelayedCalls(), [])


class FailingMoveTest(MoveCase):
    """A new server that is no good: the old one is heard on."""

    def wait_for_attempt(self, number: int, at_most: float = 70) -> float:
        started = self.clock.seconds()
        while len(self.factories) < number and self.clock.seconds() < started + at_most:
            self.clock.advance(0.1)
        self.assertEqual(len(self.factories), number)
        return self.clock.seconds() - started

    def test_refuses(self) -> None:
        """With back-off: 2, 4, 8 s."""
        old = self.begin_move(after=0)
        self.clock.advance(0)
        for number, delay in ((3, 2), (4, 4), (5, 8)):
            self.openings[-1].errback(ConnectionRefusedError())
            self.assertEqual(self.session.state, Life.MOVING)
            self.assertApproximates(self.wait_for_attempt(number), delay, 0.15)
        self.assertIn("http://other:9090/ cannot be reached", self.said[-1])
        self.assertIn("moving again in 8 s", self.said[-1])
        self.assertIsNone(old.closed)
        self.assertEqual(self.session.migration()["attempts"], 4)
        self.arrive()
        self.receiver.moved()
        self.assertEqual(old.closed, "migrated")
        self.assertEqual(self.session.moves[0].attempts, 4)

    def test_never_delivers(self) -> None:
        """Ten seconds after connecting, wherever it has come to then."""
        for steps in range(4):
            old = self.begin_move(after=0)
            self.clock.advance(0)
            new = None
            if steps == 1:
                new = self.connect()
            elif steps == 2:
                new = self.connect()
                new.tell(events.Welcomed(Welcome("me", "x")))
            elif steps == 3:
                new = self.arrive()
            self.clock.advance(DELIVER_S - 0.1)
            self.assertEqual(self.session.migration()["attempts"], 1)
            self.clock.advance(0.2)
            self.assertEqual(self.session.migration()["step"], "planned")
            self.assertIn("no audio came from http://other:9090/ within 10 s", self.said[-1])
            self.assertIsNone(self.receiver.moved)
            self.assertIsNone(old.closed)
            if new is not None:
                self.assertEqual(new.closed, "reconnecting")
            self.clock.advance(2.3)
            self.assertEqual(self.session.migration()["attempts"], 2)

    def test_late_within_the_cross_fade_is_not_late(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        self.receiver.going_over = True
        self.clock.advance(DELIVER_S + 0.1)
        self.assertIsNone(new.closed)
        self.receiver.going_over = False
        self.receiver.moved()
        self.assertEqual(len(self.session.moves), 1)

    def test_says_no(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.connect()
        new.tell(events.ServerError(Error("server_full", "20 listeners are connected already")))
        self.assertTrue(any("20 listeners" in text for text in self.said))
        self.assertEqual((self.session.state, new.closed), (Life.MOVING, "reconnecting"))
        self.assertIsNone(self.session.ended.called or None)

    def test_is_lost_again(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        self.arrive().lose()
        self.assertIsNone(self.receiver.moved)
        self.wait_for_attempt(3)

    def test_lost_within_the_cross_fade(self) -> None:
        """It is heard by then: the listener comes back to it, as to any server it has lost."""
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        self.receiver.going_over = True
        new.lose()
        self.receiver.going_over = False
        self.receiver.moved()
        self.assertEqual(self.session.state, Life.WAITING)
        self.wait_for_attempt(3)
        self.assertEqual(self.urls[-1], "ws://other:9090/ws")

    def test_sends_us_on(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.connect()
        self.migrate(new, 0, "third")
        self.assertEqual(self.session.state, Life.MOVING)
        self.assertEqual(new.closed, "reconnecting")

    def test_with_once_a_failed_move_is_no_failure(self) -> None:
        self.begin_move(after=0, wishes=Wishes(retry=False))
        self.clock.advance(0)
        self.openings[-1].errback(ConnectionRefusedError())
        self.assertNoResult(self.session.ended)


class OldServerDiesTest(MoveCase):
    def test_before_its_time_has_come(self) -> None:
        """Straight to the new server."""
        old = self.begin_move(after=30)
        old.lose()
        self.assertEqual(self.urls, ["ws://server:8080/ws", "ws://other:9090/ws"])
        self.arrive()
        self.receiver.moved()
        self.assertEqual(self.session.state, Life.STREAMING)
        self.clock.advance(31)
        self.assertEqual(len(self.factories), 2)

    def test_while_the_new_one_is_connected_to(self) -> None:
        old = self.begin_move(after=0)
        self.clock.advance(0)
        old.lose()
        self.assertEqual(len(self.factories), 2)
        self.arrive()
        self.receiver.moved()
        self.assertEqual(self.session.state, Life.STREAMING)

    def test_between_two_attempts(self) -> None:
        old = self.begin_move(after=0)
        self.clock.advance(0)
        self.openings[-1].errback(ConnectionRefusedError())
        old.lose()
        self.assertEqual(len(self.factories), 3)

    def test_and_the_new_one_is_not_there_either(self) -> None:
        """The usual back-off, with each of the two in turn until one answers."""
        old = self.begin_move(after=0)
        self.clock.advance(0)
        old.tell(events.ServerEvent(Event("server_shutdown", "maintenance", reconnect_after=60)))
        old.lose()
        self.openings[-1].errback(ConnectionRefusedError())
        self.assertEqual(self.session.state, Life.WAITING)
        for host in ("other:9090", "server:8080", "other:9090", "server:8080"):
            number = len(self.factories)
            for _ in range(400):
                if len(self.factories) == number:
                    self.clock.advance(0.1)
            self.assertEqual(self.urls[-1], f"ws://{host}/ws")
            self.assertEqual(self.factories[-1].make_session().hello.token, "secret")
            self.openings[-1].errback(ConnectionRefusedError())
        self.assertLess(self.clock.seconds(), 33)

    def test_asks_to_reconnect(self) -> None:
        old = self.begin_move(after=30)
        old.tell(events.ServerEvent(Event("reconnect", "restart", reconnect_after=7)))
        self.assertEqual(self.urls[-1], "ws://other:9090/ws")

    def test_falls_silent(self) -> None:
        self.begin_move(after=300)
        self.receiver.a_second = 0
        self.clock.pump([1.0] * 13)
        self.assertEqual(self.urls[-1], "ws://other:9090/ws")

    def test_with_once(self) -> None:
        old = self.begin_move(after=0, wishes=Wishes(retry=False))
        self.clock.advance(0)
        old.lose()
        self.openings[-1].errback(ConnectionRefusedError())
        self.failureResultOf(self.session.ended, ListenerError)


class NewServerDiesTest(MoveCase):
    """CON-51, CON-12: who has moved to a server that dies then comes back to one that lives."""

    def tried(self, number: int) -> list[str]:
        """The next servers that are tried; none answers."""
        hosts = []
        for _ in range(number):
            known = len(self.factories)
            for _ in range(700):
                if len(self.factories) == known:
                    self.clock.advance(0.1)
            hosts.append(self.urls[-1].removeprefix("ws://").removesuffix("/ws"))
            self.openings[-1].errback(ConnectionRefusedError())
        return hosts

    def test_the_one_that_sent_us_is_tried_too(self) -> None:
        """After three failures; then both in turn, and the waits go on growing to a minute."""
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        self.receiver.moved()
        new.lose()
        begin = self.clock.seconds()
        a, b = "server:8080", "other:9090"
        self.assertEqual(self.tried(6), [b, b, a, b, a, b])
        waits = 2 + 4 + 8 + 16 + 32 + 60
        self.assertLess(abs(self.clock.seconds() - begin - waits), 13)
        self.assertEqual(self.factories[-1].make_session().hello.client_id, "me")

    def test_it_takes_us_back(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        self.receiver.moved()
        new.lose()
        self.tried(2)
        self.clock.advance(9)
        self.streaming()
        self.assertEqual(str(self.session.address), "http://server:8080/")
        self.assertEqual(sum("trying http://server:8080/" in one for one in self.said), 1)

    def test_the_first_one_too(self) -> None:
        """Moved twice: the server that sent us last, and the address typed in, in turn."""
        self.begin_move(after=0)
        self.clock.advance(0)
        second = self.arrive()
        self.receiver.moved()
        self.migrate(second, 0, "third", 7070)
        self.clock.advance(0)
        third = self.arrive()
        self.receiver.moved()
        third.lose()
        a, b, c = "server:8080", "other:9090", "third:7070"
        self.assertEqual(self.tried(8), [c, c, b, a, c, b, a, c])

    def test_sent_on_to_the_dead_one_again(self) -> None:
        """The first one still moves everybody: asked with growing waits, until it takes us."""
        self.begin_move(after=0)
        self.clock.advance(0)
        new = self.arrive()
        self.receiver.moved()
        new.lose()
        self.receiver.flows = False
        self.tried(2)
        for _ in range(6):
            known = len(self.factories)
            for _ in range(2000):
                if len(self.factories) == known:
                    self.clock.advance(0.1)
            if self.urls[-1].startswith("ws://server"):
                self.migrate(self.connect(), 0)
            if not self.openings[-1].called:
                self.openings[-1].errback(ConnectionRefusedError())
        self.assertLessEqual(len(self.factories), 15)
        while not self.urls[-1].startswith("ws://server") or self.openings[-1].called:
            self.clock.advance(0.1)
            if self.urls[-1].startswith("ws://other") and not self.openings[-1].called:
                self.openings[-1].errback(ConnectionRefusedError())
            self.assertLess(self.clock.seconds(), 1000)
        self.streaming()

    def test_who_never_moved_stays(self) -> None:
        self.begin()
        self.streaming().lose()
        self.assertEqual(self.tried(6), ["server:8080"] * 6)


class SentOnTest(MoveCase):
    """CON-51: who comes while a server moves its listeners is sent to the other one."""

    def test_before_any_stream(self) -> None:
        """``migrate_after`` 0, then the connection is closed with 1012."""
        self.begin()
        first = self.connect()
        self.migrate(first, 0)
        first.tell(events.SessionClosed("lost", 1012, "service restart"))
        self.assertEqual(self.urls, ["ws://server:8080/ws", "ws://other:9090/ws"])
        self.assertEqual(self.session.state, Life.CONNECTING)
        self.streaming()
        self.assertEqual(self.session.reconnects, 0)
        self.assertEqual(str(self.session.address), "http://other:9090/")

    def test_amid_a_stream(self) -> None:
        """The same while the RTP of a connection lost before still flows."""
        old = self.begin_move(after=0)
        old.tell(events.SessionClosed("lost", 1012, "service restart"))
        self.assertEqual((self.session.state, self.urls[-1]), (Life.MOVING, "ws://other:9090/ws"))
        self.arrive()
        self.receiver.moved()
        self.assertEqual(self.session.state, Life.STREAMING)

    def test_the_other_one_is_not_there(self) -> None:
        self.begin()
        self.migrate(self.connect(), 0)
        self.openings[-1].errback(ConnectionRefusedError())
        self.clock.advance(2.3)
        self.assertEqual(self.urls[-1], "ws://server:8080/ws")

    def test_round_and_round(self) -> None:
        """Servers that send each other a listener are not asked as fast as they answer."""
        self.begin()
        for number in range(MAX_SENT_ON):
            self.migrate(self.connect(), 0, ("other", "server")[number % 2], 8080)
        self.assertEqual(len(self.factories), 1 + MAX_SENT_ON)
        self.migrate(self.connect(), 0, "server", 8080)
        self.assertEqual(self.session.state, Life.WAITING)
        self.assertEqual(len(self.factories), 1 + MAX_SENT_ON)
        self.clock.advance(2.3)
        self.assertEqual(len(self.factories), 2 + MAX_SENT_ON)


class PinTest(MoveCase):
    def test_said_in_hello(self) -> None:
        self.begin(Wishes(pin="2468"))
        self.assertEqual(self.connect().hello.pin, "2468")

    def test_wrong_one_ends_it(self) -> None:
        """Trying again would only get it shut out."""
        self.begin()
        client = self.connect()
        client.tell(events.ServerError(Error("wrong_pin", "this server asks for a PIN")))
        error = self.failureResultOf(self.session.ended, ListenerError).value
        self.assertEqual(str(error), "the server says: this server asks for a PIN (--pin PIN)")
        client.lose()
        self.clock.advance(100)
        self.assertEqual(len(self.factories), 1)

    def test_wrong_one_at_the_new_server_keeps_the_old(self) -> None:
        self.begin_move(after=0)
        self.clock.advance(0)
        self.connect().tell(events.ServerError(Error("wrong_pin", "that is not the PIN")))
        self.assertNoResult(self.session.ended)
        self.assertEqual(self.session.state, Life.MOVING)


EVENTS = (
    events.Welcomed(Welcome("me", "secret")),
    events.StreamStarted(stream()),
    events.StreamStarted(stream(first_ssrc=7000)),
    events.ServerError(Error("full", "no")),
    events.ServerEvent(Migration("other", 9090, 0).event("go")),
    events.ServerEvent(Migration("third", 9090, 3).event("go")),
    events.ServerEvent(Event("migrationCancelled", "stay")),
    events.ServerEvent(Event("config_changed", "x", new_sample_rate=32_000)),
    events.ServerEvent(Event("reconnect", "x", reconnect_after=1)),
    events.ServerEvent(Event("server_shutdown", "x", reconnect_after=1)),
    events.SessionClosed("lost", 1006, "gone"),
)
STEPS = st.one_of(
    st.tuples(st.just("tell"), st.integers(0, 3), st.sampled_from(EVENTS)),
    st.tuples(st.just("open"), st.booleans(), st.none()),
    st.tuples(st.just("wait"), st.sampled_from((0.0, 0.5, 2.5, 11.0)), st.none()),
    st.tuples(st.just("fade"), st.booleans(), st.none()),
)


class AnythingTest(MoveCase):
    @settings(max_examples=150, deadline=None)
    @given(st.lists(STEPS, max_size=60))
    def test_whatever_happens(self, steps: list) -> None:
        """Nothing raises, no more than two servers are talked to, and stop leaves nothing."""
        self.begin()
        clients: list[FakeClient] = []
        for what, which, event in steps:
            if what == "open":
                waiting = [k for k, one in enumerate(self.openings) if not one.called]
                for k in waiting:
                    if which:
                        clients.append(FakeClient(self.factories[k]))
                        self.openings[k].callback(clients[-1])
                    else:
                        self.openings[k].errback(ConnectionRefusedError())
            elif what == "tell" and clients:
                clients[-1 - which % len(clients)].tell(event)
            elif what == "wait":
                self.clock.advance(which)
            elif what == "fade" and self.receiver.moved is not None:
                self.receiver.going_over = which
                if not which:
                    moved, self.receiver.moved = self.receiver.moved, None
                    moved()
            talked_to = {
                link.client
                for link in (self.session.link, self.session._move and self.session._move.link)
                if link and link.client
            }
            self.assertEqual(
                {one for one in clients if one.closed is None and not one.aborted}
                - talked_to
                - {one for one in clients if one.over},
                set(),
            )
            self.assertEqual(self.session.state is Life.MOVING, self.session._move is not None)
        self.receiver.going_over = False
        stopped = self.session.stop()
        self.clock.advance(1.1)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
