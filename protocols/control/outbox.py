"""What waits for a peer that reads too slowly: bounded, and honest about what it drops.

While the transport takes data nothing is kept here.  Once it says stop, frames wait in order; over
the limit the LOW ones go first, and when that is not enough the outbox is overrun and its driver
closes the connection.  So a listener that stops reading costs the server a fixed amount.
"""

from __future__ import annotations

from typing import Final

from protocols.control.outgoing import Outgoing, Priority

LIMIT_BYTES: Final = 256 * 1024
"""Hundreds of the longest usual messages; many seconds of a session's traffic."""


class Outbox:
    """A bounded queue of text frames in front of a transport.

    :param limit: bytes that may wait.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self.paused = False
        """The transport takes no more for now."""
        self.overrun = False
        """Something that mattered did not fit: the connection is to be dropped."""
        self.dropped = 0
        """Frames thrown away."""
        self.size = 0
        """Bytes waiting."""
        self._limit = limit
        self._waiting: list[Outgoing] = []

    def put(self, item: Outgoing) -> bool:
        """Add a frame at the end; whether it was taken."""
        if self.paused and self.size + len(item.data) > self._limit:
            if item.priority is Priority.LOW:
                self.dropped += 1
                return False
            self._drop_low()
            if self.size + len(item.data) > self._limit:
                self.dropped += 1
                self.overrun = True
                return False
        self._waiting.append(item)
        self.size += len(item.data)
        return True

    def take(self, *, all_of_it: bool = False) -> bytes | None:
        """The next frame for the transport.

        :param all_of_it: paused or not, as before a close frame.
        :returns: None if there is nothing, or the transport takes none.
        """
        if not self._waiting or (self.paused and not all_of_it):
            return None
        data = self._waiting.pop(0).data
        self.size -= len(data)
        return data

    def _drop_low(self) -> None:
        kept = [item for item in self._waiting if item.priority is not Priority.LOW]
        self.dropped += len(self._waiting) - len(kept)
        self._waiting = kept
        self.size = sum(len(item.data) for item in kept)
