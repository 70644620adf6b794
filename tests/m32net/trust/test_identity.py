"""CON-32: where the certificate comes from, whatever state its files are in."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from m32net.trust import files
from m32net.trust.authority import LIFE, fingerprint, new_key
from m32net.trust.files import TrustError
from m32net.trust.identity import GivenFiles, Identity, LocalAuthority, certificates
from m32net.trust.names import Names
from tests.m32net.trust.made import NAMES, NOW, given_files, key_pem, pem, signed

FILES = ("ca.key", "ca.pem", "server.key", "server.pem")


class Killed(BaseException):
    """The process ends here."""


class LocalCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "tls"
        self.directory.parent.mkdir()

    def load(self, names: Names = NAMES, now: datetime = NOW) -> Identity:
        return LocalAuthority(self.directory, "foh-1").load(names, now)

    def ca(self, identity: Identity) -> str:
        assert identity.authority is not None
        return fingerprint(identity.authority)

    def refusal(self, **options: Any) -> str:
        """The one line it is refused with."""
        error = self.assertRaises(TrustError, self.load, **options)
        self.assertNotIn("\n", str(error))
        return str(error)


class LocalTest(LocalCase):
    def test_first_run_and_after(self) -> None:
        """CON-32: made on the first run, then read: the same CA and certificate."""
        first = self.load()
        self.assertEqual(first.renewed, "there was none")
        self.assertEqual(set(first.names()), set(NAMES.texts()))
        again = self.load()
        self.assertEqual(again.renewed, "")
        self.assertEqual(again.pair.certificate, first.pair.certificate)
        self.assertEqual(sorted(one.name for one in self.directory.iterdir()), list(FILES))

    def test_keys_are_private(self) -> None:
        """CON-32: files 0600 and the directory 0700, whatever the umask and whatever they were."""
        mask = os.umask(0)
        self.addCleanup(os.umask, mask)
        for _ in range(2):
            self.load()
            for name in FILES:
                mode = (self.directory / name).stat().st_mode
                self.assertEqual(stat.S_IMODE(mode), 0o600, name)
                (self.directory / name).chmod(0o644)
            self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
            self.directory.chmod(0o755)

    def test_renewal(self) -> None:
        """CON-32: renewed in its last third by the same CA, with a fresh key."""
        first = self.load()
        self.assertEqual(self.load(now=NOW + LIFE / 2).renewed, "")
        second = self.load(now=NOW + LIFE * 0.7)
        self.assertEqual(second.renewed, "it ends soon")
        self.assertEqual(self.ca(first), self.ca(second))
        self.assertNotEqual(first.pair.key_pem(), second.pair.key_pem())

    def test_names_change(self) -> None:
        """CON-32: another address or name: another certificate; what the CA may not is told."""
        self.load()
        changed = Names.of([*NAMES.hosts, "foh-2.local", "foh-2"], ["192.168.1.99", "198.51.100.1"])
        second = self.load(changed)
        self.assertIn("changed", second.renewed)
        self.assertIn("192.168.1.99", second.names())
        self.assertEqual(second.not_covered.texts(), ("foh-2", "198.51.100.1"))
        self.assertEqual(self.load(changed).renewed, "", "it is not signed again and again")

    def test_damaged_certificate_is_signed_again(self) -> None:
        """CON-32: what the CA signed is not precious: any damage is mended at once."""
        first = self.load()
        for name in ("server.pem", "server.key"):
            for damage in (b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n", None):
                path = self.directory / name
                path.unlink() if damage is None else path.write_bytes(damage)
                mended = self.load()
                self.assertTrue(mended.renewed)
                self.assertEqual(self.ca(mended), self.ca(first))
                self.assertEqual(self.load().renewed, "")

    def test_damaged_ca_is_refused_and_kept(self) -> None:
        """CON-32: phones have the CA: it is never replaced, but one line says what to do."""
        self.load()
        kept = {name: (self.directory / name).read_bytes() for name in FILES}
        for name in ("ca.pem", "ca.key"):
            path = self.directory / name
            for damage in (b"", b"garbage", pem(signed(new_key(), ["a.local"], ca=True))):
                path.write_bytes(damage)
                line = self.refusal()
                self.assertIn(str(path), line)
                self.assertIn("remove ca.pem and ca.key for a new local CA", line)
                self.assertEqual(path.read_bytes(), damage)
            path.write_bytes(kept[name])
        self.assertEqual(self.load().renewed, "")
        (self.directory / "ca.key").unlink()
        self.assertIn("ca.key", self.refusal())
        (self.directory / "ca.pem").unlink()
        self.assertTrue(self.load().renewed, "what the line says to do, works")

    def test_lost_while_stopped(self) -> None:
        """CON-32: people compare its fingerprint: with the same key, too, no other CA is made."""
        self.load()
        (self.directory / "ca.pem").unlink()
        self.assertIn("ca.pem is lost; restore", self.refusal())
        (self.directory / "server.pem").write_bytes(b"x")
        self.assertIn("ca.pem is lost; restore", self.refusal())
        self.assertFalse((self.directory / "ca.pem").exists())
        (self.directory / "ca.key").unlink()
        self.assertTrue(self.load().renewed, "what the line says to do, works")

    def test_killed_amid_a_new_one(self) -> None:
        """CON-32: the key of the next CA is there, and a certificate of the one before."""
        first = self.load()
        (self.directory / "ca.pem").unlink()
        (self.directory / "ca.key").write_bytes(key_pem(new_key()))
        second = self.load()
        self.assertNotEqual(self.ca(second), self.ca(first))
        self.assertEqual(self.load().renewed, "")

    def test_directory_is_a_file(self) -> None:
        """CON-32: one line where the directory cannot be made."""
        self.directory.write_bytes(b"")
        self.assertIn("cannot make the directory", self.refusal())

    def test_disk_full(self) -> None:
        """CON-32: a disk that takes nothing: one line, and what was there stays."""
        first = self.load()

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(files.os, "fsync", full)
        self.assertIn("cannot write", self.refusal(now=NOW + LIFE * 0.8))
        self.patch(files.os, "fsync", REAL_FSYNC)
        self.assertEqual(self.load().pair.certificate, first.pair.certificate)
        self.assertEqual(sorted(one.name for one in self.directory.iterdir()), list(FILES))

    def test_pipe_instead_of_a_file(self) -> None:
        """CON-32: what is no file is not waited for."""
        self.directory.mkdir()
        os.mkfifo(self.directory / "ca.pem")
        self.assertIn("ca.pem is no file", self.refusal())
        (self.directory / "ca.pem").unlink()
        (self.directory / "ca.pem").mkdir()
        self.assertIn("ca.pem: Is a directory", self.refusal())

    def test_ca_of_another_time(self) -> None:
        """CON-32: an expired CA is refused, not replaced; a wrong clock is told and goes on."""
        self.load()
        line = self.refusal(now=NOW + timedelta(days=4000))
        self.assertIn("expired on 2036-05-29", line)
        early = self.load(now=NOW - timedelta(days=300))
        self.assertIn("is the clock right?", early.problem)
        again = self.load(now=NOW - timedelta(days=300))
        self.assertEqual(again.pair.certificate, early.pair.certificate, "signed once, not forever")
        self.assertEqual(self.load().problem, "")

    @settings(max_examples=60, deadline=None)
    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.one_of(st.none(), st.binary(max_size=200), st.sampled_from(FILES))
                for name in FILES
            },
        )
    )
    def test_any_state(self, state: dict[str, bytes | str | None]) -> None:
        """CON-32: files missing, exchanged or garbage: a usable certificate or one line."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.load()
        good = {name: (self.directory / name).read_bytes() for name in FILES}
        for name, content in state.items():
            path = self.directory / name
            if content is None:
                path.unlink()
            else:
                path.write_bytes(good[content] if isinstance(content, str) else content)
        try:
            identity = self.load()
        except TrustError as reason:
            self.assertNotIn("\n", str(reason))
        else:
            self.assertTrue(identity.pair.matches())
            assert identity.authority is not None
            identity.pair.certificate.verify_directly_issued_by(identity.authority)


