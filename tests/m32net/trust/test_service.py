"""CON-32: the certificate in use while the server runs, on an injected clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed448
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.task import Clock
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from m32net.trust.authority import BEFORE, LIFE, issue, new_authority, new_key
from m32net.trust.files import TrustError
from m32net.trust.identity import GivenFiles, LocalAuthority
from m32net.trust.names import Names
from m32net.trust.service import CHECK_S, TrustService, open_trust
from tests.m32net.trust.made import NAMES, NOW, given_files, key_pem, pem, signed


class ServiceCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.clock = Clock()
        self.names = NAMES

    def make(self, source: Any = None, **options: Any) -> TrustService:
        service = TrustService(
            source or LocalAuthority(self.directory / "tls", "foh-1"),
            self.clock,
            names=lambda: self.names,
            wall=lambda: NOW.timestamp() + self.clock.seconds(),
            in_thread=maybeDeferred,
            **options,
        )
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def certificate(self, service: TrustService) -> x509.Certificate:
        """What a client would be shown now, by a handshake in memory."""
        server = service.context_factory.serverConnectionForTLS(None)
        context = SSL.Context(SSL.TLS_METHOD)
        client = SSL.Connection(context, None)
        server.set_accept_state()
        client.set_connect_state()
        for _ in range(6):
            for one, other in ((client, server), (server, client)):
                try:
                    one.do_handshake()
                except SSL.WantReadError:
                    pass
                try:
                    other.bio_write(one.bio_read(1 << 20))
                except SSL.WantReadError:
                    pass
        shown = client.get_peer_certificate()
        assert shown is not None
        return shown.to_cryptography()

    def days(self, days: float) -> None:
        """As if the machine had slept so long: one look at the end."""
        self.clock.advance(days * 86_400)


class RunningTest(ServiceCase):
    def test_provides_what_endpoints_want(self) -> None:
        """CON-32: the factory of TLS connections, and the figures people see."""
        service = self.make()
        verifyObject(IOpenSSLServerConnectionCreator, service.context_factory)
        self.assertEqual(service.health().state, "healthy")
        left = service.figures()["certificate_expiry_seconds"]
        self.assertEqual(left, (LIFE - BEFORE).total_seconds())
        status = service.status()
        self.assertEqual(set(status.names), set(NAMES.texts()))
        self.assertEqual(status.fingerprint, service.ca_fingerprint())
        self.assertRegex(status.fingerprint, r"^([0-9A-F]{2}:){31}[0-9A-F]{2}$")
        self.assertFalse(status.own)

    def test_renewed_without_restart(self) -> None:
        """CON-32: new connections get the renewed certificate; the CA stays."""
        service = self.make()
        first, ca = self.certificate(service), service.ca_pem()
        self.days(200)
        self.assertEqual(self.certificate(service), first)
        self.days(80)
        second = self.certificate(service)
        self.assertNotEqual(second, first)
        self.assertEqual(service.ca_pem(), ca)
        self.assertEqual(service.figures()["certificates_issued_total"], 2)
        self.assertEqual(service.health().state, "healthy")

    def test_new_address(self) -> None:
        """CON-32: an address from DHCP is in the certificate a minute later."""
        service = self.make()
        before = service.context_factory.context
        self.clock.advance(CHECK_S)
        self.assertIs(service.context_factory.context, before, "nothing changed, nothing swapped")
        self.names = Names.of(NAMES.hosts, [*NAMES.addresses, "10.1.2.3"])
        self.clock.advance(CHECK_S)
        self.assertIn("10.1.2.3", service.status().names)
        self.assertIsNot(service.context_factory.context, before)

    def test_trouble_keeps_what_is_in_use(self) -> None:
        """CON-32: the CA's files damaged while running: degraded with the reason, TLS goes on."""
        service = self.make()
        first = self.certificate(service)
        key = self.directory / "tls" / "ca.key"
        good = key.read_bytes()
        key.write_bytes(b"damaged")
        self.clock.advance(CHECK_S)
        self.assertEqual(service.health().state, "degraded")
        self.assertIn("ca.key holds no private key", service.health().reasons[0])
        self.assertEqual(self.certificate(service), first)
        self.days(400)
        self.assertIn("the certificate expired on", service.health().reasons[0])
        key.write_bytes(good)
        self.clock.advance(CHECK_S)
        self.assertEqual(service.health().state, "healthy")

    def test_lost_while_running(self) -> None:
        """CON-32: the CA's certificate is written again, the same; not without its key."""
        service = self.make()
        fingerprint, shown = service.ca_fingerprint(), self.certificate(service)
        tls = self.directory / "tls"
        published = (tls / "ca.pem").read_bytes()
        (tls / "ca.pem").unlink()
        (tls / "server.pem").write_bytes(b"x")
        self.clock.advance(CHECK_S)
        self.assertEqual((tls / "ca.pem").read_bytes(), published)
        self.assertEqual(service.ca_fingerprint(), fingerprint)
        self.assertIn("was lost; it has been written again", service.health().reasons[0])
        self.clock.advance(CHECK_S)
        self.assertEqual(service.health().state, "healthy")
        shown = self.certificate(service)
        for name in ("ca.pem", "ca.key"):
            (tls / name).unlink()
        self.clock.advance(CHECK_S)
        self.assertEqual(service.health().state, "degraded")
        self.assertIn("ca.pem is lost", service.health().reasons[0])
        self.assertFalse((tls / "ca.pem").exists())
        self.assertEqual(service.ca_fingerprint(), fingerprint)
        self.assertEqual(self.certificate(service), shown)

    def test_lost_and_the_key_is_another(self) -> None:
        """CON-32: nothing is written beside a key that does not belong to it."""
        service = self.make()
        fingerprint, tls = service.ca_fingerprint(), self.directory / "tls"
        (tls / "ca.pem").unlink()
        (tls / "ca.key").write_bytes(key_pem(new_key()))
        self.clock.advance(CHECK_S)
        self.assertIn("ca.pem is lost", service.health().reasons[0])
        self.assertFalse((tls / "ca.pem").exists())
        self.assertEqual(service.ca_fingerprint(), fingerprint)

    def test_unexpected_failure(self) -> None:
        """CON-32: looking for the machine's names may fail in any way: kept, told, logged."""
        service = self.make()

        def broken() -> Names:
            raise ZeroDivisionError("no addresses")

        service._names = broken
        self.clock.advance(CHECK_S)
        self.assertEqual(service.health().reasons, ("no addresses",))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_look_at_a_time(self) -> None:
        """CON-32: a disk that hangs does not pile up threads."""
        service = self.make()
        asked: list[Deferred[Any]] = []

        def hang(*_: Any) -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        service._in_thread = hang
        for _ in range(10):
            self.clock.advance(CHECK_S)
        self.assertEqual(len(asked), 1)


