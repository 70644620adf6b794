"""CON-40: a disk that is nearly full, gone or asleep shows on /health before anything is lost."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent as text
from twisted.trial import unittest

from m32net.log import RoomLog
from m32net.ops.disk import HUNG_S, LOOK_S, LOW_BYTES, DiskWatch, Room, room_in


class Watch(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[Room]] = []
        self.disk = DiskWatch(self.clock, Path("/home/anna/state"), self.ask)
        self.disk.startService()
        self.addCleanup(self.disk.stopService)

    def ask(self, _directory: Path) -> Deferred[Room]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_room_enough(self) -> None:
        """CON-40: free and whole size are figures."""
        self.assertEqual((self.disk.health().state, self.disk.figures()), ("healthy", {}))
        self.asked[0].callback((LOW_BYTES, 10 * LOW_BYTES))
        self.assertEqual(self.disk.health().state, "healthy")
        self.assertEqual(self.disk.figures()["state_disk_free_bytes"], LOW_BYTES)

    def test_little(self) -> None:
        """CON-40: degraded, and healthy again when there is room."""
        self.asked[0].callback((2**20, 10 * LOW_BYTES))
        self.assertEqual(self.disk.health().reasons, ("only 1 MiB free for the state directory",))
        self.clock.advance(LOOK_S)
        self.asked[1].callback((LOW_BYTES, 10 * LOW_BYTES))
        self.assertEqual(self.disk.health().state, "healthy")

    def test_gone(self) -> None:
        """CON-40: an unmounted disk."""
        self.asked[0].errback(OSError(2, "No such file or directory", "/home/anna/state"))
        said = ("the state directory: No such file or directory",)
        self.assertEqual(self.disk.health().reasons, said)

    def test_where_it_is(self) -> None:
        """CON-40: everybody may read ``/health``: where the directory is is not said there, but
        in the log, once for each trouble."""
        lines: list[str] = []
        self.patch(DiskWatch, "_log", RoomLog(observer=lambda event: lines.append(text(event))))
        found = [self.disk.health()]
        for answer in (
            OSError("lost /home/anna/state"),
            OSError("lost /home/anna/state"),
            (2**20, 2**30),
        ):
            if isinstance(answer, OSError):
                self.asked[-1].errback(answer)
            else:
                self.asked[-1].callback(answer)
            found.append(self.disk.health())
            self.clock.advance(LOOK_S)
        self.clock.advance(HUNG_S + 1)
        found.append(self.disk.health())
        states = ["healthy", "degraded", "degraded", "degraded", "degraded"]
        self.assertEqual([one.state for one in found], states)
        self.assertNotIn("anna", repr(found))
        self.assertEqual(len(lines), 1)
        self.assertIn("/home/anna/state", lines[0])

    def test_asleep(self) -> None:
        """CON-40: a disk that does not answer is asked once, not again and again."""
        self.clock.pump([LOOK_S] * 5)
        self.assertEqual(len(self.asked), 1)
        self.assertIn("does not answer", self.disk.health().reasons[0])
        self.asked[0].callback((LOW_BYTES, LOW_BYTES))
        self.assertEqual(self.disk.health().state, "healthy")

    def test_a_moment_is_no_sleep(self) -> None:
        """CON-40: an answer may take a while."""
        self.clock.advance(HUNG_S)
        self.assertEqual(self.disk.health().state, "healthy")

    def test_real(self) -> None:
        """CON-40: of a real directory."""
        free, size = room_in(Path("/tmp"))
        self.assertTrue(0 <= free <= size > 0)
