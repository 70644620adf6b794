"""STR-5, STR-6, STR-9, STR-10, STR-30, STR-31, STR-36, STR-40: the life of listeners."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from twisted.trial import unittest

from m32net.interfaces import QualityReport, RefusedError
from m32net.streaming import cost
from m32net.streaming.formats import ENCODERS_AT_ONCE, MAX_ADDRESSES, MAX_PROFILES, Pace
from m32net.streaming.listeners import (
    TRANSITIONS,
    Departed,
    Listener,
    Refused,
    RegistryEvent,
    StreamsKept,
    StreamsStarted,
    StreamsStopped,
    Told,
    Welcomed,
)
from m32net.streaming.negotiation import AudioOffer, agree
from m32net.streaming.profile import Profile
from m32net.streaming.registry import Limits, Registry
from protocols.control.messages import ChannelRequest, ClientConfig

OFFER = AudioOffer(channels=tuple(range(1, 33)))
PHONE = "127.0.0.1"
frames = itertools.cycle((2.5, 5, 10, 20))
bitrates = itertools.cycle((32_000, 48_000, 64_000, 96_000, 128_000))


def make(offer: AudioOffer = OFFER, **limits: float) -> Registry:
    ids = itertools.count(1)
    return Registry(
        offer,
        Limits(**limits),  # type: ignore[arg-type]
        new_id=lambda: f"client_{next(ids):03}",
        new_token=lambda: "t" * 43,
    )


def kinds(registry: Registry) -> list[type[RegistryEvent]]:
    return [type(event) for event in registry.events()]


def join(registry: Registry, link: object, port: int | None = 5004, now: float = 0.0) -> None:
    registry.connected(link, PHONE, now)
    registry.configure(link, ClientConfig(udp_port=port), now)


class JoiningTest(unittest.TestCase):
    def test_nothing_flows_before_client_config(self) -> None:
        """STR-5: connecting and saying hello sends nothing; client_config does."""
        registry = make()
        registry.connected("a", PHONE, 0)
        registry.hello("a", 0, client_id=None, token=None, name="Anna's phone 🎤")
        self.assertEqual(kinds(registry), [Welcomed])
        self.assertEqual(registry.demand(), {})
        registry.configure("a", ClientConfig(udp_port=5004), 0)
        self.assertEqual(kinds(registry), [StreamsStarted])
        profile = Profile("opus", 48_000, 5_000, 96_000)
        self.assertEqual(registry.demand(), {profile: frozenset(range(1, 33))})
        (one,) = registry
        self.assertEqual(one.name, "Anna's phone 🎤")

    def test_bare_client_config_works(self) -> None:
        """A client of the first specification sends client_config alone."""
        registry = make()
        join(registry, "a")
        self.assertEqual(kinds(registry), [StreamsStarted])

    def test_port_by_request_audio_before_or_after(self) -> None:
        """STR-36: the port may come by REST, before or after the configuration."""
        for first in ("config", "port"):
            registry = make()
            registry.connected("a", PHONE, 0)
            if first == "config":
                registry.configure("a", ClientConfig(), 0)
                self.assertEqual(kinds(registry), [])
                registry.request_audio(PHONE, 6000, None, 0)
            else:
                registry.request_audio(PHONE, 6000, None, 0)
                self.assertEqual(kinds(registry), [])
                registry.configure("a", ClientConfig(), 0)
            (event,) = registry.events()
            assert isinstance(event, StreamsStarted)
            self.assertEqual(event.agreement.udp_port, 6000)

    def test_request_audio_refusals(self) -> None:
        """STR-36: 400 outside 1024..65535, 409 without a control session from the address."""
        registry = make()
        registry.connected("a", PHONE, 0)
        for port in (0, 80, 1023, 65536, -1):
            error = self.assertRaises(RefusedError, registry.request_audio, PHONE, port, None, 0)
            self.assertEqual(error.status, 400)
        error = self.assertRaises(RefusedError, registry.request_audio, "10.0.0.9", 5004, None, 0)
        self.assertEqual(error.status, 409)

    def test_request_audio_says_what_is_refused(self) -> None:
        """STR-36: no "ok" for a port that leaves no room; what flowed goes on."""
        registry = make()
        registry.connected("a", PHONE, 0)
        registry.configure("a", ClientConfig(udp_port=6000, ports="consecutive"), 0)
        list(registry.events())
        error = self.assertRaises(RefusedError, registry.request_audio, PHONE, 65_533, None, 0)
        self.assertEqual((error.code, error.status), ("bad_port", 400))
        self.assertEqual(list(registry.events()), [])
        one = registry.of("a")
        assert one is not None
        self.assertEqual((one.udp_port, one.state), (6000, "streaming"))

    def test_request_audio_means_the_newest_without_port(self) -> None:
        registry = make()
        registry.connected("a", PHONE, 0)
        registry.connected("b", PHONE, 0)
        second = registry.request_audio(PHONE, 6002, None, 0)
        first = registry.request_audio(PHONE, 6000, None, 0)
        self.assertIs(registry.of("b"), second)
        self.assertIs(registry.of("a"), first)
        named = registry.request_audio(PHONE, 6004, second.client_id, 0)
        self.assertIs(named, second)

    def test_a_listener_by_ipv6_is_told(self) -> None:
        """Audio is sent by IPv4, where the control connection is from; the connection goes on."""
        registry = make()
        registry.connected("a", "fe80::1%eth0", 0)
        registry.configure("a", ClientConfig(udp_port=5004), 0)
        (refused,) = registry.events()
        assert isinstance(refused, Refused)
        self.assertEqual((refused.code, refused.fatal), ("no_ipv4", False))
        self.assertIn("IPv4 address", refused.message)
        self.assertEqual(registry.demand(), {})

    def test_full_server_refuses_and_counts(self) -> None:
        """STR-6: the next listener is refused with a clear error, fatal for its connection."""
        registry = make(max_listeners=2)
        for link in "ab":
            join(registry, link)
        registry.connected("c", PHONE, 0)
        list(registry.events())
        registry.hello("c", 0, client_id=None, token=None, name=None)
        refused, departed = registry.events()
        assert isinstance(refused, Refused)
        self.assertTrue(refused.fatal)
        self.assertEqual(refused.code, "server_full")
        self.assertIn("2 listeners", refused.message)
        self.assertIsInstance(departed, Departed)
        self.assertEqual((registry.refused, len(registry)), (1, 2))
        registry.bye("a")
        join(registry, "d")
        self.assertEqual(len(registry), 2)

    def test_silent_connections_take_no_place(self) -> None:
        registry = make(max_listeners=1)
        for number in range(50):
            registry.connected(number, PHONE, 0)
        join(registry, "a")
        self.assertEqual(len(registry), 1)
        self.assertIn(StreamsStarted, kinds(registry))

    def test_formats_are_bounded(self) -> None:
        registry = make(AudioOffer(channels=(1,), bitrate=128_000))
        frames = (2.5, 5, 10, 20)
        rates = (32_000, 48_000, 64_000)
        for link, (frame, bitrate) in enumerate(itertools.product(frames, rates)):
            registry.connected(link, PHONE, 0)
            registry.configure(
                link, ClientConfig(udp_port=5004, frame_ms=frame, bitrate=bitrate), 0
            )
        codes = [event.code for event in registry.events() if isinstance(event, Refused)]
        others = MAX_PROFILES - 1
        self.assertEqual(codes, ["too_many_formats"] * (12 - others))
        self.assertEqual(len(registry.demand()), others)

    def test_formats_that_cannot_be_encoded_are_refused(self) -> None:
        """32 channels at 2.5 ms in one format after the other: what is offered never suffers."""
        registry = make()
        for link, rate in enumerate((48_000, 44_100, 32_000, 24_000)):
            registry.connected(link, PHONE, 0)
            registry.configure(link, ClientConfig(udp_port=5004, frame_ms=2.5, sample_rate=rate), 0)
        refused = [event for event in registry.events() if isinstance(event, Refused)]
        self.assertEqual(len(registry.demand()) + len(refused), 4)
        self.assertTrue(refused)
        self.assertIn("can't encode", refused[0].message)
        offered = {Profile("opus", 48_000, 5_000, 96_000): OFFER.channels}
        self.assertLessEqual(
            cost.total({**registry.demand(), **offered}), registry.limits.encoding_cores
        )
        join(registry, "ordinary")
        self.assertIn(StreamsStarted, kinds(registry))

    def test_changes_are_bounded(self) -> None:
        """A listener that changes its format all the time is told to wait; it keeps what it has."""
        registry = make()
        join(registry, "a")
        for number in range(30):
            codec = "L16" if number % 2 else "opus"
            registry.configure("a", ClientConfig(udp_port=5004, compression=codec), 0.01)  # type: ignore[arg-type]
        codes = [event.code for event in registry.events() if isinstance(event, Refused)]
        self.assertGreaterEqual(len(codes), 9)
        self.assertEqual(set(codes), {"too_fast"})
        (one,) = registry
        self.assertEqual(one.state, "streaming")
        registry.configure("a", ClientConfig(udp_port=5004, compression="L24"), 5.0)
        assert one.agreement is not None
        self.assertEqual(one.agreement.profile.codec, "L24")

    def test_ports_are_changes_too(self) -> None:
        """Each ends a stream and starts another."""
        registry = make()
        join(registry, "a")
        for number in range(15):
            registry.configure("a", ClientConfig(udp_port=6000 + 2 * number), 0)
        codes = [event.code for event in registry.events() if isinstance(event, Refused)]
        self.assertEqual(codes, ["too_fast"] * 5)

    def test_who_goes_on_is_shown_out(self) -> None:
        """43 changes a second, below the limit of messages: the session ends within a second."""
        registry = make()
        join(registry, "a")
        at = 0.0
        while registry.of("a") is not None:
            at += 1 / 43
            frame = next(frames)
            registry.configure("a", ClientConfig(udp_port=5004, frame_ms=frame), at)
            self.assertLess(at, 1)
        events = list(registry.events())
        self.assertIsInstance(events[-1], Departed)
        told = [one for one in events if isinstance(one, Refused)]
        self.assertEqual([one.fatal for one in told], [False] * (len(told) - 1) + [True])
        self.assertIn("the session is closed", told[-1].message)
        self.assertLessEqual(len([one for one in events if isinstance(one, StreamsStarted)]), 12)
        starts = len([one for one in events if isinstance(one, StreamsStarted)])
        self.assertEqual(len([one for one in events if isinstance(one, StreamsStopped)]), starts)
        self.assertEqual(registry.demand(), {})

    def test_one_mistake_a_second_is_borne(self) -> None:
        registry = make()
        join(registry, "a")
        for second in range(100):
            registry.configure("a", ClientConfig(udp_port=80), float(second))
        (one,) = registry
        self.assertEqual(one.state, "streaming")

    def storm(self, registry: Registry, hosts: Sequence[str]) -> int:
        """Ten sessions for each host change formats for a second; how much is encoded anew?"""
        links = [(host, number) for host in hosts for number in range(10)]
        for link in links:
            registry.connected(link, link[0], 0)
        demand, changed = registry.demand(), 0
        for step in range(10):
            for link in links:
                frame = next(frames)
                config = ClientConfig(udp_port=5004, frame_ms=frame, bitrate=next(bitrates))
                registry.configure(link, config, step / 10)
                if not all(
                    channels <= demand.get(profile, frozenset())
                    for profile, channels in registry.demand().items()
                ):
                    changed += 1
                demand = registry.demand()
        return changed

    def test_sessions_of_one_address_share_an_allowance(self) -> None:
        """Ten sessions of one address have no more encoders made than one; others are free."""
        offer = AudioOffer(channels=tuple(range(1, 17)), bitrate=128_000)
        registry = make(offer, max_listeners=100, encoding_cores=9.0)
        join(registry, "musician")
        self.assertLessEqual(self.storm(registry, ["10.0.0.1"]), ENCODERS_AT_ONCE // 16 + 2)
        for number in range(10):
            registry.bye(("10.0.0.1", number))  # eight formats would be too many
        list(registry.events())
        registry.connected("other", "10.0.0.2", 1)
        registry.configure("other", ClientConfig(udp_port=5004, compression="L24"), 1)
        self.assertEqual(kinds(registry), [StreamsStarted])

    def test_whose_address_is_at_its_limit_hears_what_is_offered(self) -> None:
        registry = make(max_listeners=100)
        self.storm(registry, [PHONE])
        list(registry.events())
        join(registry, "guest", now=1.0)
        self.assertEqual(kinds(registry), [StreamsStarted])

    def test_a_crowd_of_one_address_is_not_held_up(self) -> None:
        """A hundred who share two formats come at once and come back at once."""
        registry = make(max_listeners=100)
        for at in (0.0, 6.0):
            for link in range(100):
                registry.connected(link, PHONE, at)
                codec: Any = "L24" if link % 2 else None
                registry.configure(link, ClientConfig(udp_port=5004, compression=codec), at)
            self.assertEqual(kinds(registry), [StreamsStarted] * 100)
            for link in range(100):
                registry.bye(link)
            list(registry.events())

    def test_addresses_are_forgotten(self) -> None:
        pace = Pace()
        offer = AudioOffer(channels=(1,))
        wish = agree(ClientConfig(udp_port=5004, compression="L24"), offer)
        for number in range(MAX_ADDRESSES + 50):
            one = Listener("id", "t" * 43, f"10.0.{number // 256}.{number % 256}", None, 0, 0)
            pace.check(one, wish, (), offer, 0)
        self.assertEqual(pace.remembered(), MAX_ADDRESSES)


class AgreementTest(unittest.TestCase):
    def test_muted_channels_are_not_sent(self) -> None:
        """STR-30: a muted channel is not sent; unlisted ones neither; defaults apply."""
        config = ClientConfig(
            channels=(ChannelRequest(7), ChannelRequest(2, mute=True), ChannelRequest(1)),
            udp_port=5004,
        )
        self.assertEqual(agree(config, OFFER).channels, (1, 7))
        self.assertEqual(agree(ClientConfig(), OFFER).channels, OFFER.channels)
        self.assertEqual(agree(ClientConfig(), OFFER).layout, "bundle")

    def test_compressions(self) -> None:
        """STR-30: opus, none (L16) and L24."""
        for word, codec in (("opus", "opus"), ("none", "L16"), ("L16", "L16"), ("L24", "L24")):
            profile = agree(ClientConfig(compression=word), OFFER).profile  # type: ignore[arg-type]
            self.assertEqual(profile.codec, codec)

    def test_rate_is_at_most_the_offer(self) -> None:
        low = AudioOffer(channels=(1,), sample_rate=32_000)
        self.assertEqual(agree(ClientConfig(sample_rate=44_100), low).profile.sample_rate, 32_000)
        self.assertEqual(agree(ClientConfig(sample_rate=24_000), low).profile.sample_rate, 24_000)

    def test_pcm_frames_fit_a_packet(self) -> None:
        for word in ("L16", "L24"):
            for frame in (2.5, 5, 10, 20):
                config = ClientConfig(compression=word, frame_ms=frame)  # type: ignore[arg-type]
                self.assertLessEqual(agree(config, OFFER).profile.channel_bytes, 1444)
        config = ClientConfig(compression="L24", frame_ms=20)
        self.assertEqual(agree(config, OFFER).profile.frame_us, 10_000)

    def test_server_without_opus(self) -> None:
        pcm = AudioOffer(channels=(1,), codec="L16", opus=False)
        self.assertEqual(agree(ClientConfig(), pcm).profile.codec, "L16")
        self.assertRaises(RefusedError, agree, ClientConfig(compression="opus"), pcm)

    def test_bit_rates_are_a_ladder(self) -> None:
        self.assertEqual(agree(ClientConfig(bitrate=64_000), OFFER).profile.bitrate, 64_000)
        self.assertEqual(agree(ClientConfig(bitrate=128_000), OFFER).profile.bitrate, 96_000)
        self.assertRaises(RefusedError, agree, ClientConfig(bitrate=50_001), OFFER)


class LeavingTest(unittest.TestCase):
    def stopped(self, registry: Registry) -> Sequence[str]:
        return [event.reason for event in registry.events() if isinstance(event, StreamsStopped)]

    def test_heartbeats_stop(self) -> None:
        """STR-5: 30 s without heartbeat end the streams; one in time keeps them."""
        registry = make()
        join(registry, "a", now=0)
        join(registry, "b", port=5006, now=0)
        registry.heard("b", 20)
        self.assertEqual(registry.next_timer(), 30)
        registry.handle_timer(29.999)
        self.assertEqual(len(registry), 2)
        registry.handle_timer(30)
        self.assertEqual(self.stopped(registry), ["no heartbeat for 30 s"])
        self.assertEqual(len(registry), 1)
        self.assertEqual(registry.next_timer(), 50)

    def test_settable_timeout(self) -> None:
        registry = make(heartbeat_timeout_s=3)
        join(registry, "a", now=0)
        registry.handle_timer(3)
        self.assertEqual(len(registry), 0)
        self.assertEqual(registry.demand(), {})

    def test_bye(self) -> None:
        registry = make()
        join(registry, "a")
        registry.bye("a")
        self.assertEqual(self.stopped(registry), ["the listener said bye"])
        self.assertEqual(registry.demand(), {})

    def test_lost_connection_has_a_grace(self) -> None:
        """STR-5: streams outlive a lost connection briefly, and a return keeps them."""
        registry = make(grace_s=5)
        join(registry, "a", now=0)
        (one,) = registry
        agreement = one.agreement
        registry.lost("a", 10)
        self.assertEqual(self.stopped(registry), [])
        self.assertTrue(registry.demand())
        registry.connected("b", PHONE, 12)
        registry.hello("b", 12, client_id=one.client_id, token=one.token, name=None)
        registry.configure("b", ClientConfig(udp_port=5004), 12)
        self.assertEqual(kinds(registry), [Welcomed, StreamsKept])
        self.assertEqual([listener.client_id for listener in registry], [one.client_id])
        self.assertEqual(one.agreement, agreement)
        registry.lost("b", 20)
        registry.handle_timer(25)
        self.assertEqual(self.stopped(registry), ["the control connection did not come back"])
        self.assertEqual(len(registry), 0)

    def test_full_server_still_takes_back_its_own(self) -> None:
        registry = make(max_listeners=1)
        join(registry, "a")
        (one,) = registry
        registry.lost("a", 1)
        registry.connected("b", PHONE, 2)
        registry.hello("b", 2, client_id=one.client_id, token=one.token, name=None)
        self.assertEqual(registry.refused, 0)
        self.assertIs(registry.of("b"), one)

    def test_wrong_token_is_a_stranger(self) -> None:
        """STR-9: knowing another's client id is not enough to be it."""
        registry = make()
        join(registry, "a")
        (one,) = registry
        registry.connected("b", PHONE, 1)
        registry.hello("b", 1, client_id=one.client_id, token="guess", name=None)
        self.assertIsNot(registry.of("b"), one)
        self.assertEqual(one.link, "a")

    def test_return_on_a_half_open_connection(self) -> None:
        registry = make()
        join(registry, "a")
        (one,) = registry
        list(registry.events())
        registry.connected("b", PHONE, 1)
        registry.hello("b", 1, client_id=one.client_id, token=one.token, name=None)
        refused, welcomed = registry.events()
        assert isinstance(refused, Refused)
        self.assertEqual((refused.link, refused.code), ("a", "replaced"))
        self.assertIsInstance(welcomed, Welcomed)
        registry.lost("a", 2)
        self.assertIs(registry.of("b"), one)
        self.assertEqual(one.state, "streaming")

    def test_return_from_another_address_restarts(self) -> None:
        """Audio goes only where the control connection comes from."""
        registry = make()
        join(registry, "a")
        (one,) = registry
        registry.lost("a", 1)
        registry.connected("b", "127.0.0.2", 2)
        registry.hello("b", 2, client_id=one.client_id, token=one.token, name=None)
        self.assertEqual(self.stopped(registry), ["the listener's address changed"])

    def test_stop_takes_the_same_way_out(self) -> None:
        registry = make()
        for number in range(3):
            join(registry, number, port=5004 + 2 * number)
        list(registry.events())
        registry.stop("server stops")
        self.assertEqual(kinds(registry), [StreamsStopped, Departed] * 3)
        self.assertEqual(len(registry), 0)
        self.assertIsNone(registry.next_timer())


