"""CON-51: a migration carried out, against a new server in memory and real listeners' records."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError, SSLError
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Request

from m32net.interfaces import Arrival, RefusedError
from m32net.streaming.migration import (
    AWAY,
    CHECKING,
    LOOK_EVERY_S,
    MISSES,
    Migration,
    Present,
    TellMove,
    TellStay,
)
from m32net.streaming.moving import MigrationService
from m32net.streaming.target import Introduction, OtherServer
from m32net.streaming.telling import AT_ONCE, STAY, Telling
from protocols.control.messages import Event, Hello
from tests.m32net.streaming.test_service import HOST, Link, ServiceCase

OWN = Introduction("old", "1", "n1", "own", tuple(range(1, 33)), 0)
OTHER = Introduction("new", "1", "n2", "other", tuple(range(1, 33)), 20, https_port=8443)


class NewServer(Resource):
    """Answers as an m32net does; what it answers can be changed."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, Any]] = []
        self.dead = False
        self.meanwhile: Any = lambda: None
        self.tokens: list[str | None] = []
        channels = [{"id": n, "enabled": True} for n in range(1, 33)]
        self.answers: dict[str, tuple[int, Any]] = {
            "/audio-meta": (200, {"channels": channels, "ws": "/ws"}),
            "/health": (200, {"status": "healthy", "reasons": []}),
            "/api/peer": (200, introduction(OTHER)),
            "/api/peer/arrivals": (200, {"status": "ok"}),
        }

    def render(self, request: Request) -> bytes:
        path = request.path.decode()
        assert request.content is not None
        data = request.content.read()
        self.asked.append((request.method.decode(), path, json.loads(data) if data else None))
        if path == "/api/peer":
            self.meanwhile()
        self.tokens.append(request.getHeader("Authorization"))
        status, body = self.answers.get(path, (404, {}))
        request.setResponseCode(503 if self.dead else status)
        return body if isinstance(body, bytes) else json.dumps(body).encode()


def introduction(one: Introduction) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


