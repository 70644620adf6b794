"""The same fan-out by GStreamer: what comes out of rtpL16pay, to every listener by multiudpsink.

One gst-launch process with a pipeline for each stream.  Source, conversion and payloader are
needed once however many listen, so what the same pipelines cost with ``fakesink`` is taken off.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.child import end
from benchmarks.machine import process_cpu_ns

ELEMENTS: Final = ("audiotestsrc", "audioconvert", "rtpL16pay", "multiudpsink")
SETTLE_S: Final = 0.7


@dataclass(frozen=True, slots=True)
class Streams:
    """:ivar count: how many RTP streams, each of ``channels``; a packet holds 5 ms of them."""

    count: int
    channels: int


STREAMS: Final = {
    "l16-mono": Streams(32, 1),
    # Two packets of 960 bytes; the Opus bundles have 991.  No payloader makes such bundles.
    "opus-bundle": Streams(2, 2),
}


def missing() -> str | None:
    """Why GStreamer cannot be measured; None if it can."""
    if shutil.which("gst-launch-1.0") is None:
        return "GStreamer (gst-launch-1.0) is not installed"
    for element in ELEMENTS:
        done = subprocess.run(["gst-inspect-1.0", "--exists", element], check=False)
        if done.returncode:
            return f"GStreamer has no {element}"
    return None


def cpu_ns_per_s(streams: Streams, sink: str, seconds: float, prefix: Sequence[str] = ()) -> float:
    """CPU time of the process, all threads, for a second of audio at real time."""
    caps = f"audio/x-raw,rate=48000,channels={streams.channels},layout=interleaved"
    one = [
        "audiotestsrc", "is-live=true", "wave=silence", "samplesperbuffer=240", "!",
        f"{caps},format=S16LE", "!", "audioconvert", "!", f"{caps},format=S16BE", "!",
        "rtpL16pay", "mtu=1472", "min-ptime=5000000", "max-ptime=5000000", "!",
        *sink.split(),
    ]  # fmt: skip
    process = subprocess.Popen(
        [*prefix, "gst-launch-1.0", "-q", *(one * streams.count)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "GST_REGISTRY_UPDATE": "no"},
    )
    try:
        time.sleep(SETTLE_S)
        began, before = time.monotonic_ns(), process_cpu_ns(process.pid)
        time.sleep(seconds)
        spent, span = process_cpu_ns(process.pid) - before, time.monotonic_ns() - began
        return spent * 1e9 / span
    finally:
        process.send_signal(signal.SIGINT)
        end(process)


def to_everybody(host: str, ports: Sequence[int]) -> str:
    clients = ",".join(f"{host}:{port}" for port in ports)
    return f"multiudpsink clients={clients} sync=false async=false"


NOBODY: Final = "fakesink sync=false async=false"