class ChangeTest(unittest.TestCase):
    def test_format_change_ends_streams_and_tells(self) -> None:
        """STR-10: those concerned stop and hear config_changed; others are left alone."""
        registry = make()
        join(registry, "a")
        registry.connected("b", PHONE, 0)
        registry.configure(
            "b", ClientConfig(udp_port=5006, compression="L24", sample_rate=24_000, frame_ms=10), 0
        )
        list(registry.events())
        changed = AudioOffer(channels=OFFER.channels, sample_rate=32_000)
        registry.change_offer(changed, "engineer changed it", {"new_sample_rate": 32_000})
        stopped, told = registry.events()
        assert isinstance(stopped, StreamsStopped)
        assert isinstance(told, Told)
        self.assertEqual(stopped.listener.link, "a")
        self.assertEqual((told.kind, told.listener.link), ("config_changed", "a"))
        self.assertEqual(told.fields, {"new_sample_rate": 32_000})
        registry.configure("a", ClientConfig(udp_port=5004), 1)
        (started,) = registry.events()
        assert isinstance(started, StreamsStarted)
        self.assertEqual(started.agreement.profile.sample_rate, 32_000)

    def test_up_again_after_a_step_down(self) -> None:
        """STR-42: who asked for the lower rate it was told of hears of the better one too."""
        registry = make()
        for link, rate in (("a", None), ("b", 24_000)):
            registry.connected(link, PHONE, 0)
            registry.configure(link, ClientConfig(udp_port=5004, sample_rate=rate), 0)
        registry.change_offer(AudioOffer(channels=OFFER.channels, sample_rate=32_000), "down")
        registry.configure("a", ClientConfig(udp_port=5004, sample_rate=32_000), 1)
        list(registry.events())
        registry.change_offer(OFFER, "up")
        self.assertEqual(
            [(type(event), event.listener.link) for event in registry.events()],  # type: ignore[union-attr]
            [(StreamsStopped, "a"), (Told, "a")],
        )

    def test_changed_again_before_the_listener_asked(self) -> None:
        """STR-10: it may already have taken note of the first change, so it hears of the second."""
        registry = make()
        join(registry, "a")
        for rate in (32_000, 24_000):
            list(registry.events())
            changed = AudioOffer(channels=OFFER.channels, sample_rate=rate)
            registry.change_offer(changed, "slower", {"new_sample_rate": rate})
            told = list(registry.events())[-1]
            assert isinstance(told, Told)
            self.assertEqual(told.fields, {"new_sample_rate": rate})

    def test_unchanged_offer_disturbs_nobody(self) -> None:
        """STR-10: a rename or recolour leaves the offer equal."""
        registry = make()
        join(registry, "a")
        list(registry.events())
        registry.change_offer(AudioOffer(channels=OFFER.channels), "renamed")
        self.assertEqual(kinds(registry), [])

    def test_poor_reception_warns_once_in_a_while(self) -> None:
        """STR-31: network_warning has a reason a person can read, at most every 30 s."""
        registry = make()
        join(registry, "a")
        (one,) = registry
        list(registry.events())
        for at in (1.0, 2.0, 40.0):
            registry.report(one, QualityReport("rtcp", at, loss=0.12, jitter_ms=40))
        told = [event for event in registry.events() if isinstance(event, Told)]
        self.assertEqual([event.kind for event in told], ["network_warning"] * 2)
        self.assertIn("12.0 % of packets lost, 40 ms jitter", told[0].reason)


