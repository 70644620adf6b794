"""Free UDP port pairs on loopback."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress


def free_pair(host: str = "127.0.0.1") -> int:
    """An even UDP port that is free, as is the next one."""
    return free_pairs(1, host)


def free_pairs(count: int, host: str = "127.0.0.1") -> int:
    """The first, an even one, of ``2 * count`` free UDP ports in a row."""
    for _ in range(500):
        with ExitStack() as bound:
            first = bound.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            first.bind((host, 0))
            port = int(first.getsockname()[1])
            if port % 2 or port > 65_000:
                continue
            with suppress(OSError):
                for other in range(port + 1, port + 2 * count):
                    next_one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    bound.enter_context(next_one).bind((host, other))
                return port
    raise OSError(f"no {2 * count} free UDP ports in a row")


def receiver(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A bound UDP socket that waits at most 2 s."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.settimeout(2.0)
    sock.bind((host, port))
    return sock


def drain(sock: socket.socket) -> list[bytes]:
    """Everything that has arrived; loopback delivers before the send returns."""
    sock.setblocking(False)
    got = []
    with suppress(BlockingIOError):
        while True:
            got.append(sock.recv(65_536))
    return got
