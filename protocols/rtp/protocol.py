"""Twisted shells for RTP: a receiver of RTP and RTCP, and the server's end of RTCP.

They read sockets in batches, parse what comes and hand it on; what it means is for the callables
they are given.  Sockets join the reactor as plain readers (``IReactorFDSet``), so that it works
under the epoll, poll, select and asyncio reactors alike.  Sending audio is not done here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from protocols.datagram import BatchReceiver, Datagram, open_udp
from protocols.errors import RemoteProtocolError
from protocols.mmsg import Address
from protocols.rtp.rtcp import Compound, parse_compound

READ_BUDGET: Final = 4
"""Batches read before the reactor gets its turn; what is left it tells us again."""
RTCP_BUDGET: Final = 64
"""RTCP datagrams read in one go; 1,000 listeners send about 200 a second."""
RTCP_PAUSE_S: Final = 0.005
"""Rest after a full budget, so that a flood of reports cannot delay the audio."""
RTP_RECEIVE_BUFFER: Final = 4 << 20
PORT_TRIES: Final = 64


@implementer(IReadDescriptor)
class SocketReader:
    """A socket in the reactor's care: calls ``ready`` whenever there is something to read.

    An exception from ``ready`` is logged and does not take the socket out of the reactor.
    """

    log = Logger()

    def __init__(self, sock: socket.socket, ready: Callable[[], object], label: str) -> None:
        self._socket = sock
        self._ready = ready
        self._label = label

    def fileno(self) -> int:
        return self._socket.fileno()

    def doRead(self) -> None:
        if self._socket.fileno() < 0:  # closed by whoever was called just before us
            return
        try:
            self._ready()
        except Exception:
            self.log.failure("{label}: reading failed", label=self._label)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of us: when it stops, or when the descriptor broke."""

    def logPrefix(self) -> str:
        return self._label


