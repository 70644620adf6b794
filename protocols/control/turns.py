"""What one connection may have done for it in one turn of the event loop (CON-2).

A peer may send as much at once as a read brings, hundreds of messages of which each can change
streams; others, and the audio, are not to wait for all of them.  A little is done, nothing more is
read meanwhile, and the rest is done in the next turns, in the order it came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

EFFORT_PER_TURN: Final = 32
"""Two messages, 32 frames without one, or 64 KiB: about 2 ms at the worst."""
PIECE_EFFORT: Final = 2
"""For 4 KiB to be unmasked, looked at and kept."""
MESSAGE_EFFORT: Final = 16
_FRAME_EFFORT: Final = 1
_BYTES_PER_EFFORT: Final = 4096


class TakesTurns:
    """Beside :class:`~protocols.control.base_protocol.WebSocketShell`, before it in the order of
    resolution; ``factory.between()`` is called after each turn that no read has begun.
    """

    factory: Any
    transport: Any
    deaf: bool
    data: bytes
    consumeData: Any
    feed: Any
    _effort: float = EFFORT_PER_TURN
    _unread = False
    """Whether frames wait in Autobahn's own buffer."""
    _paused = False
    _working = False
    _next_turn: Any = None

    def connectionMade(self) -> None:
        self._backlog: list[bytes] = []  # short, and smaller than a deque while it is empty
        super().connectionMade()  # type: ignore[misc]

    def take_in(self, pieces: Iterable[bytes]) -> None:
        self._backlog.extend(pieces)
        if self._next_turn is None and not self._working:
            self._turn(EFFORT_PER_TURN)

    def spend(self, size: int) -> None:
        """A message of so many bytes is about to be understood."""
        self._effort -= MESSAGE_EFFORT + size // _BYTES_PER_EFFORT

    def processData(self) -> bool:
        if self._effort <= 0:
            self._unread = bool(self.data)
            return False
        return bool(super().processData())  # type: ignore[misc]

    def onFrameBegin(self) -> None:
        self._effort -= _FRAME_EFFORT
        super().onFrameBegin()  # type: ignore[misc]

    def connectionLost(self, reason: Any = None) -> None:
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
            self._turn(math.inf)  # what came before the end counts
        super().connectionLost(reason)  # type: ignore[misc]

    def _turn(self, effort: float) -> None:
        self._effort = effort
        self._working = True
        if self._unread:
            self._unread = False
            self.consumeData()
        while self._backlog and self._effort > 0 and not self.deaf:
            self._effort -= PIECE_EFFORT
            self.feed(self._backlog.pop(0))
        self._working = False
        if self.deaf:
            self._backlog.clear()
            self._unread = False
        if self._backlog or self._unread:
            self._pause()
            self._next_turn = self.factory.reactor.callLater(0, self._go_on)
        else:
            self._resume()

    def _go_on(self) -> None:
        self._next_turn = None
        self._turn(EFFORT_PER_TURN)
        self.factory.between()

    def _pause(self) -> None:
        if not (self._paused or self.transport.disconnecting):
            self._paused = True
            self.transport.pauseProducing()

    def _resume(self) -> None:
        if self._paused and not self.transport.disconnecting:
            self._paused = False
            self.transport.resumeProducing()
