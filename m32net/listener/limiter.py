"""A look-ahead limiter for any number of columns that never lets a sample over its ceiling.

The gain a sample needs is known ``lookahead`` samples before it leaves.  The gain curve is the
running minimum of what is needed over that window, with exponential release, smoothed by a moving
average of the same length; every value that enters a sample's average is at most the gain that
sample needs, so the product cannot exceed the ceiling, and the gain moves without a step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from m32net.listener.settings import Limit

LOOKAHEAD_S: Final = 0.001
"""Delay of every limiter, on or off, so that switching one never moves a channel in time."""
_ROUNDING: Final = 1 - 2.0**-21
"""Kept under the ceiling: the float32 product of sample and gain may round up by 2**-23."""
_SETTLED: Final = 1e-6
"""Reductions below -120 dB are none."""
_CHUNK: Final = 2048
"""Samples at a time, so that ``decay ** -_CHUNK`` stays a number for the shortest release."""

Signal = npt.NDArray[np.float32]
Curve = npt.NDArray[np.float64]


class Limiter:
    """Limits the columns of blocks, each by itself or all together.

    :param columns: how many columns a block has.
    :param rate: sample rate in Hz.
    :param linked: one gain for all columns, as a stereo sum needs it to keep its image.
    """

    def __init__(self, columns: int, rate: int, *, linked: bool = False) -> None:
        self.rate = rate
        self.linked = linked
        self.lookahead = max(1, round(LOOKAHEAD_S * rate))
        lanes = 1 if linked else columns
        self._delayed = np.zeros((self.lookahead, columns), np.float32)
        self._wanted = False
        self._ceiling = np.full(lanes, np.inf)
        self._decay = np.zeros(lanes)
        self._awake = np.zeros(lanes, bool)  # lanes whose gain is not settled at unity
        self._needed = np.ones((self.lookahead, lanes))  # of the samples in the delay line
        self._curve = np.ones((self.lookahead, lanes))  # its last values, before the average
        self._reduction = np.zeros(lanes)  # 1 - gain where the release stands
        self.reduction_db = 0.0
        """Largest reduction in the last block, in dB (0 or negative)."""

    def set(self, limits: Sequence[Limit | None]) -> None:
        """Give every column its limit, or None for none; a linked limiter has one for all."""
        self._wanted = any(limit is not None for limit in limits)
        for lane, limit in enumerate(limits):
            if limit is None:
                self._ceiling[lane] = np.inf
            else:
                self._ceiling[lane] = 10 ** (limit.ceiling_db / 20) * _ROUNDING
                self._decay[lane] = np.exp(-1000 / (limit.release_ms * self.rate))

    def process(self, block: Signal) -> Signal:
        """Limit a block of shape ``(n, columns)``.

        :returns: a new block of the same shape, ``lookahead`` samples late.
        """
        line = np.concatenate((self._delayed, block))
        self._delayed = line[len(block) :]
        out = line[: len(block)]
        self.reduction_db = 0.0
        if not self._wanted and not self._awake.any():
            return out
        level = np.abs(block)
        if self.linked:  # a reduction over the short axis costs five times this
            level = functools.reduce(np.maximum, level.T)[:, None]
        awake = self._awake | (level.max(axis=0, initial=0.0) > self._ceiling)
        if not awake.any():
            return out
        lanes = np.flatnonzero(awake)
        gain = self._gain(level[:, lanes].astype(np.float64), lanes)
        if self.linked:
            out *= gain.astype(np.float32)
        else:
            out[:, lanes] *= gain.astype(np.float32)
        self.reduction_db = 20 * float(np.log10(max(gain.min(), 1e-6)))
        return out

    def _gain(self, level: Curve, lanes: npt.NDArray[np.intp]) -> Curve:
        """Gains of the samples that leave while those of ``level`` enter, shape as ``level``."""
        n, window = len(level), self.lookahead + 1
        ceiling = self._ceiling[lanes]
        needed = np.concatenate(
            (self._needed[:, lanes], np.minimum(1.0, ceiling / np.maximum(level, 1e-9)))
        )
        curve = np.concatenate(
            (self._curve[:, lanes], self._release(_running_minimum(needed, window), lanes))
        )
        self._needed[:, lanes] = needed[n:]
        self._curve[:, lanes] = curve[n:]
        self._awake[lanes] = (curve[n:] < 1.0).any(axis=0) | (needed[n:] < 1.0).any(axis=0)
        total = np.cumsum(curve, axis=0)
        total[window:] -= total[:-window].copy()
        gain: Curve = np.minimum(total[window - 1 :] / window, 1.0)
        return gain

    def _release(self, wanted: Curve, lanes: npt.NDArray[np.intp]) -> Curve:
        """``1 - u`` with ``u[t] = max(1 - wanted[t], decay * u[t-1])``, without a loop over t.

        Divided by ``decay ** t`` the recursion is a running maximum.
        """
        reduction = 1.0 - wanted
        decay = self._decay[lanes]
        last = self._reduction[lanes]
        for start in range(0, len(reduction), _CHUNK):
            part = reduction[start : start + _CHUNK]
            scale = decay ** np.arange(1, len(part) + 1)[:, None]
            part[:] = np.maximum.accumulate(np.maximum(part / scale, last), axis=0) * scale
            last = part[-1]
        reduction[reduction < _SETTLED] = 0.0
        self._reduction[lanes] = reduction[-1]
        return 1.0 - reduction


def _running_minimum(line: Curve, window: int) -> Curve:
    """Minimum of each ``window`` successive rows; ``window - 1`` rows fewer come out."""
    reach = 1
    while reach * 2 <= window:
        line = np.minimum(line[:-reach], line[reach:])
        reach *= 2
    rest = window - reach
    return np.minimum(line[:-rest], line[rest:]) if rest else line
