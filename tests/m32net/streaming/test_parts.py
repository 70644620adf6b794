"""STR-4, STR-41, STR-52: frames of PCM divided in time over several packets of a group."""

from __future__ import annotations

import errno
import random
from collections import defaultdict
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from m32net.audio.frame import EncodedFrame
from m32net.interfaces import RefusedError
from m32net.streaming import describe
from m32net.streaming.fanout import Fanout, SendResult
from m32net.streaming.negotiation import Agreement, AudioOffer, agree
from m32net.streaming.profile import Profile
from protocols.control.messages import ClientConfig
from protocols.datagram import BatchReceiver, SendMethod, open_udp, probe_send_method
from protocols.errors import LocalProtocolError
from protocols.rtp import sdp
from protocols.rtp.extension import EventFlags, time_extension
from protocols.rtp.packet import RtpPacket, parse
from protocols.rtp.packetizer import Group, StreamSpec, payload_type_of
from tests.m32net.streaming.test_fanout import L16, L24, OFFSET, OPUS, FanoutCase, Wire, spec_of

ALL = tuple(range(1, 33))
OFFER = AudioOffer(channels=ALL)


def asked(offer: AudioOffer = OFFER, **wanted: Any) -> Agreement:
    return agree(ClientConfig(**{"compression": "L24", "max_group": 8, **wanted}), offer)


def noise(profile: Profile, number: int, samples: int | None = None) -> EncodedFrame:
    """Frame ``number``, no two samples alike."""
    count = samples or profile.frame_samples
    assert count is not None
    width = 2 if profile.codec == "L16" else 3
    payload = np.random.default_rng(number).integers(0, 256, (count, 32, width), np.uint8)
    return EncodedFrame(profile, 240 * number, count, 0, 0, payload)


def divided(
    profile: Profile,
    channels: tuple[int, ...] = ALL,
    *,
    max_group: int = 8,
    port: int = 6000,
    step: int = 0,
    ssrc: int = 100,
    first: int = 0,
) -> StreamSpec:
    """What is sent to a listener that asked for ``max_group``."""
    wanted = ClientConfig(compression=profile.codec, max_group=max_group)  # type: ignore[arg-type]
    offer = AudioOffer(channels, frame_us=profile.frame_us)
    agreement = agree(wanted, offer)
    assert agreement.profile == profile
    kind = payload_type_of(profile.codec, "bundle")
    groups = [
        Group(ssrc + n, kind, port + step * n, group, first, agreement.parts)
        for n, group in enumerate(agreement.groups)
    ]
    return StreamSpec("127.0.0.1", tuple(groups))


class AgreementTests(SynchronousTestCase):
    def sizes(self, agreement: Agreement) -> tuple[list[int], int]:
        return [len(group) for group in agreement.groups], agreement.parts

    def test_eight_channels(self) -> None:
        for codec, frame_ms, parts in (
            ("L24", 2.5, 2),
            ("L24", 5, 4),
            ("L24", 10, 8),
            ("none", 2.5, 2),
            ("none", 5, 3),
            ("none", 10, 6),
        ):
            with self.subTest(f"{codec} {frame_ms}"):
                agreement = asked(compression=codec, frame_ms=frame_ms)
                self.assertEqual(self.sizes(agreement), ([8] * 4, parts))
                self.assertEqual(agreement.profile.frame_ms, frame_ms)
                self.assertAlmostEqual(agreement.packet_ms, frame_ms / parts)

    def test_ten_channels_are_whole_milliseconds(self) -> None:
        agreement = asked(AudioOffer(ALL[:30]), max_group=10)
        self.assertEqual((self.sizes(agreement), agreement.packet_ms), (([10] * 3, 5), 1.0))

    def test_other_rates(self) -> None:
        """Frames of 220 and 221 samples in turn cannot be divided; those of 441 can."""
        self.assertEqual(self.sizes(asked(sample_rate=44_100)), ([2] * 16, 1))
        self.assertEqual(self.sizes(asked(sample_rate=44_100, frame_ms=10)), ([8] * 4, 9))
        self.assertEqual(self.sizes(asked(sample_rate=32_000)), ([8] * 4, 4))
        self.assertEqual(self.sizes(asked(sample_rate=24_000, frame_ms=2.5)), ([8] * 4, 1))

    def test_who_does_not_ask_gets_whole_frames(self) -> None:
        self.assertEqual(self.sizes(asked(max_group=None)), ([2] * 16, 1))
        self.assertEqual(self.sizes(asked(layout="mono")), ([1] * 32, 1))
        self.assertEqual(self.sizes(asked(compression="opus")), ([8] * 4, 1))
        self.assertEqual(self.sizes(asked(max_group=2)), ([2] * 16, 1))

    def test_smaller_groups_where_twenty_parts_are_not_enough(self) -> None:
        self.assertEqual(self.sizes(asked(max_group=32, frame_ms=10)), ([16, 16], 16))

    def test_equality(self) -> None:
        """A listener that asks for other packets of the same channels gets new streams."""
        agreement = asked()
        other = Agreement(
            agreement.profile, agreement.groups, agreement.layout, agreement.ports, None, 8
        )
        self.assertNotEqual(agreement, other)
        self.assertEqual(agreement.at(6000).parts, 4)
        self.assertEqual(agreement.at(6000), asked(udp_port=6000))
        self.assertRaises(RefusedError, asked(ports="consecutive").at, 65_530)

    def test_what_the_listener_is_told(self) -> None:
        agreement = asked(udp_port=6000)
        spec = divided(L24)
        self.assertEqual(spec.groups[0].channels, agreement.groups[0])
        message = describe.stream_message("x", agreement, spec, 5004)
        self.assertEqual(message.frame_ms, 1.25)
        text = describe.session_description(
            agreement,
            spec,
            server_address="127.0.0.1",
            server_name="m32",
            session_id=1,
            version=1,
            names={},
        )
        self.assertEqual(text.count("a=ptime:1.25\r\n"), 4)
        self.assertEqual([m.packet_ms for m in sdp.parse(text).media], [1.25] * 4)


