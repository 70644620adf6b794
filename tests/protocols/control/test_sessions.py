"""STR-5, STR-9, STR-23, CLK-1: both session cores, alone, together, and under any input."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.clock.ntp import NtpFilter
from protocols.control import events as e
from protocols.control import messages as m
from protocols.control.client_session import ClientSession
from protocols.control.limits import ClientLimits, ServerLimits
from protocols.control.outgoing import CloseFrame
from protocols.control.server_session import ServerSession
from protocols.control.states import ClientState, ServerState
from tests.protocols.control.test_messages import client_messages, configs, server_messages

WALL = 1_721_123_456_789.0
HELLO = b'{"type":"hello","payload":{"name":"Anna"}}'
CONFIG = b'{"type":"client_config","payload":{"udp_port":5004}}'
BEAT = b'{"type":"heartbeat"}'
BAD = b'{"type":"hello","payload":{"name":7}}'
STREAM = m.Stream("c", "L16", 48000, 48000, 5, "mono", 5004, 5004, "/sdp/c.sdp")


def sent(session: ServerSession, wall: float = WALL) -> list[dict]:
    return [json.loads(item.data) for item in session.data_to_send(wall)]


def said(session: ClientSession) -> list[dict]:
    return [json.loads(data) for data in session.data_to_send()]


class ServerSessionTests(unittest.TestCase):
    def setUp(self):
        self.session = ServerSession(0.0)

    def test_hello_then_configuration(self):
        self.assertEqual(self.session.receive(HELLO, 1.0, WALL), [e.Joined(m.Hello(name="Anna"))])
        self.assertEqual(
            self.session.receive(CONFIG, 2.0, WALL), [e.Configured(m.ClientConfig(udp_port=5004))]
        )
        self.assertIs(self.session.state, ServerState.CONFIGURED)
        self.assertEqual(sent(self.session), [])

    def test_bare_configuration(self):
        """The specification's own client knows no hello: it joins implicitly."""
        got = self.session.receive(CONFIG, 1.0, WALL)
        config = m.ClientConfig(udp_port=5004)
        self.assertEqual(got, [e.Joined(m.Hello(), implicit=True), e.Configured(config)])

    def test_a_second_hello_is_refused(self):
        self.session.receive(CONFIG, 1.0, WALL)
        (refused,) = self.session.receive(HELLO, 1.0, WALL)
        self.assertEqual(refused.code, "unexpected")
        self.assertEqual(sent(self.session)[0]["payload"]["code"], "unexpected")
        self.assertIs(self.session.state, ServerState.CONFIGURED)

    def test_bad_messages_are_answered_and_survived(self):
        (refused,) = self.session.receive(BAD, 1.0, WALL)
        self.assertEqual(refused.code, "bad_message")
        (answer,) = sent(self.session)
        self.assertEqual(
            answer,
            {"type": "error", "payload": {"code": "bad_message", "message": refused.message}},
        )
        self.assertEqual(self.session.receive(HELLO, 1.0, WALL), [e.Joined(m.Hello(name="Anna"))])

    def test_errors_are_bounded(self):
        limits = ServerLimits(fault_burst=3, faults_per_s=1)
        self.session = ServerSession(0.0, limits)
        for _ in range(3):
            self.assertIsInstance(self.session.receive(BAD, 0.0, WALL)[0], e.Refused)
        _, closed = self.session.receive(BAD, 0.0, WALL)
        self.assertEqual((closed.cause, closed.code), ("abuse", 1008))
        self.assertEqual(len(sent(self.session)), 4)
        self.assertEqual(self.session.close_wanted.code, 1008)
        self.assertEqual(self.session.receive(HELLO, 0.0, WALL), [])

    def test_fifty_messages_a_second_are_borne(self):
        for number in range(3000):
            self.session.receive(BEAT if number else HELLO, number / 50, WALL)
        self.assertIs(self.session.state, ServerState.JOINED)

    def test_more_are_not(self):
        for number in range(10_000):
            got = self.session.receive(BEAT if number else HELLO, number / 100, WALL)
            if self.session.state is ServerState.CLOSED:
                break
        self.assertTrue(95 <= number <= 100, number)  # 50 at once and 50 more each second
        self.assertEqual([type(event) for event in got], [e.Refused, e.SessionClosed])
        self.assertEqual((got[0].code, got[1].cause, got[1].code), ("too_fast", "abuse", 1008))
        self.assertEqual(sent(self.session)[-1]["payload"]["code"], "too_fast")

    def test_bytes_are_limited_too(self):
        long = b'{"type":"heartbeat","x":"' + b"x" * 1_000_000 + b'"}'
        count = 0
        while self.session.state is not ServerState.CLOSED:
            self.session.receive(long, 0.0, WALL)
            count += 1
        self.assertEqual(count, 3)

    def test_heartbeat_timeout(self):
        """STR-5: 30 s without a sign of life end the session; anything valid is one."""
        self.session.receive(CONFIG, 0.0, WALL)
        for second in (20, 40, 60):
            self.assertEqual(self.session.handle_timer(second), [])
            self.session.receive(BEAT, second, WALL)
        self.session.pong(b"\0" * 8, 60.0)
        self.assertEqual(self.session.handle_timer(89.9), [])
        (closed,) = self.session.handle_timer(90.0)
        self.assertEqual(closed, e.SessionClosed("silent", 1008, "no heartbeat for 30 s"))
        self.assertEqual(self.session.close_wanted, CloseFrame(1008, "no heartbeat for 30 s"))
        self.assertIsNone(self.session.next_timer())

    def test_levels_are_for_those_who_said_who_they_are(self):
        want = m.encode(m.MetersRequest(200))
        (refused,) = self.session.receive(want, 0.0, WALL)
        self.assertEqual(refused, e.Refused("unexpected", "say hello first"))
        self.session.receive(HELLO, 0.0, WALL)
        self.assertEqual(self.session.receive(want, 0.0, WALL), [e.MetersWanted(200)])

    def test_garbage_is_no_sign_of_life(self):
        self.session.receive(CONFIG, 0.0, WALL)
        self.session.receive(BAD, 20.0, WALL)
        self.assertEqual(self.session.next_timer(), 30.0)

    def test_heartbeats_do_not_replace_a_hello(self):
        self.session.receive(BEAT, 29.0, WALL)
        (closed,) = self.session.handle_timer(30.0)
        self.assertEqual((closed.cause, closed.reason), ("silent", "no hello within 30 s"))

    def test_bye(self):
        """STR-5."""
        self.session.receive(HELLO, 0.0, WALL)
        got = self.session.receive(b'{"type":"bye"}', 1.0, WALL)
        self.assertEqual(got, [e.SessionClosed("bye", 1000, "bye")])
        self.assertEqual(self.session.lost(1000, ""), [], "only one end")

    def test_lost(self):
        """STR-5: told apart from a bye, for the grace."""
        self.session.receive(HELLO, 0.0, WALL)
        self.assertEqual(self.session.lost(1006, "gone"), [e.SessionClosed("lost", 1006, "gone")])
        self.assertIsNone(self.session.close_wanted, "nothing is left to close")

    def test_closed_by_the_owner(self):
        self.session.receive(HELLO, 0.0, WALL)
        self.assertTrue(self.session.send(m.Error("server_full", "20 listeners at most")))
        self.assertEqual(
            self.session.close(1013, "full"), [e.SessionClosed("closed", 1013, "full")]
        )
        self.assertFalse(self.session.send(m.Welcome("c")), "too late")
        self.assertEqual([frame["type"] for frame in sent(self.session)], ["error"])

    def test_time_with_decimals(self):
        """CLK-1: t2 when it came, t3 when the answer left."""
        self.session.receive(b'{"type":"ntp_request","t1":5.25}', 0.0, WALL + 0.125)
        (answer,) = sent(self.session, WALL + 0.5)
        self.assertEqual(
            answer, {"type": "ntp_response", "t1": 5.25, "t2": WALL + 0.125, "t3": WALL + 0.5}
        )

    def test_time_in_integers(self):
        """CLK-1: who asks in whole milliseconds is answered so."""
        self.session.receive(b'{"type":"ntp_request","t1":5}', 0.0, WALL + 0.6)
        (answer,) = self.session.data_to_send(WALL + 1.4)
        self.assertEqual(
            answer.data,
            b'{"type":"ntp_response","t1":5,"t2":1721123456790,"t3":1721123456790}',
        )

    def test_time_does_not_run_backwards(self):
        self.session.receive(b'{"type":"ntp_request","t1":5.5}', 0.0, WALL)
        (answer,) = sent(self.session, WALL - 1000)
        self.assertEqual(answer["t3"], WALL)


