"""What ``m32net listen`` prints: JSON lines, a status line, a summary.

Formatting only: figures in, dictionaries and text out.
"""

from __future__ import annotations

from typing import Any

from m32net.listener.figures import Figures, Interval
from m32net.listener.mixer import Meters
from m32net.listener.receiver import Receiver
from m32net.listener.session import Session
from m32net.printable import printable_json


class Progress:
    """Gathers one report a second.

    :param session: whose.
    :param started: seconds on the clock of :meth:`take`.
    """

    def __init__(self, session: Session, started: float) -> None:
        self.session = session
        self.started = started
        self._before = Figures()
        self.reported_at = self.started
        self.jitter_most_ms = 0.0

    @property
    def _receiver(self) -> Receiver:
        return self.session.receiver

    def take(self, now: float) -> dict[str, Any]:
        """What happened since the last call, ready for JSON."""
        figures = self._receiver.figures()
        interval = Interval.between(self._before, figures, now - self.reported_at)
        self._before, self.reported_at = figures, now
        self.jitter_most_ms = max(self.jitter_most_ms, figures.jitter_ms)
        recent = self._receiver.latency.take_recent()
        p50, p99 = (None, None) if recent is None else recent
        stream = self._receiver.stream
        return {
            "type": "progress",
            "elapsed_s": round(now - self.started, 3),
            "state": self.session.state.value,
            "client_id": self.session.client_id,
            "codec": None if stream is None else stream.codec,
            "sample_rate": None if stream is None else stream.sample_rate,
            "frame_ms": None if stream is None else stream.frame_ms,
            "layout": None if stream is None else stream.layout,
            "channels": 0 if stream is None else sum(len(g.channels) for g in stream.groups),
            "packets": interval.packets,
            "expected": interval.expected,
            "lost": interval.lost,
            "loss": interval.loss,
            "duplicates": interval.duplicates,
            "late": interval.late,
            "jitter_ms": _ms(figures.jitter_ms),
            "latency_ms": _ms(figures.latency_ms),
            "latency_p50_ms": _ms(p50),
            "latency_p99_ms": _ms(p99),
            "capture_ms": _ms(figures.capture_ms),
            "rtt_ms": _ms(self.session.round_trip_ms),
            "clock_offset_ms": _ms(self.session.clock_offset_ms),
            "buffer_ms": _ms(figures.buffer_ms),
            "buffer_reason": figures.buffer_reason,
            "concealed_ms": interval.concealed_ms,
            "bytes": interval.octets,
            "mbps": interval.mbps,
            "server": str(self.session.address),
            "migration": self.session.migration(),
            **_sound(figures, self._receiver.outputs.meters()),
        }

    def summary(self, now: float, figures: Figures, recorded: list[str]) -> dict[str, Any]:
        """All of it, at the end.

        :param figures: the last ones before the receiver was stopped.
        """
        totals, seconds = figures.totals, max(now - self.started, 1e-9)
        latency = self._receiver.latency
        return {
            "type": "summary",
            "duration_s": round(seconds, 3),
            "client_id": self.session.client_id,
            "packets": totals.packets,
            "expected": totals.expected,
            "lost": totals.lost,
            "loss": round(totals.lost / totals.expected, 6) if totals.expected else 0.0,
            "duplicates": totals.duplicates,
            "reordered": totals.reordered,
            "malformed": totals.malformed,
            "late": figures.late,
            "dropped": figures.dropped,
            "jitter_ms": _ms(figures.jitter_ms),
            "jitter_max_ms": _ms(max(self.jitter_most_ms, figures.jitter_ms)),
            "latency_p50_ms": latency.quantile(0.5),
            "latency_p99_ms": latency.quantile(0.99),
            "buffer_ms": _ms(figures.buffer_ms),
            "buffer_reason": figures.buffer_reason,
            "concealed_ms": _ms(figures.concealed_ms),
            "skipped_ms": _ms(figures.skipped_ms),
            "bytes": totals.octets,
            "mbps": round(totals.octets * 8 / 1e6 / seconds, 3),
            "reconnects": self.session.reconnects,
            "qos_posted": self.session.qos_posted,
            "moves": [
                {
                    "from": one.origin,
                    "to": one.target,
                    "at_s": round(one.at_s - self.started, 3),
                    "took_s": round(one.took_s, 3),
                    "attempts": one.attempts,
                    "alike": None if one.alike is None else round(one.alike, 3),
                }
                for one in self.session.moves
            ],
            "recorded": recorded,
        }


def json_line(report: dict[str, Any]) -> str:
    """One line of JSON, fit for a terminal."""
    return printable_json(report, (",", ":"))


def status_line(report: dict[str, Any], width: int) -> str:
    """A progress report for one line of a terminal."""
    if report["state"] not in ("streaming", "moving"):
        return f"{report['elapsed_s']:6.0f} s  {report['state']} ..."[:width]
    latency = report["latency_p50_ms"]
    parts = [
        f"{report['elapsed_s']:6.0f} s",
        f"{report['channels']} ch {report['codec']} {report['mbps']:.1f} Mb/s",
        f"loss {100 * report['loss']:.2f} %",
        f"jitter {report['jitter_ms']:.2f} ms",
        "latency ?" if latency is None else f"latency {latency:.1f} ms",
        f"buffer {report['buffer_ms']:.0f} ms ({report['buffer_reason']})",
    ]
    if report["concealed_ms"]:
        parts.insert(3, f"concealed {report['concealed_ms']:.0f} ms")
    if report["migration"] is not None:
        parts.append(f"moving to {report['migration']['to']}: {report['migration']['step']}")
    return "  ".join(parts)[:width]


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for people: two or three lines."""
    p50, p99 = summary["latency_p50_ms"], summary["latency_p99_ms"]
    latency = "unknown" if p50 is None else f"{p50:.1f} ms (p99 {p99:.1f} ms)"
    lines = [
        f"{summary['duration_s']:.1f} s, {summary['packets']} packets, {summary['lost']} lost "
        f"({100 * summary['loss']:.3f} %), {summary['mbps']:.2f} Mb/s",
        f"jitter {summary['jitter_ms']:.2f} ms (most {summary['jitter_max_ms']:.2f} ms), latency "
        f"{latency}, buffer {summary['buffer_ms']:.0f} ms, concealed "
        f"{summary['concealed_ms']:.0f} ms",
    ]
    kept = "; the recording goes on over it" if summary["recorded"] else ""
    lines += [
        f"moved to {one['to']} at {one['at_s']:.1f} s by a cross-fade of 20 ms{kept}"
        for one in summary["moves"]
    ]
    lines += [f"recorded {path}" for path in summary["recorded"]]
    return "\n".join(lines)


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _sound(figures: Figures, meters: Meters | None) -> dict[str, Any]:
    """What there is to say only where something is mixed or played."""
    found: dict[str, Any] = {}
    if meters is not None:
        found["master_peak_db"] = meters.master_peak
        found["master_rms_db"] = meters.master_rms
        found["reduction_db"] = round(meters.reduction, 1)
        found["peak_db"] = meters.peak
    if figures.underruns is not None:
        found["underruns"] = figures.underruns
        found["drift_ppm"] = round(figures.drift_ppm or 0.0)
    return found
