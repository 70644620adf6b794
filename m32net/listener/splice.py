"""Where two streams of samples become one: the old through, one cross-fade, the new through.

When a listener moves to another server (CON-51) both streams flow for a while.  Every output has
a :class:`Junction`, which passes the old one on, remembers the new one, and goes over from one to
the other within 20 ms, without a gap and without a click.  If both carry the same sound, as two
servers on one console do, the new one is joined where the old one is, to the sample.  Blocks in,
blocks out: no clock is read and nothing is decoded here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FADE_S: Final = 0.02
KEPT_S: Final = 1.0
"""What is remembered of the new stream before it is joined (6 MB of 32 channels)."""
COMPARED_S: Final = 0.25
"""How much of both is compared to find where they are the same."""
REACH_S: Final = 0.2
"""How far apart the same sound may be in them."""
STALLED_S: Final = 0.4
"""A stream that has not come on for so long within a cross-fade is not waited for."""
ALIKE: Final = 0.5
"""Correlation from which two streams count as the same sound, or as much alike as a period."""
_EQUALLY: Final = 0.02  # maxima of the correlation that differ by less are as good
_LEAST_OVERLAP_S: Final = 0.02
_ALL: Final = 1 << 40
_SCALE: Final = 2.0**-31

Block = npt.NDArray[Any]
"""Shape ``(n, columns)``: int32 (full scale 2**31) or float32 (full scale 1)."""
Trace = npt.NDArray[np.float64]
"""Shape ``(n,)``: what one looks at of a block to tell where one is."""


def crossfade(
    old: Block, new: Block, first: int, total: int, alike: npt.NDArray[np.float64] | float
) -> Block:
    """A part of a cross-fade of equal power.

    The gains are a quarter of a circle, which keeps the power of two sounds that have nothing to
    do with each other; what they have in common is taken off, so that a sound faded into itself
    stays exactly itself.

    :param old: shape ``(n, columns)``, like ``new``, whose type the result has.
    :param first: number of the first row within the cross-fade of ``total`` rows.
    :param alike: correlation of the two, 0..1, of each column or of all.
    """
    phase = (np.arange(first, first + len(new)) + 0.5) / total
    angle = (math.pi / 4) * (1 - np.cos(math.pi * phase))  # no corner at either end
    power = np.sqrt(1 + np.outer(np.sin(2 * angle), np.clip(alike, 0.0, 1.0)))
    sum_ = (np.cos(angle)[:, None] * _floats(old) + np.sin(angle)[:, None] * _floats(new)) / power
    if new.dtype == np.int32:
        sum_ = np.clip(np.rint(sum_ / _SCALE), -(2.0**31), 2.0**31 - 1)
    faded: Block = sum_.astype(new.dtype)
    return faded


def likeness(old: Block, new: Block) -> npt.NDArray[np.float64]:
    """Correlation of each column of two blocks of one shape; 0 for silence."""
    x, y = _floats(old), _floats(new)
    power = np.sqrt(np.einsum("ij,ij->j", x, x) * np.einsum("ij,ij->j", y, y))
    product = np.einsum("ij,ij->j", x, y)
    found: npt.NDArray[np.float64] = np.divide(
        product, power, out=np.zeros_like(product), where=power > 1e-12
    )
    return found


def alignment(
    old: Trace, new: Trace, wanted: int, *, least: int, most: int, overlap: int
) -> tuple[int, float]:
    """Where two traces are the same.

    :param wanted: the shift to take if they are nowhere alike, or equally at several.
    :param least: smallest shift looked at, ``most`` the largest.
    :param overlap: rows that have to overlap.
    :returns: the shift, so that ``new[n + shift]`` is like ``old[n]``, and how alike they are.
    """
    least = max(least, overlap - len(old))
    most = min(most, len(new) - overlap)
    if most - least < 2:
        return wanted, 0.0
    size = 1 << (len(old) + len(new) - 1).bit_length()
    product = np.fft.irfft(np.conj(np.fft.rfft(old, size)) * np.fft.rfft(new, size), size)
    shifts = np.arange(least, most + 1)
    begin, end = np.maximum(0, -shifts), np.minimum(len(old), len(new) - shifts)
    powers = _between(old, begin, end) * _between(new, begin + shifts, end + shifts)
    # not by BLAS, whose threads may take 10 ms to wake
    whole = float((old * old).sum()) * float((new * new).sum())
    loud = powers > 1e-12 * max(1e-12, whole)
    curve = np.where(loud, product[shifts % size] / np.sqrt(np.where(loud, powers, 1.0)), 0.0)
    peaks = 1 + np.flatnonzero((curve[1:-1] >= curve[:-2]) & (curve[1:-1] >= curve[2:]))
    if not len(peaks) or curve[peaks].max() < ALIKE:
        return wanted, 0.0
    good = peaks[curve[peaks] >= curve[peaks].max() - _EQUALLY]
    best = good[np.abs(shifts[good] - wanted).argmin()]
    return int(shifts[best]), min(1.0, float(curve[best]))


class Tape:
    """The last rows of a stream, numbered from its beginning.

    :param limit: rows kept.
    :ivar first: number of the first row that is there.
    :ivar end: number of the row that comes next.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.first = self.end = 0
        self._blocks: deque[Block] = deque()

    def append(self, block: Block) -> None:
        self._blocks.append(block)
        self.end += len(block)
        while self._blocks and self.end - self.first - len(self._blocks[0]) >= self.limit:
            self.first += len(self._blocks.popleft())

    def read(self, start: int, end: int) -> Block:
        """Rows ``start`` to ``end``, all of which are there."""
        found, at = [], self.first
        for block in self._blocks:
            if at + len(block) > start and at < end:
                found.append(block[max(0, start - at) : end - at])
            at += len(block)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def drop_before(self, start: int) -> None:
        """Forget what is before a row."""
        while self._blocks and self.first + len(self._blocks[0]) <= start:
            self.first += len(self._blocks.popleft())