class PartsCase(FanoutCase):
    def assert_parts(self, packets: list[RtpPacket], spec: StreamSpec, frame: EncodedFrame) -> None:
        """The packets of each stream together are the frame of its channels."""
        streams = defaultdict(list)
        for packet in packets:
            streams[packet.ssrc].append(packet)
        self.assertEqual(list(streams), [group.ssrc for group in spec.groups])
        for group in spec.groups:
            got = streams[group.ssrc]
            self.assertEqual(len(got), group.parts)
            samples = len(frame.payload) // group.parts
            first = got[0].sequence_number
            for at, packet in enumerate(got):
                start = OFFSET + frame.media_time + at * samples
                self.assertEqual(packet.timestamp, start & 0xFFFF_FFFF)
                self.assertEqual(packet.sequence_number, (first + at) & 0xFFFF)
                self.assertEqual(packet.payload_type, group.payload_type)
            expected = frame.payload[:, np.array(group.channels) - 1].tobytes()
            self.assertEqual(b"".join(bytes(packet.payload) for packet in got), expected)
            self.assertEqual({len(p.payload) * group.parts for p in got}, {len(expected)})


class MediaTests(PartsCase):
    def test_codecs_ports_and_methods(self) -> None:
        """Numbers and time stamps wrap on the way."""
        for method in SendMethod:
            for profile in (L16, L24):
                for step in (0, 2):
                    with self.subTest(f"{method} {profile.codec} {step}"):
                        self.check_stream(method, profile, step)

    def check_stream(self, method: SendMethod, profile: Profile, step: int) -> None:
        fanout = self.fanout_by(method)
        spec = divided(profile, step=step, first=65_530)
        parts = spec.groups[0].parts
        self.assertGreater(parts, 1)
        fanout.add("a", profile, spec)
        for number in range(6):
            self.wire.messages.clear()
            frame = noise(profile, number)
            result = fanout.send(frame)
            packets = [p for port in sorted(self.wire.packets) for p in self.wire.take(port)]
            self.assert_parts(packets, spec, frame)
            firsts = {p.sequence_number for p in packets[::parts]}
            self.assertEqual(firsts, {(65_530 + parts * number) & 0xFFFF})
            self.assertEqual(result, SendResult(1, 4 * parts, frame.payload.size, 0))
            messages = 4 * parts
            if method is SendMethod.GSO:
                messages = 4 if step else 1
            self.assertEqual(len(self.wire.messages), messages)

    def test_a_smaller_last_group_is_a_message_of_its_own(self) -> None:
        spec = divided(L24, ALL[:20])
        self.fanout.add("a", L24, spec)
        for number in range(5):
            self.wire.messages.clear()
            self.fanout.send(noise(L24, number))
            self.assert_parts(self.wire.take(), spec, noise(L24, number))
        full, small = 12 + 60 * 7 * 3, 12 + 60 * 6 * 3
        self.assertEqual(self.wire.messages, [(6000, [full] * 8), (6000, [small] * 4)])

    def test_more_packets_than_one_message_takes(self) -> None:
        profile = Profile("L24", 48_000, 10_000)
        spec = StreamSpec(
            "127.0.0.1",
            tuple(Group(n, 96, 6000, ALL[:16], 0, parts=16) for n in range(5)),
        )
        self.fanout.add("a", profile, spec)
        self.fanout.send(noise(profile, 0))
        self.assertEqual([len(sizes) for _port, sizes in self.wire.messages], [44, 36])
        self.assert_parts(self.wire.take(), spec, noise(profile, 0))

    def test_shared_payloads(self) -> None:
        """The same channels whole for one listener and divided for another."""
        whole = StreamSpec("127.0.0.1", (Group(1, 96, 7000, (1, 2), 5),))
        parts = StreamSpec("127.0.0.1", (Group(2, 96, 6000, (1, 2), 9, parts=5),))
        self.fanout.add("whole", L24, whole)
        self.fanout.add("parts", L24, parts)
        for number in range(4):
            frame = noise(L24, number)
            self.fanout.send(frame)
            self.assert_parts(self.wire.take(7000), whole, frame)
            self.assert_parts(self.wire.take(6000), parts, frame)

    def test_frames_of_another_length(self) -> None:
        """Parts move with it; a frame that makes no equal parts is told, and changes nothing."""
        spec = divided(L24)
        self.fanout.add("a", L24, spec)
        for number, samples in enumerate((240, 200, 240, 480, 120)):
            frame = noise(L24, number, samples)
            self.fanout.send(frame)
            self.assert_parts(self.wire.take(), spec, frame)
        self.assertRaises(LocalProtocolError, self.fanout.send, noise(L24, 5, 241))
        self.fanout.send(noise(L24, 6))
        packets = self.wire.take()
        self.assert_parts(packets, spec, noise(L24, 6))
        self.assertEqual(packets[0].sequence_number, 20)

    def test_extensions_are_on_all_parts(self) -> None:
        spec = divided(L24)
        fanout = self.fanout_by(SendMethod.GSO, extension_interval_s=0.1)
        fanout.add("a", L24, spec)
        extended = []
        for number in range(45):
            self.wire.messages.clear()
            fanout.send(noise(L24, number))
            packets = self.wire.take()
            self.assert_parts(packets, spec, noise(L24, number))
            times = {time_extension(packet) for packet in packets}
            self.assertEqual(len(times), 1)
            ((_port, sizes),) = self.wire.messages
            if times != {None}:
                extended.append(number)
                self.assertEqual(set(sizes), {28 + 1440})
        # its phase is 0, so that the first regular run is the one at the start
        self.assertEqual(extended, [0, 1, 2, 20, 21, 22, 40, 41, 42])

    def test_announced_flags(self) -> None:
        self.fanout.add("a", L24, divided(L24, ALL[:8]))
        for number in range(5):
            self.fanout.send(noise(L24, number))
        self.wire.take()
        self.fanout.announce("a", EventFlags.CONTROL_MESSAGE)
        self.fanout.send(noise(L24, 5))
        for packet in self.wire.take():
            extension = time_extension(packet)
            assert extension is not None
            self.assertEqual(extension.flags, EventFlags.TIME_SYNC | EventFlags.CONTROL_MESSAGE)


