"""CON-20: what is worth compressing, and inflating whatever comes within bounds."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols import compression as c

MIB = 1 << 20
JSON = json.dumps([{"id": n, "name": f"channel {n}", "gain": n / 7} for n in range(400)]).encode()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def raw(data: bytes, window_bits: int = 15, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -window_bits)
    return packer.compress(data) + packer.flush(flush)


class WorthTests(unittest.TestCase):
    def test_only_above_10_kib(self):
        """CON-20."""
        self.assertIsNone(c.deflate(b"x" * 10 * 1024))
        self.assertIsNone(c.gzip(b"x" * 10 * 1024))
        self.assertIsNotNone(c.deflate(b"x" * (10 * 1024 + 1)))
        self.assertIsNotNone(c.gzip(b"x" * (10 * 1024 + 1)))

    def test_what_many_are_sent_may_be_shorter(self):
        """CON-52."""
        least = c.SHARED_THRESHOLD_BYTES
        self.assertIsNone(c.deflate(b"x" * least, threshold=least))
        self.assertIsNotNone(c.deflate(b"x" * (least + 1), threshold=least))
        self.assertIsNone(c.deflate(noise(500), threshold=least), "saves nothing")

    def test_only_when_it_saves_a_tenth(self):
        """CON-20: to the byte."""
        self.assertTrue(c.worth_compressing(20_000, 18_000))
        self.assertFalse(c.worth_compressing(20_000, 18_001))
        self.assertIsNone(c.deflate(noise(50_000)))
        self.assertIsNone(c.gzip(noise(50_000)))
        mixed = noise(46_000) + b"\0" * 4_000
        self.assertIsNone(c.deflate(mixed), "8 % are not worth it")
        self.assertIsNotNone(c.deflate(noise(44_000) + b"\0" * 6_000))

    def test_gzip_is_gzip(self):
        packed = c.gzip(JSON)
        self.assertEqual(gzip.decompress(packed), JSON)
        self.assertEqual(packed, c.gzip(JSON), "no time stamp: an entity tag would change")
        self.assertLess(len(packed), len(JSON) / 3)

    def test_deflate_as_rfc_7692_has_it(self):
        """RFC 7692 section 7.2.1: no tail; section 7.2.3.1: "Hello"."""
        self.assertFalse(c.deflate(JSON).endswith(b"\0\0\xff\xff"))
        self.assertEqual(zlib.decompress(c.deflate(JSON) + b"\0\0\xff\xff\3\0", -15), JSON)
        self.assertEqual(c.inflate(bytes.fromhex("f248cdc9c90700"), 5), b"Hello")
        self.assertEqual(c.inflate(bytes.fromhex("f348cdc9c90700"), 5), b"Hello", "no stored tail")
        self.assertEqual(c.inflate(bytes.fromhex("f348cdc9c9070000"), 5), b"Hello", "BFINAL")
        blocks = bytes.fromhex("f248050000 00ffff cac9c90700")
        self.assertEqual(c.inflate(blocks, 5), b"Hello", "two blocks")

    def test_a_small_window(self):
        """RFC 7692 section 7.1.2: what the peer keeps is all that may be referred to."""
        packed = c.deflate(JSON, 9)
        self.assertEqual(zlib.decompressobj(-9).decompress(packed), JSON)


class BoundTests(unittest.TestCase):
    def test_to_the_byte(self):
        """CON-20: exactly the limit is allowed, one more is not."""
        for form, pack in (("deflate", c.deflate), ("gzip", c.gzip)):
            packed = pack(JSON)
            self.assertEqual(c.inflate(packed, len(JSON), form=form), JSON)
            error = self.assertRaises(c.InflateError, c.inflate, packed, len(JSON) - 1, form=form)
            self.assertEqual(error.code, "too_large")

    def test_a_bomb(self):
        """CON-20: 1 GiB in 1 MiB costs no more memory than the limit."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        error = self.assertRaises(c.InflateError, c.inflate, bomb, MIB)
        self.assertEqual(error.code, "too_large")
        self.assertLess(tracemalloc.get_traced_memory()[1], 3 * MIB)

    def test_a_limit_in_pieces(self):
        """CON-20: of all pieces together."""
        inflater = c.Inflater(len(JSON) - 1)
        packed = c.deflate(JSON)
        with self.assertRaises(c.InflateError):
            for start in range(len(packed)):
                inflater.feed(packed[start : start + 1])

    def test_cut_short_and_corrupt(self):
        for packed, form in (
            (c.gzip(JSON)[:-1], "gzip"),
            (c.gzip(JSON) + b"x", "gzip"),
            (b"", "gzip"),
            (JSON, "gzip"),
            (b"\xff" * 20, "deflate"),
            (raw(JSON, flush=zlib.Z_FINISH) + b"more", "deflate"),
        ):
            error = self.assertRaises(c.InflateError, c.inflate, packed, MIB, form=form)
            self.assertEqual(error.code, "bad_data")

    @given(st.binary(max_size=300), st.integers(0, 500), st.sampled_from(("deflate", "gzip")))
    @settings(max_examples=300)
    def test_any_bytes(self, data, limit, form):
        """Nothing but InflateError, and never more than the limit."""
        try:
            self.assertLessEqual(len(c.inflate(data, limit, form=form)), limit)
        except c.InflateError as error:
            self.assertIn(error.code, ("too_large", "bad_data"))

    @given(st.binary(min_size=1, max_size=40), st.integers(300, 2000), st.integers(9, 15))
    @settings(max_examples=50)
    def test_round_trip(self, part, times, window_bits):
        """CON-20: what was sent is what is read, whole and in pieces."""
        data = part * times
        packed = c.deflate(data, window_bits)
        if packed is None:
            self.assertFalse(c.worth_compressing(len(data), len(raw(data)) // 2))
            return
        self.assertEqual(c.inflate(packed, len(data)), data)
        inflater = c.Inflater(len(data))
        got = b"".join(inflater.feed(packed[at : at + 7]) for at in range(0, len(packed), 7))
        self.assertEqual(got + inflater.end_message(), data)
