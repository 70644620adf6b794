"""The room's door: the certificate in use, kept fresh while the server runs.

Looks once a minute whether something has changed (names, addresses, files, the time left), in a
thread, and swaps the context of new connections if so.  A change that cannot be used leaves what is
in use and shows on ``/health``; only at the start is it an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from m32net.interfaces import Health, TrustStatus
from m32net.log import RoomLog
from m32net.trust.authority import fingerprint
from m32net.trust.context import SwappedContext, client_options, is_signed_by, server_context
from m32net.trust.files import TrustError
from m32net.trust.identity import GivenFiles, Identity, ISource, LocalAuthority, certificates
from m32net.trust.names import Names, machine_names

CHECK_S: Final = 60.0
SOON_S: Final = 14 * 86_400.0
"""A given certificate that ends within this makes health degraded."""


@dataclass(frozen=True)
class _Loaded:
    identity: Identity
    peers: tuple[x509.Certificate, ...]

    def believed(self) -> tuple[x509.Certificate, ...]:
        own = self.identity.authority
        return (*([own] if own else []), *self.peers)

    def shown(self) -> tuple[Any, ...]:
        """What a context is made of: another one is needed when this differs."""
        return self.identity.pair.certificate, self.identity.chain, self.believed()


class TrustService(Service):
    """Certificates while the server runs; loads them on construction, which blocks.

    :param source: of this server's certificate.
    :param peer_ca: PEM file of the CAs (or certificates) of other servers.
    :param names: what the certificate is to be for, now; called in a thread.
    :param clock: for looking again.
    :param wall: Unix time in seconds.
    :param in_thread: runs a blocking callable elsewhere and gives a Deferred of its result.
    :raises TrustError: there is nothing to start with; one line.
    :ivar secure_url: set by whoever knows the port.
    """

    _log = RoomLog()

    def __init__(
        self,
        source: ISource,
        clock: IReactorTime,
        *,
        peer_ca: Path | None = None,
        names: Callable[[], Names] = machine_names,
        wall: Callable[[], float] = time.time,
        in_thread: Callable[..., Deferred[Any]] = deferToThread,
    ) -> None:
        self._source = source
        self._peer_ca = peer_ca
        self._names = names
        self._wall = wall
        self._in_thread = in_thread
        self._problem = ""
        self._issued = 0
        self._now = self._load()
        self._creator = SwappedContext(server_context(self._now.identity, self._now.believed()))
        self._note(self._now.identity)
        self._checking = LoopingCall(self.check)
        self._checking.clock = clock
        self.secure_url = ""

    # -- for listeners and connections -------------------------------------------------------------

    @property
    def context_factory(self) -> SwappedContext:
        """Provides IOpenSSLServerConnectionCreator; the same object for the service's life."""
        return self._creator

    def client_options(self, host: str) -> IOpenSSLClientConnectionCreator:
        """For one connection to another server, which must prove to be ``host``."""
        return client_options(host, self._now.identity, self._now.believed())

    def is_peer(self, certificate: Any, chain: Sequence[Any] = ()) -> bool:
        """Whether a client's certificate (pyOpenSSL ``X509`` or None) is another server's.

        :param chain: what it sent besides.
        """
        return isinstance(certificate, crypto.X509) and is_signed_by(
            certificate, self._now.believed(), chain
        )

    # -- for people --------------------------------------------------------------------------------

    def ca_pem(self) -> bytes | None:
        """The local CA's certificate; None with given certificates."""
        authority = self._now.identity.authority
        return None if authority is None else authority.public_bytes(Encoding.PEM)

    def ca_fingerprint(self) -> str:
        """SHA-256 of the local CA's certificate as ``AB:CD:…``; empty if there is none."""
        authority = self._now.identity.authority
        return "" if authority is None else fingerprint(authority)

    def status(self) -> TrustStatus:
        identity = self._now.identity
        return TrustStatus(
            own=identity.authority is None,
            fingerprint=self.ca_fingerprint(),
            names=identity.names(),
            not_covered=identity.not_covered.texts(),
            expires=self._ends().timestamp(),
            secure_url=self.secure_url,
            problem=self._trouble(),
        )

    def health(self) -> Health:
        """Never unhealthy: without TLS that works, listeners still come by plain HTTP."""
        trouble = self._trouble()
        return Health(
            "degraded" if trouble else "healthy",
            (trouble,) if trouble else (),
            {
                "certificate": "local CA" if self._now.identity.authority else "given",
                "expires": self._ends().isoformat(),
            },
        )

    def figures(self) -> Mapping[str, float]:
        """For ``/metrics``: seconds until the certificate ends, and certificates made."""
        return {
            "certificate_expiry_seconds": self._ends().timestamp() - self._wall(),
            "certificates_issued_total": self._issued,
        }

    def _ends(self) -> datetime:
        return self._now.identity.pair.certificate.not_valid_after_utc

    def _trouble(self) -> str:
        left = self._ends().timestamp() - self._wall()
        if left <= 0:
            return f"the certificate expired on {self._ends():%Y-%m-%d}"
        if self._problem:
            return self._problem
        if self._now.identity.authority is None and left < SOON_S:
            return f"the certificate expires on {self._ends():%Y-%m-%d}; renew it"
        return self._now.identity.problem

    # -- keeping it fresh --------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._checking.start(CHECK_S, now=False)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._checking.running:
            self._checking.stop()

    def check(self) -> Deferred[None]:
        """Look whether something changed, and use it; the Deferred never fails."""
        return self._in_thread(self._load).addCallback(self._use).addErrback(self._keep)

    def _load(self) -> _Loaded:
        """Blocks."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        peers = certificates(self._peer_ca) if self._peer_ca else ()
        return _Loaded(self._source.load(self._names(), now), peers)

    def _use(self, loaded: _Loaded) -> None:
        changed = loaded.shown() != self._now.shown()
        if changed:
            self._creator.context = server_context(loaded.identity, loaded.believed())
        if self._problem:
            self._log.info("Certificates can be used again")
        self._now, self._problem = loaded, ""
        self._note(loaded.identity, changed=changed)

    def _note(self, identity: Identity, *, changed: bool = False) -> None:
        if identity.renewed:
            self._issued += 1
        if identity.renewed or changed:
            self._log.info(
                "A new certificate is in use until {until}: {reason}",
                until=f"{self._ends():%Y-%m-%d}",
                reason=identity.renewed or "its files have changed",
                names=identity.names(),
            )

    def _keep(self, failure: Failure) -> None:
        reason = failure.getErrorMessage()
        if reason != self._problem:
            self._log.error("The certificate in use is kept: {reason}", reason=reason)
        if failure.check(TrustError, OSError) is None:  # type: ignore[no-untyped-call]
            self._log.failure("This was not expected of certificates", failure)
        self._problem = reason


def open_trust(
    reactor: IReactorTime,
    directory: Path,
    *,
    label: str,
    hosts: Callable[[], Iterable[str]] = tuple,
    certificate: Path | None = None,
    key: Path | None = None,
    peer_ca: Path | None = None,
) -> TrustService:
    """The service as the server's options say.

    :param directory: of the local CA, ``tls`` in the state directory; unused with ``certificate``.
    :param hosts: host names besides the machine's own, such as mDNS's; called in a thread.
    :param key: of ``certificate``; None: it is in the same file.
    :raises TrustError: one line.
    """
    source: ISource
    if certificate is not None:
        source = GivenFiles(certificate, key or certificate)
    elif key is not None:
        raise TrustError("--tls-key needs --tls-certificate beside it")
    else:
        source = LocalAuthority(directory, label)
    return TrustService(source, reactor, peer_ca=peer_ca, names=lambda: machine_names(hosts()))
