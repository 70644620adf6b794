"""Whether audio really leaves the server: frames sent against frames wanted.

Looks at counters of other rooms twice a second and judges; nothing else on ``/health`` would notice
an engine thread that hangs in a driver, or a kernel that takes no packet, while every room believes
itself well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from m32net.interfaces import Health

LOOK_S: Final = 0.5
STALLED_S: Final = 2.0
"""Without a frame for so long, although somebody listens, nothing is delivered.  A frame has 20 ms
at most; opening a format's encoders takes a tenth of a second."""
HUNG_S: Final = 10.0
"""Without a turn of the engine for so long it hangs: a turn takes 50 ms while it encodes and at
most a second while it rests, but a driver may take some seconds to open a device again."""
START_S: Final = 60.0
"""Before its first turn the engine opens the device or renders the demo: that long on a machine
with other things to do."""
DROPS_S: Final = 10.0
SOME_DROPPED: Final = 0.01
"""The product's promise is less than 1 % loss; a server that drops more by itself breaks it."""
MOST_DROPPED: Final = 0.5


@dataclass(frozen=True, slots=True)
class Counters:
    """What the rooms have counted since the start.

    :ivar turns: of the engine thread, whether or not it encoded.
    :ivar frames: sent to their listeners.
    :ivar packets: the kernel took; ``dropped``: it did not.
    :ivar unsendable: frames that could not be laid out.
    """

    turns: int = 0
    frames: int = 0
    packets: int = 0
    dropped: int = 0
    unsendable: int = 0


class Delivery:
    """The judgement; no clock and no I/O.

    :ivar wanted: whether somebody listens to anything; set by who knows.
    """

    def __init__(self, now: float) -> None:
        self._wanted = False
        self._frame_at = now
        self._turn_at = now
        self._last = Counters()
        self._recent: deque[tuple[float, Counters]] = deque()

    @property
    def wanted(self) -> bool:
        return self._wanted

    def want(self, wanted: bool, now: float) -> None:
        """Somebody listens, or nobody does any more."""
        if wanted and not self._wanted:
            self._frame_at = now
        self._wanted = wanted

    def look(self, counters: Counters, now: float) -> None:
        """Take note of the counters; to be called every :data:`LOOK_S`."""
        self.note(counters, now)
        self._recent.append((now, counters))
        while now - self._recent[0][0] > DROPS_S:
            self._recent.popleft()

    def note(self, counters: Counters, now: float) -> None:
        """The same in between, for ages that are right at this moment."""
        if counters.frames != self._last.frames or not self._wanted:
            self._frame_at = now
        if counters.turns != self._last.turns:
            self._turn_at = now
        self._last = counters

    def frame_age_s(self, now: float) -> float:
        """Since the last frame was sent; 0 while none is wanted."""
        return now - self._frame_at if self._wanted else 0.0

    def turn_age_s(self, now: float) -> float:
        """Since the engine was last seen to turn."""
        return now - self._turn_at

    def hangs(self, now: float) -> bool:
        """Whether the engine has not turned for longer than anything takes it."""
        return self.turn_age_s(now) > (HUNG_S if self._last.turns else START_S)

    def dropped_share(self) -> float:
        """Of the last ten seconds' packets, those that the kernel did not take: 0 to 1."""
        if not self._recent:
            return 0.0
        first, last = self._recent[0][1], self._recent[-1][1]
        dropped = last.dropped - first.dropped
        everything = dropped + last.packets - first.packets
        return dropped / everything if everything > 0 else 0.0

    def unsendable(self) -> int:
        """Frames of the last ten seconds that could not be laid out."""
        if not self._recent:
            return 0
        return self._recent[-1][1].unsendable - self._recent[0][1].unsendable

    def faults(self, now: float) -> tuple[list[str], list[str]]:
        """What makes it unhealthy, and what degrades it."""
        bad: list[str] = []
        poor: list[str] = []
        if self.hangs(now):
            bad.append(f"the audio engine has hung for {self.turn_age_s(now):.0f} s")
        elif self.frame_age_s(now) > STALLED_S:
            bad.append(
                f"no audio was sent for {self.frame_age_s(now):.0f} s, although somebody listens"
            )
        share = self.dropped_share()
        if share > SOME_DROPPED:
            why = f"the network card or kernel does not take {share:.0%} of the packets"
            (bad if share > MOST_DROPPED else poor).append(why)
        if self.unsendable():
            poor.append(f"{self.unsendable()} frames could not be sent in the last 10 s")
        return bad, poor


class DeliveryWatch(Service):
    """Looks at the counters while it runs.

    :param counters: of the rooms, now.
    :param encoding: whether the engine believes that it captures and encodes; a device that is
        known to be lost is no reason to start the server anew.
    """

    name = "delivery"

    def __init__(
        self,
        clock: IReactorTime,
        counters: Callable[[], Counters],
        encoding: Callable[[], bool],
        seconds: Callable[[], float] | None = None,
    ) -> None:
        self._counters = counters
        self._encoding = encoding
        self._seconds = seconds or clock.seconds
        self.delivery = Delivery(self._seconds())
        self._looking = LoopingCall(self.look)
        self._looking.clock = clock

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.delivery = Delivery(self._seconds())
        self._looking.start(LOOK_S)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._looking.running:
            self._looking.stop()

    def want(self, wanted: bool) -> None:
        """Somebody listens, or nobody does any more."""
        self.delivery.want(wanted, self._seconds())

    def look(self) -> None:
        self.delivery.look(self._counters(), self._seconds())

    def alive(self) -> bool:
        """False once only a restart helps: the engine hangs, or encodes and delivers nothing."""
        now = self._seconds()
        silent = self.delivery.frame_age_s(now) > HUNG_S and self._encoding()
        return not self.delivery.hangs(now) and not silent

    def health(self) -> Health:
        """Unhealthy when nothing is delivered, degraded when something is missing."""
        now = self._seconds()
        self.delivery.note(self._counters(), now)
        bad, poor = self.delivery.faults(now)
        details = {
            "wanted": self.delivery.wanted,
            "last_frame_ms": round(self.delivery.frame_age_s(now) * 1000),
            "dropped": round(self.delivery.dropped_share(), 4),
        }
        state = "unhealthy" if bad else "degraded" if poor else "healthy"
        return Health(state, (*bad, *poor), details)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        now = self._seconds()
        self.delivery.note(self._counters(), now)
        return {"last_frame_age_seconds": self.delivery.frame_age_s(now)}
