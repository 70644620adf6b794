"""One listener's reception, from whoever measured it: merged, rated, and warned about.

A pure core.  RTCP receiver reports, ``POST /qos-metrics`` and the NTP exchange each know a part;
the newest word on each figure counts (STR-12).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from m32net.interfaces import QualityReport

Rating = Literal["good", "fair", "poor", "unknown"]

STALE_S: Final = 30.0
"""A figure older than this says nothing of now."""
WARNING_INTERVAL_S: Final = 30.0
"""A listener is told of the same trouble at most this often."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where reception stops being good and starts being poor.

    Good is product-level: a listener there hears nothing wrong.  Poor is audible.
    """

    good_loss: float = 0.005
    poor_loss: float = 0.03
    good_jitter_ms: float = 5.0
    poor_jitter_ms: float = 30.0
    good_latency_ms: float = 50.0
    poor_latency_ms: float = 150.0


def rate(report: QualityReport | None, limits: Limits) -> Rating:
    """The worst of the figures that are known."""
    if report is None:
        return "unknown"
    figures = (
        (report.loss, limits.good_loss, limits.poor_loss),
        (report.jitter_ms, limits.good_jitter_ms, limits.poor_jitter_ms),
        (report.latency_ms, limits.good_latency_ms, limits.poor_latency_ms),
    )
    known = [(value, good, poor) for value, good, poor in figures if value is not None]
    if not known:
        return "unknown"
    if any(value > poor for value, _, poor in known):
        return "poor"
    if any(value > good for value, good, _ in known):
        return "fair"
    return "good"


def complaint(report: QualityReport, limits: Limits) -> str:
    """What is wrong, in words: ``12 % of packets lost, 40 ms jitter``."""
    words = []
    if report.loss is not None and report.loss > limits.good_loss:
        words.append(f"{report.loss * 100:.1f} % of packets lost")
    if report.jitter_ms is not None and report.jitter_ms > limits.good_jitter_ms:
        words.append(f"{report.jitter_ms:.0f} ms jitter")
    if report.latency_ms is not None and report.latency_ms > limits.good_latency_ms:
        words.append(f"{report.latency_ms:.0f} ms latency")
    return ", ".join(words)


@dataclass(slots=True)
class Reception:
    """The state of one listener's reception."""

    limits: Limits = field(default_factory=Limits)
    latest: QualityReport | None = None
    _rating: Rating = "unknown"
    _known_at: dict[str, float] = field(default_factory=dict)
    _warned_at: float | None = None

    def note(self, report: QualityReport) -> str | None:
        """Merge a report; returns a warning for the listener when one is due."""
        known = {
            name: getattr(report, name)
            for name in QualityReport.__dataclass_fields__
            if getattr(report, name) is not None
        }
        for name in known:
            self._known_at[name] = report.at
        if self.latest is None:
            merged = report
        else:
            stale = {
                name: None
                for name, at in self._known_at.items()
                if report.at - at > STALE_S and name not in {"source", "at"}
            }
            merged = replace(self.latest, **{**stale, **known})
        self.latest = merged
        self._rating = rate(merged, self.limits)
        if self._rating != "poor":
            return None
        if self._warned_at is not None and report.at - self._warned_at < WARNING_INTERVAL_S:
            return None
        self._warned_at = report.at
        return complaint(merged, self.limits)

    def rating(self) -> Rating:
        """Of the latest report; judged when that came, because many ask."""
        return self._rating
