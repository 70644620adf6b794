"""The musician's mixer: blocks of all channels in, a stereo block out (STR-22).

Per channel equaliser, limiter, fader, pan, mute and solo; then the sum, the master fader and the
master limiter.  Every change of a number is ramped, so nothing clicks.  The whole sum is two
small matrix products a block, whatever the number of channels; only equalisers that are not flat
and limiters that are at work cost more.  Delay: :attr:`Mixer.latency` samples, always the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m32net.listener.eq import EqBank
from m32net.listener.limiter import Limiter
from m32net.listener.settings import Mix

RAMP_S: Final = 0.02
"""Time a fader, pan, mute or solo takes to get where it was put."""
SILENCE_DB: Final = -120.0
"""What meters show for less than this."""

Signal = npt.NDArray[np.float32]
Gains = npt.NDArray[np.float64]


def pan_gains(pan: float) -> tuple[float, float]:
    """Left and right gain for -1..1, equal power: -3.01 dB each at the centre."""
    angle = (pan + 1) * math.pi / 4
    return math.cos(angle), math.sin(angle)


def target_gains(mix: Mix, channels: Sequence[int]) -> Gains:
    """Fader, pan, mute, solo and master of each channel in one matrix, shape ``(channels, 2)``.

    While any channel of the mix is soloed, the others are silent; a muted one always is.
    """
    settings = [mix.channel(channel_id) for channel_id in channels]
    solo = any(one.solo for one in mix.channels)
    gains = np.zeros((len(settings), 2))
    for row, one in enumerate(settings):
        if not one.mute and (one.solo or not solo):
            gains[row] = pan_gains(one.pan)
            gains[row] *= one.volume * mix.master.volume
    return gains


@dataclass(frozen=True, slots=True)
class Meters:
    """Levels since the last reading, in dB of full scale.

    :ivar peak: largest sample of each channel before its fader.
    :ivar rms: of each channel, likewise.
    :ivar master_peak: left and right as they are heard.
    :ivar master_rms: likewise.
    :ivar reduction: deepest cut of the master limiter, 0 or negative.
    """

    peak: tuple[float, ...]
    rms: tuple[float, ...]
    master_peak: tuple[float, float]
    master_rms: tuple[float, float]
    reduction: float


class Mixer:
    """Mixes blocks.

    :param channels: channel id of each column of the blocks.
    :param rate: sample rate in Hz.
    :param mix: settings to begin with, in force at once.
    """

    def __init__(self, channels: Sequence[int], rate: int, mix: Mix | None = None) -> None:
        self.channels = tuple(channels)
        self.rate = rate
        count = len(self.channels)
        self._eq = EqBank(count, rate)
        self._limiter = Limiter(count, rate)
        self._master = Limiter(2, rate, linked=True)
        length = max(2, round(RAMP_S * rate))
        self._ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
        self._position = length  # samples of the ramp that are done
        self._channel_meter = _Meter(count)
        self._master_meter = _Meter(2)
        self._reduction = 0.0
        self.mix = mix or Mix()
        self._from = self._to = target_gains(self.mix, self.channels)
        self.set_mix(self.mix)
        self._from = self._to
        self._position = length

    @property
    def latency(self) -> int:
        """Samples between input and output."""
        return self._limiter.lookahead + self._master.lookahead

    def set_mix(self, mix: Mix) -> None:
        """Go over to other settings; what is heard gets there within :data:`RAMP_S`."""
        self.mix = mix
        settings = [mix.channel(channel_id) for channel_id in self.channels]
        self._eq.set({column: one.eq for column, one in enumerate(settings)})
        self._limiter.set([one.limiter for one in settings])
        self._master.set([mix.master.limiter])
        gains = target_gains(mix, self.channels)
        if not np.array_equal(gains, self._to):
            self._from = self._now()
            self._to = gains
            self._position = 0

    def process(self, block: Signal) -> Signal:
        """Mix one block.

        :param block: shape ``(n, channels)``, full scale 1; any n.  It may be changed.
        :returns: shape ``(n, 2)``: left and right.
        """
        self._eq.process(block)
        self._channel_meter.add(block)
        out = self._master.process(self._sum(self._limiter.process(block)))
        self._master_meter.add(out)
        self._reduction = min(self._reduction, self._master.reduction_db)
        return out

    def _sum(self, block: Signal) -> Signal:
        weight = self._ramp[self._position : self._position + len(block)]
        if not len(weight):
            return block @ self._to.astype(np.float32)
        self._position += len(weight)
        ramp = np.ones((len(block), 1), np.float32)
        ramp[: len(weight), 0] = weight
        start = block @ self._from.astype(np.float32)
        out: Signal = start + ramp * (block @ (self._to - self._from).astype(np.float32))
        return out

    def _now(self) -> Gains:
        """The gains where the ramp stands."""
        if self._position >= len(self._ramp):
            return self._to
        weight = float(self._ramp[self._position - 1]) if self._position else 0.0
        return self._from + weight * (self._to - self._from)

    def read_meters(self) -> Meters:
        """The levels since the last call, which starts them anew."""
        peak, rms = self._channel_meter.read()
        (left, right), (left_rms, right_rms) = self._master_meter.read()
        reduction, self._reduction = self._reduction, 0.0
        return Meters(peak, rms, (left, right), (left_rms, right_rms), reduction)


class _Meter:
    """Peak and mean square of columns, gathered over blocks."""

    def __init__(self, columns: int) -> None:
        self._peak = np.zeros(columns, np.float32)
        self._squares = np.zeros(columns)
        self._samples = 0

    def add(self, block: Signal) -> None:
        if not len(block):
            return
        np.maximum(self._peak, np.abs(block).max(axis=0), out=self._peak)
        self._squares += np.einsum("ij,ij->j", block, block)
        self._samples += len(block)

    def read(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        peak = _decibels(self._peak)
        rms = _decibels(np.sqrt(self._squares / max(1, self._samples)))
        self._peak[:] = 0
        self._squares[:] = 0
        self._samples = 0
        return peak, rms


def _decibels(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    floor = 10 ** (SILENCE_DB / 20)
    return tuple(np.round(20 * np.log10(np.maximum(values, floor)), 1).tolist())