class ClientSessionTests(unittest.TestCase):
    def setUp(self):
        self.session = ClientSession(m.Hello(name="Anna"))

    def welcome(self, now=0.0, **fields):
        return self.session.receive(m.encode(m.Welcome("c", **fields)), now, WALL + now * 1000)

    def test_hello_first(self):
        self.session.start(0.0)
        self.assertEqual(said(self.session), [{"type": "hello", "payload": {"name": "Anna"}}])
        self.assertIs(self.session.state, ClientState.GREETING)

    def test_the_configuration_waits_for_the_welcome(self):
        self.session.configure(m.ClientConfig(udp_port=6000))
        self.session.start(0.0)
        self.session.configure(m.ClientConfig(udp_port=6002))
        said(self.session)
        (welcomed,) = self.welcome()
        self.assertEqual(welcomed.welcome.client_id, "c")
        self.assertEqual(
            said(self.session), [{"type": "client_config", "payload": {"udp_port": 6002}}]
        )

    def test_a_new_configuration_goes_at_once(self):
        self.session.start(0.0)
        self.welcome()
        self.session.receive(m.encode(STREAM), 0.0, WALL)
        said(self.session)
        self.session.configure(m.ClientConfig(compression="L24"))
        self.assertEqual(said(self.session)[0]["payload"], {"compression": "L24"})

    def test_reports(self):
        self.session.start(0.0)
        self.welcome()
        event = m.Event("config_changed", "r", new_sample_rate=32000)
        for message, expected in (
            (STREAM, e.StreamStarted(STREAM)),
            (event, e.ServerEvent(event)),
            (m.Error("a", "b"), e.ServerError(m.Error("a", "b"))),
        ):
            self.assertEqual(self.session.receive(m.encode(message), 1.0, WALL), [expected])
        self.assertIs(self.session.state, ClientState.STREAMING)

    def test_refused_before_the_welcome(self):
        """STR-6: a full server's error is heard, then its close."""
        self.session.start(0.0)
        full = m.Error("server_full", "20 listeners at most")
        self.assertEqual(self.session.receive(m.encode(full), 0.1, WALL), [e.ServerError(full)])
        self.assertEqual(self.session.lost(1008, "full"), [e.SessionClosed("lost", 1008, "full")])

    def run_until(self, end: float, start: float = 0.0) -> list[tuple[float, dict]]:
        """Let the timers ring, answering every clock request; what was said, and when."""
        spoken, now = [(start, frame) for frame in said(self.session)], start
        while (at := self.session.next_timer()) is not None and at <= end:
            now = max(now, at)
            self.heard.extend(self.session.handle_timer(now, WALL + now * 1000))
            for frame in said(self.session):
                spoken.append((now, frame))
                if frame["type"] == "ntp_request":
                    t2 = frame["t1"] + 7
                    answer = m.encode(m.NtpResponse(frame["t1"], t2, t2))
                    self.heard.extend(self.session.receive(answer, now, WALL + now * 1000 + 4))
        return spoken

    def test_heartbeats(self):
        """STR-5: as often as the server wants."""
        self.heard = []
        self.session.start(0.0)
        said(self.session)
        self.welcome(heartbeat_s=10)
        spoken = self.run_until(35)
        beats = [(at, f["timestamp"]) for at, f in spoken if f["type"] == "heartbeat"]
        self.assertEqual([at for at, _ in beats], [10, 20, 30])
        self.assertEqual(beats[0][1], "2024-07-16T09:51:06.789Z")

    def test_absurd_heartbeats(self):
        self.heard = []
        self.session.start(0.0)
        self.welcome(heartbeat_s=0.000001)
        spoken = [f for _, f in self.run_until(5) if f["type"] == "heartbeat"]
        self.assertEqual(len(spoken), 10)

    def test_clock_requests(self):
        """CLK-1: four at once, then one every few seconds; the best offset is told."""
        self.heard = []
        draws = iter((0.0, 1.0, 0.5, 0.0, 0.0))
        self.session = ClientSession(spread=draws.__next__)
        self.session.start(0.0)
        self.welcome()
        spoken = self.run_until(14)
        asked = [round(at, 3) for at, f in spoken if f["type"] == "ntp_request"]
        self.assertEqual(asked, [0, 0.2, 0.4, 0.6, 2.6, 7.6, 11.1, 13.1])
        updates = [event for event in self.heard if isinstance(event, e.ClockUpdated)]
        self.assertEqual(len(updates), 8)
        self.assertEqual((updates[-1].offset_ms, updates[-1].delay_ms), (5.0, 4.0))
        self.assertEqual(self.session.clock.offset, 5.0)

    def test_only_answers_to_questions_count(self):
        self.session.start(0.0)
        self.welcome()
        self.session.handle_timer(0.0, WALL)
        (question,) = (f for f in said(self.session) if f["type"] == "ntp_request")
        answer = m.encode(m.NtpResponse(question["t1"], WALL, WALL))
        forged = m.encode(m.NtpResponse(question["t1"] + 1, WALL, WALL))
        self.assertEqual(self.session.receive(forged, 0.0, WALL + 1), [])
        self.assertEqual(len(self.session.receive(answer, 0.0, WALL + 1)), 1)
        self.assertEqual(self.session.receive(answer, 0.0, WALL + 1), [], "once")
        self.assertEqual(self.session.unread, 2)

    def test_unanswered_questions_are_bounded(self):
        self.session.start(0.0)
        self.welcome()
        now = 0.0
        while now < 120:
            now = self.session.next_timer()
            self.session.handle_timer(now, WALL + now * 1000)
            self.session.receive(m.encode(STREAM), now, WALL + now * 1000)
        asked = [frame for frame in said(self.session) if frame["type"] == "ntp_request"]
        self.assertGreater(len(asked), 30)
        self.assertLessEqual(len(self.session._questions), 8)
        self.assertEqual(self.session.trips.loss, 1.0)

    def test_slow_answers_are_refused(self):
        """CLK-1: over 100 ms."""
        self.session.start(0.0)
        self.welcome()
        self.session.handle_timer(0.0, WALL)
        (question,) = (f for f in said(self.session) if f["type"] == "ntp_request")
        answer = m.encode(m.NtpResponse(question["t1"], WALL, WALL))
        self.assertEqual(self.session.receive(answer, 0.101, WALL + 101), [])
        self.assertEqual(self.session.clock.refused, 1)

    def test_a_step_of_the_local_clock(self):
        """Samples from before it would be wrong for half a minute: forget them, ask again."""
        self.heard = []
        self.session.start(0.0)
        self.welcome()
        self.run_until(1.0)
        self.assertEqual(len(self.session.clock), 4)
        self.session.handle_timer(1.5, WALL + 1500 + 3_600_000)
        self.assertIsNone(self.session.clock.offset)
        self.assertEqual([frame["type"] for frame in said(self.session)], ["ntp_request"])
        self.assertEqual(self.session.next_timer(), 1.7, "as fast as at the start")

    def test_samples_survive_a_reconnect(self):
        """STR-23: the same filter, given to the next session."""
        clock = NtpFilter()
        clock.add(0, 5, 5, 2)
        session = ClientSession(clock=clock)
        session.start(0.0)
        self.assertEqual(session.clock.offset, 4.0)

    def test_no_welcome(self):
        self.session.start(0.0)
        (closed,) = self.session.handle_timer(10.0, WALL)
        reason = "the server did not answer within 10 s"
        self.assertEqual(closed, e.SessionClosed("silent", 1001, reason))
        self.assertEqual(self.session.close_wanted.code, 1001)

    def test_a_silent_server(self):
        """STR-23: gone without a word, as when the Wi-Fi is lost."""
        self.session.start(0.0)
        self.welcome()
        got = []
        while not got:
            at = self.session.next_timer()
            got = self.session.handle_timer(at, WALL + at * 1000)
        self.assertEqual((got[0].cause, at), ("silent", 15.0))
        self.assertIsNone(self.session.next_timer())

    def test_leaving(self):
        self.session.start(0.0)
        self.welcome()
        said(self.session)
        self.assertEqual(self.session.close("x"), [e.SessionClosed("closed", 1000, "x")])
        self.assertEqual(said(self.session), [{"type": "bye", "payload": {"reason": "x"}}])
        self.assertEqual(self.session.close_wanted, CloseFrame(1000, "x"))
        self.assertEqual(self.session.close(), [])

    def test_garbage_from_the_server(self):
        self.session = ClientSession(limits=ClientLimits(fault_burst=2))
        self.session.start(0.0)
        for _ in range(2):
            self.assertEqual(self.session.receive(b"{", 0.0, WALL), [])
        for _ in range(9):
            self.assertEqual(self.session.receive(b'{"type":"later"}', 0.0, WALL), [])
        (closed,) = self.session.receive(b"{", 0.0, WALL)
        self.assertEqual((closed.cause, self.session.unread), ("abuse", 12))


