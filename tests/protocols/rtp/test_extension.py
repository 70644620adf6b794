"""STR-52, CLK-3: the time extension in valid RFC 8285 one-byte form."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import RemoteProtocolError
from protocols.rtp.extension import (
    EXTENSION_BYTES,
    TIME_EXTENSION,
    EventFlags,
    build_time_extension,
    ntp64_from_unix_ns,
    parse_one_byte,
    time_extension,
    unix_ns_from_ntp64,
)
from protocols.rtp.packet import RtpPacket

NANOSECONDS = st.integers(0, 4_200_000_000_000_000_000)


class TimeTests(SynchronousTestCase):
    @given(NANOSECONDS)
    def test_round_trip_is_exact_and_crosses_2036(self, unix_ns: int) -> None:
        self.assertEqual(unix_ns_from_ntp64(ntp64_from_unix_ns(unix_ns)), unix_ns)

    def test_known(self) -> None:
        self.assertEqual(ntp64_from_unix_ns(0), 2_208_988_800 << 32)
        self.assertEqual(ntp64_from_unix_ns(500_000_000), 2_208_988_800 << 32 | 0x8000_0000)


class ExtensionTests(SynchronousTestCase):
    def test_wire_form(self) -> None:
        wire = build_time_extension(500_000_000, EventFlags.TIME_SYNC | EventFlags.CONTROL_MESSAGE)
        self.assertEqual(wire.hex(), "bede00031783aa7e8080000000200500")
        self.assertEqual(len(wire), EXTENSION_BYTES)
        self.assertEqual(TIME_EXTENSION.itemsize, 16)

    @given(NANOSECONDS, st.sampled_from([EventFlags(n) for n in range(8)]))
    def test_round_trip(self, unix_ns: int, flags: EventFlags) -> None:
        wire = build_time_extension(unix_ns, flags)
        packet = RtpPacket(97, 0, 0, 0, extension=wire[4:], extension_profile=0xBEDE)
        found = time_extension(packet)
        assert found is not None
        self.assertEqual((found.send_time_ns, found.flags), (unix_ns, flags))

    def test_elements(self) -> None:
        self.assertEqual(
            parse_one_byte(bytes.fromhex("0010aa3201020300")), {1: b"\xaa", 3: b"\1\2\3"}
        )
        self.assertEqual(parse_one_byte(bytes.fromhex("10aaf01011bb0000")), {1: b"\xaa"})
        self.assertRaises(RemoteProtocolError, parse_one_byte, bytes.fromhex("17010203"))

    def test_none(self) -> None:
        self.assertIsNone(time_extension(RtpPacket(97, 0, 0, 0)))
        foreign = RtpPacket(97, 0, 0, 0, extension=bytes(12), extension_profile=0x1000)
        self.assertIsNone(time_extension(foreign))
        other = RtpPacket(97, 0, 0, 0, extension=b"\x50\x01\0\0", extension_profile=0xBEDE)
        self.assertIsNone(time_extension(other))
        short = RtpPacket(97, 0, 0, 0, extension=b"\x10\x01\0\0", extension_profile=0xBEDE)
        self.assertRaises(RemoteProtocolError, time_extension, short)

    @given(st.binary(max_size=60))
    def test_garbage_raises_nothing_but_remote_errors(self, data: bytes) -> None:
        try:
            time_extension(RtpPacket(97, 0, 0, 0, extension=data, extension_profile=0xBEDE))
        except RemoteProtocolError:
            pass
