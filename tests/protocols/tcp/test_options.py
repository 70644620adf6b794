"""CON-1: the options of sockets as values, and the kernel's ``struct tcp_info`` as bytes."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from protocols.tcp.options import SocketOptions, TcpInfo, tcp_info


def values(settings: object) -> dict[str, int | tuple[int, int]]:
    return {
        name: value if isinstance(value, int) else struct.unpack("ii", value)
        for _, name, value in settings  # type: ignore[attr-defined]
    }


class Options(unittest.SynchronousTestCase):
    def test_defaults(self) -> None:
        """CON-1: the values it names."""
        options = SocketOptions()
        self.assertEqual(
            values(options.accepted()),
            {
                "TCP_NODELAY": 1,
                "SO_KEEPALIVE": 1,
                "SO_LINGER": (1, 5),
                "TCP_KEEPIDLE": 30,
                "TCP_KEEPINTVL": 10,
                "TCP_KEEPCNT": 9,
                "TCP_USER_TIMEOUT": 60_000,
                "TCP_RTO_MAX_MS": 1_000,
                "TCP_QUICKACK": 1,
            },
        )
        self.assertEqual(
            values(options.listening()),
            {"SO_REUSEADDR": 1, "SO_LINGER": (1, 0), "SO_SNDBUF": 65_536, "SO_RCVBUF": 65_536},
        )

    def test_off(self) -> None:
        """CON-1, as settings: nothing is told but what was asked for."""
        options = SocketOptions(
            nodelay=False,
            keepalive_s=0,
            buffer_bytes=0,
            linger_s=0,
            user_timeout_s=0,
            retry_s=0,
            quickack=False,
        )
        self.assertEqual(
            values(options.accepted()),
            {"TCP_NODELAY": 0, "SO_KEEPALIVE": 0, "SO_LINGER": (0, 0)},
        )
        self.assertEqual(values(options.listening()), {"SO_REUSEADDR": 1, "SO_LINGER": (1, 0)})
        self.assertEqual(values(options.closing()), {"SO_LINGER": (0, 0)})

    @given(st.floats(0.001, 100), st.floats(0.001, 100))
    def test_never_rounded_to_off(self, linger: float, timeout: float) -> None:
        """CON-1: a fraction of a second is not "never" or "by itself"."""
        options = SocketOptions(keepalive_s=linger, linger_s=linger, user_timeout_s=timeout)
        told = values(options.accepted()) | values(options.closing())
        for name in ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_LINGER2"):
            self.assertGreaterEqual(told[name], 1)

    def test_closing_does_not_wait(self) -> None:
        """CON-1: linger in the kernel's other words; SO_LINGER would make close() block."""
        self.assertEqual(
            values(SocketOptions(linger_s=5).closing()),
            {"SO_LINGER": (0, 0), "TCP_USER_TIMEOUT": 5000, "TCP_LINGER2": 5},
        )


class Info(unittest.SynchronousTestCase):
    def raw(self, rtt_us: int, retransmissions: int, segments: int) -> bytes:
        raw = bytearray(232)
        for offset, value in ((68, rtt_us), (100, retransmissions), (156, segments)):
            struct.pack_into("=I", raw, offset, value)
        return bytes(raw)

    def test_fields(self) -> None:
        info = tcp_info(self.raw(12_500, 3, 60))
        self.assertEqual(info, TcpInfo(12.5, 3, 60))
        assert info is not None
        self.assertEqual(info.retransmitted, 0.05)

    def test_nothing_sent(self) -> None:
        info = tcp_info(self.raw(0, 0, 0))
        assert info is not None
        self.assertEqual((info.rtt_ms, info.retransmitted), (None, None))

    @given(st.binary(max_size=300))
    def test_any_bytes(self, raw: bytes) -> None:
        """Older kernels say less; that is no error."""
        info = tcp_info(raw)
        self.assertEqual(info is None, len(raw) < 160)
        if info is not None and info.retransmitted is not None:
            self.assertTrue(0 <= info.retransmitted <= 1)
