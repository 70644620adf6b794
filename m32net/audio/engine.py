"""The engine: reads the source, cuts frames, encodes each wanted channel once per profile.

Runs on a thread of its own (:meth:`Engine.run`); only that thread reads the source and encodes.
It doesn't know the reactor: finished frames and events leave through two callables.  A test calls
:meth:`Engine.step` instead and needs no thread.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from m32net.audio.clock import AudioClock
from m32net.audio.crew import Crew
from m32net.audio.encoder import Encoding, FrameEncoder, open_encoder
from m32net.audio.events import Emit, EncoderFailed, EngineFault
from m32net.audio.frame import EncodedFrame
from m32net.audio.meter import LevelMeter, Peaks
from m32net.audio.opus import EncoderError, EncoderUnavailable
from m32net.audio.ring import GRID
from m32net.audio.sources.source import ISource
from m32net.audio.window import FrameWindow
from m32net.streaming.profile import Profile

T = TypeVar("T")

Demand = Mapping[Profile, frozenset[int]]
"""Which channel ids somebody listens to, by profile."""

READ_TIMEOUT_NS: Final = 50_000_000
"""How long a new demand or a stop may go unnoticed while the source is silent."""
IDLE_S: Final = 0.25
"""With nothing wanted the thread wakes up this often, to look after the device."""
FAULT_PAUSE_S: Final = 1.0
_SMOOTHING: Final = 0.02


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Figures of the engine.

    :ivar profiles: encoded now.
    :ivar encoders_active: mono Opus encoders, over all profiles.
    :ivar frames_encoded: since the start, over all profiles.
    :ivar encode_us: time from having a block to having all its frames encoded, smoothed.
    :ivar encode_us_max: the longest since the start.
    """

    profiles: tuple[Profile, ...]
    encoders_active: int
    frames_encoded: int
    encode_us: float
    encode_us_max: float


