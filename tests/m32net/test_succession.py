"""CON-51: whose turn it is on a state directory, by two kernel locks; web and settings stand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.config import ConfigError
from m32net.interfaces import RefusedError
from m32net.succession import POLL_S, Succession
from m32net.web.service import WebError


class Reactor(Clock):
    """Notes which sockets are listened on."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[str] = []

    def listenUNIX(self, path: str, factory: object, mode: int) -> Any:
        name = Path(path).name
        assert mode == 0o600
        self.sockets.append(name)
        sockets = self.sockets

        class Port:
            def stopListening(self) -> Deferred[None]:
                sockets.remove(name)
                return succeed(None)

        return Port()


class Web:
    def __init__(self) -> None:
        self.site = object()
        self.listens_at_start = True
        self.listening = False
        self.failure: WebError | None = None

    def listen_again(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.listening = True

    def stop_listening(self) -> Deferred[None]:
        self.listening = False
        return succeed(None)


class Settings:
    def __init__(self) -> None:
        self.frozen = ""
        self.reloads = 0
        self.failure: RefusedError | None = None

    async def reload(self, *, who: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.reloads += 1


class Other:
    """A successor that is asked over its socket."""

    def __init__(self, refusal: RefusedError | None = None) -> None:
        self.refusal = refusal
        self.heard: list[object] = []

    async def demand(self, method: str, path: str, body: object) -> None:
        self.heard.append(body)
        if self.refusal is not None:
            raise self.refusal


class SuccessionTest(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "state"
        self.reactor = Reactor()

    def make(self, *, take_over: bool = False) -> Any:
        one: Any = Succession(self.reactor, self.directory, take_over=take_over)
        one.web, one.settings, one.turns = Web(), Settings(), []
        one.attach(one.settings, one.web)
        one.promoted = lambda: one.turns.append(one.settings.reloads)
        one.startService()
        self.addCleanup(lambda: one.running and one.stopService())
        return one

    def end(self, one: Any) -> None:
        """Its process is gone."""
        one.stopService()
        os.close(one._lock)

    def asked(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def test_alone(self) -> None:
        """--take-over where there is nobody to follow: a server like any other."""
        one = self.make(take_over=True)
        self.assertFalse(one.waiting)
        self.assertTrue(one.web.listens_at_start)
        self.assertEqual(one.settings.frozen, "")
        self.assertEqual(self.reactor.sockets, ["server.sock"])
        self.assertIsNone(one.successor())

    def test_refused(self) -> None:
        """Who does not mean to follow is told so, and the second who does, too."""
        self.make()
        self.assertIn("another m32net", str(self.assertRaises(ConfigError, self.make)))
        self.make(take_over=True)
        error = self.assertRaises(ConfigError, self.make, take_over=True)
        self.assertIn("waits already", str(error))

    def test_follows(self) -> None:
        """It waits on no TCP port and changes nothing; then everything is its own, in order."""
        old = self.make()
        new = self.make(take_over=True)
        self.assertEqual((new.waiting, new.web.listens_at_start), (True, False))
        self.assertTrue(new.settings.frozen)
        self.assertIsNotNone(old.successor())
        self.reactor.advance(POLL_S * 10)
        self.assertEqual(new.turns, [])
        self.end(old)
        self.reactor.advance(POLL_S)
        self.assertEqual(new.turns, [1], "read again before it is told")
        self.assertEqual((new.waiting, new.settings.frozen), (False, ""))
        self.assertTrue(new.web.listening)
        self.assertEqual(self.reactor.sockets, ["server.sock"])
        third = self.make(take_over=True)
        self.assertTrue(third.waiting, "the next may wait")
        self.assertIsNotNone(new.successor())

    def test_a_database_that_fails(self) -> None:
        """It takes over with what it read at its start, rather than not at all."""
        old = self.make()
        new = self.make(take_over=True)
        new.settings.failure = RefusedError("not_readable", "disk I/O error", 503)
        self.end(old)
        self.reactor.advance(POLL_S)
        self.assertEqual((new.turns, new.settings.frozen), ([0], ""))

    def test_gives_way_and_returns(self) -> None:
        """First the successor listens, then this one no longer; and the other way round."""
        old = self.make()
        old.web.listening = True
        other = Other()
        self.asked(old.give_way(other))
        self.assertEqual(other.heard, [{"listen": True}])
        self.assertFalse(old.web.listening)
        self.assertTrue(old.settings.frozen)
        other.refusal = RefusedError("gone", "it is dead", 409)
        self.asked(old.return_(other))
        self.assertEqual((old.web.listening, old.settings.frozen), (True, ""))

    def test_a_successor_that_can_not(self) -> None:
        old = self.make()
        old.web.listening = True
        refusal = RefusedError("no_port", "taken", 409)
        giving = Deferred.fromCoroutine(old.give_way(Other(refusal)))
        self.failureResultOf(giving, RefusedError)
        self.assertEqual((old.web.listening, old.settings.frozen), (True, ""))

    def test_is_asked_to_listen(self) -> None:
        old = self.make()
        new = self.make(take_over=True)
        self.asked(new.listen(wanted=True))
        self.assertTrue(new.web.listening)
        self.asked(new.listen(wanted=False))
        self.assertFalse(new.web.listening)
        new.web.failure = WebError("cannot listen on *:80")
        listening = Deferred.fromCoroutine(new.listen(wanted=True))
        self.assertIn("*:80", str(self.failureResultOf(listening, RefusedError).value))
        self.failureResultOf(Deferred.fromCoroutine(old.listen(wanted=True)), RefusedError)