class Broken:
    """An agent that never gets through."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def request(self, *_: Any) -> Deferred[Any]:
        return fail(self.error)


class Succession:
    """Provides ISuccession, and notes what it is asked."""

    def __init__(self, clock: Any, agent: Any | None) -> None:
        self.clock = clock
        self.agent = agent
        self.done: list[str] = []
        self.refusal: RefusedError | None = None
        self.slow: list[Deferred[None]] | None = None
        self.waiting = False

    @property
    def in_charge(self) -> bool:
        """Whether the successor has the place."""
        return bool(self.done) and self.done[-1] == "gave way"

    def successor(self) -> OtherServer | None:
        if self.agent is None:
            return None
        return OtherServer(self.clock, self.agent, "http://localhost", "it", "tok")

    async def give_way(self, successor: OtherServer) -> None:
        if self.refusal is not None:
            raise self.refusal
        if self.slow is not None:
            self.slow.append(Deferred())
            await self.slow[-1]
        self.done.append("gave way")

    async def return_(self, successor: OtherServer) -> None:
        self.done.append("returned")

    async def listen(self, *, wanted: bool) -> None:
        self.done.append(f"listen {wanted}")


class Slow:
    """An agent whose requests to one host are held until they are released."""

    def __init__(self, inner: Any, host: bytes) -> None:
        self.inner, self.host = inner, host
        self.held: list[tuple[Deferred[Any], tuple[Any, ...]]] = []

    def request(self, *question: Any) -> Deferred[Any]:
        if self.host not in question[1]:
            answer: Deferred[Any] = self.inner.request(*question)
            return answer
        held: Deferred[Any] = Deferred()
        self.held.append((held, question))
        return held

    def release(self) -> None:
        for held, question in self.held:
            self.inner.request(*question).addCallbacks(held.callback, held.errback)
        self.held.clear()


class MovingCase(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.server, self.peer = NewServer(), NewServer()
        self.agents = [RequestTraversalAgent(self.server), RequestTraversalAgent(self.peer)]
        self.succession = Succession(self.clock, None)
        self.expected: list[str] = []
        self.moving = self.make(*self.agents)

    def make(self, agent: Any, peers: Any) -> MigrationService:
        return MigrationService(
            self.clock,
            self.service,
            introduce=lambda: OWN,
            agent=agent,
            agent_for_peers=peers,
            succession=self.succession,
            note_event=lambda kind, text, fields: self.events.append((kind, text)),
            expect_host=self.expected.append,
            seconds=self.clock.seconds,
        )

    def arrive(self, name: str) -> Link:
        link = Link()
        self.service.connected(link, HOST)
        self.service.hello(link, Hello(name=name))
        return link

    def flush(self) -> None:
        for _ in range(20):
            for agent in self.agents:
                agent.flush()

    def begin(self, **times: float) -> Deferred[None]:
        times = {"after_s": 5, "each_s": 1, **times}
        done = self.moving.begin("192.0.2.7", 8080, **times)
        self.flush()
        return done

    def refused(self, **times: float) -> RefusedError:
        error: RefusedError = self.failureResultOf(self.begin(**times), RefusedError).value
        self.assertIsNone(self.service.registry.door.elsewhere)
        self.assertIsNone(self.moving.moved_to())
        return error

    def turn(self, seconds: float) -> None:
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            self.flush()


class MovingTest(MovingCase):
    def test_tells_and_watches(self) -> None:
        """CON-51: everybody hears where and when; who says migrated has moved."""
        links = [self.arrive("Anna"), self.arrive("Bert")]
        self.assertIsNone(self.successResultOf(self.begin()))
        told = [link.last(Event).migration for link in links]
        self.assertEqual([one.migrate_after for one in told], [5, 6])
        self.assertEqual((told[0].new_host, told[0].new_port), ("192.0.2.7", 8080))
        self.assertEqual(self.service.registry.door.elsewhere, ("192.0.2.7", 8080))
        self.assertEqual(self.moving.moved_to(), "http://192.0.2.7:8080")
        self.assertEqual(self.moving.moved_to(secure=True), "https://192.0.2.7:8443")
        for link in links:
            self.service.bye(link, "migrated")
        status = self.moving.status()
        self.assertEqual((status.state, [m.state for m in status.moves]), ("done", ["moved"] * 2))
        self.assertEqual(self.events[-1], ("migration_ended", "done: 2 moved"))

    def test_by_its_own_scheme(self) -> None:
        """CON-51: who came over TLS goes on over TLS, newcomers too."""
        link = Link()
        link.secure = True  # type: ignore[attr-defined]
        self.service.connected(link, HOST)
        self.service.hello(link, Hello())
        self.begin()
        self.assertEqual(link.last(Event).migration.new_port, 8443)
        late = Link()
        late.secure = True  # type: ignore[attr-defined]
        self.service.connected(late, HOST)
        self.service.hello(late, Hello())
        self.assertEqual(late.last(Event).migration.new_port, 8443)

    def test_hands_over(self) -> None:
        """CON-51: id, token, name and address go to the new server before anybody is told."""
        self.arrive("Anna")
        self.begin()
        ((method, path, body),) = self.peer.asked
        self.assertEqual((method, path), ("POST", "/api/peer/arrivals"))
        (one,) = self.service.registry
        arrival = {"client_id": one.client_id, "token": one.token, "name": "Anna", "host": HOST}
        self.assertEqual(body, {"arrivals": [arrival]})

    def test_not_trusted(self) -> None:
        """CON-51: a new server that takes no word from us gets the listeners as new ones."""
        self.peer.answers["/api/peer/arrivals"] = (401, {"error": {"code": "x", "message": "no"}})
        link = self.arrive("Anna")
        self.successResultOf(self.begin())
        self.assertIsNotNone(link.last(Event).migration)

    def test_what_the_new_server_must_be(self) -> None:
        """CON-51: an m32net, well, with our channels and places enough, not on its way itself."""
        self.arrive("Anna")
        four = [{"id": n} for n in range(1, 5)]
        full = {**introduction(OTHER), "free_places": 0}
        for path, answer, code in (
            ("/audio-meta", (200, b"<h1>It works</h1>"), "no_server"),
            ("/audio-meta", (404, {}), "no_server"),
            ("/audio-meta", (307, {}), "moving"),
            ("/audio-meta", (200, {"channels": four, "ws": "/ws"}), "other_channels"),
            ("/health", (503, {"status": "unhealthy", "reasons": ["no audio"]}), "unhealthy"),
            ("/health", (200, b"[" * 100_000), "no_server"),
            ("/health", (500, {}), "no_server"),
            ("/api/peer", (200, full), "server_full"),
            ("/api/peer", (200, introduction(OWN)), "same_server"),
            ("/audio-meta", (200, b"x" * (1 << 20) + b"y"), "no_server"),
        ):
            before = self.server.answers[path]
            self.server.answers[path] = answer
            self.assertEqual(self.refused().code, code, (path, answer[0]))
            self.server.answers[path] = before
        self.assertEqual(self.moving.status().state, "failed")
        self.successResultOf(self.begin())

    def test_an_older_server(self) -> None:
        """CON-51: one without /api/peer will do; its listeners come as new ones."""
        self.server.answers["/api/peer"] = (404, {})
        self.arrive("Anna")
        self.successResultOf(self.begin())
        self.assertEqual(self.peer.asked, [])
        self.assertEqual(self.moving.moved_to(secure=True), "http://192.0.2.7:8080")

    def test_unreachable(self) -> None:
        """CON-51: nobody there; or TLS that is not trusted: one line each."""
        self.moving = self.make(Broken(ConnectionRefusedError()), self.agents[1])
        self.assertIn("can't be reached", self.refused().message)
        self.moving = self.make(Broken(ValueError("garbage")), Broken(SSLError("unknown CA")))
        self.assertIn("--peer-ca", self.refused().message)
        self.moving = self.make(Broken(ValueError("garbage")), None)
        self.assertIn("does not answer", self.refused().message)

    def test_left_alone_for_a_while(self) -> None:
        """CON-22: five times in vain, then a minute's rest in which nobody is asked."""
        broken = Broken(ConnectionRefusedError())
        self.moving = self.make(broken, None)
        for _ in range(5):
            self.assertEqual(self.refused().code, "unreachable")
        broken.error = AssertionError("asked while it was to rest")
        self.clock.advance(59)
        refusal = self.refused()
        self.assertEqual((refusal.code, refusal.status), ("resting", 503))
        self.assertIn("192.0.2.7:8080 has not answered 5 times", refusal.message)
        self.assertIn("in 1 s", refusal.message)
        self.clock.advance(1)
        broken.error = ConnectionRefusedError()
        self.assertEqual(self.refused().code, "unreachable", "one is let through")
        self.assertEqual(self.refused().code, "resting")

    def test_what_answers_no_is_not_left_alone(self) -> None:
        """CON-22: a server that refuses with reasons is there."""
        self.server.answers["/audio-meta"] = (404, {})
        for _ in range(8):
            self.assertEqual(self.refused().code, "no_server")

    def test_not_by_a_successor_that_waits(self) -> None:
        """CON-51: asked twice in a succession, the second time the successor hears it."""
        self.succession.waiting = True
        self.assertEqual(self.refused().code, "taking_over")
        self.assertEqual(self.server.asked, [])
        error = self.assertRaises(RefusedError, self.moving.cancel)
        self.assertIn("m32net migrate", error.message)
        self.succession.waiting = False
        self.successResultOf(self.begin())

    def test_only_https(self) -> None:
        """CON-51: a new server whose port speaks TLS only is looked at by TLS."""
        self.moving = self.make(Broken(ValueError("garbage")), self.agents[1])
        self.successResultOf(self.begin())
        self.assertEqual(self.moving.moved_to(), "https://192.0.2.7:8080")

    def test_called_off(self) -> None:
        """CON-51: told to stay, and newcomers are taken again."""
        link = self.arrive("Anna")
        self.begin()
        self.moving.cancel()
        self.assertEqual(link.last(Event).type, "migrationCancelled")
        self.assertIsNone(self.service.registry.door.elsewhere)
        self.assertRaises(RefusedError, self.moving.cancel)

    def test_called_off_while_looking(self) -> None:
        """CON-51: nobody hears of it."""
        link = self.arrive("Anna")
        self.server.meanwhile = self.moving.cancel
        done = self.begin()
        self.assertEqual(self.failureResultOf(done, RefusedError).value.code, "cancelled")
        self.assertEqual([m for m in link.sent if isinstance(m, Event)], [])

    def test_new_server_dies(self) -> None:
        """CON-51: after three looks in vain the rest stays."""
        link = self.arrive("Anna")
        self.begin(after_s=600)
        self.server.dead = True
        self.turn(LOOK_EVERY_S * (MISSES + 1))
        self.assertEqual(self.moving.status().state, "failed")
        self.assertEqual(link.last(Event).type, "migrationCancelled")
        self.assertIsNone(self.moving.moved_to())

    def test_stays(self) -> None:
        """CON-51: who does not go keeps its place."""
        link = self.arrive("Anna")
        self.begin()
        for _ in range(3):
            self.turn(7)
            self.service.heard(link)
        self.assertEqual(self.moving.status().state, "incomplete")
        self.assertEqual(self.service.count(), 1)

    def test_expect(self) -> None:
        """CON-51, CON-30: who is announced is known, and its address not limited."""
        self.moving.expect([Arrival("c", "t" * 43, "Anna", "192.0.2.9")])
        self.assertEqual(self.expected, ["192.0.2.9"])
        self.assertTrue(self.service.registry.door.expects("c", "192.0.2.9", 0))


