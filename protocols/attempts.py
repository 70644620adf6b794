"""How often a secret may be guessed: by one address, and by all of them together.

A core without a clock; what is guessed, and whether it was right, is its owner's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from protocols.addresses import address_key

MAX_ADDRESSES: Final = 4096
"""That are remembered; who was quiet for longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """``at_once`` attempts, and then another one every ``every_s``."""

    at_once: int
    every_s: float


@dataclass(slots=True)
class _Bucket:
    """Attempts that are left, as of a time."""

    left: float
    since: float

    def fill(self, allowed: Allowance, now: float) -> float:
        """Up to date; returns the seconds until there is an attempt, 0 if there is one."""
        self.left += max(0.0, now - self.since) / allowed.every_s
        self.left = min(float(allowed.at_once), self.left)
        self.since = now
        return 0.0 if self.left >= 1 else (1 - self.left) * allowed.every_s


class Attempts:
    """Attempts at one secret.

    An address that has given the right one before is not held up by what others try, so that
    nobody is locked out by a stranger with many addresses.

    :param each: of one address, in the sense of :func:`~protocols.addresses.address_key`.
    :param overall: of all addresses that never gave the right one, together.
    """

    def __init__(self, each: Allowance, overall: Allowance) -> None:
        self._each = each
        self._overall = overall
        self._all = _Bucket(overall.at_once, float("-inf"))
        self._tries: OrderedDict[str, _Bucket] = OrderedDict()
        self._proven: OrderedDict[str, None] = OrderedDict()

    def take(self, host: str, now: float) -> float:
        """Use one attempt; returns 0, or the seconds until the next one is due.

        :param now: seconds on any steady clock.
        """
        key = address_key(host)
        own = self._tries.pop(key, None) or _Bucket(self._each.at_once, now)
        wait = own.fill(self._each, now)
        together = self._all.fill(self._overall, now) if key not in self._proven else 0.0
        if not wait and not together:
            own.left -= 1
            if key not in self._proven:
                self._all.left -= 1
        self._tries[key] = own
        while len(self._tries) > MAX_ADDRESSES:
            self._tries.popitem(last=False)
        return max(wait, together)

    def was_right(self, host: str) -> None:
        """The last attempt of this address was none against us, nor those before it."""
        key = address_key(host)
        self._tries.pop(key, None)
        if key not in self._proven:
            self._all.left += 1
        self._proven[key] = None
        self._proven.move_to_end(key)
        while len(self._proven) > MAX_ADDRESSES:
            self._proven.popitem(last=False)

    def remembered(self) -> int:
        """Addresses in the tables, for judging their bounds."""
        return max(len(self._tries), len(self._proven))
