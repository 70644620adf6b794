"""Which server a listener tries next when the one it was at is not to be reached.

Addresses and counting only; connecting and waiting are the session's.
"""

from __future__ import annotations

from typing import Final

from m32net.listener.address import ServerAddress

FAILURES: Final = 3
"""In a row, until the servers it came from are tried too: 14 s."""


class Places:
    """The servers one listener knows of.

    :param first: the address it was given at the start.
    """

    def __init__(self, first: ServerAddress) -> None:
        self._first = first
        self._sender: ServerAddress | None = None
        self._others: list[ServerAddress] = []

    def settled(self) -> None:
        """A server is heard: the others are not to be tried."""
        self._others = []

    def sent_by(self, sender: ServerAddress) -> None:
        """This server sent us on; it may take us back if the other one dies (CON-51)."""
        self._sender = sender

    def only(self, other: ServerAddress) -> None:
        """Try this one and the present one in turn, from the next failure on."""
        self._others = [other]

    def after(self, current: ServerAddress, failures: int) -> ServerAddress:
        """Where to go now that ``current`` could not be reached, or sent nobody any audio.

        :param failures: in a row, this one included.
        """
        if failures >= FAILURES:
            for one in (self._sender, self._first):
                if one is not None and one != current and one not in self._others:
                    self._others.append(one)
        if not self._others:
            return current
        self._others.append(current)
        return self._others.pop(0)