class AgainTest(MovingCase):
    """CON-51: a migration begun while newcomers are sent away by the one before."""

    def done(self) -> None:
        link = self.arrive("Anna")
        self.successResultOf(self.begin())
        self.service.bye(link, "migrated")
        self.assertEqual(self.moving.status().state, "done")

    def taken(self) -> None:
        """A newcomer is."""
        self.assertIsNone(self.service.registry.door.elsewhere)
        self.assertIsNone(self.moving.moved_to())
        self.assertIsNone(self.arrive("late").closed)

    def test_refused(self) -> None:
        """CON-51: newcomers are taken again, instead of being sent away for ever."""
        self.done()
        self.server.dead = True
        self.refused()
        self.taken()
        self.assertIsNone(self.moving.core.next_timer())

    def test_called_off_while_looking(self) -> None:
        self.done()
        seen = []
        self.server.meanwhile = lambda: (seen.append(self.moving.moved_to()), self.moving.cancel())
        self.assertEqual(self.failureResultOf(self.begin(), RefusedError).value.code, "cancelled")
        self.assertEqual(seen, ["http://192.0.2.7:8080"], "they were still sent there")
        self.taken()

    def test_called_off_later(self) -> None:
        self.done()
        self.successResultOf(self.begin())
        self.moving.cancel()
        self.taken()


