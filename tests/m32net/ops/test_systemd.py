"""CON-40, CON-50: systemd hears that the server is ready, alive and stopping."""

from __future__ import annotations

import os
import socket
import tempfile

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial import unittest

from m32net.ops.systemd import (
    MAX_STATUS,
    Notifier,
    NotifyService,
    NotifySocket,
    Supervision,
    supervision,
)


class Environment(unittest.SynchronousTestCase):
    """CON-40: the variables of sd_notify(3) and sd_watchdog_enabled(3)."""

    def test_none(self) -> None:
        self.assertEqual(supervision({}, 7), Supervision())

    def test_path_and_abstract(self) -> None:
        self.assertEqual(supervision({"NOTIFY_SOCKET": "/run/n"}, 7).address, "/run/n")
        self.assertEqual(supervision({"NOTIFY_SOCKET": "@n"}, 7).address, "\0n")

    def test_watchdog(self) -> None:
        given = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "30000000"}
        self.assertEqual(supervision(given, 7).watchdog_s, 30.0)
        self.assertEqual(supervision({**given, "WATCHDOG_PID": "7"}, 7).watchdog_s, 30.0)
        self.assertIsNone(supervision({**given, "WATCHDOG_PID": "8"}, 7).watchdog_s)
        self.assertIsNone(supervision({"WATCHDOG_USEC": "30000000"}, 7).watchdog_s)

    @given(st.text(max_size=10), st.text(max_size=10), st.text(max_size=10))
    def test_anything(self, path: str, period: str, pid: str) -> None:
        """Whatever is there, the server starts."""
        found = supervision(
            {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": period, "WATCHDOG_PID": pid}, 7
        )
        self.assertTrue(found.address is None or found.address[0] in "/\0")
        self.assertTrue(found.watchdog_s is None or found.watchdog_s > 0)


class Core(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.sent: list[str] = []
        self.notifier = Notifier(lambda message: self.sent.append(message.decode()), 10.0)

    def test_life(self) -> None:
        """CON-40, CON-50: ready once, fed, status only when it changes, stopping once."""
        self.notifier.ready("no listeners")
        self.notifier.ready("no listeners")
        self.notifier.turn(True, "no listeners")
        self.notifier.turn(True, "1 listener")
        self.notifier.stopping()
        self.notifier.stopping()
        self.notifier.turn(True, "1 listener")
        self.assertEqual(
            self.sent,
            [
                "READY=1\nSTATUS=no listeners",
                "WATCHDOG=1",
                "WATCHDOG=1\nSTATUS=1 listener",
                "STOPPING=1\nSTATUS=stopping: telling listeners",
                "WATCHDOG=1",
            ],
        )

    def test_what_hangs_is_not_fed(self) -> None:
        """CON-40: the status is still told, the watchdog is not fed."""
        self.notifier.turn(False, "unhealthy: the audio engine hangs")
        self.notifier.turn(False, "unhealthy: the audio engine hangs")
        self.assertEqual(self.sent, ["STATUS=unhealthy: the audio engine hangs"])
        self.assertEqual(self.notifier.withheld, 2)

    def test_no_watchdog_wanted(self) -> None:
        """CON-40: without WatchdogSec only news are told."""
        notifier = Notifier(lambda message: self.sent.append(message.decode()))
        notifier.turn(True, "a")
        notifier.turn(False, "a")
        self.assertEqual((self.sent, notifier.withheld), (["STATUS=a"], 0))

    def test_interval(self) -> None:
        """CON-40: at least twice in a period."""
        self.assertEqual(self.notifier.interval_s, 5.0)
        self.assertEqual(Notifier(lambda _: None, 1.0).interval_s, 0.5)
        self.assertEqual(Notifier(lambda _: None).interval_s, 5.0)

    @given(st.text())
    def test_a_name_cannot_forge_a_line(self, name: str) -> None:
        """CON-40: a status, whatever is in it, is one bounded line."""
        self.sent.clear()
        Notifier(lambda message: self.sent.append(message.decode())).turn(True, f"x{name}")
        lines = self.sent[0].split("\n")
        self.assertEqual(len(lines), 1)
        self.assertLessEqual(len(lines[0]), MAX_STATUS + len("STATUS="))


class Shell(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.sent: list[str] = []
        self.clock = Clock()
        self.alive = True
        notifier = Notifier(lambda message: self.sent.append(message.decode()), 10.0)
        self.service = NotifyService(self.clock, notifier, lambda: self.alive, lambda: "fine")

    def fed(self) -> int:
        return sum("WATCHDOG=1" in one for one in self.sent)

    def test_ready_when_the_loop_turns(self) -> None:
        """CON-40: not when services are started, but when the loop comes round after that."""
        self.service.startService()
        self.assertEqual(self.sent, [])
        self.clock.advance(0)
        self.assertEqual(self.sent, ["READY=1\nSTATUS=fine", "WATCHDOG=1"])
        self.service.stopService()

    def test_fed_while_all_turns(self) -> None:
        """CON-40: a blocked loop (the clock stands still) or a hung engine is not fed."""
        self.service.startService()
        self.clock.pump([0, *[5] * 4])
        self.assertEqual(self.fed(), 5)
        self.alive = False
        with capturedLogs() as lines:
            self.clock.pump([5] * 4)
        self.assertEqual(self.fed(), 5)
        self.assertEqual(len(lines), 1, "said once, not at every turn")
        self.alive = True
        self.clock.pump([5] * 4)
        self.assertEqual(self.fed(), 9)
        self.service.stopService()

    def test_stop(self) -> None:
        """CON-50: STOPPING=1 at the beginning; fed during the stop; nothing left behind."""
        self.service.startService()
        self.clock.advance(0)
        self.service.stopping()
        self.clock.advance(5)
        self.assertEqual(self.sent[-2][:10], "STOPPING=1")
        self.assertEqual(self.sent[-1], "WATCHDOG=1")
        self.service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_supervisor(self) -> None:
        """CON-40: started by hand, it does nothing."""
        service = NotifyService.from_environment(self.clock, {}, lambda: True, lambda: "")
        service.startService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        service.stopping()
        service.stopService()


class Sockets(unittest.SynchronousTestCase):
    def receiver(self, address: str) -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(receiver.close)
        receiver.bind(address)
        receiver.settimeout(5)
        return receiver

    def test_both_kinds(self) -> None:
        """CON-40: a path and an abstract name."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = f"{directory.name}/notify"
        for given_name in (path, f"@m32net-test-{os.getpid()}"):
            address = supervision({"NOTIFY_SOCKET": given_name}, 1).address
            assert address is not None
            receiver = self.receiver(address)
            notify = NotifySocket(address)
            notify(b"READY=1")
            self.assertEqual(receiver.recv(100), b"READY=1")
            self.assertEqual(notify.failures, 0)
            notify._socket.close()

    def test_nobody_there(self) -> None:
        """CON-40: a supervisor that has gone is counted, and nothing else."""
        notify = NotifySocket("/nowhere/notify")
        self.addCleanup(notify._socket.close)
        notify(b"READY=1")
        self.assertEqual(notify.failures, 1)
