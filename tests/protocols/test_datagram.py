"""STR-4: batched UDP: one kernel call for many datagrams, no blocking, failures told apart."""

from __future__ import annotations

import ctypes
import errno
import socket
import time
from collections.abc import Callable

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from protocols.datagram import (
    GIVE_UP_AFTER,
    BatchReceiver,
    BatchSender,
    Datagram,
    SendFailure,
    SendMethod,
    local_address_towards,
    open_udp,
    probe_send_method,
    set_dscp,
)
from protocols.mmsg import (
    IOVEC,
    MAX_BATCH,
    MMSGHDR,
    SEGMENT_CMSG,
    SOCKADDR_IN,
    Address,
    SendTable,
    control_messages,
    socket_addresses,
)

MEMORY = np.frombuffer(bytes(range(256)) * 16, np.uint8)


def table_to(
    addresses: list[Address], parts: list[list[int]], segment: int | None = None
) -> SendTable:
    """Messages of parts of these lengths; each part's bytes count up from its own index."""
    lengths = [length for message in parts for length in message]
    first = np.cumsum([0] + [len(message) for message in parts])[:-1]
    table = SendTable(
        socket_addresses(addresses),
        bases=MEMORY.ctypes.data + np.arange(len(lengths), dtype=np.uint64),
        lengths=np.array(lengths, np.uint64),
        first_parts=first,
        segmented=np.full(len(parts), segment is not None),
        keep=(MEMORY,),
    )
    if segment is not None:
        table.segment_sizes[:] = segment
    return table


def numbers(start: int, count: int) -> bytes:
    return bytes((start + k) & 0xFF for k in range(count))


class UdpCase(SynchronousTestCase):
    def udp(self, host: str = "127.0.0.1", **options: int) -> socket.socket:
        sock = open_udp(host, 0, **options)
        self.addCleanup(sock.close)
        return sock


class LayoutTests(SynchronousTestCase):
    def test_sizes_of_the_c_structs(self) -> None:
        self.assertEqual(
            [dtype.itemsize for dtype in (SOCKADDR_IN, IOVEC, MMSGHDR, SEGMENT_CMSG)],
            [16, 16, 64, 24],
        )

    def test_addresses(self) -> None:
        table = socket_addresses([("10.1.2.3", 5004), ("::ffff:127.0.0.1", 1)])
        self.assertEqual(table.tobytes()[2:8].hex(), "138c0a010203")
        self.assertEqual(table.tobytes()[18:24].hex(), "00017f000001")
        for host, port in (("fe80::1", 1), ("name.local", 1), ("10.0.0.1", 0), ("10.0.0.1", 65536)):
            self.assertRaises(ValueError, socket_addresses, [(host, port)])

    def test_control_messages_of_garbage(self) -> None:
        for data in (b"", bytes(15), bytes(16), b"\xff" * 40, b"\x11" + bytes(20)):
            list(control_messages(memoryview(data)))


class OpenTests(UdpCase):
    def test_options(self) -> None:
        sock = self.udp(dscp=46, sndbuf=300_000)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS), 46 << 2)
        self.assertGreaterEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 300_000)
        self.assertFalse(sock.getblocking())
        set_dscp(sock, 0)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS), 0)
        self.assertRaises(ValueError, set_dscp, sock, 64)

    def test_a_taken_port_is_told(self) -> None:
        port = self.udp().getsockname()[1]
        error = self.assertRaises(OSError, open_udp, "127.0.0.1", port)
        self.assertEqual(error.errno, errno.EADDRINUSE)

    def test_shared_with_a_successor(self) -> None:
        """CON-51: who asks may use a port that may be shared; who does not ask is refused."""
        port = self.udp(shareable=True).getsockname()[1]
        for options in ({}, {"shareable": True}):
            error = self.assertRaises(OSError, open_udp, "127.0.0.1", port, **options)
            self.assertEqual(error.errno, errno.EADDRINUSE)
        with open_udp("127.0.0.1", port, shareable=True, share=True) as successor:
            self.assertEqual(successor.getsockname()[1], port)
        own = self.udp().getsockname()[1]
        self.assertRaises(OSError, open_udp, "127.0.0.1", own, share=True)

    def test_local_address(self) -> None:
        self.assertEqual(local_address_towards("127.0.0.1"), "127.0.0.1")


