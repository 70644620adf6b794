"""STR-3, STR-30: payloads of any groups of channels are those channels, byte for byte."""

from __future__ import annotations

import ctypes

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import LocalProtocolError
from protocols.rtp.bundling import Bundles, OpusBundles, PcmBundles
from protocols.rtp.payload import multiopus_join, multiopus_split, pcm_to_wire, wire_to_pcm

GROUPINGS = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=12, unique=True).map(tuple),
    min_size=1,
    max_size=12,
    unique=True,
)


def payloads(bundles: Bundles) -> list[bytes]:
    lengths = (bundles.units * bundles.scale + bundles.offset).tolist()
    return [
        ctypes.string_at(int(address), length)
        for address, length in zip(bundles.addresses.tolist(), lengths, strict=True)
    ]


class OpusTests(SynchronousTestCase):
    @given(GROUPINGS, st.integers(1, 600), st.integers(0, 2**32))
    @settings(max_examples=60)
    def test_payloads(self, groupings: list[tuple[int, ...]], size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        bundles = OpusBundles(groupings, 12, size)
        for _ in range(2):
            packets = rng.integers(0, 256, (12, size), np.uint8)
            packets[:, 0] &= 0xFC
            self.assertTrue(bundles.fits(packets))
            bundles.fill(packets)
            for grouping, payload in zip(groupings, payloads(bundles), strict=True):
                rows = packets[np.array(grouping) - 1]
                out = np.zeros(20_000, np.uint8)
                self.assertEqual(payload, out[: multiopus_join(rows, out)].tobytes())
                self.assertEqual(
                    multiopus_split(payload, len(grouping)), [row.tobytes() for row in rows]
                )

    def test_only_single_frames(self) -> None:
        packets = np.full((3, 20), 8, np.uint8)
        packets[2, 0] = 9  # nobody wants channel 3, so its row may be anything
        OpusBundles([(1, 2)], 3, 20).fill(packets)
        self.assertRaises(LocalProtocolError, OpusBundles([(1, 3)], 3, 20).fill, packets)

    def test_other_shapes_do_not_fit(self) -> None:
        bundles = OpusBundles([(1,)], 3, 20)
        self.assertFalse(bundles.fits(np.zeros((3, 21), np.uint8)))
        self.assertFalse(bundles.fits(np.zeros((4, 20), np.uint8)))

    def test_unknown_channels(self) -> None:
        for grouping in ((13,), (0,), ()):
            self.assertRaises(LocalProtocolError, OpusBundles, [(1,), grouping], 12, 60)


class PcmTests(SynchronousTestCase):
    @given(GROUPINGS, st.sampled_from([2, 3]), st.integers(0, 2**32))
    @settings(max_examples=60)
    def test_payloads_of_changing_length(
        self, groupings: list[tuple[int, ...]], width: int, seed: int
    ) -> None:
        """44.1 kHz: 220 and 221 samples in turn."""
        rng = np.random.default_rng(seed)
        bundles = PcmBundles(groupings, 12, width, 221)
        for samples in (220, 221, 220):
            pcm = rng.integers(-(2**31), 2**31, (samples, 12), np.int32)
            frame = pcm_to_wire(pcm, width)
            self.assertTrue(bundles.fits(frame))
            bundles.fill(frame)
            for grouping, payload in zip(groupings, payloads(bundles), strict=True):
                columns = np.array(grouping) - 1
                self.assertEqual(payload, frame[:, columns].tobytes())
                self.assertEqual(wire_to_pcm(payload, len(grouping), width).shape[0], samples)

    def test_what_does_not_fit(self) -> None:
        bundles = PcmBundles([(1,)], 4, 3, 240)
        self.assertFalse(bundles.fits(np.zeros((241, 4, 3), np.uint8)))
        self.assertFalse(bundles.fits(np.zeros((240, 4, 2), np.uint8)))
        self.assertFalse(bundles.fits(np.zeros((240, 5, 3), np.uint8)))
        self.assertTrue(bundles.fits(np.zeros((220, 4, 3), np.uint8)))

    def test_a_frame_that_is_a_slice_of_something(self) -> None:
        whole = np.arange(240 * 8 * 2, dtype=np.uint16).astype(np.uint8).reshape(240, 8, 2)
        part = whole[:, ::2]
        bundles = PcmBundles([(2, 4)], 4, 2, 240)
        bundles.fill(part)
        self.assertEqual(payloads(bundles), [part[:, [1, 3]].tobytes()])
