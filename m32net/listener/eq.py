"""The mixer's three-band equaliser: coefficients and a bank of filters with state (STR-22).

The bands are biquads from R. Bristow-Johnson's *Audio EQ Cookbook*: a low shelf at 200 Hz, a peak
at 1 kHz (Q 0.7, about two octaves) and a high shelf at 5 kHz, both shelves with slope S = 1.  The
bank filters only the channels whose equaliser is not flat, and changes a channel's coefficients
by cross-fading from the old filter to the new one, so that no fader can click.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from m32net.listener.filtering import load_lfilter
from m32net.listener.settings import Eq

LOW_HZ: Final = 200.0
MID_HZ: Final = 1000.0
MID_Q: Final = 0.7
HIGH_HZ: Final = 5000.0
FADE_S: Final = 0.01
"""Length of the cross-fade when a channel's coefficients change."""

Sections = npt.NDArray[np.float64]
"""Second-order sections as scipy has them, shape ``(3, 6)``: b0 b1 b2 1 a1 a2 a row."""
Column = npt.NDArray[np.float64]
Signal = npt.NDArray[np.float32]


def sections(eq: Eq, rate: int) -> Sections:
    """The three bands for a sample rate in Hz, low shelf first.

    Frequencies are kept under 0.45 of the rate, for rates at which a band would not fit.
    """
    top = 0.45 * rate
    return np.array(
        [
            _shelf(eq.low, min(LOW_HZ, top), rate, high=False),
            _peak(eq.mid, min(MID_HZ, top), rate),
            _shelf(eq.high, min(HIGH_HZ, top), rate, high=True),
        ]
    )


def _shelf(gain_db: float, frequency: float, rate: int, *, high: bool) -> list[float]:
    a = 10 ** (gain_db / 40)
    omega = 2 * math.pi * frequency / rate
    cos = math.cos(omega)
    # S = 1: alpha = sin(w)/2 * sqrt((A + 1/A)(1/S - 1) + 2)
    root = 2 * math.sqrt(a) * math.sin(omega) / 2 * math.sqrt(2)
    sign = -1.0 if high else 1.0
    b0 = a * ((a + 1) - sign * (a - 1) * cos + root)
    b1 = sign * 2 * a * ((a - 1) - sign * (a + 1) * cos)
    b2 = a * ((a + 1) - sign * (a - 1) * cos - root)
    a0 = (a + 1) + sign * (a - 1) * cos + root
    a1 = -sign * 2 * ((a - 1) + sign * (a + 1) * cos)
    a2 = (a + 1) + sign * (a - 1) * cos - root
    return [b0 / a0, b1 / a0, b2 / a0, 1.0, a1 / a0, a2 / a0]


def _peak(gain_db: float, frequency: float, rate: int) -> list[float]:
    a = 10 ** (gain_db / 40)
    omega = 2 * math.pi * frequency / rate
    alpha = math.sin(omega) / (2 * MID_Q)
    a0 = 1 + alpha / a
    middle = -2 * math.cos(omega) / a0
    return [(1 + alpha * a) / a0, middle, (1 - alpha * a) / a0, 1.0, middle, (1 - alpha / a) / a0]


@dataclass(slots=True)
class _Filter:
    """One channel's filter; a flat one has no coefficients and passes what it gets.

    The three sections run as one of order six: a call of ``lfilter`` costs 8 us where ``sosfilt``
    costs 47 us, and in float64 its poles are exact to 1e-11.
    """

    eq: Eq
    coefficients: tuple[Column, Column] | None
    state: Column = field(default_factory=lambda: np.zeros(6))

    @classmethod
    def of(cls, eq: Eq, rate: int, state: Column) -> _Filter:
        if eq.flat:
            return cls(eq, None, state)
        low, mid, high = sections(eq, rate)
        numerator = np.convolve(np.convolve(low[:3], mid[:3]), high[:3])
        denominator = np.convolve(np.convolve(low[3:], mid[3:]), high[3:])
        return cls(eq, (numerator, denominator), state)

    def run(self, column: Column) -> Column:
        if self.coefficients is None or not len(column):  # lfilter spoils its state on nothing
            return column
        out: Column
        out, self.state = load_lfilter()(*self.coefficients, column, zi=self.state)
        return out


@dataclass(slots=True)
class _Slot:
    """What one column goes through: a filter, and while it changes, the next one too."""

    now: _Filter
    wanted: Eq
    next: _Filter | None = None
    position: int = 0  # samples of the cross-fade that are done


class EqBank:
    """Equalises the columns of blocks.

    :param channels: how many columns a block has.
    :param rate: sample rate in Hz.
    """

    def __init__(self, channels: int, rate: int) -> None:
        self.rate = rate
        fade = max(2, round(FADE_S * rate))
        # raised cosine: neither its value nor its slope jumps at the ends
        self._fade = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)
        self._columns = [_Slot(_Filter(Eq(), None), Eq()) for _ in range(channels)]
        self._busy: list[int] = []

    @property
    def active(self) -> int:
        """Columns that cost something now: not flat, or on the way to it."""
        return len(self._busy)

    def set(self, wanted: Mapping[int, Eq]) -> None:
        """Have these columns (0-based) go over to these settings."""
        for index, eq in wanted.items():
            column = self._columns[index]
            column.wanted = eq
            if column.next is None and column.now.eq != eq:
                self._begin(column)
        self._note_busy()

    def process(self, block: Signal) -> None:
        """Equalise a block of shape ``(n, channels)`` in place."""
        settled = False
        for index in self._busy:
            column = self._columns[index]
            block[:, index] = self._run(column, block[:, index].astype(np.float64))
            settled = settled or (column.next is None and column.now.coefficients is None)
        if settled:
            self._note_busy()

    def _run(self, column: _Slot, signal: Column) -> Column:
        pieces = []
        while column.next is not None and len(signal):
            weight = self._fade[column.position : column.position + len(signal)]
            part, signal = signal[: len(weight)], signal[len(weight) :]
            old, new = column.now.run(part), column.next.run(part)
            pieces.append(old + weight * (new - old))
            column.position += len(weight)
            if column.position == len(self._fade):
                column.now, column.next = column.next, None
                if column.now.eq != column.wanted:
                    self._begin(column)
        if len(signal) or not pieces:
            pieces.append(column.now.run(signal))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _begin(self, column: _Slot) -> None:
        """Start the cross-fade; the new filter takes over the old one's state if it has one."""
        column.next = _Filter.of(column.wanted, self.rate, column.now.state.copy())
        column.position = 0

    def _note_busy(self) -> None:
        self._busy = [
            index
            for index, column in enumerate(self._columns)
            if column.next is not None or column.now.coefficients is not None
        ]