class KilledTest(LocalCase):
    def steps(self, die_at: int | None) -> list[str]:
        """Count what reaches the disk from now on, and die before step ``die_at``."""
        done: list[str] = []

        def step(name: str, real: Any) -> Any:
            def counted(*arguments: Any) -> Any:
                if len(done) == die_at:
                    raise Killed
                done.append(name)
                return real(*arguments)

            return counted

        self.patch(files.os, "fsync", step("fsync", os.fsync))
        self.patch(files.Path, "replace", step("rename", Path.replace))
        return done

    def run_killed(self, prepared: bool, now: datetime) -> None:
        """Kill a run before each of its steps; the next run must go on from there."""
        die_at = 0
        while True:
            shutil.rmtree(self.directory, ignore_errors=True)
            before = self.ca(self.load()) if prepared else None
            self.steps(die_at)
            try:
                self.load(now=now)
                break
            except Killed:
                pass
            finally:
                self.put_back()
            published = self.directory / "ca.pem"
            if published.exists():
                before = fingerprint(certificates(published)[0])
            identity = self.load(now=now)
            self.assertTrue(identity.pair.matches())
            self.assertEqual(self.ca(identity), before or self.ca(identity))
            self.assertEqual(sorted(one.name for one in self.directory.iterdir()), list(FILES))
            self.assertEqual(self.load(now=now).renewed, "")
            die_at += 1
        self.assertEqual(die_at, 6 if prepared else 12, "every step was tried")

    def put_back(self) -> None:
        self.patch(files.os, "fsync", REAL_FSYNC)
        self.patch(files.Path, "replace", REAL_REPLACE)

    def test_first_run(self) -> None:
        """CON-32: killed at any step of the first run, the next one is usable and clean."""
        self.run_killed(False, NOW)

    def test_renewal(self) -> None:
        """CON-32: killed at any step of a renewal, the CA stays and the certificate is good."""
        self.run_killed(True, NOW + LIFE * 0.8)


