"""TCP ports whose connections are told their options, counted and judged before they get in.

:class:`GuardedFactory` wraps any Twisted factory; :func:`listen` opens ports for it, with Multipath
TCP, TLS or a port shared with another process where that is asked for.  It knows nothing of what
the connections carry: why somebody is refused is said in the owner's words.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet import defer, error, tcp
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime, ISystemHandle
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from protocols.tcp.admission import Admission, AdmissionLimits, Verdict
from protocols.tcp.options import QUICKACK, Setting, SocketOptions, TcpInfo, tcp_info

IPPROTO_MPTCP: Final = getattr(socket, "IPPROTO_MPTCP", 262)
"""RFC 8684; the number is Linux'."""
_YOUNG: Final = {"TCP_RTO_MAX_MS": 44} if sys.platform == "linux" else {}
"""Numbers of options that :mod:`socket` does not know yet (linux/tcp.h)."""
MAX_REFUSALS: Final = 50
"""Connections that are told why they are refused at the same time; others are just reset."""
REFUSAL_S: Final = 5.0
"""For how long one that is refused may take to ask, and then to hear why."""

ACCEPTS_PER_TURN: Final = 16
"""Connections a port takes in one turn of the event loop: a flood of them, at well under 0.1 ms
each, must not keep audio waiting."""
_SHARE: Final = Setting("SOL_SOCKET", "SO_REUSEPORT", 1)

Refuse = Callable[[Verdict, float], bytes]
"""From why, and the seconds until it may be different, to what the peer is told."""


