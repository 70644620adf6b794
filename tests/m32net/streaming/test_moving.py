"""CON-51: a migration carried out, against a new server in memory and real listeners' records."""

from __future__ import annotations

import json
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError, SSLError
from twisted.web.resource import Resource
from twisted.web.server import Request

from m32net.interfaces import Arrival, RefusedError
from m32net.streaming.migration import LOOK_EVERY_S, MISSES
from m32net.streaming.moving import MigrationService
from m32net.streaming.target import Introduction, OtherServer
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

    def successor(self) -> OtherServer | None:
        if self.agent is None:
            return None
        return OtherServer(self.clock, self.agent, "http://localhost", "it", "tok")

    async def give_way(self, successor: OtherServer) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.done.append("gave way")

    async def return_(self, successor: OtherServer) -> None:
        self.done.append("returned")

    async def listen(self, *, wanted: bool) -> None:
        self.done.append(f"listen {wanted}")


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


class SuccessorTest(MovingCase):
    """The address is our own, and another process waits for our place."""

    def setUp(self) -> None:
        super().setUp()
        self.server.answers["/api/peer"] = (200, introduction(OWN))
        self.next = NewServer()
        self.agents.append(RequestTraversalAgent(self.next))
        self.succession.agent = self.agents[-1]

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