REAL_FSYNC = os.fsync
REAL_REPLACE = Path.replace


class GivenTest(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.certificate, self.key, self.secret = given_files(self.directory, ["foh.example.com"])

    def refusal(self, now: datetime = NOW) -> str:
        before = {path: path.read_bytes() for path in self.directory.iterdir()}
        error = self.assertRaises(
            TrustError, GivenFiles(self.certificate, self.key).load, NAMES, now
        )
        self.assertEqual(before, {path: path.read_bytes() for path in self.directory.iterdir()})
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_used_as_they_are(self) -> None:
        """CON-32: given certificates are used, with their chain, and there is no local CA."""
        between = signed(new_key(), ["between"], ca=True)
        self.certificate.write_bytes(self.certificate.read_bytes() + pem(between))
        identity = GivenFiles(self.certificate, self.key).load(NAMES, NOW)
        self.assertEqual(identity.names(), ("foh.example.com",))
        self.assertEqual(identity.chain, (between,))
        self.assertIsNone(identity.authority)

    def test_one_file(self) -> None:
        """CON-32: key and certificate may be one file."""
        self.certificate.write_bytes(self.key.read_bytes() + self.certificate.read_bytes())
        GivenFiles(self.certificate, self.certificate).load(NAMES, NOW)

    def test_mismatch(self) -> None:
        """CON-32: a key of another certificate is refused in a line, and not touched."""
        self.key.write_bytes(key_pem(new_key()))
        self.assertIn("does not belong", self.refusal())
        self.key.write_bytes(key_pem(rsa.generate_private_key(65537, 2048)))
        self.assertIn("does not belong", self.refusal())

    def test_expired(self) -> None:
        """CON-32: an expired certificate is refused with its date."""
        self.assertIn("expired on 2026-08-30", self.refusal(NOW + timedelta(days=91)))

    def test_not_valid_yet(self) -> None:
        """CON-32: a certificate of the future is used, for it is likelier that the clock errs."""
        early = GivenFiles(self.certificate, self.key).load(NAMES, NOW - timedelta(days=9))
        self.assertIn("is the clock right?", early.problem)

    def test_unreadable(self) -> None:
        """CON-32: whatever is wrong with a file, the line names it."""
        for path in (self.certificate, self.key):
            good = path.read_bytes()
            path.write_bytes(b"\x00\xff garbage")
            self.assertIn(f"{path} holds no", self.refusal())
            path.write_bytes(b"x" * (files.MAX_BYTES + 1))
            self.assertIn("KiB", self.refusal())
            path.unlink()
            self.assertIn(f"cannot read {path}: No such file", self.refusal())
            path.write_bytes(good)

    def test_passphrase(self) -> None:
        """CON-32: a key with a passphrase can't be used by a server nobody sits at."""
        self.key.write_bytes(key_pem(self.secret, b"secret"))
        self.assertIn("passphrase", self.refusal())
