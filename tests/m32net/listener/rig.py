"""A receiver without sockets, sound card or waiting: time, packets and the card are the test's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from twisted.internet.task import Clock

from m32net.listener import receiver as receiver_module
from m32net.listener.outputs import Outputs
from m32net.listener.playback import StereoRing
from m32net.listener.receiver import Receiver
from protocols.datagram import Datagram

START_NS = 1_700_000_000_000_000_000


class FakeSockets:
    """Stands for :class:`protocols.rtp.protocol.RtpReceiver`."""

    def __init__(self, reactor, host, port, on_packets, on_rtcp) -> None:
        self.host = host
        self.port = port or 50_000
        self.on_packets = on_packets
        self.on_rtcp = on_rtcp
        self.only_from: tuple[tuple[str, int], ...] | None = None
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.running = False
        self.refusal: OSError | None = None

    def start(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.running = True

    def stop(self) -> None:
        self.running = False

    def deliver(self, datagrams: list[Datagram]) -> None:
        only = self.only_from
        wanted = [one for one in datagrams if only is None or one.address in only]
        if wanted:
            self.on_packets(wanted)

    def send_rtcp(self, data: bytes, address: tuple[str, int]) -> None:
        self.sent.append((data, address))


class FakeCard:
    """A sound card whose clock is ``ppm`` faster than everybody else's; takes blocks of 128."""

    def __init__(self, rate: int = 48_000, ppm: float = 0.0) -> None:
        self.rate = rate
        self.latency_s = 0.003
        self.ring: StereoRing | None = None
        self.heard: list[np.ndarray] = []
        self.starts = 0
        self._speed = rate * (1 + ppm * 1e-6)
        self._due = 0.0

    def start(self, ring: StereoRing) -> None:
        self.ring = ring
        self.starts += 1

    def stop(self) -> None:
        self.ring = None

    def advance(self, seconds: float) -> None:
        if self.ring is None:
            return
        self._due += seconds * self._speed
        while self._due >= 128:
            self._due -= 128
            block = np.empty((128, 2), np.float32)
            self.ring.read_into(block)
            self.heard.append(block)

    def sound(self) -> np.ndarray:
        return np.concatenate(self.heard)


class Rig:
    """A receiver in simulated time.

    :param patch: the test case's ``patch``.
    """

    def __init__(
        self, patch: Callable[..., object], outputs: Outputs | None = None, **more
    ) -> None:
        patch(receiver_module, "RtpReceiver", FakeSockets)
        self.clock = Clock()
        self.errors: list[Exception] = []
        self.receiver = Receiver(
            self.clock,
            outputs=outputs,
            failed=self.errors.append,
            monotonic_ns=self.monotonic_ns,
            realtime_ns=self.realtime_ns,
            **more,
        )
        self.sockets: FakeSockets = self.receiver._sockets
        self.card = outputs.card if outputs is not None else None
        self._waiting: list[Datagram] = []
        self._sorted = True

    def monotonic_ns(self) -> int:
        return round(self.clock.seconds() * 1e9) + 77_000_000_000

    def realtime_ns(self) -> int:
        return round(self.clock.seconds() * 1e9) + START_NS

    def send(self, datagrams: list[Datagram]) -> None:
        """Let these arrive at their times."""
        self._waiting += datagrams
        self._sorted = False

    def run(self, seconds: float, step: float = 0.001) -> None:
        if not self._sorted:
            self._waiting.sort(key=lambda one: one.arrival_ns)
            self._sorted = True
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            now = self.realtime_ns()
            count = bisect_right(self._waiting, now, key=lambda one: one.arrival_ns)
            if count:
                ready, self._waiting = self._waiting[:count], self._waiting[count:]
                self.sockets.deliver(ready)
            if self.card is not None:
                self.card.advance(step)
