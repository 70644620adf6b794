"""A circuit breaker (CON-22): what failed again and again is left alone for a while.

A core: the time comes with every call, the work and the waiting are the caller's.  Its whole
behaviour is :data:`BREAKER_TABLE`; outcomes of work that was let through before the latest change
of state say nothing about the present and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NewType

FAILURES: Final = 5
REST_S: Final = 60.0

Pass = NewType("Pass", int)
"""Leave to try once; its outcome is told with it."""


class BreakerState(Enum):
    """Whether work is let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class BreakerInput(Enum):
    """What can happen to a breaker."""

    ASKED = "asked"
    ASKED_AFTER_REST = "asked after the rest"
    SUCCESS = "success"
    FAILURE = "failure"
    LAST_FAILURE = "fifth failure in a row"
    UNDECIDED = "no outcome"


class BreakerAction(Enum):
    """What it does about it."""

    ADMIT = "let through"
    ADMIT_ONE = "let one through"
    REFUSE = "refuse"
    FORGET = "forget failures"
    COUNT = "count"
    REST = "rest 60 s"
    STAND_READY = "let the next try at once"
    IGNORE = "ignore"


_S, _I, _A = BreakerState, BreakerInput, BreakerAction

BREAKER_TABLE: Final[
    Mapping[tuple[BreakerState, BreakerInput], tuple[BreakerState, BreakerAction]]
] = {
    (_S.CLOSED, _I.ASKED): (_S.CLOSED, _A.ADMIT),
    (_S.CLOSED, _I.ASKED_AFTER_REST): (_S.CLOSED, _A.ADMIT),
    (_S.CLOSED, _I.SUCCESS): (_S.CLOSED, _A.FORGET),
    (_S.CLOSED, _I.FAILURE): (_S.CLOSED, _A.COUNT),
    (_S.CLOSED, _I.LAST_FAILURE): (_S.OPEN, _A.REST),
    (_S.CLOSED, _I.UNDECIDED): (_S.CLOSED, _A.IGNORE),
    (_S.OPEN, _I.ASKED): (_S.OPEN, _A.REFUSE),
    (_S.OPEN, _I.ASKED_AFTER_REST): (_S.HALF_OPEN, _A.ADMIT_ONE),
    **{
        (_S.OPEN, outcome): (_S.OPEN, _A.IGNORE)
        for outcome in (_I.SUCCESS, _I.FAILURE, _I.LAST_FAILURE, _I.UNDECIDED)
    },
    (_S.HALF_OPEN, _I.ASKED): (_S.HALF_OPEN, _A.REFUSE),
    (_S.HALF_OPEN, _I.ASKED_AFTER_REST): (_S.HALF_OPEN, _A.ADMIT_ONE),
    (_S.HALF_OPEN, _I.SUCCESS): (_S.CLOSED, _A.FORGET),
    (_S.HALF_OPEN, _I.FAILURE): (_S.OPEN, _A.REST),
    (_S.HALF_OPEN, _I.LAST_FAILURE): (_S.OPEN, _A.REST),
    (_S.HALF_OPEN, _I.UNDECIDED): (_S.OPEN, _A.STAND_READY),
}
"""Total.  Asked again in HALF_OPEN after another rest, the one let through has not come back
and is given up: work that hangs must not keep the breaker open for ever."""


class Breaker:
    """Guards whatever can fail repeatedly: a database, a device, a peer.

    :param failures: in a row that open it.
    :param rest_s: seconds it stays open before one is let through.
    :ivar failed: failures in a row so far.
    :ivar reason: of the latest failure; empty after a success.
    :ivar opened: times it opened, :ivar refused: times it said no, since it was made.
    """

    def __init__(self, *, failures: int = FAILURES, rest_s: float = REST_S) -> None:
        if failures < 1:
            raise ValueError(f"a breaker opens after 1 failure or more, not {failures}")
        self._limit = failures
        self._rest_s = rest_s
        self._state = BreakerState.CLOSED
        self._pass = Pass(0)
        self._until = 0.0
        self.failed = 0
        self.reason = ""
        self.opened = 0
        self.refused = 0

    @property
    def state(self) -> BreakerState:
        return self._state

    def retry_in(self, now: float) -> float:
        """Seconds until :meth:`admit` says yes, if nothing else happens; 0 for at once."""
        if self._state is BreakerState.CLOSED:
            return 0.0
        return max(0.0, self._until - now)

    def admit(self, now: float) -> Pass | None:
        """Ask before trying.

        :returns: a pass whose outcome must be told by :meth:`succeeded`, :meth:`failing` or
            :meth:`undecided`; None to leave it alone for :meth:`retry_in` seconds.
        """
        rested = self._state is not BreakerState.CLOSED and now >= self._until
        action = self._step(_I.ASKED_AFTER_REST if rested else _I.ASKED)
        if action is _A.REFUSE:
            self.refused += 1
            return None
        if action is _A.ADMIT_ONE:
            self._pass = Pass(self._pass + 1)
            self._until = now + self._rest_s
        return self._pass

    def succeeded(self, given: Pass) -> None:
        """What was let through worked."""
        if given == self._pass and self._step(_I.SUCCESS) is _A.FORGET:
            self.failed = 0
            self.reason = ""

    def failing(self, given: Pass, now: float, reason: str = "") -> None:
        """What was let through failed in the way this breaker is for.

        :param reason: one line, for :attr:`reason`.
        """
        if given != self._pass:
            return
        last = self.failed + 1 >= self._limit
        action = self._step(_I.LAST_FAILURE if last else _I.FAILURE)
        if action in (_A.COUNT, _A.REST):
            self.failed += 1
            self.reason = reason
        if action is _A.REST:
            self._rest(now + self._rest_s)
            self.opened += 1

    def undecided(self, given: Pass, now: float) -> None:
        """What was let through ended without telling anything: cancelled, or wrong by itself."""
        if given == self._pass and self._step(_I.UNDECIDED) is _A.STAND_READY:
            self._rest(now)

    def _rest(self, until: float) -> None:
        self._until = until
        self._pass = Pass(self._pass + 1)  # what is still under way counts no more

    def _step(self, what: BreakerInput) -> BreakerAction:
        self._state, action = BREAKER_TABLE[self._state, what]
        return action
