"""STR-4, STR-30, STR-41, STR-52: every listener gets its channels, and nobody disturbs another."""

from __future__ import annotations

import errno
import random
import socket
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from m32net.audio.frame import EncodedFrame
from m32net.streaming.fanout import Fanout, SendResult
from m32net.streaming.profile import MAX_MEDIA_PAYLOAD, Profile
from protocols.datagram import (
    BatchReceiver,
    BatchSender,
    SendFailure,
    SendMethod,
    open_udp,
    probe_send_method,
)
from protocols.errors import LocalProtocolError
from protocols.mmsg import MAX_MESSAGE_BYTES, MAX_SEGMENTS, SendTable
from protocols.rtp.extension import EventFlags, time_extension
from protocols.rtp.packet import RtpPacket, parse
from protocols.rtp.packetizer import Group, StreamSpec, payload_type_of, plan_groups
from protocols.rtp.payload import multiopus_split, pcm_to_wire, wire_to_pcm

OPUS = Profile("opus", 48_000, 5_000, 96_000)
L16 = Profile("L16", 48_000, 5_000)
L24 = Profile("L24", 48_000, 5_000)
L24_441 = Profile("L24", 44_100, 5_000)
OFFSET = 0xFFFF_FF00
NOW_NS = 1_800_000_000_123_456_789
GOLDEN = Path(__file__).parents[2] / "golden" / "rtp"
MAPPED = tuple(range(1, 33))


def frame_of(profile: Profile, number: int, samples: int | None = None) -> EncodedFrame:
    """Frame ``number``: Opus packets that name frame and channel; PCM as the test source has it."""
    duration = samples or profile.clock_rate * profile.frame_us // 1_000_000
    if profile.is_pcm:
        pcm = np.tile(np.arange(1, 33, dtype=np.int32) << 16, (duration, 1))
        pcm += np.int32((number & 0x7F) << 24)
        payload = pcm_to_wire(pcm, 2 if profile.codec == "L16" else 3)
    else:
        payload = np.zeros((32, profile.packet_bytes), np.uint8)
        payload[:, 0] = 0xF8
        payload[:, 1] = number & 0xFF
        payload[:, 2] = np.arange(1, 33)
        payload[:, 3:] = np.arange(profile.packet_bytes - 3) % 251
    return EncodedFrame(profile, 240 * number, duration, 0, 0, payload)


def spec_of(
    profile: Profile,
    channels: tuple[int, ...] = MAPPED,
    *,
    port: int = 6000,
    layout: Any = "bundle",
    step: int = 0,
    ssrc: int = 100,
    first: int = 0,
    host: str = "127.0.0.1",
) -> StreamSpec:
    groups = plan_groups(
        channels,
        profile.channel_bytes,
        layout,
        None,
        MAX_MEDIA_PAYLOAD,
        opus=not profile.is_pcm,
    )
    return StreamSpec(
        host,
        tuple(
            Group(
                ssrc + n,
                payload_type_of(profile.codec, layout),
                port + step * n,
                group,
                first,
            )
            for n, group in enumerate(groups)
        ),
    )


class Wire:
    """Stands in for the kernel: takes tables apart as UDP_SEGMENT does; fails where told to."""

    def __init__(self) -> None:
        self.packets: dict[int, list[RtpPacket]] = defaultdict(list)
        self.messages: list[tuple[int, list[int]]] = []
        self.errors: dict[int, int] = {}
        self.raw: list[bytes] = []

    def send(self, table: SendTable) -> list[SendFailure]:
        failures = []
        for message in range(table.count):
            data, (_host, port) = table.datagram(message)
            if message in self.errors:
                failures.append(SendFailure(message, self.errors[message]))
                continue
            size = len(data)
            if table._messages["control_length"][message]:
                size = int(table.segment_sizes[message])
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            assert len(parts) <= MAX_SEGMENTS
            assert len(data) <= MAX_MESSAGE_BYTES
            self.messages.append((port, [len(part) for part in parts]))
            self.packets[port] += [parse(part) for part in parts]
            self.raw.append(data)
        return failures

    def take(self, port: int = 6000) -> list[RtpPacket]:
        return self.packets.pop(port, [])


class FanoutCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.sock = open_udp("127.0.0.1", 0)
        self.addCleanup(self.sock.close)
        self.wire = Wire()
        self.fanout = self.fanout_by(SendMethod.GSO)

    def fanout_by(self, method: SendMethod, **options: Any) -> Fanout:
        return Fanout(
            self.sock,
            method,
            timestamp_offset=OFFSET,
            realtime_ns=lambda: NOW_NS,
            sender=self.wire,
            **options,
        )

    def assert_media(self, packets: list[RtpPacket], spec: StreamSpec, frame: EncodedFrame) -> None:
        """The packets are the frame's, one for each group, in order."""
        self.assertEqual([p.ssrc for p in packets], [g.ssrc for g in spec.groups])
        for packet, group in zip(packets, spec.groups, strict=True):
            self.assertEqual(packet.payload_type, group.payload_type)
            self.assertEqual(packet.timestamp, (OFFSET + frame.media_time) & 0xFFFF_FFFF)
            columns = np.array(group.channels) - 1
            if frame.profile.is_pcm:
                self.assertEqual(bytes(packet.payload), frame.payload[:, columns].tobytes())
            else:
                self.assertEqual(
                    multiopus_split(packet.payload, len(columns)),
                    [row.tobytes() for row in frame.payload[columns]],
                )


