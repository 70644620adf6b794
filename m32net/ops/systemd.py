"""What systemd is told of the service: ready, its state in a line, alive, stopping.

The protocol of sd_notify(3): datagrams of ``NAME=value`` lines to the socket ``$NOTIFY_SOCKET``.
Without that variable nothing is sent and nothing else changes.  A server that hangs is not fed, and
systemd starts it anew; whether it hangs is judged by others, see ``alive``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from m32net.log import RoomLog

NEWS_S: Final = 5.0
"""How often the line of ``systemctl status`` is looked at again, at least."""
MAX_STATUS: Final = 200
"""Characters of that line; a datagram that is too large would not be sent at all."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the environment says of the supervisor.

    :ivar address: of its socket, as :func:`socket.socket.sendto` takes it; None: there is none.
    :ivar watchdog_s: it wants to hear of us at least this often; None: it does not.
    """

    address: str | None = None
    watchdog_s: float | None = None


def supervision(environ: Mapping[str, str], pid: int) -> Supervision:
    """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` (sd_watchdog_enabled(3)).

    What cannot be used is taken as absent: a server must not fail to start for its supervisor.

    :param pid: our own; a watchdog meant for another process is none of ours.
    """
    given = environ.get("NOTIFY_SOCKET", "")
    if given.startswith("@") and len(given) > 1:
        address: str | None = "\0" + given[1:]
    else:
        address = given if given.startswith("/") else None
    try:
        period_us = int(environ.get("WATCHDOG_USEC", "0"))
        watched = int(environ.get("WATCHDOG_PID") or pid) == pid
    except ValueError:
        period_us, watched = 0, False
    if address is None or not watched or period_us <= 0:
        return Supervision(address)
    return Supervision(address, period_us / 1e6)


class Sender(Protocol):
    """Hands one datagram over; never blocks for long and never raises."""

    def __call__(self, message: bytes) -> None: ...


class NotifySocket:
    """The supervisor's socket, opened once: a later change of root or namespace does not matter.

    :ivar failures: datagrams it did not take.
    """

    def __init__(self, address: str) -> None:
        self.failures = 0
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def __call__(self, message: bytes) -> None:
        try:
            self._socket.sendto(message, self._address)
        except OSError:
            self.failures += 1


class Notifier:
    """What to say and when; no clock and no socket.

    :param watchdog_s: as :class:`Supervision` has it.
    :param send: takes a datagram.
    """

    def __init__(self, send: Sender, watchdog_s: float | None = None) -> None:
        self._send = send
        self._watchdog_s = watchdog_s
        self._status = ""
        self._stopping = False
        self._ready = False
        self.withheld = 0
        """Times the watchdog was due and not fed."""

    @property
    def interval_s(self) -> float:
        """How often to call :meth:`turn`: twice per watchdog period, as sd_notify(3) advises."""
        return NEWS_S if self._watchdog_s is None else min(NEWS_S, self._watchdog_s / 2)

    def ready(self, status: str = "") -> None:
        """The ports are open; said once."""
        if not self._ready:
            self._ready = True
            self._tell("READY=1", status)

    def turn(self, alive: bool, status: str) -> None:
        """The loop came round; feeds the watchdog unless something hangs."""
        feeding = self._watchdog_s is not None
        if feeding and not alive:
            self.withheld += 1
        self._tell("WATCHDOG=1" if feeding and alive else "", status)

    def stopping(self) -> None:
        """The orderly stop has begun; it takes at most as long as ``TimeoutStopSec``."""
        if not self._stopping:
            self._stopping = True
            self._tell("STOPPING=1", "stopping: telling listeners")

    def _tell(self, what: str, status: str) -> None:
        lines = [what] if what else []
        words = " ".join(status.split())[:MAX_STATUS]
        if words and words != self._status and not (self._stopping and what != "STOPPING=1"):
            self._status = words
            lines.append(f"STATUS={words}")
        if lines:
            self._send("\n".join(lines).encode(errors="replace"))


class NotifyService(Service):
    """Tells the supervisor, while it runs; it does nothing without one.

    :param alive: whether everything turns that a restart would mend; the loop itself is proved by
        this being called.
    :param status: one line for ``systemctl status``.
    """

    name = "systemd"
    log = RoomLog(namespace="m32net.ops")

    def __init__(
        self,
        clock: IReactorTime,
        notifier: Notifier | None,
        alive: Callable[[], bool],
        status: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._notifier = notifier
        self._alive = alive
        self._status = status
        self._next: IDelayedCall | None = None
        self._was_alive = True

    @classmethod
    def from_environment(
        cls,
        clock: IReactorTime,
        environ: Mapping[str, str],
        alive: Callable[[], bool],
        status: Callable[[], str],
    ) -> NotifyService:
        """With the supervisor that the environment names, if it does."""
        found = supervision(environ, os.getpid())
        notifier = None
        if found.address is not None:
            notifier = Notifier(NotifySocket(found.address), found.watchdog_s)
        return cls(clock, notifier, alive, status)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._notifier is not None:
            # Services start before the loop turns; READY=1 means that it does, with ports open.
            self._next = self._clock.callLater(0, self._begin, self._notifier)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self.stopping()
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None

    def stopping(self) -> None:
        """Say so at the beginning of the stop; the watchdog is fed until its end."""
        if self._notifier is not None:
            self._notifier.stopping()

    def _begin(self, notifier: Notifier) -> None:
        notifier.ready(self._status())
        self._turn(notifier)

    def _turn(self, notifier: Notifier) -> None:
        alive = self._alive()
        if alive != self._was_alive:
            self._was_alive = alive
            if not alive:
                self.log.error(
                    "Something hangs; the watchdog is not fed: {why}", why=self._status()
                )
        notifier.turn(alive, self._status())
        self._next = self._clock.callLater(notifier.interval_s, self._turn, notifier)