class ComingAndGoingTests(PartsCase):
    @given(st.integers(0, 2**32))
    @settings(max_examples=30, deadline=None)
    def test_any_history(self, seed: int) -> None:
        """Listeners with parts and without come and go: nobody's numbers or counts are touched."""
        rng = random.Random(seed)
        wire = self.wire = Wire()
        fanout = self.fanout_by(rng.choice(list(SendMethod)), extension_interval_s=0.05)
        present: dict[str, tuple[StreamSpec, int]] = {}
        for number in range(40):
            for _ in range(rng.choice((0, 0, 1, 3))):
                name = str(rng.randrange(6))
                if name in present and rng.random() < 0.6:
                    spec, frames = present.pop(name)
                    totals = fanout.remove(name)
                    assert totals is not None
                    sent = tuple(frames * group.parts for group in spec.groups)
                    self.assertEqual(totals.stream_packets, sent)
                    self.assertEqual(
                        totals.stream_octets,
                        tuple(frames * 720 * len(group.channels) for group in spec.groups),
                    )
                else:
                    spec = divided(
                        L24,
                        tuple(sorted(rng.sample(ALL, rng.randint(1, 32)))),
                        max_group=rng.choice((1, 2, 5, 8, 16)),
                        port=6000 + 100 * int(name),
                        step=rng.choice((0, 2)),
                        ssrc=rng.getrandbits(31),
                        first=rng.getrandbits(16),
                    )
                    fanout.add(name, L24, spec)
                    present[name] = (spec, 0)
            frame = noise(L24, number)
            self.assertEqual(fanout.send(frame).listeners, len(present))
            for name, (spec, frames) in present.items():
                ports = sorted({group.udp_port for group in spec.groups})
                packets = [p for port in ports for p in wire.take(port)]
                self.assert_parts(packets, spec, frame)
                first = spec.groups[0]
                expected = (first.first_sequence + frames * first.parts) & 0xFFFF
                self.assertEqual(packets[0].sequence_number, expected)
                present[name] = (spec, frames + 1)
            self.assertEqual(wire.packets, {})


