"""CON-1, CON-30 on real sockets on loopback: what the kernel says of ports and connections."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import defer, reactor, ssl, task
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import ISystemHandle
from twisted.internet.protocol import Factory, Protocol
from twisted.trial import unittest
from zope.interface import implementer

from protocols.tcp import protocol as tcp_protocol
from protocols.tcp.admission import AdmissionLimits
from protocols.tcp.options import QUICKACK, SocketOptions
from protocols.tcp.protocol import (
    IPPROTO_MPTCP,
    Guard,
    GuardedConnection,
    GuardedFactory,
    accept_waiting,
    listen,
    mptcp_available,
    tune,
)
from tests.support.certificate import self_signed
from tests.support.processes import missing

HOST = "127.0.0.1"
NO_SS = missing("ss")
OPEN = AdmissionLimits(per_minute=10**6)


class Echo(Protocol):
    silent = False

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if not self.silent:
            self.transport.write(data)


class Echoes(Factory):
    protocol = Echo
    noisy = False


def ss(*arguments: str) -> str:
    return subprocess.run(
        ["ss", "-H", "-n", *arguments], capture_output=True, text=True, check=True, timeout=20
    ).stdout


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """The value of ``condition()`` once it is true, while the reactor turns."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await task.deferLater(reactor, 0.005)


def got(client: socket.socket) -> bytes | None:
    """What has come: b"" at the end, None if nothing has."""
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return None


@implementer(ISystemHandle)
class Below:
    """What a transport says of the socket it is on."""

    def __init__(self, sock: socket.socket) -> None:
        self.getHandle = lambda: sock


class PortCase(unittest.TestCase):
    def guarded(
        self,
        options: SocketOptions | None = None,
        limits: AdmissionLimits = OPEN,
        **more: Any,
    ) -> GuardedFactory:
        guard = Guard(reactor, limits, options or SocketOptions(), **more)  # type: ignore[arg-type]
        return GuardedFactory(Echoes(), guard)

    def listen(
        self, factory: GuardedFactory, at: str = f"tcp:0:interface={HOST}", **how: Any
    ) -> Any:
        port = self.successResultOf(listen(reactor, at, factory, **how))

        @defer.inlineCallbacks
        def stop() -> Any:
            yield port.stopListening()
            factory.guard.close_all()
            yield defer.ensureDeferred(until(lambda: not factory.protocols, "all closed"))

        self.addCleanup(stop)
        return port

    def connect(
        self, port: Any, *, protocol: int = 0, family: int = socket.AF_INET
    ) -> socket.socket:
        client = socket.socket(family, socket.SOCK_STREAM, protocol)
        self.addCleanup(client.close)
        client.settimeout(5)
        client.connect((port.getHost().host, port.getHost().port))
        client.setblocking(False)
        return client

    async def accepted(self, factory: GuardedFactory) -> tuple[GuardedConnection, socket.socket]:
        """The only connection, and the server's socket of it."""
        await until(lambda: factory.protocols, "a connection")
        (connection,) = factory.protocols
        return connection, connection._socket