PORTS = st.integers(1024, 65000)


class Life(RuleBasedStateMachine):
    """Any order of inputs: the books agree with the events, and nothing is left behind."""

    links = Bundle("links")

    def __init__(self) -> None:
        super().__init__()
        self.registry = make(max_listeners=3)
        self.now = 0.0
        self.count = itertools.count()
        self.flowing: set[str] = set()

    @rule(target=links)
    def connect(self) -> int:
        link = next(self.count)
        self.registry.connected(link, PHONE, self.now)
        return link

    @rule(link=links, port=st.none() | PORTS)
    def configure(self, link: int, port: int | None) -> None:
        self.registry.configure(link, ClientConfig(udp_port=port), self.now)

    @rule(link=links, other=links)
    def come_back(self, link: int, other: int) -> None:
        known = self.registry.of(other)
        if known is not None:
            self.registry.hello(
                link, self.now, client_id=known.client_id, token=known.token, name="x"
            )

    @rule(port=PORTS)
    def request(self, port: int) -> None:
        try:
            self.registry.request_audio(PHONE, port, None, self.now)
        except RefusedError:
            pass

    @rule(target=links, link=consumes(links))
    def lose(self, link: int) -> object:
        self.registry.lost(link, self.now)
        return multiple()

    @rule(link=links)
    def bye(self, link: int) -> None:
        self.registry.bye(link)

    @rule(link=links)
    def beat(self, link: int) -> None:
        self.registry.heard(link, self.now)

    @rule(seconds=st.sampled_from([0.5, 4, 6, 29, 31]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.registry.handle_timer(self.now)

    @rule(rate=st.sampled_from([48_000, 32_000]))
    def change(self, rate: int) -> None:
        offer = AudioOffer(channels=(1, 2), sample_rate=rate)
        self.registry.change_offer(offer, "changed")

    @invariant()
    def books_agree(self) -> None:
        for event in self.registry.events():
            if isinstance(event, StreamsStarted):
                assert event.listener.client_id not in self.flowing
                self.flowing.add(event.listener.client_id)
            elif isinstance(event, StreamsStopped):
                self.flowing.remove(event.listener.client_id)
        streaming = {
            one.client_id for one in self.registry if one.state in {"streaming", "detached"}
        }
        assert streaming == self.flowing
        assert len(self.registry) <= 3
        assert bool(self.registry.demand()) == bool(streaming)
        timer = self.registry.next_timer()
        assert timer is None or timer > self.now

    def teardown(self) -> None:
        self.registry.stop("end")
        self.books_agree()
        assert not self.flowing
        assert self.registry.next_timer() is None


class LifeTest(unittest.TestCase):
    def test_any_order_of_inputs(self) -> None:
        run_state_machine_as_test(Life, settings=settings(max_examples=150, deadline=None))

    def test_table_is_closed(self) -> None:
        states = set(TRANSITIONS)
        self.assertEqual(
            {state for row in TRANSITIONS.values() for state in row.values()} - states, set()
        )
