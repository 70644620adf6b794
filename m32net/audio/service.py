"""The door of the audio room: a Twisted service around the engine thread.

Everything here runs on the reactor thread.  It starts and ends the engine thread, passes it the
demand, and brings frames and events back; it neither reads nor encodes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from m32net.audio.bridge import Bridge
from m32net.audio.clock import AudioClock, SystemClock
from m32net.audio.crew import Crew
from m32net.audio.engine import Demand, Engine
from m32net.audio.events import AudioEvent, EngineFault
from m32net.audio.frame import EncodedFrame
from m32net.audio.meter import LevelBridge, Peaks
from m32net.audio.sources.source import ISource
from m32net.log import RoomLog
from m32net.streaming.profile import Profile

SWITCH_INTERVAL_S: Final = 0.0002
"""How long a busy thread may keep the GIL from one that waits.  Python's 5 ms is a whole frame:
with it, each of the engine's returns from libopus can wait that long for a busy reactor."""
STOP_TIMEOUT_S: Final = 3.0
"""A device driver that hangs must not keep the server from ending; its thread is left behind."""

Spawn = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class AudioStatus:
    """What the room says of itself.

    :ivar source: its name, for people.
    :ivar state: ``running``; ``idle``, nobody listens; ``lost``, the device is gone; ``stopped``.
    :ivar reason: why it is lost, else empty.
    :ivar overruns: times that captured samples were lost; ``samples_lost`` of them, per channel.
    :ivar dropped: encoded frames that the reactor was too late for.
    :ivar late: batches of frames that reached the reactor later than 20 ms after capture.
    :ivar encode_us: time from having a block to having all its frames encoded, smoothed; and the
        longest.
    :ivar encoders_active: mono Opus encoders in use, over all profiles.
    :ivar frames_encoded: since the start, over all profiles.
    :ivar levels_dropped: slots of levels (50 ms) that the reactor was too late for.
    """

    source: str
    state: Literal["running", "idle", "lost", "stopped"]
    reason: str
    channels: int
    overruns: int
    samples_lost: int
    dropped: int
    late: int
    profiles: tuple[Profile, ...]
    encode_us: float
    encode_us_max: float
    encoders_active: int
    frames_encoded: int
    levels_dropped: int = 0


def start_thread(body: Callable[[], None]) -> None:
    """Run ``body`` on the engine thread; daemonic, see :data:`STOP_TIMEOUT_S`."""
    threading.Thread(target=body, name="m32net-engine", daemon=True).start()


class AudioService(Service):
    """Captures and encodes what is in demand.

    :param reactor: for ``callFromThread`` and ``callLater``.
    :param source: from :func:`m32net.audio.sources.open_source`.
    :param on_frames: called on the reactor thread with the frames of all profiles that end
        together.
    :param on_event: called on the reactor thread.
    :param workers: threads that encode, the engine's included.
    :param complexity: of the Opus encoders, 0..10; None for 5.
    :param on_levels: called on the reactor thread, while :meth:`set_metering` says so, with the
        highest absolute samples by channel (full scale 2**31) since the last call, and how many
        slots of 50 ms these are: mostly one.
    :param spawn: starts the engine thread; for tests.
    """

    name = "audio"
    _log = RoomLog()

    def __init__(
        self,
        reactor: Any,
        source: ISource,
        on_frames: Callable[[Sequence[EncodedFrame]], None],
        on_event: Callable[[AudioEvent], None],
        workers: int = 2,
        *,
        complexity: int | None = None,
        on_levels: Callable[[Peaks, int], object] | None = None,
        clock: AudioClock | None = None,
        spawn: Spawn = start_thread,
    ) -> None:
        clock = clock or SystemClock()
        self._reactor = reactor
        self._source = source
        self._on_event = on_event
        self._spawn = spawn
        self._bridge = Bridge(reactor.callFromThread, on_frames, clock.monotonic_ns)
        self._ended: Deferred[None] | None = None
        self._switch_interval = 0.0
        self._levels = on_levels and LevelBridge(reactor.callFromThread, on_levels)
        self._demand: Demand = {}
        self._metering = False
        self._clock = clock
        self._workers = workers
        self._complexity = complexity
        self.engine = self._make_engine()
        """The engine of this run; a new one each time the service starts."""

    @property
    def channels(self) -> int:
        """Channels the source has."""
        return int(self._source.channels)

    def set_demand(self, demand: Demand) -> None:
        """Which channels to encode in which profiles, from the next frame on (STR-40)."""
        self._demand = dict(demand)
        self.engine.set_demand(self._demand)

    def set_metering(self, wanted: bool) -> None:
        """Whether levels are wanted; if so, samples are read even if nobody listens."""
        self._metering = wanted
        self.engine.set_metering(wanted)

    def hand_over(self) -> None:
        """Deliver the frames that wait, if any; for between two steps of long work."""
        self._bridge.hand_over()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_INTERVAL_S, self._switch_interval))
        engine = self.engine = self._make_engine()
        engine.set_demand(self._demand)
        engine.set_metering(self._metering)
        ended: Deferred[None] = Deferred()
        self._ended = ended

        def body() -> None:
            try:
                engine.run()
            finally:
                self._reactor.callFromThread(ended.callback, None)

        self._spawn(body)

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        sys.setswitchinterval(self._switch_interval)
        self.engine.stop()
        ended, self._ended = self._ended, None
        assert ended is not None
        ended.addTimeout(STOP_TIMEOUT_S, self._reactor, self._left_behind)
        return ended

    def status(self) -> AudioStatus:
        """How it stands, for ``/health`` and metrics."""
        source = self._source.status()
        engine = self.engine.status()
        state: Literal["running", "idle", "lost", "stopped"]
        if not self.running:
            state = "stopped"
        elif source.state == "lost":
            state = "lost"
        else:
            state = "running" if engine.profiles else "idle"
        return AudioStatus(
            source=self._source.name,
            state=state,
            reason=source.reason,
            channels=self.channels,
            overruns=source.overruns,
            samples_lost=source.samples_lost,
            dropped=self._bridge.dropped,
            late=self._bridge.late,
            levels_dropped=self._levels.dropped if self._levels else 0,
            profiles=engine.profiles,
            encode_us=engine.encode_us,
            encode_us_max=engine.encode_us_max,
            encoders_active=engine.encoders_active,
            frames_encoded=engine.frames_encoded,
        )

    def _make_engine(self) -> Engine:
        return Engine(
            self._source,
            self._bridge.put,
            self._emit,
            clock=self._clock,
            crew=Crew(self._workers),
            complexity=self._complexity,
            levels=self._levels.put if self._levels else None,
        )

    def _emit(self, event: AudioEvent) -> None:
        """Engine thread (or a device's) to reactor thread."""
        self._reactor.callFromThread(self._tell, event)

    def _tell(self, event: AudioEvent) -> None:
        if isinstance(event, EngineFault):
            self._log.error(
                "Audio engine: {reason}\n{trace}", reason=event.reason, trace=event.trace
            )
        self._on_event(event)

    def _left_behind(self, _result: object, seconds: float) -> None:
        self._log.warn("The audio device did not let go within {seconds} s", seconds=seconds)
