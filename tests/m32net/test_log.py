"""STR-11: structured logs with levels; what goes wrong carries the listener and the reason."""

from __future__ import annotations

from typing import Any, get_args

from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial import unittest

from m32net.audio import events, watch
from m32net.audio.events import DeviceLost, EngineFault
from m32net.audio.service import AudioStatus
from m32net.audio.watch import AudioWatch
from m32net.log import RoomLog
from m32net.streaming.control import ListenerControlFactory
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.registry import Limits, Registry
from m32net.streaming.service import StreamingService
from m32net.streaming.transmission import TransmissionConfig
from protocols.control import messages
from tests.support.websocket import CLOSE, TEXT, ByteClient, frame


class Link:
    def send(self, message: messages.ServerMessage) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


class LogCase(unittest.TestCase):
    def setUp(self) -> None:
        self.logged: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.patch(RoomLog, "threshold", LogLevel.info)

    def with_field(self, **fields: Any) -> list[dict[str, Any]]:
        return [one for one in self.logged if all(one.get(k) == v for k, v in fields.items())]


class LevelTest(LogCase):
    log = RoomLog(namespace="m32net.test")

    def test_threshold(self) -> None:
        self.log.debug("not {what}", what="this")
        self.log.info("but {what}", what="that")
        self.patch(RoomLog, "threshold", LogLevel.error)
        self.log.warn("not {what}", what="this")
        self.assertEqual([one["what"] for one in self.logged if "what" in one], ["that"])


class ListenerTest(LogCase):
    def service(self, clock: Clock) -> StreamingService:
        return StreamingService(
            clock,
            Registry(AudioOffer((1,)), Limits(max_listeners=1), new_id=lambda: "client_1",
                     new_token=lambda: "t"),
            TransmissionConfig(),
            server=messages.ServerInfo(),
            set_demand=lambda _: None,
            channel_names=dict,
            note_quality=lambda *_: None,
            note_event=lambda *_: None,
            seconds=clock.seconds,
        )  # fmt: skip

    def test_guests_are_under_the_threshold_too(self) -> None:
        """What a guest provokes on the wire is a warning: not to be seen where errors are."""
        clock = Clock()
        factory = ListenerControlFactory(
            self.service(clock), reactor=clock, seconds=clock.seconds, wall_ms=lambda: 0.0
        )

        def talk_too_much() -> list[dict[str, Any]]:
            self.logged.clear()
            client = ByteClient(factory)
            client.open()
            client.feed(frame(TEXT, b'{"type":"heartbeat"}') * 200)
            self.assertEqual(client.heard()[-1][0], CLOSE)
            return [one for one in self.logged if one["log_level"] >= LogLevel.info]

        (warning,) = talk_too_much()
        self.assertEqual(warning["log_level"], LogLevel.warn)
        self.patch(RoomLog, "threshold", LogLevel.error)
        self.assertEqual(talk_too_much(), [])

    def test_listener_and_reason(self) -> None:
        clock = Clock()
        service = self.service(clock)
        link = Link()
        service.connected(link, "127.0.0.1")
        service.configure(link, messages.ClientConfig(udp_port=5004))
        service.configure(link, messages.ClientConfig(udp_port=5004, bitrate=50_001))
        (refusal,) = self.with_field(log_level=LogLevel.warn)
        self.assertEqual((refusal["listener"], refusal["code"]), ("client_1", "bad_bitrate"))
        self.assertIn("50001", refusal["reason"])
        clock.advance(31)
        (ended, left) = self.with_field(reason="no heartbeat for 30 s")
        self.assertEqual((ended["listener"], left["listener"]), ("client_1", "client_1"))


class AudioWatchTest(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.state = "running"
        self.noted: list[str] = []
        self.watch = AudioWatch(
            self.status, lambda kind, *_: self.noted.append(kind), self.clock.seconds
        )

    def status(self) -> AudioStatus:
        return AudioStatus(
            source="device X32", state=self.state,
            reason="unplugged" if self.state == "lost" else "",
            channels=32, overruns=2, samples_lost=96, dropped=1, late=3, profiles=(),
            encode_us=700.0, encode_us_max=900.0, encoders_active=0, frames_encoded=5,
        )  # type: ignore[arg-type]  # fmt: skip

    def test_device_lost(self) -> None:
        """STR-2: in the log with its reason, in the history, on /health, in the metrics."""
        self.watch.event(DeviceLost("unplugged"))
        self.state = "lost"
        self.assertEqual(len(self.with_field(kind="device_lost", reason="unplugged")), 1)
        self.assertEqual(self.noted, ["device_lost"])
        health = self.watch.health()
        self.assertEqual(health.state, "unhealthy")
        self.assertEqual(health.reasons, ("no audio from device X32: unplugged",))
        figures = self.watch.figures()
        self.assertEqual((figures["source_lost"], figures["capture_overruns_total"]), (1, 2))
        self.state = "running"
        self.assertEqual(self.watch.figures()["source_lost"], 0)

    def test_every_event_has_a_kind(self) -> None:
        self.assertEqual(set(watch._KIND), set(get_args(events.AudioEvent)))

    def test_faults_show_for_a_minute(self) -> None:
        self.watch.event(EngineFault("boom", "Traceback ..."))
        self.assertEqual(self.watch.health().state, "degraded")
        self.clock.advance(61)
        self.assertEqual(self.watch.health().state, "healthy")
