"""PCM is bit-exact; frames carry the media time, duration and capture time they should."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from twisted.trial import unittest

from m32net.audio.encoder import Encoding, FrameEncoder, open_encoder
from m32net.audio.frame import AudioFrame, EncodedFrame
from m32net.audio.window import FrameWindow
from m32net.streaming.profile import CODECS, FRAME_US, SAMPLE_RATES, Profile
from protocols.rtp.payload import wire_to_pcm
from tests.support.audio import UNIX_2025, opus, pattern, pcm


def finished(encoding: Encoding) -> EncodedFrame:
    for job in encoding.jobs:
        job()
    return encoding.finish()


def feed(encoder: FrameEncoder, samples: np.ndarray, first: int = 0) -> EncodedFrame:
    window = FrameWindow(samples.shape[1])
    window.floats_wanted = True
    captured = UNIX_2025 + first * 1_000_000 // 48
    window.put(AudioFrame(samples, first, captured))
    return finished(encoder.begin(window, 77))


class PcmTests(unittest.TestCase):
    @settings(max_examples=50, deadline=None)
    @given(hnp.arrays(np.int32, (240, 3), elements=st.integers(-(2**23), 2**23 - 1)))
    def test_l24_is_bit_exact(self, samples: np.ndarray) -> None:
        """Any 24-bit samples: what is decoded is what was captured."""
        frame = feed(open_encoder(pcm("L24"), 3), samples << 8)
        self.assertEqual(frame.payload.shape, (240, 3, 3))
        back = wire_to_pcm(frame.payload.tobytes(), 3, 3)
        np.testing.assert_array_equal(back, samples << 8)

    @settings(max_examples=50, deadline=None)
    @given(hnp.arrays(np.int32, (240, 3), elements=st.integers(-(2**15), 2**15 - 1)))
    def test_l16_is_bit_exact(self, samples: np.ndarray) -> None:
        frame = feed(open_encoder(pcm("L16"), 3), samples << 16)
        back = wire_to_pcm(frame.payload.tobytes(), 3, 2)
        np.testing.assert_array_equal(back, samples << 16)

    def test_times_at_48_khz(self) -> None:
        frame = feed(open_encoder(pcm("L24"), 2), pattern(2400, 240, 2), 2400)
        self.assertEqual((frame.media_time, frame.duration), (2400, 240))
        self.assertEqual(frame.capture_time_ns, UNIX_2025 + 50_000_000)
        self.assertEqual(frame.complete_ns, 77)

    def test_times_at_44_1_khz(self) -> None:
        """STR-42: media time counts the step's own samples, without gaps between frames."""
        profile = pcm("L16", 5000, step=44_100)
        encoder = open_encoder(profile, 2)
        expected = 0
        window = FrameWindow(2)
        for first in range(0, 4800, 240):
            captured = UNIX_2025 + first * 1_000_000 // 48
            window.put(AudioFrame(pattern(first, 240, 2), first, captured))
            frame = finished(encoder.begin(window, 0))
            self.assertEqual(frame.media_time, expected)
            self.assertEqual(frame.duration, len(frame.payload))
            expected += frame.duration
            late = captured - frame.capture_time_ns
            self.assertTrue(700_000 < late < 800_000, late)
        self.assertEqual(expected, 4410)

    def test_a_long_frame_from_short_blocks(self) -> None:
        encoder = open_encoder(pcm("L24", 20_000), 2)
        window = FrameWindow(2)
        for first in range(960, 1920, 120):
            window.put(AudioFrame(pattern(first, 120, 2), first, UNIX_2025 + first))
        frame = finished(encoder.begin(window, 0))
        self.assertEqual((frame.media_time, frame.duration), (960, 960))
        back = wire_to_pcm(frame.payload.tobytes(), 2, 3)
        np.testing.assert_array_equal(back, pattern(960, 960, 2))
        self.assertEqual(frame.capture_time_ns, UNIX_2025 + 960)


class AnyProfileTests(unittest.TestCase):
    def test_every_profile_there_is(self) -> None:
        """All codecs, steps and frame lengths: shape and duration as the profile promises."""
        for codec in CODECS:
            for step in SAMPLE_RATES:
                for frame_us in FRAME_US:
                    bitrate = 96_000 if codec == "opus" else 0
                    profile = Profile(codec, step, frame_us, bitrate)
                    encoder = open_encoder(profile, 4)
                    encoder.set_wanted(frozenset({1, 2, 3, 4}))
                    count = profile.capture_samples
                    frame = feed(encoder, pattern(0, count, 4))
                    expected = count * profile.clock_rate // 48_000
                    self.assertEqual(frame.duration, expected, profile)
                    bytes_each = frame.payload.size // 4
                    self.assertLessEqual(bytes_each, profile.channel_bytes)
                    self.assertGreater(bytes_each, profile.channel_bytes - 4)
                    encoder.close()

    def test_opus_runs_on_a_48_khz_clock_at_every_step(self) -> None:
        encoder = open_encoder(opus(step=24_000), 2)
        self.addCleanup(encoder.close)
        encoder.set_wanted(frozenset({2}))
        frame = feed(encoder, pattern(480, 240, 2), 480)
        self.assertEqual((frame.media_time, frame.duration), (480, 240))
        self.assertEqual(encoder.mono_encoders, 1)
