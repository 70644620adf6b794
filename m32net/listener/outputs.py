"""Where the samples go: tracks to a file, the mix to a file, the mix to the sound card.

For each stream the outputs say which chains they need: a lossless one for recordings, a live one
for hearing, none if nobody wants samples (then nothing is decoded).  A second stream can be got
ready while the first is heard, and then takes its place within one cross-fade (CON-51).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from m32net.listener.chain import Chain, Output
from m32net.listener.delay import DelaySettings, PlayoutDelay
from m32net.listener.depacketize import StreamPlan
from m32net.listener.disk import OnDisk, at_once
from m32net.listener.filtering import load_lfilter
from m32net.listener.mixer import Meters
from m32net.listener.playback import Resampled, SoundCard, Speaker
from m32net.listener.playout import Piece
from m32net.listener.recorder import Recorder, RecordingError, TrackFormat
from m32net.listener.settings import Mix
from m32net.listener.splice import Junction
from m32net.listener.thresholds import Thresholds
from m32net.listener.voice import Voice, mixing

RING_MARGIN_S = 0.01
"""Kept for the sound card beyond one frame: its own blocks and late timers."""
LOW_S = 0.008
"""Below this level of the ring more sound is made of what was last: what the sound card takes
until the next look, and one of its blocks."""
STRETCH_S = 0.004
JOIN_MARGIN_S: Final = 0.003
"""What of a coming stream is to be there for the sound card beyond a frame: the resampler's
chunks and late timers."""
UNHEARD_SHRINK_MS_PER_S: Final = 20.0
"""How fast the delay of a stream shrinks that nobody hears yet; it settles before it is heard."""


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
        self.voice: Voice | None = None
        """Of the stream that is heard."""
        self.coming: Voice | None = None
        """Of the one that is to follow it."""
        self.speaker: Speaker | None = None
        self._junctions: dict[str, Junction] = {}
        self._bounds = DelaySettings()

    def check(self) -> None:
        """See before the start whether the files can be made.

        :raises RecordingError: one cannot.
        """
        for recorder in (self.tracks, self.stereo):
            if recorder is not None:
                recorder.check()

    @property
    def live(self) -> Chain | None:
        """The chain that is heard."""
        return None if self.voice is None else self.voice.live

    @property
    def lossless(self) -> Chain | None:
        """The chain that is recorded."""
        return None if self.voice is None else self.voice.lossless

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of the stream that flows."""
        return () if self.voice is None else self.voice.chains

    @property
    def all_chains(self) -> tuple[Chain, ...]:
        """Those of the coming stream too, and first: what it has is there when it is joined."""
        return (() if self.coming is None else self.coming.chains) + self.chains

    # -- one stream

    def begin(self, plan: StreamPlan, thresholds: Thresholds) -> None:
        """A stream begins; what was before has been ended by :meth:`end`.

        :raises RecordingError: its file cannot be made.
        :raises PlaybackError: the sound card does not open.
        :raises OpusUnavailable: it is Opus, and libopus is missing.
        """
        self.voice = self.coming = None
        self._junctions = {}
        if not plan.groups:
            return
        voice = Voice(plan)
        for name, recorder in self._recorders():
            recorder.open(_format(name, plan))
            self._junctions[name] = Junction(recorder.write, plan.sample_rate, voice, patient=True)
        if self.card is not None:
            self.card.stop()
            self.speaker = Speaker(self.card.rate, _level(plan))
            self._junctions["card"] = Junction(
                self.speaker.play, self.card.rate, voice, patient=False
            )
            self.card.start(self.speaker.ring)
        self._furnish(voice, thresholds)
        self.voice = voice

    def _furnish(self, voice: Voice, thresholds: Thresholds) -> None:
        """Give a voice its chains; their blocks go to the junctions."""
        plan = voice.plan
        recordings: list[Output] = []
        if self.tracks is not None:
            tracks = self._junctions["tracks"]
            recordings.append(lambda piece: tracks.put(voice, piece.block))
        if self.stereo is not None:
            stereo = self._junctions["mix"]
            voice.recording = voice.mixer(self.mix)
            recordings.append(mixing(voice.recording, lambda block: stereo.put(voice, block)))
        if recordings:
            voice.lossless = Chain(plan, thresholds, None, tuple(recordings))
        if self.card is not None:
            voice.playing = voice.mixer(self.mix)
            voice.resampled = Resampled(plan.sample_rate, self.card.rate)
            bounds = self._bounds = DelaySettings(maximum_ms=thresholds.drop_ms)
            if self.voice is not None:
                bounds = replace(bounds, shrink_ms_per_s=UNHEARD_SHRINK_MS_PER_S)
            delay = PlayoutDelay(plan.frame / plan.clock_rate, bounds)
            voice.live = Chain(plan, thresholds, delay, (self._playing(voice),))

    def _playing(self, voice: Voice) -> Output:
        junction, speaker = self._junctions["card"], self.speaker
        assert speaker is not None

        def play(piece: Piece) -> None:
            heard = junction.current is voice
            correction = speaker.drift.correction
            if heard:
                correction = speaker.steer(len(piece.block) / voice.plan.sample_rate)
            junction.put(voice, voice.sound(piece.block, correction))
            voice.last_played = piece.start + len(piece.block)

        return play

    def set_mix(self, mix: Mix) -> None:
        """Mix differently from now on.

        A channel muted now is still sent, and can be heard again at once; only what the mix mutes
        when the session asks for audio is not sent.
        """
        self.mix = mix
        for voice in (self.voice, self.coming):
            for mixer in () if voice is None else voice.mixers:
                mixer.set_mix(mix)

    def pad(self, seconds: float) -> None:
        """Let recordings stay in time over a break between two streams."""
        for _, recorder in self._recorders():
            recorder.pad(seconds)

    def end(self) -> None:
        """The stream has ended: put out what recordings still wait for."""
        self.give_up()
        try:
            if self.lossless is not None:
                self.lossless.flush()
        finally:
            self.silence()

    def silence(self) -> None:
        """Nothing is put out any more until the next stream."""
        self.voice = self.coming = None

    # -- and another after it

    def prepare(self, plan: StreamPlan, thresholds: Thresholds) -> None:
        """Another stream comes beside the one that is heard, to follow it.

        :raises OpusUnavailable: it is Opus, and libopus is missing.
        """
        self.give_up()
        assert self.voice is not None
        coming = Voice(plan)
        self._furnish(coming, thresholds)
        self.coming = coming
        for name, recorder in self._recorders():
            form = _format(name, plan)
            cut = None
            if form != _format(name, self.voice.plan):
                cut = _reopening(recorder, form)
            self._junctions[name].expect(coming, cut, plan.sample_rate)
        if self.card is not None:
            self._junctions["card"].expect(coming)

    def give_up(self) -> None:
        """The other stream does not follow; the first one goes on."""
        self.coming = None
        for junction in self._junctions.values():
            junction.give_up()

    def go_over(self, stopped_s: float | None) -> None:
        """Have the other stream take the place of the first.

        :param stopped_s: the first one has stopped so long ago; None: it flows.
        :raises RecordingError: as when a block is written.
        """
        assert self.voice is not None and self.coming is not None
        old, new = self.voice, self.coming
        alone = stopped_s is not None
        if (card := self._junctions.get("card")) is not None:  # first, since it cannot wait
            frame = max(one.plan.frame / one.plan.clock_rate for one in (old, new))
            ahead = round((frame + JOIN_MARGIN_S) * card.rate)
            if new.live is not None and new.live.buffer.delay is not None:
                new.live.buffer.delay.settings = self._bounds
            card.begin(ahead=ahead, more=old.more_sound, alone=alone)
        first = None
        for name, _ in self._recorders():
            junction = self._junctions[name]
            more = old.more_mix if name == "mix" else old.more_tracks
            behind = round((stopped_s or 0.0) * junction.rate)
            fades = None if junction.cuts else junction
            junction.begin(behind=behind, more=more, alone=alone, like=first if fades else None)
            first = first or fades

    @property
    def went_over(self) -> bool:
        """Whether all outputs are done with the first stream."""
        return all(junction.coming is None for junction in self._junctions.values())

    def take_over(self) -> None:
        """The first stream is forgotten, the other one is the one that is heard."""
        self.voice, self.coming = self.coming, None
        if self.speaker is not None and self.voice is not None:
            self.speaker.drift.target_s = _level(self.voice.plan)

    def alike(self) -> float | None:
        """How alike the streams were in the last cross-fade, 0..1; None if nothing is put out."""
        return max((one.alike for one in self._junctions.values()), default=None)

    # -- all of it

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
        self.speaker = None

        def failed(failure: Failure) -> None:
            errors.append(cast(Exception, failure.value))

        closing = [one.close().addErrback(failed) for _, one in self._recorders()]
        return gatherResults(closing).addCallback(lambda _: errors)

    def meters(self) -> Meters | None:
        """Levels of what is heard, or else of the recorded mix, since the last call."""
        mixers = () if self.voice is None else self.voice.mixers
        return mixers[0].read_meters() if mixers else None

    def keep_playing(self) -> None:
        """Called every few ms while playing: never let the sound card run dry amid a stream."""
        voice = self.voice
        if self.speaker is None or voice is None or voice.live is None:
            return
        if voice.last_played is None or voice.live.next_timer() is None:
            return  # nothing has been heard yet, or nothing comes any more
        if self.speaker.level_s < LOW_S:
            stretched = voice.more_sound(max(1, round(STRETCH_S * self.speaker.rate)))
            if stretched is not None:
                self.speaker.play(stretched)

    def _recorders(self) -> list[tuple[str, Recorder]]:
        both = (("tracks", self.tracks), ("mix", self.stereo))
        return [(name, one) for name, one in both if one is not None]


def _format(name: str, plan: StreamPlan) -> TrackFormat:
    if name == "mix":
        return TrackFormat.stereo(plan.sample_rate)
    return TrackFormat.multitrack(plan.codec, plan.sample_rate, plan.channels)


def _level(plan: StreamPlan) -> float:
    """What is to wait for the sound card, in s."""
    return plan.frame / plan.clock_rate + RING_MARGIN_S


def _reopening(recorder: Recorder, form: TrackFormat) -> Callable[[], None]:
    return lambda: recorder.open(form)