class Options(PortCase):
    """CON-1: read back from the server's socket of a connection."""

    async def told(self, options: SocketOptions, **how: Any) -> dict[str, Any]:
        factory = self.guarded(options)
        port = self.listen(factory, **how)
        self.connect(port)
        _, sock = await self.accepted(factory)
        names = ("NODELAY", "KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT", "QUICKACK")
        told: dict[str, Any] = {
            name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in names
        }
        for name in ("KEEPALIVE", "SNDBUF", "RCVBUF"):
            told[name] = sock.getsockopt(socket.SOL_SOCKET, getattr(socket, f"SO_{name}"))
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        told["LINGER"] = struct.unpack("ii", raw)
        self.assertEqual(port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), 1)
        self.assertEqual(port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT), 1)
        return told

    async def test_defaults(self) -> None:
        """CON-1: each option with its default; the kernel doubles buffers for its own needs."""
        self.assertEqual(
            await self.told(SocketOptions()),
            {
                "NODELAY": 1,
                "KEEPALIVE": 1,
                "KEEPIDLE": 30,
                "KEEPINTVL": 10,
                "KEEPCNT": 9,
                "SNDBUF": 2 * 65_536,
                "RCVBUF": 2 * 65_536,
                "LINGER": (1, 5),
                "USER_TIMEOUT": 60_000,
                "QUICKACK": 1,
            },
        )

    async def test_as_settings(self) -> None:
        """CON-1: other values, and none."""
        told = await self.told(SocketOptions(False, 7, 3, 4, 32_768, 2, 9.5, True))
        expected = {"NODELAY": 0, "KEEPIDLE": 7, "KEEPINTVL": 3, "KEEPCNT": 4, "SNDBUF": 65_536}
        expected |= {"LINGER": (1, 2), "USER_TIMEOUT": 9500}  # type: ignore[dict-item]
        self.assertEqual({name: told[name] for name in expected}, expected)

    async def test_off(self) -> None:
        """CON-1: switched off, the kernel's own ways remain."""
        told = await self.told(
            SocketOptions(keepalive_s=0, linger_s=0, user_timeout_s=0, buffer_bytes=0)
        )
        self.assertEqual((told["KEEPALIVE"], told["LINGER"], told["USER_TIMEOUT"]), (0, (0, 0), 0))
        self.assertNotEqual(told["SNDBUF"], 2 * 65_536)

    async def test_sent_again_every_second(self) -> None:
        """CON-52: on both ends of a connection, where the kernel has it (Linux 6.15)."""
        with socket.socket() as probe, self.skip_where_refused():
            probe.setsockopt(socket.IPPROTO_TCP, 44, 1_000)
        factory = self.guarded(SocketOptions(retry_s=2.5))
        client = self.connect(self.listen(factory))
        _, sock = await self.accepted(factory)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, 44), 2_500)
        tune(Below(client), SocketOptions())
        self.assertEqual(client.getsockopt(socket.IPPROTO_TCP, 44), 1_000)
        self.assertEqual(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 60_000)

    @contextlib.contextmanager
    def skip_where_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as reason:
            raise unittest.SkipTest(f"this kernel has no TCP_RTO_MAX_MS: {reason}") from None

    async def test_ss_shows_them(self) -> None:
        """CON-1: iproute2 sees the keepalive timer and the buffers of the server's socket."""
        factory = self.guarded()
        port = self.listen(factory)
        self.connect(port)
        await self.accepted(factory)
        seen = ss("-tinom", f"sport = :{port.getHost().port}")
        self.assertRegex(seen, r"timer:\(keepalive,(2\d|30)sec,0\)")
        self.assertIn("rb131072", seen)
        self.assertIn("tb131072", seen)

    test_ss_shows_them.skip = NO_SS  # type: ignore[attr-defined]

    async def test_quickack_again_after_reads(self) -> None:
        """CON-1: the kernel forgets it with every answer, so it is told again after each read."""
        for wanted in (True, False):
            factory = self.guarded(SocketOptions(quickack=wanted))
            client = self.connect(self.listen(factory))
            await self.accepted(factory)
            told: list[Any] = []
            self.patch(tcp_protocol, "apply", lambda _, settings, told=told: told.extend(settings))
            for _ in range(3):
                client.send(b"question")
                await until(lambda client=client: got(client), "an answer")
            self.assertEqual(told, [QUICKACK] * 3 if wanted else [])

    async def test_between_two_pieces_of_work(self) -> None:
        """CON-2: what is urgent does not wait for all connections that are ready."""
        order: list[str] = []
        factory = self.guarded(between=lambda: order.append("urgent"))
        factory.wrappedFactory.protocol = type(  # type: ignore[attr-defined]
            "Noting", (Protocol,), {"dataReceived": lambda self, data: order.append("work")}
        )
        port = self.listen(factory)
        clients = [self.connect(port) for _ in range(5)]
        await until(lambda: len(factory.protocols) == 5, "all are connected")
        for client in clients:
            client.send(b"now")
        await until(lambda: order.count("work") == 5, "all were heard")
        self.assertEqual(order, ["work", "urgent"] * 5)
        for client in clients:
            client.close()
        await until(lambda: not factory.protocols, "all have left")
        self.assertEqual(order[10:], ["urgent"] * 5)

    async def test_what_is_inside_does_not_change_them(self) -> None:
        """CON-1: HTTP and WebSocket libraries set TCP_NODELAY as they like; the options win."""
        factory = self.guarded(SocketOptions(nodelay=False))
        self.connect(self.listen(factory))
        connection, sock = await self.accepted(factory)
        connection.setTcpNoDelay(True)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 0)

    async def test_other_endpoints(self) -> None:
        """CON-1: also where the endpoint makes its own port, as with TLS of its own."""
        pem = self.mktemp()
        Path(pem).write_bytes(self_signed("localhost"))  # noqa: ASYNC240
        told = await self.told(SocketOptions(), at=f"ssl:0:interface={HOST}:privateKey={pem}")
        self.assertEqual((told["LINGER"], told["USER_TIMEOUT"]), ((1, 5), 60_000))


