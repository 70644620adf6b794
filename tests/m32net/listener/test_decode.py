"""STR-25: Opus with concealment by libopus; PCM bit-exact."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.listener import decode
from m32net.listener.decode import OpusDecoder, OpusUnavailable, PcmDecoder, as_float
from protocols.errors import RemoteProtocolError
from tests.m32net.listener.streams import noise, opus_payloads, pcm_payloads, tones


class PcmTest(unittest.TestCase):
    def test_bit_exact(self) -> None:
        signal = noise(960, 5)
        for codec, kept in (("L24", signal), ("L16", signal >> 16 << 16)):
            payloads = pcm_payloads(kept, codec, 240)
            out = np.concatenate([PcmDecoder(codec, 5).decode(p, 240) for p in payloads])
            self.assertTrue(np.array_equal(out, kept))
            self.assertEqual(out.dtype, np.int32)

    def test_scale(self) -> None:
        block = np.array([[-(2**31), 0, 2**30]], np.int32)
        self.assertEqual(as_float(block).tolist(), [[-1.0, 0.0, 0.5]])
        self.assertEqual(as_float(block).dtype, np.float32)
        again = as_float(block)
        self.assertIs(as_float(again), again)


class OpusTest(unittest.TestCase):
    def decoded(self, lost: dict[int, bytes | None], channels: int = 4) -> np.ndarray:
        """A second of tones, with frames concealed (by what follows, if that is given)."""
        payloads = opus_payloads(tones(48_000, channels))
        decoder = OpusDecoder(channels)
        return np.concatenate(
            [
                decoder.conceal(240, lost[number]) if number in lost else decoder.decode(data, 240)
                for number, data in enumerate(payloads)
            ]
        )

    def test_channels_are_in_order(self) -> None:
        out = self.decoded({}, 9)[4800:43_200]
        spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))[:, None], axis=0))
        peaks = spectrum.argmax(axis=0) * 48_000 / len(out)
        self.assertEqual(peaks.tolist(), [100.0 * (n + 1) for n in range(9)])
        self.assertApproximates(float(np.abs(out).max()), 0.25, 0.02)

    def test_one_channel_is_plain_opus(self) -> None:
        self.assertApproximates(float(np.abs(self.decoded({}, 1)[4800:]).max()), 0.25, 0.02)

    def test_concealment_continues_without_a_click(self) -> None:
        payloads = opus_payloads(tones(48_000, 4))
        clean = self.decoded({})
        for lost in ({100: None}, {100: payloads[101]}, {50: None, 51: None, 52: None}):
            out = self.decoded(lost)
            slope = np.abs(np.diff(clean, axis=0)).max(axis=0)
            self.assertTrue((np.abs(np.diff(out, axis=0)).max(axis=0) < 1.5 * slope).all())
            self.assertFalse(np.array_equal(out, clean))
            first = min(lost) * 240
            self.assertGreater(np.abs(out[first : first + 240]).max(), 0.1)

    def test_lengths_libopus_does_not_conceal(self) -> None:
        self.assertIsNone(OpusDecoder(2).conceal(121, None))

    def test_missing_library_is_one_clear_line(self) -> None:
        def missing() -> None:
            raise OpusUnavailable("Opus needs the library libopus (x); install it with: y")

        self.patch(decode, "_library", missing)
        error = self.assertRaises(OpusUnavailable, OpusDecoder, 2)
        self.assertNotIn("\n", str(error))

    @given(st.binary(max_size=200), st.integers(1, 4))
    def test_rubbish(self, data: bytes, channels: int) -> None:
        try:
            OpusDecoder(channels).decode(data, 240)
        except RemoteProtocolError:
            pass