class RtcpServer:
    """RTCP on the server's side: receives reports within a budget, sends what it is given.

    The socket is bound at once, so that a busy port is known before the reactor runs.

    :param on_compound: called with the sender's address, the parsed packets and the arrival time
        (Unix, ns).
    :param share: use the port beside the process that has it now; what comes reaches either.
    :ivar malformed: datagrams that were no valid RTCP.
    :ivar pauses: times the budget was used up.
    :ivar unsent: datagrams the kernel did not take.
    :raises OSError: the port is taken or the address is not this machine's.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        on_compound: Callable[[Address, Compound, int], object],
        *,
        budget: int = RTCP_BUDGET,
        pause_s: float = RTCP_PAUSE_S,
        share: bool = False,
    ) -> None:
        self.malformed = 0
        self.pauses = 0
        self.unsent = 0
        self._reactor = reactor
        self._on_compound = on_compound
        self._budget = budget
        self._pause_s = pause_s
        self._pause: Any = None
        self._socket = open_udp(host, port, shareable=True, share=share)
        self._receiver = BatchReceiver(self._socket, batch=budget, gro=False)
        self._reader = SocketReader(self._socket, self._read, "RTCP")

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begin to receive."""
        self._reactor.addReader(self._reader)

    def stop(self) -> None:
        """Stop receiving and close the socket."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._reactor.removeReader(self._reader)
        self._socket.close()

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram; what cannot be sent is counted."""
        try:
            self._socket.sendto(data, address)
        except OSError:
            self.unsent += 1

    def _read(self) -> None:
        spent = 0
        while spent < self._budget:
            datagrams = self._receiver.receive()
            spent += max(1, len(datagrams))
            for data, address, arrival_ns in datagrams:
                self._received(data, address, arrival_ns)
            if self._receiver.drained or self._socket.fileno() < 0:
                return
        self.pauses += 1
        self._reactor.removeReader(self._reader)
        self._pause = self._reactor.callLater(self._pause_s, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._reactor.addReader(self._reader)

    def _received(self, data: bytes, address: Address, arrival_ns: int) -> None:
        try:
            compound = parse_compound(data)
        except RemoteProtocolError:
            self.malformed += 1
            return
        try:
            self._on_compound(address, compound, arrival_ns)
        except Exception:
            self.log.failure("RTCP from {address} could not be used", address=address)


class RtpReceiver:
    """Receives RTP on a port and RTCP on the next one.

    :param port: UDP port for RTP; 0 picks a free pair.
    :param on_packets: called with the datagrams of each batch, unparsed.
    :param on_rtcp: called with the parsed packets and the arrival time (Unix, ns).
    :param only_from: the senders' IPv4 addresses and RTP ports (the RTCP port is the next one);
        what comes from elsewhere is dropped and counted.  None: from anybody.
    :ivar malformed: datagrams on the RTCP port that were no valid RTCP.
    :ivar foreign: datagrams from other addresses than ``only_from``.
    :ivar unsent: RTCP datagrams the kernel did not take.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        on_packets: Callable[[list[Datagram]], object],
        on_rtcp: Callable[[Compound, int], object],
        *,
        only_from: Collection[Address] | None = None,
    ) -> None:
        self.malformed = 0
        self.foreign = 0
        self.unsent = 0
        self.only_from = only_from
        self._reactor = reactor
        self._host = host
        self._wanted_port = port
        self._on_packets = on_packets
        self._on_rtcp = on_rtcp
        self._readers: list[SocketReader] = []
        self._rtp: socket.socket | None = None
        self._rtcp: socket.socket | None = None

    @property
    def port(self) -> int:
        """The RTP port; what was asked for while not started."""
        return self._wanted_port if self._rtp is None else int(self._rtp.getsockname()[1])

    def start(self) -> None:
        """Bind both ports and begin to receive.

        :raises OSError: a port is taken.
        """
        self._rtp, self._rtcp = rtp, rtcp = _open_pair(self._host, self._wanted_port)
        self._rtp_batches = BatchReceiver(rtp)
        self._rtcp_batches = BatchReceiver(rtcp, batch=16, gro=False)
        self._readers = [
            SocketReader(rtp, self._read_rtp, "RTP receiver"),
            SocketReader(rtcp, self._read_rtcp, "RTCP receiver"),
        ]
        for reader in self._readers:
            self._reactor.addReader(reader)

    def stop(self) -> None:
        """Close both sockets; starting again is possible."""
        for reader in self._readers:
            self._reactor.removeReader(reader)
        self._readers = []
        for sock in (self._rtp, self._rtcp):
            if sock is not None:
                sock.close()
        self._rtp = self._rtcp = None

    def send_rtcp(self, data: bytes, address: Address) -> None:
        """Send one RTCP datagram from our RTCP port."""
        if self._rtcp is None:
            return
        try:
            self._rtcp.sendto(data, address)
        except OSError:
            self.unsent += 1

    def _read_rtp(self) -> None:
        for _ in range(READ_BUDGET):
            datagrams = self._wanted(self._rtp_batches.receive(), 0)
            if datagrams:
                self._on_packets(datagrams)
            if self._rtp is None or self._rtp_batches.drained:
                return

    def _read_rtcp(self) -> None:
        for data, _address, arrival_ns in self._wanted(self._rtcp_batches.receive(), 1):
            try:
                compound = parse_compound(data)
            except RemoteProtocolError:
                self.malformed += 1
                continue
            self._on_rtcp(compound, arrival_ns)
            if self._rtcp is None:
                return

    def _wanted(self, datagrams: list[Datagram], port_offset: int) -> list[Datagram]:
        if self.only_from is None:
            return datagrams
        senders = [(host, port + port_offset) for host, port in self.only_from]
        wanted = [datagram for datagram in datagrams if datagram.address in senders]
        self.foreign += len(datagrams) - len(wanted)
        return wanted


def _open_pair(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets on a port and the next; for port 0 on a free pair, the first of it even."""
    for attempt in range(1, PORT_TRIES + 1):
        rtp = open_udp(host, port, rcvbuf=RTP_RECEIVE_BUFFER)
        chosen = rtp.getsockname()[1]
        try:
            if port == 0 and (chosen % 2 or chosen > 65_534):
                raise OSError("an odd port")
            return rtp, open_udp(host, chosen + 1)
        except OSError:
            rtp.close()
            if port or attempt == PORT_TRIES:
                raise
    raise AssertionError("unreachable")
