"""The demo band's instrument makers: oscillators, envelopes, filters, strings, and tracks.

Everything is float32 at 48 kHz and deterministic; randomness comes as a seeded generator.  Tracks
are loops: what sounds beyond the end goes on at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from m32net.audio.frame import CAPTURE_RATE

Sound = npt.NDArray[np.float32]
Random = np.random.Generator
Cycles = npt.NDArray[np.floating[Any]]


def _single(samples: npt.ArrayLike) -> Sound:
    return np.asarray(samples, np.float32)


def hertz(pitch: float) -> float:
    """Frequency of a MIDI pitch."""
    return float(440.0 * 2.0 ** ((pitch - 69) / 12))


def seconds(duration: float) -> int:
    """Samples of a duration."""
    return round(duration * CAPTURE_RATE)


def times(samples: int) -> Sound:
    """0, 1/48000, … in seconds."""
    return np.arange(samples, dtype=np.float32) / np.float32(CAPTURE_RATE)


def decay(samples: int, time_constant: float) -> Sound:
    """Exponential decay from 1."""
    return _single(np.exp(times(samples) * np.float32(-1 / time_constant)))


def envelope(samples: int, attack: float, release: float) -> Sound:
    """1 with raised-cosine ends, in seconds; as long as ``samples``, release included."""
    shape = np.ones(samples, np.float32)
    rise, fall = min(seconds(attack), samples), min(seconds(release), samples)
    shape[:rise] = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, rise, dtype=np.float32))
    shape[samples - fall :] *= 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, fall, dtype=np.float32))
    return shape


def phase(frequency: float | Sound, samples: int, start: float = 0.0) -> Cycles:
    """Cycles run through at a fixed or changing frequency."""
    if isinstance(frequency, float | int):
        return start + np.arange(samples) * (frequency / CAPTURE_RATE)
    return start + np.cumsum(frequency, dtype=np.float64) / CAPTURE_RATE


def sine(frequency: float | Sound, samples: int, start: float = 0.0) -> Sound:
    """A sine of fixed or changing frequency."""
    cycles = phase(frequency, samples, start) % 1.0
    return _single(np.sin(cycles.astype(np.float32) * np.float32(2 * np.pi)))


def saw(frequency: float | Sound, samples: int, start: float = 0.0) -> Sound:
    """A sawtooth, its steps rounded off over two samples (PolyBLEP), so that it hardly aliases."""
    at = (phase(frequency, samples, start) % 1.0).astype(np.float32)
    step = np.asarray(frequency, np.float32) / np.float32(CAPTURE_RATE)
    wave = 2 * at - 1
    after = np.minimum(at / step, 1.0)
    before = np.minimum((1 - at) / step, 1.0)
    wave += (1 - after) ** 2
    wave -= (1 - before) ** 2
    return wave.astype(np.float32)


def noise(samples: int, random: Random) -> Sound:
    """White noise, standard deviation 1."""
    return random.standard_normal(samples, dtype=np.float32)


Response = npt.NDArray[np.complex64]


def _fast_length(samples: int) -> int:
    """A length not much greater whose Fourier transform is fast."""
    power = 1 << max(0, samples - 1).bit_length()
    return next(size for size in (power * 5 // 8, power * 3 // 4, power) if size >= samples)


def filtered(sound: Sound, response: Callable[[Sound], Response], *, loop: bool = False) -> Sound:
    """Filter by Fourier transform.

    :param response: of the frequencies in Hz.
    :param loop: the sound is a loop, and stays one.
    """
    size = len(sound) if loop else _fast_length(len(sound) + seconds(0.02))
    spectrum = np.fft.rfft(sound, size)
    frequencies = np.arange(len(spectrum), dtype=np.float32) * np.float32(CAPTURE_RATE / size)
    return np.fft.irfft(spectrum * response(frequencies), size)[: len(sound)].astype(np.float32)


def low_pass(frequencies: Sound, corner: float, order: int = 2) -> Response:
    """Butterworth, as an analogue filter."""
    s = np.complex64(1j / corner) * frequencies
    divisor = 1 + s if order == 1 else 1 + s * (np.float32(2**0.5) + s)
    return np.asarray(1 / divisor, np.complex64)


def high_pass(frequencies: Sound, corner: float, order: int = 2) -> Response:
    """Butterworth, too."""
    s = np.complex64(1j / corner) * frequencies
    passed = s / (1 + s) if order == 1 else s * s / (1 + s * (np.float32(2**0.5) + s))
    return np.asarray(passed, np.complex64)


def resonance(frequencies: Sound, centre: float, width: float) -> Response:
    """A two-pole resonator, peak gain 1: one formant."""
    damped = np.complex64(1j * width) * frequencies
    passed = damped / (np.float32(centre**2) - frequencies * frequencies + damped)
    return np.asarray(passed, np.complex64)


def band(
    sound: Sound, low: float | None, high: float | None, order: int = 2, *, loop: bool = False
) -> Sound:
    """Cut below ``low`` and above ``high`` Hz."""

    def response(frequencies: Sound) -> Response:
        out = np.ones(len(frequencies), np.complex64)
        if low is not None:
            out *= high_pass(frequencies, low, order)
        if high is not None:
            out *= low_pass(frequencies, high, order)
        return out

    return filtered(sound, response, loop=loop)


def pluck(frequency: float, samples: int, bright: float, sustain: float, random: Random) -> Sound:
    """A plucked string (Karplus and Strong 1983), computed a period at a time.

    :param bright: 0..1, how much of the noise's treble the pick leaves.
    :param sustain: seconds to fall to a third, at the pitch itself.
    """
    period = max(8, round(CAPTURE_RATE / frequency - 0.5))
    # The loop is half a sample longer than the period; playing it a little faster or slower
    # puts it in tune.
    speed = (period + 0.5) * frequency / CAPTURE_RATE
    keep = np.float32(np.exp(-period / (sustain * CAPTURE_RATE)))
    burst = noise(period, random)
    for _ in range(round((1 - bright) * 12)):
        burst = np.float32(0.5) * (burst + np.roll(burst, 1))
    string = burst - burst.mean()
    string /= np.abs(string).max()
    out = np.empty((int(samples * speed) // period + 2, period), np.float32)
    before = np.float32(0.0)
    half = np.float32(0.5) * keep
    for row in out:
        row[:] = string
        shifted = np.empty_like(string)
        shifted[0] = before
        shifted[1:] = string[:-1]
        before = string[-1]
        string = half * (string + shifted)
    flat = out.reshape(-1)
    tuned = np.interp(np.arange(samples) * speed, np.arange(len(flat)), flat)
    return _single(tuned * envelope(samples, 0.0, 0.02))


class Track:
    """One channel's loop."""

    def __init__(self, samples: int) -> None:
        self.sound: Sound = np.zeros(samples, np.float32)

    def add(self, sound: Sound, at: float, gain: float = 1.0) -> None:
        """Mix a sound in, beginning at sample ``at``; its end may wrap around."""
        length = len(self.sound)
        start = round(at) % length
        scaled = sound * np.float32(gain)
        while len(scaled):
            part = scaled[: length - start]
            self.sound[start : start + len(part)] += part
            scaled = scaled[len(part) :]
            start = 0


class Sampler:
    """Renders each different sound once, however often it is played."""

    def __init__(self, render: Callable[..., Sound]) -> None:
        self._render = render
        self._rendered: dict[tuple[Any, ...], Sound] = {}

    def __call__(self, *parameters: Any) -> Sound:
        sound = self._rendered.get(parameters)
        if sound is None:
            sound = self._rendered[parameters] = self._render(*parameters)
        return sound
