"""From slots of media time to blocks of samples: decoding, and concealing what is missing.

The jitter buffer says what to do with each moment; here it is done, once for every moment, so
that the blocks of one stream follow each other without gap or overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m32net.listener.conceal import Concealer, fade_curve
from m32net.listener.decode import Decoder, decoder_for
from m32net.listener.depacketize import GroupPlan, StreamPlan
from m32net.listener.jitter import Payload, Slot, SlotKind
from m32net.listener.thresholds import Thresholds
from protocols.errors import RemoteProtocolError

_LONGEST_BLOCK_S: Final = 1.0  # silence comes in such pieces

Block = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive samples of all channels.

    :ivar start: media time of the first sample, in RTP clock units as in the slot.
    :ivar block: shape ``(n, channels)``, int32 (PCM, full scale 2**31) or float32 (Opus).
    """

    start: int
    block: Block


class _Lane:
    """One group: its decoder and its place in the block."""

    def __init__(self, plan: StreamPlan, group: GroupPlan) -> None:
        self.group = group
        self.decoder: Decoder = decoder_for(plan, group)
        first, count = group.columns[0], len(group.columns)
        straight = group.columns == tuple(range(first, first + count))
        self.columns: Any = slice(first, first + count) if straight else list(group.columns)
        self.gap = 0  # samples concealed since the last payload


class Playout:
    """Renders the slots of one stream.

    :param plan: the stream; blocks have its channels in its order.
    :raises OpusUnavailable: it is Opus, and libopus is missing.
    :ivar concealed: samples put in for lost ones, summed over the channels.
    :ivar undecodable: payloads that could not be decoded.
    """

    def __init__(self, plan: StreamPlan, thresholds: Thresholds | None = None) -> None:
        self.plan = plan
        self.concealed = 0
        self.undecodable = 0
        self._lanes = [_Lane(plan, group) for group in plan.groups]
        self._dtype = self._lanes[0].decoder.dtype if self._lanes else np.float32
        self._concealer = Concealer(len(plan.channels), plan.sample_rate)
        self.set_thresholds(thresholds or Thresholds())

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Take other thresholds from the next gap on (STR-27)."""
        self._fade = fade_curve(self.plan.sample_rate, thresholds.interpolate_ms)
        self._concealer.set_interpolate(thresholds.interpolate_ms)

    def render(self, slot: Slot) -> Iterator[Piece]:
        """The samples of a slot; none for one that is skipped."""
        if slot.kind in (SlotKind.PLAY, SlotKind.LOST):
            yield Piece(slot.start, self._sound(slot))
            return
        for lane in self._lanes:
            lane.decoder.reset()
            lane.gap = 0
        if slot.kind is SlotKind.SKIPPED:
            self._concealer.discontinuity()
            return
        longest = round(_LONGEST_BLOCK_S * self.plan.clock_rate)
        for start in range(slot.start, slot.end, longest):
            length = min(longest, slot.end - start)
            yield Piece(start, self._concealer.silence(length, self._dtype))

    def stretch(self, samples: int) -> Block:
        """More of what was last, without media time passing: for an output about to run dry.

        :returns: shape ``(samples, channels)``; what is rendered next is joined to it.
        """
        block = np.zeros((samples, len(self.plan.channels)), self._dtype)
        return self._concealer.repair(block, np.ones(block.shape[1], bool))

    def _sound(self, slot: Slot) -> Block:
        block = np.empty((slot.duration, len(self.plan.channels)), self._dtype)
        lost: npt.NDArray[np.bool_] | None = None
        for index, lane in enumerate(self._lanes):
            payload = slot.payloads[index] if slot.payloads else None
            part = None if payload is None else self._decode(lane, payload, slot)
            if part is None:
                self.concealed += slot.duration * len(lane.group.columns)
                part = self._conceal(lane, slot)
            if part is not None:
                block[:, lane.columns] = part
                continue
            if lost is None:
                lost = np.zeros(block.shape[1], bool)
            lost[lane.columns] = True
        if lost is None:
            return self._concealer.repair(block)
        return self._concealer.repair(block, lost, self._following(slot, lost))

    def _decode(self, lane: _Lane, payload: Payload, slot: Slot) -> Block | None:
        try:
            part = lane.decoder.decode(payload, slot.duration + slot.skip)
        except RemoteProtocolError:
            self.undecodable += 1
            return None
        lane.gap = 0
        return part[slot.skip :] if slot.skip else part

    def _conceal(self, lane: _Lane, slot: Slot) -> Block | None:
        """What the codec itself can say about a lost payload, faded as the gap gets longer."""
        following = slot.following[lane.group.index] if slot.following else None
        try:
            part = lane.decoder.conceal(slot.duration, following)
        except RemoteProtocolError:
            return None
        if part is None:
            return None
        faded = np.zeros(len(part), np.float32)
        level = self._fade[lane.gap : lane.gap + len(part)]
        faded[: len(level)] = level
        lane.gap += len(part)
        faded_part: Block = part * faded[:, None]
        return faded_part

    def _following(self, slot: Slot, lost: npt.NDArray[np.bool_]) -> Block | None:
        """The block after this one, if all that is lost here is there; only PCM asks for it."""
        if not slot.following:
            return None
        block: Block | None = None
        for index, lane in enumerate(self._lanes):
            if not lost[lane.group.columns[0]]:
                continue
            payload = slot.following[index]
            if payload is None or self.plan.codec == "opus":
                return None
            try:
                samples = self.plan.duration(lane.group, payload)
                part = lane.decoder.decode(payload, samples)
            except RemoteProtocolError:
                return None
            if block is None:
                block = np.zeros((samples, len(lost)), self._dtype)
            block[:, lane.columns] = part
        return block
