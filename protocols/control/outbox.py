"""What waits for a peer that reads too slowly: by priority, bounded, and not for ever.

While the transport takes data nothing stays here.  Once it says stop, frames wait in four queues,
first in first out in each, the most urgent queue first (CON-21).  None waits longer than its time
(CON-11), and at the bounds the least urgent go.  When that is not enough for something that
matters the outbox is overrun and its driver closes the connection.  So a listener that stops
reading costs the server a fixed amount.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from protocols.control.outgoing import Outgoing, Priority

LIMIT_BYTES: Final = 256 * 1024
"""Hundreds of the longest usual messages; many seconds of a session's traffic."""
LIMIT_MESSAGES: Final = 1_000
"""A few hundred bytes of bookkeeping each."""
TTL_S: Final = 30.0

_MAY_BE_LOST: Final = (Priority.LOW, Priority.NORMAL)  # in this order


class _Waiting(NamedTuple):
    item: Outgoing
    until: float


class Outbox:
    """A bounded queue of frames in front of a transport.

    :param limit: bytes that may wait; ``messages``: how many.
    :param ttl_s: how long each may wait.
    """

    def __init__(
        self, limit: int = LIMIT_BYTES, *, messages: int = LIMIT_MESSAGES, ttl_s: float = TTL_S
    ) -> None:
        self.paused = False
        """The transport takes no more for now."""
        self.overrun = False
        """Something that mattered did not fit: the connection is to be dropped."""
        self.dropped = 0
        """Frames thrown away because there was no room."""
        self.expired = 0
        """Frames thrown away because they had waited too long."""
        self.size = 0
        """Bytes waiting."""
        self._limit = limit
        self._limit_messages = messages
        self._ttl_s = ttl_s
        self._queues: dict[Priority, deque[_Waiting]] = {one: deque() for one in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def put(self, item: Outgoing, now: float) -> bool:
        """Add a frame behind those as urgent as it; whether it was taken.

        What is less urgent makes room for it.  ``LOW`` and ``NORMAL`` frames that still find none
        are not taken; for others the outbox is :attr:`overrun`.
        """
        self.expire(now)
        self._replace(item)
        if self.paused and not self._make_room(item):
            self.dropped += 1
            self.overrun = self.overrun or item.priority not in _MAY_BE_LOST
            return False
        self._queues[item.priority].append(_Waiting(item, now + self._ttl_s))
        self.size += len(item.data)
        return True

    def take(self, now: float, *, all_of_it: bool = False) -> Outgoing | None:
        """The next frame for the transport.

        :param all_of_it: paused or not, as before a close frame.
        :returns: None if there is nothing, or the transport takes none.
        """
        if self.paused and not all_of_it:
            return None
        self.expire(now)
        for queue in self._queues.values():
            if queue:
                return self._remove(queue)
        return None

    def expire(self, now: float) -> None:
        """Throw away what has waited too long."""
        for queue in self._queues.values():
            while queue and queue[0].until <= now:
                self._remove(queue)
                self.expired += 1

    def _fits(self, item: Outgoing) -> bool:
        return self.size + len(item.data) <= self._limit and len(self) < self._limit_messages

    def _make_room(self, item: Outgoing) -> bool:
        for priority in _MAY_BE_LOST:
            if priority <= item.priority:
                break
            queue = self._queues[priority]
            while queue and not self._fits(item):
                self._remove(queue)
                self.dropped += 1
        return self._fits(item)

    def _replace(self, item: Outgoing) -> None:
        """Only the newest of a kind counts; its place in the queue is the end."""
        if item.replaces is None:
            return
        queue = self._queues[item.priority]
        for old in [one for one in queue if one.item.replaces == item.replaces]:
            queue.remove(old)
            self.size -= len(old.item.data)
            self.dropped += 1

    def _remove(self, queue: deque[_Waiting]) -> Outgoing:
        item = queue.popleft().item
        self.size -= len(item.data)
        return item
