"""CON-1, CON-30: what takes the kernel its time: acknowledging, lingering, thousands of refusals.

On sockets on loopback, as in :mod:`tests.protocols.tcp.test_protocol`, and by the real clock.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from typing import ClassVar

from twisted.internet import reactor, task
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure

from protocols.tcp.admission import AdmissionLimits, Verdict
from protocols.tcp.options import SocketOptions
from tests.protocols.tcp.test_protocol import NO_SS, PortCase, got, ss, until


class Acknowledging(PortCase):
    async def acknowledged_ms(self, quickack: bool) -> list[float]:
        """Until a client that has talked with the server hears that more has arrived: five times,
        the shortest first."""
        factory = self.guarded(SocketOptions(quickack=quickack))
        client = self.connect(self.listen(factory))
        connection, _ = await self.accepted(factory)

        def unacknowledged() -> int:
            raw = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return int(struct.unpack_from("=I", raw, 24)[0])

        took = []
        for _ in range(5):
            for _ in range(3):
                client.send(b"question")
                await until(lambda: got(client), "an answer")
            connection.wrappedProtocol.silent = True
            client.send(b"no question")
            start = time.monotonic()
            await until(lambda: not unacknowledged(), "acknowledged")
            took.append(1e3 * (time.monotonic() - start))
            connection.wrappedProtocol.silent = False
        return sorted(took)

    async def test_quickack_again_after_reads(self) -> None:
        """CON-1: after an answer the kernel goes over to delayed acknowledgements (40 ms); told
        again after each read, it does not."""
        quick, delayed = await self.acknowledged_ms(True), await self.acknowledged_ms(False)
        self.assertLess(quick[0], 30)  # a busy machine is late more often than not
        self.assertGreater(delayed[2], 30)


class Linger(PortCase):
    """CON-1: what was sent is delivered after closing, for a bounded time, and nobody waits."""

    async def closed(self, linger_s: float) -> tuple[socket.socket, int, float]:
        """A client that does not read, closed with data under way: with its port, and how long
        closing kept the event loop from anything else."""
        factory = self.guarded(SocketOptions(linger_s=linger_s))
        client = self.connect(self.listen(factory))
        connection, _ = await self.accepted(factory)
        connection.write(b"x" * 160_000)
        transport = connection.transport
        await until(
            lambda: not transport.dataBuffer and not transport._tempDataLen, "handed to the kernel"
        )
        connection.loseConnection()  # type: ignore[no-untyped-call]
        start = time.monotonic()
        transport.doWrite()
        transport.connectionLost(Failure(CONNECTION_DONE))
        return client, client.getsockname()[1], time.monotonic() - start

    async def test_delivers(self) -> None:
        """CON-1: a reader that is slow gets all of it, and then the end."""
        client, _, took = await self.closed(5)
        self.assertLess(took, 0.2)
        await task.deferLater(reactor, 0.3)
        total = 0
        while data := await until(lambda: (got(client),), "data"):
            if data[0] == b"":
                break
            total += len(data[0] or b"")
            await task.deferLater(reactor, 0.001)
        self.assertEqual(total, 160_000)

    async def test_bounded(self) -> None:
        """CON-1: nobody reads: after the time is up the kernel drops it, and we never waited."""
        _, port, took = await self.closed(1)
        self.assertLess(took, 0.2)
        server = f"dport = :{port}"
        self.assertIn("FIN-WAIT-1", ss("-tan", server))
        await until(lambda: "FIN-WAIT" not in ss("-tan", server), "given up", 15)

    test_bounded.skip = NO_SS  # type: ignore[attr-defined]


class ShutOut(PortCase):
    CLIENT: ClassVar = (
        "import socket, sys\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    s = socket.socket()\n"
        "    try:\n"
        "        s.connect(('127.0.0.1', int(sys.argv[1])))\n"
        "        s.recv(1)\n"
        "    except ConnectionResetError:\n"
        "        pass\n"
        "    s.close()\n"
    )

    async def test_cheap(self) -> None:
        """CON-30: somebody who is shut out and goes on costs little CPU, and leaves nothing."""
        factory = self.guarded(limits=AdmissionLimits(per_minute=3, refusals=2))
        port = self.listen(factory)
        for _ in range(5):
            self.connect(port)
        await until(lambda: factory.guard.admission.blocks, "shut out")
        factory.guard.close_all()
        await until(lambda: not factory.protocols, "all are gone")
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        server = f"sport = :{port.getHost().port}"
        waiting = ss("-tan", server).count("TIME-WAIT")
        count = 3000
        command = [sys.executable, "-c", self.CLIENT, str(port.getHost().port), str(count)]
        with subprocess.Popen(command) as client:  # noqa: ASYNC220
            start = time.process_time()
            await until(lambda: client.poll() is not None, "all refused", 60)
            spent = time.process_time() - start
        self.assertGreaterEqual(factory.guard.admission.counts[Verdict.BLOCKED], count)
        self.assertLess(spent / count, 0.0005)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), files)  # noqa: PTH208
        self.assertEqual(factory.guard.being_refused, 0)
        self.assertLessEqual(ss("-tan", server).count("TIME-WAIT"), waiting)

    test_cheap.skip = NO_SS  # type: ignore[attr-defined]
