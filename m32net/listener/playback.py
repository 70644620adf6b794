"""The sound card: a stereo ring between the reactor and PortAudio's callback, and drift control.

PortAudio calls from its own thread; the ring has one writer and one reader, each with an index
only it changes, so there is no lock.  The server's clock and the sound card's are never equal:
the ring's level steers a resampler by at most +-0.5 % (STR-28), so it neither runs full nor dry.
Should it run dry all the same, the sound fades out and in.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soxr

APT_COMMAND: Final = "sudo apt-get install libportaudio2"
MAX_CORRECTION: Final = 0.005
RING_S: Final = 1.0
FADE_S: Final = 0.0025
EXCESS_S: Final = 0.06
"""More than this over what is wanted (a sound card that stood still) is skipped, not played off
at half a per cent; cards that take 40 ms at a time stay below it."""
_SETTLE_S: Final = 1.0  # time constant of the level's mean
_PROPORTIONAL: Final = 0.3  # correction per second of wrong level: 10 ms too much is 0.3 %
_INTEGRAL: Final = 0.02

Stereo = npt.NDArray[np.float32]


class PlaybackError(Exception):
    """There is no sound card to play to: one line saying what is wrong and what to do."""


class StereoRing:
    """A ring of stereo samples for one writer and one reader on different threads.

    :param capacity: samples it holds.
    :param wanted: samples it is meant to hold; after silence, and when there are far more, what
        is older is skipped.
    :ivar skipped: samples passed over that way.
    :ivar dropped: samples that found no room.
    :ivar missing: samples of silence the reader had to put in.
    :ivar underruns: times it ran dry.
    """

    def __init__(self, capacity: int, rate: int, wanted: int | None = None) -> None:
        self._wanted = capacity if wanted is None else wanted
        self._most = self._wanted + round(EXCESS_S * rate)
        self._samples = np.zeros((capacity, 2), np.float32)
        self._capacity = capacity
        self._written = 0  # changed by the writer only
        self._read = 0  # changed by the reader only
        self._fade = np.linspace(0.0, 1.0, max(2, round(FADE_S * rate)), dtype=np.float32)[:, None]
        self._last = np.zeros(2, np.float32)
        self._dry = True
        self.dropped = 0
        self.skipped = 0
        self.missing = 0
        self.underruns = 0

    def __len__(self) -> int:
        return self._written - self._read

    def write(self, block: Stereo) -> None:
        """Append samples; what does not fit is dropped and counted."""
        room = self._capacity - len(self)
        if len(block) > room:
            self.dropped += len(block) - room
            block = block[:room]
        start = self._written % self._capacity
        first = min(len(block), self._capacity - start)
        self._samples[start : start + first] = block[:first]
        self._samples[: len(block) - first] = block[first:]
        self._written += len(block)

    def read_into(self, out: Stereo) -> None:
        """Fill ``out``; what is not there fades into silence.  Called by PortAudio's thread."""
        if self._dry:  # a sound card that started late is not to be late for good
            self._skip()
        count = min(len(out), len(self))
        start = self._read % self._capacity
        first = min(count, self._capacity - start)
        out[:first] = self._samples[start : start + first]
        out[first:count] = self._samples[: count - first]
        self._read += count
        if self._dry and count:
            rising = self._fade[:count]
            out[: len(rising)] *= rising
            self._dry = False
        if count:
            self._last[:] = out[count - 1]
        if count < len(out):
            self._run_dry(out[count:])
        elif len(self) > self._most:
            falling = self._fade[::-1][: len(out)]
            out[: len(falling)] *= falling
            out[len(falling) :] = 0.0
            self._dry = True  # fades in from what is newer

    def _skip(self) -> None:
        excess = max(0, len(self) - self._wanted)
        self._read += excess
        self.skipped += excess

    def _run_dry(self, rest: Stereo) -> None:
        rest[:] = 0.0
        if not self._dry:
            self.underruns += 1
            self._dry = True
            falling = self._fade[::-1][: len(rest)]
            rest[: len(falling)] = falling * self._last
        self.missing += len(rest)