def mptcp_available() -> bool:
    """Whether this kernel makes Multipath TCP sockets."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


def apply(sock: socket.socket, settings: Iterable[Setting]) -> None:
    """Set what this system and this kind of socket know; what they do not is left alone."""
    for level, name, value in settings:
        number = getattr(socket, name, _YOUNG.get(name))
        if number is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(getattr(socket, level), number, value)


def tune(transport: Any, options: SocketOptions) -> None:
    """Tell the socket below ``transport`` what an admitted connection is told (CON-1).

    For the other end of a connection, which no guard has accepted.  Transports in memory are left
    alone.
    """
    sock = _socket_of(transport)
    if sock is not None:
        apply(sock, options.accepted())


@dataclass
class Guard:
    """What all ports of one server share: limits, options, counters, and who is connected.

    :ivar clock: steady seconds, and timers.
    :ivar refuse: what a refused connection is told; None: it is closed without a word.
    :ivar on_block: called with an address at the moment it is shut out.
    :ivar between: called after each piece of work for a connection, for what is urgent and must not
        wait for all connections that are ready at the same time.
    :ivar connections: that are open, in the order they came.
    :ivar held: how many of them each address has, by :meth:`Admission.key`.
    :ivar bytes_received: as they were on the wire, of all connections since the start.
    :ivar untold: refused without a word, because too many others were being told, or blocked.
    """

    clock: IReactorTime
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    options: SocketOptions = field(default_factory=SocketOptions)
    refuse: Refuse | None = None
    on_block: Callable[[str], None] | None = None
    between: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.connections: dict[GuardedConnection, int] = {}
        self.held: Counter[str] = Counter()
        self.bytes_received = 0
        self.bytes_sent = 0
        self.being_refused = 0
        self.untold = 0
        self._emptied: list[defer.Deferred[None]] = []

    def judge(self, host: str) -> tuple[Verdict, bytes | None]:
        """Whether ``host`` may come in; if not, what it is to be told, or None for nothing."""
        now = self.clock.seconds()
        blocks = self.admission.blocks
        own = self.held[self.admission.key(host)]
        verdict = self.admission.arrive(host, now, len(self.connections), own)
        if verdict is Verdict.ADMIT:
            return verdict, None
        if self.admission.blocks > blocks and self.on_block is not None:
            self.on_block(self.admission.key(host))
        silent = verdict is Verdict.BLOCKED or self.being_refused >= MAX_REFUSALS
        if self.refuse is None or silent:
            self.untold += 1
            return verdict, None
        return verdict, self.refuse(verdict, self.admission.wait_s(host, now))

    def change_limits(self, limits: AdmissionLimits) -> None:
        """From now on; what is open stays open, and who is shut out stays so."""
        self.limits = limits
        self.admission.change(limits)

    def close_all(self, within_s: float = 0.0) -> defer.Deferred[None]:
        """Close what is still open, in order; under TLS, its end is said first.

        :param within_s: for peers to take what has been written to them; then they are cut off.
        :returns: fires when nothing is open any more.
        """
        for connection in list(self.connections):
            connection.end()
        done: defer.Deferred[None] = defer.Deferred()
        if not self.connections:
            done.callback(None)
            return done
        self._emptied.append(done)
        late = self.clock.callLater(within_s, self._cut_off)

        def in_time(_: None) -> None:
            if late.active():
                late.cancel()

        return done.addCallback(in_time)

    def _cut_off(self) -> None:
        for connection in list(self.connections):
            connection.abortConnection()

    def left(self) -> None:
        """A connection is no more; for :class:`GuardedConnection`."""
        if not self.connections:
            emptied, self._emptied = self._emptied, []
            for one in emptied:
                one.callback(None)


class GuardedConnection(ProtocolWrapper):
    """One connection that was admitted.

    :ivar secure: whether it carries TLS.
    :ivar since: when it came; ``heard``: when it last said anything; seconds of the guard's clock.
    :ivar bytes_received: on the wire, TLS included; ``bytes_sent``: handed to the transport.
    """

    def __init__(self, factory: GuardedFactory, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._guard = factory.guard
        self._socket: socket.socket | None = None
        self.secure = factory.secure
        self.since = self.heard = self._guard.clock.seconds()
        self.bytes_received = 0
        self.bytes_sent = 0

    def makeConnection(self, transport: Any) -> None:
        self._socket = _socket_of(transport)
        if self._socket is not None:
            apply(self._socket, self._guard.options.accepted())
        self._key = self._guard.admission.key(str(getattr(transport.getPeer(), "host", "")))
        self._guard.held[self._key] += 1
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        guard = self._guard
        self.heard = guard.clock.seconds()
        self.bytes_received += len(data)
        guard.bytes_received += len(data)
        if guard.options.quickack and self._socket is not None:
            apply(self._socket, (QUICKACK,))
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        guard.between()

    def write(self, data: bytes) -> None:
        self._sent(len(data))
        super().write(data)  # type: ignore[no-untyped-call]

    def writeSequence(self, data: Iterable[bytes]) -> None:
        parts = list(data)
        self._sent(sum(map(len, parts)))
        super().writeSequence(parts)  # type: ignore[no-untyped-call]

    def setTcpNoDelay(self, enabled: bool) -> None:
        """The options decide, not what is inside."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """The options decide, not what is inside."""

    def end(self) -> None:
        """Close it once all that was written has been sent.

        Who writes is told of no more room: a producer that waits for some would keep the
        transport from closing.
        """
        inside = self.wrappedProtocol
        if isinstance(inside, TLSMemoryBIOProtocol):
            inside.unregisterProducer()  # type: ignore[no-untyped-call]
            inside.loseConnection()  # type: ignore[no-untyped-call]
        self.unregisterProducer()  # type: ignore[no-untyped-call]
        self.loseConnection()  # type: ignore[no-untyped-call]

    def info(self) -> TcpInfo | None:
        """What the kernel says of it now; None where it says nothing."""
        number = getattr(socket, "TCP_INFO", None)
        if self._socket is None or number is None:
            return None
        try:
            return tcp_info(self._socket.getsockopt(socket.IPPROTO_TCP, number, 256))
        except OSError:
            return None

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._socket = None
        self._guard.held[self._key] -= 1
        if not self._guard.held[self._key]:
            del self._guard.held[self._key]
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self._guard.left()
        self._guard.between()

    def _sent(self, size: int) -> None:
        self.bytes_sent += size
        self._guard.bytes_sent += size


class GuardedFactory(WrappingFactory[Any]):
    """Wraps ``factory``: who is admitted gets its protocol, and counts until it is closed.

    That a protocol inside hands its transport to another one (a WebSocket) changes nothing.

    :param secure: whether ``factory`` speaks TLS; see :meth:`secured`.
    """

    noisy = False
    protocol = GuardedConnection

    def __init__(self, factory: Any, guard: Guard, *, secure: bool = False) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self.guard = guard
        self.secure = secure
        self.protocols = guard.connections
        self._telling: Any = _Refusals(guard)

    def secured(self, tls: Any) -> GuardedFactory:
        """The same with TLS inside the guard: options, limits and deadlines cover handshakes.

        :param tls: an IOpenSSLServerConnectionCreator.
        """

        def wrapped(factory: Any) -> Any:
            made = TLSMemoryBIOFactory(tls, False, factory, self.guard.clock)
            made.noisy = False
            return made

        other = GuardedFactory(wrapped(self.wrappedFactory), self.guard, secure=True)
        other._telling = wrapped(_Refusals(self.guard))
        return other

    def buildProtocol(self, addr: IAddress | None) -> Any:
        host = str(getattr(addr, "host", ""))
        verdict, told = self.guard.judge(host)
        if verdict is Verdict.ADMIT:
            inside = self.wrappedFactory.buildProtocol(addr)
            return None if inside is None else GuardedConnection(self, inside)
        if told is None:
            return None
        refusing = self._telling.buildProtocol(addr)
        innermost = getattr(refusing, "wrappedProtocol", refusing)
        innermost.told = told
        return refusing


class _Refusals(Factory):
    """Makes what tells connections why they are refused."""

    noisy = False

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def buildProtocol(self, addr: IAddress | None) -> _Refusal:
        return _Refusal(self.guard)


class _Refusal(Protocol):
    """Tells a refused connection why, once it has said something; then closes it.

    Before it has, closing with its request unread would reset the connection and lose the answer.
    """

    told = b""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def connectionMade(self) -> None:
        self._guard.being_refused += 1
        self._late = self._guard.clock.callLater(REFUSAL_S, self._close)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        told, self.told = self.told, b""
        if told:
            self.transport.write(told)
            self._late.reset(REFUSAL_S)
            self.transport.loseConnection()

    def _close(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = error.ConnectionDone) -> None:  # type: ignore[assignment]
        if self._late.active():
            self._late.cancel()
        self._guard.being_refused -= 1


class _PatientServer(tcp.Server):
    """A connection whose closing never makes the event loop wait; see ``SocketOptions.closing``."""

    def __init__(self, options: SocketOptions, *arguments: Any) -> None:
        self._options = options
        super().__init__(*arguments)

    def connectionLost(self, reason: Failure) -> None:
        if hasattr(self, "socket"):
            apply(self.socket, self._options.closing())
        super().connectionLost(reason)
        # What was not written is part of a cycle that may not be searched for in a long time.
        self.dataBuffer = b""
        self._tempDataBuffer, self._tempDataLen = [], 0


def listen(
    reactor: Any,
    description: str,
    factory: GuardedFactory,
    *,
    mptcp: bool = False,
    share_port: bool = False,
    tls: Any = None,
) -> defer.Deferred[IListeningPort]:
    """Listen for ``factory``, with the options of its guard.

    :param description: of a Twisted endpoint, such as ``tcp:8080:interface=192.0.2.1``.
    :param mptcp: accept Multipath TCP (RFC 8684) beside TCP, on ``tcp`` and ``tcp6`` endpoints.
    :param share_port: listen beside another process of this user that uses the port already; new
        connections then go to either.
    :param tls: an IOpenSSLServerConnectionCreator; None: no TLS but what the endpoint has itself.
    :returns: fires with the port, or fails: CannotListenError where it is taken.
    :raises ValueError, KeyError, TypeError: ``description`` is none.
    """
    guarded = factory if tls is None else factory.secured(tls)
    options = factory.guard.options
    wish = _Wish(reactor)
    endpoint = serverFromString(wish, description)  # type: ignore[no-untyped-call]
    waiting: defer.Deferred[Any] = endpoint.listen(guarded)
    if description.partition(":")[0] not in {"tcp", "tcp6"}:
        return waiting.addCallback(_adjust, options)
    return waiting.addCallback(
        lambda _: _adjust(wish.open(guarded, options, mptcp, share_port), options)
    )


class _Wish:
    """Stands in for the reactor to learn what a ``tcp`` endpoint would listen on."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._at: tuple[int, str, int] = (0, "", 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> None:
        self._at = (port, interface, backlog)

    def open(
        self, factory: Factory, options: SocketOptions, mptcp: bool, share_port: bool
    ) -> IListeningPort:
        port, interface, backlog = self._at
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        protocol = IPPROTO_MPTCP if mptcp and mptcp_available() else 0
        try:
            with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
                sock.setblocking(False)
                apply(sock, options.listening())
                _bind(sock, (interface, port), backlog, share_port)
                adopted: IListeningPort = self._reactor.adoptStreamPort(
                    sock.fileno(), family, factory
                )
                return adopted
        except (OSError, OverflowError) as reason:
            raise error.CannotListenError(interface, port, reason) from None  # type: ignore[no-untyped-call]