class MediaTests(FanoutCase):
    def test_layouts_codecs_and_methods(self) -> None:
        for method in SendMethod:
            for profile in (OPUS, L16, L24):
                for layout in ("bundle", "mono"):
                    for step in (0, 2):
                        with self.subTest(f"{method} {profile.codec} {layout} {step}"):
                            self.check_stream(method, profile, layout, step)

    def check_stream(self, method: SendMethod, profile: Profile, layout: str, step: int) -> None:
        fanout = self.fanout_by(method)
        spec = spec_of(profile, layout=layout, step=step, first=65_534)
        fanout.add("a", profile, spec)
        for number in range(5):
            self.wire.messages.clear()
            frame = frame_of(profile, number)
            result = fanout.send(frame)
            ports = sorted({g.udp_port for g in spec.groups})
            packets = [p for port in ports for p in self.wire.take(port)]
            self.assert_media(packets, spec, frame)
            self.assertEqual({p.sequence_number for p in packets}, {(65_534 + number) & 0xFFFF})
            octets = sum(len(p.payload) for p in packets)
            self.assertEqual(result, SendResult(1, len(spec.groups), octets, 0))
            one_message = method is SendMethod.GSO and not step
            self.assertEqual(len(self.wire.messages), 1 if one_message else len(spec.groups))

    def test_bundle_of_the_usual_size(self) -> None:
        """32 channels of Opus: two packets of about 1 kB in one message."""
        self.fanout.add("a", OPUS, spec_of(OPUS))
        for _ in range(4):
            self.fanout.send(frame_of(OPUS, 1))
        self.assertEqual(self.wire.messages[-1], (6000, [987, 987]))
        self.assertEqual(self.wire.messages[0], (6000, [1003, 1003]))

    def test_golden(self) -> None:
        group = Group(0x01020304, 97, 6000, (2, 1), 0xABCD)
        self.fanout.add("a", OPUS, StreamSpec("127.0.0.1", (group,)))
        self.fanout.send(frame_of(OPUS, 7))
        self.assertEqual(self.wire.raw, [(GOLDEN / "packet-fanout-first.bin").read_bytes()])

    def test_test_source_values(self) -> None:
        """STR-3: channel n's samples are n (L16) or n << 8 (L24)."""
        for profile, width in ((L16, 2), (L24, 3)):
            fanout = self.fanout_by(SendMethod.GSO)
            fanout.add("a", profile, spec_of(profile, (5, 31), layout="mono"))
            fanout.send(frame_of(profile, 0))
            first, second = self.wire.take()
            for packet, channel in ((first, 5), (second, 31)):
                pcm = wire_to_pcm(packet.payload, 1, width)
                self.assertEqual(set((pcm >> 16).ravel().tolist()), {channel})

    def test_uneven_groups(self) -> None:
        """GSO takes a smaller last packet; two smaller ones make a second message."""
        groups = (tuple(range(1, 8)), (8, 9, 10), (11, 12), (13, 14, 15, 16), (17, 18, 19, 20))
        spec = StreamSpec("127.0.0.1", tuple(Group(n, 97, 6000, c) for n, c in enumerate(groups)))
        self.fanout.add("a", OPUS, spec)
        frame = frame_of(OPUS, 9)
        self.fanout.send(frame)
        self.assert_media(self.wire.take(), spec, frame)
        self.assertEqual([len(sizes) for _port, sizes in self.wire.messages], [2, 1, 2])

    def test_more_packets_than_one_message_takes(self) -> None:
        spec = spec_of(OPUS, (*MAPPED, *MAPPED, *MAPPED), layout="mono")
        self.fanout.add("a", OPUS, spec)
        self.fanout.send(frame_of(OPUS, 0))
        self.assertEqual([len(sizes) for _port, sizes in self.wire.messages], [64, 32])
        spec = spec_of(L24, (*MAPPED, *MAPPED, *MAPPED), layout="bundle")
        self.fanout.add("b", L24, spec)
        self.fanout.send(frame_of(L24, 0))
        self.assert_media(self.wire.take()[96:], spec, frame_of(L24, 0))

    def test_frames_of_changing_length(self) -> None:
        """44.1 kHz: 220 and 221 samples in turn, and the GSO size with them."""
        spec = spec_of(L24_441)
        self.fanout.add("a", L24_441, spec)
        for number, samples in enumerate((220, 221, 220, 221, 221, 220, 220)):
            self.wire.messages.clear()
            frame = frame_of(L24_441, number, samples)
            result = self.fanout.send(frame)
            self.assert_media(self.wire.take(), spec, frame)
            header = 28 if number < 3 else 12
            ((_port, sizes),) = self.wire.messages
            self.assertEqual(set(sizes), {header + samples * 6})
            self.assertEqual(result.octets, samples * 3 * 32)
        totals = self.fanout.totals("a")
        assert totals is not None
        self.assertEqual(totals.octets, (4 * 220 + 3 * 221) * 3 * 32)

    def test_a_longer_frame_than_expected(self) -> None:
        self.fanout.add("a", L16, spec_of(L16))
        for samples in (240, 300, 240):
            frame = frame_of(L16, 1, samples)
            self.fanout.send(frame)
            self.assert_media(self.wire.take(), spec_of(L16), frame)

    def test_profiles_are_apart(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS, port=6000))
        self.fanout.add("b", L16, spec_of(L16, port=7000))
        self.assertEqual(self.fanout.profiles, {OPUS, L16})
        self.fanout.send(frame_of(L16, 0))
        self.assertEqual(self.wire.take(6000), [])
        self.assert_media(self.wire.take(7000), spec_of(L16, port=7000), frame_of(L16, 0))

    def test_nobody_listens(self) -> None:
        self.assertEqual(self.fanout.send(frame_of(OPUS, 0)), SendResult(0, 0, 0, 0))

    def test_a_channel_that_is_not_there(self) -> None:
        """Our own mistake is told, and its removal puts everything right."""
        self.fanout.add("b", OPUS, spec_of(OPUS, (1,)))
        for before in range(2):
            self.fanout.add("a", OPUS, spec_of(OPUS, (33,), port=7000))
            self.assertRaises(LocalProtocolError, self.fanout.send, frame_of(OPUS, 0))
            self.fanout.remove("a")
            self.fanout.send(frame_of(OPUS, 0))
            (packet,) = self.wire.take()
            self.assertEqual(packet.sequence_number, before)

    def test_bad_addresses_change_nothing(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS))
        self.assertRaises(ValueError, self.fanout.add, "a", OPUS, spec_of(OPUS, host="phone.local"))
        self.fanout.send(frame_of(OPUS, 0))
        self.assertEqual(len(self.wire.take()), 2)


