"""Part ``fanout``: what a packet costs, against a bare sendmmsg loop and against GStreamer.

20 listeners get 32 channels every 5 ms.  What is counted is CPU time of the sending process.  This
kernel charges softirqs to whatever they interrupt, and on loopback and veth the whole way into
the receiver's socket is a softirq of the sending call; so routing, delivery and, on the wire,
cutting the segments and summing the checksums are in, for all contenders alike.  What the
receivers spend is not.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks import gstreamer, netns
from benchmarks.child import Obedient
from benchmarks.report import PartResult, Progress, Table, Verdict
from benchmarks.senders import CASES, FRAME_S

LISTENERS = 20
OURS = ("fanout", "gather", "flat")
BARE_TARGET = 1.3
GSTREAMER_TARGET = 8.0


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int
    frames: int
    gstreamer_s: float


FULL = Effort(rounds=5, frames=120, gstreamer_s=1.0)
QUICK = Effort(rounds=3, frames=40, gstreamer_s=0.4)


@dataclass(frozen=True, slots=True)
class Network:
    """Where the packets go, and how the listeners read them.

    :ivar host: where the listeners are; ``to`` where it is sent, if that is not the same.
    :ivar mode: ``gro`` or ``plain``.
    """

    name: str
    host: str
    mode: str
    sender: Sequence[str] = ()
    receiver: Sequence[str] = ()
    to: str = ""


@dataclass(slots=True)
class Costs:
    """CPU ns of one packet, a value for each round."""

    packets: int
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.rounds.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        return statistics.median(self.rounds[name]) if name in self.rounds else None

    def ratio(self, name: str, other: str) -> float | None:
        """Median over the rounds of how many times ``other`` one packet costs."""
        if name not in self.rounds or other not in self.rounds:
            return None
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def run(quick: bool, progress: Progress) -> PartResult:
    effort = QUICK if quick else FULL
    result = PartResult("fanout")
    absent = gstreamer.missing()
    if absent:
        result.notes.append(f"Not compared with GStreamer: {absent}.")
    with ExitStack() as stack:
        networks = [Network("loopback", "127.0.0.1", "gro")]
        if quick:
            result.notes.append("Not measured over a veth pair: only the full run is.")
        else:
            networks += _wires(stack, result)
        loops, paced = _tables()
        result.tables += [loops, paced]
        for network in networks:
            for case in CASES:
                costs = measure(case, network, effort, gstreams=not absent, progress=progress)
                _enter(result, case, network, costs)
        if not absent:
            result.tables.append(_whole_frames(result))
    result.notes += NOTES
    return result


NOTES = (
    "gather: the fan-out's own messages sent again as they are; flat: one ready buffer for each "
    "listener, the barest loop there is.",
    "back to back: frame after frame; paced: a frame every 5 ms, as in the server, so that each "
    "begins with cold caches.  Only the sending calls are timed.",
    "loopback: receivers read with GRO and nothing is cut.  veth: the kernel cuts the segments, "
    "plain receivers.  unread: the far end drops what comes, so this is the sender's part alone.",
    "GStreamer runs paced.  For bundles it sends two streams of 960-byte payloads; it has no "
    "payloader for bundles of 16.",
)


def _wires(stack: ExitStack, result: PartResult) -> list[Network]:
    """A veth pair, read and unread, for as long as ``stack`` lasts; none if there cannot be."""
    try:
        wire = stack.enter_context(netns.wire())
    except netns.NoNamespace as reason:
        result.notes.append(f"Not measured over a veth pair: {reason}.")
        return []
    ends = (wire.sender, wire.receiver)
    return [
        Network("veth", wire.receiver_host, "plain", *ends),
        Network("veth, unread", wire.receiver_host, "plain", *ends, to=wire.nobody),
    ]


def _tables() -> tuple[Table, Table]:
    what = f"{LISTENERS} listeners x 32 channels x 5 ms: CPU of one packet in ns"
    first = ("network", "packets", "a frame", "fan-out", "bare gather", "bare flat")
    return (
        Table(f"{what}, back to back", (*first, "/ gather", "/ flat")),
        Table(f"{what}, paced", (*first, "GStreamer", "/ gather", "/ flat", "GStreamer /")),
    )


def measure(
    case: str, network: Network, effort: Effort, *, gstreams: bool, progress: Progress
) -> Costs:
    """Everybody in turn, round after round."""
    where = f"{CASES[case].title} over {network.name}"
    with (
        Obedient(
            "benchmarks.sink", network.host, str(LISTENERS), network.mode, prefix=network.receiver
        ) as sink,
        Obedient(
            "benchmarks.senders",
            case,
            network.to or network.host,
            ",".join(map(str, sink.greeting["ports"])),
            prefix=network.sender,
        ) as senders,
    ):
        costs = Costs(senders.greeting["packets"])
        for turn in range(effort.rounds):
            progress(f"{where}, round {turn + 1} of {effort.rounds}")
            for pace, suffix in (("paced", ""), ("rush", "_rush")):
                spent = senders.ask(f"{pace} {effort.frames}")
                for name, cpu_ns in spent.items():
                    costs.note(name + suffix, cpu_ns / effort.frames / costs.packets)
            if gstreams:
                costs.note("gstreamer", _gstreamer(case, network, sink.greeting["ports"], effort))
    return costs


def _gstreamer(case: str, network: Network, ports: Sequence[int], effort: Effort) -> float:
    streams = gstreamer.STREAMS[case]
    spent = [
        gstreamer.cpu_ns_per_s(streams, sink, effort.gstreamer_s, network.sender)
        for sink in (gstreamer.to_everybody(network.to or network.host, ports), gstreamer.NOBODY)
    ]
    return (spent[0] - spent[1]) * FRAME_S / (streams.count * LISTENERS)


def _whole_frames(result: PartResult) -> Table:
    """What one listener's 32 channels cost: bundles are fewer packets, too."""
    table = Table(
        "One listener's frame of 32 channels, paced: CPU in us",
        ("network", "GStreamer, a packet a channel", "fan-out, a packet a channel",
         "fan-out, bundled", "GStreamer / bundled"),
    )  # fmt: skip
    for name in dict.fromkeys(row[0] for row in result.tables[0].rows):
        mono = result.data[f"{name} l16-mono"]
        bundled = result.data[f"{name} opus-bundle"]
        theirs, ours, fewer = (
            one["ns_per_packet"][who] * one["packets_per_frame"] / LISTENERS / 1000
            for one, who in ((mono, "gstreamer"), (mono, "fanout"), (bundled, "fanout"))
        )
        table.rows.append((name, theirs, ours, fewer, theirs / fewer))
    return table


