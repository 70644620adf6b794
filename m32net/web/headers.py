"""The headers every answer has: what browsers may do with it, and with the pages around it.

Nothing of these depends on the route; a route may replace some.  The content security policy
names the WebSocket of the host that was asked, since not every browser counts it as ``'self'``.
"""

from __future__ import annotations

import re
from typing import Final

from twisted.web.server import Request

from m32net.web.answers import header, is_secure, set_header

HEADERS: Final = {
    "Server": "m32net",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""The same on every answer; the content security policy comes on top."""

HSTS: Final = "max-age=15552000"
"""Half a year, this host alone."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src {connect}; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""What may stand in a policy; a Host header holds whatever the client wrote there."""


def content_security_policy(host: str | None, secure: bool) -> str:
    """The policy of a page that came from ``host``, a Host header: nothing from anywhere else."""
    connect = "'self'"
    if host is not None and _HOST.fullmatch(host):
        connect += f" {'wss' if secure else 'ws'}://{host}"
    return _POLICY.format(connect=connect)


def hsts_fits(own_certificate: bool, http: str) -> bool:
    """Whether browsers may be bound to https.

    They then refuse plain HTTP on all ports of this host, so nobody may need it, and certificates
    they don't trust can't be clicked away any more, so no phone may need the local CA first.

    :param own_certificate: one was given; the local CA signs none.
    :param http: endpoint description of the plain pages.
    """
    return own_certificate and re.search(r":interface=(127\.|localhost|\\:\\:1)", http) is not None


def set_headers(request: Request, *, hsts: bool = False) -> None:
    """Put the headers on the answer to come.

    :param hsts: also bind browsers to https for this host; see :func:`hsts_fits`.
    """
    for name, value in HEADERS.items():
        set_header(request, name, value)
    secure = is_secure(request)
    policy = content_security_policy(header(request, b"Host"), secure)
    set_header(request, "Content-Security-Policy", policy)
    if hsts and secure:
        set_header(request, "Strict-Transport-Security", HSTS)
