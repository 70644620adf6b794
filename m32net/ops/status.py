"""What the server says of itself, put together from the rooms (``IServerStatus``).

Reads only: every figure is asked of the room that knows it, at the moment it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from m32net.interfaces import Health
from m32net.log import RoomLog
from m32net.ops.process import ProcessMeter

_log = RoomLog(namespace="m32net.ops")
HealthSource = Callable[[], Health]


@dataclass(slots=True)
class ServerStatus:
    """Provides :class:`m32net.interfaces.IServerStatus`.

    :ivar page_url: the address a musician opens; known once the web server listens.
    :ivar seconds: a steady clock.
    :ivar rooms: by name, who judges its own health.
    :ivar figures: who has named figures for ``/metrics``.
    :ivar state_dir: whose place is nobody's business: health is told to everybody.
    """

    name: str
    version: str
    node_id: str
    rtp_port: int
    seconds: Callable[[], float]
    process: ProcessMeter
    role: str = "master"
    page_url: str = ""
    rooms: dict[str, HealthSource] = field(default_factory=dict)
    figures: list[Callable[[], Mapping[str, float]]] = field(default_factory=list)
    started: float = 0.0
    state_dir: Path | None = None
    _told: set[str] = field(default_factory=set)

    def uptime_s(self) -> float:
        return self.seconds() - self.started

    def health(self) -> Mapping[str, Health]:
        """A room that fails at telling is not well, and hides nobody else's state."""
        return {room: self._asked(room, ask) for room, ask in self.rooms.items()}

    def cpu_percent(self) -> float:
        return self.process.cpu_percent()

    def memory_mb(self) -> float:
        return self.process.memory_mb()

    def measurements(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for ask in self.figures:
            try:
                found |= ask()
            except Exception:
                self._log_once(f"the figures of {getattr(ask, '__qualname__', ask)}")
        return found

    def _asked(self, room: str, ask: HealthSource) -> Health:
        try:
            told = ask()
            return replace(told, reasons=tuple(map(self._without_place, told.reasons)))
        except Exception as error:
            self._log_once(f"the health of {room}")
            return Health("unhealthy", (f"its state cannot be told: {type(error).__name__}",))

    def _without_place(self, reason: str) -> str:
        """A reason that names files by where they are below the state directory only."""
        if self.state_dir is None or len(self.state_dir.parts) < 2:
            return reason
        place = str(self.state_dir)
        return reason.replace(f"{place}/", "").replace(place, "the state directory")

    def _log_once(self, what: str) -> None:
        """Who asks does so every second; the log has the trace of the first time."""
        if what not in self._told:
            self._told.add(what)
            _log.failure("{what} cannot be told", what=what)
