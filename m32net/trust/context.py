"""TLS contexts: what this server offers, whom it believes, and how it meets other servers.

TLS 1.2 at least.  Who says by ALPN that it is a server of ours is asked for its certificate, and
need not show one; one that it does show must be another m32net server's, or the handshake fails.
Browsers are not asked: they would break the connection off and begin another one.

Sessions are not resumed: a handshake is cheap here, and every connection gets the certificate and
the list of peers of its day.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    KeyPair,
    PrivateCertificate,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from zope.interface import implementer

from m32net.trust.files import TrustError
from m32net.trust.identity import Identity

PEER_PROTOCOL: Final = b"m32net-peer"
"""Offered by servers beside :data:`HTTP`, never chosen."""
HTTP: Final = b"http/1.1"


def _x509(certificate: x509.Certificate) -> crypto.X509:
    return crypto.X509.from_cryptography(certificate)


def _store(store: crypto.X509Store, believed: Sequence[x509.Certificate]) -> crypto.X509Store:
    for one in believed:
        store.add_cert(_x509(one))
    # What was given is believed itself, CA or not: a peer's own certificate may be listed.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    return store


def server_context(identity: Identity, believed: Sequence[x509.Certificate]) -> SSL.Context:
    """A context for what listens.

    :param believed: CAs and certificates of other servers.
    :raises TrustError: OpenSSL refuses the certificate, as it does for weak keys.
    """
    try:
        return _server_context(identity, believed)
    except SSL.Error as reason:
        raise TrustError(f"OpenSSL refuses the certificate: {openssl_reason(reason)}") from None


def _server_context(identity: Identity, believed: Sequence[x509.Certificate]) -> SSL.Context:
    options = CertificateOptions(
        privateKey=_key(identity.pair.key),
        certificate=_x509(identity.pair.certificate),
        extraCertChain=[_x509(one) for one in identity.chain],
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )
    context: SSL.Context = options.getContext()
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
    context.set_alpn_select_callback(_choose_protocol)
    if believed:
        store = context.get_cert_store()
        assert store is not None
        _store(store, believed)
        for one in believed:
            context.add_client_ca(_x509(one))
    return context


def _choose_protocol(connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    """ALPN (RFC 7301): OpenSSL asks before it decides whether to want a certificate."""
    if PEER_PROTOCOL in offered:
        connection.set_verify(SSL.VERIFY_PEER)
    return HTTP if HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def openssl_reason(error: SSL.Error) -> str:
    """What OpenSSL says, without its numbers."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(str(entry[-1]) for entry in entries) or str(error)


def _key(key: PrivateKeyTypes) -> crypto.PKey:
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise TrustError("the certificate's key is neither RSA nor EC nor Ed25519")
    return crypto.PKey.from_cryptography_key(key)


@implementer(IOpenSSLServerConnectionCreator)
class SwappedContext:
    """Makes the server's side of connections, each with the context of the moment.

    :ivar context: may be replaced at any time; open connections keep theirs.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self.context, None)


@implementer(IOpenSSLClientConnectionCreator)
class PinningClient:
    """A client's side that also believes certificates which are no CA's, if they were given."""

    def __init__(self, creator: IOpenSSLClientConnectionCreator) -> None:
        self._creator = creator

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = self._creator.clientConnectionForTLS(tlsProtocol)
        store = connection.get_context().get_cert_store()
        assert store is not None
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        return connection


def client_options(
    host: str, identity: Identity, believed: Sequence[x509.Certificate]
) -> IOpenSSLClientConnectionCreator:
    """For a connection to ``host``, whose name or address its certificate must bear."""
    own = None
    if proves_clients(identity.pair.certificate):
        own = PrivateCertificate.fromCertificateAndKeyPair(  # type: ignore[no-untyped-call]
            Certificate(_x509(identity.pair.certificate)),  # type: ignore[no-untyped-call]
            KeyPair(_key(identity.pair.key)),  # type: ignore[no-untyped-call]
        )
    chain = [_x509(one) for one in identity.chain]
    return PinningClient(
        optionsForClientTLS(
            host,
            trustRoot=authorities(believed),
            clientCertificate=own,
            acceptableProtocols=[PEER_PROTOCOL, HTTP],
            extraCertificateOptions={"extraCertChain": chain} if own and chain else None,
        )
    )


def proves_clients(certificate: x509.Certificate) -> bool:
    """Whether a certificate may be shown by the side that connects; public CAs' often may not."""
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return bool(
        {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses)
    )


def authorities(believed: Sequence[x509.Certificate]) -> Any:
    """Whom a client is to trust, for Twisted's ``trustRoot``."""
    roots = [Certificate(_x509(one)) for one in believed]  # type: ignore[no-untyped-call]
    return trustRootFromCertificates(roots)  # type: ignore[no-untyped-call]


def is_signed_by(
    certificate: crypto.X509,
    believed: Sequence[x509.Certificate],
    chain: Sequence[crypto.X509] = (),
) -> bool:
    """Whether a client's certificate is one of these, or valid and signed by one of these.

    :param chain: what the client sent besides, in any order: CAs between the two.  They are
        believed as far as those in ``believed`` vouch for them.
    """
    if not proves_clients(certificate.to_cryptography()):
        return False
    store = _store(crypto.X509Store(), believed)
    try:
        crypto.X509StoreContext(store, certificate, list(chain)).verify_certificate()
    except crypto.X509StoreContextError:
        return False
    return True
