"""The ``demo`` source: a 32-channel band one can listen to, for trying things without a console.

Synthesised once per process when the source starts (a second or two on the engine thread) and
played as a loop from memory, about 75 MB; playing costs next to nothing.  The same samples every
time and everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from zope.interface import implementer

from m32net.audio.clock import AudioClock
from m32net.audio.frame import Samples
from m32net.audio.sources import demo_drums, demo_players, demo_score, demo_voices
from m32net.audio.sources.demo_sounds import Sound, Track, band, seconds
from m32net.audio.sources.source import ISource, PacedSource

_SHORT: Final = {
    "Kick In": -6.0, "Kick Out": -7.0, "Snare Top": -6.0, "Snare Bottom": -10.0, "Hi-Hat": -12.0,
    "Tom 1": -8.0, "Tom 2": -8.0, "Floor Tom": -8.0, "Overhead L": -10.0, "Overhead R": -10.0,
    "Shaker": -15.0, "Congas": -9.0, "Bass DI": -7.0, "Bass Amp": -9.0,
    "Guitar L": -9.0, "Guitar R": -9.0, "Acoustic Guitar": -9.0,
    "Keys L": -8.0, "Keys R": -8.0, "Organ": -10.0, "Pad L": -12.0, "Pad R": -12.0,
    "Click": -12.0,
}  # fmt: skip
"""Channels that repeat every 8 bars, and their peaks in dBFS."""
_LONG: Final = {
    "Brass": -8.0, "Lead Guitar": -9.0, "Lead Vocal": -6.0,
    "Backing 1": -9.0, "Backing 2": -9.0, "Backing 3": -9.0,
    "Talkback": -10.0, "Ambience L": -14.0, "Ambience R": -14.0,
}  # fmt: skip
"""Channels that take 16 bars."""

DEMO_CHANNEL_NAMES: Final = (*_SHORT, *_LONG)
"""What plays on channels 1 to 32."""
_SEED: Final = 32


@implementer(ISource)
class DemoSource(PacedSource):
    """The band, from its first bar on; up to 32 channels."""

    def __init__(self, channels: int, clock: AudioClock) -> None:
        super().__init__("demo", min(channels, len(DEMO_CHANNEL_NAMES)), channels, clock)

    def _prepare(self) -> None:
        render()

    def _next(self, first: int, samples: int) -> tuple[Samples, Samples | None]:
        block = np.empty((samples, len(DEMO_CHANNEL_NAMES)), np.int32)
        column = 0
        for loop in render():
            channels, length = loop.shape
            at = first % length
            # Loops are whole bars and blocks divide 20 ms, so no block crosses the end.
            block[:, column : column + channels] = loop[:, at : at + samples].T
            column += channels
        block <<= 16
        return np.ascontiguousarray(block[:, : self.channels]), None


@lru_cache(maxsize=1)
def render() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """The 8-bar and the 16-bar loop, int16, shape ``(channels, samples)``.

    ``render.cache_clear()`` frees them.
    """
    parts: list[Callable[[np.random.Generator], dict[str, Sound]]] = [
        lambda random: {"Lead Vocal": demo_voices.sing(demo_score.LEAD_VOCAL, 1.0, random)},
        lambda random: {"Backing 1": demo_voices.sing(demo_score.backing_vocal(0), 1.05, random)},
        lambda random: {"Backing 2": demo_voices.sing(demo_score.backing_vocal(1), 0.98, random)},
        lambda random: {"Backing 3": demo_voices.sing(demo_score.backing_vocal(2), 0.90, random)},
        lambda _random: demo_players.pads(),
        demo_drums.kit,
        lambda _random: {"Organ": demo_players.organ()},
        lambda _random: {"Lead Guitar": demo_players.lead_guitar()},
        demo_players.basses,
        lambda random: {"Guitar L": demo_players.rhythm_guitar(random)},
        lambda random: {"Guitar R": demo_players.clean_guitar(random)},
        lambda random: {"Acoustic Guitar": demo_players.acoustic_guitar(random)},
        lambda _random: demo_players.electric_piano(),
        lambda _random: {"Brass": demo_players.brass()},
        lambda random: {"Talkback": demo_voices.talkback(random)},
        lambda random: {"Shaker": demo_drums.shaker(random), "Congas": demo_drums.congas(random)},
        lambda _random: {"Click": demo_drums.click()},
    ]
    randoms = [np.random.default_rng(seed) for seed in np.random.SeedSequence(_SEED).spawn(19)]
    desk = _Desk()
    # numpy lets go of the GIL in most of this.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part, random: desk.take(part(random)), parts, randoms))
        far_off = _far_off(desk)
        ambience = pool.map(lambda random: _ambience(far_off, random), randoms[-2:])
        desk.take(dict(zip(("Ambience L", "Ambience R"), ambience, strict=True)))
    return desk.short, desk.long


class _Desk:
    """Sets each sound's level and keeps it as one row of a loop."""

    def __init__(self) -> None:
        bar = demo_score.BAR
        self.short = np.zeros((len(_SHORT), demo_score.SHORT_BARS * bar), np.int16)
        self.long = np.zeros((len(_LONG), demo_score.LONG_BARS * bar), np.int16)

    def take(self, sounds: dict[str, Sound]) -> None:
        for name, sound in sounds.items():
            peak = _SHORT.get(name, _LONG.get(name, 0.0))
            gain = 10 ** (peak / 20) * 32767 / float(np.abs(sound).max())
            self.row(name)[:] = np.rint(sound * np.float32(gain))

    def row(self, name: str) -> npt.NDArray[np.int16]:
        loop, names = (self.short, _SHORT) if name in _SHORT else (self.long, _LONG)
        row: npt.NDArray[np.int16] = loop[tuple(names).index(name)]
        return row


def _far_off(desk: _Desk) -> Sound:
    """The band as it sounds at the back of the room, without echoes."""
    mix = np.zeros(desk.long.shape[1], np.float32)
    for name, gain in (("Snare Top", 0.5), ("Guitar L", 0.4), ("Lead Vocal", 0.8), ("Brass", 0.4)):
        mix += np.resize(desk.row(name), len(mix)) * np.float32(gain / 32767)
    return band(mix, 100, 4000, 1, loop=True)


def _ambience(far_off: Sound, random: np.random.Generator) -> Sound:
    """The audience's microphones: the band's echoes, and the audience."""
    heard = Track(len(far_off))
    for echo in range(8):
        delay = seconds(0.02 + 0.5 * float(random.random()) ** 1.5)  # nosec B311 # of numpy, for music
        heard.add(far_off, delay, 0.75**echo * float(random.choice((-1, 1))))  # nosec B311 # of numpy, for music
    loudest = np.abs(heard.sound).max()
    heard.add(demo_drums.applause(len(far_off), random), 0, float(loudest) / 0.3)
    return heard.sound
