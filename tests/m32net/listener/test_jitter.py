"""STR-20, STR-25, STR-26, STR-27: in order, each moment once, bounded, only what is timely."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.delay import DelaySettings, PlayoutDelay
from m32net.listener.jitter import MAX_FRAMES, JitterBuffer, Packet, Slot, SlotKind
from m32net.listener.thresholds import Thresholds

RATE = 48_000
FRAME = 240
FRAME_S = FRAME / RATE
PLAY, LOST, SILENCE, SKIPPED = SlotKind.PLAY, SlotKind.LOST, SlotKind.SILENCE, SlotKind.SKIPPED


def live(groups: int = 1, thresholds: Thresholds | None = None, **bounds: float) -> JitterBuffer:
    delay = PlayoutDelay(FRAME_S, DelaySettings(**bounds))
    return JitterBuffer(groups, RATE, FRAME, thresholds, delay)


def lossless(groups: int = 1, thresholds: Thresholds | None = None) -> JitterBuffer:
    return JitterBuffer(groups, RATE, FRAME, thresholds)


@dataclass
class Sender:
    """Packets of one stream of frames; the payload names group and frame."""

    timestamp: int = 0xFFFF_FFFF - 5 * FRAME  # wraps soon
    sequence: int = 0xFFFE
    duration: int = FRAME

    def packet(self, frame: int, group: int = 0, arrival: float | None = None) -> Packet:
        return Packet(
            group,
            (self.sequence + frame) & 0xFFFF,
            (self.timestamp + frame * self.duration) & 0xFFFF_FFFF,
            self.duration,
            b"%d/%d" % (frame, group),
            frame * FRAME_S if arrival is None else arrival,
        )


def feed(
    buffer: JitterBuffer, packets: list[Packet], until: float, step: float = 0.001
) -> list[Slot]:
    """Push packets at their arrival, pop every ms, until the given time."""
    slots = []
    waiting = sorted(packets, key=lambda one: one.arrival)
    for tick in range(round(until / step) + 1):
        now = tick * step
        while waiting and waiting[0].arrival <= now:
            buffer.push(waiting.pop(0))
        slots += buffer.pop(now)
    return slots


def played(slots: list[Slot]) -> list[int]:
    return [
        int(bytes(slot.payloads[0]).split(b"/")[0])
        for slot in slots
        if slot.kind is PLAY and slot.payloads[0]
    ]


class Checks(unittest.TestCase):
    def assert_gapless(self, slots: list[Slot]) -> None:
        """Each moment of media time is in exactly one slot."""
        for before, after in pairwise(slots):
            self.assertEqual(before.end, after.start)
        for slot in slots:
            self.assertGreater(slot.duration, 0)
            self.assertEqual(slot.kind is PLAY, bool(slot.payloads))

    def kinds(self, slots: list[Slot]) -> list[SlotKind]:
        return [slot.kind for slot in slots]


class LiveTest(Checks):
    """STR-20: in order, on time."""

    def test_in_order_over_the_wrap_of_both_counters(self) -> None:
        slots = feed(live(), [Sender().packet(i) for i in range(50)], 0.5)
        self.assertEqual(played(slots), list(range(50)))
        self.assert_gapless(slots)

    def test_reordered_and_doubled_packets(self) -> None:
        sender, buffer = Sender(), live()
        packets = [sender.packet(i) for i in range(40)]
        packets[10].arrival, packets[12].arrival = packets[12].arrival, packets[10].arrival
        packets += [sender.packet(20), sender.packet(21, arrival=0.16)]
        slots = feed(buffer, packets, 0.5)
        self.assertEqual(played(slots), list(range(40)))
        self.assertEqual(buffer.counters.duplicates, 2)
        self.assertEqual(buffer.counters.late, 0)

    def test_frames_are_played_at_even_intervals(self) -> None:
        random = np.random.default_rng(1)
        sender, buffer = Sender(), live(initial_ms=30.0)
        packets = [
            sender.packet(i, arrival=i * FRAME_S + random.random() * 0.01) for i in range(400)
        ]
        times = []
        waiting = sorted(packets, key=lambda one: one.arrival)
        now = 0.0
        while len(times) < 300:
            due = buffer.next_timer()
            arrival = waiting[0].arrival
            now = arrival if due is None else min(arrival, due)
            if now == arrival:
                buffer.push(waiting.pop(0))
            times += [now for slot in buffer.pop(now) if slot.kind is PLAY]
        self.assertLess(np.abs(np.diff(times) - FRAME_S).max(), 0.0015)

    def test_lost_frame_is_a_lost_slot_of_its_length(self) -> None:
        sender, buffer = Sender(), live()
        slots = feed(buffer, [sender.packet(i) for i in range(20) if i != 7], 0.14)
        self.assertEqual(self.kinds(slots)[:20].count(LOST), 1)
        lost = slots[7]
        self.assertEqual((lost.kind, lost.duration), (LOST, FRAME))
        self.assertEqual(lost.following, (b"8/0",))
        self.assert_gapless(slots)

    def test_missing_group_of_a_frame(self) -> None:
        sender, buffer = Sender(), live(groups=2)
        packets = [sender.packet(i, g) for i in range(20) for g in (0, 1) if (i, g) != (5, 1)]
        slots = feed(buffer, packets, 0.12)
        self.assertEqual(slots[5].payloads, (b"5/0", None))
        self.assertEqual(slots[5].following, (b"6/0", b"6/1"))
        self.assertEqual(slots[6].payloads, (b"6/0", b"6/1"))

    def test_late_packet_is_dropped_and_counted(self) -> None:
        sender, buffer = Sender(), live()
        packets = [sender.packet(i) for i in range(40)]
        packets[10].arrival += 0.1
        slots = feed(buffer, packets, 0.2)
        self.assertNotIn(10, played(slots))
        self.assertEqual(buffer.counters.late, 1)
        self.assertEqual(buffer.counters.duplicates, 0)

    def test_varying_frame_lengths(self) -> None:
        """44.1 kHz at 5 ms: 220 and 221 samples; a guess of a lost length is put right."""
        starts = [k * 441 // 2 for k in range(60)]
        packets = [
            Packet(0, k, 1000 + starts[k], starts[k + 1] - starts[k], b"%d/0" % k, k * 0.005)
            for k in range(59)
            if k not in (11, 20, 21, 22, 36)
        ]
        buffer = JitterBuffer(1, 44_100, 220, None, PlayoutDelay(0.005))
        slots = feed(buffer, packets, 0.33)
        self.assert_gapless(slots)
        whole = [slot for slot in slots if slot.kind is PLAY]
        self.assertTrue(all(slot.skip + slot.duration in (220, 221) for slot in whole))
        self.assertEqual(len(whole), 54)


class ThresholdTest(Checks):
    """STR-25, STR-27: concealed up to one threshold, left out from the other on."""

    def gap(self, length_s: float, buffer: JitterBuffer) -> list[Slot]:
        sender = Sender()
        first = 40
        after = first + round(length_s / FRAME_S)
        packets = [sender.packet(i) for i in (*range(first), *range(after, after + 40))]
        slots = feed(buffer, packets, (after + 30) * FRAME_S)
        self.assert_gapless(slots)
        self.assertEqual(played(slots)[:41], [*range(first), after])
        return slots

    def lengths(self, slots: list[Slot]) -> dict[SlotKind, float]:
        total: dict[SlotKind, float] = {}
        for slot in slots:
            total[slot.kind] = total.get(slot.kind, 0.0) + slot.duration * 1000 / RATE
        return total

    def test_short_gap_is_concealed(self) -> None:
        total = self.lengths(self.gap(0.08, live()))
        self.assertEqual(total[LOST], 80)
        self.assertNotIn(SILENCE, total)
        self.assertNotIn(SKIPPED, total)

    def test_longer_gap_ends_in_silence(self) -> None:
        total = self.lengths(self.gap(0.15, live()))
        self.assertEqual((total[LOST], total[SILENCE]), (100, 50))
        self.assertNotIn(SKIPPED, total)

    def test_gap_over_the_drop_threshold_is_left_out(self) -> None:
        total = self.lengths(self.gap(1.0, live()))
        self.assertEqual((total[LOST], total[SILENCE], total[SKIPPED]), (100, 100, 800))

    def test_other_thresholds(self) -> None:
        total = self.lengths(self.gap(1.0, live(thresholds=Thresholds(20, 50))))
        self.assertEqual((total[LOST], total[SILENCE], total[SKIPPED]), (20, 30, 950))
        buffer = live()
        buffer.set_thresholds(Thresholds(400, 500))
        self.assertEqual(self.lengths(self.gap(0.3, buffer))[LOST], 300)

    def test_after_a_standstill_only_the_newest_is_played(self) -> None:
        """STR-20: what was due long ago is skipped when the program comes to it too late."""
        sender, buffer = Sender(), live()
        for i in range(100):
            buffer.push(sender.packet(i))
        slots = buffer.pop(99 * FRAME_S)
        self.assert_gapless(slots)
        self.assertEqual(slots[0].kind, SKIPPED)
        self.assertGreater(played(slots)[0], 50)

    def test_nothing_comes_any_more(self) -> None:
        """The end of a stream is concealed, then silent, then the buffer rests."""
        slots = feed(live(), [Sender().packet(i) for i in range(20)], 3.0)
        self.assertEqual(self.lengths(slots), {PLAY: 100, LOST: 100, SILENCE: 100})


class LosslessTest(Checks):
    """For recording: at once if in order, waiting only for what is missing."""

    def test_at_once(self) -> None:
        sender, buffer = Sender(), lossless(2)
        for i in range(30):
            buffer.push(sender.packet(i, 0))
            self.assertEqual(buffer.pop(i * FRAME_S), [])
            buffer.push(sender.packet(i, 1))
            self.assertEqual(len(buffer.pop(i * FRAME_S)), 1)

    def test_late_ones_are_waited_for(self) -> None:
        sender, buffer = Sender(), lossless()
        packets = [sender.packet(i) for i in range(80)]
        packets[10].arrival += 0.19
        packets[11].arrival += 0.15
        slots = feed(buffer, packets, 0.5)
        self.assertEqual(played(slots), list(range(80)))
        self.assertEqual(set(self.kinds(slots)), {PLAY})

    def test_missing_ones_are_not_waited_for_forever(self) -> None:
        sender, buffer = Sender(), lossless()
        slots = feed(buffer, [sender.packet(i) for i in range(80) if i != 10], 0.5)
        self.assertEqual(self.kinds(slots).count(LOST), 1)
        self.assertEqual(len(slots), 80)
        self.assert_gapless(slots)

    def test_long_gap_keeps_its_length(self) -> None:
        """A gap in capture advances the time stamp; the recording stays in time."""
        sender, buffer = Sender(), lossless()
        packets = [sender.packet(i) for i in range(10)]
        for i in range(10):
            packet = sender.packet(i + 6000)  # 30 s later
            packet.sequence = (sender.sequence + 10 + i) & 0xFFFF
            packets.append(packet)
        slots = feed(buffer, packets, 31, 0.01)
        self.assert_gapless(slots)
        self.assertEqual(sum(slot.duration for slot in slots), 6010 * FRAME)
        self.assertEqual(played(slots), [*range(10), *range(6000, 6010)])

    def test_flush(self) -> None:
        sender, buffer = Sender(), lossless(2)
        for i in range(5):
            buffer.push(sender.packet(i, 0))
        buffer.pop(0.03)
        slots = buffer.flush()
        self.assertEqual(played(slots), list(range(5)))
        self.assertEqual(len(buffer), 0)


class RestartTest(Checks):
    """A sender that starts anew under the same SSRC."""

    def restarted(self, buffer: JitterBuffer) -> list[Slot]:
        old, new = Sender(), Sender(timestamp=123_456_789, sequence=77)
        packets = [old.packet(i) for i in range(20)]
        for i in range(20):
            packet = new.packet(i)
            packet.arrival += 0.4
            packet.payload = b"%d/0" % (100 + i)
            packets.append(packet)
        slots = feed(buffer, packets, 0.7)
        self.assert_gapless(slots)
        self.assertEqual(buffer.counters.restarts, 1)
        self.assertEqual(played(slots), [*range(20), *range(100, 120)])
        return slots

    def test_live(self) -> None:
        self.restarted(live())

    def test_lossless_keeps_real_time(self) -> None:
        slots = self.restarted(lossless())
        total = sum(slot.duration for slot in slots) / RATE
        self.assertApproximates(total, 0.5, 0.011)

    def test_one_stray_packet_is_no_restart(self) -> None:
        sender, buffer = Sender(), live()
        packets = [sender.packet(i) for i in range(30)]
        packets.append(Packet(0, 4711, 1 << 30, FRAME, b"999/0", 0.05))
        slots = feed(buffer, packets, 0.2)
        self.assertEqual(played(slots), list(range(30)))
        self.assertEqual((buffer.counters.restarts, buffer.counters.strays), (0, 1))


class AnyNetworkTest(Checks):
    """Any pattern of loss, delay, reordering and duplication."""

    @settings(max_examples=150, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        groups=st.integers(1, 3),
        loss=st.floats(0, 1),
        double=st.floats(0, 0.5),
        jitter=st.floats(0, 0.3),
        recording=st.booleans(),
        start=st.integers(0, 2**32 - 1),
        first_sequence=st.integers(0, 2**16 - 1),
    )
    def test_in_order_each_moment_once_bounded(
        self,
        seed: int,
        groups: int,
        loss: float,
        double: float,
        jitter: float,
        recording: bool,
        start: int,
        first_sequence: int,
    ) -> None:
        random = np.random.default_rng(seed)
        sender = Sender(start, first_sequence)
        buffer = lossless(groups) if recording else live(groups)
        packets = []
        for i in range(120):
            for g in range(groups):
                for _ in range(1 + (random.random() < double)):
                    if random.random() >= loss:
                        packets.append(sender.packet(i, g, i * FRAME_S + random.random() * jitter))
        slots = feed(buffer, packets, 1.5, 0.004)
        if recording:
            slots += buffer.flush()
        self.assert_gapless(slots)
        order = played(slots)
        self.assertEqual(order, sorted(set(order)))
        self.assertEqual(len(buffer), 0)
        counters = buffer.counters
        kept = sum(payload is not None for slot in slots for payload in slot.payloads)
        dropped = counters.late + counters.duplicates + counters.overflow + counters.malformed
        if not counters.skipped_time:
            self.assertEqual(kept + dropped, len(packets))
        if recording and jitter < 0.19 and not counters.late:
            self.assertEqual(kept + counters.duplicates, len(packets))

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.integers(0, 2**16 - 1),
                st.integers(0, 2**32 - 1) | st.integers(0, 3000),
                st.integers(-10, 50_000),
                st.floats(0, 1),
            ),
            max_size=150,
        ),
        st.booleans(),
    )
    def test_rubbish_is_survived(
        self, packets: list[tuple[int, int, int, int, float]], recording: bool
    ) -> None:
        buffer = lossless(2) if recording else live(2)
        slots = []
        for number, (group, sequence, timestamp, duration, arrival) in enumerate(packets):
            buffer.push(Packet(group, sequence, timestamp, duration, b"0/0", arrival))
            if number % 3 == 0:
                slots += buffer.pop(arrival + 0.02)
        slots += buffer.pop(100.0)
        self.assert_gapless(slots)
        self.assertLessEqual(len(buffer), MAX_FRAMES)

    def test_flood_is_bounded(self) -> None:
        buffer = lossless(2)
        for i in range(5000):
            buffer.push(Packet(0, i & 0xFFFF, i * 7, 7, b"", 0.0))
        self.assertEqual(len(buffer), MAX_FRAMES)
        self.assertEqual(buffer.counters.overflow, 5000 - MAX_FRAMES)
        self.assertGreater(len(buffer.flush()), 100)
