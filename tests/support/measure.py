"""What a receiver's recording holds: numbers of PCM files, frequency and level of tones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocols.control.messages import Stream, StreamGroup

Numbers = npt.NDArray[np.int64]
SAMPLE_BYTES = {"L16": 2, "L24": 3}
_TEST_UNIT = {"L16": 1, "L24": 1 << 8}


def pcm_file(path: Path, width: int, channels: int, *, big_endian: bool = False) -> Numbers:
    """Raw interleaved samples of ``width`` bytes, as (samples, channels) of signed numbers.

    An unfinished last sample, which a stopped program may leave, is cut off.
    """
    raw = np.fromfile(path, np.uint8)
    raw = raw[: len(raw) - len(raw) % (width * channels)].reshape(-1, channels, width)
    if not big_endian:
        raw = raw[:, :, ::-1]
    value = raw[:, :, 0].astype(np.int8).astype(np.int64)
    for place in range(1, width):
        value = value << 8 | raw[:, :, place]
    return value


def channel_numbers(stream: Stream, group: StreamGroup) -> Numbers:
    """What each channel of a PCM stream has for samples with the ``test`` source (STR-3)."""
    return np.array(group.channels, np.int64) * _TEST_UNIT[stream.codec]


def tone(samples: npt.NDArray[Any], rate: int, full_scale: float = 1.0) -> tuple[float, float]:
    """Frequency in Hz and peak level in dBFS of the strongest sine in ``samples``.

    The median over tenths of a second, so that a gap here or there does not count.
    """
    length = rate // 10
    parts = samples[: len(samples) - len(samples) % length].reshape(-1, length) / full_scale
    frequencies, levels = np.median([_tone(part, rate) for part in parts], axis=0)
    return float(frequencies), float(levels)


def _tone(samples: npt.NDArray[Any], rate: int) -> tuple[float, float]:
    """By the peak of the spectrum, found between its lines with a parabola through logarithms."""
    window = np.hanning(len(samples))
    spectrum = np.abs(np.fft.rfft(samples * window)) + 1e-12
    top = int(spectrum[1:-1].argmax()) + 1
    below, at, above = np.log(spectrum[top - 1 : top + 2])
    shift = (below - above) / (2 * (below - 2 * at + above))
    peak = 2 * np.exp(at - (below - above) * shift / 4) / window.sum()
    return (top + shift) * rate / len(samples), 20 * float(np.log10(peak))
