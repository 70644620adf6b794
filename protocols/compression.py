"""When compressing pays, and doing it within bounds (CON-20): deflate and gzip over zlib.

For WebSocket messages (permessage-deflate, RFC 7692) and HTTP bodies (RFC 9110 section 8.4.1.3)
alike.  Functions of their arguments only: nothing is kept between two calls, so a connection that
says nothing costs no memory, and what peers sent is never inflated beyond a limit.
"""

from __future__ import annotations

import zlib
from typing import Final, Literal

from protocols.errors import RemoteProtocolError

THRESHOLD_BYTES: Final = 10 * 1024
"""What is not longer than this is sent as it is."""
SHARED_THRESHOLD_BYTES: Final = 64
"""The same for messages that many are sent: they are compressed once for all."""
LEAST_SAVING: Final = 0.1
"""Fraction of its size that compressing must save, or it is sent as it is."""
LEVEL: Final = 6
"""zlib's own compromise; more costs several times the CPU for a few percent of JSON."""
MAX_WINDOW_BITS: Final = 15

_MEMORY_LEVEL: Final = 8
_GZIP_BITS: Final = 16  # added to the window bits: zlib is to write and read gzip's frame
_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692 section 7.2.1: ends each message, is not sent
_AFTER_LAST_BLOCK: Final = (b"", _TAIL, b"\x00" + _TAIL)  # RFC 7692 section 7.2.3.4


class InflateError(RemoteProtocolError):
    """Compressed data cannot be taken.

    :ivar code: ``too_large``: it inflates beyond the limit; ``bad_data``: it is no such stream.
    """


def worth_trying(size: int, threshold: int = THRESHOLD_BYTES) -> bool:
    """Whether ``size`` bytes may be worth compressing at all."""
    return size > threshold


def worth_compressing(size: int, compressed_size: int, threshold: int = THRESHOLD_BYTES) -> bool:
    """Whether ``size`` bytes are to be sent as these ``compressed_size`` (CON-20)."""
    return worth_trying(size, threshold) and compressed_size <= size * (1 - LEAST_SAVING)


def gzip(data: bytes) -> bytes | None:
    """``data`` as a gzip member, or None where it is to be sent as it is.

    The same data gives the same bytes: there is no time stamp in it.
    """
    return _packed(data, _GZIP_BITS | MAX_WINDOW_BITS, zlib.Z_FINISH, 0)


def deflate(
    data: bytes, window_bits: int = MAX_WINDOW_BITS, threshold: int = THRESHOLD_BYTES
) -> bytes | None:
    """``data`` as the payload of a compressed message (RFC 7692 section 7.2.1).

    :param window_bits: 9..15, what the peer is ready to keep.
    :param threshold: what is not longer is not tried.
    :returns: None where it is to be sent as it is.
    """
    return _packed(data, -window_bits, zlib.Z_SYNC_FLUSH, len(_TAIL), threshold)


def inflate(data: bytes, limit: int, *, form: Literal["deflate", "gzip"] = "deflate") -> bytes:
    """The inverse of :func:`deflate` or :func:`gzip`, for data of whoever.

    :param limit: bytes of the result at most; no more than that is ever made.
    :raises InflateError: longer than that, cut short, or no such data.
    """
    raw = form == "deflate"
    inflater = Inflater(limit, -MAX_WINDOW_BITS if raw else _GZIP_BITS | MAX_WINDOW_BITS)
    result = inflater.feed(data)
    if raw:
        return result + inflater.end_message()
    if not inflater.finished:
        raise InflateError("the compressed data is cut short", code="bad_data")
    return result


class Inflater:
    """Inflates one message piece by piece, never to more than ``limit`` bytes in all.

    :param window_bits: as zlib has them: negative for deflate without a frame.
    """

    __slots__ = ("_inflater", "_left", "_limit")

    def __init__(self, limit: int, window_bits: int = -MAX_WINDOW_BITS) -> None:
        self._inflater = zlib.decompressobj(window_bits)
        self._limit = limit
        self._left = limit

    def feed(self, data: bytes) -> bytes:
        """What these bytes add to the message.

        :raises InflateError: it would be longer than the limit, or the data is corrupt.
        """
        try:
            # One more than allowed tells "exactly the limit" from "beyond"; 0 would mean no bound.
            piece = self._inflater.decompress(data, self._left + 1)
        except zlib.error as error:
            raise InflateError(
                f"the compressed data is corrupt: {error}", code="bad_data"
            ) from None
        if len(piece) > self._left:
            raise InflateError(f"it inflates to more than {self._limit} bytes", code="too_large")
        self._left -= len(piece)
        return piece

    def end_message(self) -> bytes:
        """The message is over: feed what its sender left out (RFC 7692 section 7.2.2).

        :raises InflateError: as :meth:`feed`, or data follows its last block.
        """
        piece = self.feed(_TAIL)
        if self._inflater.unused_data not in _AFTER_LAST_BLOCK:
            raise InflateError("data follows the end of the compressed data", code="bad_data")
        return piece

    @property
    def finished(self) -> bool:
        """Whether the stream said that it ends here, and nothing follows."""
        return self._inflater.eof and not self._inflater.unused_data


def _packed(
    data: bytes, window_bits: int, flush: int, tail: int, threshold: int = THRESHOLD_BYTES
) -> bytes | None:
    if not worth_trying(len(data), threshold):
        return None
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, window_bits, _MEMORY_LEVEL)
    packed = packer.compress(data) + packer.flush(flush)
    packed = packed[: len(packed) - tail]
    return packed if worth_compressing(len(data), len(packed), threshold) else None