class Engine:
    """Source in, encoded frames out.

    :param deliver: called on the engine thread with what one step encoded.
    :param emit: called on the engine thread with events.
    :param complexity: of the Opus encoders, 0..10; None for the default.
    :param levels: called on the engine thread with the peaks of 50 ms, while they are wanted.
    :param rest: sleeps for so many seconds or until something else is wanted; for tests.
    """

    def __init__(
        self,
        source: ISource,
        deliver: Callable[[Sequence[EncodedFrame]], None],
        emit: Emit,
        *,
        clock: AudioClock,
        crew: Crew,
        complexity: int | None = None,
        levels: Callable[[Peaks], object] | None = None,
        rest: Callable[[float], object] | None = None,
    ) -> None:
        self._source = source
        self._deliver = deliver
        self._emit = emit
        self._clock = clock
        self._crew = crew
        self._complexity = complexity
        self._news = threading.Event()
        self._rest = rest or self._sleep
        self._stopping = False
        self._demand: Demand = {}
        self._applied: Demand | None = None
        self._meter = None if levels is None else LevelMeter(levels)
        self._metering = False
        self._wanted: dict[Profile, frozenset[int]] = {}
        self._encoders: dict[Profile, FrameEncoder] = {}
        self._failed: set[Profile] = set()
        self._window = FrameWindow(source.channels)
        self._block = GRID
        self._frames_encoded = 0
        self.turns = 0
        """Steps since the start, with or without a frame; one that stands still hangs."""
        self._encode_us = 0.0
        self._encode_us_max = 0.0

    def set_demand(self, demand: Demand) -> None:
        """What to encode from the next frame on; any thread.  Profiles without channels are off."""
        self._demand = {profile: wanted for profile, wanted in demand.items() if wanted}
        self._news.set()

    def set_metering(self, wanted: bool) -> None:
        """Whether levels are wanted; any thread.  Then samples are read although nobody listens."""
        self._metering = wanted and self._meter is not None
        self._news.set()

    def stop(self) -> None:
        """Make :meth:`run` return soon; any thread."""
        self._stopping = True
        self._news.set()

    def run(self) -> None:
        """The body of the engine thread."""
        self._crew.start()
        try:
            self._attempt(self.start)
            while not self._stopping:
                self._attempt(self.step)
        finally:
            self._attempt(self.close)
            self._crew.stop()

    def start(self) -> None:
        """Start the source; the engine thread's first act."""
        self._source.start(self._emit)

    def close(self) -> None:
        """Stop the source and free the encoders; the engine thread's last act."""
        for encoder in self._encoders.values():
            encoder.close()
        self._encoders.clear()
        self._source.stop()

    def step(self) -> None:
        """One block: wait for it, encode the frames that end with it, deliver them."""
        self.turns += 1
        demand = self._demand
        if demand is not self._applied:
            self._apply(demand)
        if not self._encoders and not self._metering:
            self._source.idle()
            self._rest(IDLE_S)
            return
        count = self._block
        while self._window.end % count:  # after a change to longer frames: up to their grid
            count //= 2
        frame = self._source.read(count, READ_TIMEOUT_NS)
        if frame is not None:
            self._window.put(frame)
            if self._encoders:
                self._encode(self._source.complete_ns)
            self._measure()

    def status(self) -> EngineStatus:
        """Any thread."""
        encoders = list(self._encoders.values())
        return EngineStatus(
            profiles=tuple(encoder.profile for encoder in encoders),
            encoders_active=sum(encoder.mono_encoders for encoder in encoders),
            frames_encoded=self._frames_encoded,
            encode_us=self._encode_us,
            encode_us_max=self._encode_us_max,
        )

    def _measure(self) -> None:
        """Take the levels of the last 20 ms, after their audio is on its way."""
        meter = self._meter
        if meter is None:
            return
        if not self._metering:
            meter.clear()
        elif self._window.complete(GRID, floats=False):
            meter.add(self._window.samples(GRID), self._window.end)

    def _encode(self, complete_ns: int) -> None:
        began = self._clock.monotonic_ns()
        encodings: list[tuple[Profile, Encoding]] = []
        for profile, encoder in list(self._encoders.items()):
            if self._window.complete(profile.capture_samples, floats=encoder.needs_floats):
                begin = partial(encoder.begin, self._window, complete_ns)
                begun = self._or_give_up(profile, begin)
                if begun is not None:
                    encodings.append((profile, begun))
        if not encodings:
            return
        try:
            self._crew.run([job for _, encoding in encodings for job in encoding.jobs])
        except EncoderError as error:
            self._give_up(error.profile, str(error))
            return
        finished = [self._or_give_up(profile, one.finish) for profile, one in encodings]
        frames = [frame for frame in finished if frame is not None]
        took = (self._clock.monotonic_ns() - began) / 1000
        self._encode_us += (took - self._encode_us) * (_SMOOTHING if self._frames_encoded else 1.0)
        self._encode_us_max = max(self._encode_us_max, took)
        self._frames_encoded += len(frames)
        if frames:
            self._deliver(frames)

    def _apply(self, demand: Demand) -> None:
        """Open, change and close encoders, between frames; the others don't notice."""
        self._applied = demand
        for profile in [profile for profile in self._encoders if profile not in demand]:
            self._encoders.pop(profile).close()
        self._failed.intersection_update(demand)
        for profile, wanted in demand.items():
            if profile not in self._failed:
                self._want(profile, wanted)
        self._wanted = dict(demand)
        self._rearrange()

    def _want(self, profile: Profile, wanted: frozenset[int]) -> None:
        encoder = self._encoders.get(profile)
        try:
            if encoder is None:
                encoder = open_encoder(
                    profile,
                    self._source.channels,
                    parts=self._crew.workers,
                    complexity=self._complexity,
                )
                encoder.set_wanted(wanted)
                self._encoders[profile] = encoder
            elif wanted != self._wanted[profile]:
                encoder.set_wanted(wanted)
        except (EncoderUnavailable, EncoderError) as error:
            self._give_up(profile, str(error))

    def _or_give_up(self, profile: Profile, act: Callable[[], T]) -> T | None:
        """What fails in one profile, whatever it is, ends that profile and no other."""
        try:
            return act()
        except Exception as error:
            self._give_up(profile, f"{type(error).__name__}: {error}")
            return None

    def _give_up(self, profile: Profile, reason: str) -> None:
        self._failed.add(profile)
        encoder = self._encoders.pop(profile, None)
        if encoder is not None:
            encoder.close()
        self._rearrange()
        self._emit(EncoderFailed(profile, reason))

    def _rearrange(self) -> None:
        self._block = min((p.capture_samples for p in self._encoders), default=GRID)
        self._window.floats_wanted = any(e.needs_floats for e in self._encoders.values())

    def _attempt(self, act: Callable[[], None]) -> None:
        """An unexpected error is told, not fatal: the next block may well be fine."""
        try:
            act()
        except Exception as error:
            self._emit(EngineFault(f"{type(error).__name__}: {error}", traceback.format_exc()))
            self._rest(FAULT_PAUSE_S)

    def _sleep(self, seconds: float) -> None:
        if not self._stopping and self._demand is self._applied:
            self._news.wait(seconds)
        self._news.clear()
