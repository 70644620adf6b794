"""One stream as it is received: who sends it, what of it came, and when it may be relied on.

A listener has one, and a second one while it moves to another server (CON-51).  No sockets and no
timers; what becomes of the samples is for :mod:`m32net.listener.outputs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from m32net.listener.delay import PlayoutDelay
from m32net.listener.depacketize import StreamPlan
from m32net.listener.jitter import Packet
from m32net.listener.latency import LatencyMeter
from m32net.listener.reception import StreamReception, Totals
from protocols.control.messages import Stream
from protocols.datagram import Datagram
from protocols.mmsg import Address

FILL_S: Final = 1.0
"""A new stream is received for so long before it takes over: its jitter buffer knows the way."""
POOR_FILL_S: Final = 5.0
"""So long if more of it is lost than :data:`GOOD_LOSS`: perhaps it gets better."""
GOOD_LOSS: Final = 0.05
STOPPED_S: Final = 0.06
"""A stream that brought nothing for so long, and three frames, has stopped."""
PATIENT_S: Final = 0.5
"""Where nobody hears it, a stream that has stopped is waited for so long, if the other one has not
come for long enough to fill in: what is late only is not lost for a recording."""
LONG_STOPPED_S: Final = 2.0
"""Nothing is left to be faded out of what has stopped so long ago.  A busy machine may keep us from
reading for a good part of that."""


class Flow:
    """One announced stream.

    :param host: the server's address.
    :param wanted: order of the channels; None: as they flow.
    :param latency: where its latencies are gathered.
    :raises RemoteProtocolError: the stream contradicts itself.
    :ivar address: where its RTP comes from.
    :ivar late: packets that came too late for the delay a jitter buffer would have.
    """

    def __init__(
        self, stream: Stream, host: str, wanted: Sequence[int] | None, latency: LatencyMeter
    ) -> None:
        self.stream = stream
        self.address: Address = (host, stream.rtp_port)
        self.plan = StreamPlan.of(stream, wanted)
        self.latency = latency
        self.reception = StreamReception(self.plan, latency)
        self.watch = PlayoutDelay(self.plan.frame / self.plan.clock_rate)
        self.late = 0
        self._first_ns: int | None = None
        self._uncounted = Totals()
        self._last_group = len(self.plan.groups) - 1

    @property
    def rtcp_address(self) -> Address:
        """Where reports go to."""
        return self.address[0], self.address[1] + 1

    def owns(self, one: Datagram) -> bool:
        """Whether a datagram is from its server and of its sources."""
        return one.address == self.address and self.reception.knows(one.data)

    def same_packets(self, stream: Stream, host: str) -> bool:
        """Whether an announcement means the very packets that flow."""
        return self.address == (host, stream.rtp_port) and _packets(stream) == _packets(self.stream)

    def receive(self, one: Datagram, arrival: float) -> Packet | None:
        """Take a datagram in.

        :param arrival: when it came, on the clock of the jitter buffers in s.
        """
        packet = self.reception.receive(one.data, one.arrival_ns, arrival)
        if packet is None:
            return None
        if self._first_ns is None:
            self._first_ns = one.arrival_ns
        if packet.group == self._last_group:
            self._watch_delay(packet.timestamp, arrival)
        return packet

    def _watch_delay(self, timestamp: int, arrival: float) -> None:
        """What the delay of a jitter buffer would be, also when there is none."""
        media_s = self.reception.media_time(timestamp) / self.plan.clock_rate
        if self.watch.started and arrival > self.watch.due(media_s):
            self.late += 1
        self.watch.observe(media_s, arrival)

    def stopped_s(self, now_ns: int) -> float | None:
        """For how long nothing has come from it; None while it flows, or if nothing is to come."""
        if not self.plan.groups:
            return None
        last_ns = self.reception.last_arrival_ns
        if last_ns is None:
            return LONG_STOPPED_S
        frame_s = self.plan.frame / self.plan.clock_rate
        since = (now_ns - last_ns) / 1e9
        return since if since > max(STOPPED_S, 3 * frame_s) else None

    def filled(self, now_ns: int, *, hurry: bool) -> bool:
        """Whether it may take over.

        :param hurry: there is nothing else to hear: as soon as there is something of all of it.
        """
        if self._first_ns is None or self.stopped_s(now_ns) is not None:
            return False
        if not self.reception.complete:
            return False
        if hurry:
            return True
        totals = self.reception.totals()
        enough = FILL_S if totals.lost <= GOOD_LOSS * totals.expected else POOR_FILL_S
        return (now_ns - self._first_ns) / 1e9 >= enough

    def covers(self, other: Flow) -> bool:
        """Whether it has come since before the other one stopped."""
        last_ns = other.reception.last_arrival_ns
        return self._first_ns is not None and last_ns is not None and self._first_ns <= last_ns

    def count_from_now(self) -> None:
        """What came so far is not to be in :meth:`totals`."""
        self._uncounted = self.reception.totals()

    def totals(self) -> Totals:
        """Its counters."""
        return self.reception.totals().less(self._uncounted)


def _packets(stream: Stream) -> tuple[object, ...]:
    return stream.codec, stream.sample_rate, stream.clock_rate, stream.frame_ms, stream.groups