def _bind(sock: socket.socket, address: tuple[str, int], backlog: int, share_port: bool) -> None:
    """Bind and listen so that a successor may share the port, but nobody does unasked.

    SO_REUSEPORT counts on both sides: without it a port in use is refused even if its user would
    share.  So it is set before binding only by who means to share, and by all once they listen.
    """
    if share_port:
        apply(sock, (_SHARE,))
    sock.bind(_with_scope(address) if sock.family == socket.AF_INET6 else address)
    sock.listen(backlog)


def _with_scope(address: tuple[str, int]) -> tuple[str, int, int, int]:
    """An IPv6 address as the kernel takes it, ``fe80::1%eth0`` included (RFC 4007)."""
    host, port = address
    found: Any = socket.getaddrinfo(host, 0, socket.AF_INET6, 0, 0, socket.AI_NUMERICHOST)[0][4]
    return found[0], port, found[2], found[3]


def _adjust(port: Any, options: SocketOptions) -> Any:
    """Have a port make connections that close without waiting, and few of them at a time."""
    if _is_tcp(port):
        apply(port.socket, (*options.listening(), _SHARE))
        port.transport = lambda *given: _PatientServer(options, *given)
        accept = port.doRead

        def accept_some() -> None:
            port.numberAccepts = min(port.numberAccepts, ACCEPTS_PER_TURN)
            accept()

        port.doRead = accept_some
    return port


def accept_waiting(ports: Sequence[IListeningPort]) -> None:
    """Accept what the kernel has completed for these ports, before they stop listening.

    Otherwise it would be reset: it belongs to this socket, not to the one that shares its port.
    """
    for port in ports:
        if _is_tcp(port):
            for _ in range(64):
                port.doRead()  # type: ignore[attr-defined]


def _is_tcp(port: Any) -> bool:
    return (
        isinstance(port, tcp.Port)
        and bool(port.connected)
        and port.addressFamily in {socket.AF_INET, socket.AF_INET6}
    )


def _socket_of(transport: Any) -> socket.socket | None:
    """The socket below, through whatever wraps it; None for transports in memory."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    if not ISystemHandle.providedBy(transport):
        return None
    handle = transport.getHandle()
    return handle if isinstance(handle, socket.socket) else None
