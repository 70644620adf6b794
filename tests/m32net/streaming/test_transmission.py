"""STR-4: what flows to a listener is described anew when it begins anew."""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.trial import unittest

from m32net.streaming.negotiation import AudioOffer, agree
from m32net.streaming.transmission import Transmission, TransmissionConfig
from protocols.control.messages import ClientConfig
from protocols.rtp import sdp
from tests.support.ports import free_pair

HOST = "127.0.0.1"


class TransmissionTest(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        clock.addReader = clock.removeReader = lambda reader: None  # type: ignore[attr-defined]
        self.transmission = Transmission(
            clock,
            TransmissionConfig(interface=HOST, rtp_port=free_pair(), send_method="sendto"),
            lambda *_: None,
            random.Random(3),
            clock.seconds,
        )
        self.transmission.open()
        self.addCleanup(self.transmission.close)

    def described(self) -> sdp.SessionDescription:
        text = self.transmission.description("client_1", {})
        assert text is not None
        return sdp.parse(text)

    def test_a_new_stream_has_a_newer_description(self) -> None:
        """RFC 8866 section 5.2: one session, a higher version for other SSRCs."""
        agreement = agree(ClientConfig(), AudioOffer(channels=(1, 2))).at(6000)
        self.transmission.add("client_1", HOST, agreement)
        first, same = self.described(), self.described()
        self.transmission.remove("client_1", "replaced")
        self.transmission.add("client_1", HOST, agreement)
        again = self.described()
        self.assertEqual(first, same)
        self.assertEqual(again.session_id, first.session_id)
        self.assertGreater(again.version, first.version)
        self.assertNotEqual(again.media[0].ssrc, first.media[0].ssrc)
