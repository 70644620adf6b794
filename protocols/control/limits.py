"""What a control session allows: time-outs, rates, and the bucket that measures a rate.

Numbers and arithmetic only; :mod:`protocols.control.session` applies them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server puts up with from one listener.

    :ivar heartbeat_timeout_s: silence after which the session ends (STR-5).
    :ivar join_timeout_s: how long a connection may stay without saying who it is.
    :ivar messages_per_s: sustained rate; a listener needs less than one.
    :ivar message_burst: messages at once, on top of that.
    :ivar bytes_per_s: sustained rate; so that 1 MiB messages cannot be sent 50 times a second.
    :ivar byte_burst: bytes at once: two of the longest messages.
    :ivar faults_per_s: refused messages, sustained.
    :ivar fault_burst: refused messages at once; each is answered with its error.
    :ivar frames_per_s: WebSocket frames, sustained: a message may come in many, and pings and
        pongs are frames without a message.
    :ivar frame_burst: frames at once: the longest message in pieces of 512 bytes.
    :ivar ping_interval_s: between our pings (CON-10).
    :ivar pong_timeout_s: without any answer to them, then the session ends.
    :ivar message_ttl_s: how long a message waits for a slow reader (CON-11).
    """

    heartbeat_timeout_s: float = 30.0
    join_timeout_s: float = 30.0
    messages_per_s: float = 50.0
    message_burst: float = 50.0
    bytes_per_s: float = 256 * 1024
    byte_burst: float = 2 * 1024 * 1024
    faults_per_s: float = 1.0
    fault_burst: float = 50.0
    frames_per_s: float = 200.0
    frame_burst: float = 2_048.0
    ping_interval_s: float = 30.0
    pong_timeout_s: float = 90.0
    message_ttl_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How a listener's session keeps time.

    :ivar welcome_timeout_s: how long the server may take to answer the hello.
    :ivar silence_timeout_s: nothing heard for so long (clock answers come every few seconds)
        means that the server is gone.
    :ivar heartbeat_range_s: the server's wish is kept within these.
    :ivar ntp_burst: clock requests right after the welcome.
    :ivar ntp_burst_s: seconds between those.
    :ivar ntp_interval_s: seconds between later ones: least and most, drawn anew each time.
    :ivar faults_per_s: unreadable messages, sustained, before the listener hangs up.
    :ivar fault_burst: unreadable messages at once.
    """

    welcome_timeout_s: float = 10.0
    silence_timeout_s: float = 15.0
    heartbeat_range_s: tuple[float, float] = (0.5, 20.0)
    ntp_burst: int = 4
    ntp_burst_s: float = 0.2
    ntp_interval_s: tuple[float, float] = (2.0, 5.0)
    faults_per_s: float = 1.0
    fault_burst: float = 50.0


class TokenBucket:
    """Measures a rate: ``rate`` tokens a second flow in, at most ``burst`` are kept.

    :param now: seconds on any steady clock, as in :meth:`take`.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Whether ``amount`` tokens were there; then they are gone, otherwise none is."""
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
        if amount > self._level:
            return False
        self._level -= amount
        return True