class PairTests(unittest.TestCase):
    """Both ends on a link with latency."""

    def test_a_minute(self):
        """STR-5, CLK-1: nothing times out, and the clock's offset is found through 3 ms of air."""
        latency, offset_ms, heard = 0.003, 1234.5, []
        client, server = ClientSession(), ServerSession(0.0)
        client.configure(m.ClientConfig(udp_port=5004))
        client.start(0.0)
        flying: list[tuple[float, int, bytes]] = []
        now, count = 0.0, 0
        while now < 60:
            local, remote = WALL + now * 1000, WALL + now * 1000 + offset_ms
            for at, kind, data in [item for item in flying if item[0] <= now]:
                flying.remove((at, kind, data))
                if kind == 0:
                    for event in server.receive(data, now, remote):
                        heard.append(event)
                        if isinstance(event, e.Joined):
                            server.send(m.Welcome("c"))
                        elif isinstance(event, e.Configured):
                            server.send(STREAM)
                else:
                    heard.extend(client.receive(data, now, local))
            heard.extend(client.handle_timer(now, local))
            heard.extend(server.handle_timer(now))
            flying += [(now + latency, 0, data) for data in client.data_to_send()]
            flying += [(now + latency, 1, out.data) for out in server.data_to_send(remote)]
            timers = [client.next_timer(), server.next_timer(), *(item[0] for item in flying)]
            now = max(now, min(timer for timer in timers if timer is not None))
            count += 1
            self.assertLess(count, 1000, "it spins")
        kinds = {type(event) for event in heard}
        self.assertLessEqual({e.Joined, e.Configured, e.Welcomed, e.StreamStarted, e.Alive}, kinds)
        self.assertNotIn(e.SessionClosed, kinds)
        self.assertAlmostEqual(client.clock.offset, offset_ms, places=2)
        self.assertAlmostEqual(client.clock.delay, 6.0, places=2)


