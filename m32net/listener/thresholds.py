"""How long a gap may be before it is no longer filled, and who decides (STR-25, STR-27).

Two numbers in ms: up to ``interpolate`` a gap is concealed, from ``drop`` on it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

DEFAULT_INTERPOLATE_MS: Final = 100.0
DEFAULT_DROP_MS: Final = 200.0
MAX_MS: Final = 5000.0
INTERPOLATE_VARIABLE: Final = "JITTER_INTERPOLATE_MS"
DROP_VARIABLE: Final = "JITTER_DROP_MS"


class ThresholdError(ValueError):
    """Thresholds that cannot be: the text names the one that is wrong."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds in force.

    :raises ThresholdError: unless 0 < interpolate < drop <= 5000 (STR-38).
    """

    interpolate_ms: float = DEFAULT_INTERPOLATE_MS
    drop_ms: float = DEFAULT_DROP_MS

    def __post_init__(self) -> None:
        if not 0 < self.interpolate_ms < self.drop_ms <= MAX_MS:
            raise ThresholdError(
                f"interpolate {self.interpolate_ms:g} ms and drop {self.drop_ms:g} ms: it must "
                f"be 0 < interpolate < drop <= {MAX_MS:g}"
            )


def choose(environment: Mapping[str, str], server: Thresholds | None) -> Thresholds:
    """The thresholds by STR-27: environment, then the server's, then 100 and 200 ms.

    If the environment sets only one and the other would not fit it, the other follows, at half or
    twice the value.

    :raises ThresholdError: a variable is no number, or both together cannot be.
    """
    fallback = server or Thresholds()
    interpolate = _number(environment, INTERPOLATE_VARIABLE)
    drop = _number(environment, DROP_VARIABLE)
    if interpolate is None and drop is None:
        return fallback
    if interpolate is None:
        assert drop is not None
        fits = fallback.interpolate_ms < drop
        return Thresholds(fallback.interpolate_ms if fits else drop / 2, drop)
    if drop is None:
        fits = interpolate < fallback.drop_ms
        return Thresholds(interpolate, fallback.drop_ms if fits else min(2 * interpolate, MAX_MS))
    return Thresholds(interpolate, drop)


def _number(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_MS:
        raise ThresholdError(f"{name}={text}: a number of ms, over 0 and at most {MAX_MS:g}")
    return value
