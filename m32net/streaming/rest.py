"""Other servers that do not answer are left alone for a while (CON-22).

A core: a breaker for each address, the latest few addresses only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from m32net.interfaces import RefusedError
from protocols.breaker import Breaker, Pass

MAX_ADDRESSES: Final = 64
UNREACHABLE: Final = "unreachable"
"""The code of a refusal that means that nobody answered."""


class Rest:
    """Which addresses are worth asking now."""

    def __init__(self) -> None:
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def ask(self, address: str, now: float) -> Pass:
        """Ask before connecting; the outcome is told by :meth:`answered`,
        :meth:`failed` or :meth:`undecided`.

        :raises RefusedError: 503, it has not answered lately; says when it is tried again.
        """
        breaker = self._breakers.setdefault(address, Breaker())
        self._breakers.move_to_end(address)
        while len(self._breakers) > MAX_ADDRESSES:
            self._breakers.popitem(last=False)
        leave = breaker.admit(now)
        if leave is None:
            raise RefusedError(
                "resting",
                f"{address} has not answered {breaker.failed} times; it is tried again in "
                f"{breaker.retry_in(now):.0f} s",
                503,
            )
        return leave

    def answered(self, address: str, leave: Pass) -> None:
        breaker = self._breakers.get(address)
        if breaker is not None:
            breaker.succeeded(leave)

    def undecided(self, address: str, leave: Pass, now: float) -> None:
        """It was asked, and the question was called off before an answer came."""
        breaker = self._breakers.get(address)
        if breaker is not None:
            breaker.undecided(leave, now)

    def failed(self, address: str, leave: Pass, now: float, error: Exception) -> None:
        """It was asked in vain; a refusal with reasons is an answer too."""
        breaker = self._breakers.get(address)
        if breaker is None:
            return
        if isinstance(error, RefusedError) and error.code != UNREACHABLE:
            breaker.succeeded(leave)
        else:
            breaker.failing(leave, now, str(error))
