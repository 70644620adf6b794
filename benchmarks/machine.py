"""The machine and its processes, as /proc and the CPU clocks show them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, user and system (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """Nanoseconds a thread ran, and waited for a CPU while it could have run."""

    ran: int
    waited: int


def thread_times(pid: int) -> dict[int, ThreadTimes]:
    """By thread id; the main thread's is the pid."""
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        ran, waited, _ = (task / "schedstat").read_text().split()
        times[int(task.name)] = ThreadTimes(int(ran), int(waited))
    return times


def machine_busy_s() -> float:
    """CPU seconds that all CPUs together were not idle, since boot."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS_PER_S


class CpuWatch:
    """CPU of one process between two moments, by thread."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._threads = thread_times(pid)
        self._total = process_cpu_ns(pid)
        self._busy = machine_busy_s()
        self._at = time.monotonic_ns()

    def figures(self) -> dict[str, float]:
        """Percentages of one core since the start.

        ``main`` is the main thread, ``rest`` all others; ``waited`` is the time the main thread
        could have run but had no CPU; ``machine`` is what all processes took.
        """
        span = time.monotonic_ns() - self._at
        now = thread_times(self.pid)
        before = self._threads.get(self.pid, ThreadTimes(0, 0))
        total = 100 * (process_cpu_ns(self.pid) - self._total) / span
        main = 100 * (now[self.pid].ran - before.ran) / span
        return {
            "total": total,
            "main": main,
            "rest": total - main,
            "waited": 100 * (now[self.pid].waited - before.waited) / span,
            "machine": 100 * (machine_busy_s() - self._busy) * 1e9 / span,
        }


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def description() -> dict[str, Any]:
    """What a reader must know of this machine to make sense of figures."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """:raises TimeoutError: it did not happen in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)
