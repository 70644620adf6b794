"""STR-1: a multitrack file, looped without a seam, bit-exact at 48 kHz, read block by block."""

from __future__ import annotations

import shutil
import sys
import tempfile
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
from twisted.trial import unittest

from m32net.audio.events import DeviceLost, DeviceReturned, FewerChannels
from m32net.audio.sources.file import FileSource
from m32net.audio.sources.source import SourceError
from tests.support.audio import Events, FakeClock, level_dbfs

MS = 1_000_000


class FileCase(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.clock = FakeClock()
        self.events = Events()
        self.random = np.random.default_rng(11)

    def write(
        self,
        samples: np.ndarray,
        *,
        rate: int = 48_000,
        subtype: str = "PCM_24",
        name: str = "a.wav",
    ) -> Path:
        path = self.directory / name
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    def noise(self, samples: int, channels: int, bits: int = 24) -> np.ndarray:
        """Left-justified in int32."""
        half = 2 ** (bits - 1)
        values = self.random.integers(-half, half, (samples, channels))
        return (values << (32 - bits)).astype(np.int32)

    def open(self, path: Path, channels: int = 32) -> FileSource:
        source = FileSource(path, channels, self.clock)
        source.start(self.events)
        self.addCleanup(source.stop)
        return source

    def play(self, source: FileSource, samples: int, block: int = 240) -> np.ndarray:
        blocks = []
        for _ in range(-(-samples // block)):
            frame = source.read(block, 50 * MS)
            assert frame is not None
            blocks.append(frame.samples)
        return np.concatenate(blocks)[:samples]


class ExactTests(FileCase):
    def test_bit_exact_and_looped(self) -> None:
        """16-, 24- and 32-bit WAV and FLAC, 1 to 40 channels; a length no block divides."""
        for subtype, bits, name, channels in (
            ("PCM_16", 16, "a.wav", 40),
            ("PCM_24", 24, "b.wav", 32),
            ("PCM_32", 32, "c.wav", 3),
            ("PCM_24", 24, "d.flac", 8),
            ("PCM_16", 16, "e.flac", 1),
        ):
            samples = self.noise(2501, channels, bits)
            path = self.write(samples, subtype=subtype, name=name)
            heard = self.play(self.open(path, 64), 4 * 2501)
            np.testing.assert_array_equal(heard, np.tile(samples, (4, 1)), name)

    def test_shorter_than_a_block(self) -> None:
        samples = self.noise(7, 2)
        heard = self.play(self.open(self.write(samples)), 700, block=960)
        np.testing.assert_array_equal(heard, np.tile(samples, (100, 1)))

    def test_float_files_are_scaled(self) -> None:
        """libsndfile would give 0 and 1 here; and what exceeds full scale saturates."""
        exact = self.noise(1000, 2).astype(np.float64) / 2**31
        heard = self.play(self.open(self.write(exact, subtype="FLOAT")), 1000)
        np.testing.assert_array_equal(heard, (exact * 2**31).astype(np.int32))
        loud = np.array([[1.5], [-1.5], [1.0]])
        heard = self.play(self.open(self.write(loud, subtype="DOUBLE", name="l.wav")), 3)
        self.assertEqual(heard[:, 0].tolist(), [(2**23 - 1) << 8, -(2**31), (2**23 - 1) << 8])

    def test_first_channels_only(self) -> None:
        samples = self.noise(480, 8)
        source = self.open(self.write(samples), 3)
        np.testing.assert_array_equal(self.play(source, 480), samples[:, :3])
        self.assertEqual((source.channels, self.events), (3, []))

    def test_fewer_channels_than_asked(self) -> None:
        source = self.open(self.write(self.noise(480, 8)), 32)
        self.assertEqual((source.channels, self.events), (8, [FewerChannels(32, 8)]))
        self.assertEqual(source.name, "file a.wav")

    def test_an_hour_needs_no_memory(self) -> None:
        """32 channels are 6 MB a second; played from disk, they take less than one at any time."""
        source = self.open(self.write(np.zeros((240_000, 32), np.int16)))
        self.play(source, 960)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(300):
            self.assertIsNotNone(source.read(960, 50 * MS))
        self.assertLess(tracemalloc.get_traced_memory()[1], 8e6)


class RateTests(FileCase):
    def test_other_rates_are_resampled(self) -> None:
        """44.1 and 96 kHz: the same tone, no seam at the loop's end, in real time."""
        for rate in (44_100, 96_000):
            at = np.arange(rate)[:, None] / rate
            tone = 0.5 * np.sin(2 * np.pi * np.array([440, 1000]) * at)
            path = self.write(tone, rate=rate, name=f"{rate}.wav")
            heard = self.play(self.open(path), 3 * 48_000)
            steady = heard[4800:].astype(np.float64) / 2**31
            at = np.arange(4800, 3 * 48_000)[:, None] / 48_000
            ideal = 0.5 * np.sin(2 * np.pi * np.array([440, 1000]) * at)
            self.assertLess(level_dbfs(steady - ideal, 1.0), -60, rate)

    def test_without_soxr_other_rates_are_refused(self) -> None:
        path = self.write(self.noise(480, 2), rate=44_100)
        with mock.patch.dict(sys.modules, {"soxr": None}):
            with self.assertRaises(SourceError) as caught:
                FileSource(path, 2, self.clock)
            self.assertIn("44100 Hz", str(caught.exception))


class TroubleTests(FileCase):
    def refused(self, path: Path) -> str:
        with self.assertRaises(SourceError) as caught:
            FileSource(path, 2, self.clock)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_one_clear_line_each(self) -> None:
        self.assertIn("there is no such file", self.refused(self.directory / "none.wav"))
        self.assertIn("is a directory", self.refused(self.directory))
        text = self.directory / "notes.wav"
        text.write_text("not audio")
        self.assertIn("notes.wav", self.refused(text))
        self.assertIn("no audio in it", self.refused(self.write(np.zeros((0, 2)))))
        with mock.patch.dict(sys.modules, {"soundfile": None}):
            self.assertIn("pip install soundfile", self.refused(text))

    def test_unreadable_while_playing_is_a_lost_source(self) -> None:
        """STR-2: silence with running stamps, told once; and it goes on when the file is back."""
        samples = self.noise(4800, 2)
        path = self.write(samples)
        source = self.open(path, 2)
        self.play(source, 480)
        good = path.read_bytes()
        path.write_bytes(b"")
        frames = [source.read(240, 50 * MS) for _ in range(1300)]
        self.assertEqual([type(event) for event in self.events], [DeviceLost])
        self.assertEqual(source.status().state, "lost")
        self.assertIn("a.wav", source.status().reason)
        stamps = [frame.first_sample for frame in frames if frame]
        self.assertEqual(stamps, list(range(480, 480 + 1300 * 240, 240)))
        assert frames[-1] is not None
        self.assertFalse(frames[-1].samples.any())
        path.write_bytes(good)
        heard = self.play(source, 6 * 48_000)
        self.assertEqual([type(event) for event in self.events], [DeviceLost, DeviceReturned])
        self.assertEqual(source.status().state, "running")
        self.assertTrue(heard[-240:].any())

    def test_gone_between_checking_and_starting(self) -> None:
        path = self.write(self.noise(480, 2))
        source = FileSource(path, 2, self.clock)
        path.unlink()
        source.start(self.events)
        self.assertEqual([type(event) for event in self.events], [DeviceLost])
        self.assertFalse(self.play(source, 480).any())
