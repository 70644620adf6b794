"""CON-40: /metrics in Prometheus' text format, with per-listener quality."""

from __future__ import annotations

import math
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.trial import unittest

from m32net.interfaces import ControlQuality, Health, QualityReport
from m32net.ops.catalogue import HELP
from m32net.ops.lag import LagRecord
from m32net.ops.listeners import exposition
from m32net.ops.metrics import FRESH_S, INLINE, Metrics
from tests.support.processes import missing
from tests.support.rooms import FakeListeners, FakeStatus, listener_status


class Scrape(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.status = FakeStatus()
        self.listeners = FakeListeners()
        self.figures: dict[str, float] = {}
        self.rates: dict[str, float] = {}
        self.record = LagRecord(10)
        self.now = 1000.0
        self.elsewhere: list[tuple[Deferred[str], Callable[..., str], Any]] = []
        self.metrics = Metrics(
            self.status,
            self.listeners,
            [lambda: self.figures],
            lambda: self.rates,
            self.record.histogram,
            seconds=lambda: self.now,
            in_thread=self.in_thread,
        )

    def in_thread(self, work: Callable[..., str], argument: Any) -> Deferred[str]:
        self.elsewhere.append((Deferred(), work, argument))
        return self.elsewhere[-1][0]

    def samples(self) -> dict[tuple[str, tuple[str, ...]], float]:
        text = self.metrics.render().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.values()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def test_server(self) -> None:
        """CON-40: uptime, connections, packets and bytes, what runs here."""
        self.listeners.refused_count = 3
        samples = self.samples()
        self.assertEqual(samples["m32net_uptime_seconds", ()], 42.0)
        self.assertEqual(samples["m32net_listeners", ()], 0)
        self.assertEqual(samples["m32net_listeners_refused_total", ()], 3)
        self.assertEqual(samples["m32net_rtp_packets_sent_total", ()], 7500)
        self.assertEqual(samples["m32net_control_sessions_total", ()], 5)
        self.assertEqual(samples["m32net_cpu_ratio", ()], 0.452)
        self.assertEqual(samples["m32net_memory_bytes", ()], 128.5e6)
        self.assertIn(
            ("m32net_info", tuple(sorted(("m32-server", "9.9.9", "master", "node-1")))), samples
        )

    def test_build(self) -> None:
        """CON-40: what runs here can be told from outside."""
        (labels,) = (key[1] for key in self.samples() if key[0] == "m32net_build_info")
        self.assertIn("9.9.9", labels)
        self.assertIn(platform.python_version(), labels)

    def test_process(self) -> None:
        """CON-40: the process's own figures, real ones."""
        self.assertGreater(self.samples()["process_resident_memory_bytes", ()], 1e6)

    def test_each_listener(self) -> None:
        """CON-40: reception of each, whatever its name; nothing is made up where it is unknown."""
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

    def test_asked_again_and_again(self) -> None:
        """CON-40: who asks every millisecond gets the same answer, and costs nothing."""
        first = self.successResultOf(self.metrics.answer())
        self.listeners.refused_count = 3
        self.assertIs(self.successResultOf(self.metrics.answer()), first)
        self.now += FRESH_S
        text = self.successResultOf(self.metrics.answer())
        self.assertIn(b"m32net_listeners_refused_total 3.0", text)

    def test_many_listeners(self) -> None:
        """CON-40: lines of many are written in a thread, once for all who ask meanwhile."""
        self.listeners.statuses = [listener_status(f"c{i}") for i in range(INLINE + 1)]
        first, second = self.metrics.answer(), self.metrics.answer()
        self.assertNoResult(first)
        ((later, work, argument),) = self.elsewhere
        later.callback(work(argument))
        text = self.successResultOf(first)
        self.assertIn(b'client_id="c50"', text)
        self.assertIs(self.successResultOf(second), text)

    def test_a_failure_is_no_end(self) -> None:
        """CON-40: the next scrape is answered."""
        self.listeners.statuses = [listener_status(f"c{i}") for i in range(INLINE + 1)]
        first = self.metrics.answer()
        self.elsewhere[0][0].errback(RuntimeError("no thread"))
        self.failureResultOf(first, RuntimeError)
        self.listeners.statuses = []
        self.assertIn(b"m32net_uptime", self.successResultOf(self.metrics.answer()))

    @settings(max_examples=50)
    @given(st.text(), st.one_of(st.none(), st.floats()))
    def test_any_name_any_figure(self, name: str, loss: float | None) -> None:
        """CON-40: whatever a listener calls itself or reports, the text can be read."""
        quality = QualityReport("rtcp", 1.0, loss=loss)
        self.listeners.statuses = [listener_status("a", name=name, quality=quality)]
        samples = self.samples()
        labels = tuple(sorted(("a", name, "opus")))
        self.assertEqual(samples["m32net_listener_packets_sent_total", labels], 1000)
        known = loss is not None and math.isfinite(loss)
        self.assertEqual(("m32net_listener_loss_ratio", labels) in samples, known)

    def test_a_thousand_listeners(self) -> None:
        """CON-40: their lines take the event loop well below a tenth of a second."""
        quality = ControlQuality(3.0, 2.0, 0.25, 1.5, 10, 20, 1000, 2000, 3, 4, 5)
        everybody = [listener_status(f"c{i}", control=quality) for i in range(1000)]
        took = []
        for _ in range(5):
            began = time.perf_counter()
            exposition(everybody)
            took.append(time.perf_counter() - began)
        self.assertLess(min(took), 0.1)

    def test_control_quality(self) -> None:
        """CON-13, CON-40: how each control session fares; what is not known yet is left out."""
        quality = ControlQuality(3.0, None, 0.25, 1.5, 10, 20, 1000, 2000, 3, 4, 5)
        self.listeners.statuses = [listener_status("a", name="", control=quality)]
        samples = self.samples()
        labels = ("", "a", "opus")
        for name, value in {
            "rtt_seconds": 0.003,
            "loss_ratio": 0.25,
            "idle_seconds": 1.5,
            "queued_messages": 3,
            "messages_received_total": 10,
            "messages_sent_total": 20,
            "bytes_received_total": 1000,
            "bytes_sent_total": 2000,
            "messages_dropped_total": 4,
            "messages_expired_total": 5,
        }.items():
            self.assertEqual(samples[f"m32net_listener_control_{name}", labels], value)
        self.assertNotIn(("m32net_listener_control_rtt_last_seconds", labels), samples)

    def test_labelled_figures(self) -> None:
        """CON-40: figures of one name and several labels are one family."""
        self.figures = {
            'http_connections_refused_total{reason="full"}': 2,
            'http_connections_refused_total{reason="too_many"}': 3,
            "http_connections_refused_total": 1,
            "a{broken": 1,
        }
        samples = self.samples()
        self.assertEqual(samples["m32net_http_connections_refused_total", ("full",)], 2)
        self.assertEqual(samples["m32net_http_connections_refused_total", ("",)], 1)
        self.assertEqual(samples["m32net_a_broken", ()], 1)
        self.assertEqual(samples["m32net_errors_total", ("connections_refused",)], 6)
        self.assertEqual(self.metrics.render().count(b"TYPE m32net_http_connections_refused"), 1)

    def test_errors_by_kind(self) -> None:
        """CON-40: what went wrong, by kind; kinds without an error are there with 0."""
        samples = self.samples()
        self.assertEqual(samples["m32net_errors_total", ("packets_dropped",)], 2)
        self.assertEqual(samples["m32net_errors_total", ("capture_overruns",)], 0)

    def test_event_loop(self) -> None:
        """CON-40: lag as a histogram."""
        for late_s in (0.0005, 0.03, 100.0):
            self.record.add(late_s)
        samples = self.samples()
        self.assertEqual(samples["m32net_event_loop_lag_seconds_bucket", ("0.05",)], 2)
        self.assertEqual(samples["m32net_event_loop_lag_seconds_bucket", ("+Inf",)], 3)
        self.assertEqual(samples["m32net_event_loop_lag_seconds_count", ()], 3)
        self.assertAlmostEqual(samples["m32net_event_loop_lag_seconds_sum", ()], 100.0305)

    def test_rates(self) -> None:
        """CON-40: rates for who has no Prometheus."""
        self.rates = {"rtp_packets_sent_total": 400.0}
        self.assertEqual(
            self.samples()["m32net_rate_per_second", ("rtp_packets_sent_total",)], 400.0
        )

    def test_no_complaint(self) -> None:
        """CON-40: `promtool check metrics` finds nothing to say, all families filled."""
        if missing("promtool"):
            raise unittest.SkipTest("not installed: promtool")
        quality = ControlQuality(3.0, 2.0, 0.25, 1.5, 10, 20, 1000, 2000, 3, 4, 5)
        self.listeners.statuses = [listener_status("a", control=quality)]
        self.figures = dict.fromkeys(HELP, 1.0)
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=self.metrics.render(),
            capture_output=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def test_health(self) -> None:
        """CON-40: the state of each room."""
        self.status.rooms = {"audio": Health("degraded", ("the M32 is gone",))}
        samples = self.samples()
        self.assertEqual(samples["m32net_health", ("audio", "degraded")], 1)
        self.assertEqual(samples["m32net_health", ("audio", "healthy")], 0)

    def test_named_figures(self) -> None:
        """CON-40: names are made into metric names; what is no number is left out."""
        self.status.figures = {"send latency p99 ms": 0.4, "bad": float("nan")}
        self.figures = {"http_requests_total": 7}
        samples = self.samples()
        self.assertEqual(samples["m32net_send_latency_p99_ms", ()], 0.4)
        self.assertEqual(samples["m32net_http_requests_total", ()], 7)
        self.assertNotIn(("m32net_bad", ()), samples)
