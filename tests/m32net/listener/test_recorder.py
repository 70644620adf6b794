"""STR-20: recordings: bit-exact tracks in the order asked for, whole after a crash, never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from twisted.trial import unittest

from m32net.listener.recorder import Recorder, RecordingError, TrackFormat
from tests.m32net.listener.streams import noise


class RecorderTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "take.wav"

    def read(self, path: Path) -> np.ndarray:
        return soundfile.read(path, dtype="int32", always_2d=True)[0]

    def test_bit_exact(self) -> None:
        for codec, subtype in (("L16", "PCM_16"), ("L24", "PCM_24")):
            signal = noise(30_000, 32)
            signal = signal >> 16 << 16 if codec == "L16" else signal
            recorder = Recorder(self.path)
            recorder.open(TrackFormat.multitrack(codec, 48_000, tuple(range(1, 33))))
            for at in range(0, len(signal), 221):
                recorder.write(signal[at : at + 221])
            recorder.close()
            info = soundfile.info(self.path)
            self.assertEqual((info.subtype, info.format, info.channels), (subtype, "WAVEX", 32))
            self.assertTrue(np.array_equal(self.read(self.path), signal))
            self.assertEqual(recorder.samples, len(signal))

    def test_float_is_clipped_not_wrapped(self) -> None:
        recorder = Recorder(self.path)
        recorder.open(TrackFormat.stereo(48_000))
        recorder.write(np.array([[1.5, -1.5], [0.5, -0.5]], np.float32))
        recorder.close()
        out = self.read(self.path) / 2**31
        self.assertTrue(np.allclose(out, [[1, -1], [0.5, -0.5]], atol=1e-6))

    def test_readable_without_closing(self) -> None:
        """After a crash all but the last second is there."""
        recorder = Recorder(self.path)
        recorder.open(TrackFormat.multitrack("L24", 48_000, (1, 2)))
        signal = noise(3 * 48_000, 2)
        for at in range(0, len(signal), 240):
            recorder.write(signal[at : at + 240])
        found = self.read(self.path)
        self.assertGreaterEqual(len(found), 2 * 48_000)
        self.assertTrue(np.array_equal(found, signal[: len(found)]))
        recorder.close()

    def test_other_format_begins_a_new_part(self) -> None:
        recorder = Recorder(self.path)
        first = TrackFormat.multitrack("L16", 48_000, (1, 2))
        for form in (
            first,
            first,
            TrackFormat.multitrack("L16", 32_000, (1, 2)),
            TrackFormat.multitrack("L24", 32_000, (1, 2)),
            TrackFormat.multitrack("opus", 32_000, (1, 2)),
            TrackFormat.multitrack("opus", 32_000, (2, 1)),
        ):
            recorder.open(form)
            recorder.write(noise(100, 2))
        recorder.close()
        self.assertEqual(
            [path.name for path in recorder.parts],
            ["take.wav", "take-2.wav", "take-3.wav", "take-4.wav"],
        )
        self.assertEqual([soundfile.info(p).frames for p in recorder.parts], [200, 100, 200, 100])
        self.assertEqual(soundfile.info(recorder.parts[1]).samplerate, 32_000)

    def test_codec_change_in_one_part(self) -> None:
        """L24 (int32) and then Opus (float32) go into one file, each at its scale."""
        recorder = Recorder(self.path)
        recorder.open(TrackFormat.multitrack("L24", 48_000, (1,)))
        recorder.write(np.full((10, 1), 1 << 30, np.int32))
        recorder.open(TrackFormat.multitrack("opus", 48_000, (1,)))
        recorder.write(np.full((10, 1), 0.5, np.float32))
        recorder.close()
        self.assertTrue((self.read(self.path) == 1 << 30).all())
        self.assertEqual(len(recorder.parts), 1)

    def test_errors_are_one_clear_line(self) -> None:
        for path, words in (
            (self.path.parent / "no" / "x.wav", "there is no directory"),
            (self.path.parent, "it is a directory"),
        ):
            error = self.assertRaises(
                RecordingError, Recorder(path).open, TrackFormat.stereo(48_000)
            )
            self.assertIn(words, str(error))
            self.assertIn(str(path), str(error))
            self.assertNotIn("\n", str(error))

    def test_check_leaves_no_trace(self) -> None:
        Recorder(self.path).check()
        self.assertFalse(self.path.exists())
        self.path.write_bytes(b"precious")
        Recorder(self.path).check()
        self.assertEqual(self.path.read_bytes(), b"precious")
        no_directory = Recorder(self.path / "x.wav")
        self.assertIn(
            "cannot be written", str(self.assertRaises(RecordingError, no_directory.check))
        )

    def test_full_disk(self) -> None:
        recorder = Recorder(self.path)
        recorder.open(TrackFormat.stereo(48_000))

        class Full:
            def write(self, block: np.ndarray) -> None:
                raise OSError(28, "No space left on device")

            def close(self) -> None:
                pass

        recorder._files._file.close()
        recorder._files._file = Full()
        error = self.assertRaises(RecordingError, recorder.write, np.zeros((48_000, 2), np.int32))
        self.assertIn("No space left", str(error))
        recorder.close()

    def test_closing_twice(self) -> None:
        recorder = Recorder(self.path)
        recorder.close()
        recorder.open(TrackFormat.stereo(48_000))
        recorder.close()
        recorder.close()
        self.assertEqual(soundfile.info(self.path).frames, 0)