class OverlapTest(MovingCase):
    """CON-51: a migration begun while one that was called off still waits for its answers."""

    def test_late_answer(self) -> None:
        """CON-51: what the first server answers then says nothing of the second."""
        for held in (b"/audio-meta", b"/health", b"/api/peer"):
            slow = Slow(self.agents[0], b"192.0.2.66:8080" + held)
            self.moving = self.make(slow, None)
            link = self.arrive("Anna")
            first = self.moving.begin("192.0.2.66", 8080, after_s=5, each_s=1)
            self.flush()
            self.assertEqual(len(slow.held), 1)
            self.moving.cancel()
            self.assertEqual(self.failureResultOf(first, RefusedError).value.code, "cancelled")
            second = self.moving.begin("192.0.2.7", 9090, after_s=5, each_s=1)
            slow.release()
            self.flush()
            self.successResultOf(second)
            self.assertEqual(self.moving.moved_to(), "http://192.0.2.7:9090")
            told = [one.migration for one in link.sent if isinstance(one, Event)]
            self.assertEqual([(one.new_host, one.new_port) for one in told], [("192.0.2.7", 9090)])
            self.moving.cancel()
            self.service.bye(link, "enough")

    def test_no_failure(self) -> None:
        """CON-22: a look that was called off is no failure of the server, nor a success."""
        slow = Slow(self.agents[0], b"192.0.2.7")
        self.moving = self.make(slow, None)
        for _ in range(8):
            first = self.begin()
            self.moving.cancel()
            self.assertEqual(self.failureResultOf(first, RefusedError).value.code, "cancelled")
        self.moving._agent = self.agents[0]
        self.successResultOf(self.begin())
        self.moving.cancel()
        self.moving._agent = Broken(ConnectionRefusedError())
        for _ in range(4):
            self.assertEqual(self.refused().code, "unreachable")
        self.moving._agent = slow
        first = self.begin()
        self.moving.cancel()
        self.failureResultOf(first, RefusedError)
        self.moving._agent = Broken(ConnectionRefusedError())
        self.assertEqual(self.refused().code, "unreachable", "the fifth in vain")
        self.assertEqual(self.refused().code, "resting")

    def test_who_asked_goes(self) -> None:
        """CON-51: the request is broken off while the server is looked at: nothing happens."""
        link = self.arrive("Anna")
        self.moving = self.make(Slow(self.agents[0], b"192.0.2.7"), None)
        begun = self.begin()
        begun.cancel()
        self.failureResultOf(begun, RefusedError)
        self.assertEqual(self.moving.status().state, "failed")
        self.assertEqual([m for m in link.sent if isinstance(m, Event)], [])


