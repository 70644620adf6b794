"""What a listener asks the server over HTTP: ``/audio-meta``, thresholds, and its own report.

Thin calls, each within the bounds of :mod:`m32net.asking`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from msgspec import Struct
from OpenSSL.crypto import X509
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from m32net.asking import MAX_ANSWER, TIMEOUT_S, Answer, AnswerError, ask
from m32net.listener.thresholds import ThresholdError, Thresholds

KEPT_S: Final = 30.0
"""How long an unused connection is kept: longer than between two reports, shorter than the 60 s
after which the server ends it."""

Ask = Callable[..., "Deferred[Answer]"]
""":func:`m32net.asking.ask` without its first two arguments."""


class ServerApiError(Exception):
    """The server did not answer as documented; says how."""


class MetaChannel(Struct, frozen=True):
    """One channel as ``/audio-meta`` has it (STR-35)."""

    id: int
    name: str = ""
    color: str | None = None
    order: int = 0
    enabled: bool = True


class AudioMeta(Struct, frozen=True):
    """The parts of ``/audio-meta`` a listener uses (STR-35)."""

    channels: tuple[MetaChannel, ...] = ()
    sample_rate: int | None = None
    codec: str | None = None
    frame_ms: float | None = None

    @property
    def enabled(self) -> tuple[int, ...]:
        """Ids of the channels that are sent."""
        return tuple(channel.id for channel in self.channels if channel.enabled)


class _ThresholdBody(Struct):
    interpolate: float
    drop: float


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose certificates are trusted, besides those the system trusts: none.

    :ivar file: where they are from, for people.
    :ivar root: for :func:`twisted.internet.ssl.optionsForClientTLS`.
    """

    file: str
    root: Any

    @classmethod
    def load(cls, path: Path) -> Trust:
        """Read a PEM file with one or more certificates.

        :raises TrustError: it cannot be read, or holds none.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_ANSWER)
        except OSError as error:
            raise TrustError(f"{path}: {error.strerror}") from None
        try:
            found = x509.load_pem_x509_certificates(data)
            of_twisted: Any = Certificate  # untyped
            certificates = [of_twisted(X509.from_cryptography(one)) for one in found]
        except (ValueError, UnsupportedAlgorithm):
            what = "there is no certificate in it; PEM is needed, as /ca.pem is"
            raise TrustError(f"{path}: {what}") from None
        root = trustRootFromCertificates(certificates)  # type: ignore[no-untyped-call]
        return cls(str(path), root)


class TrustError(Exception):
    """The CA's certificate cannot be used: one line that says why."""


def endpoint(
    reactor: Any,
    host: str,
    port: int,
    *,
    secure: bool,
    interface: str = "",
    trust: Trust | None = None,
) -> IStreamClientEndpoint:
    """Where both the WebSocket and HTTP connect to.

    Always IPv4: the audio is, and the server sends it only where the control connection is from.

    :param trust: what the server's certificate is checked by; its names always are.
    """
    bind = (interface, 0) if interface else None
    way: Any = TCP4ClientEndpoint(reactor, host, port, timeout=TIMEOUT_S, bindAddress=bind)
    if secure:
        root = None if trust is None else trust.root
        way = wrapClientTLS(optionsForClientTLS(host, trustRoot=root), way)
    found: IStreamClientEndpoint = way
    return found


def http_client(reactor: Any, interface: str = "", trust: Trust | None = None) -> Ask:
    """HTTP over connections like the control connection.

    It keeps one connection to a server open: a server admits few new ones a minute (CON-30).
    """

    @implementer(IAgentEndpointFactory)
    class Endpoints:
        def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
            secure = uri.scheme == b"https"
            host = uri.host.decode("ascii")
            return endpoint(
                reactor, host, uri.port, secure=secure, interface=interface, trust=trust
            )

    pool: Any = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
    pool.maxPersistentPerHost = 1
    pool.cachedConnectionTimeout = KEPT_S
    agent: Any = Agent  # untyped in Twisted
    return partial(ask, reactor, agent.usingEndpointFactory(reactor, Endpoints(), pool))


class ServerApi:
    """The REST interface of one server.

    :param http: from :func:`http_client`.
    :param base: ``http://host:port``.
    """

    def __init__(self, http: Ask, base: str) -> None:
        self._http = http
        self._base = base

    @inlineCallbacks
    def audio_meta(self) -> Generator[Deferred[Any], Any, AudioMeta]:
        """The channels there are and the format they have."""
        data = yield self._call("GET", "/audio-meta")
        meta: AudioMeta = _decoded(data, AudioMeta, "/audio-meta")
        return meta

    @inlineCallbacks
    def jitter_thresholds(self) -> Generator[Deferred[Any], Any, Thresholds]:
        """The server's thresholds (STR-38)."""
        data = yield self._call("GET", "/jitter-thresholds")
        body = _decoded(data, _ThresholdBody, "/jitter-thresholds")
        try:
            return Thresholds(body.interpolate, body.drop)
        except ThresholdError as error:
            raise ServerApiError(f"/jitter-thresholds: {error}") from None

    def post_qos(self, body: Mapping[str, Any]) -> Deferred[bytes]:
        """Report what this listener measured (STR-37)."""
        return self._call("POST", "/qos-metrics", body=msgspec.json.encode(body))

    @inlineCallbacks
    def _call(self, method: str, path: str, **more: Any) -> Generator[Deferred[Any], Any, bytes]:
        try:
            answer: Answer = yield self._http(method, self._base + path, **more)
        except AnswerError as error:
            raise ServerApiError(f"{path}: {error}") from None
        if answer.status != 200:
            raise ServerApiError(f"{path}: status {answer.status}")
        return answer.body


def _decoded(data: bytes, kind: Any, path: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ServerApiError(f"{path}: {error}") from None
