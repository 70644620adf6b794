"""The routes that need no log-in: what listeners, receivers and monitoring use (STR-35 to 38)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from twisted.internet.defer import Deferred
from twisted.web.server import Request

from m32net.interfaces import (
    Health,
    IListeners,
    IServerStatus,
    QualityReport,
    RefusedError,
)
from m32net.settings import InvalidSettingError, ISettings, Thresholds
from m32net.web.answers import (
    LongAnswers,
    answer,
    check_origin,
    client_host,
    json_answer,
    json_body,
    text_parameter,
)
from m32net.web.app import app
from m32net.web.auth import Auth
from m32net.web.bodies import (
    AudioMeta,
    Done,
    HealthBody,
    JitterThresholds,
    QosAnswer,
    QosMetrics,
    QualitySummary,
    RoomHealth,
    RtpInfo,
    ServerInfo,
    ServerMetrics,
    State,
)

_WORST_LAST: Final[tuple[State, ...]] = ("healthy", "degraded", "unhealthy")
FRESH_S: Final = 1.0
"""How old the summary of all listeners may be.  They all ask for it when something changes."""
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class PublicRoutes:
    """Mixed into :class:`m32net.web.api.WebApi`, which sets the attributes."""

    status: IServerStatus
    listeners: IListeners
    settings: ISettings
    auth: Auth
    metrics: Callable[[], Deferred[bytes]]
    long: LongAnswers
    reception: FreshSummary
    wall: Callable[[], float] = staticmethod(time.time)

    def admin(self, request: Request) -> str:
        """Who is logged in; raises RefusedError if nobody is."""
        raise NotImplementedError

    @app.route("/audio-meta", methods=["GET"])
    def audio_meta(self, request: Request) -> bytes:
        config = self.settings.audio_config
        status = self.status
        return json_answer(
            request,
            AudioMeta(
                server=ServerInfo(
                    status.name,
                    status.version,
                    round(status.uptime_s(), 3),
                    status.role,
                    round(self.wall() * 1000),
                ),
                sample_rate=config.sample_rate,
                codec=config.codec,
                bitrate=config.bitrate_in_force,
                frame_ms=config.frame_ms,
                channels=self.settings.channels,
                rtp=RtpInfo(status.rtp_port),
                ws="/ws",
                listeners=self.listeners.count(),
                quality=self.reception(),
                pin=bool(self.settings.settings.listener_pin),
            ),
        )

    @app.route("/request-audio", methods=["GET", "POST"])
    def request_audio(self, request: Request) -> bytes:
        check_origin(request)
        port = text_parameter(request, "udp_port")
        if port is None:
            raise RefusedError("bad_port", "udp_port: is missing, as in /request-audio?udp_port=N")
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise RefusedError("bad_port", f"udp_port: {port[:40]!r} is no port number")
        if not 1024 <= int(port) <= 65535:
            raise RefusedError("bad_port", f"udp_port: {port} is outside 1024..65535")
        client_id = text_parameter(request, "client_id")
        granted = self.listeners.request_audio(client_host(request), int(port), client_id)
        return json_answer(request, granted)

    @app.route("/qos-metrics", methods=["POST"])
    def qos_metrics(self, request: Request) -> bytes:
        body = json_body(request, QosMetrics)
        figures = body.metrics
        report = QualityReport(
            source="qos",
            at=self.wall(),
            loss=figures.loss(),
            jitter_ms=figures.jitter_ms,
            latency_ms=figures.latency_ms,
            packets_received=figures.packets_received,
            packets_expected=figures.packets_expected,
            bandwidth_mbps=figures.bandwidth_mbps,
        )
        self.listeners.report_quality(body.client_id, client_host(request), report)
        return json_answer(
            request,
            QosAnswer(
                "ok",
                ServerMetrics(
                    self.listeners.count(),
                    self.listeners.totals().get("packets", 0),
                    round(self.status.cpu_percent(), 2),
                    round(self.status.memory_mb(), 2),
                ),
            ),
        )

    @app.route("/jitter-thresholds", methods=["GET"])
    def thresholds(self, request: Request) -> bytes:
        return json_answer(request, self.settings.thresholds)

    @app.route("/jitter-thresholds", methods=["POST"])
    async def set_thresholds(self, request: Request) -> bytes:
        who = self.admin(request)
        body = json_body(request, JitterThresholds)
        try:
            thresholds = Thresholds(body.interpolate, body.drop)
        except InvalidSettingError as error:
            raise RefusedError("invalid_value", error.message) from None
        await self.settings.set_thresholds(thresholds, who=who)
        return json_answer(request, Done())

    @app.route("/health", methods=["GET"])
    def health(self, request: Request) -> bytes:
        rooms = {name: known_state(health) for name, health in self.status.health().items()}
        worst = max(
            (health.state for health in rooms.values()), key=_WORST_LAST.index, default="healthy"
        )
        reasons = tuple(
            f"{name}: {reason}" for name, health in rooms.items() for reason in health.reasons
        )
        body = HealthBody(
            worst,  # type: ignore[arg-type]
            reasons,
            round(self.status.uptime_s(), 3),
            self.status.version,
            {
                name: RoomHealth(health.state, health.reasons, dict(health.details))  # type: ignore[arg-type]
                for name, health in rooms.items()
            },
        )
        return json_answer(request, body, 503 if worst == "unhealthy" else 200)

    @app.route("/metrics", methods=["GET"])
    async def prometheus(self, request: Request) -> bytes:
        return await self.long.answer(request, await self.metrics(), METRICS_TYPE)

    @app.route("/sdp/<client_id>.sdp", methods=["GET"])
    def sdp(self, request: Request, client_id: str) -> bytes:
        text = self.listeners.sdp(client_id)
        if text is None:
            raise RefusedError("no_stream", "nothing flows to a listener of this id", 404)
        return answer(request, text.encode(), "application/sdp")


def known_state(health: Health) -> Health:
    """A state nobody has heard of counts as the worst."""
    return health if health.state in _WORST_LAST else replace(health, state="unhealthy")


class FreshSummary:
    """How all listeners together fare; made anew when it is older than :data:`FRESH_S`.

    :param seconds: a steady clock.
    """

    def __init__(self, listeners: IListeners, seconds: Callable[[], float]) -> None:
        self._listeners = listeners
        self._seconds = seconds
        self._made: tuple[float, QualitySummary] | None = None

    def __call__(self) -> QualitySummary:
        now = self._seconds()
        if self._made is None or now - self._made[0] >= FRESH_S:
            self._made = now, summary(self._listeners.receptions())
        return self._made[1]


def summary(receptions: Sequence[tuple[str, QualityReport | None]]) -> QualitySummary:
    """How all listeners together fare, from their ratings and last reports."""
    reports = [report for _, report in receptions if report is not None]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(fmean(known), 6) if known else None

    rated = Counter(rating for rating, _ in receptions)
    named = {rating: rated[rating] for rating in ("good", "fair", "poor")}
    return QualitySummary(
        **named,
        unknown=len(receptions) - sum(named.values()),
        loss=mean([report.loss for report in reports]),
        jitter_ms=mean([report.jitter_ms for report in reports]),
        latency_ms=mean([report.latency_ms for report in reports]),
    )