class Crowd:
    """A thousand listeners, as far as they are told something."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.told: dict[str, tuple[float, str]] = {}
        self.turns: list[int] = []
        self.registry = self
        self.door = self
        self.elsewhere: tuple[str, int] | None = None
        self.secure_port: int | None = None

    def __iter__(self) -> Any:
        return (type("One", (), {"client_id": f"c{n}", "name": "", "link": 1}) for n in range(1000))

    def get(self, client_id: str) -> None:
        return None

    def address_for(self, link: object) -> tuple[str, int] | None:
        return self.elsewhere

    def tell(self, client_id: str, kind: str, reason: str, fields: Any) -> None:
        self.told[client_id] = (self.clock.seconds(), kind)


class Turns(Clock):
    """A clock whose calls without delay wait for the next turn, as a reactor's do."""

    def turn(self) -> None:
        now = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in now:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class CrowdTest(MovingCase):
    def test_a_thousand(self) -> None:
        """CON-51: many are told a few at a time, so that audio goes on between the turns."""
        turns = Turns()
        crowd: Any = Crowd(turns)
        moving = MigrationService(
            turns,
            crowd,
            introduce=lambda: OWN,
            agent=self.agents[0],
            agent_for_peers=None,
            succession=None,
            note_event=lambda *_: None,
            seconds=turns.seconds,
        )
        statuses = []
        status = moving.core.status
        moving.core.status = lambda: statuses.append(1) or status()  # type: ignore[method-assign]
        check = moving.core.begin("192.0.2.7", 8080, after_s=30, each_s=0.5)
        target = OtherServer(self.clock, self.agents[0], "http://192.0.2.7:8080", "it")
        moving._accepted(check, target, None)
        before = 0
        for _ in range(50):
            told = len(crowd.told)
            self.assertEqual(told - before, AT_ONCE)
            before = told
            turns.turn()
        self.assertEqual({kind for _, kind in crowd.told.values()}, {"serverMigration"})
        self.assertLess(len(statuses), 5, "not the whole list for each of them")
        self.assertEqual(list(crowd.told), [f"c{n}" for n in range(1000)])
        crowd.told.clear()
        moving.cancel()
        self.assertEqual(len(crowd.told), AT_ONCE)
        for _ in range(50):
            turns.turn()
        self.assertEqual(len(crowd.told), 1000)
        self.assertEqual({kind for _, kind in crowd.told.values()}, {STAY})

    def test_called_off_meanwhile(self) -> None:
        """CON-51: who has not heard of it yet hears only that it stays."""
        crowd: Any = Crowd(self.clock)
        core = Migration()
        telling = Telling(self.clock, crowd, core.target)
        check = core.begin("192.0.2.7", 8080, after_s=30, each_s=0.5)
        core.accepted(check, [Present(f"c{n}", "", True) for n in range(100)], 0)
        for step in core.steps():
            if isinstance(step, TellMove):
                telling.add(step)
        telling.go_on()
        core.cancel()
        for _ in range(10):
            self.clock.advance(0)
        self.assertEqual(len(crowd.told), AT_ONCE)
        telling.add(TellStay("c1", "no"))
        telling.stop()
        telling.go_on()
        self.assertEqual(len(crowd.told), AT_ONCE)