class SendTests(UdpCase):
    def test_all_methods_send_the_same(self) -> None:
        best = probe_send_method(self.udp(""))
        sock = self.udp()
        self.assertEqual(probe_send_method(sock), best)
        for method in SendMethod:
            if method is SendMethod.GSO and best is not SendMethod.GSO:
                continue
            receiver = self.udp()
            to = receiver.getsockname()
            table = table_to([to] * 3, [[12, 100], [28], [12, 100, 7]])
            with self.subTest(method):
                self.assertEqual(BatchSender(sock, method).send(table), [])
                got = [receiver.recv(1000) for _ in range(3)]
                self.assertEqual(got[0], numbers(0, 12) + numbers(1, 100))
                self.assertEqual(got[1], numbers(2, 28))
                self.assertEqual(got[2], numbers(3, 12) + numbers(4, 100) + numbers(5, 7))
                self.assertEqual([table.datagram(k)[0] for k in range(3)], got)
                self.assertEqual(table.datagram(1)[1], to)

    def test_segments(self) -> None:
        sock, receiver = self.udp(), self.udp()
        if probe_send_method(sock) is not SendMethod.GSO:
            self.skipTest("this kernel has no UDP_SEGMENT")
        table = table_to([receiver.getsockname()], [[12, 88, 12, 88, 12, 30]], segment=100)
        sender = BatchSender(sock, SendMethod.GSO)
        self.assertEqual(sender.send(table), [])
        self.assertEqual([len(receiver.recv(500)) for _ in range(3)], [100, 100, 42])
        table.part_lengths[:] = [28, 88, 28, 88, 28, 30]
        table.segment_sizes[:] = 116
        self.assertEqual(sender.send(table), [])
        self.assertEqual([len(receiver.recv(500)) for _ in range(3)], [116, 116, 58])

    def test_one_bad_destination_does_not_harm_the_others(self) -> None:
        """A socket bound to loopback cannot send elsewhere: EINVAL, for that message only."""
        sock, receiver = self.udp(), self.udp()
        to = receiver.getsockname()
        for method in (SendMethod.SENDMMSG, SendMethod.SENDTO):
            table = table_to([to, ("192.0.2.1", 9), to], [[5], [6], [7]])
            with self.subTest(method):
                failures = BatchSender(sock, method).send(table)
                self.assertEqual([failure.message for failure in failures], [1])
                self.assertEqual([len(receiver.recv(50)) for _ in range(2)], [5, 7])

    def test_empty(self) -> None:
        table = table_to([], [])
        self.assertEqual(BatchSender(self.udp(), SendMethod.SENDMMSG).send(table), [])

    def test_a_closed_socket_fails_every_message(self) -> None:
        sock = open_udp("127.0.0.1", 0)
        sender = BatchSender(sock, SendMethod.SENDMMSG)
        sock.close()
        failures = sender.send(table_to([("127.0.0.1", 9)] * 2, [[1], [1]]))
        self.assertEqual(failures, [SendFailure(0, errno.EBADF), SendFailure(1, errno.EBADF)])


