"""CON-51: whose turn it is on a state directory, by two kernel locks; web and settings stand in."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net import succession
from m32net.config import ConfigError
from m32net.interfaces import RefusedError
from m32net.ops import process
from m32net.succession import POLL_S, RETRY_S, Succession
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

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.heard: list[object] = []
        self.mute = 0

    async def demand(self, method: str, path: str, body: object) -> None:
        self.heard.append(body)
        if self.refusal is not None:
            raise self.refusal
        if self.mute:  # it does what it is told, and its answer is lost
            self.mute -= 1
            raise TimeoutError("no answer within 5 s")

    @property
    def listening(self) -> bool:
        return bool(self.heard and self.heard[-1] == {"listen": True})


class SuccessionCase(unittest.SynchronousTestCase):
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


class SuccessionTest(SuccessionCase):
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


class TroubleTest(SuccessionCase):
    """Answers that are lost, descriptors that are used up, ports that are taken."""

    def logged(self, one: Any) -> list[str]:
        lines: list[str] = []
        one.log = type("Log", (), {})()
        one.log.info = one.log.warn = lambda text, **more: None
        one.log.error = lambda text, **more: lines.append(text.format(**more))
        one.log.failure = lambda text, failure=None: lines.append(f"{text}: {failure}")
        return lines

    def test_answer_lost(self) -> None:
        """The successor listens, but its answer is lost: it is told not to, until it knows."""
        for mute in (1, 3):
            old = self.make()
            self.make(take_over=True)
            lines = self.logged(old)
            old.web.listening = True
            other = Other()
            other.mute = mute
            giving = Deferred.fromCoroutine(old.give_way(other))
            self.failureResultOf(giving, TimeoutError)
            self.assertEqual((old.web.listening, old.settings.frozen), (True, ""))
            self.reactor.advance(RETRY_S)
            self.reactor.advance(RETRY_S)
            self.assertEqual(other.heard, [{"listen": True}] + [{"listen": False}] * mute)
            self.assertEqual(len(lines), 0 if mute == 1 else 1, "once, not at every try")
            self.reactor.advance(60)
            self.assertEqual(len(other.heard), 1 + mute)
            self.directory = Path(self.mktemp()) / "state"

    def test_who_asked_goes(self) -> None:
        """Its request is cancelled while the successor is asked: one of the two listens."""
        old = self.make()
        old.web.listening = True
        other = Other()
        answers: list[Deferred[None]] = []

        async def demand(method: str, path: str, body: object) -> None:
            other.heard.append(body)
            if not answers:
                answers.append(Deferred())
                await answers[0]

        other.demand = demand  # type: ignore[method-assign]
        giving = Deferred.fromCoroutine(old.give_way(other))
        giving.cancel()
        self.failureResultOf(giving, CancelledError)
        self.assertEqual((old.web.listening, other.listening), (True, False))
        self.assertEqual(old.settings.frozen, "")

    def test_given_again(self) -> None:
        """A successor that is to listen after all is not told otherwise by what came before."""
        old = self.make()
        self.make(take_over=True)
        self.logged(old)
        other = Other()
        other.mute = 2
        self.failureResultOf(Deferred.fromCoroutine(old.give_way(other)), TimeoutError)
        self.asked(old.give_way(other))
        self.reactor.advance(60)
        self.assertTrue(other.listening)
        self.assertFalse(old.web.listening)

    def test_a_successor_that_is_gone(self) -> None:
        """Nobody is told anything when there is nobody any more."""
        old = self.make()
        other = Other(ConnectionError("it is dead"))
        self.asked(old.return_(other))
        self.reactor.advance(60)
        self.assertEqual(other.heard, [{"listen": False}])

    def test_ports_are_taken(self) -> None:
        """The successor goes on until this one has its ports back, however long that takes."""
        old = self.make()
        lines = self.logged(old)
        other = Other()
        self.asked(old.give_way(other))
        old.web.failure = WebError("cannot listen on *:80")
        returning = Deferred.fromCoroutine(old.return_(other))
        for _ in range(5):
            self.reactor.advance(RETRY_S)
        self.assertNoResult(returning)
        self.assertTrue(other.listening)
        self.assertTrue(old.settings.frozen)
        self.assertEqual(lines, ["cannot listen on *:80; it is tried again"])
        old.web.failure = None
        self.reactor.advance(RETRY_S)
        self.successResultOf(returning)
        self.assertEqual((old.web.listening, other.listening), (True, False))
        self.assertEqual(old.settings.frozen, "")

    def test_stopped_meanwhile(self) -> None:
        """A service that stops tries no longer."""
        old = self.make()
        self.logged(old)
        other = Other()
        self.asked(old.give_way(other))
        old.web.failure = WebError("cannot listen on *:80")
        returning = Deferred.fromCoroutine(old.return_(other))
        old.stopService()
        self.failureResultOf(returning, CancelledError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_no_descriptor_left(self) -> None:
        """That the lock can't be asked for once does not end the waiting."""
        old = self.make()
        new = self.make(take_over=True)
        lines = self.logged(new)

        def claim(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(succession, "claim", claim)
        self.end(old)
        for _ in range(3):
            self.reactor.advance(POLL_S)
        self.assertTrue(new.waiting)
        self.assertEqual(len(lines), 1)
        self.assertIn("Too many open files", lines[0])
        self.patch(succession, "claim", process.claim)
        self.reactor.advance(POLL_S)
        self.assertEqual(new.turns, [1])

    def test_takes_over_in_the_end(self) -> None:
        """A port that is taken at that moment: it is tried every second, then all is announced."""
        old = self.make()
        new = self.make(take_over=True)
        lines = self.logged(new)
        new.web.failure = WebError("cannot listen on *:80")
        self.end(old)
        self.reactor.advance(POLL_S)
        for _ in range(3):
            self.reactor.advance(RETRY_S)
        self.assertEqual(new.turns, [], "not before it has a port")
        self.assertEqual(len(lines), 1)
        new.web.failure = None
        self.reactor.advance(RETRY_S)
        self.assertEqual((new.turns, new.web.listening), ([1], True))

    def test_what_promotion_does_wrong(self) -> None:
        """It is logged, and the ports stay open."""
        old = self.make()
        new = self.make(take_over=True)
        lines = self.logged(new)
        new.promoted = lambda: new.turns[0]
        new.settings.failure = ValueError("whatever")  # type: ignore[assignment]
        self.end(old)
        self.reactor.advance(POLL_S)
        self.assertTrue(new.web.listening)
        self.assertEqual(len(lines), 2)
        self.assertIn("IndexError", lines[1])
