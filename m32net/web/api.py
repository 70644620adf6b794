"""The web interface put together: all routes, one root resource, the same headers on everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from klein.resource import KleinResource
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from m32net.interfaces import IConnections, IListeners, IMigration, IServerStatus, ITrust
from m32net.settings import ISettings
from m32net.web.admin import AdminRoutes
from m32net.web.answers import LongAnswers, error_answer, is_secure
from m32net.web.app import ErrorRoutes, app
from m32net.web.auth import Auth
from m32net.web.connections import ConnectionRoutes
from m32net.web.headers import set_headers
from m32net.web.migration import MigrationRoutes
from m32net.web.moved import moved_answer, moves
from m32net.web.pages import PageRoutes, description, static_files
from m32net.web.public import FreshSummary
from m32net.web.trust import TrustRoutes


class WebApi(AdminRoutes, TrustRoutes, ConnectionRoutes, MigrationRoutes, PageRoutes, ErrorRoutes):
    """The REST interface and the pages.

    :param metrics: makes the text of ``/metrics``.
    :param qr_svg: makes the QR code of an address.
    :param connections: the TCP connections; with the next two, None leaves its routes out: they
        answer 404.
    :param migration: of the listeners to another server.
    :param trust: the certificates.
    :param compress: whether long answers are compressed for those who take it (CON-20).
    :param hsts: whether browsers are bound to https; see :func:`m32net.web.headers.hsts_fits`.
    :param in_thread: runs a blocking callable elsewhere and gives a Deferred of its result.
    :param wall: Unix time in seconds.
    :param seconds: a steady clock.
    """

    app = app

    def __init__(
        self,
        *,
        status: IServerStatus,
        listeners: IListeners,
        settings: ISettings,
        auth: Auth,
        metrics: Callable[[], Deferred[bytes]],
        qr_svg: Callable[[str], bytes],
        connections: IConnections | None = None,
        migration: IMigration | None = None,
        trust: ITrust | None = None,
        compress: bool = True,
        hsts: bool = False,
        in_thread: Callable[..., Deferred[Any]] = deferToThread,
        wall: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
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
        self.compress = compress
        self.hsts = hsts
        self.long = LongAnswers(in_thread)
        self.wall = wall
        self.reception = FreshSummary(listeners, seconds)
        self.files = static_files()
        description(status.version)  # 15 ms of CPU, now rather than while audio flows

    def root(self, control: IResource) -> Resource:
        """The resource for the site: ``control`` (the WebSocket) at ``/ws``, all else is REST."""
        return Root(Routes(self), control, compress=self.compress, hsts=self.hsts)

    def moved_to(self, request: Request) -> str | None:
        """URL of the server this newcomer is sent to, if the listeners move (CON-51)."""
        if self.migration is None:
            return None
        return self.migration.moved_to(secure=is_secure(request))


class Root(Resource):
    """Sends ``/ws`` to the WebSocket and the rest to Klein."""

    def __init__(self, routes: Routes, control: IResource, *, compress: bool, hsts: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._routes = routes
        self._compress = compress
        self._hsts = hsts
        self.putChild(b"ws", control)

    def getChildWithDefault(self, path: bytes, request: Request) -> IResource:
        set_headers(request, hsts=self._hsts)
        if not self._compress:
            request.requestHeaders.removeHeader(b"Accept-Encoding")
        child: IResource = super().getChildWithDefault(path, request)  # type: ignore[no-untyped-call]
        return child

    def getChild(self, path: bytes, request: Request) -> IResource:
        # Klein routes by the whole path, so what was taken off it is put back.
        assert request.prepath is not None and request.postpath is not None
        request.prepath.pop()
        request.postpath.insert(0, path)
        return self._routes


class Routes(Resource):
    """Klein, guarded against requests it can't even look at or that are for another server."""

    isLeaf = True

    def __init__(self, api: WebApi) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._api = api
        self._klein: KleinResource = api.app.resource()

    def render(self, request: Request) -> Any:
        try:
            for text in (request.method, request.path, *(request.postpath or ())):
                text.decode("utf-8")
            request.getRequestHostname().decode("ascii")  # type: ignore[no-untyped-call]
            target = self._api.moved_to(request)
            if target is not None and moves(request, self._api.listeners):
                return moved_answer(request, target)
            return self._klein.render(request)
        except (UnicodeError, HTTPException):
            return error_answer(
                request, 400, "bad_request", "method, address and Host header must be readable text"
            )
