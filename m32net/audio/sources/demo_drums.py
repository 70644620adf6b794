"""The demo band's drummer and percussionist: kit, overheads, shaker, congas, click."""

from __future__ import annotations

from typing import Final

import numpy as np

from m32net.audio.sources import demo_score as score
from m32net.audio.sources.demo_sounds import (
    Random,
    Sampler,
    Sound,
    Track,
    band,
    decay,
    envelope,
    noise,
    seconds,
    sine,
    times,
)

_LENGTH: Final = score.SHORT_BARS * score.BAR
_METAL_HZ: Final = (3231.0, 4517.0, 5803.0, 6997.0, 8581.0, 10211.0)


def drum(low: float, high: float, fall: float, ring: float, length: float) -> Sound:
    """A skin: a sine that falls from ``high`` to ``low`` Hz."""
    samples = seconds(length)
    sweep = low + (high - low) * decay(samples, fall)
    return sine(sweep, samples) * decay(samples, ring) * envelope(samples, 0.0005, 0.02)


def _kick_in(random: Random) -> Sound:
    body = drum(52, 190, 0.022, 0.10, 0.35)
    beater = band(noise(len(body), random), 2500, 7000) * decay(len(body), 0.004)
    return body + 0.5 * beater


def _kick_out(random: Random) -> Sound:
    body = drum(46, 95, 0.045, 0.20, 0.6)
    air = band(noise(len(body), random), 40, 160) * decay(len(body), 0.08)
    return np.concatenate((np.zeros(48, np.float32), body + 0.25 * air))


def _snare_top(random: Random) -> Sound:
    skin = drum(185, 260, 0.012, 0.07, 0.3)
    wires = band(noise(len(skin), random), 900, 9000) * decay(len(skin), 0.075)
    return skin + 0.45 * wires


def _snare_bottom(random: Random) -> Sound:
    samples = seconds(0.35)
    wires = band(noise(samples, random), 3000, 14000) * decay(samples, 0.11)
    return wires + 0.2 * drum(195, 215, 0.02, 0.05, 0.35)


def metal(length: float, ring: float, low: float, random: Random) -> Sound:
    """Hi-hat or cymbal: clashing partials and noise."""
    samples = seconds(length)
    clash = np.zeros(samples, np.float32)
    for frequency in _METAL_HZ:
        clash += np.sign(sine(frequency * low / 5000, samples, float(random.random())))  # nosec B311 # of numpy, for music
    hiss = noise(samples, random)
    return (
        band(0.25 * clash + hiss, low, None) * decay(samples, ring) * envelope(samples, 0.001, 0.02)
    )


def _steps(pattern: str) -> list[tuple[int, str]]:
    return [(step, mark) for step, mark in enumerate(pattern) if mark != "."]


def _play(track: Track, patterns: tuple[str, ...], hits: dict[str, tuple[Sound, float]]) -> None:
    for bar in range(score.SHORT_BARS):
        for step, mark in _steps(patterns[bar % len(patterns)]):
            sound, gain = hits[mark]
            track.add(sound, bar * score.BAR + step * score.STEP, gain)


def kit(random: Random) -> dict[str, Sound]:
    """Kick and snare microphones, hi-hat, toms and overheads."""
    tracks = {name: Track(_LENGTH) for name in _KIT}
    strokes = {name: make(random) for name, make in _STROKES.items()}
    for name, patterns, accents in (
        ("Kick In", score.KICK, ("K", "k")),
        ("Kick Out", score.KICK, ("K", "k")),
        ("Snare Top", score.SNARE, ("S", "s")),
        ("Snare Bottom", score.SNARE, ("S", "s")),
    ):
        loud, soft = accents
        stroke = strokes[name]
        _play(tracks[name], patterns, {loud: (stroke, 1.0), soft: (stroke, 0.35)})
    closed, opened = metal(0.12, 0.025, 6000, random), metal(0.5, 0.16, 6000, random)
    hits = {"H": (closed, 1.0), "h": (closed, 0.45), "o": (opened, 0.9)}
    _play(tracks["Hi-Hat"], score.HAT, hits)
    toms = {"1": ("Tom 1", drum(142, 205, 0.05, 0.16, 0.7))}
    toms["2"] = ("Tom 2", drum(108, 160, 0.06, 0.20, 0.8))
    toms["F"] = ("Floor Tom", drum(74, 115, 0.08, 0.30, 1.1))
    for bar in range(3, score.SHORT_BARS, 4):
        for step, mark in _steps(score.TOM_FILL):
            name, stroke = toms[mark]
            tracks[name].add(stroke, bar * score.BAR + step * score.STEP)
    _overheads(tracks, random)
    return {name: track.sound for name, track in tracks.items()}


