"""How programs on the server's own machine reach it: by files in its state directory.

Who may read the directory owns the server: a token in a file of mode 0600, and Unix sockets
beside it that carry the same HTTP as the TCP port.  Nothing here says what is asked.
"""

from __future__ import annotations

import os
import secrets
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.web.client import Agent
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

TOKEN_FILE: Final = "admin-token"  # noqa: S105 - the file's name
SERVER_SOCKET: Final = "server.sock"
SUCCESSOR_SOCKET: Final = "successor.sock"
TOKEN_BYTES: Final = 32
MAX_SUN_PATH: Final = 100
"""Bytes of a Unix socket's path; the kernel takes 107 (unix(7))."""


def local_token(directory: Path) -> str:
    """The token of this state directory; made if there is none that others can't read.

    :returns: URL-safe text.
    :raises OSError: it can't be read or made.
    """
    path = directory / TOKEN_FILE
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077 == 0:
            found = path.read_text(encoding="ascii", errors="replace").strip()
            if len(found) >= TOKEN_BYTES:
                return found
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(TOKEN_BYTES)
    fresh = directory / f".{TOKEN_FILE}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    fresh.replace(path)
    return token


def read_token(directory: Path) -> str:
    """The token of a server's state directory, for a program that has to show it.

    :raises OSError: there is none, or it may not be read.
    """
    return (directory / TOKEN_FILE).read_text(encoding="ascii", errors="replace").strip()


def socket_path(directory: Path, name: str) -> str:
    """The path of a socket in this directory, by which the kernel takes it however long it is.

    :raises OSError: the directory is not there.
    """
    path = str(directory / name)
    if len(os.fsencode(path)) <= MAX_SUN_PATH:
        return path
    return f"/proc/self/fd/{_opened(directory)}/{name}"


@lru_cache(maxsize=8)
def _opened(directory: Path) -> int:
    """A descriptor that stays open; a process has but one state directory."""
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def local_agent(reactor: Any, path: str, pool: Any = None) -> IAgent:
    """An Agent whose every request goes through this Unix socket, whatever its address says."""

    @implementer(IAgentEndpointFactory)
    class Here:
        def endpointForURI(self, uri: Any) -> UNIXClientEndpoint:
            return UNIXClientEndpoint(reactor, path, timeout=5)  # type: ignore[no-untyped-call]

    made: Any = Agent  # untyped in Twisted
    agent: IAgent = made.usingEndpointFactory(reactor, Here(), pool=pool)
    return agent