class Junction:
    """The way to one output, of the stream that is heard and of one that is to follow it.

    :param write: takes blocks.
    :param rate: rows per second.
    :param patient: the output can wait (a file): then both are joined exactly where they are the
        same, if they are, however far apart they come.  If not (a sound card), what is joined
        must be there already.
    :ivar current: the stream that is passed on; any object.
    :ivar coming: the one that is to follow; None as a rule.
    :ivar alike: how alike the two were in the last cross-fade, 0..1.
    :ivar shift: rows by which the new one's numbers are ahead of the old one's in it.
    :ivar shift_s: by how much the new one was ahead of the old one when it was joined, for
        people; negative if it was behind.
    """

    def __init__(
        self, write: Callable[[Block], object], rate: int, current: object, *, patient: bool
    ) -> None:
        self.rate = rate
        self.current = current
        self.coming: object = None
        self.alike = 0.0
        self.shift = 0
        self.shift_s = 0.0
        self._write = write
        self._patient = patient
        self._cut: Callable[[], None] | None = None
        self._more: Callable[[int], Block | None] = lambda rows: None
        self._held = Tape(_ALL)  # of the old one, since it was begun
        self._forget()

    @property
    def cuts(self) -> bool:
        """Whether there will be no cross-fade."""
        return self._cut is not None

    # -- before

    def expect(self, coming: object, cut: Callable[[], None] | None = None, rate: int = 0) -> None:
        """This stream is to follow.

        :param cut: the new one cannot be faded into (another rate, other channels): called
            between the last block of the old one and the first of the new.
        :param rate: of the new one, if it is cut.
        """
        self._forget()
        self.coming = coming
        self._cut = cut
        self._next_rate = rate or self.rate
        self._new = Tape(round(KEPT_S * self._next_rate))

    def give_up(self) -> None:
        """It does not follow after all."""
        self._forget()
        self.coming = None

    def put(self, stream: object, block: Block) -> None:
        """The next block of a stream; of one that is neither current nor coming: dropped."""
        if not len(block):
            return
        if stream is self.current:
            if self.coming is None:
                self._write(block)
            elif self._begun:
                self._held.append(block)
                self._advance()
            else:
                self._old.append(_trace(block))
                self._write(block)
        elif stream is self.coming:
            self._new.append(block)
            if not self._begun:
                self._new_trace.append(_trace(block))
            if self._begun:
                self._advance()

    # -- going over

    def begin(
        self,
        *,
        ahead: int = 0,
        behind: int = 0,
        more: Callable[[int], Block | None] = lambda rows: None,
        alone: bool = False,
        like: Junction | None = None,
    ) -> None:
        """Go over now.

        :param ahead: rows of the new stream that have to be there before its newest one for those
            that cannot wait.
        :param behind: rows the old stream is missing, since it has stopped.
        :param more: makes up so many rows more of the old one.
        :param alone: the old one has stopped: nothing more is expected of it.
        :param like: one that gets the same rows at the same times, and has begun: where the
            streams are the same has been found there.
        """
        self._begun = True
        self._more = more
        if self._cut is not None:
            self._go_over(self._new.end - behind)
            return
        wanted = self._new.end - ahead - behind - self._old.end
        if like is None:
            shift = self._find(wanted)
        else:
            shift, self.alike = like.shift, like.alike
        self.shift = shift
        self.shift_s = (shift - wanted) / self.rate
        self._start = self._old.end + shift
        missing = self._new.first - self._start
        if missing > 0:
            self._start = self._new.first
        if alone:
            fade = round(FADE_S * self.rate)
            self._held.append(self._made_up(fade))
            if missing > fade:  # nobody knows what was here
                self._pause(missing, fade)
        self._advance()

    def _find(self, wanted: int) -> int:
        """By how much the rows of the new stream are ahead of those of the old one."""
        rate = self.rate
        compared = round(COMPARED_S * rate)
        olds, news = self._old, self._new_trace
        first_old = max(olds.first, olds.end - compared)
        looked_at = compared + (round(REACH_S * rate) if self._patient else 0)
        first_new = max(news.first, news.end - looked_at)
        if olds.end - first_old < 1 or news.end - first_new < 1:
            return wanted
        moved = first_new - first_old
        most = round(REACH_S * rate) if self._patient else 0
        least = round(REACH_S * rate if self._patient else FADE_S * 2 * rate)
        found, self.alike = alignment(
            olds.read(first_old, olds.end)[:, 0],
            news.read(first_new, news.end)[:, 0],
            wanted - moved,
            least=wanted - moved - least,
            most=wanted - moved + most,
            overlap=round(_LEAST_OVERLAP_S * rate),
        )
        return found + moved

    def _advance(self) -> None:
        total = round(FADE_S * self.rate)
        while self._done < total:
            rows = min(total - self._done, self._held.end - self._done)
            rows = min(rows, self._new.end - self._start - self._done)
            if rows <= 0 or (self._patient and rows < total):
                if not self._stalled(total):
                    return
                continue
            old = self._held.read(self._done, self._done + rows)
            at = self._start + self._done
            new = self._new.read(at, at + rows)
            alike = likeness(old, new) if self._patient else self.alike
            self._write(crossfade(old, new, self._done, total, alike))
            self._done += rows
            if not self._patient:
                self._new.drop_before(self._start + self._done)
        self._go_over(self._start + total)

    def _stalled(self, total: int) -> bool:
        """Whether one of them was waited for long enough; what is missing is made up then."""
        limit = round(STALLED_S * self.rate) if self._patient else 2 * total
        if self._held.end < total and self._new.end - self._start - self._done > limit:
            self._held.append(self._made_up(total - self._held.end))
            return True
        if self._held.end - self._done > limit:
            self._new.append(_dying(self._start + total - self._new.end, self._new))
            return True
        self._new.limit = max(self._new.limit, self._new.end - self._start + self.rate)
        return False

    def _made_up(self, rows: int) -> Block:
        """So many rows more of the old stream, made of what was last, or silence."""
        made = self._more(rows)
        if made is None:
            return _silence(rows, self._held if self._held.end else self._new)
        if len(made) < rows:
            made = np.concatenate((made, np.zeros((rows - len(made), made.shape[1]), made.dtype)))
        return made[:rows]

    def _pause(self, missing: int, fade: int) -> None:
        """The old one fades out, silence keeps the time, and the new one will fade in."""
        old = self._held.read(0, fade)
        silence = np.zeros_like(old)
        self._write(crossfade(old, silence, 0, fade, 0.0))
        for start in range(fade, missing, self.rate):
            rows = min(self.rate, missing - start)
            self._write(np.zeros((rows, old.shape[1]), old.dtype))
        self._held = Tape(_ALL)
        self._held.append(silence)

    def _go_over(self, start: int) -> None:
        """The cross-fade is over: the new stream from here on."""
        start = max(start, self._new.first)
        rest = self._new.read(start, self._new.end) if start < self._new.end else None
        if self._cut is not None:
            self._cut()
        self.current, self.coming, self.rate = self.coming, None, self._next_rate
        self._forget()
        if rest is not None:
            self._write(rest)

    def _forget(self) -> None:
        self._cut = None
        self._next_rate = self.rate
        self._old = Tape(round(COMPARED_S * self.rate))
        self._new = Tape(0)
        self._new_trace = Tape(round((COMPARED_S + REACH_S) * self.rate))
        self._held = Tape(_ALL)
        self._begun = False
        self._start = self._done = 0
        self._more = lambda rows: None