class ComingAndGoingTests(FanoutCase):
    def test_the_last_one_leaving_stops_everything(self) -> None:
        """STR-40."""
        self.fanout.add("a", OPUS, spec_of(OPUS))
        self.fanout.send(frame_of(OPUS, 0))
        self.assertEqual(len(self.fanout), 1)
        totals = self.fanout.remove("a")
        assert totals is not None
        self.assertEqual((totals.packets, totals.ssrcs), (2, (100, 101)))
        self.assertEqual((len(self.fanout), self.fanout.profiles), (0, frozenset()))
        self.assertEqual(self.fanout.send(frame_of(OPUS, 1)), SendResult(0, 0, 0, 0))
        self.assertIsNone(self.fanout.remove("a"))
        self.assertIsNone(self.fanout.totals("a"))
        self.assertEqual(self.fanout.sender_reports("a", 0, 0), [])

    def test_no_groups_is_no_listener(self) -> None:
        self.fanout.add("a", OPUS, StreamSpec("127.0.0.1", ()))
        self.assertEqual(len(self.fanout), 0)

    def test_leaving_before_the_first_frame(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS, port=6000))
        self.fanout.add("b", OPUS, spec_of(OPUS, port=7000))
        totals = self.fanout.totals("b")
        assert totals is not None
        self.assertEqual((totals.packets, totals.stream_packets), (0, (0, 0)))
        self.fanout.remove("b")
        self.fanout.send(frame_of(OPUS, 0))
        self.assertEqual((len(self.wire.take(6000)), self.wire.take(7000)), (2, []))

    def test_coming_again_is_new_streams(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS, first=10))
        self.fanout.send(frame_of(OPUS, 0))
        self.fanout.add("a", L16, spec_of(L16, (1,), ssrc=900, first=70, port=7000))
        self.fanout.send(frame_of(OPUS, 1))
        self.fanout.send(frame_of(L16, 1))
        self.assertEqual(len(self.wire.take(6000)), 2)
        (packet,) = self.wire.take(7000)
        self.assertEqual((packet.ssrc, packet.sequence_number), (900, 70))
        self.assertIsNotNone(packet.extension)

    @given(st.integers(0, 2**32))
    @settings(max_examples=40, deadline=None)
    def test_any_history(self, seed: int) -> None:
        """Whoever comes or goes: the others' numbers run on, and all get the frame at hand."""
        rng = random.Random(seed)
        wire = self.wire = Wire()
        fanout = self.fanout_by(rng.choice(list(SendMethod)), extension_interval_s=0.05)
        present: dict[str, tuple[StreamSpec, int, int]] = {}  # spec, frames sent, octets
        for number in range(60):
            for _ in range(rng.choice((0, 0, 1, 3))):
                name = str(rng.randrange(8))
                if name in present and rng.random() < 0.6:
                    spec, frames, octets = present.pop(name)
                    totals = fanout.remove(name)
                    assert totals is not None
                    self.assertEqual(totals.packets, frames * len(spec.groups))
                    self.assertEqual(totals.octets, octets)
                else:
                    channels = tuple(sorted(rng.sample(MAPPED, rng.randint(1, 32))))
                    spec = spec_of(
                        OPUS,
                        channels,
                        port=6000 + 100 * int(name),
                        layout=rng.choice(("mono", "bundle")),
                        step=rng.choice((0, 2)),
                        ssrc=rng.getrandbits(31),
                        first=rng.getrandbits(16),
                    )
                    fanout.add(name, OPUS, spec)
                    present[name] = (spec, 0, 0)
            frame = frame_of(OPUS, number)
            result = fanout.send(frame)
            self.assertEqual(result.listeners, len(present))
            for name, (spec, frames, octets) in present.items():
                ports = sorted({g.udp_port for g in spec.groups})
                packets = [p for port in ports for p in wire.take(port)]
                self.assert_media(packets, spec, frame)
                for packet, group in zip(packets, spec.groups, strict=True):
                    expected = (group.first_sequence + frames) & 0xFFFF
                    self.assertEqual(packet.sequence_number, expected)
                    if frames < 3:
                        self.assertIsNotNone(packet.extension)
                got = sum(len(p.payload) for p in packets)
                present[name] = (spec, frames + 1, octets + got)
            self.assertEqual(wire.packets, {})


