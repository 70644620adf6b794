"""From channels to RTP packets, for many listeners at once: grouping, headers, when to extend.

Everything about the packets of one profile lies in numpy arrays with one row per packet of a
frame; a frame changes sequence numbers and time stamps in a few vectorised steps.  A stream has
one packet a frame, or several of equal length in time, its parts.  The payloads these headers go
with are built by :mod:`protocols.rtp.bundling`; sending both is not done here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from protocols.errors import LocalProtocolError
from protocols.rtp.extension import (
    EVENT_FLAGS_ID,
    EXTENSION_BYTES,
    NTP64_ID,
    ONE_BYTE_PROFILE,
    TIME_EXTENSION,
    EventFlags,
)
from protocols.rtp.packet import EXTENSION_BIT, HEADER_BYTES, RTP_HEADER, VERSION_2
from protocols.rtp.payload import PT_L16, PT_L24, PT_MULTIOPUS, PT_OPUS, multiopus_bytes

Layout = Literal["mono", "bundle"]
Rows = npt.NDArray[np.intp]

HEADER_SLOT: Final = np.dtype(
    {
        "names": ["header", "extension"],
        "formats": [RTP_HEADER, TIME_EXTENSION],
        "offsets": [0, HEADER_BYTES],
        "itemsize": 32,
    }
)
"""Header and time extension of one packet, contiguous; the first 12 or 28 bytes are sent."""

EXTENDED_BYTES: Final = HEADER_BYTES + EXTENSION_BYTES
RUN_FRAMES: Final = 3
"""Frames in a row that carry the time extension (STR-52), so that one lost packet is no matter."""
MAX_PARTS: Final = 20
"""Packets a stream has in a frame at most: 0.25 ms of a frame of 5 ms."""

_ONE: Final = np.uint16(1)
_GOLDEN_RATIO: Final = 0.618_033_988_749_895


@dataclass(frozen=True, slots=True)
class Group:
    """One RTP stream of one listener: the channels that share its packets.

    :ivar channels: 1-based ids in the order they have in the packet.
    :ivar first_sequence: sequence number of the first packet, random (RFC 3550 section 5.1).
    :ivar parts: packets that a frame is divided into in time; only PCM can be.
    """

    ssrc: int
    payload_type: int
    udp_port: int
    channels: tuple[int, ...]
    first_sequence: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """All RTP streams of one listener, sent together frame by frame.

    :ivar host: its IPv4 address.
    """

    host: str
    groups: tuple[Group, ...]


def payload_type_of(codec: str, layout: Layout) -> int:
    """The payload type of ``opus``, ``L16`` or ``L24`` in a layout."""
    if codec == "opus":
        return PT_MULTIOPUS if layout == "bundle" else PT_OPUS
    return {"L16": PT_L16, "L24": PT_L24}[codec]


def plan_groups(
    channels: Sequence[int],
    channel_bytes: int,
    layout: Layout,
    max_group: int | None,
    max_payload: int,
    *,
    opus: bool,
) -> tuple[tuple[int, ...], ...]:
    """Divide a listener's channels into packets.

    As few groups as fit, of one size but for the last, which may be smaller: GSO needs equal
    sizes.  So 32 channels of which 23 fit make 16 + 16.

    :param channel_bytes: payload bytes of one channel in a frame, at most.
    :param max_group: channels in a group at most; None for no such limit.
    :param opus: whether self-delimiting framing adds to the size of a bundle.
    :raises LocalProtocolError: not even one channel fits.
    """
    if channel_bytes > max_payload:
        raise LocalProtocolError(f"{channel_bytes} bytes a channel do not fit in {max_payload}")
    if not channels:
        return ()
    most = 1
    if layout == "bundle":
        limit = len(channels) if max_group is None else max(1, min(max_group, len(channels)))
        while most < limit and bundle_bytes(most + 1, channel_bytes, opus=opus) <= max_payload:
            most += 1
    return _balanced(channels, most)


def plan_parts(
    channels: Sequence[int], samples: int, width: int, max_group: int, max_payload: int
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Divide a listener's channels into groups of PCM, and each frame of these into packets.

    Groups are as in :func:`plan_groups`, but of ``max_group`` channels even where a frame of so
    many does not fit a packet: it is divided into parts of equal length, as few as fit.  Where
    :data:`MAX_PARTS` are not enough, groups get smaller.

    :param samples: of each channel in a frame.
    :param width: bytes per sample.
    :returns: the groups, and the number of parts, which is the same for all of them.
    :raises LocalProtocolError: not even one channel fits.
    """
    if not channels:
        return (), 1
    for most in range(max(1, min(max_group, len(channels))), 0, -1):
        if fewest_parts(samples, most * width, max_payload) is not None:
            groups = _balanced(channels, most)
            # fewer channels than fit never need more parts
            parts = fewest_parts(samples, len(groups[0]) * width, max_payload)
            assert parts is not None
            return groups, parts
    raise LocalProtocolError(f"no part of {samples} samples of {width} bytes fits {max_payload}")


