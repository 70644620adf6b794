"""Control connections as their owners hold them, and how owners are told of events.

Handles only: the shells behind them are in :mod:`protocols.control.server_protocol` and
:mod:`protocols.control.client_protocol`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from protocols.control import messages
from protocols.control.client_session import ClientSession
from protocols.control.outbox import Outbox
from protocols.control.outgoing import CLOSE_GOING_AWAY, CLOSE_POLICY_VIOLATION
from protocols.control.quality import ControlQuality, Traffic

Event = TypeVar("Event")


class ServerShell(Protocol):
    """What :class:`ControlConnection` needs of the protocol behind it."""

    outbox: Outbox
    traffic: Traffic

    @property
    def is_open_now(self) -> bool: ...
    def send(self, message: messages.ServerMessage) -> bool: ...
    def quality(self, now: float) -> ControlQuality: ...
    def close(self, code: int, reason: str) -> None: ...


class ClientShell(Protocol):
    """What :class:`ControlClient` needs of the protocol behind it."""

    def configure(self, config: messages.ClientConfig) -> None: ...
    def want_levels(self, interval_ms: int) -> None: ...
    def quality(self, now: float) -> ControlQuality: ...
    def close(self, reason: str) -> None: ...
    def abort(self) -> None: ...


class ControlConnection:
    """One listener's connection, as the server holds it.

    :ivar host: the peer's IP address; the only one its audio may be sent to.
    :ivar port: the peer's TCP port.
    :ivar secure: whether it came over TLS.
    :ivar client_id: for the owner to set, once it knows.
    """

    def __init__(self, shell: ServerShell, host: str, port: int, *, secure: bool = False) -> None:
        self.host = host
        self.port = port
        self.secure = secure
        self.client_id: str | None = None
        self._shell = shell

    def __repr__(self) -> str:
        return f"<ControlConnection {self.client_id or 'unknown'} at {self.host}:{self.port}>"

    @property
    def open(self) -> bool:
        """Whether something may still be sent."""
        return self._shell.is_open_now

    @property
    def queued_bytes(self) -> int:
        """What waits here because the peer reads too slowly."""
        return self._shell.outbox.size

    @property
    def dropped(self) -> int:
        """Messages thrown away for the same reason."""
        return self._shell.outbox.dropped

    @property
    def traffic(self) -> Traffic:
        """What went over it so far."""
        return self._shell.traffic

    def quality(self, now: float) -> ControlQuality:
        """How the connection fares (CON-13).

        :param now: of the factory's steady clock.
        """
        return self._shell.quality(now)

    def send(self, message: messages.ServerMessage) -> bool:
        """Send or queue a message; False if the connection is over or it was dropped.

        :raises LocalProtocolError: it cannot be written as JSON.
        """
        return self._shell.send(message)

    def close(self, code: int = CLOSE_GOING_AWAY, reason: str = "") -> None:
        """Send what is queued, then close.  The owner hears a ``SessionClosed``."""
        self._shell.close(code, reason)

    def refuse(self, code: str, message: str) -> None:
        """Say why with an error message, then close with 1008 and the same reason."""
        self.send(messages.Error(code, message))
        self.close(CLOSE_POLICY_VIOLATION, message)


class ControlClient:
    """A connection to a server, as the listener holds it.

    :ivar session: the core, for its ``state``, ``welcome`` and ``clock``.
    :ivar host: the server's IP address; its audio comes from there.
    :ivar gone: whether nothing is left of the connection.
    """

    def __init__(self, shell: ClientShell, session: ClientSession, host: str) -> None:
        self.session = session
        self.host = host
        self.gone = False
        self._shell = shell
        self._when_gone: list[Callable[[], object]] = []

    def configure(self, config: messages.ClientConfig) -> None:
        """Ask for audio, or for other audio."""
        self._shell.configure(config)

    def want_levels(self, interval_ms: int) -> None:
        """Ask for levels at most so often, 50..5000 ms; 0: no more.

        :raises ValueError: it is neither.
        """
        self._shell.want_levels(interval_ms)

    def quality(self, now: float) -> ControlQuality:
        """How the connection fares (CON-13), by the clock questions.

        :param now: of the factory's steady clock.
        """
        return self._shell.quality(now)

    def close(self, reason: str = "bye") -> None:
        """Say bye and close.  The owner hears a ``SessionClosed`` at once, before the server does.

        Who ends the process must wait for :meth:`when_gone`, or the bye stays here.
        """
        self._shell.close(reason)

    def abort(self) -> None:
        """Drop the connection without a word, as a fault would."""
        self._shell.abort()

    def when_gone(self, tell: Callable[[], object]) -> None:
        """``tell()`` is called once, when nothing is left of the connection; now if that is so."""
        if self.gone:
            tell()
        else:
            self._when_gone.append(tell)

    def mark_gone(self) -> None:
        """The connection is gone; called by the shell."""
        self.gone = True
        waiting, self._when_gone = self._when_gone, []
        for tell in waiting:
            tell()


class Delivery(Generic[Event]):
    """Gives events to the owner one after another, also those that come while it is busy."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._waiting: deque[Event] = deque()
        self._busy = False

    def __call__(self, new: Sequence[Event]) -> None:
        self._waiting.extend(new)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._tell(self._waiting.popleft())
        finally:
            self._busy = False
