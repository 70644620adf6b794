"""Routes for moving the listeners to another server, and between the servers (CON-51).

The engineer begins, watches and calls off; another server introduces itself and hands its
listeners over.  What is done about it is behind :class:`m32net.interfaces.IMigration`.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from twisted.web.server import Request

from m32net.interfaces import Arrival, IMigration, ITrust, Move, RefusedError
from m32net.web.answers import json_answer, json_body
from m32net.web.app import app
from m32net.web.bodies import Done

MAX_ARRIVALS = 1000

Host = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$", max_length=253)
]
"""A host name or an IPv4 address; audio goes by IPv4 only."""
Port = Annotated[int, Meta(ge=1, le=65_535)]


class MigrationOrder(Struct, frozen=True):
    """Where the listeners are to go.

    :ivar port: of the new server's web interface.
    :ivar after_s: seconds until the first is to move; ``each_s`` between one and the next.
    """

    host: Host
    port: Port
    after_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    each_s: Annotated[float, Meta(ge=0, le=60)] = 0.5


class MigrationBody(Struct, frozen=True):
    """How far it is.

    :ivar host: of the new server, with ``port``; empty before the first migration.
    :ivar pid: of this server's process, for stopping it afterwards.
    """

    state: Literal["idle", "checking", "moving", "done", "incomplete", "failed", "cancelled"]
    host: str
    port: int
    reason: str
    moves: tuple[Move, ...]
    pid: int


class PeerBody(Struct, frozen=True):
    """What a server says of itself to another one.

    :ivar instance: of this process; another one after every start.
    :ivar channels: ids of those that are sent.
    :ivar https_port: where it takes arrivals; None without TLS.
    """

    name: str
    version: str
    node_id: str
    instance: str
    channels: tuple[int, ...]
    free_places: int
    https_port: int | None = None


class ArrivalBody(Struct, frozen=True):
    """A listener that is about to come; ``token`` is its session token at its old server."""

    client_id: Annotated[str, Meta(min_length=1, max_length=64)]
    token: Annotated[str, Meta(min_length=32, max_length=256)]
    name: Annotated[str, Meta(max_length=256)]
    host: Annotated[str, Meta(max_length=45)]


class ArrivalsBody(Struct, frozen=True):
    arrivals: Annotated[tuple[ArrivalBody, ...], Meta(max_length=MAX_ARRIVALS)]


class SuccessionBody(Struct, frozen=True):
    """:ivar listen: whether this server, the successor of another on the same ports, is to take
    new connections.
    """

    listen: bool


class MigrationRoutes:
    """Mixed into :class:`m32net.web.api.WebApi`, which sets the attributes."""

    migration: IMigration | None = None
    trust: ITrust | None = None

    def admin(self, request: Request) -> str:
        """Who is logged in; raises RefusedError if nobody is."""
        raise NotImplementedError

    def _moves(self) -> IMigration:
        if self.migration is None:
            raise RefusedError("no_migration", "this server moves no listeners", 404)
        return self.migration

    @app.route("/api/migration", methods=["POST"])
    async def begin_migration(self, request: Request) -> bytes:
        self.admin(request)
        order = json_body(request, MigrationOrder)
        await self._moves().begin(
            order.host, order.port, after_s=order.after_s, each_s=order.each_s
        )
        return json_answer(request, self._status())

    @app.route("/api/migration", methods=["GET"])
    def show_migration(self, request: Request) -> bytes:
        self.admin(request)
        return json_answer(request, self._status())

    @app.route("/api/migration", methods=["DELETE"])
    def cancel_migration(self, request: Request) -> bytes:
        self.admin(request)
        self._moves().cancel()
        return json_answer(request, self._status())

    def _status(self) -> MigrationBody:
        now = self._moves().status()
        state: Any = now.state
        return MigrationBody(state, now.host, now.port, now.reason, now.moves, os.getpid())

    # -- between servers -------------------------------------------------------------------

    @app.route("/api/peer", methods=["GET"])
    def introduce(self, request: Request) -> bytes:
        introduction = self._moves().introduction()
        return json_answer(request, msgspec.convert(introduction, PeerBody, from_attributes=True))

    @app.route("/api/peer/arrivals", methods=["POST"])
    def arrivals(self, request: Request) -> bytes:
        self._peer(request)
        body = json_body(request, ArrivalsBody)
        self._moves().expect(
            [Arrival(one.client_id, one.token, one.name, one.host) for one in body.arrivals]
        )
        return json_answer(request, Done())

    @app.route("/api/succession", methods=["POST"])
    async def succession(self, request: Request) -> bytes:
        self.admin(request)
        await self._moves().listen(json_body(request, SuccessionBody).listen)
        return json_answer(request, Done())

    def _peer(self, request: Request) -> None:
        """:raises RefusedError: this is neither a server that is trusted nor the engineer."""
        transport: Any = getattr(request.channel, "transport", None)
        shown = getattr(transport, "getPeerCertificate", lambda: None)()
        if shown is not None and self.trust is not None:
            chain = transport.getHandle().get_peer_cert_chain() or ()
            if self.trust.is_peer(shown, chain):
                return
        self.admin(request)
