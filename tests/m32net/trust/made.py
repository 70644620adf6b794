"""What the tests of certificates share: a point in time, names, a CA made once, given files."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from m32net.trust.authority import Pair, new_authority, new_key
from m32net.trust.names import Names

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NAMES = Names.of(
    ["localhost", "m32-server.local", "foh-1"], ["127.0.0.1", "::1", "192.168.1.20", "203.0.113.7"]
)


@functools.cache
def authority() -> Pair:
    return new_authority(NAMES, "foh-1", NOW)


def signed(
    subject_key: CertificateIssuerPrivateKeyTypes,
    hosts: list[str],
    *,
    by: Pair | None = None,
    begin: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=90),
    ca: bool = False,
) -> x509.Certificate:
    """A certificate such as others make: self-signed, or by any CA for any name."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "given " + hosts[0])])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by.certificate.subject if by else name)
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(by.key if by else subject_key, hashes.SHA256())  # type: ignore[arg-type]
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def key_pem(key: CertificateIssuerPrivateKeyTypes, passphrase: bytes = b"") -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def given_files(
    directory: Path, hosts: list[str], **options: datetime
) -> tuple[Path, Path, ec.EllipticCurvePrivateKey]:
    """A self-signed certificate and its key as files."""
    directory.mkdir(parents=True, exist_ok=True)
    key = new_key()
    certificate_file, key_file = directory / "given.pem", directory / "given.key"
    certificate_file.write_bytes(pem(signed(key, hosts, **options)))  # type: ignore[arg-type]
    key_file.write_bytes(key_pem(key))
    return certificate_file, key_file, key