class GivenServiceTest(ServiceCase):
    def test_replaced_while_running(self) -> None:
        """CON-32: a given certificate that is renewed in its files is used without a restart."""
        certificate, key, _ = given_files(self.directory, ["foh.example.com"])
        service = self.make(GivenFiles(certificate, key))
        self.assertIsNone(service.ca_pem())
        self.assertEqual(service.ca_fingerprint(), "")
        self.assertTrue(service.status().own)
        self.days(80)
        self.assertIn("expires on 2026-08-30; renew it", service.health().reasons[0])
        self.days(11)
        self.assertEqual(service.health().state, "degraded")
        end = NOW.replace(year=2027)
        secret = new_key()
        certificate.write_bytes(pem(signed(secret, ["foh.example.com"], end=end)))
        self.clock.advance(CHECK_S)
        self.assertIn("expired", service.health().reasons[0])
        self.assertIn("does not belong", service._problem)
        key.write_bytes(key_pem(secret))
        self.clock.advance(CHECK_S)
        self.assertEqual(service.health().state, "healthy")
        self.assertEqual(self.certificate(service).not_valid_after_utc, end)

    def test_weak_key(self) -> None:
        """CON-32: what OpenSSL refuses is one line too, not a traceback."""
        key = crypto.PKey()
        key.generate_key(crypto.TYPE_RSA, 1024)
        secret: Any = key.to_cryptography_key()
        path = self.directory / "weak.pem"
        path.write_bytes(pem(signed(secret, ["a.example"])) + key_pem(secret))
        error = self.assertRaises(TrustError, self.make, GivenFiles(path, path))
        self.assertIn("OpenSSL refuses the certificate: ", str(error))

    def test_strange_key(self) -> None:
        """CON-32: a kind of key that TLS here does not know is one line."""
        secret: Any = ed448.Ed448PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "strange")])
        certificate = (
            x509.CertificateBuilder(name, name, secret.public_key(), 1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=9))
            .sign(secret, None)
        )
        path = self.directory / "strange.pem"
        path.write_bytes(pem(certificate) + key_pem(secret))
        error = self.assertRaises(TrustError, self.make, GivenFiles(path, path))
        self.assertIn("neither RSA nor EC nor Ed25519", str(error))


