"""STR-3: L16 and L24 samples bit-exact; MULTIOPUS joined and split (RFC 6716 appendix B)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.rtp.payload import (
    frame_length_bytes,
    multiopus_bytes,
    multiopus_join,
    multiopus_split,
    pcm_to_wire,
    wire_to_pcm,
)

SAMPLES = st.lists(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3), min_size=1, max_size=20
)


def opus_packet(draw: st.DrawFn) -> bytes:
    """A legal packet of any code (RFC 6716 section 3.2)."""
    config = draw(st.integers(0, 31)) << 3
    code = draw(st.integers(0, 3))
    frame = st.integers(0, 600)
    if code == 0:
        return bytes([config]) + draw(st.binary(max_size=600))
    if code == 1:
        return bytes([config | 1]) + 2 * bytes([draw(st.integers(0, 255))]) * draw(frame)
    if code == 2:
        first, second = draw(frame), draw(frame)
        return bytes([config | 2]) + frame_length_bytes(first) + bytes(first + second)
    frames, vbr, padding = draw(st.integers(1, 6)), draw(st.booleans()), draw(st.integers(0, 600))
    lengths = [draw(frame)] * frames if not vbr else [draw(frame) for _ in range(frames)]
    head = bytes([config | 3, frames | (0x80 if vbr else 0) | (0x40 if padding else 0)])
    if padding:
        counted = padding
        while counted > 254:
            head += b"\xff"
            counted -= 254
        head += bytes([counted])
    if vbr:
        head += b"".join(map(frame_length_bytes, lengths[:-1]))
    return head + bytes(i & 0xFF for i in range(sum(lengths))) + bytes(padding)


def self_delimited(packet: bytes) -> bytes:
    """RFC 6716 appendix B, written from the figures: insert the length where it belongs."""
    code = packet[0] & 3
    if code == 0:
        return packet[:1] + frame_length_bytes(len(packet) - 1) + packet[1:]
    if code == 1:
        return packet[:1] + frame_length_bytes((len(packet) - 1) // 2) + packet[1:]
    at = 1

    def length() -> int:
        nonlocal at
        value, at = packet[at], at + 1
        if value >= 252:
            value, at = value + 4 * packet[at], at + 1
        return value

    if code == 2:
        first = length()
        return packet[:at] + frame_length_bytes(len(packet) - at - first) + packet[at:]
    frames, at, padding = packet[1] & 63, 2, 0
    if packet[1] & 0x40:
        while packet[at] == 255:
            padding, at = padding + 254, at + 1
        padding, at = padding + packet[at], at + 1
    if packet[1] & 0x80:
        before = sum(length() for _ in range(frames - 1))
        last = len(packet) - at - padding - before
    else:
        last = (len(packet) - at - padding) // frames
    return packet[:at] + frame_length_bytes(last) + packet[at:]


class PcmTests(SynchronousTestCase):
    @given(SAMPLES)
    def test_l24_is_the_top_24_bits(self, rows: list[list[int]]) -> None:
        samples = np.array(rows, np.int32)
        wire = pcm_to_wire(samples, 3)
        self.assertEqual(wire.shape, (*samples.shape, 3))
        expected = b"".join((v >> 8).to_bytes(3, "big", signed=True) for row in rows for v in row)
        self.assertEqual(wire.tobytes(), expected)
        back = wire_to_pcm(wire.tobytes(), 3, 3)
        np.testing.assert_array_equal(back, samples & ~0xFF)

    @given(SAMPLES)
    def test_l16_is_rounded_and_saturated(self, rows: list[list[int]]) -> None:
        samples = np.array(rows, np.int32)
        wire = pcm_to_wire(samples, 2)
        expected = b"".join(
            min(0x7FFF, (v + 0x8000) >> 16).to_bytes(2, "big", signed=True)
            for row in rows
            for v in row
        )
        self.assertEqual(wire.tobytes(), expected)
        back = wire_to_pcm(memoryview(wire.tobytes()), 3, 2)
        self.assertEqual(pcm_to_wire(back, 2).tobytes(), expected)
        self.assertEqual(back.dtype, np.int32)

    def test_test_source_values(self) -> None:
        """Channel n is n on L16 and n << 8 on L24."""
        samples = np.array([[n << 16 for n in range(1, 33)]] * 4, np.int32)
        self.assertEqual(pcm_to_wire(samples, 2)[0, 4].tolist(), [0, 5])
        self.assertEqual(pcm_to_wire(samples, 3)[3, 31].tolist(), [0, 32, 0])

    def test_refused(self) -> None:
        self.assertRaises(RemoteProtocolError, wire_to_pcm, bytes(7), 2, 2)
        self.assertRaises(LocalProtocolError, wire_to_pcm, bytes(8), 2, 4)
        self.assertRaises(LocalProtocolError, wire_to_pcm, bytes(8), 0, 2)
        self.assertRaises(LocalProtocolError, pcm_to_wire, np.zeros((1, 1), np.int32), 4)


class MultiopusTests(SynchronousTestCase):
    @given(st.integers(1, 40), st.integers(1, 1276), st.integers(0, 2**32))
    def test_join_then_split(self, count: int, size: int, seed: int) -> None:
        packets = np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)
        packets[:, 0] &= 0xFC
        out = np.zeros(multiopus_bytes(count, size) + 5, np.uint8)
        length = multiopus_join(packets, out)
        self.assertEqual(length, multiopus_bytes(count, size))
        self.assertEqual(bytes(out[length:]), bytes(5))
        payload = out[:length].tobytes()
        self.assertEqual(
            payload, b"".join([*map(self_delimited, map(bytes, packets[:-1])), bytes(packets[-1])])
        )
        self.assertEqual(multiopus_split(payload, count), [bytes(p) for p in packets])

    @given(st.lists(st.composite(opus_packet)(), min_size=1, max_size=4))
    def test_splits_every_code(self, packets: list[bytes]) -> None:
        payload = b"".join([*map(self_delimited, packets[:-1]), packets[-1]])
        self.assertEqual(multiopus_split(payload, len(packets)), packets)

    @given(st.binary(max_size=300), st.integers(1, 64))
    def test_garbage_raises_nothing_but_remote_errors(self, data: bytes, count: int) -> None:
        try:
            packets = multiopus_split(data, count)
        except RemoteProtocolError:
            return
        self.assertEqual(len(packets), count)
        self.assertEqual(
            b"".join([*map(self_delimited, packets[:-1]), packets[-1]])
            if all(p[0] & 3 == 0 and len(p) < 253 for p in packets)
            else data,
            data,
        )

    def test_cut_off_anywhere(self) -> None:
        packets = np.full((3, 300), 8, np.uint8)
        out = np.zeros(1000, np.uint8)
        payload = out[: multiopus_join(packets, out)].tobytes()
        for cut in (0, 1, 2, 3, 200, 302, 303, 604):
            with self.subTest(cut):
                self.assertRaises(RemoteProtocolError, multiopus_split, payload[:cut], 3)

    def test_several_frames_are_not_joined(self) -> None:
        packets = np.full((2, 10), 9, np.uint8)
        self.assertRaises(LocalProtocolError, multiopus_join, packets, np.zeros(50, np.uint8))
