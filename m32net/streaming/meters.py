"""Who sees the levels of the channels, how often, and what of them is news (CON-52, CON-21).

A core: it is given peaks as they are measured and tells control links what has changed.  A full
picture comes first and every 5 s; in between only channels whose level in whole decibels is
another one, and nothing if there are none.  Who reads too slowly is left out until its queue is
empty.  It has no timer and no clock: the pace is that of the slots of 50 ms it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from protocols.control import messages

SLOT_MS: Final = 50
"""What one slot lasts; intervals are multiples of it."""
FULL_SLOTS: Final = 5_000 // SLOT_MS
"""After so many slots everything is told again."""
FLOOR_DB: Final = -90
_FULL_SCALE: Final = 2.0**31

Peaks = npt.NDArray[np.int64]


class MeterLink(Protocol):
    """A control connection, as far as levels need it."""

    @property
    def queued_bytes(self) -> int:
        """What waits there because the peer reads too slowly."""
        ...

    def send(self, message: messages.ServerMessage) -> bool:
        """Send or queue; False if it was thrown away."""
        ...


def whole_db(peaks: Peaks) -> tuple[int, ...]:
    """Peaks of full scale 2**31 as whole decibels relative to it, -90 to 0."""
    level = 20 * np.log10(np.maximum(peaks, 1) / _FULL_SCALE)
    return tuple(np.clip(np.rint(level), FLOOR_DB, 0).astype(int).tolist())


@dataclass(slots=True, eq=False)
class _Pace:
    """Links that want levels equally often: all of them are told the same.

    :ivar slots: between one message and the next.
    :ivar links: with whether each must be told everything.
    :ivar shown: what those links know that need not be told everything.
    """

    slots: int
    links: dict[MeterLink, bool] = field(default_factory=dict)
    peaks: Peaks | None = None
    held: int = 0
    since_full: int = 0
    shown: tuple[int, ...] = ()

    def hold(self, peaks: Peaks, slots: int) -> bool:
        """Keep the highest; whether it is time to tell."""
        same = self.peaks is not None and len(self.peaks) == len(peaks)
        self.peaks = np.maximum(peaks, self.peaks) if same else peaks  # type: ignore[arg-type]
        self.held += slots
        self.since_full += slots
        return self.held >= self.slots

    def news(self) -> tuple[messages.Meters, messages.Meters | None]:
        """Everything, and what has changed (None: nothing); begins a new interval."""
        assert self.peaks is not None
        levels = whole_db(self.peaks)
        self.peaks, self.held = None, 0
        everything = messages.Meters(levels)
        changed = [i for i, db in enumerate(levels) if self.shown[i : i + 1] != (db,)]
        # More than half changed: without a list of channels it is shorter.
        crowded = 2 * len(changed) > len(levels) or len(levels) != len(self.shown)
        self.shown = levels
        if crowded or self.since_full >= FULL_SLOTS:
            self.since_full = 0
            return everything, everything
        if not changed:
            return everything, None
        ids = tuple(i + 1 for i in changed)
        return everything, messages.Meters(tuple(levels[i] for i in changed), ids)


class LevelFeed:
    """Levels to those who want them.

    :param set_metering: tells the audio room whether anybody does; nothing is measured otherwise.
    :param in_full: tell everything each time, changed or not.
    :ivar sent: messages; :ivar skipped: that a link with a queue was not sent.
    """

    def __init__(self, set_metering: Callable[[bool], object], *, in_full: bool = False) -> None:
        self._set_metering = set_metering
        self._in_full = in_full
        self._paces: dict[int, _Pace] = {}
        self._pace_of: dict[MeterLink, _Pace] = {}
        self.sent = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._pace_of)

    def subscribe(self, link: MeterLink, interval_ms: int) -> None:
        """Show a link levels from now on, every ``interval_ms`` to the next 50 ms; 0: no more."""
        if interval_ms <= 0:
            self.forget(link)
            return
        slots = max(1, round(interval_ms / SLOT_MS))
        before = self._pace_of.get(link)
        if before is not None and before.slots == slots:
            before.links[link] = True
            return
        if before is not None:
            self._leave(link, before)
        pace = self._paces.setdefault(slots, _Pace(slots))
        pace.links[link] = True
        self._pace_of[link] = pace
        if len(self._pace_of) == 1 and before is None:
            self._set_metering(True)

    def forget(self, link: MeterLink) -> None:
        """A link is gone, or wants no more."""
        pace = self._pace_of.pop(link, None)
        if pace is None:
            return
        self._leave(link, pace)
        if not self._pace_of:
            self._set_metering(False)

    def levels(self, peaks: Peaks, slots: int) -> None:
        """Peaks came.

        :param peaks: highest absolute sample by channel, full scale 2**31.
        :param slots: how many times 50 ms they are the highest of.
        """
        for pace in list(self._paces.values()):
            if pace.hold(peaks, slots):
                self._tell(pace)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        return {
            "meter_subscribers": len(self),
            "meter_messages_total": self.sent,
            "meter_messages_skipped_total": self.skipped,
        }

    def _tell(self, pace: _Pace) -> None:
        everything, changes = pace.news()
        for link, needs_all in list(pace.links.items()):
            message = everything if needs_all or self._in_full else changes
            if message is None:
                continue
            if link.queued_bytes:
                self.skipped += 1
                told = False
            else:
                told = link.send(message)
                self.sent += told
            if link in pace.links:  # sending can end a connection
                pace.links[link] = not told

    def _leave(self, link: MeterLink, pace: _Pace) -> None:
        del pace.links[link]
        if not pace.links:
            del self._paces[pace.slots]
