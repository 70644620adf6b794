"""What a receiver knows of one RTP source: loss, jitter, order (RFC 3550 appendix A.1, A.3, A.8).

Numbers only; it is fed sequence numbers, time stamps and arrival times and reads no clock.
The source is known from signalling, so there is no probation: the first packet counts.
"""

from __future__ import annotations

from typing import Final

from protocols.rtp.rtcp import ReportBlock, compact_ntp

MAX_DROPOUT: Final = 3000
"""A larger jump forward is a restarted sender, believed when a second packet confirms it."""
MAX_MISORDER: Final = 500
"""A packet older than this is no late one but a restarted sender's (RFC 3550 has 100, for 50
packets a second)."""
WINDOW: Final = 512
"""Sequence numbers back in which duplicates are told from late packets."""

_MODULUS: Final = 1 << 16
_WINDOW_MASK: Final = (1 << WINDOW) - 1


class ReceptionStatistics:
    """Reception of one SSRC.

    :ivar received: packets that came, late ones and duplicates included (as RFC 3550 counts).
    :ivar duplicates: of these, packets that had come before.
    :ivar reordered: of these, packets that came after a newer one.
    :ivar rejected: packets too far out of line to count, not part of ``received``.
    :ivar restarts: jumps of the sequence number taken as a new start of the sender.
    """

    def __init__(self, clock_rate: int) -> None:
        self.clock_rate = clock_rate
        self.received = 0
        self.duplicates = 0
        self.reordered = 0
        self.rejected = 0
        self.restarts = 0
        self._base = 0
        self._highest = 0
        self._seen = 0  # bit k: the packet k before the highest has come
        self._suspect: int | None = None
        self._carried_expected = 0  # of sequences before a restart
        self._jitter = 0.0
        self._transit: int | None = None
        self._expected_prior = 0
        self._received_prior = 0
        self._last_sr = 0
        self._last_sr_arrival_ns = 0

    @property
    def started(self) -> bool:
        """Whether anything has come."""
        return self.received > 0

    @property
    def highest_sequence(self) -> int:
        """Highest sequence number, extended by its wrap-arounds."""
        return self._highest

    @property
    def expected(self) -> int:
        """Packets that should have come, from the sequence numbers."""
        if not self.received:
            return 0
        return self._carried_expected + self._highest - self._base + 1

    @property
    def cumulative_lost(self) -> int:
        """Expected less received, RFC 3550 section 6.4.1; duplicates can make it negative."""
        return self.expected - self.received

    @property
    def missing(self) -> int:
        """Distinct packets that have not come."""
        return self.expected - (self.received - self.duplicates)

    @property
    def jitter(self) -> float:
        """Interarrival jitter in units of the RTP clock (appendix A.8)."""
        return self._jitter

    @property
    def jitter_ms(self) -> float:
        """Interarrival jitter in ms."""
        return self._jitter * 1000 / self.clock_rate

    def update(self, sequence_number: int, timestamp: int, arrival_ns: int) -> int | None:
        """Note a packet.

        :param arrival_ns: when it came, on any clock that runs evenly.
        :returns: its extended sequence number; None for a duplicate and for a packet far out of
            line (the first of a restarted sender is lost, as in appendix A.1).
        """
        extended = self._extend(sequence_number)
        if extended is None:
            self.rejected += 1
            return None
        self.received += 1
        self._update_jitter(timestamp, arrival_ns)
        ahead = extended - self._highest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & _WINDOW_MASK if ahead < WINDOW else 1
            self._highest = extended
            return extended
        bit = 1 << -ahead
        if self._seen & bit:
            self.duplicates += 1
            return None
        self._seen |= bit
        self.reordered += 1
        self._base = min(self._base, extended)
        return extended

    def sender_report(self, ntp: int, arrival_ns: int) -> None:
        """Note the sender's last SR: its 64-bit NTP time and when it came."""
        self._last_sr = compact_ntp(ntp)
        self._last_sr_arrival_ns = arrival_ns

    def report_block(self, ssrc: int, now_ns: int) -> ReportBlock:
        """The block for the next receiver report; fraction lost is since the one before (A.3).

        :param now_ns: now, on the clock of :meth:`sender_report`'s ``arrival_ns``.
        """
        expected = self.expected
        expected_interval = expected - self._expected_prior
        lost_interval = expected_interval - (self.received - self._received_prior)
        self._expected_prior = expected
        self._received_prior = self.received
        fraction = 0
        if expected_interval > 0 and lost_interval > 0:
            fraction = min(255, (lost_interval << 8) // expected_interval)
        delay = 0
        if self._last_sr:
            delay = max(0, now_ns - self._last_sr_arrival_ns) * 65_536 // 1_000_000_000
        return ReportBlock(
            ssrc=ssrc,
            fraction_lost=fraction,
            cumulative_lost=max(-0x80_0000, min(0x7F_FFFF, self.cumulative_lost)),
            highest_sequence=self._highest & 0xFFFF_FFFF,
            jitter=min(0xFFFF_FFFF, int(self._jitter)),
            last_sr=self._last_sr,
            delay_since_last_sr=min(0xFFFF_FFFF, delay),
        )

    def _extend(self, sequence_number: int) -> int | None:
        if not self.received:
            self._start(sequence_number)
            return sequence_number
        ahead = (sequence_number - self._highest) % _MODULUS
        if ahead < MAX_DROPOUT:
            self._suspect = None
            return self._highest + ahead
        if ahead > _MODULUS - MAX_MISORDER:
            return self._highest + ahead - _MODULUS
        if sequence_number != self._suspect:
            self._suspect = (sequence_number + 1) % _MODULUS
            return None
        # Two in a row far out of line: the sender started anew.  Extended numbers go on upwards,
        # so that whoever orders packets by them need not know.
        self._carried_expected = self.expected
        self.restarts += 1
        self._start((self._highest // _MODULUS + 1) * _MODULUS + sequence_number)
        return self._base

    def _start(self, extended: int) -> None:
        self._base = extended
        self._highest = extended - 1
        self._seen = 0
        self._suspect = None
        self._transit = None

    def _update_jitter(self, timestamp: int, arrival_ns: int) -> None:
        arrival = arrival_ns * self.clock_rate // 1_000_000_000
        transit = arrival - timestamp
        if self._transit is not None:
            difference = (transit - self._transit + 0x8000_0000) % (1 << 32) - 0x8000_0000
            self._jitter += (abs(difference) - self._jitter) / 16
        self._transit = transit
