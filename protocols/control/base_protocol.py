"""What both ends' WebSocket shells share: opening and closing in time, compression, counting.

Autobahn parses and writes frames (RFC 6455).  Where it falls short it is put right here:

- its time-outs round to whole seconds, always use the global reactor, and its close timer outlives
  the connection: they are switched off and done by one guard;
- after a violation it parses on, and after a message that inflates beyond the limit it keeps what
  comes without a bound: here nothing is read any more (section 7.1.7);
- it compresses all messages or none and keeps zlib's state (about 300 KiB) for each connection:
  here only what is worth it is compressed, and nothing is kept between messages;
- it takes any number of frames without a message: here each counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import txaio
from autobahn.exception import PayloadCorruptError, PayloadExceededError
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.util import encode_truncate
from autobahn.websocket.compress import PerMessageDeflate
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from protocols import compression
from protocols.control.limits import TokenBucket
from protocols.control.messages import MAX_MESSAGE_BYTES
from protocols.control.outgoing import CLOSE_NONE_RECEIVED, CLOSE_POLICY_VIOLATION, CloseFrame
from protocols.control.quality import Traffic

OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 3.0
LINGER_S: Final = 1.0
"""How long a failed connection stays, unread, so that its close frame is not lost to a reset."""
_PIECE_BYTES: Final = 4096
"""Read at a time: Autobahn copies what is left of them for each frame."""
MAX_HANDSHAKE_BYTES: Final = 16 * 1024
_CLOSING_COST: Final = 100.0  # frames; after our close frame there is little left to say
_MAX_CLOSE_REASON: Final = 123  # RFC 6455 section 5.5: 125 bytes less the code
_TEXT: Final = 1
_PING: Final = 9
_RSV1: Final = 4  # Autobahn's way of counting: RSV1 is the first of three bits


def wall_clock_ms() -> float:
    """Milliseconds since 1970, to the microsecond."""
    return time.time_ns() / 1_000_000


class Alarm:
    """One timer, moved lazily: it may ring early, then nothing is due and it is set again."""

    def __init__(
        self, reactor: IReactorTime, seconds: Callable[[], float], ring: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._ring = ring
        self._call: IDelayedCall | None = None
        self._at = 0.0

    def set(self, at: float | None) -> None:
        if self._call is not None:
            if at is not None and self._at <= at:
                return
            self._call.cancel()
            self._call = None
        if at is not None:
            self._at = at
            delay = max(0.0, at - self._seconds())
            self._call = self._reactor.callLater(delay, self._rang)

    def _rang(self) -> None:
        self._call = None
        self._ring()


class BoundedDeflate:
    """Autobahn's decompressor, bounded by bytes of the whole message, and forgetful."""

    EXTENSION_NAME = "permessage-deflate"

    def __init__(self, own_window_bits: int) -> None:
        self.own_window_bits = own_window_bits
        self._inflater: compression.Inflater | None = None

    def start_decompress_message(self) -> None:
        self._inflater = compression.Inflater(MAX_MESSAGE_BYTES)

    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes:
        # Autobahn's own bound counts compressed bytes still to come as if they were inflated ones.
        return self._run("feed", data)

    def end_decompress_message(self) -> None:
        rest = self._run("end_message")
        self._inflater = None
        if rest:
            raise PayloadCorruptError("the message does not end where it should")

    def _run(self, step: str, *arguments: bytes) -> bytes:
        try:
            return cast(bytes, getattr(self._inflater, step)(*arguments))
        except compression.InflateError as error:
            self._inflater = None
            kind = PayloadExceededError if error.code == "too_large" else PayloadCorruptError
            raise kind(str(error)) from None