class Sharing(PortCase):
    """CON-1, CON-51: two servers on one port, when both mean it."""

    def refused(self, at: str, **how: Any) -> str:
        failure = self.failureResultOf(listen(reactor, at, self.guarded(), **how))
        self.assertIs(failure.type, CannotListenError)
        return str(failure.value)

    def test_busy(self) -> None:
        """CON-1: a port in use is refused, though its user would share it: one line."""
        port = self.listen(self.guarded()).getHost().port
        text = self.refused(f"tcp:{port}:interface={HOST}")
        self.assertEqual(len(text.splitlines()), 1)
        self.assertIn("in use", text)

    def test_of_others(self) -> None:
        """CON-1: nothing is shared with who does not want to."""
        with socket.create_server((HOST, 0)) as other:
            at = f"tcp:{other.getsockname()[1]}:interface={HOST}"
            self.assertIn("in use", self.refused(at, share_port=True))

    def test_impossible(self) -> None:
        for at in (f"tcp:70000:interface={HOST}", "tcp:0:interface=203.0.113.77"):
            self.assertEqual(len(self.refused(at).splitlines()), 1)

    async def test_shared(self) -> None:
        """CON-51: a successor shares the port; all come to it once the first stops listening."""
        first, second = self.guarded(), self.guarded()
        port = self.listen(first)
        at = f"tcp:{port.getHost().port}:interface={HOST}"
        other = self.listen(second, at, share_port=True)
        clients = [self.connect(other) for _ in range(40)]
        await until(lambda: len(first.protocols) + len(second.protocols) == 40, "all accepted")
        self.assertTrue(first.protocols)
        self.assertTrue(second.protocols)
        accept_waiting([port])
        await port.stopListening()
        before = len(first.protocols), len(second.protocols)
        clients += [self.connect(other) for _ in range(10)]
        await until(lambda: len(second.protocols) == before[1] + 10, "all at the second")
        self.assertEqual(len(first.protocols), before[0])

    async def test_what_waits_is_accepted(self) -> None:
        """CON-51: a connection the kernel has completed is not reset when listening stops."""
        factory = self.guarded()
        port = self.listen(factory)
        client = self.connect(port)
        accept_waiting([port])
        await port.stopListening()
        client.send(b"still here")
        self.assertEqual(await until(lambda: got(client), "an answer"), b"still here")


