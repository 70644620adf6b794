"""Runs the tests as ``make test`` does: units side by side, then the real peers one after another.

    python -m tests.run                    everything
    python -m tests.run tests.protocols    a part, in one process

Interoperability tests have real time, real sound and real packets in them, so they get the machine
to themselves.  Everything on the network stays on loopback or in namespaces made by the tests.
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


def trial(*arguments: str) -> int:
    command = [sys.executable, "-m", "twisted.trial", *arguments]
    environment = {**os.environ, "M32NET_INTERFACE": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: list[str]) -> int:
    if arguments and arguments != ["tests"]:
        return trial(*arguments)
    status = trial("-j2", "--temp-directory=_trial_temp.unit", *unit_suites())
    return trial("--temp-directory=_trial_temp.interop", "tests.interop") or status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
