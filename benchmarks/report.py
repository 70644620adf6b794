"""What a part of the benchmarks found, and how it is shown: tables, verdicts, progress.

Formatting only.  Tables are Markdown, so that a run can be put into ``docs/benchmarks.md`` as it
is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target held against what was measured; ``met`` is None where it could not be judged."""

    what: str
    target: str
    measured: str
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "met", False: "MISSED", None: "not judged"}[self.met]


@dataclass(slots=True)
class Table:
    """Rows of numbers and texts; a number is shown with a sensible count of digits."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)

    def text(self) -> str:
        cells = [[_cell(value) for value in row] for row in self.rows]
        widths = [
            max([len(name), *(len(row[at]) for row in cells)])
            for at, name in enumerate(self.columns)
        ]
        lines = [
            f"**{self.title}**",
            "",
            _line([name.ljust(width) for name, width in zip(self.columns, widths, strict=True)]),
            _line(["-" * width for width in widths]),
            *(
                _line([text.ljust(width) for text, width in zip(row, widths, strict=True)])
                for row in cells
            ),
        ]
        return "\n".join(lines)


@dataclass(slots=True)
class PartResult:
    """One part: what is printed and what goes into the JSON file."""

    name: str
    tables: list[Table] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        parts = [table.text() for table in self.tables]
        parts += [f"- {note}" for note in self.notes]
        if self.verdicts:
            judged = Table("Targets", ("what", "target", "measured", "verdict"))
            judged.rows += [(v.what, v.target, v.measured, v.word) for v in self.verdicts]
            parts.append(judged.text())
        return "\n\n".join(parts)

    def json(self) -> dict[str, Any]:
        verdicts = [
            {"what": v.what, "target": v.target, "measured": v.measured, "met": v.met}
            for v in self.verdicts
        ]
        return {**self.data, "verdicts": verdicts, "notes": self.notes}


class Progress:
    """One line on a terminal that says what is being done; nothing elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._began = time.monotonic()
        self.part = ""

    def __call__(self, doing: str) -> None:
        if self._shown:
            elapsed = time.monotonic() - self._began
            line = f"{elapsed:4.0f} s  {self.part}: {doing} ..."
            self._stream.write(f"\r{line[:110]:<110}")
            self._stream.flush()

    def clear(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * 110 + "\r")
            self._stream.flush()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        return f"{value:,.{digits}f}"
    return str(value)
