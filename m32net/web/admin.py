"""The engineer's routes under ``/api``: all but the log-in itself need a session (STR-9)."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.web.server import Request

from m32net.interfaces import RefusedError
from m32net.settings import ChannelChange
from m32net.web.answers import (
    JSON,
    as_json,
    check_origin,
    client_host,
    cookie_name,
    is_secure,
    json_answer,
    json_body,
    number,
    session_token,
    set_header,
    text_parameter,
)
from m32net.web.app import app
from m32net.web.auth import SESSION_S, Session
from m32net.web.bodies import (
    MAX_MESSAGE_FIELDS,
    AudioConfigBody,
    AudioConfigUpdate,
    ClockBody,
    ClusterBody,
    ClusterNode,
    Done,
    ListenersBody,
    Login,
    Message,
    MessageAnswer,
    NewPassword,
    SessionBody,
    SettingsUpdate,
)
from m32net.web.public import PublicRoutes

MAX_CHANGES = 64
MAX_MESSAGE_BYTES = 8 * 1024
MAX_QUALITY_ROWS = 10_000
MAX_EVENT_ROWS = 1000
EVENT_FIELDS = frozenset({"new_sample_rate", "reconnect_after"})
"""Fields of an event that mean something to listeners; a message must not set them."""


class AdminRoutes(PublicRoutes):
    """Mixed into :class:`m32net.web.api.WebApi`."""

    def admin(self, request: Request) -> str:
        user = self.auth.user_of(session_token(request))
        if user is None:
            raise RefusedError("not_logged_in", "log in first: POST /api/login", 401)
        if request.method != b"GET":
            check_origin(request)
        return user

    # -- sessions ----------------------------------------------------------------------------------

    @app.route("/api/login", methods=["POST"])
    async def login(self, request: Request) -> bytes:
        body = json_body(request, Login)
        session = await self.auth.login(body.user, body.password, client_host(request))
        self._set_cookie(request, session)
        return json_answer(request, SessionBody(session.user, session.expires_s, session.token))

    @app.route("/api/logout", methods=["POST"])
    def logout(self, request: Request) -> bytes:
        check_origin(request)
        self.auth.logout(session_token(request))
        self._set_cookie(request, Session("", "", 0))
        return json_answer(request, Done())

    @app.route("/api/session", methods=["GET"])
    def session(self, request: Request) -> bytes:
        return json_answer(request, SessionBody(self.admin(request), SESSION_S))

    @app.route("/api/password", methods=["POST"])
    async def password(self, request: Request) -> bytes:
        user = self.admin(request)
        body = json_body(request, NewPassword)
        token = session_token(request) or ""
        await self.auth.change_password(user, body.old, body.password, client_host(request), token)
        return json_answer(request, Done())

    @staticmethod
    def _set_cookie(request: Request, session: Session) -> None:
        # A session cookie of the browser: the server forgets it an hour after its last use.
        attributes = "; Path=/; HttpOnly; SameSite=Strict"
        if not session.token:
            attributes += "; Max-Age=0"
        if is_secure(request):
            attributes += "; Secure"
        set_header(request, "Set-Cookie", f"{cookie_name(request)}={session.token}{attributes}")

    # -- settings ----------------------------------------------------------------------------------

    @app.route("/api/channels", methods=["GET"])
    def channels(self, request: Request) -> bytes:
        self.admin(request)
        return json_answer(request, self.settings.channels)

    @app.route("/api/channels", methods=["PUT"])
    async def set_channels(self, request: Request) -> bytes:
        who = self.admin(request)
        changes = json_body(request, list[ChannelChange])
        if len(changes) > MAX_CHANGES:
            raise RefusedError("invalid_value", f"more than {MAX_CHANGES} channels are listed")
        return json_answer(request, await self.settings.set_channels(changes, who=who))

    @app.route("/api/audio-config", methods=["GET"])
    def audio_config(self, request: Request) -> bytes:
        self.admin(request)
        return json_answer(request, AudioConfigBody.of(self.settings.audio_config))

    @app.route("/api/audio-config", methods=["PUT"])
    async def set_audio_config(self, request: Request) -> bytes:
        who = self.admin(request)
        body = json_body(request, AudioConfigUpdate)
        reason = body.reason or f"changed by {who}"
        config = await self.settings.set_audio_config(body.change(), who=who, reason=reason)
        return json_answer(request, AudioConfigBody.of(config))

    @app.route("/api/settings", methods=["GET"])
    def server_settings(self, request: Request) -> bytes:
        self.admin(request)
        return json_answer(request, self.settings.settings)

    @app.route("/api/settings", methods=["PUT"])
    async def set_server_settings(self, request: Request) -> bytes:
        who = self.admin(request)
        body = json_body(request, SettingsUpdate)
        changes = {
            name: value
            for name, value in msgspec.structs.asdict(body).items()
            if value is not msgspec.UNSET
        }
        return json_answer(request, await self.settings.set_settings(changes, who=who))

    # -- listeners ---------------------------------------------------------------------------------

    @app.route("/api/listeners", methods=["GET"])
    async def all_listeners(self, request: Request) -> bytes:
        self.admin(request)
        body = ListenersBody(
            tuple(self.listeners.snapshot()),
            self.listeners.count(),
            self.settings.settings.max_listeners,
            self.listeners.refused(),
        )
        return await self.long.answer(request, as_json(body), JSON)

    @app.route("/api/quality", methods=["GET"])
    async def quality(self, request: Request) -> bytes:
        self.admin(request)
        rows = await self.settings.quality_history(
            client_id=text_parameter(request, "client_id"),
            since=number(request, "since") or 0.0,
            limit=_limit(request, 1000, MAX_QUALITY_ROWS),
        )
        return await self.long.rows(request, "quality", rows)

    @app.route("/api/events", methods=["GET"])
    async def events(self, request: Request) -> bytes:
        self.admin(request)
        rows = await self.settings.events(
            since=number(request, "since") or 0.0, limit=_limit(request, 100, MAX_EVENT_ROWS)
        )
        return await self.long.rows(request, "events", rows)

    @app.route("/api/message", methods=["POST"])
    def message(self, request: Request) -> bytes:
        self.admin(request)
        fields = json_body(request, dict[str, str | int | float | bool | None])
        message = _converted(fields)
        extra = {name: value for name, value in fields.items() if name not in {"reason", "type"}}
        for name in EVENT_FIELDS & extra.keys():
            raise RefusedError("invalid_value", f"{name}: is the event's own and can't be given")
        if len(extra) > MAX_MESSAGE_FIELDS or len(msgspec.json.encode(fields)) > MAX_MESSAGE_BYTES:
            raise RefusedError(
                "invalid_value",
                f"a message has at most {MAX_MESSAGE_FIELDS} fields and {MAX_MESSAGE_BYTES} bytes",
            )
        told = self.listeners.tell_all(message.type, message.reason, extra)
        return json_answer(request, MessageAnswer("ok", told))

    # -- cluster and clock: a server alone ---------------------------------------------------------

    @app.route("/api/cluster", methods=["GET"])
    def cluster(self, request: Request) -> bytes:
        self.admin(request)
        me = self.status
        node = ClusterNode(me.node_id, me.name, me.role, me.page_url)
        return json_answer(request, ClusterBody("single", me.node_id, me.role, (node,)))

    @app.route("/api/clock", methods=["GET"])
    def clock(self, request: Request) -> bytes:
        self.admin(request)
        time_ms = round(self.wall() * 1000, 3)
        return json_answer(request, ClockBody("unsynchronised", "system", time_ms))


def _limit(request: Request, default: int, most: int) -> int:
    limit = number(request, "limit", default) or 0
    if not 1 <= limit <= most:
        raise RefusedError("invalid_value", f"limit: is outside 1..{most}")
    return int(limit)


def _converted(fields: dict[str, Any]) -> Message:
    try:
        return msgspec.convert(fields, Message)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise RefusedError("invalid_value", f"{path.rstrip('`') or 'reason'}: {reason}") from None
