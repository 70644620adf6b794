"""Reading very many RTP packets cheaply: recvmmsg, UDP_GRO, kernel time stamps, numpy.

The receiving end of the benchmarks stands on the same two cores as what it measures, so it spends
no Python on a packet: a batch of messages becomes arrays.  Arrival times are the kernel's, so it
may read late (every few milliseconds) without bending a figure.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from protocols.datagram import SO_RCVBUFFORCE, SO_TIMESTAMPNS, UDP_GRO
from protocols.mmsg import IOVEC, MMSGHDR, SOL_UDP, libc_function

CONTROL: Final = 64
"""SO_TIMESTAMPNS takes 32 bytes and comes first, UDP_GRO the next 24."""
HEADER: Final = 12
ARRIVAL: Final = np.dtype(
    [("ssrc", "=u4"), ("sequence", "=u2"), ("timestamp", "=u4"), ("bytes", "=u2"), ("at", "=i8")]
)
"""One packet; ``bytes`` is the UDP payload, ``at`` Unix ns."""
_WIRE: Final = np.dtype(
    [("first", ">u2"), ("sequence", ">u2"), ("timestamp", ">u4"), ("ssrc", ">u4")]
)

Arrivals = npt.NDArray[np.void]


class BulkReader:
    """One UDP socket, read in batches.

    :param gro: let the kernel leave together what was sent together.
    :param slot: bytes kept for one message; a longer one is counted in :attr:`truncated`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        gro: bool = True,
        slot: int = 65_536,
        batch: int = 128,
        buffer_bytes: int = 64 << 20,
    ) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if gro:
            self.socket.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.socket.bind((host, port))
        self.port = int(self.socket.getsockname()[1])
        self.truncated = 0
        self._batch, self._slot = batch, slot
        self._call = libc_function("recvmmsg", hold_lock=True)
        self._data = np.zeros(batch * slot, np.uint8)
        self._control = np.zeros((batch, CONTROL), np.uint8)
        self._parts = np.zeros(batch, IOVEC)
        self._messages = messages = np.zeros(batch, MMSGHDR)
        rows = np.arange(batch, dtype=np.uint64)
        self._parts["base"] = self._data.ctypes.data + rows * slot
        self._parts["length"] = slot
        messages["parts"] = self._parts.ctypes.data + rows * IOVEC.itemsize
        messages["part_count"] = 1
        messages["control"] = self._control.ctypes.data + rows * CONTROL
        messages["control_length"] = CONTROL
        self._times = self._control.view("=i8")[:, 2:4]
        self._gro_kind = self._control.view("=i4")[:, 10:12]  # level, type
        self._gro_size = self._control.view("=i4")[:, 12]

    def close(self) -> None:
        self.socket.close()

    def discard(self) -> tuple[int, int]:
        """Read all there is; messages and bytes."""
        count = octets = 0
        for got in self._batches():
            count += got
            octets += int(self._messages["length"][:got].sum())
        return count, octets

    def drain(self) -> Iterator[Arrivals]:
        """Read all there is, as arrays of :data:`ARRIVAL`."""
        for count in self._batches():
            yield self._arrivals(count)

    def _batches(self) -> Iterator[int]:
        messages = self._messages
        while True:
            # Cleared, so that what an earlier message left behind is not read as a GRO size.
            self._gro_kind[:] = 0
            messages["control_length"] = CONTROL
            count = self._call(
                self.socket.fileno(), messages.ctypes.data, self._batch, socket.MSG_DONTWAIT, None
            )
            if count < 0:
                error = ctypes.get_errno()
                if error in {errno.EAGAIN, errno.EINTR}:
                    return
                raise OSError(error, os.strerror(error))
            yield count
            if count < self._batch:
                return

    def _arrivals(self, count: int) -> Arrivals:
        lengths = self._messages["length"][:count].astype(np.int64)
        cut = self._messages["flags"][:count] & socket.MSG_TRUNC != 0
        if cut.any():
            self.truncated += int(cut.sum())
        joined = (self._gro_kind[:count] == (SOL_UDP, UDP_GRO)).all(axis=1)
        sizes = np.where(joined, self._gro_size[:count], np.maximum(lengths, 1))
        segments = -(-lengths // sizes)
        message = np.repeat(np.arange(count), segments)
        number = np.arange(len(message)) - np.repeat(np.cumsum(segments) - segments, segments)
        start = number * sizes[message]
        at = self._times[:count, 0] * 1_000_000_000 + self._times[:count, 1]
        positions = (message * self._slot + start)[:, None] + np.arange(HEADER)
        headers = self._data[positions].view(_WIRE)[:, 0]
        arrivals = np.empty(len(message), ARRIVAL)
        for name in ("ssrc", "sequence", "timestamp"):
            arrivals[name] = headers[name]
        arrivals["bytes"] = np.minimum(sizes[message], lengths[message] - start)
        arrivals["at"] = at[message]
        return arrivals


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """What became of one SSRC's packets in a window of time.

    :ivar expected: by the sequence numbers between the first and the last.
    :ivar due: by the time stamps: also frames that the server itself left out.
    :ivar jitter: RFC 3550 section 6.4.1 after each packet, ms.
    """

    ssrc: int
    received: int
    expected: int
    due: int
    duplicates: int
    reordered: int
    octets: int
    jitter: npt.NDArray[np.float64] = field(repr=False)


def streams(arrivals: Arrivals, clock_rate: int, frame_ms: float) -> list[StreamFigures]:
    """Sort out a window's packets by SSRC."""
    order = np.argsort(arrivals["ssrc"], kind="stable")
    ordered = arrivals[order]
    bounds = np.flatnonzero(np.diff(ordered["ssrc"])) + 1
    parts = np.split(ordered, bounds) if len(ordered) else []
    return [_figures(part, clock_rate, frame_ms) for part in parts]


def _figures(part: Arrivals, clock_rate: int, frame_ms: float) -> StreamFigures:
    sequences = np.unwrap(part["sequence"].astype(np.int64), period=65_536)
    media = np.unwrap(part["timestamp"].astype(np.int64), period=1 << 32)
    frames = (media.max() - media.min()) / clock_rate * 1000 / frame_ms
    distinct = len(np.unique(sequences))
    return StreamFigures(
        ssrc=int(part["ssrc"][0]),
        received=distinct,
        expected=int(sequences.max() - sequences.min()) + 1,
        due=round(frames) + 1,
        duplicates=len(sequences) - distinct,
        reordered=int((np.diff(sequences) < 0).sum()),
        octets=int(part["bytes"].sum(dtype=np.int64)),
        jitter=jitter_ms(part["timestamp"], part["at"], clock_rate),
    )


def jitter_ms(
    timestamps: npt.NDArray[np.uint32], arrivals_ns: npt.NDArray[np.int64], clock_rate: int
) -> npt.NDArray[np.float64]:
    """Interarrival jitter after each packet but the first (RFC 3550 A.8), in ms."""
    media = np.unwrap(timestamps.astype(np.int64), period=1 << 32) * (1000 / clock_rate)
    transit = (arrivals_ns - arrivals_ns[0]) / 1e6 - (media - media[0])
    filtered: Any = lfilter([1 / 16], [1, -15 / 16], np.abs(np.diff(transit)))
    return np.asarray(filtered, np.float64)
