"""Batched UDP on Linux: many datagrams per system call, both ways, with kernel time stamps.

Sending: a :class:`~protocols.mmsg.SendTable` holds messages at fixed addresses, and
:class:`BatchSender` hands all of them to ``sendmmsg(2)``, several datagrams per message with
UDP_SEGMENT (GSO, udp(7)).
Receiving: :class:`BatchReceiver` reads with ``recvmmsg(2)``, UDP_GRO and SO_TIMESTAMPNS.  Each
falls back to what the kernel has.  Nothing here knows what is in a datagram.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np

from protocols.mmsg import (
    IOVEC,
    MAX_BATCH,
    MMSGHDR,
    SOCKADDR_IN,
    SOL_UDP,
    Address,
    SendTable,
    control_messages,
    layouts_fit,
    libc_function,
    socket_addresses,
)

UDP_GRO: Final = 104
SO_TIMESTAMPNS: Final = 35
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33

GIVE_UP_AFTER: Final = 64
"""Destinations that fail in a row until the rest of a table is dropped: no route at all."""
HOLD_LOCK_BELOW: Final = 48
"""Messages up to which a send keeps the interpreter lock.  Giving it up costs a short call more
than it is worth: whoever takes it may keep it for a switch interval of 5 ms.  A long call gives
it up, so that the audio callback is not kept waiting."""


class SendMethod(Enum):
    """How datagrams go out, best first."""

    GSO = "gso"
    SENDMMSG = "sendmmsg"
    SENDTO = "sendto"


class SendFailure(NamedTuple):
    """A message that did not go out, by its index in the table, and the errno."""

    message: int
    error: int


class Datagram(NamedTuple):
    """One datagram that came.

    :ivar arrival_ns: when the kernel got it (wall clock, Unix ns); where the kernel does not
        say, when it was read.
    """

    data: bytes
    address: Address
    arrival_ns: int


def open_udp(
    host: str,
    port: int,
    *,
    dscp: int = 0,
    sndbuf: int = 1 << 20,
    rcvbuf: int = 1 << 20,
    reuse: bool = False,
    shareable: bool = False,
    share: bool = False,
) -> socket.socket:
    """A bound, non-blocking IPv4 UDP socket.

    :param host: local address; empty for all.
    :param dscp: differentiated services code point of what is sent, 0..63 (46 is EF).
    :param sndbuf: bytes asked for; the kernel's limit is passed over where we may.
    :param shareable: another process of this user may bind the same port later, if it asks for
        that with ``share``.  Datagrams that come then reach one of the two.
    :raises OSError: the port is taken or the address is not this machine's.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0))
    try:
        sock.setblocking(False)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, sndbuf)
        _set_buffer(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, rcvbuf)
        set_dscp(sock, dscp)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        if shareable:  # only now: set before, a port in use would be shared unasked
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def set_dscp(sock: socket.socket, dscp: int) -> None:
    """Mark what ``sock`` sends from now on; the two ECN bits stay zero (RFC 2474)."""
    if not 0 <= dscp <= 63:
        raise ValueError(f"DSCP {dscp} is outside 0..63")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)


