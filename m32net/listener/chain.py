"""From packets to an output: a jitter buffer, the play-out behind it, and who wants the samples.

A listener has a live chain for hearing and a lossless one for recording, and neither if it only
counts; then nothing is decoded.  No clock is read here.
"""

from __future__ import annotations

from collections.abc import Callable

from m32net.listener.delay import PlayoutDelay
from m32net.listener.depacketize import StreamPlan
from m32net.listener.jitter import JitterBuffer, Packet
from m32net.listener.playout import Piece, Playout
from m32net.listener.thresholds import Thresholds

Output = Callable[[Piece], None]


class Chain:
    """One way of the samples of one stream.

    :param delay: for the live chain; None makes it lossless.
    :param outputs: called with every piece, in order; they must not change it.
    :raises OpusUnavailable: it is Opus, and libopus is missing.
    """

    def __init__(
        self,
        plan: StreamPlan,
        thresholds: Thresholds,
        delay: PlayoutDelay | None,
        outputs: tuple[Output, ...],
    ) -> None:
        self.buffer = JitterBuffer(len(plan.groups), plan.clock_rate, plan.frame, thresholds, delay)
        self.playout = Playout(plan, thresholds)
        self.outputs = outputs

    def set_thresholds(self, thresholds: Thresholds) -> None:
        self.buffer.set_thresholds(thresholds)
        self.playout.set_thresholds(thresholds)

    def push(self, packet: Packet) -> None:
        """Take a packet in; :meth:`run` puts out what is due after it."""
        self.buffer.push(packet)

    def run(self, now: float) -> None:
        """Put out what is due.

        :param now: in s, on the clock of the packets' arrivals.
        """
        for slot in self.buffer.pop(now):
            for piece in self.playout.render(slot):
                self._put_out(piece)

    def next_timer(self) -> float | None:
        """When :meth:`run` is to be called next; None: after the next packet."""
        return self.buffer.next_timer()

    def flush(self) -> None:
        """The stream has ended: put out what a lossless buffer still holds."""
        if self.buffer.delay is not None:
            return
        for slot in self.buffer.flush():
            for piece in self.playout.render(slot):
                self._put_out(piece)

    def _put_out(self, piece: Piece) -> None:
        for output in self.outputs:
            output(piece)
