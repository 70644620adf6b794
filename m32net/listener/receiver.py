"""The listener's ears: UDP sockets, reports to the server, timers, and the chains behind them.

The Twisted shell around :class:`~m32net.listener.reception.StreamReception` and
:class:`~m32net.listener.outputs.Outputs`.  What flows is said by the control session through
:meth:`Receiver.listen_to`; packets that come a little before that are kept for it.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from m32net.listener.decode import OpusUnavailable
from m32net.listener.delay import PlayoutDelay
from m32net.listener.depacketize import StreamPlan
from m32net.listener.figures import Figures
from m32net.listener.held import HeldBack
from m32net.listener.latency import LatencyMeter
from m32net.listener.outputs import Outputs
from m32net.listener.playback import PlaybackError
from m32net.listener.reception import StreamReception, Totals
from m32net.listener.recorder import RecordingError
from m32net.listener.thresholds import Thresholds
from protocols.control.messages import Stream
from protocols.datagram import Datagram
from protocols.rtp.protocol import RtpReceiver
from protocols.rtp.rtcp import Compound, receiver_compounds, report_interval

MAX_EARLY: Final = 256
"""Packets kept for a stream that was not announced yet."""
OUTPUT_ERRORS: Final = (RecordingError, PlaybackError, OpusUnavailable)
_KEEP_PLAYING_S: Final = 0.004
_RTCP_BYTES: Final = 120  # of one of our reports, about
_RTCP_BANDWIDTH: Final = 1000.0  # bytes a second; the 5 s minimum decides in the end


class PortError(Exception):
    """The UDP port cannot be used; says what to do."""


class Receiver:
    """Receives the audio of one listener.

    :param interface: local IPv4 address to receive on; empty for all.
    :param port: UDP port for RTP, the next one is for RTCP; 0 picks a free even pair.
    :param or_any: pick a free pair also where the port is taken.
    :param wanted: channel ids in the order recordings are to have; None: as they come.
    :param force_delay_ms: every packet is held back so long before it is looked at (STR-24).
    :param failed: called with an error of the outputs (a full disk, a lost sound card) after
        which they are not used any more.
    :param ssrc: of our reports.
    :param random: gives numbers 0 <= x < 1.
    :ivar instead_of: the port that was taken, if another was picked for it.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        interface: str = "",
        port: int = 5004,
        or_any: bool = False,
        outputs: Outputs | None = None,
        wanted: Sequence[int] | None = None,
        thresholds: Thresholds | None = None,
        force_delay_ms: float = 0.0,
        failed: Callable[[Exception], object] = lambda error: None,
        ssrc: int = 1,
        random: Callable[[], float] = lambda: 0.5,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        realtime_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.outputs = outputs or Outputs()
        self.latency = LatencyMeter()
        self.reception: StreamReception | None = None
        self.stream: Stream | None = None
        self.late = 0
        self.instead_of: int | None = None
        self._reactor = reactor
        self._interface = interface
        self._or_any = or_any
        self._wanted = wanted
        self._thresholds = thresholds or Thresholds()
        self._failed = failed
        self._ssrc = ssrc
        self._random = random
        self._monotonic_ns = monotonic_ns
        self._realtime_ns = realtime_ns
        self._sockets = self._sockets_at(port)
        self._before = Totals()  # of streams that have ended
        self._concealed_before_ms = 0.0
        self._skipped_before_ms = 0.0
        self._early: deque[Datagram] = deque(maxlen=MAX_EARLY)
        self._held = HeldBack(round(force_delay_ms * 1e6))
        self._watch: PlayoutDelay | None = None
        self._pause_from_ns: int | None = None
        self._server = ("", 0)
        self._report: IDelayedCall | None = None
        self._chain_call: IDelayedCall | None = None
        self._release: IDelayedCall | None = None

    # -- life

    @property
    def port(self) -> int:
        """The RTP port in use."""
        return self._sockets.port

    def start(self) -> None:
        """Open the sockets.

        :raises PortError: the port is taken, or the address is not this machine's.
        """
        try:
            self._open_sockets()
        except OSError as error:
            port = self._sockets.port
            if error.errno == errno.EADDRINUSE:
                reason = f"UDP port {port} or {port + 1} is in use by another program"
                raise PortError(f"{reason}; choose another with --udp-port, or 0 for any") from None
            raise PortError(f"UDP port {port}: {error.strerror or error}") from None

    def _open_sockets(self) -> None:
        try:
            self._sockets.start()
        except OSError as error:
            if not self._or_any or error.errno != errno.EADDRINUSE:
                raise
            self.instead_of = self._sockets.port
            self._sockets = self._sockets_at(0)
            self._sockets.start()

    def _sockets_at(self, port: int) -> RtpReceiver:
        return RtpReceiver(self._reactor, self._interface, port, self._received, self._rtcp)

    def stop(self) -> Deferred[list[Exception]]:
        """Close everything; recordings are finished.

        :returns: fires when they are, with what went wrong with them.
        """
        self._sockets.stop()
        for call in (self._report, self._chain_call, self._release):
            if call is not None and call.active():
                call.cancel()
        self._report = self._chain_call = self._release = None
        self._end_stream()
        return self.outputs.close()

    # -- what the control session says

    def listen_to(self, stream: Stream, host: str) -> None:
        """This flows from now on; the same as before goes on without a break.

        :param host: the server's address; audio from elsewhere is dropped.
        :raises RemoteProtocolError: the stream contradicts itself.
        """
        self._server = (host, stream.rtp_port + 1)
        self._sockets.only_from = (host, stream.rtp_port)
        if self.stream is not None and _same_packets(self.stream, stream):
            self.stream = stream
            return
        plan = StreamPlan.of(stream, self._wanted)
        self._end_stream()
        self.stream = stream
        self.reception = StreamReception(plan, self.latency)
        self._watch = PlayoutDelay(plan.frame / plan.clock_rate)
        self._guard(lambda: self.outputs.begin(plan, self._thresholds))
        early, self._early = list(self._early), deque(maxlen=MAX_EARLY)
        self._process(
            [one for one in early if one.address[0] == host and self.reception.knows(one.data)]
        )
        if self._report is None:
            self._schedule_report(initial=True)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Other thresholds hold from now on (STR-27)."""
        self._thresholds = thresholds
        for chain in self.outputs.chains:
            chain.set_thresholds(thresholds)

    def set_clock_offset(self, offset_ms: float) -> None:
        """What to add to the local wall clock to have the server's (CLK-1)."""
        self.latency.offset_ns = round(offset_ms * 1e6)

    # -- packets

    def _received(self, datagrams: list[Datagram]) -> None:
        if not self._held.delay_ns:
            self._process(datagrams)
            return
        self._held.put(datagrams, self._now())
        self._schedule_release()

    def _schedule_release(self) -> None:
        at = self._held.next_timer()
        if at is not None and self._release is None:
            delay = max(0.0, at - self._now())
            self._release = self._reactor.callLater(delay, self._release_held)

    def _release_held(self) -> None:
        self._release = None
        self._process(self._held.take(self._now()))
        self._schedule_release()

    def _process(self, datagrams: list[Datagram]) -> None:
        reception = self.reception
        if reception is None:
            self._early.extend(datagrams)
            return
        behind_ns = self._realtime_ns() - self._monotonic_ns()
        chains = self.outputs.chains
        last = len(reception.plan.groups) - 1
        for one in datagrams:
            arrival = (one.arrival_ns - behind_ns) / 1e9
            packet = reception.receive(one.data, one.arrival_ns, arrival)
            if packet is None:
                if len(one.data) >= 12 and not reception.knows(one.data):
                    self._early.append(one)
                continue
            if self._pause_from_ns is not None:
                self._bridge_pause(one.arrival_ns)
            if packet.group == last:
                self._watch_delay(packet.timestamp, arrival)
            for chain in chains:
                chain.push(packet)
        if chains:
            self._run_chains()

    def _watch_delay(self, timestamp: int, arrival: float) -> None:
        """What the delay of a jitter buffer would be, also when there is none."""
        watch = self._watch
        assert watch is not None and self.reception is not None
        media_s = self.reception.media_time(timestamp) / self.reception.plan.clock_rate
        if watch.started and arrival > watch.due(media_s):
            self.late += 1
        watch.observe(media_s, arrival)

    def _bridge_pause(self, arrival_ns: int) -> None:
        """The first packet of a stream that follows another: recordings stay in time."""
        assert self._pause_from_ns is not None and self.reception is not None
        plan = self.reception.plan
        pause = (arrival_ns - self._pause_from_ns) / 1e9 - plan.frame / plan.clock_rate
        self._pause_from_ns = None
        self._guard(lambda: self.outputs.pad(pause))

    def _run_chains(self) -> None:
        if self._chain_call is not None and self._chain_call.active():
            self._chain_call.cancel()
        self._chain_call = None
        self._guard(self._run_outputs)
        due = [at for chain in self.outputs.chains if (at := chain.next_timer()) is not None]
        if due:
            delay = max(0.0, min(due) - self._now())
            if self.outputs.live is not None:
                delay = min(delay, _KEEP_PLAYING_S)
            self._chain_call = self._reactor.callLater(delay, self._run_chains)

    def _run_outputs(self) -> None:
        now = self._now()
        for chain in self.outputs.chains:
            chain.run(now)
        self.outputs.keep_playing()

    def _guard(self, step: Callable[[], None]) -> None:
        """An output that fails is left out from then on, and said; receiving goes on."""
        try:
            step()
        except OUTPUT_ERRORS as error:
            self.outputs.lossless = self.outputs.live = None
            self._failed(error)

    def _end_stream(self) -> None:
        if self.reception is None:
            return
        self._before = self._before.plus(self.reception.totals())
        self._concealed_before_ms = self._concealed_ms()
        self._skipped_before_ms = self._skipped_ms()
        self._pause_from_ns = self.reception.last_arrival_ns or self._pause_from_ns
        self._guard(self.outputs.end)
        self.reception = self.stream = None

    # -- reports

    def _rtcp(self, compound: Compound, arrival_ns: int) -> None:
        if self.reception is not None:
            self.reception.sender_reports(compound, arrival_ns)

    def _schedule_report(self, *, initial: bool = False) -> None:
        delay = report_interval(
            members=2,
            senders=1,
            bandwidth=_RTCP_BANDWIDTH,
            we_sent=False,
            average_bytes=_RTCP_BYTES,
            initial=initial,
            randomness=self._random(),
        )
        self._report = self._reactor.callLater(delay, self._send_report)

    def _send_report(self) -> None:
        self._schedule_report()
        if self.reception is None:
            return
        blocks = self.reception.report_blocks(self._realtime_ns())
        if not blocks:
            return
        for data in receiver_compounds(self._ssrc, blocks, f"m32net-listener-{self._ssrc:08x}"):
            self._sockets.send_rtcp(data, self._server)

    # -- figures

    def figures(self) -> Figures:
        """A snapshot of everything."""
        reception, live = self.reception, self.outputs.live
        totals = self._before
        if reception is not None:
            totals = totals.plus(reception.totals())
        delay = self._watch if live is None else live.buffer.delay
        speaker = self.outputs.speaker
        return Figures(
            totals=totals,
            jitter_ms=0.0 if reception is None else reception.jitter_ms,
            latency_ms=self.latency.last_ms,
            buffer_ms=0.0 if delay is None else delay.target_ms,
            buffer_reason="nothing received yet" if delay is None else delay.reason,
            dropped=self._held.dropped,
            late=self.late if live is None else live.buffer.counters.late,
            concealed_ms=self._concealed_ms(),
            skipped_ms=self._skipped_ms(),
            capture_ms=self._capture_ms(),
            underruns=None if speaker is None else speaker.ring.underruns,
            drift_ppm=None if speaker is None else speaker.drift.correction * 1e6,
        )

    def _concealed_ms(self) -> float:
        chains, reception = self.outputs.chains, self.reception
        if reception is None or not chains:
            return self._concealed_before_ms
        plan = reception.plan
        samples = max(chain.playout.concealed for chain in chains) / len(plan.channels)
        return self._concealed_before_ms + samples * 1000 / plan.sample_rate

    def _skipped_ms(self) -> float:
        if self.reception is None or self.outputs.live is None:
            return 0.0
        return (
            self.outputs.live.buffer.counters.skipped_time * 1000 / self.reception.plan.clock_rate
        )

    def _capture_ms(self) -> float | None:
        """From capture to arrival; while playing to what the sound card puts out."""
        reception, offset_ns = self.reception, self.latency.offset_ns
        if reception is None or offset_ns is None or reception.last_timestamp is None:
            return None
        live, speaker, card = self.outputs.live, self.outputs.speaker, self.outputs.card
        timestamp, at_ns = reception.last_timestamp, reception.last_arrival_ns or 0
        if live is not None and speaker is not None and card is not None:
            if self.outputs.last_played is None:
                return None
            timestamp = live.buffer.timestamp_of(self.outputs.last_played)
            ahead = speaker.level_s + card.latency_s
            at_ns = self._realtime_ns() + round(ahead * 1e9)
        captured_ns = reception.captured_ns(timestamp)
        return None if captured_ns is None else (at_ns + offset_ns - captured_ns) / 1e6

    def _now(self) -> float:
        return self._monotonic_ns() / 1e9


def _same_packets(one: Stream, other: Stream) -> bool:
    """Whether two announcements mean the same RTP streams."""
    return (one.codec, one.sample_rate, one.clock_rate, one.frame_ms, one.groups) == (
        other.codec,
        other.sample_rate,
        other.clock_rate,
        other.frame_ms,
        other.groups,
    )
