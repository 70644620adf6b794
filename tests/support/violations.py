"""What RFC 6455 and RFC 7692 forbid a client, as bytes, and how a server has to answer.

The same list is sent to a protocol in memory and to a real server.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from tests.support.websocket import BINARY, CLOSE, PING, PONG, TEXT, frame

MIB = 1 << 20
CONTINUATION = 0


@dataclass(frozen=True)
class Violation:
    """Bytes after the handshake.

    :ivar code: of the close frame that has to come.
    :ivar compressed: with permessage-deflate agreed on.
    """

    name: str
    data: bytes = field(repr=False)
    code: int
    compressed: bool = False


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def _cut(opcode: int, pieces: list[bytes]) -> bytes:
    """A message in fragments."""
    last = len(pieces) - 1
    return b"".join(
        frame(CONTINUATION if number else opcode, piece, fin=number == last)
        for number, piece in enumerate(pieces)
    )


def _framing() -> list[Violation]:
    found = [
        Violation(f"reserved bits {rsv}", frame(TEXT, b"{}", rsv=rsv), 1002) for rsv in range(1, 8)
    ]
    found += [
        Violation(
            f"reserved bits {rsv}, deflate agreed on", frame(TEXT, b"{}", rsv=rsv), 1002, True
        )
        for rsv in (1, 2, 3, 5, 6, 7)
    ]
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        found.append(Violation(f"reserved opcode {opcode}", frame(opcode, b""), 1002))
    for opcode in (TEXT, PING, PONG, CLOSE):
        unmasked = bytes([0x80 | opcode, 2]) + (b"{}" if opcode != CLOSE else b"\x03\xe8")
        found.append(Violation(f"unmasked frame {opcode}", unmasked, 1002))
    for opcode in (CLOSE, PING, PONG):
        found.append(Violation(f"fragmented control {opcode}", frame(opcode, b"", fin=False), 1002))
        long = frame(opcode, b"\x03\xe8" + b"x" * 124)
        found.append(Violation(f"control {opcode} of 126 bytes", long, 1002))
        found.append(
            Violation(f"control {opcode} with RSV1", frame(opcode, b"", rsv=4), 1002, True)
        )
    start = frame(TEXT, b'{"type":', fin=False)
    found += [
        Violation("continuation of nothing", frame(CONTINUATION, b"x"), 1002),
        Violation("continuation of nothing, more to come", frame(0, b"x", fin=False), 1002),
        Violation("continuation after a whole message", frame(TEXT, b"{}") + frame(0, b""), 1002),
        Violation("text inside a message", start + frame(TEXT, b"{}"), 1002),
        Violation("binary inside a message", start + frame(BINARY, b"{}"), 1002),
        Violation("RSV1 on a continuation", start + frame(0, b"{}", rsv=4), 1002, True),
        Violation("16-bit length of 125", b"\x81\xfe\x00\x7d\0\0\0\0" + b" " * 125, 1002),
        Violation("64-bit length of 65535", b"\x81\xff" + struct.pack("!QI", 65535, 0), 1002),
        Violation("length 2^63", b"\x81\xff" + struct.pack("!QI", 1 << 63, 0), 1002),
        Violation("length 2^64 - 1", b"\x81\xff" + struct.pack("!QI", 2**64 - 1, 0), 1002),
    ]
    return found


def _texts() -> list[Violation]:
    bad = {
        "a lone continuation byte": b"\x80",
        "an overlong slash": b"\xc0\xaf",
        "a surrogate": b"\xed\xa0\x80",
        "beyond Unicode": b"\xf4\x90\x80\x80",
        "a byte that is in no UTF-8": b"\xff",
        "a character cut off by the end": "€".encode()[:2],
    }
    found = [Violation(f"text: {name}", frame(TEXT, b'"' + raw), 1007) for name, raw in bad.items()]
    euro = "€".encode()
    found += [
        Violation("a character torn apart", _cut(TEXT, [b'"' + euro[:1], b"x"]), 1007),
        Violation("cut off in the last of three", _cut(TEXT, [b'"', euro[:1], euro[1:2]]), 1007),
        Violation("bad text, more to come", frame(TEXT, b"\xf0\x28", fin=False), 1007),
        Violation(
            "bad text, the rest of the frame to come",
            frame(TEXT, b"\xf0\x28", length=MIB),
            1007,
        ),
        Violation("bad text, compressed", frame(TEXT, deflated(b'"\xff"'), rsv=4), 1007, True),
        Violation("binary", frame(BINARY, b'{"type":"hello"}'), 1003),
        Violation("binary, more to come", frame(BINARY, b"\0", fin=False), 1003),
        Violation("empty binary", frame(BINARY, b""), 1003),
    ]
    return found


def _closes() -> list[Violation]:
    codes = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    found = [Violation(f"close code {code}", close_frame(code), 1002) for code in codes]
    found += [
        Violation("close with one byte", frame(CLOSE, b"\x03"), 1002),
        Violation("close reason in no UTF-8", close_frame(1000, b"\xff"), 1007),
        Violation("close reason cut off", close_frame(1000, "€".encode()[:2]), 1007),
    ]
    return found


def _sizes() -> list[Violation]:
    bomb = deflated(bytes(64 * MIB))
    over = b'"' + b"x" * MIB
    pieces = [bomb[start : start + 5000] for start in range(0, len(bomb), 5000)]
    bomb_in_fragments = b"".join(
        frame(0 if number else TEXT, piece, fin=number == len(pieces) - 1, rsv=0 if number else 4)
        for number, piece in enumerate(pieces)
    )
    return [
        Violation("1 MiB and one byte", frame(TEXT, over), 1009),
        Violation("announced, not sent", frame(TEXT, b"", length=MIB + 1), 1009),
        Violation("length 2^62", frame(TEXT, b"", length=1 << 62), 1009),
        Violation("length 2^63 - 1", frame(TEXT, b"", length=(1 << 63) - 1), 1009),
        Violation("in fragments", _cut(TEXT, [over[:600_000], over[600_000:]]), 1009),
        Violation("a bomb", frame(TEXT, bomb, rsv=4), 1009, True),
        Violation("a bomb in fragments", bomb_in_fragments, 1009, True),
        Violation("inflated by one byte", frame(TEXT, deflated(over), rsv=4), 1009, True),
        Violation("no deflate", frame(TEXT, b"\xff" * 20, rsv=4), 1007, True),
        Violation(
            "frames without end",
            frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * 3000,
            1008,
        ),
        Violation("pongs without end", frame(PONG, b"") * 3000, 1008),
        Violation("pings without end", frame(PING, b"") * 300, 1008),
    ]


VIOLATIONS = [*_framing(), *_texts(), *_closes(), *_sizes()]

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
_GOOD = [
    b"Host: 127.0.0.1",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    KEY,
    b"Sec-WebSocket-Version: 13",
]


def request(start: bytes = b"GET /ws HTTP/1.1", without: bytes = b"", *also: bytes) -> bytes:
    """A handshake that lacks what starts with ``without`` and has ``also``."""
    lines = [line for line in _GOOD if not without or not line.startswith(without)]
    return b"\r\n".join([start, *lines, *also, b"", b""])


BAD_HANDSHAKES: list[tuple[str, bytes, int]] = [
    (
        "another version",
        request(b"GET /ws HTTP/1.1", b"Sec-WebSocket-V", b"Sec-WebSocket-Version: 8"),
        426,
    ),
    (
        "a draft's version",
        request(b"GET /ws HTTP/1.1", b"Sec-WebSocket-V", b"Sec-WebSocket-Version: 0"),
        426,
    ),
    ("no version", request(without=b"Sec-WebSocket-V"), 426),
    (
        "a version that is none",
        request(b"GET /ws HTTP/1.1", b"Sec-WebSocket-V", b"Sec-WebSocket-Version: x"),
        400,
    ),
    ("no key", request(without=b"Sec-WebSocket-K"), 400),
    (
        "a short key",
        request(b"GET /ws HTTP/1.1", b"Sec-WebSocket-K", b"Sec-WebSocket-Key: c2hvcnQ="),
        400,
    ),
    (
        "a key that is no base64",
        request(b"GET /ws HTTP/1.1", b"Sec-WebSocket-K", KEY[:-4] + b"!!=="),
        400,
    ),
    ("two keys", request(b"GET /ws HTTP/1.1", b"", KEY), 400),
    ("POST", request(b"POST /ws HTTP/1.1"), 405),
    ("PUT", request(b"PUT /ws HTTP/1.1"), 405),
    ("no Upgrade", request(without=b"Upgrade"), 426),
    ("Upgrade to something else", request(b"GET /ws HTTP/1.1", b"Upgrade", b"Upgrade: h2c"), 400),
    ("no Connection", request(without=b"Connection"), 400),
    (
        "Connection without upgrade",
        request(b"GET /ws HTTP/1.1", b"Connection", b"Connection: keep-alive"),
        400,
    ),
    ("no Host", request(without=b"Host"), 400),
    (
        "another server's page",
        request(b"GET /ws HTTP/1.1", b"", b"Origin: http://evil.example"),
        403,
    ),
    (
        "another port's page",
        request(b"GET /ws HTTP/1.1", b"", b"Origin: http://127.0.0.1:8081"),
        403,
    ),
    ("a page from nowhere", request(b"GET /ws HTTP/1.1", b"", b"Origin: null"), 403),
]
