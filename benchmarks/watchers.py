"""Listeners that watch levels, and an engineer whose page asks for everything again and again.

    python -m benchmarks.watchers URL LISTENERS TOKEN

Orders come as lines on standard input, as in :mod:`benchmarks.crowd`: ``begin``, ``end`` (bytes of
JSON received in between, by kind), ``stop``.  WebSocket bytes are those of the frames' payloads on
the wire, HTTP bytes those of the bodies on the wire.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any, Final

import treq
from twisted.internet import defer, reactor, stdio, task
from twisted.protocols.basic import LineReceiver
from twisted.web.client import Agent, HTTPConnectionPool

from protocols.control import messages
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient
from protocols.control.protocol import ControlClientFactory, connect
from protocols.datagram import open_udp

INTERVAL_MS: Final = 100
POLL_S: Final = 2.0
PAGES: Final = ("/api/listeners", "/api/quality?limit=200", "/audio-meta", "/health")


class Watchers:
    """All of them, in one process."""

    def __init__(self, url: str, listeners: int, token: str) -> None:
        self.url = url
        self.listeners = listeners
        self.headers = {"Authorization": [f"Bearer {token}"], "Accept-Encoding": ["gzip"]}
        self.clients: list[ControlClient] = []
        self.bodies: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        pool = HTTPConnectionPool(reactor)
        self.agent = Agent(reactor, pool=pool)
        self.polling = task.LoopingCall(self.poll)

    async def join(self) -> None:
        for number in range(self.listeners):
            factory = ControlClientFactory(
                self.url.replace("http", "ws", 1) + "/ws",
                lambda *_: None,
                reactor=reactor,
                make_session=lambda n=number: ClientSession(messages.Hello(name=f"Musician {n}")),
            )
            client = await connect(factory)
            ears = open_udp("127.0.0.1", 0)
            client.configure(messages.ClientConfig(udp_port=ears.getsockname()[1]))
            client.want_levels(INTERVAL_MS)
            self.clients.append(client)
        self.polling.start(POLL_S)

    @defer.inlineCallbacks
    def poll(self) -> Any:
        for page in PAGES:
            # Without treq's own decompression: what is counted is what came over the wire.
            answer = yield self.agent.request(
                b"GET", f"{self.url}{page}".encode(), treq.client.Headers(self.headers)
            )
            body = yield treq.content(answer)
            self.bodies[page.partition("?")[0]] += len(body)

    def received(self) -> Counter[str]:
        now = reactor.seconds()  # type: ignore[attr-defined]
        control = sum(one.quality(now).bytes_received for one in self.clients)
        return self.bodies + Counter({"/ws": control})


class Orders(LineReceiver):
    delimiter = b"\n"

    def __init__(self, watchers: Watchers) -> None:
        self.watchers = watchers

    def lineReceived(self, line: bytes) -> None:
        watchers = self.watchers
        if line == b"begin":
            watchers.before = watchers.received()
            self.sendLine(b"{}")
        elif line == b"end":
            grown = watchers.received() - watchers.before
            self.sendLine(json.dumps(dict(grown)).encode())
        elif line == b"stop":
            reactor.stop()  # type: ignore[attr-defined]


def main() -> None:
    url, listeners, token = sys.argv[1:]
    watchers = Watchers(url, int(listeners), token)

    def joined(_: object) -> None:
        stdio.StandardIO(Orders(watchers))
        print("{}", flush=True)

    def failed(failure: Any) -> None:
        print(failure.getErrorMessage(), file=sys.stderr)
        reactor.stop()  # type: ignore[attr-defined]

    defer.Deferred.fromCoroutine(watchers.join()).addCallbacks(joined, failed)
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
