"""The web interface put together: all routes, one root resource, the same headers on everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from klein.resource import KleinResource
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from m32net.interfaces import IConnections, IListeners, IMigration, IServerStatus, ITrust
from m32net.settings import ISettings
from m32net.web.admin import AdminRoutes
from m32net.web.answers import error_answer, set_header
from m32net.web.app import ErrorRoutes, app
from m32net.web.auth import Auth
from m32net.web.connections import ConnectionRoutes
from m32net.web.pages import PageRoutes, static_files

HEADERS: Final = {
    "Server": "m32net",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}
"""On every answer; a route may replace some."""


class WebApi(AdminRoutes, ConnectionRoutes, PageRoutes, ErrorRoutes):
    """The REST interface and the pages.

    :param metrics: makes the text of ``/metrics``.
    :param qr_svg: makes the QR code of an address.
    :param connections: the TCP connections; with the next two, None leaves its routes out: they
        answer 404.
    :param migration: of the listeners to another server.
    :param trust: the certificates.
    :param wall: Unix time in seconds.
    """

    app = app

    def __init__(
        self,
        *,
        status: IServerStatus,
        listeners: IListeners,
        settings: ISettings,
        auth: Auth,
        metrics: Callable[[], bytes],
        qr_svg: Callable[[str], bytes],
        connections: IConnections | None = None,
        migration: IMigration | None = None,
        trust: ITrust | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.status = status
        self.listeners = listeners
        self.settings = settings
        self.auth = auth
        self.metrics = metrics
        self.qr_svg = qr_svg
        self.connections = connections
        self.migration = migration
        self.trust = trust
        self.wall = wall
        self.files = static_files()

    def root(self, control: IResource) -> Resource:
        """The resource for the site: ``control`` (the WebSocket) at ``/ws``, all else is REST."""
        return Root(self.app.resource(), control)


class Root(Resource):
    """Sends ``/ws`` to the WebSocket and the rest to Klein."""

    def __init__(self, klein: KleinResource, control: IResource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._routes = Routes(klein)
        self.putChild(b"ws", control)

    def getChildWithDefault(self, path: bytes, request: Request) -> IResource:
        for name, value in HEADERS.items():
            set_header(request, name, value)
        child: IResource = super().getChildWithDefault(path, request)  # type: ignore[no-untyped-call]
        return child

    def getChild(self, path: bytes, request: Request) -> IResource:
        # Klein routes by the whole path, so what was taken off it is put back.
        assert request.prepath is not None and request.postpath is not None
        request.prepath.pop()
        request.postpath.insert(0, path)
        return self._routes


class Routes(Resource):
    """Klein, guarded against requests it can't even look at."""

    isLeaf = True

    def __init__(self, klein: KleinResource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._klein = klein

    def render(self, request: Request) -> Any:
        try:
            for text in (request.method, request.path, *(request.postpath or ())):
                text.decode("utf-8")
            request.getRequestHostname().decode("ascii")  # type: ignore[no-untyped-call]
            return self._klein.render(request)
        except (UnicodeError, HTTPException):
            return error_answer(
                request, 400, "bad_request", "method, address and Host header must be readable text"
            )
