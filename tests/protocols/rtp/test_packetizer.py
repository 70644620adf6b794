"""STR-52: groups of equal size, headers of many streams at once, the extension's timetable."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import LocalProtocolError
from protocols.rtp.extension import EventFlags, ntp64_from_unix_ns, time_extension
from protocols.rtp.packet import parse
from protocols.rtp.packetizer import (
    EXTENDED_BYTES,
    MAX_PARTS,
    ExtensionSchedule,
    Group,
    HeaderTable,
    bundle_bytes,
    fewest_parts,
    payload_type_of,
    plan_groups,
    plan_parts,
)


class PlanTests(SynchronousTestCase):
    def test_the_usual(self) -> None:
        """32 channels of Opus at 96 kb/s and 5 ms: 23 would fit, 16 + 16 is balanced."""
        groups = plan_groups(range(1, 33), 60, "bundle", None, 1444, opus=True)
        self.assertEqual(groups, (tuple(range(1, 17)), tuple(range(17, 33))))

    def test_mono_and_limits(self) -> None:
        self.assertEqual(plan_groups([3, 1], 60, "mono", None, 1444, opus=True), ((3,), (1,)))
        self.assertEqual(plan_groups([], 60, "bundle", None, 1444, opus=True), ())
        eight = plan_groups(range(1, 33), 60, "bundle", 8, 1444, opus=True)
        self.assertEqual([len(g) for g in eight], [8, 8, 8, 8])
        self.assertEqual(
            plan_groups([1, 2, 3], 480, "bundle", None, 1440, opus=False), ((1, 2, 3),)
        )
        self.assertEqual(
            plan_groups([1, 2, 3], 480, "bundle", None, 1439, opus=False), ((1, 2), (3,))
        )
        self.assertRaises(
            LocalProtocolError, plan_groups, [1], 2000, "mono", None, 1444, opus=False
        )

    @given(
        st.lists(st.integers(1, 64), min_size=1, max_size=64, unique=True),
        st.integers(1, 1276),
        st.none() | st.integers(1, 64),
        st.booleans(),
    )
    def test_always(
        self, channels: list[int], channel_bytes: int, limit: int | None, opus: bool
    ) -> None:
        groups = plan_groups(channels, channel_bytes, "bundle", limit, 1444, opus=opus)
        self.assertEqual([c for g in groups for c in g], channels)
        sizes = [len(group) for group in groups]
        self.assertEqual(set(sizes[:-1]) | {sizes[0]}, {sizes[0]})
        self.assertLessEqual(sizes[-1], sizes[0])
        self.assertLessEqual(sizes[0], limit or 64)
        self.assertLessEqual(bundle_bytes(sizes[0], channel_bytes, opus=opus), 1444)
        most = next(
            n
            for n in range(len(channels), 0, -1)
            if n <= (limit or 64) and bundle_bytes(n, channel_bytes, opus=opus) <= 1444
        )
        self.assertEqual(len(groups), -(-len(channels) // most))

    def test_parts(self) -> None:
        """8 channels of L24 at 48 kHz and 5 ms are 5,760 bytes: four packets of 1,440."""
        eights = tuple(tuple(range(at, at + 8)) for at in (1, 9, 17, 25))
        self.assertEqual(plan_parts(range(1, 33), 240, 3, 8, 1444), (eights, 4))
        self.assertEqual(plan_parts(range(1, 33), 240, 2, 8, 1444), (eights, 3))
        self.assertEqual(plan_parts(range(1, 33), 120, 2, 6, 1440)[1], 1)
        self.assertEqual(plan_parts([], 240, 3, 8, 1444), ((), 1))
        groups, parts = plan_parts(range(1, 21), 240, 3, 8, 1444)
        self.assertEqual(([len(group) for group in groups], parts), ([7, 7, 6], 4))

    def test_parts_divide_the_frame(self) -> None:
        """60 samples would fit, but of 220 the next smaller part is 55; 221 is 13 x 17."""
        self.assertEqual(fewest_parts(220, 24, 1444), 4)
        self.assertEqual(fewest_parts(221, 24, 1444), 13)
        self.assertEqual(fewest_parts(223, 6, 1444), 1)
        self.assertIsNone(fewest_parts(223, 24, 1444))

    def test_fewer_channels_where_no_parts_fit(self) -> None:
        """10 ms of 32 channels would be 32 parts; of 16 it is 16."""
        groups, parts = plan_parts(range(1, 33), 480, 3, 32, 1444)
        self.assertEqual(([len(group) for group in groups], parts), ([16, 16], 16))
        groups, parts = plan_parts([1, 2, 3], 223, 3, 3, 1444)
        self.assertEqual((groups, parts), (((1, 2), (3,)), 1))
        self.assertRaises(LocalProtocolError, plan_parts, [1], 997, 3, 8, 1444)

    @given(
        st.lists(st.integers(1, 64), min_size=1, max_size=64, unique=True),
        st.sampled_from((60, 80, 120, 160, 240, 320, 441, 480)),
        st.sampled_from((2, 3)),
        st.integers(1, 64),
    )
    def test_parts_always(
        self, channels: list[int], samples: int, width: int, max_group: int
    ) -> None:
        groups, parts = plan_parts(channels, samples, width, max_group, 1444)
        self.assertEqual([c for g in groups for c in g], channels)
        size = len(groups[0])
        self.assertEqual({len(group) for group in groups[:-1]} | {size}, {size})
        self.assertLessEqual(len(groups[-1]), size)
        self.assertLessEqual(size, max_group)
        self.assertIn(parts, range(1, MAX_PARTS + 1))
        self.assertEqual(samples % parts, 0)
        self.assertLessEqual(samples // parts * size * width, 1444)
        for fewer in range(1, parts):
            self.assertTrue(samples % fewer or samples // fewer * size * width > 1444)

    def test_payload_types(self) -> None:
        self.assertEqual(
            [payload_type_of(c, "bundle") for c in ("opus", "L16", "L24")], [97, 98, 96]
        )
        self.assertEqual(payload_type_of("opus", "mono"), 99)


class HeaderTests(SynchronousTestCase):
    def sent(self, table: HeaderTable) -> list[bytes]:
        raw = table.slots.view(np.uint8).reshape(len(table), 32)
        return [
            row[:length].tobytes() for row, length in zip(raw, table.lengths.tolist(), strict=True)
        ]

    def test_headers_are_rtp(self) -> None:
        table = HeaderTable.of(
            [Group(0xDEADBEEF, 97, 5004, (1, 2), 65_535), Group(7, 96, 5004, (3,), 0)]
        )
        for frame in range(3):
            table.advance((1 << 32) - 240 + 240 * frame)
            first, second = map(parse, self.sent(table))
            self.assertEqual(
                (first.ssrc, first.payload_type, first.sequence_number, first.marker),
                (0xDEADBEEF, 97, (65_535 + frame) & 0xFFFF, False),
            )
            self.assertEqual((second.ssrc, second.sequence_number), (7, frame))
            self.assertEqual(first.timestamp, (240 * frame - 240) & 0xFFFF_FFFF)
            self.assertEqual(second.timestamp, first.timestamp)

    def test_parts_of_a_frame(self) -> None:
        """Numbers run on by one from packet to packet, time stamps by a part; both wrap."""
        table = HeaderTable.of(
            [Group(5, 96, 5004, (1,), 65_530, parts=4), Group(7, 96, 5004, (2,), 9)]
        )
        self.assertEqual(
            (table.parts.tolist(), table.part.tolist()), ([4] * 4 + [1], [0, 1, 2, 3, 0])
        )
        table.space(240)
        start = (1 << 32) - 300
        for frame in range(4):
            table.advance(start + 240 * frame)
            *parts, whole = map(parse, self.sent(table))
            for at, packet in enumerate(parts):
                number = 4 * frame + at
                self.assertEqual(packet.ssrc, 5)
                self.assertEqual(packet.sequence_number, (65_530 + number) & 0xFFFF)
                self.assertEqual(packet.timestamp, (start + 60 * number) & 0xFFFF_FFFF)
            self.assertEqual((whole.ssrc, whole.sequence_number), (7, 9 + frame))
            self.assertEqual(whole.timestamp, (start + 240 * frame) & 0xFFFF_FFFF)

    def test_streams_with_parts_among_others(self) -> None:
        """Joining and leaving: the divided streams go on, and so do the others without them."""
        table = HeaderTable.of([Group(1, 96, 5004, (1,), 0)])
        table.advance(0)
        table = HeaderTable.joined(
            [table, HeaderTable.of([Group(2, 96, 5004, (1,), 100, parts=3)])], np.ones(4, np.bool_)
        )
        for frame in range(2):
            table.space(120)
            table.advance(frame)
        got = [(p.ssrc, p.sequence_number, p.timestamp) for p in map(parse, self.sent(table))]
        self.assertEqual(got, [(1, 2, 1), (2, 103, 1), (2, 104, 41), (2, 105, 81)])
        table = HeaderTable.joined([table], np.array([True, False, False, False]))
        self.assertFalse(table.divided)
        table.space(120)
        table.advance(7)
        (packet,) = map(parse, self.sent(table))
        self.assertEqual((packet.sequence_number, packet.timestamp), (3, 7))

    def test_extension_on_some(self) -> None:
        table = HeaderTable.of([Group(n, 97, 5004, (1,), n) for n in range(4)])
        table.advance(1)
        rows = np.array([1, 3])
        table.extend(rows, np.array([1, 5], np.uint8))
        table.stamp(rows, ntp64_from_unix_ns(1_700_000_000_123_456_789))
        self.assertEqual(table.lengths.tolist(), [12, EXTENDED_BYTES, 12, EXTENDED_BYTES])
        found = [time_extension(parse(data)) for data in self.sent(table)]
        self.assertEqual(
            [e and e.send_time_ns for e in found], [None, 1_700_000_000_123_456_789] * 2
        )
        self.assertEqual([int(e.flags) for e in found if e], [1, 5])
        table.plain(rows[:1])
        self.assertEqual([len(d) for d in self.sent(table)], [12, 12, 12, 28])

    def test_joining_and_leaving_change_nothing_for_the_others(self) -> None:
        """np.concatenate would turn network byte order into native: the wire must not change."""
        table = HeaderTable.of([Group(0x01020304 + n, 97, 5004, (1,), 500 + n) for n in range(4)])
        for frame in range(5):
            table.advance(frame)
        table.extend(np.array([2]), 1)
        table.stamp(np.array([2]), 0x0102030405060708)
        before = self.sent(table)
        new = HeaderTable.of([Group(9, 97, 5004, (1,), 65_000)])
        joined = HeaderTable.joined([table, new], np.array([True, False, True, True, True]))
        self.assertEqual(self.sent(joined)[:3], [before[0], before[2], before[3]])
        joined.advance(99)
        numbers = [parse(data).sequence_number for data in self.sent(joined)]
        self.assertEqual(numbers, [505, 507, 508, 65_000])


class ScheduleTests(SynchronousTestCase):
    def frames_of(self, schedule: ExtensionSchedule, key: str, frames: range) -> list[int]:
        carried = []
        for frame in frames:
            schedule.step(frame)
            if key in schedule.running:
                carried.append(frame)
        return carried

    def test_first_three_then_three_every_interval(self) -> None:
        schedule = ExtensionSchedule(1000)
        schedule.step(41)
        schedule.join("a")
        schedule.join("b")
        got = self.frames_of(schedule, "b", range(42, 4042))
        self.assertEqual(got[:3], [42, 43, 44])
        later = got[3:]
        self.assertEqual(len(later), 12)
        for run in range(0, 12, 3):
            first = later[run]
            self.assertEqual(later[run : run + 3], [first, first + 1, first + 2])
        self.assertEqual({b - a for a, b in zip(later, later[3:], strict=False)}, {1000})

    def test_staggered(self) -> None:
        schedule = ExtensionSchedule(1000)
        for n in range(100):
            schedule.join(n)
        most = 0
        for frame in range(3, 2000):
            schedule.step(frame)
            if frame > 6:
                most = max(most, len(schedule.running))
        self.assertLess(most, 5)

    def test_what_step_tells(self) -> None:
        schedule = ExtensionSchedule(1000)
        schedule.join("x")  # phase 0
        schedule.step(0)
        schedule.join("a")
        self.assertEqual(schedule.step(1), [])
        self.assertIsNone(schedule.step(2))
        self.assertEqual(schedule.step(3), ["x"])
        self.assertEqual(schedule.step(4), ["a"])
        self.assertIsNone(schedule.step(5))

    def test_leaving_in_any_state(self) -> None:
        schedule = ExtensionSchedule(10)
        schedule.join("a")
        schedule.leave("a")
        self.assertIsNone(schedule.step(0))
        schedule.join("b")
        schedule.step(1)
        schedule.leave("b")
        self.assertEqual(schedule.running, {})
        self.assertIsNone(schedule.step(2))
        self.assertRaises(KeyError, schedule.leave, "b")

    def test_announced_flags(self) -> None:
        schedule = ExtensionSchedule(1000)
        schedule.join("a")
        for frame in range(10, 20):
            schedule.step(frame)
        schedule.announce("a", EventFlags.CONTROL_MESSAGE)
        schedule.announce("a", EventFlags.STATUS_UPDATE)
        schedule.step(20)
        self.assertEqual(schedule.running, {"a": EventFlags(7)})
        self.assertEqual(self.frames_of(schedule, "a", range(21, 30)), [21, 22])

    def test_an_announcement_during_a_run_prolongs_it(self) -> None:
        schedule = ExtensionSchedule(1000)
        schedule.join("a")
        schedule.step(10)
        schedule.step(11)
        schedule.announce("a", EventFlags.STATUS_UPDATE)
        self.assertEqual(self.frames_of(schedule, "a", range(12, 30)), [12, 13, 14])
