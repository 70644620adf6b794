"""What a listener counts over all streams it has heard, one after another.

Values only: what flows now is given with every call.
"""

from __future__ import annotations

from m32net.listener.chain import Chain
from m32net.listener.figures import Figures
from m32net.listener.flow import Flow
from m32net.listener.reception import Totals

Chains = tuple[Chain, ...]


class Tally:
    """Sums of the streams that have ended."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._late = 0
        self._concealed_ms = 0.0
        self._skipped_ms = 0.0

    def ended(self, flow: Flow, chains: Chains, live: Chain | None) -> None:
        """This stream is over."""
        self._totals = self._totals.plus(flow.totals())
        self._late += _late(flow, live)
        self._concealed_ms += _concealed_ms(flow, chains)
        self._skipped_ms += _skipped_ms(flow, live)

    def begins(self, flow: Flow, chains: Chains, live: Chain | None) -> None:
        """This stream, received for a while already, counts from here on."""
        flow.count_from_now()
        self._late -= _late(flow, live)
        self._concealed_ms -= _concealed_ms(flow, chains)
        self._skipped_ms -= _skipped_ms(flow, live)

    def figures(self, flow: Flow | None, chains: Chains, live: Chain | None) -> Figures:
        """Everything that is counted, with the stream that flows now."""
        if flow is None:
            return Figures(
                totals=self._totals,
                buffer_reason="nothing received yet",
                late=self._late,
                concealed_ms=self._concealed_ms,
                skipped_ms=self._skipped_ms,
            )
        delay = flow.watch
        if live is not None and live.buffer.delay is not None:
            delay = live.buffer.delay
        return Figures(
            totals=self._totals.plus(flow.totals()),
            jitter_ms=flow.reception.jitter_ms,
            buffer_ms=delay.target_ms,
            buffer_reason=delay.reason,
            late=self._late + _late(flow, live),
            concealed_ms=self._concealed_ms + _concealed_ms(flow, chains),
            skipped_ms=self._skipped_ms + _skipped_ms(flow, live),
        )


def _late(flow: Flow, live: Chain | None) -> int:
    return flow.late if live is None else live.buffer.counters.late


def _concealed_ms(flow: Flow, chains: Chains) -> float:
    if not chains:
        return 0.0
    samples = max(chain.playout.concealed for chain in chains) / len(flow.plan.channels)
    return samples * 1000 / flow.plan.sample_rate


def _skipped_ms(flow: Flow, live: Chain | None) -> float:
    if live is None:
        return 0.0
    return live.buffer.counters.skipped_time * 1000 / flow.plan.clock_rate
