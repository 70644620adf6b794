"""Arithmetic on counters that wrap around, in the only place for it.

Sequence numbers (16 bits) and RTP time stamps (32 bits) are compared by their signed distance,
as RFC 1982 does.  The functions take ints or numpy arrays alike; :class:`Unwrapper` extends a
wrapping counter to one that never wraps.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Counter = TypeVar("Counter", int, npt.NDArray[np.int64])


def distance16(a: Counter, b: Counter) -> Counter:
    """How far ``a`` is ahead of ``b``, in -2**15..2**15-1, modulo 2**16."""
    return ((a - b + 0x8000) & 0xFFFF) - 0x8000


def distance32(a: Counter, b: Counter) -> Counter:
    """How far ``a`` is ahead of ``b``, in -2**31..2**31-1, modulo 2**32."""
    return ((a - b + 0x8000_0000) & 0xFFFF_FFFF) - 0x8000_0000


def newer16(a: int, b: int) -> bool:
    """Whether ``a`` comes after ``b``; values 2**15 apart count as older (RFC 1982 leaves it)."""
    return distance16(a, b) > 0


def newer32(a: int, b: int) -> bool:
    """Whether ``a`` comes after ``b``; values 2**31 apart count as older (RFC 1982 leaves it)."""
    return distance32(a, b) > 0


class Unwrapper:
    """Extends a counter of ``bits`` bits to an unbounded int.

    Each value is taken as the one nearest to the newest so far, so it follows reordering and
    loss of up to half the range.  The first value is returned as it is; values before it may
    come out negative.
    """

    __slots__ = ("_half", "_mask", "_newest")

    def __init__(self, bits: int) -> None:
        self._mask = (1 << bits) - 1
        self._half = 1 << (bits - 1)
        self._newest: int | None = None

    @property
    def newest(self) -> int | None:
        """The highest extended value so far; None before the first."""
        return self._newest

    def unwrap(self, value: int) -> int:
        """Extend ``value`` and remember it if it is the newest."""
        if self._newest is None:
            self._newest = value & self._mask
            return self._newest
        extended = self.peek(value)
        self._newest = max(self._newest, extended)
        return extended

    def peek(self, value: int) -> int:
        """Extend ``value`` without remembering it."""
        if self._newest is None:
            return value & self._mask
        ahead = ((value - self._newest + self._half) & self._mask) - self._half
        return self._newest + ahead
