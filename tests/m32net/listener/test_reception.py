"""STR-20, STR-12, CLK-2: what arrives is counted, measured and handed on; rubbish is dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.depacketize import StreamPlan
from m32net.listener.jitter import Packet
from m32net.listener.latency import LatencyMeter
from m32net.listener.reception import StreamReception, Totals
from protocols.rtp.extension import ntp64_from_unix_ns
from protocols.rtp.packet import RtpPacket, serialize
from protocols.rtp.rtcp import SenderReport
from tests.m32net.listener.packets import PacketSource
from tests.m32net.listener.streams import noise, pcm_payloads, stream

MS = 1_000_000
START = 1_700_000_000_000_000_000


def reception() -> tuple[StreamReception, PacketSource]:
    announced = stream("L24", ((1, 2), (3,)))
    payloads = [pcm_payloads(noise(2400, n), "L24", 240) for n in (2, 1)]
    plan = StreamPlan.of(announced)
    return StreamReception(plan, LatencyMeter()), PacketSource(announced, payloads)


def feed(
    one: StreamReception, source: PacketSource, numbers: list[int], **more: object
) -> list[Packet | None]:
    found = []
    for number in numbers:
        for datagram in source.datagrams(number, START + number * 5 * MS, **more):
            found.append(one.receive(datagram.data, datagram.arrival_ns, number * 0.005))
    return found


class CountingTest(unittest.TestCase):
    def test_packets_of_both_groups(self) -> None:
        one, source = reception()
        packets = feed(one, source, list(range(30)))
        self.assertEqual([packet.group for packet in packets[:4]], [0, 1, 0, 1])
        self.assertEqual(packets[0].duration, 240)
        self.assertEqual(bytes(packets[1].payload), source.payloads[1][0])
        totals = one.totals()
        self.assertEqual((totals.packets, totals.expected, totals.lost), (60, 60, 0))
        self.assertEqual(totals.octets, 30 * (24 + 240 * 9))

    def test_loss_duplicates_and_reordering(self) -> None:
        one, source = reception()
        feed(one, source, [0, 1, 2, 5, 4, 4, 6])
        totals = one.totals()
        self.assertEqual((totals.expected, totals.packets, totals.lost), (14, 12, 2))
        self.assertEqual((totals.duplicates, totals.reordered), (2, 2))

    def test_jitter(self) -> None:
        one, source = reception()
        for number in range(400):
            late = 4 * MS if number % 2 else 0
            for datagram in source.datagrams(number, START + number * 5 * MS + late):
                one.receive(datagram.data, datagram.arrival_ns, 0.0)
        self.assertApproximates(one.jitter_ms, 4.0, 0.1)

    def test_totals_add_up(self) -> None:
        both = Totals(1, 2, 3, 4, 5, 6, 7).plus(Totals(10, 20, 30, 40, 50, 60, 70))
        self.assertEqual(both, Totals(11, 22, 33, 44, 55, 66, 77))


class RubbishTest(unittest.TestCase):
    def test_other_sources_and_payload_types(self) -> None:
        one, _ = reception()
        foreign = serialize(RtpPacket(96, 1, 2, 77, b"\0" * 6))
        wrong_type = serialize(RtpPacket(98, 1, 2, 1000, b"\0" * 6))
        wrong_length = serialize(RtpPacket(96, 1, 2, 1000, b"\0" * 7))
        for data in (foreign, wrong_type, wrong_length, b"", b"\x80" * 11):
            self.assertIsNone(one.receive(data, START, 0.0))
        self.assertEqual((one.foreign, one.malformed), (1, 4))
        self.assertFalse(one.knows(foreign))
        self.assertTrue(one.knows(wrong_type))

    @given(st.binary(max_size=80))
    def test_anything(self, data: bytes) -> None:
        one, _ = reception()
        one.receive(data, START, 0.0)
        header = serialize(RtpPacket(96, 1, 2, 1000))
        one.receive(header + data, START, 0.0)
        one.receive(bytes([0x90]) + header[1:] + data, START, 0.0)  # with an extension


class ClockTest(unittest.TestCase):
    def test_latency_from_the_time_extension(self) -> None:
        """CLK-2."""
        one, source = reception()
        one.latency.offset_ns = -250 * MS
        feed(one, source, [0], send_ns=START - 258 * MS)
        self.assertApproximates(one.latency.last_ms, 8.0, 0.001)

    def test_capture_time_from_the_sender_report(self) -> None:
        one, source = reception()
        self.assertIsNone(one.captured_ns(0))
        stamp = source.first_timestamp + 3 * 240
        report = SenderReport(1001, ntp64_from_unix_ns(START), stamp & 0xFFFF_FFFF, 0, 0)
        one.sender_reports((report,), START + MS)
        before = one.captured_ns(source.first_timestamp)
        self.assertApproximates(before - START, -15 * MS, 1000)
        after = one.captured_ns((stamp + 0x1000) & 0xFFFF_FFFF)  # over the wrap
        self.assertApproximates(after - START, 0x1000 * 1_000_000_000 / 48_000, 1000)

    def test_receiver_reports(self) -> None:
        one, source = reception()
        self.assertEqual(one.report_blocks(START), [])
        feed(one, source, [0, 1, 3], lost=frozenset({1}))
        report = SenderReport(1000, ntp64_from_unix_ns(START), 0, 0, 0)
        one.sender_reports((report,), START)
        (block,) = one.report_blocks(START + 500 * MS)
        self.assertEqual((block.ssrc, block.cumulative_lost), (1000, 1))
        self.assertEqual(block.fraction_lost, 64)
        self.assertApproximates(block.delay_since_last_sr, 32_768, 2)
