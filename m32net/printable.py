"""Text from elsewhere, made fit for a terminal.

Names are chosen by guests; an escape sequence in one could do to the engineer's terminal what it
likes.  Nothing here knows what the text says.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

REPLACEMENT: Final = "�"


def printable(text: str) -> str:
    """The same in one line, with every character that is not printable replaced.

    These are control characters, line ends, marks that turn the direction of writing, and what
    Unicode has not assigned.
    """
    return "".join(one if one.isprintable() else REPLACEMENT for one in text)


def printable_json(value: Any, separators: tuple[str, str] = (", ", ": ")) -> str:
    """JSON in one line for people and programs: what is not printable is escaped in it."""
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    return re.sub(r"[^\x20-\x7e]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    one = found.group()
    # Only strings hold such characters, so an escape stands for each.
    return one if one.isprintable() else json.dumps(one)[1:-1]
