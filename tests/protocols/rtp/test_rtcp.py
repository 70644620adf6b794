"""STR-12: RTCP reports (RFC 3550 section 6): round trips, validity checks, round-trip time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.rtp.extension import ntp64_from_unix_ns
from protocols.rtp.rtcp import (
    CNAME,
    ApplicationDefined,
    Compound,
    Goodbye,
    OtherPacket,
    ReceiverReport,
    ReportBlock,
    SdesChunk,
    SenderReport,
    SourceDescription,
    compact_ntp,
    parse_compound,
    receiver_compounds,
    report_interval,
    round_trip_s,
    sender_compounds,
    serialize_compound,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "rtp"

U32 = st.integers(0, 0xFFFF_FFFF)
BLOCKS = st.builds(
    ReportBlock, U32, st.integers(0, 255), st.integers(-(2**23), 2**23 - 1), U32, U32, U32, U32
)
SOME_BLOCKS = st.lists(BLOCKS, max_size=31).map(tuple)
REPORTS = st.builds(
    SenderReport, U32, st.integers(0, 2**64 - 1), U32, U32, U32, SOME_BLOCKS
) | st.builds(ReceiverReport, U32, SOME_BLOCKS)
TEXT = st.text(max_size=60)
CHUNKS = st.builds(
    SdesChunk, U32, st.lists(st.tuples(st.integers(1, 8), TEXT), max_size=4).map(tuple)
)
OTHERS = (
    st.builds(SourceDescription, st.lists(CHUNKS, max_size=5).map(tuple))
    | st.builds(Goodbye, st.lists(U32, max_size=31).map(tuple), TEXT)
    | st.builds(
        ApplicationDefined,
        st.integers(0, 31),
        U32,
        st.binary(min_size=4, max_size=4),
        st.integers(0, 9).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
    )
    | st.builds(
        OtherPacket,
        st.integers(205, 255),
        st.integers(0, 31),
        st.integers(0, 9).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
    )
)
COMPOUNDS = st.tuples(REPORTS, st.lists(REPORTS | OTHERS, max_size=4)).map(lambda t: (t[0], *t[1]))


def as_json(compound: Compound) -> list[dict[str, Any]]:
    return [
        {"kind": type(packet).__name__, **json.loads(json.dumps(asdict(packet), default=bytes.hex))}
        for packet in compound
    ]


class CompoundTests(SynchronousTestCase):
    @given(COMPOUNDS)
    def test_round_trip(self, compound: Compound) -> None:
        self.assertEqual(parse_compound(serialize_compound(compound)), compound)

    @given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda b: b"\x81\xc9\0\x07" + b))
    def test_garbage_raises_nothing_but_remote_errors(self, data: bytes) -> None:
        try:
            parse_compound(data)
        except RemoteProtocolError:
            pass

    @given(COMPOUNDS, st.data())
    def test_damage_raises_nothing_but_remote_errors(
        self, compound: Compound, data: st.DataObject
    ) -> None:
        wire = bytearray(serialize_compound(compound))
        for _ in range(3):
            wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
        try:
            parse_compound(wire)
        except RemoteProtocolError:
            pass

    def test_golden(self) -> None:
        files = sorted(GOLDEN.glob("rtcp-*.bin"))
        self.assertGreaterEqual(len(files), 3)
        for file in files:
            wire = file.read_bytes()
            twin = json.loads(file.with_suffix(".json").read_text())
            with self.subTest(file.name):
                self.assertEqual(as_json(parse_compound(wire)), twin["packets"])

    def test_validity_checks(self) -> None:
        """RFC 3550 appendix A.2."""
        rr = serialize_compound([ReceiverReport(1)])
        bye = serialize_compound([ReceiverReport(1), Goodbye((1,))])[len(rr) :]
        for wire, what in [
            (b"", "empty"),
            (bye, "no report first"),
            (b"\x40" + rr[1:], "version"),
            (rr + b"\x81", "rest"),
            (rr[:2] + b"\0\x02" + rr[4:], "length over the end"),
            (b"\xa0\xc9\0\x02\0\0\0\1\0\0\0\4", "padding in the first"),
            (rr + b"\xa0\xcb\0\x01\0\0\0\4" + bye, "padding in the middle"),
            (rr + b"\xa0\xcb\0\x01\0\0\0\3", "padding no multiple of 4"),
            (b"\x81" + rr[1:], "a block is missing"),
            (rr + b"\x81\xca\0\x02\0\0\0\1\1\x05ab", "SDES item cut off"),
            (rr + b"\x81\xca\0\x02\0\0\0\1\1\x02ab", "SDES chunk without end"),
            (rr + b"\x81\xcb\0\x02\0\0\0\1\x05abc", "BYE reason cut off"),
        ]:
            with self.subTest(what):
                self.assertRaises(RemoteProtocolError, parse_compound, wire)

    def test_padding_in_the_last(self) -> None:
        wire = serialize_compound([ReceiverReport(1)]) + b"\xa1\xcb\0\x02\0\0\0\7\0\0\0\4"
        self.assertEqual(parse_compound(wire), (ReceiverReport(1), Goodbye((7,))))

    def test_local_mistakes(self) -> None:
        for wrong in (
            [],
            [Goodbye((1,))],
            [ReceiverReport(-1)],
            [ReceiverReport(1), ApplicationDefined(0, 1, b"TEST", b"123")],
            [ReceiverReport(1, (ReportBlock(1, 0, 0, 0, 0, 0, 0),) * 32)],
        ):
            with self.subTest(str(wrong)[:60]):
                self.assertRaises(LocalProtocolError, serialize_compound, wrong)


class HelperTests(SynchronousTestCase):
    def test_sender_compounds_fit_and_name_every_stream(self) -> None:
        reports = [SenderReport(n, 2**63, 5, 6, 7) for n in range(64)]
        datagrams = sender_compounds(reports, "m32net@192.168.178.200")
        self.assertTrue(all(len(d) <= 1400 for d in datagrams))
        self.assertLessEqual(len(datagrams), 4)
        parsed = [packet for d in datagrams for packet in parse_compound(d)]
        self.assertEqual([p for p in parsed if isinstance(p, SenderReport)], reports)
        chunks = [c for p in parsed if isinstance(p, SourceDescription) for c in p.chunks]
        self.assertEqual([c.ssrc for c in chunks], list(range(64)))
        self.assertEqual(chunks[0].items, ((CNAME, "m32net@192.168.178.200"),))

    def test_receiver_compounds(self) -> None:
        blocks = [ReportBlock(n, 1, -2, 3, 4, 5, 6) for n in range(40)]
        datagrams = receiver_compounds(77, blocks, "me")
        self.assertEqual(len(datagrams), 2)
        found = [
            block
            for d in datagrams
            for p in parse_compound(d)
            if isinstance(p, ReceiverReport)
            for block in p.reports
        ]
        self.assertEqual(found, blocks)
        self.assertEqual(len(receiver_compounds(77, [], "me")), 1)

    def test_round_trip_time_of_the_rfc(self) -> None:
        """RFC 3550 figure 2: A = 0xb710:8000, LSR = 0xb705:2000, DLSR = 5.25 s: 6.125 s."""
        block = ReportBlock(1, 0, 0, 0, 0, 0xB705_2000, 0x0005_4000)
        self.assertEqual(round_trip_s(0xB710_8000 << 16, block), 6.125)

    def test_round_trip_unknown(self) -> None:
        self.assertIsNone(round_trip_s(1 << 40, ReportBlock(1, 0, 0, 0, 0, 0, 0)))
        now = ntp64_from_unix_ns(1_700_000_000_000_000_000)
        block = ReportBlock(1, 0, 0, 0, 0, compact_ntp(now), 65_536)
        self.assertIsNone(round_trip_s(now, block))

    def test_interval(self) -> None:
        def interval(**changes: Any) -> float:
            arguments: dict[str, Any] = {
                "members": 2,
                "senders": 1,
                "bandwidth": 1e6,
                "we_sent": True,
                "average_bytes": 100,
                "initial": False,
                "randomness": 0.5,
            }
            return report_interval(**{**arguments, **changes})

        factor = 1 / (2.718281828459045 - 1.5)
        self.assertAlmostEqual(interval(), 5 * factor)
        self.assertAlmostEqual(interval(initial=True), 2.5 * factor)
        self.assertAlmostEqual(interval(randomness=0.0), 2.5 * factor)
        self.assertAlmostEqual(interval(bandwidth=0), 5 * factor)
        many = {"members": 1000, "senders": 100, "bandwidth": 1000.0}
        self.assertAlmostEqual(interval(**many), 100 * 100 / 250 * factor)
        self.assertAlmostEqual(interval(**many, we_sent=False), 100 * 900 / 750 * factor)
        self.assertAlmostEqual(interval(members=1000, senders=900, bandwidth=1000.0), 100 * factor)
