"""STR-35 to STR-38, CON-40: what listeners, receivers and monitoring ask for."""

from __future__ import annotations

from typing import Any, ClassVar

from m32net.interfaces import Health, QualityReport, RefusedError
from m32net.settings import AudioConfigChange, ChannelChange, Thresholds
from m32net.web.public import FRESH_S
from tests.m32net.web.case import NOW, WebCase
from tests.support.rooms import listener_status


class AudioMeta(WebCase):
    def test_exactly_as_specified(self) -> None:
        """STR-35, and since there are PINs whether one is asked for: these fields, no others."""
        self.listeners.statuses = [listener_status()]
        meta = self.get("/audio-meta").json
        channels = meta.pop("channels")
        self.assertEqual(
            meta,
            {
                "server": {
                    "name": "m32-server",
                    "version": "9.9.9",
                    "uptime_s": 42.0,
                    "role": "master",
                    "time_ms": round(NOW * 1000),
                },
                "sample_rate": 48000,
                "codec": "opus",
                "bitrate": 96000,
                "frame_ms": 5,
                "rtp": {"port": 5004},
                "ws": "/ws",
                "listeners": 1,
                "quality": {
                    "good": 1,
                    "fair": 0,
                    "poor": 0,
                    "unknown": 0,
                    "loss": 0.01,
                    "jitter_ms": 2.5,
                    "latency_ms": 15.0,
                },
                "pin": False,
            },
        )
        self.assertEqual(len(channels), 32)
        self.assertEqual(
            channels[0],
            {"id": 1, "name": "CH01", "color": "#e6194b", "order": 1, "enabled": True},
        )

    def test_step_in_force(self) -> None:
        """STR-42: the rate and bit rate that are in force at a lower step."""
        self.settings.set_audio_config(AudioConfigChange(sample_rate=32000), who="t")
        meta = self.get("/audio-meta").json
        self.assertEqual((meta["sample_rate"], meta["bitrate"]), (32000, 57600))

    def test_names_byte_exact(self) -> None:
        """STR-8: emoji, combining marks, right-to-left and control characters."""
        name = "👩‍🎤 Ännë\u0301 שלום \x00\x7f\u2028"
        self.settings.set_channels([ChannelChange(3, name=name)], who="t")
        self.assertEqual(self.get("/audio-meta").json["channels"][2]["name"], name)

    def test_without_listeners(self) -> None:
        quality = self.get("/audio-meta").json["quality"]
        self.assertIsNone(quality["loss"])

    def test_unrated(self) -> None:
        """A mean is over those that report; an unknown rating is counted as such."""
        self.listeners.statuses = [
            listener_status("a", quality=QualityReport("qos", 0.0, loss=0.5), rating="poor"),
            listener_status("b", quality=None, rating="?"),
        ]
        quality = self.get("/audio-meta").json["quality"]
        self.assertEqual(
            (quality["poor"], quality["unknown"], quality["loss"], quality["jitter_ms"]),
            (1, 1, 0.5, None),
        )

    def test_a_thousand_ask_at_once(self) -> None:
        """CON-2: how all fare is found once a second, and from ratings and reports alone."""
        looked: list[object] = []
        receptions = self.listeners.receptions

        def counting() -> Any:
            looked.append(None)
            return receptions()

        def everything() -> Any:
            raise AssertionError("a look at each listener's everything")

        self.listeners.receptions = counting  # type: ignore[method-assign]
        self.listeners.snapshot = everything  # type: ignore[method-assign]
        for _ in range(10):
            self.assertEqual(self.get("/audio-meta").json["quality"]["poor"], 0)
        self.assertEqual(len(looked), 1)
        self.listeners.statuses = [listener_status(rating="poor")]
        self.clock.advance(FRESH_S - 0.01)
        self.assertEqual(self.get("/audio-meta").json["quality"]["poor"], 0)
        self.clock.advance(0.01)
        self.assertEqual(self.get("/audio-meta").json["quality"]["poor"], 1)
        self.assertEqual(len(looked), 2)


