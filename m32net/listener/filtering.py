"""scipy's ``lfilter``, loaded when the first samples are wanted.

Importing :mod:`scipy.signal` takes longer than all the rest of a listener, and one that only
measures never filters anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def load_lfilter() -> Callable[..., Any]:
    """``scipy.signal.lfilter``; the first call takes half a second."""
    from scipy.signal import lfilter  # noqa: PLC0415

    found: Callable[..., Any] = lfilter
    return found