class MultipathTcp(PortCase):
    """CON-1: RFC 8684 where the kernel has it."""

    skip = None if mptcp_available() else "this kernel makes no IPPROTO_MPTCP sockets"

    async def echoed(self, protocol: int) -> tuple[Any, socket.socket]:
        factory = self.guarded()
        port = self.listen(factory, mptcp=True)
        client = self.connect(port, protocol=protocol)
        client.send(b"many ways")
        self.assertEqual(await until(lambda: got(client), "an answer"), b"many ways")
        (connection,) = factory.protocols
        return connection, client

    async def test_connection(self) -> None:
        """CON-1: a real Multipath TCP connection, with the options such sockets know."""
        connection, client = await self.echoed(IPPROTO_MPTCP)
        sock = connection._socket
        for name, value in (("NODELAY", 1), ("KEEPIDLE", 30), ("KEEPINTVL", 10), ("KEEPCNT", 9)):
            number = getattr(socket, f"TCP_{name}")
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, number), value)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(
            struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)), (1, 5)
        )
        info = connection.info()
        self.assertGreater(info.segments_sent, 0)
        if NO_SS is None:
            pair = f"{HOST}:{connection.getHost().port}"
            self.assertRegex(ss("-M"), rf"ESTAB.*{re.escape(pair)}")
            port = client.getsockname()[1]
            self.assertIn("tcp-ulp-mptcp", ss("-tin", f"dport = :{port}"))

    async def test_plain(self) -> None:
        """CON-1: those who know only TCP connect to the same port."""
        connection, _ = await self.echoed(0)
        sock = connection._socket
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 60_000)

    def test_shared(self) -> None:
        """CON-51: busy and shared as with TCP."""
        port = self.listen(self.guarded(), mptcp=True).getHost().port
        at = f"tcp:{port}:interface={HOST}"
        self.failureResultOf(listen(reactor, at, self.guarded(), mptcp=True), CannotListenError)
        self.listen(self.guarded(), at, mptcp=True, share_port=True)


class Refusals(PortCase):
    """CON-2, CON-30 on the wire."""

    limits = AdmissionLimits(max_connections=2, per_minute=3, refusals=2)

    def setUp(self) -> None:
        self.blocked: list[str] = []
        self.factory = self.guarded(
            limits=self.limits,
            refuse=lambda verdict, wait_s: f"{verdict.value} {wait_s:.0f}".encode(),
            on_block=self.blocked.append,
        )

    async def answer(self, port: Any) -> bytes:
        """What a client that asks is told until the end, or "reset"."""
        client = self.connect(port)
        heard = b""
        try:
            with contextlib.suppress(BrokenPipeError):
                client.send(b"?")
            while True:
                (data,) = await until(lambda: (got(client),), "a turn")
                if data == b"":
                    return heard
                heard += data or b""
                if heard == b"?":
                    return heard
                await task.deferLater(reactor, 0.002)
        except ConnectionResetError:
            return b"reset"
        finally:
            client.close()

    async def test_in_order(self) -> None:
        """CON-2, CON-30: admitted, refused and told so, then shut out without a word, by RST."""
        port = self.listen(self.factory)
        heard = [await self.answer(port) for _ in range(3)]
        heard += [await self.answer(port) for _ in range(3)]
        self.assertEqual(heard[:3], [b"?"] * 3)
        self.assertRegex(heard[3], rb"too_many (59|60)")
        self.assertEqual(heard[4:], [b"reset", b"reset"])
        self.assertEqual(self.blocked, [HOST])
        self.factory.guard.admission.unblock(HOST)
        self.assertEqual(await self.answer(port), b"?")

    async def test_full(self) -> None:
        """CON-2: the third of two is told."""
        port = self.listen(self.factory)
        keep = [self.connect(port) for _ in range(2)]
        await until(lambda: len(self.factory.protocols) == 2, "two")
        self.assertEqual(await self.answer(port), b"full 60")
        keep[0].close()
        await until(lambda: len(self.factory.protocols) == 1, "one left")
        self.assertEqual(self.factory.guard.being_refused, 0)

    async def test_flood(self) -> None:
        """CON-30: however many come at once, the event loop turns in between; none is lost."""
        factory = self.guarded()
        port = self.listen(factory)
        for _ in range(45):
            self.connect(port)
        for expected in (16, 32, 45):
            port.doRead()
            self.assertEqual(len(factory.protocols), expected)

    async def test_ipv6(self) -> None:
        """CON-1, CON-30 on an IPv6 port."""
        port = self.listen(self.factory, "tcp6:0:interface=\\:\\:1")
        client = self.connect(port, family=socket.AF_INET6)
        client.send(b"six")
        self.assertEqual(await until(lambda: got(client), "an answer"), b"six")
        self.factory.guard.admission.limits = self.limits
        for _ in range(6):
            with contextlib.suppress(ConnectionError):
                self.connect(port, family=socket.AF_INET6)
            await task.deferLater(reactor, 0.01)
        self.assertEqual(self.blocked, ["::/64"])

    test_ipv6.skip = (  # type: ignore[attr-defined]
        None if os.path.exists("/proc/net/if_inet6") else "no IPv6 here"  # noqa: PTH110
    )


