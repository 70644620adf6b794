"""RTP packets (RFC 3550 section 5.1): round trips, golden packets, and no surprise on garbage."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.rtp.packet import RTP_HEADER, RtpPacket, parse, serialize

GOLDEN = Path(__file__).parents[2] / "golden" / "rtp"

U32 = st.integers(0, 0xFFFF_FFFF)
PACKETS = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    sequence_number=st.integers(0, 0xFFFF),
    timestamp=U32,
    ssrc=U32,
    payload=st.binary(max_size=100),
    marker=st.booleans(),
    csrc=st.lists(U32, max_size=15).map(tuple),
    extension=st.none() | st.binary(max_size=20).map(lambda b: b[: len(b) & ~3]),
    extension_profile=st.integers(0, 0xFFFF),
    padding=st.integers(0, 255),
).filter(lambda p: not (p.marker and 64 <= p.payload_type <= 95))


def as_json(packet: RtpPacket) -> dict[str, object]:
    return {
        "payload_type": packet.payload_type,
        "marker": packet.marker,
        "sequence_number": packet.sequence_number,
        "timestamp": packet.timestamp,
        "ssrc": packet.ssrc,
        "csrc": list(packet.csrc),
        "extension_profile": packet.extension_profile,
        "extension": None if packet.extension is None else packet.extension.hex(),
        "payload": bytes(packet.payload).hex(),
        "padding": packet.padding,
    }


class PacketTests(SynchronousTestCase):
    @given(PACKETS)
    def test_round_trip(self, packet: RtpPacket) -> None:
        again = parse(serialize(packet))
        expected = as_json(packet)
        if packet.extension is None:
            expected["extension_profile"] = 0
        self.assertEqual(as_json(again), expected)

    @given(st.binary(max_size=120) | st.binary(max_size=80).map(lambda b: b"\xb5" + b))
    def test_garbage_raises_nothing_but_remote_errors(self, data: bytes) -> None:
        try:
            packet = parse(data)
        except RemoteProtocolError:
            return
        self.assertEqual(as_json(parse(serialize(packet))), as_json(packet))

    @given(PACKETS, st.data())
    def test_every_cut_is_noticed_or_shortens_the_payload(
        self, packet: RtpPacket, data: st.DataObject
    ) -> None:
        wire = serialize(packet)
        cut = data.draw(st.integers(0, len(wire) - 1))
        try:
            short = parse(wire[:cut])
        except RemoteProtocolError:
            return
        self.assertEqual((short.ssrc, short.csrc), (packet.ssrc, packet.csrc))
        self.assertLess(len(short.payload) + short.padding, len(packet.payload) + 256)

    def test_golden(self) -> None:
        """Each ``*.bin`` parses to its JSON twin and serializes to itself."""
        files = sorted(GOLDEN.glob("packet-*.bin"))
        self.assertGreaterEqual(len(files), 5)
        for file in files:
            wire = file.read_bytes()
            twin = json.loads(file.with_suffix(".json").read_text())
            with self.subTest(file.name):
                self.assertEqual(as_json(parse(wire)), twin["packet"])
                self.assertEqual(serialize(parse(wire)), wire)

    def test_refused(self) -> None:
        for wire, what in [
            (b"\x80\x60" + bytes(9), "short"),
            (b"\x40\x60" + bytes(10), "version 1"),
            (b"\x80\xc8" + bytes(10), "RTCP"),
            (b"\xa0\x60" + bytes(10), "padding of 0"),
            (b"\xa0\x60" + bytes(11) + b"\x03", "padding over the payload"),
            (b"\x90\x60" + bytes(10) + b"\xbe\xde\x00\x01", "extension missing"),
            (b"\x81\x60" + bytes(12), "CSRC missing"),
        ]:
            with self.subTest(what):
                self.assertRaises(RemoteProtocolError, parse, wire)

    def test_local_mistakes(self) -> None:
        good = {"payload_type": 96, "sequence_number": 1, "timestamp": 2, "ssrc": 3}
        for wrong in (
            {"payload_type": 128},
            {"sequence_number": 65536},
            {"timestamp": -1},
            {"csrc": (1,) * 16},
            {"extension": b"123"},
            {"padding": 256},
        ):
            with self.subTest(str(wrong)):
                self.assertRaises(LocalProtocolError, serialize, RtpPacket(**{**good, **wrong}))

    def test_dtype_is_the_wire(self) -> None:
        import numpy as np

        row = np.zeros(1, RTP_HEADER)
        row[0] = (0x80, 0x80 | 97, 0x1234, 0x01020304, 0xA0B0C0D0)
        packet = RtpPacket(97, 0x1234, 0x01020304, 0xA0B0C0D0, marker=True)
        self.assertEqual(row.tobytes(), serialize(packet))
