"""The memory that ``sendmmsg(2)`` and ``recvmmsg(2)`` read and write, as numpy arrays.

Layouts, tables of messages and the two libc functions; no socket is opened or used here, that is
:mod:`protocols.datagram`'s.  The layouts are those of a 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import ipaddress
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.addresses import plain

Address = tuple[str, int]
Words = npt.NDArray[np.uint64]

AF_INET: Final = 2
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
MAX_SEGMENTS: Final = 64
"""Datagrams in one GSO message (UDP_MAX_SEGMENTS; later kernels take 128)."""
MAX_MESSAGE_BYTES: Final = 65_507
"""Payload of one message: 65,535 less IPv4 and UDP headers."""
MAX_BATCH: Final = 1024
"""Messages in one call (UIO_MAXIOV)."""

# The layouts of a 64-bit Linux (bits/types/struct_msghdr.h, netinet/in.h).
SOCKADDR_IN: Final = np.dtype(
    [("family", "=u2"), ("port", ">u2"), ("host", ">u4"), ("zero", "=u8")]
)
IOVEC: Final = np.dtype([("base", "=u8"), ("length", "=u8")])
MMSGHDR: Final = np.dtype(
    [
        ("name", "=u8"),
        ("name_length", "=u4"),
        ("_pad0", "=u4"),
        ("parts", "=u8"),
        ("part_count", "=u8"),
        ("control", "=u8"),
        ("control_length", "=u8"),
        ("flags", "=i4"),
        ("_pad1", "=u4"),
        ("length", "=u4"),
        ("_pad2", "=u4"),
    ]
)
SEGMENT_CMSG: Final = np.dtype(
    [
        ("length", "=u8"),
        ("level", "=i4"),
        ("type", "=i4"),
        ("size", "=u2"),
        ("_pad", "=u2", 3),
    ]
)


def layouts_fit() -> bool:
    return sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8


def libc_function(name: str, *, hold_lock: bool) -> Callable[..., int]:
    """``sendmmsg`` or ``recvmmsg``, without its time-out.

    :raises AttributeError: this libc has none.
    """
    library = (ctypes.PyDLL if hold_lock else ctypes.CDLL)(None, use_errno=True)
    function = getattr(library, name)
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
    if name == "recvmmsg":
        function.argtypes.append(ctypes.c_void_p)
    return function  # type: ignore[no-any-return]


def socket_addresses(addresses: Sequence[Address]) -> npt.NDArray[np.void]:
    """IPv4 addresses as an array of :data:`SOCKADDR_IN`.

    IPv4 in IPv6 notation (``::ffff:10.0.0.1``) is understood.

    :raises ValueError: not an IPv4 address, or no port.
    """
    table = np.zeros(len(addresses), SOCKADDR_IN)
    table["family"] = AF_INET
    for row, (host, port) in enumerate(addresses):
        try:
            packed = int(ipaddress.IPv4Address(plain(host)))
        except ValueError:
            raise ValueError(f"{host!r} is not an IPv4 address") from None
        if not 0 < port < 65536:
            raise ValueError(f"{port} is not a port")
        table["host"][row] = packed
        table["port"][row] = port
    return table


class SendTable:
    """Messages to many destinations, at fixed addresses, sent again and again.

    A message is one datagram, or with ``segmented`` several of one size to one destination of
    which the last may be shorter.  The memory its parts point to, :attr:`part_bases`,
    :attr:`part_lengths` and :attr:`segment_sizes` may be written between sends; all else is fixed.

    :param destinations: :data:`SOCKADDR_IN`, one for each of the M messages.
    :param bases: memory addresses of the P parts to gather, in the order they are sent.
    :param lengths: their lengths in bytes.
    :param first_parts: index of each message's first part, ascending; the first is 0.
    :param segmented: bool, for each message whether it carries a segment size.
    :param keep: objects that own the memory.
    """

    def __init__(
        self,
        destinations: npt.NDArray[np.void],
        *,
        bases: Words,
        lengths: Words,
        first_parts: npt.NDArray[np.int64],
        segmented: npt.NDArray[np.bool_],
        keep: tuple[object, ...] = (),
    ) -> None:
        self.count = len(destinations)
        self.next_start = 0
        self._keep = keep
        self._destinations = np.ascontiguousarray(destinations)
        self._parts = np.zeros(len(bases), IOVEC)
        self._parts["base"] = bases
        self._parts["length"] = lengths
        self._segments = np.zeros(self.count, SEGMENT_CMSG)
        self._segments["length"] = 18  # CMSG_LEN(sizeof(uint16_t))
        self._segments["level"] = SOL_UDP
        self._segments["type"] = UDP_SEGMENT
        self._first_parts = first_parts
        self._messages = messages = np.zeros(self.count, MMSGHDR)
        rows = np.arange(self.count, dtype=np.uint64)
        messages["name"] = self._destinations.ctypes.data + rows * SOCKADDR_IN.itemsize
        messages["name_length"] = SOCKADDR_IN.itemsize
        messages["parts"] = self._parts.ctypes.data + first_parts.astype(np.uint64) * IOVEC.itemsize
        messages["part_count"] = np.diff(first_parts, append=len(bases))
        control = self._segments.ctypes.data + rows * SEGMENT_CMSG.itemsize
        messages["control"] = segmented * control
        messages["control_length"] = segmented * SEGMENT_CMSG.itemsize
        self.address = int(messages.ctypes.data)
        self.part_bases: Words = self._parts["base"]
        self.part_lengths: Words = self._parts["length"]
        self.segment_sizes: npt.NDArray[np.uint16] = self._segments["size"]

    def datagram(self, message: int) -> tuple[bytes, Address]:
        """One message as bytes and its destination: the slow way, for tests and ``sendto``."""
        start = int(self._first_parts[message])
        end = start + int(self._messages["part_count"][message])
        data = b"".join(
            ctypes.string_at(base, length) for base, length in self._parts[start:end].tolist()
        )
        to = self._destinations[message]
        return data, (str(ipaddress.IPv4Address(int(to["host"]))), int(to["port"]))


def control_messages(control: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """The control messages in a buffer: level, type, data (cmsg(3))."""
    at = 0
    while at + 16 <= len(control):
        length, level, kind = struct.unpack_from("=Qii", control, at)
        if length < 16:
            return
        yield level, kind, control[at + 16 : at + length]
        at += (length + 7) & ~7
