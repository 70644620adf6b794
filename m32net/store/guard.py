"""Writes to the database behind a circuit breaker (CON-22).

When five writes in a row have failed, the disk full or the file locked by another program, further
ones are refused at once instead of waiting for the same again; after 60 s one is let through.
Reading and start-up are not guarded, and what a change means is not known here.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from m32net.store.database import IDatabase, Work
from protocols.breaker import Breaker, BreakerState, Pass

T = TypeVar("T")

_OUR_OWN: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
    sqlite3.ProgrammingError,
)
"""What SQLite says of wrong SQL or values: no fault of the file, and another try may be right."""


def is_fault(error: BaseException) -> bool:
    """Whether the database itself failed, so that the next write will likely fail, too."""
    return isinstance(error, sqlite3.Error) and not isinstance(error, _OUR_OWN)


class NotTriedError(Exception):
    """The database has failed too often and is left alone; one line that says until when.

    :ivar retry_in_s: seconds until it is tried again.
    """

    def __init__(self, message: str, retry_in_s: float) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s


class GuardedWrites:
    """Carries out writes, or refuses them at once.

    :param seconds: a steady clock.
    :param on_change: called with True when it begins to refuse, False when a write has worked
        again; with the reason of the failure.
    """

    def __init__(
        self,
        database: IDatabase,
        seconds: Callable[[], float],
        on_change: Callable[[bool, str], object],
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._on_change = on_change
        self.breaker = Breaker()

    def retry_in_s(self) -> float:
        """Seconds until a write is let through; 0: at once."""
        return self.breaker.retry_in(self._seconds())

    def write(self, work: Work[T]) -> Deferred[T]:
        """As :meth:`IDatabase.run`; fails with :class:`NotTriedError` while it is left alone."""
        given = self.breaker.admit(self._seconds())
        if given is None:
            return fail(self._refusal())
        return self._database.run(work).addCallbacks(
            self._worked, self._failed, callbackArgs=(given,), errbackArgs=(given,)
        )

    def _refusal(self) -> NotTriedError:
        breaker = self.breaker
        why = f"the database failed {breaker.failed} times in a row ({breaker.reason})"
        if breaker.state is BreakerState.HALF_OPEN:
            return NotTriedError(f"{why}; it is being tried again right now", 1.0)
        wait = math.ceil(self.retry_in_s())
        return NotTriedError(f"{why}; it is tried again in {wait} s", wait)

    def _worked(self, result: Any, given: Pass) -> Any:
        before, reason = self.breaker.state, self.breaker.reason
        self.breaker.succeeded(given)
        if before is not self.breaker.state:
            self._on_change(False, reason)
        return result

    def _failed(self, failure: Failure, given: Pass) -> NoReturn:
        before, now = self.breaker.state, self._seconds()
        if failure.value is not None and is_fault(failure.value):
            self.breaker.failing(given, now, failure.getErrorMessage())
        else:
            self.breaker.undecided(given, now)
        if before is BreakerState.CLOSED and self.breaker.state is BreakerState.OPEN:
            self._on_change(True, self.breaker.reason)
        failure.raiseException()
