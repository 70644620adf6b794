"""STR-4, STR-5, STR-6, STR-10, STR-12, STR-31, STR-36, STR-40: the registry's decisions, done.

Real sockets on loopback, time from a ``task.Clock``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.audio.frame import EncodedFrame
from m32net.interfaces import QualityReport, RefusedError
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.profile import Profile
from m32net.streaming.registry import Limits, Registry
from m32net.streaming.service import StreamingService
from m32net.streaming.transmission import TransmissionConfig
from protocols.control import messages
from protocols.errors import LocalProtocolError
from protocols.rtp import packet, rtcp, sdp
from protocols.rtp.extension import time_extension
from tests.support.ports import drain, free_pair, receiver

HOST = "127.0.0.1"
OPUS = Profile("opus", 48_000, 5_000, 96_000)


class Wire(Clock):
    """A clock that is also the part of a reactor that sockets need."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def turn(self) -> None:
        for reader in list(self.readers):
            reader.doRead()


class Link:
    """A control connection that remembers."""

    def __init__(self) -> None:
        self.sent: list[messages.ServerMessage] = []
        self.closed: tuple[int, str] | None = None

    def send(self, message: messages.ServerMessage) -> None:
        self.sent.append(message)

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def last(self, kind: type) -> Any:
        return next(message for message in reversed(self.sent) if isinstance(message, kind))


def opus_frame(number: int, profile: Profile = OPUS, channels: int = 32) -> EncodedFrame:
    payload = np.full((channels, profile.packet_bytes), number % 251, np.uint8)
    payload[:, 0] = 0xF8  # code 0: one frame, CELT fullband 20 ms
    duration = profile.frame_us * profile.clock_rate // 1_000_000
    return EncodedFrame(profile, number * duration, duration, 1_000_000_000, 0, payload)


class ServiceCase(unittest.TestCase):
    """A service with real sockets, a clock that is turned, and links that remember."""

    def setUp(self) -> None:
        self.clock = Wire()
        ids = itertools.count(1)
        registry = Registry(
            AudioOffer(channels=tuple(range(1, 33))),
            Limits(max_listeners=3),
            new_id=lambda: f"client_{next(ids)}",
            new_token=lambda: "t" * 43,
        )
        self.demand: Mapping[Profile, frozenset[int]] = {}
        self.noted: list[tuple[str, str, QualityReport]] = []
        self.events: list[tuple[str, str]] = []
        self.rtp_port = free_pair()
        self.service = StreamingService(
            self.clock,
            registry,
            TransmissionConfig(interface=HOST, rtp_port=self.rtp_port),
            server=messages.ServerInfo("m32-server", "1", "master"),
            set_demand=lambda demand: setattr(self, "demand", demand),
            channel_names=lambda: {1: "Vocal 🎤"},
            note_quality=lambda *report: self.noted.append(report),
            note_event=lambda kind, text, fields: self.events.append((kind, text)),
            rng=random.Random(7),
            seconds=self.clock.seconds,
        )
        self.service.startService()
        self.addCleanup(lambda: self.service.running and self.service.stopService())

    def join(self, port: int, **config: Any) -> Link:
        link = Link()
        self.service.connected(link, HOST)
        self.service.hello(link, messages.Hello(name="Anna"))
        self.service.configure(link, messages.ClientConfig(udp_port=port, **config))
        return link

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.service.transmission.frames_ready([opus_frame(number)])