class RequestAudio(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.listeners.sessions = {"127.0.0.1": "anna"}

    def test_granted(self) -> None:
        """STR-36: GET and POST, with the caller's address."""
        for method in ("GET", "POST"):
            answer = self.request(method, "/request-audio?udp_port=5004")
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.json["client_id"], "anna")
            self.assertEqual(answer.json["udp_port"], 5004)
        self.assertEqual(self.listeners.ports, [("127.0.0.1", 5004, None)] * 2)

    def test_which_of_several(self) -> None:
        self.get("/request-audio?udp_port=6000&client_id=anna")
        self.assertEqual(self.listeners.ports, [("127.0.0.1", 6000, "anna")])

    def test_bounds(self) -> None:
        for port in (1024, 65535):
            self.assertEqual(self.get(f"/request-audio?udp_port={port}").status, 200)

    def test_bad_ports(self) -> None:
        """STR-36: 400 outside 1024..65535 and for what is no number; nothing gets through."""
        for query in (
            "",
            "?udp_port=",
            "?udp_port=1023",
            "?udp_port=65536",
            "?udp_port=-1",
            "?udp_port=5004.5",
            "?udp_port=5_004",
            "?udp_port=%D9%A5%D9%A0%D9%A0%D9%A4",
            "?udp_port=%FF",
            "?udp_port=" + "9" * 5000,
        ):
            answer = self.get(f"/request-audio{query}")
            self.assertEqual(answer.status, 400, query)
            self.assertIn("udp_port", answer.message)
        self.assertEqual(self.listeners.ports, [])

    def test_no_session(self) -> None:
        self.listeners.sessions = {}
        answer = self.get("/request-audio?udp_port=5004")
        self.assertEqual((answer.status, answer.code), (409, "no_session"))


class Qos(WebCase):
    BODY: ClassVar[dict[str, Any]] = {
        "client_id": "client_001",
        "timestamp": "2024-01-01T12:00:00Z",
        "metrics": {
            "packets_received": 1500,
            "packets_expected": 1500,
            "packet_loss_rate": 0.0,
            "jitter_ms": 2.5,
            "latency_ms": 15.2,
            "bandwidth_mbps": 2.1,
        },
    }

    def setUp(self) -> None:
        super().setUp()
        self.listeners.statuses = [listener_status("client_001")]

    def test_example_of_the_spec(self) -> None:
        """STR-37: the example's body, and an answer of measured values."""
        answer = self.send("POST", "/qos-metrics", self.BODY)
        self.assertEqual(
            answer.json,
            {
                "status": "ok",
                "server_metrics": {
                    "total_clients": 1,
                    "total_packets_sent": 7500,
                    "server_cpu_usage": 45.2,
                    "server_memory_usage": 128.5,
                },
            },
        )
        expected = QualityReport("qos", NOW, 0.0, 2.5, 15.2, 1500, 1500, 2.1)
        self.assertEqual(self.listeners.reports, [("client_001", "127.0.0.1", expected)])

    def test_loss_from_the_counts(self) -> None:
        body = {
            "client_id": "client_001",
            "metrics": {"packets_received": 75, "packets_expected": 100},
        }
        self.send("POST", "/qos-metrics", body)
        self.assertEqual(self.listeners.reports[0][2].loss, 0.25)

    def test_unknown_listener(self) -> None:
        answer = self.send("POST", "/qos-metrics", {"client_id": "eve", "metrics": {}})
        self.assertEqual(answer.status, 404)

    def test_refusals_name_the_field(self) -> None:
        for change, field in (
            ({"jitter_ms": "2.5"}, "metrics.jitter_ms"),
            ({"packet_loss_rate": 1.5}, "metrics.packet_loss_rate"),
            ({"packets_received": -1}, "metrics.packets_received"),
            ({"latency_ms": 1e300}, "metrics.latency_ms"),
        ):
            body = {**self.BODY, "metrics": {**self.BODY["metrics"], **change}}
            answer = self.send("POST", "/qos-metrics", body)
            self.assertEqual(answer.status, 400)
            self.assertTrue(answer.message.startswith(field), answer.message)
        self.assertEqual(self.listeners.reports, [])


