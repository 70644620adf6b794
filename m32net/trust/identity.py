"""Where this server's certificate comes from: the local CA in its state directory, or given files.

Both kinds answer :meth:`load` with an :class:`Identity`, as often as one asks: that is how a
renewed certificate, changed names and replaced files are noticed.  Given files are read and never
touched; the local CA makes and renews what is missing, but replaces a CA for no reason at all,
because phones have it installed.  All of it blocks.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from m32net.trust import files
from m32net.trust.authority import (
    Pair,
    issue,
    new_authority,
    realm_of,
    why_renew,
)
from m32net.trust.files import TrustError
from m32net.trust.names import Names

MAX_CERTIFICATES: Final = 200


@dataclass(frozen=True)
class Identity:
    """What a server proves itself with.

    :ivar pair: its certificate and key.
    :ivar chain: certificates between it and the CA, which are sent along.
    :ivar authority: the local CA; None with given certificates.
    :ivar not_covered: wanted names and addresses that the local CA may not certify.
    :ivar problem: one line, if it works but not as it should.
    :ivar renewed: why the certificate is new, if this very call made it.
    """

    pair: Pair
    chain: tuple[x509.Certificate, ...] = ()
    authority: x509.Certificate | None = None
    not_covered: Names = field(default_factory=Names)
    problem: str = ""
    renewed: str = ""

    def names(self) -> tuple[str, ...]:
        """What the certificate is for, as text; wildcards included."""
        try:
            value = self.pair.certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value
        except (x509.ExtensionNotFound, ValueError):
            return ()
        return (
            *value.get_values_for_type(x509.DNSName),
            *map(str, value.get_values_for_type(x509.IPAddress)),
        )


class ISource(Protocol):
    """Gives the identity to use now."""

    def load(self, names: Names, now: datetime) -> Identity:
        """:raises TrustError: there is none."""
        ...


class GivenFiles:
    """A certificate with its chain, and its key, from files somebody else looks after.

    :param key: may be the same file.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key

    def load(self, names: Names, now: datetime) -> Identity:
        chain = certificates(self._certificate)
        pair = Pair(chain[0], private_key(self._key))
        if not pair.matches():
            raise TrustError(
                f"the key in {self._key} does not belong to the first certificate in "
                f"{self._certificate}; the server's own certificate must come first"
            )
        if now >= chain[0].not_valid_after_utc:
            raise TrustError(
                f"the certificate in {self._certificate} expired on "
                f"{chain[0].not_valid_after_utc:%Y-%m-%d}; renew it, or leave --tls-certificate "
                "out to use a local CA"
            )
        return Identity(pair, chain[1:], problem=_not_yet(self._certificate, chain[0], now))


