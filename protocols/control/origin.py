"""Whether a web page may open a control connection (RFC 6455 section 10.2, RFC 6454).

A browser says in ``Origin`` where the page came from that opens a WebSocket; pages of other
servers have no business here.  Programs send no ``Origin`` and are not bound by this.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def origin_allowed(
    origin: str, host: str, allowed: Collection[str] = (), *, secure: bool = False
) -> bool:
    """Whether a page of ``origin`` may connect.

    Over TLS it must have come over TLS itself: anybody on the way can forge a page in the clear.
    Over a plain connection one of ``https`` may ask too: a proxy in front has taken the TLS off
    then, and only who holds a certificate for this very name can serve such a page.

    :param origin: the ``Origin`` header; empty if there is none.
    :param host: the ``Host`` header: what the peer called this server.
    :param allowed: origins that may although they are others, as browsers write them.
    :param secure: whether the connection is TLS here.
    """
    if not origin:
        return True
    if origin.lower().rstrip("/") in {one.lower().rstrip("/") for one in allowed}:
        return True
    try:
        page = urlsplit(origin)
        default = _DEFAULT_PORTS[page.scheme.lower()]
        if secure and page.scheme.lower() != "https":
            return False
        server = urlsplit(f"//{host}")
        same = (page.hostname, page.port or default) == (server.hostname, server.port or default)
    except (KeyError, ValueError):
        return False  # "null", another scheme, or no address at all
    return same and bool(page.hostname)
