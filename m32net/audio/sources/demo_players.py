"""The demo band's bass, guitars, keys, pads and brass."""

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
    hertz,
    pluck,
    saw,
    seconds,
    sine,
    times,
)

_SHORT: Final = score.SHORT_BARS * score.BAR
_LONG: Final = score.LONG_BARS * score.BAR


def basses(random: Random) -> dict[str, Sound]:
    """One bass, twice: straight from the pick-up, and from its growling amplifier."""

    def note(pitch: int, samples: int) -> Sound:
        string = pluck(hertz(pitch), samples, 0.35, 1.4, random)
        return string + 0.5 * sine(hertz(pitch), samples) * decay(samples, 0.5)

    play = Sampler(note)
    track = Track(_SHORT)
    for bar, chord in enumerate(score.CHORDS):
        for step, length, above in score.BASS:
            sound = play(chord.root + above, length * score.STEP - 600)
            track.add(
                sound * envelope(len(sound), 0.002, 0.03), bar * score.BAR + step * score.STEP
            )
    amplified = band(np.tanh(2.5 * track.sound), 60, 2200, loop=True)
    return {"Bass DI": track.sound, "Bass Amp": amplified}


def rhythm_guitar(random: Random) -> Sound:
    """Palm-muted fifths through a driven amplifier."""
    track = Track(_SHORT)

    def fifth(pitch: int, muted: bool) -> Sound:
        samples = score.STEP if muted else 2 * score.STEP
        ring = 0.09 if muted else 0.7
        strings = [pluck(hertz(pitch + up), samples, 0.7, ring, random) for up in (0, 7, 12)]
        return strings[0] + strings[1] + strings[2]

    play = Sampler(fifth)
    for bar, chord in enumerate(score.CHORDS):
        for step, mark in enumerate(score.CHUG):
            if mark != ".":
                at = bar * score.BAR + step * score.STEP
                track.add(play(chord.root + 12, mark == "x"), at, 0.8 if mark == "x" else 1.0)
    return band(np.tanh(3.0 * track.sound), 110, 3800, loop=True)


def clean_guitar(random: Random) -> Sound:
    """Arpeggios, with a chorus effect."""
    track = Track(_SHORT)
    play = Sampler(lambda pitch: pluck(hertz(pitch), 3 * score.EIGHTH, 0.55, 0.9, random))
    for bar, chord in enumerate(score.CHORDS):
        for eighth, which in enumerate(score.ARPEGGIO):
            track.add(play(chord.notes[which] + 12), bar * score.BAR + eighth * score.EIGHTH)
    wobble = seconds(0.012) + seconds(0.003) * np.sin(2 * np.pi * 16 * np.arange(_SHORT) / _SHORT)
    doubled = track.sound[(np.arange(_SHORT) - wobble.astype(np.int64)) % _SHORT]
    return track.sound + 0.6 * doubled


def acoustic_guitar(random: Random) -> Sound:
    """Strummed chords on six strings."""
    track = Track(_SHORT)
    play = Sampler(lambda pitch: pluck(hertz(pitch), seconds(0.55), 0.9, 0.5, random))
    for bar, chord in enumerate(score.CHORDS):
        strings = [chord.root + 12, chord.root + 19, *chord.notes]
        for step, mark in enumerate(score.STRUM):
            if mark == ".":
                continue
            order = strings if mark == "D" else strings[:2:-1]
            for string, pitch in enumerate(order):
                at = bar * score.BAR + step * score.STEP + string * seconds(0.008)
                track.add(play(pitch), at, 1.0 if mark == "D" else 0.6)
    return band(track.sound, 140, None, loop=True)


def electric_piano() -> dict[str, Sound]:
    """Two-operator FM, with a tremolo that goes from side to side."""

    def note(pitch: int, samples: int) -> Sound:
        base = hertz(pitch)
        tine = sine(14 * base, samples) * decay(samples, 0.06) * np.float32(0.06)
        depth = 0.28 * decay(samples, 0.5)
        cycles = times(samples) * np.float32(2 * np.pi * base)
        body: Sound = np.sin(cycles + depth * np.sin(cycles)) * decay(samples, 0.9)
        return (body + tine) * envelope(samples, 0.003, 0.08)

    play = Sampler(note)
    track = Track(_SHORT)
    for bar, chord in enumerate(score.CHORDS):
        for step, length in score.EP_RHYTHM:
            for pitch in chord.notes:
                at = bar * score.BAR + step * score.STEP
                track.add(play(pitch, (length + 1) * score.STEP), at)
    pan = 0.35 * np.sin(2 * np.pi * 80 * np.arange(_SHORT) / _SHORT).astype(np.float32)
    return {"Keys L": track.sound * (1 + pan), "Keys R": track.sound * (1 - pan)}


