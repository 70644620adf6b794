"""What a listener tells the server of its reception, every few seconds (STR-37, STR-63)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from twisted.python.failure import Failure

from m32net.listener.figures import Figures, Interval, qos_body
from m32net.listener.link import ServerLink
from protocols.breaker import Breaker

QOS_INTERVAL_S: Final = 5.0


class QosReports:
    """Posts figures.

    :param wall_ms: clock for the time stamps.
    :ivar posted: reports the server took.
    :ivar breaker: a server that takes none is left alone for a while (CON-22); those of the time
        between are in the next one it is asked to take.
    """

    def __init__(self, wall_ms: Callable[[], float]) -> None:
        self.posted = 0
        self.breaker = Breaker()
        self._wall_ms = wall_ms
        self._last: tuple[Figures, float] | None = None

    def consider(self, link: ServerLink, figures: Figures, now: float) -> None:
        """Post what happened since the last time, if that is long enough ago."""
        if self._last is None:
            self._last = (figures, now)
        elif now - self._last[1] >= QOS_INTERVAL_S:
            self._post(link, figures, now)

    def _post(self, link: ServerLink, figures: Figures, now: float) -> None:
        assert self._last is not None
        before, since = self._last
        if self.breaker.retry_in(now):
            return
        self._last = (figures, now)
        interval = Interval.between(before, figures, now - since)
        if link.client_id is None or link.client is None or not interval.expected:
            return
        stamp = datetime.fromtimestamp(self._wall_ms() / 1000, UTC).isoformat(timespec="seconds")
        body = qos_body(link.client_id, stamp.replace("+00:00", "Z"), interval, figures)

        leave = self.breaker.admit(now)
        if leave is None:
            return

        def posted(answer: object) -> None:
            self.posted += 1
            self.breaker.succeeded(leave)

        def refused(failure: Failure) -> None:
            self.breaker.failing(leave, now, failure.getErrorMessage())

        link.api.post_qos(body).addCallbacks(posted, refused)
