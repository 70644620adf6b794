"""The log every room writes to: Twisted's structured logger with one threshold for all.

Events keep their fields (``listener``, ``reason``, …; STR-11), so any Twisted log observer, such
as the JSON one, gets them whole.
"""

from __future__ import annotations

from typing import Any, ClassVar

from constantly import NamedConstant
from twisted.logger import Logger, LogLevel


class RoomLog(Logger):
    """A logger that leaves out what is below :attr:`threshold`."""

    threshold: ClassVar[NamedConstant] = LogLevel.info

    def emit(self, level: NamedConstant, format: str | None = None, **kwargs: Any) -> None:
        if level >= self.threshold:
            super().emit(level, format, **kwargs)