_KIT: Final = (
    "Kick In", "Kick Out", "Snare Top", "Snare Bottom", "Hi-Hat",
    "Tom 1", "Tom 2", "Floor Tom", "Overhead L", "Overhead R",
)  # fmt: skip
_STROKES: Final = {
    "Kick In": _kick_in,
    "Kick Out": _kick_out,
    "Snare Top": _snare_top,
    "Snare Bottom": _snare_bottom,
}
_OVERHEAD_MIX: Final = (
    ("Kick Out", 0.10, 0.10),
    ("Snare Top", 0.30, 0.26),
    ("Hi-Hat", 0.40, 0.15),
    ("Tom 1", 0.35, 0.20),
    ("Tom 2", 0.22, 0.32),
    ("Floor Tom", 0.12, 0.40),
)


def _overheads(tracks: dict[str, Track], random: Random) -> None:
    """What the drummer's cymbals and everything else sound like from above."""
    crash, ride = metal(3.0, 0.8, 3500, random), metal(0.9, 0.22, 4500, random)
    left, right = tracks["Overhead L"], tracks["Overhead R"]
    for name, to_left, to_right in _OVERHEAD_MIX:
        heard = np.roll(tracks[name].sound, seconds(0.003))
        left.add(heard, 0, to_left)
        right.add(heard, 0, to_right)
    for bar in range(0, score.SHORT_BARS, 4):
        left.add(crash, bar * score.BAR, 0.8)
        right.add(crash, bar * score.BAR, 0.35)
    for beat in range(4 * score.SHORT_BARS):
        right.add(ride, beat * score.BEAT, 0.45)
        left.add(ride, beat * score.BEAT, 0.12)


def shaker(random: Random) -> Sound:
    """Sixteenths, the first of each four stressed."""
    track = Track(_LENGTH)
    samples = seconds(0.09)
    swish = band(noise(samples, random), 5000, 12000) * envelope(samples, 0.03, 0.05)
    for step in range(16 * score.SHORT_BARS):
        track.add(swish, step * score.STEP + (step % 2) * 300, (1.0, 0.35, 0.6, 0.4)[step % 4])
    return track.sound


def congas(random: Random) -> Sound:
    """A low and a high conga."""
    track = Track(_LENGTH)
    slap = band(noise(seconds(0.4), random), 800, 5000) * decay(seconds(0.4), 0.006)
    low = drum(196, 230, 0.02, 0.11, 0.4) + 0.15 * slap
    high = drum(294, 350, 0.02, 0.08, 0.4) + 0.3 * slap
    _play(track, score.CONGAS, {"l": (low, 1.0), "h": (high, 0.7)})
    return track.sound


def click() -> Sound:
    """The metronome: a high beep on one, a lower on the other beats, nothing in between."""
    beep = Sampler(lambda pitch: sine(pitch, seconds(0.04)) * envelope(seconds(0.04), 0.001, 0.02))
    track = Track(_LENGTH)
    for beat in range(4 * score.SHORT_BARS):
        track.add(beep(1760.0 if beat % 4 == 0 else 880.0), beat * score.BEAT)
    return track.sound


def applause(samples: int, random: Random) -> Sound:
    """A small audience that rustles and, now and then, claps; pink-ish, never quite still."""
    room = np.resize(band(noise(_LENGTH, random), 120, 3500, 1, loop=True), samples)
    swell = 0.6 + 0.4 * np.sin(times(samples) * np.float32(2 * np.pi / 9.6)) ** 2
    track = Track(samples)
    track.add(room * swell, 0, 0.05)
    clap = band(noise(seconds(0.05), random), 900, 4000) * decay(seconds(0.05), 0.008)
    for beat in range(1, samples // score.BEAT, 2):
        for _ in range(5):
            at = beat * score.BEAT + random.normal(0, seconds(0.012))
            track.add(clap, at, float(random.uniform(0.05, 0.15)))  # nosec B311 # of numpy, for music
    return track.sound
