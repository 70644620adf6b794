"""Many listeners in one process, that count instead of hearing: ``python -m tests.support.crowd``.

Each has its own control connection, client id and UDP port; what arrives is judged per stream by
RFC 3550's reception statistics, with the kernel's arrival times.  Prints ``ready`` when all are
streaming, then, when its time is over or it is told to end, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from protocols.control import events, messages
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient
from protocols.control.protocol import ControlClientFactory, connect
from protocols.datagram import Datagram
from protocols.errors import RemoteProtocolError
from protocols.rtp import packet
from protocols.rtp.extension import time_extension
from protocols.rtp.protocol import RtpReceiver
from protocols.rtp.reception import ReceptionStatistics

SETTLE_S = 0.5
"""After all have joined; what pauses there were until then, while they came, is not counted."""


class Counter:
    """One listener."""

    def __init__(self, url: str, host: str, name: str, config: dict[str, Any]) -> None:
        self.config = config
        self.streams: dict[int, ReceptionStatistics] = {}
        self.latency_ms: list[float] = []
        self.gaps_ms: list[float] = []
        self.strange = 0
        self.ended: str | None = None
        self.flowing: Deferred[None] = Deferred()
        self.client: ControlClient | None = None
        self._last_ns = 0
        self._clock_rate = 48_000
        self.ears = RtpReceiver(reactor, host, 0, self.heard, lambda *_: None)
        self.ears.start()
        self._factory = ControlClientFactory(
            url,
            self.told,
            reactor=reactor,
            make_session=lambda: ClientSession(messages.Hello(name=name), spread=random.random),
        )

    async def join(self) -> None:
        self.client = await connect(self._factory)
        wanted = messages.ClientConfig(udp_port=self.ears.port, **self.config)
        self.client.configure(wanted)
        await self.flowing

    def told(self, _client: ControlClient, event: events.ClientSessionEvent) -> None:
        if isinstance(event, events.StreamStarted):
            rate = event.stream.clock_rate
            self.streams = {g.ssrc: ReceptionStatistics(rate) for g in event.stream.groups}
            if not self.flowing.called:
                self.flowing.callback(None)
        elif isinstance(event, events.SessionClosed | events.ServerError):
            self.ended = str(event)
            if not self.flowing.called:
                self.flowing.errback(AssertionError(self.ended))

    def heard(self, datagrams: list[Datagram]) -> None:
        for data, _address, arrival_ns in datagrams:
            try:
                parsed = packet.parse(data)
            except RemoteProtocolError:
                self.strange += 1
                continue
            statistics = self.streams.get(parsed.ssrc)
            if statistics is None:
                self.strange += 1
                continue
            statistics.update(parsed.sequence_number, parsed.timestamp, arrival_ns)
            if self._last_ns:
                self.gaps_ms.append((arrival_ns - self._last_ns) / 1e6)
            self._last_ns = arrival_ns
            extension = time_extension(parsed)
            if extension is not None:
                self.latency_ms.append((arrival_ns - extension.send_time_ns) / 1e6)


def summary(counters: Iterable[Counter]) -> dict[str, Any]:
    """Figures over all listeners."""
    counters = list(counters)
    streams = [one for counter in counters for one in counter.streams.values() if one.started]
    jitter = [one.jitter_ms for one in streams] or [0.0]
    latency = [value for counter in counters for value in counter.latency_ms] or [0.0]
    gaps = [max(counter.gaps_ms, default=0.0) for counter in counters]
    return {
        "listeners": len(counters),
        "streams": len(streams),
        "expected": sum(one.expected for one in streams),
        "lost": sum(one.cumulative_lost for one in streams),
        "jitter_ms_p50": float(np.quantile(jitter, 0.5)),
        "jitter_ms_p99": float(np.quantile(jitter, 0.99)),
        "send_to_arrival_ms_p50": float(np.quantile(latency, 0.5)),
        "send_to_arrival_ms_p99": float(np.quantile(latency, 0.99)),
        "longest_gap_ms": max(gaps, default=0.0),
        "strange": sum(counter.strange for counter in counters),
        "ended": [counter.ended for counter in counters if counter.ended],
    }


async def run(options: argparse.Namespace) -> None:
    config = {"compression": options.codec, "layout": options.layout}
    url = f"ws://{options.server}/ws"
    host = options.server.split(":")[0]
    counters = [
        Counter(url, host, f"counter {number}", config) for number in range(options.listeners)
    ]
    await gatherResults([Deferred.fromCoroutine(one.join()) for one in counters])
    time_is_over: Deferred[None] = Deferred()
    last = reactor.callLater(options.seconds, time_is_over.callback, None)  # type: ignore[attr-defined]
    signal.signal(
        signal.SIGTERM,
        lambda *_: reactor.callFromThread(lambda: last.active() and last.reset(0)),  # type: ignore[attr-defined]
    )
    settled: Deferred[None] = Deferred()
    reactor.callLater(SETTLE_S, settled.callback, None)  # type: ignore[attr-defined]
    await settled
    for one in counters:
        one.gaps_ms.clear()
    print("ready", flush=True)
    await time_is_over
    figures = summary(counters)
    for one in counters:
        if one.client is not None:
            one.client.close()
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server", help="HOST:PORT")
    parser.add_argument("--listeners", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--codec", default="opus")
    parser.add_argument("--layout", default="bundle")
    options = parser.parse_args()

    def ended(failure: Any) -> None:
        if failure is not None:
            print(failure.getErrorMessage(), file=sys.stderr)
        reactor.callLater(0.2, reactor.stop)  # type: ignore[attr-defined]

    reactor.callWhenRunning(  # type: ignore[attr-defined]
        lambda: Deferred.fromCoroutine(run(options)).addBoth(ended)
    )
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
