"""STR-1: how sources are named and devices chosen; what is said where that fails."""

from __future__ import annotations

import builtins
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from m32net.audio.sources import ISource, SourceError, list_devices, open_source
from m32net.audio.sources.portaudio import PortAudio, choose_device
from tests.support.audio import FakeBackend, FakeClock, input_device

DESKTOP = (
    input_device("HDA Intel PCH: ALC257 (hw:0,0)", 2, 0),
    input_device("X-USB: USB Audio (hw:1,0)", 32, 4),
    input_device("pulse", 32, 7),
)
CONSOLE = input_device("BEHRINGER x32: USB Audio (hw:2,0)", 32, 5)


class SpecTests(unittest.TestCase):
    def open(self, spec: str, channels: int = 4, *devices: Any) -> Any:
        return open_source(spec, channels, clock=FakeClock(), backend=FakeBackend(*devices))

    def refused(self, spec: str, *devices: Any, channels: int = 4) -> str:
        with self.assertRaises(SourceError) as caught:
            self.open(spec, channels, *devices)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_every_kind(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "song: live.wav"
            soundfile.write(path, np.zeros((10, 4)), 48_000)
            for spec, name in (
                ("demo", "demo"),
                ("test", "test"),
                (f"file:{path}", "file song: live.wav"),
                ("device", f"device {CONSOLE.name}"),
                ("device:pulse", "device pulse"),
                ("device:0", "device HDA Intel PCH: ALC257 (hw:0,0)"),
            ):
                source = self.open(spec, 4, *DESKTOP, CONSOLE)
                self.assertEqual(source.name, name)
                self.assertTrue(verifyObject(ISource, source))

    def test_nonsense(self) -> None:
        for spec in ("", "demo:1", "test:", "file", "file:", "device:", "tape", "Demo"):
            self.assertIn("demo, test, file:PATH, device", self.refused(spec))
        for channels in (0, 65, -1):
            self.assertIn("1 to 64", self.refused("test", channels=channels))

    @given(st.sampled_from(("", "file:", "device:", "test")), st.text(max_size=20))
    def test_any_text_is_a_source_or_one_line(self, kind: str, text: str) -> None:
        try:
            self.open(kind + text, 2, *DESKTOP)
        except SourceError as error:
            self.assertNotIn("\n", str(error))

    def test_no_console(self) -> None:
        message = self.refused("device", DESKTOP[0], DESKTOP[2])
        for part in ("M32 or X32", "device:NAME", "0 'HDA Intel", "7 'pulse' (32 channels)"):
            self.assertIn(part, message)
        self.assertIn("there is no input device at all", self.refused("device"))

    def test_unknown_device(self) -> None:
        for spec in ("device:dante", "device:99"):
            self.assertIn("7 'pulse'", self.refused(spec, *DESKTOP))

    def test_the_audio_system_is_released_before_a_fork(self) -> None:
        backend = FakeBackend(*DESKTOP)
        open_source("device:pulse", 4, clock=FakeClock(), backend=backend)
        self.assertEqual((backend.released, backend.inputs), (1, []))
        self.assertEqual(list_devices(backend), list(DESKTOP))
        self.assertEqual(backend.released, 2)


class ChoiceTests(unittest.TestCase):
    def test_the_console_by_name_before_its_card(self) -> None:
        """'M32' or 'X32' in any case; only then what their USB cards call themselves."""
        self.assertEqual(choose_device([*DESKTOP, CONSOLE], None), CONSOLE)
        m32 = input_device("M32R Live", 32, 9)
        self.assertEqual(choose_device([*DESKTOP, m32], None), m32)
        self.assertEqual(choose_device(DESKTOP, None), DESKTOP[1])

    def test_exact_names_win_over_parts(self) -> None:
        devices = [input_device("pulse monitor", 64, 1), input_device("pulse", 2, 2)]
        self.assertEqual(choose_device(devices, "pulse"), devices[1])
        self.assertEqual(choose_device(devices, "PULSE MON"), devices[0])

    def test_of_several_the_one_with_most_channels(self) -> None:
        devices = [input_device(f"X32 {n}", n, n) for n in (2, 32, 8)]
        self.assertEqual(choose_device(devices, None), devices[1])

    def test_outputs_are_no_inputs(self) -> None:
        self.assertRaises(SourceError, choose_device, [input_device("X32", 0, 0)], None)


class MissingTests(unittest.TestCase):
    """Without PortAudio, everything but devices works."""

    def break_import(self, error: Exception) -> None:
        real_import = builtins.__import__

        def fake(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "sounddevice":
                raise error
            return real_import(name, *args, **kwargs)

        patch = mock.patch.object(builtins, "__import__", fake)
        patch.start()
        self.addCleanup(patch.stop)

    def test_portaudio(self) -> None:
        self.break_import(OSError("PortAudio library not found"))
        for spec in ("device", "device:pulse"):
            with self.assertRaises(SourceError) as caught:
                open_source(spec)
            self.assertIn("sudo apt-get install libportaudio2", str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))
        self.assertRaises(SourceError, list_devices)
        for spec in ("demo", "test"):
            self.assertEqual(open_source(spec, 2).name, spec)

    def test_sounddevice(self) -> None:
        self.break_import(ImportError("No module named 'sounddevice'"))
        with self.assertRaises(SourceError) as caught:
            open_source("device")
        self.assertIn("pip install sounddevice", str(caught.exception))

    def test_nothing_imports_it_before_a_device_is_wanted(self) -> None:
        self.break_import(OSError("not found"))
        with mock.patch.dict(sys.modules):
            for name in [n for n in sys.modules if n.startswith("m32net.audio")]:
                del sys.modules[name]
            __import__("m32net.audio.service")
            __import__("m32net.audio.sources")


class PortAudioTests(unittest.TestCase):
    """The adapter, against a stand-in for the sounddevice module."""

    def setUp(self) -> None:
        self.sd = mock.Mock()
        self.sd._initialized = 1
        self.sd.PortAudioError = type("PortAudioError", (Exception,), {})
        self.sd._terminate.side_effect = lambda: setattr(self.sd, "_initialized", 0)
        self.sd._initialize.side_effect = lambda: setattr(self.sd, "_initialized", 1)
        self.sd.query_hostapis.return_value = [{"name": "ALSA"}, {"name": "JACK"}]
        device = {"name": "X32", "hostapi": 1, "default_samplerate": 48000.0}
        self.sd.query_devices.return_value = [
            {**device, "name": "speakers", "max_input_channels": 0},
            {**device, "max_input_channels": 32},
        ]
        patch = mock.patch.dict(sys.modules, {"sounddevice": self.sd})
        patch.start()
        self.addCleanup(patch.stop)
        environ = mock.patch.dict("os.environ")
        environ.start()
        self.addCleanup(environ.stop)
        self.audio = PortAudio()

    def open(self, channels: int = 4) -> tuple[Any, Any]:
        from m32net.audio.ring import FrameRing

        opened = self.audio.open(
            lambda devices: choose_device(devices, "X32"), lambda _device: FrameRing(1920, channels)
        )
        self.addCleanup(opened.close)
        return opened, opened.ring

    def test_inputs_only_with_their_own_numbers(self) -> None:
        (device,) = self.audio.devices()
        self.assertEqual((device.index, device.name, device.host_api), (1, "X32", "JACK"))

    def test_looks_again_for_devices_each_time(self) -> None:
        """PortAudio's list is made when it starts; so it is started again."""
        self.audio.devices()
        self.audio.devices()
        self.assertEqual(self.sd._initialize.call_count, 2)

    def test_looking_does_not_close_what_is_capturing(self) -> None:
        opened, _ = self.open()
        before = self.sd._terminate.call_count
        self.audio.devices()
        self.audio.release()
        self.assertEqual(self.sd._terminate.call_count, before)
        opened.close()
        self.audio.devices()
        self.assertEqual(self.sd._terminate.call_count, before + 1)

    def test_stream_settings(self) -> None:
        """As measured: blocks of 128, 3 ms, int32; and PulseAudio told so, unless set already."""
        self.open(32)
        settings = self.sd.RawInputStream.call_args.kwargs
        del settings["callback"]
        self.assertEqual(
            settings,
            {
                "device": 1,
                "channels": 32,
                "samplerate": 48_000,
                "blocksize": 128,
                "dtype": "int32",
                "latency": 0.003,
            },
        )
        import os

        self.assertEqual(os.environ["PULSE_LATENCY_MSEC"], "3")
        os.environ["PULSE_LATENCY_MSEC"] = "20"
        self.audio.devices()
        self.assertEqual(os.environ["PULSE_LATENCY_MSEC"], "20")

    def test_callback_fills_the_ring_and_counts_overflows(self) -> None:
        opened, ring = self.open(4)
        callback = self.sd.RawInputStream.call_args.kwargs["callback"]
        block = np.arange(128 * 4, dtype=np.int32)
        callback(memoryview(block.tobytes()), 128, None, 0)
        callback(memoryview(block.tobytes()), 128, None, mock.Mock(input_overflow=True))
        self.assertEqual((ring.written, opened.overflows), (256, 1))
        taken = ring.read(120)
        assert taken is not None
        np.testing.assert_array_equal(taken[1], block[:480].reshape(120, 4))
        self.assertGreater(ring.stamp[1], 0)

    def test_a_refusal_names_device_and_reason(self) -> None:
        self.sd.RawInputStream.side_effect = self.sd.PortAudioError("Invalid number of channels")
        with self.assertRaises(SourceError) as caught:
            self.open(32)
        self.assertIn("'X32'", str(caught.exception))
        self.assertIn("32 channels at 48000 Hz: Invalid number", str(caught.exception))

    def test_a_stream_that_does_not_start_is_closed(self) -> None:
        stream = self.sd.RawInputStream.return_value
        stream.start.side_effect = self.sd.PortAudioError("busy")
        self.assertRaises(SourceError, self.open)
        stream.close.assert_called_once_with()
