"""Many listeners in one process: real control connections and RTCP, audio counted in bulk.

    python -m benchmarks.crowd URL LISTENERS '{"compression": "opus"}'

Each listener has its WebSocket with hello, configuration, heartbeats and clock requests, and sends
receiver reports as RFC 3550 asks.  Only the audio is not decoded: packets are read in batches and
judged by their headers (:mod:`benchmarks.bulk`).  Listeners share a few UDP ports, told apart by
SSRC.  Orders come as lines on standard input and are answered with one line of JSON: ``begin``,
``end`` (figures of the time between), ``stop``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from twisted.internet import defer, reactor, stdio, task
from twisted.protocols.basic import LineReceiver

from benchmarks.bulk import ARRIVAL, Arrivals, BulkReader, streams
from m32net.ops.process import allow_many_files
from protocols.control import events, messages
from protocols.control.client_session import ClientSession
from protocols.control.connection import ControlClient
from protocols.control.protocol import ControlClientFactory, connect
from protocols.datagram import BatchReceiver, open_udp
from protocols.errors import RemoteProtocolError
from protocols.rtp import rtcp
from protocols.rtp.extension import unix_ns_from_ntp64

HOST: Final = "127.0.0.1"
LISTENERS_PER_SOCKET: Final = 200
DRAIN_S: Final = 0.008
REPORT_S: Final = 5.0
REPORT_TICK_S: Final = 0.05
JOIN_TIMEOUT_S: Final = 60.0
AT_ONCE: Final = 8
"""Connections opened side by side."""


class Sources:
    """What receiver reports need to know of each SSRC, kept up in bulk."""

    def __init__(self) -> None:
        self.known = np.zeros(0, np.uint32)
        self.first = np.zeros(0, np.int64)
        self.highest = np.zeros(0, np.int64)
        self.received = np.zeros(0, np.int64)
        self.last_sr: dict[int, tuple[int, int]] = {}

    def learn(self, ssrcs: list[int]) -> None:
        new = np.union1d(self.known, np.array(ssrcs, np.uint32))
        at = np.searchsorted(new, self.known)
        for name, empty in (("first", -1), ("highest", -1), ("received", 0)):
            values = np.full(len(new), empty, np.int64)
            values[at] = getattr(self, name)
            setattr(self, name, values)
        self.known = new

    def count(self, arrivals: Arrivals) -> None:
        if not len(self.known):
            return
        at = np.minimum(np.searchsorted(self.known, arrivals["ssrc"]), len(self.known) - 1)
        ours = self.known[at] == arrivals["ssrc"]
        at, sequences = at[ours], arrivals["sequence"][ours].astype(np.int64)
        highest = self.highest[at]
        step = (sequences - highest + 0x8000 & 0xFFFF) - 0x8000
        extended = np.where(highest < 0, sequences, highest + step)
        np.maximum.at(self.highest, at, extended)
        self.first[at] = np.where(self.first[at] < 0, extended, self.first[at])
        np.add.at(self.received, at, 1)

    def block(self, ssrc: int, now_ns: int) -> rtcp.ReportBlock:
        at = int(np.searchsorted(self.known, ssrc))
        highest = int(self.highest[at])
        expected = highest - int(self.first[at]) + 1 if highest >= 0 else 0
        last_sr, arrival_ns = self.last_sr.get(ssrc, (0, now_ns))
        return rtcp.ReportBlock(
            ssrc=ssrc,
            fraction_lost=0,
            cumulative_lost=max(0, expected - int(self.received[at])),
            highest_sequence=max(0, highest) & 0xFFFF_FFFF,
            jitter=0,
            last_sr=last_sr,
            delay_since_last_sr=(now_ns - arrival_ns) * 65_536 // 1_000_000_000 if last_sr else 0,
        )


class Crowd:
    """All listeners of this process.

    :param wanted: fields of :class:`~protocols.control.messages.ClientConfig`.
    """

    def __init__(self, url: str, listeners: int, wanted: dict[str, Any]) -> None:
        self.url = url.replace("http://", "ws://").rstrip("/") + "/ws"
        self.listeners = listeners
        self.wanted = wanted
        self.sources = Sources()
        self.streams: dict[int, messages.Stream] = {}
        self.troubles: Counter[str] = Counter()
        self.readers: list[BulkReader] = []
        self.rtcp: list[BatchReceiver] = []
        self.rtcp_sockets: list[Any] = []
        self.clients: list[ControlClient] = []
        self.kept: list[Arrivals] | None = None
        self.reports: list[tuple[int, int]] = []  # (RTP time, Unix ns) of sender reports
        self.reported = 0
        self.began_ns = 0
        self.drops_before = 0

    # -- joining ---------------------------------------------------------------------------

    @defer.inlineCallbacks
    def join(self) -> Any:
        """Open the ports, connect everybody; fires when every stream is announced."""
        for _ in range(-(-self.listeners // LISTENERS_PER_SOCKET)):
            self._open_pair()
        task.LoopingCall(self.drain).start(DRAIN_S)
        self.everybody: defer.Deferred[None] = defer.Deferred()
        numbers = iter(range(self.listeners))
        yield defer.gatherResults([self._connect_each(numbers) for _ in range(AT_ONCE)])
        yield self.everybody.addTimeout(JOIN_TIMEOUT_S, reactor)
        task.LoopingCall(self._report).start(REPORT_TICK_S)

    def _open_pair(self) -> None:
        for _ in range(100):
            reader = BulkReader(HOST, 0, batch=512)
            try:
                sock = open_udp(HOST, reader.port + 1)
            except OSError:
                reader.close()
                continue
            self.readers.append(reader)
            self.rtcp_sockets.append(sock)
            self.rtcp.append(BatchReceiver(sock, gro=False))
            return
        raise OSError("no free pair of UDP ports")

    @defer.inlineCallbacks
    def _connect_each(self, numbers: Any) -> Any:
        for number in numbers:
            factory = ControlClientFactory(
                self.url,
                lambda _client, event, number=number: self._told(number, event),
                reactor=reactor,
                make_session=lambda number=number: ClientSession(
                    messages.Hello(name=f"bench {number + 1}"),
                    spread=np.random.default_rng(number).random,
                ),
            )
            client = yield connect(factory)
            self.clients.append(client)
            port = self.readers[number // LISTENERS_PER_SOCKET].port
            client.configure(messages.ClientConfig(udp_port=port, **self.wanted))

    def _told(self, number: int, event: events.ClientSessionEvent) -> None:
        match event:
            case events.StreamStarted(stream=stream):
                self.streams[number] = stream
                self.sources.learn([group.ssrc for group in stream.groups])
                if len(self.streams) == self.listeners and not self.everybody.called:
                    self.everybody.callback(None)
            case events.ServerError(error=error):
                self.troubles[f"error {error.code}"] += 1
            case events.ServerEvent(event=told):
                self.troubles[f"event {told.type}"] += 1
            case events.SessionClosed(cause=cause):
                self.troubles[f"closed: {cause}"] += 1

    # -- audio and reports -----------------------------------------------------------------

    def drain(self) -> None:
        batches = [batch for reader in self.readers for batch in reader.drain()]
        if batches:
            arrivals = np.concatenate(batches)
            self.sources.count(arrivals)
            if self.kept is not None:
                self.kept.append(arrivals)

    def _report(self) -> None:
        """Read sender reports; send the receiver reports that are due."""
        for receiver in self.rtcp:
            for data, _, arrival_ns in receiver.receive():
                self._sender_reports(data, arrival_ns)
        due = int(time.monotonic() / REPORT_S * self.listeners)
        now_ns = time.time_ns()
        for turn in range(max(self.reported, due - self.listeners), due):
            number = turn % self.listeners
            stream = self.streams[number]
            blocks = [self.sources.block(group.ssrc, now_ns) for group in stream.groups]
            sock = self.rtcp_sockets[number // LISTENERS_PER_SOCKET]
            for data in rtcp.receiver_compounds(number + 1, blocks, f"bench@{number}"):
                sock.sendto(data, (HOST, stream.rtp_port + 1))
        self.reported = due

    def _sender_reports(self, data: bytes, arrival_ns: int) -> None:
        try:
            compound = rtcp.parse_compound(data)
        except RemoteProtocolError:
            self.troubles["malformed RTCP"] += 1
            return
        for packet in compound:
            if isinstance(packet, rtcp.SenderReport):
                self.sources.last_sr[packet.ssrc] = (rtcp.compact_ntp(packet.ntp), arrival_ns)
                self.reports.append((packet.rtp_timestamp, unix_ns_from_ntp64(packet.ntp)))

    # -- measuring -------------------------------------------------------------------------

    def begin(self) -> dict[str, Any]:
        self.drain()
        self.kept = []
        self.began_ns = time.time_ns()
        self.drops_before = self._kernel_drops()
        self.cpu_before = time.process_time()
        return {}

    def end(self) -> dict[str, Any]:
        """Figures of everything that arrived since :meth:`begin`."""
        cpu_s = time.process_time() - self.cpu_before
        self.drain()
        ended_ns = time.time_ns()
        overflowed = self._kernel_drops() - self.drops_before
        kept, self.kept = self.kept or [], None
        arrivals = np.concatenate(kept) if kept else np.zeros(0, ARRIVAL)
        stream = next(iter(self.streams.values()))
        figures = streams(arrivals, stream.clock_rate, stream.frame_ms)
        expected = sum(one.expected for one in figures)
        due = sum(one.due for one in figures)
        received = sum(one.received for one in figures)
        announced = sum(len(one.groups) for one in self.streams.values())
        jitter = np.concatenate([one.jitter for one in figures] or [np.zeros(1)])
        last = [float(one.jitter[-1]) for one in figures if len(one.jitter)] or [0.0]
        seconds = (ended_ns - self.began_ns) / 1e9
        return {
            "seconds": seconds,
            "listeners": len(self.streams),
            "streams": len(figures),
            "silent_streams": announced - len(figures),
            "packets": len(arrivals),
            "octets": sum(one.octets for one in figures),
            "packets_per_s_per_listener": len(arrivals) / seconds / len(self.streams),
            "lost": expected - received,
            "never_sent": max(0, due - expected),
            "loss_percent": 100 * (1 - received / max(1, due * announced / max(1, len(figures)))),
            "lost_in_receiver": overflowed,
            "duplicates": sum(one.duplicates for one in figures),
            "reordered": sum(one.reordered for one in figures),
            "jitter_ms": quantiles(jitter),
            "jitter_worst_stream_ms": max(last),
            **self._delays(arrivals, stream),
            "troubles": dict(self.troubles),
            "truncated": sum(reader.truncated for reader in self.readers),
            "crowd_cpu_percent": 100 * cpu_s / seconds,
        }

    def _delays(self, arrivals: Arrivals, stream: messages.Stream) -> dict[str, Any]:
        """From a frame's last sample (by the sender reports) to its arrival here: of each
        packet, and of each frame's last packet, whoever it was for."""
        if not self.reports or not len(arrivals):
            return {}
        rtp, unix_ns = (np.array(column) for column in zip(*self.reports, strict=True))
        scale = 1_000_000_000 / stream.clock_rate
        start = int(rtp[0])
        zero_ns = np.median(unix_ns - _ahead(rtp, start) * scale)
        complete_ns = zero_ns + _ahead(arrivals["timestamp"], start) * scale + stream.frame_ms * 1e6
        delays = (arrivals["at"] - complete_ns) / 1e6
        _, frame_of = np.unique(arrivals["timestamp"], return_inverse=True)
        last = np.full(frame_of.max() + 1, -np.inf)
        np.maximum.at(last, frame_of, delays)
        # the window may begin and end within a frame
        return {"packet_ms": quantiles(delays), "last_packet_ms": quantiles(last[1:-1])}

    def _kernel_drops(self) -> int:
        """Datagrams these sockets had no room for (the last column of /proc/net/udp)."""
        inodes = {str(os.fstat(reader.socket.fileno()).st_ino) for reader in self.readers}
        rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
        return sum(int(row[12]) for row in rows if row[9] in inodes)


