"""The machine and its processes, as /proc and the CPU clocks show them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def all_cpu_ns() -> dict[int, int]:
    """CPU time of every process there is, kernel threads too.

    Not /proc/stat: it counts ticks, and what sleeps and wakes by a timer slips between them.
    """
    times = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                times[int(entry.name)] = process_cpu_ns(int(entry.name))
    return times


class CpuWatch:
    """CPU of one process between two moments, by thread."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._threads = thread_times(pid)
        self._total = process_cpu_ns(pid)
        self._all = all_cpu_ns()
        self._at = time.monotonic_ns()

    def figures(self, ours: Container[int] = ()) -> dict[str, float]:
        """Percentages of one core since the start.

        ``main`` is the main thread, ``rest`` all others; ``waited`` is the time the main thread
        could have run but had no CPU; ``others`` is what all other processes took but ``ours``
        (what ended meanwhile is missing).
        """
        span = time.monotonic_ns() - self._at
        now = thread_times(self.pid)
        before = self._threads.get(self.pid, ThreadTimes(0, 0))
        others = [
            spent - self._all.get(pid, 0)
            for pid, spent in all_cpu_ns().items()
            if pid != self.pid and pid not in ours
        ]
        total = 100 * (process_cpu_ns(self.pid) - self._total) / span
        main = 100 * (now[self.pid].ran - before.ran) / span
        return {
            "total": total,
            "main": main,
            "rest": total - main,
            "waited": 100 * (now[self.pid].waited - before.waited) / span,
            "others": 100 * sum(others) / span,
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
        "loop_alone_ms": _loop_ms(1),
        "loop_on_all_cpus_ms": _loop_ms(len(os.sched_getaffinity(0))),
    }


_LOOP = """
import time
times = []
for _ in range(15):
    began = time.thread_time_ns()
    for number in range(100_000):
        number + 1
    times.append(time.thread_time_ns() - began)
print(sorted(times)[7] / 1e6)
"""


def _loop_ms(side_by_side: int) -> float:
    """CPU ms that a fixed loop takes when so many run at a time: the slowest one's median.

    CPUs that share a core (hyper-threads, as two CPUs of a virtual machine may be) slow each
    other down; then a second busy program costs the first, though each has a CPU.
    """
    loops = [
        subprocess.Popen([sys.executable, "-c", _LOOP], stdout=subprocess.PIPE, text=True)
        for _ in range(side_by_side)
    ]
    return round(max(float(loop.communicate()[0]) for loop in loops), 2)