class Tls(PortCase):
    """CON-1, CON-32: TLS inside the guard."""

    def setUp(self) -> None:
        certificate = ssl.PrivateCertificate.loadPEM(self_signed("localhost"))
        self.tls = certificate.options()

    def handshake(self, raw: socket.socket) -> SSL.Connection:
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), raw)
        client.set_connect_state()
        return client

    async def shaken(self, client: SSL.Connection) -> None:
        def done() -> bool:
            try:
                client.do_handshake()
            except SSL.WantReadError:
                return False
            return True

        await until(done, "a handshake")

    def read(self, client: SSL.Connection) -> bytes | None:
        try:
            return client.recv(1000)
        except SSL.WantReadError:
            return None
        except SSL.ZeroReturnError:
            return b""

    async def test_options_and_counts(self) -> None:
        """CON-1: the TCP options are in force below TLS, and its bytes are counted."""
        factory = self.guarded()
        raw = self.connect(self.listen(factory, tls=self.tls))
        client = self.handshake(raw)
        await self.shaken(client)
        client.send(b"secret")
        self.assertEqual(await until(lambda: self.read(client), "an answer"), b"secret")
        connection, sock = await self.accepted(factory)
        self.assertTrue(connection.secure)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 60_000)
        self.assertGreater(connection.bytes_received, 200)
        self.assertGreater(connection.bytes_sent, 300)

    async def test_refused_is_told_in_tls(self) -> None:
        """CON-30: so that a browser shows why, and not a broken connection; then it is closed,
        whether the client answers the end of TLS or not."""
        self.patch(sys.modules["protocols.tcp.protocol"], "REFUSAL_S", 0.5)
        limits = AdmissionLimits(per_minute=1, refusals=100)
        factory = self.guarded(limits=limits, refuse=lambda verdict, wait_s: b"too many")
        port = self.listen(factory, tls=self.tls)
        self.connect(port)
        raw = self.connect(port)
        client = self.handshake(raw)
        await self.shaken(client)
        client.send(b"?")
        self.assertEqual(await until(lambda: self.read(client), "why"), b"too many")
        self.assertEqual(factory.guard.being_refused, 1)
        await until(lambda: not factory.guard.being_refused, "closed")

    async def test_garbage(self) -> None:
        """CON-32: what is no TLS is closed, without anything in the log."""
        factory = self.guarded()
        client = self.connect(self.listen(factory, tls=self.tls))
        client.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
        await until(lambda: not factory.protocols and factory.guard.bytes_received, "closed")


class Figures(PortCase):
    async def test_info(self) -> None:
        """CON-13: round trip and retransmissions are the kernel's, as ss shows them."""
        factory = self.guarded()
        client = self.connect(self.listen(factory))
        for _ in range(20):
            client.send(b"x" * 1000)
            await until(lambda: got(client), "an answer")
        connection, _ = await self.accepted(factory)
        for _ in range(50):  # the last acknowledgement may come between two looks
            info = connection.info()
            seen = ss("-tin", f"dport = :{client.getsockname()[1]}")
            if info == connection.info():
                break
        assert info is not None and info.rtt_ms is not None
        match = re.search(r" rtt:([\d.]+)/", seen)
        assert match is not None, seen
        self.assertAlmostEqual(info.rtt_ms, float(match[1]), delta=0.002)
        match = re.search(r" data_segs_out:(\d+)", seen)
        assert match is not None, seen
        self.assertEqual(info.segments_sent, int(match[1]))
        self.assertEqual((info.retransmissions, info.retransmitted), (0, 0.0))
        self.assertEqual((connection.bytes_received, connection.bytes_sent), (20_000, 20_000))
        self.assertEqual(factory.guard.bytes_received, 20_000)

    test_info.skip = NO_SS  # type: ignore[attr-defined]
