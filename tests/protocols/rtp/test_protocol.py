"""STR-12, STR-20: the RTP shells over real sockets on loopback, under a reactor that is stepped."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from protocols.datagram import Datagram, open_udp
from protocols.rtp.packet import RtpPacket, parse, serialize
from protocols.rtp.protocol import RtcpServer, RtpReceiver, SocketReader
from protocols.rtp.rtcp import Compound, ReceiverReport, serialize_compound
from tests.support.ports import free_pair

REPORT = serialize_compound([ReceiverReport(7)])


class SteppedReactor(Clock):
    """Time and readers; loopback delivers at once, so one step reads all that was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def step(self) -> None:
        for reader in list(self.readers):
            reader.doRead()


class ShellCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = SteppedReactor()
        self.peer = open_udp("127.0.0.1", 0)
        self.addCleanup(self.peer.close)


class RtcpServerTests(ShellCase):
    def server(self, **options: Any) -> RtcpServer:
        self.got: list[tuple[tuple[str, int], Compound, int]] = []
        server = RtcpServer(
            self.reactor, "127.0.0.1", 0, lambda *found: self.got.append(found), **options
        )
        server.start()
        self.addCleanup(server.stop)
        return server

    def test_reports_come_with_their_sender(self) -> None:
        server = self.server()
        self.peer.sendto(REPORT, ("127.0.0.1", server.port))
        self.reactor.step()
        ((address, compound, arrival_ns),) = self.got
        self.assertEqual(address, self.peer.getsockname())
        self.assertEqual(compound, (ReceiverReport(7),))
        self.assertGreater(arrival_ns, 1_600_000_000_000_000_000)

    def test_garbage_is_counted(self) -> None:
        server = self.server()
        for data in (b"", b"hello", bytes(100), REPORT[:5]):
            self.peer.sendto(data, ("127.0.0.1", server.port))
        self.peer.sendto(REPORT, ("127.0.0.1", server.port))
        self.reactor.step()
        self.assertEqual((server.malformed, len(self.got)), (4, 1))

    def test_a_flood_gets_its_budget_and_then_a_rest(self) -> None:
        server = self.server(budget=10, pause_s=0.005)
        for _ in range(25):
            self.peer.sendto(REPORT, ("127.0.0.1", server.port))
        self.reactor.step()
        self.assertEqual((len(self.got), server.pauses, self.reactor.readers), (10, 1, []))
        self.reactor.advance(0.004)
        self.assertEqual(self.reactor.readers, [])
        self.reactor.advance(0.001)
        self.reactor.step()
        self.assertEqual(len(self.got), 20)
        self.reactor.advance(0.005)
        self.reactor.step()
        self.assertEqual((len(self.got), server.pauses), (25, 2))
        self.assertEqual(len(self.reactor.readers), 1)

    def test_stopping_during_a_rest(self) -> None:
        server = self.server(budget=1)
        self.peer.sendto(REPORT, ("127.0.0.1", server.port))
        self.reactor.step()
        self.assertEqual(server.pauses, 1)
        server.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_failing_owner_does_not_end_it(self) -> None:
        def fail(*_found: Any) -> None:
            raise RuntimeError("owner")

        server = RtcpServer(self.reactor, "127.0.0.1", 0, fail)
        self.addCleanup(server.stop)
        server.start()
        for _ in range(2):
            self.peer.sendto(REPORT, ("127.0.0.1", server.port))
        self.reactor.step()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertEqual(len(self.reactor.readers), 1)

    def test_sends_from_its_own_port(self) -> None:
        server = self.server()
        server.send(REPORT, self.peer.getsockname())
        data, address = self.peer.recvfrom(100)
        self.assertEqual((data, address), (REPORT, ("127.0.0.1", server.port)))
        server.send(REPORT, ("192.0.2.1", 9))
        self.assertEqual(server.unsent, 1)

    def test_a_taken_port_is_told_at_once(self) -> None:
        port = self.peer.getsockname()[1]
        self.assertRaises(OSError, RtcpServer, self.reactor, "127.0.0.1", port, print)


