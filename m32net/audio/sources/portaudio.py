"""PortAudio, through sounddevice: which inputs there are, and a stream of int32 blocks into a ring.

The only module that imports sounddevice, and not before a device is asked for: without PortAudio
everything else works.  When to open and what to do about a lost device is not decided here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from m32net.audio.frame import CAPTURE_RATE
from m32net.audio.ring import FrameRing
from m32net.audio.sources.source import SourceError

APT_COMMAND: Final = "sudo apt-get install libportaudio2"
BLOCK: Final = 128
"""Samples per callback; with this and :data:`LATENCY_S`, PulseAudio delivers every 2.7 ms."""
LATENCY_S: Final = 0.003
_PULSE_LATENCY_MS: Final = "3"
CONSOLE_NAMES: Final = ("M32", "X32")
"""What to look for in a device's name (STR-1)."""
CARD_NAMES: Final = ("DN32", "X-USB")
"""What the consoles' USB cards may call themselves instead; second choice."""

# PortAudio's device list is made at Pa_Initialize, and Pa_Terminate closes all streams: so it is
# only started again while nothing is open, and by one thread at a time.
_initializing = threading.RLock()
_open_streams: set[object] = set()


@dataclass(frozen=True, slots=True)
class InputDevice:
    """One PortAudio input.

    :ivar index: PortAudio's number; changes when devices come and go.
    """

    index: int
    name: str
    channels: int
    host_api: str
    default_rate: float


Choose = Callable[[Sequence[InputDevice]], InputDevice]
"""Takes one of the devices there are, or raises SourceError."""


class OpenInput(Protocol):
    """A device that is capturing into a ring."""

    name: str
    ring: FrameRing
    overflows: int
    """Blocks before which the device says samples were lost."""

    @property
    def active(self) -> bool:
        """False once the device has ended the stream by itself."""
        ...

    def close(self) -> None: ...


class InputBackend(Protocol):
    """Devices, real or made up."""

    def devices(self) -> list[InputDevice]:
        """What is there now.

        :raises SourceError: no PortAudio.
        """
        ...

    def open(self, choose: Choose, make_ring: Callable[[InputDevice], FrameRing]) -> OpenInput:
        """Look for devices, choose one, and start capturing as many channels as its ring has.

        :raises SourceError: there is none, or it refuses.
        """
        ...

    def release(self) -> None:
        """Let go of the audio system; what comes next starts it again.

        Needed before a fork (``twistd`` as a daemon): its threads and sockets don't survive one.
        """
        ...


def choose_device(devices: Sequence[InputDevice], wanted: str | None) -> InputDevice:
    """The device a person means.

    :param wanted: an index, a name, or a part of a name in any case; None for the console.
    :raises SourceError: there is none; names those there are.
    """
    inputs = [device for device in devices if device.channels > 0]
    if wanted is None:
        for names in (CONSOLE_NAMES, CARD_NAMES):
            found = [d for d in inputs if any(name in d.name.upper() for name in names)]
            if found:
                return _best(found)
        raise SourceError(
            f"no input device has {' or '.join(CONSOLE_NAMES)} in its name; is the console's USB"
            f" cable in? {_offer(inputs)}"
        )
    if wanted.isdecimal():
        found = [device for device in inputs if device.index == int(wanted)]
    else:
        found = [device for device in inputs if device.name == wanted]
        found = found or [d for d in inputs if wanted.casefold() in d.name.casefold()]
    if not found:
        raise SourceError(f"no input device is called {wanted!r}; {_offer(inputs)}")
    return _best(found)


def _best(devices: Sequence[InputDevice]) -> InputDevice:
    """The one with most channels, the first of equals: a card shows up under several names."""
    return max(devices, key=lambda device: (device.channels, -device.index))


def _offer(inputs: Sequence[InputDevice]) -> str:
    if not inputs:
        return "there is no input device at all (`demo`, `test` and `file:PATH` need none)"
    listed = ", ".join(f"{d.index} {d.name!r} ({d.channels} channels)" for d in inputs)
    return f"choose with device:NAME or device:NUMBER from: {listed}"


class PortAudio:
    """The machine's devices."""

    def devices(self) -> list[InputDevice]:
        with _initializing:
            sd = self._restart()
            host_apis = sd.query_hostapis()
            return [
                InputDevice(
                    index=index,
                    name=str(entry["name"]),
                    channels=int(entry["max_input_channels"]),
                    host_api=str(host_apis[entry["hostapi"]]["name"]),
                    default_rate=float(entry["default_samplerate"]),
                )
                for index, entry in enumerate(sd.query_devices())
                if entry["max_input_channels"] > 0
            ]

    def open(self, choose: Choose, make_ring: Callable[[InputDevice], FrameRing]) -> OpenInput:
        with _initializing:
            device = choose(self.devices())
            ring = make_ring(device)
            sd = _sounddevice()
            try:
                return _Stream(sd, device, ring)
            except (sd.PortAudioError, ValueError) as error:
                raise SourceError(
                    f"device {device.name!r} doesn't open with {ring.channels} channels at"
                    f" {CAPTURE_RATE} Hz: {error}"
                ) from error

    def release(self) -> None:
        with _initializing:
            sd = _sounddevice()
            while sd._initialized and not _open_streams:
                sd._terminate()

    def _restart(self) -> Any:
        """Make PortAudio look for devices again, unless one is open."""
        # PulseAudio's ALSA plug-in reads this when a device is opened; 2 s otherwise.
        os.environ.setdefault("PULSE_LATENCY_MSEC", _PULSE_LATENCY_MS)
        sd = _sounddevice()
        try:
            self.release()
            if not sd._initialized:
                sd._initialize()
        except sd.PortAudioError as error:
            raise SourceError(f"PortAudio doesn't start: {error}") from error
        return sd


def _sounddevice() -> Any:
    try:
        import sounddevice  # noqa: PLC0415 - importing it starts PortAudio
    except OSError as error:
        raise SourceError(
            f"audio devices need PortAudio ({error}); install it with: {APT_COMMAND}"
        ) from error
    except ImportError as error:
        raise SourceError(
            "audio devices need the Python package sounddevice; install it with:"
            " pip install sounddevice"
        ) from error
    return sounddevice


class _Stream:
    """A running RawInputStream; its callback thread does nothing but write the ring."""

    def __init__(self, sd: Any, device: InputDevice, ring: FrameRing) -> None:
        self.name = device.name
        self.ring = ring
        self.overflows = 0
        write, now = ring.write, time.monotonic_ns

        def callback(indata: Any, frames: int, _time: Any, status: Any) -> None:
            write(indata, frames, now())
            if status:
                self.overflows += 1

        self._stream = sd.RawInputStream(
            device=device.index,
            channels=ring.channels,
            samplerate=CAPTURE_RATE,
            blocksize=BLOCK,
            dtype="int32",
            latency=LATENCY_S,
            callback=callback,
        )
        try:
            self._stream.start()
        except BaseException:
            self._stream.close()
            raise
        _open_streams.add(self)

    @property
    def active(self) -> bool:
        return bool(self._stream.active)

    def close(self) -> None:
        with _initializing:
            _open_streams.discard(self)
            self._stream.close(ignore_errors=True)