class ExtensionTests(FanoutCase):
    def extended_frames(self, frames: int) -> list[int]:
        found = []
        for number in range(frames):
            frame = frame_of(OPUS, number)
            self.fanout.send(frame)
            packets = self.wire.take()
            self.assert_media(packets, spec_of(OPUS), frame)
            times = [time_extension(packet) for packet in packets]
            if any(times):
                for extension in times:
                    assert extension is not None
                    self.assertEqual(extension.send_time_ns, NOW_NS)
                    self.assertEqual(extension.flags, EventFlags.TIME_SYNC)
                found.append(number)
        return found

    def test_three_at_the_start_and_three_every_five_seconds(self) -> None:
        self.fanout.add("other", OPUS, spec_of(OPUS, port=7000))
        self.fanout.add("a", OPUS, spec_of(OPUS))
        found = self.extended_frames(3000)
        self.assertEqual(found[:3], [0, 1, 2])
        later = found[3:]
        self.assertEqual(len(later), 9)
        self.assertEqual([b - a for a, b in zip(later, later[3:], strict=False)], [1000] * 6)
        self.assertEqual(later[2] - later[0], 2)

    def test_a_listener_that_leaves_while_extended(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS, port=7000))
        self.fanout.send(frame_of(OPUS, 0))
        self.fanout.add("b", OPUS, spec_of(OPUS))
        self.fanout.send(frame_of(OPUS, 1))
        self.wire.take()
        self.fanout.remove("a")
        self.assertEqual(self.extended_frames(10), [0, 1])

    def test_announced_flags(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS, (1,)))
        for number in range(5):
            self.fanout.send(frame_of(OPUS, number))
        self.wire.take()
        self.fanout.announce("a", EventFlags.CONTROL_MESSAGE)
        self.fanout.announce("nobody", EventFlags.CONTROL_MESSAGE)
        self.fanout.send(frame_of(OPUS, 5))
        extension = time_extension(self.wire.take()[0])
        assert extension is not None
        self.assertEqual(extension.flags, EventFlags.TIME_SYNC | EventFlags.CONTROL_MESSAGE)


class AccountTests(FanoutCase):
    def test_drops_are_the_listeners_own(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS, port=6000))
        self.fanout.add("b", OPUS, spec_of(OPUS, port=7000, ssrc=200))
        self.fanout.send(frame_of(OPUS, 0))
        self.wire.errors = {1: errno.EAGAIN}
        result = self.fanout.send(frame_of(OPUS, 1))
        self.assertEqual(result, SendResult(2, 2, 2 * 975, 2))
        self.wire.errors = {}
        self.wire.packets.clear()
        self.fanout.send(frame_of(OPUS, 2))
        self.assertEqual({p.sequence_number for p in self.wire.take(7000)}, {2})
        a, b = self.fanout.totals("a"), self.fanout.totals("b")
        assert a is not None
        assert b is not None
        self.assertEqual((a.packets, a.octets, a.dropped), (6, 6 * 975, 0))
        self.assertEqual((b.packets, b.octets, b.dropped), (4, 4 * 975, 2))
        self.assertEqual((b.stream_packets, b.stream_octets), ((2, 2), (1950, 1950)))
        self.fanout.remove("a")
        self.fanout.send(frame_of(OPUS, 3))
        b = self.fanout.totals("b")
        assert b is not None
        self.assertEqual((b.packets, b.dropped), (6, 2))

    def test_counting_begins_with_the_stream(self) -> None:
        self.fanout.add("a", L16, spec_of(L16, port=7000))
        for number in range(5):
            self.fanout.send(frame_of(L16, number, 240 + number))
        self.fanout.add("b", L16, spec_of(L16, (1,)))
        self.fanout.send(frame_of(L16, 5, 240))
        totals = self.fanout.totals("b")
        assert totals is not None
        self.assertEqual((totals.packets, totals.octets), (1, 480))

    def test_sender_reports(self) -> None:
        self.fanout.add("a", OPUS, spec_of(OPUS))
        for number in range(7):
            self.fanout.send(frame_of(OPUS, number))
        first, second = self.fanout.sender_reports("a", 500_000_000, (1 << 32) + 77)
        self.assertEqual((first.ssrc, second.ssrc), (100, 101))
        self.assertEqual(first.ntp, 2_208_988_800 << 32 | 0x8000_0000)
        self.assertEqual(first.rtp_timestamp, 77)
        self.assertEqual((second.packet_count, second.octet_count), (7, 7 * 975))

    def test_a_route_without_gso_gets_single_packets(self) -> None:
        """A device without checksum offload answers GSO with EIO: that listener falls back."""
        self.fanout.add("a", OPUS, spec_of(OPUS, port=6000))
        self.fanout.add("b", OPUS, spec_of(OPUS, port=7000))
        self.wire.errors = {0: errno.EIO}
        self.assertEqual(self.fanout.send(frame_of(OPUS, 0)).dropped, 2)
        self.wire.errors = {}
        self.wire.messages.clear()
        self.wire.packets.clear()
        frame = frame_of(OPUS, 1)
        self.assertEqual(self.fanout.send(frame).dropped, 0)
        self.assertEqual([port for port, _sizes in self.wire.messages], [6000, 6000, 7000])
        packets = self.wire.take(6000)
        self.assert_media(packets, spec_of(OPUS), frame)
        self.assertEqual({p.sequence_number for p in packets}, {1})


