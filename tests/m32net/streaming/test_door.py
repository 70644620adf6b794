"""CON-51 and the PIN: who may come in, who keeps its identity, who is sent elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.interfaces import Arrival, ControlQuality, QualityReport, RefusedError
from m32net.streaming.door import (
    ALL_ATTEMPTS,
    ARRIVAL_S,
    ATTEMPT_EVERY_S,
    ATTEMPTS,
    MAX_ARRIVALS,
    Door,
)
from m32net.streaming.listeners import Departed, Refused, SentAway, StreamsStarted, Welcomed
from m32net.streaming.negotiation import AudioOffer
from m32net.streaming.registry import Limits, Registry
from protocols.control.messages import ClientConfig, Event, Hello
from tests.m32net.streaming.test_service import HOST, Link, ServiceCase

PHONE = "127.0.0.9"
ANNA = Arrival("client_anna", "a" * 43, "Anna", PHONE)


def make(door: Door, **limits: Any) -> Registry:
    ids = itertools.count(1)
    return Registry(
        AudioOffer(channels=(1, 2)),
        Limits(**limits),
        new_id=lambda: f"client_{next(ids)}",
        new_token=lambda: "t" * 43,
        door=door,
    )


def hello(registry: Registry, link: object, now: float = 0.0, **who: str) -> list[Any]:
    """Connect, say hello, and give what came of it."""
    registry.connected(link, PHONE, now)
    fields = {"client_id": None, "token": None, "name": None, "pin": None, **who}
    registry.hello(link, now, **fields)
    return list(registry.events())


class PinTest(unittest.TestCase):
    def setUp(self) -> None:
        self.pin = "4711"
        self.registry = make(Door(lambda: self.pin), max_listeners=2)

    def test_right_pin(self) -> None:
        """Who knows it comes in."""
        self.assertIsInstance(hello(self.registry, "a", pin="4711")[0], Welcomed)
        self.assertEqual(len(self.registry), 1)

    def test_wrong_or_no_pin(self) -> None:
        """Who does not is told, and takes no place."""
        for who in ({}, {"pin": "4712"}, {"pin": ""}, {"pin": "４７１１"}):
            refused, gone = hello(self.registry, object(), **who)
            self.assertIsInstance(refused, Refused)
            self.assertEqual((refused.code, refused.fatal), ("wrong_pin", True))
            self.assertIsInstance(gone, Departed)
            self.assertIsNone(gone.link, "the refusal closes it, not the departure")
        self.assertEqual(len(self.registry), 0)

    def test_without_hello(self) -> None:
        """A bare client_config shows no PIN; /request-audio lets nobody in by the back door."""
        self.registry.connected("a", PHONE, 0)
        error = self.assertRaises(RefusedError, self.registry.request_audio, PHONE, 5004, None, 0)
        self.assertEqual(error.status, 409)
        self.registry.configure("a", ClientConfig(udp_port=5004), 0)
        kinds = [type(event) for event in self.registry.events()]
        self.assertEqual(kinds, [Refused, Departed])

    def test_guessing_is_limited(self) -> None:
        """After some wrong ones even the right one is refused for a while; others are not."""
        for _ in range(ATTEMPTS):
            hello(self.registry, object(), pin="0")
        (refused, _) = hello(self.registry, object(), pin="4711")
        self.assertIn("too many", refused.message)
        self.assertEqual(self.registry.door.wrong_pins, ATTEMPTS + 1)
        self.assertIsNone(self.registry.door.try_pin("127.0.0.10", "4711", 0))
        (welcomed,) = hello(self.registry, object(), ATTEMPT_EVERY_S, pin="4711")
        self.assertIsInstance(welcomed, Welcomed)

    def test_back_with_its_token(self) -> None:
        """Who is known needs the PIN no more, also when it has changed since."""
        (welcomed,) = hello(self.registry, "a", pin="4711")
        self.pin = "9999"
        one = welcomed.listener
        events = hello(self.registry, "b", client_id=one.client_id, token=one.token)
        self.assertIn(Welcomed, [type(event) for event in events])

    def test_no_pin(self) -> None:
        self.pin = ""
        self.assertFalse(self.registry.door.guarded)
        self.assertIsInstance(hello(self.registry, "a")[0], Welcomed)

    def test_guessing_from_many_addresses(self) -> None:
        """CON-30: a phone's addresses are one, or are limited together; who knew the PIN before
        is not kept out by it."""
        door = Door(lambda: "4711")
        self.assertIsNone(door.try_pin("fe80::1", "4711", 0.0))
        for host in ("2001:db8::%x", "10.0.0.%d", "fe80::2:%x"):
            for number in range(1, 50):
                door.try_pin(host % number, "0", 0.0)
        refused = door.try_pin("10.0.1.1", "4711", 0.0)
        assert refused is not None
        self.assertEqual(refused.status, 429)
        self.assertIsNone(door.try_pin("fe80::1", "4711", 0.0))
        self.assertIsNone(door.try_pin("10.0.1.1", "4711", ALL_ATTEMPTS.every_s))

    def test_one_of_many(self) -> None:
        """CON-30: a /64 has the attempts of one address, IPv4 however it is written."""
        for hosts in ("2001:db8::%x", "::ffff:10.0.0.1"):
            door = Door(lambda: "4711")
            names = [hosts % number if "%" in hosts else hosts for number in range(ATTEMPTS)]
            for host in [*names[1:], names[0].removeprefix("::ffff:")]:
                door.try_pin(host, "0", 0.0)
            refused = door.try_pin("2001:db8::abcd" if "%" in hosts else "10.0.0.1", "4711", 0.0)
            assert refused is not None
            self.assertEqual(refused.status, 429)

    @given(st.text(max_size=16))
    def test_any_text(self, pin: str) -> None:
        """Whatever is given: right, or refused."""
        self.assertEqual(Door(lambda: "4711").try_pin("h", pin, 0.0) is None, pin == "4711")


class ArrivalTest(unittest.TestCase):
    def test_keeps_identity(self) -> None:
        """CON-51: id, token and name are those of the old server, and no PIN is asked for."""
        registry = make(Door(lambda: "4711"))
        registry.door.expect([ANNA], 0)
        (welcomed,) = hello(registry, "a", client_id=ANNA.client_id, token=ANNA.token)
        one = welcomed.listener
        self.assertEqual((one.client_id, one.token, one.name), ("client_anna", "a" * 43, "Anna"))
        registry.configure("a", ClientConfig(udp_port=5004), 0)
        self.assertEqual([type(e) for e in registry.events()], [StreamsStarted])
        self.assertIs(registry.get("client_anna"), one)

    def test_wrong_token_is_a_stranger(self) -> None:
        """CON-51: nobody becomes somebody else by knowing an id."""
        registry = make(Door())
        registry.door.expect([ANNA], 0)
        (welcomed,) = hello(registry, "a", client_id=ANNA.client_id, token="b" * 43)
        self.assertNotEqual(welcomed.listener.client_id, ANNA.client_id)
        (welcomed,) = hello(registry, "b", client_id=ANNA.client_id, token=ANNA.token)
        self.assertEqual(welcomed.listener.client_id, ANNA.client_id)

    def test_once_and_not_for_ever(self) -> None:
        door = Door()
        door.expect([ANNA], 0)
        self.assertTrue(door.expects(ANNA.client_id, PHONE, 1))
        self.assertFalse(door.expects(ANNA.client_id, "127.0.0.8", 1))
        self.assertEqual(door.arrival(ANNA.client_id, ANNA.token, 1), ANNA)
        self.assertIsNone(door.arrival(ANNA.client_id, ANNA.token, 1))
        door.expect([ANNA], 0)
        self.assertIsNone(door.arrival(ANNA.client_id, ANNA.token, ARRIVAL_S + 1))

    def test_bounded(self) -> None:
        door = Door()
        door.expect((Arrival(f"c{n}", "t", "", PHONE) for n in range(MAX_ARRIVALS + 5)), 0)
        self.assertFalse(door.expects("c0", PHONE, 0))
        self.assertTrue(door.expects(f"c{MAX_ARRIVALS + 4}", PHONE, 0))


class SentAwayTest(unittest.TestCase):
    def test_newcomers_go_elsewhere(self) -> None:
        """CON-51: by hello, by a bare client_config; those who are here come back here."""
        registry = make(Door())
        (welcomed,) = hello(registry, "a")
        registry.door.elsewhere = ("192.0.2.7", 8080)
        away, _ = hello(registry, "b")
        self.assertEqual(away, SentAway("b", "192.0.2.7", 8080))
        registry.connected("c", PHONE, 0)
        error = self.assertRaises(RefusedError, registry.request_audio, "127.0.0.77", 5004, None, 0)
        self.assertEqual(error.status, 409)
        registry.configure("c", ClientConfig(), 0)
        self.assertEqual([type(e) for e in registry.events()], [SentAway, Departed])
        one = welcomed.listener
        events = hello(registry, "d", client_id=one.client_id, token=one.token)
        self.assertIn(Welcomed, [type(event) for event in events])
        self.assertEqual((len(registry), registry.sent_away), (1, 2))
        registry.door.elsewhere = None
        self.assertIsInstance(hello(registry, "e")[0], Welcomed)

    def test_bye_says_why(self) -> None:
        """CON-51: only the reason ``migrated`` counts as moved."""
        registry = make(Door())
        for link, reason, migrated in (("a", "migrated", True), ("b", "bye", False)):
            hello(registry, link)
            registry.bye(link, reason)
            (gone,) = registry.events()
            self.assertEqual(gone.migrated, migrated)


class ServiceDoorTest(ServiceCase):
    """The same through the service, as messages."""

    def test_sent_away_on_the_wire(self) -> None:
        """CON-51: serverMigration with migrate_after 0, then close code 1012."""
        self.service.registry.door.elsewhere = ("192.0.2.7", 8080)
        link = Link()
        self.service.connected(link, HOST)
        self.service.hello(link, Hello(name="Anna"))
        migration = link.last(Event).migration
        self.assertEqual(
            (migration.new_host, migration.new_port, migration.migrate_after),
            ("192.0.2.7", 8080, 0),
        )
        assert link.closed is not None
        self.assertEqual(link.closed[0], 1012)

    def test_control_quality_is_shown(self) -> None:
        """CON-13: of a link that measures it; None of one that has gone."""
        link = Link()
        measured = ControlQuality(1.5, 2.0, 0.0, 0.1, 3, 4, 50, 60, 0, 0, 0)
        link.quality = lambda now: measured  # type: ignore[attr-defined]
        self.service.connected(link, HOST)
        self.service.hello(link, Hello())
        self.service.configure(link, ClientConfig(udp_port=5004))
        self.assertEqual(self.service.snapshot()[0].control, measured)
        self.service.lost(link)
        self.assertIsNone(self.service.snapshot()[0].control)

    def test_told_of_comings_and_goings(self) -> None:
        heard: list[Any] = []
        self.service.on_welcome = heard.append
        self.service.on_departure = lambda *what: heard.append(what)
        link = Link()
        self.service.connected(link, HOST)
        self.service.hello(link, Hello())
        self.service.bye(link, "migrated")
        self.assertEqual(heard, ["client_1", ("client_1", True)])

    def test_report_of_one_on_its_way(self) -> None:
        """CON-51: its control session is still at the old server; that is no error."""
        report = QualityReport("qos", 0.0, loss=0.0)
        self.assertRaises(RefusedError, self.service.report_quality, ANNA.client_id, PHONE, report)
        self.service.registry.door.expect([ANNA], self.clock.seconds())
        self.service.report_quality(ANNA.client_id, PHONE, report)
        self.assertEqual(self.noted, [])
