"""HTTPS to other m32net servers: both sides prove who they are (CON-32).

The other server must be the host that was asked for (service-identity: RFC 9525), by a certificate
of a CA that is believed here; this server shows its own.
"""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.iweb import IAgent, IPolicyForHTTPS
from zope.interface import implementer

from m32net.interfaces import RefusedError
from m32net.trust.context import openssl_reason

CONNECT_S = 10.0


class IClientTrust(Protocol):
    """Provided by :class:`m32net.trust.service.TrustService`."""

    def client_options(self, host: str) -> IOpenSSLClientConnectionCreator: ...


@implementer(IPolicyForHTTPS)
class PeerPolicy:
    """Every connection by what is believed, and shown, at its time."""

    def __init__(self, trust: IClientTrust) -> None:
        self._trust = trust

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        return self._trust.client_options(hostname.decode("ascii").strip("[]"))


@implementer(IAgent)
class PeerAgent:
    """An Agent that says in a sentence what is wrong with certificates.

    Such requests fail with :class:`m32net.interfaces.RefusedError` ``not_trusted``; all else as
    the Agent inside has it.
    """

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        pending: Deferred[Any] = self._agent.request(method, uri, headers, bodyProducer)
        return pending.addErrback(_explained)


def _explained(failure: Failure) -> Failure:
    reason = why_not(failure)
    if reason is not None:
        raise RefusedError("not_trusted", reason, 502) from failure.value
    return failure


def peer_agent(
    reactor: Any, trust: IClientTrust, connect_s: float = CONNECT_S, pool: Any = None
) -> PeerAgent:
    """An agent for ``https://`` addresses of other servers.

    :param pool: keeps connections; None: they are not kept.
    """
    return PeerAgent(
        Agent(  # type: ignore[no-untyped-call]
            reactor,
            contextFactory=PeerPolicy(trust),
            connectTimeout=connect_s,
            pool=pool or HTTPConnectionPool(reactor, persistent=False),  # type: ignore[no-untyped-call]
        )
    )


def why_not(failure: Failure) -> str | None:
    """One line about a request that failed for its certificates; None if it was not that."""
    for reason in _reasons(failure):
        if isinstance(reason, VerificationError):
            return "the other server's certificate is for another host name or address"
        if isinstance(reason, SSL.Error):
            return _tls_reason(reason)
    return None


def _reasons(failure: Failure) -> list[BaseException | None]:
    error = failure.value
    inner = error.reasons if isinstance(error, ResponseNeverReceived) else []
    return [error, *(one.value for one in inner if isinstance(one, Failure))]


def _tls_reason(error: SSL.Error) -> str:
    text = openssl_reason(error)
    if "certificate verify failed" in text:
        return (
            "no CA that is believed here has signed the other server's certificate; give its "
            "ca.pem with --peer-ca"
        )
    if "alert" in text and ("unknown ca" in text or "certificate" in text):
        return (
            "the other server does not accept this server's certificate; start it with this "
            "server's ca.pem as --peer-ca"
        )
    return f"TLS failed: {text}"