class RtpReceiverTests(ShellCase):
    def receiver(self, port: int = 0, **options: Any) -> RtpReceiver:
        self.batches: list[list[Datagram]] = []
        self.reports: list[tuple[Compound, int]] = []
        receiver = RtpReceiver(
            self.reactor,
            "127.0.0.1",
            port,
            self.batches.append,
            lambda *found: self.reports.append(found),
            **options,
        )
        receiver.start()
        self.addCleanup(receiver.stop)
        return receiver

    def send(self, data: bytes, port: int) -> None:
        self.peer.sendto(data, ("127.0.0.1", port))

    def test_batches(self) -> None:
        receiver = self.receiver()
        sent = [serialize(RtpPacket(97, n, 240 * n, 5, b"x" * n)) for n in range(20)]
        for data in sent:
            self.send(data, receiver.port)
        self.reactor.step()
        (batch,) = self.batches
        self.assertEqual([d.data for d in batch], sent)
        self.assertEqual(parse(batch[3].data).sequence_number, 3)

    def test_rtcp_on_the_next_port(self) -> None:
        receiver = self.receiver()
        self.assertEqual(receiver.port % 2, 0)
        self.send(REPORT, receiver.port + 1)
        self.send(b"nonsense", receiver.port + 1)
        self.reactor.step()
        ((compound, arrival_ns),) = self.reports
        self.assertEqual(compound, (ReceiverReport(7),))
        self.assertGreater(arrival_ns, 1_600_000_000_000_000_000)
        self.assertEqual((receiver.malformed, self.batches), (1, []))
        receiver.send_rtcp(REPORT, self.peer.getsockname())
        data, address = self.peer.recvfrom(100)
        self.assertEqual((data, address[1]), (REPORT, receiver.port + 1))

    def test_only_the_server_is_heard(self) -> None:
        """RTP from its RTP port, RTCP from the next; neither from elsewhere, forged or not."""
        server = free_pair()
        receiver = self.receiver(only_from=[("127.0.0.1", server)])
        senders = [
            open_udp(host, port)
            for host, port in (
                ("127.0.0.1", server),
                ("127.0.0.1", server + 1),
                ("127.0.0.1", 0),
                ("127.0.0.2", 0),
            )
        ]
        for sock in senders:
            self.addCleanup(sock.close)
            for port in (receiver.port, receiver.port + 1):
                sock.sendto(REPORT, ("127.0.0.1", port))
        self.reactor.step()
        self.assertEqual((len(self.batches[0]), len(self.reports), receiver.foreign), (1, 1, 6))

    def test_stop_and_start_again(self) -> None:
        receiver = self.receiver()
        port = receiver.port
        receiver.stop()
        receiver.stop()
        self.assertEqual(self.reactor.readers, [])
        receiver.send_rtcp(REPORT, self.peer.getsockname())
        again = self.receiver(port)
        self.assertEqual(again.port, port)

    def test_stopping_from_a_callback(self) -> None:
        receiver = self.receiver()
        receiver._on_packets = lambda _batch: receiver.stop()
        self.send(b"x", receiver.port)
        self.reactor.step()
        self.assertEqual(self.reactor.readers, [])

    def test_a_failing_owner_does_not_end_it(self) -> None:
        receiver = self.receiver()

        def fail(_batch: list[Datagram]) -> None:
            raise RuntimeError("owner")

        receiver._on_packets = fail
        self.send(b"x", receiver.port)
        self.reactor.step()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.reactor.readers), 2)

    def test_a_taken_port_is_told(self) -> None:
        for offset in (0, 1):
            port = self.receiver().port
            taken = RtpReceiver(self.reactor, "127.0.0.1", port - offset, print, print)
            self.assertRaises(OSError, taken.start)
            taken.stop()


class RealReactorTests(TestCase):
    """The reactor trial runs under accepts our readers."""

    def test_reader_is_a_read_descriptor(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        verifyObject(IReadDescriptor, SocketReader(sock, lambda: None, "test"))

    def test_packet_arrives(self) -> Any:
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred

        arrived: Deferred[list[Datagram]] = Deferred()
        receiver = RtpReceiver(reactor, "127.0.0.1", 0, arrived.callback, print)
        receiver.start()
        self.addCleanup(receiver.stop)
        with open_udp("127.0.0.1", 0) as sender:
            sender.sendto(b"hello", ("127.0.0.1", receiver.port))
        arrived.addTimeout(5, reactor)
        return arrived.addCallback(lambda batch: self.assertEqual(batch[0].data, b"hello"))
