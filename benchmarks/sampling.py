"""Where a process's CPU time goes, by perf's samples: thread and library."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

HZ: Final = 499
"""Samples a second of CPU time: enough to tell per cents, too few to be felt."""

LIBRARIES: Final = (
    ("libopus", "libopus"),
    ("[", "kernel"),
    ("libpython", "Python"),
    ("python", "Python"),
    ("_multiarray", "numpy"),
)


def missing() -> str | None:
    """Why there can be no samples; None if there can."""
    return None if shutil.which("perf") else "perf is not installed"


class SamplingError(Exception):
    """perf did not work; one line."""


def shares(pid: int, seconds: float) -> dict[tuple[str, str], float]:
    """Of a process's samples the fraction in each (thread, library).

    The thread is ``reactor`` (the main one) or ``audio`` (all others).  Libraries are named as in
    :data:`LIBRARIES`, or ``other``.

    :raises SamplingError: perf may not, or saw nothing.
    """
    with tempfile.TemporaryDirectory(prefix="m32net-perf-") as directory:
        data = Path(directory) / "perf.data"
        _run("record", "-q", "-F", str(HZ), "-o", str(data), "-p", str(pid), "--",
             "sleep", f"{seconds:g}")  # fmt: skip
        lines = _run("script", "-i", str(data), "-F", "tid,ip,dso").splitlines()
    counts: Counter[tuple[str, str]] = Counter()
    for line in lines:
        thread, _, rest = line.strip().partition(" ")
        if thread.isdigit():
            place = rest.rpartition("(")[2].rstrip(")")
            counts["reactor" if int(thread) == pid else "audio", _library(place)] += 1
    total = sum(counts.values())
    if not total:
        raise SamplingError("perf saw nothing")
    return {key: count / total for key, count in counts.items()}


def _library(place: str) -> str:
    name = place if place.startswith("[") else Path(place).name
    return next((known for start, known in LIBRARIES if name.startswith(start)), "other")


def _run(*arguments: str) -> str:
    done = subprocess.run(["perf", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "it failed").splitlines()[0]
        raise SamplingError(f"perf {arguments[0]}: {said}")
    return done.stdout