class SocketTests(SynchronousTestCase):
    """The real thing over loopback."""

    def test_every_method_delivers(self) -> None:
        best = probe_send_method(self.open())
        for method in SendMethod:
            if method is SendMethod.GSO and best is not method:
                continue
            with self.subTest(method):
                self.deliver(method)

    def open(self, **options: int) -> socket.socket:
        sock = open_udp("127.0.0.1", 0, **options)
        self.addCleanup(sock.close)
        return sock

    def deliver(self, method: SendMethod) -> None:
        fanout = Fanout(self.open(), method, timestamp_offset=OFFSET)
        ears = {}
        for n in range(3):
            sock = self.open()
            ears[str(n)] = BatchReceiver(sock)
            spec = spec_of(OPUS, port=sock.getsockname()[1], ssrc=1000 * n, first=n)
            fanout.add(str(n), OPUS, spec)
        for number in range(5):
            frame = frame_of(OPUS, number)
            self.assertEqual(fanout.send(frame), SendResult(3, 6, 6 * 975, 0))
            for n, receiver in ears.items():
                packets = [parse(d.data) for d in receiver.receive()]
                self.assertEqual([p.ssrc for p in packets], [1000 * int(n), 1000 * int(n) + 1])
                self.assertEqual({p.sequence_number for p in packets}, {int(n) + number})
                self.assertEqual(
                    multiopus_split(packets[1].payload, 16),
                    [row.tobytes() for row in frame.payload[16:]],
                )

    def test_an_unreachable_listener_harms_nobody(self) -> None:
        """A socket bound to loopback cannot reach 192.0.2.1: those packets only are dropped."""
        sock = self.open()
        receiver = BatchReceiver(self.open())
        port = receiver._sock.getsockname()[1]
        fanout = Fanout(sock, probe_send_method(sock), timestamp_offset=0)
        fanout.add("gone", OPUS, spec_of(OPUS, host="192.0.2.1"))
        fanout.add("here", OPUS, spec_of(OPUS, port=port))
        for number in range(4):
            result = fanout.send(frame_of(OPUS, number))
            self.assertEqual((result.packets, result.dropped), (2, 2))
            self.assertEqual(len(receiver.receive()), 2)
        totals = fanout.totals("gone")
        assert totals is not None
        self.assertEqual((totals.packets, totals.octets, totals.dropped), (0, 0, 8))

    def test_more_listeners_than_one_call_takes(self) -> None:
        sink = self.open(rcvbuf=4096)
        sock = self.open(sndbuf=8 << 20)
        fanout = Fanout(sock, probe_send_method(sock), timestamp_offset=0)
        for n in range(1100):
            spec = spec_of(OPUS, (1 + n % 32,), port=sink.getsockname()[1], ssrc=n)
            fanout.add(str(n), OPUS, spec)
        for number in range(3):
            result = fanout.send(frame_of(OPUS, number))
            self.assertEqual(result, SendResult(1100, 1100, 1100 * 60, 0))

    def test_a_full_socket_buffer_drops_and_never_blocks(self) -> None:
        sock = self.open()
        calls = []

        def full_after_one(_fd: int, _address: int, count: int, _flags: int) -> int:
            import ctypes

            calls.append(count)
            if len(calls) % 2:
                return 1
            ctypes.set_errno(errno.EAGAIN)
            return -1

        sender = BatchSender(sock, SendMethod.GSO, sendmmsg=full_after_one)
        fanout = Fanout(sock, SendMethod.GSO, timestamp_offset=0, sender=sender)
        for n in range(4):
            fanout.add(str(n), OPUS, spec_of(OPUS))
        for number in range(8):
            self.assertEqual(fanout.send(frame_of(OPUS, number)), SendResult(4, 2, 1950, 6))
        shares = []
        for n in range(4):
            totals = fanout.totals(str(n))
            assert totals is not None
            shares.append(totals.dropped)
        self.assertEqual(shares, [12, 12, 12, 12])
