"""What one stream is heard through: its chains, its mixers, and its way to the sound card.

While a listener moves from one server to another it has two of them, whose blocks meet in the
junctions of :mod:`m32net.listener.outputs`.  No files, no ring and no sound card here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from m32net.listener.chain import Chain
from m32net.listener.decode import as_float
from m32net.listener.depacketize import StreamPlan
from m32net.listener.mixer import Mixer
from m32net.listener.playback import Resampled, Stereo
from m32net.listener.playout import Block, Piece
from m32net.listener.settings import Mix

_MOST_MADE_UP_S: Final = 0.1


class Voice:
    """One stream's part of the outputs.

    :ivar lossless: feeds the recordings; None if there are none.
    :ivar live: feeds the sound card; None if there is none, or after it failed.
    :ivar playing: mixes what the sound card plays.
    :ivar recording: mixes what is recorded as a mix.
    :ivar resampled: from ``playing`` to the sound card's rate.
    :ivar last_played: media time of the last piece that was mixed for the sound card.
    """

    def __init__(self, plan: StreamPlan) -> None:
        self.plan = plan
        self.lossless: Chain | None = None
        self.live: Chain | None = None
        self.playing: Mixer | None = None
        self.recording: Mixer | None = None
        self.resampled: Resampled | None = None
        self.last_played: int | None = None
        self._made: Block | None = None

    @property
    def chains(self) -> tuple[Chain, ...]:
        return tuple(chain for chain in (self.lossless, self.live) if chain is not None)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        return tuple(one for one in (self.playing, self.recording) if one is not None)

    def mixer(self, mix: Mix) -> Mixer:
        return Mixer(self.plan.channels, self.plan.sample_rate, mix)

    def sound(self, block: Block, correction: float) -> Stereo:
        """A block of channels as the sound card takes it."""
        assert self.playing is not None and self.resampled is not None
        return self.resampled(mixed(self.playing, block), correction)

    def more_sound(self, rows: int) -> Stereo | None:
        """So many rows more for the sound card, made of what was last."""
        if self.live is None:
            return None
        samples = min(rows / self._device_rows, _MOST_MADE_UP_S * self.plan.sample_rate)
        return self.sound(self.live.playout.stretch(max(1, round(samples))), 0.0)

    @property
    def _device_rows(self) -> float:
        assert self.resampled is not None
        return self.resampled.device_rate / self.resampled.rate

    def more_tracks(self, rows: int) -> Block | None:
        """So many rows more for the recorded tracks, made of what was last; both recordings ask."""
        if self.lossless is None:
            return None
        if self._made is None or len(self._made) < rows:
            self._made = self.lossless.playout.stretch(rows)
        return self._made[:rows]

    def more_mix(self, rows: int) -> Stereo | None:
        """The same for the recorded mix."""
        made = self.more_tracks(rows)
        if made is None or self.recording is None:
            return None
        return mixed(self.recording, made)


def mixed(mixer: Mixer, block: Block) -> Stereo:
    """A block of channels mixed; the block itself is left as it is."""
    floats = as_float(block)
    if floats is block:  # others hold it too, and the mixer works in place
        floats = np.array(block)
    return mixer.process(floats)


def mixing(mixer: Mixer, write: Callable[[Stereo], object]) -> Callable[[Piece], None]:
    """An output of a chain that mixes."""

    def mix(piece: Piece) -> None:
        write(mixed(mixer, piece.block))

    return mix
