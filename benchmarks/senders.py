"""The fan-out and two bare loops that send the same bytes, in one process, in turn.

    python -m benchmarks.senders CASE HOST PORT,PORT...

CASE is a key of :data:`CASES`; each port is a listener.  An order is ``PACE FRAMES``; PACE is
``paced`` (a frame every 5 ms, as the server does) or ``rush`` (one after another).  All three
take turns, frame by frame or ten by ten, so that whatever slows the machine slows all of them.
The answer has for each the CPU ns of its send calls in so many frames.

``fanout`` is :class:`~m32net.streaming.fanout.Fanout` as the server has it.  ``gather`` repeats
sendmmsg over the messages of its last frame as they are.  ``flat`` is the barest there is: one
buffer for each listener, nothing gathered, nothing shared, nothing updated.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from m32net.audio.frame import EncodedFrame
from m32net.streaming.fanout import Fanout
from m32net.streaming.profile import MAX_MEDIA_PAYLOAD, Profile
from protocols.datagram import BatchSender, SendFailure, SendMethod, open_udp
from protocols.mmsg import MAX_BATCH, MMSGHDR, SendTable, libc_function, socket_addresses
from protocols.rtp.packetizer import Group, Layout, StreamSpec, payload_type_of, plan_groups

CHANNELS: Final = 32
FRAME_S: Final = 0.005
RUSH_FRAMES: Final = 10
WARM_UP: Final = 40
"""Frames before any is timed: streams begin with packets that carry the time extension."""


class Case(NamedTuple):
    """What is sent to each listener."""

    title: str
    profile: Profile
    layout: Layout


CASES: Final = {
    "l16-mono": Case("L16, one packet a channel", Profile("L16", 48_000, 5_000), "mono"),
    "opus-bundle": Case("Opus, bundled", Profile("opus", 48_000, 5_000, 96_000), "bundle"),
}


class Remembering:
    """The fan-out's sender, which also remembers what it sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sender = BatchSender(sock, SendMethod.GSO)
        self.table: SendTable

    def send(self, table: SendTable) -> list[SendFailure]:
        self.table = table
        return self._sender.send(table)


class Bare:
    """``sendmmsg`` over a table, again and again."""

    def __init__(self, sock: socket.socket, table: SendTable) -> None:
        # As BatchSender does: a short call keeps the interpreter lock, a long one does not.
        self._call = libc_function("sendmmsg", hold_lock=table.count <= 48)
        self._fd = sock.fileno()
        self._table = table

    def send(self, _frame: object) -> None:
        at, end = 0, self._table.count
        while at < end:
            address = self._table.address + at * MMSGHDR.itemsize
            sent = self._call(self._fd, address, min(MAX_BATCH, end - at), 0)
            if sent <= 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
            at += sent


def flattened(table: SendTable) -> SendTable:
    """The same messages with one buffer each."""
    messages = [table.datagram(number) for number in range(table.count)]
    memory = np.frombuffer(b"".join(data for data, _ in messages), np.uint8).copy()
    lengths = np.array([len(data) for data, _ in messages], np.uint64)
    flat = SendTable(
        socket_addresses([address for _, address in messages]),
        bases=memory.ctypes.data + np.cumsum(lengths) - lengths,
        lengths=lengths,
        first_parts=np.arange(table.count),
        segmented=np.ones(table.count, bool),
        keep=(memory,),
    )
    flat.segment_sizes[:] = table.segment_sizes
    return flat


def specs(case: Case, host: str, ports: list[int]) -> list[StreamSpec]:
    profile = case.profile
    groups = plan_groups(
        range(1, CHANNELS + 1),
        profile.channel_bytes,
        case.layout,
        None,
        MAX_MEDIA_PAYLOAD,
        opus=not profile.is_pcm,
    )
    kind = payload_type_of(profile.codec, case.layout)
    return [
        StreamSpec(host, tuple(Group(100 * n + k, kind, port, g) for k, g in enumerate(groups)))
        for n, port in enumerate(ports)
    ]


def frames(profile: Profile, count: int) -> list[EncodedFrame]:
    """Noise of the right shape; ``count`` payloads, so that none stays in the cache by itself."""
    rng = np.random.default_rng(1)
    shape = (240, CHANNELS, 2) if profile.is_pcm else (CHANNELS, profile.packet_bytes)
    made = []
    for number in range(count):
        payload = rng.integers(0, 256, shape, np.uint8)
        if not profile.is_pcm:
            payload[:, 0] &= 0xFC  # a code 0 packet: one Opus frame
        made.append(EncodedFrame(profile, 240 * number, 240, 0, 0, payload))
    return made


def timed(
    senders: dict[str, Callable[[EncodedFrame], object]],
    given: list[EncodedFrame],
    count: int,
    paced: bool,
) -> dict[str, int]:
    """CPU ns of this thread in ``count`` calls of each; softirqs that run in them included."""
    spent = dict.fromkeys(senders, 0)
    due = time.monotonic()
    turn = 1 if paced else RUSH_FRAMES
    for start in range(0, count, turn):
        for name, send in senders.items():
            for number in range(start, start + turn):
                if paced:
                    due += FRAME_S
                    time.sleep(max(0.0, due - time.monotonic()))
                frame = given[number % len(given)]
                before = time.thread_time_ns()
                send(frame)
                spent[name] += time.thread_time_ns() - before
    return spent


def main() -> None:
    name, host, ports = sys.argv[1:]
    case = CASES[name]
    sock = open_udp("", 0, sndbuf=8 << 20)
    sender = Remembering(sock)
    fanout = Fanout(sock, SendMethod.GSO, timestamp_offset=1, sender=sender)
    for number, spec in enumerate(specs(case, host, [int(port) for port in ports.split(",")])):
        fanout.add(str(number), case.profile, spec)
    given = frames(case.profile, 16)
    packets = 0
    for number in range(WARM_UP):
        result = fanout.send(given[number % len(given)])
        if result.dropped:
            print(json.dumps({"failed": f"{result.dropped} packets not sent"}), flush=True)
            return
        packets = result.packets
        time.sleep(FRAME_S)
    senders: dict[str, Callable[[EncodedFrame], object]] = {
        "fanout": fanout.send,
        "gather": Bare(sock, sender.table).send,
        "flat": Bare(sock, flattened(sender.table)).send,
    }
    octets = sum(len(sender.table.datagram(k)[0]) for k in range(sender.table.count))
    ready = {"packets": packets, "messages": sender.table.count, "octets": octets}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        pace, count = line.split()
        answer = timed(senders, given, int(count), pace == "paced")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