class ServiceTest(ServiceCase):
    def test_streams_after_client_config_from_the_rtp_port(self) -> None:
        """STR-4, STR-5: nothing before client_config, then packets from the RTP port."""
        ears = receiver()
        self.addCleanup(ears.close)
        link = Link()
        self.service.connected(link, HOST)
        self.service.hello(link, messages.Hello(name="Anna"))
        welcome = link.last(messages.Welcome)
        self.assertEqual(welcome.heartbeat_s, 10)
        self.send(0)
        self.assertEqual(drain(ears), [])
        port = ears.getsockname()[1]
        self.service.configure(link, messages.ClientConfig(udp_port=port))
        self.assertEqual(self.demand, {OPUS: frozenset(range(1, 33))})
        self.send(1, 2)
        ears.setblocking(False)
        data, source = ears.recvfrom(2048)
        self.assertEqual(source, (HOST, self.rtp_port))
        stream = link.last(messages.Stream)
        self.assertEqual(packet.parse(data).ssrc, stream.groups[0].ssrc)
        self.assertEqual([group.channels for group in stream.groups], [
            tuple(range(1, 17)), tuple(range(17, 33)),
        ])  # fmt: skip
        self.assertEqual(len(drain(ears)), 3)

    def test_last_listener_leaves(self) -> None:
        """STR-40: with the last listener the demand ends, and nothing is sent."""
        ears = receiver()
        self.addCleanup(ears.close)
        link = self.join(ears.getsockname()[1])
        self.assertTrue(self.demand)
        self.service.bye(link)
        self.assertEqual(self.demand, {})
        self.send(1)
        self.assertEqual(drain(ears), [])

    def test_heartbeats_stop_on_the_clock(self) -> None:
        """STR-5: streaming stops at 30 s without a heartbeat, not before."""
        ears = receiver()
        self.addCleanup(ears.close)
        link = self.join(ears.getsockname()[1])
        self.clock.advance(15)
        self.service.heard(link)
        self.clock.advance(29.9)
        self.send(1)
        self.assertEqual(len(drain(ears)), 2)
        self.clock.advance(0.2)
        self.send(2)
        self.assertEqual(drain(ears), [])
        self.assertEqual(link.closed, (1001, "no heartbeat for 30 s"))
        self.assertEqual(self.demand, {})

    def test_joining_and_leaving_disturbs_nobody(self) -> None:
        """The others' sequence numbers go on without a gap."""
        ears = receiver()
        self.addCleanup(ears.close)
        self.join(ears.getsockname()[1])
        for number in range(30):
            if number % 10 == 3:
                other = self.join(40_000)
            if number % 10 == 7:
                self.service.bye(other)
            self.send(number)
        streams: dict[int, list[int]] = {}
        for data in drain(ears):
            parsed = packet.parse(data)
            streams.setdefault(parsed.ssrc, []).append(parsed.sequence_number)
        self.assertEqual(len(streams), 2)
        for numbers in streams.values():
            self.assertEqual([(n - numbers[0]) & 0xFFFF for n in numbers], list(range(30)))

    def test_a_frame_that_fails_fails_alone(self) -> None:
        """Other profiles of the same batch go out, and so do the next frames."""
        ears = receiver()
        self.addCleanup(ears.close)
        port = ears.getsockname()[1]
        long = Profile("opus", 48_000, 10_000, 96_000)
        self.join(port, frame_ms=10.0)
        self.join(port)
        transmission = self.service.transmission
        for number in range(3):
            batch = [opus_frame(number, long, channels=1), opus_frame(number)]
            transmission.frames_ready(batch)
        self.assertEqual(len(drain(ears)), 3 * 2)
        self.assertEqual(self.service.totals()["unsendable"], 3)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)
        transmission.frames_ready([opus_frame(3, long)])
        self.assertTrue(drain(ears))

    def test_full_server(self) -> None:
        """STR-6: refused with a clear error, closed, and the engineer sees it."""
        for _ in range(3):
            self.join(40_000)
        link = self.join(40_002)
        error = link.sent[0]
        assert isinstance(error, messages.Error)
        self.assertEqual(error.code, "server_full")
        self.assertEqual(link.closed, (1013, "the server is full: 3 listeners at most"))
        self.assertIn("listener_refused", [kind for kind, _ in self.events])
        health = self.service.health()
        self.assertEqual(health.state, "degraded")
        self.assertIn("1 were turned away", health.reasons[0])

    def test_new_format(self) -> None:
        """STR-10: the streams end, the listener is told and may come back at once."""
        ears = receiver()
        self.addCleanup(ears.close)
        link = self.join(ears.getsockname()[1])
        offer = AudioOffer(channels=(1, 2), sample_rate=32_000)
        self.service.change_offer(offer, "less bandwidth", {"new_sample_rate": 32_000})
        self.assertEqual(self.demand, {})
        event = link.last(messages.Event)
        self.assertEqual(
            (event.type, event.reason, event.new_sample_rate),
            ("config_changed", "less bandwidth", 32_000),
        )
        self.service.configure(link, messages.ClientConfig(udp_port=ears.getsockname()[1]))
        self.assertEqual(link.last(messages.Stream).sample_rate, 32_000)

    def test_one_listeners_trouble_is_not_the_others(self) -> None:
        """STR-10: a connection that fails when told keeps nobody else from being told."""
        first, second = self.join(40_000), self.join(40_002)
        self.patch(first, "send", lambda message: 1 // 0)
        self.service.change_offer(AudioOffer(channels=(1,)), "fewer channels")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(second.last(messages.Event).type, "config_changed")
        self.assertEqual(self.demand, {})

    def test_receiver_reports_become_quality(self) -> None:
        """STR-12: loss and jitter from RTCP, kept, and a warning when they are poor (STR-31)."""
        link = self.join(40_000)
        ssrc = link.last(messages.Stream).groups[0].ssrc
        block = rtcp.ReportBlock(ssrc, 64, 100, 1000, 480, 0, 0)
        (data,) = rtcp.receiver_compounds(1, [block], "ears@127.0.0.1")
        phone = receiver()
        self.addCleanup(phone.close)
        phone.sendto(data, (HOST, self.rtp_port + 1))
        self.clock.turn()
        ((client_id, name, report),) = self.noted
        self.assertEqual((client_id, name, report.source), ("client_1", "Anna", "rtcp"))
        self.assertEqual((report.loss, report.jitter_ms), (0.25, 10.0))
        event = link.last(messages.Event)
        self.assertEqual(event.type, "network_warning")
        self.assertIn("25.0 % of packets lost", event.reason)
        (status,) = self.service.snapshot()
        self.assertEqual(status.rating, "poor")

    def test_nobody_is_asked_for_what_concerns_one(self) -> None:
        """Reports, heartbeats and joins like others' don't look through all listeners (STR-6)."""
        first = self.join(40_000)
        looked: list[str] = []
        registry = self.service.registry
        for name in ("demand", "next_timer"):
            real = getattr(registry, name)
            self.patch(
                registry, name, lambda name=name, real=real: (looked.append(name), real())[1]
            )
        self.service._receiver_reported("client_1", QualityReport("rtcp", at=0.0, loss=0.0))
        self.service.heard(first)
        second = self.join(40_002)
        self.assertEqual(looked, [])
        self.join(40_004, compression="L16")
        self.assertEqual((looked, len(self.demand)), (["demand"], 2))
        self.service.bye(second)
        self.assertEqual((looked, len(self.demand)), (["demand"] * 2, 2))

    def test_garbage_on_the_rtcp_port(self) -> None:
        phone = receiver()
        self.addCleanup(phone.close)
        rng = random.Random(1)
        for size in range(200):
            phone.sendto(rng.randbytes(size), (HOST, self.rtp_port + 1))
        foreign = rtcp.ReportBlock(12345, 255, 1, 1, 1, 0, 0)
        phone.sendto(rtcp.receiver_compounds(1, [foreign], "x")[0], (HOST, self.rtp_port + 1))
        for _ in range(10):
            self.clock.turn()
            self.clock.advance(0.01)
        self.assertEqual(self.noted, [])
        self.assertEqual(self.service.totals()["foreign_reports"], 1)

    def test_sender_reports_and_goodbye(self) -> None:
        """RFC 3550 6.4.1, 6.6: SR with true counts to the next port, BYE at the end."""
        pair = free_pair()
        ears, control = receiver(port=pair), receiver(port=pair + 1)
        self.addCleanup(ears.close)
        self.addCleanup(control.close)
        link = self.join(pair)
        for second in range(8):
            self.send(*range(second * 10, second * 10 + 10))
            self.clock.advance(1)
        groups = link.last(messages.Stream).groups
        compounds = [rtcp.parse_compound(data) for data in drain(control)]
        self.assertGreaterEqual(len(compounds), 1)
        reports = [one for one in compounds[-1] if isinstance(one, rtcp.SenderReport)]
        self.assertEqual({one.ssrc for one in reports}, {group.ssrc for group in groups})
        self.assertTrue(all(20 <= one.packet_count <= 80 for one in reports))
        self.assertEqual({one.octet_count // one.packet_count for one in reports}, {16 * 61 - 1})
        self.service.bye(link)
        (bye,) = [rtcp.parse_compound(data) for data in drain(control)]
        assert isinstance(bye[-1], rtcp.Goodbye)
        self.assertEqual(bye[-1].reason, "the listener said bye")

    def test_sender_reports_survive_a_failure(self) -> None:
        """One listener's report that fails ends neither its later ones nor the others'."""
        pair = free_pair()
        reports = receiver(port=pair + 1)
        self.addCleanup(reports.close)
        self.join(pair)
        self.send(1)
        transmission = self.service.transmission
        self.patch(transmission, "_address_towards", lambda host: 1 // 0)
        self.clock.pump([0.05] * 100)
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        self.patch(transmission, "_address_towards", lambda host: HOST)
        drain(reports)
        self.clock.pump([0.05] * 200)
        self.assertTrue(drain(reports))

    def test_consecutive_ports_and_sdp(self) -> None:
        """Each m= line has its port; names are byte-exact in the description."""
        link = self.join(
            40_000,
            layout="mono",
            ports="consecutive",
            compression="L24",
            channels=(messages.ChannelRequest(1), messages.ChannelRequest(3)),
        )
        stream = link.last(messages.Stream)
        self.assertEqual([group.udp_port for group in stream.groups], [40_000, 40_002])
        text = self.service.sdp(stream.client_id)
        assert text is not None
        described = sdp.parse(text)
        self.assertEqual([media.port for media in described.media], [40_000, 40_002])
        self.assertEqual([media.title for media in described.media], ["Vocal 🎤", "CH03"])
        self.assertEqual({media.encoding for media in described.media}, {"L24"})
        self.assertIsNone(self.service.sdp("nobody"))

    def test_request_audio(self) -> None:
        """STR-36: the answer's body, and its refusals."""
        error = self.assertRaises(RefusedError, self.service.request_audio, HOST, 5004, None)
        self.assertEqual(error.status, 409)
        link = Link()
        self.service.connected(link, HOST)
        self.assertEqual(
            self.service.request_audio(HOST, 5004, None),
            {
                "status": "ok",
                "client_id": "client_1",
                "udp_port": 5004,
                "rtp": {"port": self.rtp_port, "rtcp_port": self.rtp_port + 1},
            },
        )

    def test_own_quality_only(self) -> None:
        """STR-12: /qos-metrics is taken from the listener's own address only."""
        self.join(40_000)
        report = QualityReport("qos", 0, loss=0.001, jitter_ms=1, latency_ms=9)
        self.service.report_quality("client_1", HOST, report)
        (status,) = self.service.snapshot()
        self.assertEqual((status.rating, status.quality.latency_ms), ("good", 9))  # type: ignore[union-attr]
        for client_id, host, code in (("client_1", "10.0.0.1", 403), ("client_9", HOST, 404)):
            error = self.assertRaises(
                RefusedError, self.service.report_quality, client_id, host, report
            )
            self.assertEqual(error.status, code)

    def test_all_muted_flows_nothing(self) -> None:
        """STR-30: a muted channel is not sent, not even the last one."""
        muted = messages.ChannelRequest(1, mute=True)
        link = self.join(40_000, channels=(muted,))
        self.assertEqual(link.last(messages.Stream).groups, ())
        self.send(1)
        self.assertEqual(self.service.totals()["packets"], 0)

    def test_event_flags(self) -> None:
        """CLK-3: a message or a rename shows in the next packets' event flags."""
        ears = receiver()
        self.addCleanup(ears.close)
        self.join(ears.getsockname()[1])

        def flags() -> list[int | None]:
            parsed = [time_extension(packet.parse(data)) for data in drain(ears)]
            return [None if one is None else int(one.flags) for one in parsed[::2]]

        self.send(*range(5))
        self.assertEqual(flags(), [1, 1, 1, None, None])
        self.service.tell_all("custom_message", "louder!", {})
        self.send(*range(5, 9))
        self.assertEqual(flags(), [5, 5, 5, None])
        self.service.channels_renamed()
        self.send(*range(9, 13))
        self.assertEqual(flags(), [3, 3, 3, None])

    def test_server_shutdown_is_told(self) -> None:
        """STR-31: server_shutdown with a reason and when to come back."""
        link = self.join(40_000)
        told = self.service.tell_all("server_shutdown", "maintenance", {"reconnect_after": 60.0})
        self.assertEqual(told, 1)
        event = link.last(messages.Event)
        self.assertEqual((event.type, event.reconnect_after), ("server_shutdown", 60.0))
        self.service.stopService()
        self.assertEqual(link.closed, (1001, "the server stops"))
        self.assertEqual(self.demand, {})
