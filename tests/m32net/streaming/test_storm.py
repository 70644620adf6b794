"""CON-2, CON-21, STR-5: a thousand listeners come, hear and go; no object of theirs stays."""

from __future__ import annotations

import gc
from collections import Counter

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from m32net.streaming.control import ListenerControlFactory
from tests.m32net.streaming.test_service import HOST, ServiceCase
from tests.support.websocket import ByteClient

ROUND = 250
ROUNDS = 4
AT_ONCE = 10


OURS = ("m32net.", "protocols.", "autobahn.", "twisted.web.", "twisted.internet.base")
"""Modules whose objects a connection is made of; the runner of tests keeps some of its own."""


def census() -> Counter[str]:
    """How many objects of each of our types there are."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if str(kind.__module__).startswith(OURS)
    )


class StormTest(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.service.change_limits(max_listeners=1000)
        self.factory = ListenerControlFactory(
            self.service, reactor=self.clock, seconds=self.clock.seconds
        )
        self.frame = 0

    def live(self, number: int) -> ByteClient:
        """Come and ask for some of the audio."""
        client = ByteClient(self.factory, HOST)
        client.open()
        client.say(type="hello", payload={"name": f"phone {number}"})
        channels = [{"id": 1 + number % 32}]
        config = {"udp_port": 40_000 + number % 20_000, "channels": channels}
        client.say(type="client_config", payload=config)
        client.say(type="meters", payload={"interval_ms": 100})
        client.say(type="ntp_request", t1=1)
        return client

    def leave(self, number: int, client: ByteClient) -> None:
        """In one of the ways in which phones leave."""
        if number % 4 == 0:
            client.say(type="bye")
        elif number % 4 == 1:
            client.feed(b"\xff" * 20)  # not WebSocket any more
        if number % 4 != 3:
            client.lose(Failure(ConnectionDone()))
            return
        self.clock.advance(31)  # silent: the heartbeat is missed
        client.lose(Failure(ConnectionLost()))

    def storm(self, lives: int) -> None:
        for start in range(0, lives, AT_ONCE):
            crowd = [self.live(number) for number in range(start, start + AT_ONCE)]
            self.assertGreaterEqual(self.service.count(), AT_ONCE)
            self.frame += 1
            self.send(self.frame)
            self.clock.advance(0.1)
            for number, client in enumerate(crowd):
                self.leave(start + number, client)
            self.clock.advance(6)  # the grace period of those who broke off
            self.assertEqual(self.service.count(), 0)

    def test_nothing_stays(self) -> None:
        """After 1,000 lives there are as many objects as after the first 250, of every type."""
        self.storm(ROUND)
        self.events.clear()
        before = census()
        for _ in range(ROUNDS - 1):
            self.storm(ROUND)
            self.events.clear()
        grown = census() - before
        self.assertEqual({kind: n for kind, n in grown.items() if n > ROUND // 10}, {})
        self.assertEqual(self.demand, {})
        self.assertEqual(self.service.totals()["connections"], ROUND * ROUNDS)
        self.assertEqual(list(self.factory.connections), [])
        self.assertLess(len(self.clock.getDelayedCalls()), 10)
