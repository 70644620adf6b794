"""STR-13: announced while the server runs, withdrawn at its end; a missing network is no crash."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.discovery.mdns import (
    RECHECK_S,
    Advertisement,
    Announced,
    DiscoveryError,
    FoundServer,
    MdnsService,
    ZeroconfAnnouncer,
    discover,
    local_addresses,
)


class FakeAnnouncer:
    def __init__(self) -> None:
        self.here: tuple[str, ...] = ("192.0.2.1",)
        self.failure: Exception | None = None
        self.log: list[Any] = []

    def addresses(self) -> tuple[str, ...]:
        return self.here

    def announce(self, addresses: tuple[str, ...]) -> Announced:
        if self.failure:
            raise self.failure
        self.log.append(addresses)
        return Announced("m32-server", "m32-server.local", addresses)

    def withdraw(self) -> None:
        self.log.append("withdrawn")


class Service(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.announcer = FakeAnnouncer()
        self.service = MdnsService(self.announcer, self.clock, maybeDeferred)

    def test_life(self) -> None:
        self.service.startService()
        self.assertEqual(self.announcer.log, ["withdrawn", ("192.0.2.1",)])
        self.assertEqual(self.service.health().details["host"], "m32-server.local")
        self.successResultOf(self.service.stopService())
        self.assertEqual(self.announcer.log[-1], "withdrawn")
        self.assertIsNone(self.service.announced)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_quiet_while_nothing_changes(self) -> None:
        self.service.startService()
        before = list(self.announcer.log)
        self.clock.pump([RECHECK_S] * 5)
        self.assertEqual(self.announcer.log, before)

    def test_new_address(self) -> None:
        """The laptop changes networks: announced anew with the address it has now."""
        self.service.startService()
        self.announcer.here = ("198.51.100.9",)
        self.clock.advance(RECHECK_S)
        self.assertEqual(self.announcer.log[-2:], ["withdrawn", ("198.51.100.9",)])

    def test_no_network_is_a_reason(self) -> None:
        """Degraded with a reason, tried again, healthy when it works."""
        self.announcer.failure = DiscoveryError("this machine has no network address")
        self.service.startService()
        health = self.service.health()
        self.assertEqual(health.state, "degraded")
        self.assertIn("no network address", health.reasons[0])
        self.announcer.failure = None
        self.clock.advance(RECHECK_S)
        self.assertEqual(self.service.health().state, "healthy")

    def test_unexpected_error(self) -> None:
        """A fault of ours is logged with its traceback, and still no crash."""
        self.announcer.failure = KeyError("x")
        self.service.startService()
        self.assertEqual(self.service.health().state, "degraded")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.clock.advance(RECHECK_S)
        self.flushLoggedErrors(KeyError)

    def test_stop_waits_for_what_is_under_way(self) -> None:
        """Withdrawn after the announcement that was still going on, not before."""
        results: list[Deferred[Any]] = []

        def later(call: Any) -> Deferred[Any]:
            results.append(Deferred())
            return results[-1]

        service = MdnsService(self.announcer, self.clock, later)
        service.startService()
        stopped = service.stopService()
        self.assertEqual(len(results), 1)
        results[0].callback(Announced("m32-server", "m32-server.local", ("192.0.2.1",)))
        self.assertEqual(len(results), 2)
        self.assertNoResult(stopped)
        results[1].callback(None)
        self.successResultOf(stopped)

    def test_failing_withdrawal(self) -> None:
        self.service.startService()
        self.announcer.withdraw = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        self.successResultOf(self.service.stopService())


class Values(unittest.SynchronousTestCase):
    def test_host_labels(self) -> None:
        for name, label in (
            ("m32-server", "m32-server"),
            ("FOH Rack 1", "foh-rack-1"),
            ("Bühne", "b-hne"),
            ("🎸", "m32-server"),
        ):
            self.assertEqual(Advertisement(name, 8080, "1").host_label(), label)

    def test_only_the_interface_given(self) -> None:
        announcer = ZeroconfAnnouncer(Advertisement("x", 1, "1"), "127.0.0.1")
        self.assertEqual(announcer.addresses(), ("127.0.0.1",))

    def test_loopback_is_not_announced(self) -> None:
        self.assertFalse([ip for ip in local_addresses() if ip.startswith("127.")])

    def test_without_an_address(self) -> None:
        announcer = ZeroconfAnnouncer(Advertisement("x", 1, "1"))
        self.assertRaises(DiscoveryError, announcer.announce, ())
        announcer.withdraw()

    def test_address_of_another_machine(self) -> None:
        """One clear line, from the announcer and from discover."""
        announcer = ZeroconfAnnouncer(Advertisement("x", 1, "1"), "192.0.2.99")
        self.assertRaises(DiscoveryError, announcer.announce, ("192.0.2.99",))
        self.assertRaises(DiscoveryError, discover, 0.01, "192.0.2.99")

    def test_url(self) -> None:
        found = FoundServer("n", "n.local", ("192.0.2.1",), 8080, "/ws", "1", "master")
        self.assertEqual(found.url, "http://192.0.2.1:8080/")