_DRAWBARS: Final = ((0.5, 0.7), (1, 1.0), (1.5, 0.5), (2, 0.6), (3, 0.25), (4, 0.3), (8, 0.12))


def organ() -> Sound:
    """Drawbars and a rotating speaker."""

    def note(pitch: int, samples: int) -> Sound:
        out = np.zeros(samples, np.float32)
        for ratio, level in _DRAWBARS:
            out += sine(ratio * hertz(pitch), samples, 0.1 * ratio) * np.float32(level)
        return out * envelope(samples, 0.006, 0.03)

    play = Sampler(note)
    track = Track(_SHORT)
    for bar, chord in enumerate(score.CHORDS):
        for step, length in score.ORGAN_RHYTHM:
            for pitch in chord.notes[1:]:
                at = bar * score.BAR + step * score.STEP
                track.add(play(pitch, length * score.STEP + seconds(0.02)), at)
    turns = 2 * np.pi * 125 * np.arange(_SHORT) / _SHORT
    swept = (np.arange(_SHORT) - (22 + 20 * np.sin(turns)).astype(np.int64)) % _SHORT
    return track.sound[swept] * (0.8 + 0.2 * np.cos(turns)).astype(np.float32)


def pads() -> dict[str, Sound]:
    """Detuned saws that come up slowly; each side has its own."""

    def note(pitch: int, cents: int) -> Sound:
        samples = score.BAR + seconds(0.5)
        voices = [
            saw(hertz(pitch + (cents + spread) / 100), samples, 0.37 * index)
            for index, spread in enumerate((-9, 9))
        ]
        dark = band(voices[0] + voices[1], None, 1400)
        return dark * envelope(samples, 0.5, 0.6)

    play = Sampler(note)
    tracks = {"Pad L": (Track(_SHORT), -3), "Pad R": (Track(_SHORT), 4)}
    for track, cents in tracks.values():
        for bar, chord in enumerate(score.CHORDS):
            for pitch in chord.notes:
                track.add(play(pitch, cents), bar * score.BAR)
    return {name: track.sound for name, (track, _cents) in tracks.items()}


def brass() -> Sound:
    """A section in three parts: bright at the attack, then darker."""

    def note(pitch: int, samples: int) -> Sound:
        wave = saw(hertz(pitch), samples, 0.2) + saw(hertz(pitch + 0.07), samples, 0.6)
        bright = band(wave, 250, 6000) * decay(samples, 0.12)
        return (bright + band(wave, 180, 1500)) * envelope(samples, 0.025, 0.06)

    play = Sampler(note)
    track = Track(_LONG)
    for hit in score.brass():
        chord = score.CHORDS[int(hit.at // 8) % score.SHORT_BARS]
        for pitch in chord.notes[1:]:
            track.add(play(pitch + 12, round(hit.length * score.EIGHTH)), hit.at * score.EIGHTH)
    return track.sound


def lead_guitar() -> Sound:
    """Sustained and singing, with vibrato, through a loud amplifier."""
    track = Track(_LONG)
    for note in score.LEAD_GUITAR:
        samples = round(note.length * score.EIGHTH) + seconds(0.08)
        at = times(samples)
        vibrato = 0.012 * np.sin(2 * np.pi * 5.6 * at) * np.minimum(at / 0.3, 1)
        bend = -0.06 * decay(samples, 0.03)
        frequency = (hertz(note.pitch) * (1 + vibrato + bend)).astype(np.float32)
        tone = np.tanh(4 * saw(frequency, samples)) * decay(samples, 1.2)
        track.add(tone * envelope(samples, 0.004, 0.08), note.at * score.EIGHTH)
    return band(track.sound, 200, 3200, loop=True)
