"""How many warnings and errors were logged, by room.

A log observer that counts and drops; texts are for people, numbers for alarms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, LogLevel, LogPublisher, globalLogPublisher
from zope.interface import implementer

COUNTED: Final = (LogLevel.warn, LogLevel.error, LogLevel.critical)
OTHER: Final = "other"


@implementer(ILogObserver)
class LogCounter(Service):
    """Counts while it runs.

    :param rooms: names that are told apart; everything else is ``other``, so that a library's
        name spaces cannot grow the table.
    """

    name = "logged"

    def __init__(self, rooms: frozenset[str], publisher: LogPublisher = globalLogPublisher) -> None:
        self._rooms = rooms
        self._publisher = publisher
        self._counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if level in COUNTED:
            parts = str(event.get("log_namespace", "")).split(".")
            known = parts[0] == "m32net" and len(parts) > 1 and parts[1] in self._rooms
            self._counts[parts[1] if known else OTHER, str(level.name)] += 1

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._publisher.addObserver(self)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self._publisher.removeObserver(self)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        return {
            f'log_lines_total{{room="{room}",level="{level}"}}': float(self._counts[room, level])
            for room in sorted({*self._rooms, OTHER})
            for level in (one.name for one in COUNTED)
        }