def _enter(result: PartResult, case: str, network: Network, costs: Costs) -> None:
    loops, paced = result.tables
    title = CASES[case].title
    ratios = {
        name: costs.ratio(*name.split(" / "))
        for name in (
            "fanout_rush / gather_rush",
            "fanout_rush / flat_rush",
            "fanout / gather",
            "fanout / flat",
            "gstreamer / fanout",
        )
    }
    gather_rush, flat_rush, gather, flat, times = ratios.values()
    first = (network.name, title, costs.packets)
    rush = (costs.median(f"{name}_rush") for name in OURS)
    loops.rows.append((*first, *rush, gather_rush, flat_rush))
    calm = (costs.median(name) for name in (*OURS, "gstreamer"))
    paced.rows.append((*first, *calm, gather, flat, times))
    result.data[f"{network.name} {case}"] = {
        "packets_per_frame": costs.packets,
        "ns_per_packet": {name: costs.median(name) for name in costs.rounds},
        "ratios": ratios,
        "rounds": costs.rounds,
    }
    for loop, ratio in (
        ("bare loop, same gather lists", gather_rush),
        ("barest loop, flat buffers", flat_rush),
        ("bare loop, paced", gather),
    ):
        assert ratio is not None
        result.verdicts.append(
            Verdict(
                f"{network.name}: {title}: over the {loop}",
                f"<= {BARE_TARGET}x",
                f"{ratio:.2f}x",
                ratio <= BARE_TARGET,
            )
        )
    if times is not None:
        result.verdicts.append(
            Verdict(
                f"{network.name}: {title}: cheaper than GStreamer",
                f">= {GSTREAMER_TARGET:g}x",
                f"{times:.1f}x",
                times >= GSTREAMER_TARGET,
            )
        )