class ScriptedKernel:
    """Stands in for ``sendmmsg``: an errno for some messages, at most ``batch`` a call."""

    def __init__(self, table: SendTable, errors: dict[int, int], batch: int = MAX_BATCH) -> None:
        self.table = table
        self.errors = errors
        self.batch = batch
        self.sent: list[int] = []
        self.calls: list[int] = []

    def __call__(self, _fd: int, address: int, count: int, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT
        assert count <= MAX_BATCH
        self.calls.append(count)
        first = (address - self.table.address) // MMSGHDR.itemsize
        done = 0
        for message in range(first, first + min(count, self.batch)):
            if message in self.errors:
                if not done:
                    error = self.errors[message]
                    if error == errno.EINTR:
                        del self.errors[message]
                    ctypes.set_errno(error)
                    return -1
                break
            self.sent.append(message)
            done += 1
        return done


class FailureTests(UdpCase):
    def run_once(
        self, count: int, errors: dict[int, int], batch: int = MAX_BATCH
    ) -> tuple[ScriptedKernel, Callable[[], list[SendFailure]]]:
        table = table_to([("127.0.0.1", 9)] * count, [[1]] * count)
        kernel = ScriptedKernel(table, errors, batch)
        sender = BatchSender(self.udp(), SendMethod.SENDMMSG, sendmmsg=kernel)
        return kernel, lambda: sender.send(table)

    def test_large_tables_go_in_batches(self) -> None:
        kernel, send = self.run_once(2500, {})
        self.assertEqual(send(), [])
        self.assertEqual(kernel.calls, [1024, 1024, 452])
        self.assertEqual(kernel.sent, list(range(2500)))

    def test_partial_sends_go_on(self) -> None:
        kernel, send = self.run_once(100, {}, batch=7)
        self.assertEqual(send(), [])
        self.assertEqual(kernel.sent, list(range(100)))

    def test_destinations_that_fail_are_skipped(self) -> None:
        kernel, send = self.run_once(10, {0: errno.ENETUNREACH, 4: errno.EPERM, 9: errno.EIO})
        self.assertEqual(send(), [(0, errno.ENETUNREACH), (4, errno.EPERM), (9, errno.EIO)])
        self.assertEqual(kernel.sent, [1, 2, 3, 5, 6, 7, 8])

    def test_interrupted_calls_are_repeated(self) -> None:
        kernel, send = self.run_once(5, {2: errno.EINTR})
        self.assertEqual(send(), [])
        self.assertEqual(kernel.sent, [0, 1, 2, 3, 4])

    def test_full_buffer_drops_the_rest_and_starts_there_next(self) -> None:
        kernel, send = self.run_once(6, {4: errno.EAGAIN})
        self.assertEqual(send(), [(4, errno.EAGAIN), (5, errno.EAGAIN)])
        self.assertEqual(kernel.sent, [0, 1, 2, 3])
        kernel.errors = {2: errno.EAGAIN}
        kernel.sent = []
        self.assertEqual(send(), [(2, errno.EAGAIN), (3, errno.EAGAIN)])
        self.assertEqual(kernel.sent, [4, 5, 0, 1])
        kernel.errors = {3: errno.EAGAIN}
        kernel.sent = []
        self.assertEqual(
            sorted(send()), [(k, errno.EAGAIN) for k in range(6) if k in (0, 1, 3, 4, 5)]
        )
        self.assertEqual(kernel.sent, [2])
        kernel.errors = {}
        kernel.sent = []
        self.assertEqual(send(), [])
        self.assertEqual(kernel.sent, [3, 4, 5, 0, 1, 2])

    def test_no_route_at_all_costs_few_calls(self) -> None:
        count = 500
        kernel, send = self.run_once(count, dict.fromkeys(range(count), errno.ENETUNREACH))
        failures = send()
        self.assertEqual(sorted(f.message for f in failures), list(range(count)))
        self.assertEqual(len(kernel.calls), GIVE_UP_AFTER)
        del kernel.errors[GIVE_UP_AFTER]
        send()
        self.assertEqual(kernel.sent, [GIVE_UP_AFTER])


class ReceiveTests(UdpCase):
    def both(self, *, gro: bool = True) -> list[tuple[str, socket.socket, BatchReceiver]]:
        found = []
        for portable in (False, True):
            sock = self.udp()
            receiver = BatchReceiver(sock, gro=gro, portable=portable)
            found.append(("portable" if portable else "batched", sock, receiver))
        return found

    def drain(self, receiver: BatchReceiver) -> list[Datagram]:
        got: list[Datagram] = []
        while True:
            some = receiver.receive()
            got += some
            if not some:
                return got

    def test_data_address_and_time(self) -> None:
        for name, sock, receiver in self.both():
            with self.subTest(name):
                sender = self.udp()
                self.assertEqual(receiver.receive(), [])
                before = time.time_ns()
                for k in range(40):
                    sender.sendto(numbers(k, k), sock.getsockname())
                got = self.drain(receiver)
                self.assertEqual([d.data for d in got], [numbers(k, k) for k in range(40)])
                self.assertEqual({d.address for d in got}, {sender.getsockname()})
                for datagram in got:
                    self.assertTrue(before - 10**7 <= datagram.arrival_ns <= time.time_ns())
                self.assertEqual([d.arrival_ns for d in got], sorted(d.arrival_ns for d in got))
                self.assertTrue(receiver.drained)

    def test_what_the_kernel_joined_is_told_apart(self) -> None:
        sender = self.udp()
        if probe_send_method(sender) is not SendMethod.GSO:
            self.skipTest("this kernel has no UDP_SEGMENT")
        for name, sock, receiver in self.both():
            with self.subTest(name):
                table = table_to([sock.getsockname()], [[100, 100, 100, 40]], segment=100)
                self.assertEqual(BatchSender(sender, SendMethod.GSO).send(table), [])
                got = self.drain(receiver)
                self.assertEqual(
                    [d.data for d in got],
                    [numbers(0, 100), numbers(1, 100), numbers(2, 100), numbers(3, 40)],
                )

    def test_at_most_one_batch(self) -> None:
        sock, sender = self.udp(), self.udp()
        receiver = BatchReceiver(sock, batch=4, gro=False)
        for _ in range(6):
            sender.sendto(b"x", sock.getsockname())
        self.assertEqual(len(receiver.receive()), 4)
        self.assertFalse(receiver.drained)
        self.assertEqual(len(receiver.receive()), 2)
        self.assertTrue(receiver.drained)

    def test_largest_and_empty(self) -> None:
        for name, sock, receiver in self.both():
            with self.subTest(name):
                sender = self.udp(sndbuf=1 << 20)
                sender.sendto(bytes(65_507), sock.getsockname())
                sender.sendto(b"", sock.getsockname())
                self.assertEqual([len(d.data) for d in self.drain_n(receiver, 2)], [65_507, 0])

    def drain_n(self, receiver: BatchReceiver, count: int) -> list[Datagram]:
        got: list[Datagram] = []
        while len(got) < count:
            some = receiver.receive()
            self.assertTrue(some)
            got += some
        return got

    def test_icmp_errors_are_no_news(self) -> None:
        for name, sock, receiver in self.both():
            with self.subTest(name):
                gone = open_udp("127.0.0.1", 0)
                address = gone.getsockname()
                gone.close()
                sock.connect(address)
                sock.send(b"x")
                self.assertEqual(receiver.receive(), [])
