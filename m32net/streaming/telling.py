"""Telling many listeners to move or to stay, a few in each turn of the reactor.

A thousand messages at once would hold up the audio of everybody.  When to tell whom is decided
in :mod:`m32net.streaming.migration`; the order is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall

from m32net.streaming.migration import TellMove, TellStay
from m32net.streaming.service import StreamingService
from protocols.control import messages

STAY: Final = "migrationCancelled"
AT_ONCE: Final = 20
"""Listeners told in one turn; audio is sent between the turns."""


class Telling:
    """What listeners are still to be told.

    :param target: host and port they are sent to now; None: they are to stay, and whoever has
        not been told to move need not be.
    """

    def __init__(
        self,
        clock: Any,
        streaming: StreamingService,
        target: Callable[[], tuple[str, int] | None],
    ) -> None:
        self._clock = clock
        self._streaming = streaming
        self._target = target
        self._waiting: deque[TellMove | TellStay] = deque()
        self._next: IDelayedCall | None = None

    def add(self, step: TellMove | TellStay) -> None:
        """To be told by :meth:`go_on`."""
        self._waiting.append(step)

    def go_on(self) -> None:
        """Tell a few now, if it is not another turn's business already, the rest later."""
        if self._next is not None:
            return
        for _ in range(AT_ONCE):
            if not self._waiting:
                return
            self._tell(self._waiting.popleft())
        if self._waiting and self._next is None:
            self._next = self._clock.callLater(0, self._turn)

    def stop(self) -> None:
        """Tell nobody more."""
        self._waiting.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = None
        self.go_on()

    def _tell(self, step: TellMove | TellStay) -> None:
        if isinstance(step, TellStay):
            self._streaming.tell(step.client_id, STAY, step.reason, {})
            return
        target = self._target()
        if target is None:  # called off before its turn came
            return
        registry = self._streaming.registry
        one = registry.get(step.client_id)
        # In the listener's own scheme: who came by TLS is to go on by TLS.
        host, port = registry.door.address_for(one.link if one else None) or target
        event = messages.Migration(host, port, round(step.after_s, 3)).event(
            f"this server moves its listeners to {host}:{port}"
        )
        self._streaming.tell(step.client_id, event.type, event.reason, event.fields)
