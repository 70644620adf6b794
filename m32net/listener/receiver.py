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
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from m32net.listener.chain import Chain
from m32net.listener.decode import OpusUnavailable
from m32net.listener.figures import Figures
from m32net.listener.flow import LONG_STOPPED_S, PATIENT_S, Flow
from m32net.listener.held import HeldBack
from m32net.listener.latency import LatencyMeter
from m32net.listener.outputs import Outputs
from m32net.listener.playback import PlaybackError
from m32net.listener.reception import StreamReception
from m32net.listener.recorder import RecordingError
from m32net.listener.reports import Reports
from m32net.listener.tally import Tally
from m32net.listener.thresholds import Thresholds
from protocols.control.messages import Stream
from protocols.datagram import Datagram
from protocols.rtp.protocol import RtpReceiver
from protocols.rtp.rtcp import Compound

MAX_EARLY: Final = 256
"""Packets kept for a stream that was not announced yet."""
DISK_TIMEOUT_S: Final = 10.0
"""How long a disk may take to finish the recordings when the listener stops."""
OUTPUT_ERRORS: Final = (RecordingError, PlaybackError, OpusUnavailable)
_KEEP_PLAYING_S: Final = 0.004


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
        self.flow: Flow | None = None
        """What is heard."""
        self.coming: Flow | None = None
        """What is to follow it."""
        self.instead_of: int | None = None
        self._reactor = reactor
        self._interface = interface
        self._or_any = or_any
        self._wanted = wanted
        self._thresholds = thresholds or Thresholds()
        self._failed = failed
        self._monotonic_ns = monotonic_ns
        self._realtime_ns = realtime_ns
        self._sockets = self._sockets_at(port)
        self._tally = Tally()
        self._early: deque[Datagram] = deque(maxlen=MAX_EARLY)
        self._held = HeldBack(round(force_delay_ms * 1e6))
        self._pause_from_ns: int | None = None
        self.going_over = False
        """Whether the cross-fade to it has begun."""
        self._moved: Callable[[], object] = lambda: None
        self._reports = Reports(reactor, ssrc, random, realtime_ns, self._send_report)
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
        self._reports.stop()
        for call in (self._chain_call, self._release):
            if call is not None and call.active():
                call.cancel()
        self._chain_call = self._release = None
        self._end_stream()
        closing = self.outputs.close()
        return closing.addTimeout(DISK_TIMEOUT_S, self._reactor, self._disk_hangs)

    @staticmethod
    def _disk_hangs(result: object, timeout_s: float) -> list[Exception]:
        reason = f"the disk has not answered for {timeout_s:g} s"
        return [RecordingError(f"{reason}: the end of the recording is missing")]

    # -- what the control session says

    @property
    def stream(self) -> Stream | None:
        """What is heard."""
        return None if self.flow is None else self.flow.stream

    @property
    def flows(self) -> bool:
        """Whether something is heard: it was announced, and has not stopped long ago."""
        if self.flow is None:
            return False
        stopped_s = self.flow.stopped_s(self._realtime_ns())
        return stopped_s is None or stopped_s < LONG_STOPPED_S

    @property
    def reception(self) -> StreamReception | None:
        return None if self.flow is None else self.flow.reception

    def listen_to(self, stream: Stream, host: str) -> None:
        """This flows from now on; the same as before goes on without a break.

        :param host: the server's address; audio from elsewhere is dropped.
        :raises RemoteProtocolError: the stream contradicts itself.
        """
        if self.flow is not None and self.flow.same_packets(stream, host):
            self.flow.stream = stream
            return
        flow = Flow(stream, host, self._wanted, self.latency)
        self.leave_off()
        self._end_stream()
        self.flow = flow
        self._admit()
        self._guard(lambda: self.outputs.begin(flow.plan, self._thresholds))
        self._claim_early(lambda one: one.address[0] == host and flow.reception.knows(one.data))
        self._reports.start()

    def follow(
        self, stream: Stream, host: str, latency: LatencyMeter, moved: Callable[[], object]
    ) -> None:
        """This flows beside what is heard, and is to take its place (CON-51).

        It does as soon as it has been received well for a while, or as the other one stops; until
        :meth:`leave_off` it may as well never do.

        :param latency: by the other server's clock; taken over with the stream.
        :param moved: called when what was heard so far may end.
        :raises RemoteProtocolError: the stream contradicts itself.
        :raises OpusUnavailable: it is Opus, and libopus is missing.
        """
        old = self.flow
        if self.coming is not None and self.coming.same_packets(stream, host):
            self.coming.stream = stream
            return
        self.leave_off()
        stopped_s = None if old is None else old.stopped_s(self._realtime_ns())
        if old is None or not old.plan.groups or not stream.groups:
            stopped_s = LONG_STOPPED_S  # there is nothing to fade from, or to
        if stopped_s is not None and stopped_s >= LONG_STOPPED_S:
            self.listen_to(stream, host)
            self.latency.follow(latency)
            moved()
            return
        assert old is not None
        flow = Flow(stream, host, self._wanted or old.plan.channels, latency)
        if self.outputs.voice is not None:
            self.outputs.prepare(flow.plan, self._thresholds)
        self.coming, self._moved = flow, moved
        self._admit()
        self._claim_early(flow.owns)

    def leave_off(self) -> None:
        """What was to follow does not; what is heard goes on.  Nothing if it has begun to."""
        if self.coming is not None and not self.going_over:
            self.coming = None
            self.outputs.give_up()
            self._admit()

    def _admit(self) -> None:
        """Let in what the servers we listen to send, and nothing else."""
        self._sockets.only_from = tuple(flow.address for flow in self._flows)

    def _claim_early(self, wanted: Callable[[Datagram], bool]) -> None:
        """Take in what came before its announcement."""
        early, self._early = list(self._early), deque(maxlen=MAX_EARLY)
        self._process([one for one in early if wanted(one)])

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Other thresholds hold from now on (STR-27)."""
        self._thresholds = thresholds
        for chain in self.outputs.all_chains:
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
        if self.flow is None:
            self._early.extend(datagrams)
            return
        behind_ns = self._realtime_ns() - self._monotonic_ns()
        flow, chains = self.flow, self.outputs.chains
        coming = self.coming
        for one in datagrams:
            if coming is not None:
                flow, chains = self._whose(one, coming)
            arrival = (one.arrival_ns - behind_ns) / 1e9
            packet = flow.receive(one, arrival)
            if packet is None:
                if len(one.data) >= 12 and not flow.reception.knows(one.data):
                    self._early.append(one)
                continue
            if self._pause_from_ns is not None:
                self._bridge_pause(one.arrival_ns)
            for chain in chains:
                chain.push(packet)
        if self.outputs.all_chains:
            self._run_chains()
        elif coming is not None:
            self._consider()

    def _whose(self, one: Datagram, coming: Flow) -> tuple[Flow, tuple[Chain, ...]]:
        """Which of two flows a datagram belongs to: by its sender, then by its source."""
        assert self.flow is not None
        ours = self.outputs.coming is not None
        if coming.owns(one) or (one.address == coming.address != self.flow.address):
            return coming, self.outputs.coming.chains if ours and self.outputs.coming else ()
        return self.flow, self.outputs.chains

    def _consider(self) -> None:
        """See whether the coming stream may take over, or has."""
        if self.coming is None or self.flow is None:
            return
        if not self.going_over:
            # By the socket's time: after a stall here, it holds what both have sent.
            times = [flow.reception.last_arrival_ns or 0 for flow in self._flows]
            now_ns = max(times)
            stopped_s = self.flow.stopped_s(now_ns)
            hurry = stopped_s is not None and (
                self.outputs.card is not None
                or self.coming.covers(self.flow)
                or stopped_s >= PATIENT_S
            )
            if not self.coming.filled(now_ns, hurry=hurry):
                return
            self.going_over = True
            if self.outputs.coming is not None:
                self._guard(lambda: self.outputs.go_over(stopped_s))
        if self.outputs.went_over:
            self._take_over()

    def _take_over(self) -> None:
        """The cross-fade is over."""
        assert self.flow is not None and self.coming is not None
        self._tally.ended(self.flow, self.outputs.chains, self.outputs.live)
        self.outputs.take_over()
        self.flow, self.coming = self.coming, None
        self.going_over = False
        self._pause_from_ns = None
        self._tally.begins(self.flow, self.outputs.chains, self.outputs.live)
        self.latency.follow(self.flow.latency)
        self.flow.reception.latency = self.latency
        self._admit()
        self._moved()

    def _bridge_pause(self, arrival_ns: int) -> None:
        """The first packet of a stream that follows another: recordings stay in time."""
        assert self._pause_from_ns is not None and self.flow is not None
        plan = self.flow.plan
        pause = (arrival_ns - self._pause_from_ns) / 1e9 - plan.frame / plan.clock_rate
        self._pause_from_ns = None
        self._guard(lambda: self.outputs.pad(pause))

    def _run_chains(self) -> None:
        if self._chain_call is not None and self._chain_call.active():
            self._chain_call.cancel()
        self._chain_call = None
        self._guard(self._run_outputs)
        self._consider()
        due = [at for chain in self.outputs.all_chains if (at := chain.next_timer()) is not None]
        if due:
            delay = max(0.0, min(due) - self._now())
            if self.outputs.live is not None:
                delay = min(delay, _KEEP_PLAYING_S)
            self._chain_call = self._reactor.callLater(delay, self._run_chains)

    def _run_outputs(self) -> None:
        now = self._now()
        for chain in self.outputs.all_chains:
            chain.run(now)
        self.outputs.keep_playing()

    def _guard(self, step: Callable[[], None]) -> None:
        """An output that fails is left out from then on, and said; receiving goes on."""
        try:
            step()
        except OUTPUT_ERRORS as error:
            self.outputs.silence()
            self._failed(error)

    def _end_stream(self) -> None:
        if self.flow is None:
            return
        self.going_over = False
        self.leave_off()
        self._tally.ended(self.flow, self.outputs.chains, self.outputs.live)
        self._pause_from_ns = self.flow.reception.last_arrival_ns or self._pause_from_ns
        self._guard(self.outputs.end)
        self.flow = None

    def _send_report(self, compounds: Callable[[Flow], list[bytes]]) -> None:
        for flow in self._flows:
            for data in compounds(flow):
                self._sockets.send_rtcp(data, flow.rtcp_address)

    def _rtcp(self, compound: Compound, arrival_ns: int) -> None:
        for flow in self._flows:
            flow.reception.sender_reports(compound, arrival_ns)

    @property
    def _flows(self) -> list[Flow]:
        return [flow for flow in (self.flow, self.coming) if flow is not None]

    def figures(self) -> Figures:
        """A snapshot of everything."""
        speaker = self.outputs.speaker
        return replace(
            self._tally.figures(self.flow, self.outputs.chains, self.outputs.live),
            latency_ms=self.latency.last_ms,
            dropped=self._held.dropped,
            capture_ms=self._capture_ms(),
            underruns=None if speaker is None else speaker.ring.underruns,
            drift_ppm=None if speaker is None else speaker.drift.correction * 1e6,
        )

    def _capture_ms(self) -> float | None:
        """From capture to arrival; while playing to what the sound card puts out."""
        reception, offset_ns = self.reception, self.latency.offset_ns
        if reception is None or offset_ns is None or reception.last_timestamp is None:
            return None
        voice, speaker, card = self.outputs.voice, self.outputs.speaker, self.outputs.card
        timestamp, at_ns = reception.last_timestamp, reception.last_arrival_ns or 0
        if voice is not None and voice.live is not None and speaker is not None:
            if voice.last_played is None or card is None:
                return None
            timestamp = voice.live.buffer.timestamp_of(voice.last_played)
            ahead = speaker.level_s + card.latency_s
            at_ns = self._realtime_ns() + round(ahead * 1e9)
        captured_ns = reception.captured_ns(timestamp)
        return None if captured_ns is None else (at_ns + offset_ns - captured_ns) / 1e6

    def _now(self) -> float:
        return self._monotonic_ns() / 1e9
