"""STR-20, STR-25: packets in, samples out: each channel in its place, gaps filled, no clicks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener.depacketize import StreamPlan
from m32net.listener.jitter import JitterBuffer, Packet, Slot, SlotKind
from m32net.listener.playout import Playout
from m32net.listener.thresholds import Thresholds
from tests.m32net.listener.streams import noise, opus_payloads, pcm_payloads, stream, tones

FRAME = 240
GROUPS = ((1, 2, 3), (4, 5))


def signal_of(codec: str, frames: int) -> np.ndarray:
    if codec == "opus":
        return tones(frames * FRAME, 5)
    return noise(frames * FRAME, 5) >> 16 << 16 if codec == "L16" else noise(frames * FRAME, 5)


def play(
    codec: str,
    signal: np.ndarray,
    lost: set[tuple[int, int]],
    wanted: tuple[int, ...] | None = None,
    thresholds: Thresholds | None = None,
) -> tuple[np.ndarray, Playout]:
    """Everything through a lossless buffer, with some (frame, group) lost."""
    plan = StreamPlan.of(stream(codec, GROUPS), wanted)
    buffer = JitterBuffer(2, 48_000, FRAME, thresholds)
    playout = Playout(plan, thresholds)
    payloads = [
        opus_payloads(signal[:, part])
        if codec == "opus"
        else pcm_payloads(signal[:, part], codec, FRAME)
        for part in (slice(0, 3), slice(3, 5))
    ]
    blocks = []
    for number in range(len(payloads[0])):
        for group in plan.groups:
            payload = payloads[group.index][number]
            if (number, group.index) not in lost:
                duration = plan.duration(group, payload)
                stamp = (2**32 - 3000 + number * FRAME) % 2**32
                buffer.push(Packet(group.index, number, stamp, duration, payload, number * 0.005))
        for slot in buffer.pop(number * 0.005):
            blocks += [piece.block for piece in playout.render(slot)]
    for slot in buffer.flush():
        blocks += [piece.block for piece in playout.render(slot)]
    return np.concatenate(blocks), playout


class PcmTest(unittest.TestCase):
    def test_bit_exact(self) -> None:
        for codec in ("L16", "L24"):
            signal = signal_of(codec, 30)
            out, playout = play(codec, signal, set())
            self.assertTrue(np.array_equal(out, signal))
            self.assertEqual(playout.concealed, 0)

    def test_order_asked_for(self) -> None:
        signal = signal_of("L24", 10)
        out, _ = play("L24", signal, set(), wanted=(5, 3))
        self.assertTrue(np.array_equal(out, signal[:, [4, 2, 0, 1, 3]]))

    def test_lost_group_touches_only_its_channels(self) -> None:
        signal = signal_of("L24", 30)
        out, playout = play("L24", signal, {(10, 1), (11, 1), (20, 1)})
        self.assertTrue(np.array_equal(out[:, :3], signal[:, :3]))
        self.assertEqual(len(out), len(signal))
        self.assertFalse(
            np.array_equal(out[10 * FRAME : 12 * FRAME, 3:], signal[10 * FRAME : 12 * FRAME, 3:])
        )
        self.assertEqual(playout.concealed, 3 * FRAME * 2)

    def test_interpolated_frame_leaves_its_neighbours(self) -> None:
        signal = signal_of("L24", 30)
        out, _ = play("L24", signal, {(10, 0), (10, 1)})
        keep = np.r_[0 : 10 * FRAME, 11 * FRAME : len(signal)]
        self.assertTrue(np.array_equal(out[keep], signal[keep]))

    def test_long_gap_keeps_time(self) -> None:
        signal = signal_of("L24", 200)
        lost = {(number, group) for number in range(20, 150) for group in (0, 1)}
        out, _ = play("L24", signal, lost)
        self.assertEqual(len(out), len(signal))
        self.assertEqual(np.abs(out[60 * FRAME : 149 * FRAME]).max(), 0)
        self.assertTrue(np.array_equal(out[151 * FRAME :], signal[151 * FRAME :]))

    @settings(max_examples=25, deadline=None)
    @given(st.sets(st.tuples(st.integers(0, 38), st.integers(0, 1)), max_size=60))
    def test_any_loss_keeps_time(self, lost: set[tuple[int, int]]) -> None:
        first = min((n for n in range(40) if not {(n, 0), (n, 1)} <= lost), default=40)
        out, _ = play("L24", signal_of("L24", 40), lost)
        self.assertEqual(len(out), (40 - first) * FRAME)


class OpusTest(unittest.TestCase):
    def test_channels_and_concealment(self) -> None:
        signal = signal_of("opus", 100)
        clean, _ = play("opus", signal, set())
        out, playout = play("opus", signal, {(40, 0), (40, 1), (60, 1)})
        self.assertEqual(out.shape, signal.shape)
        self.assertEqual(out.dtype, np.float32)
        self.assertEqual(playout.concealed, FRAME * 7)
        spectrum = np.abs(np.fft.rfft(clean[4800:14_400] * np.hanning(9600)[:, None], axis=0))
        self.assertEqual((spectrum.argmax(axis=0) * 5).tolist(), [100, 200, 300, 400, 500])
        slope = np.abs(np.diff(clean, axis=0)).max(axis=0)
        self.assertTrue((np.abs(np.diff(out, axis=0)).max(axis=0) < 1.5 * slope).all())
        self.assertGreater(np.abs(out[40 * FRAME : 41 * FRAME]).max(), 0.1)

    def test_long_gap_is_faded_to_silence(self) -> None:
        signal = signal_of("opus", 200)
        lost = {(number, group) for number in range(50, 120) for group in (0, 1)}
        out, _ = play("opus", signal, lost, thresholds=Thresholds(50, 100))
        self.assertEqual(len(out), len(signal))
        self.assertEqual(np.abs(out[60 * FRAME : 119 * FRAME]).max(), 0)
        self.assertLess(np.abs(np.diff(out, axis=0)).max(), 0.05)
        self.assertGreater(np.abs(out[122 * FRAME :]).max(), 0.2)


class RubbishTest(unittest.TestCase):
    def test_undecodable_is_concealed(self) -> None:
        for codec in ("opus", "L24"):
            plan = StreamPlan.of(stream(codec, ((1, 2),)))
            playout = Playout(plan)
            slot = Slot(SlotKind.PLAY, 0, FRAME, 0, (b"\xff\xff\xff\xff\xff",))
            pieces = list(playout.render(slot))
            self.assertEqual(pieces[0].block.shape, (FRAME, 2))
            self.assertEqual(np.abs(pieces[0].block).max(), 0)
            self.assertEqual(playout.undecodable, 1)

    def test_long_silence_comes_in_pieces(self) -> None:
        playout = Playout(StreamPlan.of(stream()))
        pieces = list(playout.render(Slot(SlotKind.SILENCE, 0, 48_000 * 5 + 7)))
        self.assertEqual(sum(len(piece.block) for piece in pieces), 48_000 * 5 + 7)
        self.assertEqual(pieces[1].start, 48_000)
        self.assertEqual(list(playout.render(Slot(SlotKind.SKIPPED, 0, 100))), [])
