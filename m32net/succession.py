"""One server follows another on the same machine, state directory and ports (CON-51).

Two locks say whose turn it is, a Unix socket beside them carries what the two have to tell each
other; :mod:`m32net.server` composes this.  The sequence is in docs/operations.md.  How listeners
are moved is :mod:`m32net.streaming.moving`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall

from m32net.config import ConfigError
from m32net.interfaces import RefusedError
from m32net.log import RoomLog
from m32net.ops.local import (
    SERVER_SOCKET,
    SUCCESSOR_SOCKET,
    local_agent,
    local_token,
    socket_path,
)
from m32net.ops.process import claim
from m32net.store.service import SettingsService
from m32net.streaming.target import OtherServer, quiet_pool
from m32net.web.service import WebError, WebService

SERVER_LOCK: Final = "server.lock"
SUCCESSOR_LOCK: Final = "successor.lock"
POLL_S: Final = 0.2
"""Between two looks whether the old server has gone; a kernel lock can only be asked for."""
_FREEZE: Final = "the server's successor is taking over; change it there in a moment"
_WAIT: Final = "this server is about to take over; change it when it has"


class Succession(Service):
    """Whether this process is the server of its state directory, or waits to become it.

    Provides :class:`m32net.streaming.moving.ISuccession`.

    :param take_over: wait if another process is the server now, instead of giving up.
    :ivar waiting: another process is the server.
    :ivar promoted: called when this one has become it, after it has waited; settings are read
        again by then.
    :raises ConfigError: another server uses the directory, or nobody can; one line.
    """

    name = "succession"
    log = RoomLog(namespace="m32net")

    def __init__(self, reactor: Any, directory: Path, *, take_over: bool) -> None:
        self._reactor = reactor
        self._directory = directory
        self.promoted: Callable[[], object] = lambda: None
        self._settings: SettingsService
        self._web: WebService
        self._port: IListeningPort | None = None
        self._polling = LoopingCall(self._look)
        self._polling.clock = reactor
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._claim(SERVER_LOCK)
            self.waiting = self._lock is None
            self._place = self._claim(SUCCESSOR_LOCK) if self.waiting and take_over else None
            if self.waiting and self._place is None:
                raise ConfigError(
                    f"another server waits already to take over {directory}"
                    if take_over
                    else f"another m32net server uses {directory}; give this one its own "
                    "--state-dir, or --take-over to follow it"
                )
            self.token = local_token(directory)
        except OSError as reason:
            raise ConfigError(f"cannot write in {directory}: {reason.strerror}") from None

    def _claim(self, name: str) -> int | None:
        """A lock, held while its descriptor is open; None if another process has it."""
        try:
            return claim(self._directory, name)
        except BlockingIOError:
            return None

    def attach(self, settings: SettingsService, web: WebService) -> None:
        """What is frozen, and what listens."""
        self._settings, self._web = settings, web
        if self.waiting:
            settings.frozen = _WAIT
            web.listens_at_start = False

    # -- while it runs ---------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._open(SUCCESSOR_SOCKET if self.waiting else SERVER_SOCKET)
        if self.waiting:
            self._polling.start(POLL_S, now=False)

    def _open(self, name: str) -> None:
        """Listen on the local socket of our role, which is nobody else's while we hold its lock."""
        try:
            (self._directory / name).unlink(missing_ok=True)  # of a process that was killed
            before = os.umask(0o177)
            try:
                path = socket_path(self._directory, name)
                self._port = self._reactor.listenUNIX(path, self._web.site, mode=0o600)
            finally:
                os.umask(before)
        except Exception as reason:  # a machine without it loses `m32net migrate`, nothing else
            self.log.warn("No local socket {name}: {reason}", name=name, reason=reason)

    def _close(self) -> Deferred[Any]:
        """Take the socket away, which Twisted does with its port."""
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else succeed(None)

    def stopService(self) -> Any:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._polling.running:
            self._polling.stop()
        return self._close()

    def _look(self) -> Any:
        """Whether it is our turn; then the old server is no more."""
        self._lock = self._claim(SERVER_LOCK)
        if self._lock is None:
            return None
        self._polling.stop()
        self.waiting = False
        self.log.info("The old server has gone; this one takes over")
        return Deferred.fromCoroutine(self._take_over())

    async def _take_over(self) -> None:
        with suppress(OSError):
            await self._close()
        self._open(SERVER_SOCKET)
        if self._place is not None:
            os.close(self._place)  # for a successor of our own
        try:
            await self._settings.reload(who="the server before")
        except RefusedError as reason:
            self.log.error("Settings as at this server's start: {reason}", reason=reason.message)
        self._settings.frozen = ""
        try:
            self._web.listen_again()
        except WebError as reason:
            self.log.error("{reason}", reason=str(reason))
        self.promoted()

    # -- ISuccession -----------------------------------------------------------------------

    def successor(self) -> OtherServer | None:
        lock = self._claim(SUCCESSOR_LOCK)
        if lock is not None:
            os.close(lock)
            return None
        path = socket_path(self._directory, SUCCESSOR_SOCKET)
        agent = local_agent(self._reactor, path, quiet_pool(self._reactor))
        return OtherServer(self._reactor, agent, "http://localhost", "the successor", self.token)

    async def give_way(self, successor: OtherServer) -> None:
        self._settings.frozen = _FREEZE
        try:
            await successor.demand("POST", "/api/succession", {"listen": True})
        except BaseException:
            self._settings.frozen = ""
            raise
        await self._web.stop_listening()
        self.log.info("New connections are the successor's")

    async def return_(self, successor: OtherServer) -> None:
        try:
            self._web.listen_again()
        except WebError as reason:
            self.log.error("{reason}", reason=str(reason))
        self._settings.frozen = ""
        self.log.info("New connections are taken here again")
        with suppress(Exception):  # it may be why
            await successor.demand("POST", "/api/succession", {"listen": False})

    async def listen(self, *, wanted: bool) -> None:
        if not self.waiting:
            raise RefusedError("no_successor", "this server follows no other", 409)
        if not wanted:
            await self._web.stop_listening()
            return
        try:
            self._web.listen_again()
        except WebError as reason:
            raise RefusedError("no_port", str(reason), 409) from None
