"""The web server: one site on all its ports, behind one guard (CON-1, CON-2, CON-30).

It knows nothing of routes; :mod:`m32net.web.api` makes the resource that is served here.  What a
connection may do is :mod:`m32net.web.site`'s concern, who may connect
:mod:`protocols.tcp.admission`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from m32net.interfaces import BlockedAddress, ConnectionStatus, Health
from m32net.log import RoomLog
from m32net.web.site import BoundedSite, Deadlines, raw_error
from protocols.tcp.admission import AdmissionLimits, Verdict
from protocols.tcp.options import SocketOptions
from protocols.tcp.protocol import (
    Guard,
    GuardedConnection,
    GuardedFactory,
    accept_waiting,
    listen,
    mptcp_available,
)

LOOPBACK: Final = ("127.0.0.1", "::1")


class WebError(Exception):
    """The web server can't listen; the message is one line that says why and what to do."""


def refusal(limits: AdmissionLimits, verdict: Verdict, wait_s: float) -> bytes:
    """What a connection that is refused is told, as a complete HTTP answer."""
    if verdict is Verdict.FULL:
        message = f"{limits.max_connections} connections are open, which is the most"
        return raw_error(b"503 Service Unavailable", "too_many_connections", message)
    if verdict is Verdict.HELD:
        message = f"{limits.max_of_one} connections of this address are open, which is the most"
        return raw_error(b"429 Too Many Requests", "too_many_connections", message)
    message = (
        f"more than {limits.per_minute} connections within a minute; who goes on is shut out "
        f"for {limits.block_s:g} s"
    )
    wait = max(1, math.ceil(wait_s))
    return raw_error(b"429 Too Many Requests", "too_many_connections", message, wait)


