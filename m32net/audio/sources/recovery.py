"""When to open a device, when to call it lost, when to try again: the states of a device.

A core without a device: it is told what happened and when, and answers what to do.  Its whole
behaviour is :data:`TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from m32net.audio.clock import NS
from m32net.audio.events import AudioEvent, DeviceLost, DeviceReturned

FIRST_AUDIO_NS: Final = 5 * NS
"""An opened device that delivers nothing for this long is lost.  PulseAudio can take 2 s."""
SILENCE_NS: Final = NS // 2
"""A running device that delivers nothing for this long is lost."""
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 30.0
_JITTER: Final = 0.2


class State(Enum):
    """Where a device stands."""

    CLOSED = "closed"
    OPENING = "opening"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"


class Happening(Enum):
    """What can happen to it."""

    START = "start"
    OPENED = "opened"
    FAILED = "could not be opened"
    AUDIO = "audio"
    ENDED = "ended"
    TIMER = "timer"
    STOP = "stop"


class Action(Enum):
    """What the shell has to do; opening is answered later by OPENED or FAILED."""

    OPEN = "open"
    CLOSE = "close"


class Effect(Enum):
    """What a transition brings with it."""

    OPEN = "open the device"
    CLOSE = "close it"
    EXPECT_FIRST = "wait 5 s for audio"
    EXPECT = "wait 0.5 s for more"
    RETURN = "tell that it returned, wait 0.5 s for more"
    LOSE = "tell that it is lost, wait for the next attempt"
    LOSE_AND_CLOSE = "tell that it is lost, close it, wait for the next attempt"


_S, _H, _E = State, Happening, Effect

TRANSITIONS: Final[dict[tuple[State, Happening], tuple[State, Effect]]] = {
    (_S.CLOSED, _H.START): (_S.OPENING, _E.OPEN),
    (_S.OPENING, _H.OPENED): (_S.STARTING, _E.EXPECT_FIRST),
    (_S.OPENING, _H.FAILED): (_S.WAITING, _E.LOSE),
    (_S.OPENING, _H.STOP): (_S.CLOSED, _E.CLOSE),
    (_S.STARTING, _H.AUDIO): (_S.RUNNING, _E.RETURN),
    (_S.STARTING, _H.ENDED): (_S.WAITING, _E.LOSE_AND_CLOSE),
    (_S.STARTING, _H.TIMER): (_S.WAITING, _E.LOSE_AND_CLOSE),
    (_S.STARTING, _H.STOP): (_S.CLOSED, _E.CLOSE),
    (_S.RUNNING, _H.AUDIO): (_S.RUNNING, _E.EXPECT),
    (_S.RUNNING, _H.ENDED): (_S.WAITING, _E.LOSE_AND_CLOSE),
    (_S.RUNNING, _H.TIMER): (_S.WAITING, _E.LOSE_AND_CLOSE),
    (_S.RUNNING, _H.STOP): (_S.CLOSED, _E.CLOSE),
    (_S.WAITING, _H.TIMER): (_S.OPENING, _E.OPEN),
    (_S.WAITING, _H.STOP): (_S.CLOSED, _E.CLOSE),
}
"""What isn't in here changes nothing (audio still under way when a device is already lost)."""


class DeviceRecovery:
    """One device's state.

    :param random: 0..1, spreads the retries by a fifth, so that two servers don't keep step.
    :ivar reason: why it is lost; empty while it isn't.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.state = State.CLOSED
        self.reason = ""
        self._lost_at: int | None = None
        self._attempts = 0
        self._timer: int | None = None

    @property
    def lost(self) -> bool:
        """Silence is to be streamed."""
        return self._lost_at is not None

    def next_timer(self) -> int | None:
        """When :meth:`handle_timer` wants to be called, in monotonic ns."""
        return self._timer

    def handle_timer(self, now_ns: int) -> list[Action | AudioEvent]:
        """Call at or after :meth:`next_timer`; earlier calls do nothing."""
        if self._timer is None or now_ns < self._timer:
            return []
        reason = (
            "it delivers no audio" if self.state is State.STARTING else "its audio stopped coming"
        )
        return self.receive(Happening.TIMER, now_ns, reason)

    def receive(
        self, happening: Happening, now_ns: int, reason: str = ""
    ) -> list[Action | AudioEvent]:
        """Something happened.

        :param reason: one line, where the happening is a bad one.
        :returns: what to do and what to tell, in order.
        """
        transition = TRANSITIONS.get((self.state, happening))
        if transition is None:
            return []
        self.state, effect = transition
        self._timer = None
        match effect:
            case Effect.OPEN:
                return [Action.OPEN]
            case Effect.CLOSE:
                return [Action.CLOSE]
            case Effect.EXPECT_FIRST:
                self._timer = now_ns + FIRST_AUDIO_NS
                return []
            case Effect.EXPECT:
                self._timer = now_ns + SILENCE_NS
                return []
            case Effect.RETURN:
                return self._returned(now_ns)
            case Effect.LOSE:
                return self._lose(now_ns, reason)
            case Effect.LOSE_AND_CLOSE:
                return [*self._lose(now_ns, reason), Action.CLOSE]

    def _returned(self, now_ns: int) -> list[Action | AudioEvent]:
        lost_at, self._lost_at = self._lost_at, None
        self.reason = ""
        self._attempts = 0
        self._timer = now_ns + SILENCE_NS
        return [] if lost_at is None else [DeviceReturned((now_ns - lost_at) / NS)]

    def _lose(self, now_ns: int, reason: str) -> list[Action | AudioEvent]:
        delay = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**self._attempts)
        delay *= 1 + _JITTER * (2 * self._random() - 1)
        self._attempts = min(self._attempts + 1, 16)
        self._timer = now_ns + round(delay * NS)
        self.reason = reason
        if self._lost_at is not None:
            return []
        self._lost_at = now_ns
        return [DeviceLost(reason)]
