"""Child processes that take orders: one line in, one line of JSON out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class ChildError(Exception):
    """A child ended or failed; what it said last."""


class Obedient:
    """A module of this package as a process.

    :param module: run as ``python -m module``.
    :param prefix: put before the command, as ``ip netns exec NAME``.
    :ivar greeting: the first line it said.
    """

    def __init__(self, module: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.greeting = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, order: str) -> dict[str, Any]:
        """:raises ChildError: it ended instead of answering."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildError(f"ended before {order!r}") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"ended with status {self._process.wait()} and no answer")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ChildError(str(answer))
        return answer

    def close(self) -> None:
        """End it: its input closes, and that is its order to leave."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        end(self._process)

    def __enter__(self) -> Obedient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def end(process: subprocess.Popen[Any], how: signal.Signals = signal.SIGTERM) -> None:
    """Wait a little, then insist."""
    for action in (lambda: None, lambda: process.send_signal(how), process.kill):
        action()
        try:
            process.wait(5 if action is not process.kill else None)
        except subprocess.TimeoutExpired:
            continue
        return
