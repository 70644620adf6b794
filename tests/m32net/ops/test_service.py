"""CON-40: what watches the server, put together."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.interfaces import Health
from m32net.ops.delivery import Counters
from m32net.ops.process import ProcessMeter
from m32net.ops.service import OpsService
from m32net.ops.status import ServerStatus
from tests.support.rooms import FakeListeners, listener_status


class Room(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.status = ServerStatus(
            name="m32-server",
            version="9.9.9",
            node_id="node",
            rtp_port=5004,
            seconds=self.clock.seconds,
            process=ProcessMeter(self.clock),
        )
        self.listeners = FakeListeners()
        self.counters = Counters()
        self.ops = OpsService(
            self.clock,
            self.status,
            self.listeners,
            counters=lambda: self.counters,
            encoding=lambda: True,
            state_dir=Path("/tmp"),
            environ={},
        )
        self.patch(self.ops.disk, "_ask", lambda _directory: succeed((10**9, 10**10)))
        self.ops.startService()

    def tearDown(self) -> None:
        self.ops.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_a_line(self) -> None:
        """CON-40: the worst first, with its reasons, and how many listen."""
        self.assertEqual(self.ops.in_a_line(), "healthy, 0 listeners")
        self.listeners.statuses = [listener_status("a")]
        self.status.rooms["store"] = lambda: Health("degraded", ("the disk is full",))
        self.assertEqual(self.ops.in_a_line(), "degraded, 1 listener; store: the disk is full")
        self.status.rooms["audio"] = lambda: Health("unhealthy")
        self.assertEqual(self.ops.in_a_line(), "unhealthy, 1 listener; audio: no reason given")

    def test_where_the_state_is(self) -> None:
        """CON-40: no room's reasons say to everybody where the state directory is."""
        for place, told, said in (
            (
                Path("/home/anna b/state"),
                "/home/anna b/state/tls/ca.pem is odd",
                "tls/ca.pem is odd",
            ),
            (Path("/home/anna"), "no room in /home/anna", "no room in the state directory"),
            (Path(), "well. Not", "well. Not"),
            (Path("/"), "a/b", "a/b"),
        ):
            self.status.state_dir = place
            health = Health("degraded", (told,), {"count": 1})
            self.status.rooms["trust"] = lambda health=health: health
            self.assertEqual(self.status.health()["trust"].reasons, (said,))
            self.assertEqual(self.status.health()["trust"].details, {"count": 1})

    def test_a_room_that_fails(self) -> None:
        """CON-40: a fault in one room's telling ends neither /health nor /metrics nor watchdog."""

        def fail() -> NoReturn:
            raise ZeroDivisionError

        self.status.rooms["audio"] = fail
        self.status.figures.insert(0, fail)
        self.assertEqual(self.status.health()["audio"].state, "unhealthy")
        self.assertIn("audio: its state cannot be told: ZeroDivisionError", self.ops.in_a_line())
        self.assertIn(b"m32net_state_disk_free_bytes 1e+09", self.ops.metrics.render())
        self.clock.pump([1.0] * 10)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2, "once for each")

    def test_health_and_metrics(self) -> None:
        """CON-40: lag and delivery are rooms of their own on /health, and all is on /metrics."""
        self.ops.want(True)
        self.clock.pump([0.05] * 100)
        self.assertEqual(self.status.health()["loop"].state, "healthy")
        self.assertEqual(self.status.health()["delivery"].state, "unhealthy")
        text = self.ops.metrics.render().decode()
        for line in (
            'm32net_health{room="delivery",state="unhealthy"} 1.0',
            'm32net_rate_per_second{counter="rtp_packets_sent_total"} 0.0',
            "m32net_state_disk_free_bytes 1e+09",
            'm32net_log_lines_total{level="error",room="store"} 0.0',
            'm32net_event_loop_lag_seconds_bucket{le="+Inf"} 99.0',
            "m32net_last_frame_age_seconds 4.99",
        ):
            self.assertIn(f"\n{line}", text)