class WebSocketShell:
    """Beside one of Autobahn's protocols, before it in the order of resolution."""

    # Peers' garbage is no event for the server's log; what matters is told to the owner.
    log = txaio.make_logger(level="critical")  # type: ignore[attr-defined]
    factory: Any
    transport: Any
    state: Any
    data: bytes
    sendFrame: Any
    failHandshake: Any
    _perMessageCompress: Any
    guard: IDelayedCall | None = None
    deaf = False
    """Whatever else comes is not looked at."""
    lingered = False
    frames: TokenBucket | None = None
    """A peer may send so many frames; None: any number."""

    def connectionMade(self) -> None:
        self.traffic = Traffic(self.factory.seconds())
        self.arm_guard(self.factory.open_timeout_s)
        super().connectionMade()  # type: ignore[misc]

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.disarm_guard()
        super().connectionLost(reason)  # type: ignore[misc]

    # -- reading

    def dataReceived(self, data: bytes) -> None:
        if self.deaf:
            return
        self.traffic.heard_at = self.factory.seconds()
        self.traffic.bytes_received += len(data)
        starts = range(0, len(data), _PIECE_BYTES)
        self.take_in(data[start : start + _PIECE_BYTES] for start in starts)

    def take_in(self, pieces: Iterable[bytes]) -> None:
        """Work on what has come."""
        for piece in pieces:
            if self.deaf:
                break
            self.feed(piece)

    def feed(self, piece: bytes) -> None:
        super().dataReceived(piece)  # type: ignore[misc]

    def processHandshake(self) -> None:
        if len(self.data) > MAX_HANDSHAKE_BYTES and b"\r\n\r\n" not in self.data:
            self.failHandshake("the handshake is too long")
            self.data = b""
            return
        super().processHandshake()  # type: ignore[misc]

    def processData(self) -> bool:
        return not self.deaf and bool(super().processData()) and not self.deaf  # type: ignore[misc]

    def onFrameBegin(self) -> None:
        cost = 1.0 if self.is_open_now else _CLOSING_COST
        if self.frames is not None and not self.frames.take(cost, self.factory.seconds()):
            self._fail_connection(CLOSE_POLICY_VIOLATION, "too many frames")
        super().onFrameBegin()  # type: ignore[misc]

    # -- compression

    def agree_on_compression(self) -> None:
        """Put our own in the place of what Autobahn has negotiated; first thing when open."""
        agreed = self._perMessageCompress
        if isinstance(agreed, PerMessageDeflate):
            own = agreed.server_max_window_bits
            if not self.factory.isServer:
                own = agreed.client_max_window_bits
            self._perMessageCompress = BoundedDeflate(own)

    def write_text(self, data: bytes, *, shared: bool = False) -> None:
        """One text message, compressed if that was agreed on and is worth it (CON-20).

        :param shared: many are sent the same, so that it need not be long to be worth it.
        """
        self.traffic.messages_sent += 1
        agreed = self._perMessageCompress
        if agreed is not None:
            least = compression.SHARED_THRESHOLD_BYTES if shared else compression.THRESHOLD_BYTES
            packed = self.factory.deflate(data, agreed.own_window_bits, least)
            if packed is not None:
                self.sendFrame(_TEXT, packed, rsv=_RSV1)
                return
        self.sendFrame(_TEXT, data)

    def write_ping(self, payload: bytes) -> None:
        self.sendFrame(_PING, payload)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self.traffic.bytes_sent += len(data)
        super().sendData(data, sync, chopsize)  # type: ignore[misc]

    # -- closing

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        was_open = self.is_open_now
        super().sendCloseFrame(code, reasonUtf8, isReply)  # type: ignore[misc]
        if was_open:
            self.arm_guard(LINGER_S if self.deaf else self.factory.close_timeout_s)
            if not isReply:
                reason = (reasonUtf8 or b"").decode("utf-8", "replace")
                self.failed(code or CLOSE_NONE_RECEIVED, reason)

    @property
    def is_open_now(self) -> bool:
        return bool(self.state == WebSocketServerProtocol.STATE_OPEN)

    def failed(self, code: int, reason: str) -> None:
        """This end closes; the session may not know of it yet."""
        raise NotImplementedError

    def close_with(self, frame: CloseFrame) -> None:
        if self.is_open_now:
            self.sendCloseFrame(frame.code, encode_truncate(frame.reason, _MAX_CLOSE_REASON))

    def _fail_connection(self, code: int, reason: str) -> None:
        if not self.deaf:
            self.deaf = True  # RFC 6455 section 7.1.7
            self.lingered = not self.is_open_now
            super()._fail_connection(code, reason)  # type: ignore[misc]

    def _protocol_violation(self, reason: str) -> bool:
        super()._protocol_violation(reason)  # type: ignore[misc]
        return True  # nothing of the frame is to be looked at

    def _invalid_payload(self, reason: str) -> bool:
        super()._invalid_payload(reason)  # type: ignore[misc]
        return True

    def arm_guard(self, delay: float) -> None:
        self.disarm_guard()
        self.guard = self.factory.reactor.callLater(delay, self._late)

    def disarm_guard(self) -> None:
        if self.guard is not None and self.guard.active():
            self.guard.cancel()
        self.guard = None

    def _late(self) -> None:
        self.wasNotCleanReason = "the peer did not answer in time"
        if self.deaf and not self.lingered:
            self.lingered = True
            self.transport.loseConnection()
            self.arm_guard(self.factory.close_timeout_s)
        else:
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once, whatever was still to be sent."""
        self.deaf = self.lingered = True
        self.transport.abortConnection()