class LocalAuthority:
    """A CA of this server's own in ``directory``, made on first use, and what it signed.

    Files, all readable by the owner only: ``ca.pem``, ``ca.key``, ``server.pem``, ``server.key``.
    A key is written before its certificate, so a kill between them leaves one of these states:

    - ``ca.key`` alone: nobody has seen its certificate; one is made for this key.
    - ``server.key`` and ``server.pem`` of different keys: another certificate is signed.

    Once loaded, the CA is kept in memory: whatever becomes of its files while the server runs, no
    other one is made, because people compare its fingerprint.

    :param label: whose CA it is, for people.
    """

    def __init__(self, directory: Path, label: str) -> None:
        self._directory = directory
        self._label = label
        self._known: Pair | None = None

    def load(self, names: Names, now: datetime) -> Identity:
        with files.private_directory(self._directory):
            problem = self._write_back()
            authority = self._known = self._authority(names, now)
            covered, outside = realm_of(authority.certificate).split(names)
            problem = _not_yet(self._path("ca.pem"), authority.certificate, now) or problem
            pair, renewed = self._server(authority, covered, now)
        return Identity(pair, (), authority.certificate, outside, problem, renewed)

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _write_back(self) -> str:
        """Put the CA's certificate back if it was lost while its key is there; says so."""
        certificate, key = self._path("ca.pem"), self._path("ca.key")
        if self._known is None or certificate.exists() or not key.exists():
            return ""
        with suppress(TrustError):  # said when the key is looked at
            if Pair(self._known.certificate, private_key(key)).matches():
                files.write(certificate, self._known.certificate_pem())
                return f"{certificate} was lost; it has been written again, the same as before"
        return ""

    def _authority(self, names: Names, now: datetime) -> Pair:
        certificate, key = self._path("ca.pem"), self._path("ca.key")
        if not certificate.exists():
            known = _signing_key(key) if key.exists() else None
            self._check_unseen(known)
            made = new_authority(names, self._label, now, known)
            if known is None:
                files.write(key, made.key_pem())
            files.write(certificate, made.certificate_pem())
            return made
        try:
            pair = Pair(certificates(certificate)[0], _signing_key(key))
            _check_authority(pair, certificate, now)
        except TrustError as reason:
            raise self._unusable(str(reason)) from None
        return pair

    def _unusable(self, reason: str) -> TrustError:
        return TrustError(
            f"{reason}; restore {self._directory} from a backup, or remove ca.pem "
            "and ca.key for a new local CA at the next start, which phones must then install again "
            "(--https no: run without TLS)"
        )

    def _check_unseen(self, key: ec.EllipticCurvePrivateKey | None) -> None:
        """Nobody may have seen the CA that is missing; without a key, another one is wanted.

        :raises TrustError: it is in use, or has signed what is here.
        """
        lost = self._unusable(f"{self._path('ca.pem')} is lost")
        if self._known is not None:
            raise lost
        server = self._path("server.pem")
        if key is None or not server.exists():
            return
        try:
            signed = certificates(server)[0]
            signer = signed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        except (TrustError, x509.ExtensionNotFound):
            raise lost from None
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        if signer.key_identifier == own.key_identifier:
            raise lost

    def _server(self, authority: Pair, names: Names, now: datetime) -> tuple[Pair, str]:
        """The certificate to use, and why it is a new one."""
        certificate, key = self._path("server.pem"), self._path("server.key")
        try:
            pair = Pair(certificates(certificate)[0], private_key(key))
        except TrustError as reason:
            due = str(reason) if certificate.exists() else "there was none"
        else:
            due = why_renew(pair, authority.certificate, names, now)
            if not due:
                return pair, ""
        pair = issue(authority, names, now)
        files.write(key, pair.key_pem())
        files.write(certificate, pair.certificate_pem())
        return pair, due


def _not_yet(path: Path, certificate: x509.Certificate, now: datetime) -> str:
    begin = certificate.not_valid_before_utc
    if now >= begin:
        return ""
    return f"{path} is valid from {begin:%Y-%m-%d} only; is the clock right? It says {now:%Y-%m-%d}"


def _check_authority(pair: Pair, path: Path, now: datetime) -> None:
    """:raises TrustError: it cannot be used as local CA."""
    if not pair.matches():
        raise TrustError(f"{path} and ca.key do not belong together")
    if now >= pair.certificate.not_valid_after_utc:
        raise TrustError(
            f"the local CA in {path} expired on {pair.certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    try:
        extensions = pair.certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        basic = None
    if basic is None or not basic.ca or not realm_of(pair.certificate).hosts:
        raise TrustError(f"{path} is no CA that m32net has made")


def certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, at least one.

    :raises TrustError: there is none, or something that is none.
    """
    data = files.read(path)
    try:
        found = x509.load_pem_x509_certificates(data)
        for one in found:  # what is wrong inside shows only when it is looked at
            _ = one.extensions, one.not_valid_after_utc, one.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise TrustError(f"{path} holds no certificate in PEM form that can be read") from None
    if len(found) > MAX_CERTIFICATES:
        raise TrustError(f"{path} holds more than {MAX_CERTIFICATES} certificates")
    return tuple(found)


def private_key(path: Path) -> PrivateKeyTypes:
    """:raises TrustError: there is none, or it needs a passphrase."""
    data = files.read(path)
    try:
        return load_pem_private_key(data, password=None)
    except TypeError:
        raise TrustError(
            f"the key in {path} has a passphrase, and nobody is there to type it; store it without"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError(f"{path} holds no private key in PEM form that can be read") from None


def _signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{path} holds no key that m32net has made")
    return key
