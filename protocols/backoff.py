"""How long to wait before the next attempt (CON-12): doubling, with a cap and some chance.

Arithmetic only: the randomness is given, the waiting is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BASE_S: Final = 2.0
CAP_S: Final = 60.0
JITTER: Final = 0.1


class Backoff:
    """Delays between attempts: 2, 4, 8 … 60 s, each up to a tenth longer or shorter.

    :param random: gives numbers 0 <= x < 1; spreads those who lost the same server at once.
    :param base_s: the first delay.
    :param cap_s: none is longer, jitter included.
    :param jitter: fraction of the delay, either way.
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        base_s: float = BASE_S,
        cap_s: float = CAP_S,
        jitter: float = JITTER,
    ) -> None:
        self._random = random
        self._base_s = base_s
        self._cap_s = cap_s
        self._jitter = jitter
        self._next_s = base_s
        self.attempts = 0
        """Failures since the last success."""

    def failed(self) -> float:
        """An attempt failed.

        :returns: seconds to wait before the next.
        """
        self.attempts += 1
        delay = self._next_s
        self._next_s = min(self._next_s * 2, self._cap_s)
        return min(delay * (1 + self._jitter * (2 * self._random() - 1)), self._cap_s)

    def succeeded(self) -> None:
        """An attempt succeeded: the next failure starts from the base again."""
        self.attempts = 0
        self._next_s = self._base_s
