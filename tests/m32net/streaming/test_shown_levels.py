"""CON-52, CON-21: levels over control connections, from the request to the bytes of the answer."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import numpy as np
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial import unittest

from m32net.streaming.control import ListenerControlFactory
from m32net.streaming.door import Door
from m32net.streaming.meters import LevelFeed
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.registry import Limits, Registry
from m32net.streaming.service import StreamingService
from m32net.streaming.transmission import TransmissionConfig
from protocols.control import events, messages
from tests.support.websocket import TEXT, ByteClient, frame


class ShownLevelsTest(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pin = ""
        ids = itertools.count(1)
        registry = Registry(
            AudioOffer(channels=(1, 2, 3)),
            Limits(max_listeners=30),
            new_id=lambda: f"client_{next(ids)}",
            new_token=lambda: "t" * 43,
            door=Door(lambda: self.pin),
        )
        streaming = StreamingService(
            self.clock,
            registry,
            TransmissionConfig(interface="127.0.0.1", rtp_port=0),
            server=messages.ServerInfo("m32-server", "1", "master"),
            set_demand=lambda demand: None,
            channel_names=dict,
            note_quality=lambda *report: None,
            note_event=lambda kind, text, fields: None,
            rng=random.Random(7),
            seconds=self.clock.seconds,
        )
        self.metering: list[bool] = []
        self.feed = LevelFeed(self.metering.append)
        self.factory = ListenerControlFactory(streaming, reactor=self.clock, meters=self.feed)

    def client(self, **hello: Any) -> ByteClient:
        client = ByteClient(self.factory)
        client.open()
        client.say(type="hello", payload=hello)
        return client

    def levels(self, *dbs: float) -> None:
        peaks = np.array([2**31 * 10 ** (db / 20) for db in dbs]).astype(np.int64)
        self.feed.levels(peaks, 1)

    def shown(self, client: ByteClient) -> list[dict[str, Any]]:
        return [one["payload"] for one in client.messages() if one["type"] == "meters"]

    def test_asked_shown_and_no_more(self) -> None:
        client = self.client()
        client.say(type="meters", payload={"interval_ms": 50})
        self.levels(-12, -20, -90)
        self.levels(-12, -21, -90)
        self.assertEqual(
            self.shown(client), [{"peak_db": [-12, -20, -90]}, {"peak_db": [-21], "channels": [2]}]
        )
        client.say(type="meters", payload={"interval_ms": 0})
        self.levels(-1, -1, -1)
        self.assertEqual(self.shown(client), [])
        self.assertEqual(self.metering, [True, False])

    def test_forgotten_with_the_connection(self) -> None:
        """CON-52: however it ends, nothing is measured for it any more."""
        for end in ("bye", "lost", "abuse"):
            client = self.client()
            client.say(type="meters", payload={"interval_ms": 50})
            self.assertEqual(len(self.feed), 1)
            if end == "bye":
                client.say(type="bye", payload={})
            elif end == "lost":
                client.lose(Failure(ConnectionLost()))  # type: ignore[no-untyped-call]
            else:
                client.feed(frame(TEXT, b"{") * 300)
            self.assertEqual((end, len(self.feed), self.metering[-1]), (end, 0, False))

    def test_who_is_not_let_in_is_shown_nothing(self) -> None:
        """Without the PIN there are no levels, either."""
        self.pin = "1234"
        for hello in ({}, {"pin": "0000"}):
            client = ByteClient(self.factory)
            client.open()
            said = [{"type": "hello", "payload": hello}]
            said.append({"type": "meters", "payload": {"interval_ms": 50}})
            client.feed(b"".join(frame(TEXT, json.dumps(one).encode()) for one in said))
            self.assertEqual((len(self.feed), self.metering), (0, []))
        self.client(pin="1234").say(type="meters", payload={"interval_ms": 50})
        self.assertEqual(len(self.feed), 1)

    def test_the_registry_has_the_last_word(self) -> None:
        """A connection that has not been let in is shown nothing, whatever its session says."""
        client = ByteClient(self.factory)
        client.open()
        (connection,) = self.factory.connections
        self.factory.session_tells(connection, events.MetersWanted(50))
        self.assertEqual(len(self.feed), 0)
        client.say(type="hello", payload={})
        self.factory.session_tells(connection, events.MetersWanted(50))
        self.assertEqual(len(self.feed), 1)

    def test_a_phone_that_stops_reading(self) -> None:
        """CON-21: one picture at most waits for it; then it is shown everything."""
        client = self.client()
        client.say(type="meters", payload={"interval_ms": 50})
        self.levels(-12, -20, -90)
        client.messages()
        producer = client.transport.producer
        producer.pauseProducing()
        for level in range(20, 60):
            self.levels(-12, -level, -90)
        self.assertEqual(self.shown(client), [])
        self.assertGreater(self.feed.skipped, 30)
        producer.resumeProducing()
        self.levels(-12, -33, -90)
        pictures = self.shown(client)
        self.assertLessEqual(len(pictures), 2)
        self.assertEqual(pictures[-1], {"peak_db": [-12, -33, -90]})