class DriftControl:
    """How much faster or slower to play, from how full the ring is.

    A proportional-integral controller on the level's mean; its integral becomes the difference of
    the two clocks.

    :param target_s: wanted level in s.
    """

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self.correction = 0.0
        """Input per output less one: positive while there is too much."""
        self._mean = target_s
        self._integral = 0.0

    def update(self, level_s: float, elapsed_s: float) -> float:
        """Note the level.

        :param elapsed_s: since the last call.
        :returns: the new :attr:`correction`, within +-0.5 %.
        """
        self._mean += (level_s - self._mean) * (1 - math.exp(-elapsed_s / _SETTLE_S))
        error = self._mean - self.target_s
        wanted = _PROPORTIONAL * error + self._integral
        if abs(wanted) < MAX_CORRECTION:
            self._integral += _INTEGRAL * error * elapsed_s
        self.correction = min(max(wanted, -MAX_CORRECTION), MAX_CORRECTION)
        return self.correction


class Resampled:
    """Stereo blocks of one stream at the rate of the sound card.

    :param rate: of the blocks, in Hz.
    :param device_rate: of the sound card.
    """

    def __init__(self, rate: int, device_rate: int) -> None:
        self.rate = rate
        self.device_rate = device_rate
        self._resampler = soxr.ResampleStream(
            rate * (1 + MAX_CORRECTION), device_rate, 2, dtype="float32", quality="HQ", vr=True
        )
        self._resampler.set_io_ratio(rate, device_rate, 0)
        # its first output comes late; filled with silence, as much comes out as goes in
        self._resampler.resample_chunk(np.zeros((rate // 10, 2), np.float32))

    def __call__(self, block: Stereo, correction: float) -> Stereo:
        """The next block, played faster by ``correction``."""
        self._resampler.set_io_ratio(self.rate * (1 + correction), self.device_rate, len(block))
        found: Stereo = self._resampler.resample_chunk(np.ascontiguousarray(block))
        return found


class Speaker:
    """Plays on a ring's reader of a fixed rate, and keeps what waits there at its level.

    :param device_rate: of the sound card.
    :param target_s: how much to keep in the ring.
    """

    def __init__(self, device_rate: int, target_s: float) -> None:
        self.rate = device_rate
        wanted = round(target_s * device_rate)
        self.ring = StereoRing(round(RING_S * device_rate), device_rate, wanted)
        self.drift = DriftControl(target_s)
        self._primed = False

    @property
    def level_s(self) -> float:
        """What the ring holds, in s."""
        return len(self.ring) / self.rate

    def steer(self, elapsed_s: float) -> float:
        """How much faster what comes next is to be played; called once a block.

        :param elapsed_s: length of the block.
        """
        self._prime()
        return self.drift.update(self.level_s, elapsed_s)

    def play(self, samples: Stereo) -> None:
        """Play samples of the sound card's rate after those before them."""
        self._prime()
        self.ring.write(samples)

    def _prime(self) -> None:
        if not self._primed:
            self._primed = True  # start at the wanted level instead of waiting for the control
            self.ring.write(np.zeros((round(self.drift.target_s * self.rate), 2), np.float32))


class SoundCard:
    """PortAudio's default (or a named) output.

    :param device: part of its name, or None.
    :raises PlaybackError: PortAudio or the device is missing.
    """

    def __init__(self, device: str | None = None) -> None:
        try:
            import sounddevice  # noqa: PLC0415 - absent PortAudio must not keep others from running
        except OSError as error:
            raise PlaybackError(
                f"--play needs the library PortAudio ({error}); install it with: {APT_COMMAND}"
            ) from error
        self._portaudio: Any = sounddevice
        self._device = device
        try:
            details = sounddevice.query_devices(device, "output")
        except (ValueError, sounddevice.PortAudioError) as error:
            what = "no sound output was found" if device is None else f"no output {device!r}"
            raise PlaybackError(f"--play: {what} ({_one_line(error)})") from None
        self.name = str(details["name"])
        self.rate = round(details["default_samplerate"])
        self._stream: Any = None

    def start(self, ring: StereoRing) -> None:
        """Play what is in the ring until :meth:`stop`.

        :raises PlaybackError: the device does not open.
        """

        def callback(out: Stereo, frames: int, time: Any, status: Any) -> None:
            ring.read_into(out)

        try:
            self._stream = self._portaudio.OutputStream(
                samplerate=self.rate,
                channels=2,
                dtype="float32",
                latency="low",
                device=self._device,
                callback=callback,
            )
            self._stream.start()
        except self._portaudio.PortAudioError as error:
            raise PlaybackError(f"--play: {self.name}: {_one_line(error)}") from None

    @property
    def latency_s(self) -> float:
        """What PortAudio says of the way from the ring to the ear; not all drivers are honest."""
        return 0.0 if self._stream is None else float(self._stream.latency)

    def stop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.stop()
            stream.close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