def _ahead(rtp: Any, start: int) -> Any:
    """RTP time since ``start``, wrapped to -2**31..2**31."""
    return (np.asarray(rtp, np.int64) - start + (1 << 31) & 0xFFFF_FFFF) - (1 << 31)


def quantiles(values: Any) -> dict[str, float]:
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99), "max": float(np.max(values))}


class Orders(LineReceiver):
    """The measuring process at the other end of the pipe."""

    delimiter = b"\n"

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd

    def lineReceived(self, line: bytes) -> None:
        if line == b"stop":
            reactor.stop()
            return
        answer = {"begin": self.crowd.begin, "end": self.crowd.end}[line.decode()]()
        self.sendLine(json.dumps(answer).encode())

    def connectionLost(self, reason: Any = None) -> None:
        if reactor.running:
            reactor.stop()


def main() -> None:
    url, listeners, wanted = sys.argv[1:]
    allow_many_files()
    crowd = Crowd(url, int(listeners), json.loads(wanted))

    def joined(_: object) -> None:
        orders = Orders(crowd)
        stdio.StandardIO(orders)
        orders.sendLine(json.dumps({"joined": len(crowd.streams)}).encode())

    def failed(failure: Any) -> None:
        print(json.dumps({"failed": failure.getErrorMessage(), **crowd.troubles}), flush=True)
        reactor.stop()

    reactor.callWhenRunning(lambda: crowd.join().addCallbacks(joined, failed))
    reactor.run()


if __name__ == "__main__":
    main()
