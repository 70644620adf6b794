"""A listener's session without sockets: the server, the receiver and time are the test's."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.listener import link as link_module
from m32net.listener.address import ServerAddress
from m32net.listener.figures import Figures
from m32net.listener.latency import LatencyMeter
from m32net.listener.life import Life
from m32net.listener.link import Means, Wishes
from m32net.listener.outputs import Outputs
from m32net.listener.reception import Totals
from m32net.listener.server_api import AudioMeta, MetaChannel, ServerApiError
from m32net.listener.session import Session
from m32net.listener.thresholds import Thresholds
from protocols.control import events
from protocols.control.messages import ClientConfig, Hello, Welcome
from tests.m32net.listener.streams import stream


class FakeReceiver:
    """Keeps what it is told."""

    port = 6004

    def __init__(self) -> None:
        self.stream = None
        self.heard: list[tuple[Any, str]] = []
        self.thresholds: Thresholds | None = None
        self.offset_ms: float | None = None
        self.packets = 0
        self.a_second = 0
        self.running = False
        self.finishing: Deferred[list[Exception]] | None = None
        self.outputs = Outputs()
        self.flows = False
        self.going_over = False
        self.following: list[tuple[Any, str]] = []
        self.latency: LatencyMeter | None = None
        self.moved: Any = None

    def start(self) -> None:
        self.running = True

    def stop(self) -> Deferred[list[Exception]]:
        self.running = False
        return self.finishing or succeed([])

    def listen_to(self, announced, host: str) -> None:
        self.stream = announced
        self.heard.append((announced, host))
        self.flows = True

    def follow(self, announced, host: str, latency: LatencyMeter, moved) -> None:
        self.following.append((announced, host))
        self.latency, self.moved = latency, moved

    def leave_off(self) -> None:
        self.moved = None

    def set_thresholds(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds

    def set_clock_offset(self, offset_ms: float) -> None:
        self.offset_ms = offset_ms

    def figures(self) -> Figures:
        self.packets += self.a_second
        totals = Totals(packets=self.packets, expected=self.packets + self.packets // 99)
        return Figures(totals=totals, jitter_ms=1.5, latency_ms=8.0)


class FakeClient:
    """The control connection, from the listener's side."""

    host = "192.0.2.1"

    def __init__(self, factory) -> None:
        self.factory = factory
        self.hello: Hello = factory.make_session().hello
        self.asked: list[ClientConfig] = []
        self.closed: str | None = None
        self.aborted = False
        self.let_go = True
        self.gone: list[Any] = []
        self.over = False

    def configure(self, config: ClientConfig) -> None:
        self.asked.append(config)

    def close(self, reason: str) -> None:
        self.closed = reason
        self.tell(events.SessionClosed("closed", 1000, reason))

    def when_gone(self, tell) -> None:
        self.gone.append(tell)
        if self.let_go:
            tell()

    def abort(self) -> None:
        self.aborted = True

    def tell(self, event) -> None:
        if self.over:
            return
        self.over = isinstance(event, events.SessionClosed)
        self.factory.owner(self, event)

    def lose(self) -> None:
        self.tell(events.SessionClosed("lost", 1006, "gone"))


class FakeApi:
    """The REST interface; None for a server without."""

    def __init__(self, channels: tuple[int, ...] | None = (1, 2, 3)) -> None:
        self.channels = channels
        self.thresholds: Thresholds | None = None
        self.asked = 0
        self.posted: list[dict] = []
        self.takes_none: Exception | None = None
        self.slow: Deferred | None = None

    def audio_meta(self) -> Deferred:
        self.asked += 1
        if self.slow is not None:
            return self.slow
        if self.channels is None:
            return fail(ServerApiError("/audio-meta: status 404"))
        return succeed(AudioMeta(tuple(MetaChannel(one) for one in self.channels)))

    def jitter_thresholds(self) -> Deferred:
        if self.thresholds is None:
            return fail(ServerApiError("/jitter-thresholds: status 404"))
        return succeed(self.thresholds)

    def post_qos(self, body: dict) -> Deferred:
        self.posted.append(body)
        if self.takes_none is not None:
            return fail(self.takes_none)
        return succeed(b"{}")


class SessionCase(unittest.SynchronousTestCase):
    def begin(self, wishes: Wishes | None = None, environment: dict | None = None) -> None:
        self.clock = Clock()
        self.receiver = FakeReceiver()
        self.said: list[str] = []
        self.openings: list[Deferred] = []
        self.factories: list[Any] = []
        self.api = FakeApi()
        self.asked_of: list[str] = []
        self.patch(link_module, "ServerApi", self.api_of)
        means = Means(
            self.clock,
            None,
            wishes or Wishes(name="Anna's phone"),
            environment=environment or {},
            tell=self.said.append,
            seconds=self.clock.seconds,
            wall_ms=lambda: 1_700_000_000_000 + self.clock.seconds() * 1000,
            open_control=self.open,
        )
        self.session = Session(means, ServerAddress("server", 8080), self.receiver)
        self.session.start()

    def api_of(self, client: object, base: str) -> FakeApi:
        self.asked_of.append(base)
        return self.api

    def open(self, factory, endpoint) -> Deferred:
        self.factories.append(factory)
        self.openings.append(Deferred())
        return self.openings[-1]

    def connect(self) -> FakeClient:
        client = FakeClient(self.factories[-1])
        self.openings[-1].callback(client)
        return client

    def welcome(self) -> FakeClient:
        client = self.connect()
        client.tell(events.Welcomed(Welcome("me", "secret")))
        return client

    def streaming(self) -> FakeClient:
        client = self.welcome()
        client.tell(events.StreamStarted(stream()))
        self.assertEqual(self.session.state, Life.STREAMING)
        return client
