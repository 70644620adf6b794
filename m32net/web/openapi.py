"""The OpenAPI 3.1 description of the REST interface, made from the bodies and one route table.

The table says of every route what its body, its answer and its refusals are; a test holds it
against Klein's map of routes, and live answers against the schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from m32net.settings import Channel, ChannelChange, ServerSettings, Thresholds
from m32net.web import bodies

JSON: Final = "application/json"
_REFUSALS: Final = {
    400: "The request can't be used; the message names the field.",
    401: "Not logged in.",
    404: "There is no such thing.",
    409: "There is no control session from this address.",
    429: "Too many attempts.",
    503: "Not possible now.",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    schema: dict[str, Any]
    text: str
    where: str = "query"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    :ivar answer: the type of a JSON answer; None for another ``media`` type.
    :ivar refusals: the statuses a caller should expect; all have the form of an ErrorBody.
    :ivar also: further statuses with the form of ``answer``.
    """

    method: str
    path: str
    summary: str
    answer: Any = None
    media: str = JSON
    body: Any = None
    parameters: tuple[Parameter, ...] = ()
    admin: bool = False
    refusals: tuple[int, ...] = ()
    also: tuple[int, ...] = ()


_UDP_PORT: Final = Parameter(
    "udp_port",
    {"type": "integer", "minimum": 1024, "maximum": 65535},
    "Where RTP is to arrive; RTCP uses the next port.",
    required=True,
)
_CLIENT_ID: Final = Parameter("client_id", {"type": "string"}, "One listener's id.")
_NAMES_PORT: Final = (_UDP_PORT, _CLIENT_ID)
_PORT_TEXT: Final = "Name the UDP port of this address's control session (STR-36)"
_TEXT: Final = {"type": "string"}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation("get", "/", "The listener's page", media="text/html"),
    Operation("get", "/admin", "The engineer's page", media="text/html"),
    Operation(
        "get",
        "/static/{name}",
        "A file of the pages",
        media="*/*",
        parameters=(Parameter("name", _TEXT, "File name.", "path", True),),
        refusals=(404,),
    ),
    Operation("get", "/qr.svg", "QR code of the listener's page", media="image/svg+xml"),
    Operation("get", "/openapi.json", "This description", answer=dict[str, Any]),
    Operation("get", "/audio-meta", "Format, channels and state (STR-35)", answer=bodies.AudioMeta),
    Operation(
        "get",
        "/request-audio",
        _PORT_TEXT,
        answer=bodies.RequestAudio,
        parameters=_NAMES_PORT,
        refusals=(400, 409),
    ),
    Operation(
        "post",
        "/request-audio",
        _PORT_TEXT,
        answer=bodies.RequestAudio,
        parameters=_NAMES_PORT,
        refusals=(400, 409),
    ),
    Operation(
        "post",
        "/qos-metrics",
        "Report what a listener measured (STR-37)",
        answer=bodies.QosAnswer,
        body=bodies.QosMetrics,
        refusals=(400, 404),
    ),
    Operation("get", "/jitter-thresholds", "Thresholds in ms (STR-38)", answer=Thresholds),
    Operation(
        "post",
        "/jitter-thresholds",
        "Set the thresholds",
        answer=bodies.Done,
        body=bodies.JitterThresholds,
        admin=True,
        refusals=(400, 503),
    ),
    Operation(
        "get",
        "/health",
        "State of every room; 503 if unhealthy (CON-40)",
        answer=bodies.HealthBody,
        also=(503,),
    ),
    Operation("get", "/metrics", "Prometheus metrics (CON-40)", media="text/plain"),
    Operation(
        "get",
        "/sdp/{client_id}.sdp",
        "Session description of a listener's streams",
        media="application/sdp",
        parameters=(Parameter("client_id", _TEXT, "The listener's id.", "path", True),),
        refusals=(404,),
    ),
    Operation(
        "post",
        "/api/login",
        "Open a session; the token is in the answer and in a cookie",
        answer=bodies.SessionBody,
        body=bodies.Login,
        refusals=(400, 401, 429),
    ),
    Operation("post", "/api/logout", "End the session", answer=bodies.Done),
    Operation("get", "/api/session", "Who is logged in", answer=bodies.SessionBody, admin=True),
    Operation(
        "post",
        "/api/password",
        "Change the password; other sessions end",
        answer=bodies.Done,
        body=bodies.NewPassword,
        admin=True,
        refusals=(400, 429, 503),
    ),
    Operation("get", "/api/channels", "All channels", answer=tuple[Channel, ...], admin=True),
    Operation(
        "put",
        "/api/channels",
        "Change fields of the channels listed",
        answer=tuple[Channel, ...],
        body=list[ChannelChange],
        admin=True,
        refusals=(400, 503),
    ),
    Operation(
        "get", "/api/audio-config", "The audio format", answer=bodies.AudioConfigBody, admin=True
    ),
    Operation(
        "put",
        "/api/audio-config",
        "Change fields of the audio format; ends the streams concerned (STR-10)",
        answer=bodies.AudioConfigBody,
        body=bodies.AudioConfigUpdate,
        admin=True,
        refusals=(400, 503),
    ),
    Operation(
        "get", "/api/settings", "The other settings (STR-43)", answer=ServerSettings, admin=True
    ),
    Operation(
        "put",
        "/api/settings",
        "Change some of them",
        answer=ServerSettings,
        body=bodies.SettingsUpdate,
        admin=True,
        refusals=(400, 503),
    ),
    Operation(
        "get",
        "/api/listeners",
        "Who listens, and how well",
        answer=bodies.ListenersBody,
        admin=True,
    ),
    Operation(
        "get",
        "/api/quality",
        "Reception over time (STR-12)",
        answer=bodies.QualityBody,
        parameters=(
            _CLIENT_ID,
            Parameter("since", {"type": "number", "minimum": 0}, "Unix time in s."),
            Parameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000},
                "Points at most, the newest.",
            ),
        ),
        admin=True,
        refusals=(400,),
    ),
    Operation(
        "post",
        "/api/message",
        "Tell all listeners something",
        answer=bodies.MessageAnswer,
        body=bodies.Message,
        admin=True,
        refusals=(400,),
    ),
    Operation(
        "get",
        "/api/connections",
        "The TCP connections, as the kernel sees them (CON-13)",
        answer=bodies.ConnectionsBody,
        admin=True,
        refusals=(404,),
    ),
    Operation(
        "get",
        "/api/blocked",
        "The addresses that are shut out (CON-30)",
        answer=bodies.BlockedBody,
        admin=True,
        refusals=(404,),
    ),
    Operation(
        "delete",
        "/api/blocked/{address}",
        "Let an address in again",
        answer=bodies.Done,
        parameters=(
            Parameter("address", _TEXT, "As in the list; it may have a slash.", "path", True),
        ),
        admin=True,
        refusals=(404,),
    ),
    Operation("get", "/api/cluster", "The nodes", answer=bodies.ClusterBody, admin=True),
    Operation("get", "/api/clock", "The clock", answer=bodies.ClockBody, admin=True),
)


