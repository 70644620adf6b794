"""What turns the newest frame of the window into the payload of one profile.

One encoder per profile in use; each channel is encoded once, however many listen.  An encoder
splits its frame into jobs for the crew and puts the result together afterwards; it knows neither
threads nor listeners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from m32net.audio.crew import Job
from m32net.audio.frame import CAPTURE_RATE, EncodedFrame, Octets
from m32net.audio.opus import OpusBank
from m32net.audio.resample import Resampler
from m32net.audio.window import FrameWindow
from m32net.streaming.profile import SAMPLE_WIDTH, Profile
from protocols.rtp.payload import pcm_to_wire


@dataclass(frozen=True, slots=True)
class Encoding:
    """One frame being encoded: jobs to do, then :attr:`finish` gives the result."""

    jobs: list[Job]
    finish: Callable[[], EncodedFrame]


class FrameEncoder(Protocol):
    """One profile's encoder."""

    profile: Profile
    needs_floats: bool
    """Whether it reads :meth:`FrameWindow.floats`."""

    @property
    def mono_encoders(self) -> int:
        """Channels it spends an encoder on: 0 for PCM."""
        ...

    def set_wanted(self, wanted: frozenset[int]) -> None:
        """Channel ids to encode from the next frame on."""
        ...

    def begin(self, window: FrameWindow, complete_ns: int) -> Encoding:
        """Encode the newest frame of the window.

        :param complete_ns: monotonic time at which its last sample was there.
        """
        ...

    def close(self) -> None: ...


def open_encoder(
    profile: Profile, channels: int, *, parts: int = 1, complexity: int | None = None
) -> FrameEncoder:
    """The encoder of ``profile`` for a source of ``channels``.

    :raises EncoderUnavailable: Opus without libopus.
    """
    if profile.is_pcm:
        return PcmEncoder(profile, channels)
    return OpusEncoder(profile, channels, parts=parts, complexity=complexity)


class PcmEncoder:
    """L16 and L24, bit-exact at 48 kHz.

    All channels are converted, wanted or not: leaving some out costs more than it saves.
    """

    needs_floats = False
    mono_encoders = 0

    def __init__(self, profile: Profile, channels: int) -> None:
        self.profile = profile
        self._width = SAMPLE_WIDTH[profile.codec]
        self._resampler: Resampler | None = None
        if profile.sample_rate != CAPTURE_RATE:
            self._resampler = Resampler(profile.sample_rate, profile.capture_samples, channels)

    def set_wanted(self, wanted: frozenset[int]) -> None:
        """Nothing to prepare."""

    def begin(self, window: FrameWindow, complete_ns: int) -> Encoding:
        count = self.profile.capture_samples
        first = window.end - count
        samples = window.samples(count)
        captured = window.capture_time_ns(count)
        payloads: list[Octets] = []
        resampler = self._resampler

        def convert() -> None:
            pcm = samples if resampler is None else resampler.process(samples, first)
            payloads.append(pcm_to_wire(pcm, self._width))

        def finish() -> EncodedFrame:
            (payload,) = payloads
            media_time = first if resampler is None else resampler.first_output(first)
            shift = 0 if resampler is None else resampler.shift_ns(first)
            return EncodedFrame(
                profile=self.profile,
                media_time=media_time,
                duration=len(payload),
                capture_time_ns=captured + shift,
                complete_ns=complete_ns,
                payload=payload,
            )

        return Encoding([convert], finish)

    def close(self) -> None:
        """Nothing to free."""


class OpusEncoder:
    """Opus, always on the 48 kHz RTP clock (RFC 7587 section 4.1)."""

    needs_floats = True

    def __init__(
        self, profile: Profile, channels: int, *, parts: int, complexity: int | None
    ) -> None:
        self.profile = profile
        self._bank = OpusBank(profile, channels, parts=parts, complexity=complexity)

    @property
    def mono_encoders(self) -> int:
        return len(self._bank.wanted)

    def set_wanted(self, wanted: frozenset[int]) -> None:
        self._bank.set_wanted(wanted)

    def begin(self, window: FrameWindow, complete_ns: int) -> Encoding:
        count = self.profile.capture_samples
        first = window.end - count
        captured = window.capture_time_ns(count)
        jobs, payload = self._bank.begin(window.floats(count))

        def finish() -> EncodedFrame:
            return EncodedFrame(
                profile=self.profile,
                media_time=first,
                duration=count,
                capture_time_ns=captured,
                complete_ns=complete_ns,
                payload=payload,
            )

        return Encoding(jobs, finish)

    def close(self) -> None:
        self._bank.close()
