"""What the server says of itself, put together from the rooms (``IServerStatus``).

Reads only: every figure is asked of the room that knows it, at the moment it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from m32net.interfaces import Health
from m32net.ops.process import ProcessMeter

HealthSource = Callable[[], Health]


@dataclass(slots=True)
class ServerStatus:
    """Provides :class:`m32net.interfaces.IServerStatus`.

    :ivar page_url: the address a musician opens; known once the web server listens.
    :ivar seconds: a steady clock.
    :ivar rooms: by name, who judges its own health.
    :ivar figures: who has named figures for ``/metrics``.
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

    def uptime_s(self) -> float:
        return self.seconds() - self.started

    def health(self) -> Mapping[str, Health]:
        return {room: ask() for room, ask in self.rooms.items()}

    def cpu_percent(self) -> float:
        return self.process.cpu_percent()

    def memory_mb(self) -> float:
        return self.process.memory_mb()

    def measurements(self) -> Mapping[str, float]:
        return {name: value for ask in self.figures for name, value in ask().items()}
