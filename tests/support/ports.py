"""Free UDP port pairs on loopback."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

FIRST, LAST = 10_000, 32_000
"""Below what the system gives to those who ask for any port, so that nobody takes one of ours
between finding and using it.  Tests that run side by side are kept apart by locks."""
KEPT = 400
"""Pairs that stay locked after they were found: more than a test uses."""

_random = random.SystemRandom()
_locks: deque[int] = deque()


def _lock(port: int) -> int:
    """Keep other processes of tests from this port.

    :raises OSError: one of them has it.
    """
    directory = Path(tempfile.gettempdir()) / f"m32net-test-ports-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _keep(locks: list[int]) -> None:
    _locks.extend(locks)
    while len(_locks) > KEPT:
        os.close(_locks.popleft())


def free_pair(host: str = "127.0.0.1") -> int:
    """An even UDP port that is free, as is the next one."""
    return free_pairs(1, host)


def free_pairs(count: int, host: str = "127.0.0.1") -> int:
    """The first, an even one, of ``2 * count`` free UDP ports in a row."""
    for _ in range(500):
        port = 2 * _random.randrange(FIRST // 2, (LAST - 2 * count) // 2)
        locks: list[int] = []
        with ExitStack() as bound, suppress(OSError):
            for one in range(port, port + 2 * count):
                sock = bound.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((host, one))
                if one % 2 == 0:
                    locks.append(_lock(one))
            _keep(locks)
            return port
        for lock in locks:
            os.close(lock)
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
