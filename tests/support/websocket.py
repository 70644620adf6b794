"""A WebSocket client made of bytes, on an in-memory transport: it can also do what is wrong."""

from __future__ import annotations

import json
import struct

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
DEFLATE = HANDSHAKE[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Transport(StringTransport):
    """Counts as connected until it is closed, and tells its protocol then."""

    def __init__(self, host: str = "192.0.2.7", port: int = 40_000) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, port))
        self.aborted = False

    def unregisterProducer(self) -> None:
        self.producer = None  # as on a socket: none registered is no error

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, length: int | None = None
) -> bytes:
    """One masked frame (RFC 6455 section 5.2); ``length`` lies about the payload's.

    :param rsv: the reserved bits, 4 is RSV1.
    """
    size = len(payload) if length is None else length
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload  # a mask of zeros leaves the payload as it is


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcodes and payloads of the unmasked frames a server sent."""
    found = []
    while data:
        size, at = data[1] & 0x7F, 2
        if size == 126:
            (size,), at = struct.unpack_from("!H", data, 2), 4
        elif size == 127:
            (size,), at = struct.unpack_from("!Q", data, 2), 10
        found.append((data[0] & 0x0F, data[at : at + size]))
        data = data[at + size :]
    return found


class ByteClient:
    """Talks to a server's protocol directly."""

    def __init__(self, factory, host: str = "192.0.2.7") -> None:
        self.clock = factory.reactor
        self.transport = Transport(host)
        self.protocol = factory.buildProtocol(self.transport.getPeer())
        self.protocol.makeConnection(self.transport)

    def feed(self, data: bytes) -> None:
        """Send, and let the server have as many turns of its test clock as that takes."""
        self.send(data)
        while self.transport.producerState == "paused" and not self.transport.disconnecting:
            self.clock.advance(0)

    def send(self, data: bytes) -> None:
        """Send what is read at once, within one turn."""
        self.protocol.dataReceived(data)

    def open(self, handshake: bytes = HANDSHAKE) -> bytes:
        """Shake hands; returns the server's answer."""
        self.feed(handshake)
        answer = self.transport.value()
        self.transport.clear()
        return answer

    def say(self, **message) -> None:
        self.feed(frame(TEXT, json.dumps(message).encode()))

    def heard(self) -> list[tuple[int, bytes]]:
        """Frames since the last time."""
        data = self.transport.value()
        self.transport.clear()
        return frames(data)

    def messages(self) -> list[dict]:
        return [json.loads(data) for opcode, data in self.heard() if opcode == TEXT]

    def close_code(self) -> tuple[int, str]:
        """Of the close frame among what was heard now."""
        (data,) = [data for opcode, data in self.heard() if opcode == CLOSE]
        return struct.unpack_from("!H", data)[0], data[2:].decode()

    def lose(self, reason) -> None:
        self.protocol.connectionLost(reason)
