"""Where the samples go: tracks to a file, the mix to a file, the mix to the sound card.

For each stream the outputs say which chains they need: a lossless one for recordings, a live one
for hearing, none if nobody wants samples (then nothing is decoded).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from m32net.listener.chain import Chain, Output
from m32net.listener.decode import as_float
from m32net.listener.delay import DelaySettings, PlayoutDelay
from m32net.listener.depacketize import StreamPlan
from m32net.listener.disk import OnDisk, at_once
from m32net.listener.filtering import load_lfilter
from m32net.listener.mixer import Meters, Mixer
from m32net.listener.playback import SoundCard, Speaker, Stereo
from m32net.listener.playout import Piece
from m32net.listener.recorder import Recorder, RecordingError, TrackFormat
from m32net.listener.settings import Mix
from m32net.listener.thresholds import Thresholds

RING_MARGIN_S = 0.01
"""Kept for the sound card beyond one frame: its own blocks and late timers."""
LOW_S = 0.008
"""Below this level of the ring more sound is made of what was last: what the sound card takes
until the next look, and one of its blocks."""
STRETCH_S = 0.004


class Outputs:
    """All outputs of one listener.

    :param record: WAV file for the channels.
    :param record_mix: WAV file for the mix.
    :param card: to play the mix on.
    :param mix: the musician's settings.
    :param on_disk: does what waits for the disk.
    """

    def __init__(
        self,
        *,
        record: Path | None = None,
        record_mix: Path | None = None,
        card: SoundCard | None = None,
        mix: Mix | None = None,
        on_disk: OnDisk = at_once,
    ) -> None:
        self.tracks = None if record is None else Recorder(record, on_disk)
        self.stereo = None if record_mix is None else Recorder(record_mix, on_disk)
        self.card = card
        self.mix = mix or Mix()
        if self.tracks or self.stereo or card:
            load_lfilter()  # now, not when the first packets wait
        self.lossless: Chain | None = None
        self.live: Chain | None = None
        self.speaker: Speaker | None = None
        self.last_played: int | None = None
        """Media time of the last piece given to the sound card."""
        self._mixers: list[Mixer] = []
        self._playing: Mixer | None = None

    def check(self) -> None:
        """See before the start whether the files can be made.

        :raises RecordingError: one cannot.
        """
        for recorder in (self.tracks, self.stereo):
            if recorder is not None:
                recorder.check()

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of the stream that flows."""
        return tuple(chain for chain in (self.lossless, self.live) if chain is not None)

    def begin(self, plan: StreamPlan, thresholds: Thresholds) -> None:
        """A stream begins; what was before has been ended by :meth:`end`.

        :raises RecordingError: its file cannot be made.
        :raises PlaybackError: the sound card does not open.
        :raises OpusUnavailable: it is Opus, and libopus is missing.
        """
        self._mixers = []
        self.lossless = self.live = None
        if not plan.groups:
            return
        recordings = self._recordings(plan)
        if recordings:
            self.lossless = Chain(plan, thresholds, None, recordings)
        if self.card is not None:
            bounds = DelaySettings(maximum_ms=thresholds.drop_ms)
            delay = PlayoutDelay(plan.frame / plan.clock_rate, bounds)
            self.live = Chain(plan, thresholds, delay, (self._play(plan, self.card),))

    def set_mix(self, mix: Mix) -> None:
        """Mix differently from now on.

        A channel muted now is still sent, and can be heard again at once; only what the mix mutes
        when the session asks for audio is not sent.
        """
        self.mix = mix
        for mixer in self._mixers:
            mixer.set_mix(mix)

    def pad(self, seconds: float) -> None:
        """Let recordings stay in time over a break between two streams."""
        for recorder in (self.tracks, self.stereo):
            if recorder is not None:
                recorder.pad(seconds)

    def end(self) -> None:
        """The stream has ended: put out what recordings still wait for."""
        if self.lossless is not None:
            self.lossless.flush()
        self.lossless = self.live = None

    def close(self) -> Deferred[list[Exception]]:
        """Finish the files and release the sound card; nothing may be called afterwards.

        :returns: fires when the files are on the disk, with what went wrong; they hold what was
            written before.
        """
        errors: list[Exception] = []
        try:
            self.end()
        except RecordingError as error:
            errors.append(error)
        if self.card is not None:
            with suppress(Exception):  # PortAudio on the way out
                self.card.stop()
        self.speaker = self._playing = None

        def failed(failure: Failure) -> None:
            errors.append(cast(Exception, failure.value))

        closing = [
            one.close().addErrback(failed) for one in (self.tracks, self.stereo) if one is not None
        ]
        return gatherResults(closing).addCallback(lambda _: errors)

    def meters(self) -> Meters | None:
        """Levels of what is heard, or else of the recorded mix, since the last call."""
        mixer = self._playing or (self._mixers[0] if self._mixers else None)
        return None if mixer is None else mixer.read_meters()

    def keep_playing(self) -> None:
        """Called every few ms while playing: never let the sound card run dry amid a stream."""
        if self.live is None or self.speaker is None or self._playing is None:
            return
        if self.last_played is None or self.live.next_timer() is None:
            return  # nothing has been heard yet, or nothing comes any more
        if self.speaker.level_s < LOW_S:
            samples = max(1, round(STRETCH_S * self._playing.rate))
            stretched = as_float(self.live.playout.stretch(samples))
            self.speaker.write(self._playing.process(stretched.copy()))

    def _recordings(self, plan: StreamPlan) -> tuple[Output, ...]:
        outputs: list[Output] = []
        if self.tracks is not None:
            form = TrackFormat.multitrack(plan.codec, plan.sample_rate, plan.channels)
            self.tracks.open(form)
            tracks = self.tracks
            outputs.append(lambda piece: tracks.write(piece.block))
        if self.stereo is not None:
            self.stereo.open(TrackFormat.stereo(plan.sample_rate))
            outputs.append(self._mixed(self._mixer(plan), self.stereo.write))
        return tuple(outputs)

    def _play(self, plan: StreamPlan, card: SoundCard) -> Output:
        self._playing = self._mixer(plan)
        self.last_played = None
        card.stop()
        target = plan.frame / plan.clock_rate + RING_MARGIN_S
        self.speaker = Speaker(plan.sample_rate, card.rate, target)
        card.start(self.speaker.ring)
        mixed = self._mixed(self._playing, self.speaker.write)

        def play(piece: Piece) -> None:
            mixed(piece)
            self.last_played = piece.start + len(piece.block)

        return play

    def _mixer(self, plan: StreamPlan) -> Mixer:
        mixer = Mixer(plan.channels, plan.sample_rate, self.mix)
        self._mixers.append(mixer)
        return mixer

    @staticmethod
    def _mixed(mixer: Mixer, write: Callable[[Stereo], None]) -> Output:
        def mix(piece: Piece) -> None:
            block = as_float(piece.block)
            if block is piece.block:  # others hold it too, and the mixer works in place
                block = np.array(block)
            write(mixer.process(block))

        return mix