def fewest_parts(samples: int, sample_bytes: int, max_payload: int) -> int | None:
    """The fewest equal parts of a frame of which each fits; None if there are none such.

    :param sample_bytes: of one sample of all channels.
    """
    for parts in range(1, MAX_PARTS + 1):
        if samples % parts == 0 and samples // parts * sample_bytes <= max_payload:
            return parts
    return None


def _balanced(channels: Sequence[int], most: int) -> tuple[tuple[int, ...], ...]:
    """As few groups of at most ``most`` as there can be, of one size but for the last."""
    count = -(-len(channels) // most)
    size = -(-len(channels) // count)
    ordered = tuple(channels)
    return tuple(ordered[at : at + size] for at in range(0, len(ordered), size))


def bundle_bytes(channels: int, channel_bytes: int, *, opus: bool) -> int:
    """Payload bytes of a group."""
    return multiopus_bytes(channels, channel_bytes) if opus else channels * channel_bytes


class HeaderTable:
    """RTP headers of many streams, one row for each packet of a frame.

    The rows of a stream are adjacent, its parts in order.

    :ivar slots: :data:`HEADER_SLOT`; what is sent.
    :ivar sequence: uint16, native; the number each row sent last.
    :ivar lengths: uint64; bytes of each slot to send, 12 or 28.
    :ivar parts: uint16; packets a frame has in the row's stream.
    :ivar part: uint16; which of them the row is, from 0.
    :ivar divided: whether any stream has more than one.
    """

    def __init__(
        self,
        slots: npt.NDArray[np.void],
        sequence: npt.NDArray[np.uint16],
        parts: npt.NDArray[np.uint16],
        part: npt.NDArray[np.uint16],
    ) -> None:
        self.slots = slots
        self.sequence = sequence
        self.parts = parts
        self.part = part
        self.divided = bool((parts > 1).any())
        header, extension = slots["header"], slots["extension"]
        self._flags = header["flags"]
        self._sequence_wire = header["sequence_number"]
        self._timestamp_wire = header["timestamp"]
        self._ntp_wire = extension["ntp"]
        self._event_flags = extension["flags"]
        # without parts one number serves all rows: what most listeners have, and faster
        self._step = parts if self.divided else _ONE
        self._behind: npt.NDArray[np.uint32] | None = None
        extended = (self._flags & EXTENSION_BIT) != 0
        self.lengths = np.where(extended, EXTENDED_BYTES, HEADER_BYTES).astype(np.uint64)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> HeaderTable:
        """Headers of new streams, before their first packet."""
        parts = np.array([group.parts for group in groups], np.int64)
        stream = np.repeat(np.arange(len(groups)), parts)
        part = np.arange(len(stream)) - (np.cumsum(parts) - parts)[stream]
        slots = np.zeros(len(stream), HEADER_SLOT)
        header, extension = slots["header"], slots["extension"]
        header["flags"] = VERSION_2
        header["marker_type"] = np.array([group.payload_type for group in groups], np.uint8)[stream]
        header["ssrc"] = np.array([group.ssrc for group in groups], np.uint32)[stream]
        extension["profile"] = ONE_BYTE_PROFILE
        extension["words"] = 3
        extension["ntp_element"] = NTP64_ID << 4 | 7
        extension["flags_element"] = EVENT_FLAGS_ID << 4
        first = np.array([group.first_sequence for group in groups], np.int64)
        last = (first - parts)[stream] + part
        return cls(
            slots,
            (last & 0xFFFF).astype(np.uint16),
            parts[stream].astype(np.uint16),
            part.astype(np.uint16),
        )

    @classmethod
    def joined(cls, tables: Iterable[HeaderTable], keep: npt.NDArray[np.bool_]) -> HeaderTable:
        """The rows of several tables, one after the other, of which ``keep`` says yes.

        Each stream goes on exactly as it was.
        """
        several = list(tables)
        return cls(
            # without dtype numpy would make the fields native and lose the network byte order
            np.concatenate([one.slots for one in several], dtype=HEADER_SLOT)[keep],
            np.concatenate([one.sequence for one in several])[keep],
            np.concatenate([one.parts for one in several])[keep],
            np.concatenate([one.part for one in several])[keep],
        )

    def __len__(self) -> int:
        return len(self.slots)

    def space(self, samples: int) -> None:
        """Set the length of the frames that follow, which the parts' time stamps divide.

        :param samples: of each channel; a multiple of every stream's parts.
        """
        if self.divided:
            self._behind = self.part * (samples // self.parts.astype(np.uint32))

    def advance(self, timestamp: int) -> None:
        """On to the next frame: each row's next number; one time stamp for all first parts."""
        np.add(self.sequence, self._step, out=self.sequence)
        self._sequence_wire[:] = self.sequence
        timestamp &= 0xFFFF_FFFF
        if self._behind is None:
            self._timestamp_wire[:] = timestamp
        else:
            self._timestamp_wire[:] = self._behind + np.uint32(timestamp)

    def extend(self, rows: Rows, flags: npt.NDArray[np.uint8] | int) -> None:
        """Let these streams' packets carry the time extension from now on."""
        self._flags[rows] = VERSION_2 | EXTENSION_BIT
        self._event_flags[rows] = flags
        self.lengths[rows] = EXTENDED_BYTES

    def stamp(self, rows: Rows, ntp: int) -> None:
        """Set the send time of these streams' extensions, a 64-bit NTP time stamp."""
        self._ntp_wire[rows] = ntp

    def plain(self, rows: Rows) -> None:
        """Let these streams' packets carry no extension from now on."""
        self._flags[rows] = VERSION_2
        self.lengths[rows] = HEADER_BYTES


class ExtensionSchedule:
    """Who carries the time extension in which frame (STR-52).

    Three frames in a row at the start, and then every ``interval`` frames, at a phase of its own
    for each, so that not all grow in the same frame.

    :ivar running: who carries it in the current frame, with its flags.
    """

    def __init__(self, interval: int) -> None:
        self.interval = max(RUN_FRAMES + 1, interval)
        self.running: dict[Hashable, EventFlags] = {}
        self._phases: dict[int, set[Hashable]] = {}
        self._phase_of: dict[Hashable, int] = {}
        self._ends: dict[Hashable, int] = {}
        self._due: dict[Hashable, EventFlags] = {}
        self._joined = 0

    def join(self, key: Hashable) -> None:
        """``key`` is to carry it in the next three frames, and regularly from then on."""
        phase = int(self._joined * _GOLDEN_RATIO % 1.0 * self.interval)
        self._joined += 1
        self._phases.setdefault(phase, set()).add(key)
        self._phase_of[key] = phase
        self.announce(key, EventFlags.TIME_SYNC)

    def leave(self, key: Hashable) -> None:
        phase = self._phase_of.pop(key)
        same = self._phases[phase]
        same.discard(key)
        if not same:
            del self._phases[phase]
        self._due.pop(key, None)
        self._ends.pop(key, None)
        self.running.pop(key, None)

    def announce(self, key: Hashable, flags: EventFlags) -> None:
        """``key`` is to carry it in the next three frames, with these flags."""
        self._due[key] = self._due.get(key, EventFlags.NONE) | flags

    def step(self, frame: int) -> list[Hashable] | None:
        """On to frame number ``frame``.

        :returns: who carried it in the frame before and no longer does; None if nothing changes.
        """
        regular = self._phases.get(frame % self.interval)
        if not (self._due or regular or self.running):
            return None
        ended = [key for key, end in self._ends.items() if end <= frame]
        for key in ended:
            del self._ends[key]
            del self.running[key]
        starting = self._due
        if regular:
            starting = {**dict.fromkeys(regular, EventFlags.TIME_SYNC), **starting}
        for key, flags in starting.items():
            self._ends[key] = frame + RUN_FRAMES
            self.running[key] = flags | EventFlags.TIME_SYNC
        self._due = {}
        if not (ended or starting):
            return None
        return [key for key in ended if key not in starting]