class SuccessorCase(MovingCase):
    """The address is our own, and another process waits for our place."""

    def setUp(self) -> None:
        super().setUp()
        self.server.answers["/api/peer"] = (200, introduction(OWN))
        self.next = NewServer()
        self.agents.append(RequestTraversalAgent(self.next))
        self.succession.agent = self.agents[-1]


class SuccessorTest(SuccessorCase):
    def test_gives_way(self) -> None:
        """CON-51: looked at, told who comes, given the ports, then the listeners are told."""
        link = self.arrive("Anna")
        self.successResultOf(self.begin())
        paths = [path for _, path, _ in self.next.asked]
        self.assertEqual(paths, ["/audio-meta", "/health", "/api/peer", "/api/peer/arrivals"])
        self.assertEqual(set(self.next.tokens), {"Bearer tok"})
        self.assertEqual(self.succession.done, ["gave way"])
        self.assertEqual(link.last(Event).migration.new_port, 8080)
        self.assertIsNone(self.moving.moved_to(), "a new connection gets there by itself")

    def test_unfit(self) -> None:
        """CON-51: a successor that is not well gets nothing."""
        self.next.answers["/health"] = (503, {"status": "unhealthy", "reasons": ["no audio"]})
        self.assertIn("no audio", self.refused().message)
        self.next.answers["/health"] = (200, {"status": "healthy"})
        self.succession.refusal = RefusedError("no_port", "the port is taken", 409)
        self.assertEqual(self.refused().code, "no_port")
        self.assertEqual(self.succession.done, [])

    def test_called_off(self) -> None:
        self.arrive("Anna")
        self.begin()
        self.moving.cancel()
        self.assertEqual(self.succession.done, ["gave way", "returned"])

    def test_dies(self) -> None:
        self.arrive("Anna")
        self.begin(after_s=600)
        self.next.dead = True
        self.turn(LOOK_EVERY_S * (MISSES + 1))
        self.assertEqual(self.succession.done, ["gave way", "returned"])
        self.assertEqual(self.moving.status().state, "failed")

    def test_is_a_successor(self) -> None:
        self.successResultOf(self.moving.listen(True))
        self.assertEqual(self.succession.done, ["listen True"])

    def test_again(self) -> None:
        """CON-51: begun again at the same address, which is the successor's now: it is known."""
        link = self.arrive("Anna")
        self.successResultOf(self.begin(after_s=0))
        for _ in range(4):
            self.turn(5)
            self.service.heard(link)
        self.assertEqual(self.moving.status().state, "incomplete")
        self.server.answers["/api/peer"] = (200, introduction(OTHER))  # the successor answers now
        before = len(self.server.asked)
        self.successResultOf(self.begin())
        self.assertEqual(len(self.server.asked), before, "it is asked over its socket")
        self.assertEqual(self.moving.status().moves[0].state, "told")
        self.assertEqual(self.succession.done, ["gave way"])
        self.assertIsNone(self.moving.moved_to())
        self.moving.cancel()
        self.assertEqual(self.succession.done, ["gave way", "returned"])

    def test_again_and_dead(self) -> None:
        """CON-51: a successor that is gone when it begins again loses the place."""
        self.successResultOf(self.begin())
        self.next.dead = True
        self.refused()
        self.assertEqual(self.succession.done, ["gave way", "returned"])

    def test_by_its_own_scheme(self) -> None:
        """CON-51: over TLS the successor has this server's port, though it does not listen yet."""
        own = {**introduction(OWN), "https_port": 8443}
        self.server.answers["/api/peer"] = (200, own)
        self.next.answers["/api/peer"] = (200, {**introduction(OTHER), "https_port": None})
        link = Link()
        link.secure = True  # type: ignore[attr-defined]
        self.service.connected(link, HOST)
        self.service.hello(link, Hello())
        for state in ("moving", "incomplete"):
            self.successResultOf(self.begin(after_s=0))
            self.assertEqual(link.last(Event).migration.new_port, 8443, state)
            link.sent.clear()
            for _ in range(4):
                self.turn(5)
                self.service.heard(link)

    def test_elsewhere_while_it_is_in_charge(self) -> None:
        """CON-51: nobody is sent to a third server past a successor; it stays in charge."""
        self.successResultOf(self.begin())
        refusal = self.failureResultOf(
            self.moving.begin("192.0.2.99", 80, after_s=0, each_s=0), RefusedError
        ).value
        self.assertEqual((refusal.code, refusal.status), ("given_way", 409))
        self.assertEqual(self.moving.status().state, "done")
        self.assertEqual(self.succession.done, ["gave way"])

    def test_called_off_while_giving_way(self) -> None:
        """CON-51: it is brought to an end, and then taken back, before anything else is given."""
        for by_request in (False, True):
            self.succession.done.clear()
            self.succession.slow = []
            begun = self.begin()
            self.assertEqual(len(self.succession.slow), 1)
            if by_request:
                begun.cancel()
            else:
                self.moving.cancel()
            self.failureResultOf(begun, RefusedError)
            again = self.begin()
            self.assertNoResult(again)
            self.assertEqual(len(self.succession.slow), 1, "one after the other")
            self.succession.slow[0].callback(None)
            self.assertEqual(self.succession.done, ["gave way", "returned"])
            self.succession.slow[1].callback(None)
            self.successResultOf(again)
            self.assertEqual(self.succession.done, ["gave way", "returned", "gave way"])
            self.moving.cancel()


