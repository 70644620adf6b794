"""Payloads of all distinct groups of channels of one frame, each written once, at fixed addresses.

Listeners with the same group share its payload.  One frame's payloads are made by a handful of
vectorised copies, whatever the number of listeners; nothing is encoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocols.errors import LocalProtocolError
from protocols.rtp.payload import Octets, frame_length_bytes

Grouping = tuple[int, ...]
"""1-based channel ids in the order they have in the packet."""
AnyArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Bundles(Protocol):
    """Payloads of several groupings.

    A payload's length is ``units * scale + offset`` with the grouping's own ``units``.

    :ivar addresses: uint64, memory address of each grouping's payload.
    :ivar units: int64, of each grouping.
    """

    addresses: npt.NDArray[np.uint64]
    units: npt.NDArray[np.int64]
    scale: int
    offset: int

    def fits(self, payload: Octets) -> bool:
        """Whether :meth:`fill` can take this frame; if not, build new bundles."""
        ...

    def fill(self, payload: Octets) -> None:
        """Write all payloads of one frame, and set :attr:`scale` and :attr:`offset`."""
        ...


class OpusBundles:
    """MULTIOPUS payloads (RFC 6716 appendix B); a group of one is the plain packet.

    A frame's packets are laid out twice, self-delimited and plain, and the rows of all groups
    are gathered from these in one step.

    :param packet_bytes: size of each of the frame's packets (hard CBR).
    """

    def __init__(self, groupings: Sequence[Grouping], channels: int, packet_bytes: int) -> None:
        _check(groupings, channels)
        self._shape = (channels, packet_bytes)
        length = np.frombuffer(frame_length_bytes(packet_bytes - 1), np.uint8)
        extra = len(length)
        pitch = packet_bytes + extra
        framed = np.zeros((2 * channels, pitch), np.uint8)
        framed[:channels, 1 : 1 + extra] = length
        self._framed = framed
        self._framed_toc = framed[:channels, 0]
        self._framed_data = framed[:channels, 1 + extra :]
        self._plain = framed[channels:, :packet_bytes]
        rows = [
            channel - 1 + (channels if place == len(grouping) - 1 else 0)
            for grouping in groupings
            for place, channel in enumerate(grouping)
        ]
        self._rows = np.array(rows, np.intp)
        self._checked = False
        self._out = np.zeros((len(rows), pitch), np.uint8)
        self.units = np.array([len(grouping) for grouping in groupings], np.int64)
        starts = np.cumsum(self.units) - self.units
        self.addresses = (self._out.ctypes.data + starts * pitch).astype(np.uint64)
        self.scale = pitch
        self.offset = -extra

    def fits(self, payload: Octets) -> bool:
        return payload.shape == self._shape

    def fill(self, payload: Octets) -> None:
        """:raises LocalProtocolError: a packet holds more than one frame (code 1..3).

        That is an encoder's setting, the same in every frame, so it is checked in the first.
        """
        if not self._checked:
            if (payload[self._rows % len(payload), 0] & 3).any():
                raise LocalProtocolError("only Opus packets of one frame can be bundled")
            self._checked = True
        self._framed_toc[:] = payload[:, 0]
        self._framed_data[:] = payload[:, 1:]
        self._plain[:] = payload
        # "clip" spares numpy a buffered copy; the rows are in range by construction
        self._framed.take(self._rows, axis=0, out=self._out, mode="clip")


class PcmBundles:
    """Interleaved L16 or L24 payloads (RFC 3551 section 4.5.11, RFC 3190 section 4).

    Groups of one size are filled together, place by place: first all groups' first channel, then
    all groups' second.  For L24 each byte of the samples is a step of its own, because numpy
    copies single bytes and 16-bit words fast and anything of three bytes slowly.  Where the
    channels of a step are evenly spaced (all channels in order, the usual case) they are a slice
    of the frame; others are gathered from a copy with one row per channel.  The number of samples
    may change from frame to frame (44.1 kHz) up to ``max_samples``.
    """

    def __init__(
        self, groupings: Sequence[Grouping], channels: int, width: int, max_samples: int
    ) -> None:
        _check(groupings, channels)
        self._shape = (channels, width)
        self._element = np.dtype(np.uint16 if width == 2 else np.uint8)
        planes = width // self._element.itemsize
        self._rows = np.zeros((planes, channels, max_samples), self._element)
        sizes = np.array([len(grouping) for grouping in groupings], np.int64)
        self.units = sizes * width
        self.addresses = np.zeros(len(groupings), np.uint64)
        self.scale = 0
        self.offset = 0
        self._slices: list[tuple[int, slice, AnyArray]] = []  # plane, channels, where to
        self._gathers: list[tuple[int, npt.NDArray[np.intp], AnyArray]] = []
        for size in set(sizes.tolist()):
            members = np.flatnonzero(sizes == size).tolist()
            out = np.zeros((len(members), max_samples, size, planes), self._element)
            starts = np.arange(len(members), dtype=np.uint64) * out[0].nbytes
            self.addresses[members] = out.ctypes.data + starts
            columns = np.array([groupings[member] for member in members], np.intp) - 1
            for place in range(size):
                even = _evenly_spaced(columns[:, place].tolist())
                for plane in range(planes):
                    to = out[:, :, place, plane]
                    if even is None:
                        self._gathers.append((plane, columns[:, place], to))
                    else:
                        self._slices.append((plane, even, to))

    def fits(self, payload: Octets) -> bool:
        return payload.shape[1:] == self._shape and len(payload) <= self._rows.shape[2]

    def fill(self, payload: Octets) -> None:
        n = self.scale = len(payload)
        by_channel = np.ascontiguousarray(payload).view(self._element).transpose(2, 1, 0)
        for plane, channels, out in self._slices:
            out[:, :n] = by_channel[plane, channels]
        if self._gathers:
            rows = self._rows[:, :, :n]
            rows[:] = by_channel
            for plane, columns, out in self._gathers:
                out[:, :n] = rows[plane].take(columns, axis=0)


def _evenly_spaced(columns: list[int]) -> slice | None:
    """The slice that gives these columns; None where there is none."""
    start = columns[0]
    step = columns[1] - start if len(columns) > 1 else 1
    if step < 1 or columns != list(range(start, start + step * len(columns), step)):
        return None
    return slice(start, columns[-1] + 1, step)


def _check(groupings: Sequence[Grouping], channels: int) -> None:
    for grouping in groupings:
        if not grouping or min(grouping) < 1 or max(grouping) > channels:
            raise LocalProtocolError(f"group {grouping} of a frame with {channels} channels")
