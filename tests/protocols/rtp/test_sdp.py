"""STR-4: session descriptions (RFC 8866), written and read back; hostile ones refused."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.errors import RemoteProtocolError
from protocols.rtp.extension import EVENT_FLAGS_URI, NTP64_URI
from protocols.rtp.sdp import (
    Media,
    SessionDescription,
    multiopus_fmtp,
    opus_fmtp,
    parse,
    write,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "rtp"

TIMES = {1: NTP64_URI, 2: EVENT_FLAGS_URI}

EXAMPLE = SessionDescription(
    origin_address="192.168.1.2",
    address="192.168.1.77",
    name="m32net: Anna's phone 🎤",
    session_id=1721123456,
    version=3,
    attributes=("tool:m32net",),
    media=(
        Media(
            5004,
            97,
            "MULTIOPUS",
            48_000,
            8,
            fmtp=multiopus_fmtp(8),
            ssrc=305419896,
            cname="m32net@192.168.1.2",
            packet_ms=2.5,
            rtcp_port=5005,
            extensions=TIMES,
            title="Kick, Snare, …",
        ),
        Media(5006, 99, "opus", 48_000, 2, fmtp=opus_fmtp(96_000, 24_000), packet_ms=5),
        Media(5008, 96, "L24", 48_000, 1, ssrc=0xFFFF_FFFF, attributes=("label:7",)),
        Media(5010, 98, "L16", 44_100, 4, packet_ms=5, direction="sendonly"),
    ),
)


class SdpTests(SynchronousTestCase):
    def test_golden(self) -> None:
        self.assertEqual(write(EXAMPLE).encode(), (GOLDEN / "session.sdp").read_bytes())

    def test_round_trip(self) -> None:
        self.assertEqual(parse(write(EXAMPLE)), EXAMPLE)

    def test_ipv6(self) -> None:
        text = write(SessionDescription("fe80::1", "fe80::2", "x"))
        self.assertIn("o=- 0 0 IN IP6 fe80::1\r\n", text)
        self.assertIn("c=IN IP6 fe80::2\r\n", text)

    def test_a_name_cannot_add_lines(self) -> None:
        hostile = SessionDescription("10.0.0.1", "10.0.0.2", "x\r\na=inactive")
        self.assertEqual(parse(write(hostile)).attributes, ())
        titled = SessionDescription(
            "10.0.0.1", "10.0.0.2", "x", media=(Media(1, 96, "L24", 1, title="a\nm=video"),)
        )
        self.assertEqual(len(parse(write(titled)).media), 1)

    def test_reads_what_others_write(self) -> None:
        """An SDP in the manner of AES67 devices: c= per medium, TTL, unknown attributes."""
        text = (
            "v=0\no=- 1 1 IN IP4 10.0.0.9\ns=X\nt=0 0\na=clock-domain:PTPv2 0\n"
            "m=audio 5004 RTP/AVP 96\nc=IN IP4 239.1.2.3/32\na=rtpmap:96 L24/48000\n"
            "a=mediaclk:direct=0\na=recvonly\n"
            "m=audio 5006 RTP/AVP 10\n"
        )
        found = parse(text)
        self.assertEqual(found.address, "239.1.2.3")
        self.assertEqual(found.media[0].channels, 1)
        self.assertEqual(found.media[0].attributes, ("mediaclk:direct=0",))
        self.assertEqual((found.media[1].encoding, found.media[1].clock_rate), ("L16", 44_100))

    def test_refused(self) -> None:
        head = "v=0\no=- 1 1 IN IP4 10.0.0.9\ns=X\n"
        for text in (
            "",
            "hello",
            "s=X\n",
            "v=0\ns=X\n",
            "v=0\no=- x 1 IN IP4 10.0.0.9\ns=X\n",
            head + "m=video 1 RTP/AVP 96\n",
            head + "m=audio x RTP/AVP 96\na=rtpmap:96 L24/48000\n",
            head + "m=audio 1 RTP/AVP 96\n",
            head + "m=audio 1 RTP/AVP 96\na=rtpmap:96 L24\n",
            head + "m=audio 1 RTP/AVP 96\na=rtpmap:96 L24/48000\na=ssrc:x\n",
            head + "c=\n",
            head + "a=x\n" * 5000,
        ):
            with self.subTest(text[:60]):
                self.assertRaises(RemoteProtocolError, parse, text)

    @given(
        st.text(max_size=200)
        | st.lists(
            st.sampled_from(write(EXAMPLE).splitlines()) | st.text(max_size=12), max_size=30
        ).map("\n".join)
    )
    def test_garbage_raises_nothing_but_remote_errors(self, text: str) -> None:
        try:
            parse(text)
        except RemoteProtocolError:
            pass
