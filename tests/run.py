"""Runs the tests as ``make test`` does: side by side where that is fair, alone where it is not.

    python -m tests.run                    everything
    python -m tests.run tests.protocols    a part, in one process

Units and most peers run two at a time.  Tests that measure, or that need sound in real time, get
the machine to themselves.  Everything on the network stays on loopback or in namespaces that the
tests make.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def unit_suites() -> list[str]:
    """Every package and module of tests but the ones with real peers."""
    return [
        "tests.protocols",
        "tests.m32net",
        *sorted(f"tests.{path.stem}" for path in (ROOT / "tests").glob("test_*.py")),
    ]


ALONE = (
    "test_end_to_end",
    "test_hostile",
    "test_load",
    "test_migration",
    "test_pulse_capture",
    "test_storm",
)


def peer_suites() -> list[str]:
    """Interoperability tests that do not mind company."""
    found = sorted(path.stem for path in (ROOT / "tests" / "interop").glob("test_*.py"))
    return [f"tests.interop.{name}" for name in found if name not in ALONE]


def trial(*arguments: str) -> int:
    command = [sys.executable, "-m", "twisted.trial", *arguments]
    environment = {**os.environ, "M32NET_INTERFACE": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: list[str]) -> int:
    if arguments and arguments != ["tests"]:
        return trial(*arguments)
    alone = [f"tests.interop.{name}" for name in ALONE]
    return max(
        trial("-j2", "--temp-directory=_trial_temp.unit", *unit_suites()),
        trial("-j2", "--temp-directory=_trial_temp.peers", *peer_suites()),
        trial("--temp-directory=_trial_temp.alone", *alone),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
