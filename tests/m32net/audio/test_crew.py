"""The threads that share a frame's encoding."""

from __future__ import annotations

import threading

from twisted.trial import unittest

from m32net.audio.crew import Crew


class CrewTests(unittest.TestCase):
    def crew(self, workers: int) -> Crew:
        crew = Crew(workers)
        crew.start()
        self.addCleanup(crew.stop)
        return crew

    def test_one_worker_is_the_caller(self) -> None:
        seen: list[int] = []
        self.crew(1).run([lambda: seen.append(threading.get_ident())] * 3)
        self.assertEqual(seen, [threading.get_ident()] * 3)

    def test_two_work_at_the_same_time(self) -> None:
        """Each job waits for the other: it ends only if both run at once."""
        meeting = threading.Barrier(2, timeout=10)
        crew = self.crew(2)
        for _ in range(20):
            crew.run([lambda: bool(meeting.wait()), lambda: bool(meeting.wait())])

    def test_all_jobs_are_done_when_run_returns(self) -> None:
        crew = self.crew(3)
        done: list[int] = []
        for count in range(1, 60):
            done.clear()
            crew.run([lambda n=n: done.append(n) for n in range(count)])  # type: ignore[misc]
            self.assertEqual(sorted(done), list(range(count)))

    def test_an_error_comes_back_after_the_others_are_done(self) -> None:
        crew = self.crew(2)
        done: list[int] = []

        def fail() -> None:
            raise ValueError("no")

        for _ in range(20):
            done.clear()
            jobs = [fail, *(lambda n=n: done.append(n) for n in range(8)), fail]  # type: ignore[misc]
            with self.assertRaisesRegex(ValueError, "no"):
                crew.run(jobs)
            self.assertEqual(sorted(done), list(range(8)))

    def test_stops_and_starts_again(self) -> None:
        crew = Crew(2)
        for _ in range(2):
            before = threading.active_count()
            crew.start()
            self.assertEqual(threading.active_count(), before + 1)
            crew.stop()
            self.assertEqual(threading.active_count(), before)

    def test_nobody_is_refused(self) -> None:
        self.assertRaises(ValueError, Crew, 0)
