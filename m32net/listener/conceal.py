"""Fills what is missing in PCM so that nothing clicks (STR-25).

A gap is extrapolated from the last 20 ms by an autoregressive model (Burg's method, vectorised
over the channels) and, where the frame after it is known, from that side too, the two cross-faded:
the interpolation of Kauppinen and Roth (*Audio signal extrapolation*, DAFx 2002).  The models are
driven by as much noise as they could not predict, so that noise stays noise and does not become a
hole.  Longer gaps fade out; what follows is cross-faded in.  Where nothing is missing, samples
pass unchanged.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m32net.listener.filtering import load_lfilter

HISTORY_S: Final = 0.02
"""Audio before a gap from which it is extrapolated."""
ORDER: Final = 32
HOLD_S: Final = 0.02
"""An extrapolation keeps its level for this long, or half of what is interpolated."""
JOIN_S: Final = 0.0025
"""Length of the cross-fade into what comes after a gap: a shortest frame."""

Mask = npt.NDArray[np.bool_]
Block = npt.NDArray[Any]
"""Shape ``(n, columns)``, int32 or float32."""
Lanes = npt.NDArray[np.float64]
"""Shape ``(columns, n)``."""
Level = npt.NDArray[np.float64]
"""Shape ``(columns,)``."""


class Concealer:
    """Repairs the blocks of one stream.

    :param columns: channels in a block.
    :param rate: sample rate in Hz.
    :param interpolate_ms: gaps are faded to silence by this length (STR-27).
    :param seed: of the noise.
    """

    def __init__(
        self, columns: int, rate: int, interpolate_ms: float = 100.0, seed: int = 1
    ) -> None:
        self.rate = rate
        self._random = np.random.default_rng(seed)
        self._lfilter = load_lfilter()
        self._history: deque[Block] = deque()
        self._held = 0
        self._span = round(HISTORY_S * rate)
        self._join = max(1, round(JOIN_S * rate))
        # raised cosine from 1 to 0: how much of the extrapolation is left in a join
        self._leave = 0.5 + 0.5 * np.cos(np.pi * (np.arange(self._join) + 0.5) / self._join)
        self._gap = np.zeros(columns, np.int64)  # samples extrapolated so far; 0: none
        self._joined = np.full(columns, self._join)  # samples of the join that are done
        self._models = np.zeros((columns, ORDER + 1))
        self._states = np.zeros((columns, ORDER))
        self._residuals = np.zeros(columns)
        self._bounds = np.zeros(columns)
        self.set_interpolate(interpolate_ms)

    def set_interpolate(self, interpolate_ms: float) -> None:
        """Take another threshold from the next gap on."""
        self._fade = fade_curve(self.rate, interpolate_ms)

    @property
    def idle(self) -> bool:
        """Whether nothing is being repaired, so that blocks pass as they are."""
        return not self._gap.any() and bool((self._joined == self._join).all())

    def repair(
        self, block: Block, lost: Mask | None = None, following: Block | None = None
    ) -> Block:
        """Fill the lost columns of a block and join those that are back.

        :param block: shape ``(n, columns)``; what is in lost columns does not matter.
        :param lost: which columns are missing; None for none.
        :param following: the block right after this one, complete, if it is known already.
        :returns: the block itself where nothing was to be done, otherwise a new one.
        """
        if lost is None and self.idle:
            self._remember(block)
            return block
        if lost is None:
            lost = np.zeros(block.shape[1], bool)
        out = block.astype(np.float64).T.copy()
        self._begin(np.flatnonzero(lost & (self._gap == 0)))
        columns = np.flatnonzero(lost)
        if len(columns):
            out[columns] = self._fill(columns, len(block), following)
        back = np.flatnonzero(~lost & ((self._gap > 0) | (self._joined < self._join)))
        if len(back):
            self._come_back(back, out)
        repaired = _as_type(out.T, block.dtype)
        self._remember(repaired)
        return repaired

    def discontinuity(self) -> None:
        """What comes next does not continue what was before: join it from an extrapolation."""
        fresh = np.flatnonzero(self._gap == 0)
        self._begin(fresh)
        self._gap[fresh] = 1
        self._joined[:] = 0

    def silence(self, n: int, dtype: npt.DTypeLike) -> Block:
        """``n`` samples of silence after a gap that was faded out already."""
        self._gap[:] = len(self._fade)
        self._joined[:] = 0
        block = np.zeros((n, len(self._gap)), dtype)
        self._remember(block[: self._span])
        return block

    # -- parts

    def _begin(self, columns: npt.NDArray[np.intp]) -> None:
        """Model these columns from their last samples."""
        if not len(columns):
            return
        past = np.zeros((len(columns), 0))
        if self._history:
            past = np.concatenate(self._history)[-self._span :, columns].astype(np.float64).T
        models, self._residuals[columns] = burg(past, min(ORDER, past.shape[1] // 3))
        self._models[columns] = 0.0
        self._models[columns, : models.shape[1]] = models
        self._states[columns] = _state_after(self._models[columns], past)
        self._bounds[columns] = np.abs(past).max(axis=1, initial=0.0)
        self._joined[columns] = 0

    def _extrapolate(self, columns: npt.NDArray[np.intp], n: int) -> Lanes:
        """The next ``n`` samples of the models, before any fading."""
        lanes, self._states[columns] = self._run(
            self._models[columns],
            self._states[columns],
            self._residuals[columns],
            self._bounds[columns],
            n,
        )
        return lanes

    def _run(
        self, models: Lanes, states: Lanes, residuals: Level, bounds: Level, n: int
    ) -> tuple[Lanes, Lanes]:
        """``n`` samples of each model, kept within its bound, and the states after them."""
        lanes = np.zeros((len(models), n))
        noise = np.clip(self._random.standard_normal(lanes.shape), -2.5, 2.5)
        noise *= residuals[:, None]
        for row in np.flatnonzero(bounds):
            lanes[row], states[row] = self._lfilter([1.0], models[row], noise[row], zi=states[row])
        return np.clip(lanes, -bounds[:, None], bounds[:, None]), states

    def _fill(self, columns: npt.NDArray[np.intp], n: int, following: Block | None) -> Lanes:
        forward = self._extrapolate(columns, n)
        for row, column in enumerate(columns):
            faded = self._fade[self._gap[column] : self._gap[column] + n]
            forward[row, : len(faded)] *= faded
            forward[row, len(faded) :] = 0.0
        self._gap[columns] += n
        self._joined[columns] = 0
        if following is None or n < self._join:
            return forward
        # From the other side: time runs backwards.
        future = following[: self._span, columns].astype(np.float64).T[:, ::-1]
        models, residuals = burg(future, min(ORDER, future.shape[1] // 3))
        bounds = np.abs(future).max(axis=1, initial=0.0)
        backward, _ = self._run(models, _state_after(models, future), residuals, bounds, n)
        backward = backward[:, ::-1]
        weight = 0.5 + 0.5 * np.cos(np.pi * (np.arange(n) + 0.5) / n)
        self._gap[columns] = 0
        self._joined[columns] = self._join  # it meets what follows by itself
        return forward * weight + backward * (1 - weight)

    def _come_back(self, columns: npt.NDArray[np.intp], out: Lanes) -> None:
        """Cross-fade from the extrapolation to what is there again."""
        n = min(out.shape[1], self._join)
        forward = self._extrapolate(columns, n)
        for row, column in enumerate(columns):
            gap, done = self._gap[column], self._joined[column]
            weight = self._leave[done : done + n]
            faded = np.zeros(len(weight))
            level = self._fade[gap : gap + len(weight)]
            faded[: len(level)] = level
            real = out[column, : len(weight)]
            real += weight * (forward[row, : len(weight)] * faded - real)
            self._gap[column] = gap + len(weight) if done + n < self._join else 0
            self._joined[column] = min(done + n, self._join)

    def _remember(self, block: Block) -> None:
        self._history.append(block)
        self._held += len(block)
        while self._held - len(self._history[0]) >= self._span:
            self._held -= len(self._history.popleft())


def fade_curve(rate: int, interpolate_ms: float) -> Level:
    """Gain of a concealment from its first sample to the one where it is silent."""
    length = max(2, round(interpolate_ms * rate / 1000))
    hold = min(round(HOLD_S * rate), length // 2)
    curve = np.ones(length)
    curve[hold:] = 0.5 + 0.5 * np.cos(np.pi * (np.arange(length - hold) + 1) / (length - hold))
    return curve


def burg(lanes: Lanes, order: int) -> tuple[Lanes, Level]:
    """Autoregressive models by Burg's method, one a row.

    :param lanes: shape ``(columns, n)``.
    :returns: ``1, a1 … a_order`` a row, shape ``(columns, order + 1)``, always stable:
        ``x[t] = -a1 x[t-1] - a2 x[t-2] … + e[t]``, and the RMS of ``e``.
    """
    count = len(lanes)
    model = np.zeros((count, order + 1))
    model[:, 0] = 1.0
    forward, backward = lanes[:, 1:], lanes[:, :-1]
    floor = 1e-20 * np.einsum("ij,ij->i", lanes, lanes) + 1e-300
    for step in range(1, order + 1):
        energy = np.einsum("ij,ij->i", forward, forward)
        energy += np.einsum("ij,ij->i", backward, backward)
        reflection = -2 * np.einsum("ij,ij->i", forward, backward) / np.maximum(energy, floor)
        reflection[energy <= floor] = 0.0
        column = reflection[:, None]
        model[:, 1 : step + 1] += column * model[:, step - 1 :: -1][:, :step]
        forward, backward = (
            (forward + column * backward)[:, 1:],
            (backward + column * forward)[:, :-1],
        )
    samples = max(1, forward.shape[1])
    return model, np.sqrt(np.einsum("ij,ij->i", forward, forward) / samples)


def _state_after(models: Lanes, past: Lanes) -> Lanes:
    """State of ``lfilter([1], model)`` once it has put out ``past``: transposed direct form II."""
    order = models.shape[1] - 1
    states = np.zeros((len(models), order))
    newest_first = past[:, ::-1][:, :order]
    for index in range(order):
        count = min(order - index, newest_first.shape[1])
        weights = models[:, index + 1 : index + 1 + count]
        states[:, index] = -np.einsum("ij,ij->i", weights, newest_first[:, :count])
    return states


def _as_type(block: Lanes, dtype: npt.DTypeLike) -> Block:
    if np.dtype(dtype) == np.int32:
        return np.clip(np.rint(block), -(2.0**31), 2.0**31 - 1).astype(np.int32)
    return block.astype(np.float32)
