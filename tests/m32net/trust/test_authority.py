"""CON-32: the local CA and what it signs, as openssl and the rules of browsers see it."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.trust.authority import (
    CA_LIFE,
    EARLIEST,
    LIFE,
    Pair,
    fingerprint,
    issue,
    names_of,
    new_authority,
    new_key,
    realm_of,
    why_renew,
)
from m32net.trust.names import Names, realm_for
from tests.m32net.trust.made import NAMES, NOW, authority, pem, signed
from tests.support.processes import missing

AT = str(int(NOW.timestamp()))


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


class OpensslTest(unittest.SynchronousTestCase):
    skip = missing("openssl")

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.ca = self.file("ca.pem", authority().certificate)

    def file(self, name: str, *certificates: x509.Certificate) -> str:
        path = self.directory / name
        path.write_bytes(pem(*certificates))
        return str(path)

    def verify(self, certificate: x509.Certificate, *options: str) -> str:
        """What ``openssl verify`` says."""
        path = self.file("leaf.pem", certificate)
        done = openssl("verify", "-x509_strict", "-attime", AT, *options, "-CAfile", self.ca, path)
        return done.stdout + done.stderr

    def test_what_it_signs_is_good(self) -> None:
        """CON-32: openssl accepts the certificate for each name and address, both ways round."""
        leaf = issue(authority(), NAMES, NOW).certificate
        for purpose in ("sslserver", "sslclient"):
            self.assertIn("OK", self.verify(leaf, "-purpose", purpose))
        for host in NAMES.hosts:
            self.assertIn("OK", self.verify(leaf, "-verify_hostname", host))
        for address in NAMES.addresses:
            self.assertIn("OK", self.verify(leaf, "-verify_ip", str(address)))
        self.assertIn("hostname mismatch", self.verify(leaf, "-verify_hostname", "other.local"))
        self.assertIn("mismatch", self.verify(leaf, "-verify_ip", "192.168.1.21"))

    def test_name_constraints_bite(self) -> None:
        """CON-32: with the CA's stolen key nobody can be any site of the Internet."""
        for host in ("example.com", "www.example.com", "foh-2", "local.example"):
            forged = signed(new_key(), [host], by=authority())
            self.assertIn("permitted subtree violation", self.verify(forged), host)
        for address in ("8.8.8.8", "2001:db8::1"):
            forged = issue(authority(), Names.of([], [address]), NOW).certificate
            self.assertIn("permitted subtree violation", self.verify(forged), address)

    def test_no_further_cas(self) -> None:
        """CON-32: the path length 0 of the CA forbids others below it."""
        key = new_key()
        below = Pair(signed(key, ["x.local"], by=authority(), ca=True), key)
        leaf = signed(new_key(), ["y.local"], by=below)
        said = self.verify(leaf, "-untrusted", self.file("below.pem", below.certificate))
        self.assertIn("path length constraint exceeded", said)

    def test_extensions_as_text(self) -> None:
        """CON-32: basic and name constraints are critical, and say what they should."""
        text = openssl("x509", "-in", self.ca, "-noout", "-text").stdout
        for expected in (
            "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0",
            "X509v3 Name Constraints: critical",
            "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign",
            "DNS:local\n",
            "DNS:foh-1\n",
            "IP:192.168.0.0/255.255.0.0",
            "IP:203.0.113.7/255.255.255.255",
        ):
            self.assertIn(expected, text)
        leaf = self.file("leaf.pem", issue(authority(), NAMES, NOW).certificate)
        text = openssl("x509", "-in", leaf, "-noout", "-text").stdout
        self.assertIn("X509v3 Basic Constraints: critical\n                CA:FALSE", text)
        self.assertIn("TLS Web Server Authentication, TLS Web Client Authentication", text)
        self.assertIn("DNS:foh-1, DNS:localhost, DNS:m32-server.local, IP Address:127.0.0.1", text)

    def test_fingerprint(self) -> None:
        """CON-32: the fingerprint people compare is the one openssl shows."""
        said = openssl("x509", "-in", self.ca, "-noout", "-fingerprint", "-sha256").stdout
        self.assertEqual(said.strip().split("=")[1], fingerprint(authority().certificate))