def _silence(rows: int, like: Tape) -> Block:
    last = like.read(like.end - 1, like.end)
    return np.zeros((rows, last.shape[1]), last.dtype)


def _dying(rows: int, tape: Tape) -> Block:
    """So many rows after the last of a tape: what was last, backwards, into silence."""
    last = tape.read(max(tape.first, tape.end - rows), tape.end)[::-1]
    falling = 0.5 + 0.5 * np.cos(math.pi * (np.arange(len(last)) + 0.5) / len(last))
    out = _silence(rows, tape)
    out[: len(last)] = (last * falling[:, None]).astype(out.dtype)
    return out


def _floats(block: Block) -> npt.NDArray[np.float64]:
    floats = block.astype(np.float64)
    return floats * _SCALE if block.dtype == np.int32 else floats


def _trace(block: Block) -> Block:
    """One column that stands for all: summed with signs that no two signals are likely to share."""
    signs = np.where(np.arange(block.shape[1]) * 2654435761 % 4294967296 < 2147483648, 1.0, -0.8)
    trace: Block = (_floats(block) @ signs)[:, None]
    return trace


def _between(trace: Trace, begin: npt.NDArray[Any], end: npt.NDArray[Any]) -> Trace:
    """Power of the rows from each ``begin`` to each ``end``."""
    total = np.concatenate(([0.0], np.cumsum(trace * trace)))
    power: Trace = np.maximum(0.0, total[end] - total[begin])
    return power
