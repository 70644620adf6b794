"""CON-32: the local CA's certificate for phones, and what the engineer sees of it."""

from __future__ import annotations

import plistlib
import ssl

from cryptography import x509

from m32net.web.trust import profile
from tests.m32net.trust.made import authority, pem
from tests.m32net.web.case import WebCase

DER = ssl.PEM_cert_to_DER_cert(pem(authority().certificate).decode())


class CertificateTest(WebCase):
    def setUp(self) -> None:
        super().setUp()
        self.trust.pem = pem(authority().certificate)

    def test_forms(self) -> None:
        """CON-32: DER with the type phones install, and PEM; nobody needs to log in."""
        der = self.get("/ca.crt")
        self.assertEqual((der.status, der.body), (200, DER))
        self.assertEqual(der.header("Content-Type"), "application/x-x509-ca-cert")
        self.assertEqual(der.header("Content-Disposition"), 'inline; filename="m32net-ca.crt"')
        x509.load_der_x509_certificate(der.body)
        self.assertEqual(self.get("/ca.pem").body, self.trust.pem)

    def test_profile(self) -> None:
        """CON-32: a configuration profile that holds the certificate; installing twice is one."""
        answer = self.get("/ca.mobileconfig")
        self.assertEqual(answer.header("Content-Type"), "application/x-apple-aspen-config")
        content = plistlib.loads(answer.body)
        self.assertEqual(content["PayloadType"], "Configuration")
        (payload,) = content["PayloadContent"]
        self.assertEqual(payload["PayloadType"], "com.apple.security.root")
        self.assertEqual(payload["PayloadContent"], DER)
        self.assertNotEqual(payload["PayloadUUID"], content["PayloadUUID"])
        self.assertEqual(answer.body, self.get("/ca.mobileconfig").body)

    def test_profile_of_any_name(self) -> None:
        """CON-32: a server's name may hold what XML may not."""
        for name in ("Bühne <1> & co", "bell\x07", "half \udcff"):
            self.assertIn("m32net: ", plistlib.loads(profile(DER, name))["PayloadDisplayName"])

    def test_qr(self) -> None:
        """CON-32: the QR code leads to the certificate over plain HTTP."""
        asked: list[str] = []
        real = self.api.qr_svg

        def spy(url: str) -> bytes:
            asked.append(url)
            return real(url)

        self.api.qr_svg = spy
        self.status.page_url = "http://192.0.2.7:8080/"
        answer = self.get("/ca-qr.svg")
        self.assertEqual(answer.header("Content-Type"), "image/svg+xml")
        self.assertIn(b"<svg", answer.body)
        self.assertEqual(asked, ["http://192.0.2.7:8080/ca.crt"])

    def test_nothing_to_install(self) -> None:
        """CON-32: without TLS, and with given certificates, 404 says why."""
        self.trust.pem = None
        for path in ("/ca.crt", "/ca.pem", "/ca.mobileconfig", "/ca-qr.svg"):
            answer = self.get(path)
            self.assertEqual((answer.status, answer.code), (404, "no_local_ca"))
            self.assertIn("certificate of its own", answer.message)
        self.api.trust = None
        self.assertIn("without TLS", self.get("/ca.crt").message)

    def test_no_key_anywhere(self) -> None:
        """CON-32: no answer holds a key."""
        self.log_in()
        for path in ("/ca.crt", "/ca.pem", "/ca.mobileconfig", "/ca-qr.svg", "/api/trust"):
            self.assertNotIn(b"PRIVATE", self.get(path).body)


class StatusTest(WebCase):
    def test_engineer_only(self) -> None:
        """CON-32: addresses and names of the machine are for the engineer."""
        self.assertEqual(self.get("/api/trust").status, 401)

    def test_shown(self) -> None:
        """CON-32: fingerprint, addresses to install from, and until when it is good."""
        self.log_in()
        body = self.get("/api/trust").json
        self.assertTrue(body["tls"])
        self.assertTrue(body["ca_url"].endswith("/ca.crt"))
        self.assertTrue(body["profile_url"].endswith("/ca.mobileconfig"))
        self.assertEqual(body["certificate"]["fingerprint"], self.trust.ca_fingerprint())
        self.assertEqual(body["certificate"]["secure_url"], "https://192.0.2.1:8443/")

    def test_given_certificate_or_none(self) -> None:
        """CON-32: nothing to install, and no TLS at all."""
        self.log_in()
        self.trust.pem = None
        body = self.get("/api/trust").json
        self.assertIsNone(body["ca_url"])
        self.assertTrue(body["certificate"]["own"])
        self.api.trust = None
        body = self.get("/api/trust").json
        self.assertEqual(
            body, {"tls": False, "ca_url": None, "profile_url": None, "certificate": None}
        )
