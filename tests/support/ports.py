"""Free UDP port pairs on loopback."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

FIRST, LAST = 10_000, 32_000
"""Below what the system gives to those who ask for any port, so that nobody takes one of ours
between finding and using it; tests that run side by side are kept apart by chance."""

_random = random.SystemRandom()


def free_pair(host: str = "127.0.0.1") -> int:
    """An even UDP port that is free, as is the next one."""
    return free_pairs(1, host)


def free_pairs(count: int, host: str = "127.0.0.1") -> int:
    """The first, an even one, of ``2 * count`` free UDP ports in a row."""
    for _ in range(500):
        port = 2 * _random.randrange(FIRST // 2, (LAST - 2 * count) // 2)
        with ExitStack() as bound, suppress(OSError):
            for one in range(port, port + 2 * count):
                sock = bound.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((host, one))
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
