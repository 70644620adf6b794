"""A few threads that share the encoding of one frame.

Jobs are calls that spend their time in libopus with the GIL released.  The engine thread works
too, and waits only for jobs that somebody else has already begun, never for a thread to wake up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

Job = Callable[[], None]
_Outcome = BaseException | None


class Crew:
    """``workers`` threads in all, the caller's included; with 1 everything runs in line."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers can't do anything")
        self.workers = workers
        self._bell: SimpleQueue[deque[Job] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._helpers: list[threading.Thread] = []

    def start(self) -> None:
        """Start the helping threads."""
        for number in range(1, self.workers):
            helper = threading.Thread(
                target=self._help, name=f"m32net-encode-{number}", daemon=True
            )
            self._helpers.append(helper)
            helper.start()

    def stop(self) -> None:
        """End the helping threads and wait for them."""
        for _ in self._helpers:
            self._bell.put(None)
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs and return when the last is done; the first error is raised again."""
        if not self._helpers or len(jobs) < 2:
            for job in jobs:
                job()
            return
        open_jobs = deque(jobs)
        for _ in range(min(len(self._helpers), len(jobs) - 1)):
            self._bell.put(open_jobs)
        others = len(jobs)
        error: _Outcome = None
        while True:
            try:
                job = open_jobs.popleft()
            except IndexError:
                break
            others -= 1
            error = _attempt(job) or error
        for _ in range(others):
            error = self._outcomes.get() or error
        if error is not None:
            raise error

    def _help(self) -> None:
        while True:
            open_jobs = self._bell.get()
            if open_jobs is None:
                return
            while True:
                try:
                    job = open_jobs.popleft()
                except IndexError:
                    break
                self._outcomes.put(_attempt(job))


def _attempt(job: Job) -> _Outcome:
    """Run a job; its error is a value, because the thread that raised it isn't the one to know."""
    try:
        job()
    except Exception as error:
        return error
    return None
