"""What the demo band plays: tempo, chords, patterns and melodies.

Notes only, no sound.  Times are in eighths from the beginning unless something else is said,
pitches are MIDI numbers (69 is A4, 440 Hz).  The rhythm section repeats every 8 bars; voices,
brass and solo take 16, a verse and a chorus over the same chords.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from m32net.audio.frame import CAPTURE_RATE

TEMPO: Final = 100
"""Beats per minute; a beat is a whole number of samples."""
BEAT: Final = CAPTURE_RATE * 60 // TEMPO
EIGHTH: Final = BEAT // 2
STEP: Final = BEAT // 4
"""A sixteenth."""
BAR: Final = 4 * BEAT
SHORT_BARS: Final = 8
LONG_BARS: Final = 16


class Chord(NamedTuple):
    """One bar of harmony: the bass note, and four notes from low to high."""

    root: int
    notes: tuple[int, int, int, int]


CHORDS: Final = (
    Chord(33, (57, 60, 64, 67)),  # Am7
    Chord(29, (57, 60, 64, 65)),  # Fmaj7
    Chord(36, (55, 60, 64, 67)),  # C
    Chord(31, (55, 59, 62, 67)),  # G
    Chord(33, (57, 60, 64, 67)),  # Am7
    Chord(38, (57, 60, 62, 65)),  # Dm7
    Chord(29, (57, 60, 65, 67)),  # Fadd9
    Chord(28, (56, 59, 62, 64)),  # E7
)


class Note(NamedTuple):
    """One sung or blown note; ``vowel`` is what it is sung on."""

    at: float
    length: float
    pitch: int
    vowel: str = "a"


def _bar(number: int, *notes: tuple[float, float, int, str]) -> tuple[Note, ...]:
    return tuple(Note(8 * number + at, length, pitch, vowel) for at, length, pitch, vowel in notes)


LEAD_VOCAL: Final = (
    *_bar(0, (1, 1, 64, "a"), (2, 1, 67, "e"), (3, 2, 69, "o"), (5, 1, 67, "a"), (6, 2, 64, "i")),
    *_bar(1, (1, 1, 65, "e"), (2, 1, 64, "a"), (3, 4, 60, "u")),
    *_bar(2, (1, 1, 60, "a"), (2, 1, 62, "e"), (3, 2, 64, "i"), (5, 1, 67, "o"), (6, 2, 64, "a")),
    *_bar(3, (1, 2, 62, "e"), (3, 4, 59, "o")),
    *_bar(4, (1, 1, 64, "i"), (2, 1, 67, "a"), (3, 2, 69, "e"), (5, 1, 72, "o"), (6, 2, 69, "a")),
    *_bar(5, (0, 1, 67, "e"), (1, 2, 65, "a"), (3, 1, 64, "i"), (4, 3, 62, "o")),
    *_bar(6, (1, 1, 60, "u"), (2, 1, 62, "a"), (3, 2, 65, "e"), (5, 3, 67, "a")),
    *_bar(7, (1, 3, 68, "o"), (4, 3, 71, "a")),
    *_bar(8, (0, 3, 72, "o"), (3, 1, 71, "e"), (4, 4, 69, "a")),
    *_bar(9, (0, 3, 69, "a"), (3, 1, 67, "i"), (4, 3, 65, "e")),
    *_bar(10, (0, 3, 67, "o"), (3, 1, 69, "a"), (4, 4, 72, "e")),
    *_bar(11, (0, 4, 71, "a"), (4, 2, 69, "o"), (6, 2, 67, "u")),
    *_bar(12, (0, 3, 72, "o"), (3, 1, 74, "e"), (4, 4, 76, "a")),
    *_bar(13, (0, 3, 74, "a"), (3, 1, 72, "i"), (4, 3, 69, "e")),
    *_bar(14, (0, 2, 69, "o"), (2, 2, 72, "a"), (4, 2, 74, "e"), (6, 2, 72, "i")),
    *_bar(15, (0, 6, 71, "a")),
)

LEAD_GUITAR: Final = (
    *_bar(1, (6.5, 0.5, 72, ""), (7, 1, 74, "")),
    *_bar(2, (0, 1, 76, "")),
    *_bar(3, (5, 0.5, 74, ""), (5.5, 0.5, 76, ""), (6, 0.5, 79, ""), (6.5, 1.5, 81, "")),
    *_bar(5, (6, 0.5, 77, ""), (6.5, 0.5, 76, ""), (7, 1, 74, "")),
    *_bar(7, (5, 0.5, 76, ""), (5.5, 0.5, 80, ""), (6, 0.5, 83, ""), (6.5, 1.5, 86, "")),
    *_bar(9, (6, 0.5, 81, ""), (6.5, 0.5, 84, ""), (7, 1, 81, "")),
    *_bar(11, (4, 1, 83, ""), (5, 0.5, 81, ""), (5.5, 0.5, 79, ""), (6, 2, 76, "")),
    *_bar(13, (6, 0.5, 77, ""), (6.5, 0.5, 81, ""), (7, 1, 84, "")),
    *_bar(15, (2, 1, 76, ""), (3, 1, 80, ""), (4, 1, 83, ""), (5, 3, 88, "")),
)


def backing_vocal(voice: int) -> tuple[Note, ...]:
    """One of three harmonies: 'oo' at the ends of the verse's lines, 'ah' through the chorus.

    :param voice: 0 (highest) to 2.
    """
    notes: list[Note] = []
    for bar in range(LONG_BARS):
        pitch = CHORDS[bar % SHORT_BARS].notes[3 - voice]
        if bar < SHORT_BARS:
            if bar % 4 >= 2:
                notes.append(Note(8 * bar + 2, 5, pitch, "u"))
        else:
            notes += [Note(8 * bar, 3, pitch, "a"), Note(8 * bar + 3, 4.5, pitch, "o")]
    return tuple(notes)


def brass() -> tuple[Note, ...]:
    """Hits: a few in the verse, syncopated in the chorus; each is played as the bar's chord."""
    notes: list[Note] = []
    for bar in range(LONG_BARS):
        if bar >= SHORT_BARS:
            notes += [Note(8 * bar, 1, 0), Note(8 * bar + 3, 1, 0), Note(8 * bar + 6, 1.5, 0)]
        elif bar % 2 == 1:
            notes += [Note(8 * bar + 5, 0.5, 0), Note(8 * bar + 6, 2, 0)]
    return tuple(notes)


