"""CON-32: a real server with TLS: https and wss, its CA kept over restarts, given certificates."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twisted.trial import unittest

from m32net.trust.authority import new_key
from m32net.trust.identity import LocalAuthority
from m32net.trust.names import Names
from tests.m32net.trust.made import given_files, key_pem, pem, signed
from tests.support.processes import HOST, Child, ServerProcess, missing, wait_for
from tests.support.websocket import HANDSHAKE

TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


class TlsCase(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="m32net-tls-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.state = self.directory / "state"
        self.ca = self.state / "tls" / "ca.pem"

    def server(self, *options: str) -> ServerProcess:
        server = ServerProcess(
            "--source=test", "--https=tcp:0", *options, state_dir=str(self.state)
        )
        self.addCleanup(server.close)
        return server

    def secure_port(self, server: ServerProcess) -> int:
        def said() -> int | None:
            for line in server.text().splitlines():
                if "With TLS:" in line:
                    return int(line.split()[2].split(":")[2].strip("/"))
            return None

        return wait_for(said, "the server says its https address")

    def context(self, ca: Path) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(ca))

    def get(self, port: int, path: str, ca: Path, host: str = "127.0.0.1") -> bytes:
        url = f"https://{host}:{port}{path}"
        with urllib.request.urlopen(url, context=self.context(ca), timeout=10) as answer:
            return bytes(answer.read())


class LocalTest(TlsCase):
    def test_https_and_wss(self) -> None:
        """CON-32: made on the first run: pages and control by TLS, believed by the CA alone."""
        server = self.server()
        port = self.secure_port(server)
        for host in ("127.0.0.1", "localhost"):
            self.assertIn(b'"healthy"', self.get(port, "/health", self.ca, host))
        with self.assertRaisesRegex(urllib.error.URLError, "CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"https://127.0.0.1:{port}/health", timeout=10)
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            tls = self.context(self.ca).wrap_socket(plain, server_hostname="localhost")
            tls.sendall(HANDSHAKE)
            self.assertTrue(tls.recv(1000).startswith(b"HTTP/1.1 101 "))
            tls.close()
        self.assertEqual(
            ssl.PEM_cert_to_DER_cert(self.ca.read_text()),
            urllib.request.urlopen(f"{server.url}/ca.crt", timeout=10).read(),
        )
        self.assertIn("m32net_certificate_expiry_seconds", server.get("/metrics"))
        self.assertEqual(server.get("/health")["rooms"]["trust"]["state"], "healthy")

    def test_kept_and_private(self) -> None:
        """CON-32: a restart keeps CA and certificate; no key is readable or in the output."""
        server = self.server()
        self.secure_port(server)
        before = {path.name: path.read_bytes() for path in self.ca.parent.iterdir()}
        for path in self.ca.parent.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)
        self.assertEqual(stat.S_IMODE(self.ca.parent.stat().st_mode), 0o700)
        self.assertNotIn("PRIVATE", server.text())
        server.close()
        again = self.server()
        port = self.secure_port(again)
        self.get(port, "/health", self.ca)
        self.assertEqual(before, {p.name: p.read_bytes() for p in self.ca.parent.iterdir()})

    def test_killed_while_starting(self) -> None:
        """CON-32: killed at any moment of the first start, the next start has a good CA."""
        for after_s in (0.0, 0.02):
            shutil.rmtree(self.state, ignore_errors=True)
            server = self.server()
            wait_for((self.state / "tls").exists, "the directory is made")
            if after_s:
                wait_for(lambda: list((self.state / "tls").iterdir()), "a file is begun")
            server.process.kill()
            server.close()
            again = self.server()
            self.get(self.secure_port(again), "/health", self.ca)
            again.close()

    def test_without(self) -> None:
        """CON-32: --https no: no certificates are made, and /ca.crt says why there is none."""
        server = self.server("--https=no")
        status, answer = server.call("GET", "/ca.crt")
        self.assertEqual((status, answer["error"]["code"]), (404, "no_local_ca"))
        self.assertFalse(self.ca.parent.exists())
        self.assertNotIn("With TLS", server.text())


class GivenTest(TlsCase):
    def setUp(self) -> None:
        super().setUp()
        now = datetime.now(UTC)
        self.begin, self.end = now - timedelta(days=9), now + timedelta(days=90)
        self.certificate, self.key, self.secret = given_files(
            self.directory / "given", ["localhost"], begin=self.begin, end=self.end
        )

    def outcome(self, *options: str) -> str:
        """The one line a server says that cannot start."""
        command = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "m32net"]
        given = [f"--state-dir={self.state}", "--interface=127.0.0.1", "--no-mdns"]
        child = Child([*command, *given, "--https=tcp:0", *options])
        self.addCleanup(child.close)
        self.assertEqual(child.wait(30), 1, child.text())
        self.assertNotIn("Traceback", child.text())
        (line,) = [one for one in child.text().splitlines() if one.startswith("m32net: ")]
        return line

    def test_used(self) -> None:
        """CON-32: --tls-certificate and --tls-key: no local CA is made."""
        server = self.server(f"--tls-certificate={self.certificate}", f"--tls-key={self.key}")
        port = self.secure_port(server)
        self.assertIn(b'"healthy"', self.get(port, "/health", self.certificate, "localhost"))
        self.assertFalse(self.ca.parent.exists())
        self.assertNotIn("To trust:", server.text())

    def test_refused_in_one_line(self) -> None:
        """CON-32: expired, not matching, unreadable: one line, exit status 1, files untouched."""
        wrong = self.directory / "wrong.key"
        wrong.write_bytes(key_pem(new_key()))
        old = self.directory / "old.pem"
        past = self.begin + timedelta(days=1)
        old.write_bytes(pem(signed(self.secret, ["localhost"], begin=self.begin, end=past)))
        before = wrong.read_bytes(), old.read_bytes()
        certificate = f"--tls-certificate={self.certificate}"
        self.assertIn("does not belong", self.outcome(certificate, f"--tls-key={wrong}"))
        self.assertIn(
            "expired on", self.outcome(f"--tls-certificate={old}", f"--tls-key={self.key}")
        )
        self.assertIn("cannot read", self.outcome("--tls-certificate=/nowhere.pem"))
        self.assertIn("holds no private key", self.outcome(certificate))
        self.assertIn("--tls-certificate", self.outcome(f"--tls-key={self.key}"))
        self.assertIn("/nowhere.pem", self.outcome("--peer-ca=/nowhere.pem"))
        self.assertEqual(before, (wrong.read_bytes(), old.read_bytes()))

    def test_damaged_ca(self) -> None:
        """CON-32: a damaged CA: what to do, in one line."""
        self.ca.parent.mkdir(parents=True)
        self.ca.write_bytes(b"\0" * 100)
        line = self.outcome()
        self.assertIn(str(self.ca), line)
        self.assertIn("for a new local CA", line)


class PeersTest(TlsCase):
    def test_arrivals_by_certificate(self) -> None:
        """CON-32: listeners are taken from a server whose CA was given, and from nobody else."""
        for name in ("other", "stranger"):
            LocalAuthority(self.directory / name, name).load(
                Names.of([f"{name}.local"]), datetime.now(UTC)
            )
        port = self.secure_port(self.server(f"--peer-ca={self.directory / 'other' / 'ca.pem'}"))
        body = {"arrivals": [{"client_id": "a", "token": "t" * 43, "name": "", "host": HOST}]}

        def hand_over(name: str | None) -> int:
            context = self.context(self.ca)
            context.set_alpn_protocols(["m32net-peer", "http/1.1"])
            if name is not None:
                mine = self.directory / name
                context.load_cert_chain(mine / "server.pem", mine / "server.key")
            request = urllib.request.Request(
                f"https://localhost:{port}/api/peer/arrivals",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
            try:
                with opener.open(request, timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as refused:
                return refused.code

        self.assertEqual(hand_over("other"), 200)
        self.assertEqual(hand_over(None), 401)
        with self.assertRaises(OSError):
            hand_over("stranger")


class OpensslTest(TlsCase):
    skip = missing("openssl")

    def test_s_client(self) -> None:
        """CON-32: openssl s_client believes the real server, by TLS 1.3 and 1.2, not by 1.1."""
        port = self.secure_port(self.server())
        for version, good in (("-tls1_3", True), ("-tls1_2", True), ("-tls1_1", False)):
            done = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", version]
                + ["-verify_return_error", "-CAfile", str(self.ca), "-verify_ip", "127.0.0.1"]
                + ([] if good else ["-cipher", "ALL:@SECLEVEL=0"]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )
            self.assertEqual(done.returncode == 0, good, done.stdout + done.stderr)
