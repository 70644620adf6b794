"""What a format costs to encode, so that listeners' wishes cannot starve everybody's audio.

A table of measured figures (``make bench`` and ``benchmarks/encode_micro.py`` measure them again),
not a law: it only has to be right enough to refuse in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from m32net.streaming.profile import Profile

_OPUS_US: Final = {2_500: 17.0, 5_000: 24.0, 10_000: 36.0, 20_000: 62.0}
"""Microseconds of one core to encode one channel's frame, by frame length in microseconds:
libopus 1.3 at complexity 5, what the engine adds included."""
_PCM_US: Final = {2_500: 1.0, 5_000: 1.5, 10_000: 2.5, 20_000: 5.0}
"""The same for L24; a rate below 48 kHz, which is resampled, costs about three times as much."""


def cores(profile: Profile, channels: int) -> float:
    """The share of one core that encoding ``channels`` channels in this profile takes."""
    each = (_PCM_US if profile.is_pcm else _OPUS_US)[profile.frame_us]
    if profile.is_pcm and profile.sample_rate != 48_000:
        each *= 3
    return each * channels / profile.frame_us


def total(demand: Mapping[Profile, Iterable[int]]) -> float:
    """The share of one core that a whole demand takes."""
    return sum(cores(profile, len(set(channels))) for profile, channels in demand.items())
