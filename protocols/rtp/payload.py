"""Payload formats: L16 and L24 samples, and MULTIOPUS packets joined from mono ones.

Conversions only; what is sent when and to whom is not known here.  MULTIOPUS is the multistream
packet of RFC 7845 section 5.1.1 with mapping family 255 (N mono streams, no coupling, channel
k is stream k): every packet but the last in self-delimiting framing (RFC 6716 appendix B).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import LocalProtocolError, RemoteProtocolError

PT_L24: Final = 96
PT_MULTIOPUS: Final = 97
PT_L16: Final = 98
PT_OPUS: Final = 99
"""Dynamic payload types (RFC 3551 section 6), the same in every m32net stream."""

ENCODING_NAMES: Final[dict[int, str]] = {
    PT_L24: "L24",
    PT_MULTIOPUS: "MULTIOPUS",
    PT_L16: "L16",
    PT_OPUS: "opus",
}
"""``a=rtpmap`` encoding name of each payload type."""

MAX_OPUS_FRAME: Final = 1275
"""Most bytes in one Opus frame (RFC 6716 section 3.4, R2)."""

Octets = npt.NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview


def pcm_to_wire(samples: npt.NDArray[np.int32], width: int) -> Octets:
    """Left-justified samples as big-endian bytes.

    :param samples: int32, shape ``(n, channels)``, full scale 2**31.
    :param width: 2 (L16, RFC 3551 section 4.5.11; rounded half up and saturated) or 3 (L24,
        RFC 3190 section 4; the top 24 bits).
    :returns: uint8, shape ``(n, channels, width)``, C order.
    """
    n, channels = samples.shape
    if width == 3:
        wide = samples.astype(">i4").view(np.uint8).reshape(n, channels, 4)
        return np.ascontiguousarray(wide[:, :, :3])
    if width == 2:
        rounded = (samples >> 15) + 1 >> 1
        np.minimum(rounded, 0x7FFF, out=rounded)
        return rounded.astype(">i2").view(np.uint8).reshape(n, channels, 2)
    raise LocalProtocolError(f"PCM of {width} bytes a sample")


def wire_to_pcm(payload: Buffer, channels: int, width: int) -> npt.NDArray[np.int32]:
    """Interleaved big-endian samples as left-justified int32, shape ``(n, channels)``.

    :raises RemoteProtocolError: the payload is not a whole number of sample frames.
    """
    if width not in (2, 3) or channels < 1:
        raise LocalProtocolError(f"PCM of {channels} channels and {width} bytes a sample")
    octets = np.frombuffer(payload, np.uint8)
    n, rest = divmod(len(octets), channels * width)
    if rest:
        raise RemoteProtocolError(f"PCM: {len(octets)} bytes for {channels} x {width}")
    wide = np.zeros((n, channels, 4), np.uint8)
    wide[:, :, :width] = octets.reshape(n, channels, width)
    return wide.view(">i4").reshape(n, channels).astype(np.int32)


def frame_length_bytes(length: int) -> bytes:
    """The 1- or 2-byte frame length of RFC 6716 section 3.2.1."""
    if not 0 <= length <= MAX_OPUS_FRAME:
        raise LocalProtocolError(f"Opus: a frame of {length} bytes")
    if length < 252:
        return bytes([length])
    first = 252 + (length & 3)
    return bytes([first, (length - first) >> 2])


def self_delimited_overhead(packet_bytes: int) -> int:
    """Bytes that self-delimiting framing adds to a code 0 packet of this size."""
    return len(frame_length_bytes(packet_bytes - 1))


def multiopus_bytes(channels: int, packet_bytes: int) -> int:
    """Size of a MULTIOPUS payload of this many code 0 packets of one size."""
    return channels * packet_bytes + (channels - 1) * self_delimited_overhead(packet_bytes)


def multiopus_join(packets: Octets, out: Octets) -> int:
    """Join mono packets of one size into one multistream packet.

    :param packets: uint8, shape ``(N, size)``, N code 0 packets (one frame each).
    :param out: uint8, one-dimensional, C order, room for :func:`multiopus_bytes`.
    :returns: bytes written.
    :raises LocalProtocolError: a packet holds more than one frame (code 1..3).
    """
    count, size = packets.shape
    if (packets[:, 0] & 3).any():
        raise LocalProtocolError("MULTIOPUS: only code 0 packets can be joined")
    length = np.frombuffer(frame_length_bytes(size - 1), np.uint8)
    extra = len(length)
    body = (count - 1) * (size + extra)
    rows = out[:body].reshape(count - 1, size + extra)
    rows[:, 0] = packets[:-1, 0]
    rows[:, 1 : 1 + extra] = length
    rows[:, 1 + extra :] = packets[:-1, 1:]
    out[body : body + size] = packets[-1]
    return int(body + size)


def multiopus_split(payload: Buffer, count: int) -> list[bytes]:
    """Split a multistream packet into ``count`` plain mono packets.

    Packets of every frame count code (0..3, RFC 6716 section 3.2) are understood.

    :raises RemoteProtocolError: cut off or malformed.
    """
    view = memoryview(payload).cast("B")
    packets = []
    at = 0
    for _ in range(count - 1):
        packet, used = _take_self_delimited(view[at:])
        packets.append(packet)
        at += used
    if at >= len(view):
        raise RemoteProtocolError("MULTIOPUS: the last packet is missing")
    packets.append(bytes(view[at:]))
    return packets


def _take_self_delimited(view: memoryview) -> tuple[bytes, int]:
    """One self-delimited packet at the start of ``view``, in plain framing, and its size there."""
    if not view:
        raise RemoteProtocolError("MULTIOPUS: fewer packets than announced")
    code = view[0] & 3
    if code == 3:
        return _take_code_3(view)
    length, at = _frame_length(view, 1)
    if code == 0:
        head, data = 1, length
    elif code == 1:
        head, data = 1, 2 * length
    else:  # code 2: the first frame's length is part of the plain packet, the second's is not
        head = at
        second, at = _frame_length(view, at)
        data = length + second
    if at + data > len(view):
        raise RemoteProtocolError("MULTIOPUS: cut off in a frame")
    return bytes(view[:head]) + bytes(view[at : at + data]), at + data


def _take_code_3(view: memoryview) -> tuple[bytes, int]:
    """RFC 6716 section 3.2.5, figures 5 and 6, with the extra length of appendix B."""
    if len(view) < 2:
        raise RemoteProtocolError("MULTIOPUS: cut off in a code 3 packet")
    frames = view[1] & 0x3F
    if not 1 <= frames <= 48:
        raise RemoteProtocolError(f"MULTIOPUS: {frames} frames in a packet")
    at = 2
    padding = 0
    if view[1] & 0x40:
        while True:
            if at >= len(view):
                raise RemoteProtocolError("MULTIOPUS: cut off in the padding length")
            step = view[at]
            at += 1
            padding += 254 if step == 255 else step
            if step != 255:
                break
    data = 0
    if view[1] & 0x80:  # VBR: the lengths of all frames but the last are in the plain packet too
        for _ in range(frames - 1):
            length, at = _frame_length(view, at)
            data += length
        head = at
        length, at = _frame_length(view, at)
        data += length
    else:
        head = at
        length, at = _frame_length(view, at)
        data = frames * length
    data += padding
    if at + data > len(view):
        raise RemoteProtocolError("MULTIOPUS: cut off in a frame")
    return bytes(view[:head]) + bytes(view[at : at + data]), at + data


def _frame_length(view: memoryview, at: int) -> tuple[int, int]:
    """The frame length at ``at`` and the index after it."""
    if at >= len(view):
        raise RemoteProtocolError("MULTIOPUS: cut off before a length")
    first = view[at]
    if first < 252:
        return first, at + 1
    if at + 1 >= len(view):
        raise RemoteProtocolError("MULTIOPUS: cut off in a length")
    length = first + 4 * view[at + 1]
    if length > MAX_OPUS_FRAME:
        raise RemoteProtocolError(f"MULTIOPUS: a frame of {length} bytes")
    return length, at + 2