class Jitter(WebCase):
    def test_default(self) -> None:
        """STR-38."""
        self.assertEqual(self.get("/jitter-thresholds").json, {"interpolate": 100, "drop": 200})

    def test_set(self) -> None:
        self.log_in()
        answer = self.send("POST", "/jitter-thresholds", {"interpolate": 50, "drop": 150})
        self.assertEqual((answer.status, answer.json), (200, {"status": "ok"}))
        self.assertEqual(self.settings.thresholds, Thresholds(50, 150))
        self.assertEqual(self.get("/jitter-thresholds").json, {"interpolate": 50, "drop": 150})

    def test_refused(self) -> None:
        """STR-38: unless 0 < interpolate < drop <= 5000."""
        self.log_in()
        for interpolate, drop in ((0, 5), (5, 5), (6, 5), (10, 5001), (-1, 5)):
            answer = self.send(
                "POST", "/jitter-thresholds", {"interpolate": interpolate, "drop": drop}
            )
            self.assertEqual(answer.status, 400, (interpolate, drop))
        self.assertEqual(self.settings.thresholds, Thresholds(100, 200))

    def test_not_for_listeners(self) -> None:
        """STR-9."""
        answer = self.send("POST", "/jitter-thresholds", {"interpolate": 50, "drop": 150})
        self.assertEqual(answer.status, 401)
        self.assertEqual(self.settings.thresholds, Thresholds(100, 200))


class HealthAndMetrics(WebCase):
    def test_healthy(self) -> None:
        answer = self.get("/health")
        self.assertEqual((answer.status, answer.json["status"]), (200, "healthy"))
        self.assertEqual(answer.json["reasons"], [])

    def test_degraded(self) -> None:
        """CON-40: 200 and the reasons of every room."""
        self.status.rooms = {
            "audio": Health("degraded", ("the M32 is gone",), {"overruns": 3}),
            "store": Health("healthy"),
        }
        answer = self.get("/health")
        self.assertEqual((answer.status, answer.json["status"]), (200, "degraded"))
        self.assertEqual(answer.json["reasons"], ["audio: the M32 is gone"])
        self.assertEqual(answer.json["rooms"]["audio"]["details"], {"overruns": 3})

    def test_unhealthy(self) -> None:
        """CON-40: 503; an unknown state counts as the worst."""
        for state in ("unhealthy", "on fire"):
            self.status.rooms = {"audio": Health(state, ("no",)), "store": Health("degraded")}
            answer = self.get("/health")
            self.assertEqual((answer.status, answer.json["status"]), (503, "unhealthy"))

    def test_details_of_any_kind(self) -> None:
        self.status.rooms = {"store": Health("healthy", (), {"what": object, "nan": float("nan")})}
        self.assertIsNone(self.get("/health").json["rooms"]["store"]["details"]["nan"])

    def test_metrics(self) -> None:
        answer = self.get("/metrics")
        self.assertTrue(str(answer.header("Content-Type")).startswith("text/plain; version=0.0.4"))
        self.assertIn(b"\nm32net_uptime_seconds 42.0\n", answer.body)


class Sdp(WebCase):
    def test_there(self) -> None:
        self.listeners.descriptions = {"anna": "v=0\r\ns=Änne\r\n"}
        answer = self.get("/sdp/anna.sdp")
        self.assertEqual(answer.header("Content-Type"), "application/sdp")
        self.assertEqual(answer.body.decode(), "v=0\r\ns=Änne\r\n")

    def test_not_there(self) -> None:
        self.assertEqual(self.get("/sdp/eve.sdp").status, 404)
        self.assertEqual(self.get("/sdp/eve").status, 404)


class Failing(WebCase):
    def test_no_traceback_to_the_client(self) -> None:
        """Whatever goes wrong is a JSON error here and a traceback in the log."""

        def broken() -> Any:
            raise ZeroDivisionError("secret of ours")

        self.listeners.receptions = broken  # type: ignore[method-assign]
        answer = self.get("/audio-meta")
        self.assertEqual((answer.status, answer.code), (500, "internal_error"))
        self.assertNotIn(b"secret", answer.body)
        self.assertNotIn(b"Traceback", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.api.failures, 1)

    def test_refusal_of_a_room(self) -> None:
        def refuse(*_: object) -> Any:
            raise RefusedError("full", "there is no place", 503)

        self.listeners.request_audio = refuse  # type: ignore[method-assign]
        answer = self.get("/request-audio?udp_port=5004")
        self.assertEqual((answer.status, answer.code), (503, "full"))
        self.assertIsNotNone(answer.header("Retry-After"))
