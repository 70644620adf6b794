"""The door of the operations room: everything that watches the server while it runs.

Measures, judges and tells (``/metrics``, ``/health``, systemd); it changes nothing in other rooms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.application.service import MultiService

from m32net.interfaces import IListeners
from m32net.ops import catalogue
from m32net.ops.delivery import Counters, DeliveryWatch
from m32net.ops.disk import DiskWatch
from m32net.ops.lag import LoopMeter
from m32net.ops.logged import LogCounter
from m32net.ops.metrics import Metrics
from m32net.ops.rates import Rates
from m32net.ops.status import ServerStatus
from m32net.ops.systemd import NotifyService

ROOMS: Final = frozenset({"audio", "discovery", "ops", "store", "streaming", "tap", "trust", "web"})


class OpsService(MultiService):
    """Adds its rooms and figures to ``status``.

    :param status: is shown on ``/health`` and ``/metrics``.
    :param counters: frames and packets, now.
    :param encoding: whether the engine believes that it captures and encodes.
    :param state_dir: whose disk is watched.
    :param environ: where systemd says how it wants to be told.
    :ivar metrics: makes the text of ``/metrics``.
    """

    def __init__(
        self,
        reactor: Any,
        status: ServerStatus,
        listeners: IListeners,
        *,
        counters: Callable[[], Counters],
        encoding: Callable[[], bool],
        state_dir: Path,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._status = status
        status.state_dir = state_dir
        self._listeners = listeners
        self.loop = LoopMeter(reactor)
        self.delivery = DeliveryWatch(reactor, counters, encoding)
        self.disk = DiskWatch(reactor, state_dir)
        self.rates = Rates(reactor, self._totals)
        self.logged = LogCounter(ROOMS)
        self.supervisor = NotifyService.from_environment(
            reactor, environ, self.delivery.alive, self.in_a_line
        )
        watching = (self.loop, self.delivery, self.disk, self.rates, self.logged)
        for service in (*watching, self.supervisor):
            service.setServiceParent(self)  # type: ignore[no-untyped-call]
        status.rooms |= {
            "loop": self.loop.health,
            "delivery": self.delivery.health,
            "disk": self.disk.health,
        }
        status.figures += [self.loop.figures, self.delivery.figures, self.disk.figures]
        self.metrics = Metrics(
            status,
            listeners,
            [self.logged.figures],
            self.rates.per_second,
            self.loop.record.histogram,
        )

    def want(self, wanted: bool) -> None:
        """Somebody listens to something, or nobody does any more."""
        self.delivery.want(wanted)

    def stopping(self) -> None:
        """The orderly stop begins."""
        self.supervisor.stopping()

    def in_a_line(self) -> str:
        """How the server is, as ``systemctl status`` shows it."""
        rooms = self._status.health()
        by_state = {
            state: [
                f"{room}: {why}"
                for room, one in rooms.items()
                if one.state == state
                for why in one.reasons or ("no reason given",)
            ]
            for state in ("unhealthy", "degraded")
        }
        state = next((state for state, reasons in by_state.items() if reasons), "healthy")
        count = self._listeners.count()
        line = f"{state}, {count} listener{'' if count == 1 else 's'}"
        reasons = by_state.get(state, [])
        return f"{line}; {'; '.join(reasons)}" if reasons else line

    def _totals(self) -> Mapping[str, float]:
        totals = self._listeners.totals().items()
        named = {catalogue.TOTALS.get(name, name): float(value) for name, value in totals}
        figures = self._status.measurements().items()
        return named | {name: value for name, value in figures if name.endswith("_total")}
