"""When to open a device, when to call it lost, when to try again: the states of a device.

A core without a device: it is told what happened and when, and answers what to do.  Its whole
behaviour is :data:`TRANSITIONS`.  Attempts back off as CON-12 says, and after five failures in a
row a breaker leaves the device alone for a minute at a time (CON-22); something plugged in ends
both at once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from m32net.audio.clock import NS
from m32net.audio.events import AudioEvent, DeviceLost, DeviceReturned
from protocols.backoff import Backoff
from protocols.breaker import Breaker, Pass

FIRST_AUDIO_NS: Final = 5 * NS
"""An opened device that delivers nothing for this long is lost.  PulseAudio can take 2 s."""
SILENCE_NS: Final = NS // 2
"""A running device that delivers nothing for this long is lost."""
PLUGGED_NS: Final = NS
"""From something plugged in to the next attempt: a card's files come one by one."""


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
    PLUGGED = "something plugged in or out"
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
    HURRY = "forget failures, wait 1 s at most"


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
    (_S.WAITING, _H.PLUGGED): (_S.WAITING, _E.HURRY),
    (_S.WAITING, _H.STOP): (_S.CLOSED, _E.CLOSE),
}
"""What isn't in here changes nothing (audio still under way when a device is already lost)."""


class DeviceRecovery:
    """One device's state.

    :param random: 0..1, spreads the retries by a tenth, so that two servers don't keep step.
    :ivar reason: why it is lost; empty while it isn't.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.state = State.CLOSED
        self.reason = ""
        self._lost_at: int | None = None
        self._timer: int | None = None
        self._pass: Pass | None = None
        self._forget_failures()

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
        rest_s = self._breaker.retry_in(now_ns / NS)
        if self.state is State.WAITING and rest_s > 0:  # a rounded nanosecond early
            self._timer = now_ns + max(1, round(rest_s * NS))
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
        if happening is Happening.START:
            self._forget_failures()
        self.state, effect = transition
        timer, self._timer = self._timer, None
        match effect:
            case Effect.OPEN:
                self._pass = self._breaker.admit(now_ns / NS)
                return [Action.OPEN]
            case Effect.HURRY:
                self._forget_failures()
                assert timer is not None
                self._timer = min(timer, now_ns + PLUGGED_NS)
                return []
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
        self._backoff.succeeded()
        if self._pass is not None:
            self._breaker.succeeded(self._pass)
        self._timer = now_ns + SILENCE_NS
        return [] if lost_at is None else [DeviceReturned((now_ns - lost_at) / NS)]

    def _lose(self, now_ns: int, reason: str) -> list[Action | AudioEvent]:
        now_s = now_ns / NS
        if self._pass is not None:
            self._breaker.failing(self._pass, now_s, reason)
        delay = max(self._backoff.failed(), self._breaker.retry_in(now_s))
        self._timer = now_ns + round(delay * NS)
        self.reason = reason
        if self._lost_at is not None:
            return []
        self._lost_at = now_ns
        return [DeviceLost(reason)]

    def _forget_failures(self) -> None:
        self._backoff = Backoff(self._random)
        self._breaker = Breaker()
        self._pass = None
