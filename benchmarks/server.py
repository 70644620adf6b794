"""A real server and a crowd of listeners, for the parts that need both."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.child import Obedient
from benchmarks.machine import CpuWatch, resident_mb
from tests.support.processes import ServerProcess

MAX_LISTENERS = 2_000
QUIET_PERCENT = 15.0
"""Of one core: what other programs may take without spoiling a window."""


@contextmanager
def server(*options: str) -> Iterator[ServerProcess]:
    """``twistd m32net`` on loopback with the demo band, the default format unless told."""
    process = ServerProcess(f"--max-listeners={MAX_LISTENERS}", "--log-level=warn", *options)
    try:
        process.port  # noqa: B018 - waits until it listens
        yield process
        process.stop()
    finally:
        process.close()


@contextmanager
def crowd(url: str, listeners: int, **wanted: Any) -> Iterator[Obedient]:
    """So many listeners that have joined; ``wanted`` as in a client configuration."""
    child = Obedient("benchmarks.crowd", url, str(listeners), json.dumps(wanted))
    try:
        yield child
    finally:
        child.close()


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one measurement.

    :ivar cpu: as :meth:`CpuWatch.figures`, of the server.
    :ivar heard: what the crowd says.
    :ivar health: the server's own figures afterwards.
    """

    cpu: dict[str, float]
    memory_mb: float
    heard: dict[str, Any]
    health: dict[str, Any]

    def json(self) -> dict[str, Any]:
        return {
            "server_cpu_percent": self.cpu,
            "server_memory_mb": self.memory_mb,
            "heard": self.heard,
            "streaming": self.health["rooms"]["streaming"]["details"],
            "audio": self.health["rooms"]["audio"]["details"],
        }


def observe(
    process: ServerProcess, listeners: Obedient, seconds: float, *, tries: int = 1
) -> Window:
    """Watch for a while; nothing is asked of the server meanwhile.

    :param tries: windows at most until one is not spoilt by other programs; the least spoilt
        counts.
    """
    best: Window | None = None
    for _ in range(tries):
        window = _observe(process, listeners, seconds)
        if best is None or window.cpu["others"] < best.cpu["others"]:
            best = window
        if best.cpu["others"] < QUIET_PERCENT:
            break
    assert best is not None
    return best


def _observe(process: ServerProcess, listeners: Obedient, seconds: float) -> Window:
    listeners.ask("begin")
    watch = CpuWatch(process.pid)
    time.sleep(seconds)
    cpu = watch.figures(ours={os.getpid(), listeners.pid})
    heard = listeners.ask("end")
    return Window(cpu, resident_mb(process.pid), heard, process.get("/health"))
