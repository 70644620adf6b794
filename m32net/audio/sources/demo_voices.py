"""The demo band's singers, and the engineer's talkback: formant synthesis.

A sawtooth for the vocal cords and four resonators for the mouth (formants of Peterson and Barney
1952); no words, but vowels, breath and phrasing.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from m32net.audio.sources import demo_score as score
from m32net.audio.sources.demo_sounds import (
    Random,
    Response,
    Sound,
    Track,
    band,
    decay,
    envelope,
    filtered,
    hertz,
    low_pass,
    noise,
    resonance,
    saw,
    seconds,
    times,
)

_LENGTH: Final = score.LONG_BARS * score.BAR
_VOWELS: Final = {
    "a": (760, 1220, 2750, 3700),
    "e": (560, 1980, 2700, 3650),
    "i": (310, 2450, 3080, 3800),
    "o": (520, 860, 2650, 3500),
    "u": (330, 780, 2500, 3400),
}
_LEVELS: Final = (1.0, 0.55, 0.28, 0.16)
_WIDTHS: Final = (80, 100, 140, 200)


def _sing(pitch: int, samples: int, vowel: str, size: float, random: Random) -> Sound:
    """One note.

    :param size: of the throat; over 1 moves the formants up.
    """
    at = times(samples)
    vibrato = 0.011 * np.sin(2 * np.pi * (5.3 + 0.4 * random.random()) * at)  # nosec B311 # of numpy, for music
    vibrato *= np.clip((at - 0.15) / 0.4, 0, 1)
    scoop = -0.03 * decay(samples, 0.04)
    frequency = (hertz(pitch) * (1 + vibrato + scoop)).astype(np.float32)
    cords = saw(frequency, samples, float(random.random())) + 0.04 * noise(samples, random)  # nosec B311 # of numpy, for music

    def mouth(frequencies: Sound) -> Response:
        out = np.zeros(len(frequencies), np.complex64)
        for formant, level, width in zip(_VOWELS[vowel], _LEVELS, _WIDTHS, strict=True):
            out += np.float32(level) * resonance(frequencies, formant * size, width)
        return out * low_pass(frequencies, 2400, 1)

    return filtered(cords, mouth) * envelope(samples, 0.04, 0.09)


def _consonant(random: Random) -> Sound:
    samples = seconds(0.05)
    return band(noise(samples, random), 3000, 9000) * envelope(samples, 0.015, 0.03)


def sing(notes: tuple[score.Note, ...], size: float, random: Random) -> Sound:
    """A whole part; ``size`` of the singer's throat, 1.0 for the middle."""
    track = Track(_LENGTH)
    hiss = _consonant(random)
    for note in notes:
        samples = round(note.length * score.EIGHTH) + seconds(0.05)
        start = note.at * score.EIGHTH + random.normal(0, seconds(0.006))
        track.add(_sing(note.pitch, samples, note.vowel, size, random), start)
        track.add(hiss, start - seconds(0.035), 0.05)
    return track.sound


def talkback(random: Random) -> Sound:
    """Somebody at the desk: short phrases of speech-like syllables, with long pauses."""
    track = Track(_LENGTH)
    for phrase in range(0, score.LONG_BARS, 4):
        at = (phrase + 2.0) * score.BAR
        for _ in range(int(random.integers(7, 13))):
            samples = seconds(float(random.uniform(0.09, 0.22)))  # nosec B311 # of numpy, for music
            pitch = int(random.integers(43, 51))
            vowel = str(random.choice(list(_VOWELS)))  # nosec B311 # of numpy, for music
            syllable = _sing(pitch, samples, vowel, 0.95, random)
            track.add(syllable, at, float(random.uniform(0.6, 1.0)))  # nosec B311 # of numpy, for music
            track.add(_consonant(random), at - seconds(0.03), 0.08)
            at += samples + seconds(float(random.choice((0.01, 0.02, 0.15))))  # nosec B311 # of numpy, for music
    return track.sound