garbage = st.binary(max_size=40) | st.text(max_size=40)
gaps = st.floats(0, 40)
server_calls = st.one_of(
    st.tuples(st.just("receive"), client_messages.map(m.encode) | garbage),
    st.tuples(st.just("timer"), st.none()),
    st.tuples(st.just("send"), server_messages),
    st.tuples(st.just("pong"), st.none()),
    st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("lost"), st.none()),
    st.tuples(st.just("abuse"), st.none()),
)
client_calls = st.one_of(
    st.tuples(st.just("start"), st.none()),
    st.tuples(st.just("receive"), server_messages.map(m.encode) | garbage),
    st.tuples(st.just("timer"), st.none()),
    st.tuples(st.just("configure"), configs),
    st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("lost"), st.none()),
)


class AnyInputTests(unittest.TestCase):
    """State x input: whatever happens in whatever order, the sessions keep their word."""

    @given(st.lists(st.tuples(server_calls, gaps), max_size=30))
    @settings(max_examples=150, deadline=None)
    def test_server(self, calls):
        now, told, pings = 0.0, [], [b""]
        session = ServerSession(now, ServerLimits(fault_burst=3, message_burst=10))
        for (call, argument), gap in calls:
            now += gap
            was_closed = session.state is ServerState.CLOSED
            if call == "receive":
                new = session.receive(argument, now, WALL + now * 1000)
            elif call == "timer":
                new = session.handle_timer(now)
            elif call == "send":
                self.assertEqual(session.send(argument), not was_closed)
                new = []
            elif call == "pong":
                new = session.pong(pings[-1], now) or []
            elif call == "close":
                new = session.close(1001, "x")
            elif call == "lost":
                new = session.lost(1006, "x")
            else:
                new = session.abuse(1003, "x")
            if was_closed:
                self.assertEqual(new, [])
            told += new
            for frame in session.data_to_send(WALL + now * 1000):
                if frame.ping:
                    pings.append(frame.data)
                else:
                    m.decode_server(frame.data)
            self.assertEqual(session.data_to_send(WALL), [])
            self.assertEqual(session.next_timer() is None, session.state is ServerState.CLOSED)
        self.check_story(told, session.state is ServerState.CLOSED)
        for event in told:
            if isinstance(event, e.Configured):
                self.assertTrue(any(isinstance(first, e.Joined) for first in told))
        self.assertLessEqual(sum(isinstance(event, e.Joined) for event in told), 1)

    @given(st.lists(st.tuples(client_calls, gaps), max_size=30))
    @settings(max_examples=150, deadline=None)
    def test_client(self, calls):
        now, told, out = 0.0, [], []
        session = ClientSession(limits=ClientLimits(fault_burst=3))
        for (call, argument), gap in calls:
            now += gap
            was_closed = session.state is ClientState.CLOSED
            new = []
            if call == "receive":
                new = session.receive(argument, now, WALL + now * 1000)
            elif call == "timer":
                new = session.handle_timer(now, WALL + now * 1000)
            elif call == "start":
                session.start(now)
            elif call == "configure":
                session.configure(argument)
            elif call == "close":
                new = session.close()
            else:
                new = session.lost(1006, "x")
            if was_closed:
                self.assertEqual(new, [])
            told += new
            out += [m.decode_client(data) for data in session.data_to_send()]
            alive = session.state not in (ClientState.IDLE, ClientState.CLOSED)
            self.assertEqual(session.next_timer() is not None, alive)
        self.check_story(told, session.state is ClientState.CLOSED)
        if out:
            self.assertIsInstance(out[0], m.Hello)
        self.assertLessEqual(sum(isinstance(message, m.Hello) for message in out), 1)

    def check_story(self, told, closed):
        ends = [event for event in told if isinstance(event, e.SessionClosed)]
        self.assertEqual(len(ends), int(closed))
        if ends:
            self.assertIs(told[-1], ends[0])
