"""All routes of the REST interface in one table: body, answer and refusals of each.

The OpenAPI document is made from it; a test holds it against Klein's map of routes, and live
answers against what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from m32net.settings import Channel, ChannelChange, ServerSettings, Thresholds
from m32net.web import bodies
from m32net.web.answers import MAX_NUMBER
from m32net.web.migration import (
    ArrivalsBody,
    MigrationBody,
    MigrationOrder,
    PeerBody,
    SuccessionBody,
)
from m32net.web.trust import CERTIFICATE_TYPE, PEM_TYPE, PROFILE_TYPE, TrustBody

JSON: Final = "application/json"
ALWAYS: Final = (400, 429, 503)
"""Any request may get these: unreadable text in address or Host header; too many connections of
this address; of all addresses."""


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
    :ivar refusals: the statuses it refuses with beyond those of all its kind; see
        :attr:`statuses`.  All have the form of an ErrorBody.
    :ivar also: further statuses with the form of ``answer``.
    :ivar peer: whether another server may ask instead of the engineer, by its certificate.
    :ivar changes: whether it changes anything, so that pages of other sites may not ask for it.
    :ivar moves: whether newcomers are sent to another server while the listeners move (CON-51).
    :ivar kept: whether it can be answered with 304.
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
    peer: bool = False
    changes: bool = False
    moves: bool = False
    kept: bool = False

    @property
    def statuses(self) -> frozenset[int]:
        """All refusals: its own, those of its kind, and those of any request."""
        mine = {*self.refusals, *ALWAYS}
        if self.admin:
            mine.add(401)
        if self.changes or self.method != "get":
            mine.add(403)
        if self.body is not None:
            mine |= {413, 415}
        if self.moves:
            mine.add(307)
        return frozenset(mine)


_UDP_PORT: Final = Parameter(
    "udp_port",
    {"type": "integer", "minimum": 1024, "maximum": 65535},
    "Where RTP is to arrive; RTCP uses the next port.",
    required=True,
)
_CLIENT_ID: Final = Parameter("client_id", {"type": "string"}, "One listener's id.")
_SINCE: Final = Parameter(
    "since", {"type": "number", "minimum": 0, "maximum": MAX_NUMBER}, "Unix time in s."
)
_NAMES_PORT: Final = (_UDP_PORT, _CLIENT_ID)
_PORT_TEXT: Final = "Name the UDP port of this address's control session (STR-36)"
_TEXT: Final = {"type": "string"}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation("get", "/", "The listener's page", media="text/html", moves=True, kept=True),
    Operation("get", "/admin", "The engineer's page", media="text/html", kept=True),
    Operation(
        "get",
        "/static/{name}",
        "A file of the pages",
        media="*/*",
        parameters=(Parameter("name", _TEXT, "File name.", "path", True),),
        refusals=(404,),
        kept=True,
    ),
    Operation("get", "/qr.svg", "QR code of the listener's page", media="image/svg+xml"),
    Operation("get", "/openapi.json", "This description", answer=dict[str, Any], kept=True),
    Operation(
        "get",
        "/audio-meta",
        "Format, channels and state (STR-35)",
        answer=bodies.AudioMeta,
        moves=True,
    ),
    Operation(
        "get",
        "/request-audio",
        _PORT_TEXT,
        answer=bodies.RequestAudio,
        parameters=_NAMES_PORT,
        refusals=(409,),
        changes=True,
    ),
    Operation(
        "post",
        "/request-audio",
        _PORT_TEXT,
        answer=bodies.RequestAudio,
        parameters=_NAMES_PORT,
        refusals=(409,),
    ),
    Operation(
        "post",
        "/qos-metrics",
        "Report what a listener measured (STR-37)",
        answer=bodies.QosAnswer,
        body=bodies.QosMetrics,
        refusals=(404,),
    ),
    Operation(
        "get", "/jitter-thresholds", "Thresholds in ms (STR-38)", answer=Thresholds, moves=True
    ),
    Operation(
        "post",
        "/jitter-thresholds",
        "Set the thresholds",
        answer=bodies.Done,
        body=bodies.JitterThresholds,
        admin=True,
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
        moves=True,
    ),
    Operation(
        "post",
        "/api/login",
        "Open a session; the token is in the answer and in a cookie",
        answer=bodies.SessionBody,
        body=bodies.Login,
        refusals=(401,),
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
    ),
    Operation("get", "/api/channels", "All channels", answer=tuple[Channel, ...], admin=True),
    Operation(
        "put",
        "/api/channels",
        "Change fields of the channels listed",
        answer=tuple[Channel, ...],
        body=list[ChannelChange],
        admin=True,
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
            _SINCE,
            Parameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000},
                "Points at most, the newest.",
            ),
        ),
        admin=True,
    ),
    Operation(
        "get",
        "/api/events",
        "What happened, newest first",
        answer=bodies.EventsBody,
        parameters=(
            _SINCE,
            Parameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "Events at most.",
            ),
        ),
        admin=True,
    ),
    Operation(
        "post",
        "/api/message",
        "Tell all listeners something",
        answer=bodies.MessageAnswer,
        body=bodies.DescribedMessage,
        admin=True,
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
    Operation(
        "get",
        "/ca.crt",
        "The local CA's certificate as DER, for phones (CON-32)",
        media=CERTIFICATE_TYPE,
        refusals=(404,),
    ),
    Operation(
        "get", "/ca.pem", "The local CA's certificate as PEM", media=PEM_TYPE, refusals=(404,)
    ),
    Operation(
        "get",
        "/ca.mobileconfig",
        "The local CA's certificate as a profile for iPhone and iPad",
        media=PROFILE_TYPE,
        refusals=(404,),
    ),
    Operation(
        "get",
        "/ca-qr.svg",
        "QR code of the certificate's address",
        media="image/svg+xml",
        refusals=(404,),
    ),
    Operation(
        "get", "/api/trust", "What this server proves itself with", answer=TrustBody, admin=True
    ),
    Operation(
        "post",
        "/api/migration",
        "Move all listeners to another server (CON-51)",
        answer=MigrationBody,
        body=MigrationOrder,
        admin=True,
        refusals=(404, 409),
    ),
    Operation(
        "get",
        "/api/migration",
        "How far that is",
        answer=MigrationBody,
        admin=True,
        refusals=(404,),
    ),
    Operation(
        "delete",
        "/api/migration",
        "Call it off: who has not moved stays",
        answer=MigrationBody,
        admin=True,
        refusals=(404, 409),
    ),
    Operation(
        "get",
        "/api/peer",
        "What this server says of itself to another one",
        answer=PeerBody,
        refusals=(404,),
    ),
    Operation(
        "post",
        "/api/peer/arrivals",
        "Announce listeners that are about to come; with a server's client certificate",
        answer=bodies.Done,
        body=ArrivalsBody,
        admin=True,
        peer=True,
        refusals=(404,),
    ),
    Operation(
        "post",
        "/api/succession",
        "Have a successor on the same ports take new connections, or none",
        answer=bodies.Done,
        body=SuccessionBody,
        admin=True,
        refusals=(404, 409),
    ),
    Operation("get", "/api/cluster", "The nodes", answer=bodies.ClusterBody, admin=True),
    Operation("get", "/api/clock", "The clock", answer=bodies.ClockBody, admin=True),
)
