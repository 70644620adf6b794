"""Room on the disk that holds the state directory.

A full disk does not stop audio; it stops settings from being saved, so it is said before that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from m32net.interfaces import Health
from m32net.log import RoomLog

LOOK_S: Final = 30.0
LOW_BYTES: Final = 64 * 1024 * 1024
"""Settings and history together stay well below this; SQLite needs as much again to write."""
HUNG_S: Final = 20.0
"""A disk that does not answer for so long has gone to sleep or is broken."""
_STATE: Final = "the state directory"

Room = tuple[int, int]
"""Bytes free to this user, and bytes in all."""


def room_in(directory: Path) -> Room:
    """:raises OSError: the directory is gone."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


class DiskWatch(Service):
    """Looks every half minute while it runs, in a thread: a disk may take its time.

    :param ask: gives what :func:`room_in` says, later.
    """

    name = "disk"
    _log = RoomLog(namespace="m32net.ops")

    def __init__(
        self,
        clock: IReactorTime,
        directory: Path,
        ask: Callable[[Path], Deferred[Room]] | None = None,
    ) -> None:
        self._clock = clock
        self._directory = directory
        self._ask = ask or _in_a_thread
        self._room: Room | None = None
        self._problem = ""
        self._asked_at: float | None = None
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._looking.start(LOOK_S)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        if self._asked_at is None:
            self._asked_at = self._clock.seconds()
            self._ask(self._directory).addCallbacks(self._answered, self._failed)

    def _answered(self, room: Room) -> None:
        self._asked_at, self._room, self._problem = None, room, ""

    def _failed(self, failure: Failure) -> None:
        self._asked_at = None
        problem = getattr(failure.value, "strerror", "") or type(failure.value).__name__
        if problem != self._problem:
            self._problem = problem
            self._log.warn(
                "{directory}: {reason}",
                directory=self._directory,
                reason=failure.getErrorMessage(),
            )

    def health(self) -> Health:
        """Degraded while there is little room, or no answer.

        Everybody may read it, so it does not say where the directory is.
        """
        free = None if self._room is None else self._room[0]
        details: dict[str, Any] = {"free_bytes": free}
        reasons = []
        if self._asked_at is not None and self._clock.seconds() - self._asked_at > HUNG_S:
            reasons.append(f"the disk of {_STATE} does not answer")
        if self._problem:
            reasons.append(f"{_STATE}: {self._problem}")
        elif free is not None and free < LOW_BYTES:
            reasons.append(f"only {free // 2**20} MiB free for {_STATE}")
        return Health("degraded" if reasons else "healthy", tuple(reasons), details)

    def figures(self) -> Mapping[str, float]:
        """Named figures for ``/metrics``."""
        if self._room is None:
            return {}
        return {"state_disk_free_bytes": self._room[0], "state_disk_size_bytes": self._room[1]}


def _in_a_thread(directory: Path) -> Deferred[Room]:
    return deferToThread(room_in, directory)
