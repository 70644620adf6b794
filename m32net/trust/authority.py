"""The local CA and the certificates it signs: X.509 as bytes and objects (RFC 5280), no files.

The time is given.  Keys and serial numbers come from the operating system's randomness.  All keys
are EC P-256: every phone and browser takes it, and a handshake costs less than a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    PrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from m32net.trust.names import Names, Realm, realm_for

CA_LIFE: Final = timedelta(days=3650)
"""Installing it on phones by hand is work nobody wants twice."""
LIFE: Final = timedelta(days=397)
"""Browsers refuse longer ones of public CAs (398 days), Apple's of any CA above 825."""
BEFORE: Final = timedelta(hours=1)
"""A certificate is valid from this long ago: phones' clocks are not exact."""
CA_BEFORE: Final = timedelta(days=1)
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""A machine whose clock says less has not been told the time yet (no battery, no network); its CA
is made to outlast that."""

_USES: Final = x509.ExtendedKeyUsage(
    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKeyTypes

    def matches(self) -> bool:
        return _public(self.certificate.public_key()) == _public(self.key.public_key())

    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _public(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 as ``AB:CD:…``, the way phones and browsers show it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def new_authority(
    names: Names, label: str, now: datetime, key: CertificateIssuerPrivateKeyTypes | None = None
) -> Pair:
    """A CA that may certify :func:`m32net.trust.names.realm_for` these names, and nothing else.

    :param label: whose it is, for the person who finds it in a phone's list.
    :param key: to be used again; None makes one.
    """
    key = key or new_key()
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Part of the key tells the CAs of two machines of one name apart, for people and for OpenSSL.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "m32net local CA"),
            x509.NameAttribute(
                NameOID.COMMON_NAME, f"m32net {_printable(label)} {key_id.digest.hex()[:8]}"
            ),
        ]
    )
    realm = realm_for(names)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CA_BEFORE)
        .not_valid_after(max(now, EARLIEST) + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.NameConstraints(
                [*map(x509.DNSName, realm.hosts), *map(x509.IPAddress, realm.networks)], None
            ),
            critical=True,
        )
        .add_extension(_USES, critical=False)
        .add_extension(key_id, critical=False)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def _printable(text: str) -> str:
    return "".join(one for one in text if one.isprintable())[:40] or "server"


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def realm_of(authority: x509.Certificate) -> Realm:
    """What a CA may certify; nothing if it has no name constraints."""
    try:
        value = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return Realm((), ())
    permitted = value.permitted_subtrees or []
    return Realm(
        tuple(one.value for one in permitted if isinstance(one, x509.DNSName)),
        tuple(one.value for one in permitted if isinstance(one, x509.IPAddress)),  # type: ignore[misc]
    )


def issue(authority: Pair, names: Names, now: datetime) -> Pair:
    """A certificate for a server, which also proves it to other servers; with a fresh key.

    :param names: all within the CA's realm.
    """
    key = new_key()
    signer = authority.certificate
    ca_key_id = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    alternatives = [*map(x509.DNSName, names.hosts), *map(x509.IPAddress, names.addresses)]
    begin = max(now - BEFORE, signer.not_valid_before_utc)
    builder = (
        x509.CertificateBuilder()
        # Not a host name: verifiers without SAN support would take it for one (RFC 6125).
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "m32net server")]))
        .issuer_name(signer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(min(begin + LIFE, signer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(_USES, critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id),
            critical=False,
        )
    )
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)  # type: ignore[arg-type]


def names_of(certificate: x509.Certificate) -> Names:
    """The names and addresses a certificate is for; none if it says none."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return Names()
    addresses = map(str, value.get_values_for_type(x509.IPAddress))
    return Names.of(value.get_values_for_type(x509.DNSName), addresses)


def why_renew(pair: Pair, authority: x509.Certificate, names: Names, now: datetime) -> str:
    """Why another certificate is due, in a few words; empty if this one is good for now."""
    certificate = pair.certificate
    if not pair.matches():
        return "its key is another's"
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "another CA signed it"
    if names_of(certificate) != names:
        return "names or addresses have changed"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin and begin > authority.not_valid_before_utc:
        return "it is not valid yet"
    longer = min(now + LIFE, authority.not_valid_after_utc) > end
    if end - now < (end - begin) / 3 and longer:
        return "it ends soon"
    return ""
