"""CON-32: TLS on real sockets of 127.0.0.1: openssl as client, servers among themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import treq
from service_identity import VerificationError
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.internet.utils import getProcessOutputAndValue
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial import unittest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from m32net.interfaces import RefusedError
from m32net.trust.authority import Pair, new_key
from m32net.trust.identity import GivenFiles, LocalAuthority
from m32net.trust.names import Names
from m32net.trust.peers import peer_agent
from m32net.trust.service import TrustService
from tests.m32net.trust.made import key_pem, pem, signed
from tests.support.processes import missing

NOW = datetime.now(UTC)  # OpenSSL judges by the system's clock
DAYS = {"begin": NOW - timedelta(days=1), "end": NOW + timedelta(days=9)}
HERE = Names.of(["localhost", "one.local"], ["127.0.0.1"])


class Who(Resource):
    """Tells the client whether it is a peer."""

    isLeaf = True

    def __init__(self, trust: TrustService) -> None:
        super().__init__()
        self.trust = trust

    def render_GET(self, request: Request) -> bytes:
        transport: Any = request.transport
        chain = transport.getHandle().get_peer_cert_chain() or ()
        is_peer = self.trust.is_peer(transport.getPeerCertificate(), chain)
        return b"a peer" if is_peer else b"anybody"


class TlsCase(unittest.TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def server(self, name: str, peer_ca: Path | None = None, names: Names = HERE) -> TrustService:
        return TrustService(
            LocalAuthority(self.directory / name, name),
            Clock(),
            peer_ca=peer_ca,
            names=lambda: names,
        )

    def ca(self, name: str) -> Path:
        return self.directory / name / "ca.pem"

    def listen(self, trust: TrustService, interface: str = "127.0.0.1") -> int:
        factory = TLSMemoryBIOFactory(trust.context_factory, False, Site(Who(trust)))
        port = reactor.listenTCP(0, factory, interface=interface)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def openssl(self, port: int, *options: str) -> tuple[str, int]:
        """``openssl s_client``: what it says, and its exit status."""
        command = ["s_client", "-connect", f"127.0.0.1:{port}", "-brief", "-ign_eof", *options]
        shell = ["-c", 'printf "GET / HTTP/1.0\\r\\n\\r\\n" | timeout 20 openssl "$@"', "sh"]
        out, err, status = await getProcessOutputAndValue("/bin/sh", [*shell, *command])
        return (out + err).decode(errors="replace"), status

    async def get(self, trust: TrustService, url: str) -> str:
        """The answer, or why there was none."""
        client = treq.client.HTTPClient(peer_agent(reactor, trust))
        try:
            response = await client.get(url)
            return str(await response.text())
        except Exception:
            return Failure().getErrorMessage()


class OpensslTest(TlsCase):
    skip = missing("openssl")

    async def test_believed_with_the_ca(self) -> None:
        """CON-32: openssl believes the server with its CA, for its names; TLS 1.2 and 1.3."""
        port = self.listen(self.server("one"))
        ca = ["-verify_return_error", "-CAfile", str(self.ca("one"))]
        for version, shown in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
            for name in (["-verify_hostname", "one.local"], ["-verify_ip", "127.0.0.1"]):
                said, status = await self.openssl(port, *ca, version, *name)
                self.assertEqual(status, 0, said)
                self.assertIn(f"Protocol version: {shown}", said)
                self.assertIn("Verification: OK", said)
                self.assertIn("anybody", said)

    async def test_not_believed_without(self) -> None:
        """CON-32: another CA, or another name: no connection."""
        port = self.listen(self.server("one"))
        self.server("two")
        said, status = await self.openssl(
            port, "-verify_return_error", "-CAfile", str(self.ca("two"))
        )
        self.assertNotEqual(status, 0)
        self.assertIn("certificate verify failed", said)
        ca = ["-verify_return_error", "-CAfile", str(self.ca("one"))]
        said, status = await self.openssl(port, *ca, "-verify_hostname", "two.local")
        self.assertNotEqual(status, 0)
        self.assertIn("hostname mismatch", said.lower())

    async def test_old_versions_refused(self) -> None:
        """CON-32: TLS 1.1 and 1.0 are refused, with whatever ciphers."""
        port = self.listen(self.server("one"))
        for version in ("-tls1_1", "-tls1"):
            said, status = await self.openssl(port, version, "-cipher", "ALL:@SECLEVEL=0")
            self.assertNotEqual(status, 0)
            self.assertIn("alert protocol version", said)
            self.assertNotIn("anybody", said)

    async def test_asks_servers_only(self) -> None:
        """CON-32: browsers are not asked for a certificate; who says it is a server, is."""
        port = self.listen(self.server("one"))
        command = f"timeout 20 openssl s_client -connect 127.0.0.1:{port} </dev/null -alpn "
        out, _, _ = await getProcessOutputAndValue("/bin/sh", ["-c", f"{command} h2,http/1.1"])
        self.assertIn("No client certificate CA names sent", out.decode())
        self.assertIn("ALPN protocol: http/1.1", out.decode())
        for version in ("-tls1_2", "-tls1_3"):
            offered = f"{command} m32net-peer,http/1.1 {version}"
            out, _, _ = await getProcessOutputAndValue("/bin/sh", ["-c", offered])
            said = out.decode().split("Acceptable client certificate CA names\n")[1]
            self.assertRegex(said.splitlines()[0], r"^O ?= ?m32net local CA, CN ?= ?m32net one ")

    async def test_alpn_of_strangers(self) -> None:
        """CON-32: who offers protocols we don't have, or none, gets HTTP as ever."""
        port = self.listen(self.server("one"))
        for options in ((), ("-alpn", "h2"), ("-alpn", "m32net-peer")):
            said, status = await self.openssl(port, *options)
            self.assertEqual(status, 0, said)
            self.assertIn("anybody", said)

    async def test_no_resumption_but_no_failure(self) -> None:
        """CON-32: clients that try to resume a session get a whole handshake, not an error."""
        port = self.listen(self.server("one"))
        session = self.directory / "session"
        _, status = await self.openssl(port, "-sess_out", str(session))
        self.assertEqual(status, 0)
        if session.exists():
            said, status = await self.openssl(port, "-sess_in", str(session))
            self.assertEqual(status, 0, said)
        said, status = await self.openssl(port, "-tls1_2", "-reconnect")
        self.assertNotIn("alert", said)

    async def test_wrong_client_certificate(self) -> None:
        """CON-32: a client that shows a certificate of nobody we know is refused."""
        port = self.listen(self.server("one"))
        self.server("two")
        mine = self.directory / "two"
        shown = ["-cert", str(mine / "server.pem"), "-key", str(mine / "server.key")]
        shown += ["-alpn", "m32net-peer,http/1.1"]
        said, _ = await self.openssl(port, *shown)
        self.assertNotIn("anybody", said)
        self.assertIn("alert unknown ca", said)

    async def test_swapped_while_listening(self) -> None:
        """CON-32: the same port shows the new certificate after a change, without a restart."""
        trust = self.server("one")
        port = self.listen(trust)
        ca = ["-verify_return_error", "-CAfile", str(self.ca("one"))]
        asked = [*ca, "-verify_hostname", "later.local"]
        _, status = await self.openssl(port, *asked)
        self.assertNotEqual(status, 0)
        trust._names = lambda: Names.of([*HERE.hosts, "later.local"], HERE.addresses)
        await trust.check()
        said, status = await self.openssl(port, *asked)
        self.assertEqual(status, 0, said)


