"""When a listener reports to its servers by RTCP, and what (RFC 3550 section 6.4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall

from m32net.listener.flow import Flow
from protocols.rtp.rtcp import receiver_compounds, report_interval

_RTCP_BYTES: Final = 120  # of one of our reports, about
_RTCP_BANDWIDTH: Final = 1000.0  # bytes a second; the 5 s minimum decides in the end

Send = Callable[[Callable[[Flow], list[bytes]]], None]


class Reports:
    """Receiver reports every few seconds.

    :param ssrc: ours.
    :param random: gives numbers 0 <= x < 1.
    :param send: called when it is time, with what makes the datagrams for a flow's sender.
    """

    def __init__(
        self,
        reactor: Any,
        ssrc: int,
        random: Callable[[], float],
        realtime_ns: Callable[[], int],
        send: Send,
    ) -> None:
        self._reactor = reactor
        self._ssrc = ssrc
        self._random = random
        self._realtime_ns = realtime_ns
        self._send = send
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin, if that has not been."""
        if self._call is None:
            self._schedule(initial=True)

    def stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _schedule(self, *, initial: bool = False) -> None:
        delay = report_interval(
            members=2,
            senders=1,
            bandwidth=_RTCP_BANDWIDTH,
            we_sent=False,
            average_bytes=_RTCP_BYTES,
            initial=initial,
            randomness=self._random(),
        )
        self._call = self._reactor.callLater(delay, self._due)

    def _due(self) -> None:
        self._schedule()
        self._send(self._compounds)

    def _compounds(self, flow: Flow) -> list[bytes]:
        blocks = flow.reception.report_blocks(self._realtime_ns())
        if not blocks:
            return []
        return receiver_compounds(self._ssrc, blocks, f"m32net-listener-{self._ssrc:08x}")
