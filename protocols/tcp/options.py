"""What the sockets of TCP connections are told (CON-1), and what the kernel says of them.

Values only: names of options as in the :mod:`socket` module, and what each is to be set to.
Nothing here opens or touches a socket; :mod:`protocols.tcp.protocol` does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER, on, 0 s: closing sends RST and keeps no state (tcp(7), socket(7))."""
CLOSE_AT_ONCE: Final = struct.pack("ii", 0, 0)
"""SO_LINGER, off: ``close`` returns at once and the kernel delivers what is left."""

_DATA_SEGMENTS_OUT: Final = 156


class Setting(NamedTuple):
    """One call of ``setsockopt``.

    :ivar level: ``SOL_SOCKET`` or ``IPPROTO_TCP``; with ``name`` as in the ``socket`` module.
    """

    level: str
    name: str
    value: int | bytes


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """CON-1, with its defaults.  Times in seconds; 0 leaves to the kernel what it does by itself.

    :ivar keepalive_s: silence after which the peer is asked whether it is still there; 0: never.
    :ivar keepalive_interval_s: between those questions; ``keepalive_probes`` of them unanswered
        end the connection.
    :ivar buffer_bytes: of each of the kernel's two buffers.  The kernel books twice as much, for
        its own needs, and says so when asked (socket(7)).
    :ivar linger_s: for how long a closed connection may go on delivering what was sent.
    :ivar user_timeout_s: for how long sent data may stay unacknowledged, or a peer that is alive
        may refuse to take any (tcp(7), TCP_USER_TIMEOUT; RFC 5482).
    :ivar retry_s: unacknowledged data is sent again at least so often.  TCP doubles the pause with
        every attempt (RFC 6298 section 5.5), so that after a cut it is silent for as long again;
        capping the pause is an option of Linux from 6.15 on, at least 1 s.  It then also gives up
        after about 15 pauses, unless ``user_timeout_s`` says when.
    :ivar quickack: acknowledge at once (TCP_QUICKACK); the kernel forgets it, so it has to be told
        again after reads.
    """

    nodelay: bool = True
    keepalive_s: float = 30.0
    keepalive_interval_s: float = 10.0
    keepalive_probes: int = 9
    buffer_bytes: int = 65_536
    linger_s: float = 5.0
    user_timeout_s: float = 60.0
    quickack: bool = True
    retry_s: float = 1.0

    def listening(self) -> tuple[Setting, ...]:
        """For a socket before it listens; connections inherit them.

        Buffers are set here because the window scale is settled while a connection is made.
        SO_LINGER of 0 s makes a connection that is closed without further ado end by RST: cheap
        for us, and unmistakable for the peer.  Admitted ones are told otherwise.
        """
        settings = [
            Setting("SOL_SOCKET", "SO_REUSEADDR", 1),
            Setting("SOL_SOCKET", "SO_LINGER", RESET_ON_CLOSE),
        ]
        if self.buffer_bytes:
            settings.append(Setting("SOL_SOCKET", "SO_SNDBUF", self.buffer_bytes))
            settings.append(Setting("SOL_SOCKET", "SO_RCVBUF", self.buffer_bytes))
        return tuple(settings)

    def accepted(self) -> tuple[Setting, ...]:
        """For the socket of a connection that was admitted."""
        settings = [
            Setting("IPPROTO_TCP", "TCP_NODELAY", int(self.nodelay)),
            Setting("SOL_SOCKET", "SO_KEEPALIVE", int(self.keepalive_s > 0)),
            Setting("SOL_SOCKET", "SO_LINGER", self._linger()),
        ]
        if self.keepalive_s > 0:
            settings += [
                Setting("IPPROTO_TCP", "TCP_KEEPIDLE", _seconds(self.keepalive_s)),
                Setting("IPPROTO_TCP", "TCP_KEEPINTVL", _seconds(self.keepalive_interval_s)),
                Setting("IPPROTO_TCP", "TCP_KEEPCNT", self.keepalive_probes),
            ]
        if self.user_timeout_s > 0:
            settings.append(_user_timeout(self.user_timeout_s))
        if self.retry_s > 0:
            pause_ms = min(max(1_000, round(self.retry_s * 1000)), 120_000)
            settings.append(Setting("IPPROTO_TCP", "TCP_RTO_MAX_MS", pause_ms))
        if self.quickack:
            settings.append(QUICKACK)
        return tuple(settings)

    def closing(self) -> tuple[Setting, ...]:
        """For a socket just before it is closed in order: linger without waiting.

        With SO_LINGER on, Linux makes ``close`` wait until all is acknowledged, on non-blocking
        sockets too, and an event loop with it.  So the kernel gets the time in other words: it
        gives up what has not been acknowledged for ``linger_s``, and a peer that does not close
        its side is forgotten after as long.
        """
        settings = [Setting("SOL_SOCKET", "SO_LINGER", CLOSE_AT_ONCE)]
        if self.linger_s > 0:
            settings.append(_user_timeout(self.linger_s))
            settings.append(Setting("IPPROTO_TCP", "TCP_LINGER2", _seconds(self.linger_s)))
        return tuple(settings)

    def _linger(self) -> bytes:
        if self.linger_s <= 0:
            return CLOSE_AT_ONCE
        return struct.pack("ii", 1, _seconds(self.linger_s))


QUICKACK: Final = Setting("IPPROTO_TCP", "TCP_QUICKACK", 1)


def _seconds(value: float) -> int:
    """Whole seconds as the kernel takes them, at least one."""
    return max(1, round(value))


def _user_timeout(value: float) -> Setting:
    return Setting("IPPROTO_TCP", "TCP_USER_TIMEOUT", max(1, round(value * 1000)))


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What the kernel knows of a connection.

    :ivar rtt_ms: smoothed round trip (RFC 6298), or None before anything was acknowledged.
    :ivar retransmissions: segments sent again since the start.
    :ivar segments_sent: segments with data, those sent again included.
    """

    rtt_ms: float | None
    retransmissions: int
    segments_sent: int

    @property
    def retransmitted(self) -> float | None:
        """Fraction of the segments that had to be sent again; None if none was sent."""
        if not self.segments_sent:
            return None
        return min(1.0, self.retransmissions / self.segments_sent)


def tcp_info(raw: bytes) -> TcpInfo | None:
    """Reads ``struct tcp_info`` as Linux gives it (linux/tcp.h); None if it is too short.

    Bytes 68..71 are the round trip in microseconds, 100..103 all retransmissions, 156..159 the
    data segments sent (since Linux 4.6).
    """
    if len(raw) < _DATA_SEGMENTS_OUT + 4:
        return None
    rtt_us, retransmissions, segments = (
        struct.unpack_from("=I", raw, offset)[0] for offset in (68, 100, _DATA_SEGMENTS_OUT)
    )
    return TcpInfo(rtt_us / 1000 if rtt_us else None, retransmissions, segments)
