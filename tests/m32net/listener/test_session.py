"""STR-23, STR-27, STR-63, flow 1..8: a listener's life against a server that is the test's."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError

from m32net.listener.life import Life
from m32net.listener.link import Wishes
from m32net.listener.server_api import ServerApiError
from m32net.listener.session import SILENCE_S, ListenerError
from m32net.listener.settings import ChannelMix, Mix
from m32net.listener.thresholds import Thresholds
from protocols.clock.ntp import NtpSample
from protocols.control import events
from protocols.control.messages import ClientConfig, Error, Event, Hello, Welcome
from tests.m32net.listener.sessions import SessionCase
from tests.m32net.listener.streams import stream


class FlowTest(SessionCase):
    def test_from_connecting_to_streaming(self) -> None:
        self.begin()
        self.assertTrue(self.receiver.running)
        client = self.connect()
        self.assertEqual(client.hello, Hello(name="Anna's phone"))
        client.tell(events.Welcomed(Welcome("me", "secret")))
        self.assertEqual(client.asked, [ClientConfig(udp_port=6004)])
        announced = stream()
        client.tell(events.StreamStarted(announced))
        self.assertEqual(self.receiver.heard, [(announced, "192.0.2.1")])
        self.assertEqual(self.session.state, Life.STREAMING)

    def test_wishes(self) -> None:
        self.begin(
            Wishes(channels=(3, 1), codec="L16", layout="mono", frame_ms=10.0, sample_rate=32_000)
        )
        (config,) = self.welcome().asked
        self.assertEqual([one.id for one in config.channels], [3, 1])
        self.assertEqual(
            (config.compression, config.layout, config.frame_ms, config.sample_rate),
            ("L16", "mono", 10.0, 32_000),
        )

    def test_channels_that_are_not_there(self) -> None:
        self.begin(Wishes(channels=(3, 40)))
        (config,) = self.welcome().asked
        self.assertEqual([one.id for one in config.channels], [3])
        self.assertTrue(any("40" in text for text in self.said))

    def test_muted_channels_are_not_sent(self) -> None:
        """STR-30."""
        mix = Mix((ChannelMix(2, mute=True),))
        self.begin(Wishes(mix=mix))
        (config,) = self.welcome().asked
        self.assertEqual(config.wanted, (1, 3))
        self.begin(Wishes(mix=mix, send_muted=True))
        self.assertEqual(self.welcome().asked[0].channels, ())

    def test_server_without_rest(self) -> None:
        self.begin()
        self.api.channels = None
        (config,) = self.welcome().asked
        self.assertEqual(config.channels, ())
        self.assertEqual(self.receiver.thresholds, Thresholds())

    def test_thresholds_by_precedence(self) -> None:
        """STR-27."""
        self.begin()
        self.api.thresholds = Thresholds(30, 60)
        self.welcome()
        self.assertEqual(self.receiver.thresholds, Thresholds(30, 60))
        self.begin(environment={"JITTER_DROP_MS": "90"})
        self.api.thresholds = Thresholds(30, 60)
        self.welcome()
        self.assertEqual(self.receiver.thresholds, Thresholds(30, 90))

    def test_clock(self) -> None:
        """CLK-1, CLK-2: the offset goes to where latency is measured."""
        self.begin()
        self.streaming().tell(events.ClockUpdated(12.5, 1.0, NtpSample(0, 13, 13, 1)))
        self.assertEqual(self.receiver.offset_ms, 12.5)
        self.assertEqual(self.session.round_trip_ms, 1.0)

    def test_stop_says_bye(self) -> None:
        self.begin()
        client = self.streaming()
        self.assertEqual(self.successResultOf(self.session.stop()), [])
        self.assertEqual(client.closed, "bye")
        self.assertFalse(self.receiver.running)
        self.assertIsNone(self.successResultOf(self.session.ended))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_waits_until_the_connection_is_gone(self) -> None:
        """Or the bye would stay here, and the server keep a ghost for its grace period."""
        self.begin()
        client = self.streaming()
        client.let_go = False
        stopped = self.session.stop()
        self.clock.advance(0.5)
        self.assertNoResult(stopped)
        self.assertNoResult(self.session.ended)
        client.gone.pop()()
        self.assertEqual(self.successResultOf(stopped), [])
        self.assertFalse(client.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_server_that_does_not_let_go_is_left_after_a_second(self) -> None:
        self.begin()
        client = self.streaming()
        client.let_go = False
        stopped = self.session.stop()
        self.clock.advance(0.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.2)
        self.assertEqual(self.successResultOf(stopped), [])
        self.assertTrue(client.aborted)
        client.gone.pop()()  # too late for anything
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_waits_for_the_recordings(self) -> None:
        self.begin()
        self.streaming()
        self.receiver.finishing = Deferred()
        stopped = self.session.stop()
        self.clock.advance(30)
        self.assertNoResult(stopped)
        error = OSError("half of it is missing")
        self.receiver.finishing.callback([error])
        self.assertEqual(self.successResultOf(stopped), [error])

    def test_giving_up_says_bye_too(self) -> None:
        """With --once: what was closed a moment before the end is waited for as well."""
        self.begin(Wishes(retry=False))
        client = self.welcome()
        client.let_go = False
        self.clock.advance(10.1)
        self.failureResultOf(self.session.ended, ListenerError)
        stopped = self.session.stop()
        self.assertNoResult(stopped)
        client.gone.pop()()
        self.assertEqual(self.successResultOf(stopped), [])


class ComingBackTest(SessionCase):
    """STR-23: by itself, with back-off, as the same listener."""

    def delays(self, count: int) -> list[float]:
        found = []
        for _ in range(count):
            number = len(self.openings)
            self.openings[-1].errback(ConnectionRefusedError())
            started = self.clock.seconds()
            while len(self.openings) == number:
                self.clock.advance(0.1)
            found.append(self.clock.seconds() - started)
        return found

    def test_back_off(self) -> None:
        """2, 4, 8 … 60 s, and again 2 s after a success."""
        self.begin()
        for delay, expected in zip(self.delays(7), (2, 4, 8, 16, 32, 60, 60), strict=True):
            self.assertApproximates(delay, expected, 0.25)
        self.assertIn("cannot be reached", self.said[-1])
        self.assertIn("trying again in 60 s", self.said[-1])
        self.streaming().lose()
        self.clock.advance(2.1)
        self.assertApproximates(self.delays(1)[0], 4, 0.25)

    def test_same_listener_again(self) -> None:
        self.begin()
        self.streaming().lose()
        self.assertEqual(self.session.state, Life.WAITING)
        self.assertTrue(self.receiver.running)
        self.clock.advance(2.1)
        client = self.connect()
        self.assertEqual(client.hello, Hello("me", "Anna's phone", "secret"))
        self.assertEqual(self.session.reconnects, 1)

    def test_told_to_reconnect(self) -> None:
        """STR-31 ``reconnect``."""
        self.begin()
        client = self.streaming()
        client.tell(events.ServerEvent(Event("reconnect", "restart", reconnect_after=7)))
        self.assertIsNotNone(client.closed)
        self.clock.advance(6.9)
        self.assertEqual(len(self.openings), 1)
        self.clock.advance(0.2)
        self.assertEqual(len(self.openings), 2)

    def test_shutdown_is_waited_out(self) -> None:
        """CON-50: ``server_shutdown`` with ``reconnect_after``; audio goes on until it closes."""
        self.begin()
        client = self.streaming()
        shutdown = Event("server_shutdown", "maintenance", reconnect_after=60)
        client.tell(events.ServerEvent(shutdown))
        self.assertEqual(self.session.state, Life.STREAMING)
        self.clock.advance(1)
        client.lose()
        self.clock.advance(58.5)
        self.assertEqual(len(self.openings), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.openings), 2)
        self.assertTrue(any("maintenance" in text for text in self.said))

    def test_absurd_wait_is_bounded(self) -> None:
        self.begin()
        client = self.streaming()
        client.tell(events.ServerEvent(Event("reconnect", "x", reconnect_after=1e9)))
        self.clock.advance(301)
        self.assertEqual(len(self.openings), 2)

    def test_config_changed(self) -> None:
        """STR-10, STR-42: fetch /audio-meta, ask again, at the rate the server names."""
        self.begin(Wishes(sample_rate=48_000))
        client = self.streaming()
        self.api.channels = (1, 2)
        changed = Event("config_changed", "latency too high", new_sample_rate=32_000)
        client.tell(events.ServerEvent(changed))
        self.assertEqual(self.api.asked, 2)
        self.assertEqual(self.session.state, Life.REQUESTING)
        self.assertEqual(client.asked[-1].sample_rate, 32_000)
        slower = stream(rate=32_000)
        client.tell(events.StreamStarted(slower))
        self.assertEqual(self.receiver.heard[-1], (slower, "192.0.2.1"))
        self.assertEqual(self.session.state, Life.STREAMING)

    def test_never_above_the_rate_wished(self) -> None:
        """STR-42: down and up again, but no further than the listener wants."""
        self.begin(Wishes(sample_rate=32_000))
        client = self.streaming()
        for told, asked in ((24_000, 24_000), (48_000, 32_000)):
            client.tell(events.ServerEvent(Event("config_changed", "x", new_sample_rate=told)))
            self.assertEqual(client.asked[-1].sample_rate, asked)

    def test_changed_twice_asks_once_with_the_last_answer(self) -> None:
        self.begin()
        client = self.streaming()
        self.api.slow = slow = Deferred()
        client.tell(events.ServerEvent(Event("config_changed", "one")))
        self.api.slow = None
        client.tell(events.ServerEvent(Event("config_changed", "two")))
        self.assertEqual(len(client.asked), 2)
        self.assertTrue(slow.called)

    def test_lost_while_asking(self) -> None:
        self.begin()
        self.api.slow = Deferred()
        self.welcome().lose()
        self.assertEqual(self.session.state, Life.WAITING)
        self.clock.advance(2.1)
        self.assertEqual(len(self.openings), 2)

    def test_refused(self) -> None:
        """STR-6: a full server says why; the listener says so and tries again."""
        self.begin()
        client = self.connect()
        client.tell(events.ServerError(Error("full", "20 listeners are connected already")))
        client.lose()
        self.assertTrue(any("20 listeners" in text for text in self.said))
        self.clock.advance(2.1)
        self.assertEqual(len(self.openings), 2)

    def test_no_answer_to_client_config(self) -> None:
        self.begin()
        client = self.welcome()
        self.clock.advance(10.1)
        self.assertIsNotNone(client.closed)
        self.assertEqual(self.session.state, Life.WAITING)

    def test_streaming_without_packets_asks_again(self) -> None:
        self.begin()
        client = self.streaming()
        self.clock.pump([1.0] * round(SILENCE_S + 3))
        self.assertEqual(len(client.asked), 2)
        self.assertTrue(any("firewall" in text for text in self.said))

    def test_old_connection_is_not_listened_to(self) -> None:
        self.begin()
        old = self.streaming()
        old.lose()
        self.clock.advance(2.1)
        self.welcome()
        old.tell(events.StreamStarted(stream(first_ssrc=4000)))
        self.assertEqual(len(self.receiver.heard), 1)

    def test_once(self) -> None:
        self.begin(Wishes(retry=False))
        self.openings[-1].errback(ConnectionRefusedError())
        error = self.failureResultOf(self.session.ended, ListenerError).value
        self.assertIn("http://server:8080/ cannot be reached", str(error))

    def test_stop_at_any_moment(self) -> None:
        for steps in range(5):
            self.begin()
            if steps == 1:
                self.openings[-1].errback(ConnectionRefusedError())
            elif steps == 2:
                self.connect()
            elif steps == 3:
                self.api.slow = Deferred()
                self.welcome()
            elif steps == 4:
                self.welcome()
            self.session.stop()
            self.assertEqual(self.session.state, Life.CLOSED)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.successResultOf(self.session.ended)


class QosTest(SessionCase):
    """STR-63: reports go to /qos-metrics periodically, as STR-37 has them."""

    def test_posted_every_few_seconds(self) -> None:
        self.begin()
        self.streaming()
        for _ in range(16):
            self.receiver.packets += 198
            self.clock.advance(1.0)
        self.assertEqual(len(self.api.posted), 3)
        body = self.api.posted[-1]
        self.assertEqual(body["client_id"], "me")
        self.assertEqual(body["timestamp"], "2023-11-14T22:13:36Z")
        metrics = body["metrics"]
        self.assertEqual((metrics["packets_received"], metrics["packets_expected"]), (990, 1000))
        self.assertApproximates(metrics["packet_loss_rate"], 0.01, 1e-6)
        self.assertEqual((metrics["jitter_ms"], metrics["latency_ms"]), (1.5, 8.0))
        self.assertEqual(self.session.qos_posted, 3)

    def run_for(self, seconds: int) -> None:
        for _ in range(seconds):
            self.receiver.packets += 200
            self.clock.advance(1.0)

    def test_a_server_that_takes_none(self) -> None:
        """CON-22: after five refusals it is asked once a minute; nothing is missing afterwards."""
        self.begin()
        self.streaming()
        self.api.takes_none = ServerApiError("status 404")
        self.run_for(26)
        self.assertEqual(len(self.api.posted), 5)
        self.run_for(59)
        self.assertEqual(len(self.api.posted), 5)
        self.api.takes_none = None
        self.run_for(2)
        self.assertEqual((len(self.api.posted), self.session.qos_posted), (6, 1))
        self.assertEqual(self.api.posted[-1]["metrics"]["packets_received"], 200 * 60)
        self.run_for(10)
        self.assertEqual(self.session.qos_posted, 3)

    def test_not_without_a_connection(self) -> None:
        self.begin()
        self.receiver.packets = 10
        self.clock.pump([1.0] * 12)
        self.assertEqual(self.api.posted, [])
