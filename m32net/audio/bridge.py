"""From the engine thread to the reactor thread, bounded.

One coalesced ``callFromThread`` per batch at most: while the reactor has one pending, further
batches just queue.  A reactor that is late by more than the bound loses the oldest batches, which
nobody would still want to hear, and they are counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from m32net.audio.frame import EncodedFrame

MAX_AGE_NS: Final = 100_000_000
"""Audio older than this when newer is there is dropped: it would be late at every listener."""
MAX_BATCHES: Final = 64
"""More than :data:`MAX_AGE_NS` of the shortest frames; a second bound, on memory."""
LATE_NS: Final = 20_000_000
"""A batch handed over this long after its last sample was there counts as late."""


class Bridge:
    """A queue of batches; a batch is what one step of the engine encoded, all profiles.

    :param call_from_thread: ``reactor.callFromThread``.
    :param on_frames: called on the reactor thread, once per batch, in order.
    :param monotonic_ns: the clock of ``complete_ns``.
    """

    def __init__(
        self,
        call_from_thread: Callable[..., object],
        on_frames: Callable[[Sequence[EncodedFrame]], None],
        monotonic_ns: Callable[[], int],
    ) -> None:
        self._call = call_from_thread
        self._on_frames = on_frames
        self._now = monotonic_ns
        # Appended to by one thread and popped by either; each operation is atomic.
        self._batches: deque[Sequence[EncodedFrame]] = deque()
        self._pending = False
        self.dropped = 0
        """Frames (not batches) that the reactor was too late for."""
        self.late = 0
        """Batches handed over later than :data:`LATE_NS`."""

    def put(self, batch: Sequence[EncodedFrame]) -> None:
        """Hand over a batch; engine thread only.  Never blocks."""
        if not batch:
            return
        self._batches.append(batch)
        self._shed(batch[0].complete_ns)
        if not self._pending:
            self._pending = True
            self._call(self._drain)

    def hand_over(self) -> None:
        """Deliver what waits now, on the reactor thread; nothing if nothing does.

        For the reactor to call between other work: with many connections ready at the same time
        the call that :meth:`put` asked for comes only after all of them.
        """
        if self._batches:
            self._drain()

    def _shed(self, newest_ns: int) -> None:
        while True:
            try:
                oldest = self._batches[0]
                too_old = newest_ns - oldest[0].complete_ns > MAX_AGE_NS
                if not too_old and len(self._batches) <= MAX_BATCHES:
                    return
                # The reactor may have taken that one meanwhile; then the next is lost early.
                self.dropped += len(self._batches.popleft())
            except IndexError:
                return

    def _drain(self) -> None:
        # Cleared first: a batch that comes in from here on asks for a call of its own.
        self._pending = False
        try:
            # No more than are here now, so that a busy engine can't keep the reactor.
            for _ in range(len(self._batches)):
                try:
                    batch = self._batches.popleft()
                except IndexError:
                    return
                if self._now() - batch[0].complete_ns > LATE_NS:
                    self.late += 1
                self._on_frames(batch)
        finally:
            if self._batches and not self._pending:
                self._pending = True
                self._call(self._drain)
