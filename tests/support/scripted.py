"""A scripted listener: joins over the real WebSocket, keeps its heartbeats, hears nothing itself.

Audio goes to the UDP ports it names, where a test has put some other program.  Runs in trial's
reactor against a :class:`~tests.support.processes.ServerProcess`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial import unittest

from protocols.control import events, messages
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient
from protocols.control.protocol import ControlClientFactory, ControlClientProtocol, connect
from tests.support.processes import Child, ServerProcess

PATIENCE_S = 20.0


class _Protocol(ControlClientProtocol):
    """Tells its factory when the connection is really gone."""

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self.factory.gone.callback(None)


class ScriptedListener:
    """One listener at a server.

    :ivar stream: what the server says it sends, the latest.
    :ivar told: events of STR-31, in order.
    :ivar closed: how the session ended; None while it goes on.
    """

    def __init__(self, server: ServerProcess, name: str = "scripted") -> None:
        self.server = server
        self.stream: messages.Stream | None = None
        self.told: list[messages.Event] = []
        self.closed: events.SessionClosed | None = None
        self._answer: Deferred[messages.Stream] | None = None
        self._client: ControlClient | None = None
        self._factory = ControlClientFactory(
            f"ws://{server.host}:{server.port}/ws",
            self._hear,
            reactor=reactor,
            make_session=lambda: ClientSession(messages.Hello(name=name)),
        )
        self._factory.protocol = _Protocol
        self._factory.gone = Deferred()  # type: ignore[attr-defined]

    async def join(self, **config: Any) -> messages.Stream:
        """Ask for audio, or for other audio, with the fields of a ``ClientConfig``.

        :param channels: ids.
        :raises AssertionError: the server refuses.
        """
        wanted = tuple(messages.ChannelRequest(id=c) for c in config.pop("channels", ()))
        if self._client is None:
            self._client = await connect(self._factory)
        self._answer = answer = Deferred()
        answer.addTimeout(PATIENCE_S, reactor)
        self._client.configure(messages.ClientConfig(channels=wanted, **config))
        return await answer

    @property
    def client_id(self) -> str:
        assert self.stream is not None
        return self.stream.client_id

    @property
    def sdp(self) -> str:
        """The server's own description of what it sends us."""
        assert self.stream is not None
        text = self.server.get(self.stream.sdp)
        assert isinstance(text, str), text
        return text

    async def leave(self) -> None:
        """Say bye; returns when the connection is gone."""
        if self._client is not None:
            self._client.close()
            await self._factory.gone  # type: ignore[attr-defined]
            self._client = None

    def _hear(self, client: ControlClient, event: events.ClientSessionEvent) -> None:
        match event:
            case events.StreamStarted(stream=stream):
                self.stream = stream
                self._settle(lambda answer: answer.callback(stream))
            case events.ServerEvent(event=told):
                self.told.append(told)
            case events.ServerError(error=error):
                refused = AssertionError(f"refused: {error.code}: {error.message}")
                self._settle(lambda answer: answer.errback(refused))
            case events.SessionClosed():
                self.closed = event
                ended = AssertionError(f"ended: {event.reason}")
                self._settle(lambda answer: answer.errback(ended))

    def _settle(self, how: Callable[[Deferred[messages.Stream]], None]) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            how(answer)


class ListenerCase(unittest.TestCase):
    """Tests with a real server, scripted listeners and other programs."""

    timeout = 60

    def serve(self, *options: str) -> ServerProcess:
        """A server with the ``test`` source (STR-3) for this test."""
        server = ServerProcess("--source=test", *options)
        self.addCleanup(server.close)
        self.addCleanup(server.stop)
        return server

    async def join(self, server: ServerProcess, **config: Any) -> ScriptedListener:
        """A new listener that has joined; it leaves when the test ends, if not before."""
        one = ScriptedListener(server)
        self.addCleanup(lambda: Deferred.fromCoroutine(one.leave()))
        await one.join(**config)
        return one

    def directory(self) -> Path:
        """A new one, for files of this test."""
        path = Path(self.mktemp()).absolute()
        path.mkdir(parents=True)
        return path

    def check_tone(self, heard: tuple[float, float], channel: int, what: str) -> None:
        """STR-3: n x 100 Hz, -12 dBFS."""
        right = abs(heard[0] - 100 * channel) < 1 and abs(heard[1] + 12) < 1
        self.assertTrue(right, f"channel {channel} is {heard} (Hz, dBFS) in {what}")

    def start(self, *command: str) -> Child:
        """Start a program; it is ended with the test."""
        child = Child(command)
        self.addCleanup(child.close)
        return child

    async def ended(self, children: Iterable[Child], timeout_s: float = PATIENCE_S) -> None:
        """Wait until all have ended by themselves, well; heartbeats go on meanwhile."""
        children = list(children)
        codes = await gatherResults(
            [deferToThread(child.wait, timeout_s) for child in children], consumeErrors=True
        )
        for child, code in zip(children, codes, strict=True):
            self.assertEqual(code, 0, child.text())

    async def until(
        self, condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S
    ) -> Any:
        """Wait for a condition without keeping the reactor from anything."""
        end = reactor.seconds() + timeout_s
        while not (value := condition()):
            self.assertLess(reactor.seconds(), end, f"not within {timeout_s:g} s: {what}")
            await task.deferLater(reactor, 0.02)
        return value
