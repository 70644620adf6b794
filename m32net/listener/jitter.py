"""The jitter buffer: packets in as they come, frames out in order, each when it is to be played.

All groups of channels of a listener share the time stamps, so a frame is all groups of one time
stamp.  What comes out is a gapless sequence of :class:`Slot` values: every moment of media time is
in exactly one of them, played, concealed, silent or skipped.  A live buffer plays what is timely
(STR-20) at the times of :class:`~m32net.listener.delay.PlayoutDelay`; a lossless one, for
recording, gives a frame as soon as it is next in order and waits only where something is missing.
No clock is read and nothing is decoded here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from m32net.listener.delay import PlayoutDelay
from m32net.listener.thresholds import Thresholds
from protocols.serial import Unwrapper

MAX_FRAMES: Final = 1024
"""Frames held at most (5 s at 5 ms); beyond, packets are refused and counted."""
HORIZON_S: Final = 5.0
"""A time stamp further than this from the last one belongs to a restarted stream."""
MAX_SILENCE_S: Final = 3600.0
"""Longest pause a lossless buffer bridges; after a longer one time goes on without it."""
_REMEMBERED: Final = 64

Payload = bytes | memoryview


class SlotKind(Enum):
    """What to do with a piece of media time.

    ``PLAY``: the payloads; of groups that are None, conceal the channels.  ``LOST``: conceal all.
    ``SILENCE``: fade out, then be silent.  ``SKIPPED``: put out nothing; what follows fades in.
    """

    PLAY = "play"
    LOST = "lost"
    SILENCE = "silence"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of media time.

    :ivar start: RTP time of its first sample, unwrapped.
    :ivar duration: in units of the RTP clock; for ``PLAY`` that of the payloads less ``skip``.
    :ivar skip: samples at the head of the payloads that were concealed already.
    :ivar payloads: one a group; empty but for ``PLAY``.
    :ivar following: payloads of the frame that begins where this slot ends, if it is here and
        something in this slot is to be concealed; else empty.
    """

    kind: SlotKind
    start: int
    duration: int
    skip: int = 0
    payloads: tuple[Payload | None, ...] = ()
    following: tuple[Payload | None, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.duration


@dataclass(slots=True)
class Packet:
    """One group of channels of one frame, as it came.

    :ivar group: 0-based number of the group.
    :ivar sequence: RTP sequence number, 16 bits.
    :ivar timestamp: RTP time stamp, 32 bits.
    :ivar duration: of the payload, in RTP clock units.
    :ivar payload: kept until its slot is out; must not change.
    :ivar arrival: in s on the clock of :meth:`JitterBuffer.pop`.
    """

    group: int
    sequence: int
    timestamp: int
    duration: int
    payload: Payload
    arrival: float


@dataclass(slots=True)
class JitterCounters:
    """What happened so far; ``late`` to ``strays`` count packets, ``*_time`` RTP clock units."""

    late: int = 0
    duplicates: int = 0
    overflow: int = 0
    malformed: int = 0
    strays: int = 0
    restarts: int = 0
    lost_time: int = 0
    silent_time: int = 0
    skipped_time: int = 0


@dataclass(slots=True)
class _Frame:
    duration: int
    payloads: list[Payload | None]
    missing: int
    first_arrival: float
    last_arrival: float


@dataclass(slots=True)
class _Released:
    """Which groups of the last frames were put out, to tell a duplicate from a late packet."""

    groups: dict[int, list[Payload | None]] = field(default_factory=dict)
    order: deque[int] = field(default_factory=deque)

    def note(self, start: int, payloads: list[Payload | None]) -> None:
        self.groups[start] = payloads
        self.order.append(start)
        if len(self.order) > _REMEMBERED:
            self.groups.pop(self.order.popleft(), None)

    def had(self, start: int, group: int) -> bool:
        payloads = self.groups.get(start)
        return payloads is not None and payloads[group] is not None


class JitterBuffer:
    """Orders the frames of one listener.

    :param groups: how many groups of channels there are.
    :param clock_rate: units per second of the time stamps.
    :param frame: usual length of a frame in these units.
    :param delay: when frames are played; None makes the buffer lossless.
    """

    def __init__(
        self,
        groups: int,
        clock_rate: int,
        frame: int,
        thresholds: Thresholds | None = None,
        delay: PlayoutDelay | None = None,
    ) -> None:
        self.groups = groups
        self.clock_rate = clock_rate
        self.delay = delay
        self.counters = JitterCounters()
        self._frame = max(1, frame)
        self._unwrapper = Unwrapper(32)
        self._frames: dict[int, _Frame] = {}
        self._released = _Released()
        self._suspects: dict[int, Packet] = {}
        self._expected: int | None = None  # where the next slot begins
        self._played_until = 0  # end of the last slot that was played
        self._last_arrival = 0.0
        self._offset = 0  # from unwrapped time stamps to media time, after restarts
        self._starved = False
        self.set_thresholds(thresholds or Thresholds())

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Take other thresholds from now on (STR-27)."""
        self._interpolate = round(thresholds.interpolate_ms * self.clock_rate / 1000)
        self._drop = round(thresholds.drop_ms * self.clock_rate / 1000)
        self._drop_s = thresholds.drop_ms / 1000

    def __len__(self) -> int:
        return len(self._frames)

    def timestamp_of(self, moment: int) -> int:
        """RTP time stamp of a moment of a slot."""
        return (moment - self._offset) & 0xFFFF_FFFF

    # -- packets in

    def push(self, packet: Packet) -> None:
        """Take a packet in; one that is late, twice or out of line is counted and dropped."""
        if not 0 < packet.duration <= self.clock_rate:
            self.counters.malformed += 1
            return
        start = self._unwrapper.peek(packet.timestamp)
        newest = self._unwrapper.newest
        if newest is not None and abs(start - newest) > HORIZON_S * self.clock_rate:
            self._suspect(packet)
            return
        self._accept(packet)

    def _accept(self, packet: Packet) -> None:
        start = self._unwrapper.unwrap(packet.timestamp) + self._offset
        self._last_arrival = packet.arrival
        if self._expected is not None and start + packet.duration <= self._expected:
            self._too_late(packet, start)
            return
        frame = self._frames.get(start)
        if frame is None:
            if len(self._frames) >= MAX_FRAMES:
                self.counters.overflow += 1
                return
            empty: list[Payload | None] = [None] * self.groups
            frame = _Frame(packet.duration, empty, self.groups, packet.arrival, packet.arrival)
            self._frames[start] = frame
        if frame.payloads[packet.group] is not None:
            self.counters.duplicates += 1
            return
        if frame.duration != packet.duration:
            self.counters.malformed += 1
            return
        frame.payloads[packet.group] = packet.payload
        frame.missing -= 1
        frame.last_arrival = packet.arrival
        if self.delay is not None and not (frame.missing and self.delay.started):
            self.delay.observe(start / self.clock_rate, packet.arrival)

    def _too_late(self, packet: Packet, start: int) -> None:
        if self._released.had(start, packet.group):
            self.counters.duplicates += 1
            return
        self.counters.late += 1
        if self.delay is not None:
            self.delay.observe(start / self.clock_rate, packet.arrival)

    def _suspect(self, packet: Packet) -> None:
        """A time stamp far out of line is believed when the group's next packet confirms it."""
        before = self._suspects.get(packet.group)
        self._suspects[packet.group] = packet
        if before is None or packet.sequence != (before.sequence + 1) & 0xFFFF:
            self.counters.strays += 1
            return
        self.counters.restarts += 1
        self.counters.strays -= len(self._suspects)
        suspects, self._suspects = self._suspects, {}
        self._rebase(before)
        for one in (before, *suspects.values()):
            self._accept(one)

    def _rebase(self, first: Packet) -> None:
        """Let a new time base, or one that jumped, go on where the old one ended.

        The pause between is the jump itself if as much real time has passed (a gap in capture),
        else the real time (a restarted sender).
        """
        newest = self._unwrapper.newest
        assert newest is not None
        jump = self._unwrapper.peek(first.timestamp) - newest
        elapsed = round((first.arrival - self._last_arrival) * self.clock_rate)
        if abs(jump - elapsed) > 2 * self.clock_rate:
            jump = max(self._frame, elapsed)
        self._offset += newest + jump - first.timestamp
        self._unwrapper = Unwrapper(32)

    # -- slots out

    def pop(self, now: float) -> list[Slot]:
        """The slots that are due, in order.

        :param now: in s, on the clock of the arrivals.
        """
        slots = []
        while (slot := self._next(now)) is not None:
            slots.append(slot)
        return slots

    def flush(self) -> list[Slot]:
        """All that a lossless buffer holds, without waiting: the stream has ended."""
        assert self.delay is None
        slots = []
        while self._frames and (slot := self._next(math.inf)) is not None:
            slots.append(slot)
        return slots

    def next_timer(self) -> float | None:
        """When :meth:`pop` should be called next; None: after the next packet."""
        if self.delay is None:
            return self._patience() if self._frames else None
        if self._expected is not None and not self._starved:
            return self.delay.due(self._expected / self.clock_rate)
        return self.delay.due(min(self._frames) / self.clock_rate) if self._frames else None

    def _next(self, now: float) -> Slot | None:
        if self._expected is None or self._starved:
            if not self._frames:
                return None
            first = min(self._frames)
            if not self._is_time(first, now):
                return None
            if self._expected is None:
                self._expected = self._played_until = first
            self._starved = False
            if first > self._expected:
                return self._skip(first)
        if not self._is_time(self._expected, now):
            return None
        start = self._holding(self._expected)
        return self._missing() if start is None else self._play(start, now)

    def _is_time(self, start: int, now: float) -> bool:
        """Whether the slot that begins at ``start`` is to be put out now."""
        if self.delay is not None:
            return now >= self.delay.due(start / self.clock_rate)
        frame = self._frames.get(start)
        if frame is not None and not frame.missing:
            return True
        return bool(self._frames) and now >= self._patience()

    def _patience(self) -> float:
        """Until when a lossless buffer waits for what is missing."""
        return min(frame.first_arrival for frame in self._frames.values()) + self._drop_s

    def _holding(self, moment: int) -> int | None:
        """Start of the frame in which ``moment`` is; None if that is missing."""
        if moment in self._frames:
            return moment
        inside = [
            start
            for start, frame in self._frames.items()
            if start < moment < start + frame.duration
        ]
        return max(inside, default=None)

    def _play(self, start: int, now: float) -> Slot:
        assert self._expected is not None
        frame = self._frames.pop(start)
        end = start + frame.duration
        if self.delay is not None:
            if frame.missing:
                self.delay.observe(start / self.clock_rate, frame.last_arrival)
            if now > self.delay.due(end / self.clock_rate) + self._drop_s:
                return self._skip(end)  # played so late it would only delay what is timely
        slot = Slot(
            SlotKind.PLAY,
            self._expected,
            end - self._expected,
            self._expected - start,
            tuple(frame.payloads),
            self._following(end) if frame.missing else (),
        )
        self._released.note(start, frame.payloads)
        self._played_until = end
        return self._advance(slot)

    def _missing(self) -> Slot | None:
        """Nothing is there for this moment: conceal, be silent, or skip to what is there."""
        assert self._expected is not None
        gap = self._expected - self._played_until
        later = min((start for start in self._frames if start > self._expected), default=None)
        if self.delay is not None and gap >= self._drop:
            self._starved = later is None
            return None if later is None else self._skip(later)
        room = self._frame if later is None else later - self._expected
        if gap < self._interpolate:
            self.counters.lost_time += min(self._frame, room)
            end = self._expected + min(self._frame, room)
            return self._slot(SlotKind.LOST, end, self._following(end))
        if self.delay is None:
            longest = round(MAX_SILENCE_S * self.clock_rate) - gap
            if longest <= 0:
                return self._skip(self._expected + room)
            end = self._expected + min(room, longest)
        else:
            end = self._expected + min(self._frame, room)
        self.counters.silent_time += end - self._expected
        return self._slot(SlotKind.SILENCE, end)

    def _skip(self, end: int) -> Slot:
        assert self._expected is not None
        self.counters.skipped_time += end - self._expected
        self._played_until = end
        return self._slot(SlotKind.SKIPPED, end)

    def _slot(self, kind: SlotKind, end: int, following: tuple[Payload | None, ...] = ()) -> Slot:
        assert self._expected is not None
        return self._advance(Slot(kind, self._expected, end - self._expected, following=following))

    def _advance(self, slot: Slot) -> Slot:
        self._expected = slot.end
        for start in [start for start in self._frames if self._ends(start) <= slot.end]:
            del self._frames[start]  # overlapped by what was put out
        return slot

    def _ends(self, start: int) -> int:
        return start + self._frames[start].duration

    def _following(self, end: int) -> tuple[Payload | None, ...]:
        frame = self._frames.get(end)
        return () if frame is None else tuple(frame.payloads)
