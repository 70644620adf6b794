"""CON-50: a process that is to end does, whatever hangs in it; tried in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from twisted.trial import unittest

from tests.support.processes import ROOT, wait_for

BOUND_S = 2
PATIENCE_S = 60.0
PROGRAM = """
import ctypes, os, time
from m32net.ops.process import end_within
mutex = ctypes.create_string_buffer(256)
{before}
end_within({bound})
{hang}
"""
IN_A_LIBRARY = "lock = ctypes.{how}(None).pthread_mutex_lock; lock(mutex); lock(mutex)"


class EndWithinTest(unittest.TestCase):
    def ended(
        self, hang: str, stderr: int = subprocess.PIPE, before: str = ""
    ) -> tuple[int, float, str]:
        """Its status, how long it took after its start, and what it said."""
        begin = time.monotonic()
        program = PROGRAM.format(bound=BOUND_S, before=before, hang=hang)
        with subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stderr=stderr,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                said = child.communicate(timeout=PATIENCE_S)[1]
            finally:
                child.kill()
        return child.returncode, time.monotonic() - begin, said or ""

    def test_python_hangs(self) -> None:
        """CON-50: in order as far as others can see, and without a word."""
        status, took, said = self.ended("while True: time.sleep(60)")
        self.assertEqual((status, said), (0, ""))
        self.assertGreaterEqual(took, BOUND_S / 2)

    def test_a_library_hangs(self) -> None:
        """CON-50: one that lets other threads run, and one that does not; it is said where."""
        for how in ("CDLL", "PyDLL"):
            status, took, said = self.ended(IN_A_LIBRARY.format(how=how))
            self.assertEqual(status, 1, said)
            self.assertGreaterEqual(took, BOUND_S)
            self.assertIn('File "<string>", line 7', said)

    def test_nothing_of_it_on_a_terminal(self) -> None:
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        status, _, _ = self.ended(IN_A_LIBRARY.format(how="CDLL"), theirs)
        self.assertEqual(status, 1)
        os.write(theirs, b"end")
        os.close(theirs)
        said = wait_for(lambda: os.read(ours, 1000), "what was said")
        self.assertEqual(said, b"end")

    def test_nowhere_to_say_it(self) -> None:
        status, _, _ = self.ended(IN_A_LIBRARY.format(how="CDLL"), before="os.close(2)")
        self.assertEqual(status, 1)