class PeersTest(TlsCase):
    def pair(self) -> tuple[TrustService, TrustService]:
        """Two servers that believe each other."""
        self.server("one")
        self.server("two")
        return self.server("one", self.ca("two")), self.server("two", self.ca("one"))

    async def test_mutual(self) -> None:
        """CON-32: servers that have each other's CA prove themselves both ways."""
        one, two = self.pair()
        port = self.listen(one)
        for host in ("127.0.0.1", "localhost"):
            self.assertEqual(await self.get(two, f"https://{host}:{port}/"), "a peer")

    async def test_itself(self) -> None:
        """CON-32: a server and its successor on the same state directory are peers."""
        port = self.listen(self.server("one"))
        self.assertEqual(await self.get(self.server("one"), f"https://127.0.0.1:{port}/"), "a peer")

    async def test_ca_between(self) -> None:
        """CON-32: a server with a certificate of a CA under the one that is believed."""
        top, between = new_key(), new_key()
        root = Pair(signed(top, ["root.example"], ca=True, **DAYS), top)
        middle = signed(between, ["between.example"], by=root, ca=True, **DAYS)
        key = new_key()
        own = signed(key, ["localhost"], by=Pair(middle, between), **DAYS)
        (self.directory / "root.pem").write_bytes(pem(root.certificate))
        (self.directory / "peer.key").write_bytes(key_pem(key))
        self.server("one")
        one = self.server("one", self.directory / "root.pem")
        port = self.listen(one)
        for sent, is_peer in (((own, middle), True), ((own,), False)):
            (self.directory / "peer.pem").write_bytes(pem(*sent))
            given = GivenFiles(self.directory / "peer.pem", self.directory / "peer.key")
            two = TrustService(given, Clock(), peer_ca=self.ca("one"), names=lambda: HERE)
            said = await self.get(two, f"https://localhost:{port}/")
            self.assertEqual(said == "a peer", is_peer, said)

    async def test_wrong_ca(self) -> None:
        """CON-32: a server whose CA is not believed is refused, in words that say what to do."""
        port = self.listen(self.server("one"))
        said = await self.get(self.server("two"), f"https://127.0.0.1:{port}/")
        self.assertIn("give its ca.pem with --peer-ca", said)

    async def test_not_accepted(self) -> None:
        """CON-32: a server that does not believe us refuses; the reason is told."""
        self.server("one")
        stranger = self.server("two", self.ca("one"))
        port = self.listen(self.server("one"))
        said = await self.get(stranger, f"https://127.0.0.1:{port}/")
        self.assertIn("does not accept this server's certificate", said)

    async def test_wrong_host_name(self) -> None:
        """CON-32: service-identity refuses a certificate for another name or address."""
        self.server("one", names=Names.of(["one.local"], ["127.0.0.9"]))
        self.server("two")
        wrong = self.server("one", self.ca("two"), Names.of(["one.local"], ["127.0.0.9"]))
        two = self.server("two", self.ca("one"))
        port = self.listen(wrong)
        for host in ("127.0.0.1", "localhost"):
            said = await self.get(two, f"https://{host}:{port}/")
            self.assertIn("is for another host name or address", said)
        client = treq.client.HTTPClient(peer_agent(reactor, two))
        error = await self.assertFailure(client.get(f"https://localhost:{port}/"), RefusedError)
        self.assertEqual(error.code, "not_trusted")
        self.assertIsInstance(error.__cause__.reasons[0].value, VerificationError)

    async def test_pinned(self) -> None:
        """CON-32: --peer-ca may hold another server's own certificate instead of its CA."""
        self.server("one")
        self.server("two")
        one = self.server("one", self.directory / "two" / "server.pem")
        two = self.server("two", self.directory / "one" / "server.pem")
        port = self.listen(one)
        self.assertEqual(await self.get(two, f"https://127.0.0.1:{port}/"), "a peer")
        three = self.server("three", self.ca("one"))
        said = await self.get(three, f"https://127.0.0.1:{port}/")
        self.assertIn("does not accept", said)

    async def test_other_failures_are_not_explained_as_certificates(self) -> None:
        """CON-32: a port where nobody listens is no matter of trust."""
        free = reactor.listenTCP(0, Site(Resource()), interface="127.0.0.1")  # type: ignore[attr-defined]
        port = free.getHost().port
        await free.stopListening()
        said = await self.get(self.server("one"), f"https://127.0.0.1:{port}/")
        self.assertIn("refused", said.lower())
