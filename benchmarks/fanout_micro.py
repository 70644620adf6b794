"""What the fan-out costs over a bare preallocated GSO ``sendmmsg`` loop, in the same run.

    python benchmarks/fanout_micro.py [--listeners 20,200,1000] [--rounds 15] [--json]

Bundled Opus as our own listeners get it: 32 channels, 5 ms, 96 kb/s, two packets of about 1 kB a
frame and listener.  Two bare loops are timed, interleaved with the fan-out, frame counts equal:
``gather`` sends the same gather lists (header, payload) again and again without changing a byte;
``flat`` sends each listener one buffer of its own.  The receivers on loopback never read.
CPU time of the process, kernel included; medians over the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from m32net.audio.frame import EncodedFrame
from m32net.streaming.fanout import Fanout
from m32net.streaming.profile import MAX_MEDIA_PAYLOAD, Profile
from protocols.datagram import SendMethod, open_udp
from protocols.mmsg import MMSGHDR, SendTable, libc_function, socket_addresses
from protocols.rtp.packetizer import Group, StreamSpec, payload_type_of, plan_groups

OPUS = Profile("opus", 48_000, 5_000, 96_000)
L16 = Profile("L16", 48_000, 5_000)


class Bare:
    """One table, sent as it is."""

    def __init__(self, sock: socket.socket, table: SendTable) -> None:
        self.call = libc_function("sendmmsg", hold_lock=False)
        self.fd = sock.fileno()
        self.table = table

    def send(self, _frame: object) -> None:
        at = 0
        while at < self.table.count:
            count = min(1024, self.table.count - at)
            sent = self.call(self.fd, self.table.address + at * MMSGHDR.itemsize, count, 0)
            if sent < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            at += sent


def flat_table(listeners: int, to: tuple[str, int], sizes: list[int]) -> SendTable:
    """One message per listener, one buffer each; the first segment's size is all segments'."""
    total = sum(sizes)
    memory = np.zeros((listeners, total), np.uint8)
    table = SendTable(
        socket_addresses([to] * listeners),
        bases=memory.ctypes.data + np.arange(listeners, dtype=np.uint64) * total,
        lengths=np.full(listeners, total, np.uint64),
        first_parts=np.arange(listeners),
        segmented=np.full(listeners, len(sizes) > 1),
        keep=(memory,),
    )
    table.segment_sizes[:] = sizes[0]
    return table


def frames_of(profile: Profile, count: int) -> list[EncodedFrame]:
    rng = np.random.default_rng(1)
    shape = (240, 32, 2) if profile.is_pcm else (32, profile.packet_bytes)
    payload = rng.integers(0, 256, shape, np.uint8)
    if not profile.is_pcm:
        payload[:, 0] &= 0xFC
    return [EncodedFrame(profile, 240 * k, 240, 0, 0, payload) for k in range(count)]


def cpu(send: Callable[[EncodedFrame], object], frames: list[EncodedFrame]) -> float:
    start = time.process_time_ns()
    for frame in frames:
        send(frame)
    return (time.process_time_ns() - start) / len(frames)


def measure(profile: Profile, listeners: int, rounds: int) -> dict[str, float]:
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sink.bind(("127.0.0.1", 0))
    host, port = sink.getsockname()
    sock = open_udp("127.0.0.1", 0, sndbuf=8 << 20)
    fanout = Fanout(sock, SendMethod.GSO, timestamp_offset=1)
    layout = "bundle"
    groups = plan_groups(
        range(1, 33),
        profile.channel_bytes,
        layout,
        None,
        MAX_MEDIA_PAYLOAD,
        opus=not profile.is_pcm,
    )
    kind = payload_type_of(profile.codec, layout)
    for n in range(listeners):
        spec = StreamSpec(host, tuple(Group(n, kind, port, channels) for channels in groups))
        fanout.add(f"listener {n}", profile, spec)
    frames = frames_of(profile, max(20, 20_000 // listeners))
    first = fanout.send(frames[0])
    assert first == (listeners, listeners * len(groups), first.octets, 0), first
    audience = fanout._audiences[profile]
    sizes = [12] * len(groups)
    payloads = audience._table.part_lengths[1 : 2 * len(groups) : 2].tolist()
    gather = Bare(sock, audience._table)
    totals = [a + b for a, b in zip(sizes, payloads, strict=True)]
    flat = Bare(sock, flat_table(listeners, (host, port), totals))
    contenders = {"fanout": fanout.send, "gather": gather.send, "flat": flat.send}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, send in contenders.items():
            times[name].append(cpu(send, frames))
    frame_ns = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        f"ratio_{name}": statistics.median(
            a / b for a, b in zip(times["fanout"], times[name], strict=True)
        )
        for name in ("gather", "flat")
    }
    packets = listeners * len(groups)
    per_packet = {f"{name}_ns_per_packet": value / packets for name, value in frame_ns.items()}
    share = {"core_percent": frame_ns["fanout"] / profile.frame_us / 10}
    return {"listeners": listeners, "packets_per_frame": packets, **per_packet, **ratios, **share}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--listeners", default="1,20,200,1000")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--json", action="store_true")
    arguments = options.parse_args()
    for profile in (OPUS, L16):
        for listeners in map(int, arguments.listeners.split(",")):
            result = measure(profile, listeners, arguments.rounds)
            if arguments.json:
                print(json.dumps({"codec": profile.codec, **result}))
                continue
            print(
                f"{profile.codec:4} {listeners:5} listeners {result['packets_per_frame']:6} packets"
                f"  fan-out {result['fanout_ns_per_packet']:6.0f} ns/packet"
                f"  gather {result['gather_ns_per_packet']:6.0f}"
                f"  flat {result['flat_ns_per_packet']:6.0f}"
                f"  ratio {result['ratio_gather']:.2f} / {result['ratio_flat']:.2f}"
                f"  {result['core_percent']:.1f} % of a core",
                flush=True,
            )


if __name__ == "__main__":
    main()
