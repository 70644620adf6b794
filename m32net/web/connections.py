"""The engineer's routes about TCP connections: who is connected, who is shut out (CON-13, CON-30).

They show what :class:`m32net.interfaces.IConnections` says; who is admitted is decided there.
"""

from __future__ import annotations

from twisted.web.server import Request

from m32net.interfaces import IConnections, RefusedError
from m32net.web.answers import JSON, LongAnswers, as_json, json_answer
from m32net.web.app import app
from m32net.web.bodies import BlockedBody, ConnectionsBody, Done


class ConnectionRoutes:
    """Mixed into :class:`m32net.web.api.WebApi`, which sets the attribute."""

    connections: IConnections | None
    long: LongAnswers

    def admin(self, request: Request) -> str:
        """Who is logged in; raises RefusedError if nobody is."""
        raise NotImplementedError

    def _known(self) -> IConnections:
        if self.connections is None:
            raise RefusedError("not_watched", "this server does not watch its connections", 404)
        return self.connections

    @app.route("/api/connections", methods=["GET"])
    async def all_connections(self, request: Request) -> bytes:
        self.admin(request)
        found = tuple(self._known().connections())
        return await self.long.answer(request, as_json(ConnectionsBody(found, len(found))), JSON)

    @app.route("/api/blocked", methods=["GET"])
    def blocked(self, request: Request) -> bytes:
        self.admin(request)
        return json_answer(request, BlockedBody(tuple(self._known().blocked())))

    @app.route("/api/blocked/<path:address>", methods=["DELETE"])
    def unblock(self, request: Request, address: str) -> bytes:
        self.admin(request)
        # A path, not a name: of IPv6 a whole network is shut out, such as 2001:db8::/64.
        if not self._known().unblock(address):
            raise RefusedError("not_blocked", f"{address[:60]} is not shut out", 404)
        return json_answer(request, Done())