class PeersTest(ServiceCase):
    def test_who_is_a_peer(self) -> None:
        """CON-32: this CA's certificates, those of --peer-ca, and nobody else's."""
        other = new_authority(NAMES, "other", NOW)
        pinned = signed(new_key(), ["third.local"], end=NOW.replace(year=2046))
        peer_ca = self.directory / "peers.pem"
        peer_ca.write_bytes(pem(other.certificate, pinned))
        service = self.make(peer_ca=peer_ca)
        stranger = new_authority(NAMES, "other", NOW)

        def is_peer(certificate: x509.Certificate) -> bool:
            return service.is_peer(crypto.X509.from_cryptography(certificate))

        now = datetime.now(UTC)  # OpenSSL judges by the system's clock
        self.assertTrue(is_peer(issue(other, NAMES, now).certificate))
        self.assertTrue(is_peer(pinned))
        self.assertFalse(is_peer(issue(stranger, NAMES, now).certificate))
        self.assertFalse(is_peer(signed(new_key(), ["third.local"])))
        past = signed(new_key(), ["other.local"], by=other, end=NOW + timedelta(days=1))
        self.assertFalse(is_peer(past), "it has expired")
        self.assertFalse(service.is_peer(None))
        self.assertFalse(service.is_peer("certificate"))
        peer_ca.write_bytes(pem(stranger.certificate))
        self.clock.advance(CHECK_S)
        self.assertFalse(is_peer(issue(other, NAMES, now).certificate))
        self.assertTrue(is_peer(issue(stranger, NAMES, now).certificate))


class OpenTest(ServiceCase):
    def test_options(self) -> None:
        """CON-32: what the options say; a key without its certificate is refused."""
        service = open_trust(
            self.clock, self.directory / "tls", label="m", hosts=lambda: ["extra.local"]
        )
        self.assertIn("extra.local", service.status().names)
        certificate, key, _ = given_files(
            self.directory, ["foh.example.com"], end=NOW.replace(year=2046)
        )
        given = open_trust(
            self.clock, self.directory / "none", label="m", certificate=certificate, key=key
        )
        self.assertEqual(given.status().names, ("foh.example.com",))
        self.assertFalse((self.directory / "none").exists())
        with self.assertRaisesRegex(TrustError, "--tls-key needs --tls-certificate"):
            open_trust(self.clock, self.directory / "tls", label="m", key=key)
        with self.assertRaisesRegex(TrustError, "cannot read"):
            open_trust(
                self.clock, self.directory / "tls", label="m", peer_ca=self.directory / "absent"
            )
