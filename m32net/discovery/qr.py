"""QR codes of the page's address, as SVG for the web and as text for the terminal (STR-13)."""

from __future__ import annotations

import io
from functools import lru_cache

import segno


@lru_cache(maxsize=16)
def qr_svg(url: str) -> bytes:
    """A QR code of ``url`` as a stand-alone SVG document, black on white with its quiet zone.

    :raises ValueError: more text than a QR code holds (about 2,300 bytes).
    """
    out = io.BytesIO()
    segno.make(url, error="m", micro=False).save(
        out, kind="svg", scale=8, border=4, dark="#000", light="#fff", svgclass=None, lineclass=None
    )
    return out.getvalue()


def qr_terminal(url: str) -> str:
    """A QR code of ``url`` in half-block characters, two modules in a character's height.

    Light modules are drawn and dark ones left out, so it scans from a terminal with light text
    on a dark ground.

    :raises ValueError: more text than a QR code holds.
    """
    out = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(out, compact=True, border=2)
    return out.getvalue()