def document(version: str) -> bytes:
    """The OpenAPI document as JSON."""
    types = [one for op in OPERATIONS for one in (op.answer, op.body) if one is not None]
    types.append(bodies.ErrorBody)
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schema_of = {_key(one): schema for one, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "m32net",
                "version": version,
                "summary": "Personal monitoring for the Midas M32 and Behringer X32",
                "description": "Audio is set up over the WebSocket at /ws; this is the rest. "
                "Routes marked with a security requirement need the engineer's session.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "cookie": {"type": "apiKey", "in": "cookie", "name": "m32net_session"},
                },
            },
        }
    )


def _key(type_: Any) -> str:
    return repr(type_)


def _described(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    error = {JSON: {"schema": schema_of[_key(bodies.ErrorBody)]}}
    if operation.answer is not None:
        content = {JSON: {"schema": schema_of[_key(operation.answer)]}}
    else:
        content = {operation.media: {"schema": {"type": "string"}}}
    refusals = (*operation.refusals, *((401,) if operation.admin else ()))
    responses = {
        **{
            str(status): {"description": _REFUSALS[status], "content": error} for status in refusals
        },
        **{
            str(status): {"description": operation.summary, "content": content}
            for status in (200, *operation.also)
        },
        "default": {"description": "Any other refusal.", "content": error},
    }
    words = operation.path.strip("/").replace("{", "").replace("}", "").replace(".", "/")
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": "_".join([operation.method, *(words or "page").split("/")]),
        "responses": dict(sorted(responses.items())),
    }
    if operation.parameters:
        described["parameters"] = [
            {
                "name": one.name,
                "in": one.where,
                "required": one.required,
                "description": one.text,
                "schema": one.schema,
            }
            for one in operation.parameters
        ]
    if operation.body is not None:
        schema = schema_of[_key(operation.body)]
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if operation.admin:
        described["security"] = [{"bearer": []}, {"cookie": []}]
    return described
