"""CON-40: /metrics in Prometheus' text format, with per-listener quality."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial import unittest

from m32net.interfaces import Health
from m32net.ops.metrics import Metrics
from tests.support.rooms import FakeListeners, FakeStatus, listener_status


class Scrape(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.status = FakeStatus()
        self.listeners = FakeListeners()
        self.figures: dict[str, float] = {}
        self.metrics = Metrics(self.status, self.listeners, [lambda: self.figures])

    def samples(self) -> dict[tuple[str, tuple[str, ...]], float]:
        text = self.metrics.render().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.values()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def test_server(self) -> None:
        self.listeners.refused_count = 3
        samples = self.samples()
        self.assertEqual(samples["m32net_uptime_seconds", ()], 42.0)
        self.assertEqual(samples["m32net_listeners", ()], 0)
        self.assertEqual(samples["m32net_listeners_refused_total", ()], 3)
        self.assertEqual(samples["m32net_packets_total", ()], 7500)
        self.assertEqual(samples["m32net_connections_total", ()], 5)
        self.assertEqual(samples["m32net_cpu_percent", ()], 45.2)
        self.assertEqual(samples["m32net_memory_bytes", ()], 128.5e6)
        self.assertIn(
            ("m32net_info", tuple(sorted(("m32-server", "9.9.9", "master", "node-1")))), samples
        )

    def test_process(self) -> None:
        """The process's own figures, real ones."""
        self.assertGreater(self.samples()["process_resident_memory_bytes", ()], 1e6)

    def test_each_listener(self) -> None:
        self.listeners.statuses = [
            listener_status("a", name='"quoted\\" 🎸\nline'),
            listener_status("b", name="", codec=None, quality=None, rating="unknown"),
        ]
        samples = self.samples()
        labels = tuple(sorted(("a", '"quoted\\" 🎸\nline', "opus")))
        self.assertEqual(samples["m32net_listener_loss_ratio", labels], 0.01)
        self.assertEqual(samples["m32net_listener_jitter_seconds", labels], 0.0025)
        self.assertEqual(samples["m32net_listener_latency_seconds", labels], 0.015)
        self.assertEqual(samples["m32net_listener_packets_sent_total", labels], 1000)
        self.assertNotIn(("m32net_listener_loss_ratio", ("", "", "b")), samples)
        self.assertEqual(samples["m32net_listener_channels", ("", "", "b")], 3)
        self.assertEqual(samples["m32net_listeners_rated", ("good",)], 1)
        self.assertEqual(samples["m32net_listeners_rated", ("unknown",)], 1)

    def test_health(self) -> None:
        self.status.rooms = {"audio": Health("degraded", ("the M32 is gone",))}
        samples = self.samples()
        self.assertEqual(samples["m32net_health", ("audio", "degraded")], 1)
        self.assertEqual(samples["m32net_health", ("audio", "healthy")], 0)

    def test_named_figures(self) -> None:
        """Names are made into metric names; what is no number is left out."""
        self.status.figures = {"send latency p99 ms": 0.4, "bad": float("nan")}
        self.figures = {"http_requests_total": 7}
        samples = self.samples()
        self.assertEqual(samples["m32net_send_latency_p99_ms", ()], 0.4)
        self.assertEqual(samples["m32net_http_requests_total", ()], 7)
        self.assertNotIn(("m32net_bad", ()), samples)