class LifeTest(unittest.SynchronousTestCase):
    def test_within_what_browsers_take(self) -> None:
        """CON-32: 397 days at most, valid from a little ago, never longer than the CA."""
        leaf = issue(authority(), NAMES, NOW).certificate
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        self.assertLessEqual(life, timedelta(days=397))
        self.assertLess(leaf.not_valid_before_utc, NOW)
        late = authority().certificate.not_valid_after_utc - timedelta(days=30)
        leaf = issue(authority(), NAMES, late).certificate
        self.assertEqual(leaf.not_valid_after_utc, authority().certificate.not_valid_after_utc)

    def test_clock_that_knows_no_date(self) -> None:
        """CON-32: a CA made on a machine that believes it is 1970 is still good after NTP."""
        made = new_authority(NAMES, "foh-1", datetime.fromtimestamp(0, NOW.tzinfo)).certificate
        self.assertEqual(made.not_valid_after_utc, EARLIEST + CA_LIFE)

    def test_renewed_in_the_last_third(self) -> None:
        """CON-32: not sooner, and not again and again when the CA itself ends."""
        pair = issue(authority(), NAMES, NOW)
        ca = authority().certificate
        begin = pair.certificate.not_valid_before_utc

        def reason(at: datetime) -> str:
            return why_renew(pair, ca, NAMES, at)

        third = LIFE / 3
        self.assertEqual(reason(NOW), "")
        self.assertEqual(reason(begin + 2 * third - timedelta(minutes=1)), "")
        self.assertIn("ends soon", reason(begin + 2 * third + timedelta(minutes=1)))
        self.assertIn("ends soon", reason(begin + 2 * LIFE))
        self.assertIn("not valid yet", reason(begin - timedelta(minutes=1)))
        end = ca.not_valid_after_utc
        last = issue(authority(), NAMES, end - timedelta(hours=3))
        self.assertEqual(why_renew(last, ca, NAMES, end - timedelta(minutes=1)), "")

    def test_renewed_for_other_reasons(self) -> None:
        """CON-32: other names, another CA, a key that is another's."""
        pair = issue(authority(), NAMES, NOW)
        ca = authority().certificate
        more = Names.of([*NAMES.hosts, "foh-1.local"], NAMES.addresses)
        self.assertIn("changed", why_renew(pair, ca, more, NOW))
        self.assertIn("changed", why_renew(pair, ca, Names.of(NAMES.hosts), NOW))
        other = new_authority(NAMES, "foh-1", NOW)
        self.assertIn("another CA", why_renew(pair, other.certificate, NAMES, NOW))
        namesake = signed(rsa.generate_private_key(65537, 2048), ["localhost"], by=None)
        self.assertIn("another CA", why_renew(pair, namesake, NAMES, NOW))
        mixed = Pair(pair.certificate, new_key())
        self.assertIn("another's", why_renew(mixed, ca, NAMES, NOW))

    @given(st.datetimes(datetime(2026, 1, 1), datetime(2035, 12, 1)))
    def test_a_new_one_is_never_due(self, at: datetime) -> None:
        """CON-32: whenever one is signed, it is good: no loop of renewals."""
        now = max(at.replace(tzinfo=NOW.tzinfo), NOW)
        pair = issue(authority(), NAMES, now)
        self.assertEqual(why_renew(pair, authority().certificate, NAMES, now), "")
        self.assertEqual(names_of(pair.certificate), NAMES)

    def test_realm_is_read_back(self) -> None:
        """CON-32: what the CA may certify is read from it, not assumed."""
        self.assertEqual(realm_of(authority().certificate), realm_for(NAMES))
        self.assertEqual(realm_of(signed(new_key(), ["a.local"])).hosts, ())
