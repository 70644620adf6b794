"""Part ``latency``: from capture to what comes out of ``m32net listen``, on loopback.

Three views of one server: every packet of a bulk listener (arrival by kernel time stamps against
the capture time in sender reports), ``m32net listen`` measuring, and ``m32net listen --play`` on
PulseAudio's null sink, if there is one, whose figure reaches to what the sound card puts out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import PartResult, Progress, Table, Verdict
from benchmarks.server import crowd, observe, server
from tests.support import pulse
from tests.support.processes import ListenProcess

SECONDS = 30.0
SETTLE_S = 12.0
"""The jitter buffer begins large and shrinks slowly."""
QUICK_SECONDS = 9.0
QUICK_SETTLE_S = 4.0
TARGET_MS = 50.0


def run(quick: bool, progress: Progress) -> PartResult:
    result = PartResult("latency")
    seconds, settle = (QUICK_SECONDS, QUICK_SETTLE_S) if quick else (SECONDS, SETTLE_S)
    table = Table("From capture to the listener's output, ms", ("what", "p50", "p99", "values"))
    result.tables.append(table)
    with server() as process, crowd(process.url, 1) as listener:
        progress("measuring")
        heard, window = _listen(process.url, listener, process, seconds)
        frame_ms = 5.0
        packet = window["heard"]["packet_ms"]
        result.data = {"bulk": window, "listen": heard}
        _row(table, "a frame's last sample to its arrival, every packet", packet, "all")
        whole = {name: packet[name] + frame_ms for name in ("p50", "p99")}
        _row(table, "a frame's first sample to its arrival", whole, "all")
        summary = heard[-1]
        network = {"p50": summary["latency_p50_ms"], "p99": summary["latency_p99_ms"]}
        _row(table, "m32net listen: server's send to arrival", network, "marked packets")
        late = [one for one in heard[:-1] if one["elapsed_s"] > settle]
        buffered = [one["buffer_ms"] for one in late]
        _row(table, "m32net listen: jitter buffer", _quantiles(buffered), len(buffered))
        output = [
            one["capture_ms"] + one["buffer_ms"] for one in late if one["capture_ms"] is not None
        ]
        _row(table, "capture to output of the jitter buffer", _quantiles(output), len(output))
        _judge(result, "capture to output", output)
        absent = "only in the full run" if quick else pulse.missing()
        if absent:
            result.notes.append(f"Not played: {absent}.")
        else:
            progress("playing")
            played = _play(process.url, seconds)
            result.data["played"] = played
            ear = [
                one["capture_ms"]
                for one in played[:-1]
                if one["elapsed_s"] > settle and one["capture_ms"] is not None
            ]
            _row(table, "capture to the null sink, playing", _quantiles(ear), len(ear))
            _judge(result, "capture to the sound card's output", ear)
    result.notes.append(
        f"m32net listen says its figures once a second; those after {settle:g} s count, when the "
        "jitter buffer has shrunk from its careful start."
    )
    return result


def _listen(
    url: str, listener: Any, process: Any, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    listening = ListenProcess(url, "--udp-port=0", f"--duration={seconds:g}")
    try:
        time.sleep(2)
        window = observe(process, listener, seconds - 3).json()
        listening.wait()
        return listening.reports(), window
    finally:
        listening.close()


def _play(url: str, seconds: float) -> list[dict[str, Any]]:
    with _null_sink() as environment:
        playing = ListenProcess(
            url, "--udp-port=0", "--play", f"--duration={seconds:g}", environment=environment
        )
        try:
            playing.wait(seconds + 30)
            return playing.reports()
        finally:
            playing.close()


@contextmanager
def _null_sink() -> Iterator[Mapping[str, str]]:
    """The environment of a client of a PulseAudio daemon of our own."""
    with tempfile.TemporaryDirectory(prefix="m32net-pulse-") as directory:
        daemon = pulse.PulseDaemon(Path(directory))
        daemon.start()
        try:
            yield daemon.environment
        finally:
            daemon.stop()


def _quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99)}


def _row(table: Table, what: str, values: Mapping[str, Any] | None, count: object) -> None:
    known = values or {}
    table.rows.append((what, known.get("p50"), known.get("p99"), count))


def _judge(result: PartResult, what: str, values: list[float]) -> None:
    found = _quantiles(values)
    result.verdicts.append(
        Verdict(
            f"{what}, p99",
            f"< {TARGET_MS:g} ms",
            "nothing measured" if found is None else f"{found['p99']:.1f} ms",
            None if found is None else found["p99"] < TARGET_MS,
        )
    )
