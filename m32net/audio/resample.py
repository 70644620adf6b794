"""Resampling of PCM from 48 kHz to the lower steps, frame by frame, with 1 ms of delay.

A polyphase FIR (windowed sinc) as one batched matrix product per frame.  Not soxr, which files
use: its streaming mode holds back 10 ms (LQ) to 40 ms (24 kHz) of audio, more than everything else
between the console and the ear.  Stateless across gaps: after one it starts over, at the value
it finds, without a click from zero.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import ceil, gcd, pi
from typing import Final

import numpy as np
import numpy.typing as npt

from m32net.audio.frame import CAPTURE_RATE, Samples

_TILE: Final = 30
"""Input samples per small matrix; a frame of 120 is four.  Small matrices waste fewer zeros, and
stay below the size from which OpenBLAS starts its own, spinning threads."""
_ATTENUATION_DB: Final = 90.0
_TRANSITION_HZ: Final = {44_100: 4_100, 32_000: 3_000, 24_000: 2_600}
"""Width of the band around the new Nyquist frequency in which the filter falls: flat to 20.0,
14.5 and 10.7 kHz, and what folds back stays above that."""
_TO_24_BIT: Final = 2.0**-8

_Floats = npt.NDArray[np.float32]


class Resampler:
    """Resamples all channels of consecutive frames of one length.

    Frame *k* yields the outputs ``floor(k*n*r) .. floor((k+1)*n*r)`` with ``r = rate/48000``, so
    44.1 kHz frames of 5 ms have 220 and 221 samples in turn.

    :param rate: 44100, 32000 or 24000.
    :param frame_samples: input samples per frame, a multiple of 120.
    :ivar delay_samples: how many input samples the output lies behind.
    """

    def __init__(self, rate: int, frame_samples: int, channels: int) -> None:
        if frame_samples % _TILE:
            raise ValueError(f"a frame of {frame_samples} samples isn't a multiple of {_TILE}")
        common = gcd(rate, CAPTURE_RATE)
        self._up, self._down = rate // common, CAPTURE_RATE // common
        self._rate = rate
        self._frame = frame_samples
        bank, self._counts = _bank(rate)
        self._history = bank.shape[2] - _TILE
        self.delay_samples = _taps(rate) // 2
        self._input: _Floats = np.zeros((self._history + frame_samples, channels), np.float32)
        row, item = self._input.strides
        self._tiles = np.lib.stride_tricks.as_strided(
            self._input,
            (frame_samples // _TILE, bank.shape[2], channels),
            (_TILE * row, row, item),
            writeable=False,
        )
        self._bank = bank
        self._phases: dict[int, tuple[_Floats, npt.NDArray[np.intp]]] = {}
        self._expected = -1

    def process(self, samples: Samples, first_sample: int) -> Samples:
        """The next frame, resampled; 24 significant bits, left-justified.

        :param samples: int32, shape ``(frame_samples, channels)``.
        :param first_sample: its position; a jump starts the filter anew.
        """
        history = self._history
        if first_sample == self._expected:
            self._input[:history] = self._input[-history:]
        else:
            self._input[:history] = samples[0]
        self._expected = first_sample + self._frame
        self._input[history:] = samples
        phase = first_sample // _TILE % len(self._counts)
        bank, rows = self._phases.get(phase) or self._prepare(phase)
        out = np.matmul(bank, self._tiles).reshape(-1, samples.shape[1])[rows]
        np.rint(out, out=out)
        np.clip(out, -(2.0**23), 2.0**23 - 1, out=out)
        pcm: Samples = out.astype(np.int32)
        pcm <<= 8
        return pcm

    def first_output(self, first_sample: int) -> int:
        """Index of the first output of the frame that begins at ``first_sample``."""
        return first_sample * self._rate // CAPTURE_RATE

    def shift_ns(self, first_sample: int) -> int:
        """How much later than the frame's first sample its first output was captured (< 0)."""
        numerator = self.first_output(first_sample) * self._down - first_sample * self._up
        fraction = numerator * 1_000_000_000 // (self._up * CAPTURE_RATE)
        return fraction - self.delay_samples * 1_000_000_000 // CAPTURE_RATE

    def _prepare(self, phase: int) -> tuple[_Floats, npt.NDArray[np.intp]]:
        """The matrices of a frame that begins with tile ``phase``, and which rows are outputs."""
        tiles = (phase + np.arange(self._frame // _TILE)) % len(self._counts)
        height = self._bank.shape[1]
        rows = [
            place * height + row
            for place, tile in enumerate(tiles)
            for row in range(self._counts[tile])
        ]
        bank = self._bank if len(self._counts) == 1 else self._bank[tiles]
        prepared = self._phases[phase] = (bank, np.array(rows, dtype=np.intp))
        return prepared


def _taps(rate: int) -> int:
    """Length of the filter at the input rate, even (Kaiser's formula)."""
    width = 2 * pi * _TRANSITION_HZ[rate] / CAPTURE_RATE
    return 2 * ceil((_ATTENUATION_DB - 7.95) / (2.285 * width) / 2)


@cache
def _bank(rate: int) -> tuple[_Floats, tuple[int, ...]]:
    """One matrix per tile of the period after which input and output line up again.

    :returns: float32, shape ``(tiles, outputs, inputs)``, rows beyond a tile's number of outputs
        zero; and that number for each tile.
    """
    common = gcd(rate, CAPTURE_RATE)
    up, down = rate // common, CAPTURE_RATE // common
    taps = _taps(rate)
    lead = ceil(down / up)
    history = taps - 1 + lead
    tiles = down // gcd(_TILE * up, down)
    edges = [tile * _TILE * up // down for tile in range(tiles + 1)]
    counts = tuple(end - start for start, end in pairwise(edges))
    bank = np.zeros((tiles, max(counts), history + _TILE))
    beta = 0.1102 * (_ATTENUATION_DB - 8.7)
    cutoff = rate / CAPTURE_RATE
    lags = np.arange(taps)
    for tile in range(tiles):
        for row in range(counts[tile]):
            newest, phase = divmod((edges[tile] + row) * down, up)
            at = lags + phase / up - taps / 2
            window = np.i0(beta * np.sqrt(np.maximum(0.0, 1 - (2 * at / taps) ** 2)))
            weights = np.sinc(cutoff * at) * window
            place = newest - tile * _TILE + history - lags
            bank[tile, row, place] = weights * (_TO_24_BIT / weights.sum())
    return bank.astype(np.float32), counts
