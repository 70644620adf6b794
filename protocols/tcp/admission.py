"""Who may open how many connections (CON-2, CON-30): a core that says yes or no to each.

It counts per address over a sliding minute, shuts out for an hour who goes on regardless, and
keeps bounded tables whatever arrives.  It opens and closes nothing and has no clock: the time of
every question is given, in seconds of any steady clock.
"""

from __future__ import annotations

import enum
import ipaddress
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.addresses import LOCAL, address_key, networks, within

WINDOW_S: Final = 60.0
EXACT: Final = 60
"""Up to so many connections a minute each has its own time stamp; above, they share seconds."""


class Verdict(enum.Enum):
    """What becomes of a connection that has just been opened."""

    ADMIT = "admitted"
    FULL = "full"
    """As many connections as there may be are open, whoever they belong to."""
    TOO_MANY = "too_many"
    """This address has opened as many as it may within a minute."""
    HELD = "held"
    """This address has as many open as one may have, so that there is room for others."""
    BLOCKED = "blocked"
    """This address is shut out because it went on regardless."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """CON-2 and CON-30, with their defaults.

    :ivar max_connections: open at a time, of everybody together.
    :ivar max_of_one: open at a time, of one address.
    :ivar per_minute: connections an address may open within any 60 s.
    :ivar exempt: addresses and networks without these two limits, as text; never blocked.
    :ivar refusals: so many refusals within ``abuse_s`` and the address is blocked for ``block_s``.
    :ivar single: IPv6 networks in which every address counts by itself; elsewhere a /64 counts as
        one, because that is what one customer is given (RFC 6177).  By default the link's own and
        the site's own addresses: everybody in the room shares one /64 of them.
    :ivar max_addresses: that are remembered; beyond, who was quiet for longest is forgotten.
    :ivar max_blocked: that are shut out at a time; beyond, the oldest block ends.
    """

    max_connections: int = 100
    max_of_one: int = 50
    per_minute: int = 10
    block_s: float = 3600.0
    exempt: tuple[str, ...] = ()
    refusals: int = 20
    abuse_s: float = 300.0
    single: tuple[str, ...] = LOCAL
    max_addresses: int = 4096
    max_blocked: int = 1024


@dataclass(frozen=True, slots=True)
class Blocked:
    """An address (or IPv6 /64) that is shut out, why, and for how many seconds still."""

    address: str
    reason: str
    remaining_s: float


@dataclass(slots=True)
class _Recent:
    """What one address did lately: ``[time, count]`` of arrivals, and times of refusals."""

    arrivals: deque[list[float]] = field(default_factory=deque)
    count: int = 0
    refusals: deque[float] = field(default_factory=deque)
    last: float = 0.0


class Admission:
    """Judges arrivals.

    :ivar counts: connections by verdict since the start.
    :ivar blocks: addresses that were shut out since the start.
    :ivar forgotten: addresses dropped from a full table since the start.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self.change(limits)
        self.counts: dict[Verdict, int] = dict.fromkeys(Verdict, 0)
        self.blocks = 0
        self.forgotten = 0
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._blocked: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._expected: OrderedDict[str, float] = OrderedDict()

    def change(self, limits: AdmissionLimits) -> None:
        """Other limits from now on; who is shut out, and what is remembered of others, stays."""
        self.limits = limits
        self._exempt = networks(limits.exempt)
        self._by_themselves = networks(limits.single) + self._exempt

    def arrive(self, host: str, now: float, open_now: int = 0, own: int = 0) -> Verdict:
        """A connection was opened from ``host``.

        :param open_now: connections that are open, without this one.
        :param own: how many of them are from what counts as the same address.
        """
        verdict = self._judge(self.key(host), now, open_now, own)
        self.counts[verdict] += 1
        return verdict

    def wait_s(self, host: str, now: float) -> float:
        """Seconds until ``host`` may open a connection again, so far as it is up to it."""
        key = self.key(host)
        if key in self._blocked:
            return max(0.0, self._blocked[key][0] - now)
        recent = self._recent.get(key)
        if recent is None or recent.count < self.limits.per_minute:
            return 0.0
        return max(0.0, recent.arrivals[0][0] + WINDOW_S - now)

    def expect(self, host: str, until: float) -> None:
        """Connections of ``host`` have been announced: it has no limit until then."""
        key = self.key(host)
        self._expected[key] = max(until, self._expected.pop(key, until))
        if len(self._expected) > self.limits.max_addresses:
            self._expected.popitem(last=False)

    def blocked(self, now: float) -> Sequence[Blocked]:
        """Who is shut out, and whose block ends first comes first."""
        self._end_blocks(now)
        return [
            Blocked(address, reason, until - now)
            for address, (until, reason) in self._blocked.items()
        ]

    def unblock(self, address: str) -> bool:
        """Let an address in again, with a clean record; whether it was shut out.

        :param address: as :meth:`blocked` lists it, or any address of a blocked IPv6 network.
        """
        key = address if address in self._blocked else self.key(address)
        self._recent.pop(key, None)
        return self._blocked.pop(key, None) is not None

    def remembered(self) -> int:
        """Addresses in the tables, for judging their bounds."""
        return len(self._recent) + len(self._blocked) + len(self._expected)

    def key(self, host: str) -> str:
        """What counts as one for ``host``; exempt addresses count by themselves."""
        return address_key(host, self._by_themselves)

    # -- inside ----------------------------------------------------------------------------

    def _judge(self, key: str, now: float, open_now: int, own: int) -> Verdict:
        self._end_blocks(now)
        if key in self._blocked:
            return Verdict.BLOCKED
        if not self._without_limit(key, now):
            recent = self._remember(key, now)
            if recent.count >= self.limits.per_minute:
                return self._refuse(key, recent, now)
            self._count(recent, now)
            if own >= self.limits.max_of_one:
                return Verdict.HELD
        if open_now >= self.limits.max_connections:
            return Verdict.FULL
        return Verdict.ADMIT

    def _without_limit(self, key: str, now: float) -> bool:
        until = self._expected.get(key)
        if until is not None:
            if now < until:
                return True
            del self._expected[key]
        if not self._exempt:
            return False
        try:
            address = ipaddress.ip_address(key.partition("/")[0])
        except ValueError:
            return False
        return within(address, self._exempt)

    def _remember(self, key: str, now: float) -> _Recent:
        """The record of an address, up to date, and the newest in the table."""
        recent = self._recent.get(key)
        if recent is None:
            recent = self._recent[key] = _Recent(last=now)
            self._forget(now)
        else:
            self._recent.move_to_end(key)
        recent.last = now
        while recent.arrivals and recent.arrivals[0][0] + WINDOW_S <= now:
            recent.count -= int(recent.arrivals.popleft()[1])
        while recent.refusals and recent.refusals[0] + self.limits.abuse_s <= now:
            recent.refusals.popleft()
        return recent

    def _count(self, recent: _Recent, now: float) -> None:
        stamp = now if self.limits.per_minute <= EXACT else float(math.ceil(now))
        if recent.arrivals and recent.arrivals[-1][0] == stamp:
            recent.arrivals[-1][1] += 1
        else:
            recent.arrivals.append([stamp, 1])
        recent.count += 1

    def _refuse(self, key: str, recent: _Recent, now: float) -> Verdict:
        recent.refusals.append(now)
        if len(recent.refusals) < self.limits.refusals:
            return Verdict.TOO_MANY
        del self._recent[key]
        self.blocks += 1
        reason = (
            f"{self.limits.refusals} connections too many within {self.limits.abuse_s:g} s "
            f"({self.limits.per_minute} a minute are allowed)"
        )
        self._blocked[key] = (now + self.limits.block_s, reason)
        if len(self._blocked) > self.limits.max_blocked:
            self._blocked.popitem(last=False)
            self.forgotten += 1
        return Verdict.BLOCKED

    def _forget(self, now: float) -> None:
        """Drop what is too old to matter, two at a time, and what is one too many."""
        keep_s = max(WINDOW_S + 1, self.limits.abuse_s)
        for _ in range(2):
            oldest = next(iter(self._recent.values()))
            if oldest.last + keep_s > now:
                break
            self._recent.popitem(last=False)
        if len(self._recent) > self.limits.max_addresses:
            self._recent.popitem(last=False)
            self.forgotten += 1

    def _end_blocks(self, now: float) -> None:
        """Blocks all last equally long, so the first in the table is the first to end."""
        while self._blocked:
            address, (until, _) = next(iter(self._blocked.items()))
            if now < until:
                return
            del self._blocked[address]