class WebService(Service):
    """Listens on endpoints while it runs; provides :class:`m32net.interfaces.IConnections`.

    :param root: as made by :meth:`m32net.web.api.WebApi.root`.
    :param endpoints: Twisted endpoint descriptions, such as ``tcp:8080:interface=192.0.2.1``.
    :param limits: of connections; all endpoints share them.
    :param tls_endpoints: the same as ``endpoints``, with TLS by ``tls``, an
        IOpenSSLServerConnectionCreator.
    :param share_port: listen beside another server of this user on the same ports.
    :param between: called between two pieces of work, for what must not wait for many of them.
    :ivar closing_s: how long peers have to take their answers when it stops.
    :ivar listens_at_start: False: it waits for :meth:`listen_again`.
    :ivar ports: what it listens on, in the order of ``endpoints``, then ``tls_endpoints``.
    :ivar tls_ports: those of them that speak TLS.
    """

    _log = RoomLog()

    def __init__(
        self,
        reactor: Any,
        root: IResource,
        endpoints: Sequence[str],
        *,
        limits: AdmissionLimits | None = None,
        options: SocketOptions | None = None,
        deadlines: Deadlines | None = None,
        tls_endpoints: Sequence[str] = (),
        tls: Any = None,
        mptcp: bool = False,
        share_port: bool = False,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        self._reactor = reactor
        self._endpoints: list[tuple[str, Any]] = [(one, None) for one in endpoints]
        self._endpoints += [(one, tls) for one in tls_endpoints if tls is not None]
        self._mptcp = mptcp
        self._share_port = share_port
        self.closing_s = 10.0
        self.listens_at_start = True
        self.limits = limits or AdmissionLimits(exempt=LOOPBACK)
        self.guard = Guard(
            reactor,
            self.limits,
            options or SocketOptions(),
            refuse=lambda verdict, wait_s: refusal(self.limits, verdict, wait_s),
            on_block=self._blocked,
            between=between,
        )
        self.site = BoundedSite(root, reactor, deadlines, between)
        self.factory = GuardedFactory(self.site, self.guard)
        self.ports: list[IListeningPort] = []
        self.tls_ports: list[IListeningPort] = []
        self._wants_ports = False

    # -- for the engineer's page and /metrics ------------------------------------------------

    def connections(self) -> Sequence[ConnectionStatus]:
        """All that are open, the oldest first."""
        now = self._reactor.seconds()
        return [_status(one, now) for one in self.guard.connections]

    def blocked(self) -> Sequence[BlockedAddress]:
        """Addresses that are shut out; whose block ends first comes first."""
        return [
            BlockedAddress(one.address, one.reason, one.remaining_s)
            for one in self.guard.admission.blocked(self._reactor.seconds())
        ]

    def unblock(self, address: str) -> bool:
        """Let an address in again; whether it was shut out."""
        lifted = self.guard.admission.unblock(address)
        if lifted:
            self._log.info("{address} may connect again", address=address)
        return lifted

    def expect(self, host: str, for_s: float) -> None:
        """Listeners from ``host`` have been announced: its connections are not limited so long."""
        self.guard.admission.expect(host, self._reactor.seconds() + for_s)

    def change_limits(self, limits: AdmissionLimits) -> None:
        """From now on; what is open stays open, and who is shut out stays so."""
        self.limits = limits
        self.guard.change_limits(limits)

    def health(self) -> Health:
        """Degraded while no further connection would be let in; unhealthy without its ports."""
        taken, limit = len(self.guard.connections), self.limits.max_connections
        details = {"connections": taken, "max_connections": limit, "blocked": len(self.blocked())}
        if self._wants_ports and not self.ports:
            return Health("unhealthy", ("it listens on no port; see the log for why",), details)
        if taken < limit:
            return Health("healthy", (), details)
        full = f"all {limit} connections are taken; the next is refused (--max-connections)"
        return Health("degraded", (full,), details)

    def counters(self) -> Mapping[str, float]:
        """For ``/metrics``: connections of all ports, by what became of them, and their bytes."""
        guard, counts = self.guard, self.guard.admission.counts
        return {
            "http_connections": len(guard.connections),
            "http_connections_accepted_total": counts[Verdict.ADMIT],
            'http_connections_refused_total{reason="full"}': counts[Verdict.FULL],
            'http_connections_refused_total{reason="too_many"}': counts[Verdict.TOO_MANY],
            'http_connections_refused_total{reason="held"}': counts[Verdict.HELD],
            'http_connections_refused_total{reason="blocked"}': counts[Verdict.BLOCKED],
            "http_connections_untold_total": guard.untold,
            "http_requests_late_total": self.site.late,
            **{
                f'http_requests_refused_total{{status="{status}"}}': count
                for status, count in self.site.refused.items()
            },
            "http_addresses_blocked": len(self.blocked()),
            "http_addresses_blocked_total": guard.admission.blocks,
            "http_bytes_received_total": guard.bytes_received,
            "http_bytes_sent_total": guard.bytes_sent,
        }

    def _blocked(self, address: str) -> None:
        self._log.warn(
            "{address} opens more connections than {limit} a minute and is shut out for {block} s",
            address=address,
            limit=self.limits.per_minute,
            block=self.limits.block_s,
        )

    # -- start and stop ----------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Listen, before privileges are dropped.

        :raises WebError: an endpoint can't be used.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        if self._mptcp and not mptcp_available():
            self._log.warn("This kernel has no Multipath TCP; connections are plain TCP")
        if self.listens_at_start:
            self._listen_all(self._share_port)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if not self.ports and self.listens_at_start:
            self.privilegedStartService()

    def listen_again(self) -> None:
        """After :meth:`stop_listening`: take connections again, beside whoever does now.

        :raises WebError: an endpoint can't be used.
        """
        if not self.ports:
            self._listen_all(share_port=True)

    def stop_listening(self) -> Deferred[Any]:
        """Take no more connections; what is open stays open.  Fires when the ports are free."""
        self._wants_ports = False
        return self._close_ports()

    def _close_ports(self) -> Deferred[Any]:
        accept_waiting(self.ports)
        closing = [port.stopListening() for port in self.ports]
        self.ports, self.tls_ports = [], []
        return DeferredList([one for one in closing if isinstance(one, Deferred)])

    def stopService(self) -> Deferred[Any]:
        """Listen no more and close all connections, which get what has been written to them.

        Fires when the ports are free and nothing is open, after :attr:`closing_s` at most.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return DeferredList([self.stop_listening(), self.guard.close_all(self.closing_s)])

    def _listen_all(self, share_port: bool) -> None:
        self._wants_ports = True
        try:
            for endpoint, tls in self._endpoints:
                port = self._listen(endpoint, tls, share_port)
                self.ports.append(port)
                if tls is not None:
                    self.tls_ports.append(port)
        except WebError:
            self._close_ports()
            raise

    def _listen(self, endpoint: str, tls: Any, share_port: bool) -> IListeningPort:
        try:
            listening = listen(
                self._reactor,
                endpoint,
                self.factory,
                mptcp=self._mptcp,
                share_port=share_port,
                tls=tls,
            )
        except Exception as reason:
            raise WebError(f"{endpoint!r} is no endpoint to listen on: {reason}") from None
        ports: list[IListeningPort] = []
        failures: list[Failure] = []
        listening.addCallbacks(ports.append, failures.append)
        if failures:
            raise WebError(_why_not(endpoint, failures[0], tls is not None))
        if not isinstance(ports[0].getHost(), IPv4Address | IPv6Address):
            ports[0].stopListening()
            raise WebError(
                f"{endpoint!r} has no TCP port; audio is sent to the address a listener connects "
                "from, so listen on one such as tcp:8080"
            )
        return ports[0]


def _status(connection: GuardedConnection, now: float) -> ConnectionStatus:
    peer = connection.getPeer()  # type: ignore[no-untyped-call]
    info = connection.info()
    return ConnectionStatus(
        host=str(getattr(peer, "host", "")),
        port=int(getattr(peer, "port", 0)),
        secure=connection.secure,
        age_s=now - connection.since,
        idle_s=now - connection.heard,
        bytes_received=connection.bytes_received,
        bytes_sent=connection.bytes_sent,
        rtt_ms=info.rtt_ms if info else None,
        retransmitted=info.retransmitted if info else None,
    )


def _why_not(endpoint: str, failure: Failure, secure: bool) -> str:
    reason = failure.value
    if isinstance(reason, error.CannotListenError):
        where = f"{reason.interface or '*'}:{reason.port}"
        cause = getattr(reason.socketError, "strerror", None) or reason.socketError
        return (
            f"cannot listen on {where} ({endpoint}): {cause}; is another m32net running? "
            f"Choose another with {'--https' if secure else '--http'}"
        )
    return f"cannot listen on {endpoint}: {reason}"