# One character per sixteenth; a capital is an accent.
KICK: Final = ("K..k..K...k.....", "K..k..K...k..k..")
SNARE: Final = ("....S.......S..s", "....S..s.s..S...")
HAT: Final = ("H.h.H.h.H.h.H.hh", "H.h.H.h.H.hhH.o.")
CONGAS: Final = ("l..h..l.h..hl.h.", "l..h..lhh..h..hh")
TOM_FILL: Final = "........1.12.2F."
"""The last bar of each four."""
BASS: Final = ((0, 3, 0), (3, 2, 0), (6, 2, 12), (8, 2, 0), (10, 1, 7), (11, 3, 0), (14, 2, 10))
"""Sixteenth, length in sixteenths, semitones over the root."""
STRUM: Final = "D...D.u..u.uD.u."
ARPEGGIO: Final = (0, 2, 1, 3, 2, 1, 3, 2)
"""Which note of the chord on each eighth."""
CHUG: Final = "X.xxX.x.X.xxX.xx"
EP_RHYTHM: Final = ((0, 5), (6, 3), (10, 4), (14, 2))
"""Sixteenth and length of the electric piano's chords."""
ORGAN_RHYTHM: Final = ((0, 7), (8, 2), (11, 1), (12, 4))
"""In sixteenths, too."""