def local_address_towards(host: str) -> str:
    """The local address from which this machine would send to ``host``; sends nothing.

    :returns: ``127.0.0.1`` where there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((host, 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


class BatchSender:
    """Sends tables through one socket, without ever blocking.

    :param sendmmsg: instead of libc's: ``(fd, address, count, flags)``, sets ``errno``.
    """

    def __init__(
        self,
        sock: socket.socket,
        method: SendMethod,
        sendmmsg: Callable[[int, int, int, int], int] | None = None,
    ) -> None:
        self.method = method
        self._sock = sock
        self._short: Callable[[int, int, int, int], int] = self._one_by_one
        self._long: Callable[[int, int, int, int], int] = self._one_by_one
        if sendmmsg is not None:
            self._short = self._long = sendmmsg
        elif method is not SendMethod.SENDTO:
            self._short = libc_function("sendmmsg", hold_lock=True)
            self._long = libc_function("sendmmsg", hold_lock=False)
        self._table: SendTable

    def send(self, table: SendTable) -> list[SendFailure]:
        """Send every message of the table once.

        A destination that fails is skipped.  When the socket's buffer is full, or nothing but
        failures come, the rest is dropped (EAGAIN) and the next send begins there, so that it is
        not always the same who lose.

        :returns: what did not go out; empty as a rule.
        """
        failures: list[SendFailure] = []
        self._table = table
        start = table.next_start
        table.next_start = 0
        if self._range(start, table.count, failures):
            self._range(0, start, failures)
        else:
            failures += [SendFailure(k, errno.EAGAIN) for k in range(start)]
        return failures

    def _range(self, at: int, end: int, failures: list[SendFailure]) -> bool:
        """Send messages ``at`` to ``end``; False when it gave up before the end."""
        fd = self._sock.fileno()
        table = self._table
        refused = 0
        while at < end:
            batch = min(end - at, MAX_BATCH)
            call = self._short if batch <= HOLD_LOCK_BELOW else self._long
            sent = call(fd, table.address + at * MMSGHDR.itemsize, batch, socket.MSG_DONTWAIT)
            if sent > 0:
                at += sent
                refused = 0
                continue
            error = ctypes.get_errno()
            if error == errno.EINTR:
                continue
            failures.append(SendFailure(at, error))
            at += 1
            refused += 1
            if error == errno.EAGAIN or refused >= GIVE_UP_AFTER:
                failures += [SendFailure(k, errno.EAGAIN) for k in range(at, end)]
                table.next_start = at - 1 if error == errno.EAGAIN else at % table.count
                return False
        return True

    def _one_by_one(self, _fd: int, address: int, count: int, _flags: int) -> int:
        """What ``sendmmsg`` does, with one ``sendto`` for each message."""
        first = (address - self._table.address) // MMSGHDR.itemsize
        for message in range(first, first + count):
            try:
                self._sock.sendto(*self._table.datagram(message))
            except OSError as error:
                ctypes.set_errno(error.errno or errno.EIO)
                return message - first or -1
        return count


def probe_send_method(sock: socket.socket) -> SendMethod:
    """The best method that works with this socket, found by sending over loopback."""
    own = sock.getsockname()[0]
    host = "127.0.0.1" if not any(socket.inet_aton(own)) else own
    for method in (SendMethod.GSO, SendMethod.SENDMMSG):
        with suppress(OSError, AttributeError), open_udp(host, 0) as receiver:
            if _works(sock, method, receiver):
                return method
    return SendMethod.SENDTO


def _works(sock: socket.socket, method: SendMethod, receiver: socket.socket) -> bool:
    """Whether two datagrams sent by ``method`` arrive as two."""
    if not layouts_fit():
        return False
    payload = np.frombuffer(b"AAAAbbb", np.uint8)
    gso = method is SendMethod.GSO
    messages = 1 if gso else 2
    table = SendTable(
        socket_addresses([receiver.getsockname()] * messages),
        bases=payload.ctypes.data + np.array([0, 4], np.uint64),
        lengths=np.array([4, 3], np.uint64),
        first_parts=np.arange(messages),
        segmented=np.full(messages, gso),
        keep=(payload,),
    )
    table.segment_sizes[:] = 4
    if BatchSender(sock, method).send(table):
        return False
    return receiver.recv(100) == b"AAAA" and receiver.recv(100) == b"bbb"


def _set_buffer(sock: socket.socket, force: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


class BatchReceiver:
    """Reads a UDP socket, many datagrams at a time.

    :param batch: messages per system call; with GRO one may hold up to 64 datagrams.
    :param gro: let the kernel join datagrams of one size that came together (UDP_GRO); they are
        told apart again here, and share one time stamp.
    :param portable: use nothing but ``recvmsg``, as where there is no ``recvmmsg``.
    :ivar drained: whether the last :meth:`receive` left nothing behind, as far as it could see.
    :ivar truncated: messages dropped because they did not fit (64 KiB always fit).
    """

    CONTROL = 128
    SLOT = 65_536

    def __init__(
        self, sock: socket.socket, *, batch: int = 32, gro: bool = True, portable: bool = False
    ) -> None:
        self.drained = True
        self.truncated = 0
        self._sock = sock
        self._hosts: dict[bytes, Address] = {}
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if gro:
            with suppress(OSError):
                sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        self._call: Callable[..., int] | None = None
        if not portable and layouts_fit():
            with suppress(AttributeError):
                self._call = libc_function("recvmmsg", hold_lock=True)
        if self._call is not None:
            self._allocate(batch)

    def receive(self) -> list[Datagram]:
        """What is there now, at most one batch; empty when nothing is.

        :raises OSError: the socket is broken.  Errors that ICMP reports about something sent
            before are not raised.
        """
        try:
            if self._call is None:
                return list(self._receive_one())
            return list(self._receive_batch())
        except (BlockingIOError, InterruptedError, ConnectionError):
            self.drained = True
            return []

    def _allocate(self, batch: int) -> None:
        self._batch = batch
        self._buffers = np.zeros(batch * self.SLOT, np.uint8)
        self._controls = np.zeros(batch * self.CONTROL, np.uint8)
        self._names = np.zeros(batch, SOCKADDR_IN)
        self._parts = np.zeros(batch, IOVEC)
        self._messages = messages = np.zeros(batch, MMSGHDR)
        rows = np.arange(batch, dtype=np.uint64)
        self._parts["base"] = self._buffers.ctypes.data + rows * self.SLOT
        self._parts["length"] = self.SLOT
        messages["name"] = self._names.ctypes.data + rows * SOCKADDR_IN.itemsize
        messages["parts"] = self._parts.ctypes.data + rows * IOVEC.itemsize
        messages["part_count"] = 1
        messages["control"] = self._controls.ctypes.data + rows * self.CONTROL
        messages["control_length"] = self.CONTROL
        messages["name_length"] = SOCKADDR_IN.itemsize
        self._data = self._buffers.data
        self._control_bytes = self._controls.data
        self._name_bytes = self._names.view(np.uint8).data

    def _receive_batch(self) -> Iterator[Datagram]:
        assert self._call is not None
        messages = self._messages
        count = self._call(
            self._sock.fileno(), messages.ctypes.data, self._batch, socket.MSG_DONTWAIT, None
        )
        if count < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self.drained = count < self._batch
        used = messages[:count]
        fields = zip(
            used["length"].tolist(),
            used["control_length"].tolist(),
            used["flags"].tolist(),
            strict=True,
        )
        for row, (length, control_length, flags) in enumerate(fields):
            control = self._control_bytes[row * self.CONTROL :][:control_length]
            name = self._name_bytes[row * 16 : row * 16 + 8].tobytes()
            start = row * self.SLOT
            data = self._data[start : start + length]
            yield from self._split(data, control_messages(control), self._address(name), flags)
        used["control_length"] = self.CONTROL
        used["name_length"] = SOCKADDR_IN.itemsize

    def _receive_one(self) -> Iterator[Datagram]:
        self.drained = False
        data, ancillary, flags, address = self._sock.recvmsg(self.SLOT, self.CONTROL)
        yield from self._split(memoryview(data), ancillary, address, flags)

    def _split(
        self, data: memoryview, ancillary: Any, address: Address, flags: int
    ) -> Iterator[Datagram]:
        """The datagrams of one message."""
        if flags & socket.MSG_TRUNC:
            self.truncated += 1
            return
        arrival_ns = 0
        size = len(data)
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO:
                (size,) = struct.unpack_from("=i", value)
            elif level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack_from("=qq", value)
                arrival_ns = seconds * 1_000_000_000 + nanoseconds
        arrival_ns = arrival_ns or time.time_ns()
        if size >= len(data):
            yield Datagram(data.tobytes(), address, arrival_ns)
            return
        for start in range(0, len(data), size):
            yield Datagram(data[start : start + size].tobytes(), address, arrival_ns)

    def _address(self, name: bytes) -> Address:
        """Host and port of a SOCKADDR_IN's first 8 bytes."""
        known = self._hosts.get(name)
        if known is None:
            if len(self._hosts) >= 4096:
                self._hosts.clear()
            known = (socket.inet_ntoa(name[4:8]), int.from_bytes(name[2:4], "big"))
            self._hosts[name] = known
        return known