BEGIN = {"begin": "192.0.2.7", "begin slowly": "192.0.2.7", "elsewhere": "192.0.2.9"}
WHAT = (*BEGIN, "cancel", "break off", "answer", "die", "live", "look", "leave")


class AlwaysTest(SuccessorCase):
    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.sampled_from(WHAT), min_size=4, max_size=30))
    def test_door_and_place(self, events: list[str]) -> None:
        """CON-51: the door is shut exactly while newcomers are sent away, and the successor has
        the place exactly while it is in charge.
        """
        self.setUp()
        self.addCleanup(self.moving.stopService)
        links = [self.arrive(name) for name in ("Anna", "Bert")]
        begun: list[Deferred[None]] = []
        for event in events:
            match event:
                case "begin" | "begin slowly" | "elsewhere":
                    own = event != "elsewhere" and not self.succession.in_charge
                    self.server.answers["/api/peer"] = (200, introduction(OWN if own else OTHER))
                    begun.append(self.moving.begin(BEGIN[event], 8080, after_s=0, each_s=0))
                    begun[-1].addErrback(lambda failure: failure.trap(RefusedError) and None)
                    if event != "begin slowly":
                        self.flush()
                case "cancel":
                    with contextlib.suppress(RefusedError):
                        self.moving.cancel()
                case "break off":
                    for one in begun[-1:]:
                        one.cancel()
                case "answer":
                    self.flush()
                case "die" | "live":
                    self.next.dead = self.server.dead = event == "die"
                case "look":
                    self.turn(LOOK_EVERY_S * (MISSES + 1))
                case "leave":
                    if links:
                        self.service.bye(links.pop(), "migrated")
            core, door = self.moving.core, self.service.registry.door
            self.assertEqual(door.elsewhere is None, core.state not in AWAY, (event, core.state))
            self.assertEqual(self.succession.in_charge, core.given, (event, core.state))
            self.assertFalse(core.given and core.state not in AWAY | CHECKING)
            if core.state not in AWAY:
                self.assertIsNone(self.moving.moved_to())
        self.flush()
        self.assertNotIn(self.moving.core.state, CHECKING)
        if self.moving.core.state in AWAY:
            self.moving.cancel()
        self.assertFalse(self.succession.in_charge)
        self.assertIsNone(self.service.registry.door.elsewhere)
