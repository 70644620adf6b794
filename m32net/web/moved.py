"""Where a request is sent while the listeners move to another server (CON-51).

What a newcomer asks first is answered by the other server: the listener's page, what audio there
is, how to play it.  What concerns this server, or somebody who is still here, stays here: the
engineer's page and ``/api``, ``/health`` and ``/metrics``, and the port a listener has named.
"""

from __future__ import annotations

from typing import Final

from twisted.web.server import Request

from m32net.interfaces import IListeners
from m32net.web.answers import error_answer, is_secure, set_header

MOVED: Final = frozenset({"/", "/audio-meta", "/jitter-thresholds"})
_SDP: Final = ("/sdp/", ".sdp")


def moves(request: Request, listeners: IListeners) -> bool:
    """Whether this is a request for the other server."""
    if request.method not in (b"GET", b"HEAD"):
        return False
    path = request.path.decode("utf-8", "replace")
    start, end = _SDP
    if path.startswith(start) and path.endswith(end):
        return listeners.sdp(path[len(start) : -len(end)]) is None
    return path in MOVED


def base_url(target: str, secure: bool) -> str:
    """``HOST:PORT`` as a URL without a path; a target that is a URL already keeps its scheme."""
    if "://" in target:
        return target.rstrip("/")
    return f"{'https' if secure else 'http'}://{target}"


def moved_answer(request: Request, target: str) -> bytes:
    """307 to the same address on the other server."""
    url = base_url(target, is_secure(request)) + request.path.decode("utf-8", "replace")
    _, asked, query = request.uri.partition(b"?")
    if asked:
        url += "?" + query.decode("latin-1")
    set_header(request, "Location", url)
    # The successor may have this very address and port: then only a new connection reaches it.
    set_header(request, "Connection", "close")
    request.channel.persistent = False
    return error_answer(request, 307, "moved", f"the listeners move to {target}; look there")
