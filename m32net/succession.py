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
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from m32net.asking import words
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
RETRY_S: Final = 1.0
"""Between two tries to listen, or to tell the successor that it is not to."""
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
        self._pauses: set[Deferred[None]] = set()
        self._silencing: Deferred[None] | None = None
        self._trouble = ""
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
            self._polling.start(POLL_S, now=False).addErrback(self._unexpected)

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
        for one in list(self._pauses):
            one.cancel()
        return self._close()

    def _look(self) -> None:
        """Whether it is our turn; then the old server is no more."""
        try:
            self._lock = self._claim(SERVER_LOCK)
        except OSError as reason:  # no descriptor is free, say: there may be one in a moment
            self._complain(f"cannot see whether the old server has gone: {reason.strerror}")
            return
        if self._lock is None:
            return
        self._polling.stop()
        self.waiting = False
        self.log.info("The old server has gone; this one takes over")
        Deferred.fromCoroutine(self._take_over()).addErrback(self._unexpected)

    async def _take_over(self) -> None:
        with suppress(OSError):
            await self._close()
        self._open(SERVER_SOCKET)
        if self._place is not None:
            os.close(self._place)  # for a successor of our own
            self._place = None
        try:
            await self._settings.reload(who="the server before")
        except RefusedError as reason:
            self.log.error("Settings as at this server's start: {reason}", reason=reason.message)
        except Exception:
            self.log.failure("Settings as at this server's start")
        self._settings.frozen = ""
        await self._listen()
        self.promoted()

    async def _listen(self) -> None:
        """Listen on the TCP ports, sooner or later; cancelled when the service stops."""
        while self.running:
            try:
                self._web.listen_again()
            except (WebError, OSError) as reason:
                self._complain(str(reason))
            else:
                self._trouble = ""
                return
            await self._pause()
        raise CancelledError

    def _pause(self) -> Deferred[None]:
        pause = deferLater(self._reactor, RETRY_S, lambda: None)

        def over(result: Any) -> Any:
            self._pauses.discard(pause)
            return result

        self._pauses.add(pause)
        return pause.addBoth(over)

    def _complain(self, trouble: str) -> None:
        """Once, not at every try."""
        if trouble != self._trouble:
            self.log.error("{trouble}; it is tried again", trouble=trouble)
        self._trouble = trouble

    def _unexpected(self, failure: Failure) -> None:
        if not failure.check(CancelledError):  # type: ignore[no-untyped-call]
            self.log.failure("Taking over went wrong", failure)

    # -- ISuccession -----------------------------------------------------------------------

    def successor(self) -> OtherServer | None:
        if self.waiting or not self._is_followed():
            return None
        path = socket_path(self._directory, SUCCESSOR_SOCKET)
        agent = local_agent(self._reactor, path, quiet_pool(self._reactor))
        return OtherServer(self._reactor, agent, "http://localhost", "the successor", self.token)

    async def give_way(self, successor: OtherServer) -> None:
        if self._silencing is not None:
            self._silencing.cancel()
        self._settings.frozen = _FREEZE
        try:
            await successor.demand("POST", "/api/succession", {"listen": True})
            await self._web.stop_listening()
        except Exception:
            # Its answer may be all that was lost: it may listen, and we do, too.
            await self.return_(successor)
            raise
        self.log.info("New connections are the successor's")

    async def return_(self, successor: OtherServer) -> None:
        """Comes back when the ports are open here; the successor has them until then."""
        await self._listen()
        self._settings.frozen = ""
        self.log.info("New connections are taken here again")
        self._silencing = Deferred.fromCoroutine(self._silence(successor))
        self._silencing.addErrback(self._unexpected)

    async def _silence(self, successor: OtherServer) -> None:
        """Tell the successor that it is not to listen, until it knows, or is no more."""
        while self.running:
            try:
                await successor.demand("POST", "/api/succession", {"listen": False})
            except CancelledError:
                raise
            except Exception as reason:
                with suppress(OSError):
                    if not self._is_followed():
                        return
                self._complain(f"the successor was told not to listen: {words(reason)}")
            else:
                self._trouble = ""
                return
            await self._pause()

    def _is_followed(self) -> bool:
        """Whether a successor waits.

        :raises OSError: that can't be seen.
        """
        lock = self._claim(SUCCESSOR_LOCK)
        if lock is not None:
            os.close(lock)
        return lock is None

    async def listen(self, *, wanted: bool) -> None:
        if not self.waiting:
            raise RefusedError("no_successor", "this server follows no other", 409)
        if not wanted:
            await self._web.stop_listening()
            return
        try:
            self._web.listen_again()
        except (WebError, OSError) as reason:
            raise RefusedError("no_port", str(reason), 409) from None
