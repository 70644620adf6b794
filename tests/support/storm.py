"""Listeners that come, hear some audio and go, in a storm: ``python -m tests.support.storm``.

Each is as real as those of :mod:`tests.support.crowd`.  They leave as phones do: with a bye, with
a broken connection, or by falling silent and being gone a little later.  Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter as Tally
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from m32net.ops.process import allow_many_files
from tests.support.crowd import Counter

WAYS = ("bye", "abort", "close")


def pause(seconds: float) -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)  # type: ignore[attr-defined]
    return done


async def one_life(
    number: int, options: argparse.Namespace, rng: random.Random, tally: Tally[str]
) -> None:
    """Join, hear at least one packet, stay a little, leave in one of the ways."""
    host = options.server.split(":")[0]
    config = {"compression": options.codec, "layout": "bundle"}
    one = Counter(f"ws://{options.server}/ws", host, f"storm {number}", config)
    try:
        await one.join()
        await pause(rng.uniform(0.2, 2 * options.stay))
        tally["streamed" if any(s.started for s in one.streams.values()) else "silent"] += 1
        assert one.client is not None
        way = WAYS[number % len(WAYS)]
        tally[way] += 1
        if way == "bye":
            one.client.close()
        else:
            one.client.abort()
        gone: Deferred[None] = Deferred()
        one.client.when_gone(lambda: gone.callback(None))
        await gone
    except Exception as error:
        tally[f"failed: {type(error).__name__}: {str(error)[:200]}"] += 1
    finally:
        one.ears.stop()


async def run(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    tally: Tally[str] = Tally()
    lives = (
        Deferred.fromCoroutine(one_life(number, options, rng, tally))
        for number in range(options.listeners)
    )
    together = task.Cooperator()
    await_all = [together.coiterate(lives) for _ in range(options.at_once)]
    for each in await_all:
        await each
    print(json.dumps(dict(tally)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server", help="HOST:PORT")
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--stay", type=float, default=0.5, help="mean seconds of a stay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--codec", default="opus")
    options = parser.parse_args()
    allow_many_files()

    def ended(failure: Any) -> None:
        if failure is not None:
            print(failure.getErrorMessage(), file=sys.stderr)
        reactor.stop()  # type: ignore[attr-defined]

    reactor.callWhenRunning(  # type: ignore[attr-defined]
        lambda: Deferred.fromCoroutine(run(options)).addBoth(ended)
    )
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
