"""Where a request is sent while the listeners move to another server (CON-51).

What a newcomer asks first is answered by the other server: the listener's page, what audio there
is, how to play it.  What concerns this server, or somebody who is still here, stays here: the
engineer's page and ``/api``, ``/health`` and ``/metrics``, and the port a listener has named.
"""

from __future__ import annotations

from typing import Final

from twisted.web.server import Request

from m32net.interfaces import IListeners
from m32net.web.answers import error_answer, set_header

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


def moved_answer(request: Request, target: str) -> bytes:
    """307 to the same address on the other server.

    :param target: its URL without a path.
    """
    url = target + request.path.decode("utf-8", "replace")
    _, asked, query = request.uri.partition(b"?")
    if asked:
        url += "?" + query.decode("latin-1")
    set_header(request, "Location", url)
    # Nothing more is for this server, which is to be stopped: it need not keep the connection.
    set_header(request, "Connection", "close")
    request.channel.persistent = False
    return error_answer(request, 307, "moved", f"the listeners move to {target}; look there")