class AccountTests(PartsCase):
    def test_drops_and_sender_reports(self) -> None:
        """Every packet counts, in each stream; a message that fails is its packets only."""
        self.fanout.add("a", L24, divided(L24, ALL[:20], ssrc=1))  # 7 + 7, then 6 channels
        self.fanout.add("b", L24, spec_of(L24, (1, 2, 3), port=7000, ssrc=50))
        self.fanout.send(noise(L24, 0))
        self.wire.errors = {1: errno.EAGAIN}
        result = self.fanout.send(noise(L24, 1))
        self.assertEqual(result, SendResult(2, 8 + 2, 720 * (14 + 3), 4))
        totals = self.fanout.totals("a")
        assert totals is not None
        self.assertEqual((totals.packets, totals.dropped), (20, 4))
        self.assertEqual((totals.ssrcs, totals.stream_packets), ((1, 2, 3), (8, 8, 4)))
        self.assertEqual(totals.stream_octets, (2 * 5040, 2 * 5040, 4320))
        self.assertEqual(totals.octets, sum(totals.stream_octets))
        reports = self.fanout.sender_reports("a", 0, 0)
        self.assertEqual([r.packet_count for r in reports], [8, 8, 4])
        self.assertEqual([r.octet_count for r in reports], [10_080, 10_080, 4320])

    def test_before_the_first_frame(self) -> None:
        self.fanout.add("a", L24, divided(L24))
        totals = self.fanout.totals("a")
        assert totals is not None
        self.assertEqual((totals.packets, totals.stream_packets), (0, (0,) * 4))

    def test_a_route_without_gso_gets_single_packets(self) -> None:
        spec = divided(L24, first=65_530)
        self.fanout.add("a", L24, spec)
        self.fanout.add("b", OPUS, spec_of(OPUS, port=7000))
        self.wire.errors = {0: errno.EIO}
        self.assertEqual(self.fanout.send(noise(L24, 0)).dropped, 16)
        self.wire.errors = {}
        for number in range(1, 4):
            self.wire.messages.clear()
            self.assertEqual(self.fanout.send(noise(L24, number)).dropped, 0)
            self.assertEqual(len(self.wire.messages), 16)
            packets = self.wire.take()
            self.assert_parts(packets, spec, noise(L24, number))
            expected = (65_530 + 4 * number) & 0xFFFF
            self.assertEqual(packets[0].sequence_number, expected)


class SocketTests(PartsCase):
    def test_every_method_delivers(self) -> None:
        best = probe_send_method(self.sock)
        for method in SendMethod:
            if method is SendMethod.GSO and best is not method:
                continue
            with self.subTest(method):
                ear = open_udp("127.0.0.1", 0)
                self.addCleanup(ear.close)
                receiver = BatchReceiver(ear)
                spec = divided(L24, ALL[:20], port=ear.getsockname()[1], first=65_530)
                fanout = Fanout(self.sock, method, timestamp_offset=OFFSET)
                fanout.add("a", L24, spec)
                for number in range(5):
                    frame = noise(L24, number)
                    self.assertEqual(fanout.send(frame), SendResult(1, 12, 720 * 20, 0))
                    packets = [parse(datagram.data) for datagram in receiver.receive()]
                    self.assert_parts(packets, spec, frame)
